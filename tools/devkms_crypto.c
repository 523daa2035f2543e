/* devkms_crypto.c — hides how a ciphertext blob and a session token are sealed.
 *
 * A blob names its material and its key, then random filler brings it to the size AWS's blobs have:
 *   magic 4 | material id 32 | key id 36 | nonce 12 | tag 16 | filler length 2 | filler | ciphertext
 * AES-256-GCM under the material; everything but tag and ciphertext is associated data, then the encryption context,
 * sorted and with lengths. The Region is not in it: related multi-Region keys open each other's blobs. */
#include <errno.h>
#include <openssl/evp.h>
#include <sodium.h>
#include <stdio.h>

#include "bytes.h"
#include "devkms.h"

static const uint8_t blob_magic[4] = { 'D', 'K', 'B', '1' };

enum {
	ID = 36,
	AT_MATERIAL = 4,
	AT_ID = 36,
	AT_NONCE = 72,
	AT_TAG = 84,
	AT_FILL = 100,
	AT_BODY = 102,
	NONCE = 12,
	TAG = 16
};
#define USUAL_FILLER 50u /* 184 bytes for a 32-byte key */

struct sealing {
	const uint8_t *key, *nonce;
	const uint8_t *aad[2];
	size_t aadlen[2];
};

static void cleanup_ctx(EVP_CIPHER_CTX **p)
{
	EVP_CIPHER_CTX_free(*p);
}

/* tag is written when sealing, checked when opening. */
static int gcm(bool seal, const struct sealing *s, const uint8_t *in, size_t n, uint8_t *out, uint8_t *tag)
{
	__attribute__((cleanup(cleanup_ctx))) EVP_CIPHER_CTX *x = EVP_CIPHER_CTX_new();
	int len;
	uint8_t end[16];

	if (!x || EVP_CipherInit_ex(x, EVP_aes_256_gcm(), NULL, s->key, s->nonce, seal) != 1)
		return -ENOMEM;
	for (size_t i = 0; i < 2; i++)
		if (s->aadlen[i] > 0 && EVP_CipherUpdate(x, NULL, &len, s->aad[i], (int)s->aadlen[i]) != 1)
			return -EIO;
	if (EVP_CipherUpdate(x, out, &len, in, (int)n) != 1)
		return -EIO;
	if (!seal && EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_GCM_SET_TAG, TAG, tag) != 1)
		return -EIO;
	if (EVP_CipherFinal_ex(x, end, &len) != 1)
		return -EBADMSG;
	if (seal && EVP_CIPHER_CTX_ctrl(x, EVP_CTRL_GCM_GET_TAG, TAG, tag) != 1)
		return -EIO;
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static size_t put_text(uint8_t *p, const char *text)
{
	size_t n = strlen(text);

	le32_put(p, (uint32_t)n);
	memcpy(p + 4, text, n);
	return n + 4;
}

/* The canonical bytes of a context that has passed the limits of the protocol; malloc'ed. */
static int context_bytes(const json_t *context, uint8_t **out, size_t *len)
{
	size_t n = json_object_size(context), size = 4, i = 0;
	CLEANUP_FREE const char **names = calloc(n + 1, sizeof(*names));
	CLEANUP_FREE uint8_t *p = NULL;
	const char *name;
	json_t *value;

	if (!names)
		return -ENOMEM;
	/* jansson's iteration macro wants an object without const */
	for (void *it = json_object_iter((json_t *)(uintptr_t)context); it;
	     it = json_object_iter_next((json_t *)(uintptr_t)context, it)) {
		name = json_object_iter_key(it);
		value = json_object_iter_value(it);
		names[i++] = name;
		size += 8 + strlen(name) + json_string_length(value);
	}
	qsort(names, n, sizeof(*names), by_name);
	p = malloc(size);
	if (!p)
		return -ENOMEM;
	le32_put(p, (uint32_t)n);
	*len = 4;
	for (i = 0; i < n; i++) {
		*len += put_text(p + *len, names[i]);
		*len += put_text(p + *len, json_string_value(json_object_get(context, names[i])));
	}
	*out = steal_ptr(&p);
	return 0;
}

/* The header without the tag, then the filler: one piece of associated data, beside the context. */
static size_t blob_aad(const struct dk_bytes *blob, size_t filler, uint8_t *out)
{
	memcpy(out, blob->b, AT_TAG);
	memcpy(out + AT_TAG, blob->b + AT_FILL, 2 + filler);
	return AT_TAG + 2 + filler;
}

