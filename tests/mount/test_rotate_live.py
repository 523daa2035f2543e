"""byokfsctl rotate on a store that is mounted and in use: the mount goes on, and nobody notices."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from conftest import AK, BYOKFS, SK, wait_until
from iam import Request, allowed
from programs import ALREADY, CONFIG, DENIED, NO_MOUNT, Ran, said
from rotation import (backing_files, end, history, key_hash, killed_after, make_shop, new_key, new_material, one_kms, reencrypts,
                      rotate, slots_of, start_rotate, under, with_key)


@pytest.fixture(scope="module")
def kms(tmp_path_factory):
    yield from one_kms(tmp_path_factory)


@pytest.fixture
def shop(kms, make_mount):
    yield from make_shop(kms, make_mount, mounted=True)


def forget():
    """Makes the kernel forget the pages that are clean."""
    with open("/proc/sys/vm/drop_caches", "w") as f:
        f.write("1")


def only_needs(m, kms, key, *others):
    """Everything opens without the other keys: through this mount, and through the next one."""
    for other in others:
        kms.disable(other)
    forget()
    m.content.verify(m)
    m.umount()
    with_key(m, key)
    m.mount()
    m.content.verify(m)
    for other in others:
        kms.enable(other)


class Users:
    """Threads that write, rename and read until they are stopped; the first error of any is kept."""

    def __init__(self, m, seed=3):
        self.m, self.rng, self.errors, self.going = m, random.Random(seed), [], True
        self.made, self.count = {}, 0
        for d in ("u0", "u1", "u2"):
            os.makedirs(m.path(d), exist_ok=True)
        self.threads = [threading.Thread(target=self.guard, args=(f,)) for f in (self.write, self.move, self.read)]
        for t in self.threads:
            t.start()

    def guard(self, f):
        try:
            while self.going:
                f()
        except Exception as e:  # whatever it is, the test must hear of it
            self.errors.append(repr(e))

    def write(self):
        name, data = f"u0/w{self.count}", os.urandom(self.rng.choice([3, 1600, 9000]))
        self.count += 1
        with open(self.m.path(name), "wb") as f:
            f.write(data)
        self.made[os.path.basename(name)] = data
        time.sleep(0.005)

    def move(self):
        """Between directories, forward and back, and a directory that moves with what is in it."""
        for d in ("u0", "u1", "u2"):
            for name in random.sample(names := os.listdir(self.m.path(d)), min(3, len(names))):
                if name in self.made:
                    os.rename(self.m.path(d, name), self.m.path(f"u{(int(d[1]) + 1) % 3}", name))
        a, b = self.m.path("d", "e"), self.m.path("d2", "e")
        os.rename(*((a, b) if os.path.isdir(a) else (b, a)))
        time.sleep(0.002)

    def read(self):
        for name, data in list(self.m.content.files.items()):
            if "/e/" not in name:
                with open(self.m.path(name), "rb") as f:
                    assert f.read() == data, name
        time.sleep(0.002)

    def stop(self):
        self.going = False
        for t in self.threads:
            t.join(30)
        assert not self.errors, self.errors
        if os.path.isdir(self.m.path("d2", "e")):
            os.rename(self.m.path("d2", "e"), self.m.path("d", "e"))
        for d in ("u0", "u1", "u2"):
            for name in os.listdir(self.m.path(d)):
                self.m.content.files[f"{d}/{name}"] = self.made.pop(name)
        assert not self.made


@pytest.mark.sanitizer
@pytest.mark.parametrize("init", [(), ("--seal=domain",)], ids=["file", "domain"])
def test_rotated_while_in_use(shop, kms, init):
    m, k2 = shop(40, init=init), new_key(kms)
    users = Users(m)
    kms.fault(operations=["ReEncrypt"], latency_ms=20)
    try:
        answer = json.loads(rotate(m, "--to", k2, "--jobs", "4", "--json", path=m.plain, check=0).stdout)
    finally:
        users.stop()
    assert answer["mounted"] and answer["mountpoint"] == m.plain and answer["failed"] == 0
    assert slots_of(m) == [k2] and under(m.cipher, k2)
    assert history(m)[-1]["live"] and history(m)[-1]["outcome"] == "done"
    assert len(m.content.files) > 45
    only_needs(m, kms, k2, m.key)
    said(Ran(rotate(m, "--to", k2)), ALREADY, "already")
    # the configuration of before
    m.umount()
    with_key(m, m.key)
    r = subprocess.run([BYOKFS, "-f", "-c", m.ini, m.cipher, m.plain], env=m.environment(), capture_output=True, text=True, timeout=30)
    assert r.returncode == CONFIG and k2 in r.stderr, r.stderr


MOVER = r"""
import itertools, os, random, signal, sys
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
what, top = sys.argv[1], sys.argv[2]
os.chdir(top)
rng = random.Random(what)
dirs = [f"t{i}" for i in range(4)]
def files(n):
    return [(d, f) for d in dirs for f in os.listdir(d) if f.startswith("f")][:n]
