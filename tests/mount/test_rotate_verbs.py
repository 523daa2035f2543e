"""The daemon's side of a rotation, driven over its control socket: keys change under a live mount, and nobody notices."""
import base64
import errno
import hashlib
import json
import os
import socket
import threading

import pytest

from conftest import AK, SK, wait_until
from damage import backing_of
from faults import err, get, pattern, put
from posix_tools import renameat2
from rotator import Descriptor, Rotator, View, call, call_fds, key_hash, make_slot, reader
from test_audit import Audited

FRESH = "cache.max_age=1s"


def new_key(devkms):
    return devkms.client.create_key(Description="the next one")["KeyMetadata"]["Arn"]


@pytest.fixture
def second(devkms):
    return new_key(devkms)


def set_keys(mount, key, previous=None):
    """What the administrator writes into the ini."""
    with open(mount.ini) as f:
        lines = [line for line in f if not line.startswith(("key =", "previous ="))]
    lines.insert(lines.index("[kms]\n") + 1, f"key = {key}\n" + (f"previous = {previous}\n" if previous else ""))
    with open(mount.ini, "w") as f:
        f.writelines(lines)


def descriptors(mount):
    base = os.path.join(mount.cipher, ".byokfs", "domains")
    return {name: open(os.path.join(base, name), "rb").read() for name in sorted(os.listdir(base))}


def checked(mount):
    r = mount.ctl("check", "--json", mount.cipher)
    return r.returncode, r.stdout + r.stderr


def read_all(mount):
    """Every file as the second implementation reads it."""
    os.environ.update(AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, AWS_DEFAULT_REGION="us-east-1")
    store = reader.Store(mount.cipher, reader.aws_unseal(mount.kms.endpoint))
    out = {}
    for node in store.walk():
        if node.kind == "f":
            with store.open(node) as f:
                out[os.fsdecode(node.path)] = f.read()
    return out


def tree(mount):
    """Files of several shapes; {name: content}."""
    want = {"small": b"inline", "pages": pattern(1, 300_000), "empty": b"", "d/deep": pattern(2, 9000)}
    os.mkdir(mount.path("d"))
    for name, data in want.items():
        put(mount.path(name), data)
    os.link(mount.path("small"), mount.path("d", "link"))
    return want


# ---- all of it

@pytest.mark.sanitizer
def test_rotation_of_a_live_mount(make_mount, devkms, second):
    m = make_mount("m", devkms, options=[FRESH]).mount()
    want = tree(m)
    m.remount()
    fd = os.open(m.path("pages"), os.O_RDWR)
    os.pwrite(fd, b"before", 0)
    times = {name: os.stat(backing_of(m, *name.split("/"))).st_mtime_ns for name in ("small", "d/deep")}
    r = Rotator(m, devkms, second)
    before = r.domain()
    assert before["ruling"]["key"] == devkms.key and before["ruling"]["provider"] == "aws" and before["other"] is None
    answer = r.begin()
    assert answer["code"] == 0 and answer["message"] == "begun" and answer["generation"] == 1, answer
    state = r.domain()
    assert (state["ruling"]["key"], state["other"]["key"]) == (second, devkms.key)
    assert state["seq"] == answer["seq"] == before["seq"] + 1 and state["ruling"]["material"] == "11" * 32
    d = Descriptor(m, r.id)
    assert d.twins and d.seq == state["seq"] and [s["key"] for s in d.slots] == [second, devkms.key]
    put(m.path("made"), b"meanwhile")
    assert View(backing_of(m, "made")).ruling.key_hash == key_hash(second)
    os.pwrite(fd, b"during", 6)
    assert r.reseal_all() == 4
    assert View(backing_of(m, "d", "link")).ruling.seq == 2
    os.pwrite(fd, b"after.", 12)
    os.fsync(fd)
    assert View(backing_of(m, "pages")).ruling.key_hash == key_hash(second)
    r.clear_all()
    answer = r.finish()
    assert answer["code"] == 0, answer
    d = Descriptor(m, r.id)
    assert d.twins and len(d.slots) == 1 and d.slots[0]["key"] == second and d.of["rotated"] != "-" and d.seq == answer["seq"]
    assert r.finish()["code"] == 9
    for name, mtime in times.items():
        assert os.stat(backing_of(m, *name.split("/"))).st_mtime_ns == mtime
    # the first key is not asked any more, however long it takes
    devkms.disable()
    start = m.status()["counters"]["unwraps"]

    def renewed():
        os.pwrite(fd, b"before", 0)
        os.fsync(fd)
        return m.status()["counters"]["unwraps"] > start + 1

    wait_until(renewed)
    want["pages"] = b"beforeduringafter." + want["pages"][18:]
    want["made"] = b"meanwhile"
    put(m.path("later"), b"later")
    want["later"] = b"later"
    for name, data in want.items():
        assert get(m.path(*name.split("/"))) == data, name
    assert os.pread(fd, 18, 0) == b"beforeduringafter." and m.state() == "open"
    os.close(fd)
    assert "rotation begun: domain" in m.read_log() and "rotation finished: domain" in m.read_log()
    assert f"from '{devkms.key}' to '{second}'" in m.read_log()
    set_keys(m, second)
    m.remount()
    for name, data in want.items():
        assert get(m.path(*name.split("/"))) == data, name
    m.umount()
    seen = read_all(m)
    assert {n: seen[n] for n in want} == want
    code, text = checked(m)
    assert code == 0, text


