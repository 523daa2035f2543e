"""byokfsctl test: each step, what it says when something is missing, and whom it names."""
import json
import os

import boto3
import pytest

from conftest import AK, CTL, SK, Mount
from programs import CONFIG, DENIED, NOT_A_STORE, UNREACHABLE, run
from test_policy import second_domain

USER = "arn:aws:iam::111122223333:user/devkms"


@pytest.fixture(scope="module")
def shop(tmp_path_factory, shared_devkms):
    """A store that no test changes."""
    m = Mount(tmp_path_factory.mktemp("button"), shared_devkms)
    yield m
    m.close()


@pytest.fixture(autouse=True)
def no_faults(shared_devkms):
    yield
    shared_devkms.clear()


def button(shop, *args, cipher=True, **env):
    r = run(CTL, "test", "-c", shop.ini, *args, *([shop.cipher] if cipher else []),
            env={"AWS_ENDPOINT_URL_STS": shop.kms.endpoint, **env})
    assert SK not in r.out + r.err
    return r


def told(shop, *args, **kw):
    """The report as JSON: {step: its entry}, and the whole. No step may be reported twice, but domains and replicas."""
    r = button(shop, *args, "--json", **kw)
    report = json.loads(r.out)
    assert report["exit"] == r.code and report["ok"] == (r.code == 0), r
    return {s["step"]: s for s in report["steps"]}, report


def verdicts(steps):
    return {name: s["verdict"] for name, s in steps.items()}


def faults(kms, *list_):
    kms.http("POST", "/_devkms/fault", list(list_))


# ---- a clean bill

def test_all_steps(shop):
    r = button(shop)
    assert r.code == 0 and not r.err, r
    lines = r.out.splitlines()
    steps = [line.split(":")[0].split(None, 1) for line in lines]
    assert [name for _, name in steps] == ["configuration", "credentials", "identity", "key service", "key", "region", "seal", "unseal",
                                           "context", "policy", "latency", "store"]
    assert all(verdict == "ok" for verdict, name in steps if name not in ("policy", "latency")), r
    assert f"identity: {USER}: policies must name it" in r.out
    assert "enabled, symmetric, single-Region" in r.out


def test_json_says_the_same(shop):
    steps, report = told(shop)
    text = button(shop).out
    assert list(steps) == [line.split(":")[0].split(None, 1)[1] for line in text.splitlines()]
    assert report["missing"] == [] and set(report) == {"ok", "exit", "steps", "missing"}
    assert set(steps["seal"]) == {"step", "verdict", "text"}


def test_without_sts(shop):
    """Who the caller is helps people; nothing depends on it."""
    r = button(shop, AWS_ENDPOINT_URL_STS=None)
    assert r.code == 0 and "note    identity: not known: 'endpoint' in [kms] is set" in r.out, r
    r = button(shop, AWS_ENDPOINT_URL_STS="http://127.0.0.1:1")
    assert r.code == 0 and "note    identity: not known" in r.out, r


def test_a_wrong_clock_does_not_hide_the_identity(shop, shared_devkms):
    """STS's clock is believed once, as the KMS's is."""
    shared_devkms.fault(clock_skew_s=3600)
    r = button(shop)
    assert r.code == 0 and f"ok      identity: {USER}" in r.out, r


def test_a_session_is_named_with_its_role(shop, shared_devkms):
    role = "arn:aws:iam::111122223333:role/the-host"
    shared_devkms.http("POST", "/_devkms/role", {"role_arn": role})
    sts = boto3.client("sts", region_name="us-east-1", endpoint_url=shared_devkms.endpoint, aws_access_key_id=AK, aws_secret_access_key=SK)
    got = sts.assume_role(RoleArn=role, RoleSessionName="host-7", DurationSeconds=900)["Credentials"]
    session = dict(AWS_ACCESS_KEY_ID=got["AccessKeyId"], AWS_SECRET_ACCESS_KEY=got["SecretAccessKey"], AWS_SESSION_TOKEN=got["SessionToken"])
    r = button(shop, **session)
    assert r.code == 0 and f":assumed-role/the-host/host-7: policies must name {role}" in r.out, r
    shared_devkms.fault(deny_access=True, operations=["Decrypt"])
    r = button(shop, **session)
    assert f"missing: kms:Decrypt on {shared_devkms.key} for arn:aws:sts::111122223333:assumed-role/the-host/host-7" in r.out
    assert f"'byokfsctl policy {shop.cipher} --only=host --host {role}'" in r.out, r


# ---- permissions

@pytest.mark.parametrize("cipher", [True, False])
@pytest.mark.parametrize("operations, code", [
    (["DescribeKey"], 0), (["GenerateDataKey"], DENIED), (["Decrypt"], DENIED), (["GenerateDataKey", "Decrypt"], DENIED),
    (["DescribeKey", "GenerateDataKey", "Decrypt"], DENIED)])
