/* crew.c — see crew.h. Hides the ring and its two conditions. */
#include "crew.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

struct crew {
	void (*work)(void *arg, void *item, unsigned worker);
	void *arg;
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t filled, idle;
	pthread_cond_t freed; /* the queue is half empty again: nobody wakes for each item */
	void **ring;
	size_t room, head, n;
	unsigned busy, workers;
	bool end;
	unsigned named; /* workers that have their number */
	pthread_t *thread;
};

static void *worker_main(void *arg)
{
	struct crew *c = arg;
	unsigned self;

	(void)pthread_mutex_lock(&c->lock);
	self = c->named++;
	for (;;) {
		void *item;

		while (c->n == 0 && !c->end)
			(void)pthread_cond_wait(&c->filled, &c->lock);
		if (c->n == 0)
			break;
		item = c->ring[c->head];
		c->head = (c->head + 1) % c->room;
		c->n--;
		c->busy++;
		if (c->n == c->room / 2)
			(void)pthread_cond_broadcast(&c->freed);
		(void)pthread_mutex_unlock(&c->lock);
		c->work(c->arg, item, self);
		(void)pthread_mutex_lock(&c->lock);
		c->busy--;
		if (c->n == 0 && c->busy == 0)
			(void)pthread_cond_broadcast(&c->idle);
	}
	(void)pthread_mutex_unlock(&c->lock);
	return NULL;
}

int crew_open(struct crew **out, unsigned workers, size_t queue,
    void (*work)(void *arg, void *item, unsigned worker), void *arg)
{
	struct crew *c = calloc(1, sizeof(*c));
	int ret = 0;

	if (!c)
		return -ENOMEM;
	*c = (struct crew){ .work = work, .arg = arg, .room = queue };
	(void)pthread_mutex_init(&c->lock, NULL);
	(void)pthread_cond_init(&c->filled, NULL);
	(void)pthread_cond_init(&c->freed, NULL);
	(void)pthread_cond_init(&c->idle, NULL);
	c->ring = calloc(queue, sizeof(*c->ring));
	c->thread = calloc(workers, sizeof(*c->thread));
	if (!c->ring || !c->thread)
		ret = -ENOMEM;
	for (; ret == 0 && c->workers < workers; c->workers += ret == 0)
		ret = -pthread_create(&c->thread[c->workers], NULL, worker_main, c);
	if (ret < 0) {
		crew_close(c);
		return ret;
	}
	*out = c;
	return 0;
}

void crew_put(struct crew *c, void *item)
{
	LOCK_SCOPE(&c->lock);
	while (c->n == c->room)
		(void)pthread_cond_wait(&c->freed, &c->lock);
	c->ring[(c->head + c->n++) % c->room] = item;
	(void)pthread_cond_signal(&c->filled);
}

void crew_wait(struct crew *c)
{
	LOCK_SCOPE(&c->lock);
	while (c->n > 0 || c->busy > 0)
		(void)pthread_cond_wait(&c->idle, &c->lock);
}

void crew_close(struct crew *c)
{
	if (!c)
		return;
	(void)pthread_mutex_lock(&c->lock);
	c->end = true;
	(void)pthread_cond_broadcast(&c->filled);
	(void)pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0; i < c->workers; i++)
		(void)pthread_join(c->thread[i], NULL);
	(void)pthread_cond_destroy(&c->filled);
	(void)pthread_cond_destroy(&c->freed);
	(void)pthread_cond_destroy(&c->idle);
	(void)pthread_mutex_destroy(&c->lock);
	free(c->ring);
	free(c->thread);
	free(c);
}
