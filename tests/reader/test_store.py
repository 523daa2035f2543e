"""The reader on whole stores made by store_maker.py: trees, all file shapes, and the attacks of byokfs-format(5), section 14."""
import json
import os
import random
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import byokfs_reader as r  # noqa: E402
import store_maker as m    # noqa: E402

SIZES = [0, 1, 1504, 1505, 4064, 4096, 4097, 10000, 16384, 16385, 16384 + 106 * 4096, 1 << 20]


def content(n, seed=7):
    return random.Random(seed).randbytes(n)


def open_store(maker, tmp_path):
    return r.Store(maker.root, r.keyfile_unseal(maker.keyfile(tmp_path / 'key')))


def read(store, path):
    with store.open(store.find(path)) as f:
        return f.read()


def verdict(store, path):
    try:
        return read(store, path)
    except r.Damage:
        return 'EIO'


@pytest.fixture(params=[(1, 'siv64'), (2, 'siv64'), (1, 'siv32'), (1, 'plain')], ids=str)
def maker(request, tmp_path):
    return m.Maker(tmp_path / 'store', *request.param, extra={'team': 'a b,c', 'tier': 'x:/@'})


# ---- what must open ------------------------------------------------------------------------------

def test_sizes(maker, tmp_path):
    for wrap_kind in (1, 2):
        for size in SIZES:
            maker.file(maker.root, b'%d.%d' % (size, wrap_kind), content(size), wrap_kind=wrap_kind)
    store = open_store(maker, tmp_path)
    for wrap_kind in (1, 2):
        for size in SIZES:
            node = store.find(f'{size}.{wrap_kind}')
            with store.open(node) as f:
                assert f.read() == content(size) and f.hint_right and f.size == size == r.hint_decode(node.st.st_size)


def test_names_and_tree(maker, tmp_path):
    want = {b'', b'dir', b'dir/sub', b'dir/sub/deep', b'dir/link'}
    d = maker.mkdir(maker.root, b'dir')
    sub = maker.mkdir(d, b'sub')
    maker.file(sub, b'deep', b'x')
    maker.symlink(d, b'link', b'../target')
    for n in (1, 16, 128, 129, 160, 161, 255):
        maker.file(maker.root, b'n' * n, b'%d' % n)
        want.add(b'n' * n)
    for odd in (b'\xff\xfe', b'-', b' leading', b'new\nline'):
        maker.file(maker.root, odd, odd)
        want.add(odd)
    fifo = maker.entry(maker.root, b'fifo')
    os.mkfifo(fifo)
    store = open_store(maker, tmp_path)
    nodes = {n.path: n for n in store.walk()}
    assert set(nodes) == want | {b'fifo'}
    assert not store.skipped and not any(n.error for n in nodes.values())
    assert nodes[b'dir/link'].target == b'../target' and nodes[b'fifo'].kind == 'p'
    assert read(store, 'dir/sub/deep') == b'x' and read(store, 'n' * 255) == b'255'


def test_nested_domain(maker, tmp_path):
    d = maker.mkdir(maker.root, b'vault')
    ids = r.Ids(maker.ids.suite, maker.ids.store, os.urandom(16))
    maker.add_domain(3, ids, d)
    maker.file(d, b'inside', b'secret')
    maker.file(maker.mkdir(d, b'below'), b'also', b'secret 2')
    maker.file(maker.root, b'outside', b'public')
    store = open_store(maker, tmp_path)
    assert read(store, 'vault/inside') == b'secret' and read(store, 'vault/below/also') == b'secret 2'
    assert read(store, 'outside') == b'public'
    assert {n.domain.index for n in store.walk()} == {0, 3}


def test_sparse(maker, tmp_path):
    """One page each at the start, in the last root group, in a group below L1, and below L2."""
    ks = [2, 4 + 106 * 59 + 105, 4 + 106 * 60 + 7, 4 + 106 * (60 + 672 * 60)]
    page = content(r.PAGE)
    for i, k in enumerate(ks):
        maker.file(maker.root, b's%d' % i, size=k * r.PAGE + 100, pages={k: page[:100].ljust(r.PAGE, b'\0')})
        maker.file(maker.root, b'full%d' % i, size=(k + 1) * r.PAGE, pages={k: page})
    maker.file(maker.root, b'hole', size=5 << 30, pages={})
    store = open_store(maker, tmp_path)
    for i, k in enumerate(ks[:3]):
        assert read(store, f's{i}') == bytes(k * r.PAGE) + page[:100]
    with store.open(store.find('full3')) as f:
        assert f.page(ks[3]) == page and f.page(ks[3] - 1) == bytes(r.PAGE) and f.size == (ks[3] + 1) * r.PAGE
    with store.open(store.find('hole')) as f:
        assert sum(run if isinstance(run, int) else len(run) for run in f.read_runs()) == 5 << 30


