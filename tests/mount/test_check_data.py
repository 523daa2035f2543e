"""`byokfsctl check --data`: what it says of a sound store, of one damaged in one place, and of one that is in use."""
import contextlib
import json
import os
import stat
import threading

import pytest

from damage import GROUP_0, PAGE, ROOT, backing_of, data_page, flip, punch, read, replace, states, swap, write, zero
from faults import pattern, put
from programs import CONFIG, DAMAGE, DENIED, UNREACHABLE
from rotation import backing_files, key_hash, killed_after, with_key
from test_domains import add, new_key

SIZE = 40000
BIG = 30_000_000
FAR = 40 << 30  # below an L1 page
L1_0, L1_STEP = 6425, 71905


def check(store, *options, ini=True):
    """Exit code and JSON answer."""
    args = ["-c", store.ini] if ini else []
    r = store.ctl("check", "--data", "--json", *args, *options, store.cipher)
    return r.returncode, json.loads(r.stdout) if r.stdout else r.stderr


def units(answer):
    return [(f["plain"], f["unit"], f["offset"], f["length"]) for f in answer["findings"] if "unit" in f]


def some_of_everything(m):
    long_name = "n" * 230
    os.mkdir(m.path("d"))
    os.mkdir(m.path("d", long_name))
    put(m.path("d", "small"), b"small")
    put(m.path("d", "paged"), pattern(1, SIZE))
    put(m.path("d", long_name, "deep"), b"deep")
    put(m.path("big"), pattern(2, BIG))
    os.link(m.path("big"), m.path("d", "second name"))
    os.symlink("../big", m.path("d", "link"))
    os.mkfifo(m.path("d", "fifo"))
    os.setxattr(m.path("d", "small"), "user.a", b"1")
    os.setxattr(m.path("d"), "user.b", bytes(2000))
    with open(m.path("sparse"), "wb") as f:
        f.truncate(FAR + PAGE)
        f.seek(FAR)
        f.write(pattern(3, PAGE))
        os.fsync(f.fileno())


@pytest.mark.parametrize("init", [(), ("--seal=domain",), ("--plain-names",)])
@pytest.mark.sanitizer
def test_a_sound_store(make_mount, shared_devkms, init):
    m = make_mount("m", shared_devkms, init=init).mount()
    some_of_everything(m)
    m.umount()
    code, answer = check(m)
    assert code == 0 and answer["damage"] == 0 and answer["warnings"] == 0, answer
    assert answer["data"]["files"] == 6 and answer["data"]["unchecked"] == 0 and answer["data"]["busy"] == 0
    assert answer["data"]["bytes"] > 2 * BIG  # by two names
    text = m.ctl("check", "--data", "--jobs", "2", "-c", m.ini, m.cipher)
    assert text.returncode == 0 and "no damage" in text.stdout and "authenticated 6 files" in text.stdout


@pytest.fixture(scope="module")
def three(tmp_path_factory, shared_devkms):
    """An unmounted store with three files; yields it and {name: backing file}."""
    from conftest import Mount
    m = Mount(tmp_path_factory.mktemp("three"), shared_devkms).mount()
    put(m.path("paged"), pattern(1, SIZE))
    put(m.path("big"), pattern(2, BIG))
    put(m.path("inline"), b"inline")
    with open(m.path("sparse"), "wb") as f:
        f.seek(FAR)
        f.write(pattern(3, 2 * PAGE))
        os.fsync(f.fileno())
    where = {name: backing_of(m, name) for name in ("paged", "big", "inline", "sparse")}
    m.umount()
    yield m, where
    m.close()


def page(k):
    return data_page(k) * PAGE


# The far page: data page k lies below group g, that below L1 page i.
FAR_K = FAR // PAGE
FAR_G = (FAR_K - 4) // 106
FAR_I = (FAR_G - 60) // 672
FAR_L1 = L1_0 + L1_STEP * FAR_I if FAR_I < 60 else None
G0 = ("group page 0", 4 * PAGE, SIZE - 4 * PAGE)

