"""A rotator in a hundred lines: it re-encrypts by the KMS and tells a live mount over its control socket."""
import base64
import hashlib
import json
import os
import socket
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reader"))
import byokfs_reader as reader  # noqa: E402

from conftest import wait_until  # noqa: E402

SLOT_BYTES = 512


def call(mount, **request):
    """One request of a mount's daemon, one answer."""
    return call_fds(mount, **request)[0]


def call_fds(mount, **request):
    """And the descriptors that come along."""
    name = hashlib.sha256(os.path.realpath(mount.plain).encode()).hexdigest()[:32]
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(30)
        s.connect(f"/run/byokfs/{name}.sock")
        s.sendall(json.dumps(request).encode() + b"\n")
        answer, fds, _, _ = socket.recv_fds(s, 65536, 128)
        while not answer.endswith(b"\n"):
            more = s.recv(65536)
            assert more, f"no answer to {request['verb']}"
            answer += more
    return json.loads(answer), fds


def key_hash(key):
    return hashlib.sha256(key.encode()).digest()[:8]


class Slot:
    """One slot of page 0."""

    def __init__(self, raw):
        self.raw = raw
        self.seq, self.state, self.wrap, self.generation, n, self.provider = struct.unpack_from("<IBBHHB", raw)
        self.key_hash, self.sealed, self.material, self.blob = raw[16:24], raw[24:32], raw[32:64], raw[64:64 + n]
        self.valid = self.state == 1 and struct.unpack_from("<I", raw, 508)[0] == reader.crc32c(raw[:508])


def make_slot(key, blob, material=b"", generation=1, seq=0, wrap=1, provider=1):
    raw = struct.pack("<IBBHHB5x8sq32s440s4x", seq, 1, wrap, generation, len(blob), provider, key_hash(key),
                      int(time.time()), material or bytes(32), blob)
    return raw + struct.pack("<I", reader.crc32c(raw))


class View:
    """Page 0 of a backing file, unauthenticated."""

    def __init__(self, path):
        with open(path, "rb") as f:
            page = f.read(4096)
            self.ino = os.fstat(f.fileno()).st_ino
        self.store, self.domain, self.file = page[16:32], page[32:48], page[48:64]
        self.slots = [Slot(page[at:at + SLOT_BYTES]) for at in (512, 1024)]
        filled = sorted((s for s in self.slots if s.valid), key=lambda s: -s.seq)
        self.ruling, self.other = filled[0], filled[1] if len(filled) > 1 else None


class Descriptor:
    """A domain's descriptor as it is on the disk."""

    def __init__(self, mount, domain_id):
        with open(os.path.join(mount.cipher, ".byokfs", "domains", domain_id), encoding="ascii") as f:
            self.lines = [line.rstrip("\n").split("=", 1) for line in f if "=" in line]
        self.of = dict(self.lines)
        with open(os.path.join(mount.cipher, ".byokfs", "domains", domain_id + "~"), "rb") as a:
            with open(os.path.join(mount.cipher, ".byokfs", "domains", domain_id), "rb") as b:
                self.twins = a.read() == b.read()
        self.seq = int(self.of["seq"])
        self.slots = sorted(({n: self.of[f"{which}.{n}"] for n in
                              ("seq", "provider", "key", "material", "context", "blob", "probe")}
                             for which in "ab" if f"{which}.seq" in self.of), key=lambda s: -int(s["seq"]))


