"""The audit log end to end: every request the KMS saw has its line, with who caused it; states, rotation, crashes, refusals."""
import collections
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading

import pytest

from conftest import BYOKFS, CTL, Mount, environment, wait_until
from faults import get, put
from programs import CONFIG, DAMAGE, USAGE, run, said

OPS = {"GenerateDataKey", "Decrypt", "Encrypt", "ReEncrypt", "DescribeKey"}
HEX = "[0-9a-f]"
EVERYBODY = ("seq", "time", "event")
KMS = (*EVERYBODY, "op", "key", "material", "store", "domain", "file", "use", "request_id", "latency_ms", "result", "code", "http",
       "uid", "pid", "context", "prev")


class Audited(Mount):
    """A mount with an audit log; more than one file once it was rotated."""

    def __init__(self, base, kms, **kw):
        super().__init__(base, kms, **kw)
        self.audit = os.path.join(self.base, "audit.log")
        self.turn = 0
        with open(self.ini, "a") as f:
            f.write(f"[audit]\nfile = {self.audit}\n")

    def files(self):
        """From the oldest to the newest."""
        return [f"{self.audit}.{i}" for i in range(1, self.turn + 1)] + [self.audit]

    def lines(self, event=None):
        # The last one may be being written, or one may be torn.
        texts = [text for name in self.files() for text in open(name) if text.endswith("}\n")]
        found = [json.loads(text) for text in texts]
        return [line for line in found if event in (None, line["event"])]

    def rotate(self):
        self.turn += 1
        os.rename(self.audit, f"{self.audit}.{self.turn}")
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: os.path.exists(self.audit) and os.path.getsize(self.audit))

    def verify(self, *args):
        return run(CTL, "audit", "verify", *args, *self.files())

    def whole(self, *args):
        """The report on a whole chain."""
        r = self.verify("--json", *args)
        assert r.code == 0, r
        return json.loads(r.out)


@pytest.fixture
def audited(tmp_path, devkms):
    m = Audited(tmp_path, devkms)
    yield m
    m.close()


def seen(kms, since):
    """What the KMS was asked by us since then: its CloudTrail."""
    return [r for r in kms.http("GET", f"/_devkms/stats?since={since}&last=20000")["requests"] if r["operation"] in OPS]


def context_of(line):
    names = {"byokfs-store": "store", "byokfs-domain": "domain", "byokfs-file": "file", "byokfs-use": "use"}
    return {**line["context"], **{n: line[m] for n, m in names.items() if line[m]}}


@pytest.mark.sanitizer
def test_every_request_has_its_line(tmp_path, devkms):
    m = Audited(tmp_path, devkms, ini=f"[kms]\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\nrequest_timeout = 2s\n"
                f"context = customer:acme\n[cache]\nprobe = 1s\nlease = 30s\n[mount]\nlocked_start = yes\n")
    since = devkms.stats()["seq"]
    try:
        m.mount()
        for i in range(20):
            put(m.path(f"geheim-{i}"), b"klartext", sync=i < 3)
        m.remount()
        # Every attempt is a line, those that failed too.
        devkms.fault(operations=["Decrypt"], error_type="ThrottlingException", count=5)
        for i in range(20):
            assert get(m.path(f"geheim-{i}")) == b"klartext"
        devkms.disable()
        wait_until(lambda: m.state() == "locked")
        devkms.enable()
        wait_until(lambda: m.state() == "open")
        m.umount()
    finally:
        m.close()
    ours, theirs = m.lines("kms"), seen(devkms, since)
    assert len(ours) > 60
    assert sorted(line["request_id"] for line in ours) == sorted(r["request_id"] for r in theirs)
    by_id = {r["request_id"]: r for r in theirs}
    for line in ours:
        r = by_id[line["request_id"]]
        assert line["op"] == r["operation"]
        if r["result"] != "ThrottlingException":  # that one the KMS did not read
            assert context_of(line) == r["context"]
        assert (line["code"] or "ok") == r["result"], line
        assert (line["result"] == "ok") == (r["result"] == "ok")
    failed = collections.Counter((line["code"], line["result"], line["http"]) for line in ours if line["code"])
    assert failed["ThrottlingException", "throttled", 400] == 5, failed
    assert failed["DisabledException", "denied", 400] >= 1, failed
    report = m.whole()
    assert report["operations"]["GenerateDataKey"]["ok"] >= 20 and report["dropped"] == 0 and not report["findings"]