def test_every_missing_permission_in_one_run(shop, shared_devkms, operations, code, cipher):
    shared_devkms.fault(deny_access=True, operations=operations)
    steps, report = told(shop, cipher=cipher)
    assert report["exit"] == code
    assert {m["action"] for m in report["missing"]} == {"kms:" + o for o in operations}
    assert all(m["key"] == shared_devkms.key and m["identity"] == USER for m in report["missing"])
    assert len(report["missing"]) == len(operations)
    assert steps["key"]["verdict"] == ("note" if "DescribeKey" in operations else "ok")
    assert steps["seal"]["verdict"] == ("failed" if "GenerateDataKey" in operations else "ok")
    if "Decrypt" in operations:
        assert steps["unseal"]["verdict"] == "failed"
    elif "GenerateDataKey" in operations:
        assert steps["unseal"]["verdict"] == ("ok" if cipher else "note")
    r = button(shop, cipher=cipher)
    assert r.code == code
    for o in operations:
        assert r.out.count(f"missing: kms:{o} on {shared_devkms.key} for {USER}") == 1, r


WHOSE = {
    "identity": (" because no identity-based policy allows the kms:Decrypt action", "--only=host"),
    "resource": (" because no resource-based policy allows the kms:Decrypt action", "--only=key"),
    "deny": (" with an explicit deny in a resource-based policy", "a Deny in the policy of the key"),
    "scp": (" with an explicit deny in a service control policy", "service control policy of the organization"),
    "unsaid": ("", "the key's policy, and in another account"),
}


@pytest.mark.parametrize("name", WHOSE)
def test_whose_policy(shop, shared_devkms, name):
    why, word = WHOSE[name]
    arn = "arn:aws:sts::444455556666:assumed-role/vendor/x"
    shared_devkms.fault(operations=["Decrypt"], error_type="AccessDeniedException",
                        error_message=f"User: {arn} is not authorized to perform: kms:Decrypt on resource: {shared_devkms.key}{why}")
    steps, report = told(shop)
    assert word in steps["unseal"]["todo"], steps
    assert report["missing"] == [{"action": "kms:Decrypt", "key": shared_devkms.key, "identity": arn}]


def test_a_refusal_of_few_words(shop, shared_devkms):
    """Then what was asked, of which key, and as whom is named."""
    shared_devkms.fault(operations=["GenerateDataKey"], error_type="AccessDeniedException", error_message="")
    _, report = told(shop)
    assert report["missing"] == [{"action": "kms:GenerateDataKey", "key": shared_devkms.key, "identity": USER}]


def test_a_store_is_wanted_by_a_policy_for_one(shop, shared_devkms):
    shared_devkms.fault(deny_access=True, operations=["GenerateDataKey"])
    assert "give CIPHERDIR" in button(shop, cipher=False).out
    assert "give CIPHERDIR" not in button(shop).out
    assert "give CIPHERDIR" not in button(shop, "-o", f"store.id={'ab' * 16}", cipher=False).out


# ---- does the policy know the store?

def test_the_store_s_own_context_is_used(shop, shared_devkms):
    since = shared_devkms.stats()["seq"]
    button(shop)
    asked = shared_devkms.http("GET", f"/_devkms/stats?since={since}")["requests"]
    store = json.loads(shop.ctl("info", "--json", shop.cipher).stdout)["store"]
    first = next(r for r in asked if r["operation"] == "GenerateDataKey")
    assert first["context"]["byokfs-store"] == store


