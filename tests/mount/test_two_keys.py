"""Mounts of a store whose rotation is under way or over: which keys must be configured, what each of them opens, and what either key's
owner can still withdraw. The stores are made by hand (resealer.py)."""
import errno
import json
import os
import re
import signal
import subprocess

import pytest

from conftest import BYOKFS, Devkms, Mount, environment, wait_until
from resealer import Descriptor, Resealer, backing_files, key_hash, put_slot, ruling_slot, sealed_under

PROBE = "300ms"
FILES = {"old": b"under the old key only\n" * 400, "both": b"the new slot rules\n" * 400, "new": b"under the new key only\n" * 400}


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    """Three keys: from, to, and one that has nothing to do with it."""
    k = Devkms(tmp_path_factory.mktemp("devkms"))
    k.from_key, k.to, k.third = k.key, *(k.client.create_key(Description=d)["KeyMetadata"]["Arn"] for d in ("to", "third"))
    yield k
    k.stop()


@pytest.fixture(autouse=True)
def enabled(kms):
    yield
    kms.clear()
    for key in (kms.from_key, kms.to, kms.third):
        kms.enable(key)


@pytest.fixture(scope="module")
def made(tmp_path_factory, kms):
    """A store with its files, under the old key; never changed."""
    m = Mount(tmp_path_factory.mktemp("made"), kms).mount()
    inodes = {}
    for name, data in FILES.items():
        with open(m.path(name), "wb") as f:
            f.write(data)
    for name in FILES:
        inodes[name] = os.stat(m.path(name)).st_ino
    m.umount()
    paths = backing_files(m.cipher)
    m.backing = {name: os.path.relpath(paths[ino], m.cipher) for name, ino in inodes.items()}
    return m


def ini(kms, key, previous=None):
    second = f"previous = {previous}\n" if previous else ""
    return (f"[kms]\nprovider = aws\nkey = {key}\n{second}endpoint = {kms.endpoint}\nrequest_timeout = 2s\n"
            f"[cache]\nprobe = {PROBE}\nlease = 3s\n")


class World:
    """A copy of the store, the rotation begun, and who mounts it how."""

    def __init__(self, base, kms, made):
        self.base, self.kms, self.made, self.mounts = base, kms, made, 0
        self.cipher = str(base / "cipher")
        subprocess.run(["cp", "-a", made.cipher, self.cipher], check=True)
        self.m = None

    def backing(self, name):
        return os.path.join(self.cipher, self.made.backing[name])

    def begin(self):
        self.resealer = Resealer(self.cipher, self.kms.client, self.kms.to).begin()
        self.resealer.file(self.backing("both"))
        self.resealer.file(self.backing("new"), empty=True)
        return self

    def finish(self):
        self.resealer.file(self.backing("old"), empty=True)
        self.resealer.finish()
        return self

    def configure(self, key, previous=None):
        self.m = Mount(self.base, self.kms, ini=ini(self.kms, key, previous))
        if os.path.exists(self.m.log):
            os.unlink(self.m.log)
        return self.m

    def mount(self, key, previous=None, *options):
        return self.configure(key, previous).mount(*options)

    def refused(self, key, previous=None):
        """Exit code and what is printed."""
        m = self.configure(key, previous)
        r = subprocess.run([BYOKFS, "-c", m.ini, m.cipher, m.plain], env=environment(), capture_output=True, text=True, timeout=60)
        return r.returncode, r.stderr

    def reload(self, key, previous=None):
        with open(self.m.ini, "w") as f:
            f.write(ini(self.kms, key, previous))
        before = len(re.findall("configuration was read again|configuration stays", self.m.read_log()))
        self.m.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(re.findall("configuration was read again|configuration stays", self.m.read_log())) > before)


@pytest.fixture
def world(tmp_path, kms, made):
    w = World(tmp_path, kms, made)
    yield w
    if w.m:
        w.m.close()


def read(m, name):
    """What an application sees: the bytes, or the error's number."""
    try:
        with open(m.path(name), "rb") as f:
            return f.read()
    except OSError as e:
        return e.errno


