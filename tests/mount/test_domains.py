"""Key domains: a directory under a key of its own. What that key's owner does is felt in that subtree and nowhere else."""
import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from conftest import AK, SK, wait_until
from damage import backing_of
from faults import Child, Mapper, PROMISE, SLACK, compile_c, err, get, pattern, put, say, until
from test_audit import Audited
from test_lock import Tree, answers
from test_memory import halves, scan

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reader"))
import byokfs_reader as reader  # noqa: E402

PAGE = 4096


def new_key(devkms):
    return devkms.client.create_key(Description="a domain's")["KeyMetadata"]["Arn"]


def add(mount, name, key, *options):
    path = mount.path(*name.split("/"))
    if not os.path.isdir(path):
        os.mkdir(path)
    r = mount.ctl("domain", "add", path, "--key", key, "--json", *options)
    assert r.returncode == 0, r.stderr
    return json.loads(r.stdout)


def domain(mount, index):
    return next(d for d in mount.status()["domains"] if d["index"] == index)


def wait_state(mount, index, state, seconds=20):
    return wait_until(lambda: domain(mount, index)["state"] == state, seconds)


def listed(mount, where=None):
    r = mount.ctl("domain", "list", "--json", where or mount.plain)
    assert r.returncode == 0, r.stderr
    return {d["index"]: d for d in json.loads(r.stdout)}


def checked(mount):
    r = mount.ctl("check", "--json", mount.cipher)
    return r.returncode, json.loads(r.stdout)


def read_all(mount):
    """Every file of the store as the second implementation reads it: {plain path: content}."""
    os.environ.update(AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, AWS_DEFAULT_REGION="us-east-1")
    store = reader.Store(mount.cipher, reader.aws_unseal(mount.kms.endpoint))
    out = {}
    for node in store.walk():
        if node.kind == "f":
            with store.open(node) as f:
                out[os.fsdecode(node.path)] = (node.domain.index, f.read())
    return out


class Below:
    """A directory of a mount, for helpers that want a mount."""

    def __init__(self, mount, *names):
        self.plain = mount.path(*names)

    def path(self, *names):
        return os.path.join(self.plain, *names)


@pytest.fixture(scope="module")
def mapper_program(tmp_path_factory):
    return compile_c("mapper", tmp_path_factory.mktemp("c"))


@pytest.fixture
def fds():
    opened = []

    def open_(path, flags=os.O_RDWR):
        opened.append(os.open(path, flags))
        return opened[-1]

    yield open_
    for fd in opened:
        assert err(os.close, fd) == 0


@pytest.fixture
def two(mount, devkms):
    """A mount with a domain 'vault' under a second key, and that key."""
    key = new_key(devkms)
    add(mount, "vault", key)
    return mount, key


# ---- making one

@pytest.mark.sanitizer
@pytest.mark.parametrize("store_seal", ["file", "domain"])
def test_add_and_use(make_mount, devkms, store_seal):
    other = "domain" if store_seal == "file" else "file"
    m = make_mount(store_seal, devkms, init=(f"--seal={store_seal}",)).mount()
    key, inner = new_key(devkms), new_key(devkms)
    os.mkdir(m.path("vault"), 0o750)
    os.chown(m.path("vault"), 12, 34)
    os.setxattr(m.path("vault"), "user.tag", b"value")
    os.utime(m.path("vault"), (1000000000, 1000000001))
    before = os.stat(m.path("vault"))
    made = add(m, "vault", key, f"--seal={other}")
    assert made["index"] == 1 and made["key"] == key and made["seal"] == other
    after = os.stat(m.path("vault"))
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid, after.st_mtime) == (before.st_mode, 12, 34, 1000000001)
    assert os.getxattr(m.path("vault"), "user.tag") == b"value" and os.listxattr(m.path("vault")) == ["user.tag"]
    data = pattern(1, 300_000)
    put(m.path("vault", "file"), data)
    os.mkdir(m.path("vault", "dir"))
    put(m.path("vault", "dir", "n" * 200), b"long name")
    os.symlink("target", m.path("vault", "link"))
    os.mkfifo(m.path("vault", "fifo"))
    os.setxattr(m.path("vault", "file"), "user.a", b"b")
    put(m.path("outside"), b"outside")
    add(m, "vault/dir/inner", inner)
    put(m.path("vault", "dir", "inner", "deep"), b"deep")
    usage = {d["index"]: d for d in m.status()["domains"]}
    assert [usage[i]["seal"] for i in range(3)] == [store_seal, other, "file"]
    assert [usage[i]["kms"]["key"] for i in range(3)] == [devkms.key, key, inner]
    for _ in range(2):
        assert get(m.path("vault", "file")) == data and get(m.path("vault", "dir", "n" * 200)) == b"long name"
        assert os.readlink(m.path("vault", "link")) == "target" and get(m.path("vault", "dir", "inner", "deep")) == b"deep"
        assert os.getxattr(m.path("vault", "file"), "user.a") == b"b"
        assert os.getxattr(m.path("vault"), "user.tag") == b"value"
        assert sorted(os.listdir(m.plain)) == ["outside", "vault"]
        m.remount()
    table = listed(m)
    assert [table[i]["path"] for i in range(3)] == [m.plain, m.path("vault"), m.path("vault", "dir", "inner")]
    assert [table[i]["state"] for i in range(3)] == ["open"] * 3 and table[2]["key"] == inner
    text = m.ctl("domain", "list", m.plain).stdout
    assert m.path("vault", "dir", "inner") in text and key in text
    text = m.ctl("status", m.plain).stdout
    assert "domain 2" in text and inner in text
    m.umount()
    offline = listed(m, m.cipher)
    assert offline[1]["key"] == key and offline[1]["state"] is None and offline[1]["directory"]
    info = json.loads(m.ctl("info", "--json", m.cipher).stdout)
    assert info["domains"] == 3
    code, report = checked(m)
    assert code == 0 and report["damage"] == report["warnings"] == 0, report
    seen = read_all(m)
    assert seen["vault/file"] == (1, data) and seen["vault/dir/inner/deep"] == (2, b"deep") and seen["outside"] == (0, b"outside")


