"""Revocation at a real mount: every way in is closed in time, what was written before is safe, and it all comes back."""
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import subprocess
import threading
import time

import pytest

from conftest import BYOKFS, environment, wait_until
from faults import GONE, Child, Mapper, PROMISE, SLACK, compile_c, err, get, pattern, put, say, until

PAGE = 4096
LEASE = 3.0


@pytest.fixture(scope="module")
def mapper_program(tmp_path_factory):
    return compile_c("mapper", tmp_path_factory.mktemp("c"))


@pytest.fixture
def mapper(mapper_program):
    made = []

    def make(path):
        made.append(Mapper(mapper_program, path))
        return made[-1]

    yield make
    for m in made:
        m.close()


@pytest.fixture
def fds():
    """Descriptors that are closed before the mount goes."""
    opened = []

    def open_(path, flags=os.O_RDWR):
        opened.append(os.open(path, flags))
        return opened[-1]

    yield open_
    for fd in opened:
        assert err(os.close, fd) == 0


def lost(mount):
    return mount.status()["counters"]["lost_files"]


def wait_locked(mount, fd):
    """Returns seconds until a read of a cached page fails and the domain is wiped."""
    took = until(lambda: err(os.pread, fd, 1, 0) == errno.EIO, PROMISE + SLACK)
    wait_until(lambda: mount.state() == "locked")
    return took


def reopen(mount):
    took = until(lambda: err(os.listdir, mount.plain) == 0 and mount.state() == "open", 20)
    return took