DAMAGES = {
    "data page flipped": ("paged", lambda p: flip(p, page(2) + 2000), [("data page 2", 2 * PAGE, PAGE)]),
    "last data page": ("paged", lambda p: flip(p, page(9) + 9), [("data page 9", 9 * PAGE, SIZE - 9 * PAGE)]),
    "data page zeroed": ("paged", lambda p: zero(p, page(5)), [("data page 5", 5 * PAGE, PAGE)]),
    "data page punched": ("paged", lambda p: punch(p, data_page(6)), [("data page 6", 6 * PAGE, PAGE)]),
    "two exchanged": ("paged", lambda p: swap(p, data_page(1), data_page(7)),
                      [("data page 1", PAGE, PAGE), ("data page 7", 7 * PAGE, PAGE)]),
    "group flipped": ("paged", lambda p: flip(p, GROUP_0 * PAGE + 77), [G0]),
    "group zeroed": ("paged", lambda p: zero(p, GROUP_0 * PAGE), [G0]),
    "root flipped": ("paged", lambda p: flip(p, ROOT + 100), [("page 0", 0, SIZE)]),
    "newest state zeroed": ("paged", lambda p: zero(p, states(p)[0], 512), None),
    "inline data": ("inline", lambda p: flip(p, ROOT + 17), [("page 0", 0, 6)]),
    "cut in the middle": ("big", lambda p: os.truncate(p, page(7000) + 100), None),
    "L1 of a dense file": ("big", lambda p: flip(p, L1_0 * PAGE), [("L1 page 0", 6364 * PAGE, BIG - 6364 * PAGE)]),
    "group of a dense file": ("big", lambda p: flip(p, (GROUP_0 + 107 * 30) * PAGE), [("group page 30", (4 + 106 * 30) * PAGE, 106 * PAGE)]),
    "the last bytes of pages": ("big", lambda p: flip(p, (GROUP_0 + 107) * PAGE + 10), [("group page 1", 110 * PAGE, 106 * PAGE)]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_place_damaged(three, name):
    m, where = three
    which, do, expected = DAMAGES[name]
    size = os.stat(where[which]).st_size
    saved = read(where[which], 0, size)
    try:
        do(where[which])
        code, answer = check(m)
    finally:
        write(where[which], 0, saved)
        os.truncate(where[which], size)
    assert code == DAMAGE, answer
    found = units(answer)
    assert {f[0] for f in found} == {which}
    if expected is not None:
        assert [f[1:] for f in found] == expected
    assert check(m)[0] == 0


def test_nodes_above_a_far_page(three):
    """The bytes named are those of the whole subtree within the file; the page's own neighbours are holes."""
    m, where = three
    path = where["sparse"]
    backed = os.open(path, os.O_RDONLY)
    pages, at = [], PAGE
    while True:
        try:
            at = os.lseek(backed, at, os.SEEK_DATA)
        except OSError:
            break
        pages += range(at // PAGE, os.lseek(backed, at, os.SEEK_HOLE) // PAGE)
        at = os.lseek(backed, at, os.SEEK_HOLE)
    os.close(backed)
    seen = set()
    for p in pages:
        if read(path, p * PAGE, PAGE) == bytes(PAGE):
            continue
        flip(path, p * PAGE + 300)
        code, answer = check(m)
        flip(path, p * PAGE + 300)
        assert code == DAMAGE
        (_, unit, offset, length), = units(answer)
        assert length > 0 and offset <= FAR + PAGE and offset + length >= FAR + PAGE, answer
        seen.add(unit.split()[0])
    assert {"data", "group", "L2"} <= seen | {"L2"} and "L1" in seen, seen
    assert check(m)[0] == 0


def test_names_links_attributes_directories(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms).mount()
    some_of_everything(m)
    big, deep, link, small = (backing_of(m, *n) for n in (["big"], ["d", "paged"], ["d", "link"], ["d", "small"]))
    directory = backing_of(m, "d", "n" * 230)
    m.umount()

    def one(undo, what):
        code, answer = check(m)
        assert code == DAMAGE and any(what in f["what"] for f in answer["findings"] if f["severity"] == "damage"), answer
        undo()
        assert check(m)[0] == 0

    moved = os.path.join(os.path.dirname(deep), "..", os.path.basename(deep))
    os.rename(deep, moved)
    one(lambda: os.rename(moved, deep), "does not decrypt")
    text = os.readlink(link)
    replace(link, lambda p: os.symlink(text[:-4] + ("AAAA" if text[-4:] != "AAAA" else "BBBB"), p))
    one(lambda: replace(link, lambda p: os.symlink(text, p)), "target of the symlink")
    dirid = os.path.join(directory, ".byokfs.d")
    told = os.readlink(dirid)
    replace(dirid, lambda p: os.symlink(told[:10] + ("A" if told[10] != "A" else "B") + told[11:], p))
    one(lambda: replace(dirid, lambda p: os.symlink(told, p)), "does not authenticate")
    name, = (x for x in os.listxattr(small) if x.startswith("user.byokfs."))
    value = os.getxattr(small, name)
    os.setxattr(small, name, value[:-1] + bytes([value[-1] ^ 1]))
    one(lambda: os.setxattr(small, name, value), "('user.a'): its value does not authenticate")
    os.setxattr(big, name, value)  # another file's
    one(lambda: os.removexattr(big, name), "its name does not decrypt")


def test_slots_and_identities(three):
    m, where = three
    path = where["inline"]
    saved = read(path, 0, PAGE)
    other = read(where["paged"], 512, 1024)
    for at, data, what in ((512, other, "sealed key"), (500, b"\x11", "key is not this file's")):
        write(path, at, data)
        code, answer = check(m)
        write(path, 0, saved)
        assert code == DAMAGE and what in json.dumps(answer["findings"]), answer


def test_keys_that_do_not_open(make_mount, devkms):
    m = make_mount("m", devkms).mount()
    put(m.path("outside"), pattern(1, SIZE))
    key = new_key(devkms)
    add(m, "inner", key)
    put(m.path("inner", "inside"), pattern(2, SIZE))
    inside, outside = backing_of(m, "inner", "inside"), backing_of(m, "outside")
    m.umount()
    code, answer = check(m)
    assert code == 0 and answer["data"]["files"] == 2, answer
    devkms.disable(key)
    flip(inside, page(2))
    code, answer = check(m)
    assert code == DENIED and answer["damage"] == 0 and "key domain 1 does not open" in json.dumps(answer), answer
    assert answer["data"]["files"] == 1 and answer["data"]["unchecked"] == 1
    flip(outside, page(2))
    code, answer = check(m)  # damage is worse
    assert code == DAMAGE and units(answer) == [("outside", "data page 2", 2 * PAGE, PAGE)]
    flip(outside, page(2))
    devkms.disable()
    assert check(m)[0] == DENIED
    devkms.stop()
    code, said = check(m)
    assert code == UNREACHABLE and "byokfsctl: error: " in said
    assert m.ctl("check", "--json", m.cipher).returncode == 0  # without keys it needs nobody
    assert check(m, "-o", "kms.provider=none")[0] == CONFIG


def test_a_domain_without_a_directory(make_mount, devkms):
    m = make_mount("m", devkms).mount()
    add(m, "inner", new_key(devkms))
    os.rmdir(m.path("inner"))
    m.umount()
    for options in ((), ("--data", "-c", m.ini)):
        r = m.ctl("check", *options, m.cipher)
        assert r.returncode == 0 and "key domain 1 has no directory" in r.stdout, r


def test_files_whose_keys_are_denied_meanwhile(make_mount, devkms):
    """The domain opened, then the KMS said no: files are not checked, which is no damage."""
    m = make_mount("m", devkms).mount()
    for i in range(20):
        put(m.path(str(i)), b"x" * 5000)
    m.umount()
    devkms.fault(error_type="DisabledException", error_status=400, use="file", operations=["Decrypt"])
    code, answer = check(m, "--jobs", "1")
    devkms.clear()
    assert code == DENIED and answer["damage"] == 0 and answer["data"]["unchecked"] == 20, answer
    assert json.dumps(answer).count("not checked") == 1  # one line for all of them
    assert check(m)[0] == 0


def test_a_rotation_is_under_way(make_mount, devkms):
    """Files are under either key: what is configured is asked, what is not is not checked, and no damage."""
    m, k1, k2 = make_mount("m", devkms).mount(), devkms.key, new_key(devkms)
    for i in range(12):
        put(m.path(str(i)), b"x" * 5000)
    m.umount()
    killed_after(m, devkms, 2 + 6, "--to", k2, "--jobs", "1")
    backing = {f.ruling.key: f.path for f in backing_files(m.cipher)}
    assert set(backing) == {key_hash(k1), key_hash(k2)}
    for key, previous in ((k1, k2), (k2, k1), (k1, None)):  # the new ones have kept their old slot
        with_key(m, key, previous)
        code, answer = check(m)
        assert code == 0 and answer["damage"] == 0 and answer["data"]["unchecked"] == 0, (key, previous, answer)
    with_key(m, k2)
    code, answer = check(m)
    assert code == CONFIG and answer["damage"] == 0 and answer["data"]["unchecked"] == 6, answer
    assert json.dumps(answer).count("not checked") == 1 and "set 'previous'" in json.dumps(answer), answer
    with_key(m, k2, k1)
    devkms.disable(k1)
    code, answer = check(m)
    assert code == DENIED and answer["damage"] == 0 and answer["data"]["unchecked"] == 6, answer
    flip(backing[key_hash(k2)], PAGE + 9)
    assert check(m)[0] == DAMAGE


def test_in_use_is_no_damage(make_mount, shared_devkms):
    """Writers, truncations, renames, punched holes: nothing of it looks like damage."""
    m = make_mount("m", shared_devkms).mount()
    put(m.path("still"), pattern(1, SIZE))
    stop = threading.Event()

    def writer(n):
        i = 0
        while not stop.is_set():
            i += 1
            with open(m.path(f"w{n}-{i % 5}"), "r+b" if i > 5 else "wb") as f:
                f.write(pattern(i, 300_000))
                f.truncate(100_000 + 7 * i % 200_000)
                if i % 3 == 0:
                    os.fsync(f.fileno())
            os.rename(m.path(f"w{n}-{i % 5}"), m.path(f"w{n}-x"))
            os.rename(m.path(f"w{n}-x"), m.path(f"w{n}-{i % 5}"))

    threads = [threading.Thread(target=writer, args=(n,)) for n in range(2)]
    for t in threads:
        t.start()
    try:
        answers = [check(m) for _ in range(4)]
    finally:
        stop.set()
        for t in threads:
            t.join()
    for code, answer in answers:
        assert code == 0 and answer["damage"] == 0 and answer["mounted"], answer
    assert any(a["data"]["files"] > 1 for _, a in answers)


def test_damage_of_a_live_store_is_found(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms).mount()
    put(m.path("f"), pattern(1, SIZE))
    m.remount()
    path = backing_of(m, "f")
    flip(path, page(3) + 5)
    code, answer = check(m)
    assert code == DAMAGE and units(answer) == [("f", "data page 3", 3 * PAGE, PAGE)], answer


def test_after_a_kill_nothing_is_damaged(make_mount, shared_devkms):
    m = make_mount("m", shared_devkms).mount()
    some_of_everything(m)
    fd = os.open(m.path("d", "paged"), os.O_RDWR)
    os.pwrite(fd, pattern(9, 20000), 100)
    m.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    m.clear_dead()
    code, answer = check(m)
    assert code == 0 and answer["damage"] == 0, answer


def test_wrong_use(three):
    m, _ = three
    assert m.ctl("check", "--jobs", "0", m.cipher).returncode == 2
    assert m.ctl("check", "--jobs", "x", m.cipher).returncode == 2
    assert m.ctl("check", "--date", m.cipher).returncode == 2
    assert stat.S_ISDIR(os.stat(m.cipher).st_mode)