def test_calls_name_the_key_and_the_domain(two, devkms):
    """The second key's own log shows its domain's files, and nothing of the others'."""
    mount, key = two
    put(mount.path("vault", "f"), b"x")
    put(mount.path("g"), b"y")
    mount.remount()
    before = devkms.stats()
    assert get(mount.path("g")) == b"y"
    assert get(mount.path("vault", "f")) == b"x"
    calls = {d["index"]: d["kms"]["calls"] for d in mount.status()["domains"]}
    assert calls[0] >= 2 and calls[1] >= 2 and before
    d = domain(mount, 1)
    assert d["counters"]["reads"] == 1 and d["counters"]["operations"] > 0 and d["counters"]["file_keys"] == 1


def test_refusals(two, devkms, tmp_path):
    mount, key = two
    other = new_key(devkms)

    def refused(path, code, words, *options, use=None):
        r = mount.ctl("domain", "add", path, "--key", use or other, *options)
        assert r.returncode == code and words in r.stderr, (r.returncode, r.stderr)
        assert "byokfsctl: error: " in r.stderr

    put(mount.path("file"), b"x")
    os.mkdir(mount.path("full"))
    put(mount.path("full", "f"), b"x")
    os.mkdir(mount.path("empty"))
    refused(mount.path("file"), 1, "Not a directory")
    refused(mount.path("full"), 1, "not empty")
    refused(mount.path("absent"), 1, "No such file")
    refused(mount.path("vault"), 9, "already")
    refused(mount.plain, 9, "root")
    refused(str(tmp_path), 8, "no byokfs")
    assert mount.ctl("domain", "add", mount.path("empty")).returncode == 2
    assert mount.ctl("domain", "add", mount.path("empty"), "--key", other, "--seal=x").returncode == 2
    assert mount.ctl("domain", "frob", mount.path("empty")).returncode == 2
    devkms.disable(other)
    refused(mount.path("empty"), 5, "DisabledException")
    refused(mount.path("empty"), 3, "NotFoundException", use=other[:-4] + "0000")
    refused(mount.path("empty"), 3, "alias", use="alias/absent")
    devkms.enable(other)
    assert mount.ctl("lock", mount.plain, "--domain=0").returncode == 0
    assert mount.ctl("unlock", mount.plain, "--domain=0").returncode == 0
    assert mount.ctl("lock", mount.plain, "--domain", mount.path("vault")).returncode == 0
    os.stat(mount.path("vault"))
    assert mount.ctl("unlock", mount.plain, "--domain=1").returncode == 0
    assert mount.ctl("lock", mount.plain, "--domain=77").returncode == 8
    assert len(mount.status()["domains"]) == 2 and sorted(os.listdir(mount.path("empty"))) == []
    mount.remount("ro")
    refused(mount.path("empty"), 1, "read-only")
    mount.umount()
    assert checked(mount)[0] == 0


def test_alias_is_resolved_and_pinned(mount, devkms):
    key, later = new_key(devkms), new_key(devkms)
    devkms.client.create_alias(AliasName="alias/tenant", TargetKeyId=key)
    made = add(mount, "vault", "alias/tenant")
    assert made["key"] == key
    devkms.client.update_alias(AliasName="alias/tenant", TargetKeyId=later)
    put(mount.path("vault", "f"), b"x")
    mount.remount()
    assert get(mount.path("vault", "f")) == b"x" and listed(mount)[1]["key"] == key


def test_a_kms_that_hangs_blocks_no_other_verb(mount, devkms):
    os.mkdir(mount.path("vault"))
    key = new_key(devkms)
    devkms.fault(key=key, hang=True)
    args = mount.ctl.__func__  # the same program, in the background
    child = Child(lambda tell: tell(str(args(mount, "domain", "add", mount.path("vault"), "--key", key).returncode)))
    wait_until(lambda: not child.running() or mount.status()["state"] == "open")
    for _ in range(3):
        begin = time.monotonic()
        assert mount.status()["state"] == "open"
        assert time.monotonic() - begin < 2
    r = mount.ctl("domain", "add", mount.path("vault"), "--key", key)
    assert r.returncode in (6, 9), r.stderr
    assert child.wait(60) == 0 and child.lines() == ["6"]
    devkms.clear()
    add(mount, "vault", key)
    put(mount.path("vault", "f"), b"x")


def test_old_handles_see_a_removed_directory(mount, devkms, fds):
    os.mkdir(mount.path("vault"))
    old = fds(mount.path("vault"), os.O_RDONLY | os.O_DIRECTORY)
    add(mount, "vault", new_key(devkms))
    assert os.listdir(old) == [] and err(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=old) in (errno.ENOENT, errno.ESTALE)
    put(mount.path("vault", "f"), b"x")
    assert os.listdir(mount.path("vault")) == ["f"]


def test_many_domains(mount, devkms):
    """Domains beside and below each other, one key for all of them: each is still locked by itself."""
    key = new_key(devkms)
    for i in range(8):
        add(mount, f"d{i}", key, "--seal=domain")
        put(mount.path(f"d{i}", "f"), b"%d" % i)
    mount.remount()
    assert [get(mount.path(f"d{i}", "f")) for i in range(8)] == [b"%d" % i for i in range(8)]
    assert mount.ctl("lock", mount.plain, "--domain=3").returncode == 0
    assert [err(get, mount.path(f"d{i}", "f")) for i in range(8)] == [errno.EIO if i == 2 else 0 for i in range(8)]
    assert mount.ctl("unlock", mount.plain, "--domain=3").returncode == 0
    os.rmdir(mount.path("d7")) if not os.listdir(mount.path("d7")) else os.unlink(mount.path("d7", "f"))
    os.rmdir(mount.path("d7"))
    row = listed(mount)[8]
    assert row["directory"] is False and row["path"] is None
    assert "no directory" in mount.ctl("domain", "list", mount.plain).stdout
    mount.remount()
    assert len(listed(mount)) == 9 and checked(mount)[1]["damage"] == 0


# ---- the border

