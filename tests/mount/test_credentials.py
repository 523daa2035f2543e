"""The AWS credential chain, one row per line of its table, against byokfs-devkms: where credentials come from, what is refused, and
that a mounted store lives through their rotation, expiry and denial."""
import datetime
import ipaddress
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import threading

import boto3
import pytest
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conftest import AK, BYOKFS, CTL, DEVKMS, SK, Mount, environment, wait_until
from faults import err, get, put, until
from programs import CONFIG, DENIED, UNREACHABLE, background, ended, run, said

ROLE = "arn:aws:iam::111122223333:role/host"
SECOND = "arn:aws:iam::111122223333:role/second"
KEYS = f"aws_access_key_id = {AK}\naws_secret_access_key = {SK}\n"
NOBODY = {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_EC2_METADATA_DISABLED": "true",
          "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials", "AWS_CONFIG_FILE": "/nowhere/config"}


class Shop:
    """A store nobody changes, and files beside it."""

    def __init__(self, base, kms):
        self.base, self.kms = base, kms
        self.mount = Mount(base, kms)
        self.env = {**NOBODY, "AWS_ENDPOINT_URL_STS": kms.endpoint, "AWS_EC2_METADATA_SERVICE_ENDPOINT": kms.endpoint}

    def file(self, name, text, mode=0o600):
        path = os.path.join(self.base, name)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, mode)
        return path

    def role(self, **what):
        self.kms.http("POST", "/_devkms/role", {"role_arn": ROLE, **what})

    def no_role(self, arn=ROLE):
        self.kms.http("DELETE", "/_devkms/role", {"role_arn": arn})

    def metadata(self, **what):
        self.kms.http("POST", "/_devkms/metadata", what)

    def seen(self):
        return self.kms.stats()["seq"]

    def since(self, seq):
        return self.kms.http("GET", f"/_devkms/stats?since={seq}")["requests"]

    def try_it(self, *options, **env):
        """byokfsctl test; what the server saw of it."""
        begin = self.seen()
        args = [a for o in options for a in ("-o", o)]
        r = run(CTL, "test", "-c", self.mount.ini, *args, self.mount.cipher, env={**self.env, **env})
        return r, self.since(begin)

    def works(self, *options, **env):
        r, seen = self.try_it(*options, **env)
        assert r.code == 0, r
        assert any(s["operation"] == "Decrypt" and s["result"] == "ok" for s in seen)
        return seen

    def fails(self, code, *words, options=(), **env):
        r, seen = self.try_it(*options, **env)
        assert r.code == code and "FAILED" in r.out, r
        for word in words:
            assert word in r.out + r.err, (word, r)
        return r, seen


@pytest.fixture(scope="module")
def shop(tmp_path_factory, shared_devkms):
    s = Shop(str(tmp_path_factory.mktemp("shop")), shared_devkms)
    s.role()
    s.kms.http("POST", "/_devkms/role", {"role_arn": SECOND})
    yield s
    s.mount.close()


@pytest.fixture(autouse=True)
def as_usual(shop):
    yield
    shop.kms.clear()
    shop.metadata()
    shop.role()


def signers(seen, operation="Decrypt"):
    return {s["access_key"] for s in seen if s["operation"] == operation}


def calls(seen, operation):
    return [s for s in seen if s["operation"] == operation]


def asked(seen, operation, *what):
    """What a walk through the chain asked. The test makes two: in its step about credentials, and for the KMS."""
    found = [tuple(s.get(w) for w in what) if len(what) > 1 else s.get(what[0]) for s in calls(seen, operation)]
    half = len(found) // 2
    assert len(found) % 2 == 0, found
    if "access_key" not in what:
        assert found[:half] == found[half:], found
    return found[:half]


def session(kms, **how):
    """Credentials of a session, as STS gives them."""
    sts = boto3.client("sts", region_name="us-east-1", endpoint_url=kms.endpoint, aws_access_key_id=AK,
                       aws_secret_access_key=SK, config=Config(retries={"max_attempts": 0}))
    return sts.assume_role(RoleArn=ROLE, RoleSessionName="test", **how)["Credentials"]


# ---- one row each: what is given, and what the server must see

