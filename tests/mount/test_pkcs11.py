"""A key on a token: the customer destroys it, replaces it, unplugs it, and the mount follows."""
import errno
import json
import os
import signal
import subprocess
import time

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from conftest import BUILD, BYOKFS, environment, wait_until
from faults import GONE, PROMISE, SLACK, err, get, pattern, put, say, until
from resealer import Resealer, backing_files, key_hash, reader, sealed_under
from softhsm import KEY, TOKEN, URI, Token, TokenMount

LEASE = 2.0
DATA = pattern(5, 100000)


@pytest.fixture
def token(tmp_path):
    return Token(tmp_path / "hsm")


@pytest.fixture
def store(tmp_path, token):
    m = TokenMount(tmp_path / "store", token)
    yield m
    m.close()


@pytest.fixture
def opened(store):
    """A mount with an open, cached, file."""
    store.mount()
    put(store.path("a"), DATA)
    fd = os.open(store.path("a"), os.O_RDWR)
    assert os.pread(fd, len(DATA), 0) == DATA
    yield store, fd
    try:
        os.close(fd)
    except OSError as e:
        assert e.errno in GONE  # of a daemon that was killed


def read(fd):
    return err(os.pread, fd, 4096, 0)


def opens(mount):
    took = until(lambda: err(get, mount.path("a")) == 0, 30)
    assert get(mount.path("a")) == DATA
    put(mount.path("b"), DATA)
    return took


@pytest.mark.sanitizer
@pytest.mark.parametrize("seal", ["file", "domain"])
def test_from_init_to_remount(tmp_path, token, seal):
    m = TokenMount(tmp_path / "store", token, init=["--seal=" + seal])
    try:
        r = m.ctl("test", "-c", m.ini, m.cipher)
        assert r.returncode == 0 and "FAILED" not in r.stdout and URI in r.stdout, r.stdout
        assert "wrong encryption context is refused" in r.stdout
        assert "ok      key: enabled" in r.stdout and "region: " not in r.stdout and "Region" not in r.stdout, r.stdout
        info = json.loads(m.ctl("info", "--json", m.cipher).stdout)
        slot = info["domain"]["slots"][0]
        assert (slot["provider"], slot["key"]) == ("pkcs11", URI)
        m.mount()
        for i in range(50):
            put(m.path(f"file {i}"), DATA[:1000 * i], sync=False)
        m.remount()
        for i in range(50):
            assert get(m.path(f"file {i}")) == DATA[:1000 * i]
        status = m.status()
        assert status["state"] == "open" and status["kms"]["errors"] == 0
        m.umount()
    finally:
        m.close()


def test_in_the_background(store):
    """The daemon forks before it talks to the module."""
    with open(store.log, "wb") as log:
        r = subprocess.run([BYOKFS, "-c", store.ini, store.cipher, store.plain], env=store.environment(), stdout=log, stderr=log,
                           timeout=60, stdin=subprocess.DEVNULL)
    assert r.returncode == 0, store.read_log()
    try:
        put(store.path("a"), DATA)
        assert get(store.path("a")) == DATA
        assert store.ctl("status", store.plain).returncode == 0
    finally:
        subprocess.run(["umount", store.plain], check=True, timeout=60)


@pytest.mark.sanitizer
def test_destroyed_and_restored(opened, token):
    mount, fd = opened
    token.destroy()
    took = until(lambda: read(fd) == errno.EIO, PROMISE + SLACK)
    wait_until(lambda: mount.state() == "locked")
    say(f"key destroyed on the token -> EIO after {took:.2f} s")
    assert "NoSuchKey" in mount.status()["reason"] and KEY in mount.status()["reason"]
    assert err(os.listdir, mount.plain) == err(get, mount.path("a")) == errno.EIO
    assert mount.ctl("unlock", mount.plain).returncode == 5
    token.restore()
    say(f"key restored -> opens after {opens(mount):.2f} s")
    assert os.pread(fd, len(DATA), 0) == DATA


def test_replaced_by_another_key(opened, token):
    mount, fd = opened
    token.destroy()
    token.generate()
    until(lambda: read(fd) == errno.EIO, PROMISE + SLACK)
    wait_until(lambda: "another key" in mount.status()["reason"])
    token.destroy()
    token.restore()
    opens(mount)


@pytest.mark.sanitizer
def test_unplugged_and_back(opened, token):
    mount, fd = opened
    token.unplug()
    took = until(lambda: read(fd) == errno.EIO, LEASE + SLACK)
    say(f"token unplugged -> EIO after {took:.2f} s")
    wait_until(lambda: mount.state() == "locked")
    assert err(get, mount.path("a")) == errno.EIO
    token.plug()
    say(f"token back -> opens after {opens(mount):.2f} s")
    assert os.pread(fd, len(DATA), 0) == DATA


