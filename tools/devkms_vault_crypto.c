/* devkms_vault_crypto.c — how transit seals: nonce, ciphertext, tag. A derived key is HKDF-SHA256 of key and context.
 */
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sodium.h>

#include "devkms_vault.h"

#define NONCE 12u
#define TAG   16u

static void cleanup_ctx(EVP_CIPHER_CTX **p)
{
	EVP_CIPHER_CTX_free(*p);
}

/* HKDF without salt, one block. */
static int derive(uint8_t out[static 32], const uint8_t *key, const uint8_t *context, size_t n)
{
	static const uint8_t salt[32];
	CLEANUP_FREE uint8_t *info = malloc(n + 1);
	uint8_t prk[32];
	bool ok;

	if (!info)
		return -ENOMEM;
	memcpy(info, context, n);
	info[n] = 1;
	ok = HMAC(EVP_sha256(), salt, sizeof(salt), key, 32, prk, NULL) &&
	    HMAC(EVP_sha256(), prk, sizeof(prk), info, n + 1, out, NULL);
	explicit_bzero(prk, sizeof(prk));
	return ok ? 0 : -EIO;
}

static const EVP_CIPHER *cipher_of(const char *type)
{
	if (strcmp(type, "chacha20-poly1305") == 0)
		return EVP_chacha20_poly1305();
	return strcmp(type, "aes128-gcm96") == 0 ? EVP_aes_128_gcm() : EVP_aes_256_gcm();
}

static int start(EVP_CIPHER_CTX *x, const struct dk_vault_sealing *s, const uint8_t *nonce, int sealing)
{
	uint8_t key[32];
	WIPE_SCOPE(key);
	int len, r = 0;

	if (s->contextlen)
		r = derive(key, s->key, s->context, s->contextlen);
	else
		memcpy(key, s->key, sizeof(key));
	if (r == 0 && (!x || EVP_CipherInit_ex(x, cipher_of(s->type), NULL, key, nonce, sealing) != 1))
		r = -EIO;
	if (r == 0 && s->aadlen && EVP_CipherUpdate(x, NULL, &len, s->aad, (int)s->aadlen) != 1)
		r = -EIO;
	return r;
}

int dk_vault_seal(const struct dk_vault_sealing *s, const uint8_t *plain, size_t n, uint8_t *out)
{
	__attribute__((cleanup(cleanup_ctx))) EVP_CIPHER_CTX *x = EVP_CIPHER_CTX_new();
	int len, r;

	randombytes_buf(out, NONCE);
	r = start(x, s, out, 1);
	if (r < 0)
		return r;
	if (EVP_CipherUpdate(x, out + NONCE, &len, plain, (int)n) != 1 ||
	    EVP_CipherFinal_ex(x, out + NONCE + n, &len) != 1 ||
	    EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_AEAD_GET_TAG, TAG, out + NONCE + n) != 1)
		return -EIO;
	return 0;
}

int dk_vault_open(const struct dk_vault_sealing *s, const uint8_t *sealed, size_t n, uint8_t *plain)
{
	__attribute__((cleanup(cleanup_ctx))) EVP_CIPHER_CTX *x = EVP_CIPHER_CTX_new();
	uint8_t tag[TAG];
	int len, r;

	if (n < DK_VAULT_EXTRA)
		return -EINVAL;
	memcpy(tag, sealed + n - TAG, TAG);
	r = start(x, s, sealed, 0);
	if (r < 0)
		return r;
	if (EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_AEAD_SET_TAG, TAG, tag) != 1 ||
	    EVP_CipherUpdate(x, plain, &len, sealed + NONCE, (int)(n - DK_VAULT_EXTRA)) != 1)
		return -EIO;
	return EVP_CipherFinal_ex(x, plain + n - DK_VAULT_EXTRA, &len) == 1 ? 0 : -EBADMSG;
}
