"""Names: every kind of object renamed over every other, limits of names and paths, ways of opening, what moves which time and link count."""
import ctypes
import itertools
import os
import socket
import stat

import pytest

from conftest import LIBC
from posix_diff import Twins, beside, fresh, look, see, twins
from posix_tools import AT_FDCWD, BOTH, REFERENCE, check, d, read, renameat2, run, variant_fixture, write

fs = variant_fixture(BOTH[:1])
__all__ = ["beside", "d", "twins"]
ours = pytest.mark.skipif(bool(REFERENCE), reason="compares with the backing")
pytestmark = ours

KINDS = ["none", "file", "empty", "full", "link", "fifo", "socket", "hard"]


def make(path, kind):
    if kind == "file":
        write(path, b"content of " + os.fsencode(os.path.basename(path)))
    elif kind in ("empty", "full"):
        os.mkdir(path)
        if kind == "full":
            write(os.path.join(path, "inside"), b"x")
    elif kind == "link":
        os.symlink("nowhere", path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o700)
    elif kind == "hard":
        write(path, b"two names")
        os.link(path, path + "-again")


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 8])
def test_rename_matrix(fs, beside, flags):
    """Each kind over each other, in one directory and between two; names, link counts and contents afterwards are the backing's."""
    t = Twins(fresh(fs.plain), fresh(beside))

    def script(at):
        out = []
        for n, (one, two) in enumerate(itertools.product(KINDS, KINDS)):
            for where in ("", "sub/"):
                base = f"{n}{where[:1]}"
                os.mkdir(base)
                os.mkdir(base + "/sub")
                a, b = f"{base}/a", f"{base}/{where}b" + ("-long" * 40 if n % 3 == 0 else "")
                make(a, one)
                make(b, two)
                out.append((one, two, where, see(renameat2, a, b, flags)))
        return out
    if flags & 4:  # RENAME_WHITEOUT is for overlay filesystems; ours refuses what ext4 grants
        got = {a[3] for a in script_in(t.ours, script) if a[0] != "none" and a[1] == "none"}
        assert got == {"EINVAL"}
        return
    assert any(a[3] == 0 for a in t.same(script)) == (flags < 3)


def script_in(at, script):
    here = os.getcwd()
    os.chdir(at)
    try:
        return script(at)
    finally:
        os.chdir(here)


def test_rename_into_itself(twins):
    def script(at):
        os.makedirs("a/b/c")
        write("a/b/f")
        os.symlink("a", "l")
        return [see(fn, *args) for fn, args in [
            (os.rename, ("a", "a")), (os.rename, ("a", "a/b/x")), (os.rename, ("a/b", "a/b/c/d")), (os.rename, ("a/b/c", "a")), (os.rename, ("a/b", "a")),
            (os.rename, ("a", "l/b/x")), (os.rename, ("a/.", "x")), (os.rename, ("a/..", "x")), (os.rename, ("a", "x/")), (os.rename, ("x/", "a/")),
            (os.rename, ("a/b/f", "y/")), (os.rename, ("a/b/f/", "y")), (os.rename, ("l/", "y")), (renameat2, ("a", "a/b", 2)), (renameat2, ("a/b", "a", 2)),
            (os.rename, (".", "x")), (os.rename, ("", "x")), (os.rename, ("a", "")), (os.rmdir, ("a/b/.",)), (os.rmdir, ("a/b/..",)), (os.rmdir, (".",)),
            (os.rmdir, ("l",)), (os.rmdir, ("l/",)), (os.unlink, ("a/b/f/",)), (os.unlink, ("l/",)), (os.mkdir, ("l",)), (os.mkdir, ("new/",)), (os.mkdir, ("l/n/",)),
            (os.symlink, ("x", "s/")), (os.mkfifo, ("p/",)), (os.open, ("f/", os.O_CREAT | os.O_WRONLY)), (os.mkdir, ("..",)), (os.link, ("a", "h"))]]
    answers = twins.same(script)
    assert {"EINVAL", "ENOTEMPTY", "EBUSY", "ENOENT", "EEXIST", "EPERM"} <= set(map(str, answers))


