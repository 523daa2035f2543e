"""What administrators, credentials and key services can get wrong before a mount: every mistake is refused in words, with its exit
code, and leaves nothing behind."""
import datetime
import errno
import json
import os

import boto3
import pytest
from botocore.config import Config

from conftest import AK, BYOKFS, CTL, SK, Devkms, Mount, wait_until
from faults import err, get, pattern, put
from programs import ALREADY, CONFIG, DENIED, NOT_A_STORE, UNREACHABLE, background, markers, mounted, run, said, tree


@pytest.fixture(scope="module")
def shop(tmp_path_factory, shared_devkms):
    """An unmounted store that no test changes."""
    m = Mount(tmp_path_factory.mktemp("shop"), shared_devkms)
    yield m
    m.close()


def ini(tmp_path, text, name="test.ini"):
    path = tmp_path / name
    path.write_bytes(text.encode("latin-1") if isinstance(text, str) else text)
    return str(path)


def refused(shop, code, *words, config=None, options=(), env=None):
    """Mount and byokfsctl test refuse alike; nothing is mounted and no marker stays."""
    args = ["-c", config or shop.ini]
    for o in options:
        args += ["-o", o]
    r = said(run(BYOKFS, *args, shop.cipher, shop.plain, env=env), code, *words)
    assert mounted(shop.plain) is None and not markers(shop)
    test = run(CTL, "test", *args, shop.cipher, env=env)
    assert test.code == code and "FAILED" in test.out, test
    return r, test


# ---- the configuration file

GOOD = "[kms]\nkey = arn:aws:kms:us-east-1:111122223333:key/a\n"
FILES = {
    "unknown key": (GOOD + "kye = x\n", 3, "unknown key 'kye' in [kms]"),
    "unknown section": (GOOD + "[cahce]\nlease = 30s\n", 4, "unknown section [cahce]"),
    "duplicate": (GOOD + "key = x\n", 3, "already set in line 2"),
    "duplicate in a section opened again": (GOOD + "[cache]\n[kms]\nkey = x\n", 5, "already set in line 2"),
    "out of range": (GOOD + "max_connections = 65\n", 3, "out of range (1 to 64)"),
    "duration out of range": (GOOD + "[cache]\nlease = 25h\n", 4, "out of range"),
    "huge number": (GOOD + "max_connections = 99999999999999999999\n", 3, "max_connections"),
    "duration without unit": (GOOD + "[cache]\nlease = 30\n", 4, "needs a unit"),
    "unknown unit": (GOOD + "[cache]\nlease = 30d\n", 4, "unit"),
    "not a number": (GOOD + "max_connections = many\n", 3, "not a number"),
    "negative": (GOOD + "max_connections = -1\n", 3, "not a number"),
    "no choice": (GOOD + "provider = azure\n", 3, "none of aws|vault|pkcs11|keyfile"),
    "another choice": (GOOD + "[mount]\ntransport = splice\n", 4, "none of fuse|io_uring|auto"),
    "days with a unit": (GOOD + "[alert]\nkey_age_days = 90d\n", 4, "not a plain number"),
    "relative path": (GOOD + "ca_bundle = certs.pem\n", 3, "not an absolute path"),
    "a secret": (GOOD + "aws_secret_access_key = x\n", 3, "unknown key 'aws_secret_access_key'"),
    "no section": ("key = x\n" + GOOD, 1, "before the first [section]"),
    "no equals sign": (GOOD + "[cache]\nlease\n", 4, "expected 'name = value'"),
    "a colon": (GOOD + "[cache]\nlease: 30s\n", 4, "expected 'name = value'"),
    "unclosed section": (GOOD + "[cache\n", 3, "missing ']'"),
    "continuation": (GOOD + "  more\n", 3, "begin with a blank"),
    "long line": (GOOD + "context = " + "a" * 200 + "\n", 3, "line too long"),
    "long comment": (GOOD + "#" * 500 + "\n", 3, "line too long"),
    "control character": (GOOD + "profile = a\x01b\n", 3, "control character"),
    "NUL": (GOOD + "profile = a\0b\n", 3, "NUL"),
    "a binary": (b"\x7fELF\x02\x01\x01" + bytes(300), 1, ""),
    "pin of no id": (GOOD + "[store]\nid = 0123\n", 4, "32 lower-case hex digits"),
    "pairs that are none": (GOOD + "context = a b\n", 3, "name:value"),
    "a reserved pair": (GOOD + "context = aws-x:y\n", 3, "name:value"),
}


