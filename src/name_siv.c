/* AES-256-SIV for many short inputs.
 *
 * OpenSSL's own AES-256-SIV sets up a MAC and copies key schedules for every message, which costs several times
 * the cipher itself for a file name. Here a key owns a free list of keyed AES contexts, S2V and CTR are composed
 * from plain AES blocks, and what S2V computes from the fixed first string is done once, in siv_open(). The unit
 * test compares all lengths and several associated strings with OpenSSL's implementation.               */
#include "name_siv.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdbool.h>

#include "bytes.h"
#include "secret.h"

#define BLOCK 16u
#define BATCH 16u /* counter blocks per AES call: one call for any file name */

struct siv_ctx {
	EVP_CIPHER_CTX *mac, *ctr; /* AES-256-ECB, encrypting */
	struct siv_ctx *next;
};

struct siv {
	uint8_t key[SIV_KEY];
	uint8_t k1[BLOCK], k2[BLOCK]; /* CMAC subkeys */
	uint8_t base[BLOCK];          /* S2V after the first string */
	pthread_mutex_t lock;         /* guards idle */
	struct siv_ctx *idle;
};

/* A CMAC under way: input is xored into x, which is encrypted when it is full and more input comes. */
struct cmac {
	uint8_t x[BLOCK];
	size_t fill;
};

struct block {
	uint8_t b[BLOCK];
};

struct batch {
	uint8_t b[BATCH * BLOCK];
};

static void wipe_cmac(struct cmac *c)
{
	explicit_bzero(c, sizeof(*c));
}

static void wipe_block(struct block *b)
{
	explicit_bzero(b, sizeof(*b));
}

static void wipe_batch(struct batch *b)
{
	explicit_bzero(b, sizeof(*b));
}

#define WIPED(type) __attribute__((cleanup(wipe_##type))) struct type

/* Encrypts n bytes (whole blocks) in place. */
static bool aes(EVP_CIPHER_CTX *ctx, uint8_t *p, size_t n)
{
	int len = 0;

	return EVP_EncryptUpdate(ctx, p, &len, p, (int)n) == 1 && len == (int)n;
}

static EVP_CIPHER_CTX *aes_new(const uint8_t key[static 32])
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

	if (ctx && EVP_EncryptInit_ex(ctx, EVP_aes_256_ecb(), NULL, key, NULL) == 1 &&
	    EVP_CIPHER_CTX_set_padding(ctx, 0) == 1)
		return ctx;
	EVP_CIPHER_CTX_free(ctx);
	return NULL;
}

static void ctx_free(struct siv_ctx *c)
{
	if (!c)
		return;
	EVP_CIPHER_CTX_free(c->mac);
	EVP_CIPHER_CTX_free(c->ctr);
	free(c);
}

static struct siv_ctx *ctx_new(const struct siv *s)
{
	struct siv_ctx *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->mac = aes_new(s->key);
	c->ctr = aes_new(s->key + SIV_KEY / 2);
	if (c->mac && c->ctr)
		return c;
	ctx_free(c);
	return NULL;
}

static struct siv_ctx *ctx_get(struct siv *s)
{
	{
		LOCK_SCOPE(&s->lock);
		struct siv_ctx *c = s->idle;

		if (c) {
			s->idle = c->next;
			return c;
		}
	}
	return ctx_new(s);
}

static void ctx_put(struct siv *s, struct siv_ctx *c)
{
	LOCK_SCOPE(&s->lock);

	c->next = s->idle;
	s->idle = c;
}

/* Doubling in GF(2^128), without a branch on the secret. */
static void dbl(uint8_t b[static BLOCK])
{
	uint8_t carry = (uint8_t) - (b[0] >> 7);

	for (size_t i = 0; i < BLOCK - 1; i++)
		b[i] = (uint8_t)(b[i] << 1 | b[i + 1] >> 7);
	b[BLOCK - 1] = (uint8_t)(b[BLOCK - 1] << 1 ^ (0x87 & carry));
}

static void xor_block(uint8_t *a, const uint8_t *b)
{
	for (size_t i = 0; i < BLOCK; i++)
		a[i] ^= b[i];
}

static bool cmac_add(struct siv_ctx *ctx, struct cmac *c, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (c->fill == BLOCK) {
			if (!aes(ctx->mac, c->x, BLOCK))
				return false;
			c->fill = 0;
		}
		c->x[c->fill++] ^= p[i];
	}
	return true;
}

static bool cmac_end(const struct siv *s, struct siv_ctx *ctx, struct cmac *c, uint8_t out[static BLOCK])
{
	if (c->fill == BLOCK) {
		xor_block(c->x, s->k1);
	} else {
		c->x[c->fill] ^= 0x80;
		xor_block(c->x, s->k2);
	}
	if (!aes(ctx->mac, c->x, BLOCK))
		return false;
	memcpy(out, c->x, BLOCK);
	return true;
}

