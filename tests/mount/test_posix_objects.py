"""What hangs on an object: ACLs, attributes, streams over directories, descriptors of what is gone, file handles, notifications."""
import ctypes
import itertools
import mmap
import os
import struct

import pytest

from conftest import LIBC
from posix_diff import ACCESS, DEFAULT, G, GROUP, MASK, OTHER, OTHERS, U, USER, WHO, acl, as_who, beside, mode, owner, see, twins
from posix_tools import ALICE, AT_FDCWD, BIG, BOB, REFERENCE, SHARED, check, compile_c, d, read, run, variant_fixture, write

fs = variant_fixture(["default"])
__all__ = ["beside", "d", "twins"]
pytestmark = pytest.mark.skipif(bool(REFERENCE) or os.geteuid() != 0, reason="compares with the backing, as several users")

# ---- ACLs ----

LISTS = [
    acl((U, 6), (USER, 4, ALICE), (G, 0), (MASK, 4), (OTHER, 0)), acl((U, 6), (USER, 7, ALICE), (G, 7), (MASK, 2), (OTHER, 0)),
    acl((U, 0), (USER, 7, 0), (G, 5), (GROUP, 6, SHARED), (MASK, 7), (OTHER, 0)), acl((U, 7), (G, 4), (GROUP, 0, SHARED), (GROUP, 7, OTHERS), (MASK, 7), (OTHER, 7)),
    acl((U, 7), (USER, 0, ALICE), (USER, 1, BOB), (G, 7), (MASK, 7), (OTHER, 7)), acl((U, 7), (G, 5), (OTHER, 1)), acl((U, 7), (G, 7), (MASK, 0), (OTHER, 0)),
    acl((U, 7), (USER, 6, BOB), (G, 2), (GROUP, 4, 0), (GROUP, 5, SHARED), (MASK, 6), (OTHER, 4)),
]
BAD_LISTS = [b"", b"\2\0\0\0", b"\1\0\0\0" + LISTS[0][4:], LISTS[0][:-1], LISTS[0] + b"\0" * 8, acl((U, 6), (G, 4)), acl((U, 6), (USER, 4, 5), (G, 4), (OTHER, 4)),
             acl((G, 4), (U, 6), (OTHER, 4)), acl((U, 6), (USER, 4, 6), (USER, 4, 5), (G, 4), (MASK, 7), (OTHER, 4)), acl((U, 6), (USER, 4, 5), (USER, 4, 5), (G, 4), (MASK, 7), (OTHER, 4)),
             acl((U, 8), (G, 4), (OTHER, 4)), acl((U, 6), (G, 4), (OTHER, 4), (99, 4)), acl((U, 6), (USER, 4, 0xFFFFFFFF), (G, 4), (MASK, 7), (OTHER, 4)),
             acl((U, 6), (U, 6), (G, 4), (OTHER, 4)), acl((U, 6), (G, 4), (MASK, 4), (MASK, 4), (OTHER, 4))]


def put(kind, path, bits=0o666):
    {"file": lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, bits)), "dir": lambda: os.mkdir(path, bits | 0o111), "fifo": lambda: os.mkfifo(path, bits),
     "link": lambda: os.symlink("x", path), "socket": lambda: os.mknod(path, 0o140000 | bits), "device": lambda: os.mknod(path, 0o020000 | bits, os.makedev(1, 3))}[kind]()


KINDS = ["file", "dir", "fifo", "socket", "device"]


@pytest.mark.parametrize("kind", KINDS)
def test_access_lists_are_enforced(twins, kind):
    """Every list, for every user, before and after chmod and removal: who may what, the mode, the list itself."""
    def script(at):
        out = []
        for n, (value, bits) in enumerate(itertools.product(LISTS, (None, 0o640, 0o007, 0o2770, 0))):
            p = str(n)
            put(kind, p)
            os.chown(p, BOB if n % 2 else ALICE, SHARED if n % 3 else OTHERS)
            for step in (lambda: os.setxattr(p, ACCESS, value), lambda: bits is not None and os.chmod(p, bits), lambda: os.removexattr(p, ACCESS)):
                out.append(see(step))
                out.append((oct(mode(p)), see(os.getxattr, p, ACCESS), see(os.listxattr, p)))
                out.append([[as_who(w, os.access, p, m) for m in (1, 2, 4)] for w in WHO])
                out.append([as_who(w, os.setxattr, p, ACCESS, LISTS[0]) for w in ("bob", "carol") if w != "bob" or n % 2 == 0])
        return out
    twins.same(script)


