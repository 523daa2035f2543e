"""The data of a file, call by call: allocating and punching, seeking, copying, the flags of a descriptor and of one call, limits, locks,
and the engines of fio. What mmap(2) promises is in c/pages.c; random sequences of all this are test_io.py's and test_posix_stress.py's."""
import ctypes
import errno
import fcntl
import itertools
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import tempfile

import pytest

from conftest import LIBC
from posix_tools import (BOTH, COLLAPSE_RANGE, INSERT_RANGE, KEEP_SIZE, PUNCH_HOLE, REFERENCE, ZERO_RANGE, check, compile_c, d, fallocate,
                         mounted, raises, read, run, variant_fixture, write)

fs = variant_fixture(BOTH)
__all__ = ["d"]

PAGE, TIB = 4096, 1 << 40
GROUP = 4 * PAGE + 106 * PAGE  # the first page of the second group
RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND = 1, 2, 4, 8, 16
UNSHARE_RANGE = 64


def forget(fd):
    """The kernel's pages go: what is read next is read from the daemon."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def aligned(data):
    """A buffer for O_DIRECT."""
    m = mmap.mmap(-1, max(len(data), 1))
    m[:len(data)] = data
    return m


# ---- fallocate ----

RANGES = [(0, PAGE), (PAGE, 2 * PAGE), (100, 50), (4000, 200), (4064, 32), (3 * PAGE + 17, 5 * PAGE), (0, 1 << 20), (GROUP - 5000, 10000), (600_000, 5000)]
SIZES = [0, 100, 1504, 1505, 4096, 4100, 20_000, GROUP + 9000]
MODES = [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]


def after_fallocate(data, mode, off, n):
    out = bytearray(data)
    if not mode & KEEP_SIZE and off + n > len(out):
        out.extend(bytes(off + n - len(out)))
    if mode & (PUNCH_HOLE | ZERO_RANGE):
        end = min(off + n, len(out))
        out[off:end] = bytes(max(end - off, 0))
    return bytes(out)


@pytest.mark.parametrize("mode", MODES)
def test_fallocate_everywhere(fs, d, mode):
    """Every mode at every kind of place: inline files, parts of pages, across groups, across and beyond the end."""
    want = {}
    for size, (off, n) in itertools.product(SIZES, RANGES):
        name = os.path.join(d, f"{size} {off} {n}")
        data = random.Random(size).randbytes(size)
        want[name] = after_fallocate(data, mode, off, n)
        fd = os.open(write(name, data), os.O_RDWR)
        fallocate(fd, mode, off, n)
        assert os.fstat(fd).st_size == len(want[name]), name
        assert os.pread(fd, 1 << 21, 0) == want[name], name
        if off % 3 == 0:
            forget(fd)
            assert os.pread(fd, 1 << 21, 0) == want[name], name
        os.close(fd)
    fs.remount()
    for name, data in want.items():
        assert read(name) == data and os.stat(name).st_size == len(data), name


def test_what_fallocate_set_aside_is_used(fs, d):
    """Blocks that were set aside are there, inside the file and behind its end, and a write into them takes no others."""
    f = write(os.path.join(d, "f"), b"x" * 10_000)
    fd = os.open(f, os.O_RDWR)
    fallocate(fd, KEEP_SIZE, 0, 4 << 20)
    os.fsync(fd)
    blocks = os.fstat(fd).st_blocks
    assert blocks * 512 >= 4 << 20 and os.fstat(fd).st_size == 10_000
    for at in range(0, 4 << 20, 1 << 20):
        os.pwrite(fd, b"y" * (1 << 20), at)
    os.fsync(fd)
    assert os.fstat(fd).st_blocks <= blocks + 64
    os.close(fd)
    assert read(f) == b"y" * (4 << 20)


def test_fallocate_refuses(fs, d):
    data = os.urandom(50_000)
    f = write(os.path.join(d, "f"), data)
    fd = os.open(f, os.O_RDWR)
    if fs.cipher:
        for mode in (COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE, UNSHARE_RANGE | KEEP_SIZE, COLLAPSE_RANGE | KEEP_SIZE, 1 << 20):
            raises((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, mode, 4096, 4096)
    raises((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, PUNCH_HOLE, 0, 4096)  # without KEEP_SIZE
    raises((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, PUNCH_HOLE | ZERO_RANGE | KEEP_SIZE, 0, 4096)
    for off, n in ((-1, 10), (0, 0), (0, -1)):
        raises(errno.EINVAL, fallocate, fd, 0, off, n)
    raises(errno.EFBIG, fallocate, fd, 0, (1 << 63) - 4096, 8192)
    for flags in (os.O_RDONLY, os.O_PATH):
        other = os.open(f, flags)
        raises(errno.EBADF, fallocate, other, 0, 0, 10)
        os.close(other)
    r, w = os.pipe()
    raises(errno.ESPIPE, fallocate, w, 0, 0, 10)
    for x in (r, w, fd):
        os.close(x)
    assert read(f) == data


# ---- holes ----

def islands(fd, size):
    """The parts SEEK_DATA and SEEK_HOLE show."""
    out, at = [], 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            assert e.errno == errno.ENXIO
            break
        end = os.lseek(fd, at, os.SEEK_HOLE)
        assert at < end <= size
        out.append((at, end))
        at = end
    return out


def test_seek_at_the_edges(fs, d):
    for size in (0, 1, 1504, 1505, PAGE, 10_000):
        f = write(os.path.join(d, str(size)), b"x" * size)
        fd = os.open(f, os.O_RDONLY)
        for off in (size, size + 1, 1 << 40):
            raises(errno.ENXIO, os.lseek, fd, off, os.SEEK_DATA)
            raises(errno.ENXIO, os.lseek, fd, off, os.SEEK_HOLE)
        raises((errno.ENXIO, errno.EINVAL), os.lseek, fd, -1, os.SEEK_DATA)
        for off in {0, size // 2, size - 1} if size else ():
            assert os.lseek(fd, off, os.SEEK_DATA) == off and os.lseek(fd, off, os.SEEK_HOLE) == size
        raises(errno.EINVAL, os.lseek, fd, 0, 99)
        assert os.lseek(fd, 0, os.SEEK_END) == size
        raises(errno.EINVAL, os.lseek, fd, -size - 1, os.SEEK_END)
        os.close(fd)


def test_seek_sees_what_is_dirty(fs, d):
    """Pages written, punched or mapped a moment ago count, whether or not they were written back."""
    f = os.path.join(d, "f")
    size = 4 << 20
    with open(f, "w+b", buffering=0) as o:
        fd = o.fileno()
        o.truncate(size)
        assert islands(fd, size) == [] and os.lseek(fd, 5, os.SEEK_HOLE) == 5
        os.pwrite(fd, b"w" * 10, 1 << 20)
        (a, b), = islands(fd, size)
        assert a <= 1 << 20 and (1 << 20) + 10 <= b and b - a <= 1 << 20
        with mmap.mmap(fd, size) as m:
            m[3 << 20] = 7
            found = islands(fd, size)
            assert any(a <= 3 << 20 < b for a, b in found), found
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 1 << 20, 1 << 20)
        assert not any(a < 2 << 20 and b > 1 << 20 for a, b in islands(fd, size))
        o.truncate(1 << 20)
        o.truncate(size)
        assert islands(fd, size) == []
        os.fsync(fd)
    fs.remount()
    fd = os.open(f, os.O_RDONLY)
    assert islands(fd, size) == [] and os.fstat(fd).st_blocks <= 64
    os.close(fd)


# ---- copy_file_range, splice, sendfile ----

def copy(src, dst, n, from_, to):
    return os.copy_file_range(src, dst, n, from_, to)


def test_copy_file_range(fs, d, tmp_path):
    data = os.urandom(400_000)
    f, g = write(os.path.join(d, "f"), data), write(os.path.join(d, "g"), b"old" * 10)
    src, dst = os.open(f, os.O_RDWR), os.open(g, os.O_RDWR)
    os.pwrite(src, b"dirty", 4094)  # not written back yet
    data = data[:4094] + b"dirty" + data[4099:]
    assert copy(src, dst, 5000, 4000, 100) == 5000
    want = (b"old" * 10).ljust(100, b"\0") + data[4000:9000]
    assert read(g) == want
    assert copy(src, dst, 1000, 400_000, 0) == 0 and copy(src, dst, 1000, 1 << 41, 0) == 0 and copy(src, dst, 0, 0, 0) == 0
    assert copy(src, dst, 1000, 399_990, 0) == 10 and read(g) == data[-10:] + want[10:]
    assert copy(src, src, 50_000, 0, 200_000) == 50_000
    assert os.pread(src, 50_000, 200_000) == data[:50_000]
    raises(errno.EINVAL, copy, src, src, 5000, 0, 4999)
    raises(errno.EINVAL, copy, src, src, 5000, 4999, 0)
    assert copy(src, src, 5000, 0, 5000) == 5000
    libc = LIBC.copy_file_range
    libc.restype = ctypes.c_ssize_t
    raises(errno.EINVAL, lambda: check(libc(src, None, dst, None, 10, 1)))
    for flags, code in ((os.O_RDONLY, errno.EBADF), (os.O_WRONLY | os.O_APPEND, errno.EBADF)):
        other = os.open(g, flags)
        raises(code, copy, src, other, 10, 0, 0)
        os.close(other)
    other = os.open(g, os.O_WRONLY)
    raises(errno.EBADF, copy, other, src, 10, 0, 0)
    os.close(other)
    other = os.open(d, os.O_RDONLY)
    raises(errno.EISDIR, copy, other, dst, 10, 0, 0)
    os.close(other)
    far = os.open(os.path.join(tmp_path, "far"), os.O_RDWR | os.O_CREAT)
    try:
        assert copy(src, far, 5000, 0, 0) == 5000 and os.pread(far, 5000, 0) == data[:5000]
    except OSError as e:
        assert e.errno == errno.EXDEV  # then applications copy themselves
    for x in (src, dst, far):
        os.close(x)


def test_copy_between_mounts(fs, d, shared_devkms):
    data = os.urandom(100_000)
    f = write(os.path.join(d, "f"), data)
    with mounted(kms=shared_devkms) as other:
        with open(f, "rb") as i, open(other.path("g"), "wb") as o:
            try:
                done = os.copy_file_range(i.fileno(), o.fileno(), len(data))
                assert 0 < done <= len(data) and read(other.path("g")) == data[:done]
            except OSError as e:
                assert e.errno == errno.EXDEV
        run("cp", f, other.path("h"))
        assert read(other.path("h")) == data


def test_pipes_and_files(fs, d):
    """sendfile, splice in both directions, vmsplice, tee."""
    data = os.urandom(150_000)
    f, g = write(os.path.join(d, "f"), data), os.path.join(d, "g")
    src, dst = os.open(f, os.O_RDONLY), os.open(g, os.O_RDWR | os.O_CREAT)
    at = 0
    while n := os.sendfile(dst, src, at, 7001):
        at += n
    assert at == len(data) and os.pread(dst, at + 1, 0) == data
    assert os.sendfile(dst, src, len(data), 10) == 0 and os.sendfile(dst, src, len(data) + 5000, 10) == 0
    r, w = os.pipe()
    for off in (0, 4000, 4096, 99_999):
        n = os.splice(src, w, 6000, offset_src=off)
        assert os.splice(r, dst, n, offset_dst=off + 7) == n
        data_now = os.pread(dst, n, off + 7)
        assert data_now == data[off:off + n]
    os.write(w, b"through a pipe")
    assert os.splice(r, dst, 14, offset_dst=1504) == 14 and os.pread(dst, 14, 1504) == b"through a pipe"
    append = os.open(g, os.O_WRONLY | os.O_APPEND)
    os.write(w, b"x")
    raises(errno.EINVAL, os.splice, r, append, 1)
    text = ctypes.create_string_buffer(b"of memory")
    vec = (ctypes.c_size_t * 2)(ctypes.addressof(text), 9)
    os.read(r, 1)
    assert LIBC.vmsplice(w, vec, 1, 0) == 9
    assert os.splice(r, dst, 9, offset_dst=70_000) == 9 and os.pread(dst, 9, 70_000) == b"of memory"
    for x in (src, dst, append, r, w):
        os.close(x)


# ---- questions a file system may decline ----

IOCTLS = {"FIEMAP": 0xC020660B, "FICLONE": 0x40049409, "FIDEDUPERANGE": 0xC0189436, "FS_IOC_GETFLAGS": 0x80086601, "FS_IOC_SETFLAGS": 0x40086602,
          "FS_IOC_FSGETXATTR": 0x801C581F, "FS_IOC_GETVERSION": 0x80087601, "FITRIM": 0xC0185879, "FS_IOC_ADD_ENCRYPTION_KEY": 0xC0506617}


@pytest.mark.parametrize("name", IOCTLS)
def test_declined(fs, d, name):
    """Refused, cleanly: at once, with an errno that tools take for "not here"; the file is as it was."""
    if not fs.cipher:
        pytest.skip("others have an answer")
    f = write(os.path.join(d, "f"), b"x" * 10_000)
    fd = os.open(f, os.O_RDWR)
    arg = fd if name == "FICLONE" else bytearray(4096)
    directory = os.open(d, os.O_RDONLY)
    try:
        raises((errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL), fcntl.ioctl, fd, IOCTLS[name], arg)
        raises((errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR), fcntl.ioctl, directory, IOCTLS[name], arg)
    finally:
        os.close(directory)
        os.close(fd)
    assert read(f) == b"x" * 10_000


def test_no_block_number(fs, d):
    """FIBMAP: the kernel answers for FUSE, 0, which means none."""
    if not fs.cipher:
        pytest.skip("others have one")
    fd = os.open(write(os.path.join(d, "f"), b"x" * 10_000), os.O_RDONLY)
    assert struct.unpack("i", fcntl.ioctl(fd, 1, struct.pack("i", 1)))[0] == 0
    os.close(fd)


def test_swap_is_declined(fs, d):
    if not fs.cipher or not shutil.which("mkswap"):
        pytest.skip("others allow it")
    f = write(os.path.join(d, "swap"), b"\0" * (1 << 20))
    os.chmod(f, 0o600)
    run("mkswap", f)
    raises((errno.EINVAL, errno.EPERM), lambda: check(LIBC.swapon(os.fsencode(f), 0)))
    with open("/proc/swaps") as s:
        assert f not in s.read()


# ---- O_DIRECT ----

def test_direct_any_alignment(fs, d):
    """FUSE asks for no alignment, and gives the right bytes for all."""
    if not fs.cipher:
        pytest.skip("others ask for it")
    data = bytearray(os.urandom(60_001))
    f = write(os.path.join(d, "f"), data)
    fd = os.open(f, os.O_RDWR | os.O_DIRECT)
    for off, n in ((0, PAGE), (PAGE, 3 * PAGE), (100, 50), (4060, 8), (4095, 2), (8191, 20_000), (59_000, 5000), (60_000, 1)):
        buf = aligned(bytes(n))
        got = os.preadv(fd, [buf], off)
        assert got == min(n, len(data) - off) and buf[:got] == data[off:off + got]
        new = os.urandom(n)
        assert os.pwritev(fd, [aligned(new)], off) == n
        data[off:off + n] = new
        assert os.pread(fd, 100_000, 0) == bytes(data)
    assert os.preadv(fd, [aligned(bytes(PAGE))], len(data)) == 0
    assert os.preadv(fd, [aligned(bytes(PAGE))], 1 << 40) == 0
    assert os.pwritev(fd, [aligned(b"e" * PAGE)], 100_000) == PAGE
    os.close(fd)
    data = bytes(data).ljust(100_000, b"\0") + b"e" * PAGE
    assert read(f) == data
    fs.remount()
    assert read(f) == data


def test_direct_buffered_and_mapped_agree(fs, d):
    if not fs.cipher:
        pytest.skip("others ask for alignment")
    f = write(os.path.join(d, "f"), bytes(64 * 1024))
    rng, model = random.Random(1), bytearray(64 * 1024)
    fd, direct = os.open(f, os.O_RDWR), os.open(f, os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(fd, 64 * 1024) as m:
        for _ in range(300):
            off, n = rng.randrange(60_000), rng.choice([1, 100, 4096, 5000])
            if rng.random() < 0.5:
                off, n = off // PAGE * PAGE, PAGE
            n = min(n, 64 * 1024 - off)
            new, how = rng.randbytes(n), rng.randrange(3)
            if how == 0:
                os.pwrite(fd, new, off)
            elif how == 1:
                assert os.pwritev(direct, [aligned(new)[:n] if n % PAGE else aligned(new)], off) == n
            else:
                m[off:off + n] = new
            model[off:off + n] = new
            at = rng.randrange(60_000)
            how = rng.randrange(3)
            got = os.pread(fd, 5000, at) if how == 0 else os.pread(direct, 5000, at) if how == 1 else m[at:at + 5000]
            assert got == bytes(model[at:at + 5000])
    for x in (fd, direct):
        os.close(x)
    assert read(f) == bytes(model)


# ---- one file, many descriptors ----

def test_descriptors_of_every_kind(fs, d):
    f = write(os.path.join(d, "f"), b"0123456789" * 1000)
    flags = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR, "a": os.O_WRONLY | os.O_APPEND, "s": os.O_RDWR | os.O_SYNC, "d": os.O_RDWR | os.O_DIRECT,
             "n": os.O_RDONLY | os.O_NOATIME, "p": os.O_PATH}
    fd = {k: os.open(f, v) for k, v in flags.items()}
    raises(errno.EBADF, os.read, fd["w"], 1)
    raises(errno.EBADF, os.write, fd["r"], b"x")
    raises(errno.EBADF, os.read, fd["p"], 1)
    raises((errno.EBADF, errno.EINVAL), os.ftruncate, fd["r"], 0)
    os.pwrite(fd["w"], b"W", 5)  # a part of a page, though it cannot be read through this one
    os.write(fd["a"], b"A")
    os.pwrite(fd["s"], b"S", 4095)
    assert os.pwritev(fd["d"], [aligned(b"D" * PAGE)], PAGE) == PAGE
    want = bytearray(b"0123456789" * 1000 + b"A")
    want[5], want[4095], want[PAGE:2 * PAGE] = ord("W"), ord("S"), b"D" * PAGE
    for k in ("r", "rw", "s", "n"):
        assert os.pread(fd[k], 20_000, 0) == bytes(want), k
    twin = os.dup(fd["r"])
    os.lseek(fd["r"], 5, os.SEEK_SET)
    assert os.read(twin, 1) == b"W" and os.lseek(fd["r"], 0, os.SEEK_CUR) == 6 and os.lseek(fd["rw"], 0, os.SEEK_CUR) == 0
    fcntl.fcntl(fd["rw"], fcntl.F_SETFL, os.O_APPEND)
    os.write(fd["rw"], b"B")
    os.pwrite(fd["a"], b"C", 0)  # Linux appends all the same
    want += b"BC"
    fcntl.fcntl(fd["rw"], fcntl.F_SETFL, os.O_DIRECT)
    page = aligned(bytes(PAGE))
    assert os.preadv(fd["rw"], [page], PAGE) == PAGE and page[:] == bytes(want[PAGE:2 * PAGE])
    os.ftruncate(fd["w"], 100)
    assert all(os.fstat(x).st_size == 100 for x in fd.values())
    os.write(fd["a"], b"E")
    assert os.pread(fd["r"], 1000, 0) == bytes(want[:100]) + b"E"
    for x in (*fd.values(), twin):
        os.close(x)


def test_flags_of_one_call(fs, d):
    f = write(os.path.join(d, "f"), b"x" * 5000)
    fd = os.open(f, os.O_RDWR)
    for flag in (RWF_DSYNC, RWF_SYNC, RWF_DSYNC | RWF_SYNC):
        assert os.pwritev(fd, [b"s" * 100, b"t" * 50], 4000, flag) == 150
    assert os.pwritev(fd, [b"end"], 10, RWF_APPEND) == 3 and os.fstat(fd).st_size == 5003
    assert os.pread(fd, 3, 5000) == b"end" and os.pread(fd, 3, 10) == b"xxx"
    buf = bytearray(150)
    assert os.preadv(fd, [buf], 4000, RWF_HIPRI) == 150 and bytes(buf) == b"s" * 100 + b"t" * 50
    for _ in range(2):
        try:  # what cannot wait says so, or has it at once
            got = os.preadv(fd, [buf], 4000, RWF_NOWAIT)
            assert 0 < got <= 150 and bytes(buf[:got]) == (b"s" * 100 + b"t" * 50)[:got]
        except OSError as e:
            assert e.errno in (errno.EAGAIN, errno.EOPNOTSUPP)
        forget(fd)
    raises(errno.EOPNOTSUPP, os.preadv, fd, [buf], 0, 1 << 30)
    os.close(fd)


def test_appending_vectors_from_several_processes(fs, d):
    """writev with O_APPEND and RWF_APPEND: each call's bytes in one piece, none lost."""
    f = write(os.path.join(d, "f"))
    pids = []
    for who in range(4):
        pid = os.fork()
        if pid == 0:
            fd = os.open(f, os.O_WRONLY | (os.O_APPEND if who % 2 else 0))
            for i in range(200):
                n = 20 + (i * 531 + who) % 6000
                parts = [b"<%d %d " % (who, i), b"." * n, b">\n"]
                if os.pwritev(fd, parts, 0, RWF_APPEND) != sum(map(len, parts)):
                    os._exit(1)
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(p, 0)[1] for p in pids] == [0] * 4
    got = {}
    for line in read(f).splitlines():
        who, i, dots = line[1:-1].split(b" ")
        assert line[:1] == b"<" and line[-1:] == b">" and set(dots) == {46} and len(dots) == 20 + (int(i) * 531 + int(who)) % 6000
        assert got.setdefault(who, -1) + 1 == int(i)
        got[who] = int(i)
    assert sorted(got) == [b"0", b"1", b"2", b"3"] and set(got.values()) == {199}


