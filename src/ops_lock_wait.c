/* ops_lock_wait.c — those who wait for a lock between hosts. One thread asks for all of them again and again, for a
 * wait on a network cannot be ended everywhere. It also answers those whose lock came while the kernel still holds
 * what others have changed: the pages and attributes of that file are dropped first, which may wait for reads and so
 * must not be done by those who serve them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "io.h"
#include "log.h"
#include "ops_lock_internal.h"

#define NAP_MIN_MS 1u
#define NAP_MAX_MS 40u
#define BUSY_MAX_MS 1000u

/* On a thread of libfuse, with its lock of the request held. The request cannot be another one's yet. */
static void interrupted(fuse_req_t req, void *arg)
{
	struct locks *l = arg;
	struct lock_wait *w;

	LOCK_SCOPE(&l->lock);
	TAILQ_FOREACH(w, &l->waits, link)
	if (w->req == req)
		w->interrupted = l->hurry = true;
	pthread_cond_signal(&l->wake);
}

int lock_park(
    struct locks *l, fuse_req_t req, struct lock_owner *o, struct domain *d, const struct flock *lock, bool granted)
{
	struct lock_wait *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOLCK;
	*w = (struct lock_wait){ .req = req, .owner = o, .domain = d, .lock = *lock, .granted = granted };
	/* Before anybody may answer, and free, the request. */
	fuse_req_interrupt_func(req, interrupted, l);
	pthread_mutex_lock(&l->lock);
	w->interrupted = fuse_req_interrupted(req);
	l->hurry = true;
	TAILQ_INSERT_TAIL(&l->waits, w, link);
	pthread_cond_signal(&l->wake);
	pthread_mutex_unlock(&l->lock);
	return 0;
}

static void refresh_kernel(struct fs *fs, const struct lock_owner *o)
{
	uint64_t seq;

	if (!lock_kernel_is_behind(o, &seq))
		return;
	pthread_mutex_lock(&o->inode->lock);
	o->inode->seen = seq;
	pthread_mutex_unlock(&o->inode->lock);
	int r = fuse_lowlevel_notify_inval_inode(fs->se, o->inode->nodeid, 0, 0);

	if (r && r != -ENOENT)
		log_debug("cannot drop the kernel's pages after a lock: %s", strerror(-r));
}

/* -EAGAIN: goes on waiting. */
static int outcome(const struct lock_wait *w, bool give_up)
{
	int r = -EINTR;

	if (w->granted)
		return 0;
	if (!give_up)
		r = domain_is_open(w->domain) ? lock_try(w->owner, &w->lock) : -EIO;
	return r;
}

/* One look at everybody; true when somebody got an answer. */
static bool look_round(struct locks *l)
{
	struct lock_wait *w, *next;
	bool any = false;

	pthread_mutex_lock(&l->lock);
	for (w = TAILQ_FIRST(&l->waits); w; w = next) {
		bool give_up = w->interrupted || l->stop;

		pthread_mutex_unlock(&l->lock);
		int r = outcome(w, give_up);

		if (!r)
			refresh_kernel(l->fs, w->owner);
		pthread_mutex_lock(&l->lock);
		next = TAILQ_NEXT(w, link); /* stays: nobody else removes */
		if (r == -EAGAIN)
			continue;
		TAILQ_REMOVE(&l->waits, w, link);
		pthread_mutex_unlock(&l->lock);
		(void)fuse_reply_err(w->req, -r);
		lock_owner_put(l, w->owner);
		free(w);
		any = true;
		pthread_mutex_lock(&l->lock);
	}
	pthread_mutex_unlock(&l->lock);
	return any;
}

/* busy_ms: what the last look took. With very many of them it leaves as much time to others. */
static void nap(struct locks *l, unsigned ms, uint64_t busy_ms)
{
	struct timespec until = io_after_ms(busy_ms < BUSY_MAX_MS ? busy_ms : BUSY_MAX_MS);

	LOCK_SCOPE(&l->lock);
	while (busy_ms > 1 && !l->stop && pthread_cond_timedwait(&l->wake, &l->lock, &until) == 0)
		;
	if (TAILQ_EMPTY(&l->waits)) {
		if (!l->stop)
			pthread_cond_wait(&l->wake, &l->lock);
	} else if (!l->hurry) {
		until = io_after_ms(ms);
		(void)pthread_cond_timedwait(&l->wake, &l->lock, &until);
	}
}

void *lock_waiter(void *arg)
{
	struct locks *l = arg;
	unsigned ms = NAP_MIN_MS;
	uint64_t begun;
	bool stop = false;

	while (!stop) {
		pthread_mutex_lock(&l->lock);
		if (l->hurry)
			ms = NAP_MIN_MS;
		l->hurry = false;
		pthread_mutex_unlock(&l->lock);
		begun = io_boot_ms();
		if (look_round(l))
			ms = NAP_MIN_MS;
		nap(l, ms, io_boot_ms() - begun);
		ms = ms * 2 < NAP_MAX_MS ? ms * 2 : NAP_MAX_MS;
		pthread_mutex_lock(&l->lock);
		stop = l->stop && TAILQ_EMPTY(&l->waits);
		pthread_mutex_unlock(&l->lock);
	}
	return NULL;
}