# ---- begin

def refused(r, code, words, **more):
    before = descriptors(r.mount), r.domain()
    answer = r.begin(**more)
    assert answer["code"] == code and words in answer["message"], answer
    assert (descriptors(r.mount), r.domain()) == before


def test_begin_refuses(mount, devkms, second):
    put(mount.path("f"), b"x")
    r = Rotator(mount, devkms, second)
    good = r.new_slot()
    refused(r, 9, "changed meanwhile", slot=good, seq=99)
    # another secret under the very context
    other = devkms.client.generate_data_key(KeyId=second, EncryptionContext=r.context("domain"), NumberOfBytes=32)
    refused(r, 1, "", slot={**good, "blob": base64.b64encode(other["CiphertextBlob"]).decode()})
    refused(r, 1, "", slot={**good, "blob": good["probe"]})
    refused(r, 1, "", slot={**good, "probe": good["blob"]})
    refused(r, 1, "", slot={**good, "blob": "QUJD"})
    devkms.client.create_alias(AliasName="alias/next", TargetKeyId=second)
    refused(r, 3, "alias/next", slot={**good, "key": "alias/next"})
    refused(r, 3, "", slot={**good, "key": "no key at all"})
    absent = second[:-4] + ("0000" if not second.endswith("0000") else "1111")
    assert r.begin(slot={**good, "key": absent})["code"] in (3, 5)
    devkms.disable(second)
    refused(r, 5, "Disabled", slot=good)
    devkms.enable(second)
    devkms.fault(operations=["GenerateDataKey"], error_type="AccessDeniedException")
    refused(r, 5, "needs kms:Decrypt and kms:GenerateDataKey", slot=good) # it could read, but make no file
    devkms.clear()
    for malformed in ({}, {"slot": 1}, {"slot": {**good, "provider": "x"}}, {"slot": good, "seq": "1"},
                      {"slot": good, "seq": 1, "context": "aws:x"}):
        assert call(mount, verb="rotate-begin", domain=r.id, **malformed)["code"] == 2
    assert call(mount, verb="rotate-begin", domain="00" * 16, seq=1, slot=good)["code"] == 8
    assert call(mount, verb="rotate-finish", domain=r.id, seq=1)["code"] == 9
    assert call(mount, verb="rotate-finish", domain=r.id)["code"] == 2
    assert call(mount, verb="rotate-result", job=77)["code"] == 1
    assert call(mount, verb="rotate-nothing")["code"] == 2
    # locked: the host cannot prove anything now
    assert mount.ctl("lock", mount.plain).returncode == 0
    refused(r, 1, "locked", slot=good)
    assert mount.ctl("unlock", mount.plain).returncode == 0
    assert r.begin(slot=good)["code"] == 0
    # under way: no third key, nor another slot; the very one that rules says that the rotation goes on
    third = Rotator(mount, devkms, new_key(devkms))
    refused(third, 9, "under way", slot={**good, "key": third.to})
    refused(r, 9, "begun already", slot=r.new_slot())
    before = descriptors(mount)
    assert r.begin(slot=good)["code"] == 0 and descriptors(mount) == before
    assert get(mount.path("f")) == b"x" and mount.state() == "open"


