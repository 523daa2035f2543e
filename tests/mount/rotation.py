"""What the tests of rotation share: a store with something of everything, its slots as they are on disk, keys with new
material."""
import hashlib
import json
import os
import random
import signal
import stat
import struct
import subprocess
import time

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from conftest import AK, CTL, SK, Devkms, wait_until


def key_hash(key):
    return hashlib.sha256(key.encode()).digest()[:8]


class Slot:
    def __init__(self, raw):
        self.seq, self.state, self.wrap = struct.unpack_from("<IBB", raw, 0)
        self.generation, self.length = struct.unpack_from("<HH", raw, 6)
        self.key, self.material = raw[16:24], raw[32:64]
        self.filled = any(raw)


class File:
    """A backing file's page 0: its ruling slot, and the other one."""

    def __init__(self, path, name, dir_fd):
        with open(name, "rb", opener=lambda n, flags: os.open(n, flags, dir_fd=dir_fd)) as f:
            page = f.read(4096)
        self.path, self.born = path, len(page) == 4096 and any(page)
        page = page.ljust(4096, b"\0")
        a, b = Slot(page[512:1024]), Slot(page[1024:1536])
        self.ruling, self.other = (a, b) if a.seq >= b.seq else (b, a)
        self.domain = page[32:48].hex()
        self.material = self.ruling.material


def backing_files(cipher):
    """Every backing file once, whatever its names."""
    seen = set()
    for parent, dirs, names, fd in os.fwalk(cipher):  # by descriptors: paths may be longer than PATH_MAX
        dirs[:] = [d for d in dirs if not d.startswith(".byokfs")]
        for name in names:
            path = os.path.join(parent, name)
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if name.startswith(".byokfs") or (name.startswith("L.") and name.endswith(".n")) or not stat.S_ISREG(st.st_mode) or \
                    st.st_ino in seen:
                continue
            seen.add(st.st_ino)
            yield File(path, name, fd)


def under(cipher, key):
    """Are all files that the KMS seals under this key, and under nothing else any more? Tells the first that is not."""
    for f in backing_files(cipher):
        if not f.born or f.ruling.wrap == 2:
            continue
        assert f.ruling.key == key_hash(key), f"{f.path} is under another key"
        assert not f.other.filled, f"{f.path} has kept its old slot"
    return True


def slots_of(m, index=0):
    """The filled slots of a domain's descriptor, the ruling one first."""
    info = json.loads(m.ctl("info", "--json", m.cipher).stdout)
    slots = info["domain"]["slots"] if index == 0 else next(d for d in info["nested"] if d["index"] == index)["slots"]
    return [s["key"] for s in sorted(slots, key=lambda s: -s["seq"])]


def tree_hash(path):
    """Names, contents and metadata of everything below."""
    h = hashlib.sha256()
    for parent, dirs, names in os.walk(path):
        dirs.sort()
        for name in sorted(dirs + names):
            full = os.path.join(parent, name)
            st = os.lstat(full)
            h.update(f"{os.path.relpath(full, path)} {st.st_mode} {st.st_size} {st.st_mtime_ns} {st.st_ctime_ns}\n".encode())
            if os.path.isfile(full) and not os.path.islink(full):
                with open(full, "rb") as f:
                    h.update(f.read())
    return h.hexdigest()


def new_key(kms):
    return kms.client.create_key(Description="another")["KeyMetadata"]["Arn"]


def new_material(kms, key):
    """RotateKeyOnDemand, which this boto3 does not know."""
    body = json.dumps({"KeyId": key}).encode()
    request = AWSRequest("POST", kms.endpoint, data=body, headers={
        "Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": "TrentService.RotateKeyOnDemand"})
    SigV4Auth(Credentials(AK, SK), "kms", "us-east-1").add_auth(request)
    import urllib.request
    with urllib.request.urlopen(urllib.request.Request(kms.endpoint, data=body, headers=dict(request.headers)), timeout=10) as a:
        a.read()