@pytest.mark.parametrize("name", FILES)
def test_configuration_file(shop, tmp_path, name):
    text, line, word = FILES[name]
    path = ini(tmp_path, text)
    refused(shop, CONFIG, f"{path}:{line}: ", word, config=path)


WHOLES = {
    "no key": ("", "no key"),
    "no key file": ("[kms]\nprovider = keyfile\n", "'path' in [keyfile]"),
    "lease shorter than two probes": (GOOD + "[cache]\nprobe = 20s\n", "at least twice 'probe'"),
    "key file below the mount point": ("[kms]\nprovider = keyfile\n[keyfile]\npath = {plain}/key\n", "below the mount point"),
}


@pytest.mark.parametrize("name", WHOLES)
def test_configuration_as_a_whole(shop, tmp_path, name):
    text, word = WHOLES[name]
    r = run(BYOKFS, "-c", ini(tmp_path, text.format(plain=shop.plain)), shop.cipher, shop.plain)
    said(r, CONFIG, word)


def test_configuration_files_that_cannot_be_read(shop, tmp_path):
    open_to_all = ini(tmp_path, GOOD)
    os.chmod(open_to_all, 0o666)
    refused(shop, CONFIG, open_to_all, "chmod o-w", config=open_to_all)
    refused(shop, CONFIG, str(tmp_path), "directory", config=str(tmp_path))
    refused(shop, CONFIG, "/nowhere/byokfs.ini", config="/nowhere/byokfs.ini")
    refused(shop, CONFIG, config="/dev/null")


def test_configuration_that_looks_odd_but_is_good(store, tmp_path):
    """A byte-order mark, CRLF, comments, blanks, values with '=' and ':'."""
    with open(store.ini) as f:
        text = f.read()
    odd = "\ufeff; comment\r\n\r\n" + text.replace("\n", "\r\n") + "[store] # comment\r\n[log]\r\nlevel = debug ; comment"
    config = tmp_path / "odd.ini"
    config.write_bytes(odd.encode())
    with background(store, order=["-c", str(config), store.cipher, store.plain]) as (r, _):
        assert r.code == 0, r


# ---- what the store must be

@pytest.mark.sanitizer
def test_pins(shop, make_mount, shared_devkms):
    info = json.loads(run(CTL, "info", "--json", shop.cipher).out)
    good = [f"store.id={info['store']}", f"store.suite={info['suite']}", "store.names=siv64"]
    with background(shop, *sum((["-o", o] for o in good), [])) as (r, _):
        assert r.code == 0, r
    for pin, word in ((f"store.id={'0' * 32}", info["store"]), (f"store.suite={3 - info['suite']}", "suite"),
                      ("store.names=plain", "names")):
        said(run(BYOKFS, "-c", shop.ini, "-o", pin, shop.cipher, shop.plain), CONFIG, word, "pinned")
        assert mounted(shop.plain) is None and not markers(shop)
    other = make_mount("other", shared_devkms, init=["--names=plain", f"--suite={3 - info['suite']}"])
    with background(other, "-o", "store.names=plain") as (r, _):
        assert r.code == 0, r


# ---- a key in a file