def test_every_byte_in_names(fs, twins):
    """All 254 bytes a name may have, alone, at the start, in the middle and at the end of names of every critical length."""
    def script(at):
        at = os.fsencode(at)
        names = [bytes([c]) for c in range(1, 256) if c not in b"/."]
        names += [bytes([c]) + b"n" * (length - 2) + bytes([c]) for c in range(1, 256) if c != 0x2F for length in (161, 255)]
        for i, n in enumerate(names):
            p = os.path.join(at, n)
            if i % 3 == 0:
                os.mkdir(p)
            elif i % 3 == 1:
                os.symlink(n, p)
            else:
                os.mknod(p, stat.S_IFREG | 0o600)
        listed = sorted(os.listdir(at))
        assert listed == sorted(names)
        for n in names:
            os.rename(os.path.join(at, n), os.path.join(at, n[::-1] if len(n) < 17 else n[:-1] + b"!" + n[-1:] if len(n) < 255 else n[:100] + b"\xff!" + n[102:]))
        listed = sorted(os.listdir(at))
        for n in listed:
            p = os.path.join(at, n)
            (os.rmdir if stat.S_ISDIR(os.lstat(p).st_mode) else os.unlink)(p)
        return listed
    assert len(twins.same(script)) > 700


def test_lengths(twins):
    """A component of 255 bytes is fine and one of 256 is not; a path of 4,095 bytes is and one of 4,096 is not."""
    def script(at):
        out = []
        calls = [os.stat, os.mkdir, os.rmdir, os.mkfifo, os.unlink, os.readlink, os.listdir, write, os.unlink, lambda p: os.chmod(p, 0),
                 lambda p: os.chown(p, -1, -1), lambda p: os.truncate(p, 0), os.utime, lambda p: os.symlink("t", p), os.unlink,
                 lambda p: os.rename("s", p), lambda p: os.rename(p, "s"), lambda p: os.link("s", p), os.unlink, lambda p: os.setxattr(p, "user.a", b"")]
        write("s")
        os.mkdir("d")
        deep = "d" + "/." * 1900
        for p in ("n" * 255, "n" * 256, "n" * 1000, "d/" + "n" * 255, "d/" + "n" * 256, "n" * 256 + "/x", deep + "/" + "n" * (4095 - len(deep) - 1),
                  deep + "/" + "n" * (4096 - len(deep) - 1), "x" * 255 + "/" + "y" * 255):
            out.append([a if isinstance(a, str) else "ok" for a in (see(fn, p) for fn in calls)])
        return out
    out = twins.same(script)
    assert set(out[1]) == {"ENAMETOOLONG"} == set(out[7]) and "ENAMETOOLONG" not in out[0]


def test_loops(twins):
    """Forty links on the way are followed and the next is not."""
    def script(at):
        os.mkdir("l0")
        for i in range(45):
            os.symlink(f"l{i}", f"l{i + 1}")
        os.symlink("self", "self")
        os.symlink("two", "one")
        os.symlink("one", "two")
        return [see(os.listdir, f"l{n}") for n in (1, 39, 40, 41, 45)] + [
            see(fn, p) for p in ("self", "one", "self/x") for fn in (os.stat, os.listdir, os.mkdir, lambda p: os.chmod(p, 0), lambda p: os.truncate(p, 0), lambda p: os.access(p, 0),
                                                                     lambda p: os.open(p, os.O_CREAT | os.O_WRONLY), lambda p: os.link(p, "h", follow_symlinks=True))]
    answers = twins.same(script)
    assert answers[:5] == [[], [], [], "ELOOP", "ELOOP"]


# ---- open ----

def touched(path, flags):
    os.close(os.open(path, flags))


def test_open_flags(twins):
    """Every kind of object under every combination of flags: the answer is the backing's."""
    def script(at):
        for k in KINDS[1:]:
            make(k, k)
        os.symlink("file", "tofile")
        os.symlink("empty", "todir")
        os.symlink("missing", "dangling")
        out = []
        for name in (*KINDS[1:], "tofile", "todir", "dangling", "missing2", "file/x", "empty/"):
            for access, *more in itertools.product((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3), (0, os.O_CREAT, os.O_CREAT | os.O_EXCL), (0, os.O_TRUNC),
                                                   (0, os.O_NOFOLLOW), (0, os.O_DIRECTORY), (0, os.O_PATH)):
                fd = see(os.open, name, access | sum(more) | os.O_NONBLOCK, 0o640)
                if isinstance(fd, int):
                    os.close(fd)
                    fd = "open"
                out.append(fd)
                if name in ("missing2", "dangling"):
                    [os.unlink(n) for n in ("missing", "missing2") if os.path.lexists(n)]
        return out
    assert {"open", "EEXIST", "EISDIR", "ELOOP", "ENOENT", "ENOTDIR", "ENXIO"} <= set(twins.same(script))


class OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def openat2(path, resolve, flags=os.O_RDONLY, mode=0):
    fd = check(LIBC.syscall(437, AT_FDCWD, os.fsencode(path), ctypes.byref(OpenHow(flags, mode, resolve)), ctypes.c_size_t(24)))
    os.close(fd)
    return "open"


def test_openat2(twins):
    NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = 1, 2, 4, 8, 16, 32

    def script(at):
        os.makedirs("d/e")
        write("d/f")
        os.symlink("d", "l")
        os.symlink("/", "d/root")
        os.symlink("../d/f", "d/up")
        paths = ["d/f", "l/f", "d/root", "d/up", "d/e/../f", "..", "/", "d/missing"]
        out = [(p, r, see(openat2, p, r)) for p in paths for r in (0, NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, NO_SYMLINKS | BENEATH)]
        out += [see(openat2, "d/new", 0, os.O_CREAT | os.O_WRONLY, 0o10000), see(openat2, "d/f", 0, os.O_RDONLY, 0o600), see(openat2, "d/f", 1 << 40)]
        os.stat("d/f")
        return out + [see(openat2, "d/f", CACHED) in ("open", "EAGAIN"), see(openat2, "d/new2", BENEATH, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)]
    got = twins.same(script)
    assert {"EXDEV", "ELOOP", "open"} <= {a[2] for a in got if isinstance(a, tuple)}


def test_path_descriptors(twins):
    def script(at):
        write("f", b"1234")
        os.symlink("f", "l")
        os.mkdir("d")
        out = []
        for name in ("f", "l", "d"):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW)
            out += [see(os.read, fd, 1), see(os.fchmod, fd, 0o600), see(os.fchown, fd, -1, -1), see(os.ftruncate, fd, 0), see(os.getxattr, fd, "user.x"), see(os.fsync, fd),
                    stat.S_IFMT(os.fstat(fd).st_mode), see(os.readlink, b"", dir_fd=fd), see(os.stat, "x", dir_fd=fd), see(os.fchdir, fd)]
            os.chdir(at)
            out.append(see(touched, f"/proc/self/fd/{fd}", os.O_RDONLY))
            os.close(fd)
        return out
    assert "EBADF" in twins.same(script)


# ---- times and link counts ----

CHANGES = {
    "create": lambda: write("d/new"), "mkdir": lambda: os.mkdir("d/new"), "fifo": lambda: os.mkfifo("d/new"), "symlink": lambda: os.symlink("x", "d/new"),
    "link": lambda: os.link("d/f", "d/new"), "link elsewhere": lambda: os.link("d/f", "e/new"), "unlink": lambda: os.unlink("d/f"), "rmdir": lambda: os.rmdir("d/s"),
    "unlink one of two": lambda: os.unlink("d/h"), "rename": lambda: os.rename("d/f", "d/new"), "rename elsewhere": lambda: os.rename("d/f", "e/new"),
    "rename over": lambda: os.rename("d/f", "d/h"), "rename over elsewhere": lambda: os.rename("d/f", "e/g"), "rename dir": lambda: os.rename("d/s", "d/new"),
    "rename dir elsewhere": lambda: os.rename("d/s", "e/new"), "rename dir over": lambda: os.rename("d/s", "e/s"), "exchange": lambda: renameat2("d/f", "e/g", 2),
    "exchange file and dir": lambda: renameat2("d/f", "e/s", 2), "exchange dirs": lambda: renameat2("d/s", "e/s", 2), "noreplace": lambda: renameat2("d/f", "e/new", 1),
    "chmod": lambda: os.chmod("d/f", 0o611), "same chmod": lambda: os.chmod("d/f", 0o644), "chown": lambda: os.chown("d/f", 1, 2), "chown nothing": lambda: os.chown("d/f", -1, -1),
    "utime": lambda: os.utime("d/f", (5, 5)), "setxattr": lambda: os.setxattr("d/f", "user.n", b"v"), "removexattr": lambda: os.removexattr("d/f", "user.x"),
    "truncate": lambda: os.truncate("d/f", 3), "write": lambda: write("d/f", b"1", "r+b"),
    "write nothing": lambda: write("d/f", b"", "r+b"), "append": lambda: write("d/f", b"1", "ab"), "open to truncate": lambda: write("d/f", b""),
    "open to truncate an empty one": lambda: write("d/h", b""), "read": lambda: read("d/f"), "list": lambda: os.listdir("d"), "readlink": lambda: os.readlink("d/l"),
    "failed create": lambda: see(os.mkdir, "d/f"), "failed rename": lambda: see(os.rename, "d/f", "d/s"), "failed rmdir": lambda: see(os.rmdir, "d"),
    "lchown of a link": lambda: os.lchown("d/l", 3, 4), "chmod of a dir": lambda: os.chmod("d", 0o700), "setxattr of a dir": lambda: os.setxattr("d", "user.n", b"v"),
    "fifo chmod": lambda: os.chmod("d/p", 0o600), "rename a link": lambda: os.rename("d/l", "d/new"), "link a link": lambda: os.link("d/l", "d/new", follow_symlinks=False),
}


