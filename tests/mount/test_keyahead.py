"""Keys are fetched before files are opened, each once, no more of them than will be used, and none outlives a lock."""
import errno
import os
import random
import shutil
import subprocess
import threading

import pytest

from conftest import wait_until
from damage import backing_of
from faults import err, get, put
from posix_tools import deleted_but_held
from test_domains import add, new_key, wait_state
from test_memory import scan, secrets_of

DIRS, FILES = 12, 10


def fill(mount):
    """A tree three deep; returns how many files are in it."""
    for d in range(DIRS):
        where = mount.path("tree", *(f"d{d}",) if d < 8 else (f"d{d - 8}", f"e{d}"))
        os.makedirs(where)
        for f in range(FILES):
            put(os.path.join(where, f"f{f}"), b"%d %d" % (d, f), sync=False)
    for f in range(FILES):
        put(mount.path("tree", f"z{f}"), b"top", sync=False)
    return (DIRS + 1) * FILES


def in_order(path):
    """Files as tar meets them: entries as the directory has them, each directory where it stands."""
    with os.scandir(path) as it:
        entries = list(it)
    for e in entries:
        if e.is_dir(follow_symlinks=False):
            yield from in_order(e.path)
        else:
            yield e.path


def flat(mount, n):
    os.mkdir(mount.path("flat"))
    for i in range(n):
        put(mount.path("flat", f"f{i}"), b"%d" % i, sync=False)


def decrypts(devkms):
    return devkms.stats()["operations"].get("Decrypt", {"calls": 0})["calls"]


def counters(mount):
    return mount.status()["counters"]


def quiet(mount):
    """Nothing is being fetched any more."""
    seen = [-1]

    def same():
        seen.append(counters(mount)["unwraps"])
        return seen[-1] == seen[-2]
    wait_until(same, step=0.1)
    return seen[-1]


@pytest.fixture
def slow(make_mount, devkms):
    """Lease and probe so long that every Decrypt but the first is a file's."""
    return make_mount("s", devkms, probe="5m", lease="10m").mount()


@pytest.mark.sanitizer
def test_each_key_once(slow, devkms):
    n = fill(slow)
    slow.remount()
    devkms.fault(latency_ms=5)
    before = decrypts(devkms)
    for path in in_order(slow.path("tree")):
        get(path)
    assert quiet(slow) == n
    assert decrypts(devkms) - before == n
    c = counters(slow)
    assert c["read_ahead"] >= c["read_ahead_used"] >= n * 3 // 4, c
    # All of them are there now: reading again asks for nothing.
    for path in in_order(slow.path("tree")):
        get(path)
    assert quiet(slow) == n


def test_directories_are_let_go(slow):
    """What was read ahead of a reader who has gone does not keep removed directories on the disk."""
    fill(slow)
    slow.remount()
    for path in in_order(slow.path("tree")):
        get(path)
    shutil.rmtree(slow.path("tree"))
    wait_until(lambda: not deleted_but_held(slow.process.pid))


def test_files_first_and_many_readers(slow):
    """Other orders and several readers at once: slower perhaps, never a key twice."""
    n = fill(slow)
    slow.remount()

    def walk():
        for where, _, names in os.walk(slow.path("tree")):
            for name in names:
                get(os.path.join(where, name))
    readers = [threading.Thread(target=walk) for _ in range(3)]
    for r in readers:
        r.start()
    for r in readers:
        r.join()
    assert quiet(slow) == n


def test_any_order_fetches_little_more(slow):
    flat(slow, 400)
    slow.remount()
    names = os.listdir(slow.path("flat"))
    assert len(names) == 400
    some = random.Random(5).sample(names, 120)
    for name in some:
        get(slow.path("flat", name))
    assert len(some) <= quiet(slow) <= len(some) * 5 // 4
    # One file of a directory that was looked at: that file's key alone.
    slow.remount()
    assert sorted(os.listdir(slow.path("flat"))) == sorted(names)
    get(slow.path("flat", names[0]))
    assert quiet(slow) == 1


def test_switched_off(make_mount, devkms):
    ini = (f"[kms]\nprovider = aws\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\n"
           "[cache]\nprobe = 5m\nlease = 10m\nread_ahead = 0\n")
    mount = make_mount("off", devkms, ini=ini).mount()
    flat(mount, 30)
    mount.remount()
    for path in in_order(mount.path("flat")):
        get(path)
    assert quiet(mount) == 30
    assert counters(mount)["read_ahead"] == 0


