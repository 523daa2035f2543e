"""Several users on one mount: who owns what is made, who may do what, which bits a write takes away."""
import errno
import os
import stat
import subprocess
import tempfile

import pytest

import conftest
from conftest import NAMESPACE, wait_until
from posix_tools import ALICE, BOB, BOTH, REFERENCE, SHARED, as_user, d, denied, raises, read, run, variant_fixture, write

fs = variant_fixture(BOTH)
__all__ = ["d"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
pytestmark = [needs_root, pytest.mark.ring]


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def owner(path):
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def everything(at):
    """One new object of every kind."""
    os.close(os.open(os.path.join(at, "file"), os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir(os.path.join(at, "dir"))
    os.symlink("file", os.path.join(at, "link"))
    os.mkfifo(os.path.join(at, "fifo"))
    os.mknod(os.path.join(at, "node"), stat.S_IFREG | 0o600)
    os.link(os.path.join(at, "file"), os.path.join(at, "hard"))


KINDS = ["file", "dir", "link", "fifo", "node", "hard"]


@pytest.mark.sanitizer
def test_new_objects_belong_to_their_maker(fs, d):
    as_user(ALICE, lambda: everything(d), gid=SHARED)
    for n in KINDS:
        assert owner(os.path.join(d, n)) == (ALICE, SHARED), n
    assert mode(os.path.join(d, "file")) == 0o644 and mode(os.path.join(d, "dir")) == 0o755
    fs.remount()
    assert owner(os.path.join(d, "file")) == (ALICE, SHARED)


@pytest.mark.sanitizer
def test_supplementary_groups_count(d):
    """A directory that only a secondary group may write to."""
    os.chown(d, 0, SHARED)
    os.chmod(d, 0o770)
    as_user(ALICE, lambda: everything(d), groups=[3001, SHARED, 3002])
    assert owner(os.path.join(d, "file")) == (ALICE, ALICE)
    denied(BOB, lambda: os.listdir(d))
    denied(BOB, lambda: os.open(os.path.join(d, "new"), os.O_CREAT | os.O_WRONLY))
    f = write(os.path.join(d, "shared"), b"x")
    os.chown(f, 0, SHARED)
    os.chmod(f, 0o060)
    assert as_user(BOB, lambda: read(f), groups=[SHARED]) == b"x"
    as_user(ALICE, lambda: os.chown(os.path.join(d, "file"), -1, SHARED), groups=[SHARED])
    assert owner(os.path.join(d, "file")) == (ALICE, SHARED)
    denied(ALICE, lambda: os.chown(os.path.join(d, "file"), -1, 3003), groups=[SHARED], code=errno.EPERM)


@pytest.mark.sanitizer
def test_setgid_directories(d):
    os.chown(d, 0, SHARED)
    os.chmod(d, 0o2777)
    as_user(ALICE, lambda: everything(d))
    for n in KINDS:
        assert owner(os.path.join(d, n)) == (ALICE, SHARED), n
    assert mode(os.path.join(d, "dir")) == 0o2755
    as_user(ALICE, lambda: os.mkdir(os.path.join(d, "dir", "deeper"), 0o700))
    assert owner(os.path.join(d, "dir", "deeper")) == (ALICE, SHARED) and mode(os.path.join(d, "dir", "deeper")) == 0o2700

    def set_id():
        for bits in (0o2755, 0o6755, 0o2644):
            os.close(os.open(os.path.join(d, f"g{bits:o}"), os.O_CREAT | os.O_WRONLY, bits))
    as_user(ALICE, set_id, umask=0)  # not a member of SHARED: may not make setgid executables for it
    assert [mode(os.path.join(d, f"g{b}")) for b in ("2755", "6755")] == [0o755, 0o4755]


def test_sticky(d):
    os.chmod(d, 0o1777)
    f = os.path.join(d, "f")
    as_user(ALICE, lambda: write(f, b"mine"))
    os.chmod(f, 0o666)
    denied(BOB, lambda: os.unlink(f), code=(errno.EPERM, errno.EACCES))
    denied(BOB, lambda: os.rename(f, f + "2"), code=(errno.EPERM, errno.EACCES))
    as_user(BOB, lambda: write(f + "b"))
    denied(BOB, lambda: os.rename(f + "b", f), code=(errno.EPERM, errno.EACCES))
    as_user(ALICE, lambda: os.rename(f, f + "2"))
    as_user(ALICE, lambda: os.unlink(f + "2"))


@pytest.mark.sanitizer
def test_permissions_are_enforced(d):
    os.chmod(d, 0o755)
    f, s = write(os.path.join(d, "f"), b"secret"), os.path.join(d, "s")
    os.chmod(f, 0o600)
    os.mkdir(s, 0o700)
    write(os.path.join(s, "in"), b"x")
    for fn in (lambda: read(f), lambda: write(f, b"y"), lambda: os.truncate(f, 0), lambda: os.listdir(s), lambda: os.stat(os.path.join(s, "in")),
               lambda: os.unlink(f), lambda: os.mkdir(f + "d"), lambda: os.rename(f, f + "2"), lambda: os.rmdir(s), lambda: os.chdir(s)):
        denied(ALICE, fn)
    for fn in (lambda: os.chmod(f, 0o777), lambda: os.chown(f, ALICE, ALICE), lambda: os.utime(f, (1, 1))):
        denied(ALICE, fn, code=(errno.EPERM,))
    os.chmod(f, 0o644)
    denied(ALICE, lambda: os.utime(f, (1, 1)), code=errno.EPERM)
    denied(ALICE, lambda: os.utime(f))
    os.chmod(f, 0o666)
    as_user(ALICE, lambda: os.utime(f))
    assert as_user(ALICE, lambda: read(f)) == b"secret"
    assert as_user(ALICE, lambda: os.stat(f).st_uid) == 0
    os.chmod(s, 0o711)
    assert as_user(ALICE, lambda: read(os.path.join(s, "in"))) == b"x"
    denied(ALICE, lambda: os.listdir(s))


def test_a_descriptor_outlives_permission(d):
    f = write(os.path.join(d, "f"), b"")
    os.chmod(f, 0o666)

    def go():
        fd = os.open(f, os.O_RDWR)
        os.write(fd, b"before")
        subprocess.run(["true"], check=True)
        return fd
    r, w = os.pipe()
    r2, w2 = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(ALICE, ALICE, ALICE)
            os.setresuid(ALICE, ALICE, ALICE)
            fd = go()
            os.write(w, b"1")
            os.read(r2, 1)
            os.pwrite(fd, b"after!", 0)
            assert os.pread(fd, 10, 0) == b"after!"
            os.ftruncate(fd, 3)
            os.close(fd)
            code = 0
        finally:
            os._exit(code)
    os.read(r, 1)
    os.chmod(f, 0)
    os.write(w2, b"1")
    assert os.waitpid(pid, 0)[1] == 0
    assert read(f) == b"aft"
    for fd in (r, w, r2, w2):
        os.close(fd)


def test_own_file_without_bits(d):
    """O_CREAT with a mode that forbids what the descriptor then does."""
    f = os.path.join(d, "f")

    def go():
        fd = os.open(f, os.O_CREAT | os.O_RDWR, 0)
        os.write(fd, b"x" * 5000)
        os.fsync(fd)
        os.close(fd)
        raises(errno.EACCES, os.open, f, os.O_RDONLY)
        os.chmod(f, 0o200)
        fd = os.open(f, os.O_WRONLY)
        os.pwrite(fd, b"yy", 4095)
        os.close(fd)
        os.truncate(f, 4500)
        os.chmod(f, 0o400)
        raises(errno.EACCES, os.open, f, os.O_WRONLY)
        return read(f)
    data = as_user(ALICE, go)
    assert data == b"x" * 4095 + b"yy" + b"x" * 403


@pytest.mark.sanitizer
@pytest.mark.parametrize("how", ["write", "pwrite-open", "truncate", "ftruncate", "trunc-open", "chown", "fallocate", "mmap"])
def test_set_id_bits_go(d, how):
    """What somebody without CAP_FSETID changes loses setuid, and setgid where it means something."""
    f = write(os.path.join(d, "f"), b"#!/bin/true\n" * 1000)
    os.chown(f, ALICE, ALICE)
    os.chmod(f, 0o6775)
    fd = os.open(f, os.O_RDWR)

    def go():
        if how == "write":
            with open(f, "r+b") as o:
                o.write(b"x")
        elif how == "pwrite-open":
            os.pwrite(fd, b"x", 5000)
        elif how == "truncate":
            os.truncate(f, 10)
        elif how == "ftruncate":
            os.ftruncate(fd, 20000)
        elif how == "trunc-open":
            os.close(os.open(f, os.O_WRONLY | os.O_TRUNC))
        elif how == "chown":
            os.chown(f, -1, SHARED)
        elif how == "fallocate":
            os.posix_fallocate(fd, 0, 20000)
        elif how == "mmap":
            import mmap
            with mmap.mmap(fd, 4096) as m:
                m[0:1] = b"x"
                m.flush()
    as_user(ALICE, go, groups=[SHARED])
    os.close(fd)
    assert mode(f) == (0o6775 if how == "mmap" else 0o775)


def test_set_id_bits_stay_for_root(d):
    f = write(os.path.join(d, "f"), b"x")
    os.chmod(f, 0o6755)
    with open(f, "r+b") as o:
        o.write(b"y")
    assert mode(f) == 0o6755
    os.chown(f, ALICE, ALICE)
    assert mode(f) == 0o755
    os.chmod(f, 0o2644)  # setgid without execution is mandatory locking's old bit: stays
    as_user(ALICE, lambda: write(f, b"z", "r+b"), groups=[ALICE])
    assert mode(f) & 0o777 == 0o644


def test_chmod_of_a_foreign_group_drops_setgid(d):
    f = write(os.path.join(d, "f"))
    os.chown(f, ALICE, SHARED)
    as_user(ALICE, lambda: os.chmod(f, 0o2755))
    assert mode(f) == 0o755
    as_user(ALICE, lambda: os.chmod(f, 0o2755), groups=[SHARED])
    assert mode(f) == 0o2755


def test_chown(d):
    f = write(os.path.join(d, "f"))
    os.chown(f, ALICE, BOB)
    assert owner(f) == (ALICE, BOB)
    os.chown(f, -1, -1)
    assert owner(f) == (ALICE, BOB)
    denied(ALICE, lambda: os.chown(f, BOB, -1), code=errno.EPERM)
    as_user(ALICE, lambda: os.chown(f, ALICE, ALICE))
    assert owner(f) == (ALICE, ALICE)
    os.symlink("f", os.path.join(d, "l"))
    os.lchown(os.path.join(d, "l"), BOB, BOB)
    assert owner(os.path.join(d, "l")) == (BOB, BOB) and owner(f) == (ALICE, ALICE)
    os.chown(d, 4_000_000_000, 4_000_000_001)
    assert owner(d) == (4_000_000_000, 4_000_000_001)


def test_execution(d):
    p = os.path.join(d, "prog")
    run("cp", "/bin/true", p)
    os.chmod(p, 0o711)
    as_user(ALICE, lambda: subprocess.run([p], check=True))
    raises(errno.ETXTBSY, lambda: busy(p))
    script = write(os.path.join(d, "s"), b"#!/bin/sh\necho $1\n")
    os.chmod(script, 0o755)
    assert as_user(ALICE, lambda: subprocess.run([script, "hi"], check=True, capture_output=True).stdout) == b"hi\n"
    os.chmod(p, 0o600)
    denied(ALICE, lambda: subprocess.run([p], check=True))


def busy(p):
    run("cp", "/bin/sleep", p)
    child = subprocess.Popen([p, "100"])
    try:
        wait_until(lambda: os.readlink(f"/proc/{child.pid}/exe") == p)
        os.close(os.open(p, os.O_WRONLY))
    finally:
        child.kill()
        child.wait()


# ---- an ordinary user's own mount ----

class UserMount:
    """byokfs run by ALICE, for ALICE, through fusermount3, in a mount namespace where /dev/fuse is open to all as on a desktop."""

    def __init__(self, base, kms):
        self.base = base
        self.cipher, self.plain, self.ini, self.log = (os.path.join(base, n) for n in ("cipher", "plain", "ini", "log"))
        self.holder = self.daemon = None
        os.mkdir(os.path.join(base, "build"), 0o755)
        for p in ("byokfs", "byokfsctl"):
            run("cp", os.path.join(conftest.BUILD, p), os.path.join(base, "build"))
        for p in (self.cipher, self.plain):
            os.mkdir(p)
            os.chown(p, ALICE, ALICE)
        write(self.ini, f"[kms]\nprovider = aws\nkey = {kms.key}\nendpoint = {kms.endpoint}\n[cache]\nallow_unlocked = yes\n".encode())
        os.chmod(self.ini, 0o644)

    def start(self):
        node, passwd = os.path.join(self.base, "fuse"), os.path.join(self.base, "passwd")
        write(passwd, read("/etc/passwd") + f"alice:x:{ALICE}:{ALICE}::/:/bin/sh\n".encode())
        self.holder = subprocess.Popen(
            [*NAMESPACE, "sh", "-c",
             f"mknod -m 666 {node} c 10 229 && mount --bind {node} /dev/fuse && mount --bind {passwd} /etc/passwd && echo ready && exec sleep 3600"], stdout=subprocess.PIPE)
        assert self.holder.stdout.readline() == b"ready\n"
        self.namespace = f"/proc/{self.holder.pid}/ns/mnt"
        assert self.spawn("byokfsctl", "init", "-c", self.ini, self.cipher).wait(60) == 0, read(self.log)
        self.daemon = self.spawn("byokfs", "-f", "-c", self.ini, self.cipher, self.plain)
        wait_until(lambda: self.mounted() or self.daemon.poll() is not None)
        assert self.daemon.poll() is None, read(self.log)
        return self

    def spawn(self, program, *args):
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                ["nsenter", f"--mount={self.namespace}", "setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups",
                 os.path.join(self.base, "build", program), *args], env=conftest.environment(), stdout=log, stderr=log)

    def mounted(self):
        with open(f"/proc/{self.holder.pid}/mounts") as f:
            return any(line.split()[1] == self.plain for line in f)

    def as_user(self, uid, fn):
        return as_user(uid, fn, namespace=self.namespace)

    def umount(self):
        self.as_user(ALICE, lambda: run("fusermount3", "-u", self.plain))
        assert self.daemon.wait(60) == 0, read(self.log)

    def close(self):
        if self.daemon and self.daemon.poll() is None:
            run("nsenter", f"--mount={self.namespace}", "umount", "-l", self.plain, check=False)
            try:
                self.daemon.wait(20)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        if self.holder:
            self.holder.kill()
            self.holder.wait()
            self.holder.stdout.close()


@pytest.fixture
def user_mount(shared_devkms):
    if REFERENCE or not os.path.exists("/usr/bin/fusermount3"):
        pytest.skip("needs fusermount3")
    with tempfile.TemporaryDirectory(prefix="byokfs-user-") as base:
        os.chmod(base, 0o755)
        os.chown(base, ALICE, ALICE)
        m = UserMount(base, shared_devkms)
        try:
            yield m.start()
            m.umount()
        finally:
            m.close()


@pytest.mark.sanitizer
def test_an_ordinary_user_mounts(user_mount):
    d = user_mount.plain

    def go():
        everything(d)
        write(os.path.join(d, "file"), b"x" * 10000)
        os.chmod(os.path.join(d, "file"), 0o400)
        assert read(os.path.join(d, "file")) == b"x" * 10000
        fd = os.open(os.path.join(d, "file"), os.O_RDONLY)
        raises(errno.EACCES, os.open, os.path.join(d, "file"), os.O_WRONLY)
        os.chmod(os.path.join(d, "file"), 0o600)
        with open(os.path.join(d, "file"), "r+b") as f:  # a reader is there already, from when writing was forbidden
            f.write(b"yy")
        assert os.pread(fd, 3, 0) == b"yyx"
        os.close(fd)
        os.unlink(os.path.join(d, "fifo"))
        os.rename(os.path.join(d, "dir"), os.path.join(d, "moved" * 40))
        os.rmdir(os.path.join(d, "moved" * 40))
        os.setxattr(os.path.join(d, "file"), "user.a", b"b")
        raises(errno.EPERM, os.chown, os.path.join(d, "file"), BOB, -1)
        return [owner(os.path.join(d, n)) for n in ("file", "link", "hard")]
    assert user_mount.as_user(ALICE, go) == [(ALICE, ALICE)] * 3
    raises(errno.EACCES, user_mount.as_user, BOB, lambda: os.listdir(d))


def test_an_ordinary_users_odd_modes(user_mount):
    """The daemon has no more rights on the backing than its user, yet a mode forbids nothing to an open descriptor."""
    d = user_mount.plain

    def go():
        f = os.path.join(d, "f")
        fd = os.open(f, os.O_CREAT | os.O_RDWR, 0)
        os.write(fd, b"x" * 5000)
        os.fsync(fd)
        assert os.pread(fd, 5, 4990) == b"x" * 5
        os.close(fd)
        os.chmod(f, 0o200)
        fd = os.open(f, os.O_WRONLY)
        os.pwrite(fd, b"yy", 4095)
        os.close(fd)
        os.chmod(f, 0o400)
        assert read(f)[4094:4098] == b"xyyx"
        os.mkdir(f + "d", 0o300)
        write(os.path.join(f + "d", "in"), b"z")
        assert read(os.path.join(f + "d", "in")) == b"z"
        raises(errno.EACCES, os.listdir, f + "d")
        os.unlink(os.path.join(f + "d", "in"))
        os.rmdir(f + "d")
        os.mkdir(f + "e", 0o700)
        write(os.path.join(f + "e", "in"), b"z")
        os.chmod(f + "e", 0o100)
        assert read(os.path.join(f + "e", "in")) == b"z"
        os.chmod(f + "e", 0o500)
        raises(errno.EACCES, os.unlink, os.path.join(f + "e", "in"))
        os.chmod(f + "e", 0o700)
        os.unlink(os.path.join(f + "e", "in"))
        os.chmod(f + "e", 0)
        os.rmdir(f + "e")
    user_mount.as_user(ALICE, go)
