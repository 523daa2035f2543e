"""Full, read-only and unsuitable backings: the application hears of it, what was fsynced stays, and all is well when there is room again."""
import errno
import itertools
import mmap
import os
import random
import shutil
import subprocess

import pytest

from conftest import BYOKFS, CTL, Mount, wait_until
from faults import err, get, pattern, put
from programs import ALREADY, background, markers, mounted, run, said, tree

MIB = 1 << 20


class Disk:
    """A small filesystem at base/disk; the store is base/disk/cipher, so that there is a place beside it."""

    def __init__(self, base, kind, mib, *mkfs):
        self.base, self.at = str(base), os.path.join(base, "disk")
        os.makedirs(self.at)
        if kind == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "none", self.at], check=True)
        else:
            image = os.path.join(base, "image")
            with open(image, "wb") as f:
                f.truncate(mib * MIB)
            subprocess.run([f"mkfs.{kind}", "-q", *mkfs, image], check=True)
            subprocess.run(["mount", "-o", "loop", image, self.at], check=True)
        os.mkdir(os.path.join(self.at, "cipher"))
        os.symlink(os.path.join(self.at, "cipher"), os.path.join(base, "cipher"))

    def fill(self, leave=0):
        """Leaves no more than some bytes; twice, because metadata wants some too."""
        fd = os.open(os.path.join(self.at, "filler"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for step in (MIB, 64 * 1024, 4096):
            while os.statvfs(self.at).f_bavail * os.statvfs(self.at).f_frsize >= leave + step:
                if err(os.write, fd, b"\1" * step) or err(os.fsync, fd):
                    break
        os.close(fd)

    def free(self):
        os.unlink(os.path.join(self.at, "filler"))

    def remount(self, options):
        subprocess.run(["mount", "-o", f"remount,{options}", self.at], check=True)

    def close(self):
        """A loop device goes with its last mount."""
        subprocess.run(["umount", self.at], check=False, capture_output=True)
        while os.path.ismount(self.at):
            subprocess.run(["umount", "-l", self.at], check=True)


@pytest.fixture
def disks(tmp_path, shared_devkms):
    """make(kind, mib, *mkfs, **mount) -> disk, store"""
    made = []

    def make(kind, mib, *mkfs, **kw):
        disk = Disk(tmp_path, kind, mib, *mkfs)
        made.append(disk)
        store = Mount(tmp_path, shared_devkms, **kw)
        made.append(store)
        return disk, store

    yield make
    for one in reversed(made):
        one.close()


EXT4 = ("ext4", 48, "-b", "4096", "-m", "0", "-O", "^has_journal")
KINDS = {"ext4": EXT4, "journal": ("ext4", 48, "-b", "4096", "-m", "0"), "tmpfs": ("tmpfs", 24)}


def write_until_full(path, block=256 * 1024, limit=64 * MIB):
    """Appends and fsyncs until ENOSPC; how many bytes an fsync acknowledged."""
    done = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        while done < limit:
            e = err(os.write, fd, pattern(done, block)) or err(os.fsync, fd)
            if e:
                assert e == errno.ENOSPC, e
                return done
            done += block
        raise AssertionError("the disk does not get full")
    finally:
        assert err(os.close, fd) in (0, errno.ENOSPC)


def append_until_full(fd, at):
    """The error in the end; a write may take a part first."""
    for _ in range(64):
        try:
            at += os.pwrite(fd, pattern(3, MIB), at)
            os.fsync(fd)
        except OSError as e:
            return e.errno
    return 0


def sound(store):
    """Unmounts cleanly, and check finds nothing."""
    store.umount()
    assert not markers(store)
    r = run(CTL, "check", store.cipher)
    assert r.code == 0 and "no damage" in r.out, r
    return store.mount()


@pytest.mark.parametrize("kind", [pytest.param("ext4", marks=pytest.mark.sanitizer), "journal", "tmpfs"])
def test_full(disks, kind):
    """A file grows until the disk is full: ENOSPC, and every byte an fsync acknowledged is there, now and later."""
    disk, store = disks(*KINDS[kind])
    store.mount()
    put(store.path("before"), pattern(1, 100000))
    done = write_until_full(store.path("big"))
    assert done >= 4 * MIB
    for _ in range(2):
        assert get(store.path("before")) == pattern(1, 100000)
        with open(store.path("big"), "rb") as f:
            for at in range(0, done, 256 * 1024):
                assert f.read(256 * 1024) == pattern(at, 256 * 1024), at
            assert len(f.read()) <= 256 * 1024, "of what was refused a part may be there, and can be read"
        store.remount()
    os.unlink(store.path("big"))
    put(store.path("after"), pattern(2, MIB))
    assert get(store.path("after")) == pattern(2, MIB)
    sound(store)


@pytest.mark.sanitizer
@pytest.mark.parametrize("options", [(), ("mount.writeback=off",)])
def test_nothing_left(disks, options):
    """Not one block: every call that needs one says ENOSPC, none harms what is there, all works again with room."""
    disk, store = disks(*EXT4)
    store.mount(*options)
    small, data = pattern(1, 1000), pattern(2, 300000)
    put(store.path("small"), small)
    put(store.path("large"), data)
    os.makedirs(store.path("d"))
    fd = os.open(store.path("large"), os.O_RDWR)
    disk.fill()
    try:
        # Space that was set aside for what came before may come back a little later.
        numbers = itertools.count()
        wait_until(lambda: disk.fill() or err(put, store.path(f"new {next(numbers)}"), b"x" * 100) == errno.ENOSPC)
        assert err(put, store.path("d", "new"), data) == errno.ENOSPC
        assert err(os.mkdir, store.path("e")) == errno.ENOSPC
        assert err(os.symlink, "x" * 3000, store.path("link")) in (0, errno.ENOSPC)
        assert append_until_full(fd, 300000) == errno.ENOSPC
        assert os.pread(fd, 300000, 0) == data
        assert get(store.path("small")) == small
        assert err(os.rename, store.path("small"), store.path("d", "small")) in (0, errno.ENOSPC)
    finally:
        assert err(os.close, fd) in (0, errno.ENOSPC)
    name = store.path("d", "small") if os.path.exists(store.path("d", "small")) else store.path("small")
    assert get(name) == small
    assert get(store.path("large"))[:300000] == data
    disk.free()
    put(store.path("new"), data)
    os.mkdir(store.path("e"))
    put(store.path("large"), data)
    assert get(store.path("new")) == get(store.path("large")) == data and get(name) == small
    sound(store)
    assert get(store.path("new")) == get(store.path("large")) == data and get(name) == small


@pytest.mark.sanitizer
def test_overwriting_needs_no_room(disks):
    """What has its blocks can be rewritten on a full disk."""
    disk, store = disks(*EXT4)
    store.mount()
    put(store.path("a"), pattern(1, 2 * MIB))
    disk.fill()
    fd = os.open(store.path("a"), os.O_RDWR)
    try:
        for at in (0, 4096, 50000, MIB + 17):
            assert os.pwrite(fd, pattern(at, 30000), at) == 30000
        os.fsync(fd)
    finally:
        os.close(fd)
    want = bytearray(pattern(1, 2 * MIB))
    for at in (0, 4096, 50000, MIB + 17):
        want[at:at + 30000] = pattern(at, 30000)
    assert get(store.path("a")) == want
    store.remount()
    assert get(store.path("a")) == want
    os.unlink(store.path("a"))
    put(store.path("b"), b"there is room again")
    sound(store)


def test_holes_on_a_full_disk(disks):
    """Writing into a hole may be refused; what is refused is a hole or the new bytes, never an error on reading."""
    disk, store = disks(*EXT4)
    store.mount()
    with open(store.path("sparse"), "wb") as f:
        f.write(pattern(1, 5000))
        f.truncate(8 * MIB)
        f.seek(8 * MIB)
        f.write(b"end")
        f.flush()
        os.fsync(f.fileno())
    disk.fill(64 * 1024)
    fd = os.open(store.path("sparse"), os.O_RDWR)
    errors = set()
    for at in range(MIB, 7 * MIB, 65536):
        errors.add(err(os.pwrite, fd, b"\7" * 65536, at) or err(os.fsync, fd))
    errors.add(err(os.close, fd))
    assert errno.ENOSPC in errors and errors <= {0, errno.ENOSPC}
    for _ in range(2):
        got = get(store.path("sparse"))
        assert got[:5000] == pattern(1, 5000) and got[8 * MIB:] == b"end" and len(got) == 8 * MIB + 3
        assert set(got[MIB:7 * MIB]) <= {0, 7} and set(got[5000:MIB]) == {0}
        store.remount()
    disk.free()
    with open(store.path("sparse"), "r+b") as f:
        f.seek(MIB)
        f.write(b"\7" * 6 * MIB)
        f.flush()
        os.fsync(f.fileno())
    assert set(get(store.path("sparse"))[MIB:7 * MIB]) == {7}
    sound(store)


def test_mapped_pages_on_a_full_disk(disks):
    """msync tells; the pages fsynced before are unharmed."""
    disk, store = disks(*EXT4)
    store.mount()
    with open(store.path("a"), "w+b") as f:
        f.truncate(4 * MIB)
        f.write(pattern(1, MIB))
        f.flush()
        os.fsync(f.fileno())
        disk.fill(16 * 4096)
        m = mmap.mmap(f.fileno(), 4 * MIB)
        m[2 * MIB:4 * MIB] = b"\7" * (2 * MIB)
        assert err(m.flush) == errno.ENOSPC
        m.close()
        disk.free()
    assert get(store.path("a"))[:MIB] == pattern(1, MIB)
    store.remount()
    got = get(store.path("a"))
    assert got[:MIB] == pattern(1, MIB) and set(got[2 * MIB:]) <= {0, 7}
    sound(store)


def change(rng, fd, was):
    """One random change and an fsync: what the file must be if all went well, the range it may touch, and the error."""
    at, n = rng.randrange(len(was) + 20000), rng.choice([1, 100, 4096, 30000, 200000])
    if rng.random() < 0.25:
        want, call = was[:at].ljust(at, b"\0"), lambda: os.ftruncate(fd, at)
        touched = (at, max(at, len(was)))
    else:
        data = rng.randbytes(n)
        want, call = was[:at].ljust(at, b"\0") + data + was[at + n:], lambda: os.pwrite(fd, data, at)
        touched = (at, at + n)
    try:
        done = call()
        os.fsync(fd)
    except OSError as e:
        return want, touched, e.errno
    return want, touched, 0 if done is None or done == n else errno.ENOSPC


def settle(fd, was, want, e):
    """What applications do after ENOSPC: give the file its old size back. True if what is read now is surely on the disk."""
    done = e == 0 or (err(os.ftruncate, fd, min(len(was), len(want))) or err(os.fsync, fd)) == 0
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the kernel goes on showing pages that it could not write
    assert err(os.close, fd) in (0, errno.ENOSPC)
    return done


def live_on(rng, disk, store, files):
    """Random changes; files whose state is unknown leave the game. Returns how often there was no room."""
    refused = 0
    for i in range(250):
        name = rng.choice(list(files))
        fd, was = os.open(store.path(name), os.O_RDWR), files[name]
        want, (begin, end), e = change(rng, fd, was)
        refused += e != 0
        assert e in (0, errno.ENOSPC)
        sure, got = settle(fd, was, want, e), get(store.path(name))
        if e == 0:
            assert got == want
        elif sure:
            assert got[:begin] == was[:min(begin, len(got))] and got[end:] == was[end:len(got)]
        if sure:
            files[name] = got
        else:
            del files[name]
        if i % 20 == 0:
            disk.fill(100 * 1024)
    return refused


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.sanitizer), 1, 2])
def test_life_on_a_full_disk(disks, seed):
    """Random writes and truncations with hardly any room: what an fsync acknowledged is there, what is refused touches its own bytes
    only, and nothing is EIO, then or later."""
    rng = random.Random(seed)
    disk, store = disks(*EXT4)
    store.mount()
    files = {f"f{i}": pattern(i, rng.choice([0, 500, 5000, 100000, 600000])) for i in range(24)}
    for name, data in files.items():
        put(store.path(name), data)
    every = list(files)
    disk.fill(200 * 1024)
    assert live_on(rng, disk, store, files) > 10, "the disk was never full"
    disk.free()
    for name in every:
        with open(store.path(name), "r+b") as f:
            os.fsync(f.fileno())
            assert name not in files or f.read() == files[name]
    sound(store)
    for name in every:
        assert get(store.path(name)) == files.get(name, get(store.path(name)))