def test_nothing_secret(audited):
    """Every member is of a kind that cannot hold a key or a name."""
    audited.mount()
    put(audited.path("geheimer-name.txt"), b"klartext " * 1000)
    audited.remount()
    get(audited.path("geheimer-name.txt"))
    audited.umount()
    text = open(audited.audit).read()
    assert "geheim" not in text and "klartext" not in text
    kinds = {"seq": r"\d+", "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "event": "kms", "op": "|".join(OPS),
             "key": re.escape(audited.kms.key), "material": HEX + "{64}", "store": HEX + "{32}", "domain": HEX + "{32}",
             "file": HEX + "{32}|None", "use": "file|domain|probe", "request_id": HEX + "{8}(-" + HEX + "{4}){3}-" + HEX + "{12}",
             "latency_ms": r"\d+", "result": "ok", "code": "None", "http": "None", "uid": r"\d+|None", "pid": r"\d+|None",
             "context": "{}", "prev": HEX + "{64}"}
    materials = set()
    for line in audited.lines("kms"):
        assert tuple(line) == KMS
        for name, value in line.items():
            assert re.fullmatch(kinds[name], str(value)), (name, value)
        materials.add(line["material"])
    assert len(materials) == 1  # an identifier: every key would be another


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_caused_it(devkms):
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        m = Audited(base, devkms)
        try:
            m.mount()
            put(m.path("cold"), b"data")
            m.remount()
            cat = subprocess.Popen(["cat", m.path("cold")], user=1234, group=1234, stdout=subprocess.PIPE)
            assert cat.communicate(timeout=30)[0] == b"data" and cat.returncode == 0
            m.umount()
        finally:
            m.close()
        opened = [line for line in m.lines("kms") if line["op"] == "Decrypt" and line["use"] == "file"]
        assert [(line["uid"], line["pid"]) for line in opened] == [(1234, cat.pid)]
        probes = [line for line in m.lines("kms") if line["use"] == "probe"]
        assert all(line["uid"] is None and line["pid"] is None for line in probes)


DOC = os.path.join(os.path.dirname(__file__), "../../docs/byokfs-audit.5")


def displays(word):
    """The examples of the manual page that hold the word, as one types them."""
    blocks = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", open(DOC).read(), re.M | re.S)
    return [block for block in blocks if word in block and "\\" not in block]


def test_manual_joins_with_cloudtrail(audited, tmp_path):
    """What the page tells people to type, on a log and a trail that know a request each that the other does not."""
    script, = displays("comm -23 theirs ours")
    since = audited.kms.stats()["seq"]
    audited.mount()
    put(audited.path("f"), b"x")
    wait_until(lambda: audited.lines("kms"))
    audited.rotate()
    audited.remount()
    get(audited.path("f"))
    audited.umount()
    requests = [r for r in seen(audited.kms, since) if r["context"]]
    store = audited.lines("state")[0]["store"]
    assert len(requests) > 3 and {r["context"]["byokfs-store"] for r in requests} == {store}
    ours_only, stranger = requests.pop(1)["request_id"], {"request_id": "stranger", "context": {"byokfs-store": store}}
    trail = [{"eventSource": "kms.amazonaws.com", "requestID": r["request_id"],
              "requestParameters": {"encryptionContext": r["context"]}} for r in [*requests, stranger]]
    # Other services, other stores, requests without a context.
    noise = [{"eventSource": "s3.amazonaws.com", "requestID": "s3", "requestParameters": None},
             {"eventSource": "kms.amazonaws.com", "requestID": "none", "requestParameters": {"keyId": "k"}},
             {"eventSource": "kms.amazonaws.com", "requestID": "other", "requestParameters": {"encryptionContext": {
                 "byokfs-store": "00"}}}]
    (tmp_path / "trail").mkdir()
    (tmp_path / "trail" / "1.json").write_text(json.dumps({"Records": trail[:2] + noise}))
    (tmp_path / "trail" / "2.json").write_text(json.dumps({"Records": trail[2:]}))
    for path, name in zip(audited.files(), ("data.log.1", "data.log"), strict=True):
        shutil.copy(path, tmp_path / name)
    with open(tmp_path / "data.log", "a") as f:
        f.write('{"seq":99,"time":"2026')
    r = run("bash", "-euc", script, cwd=tmp_path, env={"STORE": store, "LC_ALL": "C"})
    extra = [line["request_id"] for line in audited.lines("kms") if not line["store"]]
    assert r.code == 0 and not r.err, r
    theirs, ours = r.out.splitlines()[:1], r.out.splitlines()[1:]
    assert theirs == ["stranger"] and [line.strip() for line in ours] == sorted([ours_only, *extra]), r


