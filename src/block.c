/* block.c — seal and open one unit, sections 2.3, 2.4 and 3.2 of byokfs-format(5).
 *
 * Hides how a unit's type, index, version and randomness become a nonce and associated data in either suite. The
 * ciphers are in block_aead.c, the keyed contexts that suite 1 reuses in block_pool.c.
 *
 * In suite 1 a unit is sealed with XAES-256-GCM under a 24-byte nonce whose first half names the type, the group and
 * the upper bits of the version. That half selects the subkey, so all 106 pages of a group share one keyed context,
 * and a run that walks through a group asks the pool once.                                                     */
#include "block.h"

#include <errno.h>
#include <limits.h>

#include "block_internal.h"
#include "bytes.h"
#include "secret.h"

#define LAYOUT_VERSION 1u
#define AAD            64u

enum { SUITE_XAES = 1, SUITE_XCHACHA = 2 };

_Static_assert(BLOCK_TAG == AEAD_TAG && BLOCK_META + LAYOUT_BODY + AEAD_TAG == LAYOUT_PAGE, "section 3.2");

/* What a unit is bound to. */
struct unit {
	enum unit_type type;
	uint64_t index;
	uint64_t ver;
};

uint64_t block_serial(void)
{
	static _Atomic uint64_t last;

	return ++last;
}

bool block_suite_known(unsigned suite)
{
	return suite == SUITE_XAES || suite == SUITE_XCHACHA;
}

void block_begin(struct block_run *run, const struct block_file *file)
{
	run->file = file;
	run->ctx = NULL;
}

void block_end(struct block_run *run)
{
	if (run->ctx)
		block_pool_give(run->ctx);
	run->ctx = NULL;
}

static void put_aad(uint8_t aad[static AAD], const struct block_file *file, const struct unit *unit)
{
	memset(aad, 0, AAD);
	memcpy(aad, "byokfs1", 8);
	aad[8] = file->suite;
	aad[9] = LAYOUT_VERSION;
	aad[10] = (uint8_t)unit->type;
	memcpy(aad + 16, file->store, CONTEXT_ID);
	memcpy(aad + 32, file->file, CONTEXT_ID);
	le64_put(aad + 48, unit->index);
	le64_put(aad + 56, unit->ver);
}

/* Suite 1: both halves of the XAES nonce. */
static void put_xaes_nonce(uint8_t selector[static XAES_SELECTOR], uint8_t iv[static GCM_IV], const struct unit *unit,
    const uint8_t rnd[static BLOCK_RND])
{
	selector[0] = (uint8_t)unit->type;
	selector[1] = SUITE_XAES;
	selector[2] = LAYOUT_VERSION;
	selector[3] = 0;
	le32_put(selector + 4, (uint32_t)(unit->ver >> 24));
	le32_put(selector + 8, layout_group_number(unit->type, unit->index));
	memcpy(iv, rnd, BLOCK_RND);
	le16_put(iv + BLOCK_RND, (uint16_t)unit->ver);
}

/* Suite 2. */
static void put_xchacha_nonce(uint8_t nonce[static 24], const struct unit *unit, const uint8_t rnd[static BLOCK_RND])
{
	uint8_t index[8];

	le64_put(index, unit->index);
	nonce[0] = (uint8_t)unit->type;
	memcpy(nonce + 1, index, 5);
	le48_put(nonce + 6, unit->ver);
	memcpy(nonce + 12, rnd, BLOCK_RND);
	le16_put(nonce + 22, 0);
}

/* Makes run->ctx the context of that selector. */
static int run_select(struct block_run *run, const uint8_t selector[static XAES_SELECTOR])
{
	if (run->ctx && run->ctx->serial == run->file->serial &&
	    memcmp(run->ctx->selector, selector, XAES_SELECTOR) == 0)
		return 0;
	block_end(run);
	run->ctx = block_pool_take(run->file->serial, run->file->key, selector);
	return run->ctx ? 0 : -EIO;
}

