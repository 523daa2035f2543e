"""What the POSIX tests share: mounts of every kind, other users, system calls Python has no name for."""
import contextlib
import ctypes
import errno
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from conftest import LIBC, Devkms, Mount, wait_until

BIG = os.environ.get("BYOKFS_BIG") == "1"
REFERENCE = os.environ.get("BYOKFS_TEST_REFERENCE")  # a directory: run the tests on it instead, to test the tests

# Every choice that changes bytes on disk or the way the kernel talks to us.
VARIANTS = {
    "default": {},
    "writethrough": {"options": ["mount.writeback=off"]},
    "domain": {"init": ["--seal=domain"]},
    "suite2": {"init": ["--suite=2"]},
    "siv32": {"init": ["--names=siv32"]},
    "plain": {"init": ["--plain-names"]},
}
BOTH = ["default", "writethrough"]

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE, INSERT_RANGE = 1, 2, 8, 16, 32
AT_FDCWD, AT_EMPTY_PATH, AT_SYMLINK_FOLLOW = -100, 0x1000, 0x400
ALICE, BOB, SHARED = 1001, 1002, 2001


class Reference:
    """A directory that looks like a mount."""

    def __init__(self, base):
        self.plain = str(base)
        self.cipher = None

    def path(self, *names):
        return os.path.join(self.plain, *names)

    def remount(self, *options):
        return self

    def close(self):
        pass


def deleted_but_held(pid):
    """Descriptors of the daemon that keep removed objects alive."""
    out = []
    for n in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.stat(f"/proc/{pid}/fd/{n}").st_nlink == 0:
                out.append(os.readlink(f"/proc/{pid}/fd/{n}"))
        except FileNotFoundError:
            pass
    return [p for p in out if p.startswith("/") and not p.startswith(("/memfd:", "/dev/"))]


@contextlib.contextmanager
def mounted(variant="default", kms=None, **more):
    """A mount that must end clean: exit code 0 and nothing in the log that should not be there.

    Not below pytest's own directory, which other users may not enter."""
    base = tempfile.mkdtemp(prefix="byokfs-posix-", dir=REFERENCE)
    os.chmod(base, 0o755)
    if REFERENCE:
        yield Reference(base)
        shutil.rmtree(base)
        return
    own = None if kms else Devkms(os.path.join(base, "kms"))
    m = None
    try:
        m = Mount(os.path.join(base, "m"), kms or own, probe="10s", lease="30s", **{**VARIANTS[variant], **more})
        m.options.append("log.level=warn")
        m.mount()
        yield m
        wait_until(lambda: not deleted_but_held(m.process.pid), 15)
        m.umount()
        bad = [line for line in m.read_log().splitlines() if line.strip()]
        assert not bad, "\n".join(bad)
    finally:
        if m:
            m.close()
        if own:
            own.stop()
        shutil.rmtree(base, ignore_errors=True)


def variant_fixture(names):
    """A module's mount, once for each variant."""

    @pytest.fixture(scope="module", params=names)
    def fs(request):
        with mounted(request.param) as m:
            yield m

    return fs


@pytest.fixture
def d(fs, request):
    """A fresh directory on the module's mount, world-writable."""
    n = 0
    while True:
        path = fs.path(f"t{n}")
        try:
            os.mkdir(path)
            break
        except FileExistsError:
            n += 1
    os.chmod(path, 0o777)
    return path


def check(r):
    if r < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return r


def raises(code, fn, *args, **kw):
    """fn fails with exactly this errno (or one of several)."""
    codes = code if isinstance(code, tuple) else (code,)
    with pytest.raises(OSError) as info:
        fn(*args, **kw)
    got = info.value.errno
    assert got in codes, f"{errno.errorcode.get(got, got)}, not {[errno.errorcode[c] for c in codes]}"


def renameat2(a, b, flags):
    return check(LIBC.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), flags))


def fallocate(fd, mode, off, length):
    LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    return check(LIBC.fallocate(fd, mode, off, length))


def write(path, data=b"", mode="wb"):
    with open(path, mode) as f:
        f.write(data)
    return path


def read(path):
    with open(path, "rb") as f:
        return f.read()


def as_user(uid, fn, groups=(), gid=None, umask=0o022, namespace=None):
    """Runs fn in a child with this user's credentials (and in this mount namespace); its value or exception comes back."""
    import pickle
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        try:
            if namespace:
                fd = os.open(namespace, os.O_RDONLY)
                check(LIBC.setns(fd, 0x20000))
                os.close(fd)
            os.setgroups(list(groups))
            os.setresgid(*[gid if gid is not None else uid] * 3)
            os.setresuid(uid, uid, uid)
            os.umask(umask)
            answer = (True, fn())
        except BaseException as e:  # noqa: B902 - everything goes to the parent
            answer = (False, e)
        try:
            text = pickle.dumps(answer)
        except Exception:
            text = pickle.dumps((False, RuntimeError(repr(answer[1]))))
        with os.fdopen(w, "wb") as f:
            f.write(text)
        os._exit(0)
    os.close(w)
    with os.fdopen(r, "rb") as f:
        text = f.read()
    os.waitpid(pid, 0)
    ok, value = pickle.loads(text)
    if not ok:
        raise value
    return value


def denied(uid, fn, groups=(), code=(errno.EACCES,), **kw):
    raises(code, as_user, uid, fn, groups, **kw)


def run(*args, check=True, timeout=300, **kw):
    kw.setdefault("capture_output", True)
    kw.setdefault("text", True)
    r = subprocess.run(list(map(os.fspath, args)), timeout=timeout, **kw)
    if check:
        assert r.returncode == 0, f"{args}: {r.returncode}\n{r.stdout}\n{r.stderr}"
    return r


def compile_c(directory, name, *flags):
    """tests/mount/c/<name>.c as a program in `directory`."""
    source = os.path.join(os.path.dirname(__file__), "c", name + ".c")
    program = os.path.join(str(directory), name)
    if not os.path.exists(program):
        run("cc", "-O1", "-g", "-Wall", "-Wextra", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", source, "-o", program, *flags)
    return program


def snapshot(root, content=True, ino=False):
    """Everything about a tree that a copy should keep; hard links by the first name of their group."""
    import hashlib
    out, first = {}, {}
    for base, dirs, files in os.walk(os.fsencode(root)):
        dirs.sort()
        for name in [b"", *sorted(files + [n for n in dirs if os.path.islink(os.path.join(base, n))])]:
            path = os.path.join(base, name) if name else base
            st = os.lstat(path)
            key = os.path.relpath(path, os.fsencode(root))
            what = [st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_rdev]
            if os.path.islink(path):
                what.append(os.readlink(path))
            elif os.path.isfile(path):
                what += [st.st_size, st.st_nlink]
                if st.st_nlink > 1:
                    what.append(first.setdefault((st.st_dev, st.st_ino), key))
                if content:
                    with open(path, "rb") as f:
                        what.append(hashlib.sha256(f.read()).hexdigest())
            if ino:
                what.append(st.st_ino)
            out[key] = tuple(what)
    return out


def python(code, *args, **kw):
    return run(sys.executable, "-c", code, *args, **kw)