static int blob_crypt(bool seal, const struct dk_grant *g, const json_t *context, const struct dk_bytes *blob,
    size_t filler, const uint8_t *in, size_t n, uint8_t *out, uint8_t *tag)
{
	CLEANUP_FREE uint8_t *pairs = NULL;
	uint8_t head[DK_BLOB_MAX];
	struct sealing s = { .key = g->material.key, .nonce = blob->b + AT_NONCE };
	size_t len = 0;
	int r = context_bytes(context, &pairs, &len);

	if (r < 0)
		return r;
	s.aad[0] = head;
	s.aadlen[0] = blob_aad(blob, filler, head);
	s.aad[1] = pairs;
	s.aadlen[1] = len;
	return gcm(seal, &s, in, n, out, tag);
}

int dk_blob_seal(const struct dk_grant *g, const json_t *context, const uint8_t *plain, size_t len, size_t size,
    struct dk_bytes *out)
{
	size_t filler = USUAL_FILLER;

	if (AT_BODY + len > sizeof(out->b))
		return -E2BIG;
	if (size > 0)
		filler = size > AT_BODY + len ? size - AT_BODY - len : 0;
	if (filler > sizeof(out->b) - AT_BODY - len)
		filler = sizeof(out->b) - AT_BODY - len;
	memcpy(out->b, blob_magic, sizeof(blob_magic));
	memcpy(out->b + AT_MATERIAL, g->material.id, 32);
	memcpy(out->b + AT_ID, g->id, ID);
	randombytes_buf(out->b + AT_NONCE, NONCE);
	le16_put(out->b + AT_FILL, (uint16_t)filler);
	randombytes_buf(out->b + AT_BODY, filler);
	out->len = AT_BODY + filler + len;
	return blob_crypt(true, g, context, out, filler, plain, len, out->b + AT_BODY + filler, out->b + AT_TAG);
}

int dk_blob_peek(const struct dk_bytes *blob, char id[static DK_ID], uint8_t material[static 32])
{
	if (blob->len <= AT_BODY || memcmp(blob->b, blob_magic, sizeof(blob_magic)) != 0)
		return -EBADMSG;
	if (blob->len <= (size_t)AT_BODY + le16_get(blob->b + AT_FILL))
		return -EBADMSG;
	memcpy(material, blob->b + AT_MATERIAL, 32);
	memcpy(id, blob->b + AT_ID, ID);
	id[ID] = '\0';
	return 0;
}

int dk_blob_open(const struct dk_grant *g, const json_t *context, const struct dk_bytes *blob, struct dk_bytes *plain)
{
	size_t filler = le16_get(blob->b + AT_FILL), at = AT_BODY + filler;
	uint8_t tag[TAG];
	int r;

	if (blob->len <= at)
		return -EBADMSG;
	memcpy(tag, blob->b + AT_TAG, TAG);
	plain->len = blob->len - at;
	r = blob_crypt(false, g, context, blob, filler, blob->b + at, plain->len, plain->b, tag);
	if (r < 0)
		plain->len = 0;
	return r;
}

char *dk_token_seal(const uint8_t key[static 32], const char *text)
{
	size_t n = strlen(text);
	CLEANUP_FREE uint8_t *raw = malloc(NONCE + TAG + n);
	CLEANUP_FREE char *out = malloc(bytes_b64_size(NONCE + TAG + n));
	struct sealing s = { .key = key, .nonce = raw };

	if (!raw || !out)
		return NULL;
	randombytes_buf(raw, NONCE);
	if (gcm(true, &s, (const uint8_t *)text, n, raw + NONCE + TAG, raw + NONCE) < 0)
		return NULL;
	(void)bytes_b64(B64_STD, out, raw, NONCE + TAG + n);
	return steal_ptr(&out);
}

char *dk_token_open(const uint8_t key[static 32], const char *token)
{
	size_t size = strlen(token);
	CLEANUP_FREE uint8_t *raw = malloc(size + 1);
	CLEANUP_FREE char *out = calloc(1, size + 1);
	struct sealing s = { .key = key, .nonce = raw };
	int n;

	if (!raw || !out)
		return NULL;
	n = bytes_unb64(B64_STD, raw, size, token, size);
	if (n <= NONCE + TAG ||
	    gcm(false, &s, raw + NONCE + TAG, (size_t)n - NONCE - TAG, (uint8_t *)out, raw + NONCE) < 0)
		return NULL;
	return steal_ptr(&out);
}
