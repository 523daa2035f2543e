"""`byokfsctl check --repair`: what is lost is said, everything else is as it was, and a second check finds nothing."""
import json
import os
import random
import shutil
import subprocess
import time

import pytest

from conftest import CTL, Mount, environment
from damage import GROUP_0, PAGE, ROOT, SLOT_A, backing_of, data_page, flip, punch, read, replace, states, swap, write, zero
from faults import get, pattern, put
from programs import ALREADY, DAMAGE
from test_disk import Disk
from test_domains import add, new_key, read_all

SIZE = 40000
BIG = 30_000_000
L1_0 = 6425


def check(store, *options, data=True):
    """Exit code and JSON answer."""
    args = ["--data", "-c", store.ini] if data else []
    r = store.ctl("check", "--json", *args, *options, store.cipher)
    return r.returncode, json.loads(r.stdout) if r.stdout else r.stderr


def repair(store, data=True):
    """The same with --repair; then nothing is left to find."""
    code, answer = check(store, "--repair", data=data)
    again, rest = check(store, data=data)
    assert again == 0 and rest["damage"] == 0 and rest["warnings"] == 0, (answer, rest)
    return code, answer


def ranges(answer, plain):
    return [(x["offset"], x["length"]) for a in answer["repair"]["actions"] if a.get("plain") == plain for x in a.get("lost", [])]


def quarantine(store):
    """The lines of the newest index, split; and its directory."""
    top = os.path.join(store.cipher, ".byokfs", "quarantine")
    newest = os.path.join(top, sorted(os.listdir(top))[-1])
    with open(os.path.join(newest, "index")) as f:
        return [line.rstrip("\n").split("\t") for line in f], newest


def page(k):
    return data_page(k) * PAGE


def ends(first, last, size):
    """The last 32 bytes of these pages."""
    return [(k * PAGE + 4064, 32) for k in range(first, last) if k * PAGE + 4096 <= size]


DAMAGES = {
    "data page flipped": ("paged", lambda p: flip(p, page(2) + 2000), [(2 * PAGE, PAGE)]),
    "last data page": ("paged", lambda p: flip(p, page(9) + 9), [(9 * PAGE, SIZE - 9 * PAGE)]),
    "data page zeroed": ("paged", lambda p: zero(p, page(5)), [(5 * PAGE, PAGE)]),
    "data page punched": ("paged", lambda p: punch(p, data_page(6)), [(6 * PAGE, PAGE)]),
    "two exchanged": ("paged", lambda p: swap(p, data_page(1), data_page(7)), [(PAGE, PAGE), (7 * PAGE, PAGE)]),
    "group flipped": ("paged", lambda p: flip(p, GROUP_0 * PAGE + 77), ends(4, 10, SIZE)),
    "group and a page of it": ("paged", lambda p: (zero(p, GROUP_0 * PAGE), flip(p, page(4))), [(4 * PAGE, PAGE)] + ends(5, 10, SIZE)),
    "root flipped": ("paged", lambda p: flip(p, ROOT + 100), ends(0, 4, SIZE)),
    "newest state zeroed": ("paged", lambda p: zero(p, states(p)[0], 512), ends(0, 4, SIZE)),
    "bytes beyond the end": ("paged", lambda p: write(p, os.stat(p).st_size, bytes(3 * PAGE)), []),
    "length one off": ("paged", lambda p: os.truncate(p, os.stat(p).st_size - 1), []),
    "cut to 4 pages": ("paged", lambda p: os.truncate(p, 4 * PAGE), None),
    "cut in the middle": ("big", lambda p: os.truncate(p, page(7000)), [(7000 * PAGE, BIG - 7000 * PAGE)]),
    "L1 page": ("big", lambda p: flip(p, L1_0 * PAGE), []),
    "L1 and a group below": ("big", lambda p: (flip(p, L1_0 * PAGE), flip(p, (L1_0 + 1) * PAGE)), ends(6364, 6470, BIG)),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory, shared_devkms):
    """An unmounted store with two files of two names each; yields it and {name: backing file}."""
    m = Mount(tmp_path_factory.mktemp("two"), shared_devkms).mount()
    put(m.path("paged"), pattern(1, SIZE))
    put(m.path("big"), pattern(2, BIG))
    os.mkdir(m.path("d"))
    for name in ("paged", "big"):
        os.link(m.path(name), m.path("d", name))
        os.setxattr(m.path(name), "user.kept", name.encode())
        os.chmod(m.path(name), 0o640)
        os.utime(m.path(name), (10**9, 10**9))
    where = {name: backing_of(m, name) for name in ("paged", "big")}
    m.umount()
    yield m, where, {"paged": pattern(1, SIZE), "big": pattern(2, BIG)}
    m.close()