@pytest.mark.parametrize("what", CHANGES)
def test_times_and_link_counts(twins, what):
    """One change; which mtimes and ctimes moved and which link counts changed, on everything near it."""
    import time

    def script(at):
        for d in ("d/s", "e/s"):
            os.makedirs(d)
        for f in ("d/f", "d/h0", "e/g"):
            write(f, b"content")
        os.setxattr("d/f", "user.x", b"v")
        os.link("d/h0", "d/h")
        os.symlink("f", "d/l")
        os.mkfifo("d/p")
        near = ["d", "e", "d/f", "d/h0", "d/h", "d/l", "d/p", "d/s", "e/g", "e/s", "d/new", "e/new"]
        fds = {p: os.open(p, os.O_PATH | os.O_NOFOLLOW) for p in near if os.path.lexists(p)}  # what is removed is still looked at
        for p in fds:
            os.utime(p, ns=(10**17, 10**17), follow_symlinks=False)
        before = {p: os.fstat(fd) for p, fd in fds.items()}
        time.sleep(0.012)
        CHANGES[what]()
        out = {}
        for p, fd in fds.items():
            st = os.fstat(fd)
            mtime = st.st_mtime_ns if st.st_mtime_ns < 10**18 else "now"
            removed = stat.S_ISDIR(st.st_mode) and st.st_nlink == 0  # its mtime is nobody's business any more
            out[p] = (st.st_nlink, removed or mtime, st.st_ctime_ns > before[p].st_ctime_ns)
            os.close(fd)
        assert all(os.lstat(p).st_ctime_ns > before["d"].st_ctime_ns for p in ("d/new", "e/new") if os.path.lexists(p))
        return out
    twins.same(script)


# ---- special files ----

def test_special_files(twins):
    """What is made, by whom, and what opening it gives on a mount without devices."""
    from posix_diff import user

    def script(at):
        out = []
        for who in ("root", "alice"):
            for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, 0, stat.S_IFDIR, stat.S_IFLNK):
                for dev in (0, os.makedev(1, 3), os.makedev(4095, 1048575)):
                    name = f"{who}-{kind:o}-{dev}"
                    with user(who):
                        out.append((name, see(os.mknod, name, kind | 0o666, dev)))
                    if os.path.lexists(name):
                        st = os.lstat(name)
                        out.append((stat.S_IFMT(st.st_mode), st.st_rdev, st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode), see(os.getxattr, name, "system.posix_acl_access")))
                        with user("bob"):
                            out.append((see(os.access, name, os.R_OK), see(os.access, name, os.W_OK)))
        return out
    assert "EPERM" in {a[1] for a in twins.same(script)}


def test_devices_do_not_open(fs, d):
    """nodev: a device node on the mount is a name and no device."""
    null = os.path.join(d, "null")
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert see(os.open, null, os.O_RDONLY) == "EACCES"


def test_sockets_and_fifos_work(d):
    path = os.path.join(d, "s")
    fd = os.open(d, os.O_PATH)
    name = f"/proc/self/fd/{fd}/s"
    a, b = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.bind(name)
    b.sendto(b"datagram", name)
    assert a.recv(100) == b"datagram"
    assert see(socket.socket(socket.AF_UNIX).bind, name) == "EADDRINUSE"
    os.rename(path, path + "2")
    b.sendto(b"moved", name + "2")
    assert a.recv(100) == b"moved"
    a.close()
    assert see(b.sendto, b"x", name + "2") == "ECONNREFUSED"
    os.close(fd)
    os.mkfifo(path + "p")
    assert see(os.open, path + "p", os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"
    r = os.open(path + "p", os.O_RDONLY | os.O_NONBLOCK)
    w = os.open(path + "p", os.O_WRONLY)
    os.unlink(path + "p")
    os.write(w, b"still")
    assert os.read(r, 10) == b"still"
    os.close(w)
    assert os.read(r, 10) == b""
    os.close(r)


# ---- files without a name, files whose name is gone ----

def tmpfile(directory, flags=os.O_RDWR, mode=0o640):
    return os.open(directory, os.O_TMPFILE | flags, mode)


def name_it(fd, path):
    check(LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(path), 0x400))


