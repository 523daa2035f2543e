"""No room at any instant: every change of a store with exactly so many blocks left, or with a quota that ends at its first, second, ... nth
call; then it is seen that the change was made or refused with the right errno, that what an fsync acknowledged is there, and nothing else
changed, now and after a remount. A change that succeeded on the way is as good as any.

BYOKFS_BIG=1: up to 60 steps each, not 10, and in write-through mode too. Kernels without quotas can still play: c/quota.c is the quota."""
import contextlib
import errno
import mmap
import os
import stat
import struct

import pytest

from conftest import CTL, Mount, environment, wait_until
from faults import err, get, pattern, put
from posix_tools import BIG, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, compile_c, fallocate, renameat2
from programs import run, tree
from test_disk import EXT4, Disk, disks

__all__ = ["disks"]

STEPS = 60 if BIG else 10
SMALL, LARGE, NEW = pattern(1, 1000), pattern(2, 50_000), pattern(3, 12_000)


class Place:
    """A directory with something of everything, all of it fsynced, and what it should hold."""

    def __init__(self, path):
        self.path = path
        wait_until(lambda: err(os.mkdir, path) == 0)  # blocks of the last change may come back a little later
        self.files = {"small": SMALL, "large": LARGE, "other": SMALL}
        for name, data in self.files.items():
            wait_until(lambda n=name, b=data: err(put, self.at(n), b) == 0)
        for name in ("empty", "sub"):
            os.mkdir(self.at(name))
        os.symlink("target", self.at("link"))
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def at(self, name):
        return os.path.join(self.path, name)


def synced(fd):
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path):
    synced(os.open(path, os.O_RDONLY))


def change(name, off, data, truncate=None, flags=0, call=None):
    """An operation on the content of a file: what it does, and what the content is afterwards."""
    def do(p):
        fd = os.open(p.at(name), os.O_RDWR | flags)
        try:
            if truncate is not None:
                os.ftruncate(fd, truncate)
            if call:
                call(fd)
            at = 0
            while at < len(data):  # a part may be taken before there is no room
                at += os.pwrite(fd, data[at:], off + at)
            os.fsync(fd)
        finally:
            os.close(fd)
    old = {"small": SMALL, "large": LARGE}[name]
    new = b"" if flags & os.O_TRUNC else old
    new = new if truncate is None else new[:truncate].ljust(truncate, b"\0")
    return do, name, new[:off].ljust(off, b"\0") + data + new[off + len(data):] if data else new


def mapped(fd):
    with mmap.mmap(fd, 50_000) as m:
        m[20_000:32_000] = NEW
        m.flush()


def create(p):
    put(p.at("new"), NEW)
    sync_directory(p.path)


def named(call):
    """An operation on names; nothing is said about what it leaves but that the other files are whole."""
    def do(p):
        call(p)
        sync_directory(p.path)
    return do, None, None


HOLED = LARGE[:9000] + bytes(20_000) + LARGE[29_000:]
CHANGES = {
    "append inline": change("small", 1000, b"x" * 300),
    "inline to pages": change("small", 1000, NEW),
    "overwrite": change("large", 20_000, NEW),
    "append": change("large", 50_000, NEW),
    "far beyond the end": change("large", 3_000_000, NEW),
    "rewrite": change("large", 0, NEW, flags=os.O_TRUNC),
    "synced write": change("large", 45_000, NEW, flags=os.O_SYNC),
    "direct write": change("large", 49_152, NEW, flags=os.O_DIRECT),
    "longer": change("large", 0, b"", truncate=200_000),
    "shorter": change("large", 0, b"", truncate=5000),
    "shorter, inline": change("small", 0, b"", truncate=10),
    "set aside": change("large", 0, b"", call=lambda fd: fallocate(fd, KEEP_SIZE, 0, 400_000)),
    "punch": (lambda p: change("large", 0, b"", call=lambda fd: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 9000, 20_000))[0](p), "large", HOLED),
    "zero": (lambda p: change("large", 0, b"", call=lambda fd: fallocate(fd, ZERO_RANGE, 9000, 20_000))[0](p), "large", HOLED),
    "mapping": (lambda p: change("large", 0, b"", call=mapped)[0](p), "large", LARGE[:20_000] + NEW + LARGE[32_000:]),
    "create": (create, "new", NEW),
    "mkdir": named(lambda p: os.mkdir(p.at("made"))),
    "rmdir": named(lambda p: os.rmdir(p.at("empty"))),
    "symlink": named(lambda p: os.symlink("x" * 900, p.at("pointer"))),
    "link": named(lambda p: os.link(p.at("other"), p.at("sub/again"))),
    "long name": named(lambda p: put(p.at("n" * 255), b"")),
    "mknod": named(lambda p: os.mkfifo(p.at("fifo"))),
    "rename": named(lambda p: os.rename(p.at("other"), p.at("sub/" + "m" * 200))),
    "rename over a directory": named(lambda p: os.rename(p.at("sub"), p.at("empty"))),
    "exchange": named(lambda p: renameat2(p.at("other"), p.at("sub"), 2)),
    "unlink": named(lambda p: os.unlink(p.at("other"))),
    "setxattr": named(lambda p: os.setxattr(p.at("other"), "user.a", b"v" * 500)),
    "chmod": named(lambda p: os.chmod(p.at("other"), 0o600)),
}


