"""byokfsctl policy: what the printed documents allow and refuse, not how they look."""
import copy
import json
import os
import re

import pytest

from conftest import CTL, Mount
from damage import with_sum
from iam import Hcl, Request, allowed, applies, formatted, statements
from programs import CONFIG, NOT_A_STORE, USAGE, run, said

ACCOUNT, VENDOR = "111122223333", "444455556666"
HOST, ROTATOR, ADMIN = (f"arn:aws:iam::{ACCOUNT}:role/{name}" for name in ("byokfs-host", "byokfs-rotator", "key-admin"))
MRK = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/mrk-11112222333344445555666677778888"
MRK_EU = MRK.replace("us-east-1", "eu-west-1")
ROLES = ["--host", HOST, "--rotator", ROTATOR, "--admin", ADMIN]


@pytest.fixture(scope="module")
def shop(tmp_path_factory, shared_devkms):
    """A store with a pair of its administrator's."""
    base = tmp_path_factory.mktemp("policy")
    ini = (f"[kms]\nkey = {shared_devkms.key}\nendpoint = {shared_devkms.endpoint}\ncontext = tenant:a, cost-centre:7\n")
    m = Mount(base, shared_devkms, ini=ini)
    yield m
    m.close()


def policy(*args, env=None):
    r = run(CTL, "policy", *args, env={"BYOKFS_CONFIG": "/dev/null", **(env or {})})
    assert r.code == 0, r
    return r.out


def store_id(m):
    return json.loads(m.ctl("info", "--json", m.cipher).stdout)["store"]


@pytest.fixture(scope="module")
def documents(shop):
    return json.loads(policy(shop.cipher, *ROLES))


@pytest.fixture(scope="module")
def context(shop):
    return {"byokfs-store": store_id(shop), "byokfs-domain": "d", "byokfs-use": "probe", "tenant": "a", "cost-centre": "7"}


# ---- the fourteen cases of the reference, and what follows from them

CASES = {
    "host decrypts": (HOST, "Decrypt", {}, True),
    "host generates": (HOST, "GenerateDataKey", {}, True),
    "host describes": (HOST, "DescribeKey", None, True),
    "host, another store": (HOST, "Decrypt", {"byokfs-store": "00" * 16}, False),
    "host, no context": (HOST, "Decrypt", "empty", False),
    "host, a further pair": (HOST, "Decrypt", {"further": "x"}, False),
    "host encrypts": (HOST, "Encrypt", {}, False),
    "host disables": (HOST, "DisableKey", None, False),
    "host reencrypts": (HOST, "ReEncryptFrom", {}, False),
    "rotator from": (ROTATOR, "ReEncryptFrom", {}, True),
    "rotator to": (ROTATOR, "ReEncryptTo", {}, True),
    "rotator decrypts": (ROTATOR, "Decrypt", {}, False),
    "administrator disables": (ADMIN, "DisableKey", None, True),
    "administrator decrypts": (ADMIN, "Decrypt", {}, False),
    # beyond the fourteen
    "host, another store generates": (HOST, "GenerateDataKey", {"byokfs-store": "00" * 16}, False),
    "host, store id in capitals": (HOST, "Decrypt", "capitals", False),
    "host, a file": (HOST, "Decrypt", {"byokfs-file": "f"}, True),
    "host grants": (HOST, "CreateGrant", None, False),
    "rotator, another store": (ROTATOR, "ReEncryptTo", {"byokfs-store": "00" * 16}, False),
    "rotator, no context": (ROTATOR, "ReEncryptFrom", "empty", False),
    "rotator reads": (ROTATOR, "ListKeyRotations", None, True),
    "rotator generates": (ROTATOR, "GenerateDataKey", {}, False),
    "rotator rotates on demand": (ROTATOR, "RotateKeyOnDemand", None, False),
    "administrator sets the policy": (ADMIN, "PutKeyPolicy", None, True),
    "administrator grants": (ADMIN, "CreateGrant", None, False),
    "administrator generates": (ADMIN, "GenerateDataKey", {}, False),
    "administrator reencrypts": (ADMIN, "ReEncryptFrom", {}, False),
    "a stranger": (f"arn:aws:iam::{ACCOUNT}:role/other", "Decrypt", {}, False),
    "a stranger's account": (f"arn:aws:iam::{VENDOR}:role/byokfs-host", "Decrypt", {}, False),
}