LET, REFUSE = dict(latency_ms=1), dict(deny_access=True)
POLICIES = {
    "for this store": ([LET, REFUSE, REFUSE], "ok", "this store only"),
    "for any": ([LET, LET, LET], "note", "any store"),
    "for any, no further pairs": ([LET, LET, REFUSE], "note", "any store"),
    "further pairs": ([LET, REFUSE, LET], "note", "kms:EncryptionContextKeys"),
    "unclear": ([LET, REFUSE, dict(error_type="KMSInternalException", error_status=500)], "note", "not told"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policy_step(shop, shared_devkms, name):
    list_, verdict, word = POLICIES[name]
    last = {} if "error_type" in list_[-1] else {"count": 1}
    faults(shared_devkms, *[{**f, "operations": ["GenerateDataKey"], "count": 1} for f in list_[:-1]],
           {**list_[-1], "operations": ["GenerateDataKey"], **last})
    steps, report = told(shop, "-o", "kms.request_timeout=300ms")
    assert report["exit"] == 0 and report["missing"] == []
    assert steps["policy"]["verdict"] == verdict and word in steps["policy"]["text"], steps


# ---- the key

def test_key_in_another_region(shop):
    r = button(shop, AWS_REGION="eu-west-1")
    assert r.code == 0 and "note    region: the key is in us-east-1, this host in eu-west-1" in r.out, r
    assert "ok      region: us-east-1, this host's too" in button(shop, AWS_REGION="us-east-1").out


def test_a_slow_key_service(shop, shared_devkms):
    shared_devkms.fault(operations=["Decrypt"], latency_ms=60)
    r = button(shop)
    assert r.code == 0 and "note    latency: " in r.out and "--seal=file" in r.out, r


def test_first_failure_decides(shop, shared_devkms):
    assert button(shop, "-o", "kms.endpoint=http://127.0.0.1:1", "-o", "kms.request_timeout=300ms").code == UNREACHABLE
    assert button(shop, AWS_ACCESS_KEY_ID=None, AWS_CONFIG_FILE="/dev/null", AWS_SHARED_CREDENTIALS_FILE="/dev/null",
                  AWS_EC2_METADATA_DISABLED="true").code == CONFIG
    steps, report = told(shop, "-o", "cache.lease=1s")
    assert report["exit"] == CONFIG and verdicts(steps) == {"configuration": "failed"}


@pytest.fixture(scope="module")
def multi(shared_devkms):
    """A multi-Region key and its replica."""
    key = shared_devkms.client.create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
    shared_devkms.client.replicate_key(KeyId=key, ReplicaRegion="eu-west-1")
    return key, key.replace("us-east-1", "eu-west-1")


def regional(kms, region):
    return boto3.client("kms", region_name=region, endpoint_url=kms.endpoint, aws_access_key_id=AK, aws_secret_access_key=SK)


def test_replicas(shop, shared_devkms, multi):
    key, replica = multi
    args = ["-o", f"kms.key={key}", "-o", f"kms.replicas={replica}@{shared_devkms.endpoint}"]
    good = button(shop, *args, cipher=False)
    assert good.code == 0 and "enabled, symmetric, multi-Region: us-east-1, eu-west-1" in good.out, good
    assert "ok      replica eu-west-1: unseals what the key's own Region sealed" in good.out, good
    regional(shared_devkms, "eu-west-1").disable_key(KeyId=replica)
    try:
        r = button(shop, *args, cipher=False)
        assert r.code == DENIED and "FAILED  replica eu-west-1: its state is Disabled" in r.out, r
        assert "ok      unseal" in r.out, r
    finally:
        regional(shared_devkms, "eu-west-1").enable_key(KeyId=replica)


# ---- the store

def test_no_store(shop, tmp_path):
    steps, report = told(shop, str(tmp_path), cipher=False)
    assert report["exit"] == NOT_A_STORE and steps["store"]["verdict"] == "failed" and steps["latency"]["verdict"] != "failed"


def test_a_path_that_is_no_text(shop, tmp_path):
    """--json stays JSON, the terminal stays itself."""
    odd = os.fsencode(tmp_path) + b"/\xff\x1b[2J"
    os.mkdir(odd)
    r = run(CTL, "test", "-c", shop.ini, "--json", os.fsdecode(odd))
    assert r.code == NOT_A_STORE and json.loads(r.out)["steps"][-1]["step"] == "store", r
    r = run(CTL, "test", "-c", shop.ini, os.fsdecode(odd))
    assert r.code == NOT_A_STORE and "FAILED  store" in r.out and "\x1b" not in r.out, r


def test_every_domain_is_tried(tmp_path, shared_devkms):
    """A second domain whose sealed key is not its own, and one under a key that is gone."""
    m = Mount(tmp_path / "a", shared_devkms)
    second_domain(m, shared_devkms.key)
    steps, report = told(m)
    assert steps["store"]["verdict"] == "failed" or steps["domain 1"]["verdict"] == "failed", steps
    assert "domain 1" in steps and "backup" in steps["domain 1"]["todo"] and report["exit"] == NOT_A_STORE
    gone = Mount(tmp_path / "b", shared_devkms)
    second_domain(gone, shared_devkms.key[:-4] + "0000")
    steps, report = told(gone)
    assert "NotFoundException" in steps["domain 1"]["text"], steps


# ---- no AWS

def test_a_key_file_is_not_aws(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    cipher = tmp_path / "cipher"
    cipher.mkdir()
    settings = ["-o", f"kms.provider=keyfile,keyfile.path={key}"]
    assert run(CTL, "init", *settings, cipher).code == 0
    r = run(CTL, "test", *settings, cipher)
    assert r.code == 0 and "ok      key: enabled" in r.out and "ok      context: " in r.out and "ok      store: " in r.out, r
    for word in ("kms:", "Region", "AWS", "credentials", "identity", "policy"):
        assert word not in r.out, (word, r)
    key.unlink()
    r = run(CTL, "test", *settings, cipher)
    assert r.code == DENIED and "FAILED  key service: " in r.out and "is gone" in r.out, r
    key.write_bytes(os.urandom(32))
    key.chmod(0o644)
    r = run(CTL, "test", *settings, cipher)
    assert r.code == CONFIG and "what to do: check path in [keyfile]" in r.out and "Region" not in r.out, r
