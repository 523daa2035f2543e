"""Answers of the KMS that are refusals, and answers that are not to be believed."""
import errno
import os
import time

import pytest

from conftest import wait_until
from faults import PROMISE, SLACK, err, get, say, until
from test_outage import DATA, LEASE, Files


@pytest.fixture
def files(mount):
    f = Files(mount, cold=3)
    yield f
    os.close(f.fd)


DENIALS = {
    "AccessDeniedException": "User is not authorized to perform: kms:Decrypt on this resource",
    "NotFoundException": "Key 'arn:aws:kms:us-east-1:111122223333:key/x' does not exist",
    "DisabledException": "arn:aws:kms:us-east-1:111122223333:key/x is disabled.",
    "KMSInvalidStateException": "arn:aws:kms:us-east-1:111122223333:key/x is pending deletion.",
}


def denied_at_once(files, what):
    """EIO well before the lease would have ended by itself."""
    took = until(lambda: files.read() == errno.EIO, PROMISE + SLACK)
    say(f"{what} -> EIO: {took:.2f} s")
    mount = files.mount
    wait_until(lambda: mount.state() == "locked")
    s = mount.status()
    assert "lease ended" not in s["reason"] and s["kms"]["denied"] >= 1, s
    assert err(get, mount.path("cold 1")) == err(os.listdir, mount.plain) == errno.EIO
    return s["reason"]


@pytest.mark.parametrize("error", DENIALS)
def test_denial_locks_at_once(files, devkms, error):
    devkms.fault(error_type=error, error_message=DENIALS[error])
    assert error in denied_at_once(files, error)
    devkms.clear()
    files.recovered()


def test_denial_named_in_the_header(files, devkms):
    devkms.fault(error_type="AccessDeniedException", error_message="no", error_in_header=True)
    assert "AccessDenied" in denied_at_once(files, "AccessDenied in the header")
    devkms.clear()
    files.recovered()


@pytest.mark.parametrize("state", ["PendingDeletion", "PendingImport", "Unavailable"])
def test_key_states_that_deny(files, devkms, state):
    devkms.http("POST", "/_devkms/key", {"key": devkms.key, "state": state})
    assert "KMSInvalidStateException" in denied_at_once(files, state)
    devkms.http("POST", "/_devkms/key", {"key": devkms.key, "state": "Enabled"})
    files.recovered()


def test_key_scheduled_for_deletion_and_saved(files, devkms):
    devkms.client.schedule_key_deletion(KeyId=devkms.key, PendingWindowInDays=7)
    denied_at_once(files, "ScheduleKeyDeletion")
    devkms.client.cancel_key_deletion(KeyId=devkms.key)
    time.sleep(1.5)
    assert files.mount.state() == "locked"  # such a key is disabled until somebody enables it
    devkms.enable()
    files.recovered()


def test_a_key_state_that_passes(files, devkms):
    """Updating is no denial: shorter than the lease, nobody notices."""
    devkms.http("POST", "/_devkms/key", {"key": devkms.key, "state": "Updating"})
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert files.read() == 0
        time.sleep(0.02)
    devkms.http("POST", "/_devkms/key", {"key": devkms.key, "state": "Enabled"})
    end = time.monotonic() + LEASE
    while time.monotonic() < end:
        assert files.read() == 0
        time.sleep(0.02)
    assert files.locks() == 0 and files.mount.status()["kms"]["denied"] == 0


UNUSABLE = {
    "wrong_key_id": dict(wrong_key_id=True),
    "bad_json": dict(bad_json=True),
    "huge": dict(huge=True),
    "truncated body": dict(truncate_body=True),
    "html 403": dict(raw_body="<html><body>Forbidden</body></html>", error_status=403),
    "html 503": dict(raw_body="<html><body>Try later</body></html>", error_status=503),
    "credentials": dict(error_type="UnrecognizedClientException", error_status=403),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_unusable_answer(files, devkms, what):
    """No denial: leased files live to the end of the lease. No success either: nothing is opened, nothing renewed."""
    mount = files.mount
    begin = time.monotonic()
    devkms.fault(**UNUSABLE[what])
    assert files.read() == 0
    assert err(get, mount.path("cold 0")) == errno.EIO
    cold = time.monotonic() - begin
    last = 0.0
    while (code := files.read()) == 0:
        last = time.monotonic() - begin
        assert last < LEASE + SLACK
        time.sleep(0.01)
    assert code == errno.EIO and (last > 1.0 or cold > 1.0), (code, last, cold)
    say(f"{what}: leased file EIO after {time.monotonic() - begin:.2f} s, cold open after {cold:.2f} s")
    wait_until(lambda: mount.state() == "locked")
    assert mount.status()["kms"]["errors"] > 0 and mount.status()["kms"]["denied"] == 0
    devkms.clear()
    files.recovered()
    assert mount.process.poll() is None


def test_wrong_plaintext(files, devkms):
    """A key that is not the one committed to opens nothing, but denies nothing either."""
    mount = files.mount
    devkms.fault(wrong_plaintext=True)
    assert err(get, mount.path("cold 0")) == errno.EIO
    assert files.read() == 0
    assert "commitment" in mount.read_log()
    time.sleep(LEASE)
    assert err(get, mount.path("cold 0")) == errno.EIO
    devkms.clear()
    files.recovered()


@pytest.mark.parametrize("size", [16, 31, 33, 64])
def test_plaintext_of_a_wrong_size(files, devkms, size):
    devkms.fault(plaintext_size=size)
    assert err(get, files.mount.path("cold 0")) == errno.EIO
    assert files.read() == 0
    devkms.clear()
    files.recovered()


def test_generate_denied_only(files, devkms):
    """May decrypt, may not make keys: what exists stays readable, what is new fails sooner or later, nothing locks for good."""
    mount = files.mount
    devkms.fault(operations=["GenerateDataKey"], error_type="AccessDeniedException", error_message="no")
    codes = [err(os.mknod, mount.path(f"new {i}"), 0o100600) for i in range(200)]
    assert set(codes) <= {0, errno.EIO} and codes[-1] == errno.EIO
    assert files.read() == 0 and get(mount.path("cold 0")) == DATA
    devkms.clear()
    wait_until(lambda: err(os.mknod, mount.path("at last"), 0o100600) == 0)
    for i, code in enumerate(codes):
        assert os.path.exists(mount.path(f"new {i}")) == (code == 0)


@pytest.mark.sanitizer
def test_every_fault_in_a_row(files, devkms):
    """The daemon takes whatever comes, one fault after the other, and is itself again afterwards."""
    mount = files.mount
    for fault in [*UNUSABLE.values(), dict(wrong_plaintext=True), dict(plaintext_size=5), dict(no_request_id=True),
                  dict(drop_rate=1.0), dict(error_type="", error_status=500), dict(raw_body="", error_status=200)]:
        devkms.fault(**fault)
        assert err(get, mount.path("cold 0")) in (0, errno.EIO)
        assert files.read() in (0, errno.EIO)
    devkms.clear()
    files.recovered()
    assert mount.process.poll() is None
