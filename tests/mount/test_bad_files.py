"""Damaged and hostile files, by the appendix of byokfs-format(5): EIO and one log line, never wrong bytes, never more than the place
that was touched; and whatever is damaged can be removed or replaced."""
import errno
import json
import mmap
import os
import shutil
import stat
import subprocess
import sys

import pytest

from conftest import AK, CTL, SK, wait_until
from damage import (GROUP_0, PAGE, ROOT, SLOT_A, SLOT_B, STATE_A, backing_of, data_page, flip, grow, punch, read, replace, states, swap, write,
                    zero)
from faults import drop_caches, err, get, pattern, put
from programs import DAMAGE, run

SIZE = 40000
DATA = pattern(1, SIZE)
PAGES = 10
SMALL = pattern(2, 1000)
ALL = range(PAGES)
EIO, SAME = "EIO at open", "unharmed"
READER = os.path.join(os.path.dirname(__file__), "..", "reader", "byokfs_reader.py")


def page_at(k):
    return data_page(k) * PAGE


# name: (what is done to the backing file, what follows: EIO at open, pages that are EIO, or nothing)
DAMAGES = {
    "cut within page 0": (lambda p: os.truncate(p, 100), EIO),
    "cut to 4095": (lambda p: os.truncate(p, 4095), EIO),
    "emptied": (lambda p: os.truncate(p, 0), EIO),
    "page 0 zeroed": (lambda p: zero(p, 0), EIO),
    "page 0 punched": (lambda p: punch(p, 0), EIO),
    "page 0 random": (lambda p: write(p, 0, os.urandom(PAGE)), EIO),
    "slot B filled": (lambda p: write(p, SLOT_B, os.urandom(512)), SAME),
    "both slots zeroed": (lambda p: zero(p, SLOT_A, 1024), EIO),
    "ruling state zeroed": (lambda p: zero(p, states(p)[0], 512), EIO),
    "both states zeroed": (lambda p: zero(p, STATE_A, 1024), EIO),
    "other state random": (lambda p: write(p, states(p)[1], os.urandom(512)), SAME),
    "size in the state": (lambda p: flip(p, states(p)[0] + 8), EIO),
    "states exchanged": (lambda p: write(p, STATE_A, read(p, STATE_A + 512, 512) + read(p, STATE_A, 512)), EIO),
    "root meta": (lambda p: flip(p, ROOT + 3), EIO),
    "root text": (lambda p: flip(p, ROOT + 100), EIO),
    "root tag": (lambda p: flip(p, PAGE - 1), EIO),
    "data page 2, version": (lambda p: flip(p, page_at(2)), {2}),
    "data page 2, nonce": (lambda p: flip(p, page_at(2) + 8), {2}),
    "data page 2, text": (lambda p: flip(p, page_at(2) + 2000), {2}),
    "data page 2, tag": (lambda p: flip(p, page_at(2) + 4095), {2}),
    "data page 5, text": (lambda p: flip(p, page_at(5) + 2000), {5}),
    "data page 0 zeroed": (lambda p: zero(p, page_at(0)), {0}),
    "data page 5 zeroed": (lambda p: zero(p, page_at(5)), {5}),
    "data page 5 punched": (lambda p: punch(p, data_page(5)), {5}),
    "group page, text": (lambda p: flip(p, GROUP_0 * PAGE + 77), set(range(4, PAGES))),
    "group page zeroed": (lambda p: zero(p, GROUP_0 * PAGE), set(range(4, PAGES))),
    "group page punched": (lambda p: punch(p, GROUP_0), set(range(4, PAGES))),
    "pages 1 and 2 exchanged": (lambda p: swap(p, data_page(1), data_page(2)), {1, 2}),
    "pages 5 and 9 exchanged": (lambda p: swap(p, data_page(5), data_page(9)), {5, 9}),
    "page 7 over page 6": (lambda p: write(p, page_at(6), read(p, page_at(7), PAGE)), {6}),
    "group page over a data page": (lambda p: write(p, page_at(5), read(p, GROUP_0 * PAGE, PAGE)), {5}),
    "cut by a page": (lambda p: grow(p, -PAGE), {9}),
    "cut in half": (lambda p: os.truncate(p, 5 * PAGE), set(range(4, PAGES))),
    "cut to one page": (lambda p: os.truncate(p, PAGE), set(ALL)),
    "zero pages appended": (lambda p: grow(p, 3 * PAGE), SAME),
    "random pages appended": (lambda p: grow(p, 0, os.urandom(3 * PAGE)), SAME),
    "an earlier page appended": (lambda p: grow(p, 0, read(p, page_at(9), PAGE)), SAME),
    "st_size + 1": (lambda p: grow(p, 1), SAME),
    "st_size - 1": (lambda p: grow(p, -1), SAME),
    "st_size + 4096": (lambda p: grow(p, PAGE), SAME),
    "st_size of a group page": (lambda p: os.truncate(p, (GROUP_0 + 107 + 1) * PAGE), SAME),
    "st_size 2^40": (lambda p: os.truncate(p, 1 << 40), SAME),
}
# One bit in every part of IDENT and of the ruling slot: magic, version, layout, suite, flags, ids, commitment, zeros, MAC.
for _at in (0, 8, 10, 11, 12, 16, 32, 48, 64, 96, 479, 480, 511):
    DAMAGES[f"ident, byte {_at}"] = (lambda p, at=_at: flip(p, at, 0x01), EIO)
