"""Extended attributes and POSIX ACLs: kept, inherited, enforced, copied."""
import contextlib
import errno
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import threading

import pytest

from programs import DAMAGE
from posix_tools import ALICE, BOB, BOTH, REFERENCE, SHARED, VARIANTS, as_user, d, denied, mounted, raises, read, run, variant_fixture, write

fs = variant_fixture(BOTH[:1])
__all__ = ["d"]

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
U, USER, G, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
READER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reader", "byokfs_reader.py")
ours = pytest.mark.skipif(bool(REFERENCE), reason="a limit of our own")


def acl(*entries):
    """acl((U, 7), (USER, 5, ALICE), ...) as the kernel wants it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", e[0], e[1], e[2] if len(e) > 2 else 0xFFFFFFFF) for e in entries)


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


# ---- extended attributes ----

@pytest.mark.sanitizer
@pytest.mark.parametrize("kind", ["file", "dir", "root"])
def test_xattrs(fs, d, kind):
    p = {"file": os.path.join(d, "f"), "dir": d, "root": fs.plain}[kind]
    if kind == "file":
        write(p, b"content")
    values = {"user.empty": b"", "user.text": b"value", "user.binary": bytes(range(256)), "trusted.t": b"root's", "security.s": b"label",
              "user." + "\u00e4" * 20: b"\xff\x00", "user.big": b"x" * 2000}
    for name, value in values.items():
        os.setxattr(p, name, value)
    fd = os.open(p, os.O_RDONLY)
    for again in range(2):
        assert sorted(os.listxattr(p)) == sorted(values) == sorted(os.listxattr(fd))
        for name, value in values.items():
            assert os.getxattr(p, name) == value == os.getxattr(fd, name)
        if not again:
            os.close(fd)
            fs.remount()
            fd = os.open(p, os.O_RDONLY)
    os.setxattr(fd, "user.text", b"changed", os.XATTR_REPLACE)
    assert os.getxattr(p, "user.text") == b"changed"
    raises(errno.EEXIST, os.setxattr, p, "user.text", b"", os.XATTR_CREATE)
    raises(errno.ENODATA, os.setxattr, p, "user.none", b"", os.XATTR_REPLACE)
    raises(errno.ENODATA, os.getxattr, p, "user.none")
    raises(errno.ENODATA, os.removexattr, p, "user.none")
    os.close(fd)
    for name in values:
        os.removexattr(p, name)
    assert os.listxattr(p) == []


def test_xattr_names_and_namespaces(fs, d):
    f = write(os.path.join(d, "f"))
    raises((errno.EOPNOTSUPP, errno.EINVAL), os.setxattr, f, "nonsense", b"")
    raises((errno.EOPNOTSUPP, errno.EINVAL), os.setxattr, f, "system.nonsense", b"")
    raises((errno.EOPNOTSUPP, errno.EINVAL), os.setxattr, f, "user.", b"")
    raises(errno.ERANGE, os.setxattr, f, "user." + "n" * 251, b"")
    assert os.listxattr(f) == []


def test_longest_xattr(fs, d):
    """Up to the kernel's own limit, which answers above it; listed, changed, copied and removed as any other."""
    f, g = write(os.path.join(d, "f")), os.path.join(d, "g")
    names = sorted([f"{space}.{n}".ljust(size, "n") for space in ("user", "trusted", "security") for n, size in enumerate((160, 161, 200, 254, 255))])
    values = {name: name.encode()[::-1] for name in names[:6]}
    for at in (f, d):
        for name, value in values.items():
            os.setxattr(at, name, b"first", os.XATTR_CREATE)
            os.setxattr(at, name, value, os.XATTR_REPLACE)
            raises(errno.EEXIST, os.setxattr, at, name, b"", os.XATTR_CREATE)
    if fs.cipher:
        fs.remount()
    for at in (f, d):
        assert sorted(os.listxattr(at)) == sorted(values) and all(os.getxattr(at, n) == v for n, v in values.items())
        raises(errno.ERANGE, os.setxattr, at, "user.".ljust(256, "n"), b"v")
        raises(errno.ENODATA, os.getxattr, at, "user.".ljust(255, "x"))
        raises(errno.ENODATA, os.removexattr, at, "user.".ljust(255, "x"))
    run("cp", "-a", f, g)
    assert sorted(os.listxattr(g)) == sorted(values)
    for name in values:
        os.removexattr(f, name)
    assert os.listxattr(f) == []


