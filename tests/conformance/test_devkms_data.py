"""Data keys, blobs, contexts, rotation and multi-Region keys."""

import pytest
from botocore.exceptions import ClientError
from conftest import b64, code_of, message_of

CONTEXT = {"byokfs-store": "0123", "byokfs-file": "4567", "Ünï": "cödé"}


def refused(code):
    return pytest.raises(ClientError, match=rf"\({code}\)")


@pytest.mark.parametrize("arguments, size", [
    ({"KeySpec": "AES_256"}, 32), ({"KeySpec": "AES_128"}, 16), ({"NumberOfBytes": 64}, 64), ({"NumberOfBytes": 1024}, 1024)])
def test_data_key_round_trip(kms, key, arguments, size):
    made = kms.generate_data_key(KeyId=key, EncryptionContext=CONTEXT, **arguments)
    assert made["KeyId"] == key and len(made["Plaintext"]) == size
    back = kms.decrypt(CiphertextBlob=made["CiphertextBlob"], KeyId=key, EncryptionContext=CONTEXT)
    assert back["Plaintext"] == made["Plaintext"] and back["KeyId"] == key
    assert back["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"


def test_size_of_a_usual_blob(kms, key):
    assert len(kms.generate_data_key(KeyId=key, KeySpec="AES_256")["CiphertextBlob"]) == 184


def test_data_keys_differ(kms, key):
    made = [kms.generate_data_key(KeyId=key, KeySpec="AES_256") for _ in range(8)]
    assert len({m["Plaintext"] for m in made}) == 8 and len({m["CiphertextBlob"] for m in made}) == 8


def test_without_plaintext(kms, key):
    made = kms.generate_data_key_without_plaintext(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)
    assert "Plaintext" not in made
    assert len(kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=CONTEXT)["Plaintext"]) == 32


@pytest.mark.parametrize("context", [
    {}, {"byokfs-store": "0123"}, dict(CONTEXT, extra="1"), dict(CONTEXT, **{"byokfs-file": "4568"}),
    {k.upper(): v for k, v in CONTEXT.items()}, {"byokfs-store": "0123byokfs-file", "": "4567"}])
def test_wrong_context(kms, key, context):
    blob = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext=CONTEXT)["CiphertextBlob"]
    with refused("InvalidCiphertextException") as error:
        kms.decrypt(CiphertextBlob=blob, KeyId=key, EncryptionContext=context)
    assert message_of(error) == "" and error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_order_of_the_context_does_not_matter(server, key):
    blob = server.raw("Encrypt", '{"KeyId":"%s","Plaintext":"eA==","EncryptionContext":{"a":"1","b":"2"}}' % key).json
    back = server.raw("Decrypt", '{"CiphertextBlob":"%s","EncryptionContext":{"b":"2","a":"1"}}' % blob["CiphertextBlob"])
    assert back.status == 200 and back.json["Plaintext"] == "eA=="


@pytest.mark.parametrize("at", [0, 5, 40, 75, 90, 101, 120, 183])
def test_damaged_blob(kms, key, at):
    blob = bytearray(kms.generate_data_key(KeyId=key, KeySpec="AES_256")["CiphertextBlob"])
    blob[at] ^= 1
    with pytest.raises(ClientError) as error:
        kms.decrypt(CiphertextBlob=bytes(blob), KeyId=key)
    # byte 40 is within the key's name: then it is a blob of another key
    assert code_of(error) == ("IncorrectKeyException" if at == 40 else "InvalidCiphertextException")


@pytest.mark.parametrize("blob", [b"x", b"DKB1", b"\x00" * 6144, b"DKB1" + b"\xff" * 98, b"DKB1" + b"\xff" * 300])
def test_no_blob_at_all(kms, key, blob):
    with refused("InvalidCiphertextException"):
        kms.decrypt(CiphertextBlob=blob, KeyId=key)