def test_begin_without_rights(make_mount, devkms, second):
    m = make_mount("m", devkms, probe="30s", lease="60s").mount()
    r = Rotator(m, devkms, second)
    good = r.new_slot()
    devkms.fault(operations=["Decrypt"], error_type="AccessDeniedException")
    refused(r, 5, "needs kms:Decrypt and kms:GenerateDataKey", slot=good)
    devkms.clear()
    assert m.state() == "open" and r.begin(slot=good)["code"] == 0


def test_readonly(mount, devkms, second):
    put(mount.path("f"), b"x")
    backing = backing_of(mount, "f")
    r = Rotator(mount, devkms, second)
    good, item = r.new_slot(), r.item(backing)
    mount.remount("ro")
    assert call(mount, verb="rotate-state")["readonly"] is True
    refused(r, 1, "read-only", slot=good)
    assert call(mount, verb="rotate-slots", domain=r.id, slots=[item])["code"] == 1
    assert r.finish()["code"] == 1


def test_turning_round(mount, devkms, second):
    want = tree(mount)
    there = Rotator(mount, devkms, second)
    assert there.begin()["code"] == 0
    for path in there.todo()[:2]:
        assert there.slots(there.item(path, there.resealed(path))) == ["ok"]
    put(mount.path("made"), b"under the second")
    back = Rotator(mount, devkms, devkms.key)
    assert back.begin()["code"] == 0
    state = back.domain()
    assert (state["ruling"]["key"], state["other"]["key"]) == (devkms.key, second)
    assert back.reseal_all() == 3
    back.clear_all()
    assert back.finish()["code"] == 0
    devkms.disable(second)
    mount.remount()
    for name, data in {**want, "made": b"under the second"}.items():
        assert get(mount.path(*name.split("/"))) == data


def test_new_context_pairs(mount, devkms, second):
    put(mount.path("f"), b"x" * 5000)
    r = Rotator(mount, devkms, second)
    pairs = {"team": "radiology"}
    answer = r.begin(slot=r.new_slot(target=pairs), context="team:radiology")
    assert answer["code"] == 0 and answer["generation"] == 2, answer
    wrong = make_slot(second, b"blob", generation=3)
    assert "generation" in r.slots(r.item(backing_of(mount, "f"), wrong))[0]
    assert r.reseal_all(target=pairs) == 1
    put(mount.path("g"), b"made with them")
    assert View(backing_of(mount, "g")).ruling.generation == 2
    r.clear_all()
    assert r.finish()["code"] == 0
    set_keys(mount, second)
    mount.remount()
    assert get(mount.path("f")) == b"x" * 5000 and get(mount.path("g")) == b"made with them"


def test_domain_sealed_files(make_mount, devkms, second):
    m = make_mount("m", devkms, init=("--seal=domain",), options=[FRESH]).mount()
    want = tree(m)
    r = Rotator(m, devkms, second)
    assert r.todo() == []
    assert r.all() == 0
    devkms.disable()
    set_keys(m, second)
    m.remount()
    for name, data in want.items():
        assert get(m.path(*name.split("/"))) == data


