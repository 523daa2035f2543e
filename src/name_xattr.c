/* Extended attributes: names by AES-256-SIV, values by the store's AEAD, both bound to the object. Hides how a name
 * that is too long for the backing, and a value that is too long with what its seal adds, are stored all the same. */
#include <errno.h>
#include <sodium.h>

#include "block.h"
#include "bytes.h"
#include "name.h"
#include "name_internal.h"
#include "secret.h"

#define PREFIX     "user.byokfs."
#define PREFIX_LEN (sizeof(PREFIX) - 1)
#define LONG       PREFIX "L." /* no base64url has a dot */
#define PART       PREFIX "P."
#define MARK_LEN   (sizeof(LONG) - 1)
#define XATTR_SIV  (NAME_PADDED(NAME_XATTR_SHORT) + SIV_TAG)
#define LONG_TEXT  (NAME_XATTR_HEAD - SIV_TAG)
#define LONG_HASH  24u
#define NONCE      24u
#define AAD_HEAD   48u
#define AAD_MAX    (AAD_HEAD + NAME_XATTR_BACKING + NAME_XATTR_TAG)

/* ---- names */

bool name_xattr_is_long(const char *backing)
{
	return strncmp(backing, LONG, MARK_LEN) == 0;
}

bool name_xattr_is_part(const char *backing)
{
	return strncmp(backing, PART, MARK_LEN) == 0;
}

static size_t head_of(const char *backing)
{
	return name_xattr_is_long(backing) ? NAME_XATTR_HEAD : 0;
}

size_t name_xattr_over(const char *backing)
{
	return head_of(backing) + NAME_XATTR_OVERHEAD;
}

static void long_name(const uint8_t head[static NAME_XATTR_HEAD], char out[static NAME_XATTR_BACKING])
{
	uint8_t hash[LONG_HASH];

	(void)crypto_generichash(hash, sizeof(hash), head, NAME_XATTR_HEAD, NULL, 0);
	memcpy(out, LONG, MARK_LEN);
	(void)bytes_b64(B64_URL, out + MARK_LEN, hash, sizeof(hash));
}

/* siv holds NAME_XATTR_HEAD: all of it is used by a long name. */
static int encrypt(
    const struct name_keys *k, const uint8_t *id, const char *name, uint8_t *siv, char out[static NAME_XATTR_BACKING])
{
	uint8_t text[LONG_TEXT] = { 0 };
	size_t len = strlen(name), n = len > NAME_XATTR_SHORT ? LONG_TEXT : NAME_PADDED(len);
	int rc;

	if (len == 0 || len > NAME_XATTR_MAX)
		return -ERANGE;
	memcpy(text, name, len);
	rc = siv_seal(k->xnames, id, CONTEXT_ID, text, n, siv);
	explicit_bzero(text, sizeof(text));
	if (rc != 0)
		return rc;
	if (len > NAME_XATTR_SHORT) {
		long_name(siv, out);
		return 0;
	}
	memcpy(out, PREFIX, PREFIX_LEN);
	(void)bytes_b64(B64_URL, out + PREFIX_LEN, siv, n + SIV_TAG);
	return 0;
}