@pytest.mark.parametrize("name", DAMAGES)
def test_one_file(two, name):
    """Content before and behind the damage, names, attributes, mode and times stay; the old ciphertext is kept."""
    m, where, content = two
    which, do, expected = DAMAGES[name]
    path, want = where[which], bytearray(content[which])
    size = os.stat(path).st_size
    saved = read(path, 0, size)
    do(path)
    os.utime(path, (10**9, 10**9))
    hurt = read(path, 0, os.stat(path).st_size)
    try:
        repaired_as_promised(m, which, want, hurt, expected, name in ("root flipped", "newest state zeroed"))
    finally:
        os.truncate(path, 0)
        write(path, 0, saved)


def repaired_as_promised(m, which, want, hurt, expected, root_lost):
    code, answer = repair(m)
    lost = ranges(answer, which) or ranges(answer, "d/" + which)
    assert any("its length may be wrong" in a["what"] for a in answer["repair"]["actions"]) == root_lost
    if expected is not None:
        assert lost == expected
    assert code == (DAMAGE if lost else 0), answer
    assert sum(n for _, n in lost) == answer["repair"]["lost_bytes"] + answer["repair"]["doubted_bytes"]
    for at, n in lost:
        want[at:at + n] = bytes(n)
    m.mount("ro")
    try:
        assert get(m.path(which)) == want == get(m.path("d", which))
        st = os.stat(m.path(which))
        assert (st.st_nlink, st.st_mode & 0o777, st.st_mtime, st.st_size) == (2, 0o640, 10**9, len(want))
        assert os.getxattr(m.path("d", which), "user.kept") == which.encode()
    finally:
        m.umount()
    if lost:
        lines, where_to = quarantine(m)
        assert lines[0][1] == "copy" and lines[0][3] in (which, "d/" + which)
        assert [(int(x[3]), int(x[2])) for x in lines[1:]] == lost
        assert read(os.path.join(where_to, "1"), 0, len(hurt) + 1) == hurt


def test_the_second_reader_agrees(make_mount, shared_devkms):
    """Several things at once, in two files; and another implementation reads what is left as this one says."""
    m = make_mount("m", shared_devkms).mount()
    content = {"paged": pattern(1, SIZE), "big": pattern(2, BIG)}
    for name, data in content.items():
        put(m.path(name), data)
    paged, big = backing_of(m, "paged"), backing_of(m, "big")
    m.umount()
    flip(paged, ROOT + 100)
    flip(paged, page(6))
    flip(big, L1_0 * PAGE)
    zero(big, (L1_0 + 1) * PAGE)
    zero(big, GROUP_0 * PAGE)
    flip(big, page(900))
    _, answer = repair(m)
    got = read_all(m)
    for name, data in content.items():
        want = bytearray(data)
        for at, n in ranges(answer, name):
            want[at:at + n] = bytes(n)
        assert got[name][1] == want


def test_what_people_read(two):
    m, where, content = two
    path = where["paged"]
    saved = read(path, 0, os.stat(path).st_size)
    flip(path, page(3))
    r = m.ctl("check", "--data", "--repair", "-c", m.ini, m.cipher)
    assert r.returncode == DAMAGE
    assert "lost 4096 bytes at 12288: data page 3: it does not authenticate" in r.stdout
    assert "1 files repaired" in r.stdout and "4096 bytes lost" in r.stdout and "quarantine: " in r.stdout
    write(path, 0, saved)


def test_a_sparse_file_stays_sparse(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms).mount()
    far = 40 << 30
    with open(m.path("f"), "wb") as f:
        f.write(pattern(1, 3 * PAGE))
        f.seek(far)
        f.write(pattern(2, 3 * PAGE))
        os.fsync(f.fileno())
    path = backing_of(m, "f")
    m.umount()
    fd = os.open(path, os.O_RDONLY)
    first = os.lseek(fd, PAGE * 10_000, os.SEEK_DATA) // PAGE
    os.close(fd)
    zero(path, first * PAGE)  # a node above the far pages
    code, answer = repair(m)
    assert code == DAMAGE
    assert os.stat(path).st_blocks * 512 < 1 << 20
    m.mount()
    with open(m.path("f"), "rb") as f:
        assert f.read(3 * PAGE) == pattern(1, 3 * PAGE)
        f.seek(far)
        got = f.read()
    want = bytearray(pattern(2, 3 * PAGE))
    for at, n in ranges(answer, "f"):
        if at + n > far and n <= PAGE:
            want[at - far:at - far + n] = bytes(n)
    assert got in (want, pattern(2, 3 * PAGE))