@pytest.mark.sanitizer
def test_nothing_crosses_without_being_sealed_anew(two, devkms):
    mount, _ = two
    put(mount.path("f"), b"outside")
    put(mount.path("vault", "g"), b"inside")
    os.mkdir(mount.path("d"))
    os.mkdir(mount.path("vault", "e"))
    os.symlink("x", mount.path("l"))
    exchange = 2

    def renameat2(a, b, flags):
        libc = __import__("ctypes").CDLL(None, use_errno=True)
        if libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags) != 0:
            return __import__("ctypes").get_errno()
        return 0

    for call in (os.rename, os.link):
        assert err(call, mount.path("f"), mount.path("vault", "f")) == errno.EXDEV
        assert err(call, mount.path("vault", "g"), mount.path("g")) == errno.EXDEV
        assert err(call, mount.path("f"), mount.path("vault", "g")) in (errno.EXDEV, errno.EEXIST)
    for flags in (1, exchange):
        assert renameat2(mount.path("f"), mount.path("vault", "new" if flags == 1 else "g"), flags) == errno.EXDEV
    assert err(os.rename, mount.path("d"), mount.path("vault", "d")) == errno.EXDEV
    assert err(os.rename, mount.path("vault", "e"), mount.path("d2")) == errno.EXDEV
    assert err(os.link, mount.path("l"), mount.path("vault", "l"), follow_symlinks=False) == errno.EXDEV
    subprocess.run(["mv", mount.path("f"), mount.path("vault", "moved")], check=True)
    subprocess.run(["mv", mount.path("d"), mount.path("vault", "dir")], check=True)
    assert get(mount.path("vault", "moved")) == b"outside" and not os.path.exists(mount.path("f"))
    subprocess.run(["cp", "-a", mount.path("vault", "moved"), mount.path("back")], check=True)
    # The root itself is an entry of its parent, and moves there freely.
    os.rename(mount.path("vault"), mount.path("renamed"))
    put(mount.path("renamed", "after"), b"x")
    os.mkdir(mount.path("up"))
    os.rename(mount.path("renamed"), mount.path("up", "vault"))
    assert get(mount.path("up", "vault", "moved")) == b"outside"
    mount.umount()
    seen = read_all(mount)
    assert {p: s[0] for p, s in seen.items()} == {"up/vault/moved": 1, "up/vault/g": 1, "up/vault/after": 1, "back": 0}
    assert checked(mount)[0] == 0


def worker(base, stop):
    """Writes, syncs, reads, renames; any error at all is the end."""
    def run(tell):
        rounds = 0
        os.mkdir(base)
        with open(os.path.join(base, "open"), "w+b", buffering=0) as f:
            while not os.path.exists(stop):
                data = pattern(rounds, 20_000)
                os.pwrite(f.fileno(), data, 0)
                os.fsync(f.fileno())
                put(os.path.join(base, "new"), data, sync=rounds % 3 == 0)
                os.rename(os.path.join(base, "new"), os.path.join(base, "old"))
                if get(os.path.join(base, "old")) != data or os.pread(f.fileno(), 20_000, 0) != data:
                    raise AssertionError("wrong bytes")
                os.listdir(base)
                rounds += 1
        tell(f"rounds {rounds}")
    return run


@pytest.mark.sanitizer
@pytest.mark.parametrize("which", ["nested", "outer"])
def test_a_denied_key_locks_its_own_subtree_only(two, devkms, fds, mapper_program, tmp_path, which):
    mount, key = two
    stop = str(tmp_path / "stop")
    add(mount, "vault/inner", devkms.key)  # the first key again, but a domain of its own
    add(mount, "other", new_key(devkms))
    put(mount.path("vault", "inner", "f"), b"inner")
    put(mount.path("outside"), b"outside")
    inner = fds(mount.path("vault", "inner", "f"))
    where = Below(mount, "vault") if which == "nested" else Below(mount, "base")
    os.makedirs(where.plain, exist_ok=True)
    denied = key if which == "nested" else devkms.key
    index = 1 if which == "nested" else 0
    tree = Tree(where, fds)
    looks = {name: way for name, way in tree.looks().items() if name != "stat of a missing name"}
    if which == "outer":  # paths lead through the denied domain, descriptors do not
        put(mount.path("vault", "held"), b"held")
        held = fds(mount.path("vault"), os.O_RDONLY | os.O_DIRECTORY)
        bases = [f"/proc/{os.getpid()}/fd/{held}/w"]
    else:
        bases = [mount.path("other", "w"), mount.path("w")]
    others = [Child(worker(b, stop)) for b in bases]
    mapper = Mapper(mapper_program, where.path("closed"))
    wait_until(lambda: all(os.path.exists(os.path.join(b, "old")) for b in bases))
    try:
        assert mapper.ask("s", 0) == str(tree.data[0])
        begin = time.monotonic()
        devkms.disable(denied)
        until(lambda: not answers(looks) and mapper.ask("s", 0) == "SIGBUS", PROMISE + SLACK)
        say(f"denial of the {which} key -> EIO in its domain: {time.monotonic() - begin:.2f} s")
        assert answers({n: w for n, w in tree.changes().items() if n != "rename"}) == {}
        wait_state(mount, index, "locked")
        wait_state(mount, 2, "open" if which == "nested" else "locked")
        if which == "nested":
            os.stat(mount.path("vault"))  # its entry is the parent's
            assert "vault" in os.listdir(mount.plain)
            assert err(os.listdir, mount.path("vault")) == errno.EIO
            assert err(os.stat, mount.path("vault", "inner", "f")) == errno.EIO
            assert os.pread(inner, 5, 0) == b"inner"
            os.pwrite(inner, b"INNER", 0)
            os.fsync(inner)
        else:
            assert err(os.stat, mount.path("vault")) == errno.EIO
            assert "held" in os.listdir(held) and os.fstat(held).st_nlink > 0
            assert os.pread(fd_of(held, "held", fds), 4, 0) == b"held"
        time.sleep(0.5)  # the others run on for a while
        assert all(c.running() for c in others)
        devkms.enable(denied)
        wait_state(mount, index, "open")
    finally:
        open(stop, "w").close()
        mapper.close()
    codes, lines = [c.wait(30) for c in others], [c.lines() for c in others]
    assert codes == [0] * len(others), lines
    rounds = [int(line[-1].split()[1]) for line in lines]
    say(f"workers of the other domains meanwhile: {rounds} rounds, no error")
    assert all(r > 3 for r in rounds)
    assert get(where.path("closed")) == tree.data and os.pread(tree.fd, len(tree.data), 0) == tree.data
    wait_state(mount, 2, "open")
    assert mount.status()["counters"]["lost_files"] == 0
    assert get(mount.path("vault", "inner", "f")) == (b"INNER" if which == "nested" else b"inner")


