/* context.h — encryption contexts: what every KMS call and every derivation is bound to (format.md 2.1). Pure. */
#ifndef BYOKFS_CONTEXT_H
#define BYOKFS_CONTEXT_H

#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

#define CONTEXT_ID          16u
#define CONTEXT_EXTRA_MAX   8u /* administrator's pairs */
#define CONTEXT_EXTRA_BYTES 1024u
#define CONTEXT_PAIRS_MAX   (4u + CONTEXT_EXTRA_MAX)
#define CONTEXT_ENCODED_MAX 2048u

enum context_use { CONTEXT_FILE, CONTEXT_DOMAIN, CONTEXT_PROBE };

struct context_pair {
	char name[65];
	char value[CONTEXT_EXTRA_BYTES + 1];
};

/* The administrator's pairs of one generation; n = 0 is fine. */
struct context_extra {
	size_t n;
	struct context_pair pair[CONTEXT_EXTRA_MAX];
};

/* Ids every derivation and AAD of a domain shares. */
struct context_ids {
	uint8_t suite;
	uint8_t store[CONTEXT_ID];
	uint8_t domain[CONTEXT_ID];
};

/* On whose behalf the KMS is asked: for the audit only, never part of what is bound or sent. pid 0: the daemon's own
 * business. */
struct context_cause {
	uint32_t uid;
	int32_t pid;
};

/* All pairs of one KMS call, ascending by name (byte order). About 12 KiB: heap or static, not deep stacks. */
struct context {
	struct context_cause cause; /* context_build() leaves it empty */
	size_t n;
	struct context_pair pair[CONTEXT_PAIRS_MAX];
};

/* "name:value, name:value" (or "-" or "" for none) into extra: name rules, value printable ASCII, at most 8 pairs and
 * 1024 bytes in all, no duplicates. 0 or -EINVAL. Used for the ini; descriptors escape values (descriptor.h). */
MUST_CHECK int context_parse_extra(struct context_extra *out, const char *text);
/* Adds one pair under the same rules. 0 or -EINVAL. */
MUST_CHECK int context_add_extra(struct context_extra *, const char *name, const char *value);

/* Pairs of a KMS call; file_id for CONTEXT_FILE, else NULL; extra may be NULL. */
void context_build(struct context *out, enum context_use, const struct context_ids *, const uint8_t *file_id,
    const struct context_extra *extra);
/* E(pairs); returns the length. */
size_t context_encode(uint8_t out[static CONTEXT_ENCODED_MAX], const struct context *);
/* Canonical context CC: the byokfs-* pairs only. file_id NULL: the domain's. Returns the length (162 or 117). */
size_t context_canonical(uint8_t out[static 256], const struct context_ids *, const uint8_t *file_id);

#endif
