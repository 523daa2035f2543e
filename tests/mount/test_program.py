"""The programs' edges: command lines, exit codes and messages, the background, signals, mount(8), systemd, other users."""
import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import stat
import struct
import subprocess
import tempfile

import pytest

from conftest import BYOKFS, CTL, NAMESPACE, Mount, environment, wait_until
from faults import err, get, pattern, put
from programs import (ALREADY, CONFIG, DAMAGE, DENIED, NOT_A_STORE, NO_MOUNT, UNREACHABLE, USAGE, Systemd, background, daemon_of,
                      ended, markers, mounted, run, said, terminate, tree)

F_OFD_SETLKW = 38


@pytest.fixture(scope="module")
def shop(tmp_path_factory, shared_devkms):
    """An unmounted store that no test changes."""
    m = Mount(tmp_path_factory.mktemp("shop"), shared_devkms)
    yield m
    m.close()


def both(shop, *args):
    """Refused alike in the foreground and through the background."""
    front, back = run(BYOKFS, "-f", *args), run(BYOKFS, *args)
    assert (front.code, front.err) == (back.code, back.err)
    assert mounted(shop.plain) is None
    return back


# ---- byokfs: what is refused before anything is mounted

@pytest.mark.sanitizer
@pytest.mark.parametrize("args", [[], ["one"], ["one", "two", "three"], ["-z", "one", "two"], ["one", "two", "-o"], ["-c"]])
def test_usage(args):
    r = run(BYOKFS, *args)
    assert r.code == USAGE and "usage: byokfs" in r.err and not r.out, r


@pytest.mark.parametrize("flag, word", [("-h", "usage: byokfs"), ("-V", "byokfs ")])
def test_help_and_version(flag, word):
    r = run(BYOKFS, flag)
    assert r.code == 0 and word in r.out and not r.err, r


@pytest.mark.parametrize("option, code, word", [
    ("nonsense", USAGE, "'nonsense'"), ("rw,nonsense=1", USAGE, "'nonsense=1'"), ("lease=3s", USAGE, "'lease=3s'"),
    ("kms.nonsense=1", CONFIG, "nonsense"), ("nowhere.key=1", CONFIG, "nowhere"), ("cache.lease=soon", CONFIG, "soon"),
    ("cache.lease=", CONFIG, "cache.lease"), ("cache.lease=1ms", CONFIG, "out of range"), ("alert.key_age_days=9h", CONFIG, "not a plain number"),
    ("config=/nowhere/byokfs.ini", CONFIG, "/nowhere/byokfs.ini"), ("mount.writeback=perhaps", CONFIG, "perhaps")])
def test_wrong_options(shop, option, code, word):
    config = [] if option.startswith("config=") else ["-c", shop.ini]
    said(both(shop, *config, "-o", option, shop.cipher, shop.plain), code, word)


def test_places(shop, tmp_path):
    """The store and the mount point, each wrong in every way."""
    def refused(code, store, at, *words):
        return said(both(shop, "-c", shop.ini, store, at), code, *words)

    file, empty = tmp_path / "file", tmp_path / "empty"
    file.write_bytes(b"")
    empty.mkdir()
    refused(NOT_A_STORE, tmp_path / "nowhere", shop.plain, "nowhere")
    refused(NOT_A_STORE, file, shop.plain, "file")
    refused(NOT_A_STORE, empty, shop.plain, "not a byokfs store", "byokfsctl init")
    refused(1, shop.cipher, tmp_path / "nowhere", "nowhere")
    refused(1, shop.cipher, file, "not a directory")
    os.makedirs(os.path.join(shop.cipher, "inner"), exist_ok=True)
    refused(USAGE, shop.cipher, os.path.join(shop.cipher, "inner"), "inside")
    os.rmdir(os.path.join(shop.cipher, "inner"))
    refused(USAGE, shop.cipher, shop.cipher, "inside")
    refused(USAGE, shop.cipher, os.path.dirname(shop.cipher), "inside")
    (tmp_path / "link").symlink_to(shop.cipher)
    refused(USAGE, tmp_path / "link", shop.cipher, "inside")