def test_no_inodes_left(disks):
    """Creating says ENOSPC and leaves no litter; a file can be made when another goes."""
    disk, store = disks("ext4", 48, "-b", "4096", "-m", "0", "-N", "64")
    store.mount()
    made = 0
    while (e := err(put, store.path(f"f{made}"), b"x")) == 0:
        made += 1
    assert e == errno.ENOSPC and made > 20
    assert err(os.mkdir, store.path("d")) == errno.ENOSPC
    assert err(os.symlink, "x", store.path("l")) == errno.ENOSPC
    assert len(os.listdir(store.plain)) == made
    assert not [n for n in tree(store.cipher) if ".tmp." in n or ".del." in n]
    os.unlink(store.path("f0"))
    os.unlink(store.path("f1"))
    put(store.path("again"), b"y")
    assert get(store.path("again")) == b"y" and get(store.path("f2")) == b"x"
    sound(store)


def test_init_on_a_full_disk(disks, tmp_path):
    disk, store = disks(*EXT4)
    empty = os.path.join(disk.at, "other")
    os.mkdir(empty)
    disk.fill()
    r = run(CTL, "init", "-c", store.ini, empty)
    said(r, 1, "No space left")
    assert tree(empty) == []
    disk.free()
    assert run(CTL, "init", "-c", store.ini, empty).code == 0