def test_limits_of_the_model(server, key):
    assert server.raw("Decrypt", {"CiphertextBlob": b64(b"x" * 6145)}).type == "ValidationException"
    long = server.raw("Encrypt", {"KeyId": key, "Plaintext": b64(b"x" * 4097)})
    assert long.type == "ValidationException" and long.json["message"] == (
        "1 validation error detected: Value at 'plaintext' failed to satisfy constraint: Member must have length less than or "
        "equal to 4096")
    assert server.raw("Encrypt", {"KeyId": key, "Plaintext": "?"}).type == "SerializationException"
    assert server.raw("GenerateDataKey", {"KeyId": key}).type == "ValidationException"
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_512"}).type == "ValidationException"
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "NumberOfBytes": 3}).type == "ValidationException"
    big = {"n": "v" * 8192}
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": big}).type == "ValidationException"
    bad = {"n": 1}
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "EncryptionContext": bad}).type == "SerializationException"


def test_encrypt_round_trip(kms, key):
    for plain in (b"x", b"y" * 4096):
        made = kms.encrypt(KeyId=key, Plaintext=plain, EncryptionContext=CONTEXT)
        assert made["KeyId"] == key and made["EncryptionAlgorithm"] == "SYMMETRIC_DEFAULT"
        assert kms.decrypt(CiphertextBlob=made["CiphertextBlob"], EncryptionContext=CONTEXT)["Plaintext"] == plain


def test_incorrect_key(kms, key):
    other = kms.create_key()["KeyMetadata"]["Arn"]
    blob = kms.generate_data_key(KeyId=key, KeySpec="AES_256")["CiphertextBlob"]
    with refused("IncorrectKeyException") as error:
        kms.decrypt(CiphertextBlob=blob, KeyId=other)
    assert message_of(error) == "The key ID in the request does not identify a CMK that can perform this operation."


def test_blob_of_a_key_of_another_region(server, kms, key):
    blob = kms.generate_data_key(KeyId=key, KeySpec="AES_256")["CiphertextBlob"]
    with refused("AccessDeniedException") as error:
        server.client(region="eu-west-1").decrypt(CiphertextBlob=blob)
    assert message_of(error).startswith("The ciphertext refers to a customer master key that does not exist")


def test_decrypt_under_a_disabled_key(kms, key):
    blob = kms.generate_data_key(KeyId=key, KeySpec="AES_256")["CiphertextBlob"]
    kms.disable_key(KeyId=key)
    for arguments in ({"KeyId": key}, {}):
        with refused("DisabledException"):
            kms.decrypt(CiphertextBlob=blob, **arguments)
    kms.enable_key(KeyId=key)
    assert len(kms.decrypt(CiphertextBlob=blob)["Plaintext"]) == 32


def test_reencrypt_to_another_key_and_context(kms, key):
    other = kms.create_key()["KeyMetadata"]["Arn"]
    made = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext={"a": "1"})
    moved = kms.re_encrypt(CiphertextBlob=made["CiphertextBlob"], SourceKeyId=key, SourceEncryptionContext={"a": "1"},
                           DestinationKeyId=other, DestinationEncryptionContext={"b": "2"})
    assert (moved["SourceKeyId"], moved["KeyId"]) == (key, other)
    assert kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], KeyId=other, EncryptionContext={"b": "2"})["Plaintext"] == made["Plaintext"]
    with refused("InvalidCiphertextException"):
        kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], KeyId=other, EncryptionContext={"a": "1"})


def test_reencrypt_refusals(kms, key):
    other = kms.create_key()["KeyMetadata"]["Arn"]
    blob = kms.generate_data_key(KeyId=key, KeySpec="AES_256", EncryptionContext={"a": "1"})["CiphertextBlob"]
    with refused("InvalidCiphertextException"):
        kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=other)
    with refused("IncorrectKeyException"):
        kms.re_encrypt(CiphertextBlob=blob, SourceKeyId=other, DestinationKeyId=key, SourceEncryptionContext={"a": "1"})
    kms.disable_key(KeyId=other)
    with refused("DisabledException") as error:
        kms.re_encrypt(CiphertextBlob=blob, DestinationKeyId=other, SourceEncryptionContext={"a": "1"})
    assert message_of(error) == f"{other} is disabled."


