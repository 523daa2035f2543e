"""byokfsctl status: what it says to people, to Prometheus, and over time."""
import json
import os
import signal
import subprocess

import pytest

import prometheus
from conftest import CTL, environment, wait_until
from damage import backing_of, flip
from faults import get, put
from programs import NO_MOUNT, USAGE, run, said


def scrape(*args):
    r = run(CTL, "status", "--prometheus", *args)
    assert r.code == 0 and not r.err, r
    return prometheus.read(r.out)


def one(families, name, **labels):
    (value,) = prometheus.get(families, name, **labels)
    return value


@pytest.mark.sanitizer
def test_prometheus(mount):
    for i in range(20):
        put(mount.path(f"f{i}"), b"x" * 5000)
    mount.ctl("lock", mount.plain, check=True)
    locked = scrape(mount.plain)
    assert one(locked, "byokfs_open", domain="0") == 0 and one(locked, "byokfs_locked_by_admin") == 1
    assert one(locked, "byokfs_lease_remaining_seconds") == 0 and one(locked, "byokfs_locks_total") == 1
    mount.ctl("unlock", mount.plain, check=True)
    for i in range(20):
        assert len(get(mount.path(f"f{i}"))) == 5000
    f = scrape(mount.plain)
    here = {"mount": mount.plain}
    assert one(f, "byokfs_up", **here) == 1 and one(f, "byokfs_open", **here) == 1
    assert one(f, "byokfs_info", cipherdir=mount.cipher, **here) == 1
    assert one(f, "byokfs_kms_info", key=mount.kms.key, provider="aws", region="us-east-1") == 1
    assert one(f, "byokfs_written_bytes_total") >= 20 * 5000 and one(f, "byokfs_read_bytes_total") >= 20 * 5000
    assert 0 < one(f, "byokfs_lease_remaining_seconds") <= 3
    assert one(f, "byokfs_key_unwraps_total") == 20
    assert one(f, "byokfs_keys_sealed_time_seconds") > 1e9 and one(f, "byokfs_keys_to_be_rotated") == 0
    assert one(f, "byokfs_damage_total") == 0 and one(f, "byokfs_watchdog_alive") == 1
    spent = f["byokfs_operation_duration_seconds"].samples
    counts = {dict(l)["operation"]: v for (n, l), v in spent.items() if n.endswith("_count")}
    assert counts["create"] == 20 and counts["read"] >= 20 and counts["write"] >= 20 and counts["lookup"] >= 20
    calls = {dict(l)["operation"]: v for (n, l), v in f["byokfs_kms_request_duration_seconds"].samples.items() if n.endswith("_count")}
    assert calls["Decrypt"] >= 20 and calls["GenerateDataKey"] >= 20 and sum(calls.values()) == one(f, "byokfs_kms_calls_total")
    waits = {n: v for (n, _), v in f["byokfs_key_wait_duration_seconds"].samples.items()}
    assert waits["byokfs_key_wait_duration_seconds_count"] >= 20 and waits["byokfs_key_wait_duration_seconds_sum"] > 0


def test_all_mounts_and_domains(make_mount, devkms, tmp_path):
    """Several mounts, one with a key domain of its own and a name that needs escapes; one whose daemon died, with a name that is no text."""
    a = make_mount('a"quoted"', devkms).mount()
    b = make_mount("b\udcff", devkms).mount()
    plain, cipher = (os.fsencode(p).replace(b"\xff", b"\\xff").decode() for p in (b.plain, b.cipher))
    other = devkms.client.create_key()["KeyMetadata"]["Arn"]
    os.mkdir(a.path("nested"))
    a.ctl("domain", "add", a.path("nested"), "--key", other, check=True)
    f = scrape()
    assert one(f, "byokfs_up", mount=a.plain) == one(f, "byokfs_up", mount=plain) == 1
    assert one(f, "byokfs_kms_info", mount=a.plain, domain="1", key=other) == 1
    assert len(prometheus.get(f, "byokfs_open", mount=a.plain)) == one(f, "byokfs_domains", mount=a.plain) == 2
    b.kill()
    f = scrape()
    assert one(f, "byokfs_up", mount=a.plain) == 1 and one(f, "byokfs_up", mount=plain) == 0
    assert not prometheus.get(f, "byokfs_open", mount=plain)
    assert plain.replace("\\", r"\x5c") + ": dead" in run(CTL, "status").out
    (dead,) = [m for m in json.loads(run(CTL, "status", "--json").out) if m["mountpoint"] == plain]
    assert dead["state"] == "dead" and dead["cipherdir"] == cipher and dead["code"] == NO_MOUNT
    assert one(scrape(b.plain), "byokfs_up", mount=plain) == 0
    b.clear_dead()
    assert not prometheus.get(scrape(), "byokfs_up", mount=plain)
    assert one(scrape(str(tmp_path)), "byokfs_up", mount=str(tmp_path)) == 0


