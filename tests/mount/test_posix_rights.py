"""Who may do what: every call by every user on objects of every owner and mode, compared with the filesystem below the store."""
import itertools
import os
import stat
import struct

import pytest

from conftest import LIBC
from posix_diff import AT_EACCESS, OTHERS, as_who, beside, fresh, mode, owner, see, twins, user, utimensat, WHO
from posix_tools import ALICE, AT_FDCWD, BOB, BOTH, REFERENCE, SHARED, check, d, fallocate, read, variant_fixture, write

fs = variant_fixture(BOTH[:1])  # test_posix_random.py does such things in both modes
__all__ = ["beside", "d", "twins"]
pytestmark = pytest.mark.skipif(bool(REFERENCE) or os.geteuid() != 0, reason="compares with the backing, as several users")


def touched(path, flags, mode_=0o666):
    os.close(os.open(path, flags, mode_))


# What somebody may try below a directory d with a file f, a directory s with x in it, a link l and a FIFO p.
TRIES = {
    "list": lambda: sorted(os.listdir("d")), "search": lambda: os.stat("d/.").st_nlink, "stat": lambda: os.stat("d/f").st_size, "read": lambda: read("d/f"),
    "write": lambda: write("d/f", b"content", "r+b") and None, "trunc": lambda: touched("d/f", os.O_WRONLY | os.O_TRUNC), "truncate": lambda: os.truncate("d/f", 7),
    "create": lambda: touched("d/new", os.O_CREAT | os.O_WRONLY), "mkdir": lambda: os.mkdir("d/newd"), "symlink": lambda: os.symlink("x", "d/newl"),
    "fifo": lambda: os.mkfifo("d/newp"), "link": lambda: os.link("d/f", "d/newh"), "link out": lambda: os.link("d/f", "out/h"), "rename": lambda: os.rename("d/f", "d/g"),
    "rename out": lambda: os.rename("d/f", "out/g"), "rename in": lambda: os.rename("out/mine", "d/in"), "rename over": lambda: os.rename("d/f", "d/p"),
    "rename dir": lambda: os.rename("d/s", "d/t"), "rename dir out": lambda: os.rename("d/s", "out/t"), "unlink": lambda: os.unlink("d/f"), "rmdir": lambda: os.rmdir("d/s"),
    "readlink": lambda: os.readlink("d/l"), "chmod": lambda: os.chmod("d/f", 0o6755), "chmod dir": lambda: os.chmod("d", 0o2711), "chown": lambda: os.chown("d/f", BOB, -1),
    "chgrp own": lambda: os.chown("d/f", -1, ALICE), "chgrp shared": lambda: os.chown("d/f", -1, SHARED), "chgrp": lambda: os.chown("d/f", -1, OTHERS),
    "chown same": lambda: os.chown("d/f", ALICE, -1), "utime": lambda: os.utime("d/f", (1, 2)), "utime now": lambda: os.utime("d/f"), "xattr": lambda: os.setxattr("d/f", "user.x", b"1"),
    "getxattr": lambda: os.getxattr("d/f", "user.was"), "listxattr": lambda: os.listxattr("d/f"), "trusted": lambda: os.setxattr("d/f", "trusted.x", b"1"),
    "dir xattr": lambda: os.setxattr("d", "user.x", b"1"), "fifo": lambda: touched("d/p", os.O_RDONLY | os.O_NONBLOCK), "fifo rdwr": lambda: touched("d/p", os.O_RDWR | os.O_NONBLOCK),
    "access": lambda: [os.access(p, m) for p in ("d", "d/f", "d/s", "d/p", "d/s/x") for m in (0, 1, 2, 4, 7)], "exclusive": lambda: touched("d/f", os.O_CREAT | os.O_EXCL),
    "noatime": lambda: touched("d/f", os.O_RDONLY | os.O_NOATIME), "path": lambda: touched("d/f", os.O_PATH),
}
OWNERS = [(0, 0), (ALICE, ALICE), (BOB, SHARED), (0, OTHERS)]


