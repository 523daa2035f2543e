/* block_aead.c — the two suites' ciphers on one message.
 *
 * Hides OpenSSL's call sequences. A GCM context keeps its key schedule: sealing and opening only set an IV, and
 * the direction may change with every call.                                                                */
#include "block_internal.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sodium.h>

#include "cleanup.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
/* Fetched once: a fetch by name costs more than sealing a page. Never freed. */
static EVP_CIPHER *gcm, *ecb;

static void fetch_ciphers(void)
{
	gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	ecb = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
}

/* Doubling in GF(2^128), for the CMAC subkey (SP 800-38B). Without a branch on the key. */
static void cmac_double(uint8_t b[static 16])
{
	uint8_t carry = (uint8_t)(0x87 & -(b[0] >> 7));

	for (int i = 0; i < 15; i++)
		b[i] = (uint8_t)(b[i] << 1 | b[i + 1] >> 7);
	b[15] = (uint8_t)(b[15] << 1 ^ carry);
}

int aead_xaes_subkey(uint8_t out[static 32], const uint8_t key[static 32], const uint8_t selector[static XAES_SELECTOR])
{
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	uint8_t k1[16] = { 0 }, blocks[32];
	WIPE_SCOPE(k1);
	WIPE_SCOPE(blocks);
	int n, ok;

	(void)pthread_once(&once, fetch_ciphers);
	ok = ctx && ecb && EVP_EncryptInit_ex2(ctx, ecb, key, NULL, NULL) == 1 &&
	    EVP_CIPHER_CTX_set_padding(ctx, 0) == 1 && EVP_EncryptUpdate(ctx, k1, &n, k1, 16) == 1;
	cmac_double(k1);
	/* SP 800-108, counter mode: two whole blocks, each CMACed alone, so CMAC is one AES call */
	for (uint8_t c = 1; c <= 2; c++) {
		uint8_t *block = blocks + 16 * (c - 1);

		memcpy(block, (const uint8_t[]){ 0, c, 'X', 0 }, 4);
		memcpy(block + 4, selector, XAES_SELECTOR);
		for (int i = 0; i < 16; i++)
			block[i] ^= k1[i];
	}
	ok = ok && EVP_EncryptUpdate(ctx, out, &n, blocks, 32) == 1;
	EVP_CIPHER_CTX_free(ctx);
	return ok ? 0 : -EIO;
}

int aead_gcm_key(EVP_CIPHER_CTX **ctx, const uint8_t key[static 32])
{
	(void)pthread_once(&once, fetch_ciphers);
	if (!*ctx)
		*ctx = EVP_CIPHER_CTX_new();
	if (!*ctx || !gcm || EVP_EncryptInit_ex2(*ctx, gcm, key, NULL, NULL) != 1)
		return -EIO;
	return 0;
}

int aead_gcm_seal(EVP_CIPHER_CTX *ctx, const uint8_t iv[static GCM_IV], const struct aead_text *t, uint8_t *tag)
{
	int n;

	if (t->n > INT_MAX || t->aadlen > INT_MAX || EVP_EncryptInit_ex2(ctx, NULL, NULL, iv, NULL) != 1 ||
	    (t->aadlen && EVP_EncryptUpdate(ctx, NULL, &n, t->aad, (int)t->aadlen) != 1) ||
	    EVP_EncryptUpdate(ctx, t->out, &n, t->in, (int)t->n) != 1 ||
	    EVP_EncryptFinal_ex(ctx, t->out + t->n, &n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, AEAD_TAG, tag) != 1)
		return -EIO;
	return 0;
}

int aead_gcm_open(EVP_CIPHER_CTX *ctx, const uint8_t iv[static GCM_IV], const struct aead_text *t, const uint8_t *tag)
{
	uint8_t want[AEAD_TAG];
	int n;

	memcpy(want, tag, AEAD_TAG); /* OpenSSL takes it through a writable pointer */
	if (t->n > INT_MAX || t->aadlen > INT_MAX || EVP_DecryptInit_ex2(ctx, NULL, NULL, iv, NULL) != 1 ||
	    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, AEAD_TAG, want) != 1 ||
	    (t->aadlen && EVP_DecryptUpdate(ctx, NULL, &n, t->aad, (int)t->aadlen) != 1))
		return -EIO;
	if (EVP_DecryptUpdate(ctx, t->out, &n, t->in, (int)t->n) != 1 ||
	    EVP_DecryptFinal_ex(ctx, t->out + t->n, &n) != 1) {
		explicit_bzero(t->out, t->n);
		return -EBADMSG;
	}
	return 0;
}

int aead_chacha_seal(
    const uint8_t key[static 32], const uint8_t nonce[static 24], const struct aead_text *t, uint8_t *tag)
{
	unsigned long long taglen;

	if (crypto_aead_xchacha20poly1305_ietf_encrypt_detached(
	        t->out, tag, &taglen, t->in, t->n, t->aad, t->aadlen, NULL, nonce, key) != 0)
		return -EIO;
	return 0;
}

int aead_chacha_open(
    const uint8_t key[static 32], const uint8_t nonce[static 24], const struct aead_text *t, const uint8_t *tag)
{
	if (crypto_aead_xchacha20poly1305_ietf_decrypt_detached(
	        t->out, NULL, t->in, t->n, tag, t->aad, t->aadlen, nonce, key) != 0) {
		explicit_bzero(t->out, t->n);
		return -EBADMSG;
	}
	return 0;
}