def fd_of(dirfd, name, fds):
    fd = os.open(name, os.O_RDONLY, dir_fd=dirfd)
    try:
        return fds(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


def test_lock_and_unlock_one(two, fds):
    mount, _ = two
    put(mount.path("vault", "f"), b"inside")
    put(mount.path("g"), b"outside")
    f, g = fds(mount.path("vault", "f")), fds(mount.path("g"))
    os.pwrite(f, b"INSIDE", 0)
    assert mount.ctl("lock", mount.plain, "--domain", mount.path("vault")).returncode == 0
    assert err(os.pread, f, 1, 0) == errno.EIO and os.pread(g, 7, 0) == b"outside"
    assert mount.ctl("lock", mount.plain, "--domain=1").returncode == 9
    assert [d["state"] for d in mount.status()["domains"]] == ["open", "locked"] and mount.state() == "open"
    assert "administrator" in domain(mount, 1)["reason"] and domain(mount, 1)["by_admin"]
    assert mount.ctl("unlock", mount.plain, "--domain", domain(mount, 1)["id"]).returncode == 0
    assert os.pread(f, 6, 0) == b"INSIDE"
    assert mount.ctl("unlock", mount.plain, "--domain=1").returncode == 9
    assert mount.ctl("lock", mount.plain).returncode == 0
    assert err(os.pread, f, 1, 0) == err(os.pread, g, 1, 0) == errno.EIO
    assert {d["state"] for d in mount.status()["domains"]} == {"locked"}
    assert mount.ctl("lock", mount.plain).returncode == 9
    assert mount.ctl("unlock", mount.plain).returncode == 0
    assert os.pread(f, 6, 0) == b"INSIDE" and os.pread(g, 7, 0) == b"outside"
    assert mount.status()["counters"]["lost_files"] == 0


# ---- mounts

@pytest.mark.parametrize("why", ["denied", "hangs"])
def test_a_mount_does_not_wait_for_a_nested_key(two, devkms, why):
    mount, key = two
    put(mount.path("vault", "f"), b"inside")
    put(mount.path("g"), b"outside")
    mount.umount()
    devkms.disable(key) if why == "denied" else devkms.fault(key=key, hang=True)
    mount.mount()
    assert get(mount.path("g")) == b"outside"
    assert err(os.stat, mount.path("vault")) == 0 and err(get, mount.path("vault", "f")) == errno.EIO
    wait_until(lambda: domain(mount, 1)["reason"])
    assert domain(mount, 1)["state"] == "locked" and mount.state() == "open"
    put(mount.path("g"), b"more")
    assert "domain 1" in mount.read_log()
    if why == "denied":
        assert "DisabledException" in domain(mount, 1)["reason"]
        r = mount.ctl("unlock", mount.plain, "--domain=1")
        assert r.returncode == 5 and "DisabledException" in r.stderr
        devkms.enable(key)
    else:
        devkms.clear()
    wait_state(mount, 1, "open")
    assert get(mount.path("vault", "f")) == b"inside"
    mount.remount()
    assert get(mount.path("vault", "f")) == b"inside" and get(mount.path("g")) == b"more"


def test_locked_start_opens_nested_domains_too(two, devkms):
    mount, key = two
    put(mount.path("vault", "f"), b"inside")
    mount.umount()
    devkms.disable()
    mount.mount("locked_start")
    assert mount.state() == "locked" and err(os.stat, mount.path("vault")) == errno.EIO
    devkms.enable()
    wait_until(lambda: mount.state() == "open" and len(mount.status()["domains"]) == 2)
    wait_state(mount, 1, "open")
    assert get(mount.path("vault", "f")) == b"inside"


def test_after_a_crash_a_locked_domain_holds_nobody_up(two, devkms):
    mount, key = two
    for name in ("a", "b"):
        put(mount.path("vault", name), pattern(1, 50_000), sync=False)
        put(mount.path(name), pattern(2, 50_000), sync=False)
    os.sync()
    fd = os.open(mount.path("a"), os.O_RDWR)
    mount.kill()
    err(os.close, fd)
    mount.clear_dead()
    for name in os.listdir(mount.cipher):  # wrong hints, in both domains
        path = os.path.join(mount.cipher, name)
        inner = [os.path.join(path, n) for n in os.listdir(path)] if os.path.isdir(path) and not name.startswith(".") else []
        for p in [path, *inner]:
            if os.path.isfile(p) and not os.path.islink(p):
                os.truncate(p, os.path.getsize(p) + 1)
    devkms.disable(key)
    mount.mount()
    markers = os.path.join(mount.cipher, ".byokfs", "mounts")
    wait_until(lambda: "wait until their key domain is open" in mount.read_log())
    assert get(mount.path("a")) == pattern(2, 50_000) and len(os.listdir(markers)) == 2
    devkms.enable(key)
    wait_state(mount, 1, "open")
    wait_until(lambda: len(os.listdir(markers)) == 1)
    assert os.stat(mount.path("vault", "b")).st_size == 50_000 and get(mount.path("vault", "a")) == pattern(1, 50_000)
    mount.umount()
    assert checked(mount)[0] == 0


IMPATIENT = "[cache]\nprobe = 20s\nlease = 60s\nidle = 200ms\n"


def idle_ini(devkms, more=""):
    return (f"[kms]\nprovider = aws\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\nrequest_timeout = 30s\n"
            f"{IMPATIENT}{more}")


def file_keys(mount, index):
    return domain(mount, index)["counters"]["file_keys"]


def test_a_hung_domain_holds_up_no_seek_of_others(make_mount, devkms, tmp_path):
    """What waits for a key waits longer than this test has; the others must not wait with it."""
    m = make_mount("idle", devkms, ini=idle_ini(devkms)).mount()
    key = new_key(devkms)
    add(m, "vault", key)
    put(m.path("vault", "f"), b"x" * 20_000)
    put(m.path("g"), b"y" * 20_000)
    m.remount()
    go = str(tmp_path / "go")

    def seek(tell):
        fd = os.open(m.path("vault", "f"), os.O_RDWR)
        assert os.pread(fd, 10, 0) == b"x" * 10
        tell("read")
        until(lambda: os.path.exists(go), 60)
        os.pwrite(fd, b"z" * 100, 0)
        err(os.lseek, fd, 0, os.SEEK_DATA)

    child = Child(seek)  # its files are not ours: a process we start would close them, and wait for what is dirty
    try:
        wait_until(lambda: domain(m, 1)["counters"]["reads"] > 0 and file_keys(m, 1) == 0)
        devkms.fault(key=key, hang=True)
        open(go, "w").close()
        wait_until(lambda: domain(m, 1)["counters"]["waiting"])
        g = os.open(m.path("g"), os.O_RDWR)
        os.pwrite(g, b"z" * 100, 0)
        assert os.lseek(g, 0, os.SEEK_DATA) == 0
        os.close(g)
        assert child.running() and domain(m, 1)["kms"]["errors"] == 0  # it still waits for the first answer
    finally:
        devkms.clear()
    assert child.wait(60) == 0


def test_attributes_of_a_nested_root_are_its_parents(two, fds):
    """While the parent is locked, those who have the root open go on in it, and learn no times, sizes or counts."""
    mount, _ = two
    os.chown(mount.path("vault"), 12, 34)
    os.chmod(mount.path("vault"), 0o2751)
    os.mkdir(mount.path("vault", "sub"))
    os.utime(mount.path("vault"), (1000000000, 1000000000))
    put(mount.path("vault", "f"), b"x")
    root = fds(mount.path("vault"), os.O_RDONLY | os.O_DIRECTORY)
    assert os.fstat(root).st_mode & 0o7777 == 0o2751
    assert mount.ctl("lock", mount.plain, "--domain=0").returncode == 0
    st = os.fstat(root)
    assert (st.st_mode, st.st_uid) == (0o42751, 12)  # what access is checked by
    assert (st.st_mtime, st.st_atime, st.st_ctime, st.st_size, st.st_nlink) == (0, 0, 0, 0, 2)
    assert sorted(os.listdir(root)) == ["f", "sub"] and err(os.stat, mount.path("vault")) == errno.EIO
    assert mount.ctl("unlock", mount.plain, "--domain=0").returncode == 0
    assert os.fstat(root).st_mode & 0o7777 == 0o2751


def test_a_reload_says_that_nested_domains_wait_for_the_next_mount(two, devkms):
    mount, _ = two
    with open(mount.ini) as f:
        text = f.read()
    with open(mount.ini, "w") as f:
        f.write(text.replace(devkms.endpoint, devkms.endpoint + "/"))
    os.kill(mount.process.pid, signal.SIGHUP)
    wait_until(lambda: "nested key domains take these changes over with the next mount: kms.endpoint" in mount.read_log())


def test_many_readers_of_a_hung_domain_leave_slots_for_others(make_mount, devkms):
    """More reads than the default for mount.max_background wait for a key."""
    m = make_mount("idle", devkms, ini=idle_ini(devkms)).mount()
    key = new_key(devkms)
    add(m, "vault", key)
    names = [f"f{i}" for i in range(80)]
    for name in names:
        put(m.path("vault", name), b"x" * 70_000, sync=False)
    put(m.path("g"), b"y" * 70_000, sync=False)
    m.remount()
    fds = [os.open(m.path("vault", name), os.O_RDONLY) for name in names]
    g = os.open(m.path("g"), os.O_RDONLY)
    wait_until(lambda: file_keys(m, 1) == 0)
    devkms.fault(key=key, hang=True)
    readers = [threading.Thread(target=err, args=(os.pread, fd, 4096, 0)) for fd in fds]
    for reader_ in readers:
        reader_.start()
    try:
        wait_until(lambda: domain(m, 1)["counters"]["waiting"] >= len(fds))
        assert os.pread(g, 4096, 0) == b"y" * 4096
        assert domain(m, 1)["counters"]["waiting"] >= len(fds)
    finally:
        devkms.clear()
    for reader_ in readers:
        reader_.join()
    for fd in [*fds, g]:
        os.close(fd)


def test_files_of_nested_domains_are_flushed_and_promoted_without_asking(make_mount, devkms):
    """The syncer fetches keys that were given up meanwhile."""
    m = make_mount("idle", devkms, ini=idle_ini(devkms, "[mount]\nwriteback = no\n")).mount()
    for name, seal in (("a", "file"), ("b", "domain")):
        add(m, name, new_key(devkms), f"--seal={seal}")
        put(m.path(name, "f"), b"x" * 20_000)
    fds = [os.open(m.path(name, "f"), os.O_RDWR) for name in ("a", "b")]
    for fd in fds:
        os.pwrite(fd, b"z" * 100, 0)
    wait_until(lambda: m.status()["counters"]["unflushed"] > 0)
    wait_until(lambda: m.status()["counters"]["unflushed"] == 0, 60)
    for fd in fds:
        os.close(fd)


def test_unmount_while_a_domain_is_locked(two, devkms):
    mount, key = two
    put(mount.path("vault", "f"), b"inside")
    devkms.disable(key)
    wait_state(mount, 1, "locked")
    mount.umount()
    devkms.enable(key)
    mount.mount()
    assert get(mount.path("vault", "f")) == b"inside"


# ---- whoever owns the storage

def id_of(store_dir):
    return os.path.join(store_dir, ".byokfs.d")


def relink(path, text):
    os.unlink(path)
    os.symlink(text, path)


def with_index(text, index):
    import base64
    raw = bytearray(base64.urlsafe_b64decode(text + "=="))
    raw[:2] = index.to_bytes(2, "little")
    return base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")


@pytest.fixture
def tampered(mount, devkms):
    """Two domains with a file each, a plain directory, unmounted: the mount and the backing directories."""
    for name in ("one", "two"):
        add(mount, name, new_key(devkms))
        put(mount.path(name, "f"), name.encode())
        os.mkdir(mount.path(name, "sub"))
    os.mkdir(mount.path("plain"))
    put(mount.path("plain", "f"), b"plain")
    put(mount.path("top"), b"top")
    backing = {n: backing_of(mount, *n.split("/")) for n in ("one", "two", "plain", "one/sub", "one/f")}
    mount.umount()
    return mount, backing


def found(mount, *words):
    code, report = checked(mount)
    assert code == 7, report
    text = json.dumps(report["findings"])
    assert all(w in text for w in words), text


@pytest.mark.parametrize("how", ["another root's", "a subdirectory's", "unknown index", "the store's", "to the parent's", "plain as root"])
def test_directory_ids_that_lie(tampered, how):
    m, b = tampered
    victim = "plain" if how in ("plain as root", "a subdirectory's", "unknown index") else "one"
    if how == "another root's":
        relink(id_of(b["one"]), os.readlink(id_of(b["two"])))
    elif how == "a subdirectory's":  # authentic, of domain 1, but not its root
        relink(id_of(b["plain"]), os.readlink(id_of(b["one/sub"])))
    elif how == "unknown index":
        relink(id_of(b["plain"]), with_index(os.readlink(id_of(b["plain"])), 77))
    elif how == "the store's":
        relink(id_of(b["one"]), os.readlink(id_of(m.cipher)))
    elif how == "to the parent's":
        relink(id_of(b["one"]), with_index(os.readlink(id_of(b["one"])), 0))
    else:
        relink(id_of(b["plain"]), with_index(os.readlink(id_of(b["plain"])), 1))
    m.mount()
    if how == "another root's":  # whoever comes first is the root; what was in the other does not decrypt
        assert err(os.listdir, m.path("two")) == 0 and err(os.listdir, m.path("one")) == errno.EIO
        assert err(get, m.path("one", "f")) == errno.EIO
    else:
        assert err(os.listdir, m.path(victim)) == errno.EIO and err(get, m.path(victim, "f")) == errno.EIO
        assert get(m.path("two", "f")) == b"two"
    assert get(m.path("top")) == b"top"
    assert "refused" in m.read_log()
    m.umount()
    if how not in ("to the parent's",):  # needs the key to be seen
        found(m)


def test_exchanged_while_mounted(tampered):
    """A root whose id is exchanged for a subdirectory's between look-up and opening is no root."""
    m, b = tampered
    m.mount()
    os.stat(m.path("one"))
    relink(id_of(b["one"]), os.readlink(id_of(b["one/sub"])))
    assert err(os.listdir, m.path("one")) == errno.EIO
    assert get(m.path("two", "f")) == b"two"


def test_a_file_moved_or_linked_into_another_domain(tampered):
    m, b = tampered
    os.link(b["one/f"], os.path.join(b["two"], os.path.basename(b["one/f"])))
    os.link(b["one/f"], os.path.join(m.cipher, os.path.basename(b["one/f"])))
    m.mount()
    assert sorted(os.listdir(m.path("two"))) == ["f", "sub"] and get(m.path("one", "f")) == b"one"
    assert sorted(os.listdir(m.plain)) == ["one", "plain", "top", "two"]
    m.umount()
    found(m, "another key domain")


def test_a_file_under_its_own_name_in_another_domain(tampered):
    """Entry of one domain's file, inode of another's: what the kernel knows already is refused, what it does not cannot be opened."""
    m, b = tampered
    two_f = backing_in(m, b["two"])
    os.unlink(two_f)
    os.link(b["one/f"], two_f)
    m.mount()
    fd = os.open(m.path("one", "f"), os.O_RDONLY)
    assert err(os.stat, m.path("two", "f")) == errno.EIO
    assert "two key domains" in m.read_log()
    os.close(fd)
    m.umount()
    m.mount()
    assert err(get, m.path("two", "f")) == errno.EIO and get(m.path("top")) == b"top"


def backing_in(m, directory):
    """The only file in a backing directory."""
    files = [os.path.join(directory, n) for n in os.listdir(directory) if not n.startswith(".")]
    return next(f for f in files if os.path.isfile(f) and not os.path.islink(f))


@pytest.mark.parametrize("what", ["exchanged", "damaged", "missing", "one copy"])
def test_descriptors_of_nested_domains(tampered, what):
    m, b = tampered
    base = os.path.join(m.cipher, ".byokfs", "domains")
    rows = listed(m, m.cipher)
    one, two = (os.path.join(base, rows[i]["id"]) for i in (1, 2))
    saved = {p: open(p).read() for p in (one, one + "~", two, two + "~")}
    if what == "exchanged":
        for a, c in ((one, two), (two, one)):
            for copy in ("", "~"):
                with open(a + copy, "w") as f:
                    f.write(saved[c + copy])
    elif what == "missing":
        os.unlink(one), os.unlink(one + "~")
    else:
        for copy in ("",) if what == "one copy" else ("", "~"):
            with open(one + copy, "w") as f:
                f.write(saved[one].replace("seal=file", "seal=domain"))
    code, _ = checked(m)
    m.mount()
    assert get(m.path("top")) == b"top" and get(m.path("plain", "f")) == b"plain"
    if what == "one copy":
        assert code == 0 and get(m.path("one", "f")) == b"one"
        wait_until(lambda: open(one).read() == saved[one])
        return
    assert code == 7
    assert err(get, m.path("one", "f")) == errno.EIO and domain(m, 1)["state"] == "locked"
    assert "descriptor" in domain(m, 1)["reason"] and "descriptor" in m.read_log()
    assert err(get, m.path("two", "f")) == (errno.EIO if what == "exchanged" else 0)
    begin = time.monotonic()
    r = m.ctl("unlock", m.plain, "--domain=1")
    assert r.returncode == 1 and "descriptor" in r.stderr and time.monotonic() - begin < 15, r.stderr
    for path, text in saved.items():  # the administrator puts a backup in place: it opens by itself
        with open(path, "w") as f:
            f.write(text)
    wait_state(m, 1, "open")
    wait_state(m, 2, "open")
    assert get(m.path("one", "f")) == b"one" and get(m.path("two", "f")) == b"two"


# ---- a crash while one is made

def copy_store(frm, to):
    if os.path.exists(to):
        shutil.rmtree(to)
    subprocess.run(["cp", "-a", frm, to], check=True)


def test_a_crash_at_any_step_leaves_a_store_that_mounts(mount, devkms, tmp_path):
    """The states between the steps, put together from the stores before and after."""
    os.mkdir(mount.path("vault"))
    put(mount.path("f"), b"content")
    mount.umount()
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    copy_store(mount.cipher, before)
    mount.mount()
    key = new_key(devkms)
    made = add(mount, "vault", key)
    mount.umount()
    copy_store(mount.cipher, after)
    name = next(n for n in os.listdir(before) if not n.startswith(".") and os.path.isdir(os.path.join(before, n)))
    meta = [f".byokfs/domains/{made['id']}", f".byokfs/domains/{made['id']}~", ".byokfs/store", ".byokfs/store~"]
    temp = ".byokfs.tmp.0123456789abcdef"

    def step(n):
        copy_store(before, mount.cipher)
        for path in meta[:n]:
            shutil.copy2(os.path.join(after, path), os.path.join(mount.cipher, path))
        if n == 5:  # the new directory is there, under its temporary name
            subprocess.run(["cp", "-a", os.path.join(after, name), os.path.join(mount.cipher, temp)], check=True)
        if n == 6:  # exchanged, the old one not yet removed
            os.rename(os.path.join(mount.cipher, name), os.path.join(mount.cipher, temp))
            subprocess.run(["cp", "-a", os.path.join(after, name), os.path.join(mount.cipher, name)], check=True)

    for n in range(7):
        step(n)
        mount.mount()
        assert get(mount.path("f")) == b"content" and sorted(os.listdir(mount.plain)) == ["f", "vault"], n
        assert os.listdir(mount.path("vault")) == []
        if n < 6:
            again = add(mount, "vault", key)
            assert again["index"] == (1 if n < 3 else 2), n
        put(mount.path("vault", "x"), b"x")
        mount.remount()
        assert get(mount.path("vault", "x")) == b"x" and mount.state() == "open"
        mount.umount()
        code, report = checked(mount)
        assert code == 0, (n, report)


def traced(pid):
    with open(f"/proc/{pid}/status") as f:
        return any(line.startswith("TracerPid") and line.split()[1] != "0" for line in f)


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
@pytest.mark.parametrize("call, when", [("renameat", 1), ("renameat", 2), ("renameat", 3), ("renameat", 4), ("mkdirat", 1),
                                        ("symlinkat", 1), ("renameat2", 1), ("unlinkat", 1), ("unlinkat", 2)])
def test_killed_while_one_is_made(mount, devkms, call, when):
    """SIGKILL as the daemon enters the nth of these calls: before it has any effect."""
    put(mount.path("f"), b"content")
    os.mkdir(mount.path("vault"))
    os.stat(mount.path("vault"))
    key = new_key(devkms)
    pid = mount.process.pid
    watchdogs = mount.watchdogs()
    strace = subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid), "-e", f"trace={call}", "-e",
                               f"inject={call}:signal=KILL:when={when}"], stderr=subprocess.DEVNULL)
    wait_until(lambda: traced(pid))
    r = mount.ctl("domain", "add", mount.path("vault"), "--key", key)
    assert r.returncode != 0, r.stdout
    strace.wait(30)
    assert mount.process.wait(30) == -signal.SIGKILL
    mount.process = None
    for dog in watchdogs:
        try:
            os.waitpid(dog, 0)
        except ChildProcessError:
            pass
    mount.clear_dead()
    mount.mount()
    assert get(mount.path("f")) == b"content" and sorted(os.listdir(mount.plain)) == ["f", "vault"]
    done = call == "unlinkat"
    table = listed(mount)
    assert (1 in table and table[1]["directory"]) == done, table
    if not done:
        add(mount, "vault", key)
    put(mount.path("vault", "x"), b"x")
    mount.remount()
    assert get(mount.path("vault", "x")) == b"x"
    mount.umount()
    assert checked(mount)[1]["damage"] == 0