def test_mounting_on_a_full_disk(disks):
    """There is no block for the marker: it mounts all the same, so that something can be removed."""
    disk, store = disks(*EXT4)
    store.mount()
    put(store.path("a"), pattern(1, 5000))
    store.umount()
    disk.fill()
    store.mount()
    assert "no room" in store.read_log() and len(markers(store)) == 1
    assert get(store.path("a")) == pattern(1, 5000)
    said(run(BYOKFS, "-c", store.ini, store.cipher, store.plain), ALREADY)
    store.kill()
    store.clear_dead()
    store.mount()
    assert get(store.path("a")) == pattern(1, 5000) and os.stat(store.path("a")).st_size == 5000
    os.unlink(store.path("a"))
    wait_until(lambda: err(put, store.path("b"), b"x") == 0)
    disk.free()
    wait_until(lambda: len(markers(store)) == 1)
    sound(store)


@pytest.mark.sanitizer
def test_read_only_backing(disks):
    """Under a live mount the backing becomes read-only: EROFS, reading goes on; a mount must then say ro."""
    disk, store = disks(*EXT4)
    store.mount()
    put(store.path("a"), pattern(1, 50000))
    store.umount()
    disk.remount("ro")
    said(run(BYOKFS, "-c", store.ini, store.cipher, store.plain), 1, "Read-only file system")
    assert mounted(store.plain) is None
    with background(store, "-o", "ro") as (r, _):
        assert r.code == 0, r
        assert get(store.path("a")) == pattern(1, 50000)
        assert err(put, store.path("b"), b"x") == errno.EROFS
    assert run(CTL, "check", store.cipher).code == 0 and run(CTL, "info", store.cipher).code == 0
    disk.remount("rw")
    store.mount()
    assert get(store.path("a")) == pattern(1, 50000)


