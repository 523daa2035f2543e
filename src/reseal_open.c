/* What a walk over the store cannot find: files that are just being made, and files that are open though their last
 * name is gone. Hides how the first are waited for without holding anybody up, and where the second are. */
#include <errno.h>

#include "io.h"
#include "reseal.h"
#include "state.h"

#define SLICE_MS 100u

/* ---- being made */

/* Two generations: whoever comes while one is waited for counts in the other. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t ended;
	unsigned now, n[2];
} births = { .lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER };

unsigned reseal_birth_begin(void)
{
	LOCK_SCOPE(&births.lock);
	births.n[births.now]++;
	return births.now;
}

void reseal_birth_end(unsigned generation)
{
	LOCK_SCOPE(&births.lock);
	if (--births.n[generation] == 0)
		(void)pthread_cond_broadcast(&births.ended);
}

/* Lock held. */
static int wait_for(unsigned generation, uint64_t end, const atomic_bool *stop)
{
	while (births.n[generation]) {
		struct timespec until;

		if (io_boot_ms() >= end || (stop && atomic_load(stop)))
			return -ETIMEDOUT;
		(void)clock_gettime(CLOCK_REALTIME, &until); /* a step of the clock costs a slice */
		until.tv_nsec += (long)SLICE_MS * 1000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		(void)pthread_cond_timedwait(&births.ended, &births.lock, &until);
	}
	return 0;
}

int reseal_births_wait(unsigned ms, const atomic_bool *stop)
{
	uint64_t end = io_boot_ms() + ms;
	int r = 0;

	LOCK_SCOPE(&births.lock);
	for (int i = 0; !r && i < 2; i++) {
		unsigned old = births.now;

		births.now = !old;
		r = wait_for(old, end, stop);
	}
	return r;
}

/* ---- open without a name */

struct search {
	struct domain *domain;
	uint64_t from;
	bool (*fn)(void *arg, const struct reseal_orphan *);
	void *arg;
};

static bool look_at(void *arg, struct inode *inode)
{
	struct search *s = arg;
	struct reseal_orphan o = { .node = inode->nodeid, .ino = inode->ino };
	struct file *f;
	struct stat st;
	bool found;
	int fd;

	if (inode->nodeid < s->from || atomic_load(&inode->domain) != s->domain->index)
		return true;
	f = state_pin_loaded(inode);
	if (!f)
		return true;
	fd = file_hold(f);
	found = fd >= 0 && fstat(fd, &st) == 0 && st.st_nlink == 0 && reslot_read(fd, &o.view) == 0;
	if (fd >= 0)
		file_release(f);
	state_unpin(s->domain->fs, inode);
	return !found || s->fn(s->arg, &o);
}

void reseal_orphans(struct domain *d, uint64_t from, bool (*fn)(void *arg, const struct reseal_orphan *), void *arg)
{
	struct search s = { d, from, fn, arg };

	inode_each(d->fs->inodes, look_at, &s);
}
