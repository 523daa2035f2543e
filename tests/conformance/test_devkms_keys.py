"""Keys, their states, aliases, policies: as boto3 sees them."""

import datetime
import json

import pytest
from botocore.exceptions import ClientError
from conftest import ACCOUNT, REGION, message_of


def refused(code):
    return pytest.raises(ClientError, match=rf"\({code}\)")


def test_create_and_describe(kms):
    made = kms.create_key(Description="a key")["KeyMetadata"]
    assert made == kms.describe_key(KeyId=made["KeyId"])["KeyMetadata"]
    assert made == kms.describe_key(KeyId=made["Arn"])["KeyMetadata"]
    assert made["Arn"] == f"arn:aws:kms:{REGION}:{ACCOUNT}:key/{made['KeyId']}"
    expected = {
        "AWSAccountId": ACCOUNT, "Description": "a key", "Enabled": True, "KeyState": "Enabled", "KeyUsage": "ENCRYPT_DECRYPT",
        "Origin": "AWS_KMS", "KeyManager": "CUSTOMER", "KeySpec": "SYMMETRIC_DEFAULT",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT", "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"], "MultiRegion": False}
    assert expected.items() <= made.items()
    assert "MultiRegionConfiguration" not in made


def test_current_material_is_shown(server, key):
    metadata = server.raw("DescribeKey", {"KeyId": key}).json["KeyMetadata"]
    assert len(bytes.fromhex(metadata["CurrentKeyMaterialId"])) == 32


@pytest.mark.parametrize("arguments, code", [
    ({"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}, "UnsupportedOperationException"),
    ({"KeyUsage": "SIGN_VERIFY"}, "ValidationException"),
    ({"Origin": "AWS_CLOUDHSM"}, "UnsupportedOperationException"),
])
def test_other_kinds_of_key_are_refused(kms, arguments, code):
    with refused(code):
        kms.create_key(**arguments)


@pytest.mark.parametrize("name, message", [
    ("fake-key-id", "Invalid keyId 'fake-key-id'"),
    ("mrk-fake-key-id", "Invalid keyId 'mrk-fake-key-id'"),
    ("134f2428cec14b25a1ae9048164dba47", "Invalid keyId '134f2428cec14b25a1ae9048164dba47'"),
    ("134f2428-cec1-4b25-a1ae-9048164dba47",
     f"Key 'arn:aws:kms:{REGION}:{ACCOUNT}:key/134f2428-cec1-4b25-a1ae-9048164dba47' does not exist"),
    (f"arn:aws:kms:{REGION}:{ACCOUNT}:key/mrk-134f2428cec14b25a1ae9048164dba47",
     f"Key 'arn:aws:kms:{REGION}:{ACCOUNT}:key/mrk-134f2428cec14b25a1ae9048164dba47' does not exist"),
    (f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/134f2428-cec1-4b25-a1ae-9048164dba47", "Invalid arn eu-west-1"),
    ("alias/none", f"Alias arn:aws:kms:{REGION}:{ACCOUNT}:alias/none is not found."),
])
def test_missing_keys(kms, name, message):
    with refused("NotFoundException") as error:
        kms.describe_key(KeyId=name)
    assert message_of(error) == message
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_key_of_another_account(kms):
    with refused("AccessDeniedException"):
        kms.describe_key(KeyId=f"arn:aws:kms:{REGION}:999988887777:key/134f2428-cec1-4b25-a1ae-9048164dba47")


def test_a_key_belongs_to_its_region(server, kms, key):
    other = server.client(region="eu-west-1")
    with refused("NotFoundException") as error:
        other.describe_key(KeyId=key.split("/")[1])
    assert message_of(error).startswith("Key 'arn:aws:kms:eu-west-1:")


def test_disable_and_enable(kms, key):
    kms.disable_key(KeyId=key)
    metadata = kms.describe_key(KeyId=key)["KeyMetadata"]
    assert (metadata["KeyState"], metadata["Enabled"]) == ("Disabled", False)
    with refused("DisabledException") as error:
        kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert message_of(error) == f"{key} is disabled."
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    kms.enable_key(KeyId=key)
    assert kms.generate_data_key(KeyId=key, KeySpec="AES_256")["KeyId"] == key


def test_deletion_and_its_end(kms, key):
    answer = kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    assert answer["KeyId"] == key and answer["KeyState"] == "PendingDeletion" and answer["PendingWindowInDays"] == 7
    left = answer["DeletionDate"] - datetime.datetime.now(answer["DeletionDate"].tzinfo)
    assert datetime.timedelta(days=6, hours=23) < left <= datetime.timedelta(days=7)
    with refused("KMSInvalidStateException") as error:
        kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert message_of(error) == f"{key} is pending deletion."
    with refused("KMSInvalidStateException"):
        kms.enable_key(KeyId=key)
    assert kms.cancel_key_deletion(KeyId=key)["KeyId"] == key
    assert kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] == "Disabled"
    kms.enable_key(KeyId=key)
    assert kms.generate_data_key(KeyId=key, KeySpec="AES_256")["KeyId"] == key


def test_cancel_without_deletion(kms, key):
    with refused("KMSInvalidStateException"):
        kms.cancel_key_deletion(KeyId=key)


def test_window_of_deletion(kms, key):
    with refused("ValidationException"):
        kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=6)


def test_a_key_is_gone_when_its_window_ends(server, kms, key):
    kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
    later = 8 * 86400
    server.fault(clock_skew_s=later)
    answer = server.raw("DescribeKey", {"KeyId": key}, ago=-later)
    assert answer.type == "NotFoundException" and answer.json["message"] == f"Key '{key}' does not exist"


def test_external_key_waits_for_material(kms):
    made = kms.create_key(Origin="EXTERNAL")["KeyMetadata"]
    assert (made["KeyState"], made["Enabled"], made["Origin"]) == ("PendingImport", False, "EXTERNAL")
    with refused("KMSInvalidStateException") as error:
        kms.encrypt(KeyId=made["KeyId"], Plaintext=b"x")
    assert message_of(error) == f"{made['Arn']} is pending import."


@pytest.mark.parametrize("state, words", [
    ("Unavailable", "unavailable"), ("Creating", "creating"), ("Updating", "updating"),
    ("PendingReplicaDeletion", "pending replica deletion")])
def test_states_only_a_test_can_set(server, kms, key, state, words):
    server.admin("POST", "key", {"key": key, "state": state})
    with refused("KMSInvalidStateException") as error:
        kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert message_of(error) == f"{key} is {words}."


def test_aliases(kms, key):
    kms.create_alias(AliasName="alias/one", TargetKeyId=key)
    assert kms.describe_key(KeyId="alias/one")["KeyMetadata"]["Arn"] == key
    assert kms.describe_key(KeyId=f"arn:aws:kms:{REGION}:{ACCOUNT}:alias/one")["KeyMetadata"]["Arn"] == key
    assert kms.generate_data_key(KeyId="alias/one", KeySpec="AES_256")["KeyId"] == key
    with refused("AlreadyExistsException") as error:
        kms.create_alias(AliasName="alias/one", TargetKeyId=key)
    assert message_of(error) == f"An alias with the name arn:aws:kms:{REGION}:{ACCOUNT}:alias/one already exists"
    other = kms.create_key()["KeyMetadata"]["Arn"]
    kms.update_alias(AliasName="alias/one", TargetKeyId=other)
    assert kms.describe_key(KeyId="alias/one")["KeyMetadata"]["Arn"] == other
    assert [a["AliasName"] for a in kms.list_aliases(KeyId=other)["Aliases"]] == ["alias/one"]
    assert kms.list_aliases(KeyId=key)["Aliases"] == []
    kms.delete_alias(AliasName="alias/one")
    with refused("NotFoundException"):
        kms.delete_alias(AliasName="alias/one")


def test_alias_names(kms, key):
    with refused("ValidationException") as error:
        kms.create_alias(AliasName="one", TargetKeyId=key)
    assert message_of(error).startswith('Alias must start with the prefix "alias/".')
    with refused("InvalidAliasNameException"):
        kms.create_alias(AliasName="alias/a b", TargetKeyId=key)


def test_lists_come_in_pages(kms):
    made = {kms.create_key()["KeyMetadata"]["KeyId"] for _ in range(5)}
    pages = list(kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2}))
    listed = [k["KeyId"] for page in pages for k in page["Keys"]]
    assert made <= set(listed) and len(listed) == len(set(listed))
    assert all(len(page["Keys"]) == 2 for page in pages[:-1])


