"""byokfs's signer against botocore's: requests like those sent to KMS, and stranger ones."""

import datetime
import json
import os
import pathlib
import random
import string
import subprocess
from unittest import mock
from urllib.parse import quote

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIGNER = pathlib.Path(os.environ.get("BUILD", ROOT / "build")) / "tests" / "tools" / "sigv4_sign"
OPERATIONS = ["GenerateDataKey", "Decrypt", "Encrypt", "ReEncrypt", "DescribeKey"]
REGIONS = ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "ap-southeast-3"]


def text(rng, alphabet, least, most):
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(least, most)))


def host(rng):
    return rng.choice([
        "kms.eu-west-1.amazonaws.com",
        "vpce-0123456789abcdef0-abcdefgh.kms.us-east-1.vpce.amazonaws.com",
        f"127.0.0.1:{rng.randint(1024, 65535)}",
        f"[::1]:{rng.randint(1024, 65535)}",
    ])


def kms_request(rng):
    """What kms_aws sends, with everything that may vary varied."""
    body = {"KeyId": text(rng, string.ascii_letters + ":/-", 1, 200),
            "EncryptionContext": {text(rng, "abcdef-", 1, 20): text(rng, string.printable[:95] + "äé", 0, 60)
                                  for _ in range(rng.randint(0, 5))}}
    request = {
        "method": "POST", "path": "/", "query": "",
        "headers": {"Host": host(rng), "Content-Type": "application/x-amz-json-1.1",
                    "X-Amz-Target": "TrentService." + rng.choice(OPERATIONS)},
        "body": json.dumps(body, ensure_ascii=rng.random() < 0.5),
        "region": rng.choice(REGIONS), "service": "kms", "time": rng.randint(0, 4102444800),
        "access_key": "AKIA" + text(rng, string.ascii_uppercase + string.digits, 12, 28),
        "secret_key": text(rng, string.ascii_letters + string.digits + "/+", 20, 64),
    }
    if rng.random() < 0.5:
        request["token"] = text(rng, string.ascii_letters + string.digits + "/+=", 16, 1500)
    return request


def odd_request(rng):
    """Paths, queries, blanks and duplicates that KMS never sees."""
    request = kms_request(rng)
    alphabet = string.ascii_letters + string.digits + "-._~"
    segments = [rng.choice(["", ".", "..", quote(text(rng, alphabet + " ä%", 1, 8), safe="")])
                for _ in range(rng.randint(0, 6))]
    request["path"] = "/" + "/".join(segments)
    request["query"] = "&".join(
        quote(text(rng, alphabet + " /+ä", 1, 5), safe="-_.~") + "=" +
        quote(text(rng, alphabet + " =&", 0, 5), safe="-_.~")
        for _ in range(rng.randint(0, 5)))
    request["method"] = rng.choice(["GET", "POST", "PUT"])
    request["headers"][text(rng, "abcXYZ-", 3, 12)] = text(rng, "ab  \t", 0, 3) + text(rng, "cd  ", 1, 9) + "e"
    return request


def by_botocore(request):
    """(x-amz-date, Authorization) as botocore makes them at that time."""
    url = f"https://{request['headers']['Host']}{request['path']}"
    if request["query"]:
        url += "?" + request["query"]
    aws = AWSRequest(method=request["method"], url=url, data=request["body"].encode(), headers=request["headers"])
    credentials = Credentials(request["access_key"], request["secret_key"], request.get("token"))
    now = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=request["time"])
    with mock.patch.object(botocore.auth, "datetime", wraps=datetime) as clock:
        clock.datetime = mock.Mock(wraps=datetime.datetime)
        clock.datetime.utcnow.return_value = now
        botocore.auth.SigV4Auth(credentials, request["service"], request["region"]).add_auth(aws)
    return aws.headers["X-Amz-Date"], aws.headers["Authorization"]


def by_byokfs(requests):
    lines = "".join(json.dumps(r) + "\n" for r in requests)
    done = subprocess.run([SIGNER], input=lines.encode(), stdout=subprocess.PIPE, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("make", [kms_request, odd_request])
def test_same_signature_as_botocore(make):
    rng = random.Random(20150830)
    requests = [make(rng) for _ in range(200)]
    answers = by_byokfs(requests)
    assert len(answers) == len(requests)
    for request, answer in zip(requests, answers):
        assert (answer.get("date"), answer.get("authorization")) == by_botocore(request), request


def test_refuses_what_cannot_be_signed():
    rng = random.Random(1)
    broken = [kms_request(rng) for _ in range(4)]
    broken[0]["headers"].pop("Host")
    broken[1]["headers"]["X-Bad"] = "a\r\nb"
    broken[2]["region"] = "a/b"
    broken[3]["path"] = "no-slash"
    assert all("error" in answer for answer in by_byokfs(broken))
