"""The same calls on the mount and on the directory below it: what they answer, and what they leave, must be equal.

`see` turns a call into something to compare, `user` makes calls as somebody else, `look` describes a tree."""
import contextlib
import ctypes
import errno
import os
import shutil
import stat
import struct
import tempfile

import pytest

from conftest import LIBC
from posix_tools import ALICE, AT_FDCWD, BOB, REFERENCE, SHARED, check

CAROL, OTHERS = 1003, 2002
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
U, USER, G, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_REMOVEDIR = 0x100, 0x200, 0x200
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

# Who calls: user, group, supplementary groups.
WHO = {"root": (0, 0, []), "alice": (ALICE, ALICE, [SHARED]), "bob": (BOB, BOB, [OTHERS]), "carol": (CAROL, SHARED, [])}


class Timespec(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("n", ctypes.c_long)]


def utimensat(path, a, m, flags=0, dir_fd=AT_FDCWD):
    return check(LIBC.utimensat(dir_fd, os.fsencode(path), (Timespec * 2)(Timespec(*a), Timespec(*m)), flags))


def acl(*entries):
    """acl((U, 7), (USER, 5, ALICE), ...) as the kernel wants it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", e[0], e[1], e[2] if len(e) > 2 else 0xFFFFFFFF) for e in entries)


def see(fn, *args, **kw):
    """What a call answers: its value, or the name of its errno."""
    try:
        value = fn(*args, **kw)
    except OSError as e:
        return errno.errorcode.get(e.errno, e.errno)
    return "ok" if value is None else value


@contextlib.contextmanager
def user(who, groups=None, umask=0o022):
    """The body runs with another user's credentials, real and effective, and so without capabilities."""
    uid, gid, supplementary = WHO[who] if isinstance(who, str) else (who, who, [])
    before = os.getgroups(), os.umask(umask)
    try:
        os.setgroups(supplementary if groups is None else groups)
        os.setresgid(gid, gid, 0)
        os.setresuid(uid, uid, 0)
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(before[0])
        os.umask(before[1])


def as_who(who, fn, *args, groups=None, umask=0o022, **kw):
    with user(who, groups, umask):
        return see(fn, *args, **kw)


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner(path):
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def attributes(path):
    """Extended attributes with their values."""
    names = see(os.listxattr, path, follow_symlinks=False)
    if not isinstance(names, list):
        return names
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in names if not n.startswith("trusted.SGI_ACL")}  # how XFS stores an ACL


def look(at):
    """A tree, without what may differ: inode numbers, times nobody set, sizes of directories."""
    out, first = {}, {}
    for base, dirs, files in os.walk(at):
        dirs.sort()
        for name in sorted(dirs + files) + ["."]:
            p = os.path.join(base, name)
            st = os.lstat(p)
            what = [stat.S_IFMT(st.st_mode), oct(stat.S_IMODE(st.st_mode)), st.st_uid, st.st_gid, st.st_nlink, st.st_rdev]
            key = os.path.relpath(p, at)
            what.append(first.setdefault(st.st_ino, key))
            if stat.S_ISLNK(st.st_mode):
                what.append(os.readlink(p))
            if not stat.S_ISDIR(st.st_mode):
                what.append(st.st_size)
            if not stat.S_ISLNK(st.st_mode):
                what.append(attributes(p))
            out[key] = what
    return out


def equal(ours, theirs):
    """Says where two answers differ, and not all that is the same."""
    if ours == theirs:
        return
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = [(k, ours.get(k), theirs.get(k)) for k in sorted({*ours, *theirs}, key=repr)]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(i, *p) for i, p in enumerate(zip(ours, theirs))]
    else:
        pairs = [("", ours, theirs)]
    raise AssertionError("\n".join(f"{k}: ours {a}, theirs {b}" for k, a, b in pairs if a != b)[:4000])


class Twins:
    """A directory on the mount and one on the backing filesystem, both open to everybody."""

    def __init__(self, ours, theirs):
        self.ours, self.theirs = ours, theirs

    def same(self, script, *args, **kw):
        """script(directory, ...) on both; its answers are compared, and ours come back."""
        got = {}
        for at in (self.theirs, self.ours):
            here = os.getcwd()
            os.chdir(at)
            try:
                got[at] = script(at, *args, **kw)
            finally:
                os.chdir(here)
        equal(got[self.ours], got[self.theirs])
        equal(look(self.ours), look(self.theirs))
        return got[self.ours]


def fresh(base):
    path = tempfile.mkdtemp(prefix="t", dir=base)
    os.chmod(path, 0o777)
    return path


@pytest.fixture(scope="module")
def beside():
    """A directory on the filesystem below the stores."""
    base = tempfile.mkdtemp(prefix="byokfs-oracle-", dir=REFERENCE)
    os.chmod(base, 0o755)
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def twins(fs, beside):
    return Twins(fresh(fs.plain), fresh(beside))
