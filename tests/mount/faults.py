"""What the tests of revocation, outages and crashes share."""
import errno
import os
import random
import signal
import subprocess
import sys
import time

import pytest

PROMISE = 2.0  # seconds from the denial to EIO, with a probe every second
SLACK = 1.5    # for a busy machine
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESTALE, errno.ECANCELED)  # the last: on its way into a ring


def err(call, *args, **kwargs):
    """The errno of a call, 0 when it succeeds."""
    try:
        result = call(*args, **kwargs)
    except OSError as e:
        return e.errno
    if type(result) is int and call is os.open:
        os.close(result)
    return 0


def until(what, seconds, step=0.005):
    """Polls; returns the seconds it took, or fails."""
    begin = time.monotonic()
    while True:
        now = time.monotonic() - begin
        if what():
            return now
        assert now < seconds, f"did not happen within {seconds} s"
        time.sleep(step)


def say(text):
    """Measured values go to the terminal, whatever pytest captures."""
    sys.__stderr__.write(f"    {text}\n")
    sys.__stderr__.flush()


def pattern(seed, n):
    return random.Random(seed).randbytes(n)


def put(path, data, sync=True):
    with open(path, "wb") as f:
        f.write(data)
        if sync:
            f.flush()
            os.fsync(f.fileno())


def get(path):
    with open(path, "rb") as f:
        return f.read()


def drop_caches(mount_dir):
    """Makes the kernel forget the pages of every closed, clean file."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("1")


def compile_c(name, into):
    """Compiles c2/name.c; returns the program."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "c2", name + ".c")
    program = os.path.join(str(into), name)
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, source, "-lpthread"], check=True)
    return program


class Mapper:
    """A process with a file mapped (c2/mapper.c)."""

    def __init__(self, program, path):
        self.process = subprocess.Popen([program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, *words):
        self.process.stdin.write(" ".join(str(w) for w in words) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


class Child:
    """A forked child running fn(write): what it writes comes back from lines(). It leaves with os._exit."""

    def __init__(self, fn):
        self.read_fd, write_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.close(self.read_fd)
                fn(lambda text: os.write(write_fd, (text + "\n").encode()))
                code = 0
            except BaseException as e:  # whatever it is, the parent must hear of it and the child must not return
                os.write(write_fd, f"exception {type(e).__name__} {e}\n".encode())
            finally:
                os._exit(code)
        os.close(write_fd)
        self.code = None

    def running(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def wait(self, seconds=30):
        """Its exit code; a child that hangs is a failure (and killed)."""
        try:
            until(lambda: not self.running(), seconds)
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            raise AssertionError(f"child {self.pid} hangs") from None
        return self.code

    def lines(self):
        """All it wrote. After its end, or this waits for it."""
        with os.fdopen(self.read_fd, "r") as f:
            return f.read().splitlines()


class FreezableDisk:
    """A file system of its own in a file: frozen, a write to it waits and a read does not. Skips where there are no loop devices."""

    def __init__(self, directory, mib):
        self.directory, self.image, self.frozen = directory / "disk", directory / "image", False
        with open(self.image, "wb") as f:
            f.truncate(mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", self.image], check=True)

    def __enter__(self):
        self.directory.mkdir()
        if subprocess.run(["mount", "-o", "loop", self.image, self.directory], check=False).returncode:
            pytest.skip("no loop devices here")
        return self

    def __exit__(self, *exc):
        self.thaw()
        while os.path.ismount(self.directory):
            subprocess.run(["umount", "-l", self.directory], check=True)

    def base(self):
        """Where a Mount may be made whose store is in there."""
        base = self.directory.parent / "m"
        (self.directory / "cipher").mkdir()
        base.mkdir()
        os.symlink(self.directory / "cipher", base / "cipher")
        return base

    def freeze(self):
        subprocess.run(["fsfreeze", "-f", self.directory], check=True)
        self.frozen = True

    def thaw(self):
        if self.frozen:
            subprocess.run(["fsfreeze", "-u", self.directory], check=True)
        self.frozen = False
