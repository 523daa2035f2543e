/* The syncer: one thread that flushes what has been dirty for 5 s and promotes what was closed without fsync, many
 * files with one syncfs. It also does the last round at unmount, and the flush and wipe of a lock.
 *
 * A state it works on is marked `syncing` and its inode held, so that nobody drops it meanwhile. */
#include "state_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "bulk.h"
#include "io.h"
#include "keywait.h"
#include "log.h"
#include "newborn.h"
#include "ops.h"
#include "purge.h"

/* Deepest chain of records: data, group, L1, L2, root; one level a round, and two more for drops. */
#define ROUNDS  8
#define SLOW_MS 1000u
/* How long one pass waits for keys of nested domains, and how often it looks. */
#define NESTED_MS      500u
#define NESTED_LOOK_US 5000u

enum step { STEP_FLUSH, STEP_FLUSH_HINT, STEP_BEGIN, STEP_END, STEP_END_FAILED };

struct job {
	struct inode *inode; /* our ref */
	struct state *state;
	uint64_t mark;
	bool begun;
};

static bool wanted(const struct file *f)
{
	return file_dirty(f) || file_pending(f);
}

/* 0: the file's key is at hand, 1: it was asked for, or -errno. */
static int ask_ahead(struct domain *d, struct file *f)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;
	int r = keywait_enter(d, file_ident(f), NULL, &key);

	if (!r)
		keywait_leave(d, key);
	if (r != -EAGAIN)
		return r;
	if (domain_peek_loaded(d, f, &ident, &slot))
		return -EIO;
	if (slot.wrap == HEADER_WRAP_DOMAIN)
		return 0;
	r = domain_visit(d, LEASE_WORK);
	if (r)
		return r;
	r = lease_key_ahead(domain_lease(d), &ident, &slot);
	domain_leave(d, LEASE_WORK);
	return r < 0 ? r : 1;
}

/* What is cached, or unwrapped without the KMS. */
static int enter_nested(struct domain *d, struct file *f, struct lease_key **key)
{
	struct header_ident ident;
	struct header_slot slot;
	int r = keywait_enter(d, file_ident(f), NULL, key);

	if (r != -EAGAIN || domain_peek_loaded(d, f, &ident, &slot))
		return r;
	return slot.wrap == HEADER_WRAP_DOMAIN ? keywait_enter(d, &ident, &slot, key) : r;
}

/* Keys of nested domains are fetched ahead, all at once, and waited for a moment in all. What is not there
 * then has its turn in another pass. */
static void fetch_nested(struct fs *fs, const struct job *jobs, size_t n)
{
	uint64_t end = io_boot_ms() + NESTED_MS;

	for (size_t i = 0; i < n && !fs->states->last; i++) {
		struct domain *d = domain_of_inode(fs, jobs[i].inode);

		if (d->index && wanted(jobs[i].inode->file))
			(void)ask_ahead(d, jobs[i].inode->file);
	}
	for (size_t i = 0; i < n && !fs->states->last; i++) {
		struct domain *d = domain_of_inode(fs, jobs[i].inode);
		int r = d->index && wanted(jobs[i].inode->file) ? ask_ahead(d, jobs[i].inode->file) : -ENODATA;

		while (r == 1 && io_boot_ms() < end) {
			(void)usleep(NESTED_LOOK_US);
			r = ask_ahead(d, jobs[i].inode->file);
		}
	}
}

/* One step on one file with its key. A key service that hangs must not hold up the files of other domains: for nested
 * ones a key that is not at hand is not waited for, see fetch_nested(). In the last round it is, but who waited in vain
 * for a key of a domain does not wait for the next one of it. */
static int step(struct fs *fs, struct job *job, enum step what)
{
	struct domain *d = domain_of_inode(fs, job->inode);
	struct file *f = job->inode->file;
	struct lease_key *key;
	uint64_t begun = io_boot_ms();
	int r = d == fs->states->slow ? -EIO
	    : d->index && !fs->states->last ? enter_nested(d, f, &key)
	                                    : keywait_enter_file(d, f, &key);

	if (r && io_boot_ms() - begun >= SLOW_MS)
		fs->states->slow = d;
	if (r)
		return r;
	struct file_key fk = { lease_key_file(key), lease_key_block(key) };

	switch (what) {
	case STEP_FLUSH:
	case STEP_FLUSH_HINT:
		r = file_flush(f, &fk, what == STEP_FLUSH_HINT);
		break;
	case STEP_BEGIN:
		r = file_promote_begin(f, &fk, &job->mark);
		break;
	case STEP_END:
	case STEP_END_FAILED:
		r = file_promote_end(f, &fk, job->mark, what == STEP_END);
		break;
	}
	keywait_leave(d, key);
	return r;
}