class Content:
    """Names and what they hold, made through a mount and compared through one."""

    def __init__(self, seed=1):
        self.rng = random.Random(seed)
        self.files, self.links = {}, {}

    def write(self, m, name, n):
        data = self.rng.randbytes(n)
        os.makedirs(os.path.dirname(m.path(name)), exist_ok=True)
        with open(m.path(name), "wb") as f:
            f.write(data)
        self.files[name] = data

    def make(self, m, count=30):
        for i in range(max(count, 4)):
            self.write(m, f"{['', 'd/', 'd/e/', 'd2/'][i % 4]}f{i}", self.rng.choice([0, 5, 1504, 4096, 9000]))
        self.write(m, "n" * 200, 10)
        self.write(m, "d/" + "m" * 220, 5000)
        os.link(m.path("f0"), m.path("d2/hard"))
        self.files["d2/hard"] = self.files["f0"]
        os.symlink("d/f1", m.path("soft"))
        self.links["soft"] = "d/f1"
        os.mkfifo(m.path("fifo"))
        return self

    def verify(self, m):
        for name, data in self.files.items():
            with open(m.path(name), "rb") as f:
                assert f.read() == data, name
        for name, target in self.links.items():
            assert os.readlink(m.path(name)) == target


def rotate(m, *args, check=None, path=None, ini=None, timeout=120):
    r = m.ctl("rotate", "-c", ini or m.ini, *args, path or m.cipher, timeout=timeout)
    if check is not None:
        assert r.returncode == check, (r.returncode, r.stdout, r.stderr)
    return r


def start_rotate(m, *args, path=None):
    return subprocess.Popen([CTL, "rotate", "-c", m.ini, *args, path or m.cipher], env=m.environment(),
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def reencrypts(kms):
    return kms.stats()["operations"].get("ReEncrypt", {}).get("calls", 0)


def hang_after(kms, n):
    """The KMS answers n requests to re-encrypt, and no further one."""
    kms.fault_list([{"operations": ["ReEncrypt"], "count": n}] * (n > 0) + [{"operations": ["ReEncrypt"], "hang": True}])


def killed_after(m, kms, n, *args, path=None):
    """A rotator that is killed (SIGKILL) when n requests have been answered and no work is left to be done with them."""
    before = reencrypts(kms)
    hang_after(kms, n)
    p = start_rotate(m, *args, path=path)
    try:
        wait_until(lambda: p.poll() is not None or reencrypts(kms) >= before + n)
        settle(p, m.cipher)
    finally:
        p.kill()
        p.communicate()
        kms.clear()


def settle(p, cipher):
    """Until the store has not changed for a moment."""
    last = None
    for _ in range(100):
        now = tree_hash(cipher)
        if now == last or p.poll() is not None:
            return
        last = now
        time.sleep(0.05)


def with_key(m, key, previous=None):
    """The mount's configuration names other keys from now on."""
    with open(m.ini) as f:
        lines = [line for line in f if not line.startswith(("key =", "previous ="))]
    at = lines.index("[kms]\n") + 1
    lines[at:at] = [f"key = {key}\n"] + ([f"previous = {previous}\n"] if previous else [])
    with open(m.ini, "w") as f:
        f.writelines(lines)


def history(m):
    r = m.ctl("history", "--json", m.cipher, check=True)
    return json.loads(r.stdout)["jobs"]


def end(p, sig=signal.SIGTERM, seconds=30):
    p.send_signal(sig)
    out, err = p.communicate(timeout=seconds)
    return p.returncode, out, err


def one_kms(tmp_path_factory):
    """The body of a module's fixture: one for all, each test has stores and keys of its own."""
    k = Devkms(tmp_path_factory.mktemp("devkms"))
    yield k
    k.stop()


def make_shop(kms, make_mount, mounted):
    """The body of a fixture: make(count, init) gives a store with content, under a key of its own."""
    made = []

    def make(count=20, init=(), **kw):
        kms.clear()
        kms.key = new_key(kms)
        m = make_mount(f"m{len(made)}", kms, init=init, **kw)
        m.key = kms.key
        made.append(m)
        m.mount()
        m.content = Content(len(made)).make(m, count)
        if not mounted:
            m.umount()
        return m

    yield make
    kms.clear()