def test_large_values(fs, d):
    """As large as the backing takes them, then a clean refusal; nothing is lost on the way."""
    f = write(os.path.join(d, "f"))
    os.setxattr(f, "user.keep", b"k")
    largest = 0
    for n in (1, 100, 1000, 3000, 3900, 4056, 8000, 30000, 65496, 65536):
        try:
            os.setxattr(f, "user.v", os.urandom(n))
        except OSError as e:
            assert e.errno == errno.ENOSPC
            break
        largest = n
        assert len(os.getxattr(f, "user.v")) == n
    assert largest >= 3000 and len(os.getxattr(f, "user.v")) == largest and os.getxattr(f, "user.keep") == b"k"
    raises(errno.E2BIG, os.setxattr, f, "user.v", b"x" * 65537)


@pytest.fixture(params=["tmpfs", "xfs"])
def roomy(request, tmp_path):
    """A backing with room for large values. (tmpfs has user attributes since Linux 6.6.)"""
    at, image = tmp_path / "backing", tmp_path / "image"
    at.mkdir()
    if request.param == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", at)
    else:
        if not shutil.which("mkfs.xfs"):
            pytest.skip("no mkfs.xfs")
        with open(image, "wb") as f:
            f.truncate(400 << 20)
        run("mkfs.xfs", "-q", image)
        run("mount", "-o", "loop", image, at)
    try:
        os.setxattr(at, "user.x", b"x" * 65536)
        os.removexattr(at, "user.x")
    except OSError:
        run("umount", "-l", at)
        pytest.skip("no large attributes here")
    yield at
    run("umount", "-l", at)


@pytest.fixture
def large(roomy, shared_devkms):
    from conftest import Mount
    m = Mount(roomy, shared_devkms, probe="10s", lease="30s").mount()
    yield m
    m.close()


LONG = "user.".ljust(255, "n")


def kept(path):
    return sorted(n for n in os.listxattr(path) if n.startswith("user.byokfs."))


def backing_file(m):
    name, = (n for n in os.listdir(m.cipher) if not n.startswith(".byokfs"))
    return os.path.join(m.cipher, name)


def test_sixty_four_kilobyte_values(large):
    from conftest import AK, SK
    m = large
    f = write(m.path("f"), b"content")
    values = {}
    for n in (65536, 65224, 65225, 65496, 65497, 65535, 65536):
        for name in ("user.v", "trusted.v", LONG):
            values[name] = os.urandom(n)
            os.setxattr(f, name, values[name])
            assert os.getxattr(f, name) == values[name]
        assert all(os.getxattr(f, name) == v for name, v in values.items()) and sorted(os.listxattr(f)) == sorted(values)
    assert len(kept(backing_file(m))) == 6
    raises(errno.EEXIST, os.setxattr, f, LONG, b"x" * 65536, os.XATTR_CREATE)
    raises(errno.ENODATA, os.setxattr, f, "user.none", b"x" * 65536, os.XATTR_REPLACE)
    raises(errno.E2BIG, os.setxattr, f, "user.v", b"x" * 65537)
    run("cp", "-a", f, m.path("copy"))
    m.umount()
    seen = subprocess.run([sys.executable, READER, m.cipher, "--unseal-endpoint", m.kms.endpoint, "--manifest", "--xattrs"], text=True,
                          env=dict(os.environ, AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, AWS_DEFAULT_REGION="us-east-1"),
                          capture_output=True)
    assert seen.returncode == 0, seen.stdout[-3000:] + seen.stderr[-2000:]
    lines = {x["path"]: x for x in map(json.loads, seen.stdout.splitlines())}
    assert lines["f"]["xattrs"] == lines["copy"]["xattrs"] == {n: v.hex() for n, v in values.items()}
    m.mount()
    for name in ("f", "copy"):
        assert all(os.getxattr(m.path(name), n) == v for n, v in values.items())
    os.unlink(m.path("copy"))
    for name in values:
        os.setxattr(f, name, b"small")
    assert len(kept(backing_file(m))) == 3
    for name in values:
        os.setxattr(f, name, values[name])
        os.removexattr(f, name)
    assert kept(backing_file(m)) == [] == os.listxattr(f)


