"""What single system calls answer: errno, link counts, times, types, names. Every mode of the store and both cache modes."""
import errno
import os
import select
import socket
import stat
import struct
import time

import pytest

from conftest import LIBC
from posix_tools import (AT_FDCWD, AT_SYMLINK_FOLLOW, REFERENCE, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, VARIANTS, check, d, mounted,
                         raises, read, renameat2, run, variant_fixture, write)

fs = variant_fixture(list(VARIANTS))
__all__ = ["d"]


def join(*parts):
    return os.path.join(*[os.fsencode(p) for p in parts])


# ---- names ----

@pytest.mark.sanitizer
@pytest.mark.parametrize("name", [b"a", b"a" * 112, b"b" * 128, b"c" * 129, b"d" * 160, b"e" * 161, b"f" * 255, bytes(range(1, 47)) + bytes(range(48, 256)),
                                  b"\xff\xfe", b"-rf", b" lead", b"trail ", b"new\nline", b".", b"...", "\u00e4\U0001f600".encode() * 40],
                         ids=lambda n: f"{len(n)}-{n[:4].hex()}")
def test_any_name(fs, d, name):
    if name == b".":
        name = b".hidden"
    path = join(d, name)
    write(path, b"x")
    assert os.listdir(os.fsencode(d)) == [name]
    assert read(path) == b"x"
    os.mkdir(path + b"d" if len(name) < 255 else join(d, b"g" * 255))
    moved = join(d, b"n" * 200)
    os.rename(path, moved)
    assert not os.path.lexists(path) and read(moved) == b"x"
    os.link(moved, path)
    assert os.stat(path).st_ino == os.stat(moved).st_ino
    os.unlink(moved)
    assert read(path) == b"x"
    os.symlink(name, moved)
    assert os.readlink(moved) == name and read(moved) == b"x"


def test_name_limits(d):
    for fn in (lambda p: os.open(p, os.O_CREAT | os.O_WRONLY), os.mkdir, os.mkfifo, lambda p: os.symlink("x", p), os.stat, os.unlink, os.rmdir,
               lambda p: os.rename(write(os.path.join(d, "s")), p), lambda p: os.link(write(os.path.join(d, "s")), p)):
        raises(errno.ENAMETOOLONG, fn, os.path.join(d, "x" * 256))
    assert os.pathconf(d, "PC_NAME_MAX") == 255
    raises(errno.ENAMETOOLONG, os.stat, d + "/" + "y/" * 2100)


def test_case_matters(d):
    write(os.path.join(d, "Name"), b"1")
    write(os.path.join(d, "name"), b"2")
    assert read(os.path.join(d, "Name")) == b"1" and sorted(os.listdir(d)) == ["Name", "name"]