int name_xattr_encrypt(
    const struct name_keys *k, const uint8_t id[static 16], const char *name, char out[static NAME_XATTR_BACKING])
{
	uint8_t siv[NAME_XATTR_HEAD];

	return encrypt(k, id, name, siv, out);
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

static bool head_fits(const char *backing, const uint8_t *head)
{
	char want[NAME_XATTR_BACKING];

	long_name(head, want);
	return strcmp(want, backing) == 0;
}

int name_xattr_name(const struct name_keys *k, const uint8_t id[static 16], const char *backing, const uint8_t *stored,
    size_t n, char *out)
{
	uint8_t text[LONG_TEXT];
	size_t len;
	int rc;

	if (!name_xattr_is_long(backing))
		return name_xattr_decrypt(k, id, backing, out);
	if (n < name_xattr_over(backing) || !head_fits(backing, stored))
		return -EBADMSG;
	rc = siv_unseal(k->xnames, id, CONTEXT_ID, stored, NAME_XATTR_HEAD, text);
	if (rc != 0)
		return rc;
	/* A name has one spelling: a short one is not stored so. */
	len = strnlen((const char *)text, sizeof(text));
	rc = len > NAME_XATTR_SHORT && len <= NAME_XATTR_MAX ? (int)len : -EBADMSG;
	for (size_t i = len; i < sizeof(text); i++) {
		if (text[i] != 0)
			rc = -EBADMSG;
	}
	if (rc > 0)
		memcpy(out, text, len + 1);
	explicit_bzero(text, sizeof(text));
	return rc;
}

/* ---- values */

/* "byokfs1\0" | "x" | 7 zero | store_id | object id | backing name; its length, or 0 if the name is too long.
 * With a part: "X" for "x", and the tag at the end. */
static size_t value_aad(const struct name_keys *k, const uint8_t *id, const char *backing, const uint8_t *tag,
    uint8_t aad[static AAD_MAX])
{
	size_t len = strlen(backing);

	if (len >= NAME_XATTR_BACKING)
		return 0;
	memset(aad, 0, AAD_HEAD);
	memcpy(aad, "byokfs1", sizeof("byokfs1"));
	aad[8] = tag ? 'X' : 'x';
	memcpy(aad + 16, k->ids.store, CONTEXT_ID);
	memcpy(aad + 32, id, CONTEXT_ID);
	memcpy(aad + AAD_HEAD, backing, len);
	if (tag)
		memcpy(aad + AAD_HEAD + len, tag, NAME_XATTR_TAG);
	return AAD_HEAD + len + (tag ? NAME_XATTR_TAG : 0);
}

static int seal_value(const struct name_keys *k, const uint8_t *id, const char *backing, const uint8_t *tag,
    const uint8_t nonce[static NONCE], const void *value, size_t n, uint8_t *out)
{
	uint8_t aad[AAD_MAX];
	size_t aadlen = value_aad(k, id, backing, tag, aad);

	if (aadlen == 0)
		return -ERANGE;
	if (n > NAME_XATTR_VALUE_MAX)
		return -E2BIG;
	memcpy(out, nonce, NONCE);
	return block_seal_bytes(k->ids.suite, k->xattrs, nonce, aad, aadlen, value, n, out + NONCE);
}

static int open_value(const struct name_keys *k, const uint8_t *id, const char *backing, const uint8_t *tag,
    const uint8_t *in, size_t n, void *out)
{
	uint8_t aad[AAD_MAX];
	size_t aadlen = value_aad(k, id, backing, tag, aad);
	int rc;

	if (aadlen == 0 || n < NAME_XATTR_OVERHEAD || n > NAME_XATTR_VALUE_MAX + NAME_XATTR_OVERHEAD)
		return -EBADMSG;
	rc = block_open_bytes(k->ids.suite, k->xattrs, in, aad, aadlen, in + NONCE, n - NONCE, out);
	return rc != 0 ? rc : (int)(n - NAME_XATTR_OVERHEAD);
}

int name_xattr_seal_with_nonce(const struct name_keys *k, const uint8_t id[static 16], const char *backing,
    const uint8_t nonce[static 24], const void *value, size_t n, uint8_t *out)
{
	return seal_value(k, id, backing, NULL, nonce, value, n, out);
}

int name_xattr_seal(const struct name_keys *k, const uint8_t id[static 16], const char *backing, const void *value,
    size_t n, uint8_t *out)
{
	uint8_t nonce[NONCE];

	secret_nonce(nonce, sizeof(nonce));
	return seal_value(k, id, backing, NULL, nonce, value, n, out);
}

int name_xattr_open(
    const struct name_keys *k, const uint8_t id[static 16], const char *backing, const uint8_t *in, size_t n, void *out)
{
	return open_value(k, id, backing, NULL, in, n, out);
}

/* ---- what is stored: [head of a long name] [tag of the part] sealed value */

void name_xattr_part(const char *backing, const uint8_t *stored, char out[static NAME_XATTR_BACKING])
{
	memcpy(out, PART, MARK_LEN);
	(void)bytes_b64(B64_URL, out + MARK_LEN, stored + head_of(backing), NAME_XATTR_TAG);
}

int name_xattr_pack(const struct name_keys *k, const uint8_t id[static 16], const char *name, const void *value,
    size_t n, uint8_t *out, struct name_xattr *x)
{
	uint8_t siv[NAME_XATTR_HEAD], nonce[NONCE], *tag = NULL;
	size_t head, total;
	int rc;

	if (n > NAME_XATTR_VALUE_MAX)
		return -E2BIG;
	rc = encrypt(k, id, name, siv, x->backing);
	if (rc != 0)
		return rc;
	head = head_of(x->backing);
	memcpy(out, siv, head);
	total = head + n + NAME_XATTR_OVERHEAD;
	x->part[0] = '\0';
	x->first = total;
	x->rest = 0;
	if (total > NAME_XATTR_FIRST) {
		tag = out + head;
		secret_nonce(tag, NAME_XATTR_TAG);
		name_xattr_part(x->backing, out, x->part);
		x->first = NAME_XATTR_FIRST;
		x->rest = total + NAME_XATTR_TAG - NAME_XATTR_FIRST;
	}
	secret_nonce(nonce, sizeof(nonce));
	return seal_value(k, id, x->backing, tag, nonce, value, n, out + head + (tag ? NAME_XATTR_TAG : 0));
}

int name_xattr_unpack(const struct name_keys *k, const uint8_t id[static 16], const char *backing,
    const uint8_t *stored, size_t n, void *out)
{
	size_t head = head_of(backing), skip = head + (n > NAME_XATTR_FIRST ? NAME_XATTR_TAG : 0);

	if (n < skip + NAME_XATTR_OVERHEAD || (head && !head_fits(backing, stored)))
		return -EBADMSG;
	return open_value(
	    k, id, backing, n > NAME_XATTR_FIRST ? stored + head : NULL, stored + skip, n - skip, out);
}
