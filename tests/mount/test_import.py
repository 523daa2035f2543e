"""byokfsctl import: everything a tree can hold comes over, whatever happens on the way, and can leave again."""
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time

import pytest

from conftest import BYOKFS, CTL, NAMESPACE, Mount, wait_until
from damage import backing_of, flip
from posix_tools import REFERENCE, read, run, snapshot, write
from test_disk import Disk

pytestmark = pytest.mark.skipif(bool(REFERENCE), reason="is about stores")

FAILED, USAGE, CONFIG, NOT_A_STORE, DENIED, UNREACHABLE, DAMAGE, ALREADY = 1, 2, 3, 4, 5, 6, 7, 9
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
TEMP = b".byokimport-"
DEEP, DEEP_NAME = 200, "d" * 30  # longer than a path may be


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", e[0], e[1], e[2] if len(e) > 2 else 0xFFFFFFFF) for e in entries)


ACL = acl((1, 6), (2, 4, 1001), (4, 4), (16, 6), (32, 0))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service+ep


def sparse(path, size, *data):
    with open(path, "wb") as f:
        for at in data:
            f.seek(at)
            f.write(b"data at %d" % at)
        f.truncate(size)


def nasty(top, small=200, root=True):
    """One of everything."""
    top = os.fsencode(str(top))
    sub = [os.path.join(top, n) for n in (b"plain", b"closed", b"empty dir", b"setgid", b"acl", b"many")]
    for p in [top, *sub]:
        os.mkdir(p)
    for i, name in enumerate([b"x" * 255, b"\xff\xfe\x01", "\u00e4\u4e2d".encode(), b" ", b"a\nb", b"-c", b"\\", b".hidden", b"L.abc.n", b"*?[", b"~"]):
        write(os.path.join(sub[0], name), name * i)
    for size in (0, 1, 1504, 1505, 4064, 4096, 4097, 1 << 20, (1 << 20) + 1, (5 << 20) + 123):
        write(os.path.join(sub[0], b"size%d" % size), os.urandom(size))
    write(os.path.join(sub[0], b"zeros"), bytes(3 << 20))
    sparse(os.path.join(sub[0], b"hole"), 1 << 26, 5 << 20, 40 << 20)
    sparse(os.path.join(sub[0], b"only a hole"), 7 << 20)
    sparse(os.path.join(sub[0], b"hole at the end"), 9 << 20, 0, 4096 * 3)
    for mode in (0o000, 0o400, 0o4755, 0o2755, 0o6711, 0o1644, 0o777) if root else (0o400, 0o777, 0o4755):
        p = write(os.path.join(sub[0], b"mode%o" % mode), b"mode")
        if root:
            os.chown(p, 1234, 5678)
        os.chmod(p, mode)
    p = write(os.path.join(sub[0], b"attributes"), b"x")
    for name, value in {"user.empty": b"", "user.text": b"value", "user.big": b"b" * 3000, "user.\u00e4": bytes(range(256))}.items():
        os.setxattr(p, name, value)
    os.chmod(p, 0o444)
    if root:
        os.setxattr(p, "security.capability", CAPABILITY)
        os.setxattr(p, "trusted.t", b"root's")
    p = write(os.path.join(sub[4], b"with acl"), b"x")
    os.setxattr(p, ACCESS, ACL)
    write(os.path.join(sub[4], b"without acl"), b"x")
    os.setxattr(sub[4], DEFAULT, ACL)
    os.setxattr(sub[4], "user.dir", b"a directory's")
    os.link(os.path.join(sub[0], b"size4097"), os.path.join(sub[2], b"second name"))
    os.link(os.path.join(sub[0], b"size4097"), os.path.join(top, b"third name"))
    os.symlink(b"../no\xffwhere", os.path.join(top, b"dangling"))
    os.symlink(b"t" * 3000, os.path.join(top, b"long link"))
    os.symlink(b"/etc/passwd", os.path.join(top, b"absolute"))
    os.link(os.path.join(top, b"absolute"), os.path.join(top, b"absolute too"), follow_symlinks=False)
    os.mkfifo(os.path.join(top, b"fifo"), 0o640)
    if root:
        os.mknod(os.path.join(top, b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(os.path.join(top, b"disk"), stat.S_IFBLK | 0o600, os.makedev(7, 200))
        os.lchown(os.path.join(top, b"dangling"), 1234, 5678)
    for i in range(small):
        write(os.path.join(sub[5], b"file%d" % i), os.urandom(i * 37 % 9000))
    write(os.path.join(sub[1], b"inside"), b"x")
    write(os.path.join(sub[3], b"inside"), b"x")
    if root:
        os.chown(sub[3], 42, 4242)
    os.chmod(sub[3], 0o2775)
    os.chmod(sub[1], 0o000 if root else 0o555)
    # Old, what is no file: rsync takes times of the same second for equal, and what it has just made is of this one.
    for name in os.listdir(top):
        if not stat.S_ISREG(os.lstat(os.path.join(top, name)).st_mode):
            os.utime(os.path.join(top, name), ns=(1_111_111_111_222_333_444, 999_888_777_666_555_444), follow_symlinks=False)
    for i, p in enumerate([*sub, os.path.join(top, b"fifo"), os.path.join(sub[5], b"file1"), top]):
        os.utime(p, ns=(1_600_000_000_000_000_000 + i, -86_400_000_000_001 + i if i == 2 else 1_500_000_000_123_456_789 + i))
    return os.fsdecode(top)


def attribute(path, name):
    try:
        return os.getxattr(path, name)
    except OSError as e:
        assert e.errno == errno.EOPNOTSUPP  # gocryptfs lists what it does not give
        return None


def all_xattrs(root):
    out = {}
    for base, dirs, files in os.walk(os.fsencode(root)):
        for p in [base] + [os.path.join(base, n) for n in files]:
            if not os.path.islink(p):
                out[os.path.relpath(p, os.fsencode(root))] = {n: value for n in os.listxattr(p) if (value := attribute(p, n)) is not None}
    return out


def same(a, b):
    one, two = snapshot(a), snapshot(b)
    assert one.keys() == two.keys(), sorted(one.keys() ^ two.keys())[:10]
    for name in one:
        assert one[name] == two[name], name
    one, two = all_xattrs(a), all_xattrs(b)
    for name in one:
        assert one[name] == two[name], name


def temporaries(root):
    return [n for _, _, files in os.walk(os.fsencode(root)) for n in files if n.startswith(TEMP)]


def private_mounts(m):
    with open("/proc/mounts") as f:
        return [line for line in f if line.split()[0] == m.cipher and "/import-" in line]


def bring(m, src, *args, code=0, timeout=120):
    r = m.ctl("import", src, m.cipher, "-c", m.ini, *args, timeout=timeout)
    assert r.returncode == code, f"{r.returncode}\n{r.stdout}\n{r.stderr}"
    return r


def spawn(m, src, *args):
    return subprocess.Popen([CTL, "import", str(src), m.cipher, "-c", m.ini, *args], env=m.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(p, code, timeout=120):
    out, err = p.communicate(timeout=timeout)
    assert p.returncode == code, f"{p.returncode}\n{out}\n{err}"
    return out, err


def entries(m):
    """About how many files the store holds."""
    return sum(len(files) for _, _, files in os.walk(m.cipher))


def flat(top, n, size=2000):
    os.makedirs(top)
    for i in range(n):
        write(os.path.join(top, f"f{i:05d}"), os.urandom(size))
    return str(top)


# ---- everything comes over ----

@pytest.mark.parametrize("init", [[], ["--plain-names", "--seal=domain"]], ids=["default", "plain-domain"])
@pytest.mark.sanitizer
def test_everything(tmp_path, make_mount, shared_devkms, init):
    src = nasty(tmp_path / "src", small=2000 if init == [] else 50)
    with socket.socket(socket.AF_UNIX) as s:
        os.chdir(src)
        s.bind("socket")
        os.chdir("/")
    m = make_mount("m", shared_devkms, init=init)
    r = bring(m, src)
    assert "'socket': a socket: not copied" in r.stderr and "no failures" not in r.stdout and "0 failed, 0 damaged, 1 warnings" in r.stdout
    os.unlink(os.path.join(src, "socket"))
    os.utime(src, ns=(1, 1_500_000_000_123_456_789))
    assert not private_mounts(m)
    again = json.loads(bring(m, src, "--json").stdout)
    assert again["files"] == again["directories"] == again["links"] == again["bytes"] == 0 and again["skipped"] > 60, again
    assert json.loads(bring(m, src, "--verify=full", "--json").stdout)["skipped"] == again["skipped"]
    m.mount()
    same(src, m.plain)
    holes = os.stat(m.path("plain", "hole"))
    assert holes.st_size == 1 << 26 and holes.st_blocks * 512 < 4 << 20
    assert m.ctl("check", m.cipher).returncode == 0


def deep_dir(top, make):
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        if make:
            os.mkdir(DEEP_NAME, dir_fd=fd)
        down = os.open(DEEP_NAME, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = down
    return fd


def test_deep(tmp_path, make_mount, shared_devkms):
    """Deeper than a path is long; the second name of a file is far away from the first."""
    src = tmp_path / "src"
    src.mkdir()
    fd = deep_dir(src, True)
    write(src / "second", b"content")
    os.link(src / "second", "first", dst_dir_fd=fd)
    os.close(fd)
    m = make_mount("m", shared_devkms)
    bring(m, src)
    m.mount()
    fd = deep_dir(m.plain, False)
    assert os.stat("first", dir_fd=fd).st_ino == os.stat(m.path("second")).st_ino and read(m.path("second")) == b"content"
    os.close(fd)
    run("rm", "-rf", src)


def test_the_way_back(tmp_path, make_mount, shared_devkms):
    src, back = nasty(tmp_path / "src"), str(tmp_path / "back")
    m = make_mount("m", shared_devkms)
    bring(m, src)
    m.mount()
    run("rsync", "-aHAXS", "--numeric-ids", m.plain + "/", back + "/")
    same(src, back)
    assert os.stat(back + "/plain/hole").st_blocks * 512 < 4 << 20
    assert run("rsync", "-aHAXSn", "--numeric-ids", "--checksum", "--delete", "-i", m.plain + "/", back + "/").stdout == ""


@pytest.mark.skipif(not shutil.which("gocryptfs"), reason="no gocryptfs")
def test_from_gocryptfs(tmp_path, make_mount, shared_devkms):
    """As the manual says: mounted read-only beside, and copied from there."""
    old, at, password = str(tmp_path / "old"), str(tmp_path / "at"), write(tmp_path / "password", b"secret\n")
    os.mkdir(old)
    os.mkdir(at)
    run("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", password, old)
    run("gocryptfs", "-q", "-passfile", password, old, at)
    try:
        nasty(tmp_path / "tree", small=50)
        run("rsync", "-aHAXS", "--numeric-ids", f"{tmp_path}/tree/", at + "/")
        run("umount", at)
        run("gocryptfs", "-q", "-ro", "-passfile", password, old, at)
        m = make_mount("m", shared_devkms)
        assert "'plain/attributes': attributes 'security.capability' are not copied" in bring(m, at).stderr
        m.mount()
        same(at, m.plain)
        assert read(m.path("plain", "x" * 255)) == b""
        assert read(m.path("many", "file7")) == read(tmp_path / "tree/many/file7")
    finally:
        run("umount", at, check=False)


USER = """set -e
ctl=$1 ini=$2 cipher=$3 plain=$4 byokfs=$5
$ctl import -c $ini --json $PWD/src $cipher > first
$ctl import -c $ini --json --verify=full $PWD/src $cipher > second
$byokfs -c $ini $cipher $plain
trap 'fusermount3 -u $plain' EXIT
$ctl import -c $ini --json $PWD/src $cipher > third
rsync -aHXn -i --checksum --delete src/ $plain/
"""


@pytest.mark.skipif(not shutil.which("fusermount3"), reason="no fusermount3")
def test_as_a_user(tmp_path, shared_devkms, request):
    base = tempfile.mkdtemp(prefix="byokfs-import-")  # other users may not enter pytest's own
    request.addfinalizer(lambda: shutil.rmtree(base, ignore_errors=True))
    os.chmod(base, 0o755)
    m = Mount(base + "/user", shared_devkms)
    src = nasty(m.base + "/src", small=20, root=False)
    subprocess.run(["chown", "-Rh", "nobody:nogroup", m.base], check=True)
    os.chmod(src + "/plain/mode4755", 0o4755)
    others = write(src + "/others", b"readable, but not mine")
    os.chmod(others, 0o4755)
    write(src + "/unreadable", b"x")
    os.chmod(src + "/unreadable", 0)
    os.mknod(src + "/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    script = f"""mkdir -p {tmp_path}/dev && mount -t tmpfs none {tmp_path}/dev && mknod -m 666 {tmp_path}/dev/fuse c 10 229 &&
        mount --bind {tmp_path}/dev/fuse /dev/fuse && cd {m.base} && exec setpriv --reuid nobody --regid nogroup --clear-groups "$@" """

    def go():
        return run(*NAMESPACE, "sh", "-c", script, "sh", "sh", "-c", USER, "sh", os.path.abspath(CTL), m.ini, m.cipher, m.plain,
                   os.path.abspath(BYOKFS), env={**m.environment(), "HOME": m.base, "XDG_RUNTIME_DIR": m.base, "PATH": os.environ["PATH"]}, check=False, timeout=60)

    r = go()
    assert r.returncode == FAILED and "'unreadable': cannot open it: Permission denied" in r.stderr and "'device': a device" in r.stderr, r
    assert r.stderr.count("error") == 1 and len(r.stderr.splitlines()) == 4, r.stderr
    assert f"attributes '{ACCESS}' are not copied" in r.stderr and f"attributes '{DEFAULT}' are not copied" in r.stderr
    os.unlink(src + "/unreadable")
    os.unlink(src + "/device")
    r = go()
    assert r.returncode == 0, r
    # Owners and set-id bits of files do not come over.
    assert [line.split()[1] for line in r.stdout.splitlines()] == ["others", "plain/mode4755"], r.stdout
    assert json.loads(read(m.base + "/second"))["skipped"] == json.loads(read(m.base + "/third"))["skipped"] > 40


# ---- interrupted ----

def test_killed_and_again(tmp_path, make_mount, shared_devkms):
    src = flat(tmp_path / "src", 1500)
    os.link(src + "/f00003", src + "/second")
    m = make_mount("m", shared_devkms)
    killed = []
    for n in (3, 200, 600, 1100):
        p = spawn(m, src)
        killed.append(f"import-{p.pid}.")
        wait_until(lambda: entries(m) > n + 5 or p.poll() is not None, step=0.002)
        assert p.poll() is None
        p.kill()
        p.communicate()
    out, _ = done(spawn(m, src, "--json"), 0)
    assert 1000 < json.loads(out)["skipped"] < 1501, out
    assert not private_mounts(m) and not [n for n in os.listdir("/run/byokfs") if n.startswith(tuple(killed))]
    m.mount()
    same(src, m.plain)
    assert not temporaries(m.plain)
    assert m.ctl("check", m.cipher).returncode == 0


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        return [int(n) for n in f.read().split()]


def test_killed_with_its_daemon(tmp_path, make_mount, shared_devkms):
    """The mount stays then: the next import takes it away, into whatever store."""
    m, other = make_mount("m", shared_devkms), make_mount("other", shared_devkms)
    src = flat(tmp_path / "src", 400)
    p = spawn(m, src)
    wait_until(lambda: entries(m) > 50, step=0.002)
    daemon, = children(p.pid)
    watchdogs = children(daemon)
    p.send_signal(signal.SIGSTOP)
    os.kill(daemon, signal.SIGKILL)
    p.kill()
    p.communicate()
    for pid in (daemon, *watchdogs):
        os.waitpid(pid, 0)
    assert len(private_mounts(m)) == 1
    bring(other, src)
    assert not private_mounts(m) and not [n for n in os.listdir("/run/byokfs") if n.startswith(f"import-{p.pid}.")]
    bring(m, src)
    m.mount()
    same(src, m.plain)


def test_interrupted_before_the_mount(tmp_path, make_mount, shared_devkms):
    m = make_mount("m", shared_devkms)
    src = flat(tmp_path / "src", 1)
    shared_devkms.fault(latency_ms=1500)
    try:
        p = spawn(m, src)
        wait_until(lambda: children(p.pid), step=0.002)
        p.send_signal(signal.SIGTERM)
        out, err = done(p, FAILED)
    finally:
        shared_devkms.clear()
    assert err == "byokfsctl: error: interrupted\n" and not out
    assert not private_mounts(m)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_interrupted(tmp_path, make_mount, shared_devkms, sig):
    src = flat(tmp_path / "src", 1500)
    m = make_mount("m", shared_devkms)
    p = spawn(m, src)
    wait_until(lambda: entries(m) > 100, step=0.002)
    p.send_signal(sig)
    _, err = done(p, FAILED)
    assert err == "byokfsctl: error: interrupted\nbyokfsctl: hint: the same command goes on where this one ended\n"
    assert not private_mounts(m)
    m.mount()
    assert not temporaries(m.plain)
    bring(m, src)
    same(src, m.plain)


def test_key_service_away(tmp_path, store):
    """Nothing fails while the lease lasts; then the command ends, and says why."""
    src = flat(tmp_path / "src", 3000)
    p = spawn(store, src, "--json")
    wait_until(lambda: entries(store) > 300, step=0.002)
    store.kms.stop()
    out, err = done(p, UNREACHABLE)
    assert json.loads(out)["failed"] == 0 and err.count("byokfsctl: error") == 1 and "the lease ended without an answer from the KMS" in err, err
    store.kms.start()
    assert json.loads(bring(store, src, "--json").stdout)["skipped"] > 250


@pytest.mark.parametrize("own", [True, False])
def test_key_disabled(tmp_path, store, own):
    src = flat(tmp_path / "src", 3000)
    if not own:
        store.mount()
    p = spawn(store, src, "--json")
    wait_until(lambda: entries(store) > 300, step=0.002)
    store.kms.disable()
    out, err = done(p, DENIED)
    answer = json.loads(out)
    assert answer["code"] == DENIED and 0 < answer["files"] < 3000 and answer["failed"] == 0, answer
    assert "byokfsctl: error: the store is lock" in err and "DisabledException" in err and err.count("byokfsctl: error") == 1, err
    r = bring(store, src, code=DENIED)
    assert ("byokfs: error: cannot open the store's key" if own else "byokfsctl: error: cannot import through the mount") in r.stderr
    store.kms.enable()
    if not own:
        wait_until(lambda: store.state() == "open")
    again = json.loads(bring(store, src, "--json").stdout)
    assert again["skipped"] >= answer["files"] and again["files"] + again["skipped"] == 3000
    if own:
        store.mount()
    same(src, store.plain)
    assert not temporaries(store.plain)


def test_store_full(tmp_path, shared_devkms):
    src = flat(tmp_path / "src", 40, 1 << 20)
    disk = Disk(tmp_path, "tmpfs", 24)
    m = Mount(tmp_path, shared_devkms)
    try:
        r = bring(m, src, code=FAILED)
        assert "byokfsctl: error: the store is full: No space left on device" in r.stderr and r.stderr.count("error") == 1, r.stderr
        disk.remount("size=100m")
        assert json.loads(bring(m, src, "--json").stdout)["skipped"] > 5
        m.mount()
        same(src, m.plain)
    finally:
        m.close()
        disk.close()


def spoil(path, content):
    """What a lost write leaves: other bytes, the same attributes."""
    st = os.stat(path)
    with open(path, "r+b") as f:
        f.truncate(0)
        f.write(content)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def test_lost_writes(tmp_path, shared_devkms):
    """What an earlier import left is copied again, if it is not whole, once the kernel tells that writes were lost."""
    src = flat(tmp_path / "src", 12)
    disk = Disk(tmp_path, "tmpfs", 24)
    m = Mount(tmp_path, shared_devkms)
    try:
        bring(m, src)
        m.mount()
        spoil(m.path("f00003"), b"y" * 2000)
        spoil(m.path("f00007"), b"")
        os.sync()
        r = json.loads(bring(m, src, "--json", code=FAILED).stdout)
        assert r["files"] == 0 and r["failed"] == 1 and "conflict" in r["problems"][0]["text"]
        fd = os.open(m.path("more"), os.O_WRONLY | os.O_CREAT)
        disk.fill()
        os.write(fd, bytes(4 << 20))
        with pytest.raises(OSError):
            os.fsync(fd)
        with contextlib.suppress(OSError):
            os.close(fd)
        os.unlink(m.path("more"))
        disk.free()
        r = bring(m, src, "--json")
        again = json.loads(r.stdout)
        assert again["files"] == 2 and again["skipped"] == 10 and again["warnings"] == 3 and again["failed"] == 0, again
        assert "writes from before were lost" in r.stderr and r.stderr.count("what an earlier import left is not whole: copied again") == 2
        same(src, m.plain)
        assert json.loads(bring(m, src, "--verify=full", "--json").stdout)["skipped"] == 12
    finally:
        m.close()
        disk.close()


# ---- what is there, what changes, what breaks ----

def test_conflicts(tmp_path, mount):
    src, m = tmp_path / "src", mount
    (src / "sub/dir").mkdir(parents=True)
    for name in ("same", "other", "sub/inner", "becomes-a-dir"):
        write(src / name, b"source")
    os.symlink("there", src / "link")
    write(m.path("other"), b"target")
    os.mkdir(m.path("becomes-a-dir"))
    os.mkdir(m.path("sub"))
    write(m.path("sub", "dir"), b"a file")
    os.symlink("elsewhere", m.path("link"))
    os.setxattr(m.path("sub"), DEFAULT, ACL)
    r = bring(m, src, code=FAILED)
    assert {line.split("'")[1] for line in r.stderr.splitlines()} == {"other", "becomes-a-dir", "sub/dir", "link"}
    assert all("conflict: it is there already, and different" in line for line in r.stderr.splitlines())
    assert read(m.path("other")) == b"target" and read(m.path("same")) == read(m.path("sub", "inner")) == b"source"
    assert ACCESS not in os.listxattr(m.path("sub", "inner")), "an ACL was inherited"
    r = json.loads(bring(m, src, "--overwrite", "--json", code=FAILED).stdout)
    assert r["failed"] == 2 and r["files"] == 1 and r["others"] == 1 and r["skipped"] == 2, r
    assert {(p["kind"], p["path"]) for p in r["problems"]} == {("error", "becomes-a-dir"), ("error", "sub/dir")}
    assert read(m.path("other")) == b"source" and os.readlink(m.path("link")) == "there" and read(m.path("sub", "dir")) == b"a file"
    # The time is part of what makes it the same, to the nanosecond.
    st = os.stat(src / "same")
    os.utime(m.path("same"), ns=(st.st_atime_ns, st.st_mtime_ns + 1))
    assert "'same': conflict" in bring(m, src, code=FAILED).stderr


def test_links_of_what_is_there(tmp_path, mount):
    """A copy made by something that knew no hard links becomes one again; other key domains get copies."""
    src = tmp_path / "src"
    (src / "domain").mkdir(parents=True)
    write(src / "a", b"x" * 5000)
    for name in ("b", "c", "domain/d"):
        os.link(src / "a", src / name)
    run("cp", "-p", "--no-preserve=links", src / "a", src / "b", mount.plain)
    os.mkdir(mount.path("domain"))
    key = mount.kms.client.create_key()["KeyMetadata"]["Arn"]
    assert mount.ctl("domain", "add", mount.path("domain"), "--key", key).returncode == 0
    r = bring(mount, src)
    assert "a hard link cannot be made here" in r.stderr
    assert len({os.stat(mount.path(n)).st_ino for n in "abc"}) == 1 and os.stat(mount.path("domain", "d")).st_nlink == 1
    assert read(mount.path("domain", "d")) == b"x" * 5000 and not temporaries(mount.plain)


def test_source_changes(tmp_path, make_mount, shared_devkms):
    src = tmp_path / "src"
    src.mkdir()
    write(src / "quiet", b"x")
    write(src / "busy", bytes(48 << 20))
    stop = threading.Event()

    def change():
        with open(src / "busy", "r+b") as f:
            while not stop.is_set():
                f.write(b"y")
                f.flush()
                time.sleep(0.001)

    m = make_mount("m", shared_devkms)
    t = threading.Thread(target=change)
    t.start()
    try:
        r = bring(m, src, code=FAILED)
    finally:
        stop.set()
        t.join()
    assert r.stderr == "byokfsctl: error: 'busy': it changes while it is copied: not copied\n"
    assert json.loads(bring(m, src, "--json").stdout)["files"] == 1
    m.mount()
    same(src, m.plain)


def test_link_to_what_changed(tmp_path, make_mount, shared_devkms):
    """A further name of something that is not any more what was copied: its inode may be another file's by now."""
    m = make_mount("m", shared_devkms).mount()
    src = tmp_path / "src"
    os.makedirs(src)
    write(src / "first", b"old")
    flat(src / "sub", 3000)
    os.mkdir(src / "sub/deep")
    os.link(src / "first", src / "sub/deep/second")
    p = spawn(m, src, "--jobs=1")
    wait_until(lambda: os.path.exists(m.path("first")), step=0.002)
    p.send_signal(signal.SIGSTOP)
    assert not os.path.exists(m.path("sub", "deep", "second"))
    write(src / "first", b"newer")
    p.send_signal(signal.SIGCONT)
    done(p, 0)
    assert read(m.path("first")) == b"old" and read(m.path("sub", "deep", "second")) == b"newer"
    r = bring(m, src, code=FAILED)
    assert r.stderr == "byokfsctl: error: 'first': conflict: it is there already, and different\n"


def test_shorter_than_it_says(mount):
    """What cannot be read to its end is not copied, whoever compares."""
    r = bring(mount, "/sys/module/fuse/parameters", "--verify=none", "--json", code=FAILED)
    assert json.loads(r.stdout)["files"] == 0 and r.stderr.count("it changes while it is copied: not copied") == json.loads(r.stdout)["failed"] > 0
    assert os.listdir(mount.plain) == []


def test_damaged_before(tmp_path, mount):
    """What was there is read again only when asked for."""
    src = flat(tmp_path / "src", 5, 300_000)
    bring(mount, src)
    mount.umount()
    mount.mount()
    flip(backing_of(mount, "f00002"), 200_000)
    bring(mount, src)
    r = json.loads(bring(mount, src, "--verify=full", "--json", code=DAMAGE).stdout)
    assert r["damaged"] == 1 and r["problems"][0]["path"] == "f00002" and "Input/output error" in r["problems"][0]["text"], r
    # Other bytes under the same size and time are no less wrong.
    st = os.stat(src + "/f00004")
    write(src + "/f00004", os.urandom(300_000))
    os.utime(src + "/f00004", ns=(st.st_atime_ns, st.st_mtime_ns))
    r = bring(mount, src, "--verify=full", code=DAMAGE)
    assert "'f00004': bytes that were read back differ from the source's" in r.stderr


def test_damaged_between(tmp_path, make_mount, shared_devkms):
    """A bit falls after it was written and before it is read back."""
    src, size = tmp_path / "src", 192 << 20
    src.mkdir()
    with open(src / "big", "wb") as f:
        for _ in range(size >> 20):
            f.write(os.urandom(1 << 20))
    m = make_mount("m", shared_devkms)
    p = spawn(m, src)

    def last():
        for base, _, files in os.walk(m.cipher):
            for name in files:
                path = os.path.join(base, name)
                if ".byokfs" not in path and os.path.exists(path) and os.path.getsize(path) > size // 4:
                    return path
        return p.poll() is not None

    path = wait_until(last, step=0.001)
    assert p.poll() is None
    p.send_signal(signal.SIGSTOP)
    flip(path, 1 << 20)  # it is read back when all is written
    p.send_signal(signal.SIGCONT)
    _, err = done(p, DAMAGE)
    assert err.endswith("byokfsctl: error: 'big': cannot read back the copy: Input/output error\n") and err.count("error:") == 1
    m.mount()
    assert os.listdir(m.plain) == []
    m.umount()
    bring(m, src)


# ---- the mount, the arguments ----

def test_which_mount(tmp_path, store):
    src = flat(tmp_path / "src", 3)
    store.mount("ro")
    bring(store, src, "--into=a/b")
    store.umount()
    store.mount()
    assert sorted(os.listdir(store.path("a", "b"))) == ["f00000", "f00001", "f00002"]
    before = store.status()["counters"]["write_bytes"]
    bring(store, src, "--into", "c", "--jobs=1", "--verify=none")
    assert store.status()["counters"]["write_bytes"] >= before + 6000, "not through the mount"
    r = bring(store, store.path("a"), "--into=d", code=FAILED)
    assert "lies in the mount itself" in r.stderr
    r = bring(store, store.base, code=FAILED)
    assert "lies in" in r.stderr and "copied into itself" in r.stderr
    r = bring(store, store.cipher, code=FAILED)
    assert "lies in the store itself" in r.stderr
    before = sorted(os.listdir(store.plain))
    os.symlink(store.base, store.path("link"))
    for into in ("link", "c/f00000", "n" * 300):
        r = bring(store, src, f"--into={into}", code=FAILED)
        assert r.stderr.startswith(f"byokfsctl: error: cannot open '{into}' in the store: ") and not r.stdout, r
    os.unlink(store.path("link"))
    assert sorted(os.listdir(store.plain)) == before
    store.ctl("lock", store.plain, check=True)
    r = bring(store, src, code=FAILED)
    assert r.stderr == f"byokfsctl: error: cannot import through the mount '{store.plain}': the store is locked: locked by the administrator\n"


def test_other_file_systems_stay_out(tmp_path, make_mount, shared_devkms):
    src = tmp_path / "src"
    (src / "on").mkdir(parents=True)
    run("mount", "-t", "tmpfs", "none", src / "on")
    m = make_mount("m", shared_devkms)
    try:
        write(src / "on/file", b"x")
        r = bring(m, src)
        assert r.stderr == "byokfsctl: warning: 'on': on another file system: not copied\n"
    finally:
        run("umount", src / "on")


def test_one_at_a_time(tmp_path, make_mount, shared_devkms):
    """The lock is the store's: two through one mount would sweep away each other's temporaries."""
    import fcntl
    m = make_mount("m", shared_devkms)
    fd = os.open(m.cipher, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    r = bring(m, flat(tmp_path / "src", 1), code=ALREADY)
    assert r.stderr == f"byokfsctl: error: another import into '{m.cipher}' is running\n"
    os.close(fd)


@pytest.mark.parametrize("args, code, text", [
    ([], USAGE, "missing argument"), (["{src}"], USAGE, "missing argument"), (["{src}", "{cipher}", "x"], USAGE, "one argument too many: 'x'"),
    (["{src}", "{cipher}", "--jobs=0"], USAGE, "--jobs: '0' is not a number from 1 to 64"), (["{src}", "{cipher}", "--jobs=65"], USAGE, "'65'"),
    (["{src}", "{cipher}", "--jobs=2x"], USAGE, "'2x'"), (["{src}", "{cipher}", "--verify=some"], USAGE, "'some' is not copied, full or none"),
    (["{src}", "{cipher}", "--into=../x"], USAGE, "'../x' is not a path below the root of the store"),
    (["{src}", "{cipher}", "--into=/x"], USAGE, "'/x'"), (["{src}", "{cipher}", "--into=a/.."], USAGE, "'a/..'"), (["{src}", "{cipher}", "--nonsense"], USAGE, "unknown option"),
    (["{src}/none", "{cipher}"], FAILED, "cannot open the source"), (["{src}/f00000", "{cipher}"], FAILED, "Not a directory"),
    (["{src}", "{src}/none"], NOT_A_STORE, "is not a store: No such file or directory"), (["{src}", "{src}"], NOT_A_STORE, "it has no '.byokfs'"),
    (["{src}", "{cipher}", "-o", "kms.nonsense=1"], CONFIG, "byokfs: error:"), (["{src}", "{cipher}", "-o", "kms.key=alias/none"], CONFIG, "byokfs: error:")])
def test_arguments(tmp_path_factory, shared_devkms, args, code, text):
    base = tmp_path_factory.mktemp("arguments")
    m, src = Mount(base, shared_devkms), flat(base / "src", 1)
    r = m.ctl("import", *[a.format(src=src, cipher=m.cipher) for a in args], *(["-c", m.ini] if code != USAGE else []))
    assert r.returncode == code and text in r.stderr and not r.stdout, r
    assert r.stderr.count("error") == 1 and r.stderr.count("hint") <= 1, r.stderr
    assert not private_mounts(m)
