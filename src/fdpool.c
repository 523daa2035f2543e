/* fdpool.c — see fdpool.h. Open slots stand in a ring; a hand goes round, lets pass whoever was used since it came by
 * last, and closes what it meets then: the second-chance order, which costs a use one store and no lock.
 *
 * A slot that is to be closed is held meanwhile, so that its file can be flushed without a lock; who wants it
 * then just gets it, and it stays. */
#include "fdpool.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#define LOOK 64u /* slots passed in search of one to close */
#define SHED 16u

static struct {
	pthread_mutex_t lock;
	pthread_cond_t left;
	TAILQ_HEAD(, fdslot) ring;
	size_t open, limit;
	_Atomic int lent;
} pool = { .lock = PTHREAD_MUTEX_INITIALIZER,
	.left = PTHREAD_COND_INITIALIZER,
	.ring = TAILQ_HEAD_INITIALIZER(pool.ring) };

static size_t counted(void)
{
	int lent = atomic_load_explicit(&pool.lent, memory_order_relaxed);

	return pool.open + (lent > 0 ? (size_t)lent : 0);
}

void fdpool_limit(size_t limit)
{
	LOCK_SCOPE(&pool.lock);
	pool.limit = limit;
}

size_t fdpool_count(void)
{
	LOCK_SCOPE(&pool.lock);
	return counted();
}

/* lock held. One that nobody uses, held now and marked; or NULL. */
static struct fdslot *victim(void)
{
	for (unsigned n = 0; n < LOOK; n++) {
		struct fdslot *s = TAILQ_FIRST(&pool.ring);
		int none = 0;

		if (!s)
			return NULL;
		TAILQ_REMOVE(&pool.ring, s, link);
		TAILQ_INSERT_TAIL(&pool.ring, s, link);
		if (atomic_exchange_explicit(&s->recent, false, memory_order_relaxed) || s->leaving)
			continue;
		if (atomic_compare_exchange_strong(&s->users, &none, 1)) {
			s->leaving = true;
			return s;
		}
	}
	return NULL;
}

/* No lock held. The descriptor to close, or -1: it stays. */
static int evict(struct fdslot *s)
{
	int r = s->ops->settle ? s->ops->settle(s) : 0, one = 1, fd = -1;

	LOCK_SCOPE(&pool.lock);
	if (!r && atomic_compare_exchange_strong(&s->users, &one, -1)) {
		fd = s->fd;
		TAILQ_REMOVE(&pool.ring, s, link);
		s->listed = false;
		pool.open--;
	} else {
		atomic_fetch_sub(&s->users, 1);
	}
	s->leaving = false;
	(void)pthread_cond_broadcast(&pool.left);
	return fd;
}

static bool shrink_one(bool always)
{
	struct fdslot *s;
	int fd;

	{
		LOCK_SCOPE(&pool.lock);
		s = always || (pool.limit && counted() > pool.limit) ? victim() : NULL;
	}
	if (!s)
		return false;
	fd = evict(s);
	cleanup_fd(&fd);
	return true;
}

static void shrink(void)
{
	/* One came, one or two go; who finds no victim leaves it to the next. */
	for (unsigned n = 0; n < 2 && shrink_one(false); n++)
		;
}

bool fdpool_shed(void)
{
	bool any = false;

	for (unsigned n = 0; n < SHED && shrink_one(true); n++)
		any = true;
	return any;
}

void fdpool_lend(int n)
{
	atomic_fetch_add(&pool.lent, n);
	if (n > 0)
		shrink();
}

/* lock held. */
static void enter(struct fdslot *s, int fd, int users)
{
	s->fd = fd;
	atomic_store(&s->recent, true);
	TAILQ_INSERT_TAIL(&pool.ring, s, link);
	s->listed = true;
	pool.open++;
	atomic_store(&s->users, users);
}

void fdslot_open(struct fdslot *s, int fd, const struct fdslot_ops *ops)
{
	s->ops = ops;
	if (!ops || !ops->reopen) {
		s->fd = fd;
		return;
	}
	{
		LOCK_SCOPE(&pool.lock);
		enter(s, fd, 0);
	}
	shrink();
}

static int reopen(struct fdslot *s)
{
	int fd = s->ops->reopen(s), held;

	if (fd < 0)
		return fd;
	{
		LOCK_SCOPE(&pool.lock);
		if (!s->listed) {
			enter(s, fd, 1);
			fd = -1;
		} else { /* somebody was faster */
			atomic_fetch_add(&s->users, 1);
		}
		held = s->fd;
	}
	cleanup_fd(&fd);
	shrink();
	return held;
}

int fdslot_hold(struct fdslot *s)
{
	int users = atomic_load_explicit(&s->users, memory_order_relaxed);

	while (users >= 0)
		if (atomic_compare_exchange_weak(&s->users, &users, users + 1)) {
			if (!atomic_load_explicit(&s->recent, memory_order_relaxed))
				atomic_store_explicit(&s->recent, true, memory_order_relaxed);
			return s->fd;
		}
	return reopen(s);
}

void fdslot_release(struct fdslot *s)
{
	atomic_fetch_sub(&s->users, 1);
}

int fdslot_take(struct fdslot *s)
{
	int fd = -1;

	LOCK_SCOPE(&pool.lock);
	while (s->leaving)
		(void)pthread_cond_wait(&pool.left, &pool.lock);
	if (atomic_load(&s->users) >= 0)
		fd = s->fd;
	if (s->listed) {
		TAILQ_REMOVE(&pool.ring, s, link);
		pool.open--;
		s->listed = false;
	}
	atomic_store(&s->users, 0);
	s->fd = -1;
	return fd;
}
