"""Each fault does what it says, to the operations it names, and nothing else; the statistics tell who did what."""

import http.client
import json
import threading
import time

import pytest
from botocore.exceptions import ClientError
from conftest import REGION, ACCOUNT, b64


@pytest.fixture
def call(server, kms, key):
    """GenerateDataKey, answer uninterpreted."""
    return lambda **how: server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"}, **how)


def test_error(server, call):
    server.fault(error_type="ThrottlingException", error_message="Rate exceeded")
    answer = call()
    assert (answer.status, answer.json) == (400, {"__type": "ThrottlingException", "message": "Rate exceeded"})
    server.admin("DELETE", "fault")
    assert call().status == 200


def test_error_with_status(server, call):
    server.fault(error_type="KMSInternalException", error_status=500)
    answer = call()
    assert (answer.status, answer.json) == (500, {"__type": "KMSInternalException"})


def test_error_in_header(server, call):
    server.fault(error_type="DisabledException", error_in_header=True, error_message="x is disabled.")
    answer = call()
    assert answer.headers["x-amzn-ErrorType"] == "DisabledException" and answer.json == {"message": "x is disabled."}


def test_error_of_sts_is_xml(server, kms):
    server.fault(error_type="ThrottlingException", error_message="a < b & c")
    with pytest.raises(ClientError) as error:
        server.client("sts").get_caller_identity()
    assert error.value.response["Error"]["Code"] == "Throttling" and error.value.response["Error"]["Message"] == "a < b & c"


def test_rates(server, call):
    server.fault(error_type="ThrottlingException", error_rate=0.5)
    statuses = [call().status for _ in range(100)]
    assert 10 < statuses.count(400) < 90
    server.fault(error_type="ThrottlingException", error_rate=0)
    assert {call().status for _ in range(10)} == {200}


def test_count(server, call):
    server.fault(error_type="ThrottlingException", count=2)
    assert [call().status for _ in range(4)] == [400, 400, 200, 200]
    assert server.admin("GET", "fault") == []


def test_operations(server, kms, key):
    server.fault(error_type="ThrottlingException", operations=["Decrypt"])
    blob = kms.generate_data_key(KeyId=key, KeySpec="AES_256")["CiphertextBlob"]
    with pytest.raises(ClientError):
        kms.decrypt(CiphertextBlob=blob)


def test_several_faults_the_first_that_fits(server, kms, key):
    server.admin("POST", "fault", [{"operations": ["Decrypt"], "error_type": "DisabledException"}, {"error_type": "ThrottlingException"}])
    assert server.raw("Decrypt", {"CiphertextBlob": "eA=="}).type == "DisabledException"
    assert server.raw("DescribeKey", {"KeyId": key}).type == "ThrottlingException"


def test_raw_body(server, call):
    server.fault(raw_body="<html>forbidden</html>", error_status=403)
    answer = call()
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (403, b"<html>forbidden</html>", "text/html")
    server.fault(raw_body="<Error/>", raw_type="application/xml", error_status=503, no_request_id=True)
    answer = call()
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/xml")
    assert "x-amzn-RequestId" not in answer.headers


def test_no_request_id(server, call):
    server.fault(no_request_id=True)
    answer = call()
    assert answer.status == 200 and "x-amzn-RequestId" not in answer.headers


def test_bad_json(server, call):
    server.fault(bad_json=True)
    answer = call()
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.body)


def test_huge(server, call):
    server.fault(huge=True)
    answer = call()
    assert len(answer.body) == 1 << 20 and len(answer.json["Plaintext"]) == 44


def test_truncated_body(server, call):
    server.fault(truncate_body=True)
    with pytest.raises(http.client.IncompleteRead) as error:
        call()
    assert error.value.partial and error.value.expected > 0


def test_wrong_key_id(server, call, key):
    server.fault(wrong_key_id=True)
    assert call().json["KeyId"] == f"arn:aws:kms:{REGION}:{ACCOUNT}:key/00000000-0000-4000-8000-000000000000" != key


def test_wrong_plaintext(server, kms, key):
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    server.fault(wrong_plaintext=True)
    back = kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"]
    assert len(back) == 32 and back != made["Plaintext"]


@pytest.mark.parametrize("size", [0, 16, 33])
def test_plaintext_size(server, call, size):
    server.fault(plaintext_size=size)
    text = call().json["Plaintext"]
    assert len(text) == (size + 2) // 3 * 4


@pytest.mark.parametrize("size, real", [(96, 134), (134, 134), (143, 143), (1000, 1000), (6144, 6144)])
def test_blob_size(server, kms, key, size, real):
    server.fault(blob_size=size)
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext={"a": "b"})
    assert len(made["CiphertextBlob"]) == real
    server.admin("DELETE", "fault")
    assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext={"a": "b"})["Plaintext"] == made["Plaintext"]