# ---- made while somebody uses the directory

@contextlib.contextmanager
def slowed(mount, call, *more):
    """Each such system call of the daemon takes two seconds longer."""
    strace = subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(mount.process.pid), "-e", f"trace={call}", "-e",
                               f"inject={call}:{':'.join(more)}"], stderr=subprocess.DEVNULL)
    wait_until(lambda: traced(mount.process.pid))
    try:
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(30)


def adding(mount, path, key):
    return Child(lambda tell: tell(str(mount.ctl("domain", "add", path, "--key", key).returncode)))


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
@pytest.mark.parametrize("call", ["renameat2", "unlinkat"])
def test_nothing_gets_into_a_directory_that_goes(mount, devkms, call):
    """Between the exchange and the removal whoever has the old directory open is refused: nothing acknowledged is lost."""
    os.mkdir(mount.path("other"))
    put(mount.path("other", "f"), b"x")
    os.mkdir(mount.path("vault"))
    number = os.stat(mount.path("vault")).st_ino
    backing = backing_of(mount, "vault")
    old = os.open(mount.path("vault"), os.O_RDONLY | os.O_DIRECTORY)
    delay = ("when=1", "delay_exit=2000000") if call == "renameat2" else ("when=1", "delay_enter=2000000")
    with slowed(mount, call, *delay):
        child = adding(mount, mount.path("vault"), new_key(devkms))
        wait_until(lambda: os.stat(backing).st_ino != number)
        at = f"/proc/self/fd/{old}/"
        assert err(os.open, at + "made", os.O_CREAT | os.O_EXCL | os.O_WRONLY) == errno.EBUSY
        assert err(os.mkdir, at + "made") == errno.EBUSY
        assert err(os.symlink, "x", at + "made") == errno.EBUSY
        assert err(os.mkfifo, at + "made") == errno.EBUSY
        assert err(os.link, mount.path("other", "f"), at + "made") == errno.EBUSY
        assert err(os.rename, mount.path("other", "f"), at + "made") == errno.EBUSY
        assert child.wait(60) == 0 and child.lines() == ["0"]
    assert err(os.open, "made", os.O_CREAT | os.O_WRONLY, dir_fd=old) in (errno.ENOENT, errno.ESTALE)
    os.close(old)
    assert os.listdir(mount.path("vault")) == [] and os.listdir(mount.path("other")) == ["f"]
    put(mount.path("vault", "f"), b"x")
    assert not [n for n in os.listdir(mount.cipher) if n.startswith((".byokfs.tmp", ".byokfs.del"))]
    mount.remount()
    assert get(mount.path("vault", "f")) == b"x" and get(mount.path("other", "f")) == b"x"


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_a_directory_that_goes_keeps_its_name(mount, devkms):
    os.mkdir(mount.path("vault"))
    os.mkdir(mount.path("other"))
    backing = backing_of(mount, "vault")
    number = os.stat(backing).st_ino
    with slowed(mount, "renameat2", "when=1", "delay_enter=2000000"):
        child = adding(mount, mount.path("vault"), new_key(devkms))
        wait_until(lambda: [n for n in os.listdir(mount.cipher) if n.startswith(".byokfs.tmp")])
        assert os.stat(backing).st_ino == number
        assert err(os.rename, mount.path("vault"), mount.path("moved")) == errno.EBUSY
        assert err(os.rename, mount.path("other"), mount.path("vault")) == errno.EBUSY
        assert err(os.rmdir, mount.path("vault")) == errno.EBUSY
        os.rename(mount.path("other"), mount.path("another"))
        assert child.wait(60) == 0 and child.lines() == ["0"]
    assert sorted(os.listdir(mount.plain)) == ["another", "vault"]
    put(mount.path("vault", "f"), b"x")