def test_what_is_beyond_saving_moves(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms).mount()
    os.mkdir(m.path("d"))
    os.mkdir(m.path("gone"))
    for name in ("a", "b", "c", "e", "h", "fine", "unborn", "d/x", "gone/inside"):
        put(m.path(*name.split("/")), name.encode() * 10)
    os.symlink("target", m.path("link"))
    os.setxattr(m.path("fine"), "user.good", b"1")
    at = {name: backing_of(m, *name.split("/")) for name in ("a", "b", "c", "e", "h", "fine", "unborn", "d/x", "link", "gone")}
    m.umount()
    write(at["a"], 0, os.urandom(PAGE))           # no byokfs file
    os.truncate(at["b"], 100)                     # cut within its header
    zero(at["c"], SLOT_A, 1024)                   # no key
    flip(at["e"], 60)                             # file_id: another identity
    flip(at["h"], ROOT + 20)                      # inline data: all there is
    os.truncate(at["unborn"], 0)
    os.rename(at["d/x"], os.path.join(m.cipher, os.path.basename(at["d/x"])))  # does not decrypt there
    replace(at["link"], lambda p: os.symlink("A" * 60, p))
    os.unlink(os.path.join(at["gone"], ".byokfs.d"))
    os.setxattr(at["fine"], "user.byokfs.AAAA", b"x")
    code, answer = repair(m)
    assert code == DAMAGE
    lines, where = quarantine(m)
    assert len(lines) == answer["repair"]["moved"] + answer["repair"]["attributes"] == 10, lines
    assert sorted(x[1] for x in lines) == ["attribute", "directory", "file", "file", "file", "file", "file", "file", "file", "link"]
    assert {x[3] for x in lines} >= {"a", "b", "c", "e", "h", "unborn", "fine"}
    assert all(os.path.lexists(os.path.join(where, x[0])) for x in lines)
    kept, = (x[0] for x in lines if x[1] == "directory")
    assert len(os.listdir(os.path.join(where, kept))) == 1  # with what was in it
    m.mount()
    assert sorted(os.listdir(m.plain)) == ["d", "fine"] and os.listdir(m.path("d")) == []
    assert get(m.path("fine")) == b"fine" * 10 and os.listxattr(m.path("fine")) == ["user.good"]
    subprocess.run(["rm", "-rf", m.path("d"), m.path("fine")], check=True)
    assert os.listdir(m.plain) == [] and len(os.listdir(where)) == 11


def test_a_directory_copied_inside_the_store(make_mount, shared_devkms):
    """Two with one id: a mount shows the one it meets first only; the repair decides."""
    m = make_mount("m", shared_devkms).mount()
    for name in ("one", "two"):
        os.mkdir(m.path(name))
    put(m.path("one", "f"), b"content")
    one, two = backing_of(m, "one"), backing_of(m, "two")
    m.umount()
    shutil.rmtree(two)
    shutil.copytree(one, two, symlinks=True)
    assert check(m)[0] == DAMAGE
    code, answer = repair(m)
    assert code == DAMAGE and answer["repair"]["moved"] == 1
    m.mount()
    left, = os.listdir(m.plain)
    assert get(m.path(left, "f")) == b"content"


def test_litter_goes_and_nothing_is_lost(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms).mount()
    put(m.path("n" * 230), b"long")
    put(m.path("paged"), pattern(1, SIZE))
    long_name, paged = backing_of(m, "n" * 230), backing_of(m, "paged")
    m.umount()
    meta = os.path.join(m.cipher, ".byokfs")
    put(os.path.join(m.cipher, ".byokfs.tmp.0011223344556677"), b"x")
    os.mkdir(os.path.join(m.cipher, ".byokfs.del.0011223344556677"))
    os.symlink("x", os.path.join(m.cipher, ".byokfs.del.0011223344556677", ".byokfs.d"))
    os.rename(long_name + ".n", os.path.join(m.cipher, "L.RVW1fnFwssevtsRHUyk91cfStWyxEvwY.n"))
    os.symlink(os.readlink(os.path.join(m.cipher, "L.RVW1fnFwssevtsRHUyk91cfStWyxEvwY.n")), long_name + ".n")
    put(os.path.join(meta, "domains", "ab" * 16), b"a stray descriptor")
    put(os.path.join(meta, "domains", ".byokfs.tmp.0011223344556677"), b"x")
    put(os.path.join(m.cipher, "README"), b"somebody's")
    os.unlink(os.path.join(meta, "store~"))
    os.truncate(paged, os.stat(paged).st_size - 3)
    assert check(m, data=False)[0] == DAMAGE  # the length
    code, answer = repair(m, data=False)
    assert code == 0, answer
    done = answer["repair"]
    assert (done["removed"], done["moved"], done["copies"], done["lengths"], done["failed"]) == (4, 2, 1, 1, 0), done
    lines, _ = quarantine(m)
    assert sorted(x[2] for x in lines) == [".byokfs/domains/" + "ab" * 16, "./README"] or len(lines) == 2
    m.mount()
    assert sorted(os.listdir(m.plain)) == ["n" * 230, "paged"] and get(m.path("n" * 230)) == b"long"
    assert get(m.path("paged")) == pattern(1, SIZE)


