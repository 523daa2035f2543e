"""Bytes: every way to read and write them, checked against a model; locks; holes; several writers."""
import errno
import fcntl
import mmap
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

from conftest import LIBC, wait_until
from posix_tools import (BIG, BOTH, COLLAPSE_RANGE, INSERT_RANGE, KEEP_SIZE, PUNCH_HOLE, REFERENCE, VARIANTS, ZERO_RANGE, check, compile_c, d, fallocate, mounted,
                         raises, read, run, variant_fixture, write)

fs = variant_fixture(BOTH)
__all__ = ["d"]


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    return tmp_path_factory.mktemp("tools")


@pytest.fixture
def outside(tmp_path):
    return tmp_path


# ---- the model ----

FLAVOURS = {
    "plain": [],
    "large": ["-z", "9000000", "-n", "600"],
    "small": ["-z", "8192"],
    "direct": ["-d"],
    "sync": ["-y", "-n", "400"],
    "no-map": ["-M"],
    "no-allocate": ["-F"],
    "mixed": ["-D"],
}


def model(program, path, *args, n=1500):
    n *= 20 if BIG else 1
    return run(program, "-n", str(n), *args, path)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_random_operations(fs, d, tools, outside, flavour):
    """Three tenures of one file, with an unmount between them; the model survives, and so must the file."""
    program = compile_c(tools, "model")
    f, saved = os.path.join(d, "f"), os.path.join(outside, "model")
    for seed in range(1, 4):
        model(program, f, "-l", f + "-link", "-m", saved, "-s", str(seed + len(flavour)), *FLAVOURS[flavour])
        fs.remount()
    assert read(f) == read(saved)


@pytest.mark.sanitizer
@pytest.mark.parametrize("variant", VARIANTS)
def test_random_operations_in_every_mode(shared_devkms, tools, outside, variant):
    program = compile_c(tools, "model")
    with mounted(variant, kms=shared_devkms) as m:
        f, saved = m.path("f"), os.path.join(outside, "model")
        for seed in (11, 12):
            model(program, f, "-m", saved, "-s", str(seed), n=800)
            m.remount()
        assert read(f) == read(saved)


def test_many_models_at_once(fs, d, tools):
    """Eight processes, each with a file of its own, share the daemon's threads, buffers and keys."""
    program = compile_c(tools, "model")
    children = [subprocess.Popen([program, "-n", "700", "-s", str(100 + i), "-l", os.path.join(d, f"l{i}"), os.path.join(d, f"f{i}")],
                                 stderr=subprocess.PIPE) for i in range(8)]
    for child in children:
        error = child.communicate(timeout=200)[1]
        assert child.returncode == 0, error.decode()


@pytest.mark.sanitizer
def test_sizes(fs, d):
    """Every size round the places where the format changes its mind."""
    edges = [0, 1, 1503, 1504, 1505, 4063, 4064, 4065, 4095, 4096, 4097, 8160, 16383, 16384, 16385, 16384 + 106 * 4096 - 1, 16384 + 106 * 4096 + 1]
    for n in edges:
        write(os.path.join(d, str(n)), random.Random(n).randbytes(n))
    for again in range(2):
        for n in edges:
            assert os.stat(os.path.join(d, str(n))).st_size == n
            assert read(os.path.join(d, str(n))) == random.Random(n).randbytes(n)
        fs.remount()
    for a, b in zip(edges, edges[1:]):
        f = os.path.join(d, str(a))
        write(f, b"+" * (b - a), "ab")
        assert read(f) == random.Random(a).randbytes(a) + b"+" * (b - a)


def test_a_large_file(fs, d):
    """Beyond the first L1 page would be slow to fill; its neighbourhood is reached by holes."""
    f, data = os.path.join(d, "f"), os.urandom(3_000_001)
    places = [0, 20 << 20, (26 << 20) + 4063, (278 << 20) + 17, (17 << 30) + 4095] + ([1 << 40] if BIG else [])
    with open(f, "wb") as o:
        for at in places:
            o.seek(at)
            o.write(data)
    fs.remount()
    with open(f, "rb") as i:
        for at in places:
            i.seek(at)
            assert i.read(len(data)) == data
            i.seek(at + len(data))
            assert i.read(5000) in (b"\0" * 5000, b"")
    st = os.stat(f)
    assert st.st_size == places[-1] + len(data) and st.st_blocks * 512 < 40_000_000
    with open(f, "r+b") as o:
        o.truncate(5)
        os.fsync(o.fileno())  # nothing is removed before the record that it may be absent is durable
    assert read(f) == data[:5] and os.stat(f).st_blocks * 512 < 100_000


