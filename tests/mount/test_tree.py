"""A real tree: copied in, read back equal after a remount, and nothing of it to be found in the ciphertext."""
import os
import random
import subprocess

import pytest

from posix_tools import BIG, REFERENCE, compile_c, mounted, read, run, snapshot, write

ROOTS = ["/usr/include/linux", "/usr/share/vim", "/usr/include", "/usr/share/doc", "/usr/lib/python3.11", "/usr/share/perl", "/usr/share/zoneinfo", "/usr/lib/python3",
         "/usr/share/man", "/usr/share"]
FILES = 40_000 if BIG else 10_000

pytestmark = pytest.mark.skipif(bool(REFERENCE), reason="looks into the store")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """At least FILES regular files with the directories and links around them, copied out of the system so that nobody changes them."""
    at, paths, n = tmp_path_factory.mktemp("source") / "tree", {}, 0
    for root in ROOTS:
        for base, dirs, files in os.walk(root):
            dirs.sort()
            for name in sorted(files + [x for x in dirs if os.path.islink(os.path.join(base, x))]):
                p = os.path.join(base, name)
                st = os.lstat(p)
                regular = os.path.isfile(p) and not os.path.islink(p)
                if p in paths or n >= FILES or st.st_size > (300_000 if n % 40 == 0 else 20_000):
                    continue
                paths[p] = None
                n += regular
    if n < 10_000:
        pytest.skip("this system has too few files to make a tree of")
    at.mkdir()
    write(at.parent / "list", b"\0".join(map(os.fsencode, paths)))
    run("sh", "-ec", f"tar -C / --null -T {at.parent}/list -cf - | tar -C {at} -xpf -")
    rng = random.Random(3)
    for i, p in enumerate(rng.sample([p for p in paths if os.path.isfile(p) and not os.path.islink(p)], 60)):
        mine = str(at) + p
        os.chmod(mine, [0o600, 0o4755, 0o2750, 0o444, 0o640, 0o777][i % 6])
        os.chown(mine, 1000 + i, 2000 + i)
        os.link(mine, f"{at}/second-name-{i:02d}")
    return str(at)


def names_of(tree):
    return {n for _, dirs, files in os.walk(os.fsencode(tree)) for n in dirs + files if b"\n" not in n}


def leaks(program, tree, cipher, tmp_path, encrypted_names=True):
    """Names by their text, contents by 16-byte windows."""
    long = sorted(n for n in names_of(tree) if len(n) >= 8)
    write(tmp_path / "names", b"".join(n + b"\n" for n in (long if encrypted_names else [])))
    r = run(program, tree, cipher, tmp_path / "names", check=False)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr
    word = dict(zip(r.stdout.split()[0::2], map(int, r.stdout.split()[1::2])))
    assert word["windows"] > 100_000 and word["bytes"] > sum(os.path.getsize(os.path.join(b, f)) for b, _, fs in os.walk(tree) for f in fs
                                                          if not os.path.islink(os.path.join(b, f))) // 2
    if not encrypted_names:
        return
    backing = names_of(cipher)
    short = {n for n in names_of(tree) if len(n) >= 6}
    assert not short & backing
    text = b"\n".join(backing)
    assert not [n for n in long if len(n) >= 12 and n in text]


def test_a_real_tree(source, shared_devkms, tmp_path):
    program = compile_c(tmp_path, "windows")
    want = snapshot(source)
    assert len(want) > 10_000
    with mounted(kms=shared_devkms) as m:
        run("cp", "-a", source, m.path("tree"))
        m.remount()
        assert snapshot(m.path("tree")) == want
        assert run("diff", "-r", "--no-dereference", source, m.path("tree")).stdout == ""
        m.umount()
        leaks(program, source, m.cipher, tmp_path)
        m.mount()
        run("rm", "-r", m.path("tree"))
        assert os.listdir(m.plain) == []
        m.umount()
        left = {n for n in os.listdir(m.cipher)}
        assert left == {".byokfs", ".byokfs.d"}
        m.mount()


@pytest.mark.parametrize("variant", ["writethrough", "domain", "suite2", "siv32", "plain"])
def test_a_smaller_tree_in_every_mode(source, shared_devkms, tmp_path, variant):
    small = os.path.join(source, "usr/include/linux")
    if not os.path.isdir(small):
        small = os.path.join(source, "usr/share/vim")
    program = compile_c(tmp_path, "windows")
    run("cp", "-a", small, tmp_path / "small")
    small = str(tmp_path / "small")
    want = snapshot(small)
    with mounted(variant, kms=shared_devkms) as m:
        run("rsync", "-aHAX", small + "/", m.path("tree"))
        m.remount()
        assert snapshot(m.path("tree")) == want
        assert run("rsync", "-aHAXn", "--itemize-changes", "--checksum", "--delete", small + "/", m.path("tree")).stdout == ""
        m.umount()
        if variant == "plain":
            assert {n for n in names_of(m.cipher) if not n.startswith(b".byokfs")} >= names_of(small)
        write(tmp_path / "names", b"".join(n + b"\n" for n in names_of(small) if len(n) >= 8 and variant != "plain"))
        r = run(program, small, m.cipher, tmp_path / "names", check=False)
        assert r.returncode == 0, r.stdout[-2000:]
        m.mount()


def test_the_scan_finds_what_is_there(source, tmp_path):
    """The search itself is worth something: one leaked sentence and one leaked name are found."""
    program = compile_c(tmp_path, "windows")
    small, cipher = os.path.join(source, "usr/share/vim"), tmp_path / "cipher"
    if not os.path.isdir(small):
        small = os.path.join(source, "usr/include/linux")
    cipher.mkdir()
    leaked = max((os.path.join(b, f) for b, _, fs in os.walk(small) for f in fs), key=lambda p: os.path.getsize(p) if not os.path.islink(p) else 0)
    write(cipher / "noise", os.urandom(300_001))
    write(tmp_path / "names", b"some-confidential-name\n")
    assert run(program, small, cipher, tmp_path / "names").stdout.endswith("hits 0\n")
    write(cipher / "x", os.urandom(1001) + read(leaked)[1000:1032] + os.urandom(77))
    assert run(program, small, cipher, tmp_path / "names", check=False, errors="replace").returncode == 1
    os.unlink(cipher / "x")
    os.symlink("see/some-confidential-name/there", cipher / "l")
    assert run(program, small, cipher, tmp_path / "names", check=False, errors="replace").returncode == 1


@pytest.mark.sanitizer
def test_a_few_hundred_files(shared_devkms, tmp_path):
    src = tmp_path / "src"
    subprocess.run(["cp", "-a", os.path.dirname(os.__file__) + "/email", src], check=True)
    with mounted(kms=shared_devkms) as m:
        for i in range(3):
            run("cp", "-a", src, m.path(f"copy{i}"))
        m.remount()
        for i in range(3):
            assert snapshot(m.path(f"copy{i}")) == snapshot(src)