def test_mounted_again_at_once(mount):
    """umount(8) returns before the daemon has flushed and let go of the store: the next mount waits for that."""
    for i in range(10):
        with open(mount.path(f"file {i}"), "wb") as f:
            f.write(os.urandom(3_000_000))
        subprocess.run(["umount", mount.plain], check=True)
        r = run(BYOKFS, "-c", mount.ini, mount.cipher, mount.plain)
        assert r.code == 0, r
    assert mount.process.wait(60) == 0
    mount.process = None
    assert len(os.listdir(mount.plain)) == 10
    subprocess.run(["umount", mount.plain], check=True)
    # A lock that nobody's mount holds: after a while it is refused.
    with open(os.path.join(mount.cipher, ".byokfs", "lock"), "r+b") as lock:
        fcntl.fcntl(lock, F_OFD_SETLKW, struct.pack("hhqqhi", fcntl.F_WRLCK, 0, 0, 0, 0, 0))
        said(run(BYOKFS, "-c", mount.ini, mount.cipher, mount.plain), ALREADY, "holds .byokfs/lock")


@pytest.mark.sanitizer
def test_second_mount(mount, tmp_path):
    """One read-write mount per store; read-only ones may stand beside it."""
    put(mount.path("a"), b"first")
    other = tmp_path / "other"
    other.mkdir()
    r = run(BYOKFS, "-c", mount.ini, mount.cipher, other)
    said(r, ALREADY, mount.cipher, "-o ro")
    assert mounted(other) is None
    r = run(BYOKFS, "-c", mount.ini, mount.cipher, mount.plain)
    said(r, ALREADY)
    with background(mount, "-o", "ro", mountpoint=str(other)) as (r, _):
        assert r.code == 0, r
        assert get(other / "a") == b"first"
        assert err(open, other / "new", "w") == errno.EROFS
        put(mount.path("b"), b"second" * 1000)
        assert get(other / "b") == b"second" * 1000
    assert get(mount.path("a")) == b"first"
    assert len(markers(mount)) == 1


def test_dead_mount(mount):
    put(mount.path("a"), b"kept")
    mount.kill()
    said(run(BYOKFS, "-c", mount.ini, mount.cipher, mount.plain), ALREADY, "died", f"umount '{mount.plain}'")
    mount.clear_dead()
    mount.mount()
    assert get(mount.path("a")) == b"kept"


def test_configuration_is_found_in_order(store, tmp_path):
    """-c, else -o config=, else $BYOKFS_CONFIG; the last two must exist when named."""
    good, bad = store.ini, tmp_path / "bad.ini"
    bad.write_text("[kms]\nbad = 1\n")
    for env, args in (({}, ["-c", good]), ({}, ["-o", f"config={good}"]), ({"BYOKFS_CONFIG": good}, []),
                      ({"BYOKFS_CONFIG": str(bad)}, ["-c", good]), ({"BYOKFS_CONFIG": str(bad)}, ["-o", f"config={good}"]),
                      ({}, ["-c", good, "-o", f"config={bad}"])):
        with background(store, env=env, order=[*args, store.cipher, store.plain]) as (r, _):
            assert r.code == 0, (env, args, r)
    said(run(BYOKFS, store.cipher, store.plain, env={"BYOKFS_CONFIG": "/nowhere/x.ini"}), CONFIG, "/nowhere/x.ini")


# ---- byokfs: the background

@pytest.mark.sanitizer
def test_background(store):
    with background(store) as (r, pid):
        assert r.code == 0 and not r.out, r
        put(store.path("a"), b"at once")
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        for fd in range(3):
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
        with open(f"/proc/{pid}/stat") as f:
            assert int(f.read().rsplit(")")[1].split()[3]) == pid, "a session of its own"
        assert len(markers(store)) == 1
        subprocess.run(["umount", store.plain], check=True)
        wait_until(lambda: ended(pid) is not None)
    assert not markers(store)


def test_background_failures(store, devkms):
    """Whatever goes wrong late arrives as an exit code, and leaves neither mount nor process nor marker."""
    def refused(code, *words, args=(), env=None):
        r = run(BYOKFS, "-c", store.ini, *args, store.cipher, store.plain, env=env)
        said(r, code, *words)
        assert mounted(store.plain) is None and not markers(store)
        assert set(children()) <= before

    before = set(children())
    devkms.disable()
    refused(DENIED, "DisabledException", "locked_start")
    devkms.enable()
    refused(UNREACHABLE, "locked_start", args=["-o", "kms.endpoint=http://127.0.0.1:1,kms.request_timeout=300ms"])
    refused(CONFIG, args=["-o", "kms.key=arn:aws:kms:us-east-1:111122223333:key/00000000-0000-0000-0000-000000000000"])
    refused(CONFIG, env={"AWS_SECRET_ACCESS_KEY": "wrong"})
    with background(store) as (r, _):
        assert r.code == 0, r


