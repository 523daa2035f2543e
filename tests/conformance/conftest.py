"""Starts byokfs-devkms on a free port for tests, and speaks to it in ways no SDK would."""

import base64
import datetime
import http.client
import json
import os
import pathlib
import signal
import subprocess
import threading
from unittest import mock

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("BYOKFS_DEVKMS", str(ROOT / "build" / "byokfs-devkms"))
ACCESS_KEY = "AKIADEVKMS0000000000"
SECRET = "devkms-secret-not-for-production"
ACCOUNT = "111122223333"
REGION = "us-east-1"


class Answer:
    """Status, headers and body of one HTTP answer."""

    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def type(self):
        return self.json.get("__type")


class Devkms:
    """One byokfs-devkms process with its state directory."""

    def __init__(self, state, *options):
        self.state = pathlib.Path(state)
        self.options = options
        self.process = None
        self.port = None
        self.lines = []

    def start(self):
        self.process = subprocess.Popen(
            [PROGRAM, "--state", str(self.state), "--port", "0", *self.options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("listening on http://"):
            _, errors = self.process.communicate(timeout=10)
            raise RuntimeError(f"byokfs-devkms did not start: {line}{errors}")
        self.port = int(line.rsplit(":", 1)[1])
        self._drain(self.process.stdout, self.lines)
        self._drain(self.process.stderr, [])
        return self

    @staticmethod
    def _drain(stream, lines):
        threading.Thread(target=lambda: lines.extend(stream), daemon=True).start()

    def stop(self, sig=signal.SIGTERM):
        """The exit status; what still hangs does not delay it."""
        if self.process is None:
            return None
        self.process.send_signal(sig)
        status = self.process.wait(timeout=30)
        self.process = None
        return status

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, service="kms", region=REGION, access_key=ACCESS_KEY, secret=SECRET, token=None, **config):
        """A boto3 client that neither retries nor looks for other credentials."""
        config.setdefault("retries", {"total_max_attempts": 1})
        return boto3.session.Session().client(
            service, region_name=region, endpoint_url=self.url, aws_access_key_id=access_key,
            aws_secret_access_key=secret, aws_session_token=token, config=Config(**config))

    def environment(self):
        """For subprocesses only; nothing of the caller's AWS_* goes through."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        env.update(AWS_ACCESS_KEY_ID=ACCESS_KEY, AWS_SECRET_ACCESS_KEY=SECRET, AWS_DEFAULT_REGION=REGION, AWS_PAGER="",
                   AWS_CONFIG_FILE="/nonexistent", AWS_SHARED_CREDENTIALS_FILE="/nonexistent", AWS_ENDPOINT_URL=self.url)
        return env

    def http(self, method, path, body=None, headers=None, timeout=60):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def admin(self, method, path, body=None):
        answer = self.http(method, "/_devkms/" + path, None if body is None else json.dumps(body))
        assert answer.status == 200, answer.body
        return answer.json

    def fault(self, **members):
        return self.admin("POST", "fault", members)

    def requests(self):
        return self.admin("GET", "stats?last=20000")["requests"]

    def sign(self, operation, body, service="kms", region=REGION, access_key=ACCESS_KEY, secret=SECRET, token=None, ago=0,
             extra=None):
        """Body and headers as botocore's signer signs them, `ago` seconds in the past."""
        if not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService." + operation}
        headers.update(extra or {})
        request = AWSRequest("POST", self.url + "/", headers=headers, data=body)
        when = datetime.datetime.utcnow() - datetime.timedelta(seconds=ago)
        with mock.patch("botocore.auth.datetime") as clock:
            clock.datetime.utcnow.return_value = when
            botocore.auth.SigV4Auth(Credentials(access_key, secret, token), service, region).add_auth(request)
        return body, dict(request.headers)

    def raw(self, operation, body, timeout=60, **how):
        """One signed call whose answer nobody interprets; for what an old SDK does not know."""
        body, headers = self.sign(operation, body, **how)
        return self.http("POST", "/", body, headers, timeout)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    kms = Devkms(tmp_path_factory.mktemp("devkms") / "state").start()
    yield kms
    kms.stop()


@pytest.fixture
def kms(server):
    """The server with no faults, and a boto3 client."""
    server.admin("DELETE", "fault")
    yield server.client()
    server.admin("DELETE", "fault")


@pytest.fixture
def key(kms):
    return kms.create_key(Description="test")["KeyMetadata"]["Arn"]


@pytest.fixture
def fresh(tmp_path):
    """Makes servers that a test may kill; ends those it left."""
    started = []

    def make(*options, state=None):
        started.append(Devkms(state or tmp_path / "state", *options).start())
        return started[-1]

    yield make
    for one in started:
        one.stop()


def b64(data):
    return base64.b64encode(data).decode()


def code_of(error):
    return error.value.response["Error"]["Code"]


def message_of(error):
    return error.value.response["Error"]["Message"]


def role_arn(name):
    return f"arn:aws:iam::{ACCOUNT}:role/{name}"
