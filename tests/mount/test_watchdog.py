"""The daemon dies; nobody reads on from the kernel's cache, nobody hangs, and what was fsynced is there afterwards."""
import os
import signal
import subprocess
import time

import pytest

from conftest import wait_until
from faults import GONE, SLACK, Child, Mapper, compile_c, err, get, pattern, put, say, until

PAGE = 4096
DATA = pattern(21, 1 << 20)


@pytest.fixture(scope="module")
def mapper_program(tmp_path_factory):
    return compile_c("mapper", tmp_path_factory.mktemp("c"))


class Held:
    """A file fully in the page cache, open and mapped."""

    def __init__(self, mount, program):
        self.mount, self.program = mount, program
        for name in ("held", "other", "unread"):
            put(mount.path(name), DATA)
        mount.remount()
        self.open()

    def open(self):
        mount = self.mount
        self.fd = os.open(mount.path("held"), os.O_RDWR)
        self.dir = os.open(mount.plain, os.O_RDONLY | os.O_DIRECTORY)
        assert os.pread(self.fd, len(DATA), 0) == DATA and get(mount.path("other")) == DATA
        self.mapper = Mapper(self.program, mount.path("other"))
        assert self.mapper.ask("s", 0) == self.mapper.ask("p", 0) == str(DATA[0])

    def gone(self, paths=True):
        """Nothing answers any more. paths: the dead mount is still in the tree."""
        codes = [err(os.pread, self.fd, PAGE, at) for at in range(0, len(DATA), 64 * 1024)]
        codes += [err(os.pwrite, self.fd, b"x", 0), err(os.fsync, self.fd), err(os.listdir, self.dir), err(os.fstat, self.fd)]
        if paths:
            codes += [err(os.stat, self.mount.path("held")), err(os.listdir, self.mount.plain), err(os.statvfs, self.mount.plain),
                      err(os.open, self.mount.path("other"), os.O_RDONLY)]
        return all(code in GONE for code in codes) and all(
            self.mapper.ask(how, at) == "SIGBUS" for how in "sp" for at in range(PAGE, len(DATA), 128 * 1024))

    def close(self):
        for fd in (self.fd, self.dir):
            err(os.close, fd)
        self.mapper.close()


@pytest.fixture
def held(mount, mapper_program):
    h = Held(mount, mapper_program)
    yield h
    h.close()


def back(mount):
    """The dead mount is still there and says so; a new one shows what was fsynced."""
    assert mount.mounted()
    assert err(os.stat, mount.plain) in GONE
    mount.clear_dead()
    mount.mount()
    assert get(mount.path("held")) == get(mount.path("other")) == DATA


@pytest.mark.ring
@pytest.mark.sanitizer
def test_killed(held):
    begin = time.monotonic()
    held.mount.kill()
    purged = time.monotonic() - begin
    assert held.gone()
    say(f"kill -9 -> purged: {purged:.2f} s")
    back(held.mount)


@pytest.mark.ring
def test_killed_after_lazy_unmount(held):
    """The mount is out of the tree, but open files live on: they too end with the daemon."""
    import subprocess
    subprocess.run(["umount", "-l", held.mount.plain], check=True)
    assert os.pread(held.fd, PAGE, 0) == DATA[:PAGE]
    held.mount.kill()
    assert err(os.pread, held.fd, PAGE, 0) in GONE and held.mapper.ask("s", PAGE) == "SIGBUS"


def reader(fd, at):
    def run(tell):
        begin = time.monotonic()
        try:
            n = len(os.pread(fd, PAGE, at))
        except OSError as e:
            n = -e.errno
        tell(f"{n} {time.monotonic() - begin}")
    return run


@pytest.mark.ring
def test_killed_with_a_read_in_flight(held):
    """A page that waits for an answer is locked; an invalidation that meets it must not wait for ever."""
    mount = held.mount
    unread = os.open(mount.path("unread"), os.O_RDONLY)
    mount.process.send_signal(signal.SIGSTOP)
    children = [Child(reader(unread, at)) for at in (768 * 1024, 768 * 1024, 900 * 1024)]
    time.sleep(0.3)
    assert all(c.running() for c in children)
    begin = time.monotonic()
    mount.kill()
    for c in children:
        assert c.wait(5 + SLACK) == 0
        n, waited = c.lines()[0].split()
        assert -int(n) in GONE, (n, waited)
    err(os.close, unread)
    took = until(held.gone, 5 + SLACK)
    say(f"kill -9 with reads in flight -> all answered and purged: {time.monotonic() - begin:.2f} s ({took:.2f})")
    back(mount)