def test_environment(shop):
    assert signers(shop.works(AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK)) == {AK}
    got = session(shop.kms)
    seen = shop.works(AWS_ACCESS_KEY_ID=got["AccessKeyId"], AWS_SECRET_ACCESS_KEY=got["SecretAccessKey"],
                      AWS_SESSION_TOKEN=got["SessionToken"], AWS_CREDENTIAL_EXPIRATION=got["Expiration"].isoformat())
    assert signers(seen) == {got["AccessKeyId"]}
    shop.fails(CONFIG, "AWS_CREDENTIAL_EXPIRATION is past", AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK,
               AWS_CREDENTIAL_EXPIRATION="2020-01-01T00:00:00Z")


def test_profile_keys(shop):
    credentials = shop.file("credentials", f"[default]\n{KEYS}[other]\n{KEYS}")
    for env in ({}, {"AWS_PROFILE": "other"}):
        assert signers(shop.works(AWS_SHARED_CREDENTIALS_FILE=credentials, **env)) == {AK}
    assert signers(shop.works("kms.profile=other", AWS_SHARED_CREDENTIALS_FILE=credentials, AWS_ACCESS_KEY_ID="AKIAWRONG",
                              AWS_SECRET_ACCESS_KEY="x")) == {AK}  # naming a profile switches the environment off


PROFILES = f"""[profile role]
role_arn = {ROLE}
source_profile = keys
role_session_name = my.host-1
duration_seconds = 1800
[profile chained]
role_arn = {SECOND}
source_profile = role
[profile own]
role_arn = {ROLE}
source_profile = own
{KEYS}[profile env]
role_arn = {ROLE}
credential_source = Environment
[profile instance]
role_arn = {ROLE}
credential_source = Ec2InstanceMetadata
[profile container]
role_arn = {ROLE}
credential_source = EcsContainer
[profile external]
role_arn = {ROLE}
source_profile = keys
external_id = customer-42
[profile wrong-id]
role_arn = {ROLE}
source_profile = keys
external_id = customer-43
[profile sso]
sso_start_url = https://example.com
[profile sso2]
sso_session = x
[profile login]
login_session = x
[profile mfa]
role_arn = {ROLE}
source_profile = keys
mfa_serial = arn:aws:iam::111122223333:mfa/me
[profile behind-mfa]
role_arn = {ROLE}
source_profile = mfa
[profile circle]
role_arn = {ROLE}
source_profile = circle2
[profile circle2]
role_arn = {ROLE}
source_profile = circle
[profile alone]
role_arn = {ROLE}
source_profile = alone
[profile both]
role_arn = {ROLE}
source_profile = keys
credential_source = Environment
[profile neither]
role_arn = {ROLE}
[profile nowhere]
role_arn = {ROLE}
source_profile = not-there
[profile odd-source]
role_arn = {ROLE}
credential_source = Somewhere
[profile long]
role_arn = {ROLE}
source_profile = keys
duration_seconds = 60
[profile no-role]
source_profile = keys
"""


@pytest.fixture(scope="module")
def files(shop):
    return {"AWS_CONFIG_FILE": shop.file("config", PROFILES),
            "AWS_SHARED_CREDENTIALS_FILE": shop.file("credentials", f"[keys]\n{KEYS}")}


def test_source_profile(shop, files):
    seen = shop.works("kms.profile=role", **files)
    assert asked(seen, "AssumeRole", "key", "access_key") == [(ROLE, AK)]
    assert all(k.startswith("ASIA") for k in signers(seen))
    assert len(signers(seen)) == 1
    seen = shop.works("kms.profile=chained", **files)
    assert asked(seen, "AssumeRole", "key") == [ROLE, SECOND]
    shop.works("kms.profile=own", **files)


def test_credential_source(shop, files):
    seen = shop.works(AWS_PROFILE="env", AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, **files)
    assert not calls(seen, "AssumeRole")  # the environment itself comes first
    seen = shop.works("kms.profile=env", AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, **files)
    assert asked(seen, "AssumeRole", "key") == [ROLE]
    seen = shop.works("kms.profile=instance", AWS_EC2_METADATA_DISABLED=None, **files)
    assert calls(seen, "InstanceCredentials") and calls(seen, "AssumeRole")
    seen = shop.works("kms.profile=container", AWS_CONTAINER_CREDENTIALS_FULL_URI=shop.kms.endpoint + "/v1/credentials", **files)
    assert calls(seen, "ContainerCredentials") and calls(seen, "AssumeRole")