def children():
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as f:
        for pid in f.read().split():
            with open(f"/proc/{pid}/comm") as name:
                if name.read().startswith("byokfs\n"):
                    yield int(pid)


def test_relative_and_awkward_paths(tmp_path, shared_devkms, make_mount):
    """Blanks, commas, backslashes, quotes, newlines and bytes that are no UTF-8."""
    m = make_mount("plain name", shared_devkms)
    os.mkdir(tmp_path / "c d")
    for i, name in enumerate(["a b", "a,b", "a\\b", "a,b\\", "a'\"b", "a\nb", "a\udcffb"]):
        cipher, plain = os.path.join(tmp_path, "c d", name), os.path.join(tmp_path, "p " + name)
        os.makedirs(plain)
        r = run(CTL, "init", "-c", m.ini, cipher, cwd=tmp_path)
        assert r.code, "a missing directory is not made"
        os.makedirs(cipher)
        assert run(CTL, "init", "-c", m.ini, cipher).code == 0
        relative = i % 2 == 0
        order = ["-c", os.path.relpath(m.ini, tmp_path), os.path.join("c d", name), "p " + name] if relative \
            else ["-c", m.ini, cipher, plain]
        r = run(BYOKFS, *order, cwd=tmp_path)
        try:
            assert r.code == 0, (name, r)
            put(os.path.join(plain, "x"), b"y")
            r = run(CTL, "status", "--json", plain)
            assert r.code == 0, (name, r)
            answer = json.loads(r.out)
            assert answer["state"] == "open"
        finally:
            subprocess.run(["umount", plain], check=True)
            wait_until(lambda: ended(answer["pid"]) is not None)


# ---- mount(8)

@pytest.fixture
def helper(tmp_path):
    """byokfs under the name that mount(8) looks for."""
    os.mkdir(tmp_path / "sbin")
    link = tmp_path / "sbin" / "mount.byokfs"
    os.symlink(os.path.abspath(BYOKFS), link)
    return str(link)


def test_mount_helper(store, helper):
    """The way mount(8) calls it: SOURCE TARGET, then flags and the options of fstab."""
    options = f"rw,nosuid,nodev,noatime,_netdev,nofail,noauto,user,x-systemd.requires=network.target,x-gvfs-hide,config={store.ini}"
    with background(store, program=helper, order=[store.cipher, store.plain, "-s", "-v", "-n", "-o", options]) as (r, _):
        assert r.code == 0, r
        assert {"rw", "nosuid", "nodev", "noatime"} <= set(mounted(store.plain))
        put(store.path("a"), b"x")
    assert get_fake(store, helper, options).code == 0 and mounted(store.plain) is None
    said(run(helper, store.cipher, store.plain, "-o", "rw,nonsense"), USAGE, "'nonsense'")
    assert run(helper, store.cipher).code == USAGE


def get_fake(store, helper, options):
    """mount -f: everything but the mount."""
    return run(helper, store.cipher, store.plain, "-f", "-o", options)


def test_mount_8(store, helper):
    """mount -t byokfs and umount, in a mount namespace where the helper is installed."""
    script = f"""set -e
        mount -t overlay -o lowerdir={os.path.dirname(helper)}:/usr/sbin overlay /usr/sbin
        mount -t byokfs -o config={store.ini},nofail,x-systemd.automount {store.cipher} {store.plain}
        echo content > {store.plain}/a
        cat {store.plain}/a
        findmnt -no FSTYPE,SOURCE {store.plain}
        mount -t byokfs -o config={store.ini} {store.cipher} /mnt || echo again $?
        umount {store.plain}"""
    r = run(*NAMESPACE, "sh", "-c", script)
    assert r.code == 0, r
    assert r.out.split("\n")[0] == "content"
    assert "fuse.byokfs" in r.out and store.cipher in r.out and "again 9" in r.out, r
    wait_until(lambda: not markers(store))