/* Takes queued states for work: all of them, or those dirty for long enough. */
static size_t take(struct fs *fs, struct job *jobs, size_t max, uint64_t older_than)
{
	struct states *s = fs->states;
	size_t n = 0;
	struct state *st;

	LOCK_SCOPE(&s->lock);
	TAILQ_FOREACH(st, &s->queue, link)
	{
		if (n == max)
			break;
		if (st->since > older_than || st->syncing)
			continue;
		st->syncing = true;
		jobs[n++] = (struct job){ .inode = st->inode, .state = st };
	}
	return n;
}

/* Gives states back; those with nothing left to do leave the queue. */
static void give_back(struct fs *fs, struct job *jobs, size_t n)
{
	struct states *s = fs->states;

	for (size_t i = 0; i < n; i++) {
		struct state *st = jobs[i].state;
		struct inode *inode = fs_inode(fs, jobs[i].inode->nodeid); /* the state's ref may end below */

		pthread_mutex_lock(&inode->lock);
		bool idle = !file_dirty(inode->file) && !file_pending(inode->file);

		pthread_mutex_lock(&s->lock);
		st->syncing = false;
		st->since = io_boot_ms();
		TAILQ_REMOVE(&s->queue, st, link);
		if (idle) {
			st->queued = false;
			s->queued--;
		} else { /* others first: it may fail for ever */
			TAILQ_INSERT_TAIL(&s->queue, st, link);
		}
		pthread_mutex_unlock(&s->lock);
		pthread_mutex_unlock(&inode->lock);
		state_settle(fs, inode);
		inode_put(fs->inodes, inode);
	}
}

static bool nobody_has_open(struct inode *inode)
{
	LOCK_SCOPE(&inode->lock);
	return inode->opens == 0;
}

static void flush_old(struct fs *fs)
{
	struct job jobs[64];
	uint64_t now = io_boot_ms();
	fs->states->slow = NULL;
	size_t n = take(fs, jobs, 64, now > STATES_FLUSH_MS ? now - STATES_FLUSH_MS : 0);

	fetch_nested(fs, jobs, n);
	for (size_t i = 0; i < n; i++) {
		struct file *f = jobs[i].inode->file;

		if (file_dirty(f))
			(void)step(fs, &jobs[i], nobody_has_open(jobs[i].inode) ? STEP_FLUSH_HINT : STEP_FLUSH);
	}
	give_back(fs, jobs, n);
}

/* One syncfs for all jobs. Returns how many still have something pending. */
static size_t promote_round(struct fs *fs, struct job *jobs, size_t n)
{
	size_t begun = 0, left = 0;
	uint64_t newborns = newborn_mark();

	for (size_t i = 0; i < n; i++) {
		struct file *f = jobs[i].inode->file;

		jobs[i].begun = file_pending(f) && step(fs, &jobs[i], STEP_BEGIN) == 0;
		begun += jobs[i].begun;
	}
	if (!begun)
		return 0;
	/* In shared mode each file was flushed by itself, under its lock. */
	bool durable = fs->params.shared || syncfs(fs->store->fd) == 0;

	if (durable && !fs->params.shared)
		newborn_clear(newborns);
	else if (!durable)
		log_err("cannot sync the store: %s", strerror(errno));
	for (size_t i = 0; i < n; i++) {
		struct file *f = jobs[i].inode->file;

		if (jobs[i].begun && step(fs, &jobs[i], durable ? STEP_END : STEP_END_FAILED) == 0 && durable)
			left += file_pending(f);
	}
	return left;
}

/* Promotes up to STATES_MANY queued files until nothing is pending. false: some could not be. */
static bool promote(struct fs *fs)
{
	struct job *jobs = calloc(STATES_MANY, sizeof(*jobs));
	bool clean = true;

	if (!jobs)
		return false;
	fs->states->slow = NULL;
	size_t n = take(fs, jobs, STATES_MANY, UINT64_MAX);

	fetch_nested(fs, jobs, n);
	for (int round = 0; round < ROUNDS; round++)
		if (promote_round(fs, jobs, n) == 0)
			break;
	for (size_t i = 0; i < n; i++) {
		struct file *f = jobs[i].inode->file;

		if ((step(fs, &jobs[i], STEP_FLUSH_HINT) || file_pending(f) || file_dirty(f)) &&
		    !(fs->params.shared && state_gone(f)))
			clean = false;
	}
	give_back(fs, jobs, n);
	free(jobs);
	return clean;
}