def test_files_without_a_name(fs, twins):
    def script(at):
        fd = tmpfile(at)
        out = [os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode), os.listdir(at), os.write(fd, b"x" * 10_000), os.fstat(fd).st_size, os.pread(fd, 3, 9_000)]
        os.setxattr(fd, "user.a", b"b")
        os.ftruncate(fd, 9_500)
        os.fchmod(fd, 0o604)
        os.utime(fd, ns=(5, 7))
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        out += [os.getxattr(fd, "user.a"), os.pread(again, 10, 9_495), os.fstat(again).st_mtime_ns]
        name_it(fd, "named")
        out += [os.fstat(fd).st_nlink, os.listdir(at), len(read("named")), see(name_it, fd, "named")]
        os.pwrite(fd, b"yy", 9_499)
        os.fsync(fd)
        name_it(fd, "second" * 40)
        os.unlink("named")
        for f in (fd, again):
            os.close(f)
        never = tmpfile(at, os.O_RDWR | os.O_EXCL)
        out += [see(name_it, never, "never"), read("second" * 40)[9_490:], see(tmpfile, at, os.O_RDONLY), see(tmpfile, "missing"), see(tmpfile, "second" * 40)]
        os.close(never)
        return out
    twins.same(script)
    fs.remount()
    (name,) = os.listdir(twins.ours)
    assert read(os.path.join(twins.ours, name))[-13:] == b"x" * 11 + b"yy" or len(read(os.path.join(twins.ours, name))) == 9_501


def test_many_files_without_names_leave_nothing(fs, d):
    """Neither in the store nor among the daemon's descriptors."""
    before = sum(1 for b, _, files in os.walk(fs.cipher) for _ in files)
    for i in range(300):
        fd = tmpfile(d)
        os.write(fd, b"gone with its descriptor")
        if i % 3 == 0:
            name_it(fd, os.path.join(d, str(i)))
        os.close(fd)
    assert len(os.listdir(d)) == 100
    assert len(os.listdir(f"/proc/{fs.process.pid}/fd")) < 200
    assert all(read(os.path.join(d, n)) == b"gone with its descriptor" for n in os.listdir(d))
    for n in os.listdir(d):
        os.unlink(os.path.join(d, n))
    assert sum(1 for b, _, files in os.walk(fs.cipher) for _ in files) == before


def test_birth_times(fs, d):
    """statx tells when an object was made; the backing knows."""
    def born(path):
        text = run("stat", "-c", "%W", path).stdout
        return int(text)
    import time
    for n in ("f", "d", "l", "p"):
        {"f": lambda p: write(p, b"x"), "d": os.mkdir, "l": lambda p: os.symlink("x", p), "p": os.mkfifo}[n](os.path.join(d, n))
    if not born(write(os.path.join(os.path.dirname(fs.cipher), "probe"))):
        pytest.skip("the backing keeps no birth times")
    now = time.time()
    times = {n: born(os.path.join(d, n)) for n in "fdlp"}
    assert all(now - 60 < t <= now + 1 for t in times.values())
    os.utime(os.path.join(d, "f"), (1, 1))
    fs.remount()
    assert {n: born(os.path.join(d, n)) for n in "fdlp"} == times
    assert born(fs.plain) > 0


@pytest.mark.parametrize("synced", ["before", "after"])
def test_a_name_for_synced_content(make_mount, shared_devkms, synced):
    """write, fsync and linkat in either order: after a crash of the daemon the name leads to the whole content."""
    m = make_mount("m", shared_devkms, probe="10s", lease="30s").mount()
    fd = tmpfile(m.plain)
    os.write(fd, b"promised" * 5_000)
    if synced == "before":
        os.fsync(fd)
    name_it(fd, m.path("f"))
    if synced == "after":
        os.fsync(fd)
    m.kill()
    see(os.close, fd)
    m.clear_dead()
    m.mount()
    assert read(m.path("f")) == b"promised" * 5_000