def test_a_pin_changed_meanwhile(opened, token):
    """A wrong PIN is tried once, and again only when somebody says so."""
    mount, fd = opened
    token.unplug()
    until(lambda: read(fd) == errno.EIO, LEASE + SLACK)
    token.pin("654321")
    token.plug()
    wait_until(lambda: "PIN" in mount.status()["reason"])
    probes = mount.status()["counters"]["probes"]
    token.pin("123456")
    wait_until(lambda: mount.status()["counters"]["probes"] >= probes + 3)
    assert mount.state() == "locked" and "SIGHUP" in mount.status()["reason"]
    mount.process.send_signal(signal.SIGHUP)
    opens(mount)


def refused(store, code, *words, options=()):
    """By a mount and by `byokfsctl test`, with the same exit code."""
    extra = [x for o in options for x in ("-o", o)]
    r = subprocess.run([BYOKFS, "-f", "-c", store.ini, *extra, store.cipher, store.plain], env=store.environment(),
                       capture_output=True, text=True, timeout=60)
    assert r.returncode == code, r.stderr
    t = store.ctl("test", "-c", store.ini, *extra, store.cipher)
    assert t.returncode == code and "FAILED" in t.stdout, t.stdout
    hints = {3: "check module, token, key and PIN in [pkcs11]", 6: "is the token plugged in, and its service running?"}
    if "FAILED  store" not in t.stdout:
        assert "what to do: " + hints[code] in t.stdout and "Region" not in t.stdout, t.stdout
    for word in words:
        assert word in r.stderr and word in t.stdout + t.stderr, (word, r.stderr, t.stdout, t.stderr)
    assert not store.mounted()


def test_what_is_refused(store, token):
    token.generate("--extractable", "--sensitive", label="leaky")
    token.generate(label="short", bits=128)
    token.generate(label="twice")
    token.generate(label="twice")
    refused(store, 3, "ExtractableKey", "not extractable", options=["pkcs11.key=leaky"])
    refused(store, 3, "128 bits", options=["pkcs11.key=short"])
    refused(store, 3, "several", options=["pkcs11.key=twice"])
    refused(store, 3, "NoSuchKey", "'none'", options=["pkcs11.key=none"])
    refused(store, 6, "no token is labelled", options=["pkcs11.token=Other"])
    refused(store, 3, "cannot load", options=["pkcs11.module=/nowhere.so"])
    refused(store, 3, "not a PKCS#11 module", options=["pkcs11.module=/lib/x86_64-linux-gnu/libz.so.1"])
    token.pin("123456", 0o644)
    refused(store, 3, "chmod 600")
    token.pin("654321")
    refused(store, 3, "CKR_PIN_INCORRECT")
    os.unlink(token.pin_file)
    refused(store, 3, token.pin_file)
    token.pin("123456")
    token.generate(label="another")
    refused(store, 3, "another", URI, options=["pkcs11.key=another"])
    store.mount()
    store.umount()


def test_locked_start_without_the_token(store, token):
    token.unplug()
    refused(store, 6, "CKR_TOKEN_NOT_PRESENT", TOKEN)
    store.mount("locked_start", check=False)
    wait_until(store.mounted)
    wait_until(lambda: store.ctl("status", store.plain).returncode == 0)
    assert store.state() == "locked" and err(os.listdir, store.plain) == errno.EIO
    token.plug()
    wait_until(lambda: store.state() == "open")
    put(store.path("a"), DATA)
    store.remount()
    assert get(store.path("a")) == DATA


class Stuck:
    """A module that hangs as long as a file exists."""

    def __init__(self, base):
        self.file = os.path.join(base, "hang")
        self.pin_file = os.path.join(base, "pin")
        with open(self.pin_file, "w") as f:
            f.write("123456")
        os.chmod(self.pin_file, 0o600)

    def environment(self):
        return dict(environment(), FAKE_PKCS11_HANG=self.file)

    def ini(self):
        return (f"[kms]\nprovider = pkcs11\nrequest_timeout = 1s\nmax_connections = 2\n"
                f"[pkcs11]\nmodule = {os.path.abspath(BUILD)}/unit/fake_pkcs11.so\ntoken = fake\nkey = key\n"
                f"pin_file = {self.pin_file}\n[cache]\nprobe = 500ms\nlease = {LEASE:.0f}s\n")

    def hang(self):
        open(self.file, "w").close()

    def go_on(self):
        os.unlink(self.file)


