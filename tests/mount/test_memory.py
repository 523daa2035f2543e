"""After a lock the daemon's memory holds no key and nothing an application wrote: found by looking at all of it, as root may."""
import os
import sys

import pytest

from conftest import AK, SK, wait_until
from faults import get, say

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "reader"))
import byokfs_reader as reader  # noqa: E402


def regions(pid):
    """(start, end, name) of what can be read. Anonymous shared secret memory cannot, not even by root."""
    with open(f"/proc/{pid}/maps") as f:
        for line in f:
            where, perms, *_, = line.split()
            name = line.split(maxsplit=5)[5].strip() if len(line.split()) > 5 else ""
            start, end = (int(x, 16) for x in where.split("-"))
            if "r" in perms and name not in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                yield start, end, name


CHUNK = 1 << 20


def scan(pid, needles):
    """Which of the needles {name: bytes} are in the process's memory: {name: region}. Also how much was looked at and could not be."""
    found, looked, refused = {}, 0, 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as f:
        for start, end, name in regions(pid):
            tail = b""
            for at in range(start, end, CHUNK):
                size = min(CHUNK, end - at)
                try:
                    chunk = os.pread(f.fileno(), size, at)
                except OSError:
                    refused, tail = refused + size, b""
                    continue
                looked += len(chunk)
                chunk, tail = tail + chunk, chunk[-256:]
                if chunk.count(0) == len(chunk):
                    continue
                for what, needle in needles.items():
                    if needle in chunk:
                        found.setdefault(what, name or "anonymous")
    return found, looked, refused


def halves(name, key):
    """A key is looked for in pieces of 16 bytes: a part of it would be too much."""
    return {f"{name}[{i}]": key[i:i + 16] for i in range(0, len(key), 16)}


def secrets_of(mount, names):
    """Every key the daemon can have had, derived by the second implementation."""
    os.environ.update(AWS_ACCESS_KEY_ID=AK, AWS_SECRET_ACCESS_KEY=SK, AWS_DEFAULT_REGION="us-east-1")
    told = []
    ask = reader.aws_unseal(mount.kms.endpoint)

    def unseal(*args):
        told.append(ask(*args))
        return told[-1]

    store = reader.Store(mount.cipher, unseal)
    keys = store.domain(0).keys
    out = {**halves("domain secret", told[0]), **halves("domain DEK", keys.dek)}
    for label in ("names", "links", "xnames", "dirs", "xattrs", "desc", "store"):
        out.update(halves(f"domain {label}", getattr(keys, label)))
    for node in store.walk():
        if node.kind != "f" or os.fsdecode(node.path) not in names:
            continue
        del told[:]
        with store.open(node) as f:
            for secret in told:
                out.update(halves(f"{node.path} secret", secret))
                out.update(halves(f"{node.path} DEK", reader.data_key(keys.ids, secret, f.file_id)))
            out.update(halves(f"{node.path} page", f.keys.page))
            out.update(halves(f"{node.path} hdr", f.keys.hdr))
    return out


@pytest.mark.parametrize("seal", ["file", "domain"])
def test_nothing_is_left_after_a_lock(make_mount, devkms, seal):
    mount = make_mount(seal, devkms, init=(f"--seal={seal}",)).mount()
    rand = {what: os.urandom(12).hex().encode() for what in ("name", "directory", "long name", "target", "xattr name")}
    rand.update({what: os.urandom(32) for what in ("inline content", "page content", "spill content", "xattr value")})
    inline, paged = mount.path(rand["name"].decode()), mount.path("d" + rand["directory"].decode(), "f" + rand["long name"].decode() * 8)
    os.mkdir(os.path.dirname(paged))
    with open(inline, "wb") as f:
        f.write(b"x" * 50 + rand["inline content"])
    body = bytearray(os.urandom(300_000))
    body[123_456:123_456 + 32] = rand["page content"]
    body[5 * 4096 + 4064:6 * 4096] = rand["spill content"]
    with open(paged, "wb") as f:
        f.write(body)
        os.fsync(f.fileno())
    os.setxattr(inline, "user." + rand["xattr name"].decode(), rand["xattr value"])
    os.symlink(rand["target"].decode(), mount.path("link"))
    mount.remount()
    held = open(paged, "rb", buffering=0)
    assert held.read() == body and get(inline)[50:] == rand["inline content"]
    assert os.readlink(mount.path("link")).encode() == rand["target"]
    assert os.getxattr(inline, "user." + rand["xattr name"].decode()) == rand["xattr value"]
    assert len(os.listdir(mount.plain)) == 3 and len(os.listdir(os.path.dirname(paged))) == 1
    with open(paged, "r+b", buffering=0) as f:
        f.seek(200_000)
        f.write(rand["page content"])
        os.fsync(f.fileno())
    needles = {**rand, **secrets_of(mount, [os.path.relpath(p, mount.plain) for p in (inline, paged)])}
    assert len(needles) > 40
    pid = mount.process.pid
    control = {"store path": mount.cipher.encode()}
    before, looked, refused = scan(pid, {**needles, **control})
    # The scan sees what is there: while the domain is open its keys are found.
    visible = [what for what in needles if what.startswith(("domain names", "domain xattrs")) or " page[" in what]
    assert len(visible) == 6 + 4 and set(visible) | {"store path"} <= set(before), sorted(before)
    devkms.disable()
    wait_until(lambda: mount.state() == "locked")
    after, looked, refused = scan(pid, {**needles, **control})
    say(f"scanned {looked >> 20} MiB, {refused >> 10} KiB unreadable; secrets found while open: {len(before) - 1}, locked: {len(after) - 1}")
    assert "store path" in after
    del after["store path"]
    assert after == {}
    devkms.enable()
    wait_until(lambda: mount.state() == "open")
    assert get(inline)[50:] == rand["inline content"]
    held.close()


def test_no_core_and_no_ptrace(mount):
    """The kernel will not dump the daemon, nor swap its keys."""
    status = dict(line.split(":", 1) for line in open(f"/proc/{mount.process.pid}/status") if ":" in line)
    limits = open(f"/proc/{mount.process.pid}/limits").read()
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    assert core.split()[4] == "0", core
    owner = os.stat(f"/proc/{mount.process.pid}/mem")
    assert (owner.st_uid, owner.st_gid) == (0, 0)
    assert int(status["VmLck"].split()[0]) > 0 or "secretmem" in open(f"/proc/{mount.process.pid}/maps").read()