def test_domain_seal_asks_nothing(make_mount, devkms):
    mount = make_mount("d", devkms, init=("--seal=domain",), probe="5m", lease="10m").mount()
    n = fill(mount)
    mount.remount()
    before = decrypts(devkms)
    assert len([get(p) for p in in_order(mount.path("tree"))]) == n
    assert decrypts(devkms) == before
    assert counters(mount)["read_ahead"] == counters(mount)["unwraps"] == 0


def test_names_gone_or_replaced(slow):
    """What was listed is not what is there any more: harmless."""
    flat(slow, 60)
    slow.remount()
    order = list(in_order(slow.path("flat")))
    for path in order[10:20]:
        os.unlink(path)
    for path in order[20:30]:
        os.unlink(path)
        os.mkfifo(path)
    for path in order[30:40]:
        os.unlink(path)
        os.mkdir(path)
    for path in order[:10] + order[40:]:
        assert get(path)
    assert quiet(slow) == 30


def test_a_lock_ends_it(slow, devkms):
    flat(slow, 300)
    slow.remount()
    order = list(in_order(slow.path("flat")))
    devkms.fault(latency_ms=100)
    result = []

    def read():
        for path in order:
            result.append(err(get, path))
            if result[-1]:
                return
    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: counters(slow)["read_ahead_used"] > 20)
    assert slow.ctl("lock", slow.plain).returncode == 0
    reader.join(20)
    assert result[-1] == errno.EIO and len(result) < 300
    wait_until(lambda: slow.state() == "locked")
    c = counters(slow)
    assert c["file_keys"] == 0 and c["unwraps"] < 300, c
    devkms.clear()
    calls = quiet(slow)
    before = decrypts(devkms)
    assert quiet(slow) == calls and decrypts(devkms) - before == 0
    assert slow.ctl("unlock", slow.plain).returncode == 0
    wait_until(lambda: slow.state() == "open")
    assert all(get(path) for path in order)


def test_keys_fetched_ahead_are_wiped(slow):
    """Keys of files that were never opened are in memory before a lock, and not after it."""
    flat(slow, 60)
    slow.remount()
    order = list(in_order(slow.path("flat")))
    for path in order[:12]:
        get(path)
    quiet(slow)
    assert counters(slow)["file_keys"] > 20
    unopened = [os.path.relpath(path, slow.plain) for path in order[12:20]]
    needles = {k: v for k, v in secrets_of(slow, unopened).items() if " page[" in k or " hdr[" in k or "secret[" in k}
    assert len([k for k in needles if " page[" in k]) == 2 * len(unopened) * 1
    pid = slow.process.pid
    found = scan(pid, needles)[0]
    assert {k for k in needles if " page[" in k} <= set(found), sorted(found)
    assert slow.ctl("lock", slow.plain).returncode == 0
    wait_until(lambda: slow.state() == "locked")
    assert scan(pid, needles)[0] == {}


def test_throttling_slows_and_never_fails(make_mount, devkms):
    mount = make_mount("t", devkms, probe="1s", lease="30s").mount()
    devkms.fault(error_type="ThrottlingException", error_message="Rate exceeded", error_rate=0.1, latency_ms=2)
    n = fill(mount)
    mount.remount()
    paths = list(in_order(mount.path("tree")))
    assert len(paths) == n and all(get(path) for path in paths)
    s = mount.status()
    assert s["kms"]["throttled"] > 0 and s["counters"]["errors"] == 0, s
    assert s["state"] == "open" and s["counters"]["locks"] == 0
    devkms.clear()


def test_denied_ahead_locks(slow, devkms):
    """The domain is found to be denied by a key that nobody waited for."""
    flat(slow, 200)
    slow.remount()
    order = list(in_order(slow.path("flat")))
    get(order[0])
    devkms.disable()
    assert err(get, order[1]) == errno.EIO
    wait_until(lambda: slow.state() == "locked")
    log = slow.read_log()
    assert log.count("key of file") <= 2, log
    devkms.enable()