/* d := dbl(d) xor CMAC(string), the step of S2V for each string but the last. */
static bool s2v_string(const struct siv *s, struct siv_ctx *ctx, uint8_t d[static BLOCK], const uint8_t *p, size_t n)
{
	WIPED(cmac) c = { .fill = 0 };
	WIPED(block) mac = { .b = { 0 } };

	if (!cmac_add(ctx, &c, p, n) || !cmac_end(s, ctx, &c, mac.b))
		return false;
	dbl(d);
	xor_block(d, mac.b);
	return true;
}

static bool s2v(const struct siv *s, struct siv_ctx *ctx, const uint8_t *ad2, size_t ad2len, const uint8_t *text,
    size_t n, uint8_t out[static SIV_TAG])
{
	WIPED(cmac) c = { .fill = 0 };
	WIPED(block) d = { .b = { 0 } };
	size_t tail = n < BLOCK ? n : BLOCK;

	memcpy(d.b, s->base, BLOCK);
	if (!s2v_string(s, ctx, d.b, ad2, ad2len) || !cmac_add(ctx, &c, text, n - tail))
		return false;
	if (n < BLOCK) {
		dbl(d.b);
		d.b[n] ^= 0x80;
	}
	for (size_t i = 0; i < tail; i++)
		d.b[i] ^= text[n - tail + i];
	return cmac_add(ctx, &c, d.b, BLOCK) && cmac_end(s, ctx, &c, out);
}

/* Encrypts or decrypts n bytes with the key stream that starts at the synthetic IV. */
static bool ctr(struct siv_ctx *ctx, const uint8_t iv[static SIV_TAG], const uint8_t *in, size_t n, uint8_t *out)
{
	WIPED(batch) stream;
	struct block count;

	memcpy(count.b, iv, BLOCK);
	count.b[8] &= 0x7f;
	count.b[12] &= 0x7f;
	for (size_t done = 0; done < n;) {
		size_t blocks = (n - done + BLOCK - 1) / BLOCK;

		if (blocks > BATCH)
			blocks = BATCH;
		for (size_t i = 0; i < blocks; i++) {
			memcpy(stream.b + i * BLOCK, count.b, BLOCK);
			for (size_t j = BLOCK; j-- > 0 && ++count.b[j] == 0;)
				continue;
		}
		if (!aes(ctx->ctr, stream.b, blocks * BLOCK))
			return false;
		for (size_t i = 0; i < blocks * BLOCK && done < n; i++, done++)
			out[done] = in[done] ^ stream.b[i];
	}
	return true;
}

/* CMAC subkeys, then S2V of "" and of the first string. */
static bool prepare(struct siv *s, struct siv_ctx *ctx, const char *ad1)
{
	static const uint8_t zero[BLOCK];
	WIPED(cmac) c = { .fill = 0 };

	if (!aes(ctx->mac, s->k1, BLOCK))
		return false;
	dbl(s->k1);
	memcpy(s->k2, s->k1, BLOCK);
	dbl(s->k2);
	return cmac_add(ctx, &c, zero, BLOCK) && cmac_end(s, ctx, &c, s->base) &&
	    s2v_string(s, ctx, s->base, (const uint8_t *)ad1, strlen(ad1));
}

int siv_open(struct siv **out, const uint8_t key[static SIV_KEY], const char *ad1)
{
	struct siv *s = secret_alloc(sizeof(*s));

	*out = NULL;
	if (!s)
		return -ENOMEM;
	memcpy(s->key, key, SIV_KEY);
	if (pthread_mutex_init(&s->lock, NULL) != 0) {
		secret_free(s);
		return -ENOMEM;
	}
	s->idle = ctx_new(s);
	if (!s->idle || !prepare(s, s->idle, ad1)) {
		siv_close(s);
		return -EIO;
	}
	*out = s;
	return 0;
}

void siv_close(struct siv *s)
{
	if (!s)
		return;
	while (s->idle) {
		struct siv_ctx *c = s->idle;

		s->idle = c->next;
		ctx_free(c);
	}
	(void)pthread_mutex_destroy(&s->lock);
	secret_free(s);
}

int siv_seal(struct siv *s, const uint8_t *ad2, size_t ad2len, const void *text, size_t n, uint8_t *out)
{
	struct siv_ctx *ctx = ctx_get(s);
	bool ok;

	if (!ctx)
		return -ENOMEM;
	ok = s2v(s, ctx, ad2, ad2len, text, n, out) && ctr(ctx, out, text, n, out + SIV_TAG);
	ctx_put(s, ctx);
	return ok ? 0 : -EIO;
}

int siv_unseal(struct siv *s, const uint8_t *ad2, size_t ad2len, const uint8_t *in, size_t n, void *text)
{
	uint8_t tag[SIV_TAG];
	struct siv_ctx *ctx;
	bool ok;
	int rc;

	if (n < SIV_TAG)
		return -EBADMSG;
	n -= SIV_TAG;
	ctx = ctx_get(s);
	if (!ctx)
		return -ENOMEM;
	ok = ctr(ctx, in, in + SIV_TAG, n, text) && s2v(s, ctx, ad2, ad2len, text, n, tag);
	ctx_put(s, ctx);
	rc = !ok ? -EIO : bytes_equal(tag, in, SIV_TAG) ? 0 : -EBADMSG;
	if (rc != 0)
		explicit_bzero(text, n);
	return rc;
}
