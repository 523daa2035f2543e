"""mount.shared: several hosts on one store."""
import errno
import fcntl
import os
import signal
import sqlite3
import struct
import subprocess
import sys

import pytest
from conftest import BYOKFS, environment, wait_until
from shared import LOCKER, Actor, Host, append_from, pair


@pytest.fixture(scope="module")
def two(tmp_path_factory, shared_devkms):
    """Two hosts for tests that leave them alive."""
    hosts = pair(str(tmp_path_factory.mktemp("two")), shared_devkms, probe="10s", lease="30s")
    yield hosts
    for host in hosts:
        host.close()


@pytest.fixture
def own_two(tmp_path, shared_devkms):
    hosts = pair(str(tmp_path), shared_devkms, probe="10s", lease="30s")
    yield hosts
    for host in hosts:
        host.close()


@pytest.fixture
def actor():
    made = []

    def make(code, *args):
        made.append(Actor(code, *args))
        return made[-1]
    yield make
    for a in made:
        a.end()


def write(path, data, mode="wb", sync=False):
    with open(path, mode) as f:
        f.write(data)
        if sync:
            f.flush()
            os.fsync(f.fileno())


def read(path):
    with open(path, "rb") as f:
        return f.read()


@pytest.mark.sanitizer
def test_close_to_open(two):
    a, b = two
    for size in (5, 1504, 1505, 4096, 4100, 300_000, 17, 0, 1_000_003):
        data = os.urandom(size)
        write(a.path("file"), data)
        assert read(b.path("file")) == data and os.stat(b.path("file")).st_size == size
        data = data[: size // 2] + os.urandom(9)
        write(b.path("file"), data)
        assert os.stat(a.path("file")).st_size == len(data) and read(a.path("file")) == data


def test_rename_over_is_seen_at_once(two):
    a, b = two
    for n in range(20):
        write(a.path("new"), b"%d" % n)
        os.rename(a.path("new"), a.path("config"))
        assert read(b.path("config")) == b"%d" % n
        assert not os.path.exists(b.path("new"))


def test_names(two):
    a, b = two
    assert not os.path.exists(b.path("dir"))
    os.mkdir(a.path("dir"))
    with pytest.raises(FileExistsError):
        os.mkdir(b.path("dir"))
    write(b.path("dir", "x" * 200), b"long")
    assert os.listdir(a.path("dir")) == ["x" * 200]
    with pytest.raises(FileExistsError):
        os.open(a.path("dir", "x" * 200), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    held = os.open(b.path("dir"), os.O_RDONLY | os.O_DIRECTORY)
    os.unlink(a.path("dir", "x" * 200))
    os.rmdir(a.path("dir"))
    for attempt in (lambda: os.listdir(b.path("dir")), lambda: os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=held),
                    lambda: os.stat(b.path("dir"))):
        with pytest.raises(OSError) as e:
            attempt()
        assert e.value.errno in (errno.ENOENT, errno.ESTALE)
    os.close(held)
    os.mkdir(b.path("dir"))
    write(a.path("dir", "again"), b"1")
    assert read(b.path("dir", "again")) == b"1"


def test_removed_elsewhere_while_open(two):
    a, b = two
    write(a.path("gone"), b"content")
    with open(b.path("gone"), "rb") as f:
        os.unlink(a.path("gone"))
        assert f.read() == b"content"
        with pytest.raises(FileNotFoundError):
            open(b.path("gone"), "rb")
    for n in range(50):  # the backing gives numbers of removed files to new ones
        write(a.path("number"), b"%d" % n)
        assert read(b.path("number")) == b"%d" % n
        os.unlink((a, b)[n % 2].path("number"))
        assert not os.path.exists(b.path("number"))


RACE = r"""
import os, sys
what, path = sys.argv[1:3]
sys.stdin.readline()
for n in range(60):
    try:
        if what == "create":
            os.close(os.open(f"{path}{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif what == "mkdir":
            os.mkdir(f"{path}{n}")
        elif what == "link":
            os.link(path, f"{path}{n}")
        print(n)
    except FileExistsError:
        pass
print("end")
"""


@pytest.mark.parametrize("what", ["create", "mkdir", "link"])
def test_one_winner(two, actor, what):
    a, b = two
    write(a.path(f"race-{what}"), b"")
    actors = [actor(RACE, what, h.path(f"race-{what}")) for h in (a, b, a, b)]
    for x in actors:
        x.say("go")
    won = []
    for x in actors:
        while (line := x.hear()) != "end":
            assert line, "an actor died"
            won.append(int(line))
    assert sorted(won) == list(range(60))


@pytest.mark.sanitizer
def test_append_whole_records(two):
    append_from(two, "log", writers=4, count=50, size=300)
    append_from(two, "log-large", writers=2, count=12, size=9000)


PAGES = r"""
import os, random, sys
path, who, count, pages = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
rng = random.Random(who)
fd = os.open(path, os.O_RDWR)
def value(k, n): return (f"{who}.{k}.{n};".encode() * 4096)[:4096]
def whole(page):
    if not page.strip(b"\0"):
        return len(page) in (0, 4096)
    word = page[:page.index(b";") + 1]
    return page == (word * 4096)[:4096]
for n in range(count):
    k = rng.randrange(pages)
    assert os.pwrite(fd, value(k, n), k * 4096) == 4096
    k = rng.randrange(pages)
    page = os.pread(fd, 4096, k * 4096)
    assert whole(page), (k, page[:40], page[-40:])
    if n % 16 == 0:
        with open(path, "rb") as f:
            for k in range(pages):
                assert whole(f.read(4096)), k
"""


def test_pages_are_never_mixed(two):
    a, b = two
    write(a.path("pages"), b"\0" * 4096 * 130)
    actors = [subprocess.Popen([sys.executable, "-c", PAGES, h.path("pages"), f"{i}", "100", "130"])
              for i, h in enumerate((a, b, a, b))]
    assert [x.wait(120) for x in actors] == [0] * 4
    assert read(a.path("pages")) == read(b.path("pages"))
    for h in two:
        assert "does not authenticate" not in h.read_log() and "older than" not in h.read_log(), h.read_log()


SIZES = r"""
import os, random, sys
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = random.Random(who)
fd = os.open(path, os.O_RDWR)
for n in range(count):
    what, at = rng.randrange(6), rng.randrange(60) * 4096 + rng.choice((0, 0, 1, 4064, 4090))
    if what == 0:
        os.ftruncate(fd, at)
    elif what == 1:
        os.posix_fallocate(fd, at, 8192)
    elif what == 2:
        import ctypes
        assert ctypes.CDLL(None, use_errno=True).fallocate(fd, 3, ctypes.c_long(at), ctypes.c_long(20000)) == 0
    elif what == 3:
        assert set(os.pread(fd, 30000, at)) <= {0, 65}
        os.lseek(fd, 0, os.SEEK_END)
    else:
        data = b"A" * rng.choice((1, 100, 4096, 20000))
        assert os.pwrite(fd, data, at) == len(data)
"""


@pytest.mark.sanitizer
def test_sizes_and_holes(two):
    """Truncation, holes and growth from both: bytes are zero or what was written, and never EIO."""
    a, b = two
    write(a.path("sizes"), b"A" * 100)
    actors = [subprocess.Popen([sys.executable, "-c", SIZES, h.path("sizes"), f"{i}", "60"]) for i, h in enumerate((a, b))]
    assert [x.wait(120) for x in actors] == [0] * 2
    assert read(a.path("sizes")) == read(b.path("sizes"))
    assert set(read(a.path("sizes"))) <= {0, 65}


def test_grows_under_a_reader(two):
    a, b = two
    write(a.path("tail"), b"1" * 100)
    with open(b.path("tail"), "rb", buffering=0) as f:
        assert f.read(4096) == b"1" * 100
        for _ in range(2):
            write(a.path("tail"), b"2" * 100, "ab")
            assert wait_until(lambda: f.read(4096)) == b"2" * 100


def test_shared_mapping_is_refused(two):
    import mmap
    a, _ = two
    write(a.path("map"), b"m" * 8192)
    with open(a.path("map"), "r+b") as f:
        with pytest.raises(OSError):
            mmap.mmap(f.fileno(), 4096)
        private = mmap.mmap(f.fileno(), 4096, flags=mmap.MAP_PRIVATE)
        assert private[:10] == b"m" * 10
        private.close()


def test_attributes(two):
    a, b = two
    write(a.path("attr"), b"x")
    os.chmod(a.path("attr"), 0o640)
    os.utime(a.path("attr"), (1000, 2000))
    os.chown(a.path("attr"), 12, 34)
    st = os.stat(b.path("attr"))
    assert (st.st_mode & 0o777, st.st_mtime, st.st_uid, st.st_gid) == (0o640, 2000, 12, 34)
    with pytest.raises(OSError):
        os.getxattr(b.path("attr"), "user.a")
    os.setxattr(a.path("attr"), "user.a", b"1")
    assert os.getxattr(b.path("attr"), "user.a") == b"1"
    subprocess.run(["setfacl", "-m", "d:u:55:rwx", b.path(".")], check=True)
    write(a.path("inherits"), b"")
    acl = subprocess.run(["getfacl", "-cn", b.path("inherits")], capture_output=True, text=True, check=True).stdout
    subprocess.run(["setfacl", "-k", b.path(".")], check=True)
    assert "user:55:" in acl
    write(a.path("after"), b"")
    assert "user:55" not in subprocess.run(["getfacl", "-cn", a.path("after")], capture_output=True, text=True).stdout


# ---- applications' locks


def test_fcntl_between_hosts(two, actor):
    a, b = two
    write(a.path("lock"), b"")
    one, other, near = actor(LOCKER, a.path("lock")), actor(LOCKER, b.path("lock")), actor(LOCKER, a.path("lock"))
    assert one.ask("fcntl ex 0 10") == "ok"
    assert [x.ask("fcntl ex 5 1") for x in (other, near)] == ["busy"] * 2
    assert [x.ask("fcntl sh 10 10") for x in (one, other, near)] == ["ok"] * 3
    assert near.ask("get ex 30 5") == "free 30 5"
    assert other.ask("get ex 0 5") == "ex 0 10" and near.ask("get sh 20 0") == "free 20 0"
    assert one.ask("fcntl un 0 5") == "ok" and other.ask("fcntl ex 0 5") == "ok"
    assert one.ask("fcntl ex 0 0") == "busy"
    one.say("fcntl ex! 0 0")  # waits for both others, and for the range to the very end
    assert other.ask("fcntl un 0 0") == "ok" and near.ask("fcntl un 0 0") == "ok"
    assert one.hear() == "ok"
    assert other.ask("fcntl sh 1000000000000 1") == "busy" and near.ask("get sh 7 1") == "ex 0 0"  # to the end
    assert one.ask("reopen ex") == "ok"  # closing any descriptor drops a process's locks
    assert other.ask("fcntl ex 0 0") == "ok"
    assert one.ask(f"fcntl ex {1 << 62} 1") == "Invalid argument"


def test_flock_between_hosts(two, actor):
    a, b = two
    write(a.path("flock"), b"")
    one, other, near = actor(LOCKER, a.path("flock")), actor(LOCKER, b.path("flock")), actor(LOCKER, a.path("flock"))
    assert [x.ask("flock sh") for x in (one, other, near)] == ["ok"] * 3
    assert other.ask("fcntl ex 0 0") == "ok"  # the two kinds do not know each other
    assert one.ask("flock ex") == "busy"
    one.say("flock ex!")
    near.say("flock ex!")  # both give up what they have while they wait
    assert other.ask("flock un") == "ok"
    first, second = (one, near) if ready(one) else (near, one)
    assert first.hear() == "ok" and first.ask("flock un") == "ok" and second.hear() == "ok"
    assert second.ask("close ex") == "ok"
    wait_until(lambda: other.ask("flock ex") == "ok")  # the kernel's RELEASE follows close(2), without waiting


def ready(x):
    import select
    return bool(select.select([x.process.stdout], [], [], 1.0)[0])


@pytest.mark.sanitizer
def test_killed_waiter_goes_and_dead_owner_lets_go(two, actor):
    a, b = two
    write(a.path("waits"), b"")
    owner, waiter, third = actor(LOCKER, a.path("waits")), actor(LOCKER, b.path("waits")), actor(LOCKER, b.path("waits"))
    for kind in ("fcntl", "flock"):
        assert owner.ask(f"{kind} ex") == "ok"
        waiter.say(f"{kind} ex!")
        wait_until(lambda: waiting(waiter.process.pid))
        waiter.process.send_signal(signal.SIGKILL)
        assert waiter.process.wait(10) == -signal.SIGKILL
        assert owner.ask(f"{kind} un") == "ok"
        assert third.ask(f"{kind} ex") == "ok"  # the dead one did not get it
        assert third.ask(f"{kind} un") == "ok"
        waiter = actor(LOCKER, b.path("waits"))
    assert owner.ask("flock ex") == "ok" and owner.ask("ofd ex 100 5") == "ok"
    waiter.say("flock ex!")
    owner.end()
    assert waiter.hear() == "ok"
    wait_until(lambda: third.ask("fcntl ex 100 5") == "ok")


def test_descriptors_for_locks_are_bounded(tmp_path, shared_devkms, actor, monkeypatch):
    """Whoever may open files cannot make the daemon run out of descriptors by locking them."""
    os.mkdir(tmp_path / "store")
    few = tmp_path / "few"
    few.write_text(f'#!/bin/sh\nulimit -n 200\nexec {os.path.abspath(BYOKFS)} "$@"\n')
    few.chmod(0o755)
    monkeypatch.setattr("conftest.BYOKFS", str(few))
    host = Host(str(tmp_path / "a"), shared_devkms, str(tmp_path / "store"))
    try:
        host.mount()
        write(host.path("f"), b"text")
        taker = actor("""
import errno, fcntl, os, sys
fds, had = [], 0
for _ in range(150):
    fds.append(os.open(sys.argv[1], os.O_RDONLY))
    try:
        fcntl.flock(fds[-1], fcntl.LOCK_SH)
        had += 1
    except OSError as e:
        assert e.errno == errno.ENOLCK, e
print(had, flush=True)
sys.stdin.readline()
for fd in fds:
    os.close(fd)
print("ok", flush=True)
sys.stdin.readline()
""", host.path("f"))
        assert taker.hear() == "50"
        assert read(host.path("f")) == b"text"
        write(host.path("other"), b"more")
        assert taker.ask("") == "ok"
        lock = actor(LOCKER, host.path("f"))
        wait_until(lambda: lock.ask("flock ex") == "ok")
        lock.end()
        taker.end()
    finally:
        host.close()


def waiting(pid):
    with open(f"/proc/{pid}/syscall") as f:
        return f.read().split()[0] in ("72", "73", "25", "32")  # fcntl, flock; x86-64, arm64


def test_many_waiters_all_get_their_turn(two, actor):
    a, b = two
    write(a.path("turns"), b"0")
    code = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for _ in range(20):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    n = int(os.pread(fd, 20, 0))
    os.pwrite(fd, b"%d" % (n + 1), 0)
    assert os.fstat(fd).st_size == len(str(n + 1))
    fcntl.lockf(fd, fcntl.LOCK_UN)
"""
    actors = [subprocess.Popen([sys.executable, "-c", code, h.path("turns")]) for h in (a, b) * 4]
    assert [x.wait(120) for x in actors] == [0] * 8
    assert read(b.path("turns")) == b"160"


SQL = r"""
import sqlite3, sys
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
assert db.execute("pragma journal_mode").fetchone()[0] == "delete"
for n in range(count):
    db.execute("begin immediate")
    db.execute("update counter set n = n + 1")
    db.execute("insert into log values (?, ?, ?)", (who, n, "x" * (n * 97 % 3000)))
    db.execute("commit")
    total, = db.execute("select count(*) from log").fetchone()
    assert total >= n + 1
db.close()
"""


def test_sqlite_from_both(two):
    """Needs locks, fresh sizes and fresh pages in files that stay open."""
    a, b = two
    db = sqlite3.connect(a.path("db"))
    db.execute("create table counter (n integer)")
    db.execute("insert into counter values (0)")
    db.execute("create table log (who text, n integer, filler text)")
    db.commit()
    db.close()
    actors = [subprocess.Popen([sys.executable, "-c", SQL, h.path("db"), f"{i}", "25"]) for i, h in enumerate((a, b, a, b))]
    assert [x.wait(170) for x in actors] == [0] * 4
    for h in two:
        db = sqlite3.connect(h.path("db"))
        assert db.execute("select n from counter").fetchone() == (100,)
        assert db.execute("select count(*) from log").fetchone() == (100,)
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        db.close()


# ---- who may be there together


def attempt(host, *options):
    """The exit code and message of a mount that is refused."""
    args = [BYOKFS, "-f", "-c", host.ini]
    for o in options:
        args += ["-o", o]
    return subprocess.run([*args, host.cipher, host.plain], env=environment(), capture_output=True, text=True, timeout=60)


def test_exclusive_and_shared_exclude_each_other(own_two, tmp_path, shared_devkms):
    a, b = own_two
    other = Host(str(tmp_path / "c"), shared_devkms, os.path.realpath(a.cipher))
    r = attempt(other)
    assert r.returncode == 9 and "mounted shared" in r.stderr, r.stderr
    r = other.ctl("check", a.cipher)
    assert r.returncode != 9, r.stderr  # reads only
    r = other.ctl("check", "--repair", a.cipher)
    assert r.returncode != 0
    b.umount()
    assert attempt(other).returncode == 9
    a.umount()
    other.options = []
    other.mount()
    r = attempt(b, "mount.shared=yes")
    assert r.returncode == 9 and "without 'shared'" in r.stderr, r.stderr
    other.umount()
    assert os.listdir(os.path.join(other.cipher, ".byokfs", "mounts")) == []
    r = attempt(b, "mount.shared=yes", "mount.writeback=yes")
    assert r.returncode == 3 and "'writeback'" in r.stderr, r.stderr
    other.options = ["mount.shared=yes"]
    other.close()


def test_mounted_again_at_once(tmp_path, shared_devkms, make_mount):
    """umount(8) is back before the daemon has ended: the next one waits for it, whenever that is."""
    m = make_mount("again", shared_devkms).mount()
    for size in (0, 10, 50_000, 0, 1_000_000, 10, 0, 200_000):
        for n in range(20):
            write(m.path(f"f{n}"), b"a" * size)
        before = m.process
        subprocess.run(["umount", m.plain], check=True)
        m.mount()
        assert before.wait(10) == 0
        assert os.stat(m.path("f0")).st_size == size


def test_domain_add_is_refused(two):
    a, _ = two
    os.mkdir(a.path("domain"))
    key = a.kms.client.create_key(Description="never asked")["KeyMetadata"]["Arn"]
    a.kms.disable(key)
    r = a.ctl("domain", "add", a.path("domain"), "--key", key)
    assert r.returncode == 1 and "is mounted shared" in r.stderr, r.stderr  # not that the key is disabled
    a.kms.enable(key)
    r = a.ctl("rotate", a.plain, "-c", a.ini, "--to", key)
    assert r.returncode == 1 and "is mounted shared" in r.stderr, r.stderr
    os.rmdir(a.path("domain"))


def test_reader_beside(own_two, tmp_path, shared_devkms):
    a, _ = own_two
    write(a.path("f"), b"1" * 5000)
    reader = Host(str(tmp_path / "c"), shared_devkms, os.path.realpath(a.cipher), options=("ro", "mount.shared=yes"))
    try:
        reader.mount()
        for n in range(10):
            data = os.urandom(5000 + n)
            write(a.path("f"), data)
            assert read(reader.path("f")) == data
    finally:
        reader.close()


def test_killed_host(own_two, actor):
    """One daemon dies in the middle of writing: the other goes on, what was fsynced is there, its locks are gone."""
    a, b = own_two
    write(a.path("safe"), b"s" * 50_000, sync=True)
    write(a.path("busy"), b"\0" * 4096 * 50, sync=True)
    owner, other = actor(LOCKER, a.path("safe")), actor(LOCKER, b.path("safe"))
    assert owner.ask("fcntl ex 0 0") == "ok" and owner.ask("flock ex") == "ok" and other.ask("flock ex") == "busy"
    writer = actor("""
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print("begun")
n = 0
while True:
    for k in range(50):
        os.pwrite(fd, b"%c" % (65 + n % 26) * 4096, k * 4096)
    n += 1
""", a.path("busy"))
    assert writer.hear() == "begun"
    wait_until(lambda: read(b.path("busy"))[:1] == b"C")
    a.kill()
    a.clear_dead()
    assert other.ask("flock ex") == "ok" and other.ask("fcntl ex 0 0") == "ok"
    assert read(b.path("safe")) == b"s" * 50_000
    text = read(b.path("busy"))
    assert len(text) == 4096 * 50
    for k in range(50):
        page = text[k * 4096:(k + 1) * 4096]
        assert len(set(page[:4064])) == 1 and len(set(page[4064:])) == 1
    write(b.path("busy"), b"z" * 4096 * 60)
    write(b.path("after"), b"1")
    # It comes back: its marker is answered for and goes.
    a.mount()
    assert read(a.path("busy")) == b"z" * 4096 * 60 and os.stat(a.path("safe")).st_size == 50_000
    mounts = os.path.join(a.cipher, ".byokfs", "mounts")
    wait_until(lambda: len(os.listdir(mounts)) == 2)
    other.end()
    a.umount()
    b.umount()
    assert os.listdir(mounts) == []
    assert b.ctl("check", b.cipher).returncode == 0


def test_denied_on_one_host_only(own_two, actor):
    """A lock on one host is that host's."""
    a, b = own_two
    write(a.path("f"), b"x")
    waiter, near, other = actor(LOCKER, a.path("f")), actor(LOCKER, a.path("f")), actor(LOCKER, b.path("f"))
    assert other.ask("flock ex") == "ok" and near.ask("fcntl ex 0 0") == "ok"
    waiter.say("flock ex!")
    wait_until(lambda: waiting(waiter.process.pid))
    a.ctl("lock", a.plain, check=True)
    assert waiter.hear() == "Input/output error"  # nobody waits for what is locked
    assert waiter.ask("flock ex") == "Input/output error" and other.ask("fcntl ex 0 0") == "busy"
    assert near.ask("fcntl un 0 0") == "ok" and other.ask("fcntl ex 0 0") == "ok"  # letting go always works
    with pytest.raises(OSError):
        read(a.path("f"))
    write(b.path("f"), b"changed meanwhile" * 1000)
    a.ctl("unlock", a.plain, check=True)
    wait_until(lambda: a.state() == "open")
    assert read(a.path("f")) == b"changed meanwhile" * 1000


def test_lock_of_the_domain_waits_for_no_other_host(own_two):
    """Another host hangs in the middle of a write. Whoever waits for it has a key, which must go at once."""
    a, _ = own_two
    write(a.path("f"), b"x" * 5000)
    names = [n for n in os.listdir(a.cipher) if not n.startswith(".")]
    hangs = os.open(os.path.join(a.cipher, names[0]), os.O_RDWR)
    fcntl.fcntl(hangs, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 1 << 62, 1, 0))
    code = "import os, sys; os.truncate(sys.argv[1], 10)"
    writers = [subprocess.Popen([sys.executable, "-c", code, a.path("f")], stderr=subprocess.PIPE, text=True)
               for _ in range(6)]
    try:
        # Each waits in the kernel for its answer; then none has waited in vain yet.
        for w in writers:
            wait_until(lambda w=w: "request_wait_answer" in stack(w.pid), step=0.002)
        a.ctl("lock", a.plain, check=True)
        assert "too long" not in a.read_log() and "locked by the administrator" in a.read_log(), a.read_log()
        assert all("Input/output error" in w.communicate(timeout=60)[1] for w in writers)
    finally:
        for w in writers:
            w.kill()
            w.wait()
        os.close(hangs)
    a.ctl("unlock", a.plain, check=True)
    wait_until(lambda: a.state() == "open")
    assert read(a.path("f")) == b"x" * 5000


def stack(pid):
    try:
        with open(f"/proc/{pid}/stack") as f:
            return f.read()
    except OSError:
        return ""