def test_default_lists_are_inherited(twins):
    """By everything that can be made, under any umask; directories pass them on."""
    def script(at):
        out = []
        for n, (value, umask, bits, who) in enumerate(itertools.product(LISTS, (0, 0o077), (0o666, 0o600, 0o6070), ("root", "carol"))):
            top = str(n)
            os.mkdir(top)
            os.chown(top, 0, SHARED)
            os.chmod(top, 0o2777 if n % 2 else 0o777)
            os.setxattr(top, DEFAULT, value)
            for kind in (*KINDS, "link"):
                out.append(as_who(who, put, kind, f"{top}/{kind}", bits, umask=umask))
                p = f"{top}/{kind}"
                if os.path.lexists(p) and kind != "link":
                    out.append((kind, oct(mode(p)), owner(p), see(os.getxattr, p, ACCESS), see(os.getxattr, p, DEFAULT)))
            with_ = f"{top}/dir"
            out.append(as_who("root", put, "dir", f"{with_}/deeper", umask=umask) and see(os.getxattr, f"{with_}/deeper", DEFAULT))
            os.removexattr(top, DEFAULT)
            out.append(as_who(who, put, "file", f"{top}/after", bits, umask=umask) and oct(mode(top)))
        return out
    twins.same(script)


def test_bad_lists(twins):
    def script(at):
        out = []
        for kind in (*KINDS, "link"):
            put(kind, kind)
            for value, which, flags in itertools.product(BAD_LISTS + LISTS[:2], (ACCESS, DEFAULT), (0, os.XATTR_CREATE, os.XATTR_REPLACE)):
                out.append((kind, value, which, flags, see(os.setxattr, kind, which, value, flags, follow_symlinks=False)))
            out += [see(os.removexattr, kind, which, follow_symlinks=False) for which in (ACCESS, DEFAULT, ACCESS, DEFAULT, "system.other")]
            out += [see(os.getxattr, kind, which, follow_symlinks=False) for which in (ACCESS, DEFAULT)]
        return out
    twins.same(script)


def test_long_lists(twins):
    """As many named users as a page of the kernel's holds."""
    def script(at):
        write("f")
        os.mkdir("d")
        big = acl((U, 6), *[(USER, 4, 5000 + i) for i in range(100)], (G, 4), (MASK, 6), (OTHER, 0))
        out = [see(os.setxattr, "f", ACCESS, big), see(os.setxattr, "d", DEFAULT, big)]
        put("file", "d/new")
        return out + [os.getxattr("d/new", ACCESS), as_who(5050, read, "f"), as_who(5100, read, "f")]
    twins.same(script)


# ---- attributes ----

def sizes(path, name):
    """getxattr(2) and listxattr(2) with buffers that fit, do not, and of no size."""
    p, out = os.fsencode(path), []
    for size in (0, 1, 4, 5, 6, 100):
        buf = ctypes.create_string_buffer(size or 1)
        out.append(see(lambda: check(LIBC.getxattr(p, name, buf if size else None, ctypes.c_size_t(size)))))
        out.append(see(lambda: check(LIBC.listxattr(p, buf if size else None, ctypes.c_size_t(size)))))
    return out


def test_attribute_rules(twins):
    """Flags, sizes, name spaces, on files and directories by several users; refusals on links and special files."""
    def script(at):
        out = []
        os.mkdir("sticky")
        os.chmod("sticky", 0o1777)
        for p in ("f", "dir"):
            put(p.replace("f", "file"), p) if p == "f" else os.mkdir(p)
            os.chown(p, ALICE, ALICE)
            os.chmod(p, 0o744)
            for who, name, flags in itertools.product(WHO, ("user.a", "trusted.a", "security.a", "system.a", "user.", "user", "", "other.a", "user." + "n" * 250, "user." + "n" * 251),
                                                      (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, 0, 3, 4)):
                if len(name) != 255:
                    out.append((p, who, name, flags, as_who(who, os.setxattr, p, name, b"12345", flags)))
            out += [as_who(w, os.listxattr, p) and sorted(as_who(w, os.listxattr, p)) for w in ("root", "alice")]
            out += [as_who(w, os.getxattr, p, n) for w in WHO for n in ("user.a", "security.a", "user.none")]
            out += sizes(p, b"user.a")[::2]
            os.removexattr(p, "trusted.a")
            os.removexattr(p, "security.a")
            out += sizes(p, b"user.a")
            out += [as_who(w, os.removexattr, p, "user.a") for w in ("carol", "alice", "alice")]
        out.append(as_who("bob", os.setxattr, "sticky", "user.a", b""))
        for kind in ("fifo", "link", "socket", "device"):
            put(kind, kind)
            out += [see(os.setxattr, kind, "user.a", b"", follow_symlinks=False), see(os.getxattr, kind, "user.a", follow_symlinks=False), see(os.listxattr, kind, follow_symlinks=False)]
        return out
    twins.same(script)


