#!/usr/bin/python3
"""Reads byokfs stores, written from byokfs-format(5) alone.

It shares no code with byokfs and serves as its second opinion: whatever byokfs wrote must open here with the same bytes,
and whatever was tampered with must be refused here too. Comments cite sections of byokfs-format(5).

It needs Python's standard library and python3-cryptography; python3-boto3 only for --unseal-endpoint.
"""
import argparse
import base64
import bisect
import datetime
import hashlib
import hmac
import json
import os
import re
import stat
import struct
import sys
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV, ChaCha20Poly1305
from cryptography.hazmat.primitives.cmac import CMAC

PAGE, BODY, SPILL, INLINE_MAX = 4096, 4064, 32, 1504
FAN, NODE_FAN = 106, 672
GROUP_PAGES, L1_PAGES, L2_PAGES = 107, 71905, 48320161
L1_FIRST, L2_FIRST = 6425, 4320725
DATA_MAX = 4791070684
W = 1 << 19
H = 1 << 47
ZERO16 = bytes(16)


class Damage(Exception):
    """What byokfs answers with EIO."""


class NotAStore(Exception):
    """No store here, or one that cannot be opened with this key."""


def check(condition, why):
    if not condition:
        raise Damage(why)


# ---- encodings -----------------------------------------------------------------------------------

def u16(n):
    return struct.pack('<H', n)


def u48(n):
    return struct.pack('<Q', n)[:6]


def le(b):
    return int.from_bytes(b, 'little')


def b64url(b):
    return base64.urlsafe_b64encode(b).rstrip(b'=')


def unb64url(text):
    """Canonical text only."""
    check(re.fullmatch(rb'[A-Za-z0-9_-]+', text) and len(text) % 4 != 1, 'not base64url')
    raw = base64.urlsafe_b64decode(text + b'=' * (-len(text) % 4))
    check(b64url(raw) == text, 'base64url is not canonical')
    return raw


def b32(b):
    return base64.b32encode(b).rstrip(b'=').lower()


def unb32(text):
    check(re.fullmatch(rb'[a-z2-7]+', text) and len(text) % 8 not in (1, 3, 6), 'not base32')
    raw = base64.b32decode(text.upper() + b'=' * (-len(text) % 8))
    check(b32(raw) == text, 'base32 is not canonical')
    return raw


def _crc_table():
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        yield n


