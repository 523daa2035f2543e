/* descriptor.h — the store's and domains' descriptors and mount markers as text (format.md 8). Pure parse and print.
 *
 * Strict grammar: exactly these lines in exactly this order; anything else is refused (-EINVAL). A version other than 1
 * is -EPROTONOSUPPORT. File I/O, the two copies and their order are store.h's business.                          */
#ifndef BYOKFS_DESCRIPTOR_H
#define BYOKFS_DESCRIPTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "kdf.h"
#include "name.h"

#define DESCRIPTOR_STORE_BYTES     (16u << 20)
#define DESCRIPTOR_DOMAIN_BYTES    (256u << 10)
#define DESCRIPTOR_BLOB_MAX        6144u
#define DESCRIPTOR_KEY_MAX         2048u
#define DESCRIPTOR_GENERATIONS_MAX 1024u /* about 9 MiB; no rotation keeps nearly as many */

struct descriptor_domain_line {
	uint16_t index;
	uint8_t domain[16], dirid[16], commit[32];
};

struct descriptor_store {
	uint8_t store[16];
	uint8_t suite;
	enum name_mode names;
	int64_t created;
	char by[64];
	uint64_t seq;
	size_t n;                               /* domains, ascending, first index 0 */
	struct descriptor_domain_line *domains; /* malloc'ed */
	uint8_t mac[32];
};

enum descriptor_seal { SEAL_FILE, SEAL_DOMAIN };

struct descriptor_slot {
	uint64_t seq;     /* 0: empty */
	uint8_t provider; /* 1 aws, 2 vault, 3 keyfile, 4 pkcs11 */
	char key[DESCRIPTOR_KEY_MAX + 1];
	uint8_t material[32]; /* zero: the provider names none ("-") */
	uint16_t context;     /* generation */
	int64_t sealed;
	uint16_t blob_len, probe_len;
	uint8_t blob[DESCRIPTOR_BLOB_MAX], probe[DESCRIPTOR_BLOB_MAX];
};

struct descriptor_generation {
	uint16_t number;
	struct context_extra extra;
};

struct descriptor_domain {
	uint8_t store[16], domain[16];
	uint16_t index;
	enum descriptor_seal seal;
	int64_t created;
	uint8_t commit[32];
	uint8_t mac[32];
	uint64_t seq;
	int64_t rotated; /* 0: never ("-") */
	size_t ngen;
	struct descriptor_generation *gen; /* malloc'ed, ascending */
	struct descriptor_slot slot[2];    /* a, b */
};

struct descriptor_marker {
	uint8_t store[16];
	bool shared;
	int64_t start_sec;
	long start_nsec;
	uint64_t inode;
};

/* 0, -EINVAL (grammar, sum), -EPROTONOSUPPORT (version, suite, layout), -ENOMEM. On failure *out is empty. */
MUST_CHECK int descriptor_store_parse(struct descriptor_store *out, const char *text, size_t len);
MUST_CHECK int descriptor_domain_parse(struct descriptor_domain *out, const char *text, size_t len);
MUST_CHECK int descriptor_marker_parse(struct descriptor_marker *out, const char *text, size_t len);
/* Verify the mac of a parsed text under the key: re-prints the authenticated lines and compares. 0, -EBADMSG or
 * -ENOMEM. */
MUST_CHECK int descriptor_store_verify(const struct descriptor_store *, const struct domain_keys *);
MUST_CHECK int descriptor_domain_verify(const struct descriptor_domain *, const struct domain_keys *);
/* malloc'ed text; *len without NUL. With keys the mac is computed (and stored in the struct); with NULL keys the
 * struct's own mac is printed. -EINVAL: a value that the grammar cannot express (no domain, no filled slot, two slots
 * of one seq, a slot without blob, probe, key or recorded generation, a time before 1970); -EFBIG: over the limit;
 * -ENOMEM. */
MUST_CHECK int descriptor_store_print(struct descriptor_store *, const struct domain_keys *, char **text, size_t *len);
MUST_CHECK int descriptor_domain_print(
    struct descriptor_domain *, const struct domain_keys *, char **text, size_t *len);
MUST_CHECK int descriptor_marker_print(const struct descriptor_marker *, char **text, size_t *len);
/* Ruling slot: higher seq; NULL when none is filled. */
const struct descriptor_slot *descriptor_ruling_slot(const struct descriptor_domain *);
/* The generation's pairs; NULL when not recorded. */
const struct context_extra *descriptor_generation(const struct descriptor_domain *, uint16_t number);
/* Rotation, in memory only. The number of the generation with these pairs (NULL: none), in whatever order; recorded
 * under the next number when there is none yet. 0, -ENOSPC (too many) or -ENOMEM. */
MUST_CHECK int descriptor_add_generation(struct descriptor_domain *, const struct context_extra *, uint16_t *number);
/* The slot that does not rule; NULL when it is empty. Filled: a rotation is under way. */
const struct descriptor_slot *descriptor_other_slot(const struct descriptor_domain *);
/* Puts fresh (its seq is ignored) in place of the slot that does not rule: from now on it rules. 0 or -EOVERFLOW. */
MUST_CHECK int descriptor_put_slot(struct descriptor_domain *, const struct descriptor_slot *fresh);
/* The end: the slot that does not rule is emptied, rotated = now. -EALREADY: it is empty. */
MUST_CHECK int descriptor_finish(struct descriptor_domain *, int64_t now);
/* A copy with generations of its own. On failure *out is as before. */
MUST_CHECK int descriptor_domain_copy(struct descriptor_domain *out, const struct descriptor_domain *);
/* Frees what the struct points to, not the struct. */
void descriptor_store_free(struct descriptor_store *);
void descriptor_domain_free(struct descriptor_domain *);

#endif