def situation(dir_owner, dir_mode, file_owner, file_mode):
    os.makedirs("d/s")
    os.mkdir("out")
    os.chmod("out", 0o777)
    for f in ("d/f", "d/s/x", "out/mine"):
        write(f, b"content")
    os.setxattr("d/f", "user.was", b"here")
    os.symlink("f", "d/l")
    os.mkfifo("d/p")
    os.chown("out/mine", ALICE, ALICE)
    for p in ("d/f", "d/s", "d/p"):
        os.chown(p, *file_owner)
        os.chmod(p, file_mode)
    os.lchown("d/l", *file_owner)
    os.chown("d", *dir_owner)
    os.chmod("d", dir_mode)


@pytest.mark.parametrize("dir_mode", [0o777, 0o1775, 0o070, 0o2710], ids=oct)
def test_who_may_what(fs, beside, dir_mode):
    """Each try begins with a situation of its own, so that one success does not change the next."""
    from posix_diff import Twins, equal, look
    rows = list(itertools.product(OWNERS[:3], OWNERS, (0o644, 0o660, 0o4711, 0o2070)))
    for n, (who, (name, call)) in enumerate(itertools.product(WHO, TRIES.items())):
        if (n + dir_mode) % 2:
            continue  # in the next mode
        dir_owner, file_owner, file_mode = rows[(n * 7 + dir_mode) % len(rows)]
        t, got = Twins(fresh(fs.plain), fresh(beside)), []
        for at in (t.ours, t.theirs):
            os.chdir(at)
            try:
                situation(dir_owner, dir_mode, file_owner, file_mode)
                got.append((as_who(who, call), look(at)))
            finally:
                os.chdir("/")
        said = f"{who} {name} in {dir_mode:o} of {dir_owner}, on {file_mode:o} of {file_owner}"
        assert got[0][0] == got[1][0], said
        equal({said: got[0][1], **got[0][1]}, {said: got[1][1], **got[1][1]})


# ---- what is made belongs to whom ----

BORN = {"file": lambda p: touched(p, os.O_CREAT | os.O_WRONLY, 0o6777), "dir": lambda p: os.mkdir(p, 0o7777), "fifo": lambda p: os.mkfifo(p, 0o6777),
        "node": lambda p: os.mknod(p, stat.S_IFREG | 0o7777), "socket": lambda p: os.mknod(p, stat.S_IFSOCK | 0o777), "link": lambda p: os.symlink("x", p),
        "no execution": lambda p: touched(p, os.O_CREAT | os.O_WRONLY, 0o2666), "tmpfile": lambda p: from_tmpfile(os.path.dirname(p), p)}


def from_tmpfile(directory, path):
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o6777)
    try:
        check(LIBC.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(path), 0x400))
    finally:
        os.close(fd)


@pytest.mark.parametrize("what", BORN)
def test_owner_group_and_mode_of_what_is_made(twins, what):
    """By directories' owner and bits, the maker's groups (supplementary ones count), and umask."""
    def script(at):
        out = []
        for who, umask, dir_mode, dir_owner in itertools.product(WHO, (0, 0o027), (0o777, 0o2777, 0o3777, 0o770, 0o2770), ((0, SHARED), (ALICE, OTHERS), (BOB, 0))):
            d = f"{who}{umask:o}{dir_mode:o}{dir_owner[0]}"
            os.mkdir(d)
            os.chown(d, *dir_owner)
            os.chmod(d, dir_mode)
            got = as_who(who, BORN[what], d + "/new", umask=umask)
            out.append((d, got, os.path.lexists(d + "/new") and (oct(mode(d + "/new")), owner(d + "/new"))))
        return out
    assert {"ok", "EACCES"} <= {a[1] for a in twins.same(script)}


# ---- set-id bits ----