def readable(m):
    """The names of the files that can be read whole; all others must be EIO."""
    got = {name: read(m, name) for name in FILES}
    assert all(got[name] in (data, errno.EIO) for name, data in FILES.items()), got
    return {name for name in FILES if got[name] != errno.EIO}


def made_under(m, name):
    """The key a new file is sealed under."""
    with open(m.path(name), "wb") as f:
        f.write(b"new")
        os.fsync(f.fileno())
    return sealed_under(backing_files(m.cipher)[os.stat(m.path(name)).st_ino])


# ---- what is configured ----


@pytest.mark.sanitizer
@pytest.mark.parametrize("order", ["new first", "old first"])
def test_both_keys(world, kms, order):
    """The two names are a set; the descriptor says which one rules."""
    keys = (kms.to, kms.from_key) if order == "new first" else (kms.from_key, kms.to)
    m = world.begin().mount(*keys)
    assert readable(m) == set(FILES)
    assert made_under(m, "fresh") == key_hash(kms.to)
    assert "rotation" not in m.read_log() and "EIO" not in m.read_log()
    assert m.status()["kms"]["key"] == kms.to
    assert f"previous key {kms.from_key}\n" in m.ctl("status", m.plain).stdout
    m.remount()
    assert read(m, "fresh") == b"new" and readable(m) == set(FILES)
    m.umount()


def test_old_key_only(world, kms):
    m = world.begin().mount(kms.from_key)
    assert f"a rotation to key '{kms.to}' is under way: files that are only under it give EIO; set kms.key to it and " \
           f"kms.previous to '{kms.from_key}'" in m.read_log()
    assert readable(m) == {"old", "both"}
    log = m.read_log()
    assert len(re.findall(f"key of file [0-9a-f]{{32}}: it is sealed under key '{kms.to}', which is not configured: set kms.previous",
                          log)) == 1
    assert len(re.findall("'/?new' .*its sealed key could not be opened", log)) == 1
    assert made_under(m, "fresh") == key_hash(kms.from_key)
    m.umount()


def test_new_key_only(world, kms):
    m = world.begin().mount(kms.to)
    assert f"a rotation from key '{kms.from_key}' is under way: files that are still under it give EIO; set kms.previous to it" \
        in m.read_log()
    assert readable(m) == {"both", "new"}
    assert f"it is sealed under key '{kms.from_key}', which is not configured: set kms.previous" in m.read_log()
    assert made_under(m, "fresh") == key_hash(kms.to)
    # Without the key nobody is asked.
    assert kms.stats()["operations"]["Decrypt"]["calls"] > 0 and "IncorrectKey" not in m.read_log()
    m.umount()


def test_third_key(world, kms):
    code, said = world.begin().refused(kms.third)
    assert code == 3
    assert f"byokfs: error: the store is under key '{kms.to}', not under '{kms.third}': KMS said IncorrectKeyException" in said
    m = world.mount(kms.third, kms.from_key)
    assert readable(m) == {"old", "both"}
    m.umount()


def test_after_the_end(world, kms):
    """The old key is refused, whether it still works or not; as previous key it may go on standing there."""
    world.begin().finish()
    for disabled in (False, True):
        if disabled:
            kms.disable(kms.from_key)
        code, said = world.refused(kms.from_key)
        assert code == 3, said
        assert re.search(f"error: the store is under key '{kms.to}' now, since the rotation of 20..-..-..T..:..:..Z, not under "
                         f"'{kms.from_key}': KMS said {'Disabled' if disabled else 'IncorrectKey'}Exception", said)
        assert f"hint: set [kms] key to '{kms.to}'" in said
    for previous in (None, kms.from_key):
        m = world.mount(kms.to, previous)
        assert readable(m) == set(FILES) and "rotation" not in m.read_log()
        m.umount()


def test_configuration(world, kms):
    world.begin()
    code, said = world.refused(kms.to, "alias/old")
    assert code == 3 and "'previous' in [kms] must be an ARN: 'alias/old'" in said
    m = world.mount(kms.to, kms.to)
    assert f"the previous key is configured twice: '{kms.to}' is the key itself" in m.read_log()
    m.umount()


