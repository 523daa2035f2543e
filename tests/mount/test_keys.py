"""`byokfsctl keys`: which KMS keys a store or a copy of it depends on, told without any key; and the alert on their age."""
import base64
import calendar
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

import pytest

from conftest import CTL, Devkms, Mount, environment, wait_until
from damage import SLOT_A, SLOT_B, backing_of, read, replace, with_sum, write, zero

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reader"))
import byokfs_reader as reader  # noqa: E402

OK, FAILED, USAGE, CONFIG, NOT_A_STORE, DAMAGE = 0, 1, 2, 3, 4, 7
NEW = "arn:aws:kms:us-east-1:111122223333:key/99999999-0000-4000-8000-000000000000"
OTHER = "arn:aws:kms:us-east-1:111122223333:key/88888888-0000-4000-8000-000000000000"
MRK = "arn:aws:kms:us-east-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef"
SIBLING = MRK.replace("us-east-1", "eu-central-1")
DAY = 86400


def ctl(*args):
    return subprocess.run([CTL, "keys", *args], env=environment(), capture_output=True, text=True, timeout=60)


def report(*args, code=OK):
    r = ctl("--json", *args)
    assert r.returncode == code, (r.stdout, r.stderr)
    return json.loads(r.stdout)


def facts(answer):
    """Without the examples: which file of a key is met first is chance."""
    return [{**k, "materials": [{**m, "example": "example" in m} for m in k["materials"]]} for k in answer["keys"]], answer.get("files")


def needs(store, key, *more):
    """The exit code; the text and the JSON must say the same."""
    text, machine = ctl(str(store), "--needs", key, *more), ctl(str(store), "--needs", key, "--json", *more)
    assert text.returncode == machine.returncode, (text, machine)
    answer = json.loads(machine.stdout)["needs"]["answer"]
    if text.returncode == OK:
        assert text.stdout == "not needed\n" and not text.stderr and answer == "not needed", text
    else:
        assert "not needed" not in text.stdout + text.stderr and answer in ("needed", "unsure"), text
        assert (answer == "needed") == text.stdout.startswith("needed: "), text
    return text


class Keys:
    """A report's keys by name, with sums over their materials."""

    def __init__(self, answer):
        self.answer = answer
        self.by_name = {k["key"]: k for k in answer["keys"]}

    def sum(self, name, what):
        return sum(m[what]["count"] for m in self.by_name[name]["materials"])

    def domains(self, name):
        return sorted((d["index"], d["ruling"]) for m in self.by_name[name]["materials"] for d in m["domains"])


# ---- stores, and edits of them by whoever owns the storage

def key_hash(name):
    return hashlib.sha256(name.encode()).digest()[:8]


def slot(seq, key, sealed=1700000000, material=b"", wrap=1, provider=1, blob=b"sealed" * 20):
    s = struct.pack("<IBBHHB5x", seq, 1, wrap, 1 if wrap == 1 else 0, len(blob), provider) + (key_hash(key) if key else bytes(8))
    s = ((s + struct.pack("<Q", sealed)).ljust(32, b"\0") + material.ljust(32, b"\0") + blob).ljust(508, b"\0")
    return s + struct.pack("<I", reader.crc32c(s))


def reseal(path, key, **kw):
    """As a rotation does: the inactive slot, with a higher seq."""
    a, b = (struct.unpack("<I", read(path, at, 4))[0] for at in (SLOT_A, SLOT_B))
    write(path, SLOT_B if a > b else SLOT_A, slot(max(a, b) + 1, key, **kw))


def descriptors(store, index=0):
    """Both copies of a domain's descriptor."""
    directory = os.path.join(store, ".byokfs", "domains")
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "rb") as f:
            if b"\nindex=%d\n" % index in f.read():
                yield os.path.join(directory, name)


def rewrite(path, edit):
    with open(path, "rb") as f:
        text = edit(f.read())
    replace(path, lambda p: open(p, "wb").write(with_sum(text)))


