"""byokfsctl rotate and history on a store that is not mounted: every sealed key goes to another key of the KMS."""
import json
import os
import random
import signal
import subprocess
import time

import pytest

from conftest import CTL, wait_until
from programs import ALREADY, CONFIG, DAMAGE, DENIED, NOT_A_STORE, UNREACHABLE, USAGE, Ran, said
from rotation import (Content, backing_files, end, history, key_hash, killed_after, make_shop, new_key, new_material, one_kms, reencrypts,
                      rotate, slots_of, start_rotate, tree_hash, under, with_key)
from test_vault import Vault


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    yield from one_kms(tmp_path_factory)


@pytest.fixture
def shop(kms, make_mount):
    yield from make_shop(kms, make_mount, mounted=False)


def opens_under(m, key):
    with_key(m, key)
    m.mount()
    m.content.verify(m)
    m.umount()


# ---- to another key

@pytest.mark.sanitizer
@pytest.mark.parametrize("init", [("--seal=file",), ("--seal=domain",), ("--plain-names", "--suite=2")], ids=["file", "domain", "plain"])
def test_every_key_goes(shop, kms, init):
    m = shop(init=init)
    k1, k2 = m.key, new_key(kms)
    times = {f.path: os.stat(f.path).st_mtime_ns for f in backing_files(m.cipher)}
    before = reencrypts(kms)
    r = rotate(m, "--to", k2, "--json", check=0)
    answer = json.loads(r.stdout)
    files = sum(f.ruling.wrap == 1 for f in backing_files(m.cipher))
    assert answer["resealed"] == files == (0 if init == ("--seal=domain",) else len(times))
    assert files + 2 <= reencrypts(kms) - before <= files + 3  # a hard link may be met twice
    assert slots_of(m) == [k2] and under(m.cipher, k2)
    assert times == {f.path: os.stat(f.path).st_mtime_ns for f in backing_files(m.cipher)}
    assert m.ctl("check", m.cipher).returncode == 0
    job, = history(m)
    assert job["outcome"] == "done" and job["to"] == k2 and job["domains"][0]["from"] == k1 and job["resealed"] == files
    kms.disable(k1)
    opens_under(m, k2)
    kms.enable(k1)
    said(Ran(rotate(m, "--to", k2)), ALREADY, "already")