@pytest.mark.sanitizer
def test_deep_paths(d):
    here = os.open(d, os.O_RDONLY)
    for i in range(60):
        os.mkdir("deep" * 30, dir_fd=here)
        inner = os.open("deep" * 30, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    assert os.listdir(here) == ["bottom"]
    os.close(here)
    run("rm", "-r", os.path.join(d, "deep" * 30))
    assert os.listdir(d) == []


# ---- errors ----

@pytest.mark.sanitizer
def test_errnos(d):
    f, sub = write(os.path.join(d, "f")), os.path.join(d, "sub")
    os.mkdir(sub)
    write(os.path.join(sub, "x"))
    missing = os.path.join(d, "missing")
    for fn in (os.stat, os.unlink, os.rmdir, os.readlink, os.listdir, lambda p: os.open(p, os.O_RDONLY), lambda p: os.chmod(p, 0),
               lambda p: os.truncate(p, 0), lambda p: os.rename(p, f), lambda p: os.link(p, f + "2"), lambda p: os.utime(p)):
        raises(errno.ENOENT, fn, missing)
        raises(errno.ENOTDIR, fn, os.path.join(f, "below"))
    for fn in (os.mkdir, os.mkfifo, lambda p: os.symlink("x", p), lambda p: os.link(f, p), lambda p: os.open(p, os.O_CREAT | os.O_EXCL | os.O_RDWR)):
        raises(errno.EEXIST, fn, f)
        raises(errno.EEXIST, fn, sub)
    raises(errno.ENOTEMPTY, os.rmdir, sub)
    raises(errno.ENOTDIR, os.rmdir, f)
    raises((errno.EISDIR, errno.EPERM), os.unlink, sub)
    raises(errno.EISDIR, os.open, sub, os.O_WRONLY)
    raises(errno.EISDIR, os.truncate, sub, 0)
    raises(errno.ENOTDIR, os.open, f, os.O_DIRECTORY)
    raises(errno.EINVAL, os.readlink, f)
    raises(errno.EINVAL, os.truncate, f, -1)
    raises(errno.EPERM, os.link, sub, missing)
    raises(errno.EINVAL, os.rmdir, os.path.join(sub, "."))
    raises(errno.ENOTEMPTY, os.rmdir, os.path.join(sub, ".."))


def test_loops(d):
    loop = os.path.join(d, "loop")
    os.symlink("loop", loop)
    raises(errno.ELOOP, os.stat, loop)
    raises(errno.ELOOP, os.open, loop, os.O_RDONLY)
    write(os.path.join(d, "t"))
    os.symlink("t", os.path.join(d, "l"))
    raises(errno.ELOOP, os.open, os.path.join(d, "l"), os.O_RDONLY | os.O_NOFOLLOW)
    assert stat.S_ISLNK(os.lstat(loop).st_mode)


def test_across_filesystems(d):
    raises(errno.EXDEV, os.rename, write(os.path.join(d, "f")), "/dev/shm/byokfs-never")
    raises(errno.EXDEV, os.link, os.path.join(d, "f"), "/dev/shm/byokfs-never")


def test_excl_and_trunc(d):
    f = write(os.path.join(d, "f"), b"x" * 5000)
    fd = os.open(f, os.O_RDONLY)
    os.close(os.open(f, os.O_WRONLY | os.O_TRUNC))
    assert os.stat(f).st_size == 0 and os.fstat(fd).st_size == 0 and os.read(fd, 10) == b""
    write(f, b"y" * 9000)
    assert os.pread(fd, 10, 8995) == b"yyyyy"
    os.close(fd)
    os.close(os.open(f, os.O_CREAT | os.O_WRONLY))
    assert os.stat(f).st_size == 9000


# ---- rename ----

@pytest.mark.sanitizer
def test_rename_replaces(d):
    a, b = write(os.path.join(d, "a"), b"A"), write(os.path.join(d, "b"), b"B" * 6000)
    fd = os.open(b, os.O_RDWR)
    os.rename(a, b)
    assert read(b) == b"A" and not os.path.exists(a)
    assert os.pread(fd, 6000, 0) == b"B" * 6000 and os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b"still", 0)
    assert os.pread(fd, 5, 0) == b"still" and read(b) == b"A"
    os.close(fd)
    fd = os.open(b, os.O_RDWR)
    os.rename(b, a)
    os.pwrite(fd, b"Z", 0)
    os.close(fd)
    assert read(a) == b"Z"


def test_rename_same_inode_does_nothing(d):
    a, b = write(os.path.join(d, "a"), b"A"), os.path.join(d, "b")
    os.link(a, b)
    os.rename(a, b)
    assert os.stat(a).st_nlink == 2 and sorted(os.listdir(d)) == ["a", "b"]
    os.rename(a, a)
    assert read(a) == b"A"


@pytest.mark.sanitizer
def test_rename_directories(d):
    a, b, f = os.path.join(d, "a"), os.path.join(d, "b"), write(os.path.join(d, "f"))
    os.makedirs(os.path.join(a, "in"))
    os.mkdir(b)
    raises(errno.ENOTDIR, os.rename, a, f)
    raises(errno.EISDIR, os.rename, f, a)
    raises(errno.EINVAL, os.rename, a, os.path.join(a, "in", "deeper"))
    raises((errno.ENOTEMPTY, errno.EEXIST), os.rename, os.path.join(a, "in"), a)
    ino = os.stat(a).st_ino
    os.rename(a, b)
    assert os.stat(b).st_ino == ino and os.listdir(b) == ["in"] and not os.path.exists(a)
    os.mkdir(a)
    raises((errno.ENOTEMPTY, errno.EEXIST), os.rename, a, b)
    assert os.stat(d).st_nlink == 4
    os.rename(os.path.join(b, "in"), os.path.join(a, "in"))
    assert (os.stat(a).st_nlink, os.stat(b).st_nlink) == (3, 2)
    assert os.stat(os.path.join(a, "in", "..")).st_ino == os.stat(a).st_ino
    write(os.path.join(a, "in", "x"), b"moved")
    os.rename(a, b)
    assert read(os.path.join(b, "in", "x")) == b"moved"