def test_advice(fs, d):
    """readahead, fadvise, sync_file_range and mincore: taken, and right about what is in memory."""
    data = os.urandom(1 << 20)
    f = write(os.path.join(d, "f"), data)
    fd = os.open(f, os.O_RDWR)
    for advice in range(6):
        os.posix_fadvise(fd, 0, 0, advice)
    check(LIBC.sync_file_range(fd, ctypes.c_long(0), ctypes.c_long(0), 7))
    forget(fd)
    LIBC.mmap.restype, LIBC.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    p, seen = LIBC.mmap(None, 1 << 20, 1, 1, fd, 0), ctypes.create_string_buffer(256)

    def resident():
        check(LIBC.mincore(ctypes.c_void_p(p), ctypes.c_size_t(1 << 20), seen))
        return sum(x & 1 for x in seen.raw)
    assert resident() == 0
    check(LIBC.readahead(fd, ctypes.c_long(0), ctypes.c_size_t(1 << 20)))
    assert os.pread(fd, 1 << 20, 0) == data and resident() == 256
    LIBC.munmap(ctypes.c_void_p(p), ctypes.c_size_t(1 << 20))
    os.close(fd)


# ---- mmap ----

def test_mapped_pages(fs, d, tmp_path):
    f, n = write(os.path.join(d, "f")), 0
    out = run(compile_c(tmp_path, "pages"), f).stdout
    n = int(out)
    fs.remount()
    data = read(f)
    assert len(data) == n and data[5000:] == bytes(n - 5000), "what was mapped beyond the end is nowhere"