@pytest.mark.parametrize("keys, opens", [(("to", "from_key"), True), (("from_key", "to"), True), (("from_key",), True), (("to",), True),
                                         (("third",), False)])
def test_test_button(world, kms, keys, opens):
    m = world.begin().configure(*(getattr(kms, k) for k in keys))
    r = m.ctl("test", "-c", m.ini, m.cipher)
    assert (r.returncode == 0) == opens, r.stdout + r.stderr
    assert ("a rotation " in r.stderr) == (opens and len(keys) == 1)


# ---- an owner withdraws a key ----


def test_new_key_disabled(world, kms):
    """The key that rules: everything is locked, whatever the other one says."""
    m = world.begin().mount(kms.to, kms.from_key)
    assert readable(m) == set(FILES)
    kms.disable(kms.to)
    wait_until(lambda: m.state() == "locked")
    assert readable(m) == set()
    assert "DisabledException" in m.status()["reason"]
    kms.enable(kms.to)
    wait_until(lambda: m.state() == "open")
    assert readable(m) == set(FILES)
    m.umount()


@pytest.mark.sanitizer
def test_old_key_disabled(world, kms):
    """The key that is being left: what is only under it is gone, cached or not; nothing else notices."""
    m = world.begin().mount(kms.to, kms.from_key)
    assert readable(m) == set(FILES)
    fds = {name: os.open(m.path(name), os.O_RDONLY) for name in FILES}
    try:
        assert all(os.pread(fd, 100, 0) == FILES[name][:100] for name, fd in fds.items())
        kms.disable(kms.from_key)
        wait_until(lambda: "files that are only under the key a rotation is leaving give EIO" in m.read_log())
        with pytest.raises(OSError) as e:
            os.pread(fds["old"], 100, 0)
        assert e.value.errno == errno.EIO
        assert os.pread(fds["both"], 100, 0) == FILES["both"][:100] and os.pread(fds["new"], 100, 0) == FILES["new"][:100]
        assert readable(m) == {"both", "new"}
        assert m.state() == "open" and "DisabledException" in m.status()["domains"][0]["previous"]["reason"]
        assert re.search(f"previous key {kms.from_key}: KMS said Disabled.*; files that are only", m.ctl("status", m.plain).stdout)
        assert f"under key '{kms.from_key}', which a rotation is leaving: KMS said DisabledException" in m.read_log()
        assert made_under(m, "fresh") == key_hash(kms.to)
        kms.enable(kms.from_key)
        wait_until(lambda: "answers again" in m.read_log())
        assert os.pread(fds["old"], 100, 0) == FILES["old"][:100]
        assert readable(m) == set(FILES)
    finally:
        for fd in fds.values():
            os.close(fd)
    assert "locked:" not in m.read_log()
    m.umount()


def test_written_before_the_old_key_went(world, kms):
    """What applications wrote to a file under the old key reaches the disk before its key is given up."""
    m = world.begin().mount(kms.to, kms.from_key)
    with open(m.path("old"), "r+b") as f:
        f.write(b"WRITTEN")
        f.flush()
        kms.disable(kms.from_key)
        wait_until(lambda: "give EIO" in m.read_log())
    assert read(m, "old") == errno.EIO
    kms.enable(kms.from_key)
    wait_until(lambda: read(m, "old") != errno.EIO)
    assert read(m, "old") == b"WRITTEN" + FILES["old"][7:]
    m.umount()


def test_mount_while_a_key_is_disabled(world, kms):
    world.begin()
    kms.disable(kms.to)
    code, said = world.refused(kms.to, kms.from_key)
    assert code == 5 and "DisabledException" in said, said
    kms.enable(kms.to)
    kms.disable(kms.from_key)
    m = world.mount(kms.to, kms.from_key)
    assert readable(m) == {"both", "new"}
    m.umount()


# ---- the configuration is read again ----