def test_mount_flags(store):
    put(store.mount().path("a"), b"x")
    for options, flags in (("ro", {"ro"}), ("nosuid,nodev,noexec", {"rw", "nosuid", "nodev", "noexec"}), ("ro,noatime", {"ro", "noatime"})):
        store.umount()
        store.mount(*options.split(","))
        assert flags <= set(mounted(store.plain)), mounted(store.plain)
        assert get(store.path("a")) == b"x"


def test_read_only(store):
    """-o ro changes nothing, writes no marker, and refuses in the usual words."""
    store.mount()
    put(store.path("a"), pattern(1, 5000))
    store.umount()
    before = {p: os.lstat(os.path.join(store.cipher, p)).st_ctime_ns for p in tree(store.cipher)}
    store.mount("ro")
    assert get(store.path("a")) == pattern(1, 5000)
    assert err(open, store.path("a"), "r+b") == err(os.mkdir, store.path("d")) == err(os.unlink, store.path("a")) == errno.EROFS
    assert err(os.chmod, store.path("a"), 0o600) == err(os.utime, store.path("a")) == errno.EROFS
    assert not markers(store)
    store.umount()
    assert {p: os.lstat(os.path.join(store.cipher, p)).st_ctime_ns for p in tree(store.cipher)} == before


# ---- signals, systemd

@pytest.mark.parametrize("name", ["{}/notify", "@byokfs-test-{}"])
def test_notify(store, tmp_path, name, monkeypatch):
    name = name.format(tmp_path if name[0] == "{" else os.getpid())
    systemd = Systemd(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    try:
        store.mount(check=False)
        assert "READY=1" in systemd.hear()
        assert os.listdir(store.plain) == [], "ready means that it answers"
        terminate(store)
        assert "STOPPING=1" in systemd.hear()
    finally:
        systemd.close()


@pytest.mark.sanitizer
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_stop_when_idle(mount, sig):
    put(mount.path("a"), b"x", sync=False)
    assert terminate(mount, sig) == 0
    assert mounted(mount.plain) is None and not markers(mount), mount.read_log()
    assert get(mount.mount().path("a")) == b"x"


@pytest.mark.sanitizer
def test_stop_when_busy(mount):
    """An open, dirty, mapped file: what was written is kept, the plaintext is not readable afterwards, the daemon ends."""
    data = pattern(2, 300_000)
    put(mount.path("clean"), data)
    reader = os.open(mount.path("clean"), os.O_RDONLY)
    assert os.read(reader, len(data)) == data
    writer = os.open(mount.path("dirty"), os.O_RDWR | os.O_CREAT)
    os.write(writer, data)
    where = os.open(mount.plain, os.O_RDONLY)
    try:
        assert terminate(mount) == 0
        assert err(os.pread, reader, 10, 0) != 0 and err(os.pread, writer, 10, 0) != 0
        assert err(os.listdir, where) != 0 and err(os.stat, mount.path("clean")) != 0
    finally:
        for fd in (reader, writer, where):
            err(os.close, fd)
    mount.clear_dead()
    mount.mount()
    assert get(mount.path("clean")) == get(mount.path("dirty")) == data


def test_stop_with_a_hanging_kms(mount, devkms):
    put(mount.path("a"), b"x")
    devkms.fault(hang=True)
    fd = os.open(mount.path("a"), os.O_RDONLY)
    try:
        assert terminate(mount) == 0
    finally:
        err(os.close, fd)
        devkms.clear()
    mount.clear_dead()


def test_hangup(mount):
    put(mount.path("a"), b"x")
    for _ in range(20):
        mount.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "credentials will be read again" in mount.read_log())
    assert get(mount.path("a")) == b"x" and mount.state() == "open"
    mount.umount()


def test_credentials_are_read_again(store, tmp_path, monkeypatch):
    """A host whose credentials were wrong gets new ones in the file and a SIGHUP."""
    file = tmp_path / "credentials"
    good = "[default]\naws_access_key_id = AKIADEVKMS0000000000\naws_secret_access_key = devkms-secret-not-for-production\n"
    file.write_text(good)
    monkeypatch.setattr("conftest.AK", "")
    env = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    r = run(BYOKFS, "-c", store.ini, store.cipher, store.plain, env=env, cwd=tmp_path)
    assert r.code == 0, r
    pid = daemon_of(store)
    try:
        file.write_text(good.replace("devkms-secret", "wrong-secret"))
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: store.state() == "locked")
        assert "Signature" in store.status()["reason"] or "Signature" in json.dumps(store.status()), store.status()
        file.write_text(good)
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: store.state() == "open")
        assert os.listdir(store.plain) == []
    finally:
        subprocess.run(["umount", store.plain], check=True)
        wait_until(lambda: ended(pid) is not None)


