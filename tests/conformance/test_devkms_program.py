"""The program: options, restart, SIGKILL, stopping while requests hang, and its client verbs."""

import http.client
import json
import os
import pathlib
import select
import signal
import stat
import subprocess
import threading

import pytest
from conftest import ACCESS_KEY, ACCOUNT, PROGRAM, Devkms, b64, role_arn


def run(*arguments, env=None):
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=30, env=env)


def test_state_survives_sigkill(fresh):
    first = fresh()
    kms = first.client()
    enabled, disabled, doomed = (kms.create_key(Description=d)["KeyMetadata"]["Arn"] for d in ("enabled", "disabled", "doomed"))
    primary = kms.create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
    replica = kms.replicate_key(KeyId=primary, ReplicaRegion="eu-west-1")["ReplicaKeyMetadata"]["Arn"]
    kms.create_alias(AliasName="alias/kept", TargetKeyId=enabled)
    old = kms.generate_data_key(KeyId=enabled, KeySpec="AES_256", EncryptionContext={"a": "b"})
    first.raw("RotateKeyOnDemand", {"KeyId": enabled})
    kms.put_key_policy(KeyId=enabled, PolicyName="default", Policy='{"Statement":[]}')
    first.admin("POST", "role", {"role_arn": role_arn("kept"), "external_id": "e1"})
    session = first.client("sts").assume_role(RoleArn=role_arn("kept"), RoleSessionName="me", ExternalId="e1")["Credentials"]
    kms.disable_key(KeyId=disabled)
    kms.schedule_key_deletion(KeyId=doomed)
    before = {k: first.raw("DescribeKey", {"KeyId": k}).json for k in (enabled, disabled, doomed, primary)}
    order = [k["KeyArn"] for k in kms.list_keys()["Keys"]]
    first.stop(signal.SIGKILL)

    second = fresh()
    kms = second.client()
    assert before == {k: second.raw("DescribeKey", {"KeyId": k}).json for k in before}
    assert order == [k["KeyArn"] for k in kms.list_keys()["Keys"]]
    assert second.raw("Decrypt", {"CiphertextBlob": b64(old["CiphertextBlob"]), "KeyId": "alias/kept",
                                  "EncryptionContext": {"a": "b"}}).json["Plaintext"] == b64(old["Plaintext"])
    assert kms.get_key_policy(KeyId=enabled, PolicyName="default")["Policy"] == '{"Statement":[]}'
    assert second.client(region="eu-west-1").describe_key(KeyId=replica)["KeyMetadata"]["KeyState"] == "Enabled"
    as_role = second.client(access_key=session["AccessKeyId"], secret=session["SecretAccessKey"], token=session["SessionToken"])
    assert as_role.describe_key(KeyId=enabled)["KeyMetadata"]["Arn"] == enabled
    assert second.client("sts").assume_role(RoleArn=role_arn("kept"), RoleSessionName="me", ExternalId="e1")