def begin(text, key=NEW):
    """A rotation has begun: slot b under another key rules."""
    lines = re.search(rb"(?m)^a\.seq=(?s:.*?)(?=^b\.seq|^sum=)", text)[0]
    seq = int(re.search(rb"a\.seq=(\d+)", lines)[1])
    b = re.sub(rb"(?m)^a\.", b"b.", lines).replace(b"b.seq=%d" % seq, b"b.seq=%d" % (seq + 1))
    b = re.sub(rb"b\.key=.*", b"b.key=" + key.encode(), b)
    return text[:text.index(b"sum=")] + b + b"sum="


def finish(text):
    """It has ended: the old slot is empty."""
    return re.sub(rb"(?m)^a\.seq=(?s:.*?)(?=^b\.seq)", b"", text)


def field(name, value):
    return lambda text: re.sub(rb"(?m)^" + name + rb"=.*$", name + b"=" + value, text)


def ago(days):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - days * DAY)).encode()


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Domain 0: four files, one of them with two names, and links; domain 1 under a key of its own; domain 2 under a third,
    whose files are wrapped by it."""
    base = tmp_path_factory.mktemp("template")
    kms = Devkms(base / "devkms")
    m = Mount(base, kms)
    try:
        m.mount()
        m.extra = [kms.client.create_key()["KeyMetadata"]["Arn"] for _ in range(2)]
        os.mkdir(m.path("deep"))
        for name in ("one", "two", "deep/three", "deep/" + "long" * 60):
            with open(m.path(name), "w") as f:
                f.write(name)
        os.link(m.path("one"), m.path("deep", "again"))
        os.symlink("one", m.path("link"))
        for i, seal in enumerate(("file", "domain")):
            os.mkdir(m.path(seal))
            r = m.ctl("domain", "add", m.path(seal), "--key", m.extra[i], "--seal=" + seal)
            assert r.returncode == 0, r.stderr
            for name in "ab":
                with open(m.path(seal, name), "w") as f:
                    f.write(name)
        m.files = {name: os.path.relpath(backing_of(m, *name.split("/")), m.cipher)
                   for name in ("one", "two", "deep/three", "file/a", "domain/a")}
        m.umount()
        yield m
    finally:
        m.close()
        kms.stop()


class Copy:
    def __init__(self, template, path):
        subprocess.run(["cp", "-a", template.cipher, path], check=True)
        self.path, self.keys = str(path), [template.kms.key, *template.extra]
        self.files = {name: os.path.join(self.path, at) for name, at in template.files.items()}

    def everything(self):
        """All there is, to tell whether it was touched."""
        out = {}
        for parent, dirs, files in os.walk(self.path):
            for name in [".", *dirs, *files]:
                st = os.lstat(os.path.join(parent, name))
                out[os.path.join(parent, name)] = (st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
        return out

    def all_files(self):
        return [os.path.join(parent, name) for parent, _, files in os.walk(self.path) for name in files
                if ".byokfs" not in os.path.relpath(parent, self.path) and not os.path.islink(os.path.join(parent, name))]


@pytest.fixture
def copy(template, tmp_path):
    return Copy(template, tmp_path / "copy")


# ---- the inventory

def test_inventory(template, copy):
    before = copy.everything()
    answer = report(copy.path)
    keys = Keys(answer)
    assert copy.everything() == before
    assert set(keys.by_name) == set(copy.keys)
    assert [keys.sum(k, "files") for k in copy.keys] == [4, 2, 0]
    assert [keys.sum(k, "superseded") for k in copy.keys] == [0, 0, 0]
    assert [keys.domains(k) for k in copy.keys] == [[(0, True)], [(1, True)], [(2, True)]]
    assert all(k["needed"] and k["provider"] == "aws" and k["hash"] == key_hash(k["key"]).hex() for k in answer["keys"])
    assert answer["files"] == {"total": 8, "sealed_by_kms": 6, "sealed_by_domain": 2, "unborn": 0, "damaged": 0, "unreadable": 0,
                               "other_filesystems": 0, "quarantined": 0}
    assert answer["complete"] and not answer["in_use"] and not answer["changed"] and not answer["authenticated"]
    assert [d["key_age_days"] for d in answer["domains"]] == [0, 0, 0]
    material = keys.by_name[copy.keys[0]]["materials"][0]
    assert re.fullmatch("[0-9a-f]{64}", material["material"]) and material["files"]["oldest_days"] == 0
    assert os.path.join(copy.path, material["example"]) in copy.all_files()
    # for people
    r = ctl(copy.path)
    assert r.returncode == OK and not r.stderr and all(f"key       {k}\n  provider  aws\n  needed    yes\n" in r.stdout for k in copy.keys)
    assert "files     8: 6 sealed by KMS keys, 2 by their domain's key, 0 unborn, 0 damaged, 0 unreadable" in r.stdout
    # one thread or many, files or not
    assert facts(report(copy.path, "--jobs", "1")) == facts(report(copy.path, "--jobs=64")) == facts(answer)
    short = report(copy.path, "--descriptors")
    assert "files" not in short and {k["key"] for k in short["keys"]} == set(copy.keys)


def test_a_backup_on_read_only_media(template, copy, tmp_path):
    where = str(tmp_path / "backup")
    subprocess.run(["cp", "-a", copy.path, where], check=True)
    subprocess.run(["mount", "--bind", where, where], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", where], check=True)
        with pytest.raises(OSError):
            open(os.path.join(where, "x"), "w")
        answer, original = report(where), report(copy.path)
        assert facts(answer) == facts(original) and not answer["in_use"]
        assert needs(where, copy.keys[1]).returncode == FAILED and needs(where, NEW).returncode == OK
    finally:
        subprocess.run(["umount", where], check=True)


def test_while_mounted(make_mount, devkms):
    m = make_mount("m", devkms).mount()
    for i in range(5):
        with open(m.path(str(i)), "w") as f:
            f.write("x")
    answer = report(m.cipher)
    assert answer["in_use"] and answer["complete"] and Keys(answer).sum(devkms.key, "files") == 5
    assert needs(m.cipher, devkms.key).returncode == FAILED and needs(m.cipher, NEW).returncode == OK
    m.umount()
    assert not report(m.cipher)["in_use"]


def test_a_store_in_use_that_changes_all_the_time(make_mount, devkms):
    """Files come, go and move while it is read: that is no damage."""
    m = make_mount("m", devkms).mount()
    for d in range(4):
        os.mkdir(m.path(str(d)))
    script = "i=0; while :; do i=$((i+1)); echo $i >0/$i; mv 0/$i $((i%3+1))/f; mkdir 0/d$i; echo >0/d$i/f; rm -r 0/d$i; cp 1/f 2/g 2>/dev/null; rm -f 2/g; done"
    busy = subprocess.Popen(["sh", "-c", script], cwd=m.plain, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: os.path.exists(m.path("3", "f")))
        for _ in range(20):
            assert needs(m.cipher, NEW).returncode == OK
            assert report(m.cipher)["complete"]
    finally:
        busy.kill()
        busy.wait()


def test_hashes_without_names(copy):
    reseal(copy.files["one"], OTHER)
    reseal(copy.files["two"], NEW, material=b"\x01")
    reseal(copy.files["deep/three"], NEW, material=b"\x02")
    r = ctl(copy.path)
    assert r.returncode == OK
    for key in (NEW, OTHER):
        assert f"key       unknown key (hash {key_hash(key).hex()})\n" in r.stdout
    assert [k["hash"] for k in report(copy.path)["keys"] if not k["key"]].count(key_hash(NEW).hex()) == 1
    keys = Keys(report(copy.path, "--key", NEW, "--key=" + OTHER))
    assert keys.sum(NEW, "files") == 2 and len(keys.by_name[NEW]["materials"]) == 2 and keys.sum(OTHER, "files") == 1
    assert keys.sum(copy.keys[0], "superseded") == 3
    assert needs(copy.path, OTHER).returncode == FAILED  # whoever named it or not
    # what a rotation's record names
    os.mkdir(os.path.join(copy.path, ".byokfs", "jobs"))
    with open(os.path.join(copy.path, ".byokfs", "jobs", "1"), "w") as f:
        f.write(f"byokfs-job 1\ndomain=0 {16 * '00'} {NEW}\nto={OTHER}\n")
    os.mkfifo(os.path.join(copy.path, ".byokfs", "jobs", "2"))
    keys = Keys(report(copy.path))
    assert keys.sum(OTHER, "files") == 1 and keys.sum(NEW, "files") == 2


# ---- is it needed?

def test_needs(copy):
    r = needs(copy.path, copy.keys[0])
    assert r.returncode == FAILED and r.stdout.startswith("needed: 4 files and 1 slots of key domains"), r.stdout
    assert os.path.join(copy.path, re.search("such as '(.*)'", r.stdout)[1]) in copy.all_files()
    assert needs(copy.path, copy.keys[1]).returncode == FAILED
    assert needs(copy.path, copy.keys[2]).returncode == FAILED  # no file names it: their domain does
    assert needs(copy.path, NEW).returncode == OK
    assert needs(copy.path, copy.keys[0].replace("us-east-1", "us-east-2")).returncode == OK


@pytest.mark.parametrize("name", [
    "", "alias/customer", "12345678-1234-1234-1234-123456789012", "mrk-0123456789abcdef0123456789abcdef", "key", "arn:", "arn:aws:kms",
    NEW.replace("key/", "alias/"), NEW + " ", " " + NEW, NEW.replace("99999999", "ABCDEF99"), NEW.replace("kms", "s3"), NEW + "/x",
    NEW.replace("us-east-1", "US-EAST-1"), NEW.replace("111122223333", ""), NEW + "\n", "vault:key", "keyfile:", "pkcs11:object=x", "*",
    "keyfile:0123456789ABCDEF", "keyfile:0123456789abcde", "vault:/transit/keys/a", "vault:transit//keys/a", "vault:transit/keys/"])
def test_names_that_stores_do_not_hold(copy, name):
    for option in (["--needs", name], ["--key", name]):
        r = ctl(copy.path, *option)
        assert r.returncode == USAGE and not r.stdout and r.stderr.startswith("byokfsctl: error: ") and "hint: " in r.stderr, r


def test_a_rotation_under_way_and_done(copy):
    old = copy.keys[0]
    for path in descriptors(copy.path):
        rewrite(path, begin)
    keys = Keys(report(copy.path))
    assert keys.domains(NEW) == [(0, True)] and keys.domains(old) == [(0, False)] and keys.by_name[old]["needed"]
    assert "other slot: a rotation is under way" in ctl(copy.path).stdout
    assert needs(copy.path, NEW).returncode == FAILED
    files = [p for p in copy.all_files() if key_hash(old) in read(p, SLOT_A, 512)]
    assert len(files) == 5  # one of them by two names
    last = copy.files["two"]
    for path in {os.stat(p).st_ino: p for p in files if p != last}.values():
        reseal(path, NEW)
    r = needs(copy.path, old)
    assert r.returncode == FAILED and "1 files and 1 slots" in r.stdout and os.path.basename(last) in r.stdout
    reseal(last, NEW)
    r = needs(copy.path, old)
    assert r.returncode == FAILED and "0 files and 1 slots" in r.stdout  # every file is done, the descriptor is not
    first, second = descriptors(copy.path)
    rewrite(first, finish)
    r = needs(copy.path, old)
    assert r.returncode == FAILED and "0 files and 1 slots" in r.stdout  # its other copy still has it
    assert "older copy of the descriptor" in ctl(copy.path).stdout or "rotation is under way" in ctl(copy.path).stdout
    rewrite(second, finish)
    assert needs(copy.path, old).returncode == OK
    keys = Keys(report(copy.path, "--key", old))
    assert keys.sum(old, "superseded") == 4 and not keys.by_name[old]["needed"] and keys.sum(NEW, "files") == 4
    # an old slot put back: the file names it again
    seq = max(struct.unpack("<I", read(last, at, 4))[0] for at in (SLOT_A, SLOT_B))
    write(last, SLOT_A, slot(seq + 1, old))
    assert needs(copy.path, old).returncode == FAILED


def test_an_older_copy_of_the_descriptor(copy):
    """NAME was written, NAME~ was not: what the copy alone names counts."""
    first, second = descriptors(copy.path)
    rewrite(first, lambda t: field(b"seq", b"5")(re.sub(rb"(?m)^a\.key=.*$", b"a.key=" + NEW.encode(), t)))
    keys = Keys(report(copy.path))
    assert keys.domains(NEW) == [(0, True)] and keys.domains(copy.keys[0]) == [(0, False)]
    assert keys.by_name[copy.keys[0]]["materials"][0]["domains"][0]["stale_copy"]


def test_multi_region_keys(copy):
    for path in descriptors(copy.path, 1):
        rewrite(path, lambda t: re.sub(rb"(?m)^a\.key=.*$", b"a.key=" + MRK.encode(), t))
    for path in copy.all_files():
        if key_hash(copy.keys[1]) in read(path, SLOT_A, 512):
            reseal(path, SIBLING)
            zero(path, SLOT_A, 512)
    assert needs(copy.path, SIBLING).returncode == FAILED and needs(copy.path, MRK).returncode == FAILED
    other = MRK.replace("0123456789abcdef0123", "00000000000000000000")
    r = needs(copy.path, other)  # the unknown hash may be a sibling of this one too
    assert r.returncode == FAILED and "could not be told from it" in r.stderr and "--key" in r.stderr
    assert needs(copy.path, other, "--key", SIBLING).returncode == OK
    r = needs(copy.path, MRK, "--key", SIBLING)
    assert r.returncode == FAILED and "2 files and 1 slots" in r.stdout
    assert needs(copy.path, NEW).returncode == OK  # no multi-Region key has that name


def hole(copy, how, tmp_path):
    """Makes what cannot be judged."""
    one = copy.files["one"]
    if how == "both slots":
        zero(one, SLOT_A, 512)
    elif how == "magic":
        zero(one, 0, 8)
    elif how == "cut off":
        os.truncate(one, 700)
    elif how == "no byokfs file":
        with open(os.path.join(copy.path, "README"), "w") as f:
            f.write("x" * 5000)
    elif how == "another store's":
        write(one, 16, bytes(16))
    elif how == "wrapped by an unknown domain's key":
        write(copy.files["domain/a"], 32, bytes(16))
    elif how == "of an unknown domain":  # its name depends on a descriptor that is not there
        write(copy.files["one"], 32, bytes(16))
    elif how == "descriptor":
        for path in descriptors(copy.path, 2):
            os.truncate(path, 100)
    elif how == "one copy of a descriptor":
        os.truncate(next(descriptors(copy.path, 1)), 100)
    elif how == "a copy of the store's":
        os.unlink(os.path.join(copy.path, ".byokfs", "store~"))
    else:
        raise AssertionError(how)


HOLES = ["both slots", "magic", "cut off", "no byokfs file", "another store's", "wrapped by an unknown domain's key",
         "of an unknown domain", "descriptor",
         "one copy of a descriptor", "a copy of the store's"]


@pytest.mark.parametrize("how", HOLES)
def test_never_no_when_something_cannot_be_read(copy, tmp_path, how):
    hole(copy, how, tmp_path)
    r = ctl(copy.path)
    assert r.returncode == DAMAGE and "could be judged" in r.stderr and "key       " in r.stdout
    assert not report(copy.path, code=DAMAGE)["complete"]
    assert needs(copy.path, NEW).returncode == DAMAGE
    assert needs(copy.path, copy.keys[1]).returncode == FAILED  # needed all the same


def test_other_filesystems_within(copy):
    under = os.path.join(os.path.dirname(copy.files["deep/three"]), "mounted")
    os.mkdir(under)
    subprocess.run(["mount", "-t", "tmpfs", "none", under], check=True)
    try:
        assert needs(copy.path, NEW).returncode == DAMAGE
        assert report(copy.path, code=DAMAGE)["files"]["other_filesystems"] == 1
    finally:
        subprocess.run(["umount", under], check=True)
    assert needs(copy.path, NEW).returncode == OK


def test_directories_that_cannot_be_read(copy):
    """As a user who may not: that is no answer."""
    with contextlib.ExitStack() as stack:
        base = tempfile.mkdtemp()
        stack.callback(shutil.rmtree, base)
        os.chmod(base, 0o755)
        shutil.copy(CTL, os.path.join(base, "ctl"))
        subprocess.run(["cp", "-r", "--no-preserve=mode", copy.path, os.path.join(base, "store")], check=True)

        def ask():
            return subprocess.run([os.path.join(base, "ctl"), "keys", os.path.join(base, "store"), "--needs", NEW], cwd="/",
                                  user=65534, group=65534, extra_groups=[], capture_output=True, text=True, env=environment())
        r = ask()
        assert r.returncode == OK and r.stdout == "not needed\n", r
        below = os.path.join(base, "store", os.path.relpath(os.path.dirname(copy.files["deep/three"]), copy.path))
        os.chmod(below, 0)
        r = ask()
        assert r.returncode == DAMAGE and os.path.basename(below) in r.stderr, r
        os.chmod(below, 0o755)
        os.chmod(os.path.join(base, "store", os.path.relpath(copy.files["one"], copy.path)), 0)
        assert ask().returncode == DAMAGE


def test_what_is_no_file_of_the_store(copy):
    """Links, FIFOs, devices are passed over and never opened; work in progress counts; an unborn file depends on nothing."""
    directory = os.path.dirname(copy.files["deep/three"])
    os.mkfifo(os.path.join(directory, "fifo"))
    os.symlink("/etc/passwd", os.path.join(directory, "link"))
    os.symlink(directory, os.path.join(directory, "loop"))
    os.mknod(os.path.join(directory, "device"), 0o600 | 0o20000, os.makedev(1, 5))
    for name in ("empty", ".byokfs.tmp.0000000000000000"):
        open(os.path.join(directory, name), "w").close()
    with open(os.path.join(directory, "zeros"), "wb") as f:
        f.write(bytes(4096))
    answer = report(copy.path)
    assert answer["files"]["unborn"] == 3 and answer["files"]["total"] == 11 and answer["complete"]
    assert needs(copy.path, NEW).returncode == OK
    temporary = os.path.join(directory, ".byokfs.tmp.0123456789abcdef")
    shutil.copy(copy.files["one"], temporary)
    reseal(temporary, NEW)
    r = needs(copy.path, NEW)
    assert r.returncode == FAILED and ".byokfs.tmp.0123456789abcdef" in r.stdout


def test_what_a_repair_put_aside(copy):
    """It is still sealed; what cannot be judged there is no news."""
    aside = os.path.join(copy.path, ".byokfs", "quarantine", "20260101T000000Z")
    os.makedirs(os.path.join(aside, "2"))
    with open(os.path.join(aside, "index"), "w") as f:
        f.write("1 file\n" * 1000)
    for name in ("1", "2/x"):
        shutil.copy(copy.files["one"], os.path.join(aside, name))
    zero(os.path.join(aside, "1"), 0)
    assert needs(copy.path, NEW).returncode == OK
    reseal(os.path.join(aside, "2", "x"), NEW)
    r = needs(copy.path, NEW)
    assert r.returncode == FAILED and "such as '.byokfs/quarantine/20260101T000000Z/2/x'" in r.stdout
    answer = report(copy.path)
    old = int(time.time()) - 100 * DAY
    reseal(os.path.join(aside, "2", "x"), NEW, sealed=old)
    assert ctl(copy.path, "--max-age", "90").returncode == OK  # no rotation gets there
    answer = report(copy.path)
    assert answer["files"]["quarantined"] == 1 and answer["files"]["total"] == 8
    assert "1 files in .byokfs/quarantine" in ctl(copy.path).stdout


def test_one_slot_damaged(copy):
    """The other one opens the file: it says what is needed."""
    reseal(copy.files["one"], NEW)
    assert needs(copy.path, NEW).returncode == FAILED
    write(copy.files["one"], SLOT_B + 100, b"damage")
    assert needs(copy.path, NEW).returncode == OK
    assert Keys(report(copy.path)).sum(copy.keys[0], "files") == 4


def test_wrong_use(copy, tmp_path):
    for args in ([], [copy.path, "x"], [copy.path, "--needs"], [copy.path, "--needs", NEW, "--needs", NEW], [copy.path, "--jobs", "0"],
                 [copy.path, "--jobs", "65"], [copy.path, "--jobs", "-1"], [copy.path, "--jobs", "2x"], [copy.path, "--max-age", "0"],
                 [copy.path, "--max-age", "90d"], [copy.path, "--alert", "--max-age", "9"], [copy.path, "--needs", NEW, "--alert"],
                 [copy.path, "--needs", NEW, "--descriptors"], [copy.path, "--instances", "/etc"], ["--needs", NEW],
                 [copy.path, "-o", "alert.key_age_days=1"], [copy.path, *["--key", NEW] * 17]):
        r = ctl(*args)
        assert r.returncode == USAGE and r.stderr.startswith("byokfsctl: error: ") and not r.stdout, (args, r)
    assert report(copy.path, *["--key", NEW] * 16)["complete"]
    assert ctl(str(tmp_path)).returncode == NOT_A_STORE and ctl("/nowhere").returncode == NOT_A_STORE


# ---- ages

def aged(copy, days, index=0):
    for path in descriptors(copy.path, index):
        rewrite(path, field(b"rotated", ago(days)))


def test_the_age_of_keys(copy):
    def alert(*args):
        r = ctl(copy.path, *args)
        return r.returncode, r.stdout, r.stderr

    assert alert("--max-age", "1")[0] == OK and alert("--alert")[0] == OK
    aged(copy, 95, 1)
    code, out, err = alert("--max-age", "95", "--descriptors")
    assert code == FAILED and "key domain 1 " in out and "for 95 days" in out and out.count("\n") == 1
    assert err.startswith("byokfsctl: error: keys of ") and "95 days or more" in err and "hint: " in err
    assert alert("--max-age", "96", "--descriptors")[0] == OK
    assert alert("--alert", "--descriptors")[0] == FAILED
    assert alert("--alert", "-o", "alert.key_age_days=0")[0] == OK
    assert alert("--alert", "-o", "alert.key_age_days=100")[0] == OK
    assert alert("--alert", "-o", "alert.key_age_days=x")[0] == CONFIG
    answer = report(copy.path, "--max-age", "90", code=FAILED)
    assert answer["alert"] == {"limit_days": 90, "alert": True, "domains": 1, "oldest_days": 95} and answer["code"] == FAILED
    # never rotated: since it was made; a rotation in the future is not believed
    for path in descriptors(copy.path, 1):
        rewrite(path, lambda t: field(b"created", ago(200))(field(b"rotated", ago(-30))(t)))
    assert report(copy.path, "--max-age", "90", code=FAILED)["alert"]["oldest_days"] == 200
    aged(copy, 3, 1)
    assert alert("--max-age", "4")[0] == OK
    # a file that a rotation missed
    reseal(copy.files["one"], copy.keys[0], sealed=int(time.time()) - 50 * DAY)
    assert alert("--max-age", "40", "--descriptors")[0] == OK
    code, out, err = alert("--max-age", "40")
    assert code == FAILED and "50 days ago" in out
    # what cannot be read is not young
    hole(copy, "descriptor", None)
    assert alert("--max-age", "90", "--descriptors")[0] == DAMAGE


def test_the_stores_of_all_instances(template, copy, tmp_path):
    """As the timer runs it: with the words of its unit."""
    etc = tmp_path / "etc"
    etc.mkdir()
    unit = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "systemd", "byokfs-keyage.service")
    with open(unit) as f:
        command = re.search(r"(?m)^ExecStart=/usr/local/sbin/byokfsctl keys (.*)$", f.read())[1].replace("/etc/byokfs", str(etc)).split()
    command += ["-c", template.ini]

    r = ctl(*command)
    assert r.returncode == OK and "no instances" in r.stderr
    (etc / "a.conf").write_text(f'# one\nMOUNTPOINT=/x\nCIPHERDIR="{copy.path}"  \n')
    (etc / "b.conf").write_text(f"CIPHERDIR={template.cipher}\n")
    (etc / "c.conf").write_text("OPTIONS=-o nosuid\n")
    (etc / "d.ini").write_text("CIPHERDIR=/nowhere\n")
    r = ctl(*command)
    assert r.returncode == OK and r.stdout.count("days at most") == 2 and "c.conf' names no CIPHERDIR" in r.stderr, r
    aged(copy, 91)
    r = ctl(*command)
    assert r.returncode == FAILED and f"{copy.path}: key domain 0 " in r.stdout and f"{template.cipher}: 0 days" in r.stdout, r
    r = ctl(*command, "--json")
    assert r.returncode == FAILED and [s["code"] for s in json.loads(r.stdout)] == [FAILED, OK]
    (etc / "a.conf").write_text("CIPHERDIR=/nowhere\n")
    r = ctl(*command)
    assert r.returncode == NOT_A_STORE and "/nowhere" in r.stderr and f"{template.cipher}: 0 days" in r.stdout
    assert ctl("--instances", "/nowhere", "--alert").returncode == CONFIG


def test_a_mount_tells_the_age(make_mount, devkms):
    m = make_mount("m", devkms)
    for path in descriptors(m.cipher):
        rewrite(path, field(b"rotated", ago(95)))
    m.mount()
    status = m.status()
    assert status["key_age"]["days"] == 95 and status["key_age"]["alert"] and status["key_age"]["limit_days"] == 90
    assert status["domains"][0]["key_age"] == status["key_age"]
    assert calendar.timegm(time.strptime(status["key_age"]["since"], "%Y-%m-%dT%H:%M:%SZ")) == status["key_age"]["since_unix"]
    assert "to be rotated: keys have been sealed under the same key material for 95 days" in m.ctl("status", m.plain).stdout
    warning = "have been sealed under the same key material for 95 days"
    wait_until(lambda: warning in m.read_log())
    with open(m.ini, "a") as f:
        f.write("[alert]\nkey_age_days = 100\n")
    m.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "changed: alert.key_age_days" in m.read_log())
    wait_until(lambda: not m.status()["key_age"]["alert"])
    assert m.status()["key_age"]["limit_days"] == 100 and "to be rotated" not in m.ctl("status", m.plain).stdout
    assert m.read_log().count(warning) == 1
    # the descriptor's own creation date cannot be moved while mounted: it is authentic
    m.remount()
    assert warning not in m.read_log()[m.read_log().rindex("changed: alert.key_age_days"):]
