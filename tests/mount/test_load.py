"""Who waits for the storage does not keep others: while writes cannot be done, everything else is served. A frozen file system under the
store stands for a slow disk: a write to it waits until it is thawed, a read does not."""
import os
import subprocess

import pytest

from conftest import Mount, wait_until
from faults import FreezableDisk, get, pattern, put

SERVED = 30    # seconds; as good as never for a read of 1 MiB
THREADS = 4    # the default of mount.threads
DATA = pattern(1, 1 << 20)


@pytest.fixture
def disk(tmp_path):
    with FreezableDisk(tmp_path, mib=512) as disk:
        yield disk


@pytest.fixture
def control(tmp_path):
    """The kernel's list of FUSE connections; it may not be mounted here."""
    where = tmp_path / "control"
    where.mkdir()
    subprocess.run(["mount", "-t", "fusectl", "fusectl", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


@pytest.fixture
def mount(disk, tmp_path, shared_devkms):
    m = Mount(disk.base(), shared_devkms)
    m.mount()
    yield m
    disk.thaw()
    m.close()


def write(m, name, mib):
    """A process that writes a file and waits for it to be durable."""
    return subprocess.Popen(["dd", "if=/dev/zero", f"of={m.path(name)}", "bs=1M", f"count={mib}", "conv=notrunc,fsync"],
                            stderr=subprocess.DEVNULL)


def waiting(control, number):
    """Requests of a connection that the kernel has no answer to yet."""
    return int((control / str(number) / "waiting").read_text())


def served(m, name):
    """Reads a file past the kernel's cache, a page at a time. Hangs in a process of its own."""
    return subprocess.run(["dd", f"if={m.path(name)}", "iflag=direct", "bs=4k"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          timeout=SERVED, check=True).stdout


@pytest.mark.parametrize("files, mib", [(1, 24), (8, 4)])
def test_reads_beside_writes_that_wait(mount, disk, control, files, mib):
    """All requests of the writers are on their way, many more than there are threads."""
    names = [f"written {i}" for i in range(files)]
    for name in ["other", *names]:
        put(mount.path(name), DATA)
    mount.remount()
    number = os.minor(os.stat(mount.plain).st_dev)
    disk.freeze()
    writers = [write(mount, name, mib) for name in names]
    try:
        wait_until(lambda: waiting(control, number) > 2 * THREADS)
        assert served(mount, "other") == DATA
        assert "other" in os.listdir(mount.plain)
        assert all(w.poll() is None for w in writers)
    finally:
        disk.thaw()
        codes = [w.wait(60) for w in writers]
    assert not any(codes)
    mount.remount()
    for name in names:
        assert get(mount.path(name)) == bytes(mib << 20)