def test_policy(kms, key):
    usual = json.loads(kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"])
    assert usual["Statement"][0]["Principal"] == {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
    text = '{ "Version" : "2012-10-17", "Statement": [] }\n'
    kms.put_key_policy(KeyId=key, PolicyName="default", Policy=text)
    assert kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"] == text


def test_unknown_operation(server):
    answer = server.raw("Sign", {})
    assert (answer.status, answer.type) == (400, "UnknownOperationException")


@pytest.mark.parametrize("body", ["", "[]", "{", '{"KeyId":1}', '{"KeyId":"a","KeyId":"b"}', '{"KeyId":"a\\u0000b"}'])
def test_bodies_that_are_no_request(server, body):
    answer = server.raw("DescribeKey", body)
    assert (answer.status, answer.type) == (400, "SerializationException")


def test_missing_member(server):
    answer = server.raw("DescribeKey", {})
    assert answer.type == "ValidationException"
    assert answer.json["message"] == ("1 validation error detected: Value null at 'keyId' failed to satisfy constraint: "
                                      "Member must not be null")


def test_body_too_long(server):
    assert server.raw("DescribeKey", " " * 2000000).status == 413


def test_every_answer_has_a_request_id(server, key):
    ids = {server.raw("DescribeKey", {"KeyId": k}).headers["x-amzn-RequestId"] for k in (key, "none")}
    assert len(ids) == 2 and all(len(i) == 36 for i in ids)
