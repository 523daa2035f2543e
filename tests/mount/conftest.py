"""Real mounts over byokfs-devkms. Everything a test starts is ended by process id, also when the test fails."""
import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import time

import boto3
import pytest
from botocore.config import Config

BUILD = os.environ.get("BUILD", os.path.join(os.path.dirname(__file__), "..", "..", "build"))
BYOKFS = os.path.join(BUILD, "byokfs")
CTL = os.path.join(BUILD, "byokfsctl")
DEVKMS = os.path.join(BUILD, "byokfs-devkms")
AK, SK = "AKIADEVKMS0000000000", "devkms-secret-not-for-production"
LIBC = ctypes.CDLL(None, use_errno=True)


PR_SET_CHILD_SUBREAPER = 36


def pytest_configure(config):
    # The watchdog of a killed daemon becomes our child, so that it can be waited for.
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    config.addinivalue_line("markers", "sanitizer: also run in the sanitizer build")
    config.addinivalue_line("markers", "ring: also run with mount.transport = io_uring")


def pytest_generate_tests(metafunc):
    if metafunc.definition.get_closest_marker("ring"):
        metafunc.parametrize("transport", ["fuse", "io_uring"], indirect=True)


def pytest_collection_modifyitems(config, items):
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        if os.environ.get("CI"):
            pytest.exit("no /dev/fuse: the mount layer cannot run here", returncode=1)
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no /dev/fuse"))


def environment():
    env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    env.update(AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, ASAN_OPTIONS="detect_leaks=0", LC_ALL="C.UTF-8")
    return env


def wait_until(what, seconds=20.0, step=0.02):
    """Polls; the deadline is a safety net, not an assertion about speed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(step)
    raise AssertionError(f"did not happen within {seconds} s: {what}")


class Devkms:
    """A byokfs-devkms process and a client for it."""

    def __init__(self, state, *args):
        self.state = str(state)
        self.args = args
        self.process = None
        self.port = 0
        self.start()
        self.key = self.client.create_key(Description="test")["KeyMetadata"]["Arn"]

    def start(self):
        portfile = os.path.join(self.state, "port")
        os.makedirs(self.state, exist_ok=True)
        if os.path.exists(portfile):
            os.unlink(portfile)
        self.log = open(os.path.join(self.state, "log"), "ab")
        self.process = subprocess.Popen(
            [DEVKMS, "--state", os.path.join(self.state, "kms"), "--port", str(self.port), "--port-file", portfile, *self.args],
            stdout=self.log, stderr=self.log, env=environment())
        wait_until(lambda: os.path.exists(portfile) and os.path.getsize(portfile))
        with open(portfile) as f:
            self.port = int(f.read())
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.client = boto3.client("kms", region_name="us-east-1", endpoint_url=self.endpoint, aws_access_key_id=AK,
                                   aws_secret_access_key=SK, config=Config(retries={"max_attempts": 0}))

    def stop(self, sig=signal.SIGTERM):
        if self.process:
            self.process.send_signal(sig)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
            self.log.close()

    def http(self, method, path, body=None):
        import urllib.request
        request = urllib.request.Request(self.endpoint + path, method=method,
                                         data=json.dumps(body).encode() if body is not None else None)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def fault(self, **what):
        self.http("POST", "/_devkms/fault", what)

    def fault_list(self, faults):
        self.http("POST", "/_devkms/fault", faults)

    def clear(self):
        self.http("DELETE", "/_devkms/fault")

    def stats(self):
        return self.http("GET", "/_devkms/stats")

    def disable(self, key=None):
        self.client.disable_key(KeyId=key or self.key)

    def enable(self, key=None):
        self.client.enable_key(KeyId=key or self.key)


# A mount namespace of its own for the command that follows. It begins with a copy of every mount of the machine, and a file system whose copy is left
# somewhere does not end when it is unmounted: whoever tests at the same time would wait for a daemon that rightly goes on.
NAMESPACE = ["unshare", "-m", "--propagation", "private", "sh", "-c", 'umount -a -c -i -l -t fuse.byokfs 2>/dev/null; exec "$@"', "sh"]


URING_PARAMETER = "/sys/module/fuse/parameters/enable_uring"


def allow_ring():
    """FUSE over io_uring is off until root says otherwise; it harms nobody who does not ask for it. A kernel without it fails these tests."""
    assert os.path.exists(URING_PARAMETER), "this kernel has no FUSE over io_uring (Linux 6.14, CONFIG_FUSE_IO_URING)"
    with open(URING_PARAMETER, "r+") as f:
        if f.read().strip() != "Y":
            f.write("Y")


@contextlib.contextmanager
def ring_lock(how):
    """Tests that use the ring share it; one that forbids it to the machine is alone, and those who come after it wait outside."""
    with open("/run/lock/byokfs-tests-ring-door", "a") as door, open("/run/lock/byokfs-tests-ring", "a") as lock:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(lock, how)
        if how == fcntl.LOCK_SH:
            fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.fixture(autouse=True)
def transport(request, monkeypatch):
    """How this test's mounts get their requests; tests marked "ring" run once with each."""
    kind = getattr(request, "param", os.environ.get("BYOKFS_TEST_TRANSPORT"))
    monkeypatch.setattr(Mount, "transport", kind)
    if kind == "io_uring":
        request.getfixturevalue("ring")
    return kind