class Tree:
    """One of everything, looked at, so that the kernel holds it all in its caches."""

    def __init__(self, mount, fds):
        self.mount, path = mount, mount.path
        self.data = pattern(1, 64 * 1024)
        for name in ("open", "closed", "victim", "never"):
            put(path(name), self.data)
        os.mkdir(path("d"))
        os.mkdir(path("empty"))
        for i in range(50):
            put(path("d", f"entry {i}"), b"x", sync=False)
        os.symlink("target/of/link", path("link"))
        os.setxattr(path("closed"), "user.a", b"value")
        os.setxattr(path("open"), "user.a", b"value")
        self.fd = fds(path("open"))
        self.readonly = fds(path("open"), os.O_RDONLY)
        self.dir = fds(path("d"), os.O_RDONLY | os.O_DIRECTORY)
        self.link_fd = fds(path("link"), os.O_PATH | os.O_NOFOLLOW)
        self.path_fd = fds(path("closed"), os.O_PATH)
        self.look()

    def look(self):
        path = self.mount.path
        assert get(path("open")) == get(path("closed")) == self.data
        assert len(os.listdir(path("d"))) == len(os.listdir(self.dir)) == 50
        assert os.readlink(path("link")) == "target/of/link"
        assert os.getxattr(path("closed"), "user.a") == b"value"
        for name in os.listdir(self.mount.plain):
            os.lstat(path(name))
        assert err(os.stat, path("absent")) == errno.ENOENT

    def looks(self):
        """Ways in that change nothing."""
        path, fd = self.mount.path, self.fd
        return {
            "read of an open file": lambda: os.pread(fd, PAGE, 0),
            "read of its last page": lambda: os.pread(fd, PAGE, 15 * PAGE),
            "read of another descriptor": lambda: os.pread(self.readonly, PAGE, 0),
            "sendfile": lambda: sendfile(self.readonly),
            "fstat": lambda: os.fstat(fd),
            "fstat of an open directory": lambda: os.fstat(self.dir),
            "fstat of an O_PATH descriptor": lambda: os.fstat(self.path_fd),
            "seek to data": lambda: os.lseek(fd, 0, os.SEEK_DATA),
            "open": lambda: os.open(path("closed"), os.O_RDONLY),
            "open of a file never looked at": lambda: os.open(path("never"), os.O_RDONLY),
            "open through /proc": lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY),
            "open of a directory": lambda: os.open(path("d"), os.O_RDONLY | os.O_DIRECTORY),
            "stat": lambda: os.stat(path("closed")),
            "stat below a directory": lambda: os.stat(path("d", "entry 7")),
            "stat at an open directory": lambda: os.stat("entry 7", dir_fd=self.dir),
            "lstat": lambda: os.lstat(path("link")),
            "stat of a directory": lambda: os.stat(path("d")),
            "stat of a missing name": lambda: os.stat(path("absent")),
            "access": lambda: accessible(path("closed")),
            "readdir of an open directory": lambda: os.listdir(self.dir),
            "readdir of a new one": lambda: os.listdir(path("d")),
            "readdir of the root": lambda: os.listdir(self.mount.plain),
            "readlink": lambda: os.readlink(path("link")),
            "readlink of an O_PATH descriptor": lambda: os.readlink("", dir_fd=self.link_fd),
            "getxattr": lambda: os.getxattr(path("closed"), "user.a"),
            "fgetxattr": lambda: os.getxattr(fd, "user.a"),
            "listxattr": lambda: os.listxattr(path("closed")),
            "flistxattr": lambda: os.listxattr(fd),
        }

    def changes(self):
        path, fd = self.mount.path, self.fd
        return {
            "write": lambda: os.pwrite(fd, b"x", 0),
            "write of a whole page": lambda: os.pwrite(fd, bytes(PAGE), PAGE),
            "write at the end": lambda: os.pwrite(fd, b"x", len(self.data)),
            "fsync": lambda: os.fsync(fd),
            "fdatasync": lambda: os.fdatasync(fd),
            "ftruncate": lambda: os.ftruncate(fd, 10),
            "fallocate": lambda: os.posix_fallocate(fd, 0, 1 << 20),
            "fchmod": lambda: os.fchmod(fd, 0o600),
            "futimens": lambda: os.utime(fd),
            "create": lambda: os.open(path("new"), os.O_CREAT | os.O_WRONLY),
            "create over a missing name": lambda: os.open(path("absent"), os.O_CREAT | os.O_WRONLY),
            "open O_TRUNC": lambda: os.open(path("closed"), os.O_WRONLY | os.O_TRUNC),
            "truncate": lambda: os.truncate(path("closed"), 0),
            "chmod": lambda: os.chmod(path("closed"), 0o600),
            "chown": lambda: os.chown(path("closed"), 1, 1),
            "utime": lambda: os.utime(path("closed")),
            "setxattr": lambda: os.setxattr(path("closed"), "user.b", b"x"),
            "fremovexattr": lambda: os.removexattr(fd, "user.a"),
            "unlink": lambda: os.unlink(path("victim")),
            "unlink at an open directory": lambda: os.unlink("entry 8", dir_fd=self.dir),
            "rename": lambda: os.rename(path("victim"), path("moved")),
            "link": lambda: os.link(path("closed"), path("hard")),
            "symlink": lambda: os.symlink("x", path("soft")),
            "mkdir": lambda: os.mkdir(path("newdir")),
            "mkdir at an open directory": lambda: os.mkdir("newdir", dir_fd=self.dir),
            "rmdir": lambda: os.rmdir(path("empty")),
            "mknod": lambda: os.mknod(path("fifo"), 0o10600),
            "fsync of a directory": lambda: os.fsync(self.dir),
        }


def sendfile(fd):
    r, w = os.pipe()
    try:
        os.sendfile(w, fd, 0, 100)
    finally:
        os.close(r)
        os.close(w)


def accessible(path):
    if not os.access(path, os.R_OK):
        raise OSError(errno.EIO, "access says no and Python hides why")


def answers(ways):
    return {name: code for name, way in ways.items() if (code := tried(name, way)) != errno.EIO}


def tried(name, way):
    try:
        result = way()
    except OSError as e:
        return e.errno
    if name.startswith(("open", "create")):
        os.close(result)
    return 0


