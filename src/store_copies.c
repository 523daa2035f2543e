/* store_copies.c — descriptors that exist twice. Hides which of the two files is believed, and how a lost one comes
 * back.
 *
 * A sum tells damage, the MAC tells tampering, seq tells the newer. A copy whose sum is good but whose version is
 * foreign stops everything: newer software was here, and "restoring" its file would undo its work. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>

#include "bytes.h"
#include "io.h"
#include "log.h"
#include "store_internal.h"

#define FILE_MODE 0600
#define SUM_LINE  69u /* "sum=" 64 digits and a newline */

/* ---- one of two kinds */

static size_t kind_size(enum copies_kind k)
{
	return k == COPIES_STORE ? sizeof(struct descriptor_store) : sizeof(struct descriptor_domain);
}

static size_t kind_max(enum copies_kind k)
{
	return k == COPIES_STORE ? DESCRIPTOR_STORE_BYTES : DESCRIPTOR_DOMAIN_BYTES;
}

static int kind_parse(enum copies_kind k, void *out, const char *text, size_t len)
{
	return k == COPIES_STORE ? descriptor_store_parse(out, text, len) : descriptor_domain_parse(out, text, len);
}

static int kind_verify(enum copies_kind k, const void *desc, const struct domain_keys *keys)
{
	return k == COPIES_STORE ? descriptor_store_verify(desc, keys) : descriptor_domain_verify(desc, keys);
}

static int kind_print(enum copies_kind k, void *desc, const struct domain_keys *keys, char **text, size_t *len)
{
	return k == COPIES_STORE ? descriptor_store_print(desc, keys, text, len)
	                         : descriptor_domain_print(desc, keys, text, len);
}

static uint64_t kind_seq(enum copies_kind k, const void *desc)
{
	return k == COPIES_STORE ? ((const struct descriptor_store *)desc)->seq
	                         : ((const struct descriptor_domain *)desc)->seq;
}

static void kind_free(enum copies_kind k, void *desc)
{
	if (k == COPIES_STORE)
		descriptor_store_free(desc);
	else
		descriptor_domain_free(desc);
}

/* ---- names */

void copies_of_store(struct copies *c, int meta_fd)
{
	*c = (struct copies){ .kind = COPIES_STORE, .dirfd = meta_fd, .name = STORE_FILE };
}

int copies_of_domain(struct copies *c, int meta_fd, const uint8_t domain[static 16])
{
	c->kind = COPIES_DOMAIN;
	bytes_hex(c->name, domain, 16);
	c->dirfd = store_open_dir(meta_fd, STORE_DOMAINS);
	return c->dirfd < 0 ? c->dirfd : 0;
}

/* which: 0 NAME, 1 NAME~ */
static const char *copy_name(const struct copies *c, int which, char out[static 48])
{
	(void)snprintf(out, 48, "%s%s", c->name, which ? "~" : "");
	return out;
}

/* ---- reading */

static bool sum_good(const char *text, size_t len)
{
	uint8_t sum[crypto_hash_sha256_BYTES];
	char hex[2 * sizeof(sum) + 1];

	if (len <= SUM_LINE)
		return false;
	(void)crypto_hash_sha256(sum, (const uint8_t *)text, len - SUM_LINE);
	bytes_hex(hex, sum, sizeof(sum));
	return bytes_equal(text + len - SUM_LINE + 4, hex, 2 * sizeof(sum));
}

static int copy_load(const struct copies *c, int which, const struct domain_keys *keys, void *desc)
{
	CLEANUP_FREE char *text = NULL;
	char name[48];
	size_t len;
	int r = io_read_file(c->dirfd, copy_name(c, which, name), kind_max(c->kind), &text, &len);

	if (r)
		return r == -EFBIG || r == -ELOOP || r == -EISDIR ? -EINVAL : r;
	r = kind_parse(c->kind, desc, text, len);
	if (r == -EPROTONOSUPPORT && !sum_good(text, len))
		r = -EINVAL;
	if (!r && keys) {
		r = kind_verify(c->kind, desc, keys);
		if (r)
			kind_free(c->kind, desc);
	}
	return r;
}

/* What to say when neither copy is sound: a damaged copy tells more than a missing one. */
static int worst(int a, int b)
{
	return a == -ENOENT ? b : a;
}

static int choose(const struct copies *c, int rank, int r[static 2], void *const copy[static 2], void *desc)
{
	int best;

	if (r[0] == -EPROTONOSUPPORT || r[1] == -EPROTONOSUPPORT)
		return -EPROTONOSUPPORT;
	if (r[0] && r[1])
		return worst(r[0], r[1]);
	if (r[0] || r[1])
		best = r[0] ? 1 : 0;
	else
		best = kind_seq(c->kind, copy[1]) > kind_seq(c->kind, copy[0]) ? 1 : 0;
	if (rank)
		best = !best;
	if (r[best])
		return -ENOENT;
	memcpy(desc, copy[best], kind_size(c->kind));
	r[best] = -EALREADY; /* handed over */
	return 0;
}

int copies_load(const struct copies *c, int rank, const struct domain_keys *keys, void *desc)
{
	CLEANUP_FREE void *first = calloc(1, kind_size(c->kind));
	CLEANUP_FREE void *second = calloc(1, kind_size(c->kind));
	void *const copy[2] = { first, second };
	int r[2], result;

	if (!first || !second)
		return -ENOMEM;
	for (int i = 0; i < 2; i++)
		r[i] = copy_load(c, i, keys, copy[i]);
	result = choose(c, rank, r, copy, desc);
	for (int i = 0; i < 2; i++)
		if (!r[i])
			kind_free(c->kind, copy[i]);
	return result;
}

/* ---- writing */

int copies_restore(const struct copies *c, void *desc)
{
	CLEANUP_FREE char *text = NULL;
	size_t len;
	char name[48];
	int r = kind_print(c->kind, desc, NULL, &text, &len);

	for (int i = 0; i < 2 && !r; i++) {
		CLEANUP_FREE char *have = NULL;
		size_t have_len = 0;

		r = io_read_file(c->dirfd, copy_name(c, i, name), kind_max(c->kind), &have, &have_len);
		if (!r && have_len == len && !memcmp(have, text, len))
			continue;
		log_warn("descriptor '%s' was missing, damaged or old: written again from its copy", name);
		r = io_replace_file(c->dirfd, name, text, len, FILE_MODE);
	}
	return r;
}

int copies_write(const struct copies *c, void *desc, const struct domain_keys *keys)
{
	CLEANUP_FREE char *text = NULL;
	size_t len;
	char name[48];
	int r = kind_print(c->kind, desc, keys, &text, &len);

	for (int i = 0; i < 2 && !r; i++)
		r = io_replace_file(c->dirfd, copy_name(c, i, name), text, len, FILE_MODE);
	return r;
}
