"""Stores with damaged, foreign or old descriptors, wrong versions, copies, and the traces of mounts that did not end well."""
import hashlib
import json
import os
import re
import shutil
import subprocess

import pytest

from conftest import BYOKFS, CTL, Mount, wait_until
from damage import backing_of, with_sum
from faults import get, pattern, put
from programs import ALREADY, CONFIG, DAMAGE, NOT_A_STORE, background, markers, mounted, run, said, tree


@pytest.fixture(scope="module")
def template(tmp_path_factory, shared_devkms):
    """A store with something in it, to be copied, and one of somebody else."""
    base = tmp_path_factory.mktemp("template")
    stores = [Mount(base / name, shared_devkms) for name in ("ours", "theirs")]
    for m in stores:
        m.mount()
        os.mkdir(m.path("d"))
        put(m.path("d", "a"), pattern(1, 9000))
        m.umount()
    return stores


@pytest.fixture
def ours(template, tmp_path, shared_devkms):
    """A copy that may be damaged."""
    shutil.rmtree(tmp_path / "cipher", ignore_errors=True)
    subprocess.run(["cp", "-a", template[0].cipher, tmp_path / "cipher"], check=True)
    m = Mount(tmp_path, shared_devkms)
    yield m
    m.close()


@pytest.fixture
def theirs(template):
    return template[1]


def descriptor(store, which, copy=""):
    """Path of the store's or domain 0's descriptor."""
    if which == "domain":
        which = "domains/" + os.listdir(os.path.join(store.cipher, ".byokfs/domains"))[0].rstrip("~")
    return os.path.join(store.cipher, ".byokfs", which + copy)


def text(path):
    with open(path, "rb") as f:
        return f.read()


def set_text(path, data):
    with open(path, "wb") as f:
        f.write(data)


def both(store, which, change, resum=True):
    """The same change in both copies."""
    for copy in ("", "~"):
        path = descriptor(store, which, copy)
        data = change(text(path))
        set_text(path, with_sum(data) if resum else data)


def works(store):
    """Mounts, shows its content, and unmounts cleanly; the log."""
    store.mount()
    assert get(store.path("d", "a")) == pattern(1, 9000)
    store.umount()
    assert not markers(store)
    return store.read_log()


def refused(store, *words, code=NOT_A_STORE):
    """Refused by the mount, in words, without a trace; info and check do not fall over either."""
    before = tree(store.cipher)
    r = said(run(BYOKFS, "-c", store.ini, store.cipher, store.plain), code, *words)
    assert mounted(store.plain) is None and tree(store.cipher) == before
    for verb in ("info", "check"):
        v = run(CTL, verb, store.cipher)
        assert v.code in (0, code, DAMAGE), v
    return r


# ---- one copy of a descriptor

ONE = {
    "missing": lambda p: os.unlink(p),
    "empty": lambda p: os.truncate(p, 0),
    "cut": lambda p: os.truncate(p, 100),
    "garbage": lambda p: set_text(p, os.urandom(700)),
    "one bit": lambda p: set_text(p, text(p)[:50] + bytes([text(p)[50] ^ 1]) + text(p)[51:]),
    "sum": lambda p: set_text(p, text(p)[:-3] + b"00\n" if text(p)[-3:-1] != b"00" else text(p)[:-3] + b"11\n"),
    "CRLF": lambda p: set_text(p, text(p).replace(b"\n", b"\r\n")),
    "a line more": lambda p: set_text(p, with_sum(text(p).replace(b"sum=", b"extra=1\nsum="))),
    "MAC, sum set right": lambda p: set_text(p, with_sum(re.sub(rb"mac=.{8}", b"mac=00000000", text(p)))),
    "MAC, sum set right, newer": lambda p: set_text(p, with_sum(re.sub(rb"mac=.{8}", b"mac=00000000",
                                                                       re.sub(rb"\nseq=\d+", b"\nseq=99", text(p))))),
    "a symlink": lambda p: (os.unlink(p), os.symlink("/etc/passwd", p)),
    "a directory": lambda p: (os.unlink(p), os.mkdir(p)),
    "a FIFO": lambda p: (os.unlink(p), os.mkfifo(p)),
    "huge": lambda p: os.truncate(p, 1 << 30),
}


@pytest.mark.parametrize("which, copy", [("store", ""), pytest.param("domain", "", marks=pytest.mark.sanitizer), ("store", "~"),
                                         ("domain", "~")])
