"""byokfs-devkms speaks the API of Vault's transit engine: the documentation's samples, and its cryptography by other hands."""

import base64
import json
import os
import pathlib
import subprocess

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ROOT = "devkms-root-not-for-production"
PLAIN = base64.b64encode(b"the quick brown fox\n").decode()
AAD, CONTEXT = base64.b64encode(b"associated").decode(), base64.b64encode(b"samplecontext").decode()
DENIED = {"errors": ["1 error occurred:\n\t* permission denied\n\n"]}
INVALID = {"errors": ["2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n"]}
# Members of the sample answers in the API documentation of Vault 1.1x and OpenBao 2.x.
KEY_MEMBERS = {"type", "deletion_allowed", "derived", "exportable", "keys", "min_decryption_version", "min_encryption_version",
               "name", "supports_encryption", "supports_decryption"}
LOGIN_MEMBERS = {"renewable", "lease_duration", "token_policies", "accessor", "client_token"}
SELF_MEMBERS = {"accessor", "creation_ttl", "id", "num_uses", "policies", "renewable", "ttl"}
ENVELOPE = {"request_id", "lease_id", "renewable", "lease_duration", "data", "wrap_info", "warnings", "auth"}


class Vault:
    def __init__(self, server):
        self.server = server

    def __call__(self, method, path, body=None, token=ROOT, **headers):
        if token:
            headers["X-Vault-Token"] = token
        return self.server.http(method, "/v1/" + path, None if body is None else json.dumps(body), headers)

    def data(self, *args, **kw):
        answer = self(*args, **kw)
        assert answer.status == 200, answer.body
        assert set(answer.json) == ENVELOPE
        return answer.json["data"]

    def error(self, *args, **kw):
        answer = self(*args, **kw)
        assert set(answer.json) == {"errors"}
        return answer.status, answer.json["errors"][0] if answer.json["errors"] else None

    def encrypt(self, key, **more):
        return self.data("POST", f"transit/encrypt/{key}", {"plaintext": PLAIN, **more})["ciphertext"]

    def policy(self, name, paths):
        text = json.dumps({"path": {p: {"capabilities": c} for p, c in paths.items()}})
        assert self("PUT", f"sys/policies/acl/{name}", {"policy": text}).status == 204

    def token(self, *policies, **more):
        return self("POST", "auth/token/create", {"policies": policies, **more}).json["auth"]["client_token"]


@pytest.fixture
def vault(server):
    server.admin("DELETE", "fault")
    server.admin("POST", "vault/switch", {"sealed": False, "deny": False, "openbao": False})
    return Vault(server)


@pytest.fixture
def key(vault, request):
    name = request.node.name.replace("[", "-").rstrip("]").replace(" ", "-")
    vault.data("POST", f"transit/keys/{name}", {})
    return name


def material(server, key, version=1):
    state = json.loads((pathlib.Path(server.state) / "vault.json").read_text())
    return base64.b64decode(state["keys"][f"transit/{key}"]["versions"][version - 1]["key"])


# --- data ---

def test_ciphertext_is_aes_gcm_with_the_key_and_its_aad(server, vault, key):
    prefix, version, text = vault.encrypt(key, associated_data=AAD).split(":")
    raw = base64.b64decode(text)
    assert (prefix, version) == ("vault", "v1")
    gcm = AESGCM(material(server, key))
    assert gcm.decrypt(raw[:12], raw[12:], b"associated") == b"the quick brown fox\n"
    with pytest.raises(InvalidTag):
        gcm.decrypt(raw[:12], raw[12:], b"")
    # And the other way round: sealed here, opened there.
    mine = "vault:v1:" + base64.b64encode(bytes(12) + gcm.encrypt(bytes(12), b"other hands", b"associated")).decode()
    answer = vault.data("POST", f"transit/decrypt/{key}", {"ciphertext": mine, "associated_data": AAD})
    assert answer == {"plaintext": base64.b64encode(b"other hands").decode()}


def test_derived_keys_are_hkdf_of_key_and_context(server, vault):
    vault.data("POST", "transit/keys/derived", {"derived": True, "type": "chacha20-poly1305"})
    raw = base64.b64decode(vault.encrypt("derived", context=CONTEXT, associated_data=AAD).split(":")[2])
    its = HKDF(hashes.SHA256(), 32, None, b"samplecontext").derive(material(server, "derived"))
    assert ChaCha20Poly1305(its).decrypt(raw[:12], raw[12:], b"associated") == b"the quick brown fox\n"
    status, text = vault.error("POST", "transit/encrypt/derived", {"plaintext": PLAIN})
    assert status == 400 and text.startswith("missing 'context' for key derivation")