@pytest.mark.sanitizer
def test_renameat2(fs, d):
    a, b, s = write(os.path.join(d, "a"), b"A"), write(os.path.join(d, "b"), b"B"), os.path.join(d, "s")
    raises(errno.EEXIST, renameat2, a, b, RENAME_NOREPLACE)
    assert (read(a), read(b)) == (b"A", b"B")
    renameat2(a, b, RENAME_EXCHANGE)
    assert (read(a), read(b)) == (b"B", b"A")
    os.mkdir(s)
    write(os.path.join(s, "x"), b"X")
    renameat2(s, a, RENAME_EXCHANGE)
    assert read(os.path.join(a, "x")) == b"X" and read(s) == b"B"
    raises(errno.ENOENT, renameat2, a, os.path.join(d, "no"), RENAME_EXCHANGE)
    renameat2(s, os.path.join(d, "n" * 255), RENAME_NOREPLACE)
    assert read(os.path.join(d, "n" * 255)) == b"B"
    raises(errno.EEXIST, renameat2, b, a, RENAME_NOREPLACE)
    raises(errno.EINVAL, renameat2, b, os.path.join(d, "w"), RENAME_WHITEOUT) if fs.cipher else None
    raises(errno.EINVAL, renameat2, a, b, RENAME_EXCHANGE | RENAME_NOREPLACE)
    renameat2(os.path.join(d, "n" * 255), b, RENAME_EXCHANGE)
    assert read(os.path.join(d, "n" * 255)) == b"A" and read(b) == b"B"


# ---- hard links ----

@pytest.mark.sanitizer
def test_hard_links_are_one_file(fs, d):
    a, b, c = (os.path.join(d, n) for n in "abc")
    write(a, b"1")
    os.link(a, b)
    os.link(b, c)
    assert [os.stat(p).st_nlink for p in (a, b, c)] == [3] * 3
    assert len({os.stat(p).st_ino for p in (a, b, c)}) == 1
    for size in (5000, 3, 20000, 0, 1505):
        write(b, os.urandom(size))
        assert read(a) == read(b) == read(c) and [os.stat(p).st_size for p in (a, b, c)] == [size] * 3
    with open(a, "ab") as fa, open(b, "rb") as fb:
        fa.write(b"tail")
        fa.flush()
        fb.seek(1505)
        assert fb.read() == b"tail" and os.stat(c).st_size == 1509
        os.chmod(c, 0o600)
        assert stat.S_IMODE(os.fstat(fa.fileno()).st_mode) == 0o600
    os.truncate(c, 10)
    assert os.stat(a).st_size == 10 and read(b) == read(a)
    os.unlink(a)
    assert [os.stat(p).st_nlink for p in (b, c)] == [2, 2]
    os.unlink(c)
    assert os.stat(b).st_nlink == 1
    fs.remount()
    assert len(read(b)) == 10 and os.stat(b).st_nlink == 1


def test_link_to_a_symlink_and_fd(d):
    t, s = write(os.path.join(d, "t"), b"x"), os.path.join(d, "s")
    os.symlink("t", s)
    os.link(s, os.path.join(d, "s2"), follow_symlinks=False)
    assert os.readlink(os.path.join(d, "s2")) == "t" and os.lstat(s).st_nlink == 2
    fd = os.open(t, os.O_RDONLY)
    check(LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.path.join(d, "t2").encode(), AT_SYMLINK_FOLLOW))
    os.close(fd)
    assert os.stat(t).st_nlink == 2


# ---- symlinks ----

def backing_has_long_links(fs):
    """A target over 3,047 bytes needs an attribute that only root may set, and not on every filesystem."""
    if not fs.cipher:
        return True
    probe = os.path.join(os.path.dirname(fs.cipher), "probe-link")
    os.symlink("x", probe)
    try:
        os.setxattr(probe, "trusted.byokfs.link", b"x" * 3300, follow_symlinks=False)
        return True
    except OSError:
        return False
    finally:
        os.unlink(probe)