def keyfile_mount(tmp_path, key, name="store", **kw):
    path = tmp_path / (name + ".key")
    path.write_bytes(key)
    path.chmod(0o600)
    return Mount(tmp_path / name, None, ini=f"[kms]\nprovider = keyfile\n[keyfile]\npath = {path}\n"
                                            "[cache]\nprobe = 200ms\nlease = 2s\nmax_age = 1s\nidle = 500ms\n", **kw), path


@pytest.fixture
def keyfile(tmp_path):
    m, path = keyfile_mount(tmp_path, os.urandom(32))
    yield m, path
    m.close()


@pytest.mark.sanitizer
def test_keyfile(keyfile):
    """From init to EIO to EIO no more."""
    m, path = keyfile
    assert m.ctl("test", "-c", m.ini, m.cipher).returncode == 0
    m.mount()
    put(m.path("a"), pattern(1, 10000))
    fd = os.open(m.path("a"), os.O_RDONLY)
    try:
        os.rename(path, str(path) + ".away")
        wait_until(lambda: err(os.pread, fd, 100, 0) == errno.EIO)
        wait_until(lambda: m.state() == "locked")
        assert "is gone" in m.status()["reason"]
        assert err(os.listdir, m.plain) == err(get, m.path("a")) == errno.EIO
        os.rename(str(path) + ".away", path)
        wait_until(lambda: m.state() == "open")
        assert get(m.path("a")) == os.pread(fd, 20000, 0) == pattern(1, 10000)
        key = path.read_bytes()
        path.write_bytes(bytes(32))
        wait_until(lambda: m.state() == "locked")
        assert "another key" in m.status()["reason"]
        path.write_bytes(key)
        wait_until(lambda: m.state() == "open")
    finally:
        os.close(fd)
    m.remount()
    assert get(m.path("a")) == pattern(1, 10000)
    m.umount()


def test_keyfile_that_will_not_do(keyfile, tmp_path):
    m, path = keyfile
    key = path.read_bytes()
    info = json.loads(run(CTL, "info", "--json", m.cipher).out)
    os.rename(path, str(path) + ".away")
    refused(m, DENIED, str(path), "is gone")
    path.write_bytes(key[:31])
    refused(m, DENIED, "32 bytes")
    path.write_bytes(key)
    path.chmod(0o640)
    refused(m, CONFIG, "chmod 600")
    path.chmod(0o600)
    path.write_bytes(bytes(32))
    r, test = refused(m, CONFIG, info["domain"]["slots"][0]["key"])
    assert r.err.count("keyfile:") >= 2, "names the key wanted and the key found"
    os.unlink(path)
    os.mkdir(path)
    refused(m, DENIED, "not a regular file")
    os.rmdir(path)
    path.write_bytes(key)
    path.chmod(0o600)
    with background(m) as (r, _):
        assert r.code == 0, r


def test_keyfile_store_without_its_provider(keyfile, shared_devkms, tmp_path):
    """A store under a key file, mounted with AWS, and the other way round."""
    m, path = keyfile
    config = ini(tmp_path, f"[kms]\nkey = {shared_devkms.key}\nendpoint = {shared_devkms.endpoint}\n")
    refused(m, CONFIG, shared_devkms.key, "keyfile:", config=config)
    aws = Mount(tmp_path / "aws", shared_devkms)
    refused(aws, CONFIG, shared_devkms.key, "keyfile:", config=m.ini)


# ---- credentials

NOBODY = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_EC2_METADATA_DISABLED": "true",
          "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials", "AWS_CONFIG_FILE": "/nowhere/config"}


@pytest.mark.sanitizer
def test_credentials(shop, tmp_path):
    refused(shop, CONFIG, "no AWS credentials", env=NOBODY)
    refused(shop, CONFIG, "InvalidSignatureException", env={"AWS_SECRET_ACCESS_KEY": "wrong"})
    refused(shop, CONFIG, "UnrecognizedClientException", env={"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN000000000"})
    refused(shop, CONFIG, "UnrecognizedClientException", env={"AWS_SESSION_TOKEN": "nonsense"})
    refused(shop, CONFIG, "AWS_SECRET_ACCESS_KEY", env={"AWS_SECRET_ACCESS_KEY": None, "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/x"})
    refused(shop, CONFIG, "profile 'other'", options=["kms.profile=other"], env=NOBODY)


