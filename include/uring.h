/* uring.h — FUSE over io_uring (Linux 6.14): the kernel's requests through shared memory, one queue per CPU.
 *
 * A thread pinned to each CPU takes the requests of that CPU's queue and handles them itself: no other thread has to be
 * woken. What takes long (bulk data, fsync, whatever proved to be slow) goes to workers. A request that its handler
 * left unanswered is parked: whoever answers it later, on any thread, hands the answer to the queue's thread. The
 * kernel gives a queue only as many requests as it has entries, and takes none back: so for every parked request the
 * queue gets another entry, and URING_DEPTH are always there for those who need not wait.
 *
 * FORGET, INTERRUPT, INIT and notifications stay on /dev/fuse. */
#ifndef BYOKFS_URING_H
#define BYOKFS_URING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "cleanup.h"

/* Entries of a queue that are free for new requests, as a rule; each may take memory of the largest request. */
#define URING_DEPTH   8u
/* More of them while workers have their hands full. */
#define URING_WORKING 16u
/* With those of parked requests. Beyond, requests of that CPU wait until one is answered. */
#define URING_ENTRIES 4096u
#define URING_WHY     200

struct uring;

struct uring_params {
	int device;       /* of the connection; stays the caller's */
	size_t payload;   /* bytes the kernel may send or expect with one request */
	unsigned workers; /* threads */
	/* Handles one request as read(2) of the device would give it, with a zero byte behind it. Answers come through
	 * uring_answer(), before it returns or later. Runs on any of our threads, with no lock held. */
	void (*handle)(void *arg, void *request, size_t n);
	void *arg;
};

/* Everything that can fail before the kernel has agreed to anything: rings, memory, threads. 0, or -errno with the
 * reason in why. */
MUST_CHECK int uring_open(struct uring **out, const struct uring_params *, char why[URING_WHY]);
/* The INIT answer said yes: the queues are registered. Returns when that is done: 0, or -errno: the kernel goes on with
 * /dev/fuse (which only uring_stop() and uring_close() are good for then). Once. */
MUST_CHECK int uring_go(struct uring *);
/* An answer as writev(2) to the device would take it. 0: taken; -ESRCH: the request did not come this way; -ENOENT: it
 * is nobody's any more. Any thread. */
MUST_CHECK int uring_answer(struct uring *, const struct iovec *, int count);
/* Room for n bytes of answer in the request this thread is handling, page-aligned: answered from there, nothing is
 * copied, and it is wiped afterwards. NULL: none. */
void *uring_room(size_t n);
/* Every queue's thread waits for requests. */
bool uring_idle(const struct uring *);
/* Threads end, after what they are handling; answers are dropped from now on. The connection has ended or is about to
 * be. */
void uring_stop(struct uring *);
/* After uring_stop(), and when nobody can answer any more. NULL is fine. */
void uring_close(struct uring *);

#endif
