"""The first things anybody does with a mount."""
import filecmp
import os
import subprocess

import pytest

pytestmark = pytest.mark.sanitizer


@pytest.mark.ring
def test_write_read_remount(mount):
    with open(mount.path("hello.txt"), "w") as f:
        f.write("hello\n")
    assert open(mount.path("hello.txt")).read() == "hello\n"
    mount.remount()
    assert open(mount.path("hello.txt")).read() == "hello\n"
    assert os.stat(mount.path("hello.txt")).st_size == 6


@pytest.mark.ring
def test_a_tree_comes_back_equal(mount):
    subprocess.run(["cp", "-a", "/usr/include/linux", mount.path("linux")], check=True)
    mount.remount()
    r = subprocess.run(["diff", "-r", "--no-dereference", "/usr/include/linux", mount.path("linux")], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout
    for name in os.listdir("/usr/include/linux"):
        a, b = os.lstat(os.path.join("/usr/include/linux", name)), os.lstat(mount.path("linux", name))
        assert (a.st_mode, a.st_uid, a.st_gid, a.st_mtime_ns) == (b.st_mode, b.st_uid, b.st_gid, b.st_mtime_ns), name
    assert filecmp.cmp("/usr/include/linux/fuse.h", mount.path("linux", "fuse.h"), shallow=False)


def test_the_independent_reader_agrees(mount):
    """The second implementation, written from byokfs-format(5) alone, reads what the daemon wrote."""
    import json
    import sys
    from conftest import AK, SK
    os.makedirs(mount.path("d", "x" * 255))
    sizes = [0, 1, 1504, 1505, 4064, 4096, 10000, 16384, 16385, 450561, 1 << 20]
    for i, size in enumerate(sizes):
        with open(mount.path("d", f"file {i}"), "wb") as f:
            f.write(bytes((i + j * 7) % 251 for j in range(size)))
    with open(mount.path("sparse"), "wb") as f:
        f.truncate(30 << 20)
        f.seek(26 << 20)
        f.write(b"island")
    os.symlink("../some/where", mount.path("d", "link"))
    os.setxattr(mount.path("d", "file 3"), "user.comment", b"hi")
    reader = os.path.join(os.path.dirname(__file__), "..", "reader", "byokfs_reader.py")

    def manifest(*args):
        r = subprocess.run([sys.executable, reader, *args, "--manifest", "--xattrs"], capture_output=True, text=True, timeout=300,
                           env=dict(os.environ, AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, AWS_DEFAULT_REGION="us-east-1"))
        assert r.returncode == 0, r.stdout + r.stderr
        return [json.loads(line) for line in r.stdout.splitlines()]

    mount.remount()
    seen = manifest(mount.plain, "--plain")
    mount.umount()
    assert manifest(mount.cipher, "--unseal-endpoint", mount.kms.endpoint) == seen
    assert len(seen) >= len(sizes) + 4
