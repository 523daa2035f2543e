/* Entries, directory ids and links: how plaintext names become names and symlink contents of the backing directory.
 *
 * Everything that comes from the backing is decoded strictly: one plaintext has exactly one spelling, so that a
 * hostile directory cannot show a name twice or smuggle in "/", "." or "..".                     */
#include "name.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>

#include "bytes.h"
#include "hmac.h"
#include "name_internal.h"
#include "secret.h"

#define SHORT_SIV64 (NAME_PADDED(160u) + SIV_TAG) /* longest SIV of a short entry: 235 characters */
#define SHORT_SIV32 (NAME_PADDED(128u) + SIV_TAG) /* 231 characters */
#define SIV_MAX     (NAME_PADDED(NAME_MAX_PLAIN) + SIV_TAG)
#define LONG_PREFIX "L."
#define LONG_SUFFIX ".n"
#define LONG_HASH   24u
#define DIR_MAC     16u
#define DIR_BYTES   (2u + CONTEXT_ID + DIR_MAC)
#define LINK_SALT   8u

static int open_ciphers(struct name_keys *k, const struct domain_keys *d)
{
	int rc = siv_open(&k->names, d->names, "n1");

	if (rc == 0)
		rc = siv_open(&k->links, d->links, "l1");
	if (rc == 0)
		rc = siv_open(&k->xnames, d->xnames, "x1");
	return rc;
}

int name_open(struct name_keys **out, enum name_mode mode, const struct domain_keys *d, const struct context_ids *ids)
{
	struct name_keys *k = secret_alloc(sizeof(*k));
	int rc;

	*out = NULL;
	if (!k)
		return -ENOMEM;
	k->mode = mode;
	k->ids = *ids;
	memcpy(k->dirs, d->dirs, sizeof(k->dirs));
	memcpy(k->xattrs, d->xattrs, sizeof(k->xattrs));
	rc = open_ciphers(k, d);
	if (rc != 0) {
		name_free(k);
		return rc;
	}
	*out = k;
	return 0;
}

void name_free(struct name_keys *k)
{
	if (!k)
		return;
	siv_close(k->names);
	siv_close(k->links);
	siv_close(k->xnames);
	secret_free(k);
}

enum name_mode name_mode(const struct name_keys *k)
{
	return k->mode;
}