# ---- sizes ----

EDGES = [0, 1, 1503, 1504, 1505, 4063, 4064, 4065, 4096, 4097, 16384, 16385, GROUP - 1, GROUP, GROUP + 4065]


def test_truncate_from_and_to_every_edge(fs, d):
    """Down and up again: what was cut off reads as zeros, whatever lay between, now and after a remount."""
    want = {}
    for a, b in itertools.product(EDGES, EDGES):
        name = os.path.join(d, f"{a} {b}")
        data = random.Random(a).randbytes(a)
        write(name, data)
        fd = os.open(name, os.O_RDWR)
        if (a + b) % 2:
            os.fsync(fd)
        os.ftruncate(fd, b)
        if a % 3 == 0:
            forget(fd)
        c = max(a, b) + (17 if b < a else 0)
        os.ftruncate(fd, c)
        want[name] = data[:b].ljust(c, b"\0")
        assert os.pread(fd, c + 1, 0) == want[name], (a, b)
        os.close(fd)
    fs.remount()
    for name, data in want.items():
        assert read(name) == data, name


def test_sparse_files_beyond_8_tib(fs, d):
    f, data = os.path.join(d, "f"), os.urandom(9000)
    places = [8 * TIB - 4000, 9 * TIB + 17, 14 * TIB + 4064]
    with open(f, "w+b", buffering=0) as o:
        for at in places:
            os.pwrite(o.fileno(), data, at)
        o.truncate(15 * TIB)
    fs.remount()
    with open(f, "r+b", buffering=0) as o:
        fd = o.fileno()
        for at in places:
            assert os.pread(fd, 9000, at) == data and os.pread(fd, 5000, at - 5000) == bytes(5000)
            assert os.lseek(fd, at - (1 << 30), os.SEEK_DATA) <= at
        with mmap.mmap(fd, PAGE, offset=9 * TIB) as m:
            assert m[17:PAGE] == data[:PAGE - 17]
            m[0:5] = b"front"
        assert os.pread(fd, 5, 9 * TIB) == b"front"
        st = os.fstat(fd)
        assert st.st_size == 15 * TIB and st.st_blocks * 512 < 400_000
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 8 * TIB, 6 * TIB)
        assert os.pread(fd, 5, 9 * TIB) == bytes(5) and os.pread(fd, 9000, places[2]) == data
        o.truncate(8 * TIB)
        assert os.pread(fd, 5000, 8 * TIB - 4000) == data[:4000]
        o.truncate(0)


