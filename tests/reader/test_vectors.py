"""The vectors of byokfs-format(5), section 17, and the examples of section 16, computed by the Python code alone."""
import hashlib
import os
import random
import sys

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import byokfs_reader as r  # noqa: E402
import store_maker as m    # noqa: E402

IDS = r.Ids(1, m.STORE, m.DOMAIN)
IDS2 = r.Ids(2, m.STORE, m.DOMAIN)
KEYS = r.FileKeys(IDS, m.SECRET, m.FILE)
DKEYS = r.DomainKeys(IDS, m.DOMAIN_SECRET)
WRAP_IV = bytes(range(0x60, 0x6c))
SUBKEY = '8ddd0d2c3dca6b86ecf533a619eb3b6799e2f3e30b43ae4e50089fe13490e31d'


def sha(b):
    return hashlib.sha256(b).hexdigest()


# ---- keys and units ------------------------------------------------------------------------------

def test_contexts():
    assert len(IDS.canonical(m.FILE)) == 162
    assert sha(IDS.canonical(m.FILE)) == 'f0bf05736af18248030e3f7c78890e9b3d46c6d382482230ba38c1590d9d9364'
    assert len(IDS.canonical()) == 117
    assert sha(IDS.canonical()) == 'a522f51188530cb4bb484bc8d73b3cf8402220cc09ea2687a6a401c93e4251d1'


def test_file_keys():
    assert r.data_key(IDS, m.SECRET, m.FILE).hex() == (
        '1700515378da27d049887b0c8fecc97cd0e93d5c54ad0ea0053c6d220671b26b'
        'ccbf94feb3375c46d88caf3bab0f83802ab298257cab4af2d52b59230d0729e4')
    assert KEYS.page.hex() == '57b3a0a9d67e59b9bc4d537c1e97eea53ab9ffc011fcd639b4efb8ae85c45072'
    assert KEYS.hdr.hex() == '879cf560cc3eb516da02486553302d7e06356665a983e342228ce2b49fea70b0'
    assert KEYS.commit.hex() == '59620efda908e84c8655ea3dad3710da5368a50eb09ef0e747149941a66e05fc'


def test_domain_keys():
    assert DKEYS.dek.hex() == (
        'dd24e01edf33e95d0eed1c61be877461d667ed52d7c5bc62c17431717a565e5a'
        '36843256418974ef9eca36b83eb938b8fc44057f7fa53ac8cdeab3c0dad62f1b')
    assert DKEYS.names.hex() == (
        '79a32e5ff1f37296e99ec21171eace021ac87e980b5c5bf74ae75cbf954a8b3f'
        'd33f4e5259ae8ffb112019ca9b135d9a85f68bcb9852e5bb39a7e43eec544459')
    assert DKEYS.commit.hex() == 'c0b394fef8a0a6e9df0f5935883bfb6db84d4cf6a013bbedf5928a11f8ae9667'


@pytest.mark.parametrize('key, aad, sealed', [
    (b'\1' * 32, b'', 'ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271'),
    (b'\3' * 32, b'c2sp.org/XAES-256-GCM', '986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d'),
])
def test_published_xaes(key, aad, sealed):
    nonce = b'ABCDEFGHIJKLMNOPQRSTUVWX'
    assert r.aead_open(1, key, nonce, bytes.fromhex(sealed), aad, 'vector') == b'XAES-256-GCM'


def test_hchacha20():
    """draft-irtf-cfrg-xchacha, section 2.2.1."""
    assert r.hchacha20(bytes(range(32)), bytes.fromhex('000000090000004a0000000031415927')).hex() == (
        '82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc')


def data_page(ids, keys):
    text = bytes(i % 251 for i in range(r.BODY))
    page = m.seal(ids.suite, keys.page, b'D', m.STORE, m.FILE, 300, 0x0102030405, text, m.RND)
    assert r.unit_open(ids.suite, keys.page, b'D', m.STORE, m.FILE, 300, page) == (text, 0x0102030405)
    return page


