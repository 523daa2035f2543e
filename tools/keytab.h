/* keytab.h — how many seals stand under which KMS key and key material, and whether a key is still needed. Pure.
 *
 * A file names its key by a hash of the key's name only: names come from elsewhere (descriptors, the administrator).
 * The table is bounded; what finds no row in it is counted together, and then nothing is called "not needed". */
#ifndef BYOKFS_KEYTAB_H
#define BYOKFS_KEYTAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "descriptor.h"
#include "header.h"

#define KEYTAB_ROWS 4096u

struct keytab_seals {
	uint64_t n;
	int64_t oldest, newest; /* Unix seconds; when n > 0 */
};

/* A file's seal: the one that rules; one that nothing uses any more; the one that rules in a file put aside. */
enum keytab_kind { KEYTAB_RULING, KEYTAB_SUPERSEDED, KEYTAB_ASIDE, KEYTAB_KINDS };

struct keytab_row {
	uint8_t provider, hash[8], material[32];
	char *name;                             /* NULL: unknown */
	struct keytab_seals file[KEYTAB_KINDS]; /* of files */
	uint64_t domains, rotating;             /* descriptors whose ruling, or other, slot this is */
	char *example;                          /* a file that depends on it, or NULL */
};

struct keytab {
	struct keytab_row *row;
	size_t n;
	uint16_t *index;            /* row number + 1 by hash */
	struct keytab_seals others; /* not superseded, and found no room */
	uint64_t others_domains;
};

/* 0 or -ENOMEM. keytab_free() it either way. */
MUST_CHECK int keytab_init(struct keytab *);
void keytab_free(struct keytab *);
/* dir/name, malloc'ed: just one of them when dir is "." or name is "". */
char *keytab_path(const char *dir, const char *name);
/* A file's slot, wrap 1. dir and name: its path, for the example. -ENOMEM: there is none. */
MUST_CHECK int keytab_file(
    struct keytab *, const struct header_slot *, enum keytab_kind, const char *dir, const char *name);
/* A filled slot of a descriptor. 0 or -ENOMEM. */
MUST_CHECK int keytab_domain(struct keytab *, const struct descriptor_slot *, bool ruling);
/* Names what has this name's hash and no name yet. 0 or -ENOMEM. */
MUST_CHECK int keytab_name(struct keytab *, const char *name);
/* When all is counted: rows of one key next to each other, named ones first; a name known of one row of a key is known
 * of all. Nothing can be added afterwards. 0 or -ENOMEM. */
MUST_CHECK int keytab_sort(struct keytab *);
/* Rows of one key: the same provider and hash. */
bool keytab_same(const struct keytab_row *, const struct keytab_row *);
/* Files that depend on this row; and does anything, a slot of a descriptor included? */
uint64_t keytab_row_files(const struct keytab_row *);
bool keytab_row_needed(const struct keytab_row *);

struct keytab_need {
	uint64_t files, domains; /* that depend on it: then it is needed */
	uint64_t superseded;     /* old seals that nothing uses */
	const char *example;     /* belongs to the table, or NULL */
	uint64_t maybe;          /* files and descriptors under keys that may be this one by another name, or by none */
};
/* Who depends on the key of this name, or on a sibling of it in another Region. */
void keytab_need(const struct keytab *, const char *name, struct keytab_need *out);

#endif
