"""A multi-Region key: failover when a Region is silent and only then, denials that stay denials, and the administrator's own change of Region."""
import calendar
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import time

import boto3
import pytest
from botocore.config import Config

from conftest import AK, BYOKFS, SK, Devkms, environment, wait_until
from faults import Child, err, get, pattern, put, say, until

HOME, AWAY = "us-east-1", "eu-west-1"
LEASE = 3.0
DATA = pattern(12, 128 * 1024)


class Region(Devkms):
    """The server of one Region."""

    def __init__(self, state, region):
        self.region = region
        super().__init__(state)

    def start(self):
        super().start()
        self.client = boto3.client("kms", region_name=self.region, endpoint_url=self.endpoint, aws_access_key_id=AK,
                                   aws_secret_access_key=SK, config=Config(retries={"max_attempts": 0}))

    def forget(self):
        self.http("POST", "/_devkms/reset-stats")

    def requests(self):
        """How many requests it has seen since forget() or its start."""
        return sum(o["calls"] for o in self.stats()["operations"].values())


class Pair:
    """One key, two Regions, a server for each: what is done to one does nothing to the other."""

    def __init__(self, base):
        self.home = Region(base / "home", HOME)
        self.home.key = self.home.client.create_key(MultiRegion=True)["KeyMetadata"]["Arn"]
        self.home.client.replicate_key(KeyId=self.home.key, ReplicaRegion=AWAY)
        self.home.stop()
        shutil.copytree(base / "home" / "kms", base / "away" / "kms")
        self.home.start()
        self.away = Region(base / "away", AWAY)
        self.away.key = self.home.key.replace(HOME, AWAY)
        self.home.forget()
        self.away.forget()

    def ini(self, at=None, more=""):
        at = at or self.home
        return (f"[kms]\nprovider = aws\nkey = {at.key}\nendpoint = {at.endpoint}\nrequest_timeout = 1s\n"
                f"failover_after = 300ms\n{more}[cache]\nprobe = 500ms\nlease = {LEASE:.0f}s\n")

    def replicas(self, failover="unreachable"):
        return f"replicas =\n  {self.away.key}@{self.away.endpoint}\nfailover = {failover}\n"


@pytest.fixture
def pair(tmp_path):
    p = Pair(tmp_path)
    yield p
    p.home.stop()
    p.away.stop()


class Opened:
    """A mount with one file open and some that nobody opened since."""

    def __init__(self, mount, cold=4):
        self.mount = mount.mount()
        put(mount.path("hot"), DATA)
        for i in range(cold):
            put(mount.path(f"cold {i}"), DATA)
        self.fd = -1
        self.remount()

    def remount(self):
        self.close()
        self.mount.remount()
        self.fd = os.open(self.mount.path("hot"), os.O_RDWR)

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def read(self):
        """A read that reaches the daemon: 0 or its errno."""
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            assert os.pread(self.fd, 8192, 4096) == DATA[4096:4096 + 8192]
        except OSError as e:
            return e.errno
        return 0

    def kms(self):
        return self.mount.status()["kms"]

    def reads_until(self, what, seconds=20.0):
        """Reads all the while; every one must succeed."""
        def good():
            assert self.read() == 0, self.mount.read_log()
            return what()
        return until(good, seconds, 0.02)

    def failed_probes(self, more):
        """Waits until that many more canaries were refused or not answered."""
        before = self.mount.status()["counters"]["probe_failures"]
        wait_until(lambda: self.mount.status()["counters"]["probe_failures"] >= before + more)

    def hup(self, ini, lines):
        """A new configuration, taken over or refused: the log has one more line with these words."""
        before = self.mount.read_log().count(lines)
        with open(self.mount.ini, "w") as f:
            f.write(ini)
        self.mount.process.send_signal(signal.SIGHUP)
        wait_until(lambda: self.mount.read_log().count(lines) == before + 1)


@pytest.fixture
def opened(pair, make_mount):
    made = []

    def make(more):
        made.append(Opened(make_mount("m", pair.home, ini=pair.ini(more=more))))
        return made[0]

    yield make
    for o in made:
        o.close()


def refused(region):
    region.stop()


def silent(region):
    region.fault(hang=True)


def over(region):
    if region.process is None:
        region.start()
    region.clear()