def test_nested_domain(mount, devkms, second):
    own = new_key(devkms)
    put(mount.path("outside"), b"outside")
    os.mkdir(mount.path("vault"))
    assert mount.ctl("domain", "add", mount.path("vault"), "--key", own).returncode == 0
    put(mount.path("vault", "f"), b"inside" * 1000)
    outer, inner = Rotator(mount, devkms, second), Rotator(mount, devkms, second, index=1)
    inside = backing_of(mount, "vault", "f")
    before = Descriptor(mount, outer.id).seq
    assert inner.begin()["code"] == 0
    assert inner.domain()["ruling"]["key"] == second and outer.domain()["ruling"]["key"] == devkms.key
    assert Descriptor(mount, outer.id).seq == before
    # in the name of the wrong domain
    slot = inner.resealed(inside)
    assert "not under the domain's key" in outer.slots(outer.item(inside, slot))[0]
    assert "another key domain" in outer.slots(outer.item(inside))[0]
    assert inner.slots(inner.item(inside, slot)) == ["ok"]
    inner.clear_all()
    assert inner.finish()["code"] == 0
    devkms.disable(own)
    mount.remount()
    wait_until(lambda: err(os.stat, mount.path("vault", "f")) == 0)
    assert get(mount.path("vault", "f")) == b"inside" * 1000 and get(mount.path("outside")) == b"outside"


# ---- slots

def test_slots_of_files_in_every_state(mount, devkms, second):
    names = ("never", "open", "closed", "renamed", "removed", "kept")
    for name in names:
        put(mount.path(name), name.encode() * 700)
    mount.remount()
    fd = os.open(mount.path("open"), os.O_RDWR)
    kept = os.open(mount.path("kept"), os.O_RDONLY)
    assert get(mount.path("closed")) == b"closed" * 700
    r = Rotator(mount, devkms, second)
    assert r.begin()["code"] == 0
    paths = {name: backing_of(mount, name) for name in names}
    items = {name: r.item(paths[name], r.resealed(paths[name])) for name in names}
    os.mkdir(mount.path("d"))
    os.rename(mount.path("renamed"), mount.path("d", "renamed"))
    os.unlink(mount.path("removed"))
    os.unlink(mount.path("kept"))
    os.pwrite(fd, b"OPEN", 0)
    assert r.slots(*items.values()) == ["ok", "ok", "ok", "gone", "gone", "gone"]
    assert r.slots(items["open"]) == ["changed"] # once is enough
    moved = backing_of(mount, "d", "renamed")
    assert r.slots(r.item(moved, r.resealed(moved))) == ["ok"]
    # an unlinked file is open still, and of no use to anybody after
    assert os.pread(kept, 4, 0) == b"kept"
    os.pwrite(fd, b"!", 4 * 700 - 1)
    os.fsync(fd)
    assert View(paths["open"]).ruling.key_hash == key_hash(second) and View(paths["open"]).ruling.seq == 2
    os.close(fd)
    os.close(kept)
    put(mount.path("never"), b"written anew")
    assert View(backing_of(mount, "never")).ruling.key_hash == key_hash(second)
    r.clear_all()
    assert r.todo() == [] and r.finish()["code"] == 0
    set_keys(mount, second)
    mount.remount()
    assert get(mount.path("open")) == b"OPEN" + (b"open" * 700)[4:-1] + b"!"
    assert get(mount.path("never")) == b"written anew" and get(mount.path("closed")) == b"closed" * 700
    assert get(mount.path("d", "renamed")) == b"renamed" * 700


def test_slot_of_a_file_opened_meanwhile(mount, devkms, second):
    """Opened after it was looked at, before its slot comes; and by others all the while."""
    put(mount.path("f"), b"old" * 2000)
    mount.remount()
    r = Rotator(mount, devkms, second)
    assert r.begin()["code"] == 0
    path = backing_of(mount, "f")
    item = r.item(path, r.resealed(path))
    fd = os.open(mount.path("f"), os.O_RDWR)
    os.pwrite(fd, b"new", 0)
    assert r.slots(item) == ["ok"]
    os.close(fd)
    assert r.slots(r.item(path)) == ["ok"]
    assert View(path).other is None and View(path).ruling.key_hash == key_hash(second)
    mount.remount("kms.key=" + devkms.key) # as before: the descriptor has both
    assert r.finish()["code"] == 1 # not a key of this mount
    set_keys(mount, second, devkms.key)
    mount.remount()
    assert get(mount.path("f")) == b"new" + (b"old" * 2000)[3:]