def test_halves_of_large_values(large):
    """What a crash leaves is harmless and goes; a half that is missing or another's is EIO, of this attribute only."""
    m = large
    f, ones, twos = write(m.path("f")), b"1" * 65536, b"2" * 65536
    os.setxattr(f, "user.other", b"fine")
    at = backing_file(m)
    before = set(kept(at))
    os.setxattr(f, "user.v", ones)
    old = {n: os.getxattr(at, n) for n in set(kept(at)) - before}
    part, = (n for n in old if n.startswith("user.byokfs.P."))
    first, = set(old) - {part}
    os.setxattr(f, "user.v", twos)
    os.setxattr(at, part, old[part])  # it was not removed any more, or is the next one's already
    assert os.getxattr(f, "user.v") == twos and sorted(os.listxattr(f)) == ["user.other", "user.v"] and len(kept(at)) == 4
    os.setxattr(f, "user.v", ones)
    assert len(kept(at)) == 3 and part not in kept(at)
    os.setxattr(at, part, old[part])
    os.setxattr(at, first, old[first])
    assert os.getxattr(f, "user.v") == ones
    m.umount()

    def check(*options):
        r = m.ctl("check", "--data", "--json", "-c", m.ini, *options, m.cipher)
        return r.returncode, json.loads(r.stdout)
    code, answer = check()
    assert code == 0 and answer["damage"] == 0 and answer["warnings"] == 1 and "never finished" in answer["findings"][0]["what"]
    assert check("--repair")[0] == 0 and len(kept(at)) == 3
    m.mount()
    assert os.getxattr(f, "user.v") == ones
    os.setxattr(at, part, old[part][::-1])
    raises(errno.EIO, os.getxattr, f, "user.v")
    os.removexattr(at, part)
    raises(errno.EIO, os.getxattr, f, "user.v")
    with open(m.log, errors="replace") as log:
        assert f"attribute '{first}' does not authenticate" in log.read()
    assert os.getxattr(f, "user.other") == b"fine" and sorted(os.listxattr(f)) == ["user.other", "user.v"]
    m.umount()
    code, answer = check()
    assert code == DAMAGE and "('user.v'): its value does not authenticate" in answer["findings"][0]["what"]
    assert check("--repair")[0] == DAMAGE and check()[0] == 0
    m.mount()
    assert os.listxattr(f) == ["user.other"]
    os.setxattr(f, "user.v", twos)
    assert os.getxattr(f, "user.v") == twos


def test_killed_between_halves(large):
    """Whenever the daemon dies, the value is the old one or the new one."""
    m = large
    f = write(m.path("f"))
    for attempt in range(4):
        os.setxattr(f, LONG, b"0" * 65536)
        going = threading.Event()

        def change():
            for i in range(100000):
                try:
                    os.setxattr(f, LONG, bytes([48 + i % 10]) * 65536)
                except OSError:
                    return
                if i == 5 + 7 * attempt:
                    going.set()
        t = threading.Thread(target=change)
        t.start()
        going.wait(60)
        m.kill()
        t.join()
        m.clear_dead()
        m.mount()
        value = os.getxattr(f, LONG)
        assert len(value) == 65536 and len(set(value)) == 1 and os.listxattr(f) == [LONG]
    os.setxattr(f, LONG, b"x" * 65536)
    assert len(kept(backing_file(m))) == 2


@contextlib.contextmanager
def replaced_whole(f):
    """Readers of user.v, whose values are of one byte each, see one or the other, never a mixture or an absence."""
    done, bad = threading.Event(), []

    def look():
        while not done.is_set():
            v = os.getxattr(f, "user.v")
            if len(set(v)) != 1:
                bad.append(v)
    threads = [threading.Thread(target=look) for _ in range(2)]
    for t in threads:
        t.start()
    yield
    done.set()
    for t in threads:
        t.join()
    assert not bad