@pytest.mark.sanitizer
def test_past_a_locked_domain(slow, devkms):
    """A nested domain stands in the reader's way: locked, nothing in it is touched; open, its keys are fetched too."""
    flat(slow, 100)
    key = new_key(devkms)
    add(slow, "flat/vault", key)
    inner = [slow.path("flat", "vault", f"s{i}") for i in range(40)]  # more than there are descriptors kept
    for d in inner:
        os.mkdir(d)
        put(os.path.join(d, "f"), b"deep", sync=False)
    slow.remount()
    held = os.open(slow.path("flat", "vault"), os.O_PATH)  # the kernel knows it
    try:
        assert slow.ctl("lock", "--domain", "1", slow.plain).returncode == 0
        wait_state(slow, 1, "locked")
        outer = [e.path for e in os.scandir(slow.path("flat")) if e.name != "vault"]
        assert [err(get, path) for path in outer] == [0] * 100
        assert quiet(slow) == 100
        assert counters(slow)["file_keys"] == 100
        assert slow.ctl("unlock", "--domain", "1", slow.plain).returncode == 0
        wait_state(slow, 1, "open")
        assert len([get(path) for path in in_order(slow.path("flat"))]) == 140
        assert counters(slow)["file_keys"] == 140
    finally:
        os.close(held)


def test_a_file_of_another_domain(slow, devkms):
    """Storage puts a file of one domain into a directory of another: opening it is refused, and no key is asked for."""
    flat(slow, 60)
    add(slow, "vault", new_key(devkms))
    put(slow.path("vault", "f"), b"inside")
    backing = {path: backing_of(slow, *os.path.relpath(path, slow.plain).split("/"))
               for path in (slow.path("flat", "f0"), slow.path("flat", "f1"), slow.path("vault", "f"))}
    slow.umount()
    for name in ("f0", "f1"):
        os.unlink(backing[slow.path("flat", name)])
        os.link(backing[slow.path("vault", "f")], backing[slow.path("flat", name)])
    slow.mount()
    alien = [slow.path("flat", "f0"), slow.path("flat", "f1")]
    assert all(get(path) for path in in_order(slow.path("flat")) if path not in alien)
    assert quiet(slow) == 58
    assert [err(get, path) for path in alien] == [errno.EIO] * 2


def threads(pid, *words):
    """How many threads of a process have each of these in their status."""
    n = 0
    for tid in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{tid}/status") as f:
            text = f.read()
        n += all(w in text for w in words)
    return n


def stopped(pid):
    """A tracer holds one of its threads."""
    return threads(pid, "State:\tt") == 1


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_slow_listing_costs_a_lock_nothing(slow):
    """Read-ahead hangs in readdir on the storage: a lock writes back and completes all the same, and nothing of that
    directory is remembered after it."""
    flat(slow, 60)
    for i in range(8):
        os.mkdir(slow.path("flat", f"d{i}"))
        put(slow.path("flat", f"d{i}", "f"), b"deep", sync=False)
    slow.remount()
    entries = os.listdir(slow.path("flat"))
    inner = next(n for n in entries[8:] if n.startswith("d"))
    dirty = os.open(slow.path("flat", "f0"), os.O_WRONLY)
    os.pwrite(dirty, b"dirty", 0)
    pid = slow.process.pid
    strace = subprocess.Popen(["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid), "-P",
                               backing_of(slow, "flat", inner), "-e", "trace=getdents64", "-e",
                               "inject=getdents64:delay_enter=600s"], stderr=subprocess.DEVNULL)
    try:
        before = entries[:entries.index(inner)]
        wait_until(lambda: threads(pid, "TracerPid:\t0\n") == 0)
        assert all(get(slow.path("flat", n)) for n in before if n.startswith("f"))
        wait_until(lambda: stopped(pid))
        assert slow.ctl("lock", slow.plain).returncode == 0
        wait_until(lambda: slow.state() == "locked")
        assert stopped(pid)
    finally:
        strace.terminate()
        strace.wait(30)
    assert "still running" not in slow.read_log()
    assert slow.ctl("unlock", slow.plain).returncode == 0
    wait_until(lambda: slow.state() == "open")
    os.close(dirty)
    assert get(slow.path("flat", "f0")) == b"dirty"
    assert len([get(path) for path in in_order(slow.path("flat"))]) == 68