def test_one_good_copy_suffices(maker, tmp_path):
    maker.file(maker.root, b'f', b'x')
    for name in ('store', f'domains/{maker.ids.domain.hex()}'):
        path = os.path.join(os.fsdecode(maker.root), '.byokfs', name)
        with open(path, 'r+b') as f:
            f.write(b'X')
    assert read(open_store(maker, tmp_path), 'f') == b'x'


# ---- what must not (14) --------------------------------------------------------------------------

@pytest.fixture
def target(tmp_path):
    """A store with one file of 60 pages, written back after every attack, and a way to alter it."""
    maker = m.Maker(tmp_path / 'store')
    path = maker.file(maker.root, b'f', content(60 * r.PAGE))
    store = open_store(maker, tmp_path)
    with open(path, 'rb') as f:
        good = f.read()

    def attack(change):
        bad = bytearray(good)
        changed = change(bad)
        with open(path, 'wb') as f:
            f.write(bad if changed is None else changed)
        return verdict(store, 'f')
    assert attack(lambda b: None) == content(60 * r.PAGE)
    return attack


def put(b, p, page):
    b[p * r.PAGE:(p + 1) * r.PAGE] = page


def test_pages_zeroed_or_swapped(target):
    for p in range(1, 62):
        assert target(lambda b: put(b, p, bytes(r.PAGE))) == 'EIO'
    assert target(lambda b: b[:r.PAGE] + b[2 * r.PAGE:3 * r.PAGE] + b[r.PAGE:2 * r.PAGE] + b[3 * r.PAGE:]) == 'EIO'


def test_bits_of_pages(target):
    for at in range(r.PAGE, 8 * r.PAGE, 997):
        def flip(b):
            b[at] ^= 1
        assert target(flip) == 'EIO'


def test_truncated_and_extended(target):
    for size in (0, 1, 4095, 4096, 8192, 61 * r.PAGE):
        assert target(lambda b: b[:size]) == 'EIO'
    assert target(lambda b: b + b[r.PAGE:3 * r.PAGE]) == content(60 * r.PAGE)
    assert target(lambda b: b + bytes(5)) == content(60 * r.PAGE)


@pytest.mark.parametrize('sealed, rec, clock, opens', [
    (50, 50, 60, True),
    (51, 50, 60, True),                     # newer than recorded
    (49, 50, 60, False),                    # older
    (49, r.H | 50, 60, False),              # older than a tombstone
    (50, r.H | 50, 60, True),
    (62 + r.W, 50, 60, True),               # page 0 gets clock 62
    (63 + r.W, 50, 60, False),              # newer than possible
    (None, 50, 60, False),                  # absent
    (None, r.H | 50, 60, True),
])
def test_versions(tmp_path, sealed, rec, clock, opens):
    maker = m.Maker(tmp_path / 'store')
    path = maker.entry(maker.root, b'f')
    secret = os.urandom(32)
    writer = m.Writer(maker.keys.ids, os.urandom(16), secret)
    page, text = bytes(r.PAGE), bytes(r.BODY)
    if sealed:
        writer.clock = sealed - 1
        text = b'v' * r.BODY
        writer.put(b'D', 7, text)
        page = writer.out[r.phys(b'D', 7)]
    writer.recs[b'D', 7], writer.clock = rec, clock
    writer.put(b'G', 0, b''.join(bytes(32) + writer.rec(b'D', k) for k in range(4, 110)))
    root = (bytes(32) + r.u48(r.H)) * 4 + writer.rec(b'G', 0) + r.u48(r.H) * 219
    blob = m.wrap(maker.keys, secret, writer.file_id, os.urandom(12))
    with open(path, 'wb') as f:
        f.write(writer.page0(8 * r.PAGE, False, root, m.slot(1, 2, blob)))
        f.seek(5 * r.PAGE)
        f.write(writer.out[5])
        f.seek(r.phys(b'D', 7) * r.PAGE)
        f.write(page)
        f.truncate(r.hint(8 * r.PAGE, False))
    got = verdict(open_store(maker, tmp_path), 'f')
    assert got == (bytes(7 * r.PAGE) + text + bytes(32) if opens else 'EIO')


