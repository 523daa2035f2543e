/* Extended attributes: names by AES-256-SIV, values by the store's AEAD, both bound to the object. */
#include <errno.h>

#include "block.h"
#include "bytes.h"
#include "name.h"
#include "name_internal.h"
#include "secret.h"

#define PREFIX     "user.byokfs."
#define PREFIX_LEN (sizeof(PREFIX) - 1)
#define XATTR_SIV  (NAME_PADDED(NAME_XATTR_MAX) + SIV_TAG)
#define NONCE      24u
#define AAD_HEAD   48u
#define AAD_MAX    (AAD_HEAD + NAME_XATTR_BACKING)

int name_xattr_encrypt(
    const struct name_keys *k, const uint8_t id[static 16], const char *name, char out[static NAME_XATTR_BACKING])
{
	uint8_t text[NAME_XATTR_MAX] = { 0 }, siv[XATTR_SIV];
	size_t len = strlen(name), n = NAME_PADDED(len);
	int rc;

	if (len == 0 || len > NAME_XATTR_MAX)
		return -ERANGE;
	memcpy(text, name, len);
	rc = siv_seal(k->xnames, id, CONTEXT_ID, text, n, siv);
	explicit_bzero(text, sizeof(text));
	if (rc != 0)
		return rc;
	memcpy(out, PREFIX, PREFIX_LEN);
	(void)bytes_b64(B64_URL, out + PREFIX_LEN, siv, n + SIV_TAG);
	return 0;
}

int name_xattr_decrypt(const struct name_keys *k, const uint8_t id[static 16], const char *backing, char *out)
{
	uint8_t siv[XATTR_SIV];
	int n, rc;

	if (strncmp(backing, PREFIX, PREFIX_LEN) != 0)
		return -EBADMSG;
	n = bytes_unb64(B64_URL, siv, sizeof(siv), backing + PREFIX_LEN, strlen(backing + PREFIX_LEN));
	if (n < (int)(SIV_TAG + NAME_PAD) || (size_t)n % NAME_PAD != 0)
		return -EBADMSG;
	n -= (int)SIV_TAG;
	rc = siv_unseal(k->xnames, id, CONTEXT_ID, siv, (size_t)n + SIV_TAG, out);
	if (rc != 0)
		return rc;
	rc = name_unpad(out, (size_t)n);
	if (rc >= 0)
		out[rc] = '\0';
	else
		explicit_bzero(out, (size_t)n);
	return rc;
}

/* "byokfs1\0" | "x" | 7 zero | store_id | object id | backing name; its length, or 0 if the name is too long. */
static size_t value_aad(const struct name_keys *k, const uint8_t *id, const char *backing, uint8_t aad[static AAD_MAX])
{
	size_t len = strlen(backing);

	if (len >= NAME_XATTR_BACKING)
		return 0;
	memset(aad, 0, AAD_HEAD);
	memcpy(aad, "byokfs1", sizeof("byokfs1"));
	aad[8] = 'x';
	memcpy(aad + 16, k->ids.store, CONTEXT_ID);
	memcpy(aad + 32, id, CONTEXT_ID);
	memcpy(aad + AAD_HEAD, backing, len);
	return AAD_HEAD + len;
}

int name_xattr_seal_with_nonce(const struct name_keys *k, const uint8_t id[static 16], const char *backing,
    const uint8_t nonce[static 24], const void *value, size_t n, uint8_t *out)
{
	uint8_t aad[AAD_MAX];
	size_t aadlen = value_aad(k, id, backing, aad);

	if (aadlen == 0)
		return -ERANGE;
	if (n > NAME_XATTR_VALUE_MAX)
		return -E2BIG;
	memcpy(out, nonce, NONCE);
	return block_seal_bytes(k->ids.suite, k->xattrs, nonce, aad, aadlen, value, n, out + NONCE);
}

int name_xattr_seal(const struct name_keys *k, const uint8_t id[static 16], const char *backing, const void *value,
    size_t n, uint8_t *out)
{
	uint8_t nonce[NONCE];

	secret_nonce(nonce, sizeof(nonce));
	return name_xattr_seal_with_nonce(k, id, backing, nonce, value, n, out);
}

int name_xattr_open(
    const struct name_keys *k, const uint8_t id[static 16], const char *backing, const uint8_t *in, size_t n, void *out)
{
	uint8_t aad[AAD_MAX];
	size_t aadlen = value_aad(k, id, backing, aad);
	int rc;

	if (aadlen == 0 || n < NAME_XATTR_OVERHEAD || n > NAME_XATTR_VALUE_MAX + NAME_XATTR_OVERHEAD)
		return -EBADMSG;
	rc = block_open_bytes(k->ids.suite, k->xattrs, in, aad, aadlen, in + NONCE, n - NONCE, out);
	return rc != 0 ? rc : (int)(n - NAME_XATTR_OVERHEAD);
}