def test_a_busy_file(mount, devkms, second):
    """Exchanged and emptied over and over while somebody writes to it: the last write is what is there."""
    put(mount.path("busy"), bytes(200_000))
    r = Rotator(mount, devkms, second)
    assert r.begin()["code"] == 0
    path = backing_of(mount, "busy")
    model, stop, failed = bytearray(200_000), threading.Event(), []

    def write():
        fd = os.open(mount.path("busy"), os.O_RDWR)
        try:
            n = 0
            while not stop.is_set():
                n += 1
                at, data = n * 7919 % 190_000, n.to_bytes(4, "little") * 50
                os.pwrite(fd, data, at)
                model[at:at + 200] = data
                if n % 16 == 0:
                    os.fsync(fd)
        except OSError as e:
            failed.append(e)
        finally:
            os.close(fd)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(25):
            assert r.slots(r.item(path, r.resealed(path))) == ["ok"]
            assert r.slots(r.item(path)) == ["ok"]
    finally:
        stop.set()
        thread.join()
    assert not failed
    v = View(path)
    assert v.ruling.seq == 26 and v.other is None and v.ruling.key_hash == key_hash(second)
    assert r.finish()["code"] == 0
    set_keys(mount, second)
    mount.remount()
    assert get(mount.path("busy")) == bytes(model)


def test_slots_refused(mount, devkms, second, tmp_path):
    put(mount.path("f"), b"f" * 100)
    put(mount.path("g"), b"g" * 100)
    os.mkdir(mount.path("d"))
    put(mount.path("d", "h"), b"h")
    r = Rotator(mount, devkms, second)
    assert r.begin()["code"] == 0
    f, g, h = backing_of(mount, "f"), backing_of(mount, "g"), backing_of(mount, "d", "h")
    before = {p: open(p, "rb").read() for p in (f, g, h)}
    slot = r.resealed(f)
    rel = os.path.relpath(f, mount.cipher)
    outside = tmp_path / "outside"
    outside.write_bytes(before[f])
    os.symlink(outside, os.path.join(mount.cipher, "planted"))
    os.symlink(tmp_path, os.path.join(mount.cipher, "door"))

    def hexed(path):
        return os.fsencode(path).hex()

    other = View(g).file.hex()
    for expect, over in (
            ("changed", {"seq": 7}), ("changed", {"file": other}), ("gone", {"ino": View(g).ino}),
            ("gone", {"path": hexed("nothing")}), ("gone", {"path": hexed(rel + "/x")}),
            ("gone", {"path": hexed(os.path.relpath(os.path.dirname(h), mount.cipher)), "ino": os.stat(os.path.dirname(h)).st_ino}),
            ("gone", {"path": hexed("planted"), "ino": os.stat(outside).st_ino}),
            ("gone", {"path": hexed("door/outside"), "ino": os.stat(outside).st_ino}),
            ("error: that is no path", {"path": hexed("../outside")}),
            ("error: that is no path", {"path": hexed(f)}),
            ("error: that is no path", {"path": hexed("./" + rel)}),
            ("error: that is no path", {"path": hexed(".byokfs/store")}),
            ("error: that is no path", {"path": hexed("x//y")}),
            ("error: that is no path", {"path": hexed("a" * 300)}),
            ("error: the item is malformed", {"path": ""}), ("error: the item is malformed", {"path": "zz"}),
            ("error: the item is malformed", {"path": "610062"}), ("error: the item is malformed", {"path": 5}),
            ("error: the item is malformed", {"file": "00"}), ("error: the item is malformed", {"seq": -1}),
            ("error: the item is malformed", {"ino": "1"}), ("error: the item is malformed", {"slot": "@@@@"}),
            ("error: the item is malformed", {"slot": base64.b64encode(slot[:511]).decode()}),
            ("error: the item is malformed", {"slot": base64.b64encode(slot[:-1] + b"x").decode()}),
            ("error: the item is malformed", {"slot": base64.b64encode(bytes(512)).decode()})):
        result, = r.slots({**r.item(f, slot), **over})
        assert result.startswith(expect), (over, result)
    for expect, bad in (("sealed by the key service", make_slot("", b"x" * 60, generation=0, wrap=2, provider=0)),
                        ("not under the domain's key", make_slot(devkms.key, b"blob")),
                        ("not under the domain's key", make_slot(second, b"blob", provider=2)),
                        ("generation", make_slot(second, b"blob", generation=2))):
        result, = r.slots(r.item(f, bad))
        assert result.startswith("error: ") and expect in result, result
    assert r.slots(5) == ["error: the item is malformed"] and r.slots() == []
    for slots in (None, 5, {"a": 1}, [r.item(f)] * 257):
        assert call(mount, verb="rotate-slots", domain=r.id, slots=slots)["code"] == 2
    assert call(mount, verb="rotate-slots", domain="11" * 16, slots=[])["code"] == 8
    assert {p: open(p, "rb").read() for p in before} == before and outside.read_bytes() == before[f]
    assert get(mount.path("f")) == b"f" * 100 and get(mount.path("d", "h")) == b"h"