def test_external_id(shop, files):
    shop.role(external_id="customer-42")
    shop.works("kms.profile=external", **files)
    shop.fails(DENIED, "AccessDenied", options=["kms.profile=wrong-id"], **files)
    shop.fails(DENIED, "AccessDenied", options=["kms.profile=role"], **files)


def test_configured_role(shop):
    """kms.role_arn comes on top of whatever the chain gives."""
    shop.role(external_id="customer-42")
    env = {"AWS_ACCESS_KEY_ID": AK, "AWS_SECRET_ACCESS_KEY": SK}
    seen = shop.works(f"kms.role_arn={ROLE}", "kms.external_id=customer-42", "kms.session_name=here", **env)
    assert asked(seen, "AssumeRole", "key") == [ROLE]
    shop.fails(DENIED, "AccessDenied", options=[f"kms.role_arn={ROLE}"], **env)
    shop.fails(DENIED, "AccessDenied", options=[f"kms.role_arn={ROLE}", "kms.external_id=other"], **env)


def test_web_identity(shop, files):
    shop.role(web_identity_token="eyJ.a-token.x")
    token = shop.file("token", "eyJ.a-token.x\n")
    env = {"AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ROLE_ARN": ROLE, "AWS_ROLE_SESSION_NAME": "pod"}
    seen = shop.works(**env)
    assert asked(seen, "AssumeRoleWithWebIdentity", "key", "access_key") == [(ROLE, None)]
    profile = shop.file("web", f"[profile web]\nrole_arn = {ROLE}\nweb_identity_token_file = {token}\n")
    shop.works("kms.profile=web", AWS_CONFIG_FILE=profile)
    shop.file("token", "eyJ.another.x")
    shop.fails(CONFIG, "InvalidIdentityToken", **env)
    shop.fails(CONFIG, "AWS_ROLE_ARN is not", **{**env, "AWS_ROLE_ARN": None})
    shop.fails(CONFIG, "/nowhere/token", **{**env, "AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token"})
    shop.role()
    shop.fails(DENIED, "AccessDenied", **env)


def program(shop, name, text):
    return shop.file(name, "#!/bin/sh\n" + textwrap.dedent(text), 0o700)


def printed(got, **more):
    return json.dumps({"Version": 1, "AccessKeyId": got["AccessKeyId"], "SecretAccessKey": got["SecretAccessKey"],
                       "SessionToken": got["SessionToken"], **more})


def process_profile(shop, command):
    return {"AWS_CONFIG_FILE": shop.file("process", f"[profile program]\ncredential_process = {command}\n")}


def test_credential_process(shop):
    got = session(shop.kms)
    answer = shop.file("answer.json", printed(got, Expiration=got["Expiration"].isoformat()))
    path = program(shop, "my program", f'test "$1" = "a b" && test "$2" = "" && test $# = 2 && test -z "$(cat)" && cat {answer}\n')
    seen = shop.works("kms.profile=program", **process_profile(shop, f'"{path}" \'a b\' ""'))
    assert signers(seen) == {got["AccessKeyId"]}
    shop.file("answer.json", printed(got))
    shop.works("kms.profile=program", **process_profile(shop, f'"{path}" a\\ b ""'))
    # found along the PATH, with the environment, and nothing of ours open
    program(shop, "named", f'[ $(ls /proc/self/fd | wc -l) = 4 ] || exit 9\n'
                           f'[ "$SAYS" = hello ] && cat {answer}\n')
    shop.works("kms.profile=program", PATH=f"{shop.base}:{os.environ['PATH']}", SAYS="hello", **process_profile(shop, "named"))


@pytest.mark.parametrize("text, words", [
    ("echo nope >&2; exit 3", ["exit code 3", "nope"]),
    ("echo '{}'", ["Version 1"]),
    ("echo '{\"Version\": 2}'", ["Version 1"]),
    ("echo '{\"Version\": 1, \"AccessKeyId\": \"x\"}'", ["no AccessKeyId and SecretAccessKey"]),
    ("head -c 70000 /dev/zero", ["too much"]),
    ("kill -9 $$", ["exit code -1"]),
])
def test_bad_credential_process(shop, text, words):
    shop.fails(CONFIG, *words, options=["kms.profile=program"], **process_profile(shop, program(shop, "bad", text)))