/* One unit, laid out as meta | n bytes of ciphertext | tag. */
static int unit_seal(struct block_run *run, const struct unit *unit, const uint8_t rnd[static BLOCK_RND],
    const uint8_t *text, size_t n, uint8_t *out)
{
	uint8_t aad[AAD], selector[XAES_SELECTOR], nonce[24];
	const struct aead_text t = { aad, sizeof(aad), text, n, out + BLOCK_META };
	int rc;

	if (unit->ver == 0 || unit->ver > BLOCK_VER_MAX)
		return -EFBIG;
	le48_put(out, unit->ver);
	memmove(out + 6, rnd, BLOCK_RND);
	put_aad(aad, run->file, unit);
	if (run->file->suite == SUITE_XCHACHA) {
		put_xchacha_nonce(nonce, unit, rnd);
		return aead_chacha_seal(run->file->key, nonce, &t, out + BLOCK_META + n);
	}
	put_xaes_nonce(selector, nonce, unit, rnd);
	rc = run_select(run, selector);
	return rc != 0 ? rc : aead_gcm_seal(run->ctx->gcm, nonce, &t, out + BLOCK_META + n);
}

/* A sealed unit in pieces: meta, n bytes of ciphertext, tag. */
struct sealed {
	const uint8_t *meta, *in;
	size_t n;
	const uint8_t *tag;
};

/* The version is the caller's to read and judge; here it is only authenticated. */
static int unit_open(struct block_run *run, const struct unit *unit, const struct sealed *s, uint8_t *text)
{
	uint8_t aad[AAD], selector[XAES_SELECTOR], nonce[24];
	const struct aead_text t = { aad, sizeof(aad), s->in, s->n, text };
	const uint8_t *rnd = s->meta + 6;
	int rc;

	put_aad(aad, run->file, unit);
	if (run->file->suite == SUITE_XCHACHA) {
		put_xchacha_nonce(nonce, unit, rnd);
		return aead_chacha_open(run->file->key, nonce, &t, s->tag);
	}
	put_xaes_nonce(selector, nonce, unit, rnd);
	rc = run_select(run, selector);
	return rc != 0 ? rc : aead_gcm_open(run->ctx->gcm, nonce, &t, s->tag);
}

int block_seal_with_rnd(struct block_run *run, enum unit_type type, uint64_t index, uint64_t ver,
    const uint8_t rnd[static BLOCK_RND], const uint8_t text[static LAYOUT_BODY], uint8_t page[static LAYOUT_PAGE])
{
	return unit_seal(run, &(struct unit){ type, index, ver }, rnd, text, LAYOUT_BODY, page);
}

int block_seal(struct block_run *run, enum unit_type type, uint64_t index, uint64_t ver,
    const uint8_t text[static LAYOUT_BODY], uint8_t page[static LAYOUT_PAGE])
{
	uint8_t rnd[BLOCK_RND];

	secret_nonce(rnd, sizeof(rnd));
	return block_seal_with_rnd(run, type, index, ver, rnd, text, page);
}

static bool sealed_zero(const struct sealed *s)
{
	return bytes_zero(s->meta, BLOCK_META) && bytes_zero(s->in, s->n) && bytes_zero(s->tag, BLOCK_TAG);
}

static int page_open(struct block_run *run, enum unit_type type, uint64_t index, const struct sealed *s,
    uint8_t text[static LAYOUT_BODY], uint64_t *ver)
{
	const struct unit unit = { type, index, le48_get(s->meta) };
	int rc = -EBADMSG;

	if (unit.ver == 0 && sealed_zero(s))
		rc = -ENODATA;
	else if (unit.ver > 0 && unit.ver <= BLOCK_VER_MAX)
		rc = unit_open(run, &unit, s, text);
	if (rc != 0) {
		explicit_bzero(text, LAYOUT_BODY);
		return rc;
	}
	*ver = unit.ver;
	return 0;
}

int block_open(struct block_run *run, enum unit_type type, uint64_t index, const uint8_t page[static LAYOUT_PAGE],
    uint8_t text[static LAYOUT_BODY], uint64_t *ver)
{
	const struct sealed s = { page, page + BLOCK_META, LAYOUT_BODY, page + LAYOUT_PAGE - BLOCK_TAG };

	return page_open(run, type, index, &s, text, ver);
}