@pytest.mark.sanitizer
def test_reload(world, kms):
    m = world.begin().mount(kms.from_key)
    assert readable(m) == {"old", "both"}
    world.reload(kms.from_key, kms.to)
    assert "changed: kms.previous" in m.read_log()
    assert readable(m) == set(FILES)
    # The two change places, and a third is refused.
    world.reload(kms.to, kms.from_key)
    assert "the configuration stays" not in m.read_log()
    assert readable(m) == set(FILES)
    world.reload(kms.third, kms.from_key)
    assert f"the configuration stays as it was: '{kms.third}' is another key" in m.read_log()
    # While files may need it, it stays.
    world.reload(kms.to)
    assert "what it is leaving is still needed" in m.read_log()
    assert "changed, but only for the next mount: kms.previous" in m.read_log()
    assert readable(m) == set(FILES)
    m.umount()


def test_reload_after_the_end(world, kms):
    m = world.begin().finish().mount(kms.to, kms.from_key)
    world.reload(kms.to, kms.third)
    world.reload(kms.to)
    assert m.read_log().count("changed: kms.previous") == 2
    assert "next mount" not in m.read_log()
    assert readable(m) == set(FILES)
    m.umount()


# ---- what the storage's owner puts back ----


def test_old_slots_put_back(world, kms):
    """An old descriptor and old slots do not bring the old key back into use."""
    old_descriptor = {}
    domains = os.path.join(world.cipher, ".byokfs", "domains")
    for name in os.listdir(domains):
        with open(os.path.join(domains, name), "rb") as f:
            old_descriptor[name] = f.read()
    with open(world.backing("old"), "rb") as f:
        _, old_slot = ruling_slot(f.read(4096))
    world.begin().finish()
    with open(world.backing("old"), "r+b") as f:
        put_slot(f, 0, 99, old_slot.generation, old_slot.key_hash, old_slot.blob)
    m = world.mount(kms.to)
    assert readable(m) == {"both", "new"}
    assert f"it names another key than '{kms.to}'" in m.read_log()
    m.umount()
    for name, data in old_descriptor.items():
        with open(os.path.join(domains, name), "wb") as f:
            f.write(data)
    code, said = world.refused(kms.to)
    assert code == 3 and f"the store is under key '{kms.from_key}', not under '{kms.to}'" in said


# ---- key domains ----


@pytest.mark.sanitizer
def test_nested(world, kms):
    """A domain's own key comes from its descriptor; a second one must be configured."""
    m = world.mount(kms.from_key)
    os.mkdir(m.path("customer"))
    r = m.ctl("domain", "add", m.path("customer"), "--key", kms.from_key)
    assert r.returncode == 0, r.stderr
    for name in ("one", "two"):
        with open(m.path("customer", name), "wb") as f:
            f.write(b"a customer's\n")
    one = os.stat(m.path("customer", "one")).st_ino
    m.umount()
    nested = Resealer(world.cipher, kms.client, kms.to, index=1).begin()
    nested.file(backing_files(world.cipher)[one], empty=True)
    assert Descriptor(world.cipher, 1).ruling().key == kms.to
    m = world.mount(kms.from_key)
    assert read(m, "customer/one") == read(m, "customer/two") == b"a customer's\n"
    assert readable(m) == set(FILES)
    kms.disable(kms.to)
    wait_until(lambda: read(m, "customer/one") == errno.EIO)
    wait_until(lambda: [d["state"] for d in m.status()["domains"]] == ["open", "locked"])
    assert readable(m) == set(FILES)
    kms.enable(kms.to)
    wait_until(lambda: read(m, "customer/two") == b"a customer's\n")
    m.umount()
    # The store itself moves on to a third key; the domain's old one is listed nowhere.
    outer = Resealer(world.cipher, kms.client, kms.third).begin()
    for name in FILES:
        outer.file(world.backing(name), empty=True)
    outer.finish()
    m = world.mount(kms.third)
    wait_until(lambda: read(m, "customer/one") == b"a customer's\n")
    assert read(m, "customer/two") == errno.EIO
    assert f"a rotation from key '{kms.from_key}' is under way" in m.read_log()
    assert json.loads(m.ctl("status", "--json", m.plain).stdout)["domains"][1]["kms"]["key"] == kms.to
    world.reload(kms.third, kms.from_key)
    assert read(m, "customer/two") == b"a customer's\n"
    m.umount()