# ---- an ordinary user

USER = """set -e
byokfs=$1 ctl=$2 ini=$3 cipher=$4 plain=$5
$byokfs -c $ini $cipher $plain
echo hi > $plain/a
cat $plain/a
stat -c %u $plain/a
$ctl status $plain > status
pid=$(sed -n 's/^pid *//p' status)
kill -TERM $pid
while grep -q . /proc/$pid/cmdline; do sleep 0.05; done 2> /dev/null
ls $plain
$byokfs -f -c $ini $cipher $plain &
until [ -e $plain/a ]; do sleep 0.05; done
cat $plain/a
fusermount3 -u $plain
wait $!
"""


@pytest.mark.skipif(not shutil.which("fusermount3"), reason="no fusermount3")
def test_ordinary_user(tmp_path, shared_devkms, request):
    """Serves that user through fusermount3, and stops as cleanly. The device is opened to all in a mount namespace only."""
    for parent in [tmp_path, *tmp_path.parents]:
        mode = stat.S_IMODE(parent.stat().st_mode)
        if not mode & 1:
            parent.chmod(mode | 0o11)
            request.addfinalizer(lambda parent=parent, mode=mode: parent.chmod(mode))
    m = Mount(tmp_path / "user", shared_devkms)
    # A socket's path has room for 107 bytes.
    runtime = tempfile.mkdtemp(prefix="byokfs-", dir="/tmp")
    request.addfinalizer(lambda: shutil.rmtree(runtime))
    subprocess.run(["chown", "-R", "nobody", m.base, runtime], check=True)
    script = f"""mkdir {tmp_path}/dev && mount -t tmpfs none {tmp_path}/dev && mknod -m 666 {tmp_path}/dev/fuse c 10 229 &&
        mount --bind {tmp_path}/dev/fuse /dev/fuse && cd {m.base} && exec setpriv --reuid nobody --clear-groups "$@" """
    r = run(*NAMESPACE, "sh", "-c", script, "sh", "sh", "-c", USER, "sh", os.path.abspath(BYOKFS), os.path.abspath(CTL), m.ini,
            m.cipher, m.plain, env={"HOME": m.base, "XDG_RUNTIME_DIR": runtime})
    assert r.code == 0 and r.out.split() == ["hi", "65534", "hi"], r
    assert not markers(m)


# ---- byokfsctl

@pytest.mark.parametrize("args", [
    [], ["nonsense"], ["init"], ["init", "a", "b"], ["init", "--nonsense", "a"], ["init", "--seal=x", "a"], ["init", "--names=x", "a"],
    ["init", "--suite=3", "a"], ["init", "-c"], ["init", "-o"], ["init", "--names=siv32", "--plain-names", "a"], ["info"], ["info", "a", "b"],
    ["info", "-c", "x", "a"], ["check"], ["check", "a", "b"], ["check", "--nonsense", "a"], ["test", "a", "b"], ["test", "--nonsense"],
    ["status", "a", "b"], ["status", "--nonsense"], ["lock"], ["lock", "a", "b"], ["lock", "--json", "a"], ["unlock"], ["unlock", "a", "b"],
    ["help", "nonsense"], ["init", "--json=1", "a"], ["version", "x"], ["help", "init", "x"]])
def test_ctl_usage(shop, args):
    if "-c" not in args and args[:1] in (["init"], ["test"]):
        args = [args[0], "-c", shop.ini, *args[1:]]
    r = run(CTL, *args)
    assert r.code == USAGE and r.err and not r.out, r


def test_ctl_help():
    overview = run(CTL, "help")
    assert overview.code == 0 and not overview.err
    for verb in ("init", "info", "test", "policy", "status", "lock", "unlock", "check", "help", "version"):
        assert verb in overview.out
        by_help, by_flag = run(CTL, "help", verb), run(CTL, verb, "--help")
        assert by_help.code == 0 and f"usage: byokfsctl {verb}" in by_help.out, by_help
        assert verb in ("help", "version") or by_flag.out == by_help.out, by_flag
    assert run(CTL, "help", "byokfs.ini").code == 0
    assert run(CTL, "--version").out == run(CTL, "version").out