def test_states(audited):
    audited.mount()
    pid = audited.process.pid
    audited.kms.disable()
    wait_until(lambda: audited.state() == "locked")
    audited.kms.enable()
    wait_until(lambda: audited.state() == "open")
    assert audited.ctl("lock", audited.plain).returncode == 0
    assert audited.ctl("unlock", audited.plain).returncode == 0
    wait_until(lambda: len(audited.lines("state")) >= 7)
    audited.umount()
    states = audited.lines("state")
    assert [s["state"] for s in states] == ["open", "locking", "locked", "open", "locking", "locked", "open"]
    assert all(tuple(s) == (*EVERYBODY, "store", "domain", "state", "reason", "prev") for s in states)
    assert "DisabledException" in states[1]["reason"] and states[2]["reason"] == states[1]["reason"]
    assert states[4]["reason"] == "locked by the administrator"
    first, last = audited.lines()[0], audited.lines()[-1]
    assert (first["event"], first["why"], first["mount"], first["key"]) == ("open", "start", audited.plain, audited.kms.key)
    assert (first["uid"], first["pid"]) == (os.getuid(), pid)
    assert first["store"] == states[0]["store"] and first["host"] and first["program"].startswith("byokfs/")
    assert (last["event"], last["reason"]) == ("close", "unmounted")


def test_a_mount_that_fails_is_recorded(audited):
    audited.kms.disable()
    r = run(BYOKFS, "-f", "-c", audited.ini, audited.cipher, audited.plain)
    assert r.code == 5, r
    assert [line["event"] for line in audited.lines()] == ["open", "kms", "close"]
    assert audited.lines("kms")[0]["code"] == "DisabledException" and audited.lines()[-1]["reason"] == "not mounted"


def test_level_changes(audited):
    audited.mount("audit.level=changes")
    put(audited.path("f"), b"x")
    audited.kms.disable()
    wait_until(lambda: audited.state() == "locked")
    audited.umount()
    assert {line["result"] for line in audited.lines("kms")} == {"denied"}
    assert [s["state"] for s in audited.lines("state")] == ["open", "locking", "locked"]


def test_status(audited):
    audited.mount()
    put(audited.path("f"), b"x")
    s = audited.status()["audit"]
    assert s["file"] == audited.audit and s["dropped"] == 0 and s["error"] == "" and s["lines"] >= 3
    audited.umount()
    assert audited.whole("--anchor", s["head"])["anchored"]
    assert f"line {audited.whole()['seq']}, hash {audited.whole()['head']}" in audited.read_log()


@pytest.mark.sanitizer
def test_rotation_under_load(audited):
    since = audited.kms.stats()["seq"]
    audited.mount()
    stop = threading.Event()
    made = []

    def work():
        while not stop.is_set():
            put(audited.path(f"f{len(made)}"), b"x", sync=False)
            made.append(1)

    worker = threading.Thread(target=work)
    worker.start()
    for i in range(5):
        wait_until(lambda: len(made) > 20 * i)
        audited.rotate()
    stop.set()
    worker.join()
    audited.umount()
    assert len(audited.files()) == 6
    report = audited.whole()
    assert report["findings"] == [] and report["chains"] == 1 and report["files"] == 6
    assert sorted(line["request_id"] for line in audited.lines("kms")) == sorted(r["request_id"] for r in seen(audited.kms, since))
    # One out of the middle is whole too, and says what it continues.
    r = run(CTL, "audit", "verify", audited.files()[2])
    assert r.code == 0 and "continues behind line seq" in r.out
    r = run(CTL, "audit", "verify", audited.files()[1], audited.files()[3])
    assert r.code == DAMAGE and "are missing" in r.out


