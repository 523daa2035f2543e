/* kdf.c — key derivation, section 2.2 of byokfs-format(5).
 *
 * Hides the labels and what each is bound to. HKDF is spelled out with HMAC, because every output here is at
 * most 64 bytes: one block, one HMAC call with counter byte 01.                                           */
#include "kdf.h"

#include <errno.h>
#include <openssl/evp.h>

#include "bytes.h"
#include "hmac.h"
#include "secret.h"

#define IV       12u
#define TAG      16u
#define DEK      64u
#define INFO_MAX 96u

_Static_assert(KDF_WRAP_BLOB == IV + KDF_SECRET + TAG, "section 2.2, wrap 2");

static const uint8_t zero_id[CONTEXT_ID];

static void hmac(uint8_t out[static 64], const void *key, size_t keylen, const uint8_t *in, size_t n)
{
	hmac_sha512(out, key, keylen, &(const struct hmac_part){ in, n }, 1);
}

/* HKDF-SHA-512(salt "byokfs1/dek", IKM = S, info = CC, L = 64). file_id NULL: the domain's. */
static void derive_dek(uint8_t dek[static DEK], const uint8_t secret[static KDF_SECRET], const struct context_ids *ids,
    const uint8_t *file_id)
{
	static const char salt[] = "byokfs1/dek";
	uint8_t prk[64], info[256 + 1];
	WIPE_SCOPE(prk);
	size_t n = context_canonical(info, ids, file_id);

	hmac(prk, salt, sizeof(salt) - 1, secret, KDF_SECRET);
	info[n++] = 1;
	hmac(dek, prk, sizeof(prk), info, n);
}

/* Whose key it is decides the layout byte and the id. */
struct owner {
	const struct context_ids *ids;
	const uint8_t *id;
	uint8_t layout;
};

/* K(label, L, id). */
static void derive_key(
    uint8_t *out, size_t n, const uint8_t dek[static DEK], const char *label, const struct owner *owner)
{
	uint8_t info[INFO_MAX], block[64];
	WIPE_SCOPE(block);
	size_t len = 8, labellen = strlen(label);

	memcpy(info, "byokfs1", 8);
	memcpy(info + len, label, labellen + 1);
	len += labellen + 1;
	info[len++] = owner->ids->suite;
	info[len++] = owner->layout;
	memcpy(info + len, owner->ids->store, CONTEXT_ID);
	memcpy(info + len + CONTEXT_ID, owner->ids->domain, CONTEXT_ID);
	memcpy(info + len + 2 * CONTEXT_ID, owner->id, CONTEXT_ID);
	len += 3 * CONTEXT_ID;
	info[len++] = 1;
	hmac(block, dek, DEK, info, len);
	memcpy(out, block, n);
}

int kdf_file(struct file_keys *out, const uint8_t secret[static KDF_SECRET], const struct context_ids *ids,
    const uint8_t file_id[static CONTEXT_ID])
{
	const struct owner file = { ids, file_id, 1 };
	uint8_t dek[DEK];
	WIPE_SCOPE(dek);

	derive_dek(dek, secret, ids, file_id);
	derive_key(out->page, sizeof(out->page), dek, "page", &file);
	derive_key(out->hdr, sizeof(out->hdr), dek, "hdr", &file);
	derive_key(out->commit, sizeof(out->commit), dek, "commit", &file);
	return 0;
}

int kdf_domain(struct domain_keys *out, const uint8_t secret[static KDF_SECRET], const struct context_ids *ids)
{
	const struct owner domain = { ids, zero_id, 0 };

	derive_dek(out->dek, secret, ids, NULL);
	derive_key(out->commit, sizeof(out->commit), out->dek, "commit", &domain);
	derive_key(out->names, sizeof(out->names), out->dek, "names", &domain);
	derive_key(out->links, sizeof(out->links), out->dek, "links", &domain);
	derive_key(out->xnames, sizeof(out->xnames), out->dek, "xnames", &domain);
	derive_key(out->dirs, sizeof(out->dirs), out->dek, "dirs", &domain);
	derive_key(out->xattrs, sizeof(out->xattrs), out->dek, "xattrs", &domain);
	derive_key(out->desc, sizeof(out->desc), out->dek, "desc", &domain);
	derive_key(out->store, sizeof(out->store), out->dek, "store", &domain);
	return 0;
}