def test_many_directories_and_few_descriptors(shop, kms):
    """A wide tree and a deep one, with 300 descriptors at most."""
    m, k2 = shop(4), new_key(kms)
    m.mount()
    for i in range(300):
        m.content.write(m, f"wide/{i}/f", 3)
    m.content.write(m, "deep/" + "d/" * 330 + "f", 3)
    m.umount()
    p = subprocess.run(["prlimit", "--nofile=300:300", CTL, "rotate", "-c", m.ini, "--to", k2, m.cipher], env=m.environment(),
                       capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stderr
    assert slots_of(m) == [k2] and under(m.cipher, k2)
    kms.disable(m.key)
    opens_under(m, k2)  # paths in the store are longer than PATH_MAX there


def test_alias_is_pinned(shop, kms):
    m, k2 = shop(4), new_key(kms)
    kms.client.create_alias(AliasName="alias/next", TargetKeyId=k2)
    rotate(m, "--to", "alias/next", check=0)
    assert slots_of(m) == [k2] and under(m.cipher, k2)


def test_dry_run_changes_nothing(shop, kms):
    m, k2 = shop(), new_key(kms)
    before, asked = tree_hash(m.cipher), reencrypts(kms)
    answer = json.loads(rotate(m, "--to", k2, "--dry-run", "--json", check=0).stdout)
    assert tree_hash(m.cipher) == before and reencrypts(kms) == asked
    files = len(list(backing_files(m.cipher)))
    assert answer["to_do"] in (files, files + 1) and answer["requests_needed"] == answer["to_do"] + 2  # a hard link counts twice
    assert answer["dry_run"] and answer["resealed"] == 0
    text = rotate(m, "--to", k2, "--dry-run", check=0).stdout
    assert f"from {m.key}" in text and "list price" in text
    assert "rotate.lock" not in os.listdir(os.path.join(m.cipher, ".byokfs"))


def test_nested_domains(shop, kms):
    m, k2, k3 = shop(4), new_key(kms), new_key(kms)
    m.mount()
    for name, key in (("same", m.key), ("other", k3)):
        os.mkdir(m.path(name))
        m.ctl("domain", "add", m.path(name), "--key", key, check=True)
        for i in range(5):
            m.content.write(m, f"{name}/x{i}", 3000)
    m.umount()
    rotate(m, "--to", k2, check=0)
    # without --domain: those that are under the store's own key
    assert slots_of(m) == [k2] and slots_of(m, 1) == [k2] and slots_of(m, 2) == [k3]
    assert sum(f.ruling.key == key_hash(k3) for f in backing_files(m.cipher)) == 5
    kms.disable(m.key)
    opens_under(m, k2)
    rotate(m, "--to", k2, "--domain", "2", check=0)
    assert slots_of(m, 2) == [k2] and under(m.cipher, k2)
    kms.disable(k3)
    opens_under(m, k2)
    said(Ran(rotate(m, "--to", k2, "--domain", "all")), ALREADY)
    said(Ran(rotate(m, "--to", k2, "--domain", "7")), USAGE, "'7'")


def test_new_context_pairs_come_with_it(shop, kms):
    m, k2 = shop(6), new_key(kms)
    kms.stats()
    rotate(m, "--to", k2, "-o", "kms.context=tenant:a,cost:7", check=0)
    last = [r for r in kms.stats()["requests"] if r["operation"] == "ReEncrypt"][-1]
    assert "tenant" not in last["context"] and last["destination_context"]["tenant"] == "a"
    assert {f.ruling.generation for f in backing_files(m.cipher)} == {2}
    opens_under(m, k2)


def test_same_key_new_material(shop, kms):
    m = shop()
    said(Ran(rotate(m, "--same-key")), ALREADY, "newest material")
    old = {f.material for f in backing_files(m.cipher)}
    new_material(kms, m.key)
    m.mount()
    m.content.write(m, "later", 100)
    m.umount()
    answer = json.loads(rotate(m, "--same-key", "--json", check=0).stdout)
    assert answer["done"] == 1
    new = {f.material for f in backing_files(m.cipher)}
    assert len(new) == 1 and not new & old and under(m.cipher, m.key)
    assert history(m)[-1]["kind"] == "same-key"
    said(Ran(rotate(m, "--same-key", "--to", m.key)), ALREADY, "newest material")
    said(Ran(rotate(m, "--same-key", "--to", new_key(kms))), USAGE, "--same-key")
    opens_under(m, m.key)


@pytest.mark.parametrize("live", [False, True])
def test_same_key_gets_new_material_half_way(shop, kms, live):
    m = shop()
    if live:
        m.mount()
    new_material(kms, m.key)
    killed_after(m, kms, 7, "--same-key", "--jobs", "2")
    half = {f.material for f in backing_files(m.cipher) if f.born}
    assert len(half) == 2
    killed_after(m, kms, 9, "--same-key", "--jobs", "2")  # the same material: it goes on where it was
    new_material(kms, m.key)
    rotate(m, "--same-key", check=0)
    assert slots_of(m) == [m.key] and under(m.cipher, m.key)
    newest = {f.material for f in backing_files(m.cipher) if f.born}
    assert len(newest) == 1 and not newest & half
    # while it runs: it ends, and the next run brings it home
    before = reencrypts(kms)
    new_material(kms, m.key)
    kms.fault(operations=["ReEncrypt"], latency_ms=60)
    p = start_rotate(m, "--same-key", "--jobs", "1")
    wait_until(lambda: reencrypts(kms) > before + 5)
    new_material(kms, m.key)
    out, err_text = p.communicate(timeout=60)
    assert p.returncode == 1 and "got new material meanwhile" in err_text, (out, err_text)
    kms.clear()
    rotate(m, "--same-key", check=0)
    assert slots_of(m) == [m.key] and under(m.cipher, m.key)
    assert len({f.material for f in backing_files(m.cipher) if f.born}) == 1
    if not live:
        m.mount()
    m.content.verify(m)


def test_rotator_needs_reencrypt_only(shop, kms):
    """And it says which permission is missing, on which key."""
    m, k2 = shop(5), new_key(kms)
    kms.fault(operations=["Decrypt", "GenerateDataKey", "Encrypt"], deny_access=True)
    rotate(m, "--to", k2, check=0)
    kms.fault(operations=["ReEncrypt"], deny_access=True)
    said(Ran(rotate(m, "--to", m.key, "--from", k2)), DENIED, "kms:ReEncryptFrom", "policy --rotator")
    assert slots_of(m) == [k2]


# ---- what cannot go on, goes on later

def test_killed_at_every_step(shop, kms):
    """The rotator dies when the nth request hangs: everything opens with both keys at hand, and the next run finishes."""
    m, k2 = shop(4), new_key(kms)
    files = len(list(backing_files(m.cipher)))
    for n in range(0, files + 3):
        to, other = (k2, m.key) if slots_of(m)[0] == m.key else (m.key, k2)
        killed_after(m, kms, n, "--to", to, "--from", other, "--jobs", "3")
        slots = slots_of(m)
        assert slots in ([[other]] if n < 2 else [[to, other]] if n < files + 2 else [[to, other], [to]]), n
        if n in (2, 5, files + 1):
            assert history(m)[-1]["outcome"] == "interrupted"
        rotate(m, "--to", to, "--from", other, check=0)
        assert slots_of(m) == [to] and under(m.cipher, to), n
    opens_under(m, slots_of(m)[0])


def test_killed_at_any_time(shop, kms):
    m, k2 = shop(25), new_key(kms)
    rng = random.Random(7)
    kms.fault(operations=["ReEncrypt"], latency_ms=1, jitter_ms=4)
    for _ in range(12):
        to, other = (k2, m.key) if slots_of(m)[0] == m.key else (m.key, k2)
        p = start_rotate(m, "--to", to, "--from", other, "--jobs", "4")
        time.sleep(rng.uniform(0.0, 0.15))
        p.kill()
        p.communicate()
        r = rotate(m, "--to", to, "--from", other)
        assert r.returncode in (0, ALREADY), r.stderr
        assert slots_of(m) == [to] and under(m.cipher, to)
    opens_under(m, slots_of(m)[0])


@pytest.mark.parametrize("fault,code", [
    ({"error_type": "DisabledException"}, DENIED), ({"error_status": 500, "error_type": "KMSInternalException"}, UNREACHABLE),
    ({"deny_access": True}, DENIED)], ids=["disabled", "5xx", "denied"])
def test_kms_fails_half_way(shop, kms, fault, code):
    m, k2 = shop(12), new_key(kms)
    kms.fault_list([{"operations": ["ReEncrypt"], "count": 8}, {"operations": ["ReEncrypt"], **fault}])
    r = said(Ran(rotate(m, "--to", k2, "--patience", "1s", "-o", "kms.request_timeout=500ms")), code, "the same command goes on")
    assert slots_of(m) == [k2, m.key] and "not finished" in r.out
    assert history(m)[-1]["outcome"] == "failed" and history(m)[-1]["why"]
    kms.clear()
    rotate(m, "--to", k2, check=0)
    assert under(m.cipher, k2) and slots_of(m) == [k2]
    assert [j["outcome"] for j in history(m)].count("done") == 1
    opens_under(m, k2)


def test_throttled(shop, kms):
    m, k2 = shop(25), new_key(kms)
    kms.fault(operations=["ReEncrypt"], error_type="ThrottlingException", error_rate=0.1)
    answer = json.loads(rotate(m, "--to", k2, "--json", check=0).stdout)
    assert under(m.cipher, k2) and answer["requests"] >= answer["resealed"] + 3


def test_rate(shop, kms):
    m, k2 = shop(12), new_key(kms)
    begin = time.monotonic()
    rotate(m, "--to", k2, "--rate", "20", check=0)
    files = len(list(backing_files(m.cipher)))
    assert time.monotonic() - begin >= (files - 3) / 20  # a rate is a promise


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(shop, kms, sig):
    m, k2 = shop(25), new_key(kms)
    kms.fault(operations=["ReEncrypt"], latency_ms=100)
    before = reencrypts(kms)
    p = start_rotate(m, "--to", k2, "--jobs", "2")
    wait_until(lambda: reencrypts(kms) > before + 5)
    code, out, err = end(p, sig)
    assert code == 1 and "stopped by a signal" in err and "the same command goes on" in err
    assert history(m)[-1]["outcome"] == "stopped" and slots_of(m) == [k2, m.key]
    # what was under way has been installed: no answer of the KMS was thrown away
    done = sum(f.ruling.key == key_hash(k2) for f in backing_files(m.cipher))
    assert done == reencrypts(kms) - before - 2
    kms.clear()
    rotate(m, "--to", k2, check=0)
    assert under(m.cipher, k2)


def test_turning_round_and_third_key(shop, kms):
    m, k2, k3 = shop(12), new_key(kms), new_key(kms)
    killed_after(m, kms, 6, "--to", k2)
    assert slots_of(m) == [k2, m.key]
    said(Ran(rotate(m, "--to", k3)), ALREADY, "under way", "turn round")
    rotate(m, "--to", m.key, "--from", k2, check=0)
    assert slots_of(m) == [m.key] and under(m.cipher, m.key)
    kms.disable(k2)
    opens_under(m, m.key)


def test_a_key_that_only_the_store_names_is_not_asked(shop, kms):
    m, k2, k3 = shop(4), new_key(kms), new_key(kms)
    before, asked = tree_hash(os.path.join(m.cipher, ".byokfs", "domains")), reencrypts(kms)
    said(Ran(rotate(m, "--to", k2, "-o", f"kms.key={k3}")), CONFIG, "--from", m.key)
    assert tree_hash(os.path.join(m.cipher, ".byokfs", "domains")) == before and reencrypts(kms) == asked
    rotate(m, "--to", k2, "-o", f"kms.key={k3}", "--from", m.key, check=0)


# ---- what is not as it should be

def test_damaged_unborn_and_foreign_files(shop, kms):
    m, k2 = shop(8), new_key(kms)
    files = [f.path for f in backing_files(m.cipher) if os.stat(f.path).st_nlink == 1]
    with open(files[0], "r+b") as f:      # page 0 is no page 0
        f.write(b"\xff" * 8)
    with open(files[1], "r+b") as f:      # the sealed key is damaged, its checksum is right
        page = bytearray(f.read(4096))
        page[512 + 100] ^= 1
        page[1020:1024] = crc32c(page[512:1020])
        f.seek(0)
        f.write(page)
    os.truncate(files[2], 0)              # never born
    open(os.path.join(m.cipher, ".byokfs.tmp.0123456789abcdef"), "w").close()
    open(os.path.join(m.cipher, "stray"), "w").write("x" * 5000)
    r = rotate(m, "--to", k2, "--json", check=DAMAGE)
    answer = json.loads(r.stdout)
    assert (answer["damaged"], answer["unborn"], answer["unknown"], answer["failed"]) == (3, 1, 0, 0)
    assert {f["kind"] for f in answer["findings"]} == {"damaged"} and len(answer["findings"]) == 3
    assert slots_of(m) == [k2]  # the job is done all the same
    bad = set(files[:3]) | {os.path.join(m.cipher, "stray")}
    assert all(f.ruling.key == key_hash(k2) and not f.other.filled for f in backing_files(m.cipher) if f.path not in bad)
    assert history(m)[-1]["damaged"] == 3 and history(m)[-1]["outcome"] == "done"


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def test_file_from_a_backup_under_an_older_key(shop, kms):
    """It is reported, and the job is not finished until its key is named."""
    m, k2, k3 = shop(6), new_key(kms), new_key(kms)
    old = next(f.path for f in backing_files(m.cipher) if os.stat(f.path).st_nlink == 1)
    with open(old, "rb") as f:
        backup = f.read()
    rotate(m, "--to", k2, check=0)
    with open(old, "r+b") as f:
        f.write(backup)
    r = said(Ran(rotate(m, "--to", k3, "-o", f"kms.key={k2}")), 1, "another key", "--from")
    assert slots_of(m) == [k3, k2] and "both keys are still needed" in r.err
    assert sum(f.other.filled for f in backing_files(m.cipher)) > 0  # old slots stay
    rotate(m, "--to", k3, "--from", m.key, "-o", f"kms.key={k2}", check=0)
    assert slots_of(m) == [k3] and under(m.cipher, k3)
    # once more, after the rotation is over
    with open(old, "r+b") as f:
        f.write(backup)
    rotate(m, "--to", k3, "--from", m.key, check=0)
    assert under(m.cipher, k3)
    opens_under(m, k3)


def test_two_rotators_and_a_lock_that_is_held(shop, kms):
    m, k2 = shop(20), new_key(kms)
    kms.fault(operations=["ReEncrypt"], latency_ms=200)
    p = start_rotate(m, "--to", k2, "--jobs", "1")
    wait_until(lambda: len(slots_of(m)) == 2)
    said(Ran(rotate(m, "--to", k2)), ALREADY, "under way", f"process {p.pid}")
    assert history(m)[-1]["outcome"] == "running"
    assert "under way" in m.ctl("info", m.cipher).stdout
    assert "under way" in m.ctl("check", m.cipher).stdout
    kms.clear()
    out, err = p.communicate(timeout=60)
    assert p.returncode == 0, err
    assert under(m.cipher, k2) and history(m)[-1]["outcome"] == "done"
    assert "under way" not in m.ctl("info", m.cipher).stdout
    holder = m.cipher + "/.byokfs/lock"
    with open(holder, "r+b") as f:
        import fcntl
        import struct
        fcntl.fcntl(f, 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))  # F_OFD_SETLK
        said(Ran(rotate(m, "--to", m.key, "--from", k2)), ALREADY, "holds")