def test_killed(audited):
    """The chain goes on behind a SIGKILL, and behind half a line that a power cut would leave."""
    audited.mount()
    put(audited.path("f"), b"x")
    wait_until(lambda: audited.lines("kms"))
    head = audited.status()["audit"]["head"]
    wait_until(lambda: audited.verify("--anchor", head).code == 0)
    audited.kill()
    audited.clear_dead()
    with open(audited.audit, "a") as f:
        f.write('{"seq":99,"time":"2026')
    assert "half a line" in audited.verify().out
    audited.mount("mount.torn_ok=yes")
    audited.umount()
    report = audited.whole("--anchor", head)
    assert report["torn"] == 1 and report["chains"] == 1
    assert "ended in a torn line" in audited.read_log()
    assert [line["why"] for line in audited.lines("open")] == ["start", "start"]


def test_two_mounts_need_two_files(audited, make_mount):
    audited.mount()
    other = make_mount("other", audited.kms)
    r = run(BYOKFS, "-f", "-c", other.ini, "-o", f"audit.file={audited.audit}", other.cipher, other.plain)
    said(r, CONFIG, "in use by another mount", audited.audit, "hint: every mount needs an [audit] file of its own")
    assert not other.mounted()


@pytest.mark.parametrize("make, word", [
    (lambda p: None, "No such file or directory"), (lambda p: os.makedirs(p), "cannot open"),
    (lambda p: (os.makedirs(os.path.dirname(p)), put(p, b"my diary\n")), "does not end like an audit file"),
    (lambda p: (os.makedirs(os.path.dirname(p)), os.symlink("/dev/null", p)), "cannot open")])
def test_refused_at_start(audited, tmp_path, make, word):
    path = str(tmp_path / "d" / "audit.log")
    make(path)
    r = run(BYOKFS, "-c", audited.ini, "-o", f"audit.file={path}", audited.cipher, audited.plain)
    said(r, CONFIG, word, path)
    assert not audited.mounted()