@pytest.mark.sanitizer
def test_symlink_targets(fs, d):
    lengths = [1, 15, 16, 20, 21, 255, 741, 742, 1000, 3047] + ([3048, 3049, 3050, 4094, 4095] if backing_has_long_links(fs) else [])
    target = {n: (b"/\xe9" + bytes(1 + i % 255 for i in range(n)))[:n] for n in lengths}
    second = {n: join(d, b"%d" % n + b"h" * 200) for n in lengths}
    for n in lengths:
        link = join(d, b"%d" % n)
        os.symlink(target[n], link)
        assert os.readlink(link) == target[n] and os.lstat(link).st_size == n
        assert stat.S_IMODE(os.lstat(link).st_mode) == 0o777
        os.rename(link, link + b"m")
        os.link(link + b"m", second[n], follow_symlinks=False)
        os.unlink(link + b"m")
    fs.remount()
    assert {e.name: e.stat(follow_symlinks=False).st_size for e in os.scandir(os.fsencode(d))} == {os.path.basename(second[n]): n for n in lengths}
    for n in lengths:
        assert os.lstat(second[n]).st_size == n and os.readlink(second[n]) == target[n] and os.listxattr(second[n], follow_symlinks=False) == []
        raises(errno.EEXIST, os.symlink, target[n], second[n])


def test_symlink_too_long(d):
    raises(errno.ENAMETOOLONG, os.symlink, "x" * 4096, os.path.join(d, "l"))
    raises(errno.ENOENT, os.symlink, "", os.path.join(d, "l"))
    assert os.listdir(d) == []


# ---- times and modes ----

@pytest.mark.sanitizer
def test_times(fs, d):
    f = write(os.path.join(d, "f"), b"x" * 5000)
    os.symlink("f", os.path.join(d, "l"))
    when = (1_234_567_890_123_456_789, 987_654_321_987_654_321)
    os.utime(f, ns=when)
    os.utime(os.path.join(d, "l"), ns=(5_000_000_007, 6_000_000_009), follow_symlinks=False)
    os.utime(d, ns=(7_000_000_001, 8_000_000_003))

    def same():
        st, ln, dr = os.stat(f), os.lstat(os.path.join(d, "l")), os.stat(d)
        assert (st.st_atime_ns, st.st_mtime_ns) == when
        assert ln.st_mtime_ns == 6_000_000_009 and dr.st_mtime_ns == 8_000_000_003
    same()
    with open(f, "rb"):
        pass
    same()
    fs.remount()
    same()
    os.utime(f, ns=(-1_500_000_000, -2_000_000_001))
    assert os.stat(f).st_mtime_ns == -2_000_000_001


@pytest.mark.sanitizer
@pytest.mark.parametrize("option", ["relatime", "noatime"])
def test_reading_moves_atime_as_mounted(shared_devkms, option):
    """A user's read does, by the backing's rules (relatime, unless it is mounted otherwise); our own reads for others never do."""
    with mounted(kms=shared_devkms, options=["noatime"] if option == "noatime" else []) as m:
        f = write(m.path("f"), b"x" * 20_000)
        os.utime(f, ns=(1_000_000_000, 2_000_000_000))
        m.remount()
        ctime = os.stat(f).st_ctime_ns
        fd = os.open(f, os.O_RDWR)
        os.lseek(fd, 0, os.SEEK_DATA)
        os.fsync(fd)
        assert os.fstat(fd).st_atime_ns == 1_000_000_000
        assert os.pread(fd, 5, 10_000) == b"xxxxx"
        st = os.fstat(fd)
        backing = run("findmnt", "-no", "OPTIONS", "-T", m.cipher).stdout if not REFERENCE else ""
        if option == "noatime" or "noatime" in backing:
            assert st.st_atime_ns == 1_000_000_000
        else:
            assert st.st_atime_ns > 2_000_000_000
        assert st.st_ctime_ns == ctime and st.st_mtime_ns == 2_000_000_000
        os.utime(fd, ns=(1_000_000_000, 2_000_000_000))
        os.pwrite(fd, b"y", 5000)  # a partial page: read, merged, written
        os.fsync(fd)
        assert os.fstat(fd).st_atime_ns == 1_000_000_000
        os.close(fd)


def utimensat(path, a, m, flags=0):
    class Spec(__import__("ctypes").Structure):
        _fields_ = [("s", __import__("ctypes").c_long), ("n", __import__("ctypes").c_long)]
    return check(LIBC.utimensat(AT_FDCWD, os.fsencode(path), (Spec * 2)(Spec(*a), Spec(*m)), flags))