def test_wrong_use(shop, kms, tmp_path):
    m, k2 = shop(2), new_key(kms)
    for args, words in (([], "--to"), (["--to", k2, "--jobs", "0"], "'0'"), (["--to", k2, "--jobs", "x"], "'x'"),
                        (["--to", k2, "--rate", "-1"], "'-1'"), (["--to", k2, "--patience", "5"], "'5'"),
                        (["--to", k2, "--patience", "25h"], "'25h'")):
        said(Ran(rotate(m, *args)), USAGE, words)
    said(Ran(rotate(m, "--to", k2, path=str(tmp_path))), NOT_A_STORE)
    said(Ran(rotate(m, "--to", k2, path=str(tmp_path / "none"))), NOT_A_STORE)
    kms.disable(k2)
    said(Ran(rotate(m, "--to", k2)), DENIED, "Disabled")
    r = Ran(rotate(m, "--to", "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"))
    said(r, CONFIG, "Region", "--through-host")
    said(Ran(rotate(m, "--to", k2, "-o", "kms.provider=keyfile,keyfile.path=/dev/null")), CONFIG, "one key only")
    assert slots_of(m) == [m.key] and not history(m)


def test_read_only_store(shop, kms, tmp_path):
    m, k2 = shop(2), new_key(kms)
    view = tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", m.cipher, view], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", view], check=True)
        said(Ran(rotate(m, "--to", k2, path=str(view))), 1, "Read-only")
        rotate(m, "--to", k2, "--dry-run", path=str(view), check=0)
    finally:
        subprocess.run(["umount", view], check=True)
    assert slots_of(m) == [m.key]


