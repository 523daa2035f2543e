"""A long run made short by short times: keys live for a second, sessions for six, and both are renewed under load, while the KMS throttles
and drops connections. Nobody meets an error, no byte is wrong, and the daemon does not grow.

BYOKFS_SOAK=SECONDS makes it longer; an hour is the run of a release."""
import os
import random
import statistics
import time

import boto3
import pytest

from conftest import AK, SK, Mount, environment
from faults import Child, say

SECONDS = float(os.environ.get("BYOKFS_SOAK", "45"))
ROLE = "arn:aws:iam::111122223333:role/customer"
HOST = "arn:aws:iam::111122223333:role/host"
FILES = 60


def content(name, version):
    return random.Random(f"{name}/{version}").randbytes(6000 + version % 7000)


def reader(base, end):
    """Files nobody writes: their keys age, go idle, and come again."""
    def run(tell):
        n = 0
        while time.monotonic() < end:
            name = f"still {random.randrange(FILES)}"
            with open(os.path.join(base, name), "rb") as f:
                assert f.read() == content(name, 0), name
            n += 1
            time.sleep(0.004)
        tell(str(n))
    return run


def writer(base, end, me):
    """Rewrites files of its own and reads them back."""
    def run(tell):
        n, name = 0, f"moving {me}"
        path = os.path.join(base, name)
        while time.monotonic() < end:
            n += 1
            with open(path, "wb") as f:
                f.write(content(name, n))
                if n % 5 == 0:
                    f.flush()
                    os.fsync(f.fileno())
            with open(path, "rb") as f:
                assert f.read() == content(name, n), (name, n)
            time.sleep(0.01)
        tell(str(n))
    return run


def maker(base, end):
    """New names all the time: every file takes a fresh key."""
    def run(tell):
        n = 0
        while time.monotonic() < end:
            d = os.path.join(base, f"dir {n % 10}")
            os.makedirs(d, exist_ok=True)
            for i in range(20):
                n += 1
                with open(os.path.join(d, f"f {i}"), "wb") as f:
                    f.write(b"x" * (n % 5000))
            for i, name in enumerate(sorted(os.listdir(d))):
                os.rename(os.path.join(d, name), os.path.join(d, f"g {i}"))
            for name in os.listdir(d):
                os.unlink(os.path.join(d, name))
            os.rmdir(d)
            time.sleep(0.02)
        tell(str(n))
    return run


def holder(base, end):
    """A file that stays open through every renewal."""
    def run(tell):
        n, name = 0, "still 0"
        want = content(name, 0)
        fd = os.open(os.path.join(base, name), os.O_RDONLY)
        while time.monotonic() < end:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, len(want), 0) == want
            n += 1
            time.sleep(0.01)
        tell(str(n))
    return run


class Credentials:
    """The host's own: temporary, in a shared file that is replaced long before they end."""

    def __init__(self, path, kms):
        self.path, self.turn = str(path), 0
        self.sts = boto3.client("sts", region_name="us-east-1", endpoint_url=kms.endpoint, aws_access_key_id=AK,
                                aws_secret_access_key=SK)
        kms.http("POST", "/_devkms/role", {"role_arn": HOST, "session_seconds": 12})
        kms.http("POST", "/_devkms/role", {"role_arn": ROLE, "external_id": "customer-1", "session_seconds": 6})
        self.rotate()

    def rotate(self):
        got = self.sts.assume_role(RoleArn=HOST, RoleSessionName="host")["Credentials"]
        with open(self.path + ".new", "w", opener=lambda p, f: os.open(p, f, 0o600)) as f:
            f.write(f"[default]\naws_access_key_id = {got['AccessKeyId']}\naws_secret_access_key = {got['SecretAccessKey']}\n"
                    f"aws_session_token = {got['SessionToken']}\n")
        os.rename(self.path + ".new", self.path)
        self.turn += 1


def sample(pid):
    with open(f"/proc/{pid}/status") as f:
        status = dict(line.split(":", 1) for line in f)
    return {"rss": int(status["VmRSS"].split()[0]), "threads": int(status["Threads"]), "locked": int(status["VmLck"].split()[0]),
            "fds": len(os.listdir(f"/proc/{pid}/fd"))}


@pytest.fixture
def soaked(tmp_path, devkms):
    credentials = Credentials(tmp_path / "credentials", devkms)
    m = Soaked(tmp_path / "store", devkms, credentials)
    yield m
    m.close()


class Soaked(Mount):
    """Finds its credentials in the file only, and assumes the customer's role with them."""

    def __init__(self, base, kms, credentials):
        self.credentials = credentials
        super().__init__(base, kms, ini=f"""[kms]
key = {kms.key}
endpoint = {kms.endpoint}
role_arn = {ROLE}
external_id = customer-1
request_timeout = 1s
[cache]
probe = 200ms
lease = 2s
max_age = 1s
idle = 700ms
pool = 32
""")

    def environment(self):
        env = {k: v for k, v in environment().items() if not k.startswith("AWS_")}
        return {**env, "AWS_SHARED_CREDENTIALS_FILE": self.credentials.path, "AWS_CONFIG_FILE": "/nonexistent",
                "AWS_ENDPOINT_URL_STS": self.kms.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}


def watch(mount, end):
    """One sample a second; the credentials change every four."""
    samples, begin, n = [], time.monotonic(), 0
    while time.monotonic() < end:
        time.sleep(1)
        n += 1
        if n % 4 == 0:
            mount.credentials.rotate()
        assert mount.process.poll() is None, mount.read_log()
        if time.monotonic() - begin > (end - begin) / 4:
            samples.append(sample(mount.process.pid))
    return samples


def grown(samples, what):
    third = len(samples) // 3
    return [statistics.median(s[what] for s in part) for part in (samples[:third], samples[-third:])]


def test_soak(soaked, devkms):
    mount = soaked.mount()
    for i in range(FILES):
        with open(mount.path(f"still {i}"), "wb") as f:
            f.write(content(f"still {i}", 0))
    devkms.fault(error_type="ThrottlingException", error_rate=0.05, drop_rate=0.01, latency_ms=2, jitter_ms=5,
                 operations=["Decrypt", "GenerateDataKey"])
    devkms.http("POST", "/_devkms/reset-stats")
    end = time.monotonic() + SECONDS
    base = mount.plain
    children = [Child(work) for work in (reader(base, end), reader(base, end), writer(base, end, 1), writer(base, end, 2),
                                         maker(base, end), holder(base, end))]
    samples = watch(mount, end)
    codes = [c.wait(60) for c in children]
    told = [c.lines() for c in children]
    assert codes == [0] * len(children), told
    status, calls = mount.status(), devkms.stats()["operations"]
    devkms.clear()
    say(f"soak: {SECONDS:.0f} s, operations {[int(t[-1]) for t in told]}, probes {status['counters']['probes']}, "
        f"calls { {name: v for name, v in calls.items() if isinstance(v, (int, dict))} }, sessions of the host {mount.credentials.turn}")
    assert status["counters"]["locks"] == 0 and status["counters"]["lost_files"] == 0
    assert status["counters"]["probes"] > SECONDS / 0.2 / 3
    for what, slack in (("rss", 4096), ("locked", 1024), ("threads", 2), ("fds", 24)):
        first, last = grown(samples, what)
        say(f"soak: {what} {first:.0f} -> {last:.0f}")
        assert last <= first * 1.15 + slack, (what, first, last)