def test_a_context_does_nothing_to_other_keys(vault, key):
    sealed = vault.encrypt(key, context=CONTEXT)
    assert vault.data("POST", f"transit/decrypt/{key}", {"ciphertext": sealed}) == {"plaintext": PLAIN}


@pytest.mark.parametrize("change, text", [
    ({"associated_data": None}, "cipher: message authentication failed"),
    ({"associated_data": CONTEXT}, "cipher: message authentication failed"),
    ({"ciphertext": "v1:abcd"}, "invalid ciphertext: no prefix"),
    ({"ciphertext": "vault:v1"}, "invalid ciphertext: wrong number of fields"),
    ({"ciphertext": "vault:vx:abcd"}, "invalid ciphertext: version number could not be decoded"),
    ({"ciphertext": "vault:v2:abcd"}, "invalid ciphertext: version is too new"),
    ({"ciphertext": "vault:v1:a"}, "invalid ciphertext: could not decode base64"),
    ({"ciphertext": ""}, "missing ciphertext to decrypt"),
])
def test_what_does_not_open(vault, change, text):
    vault.data("POST", "transit/keys/errors", {})
    body = {"ciphertext": vault.encrypt("errors", associated_data=AAD), "associated_data": AAD, **change}
    assert vault.error("POST", "transit/decrypt/errors", {k: v for k, v in body.items() if v is not None}) == (400, text)


def test_batches(vault, key):
    good = {"ciphertext": vault.encrypt(key, associated_data=AAD), "associated_data": AAD, "reference": "a"}
    bad = {"ciphertext": good["ciphertext"], "reference": "b"}
    failed = {"error": "cipher: message authentication failed", "plaintext": "", "reference": "b"}
    opened = {"plaintext": PLAIN, "reference": "a"}
    path = f"transit/decrypt/{key}"
    assert vault.data("POST", path, {"batch_input": [good, good]}) == {"batch_results": [opened, opened]}
    some = vault("POST", path, {"batch_input": [bad, good]})
    assert some.status == 400 and some.json["data"] == {"batch_results": [failed, opened]}
    some = vault("POST", path, {"batch_input": [good, bad], "partial_failure_response_code": 200})
    assert some.status == 200 and some.json["data"]["batch_results"] == [opened, failed]
    none = vault("POST", path, {"batch_input": [bad], "partial_failure_response_code": 200})
    assert none.status == 400 and none.json["data"]["batch_results"] == [failed]
    assert vault.error("POST", path, {"batch_input": []}) == (400, "missing batch input to process")
    sealed = vault.data("POST", f"transit/encrypt/{key}", {"batch_input": [{"plaintext": PLAIN}] * 3})["batch_results"]
    assert len({item["ciphertext"] for item in sealed}) == 3


def test_rewrap_and_data_keys(vault, key):
    sealed = vault.encrypt(key)
    vault("POST", f"transit/keys/{key}/rotate", {})
    assert vault.data("POST", f"transit/rewrap/{key}", {"ciphertext": sealed})["ciphertext"].startswith("vault:v2:")
    fresh = vault.data("POST", f"transit/datakey/plaintext/{key}", {})
    assert vault.data("POST", f"transit/decrypt/{key}", {"ciphertext": fresh["ciphertext"]})["plaintext"] == fresh["plaintext"]
    assert "plaintext" not in vault.data("POST", f"transit/datakey/wrapped/{key}", {})


@pytest.mark.parametrize("derived", [False, True])
def test_batches_of_the_provider(server, vault, tmp_path, derived):
    """300 secrets, each under a context of its own, in three requests; a spoilt one is one item's matter, and costs its request
    one more: is the key still the one it was?"""
    key = f"provider-{derived}"
    vault.data("POST", f"transit/keys/{key}", {"derived": derived})
    (tmp_path / "token").write_text(ROOT)
    (tmp_path / "token").chmod(0o600)
    seen = server.admin("GET", "stats")["seq"]
    tool = pathlib.Path(os.environ.get("BUILD", "build")) / "tests" / "tools" / "kms_batch"
    result = subprocess.run([tool, server.url, key, tmp_path / "token", "300"], capture_output=True, text=True, timeout=60)
    assert result.stdout == "opened 258 bad 42 of 300, 128 at a time\n", result
    decrypts = [r for r in server.requests() if r["operation"] == "VaultDecrypt" and r["seq"] > seen]
    assert [r["context"]["items"] for r in decrypts] == [128, 1, 128, 1, 44, 1]


# --- keys ---