def test_backing_turns_read_only(disks):
    """errors=remount-ro, as after a fault of the device."""
    disk, store = disks(*EXT4)
    store.mount()
    put(store.path("a"), pattern(1, 50000))
    before = os.open(store.path("a"), os.O_RDWR)
    with open(os.path.join("/proc/self/mounts")) as f:
        device = next(line.split()[0] for line in f if line.split()[1] == disk.at)
    name = os.path.basename(device)
    # What the kernel does itself on errors: the filesystem is read-only though files are open for writing.
    subprocess.run(["sh", "-c", f"echo 1 > /sys/fs/ext4/{name}/trigger_fs_error"], check=False, capture_output=True)
    subprocess.run(["mount", "-o", "remount,abort", disk.at], check=False, capture_output=True)
    assert err(put, store.path("b"), pattern(2, 50000)) in (errno.EROFS, errno.EIO)
    fd = os.open(store.path("a"), os.O_RDONLY)
    assert os.read(fd, 60000) == pattern(1, 50000)
    os.close(fd)
    e = err(os.pwrite, before, b"x" * 4096, 0) or err(os.fsync, before)
    err(os.close, before)
    assert e in (errno.EROFS, errno.EIO), e
    assert store.process.poll() is None and os.listdir(store.plain) == ["a"]
    assert store.state() == "open"


def test_small_blocks(disks):
    """Blocks of 1 KiB may tear pages in a power cut: refused unless the administrator says so."""
    with pytest.raises(subprocess.CalledProcessError):
        disks("ext4", 16, "-b", "1024")


def test_small_blocks_accepted(disks):
    disk, store = disks("ext4", 16, "-b", "1024", init=["-o", "mount.torn_ok=yes"])
    r = said(run(BYOKFS, "-c", store.ini, store.cipher, store.plain), 1, "1024 bytes", "torn_ok")
    assert mounted(store.plain) is None and not markers(store), r
    said(run(CTL, "init", "-c", store.ini, os.path.join(disk.at, "lost+found")), 1, "torn_ok")
    store.mount("mount.torn_ok=yes")
    put(store.path("a"), pattern(1, 50000))
    sound_again = store.remount("mount.torn_ok=yes")
    assert get(sound_again.path("a")) == pattern(1, 50000)


@pytest.mark.skipif(not shutil.which("mkfs.xfs"), reason="no mkfs.xfs")
def test_xfs(disks):
    disk, store = disks("xfs", 400)
    store.mount()
    put(store.path("a"), pattern(1, 5 * MIB))
    os.setxattr(store.path("a"), "user.a", b"value")
    os.symlink("x" * 700, store.path("link"))
    os.symlink("x" * 4095, store.path("long"))
    assert err(os.symlink, "x" * 4096, store.path("longer")) == errno.ENAMETOOLONG
    sound(store)
    assert get(store.path("a")) == pattern(1, 5 * MIB) and os.getxattr(store.path("a"), "user.a") == b"value"
    assert os.readlink(store.path("link")) == "x" * 700 and os.readlink(store.path("long")) == "x" * 4095