static bool starts_with(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

static bool is_dots(const char *name, size_t len)
{
	return (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.');
}

static int check_name(const struct name_keys *k, const char *name, size_t len)
{
	if (len > NAME_MAX_PLAIN)
		return -ENAMETOOLONG;
	if (len == 0 || is_dots(name, len) || memchr(name, '/', len) || memchr(name, '\0', len))
		return -EINVAL;
	if (k->mode == NAME_PLAIN && len >= strlen(NAME_RESERVED) &&
	    strncmp(name, NAME_RESERVED, strlen(NAME_RESERVED)) == 0)
		return -EPERM;
	return 0;
}

/* Entry names are base32 where the backing folds case; everything else is base64url in both modes. */
static void entry_text(const struct name_keys *k, const uint8_t *in, size_t n, char *out)
{
	if (k->mode == NAME_SIV32)
		(void)bytes_b32(out, in, n);
	else
		(void)bytes_b64(B64_URL, out, in, n);
}

static size_t short_max(const struct name_keys *k)
{
	return k->mode == NAME_SIV32 ? SHORT_SIV32 : SHORT_SIV64;
}

static void long_entry(const struct name_keys *k, const uint8_t *siv, size_t n, char out[static NAME_ENTRY_MAX + 1])
{
	uint8_t hash[LONG_HASH];

	(void)crypto_generichash(hash, sizeof(hash), siv, n, NULL, 0);
	memcpy(out, LONG_PREFIX, strlen(LONG_PREFIX));
	entry_text(k, hash, sizeof(hash), out + strlen(LONG_PREFIX));
}

int name_encrypt(
    const struct name_keys *k, const uint8_t dirid[static 16], const char *name, size_t len, struct name_entry *out)
{
	uint8_t text[NAME_PADDED(NAME_MAX_PLAIN)] = { 0 }, siv[SIV_MAX];
	size_t n = NAME_PADDED(len);
	int rc = check_name(k, name, len);

	if (rc != 0)
		return rc;
	out->long_target[0] = '\0';
	memcpy(text, name, len);
	if (k->mode == NAME_PLAIN) {
		memcpy(out->entry, text, sizeof(out->entry));
		return 0;
	}
	rc = siv_seal(k->names, dirid, CONTEXT_ID, text, n, siv);
	explicit_bzero(text, sizeof(text));
	if (rc != 0)
		return rc;
	n += SIV_TAG;
	if (n <= short_max(k)) {
		entry_text(k, siv, n, out->entry);
		return 0;
	}
	long_entry(k, siv, n, out->entry);
	(void)bytes_b64(B64_URL, out->long_target, siv, n);
	return 0;
}

enum name_kind name_kind(const struct name_keys *k, const char *entry)
{
	size_t len = strlen(entry), suffix = strlen(LONG_SUFFIX);

	if (starts_with(entry, NAME_RESERVED) || is_dots(entry, len))
		return NAME_SKIP;
	if (k->mode == NAME_PLAIN || !starts_with(entry, LONG_PREFIX))
		return NAME_SHORT;
	if (len >= strlen(LONG_PREFIX) + suffix && strcmp(entry + len - suffix, LONG_SUFFIX) == 0)
		return NAME_SKIP;
	return NAME_LONG;
}

/* The SIV of a short entry; its length or -EBADMSG. */
static int short_siv(const struct name_keys *k, const char *entry, uint8_t siv[static SIV_MAX])
{
	size_t len = strlen(entry), max = short_max(k);
	int n = k->mode == NAME_SIV32 ? bytes_unb32(siv, max, entry, len) : bytes_unb64(B64_URL, siv, max, entry, len);

	return n < 0 ? -EBADMSG : n;
}

/* The SIV of a long entry, which must be long and hash to the entry. */
static int long_siv(const struct name_keys *k, const char *entry, const char *target, uint8_t siv[static SIV_MAX])
{
	char expected[NAME_ENTRY_MAX + 1];
	int n = bytes_unb64(B64_URL, siv, SIV_MAX, target, strlen(target));

	if (n < 0 || (size_t)n <= short_max(k))
		return -EBADMSG;
	long_entry(k, siv, (size_t)n, expected);
	return strcmp(expected, entry) == 0 ? n : -EBADMSG;
}

static int plain_name(const struct name_keys *k, const char *entry, char out[static NAME_MAX_PLAIN + 1])
{
	size_t len = strlen(entry);

	if (check_name(k, entry, len) != 0)
		return -EBADMSG;
	memcpy(out, entry, len + 1);
	return (int)len;
}

int name_decrypt(const struct name_keys *k, const uint8_t dirid[static 16], const char *entry, const char *long_target,
    char out[static NAME_MAX_PLAIN + 1])
{
	uint8_t siv[SIV_MAX];
	enum name_kind kind = name_kind(k, entry);
	int n, rc;

	if (kind == NAME_SKIP || (kind == NAME_LONG && !long_target))
		return -EBADMSG;
	if (k->mode == NAME_PLAIN)
		return plain_name(k, entry, out);
	n = kind == NAME_LONG ? long_siv(k, entry, long_target, siv) : short_siv(k, entry, siv);
	if (n < (int)(SIV_TAG + NAME_PAD) || (size_t)n % NAME_PAD != 0)
		return -EBADMSG;
	rc = siv_unseal(k->names, dirid, CONTEXT_ID, siv, (size_t)n, out);
	if (rc != 0)
		return rc;
	rc = name_unpad(out, (size_t)n - SIV_TAG);
	if (rc > (int)NAME_MAX_PLAIN || (rc >= 0 && check_name(k, out, (size_t)rc) != 0))
		rc = -EBADMSG;
	if (rc >= 0)
		out[rc] = '\0';
	else
		explicit_bzero(out, NAME_MAX_PLAIN + 1);
	return rc;
}

/* domain_index | dirid are in place; appends the MAC. */
static void dir_mac(const struct name_keys *k, const uint8_t id[static 2 + CONTEXT_ID], uint8_t mac[static DIR_MAC])
{
	static const uint8_t label[] = { 'b', 'y', 'o', 'k', 'f', 's', '-', 'd', 'i', 'r' };
	const struct hmac_part parts[] = { { label, sizeof(label) }, { id, 2 + CONTEXT_ID } };
	uint8_t full[32];

	hmac_sha256(full, k->dirs, sizeof(k->dirs), parts, 2);
	memcpy(mac, full, DIR_MAC);
}

void name_dir_make(const struct name_keys *k, uint16_t domain_index, const uint8_t dirid[static 16], char *out)
{
	uint8_t raw[DIR_BYTES];

	le16_put(raw, domain_index);
	memcpy(raw + 2, dirid, CONTEXT_ID);
	dir_mac(k, raw, raw + 2 + CONTEXT_ID);
	(void)bytes_b64(B64_URL, out, raw, sizeof(raw));
}

int name_dir_parse(
    const struct name_keys *k, const char *text, size_t len, uint16_t *domain_index, uint8_t dirid[static 16])
{
	uint8_t raw[DIR_BYTES], mac[DIR_MAC];

	if (len != NAME_DIR_ID_TEXT || bytes_unb64(B64_URL, raw, sizeof(raw), text, len) != (int)sizeof(raw))
		return -EBADMSG;
	dir_mac(k, raw, mac);
	if (!bytes_equal(mac, raw + 2 + CONTEXT_ID, DIR_MAC))
		return -EBADMSG;
	*domain_index = le16_get(raw);
	memcpy(dirid, raw + 2, CONTEXT_ID);
	return 0;
}

int name_dir_peek(const char *text, size_t len, uint16_t *domain_index, uint8_t dirid[static 16])
{
	uint8_t raw[DIR_BYTES];

	if (len != NAME_DIR_ID_TEXT || bytes_unb64(B64_URL, raw, sizeof(raw), text, len) != (int)sizeof(raw))
		return -EBADMSG;
	*domain_index = le16_get(raw);
	memcpy(dirid, raw + 2, CONTEXT_ID);
	return 0;
}

int name_link_encrypt_with_salt(
    const struct name_keys *k, const uint8_t salt[static 8], const char *target, size_t len, char *out, size_t max_text)
{
	uint8_t raw[LINK_SALT + SIV_TAG + NAME_LINK_MAX];
	int rc;

	if (len > NAME_LINK_MAX || (4 * (LINK_SALT + SIV_TAG + len) + 2) / 3 > max_text)
		return -ENAMETOOLONG;
	if (len == 0 || memchr(target, '\0', len))
		return -EINVAL;
	memcpy(raw, salt, LINK_SALT);
	rc = siv_seal(k->links, salt, LINK_SALT, target, len, raw + LINK_SALT);
	if (rc != 0)
		return rc;
	return (int)bytes_b64(B64_URL, out, raw, LINK_SALT + SIV_TAG + len);
}

int name_link_encrypt(const struct name_keys *k, const char *target, size_t len, char *out, size_t max_text)
{
	uint8_t salt[LINK_SALT];

	secret_nonce(salt, sizeof(salt));
	return name_link_encrypt_with_salt(k, salt, target, len, out, max_text);
}

int name_link_decrypt(const struct name_keys *k, const char *text, size_t len, char *out)
{
	uint8_t raw[LINK_SALT + SIV_TAG + NAME_LINK_MAX];
	int n = bytes_unb64(B64_URL, raw, sizeof(raw), text, len), rc;

	if (n <= (int)(LINK_SALT + SIV_TAG))
		return -EBADMSG;
	rc = siv_unseal(k->links, raw, LINK_SALT, raw + LINK_SALT, (size_t)n - LINK_SALT, out);
	if (rc != 0)
		return rc;
	n -= (int)(LINK_SALT + SIV_TAG);
	if (memchr(out, '\0', (size_t)n)) {
		explicit_bzero(out, (size_t)n);
		return -EBADMSG;
	}
	out[n] = '\0';
	return n;
}
