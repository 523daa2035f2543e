/* io_uring with bare hands: a submission and a completion ring, used by one thread only.
 *
 * Hides the shared memory and its ordering. Requests are delivered when this thread asks for them and at no other time
 * (DEFER_TASKRUN): between two calls of enter the kernel touches no entry that has not completed. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "uring_internal.h"

#define SQE_SIZE    128u
#define COMPLETIONS 1024u /* more than that are kept by the kernel meanwhile */

static int map(struct uring_ring *r, const struct io_uring_params *p)
{
	size_t sq = p->sq_off.array + p->sq_entries * sizeof(unsigned),
	       cq = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
	const int prot = PROT_READ | PROT_WRITE;
	char *base;

	if (!(p->features & IORING_FEAT_SINGLE_MMAP))
		return -ENOSYS;
	r->map_size = sq > cq ? sq : cq;
	r->map = mmap(NULL, r->map_size, prot, MAP_SHARED | MAP_POPULATE, r->fd, (off_t)IORING_OFF_SQ_RING);
	if (r->map == MAP_FAILED) {
		r->map = NULL;
		return -errno;
	}
	r->sqes_size = (size_t)p->sq_entries * SQE_SIZE;
	r->sqes = mmap(NULL, r->sqes_size, prot, MAP_SHARED | MAP_POPULATE, r->fd, (off_t)IORING_OFF_SQES);
	if (r->sqes == MAP_FAILED) {
		r->sqes = NULL;
		return -errno;
	}
	base = r->map;
	r->sq_tail = (_Atomic unsigned *)(void *)(base + p->sq_off.tail);
	r->sq_array = (unsigned *)(void *)(base + p->sq_off.array);
	r->cq_head = (_Atomic unsigned *)(void *)(base + p->cq_off.head);
	r->cq_tail = (_Atomic unsigned *)(void *)(base + p->cq_off.tail);
	r->cqes = (struct io_uring_cqe *)(void *)(base + p->cq_off.cqes);
	r->sq_mask = p->sq_entries - 1;
	r->cq_mask = p->cq_entries - 1;
	return 0;
}

int uring_ring_open(struct uring_ring *r, unsigned entries, int device)
{
	struct io_uring_params p = { .flags = IORING_SETUP_SQE128 | IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER |
		    IORING_SETUP_DEFER_TASKRUN,
		.cq_entries = COMPLETIONS };
	int ret;

	*r = (struct uring_ring){ .fd = (int)syscall(SYS_io_uring_setup, entries, &p) };
	if (r->fd < 0)
		return -errno;
	ret = map(r, &p);
	if (!ret && syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_FILES, &device, 1) < 0)
		ret = -errno;
	if (ret)
		uring_ring_close(r);
	return ret;
}

void uring_ring_close(struct uring_ring *r)
{
	if (r->sqes)
		(void)munmap(r->sqes, r->sqes_size);
	if (r->map)
		(void)munmap(r->map, r->map_size);
	if (r->fd >= 0)
		(void)close(r->fd);
	*r = (struct uring_ring){ .fd = -1 };
}

struct io_uring_sqe *uring_ring_sqe(struct uring_ring *r)
{
	struct io_uring_sqe *sqe;
	unsigned at;

	if (r->queued > r->sq_mask)
		(void)uring_ring_enter(r, false, false);
	at = r->tail & r->sq_mask;
	sqe = (struct io_uring_sqe *)(void *)((char *)r->sqes + (size_t)at * SQE_SIZE);
	memset(sqe, 0, SQE_SIZE);
	r->sq_array[at] = at;
	r->tail++;
	r->queued++;
	return sqe;
}

int uring_ring_enter(struct uring_ring *r, bool deliver, bool wait)
{
	unsigned flags = deliver || wait ? IORING_ENTER_GETEVENTS : 0;
	long n;

	atomic_store_explicit(r->sq_tail, r->tail, memory_order_release);
	n = syscall(SYS_io_uring_enter, r->fd, r->queued, wait ? 1u : 0u, flags, NULL, 0);
	if (n < 0)
		return -errno;
	r->queued -= (unsigned)n < r->queued ? (unsigned)n : r->queued;
	return 0;
}

const struct io_uring_cqe *uring_ring_peek(struct uring_ring *r)
{
	unsigned head = atomic_load_explicit(r->cq_head, memory_order_relaxed);

	if (head == atomic_load_explicit(r->cq_tail, memory_order_acquire))
		return NULL;
	return &r->cqes[head & r->cq_mask];
}

void uring_ring_seen(struct uring_ring *r)
{
	atomic_store_explicit(
	    r->cq_head, atomic_load_explicit(r->cq_head, memory_order_relaxed) + 1, memory_order_release);
}