def test_generate_random(kms):
    assert len(kms.generate_random(NumberOfBytes=12)["Plaintext"]) == 12
    assert kms.generate_random(NumberOfBytes=32)["Plaintext"] != kms.generate_random(NumberOfBytes=32)["Plaintext"]


@pytest.mark.parametrize("body, message", [
    ({}, "NumberOfBytes is required."),
    ({"NumberOfBytes": 0}, "1 validation error detected: Value '0' at 'numberOfBytes' failed to satisfy constraint: "
                           "Member must have value greater than or equal to 1"),
    ({"NumberOfBytes": 1025}, "1 validation error detected: Value '1025' at 'numberOfBytes' failed to satisfy constraint: "
                              "Member must have value less than or equal to 1024")])
def test_generate_random_limits(server, body, message):
    answer = server.raw("GenerateRandom", body)
    assert (answer.status, answer.type, answer.json["message"]) == (400, "ValidationException", message)


def test_dry_run(server, kms, key):
    blob = b64(kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"])
    for operation, body in (("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"}), ("Decrypt", {"CiphertextBlob": blob}),
                            ("Encrypt", {"KeyId": key, "Plaintext": "eA=="}),
                            ("ReEncrypt", {"CiphertextBlob": blob, "DestinationKeyId": key})):
        answer = server.raw(operation, dict(body, DryRun=True))
        assert (answer.status, answer.type) == (400, "DryRunOperationException")
        assert answer.json["message"] == "The request would have succeeded, but the DryRun option is set."
    kms.disable_key(KeyId=key)
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256", "DryRun": True}).type == "DisabledException"


def test_rotation_status(server, kms, key):
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is False
    server.raw("EnableKeyRotation", {"KeyId": key, "RotationPeriodInDays": 90})
    status = server.raw("GetKeyRotationStatus", {"KeyId": key}).json
    assert status["KeyRotationEnabled"] is True and status["RotationPeriodInDays"] == 90 and status["NextRotationDate"] > 0
    kms.disable_key_rotation(KeyId=key)
    assert "NextRotationDate" not in server.raw("GetKeyRotationStatus", {"KeyId": key}).json


