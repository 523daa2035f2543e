"""Signatures, times, sessions: who may ask. The signer is botocore's; the verifier shares no code with byokfs's signer."""

import datetime
import json
import shutil
import subprocess
import urllib.parse

import pytest
from botocore.exceptions import ClientError
from conftest import ACCESS_KEY, ACCOUNT, REGION, SECRET, message_of, role_arn

WEB_TOKEN = "header.payload.signature+/="


def refused(code):
    return pytest.raises(ClientError, match=rf"\({code}\)")


def test_wrong_secret(server):
    answer = server.raw("ListKeys", {}, secret="not the secret")
    assert (answer.status, answer.type) == (400, "InvalidSignatureException")
    assert answer.json["message"].startswith("The request signature we calculated does not match the signature you provided.")


def test_unknown_access_key(server):
    answer = server.raw("ListKeys", {}, access_key="AKIAUNKNOWN000000000")
    assert (answer.status, answer.type) == (400, "UnrecognizedClientException")
    assert answer.json["message"] == "The security token included in the request is invalid."


def test_no_signature(server):
    answer = server.http("POST", "/", "{}", {"X-Amz-Target": "TrentService.ListKeys"})
    assert (answer.status, answer.type) == (400, "MissingAuthenticationTokenException")


@pytest.mark.parametrize("value", [
    "Bearer x", "AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256 Credential=a/b/c/d/e", "AWS4-HMAC-SHA256 " + "x" * 5000,
    "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=00",
    "AWS4-HMAC-SHA256 XCredential=a/b/c/d/e, SignedHeaders=host, Signature=00"])
def test_malformed_authorization(server, value):
    body, headers = server.sign("ListKeys", {})
    answer = server.http("POST", "/", body, dict(headers, Authorization=value))
    assert (answer.status, answer.type) == (400, "IncompleteSignatureException")


@pytest.mark.parametrize("ago, words", [(901, "Signature expired: "), (-960, "Signature not yet current: ")])
def test_times_too_far_away(server, ago, words):
    answer = server.raw("ListKeys", {}, ago=ago)
    assert answer.type == "InvalidSignatureException" and answer.json["message"].startswith(words)
    assert "15 min.)" in answer.json["message"]


@pytest.mark.parametrize("ago", [840, -840])
def test_times_near_enough(server, ago):
    assert server.raw("ListKeys", {}, ago=ago).status == 200


def test_the_servers_clock_can_be_wrong(server, kms):
    server.fault(clock_skew_s=3600)
    assert server.raw("ListKeys", {}).json["message"].startswith("Signature expired: ")
    answer = server.raw("ListKeys", {}, ago=-3600)
    assert answer.status == 200


def test_scope(server):
    assert "correct service: 'kms'" in server.raw("ListKeys", {}, service="sts").json["message"]
    assert "valid region" in server.raw("ListKeys", {}, region="Not-A-Region").json["message"]
    body, headers = server.sign("ListKeys", {})
    for old, new, words in (("aws4_request", "aws5_request", "valid terminator"),
                            ("/20", "/19", "Date in Credential scope does not match")):
        changed = dict(headers, Authorization=headers["Authorization"].replace(old, new, 1))
        answer = server.http("POST", "/", body, changed)
        assert answer.type == "InvalidSignatureException" and words in answer.json["message"]


def test_every_signed_part_counts(server):
    body, headers = server.sign("ListKeys", '{"Limit":1}')
    assert server.http("POST", "/", body, headers).status == 200
    mismatch = "does not match the signature"
    assert mismatch in server.http("POST", "/", '{"Limit":2}', headers).json["message"]
    assert mismatch in server.http("POST", "/?a=b", body, headers).json["message"]
    assert mismatch in server.http("POST", "/", body, dict(headers, **{"Content-Type": "text/plain"})).json["message"]
    assert mismatch in server.http("POST", "/", body, dict(headers, **{"X-Amz-Target": "TrentService.ListAliases"})).json["message"]
    cut = dict(headers, Authorization=headers["Authorization"][:-1])
    assert mismatch in server.http("POST", "/", body, cut).json["message"]


@pytest.mark.parametrize("name", ["host", "x-amz-date", "x-amz-target"])
def test_headers_that_must_be_signed(server, name):
    body, headers = server.sign("ListKeys", {})
    signed = headers["Authorization"]
    at = signed.index("SignedHeaders=") + len("SignedHeaders=")
    names = signed[at:signed.index(",", at)].split(";")
    assert name in names
    fewer = ";".join(n for n in names if n != name)
    headers["Authorization"] = signed.replace(";".join(names), fewer)
    answer = server.http("POST", "/", body, headers)
    assert answer.type == "InvalidSignatureException" and "must be a 'SignedHeader'" in answer.json["message"]


def test_a_token_must_be_signed(server):
    credentials = session(server, "tokens")
    body, headers = server.sign("ListKeys", {}, access_key=credentials["AccessKeyId"], secret=credentials["SecretAccessKey"])
    headers["X-Amz-Security-Token"] = credentials["SessionToken"]
    answer = server.http("POST", "/", body, headers)
    assert answer.type == "InvalidSignatureException" and "must be a 'SignedHeader'" in answer.json["message"]