def test_through_host(shop, kms):
    """Two Regions, which the KMS does not re-encrypt between."""
    m = shop(8)
    with kms_in(kms, "eu-west-1") as eu:
        k2 = eu.create_key(Description="eu")["KeyMetadata"]["Arn"]
    said(Ran(rotate(m, "--to", k2)), CONFIG, "--through-host")
    r = rotate(m, "--to", k2, "--through-host", check=0)
    assert "memory for a moment" in r.stderr
    assert slots_of(m) == [k2] and under(m.cipher, k2) and history(m)[-1]["through_host"]
    opens_under(m, k2)


def test_vault_through_host(kms, make_mount, tmp_path):
    kms.clear()
    vault = Vault(kms, tmp_path, key="one")
    vault.call("POST", "transit/keys/two")
    vault.allow(**{f"transit/{verb}/two": ["update"] for verb in ("encrypt", "decrypt")}, **{"transit/keys/two": ["read"]})
    vault.new_token()
    m = make_mount("v", kms, ini=vault.ini()).mount()
    m.content = Content().make(m, 6)
    m.umount()
    one, two = "vault:transit/keys/one", "vault:transit/keys/two"
    said(Ran(rotate(m, "--to", "two")), CONFIG, "cannot re-encrypt", "--through-host")
    rotate(m, "--to", "two", "--through-host", check=0)
    assert slots_of(m) == [two] and under(m.cipher, two)
    with open(m.ini) as f:
        text = f.read().replace("key = one", "key = two")
    with open(m.ini, "w") as f:
        f.write(text)
    m.mount()
    m.content.verify(m)
    old = {f.material for f in backing_files(m.cipher)}
    vault.call("POST", "transit/keys/two/rotate")
    rotate(m, "--same-key", "--through-host", path=m.plain, check=0)
    assert not old & {f.material for f in backing_files(m.cipher)}
    rotate(m, "--to", "one", "--through-host", path=m.plain, check=0)
    assert slots_of(m) == [one] and under(m.cipher, one)
    m.content.verify(m)