def test_rotation_keeps_old_blobs(server, kms, key):
    def material():
        return server.raw("DescribeKey", {"KeyId": key}).json["KeyMetadata"]["CurrentKeyMaterialId"]

    first = material()
    old = kms.generate_data_key(KeyId=key, KeySpec="AES_256")
    assert server.raw("RotateKeyOnDemand", {"KeyId": key}).json == {"KeyId": key}
    second = material()
    assert first != second
    back = server.raw("Decrypt", {"CiphertextBlob": b64(old["CiphertextBlob"]), "KeyId": key}).json
    assert back["Plaintext"] == b64(old["Plaintext"]) and back["KeyMaterialId"] == first
    assert server.raw("GenerateDataKey", {"KeyId": key, "KeySpec": "AES_256"}).json["KeyMaterialId"] == second
    moved = server.raw("ReEncrypt", {"CiphertextBlob": b64(old["CiphertextBlob"]), "DestinationKeyId": key}).json
    assert (moved["SourceKeyMaterialId"], moved["DestinationKeyMaterialId"]) == (first, second)
    rotations = server.raw("ListKeyRotations", {"KeyId": key}).json["Rotations"]
    assert [(r["KeyMaterialId"], r["RotationType"], r["KeyMaterialState"]) for r in rotations] == [(second, "ON_DEMAND", "CURRENT")]
    every = server.raw("ListKeyRotations", {"KeyId": key, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"}).json["Rotations"]
    assert [r["KeyMaterialId"] for r in every] == [first, second]


def test_rotation_limit(server, key):
    for _ in range(25):
        assert server.raw("RotateKeyOnDemand", {"KeyId": key}).status == 200
    answer = server.raw("RotateKeyOnDemand", {"KeyId": key})
    assert answer.type == "LimitExceededException" and answer.json["message"].endswith(key)


def test_rotation_refusals(server, kms, key):
    kms.disable_key(KeyId=key)
    assert server.raw("RotateKeyOnDemand", {"KeyId": key}).type == "DisabledException"
    external = kms.create_key(Origin="EXTERNAL")["KeyMetadata"]["Arn"]
    assert server.raw("RotateKeyOnDemand", {"KeyId": external}).json["message"] == f"{external} is pending import."


@pytest.fixture
def siblings(server, kms):
    """A multi-Region key: primary ARN, replica ARN, client of the replica's Region."""
    primary = kms.create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
    answer = kms.replicate_key(KeyId=primary, ReplicaRegion="eu-west-1")["ReplicaKeyMetadata"]
    assert (answer["KeyState"], answer["MultiRegionConfiguration"]["MultiRegionKeyType"]) == ("Creating", "REPLICA")
    return primary, answer["Arn"], server.client(region="eu-west-1")


def test_multi_region_metadata(kms, siblings):
    primary, replica, elsewhere = siblings
    assert replica == primary.replace("us-east-1", "eu-west-1") and "/mrk-" in primary
    here = kms.describe_key(KeyId=primary)["KeyMetadata"]
    there = elsewhere.describe_key(KeyId=replica)["KeyMetadata"]
    assert here["MultiRegionConfiguration"] == {
        "MultiRegionKeyType": "PRIMARY", "PrimaryKey": {"Arn": primary, "Region": "us-east-1"},
        "ReplicaKeys": [{"Arn": replica, "Region": "eu-west-1"}]}
    assert there["MultiRegionConfiguration"]["MultiRegionKeyType"] == "REPLICA" and there["KeyState"] == "Enabled"


def test_siblings_open_each_others_blobs(kms, siblings):
    primary, replica, elsewhere = siblings
    made = kms.generate_data_key(KeyId=primary, KeySpec="AES_256", EncryptionContext=CONTEXT)
    back = elsewhere.decrypt(CiphertextBlob=made["CiphertextBlob"], KeyId=replica, EncryptionContext=CONTEXT)
    assert back["Plaintext"] == made["Plaintext"] and back["KeyId"] == replica


def test_siblings_are_disabled_independently(kms, siblings):
    primary, replica, elsewhere = siblings
    blob = kms.generate_data_key(KeyId=primary, KeySpec="AES_256")["CiphertextBlob"]
    kms.disable_key(KeyId=primary)
    with refused("DisabledException"):
        kms.decrypt(CiphertextBlob=blob, KeyId=primary)
    assert elsewhere.decrypt(CiphertextBlob=blob, KeyId=replica)["KeyId"] == replica
    elsewhere.disable_key(KeyId=replica)
    kms.enable_key(KeyId=primary)
    with refused("DisabledException"):
        elsewhere.decrypt(CiphertextBlob=blob, KeyId=replica)
    assert kms.decrypt(CiphertextBlob=blob, KeyId=primary)["KeyId"] == primary


def test_the_arn_of_another_region_is_invalid(kms, siblings):
    with refused("NotFoundException") as error:
        kms.decrypt(CiphertextBlob=b"x", KeyId=siblings[1])
    assert message_of(error) == "Invalid arn eu-west-1"


def test_replication_refusals(kms, key, siblings):
    primary, replica, elsewhere = siblings
    with refused("AlreadyExistsException"):
        kms.replicate_key(KeyId=primary, ReplicaRegion="eu-west-1")
    with refused("UnsupportedOperationException") as error:
        elsewhere.replicate_key(KeyId=replica, ReplicaRegion="ap-south-1")
    assert message_of(error) == f"{replica} is not a multi-region primary key."
    with refused("UnsupportedOperationException"):
        kms.replicate_key(KeyId=key, ReplicaRegion="eu-west-1")


def test_a_primary_waits_for_its_replicas(kms, siblings):
    answer = kms.schedule_key_deletion(KeyId=siblings[0])
    assert answer["KeyState"] == "PendingReplicaDeletion" and "DeletionDate" not in answer
    with refused("KMSInvalidStateException") as error:
        kms.generate_data_key(KeyId=siblings[0], KeySpec="AES_256")
    assert message_of(error) == f"{siblings[0]} is pending replica deletion."