def try_(fn, *args):
    try:
        fn(*args)
    except (FileNotFoundError, FileExistsError, OSError):
        pass
for n in itertools.takewhile(lambda n: going, itertools.count()):
    if what == "files":  # every old file, from directory to directory, for ever
        for d, f in files(1000):
            try_(os.rename, f"{d}/{f}", f"{rng.choice(dirs)}/{f}")
    elif what == "names":  # within one directory
        for d, f in files(1000):
            if rng.random() < 0.3:
                try_(os.rename, f"{d}/{f}", f"{d}/f{rng.random()}")
    elif what == "trees":  # directories with what is in them, into each other and out again
        for i in range(6):
            places = [d for d in dirs] + [f"{d}/s{j}" for d in dirs for j in range(6) if j != i]
            for d in places:
                if os.path.isdir(f"{d}/s{i}"):
                    try_(os.rename, f"{d}/s{i}", f"{rng.choice(places)}/s{i}")
    elif what == "links":  # another name, and the first one goes
        for d, f in files(20):
            try_(os.link, f"{d}/{f}", f"{rng.choice(dirs)}/f{rng.random()}")
            try_(os.unlink, f"{d}/{f}")
    elif what == "new":  # made, moved in new directories, put over one another, removed
        try_(os.mkdir, "n")
        with open("n/x", "w") as f:
            f.write("new")
        try_(os.rename, "n", "n2")
        try_(os.rename, "n2/x", f"{dirs[n % 4]}/n")
        try_(os.rmdir, "n2")