def test_damage_is_counted(store, devkms):
    """Once per thing, however often it is read."""
    m = store.mount()
    for name in "ab":
        put(m.path(name), name.encode() * 5000)
    backing = [backing_of(m, name) for name in "ab"]
    m.umount()
    for path in backing:
        flip(path, 4096)
    m.mount()
    for _ in range(5):
        for name in "ab":
            with pytest.raises(OSError):
                get(m.path(name))
    assert m.status()["counters"]["damaged"] == 2, m.read_log()
    assert "damage was met 2 times" in run(CTL, "status", m.plain).out
    assert one(scrape(m.plain), "byokfs_damage_total") == 2


def test_human_status(mount):
    put(mount.path("a"), b"x" * 100_000)
    assert get(mount.path("a"))
    out = run(CTL, "status", mount.plain).out
    assert out.startswith(f"{mount.plain}: open since 20") and "lease ends in" in out.split("\n", maxsplit=1)[0]
    assert mount.kms.key in out and "latency " in out and "\n  write " in out and "GenerateDataKey" in out
    assert "_unix" not in out and "buckets" not in out and "\nrates" not in out


class Watch:
    """`byokfsctl status --watch=1` whose output is read as it comes."""

    def __init__(self, *args):
        self.process = subprocess.Popen([CTL, "status", "--watch=1", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env=environment())

    def line(self):
        text = self.process.stdout.readline()
        assert text, self.process.stderr.read()
        return text

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        return self.process.returncode


@pytest.fixture
def watch():
    begun = []

    def begin(*args):
        begun.append(Watch(*args))
        return begun[-1]

    yield begin
    for w in begun:
        if w.process.poll() is None:
            w.process.kill()
        w.process.communicate()


def test_watch_json(mount, watch):
    """One line per interval, rates from the second on; the end of the mount is said, its return is seen."""
    w = watch("--json", mount.plain)
    first = json.loads(w.line())
    assert first["state"] == "open" and "rates" not in first
    put(mount.path("a"), b"x" * 100_000)
    seen = wait_until(lambda: (r := json.loads(w.line())["rates"])["write_bytes"] and r)
    assert seen["write_bytes"] * seen["seconds"] >= 99_000 and seen["seconds"] > 0.5
    mount.ctl("lock", mount.plain, check=True)
    wait_until(lambda: json.loads(w.line())["state"] == "locked")
    assert w.interrupt() == 0


def test_watch_survives_a_remount(mount, watch):
    w = watch("--json", mount.plain)
    pid = json.loads(w.line())["pid"]
    mount.umount()
    assert "no byokfs is mounted" in w.process.stderr.readline()
    mount.mount()
    again = json.loads(w.line())
    assert again["pid"] != pid and "rates" not in again
    assert w.interrupt() == 0


def test_watch_for_people(mount, watch):
    w = watch(mount.plain)
    lines = []
    while not lines or "per second" not in lines[-1]:
        lines.append(w.line())
    assert sum(": open since" in line for line in lines) == 2 and "\n" in lines and "\x1b" not in "".join(lines)
    assert w.interrupt() == 0
    w = watch()
    while not w.line().startswith(mount.plain):
        pass
    assert w.interrupt() == 0


def test_watch_on_a_terminal(mount):
    """The screen is cleared before each block."""
    r = run("script", "-qec", f"timeout -s INT 2 {CTL} status --watch=1 {mount.plain}", "/dev/null")
    assert r.out.count("\x1b[H\x1b[2J") >= 2, r


def test_wrong_use(mount, tmp_path):
    for args in (["--watch=0"], ["--watch=x"], ["--watch=86401"], ["--watch="], ["--json", "--prometheus"], ["--prometheus", "--watch"],
                 ["--prometheus=1"], ["--watch=1", "--watch=2"]):
        said(run(CTL, "status", *args, mount.plain), USAGE)
    said(run(CTL, "status", "--watch", tmp_path), NO_MOUNT, "no byokfs is mounted")
    with open("/dev/full", "w") as full:
        for args in (["--prometheus"], ["--watch"]):
            r = subprocess.run([CTL, "status", *args, mount.plain], stdout=full, stderr=subprocess.PIPE, env=environment(), timeout=60)
            assert r.returncode == 1, (args, r)