def test_credential_process_that_cannot_run(shop):
    shop.fails(CONFIG, "cannot run '/nowhere/program'", options=["kms.profile=program"], **process_profile(shop, "/nowhere/program"))
    shop.fails(CONFIG, "quote", options=["kms.profile=program"], **process_profile(shop, "/bin/echo 'x"))
    r, _ = shop.fails(UNREACHABLE, "has not answered yet", options=["kms.profile=program", "kms.request_timeout=500ms"],
                      **process_profile(shop, "sleep 1000"))
    left = subprocess.run(["pgrep", "-f", "^sleep 1000$"], capture_output=True, text=True).stdout
    assert not left, r  # it ended with its asker


def test_container(shop):
    full = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": shop.kms.endpoint + "/v1/credentials"}
    assert all(k.startswith("ASIA") for k in signers(shop.works(**full)))
    shop.metadata(container_token="Bearer abc")
    shop.fails(CONFIG, "401", "authorization token", **full)
    shop.works(AWS_CONTAINER_AUTHORIZATION_TOKEN="Bearer abc", **full)
    token = shop.file("container-token", "Bearer abc\n")
    shop.works(AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=token, AWS_CONTAINER_AUTHORIZATION_TOKEN="wrong", **full)
    shop.file("container-token", "Bearer abc\r\nX-Evil: 1")
    shop.fails(CONFIG, "line breaks", AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=token, **full)
    shop.metadata(status=500)
    _, seen = shop.fails(UNREACHABLE, "HTTP status 500", options=["kms.request_timeout=300ms"], **full)
    assert len(calls(seen, "ContainerCredentials")) >= 3
    shop.metadata(code="AccessDenied")
    shop.fails(CONFIG, "AccessDenied", **full)
    for url in ("http://192.0.2.1/x", "http://example.com/", "http://127.0.0.1@example.com/", "ftp://127.0.0.1/"):
        shop.fails(CONFIG, "is refused", AWS_CONTAINER_CREDENTIALS_FULL_URI=url)


ECS = """
import fcntl, http.server, json, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # up
fcntl.ioctl(s, 0x8916, struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton("169.254.170.2")))
class Ecs(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.path == "/v2/credentials/7" and self.headers["Authorization"] == "Basic x"
        body = json.dumps({"AccessKeyId": sys.argv[1], "SecretAccessKey": sys.argv[2]} if good else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("169.254.170.2", 80), Ecs)
print("ready", flush=True)
server.serve_forever()
"""


