"""A store whose key is in Vault's transit engine: identities, revocation, versions, and what the tools say."""
import errno
import json
import os
import signal
import subprocess
import threading
import urllib.request

import pytest

from conftest import CTL, Devkms, environment, wait_until
from damage import SLOT_A, SLOT_B, backing_of, flip
from faults import PROMISE, SLACK, err, get, put, until

ROOT = "devkms-root-not-for-production"
LEASE = 2.0
DATA = b"under a key in Vault\n" * 300


class Vault:
    """The Vault side of a byokfs-devkms: one key, and the policy that docs/byokfs.8 asks for."""

    def __init__(self, kms, base, key="byokfs", **key_options):
        self.kms, self.base, self.key = kms, str(base), key
        self.call("POST", f"transit/keys/{key}", key_options)
        self.allow()
        self.token_file = os.path.join(self.base, "token")
        self.secret_id_file = os.path.join(self.base, "secret-id")

    def call(self, method, path, body=None, token=ROOT):
        request = urllib.request.Request(f"{self.kms.endpoint}/v1/{path}", method=method, headers={"X-Vault-Token": token},
                                         data=json.dumps(body).encode() if body is not None else None)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def switch(self, **what):
        self.kms.http("POST", "/_devkms/vault/switch", what)

    def allow(self, **more):
        paths = {f"transit/encrypt/{self.key}": ["update"], f"transit/decrypt/{self.key}": ["update"],
                 f"transit/keys/{self.key}": ["read"], **more}
        policy = {"path": {path: {"capabilities": caps} for path, caps in paths.items()}}
        self.call("PUT", "sys/policies/acl/byokfs", {"policy": json.dumps(policy)})

    def write(self, path, text):
        with open(path + ".new", "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(text + "\n")
        os.rename(path + ".new", path)

    def new_token(self, **options):
        token = self.call("POST", "auth/token/create", {"policies": ["byokfs"], "ttl": "1h", **options})["auth"]["client_token"]
        self.write(self.token_file, token)
        return token

    def new_role(self, ttl, name="byokfs", **options):
        self.call("POST", f"auth/approle/role/{name}", {"token_policies": ["byokfs"], "token_ttl": ttl, **options})
        role_id = self.call("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        self.write(self.secret_id_file, self.call("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"])
        return role_id

    def ini(self, **settings):
        values = {"address": self.kms.endpoint, "key": self.key, "token_file": self.token_file, **settings}
        lines = "".join(f"{k} = {v}\n" for k, v in values.items() if v)
        return f"[kms]\nprovider = vault\nrequest_timeout = 2s\n[vault]\n{lines}[cache]\nprobe = 500ms\nlease = {LEASE:.0f}s\n"

    def role_ini(self, role_id):
        return self.ini(token_file=None, role_id=role_id, secret_id_file=self.secret_id_file)


@pytest.fixture(scope="module")
def vault_kms(tmp_path_factory):
    """One server for all: each test starts with its switches off."""
    kms = Devkms(tmp_path_factory.mktemp("vault"))
    yield kms
    kms.stop()


@pytest.fixture
def vault(vault_kms, tmp_path, request):
    vault_kms.clear()
    os.makedirs(tmp_path, exist_ok=True)
    v = Vault(vault_kms, tmp_path, key="k" + str(abs(hash(request.node.name)) % 10**9))
    v.switch(sealed=False, deny=False, openbao=False)
    yield v
    v.switch(sealed=False, deny=False, openbao=False)
    vault_kms.clear()


@pytest.fixture
def mount(vault, make_mount):
    vault.new_token()
    m = make_mount("m", vault.kms, ini=vault.ini()).mount()
    put(m.path("f"), DATA)
    return m


def operations(vault):
    return vault.kms.stats()["operations"]


def page(mount, name="f"):
    """The errno of reading through a fresh descriptor."""
    return err(get, mount.path(name))


def locked_at_once(mount):
    until(lambda: page(mount) == errno.EIO, PROMISE + SLACK)
    wait_until(lambda: mount.state() == "locked")
    status = mount.status()
    assert "lease ended" not in status["reason"], status
    assert err(os.listdir, mount.plain) == errno.EIO
    return status["reason"]


def locked_at_lease_end(mount):
    until(lambda: page(mount) == errno.EIO, LEASE + PROMISE + SLACK)
    wait_until(lambda: mount.state() == "locked")
    status = mount.status()
    assert status["kms"]["denied"] == 0, status
    return status["reason"]


def opens_again(mount, data=DATA):
    wait_until(lambda: mount.state() == "open")
    assert get(mount.path("f")) == data


# --- identities ---

@pytest.mark.sanitizer
def test_token_file(vault, mount):
    assert get(mount.path("f")) == DATA
    mount.remount()
    assert get(mount.path("f")) == DATA
    info = mount.ctl("info", mount.cipher, check=True).stdout
    assert f"vault:transit/keys/{vault.key}" in info and "provider  vault" in info


@pytest.mark.sanitizer
def test_approle_under_load_for_many_token_lives(vault, make_mount):
    """Tokens live for two seconds: renewed, then replaced near their greatest age; no caller notices."""
    ini = vault.role_ini(vault.new_role("2s", token_max_ttl="5s"))
    m = make_mount("m", vault.kms, ini=ini).mount()
    before = operations(vault)
    errors, stop = [], threading.Event()

    def work(n):
        i = 0
        while not stop.is_set():
            name = m.path(f"{n}-{i % 20}")
            try:
                put(name, DATA, sync=False)
                if get(name) != DATA:
                    errors.append("other bytes")
                os.unlink(name)
            except OSError as e:
                errors.append(e)
            i += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for t in threads:
        t.start()

    def calls(name):
        return operations(vault).get(name, {}).get("calls", 0) - before.get(name, {}).get("calls", 0)

    wait_until(lambda: calls("VaultLogin") >= 1 and calls("VaultRenewSelf") >= 2, 30)
    stop.set()
    for t in threads:
        t.join()
    assert errors == []
    assert m.state() == "open" and "was not renewed" not in m.read_log(), m.read_log()
    assert calls("VaultLogin") < 8  # not one per call


def test_token_file_replaced(vault, mount):
    """An agent writes another token, then the old one ends: nobody notices."""
    old = vault.call("GET", "auth/token/lookup-self", token=open(vault.token_file).read().strip())["data"]["id"]
    vault.new_token()
    vault.call("POST", "auth/token/revoke", {"token": old})
    probes = mount.status()["kms"]["calls"]
    wait_until(lambda: mount.status()["kms"]["calls"] >= probes + 3)
    assert mount.state() == "open" and "was not renewed" not in mount.read_log()
    put(mount.path("g"), b"x")
    mount.umount()


@pytest.mark.parametrize("openbao", [False, True])
def test_revoked_token_locks_at_lease_end(vault, mount, openbao):
    """It proves nothing about the key, so nothing is locked at once; a new token opens it again."""
    vault.switch(openbao=openbao)
    vault.call("POST", "auth/token/revoke", {"token": open(vault.token_file).read().strip()})
    locked_at_lease_end(mount)
    wait_until(lambda: "InvalidToken" in mount.read_log())
    vault.new_token()
    opens_again(mount)


def test_approle_whose_secret_id_is_destroyed(vault, make_mount):
    m = make_mount("m", vault.kms, ini=vault.role_ini(vault.new_role("2s", token_max_ttl="2s"))).mount()
    put(m.path("f"), DATA)
    vault.call("POST", "auth/approle/role/byokfs/secret-id/destroy", {"secret_id": open(vault.secret_id_file).read().strip()})
    vault.kms.http("POST", "/_devkms/vault/expire")
    locked_at_lease_end(m)
    wait_until(lambda: "LoginRefused" in m.read_log())
    vault.new_role("1h")
    opens_again(m)


# --- revocation ---

def deny_by_policy(vault):
    vault.call("DELETE", "sys/policies/acl/byokfs")
    return vault.allow


def deny_by_soft_delete(vault):
    vault.call("DELETE", f"transit/keys/{vault.key}/soft-delete")
    return lambda: vault.call("POST", f"transit/keys/{vault.key}/soft-delete-restore", {})


def deny_by_unmounting(vault):
    vault.allow(**{"transit/*": ["update"]})
    vault.call("DELETE", "sys/mounts/transit")
    return lambda: vault.call("POST", "sys/mounts/transit", {"type": "transit"})


def deny_by_version(vault):
    vault.call("POST", f"transit/keys/{vault.key}/rotate", {})
    vault.call("POST", f"transit/keys/{vault.key}/config", {"min_decryption_version": 2})
    return lambda: vault.call("POST", f"transit/keys/{vault.key}/config", {"min_decryption_version": 1})


DENIALS = {
    "the policy is taken away": (deny_by_policy, "PermissionDenied"),
    "the key is soft-deleted": (deny_by_soft_delete, "KeyDeleted"),
    "the engine is disabled": (deny_by_unmounting, "NoSuchMount"),
    "the version is retired": (deny_by_version, "VersionDisallowed"),
}


@pytest.mark.parametrize("how", DENIALS)
def test_denial_locks_at_once(vault, mount, how):
    deny, code = DENIALS[how]
    restore = deny(vault)
    assert code in locked_at_once(mount)
    restore()
    opens_again(mount)


def test_deleted_key_locks_at_once(vault, mount):
    vault.call("POST", f"transit/keys/{vault.key}/config", {"deletion_allowed": True})
    vault.call("DELETE", f"transit/keys/{vault.key}")
    assert "KeyNotFound" in locked_at_once(mount)
    # A new key of the same name opens nothing.
    vault.call("POST", f"transit/keys/{vault.key}", {})
    seen = mount.status()["kms"]["calls"]
    wait_until(lambda: mount.status()["kms"]["calls"] >= seen + 3)
    assert mount.state() == "locked" and page(mount) == errno.EIO


def test_replaced_key_locks_at_once(vault, mount):
    """Deleted and made anew between two probes: the owner's decision as much as deleting alone."""
    put(mount.path("old"), DATA)
    vault.call("POST", f"transit/keys/{vault.key}/config", {"deletion_allowed": True})
    vault.call("DELETE", f"transit/keys/{vault.key}")
    vault.call("POST", f"transit/keys/{vault.key}", {})
    reason = locked_at_once(mount)
    assert "OtherKey" in reason or "KeyNotFound" in reason, reason
    wait_until(lambda: "OtherKey" in mount.read_log())
    assert mount.status()["kms"]["denied"] > 0


def test_sealed_server_locks_at_lease_end(vault, mount):
    vault.switch(sealed=True)
    locked_at_lease_end(mount)
    wait_until(lambda: "Sealed" in mount.read_log())
    vault.switch(sealed=False)
    opens_again(mount)


def test_server_that_is_away(vault, mount):
    """Also: keys, tokens and policies outlive the server's process."""
    vault.kms.stop()
    locked_at_lease_end(mount)
    vault.kms.start()
    opens_again(mount)


def test_one_bad_blob_is_one_files_matter(vault, mount):
    put(mount.path("other"), DATA)
    backing = backing_of(mount, "other")
    mount.umount()
    for slot in (SLOT_A, SLOT_B):
        flip(backing, slot + 64 + 40, 0x01)
    mount.mount()
    assert page(mount, "other") == errno.EIO
    assert get(mount.path("f")) == DATA and mount.state() == "open"


# --- versions, derived keys ---

def test_rotation_in_vault(vault, mount):
    """Old files stay readable, new ones are under the new version, once the keys drawn ahead are used up."""
    def version(name):
        with open(backing_of(mount, name), "rb") as f:
            head = f.read(SLOT_B + 512)
        number = int.from_bytes(head[SLOT_A + 32:SLOT_A + 64], "big")
        assert head[SLOT_A + 64:SLOT_A + 73] == b"vault:v%d:" % number
        return number

    vault.call("POST", f"transit/keys/{vault.key}/rotate", {})
    names = [f"new {i}" for i in range(100)]
    for name in names:
        put(mount.path(name), DATA, sync=False)
    put(mount.path("last"), DATA)
    assert version("f") == 1 and version("last") == 2
    mount.remount()
    assert get(mount.path("f")) == get(mount.path("last")) == get(mount.path(names[0])) == DATA


def test_previous_key(vault, make_mount):
    """Two keys of one engine, by their names; at SIGHUP the two may change places, and a third is refused."""
    other = vault.key + "-next"
    vault.call("POST", f"transit/keys/{other}", {})
    vault.allow(**{f"transit/{what}/{other}": [may] for what, may in (("encrypt", "update"), ("decrypt", "update"), ("keys", "read"))})
    vault.new_token()
    m = make_mount("m", vault.kms, ini=vault.ini(previous=other)).mount()
    put(m.path("f"), DATA)
    assert m.ctl("test", "-c", m.ini, check=True).returncode == 0
    for settings, said in (({"key": other, "previous": vault.key}, "changed: vault.key, vault.previous"),
                           ({}, "changed: vault.key, vault.previous"), ({"key": "third"}, "'third' is another key than")):
        with open(m.ini, "w") as f:
            f.write(vault.ini(**settings))
        before = m.read_log().count(said)
        m.process.send_signal(signal.SIGHUP)
        wait_until(lambda: m.read_log().count(said) > before)
        assert get(m.path("f")) == DATA and m.state() == "open"
    assert "next mount" not in m.read_log()
    m.umount()


def test_derived_key(vault_kms, vault, make_mount, tmp_path):
    v = Vault(vault_kms, tmp_path, key=vault.key + "d", derived=True)
    v.new_token()
    m = make_mount("m", v.kms, ini=v.ini()).mount()
    put(m.path("f"), DATA)
    m.remount()
    assert get(m.path("f")) == DATA
    assert "a wrong encryption context is refused" in m.ctl("test", "-c", m.ini, m.cipher, check=True).stdout


def test_namespace_and_mount(vault, make_mount):
    vault.call("POST", "sys/mounts/team-a/keys-of-byokfs", {"type": "transit"})
    vault.call("POST", f"team-a/keys-of-byokfs/keys/{vault.key}", {})
    vault.allow(**{"team-a/keys-of-byokfs/*": ["update", "read"]})
    vault.new_token()
    m = make_mount("m", vault.kms, ini=vault.ini(namespace="team-a", mount="keys-of-byokfs")).mount()
    put(m.path("f"), DATA)
    assert f"vault:team-a/keys-of-byokfs/keys/{vault.key}" in m.ctl("info", m.cipher, check=True).stdout


# --- the tools ---

def trial(m, vault, *store, **settings):
    ini = os.path.join(vault.base, "other.ini")
    with open(ini, "w") as f:
        f.write(vault.ini(**settings))
    return m.ctl("test", "-c", ini, *store)


def test_test_tells_what_is_wrong(vault, mount):
    mount.umount()
    r = trial(mount, vault, mount.cipher)
    assert r.returncode == 0, r.stdout
    assert "aes256-gcm96 v1" in r.stdout and "the same key came back" in r.stdout and "opens, its desc" in r.stdout
    wrong = os.path.join(vault.base, "wrong")
    vault.write(wrong, "hvs.unknown")
    r = trial(mount, vault, token_file=wrong)
    assert r.returncode == 3 and "InvalidToken" in r.stdout and "in [vault]" in r.stdout and "hvs.unknown" not in r.stdout
    vault.allow(**{"transit/*": ["update", "read"], "nothere/*": ["update", "read"]})
    r = trial(mount, vault, key="nosuchkey")
    assert r.returncode == 3 and "KeyNotFound" in r.stdout
    r = trial(mount, vault, mount="nothere")
    assert r.returncode == 3 and "NoSuchMount" in r.stdout and "'mount' in [vault]" in r.stdout
    vault.call("POST", "transit/keys/weak", {"type": "aes128-gcm96"})
    r = trial(mount, vault, key="weak")
    assert r.returncode == 3 and "aes128-gcm96" in r.stdout
    vault.switch(sealed=True)
    r = trial(mount, vault)
    assert r.returncode == 6 and "Vault is sealed" in r.stdout


def test_mount_tells_what_is_wrong(vault, mount):
    mount.umount()
    token = open(vault.token_file).read().strip()
    for code, text, spoil, repair in (
            (3, "InvalidToken", lambda: vault.write(vault.token_file, "hvs.unknown"), lambda: vault.write(vault.token_file, token)),
            (3, "NoToken", lambda: os.unlink(vault.token_file), lambda: vault.write(vault.token_file, token)),
            (6, "Vault is sealed", lambda: vault.switch(sealed=True), lambda: vault.switch(sealed=False))):
        spoil()
        mount.mount(check=False)
        assert mount.process.wait(30) == code, mount.read_log()
        assert text in mount.read_log() and token not in mount.read_log()
        repair()
    vault.switch(sealed=True)
    mount.mount("locked_start", check=False)
    wait_until(lambda: mount.mounted() and mount.ctl("status", mount.plain).returncode == 0)
    assert mount.state() == "locked" and page(mount) == errno.EIO
    vault.switch(sealed=False)
    wait_until(lambda: page(mount) == 0)
    opens_again(mount)


def test_least_privilege_is_enough(vault, make_mount):
    """Without even reading the key's properties."""
    vault.allow(**{f"transit/keys/{vault.key}": []})
    vault.new_token()
    m = make_mount("m", vault.kms, ini=vault.ini()).mount()
    put(m.path("f"), DATA)
    r = m.ctl("test", "-c", m.ini)
    assert r.returncode == 0 and "may not read the key's properties" in r.stdout, r.stdout


def test_init_leaves_nothing_behind(vault, tmp_path):
    vault.new_token()
    for settings in ({"mount": "nothere"}, {"key": "nosuchkey"}, {"address": "http://127.0.0.1:1"}):
        cipher = tmp_path / "cipher"
        cipher.mkdir()
        ini = tmp_path / "ini"
        ini.write_text(vault.ini(**settings))
        r = subprocess.run([CTL, "init", "-c", ini, cipher], env=environment(), capture_output=True, text=True, timeout=60)
        assert r.returncode in (3, 6) and "byokfsctl: error: " in r.stderr, r
        assert os.listdir(cipher) == []
        cipher.rmdir()


def test_no_token_in_sight(vault, mount):
    """Neither in the log, nor in status, nor in the daemon's arguments."""
    token = open(vault.token_file).read().strip()
    vault.call("POST", "auth/token/revoke", {"token": token})
    locked_at_lease_end(mount)
    with open(f"/proc/{mount.process.pid}/cmdline", "rb") as f:
        seen = f.read().decode() + mount.read_log() + json.dumps(mount.status())
    assert token not in seen and token[4:] not in seen