def request(case, context, key):
    who, action, pairs, wanted = CASES[case]
    if pairs == "empty":
        pairs = {}
    elif pairs == "capitals":
        pairs = {**context, "byokfs-store": context["byokfs-store"].upper()}
        assert pairs != context
    elif pairs is not None:
        pairs = {**context, **pairs}
    return Request(who, "kms:" + action, key, pairs), wanted


@pytest.mark.parametrize("case", CASES)
def test_key_policy_alone(documents, context, case):
    """Host and key in one account: the key's policy suffices."""
    r, wanted = request(case, context, documents["key"])
    assert allowed(r, documents["key_policy"]) is wanted


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][0] in (HOST, ROTATOR)])
def test_across_accounts(shop, documents, context, case):
    """Roles of the vendor's account under the customer's key: each side alone allows nothing, both together the same."""
    moved = {who: who.replace(ACCOUNT, VENDOR) for who in (HOST, ROTATOR)}
    away = json.loads(policy(shop.cipher, "--host", moved[HOST], "--rotator", moved[ROTATOR], "--admin", ADMIN))
    r, wanted = request(case, context, away["key"])
    r.who = moved[r.who]
    own = away["host_policy" if r.who == moved[HOST] else "rotator_policy"]
    assert allowed(r, away["key_policy"], own) is wanted
    assert not allowed(r, away["key_policy"]) and not allowed(r, documents["key_policy"], own)


def test_both_conditions_are_needed(documents, context):
    """ForAllValues alone lets an empty context pass, StringEquals alone any further pair: the evaluator knows, so the tests above do."""
    empty = Request(HOST, "kms:Decrypt", documents["key"], {})
    further = Request(HOST, "kms:Decrypt", documents["key"], {**context, "further": "x"})
    for operator, passes in (("StringEquals", empty), ("ForAllValues:StringEquals", further)):
        weaker = copy.deepcopy(documents["key_policy"])
        del statements(weaker)[0]["Condition"][operator]
        assert allowed(passes, weaker) and not allowed(passes, documents["key_policy"])


def test_owner_without_an_administrator(shop, context):
    """The account's own policies decide who administers; they cannot allow Decrypt."""
    documents = json.loads(policy(shop.cipher, "--host", HOST))
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}
    key, somebody = documents["key"], f"arn:aws:iam::{ACCOUNT}:role/somebody"
    assert allowed(Request(somebody, "kms:DisableKey", key), documents["key_policy"], everything)
    assert not allowed(Request(somebody, "kms:DisableKey", key), documents["key_policy"])
    for action in ("Decrypt", "GenerateDataKey", "Encrypt", "ReEncryptFrom", "CreateGrant"):
        assert not allowed(Request(somebody, "kms:" + action, key, context), documents["key_policy"], everything), action
    assert "rotator_policy" not in documents and "trust_policy" not in documents
    assert not [s for s in statements(documents["key_policy"]) if "Rotate" in s["Sid"]]


def test_lock_out(shop, documents):
    """With an administrator, the account still can name another one, unless told otherwise."""
    root = Request(f"arn:aws:iam::{ACCOUNT}:root", "kms:PutKeyPolicy", documents["key"])
    assert allowed(root, documents["key_policy"])
    root.action = "kms:DisableKey"
    assert not allowed(root, documents["key_policy"])
    without = json.loads(policy(shop.cipher, *ROLES, "--no-root", "--only=key"))
    root.action = "kms:PutKeyPolicy"
    assert not allowed(root, without)
    said(run(CTL, "policy", shop.cipher, "--no-root"), USAGE, "--admin")


def test_trust(shop):
    documents = json.loads(policy(shop.cipher, "--host", HOST, "--external-id", "customer-7", "--account", VENDOR))
    trust, = statements(documents["trust_policy"])
    vendor = f"arn:aws:iam::{VENDOR}:role/any"
    assert trust["Principal"]["AWS"] == f"arn:aws:iam::{VENDOR}:root"
    assert applies(trust, Request(vendor, "sts:AssumeRole", HOST, external_id="customer-7"))
    for wrong in ("customer-8", "CUSTOMER-7", None):
        assert not applies(trust, Request(vendor, "sts:AssumeRole", HOST, external_id=wrong))
    role = json.loads(policy(shop.cipher, "--only=trust", "--external-id", "customer-7", "--account", vendor))
    assert statements(role)[0]["Principal"]["AWS"] == vendor
    configured = json.loads(policy(shop.cipher, "-o", f"kms.role_arn={HOST},kms.external_id=from-ini"))
    assert statements(configured["trust_policy"])[0]["Condition"]["StringEquals"]["sts:ExternalId"] == "from-ini"
    assert statements(configured["key_policy"])[0]["Principal"]["AWS"] == HOST


