"""Every error type a KMS may answer, and what comes of it at the mount: lock at once (D), lock at the end of the lease (T and C), or
this file only (X). The table is kms_aws_error.c's, told again from the documentation. Several stores at a time, because each
answer needs a lease to end."""
import concurrent.futures
import errno
import itertools
import os
import re
import time

import pytest

from conftest import Devkms, Mount, wait_until
from faults import SLACK, err, get, put, until

PROBE, LEASE = 0.3, 1.5
LANES = 6
DATA = b"what the customer's key protects\n" * 400

ARN = "arn:aws:kms:us-east-1:111122223333:key/x"
# (type, message, HTTP status): the words are AWS's, where the words decide.
AT_ONCE = [
    ("DisabledException", f"{ARN} is disabled.", 400),
    ("DisabledException", f"{ARN} is pending deletion.", 409),
    ("KMSInvalidStateException", f"{ARN} is pending deletion.", 400),
    ("KMSInvalidStateException", f"{ARN} is pending replica deletion.", 409),
    ("KMSInvalidStateException", f"{ARN} is pending import.", 400),
    ("KMSInvalidStateException", f"{ARN} is unavailable.", 400),
    ("AccessDeniedException", "User: x is not authorized to perform: kms:Decrypt", 400),
    ("AccessDeniedException", "", 403),
    ("com.amazonaws.kms#DisabledException", "", 400),
    ("NotFoundException", f"Key '{ARN}' does not exist", 400),
    ("NotFoundException", "Invalid arn us-east-1", 404),
]
AT_LEASE_END = [
    # passing trouble
    ("KMSInvalidStateException", f"{ARN} is creating.", 400),
    ("KMSInvalidStateException", f"{ARN} is updating.", 400),
    ("KMSInvalidStateException", "The external key store proxy did not respond in time.", 400),
    ("KMSInvalidStateException", "KMS cannot communicate with the external key store proxy.", 400),
    ("KeyUnavailableException", "", 500),
    ("DependencyTimeoutException", "", 503),
    ("KMSInternalException", "", 500),
    ("InternalFailure", "", 500),
    ("ServiceUnavailableException", "", 503),
    ("SomethingNewException", "", 500),
    ("ThrottlingException", "Rate exceeded", 400),
    ("TooManyRequestsException", "", 429),
    ("LimitExceededException", "", 400),
    # ours, or the administrator's
    ("InvalidGrantTokenException", "", 400),
    ("InvalidKeyUsageException", "", 400),
    ("UnsupportedOperationException", "", 400),
    ("InvalidArnException", "", 400),
    ("ValidationException", "", 400),
    ("SerializationException", "", 400),
    ("UnknownOperationException", "", 400),
    ("SomethingNewException", "", 400),
    ("ExpiredTokenException", "", 400),
    ("ExpiredTokenException", "", 403),
    ("UnrecognizedClientException", "", 400),
    ("InvalidClientTokenId", "", 403),
    ("MissingAuthenticationToken", "", 403),
    ("InvalidSignatureException", "", 400),
    ("SignatureDoesNotMatch", "", 403),
    ("IncompleteSignature", "", 400),
    ("RequestExpired", "", 400),
    ("RequestTimeTooSkewed", "", 403),
    ("DryRunOperationException", "", 412),
]
THIS_FILE = [
    ("InvalidCiphertextException", "", 400),
    ("IncorrectKeyException", "", 400),
    ("com.amazonaws.kms#InvalidCiphertextException:http://a.b/", "", 400),
]