@pytest.mark.ring
@pytest.mark.sanitizer
def test_every_way_in_is_closed(mount, mapper, fds, devkms):
    tree = Tree(mount, fds)
    m = mapper(mount.path("closed"))
    assert m.ask("s", 0) == m.ask("p", 0) == str(tree.data[0])
    assert m.ask("c", 5 * PAGE, 77) == "ok"
    looks = tree.looks()
    assert answers(looks) == {**dict.fromkeys(looks, 0), "stat of a missing name": errno.ENOENT}
    begin = time.monotonic()
    devkms.disable()
    until(lambda: not answers(looks) and m.ask("s", 0) == "SIGBUS", PROMISE + SLACK)
    say(f"denial -> EIO everywhere: {time.monotonic() - begin:.2f} s")
    assert answers(tree.changes()) == {}
    for off in (0, 3 * PAGE, 15 * PAGE):
        assert m.ask("s", off) == m.ask("w", off, 1) == "SIGBUS"
        assert m.ask("p", off) == "SIGBUS"
    assert m.ask("c", 9 * PAGE, 1) == "SIGBUS"
    assert m.ask("p", 5 * PAGE) == "77"  # the process's own copy: nobody can take it back
    # What must go on.
    assert os.statvfs(mount.plain).f_bsize > 0 and os.path.ismount(mount.plain)
    assert err(os.stat, mount.plain) == err(os.lstat, mount.plain) == 0
    for path in ("open", "d"):
        assert err(os.open, mount.path(path), os.O_RDONLY) == errno.EIO
    assert err(os.close, os.dup(tree.fd)) == 0
    assert answers(looks) == {}
    # A size the kernel was told before serves a seek to the end until the attributes' time is over: the lease at most.
    took = until(lambda: err(os.lseek, tree.fd, 0, os.SEEK_END) == errno.EIO, LEASE + SLACK)
    say(f"and a seek to the end after {took:.2f} s more")
    # And back, without a remount: the same descriptors, the same mappings, nothing changed.
    devkms.enable()
    say(f"enabled -> open: {reopen(mount):.2f} s")
    tree.look()
    assert os.pread(tree.fd, len(tree.data), 0) == tree.data
    assert m.ask("s", 3 * PAGE) == m.ask("p", 3 * PAGE) == str(tree.data[3 * PAGE])
    assert set(os.listdir(mount.plain)) == {"open", "closed", "victim", "never", "d", "empty", "link"}
    assert os.listxattr(mount.path("closed")) == ["user.a"]
    assert lost(mount) == 0


@pytest.mark.ring
@pytest.mark.sanitizer
def test_what_was_written_before_is_safe(mount, mapper, fds, devkms):
    """write(2) without fsync and dirty pages of a mapping reach the disk during the lock, with the key still in hand."""
    old, new = pattern(2, 1 << 20), pattern(3, 300_000)
    put(mount.path("a"), old)
    put(mount.path("mapped"), old)
    a, fresh = fds(mount.path("a")), fds(mount.path("fresh"), os.O_RDWR | os.O_CREAT)
    m = mapper(mount.path("mapped"))
    devkms.disable()
    os.pwrite(a, new, 12345)
    os.pwrite(fresh, new, 0)
    for i in range(0, 256, 3):
        assert m.ask("w", i * PAGE + i, 255 - i) == "ok"
    wait_locked(mount, a)
    assert lost(mount) == 0
    devkms.enable()
    reopen(mount)
    want = old[:12345] + new + old[12345 + len(new):]
    assert os.pread(a, len(want) + 1, 0) == want and get(mount.path("a")) == want
    assert os.pread(fresh, 1 << 20, 0) == new
    mapped = bytearray(old)
    for i in range(0, 256, 3):
        mapped[i * PAGE + i] = 255 - i
    assert get(mount.path("mapped")) == mapped
    for i in range(0, 256, 3):
        assert m.ask("s", i * PAGE + i) == str(255 - i)
    assert m.ask("w", 100, 7) == m.ask("m") == "ok" and get(mount.path("mapped"))[100] == 7
    os.fsync(a)
    os.pwrite(fresh, b"again", 0)
    os.fsync(fresh)
    assert lost(mount) == 0


