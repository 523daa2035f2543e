/* check_repair.h — what `check --repair` does about what the check listed. */
#ifndef BYOKFS_CHECK_REPAIR_H
#define BYOKFS_CHECK_REPAIR_H

#include "check.h"
#include "quarantine.h"

#define REPAIR_RANGES 1000u /* of one file, kept for JSON */

struct repair {
	struct check *c;
	struct quarantine q;
	json_t *list;        /* what was done; NULL: printed as it is done */
	uint64_t removed, moved, mended, copied, lengths, attributes;
	uint64_t lost_bytes, doubted_bytes;
	uint64_t losses; /* objects of which something is missing now */
	uint64_t failed;
};

/* Everything listed, contents before what is moved away. The store is open for writing, and its lock is held. */
void repair_run(struct repair *, struct check *, json_t *list);
void repair_end(struct repair *);

/* ---- parts */
struct repair_at {
	struct repair *r;
	const struct check_fix *fix;
	int dirfd;
	const char *entry; /* in it */
	char *cipher, *plain;
};
/* path, then ": " and what was done; for JSON action, and the quarantine's number if n. */
void repair_say(const struct repair_at *, const char *action, uint64_t n, json_t *lost, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* A directory of the store by its backing path, however long. -errno. */
MUST_CHECK int repair_open_dir(const struct check *, const char *path);
/* To the quarantine. 0 or -errno. */
MUST_CHECK int repair_move(const struct repair_at *, const char *why);
/* check_mend.c: a file's content, or only its length. */
MUST_CHECK int repair_mend(const struct repair_at *);

#endif