def test_container_relative_uri(shop, tmp_path):
    """The fixed address of ECS, in a network of its own; a proxy in the environment is passed by."""
    with subprocess.Popen(["unshare", "-n", sys.executable, "-c", ECS, AK, SK], stdout=subprocess.PIPE, text=True) as ecs:
        try:
            assert ecs.stdout.readline() == "ready\n"
            inside = ["nsenter", "-n", "-t", str(ecs.pid)]
            with subprocess.Popen([*inside, DEVKMS, "--state", str(tmp_path / "kms"), "--port", "0", "--create-key"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as kms:
                try:
                    endpoint = kms.stdout.readline().split()[-1]
                    key = next(line.split()[1] for line in kms.stdout if line.startswith("key "))
                    r = run(*inside, CTL, "test", "-o", f"kms.key={key}", "-o", f"kms.endpoint={endpoint}",
                            env={**shop.env, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/7",
                                 "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Basic x", "http_proxy": "http://127.0.0.1:1"})
                    assert r.code == 0 and "169.254.170.2/v2/credentials/7" in r.out, r
                finally:
                    kms.terminate()
        finally:
            ecs.terminate()


def test_instance(shop):
    on = {"AWS_EC2_METADATA_DISABLED": None}
    seen = shop.works(**on)
    assert asked(seen, "InstanceCredentials", "result") == ["ok"]
    assert all(k.startswith("ASIA") for k in signers(seen))
    shop.fails(CONFIG, "IMDS is switched off")
    shop.metadata(code="AssumeRoleUnauthorizedAccess")
    shop.fails(CONFIG, "AssumeRoleUnauthorizedAccess", **on)
    with socket.socket() as s:  # nobody answers
        s.bind(("127.0.0.1", 0))
        shop.fails(CONFIG, "no AWS credentials", "IMDS gives none", AWS_EC2_METADATA_DISABLED=None,
                   AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{s.getsockname()[1]}")


@pytest.mark.parametrize("profile, word", [
    ("sso", "SSO"), ("sso2", "SSO"), ("login", "login session"), ("mfa", "MFA"), ("behind-mfa", "MFA"), ("circle", "circle"),
    ("alone", "without keys"), ("both", "both source_profile and credential_source"), ("neither", "role_arn needs"),
    ("nowhere", "not in the shared files"), ("odd-source", "Somewhere"), ("long", "duration_seconds"), ("no-role", "need a role_arn"),
    ("missing", "'missing' is not in the shared files"), ("container", "there are none"),
])
def test_refused_profiles(shop, files, profile, word):
    """A profile that names a source gets it or an error, never another source; mount and test refuse alike."""
    env = {**files, "AWS_EC2_METADATA_DISABLED": None}  # there would be an instance role to fall through to
    _, seen = shop.fails(CONFIG, word, options=[f"kms.profile={profile}"], **env)
    assert not calls(seen, "InstanceCredentials")
    r = run(BYOKFS, "-c", shop.mount.ini, "-o", f"kms.profile={profile}", shop.mount.cipher, shop.mount.plain, env={**shop.env, **env})
    said(r, CONFIG, word)


@pytest.mark.sanitizer
def test_sts_trouble(shop, files):
    """What passes is no answer in time, what does not is a mistake; neither is a denial."""
    quick = ["kms.profile=role", "kms.request_timeout=400ms"]
    for code, status in (("Throttling", 400), ("ServiceUnavailable", 503)):
        shop.kms.fault(operations=["AssumeRole"], error_type=code, error_status=status)
        shop.fails(UNREACHABLE, code, options=quick, **files)
    shop.kms.fault(operations=["AssumeRole"], hang=True)
    shop.fails(UNREACHABLE, options=quick, **files)
    shop.kms.fault(operations=["AssumeRole"], error_type="RegionDisabledException", error_status=403)
    shop.fails(CONFIG, "RegionDisabledException", options=quick, **files)
    shop.kms.fault(operations=["AssumeRole"], raw_body="<html>Forbidden</html>", error_status=403)
    shop.fails(CONFIG, "HTTP status 403", options=quick, **files)
    shop.kms.fault(operations=["AssumeRole"], raw_body="<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", error_status=200)
    shop.fails(CONFIG, "XML", options=quick, **files)
    shop.kms.clear()
    shop.fails(CONFIG, "InvalidClientTokenId", options=["kms.profile=env"], AWS_ACCESS_KEY_ID="AKIAUNKNOWN000000000",
               AWS_SECRET_ACCESS_KEY="x", AWS_CONFIG_FILE=files["AWS_CONFIG_FILE"])


def test_sts_clock(shop, files):
    """STS's clock is believed once, for signing and for reading when the session ends."""
    shop.kms.fault(clock_skew_s=7200)
    seen = shop.works("kms.profile=role", **files)
    assert asked(seen, "AssumeRole", "result") == ["InvalidSignatureException", "ok"]
    shop.kms.fault(clock_skew_s=-7200)
    assert asked(shop.works("kms.profile=role", **files), "AssumeRole", "result") == ["InvalidSignatureException", "ok"]


class Relay(threading.Thread):
    """Passes connections on: as the TLS end of a server, or as a proxy that is asked to CONNECT."""

    def __init__(self, target=None, context=None):
        super().__init__(daemon=True)
        self.target, self.context, self.connections = target, context, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(near,), daemon=True).start()

    def serve(self, near):
        try:
            port = self.target
            if self.context:
                near = self.context.wrap_socket(near, server_side=True)
            else:
                port = int(near.recv(4096).split()[1].rsplit(b":", 1)[1])
                near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=self.pump, args=(far, near), daemon=True).start()
            self.pump(near, far)
        except OSError:  # a client that does not like the certificate
            near.close()

    @staticmethod
    def pump(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        b.close()


def certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.utcnow()
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    cert = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    pem = os.path.join(folder, "ca.pem")
    with open(pem, "wb") as f:
        f.write(cert.public_bytes(serialization.Encoding.PEM))
    with open(os.path.join(folder, "key.pem"), "wb") as f:
        f.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, os.path.join(folder, "key.pem"))
    return pem, context


def test_sts_over_tls_and_proxy(shop, files):
    """An own CA bundle and a proxy are STS's too; neither concerns this host's metadata services."""
    pem, context = certificate(shop.base)
    tls, proxy = Relay(shop.kms.port, context), Relay()
    env = {**files, "AWS_ENDPOINT_URL_STS": f"https://127.0.0.1:{tls.port}"}
    shop.fails(CONFIG, "certificate", options=["kms.profile=role"], **env)
    shop.works("kms.profile=role", f"kms.ca_bundle={pem}", **env)
    shop.works("kms.profile=role", AWS_CA_BUNDLE=pem, **env)
    via = f"kms.proxy=http://127.0.0.1:{proxy.port}"
    shop.works("kms.profile=role", f"kms.ca_bundle={pem}", via, **env)
    by_keys = proxy.connections
    assert by_keys >= 2
    shop.works("kms.profile=instance", f"kms.ca_bundle={pem}", via, **{**env, "AWS_EC2_METADATA_DISABLED": None})
    assert proxy.connections == 2 * by_keys  # STS as before, and nothing of IMDS
    shop.kms.fault(clock_skew_s=3600)
    shop.works("kms.profile=role", f"kms.ca_bundle={pem}", **env)
    tls.listener.close()
    proxy.listener.close()


# ---- the same files, read by botocore

BOTOCORE = """
import json, sys
import botocore.session
create = botocore.session.Session.create_client
def local(self, name, *args, **kwargs):
    if name == "sts":
        kwargs["endpoint_url"] = sys.argv[2]
    return create(self, name, *args, **kwargs)
botocore.session.Session.create_client = local
session = botocore.session.Session(profile=sys.argv[1])
print(session.get_credentials().get_frozen_credentials().access_key)
"""


@pytest.mark.parametrize("profile", ["keys", "role", "chained", "own", "external", "env", "program", "container"])
def test_as_botocore(shop, profile):
    got = session(shop.kms)
    shop.role(external_id="customer-42") if profile == "external" else None
    answer = shop.file("answer.json", printed(got, Expiration=got["Expiration"].isoformat()))
    text = PROFILES + f"[profile program]\ncredential_process = \"{program(shop, 'prints it', 'cat ' + answer)}\" 'x y'\n"
    env = {"AWS_CONFIG_FILE": shop.file("all", text), "AWS_SHARED_CREDENTIALS_FILE": shop.file("credentials", f"[keys]\n{KEYS}"),
           "AWS_ACCESS_KEY_ID": AK, "AWS_SECRET_ACCESS_KEY": SK, "AWS_DEFAULT_REGION": "us-east-1",
           "AWS_CONTAINER_CREDENTIALS_FULL_URI": shop.kms.endpoint + "/v1/credentials"}
    ours = shop.works(f"kms.profile={profile}", **env)
    begin = shop.seen()
    r = run(sys.executable, "-c", BOTOCORE, profile, shop.kms.endpoint, env={**shop.env, **env})
    assert r.code == 0, r
    theirs = shop.since(begin)

    asked_by_us = asked(ours, "AssumeRole", "key", "access_key")
    asked_by_them = [(s["key"], s["access_key"]) for s in calls(theirs, "AssumeRole")]

    def shape(seen):
        """Sessions have names of their own."""
        return [(key, signer if signer == AK else "a session") for key, signer in seen]
    assert shape(asked_by_us) == shape(asked_by_them)
    if not calls(theirs, "AssumeRole"):
        assert signers(ours) == {r.out.strip()}


# ---- at the mount

def running(pid):
    """Not ended: what has ended may still wait for us, who adopted it."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


class RoleMount(Mount):
    """Credentials of a role; sessions as long as the server says."""

    more = {}

    def environment(self):
        env = {**environment(), "AWS_ENDPOINT_URL_STS": self.kms.endpoint, **self.more}
        return {k: v for k, v in env.items() if v is not None}


@pytest.fixture
def role_mount(tmp_path, devkms):
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE, "session_seconds": 900})
    m = RoleMount(tmp_path, devkms)
    m.options = [f"kms.role_arn={ROLE}"]
    yield m
    m.close()


def assumed(kms):
    return kms.stats()["operations"].get("AssumeRole", {}).get("ok", 0)


def test_rotation_under_a_mount(role_mount, devkms):
    """Sessions of six seconds, over three of them: renewed ahead, and no reader notices."""
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE, "session_seconds": 6})
    role_mount.mount()
    put(role_mount.path("f"), b"data")
    begin = assumed(devkms)
    failures = []

    def rotated():
        failures.extend(e for e in [err(get, role_mount.path("f"))] if e)
        return assumed(devkms) >= begin + 2
    until(rotated, 60, step=0.05)
    assert not failures
    errors = devkms.stats()["operations"]["Decrypt"]["errors"]
    assert "ExpiredTokenException" not in errors, errors
    keys = [s["access_key"] for s in devkms.stats()["requests"] if s["operation"] == "Decrypt"]
    assert len(set(keys)) >= 3


def test_trust_removed(role_mount, devkms):
    """Removed trust is a denial: at the renewal, which comes before the session ends; opens again when it is back."""
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE, "session_seconds": 4})
    role_mount.mount()
    put(role_mount.path("f"), b"data")
    devkms.http("DELETE", "/_devkms/role", {"role_arn": ROLE})
    until(lambda: err(get, role_mount.path("f")), 12)
    status = role_mount.status()
    assert "AccessDenied" in json.dumps(status), status
    assert not [s for s in devkms.stats()["operations"]["Decrypt"]["errors"]], "the KMS itself never refused"
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE, "session_seconds": 900})
    until(lambda: not err(get, role_mount.path("f")), 30)
    assert get(role_mount.path("f")) == b"data"


@pytest.mark.sanitizer
def test_trust_removed_and_sighup(role_mount, devkms):
    """With a session of a quarter of an hour the trust is asked about when the administrator says so."""
    role_mount.mount()
    put(role_mount.path("f"), b"data")
    begin = assumed(devkms)
    role_mount.process.send_signal(signal.SIGHUP)
    until(lambda: assumed(devkms) == begin + 1, 10)  # fresh ones for the next call
    assert get(role_mount.path("f")) == b"data"
    devkms.http("DELETE", "/_devkms/role", {"role_arn": ROLE})
    role_mount.process.send_signal(signal.SIGHUP)
    until(lambda: err(get, role_mount.path("f")), 5)
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE})
    until(lambda: not err(get, role_mount.path("f")), 30)


def test_trust_missing_at_the_mount(role_mount, devkms):
    """Refused as a denial; with locked_start it waits for the trust."""
    devkms.http("DELETE", "/_devkms/role", {"role_arn": ROLE})
    r = run(BYOKFS, "-c", role_mount.ini, "-o", role_mount.options[0], role_mount.cipher, role_mount.plain,
            env={"AWS_ENDPOINT_URL_STS": devkms.endpoint})
    said(r, DENIED, "AccessDenied", ROLE)
    role_mount.mount("locked_start", check=False)
    wait_until(lambda: role_mount.mounted() or role_mount.process.poll() is not None)
    assert role_mount.state() == "locked"
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE})
    until(lambda: not err(put, role_mount.path("f"), b"data"), 30)


def test_sts_down_under_a_mount(role_mount, devkms):
    """Credentials that still serve go on serving while STS throttles, also after a SIGHUP; no longer than they last."""
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE, "session_seconds": 5})
    role_mount.mount()
    put(role_mount.path("f"), b"data")
    devkms.fault(operations=["AssumeRole"], error_type="Throttling", error_status=400)
    refused = devkms.stats()["operations"]["AssumeRole"]["errors"].get("Throttling", 0)
    role_mount.process.send_signal(signal.SIGHUP)

    def throttled():
        return devkms.stats()["operations"]["AssumeRole"]["errors"].get("Throttling", 0)
    until(lambda: throttled() > refused, 10)
    assert get(role_mount.path("f")) == b"data"
    until(lambda: err(get, role_mount.path("f")), 30)  # session and lease ended
    devkms.clear()
    until(lambda: not err(get, role_mount.path("f")), 30)


def test_files_under_a_mount(tmp_path, devkms, make_mount):
    """Keys of a file are changed while mounted: no remount, no EIO."""
    m = make_mount("m", devkms)
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[default]\n{KEYS}")
    more = {**NOBODY, "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
    m.environment = lambda: {k: v for k, v in {**environment(), **more}.items() if v is not None}
    m.mount()
    put(m.path("f"), b"data")
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE})
    got = session(devkms)
    fresh = tmp_path / "fresh"
    fresh.write_text(f"[default]\naws_access_key_id = {got['AccessKeyId']}\naws_secret_access_key = {got['SecretAccessKey']}\n"
                     f"aws_session_token = {got['SessionToken']}\n")
    fresh.rename(credentials)
    until(lambda: any(s.get("access_key") == got["AccessKeyId"] and s["result"] == "ok" for s in devkms.stats()["requests"]), 20)
    assert get(m.path("f")) == b"data"


@pytest.mark.sanitizer
def test_program_under_a_mount(tmp_path, devkms, make_mount):
    """The helper: nothing of the daemon's is open in it, the program runs again when needed, and both end with the daemon."""
    m = make_mount("m", devkms)
    devkms.http("POST", "/_devkms/role", {"role_arn": ROLE})
    log, answer = tmp_path / "runs", tmp_path / "answer"
    answer.write_text(printed(session(devkms)))
    script = tmp_path / "program"
    script.write_text(f"#!/bin/sh\necho run >>{log}\ncat {answer}\n")
    script.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {script}\n")
    more = {**NOBODY, "AWS_CONFIG_FILE": str(config)}
    m.environment = lambda: {k: v for k, v in {**environment(), **more}.items() if v is not None}
    m.mount()
    put(m.path("f"), b"data")
    names = {open(f"/proc/{pid}/comm").read().strip(): pid for pid in m.watchdogs()}
    helper = names["byokfs-credproc"]
    opened = {int(fd): os.readlink(f"/proc/{helper}/fd/{fd}") for fd in os.listdir(f"/proc/{helper}/fd")}
    assert set(opened) == {0, 1, 2, 3} and all(opened[i] == "/dev/null" for i in range(3)), opened
    assert opened[3].startswith("socket:")
    assert log.read_text().count("run") == 1
    m.process.send_signal(signal.SIGHUP)
    until(lambda: log.read_text().count("run") == 2, 10)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600  # not the daemon's umask of 0
    assert get(m.path("f")) == b"data"
    m.kill()
    assert not os.path.exists(f"/proc/{helper}")
    m.clear_dead()
    with background(m, env=more) as (r, pid):  # it keeps nobody waiting, and ends in order
        assert r.code == 0, r
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            children = f.read().split()
        assert len(children) >= 1
    assert ended(pid) is not None and not [c for c in children if running(c)]


# ---- files below the mount point

def test_files_below_the_mount_point(shop, files):
    """What the daemon reads must not be reached through its own mount, be it by a link."""
    m = shop.mount
    inner = os.path.join(m.plain, "credentials")
    link = os.path.join(shop.base, "link")
    os.symlink(inner, link)
    through = os.path.join(shop.base, "through")
    os.symlink(os.path.join(m.plain, "x"), through)
    cases = [("AWS_SHARED_CREDENTIALS_FILE", inner), ("AWS_CONFIG_FILE", link), ("AWS_CA_BUNDLE", os.path.join(through, "ca.pem")),
             ("AWS_WEB_IDENTITY_TOKEN_FILE", m.plain + "/../plain/token"), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", inner)]
    for name, path in cases:
        r = run(BYOKFS, "-c", m.ini, m.cipher, m.plain, env={**shop.env, name: path})
        said(r, CONFIG, path, "below the mount point")
    web = shop.file("below", f"[profile a]\nrole_arn = {ROLE}\nsource_profile = b\n[profile b]\nrole_arn = {ROLE}\n"
                             f"web_identity_token_file = {m.plain}/token\n[profile c]\ncredential_process = {m.plain}/bin/x y\n")
    for profile, word in (("a", m.plain + "/token"), ("c", m.plain + "/bin/x")):
        r = run(BYOKFS, "-c", m.ini, "-o", f"kms.profile={profile}", m.cipher, m.plain, env={**shop.env, "AWS_CONFIG_FILE": web})
        said(r, CONFIG, word, "below the mount point")
    for option in (f"kms.ca_bundle={inner}", f"audit.file={inner}"):
        said(run(BYOKFS, "-c", m.ini, "-o", option, m.cipher, m.plain, env=shop.env), CONFIG, "below the mount point")