def test_data_page():
    assert r.phys(b'D', 300) == 304 and r.unit_group(b'D', 300) == 3
    nonce = r.unit_nonce(1, b'D', 300, 0x0102030405, m.RND)
    assert nonce.hex() == '440101000201000003000000e0e1e2e3e4e5e6e7e8e90504'
    assert r.xaes_subkey(KEYS.page, nonce[:12]).hex() == SUBKEY
    assert r.unit_aad(1, b'D', m.STORE, m.FILE, 300, 0x0102030405).hex() == (
        '62796f6b667331000101440000000000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf'
        'c0c1c2c3c4c5c6c7c8c9cacbcccdcecf2c010000000000000504030201000000')
    page = data_page(IDS, KEYS)
    assert page[-16:].hex() == 'bf10648a07613013e1ceb9fdf254969b'
    assert sha(page) == '2ba078ed6ec4cbc58072df4105844cfea1e6fa679f6f9fe014fc61e5a0902055'


def test_data_page_suite_2():
    keys = r.FileKeys(IDS2, m.SECRET, m.FILE)
    assert keys.page.hex() == '2369fea5e1156cd06adf48724c89663b558d80c4ef1fac5907d305fc06d91d81'
    page = data_page(IDS2, keys)
    assert page[-16:].hex() == '88d1eb9b5e4eb4f874a3cc53398b5525'
    assert sha(page) == 'f9eaca3cf25198c7c206e7df3b012b3613bc28b5023cfa09f6d3434e4d86414e'


def test_wrap():
    blob = m.wrap(DKEYS, m.SECRET, m.FILE, WRAP_IV)
    assert blob.hex() == ('606162636465666768696a6b51667499addde7648a68ffbab04da1f47af94c89'
                          'ea05afa21e47c77f91fd8373426a3b32a6672bd2bcb3b839a1032a7e')
    assert DKEYS.unwrap(blob, m.FILE) == m.SECRET


def hello():
    writer = m.Writer(IDS, m.FILE, m.SECRET)
    return writer.page0(5, True, b'hello', m.slot(1, 2, m.wrap(DKEYS, m.SECRET, m.FILE, WRAP_IV)), m.RND)


def test_page_0():
    page = hello()
    assert page[480:512].hex() == '49ddee4a01443d7525231c9e42944b52253a98a347007da6e9c6fe02f4ac944e'
    assert page[1020:1024].hex() == 'c5d66f3a'
    assert page[2528:2560].hex() == '650ef2837762a0df5575a69ba2e0823348770f2127098b7b4a860166eade63cd'
    assert page[-16:].hex() == '5caff50a1eb3415427f9209363d01ae5'
    assert sha(page) == 'f6fe3a86d82346aa9a05ac019c05508b99aaa24af349409b94c40187a80f50b3'


class VectorDomain:
    keys, slots, generations = DKEYS, [None], {}


def open_page_0(path, page):
    path.write_bytes(page)
    fd = os.open(path, os.O_RDONLY)
    try:
        return r.File(fd, VectorDomain, None).read()
    finally:
        os.close(fd)


def test_read_hello(tmp_path):
    path = tmp_path / 'hello'
    page = hello()
    assert open_page_0(path, page) == b'hello'
    assert open_page_0(path, page + bytes(5)) == b'hello'


def test_page_0_damage(tmp_path):
    """A flipped bit in any byte: EIO, or harmless in the empty slot and the STATE that does not rule."""
    page = hello()
    for i in range(len(page)):
        bad = bytearray(page)
        bad[i] ^= 1 << i % 8
        if 1024 <= i < 2048:
            assert open_page_0(tmp_path / 'f', bad) == b'hello'
        else:
            with pytest.raises(r.Damage):
                open_page_0(tmp_path / 'f', bad)


# ---- names and descriptors -----------------------------------------------------------------------