def test_readers_of_large_values(large):
    """A value of two halves is replaced whole, too."""
    f = write(large.path("f"))
    os.setxattr(f, "user.v", b"0" * 65536)
    with replaced_whole(f):
        for i in range(200):
            os.setxattr(f, "user.v", bytes([48 + i % 10]) * (65536 if i % 4 else 60000))


def test_many_xattrs(d):
    f = write(os.path.join(d, "f"))
    names = sorted(f"user.attribute-{i:03d}" for i in range(20))
    for n in names:
        os.setxattr(f, n, n.encode())
    assert sorted(os.listxattr(f)) == names
    g = os.path.join(d, "g")
    run("cp", "-a", f, g)
    assert sorted(os.listxattr(g)) == names and all(os.getxattr(g, n) == n.encode() for n in names)


@ours
def test_links_and_special_files_have_none(d):
    os.symlink("x", os.path.join(d, "l"))
    os.mkfifo(os.path.join(d, "p"))
    for p in ("l", "p"):
        p = os.path.join(d, p)
        assert os.listxattr(p, follow_symlinks=False) == []
        raises(errno.EOPNOTSUPP, os.setxattr, p, "trusted.x", b"", follow_symlinks=False)
        raises(errno.EPERM, os.setxattr, p, "user.x", b"", follow_symlinks=False)


@pytest.mark.sanitizer
def test_who_may_use_which_namespace(d):
    f = write(os.path.join(d, "f"))
    for n in ("user.u", "trusted.t", "security.s"):
        os.setxattr(f, n, b"1")
    os.chmod(f, 0o644)
    assert as_user(ALICE, lambda: sorted(os.listxattr(f))) == ["security.s", "user.u"]
    assert as_user(ALICE, lambda: os.getxattr(f, "user.u")) == b"1"
    denied(ALICE, lambda: os.getxattr(f, "trusted.t"), code=(errno.ENODATA, errno.EPERM))
    denied(ALICE, lambda: os.setxattr(f, "user.u", b"2"))
    denied(ALICE, lambda: os.setxattr(f, "trusted.t", b"2"), code=errno.EPERM)
    os.chmod(f, 0o600)
    denied(ALICE, lambda: os.getxattr(f, "user.u"))


def test_xattrs_follow_hard_links_and_renames(d):
    f, g = write(os.path.join(d, "f")), os.path.join(d, "g")
    os.link(f, g)
    os.setxattr(f, "user.a", b"1")
    assert os.getxattr(g, "user.a") == b"1"
    os.rename(g, g + "2")
    os.unlink(f)
    assert os.getxattr(g + "2", "user.a") == b"1"
    os.mkdir(f)
    os.setxattr(f, "user.d", b"dir")
    os.rename(f, f + "moved")
    assert os.getxattr(f + "moved", "user.d") == b"dir"


@pytest.mark.sanitizer
def test_capabilities_go_with_a_write(d):
    """security.capability says what a program may do; it does not outlive a change of the program."""
    f = os.path.join(d, "prog")
    cap = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    for change in (lambda: write(f, b"other"), lambda: write(f, b"x", "ab"), lambda: os.truncate(f, 3), lambda: os.chown(f, ALICE, -1)):
        write(f, b"program")
        os.setxattr(f, "security.capability", cap)
        assert os.getxattr(f, "security.capability") == cap
        change()
        raises(errno.ENODATA, os.getxattr, f, "security.capability")


@ours
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_shows_in_the_backing(shared_devkms, variant):
    with mounted(variant, kms=shared_devkms) as m:
        f = write(m.path("f"))
        os.setxattr(f, "user.confidential-name", b"confidential value")
        os.setxattr(f, "trusted.confidential-name", b"confidential value")
        os.setxattr(f, ACCESS, acl((U, 6), (USER, 4, ALICE), (G, 0), (MASK, 4), (OTHER, 0)))
        for base, _, files in os.walk(m.cipher):
            for n in files:
                p = os.path.join(base, n)
                for x in os.listxattr(p, follow_symlinks=False):
                    assert x.startswith("user.byokfs.") and "confidential" not in x and "acl" not in x
                    assert b"confidential" not in os.getxattr(p, x, follow_symlinks=False)
        backing = [n for n in os.listdir(m.cipher) if not n.startswith(".byokfs")]
        os.setxattr(os.path.join(m.cipher, backing[0]), "user.foreign", b"x")
        assert sorted(os.listxattr(f)) == [ACCESS, "trusted.confidential-name", "user.confidential-name"]