def test_init_refusals(shop, tmp_path, devkms):
    """What init refuses it refuses before it asks the KMS for anything, and leaves alone."""
    def refused(code, where, *words, args=()):
        before = tree(where) if os.path.isdir(where) else None
        said(run(CTL, "init", "-c", ini, *args, where), code, *words)
        assert (tree(where) if os.path.isdir(where) else None) == before

    ini = str(tmp_path / "ini")
    with open(ini, "w") as f:
        f.write(f"[kms]\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\n")
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    for d in (full, empty):
        d.mkdir()
    (full / "something").write_bytes(b"")
    file.write_bytes(b"")
    calls = json.dumps(devkms.stats())
    refused(1, full, "not empty", "something")
    refused(1, file, "file")
    refused(1, tmp_path / "nowhere", "nowhere")
    refused(ALREADY, shop.cipher, "already")
    assert json.dumps(devkms.stats()) == calls
    refused(CONFIG, empty, args=["-o", "kms.nonsense=1"])
    refused(CONFIG, empty, args=["-o", "kms.key="])
    (empty / "lost+found").mkdir()
    assert run(CTL, "init", "-c", ini, empty).code == 0, "the root of a fresh ext4 is empty enough"


def test_init_unwritable(shop, tmp_path):
    """A directory that nobody may write to, and a user who may not."""
    tmp_path.joinpath("d").mkdir(mode=0o755)
    subprocess.run(["chattr", "+i", tmp_path / "d"], check=True)
    try:
        said(run(CTL, "init", "-c", shop.ini, tmp_path / "d"), 1, str(tmp_path / "d"))
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "d"], check=True)
    assert tree(tmp_path / "d") == []


def test_ctl_without_a_mount(shop, tmp_path):
    for verb in ("status", "lock", "unlock"):
        said(run(CTL, verb, shop.plain), NO_MOUNT, shop.plain)
        said(run(CTL, verb, tmp_path / "nowhere"), NO_MOUNT, "nowhere")
    said(run(CTL, "status", "--json", shop.plain), NO_MOUNT)
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    r = run(CTL, "status", "--json", env=env)
    assert r.code in (0, NO_MOUNT)


def test_ctl_of_a_dead_mount(mount):
    mount.kill()
    for verb in ("status", "lock", "unlock"):
        said(run(CTL, verb, mount.plain), NO_MOUNT, mount.plain)
    mount.clear_dead()


@pytest.mark.sanitizer
def test_lock_twice(mount, devkms):
    put(mount.path("a"), b"x")
    said(run(CTL, "unlock", mount.plain), ALREADY, "open")
    assert run(CTL, "lock", mount.plain).code == 0
    assert err(get, mount.path("a")) == errno.EIO
    said(run(CTL, "lock", mount.plain), ALREADY, "locked")
    answer = json.loads(run(CTL, "status", "--json", mount.plain).out)
    assert answer["state"] == "locked" and answer["by_admin"]
    devkms.disable()
    said(run(CTL, "unlock", mount.plain, timeout=90), DENIED, "DisabledException")
    devkms.enable()
    wait_until(lambda: run(CTL, "unlock", mount.plain).code in (0, ALREADY))
    wait_until(lambda: mount.state() == "open")
    assert get(mount.path("a")) == b"x"


def test_json_everywhere(mount, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert {"store", "key", "suite", "names", "seal"} <= set(json.loads(run(CTL, "init", "--json", "-c", mount.ini, empty).out))
    assert json.loads(run(CTL, "info", "--json", mount.cipher).out)["version"] == 1
    assert json.loads(run(CTL, "check", "--json", empty).out)["damage"] == 0
    assert json.loads(run(CTL, "status", "--json", mount.plain).out)["state"] == "open"
    every = json.loads(run(CTL, "status", "--json").out)
    assert mount.plain in [one["mountpoint"] for one in every]
    r = run(CTL, "status")
    assert r.code == 0 and mount.plain in r.out


def test_ctl_output_fails(mount):
    """An answer that cannot be written is a failure."""
    for args in (["status", mount.plain], ["status", "--json", mount.plain], ["info", mount.cipher], ["help"], ["version"],
                 ["info", "--json", mount.cipher], ["check", mount.cipher]):
        with open("/dev/full", "w") as full:
            r = subprocess.run([CTL, *args], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
        assert r.returncode == 1, (args, r)
