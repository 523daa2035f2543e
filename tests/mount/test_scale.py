"""A tree larger than the daemon's means: what it holds for an object the kernel knows, that it lets go of it, and that 1,024 descriptors
are enough for more open files and directories than that. The million is in tests/bench/scale.py."""
import errno
import json
import os
import resource
import subprocess

import pytest

import conftest
from conftest import wait_until

HERE = os.path.dirname(os.path.abspath(__file__))
FILES, PER_DIRECTORY = 7500, 100   # of each of two trees
INODES = FILES + FILES // PER_DIRECTORY
BOUND = 300                         # bytes an inode: byokfs(8)
DESCRIPTORS = 1024
OPEN = 1300


@pytest.fixture(autouse=True)
def few_descriptors(monkeypatch, tmp_path):
    """Every daemon of these tests; the hard limit, too, or it would raise it."""
    wrapper = tmp_path / "byokfs"
    wrapper.write_text(f"#!/bin/sh\nulimit -Sn {DESCRIPTORS} && ulimit -Hn {DESCRIPTORS} && exec '{conftest.BYOKFS}' \"$@\"\n")
    wrapper.chmod(0o755)
    monkeypatch.setattr(conftest, "BYOKFS", str(wrapper))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * OPEN:
        pytest.skip(f"only {hard} descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * OPEN, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    program = tmp_path_factory.mktemp("forest") / "forest"
    source = os.path.join(HERE, "..", "bench", "forest.c")
    subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-o", program, source], check=True)

    def run(op, root):
        subprocess.run([program, op, root, str(FILES), str(PER_DIRECTORY)], check=True, capture_output=True, timeout=300)
    return run


def resident(mount):
    with open(f"/proc/{mount.process.pid}/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()


def descriptors(mount):
    return len(os.listdir(f"/proc/{mount.process.pid}/fd"))


def inodes(mount):
    return json.loads(mount.ctl("status", "--json", mount.plain, check=True).stdout)["counters"]["inodes"]


def forget_all():
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("2")


def test_memory_of_a_tree(make_mount, shared_devkms, forest):
    """What there is but once, and what threads keep, is there after the first tree; the second one costs its inodes."""
    if not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        pytest.skip("cannot make the kernel forget")
    m = make_mount("m", shared_devkms, init=("--seal", "domain")).mount()
    for tree in "ab":
        os.mkdir(f"{m.plain}/{tree}")
        forest("create", f"{m.plain}/{tree}")
    for _ in range(30):    # other tests make the kernel forget meanwhile
        m.remount()
        forest("stat", f"{m.plain}/a")
        first = resident(m)
        forest("stat", f"{m.plain}/b")
        grown = resident(m) - first
        if inodes(m) >= 2 * INODES:
            break
    assert inodes(m) >= 2 * INODES
    assert grown <= INODES * BOUND, f"{grown / INODES:.0f} bytes an inode"
    assert descriptors(m) < DESCRIPTORS / 2
    both = resident(m)
    forget_all()
    wait_until(lambda: inodes(m) < 100)
    assert resident(m) < both - INODES * BOUND    # at least half of what both trees cost came back
    # And all is there once more.
    forest("read", f"{m.plain}/b")
    forest("remove", f"{m.plain}/a")


def test_more_open_files_than_descriptors(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms, init=("--seal", "domain")).mount()
    os.mkdir(f"{m.plain}/d")
    fds = [os.open(f"{m.plain}/d/{i}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644) for i in range(OPEN)]
    try:
        for i, fd in enumerate(fds):
            os.write(fd, b"%06d" % i * 1000)
        assert descriptors(m) < DESCRIPTORS
        for fd in fds[::7]:
            os.fsync(fd)
        for i in range(0, OPEN, 5):              # 260 of them without a name
            os.unlink(f"{m.plain}/d/{i}")
        for i, fd in enumerate(fds):
            os.pwrite(fd, b"again", 3000)
            os.ftruncate(fd, 5000)
        # Closed and opened again in between: what is read comes from the store.
        os.sync()
        m.ctl("lock", m.plain, check=True)
        for fd in fds[::100]:
            with pytest.raises(OSError) as e:
                os.pread(fd, 10, 0)
            assert e.value.errno == errno.EIO
        m.ctl("unlock", m.plain, check=True)
        for i, fd in enumerate(fds):
            want = bytearray((b"%06d" % i * 1000)[:5000])
            want[3000:3005] = b"again"
            assert os.pread(fd, 6000, 0) == want, i
            assert os.fstat(fd).st_size == 5000
        assert descriptors(m) < DESCRIPTORS
    finally:
        for fd in fds:
            os.close(fd)
    m.remount()
    assert len(os.listdir(f"{m.plain}/d")) == OPEN - len(range(0, OPEN, 5))
    with open(f"{m.plain}/d/1", "rb") as f:
        assert f.read(12) == b"000001000001"


def test_files_without_a_name(make_mount, shared_devkms):
    """Nothing leads back to them, so they keep their descriptors while others lose theirs."""
    m = make_mount("m", shared_devkms, init=("--seal", "domain")).mount()
    fds = []
    try:
        for i in range(300):
            fds.append(os.open(m.plain, os.O_RDWR | os.O_TMPFILE, 0o644))
            os.write(fds[-1], b"%06d" % i * 1000)
        for i in range(600):
            fds.append(os.open(f"{m.plain}/{i}", os.O_RDWR | os.O_CREAT, 0o644))
            os.write(fds[-1], b"with a name")
        for i, fd in enumerate(fds):
            assert os.pread(fd, 12, 0) == (b"%06d" % i * 2 if i < 300 else b"with a name")
            os.fsync(fd)
        os.link(f"/proc/self/fd/{fds[7]}", f"{m.plain}/seven", src_dir_fd=fds[7])    # linkat(2), which follows
        with open(f"{m.plain}/seven", "rb") as f:
            assert f.read() == b"000007" * 1000
        assert descriptors(m) < DESCRIPTORS
    finally:
        for fd in fds:
            os.close(fd)


def test_more_open_directories_than_descriptors(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms, init=("--seal", "domain")).mount()
    for i in range(OPEN):
        os.mkdir(f"{m.plain}/{i}")
        for n in range(3):
            os.mkdir(f"{m.plain}/{i}/{n}-of-{i}")
    fds = [os.open(f"{m.plain}/{i}", os.O_RDONLY | os.O_DIRECTORY) for i in range(OPEN)]
    try:
        for _ in range(2):
            for i, fd in enumerate(fds):
                assert sorted(os.listdir(fd)) == [f"{n}-of-{i}" for n in range(3)]
        assert descriptors(m) < DESCRIPTORS
        # One that is gone is empty, whether its descriptor stayed or not.
        for i in range(0, OPEN, 100):
            for n in range(3):
                os.rmdir(f"{n}-of-{i}", dir_fd=fds[i])
            os.rmdir(f"{m.plain}/{i}")
        for i in range(0, OPEN, 100):
            assert os.listdir(fds[i]) == []
    finally:
        for fd in fds:
            os.close(fd)


def test_long_directory_read_in_pieces(make_mount, shared_devkms):
    """While its stream loses the descriptor again and again: every name once."""
    m = make_mount("m", shared_devkms, init=("--seal", "domain")).mount()
    os.mkdir(f"{m.plain}/long")
    names = {f"name-{'x' * 100}-{i:05}" for i in range(3000)}
    for name in names:
        os.mkfifo(f"{m.plain}/long/{name}")
    for i in range(DESCRIPTORS):
        os.mkdir(f"{m.plain}/{i}")
    others, seen = [], []
    try:
        with os.scandir(f"{m.plain}/long") as entries:
            for n, entry in enumerate(entries):
                seen.append(entry.name)
                if n % 3 == 0 and len(others) < DESCRIPTORS:
                    others.append(os.open(f"{m.plain}/{len(others)}", os.O_RDONLY | os.O_DIRECTORY))
                    os.listdir(others[-1])
        assert len(others) > DESCRIPTORS / 2
        assert len(seen) == len(names)
        assert set(seen) == names
    finally:
        for fd in others:
            os.close(fd)