class Lane:
    """A store of its own with a KMS of its own."""

    def __init__(self, base):
        self.kms = Devkms(base / "devkms")
        self.mount = Mount(base / "store", self.kms, ini=f"""[kms]
key = {self.kms.key}
endpoint = {self.kms.endpoint}
request_timeout = 500ms
[cache]
probe = {int(PROBE * 1000)}ms
lease = {int(LEASE * 1000)}ms
""").mount()
        put(self.mount.path("hot"), DATA)
        for i in range(len(THIS_FILE)):
            put(self.mount.path(f"cold {i}"), DATA)
        self.mount.remount()
        self.fd = os.open(self.mount.path("hot"), os.O_RDONLY)
        self.cold = itertools.count()

    def read(self):
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            assert os.pread(self.fd, 4096, 4096) == DATA[4096:8192]
        except OSError as e:
            return e.errno
        return 0

    def fault(self, error, **more):
        kind, message, status = error
        self.kms.fault(error_type=kind, error_message=message, error_status=status, **more)

    def healed(self):
        self.kms.clear()
        until(lambda: self.read() == 0, 20)
        wait_until(lambda: self.mount.state() == "open")
        assert get(self.mount.path("hot")) == DATA
        return self.mount.status()["kms"]

    def locked_by(self):
        until(lambda: self.read() == errno.EIO, LEASE + 2 + SLACK)
        return wait_until(lambda: (s := self.mount.status())["state"] == "locked" and s)

    def at_once(self, error):
        before = self.mount.status()["kms"]["denied"]
        self.fault(error)
        s = self.locked_by()
        assert "lease ended" not in s["reason"] and s["kms"]["denied"] > before, (error, s["reason"])
        assert bare(error) in s["reason"], (error, s["reason"])
        self.healed()

    def at_lease_end(self, error):
        for _ in range(3):
            before = self.mount.status()["kms"]
            self.fault(error)
            s = self.locked_by()
            if "Timeout" not in s["reason"]:
                break
            self.healed()  # a busy machine: the KMS did not say it in time
        assert "lease ended" in s["reason"] and bare(error) in s["reason"], (error, s["reason"])
        assert s["kms"]["errors"] > before["errors"] and s["kms"]["denied"] == before["denied"], error
        self.healed()

    def this_file(self, error):
        name = self.mount.path(f"cold {next(self.cold)}")
        before = self.mount.status()
        self.fault(error, use="file")
        assert err(get, name) == errno.EIO, error
        end = time.monotonic() + LEASE + PROBE
        while time.monotonic() < end:
            assert self.read() == 0, error
            time.sleep(0.05)
        s = self.mount.status()
        assert s["state"] == "open" and s["counters"]["locks"] == before["counters"]["locks"], error
        assert s["kms"]["denied"] == before["kms"]["denied"], error
        self.healed()
        assert get(name) == DATA

    def close(self):
        os.close(self.fd)
        self.mount.close()
        self.kms.stop()


def bare(error):
    return error[0].split(":")[0].split("#")[-1]


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    made = []
    try:
        for i in range(LANES):
            made.append(Lane(tmp_path_factory.mktemp(f"lane{i}")))
        yield made
    finally:
        for lane in made:
            lane.close()


def in_lanes(lanes, errors, check):
    """Each lane takes every LANES-th error; all failures are told, not the first only."""
    def run(i):
        failures = []
        for error in errors[i::LANES]:
            try:
                check(lanes[i], error)
            except AssertionError as e:
                failures.append(f"{error}: {e}")
                lanes[i].kms.clear()
                lanes[i].healed()
        return failures
    with concurrent.futures.ThreadPoolExecutor(LANES) as pool:
        failures = sum(pool.map(run, range(LANES)), [])
    assert not failures, "\n".join(failures)


def test_denials_lock_at_once(lanes):
    in_lanes(lanes, AT_ONCE, Lane.at_once)


def test_everything_else_locks_when_the_lease_ends(lanes):
    in_lanes(lanes, AT_LEASE_END, Lane.at_lease_end)


def test_a_bad_blob_is_its_files_trouble(lanes):
    in_lanes(lanes, THIS_FILE, Lane.this_file)


def test_the_table_is_complete():
    """Every name in the program's table is tried above, or is another spelling of one that is."""
    spellings = {"InternalError", "InternalServerError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException",
                 "Throttling", "ThrottledException", "RequestThrottled", "RequestThrottledException", "RequestLimitExceeded",
                 "BandwidthLimitExceeded", "ProvisionedThroughputExceededException", "PriorRequestNotComplete", "SlowDown",
                 "ExpiredToken", "MissingAuthenticationTokenException", "IncompleteSignatureException", "AuthFailure",
                 "RequestInTheFuture"}
    source = os.path.join(os.path.dirname(__file__), "..", "..", "src", "kms_aws_error.c")
    with open(source) as f:
        names = set(re.findall(r'^\t\{ "(\w+)", KMS_', f.read(), re.M))
    tried = {bare(e) for e in AT_ONCE + AT_LEASE_END + THIS_FILE}
    assert len(names) > 40 and names - tried == spellings, names - tried ^ spellings
