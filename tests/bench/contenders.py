"""The filesystems under comparison, behind one interface: create in a fresh directory, mount, unmount, close.

Every daemon is a child in the foreground, so that it can be waited for, measured, and ended by its process id."""
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 60


class Broken(Exception):
    """A contender did not do what it was asked to."""


def mount_type(path):
    """Kind of filesystem mounted at path, or None."""
    with open("/proc/mounts") as f:
        kinds = [line.split()[2] for line in f if line.split()[1] == path]
    return kinds[-1] if kinds else None


class Contender:
    """Common to all: where things are, the life of the daemon. base is a directory of the contender's own."""
    kind = ""       # what /proc/mounts says
    program = ""
    is_peer = True
    keeps_times = True

    def __init__(self, base):
        self.base = base
        self.cipher, self.plain = os.path.join(base, "cipher"), os.path.join(base, "plain")
        self.log = os.path.join(base, "log")
        self.process = None

    @classmethod
    def missing(cls):
        """Why it cannot take part, or None."""
        return None if shutil.which(cls.program) else f"{cls.program} is not installed"

    def run(self, *args):
        done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise Broken(f"{' '.join(args[:2])}: exit code {done.returncode}: {done.stderr.strip()[-400:]}")

    def create(self):
        os.makedirs(self.cipher)
        os.makedirs(self.plain)
        self.make_store()

    def make_store(self):
        raise NotImplementedError

    def command(self):
        raise NotImplementedError

    def mount(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + PATIENCE
        while mount_type(self.plain) != self.kind:
            if not self.alive() or time.monotonic() > end:
                raise Broken(f"does not mount: {self.log_tail()}")
            time.sleep(0.01)
        os.listdir(self.plain)

    def umount(self):
        """Clean: whoever looked at the mount last may need a moment to let go."""
        for _ in range(20):
            done = subprocess.run(["umount", self.plain], capture_output=True, text=True, timeout=PATIENCE)
            if done.returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise Broken(f"umount: {done.stderr.strip()}")
        code = self.process.wait(PATIENCE)
        self.process = None
        if code:
            raise Broken(f"ends with exit code {code}: {self.log_tail()}")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def abort(self):
        """Forced: the kernel ends the connection, so that whoever waits for an answer gets an error instead."""
        subprocess.run(["umount", "-f", "-l", self.plain], capture_output=True, timeout=PATIENCE)

    def close(self):
        """Whatever state it is in, nothing is left: no mount, no process, no file."""
        while mount_type(self.plain):
            self.abort()
        self.end_process()
        shutil.rmtree(self.base, ignore_errors=True)

    def end_process(self):
        if self.alive():
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def log_tail(self):
        if not os.path.exists(self.log):
            return ""
        with open(self.log, errors="replace") as f:
            return f.read()[-600:].strip()

    def cpu(self):
        """Seconds of processor time the daemon has used since it was mounted."""
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def kms_calls(self):
        return 0

    def settle(self):
        """Returns when the daemon is through with what it does by itself after a mount."""


class Gocryptfs(Contender):
    """As it comes; only the cost of the password, which no workload sees, is low."""
    kind, program = "fuse.gocryptfs", "gocryptfs"

    def make_store(self):
        self.password = os.path.join(self.base, "password")
        with open(self.password, "w") as f:
            f.write("benchmark\n")
        self.run("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", self.password, self.cipher)

    def command(self):
        return ["gocryptfs", "-q", "-fg", "-passfile", self.password, self.cipher, self.plain]


class Securefs(Contender):
    """Format 4 is securefs lite: a file of ciphertext per file. Through libfuse 2 a request to set the one time and leave the
    other is lost without an error, and tar makes such requests."""
    kind, program = "fuse.securefs", "securefs"
    keeps_times = False

    def make_store(self):
        self.run("securefs", "create", "--format", "4", "--pbkdf", "pkcs5-pbkdf2-hmac-sha256", "-r", "1000", "--pass", "benchmark",
                 self.cipher)

    def command(self):
        """noforget: without it a directory gets another inode number when the kernel forgets it, and tar gives up."""
        return ["securefs", "mount", "-o", "noforget", "--pass", "benchmark", "--log", os.path.join(self.base, "securefs.log"),
                self.cipher, self.plain]


class Byokfs(Contender):
    """The mount layer's Devkms and Mount, with the defaults of byokfs.ini."""
    kind, seal = "fuse.byokfs", ""
    is_peer = False
    latency_ms, connections = 0, 0   # 0: the default

    def __init__(self, base):
        super().__init__(base)
        self.kms = self.store = None

    @classmethod
    def missing(cls):
        build = os.environ["BUILD"]
        for program in ("byokfs", "byokfsctl", "byokfs-devkms"):
            if not os.access(os.path.join(build, program), os.X_OK):
                return f"{os.path.join(build, program)} is not built"
        return None

    def make_store(self):
        sys.path.insert(0, os.path.join(HERE, "..", "mount"))
        try:
            import conftest
        finally:
            del sys.path[0]
        self.kms = conftest.Devkms(os.path.join(self.base, "kms"))
        if self.latency_ms:
            self.kms.fault(latency_ms=self.latency_ms)
        ini = f"[kms]\nkey = {self.kms.key}\nendpoint = {self.kms.endpoint}\n"
        if self.connections:
            ini += f"max_connections = {self.connections}\n"
        self.store = conftest.Mount(self.base, self.kms, init=("--seal", self.seal), ini=ini)
        self.log = self.store.log

    def mount(self):
        self.store.mount()
        self.process = self.store.process

    def umount(self):
        self.store.umount()
        self.process = None

    def close(self):
        if self.store and self.store.process:
            self.process = self.store.process
        super().close()
        if self.kms:
            self.kms.stop()

    def kms_calls(self):
        return sum(o["calls"] for o in self.kms.http("GET", "/_devkms/stats?last=0")["operations"].values())

    def settle(self):
        """Fresh keys for new files are fetched behind the mount's back; they are not the calls of the work that follows."""
        before, end = -1, time.monotonic() + 5
        while (now := self.kms_calls()) != before and time.monotonic() < end:
            before = now
            time.sleep(0.03 + 2 * self.latency_ms / 1000)


class ByokfsDomain(Byokfs):
    seal = "domain"


class ByokfsFile(Byokfs):
    seal = "file"


ALL = {"byokfs-domain": ByokfsDomain, "byokfs-file": ByokfsFile, "gocryptfs": Gocryptfs, "securefs": Securefs}