@pytest.fixture
def ring(monkeypatch):
    """This test's mounts use the ring."""
    with ring_lock(fcntl.LOCK_SH):
        allow_ring()
        monkeypatch.setattr(Mount, "transport", "io_uring")
        yield


@pytest.fixture
def ring_alone():
    with ring_lock(fcntl.LOCK_EX):
        allow_ring()
        yield


class Mount:
    """A store and its mount."""

    transport = None  # None: byokfs's default

    def __init__(self, base, kms, init=(), options=(), ini=None, probe="1s", lease="3s"):
        self.base, self.kms = str(base), kms
        self.cipher = os.path.join(self.base, "cipher")
        self.plain = os.path.join(self.base, "plain")
        self.ini = os.path.join(self.base, "byokfs.ini")
        self.log = os.path.join(self.base, "byokfs.log")
        self.options = list(options)
        self.process = None
        os.makedirs(self.cipher, exist_ok=True)
        os.makedirs(self.plain, exist_ok=True)
        with open(self.ini, "w") as f:
            f.write(ini or f"[kms]\nprovider = aws\nkey = {kms.key}\nendpoint = {kms.endpoint}\n"
                           f"request_timeout = 2s\n[cache]\nprobe = {probe}\nlease = {lease}\n")
        if not os.path.exists(os.path.join(self.cipher, ".byokfs")):
            self.ctl("init", "-c", self.ini, *init, self.cipher, check=True)

    def environment(self):
        """What the programs find; for those whose credentials come from elsewhere."""
        return environment()

    def ctl(self, *args, check=False, timeout=60):
        return subprocess.run([CTL, *args], env=self.environment(), capture_output=True, text=True, errors="surrogateescape", check=check,
                              timeout=timeout)

    def mount(self, *options, check=True):
        """Foreground, so that the daemon is our child; ready when the mount table and the root answer."""
        args = [BYOKFS, "-f", "-c", self.ini]
        if self.transport:
            args += ["-o", f"mount.transport={self.transport}"]
        for o in [*self.options, *options]:
            args += ["-o", o]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([*args, self.cipher, self.plain], stdout=log, stderr=log, env=self.environment())
        if check:
            wait_until(lambda: self.mounted() or self.process.poll() is not None)
            assert self.process.poll() is None, self.read_log()
            os.stat(self.plain)
        return self

    def read_log(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def mounted(self):
        with open("/proc/mounts", errors="surrogateescape") as f:
            return any(line.split()[1] == self.plain and line.split()[2] == "fuse.byokfs" for line in f)

    def umount(self):
        """A clean unmount; the daemon must end with exit code 0."""
        subprocess.run(["umount", self.plain], check=True, timeout=60)
        code = self.process.wait(60)
        self.process = None
        assert code == 0, self.read_log()

    def remount(self, *options):
        self.umount()
        return self.mount(*options)

    def kill(self):
        """SIGKILL; returns when the watchdog has done its work. The dead mount stays: clear_dead()."""
        watchdogs = self.watchdogs()
        self.process.kill()
        self.process.wait()
        self.process = None
        for pid in watchdogs:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass

    def watchdogs(self):
        """Process ids of the daemon's children."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as f:
            return [int(pid) for pid in f.read().split()]

    def clear_dead(self):
        subprocess.run(["umount", "-l", self.plain], check=False, capture_output=True, timeout=60)
        wait_until(lambda: not self.mounted())

    def close(self):
        if self.process and self.process.poll() is None:
            subprocess.run(["umount", "-l", self.plain], check=False, capture_output=True, timeout=30)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        while self.mounted():
            subprocess.run(["umount", "-l", self.plain], check=False, capture_output=True, timeout=30)

    def status(self):
        r = self.ctl("status", "--json", self.plain)
        return json.loads(r.stdout)

    def state(self):
        return self.status()["state"]

    def path(self, *names):
        return os.path.join(self.plain, *names)


@pytest.fixture(scope="module")
def whole_machine():
    """For tests that put something into /sbin or install packages: one at a time, whoever runs them. The file, where they
    may note what is to be undone should they be killed."""
    if os.geteuid() != 0:  # those tests are skipped, and another user's file cannot be locked
        yield
        return
    with open("/run/lock/byokfs-tests", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@pytest.fixture
def devkms(tmp_path):
    kms = Devkms(tmp_path / "devkms")
    yield kms
    kms.stop()


@pytest.fixture(scope="module")
def shared_devkms(tmp_path_factory):
    """One KMS for a module whose tests do not harm it."""
    kms = Devkms(tmp_path_factory.mktemp("devkms"))
    yield kms
    kms.stop()


@pytest.fixture
def store(tmp_path, devkms):
    """An unmounted store with a KMS of its own."""
    m = Mount(tmp_path, devkms)
    yield m
    m.close()


@pytest.fixture
def mount(store):
    return store.mount()


@pytest.fixture
def plain(tmp_path, shared_devkms):
    """A mounted directory for tests that only use it as a filesystem."""
    m = Mount(tmp_path, shared_devkms, probe="10s", lease="30s").mount()
    yield m
    m.close()


@pytest.fixture
def make_mount(tmp_path, request):
    """make_mount(name, kms, ...): any number of stores, all taken down at the end."""
    made = []

    def make(name, kms, **kw):
        m = Mount(tmp_path / name, kms, **kw)
        made.append(m)
        return m

    os.makedirs(tmp_path, exist_ok=True)
    yield make
    for m in made:
        m.close()