def test_what_byokfs_sends_is_allowed(shop, documents, shared_devkms):
    """Every request of init, test and a mount that works, against the printed policy: nothing is missing, and apart from the requests
    of `test` that ask for refusal nothing is superfluous."""
    since = shared_devkms.stats()["seq"]
    assert run(CTL, "test", "-c", shop.ini, shop.cipher).code == 0
    probes = shared_devkms.http("GET", f"/_devkms/stats?since={since}")["requests"]
    since = shared_devkms.stats()["seq"]
    shop.mount()
    for i in range(5):
        with open(shop.path(f"file {i}"), "w") as f:
            f.write("x" * 10000)
    shop.remount()
    with open(shop.path("file 3")) as f:
        assert len(f.read()) == 10000
    shop.umount()
    sent = shared_devkms.http("GET", f"/_devkms/stats?since={since}")["requests"]
    asked = [Request(HOST, "kms:" + s["operation"], s["key"], s.get("context")) for s in sent]
    assert {r.action for r in asked} >= {"kms:Decrypt", "kms:GenerateDataKey"}
    for r in asked:
        assert allowed(r, documents["key_policy"]), (r.action, r.keys)
    refused = [s for s in probes if not allowed(Request(HOST, "kms:" + s["operation"], s["key"], s.get("context")), documents["key_policy"])]
    assert [s["operation"] for s in refused] == ["GenerateDataKey"] * 2
    assert refused[0]["context"]["byokfs-store"] != store_id(shop) and "test-of-policy" in refused[1]["context"]


def test_kms_takes_it(shop, shared_devkms):
    """The bare document is what PutKeyPolicy wants; it comes back the same."""
    document = policy(shop.cipher, *ROLES, "--only=key")
    key = shared_devkms.client.create_key(Description="other")["KeyMetadata"]["KeyId"]
    shared_devkms.client.put_key_policy(KeyId=key, PolicyName="default", Policy=document)
    assert json.loads(shared_devkms.client.get_key_policy(KeyId=key, PolicyName="default")["Policy"]) == json.loads(document)
    assert len(document) < 32768


# ---- which store, which keys

def test_without_a_store(shared_devkms):
    r = run(CTL, "policy", "-o", f"kms.key={shared_devkms.key},kms.context=tenant:a", env={"BYOKFS_CONFIG": "/dev/null"})
    assert r.code == 0 and r.err.count("byokfsctl: note: ") == 3, r
    documents = json.loads(r.out)
    condition = statements(documents["key_policy"])[0]["Condition"]
    assert condition["StringEquals"] == {"kms:EncryptionContext:byokfs-store": "REPLACE-WITH-STORE-ID"}
    assert condition["ForAllValues:StringEquals"]["kms:EncryptionContextKeys"] == [
        "byokfs-store", "byokfs-domain", "byokfs-file", "byokfs-use", "tenant"]
    assert "REPLACE-WITH-HOST-ROLE" in statements(documents["key_policy"])[0]["Principal"]["AWS"]
    pinned = json.loads(policy("-o", f"kms.key={shared_devkms.key},store.id={'ab' * 16}", "--host", HOST))
    assert pinned["store"] == "ab" * 16
    bare = json.loads(policy())
    assert bare["key"].endswith("REPLACE-WITH-KEY-ID")


def test_a_policy_before_there_is_a_store(tmp_path, shared_devkms):
    """The id that is configured is the id of the store that init makes: its requests are the ones the policy allows."""
    pinned = "5a" * 16
    settings = ["-o", f"kms.key={shared_devkms.key},kms.endpoint={shared_devkms.endpoint},store.id={pinned}"]
    before = json.loads(policy(*settings, "--host", HOST))
    cipher = tmp_path / "cipher"
    cipher.mkdir()
    since = shared_devkms.stats()["seq"]
    assert run(CTL, "init", *settings, cipher).code == 0
    sent = shared_devkms.http("GET", f"/_devkms/stats?since={since}")["requests"]
    assert len(sent) >= 3
    for s in sent:
        assert allowed(Request(HOST, "kms:" + s["operation"], s["key"], s.get("context")), before["key_policy"])
    assert json.loads(policy(cipher, "--host", HOST)) == before


