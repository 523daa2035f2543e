"""byokfsctl reload and SIGHUP: what a live mount takes over of a changed configuration, and what it says."""
import errno
import json
import os
import signal

import pytest

from conftest import CTL, wait_until
from faults import err, get, put
from programs import CONFIG, NO_MOUNT, USAGE, run, said


class Ini:
    """The configuration of a mount, a setting at a time."""

    def __init__(self, m):
        self.m = m
        with open(m.ini) as f:
            self.text = f.read()

    def write(self, *lines):
        """lines: "section.key=value"; what was there stays."""
        text = self.text
        for line in lines:
            name, value = line.split("=", 1)
            section, key = name.split(".")
            kept = [row for row in text.splitlines() if not (row.split(" =")[0] == key)]
            if f"[{section}]" not in kept:
                kept.append(f"[{section}]")
            kept.insert(kept.index(f"[{section}]") + 1, f"{key} = {value}")
            text = "\n".join(kept) + "\n"
        with open(self.m.ini, "w") as f:
            f.write(text)


@pytest.fixture
def ini(mount):
    return Ini(mount)


def reload(mount):
    r = run(CTL, "reload", "--json", mount.plain)
    assert r.code == 0 and not r.err, r
    return json.loads(r.out)


@pytest.mark.sanitizer
def test_answers(mount, ini):
    r = run(CTL, "reload", mount.plain)
    assert (r.code, r.out, r.err) == (0, "nothing changed\n", "")
    ini.write("log.level=warn", "cache.max_age=100s", "mount.threads=2")
    r = run(CTL, "reload", mount.plain)
    assert r.code == 0 and r.out == "changed: cache.max_age, log.level\nfor the next mount: mount.threads\n", r
    assert "mount.threads" in mount.read_log()
    answer = reload(mount)
    assert (answer["message"], answer["changed"], answer["next_mount"]) == ("nothing changed", [], [])
    put(mount.path("a"), b"x")
    assert get(mount.path("a")) == b"x"


@pytest.mark.sanitizer
def test_a_bad_configuration_changes_nothing(mount, ini, devkms):
    other = devkms.client.create_key()["KeyMetadata"]["Arn"]
    for setting, word in (("cache.lease=5", "byokfs.ini:"), ("cache.nonsense=1", "nonsense"), ("kms.key=" + other, other),
                          ("cache.lease=1s", "lease")):
        ini.write("log.level=debug", setting)
        r = said(run(CTL, "reload", mount.plain), CONFIG, "stays as it was", word)
        assert r.out == ""
        r = run(CTL, "reload", "--json", mount.plain)
        assert r.code == CONFIG and json.loads(r.out)["code"] == CONFIG
    os.unlink(mount.ini)
    said(run(CTL, "reload", mount.plain), CONFIG, mount.ini)
    ini.write()
    assert reload(mount)["changed"] == []
    put(mount.path("a"), b"x")


def test_wrong_use(tmp_path):
    said(run(CTL, "reload"), USAGE)
    said(run(CTL, "reload", tmp_path, tmp_path), USAGE)
    said(run(CTL, "reload", tmp_path), NO_MOUNT, str(tmp_path))


def test_a_shorter_lease_ends_sooner(store, devkms):
    """The promise about an unreachable KMS holds for the new lease, at once; a working one does not lock anybody out."""
    store.mount("cache.lease=1h", "cache.probe=10m")
    put(store.path("a"), b"x")
    assert store.status()["lease_left_ms"] > 60_000
    store.umount()
    ini = Ini(store)
    ini.write("cache.lease=1h", "cache.probe=10m")
    store.mount()
    put(store.path("a"), b"x")
    ini.write("cache.lease=2s", "cache.probe=500ms")
    assert set(reload(store)["changed"]) >= {"cache.lease", "cache.probe", "mount.attr_timeout"}
    assert store.status()["lease_left_ms"] <= 2000
    before = store.status()["counters"]["probes"]
    wait_until(lambda: store.status()["counters"]["probes"] >= before + 5)
    assert store.status()["counters"]["locks"] == 0 and get(store.path("a")) == b"x"
    devkms.fault(hang=True)
    wait_until(lambda: store.state() == "locked")
    assert err(get, store.path("a")) == errno.EIO
    devkms.clear()
    wait_until(lambda: store.state() == "open")


def test_nested_domains_follow(mount, ini, devkms):
    """Times are everybody's; settings of the key service are the store's own."""
    other = devkms.client.create_key()["KeyMetadata"]["Arn"]
    os.mkdir(mount.path("n"))
    mount.ctl("domain", "add", mount.path("n"), "--key", other, check=True)
    ini.write("cache.lease=1h", "cache.probe=10s", "kms.request_timeout=3s")
    answer = reload(mount)
    assert answer["nested_next_mount"] == ["kms.request_timeout"]
    wait_until(lambda: all(d["lease_left_ms"] > 3_000_000 for d in mount.status()["domains"]))
    # One that is made afterwards begins with the new times.
    os.mkdir(mount.path("later"))
    mount.ctl("domain", "add", mount.path("later"), "--key", other, check=True)
    assert mount.status()["domains"][2]["lease_left_ms"] > 3_000_000


def test_request_timeout(mount, ini, devkms):
    """A canary that hangs is given up after the new time."""
    ini.write("kms.request_timeout=300ms", "kms.connect_timeout=300ms", "cache.lease=1h", "cache.probe=1s")
    assert {"kms.request_timeout", "kms.connect_timeout"} <= set(reload(mount)["changed"])
    devkms.fault(hang=True)
    wait_until(lambda: mount.status()["counters"]["probe_failures"] >= 2)
    assert mount.state() == "open"
    devkms.clear()


def test_log_level(mount, ini):
    ini.write("log.level=err")
    mount.process.send_signal(signal.SIGHUP)
    wait_until(lambda: reload(mount)["message"] == "nothing changed")
    size = len(mount.read_log())
    reload(mount)
    mount.ctl("lock", mount.plain, check=True)
    assert mount.read_log()[size:] == ""
    ini.write("log.level=info")
    assert reload(mount)["changed"] == ["log.level"]
    mount.ctl("unlock", mount.plain, check=True)
    wait_until(lambda: "open: the KMS answers again" in mount.read_log()[size:])


def test_the_signal_and_the_verb_together(mount, ini):
    """Many at once: one after the other, and the last configuration counts."""
    for i in range(30):
        ini.write(f"cache.max_age={100 + i}s")
        mount.process.send_signal(signal.SIGHUP)
        assert reload(mount)["code"] == 0
    assert reload(mount)["changed"] == []
    assert mount.state() == "open"