def test_one_copy(ours, which, copy):
    """Damage of one copy loses nothing, and the next read-write mount restores it."""
    good = text(descriptor(ours, which))
    path, twin = descriptor(ours, which, copy), descriptor(ours, which, "" if copy else "~")
    for name, damage in ONE.items():
        damage(path)
        if name == "a directory":
            assert run(CTL, "info", ours.cipher).code == 0
            os.rmdir(path)
        r = run(CTL, "check", ours.cipher)
        assert r.code == 0 and (name.startswith("MAC, sum set right") and "newer" not in name or "warning" in r.out), (name, r)
        before = len(ours.read_log()) if os.path.exists(ours.log) else 0
        log = works(ours)[before:]
        assert text(path) == text(twin) == good, name
        assert f"descriptor '{os.path.basename(path)}'" in log and "written again" in log, (name, log)
        r = run(CTL, "check", ours.cipher)
        assert r.code == 0 and "no damage" in r.out, (name, r)


def test_read_only_mounts_restore_nothing(ours):
    os.truncate(descriptor(ours, "store"), 0)
    os.unlink(descriptor(ours, "domain", "~"))
    ours.mount("ro")
    assert get(ours.path("d", "a")) == pattern(1, 9000)
    ours.umount()
    assert text(descriptor(ours, "store")) == b"" and not os.path.exists(descriptor(ours, "domain", "~"))
    works(ours)


def test_older_copy(ours):
    """The newer of two good copies rules, whichever it is."""
    for copy in ("", "~"):
        path = descriptor(ours, "domain", copy)
        seq = int(re.search(rb"\nseq=(\d+)", text(path))[1])
        set_text(path, with_sum(text(path).replace(b"\nseq=%d" % seq, b"\nseq=%d" % (seq + 1))))
        works(ours)
        assert b"\nseq=%d\n" % (seq + 1) in text(descriptor(ours, "domain")) and \
            text(descriptor(ours, "domain")) == text(descriptor(ours, "domain", "~"))


# ---- both copies

@pytest.mark.parametrize("which", ["store", "domain"])
@pytest.mark.parametrize("name", ONE)
def test_both_copies(ours, which, name):
    for copy in ("", "~"):
        ONE[name](descriptor(ours, which, copy))
    refused(ours, ours.cipher)