def test_multi_region():
    args = ["-o", f"kms.key={MRK}", "-o", f"kms.replicas={MRK_EU}@https://kms.example", "--host", HOST]
    r = run(CTL, "policy", *args, env={"BYOKFS_CONFIG": "/dev/null"})
    documents = json.loads(r.out)
    assert documents["keys_to_apply_to"] == [MRK, MRK_EU] and "key policy of its own" in r.err
    for s in statements(documents["host_policy"]):
        assert s["Resource"] == [MRK, MRK_EU]
    for key in (MRK, MRK_EU):
        r = Request(HOST, "kms:Decrypt", key, {"byokfs-store": documents["store"]})
        assert allowed(r, documents["key_policy"], documents["host_policy"])
    alone = run(CTL, "policy", "-o", f"kms.key={MRK}", "--host", HOST, env={"BYOKFS_CONFIG": "/dev/null"})
    assert "replicas" in alone.err and alone.code == 0


def second_domain(m, key):
    """Adds a domain under another key to the descriptors: a sum is all that `policy` can check."""
    meta = os.path.join(m.cipher, ".byokfs")
    name = next(n for n in os.listdir(os.path.join(meta, "domains")) if not n.endswith("~"))
    other = "0123456789abcdef" * 2
    with open(os.path.join(meta, "domains", name)) as f:
        text = f.read()
    text = text.replace(f"domain={name}", f"domain={other}").replace("index=0", "index=1").replace("context.1=-", "context.1=team:b")
    text = re.sub(r"a\.key=.*", f"a.key={key}", text)
    with open(os.path.join(meta, "store")) as f:
        store = f.read()
    line = re.search(r"domain=0 (.*)\n", store)
    store = store.replace(line[0], line[0] + f"domain=1 {other} {line[1].split()[1][::-1]} {line[1].split()[2]}\n")
    for path, content in ((os.path.join(meta, "domains", other), text), (os.path.join(meta, "store"), store)):
        for copy_ in (path, path + "~"):
            with open(copy_, "wb") as f:
                f.write(with_sum(content.encode()))


def test_domains_under_other_keys(tmp_path, shared_devkms):
    m = Mount(tmp_path, shared_devkms)
    second_domain(m, MRK)
    documents = json.loads(policy(m.cipher, "--host", HOST))
    assert [d["key"] for d in documents["keys"]] == [shared_devkms.key, MRK] and documents["store"] == store_id(m)
    names = [statements(d["key_policy"])[0]["Condition"]["ForAllValues:StringEquals"]["kms:EncryptionContextKeys"] for d in documents["keys"]]
    assert "team" not in names[0] and "team" in names[1]
    one = json.loads(policy(m.cipher, "--host", HOST, "--only=host", "--key", MRK))
    assert statements(one)[0]["Resource"] == MRK
    said(run(CTL, "policy", m.cipher, "--only=key"), USAGE, "2 keys", MRK)
    said(run(CTL, "policy", m.cipher, "--key", MRK_EU), USAGE, MRK_EU)
    assert len(Hcl(policy(m.cipher, "--host", HOST, "--terraform")).resources) == 6
    text = policy(m.cipher, "--host", HOST, "--external-id", "customer-7", "--account", VENDOR, "--terraform")
    found = Hcl(text).resources
    assert formatted(text) and [kind for kind, _ in found].count("aws_iam_role") == 1, text
    for suffix in ("", "_2"):
        assert found["aws_kms_key_policy", "byokfs" + suffix]["depends_on"] == ["&aws_iam_role.byokfs_host"]
        attached = found["aws_iam_role_policy_attachment", "byokfs_host" + suffix]
        assert attached == {"role": "&aws_iam_role.byokfs_host.name", "policy_arn": f"&aws_iam_policy.byokfs_host{suffix}.arn"}


def test_the_other_copy_serves(tmp_path, shared_devkms):
    """A damaged descriptor is no obstacle while its copy is sound; two are."""
    m = Mount(tmp_path, shared_devkms)
    domains = os.path.join(m.cipher, ".byokfs", "domains")
    first, second = sorted(os.listdir(domains))
    with open(os.path.join(domains, first), "r+") as f:
        f.write("nonsense")
    assert json.loads(policy(m.cipher))["key"] == shared_devkms.key
    with open(os.path.join(domains, second), "r+") as f:
        f.write("nonsense")
    said(run(CTL, "policy", m.cipher), NOT_A_STORE)


