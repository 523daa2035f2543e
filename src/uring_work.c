/* Workers, and which requests are theirs: those that would keep a queue waiting.
 *
 * Bulk data is shared among the CPUs that way, and fsync waits for disks. For everything else the past decides: where
 * the storage is quick, handling a request on the queue's thread is quickest; where it is a network away, the queue
 * must not wait. A single slow one says nothing (the thread may have lost its CPU), so the share of slow ones counts.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "uring_internal.h"

#define BULK      (128u * 1024)
#define OPCODES   64u
#define SLOW_NS   300000u
#define SLOW_MANY 96u /* of 256 */

unsigned uring_class(const void *request, size_t n)
{
	struct fuse_in_header in;
	struct fuse_read_in read;
	uint32_t size = 0;

	memcpy(&in, request, sizeof(in));
	if (in.opcode == FUSE_READ && n >= sizeof(in) + sizeof(read)) {
		memcpy(&read, (const char *)request + sizeof(in), sizeof(read));
		size = read.size;
	} else if (in.opcode == FUSE_WRITE) {
		size = (uint32_t)(n - sizeof(in));
	}
	return (in.opcode < OPCODES ? in.opcode : 0) + (size >= BULK ? OPCODES : 0);
}

bool uring_work_wants(const struct uring *u, unsigned class)
{
	switch (class) {
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
	case FUSE_FALLOCATE:
	case OPCODES + FUSE_READ:
	case OPCODES + FUSE_WRITE:
		return true;
	default:
		return atomic_load_explicit(&u->slow[class], memory_order_relaxed) > SLOW_MANY;
	}
}

void uring_work_learn(struct uring *u, unsigned class, uint64_t ns)
{
	uint32_t share = atomic_load_explicit(&u->slow[class], memory_order_relaxed),
	         now = share - share / 8 + (ns > SLOW_NS ? 32 : 0);

	if (now != share)
		atomic_store_explicit(&u->slow[class], now, memory_order_relaxed);
}

void uring_work_add(struct uring *u, struct uring_entry *e, void *request, size_t n)
{
	e->request = request;
	e->size = n;
	e->next = NULL;
	LOCK_SCOPE(&u->work.lock);
	*u->work.last = e;
	u->work.last = &e->next;
	pthread_cond_signal(&u->work.more);
}

/* NULL: it is over. */
static struct uring_entry *next(struct uring *u)
{
	struct uring_entry *e;

	LOCK_SCOPE(&u->work.lock);
	while (!u->work.stop && !u->work.first)
		pthread_cond_wait(&u->work.more, &u->work.lock);
	if (u->work.stop)
		return NULL;
	e = u->work.first;
	u->work.first = e->next;
	if (!e->next)
		u->work.last = &u->work.first;
	return e;
}

static void *worker(void *arg)
{
	struct uring *u = arg;
	struct uring_entry *e;

	(void)pthread_setname_np(pthread_self(), "byokfs-work");
	while ((e = next(u))) {
		struct uring_queue *q = e->queue;

		(void)uring_run(e, e->request, e->size, false);
		atomic_fetch_sub(&q->working, 1);
	}
	return NULL;
}

int uring_work_open(struct uring *u)
{
	unsigned n = u->params.workers;

	pthread_mutex_init(&u->work.lock, NULL);
	pthread_cond_init(&u->work.more, NULL);
	u->work.last = &u->work.first;
	u->work.thread = calloc(n ? n : 1, sizeof(*u->work.thread));
	if (!u->work.thread)
		return -ENOMEM;
	for (; u->work.threads < n; u->work.threads++) {
		int r = pthread_create(&u->work.thread[u->work.threads], NULL, worker, u);

		if (r)
			return -r;
	}
	return 0;
}

void uring_work_stop(struct uring *u)
{
	pthread_mutex_lock(&u->work.lock);
	u->work.stop = true;
	pthread_cond_broadcast(&u->work.more);
	pthread_mutex_unlock(&u->work.lock);
	while (u->work.threads)
		(void)pthread_join(u->work.thread[--u->work.threads], NULL);
	free(u->work.thread);
	u->work.thread = NULL;
}