@pytest.mark.parametrize("how", [refused, pytest.param(silent, marks=pytest.mark.sanitizer)])
def test_failover_and_back(pair, opened, how):
    """Nobody notices: leased files, files opened cold, new files."""
    o = opened(pair.replicas())
    mount = o.mount
    assert pair.away.requests() == 0
    assert (o.kms()["region"], o.kms()["away"]) == (HOME, False)
    how(pair.home)
    cold = Child(lambda tell: tell(str(err(get, mount.path("cold 0")))))
    took = o.reads_until(lambda: o.kms()["away"])
    assert o.kms()["region"] == AWAY
    end = time.monotonic() + LEASE + 0.5
    o.reads_until(lambda: time.monotonic() > end)  # longer than the lease, so the replica has renewed it
    assert cold.wait() == 0 and cold.lines() == ["0"]
    assert get(mount.path("cold 1")) == DATA
    put(mount.path("new"), DATA)
    assert f"its replica in {AWAY} is asked" in mount.ctl("status", mount.plain).stdout
    assert mount.read_log().count("cannot be reached: the key's replica in " + AWAY) == 1
    over(pair.home)
    back = o.reads_until(lambda: not o.kms()["away"])
    pair.away.forget()
    pair.home.forget()
    wait_until(lambda: pair.home.requests() >= 2)
    assert get(mount.path("cold 2")) == DATA
    assert pair.away.requests() == 0
    assert mount.read_log().count(f"the KMS in {HOME} answers again") == 1
    assert mount.status()["counters"]["locks"] == 0
    assert "replica" not in mount.ctl("status", mount.plain).stdout
    o.remount()  # what the replica sealed is the same key's
    assert get(mount.path("new")) == DATA
    say(f"{how.__name__}: at the replica after {took:.2f} s, home {back:.2f} s after its return")


def test_denied_at_home_is_final(pair, opened):
    """Also when home dies afterwards: the replica, which would say yes, is never asked."""
    o = opened(pair.replicas())
    pair.home.disable()
    until(lambda: o.read() == errno.EIO, 10)
    wait_until(lambda: o.mount.state() == "locked")
    pair.home.stop()
    o.failed_probes(3)  # each takes longer than failover_after
    assert o.mount.state() == "locked" and o.read() == errno.EIO
    assert pair.away.requests() == 0
    assert o.mount.read_log().count(f"denied in {HOME}: no other Region is asked") == 1
    pair.home.start()
    o.failed_probes(1)  # it still says no
    pair.home.enable()
    until(lambda: o.read() == 0, 20)
    assert pair.away.requests() == 0


def test_denied_by_the_replica_is_final(pair, opened):
    """While it is asked; and home, back and willing, does not help."""
    o = opened(pair.replicas())
    pair.home.stop()
    o.reads_until(lambda: o.kms()["away"])
    pair.away.disable()
    until(lambda: o.read() == errno.EIO, 10)
    wait_until(lambda: o.mount.state() == "locked")
    pair.home.start()
    o.failed_probes(3)
    assert o.mount.state() == "locked"
    assert pair.home.requests() == 0
    pair.away.enable()
    until(lambda: o.read() == 0, 20)
    o.reads_until(lambda: not o.kms()["away"])


def test_a_replica_that_refuses_is_nobodys_business(pair, opened):
    """As long as home works."""
    pair.away.disable()
    o = opened(pair.replicas())
    pair.away.forget()
    pair.home.forget()
    o.reads_until(lambda: pair.home.requests() >= 4)
    assert pair.away.requests() == 0
    assert o.mount.status()["counters"]["locks"] == 0


@pytest.mark.parametrize("configured", [True, False], ids=["failover=no", "no replicas"])
def test_without_failover(pair, opened, configured):
    """An outage ends at the lease, and nobody else is asked."""
    o = opened(pair.replicas(failover="no") if configured else "")
    pair.home.stop()
    begin = time.monotonic()
    until(lambda: o.read() == errno.EIO, LEASE + 3, 0.02)
    assert time.monotonic() - begin > LEASE - 2
    wait_until(lambda: o.mount.state() == "locked")
    assert (o.kms()["region"], o.kms()["away"]) == (HOME, False)
    o.failed_probes(1)
    assert pair.away.requests() == 0
    pair.home.start()
    until(lambda: o.read() == 0, 20)
    assert pair.away.requests() == 0


@pytest.mark.parametrize("locked", [False, True], ids=["in time", "when locked"])
def test_change_of_region(pair, opened, locked):
    """The administrator's: a new configuration and SIGHUP, with files open, without a remount."""
    o = opened("")
    mount = o.mount
    pair.home.stop()
    if locked:
        until(lambda: o.read() == errno.EIO, LEASE + 3, 0.02)
        wait_until(lambda: mount.state() == "locked")
    o.hup(pair.ini(pair.away), "changed: kms.key, kms.endpoint")
    if locked:
        until(lambda: o.read() == 0, 20)
    end = time.monotonic() + LEASE + 0.5
    o.reads_until(lambda: time.monotonic() > end)
    assert mount.status()["counters"]["locks"] == (1 if locked else 0)
    assert (o.kms()["region"], o.kms()["away"]) == (AWAY, False)
    os.pwrite(o.fd, DATA[:100], 0)
    os.fsync(o.fd)
    assert get(mount.path("cold 0")) == DATA
    put(mount.path("new"), DATA)
    o.remount()  # under the sibling's name from the start
    assert get(mount.path("new")) == DATA and get(mount.path("cold 1")) == DATA
    assert o.kms()["key"] == pair.away.key
    assert mount.ctl("test", "-c", mount.ini, mount.cipher).returncode == 0
    info = json.loads(mount.ctl("info", "--json", mount.cipher, check=True).stdout)
    assert pair.home.key in json.dumps(info)  # the store's own record stays