@pytest.mark.parametrize("what", ["filled", "moved", "replaced"])
def test_changed_while_the_kms_is_asked(mount, devkms, what):
    """The directory that was named is not there, or not empty, when the key answered: nothing is made."""
    key = new_key(devkms)
    vault, moved = mount.path("vault"), mount.path("moved")
    os.mkdir(vault)
    devkms.fault(latency_ms=1000)
    since = devkms.stats()["seq"]
    child = adding(mount, vault, key)
    # Recorded when it is answered: the first of the calls that prove the key.
    wait_until(lambda: any(s["seq"] > since and key.endswith(s.get("key") or "-") for s in devkms.stats()["requests"]))
    if what == "filled":
        put(os.path.join(vault, "f"), b"x")
    else:
        os.rename(vault, moved)
    if what == "replaced":
        os.mkdir(vault)
    devkms.clear()
    assert child.wait(60) == 0 and child.lines() == ["1"]
    assert list(listed(mount)) == [0] and [d["index"] for d in mount.status()["domains"]] == [0]
    if what == "filled":
        assert get(os.path.join(vault, "f")) == b"x"
        os.unlink(os.path.join(vault, "f"))
    else:
        os.setxattr(moved, "user.a", b"1")
        os.chmod(moved, 0o711)
        os.mkdir(os.path.join(moved, "x"))
        assert os.path.isdir(vault) == (what == "replaced")
        mount.remount()
        assert os.getxattr(moved, "user.a") == b"1" and os.stat(moved).st_mode & 0o777 == 0o711
    assert add(mount, "vault", key)["index"] == 1
    put(os.path.join(vault, "f"), b"y")


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_what_cannot_be_put_in_place_leaves_no_domain(mount, devkms):
    """The domain is written down and served when the exchange fails: its line goes, and it asks for nothing more."""
    key = new_key(devkms)
    os.mkdir(mount.path("vault"))
    with slowed(mount, "renameat2", "error=ENOSPC", "when=1"):
        r = mount.ctl("domain", "add", mount.path("vault"), "--key", key)
    assert r.returncode == 1 and "No space" in r.stderr
    assert list(listed(mount)) == [0]
    assert len(os.listdir(os.path.join(mount.cipher, ".byokfs", "domains"))) == 2
    assert domain(mount, 1)["state"] == "locked" and "given up" in domain(mount, 1)["reason"]
    put(mount.path("vault", "f"), b"x")
    os.unlink(mount.path("vault", "f"))
    assert add(mount, "vault", key)["index"] == 2
    put(mount.path("vault", "f"), b"x")
    mount.remount()
    assert get(mount.path("vault", "f")) == b"x" and sorted(listed(mount)) == [0, 2]
    assert [d["index"] for d in mount.status()["domains"]] == [0, 2]
    mount.umount()
    assert checked(mount)[0] == 0