static void cleanup_cipher(EVP_CIPHER_CTX **ctx)
{
	EVP_CIPHER_CTX_free(*ctx);
}

/* A context ready for a wrap blob under K(`wrap`, file_id), the canonical context fed as AAD. NULL when
 * OpenSSL fails. */
static EVP_CIPHER_CTX *wrap_begin(bool seal, const uint8_t iv[static IV], const struct domain_keys *keys,
    const struct context_ids *ids, const uint8_t file_id[static CONTEXT_ID])
{
	const struct owner file = { ids, file_id, 0 };
	__attribute__((cleanup(cleanup_cipher))) EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	uint8_t key[32], aad[256];
	WIPE_SCOPE(key);
	int aadlen = (int)context_canonical(aad, ids, file_id), n;

	derive_key(key, sizeof(key), keys->dek, "wrap", &file);
	if (!ctx || EVP_CipherInit_ex2(ctx, EVP_aes_256_gcm(), key, iv, seal, NULL) != 1 ||
	    EVP_CipherUpdate(ctx, NULL, &n, aad, aadlen) != 1)
		return NULL;
	return steal_ptr(&ctx);
}

int kdf_wrap_with_iv(uint8_t blob[static KDF_WRAP_BLOB], const uint8_t iv[static IV],
    const uint8_t secret[static KDF_SECRET], const struct domain_keys *keys, const struct context_ids *ids,
    const uint8_t file_id[static CONTEXT_ID])
{
	__attribute__((cleanup(cleanup_cipher))) EVP_CIPHER_CTX *ctx = wrap_begin(true, iv, keys, ids, file_id);
	int n;

	memmove(blob, iv, IV);
	if (!ctx || EVP_EncryptUpdate(ctx, blob + IV, &n, secret, KDF_SECRET) != 1 ||
	    EVP_EncryptFinal_ex(ctx, blob + IV + KDF_SECRET, &n) != 1 ||
	    EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, blob + IV + KDF_SECRET) != 1)
		return -EIO;
	return 0;
}

int kdf_wrap(uint8_t blob[static KDF_WRAP_BLOB], const uint8_t secret[static KDF_SECRET],
    const struct domain_keys *keys, const struct context_ids *ids, const uint8_t file_id[static CONTEXT_ID])
{
	uint8_t iv[IV];

	secret_nonce(iv, sizeof(iv));
	return kdf_wrap_with_iv(blob, iv, secret, keys, ids, file_id);
}

int kdf_unwrap(uint8_t secret[static KDF_SECRET], const uint8_t blob[static KDF_WRAP_BLOB],
    const struct domain_keys *keys, const struct context_ids *ids, const uint8_t file_id[static CONTEXT_ID])
{
	__attribute__((cleanup(cleanup_cipher))) EVP_CIPHER_CTX *ctx = wrap_begin(false, blob, keys, ids, file_id);
	uint8_t tag[TAG];
	int n;

	memcpy(tag, blob + IV + KDF_SECRET, TAG); /* OpenSSL wants it writable */
	if (!ctx || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, tag) != 1)
		return -EIO;
	if (EVP_DecryptUpdate(ctx, secret, &n, blob + IV, KDF_SECRET) != 1 ||
	    EVP_DecryptFinal_ex(ctx, secret + KDF_SECRET, &n) != 1) {
		explicit_bzero(secret, KDF_SECRET);
		return -EBADMSG;
	}
	return 0;
}
