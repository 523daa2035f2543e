/* domain_queue.c — which nested domain is opened next. Hides a queue and a few threads that are there only while
 * something waits to be opened: thousands of domains do not mean thousands of threads, and one that could not be opened
 * has its next turn after those that were not tried yet. */
#include <string.h>
#include <time.h>

#include "domain_internal.h"
#include "fs.h"
#include "io.h"
#include "log.h"

/* lock held: the domain whose turn it is, or the time is waited for; NULL: nothing is left for this thread. */
static struct domain *next(struct domains *t)
{
	for (;;) {
		struct domain *d = TAILQ_FIRST(&t->queue);
		uint64_t now = io_boot_ms();

		if (!d || t->stopping)
			return NULL;
		if (d->due <= now) {
			TAILQ_REMOVE(&t->queue, d, queue);
			t->queued--;
			d->queued = d->hurry = false;
			return d;
		}
		struct timespec until = io_after_ms(d->due - now);

		(void)pthread_cond_timedwait(&t->wake, &t->lock, &until);
	}
}

/* No lock held. true: it is open, or at least has a lease. */
static bool attempt(struct domain *d)
{
	pthread_mutex_lock(&d->lock);
	bool held = d->held, done = false;

	pthread_mutex_unlock(&d->lock);
	if (!held) { /* else nothing is asked */
		log_label(d->label);
		done = domain_try(d);
		log_label(NULL);
	}
	LOCK_SCOPE(&d->lock);
	d->failures += !held && !done;
	d->answered = true;
	(void)pthread_cond_broadcast(&d->wake);
	return done;
}

/* lock held. Those tried in vain are all tried again after the same time, so the queue is in order of it. */
static void put(struct domains *t, struct domain *d, bool now)
{
	d->due = now ? 0 : io_boot_ms() + t->params.lease.probe_ms;
	if (now)
		TAILQ_INSERT_HEAD(&t->queue, d, queue);
	else
		TAILQ_INSERT_TAIL(&t->queue, d, queue);
	d->queued = true;
	t->queued++;
	(void)pthread_cond_signal(&t->wake);
}

static void *opener_main(void *arg)
{
	struct opener *o = arg;
	struct domains *t = o->table;
	struct domain *d;

	pthread_mutex_lock(&t->lock);
	while ((d = next(t))) {
		pthread_mutex_unlock(&t->lock);
		bool done = attempt(d);

		pthread_mutex_lock(&t->lock);
		if (!done)
			put(t, d, d->hurry);
	}
	o->running = false;
	t->running--;
	pthread_mutex_unlock(&t->lock);
	return NULL;
}

/* lock held. A thread that has ended holds it no more. */
static void join(struct opener *o)
{
	if (o->used)
		(void)pthread_join(o->thread, NULL);
	o->used = false;
}

/* lock held: as many threads as there is work for. Without any, unlocking one of the domains tries again. */
static void staff(struct domains *t)
{
	int r = 0;

	for (size_t i = 0; !r && i < DOMAIN_OPENERS && t->running < t->queued && !t->stopping; i++) {
		struct opener *o = &t->openers[i];

		if (o->running)
			continue;
		join(o);
		o->table = t;
		r = pthread_create(&o->thread, NULL, opener_main, o);
		o->used = o->running = r == 0;
		t->running += o->running;
	}
	if (r && !t->running)
		log_err("no thread to open key domains with: %s; 'byokfsctl unlock' tries again", strerror(r));
}

void domain_enqueue(struct domain *d)
{
	struct domains *t = d->fs->domains;

	if (!d->queued)
		put(t, d, true);
	staff(t);
}

void domain_hurry(struct domain *d)
{
	struct domains *t = d->fs->domains;

	LOCK_SCOPE(&t->lock);
	d->hurry = true; /* for one in the hands of a thread */
	if (d->queued) {
		TAILQ_REMOVE(&t->queue, d, queue);
		t->queued--;
		put(t, d, true);
	}
	staff(t);
}

/* The last first, so that the first is at the head in the end. */
void domains_open_nested(struct fs *fs)
{
	struct domains *t = fs->domains;

	LOCK_SCOPE(&t->lock);
	for (uint32_t i = atomic_load(&t->end); i-- > 1;) {
		struct domain *d = domain_get(fs, (uint16_t)i);

		if (d && !d->begun)
			put(t, d, true);
		if (d)
			d->begun = true;
	}
	staff(t);
}

void domain_queue_stop(struct fs *fs)
{
	struct domains *t = fs->domains;

	pthread_mutex_lock(&t->lock);
	t->stopping = true;
	(void)pthread_cond_broadcast(&t->wake);
	pthread_mutex_unlock(&t->lock);
	for (size_t i = 0; i < DOMAIN_OPENERS; i++)
		join(&t->openers[i]); /* nobody starts any more */
}