def test_many_and_too_much(mount, devkms, second):
    names = [f"n{i}" for i in range(256)]
    for name in names:
        put(mount.path(name), name.encode(), sync=False)
    r = Rotator(mount, devkms, second)
    assert r.begin()["code"] == 0
    todo = r.todo()
    assert len(todo) == 256
    assert r.slots(*(r.item(p, r.resealed(p)) for p in todo)) == ["ok"] * 256
    assert r.slots(*(r.item(p) for p in todo)) == ["ok"] * 256
    assert r.finish()["code"] == 0
    name = hashlib.sha256(os.path.realpath(mount.plain).encode()).hexdigest()[:32]
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(f"/run/byokfs/{name}.sock")
        try:
            s.sendall(b'{"verb":"rotate-slots","x":"' + b"a" * (1 << 20) + b'"}\n')
            assert s.recv(100) == b""
        except OSError as e:
            assert e.errno in (errno.EPIPE, errno.ECONNRESET)
    set_keys(mount, second)
    mount.remount()
    assert all(get(mount.path(n)) == n.encode() for n in names)


def test_slots_while_locked(mount, devkms, second):
    """Neither exchange nor emptying needs a key."""
    put(mount.path("closed"), b"closed" * 100)
    put(mount.path("open"), b"open" * 1000)
    fd = os.open(mount.path("open"), os.O_RDWR)
    os.pwrite(fd, b"OPEN", 0)
    os.fsync(fd)
    r = Rotator(mount, devkms, second)
    assert r.begin()["code"] == 0
    items = []
    for name in ("closed", "open"):
        path = backing_of(mount, name)
        items.append((path, r.item(path, r.resealed(path))))
    assert mount.ctl("lock", mount.plain).returncode == 0
    assert r.domain()["state"] == "locked"
    assert r.slots(*(i for _, i in items)) == ["ok", "ok"]
    assert r.slots(*(r.item(p) for p, _ in items)) == ["ok", "ok"]
    assert r.finish()["code"] == 0
    assert mount.state() == "locked"
    assert mount.ctl("unlock", mount.plain).returncode == 0
    devkms.disable()
    assert os.pread(fd, 8, 0) == b"OPENopen"
    os.pwrite(fd, b"again", 4)
    os.fsync(fd)
    os.close(fd)
    set_keys(mount, second)
    mount.remount()
    assert get(mount.path("open"))[:12] == b"OPENagainpen"[:12] and get(mount.path("closed")) == b"closed" * 100