# ---- directories ----

def test_positions_in_a_large_directory(fs, d, tmp_path):
    """Links to one file, so that no key is needed for each; positions stay good while names come and go."""
    n = 200_000 if BIG else 20_000
    at = os.path.join(d, "many")
    os.mkdir(at)
    here = os.open(at, os.O_RDONLY)
    for i in range(n // 1000):
        os.close(os.open(f"base{i}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        for j in range(999):
            os.link(f"base{i}", f"name-{i}-{j}", src_dir_fd=here, dst_dir_fd=here)
    os.close(here)
    assert len(set(os.listdir(at))) == n
    run(compile_c(tmp_path, "telldir"), at, str(n))
    run("find", at, "-name", "name-*", "-delete")
    assert len(os.listdir(at)) == n // 1000 + 500  # telldir.c made some of its own


# ---- gone, but held ----

def test_all_calls_on_what_is_gone(twins):
    """Every call that takes a descriptor, on a removed file, its /proc name, and a removed directory."""
    def script(at):
        write("f", b"0123456789" * 1000)
        os.setxattr("f", "user.k", b"v")
        os.setxattr("f", ACCESS, LISTS[0])
        os.link("f", "g")
        fd = os.open("f", os.O_RDWR)
        os.unlink("f")
        os.unlink("g")
        proc = f"/proc/self/fd/{fd}"
        out = [os.fstat(fd).st_nlink, see(os.pread, fd, 5, 9_995), see(os.pwrite, fd, b"tail", 10_000), see(os.ftruncate, fd, 20_000), see(os.fsync, fd), see(os.fdatasync, fd),
               see(os.fchmod, fd, 0o6711), see(os.fchown, fd, ALICE, BOB), see(os.utime, fd, (1, 2)), see(os.getxattr, fd, "user.k"), see(os.setxattr, fd, "user.n", b"w"),
               sorted(see(os.listxattr, fd)), see(os.removexattr, fd, "user.k"), see(os.getxattr, fd, ACCESS), see(os.setxattr, fd, ACCESS, LISTS[5]), see(os.posix_fallocate, fd, 0, 30_000),
               see(os.lseek, fd, 0, os.SEEK_END), see(read, proc) == b"", len(read(proc)), see(os.truncate, proc, 100), see(os.chmod, proc, 0o600), see(os.stat, proc).st_size,
               see(os.getxattr, proc, "user.n"), see(os.link, proc, "back", follow_symlinks=True), see(os.rename, "f", "x"), see(os.sendfile, 1, fd, 0, 0), see(os.copy_file_range, fd, fd, 5, 0, 50)]
        with mmap.mmap(fd, 100) as m:
            m[0:3] = b"map"
            m.flush()
            out.append(os.pread(fd, 5, 0))
        with open(proc, "r+b") as again:
            again.write(b"by another descriptor")
        out.append(os.pread(fd, 21, 0))
        write("f", b"a new one")
        out += [os.pread(fd, 5, 0), read("f"), oct(os.fstat(fd).st_mode), os.fstat(fd).st_uid]
        os.close(fd)
        return out
    twins.same(script)


def test_a_removed_working_directory(twins):
    def script(at):
        os.makedirs("a/b")
        fd = os.open("a/b", os.O_RDONLY)
        os.chdir("a/b")
        os.setxattr(".", "user.k", b"v")
        os.rmdir("../b")
        tries = [lambda: os.listdir("."), lambda: os.listdir(fd), lambda: write("x"), lambda: os.mkdir("x"), lambda: os.symlink("a", "x"), lambda: os.mkfifo("x"), lambda: os.stat("."),
                 lambda: os.stat("..").st_nlink, lambda: os.stat("../b"), lambda: os.chdir("."), lambda: os.getcwd(), lambda: os.rename("x", "y"), lambda: os.link("/etc/hosts", "x"),
                 lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR)), lambda: os.fchmod(fd, 0o700), lambda: os.fchown(fd, ALICE, BOB), lambda: os.fsync(fd), lambda: os.utime(fd, (1, 2)),
                 lambda: os.access(".", os.W_OK), lambda: os.close(os.open("..", os.O_RDONLY | os.O_DIRECTORY)), lambda: os.rmdir("."), lambda: os.mkdir("../b/c"), lambda: os.statvfs(".").f_namemax]
        out = [a if isinstance(a, (str, int, list)) else type(a).__name__ for a in (see(t) for t in tries)]
        out.append((os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode)))
        os.close(fd)
        os.chdir(at)
        return out
    twins.same(script)


