"""A KMS that does not answer, or not usefully: leased files go on until the lease ends, nobody hangs, and it all comes back by itself."""
import errno
import os
import signal
import threading
import time

import pytest

from conftest import wait_until
from faults import SLACK, Child, err, get, pattern, put, say, until

LEASE = 3.0
REQUEST = 2.0  # [kms] request_timeout of the harness
DATA = pattern(11, 256 * 1024)


class Files:
    """One file whose key is leased, and some that nobody opened since the mount."""

    def __init__(self, mount, cold=8):
        self.mount = mount
        put(mount.path("hot"), DATA)
        for i in range(cold):
            put(mount.path(f"cold {i}"), DATA)
        mount.remount()
        self.fd = os.open(mount.path("hot"), os.O_RDWR)
        assert os.pread(self.fd, len(DATA), 0) == DATA

    def read(self):
        """A read that reaches the daemon: 0 or its errno; wrong bytes are a failure at once."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            data = os.pread(self.fd, 8192, 4096)
        except OSError as e:
            return e.errno
        assert data == DATA[4096:4096 + 8192]
        return 0

    def locks(self):
        return self.mount.status()["counters"]["locks"]

    def recovered(self):
        took = until(lambda: self.read() == 0, 20)
        wait_until(lambda: self.mount.state() == "open")
        for name in os.listdir(self.mount.plain):
            assert get(self.mount.path(name)) == DATA, name
        os.pwrite(self.fd, DATA[:100], 0)
        os.fsync(self.fd)
        assert self.mount.status()["counters"]["lost_files"] == 0
        return took


@pytest.fixture
def files(mount):
    f = Files(mount)
    yield f
    os.close(f.fd)


def opener(path):
    def run(tell):
        begin = time.monotonic()
        code = err(get, path)
        tell(f"{code} {time.monotonic() - begin}")
    return run


def silent(kms):
    kms.fault(hang=True)


def refused(kms):
    kms.stop()


def stopped(kms):
    kms.process.send_signal(signal.SIGSTOP)


def broken(kms):
    kms.fault(error_type="KMSInternalException", error_status=500)


def dropped(kms):
    kms.fault(drop_rate=1.0)


def busy(kms):
    kms.fault(error_type="ThrottlingException")


def over(kms):
    if kms.process is None:
        kms.start()
    kms.process.send_signal(signal.SIGCONT)
    kms.clear()


def outage(files, devkms, begin_it):
    mount = files.mount
    begin = time.monotonic()
    begin_it(devkms)
    cold = [Child(opener(mount.path(f"cold {i}"))) for i in range(4)]
    last_good = 0.0
    while (code := files.read()) == 0:
        last_good = time.monotonic() - begin
        assert last_good < LEASE + SLACK
        time.sleep(0.01)
    first_bad = time.monotonic() - begin
    assert code == errno.EIO and last_good > 1.0, (code, last_good)
    for child in cold:
        assert child.wait(2 * REQUEST + LEASE + SLACK) == 0
    answers = [child.lines()[0].split() for child in cold]
    assert all(int(a[0]) == errno.EIO for a in answers), answers
    worst = max(float(a[1]) for a in answers)
    assert worst < 2 * REQUEST + SLACK
    wait_until(lambda: mount.state() == "locked")
    assert "lease ended" in mount.status()["reason"] or mount.status()["kms"]["errors"] > 0
    assert err(get, mount.path("hot")) == errno.EIO
    begin = time.monotonic()
    over(devkms)
    took = files.recovered()
    say(f"{begin_it.__name__}: leased file EIO after {first_bad:.2f} s, cold open EIO after {worst:.2f} s, back after {took:.2f} s")
    assert mount.status()["counters"]["locks"] == 1


@pytest.mark.sanitizer
def test_silent_kms(files, devkms):
    outage(files, devkms, silent)


@pytest.mark.parametrize("how", [refused, stopped, broken, dropped, busy])
def test_outage(files, devkms, how):
    outage(files, devkms, how)


TRANSIENT = {
    "throttled": dict(error_type="ThrottlingException", error_rate=0.3),
    "dropped": dict(drop_rate=0.3),
    "5xx": dict(error_type="KMSInternalException", error_status=500, error_rate=0.3),
    "unavailable": dict(error_type="KeyUnavailableException", error_status=500, error_rate=0.3),
    "slow": dict(latency_ms=500, jitter_ms=100),
}


@pytest.mark.parametrize("what", TRANSIENT)
def test_trouble_that_nobody_notices(files, devkms, what):
    mount = files.mount
    devkms.fault(**TRANSIENT[what])
    end = time.monotonic() + 1.5 * LEASE
    cold = {f"cold {i}" for i in range(4)}
    tries = 0
    while time.monotonic() < end:
        assert files.read() == 0, mount.read_log()
        if cold and (tries := tries + 1) % 10 == 0:
            name = min(cold)
            code = err(get, mount.path(name))
            assert code in (0, errno.EIO)  # a cold file may be out of luck when every retry met the fault
            if code == 0:
                cold.remove(name)
        time.sleep(0.01)
    assert not cold
    put(mount.path("new"), DATA)
    assert mount.state() == "open" and files.locks() == 0
    assert devkms.stats()
    devkms.clear()
    files.recovered()


def test_a_short_outage_is_unseen(files, devkms):
    devkms.fault(error_type="KMSInternalException", error_status=500)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert files.read() == 0
        time.sleep(0.01)
    devkms.clear()
    end = time.monotonic() + LEASE
    while time.monotonic() < end:
        assert files.read() == 0
        time.sleep(0.01)
    assert files.locks() == 0


def test_a_silent_kms_delays_no_leased_file(files, devkms):
    """Four processes wait for keys, all the while everything that has a key is served."""
    mount = files.mount
    devkms.fault(hang=True)
    cold = [Child(opener(mount.path(f"cold {i}"))) for i in range(8)]
    worst, end = 0.0, time.monotonic() + 1.0
    while time.monotonic() < end:
        begin = time.monotonic()
        assert files.read() == 0
        os.pwrite(files.fd, DATA[:4096], 0)
        os.fsync(files.fd)
        os.stat(mount.path("cold 1"))
        worst = max(worst, time.monotonic() - begin)
    say(f"slowest round of operations while 8 openers wait for the KMS: {worst * 1000:.0f} ms")
    assert mount.status()["counters"]["waiting"] >= 1
    assert worst < REQUEST
    devkms.clear()
    for child in cold:
        assert child.wait() == 0
    files.recovered()


def test_lock_and_unlock_while_unreachable(files, devkms):
    mount = files.mount
    devkms.stop()
    assert mount.ctl("lock", mount.plain).returncode == 0
    assert files.read() == errno.EIO
    r = mount.ctl("unlock", mount.plain)
    assert r.returncode == 6, (r.returncode, r.stderr)
    assert mount.state() == "locked" and mount.status()["by_admin"] is False
    devkms.start()
    files.recovered()


def test_a_caller_killed_while_it_waits_for_a_key(files, devkms):
    mount = files.mount
    devkms.fault(hang=True)
    child = Child(opener(mount.path("cold 0")))
    wait_until(lambda: mount.status()["counters"]["waiting"] >= 1)
    os.kill(child.pid, signal.SIGKILL)
    took = until(lambda: not child.running(), 2 * REQUEST + SLACK)
    say(f"a killed caller is gone after {took:.2f} s")
    assert child.code == -signal.SIGKILL
    devkms.clear()
    files.recovered()


@pytest.mark.sanitizer
def test_daemon_stopped_past_the_lease(files, devkms):
    """format.md 63: a daemon that did not run cannot have renewed anything: what waited for it is refused."""
    mount = files.mount
    os.posix_fadvise(files.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    mount.process.send_signal(signal.SIGSTOP)
    try:
        got = []

        def run(tell):
            for at in (0, 65536, 131072):
                tell(str(err(os.pread, files.fd, 4096, at)))

        child = Child(run)
        devkms.disable()
        time.sleep(LEASE + 1)
        assert child.running()
        begin = time.monotonic()
    finally:
        mount.process.send_signal(signal.SIGCONT)
    child.wait()
    got = child.lines()
    assert got == [str(errno.EIO)] * 3, got
    until(lambda: err(os.pread, files.fd, 1, 0) == errno.EIO and err(os.stat, mount.path("hot")) == errno.EIO, 2 + SLACK)
    say(f"daemon continued -> EIO everywhere: {time.monotonic() - begin:.2f} s")
    devkms.enable()
    files.recovered()


def test_many_threads_wait_for_one_key(files, devkms):
    """One call serves all who wait for one file, and the answer reaches every one of them."""
    mount = files.mount
    devkms.fault(operations=["Decrypt"], latency_ms=700)
    before = mount.status()["counters"]["unwraps"]
    results = []
    threads = [threading.Thread(target=lambda: results.append(get(mount.path("cold 3")) == DATA)) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert results == [True] * 16
    assert mount.status()["counters"]["unwraps"] == before + 1