def test_key_properties(vault, key):
    data = vault.data("GET", f"transit/keys/{key}")
    assert KEY_MEMBERS <= set(data) and data["type"] == "aes256-gcm96" and list(data["keys"]) == ["1"]
    assert vault.error("GET", "transit/keys/none") == (404, None)
    assert vault.error("POST", "transit/decrypt/none", {"ciphertext": "vault:v1:abcd"}) == (400, "encryption key not found")


def test_versions(vault, key):
    old = vault.encrypt(key)
    vault("POST", f"transit/keys/{key}/rotate", {})
    assert vault.encrypt(key).startswith("vault:v2:")
    path = f"transit/decrypt/{key}"
    assert vault.data("POST", path, {"ciphertext": old}) == {"plaintext": PLAIN}
    assert vault("POST", f"transit/keys/{key}/config", {"min_decryption_version": 2}).status == 204
    too_old = "ciphertext or signature version is disallowed by policy (too old)"
    assert vault.error("POST", path, {"ciphertext": old}) == (400, too_old)
    assert vault.error("POST", f"transit/keys/{key}/config", {"min_decryption_version": 3})[0] == 400


def test_deletion(vault, key):
    sealed = vault.encrypt(key)
    assert vault.data("DELETE", f"transit/keys/{key}/soft-delete")["soft_deleted"] is True
    assert vault.error("POST", f"transit/decrypt/{key}", {"ciphertext": sealed}) == (400, "refusing to use soft-deleted key")
    assert vault.data("POST", f"transit/keys/{key}/soft-delete-restore")["soft_deleted"] is False
    vault.encrypt(key)
    refused = f"error deleting policy {key}: deletion is not allowed for this key"
    assert vault.error("DELETE", f"transit/keys/{key}") == (400, refused)
    vault("POST", f"transit/keys/{key}/config", {"deletion_allowed": True})
    assert vault("DELETE", f"transit/keys/{key}").status == 204
    assert vault.error("GET", f"transit/keys/{key}") == (404, None)


def test_rsa_keys_take_no_associated_data(vault):
    vault.data("POST", "transit/keys/rsa", {"type": "rsa-2048"})
    status, text = vault.error("POST", "transit/encrypt/rsa", {"plaintext": PLAIN, "associated_data": AAD})
    assert status == 400 and "provided for non-AEAD cipher suite rsa-2048" in text


# --- identities and policies ---

def test_policies(vault, key):
    path = f"transit/encrypt/{key}"
    vault.policy("writer", {path: ["update"], "transit/decrypt/*": ["update"], f"transit/decrypt/{key}": ["deny"]})
    token = vault.token("writer")
    assert vault("POST", path, {"plaintext": PLAIN}, token=token).status == 200
    for refused in (("POST", f"transit/decrypt/{key}"), ("GET", f"transit/keys/{key}"), ("POST", "sys/seal")):
        answer = vault(*refused, {} if refused[0] == "POST" else None, token=token)
        assert (answer.status, answer.json) == (403, DENIED)
    vault.policy("writer", {"transit/encrypt/upsert": ["update"]})
    assert vault.error("POST", "transit/encrypt/upsert", {"plaintext": PLAIN}, token=token) == (400, "encryption key not found")
    vault.policy("writer", {"transit/encrypt/upsert": ["create", "update"]})
    assert vault("POST", "transit/encrypt/upsert", {"plaintext": PLAIN}, token=token).status == 200
    vault("DELETE", "sys/policies/acl/writer")
    assert vault("POST", path, {"plaintext": PLAIN}, token=token).status == 403


def test_tokens(vault, server):
    token = vault.token(ttl="1h")
    assert SELF_MEMBERS <= set(vault.data("GET", "auth/token/lookup-self", token=token))
    renewed = vault("POST", "auth/token/renew-self", {}, token=token).json["auth"]
    assert 3500 < renewed["lease_duration"] <= 3600 and renewed["client_token"] == token
    for bad in (None, "hvs.unknown"):
        answer = vault("GET", "auth/token/lookup-self", token=bad)
        assert (answer.status, answer.json) == (403, INVALID)
    server.admin("POST", "vault/switch", {"openbao": True})
    assert vault.error("GET", "auth/token/lookup-self", token="hvs.unknown") == (403, "permission denied")
    server.admin("POST", "vault/switch", {"openbao": False})
    assert vault("POST", "auth/token/revoke-self", {}, token=token).status == 204
    assert vault("GET", "auth/token/lookup-self", token=token).json == INVALID
    fixed = vault.token(ttl="1h", renewable=False)
    assert vault.error("POST", "auth/token/renew-self", {}, token=fixed) == (400, "lease is not renewable")
    other = vault.token(ttl="1h")
    server.admin("POST", "vault/expire")
    assert vault("GET", "auth/token/lookup-self", token=other).status == 403