FOREIGN = {
    "version": ("store", b"byokfs-store 1\n", b"byokfs-store 2\n", "another version"),
    "version of the domain": ("domain", b"byokfs-domain 1\n", b"byokfs-domain 2\n", "another version"),
    "suite": ("store", b"suite=1\n", b"suite=9\n", ""),
    "the other suite": ("store", b"suite=1\n", b"suite=2\n", ""),
    "layout": ("store", b"layout=1\n", b"layout=2\n", ""),
    "names": ("store", b"names=siv64\n", b"names=rot13\n", ""),
    "other names": ("store", b"names=siv64\n", b"names=plain\n", "no copy authenticates"),
    "creator": ("store", b"by=byokfs ", b"by=Byokfs ", "no copy authenticates"),
    "seal": ("domain", b"seal=file\n", b"seal=domain\n", ""),
    "index": ("domain", b"index=0\n", b"index=1\n", ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_kind_of_store(ours, name):
    which, old, new, word = FOREIGN[name]
    if old not in text(descriptor(ours, which)):
        old, new = new, old  # made where the CPU has no AES: the suites change places
    both(ours, which, lambda t: t.replace(old, new))
    refused(ours, word)


def test_newer_software_was_here(ours):
    """One copy of a later version stops everything: restoring the other would undo what it did."""
    for which in ("store", "domain"):
        path = descriptor(ours, which)
        good = text(path)
        set_text(path, with_sum(good.replace(b" 1\n", b" 2\n", 1)))
        refused(ours, "another version")
        set_text(path, good)
    works(ours)


def test_anothers_descriptors(ours, theirs):
    """Descriptors of another store, one copy and both, and the two stores' exchanged altogether."""
    def take(which, copies):
        for copy in copies:
            shutil.copy(descriptor(theirs, which, copy), descriptor(ours, which, copy))

    keep = {(w, c): text(descriptor(ours, w, c)) for w in ("store", "domain") for c in ("", "~")}
    for which in ("store", "domain"):
        for copies in ([""], ["~"]):
            take(which, copies)
            works(ours)
            assert all(text(descriptor(ours, w, c)) == good for (w, c), good in keep.items()), (which, copies)
        take(which, ["", "~"])
        refused(ours, ours.cipher)
        for (w, c), good in keep.items():
            set_text(descriptor(ours, w, c), good)
    shutil.rmtree(os.path.join(ours.cipher, ".byokfs"))
    subprocess.run(["cp", "-a", os.path.join(theirs.cipher, ".byokfs"), ours.cipher], check=True)
    refused(ours, ".byokfs.d of its root")


@pytest.mark.parametrize("which", ["store", "domain"])
def test_every_byte(ours, which):
    """Any byte changed in both copies, with the sum left and with the sum set right: refused, or without consequence; never a crash."""
    good = text(descriptor(ours, which))
    body = good.index(b"sum=")
    for i, at in enumerate(range(0, len(good), 11 if which == "store" else 37)):
        changed = good[:at] + bytes([good[at] ^ (1 << i % 7)]) + good[at + 1:]
        both(ours, which, lambda _: changed, resum=False)
        assert run(CTL, "info", ours.cipher).code == NOT_A_STORE, at
        if at >= body or i % 3:
            continue
        both(ours, which, lambda _: with_sum(changed), resum=False)
        r = run(BYOKFS, "-c", ours.ini, "-o", "ro", ours.cipher, ours.plain)
        assert r.code in (0, CONFIG, NOT_A_STORE), (at, r)
        said(r, r.code)
        if r.code == 0:
            assert which == "domain" and get(ours.path("d", "a")) == pattern(1, 9000)
            subprocess.run(["umount", ours.plain], check=True)
    both(ours, which, lambda _: good, resum=False)
    works(ours)


# ---- what else the store consists of

@pytest.mark.sanitizer
def test_root_directory_id(ours, theirs):
    link = os.path.join(ours.cipher, ".byokfs.d")
    good = os.readlink(link)
    inner = os.readlink(os.path.join(ours.cipher, next(n for n in os.listdir(ours.cipher) if n[0] != "."), ".byokfs.d"))
    for bad in (None, os.readlink(os.path.join(theirs.cipher, ".byokfs.d")), inner, good[:42] + ("A" if good[42] != "A" else "E") + good[43:],
                "x"):
        os.unlink(link)
        if bad:
            os.symlink(bad, link)
        refused(ours, ".byokfs.d of its root")
        assert run(CTL, "check", ours.cipher).code == (0 if bad and bad[:40] == good[:40] else DAMAGE), bad
        if bad is None:
            os.symlink("x", link)
    os.unlink(link)
    os.symlink(good, link)
    works(ours)


PARTS = {
    "no .byokfs": lambda meta: shutil.rmtree(meta),
    ".byokfs is a link": lambda meta: (os.rename(meta, meta + "2"), os.symlink(meta + "2", meta)),
    ".byokfs is a file": lambda meta: (shutil.rmtree(meta), open(meta, "w").close()),
    "no domains": lambda meta: shutil.rmtree(meta + "/domains"),
    "domains is a link": lambda meta: (os.rename(meta + "/domains", meta + "/x"), os.symlink("x", meta + "/domains")),
    "the lock is a FIFO": lambda meta: (os.unlink(meta + "/lock"), os.mkfifo(meta + "/lock")),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts(ours, name):
    PARTS[name](os.path.join(ours.cipher, ".byokfs"))
    refused(ours, ours.cipher)


def test_parts_that_are_made_again(ours):
    """The lock and the markers' directory are no content."""
    meta = os.path.join(ours.cipher, ".byokfs")
    os.unlink(meta + "/lock")
    shutil.rmtree(meta + "/mounts")
    works(ours)
    os.unlink(meta + "/lock")
    os.symlink("/etc/passwd", meta + "/lock")
    r = run(BYOKFS, "-c", ours.ini, ours.cipher, ours.plain)
    assert r.code in (1, NOT_A_STORE), r
    os.unlink(meta + "/lock")
    works(ours)


def test_strange_markers(ours):
    """Markers that are none: everything is in doubt, and they go once every file was visited."""
    mounts = os.path.join(ours.cipher, ".byokfs/mounts")
    os.makedirs(mounts, exist_ok=True)
    for name, data in (("0" * 32, b""), ("1" * 32, os.urandom(100)), ("garbage", b"x"), (".byokfs.tmp.0123456789abcdef", b"")):
        set_text(os.path.join(mounts, name), data)
    os.mkfifo(os.path.join(mounts, "2" * 32))
    os.symlink("/etc/passwd", os.path.join(mounts, "3" * 32))
    ours.mount()
    assert os.stat(ours.path("d", "a")).st_size == 9000
    wait_until(lambda: len(markers(ours)) == 1)
    ours.umount()
    assert os.listdir(mounts) == []


# ---- copies and unclean ends

@pytest.mark.sanitizer
def test_copied_while_mounted(mount, tmp_path, make_mount):
    """cp -a of a live store is a store: right sizes at once, and the copied marker goes."""
    sizes = {f"f{i}": n for i, n in enumerate([0, 1, 1504, 1505, 4064, 4096, 4097, 20000, 450561])}
    files = [open(mount.path(name), "wb") for name in sizes]
    for f, size in zip(files, sizes.values()):
        f.write(pattern(size, size))
        f.flush()
        os.fsync(f.fileno())
    os.makedirs(tmp_path / "copy")
    subprocess.run(["cp", "-a", mount.cipher, tmp_path / "copy" / "cipher"], check=True)
    for f in files:
        f.close()
    copy = make_mount("copy", mount.kms)
    copy.mount()
    assert {n: os.stat(copy.path(n)).st_size for n in sizes} == sizes
    for name, size in sizes.items():
        assert get(copy.path(name)) == pattern(size, size)
    wait_until(lambda: len(markers(copy)) == 1)
    assert "copied" in copy.read_log()
    copy.remount()
    assert {n: os.stat(copy.path(n)).st_size for n in sizes} == sizes


@pytest.mark.sanitizer
def test_killed_with_dirty_files(mount):
    """kill -9 with 300 dirty files: sizes are right before any open, the sweep sets them right on disk and forgets the marker."""
    files, sizes = [], {}
    for i in range(300):
        sizes[f"f{i}"] = size = 1 + i * 97
        f = open(mount.path(f"f{i}"), "wb")
        f.write(b"x" * size)
        f.flush()
        os.fsync(f.fileno())
        files.append(f)
    for i, f in enumerate(files[::3]):
        f.write(b"y" * 5000)
        f.flush()
    mount.kill()
    for f in files:
        try:
            f.close()
        except OSError:
            pass
    mount.clear_dead()
    assert len(markers(mount)) == 1
    warned = run(CTL, "check", mount.cipher)
    assert warned.code == 0 and "in doubt" in warned.out, warned
    mount.mount()
    for name, size in sizes.items():
        got = os.stat(mount.path(name)).st_size
        assert got == size or (int(name[1:]) % 3 == 0 and got in (size, size + 5000)), (name, got, size)
    wait_until(lambda: len(markers(mount)) == 1)
    log = mount.read_log()
    assert "not unmounted cleanly" in log and "300 files visited" in log, log
    for name, size in sizes.items():
        assert get(mount.path(name))[:size] == b"x" * size
    mount.umount()
    r = run(CTL, "check", mount.cipher)
    assert r.code == 0 and "no damage" in r.out, r
    mount.mount("ro")
    assert os.stat(mount.path("f1")).st_size == sizes["f1"]


def test_a_damaged_file_keeps_the_marker_from_nothing_else(mount):
    """A sweep that meets a damaged file sets the others right; what cannot be set right stays in doubt, not wrong."""
    for i in range(5):
        f = os.open(mount.path(f"f{i}"), os.O_RDWR | os.O_CREAT)
        os.write(f, pattern(i, 9000))
        os.fsync(f)
        os.close(f)
    damaged = backing_of(mount, "f2")
    keep = [os.open(mount.path(f"f{i}"), os.O_RDWR) for i in range(5)]
    for fd in keep:
        os.pwrite(fd, b"z" * 3000, 9000)
        os.fsync(fd)
    mount.kill()
    for fd in keep:
        try:
            os.close(fd)
        except OSError:
            pass
    mount.clear_dead()
    with open(damaged, "r+b") as f:
        f.seek(2600)
        f.write(b"damage")
    mount.mount()
    wait_until(lambda: "files visited" in mount.read_log())
    assert [os.stat(mount.path(f"f{i}")).st_size for i in range(5)] == [12000] * 5
    for i in (0, 1, 3, 4):
        assert get(mount.path(f"f{i}")) == pattern(i, 9000) + b"z" * 3000
    os.unlink(mount.path("f2"))
    mount.remount()
    wait_until(lambda: len(markers(mount)) == 1)


def test_locked_by_a_tool(mount):
    """Whoever holds the store keeps others out, byokfsctl init too."""
    said(run(CTL, "init", "-c", mount.ini, mount.cipher), ALREADY, "already")
    r = run(CTL, "check", mount.cipher)
    assert r.code == 0 and "the store is mounted" in r.out, r
    r = run(CTL, "info", mount.cipher)
    assert r.code == 0 and re.search(r"store +[0-9a-f]{32}", r.out), r


def test_info_of_the_damaged(ours):
    """info and check of a cut descriptor, in both forms."""
    os.truncate(descriptor(ours, "store"), 60)
    assert run(CTL, "info", ours.cipher).code == 0
    os.truncate(descriptor(ours, "store", "~"), 60)
    for args in (["info"], ["info", "--json"], ["check"], ["check", "--json"]):
        said(run(CTL, *args, ours.cipher), NOT_A_STORE, "damaged")


def test_reading_needs_no_configuration_of_the_machine(ours):
    """info and check ask nobody: neither the KMS nor /etc."""
    info = json.loads(run(CTL, "info", "--json", ours.cipher, env={"AWS_ACCESS_KEY_ID": None, "BYOKFS_CONFIG": "/nowhere"}).out)
    body = text(descriptor(ours, "store"))
    assert info["store"] == re.search(rb"store=([0-9a-f]{32})", body)[1].decode()
    assert body.endswith(b"sum=" + hashlib.sha256(body[:body.index(b"sum=")]).hexdigest().encode() + b"\n")