@pytest.fixture
def small(tmp_path):
    """A file system of 256 KiB."""
    path = str(tmp_path / "small")
    os.mkdir(path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "audit-test", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_read_only_directory(audited, small):
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    r = run(BYOKFS, "-c", audited.ini, "-o", f"audit.file={small}/audit.log", audited.cipher, audited.plain)
    said(r, CONFIG, "Read-only file system")


def test_full_disk_stops_nobody(audited, small):
    audited.audit = os.path.join(small, "audit.log")
    audited.mount(f"audit.file={audited.audit}")
    with open(os.path.join(small, "filler"), "wb", buffering=0) as f:
        try:
            while True:
                f.write(b"x" * 4096)
        except OSError:
            pass
    for i in range(100):
        put(audited.path(f"f{i}"), b"x", sync=False)
    wait_until(lambda: audited.status()["audit"]["error"] == "No space left on device")
    assert get(audited.path("f99")) == b"x"
    os.unlink(os.path.join(small, "filler"))
    wait_until(lambda: audited.status()["audit"]["error"] == "")
    audited.umount()
    report = audited.whole()
    assert report["findings"] == [] and report["dropped"] == 0 and report["operations"]["GenerateDataKey"]["ok"] >= 100
    assert audited.read_log().count("cannot write") == 1


def test_byokfsctl_writes_it_too(tmp_path, devkms):
    ini, log = tmp_path / "i.ini", tmp_path / "audit.log"
    ini.write_text(f"[kms]\nkey = {devkms.key}\nendpoint = {devkms.endpoint}\n[audit]\nfile = {log}\n")
    since = devkms.stats()["seq"]
    (tmp_path / "cipher").mkdir()
    assert run(CTL, "init", "-c", ini, tmp_path / "cipher").code == 0
    # An alias is asked for before there is a key service to be observed.
    devkms.client.create_alias(AliasName="alias/audit", TargetKeyId=devkms.key)
    assert run(CTL, "test", "-c", ini, "-o", "kms.key=alias/audit,kms.region=us-east-1", tmp_path / "cipher").code == 0
    lines = [json.loads(text) for text in open(log)]
    opened = [line for line in lines if line["event"] == "open"]
    assert [line["program"].split("/")[0] for line in opened] == ["byokfsctl", "byokfsctl"]
    assert sorted(line["request_id"] for line in lines if line["event"] == "kms") == sorted(
        r["request_id"] for r in seen(devkms, since))
    assert "alias/audit" in [line["key"] for line in lines if line.get("op") == "DescribeKey"]
    assert json.loads(run(CTL, "audit", "verify", "--json", log).out)["chains"] == 1
    # Not beside a mount: two writers would fork the chain.
    (tmp_path / "plain").mkdir()
    daemon = subprocess.Popen([BYOKFS, "-f", "-c", ini, tmp_path / "cipher", tmp_path / "plain"], env=environment())
    try:
        wait_until(lambda: os.path.ismount(tmp_path / "plain"))
        r = run(CTL, "test", "-c", ini, tmp_path / "cipher")
        assert r.code == 0 and "warning: the audit file" in r.err and "are not in it" in r.err, r
    finally:
        subprocess.run(["umount", "-l", tmp_path / "plain"], check=False)
        assert daemon.wait(30) == 0
    assert run(CTL, "audit", "verify", log).code == 0
    r = run(CTL, "test", "-c", ini, "-o", "audit.file=/nowhere/audit.log", tmp_path / "cipher")
    assert r.code == CONFIG and "/nowhere/audit.log" in r.out + r.err, r


def test_verify(audited, tmp_path):
    audited.mount()
    put(audited.path("f"), b"x")
    audited.umount()
    report = audited.whole()
    r = audited.verify("--anchor", report["head"])
    assert r.code == 0 and "the chain is whole" in r.out and f"head {report['head']}" in r.out and not r.err
    assert re.search(r"^Decrypt +\d+ ok$", r.out, re.M)
    r = subprocess.run([CTL, "audit", "verify", "-"], stdin=open(audited.audit), capture_output=True, text=True)
    assert r.returncode == 0 and "the chain is whole" in r.stdout
    lines = open(audited.audit).readlines()
    bad = tmp_path / "bad.log"
    bad.write_text("".join(lines).replace('"result":"ok"', '"result":"OK"', 1))
    r = run(CTL, "audit", "verify", bad)
    assert r.code == DAMAGE and re.match(rf"{bad}:\d+: damage: the line before was changed", r.out), r
    found = json.loads(run(CTL, "audit", "verify", "--json", bad).out)
    assert found["code"] == DAMAGE and found["damage"] == 1 and found["findings"][0]["file"] == str(bad)
    bad.write_text("".join(lines[:-1]))
    assert run(CTL, "audit", "verify", bad).code == 0
    r = run(CTL, "audit", "verify", bad, f"--anchor={report['head']}")
    assert r.code == DAMAGE and "no line has the anchor's hash" in r.out
    assert run(CTL, "audit", "verify", tmp_path / "none").code == 1
    bad.write_text("".join(lines[2:]))
    before = hashlib.sha256(lines[1].rstrip("\n").encode()).hexdigest()
    r = run(CTL, "audit", "verify", bad, f"--anchor={before}")
    assert r.code == DAMAGE and "note: the anchor is the hash that the first line gives" in r.out, r
    assert not json.loads(run(CTL, "audit", "verify", "--json", bad, f"--anchor={before}").out)["anchored"]
    for args in (["verify"], ["prove", bad], ["verify", bad, "--anchor=12"], []):
        assert run(CTL, "audit", *args).code == USAGE


def test_verify_prints_no_escapes(audited, tmp_path):
    """Whoever forges a whole chain must not reach the terminal of who verifies it."""
    audited.mount()
    audited.umount()
    lines = open(audited.audit).read().splitlines()
    bad = tmp_path / "bad.log"
    for op in (r"\u001b]0;owned\u0007", r"x\nthe chain is whole", "a;b"):
        texts, prev = [], "0" * 64
        for line in lines:
            forged = re.sub(r'"op":"[A-Za-z]+"', lambda m, op=op: f'"op":"{op}"', line)
            texts.append(re.sub(r'"prev":"[0-9a-f]{64}"', f'"prev":"{prev}"', forged))
            prev = hashlib.sha256(texts[-1].encode()).hexdigest()
        bad.write_text("\n".join(texts) + "\n")
        r = run(CTL, "audit", "verify", bad)
        assert r.code == DAMAGE and "not a line of an audit" in r.out and "the chain is whole" not in r.out, r
        assert all(c.isprintable() or c == "\n" for c in r.out + r.err) and "owned" not in r.out and ";b" not in r.out, r
