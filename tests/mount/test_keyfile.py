"""A key in a file as a key service: what the administrator does to the file is what a customer does to a key."""
import errno
import json
import os
import shutil

import pytest

from conftest import Mount, wait_until
from faults import PROMISE, SLACK, err, get, pattern, put, say, until

LEASE = 2.0
DATA = pattern(6, 100000)


class Keyfile:
    def __init__(self, base):
        os.makedirs(base)
        self.path = os.path.join(base, "key")
        self.bytes = os.urandom(32)
        self.restore()

    def write(self, data):
        with open(self.path, "wb") as f:
            f.write(data)

    def restore(self):
        if os.path.islink(self.path):
            os.unlink(self.path)
        elif os.path.isdir(self.path):
            os.rmdir(self.path)
        self.write(self.bytes)
        os.chmod(self.path, 0o600)

    def ini(self):
        return (f"[kms]\nprovider = keyfile\nrequest_timeout = 2s\n[keyfile]\npath = {self.path}\n"
                f"[cache]\nprobe = 500ms\nlease = {LEASE:.0f}s\n")


@pytest.fixture
def key(tmp_path):
    return Keyfile(str(tmp_path / "keys"))


@pytest.fixture
def store(tmp_path, key):
    m = Mount(tmp_path / "store", None, ini=key.ini())
    yield m
    m.close()


@pytest.fixture
def opened(store):
    store.mount()
    put(store.path("a"), DATA)
    fd = os.open(store.path("a"), os.O_RDWR)
    assert os.pread(fd, len(DATA), 0) == DATA
    yield store, fd
    os.close(fd)


def read(fd):
    return err(os.pread, fd, 4096, 0)


def remove(key):
    os.unlink(key.path)


def replace(key):
    key.write(os.urandom(32))


def truncate(key):
    key.write(b"")


def lengthen(key):
    key.write(key.bytes + b"\n")


def directory(key):
    os.unlink(key.path)
    os.mkdir(key.path)


def open_to_others(key):
    os.chmod(key.path, 0o644)


def loop_of_links(key):
    os.unlink(key.path)
    os.symlink(key.path, key.path)


# What proves that the key was taken away locks within the probe; what merely prevents looking, when the lease ends.
WAYS = [(remove, PROMISE, "is gone"), (replace, PROMISE, "another key"), (truncate, PROMISE, "32 bytes"),
        (lengthen, PROMISE, "32 bytes"), (directory, PROMISE, "regular file"), (open_to_others, LEASE, "open to others"),
        (loop_of_links, LEASE, "cannot read")]


@pytest.mark.parametrize("how,promise,why", WAYS, ids=[w[0].__name__ for w in WAYS])
def test_taken_away_and_back(opened, key, how, promise, why):
    mount, fd = opened
    how(key)
    took = until(lambda: read(fd) == errno.EIO, promise + SLACK)
    say(f"{how.__name__} -> EIO after {took:.2f} s")
    wait_until(lambda: mount.state() == "locked")
    wait_until(lambda: why in mount.status()["reason"])
    assert err(os.listdir, mount.plain) == err(get, mount.path("a")) == errno.EIO
    key.restore()
    wait_until(lambda: err(get, mount.path("a")) == 0)
    assert get(mount.path("a")) == os.pread(fd, len(DATA), 0) == DATA
    put(mount.path("b"), DATA)
    assert mount.status()["counters"]["lost_files"] == 0


@pytest.mark.sanitizer
@pytest.mark.parametrize("seal", ["file", "domain"])
def test_init_test_info(tmp_path, key, seal):
    m = Mount(tmp_path / "store", None, ini=key.ini(), init=["--seal=" + seal])
    try:
        slot = json.loads(m.ctl("info", "--json", m.cipher).stdout)["domain"]["slots"][0]
        assert slot["provider"] == "keyfile" and slot["key"].startswith("keyfile:")
        r = m.ctl("test", "-c", m.ini, m.cipher)
        assert r.returncode == 0 and "FAILED" not in r.stdout and slot["key"] in r.stdout
        assert "wrong encryption context is refused" in r.stdout
        assert key.bytes.hex() not in r.stdout and key.bytes not in r.stdout.encode("latin-1", "replace")
        m.mount()
        put(m.path("a"), DATA)
        m.remount()
        assert get(m.path("a")) == DATA
    finally:
        m.close()


@pytest.mark.sanitizer
def test_locked_start_without_the_file(store, key):
    """The file is on something that is plugged in later."""
    away = key.path + ".away"
    os.rename(key.path, away)
    store.mount(check=False)
    assert store.process.wait(30) == 5, store.read_log()
    store.mount("locked_start", check=False)
    wait_until(store.mounted)
    wait_until(lambda: store.ctl("status", store.plain).returncode == 0)
    assert store.state() == "locked" and "is gone" in store.status()["reason"]
    assert err(os.listdir, store.plain) == errno.EIO
    key.write(os.urandom(32))
    os.chmod(key.path, 0o600)
    wait_until(lambda: "another key" in store.status()["reason"])
    os.rename(away, key.path)
    wait_until(lambda: store.state() == "open")
    put(store.path("a"), DATA)
    store.remount()
    assert get(store.path("a")) == DATA


def test_a_copy_of_the_store_needs_the_same_file(store, key, tmp_path):
    store.mount()
    put(store.path("a"), DATA)
    store.umount()
    copy = Mount(tmp_path / "copy", None, ini=key.ini())
    shutil.rmtree(copy.cipher)
    shutil.copytree(store.cipher, copy.cipher, symlinks=True)
    try:
        copy.mount()
        assert get(copy.path("a")) == DATA
        copy.umount()
        replace(key)
        copy.mount(check=False)
        assert copy.process.wait(30) == 3, copy.read_log()
    finally:
        copy.close()