# ---- ACLs ----

@pytest.mark.sanitizer
def test_access_acl(fs, d):
    f = write(os.path.join(d, "f"), b"x")
    os.chmod(f, 0o600)
    denied(ALICE, lambda: read(f))
    os.setxattr(f, ACCESS, acl((U, 6), (USER, 4, ALICE), (G, 0), (GROUP, 6, SHARED), (MASK, 6), (OTHER, 0)))
    assert mode(f) == 0o660

    def rules():
        assert as_user(ALICE, lambda: read(f)) == b"x"
        denied(ALICE, lambda: write(f, b"y"))
        denied(BOB, lambda: read(f))
        assert as_user(BOB, lambda: write(f, b"x"), groups=[SHARED])
    rules()
    fs.remount()
    rules()
    os.chmod(f, 0o640)  # the mask now
    denied(BOB, lambda: write(f, b"y"), groups=[SHARED])
    assert as_user(BOB, lambda: read(f), groups=[SHARED]) == b"x"
    assert os.getxattr(f, ACCESS) == acl((U, 6), (USER, 4, ALICE), (G, 0), (GROUP, 6, SHARED), (MASK, 4), (OTHER, 0))
    os.setxattr(f, ACCESS, acl((U, 6), (G, 4), (OTHER, 4)))
    assert mode(f) == 0o644
    raises(errno.ENODATA, os.getxattr, f, ACCESS)
    assert as_user(BOB, lambda: read(f)) == b"x"


def test_removing_an_acl(d):
    f = write(os.path.join(d, "f"))
    os.setxattr(f, ACCESS, acl((U, 6), (USER, 6, ALICE), (G, 4), (MASK, 6), (OTHER, 0)))
    assert mode(f) == 0o660
    as_user(ALICE, lambda: read(f))
    os.removexattr(f, ACCESS)
    denied(ALICE, lambda: read(f))
    os.setxattr(d, DEFAULT, acl((U, 7), (G, 5), (OTHER, 5)))
    os.removexattr(d, DEFAULT)
    raises(errno.ENODATA, os.getxattr, d, DEFAULT)


