/* quarantine.h — .byokfs/quarantine/<UTC time>/ of a store: what a repair moved out of the way, or copied before it
 * changed it, by number; and the file `index` that says what each is (byokfs-format(5), QUARANTINE).
 *
 * A line of the index is durable before what it speaks of happens, so that a repair cut short leaves nothing that is
 * not explained. Made when first needed. One thread. */
#ifndef BYOKFS_QUARANTINE_H
#define BYOKFS_QUARANTINE_H

#include <stdint.h>
#include <stddef.h>

#include "cleanup.h"

struct quarantine {
	int meta_fd; /* .byokfs, borrowed */
	int fd, index_fd;
	char name[40]; /* "20260101T000000Z"; empty: nothing was put there yet */
	uint64_t n;
};

struct quarantine_item {
	const char *type;           /* "file", "directory", "copy", ... */
	const char *cipher, *plain; /* escaped; plain may be NULL */
	const char *reason;
};

void quarantine_init(struct quarantine *, int meta_fd);
void quarantine_close(struct quarantine *);
/* A line with the next number, which is returned in q->n; durable. 0 or -errno. */
MUST_CHECK int quarantine_note(struct quarantine *, const struct quarantine_item *);
/* Bytes of the file copied as q->n that are not what they were: "lost", "doubted". Durable after quarantine_sync(). */
MUST_CHECK int quarantine_range(struct quarantine *, const char *word, uint64_t len, uint64_t off);
MUST_CHECK int quarantine_sync(struct quarantine *);
/* name in dirfd goes to number q->n, with a suffix. Durable. */
MUST_CHECK int quarantine_take(struct quarantine *, int dirfd, const char *name, const char *suffix);
/* The file's bytes as they are, holes kept, blocks shared where the backing can. Durable. */
MUST_CHECK int quarantine_copy(struct quarantine *, int fd);
/* A value of an attribute. Durable. */
MUST_CHECK int quarantine_save(struct quarantine *, const void *bytes, size_t n);

#endif