def test_odd_blanks_in_a_header(server):
    body, headers = server.sign("ListKeys", {}, extra={"X-Odd": "a   b  c"})
    assert server.http("POST", "/", body, headers).status == 200
    assert server.http("POST", "/", body, dict(headers, **{"X-Odd": "a b c"})).status == 200
    assert server.http("POST", "/", body, dict(headers, **{"X-Odd": "a bc"})).type == "InvalidSignatureException"


def test_libcurls_signer(server, key):
    if not shutil.which("curl"):
        pytest.skip("no curl")
    out = subprocess.run(
        ["curl", "-s", "--aws-sigv4", f"aws:amz:{REGION}:kms", "--user", f"{ACCESS_KEY}:{SECRET}", "-H", "X-Amz-Target: TrentService.DescribeKey",
         "-H", "Content-Type: application/x-amz-json-1.1", "-d", '{"KeyId":"%s"}' % key, server.url + "/"],
        env=server.environment(), capture_output=True, check=True, timeout=30)
    assert key.encode() in out.stdout


def session(server, name, **trust):
    """Credentials of a role made for the occasion."""
    server.admin("POST", "role", dict(trust, role_arn=role_arn(name)))
    arguments = {"ExternalId": trust["external_id"]} if "external_id" in trust else {}
    return server.client("sts").assume_role(RoleArn=role_arn(name), RoleSessionName="byokfs-host", **arguments)["Credentials"]


def kms_as(server, credentials):
    return server.client(access_key=credentials["AccessKeyId"], secret=credentials["SecretAccessKey"], token=credentials["SessionToken"])


def test_caller_identity(server):
    identity = server.client("sts").get_caller_identity()
    assert (identity["Account"], identity["Arn"]) == (ACCOUNT, f"arn:aws:iam::{ACCOUNT}:user/devkms")
    with refused("SignatureDoesNotMatch") as error:
        server.client("sts", secret="wrong").get_caller_identity()
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    with refused("InvalidClientTokenId"):
        server.client("sts", access_key="AKIAUNKNOWN000000000").get_caller_identity()