@pytest.mark.sanitizer
def test_a_module_that_hangs(tmp_path):
    """Nobody waits for it longer than for a KMS that does not answer, not even the end of the daemon."""
    stuck = Stuck(str(tmp_path))
    mount = TokenMount(tmp_path / "store", stuck)
    try:
        mount.mount()
        put(mount.path("a"), DATA)
        put(mount.path("cold"), DATA)
        mount.remount()
        fd = os.open(mount.path("a"), os.O_RDONLY)
        stuck.hang()
        begin = time.monotonic()
        assert read(fd) == 0
        assert err(get, mount.path("cold")) == errno.EIO
        say(f"module hangs: cold file EIO after {time.monotonic() - begin:.2f} s")
        until(lambda: read(fd) == errno.EIO, LEASE + SLACK)
        wait_until(lambda: mount.state() == "locked")
        stuck.go_on()
        say(f"module goes on -> opens after {opens(mount):.2f} s")
        os.close(fd)
        stuck.hang()
        wait_until(lambda: mount.state() == "locked")
        begin = time.monotonic()
        mount.umount()
        say(f"module hangs: unmounted and ended after {time.monotonic() - begin:.2f} s")
        mount.mount(check=False)
        assert mount.process.wait(30) == 6, mount.read_log()
    finally:
        mount.close()


def test_killed_daemon(opened, token):
    """Nothing of the module is in the watchdog's way."""
    mount, fd = opened
    os.fsync(fd)
    begin = time.monotonic()
    mount.kill()
    say(f"daemon killed -> watchdog done after {time.monotonic() - begin:.2f} s")
    assert read(fd) != 0
    mount.clear_dead()
    mount.mount()
    assert get(mount.path("a")) == DATA


class OnToken(Resealer):
    """Both keys are known here, so nobody has to be asked."""

    def __init__(self, cipher, to, old, new):
        super().__init__(cipher, None, to)
        self.keys = AESGCM(old), AESGCM(new)

    def reencrypt(self, blob, context):
        aad = reader.encode_pairs(context)
        iv = os.urandom(12)
        return b"\1" + iv + self.keys[1].encrypt(iv, self.keys[0].decrypt(blob[1:13], blob[13:], aad), aad)


def test_two_keys(store, token):
    """A rotation on the token is under way: both keys serve, either one alone serves what it can."""
    second = "the next key"
    material = os.path.join(token.base, "second")
    with open(material, "wb") as f:
        f.write(os.urandom(32))
    token.tool("--write-object", material, "--type", "secrkey", "--key-type", "AES:32", "--label", second, "--sensitive")
    store.mount()
    put(store.path("old"), DATA)
    put(store.path("new"), DATA)
    new = os.stat(store.path("new")).st_ino
    store.umount()
    with open(token.material, "rb") as a, open(material, "rb") as b:
        to = URI.replace("byokfs%20key", "the%20next%20key")
        rotation = OnToken(store.cipher, to, a.read(), b.read()).begin()
    rotation.file(backing_files(store.cipher)[new], empty=True)
    for key, more, readable in ((second, f"previous = {KEY}\n", ("old", "new")), (KEY, f"previous = {to}\n", ("old", "new")),
                                (second, "", ("new",)), (KEY, "", ("old",))):
        with open(store.ini, "w") as f:
            f.write(token.ini(key=key, more=more))
        store.mount()
        assert [name for name in ("old", "new") if err(get, store.path(name)) == 0] == list(readable)
        put(store.path("fresh"), DATA)
        fresh = sealed_under(backing_files(store.cipher)[os.stat(store.path("fresh")).st_ino])
        assert fresh == key_hash(to if "new" in readable else URI)
        os.unlink(store.path("fresh"))
        assert ("set pkcs11.previous" in store.read_log()) == (len(readable) == 1), store.read_log()
        store.umount()
        open(store.log, "w").close()
    # The old key is destroyed: only what is under it goes.
    with open(store.ini, "w") as f:
        f.write(token.ini(key=second, more=f"previous = {KEY}\n"))
    store.mount()
    assert get(store.path("old")) == get(store.path("new")) == DATA
    token.destroy()
    until(lambda: err(get, store.path("old")) == errno.EIO, PROMISE + SLACK)
    assert get(store.path("new")) == DATA and store.state() == "open"
    store.remount()
    assert err(get, store.path("old")) == errno.EIO and get(store.path("new")) == DATA
    store.umount()