def test_utime_now_and_omit(d):
    f = write(os.path.join(d, "f"))
    os.utime(f, ns=(1000, 2000))
    utimensat(f, (0, (1 << 30) - 2), (7, 8))  # UTIME_OMIT
    st = os.stat(f)
    assert (st.st_atime_ns, st.st_mtime_ns) == (1000, 7_000_000_008)
    utimensat(f, (3, 4), (0, (1 << 30) - 1))  # UTIME_NOW
    st = os.stat(f)
    assert st.st_atime_ns == 3_000_000_004 and abs(st.st_mtime - time.time()) < 100
    raises(errno.EINVAL, utimensat, f, (0, 2_000_000_000), (0, 0))


@pytest.mark.sanitizer
def test_what_moves_mtime(fs, d):
    """mtime moves with content, and with nothing else; close and the writing back afterwards leave it alone."""
    f = write(os.path.join(d, "f"), b"x" * 100)

    def old():
        os.utime(f, ns=(1_000_000_000, 1_000_000_000))

    def moved():
        return os.stat(f).st_mtime_ns != 1_000_000_000
    old()
    fd = os.open(f, os.O_RDWR)
    os.pread(fd, 10, 0)
    os.fchmod(fd, 0o640)
    os.fsync(fd)
    os.setxattr(f, "user.x", b"1") if fs.cipher else None
    os.rename(f, f + "2")
    os.rename(f + "2", f)
    assert not moved()
    os.pwrite(fd, b"y", 0)
    assert moved()
    os.utime(fd, ns=(1_000_000_000, 1_000_000_000))
    assert not moved()
    os.fsync(fd)
    os.close(fd)
    assert not moved()
    for change in (lambda: os.truncate(f, 50), lambda: os.truncate(f, 5000), lambda: write(f, b"z", "ab"), lambda: write(f, b"")):
        old()
        change()
        assert moved()
    write(f, b"w" * 30000)
    old()
    fs.remount()
    assert not moved() and read(f) == b"w" * 30000


def test_ctime_moves(d):
    f = write(os.path.join(d, "f"), b"x")
    for change in (lambda: os.chmod(f, 0o600), lambda: os.link(f, f + "l"), lambda: os.chown(f, 5, 5), lambda: write(f, b"y"),
                   lambda: os.rename(f + "l", f + "m"), lambda: os.unlink(f + "m"), lambda: os.setxattr(f, "user.x", b"1")):
        before = os.stat(f).st_ctime_ns
        time.sleep(0.02)
        change()
        assert os.stat(f).st_ctime_ns > before


def test_directory_mtime(d):
    def step(change):
        os.utime(d, ns=(1, 1))
        change()
        assert os.stat(d).st_mtime_ns != 1
    f = os.path.join(d, "f")
    step(lambda: write(f))
    step(lambda: os.rename(f, f + "2"))
    step(lambda: os.link(f + "2", f))
    step(lambda: os.unlink(f))
    step(lambda: os.mkdir(f))
    step(lambda: os.rmdir(f))
    step(lambda: os.symlink("x", f))
    os.utime(d, ns=(1, 1))
    write(f + "2", b"content")
    assert os.stat(d).st_mtime_ns == 1


