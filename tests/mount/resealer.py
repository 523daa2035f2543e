"""A store in the middle of a rotation, made by hand: the text of domain descriptors and the slots of page 0, with ReEncrypt as the
key's owner would call it. Written apart from the programs; for stores that nobody has mounted."""
import base64
import hashlib
import os
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reader"))
import byokfs_reader as reader  # noqa: E402

SLOTS = (512, 1024)
MAGIC = b"\x89BYOKFS\n"


def key_hash(key):
    return hashlib.sha256(key.encode()).digest()[:8]


class Slot:
    """One slot of a descriptor."""

    def __init__(self, lines):
        self.seq, self.key, self.blob, self.probe = int(lines["seq"]), lines["key"], lines["blob"], lines["probe"]
        self.lines = lines


class Descriptor:
    """A domain's, as text."""

    NAMES = ("seq", "provider", "key", "material", "context", "sealed", "blob", "probe")

    def __init__(self, cipher, index=0):
        self.store = None
        for name in os.listdir(os.path.join(cipher, ".byokfs", "domains")):
            path = os.path.join(cipher, ".byokfs", "domains", name)
            with open(path) as f:
                text = f.read()
            if not name.endswith("~") and f"\nindex={index}\n" in text:
                self.path, self.store = path, cipher
                self._parse(text)
        assert self.store, f"no domain {index}"

    def _parse(self, text):
        lines = text.splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("seq="))
        self.head = lines[:at]
        values = dict(line.split("=", 1) for line in lines[1:])
        self.ids = values["store"], values["domain"]
        self.seq, self.rotated = int(values["seq"]), values["rotated"]
        self.contexts = [line for line in lines[at:] if line.startswith("context.")]
        self.slot = {}
        for letter in "ab":
            if letter + ".seq" in values:
                self.slot[letter] = Slot({name: values[f"{letter}.{name}"] for name in self.NAMES})

    def ruling(self):
        return max(self.slot.values(), key=lambda s: s.seq)

    def write(self):
        self.seq += 1
        lines = [*self.head, f"seq={self.seq}", f"rotated={self.rotated}", *self.contexts]
        for letter, slot in sorted(self.slot.items()):
            lines += [f"{letter}.{name}={slot.lines[name]}" for name in self.NAMES]
        text = "".join(line + "\n" for line in lines)
        text += f"sum={hashlib.sha256(text.encode()).hexdigest()}\n"
        for path in (self.path, self.path + "~"):
            with open(path, "w") as f:
                f.write(text)

    def context(self, use, file_id=None):
        pairs = {"byokfs-store": self.ids[0], "byokfs-domain": self.ids[1], "byokfs-use": use}
        if file_id:
            pairs["byokfs-file"] = file_id
        return pairs


class Resealer:
    """A rotation of one domain to another key, step by step."""

    def __init__(self, cipher, client, to, index=0):
        self.cipher, self.client, self.to = cipher, client, to
        self.desc = Descriptor(cipher, index)
        self.old = self.desc.ruling().key

    def reencrypt(self, blob, context):
        return self.client.re_encrypt(CiphertextBlob=blob, SourceKeyId=self.old, SourceEncryptionContext=context,
                                      DestinationKeyId=self.to, DestinationEncryptionContext=context)["CiphertextBlob"]

    def begin(self):
        d, rules = self.desc, self.desc.ruling()
        lines = dict(rules.lines, seq=str(rules.seq + 1), key=self.to, material="-",
                     sealed=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        for name, use in (("blob", "domain"), ("probe", "probe")):
            blob = self.reencrypt(base64.b64decode(rules.lines[name]), d.context(use))
            lines[name] = base64.b64encode(blob).decode()
        d.slot["b" if "b" not in d.slot else "a"] = Slot(lines)
        d.write()
        return self

    def file(self, path, empty=False):
        """Reseals one file; empty: its old slot goes too."""
        with open(path, "r+b") as f:
            page = f.read(4096)
            which, ruling = ruling_slot(page)
            blob = self.reencrypt(ruling.blob, self.desc.context("file", page[48:64].hex()))
            assert ruling.key_hash == key_hash(self.old) and ruling.wrap == 1
            put_slot(f, 1 - which, ruling.seq + 1, ruling.generation, key_hash(self.to), blob, ruling.provider)
            if empty:
                f.seek(SLOTS[which])
                f.write(bytes(512))

    def finish(self):
        d = self.desc
        rules = d.ruling()
        d.slot = {letter: slot for letter, slot in d.slot.items() if slot is rules}
        d.rotated = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        d.write()
        return self


def put_slot(f, which, seq, generation, name, blob, provider=1):
    slot = struct.pack("<IBBHHB5x8sq32x", seq, 1, 1, generation, len(blob), provider, name, int(time.time()))
    slot += blob.ljust(440, b"\0") + bytes(4)
    assert len(slot) == 508
    f.seek(SLOTS[which])
    f.write(slot + struct.pack("<I", reader.crc32c(slot)))


def ruling_slot(page):
    """Its number and what is in it."""
    slots = [(slot.seq, which, slot) for which, at in enumerate(SLOTS) if (slot := reader.read_slot(page, at))]
    _, which, slot = max(slots, key=lambda s: s[0])
    return which, slot


def backing_files(cipher):
    """By inode number: the mount shows the same ones."""
    found = {}
    for base, dirs, files in os.walk(cipher):
        if ".byokfs" in dirs:
            dirs.remove(".byokfs")
        for name in files:
            path = os.path.join(base, name)
            if os.path.islink(path):
                continue
            with open(path, "rb") as f:
                if f.read(8) == MAGIC:
                    found[os.stat(path).st_ino] = path
    return found


def sealed_under(path):
    """The hash of the key's name in the ruling slot of a backing file."""
    with open(path, "rb") as f:
        return ruling_slot(f.read(4096))[1].key_hash