def test_only_what_is_not_in_use(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms).mount()
    put(m.path("f"), b"1")
    r = m.ctl("check", "--repair", m.cipher)
    assert r.returncode == ALREADY and "byokfsctl: hint: " in r.stderr, r
    m.kill()
    m.clear_dead()
    assert check(m)[1]["warnings"] == 1  # the marker of the mount that died
    assert repair(m)[0] == 0
    assert os.listdir(os.path.join(m.cipher, ".byokfs", "mounts")) == []


def test_a_domain_that_does_not_open_is_left_alone(make_mount, devkms):
    m = make_mount("m", devkms).mount()
    key = new_key(devkms)
    add(m, "inner", key)
    put(m.path("inner", "f"), pattern(1, SIZE))
    put(m.path("g"), pattern(2, SIZE))
    inner, outer = backing_of(m, "inner", "f"), backing_of(m, "g")
    m.umount()
    flip(inner, page(2))
    flip(outer, page(2))
    devkms.disable(key)
    saved = read(inner, 0, os.stat(inner).st_size)
    code, answer = check(m, "--repair")
    assert code == DAMAGE and answer["repair"]["repaired"] == 1 and answer["data"]["unchecked"] == 1
    assert read(inner, 0, len(saved) + 1) == saved
    devkms.enable(key)
    code, answer = repair(m)
    assert code == DAMAGE and ranges(answer, "inner/f") == [(2 * PAGE, PAGE)]


def test_killed_and_run_again(make_mount, shared_devkms):
    """Whenever it is killed, the next repair brings everything to the same end."""
    m = make_mount("m", shared_devkms).mount()
    names = [f"f{i}" for i in range(40)]
    for i, name in enumerate(names):
        put(m.path(name), pattern(i, SIZE))
    where = [backing_of(m, name) for name in names]
    m.umount()
    for path in where:
        flip(path, page(2))
        flip(path, GROUP_0 * PAGE + 9)
    rng = random.Random(5)
    for _ in range(4):
        p = subprocess.Popen([CTL, "check", "--data", "--repair", "-c", m.ini, m.cipher], env=environment(), stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        time.sleep(0.05 + rng.random() * 0.2)
        p.kill()
        p.wait()
    repair(m)
    m.mount()
    for i, name in enumerate(names):
        want = bytearray(pattern(i, SIZE))
        for at, n in [(2 * PAGE, PAGE), *ends(4, 10, SIZE)]:
            want[at:at + n] = bytes(n)
        assert get(m.path(name)) == want, name
    copies = 0
    top = os.path.join(m.cipher, ".byokfs", "quarantine")
    for run in os.listdir(top):
        with open(os.path.join(top, run, "index")) as f:
            copies += sum("\tcopy\t" in line for line in f)
    assert copies >= len(names)


def test_no_room_for_the_copy(tmp_path, shared_devkms):
    """Then nothing is changed, half a copy does not stay, and it is repaired when there is room."""
    disk = Disk(tmp_path, "tmpfs", 16)
    m = Mount(tmp_path, shared_devkms)
    try:
        m.mount()
        put(m.path("f"), pattern(7, 4_000_000))
        path = backing_of(m, "f")
        m.umount()
        flip(path, page(300))
        hurt = read(path, 0, 8_000_000)
        disk.fill(leave=2 << 20)
        r = m.ctl("check", "--data", "--repair", "-c", m.ini, m.cipher)
        assert r.returncode == DAMAGE and "cannot be repaired: No space left on device" in r.stderr, r
        assert read(path, 0, 8_000_000) == hurt
        assert os.listdir(quarantine(m)[1]) == ["index"]
        disk.free()
        assert ranges(repair(m)[1], "f") == [(300 * PAGE, PAGE)]
    finally:
        m.close()
        disk.close()