def changed(how):
    if how == "ftruncate":
        fd = os.open("f", os.O_RDWR)
        os.ftruncate(fd, 3)
        os.close(fd)
    elif how in ("fallocate", "punch", "zero"):
        fd = os.open("f", os.O_RDWR)
        fallocate(fd, {"fallocate": 0, "punch": 3, "zero": 16}[how], 0, 8192)
        os.close(fd)
    else:
        {"write": lambda: write("f", b"x", "r+b"), "append": lambda: write("f", b"x", "ab"), "truncate": lambda: os.truncate("f", 3), "trunc": lambda: write("f", b""),
         "nothing": lambda: write("f", b"", "r+b"), "chgrp": lambda: os.chown("f", -1, SHARED), "chown": lambda: os.chown("f", BOB, -1), "chmod": lambda: os.chmod("f", 0o6755),
         "same owner": lambda: os.chown("f", ALICE, -1), "utime": lambda: os.utime("f"), "xattr": lambda: os.setxattr("f", "user.a", b""), "link": lambda: os.link("f", "g"),
         "chmod without": lambda: os.chmod("f", 0o6644)}[how]()


@pytest.mark.parametrize("how", ["write", "append", "truncate", "ftruncate", "trunc", "nothing", "chgrp", "chown", "same owner", "chmod", "chmod without", "fallocate", "punch", "zero",
                                 "utime", "xattr", "link"])
def test_set_id_bits(twins, how):
    """Which of setuid and setgid are left after a change, by who makes it and whose the file is."""
    def script(at):
        out = []
        for n, (who, bits, group) in enumerate(itertools.product(WHO, (0o6777, 0o4777, 0o2777, 0o6766, 0o2766, 0o6666, 0o1777), (ALICE, SHARED, OTHERS))):
            os.mkdir(str(n))
            os.chdir(str(n))
            write("f", b"content" * 2000)
            os.chown("f", ALICE, group)
            os.chmod("f", bits)
            os.chmod(".", 0o777)
            got = as_who(who, changed, how)
            out.append((who, oct(bits), group, got, oct(mode("f"))))
            os.chdir("..")
        return out
    twins.same(script)


@pytest.mark.parametrize("kind", ["dir", "fifo", "socket"])
def test_set_id_bits_of_others(twins, kind):
    def script(at):
        out = []
        for n, (who, bits, group) in enumerate(itertools.product(WHO, (0o6777, 0o2777, 0o6766), (ALICE, SHARED, OTHERS))):
            for how in (lambda: os.chown("f", -1, SHARED), lambda: os.chown("f", ALICE, -1), lambda: os.chmod("f", 0o6711), lambda: os.utime("f")):
                p = f"f{n}"
                BORN[kind](p)
                os.chown(p, ALICE, group)
                os.chmod(p, bits)
                os.rename(p, "f")
                out.append((who, oct(bits), group, as_who(who, how), oct(mode("f"))))
                (os.rmdir if kind == "dir" else os.unlink)("f")
        return out
    twins.same(script)


def test_capabilities_of_a_program_go(twins):
    """security.capability does not outlive what changes the program or its owner, whoever does it."""
    cap = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)

    def script(at):
        out = []
        for n, (who, how) in enumerate(itertools.product(("root", "alice"), ("write", "append", "truncate", "ftruncate", "trunc", "chgrp", "same owner", "chmod", "utime", "xattr", "link"))):
            os.mkdir(str(n))
            os.chdir(str(n))
            os.chmod(".", 0o777)
            write("f", b"program")
            os.chown("f", ALICE, ALICE)
            os.setxattr("f", "security.capability", cap)
            out.append((who, how, as_who(who, changed, how), see(os.getxattr, "f", "security.capability")))
            os.chdir("..")
        return out
    twins.same(script)


# ---- root without its rights, and real against effective ----