def test_it_is_on_disk_while_locked(mount, devkms):
    data = pattern(4, 3 << 20)
    fd = os.open(mount.path("f"), os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, data, 0)
    small = os.open(mount.path("small"), os.O_RDWR | os.O_CREAT)
    os.pwrite(small, b"inline", 0)
    devkms.disable()
    until(lambda: err(os.pread, fd, 1, 0) == errno.EIO, PROMISE + SLACK)
    wait_until(lambda: mount.state() == "locked")
    mount.kill()
    for f in (fd, small):   # nothing is left to write: the kernel may have nothing to ask
        assert err(os.close, f) in (0, *GONE)
    mount.clear_dead()
    devkms.enable()
    mount.mount()
    assert get(mount.path("f")) == data and get(mount.path("small")) == b"inline"
    assert mount.ctl("check", mount.cipher).returncode == 0


def writer(path, chunk, size):
    """Writes chunk after chunk; reports when each write had returned and how it ended."""
    def run(tell):
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        for i in range(size // chunk):
            block = (i + 1).to_bytes(8, "little") * (chunk // 8)
            try:
                os.pwrite(fd, block, i * chunk)
            except OSError as e:
                tell(f"end {time.monotonic()} {e.errno}")
                break
            if i % 16 == 0:
                tell(f"{i} {time.monotonic()}")
        try:
            os.fsync(fd)
            tell("fsync 0")
        except OSError as e:
            tell(f"fsync {e.errno}")
    return run


def blocks_of(data, chunk, n):
    """For every page: is it new, or untouched zeros? Anything else is a wrong byte. Returns the set of bad chunks."""
    bad = set()
    for at in range(0, n * chunk, PAGE):
        want = (at // chunk + 1).to_bytes(8, "little") * (PAGE // 8)
        page = data[at:at + PAGE]
        if page == want:
            continue
        bad.add(at // chunk)
        for part, new in ((page[:4064], want[:4064]), (page[4064:], want[4064:])):
            assert part in (new[:len(part)], bytes(len(part))), f"a wrong byte in the page at {at}"
    return bad


@pytest.mark.ring
def test_denial_in_the_middle_of_a_stream(mount, devkms):
    chunk, size = 64 * 1024, 4 << 30
    put(mount.path("probe"), b"x")
    child = Child(writer(mount.path("stream"), chunk, size))
    wait_until(lambda: err(os.stat, mount.path("stream")) == 0 and os.stat(mount.path("stream")).st_size > 8 << 20, 60)
    denied = time.monotonic()
    devkms.disable()
    child.wait(30)
    lines = [line.split() for line in child.lines()]
    assert lines[-2][0] == "end" and int(lines[-2][2]) == errno.EIO, lines[-3:]
    assert lines[-1] == ["fsync", str(errno.EIO)]
    say(f"denial -> EIO of a streaming writer: {float(lines[-2][1]) - denied:.2f} s")
    assert float(lines[-2][1]) - denied < PROMISE + SLACK
    done = int(lines[-3][0])
    wait_until(lambda: mount.state() == "locked")
    counted = lost(mount)
    devkms.enable()
    reopen(mount)
    bad = blocks_of(get(mount.path("stream")), chunk, done)
    say(f"{done * chunk >> 20} MiB written, {len(bad)} chunks of them lost, {counted} files counted")
    assert not bad or counted == 1
    os.unlink(mount.path("stream"))
    assert mount.process.poll() is None


def huge(path, size):
    def run(tell):
        fd = os.open(path, os.O_RDWR)
        data = b"\x5a" * size
        tell("go")
        try:
            tell(f"wrote {os.pwrite(fd, data, 0)}")
        except OSError as e:
            tell(f"errno {e.errno}")
        time.sleep(600)  # keeps the file open; ended by the test
    return run


def test_one_huge_write_across_the_lock(mount, fds, devkms):
    """A write(2) that is under way goes on filling the page cache after the lock: none of it may stay readable."""
    size = 1 << 30
    put(mount.path("huge"), b"")
    os.truncate(mount.path("huge"), size)
    fd = fds(mount.path("huge"), os.O_RDONLY)
    child = Child(huge(mount.path("huge"), size))
    try:
        wait_until(lambda: int(mount.status()["counters"]["write_bytes"]) > 1 << 20, 60)
        assert mount.ctl("lock", mount.plain).returncode == 0

        def readable():
            return [off for off in range(0, size, 64 * 1024) if err(os.pread, fd, 1, off) != errno.EIO]

        took = until(lambda: not readable(), 20, 0.2)
        say(f"nothing of a huge write readable after {took:.2f} s")
        assert mount.state() == "locked" and lost(mount) <= 1
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(30)
    assert mount.ctl("unlock", mount.plain).returncode == 0
    assert any(line.startswith("wrote") for line in child.lines())
    for off in range(0, size, 1 << 20):
        assert set(os.pread(fd, PAGE, off)) <= {0, 0x5a}
    os.truncate(mount.path("huge"), 0)


def test_lock_and_unlock_by_the_administrator(mount, fds, devkms):
    put(mount.path("f"), b"content")
    fd = fds(mount.path("f"))
    os.pwrite(fd, b"CONTENT", 0)
    assert mount.status()["state"] == "open" and mount.status()["reason"] == ""
    r = mount.ctl("lock", mount.plain)
    assert r.returncode == 0, r.stderr
    assert err(os.pread, fd, 1, 0) == err(os.stat, mount.path("f")) == errno.EIO  # at once, without polling
    s = mount.status()
    assert s["state"] == "locked" and s["by_admin"] is True and "administrator" in s["reason"] and s["since_unix"] > 0
    assert s["counters"]["file_keys"] == s["counters"]["pool"] == 0
    assert mount.ctl("lock", mount.plain).returncode == 9
    # The KMS would say yes, but is not even asked.
    calls = mount.status()["kms"]["calls"]
    time.sleep(2.5)
    assert mount.status()["kms"]["calls"] == calls and mount.state() == "locked"
    text = mount.ctl("status", mount.plain).stdout
    assert "locked" in text and "administrator" in text
    assert mount.ctl("unlock", mount.plain).returncode == 0
    assert os.pread(fd, 10, 0) == b"CONTENT" and get(mount.path("f")) == b"CONTENT"
    assert mount.ctl("unlock", mount.plain).returncode == 9
    assert mount.status()["by_admin"] is False and lost(mount) == 0


def test_unlock_asks_the_kms(mount, devkms):
    put(mount.path("f"), b"content")
    mount.ctl("lock", mount.plain)
    devkms.disable()
    r = mount.ctl("unlock", mount.plain)
    assert r.returncode == 5 and "DisabledException" in r.stderr, r.stderr
    assert mount.state() == "locked" and err(os.stat, mount.path("f")) == errno.EIO
    devkms.enable()
    reopen(mount)  # the administrator's lock is off, so the KMS decides alone
    assert get(mount.path("f")) == b"content"


def test_status_tells_why(mount, devkms):
    devkms.disable()
    wait_until(lambda: mount.state() == "locked")
    s = mount.status()
    assert "DisabledException" in s["reason"] and s["by_admin"] is False and s["lease_left_ms"] == 0
    assert s["kms"]["denied"] >= 1
    assert "DisabledException" in mount.read_log()
    devkms.enable()
    reopen(mount)
    assert mount.status()["reason"] == "" and mount.status()["lease_left_ms"] > 0


def mount_fails(mount, *options):
    args = [BYOKFS, "-f", "-c", mount.ini]
    for o in options:
        args += ["-o", o]
    return subprocess.run([*args, mount.cipher, mount.plain], env=environment(), capture_output=True, text=True, timeout=60)


def test_mount_refused(store, devkms):
    devkms.disable()
    r = mount_fails(store)
    assert r.returncode == 5 and "DisabledException" in r.stderr and "hint: " in r.stderr
    devkms.enable()
    devkms.stop()
    r = mount_fails(store)
    assert r.returncode == 6 and "error: " in r.stderr
    assert not store.mounted()
    devkms.start()
    store.mount()
    put(store.path("f"), b"x")


@pytest.mark.parametrize("why", ["disabled", "unreachable"])
def test_locked_start(store, devkms, why):
    store.mount()
    put(store.path("f"), b"content")
    store.umount()
    devkms.disable() if why == "disabled" else devkms.stop()
    store.mount("locked_start")
    assert store.state() == "locked" and err(os.stat, store.path("f")) == errno.EIO
    assert err(os.listdir, store.plain) == errno.EIO and err(os.mkdir, store.path("d")) == errno.EIO
    assert os.path.ismount(store.plain) and os.statvfs(store.plain).f_bsize > 0
    devkms.enable() if why == "disabled" else devkms.start()
    reopen(store)
    assert get(store.path("f")) == b"content"
    put(store.path("g"), b"more")
    store.remount()
    assert get(store.path("g")) == b"more"


@pytest.mark.ring
def test_unmount_while_locked(mount, devkms):
    put(mount.path("f"), b"content")
    devkms.disable()
    wait_until(lambda: mount.state() == "locked")
    mount.umount()
    devkms.enable()
    mount.mount()
    assert get(mount.path("f")) == b"content"


def records(generation, n):
    return generation.to_bytes(8, "little") * (n // 8)


def busy(base, number, stop, rounds):
    """Overwrites, reads, renames and creates until told to stop; EIO is fine, a wrong byte is not."""
    size = 128 * 1024

    def check(data, newest):
        for at in range(0, len(data), PAGE):
            page = data[at:at + PAGE]
            for part in (page[:4064], page[4064:]):
                generation = int.from_bytes(part[:8], "little")
                if part != records(generation, len(part)) or generation > newest:
                    raise AssertionError(f"wrong bytes at {at}: {part[:16].hex()} newest {newest}")

    def step(path, generation):
        with open(path("f"), "r+b", buffering=0) as f:
            f.write(records(generation, size))
        data = get(path("f"))
        check(data, generation)
        if len(data) != size:
            raise AssertionError(f"size {len(data)}")
        os.rename(path("f"), path("g"))
        os.rename(path("g"), path("f"))
        os.mkdir(path(f"d{generation}"))
        os.rmdir(path(f"d{generation}"))
        put(path("new"), records(generation, 8192), sync=generation % 4 == 0)
        if get(path("new")) != records(generation, 8192):
            raise AssertionError("the new file is not what was written")
        os.unlink(path("new"))

    def path(name):
        return os.path.join(base, f"w{number}", name)

    def run(tell):
        os.mkdir(path(""))
        put(path("f"), records(0, size))
        open(f"{stop}.{number}", "w").close()
        good = refused = 0
        generation = 0
        while not os.path.exists(stop):
            generation += 1
            try:
                if os.path.lexists(path("g")) and not os.path.lexists(path("f")):
                    os.rename(path("g"), path("f"))
                step(path, generation)
                good += 1
            except OSError as e:
                # Names an operation left behind when the lock cut it in two are met again: not an error of the filesystem.
                if e.errno not in (errno.EIO, errno.ENOENT, errno.EEXIST):
                    raise
                refused += 1
                time.sleep(0.002)
        tell(f"done {good} {refused}")
    return run


def stress(mount, tmp_path, rounds):
    stop = str(tmp_path / "stop")
    children = [Child(busy(mount.plain, i, stop, rounds)) for i in range(4)]
    wait_until(lambda: all(os.path.exists(f"{stop}.{i}") for i in range(4)))
    for _ in range(rounds):
        assert mount.ctl("lock", mount.plain).returncode == 0
        assert mount.ctl("unlock", mount.plain).returncode == 0
        time.sleep(0.05)
    open(stop, "w").close()
    codes = [c.wait(60) for c in children]
    lines = [c.lines() for c in children]
    assert codes == [0] * 4, lines
    good, refused = (sum(int(line[-1].split()[i]) for line in lines) for i in (1, 2))
    say(f"{rounds} locks under 4 busy processes: {good} rounds done, {refused} refused")
    assert good > rounds and refused > 0
    assert mount.process.poll() is None and mount.state() == "open"
    for i in range(4):
        for name in os.listdir(mount.path(f"w{i}")):
            path = mount.path(f"w{i}", name)
            assert os.path.isdir(path) or get(path) is not None
    s = mount.status()["counters"]
    assert s["locks"] == rounds
    return s


def test_locks_under_load(mount, tmp_path):
    s = stress(mount, tmp_path, 20)
    say(f"lost_files {s['lost_files']}")
    mount.remount()
    assert mount.ctl("check", mount.cipher).returncode == 0


@pytest.mark.ring
@pytest.mark.sanitizer
def test_a_few_locks_under_load(mount, tmp_path):
    stress(mount, tmp_path, 4)


def test_locked_file_by_file_key(make_mount, devkms):
    """A store sealed by the domain key locks just the same."""
    m = make_mount("domain", devkms, init=("--seal=domain",)).mount()
    put(m.path("f"), b"content")
    with open(m.path("f"), "rb", buffering=0) as f:
        assert f.read() == b"content"
        devkms.disable()
        wait_locked(m, f.fileno())
        devkms.enable()
        reopen(m)
        assert os.pread(f.fileno(), 7, 0) == b"content"
    assert lost(m) == 0


UTIME_OMIT = (1 << 30) - 2


def futimens(fd, *times):
    """(seconds, nanoseconds) of access and of modification."""
    libc = ctypes.CDLL(None, use_errno=True)
    pair = (ctypes.c_long * 4)(*times[0], *times[1])
    return ctypes.get_errno() if libc.futimens(fd, pair) else 0


def test_times_that_are_there_already(mount, fds):
    """The kernel sends them once more after a rename: they are the only ones that are not refused while locked."""
    put(mount.path("f"), b"x")
    os.utime(mount.path("f"), ns=(5, 1_500_000_000_123_456_789))
    fd = fds(mount.path("f"), os.O_RDONLY)
    mount.ctl("lock", mount.plain, check=True)
    omit, there = (0, UTIME_OMIT), (1_500_000_000, 123_456_789)
    assert futimens(fd, omit, there) == 0
    for times in [(omit, (1_500_000_000, 123_456_790)), (omit, (1_500_000_001, 123_456_789)), ((7, 0), there)]:
        assert futimens(fd, *times) == errno.EIO, times
    assert err(os.fstat, fd) == err(os.fchmod, fd, 0o600) == errno.EIO
    mount.ctl("unlock", mount.plain, check=True)
    assert os.fstat(fd).st_mtime_ns == 1_500_000_000_123_456_789


@pytest.mark.sanitizer
def test_renamed_while_it_locks(mount):
    """Whatever a lock comes between, what was written before is not told to be lost."""
    going, names = [True], [mount.path(f"f{i}") for i in range(8)]
    for name in names:
        put(name, b"x" * 3000)

    def rename(name):
        while going[0]:
            for a, b in ((name, name + "+"), (name + "+", name)):
                while err(os.rename, a, b) == errno.EIO and going[0] and err(os.stat, b):
                    time.sleep(0.001)

    threads = [threading.Thread(target=rename, args=(name,)) for name in names]
    for t in threads:
        t.start()
    try:
        for _ in range(15):
            time.sleep(0.02)
            mount.ctl("lock", mount.plain, check=True)
            mount.ctl("unlock", mount.plain, check=True)
    finally:
        going[0] = False
        for t in threads:
            t.join()
    root = os.open(mount.plain, os.O_RDONLY)
    told = ctypes.CDLL(None, use_errno=True).syncfs(root), ctypes.get_errno()
    os.close(root)
    assert told[0] == 0, told
    for name in os.listdir(mount.plain):
        with open(mount.path(name), "rb", buffering=0) as f, mmap.mmap(-1, PAGE) as page:
            fcntl.fcntl(f, fcntl.F_SETFL, os.O_DIRECT)
            assert f.readinto(page) == 3000 and page[:3000] == b"x" * 3000
    assert len(os.listdir(mount.plain)) == 8 and lost(mount) == 0
