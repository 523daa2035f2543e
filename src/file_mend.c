/* file_mend.c — a damaged file made readable again, in place.
 *
 * Hides the order. What is on the disk becomes durable first, for it is about to be recorded; then file_scan() makes
 * nodes anew and zeros of pages through the writing machinery, as a tenure like any other, so that a repair that is cut
 * short leaves a file that can be repaired again. */
#include <errno.h>
#include <fcntl.h>

#include "file_internal.h"

#define ROUNDS 8 /* of promotion, as file.h says */

/* Records reach the disk one level per flush. */
static int settle(struct file *f, const struct file_key *key)
{
	uint64_t mark;
	int rc = file_fsync(f, key);

	for (unsigned round = 0; rc == 0 && round < ROUNDS && file_pending(f); round++) {
		rc = file_promote_begin(f, key, &mark);
		if (rc == 0)
			rc = file_promote_end(f, key, mark, false);
	}
	return rc == 0 ? file_flush(f, key, true) : rc;
}

static int mend(struct file *f, const struct file_key *key, struct file_scan *s)
{
	int rc = f->root_lost && !s->may(s->arg, UNIT_ROOT, 0) ? -EIO : 0;

	if (rc == 0 && s->write)
		rc = file_sync(f);
	if (rc == 0)
		rc = file_lock_quiet(f, key);
	if (rc != 0)
		return rc;
	rc = file_scan(s);
	if (rc == 0 && s->write)
		rc = file_check_end(f, key);
	file_unlock(f);
	if (rc == 0 && s->write)
		rc = settle(f, key);
	/* the hint and the last records are not durable yet */
	return rc == 0 && s->write ? file_sync(f) : rc;
}

int file_mend(
    int fd, const struct file_key *key, const struct file_params *params, const struct file_mender *mender)
{
	struct file_scan s = { .key = key,
		.to = UINT64_MAX,
		.mend = true,
		.write = !params->readonly,
		.report = mender->report,
		.may = mender->may,
		.arg = mender->arg };
	int own = fcntl(fd, F_DUPFD_CLOEXEC, 0), rc;

	if (own < 0)
		return -errno;
	rc = file_open_mending(&s.f, own, key, params);
	if (rc != 0) {
		(void)close(own);
		return rc;
	}
	rc = mend(s.f, key, &s);
	if (rc == 0)
		rc = s.met || s.f->root_lost;
	file_close(s.f);
	return rc;
}
