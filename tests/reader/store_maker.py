"""Makes small byokfs stores from byokfs-format(5), for tests of the reader. Writes files in one go, without any of the rules for
writers in section 5: nothing here survives a crash, and nothing needs to."""
import hashlib
import os
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV

import byokfs_reader as r

STORE, DOMAIN, FILE, DIR = (bytes(range(a, a + 16)) for a in (0xa0, 0xb0, 0xc0, 0xd0))
SECRET, DOMAIN_SECRET = bytes(range(32)), bytes(range(0x20, 0x40))
RND = bytes(range(0xe0, 0xea))
CREATED = 1767225600


def seal(suite, key, kind, store, file_id, index, ver, text, rnd=None):
    rnd = rnd or os.urandom(10)
    cipher, short = r.aead(suite, key, r.unit_nonce(suite, kind, index, ver, rnd))
    return r.u48(ver) + rnd + cipher.encrypt(short, text, r.unit_aad(suite, kind, store, file_id, index, ver))


def wrap(keys, secret, file_id, iv):
    key = r.derive(keys.dek, keys.ids, b'wrap', 32, file_id)
    return iv + AESGCM(key).encrypt(iv, secret, keys.ids.canonical(file_id))


def ident(ids, file_id, keys):
    head = b'\x89BYOKFS\n' + struct.pack('<HBBI', 1, 1, ids.suite, 0) + ids.store + ids.domain + file_id + keys.commit
    head = head.ljust(480, b'\0')
    return head + r.mac256(keys.hdr, b'I' + head)


def slot(seq, wrap_kind, blob, generation=0, provider=0, key=None, sealed=CREATED):
    name = hashlib.sha256(key.encode()).digest()[:8] if key else bytes(8)
    s = struct.pack('<IBBHHB5x', seq, 1, wrap_kind, generation, len(blob), provider) + name + struct.pack('<Q', sealed)
    s = (s.ljust(64, b'\0') + blob).ljust(508, b'\0')
    return s + struct.pack('<I', r.crc32c(s))


def state(keys, file_id, seq, size, clock, inline, csize=0, dclock=0):
    s = struct.pack('<QQQQQB', seq, size, csize, clock, dclock, inline).ljust(480, b'\0')
    return s + r.mac256(keys.hdr, b'S' + file_id + s)