def no_larger(fs, f):
    fd = os.open(f, os.O_RDWR)
    for size in (20 * TIB, (1 << 63) - 1):
        raises(errno.EFBIG, os.ftruncate, fd, size)
        raises(errno.EFBIG, os.posix_fallocate, fd, size - 4096, 4096)
    with pytest.raises(OSError) as info:
        os.pwrite(fd, b"x", 20 * TIB)
        os.fsync(fd)
    assert info.value.errno == errno.EFBIG
    os.close(fd)


def test_beyond_the_largest_size(fs, d):
    """EFBIG: from write(2), or where the kernel keeps what is written from fsync; and the file is none the worse."""
    if not fs.cipher:
        pytest.skip("others end elsewhere")
    f = write(os.path.join(d, "f"), b"x" * 3000)
    no_larger(fs, f)
    fs.remount()
    assert read(f) == b"x" * 3000 and os.stat(f).st_size == 3000


def test_size_limit_of_a_process(fs, d):
    """RLIMIT_FSIZE: a part is written, then EFBIG and SIGXFSZ."""
    f = write(os.path.join(d, "f"), b"x" * 3000)
    pid = os.fork()
    if pid == 0:
        caught = []
        signal.signal(signal.SIGXFSZ, lambda *a: caught.append(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        fd = os.open(f, os.O_RDWR)
        ok = os.pwrite(fd, b"y" * 5000, 8000) == 2000
        for call in (lambda: os.pwrite(fd, b"z", 10_000), lambda: os.ftruncate(fd, 10_001), lambda: os.posix_fallocate(fd, 9000, 5000)):
            try:
                call()
                ok = False
            except OSError as e:
                ok = ok and e.errno == errno.EFBIG
        os._exit(0 if ok and caught else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert read(f) == b"x" * 3000 + bytes(5000) + b"y" * 2000


# ---- unlinked, locks, leases ----

def test_unlinked_file_is_complete(fs, d):
    fd = os.open(os.path.join(d, "f"), os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 1000)
    os.unlink(os.path.join(d, "f"))
    os.pwrite(fd, b"y" * 100_000, 1000)
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4096, 8192)
    with mmap.mmap(fd, 101_000) as m:
        assert m[:1001] == b"x" * 1000 + b"y" and m[5000] == 0
        m[100_000] = 65
        m.flush()
    forget(fd)
    assert os.pread(fd, 1, 100_000) == b"A" and os.lseek(fd, 4096, os.SEEK_DATA) >= 4096
    os.ftruncate(fd, 500)
    os.ftruncate(fd, 50_000)
    assert os.pread(fd, 60_000, 0) == b"x" * 500 + bytes(49_500)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.pread(again, 500, 0) == b"x" * 500 and os.fstat(again).st_nlink == 0
    os.close(again)
    os.close(fd)
    assert os.listdir(d) == []


OFD_GETLK, OFD_SETLK = 36, 37


def ofd(fd, kind, start, n, command=OFD_SETLK):
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, 0, start, n, 0)))