class Rotator:
    """From whatever rules to the key `to`, of one domain."""

    def __init__(self, mount, kms, to, index=0):
        self.mount, self.client, self.to = mount, kms.client, to
        self.id = self.domain(index)["id"]
        self.index = index
        self.generation = None

    def domain(self, index=None):
        answer = call(self.mount, verb="rotate-state")
        assert answer["code"] == 0, answer
        return next(d for d in answer["domains"] if d["index"] == (self.index if index is None else index))

    def context(self, use, file=None, **extra):
        d = Descriptor(self.mount, self.id)
        pairs = {"byokfs-store": d.of["store"], "byokfs-domain": self.id, "byokfs-use": use, **extra}
        if file:
            pairs["byokfs-file"] = file.hex()
        return pairs

    def reencrypt(self, blob, use, file=None, source=None, target=None, to=None):
        r = self.client.re_encrypt(
            CiphertextBlob=blob, SourceEncryptionContext=self.context(use, file, **(source or {})),
            DestinationEncryptionContext=self.context(use, file, **(target or {})), DestinationKeyId=to or self.to)
        return r["CiphertextBlob"]

    def new_slot(self, target=None, source=None):
        rules = Descriptor(self.mount, self.id).slots[0]
        blob, probe = (base64.b64encode(self.reencrypt(base64.b64decode(rules[n]), use, None, source, target)).decode()
                       for n, use in (("blob", "domain"), ("probe", "probe")))
        return {"provider": "aws", "key": self.to, "material": "11" * 32, "sealed": int(time.time()), "blob": blob,
                "probe": probe}

    def begin(self, slot=None, seq=None, **more):
        """The answer of rotate-begin, or of rotate-result once it is there."""
        slot = slot or self.new_slot()
        seq = self.domain()["seq"] if seq is None else seq
        answer = call(self.mount, verb="rotate-begin", domain=self.id, seq=seq, slot=slot, **more)
        if answer["code"]:
            return answer
        job = answer["job"]
        answer = wait_until(lambda: (lambda a: None if a.get("running") else a)(
            call(self.mount, verb="rotate-result", job=job)), 30)
        self.generation = answer.get("generation", self.generation)
        return answer

    def item(self, backing, slot=None):
        v = View(backing)
        item = {"path": os.fsencode(os.path.relpath(backing, self.mount.cipher)).hex(), "ino": v.ino, "file": v.file.hex(),
                "seq": v.ruling.seq}
        if slot:
            item["slot"] = base64.b64encode(slot).decode()
        return item

    def resealed(self, path, source=None, target=None):
        """A new slot for the file, by the KMS."""
        v = View(path)
        blob = self.reencrypt(v.ruling.blob, "file", v.file, source, target)
        return make_slot(self.to, blob, generation=self.generation or 1)

    def slots(self, *items):
        answer = call(self.mount, verb="rotate-slots", domain=self.id, slots=list(items))
        assert answer["code"] == 0, answer
        assert len(answer["results"]) == len(items)
        return answer["results"]

    def files(self):
        """Backing files of this domain."""
        for parent, dirs, names in os.walk(self.mount.cipher):
            dirs[:] = [d for d in dirs if d != ".byokfs"]
            for name in names:
                path = os.path.join(parent, name)
                if os.path.islink(path) or name.startswith((".byokfs", "L.")) or not os.path.isfile(path):
                    continue
                if View(path).domain.hex() == self.id:
                    yield path

    def wants(self, path):
        slot = View(path).ruling
        return slot.wrap == 1 and slot.key_hash != key_hash(self.to)

    def todo(self):
        return [path for path in self.files() if self.wants(path)]

    def reseal_all(self, **contexts):
        """Passes until one finds nothing."""
        done = 0
        while todo := self.todo():
            for path in filter(self.wants, todo): # a hard link is done with the first name
                result, = self.slots(self.item(path, self.resealed(path, **contexts)))
                assert result in ("ok", "changed", "gone"), result
                done += result == "ok"
        return done

    def clear_all(self):
        for path in self.files():
            if View(path).other:
                assert self.slots(self.item(path)) == ["ok"]

    def finish(self, seq=None):
        return call(self.mount, verb="rotate-finish", domain=self.id, seq=self.domain()["seq"] if seq is None else seq)

    def all(self):
        assert self.begin()["code"] == 0
        n = self.reseal_all()
        self.clear_all()
        answer = self.finish()
        assert answer["code"] == 0, answer
        return n