for _at in (0, 4, 5, 6, 8, 10, 11, 64, 503, 508):
    DAMAGES[f"slot, byte {_at}"] = (lambda p, at=_at: flip(p, SLOT_A + at, 0x02), EIO)

SMALL_DAMAGES = {
    "small, st_size + 1": (lambda p: grow(p, 1), SAME),
    "small, st_size - 1": (lambda p: grow(p, -1), SAME),
    "small, st_size of a page": (lambda p: os.truncate(p, PAGE), SAME),
    "small, st_size of two pages": (lambda p: os.truncate(p, 2 * PAGE), SAME),
    "small, st_size 2^40": (lambda p: os.truncate(p, 1 << 40), SAME),
    "small, root text": (lambda p: flip(p, ROOT + 500), EIO),
    "small, inline flag": (lambda p: flip(p, states(p)[0] + 40, 0x01), EIO),
}


def look(path):
    """(size after open, set of pages that are EIO) or the errno of open. Wrong bytes fail at once."""
    data = SMALL if "small" in os.path.basename(path) else DATA
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as e:
        return e.errno
    bad = set()
    try:
        assert os.fstat(fd).st_size == len(data), path
        for k in range(-(-len(data) // PAGE)):
            try:
                assert os.pread(fd, PAGE, k * PAGE) == data[k * PAGE:(k + 1) * PAGE], f"wrong bytes: {path}, page {k}"
            except OSError as e:
                assert e.errno == errno.EIO, (path, k, e)
                bad.add(k)
        assert not os.pread(fd, PAGE, len(data)), path
        if not bad:
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m:
                assert len(m) == len(data) and m[:] == data, path
            with open(path, "rb") as f:
                assert f.read() == data
    finally:
        os.close(fd)
    return bad


def verdicts(store, cases, tolerate=False):
    """tolerate: what is still in memory may hide damage, but nothing may be wrong."""
    wrong = {}
    for name, (_, wanted) in cases.items():
        got = look(store.path(name))
        want = {EIO: errno.EIO, SAME: set()}.get(wanted, wanted) if isinstance(wanted, str) else wanted
        if got != want and not (tolerate and got == set()):
            wrong[name] = (got, want)
    assert not wrong, wrong


def lay_out(store, cases):
    """One file per case, each with a neighbour of its own kind; their backing files."""
    for name in cases:
        put(store.path(name), SMALL if "small" in name else DATA, sync=False)
    put(store.path("neighbour"), DATA, sync=False)
    found = {os.lstat(os.path.join(store.cipher, n)).st_ino: os.path.join(store.cipher, n) for n in os.listdir(store.cipher)}
    return {name: found[os.lstat(store.path(name)).st_ino] for name in cases}


def tidy(store, cases):
    """Everything damaged can be overwritten by rename, or removed; then the store is sound."""
    for i, name in enumerate(cases):
        if i % 2:
            os.unlink(store.path(name))
        else:
            put(store.path("new"), b"new")
            os.rename(store.path("new"), store.path(name))
            assert get(store.path(name)) == b"new"
    assert get(store.path("neighbour")) == DATA
    store.umount()
    r = run(CTL, "check", store.cipher)
    assert r.code == 0 and "no damage" in r.out, r
    store.mount()
    assert len(os.listdir(store.plain)) == len(cases) - len(cases) // 2 + 1


def reader_verdicts(store):
    """Names in which the independent reader finds damage."""
    r = subprocess.run([sys.executable, READER, store.cipher, "--unseal-endpoint", store.kms.endpoint, "--verify"], text=True,
                       capture_output=True, timeout=120, env=dict(os.environ, AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK,
                                                                  AWS_DEFAULT_REGION="us-east-1"))
    assert r.returncode == 7, r.stderr
    return {line.split(": ")[0] for line in r.stdout.splitlines()}


CASES = {**DAMAGES, **SMALL_DAMAGES}


@pytest.mark.sanitizer
def test_damaged_while_unmounted(mount):
    """Edit, mount, read. The second implementation agrees file by file; check finds what shows without a key."""
    backing = lay_out(mount, CASES)
    mount.umount()
    for name, (damage, _) in CASES.items():
        damage(backing[name])
    found = reader_verdicts(mount)
    hints = {n for n in CASES if "st_size" in n or "appended" in n}
    assert found - hints == {n for n, (_, wanted) in CASES.items() if wanted != SAME} - hints
    mount.mount()
    verdicts(mount, CASES)
    assert get(mount.path("neighbour")) == DATA
    log = mount.read_log()
    for name, (_, wanted) in CASES.items():
        lines = [line for line in log.splitlines() if f"'{name}'" in line]
        if wanted != SAME:
            assert lines and os.path.basename(backing[name]) in lines[0], (name, log)
        assert len(lines) <= 5 and len(lines) == len(set(lines)), lines
    tidy(mount, CASES)


@pytest.mark.sanitizer
def test_damaged_while_mounted(mount):
    """The same under a live mount, with the kernel's caches dropped, then with the daemon started anew."""
    backing = lay_out(mount, CASES)
    mount.remount()
    for name in CASES:
        look(mount.path(name))
    for name, (damage, _) in CASES.items():
        damage(backing[name])
    verdicts(mount, CASES, tolerate=True)
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("3")
    verdicts(mount, CASES, tolerate=True)
    mount.remount()
    verdicts(mount, CASES)
    tidy(mount, CASES)


def test_damaged_while_open(mount):
    """Through descriptors that stay open: pages not cached are EIO, and a file cannot be made to look shorter."""
    put(mount.path("a"), DATA)
    put(mount.path("b"), DATA)
    a, b = backing_of(mount, "a"), backing_of(mount, "b")
    fds = [os.open(mount.path(n), os.O_RDWR) for n in "ab"]
    try:
        os.sync()
        zero(a, page_at(2))
        os.truncate(b, PAGE)
        for fd in fds:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert [k for k in ALL if err(os.pread, fds[0], PAGE, k * PAGE)] == [2]
        assert os.fstat(fds[1]).st_size == SIZE
        assert all(err(os.pread, fds[1], PAGE, k * PAGE) == errno.EIO for k in ALL)
        assert err(os.pwrite, fds[0], b"x" * PAGE, 2 * PAGE) == 0
        os.fsync(fds[0])
        assert os.pread(fds[0], PAGE, 2 * PAGE) == b"x" * PAGE, "a whole page may be written anew"
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.sanitizer
def test_files_in_one_anothers_place(mount):
    """Pages, page 0 and whole files of others."""
    names = ["page", "other page", "page 0", "slot", "whole"]
    backing = lay_out(mount, names + ["source"])
    put(mount.path("source"), pattern(3, SIZE))
    mount.umount()
    source = backing["source"]
    swap(backing["page"], data_page(1), data_page(1), backing["other page"])
    write(backing["page 0"], 0, read(source, 0, PAGE))
    write(backing["slot"], SLOT_A, read(source, SLOT_A, 512))
    whole = read(source, 0, os.stat(source).st_size)
    replace(backing["whole"], lambda p: open(p, "wb").write(whole))
    mount.mount()
    assert look(mount.path("page")) == look(mount.path("other page")) == {1}
    fd = os.open(mount.path("page 0"), os.O_RDONLY)
    assert all(err(os.pread, fd, PAGE, k * PAGE) == errno.EIO for k in ALL), "another's page 0: not one page is its own"
    os.close(fd)
    assert look(mount.path("slot")) == errno.EIO
    assert get(mount.path("whole")) == get(mount.path("source")) == pattern(3, SIZE), "documented: a file under another's name"
    assert get(mount.path("neighbour")) == DATA


@pytest.mark.sanitizer
@pytest.mark.parametrize("when", ["unmounted", "mounted"])
def test_other_types(mount, when):
    """A file replaced by another kind of object: nothing outside the store is opened, nothing hangs, and it can be removed."""
    names = ["link", "fifo", "device", "directory", "file of a link", "file of a directory"]
    for name in names[:4]:
        put(mount.path(name), SMALL)
    os.symlink("somewhere", mount.path(names[4]))
    os.mkdir(mount.path(names[5]))
    put(mount.path("neighbour"), DATA)
    backing = {n: backing_of(mount, n) for n in names}
    if when == "unmounted":
        mount.umount()
    replace(backing["link"], lambda p: os.symlink("/etc/passwd", p))
    replace(backing["fifo"], os.mkfifo)
    replace(backing["device"], lambda p: os.mknod(p, stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    replace(backing["directory"], os.mkdir)
    shutil.copy("/etc/passwd", backing["file of a link"] + ".new")
    os.rename(backing["file of a link"] + ".new", backing["file of a link"])
    shutil.rmtree(backing["file of a directory"])
    open(backing["file of a directory"], "wb").close()
    if when == "unmounted":
        mount.mount()
    else:
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3")
        wait_until(lambda: os.path.islink(mount.path("link")))
    assert err(os.readlink, mount.path("link")) == err(get, mount.path("link")) == errno.EIO
    assert err(os.open, mount.path("fifo"), os.O_RDONLY | os.O_NONBLOCK) in (0, errno.EIO)
    assert err(os.open, mount.path("device"), os.O_RDONLY) in (errno.EACCES, errno.EIO), "nodev is the default"
    assert err(os.listdir, mount.path("directory")) == err(put, mount.path("directory", "x"), b"") == errno.EIO
    assert err(get, mount.path("file of a link")) == err(get, mount.path("file of a directory")) == errno.EIO
    assert get(mount.path("neighbour")) == DATA
    for name in names:
        if name == "directory":
            assert err(os.rmdir, mount.path(name)) in (0, errno.EIO)
        else:
            os.unlink(mount.path(name))
    assert set(os.listdir(mount.plain)) - {"directory"} == {"neighbour"}


def test_set_user_id_in_the_store(mount):
    """The storage's owner may set bits; the mount is nosuid unless told otherwise."""
    put(mount.path("program"), b"#!/bin/sh\nid -u\n")
    os.chmod(backing_of(mount, "program"), 0o4755)
    wait_until(lambda: os.stat(mount.path("program")).st_mode & stat.S_ISUID, 10)
    assert os.statvfs(mount.plain).f_flag & os.ST_NOSUID and os.statvfs(mount.plain).f_flag & os.ST_NODEV


@pytest.mark.sanitizer
def test_strangers(mount):
    """Names that are nobody's: skipped, one log line, in nobody's way."""
    os.mkdir(mount.path("d"))
    put(mount.path("d", "a"), DATA)
    put(mount.path("d", "b" * 200), DATA)
    d = backing_of(mount, "d")
    long_half = next(n for n in os.listdir(d) if n.startswith("L.") and not n.endswith(".n"))
    mount.umount()
    for i in range(300):
        open(os.path.join(d, f"stray {i}"), "wb").close()
    for name in (".byokfs.tmp.0123456789abcdef", ".byokfs.del.0123456789abcdef", ".byokfs.tmp.planted", ".byokfsx", ".hidden", "L.", "L..n",
                 "L.AAAA", "L." + "A" * 32, "L." + "A" * 32 + "x.n", "A" * 43, "A" * 255, "a=b", "x\ny", "\udcff\udcfe"):
        shutil.copy(os.path.join(d, long_half), os.path.join(d, name))
    os.mkdir(os.path.join(d, "stray directory"))
    os.symlink("/etc/passwd", os.path.join(d, "stray link"))
    os.unlink(os.path.join(d, long_half + ".n"))
    mount.mount()
    for _ in range(3):
        assert os.listdir(mount.path("d")) == ["a"]
    assert err(os.stat, mount.path("d", "b" * 200)) == errno.ENOENT
    assert err(os.stat, mount.path("d", "stray 1")) == err(os.stat, mount.path("d", "L.AAAA")) == errno.ENOENT
    assert get(mount.path("d", "a")) == DATA
    put(mount.path("d", "c"), b"x")
    assert err(os.rmdir, mount.path("d")) == errno.ENOTEMPTY
    assert sum("not names of this directory" in line for line in mount.read_log().splitlines()) <= 3
    r = run(CTL, "check", "--json", mount.cipher)
    found = json.loads(r.out)
    assert found["warnings"] > 300 and found["damage"] == 2 and r.code == DAMAGE, r.out[-2000:]


def test_a_file_moved_in_the_store(mount):
    """Names are bound to their directory."""
    os.makedirs(mount.path("one"))
    os.makedirs(mount.path("two"))
    put(mount.path("one", "a"), DATA)
    put(mount.path("one", "b"), SMALL)
    moved, two = backing_of(mount, "one", "a"), backing_of(mount, "two")
    mount.umount()
    os.rename(moved, os.path.join(two, os.path.basename(moved)))
    mount.mount()
    assert os.listdir(mount.path("one")) == ["b"] and os.listdir(mount.path("two")) == []
    assert err(get, mount.path("one", "a")) == err(get, mount.path("two", "a")) == errno.ENOENT
    os.rename(os.path.join(two, os.path.basename(moved)), moved)
    mount.remount()
    assert get(mount.path("one", "a")) == DATA


def test_a_file_in_the_place_of_another_directorys(mount):
    """Documented: files are not bound to their names, so the storage may give one the place of another."""
    os.makedirs(mount.path("one"))
    os.makedirs(mount.path("two"))
    put(mount.path("one", "a"), DATA)
    put(mount.path("two", "b"), SMALL)
    source, place = backing_of(mount, "one", "a"), backing_of(mount, "two", "b")
    mount.umount()
    os.rename(source, place)
    mount.mount()
    assert os.listdir(mount.path("one")) == []
    assert get(mount.path("two", "b")) == DATA, "the content is authentic, the name is not bound to it"


IDS = {
    "removed": lambda d, other: os.unlink(d),
    "altered": lambda d, other: relink(d, alter(os.readlink(d), 30)),
    "another index": lambda d, other: relink(d, alter(os.readlink(d), 0)),
    "another id": lambda d, other: relink(d, alter(os.readlink(d), 10)),
    "cut": lambda d, other: relink(d, os.readlink(d)[:-1]),
    "longer": lambda d, other: relink(d, os.readlink(d) + "AAAA"),
    "nonsense": lambda d, other: relink(d, "/etc/passwd"),
    "a file": lambda d, other: replace(d, lambda p: open(p, "w").write(os.readlink(other))),
    "of its sibling": lambda d, other: relink(d, os.readlink(other)),
    "of the root": lambda d, other: relink(d, os.readlink(os.path.join(os.path.dirname(os.path.dirname(d)), ".byokfs.d"))),
}


def relink(path, target):
    if os.path.lexists(path):
        os.unlink(path)
    os.symlink(target, path)


def alter(text, at):
    return text[:at] + ("B" if text[at] != "B" else "C") + text[at + 1:]


@pytest.mark.sanitizer
def test_directory_ids(mount):
    """.byokfs.d in every way wrong: EIO for that directory, nothing else."""
    os.mkdir(mount.path("good"))
    put(mount.path("good", "a"), DATA)
    for name in IDS:
        os.makedirs(mount.path(name, "inner"))
        put(mount.path(name, "a"), SMALL)
    good = os.path.join(backing_of(mount, "good"), ".byokfs.d")
    backing = {name: os.path.join(backing_of(mount, name), ".byokfs.d") for name in IDS}
    mount.umount()
    was = {name: os.readlink(link) for name, link in backing.items()}
    for name, damage in IDS.items():
        damage(backing[name], good)
    r = run(CTL, "check", mount.cipher)
    assert r.code == DAMAGE and r.out.count("damage: ") >= len(IDS) - 2, r
    mount.mount()
    assert os.listdir(mount.path("good")) == ["a"] and get(mount.path("good", "a")) == DATA
    for name in IDS:
        assert err(os.listdir, mount.path(name)) == err(get, mount.path(name, "a")) == errno.EIO, name
        assert err(put, mount.path(name, "new"), b"") == err(os.rename, mount.path("good", "a"), mount.path(name, "a")) == errno.EIO, name
    assert os.listdir(mount.path("good")) == ["a"]
    mount.umount()
    for name, link in backing.items():
        relink(link, was[name])
    mount.mount()
    for name in IDS:
        assert sorted(os.listdir(mount.path(name))) == ["a", "inner"] and get(mount.path(name, "a")) == SMALL


def test_a_directory_copied_within_the_store(mount):
    os.mkdir(mount.path("d"))
    put(mount.path("d", "a"), DATA)
    os.mkdir(mount.path("victim"))
    d, victim = backing_of(mount, "d"), backing_of(mount, "victim")
    mount.umount()
    shutil.rmtree(victim)
    subprocess.run(["cp", "-a", d, victim], check=True)
    r = run(CTL, "check", mount.cipher)
    assert r.code == DAMAGE and "a copy inside the store" in r.out, r
    mount.mount()
    assert get(mount.path("d", "a")) == DATA
    assert err(os.listdir, mount.path("victim")) == errno.EIO
    assert os.listdir(mount.path("d")) == ["a"]


@pytest.mark.sanitizer
def test_size_with_a_hot_cache(mount):
    """The kernel already holds the inode when st_size is altered: after open the size is STATE's, for fstat, read and mmap."""
    for i, size in enumerate((900, SIZE)):
        data = pattern(7, size)
        for change in (1, -1, PAGE, 1 << 40):
            name = mount.path(f"f{i} {change}")
            put(name, data)
            backing = backing_of(mount, os.path.basename(name))
            mount.remount()
            assert os.stat(name).st_size == size
            grow(backing, change)
            os.stat(name)
            fd = os.open(name, os.O_RDWR)
            try:
                assert os.fstat(fd).st_size == size, (size, change)
                assert os.pread(fd, size + 2 * PAGE, 0) == data
                with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m:
                    assert m[:] == data
                os.pwrite(fd, b"end", size)
                os.fsync(fd)
            finally:
                os.close(fd)
            mount.remount()
            assert get(name) == data + b"end" and os.stat(name).st_size == size + 3


def test_symlinks_and_attributes(mount):
    """Their contents are sealed like everything else."""
    os.symlink("target/of/it", mount.path("link"))
    put(mount.path("file"), DATA)
    os.setxattr(mount.path("file"), "user.a", b"value")
    os.setxattr(mount.path("file"), "user.b", b"other")
    link, file = backing_of(mount, "link"), backing_of(mount, "file")
    mount.umount()
    names = [n for n in os.listxattr(file) if n.startswith("user.byokfs.")]
    assert len(names) == 2
    values = [os.getxattr(file, n) for n in names]
    os.setxattr(file, names[0], values[1])
    os.setxattr(file, names[1], values[0])
    os.setxattr(file, "user.byokfs.AAAA", b"planted")
    os.setxattr(file, "user.foreign", b"planted")
    relink(link, alter(os.readlink(link), 20))
    mount.mount()
    assert err(os.readlink, mount.path("link")) == errno.EIO
    assert err(os.getxattr, mount.path("file"), "user.a") == err(os.getxattr, mount.path("file"), "user.b") == errno.EIO
    assert sorted(n for n in os.listxattr(mount.path("file")) if n.startswith("user.")) == ["user.a", "user.b"]
    os.setxattr(mount.path("file"), "user.a", b"anew")
    os.removexattr(mount.path("file"), "user.b")
    assert os.getxattr(mount.path("file"), "user.a") == b"anew" and get(mount.path("file")) == DATA
    os.unlink(mount.path("link"))


def test_unborn_files(mount):
    """Created and never written, by a power cut: EIO until somebody truncates, replaces or removes them."""
    for name in ("truncated", "replaced", "removed", "written"):
        put(mount.path(name), DATA)
    backing = [backing_of(mount, n) for n in ("truncated", "replaced", "removed", "written")]
    mount.umount()
    for i, path in enumerate(backing):
        os.truncate(path, 0 if i % 2 else 1000)
    mount.mount()
    for name in ("truncated", "replaced", "removed", "written"):
        assert os.stat(mount.path(name)).st_size == 0
        assert err(get, mount.path(name)) == errno.EIO
    put(mount.path("truncated"), SMALL)
    put(mount.path("new"), SMALL)
    os.rename(mount.path("new"), mount.path("replaced"))
    os.unlink(mount.path("removed"))
    assert err(os.open, mount.path("written"), os.O_WRONLY) == errno.EIO
    mount.remount()
    assert get(mount.path("truncated")) == get(mount.path("replaced")) == SMALL
    assert sorted(os.listdir(mount.plain)) == ["replaced", "truncated", "written"]


CHECKED = {
    "cut within page 0": "cut off within its header",
    "page 0 random": "not a byokfs file, or its header is damaged",
    "ident, byte 8": "not a byokfs file, or its header is damaged",
    "ident, byte 16": "belongs to another store",
    "ident, byte 32": "belongs to another key domain",
    "both slots zeroed": "no sealed key in its header is intact",
    "slot, byte 64": "no sealed key in its header is intact",
    "both states zeroed": "neither state in its header is plausible",
    "cut by a page": "is shorter",
    "cut to one page": "is shorter",
    "zero pages appended": "is longer",
    "st_size + 1": "is longer",
    "st_size - 1": "is shorter",
}


@pytest.mark.sanitizer
def test_check_finds(mount):
    """What shows without a key, each with its path and a word for it; one finding per file, exit code 7, and JSON that says the same."""
    backing = lay_out(mount, CHECKED)
    os.symlink("somewhere", mount.path("a link"))
    link = backing_of(mount, "a link")
    put(mount.path("l" * 200), SMALL)
    long_name = next(os.path.join(mount.cipher, n) for n in os.listdir(mount.cipher) if n.startswith("L.") and not n.endswith(".n"))
    mount.umount()
    r = run(CTL, "check", mount.cipher)
    assert r.code == 0 and "no damage" in r.out, r
    for name in CHECKED:
        CASES[name][0](backing[name])
    relink(link, "/etc/passwd")
    relink(long_name + ".n", os.readlink(long_name + ".n")[:-4])
    wanted = {os.path.basename(backing[name]): word for name, word in CHECKED.items()}
    wanted[os.path.basename(link)] = "a symlink that byokfs did not write"
    wanted[os.path.basename(long_name)] = "does not belong to it"
    r = run(CTL, "check", mount.cipher)
    assert r.code == DAMAGE, r
    lines = [line for line in r.out.splitlines() if line.startswith("damage: ")]
    found = {line.split(": ")[1].split("/")[-1]: line for line in lines}
    assert set(found) == set(wanted) and len(lines) == len(wanted), r
    for name, word in wanted.items():
        assert word in found[name], (word, found[name])
    answer = json.loads(run(CTL, "check", "--json", mount.cipher).out)
    assert answer["code"] == DAMAGE and answer["damage"] == len(wanted) == len(answer["findings"])