def test_locks_of_open_files(fs, d):
    """OFD locks belong to the open file: two in one process exclude each other, and closing another descriptor frees none."""
    f = write(os.path.join(d, "f"), b"x" * 100)
    a, b = os.open(f, os.O_RDWR), os.open(f, os.O_RDWR)
    ofd(a, fcntl.F_WRLCK, 10, 20)
    raises((errno.EAGAIN, errno.EACCES), ofd, b, fcntl.F_RDLCK, 29, 1)
    ofd(b, fcntl.F_WRLCK, 30, 0)  # to the end, and beyond it
    assert ofd(a, fcntl.F_RDLCK, 1 << 40, 1, OFD_GETLK)[0] == fcntl.F_WRLCK
    os.close(os.open(f, os.O_RDWR))
    raises((errno.EAGAIN, errno.EACCES), ofd, b, fcntl.F_WRLCK, 0, 100)
    ofd(a, fcntl.F_RDLCK, 10, 20)
    ofd(b, fcntl.F_RDLCK, 10, 20)
    raises((errno.EAGAIN, errno.EACCES), ofd, a, fcntl.F_WRLCK, 15, 1)
    twin = os.dup(a)
    os.close(a)
    raises((errno.EAGAIN, errno.EACCES), ofd, b, fcntl.F_WRLCK, 10, 1)  # still held through the twin
    os.close(twin)
    ofd(b, fcntl.F_WRLCK, 0, 0)
    os.close(b)