def test_modes(d):
    old = os.umask(0)
    try:
        for mode in (0o000, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o7777):
            f, s = os.path.join(d, f"f{mode:o}"), os.path.join(d, f"s{mode:o}")
            os.close(os.open(f, os.O_CREAT | os.O_WRONLY, mode))
            os.mkdir(s, mode)
            assert stat.S_IMODE(os.stat(f).st_mode) == mode
            assert stat.S_IMODE(os.stat(s).st_mode) & 0o1777 == mode & 0o1777
            os.chmod(s, mode)
            assert stat.S_IMODE(os.stat(s).st_mode) == mode
        os.umask(0o027)
        os.close(os.open(os.path.join(d, "u"), os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(os.path.join(d, "ud"))
        assert stat.S_IMODE(os.stat(os.path.join(d, "u")).st_mode) == 0o640
        assert stat.S_IMODE(os.stat(os.path.join(d, "ud")).st_mode) == 0o750
    finally:
        os.umask(old)
    fd = os.open(os.path.join(d, "f0"), os.O_RDWR)
    os.fchmod(fd, 0o604)
    os.fchown(fd, 11, 12)
    st = os.fstat(fd)
    os.close(fd)
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o604, 11, 12)


# ---- link counts, statfs ----

def test_directory_link_counts(fs, d):
    assert os.stat(d).st_nlink == 2
    for i in range(3):
        os.mkdir(os.path.join(d, str(i)))
    assert os.stat(d).st_nlink == 5
    os.rmdir(os.path.join(d, "0"))
    assert os.stat(d).st_nlink == 4
    root = fs.plain
    assert os.stat(root).st_nlink == 2 + sum(os.path.isdir(os.path.join(root, n)) for n in os.listdir(root)) or fs.cipher is None


def test_statfs(fs, d):
    a, b = os.statvfs(d), os.statvfs(fs.cipher or d)
    assert a.f_namemax == 255
    assert (a.f_bsize, a.f_frsize, a.f_blocks, a.f_files) == (b.f_bsize, b.f_frsize, b.f_blocks, b.f_files)
    assert 0 < a.f_bavail <= a.f_bfree <= a.f_blocks


# ---- special files ----

@pytest.mark.sanitizer
def test_special_files(fs, d):
    fifo, sock, null, blk = (os.path.join(d, n) for n in ("fifo", "sock", "null", "block"))
    os.mkfifo(fifo, 0o622)
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(blk, stat.S_IFBLK | 0o600, os.makedev(7, 300))
    s = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(d)
    try:
        s.bind("sock")
        s.listen(1)
        c = socket.socket(socket.AF_UNIX)
        c.connect("sock")
    finally:
        os.chdir(here)
    c.send(b"hi")
    assert s.accept()[0].recv(10) == b"hi"
    r = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    w = os.open(fifo, os.O_WRONLY)
    os.write(w, b"through")
    assert select.select([r], [], [], 5)[0] and os.read(r, 10) == b"through"
    for p, kind, rdev in ((fifo, stat.S_IFIFO, 0), (sock, stat.S_IFSOCK, 0), (null, stat.S_IFCHR, os.makedev(1, 3)),
                          (blk, stat.S_IFBLK, os.makedev(7, 300))):
        st = os.lstat(p)
        assert stat.S_IFMT(st.st_mode) == kind and st.st_rdev == rdev and st.st_nlink == 1
    os.unlink(fifo)
    assert stat.S_ISFIFO(os.fstat(r).st_mode) and os.fstat(r).st_nlink == 0
    os.fchmod(r, 0o600)
    os.close(r)
    os.close(w)
    c.close()
    s.close()
    os.rename(null, null + "2")
    os.link(null + "2", null)
    assert os.lstat(null).st_nlink == 2
    os.mknod(os.path.join(d, "reg"), stat.S_IFREG | 0o640)
    assert write(os.path.join(d, "reg"), b"yes") and read(os.path.join(d, "reg")) == b"yes"


def test_kinds_in_readdir(d):
    os.mkdir(os.path.join(d, "dir"))
    write(os.path.join(d, "file"))
    os.symlink("x", os.path.join(d, "link"))
    os.mkfifo(os.path.join(d, "fifo"))
    with os.scandir(d) as it:
        kinds = {e.name: (e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False), e.is_symlink(), e.inode()) for e in it}
    assert {n: k[:3] for n, k in kinds.items()} == {"dir": (True, False, False), "file": (False, True, False), "link": (False, False, True),
                                                   "fifo": (False, False, False)}
    for n, k in kinds.items():
        assert os.lstat(os.path.join(d, n)).st_ino == k[3]


# ---- gone, but held ----

@pytest.mark.sanitizer
def test_unlinked_but_open(fs, d):
    f = write(os.path.join(d, "f"), b"0123456789" * 1000)
    fd = os.open(f, os.O_RDWR)
    if fs.cipher:
        os.setxattr(fd, "user.k", b"v")
    os.unlink(f)
    assert os.fstat(fd).st_nlink == 0 and os.fstat(fd).st_size == 10000
    assert os.pread(fd, 10, 5000) == b"0123456789"
    os.pwrite(fd, b"new", 20000)
    assert os.fstat(fd).st_size == 20003 and os.pread(fd, 5, 10000) == b"\0" * 5
    os.ftruncate(fd, 7)
    assert os.pread(fd, 100, 0) == b"0123456"
    os.fchmod(fd, 0o600)
    os.fchown(fd, 3, 4)
    os.utime(fd, ns=(1, 2))
    st = os.fstat(fd)
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns) == (0o600, 3, 4, 2)
    if fs.cipher:
        assert os.getxattr(fd, "user.k") == b"v"
        os.setxattr(fd, "user.k2", b"w")
        assert sorted(os.listxattr(fd)) == ["user.k", "user.k2"]
        os.removexattr(fd, "user.k")
    os.fsync(fd)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 10) == b"0123456"
    os.close(again)
    write(f, b"another")
    assert os.pread(fd, 100, 0) == b"0123456" and read(f) == b"another"
    assert os.stat(f).st_ino != os.fstat(fd).st_ino
    os.close(fd)
    assert read(f) == b"another"