def test_bad_configurations_change_nothing(pair, opened):
    o = opened("")
    other = pair.home.client.create_key()["KeyMetadata"]["Arn"]
    stays = "the configuration stays as it was"
    good = pair.ini()
    o.hup(good.replace(pair.home.key, other), f"{stays}: '{other}' is another key than")
    o.hup(good.replace("probe =", "prove ="), f"{stays}: ")
    o.hup(pair.ini(more=f"replicas = {pair.home.key}\n"), f"{stays}: '{pair.home.key}' in kms.replicas")
    o.hup(pair.ini(more="failover = unreachable\n"), f"{stays}: 'failover' in [kms] needs 'replicas'")
    os.unlink(o.mount.ini)
    before = o.mount.read_log().count(stays)
    o.mount.process.send_signal(signal.SIGHUP)
    wait_until(lambda: o.mount.read_log().count(stays) == before + 1)
    o.hup(good.replace("lease = 3s", "lease = 3s\npool = 5"), "only for the next mount: cache.pool")
    o.hup(good, "only for the next mount: cache.pool")
    o.hup(good, "nothing changed")
    pair.home.forget()
    o.reads_until(lambda: pair.home.requests() >= 3)
    assert o.mount.status()["counters"]["probe_failures"] == 0


def test_failover_switched_on_while_mounted(pair, opened):
    """Replicas and failover by SIGHUP, in the middle of the outage; a setting of the command line stays."""
    o = opened("")
    o.mount.options = ["kms.failover_after=500ms"]
    o.remount()
    pair.home.stop()
    o.hup(pair.ini(more=pair.replicas()).replace("300ms", "1h"), "changed: kms.replicas, kms.failover")
    o.reads_until(lambda: o.kms()["away"])
    end = time.monotonic() + LEASE + 0.5
    o.reads_until(lambda: time.monotonic() > end)


def test_a_mount_during_an_outage(pair, make_mount):
    """It begins at home like every other; one that may start locked goes on at the replica."""
    m = make_mount("m", pair.home, ini=pair.ini(more=pair.replicas()))
    pair.home.stop()
    m.mount("locked_start")
    wait_until(lambda: err(os.listdir, m.plain) == 0)
    put(m.path("a"), DATA)
    assert m.status()["kms"]["away"] and get(m.path("a")) == DATA
    assert pair.away.requests() > 0


def test_status_says_as_whom(pair, make_mount, monkeypatch):
    m = make_mount("m", pair.home, ini=pair.ini()).mount()
    assert (m.status()["kms"]["identity"], m.status()["kms"]["expires"]) == ("the environment", None)
    assert "credentials of" not in m.ctl("status", m.plain).stdout
    m.umount()
    role = "arn:aws:iam::111122223333:role/byokfs-host"
    pair.home.http("POST", "/_devkms/role", {"role_arn": role})
    monkeypatch.setattr(m, "environment", lambda: {**environment(), "AWS_ENDPOINT_URL_STS": pair.home.endpoint})
    m.mount(f"kms.role_arn={role}")
    kms = m.status()["kms"]
    assert role in kms["identity"]
    left = calendar.timegm(time.strptime(kms["expires"], "%Y-%m-%dT%H:%M:%SZ")) - time.time()
    assert 0 < left <= 905
    assert re.search(f"^  credentials of .*{role}.* end at {kms['expires']}$", m.ctl("status", m.plain).stdout, re.M)


@pytest.mark.parametrize("replicas,says", [
    ("{home}", "'us-east-1' is named twice"),
    ("arn:aws:kms:eu-west-1:111122223333:key/mrk-00000000000000000000000000000000", "another key"),
    ("arn:aws:kms:eu-west-1:444455556666:key/{id}", "another partition or account"),
    ("eu-west-1", "not the ARN of a key"),
])
def test_mistakes_are_refused_before(pair, make_mount, replicas, says):
    m = make_mount("m", pair.home, ini=pair.ini())
    text = replicas.format(home=pair.home.key, id=pair.home.key.split("/")[1])
    r = subprocess.run([BYOKFS, "-f", "-c", m.ini, "-o", f"kms.replicas={text}", m.cipher, m.plain],
                       env=environment(), capture_output=True, text=True, timeout=30)
    assert r.returncode == 3 and says in r.stderr, r.stderr