def test_other_providers(tmp_path):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    cipher = tmp_path / "cipher"
    cipher.mkdir()
    settings = ["-o", f"kms.provider=keyfile,keyfile.path={key}"]
    assert run(CTL, "init", *settings, cipher).code == 0
    said(run(CTL, "policy", cipher), CONFIG, "AWS KMS")
    said(run(CTL, "policy", *settings), CONFIG, "keyfile")


WRONG = {
    "session": (["--host", f"arn:aws:sts::{ACCOUNT}:assumed-role/h/s"], f"arn:aws:iam::{ACCOUNT}:role/h"),
    "wildcard": (["--host", f"arn:aws:iam::{ACCOUNT}:role/*"], "wildcards"),
    "whole account": (["--rotator", f"arn:aws:iam::{ACCOUNT}:root"], "everybody"),
    "no ARN": (["--admin", "me"], "not an ARN"),
    "partition": (["--host", f"arn:aws-cn:iam::{ACCOUNT}:role/h"], "partition"),
    "external id": (["--external-id", "a b"], "ExternalId"),
    "account": (["--account", "123", "--external-id", "abc"], "12 digits"),
    "only": (["--only=all"], "none of key, host, rotator, trust"),
    "no external id": (["--account", VENDOR], "--external-id"),
    "no external id, only trust": (["--account", VENDOR, "--only=trust"], "--external-id"),
    "key": (["--key", "alias/a"], "not the ARN"),
    "both": (["--json", "--terraform"], "choose one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(shop, name):
    args, word = WRONG[name]
    r = said(run(CTL, "policy", shop.cipher, *args), USAGE, word)
    assert not r.out


def test_wrong_store_and_key(tmp_path, shared_devkms):
    said(run(CTL, "policy", tmp_path), NOT_A_STORE)
    said(run(CTL, "policy", "-o", "kms.key=alias/a", env={"BYOKFS_CONFIG": "/dev/null"}), CONFIG, "alias")
    said(run(CTL, "policy", "-o", f"kms.key={MRK},kms.role_arn=x", env={"BYOKFS_CONFIG": "/dev/null"}), CONFIG, "role_arn")


# ---- Terraform

TERRAFORM = {
    "template": [],
    "roles": ROLES,
    "trust": [*ROLES, "--external-id", "customer-7", "--account", VENDOR],
    "path": ["--host", f"arn:aws:iam::{ACCOUNT}:role/a/b/host", "--external-id", "customer-7"],
    "user": ["--host", f"arn:aws:iam::{ACCOUNT}:user/somebody", "--rotator", ROTATOR, "--no-root", "--admin", ADMIN],
}


@pytest.mark.parametrize("name", TERRAFORM)
def test_terraform(shop, name):
    """The same documents, in the layout of `terraform fmt`, without anything that would be an expression."""
    args = TERRAFORM[name]
    text = policy(shop.cipher, *args, "--terraform")
    documents = json.loads(policy(shop.cipher, *args))
    assert formatted(text)
    found = Hcl(text).resources
    key = found["aws_kms_key_policy", "byokfs"]
    assert key["policy"] == documents["key_policy"] and key["key_id"] == documents["key"]
    for what in ("host", "rotator"):
        have = found.get(("aws_iam_policy", f"byokfs_{what}"))
        assert (have["policy"] if have else None) == documents.get(f"{what}_policy")
        if have:
            kind = "user" if name == "user" and what == "host" else "role"
            attached = found[f"aws_iam_{kind}_policy_attachment", f"byokfs_{what}"]
            assert attached["policy_arn"] == f"&aws_iam_policy.byokfs_{what}.arn" and kind in attached
    role = found.get(("aws_iam_role", "byokfs_host"))
    assert (role["assume_role_policy"] if role else None) == documents.get("trust_policy")
    if role:
        assert key["depends_on"] == ["&aws_iam_role.byokfs_host"]
        assert role["name"] == documents["key_policy"]["Statement"][0]["Principal"]["AWS"].split("/")[-1]
    assert (role or {}).get("path") == ("/a/b/" if name == "path" else None)


def test_layout_check_sees_faults(shop):
    text = policy(shop.cipher, "--terraform")
    assert formatted(text)
    assert not formatted(text.replace("key_id = ", "key_id  = "))
    assert not formatted(text.replace("Resource = ", "Resource  = "))
    assert not formatted(text.replace("      {\n", "       {\n", 1))
    with pytest.raises(AssertionError):
        Hcl(text.replace("ByokfsHostUse", "${x}"))