# ---- memory

def test_only_the_locked_domains_keys_leave_the_memory(two, devkms):
    mount, key = two
    inside, outside = os.urandom(32), os.urandom(32)
    put(mount.path("vault", "f"), b"x" * 50 + inside)
    put(mount.path("g"), b"x" * 50 + outside)
    mount.remount()
    assert get(mount.path("vault", "f")).endswith(inside) and get(mount.path("g")).endswith(outside)
    os.listdir(mount.path("vault"))
    os.environ.update(AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, AWS_DEFAULT_REGION="us-east-1")
    store = reader.Store(mount.cipher, reader.aws_unseal(mount.kms.endpoint))
    keys = {i: store.domain(i).keys for i in (0, 1)}
    needles = {}
    for i, k in keys.items():
        needles.update(halves(f"{i} DEK", k.dek))
        for label in ("names", "links", "xnames", "dirs", "xattrs"):
            needles.update(halves(f"{i} {label}", getattr(k, label)))
    for node in store.walk():
        if node.kind == "f":
            with store.open(node) as f:
                needles.update(halves(f"{node.domain.index} page", f.keys.page))
                needles.update(halves(f"{node.domain.index} hdr", f.keys.hdr))
    pid = mount.process.pid
    before, *_ = scan(pid, needles)
    seen = {i: {w for w in before if w.startswith(f"{i} ")} for i in (0, 1)}
    assert all(any(label in w for w in seen[i]) for i in (0, 1) for label in ("names", "xattrs", "page")), sorted(before)
    devkms.disable(key)
    wait_state(mount, 1, "locked")
    after, looked, refused = scan(pid, {**needles, "content": inside})
    left = {i: {w for w in after if w.startswith(f"{i} ")} for i in (0, 1)}
    say(f"scanned {looked >> 20} MiB: keys of the locked domain {len(seen[1])} -> {len(left[1])}, of the open one {len(seen[0])} -> {len(left[0])}")
    assert left[1] == set() and "content" not in after
    assert {w for w in left[0] if "names" in w} and get(mount.path("g")).endswith(outside)


# ---- the audit

def test_the_audit_tells_domains_apart(tmp_path, devkms):
    m = Audited(tmp_path, devkms)
    try:
        m.mount()
        key = new_key(devkms)
        made = add(m, "vault", key)
        put(m.path("vault", "f"), b"x")
        put(m.path("g"), b"y")
        devkms.disable(key)
        wait_state(m, 1, "locked")
        devkms.enable(key)
        wait_state(m, 1, "open")
        m.umount()
        calls = [line for line in m.lines("kms") if line["domain"] == made["id"]]
        assert {line["key"] for line in calls} == {key}
        assert {"GenerateDataKey", "Decrypt"} == {line["op"] for line in calls}
        assert {line["key"] for line in m.lines("kms") if line["domain"] != made["id"]} == {devkms.key}
        states = [line["state"] for line in m.lines("state") if line["domain"] == made["id"]]
        assert states == ["open", "locking", "locked", "open"], states
        assert m.whole()
    finally:
        m.close()