def test_expired_session(shop, shared_devkms):
    sts = boto3.client("sts", region_name="us-east-1", endpoint_url=shared_devkms.endpoint, aws_access_key_id=AK,
                       aws_secret_access_key=SK, config=Config(retries={"max_attempts": 0}))
    shared_devkms.http("POST", "/_devkms/role", {"role_arn": "arn:aws:iam::111122223333:role/host"})
    got = sts.assume_role(RoleArn="arn:aws:iam::111122223333:role/host", RoleSessionName="test", DurationSeconds=900)["Credentials"]
    env = {"AWS_ACCESS_KEY_ID": got["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": got["SecretAccessKey"],
           "AWS_SESSION_TOKEN": got["SessionToken"]}
    with background(shop, env=env) as (r, _):
        assert r.code == 0, r
    later = int((got["Expiration"] - datetime.datetime.now(datetime.timezone.utc)).total_seconds()) + 60
    shared_devkms.fault(clock_skew_s=later)
    try:
        r = run(BYOKFS, "-c", shop.ini, shop.cipher, shop.plain, env=env)
        said(r, CONFIG)
        assert "xpired" in r.err or "Signature" in r.err, r
    finally:
        shared_devkms.clear()


def test_wrong_clock(shop, shared_devkms):
    """A KMS whose clock differs is believed once; the mount works."""
    shared_devkms.fault(clock_skew_s=3600)
    try:
        with background(shop) as (r, _):
            assert r.code == 0, r
    finally:
        shared_devkms.clear()


PROFILES = """[profile plain]
region = us-east-1
[profile role]
role_arn = arn:aws:iam::111122223333:role/x
source_profile = plain
[profile program]
credential_process = /bin/true
[profile sso]
sso_start_url = https://example.com
"""


@pytest.mark.parametrize("profile, word", [("role", "a source_profile without credentials"), ("program", "Version 1"), ("sso", "SSO")])
def test_profiles_that_give_nothing(shop, tmp_path, profile, word):
    config = ini(tmp_path, PROFILES, "config")
    refused(shop, CONFIG, word, options=[f"kms.profile={profile}"], env={**NOBODY, "AWS_CONFIG_FILE": config})


def test_profile(shop, tmp_path):
    credentials = ini(tmp_path, f"[other]\naws_access_key_id={AK}\naws_secret_access_key={SK}\n", "credentials")
    env = {**NOBODY, "AWS_SHARED_CREDENTIALS_FILE": credentials}
    refused(shop, CONFIG, "'default'", env=env)
    with background(shop, "-o", "kms.profile=other", env=env) as (r, _):
        assert r.code == 0, r


# ---- the key

def test_keys_that_will_not_do(shop, shared_devkms):
    def other(key, *words, code=CONFIG):
        return refused(shop, code, *words, options=[f"kms.key={key}"])

    arn = shared_devkms.key
    other(arn.replace("us-east-1", "eu-central-1"), "eu-central-1")
    other(arn[:-4] + "0000", "NotFoundException")
    other("arn:aws:kms:us-east-1:111122223333:nonsense")
    other("alias/unknown", "no Region")
    refused(shop, CONFIG, "NotFoundException", options=["kms.key=alias/unknown", "kms.region=us-east-1"])
    other("no key at all")
    second = shared_devkms.client.create_key(Description="another")["KeyMetadata"]["Arn"]
    r, test = other(second, second, arn)
    assert "IncorrectKeyException" in r.err and "IncorrectKeyException" in test.out, (r, test)
    hmac = shared_devkms.client.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")["KeyMetadata"]["Arn"] \
        if "HMAC" in str(shared_devkms.client.meta.service_model) else None
    assert hmac is None or other(hmac)


def test_alias_is_pinned(tmp_path, shared_devkms):
    """An alias makes a store; what is written down, and asked for, is the ARN behind it."""
    shared_devkms.client.create_alias(AliasName="alias/customer", TargetKeyId=shared_devkms.key)
    text = f"[kms]\nkey = alias/customer\nregion = us-east-1\nendpoint = {shared_devkms.endpoint}\n"
    m = Mount(tmp_path / "m", shared_devkms, ini=text)
    assert json.loads(run(CTL, "info", "--json", m.cipher).out)["domain"]["slots"][0]["key"] == shared_devkms.key
    with background(m) as (r, _):
        assert r.code == 0, r
        put(m.path("a"), b"x")
    other = shared_devkms.client.create_key()["KeyMetadata"]["Arn"]
    shared_devkms.client.update_alias(AliasName="alias/customer", TargetKeyId=other)
    refused(m, CONFIG, other, shared_devkms.key)


# ---- a key service that answers rubbish

HTML = "<html><body>403 Forbidden by the proxy</body></html>"
RUBBISH = {
    "half an answer": (dict(bad_json=True), {UNREACHABLE}),
    "far too much": (dict(huge=True), {UNREACHABLE, CONFIG}),
    "a proxy's page": (dict(error_type="x", error_status=403, raw_type="text/html", raw_body=HTML), {CONFIG}),
    "a page and 200": (dict(error_type="x", error_status=200, raw_type="text/html", raw_body=HTML), {UNREACHABLE, CONFIG}),
    "a page and 502": (dict(error_type="x", error_status=502, raw_type="text/html", raw_body=HTML), {UNREACHABLE}),
    "another key's name": (dict(wrong_key_id=True), {CONFIG}),
    "a short body": (dict(truncate_body=True), {UNREACHABLE}),
    "a short secret": (dict(plaintext_size=16), {CONFIG, NOT_A_STORE}),
    "no secret": (dict(plaintext_size=0), {CONFIG, NOT_A_STORE}),
    "500": (dict(error_type="KMSInternalException", error_status=500), {UNREACHABLE}),
    "throttling": (dict(error_type="ThrottlingException"), {UNREACHABLE}),
    "an unknown error": (dict(error_type="NewException"), {CONFIG}),
    "denial": (dict(deny_access=True), {DENIED, CONFIG}),
    "a dropped connection": (dict(drop_rate=1.0), {UNREACHABLE}),
    "nothing": (dict(hang=True), {UNREACHABLE}),
}
PARSED = ("half an answer", "far too much", "a page and 200", "a short secret", "another key's name")
QUICK = ["-o", "kms.request_timeout=400ms"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.sanitizer if n in PARSED else ()) for n in RUBBISH])
def test_rubbish(shop, tmp_path, shared_devkms, name):
    """Mount, init and test: refused in words; init leaves the directory empty."""
    fault, codes = RUBBISH[name]
    empty = tmp_path / "empty"
    empty.mkdir()
    shared_devkms.fault(**fault)
    try:
        r = run(BYOKFS, "-c", shop.ini, *QUICK, shop.cipher, shop.plain)
        assert r.code in codes, r
        said(r, r.code)
        assert mounted(shop.plain) is None and not markers(shop)
        r = run(CTL, "init", "-c", shop.ini, *QUICK, empty)
        assert r.code in codes - {NOT_A_STORE} | {1}, r
        said(r, r.code)
        assert tree(empty) == []
        r = run(CTL, "test", "-c", shop.ini, *QUICK, shop.cipher)
        assert r.code in codes | {1} and "FAILED" in r.out and "what to do" in r.out, r
    finally:
        shared_devkms.clear()