def test_moves_are_told(mount):
    def moved(anew=False):
        answer, fds = call_fds(mount, verb="rotate-moved", anew=anew)
        told = [os.fstat(fd).st_ino for fd in fds]
        for fd in fds:
            os.close(fd)
        assert [m["ino"] for m in answer["moved"]] == told and answer["at"] == answer["head"]
        return answer["lost"], {(m["ino"], m["directory"]) for m in answer["moved"]}

    def ino(*names):
        return os.stat(mount.path(*names)).st_ino

    os.mkdir(mount.path("d"))
    for name in ("f", "h", "over"):
        put(mount.path(name), b"f")
    put(mount.path("d", "g"), b"g")
    os.symlink("x", mount.path("s"))
    assert moved() == (True, set())  # nobody asked before
    assert moved(True) == moved() == (False, set())
    for change, what in [(lambda: os.rename(mount.path("f"), mount.path("e")), ["e"]),  # one directory
                         (lambda: os.rename(mount.path("e"), mount.path("d", "e")), ["d/e"]),
                         (lambda: os.link(mount.path("d", "e"), mount.path("f")), ["f"]),
                         (lambda: os.rename(mount.path("d"), mount.path("d2")), ["d2"]),
                         (lambda: os.rename(mount.path("h"), mount.path("over")), ["over"]),
                         (lambda: renameat2(mount.path("over"), mount.path("d2"), 2), ["over", "d2"]),
                         (lambda: os.rename(mount.path("s"), mount.path("over", "s")), [])]:
        change()
        assert moved() == (False, {(ino(n), os.path.isdir(mount.path(n))) for n in what}), what
    # What is new needs no looking at.
    put(mount.path("new"), b"n")
    os.mkdir(mount.path("newdir"))
    for i in range(3):
        os.rename(mount.path("new"), mount.path("newdir", "x"))
        os.rename(mount.path("newdir", "x"), mount.path("new"))
    os.rename(mount.path("newdir"), mount.path("n2"))
    assert moved() == (False, set())


# ---- what a crash leaves

@pytest.mark.parametrize("step", ["begun", "half", "sealed", "half emptied", "emptied", "finished"])
def test_killed_between_the_steps(mount, devkms, second, step):
    want = tree(mount)
    r = Rotator(mount, devkms, second)
    steps = ["begun", "half", "sealed", "half emptied", "emptied", "finished"]
    far = steps.index(step)
    assert r.begin()["code"] == 0
    put(mount.path("made"), b"made")
    want["made"] = b"made"
    if far >= 1:
        for path in r.todo()[:2]:
            assert r.slots(r.item(path, r.resealed(path))) == ["ok"]
    if far >= 2:
        r.reseal_all()
    if far >= 3:
        for path in [p for p in r.files() if View(p).other][:2]:
            assert r.slots(r.item(path)) == ["ok"]
    if far >= 4:
        r.clear_all()
    if far >= 5:
        assert r.finish()["code"] == 0
    mount.kill()
    mount.clear_dead()
    set_keys(mount, second, devkms.key)
    mount.mount()
    for name, data in want.items():
        assert get(mount.path(*name.split("/"))) == data, name
    if far < 5: # and it goes on to its end
        r.reseal_all()
        r.clear_all()
        assert r.finish()["code"] == 0
    devkms.disable()
    set_keys(mount, second)
    mount.remount()
    for name, data in want.items():
        assert get(mount.path(*name.split("/"))) == data, name


def test_audit_tells(tmp_path, devkms, second):
    m = Audited(tmp_path / "a", devkms)
    try:
        m.mount()
        put(m.path("f"), b"x")
        Rotator(m, devkms, second).all()
        m.umount()
        told = [e for e in m.lines() if e["event"] == "state" and e["state"].startswith("rotation")]
        assert [e["state"] for e in told] == ["rotation begun", "rotation finished"]
        assert devkms.key in told[0]["reason"] and second in told[0]["reason"] and "administrator" in told[0]["reason"]
        assert second in told[1]["reason"]
        assert json.dumps(told).count("QUJD") == 0
    finally:
        m.close()
