"""Random calls by several users on the mount and on the filesystem below it: equal answers, equal trees."""
import os
import random
import stat

import pytest

from posix_diff import ACCESS, DEFAULT, G, GROUP, MASK, OTHER, OTHERS, U, USER, UTIME_NOW, UTIME_OMIT, WHO, acl, beside, look, see, twins, user, utimensat
from posix_tools import ALICE, BIG, BOB, REFERENCE, SHARED, renameat2, variant_fixture

fs = variant_fixture(["default", "writethrough"])
__all__ = ["beside", "twins"]
pytestmark = pytest.mark.skipif(bool(REFERENCE) or os.geteuid() != 0, reason="compares with the backing, as several users")

NAMES = ["a", "b", "c", "d/a", "d/b", "d/e/a", "d/e", "d", "x" * 255, "d/" + "y" * 200, "a/below"]
MODES = [0o777, 0o644, 0o600, 0o755, 0o4755, 0o2755, 0o6777, 0o1777, 0o2777, 0o000, 0o070, 0o2070, 0o2644]
OWNERS, GROUPS = [0, ALICE, BOB], [-1, 0, ALICE, BOB, SHARED, OTHERS]  # the kernel keeps chown(-1, -1) to itself
XATTRS = ["user.a", "user.b", "trusted.t", "security.s", "user." + "n" * 100]
TIMES = [((1, 2), (3, 4)), ((0, UTIME_OMIT), (5, 6)), ((7, 8), (0, UTIME_OMIT)), ((0, UTIME_OMIT), (0, UTIME_OMIT)), ((0, UTIME_NOW), (0, UTIME_NOW))]
OPENS = [a | b for a in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
         for b in (0, os.O_TRUNC, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC)]


def some_acl(rng):
    named = [(USER, rng.randrange(8), i) for i in sorted(rng.sample([ALICE, BOB, 1003], rng.randrange(3)))]
    groups = [(GROUP, rng.randrange(8), i) for i in sorted(rng.sample([SHARED, OTHERS], rng.randrange(3)))]
    mask = [(MASK, rng.randrange(8))] if named or groups or rng.random() < 0.3 else []
    return acl((U, rng.choice([7, 7, 6, rng.randrange(8)])), *named, (G, rng.randrange(8)), *groups, *mask, (OTHER, rng.randrange(8)))


def opened(path, flags, mode):
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))


def written(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def attributes(path):
    st = os.lstat(path)
    return stat.S_IFMT(st.st_mode), oct(stat.S_IMODE(st.st_mode)), st.st_uid, st.st_gid, st.st_nlink


def regular_xattr(fn, path, *args):
    """Special files and links have none of ours."""
    return fn(path, *args) if stat.S_IFMT(os.stat(path).st_mode) in (stat.S_IFREG, stat.S_IFDIR) else None


# How often, what, and with which arguments: each a list to choose from, or a function of the generator.
CALLS = [
    (6, opened, NAMES, OPENS, MODES),
    (6, os.mkdir, NAMES, MODES),
    (2, os.mkfifo, NAMES, MODES),
    (2, os.mknod, NAMES, [stat.S_IFREG | 0o644, stat.S_IFSOCK | 0o777, stat.S_IFREG | 0o6755]),
    (3, os.symlink, NAMES, NAMES),
    (4, lambda a, b: os.link(a, b, follow_symlinks=False), NAMES, NAMES),
    (3, os.unlink, NAMES),
    (3, os.rmdir, NAMES),
    (6, os.rename, NAMES, NAMES),
    (6, renameat2, NAMES, NAMES, [1, 2, 2]),
    (6, os.chmod, NAMES, MODES),
    (4, os.chown, NAMES, OWNERS, GROUPS),
    (3, os.chown, NAMES, [-1], GROUPS[1:]),
    (2, os.lchown, NAMES, OWNERS, GROUPS),
    (3, lambda p, t: utimensat(p, *t), NAMES, TIMES),
    (3, lambda *a: regular_xattr(os.setxattr, *a), NAMES, XATTRS, [b"", b"v", b"w" * 200], [0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
    (2, lambda *a: regular_xattr(os.removexattr, *a), NAMES, XATTRS),
    (2, lambda *a: regular_xattr(os.getxattr, *a), NAMES, XATTRS),
    (2, os.getxattr, NAMES, [ACCESS, DEFAULT]),
    (5, os.setxattr, NAMES, [ACCESS, DEFAULT], some_acl),
    (2, os.removexattr, NAMES, [ACCESS, DEFAULT]),
    (3, os.truncate, NAMES, [0, 1, 5000]),
    (3, written, NAMES, [b"", b"x", b"y" * 5000]),
    (4, os.access, NAMES, [os.R_OK, os.W_OK, os.X_OK, 7]),
    (2, os.readlink, NAMES),
    (4, attributes, NAMES),
    (2, lambda p: sorted(os.listdir(p)), NAMES),
]


def some_call(rng):
    _, fn, *choices = rng.choices(CALLS, [c[0] for c in CALLS])[0]
    return fn, [c(rng) if callable(c) else rng.choice(c) for c in choices]


def run_on(at, who, groups, umask, fn, args):
    os.chdir(at)
    try:
        with user(who, groups, umask):
            answer = see(fn, *args)
            return "ENOTEMPTY" if answer == "EEXIST" and fn is os.rename else answer  # POSIX allows both, and XFS says so
    finally:
        os.chdir("/")


@pytest.mark.parametrize("seed", range(20 if BIG else 3))
def test_random_calls(twins, seed):
    rng, done = random.Random(seed), []
    for i in range(20_000 if BIG else 2_500):
        who = rng.choice(["root", "alice", "alice", "bob", "carol"])
        umask = rng.choice([0, 0o022, 0o077])
        fn, args = some_call(rng)
        done.append(f"{i} {who} umask {umask:o} {getattr(fn, '__name__', fn)}{args}".replace("x" * 250, "X").replace("y" * 190, "Y")[:200])
        got = [run_on(at, who, WHO[who][2], umask, fn, args) for at in (twins.theirs, twins.ours)]
        assert got[0] == got[1], "\n".join(done[-12:])
        if i % 50 == 0:
            assert look(twins.ours) == look(twins.theirs), "\n".join(done[-60:])