class kms_in:
    """A client for another Region of the same server."""

    def __init__(self, kms, region):
        import boto3
        from conftest import AK, SK
        self.client = boto3.client("kms", region_name=region, endpoint_url=kms.endpoint, aws_access_key_id=AK,
                                   aws_secret_access_key=SK)

    def __enter__(self):
        return self.client

    def __exit__(self, *args):
        self.client.close()


# ---- history

def test_history_of_hostile_records(shop, kms):
    m = shop(2)
    assert "no rotation yet" in m.ctl("history", m.cipher, check=True).stdout
    rotate(m, "--to", new_key(kms), check=0)
    jobs = os.path.join(m.cipher, ".byokfs", "jobs")
    good, = os.listdir(jobs)
    with open(os.path.join(jobs, good), "rb") as f:
        text = f.read()
    bad = {"20200101T000000Z-00000001": b"", "20200101T000000Z-00000002": text, "20200101T000000Z-00000003": text[:-9],
           "20200101T000000Z-00000004": text.replace(b"root", b"r\x1bot")}
    for name, content in bad.items():
        with open(os.path.join(jobs, name), "wb") as f:
            f.write(content)
    os.mkfifo(os.path.join(jobs, "20200101T000000Z-00000005"))
    os.symlink("/etc/passwd", os.path.join(jobs, "20200101T000000Z-00000006"))
    open(os.path.join(jobs, "nonsense"), "w").close()
    r = m.ctl("history", m.cipher, check=True)
    assert r.stderr.count("damaged") == 6 and r.stdout.count(" done ") == 1 and "\x1b" not in r.stdout + r.stderr
    answer = json.loads(m.ctl("history", "--json", m.cipher, check=True).stdout)
    assert answer["damaged"] == 6 and len(answer["jobs"]) == 1
    check = m.ctl("check", m.cipher)
    assert check.returncode == 0 and "jobs/20200101T000000Z-00000003" in check.stdout