def test_approle(vault):
    assert vault("POST", "auth/approle/role/app", {"token_ttl": "20m", "token_max_ttl": "30m", "token_policies": ["p"]}).status == 204
    role_id = vault.data("GET", "auth/approle/role/app/role-id")["role_id"]
    secret_id = vault.data("POST", "auth/approle/role/app/secret-id", {})["secret_id"]
    auth = vault("POST", "auth/approle/login", {"role_id": role_id, "secret_id": secret_id}, token=None).json["auth"]
    assert LOGIN_MEMBERS <= set(auth) and auth["lease_duration"] == 1200 and auth["renewable"]
    assert auth["token_policies"] == ["p", "default"]
    refused = (400, "invalid role or secret ID")
    assert vault.error("POST", "auth/approle/login", {"role_id": role_id, "secret_id": "x"}, token=None) == refused
    vault("POST", "auth/approle/role/app/secret-id/destroy", {"secret_id": secret_id})
    assert vault.error("POST", "auth/approle/login", {"role_id": role_id, "secret_id": secret_id}, token=None) == refused


def test_a_tokens_greatest_age(vault):
    token = vault.token(ttl="1h", explicit_max_ttl="90s")
    assert vault("POST", "auth/token/renew-self", {}, token=token).json["auth"]["lease_duration"] <= 90


# --- the server ---

def test_seal(vault, key):
    assert vault("GET", "sys/health", token=None).status == 200
    assert vault("PUT", "sys/seal").status == 204
    assert vault("GET", "sys/health", token=None).status == 503
    assert vault("GET", "sys/seal-status", token=None).json["sealed"] is True
    assert vault.error("GET", f"transit/keys/{key}") == (503, "Vault is sealed")
    assert vault("PUT", "sys/unseal", {"key": "x"}, token=None).json["sealed"] is False
    vault.data("GET", f"transit/keys/{key}")


def test_mounts_and_namespaces(vault):
    status, text = vault.error("POST", "nothere/decrypt/k", {})
    assert (status, text) == (404, 'no handler for route "nothere/decrypt/k". route entry not found.')
    vault("POST", "sys/mounts/team/transit", {"type": "transit"})
    assert vault("POST", "transit/keys/k", {}, **{"X-Vault-Namespace": "team/"}).status == 200
    assert vault("GET", "team/transit/keys/k").status == 200 and vault.error("GET", "transit/keys/k") == (404, None)
    vault("DELETE", "sys/mounts/team/transit")
    assert vault.error("GET", "team/transit/keys/k")[0] == 404


def test_faults_and_the_switch(vault, server, key):
    token = vault.token("root2")
    vault.policy("root2", {"transit/*": ["read", "update"]})
    server.admin("POST", "vault/switch", {"deny": True})
    assert vault("GET", f"transit/keys/{key}", token=token).json == DENIED
    vault.data("GET", f"transit/keys/{key}")
    server.admin("POST", "vault/switch", {"deny": False})
    server.fault(operations=["VaultEncrypt"], error_type="x", error_status=429, error_message="rate limit quota exceeded", count=1)
    assert vault.error("POST", f"transit/encrypt/{key}", {"plaintext": PLAIN}) == (429, "rate limit quota exceeded")
    vault.encrypt(key)
    server.fault(operations=["VaultEncrypt"], raw_body="<html>no</html>", error_status=403, count=1)
    assert vault("POST", f"transit/encrypt/{key}", {"plaintext": PLAIN}).body == b"<html>no</html>"
    server.fault(operations=["VaultEncrypt"], deny_access=True, count=1)
    assert vault("POST", f"transit/encrypt/{key}", {"plaintext": PLAIN}).status == 403
    last = server.requests()[-1]
    assert last["operation"] == "VaultEncrypt" and last["result"] == "403"


def test_keys_and_tokens_outlive_the_server(tmp_path):
    from conftest import Devkms
    first = Devkms(tmp_path / "state").start()
    vault = Vault(first)
    vault.data("POST", "transit/keys/k", {})
    sealed, token = vault.encrypt("k"), vault.token("root")
    assert first.stop() == 0
    again = Devkms(tmp_path / "state").start()
    assert Vault(again).data("POST", "transit/decrypt/k", {"ciphertext": sealed}, token=token) == {"plaintext": PLAIN}
    assert again.stop() == 0
    assert (tmp_path / "state" / "vault.json").stat().st_mode & 0o777 == 0o600
