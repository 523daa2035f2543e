/* rotate_moved.h — passes over a store that is mounted and in use. */
#ifndef BYOKFS_ROTATE_MOVED_H
#define BYOKFS_ROTATE_MOVED_H

#include <stdbool.h>
#include <stdint.h>

#include "cleanup.h"
#include "inoset.h"

struct rotation;

/* What the daemon records, as far as the rotator knows it. The walking thread's own. */
struct rotate_record {
	bool on, lost, busy;
	struct inoset listed; /* directories, in this walk */
	uint64_t asked;       /* io_boot_ms() */
};

/* A pass after which nothing is left that it is about (mode: enum rotate_mode). *again: it found a file that is not
 * sealed anew. */
MUST_CHECK int rotate_pass_live(struct rotation *, int mode, bool *again);
/* Now and then, while a walk goes on: works off what moved. */
void rotate_moved_meanwhile(struct rotation *);

#endif