static void *syncer(void *arg)
{
	struct fs *fs = arg;
	struct states *s = fs->states;

	pthread_mutex_lock(&s->lock);
	while (!s->stop) {
		struct timespec until;

		(void)clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec++;
		(void)pthread_cond_timedwait(&s->wake, &s->lock, &until);
		bool many = s->queued >= STATES_MANY;

		pthread_mutex_unlock(&s->lock);
		uint64_t now = io_boot_ms();

		purge_again(fs);
		flush_old(fs);
		bulk_relax();
		if (many || now - s->promoted >= STATES_PROMOTE_MS) {
			(void)promote(fs);
			s->promoted = io_boot_ms();
		}
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

int states_start(struct fs *fs)
{
	struct states *s = fs->states;
	int r;

	s->promoted = io_boot_ms();
	r = pthread_create(&s->thread, NULL, syncer, fs);
	s->running = r == 0;
	return -r;
}

static bool close_one(void *arg, struct inode *inode)
{
	struct fs *fs = arg;
	struct file *f;

	pthread_mutex_lock(&inode->lock);
	f = inode->file;
	inode->file = NULL;
	free(inode->extra);
	inode->extra = NULL;
	pthread_mutex_unlock(&inode->lock);
	if (f) {
		file_close(f);
		inode_put(fs->inodes, inode);
	}
	return true;
}

bool states_stop(struct fs *fs, bool flush)
{
	struct states *s = fs->states;
	bool clean = true;

	if (!s)
		return true;
	seeker_stop(fs);
	if (s->running) {
		pthread_mutex_lock(&s->lock);
		s->stop = true;
		pthread_cond_signal(&s->wake);
		pthread_mutex_unlock(&s->lock);
		(void)pthread_join(s->thread, NULL);
		s->running = false;
	}
	/* Every file gets its turn, whatever happens to others. */
	s->last = true;
	for (size_t left = flush ? s->queued / STATES_MANY + 1 : 0; left > 0; left--)
		clean = promote(fs) && clean;
	return clean && s->queued == 0 && !atomic_load(&s->odd);
}

void states_close(struct fs *fs)
{
	struct states *s = fs->states;

	if (!s)
		return;
	inode_each(fs->inodes, close_one, fs);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->wake);
	free(s);
	fs->states = NULL;
}

struct sweep {
	struct fs *fs;
	const struct domain *domain;
	unsigned count;
};

static bool flush_cached(void *arg, struct inode *inode)
{
	struct sweep *sweep = arg;
	struct fs *fs = sweep->fs;
	struct domain *d = domain_of_inode(fs, inode);
	struct lease_key *key = NULL;

	if (d != sweep->domain)
		return true;
	pthread_mutex_lock(&inode->lock);
	struct file *f = inode->file;

	if (f)
		inode->opens++;
	pthread_mutex_unlock(&inode->lock);
	if (!f)
		return true;
	if (file_dirty(f)) {
		int r = domain_enter(d, LEASE_WRITEBACK);

		if (!r) {
			r = lease_file_key(domain_lease(d), file_ident(f), NULL, NULL, &key);
			if (!r) {
				struct file_key fk = { lease_key_file(key), lease_key_block(key) };

				r = file_flush(f, &fk, false);
				lease_key_put(key);
			}
			domain_leave(d, LEASE_WRITEBACK);
		}
		sweep->count += r != 0;
	}
	state_unpin(fs, inode);
	return true;
}

unsigned states_flush_cached(struct domain *d)
{
	struct sweep sweep = { .fs = d->fs, .domain = d };

	inode_each(d->fs->inodes, flush_cached, &sweep);
	return sweep.count;
}

static bool wipe_one(void *arg, struct inode *inode)
{
	struct sweep *sweep = arg;

	if (domain_of_inode(sweep->fs, inode) != sweep->domain)
		return true;
	pthread_mutex_lock(&inode->lock);
	bool lost = inode->file && file_wipe(inode->file);

	pthread_mutex_unlock(&inode->lock);
	if (lost) {
		fs_lost(sweep->fs, inode);
		sweep->count++;
	}
	return true;
}

unsigned states_wipe(struct domain *d)
{
	struct sweep sweep = { .fs = d->fs, .domain = d };

	inode_each(d->fs->inodes, wipe_one, &sweep);
	return sweep.count;
}