class Writer:
    """Lays out one file; pages is k -> 4096 bytes, the rest below size is a hole."""

    def __init__(self, ids, file_id, secret):
        self.ids, self.file_id = ids, file_id
        self.keys = r.FileKeys(ids, secret, file_id)
        self.clock, self.out = 1, {}
        self.recs = {}          # (kind, index) -> rec

    def seal(self, kind, index, text, rnd=None):
        return seal(self.ids.suite, self.keys.page, kind, self.ids.store, self.file_id, index, self.clock, text, rnd)

    def put(self, kind, index, text):
        self.clock += 1
        self.out[r.phys(kind, index)] = self.seal(kind, index, text.ljust(r.BODY, b'\0'))
        self.recs[kind, index] = self.clock

    def rec(self, kind, index):
        return r.u48(self.recs.get((kind, index), r.H))

    def tree(self, pages):
        for k, data in pages.items():
            self.put(b'D', k, data[:r.BODY])
        spill = {k: data[r.BODY:].ljust(32, b'\0') for k, data in pages.items()}
        for g in sorted({(k - 4) // r.FAN for k in pages if k >= 4}):
            ks = range(4 + r.FAN * g, 4 + r.FAN * (g + 1))
            self.put(b'G', g, b''.join(spill.get(k, bytes(32)) + self.rec(b'D', k) for k in ks))
        self.level(b'G', b'L')
        self.level(b'L', b'M')
        root = b''.join(spill.get(k, bytes(32)) + self.rec(b'D', k) for k in range(4))
        for kind, n in ((b'G', 60), (b'L', 60), (b'M', 100)):
            root += b''.join(self.rec(kind, i) for i in range(n))
        return root

    def level(self, kind, above):
        for n in sorted({(i - 60) // r.NODE_FAN for k, i in list(self.recs) if k == kind and i >= 60}):
            first = 60 + r.NODE_FAN * n
            self.put(above, n, b''.join(self.rec(kind, i) for i in range(first, first + r.NODE_FAN)))

    def page0(self, size, inline, root, blob_slot, rnd=None):
        self.clock += 1
        seq = 2
        return (ident(self.ids, self.file_id, self.keys) + blob_slot + bytes(512) +
                state(self.keys, self.file_id, 1, 0, 1, 1) + state(self.keys, self.file_id, seq, size, self.clock, inline) +
                self.seal(b'R', seq, root.ljust(1504, b'\0'), rnd))


def split(data):
    return {k: data[k * r.PAGE:(k + 1) * r.PAGE].ljust(r.PAGE, b'\0') for k in range(-(-len(data) // r.PAGE))}


def write_file(path, writer, blob_slot, content=b'', size=None, pages=None):
    """content, or pages and size."""
    if pages is None:
        size = len(content)
    inline = pages is None and size <= r.INLINE_MAX
    root = content if inline else writer.tree(split(content) if pages is None else pages)
    with open(path, 'wb') as f:
        f.write(writer.page0(size, inline, root, blob_slot))
        for p, page in writer.out.items():
            f.seek(p * r.PAGE)
            f.write(page)
        f.truncate(r.hint(size, inline))


def with_sum(text):
    return text + f'sum={hashlib.sha256(text.encode()).hexdigest()}\n'


def store_text(ids, mode, domains, key):
    """domains: (index, domain_id, dirid, commitment)"""
    text = (f'byokfs-store 1\nstore={ids.store.hex()}\nsuite={ids.suite}\nlayout=1\nnames={mode}\n'
            'created=2026-01-01T00:00:00Z\nby=byokfs 1.0.0\nseq=1\n')
    for index, *rest in domains:
        text += f'domain={index} ' + ' '.join(x.hex() for x in rest) + '\n'
    return with_sum(text + f'mac={r.mac256(key, text.encode()).hex()}\n')


def domain_head(keys, index, seal_mode):
    text = (f'byokfs-domain 1\nstore={keys.ids.store.hex()}\ndomain={keys.ids.domain.hex()}\nindex={index}\nseal={seal_mode}\n'
            f'created=2026-01-01T00:00:00Z\ncommit={keys.commit.hex()}\n')
    return text + f'mac={r.mac256(keys.desc, text.encode()).hex()}\n'


def keyfile_seal(key, secret, pairs):
    iv = os.urandom(12)
    return iv + AESGCM(r.hkdf(b'byokfs1/keyfile', key, b'seal', 32)).encrypt(iv, secret, r.encode_pairs(pairs))


class Maker:
    """A store under a key file. Methods put objects below a backing directory, whose id is known."""

    def __init__(self, root, suite=1, mode='siv64', extra=None):
        self.root, self.mode, self.extra, self.key = os.fsencode(root), mode, extra or {}, os.urandom(32)
        self.dirs, self.table = {}, []
        os.makedirs(os.path.join(self.root, b'.byokfs/domains'))
        self.ids = r.Ids(suite, os.urandom(16), os.urandom(16))
        self.keys = self.add_domain(0, self.ids, self.root)

    def add_domain(self, index, ids, backing):
        secret, dirid = os.urandom(32), os.urandom(16)
        keys = r.DomainKeys(ids, secret)
        self.table.append((index, ids.domain, dirid, keys.commit))
        self._domain_descriptor(index, keys, secret, self.extra)
        self.set_dir_id(backing, keys, index, dirid)
        self._store_descriptor(keys if index == 0 else self.keys)
        return keys

    def _put(self, name, text):
        for copy in (name, name + '~'):
            with open(os.path.join(self.root, b'.byokfs', copy.encode()), 'w', encoding='ascii') as f:
                f.write(text)

    def _store_descriptor(self, keys0):
        self._put('store', store_text(self.ids, self.mode, self.table, keys0.store))

    def _domain_descriptor(self, index, keys, secret, extra):
        pairs = ','.join(f'{k}:{self._escape(v)}' for k, v in extra.items()) or '-'
        blobs = [keyfile_seal(self.key, s, {**extra, **keys.ids.pairs(use)})
                 for s, use in ((secret, 'domain'), (os.urandom(32), 'probe'))]
        text = domain_head(keys, index, 'file') + f'seq=1\nrotated=-\ncontext.1={pairs}\na.seq=1\na.provider=keyfile\n'
        text += f'a.key={r.keyfile_name(self.key)}\na.material=-\na.context=1\na.sealed=2026-01-01T00:00:00Z\n'
        text += ''.join(f'a.{n}={r.base64.b64encode(b).decode()}\n' for n, b in zip(('blob', 'probe'), blobs))
        self._put(f'domains/{keys.ids.domain.hex()}', with_sum(text))

    @staticmethod
    def _escape(value):
        return ''.join(c if c.isalnum() or c in '._:/@+-' else f'%{ord(c):02x}' for c in value)

    def set_dir_id(self, backing, keys, index, dirid):
        raw = r.u16(index) + dirid
        link = os.path.join(backing, b'.byokfs.d')
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(r.b64url(raw + r.mac256(keys.dirs, b'byokfs-dir' + raw)[:16]), link)
        self.dirs[backing] = keys, index, dirid

    def entry(self, parent, name):
        """The backing path of a name; makes the .n of a long one."""
        keys, _, dirid = self.dirs[parent]
        if self.mode == 'plain':
            return os.path.join(parent, name)
        siv = AESSIV(keys.names).encrypt(name + bytes(-len(name) % 16), [b'n1', dirid])
        encode = r.b32 if self.mode == 'siv32' else r.b64url
        if len(siv) <= (144 if self.mode == 'siv32' else 176):
            return os.path.join(parent, encode(siv))
        path = os.path.join(parent, b'L.' + encode(hashlib.blake2b(siv, digest_size=24).digest()))
        os.symlink(r.b64url(siv), path + b'.n')
        return path

    def mkdir(self, parent, name):
        path = self.entry(parent, name)
        os.mkdir(path)
        keys, index, _ = self.dirs[parent]
        self.set_dir_id(path, keys, index, os.urandom(16))
        return path

    def symlink(self, parent, name, target):
        salt = os.urandom(8)
        siv = AESSIV(self.dirs[parent][0].links).encrypt(target, [b'l1', salt])
        text, path = r.b64url(salt + siv), self.entry(parent, name)
        if len(text) <= 4095:
            os.symlink(text, path)
        else:
            os.symlink(b'.' + text[:1020], path)
            os.setxattr(path, 'trusted.byokfs.link', (salt + siv)[765:], follow_symlinks=False)

    def file(self, parent, name, content=b'', size=None, pages=None, wrap_kind=1):
        keys = self.dirs[parent][0]
        file_id, secret = os.urandom(16), os.urandom(32)
        writer = Writer(keys.ids, file_id, secret)
        if wrap_kind == 1:
            blob = keyfile_seal(self.key, secret, {**self.extra, **keys.ids.pairs('file', file_id)})
            blob_slot = slot(1, 1, blob, 1, 3, r.keyfile_name(self.key))
        else:
            blob_slot = slot(1, 2, wrap(keys, secret, file_id, os.urandom(12)))
        path = self.entry(parent, name)
        write_file(path, writer, blob_slot, content, size, pages)
        return path

    def keyfile(self, path):
        with open(path, 'wb') as f:
            f.write(self.key)
        return path