def test_names():
    domain = r.Domain(0, DKEYS, r.DomainDescriptor(b'', b'', 0, b'', b'', 0, b''), 'siv64')
    assert domain.name(b'BLadSzQVlqxFET_J0BKksJB7se-wXYxA__eV4NaywUE', m.DIR, None) == b'hello.txt'
    long = b'a' * 200
    siv = AESSIV(DKEYS.names).encrypt(long + bytes(8), [b'n1', m.DIR])
    assert domain.name(b'L.RVW1fnFwssevtsRHUyk91cfStWyxEvwY', m.DIR, lambda: r.b64url(siv)) == long
    assert domain.link(b'AAECAwQFBgd3GtLAg941oJ0-fFmXbR1OvpH13g') == b'../x'
    assert r.dir_id(b'AADQ0dLT1NXW19jZ2tvc3d7fL7xzaGnyzPO8sEXwxHcUbQ', lambda _: domain)[1] == m.DIR


def test_attribute():
    domain = r.Domain(0, DKEYS, r.DomainDescriptor(b'', b'', 0, b'', b'', 0, b''), 'siv64')
    backing = b'user.byokfs.fSNHv2BBG9kEk-jMQ-rsGNLbP141VsP_biQsUMQhgLk'
    siv = AESSIV(DKEYS.xnames).encrypt(b'user.comment' + bytes(4), [b'x1', m.FILE])
    assert backing == b'user.byokfs.' + r.b64url(siv)
    value = bytes.fromhex('404142434445464748494a4b4c4d4e4f5051525354555657911ace02107c6fd3e12d19cff0066d56ef84')
    assert domain.xattr_value(m.FILE, backing, value) == b'hi'


def test_descriptors():
    store = m.store_text(IDS, 'siv64', [(0, m.DOMAIN, m.DIR, DKEYS.commit)], DKEYS.store)
    assert '\nmac=d5bd1cdf7f0189a6fe88b040fb2db8ea171aecda452bbd94927797f93c0345c1\nsum=' in store
    d = r.parse_store(store.encode())
    assert r.mac256(DKEYS.store, d.authentic) == d.mac and d.domains == {0: (m.DOMAIN, m.DIR, DKEYS.commit)}
    assert m.domain_head(DKEYS, 0, 'file').endswith(
        '\nmac=29a8fd8a5096241c89052b261e2ee59d24d82bda640d82986b4b03da4cb06752\n')


# ---- layout --------------------------------------------------------------------------------------

@pytest.mark.parametrize('size, inline, st_size', [
    (0, True, 4096), (1, True, 4097), (1504, True, 5600), (1505, False, 9697), (4096, False, 8192), (10000, False, 18192),
    (16385, False, 28673), (1 << 20, False, 1064960), (1 << 30, False, 1083895808), (1 << 40, False, 1109899845632),
])
def test_examples(size, inline, st_size):
    assert r.hint(size, inline) == st_size
    assert r.hint_decode(st_size) == size


def test_map_is_a_bijection():
    rng = random.Random(1)
    pages = list(range(20000)) + [rng.randrange(r.DATA_MAX) for _ in range(200000)] + [r.DATA_MAX - 1]
    for k in pages:
        assert r.unit_at(r.phys(b'D', k)) == (b'D', k)
    for kind, count in ((b'G', 45198780), (b'L', 67260), (b'M', 100)):
        for n in [*range(min(count, 2000)), *(rng.randrange(count) for _ in range(2000)), count - 1]:
            assert r.unit_at(r.phys(kind, n)) == (kind, n)
    assert r.phys(b'D', r.DATA_MAX - 1) == 4836336825 - 1
    assert r.unit_at(4836336825) is None and r.unit_at(0) is None
    units = [r.unit_at(p) for p in range(1, 200000)]
    assert len(set(units)) == len(units)


def test_hints():
    rng = random.Random(2)
    for size in [*range(70000), *(rng.randrange(1505, r.DATA_MAX * r.PAGE) for _ in range(100000))]:
        assert r.hint_decode(r.hint(size, False)) == size
        if size <= r.INLINE_MAX:
            assert r.hint_decode(r.hint(size, True)) == size
    assert r.hint_decode(4095) is None and r.hint_decode(4096 + 1505) is None
    assert r.hint_decode(6 * 4096) is None      # ends at a group page
    assert r.hint_decode(1 << 62) is None