"""


def everything(m):
    """The contents, wherever they are."""
    paths = [os.path.join(base, name) for i in range(4) for base, _, names in os.walk(m.path(f"t{i}")) for name in names]
    return {pathlib.Path(path).read_bytes() for path in paths if os.path.basename(path).startswith("f")}


@pytest.mark.sanitizer
def test_nothing_ever_stays_where_it_is(shop, kms):
    """Users that do nothing but move what there is, as fast as they can: it ends, and nothing was left out."""
    m, k2 = shop(3), new_key(kms)
    for d in [f"t{i}" for i in range(4)] + [f"t{i % 4}/s{i}" for i in range(6)] + ["t0/s0/deep", "t1/s1/deep"]:
        os.mkdir(m.path(d))
    made = {os.urandom(20) for _ in range(160)}
    places = [os.path.relpath(base, m.plain) for base, _, _ in os.walk(m.plain) if os.path.relpath(base, m.plain).startswith("t")]
    for i, data in enumerate(made):
        with open(m.path(places[i % len(places)], f"f{i}"), "wb") as f:
            f.write(data)
    kms.fault(operations=["ReEncrypt"], latency_ms=3)
    movers = [subprocess.Popen([sys.executable, "-B", "-c", MOVER, what, m.plain]) for what in ("files", "names", "trees", "links", "new")]
    try:
        answer = json.loads(rotate(m, "--to", k2, "--jobs", "4", "--json", path=m.plain, check=0).stdout)
        assert not [p for p in movers if p.poll() is not None]
    finally:
        for p in movers:
            p.terminate()  # SIGKILL in a rename would have the kernel take its times for lost: EIO at the next close
        for p in movers:
            assert p.wait(60) == 0
    assert answer["mounted"] and answer["failed"] == 0
    assert slots_of(m) == [k2] and under(m.cipher, k2)
    kms.disable(m.key)
    forget()
    assert everything(m) == made
    m.umount()
    with_key(m, k2)
    m.mount()
    assert everything(m) == made
    kms.enable(m.key)


ACCOUNT = "111122223333"
HOST, ROTATOR = f"arn:aws:iam::{ACCOUNT}:role/host", f"arn:aws:iam::{ACCOUNT}:role/rotator"


def session(kms, role):
    import boto3
    kms.http("POST", "/_devkms/role", {"role_arn": role})
    sts = boto3.client("sts", region_name="us-east-1", endpoint_url=kms.endpoint, aws_access_key_id=AK, aws_secret_access_key=SK)
    got = sts.assume_role(RoleArn=role, RoleSessionName="test", DurationSeconds=900)["Credentials"]
    return {"AWS_ACCESS_KEY_ID": got["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": got["SecretAccessKey"],
            "AWS_SESSION_TOKEN": got["SessionToken"]}


def test_two_identities(shop, kms):
    """The host only decrypts and generates, the rotator only re-encrypts: what each asks is what its policy allows."""
    m, k2 = shop(10, init=()), new_key(kms)
    m.umount()
    with_identity = m.environment
    host, rotator = session(kms, HOST), session(kms, ROTATOR)
    m.environment = lambda: {**with_identity(), **host}
    m.mount()
    since = kms.stats()["seq"]
    store = json.loads(m.ctl("info", "--json", m.cipher).stdout)["store"]
    policies = {key: json.loads(m.ctl("policy", "-c", m.ini, "-o", f"store.id={store}", "--key", key, "--host", HOST,
                                      "--rotator", ROTATOR, check=True).stdout)["key_policy"] for key in (m.key, k2)}
    m.environment = lambda: {**with_identity(), **rotator}
    rotate(m, "--to", k2, check=0)
    m.environment = with_identity
    m.content.verify(m)
    asked = [r for r in kms.http("GET", f"/_devkms/stats?since={since}&last=20000")["requests"] if r["operation"] != "AssumeRole"]
    assert {r["operation"] for r in asked if r["access_key"] == rotator["AWS_ACCESS_KEY_ID"]} == {"ReEncrypt", "DescribeKey"}
    assert {r["operation"] for r in asked if r["access_key"] == host["AWS_ACCESS_KEY_ID"]} >= {"Decrypt", "GenerateDataKey"}
    for r in asked:
        who = ROTATOR if r["access_key"] == rotator["AWS_ACCESS_KEY_ID"] else HOST
        wanted = [(r["operation"], r["key"], r.get("context"))]
        if r["operation"] == "ReEncrypt":
            wanted = [("ReEncryptFrom", r["key"], r["context"]), ("ReEncryptTo", r["destination_key"], r["destination_context"])]
        for action, key, pairs in wanted:
            request = Request(who, "kms:" + action, key, pairs)
            assert allowed(request, policies[key]), (action, key, pairs)
            request.who = HOST if who == ROTATOR else ROTATOR
            assert action == "DescribeKey" or not allowed(request, policies[key])
    only_needs(m, kms, k2, m.key)


def test_the_host_proves_the_new_key(shop, kms):
    """It may not use it: refused before anything is written."""
    m, k2 = shop(5), new_key(kms)
    kms.fault(operations=["Decrypt"], key=k2, deny_access=True)
    r = said(Ran(rotate(m, "--to", k2)), DENIED, "the daemon cannot use the new key")
    assert slots_of(m) == [m.key] and under(m.cipher, m.key), r
    kms.clear()
    m.content.verify(m)
    rotate(m, "--to", k2, check=0)
    only_needs(m, kms, k2, m.key)


def test_killed_at_every_step(shop, kms):
    m, k2 = shop(4), new_key(kms)
    files = len(list(backing_files(m.cipher)))
    for n in (0, 1, 2, 5, files, files + 1, files + 2):
        to, other = (k2, m.key) if slots_of(m)[0] == m.key else (m.key, k2)
        killed_after(m, kms, n, "--to", to, "--from", other, "--jobs", "3")
        assert slots_of(m) in ([[other]] if n < 2 else [[to, other]] if n < files + 2 else [[to, other], [to]]), n
        forget()
        m.content.verify(m)
        rotate(m, "--to", to, "--from", other, check=0)
        assert slots_of(m) == [to] and under(m.cipher, to), n
    only_needs(m, kms, to, other)


def test_goes_on_after_the_daemon_died(shop, kms):
    m, k2 = shop(20), new_key(kms)
    kms.fault(operations=["ReEncrypt"], latency_ms=50)
    before = reencrypts(kms)
    p = start_rotate(m, "--to", k2, "--jobs", "2")
    wait_until(lambda: reencrypts(kms) > before + 6)
    m.kill()
    out, err_text = p.communicate(timeout=60)
    assert p.returncode in (1, NO_MOUNT) and "the same command goes on" in err_text, (out, err_text)
    kms.clear()
    m.clear_dead()
    rotate(m, "--to", k2, check=0)  # not mounted
    assert slots_of(m) == [k2] and under(m.cipher, k2)
    with_key(m, k2)
    m.mount()
    m.content.verify(m)


def test_mount_with_the_old_key_only_learns_the_new_one(shop, kms):
    """The rotation began before this mount, which knows nothing of it: the next run brings the key."""
    m, k2 = shop(12), new_key(kms)
    m.umount()
    killed_after(m, kms, 7, "--to", k2)
    m.mount()
    m.content.verify(m)
    m.content.write(m, "meanwhile", 100)
    rotate(m, "--to", k2, check=0)
    assert slots_of(m) == [k2] and under(m.cipher, k2)
    only_needs(m, kms, k2, m.key)


def test_turning_round(shop, kms):
    m, k2, k3 = shop(12), new_key(kms), new_key(kms)
    killed_after(m, kms, 6, "--to", k2)
    m.content.write(m, "meanwhile", 100)
    said(Ran(rotate(m, "--to", k3)), ALREADY, "turn round")
    rotate(m, "--to", m.key, "--from", k2, check=0)
    assert slots_of(m) == [m.key] and under(m.cipher, m.key)
    only_needs(m, kms, m.key, k2)


def test_nested_domain_and_same_key(shop, kms):
    m, k2, k3 = shop(5), new_key(kms), new_key(kms)
    os.mkdir(m.path("n"))
    m.ctl("domain", "add", m.path("n"), "--key", k2, check=True)
    for i in range(6):
        m.content.write(m, f"n/x{i}", 2000)
    rotate(m, "--to", k3, "--domain", "1", check=0)
    assert slots_of(m, 1) == [k3] and slots_of(m) == [m.key]
    old = {f.material for f in backing_files(m.cipher) if f.ruling.key == key_hash(m.key)}
    new_material(kms, m.key)
    rotate(m, "--same-key", check=0)
    assert not old & {f.material for f in backing_files(m.cipher)}
    only_needs(m, kms, m.key, k2)


def test_files_that_are_open_without_a_name(shop, kms):
    """No walk finds them; whoever has them open goes on, also without the old key."""
    m, k2 = shop(8), new_key(kms)
    m.remount("cache.max_age=1s")
    for i in range(120):
        m.content.write(m, f"gone{i}", 5000)
    m.content.write(m, "gone!" * 40, 3)
    kept = {}
    for name in [n for n in m.content.files if n.startswith("gone")]:
        kept[os.open(m.path(name), os.O_RDWR if len(kept) % 2 else os.O_RDONLY)] = m.content.files.pop(name)
        os.unlink(m.path(name))
    answer = json.loads(rotate(m, "--to", k2, "--json", check=0).stdout)
    assert answer["resealed"] >= len(m.content.files) - 1 + len(kept) and answer["failed"] == 0  # one is a hard link
    kms.disable(m.key)
    time.sleep(1.2)  # what is in hand is not enough
    forget()
    for i, (fd, data) in enumerate(kept.items()):
        assert os.pread(fd, 6000, 0) == data
        if i % 2:
            assert os.pwrite(fd, b"still", 4096) == 5
            os.fsync(fd)
    forget()
    for i, (fd, data) in enumerate(kept.items()):
        assert os.pread(fd, 5, 4096) == (b"still" if i % 2 else data[4096:4101])
        os.close(fd)
    only_needs(m, kms, k2, m.key)


def test_reload_after_it(shop, kms):
    """The ini is edited and read again: before, after, and to a key that is none of the store's."""
    m, k2, k3 = shop(6), new_key(kms), new_key(kms)
    rotate(m, "--to", k2, check=0)

    def reload(key):
        n = len(m.read_log())
        with_key(m, key)
        m.process.send_signal(signal.SIGHUP)
        return wait_until(lambda: (lambda new: new if "configuration" in new else None)(m.read_log()[n:]))

    assert f"the store was rotated to key '{k2}': set 'key' to it before the next mount" in reload(m.key)
    r = m.ctl("reload", m.plain)
    assert r.returncode == 0 and r.stdout == "nothing changed\n" and f"byokfsctl: hint: the store was rotated to key '{k2}'" in r.stderr
    assert f"the configuration stays as it was: '{k3}' is another key than '{k2}'" in reload(k3)
    log = reload(k2)
    assert "changed: kms.key" in log and "stays" not in log and "next mount" not in log, log
    assert "nothing changed" in reload(k2) and m.ctl("reload", m.plain).stderr == ""
    assert "the configuration stays as it was" in reload(m.key)  # no way back without a rotation
    with_key(m, k2)
    assert m.status()["domains"][0]["kms"]["key"] == k2
    only_needs(m, kms, k2, m.key)


def test_read_only_mount_is_no_hindrance(shop, kms):
    m, k2 = shop(8), new_key(kms)
    m.remount("ro")
    answer = json.loads(rotate(m, "--to", k2, "--json", path=m.plain, check=0).stdout)
    assert not answer["mounted"] and slots_of(m) == [k2] and under(m.cipher, k2)


def test_stopped_and_gone_on(shop, kms):
    m, k2 = shop(25), new_key(kms)
    kms.fault(operations=["ReEncrypt"], latency_ms=100)
    before = reencrypts(kms)
    p = start_rotate(m, "--to", k2, "--jobs", "2")
    wait_until(lambda: reencrypts(kms) > before + 5)
    code, out, err_text = end(p)
    assert code == 1 and "stopped by a signal" in err_text
    done = sum(f.ruling.key == key_hash(k2) for f in backing_files(m.cipher))
    assert done == reencrypts(kms) - before - 2  # what was under way is installed
    kms.clear()
    m.content.verify(m)
    rotate(m, "--to", k2, check=0)
    only_needs(m, kms, k2, m.key)