def plausible(what, got, old, new, least):
    """Refused half way: each byte is old, new, or in what is longer than before zero."""
    longest = max(len(old), len(new))
    assert least <= len(got) <= longest, (what, len(old), len(got), len(new))
    strange = [i for i, abc in enumerate(zip(got, old.ljust(longest, b"\0"), new.ljust(longest, b"\0"))) if abc[0] not in abc[1:]]
    assert not strange, (what, len(strange), strange[0], strange[-1], len(got), len(old), len(new))


def forget(path):
    """What the kernel still holds and could not write is not what the file is."""
    fd = os.open(path, os.O_RDONLY)
    err(os.fsync, fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def whole_names(p):
    """Everything listed can be looked at, and nothing else is there."""
    listed = tree(p.path)
    for name in listed:
        os.lstat(p.at(name))
        if os.path.isfile(p.at(name)) and not os.path.islink(p.at(name)):
            get(p.at(name))
    return listed


def inspect(p, target, new, error):
    """Is the place as it must be? What is not certain is returned: a second look must find the same."""
    for name, data in p.files.items():
        if name == target:
            continue
        if name != "other":  # which may have got another name
            assert get(p.at(name)) == data
        else:
            assert {get(p.at(n)) for n in whole_names(p) if n not in (target, "small", "large") and os.path.isfile(p.at(n))} <= {data, b""}
    if target is None:
        return
    old = p.files.get(target)
    if not os.path.exists(p.at(target)):
        assert old is None and error
    elif error == 0:
        assert get(p.at(target)) == new
    else:
        got = get(p.at(target))
        if "rewrite" in p.path and len(got) <= len(new):
            old = b""  # it was cut first
        plausible(p.path, got, old or b"", new, min(len(old or b""), len(new)))


def attempt(store, place, name, limit, codes):
    """One change under the limit. Returns the place, what it should be like, and how often something was refused."""
    do, target, new = CHANGES[name]
    p = Place(store.path(place))
    with limit() as refusals:
        error = err(do, p)
    assert error in (0, *codes), f"{name}: {errno.errorcode.get(error, error)}"
    if target and os.path.exists(p.at(target)):
        forget(p.at(target))
    inspect(p, target, new, error)
    return (p, target, new, error), refusals()


def all_steps(store, name, limits, codes):
    """The change again and again, with more room each time, until nothing is refused; then everything once more after a remount."""
    done, refused = [], 0
    for n, limit in enumerate(limits):
        state, hits = attempt(store, f"{name} {n}", name, limit, codes)
        done.append(state)
        refused += hits
        if hits == 0 and n > 1:
            break
    return done, refused


def told_sizes(done):
    """Before anybody opens it, a file has the size it will be found to have."""
    for p in {state[0].path: state[0] for state in done}.values():
        for name in tree(p.path):
            st = os.lstat(p.at(name))
            if stat.S_ISREG(st.st_mode):
                assert len(get(p.at(name))) == st.st_size, (p.path, name)


def settle(store, done):
    """Everything again when the kernel has forgotten it, and after a remount, and what check says; then it can all be removed."""
    assert store.process.poll() is None, store.read_log()
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("2")
    told_sizes(done)
    store.remount()
    told_sizes(done)
    for state in done:
        inspect(*state)
    store.umount()
    r = run(CTL, "check", "--data", "-c", store.ini, store.cipher)
    assert r.code == 0 and "no damage" in r.out, r.out
    assert not [n for n in tree(store.cipher) if ".tmp." in n or ".del." in n]
    store.mount()
    run("rm", "-rf", *[state[0].path for state in done])
    put(store.path("after"), LARGE)
    assert get(store.path("after")) == LARGE
    os.unlink(store.path("after"))
    assert os.listdir(store.plain) == []


class Quota(Mount):
    """A store whose daemon meets a quota."""

    def __init__(self, base, kms, library, **kw):
        self.file, self.library = os.path.join(base, "quota"), library
        with open(self.file, "wb") as f:
            f.write(struct.pack("qqq", -1, errno.EDQUOT, 0).ljust(4096, b"\0"))
        with open(self.file, "r+b") as f:
            self.numbers = mmap.mmap(f.fileno(), 4096)
        super().__init__(base, kms, **kw)

    def environment(self):
        return {**environment(), "LD_PRELOAD": self.library, "BYOKFS_TEST_QUOTA": self.file}

    def set(self, left):
        self.numbers[:8] = struct.pack("q", left)

    def refused(self):
        return struct.unpack("q", self.numbers[16:24])[0]

    def limit(self, left):
        @contextlib.contextmanager
        def limited():
            before = self.refused()
            self.set(left)
            try:
                yield lambda: after - before
            finally:
                after = self.refused()
                self.set(-1)
        return limited


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return compile_c(tmp_path_factory.mktemp("tools"), "quota", "-shared", "-fPIC")


@pytest.mark.parametrize("how", ["default", "shared"] + ["writethrough"] * BIG)
def test_quota_at_every_step(tmp_path, shared_devkms, library, how):
    """EDQUOT from the nth call on that could take space, for n = 0, 1, ... until the change needs no more."""
    options = {"default": [], "writethrough": ["mount.writeback=off"], "shared": ["mount.shared=yes"]}[how]
    store = Quota(str(tmp_path), shared_devkms, library, options=options, probe="10s", lease="30s")
    try:
        store.mount()
        done, refused = [], {}
        for name in CHANGES:
            if how == "shared" and name == "mapping":
                continue
            codes = (errno.EDQUOT,) if options else (errno.EDQUOT, errno.ENOSPC)  # with write-back close(2) tells no more
            states, refused[name] = all_steps(store, name, [store.limit(n) for n in range(STEPS)], codes)
            done += states
        assert all(refused[name] for name in ("overwrite", "append", "create", "mkdir", "symlink", "rename", "setxattr")), refused
        settle(store, done)
    finally:
        store.set(-1)
        store.close()


class Blocks(Disk):
    """A disk with exactly so many blocks left."""

    def limit(self, left):
        @contextlib.contextmanager
        def limited():
            with open(os.path.join(self.at, "filler"), "ab") as f:
                while (free := os.statvfs(self.at).f_bavail) > left:
                    size = os.fstat(f.fileno()).st_size
                    if err(os.posix_fallocate, f.fileno(), size, (free - left) * 4096) and err(os.posix_fallocate, f.fileno(), size, 4096):
                        break
            try:
                yield lambda: 1
            finally:
                self.free()
        return limited


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_so_many_blocks_at_every_change(disks, kind):
    """ENOSPC with 0, 1, ... free blocks of the disk."""
    disk, store = disks(*{"ext4": EXT4, "tmpfs": ("tmpfs", 24)}[kind])
    disk.__class__ = Blocks
    store.mount()
    done = []
    for name in CHANGES:
        if kind == "tmpfs" and name == "setxattr":
            continue  # there since Linux 6.6 only
        done += all_steps(store, name, [disk.limit(n) for n in range(0, STEPS, 2)], (errno.ENOSPC,))[0]
    settle(store, done)
