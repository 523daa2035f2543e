"""What the tests of the programs' edges share: running byokfs as people do, and finding the daemon it left behind."""
import contextlib
import json
import os
import signal
import socket
import subprocess

from conftest import BYOKFS, environment, wait_until

USAGE, CONFIG, NOT_A_STORE, DENIED, UNREACHABLE, DAMAGE, NO_MOUNT, ALREADY = 2, 3, 4, 5, 6, 7, 8, 9


class Ran:
    """How a program ended."""

    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self):
        return f"exit {self.code}\n{self.out}{self.err}"


def run(*args, env=None, cwd=None, timeout=60, user=None):
    """env is added to the usual environment; a value of None takes a variable away."""
    merged = {k: v for k, v in {**environment(), **(env or {})}.items() if v is not None}
    return Ran(subprocess.run([os.fspath(a) for a in args], env=merged, cwd=cwd, capture_output=True, text=True, timeout=timeout,
                              errors="surrogateescape", user=user, stdin=subprocess.DEVNULL))


def said(ran, code, *words):
    """The exit code, an error line in the house's voice, and these words in it."""
    assert ran.code == code, ran
    if code:
        assert any(line.startswith(("byokfs: error: ", "byokfsctl: error: ")) for line in ran.err.splitlines()), ran
        assert ran.err.count(": hint: ") <= 1, ran
    for word in words:
        assert word in ran.err, (word, ran)
    return ran


def mounted(path):
    """The options of the byokfs mount at path, or None. The last line wins: mounts may lie on one another."""
    found = None
    with open("/proc/mounts", "rb") as f:
        for line in f.read().decode(errors="surrogateescape").splitlines():
            source, at, kind, options = line.split()[:4]
            if at.encode(errors="surrogateescape").decode("unicode_escape") == str(path) and kind == "fuse.byokfs":
                found = options.split(",")
    return found


def daemon_of(store, mountpoint=None):
    """Process id of the daemon that serves this mount."""
    return json.loads(store.ctl("status", "--json", mountpoint or store.plain).stdout)["pid"]


def ended(pid):
    """Has our (adopted) child ended? Its exit code then, else None."""
    try:
        got, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0 if not os.path.exists(f"/proc/{pid}") else None
    return os.waitstatus_to_exitcode(status) if got else None


@contextlib.contextmanager
def background(store, *args, program=BYOKFS, env=None, mountpoint=None, order=None):
    """byokfs without -f. Yields how it ended; what it mounted is unmounted afterwards, and its daemon waited for."""
    at = mountpoint or store.plain
    ran = run(program, *(order or ["-c", store.ini, *args, store.cipher, at]), env=env)
    pid = daemon_of(store, at) if ran.code == 0 else None
    try:
        yield ran, pid
    finally:
        while mounted(at) is not None:
            subprocess.run(["umount", "-l", at], check=False, capture_output=True, timeout=30)
        if pid:
            wait_until(lambda: ended(pid) is not None, 30)


def terminate(store, sig=signal.SIGTERM, seconds=15):
    """Sends the signal to a foreground daemon; its exit code."""
    store.process.send_signal(sig)
    code = store.process.wait(seconds)
    store.process = None
    return code


class Systemd:
    """The receiving end of sd_notify."""

    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name[0] == "@" else name)
        self.socket.settimeout(20)
        self.name = name

    def hear(self):
        return self.socket.recv(4096).decode()

    def close(self):
        self.socket.close()


def markers(store):
    """Names of mount markers in the store."""
    try:
        return [n for n in os.listdir(os.path.join(store.cipher, ".byokfs", "mounts")) if not n.startswith(".")]
    except FileNotFoundError:
        return []


def tree(path):
    """Every name below a directory."""
    return sorted(os.path.relpath(os.path.join(d, n), path) for d, dirs, files in os.walk(path) for n in dirs + files)