def test_page_0_of_another_file(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    x = maker.file(maker.root, b'x', content(9000))
    y = maker.file(maker.root, b'y', content(9000, 8))
    store = open_store(maker, tmp_path)
    with open(x, 'rb') as f, open(y, 'r+b') as g:
        g.write(f.read(r.PAGE))
    assert verdict(store, 'x') == content(9000) and verdict(store, 'y') == 'EIO'


def test_slot_of_another_file(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    x, y = (maker.file(maker.root, n, b'inline') for n in (b'x', b'y'))
    with open(x, 'rb') as f, open(y, 'r+b') as g:
        slot = f.read(r.PAGE)[512:1024]
        g.seek(512)
        g.write(slot)
    store = open_store(maker, tmp_path)
    assert verdict(store, 'x') == b'inline' and verdict(store, 'y') == 'EIO'


def test_file_moved_or_replaced(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    d = maker.mkdir(maker.root, b'd')
    x = maker.file(maker.root, b'x', b'1')
    os.rename(x, os.path.join(d, os.path.basename(x)))
    z = maker.entry(maker.root, b'z')
    os.symlink('/etc/passwd', z)
    with open(os.path.join(maker.root, b'garbage'), 'wb'):
        pass
    store = open_store(maker, tmp_path)
    nodes = {n.path: n for n in store.walk()}
    assert set(nodes) == {b'', b'd', b'z'} and nodes[b'z'].error
    assert len(store.skipped) == 2


def dir_errors(store):
    return {n.path for n in store.walk() if n.error}


def test_directory_ids(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    for name in (b'gone', b'twin1', b'twin2', b'index', b'good'):
        maker.mkdir(maker.root, name)
    paths = {name: maker.entry(maker.root, name) for name in (b'gone', b'twin1', b'twin2', b'index')}
    os.unlink(os.path.join(paths[b'gone'], b'.byokfs.d'))
    keys, _, dirid = maker.dirs[paths[b'twin1']]
    maker.set_dir_id(paths[b'twin2'], keys, 0, dirid)
    maker.set_dir_id(paths[b'index'], keys, 9, os.urandom(16))
    assert dir_errors(open_store(maker, tmp_path)) == {b'gone', b'twin2', b'index'}


def test_directory_of_another_domain(tmp_path):
    """A valid directory of a nested domain that is not its recorded root."""
    maker = m.Maker(tmp_path / 'store')
    vault = maker.mkdir(maker.root, b'vault')
    keys = maker.add_domain(1, r.Ids(1, maker.ids.store, os.urandom(16)), vault)
    other = maker.mkdir(maker.root, b'other')
    maker.set_dir_id(other, keys, 1, os.urandom(16))
    assert dir_errors(open_store(maker, tmp_path)) == {b'other'}


def test_links(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    maker.symlink(maker.root, b'l', b'target')
    path = maker.entry(maker.root, b'l')
    text = os.readlink(path)
    for bad in (text[:-1], text[1:], text + b'A', b'A' + text[1:], b'/etc/passwd', b'A' * 32):
        os.unlink(path)
        os.symlink(bad, path)
        assert dir_errors(open_store(maker, tmp_path)) == {b'l'}


def test_long_links(tmp_path):
    """The rest of a target is an attribute of the link, which has to be there and as it was."""
    maker = m.Maker(tmp_path / 'store')
    try:
        maker.symlink(maker.root, b'l', b't' * 4095)
    except OSError:
        pytest.skip('no attributes of symlinks here')
    path = maker.entry(maker.root, b'l')
    rest = os.getxattr(path, 'trusted.byokfs.link', follow_symlinks=False)
    assert dir_errors(open_store(maker, tmp_path)) == set()
    for bad in (rest[:-1], rest + b'x', bytes([rest[0] ^ 1]) + rest[1:], b''):
        os.setxattr(path, 'trusted.byokfs.link', bad, follow_symlinks=False)
        assert dir_errors(open_store(maker, tmp_path)) == {b'l'}
    os.removexattr(path, 'trusted.byokfs.link', follow_symlinks=False)
    assert dir_errors(open_store(maker, tmp_path)) == {b'l'}


@pytest.mark.parametrize('name', ['store', 'domain'])
def test_descriptors_altered(tmp_path, name):
    """Any byte of both copies, with a wrong sum and with a good one: refused."""
    maker = m.Maker(tmp_path / 'store')
    base = os.path.join(os.fsdecode(maker.root), '.byokfs', 'store' if name == 'store' else f'domains/{maker.ids.domain.hex()}')
    unseal = r.keyfile_unseal(maker.keyfile(tmp_path / 'key'))
    with open(base, 'rb') as f:
        good = f.read()
    authentic = good.index(b'\nmac=') + 70

    def refused(text):
        for copy in (base, base + '~'):
            with open(copy, 'wb') as f:
                f.write(text)
        with pytest.raises(r.NotAStore):
            r.Store(maker.root, unseal)

    for i in range(0, len(good), 3):
        refused(good[:i] + bytes([good[i] ^ 1]) + good[i + 1:])
    for i in range(0, authentic, 5):
        body = good[:i] + bytes([good[i] ^ 1]) + good[i + 1:-69]
        refused(body + b'sum=' + r.hashlib.sha256(body).hexdigest().encode() + b'\n')


def test_wrong_key_file(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    with pytest.raises(r.NotAStore):
        r.Store(maker.root, r.keyfile_unseal(m.Maker(tmp_path / 'other').keyfile(tmp_path / 'key')))


# ---- command line --------------------------------------------------------------------------------

def run(*args):
    done = subprocess.run([sys.executable, os.path.join(HERE, 'byokfs_reader.py'), *map(os.fsdecode, args)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    return done.returncode, done.stdout


def manifest(out):
    return {e['path']: (e['type'], e.get('size'), e.get('sha256'), e.get('target')) for e in map(json.loads, out.splitlines())}


def test_manifest_equals_plain_tree(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    plain = tmp_path / 'plain'
    os.makedirs(plain / 'd')
    d = maker.mkdir(maker.root, b'd')
    maker.symlink(d, b'l', b'../x')
    os.symlink('../x', plain / 'd/l')
    for size in SIZES:
        maker.file(d, b'%d' % size, content(size))
        (plain / f'd/{size}').write_bytes(content(size))
    key = maker.keyfile(tmp_path / 'key')
    rc, ours = run(maker.root, '--keyfile', key, '--manifest')
    rc_plain, theirs = run(plain, '--plain', '--manifest')
    assert (rc, rc_plain) == (0, 0)
    assert manifest(ours) == manifest(theirs) and len(manifest(ours)) == len(SIZES) + 3


def test_cat_list_verify(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    path = maker.file(maker.root, b'f', content(9000))
    key = maker.keyfile(tmp_path / 'key')
    assert run(maker.root, '--keyfile', key, '--cat', 'f') == (0, content(9000))
    assert run(maker.root, '--keyfile', key, '--verify') == (0, b'')
    rc, out = run(maker.root, '--keyfile', key, '--list')
    assert rc == 0 and b'f\t9000\tf\t' in out
    with open(path, 'r+b') as f:
        f.seek(5000)
        f.write(b'\0\1')
    rc, out = run(maker.root, '--keyfile', key, '--verify')
    assert rc == 7 and out.startswith(b'f: EIO')
    assert run(maker.root, '--keyfile', key, '--cat', 'f')[0] == 1
    assert run(tmp_path, '--keyfile', key, '--verify')[0] == 4
    assert run(maker.root, '--verify')[0] == 2


def test_secrets_file(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    maker.file(maker.root, b'f', b'hello', wrap_kind=2)
    unseal, seen = r.keyfile_unseal(maker.keyfile(tmp_path / 'key')), {}

    def spy(name, blob, pairs):
        secret = unseal(name, blob, pairs)
        seen[r.base64.b64encode(blob).decode()] = secret.hex()
        return secret
    r.Store(maker.root, spy)
    (tmp_path / 'secrets').write_text(json.dumps(seen))
    assert run(maker.root, '--secrets', tmp_path / 'secrets', '--cat', 'f') == (0, b'hello')


# ---- attributes ----------------------------------------------------------------------------------

def test_attributes(tmp_path):
    maker = m.Maker(tmp_path / 'store')
    path = maker.file(maker.root, b'f', b'x')
    with open(path, 'rb') as f:
        file_id = f.read(64)[48:]
    name = b'user.comment'
    siv = m.AESSIV(maker.keys.xnames).encrypt(name + bytes(-len(name) % 16), [b'x1', file_id])
    backing, nonce = b'user.byokfs.' + r.b64url(siv), os.urandom(24)
    cipher, short = r.aead(1, maker.keys.xattrs, nonce)
    aad = b'byokfs1\0x' + bytes(7) + maker.ids.store + file_id + backing
    try:
        os.setxattr(path, backing, nonce + cipher.encrypt(short, b'hi', aad))
        os.setxattr(path, b'user.byokfs.other', b'not ours')
        os.setxattr(path, b'user.other', b'not ours')
    except OSError:
        pytest.skip('no user attributes here')
    store = open_store(maker, tmp_path)
    assert store.find('f').domain.xattrs(path, file_id) == {name: b'hi'}
    os.setxattr(path, backing, nonce + cipher.encrypt(short, b'hi', aad + b'x'))
    with pytest.raises(r.Damage):
        store.find('f').domain.xattrs(path, file_id)