def test_deny_access(server, call, key):
    server.fault(deny_access=True)
    answer = call()
    assert (answer.status, answer.type) == (400, "AccessDeniedException")
    assert answer.json["message"].startswith(
        f"User: arn:aws:iam::{ACCOUNT}:user/devkms is not authorized to perform: kms:GenerateDataKey on resource: {key} because")


def test_latency_is_a_lower_bound(server, call):
    server.fault(latency_ms=120)
    begin = time.monotonic()
    assert call().status == 200
    assert time.monotonic() - begin >= 0.120


def test_slow_requests_wait_side_by_side(server, call, kms, key):
    """32 hang at once; others pass; all are let go when the fault is cleared."""
    server.fault(hang=True, operations=["GenerateDataKey"])
    outcomes = []

    def one():
        try:
            outcomes.append(call().status)
        except (http.client.HTTPException, ConnectionError) as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=one) for _ in range(32)]
    for thread in threads:
        thread.start()
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["Arn"] == key
    assert outcomes == []
    server.admin("DELETE", "fault")
    for thread in threads:
        thread.join(timeout=30)
    # a request that arrived only after the clearing was served
    assert len(outcomes) == 32 and {o for o in outcomes if o != 200} <= {http.client.RemoteDisconnected, ConnectionResetError}


def test_a_client_that_leaves_ends_its_hang(server, call):
    server.admin("POST", "reset-stats")
    server.fault(hang=True)
    with pytest.raises(TimeoutError):
        call(timeout=0.1)
    for _ in range(1000):
        counters = server.admin("GET", "stats")["operations"].get("GenerateDataKey")
        if counters:
            break
        time.sleep(0.01)
    assert counters == {"calls": 1, "ok": 0, "errors": {"hung": 1}}


def test_drop(server, call):
    server.fault(drop_rate=1.0)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        call()


@pytest.mark.parametrize("body", [
    {"latencyms": 1}, {"latency_ms": "1"}, {"latency_ms": -1}, {"drop_rate": 2}, {"hang": 1}, {"error_type": "x" * 64},
    {"blob_size": 6145}, {"error_status": 99}, {"raw_body": "x" * 4096}, [{}] * 9, [{"hang": True}, {"what": 1}], "text"])
def test_faults_are_checked(server, kms, body):
    server.fault(no_request_id=True)
    answer = server.http("POST", "/_devkms/fault", json.dumps(body))
    assert answer.status == 400 and "error" in answer.json
    # and the one in force stays
    assert [f["no_request_id"] for f in server.admin("GET", "fault")] == [True]


def test_statistics(server, kms, key):
    server.admin("POST", "reset-stats")
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext={"byokfs-file": "1"})
    other = kms.create_key()["KeyMetadata"]["Arn"]
    kms.re_encrypt(CiphertextBlob=made["CiphertextBlob"], SourceEncryptionContext={"byokfs-file": "1"}, DestinationKeyId=other,
                   DestinationEncryptionContext={"byokfs-file": "2"})
    refusal = server.raw("Decrypt", {"CiphertextBlob": b64(made["CiphertextBlob"]), "KeyId": key})
    stats = server.admin("GET", "stats")
    assert stats["operations"]["GenerateDataKey"] == {"calls": 1, "ok": 1, "errors": {}}
    assert stats["operations"]["Decrypt"] == {"calls": 1, "ok": 0, "errors": {"InvalidCiphertextException": 1}}
    first, _, moved, last = stats["requests"]
    assert (first["operation"], first["key"], first["context"], first["result"]) == ("GenerateDataKey", key, {"byokfs-file": "1"}, "ok")
    assert first["request_id"] == made["ResponseMetadata"]["HTTPHeaders"]["x-amzn-requestid"]
    assert (moved["key"], moved["context"]) == (key, {"byokfs-file": "1"})
    assert (moved["destination_key"], moved["destination_context"]) == (other, {"byokfs-file": "2"})
    assert last["result"] == "InvalidCiphertextException" and last["request_id"] == refusal.headers["x-amzn-RequestId"]
    assert "context" not in last
    assert [r["seq"] for r in server.admin("GET", f"stats?since={moved['seq']}")["requests"]] == [last["seq"]]
    assert [r["seq"] for r in server.admin("GET", "stats?last=1")["requests"]] == [last["seq"]]


def test_administration_is_not_for_browsers(server):
    assert server.http("GET", "/_devkms/stats", headers={"Origin": "http://example.org"}).status == 403
    assert server.http("GET", "/_devkms/nothing").status == 404
    assert server.http("PUT", "/_devkms/fault").status == 404
    assert server.http("POST", "/_devkms/fault", "{").status == 400