def test_assume_role_and_use_it(server, kms, key):
    credentials = session(server, "plain")
    as_role = server.client("sts", access_key=credentials["AccessKeyId"], secret=credentials["SecretAccessKey"],
                            token=credentials["SessionToken"])
    assert as_role.get_caller_identity()["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/plain/byokfs-host"
    made = kms_as(server, credentials).generate_data_key(KeyId=key, KeySpec="AES_256")
    assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"] == made["Plaintext"]
    assert server.requests()[-2]["access_key"] == credentials["AccessKeyId"]


def test_external_id(server):
    session(server, "outsider", external_id="customer-42")
    sts = server.client("sts")
    for arguments in ({}, {"ExternalId": "customer-43"}, {"ExternalId": "customer-422"}):
        with refused("AccessDenied") as error:
            sts.assume_role(RoleArn=role_arn("outsider"), RoleSessionName="byokfs-host", **arguments)
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
        assert message_of(error) == (f"User: arn:aws:iam::{ACCOUNT}:user/devkms is not authorized to perform: sts:AssumeRole on "
                                     f"resource: {role_arn('outsider')}")


def test_unknown_role_and_withdrawn_trust(server, kms, key):
    sts = server.client("sts")
    with refused("AccessDenied"):
        sts.assume_role(RoleArn=role_arn("nobody"), RoleSessionName="byokfs-host")
    credentials = session(server, "fickle")
    server.admin("DELETE", "role", {"role_arn": role_arn("fickle")})
    with refused("AccessDenied"):
        sts.assume_role(RoleArn=role_arn("fickle"), RoleSessionName="byokfs-host")
    # what was given out lives on until it ends, as with the real service
    assert kms_as(server, credentials).describe_key(KeyId=key)["KeyMetadata"]["Arn"] == key


@pytest.mark.parametrize("arguments", [
    {"RoleSessionName": "a b"}, {"RoleSessionName": "x" * 65}, {"DurationSeconds": 43201}, {"RoleArn": "arn:aws:iam::1:user/nobody-at-all"}])
def test_assume_role_limits(server, arguments):
    session(server, "limits")
    call = dict({"RoleArn": role_arn("limits"), "RoleSessionName": "byokfs-host"}, **arguments)
    with refused("ValidationError"):
        server.client("sts", parameter_validation=False).assume_role(**call)


def test_sessions_end(server, kms):
    credentials = session(server, "short", session_seconds=60)
    how = {"access_key": credentials["AccessKeyId"], "secret": credentials["SecretAccessKey"], "token": credentials["SessionToken"]}
    assert server.raw("ListKeys", {}, **how).status == 200
    server.fault(clock_skew_s=61)
    answer = server.raw("ListKeys", {}, ago=-61, **how)
    assert (answer.status, answer.type) == (400, "ExpiredTokenException")
    with refused("ExpiredToken"):
        server.client("sts", access_key=how["access_key"], secret=how["secret"], token=how["token"]).get_caller_identity()


@pytest.mark.parametrize("change", [
    {"token": None}, {"token": "AAAA"}, {"token": "not base64"}, {"access_key": ACCESS_KEY, "secret": SECRET}])
def test_a_session_is_of_one_piece(server, change):
    credentials = session(server, "whole")
    how = {"access_key": credentials["AccessKeyId"], "secret": credentials["SecretAccessKey"], "token": credentials["SessionToken"]}
    assert server.raw("ListKeys", {}, **dict(how, **change)).type == "UnrecognizedClientException"


def web_identity(server, token, role="pod"):
    form = urllib.parse.urlencode({"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleArn": role_arn(role),
                                   "RoleSessionName": "byokfs-pod", "WebIdentityToken": token})
    return server.http("POST", "/", form, {"Content-Type": "application/x-www-form-urlencoded"})


def test_web_identity(server, kms, key):
    server.admin("POST", "role", {"role_arn": role_arn("pod"), "web_identity_token": WEB_TOKEN})
    answer = server.client("sts").assume_role_with_web_identity(RoleArn=role_arn("pod"), RoleSessionName="byokfs-pod",
                                                                WebIdentityToken=WEB_TOKEN)
    assert answer["AssumedRoleUser"]["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/pod/byokfs-pod"
    assert kms_as(server, answer["Credentials"]).describe_key(KeyId=key)["KeyMetadata"]["Arn"] == key
    assert web_identity(server, WEB_TOKEN).status == 200
    wrong = web_identity(server, WEB_TOKEN + "x")
    assert wrong.status == 400 and b"<Code>InvalidIdentityToken</Code>" in wrong.body
    server.admin("POST", "role", {"role_arn": role_arn("pod")})
    assert web_identity(server, WEB_TOKEN).status == 403


def test_unknown_action_of_sts(server):
    answer = server.http("POST", "/", "Action=GetFederationToken&Version=2011-06-15")
    assert answer.status == 400 and b"<Code>InvalidAction</Code>" in answer.body


def test_instance_metadata(server, key):
    listing = "/latest/meta-data/iam/security-credentials/"
    assert server.http("GET", listing).status == 401
    assert server.http("PUT", "/latest/api/token").status == 400
    token = server.http("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "21600"}).body.decode()
    headers = {"X-aws-ec2-metadata-token": token}
    assert server.http("GET", listing, headers=dict(headers, **{"X-aws-ec2-metadata-token": "x"})).status == 401
    role = server.http("GET", listing, headers=headers).body.decode()
    found = server.http("GET", listing + role, headers=headers).json
    assert found["Code"] == "Success" and found["Expiration"].endswith("Z")
    answer = server.raw("DescribeKey", {"KeyId": key}, access_key=found["AccessKeyId"], secret=found["SecretAccessKey"], token=found["Token"])
    assert answer.status == 200
    assert server.http("GET", "/latest/meta-data/placement/region", headers=headers).body.decode() == REGION


def test_container_credentials(server, key):
    def used(answer):
        found = answer.json
        return server.raw("DescribeKey", {"KeyId": key}, access_key=found["AccessKeyId"], secret=found["SecretAccessKey"],
                          token=found["Token"]).status

    for path in ("/v1/credentials", "/v2/credentials/some-id"):
        assert used(server.http("GET", path)) == 200
    assert server.http("POST", "/v1/credentials").status == 405
    server.admin("POST", "metadata", {"container_token": "Bearer x", "session_seconds": 60})
    assert server.http("GET", "/v1/credentials").status == 401
    assert server.http("GET", "/v1/credentials", headers={"Authorization": "Bearer y"}).status == 401
    answer = server.http("GET", "/v1/credentials", headers={"Authorization": "Bearer x"})
    end = datetime.datetime.strptime(answer.json["Expiration"], "%Y-%m-%dT%H:%M:%SZ")
    assert used(answer) == 200 and end <= datetime.datetime.utcnow() + datetime.timedelta(seconds=61)
    server.admin("POST", "metadata", {"code": "AssumeRoleUnauthorizedAccess"})
    assert server.http("GET", "/v1/credentials").json["Code"] == "AssumeRoleUnauthorizedAccess"
    server.admin("POST", "metadata", {"status": 503})
    assert server.http("GET", "/v1/credentials").status == 503
    for wrong in ({"status": 1}, {"session_seconds": -1}, {"code": 7}):
        assert server.http("POST", "/_devkms/metadata", json.dumps(wrong)).status == 400
    server.admin("POST", "metadata", {})
    assert used(server.http("GET", "/v1/credentials")) == 200


def test_session_token_is_no_metadata_token(server):
    token = session(server, "mixed")["SessionToken"]
    answer = server.http("GET", "/latest/meta-data/placement/region", headers={"X-aws-ec2-metadata-token": token})
    assert answer.status == 401