@pytest.mark.sanitizer
def test_default_acl(fs, d):
    os.setxattr(d, DEFAULT, acl((U, 7), (USER, 7, ALICE), (G, 5), (MASK, 7), (OTHER, 0)))
    if fs.cipher:
        fs.remount()

    def make():
        os.close(os.open(os.path.join(d, "f"), os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(os.path.join(d, "s"), 0o777)
        os.mkfifo(os.path.join(d, "p"), 0o666)
        os.symlink("f", os.path.join(d, "l"))
        os.close(os.open(os.path.join(d, "private"), os.O_CREAT | os.O_WRONLY, 0o600))
    as_user(BOB, make, umask=0o077)  # the umask does not count where there is a default ACL
    assert mode(os.path.join(d, "f")) == 0o660
    assert os.getxattr(os.path.join(d, "f"), ACCESS) == acl((U, 6), (USER, 7, ALICE), (G, 5), (MASK, 6), (OTHER, 0))
    assert as_user(ALICE, lambda: write(os.path.join(d, "f"), b"as alice"))
    assert mode(os.path.join(d, "private")) == 0o600
    denied(ALICE, lambda: read(os.path.join(d, "private")))
    s = os.path.join(d, "s")
    assert mode(s) == 0o770 and os.getxattr(s, DEFAULT) == os.getxattr(d, DEFAULT)
    as_user(ALICE, lambda: os.mkdir(os.path.join(s, "deeper")))
    assert os.getxattr(os.path.join(s, "deeper"), DEFAULT) == os.getxattr(d, DEFAULT)
    assert mode(os.path.join(d, "p")) == 0o660
    denied(4711, lambda: os.listdir(s))
    raises(errno.EACCES, os.setxattr, os.path.join(d, "f"), DEFAULT, os.getxattr(d, DEFAULT))


def test_malformed_acls(d):
    f = write(os.path.join(d, "f"))
    for bad in (b"\0" * 4, acl((U, 6)), acl((U, 6), (USER, 4, ALICE), (G, 4), (OTHER, 0)), acl((U, 6), (G, 4), (OTHER, 0))[:-1], b"\xff" * 28):
        raises((errno.EINVAL, errno.EOPNOTSUPP), os.setxattr, f, ACCESS, bad)
    os.setxattr(f, ACCESS, b"")  # Linux takes that as removal
    os.removexattr(f, ACCESS)
    assert os.listxattr(f) == []


def test_only_the_owner_sets_acls(d):
    f = write(os.path.join(d, "f"))
    os.chmod(f, 0o666)
    denied(ALICE, lambda: os.setxattr(f, ACCESS, acl((U, 6), (G, 6), (OTHER, 6))), code=errno.EPERM)
    os.chown(f, ALICE, ALICE)
    as_user(ALICE, lambda: os.setxattr(f, ACCESS, acl((U, 6), (USER, 6, BOB), (G, 0), (MASK, 6), (OTHER, 0))))
    as_user(BOB, lambda: write(f, b"x"))


def test_setgid_and_acls(d):
    """A setgid bit for a group one is not in goes when one sets an ACL, as with chmod."""
    f = write(os.path.join(d, "f"))
    os.chown(f, ALICE, SHARED)
    os.chmod(f, 0o2750)
    as_user(ALICE, lambda: os.setxattr(f, ACCESS, acl((U, 7), (USER, 5, BOB), (G, 5), (MASK, 5), (OTHER, 0))))
    assert mode(f) == 0o750
    os.chmod(f, 0o2750)
    as_user(ALICE, lambda: os.setxattr(f, ACCESS, acl((U, 7), (USER, 5, BOB), (G, 5), (MASK, 5), (OTHER, 0))), groups=[SHARED])
    assert mode(f) == 0o2750


needs_acl = pytest.mark.skipif(subprocess.run(["which", "setfacl"], capture_output=True).returncode != 0, reason="no setfacl")


@needs_acl
@pytest.mark.sanitizer
def test_setfacl_and_copies(fs, d):
    src = os.path.join(d, "src")
    os.mkdir(src)
    run("setfacl", "-m", f"u:{ALICE}:rwx,g:{SHARED}:rx,d:u:{BOB}:rw,d:g::r", src)
    f = write(os.path.join(src, "f"), b"x" * 5000)
    run("setfacl", "-m", f"u:{ALICE}:r", f)
    os.setxattr(f, "user.tag", b"kept")

    def look(at):
        out = run("getfacl", "-R", "-n", "-p", os.path.basename(at), cwd=os.path.dirname(at)).stdout
        return out.replace(os.path.basename(at), "X", 1).replace(os.path.basename(at) + "/", "X/")
    want = look(src)
    assert f"user:{ALICE}:rwx" in want and f"default:user:{BOB}:rw-" in want and f"user:{BOB}:rw-" in want
    fs.remount()
    assert look(src) == want
    run("cp", "-a", src, os.path.join(d, "cp"))
    assert look(os.path.join(d, "cp")) == want
    os.mkdir(os.path.join(d, "tar"))
    run("sh", "-c", f"tar --acls --xattrs -C {src} -cf - . | tar --acls --xattrs -C {d}/tar -xpf -")
    assert look(os.path.join(d, "tar")) == want and os.getxattr(os.path.join(d, "tar", "f"), "user.tag") == b"kept"
    run("rsync", "-aHAX", src + "/", os.path.join(d, "rsync"))
    assert look(os.path.join(d, "rsync")) == want
    assert run("rsync", "-aHAXn", "--itemize-changes", "--checksum", src + "/", os.path.join(d, "rsync")).stdout == ""
    run("setfacl", "-bk", src)
    assert "default" not in look(src) and mode(src) & 0o070 == 0o050


def test_changing_attributes_at_once(d):
    """Values are replaced whole: readers see one or the other, never a mixture or an absence."""
    f = write(os.path.join(d, "f"))
    os.setxattr(f, "user.v", b"0" * 500)
    with replaced_whole(f):
        for i in range(300):
            os.setxattr(f, "user.v", bytes([48 + i % 10]) * (100 + i))
