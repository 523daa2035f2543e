"""Debian's awscli against byokfs-devkms: the same operations through a client that is configured by environment only."""

import base64
import json
import subprocess

import pytest
from conftest import role_arn

AWS = "/usr/bin/aws"


@pytest.fixture
def aws(server, tmp_path):
    """Runs one command; the parsed answer, or the error text."""

    def run(*arguments, fails=False, env=None):
        result = subprocess.run([AWS, "--endpoint-url", server.url, "--output", "json", *arguments], capture_output=True, text=True,
                                timeout=60, cwd=tmp_path, env={**server.environment(), **(env or {})})
        assert (result.returncode != 0) == fails, result.stderr
        return result.stderr if fails else json.loads(result.stdout or "{}")

    return run


def test_a_life_of_a_key(server, kms, aws, tmp_path):
    key = aws("kms", "create-key", "--description", "cli")["KeyMetadata"]["Arn"]
    aws("kms", "create-alias", "--alias-name", "alias/cli", "--target-key-id", key)
    assert aws("kms", "describe-key", "--key-id", "alias/cli")["KeyMetadata"]["Arn"] == key
    assert [a["AliasName"] for a in aws("kms", "list-aliases", "--key-id", key)["Aliases"]] == ["alias/cli"]
    made = aws("kms", "generate-data-key", "--key-id", "alias/cli", "--key-spec", "AES_256", "--encryption-context", "a=b")
    assert made["KeyId"] == key
    blob = tmp_path / "blob"
    blob.write_bytes(base64.b64decode(made["CiphertextBlob"]))
    decrypt = ("kms", "decrypt", "--ciphertext-blob", f"fileb://{blob}", "--key-id", key, "--encryption-context", "a=b")
    assert aws(*decrypt)["Plaintext"] == made["Plaintext"]
    assert "(InvalidCiphertextException)" in aws(*decrypt[:-1], "a=c", fails=True)
    aws("kms", "disable-key", "--key-id", key)
    assert f"(DisabledException) when calling the Decrypt operation: {key} is disabled." in aws(*decrypt, fails=True)
    aws("kms", "enable-key", "--key-id", key)
    moved = aws("kms", "re-encrypt", "--ciphertext-blob", f"fileb://{blob}", "--source-encryption-context", "a=b", "--destination-key-id",
                key, "--destination-encryption-context", "a=c")
    assert moved["SourceKeyId"] == moved["KeyId"] == key
    aws("kms", "schedule-key-deletion", "--key-id", key, "--pending-window-in-days", "7")
    assert "(KMSInvalidStateException)" in aws(*decrypt, fails=True)
    aws("kms", "cancel-key-deletion", "--key-id", key)
    assert aws("kms", "describe-key", "--key-id", key)["KeyMetadata"]["KeyState"] == "Disabled"


def test_settings(kms, aws, key):
    aws("kms", "enable-key-rotation", "--key-id", key)
    assert aws("kms", "get-key-rotation-status", "--key-id", key)["KeyRotationEnabled"] is True
    aws("kms", "put-key-policy", "--key-id", key, "--policy-name", "default", "--policy", '{"Statement":[]}')
    assert aws("kms", "get-key-policy", "--key-id", key, "--policy-name", "default")["Policy"] == '{"Statement":[]}'
    assert len(base64.b64decode(aws("kms", "generate-random", "--number-of-bytes", "9")["Plaintext"])) == 9
    assert key in [k["KeyArn"] for k in aws("kms", "list-keys", "--page-size", "3")["Keys"]]


def test_replica(kms, aws):
    primary = aws("kms", "create-key", "--multi-region")["KeyMetadata"]["Arn"]
    replica = aws("kms", "replicate-key", "--key-id", primary, "--replica-region", "eu-west-1")["ReplicaKeyMetadata"]["Arn"]
    assert aws("kms", "describe-key", "--key-id", replica, "--region", "eu-west-1")["KeyMetadata"]["KeyState"] == "Enabled"
    assert "Invalid arn eu-west-1" in aws("kms", "describe-key", "--key-id", replica, fails=True)


def test_role(server, kms, aws, key):
    server.admin("POST", "role", {"role_arn": role_arn("cli"), "external_id": "e-1"})
    assume = ("sts", "assume-role", "--role-arn", role_arn("cli"), "--role-session-name", "cli")
    assert "(AccessDenied)" in aws(*assume, fails=True)
    credentials = aws(*assume, "--external-id", "e-1", "--duration-seconds", "900")["Credentials"]
    env = {"AWS_ACCESS_KEY_ID": credentials["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
           "AWS_SESSION_TOKEN": credentials["SessionToken"]}
    assert aws("sts", "get-caller-identity", env=env)["Arn"].endswith(":assumed-role/cli/cli")
    assert aws("kms", "describe-key", "--key-id", key, env=env)["KeyMetadata"]["Arn"] == key