@pytest.mark.parametrize("operation", ["Decrypt", "GenerateDataKey"])
def test_another_secret(shop, tmp_path, shared_devkms, operation):
    """A KMS that gives back another secret than it sealed is found out, at init and at mount."""
    empty = tmp_path / "empty"
    empty.mkdir()
    shared_devkms.fault(wrong_plaintext=True, operations=[operation])
    try:
        said(run(CTL, "init", "-c", shop.ini, empty), 1, "another secret")
        assert tree(empty) == []
        r = run(CTL, "test", "-c", shop.ini)
        assert r.code == 1 and "another secret" in r.out, r
        if operation == "Decrypt":
            said(run(BYOKFS, "-c", shop.ini, shop.cipher, shop.plain), NOT_A_STORE, "not the one this store commits to")
            assert mounted(shop.plain) is None and not markers(shop)
    finally:
        shared_devkms.clear()


def test_init_refused_late(shop, tmp_path, shared_devkms):
    """The KMS says yes until the store was written and is opened again: everything goes."""
    empty = tmp_path / "empty"
    empty.mkdir()
    for good in range(4):
        shared_devkms.http("POST", "/_devkms/fault", [dict(count=good, latency_ms=1), dict(error_type="DisabledException")]
                           if good else dict(error_type="DisabledException"))
        try:
            said(run(CTL, "init", "-c", shop.ini, *QUICK, empty), DENIED, "DisabledException")
        finally:
            shared_devkms.clear()
        assert tree(empty) == [], good
    assert run(CTL, "init", "-c", shop.ini, empty).code == 0
    said(run(CTL, "init", "-c", shop.ini, empty), ALREADY)


