/* inoset.h — a set of inode numbers. */
#ifndef BYOKFS_INOSET_H
#define BYOKFS_INOSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

struct inoset { /* all zeros: empty */
	uint64_t *slot; /* open addressing; 0: free */
	size_t n, room;
};

/* 0 or -ENOMEM; in it already is fine. No number is 0. */
MUST_CHECK int inoset_add(struct inoset *, uint64_t ino);
bool inoset_has(const struct inoset *, uint64_t ino);
void inoset_clear(struct inoset *);

#endif