def test_state_is_for_the_owner_only(fresh):
    server = fresh()
    assert stat.S_IMODE((server.state / "state.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(server.state.stat().st_mode) == 0o700


def test_one_server_per_state(fresh):
    server = fresh()
    second = run("--state", str(server.state))
    assert second.returncode == 9 and "another byokfs-devkms uses it" in second.stderr


def test_damaged_state_is_refused(tmp_path):
    for text in ("{", '{"version":2}', '{"version":1}', '{"version":1,"token_key":"AA=="}'):
        (tmp_path / "state.json").write_text(text)
        result = run("--state", str(tmp_path))
        assert result.returncode == 1 and str(tmp_path) in result.stderr
        assert (tmp_path / "state.json").read_text() == text


@pytest.mark.parametrize("address", ["0.0.0.0", "192.0.2.1", "::1", "localhost", "127.1"])
def test_only_loopback(tmp_path, address):
    result = run("--state", str(tmp_path / "s"), "--listen", address)
    assert result.returncode == 2 and "loopback interface only" in result.stderr
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("arguments", [
    [], ["--state"], ["--state", "s", "--port", "x"], ["--state", "s", "--port", "65536"], ["--state", "s", "more"],
    ["--state", "s", "--access-key", "AKIAONLY000000000000"], ["--state", "s", "--account", "12"], ["--state", "s", "--region", "a b"],
    ["--nonsense"], ["status"], ["disable", "--endpoint", "http://127.0.0.1:1", "extra"]])
def test_usage_errors(arguments, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    result = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=30, cwd=tmp_path, env=env)
    assert result.returncode == 2 and result.stderr


def test_help_and_version():
    assert run("--help").stdout.startswith("usage: byokfs-devkms")
    assert run("--version").stdout.startswith("byokfs-devkms ")


def test_says_what_it_is(tmp_path):
    process = subprocess.Popen([PROGRAM, "--state", str(tmp_path / "s"), "--create-key", "--alias", "try"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.stdout.read(), process.stderr.read()
    assert process.wait(timeout=30) == 0
    assert "NOT FOR PRODUCTION" in err
    assert first.startswith("listening on http://127.0.0.1:")
    key, alias = [line.split() for line in out.splitlines()[2:]]
    assert key[0] == "key" and key[1].startswith(f"arn:aws:kms:us-east-1:{ACCOUNT}:key/") and key[2] == "Enabled"
    assert alias == ["alias/try", key[1]]


def test_first_key_is_made_once(fresh):
    options = ("--create-key", "--multi-region", "--alias", "alias/first")
    server = fresh(*options)
    arn = server.client().describe_key(KeyId="alias/first")["KeyMetadata"]["Arn"]
    assert "/mrk-" in arn
    server.stop()
    again = fresh(*options)
    assert [k["KeyArn"] for k in again.client().list_keys()["Keys"]] == [arn]


def test_own_credentials_region_account_and_port_file(fresh, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s3cret/value+x\n")
    port = tmp_path / "port"
    server = fresh("--access-key", "AKIAMINE000000000000", "--secret-file", str(secret), "--account", "999988887777", "--region",
                   "eu-central-1", "--port-file", str(port), "--create-key")
    mine = server.client(region="eu-central-1", access_key="AKIAMINE000000000000", secret="s3cret/value+x")
    assert mine.list_keys()["Keys"][0]["KeyArn"].startswith("arn:aws:kms:eu-central-1:999988887777:key/")
    assert int(port.read_text()) == server.port
    assert server.raw("ListKeys", {}, access_key=ACCESS_KEY).type == "UnrecognizedClientException"
    assert not any("s3cret" in line for line in server.lines)


def test_secret_file_must_be_there(tmp_path):
    result = run("--state", str(tmp_path / "s"), "--access-key", "AKIAMINE000000000000", "--secret-file", str(tmp_path / "none"))
    assert result.returncode == 3 and str(tmp_path / "none") in result.stderr


def test_stops_while_requests_hang(fresh):
    server = fresh("--create-key")
    server.fault(hang=True, operations=["ListKeys"])

    def one():
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            server.raw("ListKeys", {}, timeout=30)

    idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    idle.request("GET", "/_devkms/keys")
    assert len(json.loads(idle.getresponse().read())) == 1
    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert server.stop() == 0
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    idle.close()


def test_daemon(tmp_path):
    pid, port = tmp_path / "pid", tmp_path / "port"
    result = run("--state", str(tmp_path / "s"), "--daemon", "--pid-file", str(pid), "--port-file", str(port), "--create-key")
    assert result.returncode == 0 and result.stdout.startswith("listening on ")
    child = int(pid.read_text())
    handle = os.pidfd_open(child)
    try:
        server = Devkms(tmp_path / "s")
        server.port = int(port.read_text())
        assert len(server.client().list_keys()["Keys"]) == 1
    finally:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        # not our child: its end shows on the descriptor
        assert select.select([handle], [], [], 30)[0]
        os.close(handle)
    assert not pid.exists()


def test_a_daemon_that_cannot_start_says_so(fresh, tmp_path):
    server = fresh()
    result = run("--state", str(tmp_path / "other"), "--daemon", "--port", str(server.port))
    assert result.returncode == 1 and "cannot listen" in result.stderr


def test_revocation_drill(fresh):
    server = fresh("--create-key", "--alias", "drill")
    other = server.client().create_key()["KeyMetadata"]["Arn"]
    key = server.client().describe_key(KeyId="alias/drill")["KeyMetadata"]["Arn"]
    status = run("status", "--endpoint", server.url)
    assert status.returncode == 0 and sorted(status.stdout.splitlines()) == sorted([f"{key} Enabled alias/drill", f"{other} Enabled"])
    disabled = run("disable", "--endpoint", server.url + "/", "--key", key)
    assert disabled.stdout == f"{key} Disabled alias/drill\n"
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"}).type == "DisabledException"
    assert server.raw("GenerateDataKey", {"KeyId": other, "KeySpec": "AES_256"}).status == 200
    env = {**os.environ, "AWS_ENDPOINT_URL": server.url}
    assert run("disable", env=env).stdout.count(" Disabled") == 2
    assert run("enable", env=env).stdout.count(" Enabled") == 2
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"}).status == 200
    missing = run("disable", "--endpoint", server.url, "--key", "none")
    assert missing.returncode == 1 and "no such key" in missing.stderr


def test_client_without_a_server(fresh):
    server = fresh()
    url = server.url
    server.stop()
    result = run("status", "--endpoint", url)
    assert result.returncode == 6 and url in result.stderr


def test_man_page_names_every_option():
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "byokfs-devkms.1").read_text().replace("\\-", "-")
    words = run("--help").stdout.replace("[", " ").replace("]", " ").replace("|", " ").split()
    options = {w for w in words if w.startswith("--")}
    assert len(options) > 12
    for option in options:
        assert f"Fl -{option[2:]}" in page, option