# ---- handles ----

class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]


def test_file_handles(fs, d):
    """Good for as long as the kernel knows the object, and never for another one."""
    f = write(os.path.join(d, "f"), b"by handle")
    h, mount_id = Handle(128), ctypes.c_int()
    check(LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(f), ctypes.byref(h), ctypes.byref(mount_id), 0))
    root = os.open(fs.plain, os.O_RDONLY)
    fd = check(LIBC.open_by_handle_at(root, ctypes.byref(h), os.O_RDONLY))
    assert os.read(fd, 20) == b"by handle" and os.fstat(fd).st_ino == os.stat(f).st_ino
    os.close(fd)
    os.unlink(f)
    for i in range(50):
        write(os.path.join(d, str(i)), b"another")
    assert see(lambda: check(LIBC.open_by_handle_at(root, ctypes.byref(h), os.O_RDONLY))) == "ESTALE"
    os.close(root)


# ---- notifications ----

def test_inotify(twins):
    """The same events in the same order as on the backing."""
    def script(at):
        os.mkdir("d")
        fd = check(LIBC.inotify_init1(os.O_NONBLOCK))
        check(LIBC.inotify_add_watch(fd, b"d", 0xFFF))
        write("d/f", b"x")
        read("d/f")
        os.chmod("d/f", 0o600)
        os.rename("d/f", "d/g")
        os.link("d/g", "d/h")
        os.unlink("d/g")
        os.mkdir("d/s")
        os.rmdir("d/s")
        os.utime("d/h")
        os.setxattr("d/h", "user.a", b"")
        os.truncate("d/h", 0)
        data, out = os.read(fd, 65536), []
        while data:
            _, mask, _, n = struct.unpack_from("iIII", data)
            out.append((hex(mask), data[16:16 + n].rstrip(b"\0")))
            data = data[16 + n:]
        os.close(fd)
        return out
    assert len(twins.same(script)) > 15


def test_statfs(fs, d):
    st = os.statvfs(d)
    assert st.f_namemax == 255 and st.f_flag & os.ST_NOSUID and st.f_flag & os.ST_NODEV and st.f_fsid == os.statvfs(fs.plain).f_fsid


# ---- long links ----

def test_a_long_link_needs_its_rest(make_mount, shared_devkms):
    """What does not fit into the symlink is an attribute of it; without that the link is damaged, and says so."""
    m = make_mount("m", shared_devkms, probe="10s", lease="30s").mount()
    os.symlink("x" * 4095, m.path("l"))
    (backing,) = [os.path.join(m.cipher, n) for n in os.listdir(m.cipher) if not n.startswith(".byokfs")]
    m.umount()
    rest = os.getxattr(backing, "trusted.byokfs.link", follow_symlinks=False)
    assert m.ctl("check", "-c", m.ini, m.cipher).returncode == 0
    for bad in (rest[:-1], bytes([rest[0] ^ 1]) + rest[1:], None):
        os.removexattr(backing, "trusted.byokfs.link", follow_symlinks=False)
        if bad:
            os.setxattr(backing, "trusted.byokfs.link", bad, follow_symlinks=False)
        r = m.ctl("check", "--data", "-c", m.ini, m.cipher)
        assert r.returncode == 7 and "symlink" in r.stdout + r.stderr
        m.mount()
        assert see(os.readlink, m.path("l")) == "EIO"
        os.lstat(m.path("l"))
        if bad:
            m.umount()
    os.unlink(m.path("l"))
    m.umount()