def test_leases(fs, d):
    """F_SETLEASE works or is refused; a file that is open elsewhere gets no write lease."""
    f = write(os.path.join(d, "f"), b"x")
    fd = os.open(f, os.O_RDONLY)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        raises(errno.EAGAIN, os.open, f, os.O_RDWR | os.O_NONBLOCK)
    except OSError as e:
        assert e.errno in (errno.EINVAL, errno.EAGAIN)
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)
    write(f, b"y")


# ---- the engines of fio ----

ENGINES = [("psync", 0), ("psync", 1), ("libaio", 0), ("libaio", 1), ("io_uring", 0), ("io_uring", 1), ("mmap", 0)]


@pytest.mark.skipif(not shutil.which("fio"), reason="no fio")
@pytest.mark.parametrize("engine,direct", ENGINES)
def test_fio_verifies(fs, d, tmp_path, engine, direct):
    """Every way to submit: random sizes at random places, several at once, each block's checksum read back."""
    r = run("fio", "--name=f", f"--directory={d}", f"--ioengine={engine}", f"--direct={direct}", "--rw=randrw", "--size=3m", "--bsrange=4k-64k",
            "--iodepth=8", "--numjobs=2", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--fallocate=none",
            "--output-format=json", "--randseed=7", check=False, cwd=tmp_path, timeout=120)
    if "engine io_uring" in r.stdout + r.stderr or "not permitted" in r.stderr:
        pytest.skip("no such engine here")
    assert r.returncode == 0, r.stderr
    jobs = json.loads(r.stdout[r.stdout.index("{"):])["jobs"]
    assert len(jobs) == 2 and all(j["error"] == 0 and j["write"]["io_bytes"] > 0 for j in jobs)