CRC_TABLE = list(_crc_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for b in data:
        crc = CRC_TABLE[(crc ^ b) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


# ---- primitives ----------------------------------------------------------------------------------

def mac256(key, data):
    return hmac.new(key, data, 'sha256').digest()


def hkdf(salt, ikm, info, length):
    """HKDF-SHA-512 for one block of output."""
    prk = hmac.new(salt, ikm, 'sha512').digest()
    return hmac.new(prk, info + b'\1', 'sha512').digest()[:length]


def xaes_subkey(key, prefix):
    """2.4; prefix is the first half of the nonce."""
    def half(counter):
        c = CMAC(algorithms.AES(key))
        c.update(bytes([0, counter]) + b'X\0' + prefix)
        return c.finalize()
    return half(1) + half(2)


def hchacha20(key, nonce):
    def rotl(v, n):
        return (v << n | v >> 32 - n) & 0xFFFFFFFF

    def quarter(s, a, b, c, d):
        for x, y, z, n in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = s[x] + s[y] & 0xFFFFFFFF
            s[z] = rotl(s[z] ^ s[x], n)

    s = list(struct.unpack('<16I', b'expand 32-byte k' + key + nonce))
    for _ in range(10):
        for i in range(4):
            quarter(s, i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(s, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack('<8I', *s[:4], *s[12:])


def aead(suite, key, nonce):
    """A cipher and its short nonce for 24 bytes of nonce."""
    if suite == 1:
        return AESGCM(xaes_subkey(key, nonce[:12])), nonce[12:]
    return ChaCha20Poly1305(hchacha20(key, nonce[:16])), bytes(4) + nonce[16:]


def aead_open(suite, key, nonce, data, aad, what):
    cipher, short = aead(suite, key, nonce)
    try:
        return cipher.decrypt(short, data, aad)
    except InvalidTag:
        raise Damage(f'{what} does not authenticate') from None


def siv_open(key, ads, data, what):
    try:
        return AESSIV(key).decrypt(data, ads)
    except (InvalidTag, ValueError):
        raise Damage(f'{what} does not decrypt') from None


# ---- keys (2) ------------------------------------------------------------------------------------

def encode_pairs(pairs):
    out = b''
    for name, value in sorted((k.encode(), v.encode()) for k, v in pairs.items()):
        out += u16(len(name)) + name + u16(len(value)) + value
    return out


@dataclass(frozen=True)
class Ids:
    suite: int
    store: bytes
    domain: bytes

    def pairs(self, use, file_id=None):
        p = {'byokfs-store': self.store.hex(), 'byokfs-domain': self.domain.hex(), 'byokfs-use': use}
        if file_id is not None:
            p['byokfs-file'] = file_id.hex()
        return p

    def canonical(self, file_id=None):
        return encode_pairs(self.pairs('domain' if file_id is None else 'file', file_id))


def data_key(ids, secret, file_id=None):
    return hkdf(b'byokfs1/dek', secret, ids.canonical(file_id), 64)


def derive(dek, ids, label, length, obj=ZERO16, layout=0):
    info = b'byokfs1\0' + label + b'\0' + bytes([ids.suite, layout]) + ids.store + ids.domain + obj
    return hmac.new(dek, info + b'\1', 'sha512').digest()[:length]


class DomainKeys:
    def __init__(self, ids, secret):
        self.ids, self.dek = ids, data_key(ids, secret)
        for label in ('names', 'links', 'xnames'):
            setattr(self, label, derive(self.dek, ids, label.encode(), 64))
        for label in ('commit', 'dirs', 'xattrs', 'desc', 'store'):
            setattr(self, label, derive(self.dek, ids, label.encode(), 32))

    def unwrap(self, blob, file_id):
        """Wrap 2 (2.2)."""
        key = derive(self.dek, self.ids, b'wrap', 32, file_id)
        try:
            return AESGCM(key).decrypt(blob[:12], blob[12:], self.ids.canonical(file_id))
        except InvalidTag:
            raise Damage('the domain key does not open the file secret') from None


class FileKeys:
    def __init__(self, ids, secret, file_id):
        dek = data_key(ids, secret, file_id)
        for label in ('page', 'hdr', 'commit'):
            setattr(self, label, derive(dek, ids, label.encode(), 32, file_id, 1))


# ---- sealed units (2.4) --------------------------------------------------------------------------

def unit_group(kind, index):
    if kind == b'D':
        return 0 if index < 4 else 1 + (index - 4) // FAN
    return index // FAN if kind == b'G' else 0


def unit_nonce(suite, kind, index, ver, rnd):
    if suite == 1:
        return kind + bytes([1, 1, 0]) + struct.pack('<II', ver >> 24, unit_group(kind, index)) + rnd + u16(ver & 0xFFFF)
    return kind + (index % (1 << 40)).to_bytes(5, 'little') + u48(ver) + rnd + b'\0\0'


def unit_aad(suite, kind, store, file_id, index, ver):
    return b'byokfs1\0' + bytes([suite, 1]) + kind + bytes(5) + store + file_id + struct.pack('<QQ', index, ver)


def unit_open(suite, key, kind, store, file_id, index, page):
    """Plaintext and version of a sealed page, or of ROOT."""
    ver = le(page[:6])
    what = f'unit {kind.decode()}{index}'
    check(1 <= ver < H, f'{what} has no valid version')
    nonce = unit_nonce(suite, kind, index, ver, page[6:16])
    return aead_open(suite, key, nonce, page[16:], unit_aad(suite, kind, store, file_id, index, ver), what), ver


# ---- layout (3.3, 6) -----------------------------------------------------------------------------

def phys(kind, n):
    if kind == b'D':
        if n < 4:
            return 1 + n
        return phys(b'G', (n - 4) // FAN) + 1 + (n - 4) % FAN
    if kind == b'G':
        if n < 60:
            return 5 + GROUP_PAGES * n
        i, y = divmod(n - 60, NODE_FAN)
        return phys(b'L', i) + 1 + GROUP_PAGES * y
    if kind == b'L':
        if n < 60:
            return L1_FIRST + L1_PAGES * n
        j, x = divmod(n - 60, NODE_FAN)
        return phys(b'M', j) + 1 + L1_PAGES * x
    return L2_FIRST + L2_PAGES * n


def unit_at(p):
    """The inverse of phys; None for page 0 and beyond the last unit."""
    if p < 1 or p >= L2_FIRST + 100 * L2_PAGES:
        return None
    if p < 5:
        return b'D', p - 1
    if p < L1_FIRST:
        return _in_groups(p - 5, 0)
    if p < L2_FIRST:
        return _in_l1(p - L1_FIRST, 0)
    j, at = divmod(p - L2_FIRST, L2_PAGES)
    return (b'M', j) if at == 0 else _in_l1(at - 1, 60 + NODE_FAN * j)


def _in_l1(at, first):
    i, at = divmod(at, L1_PAGES)
    return (b'L', first + i) if at == 0 else _in_groups(at - 1, 60 + NODE_FAN * (first + i))


def _in_groups(at, first):
    g, at = divmod(at, GROUP_PAGES)
    return (b'G', first + g) if at == 0 else (b'D', 4 + FAN * (first + g) + at - 1)


def hint(size, inline):
    if inline:
        return PAGE + size
    return PAGE * (1 if size == 0 else phys(b'D', (size - 1) // PAGE) + 1) + size % PAGE


def hint_decode(st_size):
    """Size, or None: unborn or invalid."""
    pages, rest = divmod(st_size, PAGE)
    if pages == 0:
        return None
    if pages == 1:
        return rest if rest <= INLINE_MAX else None
    unit = unit_at(pages - 1)
    if unit is None or unit[0] != b'D':
        return None
    return PAGE * unit[1] + (rest or PAGE)


# ---- page 0 (3.1) --------------------------------------------------------------------------------

@dataclass
class Slot:
    seq: int
    wrap: int
    generation: int
    provider: int
    key_hash: bytes
    blob: bytes


def read_slot(page, at):
    """None if it is empty or invalid."""
    s = page[at:at + 512]
    if s[4] != 1 or crc32c(s[:508]) != le(s[508:]):
        return None
    seq, _, wrap, generation, length, provider = struct.unpack('<IBBHHB', s[:11])
    if not 1 <= length <= 440 or any(s[11:16]) or any(s[64 + length:508]):
        return None
    if wrap == 1 and (generation == 0 or not 1 <= provider <= 4):
        return None
    if wrap == 2 and (generation or provider or length != 60):
        return None
    if wrap not in (1, 2):
        return None
    return Slot(seq, wrap, generation, provider, s[16:24], s[64:64 + length])


@dataclass
class State:
    seq: int
    size: int
    clock: int
    inline: bool


def read_state(page, hdr_key, file_id):
    best = None
    for at, parity in ((1536, 1), (2048, 0)):
        s = page[at:at + 512]
        seq, size, csize, clock, dclock, inline = struct.unpack('<QQQQQB', s[:41])
        if seq % 2 != parity or not hmac.compare_digest(mac256(hdr_key, b'S' + file_id + s[:480]), s[480:]):
            continue
        if best is None or seq > best[0].seq:
            good = not any(s[41:480]) and inline in (0, 1) and csize <= size and dclock <= clock < H
            good = good and size <= (INLINE_MAX if inline else DATA_MAX * PAGE)
            best = State(seq, size, clock, inline == 1), good
    check(best, 'no STATE authenticates')
    check(best[1], 'the ruling STATE has impossible fields')
    return best[0]


# ---- files (3, 4) --------------------------------------------------------------------------------

def extents(fd, size):
    """Where the backing file has data: sorted, disjoint [from, to) in pages."""
    out, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        first, last = start // PAGE, -(-at // PAGE)
        if out and first <= out[-1][1]:
            out[-1][1] = last
        else:
            out.append([first, last])
    return out


class File:
    """One backing file, opened and verified. fd stays the caller's."""

    def __init__(self, fd, domain, unseal):
        self.fd = fd
        size = os.fstat(fd).st_size
        page = os.pread(fd, PAGE, 0)
        check(len(page) == PAGE and any(page), 'unborn')
        self.ids, self.suite = domain.keys.ids, domain.keys.ids.suite
        self._ident(page)
        self.keys = self._open_key(page, domain, unseal)
        check(hmac.compare_digest(mac256(self.keys.hdr, b'I' + page[:480]), page[480:512]), 'IDENT does not authenticate')
        self.state = read_state(page, self.keys.hdr, self.file_id)
        root, ver = unit_open(self.suite, self.keys.page, b'R', self.ids.store, self.file_id, self.state.seq, page[2560:])
        check(ver == self.state.clock, 'ROOT is not of the ruling STATE')
        check(not any(root[self.state.size if self.state.inline else 1472:]), 'ROOT is not zero padded')
        self.root, self.size, self.inline = root, self.state.size, self.state.inline
        self.hint_right = hint_decode(size) == self.size
        self.have = extents(fd, size)
        self.nodes = {}

    def _ident(self, page):
        check(page[:8] == b'\x89BYOKFS\n', 'bad magic')
        version, layout, suite, flags = struct.unpack('<HBBI', page[8:16])
        check((version, layout, flags) == (1, 1, 0) and suite == self.suite, 'unsupported version, layout, suite or flags')
        check(page[16:32] == self.ids.store, 'of another store')
        check(page[32:48] == self.ids.domain, 'of another domain')
        check(not any(page[96:480]), 'IDENT is not zero padded')
        self.file_id = page[48:64]

    def _open_key(self, page, domain, unseal):
        slots = sorted((s for s in (read_slot(page, 512), read_slot(page, 1024)) if s), key=lambda s: -s.seq)
        check(slots, 'no valid slot')
        if len(domain.slots) < 2:
            slots = slots[:1]
        failure = None
        for slot in slots:
            try:
                keys = FileKeys(self.ids, self._secret(slot, domain, unseal), self.file_id)
                check(hmac.compare_digest(keys.commit, page[64:96]), 'the commitment does not match')
                return keys
            except Damage as e:
                failure = failure or e
        raise failure

    def _secret(self, slot, domain, unseal):
        if slot.wrap == 2:
            return domain.keys.unwrap(slot.blob, self.file_id)
        check(slot.generation in domain.generations, 'context generation is not recorded')
        names = [s.key for s in domain.slots if hashlib.sha256(s.key.encode()).digest()[:8] == slot.key_hash]
        check(names, 'sealed under a key that the descriptor does not name')
        pairs = {**domain.generations[slot.generation], **self.ids.pairs('file', self.file_id)}
        secret = unseal(names[0], slot.blob, pairs)
        check(len(secret) == 32, 'the file secret has a wrong length')
        return secret

    def hole(self, first, count):
        """Are these physical pages all beyond the backing file's data?"""
        i = bisect.bisect_right(self.have, first, key=lambda e: e[0])
        before = i > 0 and self.have[i - 1][1] > first
        return not before and (i == len(self.have) or self.have[i][0] >= first + count)

    def unit(self, kind, index, rec):
        """Plaintext of a page by the rules of section 4; None if it is absent and may be."""
        p = phys(kind, index)
        page = b'' if self.hole(p, 1) else os.pread(self.fd, PAGE, p * PAGE)
        if len(page) < PAGE or not any(page):
            check(rec & H, f'unit {kind.decode()}{index} is missing')
            return None
        text, ver = unit_open(self.suite, self.keys.page, kind, self.ids.store, self.file_id, index, page)
        check(rec & H - 1 <= ver, f'unit {kind.decode()}{index} is older than recorded')
        check(ver <= self.state.clock + W, f'unit {kind.decode()}{index} is newer than possible')
        return text

    def node(self, kind, index):
        """Entries of a node, by child: (spill, rec)."""
        key = kind, index
        if key not in self.nodes:
            rec = self.rec(kind, index)
            text = self.unit(kind, index, rec)
            if kind == b'G':
                used, width, skip, count = 4028, 38, SPILL, FAN
            else:
                used, width, skip, count = 4032, 6, 0, NODE_FAN
            if text is None:
                entries = [(bytes(skip), rec)] * count
            else:
                check(not any(text[used:]), f'node {kind.decode()}{index} is not zero padded')
                entries = [(text[at:at + skip], le(text[at + skip:at + width])) for at in range(0, used, width)]
            if len(self.nodes) > 64:
                self.nodes.clear()
            self.nodes[key] = entries
        return self.nodes[key]

    def entry(self, k):
        """Spill and rec of data page k."""
        if k < 4:
            return self.root[38 * k:38 * k + 32], le(self.root[38 * k + 32:38 * k + 38])
        return self.node(b'G', (k - 4) // FAN)[(k - 4) % FAN]

    def rec(self, kind, n):
        """rec of a node, from its parent."""
        if kind == b'M' or n < 60:
            at = {b'G': 152, b'L': 512, b'M': 872}[kind] + 6 * n
            return le(self.root[at:at + 6])
        parent, slot = divmod(n - 60, NODE_FAN)
        return self.node(b'L' if kind == b'G' else b'M', parent)[slot][1]

    def page(self, k):
        """Application page k, not cut at size."""
        spill, rec = self.entry(k)
        text = self.unit(b'D', k, rec)
        return (bytes(BODY) if text is None else text) + spill

    def _empty_run(self, k):
        """How many pages from k on are zero because whole subtrees have no data and may have none; 0 if unknown."""
        if k < 4 or (k - 4) % FAN:
            return 0
        g = (k - 4) // FAN
        if g >= 60 and (g - 60) % NODE_FAN == 0:
            i = (g - 60) // NODE_FAN
            if self.hole(phys(b'L', i), L1_PAGES) and self.rec(b'L', i) & H:
                return NODE_FAN * FAN
        if self.hole(phys(b'G', g), GROUP_PAGES) and self.rec(b'G', g) & H:
            return FAN
        return 0

    def read_runs(self):
        """The content in order: bytes, or the length of a run of zeros."""
        if self.inline:
            yield self.root[:self.size]
            return
        k, count = 0, -(-self.size // PAGE)
        while k < count:
            left = self.size - k * PAGE
            empty = self._empty_run(k)
            if empty:
                yield min(left, empty * PAGE)
            else:
                yield self.page(k)[:left]
            k += empty or 1

    def read(self):
        return b''.join(bytes(r) if isinstance(r, int) else r for r in self.read_runs())

    def sha256(self):
        h, zeros = hashlib.sha256(), bytes(1 << 20)
        for run in self.read_runs():
            if isinstance(run, bytes):
                h.update(run)
                continue
            while run:
                n = min(run, len(zeros))
                h.update(zeros[:n])
                run -= n
        return h.hexdigest()


# ---- descriptors (8) -----------------------------------------------------------------------------

HEX16, HEX32, NUM = rb'([0-9a-f]{32})', rb'([0-9a-f]{64})', rb'(0|[1-9][0-9]*)'
TIME = rb'([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)'
TEXT = rb'([!-~]+(?: [!-~]+)*)'
BLOB = rb'([A-Za-z0-9+/]+={0,2})'
STORE_RE = re.compile(
    rb'byokfs-store 1\nstore=' + HEX16 + rb'\nsuite=([12])\nlayout=1\nnames=(siv64|siv32|plain)\ncreated=' + TIME +
    rb'\nby=' + TEXT + rb'\nseq=' + NUM + rb'\n((?:domain=[ -~]+\n)+)mac=' + HEX32 + rb'\n')
DOMAIN_LINE_RE = re.compile(rb'domain=' + NUM + rb' ' + HEX16 + rb' ' + HEX16 + rb' ' + HEX32 + rb'\n')
HEAD_RE = re.compile(
    rb'byokfs-domain 1\nstore=' + HEX16 + rb'\ndomain=' + HEX16 + rb'\nindex=' + NUM + rb'\nseal=(file|domain)\ncreated=' +
    TIME + rb'\ncommit=' + HEX32 + rb'\nmac=' + HEX32 + rb'\nseq=' + NUM + rb'\nrotated=(-|' + TIME[1:-1] + rb')\n')
GENERATION_RE = re.compile(rb'context\.([1-9][0-9]*)=(-|[!-~]+)\n')
PAIR_RE = re.compile(rb'([a-z0-9-]{1,64}):((?:[A-Za-z0-9._:/@+-]|%[0-9a-f]{2})*)')


def slot_re(x):
    return re.compile(b''.join(x + b'.' + name + b'=' + value + b'\n' for name, value in (
        (b'seq', NUM), (b'provider', rb'(aws|vault|keyfile|pkcs11)'), (b'key', TEXT), (b'material', rb'(-|[0-9a-f]{64})'),
        (b'context', NUM), (b'sealed', TIME), (b'blob', BLOB), (b'probe', BLOB))))


def good_time(text):
    try:
        return datetime.datetime.strptime(text.decode(), '%Y-%m-%dT%H:%M:%SZ').year >= 1970
    except ValueError:
        return False


def unb64(text):
    raw = base64.b64decode(text, validate=True) if len(text) % 4 == 0 else b''
    check(1 <= len(raw) <= 6144 and base64.b64encode(raw) == text, 'bad base64 in a descriptor')
    return raw


def summed(text, limit):
    """The text before a good sum."""
    body, line = text[:-69], text[-69:]
    check(len(text) <= limit and line == b'sum=' + hashlib.sha256(body).hexdigest().encode() + b'\n', 'bad sum')
    return body


@dataclass
class StoreDescriptor:
    store: bytes
    suite: int
    names: str
    seq: int
    domains: dict       # index -> (domain_id, dirid, commitment)
    mac: bytes
    authentic: bytes


def parse_store(text):
    body = summed(text, 16 << 20)
    m = STORE_RE.fullmatch(body)
    check(m and good_time(m[4]) and len(m[5]) <= 63, 'store descriptor: bad grammar')
    domains, last = {}, -1
    for line in m[7].splitlines(keepends=True):
        d = DOMAIN_LINE_RE.fullmatch(line)
        check(d and last < int(d[1]) < 65536, 'store descriptor: bad domain line')
        last = int(d[1])
        domains[last] = tuple(bytes.fromhex(d[i].decode()) for i in (2, 3, 4))
    check(0 in domains, 'store descriptor: no domain 0')
    return StoreDescriptor(bytes.fromhex(m[1].decode()), int(m[2]), m[3].decode(), int(m[6]), domains,
                           bytes.fromhex(m[8].decode()), body[:m.start(8) - len('mac=')])


@dataclass
class KeySlot:
    seq: int
    provider: str
    key: str
    generation: int
    blob: bytes


@dataclass
class DomainDescriptor:
    store: bytes
    domain: bytes
    index: int
    commit: bytes
    mac: bytes
    seq: int
    authentic: bytes
    generations: dict = field(default_factory=dict)
    slots: list = field(default_factory=list)     # the ruling one first


def parse_pairs(text):
    pairs = {}
    for item in text.split(b','):
        m = PAIR_RE.fullmatch(item)
        check(m and not m[1].startswith((b'byokfs-', b'aws')) and m[1].decode() not in pairs, 'bad context pair')
        value = re.sub(rb'%(..)', lambda x: bytes.fromhex(x[1].decode()), m[2])
        again = re.sub(rb'[^A-Za-z0-9._:/@+-]', lambda x: b'%%%02x' % x[0][0], value)
        check(again == m[2] and re.fullmatch(rb'[ -~]*', value), 'bad context value')
        pairs[m[1].decode()] = value.decode()
    check(len(pairs) <= 8 and sum(len(k) + len(v) for k, v in pairs.items()) <= 1024, 'too many context pairs')
    return pairs


def parse_domain(text):
    body = summed(text, 256 << 10)
    m = HEAD_RE.match(body)
    check(m and good_time(m[5]) and int(m[3]) < 65536 and (m[9] == b'-' or good_time(m[9])), 'domain descriptor: bad grammar')
    unhex = [bytes.fromhex(m[i].decode()) for i in (1, 2, 6, 7)]
    d = DomainDescriptor(unhex[0], unhex[1], int(m[3]), unhex[2], unhex[3], int(m[8]), body[:m.start(7) - len('mac=')])
    at = m.end()
    while g := GENERATION_RE.match(body, at):
        check(max(d.generations, default=0) < int(g[1]) < 65536, 'domain descriptor: bad generation')
        d.generations[int(g[1])] = {} if g[2] == b'-' else parse_pairs(g[2])
        at = g.end()
    for x in (b'a', b'b'):
        if s := slot_re(x).match(body, at):
            check(int(s[1]) > 0 and s[3] != b'-' and len(s[3]) <= 2048 and int(s[5]) in d.generations and good_time(s[6]),
                  'domain descriptor: bad slot')
            unb64(s[8])
            d.slots.append(KeySlot(int(s[1]), s[2].decode(), s[3].decode(), int(s[5]), unb64(s[7])))
            at = s.end()
    check(at == len(body) and d.slots and len({s.seq for s in d.slots}) == len(d.slots), 'domain descriptor: bad grammar')
    d.slots.sort(key=lambda s: -s.seq)
    return d


# ---- domains and names (7) -----------------------------------------------------------------------

def unpad(text, what):
    name = text.rstrip(b'\0')
    check(name and b'\0' not in name and len(name) + -len(name) % 16 == len(text), f'{what} is badly padded')
    return name


class Domain:
    """An opened key domain."""

    def __init__(self, index, keys, descriptor, mode):
        self.index, self.keys, self.mode = index, keys, mode
        self.slots, self.generations = descriptor.slots, descriptor.generations

    def short_max(self):
        return 144 if self.mode == 'siv32' else 176

    def name(self, entry, dirid, long_target):
        """Plaintext of a backing entry; long_target() gives the content of its .n symlink. None for reserved names."""
        if entry.startswith(b'.byokfs'):
            return None
        if self.mode == 'plain':
            return entry
        decode, encode = (unb32, b32) if self.mode == 'siv32' else (unb64url, b64url)
        if entry.startswith(b'L.'):
            if re.fullmatch(rb'L\..*\.n', entry, re.S):
                return None
            siv = unb64url(long_target())
            check(len(siv) > self.short_max(), 'long form of a short name')
            check(b'L.' + encode(hashlib.blake2b(siv, digest_size=24).digest()) == entry, '.n does not match its entry')
        else:
            siv = decode(entry)
            check(len(siv) <= self.short_max(), 'short form of a long name')
        check(len(siv) >= 32 and len(siv) % 16 == 0, 'bad length of an entry')
        name = unpad(siv_open(self.keys.names, [b'n1', dirid], siv, 'entry'), 'entry')
        check(len(name) <= 255 and b'/' not in name and name not in (b'.', b'..'), 'impossible name')
        return name

    def link(self, text):
        raw = unb64url(text)
        check(len(raw) > 24, 'link is too short')
        target = siv_open(self.keys.links, [b'l1', raw[:8]], raw[8:], 'link')
        check(b'\0' not in target, 'impossible link')
        return target

    def xattrs(self, path, obj):
        """Attributes of a file or directory. Raises Damage for a value that does not open."""
        out = {}
        for backing in os.listxattr(path, follow_symlinks=False):
            if not backing.startswith('user.byokfs.') or backing.startswith('user.byokfs.P.'):
                continue
            stored = os.getxattr(path, backing, follow_symlinks=False)
            try:
                name = self.xattr_name(obj, os.fsencode(backing), stored)
            except Damage:
                continue
            out[name] = self.xattr_stored(obj, os.fsencode(backing), stored, path)
        return out

    def xattr_name(self, obj, backing, stored):
        if not backing.startswith(b'user.byokfs.L.'):
            siv = unb64url(backing.removeprefix(b'user.byokfs.'))
            check(32 <= len(siv) <= 176 and len(siv) % 16 == 0, 'not ours')
            return unpad(siv_open(self.keys.xnames, [b'x1', obj], siv, 'attribute name'), 'attribute name')
        siv = stored[:272]
        check(len(siv) == 272, 'attribute is too short')
        check(b64url(hashlib.blake2b(siv, digest_size=24).digest()) == backing[14:], 'another name')
        text = siv_open(self.keys.xnames, [b'x1', obj], siv, 'attribute name')
        name = text.rstrip(b'\0')
        check(160 < len(name) <= 255 and b'\0' not in name, 'attribute name is badly padded')
        return name

    def xattr_stored(self, obj, backing, stored, path):
        """The value, of one attribute or of two."""
        value = stored[272:] if backing.startswith(b'user.byokfs.L.') else stored
        try:
            return self.xattr_value(obj, backing, value)
        except Damage:
            if len(stored) != 65536:
                raise
        tag = value[:16]
        try:
            rest = os.getxattr(path, b'user.byokfs.P.' + b64url(tag), follow_symlinks=False)
        except OSError as e:
            raise Damage('the rest of an attribute is missing') from e
        return self.xattr_value(obj, backing, value[16:] + rest, tag)

    def xattr_value(self, obj, backing, value, tag=b''):
        check(len(value) >= 40, 'attribute is too short')
        aad = b'byokfs1\0' + (b'X' if tag else b'x') + bytes(7) + self.keys.ids.store + obj + backing + tag
        return aead_open(self.keys.ids.suite, self.keys.xattrs, value[:24], value[24:], aad, 'attribute')


def link_text(path):
    """The content of a symlink; a long one's rest is an attribute of the link."""
    text = os.readlink(path)
    if len(text) != 1021 or text[:1] != b'.':
        return text
    try:
        rest = os.getxattr(path, 'trusted.byokfs.link', follow_symlinks=False)
    except OSError as e:
        raise Damage('the rest of a long link is missing') from e
    return text[1:] + b64url(rest)


def dir_id(text, domain_of):
    """(domain, dirid) of a .byokfs.d content; domain_of(index) gives the opened domain."""
    check(len(text) == 46, '.byokfs.d has a wrong length')
    raw = unb64url(text)
    domain = domain_of(le(raw[:2]))
    want = mac256(domain.keys.dirs, b'byokfs-dir' + raw[:18])[:16]
    check(hmac.compare_digest(want, raw[18:]), '.byokfs.d does not authenticate')
    return domain, raw[2:18]


@dataclass
class Node:
    """One object of the tree. error is set instead of content where byokfs answers EIO."""
    path: bytes                 # plaintext, b'' is the root
    kind: str                   # 'f', 'd', 'l', 'p', 's', 'b', 'c'
    backing: bytes
    st: os.stat_result
    domain: Domain
    obj: bytes = None           # dirid of directories
    target: bytes = None        # of links
    error: str = None


KINDS = {stat.S_IFREG: 'f', stat.S_IFDIR: 'd', stat.S_IFLNK: 'l', stat.S_IFIFO: 'p', stat.S_IFSOCK: 's',
         stat.S_IFBLK: 'b', stat.S_IFCHR: 'c'}


class Store:
    """unseal(key name, blob, context pairs) -> secret; raises Damage when it refuses."""

    def __init__(self, path, unseal):
        self.path, self.unseal = os.fsencode(path), unseal
        self.meta = os.path.join(self.path, b'.byokfs')
        self.domains, self.skipped = {}, []
        failure = NotAStore('no store descriptor')
        for self.descriptor in self._copies(b'store', parse_store):
            try:
                self._authenticate()
                return
            except Damage as e:
                failure = NotAStore(str(e))
        raise failure

    def _copies(self, name, parse):
        """Both copies with good sums, the higher seq first."""
        found = []
        for copy in (name, name + b'~'):
            try:
                with open(os.path.join(self.meta, copy), 'rb') as f:
                    found.append(parse(f.read((16 << 20) + 1)))
            except (OSError, Damage):
                continue
        return sorted(found, key=lambda d: -d.seq)

    def _authenticate(self):
        self.domains = {}
        keys = self.domain(0).keys
        check(hmac.compare_digest(mac256(keys.store, self.descriptor.authentic), self.descriptor.mac),
              'store descriptor does not authenticate')
        domain, dirid = dir_id(os.readlink(os.path.join(self.path, b'.byokfs.d')), self.domain)
        check(domain.index == 0 and dirid == self.descriptor.domains[0][1], 'wrong .byokfs.d in the root')

    def domain(self, index):
        if index not in self.domains:
            check(index in self.descriptor.domains, 'unknown domain')
            domain_id, _, commit = self.descriptor.domains[index]
            ids = Ids(self.descriptor.suite, self.descriptor.store, domain_id)
            failure = Damage('no domain descriptor')
            for d in self._copies(b'domains/' + domain_id.hex().encode(), parse_domain):
                try:
                    self.domains[index] = self._open_domain(index, ids, commit, d)
                    break
                except Damage as e:
                    failure = e
            else:
                raise failure
        return self.domains[index]

    def _open_domain(self, index, ids, commit, d):
        check((d.store, d.domain, d.index) == (ids.store, ids.domain, index), 'descriptor of another domain')
        failure = None
        for slot in d.slots:
            try:
                secret = self.unseal(slot.key, slot.blob, {**d.generations[slot.generation], **ids.pairs('domain')})
                keys = DomainKeys(ids, secret)
                check(hmac.compare_digest(keys.commit, commit) and hmac.compare_digest(commit, d.commit),
                      'the domain key does not match its commitment')
                check(hmac.compare_digest(mac256(keys.desc, d.authentic), d.mac), 'domain descriptor does not authenticate')
                return Domain(index, keys, d, self.descriptor.names)
            except Damage as e:
                failure = failure or e
        raise failure

    # -- the tree

    def walk(self):
        """Every object, parents first, in byte order of names."""
        self.seen = {}
        root = Node(b'', 'd', self.path, os.lstat(self.path), self.domain(0))
        yield from self._directory(root, None)

    def _directory(self, node, parent):
        try:
            node.domain, node.obj = self._dir_id(node, parent)
        except Damage as e:
            node.error = str(e)
        yield node
        if node.error:
            return
        for name, entry in sorted(self._entries(node)):
            child = self._child(node, name, entry)
            if child.kind == 'd':
                yield from self._directory(child, node)
            else:
                yield child

    def _dir_id(self, node, parent):
        try:
            text = os.readlink(os.path.join(node.backing, b'.byokfs.d'))
        except OSError:
            raise Damage('.byokfs.d is missing') from None
        domain, dirid = dir_id(text, self.domain)
        if parent is not None and domain.index != parent.domain.index:
            check(self.descriptor.domains[domain.index][1] == dirid, 'directory of another domain')
        check(dirid not in self.seen, 'a second directory has this id')
        self.seen[dirid] = node.path
        return domain, dirid

    def _entries(self, node):
        for entry in os.listdir(node.backing):
            path = os.path.join(node.backing, entry)
            try:
                name = node.domain.name(entry, node.obj, lambda: os.readlink(path + b'.n'))
            except (Damage, OSError) as e:
                self.skipped.append((path, str(e)))
                continue
            if name is not None:
                yield name, entry

    def _child(self, node, name, entry):
        backing = os.path.join(node.backing, entry)
        st = os.lstat(backing)
        child = Node(os.path.join(node.path, name), KINDS[stat.S_IFMT(st.st_mode)], backing, st, node.domain)
        if child.kind == 'l':
            try:
                child.target = node.domain.link(link_text(backing))
            except Damage as e:
                child.error = str(e)
        return child

    def open(self, node):
        """An opened File whose descriptor belongs to the caller: use it in `with`."""
        return OpenFile(node, self.unseal)

    def find(self, path):
        want = os.fsencode(path).strip(b'/')
        for node in self.walk():
            if node.path == want:
                return node
        raise FileNotFoundError(path)


class OpenFile:
    def __init__(self, node, unseal):
        self.node, self.unseal = node, unseal

    def __enter__(self):
        self.fd = os.open(self.node.backing, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            check(stat.S_ISREG(os.fstat(self.fd).st_mode), 'not a regular file')
            return File(self.fd, self.node.domain, self.unseal)
        except BaseException:
            os.close(self.fd)
            raise

    def __exit__(self, *_):
        os.close(self.fd)


# ---- providers -----------------------------------------------------------------------------------

def keyfile_name(key):
    return 'keyfile:' + hkdf(b'byokfs1/keyfile', key, b'id', 8).hex()


def keyfile_unseal(path):
    """Section 8, keyfile."""
    with open(path, 'rb') as f:
        key = f.read(33)
    if len(key) != 32:
        raise NotAStore(f"key file '{path}' does not hold 32 bytes")
    seal = AESGCM(hkdf(b'byokfs1/keyfile', key, b'seal', 32))

    def unseal(name, blob, pairs):
        check(name == keyfile_name(key), 'sealed under another key file')
        try:
            return seal.decrypt(blob[:12], blob[12:], encode_pairs(pairs))
        except (InvalidTag, ValueError):
            raise Damage('the key file does not open this blob') from None
    return unseal


def aws_unseal(endpoint):
    """KMS Decrypt with the recorded context; credentials and Region as boto3 finds them."""
    import boto3
    import botocore.exceptions
    kms = boto3.client('kms', endpoint_url=endpoint)

    def unseal(name, blob, pairs):
        try:
            answer = kms.decrypt(CiphertextBlob=blob, EncryptionContext=pairs, KeyId=name)
        except botocore.exceptions.ClientError as e:
            raise Damage(f"the KMS denies: {e.response['Error']['Code']}") from None
        check(answer['KeyId'] == name, 'the KMS used another key')
        return answer['Plaintext']
    return unseal


def secrets_unseal(path):
    """A JSON object of blob (base64) -> secret (hex), for reference stores whose KMS is gone."""
    with open(path, encoding='ascii') as f:
        known = json.load(f)

    def unseal(_name, blob, _pairs):
        text = base64.b64encode(blob).decode()
        check(text in known, 'the secret of this blob is not known')
        return bytes.fromhex(known[text])
    return unseal


# ---- command line --------------------------------------------------------------------------------

def describe(store, node, xattrs):
    """A manifest line; 'error' stands for EIO."""
    line = {'path': os.fsdecode(node.path), 'type': node.kind, 'mode': f'{stat.S_IMODE(node.st.st_mode):04o}'}
    if node.kind == 'l':
        line['mode'] = '0777'
    obj = node.obj
    try:
        check(not node.error, node.error)
        if node.kind == 'f':
            with store.open(node) as f:
                line['size'], line['sha256'], obj = f.size, f.sha256(), f.file_id
        elif node.kind == 'l':
            line['size'], line['target'] = len(node.target), os.fsdecode(node.target)
        if xattrs and node.kind in 'fd':
            found = node.domain.xattrs(node.backing, obj)
            line['xattrs'] = {os.fsdecode(k): v.hex() for k, v in sorted(found.items())}
    except Damage as e:
        line['error'] = f'EIO: {e}'
    return line


def plain_nodes(root):
    """The same for a tree that is not a store, e.g. a mounted one."""
    root = os.fsencode(root)

    def visit(path, rel):
        st = os.lstat(path)
        yield rel, path, st
        if stat.S_ISDIR(st.st_mode):
            for name in sorted(os.listdir(path)):
                yield from visit(os.path.join(path, name), os.path.join(rel, name))
    yield from visit(root, b'')


def describe_plain(rel, path, st, xattrs):
    kind = KINDS[stat.S_IFMT(st.st_mode)]
    line = {'path': os.fsdecode(rel), 'type': kind, 'mode': f'{stat.S_IMODE(st.st_mode):04o}'}
    try:
        if kind == 'f':
            h = hashlib.sha256()
            with open(path, 'rb') as f:
                while data := f.read(1 << 20):
                    h.update(data)
            line['size'], line['sha256'] = st.st_size, h.hexdigest()
        elif kind == 'l':
            target = os.readlink(path)
            line['size'], line['target'] = len(target), os.fsdecode(target)
        if xattrs and kind in 'fd':
            line['xattrs'] = {n: os.getxattr(path, n).hex() for n in sorted(os.listxattr(path))}
    except OSError as e:
        line['error'] = f'EIO: {e.strerror}'
    return line


def cat(store, path, out):
    with store.open(store.find(path)) as f:
        for run in f.read_runs():
            while isinstance(run, int) and run > PAGE:
                out.write(bytes(PAGE))
                run -= PAGE
            out.write(run if isinstance(run, bytes) else bytes(run))


def parse_args(argv):
    p = argparse.ArgumentParser(description='Reads a byokfs store without byokfs.')
    p.add_argument('store', metavar='STORE')
    key = p.add_mutually_exclusive_group(required=True)
    key.add_argument('--keyfile', metavar='PATH', help='the 32 bytes of the keyfile provider')
    key.add_argument('--unseal-endpoint', metavar='URL', help='a KMS that speaks the AWS protocol')
    key.add_argument('--secrets', metavar='PATH', help='JSON of blob (base64) to secret (hex)')
    key.add_argument('--plain', action='store_true', help='STORE is a plain tree (only with --manifest)')
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument('--list', action='store_true', help='type, size and path of everything')
    what.add_argument('--cat', metavar='NAME', help='write the content of one file')
    what.add_argument('--verify', action='store_true', help='authenticate everything; exit 7 if something is damaged')
    what.add_argument('--manifest', action='store_true', help='JSON lines of path, type, size, sha256, mode')
    p.add_argument('--xattrs', action='store_true', help='extended attributes in the manifest')
    args = p.parse_args(argv)
    if args.plain and not args.manifest:
        p.error('--plain goes with --manifest')
    return args


def report(store, args):
    bad = 0
    for node in store.walk():
        line = describe(store, node, args.xattrs or args.verify)
        bad += 'error' in line
        if args.manifest:
            print(json.dumps(line, sort_keys=True))
        elif args.list:
            print(line['type'], line.get('size', '-'), line['path'] or '.', line.get('error', ''), sep='\t')
        elif 'error' in line:
            print(f"{line['path'] or '.'}: {line['error']}")
    for path, why in store.skipped:
        print(f"byokfs_reader: skipped '{os.fsdecode(path)}': {why}", file=sys.stderr)
    return 7 if bad else 0


def main(argv=None):
    args = parse_args(argv)
    if args.plain:
        for rel, path, st in plain_nodes(args.store):
            print(json.dumps(describe_plain(rel, path, st, args.xattrs), sort_keys=True))
        return 0
    try:
        unseal = (keyfile_unseal(args.keyfile) if args.keyfile else
                  aws_unseal(args.unseal_endpoint) if args.unseal_endpoint else secrets_unseal(args.secrets))
        store = Store(args.store, unseal)
        if not args.cat:
            return report(store, args)
        cat(store, args.cat, sys.stdout.buffer)
        return 0
    except NotAStore as e:
        print(f"byokfs_reader: error: cannot open '{args.store}': {e}", file=sys.stderr)
        return 4
    except (Damage, OSError) as e:
        print(f'byokfs_reader: error: {e}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
