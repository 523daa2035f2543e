"""The filesystems under comparison, behind one interface: create in a fresh directory, mount, unmount, close. And byokfs itself.

Every daemon is a child in the foreground, so that it can be waited for, measured, and ended by its process id; in a process group
of its own, where no interrupt from the terminal ends it early, but in the session of all, for the scheduler shares by sessions."""
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TICK = os.sysconf("SC_CLK_TCK")
PATIENCE = 60
COMPILER = os.environ.get("CC", "cc").split()


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
    role = "peer"   # ours, peer (encrypts too), bare (FUSE without encryption), plain (no FUSE)
    keeps_times = True
    rounds = 1000   # it sits out the rounds after these: for the slowest
    durable = True  # its fsync reaches the disk
    groups = None   # names of the groups it takes part in, if not in all
    patience = PATIENCE
    answers = ""    # what the program reads from its standard input when it mounts

    def __init__(self, base):
        self.base = base
        self.cipher, self.plain = os.path.join(base, "cipher"), os.path.join(base, "plain")
        self.log = os.path.join(base, "log")
        self.process = None

    @classmethod
    def missing(cls):
        """Why it cannot take part, or None."""
        return None if shutil.which(cls.program) else f"{cls.program} is not installed"

    @classmethod
    def version(cls):
        """Of the package, as Debian counts."""
        said = subprocess.run(["dpkg-query", "-W", "-f=${Version}", cls.program], capture_output=True, text=True, check=False)
        return said.stdout.strip() or "?"

    def environment(self):
        return None

    def run(self, *args):
        done = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False)
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
            self.process = subprocess.Popen(self.command(), stdin=subprocess.PIPE, stdout=log, stderr=log, env=self.environment(),
                                            process_group=0, text=True)
        self.process.stdin.write(self.answers)
        self.process.stdin.close()
        end = time.monotonic() + self.patience
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
        self.force_umount()
        self.end_process()
        self.force_umount()   # it may have been about to mount
        shutil.rmtree(self.base, ignore_errors=True)

    def force_umount(self):
        while mount_type(self.plain):
            self.abort()

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


class Byokfs(Contender):
    """The mount layer's Devkms and Mount, with the defaults of byokfs.ini."""
    kind, seal, more = "fuse.byokfs", "", ""
    role = "ours"
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

    @classmethod
    def version(cls):
        said = subprocess.run([os.path.join(os.environ["BUILD"], "byokfs"), "-V"], capture_output=True, text=True, check=False)
        return said.stdout.strip().split(";")[0].removeprefix("byokfs ")

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
        ini += self.more
        self.store = conftest.Mount(self.base, self.kms, init=("--seal", self.seal), ini=ini)
        self.log = self.store.log

    def mount(self):
        self.store.mount()
        self.process = self.store.process

    def umount(self):
        super().umount()
        self.store.process = None

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


class ByokfsUring(ByokfsDomain):
    """The same with requests through io_uring instead of /dev/fuse, where kernel and daemon can do that."""
    more = "[mount]\ntransport = io_uring\n"

    @classmethod
    def missing(cls):
        """A trial: a mount may refuse the key, or fall back and say so in its status."""
        why = super().missing()
        if why:
            return why
        with tempfile.TemporaryDirectory(prefix="byokfs-bench.") as base:
            trial = cls(os.path.join(base, "trial"))
            try:
                trial.create()
                trial.mount()
                used = trial.store.status().get("transport", "fuse")
            except (Broken, AssertionError, OSError, ValueError, subprocess.SubprocessError) as e:
                used = " ".join(f"{e!r} {getattr(e, 'stderr', '')}".split())[-200:]
            finally:
                trial.close()
        return None if used == "io_uring" else f"no io_uring: {used}"


OURS = {"byokfs-domain": ByokfsDomain, "byokfs-file": ByokfsFile, "byokfs-uring": ByokfsUring}