@pytest.mark.parametrize("timeout", ["0", "30s"])
def test_gone_but_held_without_attribute_cache(tmp_path, shared_devkms, timeout):
    """What the kernel does not remember, the daemon must: whoever still holds a removed object may look at it."""
    with mounted(kms=shared_devkms, options=[f"mount.attr_timeout={timeout}" if timeout != "0" else "mount.attr_timeout=1ms"]) as m:
        d = m.path("d")
        os.mkdir(d)
        os.mkfifo(os.path.join(d, "fifo"))
        os.symlink("nowhere", os.path.join(d, "link"))
        os.mkdir(os.path.join(d, "dir"))
        write(os.path.join(d, "file"), b"x" * 3000)
        for name in ("fifo", "link", "dir", "file"):
            p = os.path.join(d, name)
            fd = os.open(p, os.O_PATH | os.O_NOFOLLOW)
            ino = os.fstat(fd).st_ino
            (os.rmdir if name == "dir" else os.unlink)(p)
            time.sleep(0.01)
            st = os.fstat(fd)
            assert (st.st_ino, st.st_nlink) == (ino, 0), name
            if name == "link":
                assert os.readlink("", dir_fd=fd) == "nowhere"
            if name == "file":
                assert st.st_size == 3000
            os.close(fd)


@pytest.mark.sanitizer
def test_removed_directory(d):
    sub = os.path.join(d, "sub")
    os.mkdir(sub)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(sub)
            fd = os.open(".", os.O_RDONLY)
            os.rmdir(sub)
            assert os.fstat(fd).st_nlink == 0 and os.stat(".").st_nlink == 0
            raises(errno.ENOENT, os.getcwd)
            raises(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY)
            raises(errno.ENOENT, os.mkdir, "x")
            raises(errno.ENOENT, os.symlink, "a", "x")
            raises(errno.ENOENT, os.mkfifo, "x")
            raises(errno.ENOENT, os.stat, "x")
            assert os.listdir(fd) == [] and os.listdir(".") == []
            os.fchmod(fd, 0o700)
            os.fsync(fd)
            os.close(fd)
            os.chdir("/")
            code = 0
        finally:
            if code:
                import traceback
                traceback.print_exc()
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    os.mkdir(sub)
    assert os.stat(sub).st_nlink == 2


def test_replaced_directory_is_held(d):
    a, b = os.path.join(d, "a"), os.path.join(d, "b")
    os.mkdir(a)
    os.mkdir(b)
    fd = os.open(b, os.O_RDONLY)
    os.rename(a, b)
    assert os.fstat(fd).st_nlink == 0 and os.listdir(fd) == []
    os.close(fd)


# ---- small things programs ask for ----

def test_access_and_statx(d):
    f = write(os.path.join(d, "f"), b"x" * 10000)
    assert os.access(f, os.R_OK | os.W_OK) and not os.access(f, os.X_OK)
    st = os.stat(f)
    assert st.st_blksize >= 4096 and st.st_blocks * 512 >= 10000
    assert st.st_dev == os.stat(d).st_dev
    r = run("stat", "-c", "%s %F %h", f)
    assert r.stdout == "10000 regular file 1\n"


def test_fsync_everything(d):
    f = write(os.path.join(d, "f"), b"x")
    for path, flags in ((f, os.O_RDONLY), (f, os.O_RDWR), (d, os.O_RDONLY)):
        fd = os.open(path, flags)
        os.fsync(fd)
        os.fdatasync(fd)
        check(LIBC.syncfs(fd))
        os.close(fd)


def test_ioctl_unknown(d):
    import fcntl
    fd = os.open(write(os.path.join(d, "f"), b"12345"), os.O_RDONLY)
    buf = bytearray(4)
    fcntl.ioctl(fd, 0x541B, buf)  # FIONREAD is the kernel's own
    assert struct.unpack("i", buf)[0] == 5
    raises((errno.ENOTTY, errno.EOPNOTSUPP), fcntl.ioctl, fd, 0xBEEF, buf)
    os.close(fd)