def test_beyond_the_largest_size(fs, d):
    f = write(os.path.join(d, "f"), b"x")
    if fs.cipher:
        raises(errno.EFBIG, os.truncate, f, 1 << 60)
        fd = os.open(f, os.O_RDWR)
        raises(errno.EFBIG, os.posix_fallocate, fd, 1 << 60, 4096)
        os.close(fd)
    assert read(f) == b"x"
    raises(errno.EINVAL, os.truncate, f, -5)


# ---- mmap ----

@pytest.mark.sanitizer
def test_mmap(d, tools):
    run(compile_c(tools, "mapped"), write(os.path.join(d, "f")))


def test_mmap_survives_remount_of_content(fs, d):
    f = write(os.path.join(d, "f"), b"\0" * 100_000)
    with open(f, "r+b") as o, mmap.mmap(o.fileno(), 0) as m:
        for at in range(0, 100_000, 997):
            m[at] = at % 251
    fs.remount()
    data = read(f)
    assert all(data[at] == at % 251 for at in range(0, 100_000, 997)) and sum(map(bool, data)) <= 101


# ---- several writers ----

def forked(*bodies):
    pids = []
    for body in bodies:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                body()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    assert [os.waitpid(p, 0)[1] for p in pids] == [0] * len(pids)


@pytest.mark.sanitizer
def test_append_from_several_processes(d):
    f = os.path.join(d, "log")

    def writer(who):
        fd = os.open(f, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for i in range(300):
            line = f"{who} {i} ".encode() + b"." * (i * 37 % 400) + b"\n"
            assert os.write(fd, line) == len(line)
        os.close(fd)
    forked(*[lambda w=w: writer(w) for w in range(4)])
    lines = read(f).splitlines()
    assert len(lines) == 1200
    for who in range(4):
        mine = [line for line in lines if line.startswith(b"%d " % who)]
        assert [int(line.split()[1]) for line in mine] == list(range(300))
        assert all(line.split()[2:] in ([b"." * (i * 37 % 400)], []) for i, line in enumerate(mine))


def test_interleaved_records(d):
    """Neighbours in one page, written by different processes."""
    f = write(os.path.join(d, "f"), b"")
    n = 4

    def writer(who):
        fd = os.open(f, os.O_RDWR)
        for i in range(400):
            os.pwrite(fd, bytes([65 + who]) * 33, (i * n + who) * 33)
        os.close(fd)
    forked(*[lambda w=w: writer(w) for w in range(n)])
    assert read(f) == b"".join(bytes([65 + w]) * 33 for _ in range(400) for w in range(n))


@pytest.mark.sanitizer
def test_exclusive_creation_race(d):
    """O_EXCL, mkdir, link and rename without replacement: exactly one of many wins, each time."""
    go = os.path.join(d, "wins")
    os.mkdir(go)

    def racer(who):
        for i in range(60):
            for kind in ("excl", "mkdir", "link", "symlink"):
                try:
                    name = os.path.join(d, f"{kind}{i}")
                    if kind == "excl":
                        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    elif kind == "mkdir":
                        os.mkdir(name)
                    elif kind == "link":
                        os.link(go + "-src", name)
                    else:
                        os.symlink(str(who), name)
                except FileExistsError:
                    continue
                os.close(os.open(os.path.join(go, f"{kind}{i}-{who}"), os.O_CREAT | os.O_WRONLY))
    write(go + "-src")
    forked(*[lambda w=w: racer(w) for w in range(4)])
    wins = sorted(n.rsplit("-", 1)[0] for n in os.listdir(go))
    assert wins == sorted(f"{k}{i}" for i in range(60) for k in ("excl", "mkdir", "link", "symlink"))


def test_create_without_excl_race(d):
    """Everybody's open(O_CREAT) succeeds, and all write into one file."""
    def racer(who):
        for i in range(80):
            fd = os.open(os.path.join(d, f"f{i}"), os.O_CREAT | os.O_RDWR | os.O_APPEND)
            os.write(fd, bytes([65 + who]))
            os.close(fd)
    forked(*[lambda w=w: racer(w) for w in range(4)])
    for i in range(80):
        assert sorted(read(os.path.join(d, f"f{i}"))) == [65, 66, 67, 68]


def test_rename_storm(d):
    """Readers of a name that is replaced all the time see one version or another, whole; never nothing."""
    f = write(os.path.join(d, "f"), b"0" * 6000)
    stop = os.path.join(d, "stop")

    def writer():
        for i in range(300):
            write(f + ".new", bytes([48 + i % 10]) * 6000)
            os.rename(f + ".new", f)
        write(stop)

    def reader():
        while not os.path.exists(stop):
            data = read(f)
            assert len(data) == 6000 and data == data[:1] * 6000
            assert os.stat(f).st_size == 6000
    forked(writer, reader, reader)


def test_unlink_storm(d):
    """stat and open against unlink and create: success or ENOENT, never anything else."""
    stop = os.path.join(d, "stop")

    def maker():
        for i in range(500):
            write(os.path.join(d, "f"), b"x" * 2000)
            os.symlink("f", os.path.join(d, "l"))
            os.mkdir(os.path.join(d, "s"))
            os.unlink(os.path.join(d, "l"))
            os.unlink(os.path.join(d, "f"))
            os.rmdir(os.path.join(d, "s"))
        write(stop)

    def looker():
        while not os.path.exists(stop):
            for fn in (lambda: os.stat(os.path.join(d, "l")), lambda: read(os.path.join(d, "f")), lambda: os.lstat(os.path.join(d, "f")),
                       lambda: os.readlink(os.path.join(d, "l")), lambda: os.listdir(os.path.join(d, "s")), lambda: os.listdir(d),
                       lambda: [e.stat(follow_symlinks=False).st_size for e in os.scandir(d)],
                       lambda: os.stat(os.path.join(d, "s", "x"))):
                try:
                    fn()
                except FileNotFoundError:
                    pass
    forked(maker, looker, looker)


# ---- locks ----

@pytest.mark.sanitizer
def test_flock_and_fcntl_locks(d):
    f = write(os.path.join(d, "f"), b"x" * 100)
    fd = os.open(f, os.O_RDWR)

    def refused(how):
        def body():
            other = os.open(f, os.O_RDWR)
            raises((errno.EAGAIN, errno.EACCES), how, other)
        forked(body)
    fcntl.flock(fd, fcntl.LOCK_EX)
    refused(lambda o: fcntl.flock(o, fcntl.LOCK_EX | fcntl.LOCK_NB))
    fcntl.flock(fd, fcntl.LOCK_UN)
    forked(lambda: fcntl.flock(os.open(f, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB))
    fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
    refused(lambda o: fcntl.lockf(o, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 25))
    forked(lambda: fcntl.lockf(os.open(f, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 30))
    fcntl.lockf(fd, fcntl.LOCK_UN, 10, 20)
    forked(lambda: fcntl.lockf(os.open(f, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 25))
    os.close(fd)


def test_waiting_for_a_lock(d):
    f = write(os.path.join(d, "counter"), b"0")

    def add():
        for _ in range(50):
            with open(f, "r+b") as o:
                fcntl.lockf(o, fcntl.LOCK_EX)
                n = int(o.read()) + 1
                o.seek(0)
                o.write(b"%d" % n)
                o.flush()
    forked(*[add] * 4)
    assert read(f) == b"200"


# ---- holes ----

@pytest.mark.sanitizer
def test_holes(fs, d):
    f = os.path.join(d, "f")
    with open(f, "wb") as o:
        o.truncate(10 << 20)
        for at in (1 << 20, 5 << 20):
            o.seek(at)
            o.write(b"island" * 1000)

    def look():
        fd = os.open(f, os.O_RDONLY)
        data, at = [], 0
        while True:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as e:
                assert e.errno == errno.ENXIO
                break
            end = os.lseek(fd, at, os.SEEK_HOLE)
            data.append((at, end))
            at = end
        raises(errno.ENXIO, os.lseek, fd, 10 << 20, os.SEEK_DATA)
        raises(errno.ENXIO, os.lseek, fd, 10 << 20, os.SEEK_HOLE)
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        os.close(fd)
        return data
    for _ in range(2):
        found = look()
        assert sum(b - a for a, b in found) < 100_000
        for at in (1 << 20, 5 << 20):
            assert any(a <= at and at + 6000 <= b for a, b in found), found
        assert os.stat(f).st_blocks * 512 < 200_000
        fs.remount()
    run("cp", "--sparse=always", f, f + "2")
    assert read(f + "2") == read(f) and os.stat(f + "2").st_blocks * 512 < 200_000


@pytest.mark.sanitizer
def test_fallocate(fs, d):
    f = write(os.path.join(d, "f"), b"x" * 100_000)
    fd = os.open(f, os.O_RDWR)
    fallocate(fd, KEEP_SIZE, 0, 200_000)
    assert os.fstat(fd).st_size == 100_000
    fallocate(fd, 0, 90_000, 20_000)
    assert os.fstat(fd).st_size == 110_000 and os.pread(fd, 10, 100_000) == b"\0" * 10
    blocks = os.fstat(fd).st_blocks
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4000, 70_000)
    assert os.pread(fd, 80_000, 0) == b"x" * 4000 + b"\0" * 70_000 + b"x" * 6000
    fallocate(fd, ZERO_RANGE, 80_000, 40_000)
    assert os.fstat(fd).st_size == 120_000 and os.pread(fd, 50_000, 79_999) == b"x" + b"\0" * 40_000
    fallocate(fd, ZERO_RANGE | KEEP_SIZE, 0, 500_000)
    assert os.fstat(fd).st_size == 120_000 and os.pread(fd, 200_000, 0) == b"\0" * 120_000
    if fs.cipher:
        for mode in (COLLAPSE_RANGE, INSERT_RANGE, 0x40 | KEEP_SIZE):
            raises(errno.EOPNOTSUPP, fallocate, fd, mode, 4096, 4096)
    raises(errno.EINVAL, fallocate, fd, 0, -1, 10)
    raises(errno.EINVAL, fallocate, fd, 0, 0, 0)
    ro = os.open(f, os.O_RDONLY)
    raises(errno.EBADF, fallocate, ro, 0, 0, 10)
    os.close(ro)
    os.fsync(fd)
    os.close(fd)
    fs.remount()
    assert read(f) == b"\0" * 120_000 and (os.stat(f).st_blocks < blocks or not fs.cipher)


# ---- other ways to move bytes ----

@pytest.mark.sanitizer
def test_copies(d, outside):
    data = os.urandom(300_001)
    f, g, far = write(os.path.join(d, "f"), data), os.path.join(d, "g"), os.path.join(outside, "far")
    with open(f, "rb") as i, open(g, "wb") as o:
        sent = 0
        while sent < len(data):
            n = os.copy_file_range(i.fileno(), o.fileno(), len(data))
            assert n > 0
            sent += n
    assert read(g) == data
    with open(f, "rb") as i, open(g, "wb") as o:
        while os.sendfile(o.fileno(), i.fileno(), None, 1 << 20):
            pass
    assert read(g) == data
    shutil.copyfile(f, far)
    shutil.copyfile(far, g)
    assert read(g) == data
    r, w = os.pipe()
    with open(f, "rb") as i:
        n = os.splice(i.fileno(), w, 5000, offset_src=4000)
        assert os.read(r, n) == data[4000:4000 + n]
    for x in (r, w):
        os.close(x)
    run("cp", "--reflink=auto", f, g)
    assert read(g) == data
    fd = os.open(g, os.O_RDWR)
    bufs = [bytearray(1000), bytearray(5000)]
    assert os.preadv(fd, bufs, 100) == 6000 and bytes(bufs[0] + bufs[1]) == data[100:6100]
    assert os.pwritev(fd, [b"a" * 3000, b"b" * 3000], 4000) == 6000
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 6000, 4000) == b"a" * 3000 + b"b" * 3000
    os.close(fd)


@pytest.mark.sanitizer
def test_direct_io_sees_what_the_cache_has(d):
    f = write(os.path.join(d, "f"), b"\0" * 65536)
    fd, direct = os.open(f, os.O_RDWR), os.open(f, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    for i in range(50):
        os.pwrite(fd, bytes([i]) * 5000, i * 100)
        assert os.preadv(direct, [page], 4096) == 8192
        assert bytes(page) == os.pread(fd, 8192, 4096)
        page[:] = bytes([200 - i]) * 8192
        assert os.pwritev(direct, [page], 16384) == 8192
        assert os.pread(fd, 8192, 16384) == bytes([200 - i]) * 8192
    for x in (fd, direct):
        os.close(x)


def test_o_sync_and_o_dsync(d):
    for flag in (os.O_SYNC, os.O_DSYNC):
        f = os.path.join(d, f"f{flag}")
        fd = os.open(f, os.O_CREAT | os.O_WRONLY | flag)
        for i in range(20):
            os.write(fd, b"x" * 777)
        os.close(fd)
        assert read(f) == b"x" * 777 * 20


def test_swapping_files_and_reading_to_the_end(d):
    """tail -f: a reader at the end sees what is appended."""
    f = write(os.path.join(d, "f"))
    r = os.open(f, os.O_RDONLY)
    total = b""
    for i in range(100):
        piece = bytes([i]) * (i * 13 % 900)
        write(f, piece, "ab")
        total += piece
        got = os.read(r, 10_000)
        assert got == piece
    os.close(r)
    assert read(f) == total


@pytest.mark.sanitizer
def test_many_open_files(d):
    fds = [os.open(os.path.join(d, f"f{i}"), os.O_CREAT | os.O_RDWR) for i in range(400)]
    for i, fd in enumerate(fds):
        os.write(fd, b"%d" % i)
    for i, fd in enumerate(fds):
        assert os.pread(fd, 10, 0) == b"%d" % i
        os.unlink(os.path.join(d, f"f{i}"))
    for i, fd in enumerate(fds):
        os.pwrite(fd, b"%d" % i, 5000)
        assert os.pread(fd, 10, 5000) == b"%d" % i
        os.close(fd)
    assert os.listdir(d) == []


def free_blocks(fs):
    st = os.statvfs(fs.cipher or fs.plain)
    return st.f_bfree * st.f_frsize


def test_removed_files_give_their_space_back(fs, d):
    """Not after the next promotion: at once, also when the file was written a moment ago."""
    if not fs.cipher:
        pytest.skip("looks into the store")
    f = write(os.path.join(d, "f"), os.urandom(20_000_000))

    def held():
        out = []
        for n in os.listdir(f"/proc/{fs.process.pid}/fd"):
            try:
                st = os.stat(f"/proc/{fs.process.pid}/fd/{n}")
                if st.st_nlink == 0 and stat.S_ISREG(st.st_mode) and st.st_size > 10_000_000:
                    out.append(os.readlink(f"/proc/{fs.process.pid}/fd/{n}"))
            except FileNotFoundError:
                pass
        return out
    os.unlink(f)
    wait_until(lambda: not held(), 10)


def test_interrupted_by_signals(d):
    """A signal in the middle of large transfers harms nothing."""
    f = os.path.join(d, "f")
    code = ("import os,signal,sys\n"
            "signal.signal(signal.SIGALRM, lambda *a: None)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\n"
            "data = bytes(range(256)) * 8192\n"
            "fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)\n"
            "for i in range(20):\n"
            "    at = 0\n"
            "    while at < len(data):\n"
            "        at += os.pwrite(fd, data[at:], i * len(data) + at)\n"
            "    os.fsync(fd)\n"
            "for i in range(20):\n"
            "    at, got = 0, b''\n"
            "    while len(got) < len(data):\n"
            "        got += os.pread(fd, len(data) - len(got), i * len(data) + len(got))\n"
            "    assert got == data\n"
            "signal.setitimer(signal.ITIMER_REAL, 0)\n")
    run(sys.executable, "-c", code, f)


def test_killed_writers(d):
    """SIGKILL of an application in its system calls leaves the file and the mount in order."""
    f = os.path.join(d, "f")
    for i in range(8):
        child = subprocess.Popen([sys.executable, "-c", "import os,sys\nfd=os.open(sys.argv[1],os.O_CREAT|os.O_RDWR)\nprint(1,flush=True)\n"
                                  "while 1:\n  os.pwrite(fd,b'k'*1000000,0); os.fsync(fd)", f], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.03 * i)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    data = read(f)
    assert data == b"k" * len(data)
    check(LIBC.truncate(os.fsencode(f), 0))


def test_a_backing_file_that_becomes_writable(shared_devkms):
    """A file that was opened while its storage forbade writing can be written once it may be, under its readers' hands."""
    if REFERENCE or not shutil.which("chattr"):
        pytest.skip("makes backing files immutable")
    with mounted(kms=shared_devkms) as m:
        f = write(m.path("f"), b"x" * 30_000)
        m.remount()
        backing = os.path.join(m.cipher, [n for n in os.listdir(m.cipher) if not n.startswith(".byokfs")][0])
        if run("chattr", "+i", backing, check=False).returncode:
            pytest.skip("no immutable files on this backing")
        try:
            r = os.open(f, os.O_RDONLY)
            assert os.pread(r, 3, 20_000) == b"xxx"
            raises(errno.EPERM, os.open, f, os.O_RDWR)
        finally:
            run("chattr", "-i", backing)

        def reader():
            for i in range(3000):
                assert set(os.pread(r, 5000, i % 25_000)) <= {ord("x"), ord("y")}
                if i % 100 == 0:
                    os.posix_fadvise(r, 0, 0, os.POSIX_FADV_DONTNEED)

        def writer():
            fd = os.open(f, os.O_RDWR)
            for i in range(30):
                os.pwrite(fd, b"y" * 1000, i * 1000)
                os.fsync(fd)
            os.close(fd)
        forked(reader, writer, reader)
        os.close(r)
        m.remount()
        assert read(f) == b"y" * 30_000