int block_open_in_place(struct block_run *run, enum unit_type type, uint64_t index,
    const uint8_t meta[static BLOCK_META], uint8_t text[static LAYOUT_BODY], const uint8_t tag[static BLOCK_TAG],
    uint64_t *ver)
{
	const struct sealed s = { meta, text, LAYOUT_BODY, tag };

	return page_open(run, type, index, &s, text, ver);
}

int block_seal_root_with_rnd(struct block_run *run, uint64_t seq, uint64_t clock, const uint8_t rnd[static BLOCK_RND],
    const uint8_t text[static BLOCK_ROOT_TEXT], uint8_t out[static BLOCK_ROOT])
{
	return unit_seal(run, &(struct unit){ UNIT_ROOT, seq, clock }, rnd, text, BLOCK_ROOT_TEXT, out);
}

int block_seal_root(struct block_run *run, uint64_t seq, uint64_t clock, const uint8_t text[static BLOCK_ROOT_TEXT],
    uint8_t out[static BLOCK_ROOT])
{
	uint8_t rnd[BLOCK_RND];

	secret_nonce(rnd, sizeof(rnd));
	return block_seal_root_with_rnd(run, seq, clock, rnd, text, out);
}

int block_open_root(struct block_run *run, uint64_t seq, uint64_t clock, const uint8_t in[static BLOCK_ROOT],
    uint8_t text[static BLOCK_ROOT_TEXT])
{
	const struct sealed s = { in, in + BLOCK_META, BLOCK_ROOT_TEXT, in + BLOCK_META + BLOCK_ROOT_TEXT };
	const struct unit unit = { UNIT_ROOT, seq, clock };
	int rc = -EBADMSG;

	if (clock > 0 && clock <= BLOCK_VER_MAX && le48_get(in) == clock)
		rc = unit_open(run, &unit, &s, text);
	if (rc != 0)
		explicit_bzero(text, BLOCK_ROOT_TEXT);
	return rc;
}

/* A GCM context of its own: xattr values are rare and never share a subkey. */
static int xaes_context(EVP_CIPHER_CTX **ctx, const uint8_t key[static 32], const uint8_t nonce[static 24])
{
	uint8_t subkey[32];
	WIPE_SCOPE(subkey);

	if (aead_xaes_subkey(subkey, key, nonce) != 0)
		return -EIO;
	return aead_gcm_key(ctx, subkey);
}

int block_seal_bytes(uint8_t suite, const uint8_t key[static 32], const uint8_t nonce[static 24], const uint8_t *aad,
    size_t aadlen, const uint8_t *text, size_t n, uint8_t *out)
{
	const struct aead_text t = { aad, aadlen, text, n, out };
	EVP_CIPHER_CTX *ctx = NULL;
	int rc;

	if (suite == SUITE_XCHACHA)
		return aead_chacha_seal(key, nonce, &t, out + n);
	rc = xaes_context(&ctx, key, nonce);
	if (rc == 0)
		rc = aead_gcm_seal(ctx, nonce + XAES_SELECTOR, &t, out + n);
	EVP_CIPHER_CTX_free(ctx);
	return rc;
}

int block_open_bytes(uint8_t suite, const uint8_t key[static 32], const uint8_t nonce[static 24], const uint8_t *aad,
    size_t aadlen, const uint8_t *in, size_t n, uint8_t *text)
{
	const struct aead_text t = { aad, aadlen, in, n - AEAD_TAG, text };
	EVP_CIPHER_CTX *ctx = NULL;
	int rc;

	if (n < AEAD_TAG)
		return -EBADMSG;
	if (suite == SUITE_XCHACHA)
		return aead_chacha_open(key, nonce, &t, in + t.n);
	rc = xaes_context(&ctx, key, nonce);
	if (rc == 0)
		rc = aead_gcm_open(ctx, nonce + XAES_SELECTOR, &t, in + t.n);
	EVP_CIPHER_CTX_free(ctx);
	return rc;
}