def test_a_busy_kms_is_waited_for(shop, shared_devkms):
    """Two throttled calls and a passing 500 are nobody's business."""
    shared_devkms.http("POST", "/_devkms/fault", [dict(count=2, error_type="ThrottlingException"),
                                                  dict(count=1, error_type="KMSInternalException", error_status=500)])
    with background(shop) as (r, _):
        assert r.code == 0, r
    shared_devkms.clear()


@pytest.mark.parametrize("endpoint, word", [
    ("http://127.0.0.1:1", ""), ("https://127.0.0.1:{port}", ""), ("https://nowhere.invalid", ""), ("nonsense", "Endpoint"),
    ("ftp://127.0.0.1", "Endpoint"), ("http://kms.us-east-1.amazonaws.com", "without TLS"), ("http://127.0.0.1:99999", "Endpoint")])
def test_endpoints(shop, shared_devkms, endpoint, word):
    endpoint = endpoint.format(port=shared_devkms.port)
    r = run(BYOKFS, "-c", shop.ini, "-o", f"kms.endpoint={endpoint}", *QUICK, shop.cipher, shop.plain)
    assert r.code == (CONFIG if word else UNREACHABLE) and word in r.err, r
    said(r, r.code)


def test_steps_of_the_test_button(shop, devkms, tmp_path):
    """byokfsctl test: each way the key itself is unusable, and a clean bill."""
    good = run(CTL, "test", "-c", shop.ini, shop.cipher)
    assert good.code == 0 and "FAILED" not in good.out, good
    for step in ("configuration", "credentials", "key service", "seal", "unseal", "context", "latency", "store"):
        assert any(line.startswith("ok") and f" {step}: " in line for line in good.out.splitlines()), (step, good)
    config = ini(tmp_path, f"[kms]\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\n")
    devkms.disable()
    r = run(CTL, "test", "-c", config)
    assert r.code == DENIED and "Disabled" in r.out and "what to do" in r.out, r
    devkms.enable()
    devkms.client.schedule_key_deletion(KeyId=devkms.key, PendingWindowInDays=7)
    r = run(CTL, "test", "-c", config)
    assert r.code == DENIED and "PendingDeletion" in r.out, r
    r = run(CTL, "test", "-c", shop.ini, tmp_path)
    assert r.code == NOT_A_STORE and "FAILED  store" in r.out, r