@pytest.mark.ring
def test_killed_with_writes_in_flight(held):
    """Dirty pages cannot be written any more: they go, and the writer hears of it."""
    mount = held.mount

    def run(tell):
        fd = os.open(mount.path("written"), os.O_RDWR | os.O_CREAT)
        try:
            for i in range(1 << 20):
                os.pwrite(fd, DATA[:65536], (i % 4096) * 65536)
                if i == 64:
                    tell("writing")
        except OSError as e:
            tell(f"errno {e.errno}")
        tell(f"fsync {err(os.fsync, fd)}")

    child = Child(run)
    wait_until(lambda: err(os.stat, mount.path("written")) == 0 and os.stat(mount.path("written")).st_size > 8 << 20)
    mount.process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    mount.kill()
    assert child.wait(20) == 0
    lines = child.lines()
    assert int(lines[-1].split()[1]) in GONE, lines
    assert held.gone()
    back(mount)
    size = os.stat(mount.path("written")).st_size
    data = get(mount.path("written"))
    assert len(data) == size
    for at in range(0, size, PAGE):
        for part, want in ((data[at:at + 4064], DATA[at % 65536:][:4064]), (data[at + 4064:at + PAGE], DATA[at % 65536 + 4064:][:32])):
            assert part in (want[:len(part)], bytes(len(part))), at


@pytest.mark.ring
def test_killed_while_an_open_waits_for_a_key(held, devkms):
    mount = held.mount
    put(mount.path("cold"), DATA)
    held.close()
    mount.remount()
    devkms.fault(hang=True)

    def run(tell):
        tell(str(err(get, mount.path("cold"))))

    child = Child(run)
    wait_until(lambda: mount.status()["counters"]["waiting"] >= 1)
    mount.kill()
    assert child.wait(5 + SLACK) == 0 and int(child.lines()[0]) in GONE
    devkms.clear()
    back(mount)


def test_killed_while_locked(held, devkms):
    mount = held.mount
    devkms.disable()
    wait_until(lambda: mount.state() == "locked")
    mount.kill()
    assert held.gone()
    devkms.enable()
    back(mount)


def test_watchdog_killed(held):
    """The mount goes on, and says that it is less safe now."""
    mount = held.mount
    assert mount.status()["watchdog"] is True
    for pid in mount.watchdogs():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mount.status()["watchdog"] is False)
    assert get(mount.path("held")) == DATA
    assert "watchdog died" in mount.read_log()
    held.close()
    mount.umount()


def test_watchdog_does_not_stay(held):
    mount = held.mount
    dogs = mount.watchdogs()
    assert len(dogs) == 1
    held.close()
    mount.umount()
    for pid in dogs:
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"))


@pytest.mark.ring
@pytest.mark.sanitizer
def test_sigterm_of_a_busy_mount(held):
    """An orderly stop writes back what was written, then lets nobody read on."""
    mount = held.mount
    fd = os.open(mount.path("late"), os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, DATA, 0)
    mount.process.send_signal(signal.SIGTERM)
    code = mount.process.wait(30)
    mount.process = None
    assert held.gone(paths=mount.mounted()) and err(os.pread, fd, 1, 0) in GONE
    err(os.close, fd)
    mount.clear_dead()
    assert code == 0
    mount.mount()
    assert get(mount.path("late")) == get(mount.path("held")) == DATA
    assert mount.ctl("check", mount.cipher).returncode == 0


@pytest.mark.parametrize("first", ["the signal", "umount"])
def test_sigterm_of_a_mount_that_is_elsewhere_too(mount, first):
    """In a mount namespace with a copy, as containers have it, the connection outlives umount(8); the daemon still ends in order."""
    put(mount.path("f"), DATA)
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c",
                           f"exec 3<>{mount.path('f')} && cat <&3 >/dev/null && printf late > {mount.path('g')} && echo ready && read x && cat {mount.path('f')}"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"ready\n"
            if first == "umount":
                subprocess.run(["umount", mount.plain], check=True, timeout=60)
                assert mount.process.poll() is None, "its user goes on"
            mount.process.send_signal(signal.SIGTERM)
            code = mount.process.wait(60)
            mount.process = None
            assert code == 0 and not mount.mounted() and "in another mount namespace" in mount.read_log()
            out, _ = other.communicate(b"\n", timeout=30)
            assert out == b"" and other.returncode != 0
        finally:
            other.kill()
    mount.mount()
    assert get(mount.path("f")) == DATA and get(mount.path("g")) == b"late"
    assert mount.ctl("check", mount.cipher).returncode == 0


@pytest.mark.ring
def test_sigterm_of_an_idle_mount(mount):
    put(mount.path("f"), DATA)
    with open(mount.path("g"), "wb") as f:
        f.write(DATA)
    mount.process.send_signal(signal.SIGTERM)
    code = mount.process.wait(30)
    mount.process = None
    assert code == 0 and not mount.mounted()
    mount.mount()
    assert get(mount.path("f")) == get(mount.path("g")) == DATA
