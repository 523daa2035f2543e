"""Directories: large ones, streams and their positions, removal while reading, many at once."""
import os
import stat
import subprocess

import pytest

from posix_tools import BIG, BOTH, VARIANTS, compile_c, d, mounted, raises, run, variant_fixture, write

fs = variant_fixture(BOTH[:1])
__all__ = ["d"]


def fill(at, n, name="f{}"):
    os.mkdir(at)
    fd = os.open(at, os.O_RDONLY)
    for i in range(n):
        os.close(os.open(name.format(i), os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    os.close(fd)


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    return tmp_path_factory.mktemp("tools")


@pytest.mark.sanitizer
def test_streams(d, tools):
    at = os.path.join(d, "many")
    fill(at, 1500)
    run(compile_c(tools, "dirs"), at, "1500")
    assert os.listdir(d) == []


def test_twenty_thousand_entries(fs, d, tools):
    """One file key each, from the pool; then every reader there is."""
    n = 100_000 if BIG else 20_000
    at = os.path.join(d, "many")
    fill(at, n)
    assert sorted(os.listdir(at)) == sorted(f"f{i}" for i in range(n))
    assert sum(1 for e in os.scandir(at) if e.is_file(follow_symlinks=False) and e.stat().st_size == 0) == n
    fs.remount()
    assert len(os.listdir(at)) == n
    assert len(run("ls", "-lU", at).stdout.splitlines()) == n + 1
    assert run("sh", "-c", f"find {at} -type f -size 0 | wc -l").stdout.strip() == str(n)
    run(compile_c(tools, "dirs"), at, str(n))


@pytest.mark.sanitizer
def test_long_names_in_a_directory(fs, d):
    """Each is two entries on the backing and one to its users."""
    names = sorted(["x" * 200 + f"{i:055d}" for i in range(150)] + [f"short{i}" for i in range(150)])
    for n in names:
        write(os.path.join(d, n), n.encode())
    assert sorted(os.listdir(d)) == names
    fs.remount()
    assert sorted(os.listdir(d)) == names
    for e in os.scandir(d):
        assert e.stat().st_size == len(e.name)
    for n in names[::2]:
        os.rename(os.path.join(d, n), os.path.join(d, n[:-5] + "moved"))
    for n in os.listdir(d):
        os.unlink(os.path.join(d, n))
    os.rmdir(d)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tree_of_directories(shared_devkms, variant):
    with mounted(variant, kms=shared_devkms) as m:
        for i in range(12):
            for j in range(6):
                os.makedirs(m.path(f"a{i}", "b" * (j * 40 + 1), "c"))
        m.remount()
        found = sorted(os.path.relpath(os.path.join(base, n), m.plain) for base, dirs, _ in os.walk(m.plain) for n in dirs)
        assert found == sorted([f"a{i}" for i in range(12)] + [f"a{i}/" + "b" * (j * 40 + 1) for i in range(12) for j in range(6)] +
                               [f"a{i}/" + "b" * (j * 40 + 1) + "/c" for i in range(12) for j in range(6)])
        assert all(os.stat(os.path.join(m.plain, p)).st_nlink == 2 + len(os.listdir(os.path.join(m.plain, p))) for p in found)
        run("rm", "-r", *[m.path(f"a{i}") for i in range(12)])
        assert os.listdir(m.plain) == []


@pytest.mark.sanitizer
def test_rm_r_and_find_delete(d):
    for name in ("one", "two"):
        for i in range(8):
            os.makedirs(os.path.join(d, name, str(i), "deep", "er"))
            for j in range(20):
                write(os.path.join(d, name, str(i), "deep", f"f{j}"), b"x")
    run("rm", "-r", os.path.join(d, "one"))
    run("find", os.path.join(d, "two"), "-delete")
    assert os.listdir(d) == []


def test_dots(d):
    os.mkdir(os.path.join(d, "s"))
    out = run("ls", "-ai", os.path.join(d, "s")).stdout.split()
    assert out[1::2] == [".", ".."]
    assert int(out[0]) == os.stat(os.path.join(d, "s")).st_ino
    assert os.stat(os.path.join(d, "s", "..")).st_ino == os.stat(d).st_ino
    assert os.stat(os.path.join(d, "s", ".", "..", "s")).st_ino == os.stat(os.path.join(d, "s")).st_ino


def test_reserved_names_are_invisible(fs, d):
    """What the store needs for itself is nobody's business, and a user's file may be called the same."""
    names = [".byokfs", ".byokfs.d", ".byokfs.tmp.0123456789abcdef", ".byokfs.del.0123456789abcdef", "L.abc.n"]
    for n in names:
        write(os.path.join(d, n), n.encode())
    assert sorted(os.listdir(d)) == sorted(names)
    root = sorted(os.listdir(fs.plain))
    assert not any(n.startswith(".byokfs") for n in root)
    write(os.path.join(fs.plain, ".byokfs"), b"mine")
    os.unlink(os.path.join(fs.plain, ".byokfs"))


def test_reserved_names_in_a_plain_store(shared_devkms):
    import errno
    with mounted("plain", kms=shared_devkms) as m:
        for n in (".byokfs", ".byokfs.d", ".byokfs.x"):
            raises(errno.EPERM, os.mkdir, m.path(n))
            raises(errno.EPERM, os.open, m.path(n), os.O_CREAT | os.O_WRONLY)
            raises(errno.EPERM, os.symlink, "x", m.path(n))
            raises(errno.ENOENT, os.stat, m.path(n))
            raises(errno.EPERM, os.rename, write(m.path("a")), m.path(n))
        assert os.listdir(m.plain) == ["a"]
        write(m.path("L.abc.n"), b"fine here")
        assert sorted(os.listdir(m.cipher)) == sorted([".byokfs", ".byokfs.d", "a", "L.abc.n"])


def test_readers_beside_writers(d):
    """Concurrent creation, removal and listing in one directory; what was there all the time is always listed, once."""
    for i in range(50):
        write(os.path.join(d, f"stays{i}"))
    stays = {f"stays{i}" for i in range(50)}
    code = ("import os,sys\nd,w=sys.argv[1:]\nfor r in range(6):\n"
            "  for i in range(100): open(f'{d}/{w}-{i}','w').close()\n"
            "  for i in range(100): os.unlink(f'{d}/{w}-{i}')\n")
    writers = [subprocess.Popen(["/usr/bin/python3", "-c", code, d, str(w)]) for w in range(3)]
    while any(w.poll() is None for w in writers):
        names = os.listdir(d)
        assert len(names) == len(set(names)) and stays <= set(names)
    assert [w.returncode for w in writers] == [0] * 3
    assert set(os.listdir(d)) == stays


def test_rename_between_directories(d):
    for i in range(3):
        os.mkdir(os.path.join(d, str(i)))
    write(os.path.join(d, "0", "f"), b"moving")
    os.mkdir(os.path.join(d, "0", "s"))
    write(os.path.join(d, "0", "s", "in"), b"inside")
    for i in range(60):
        a, b = os.path.join(d, str(i % 3)), os.path.join(d, str((i + 1) % 3))
        os.rename(os.path.join(a, "f"), os.path.join(b, "f"))
        os.rename(os.path.join(a, "s"), os.path.join(b, "s"))
        assert os.listdir(a) == [] and sorted(os.listdir(b)) == ["f", "s"]
        assert stat.S_ISDIR(os.stat(os.path.join(b, "s")).st_mode)
        with open(os.path.join(b, "s", "in"), "rb") as f:
            assert f.read() == b"inside"
