"""Edits of a store by whoever owns the storage: single files, described by byokfs-format(5), sections 3 and 6."""
import hashlib
import os
import struct

PAGE = 4096
IDENT, SLOT_A, SLOT_B, STATE_A, STATE_B, ROOT = 0, 512, 1024, 1536, 2048, 2560
GROUP_0 = 5      # physical page of group page 0; its data pages 4.. follow


def backing_of(store, *names):
    """The backing file of a name in the mount. Inode numbers are the backing's own."""
    ino = os.lstat(store.path(*names)).st_ino
    for parent, dirs, files in os.walk(store.cipher):
        for name in dirs + files:
            path = os.path.join(parent, name)
            if os.lstat(path).st_ino == ino:
                return path
    raise AssertionError(f"no backing file for {names}")


def data_page(k):
    """Physical page of data page k (below group 60)."""
    return 1 + k if k < 4 else GROUP_0 + 107 * ((k - 4) // 106) + 1 + (k - 4) % 106


def read(path, at, n):
    with open(path, "rb") as f:
        f.seek(at)
        return f.read(n)


def write(path, at, data):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def flip(path, at, bit=0x40):
    write(path, at, bytes([read(path, at, 1)[0] ^ bit]))


def zero(path, at, n=PAGE):
    write(path, at, bytes(n))


def punch(path, page):
    keep_size, punch_hole = 1, 2
    fd = os.open(path, os.O_RDWR)
    try:
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.fallocate(fd, keep_size | punch_hole, ctypes.c_long(page * PAGE), ctypes.c_long(PAGE)) == 0
    finally:
        os.close(fd)


def swap(path, a, b, other=None):
    """Exchanges two pages, of one file or of two."""
    other = other or path
    one, two = read(path, a * PAGE, PAGE), read(other, b * PAGE, PAGE)
    write(path, a * PAGE, two)
    write(other, b * PAGE, one)


def grow(path, by, data=None):
    """Changes st_size; growing leaves a hole unless there is data."""
    size = os.stat(path).st_size
    if data:
        write(path, size, data)
    else:
        os.truncate(path, size + by)


def states(path):
    """Offsets of the ruling and of the other STATE."""
    page = read(path, 0, PAGE)
    a, b = (struct.unpack_from("<Q", page, at)[0] for at in (STATE_A, STATE_B))
    return (STATE_A, STATE_B) if a > b else (STATE_B, STATE_A)


def replace(path, make):
    """Another object under the same name."""
    os.unlink(path)
    make(path)


def with_sum(text):
    """A descriptor's text with its last line set right."""
    body = text[:text.index(b"sum=")]
    return body + b"sum=" + hashlib.sha256(body).hexdigest().encode() + b"\n"