def without(capabilities, fn, *args):
    """fn as root in a child that gave up these capabilities."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            header = struct.pack("<Ii", 0x20080522, 0)
            sets = bytearray(24)
            check(LIBC.capget(header, (CBuffer := __import__("ctypes").c_char * 24).from_buffer(sets)))
            words = list(struct.unpack("<6I", sets))
            for c in capabilities:
                for i in range(3):
                    words[3 * (c // 32) + i] &= ~(1 << c % 32)
            check(LIBC.capset(header, CBuffer.from_buffer(bytearray(struct.pack("<6I", *words)))))
            os.write(w, repr(see(fn, *args)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(w)
    with os.fdopen(r, "rb") as f:
        text = f.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    return text


CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID, CAP_MKNOD, CAP_SYS_ADMIN = 0, 1, 2, 3, 4, 27, 21


# What a capability can decide.
PRIVILEGED = ["list", "read", "write", "create", "link", "rename over", "unlink", "rmdir", "chmod", "chown", "chgrp", "utime", "utime now", "xattr", "trusted", "access", "noatime"]


@pytest.mark.parametrize("gone", [(CAP_DAC_OVERRIDE,), (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH), (CAP_FOWNER,), (CAP_CHOWN,), (CAP_MKNOD,), (CAP_SYS_ADMIN,)], ids=str)
def test_root_without_capabilities(twins, gone):
    """User 0 is nobody special: the capabilities are what counts."""
    def script(at):
        out = []
        for n, name in enumerate(PRIVILEGED):
            os.mkdir(str(n))
            os.chdir(str(n))
            situation((ALICE, ALICE), 0o1755 if n % 2 else 0o700, (BOB, BOB), 0o600)
            out.append((name, without(gone, TRIES[name])))
            os.chdir("..")
        out.append(without(gone, os.mknod, "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3)))
        return out
    twins.same(script)


def test_access_asks_for_the_real_user(twins):
    """access(2) and faccessat(2) with AT_EACCESS differ for a setuid program."""
    def script(at):
        write("f")
        os.chown("f", ALICE, ALICE)
        os.chmod("f", 0o600)
        out = []
        for real, effective in ((ALICE, BOB), (BOB, ALICE), (0, ALICE), (ALICE, 0), (0, BOB)):
            os.setresuid(real, effective, 0)
            try:
                out.append([os.access("f", os.R_OK), os.access("f", os.R_OK, effective_ids=True), see(read, "f")])
                out.append([see(lambda: check(LIBC.syscall(439, AT_FDCWD, b"f", m, AT_EACCESS))) for m in (1, 2, 4, 7)])
            finally:
                os.setresuid(0, 0, 0)
        return out
    twins.same(script)


# ---- utimensat ----

NS = [0, 1, 999_999_999, (1 << 30) - 1, (1 << 30) - 2, 1_000_000_000, -1]


def test_utimensat_by_whom(twins):
    """Nanoseconds, UTIME_NOW and UTIME_OMIT in every combination, by owner, by somebody who may write, by somebody who may not."""
    def script(at):
        out = []
        for who, bits, a, m in itertools.product(WHO, (0o644, 0o666, 0o444), NS, NS):
            write("f")
            os.chown("f", ALICE, ALICE)
            os.chmod("f", bits)
            os.utime("f", (5, 6))
            got = as_who(who, utimensat, "f", (100, a), (200, m))
            st = os.stat("f")
            out.append((who, oct(bits), a, m, got, *[t if t < 10**18 else "now" for t in (st.st_atime_ns, st.st_mtime_ns)]))
        return out
    assert {0, "EPERM", "EACCES", "EINVAL"} == {a[4] for a in twins.same(script)}


def test_far_times(twins):
    """Before 1970, after 2038 and past what the backing can keep."""
    def script(at):
        write("f")
        os.mkdir("d")
        os.symlink("x", "l")
        os.mkfifo("p")
        out = []
        for p in ("f", "d", "l", "p"):
            # The kernel keeps a file's mtime itself until it is forgotten, so what the backing cannot keep shows later.
            for s in (-1, -(1 << 31) + 1, 1 << 31, (1 << 32) + 5, 1 << 33, *([-(1 << 31) - 1, 1 << 34, 1 << 40] if p != "f" else [])):
                out.append((p, s, see(utimensat, p, (s, 1), (s, 999_999_999), 0x100), os.lstat(p).st_atime_ns, os.lstat(p).st_mtime_ns))
        return out
    twins.same(script)
