/* uring_internal.h — the parts of the transport: what the kernel reads and writes, a queue's entries, the thread that
 * serves queues, the workers. */
#ifndef BYOKFS_URING_INTERNAL_H
#define BYOKFS_URING_INTERNAL_H

#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "uring.h"

/* ---- the kernel's: linux/fuse.h of 7.42 (Linux 6.14), section "fuse-over-io-uring" */

enum { URING_CMD_REGISTER = 1, URING_CMD_COMMIT_AND_FETCH = 2 };

struct uring_ent_in_out {
	uint64_t flags;
	uint64_t commit_id;
	uint32_t payload_sz;
	uint32_t padding;
	uint64_t reserved;
};

struct uring_header {
	uint8_t in_out[128]; /* struct fuse_in_header, then struct fuse_out_header */
	uint8_t op_in[128];  /* the argument's struct; what follows it is the payload */
	struct uring_ent_in_out ent;
};

/* At sqe->cmd. */
struct uring_cmd {
	uint64_t flags;
	uint64_t commit_id;
	uint16_t qid;
	uint8_t padding[6];
};

_Static_assert(sizeof(struct uring_ent_in_out) == 32, "ABI");
_Static_assert(offsetof(struct uring_ent_in_out, payload_sz) == 16, "ABI");
_Static_assert(sizeof(struct uring_header) == 288, "ABI");
_Static_assert(offsetof(struct uring_header, ent) == 256, "ABI");
_Static_assert(sizeof(struct uring_cmd) == 24 && offsetof(struct uring_cmd, qid) == 16, "ABI");

/* ---- entries (uring_entry.c) */

struct uring_queue;

struct uring_entry {
	struct uring_queue *queue;
	struct uring_header *header;
	uint8_t *payload; /* page-aligned; the flat request ends or lies right before it */
	size_t room;      /* of the payload; zero bytes follow */
	size_t used;      /* of the payload: may hold something */
	uint64_t commit_id;
	/* Whose it is: the request's unique number while it is handled, with bit 0 once it is parked; 0: answered, or
	 * the kernel's. Whoever changes it to 0 answers. */
	_Atomic uint64_t owner;
	struct uring_entry *next;  /* in one list: of answers, or of work */
	struct uring_entry *older; /* in the server's list of those that hold something and may be the kernel's */
	bool listed, idle;         /* idle: the kernel's, no request came yet */
	void *request;             /* for a worker */
	size_t size;
	struct iovec iov[2]; /* for the kernel */
};
#define URING_PARKED 1u

/* 0 or -ENOMEM. */
MUST_CHECK int uring_entry_open(struct uring_entry **, struct uring_queue *, size_t room);
void uring_entry_close(struct uring_entry *);
/* What the kernel put into an entry as one piece, as read(2) would give it. -EPROTO: lengths that do not fit. */
MUST_CHECK int uring_flatten(struct uring_entry *, void **request, size_t *n);
/* Puts an answer into it; one that does not fit becomes EIO. Returns the error in it. */
int uring_fill(struct uring_entry *, const struct iovec *, int count);
/* No more of the payload than the first keep bytes holds anything now. */
void uring_wipe(struct uring_entry *, size_t keep);

/* ---- io_uring (uring_ring.c); one thread */

struct uring_ring {
	int fd; /* -1: none */
	void *map, *sqes;
	size_t map_size, sqes_size;
	_Atomic unsigned *sq_tail, *cq_head, *cq_tail;
	unsigned sq_mask, cq_mask, *sq_array;
	struct io_uring_cqe *cqes;
	unsigned tail, queued; /* of the submission ring: ours, and not yet submitted */
};

/* For the calling thread; entries: a power of two; device: its file 0. 0 or -errno. */
MUST_CHECK int uring_ring_open(struct uring_ring *, unsigned entries, int device);
void uring_ring_close(struct uring_ring *);
/* A cleared one of 128 bytes, to be submitted by the next enter; submits what there is when there is no room. */
struct io_uring_sqe *uring_ring_sqe(struct uring_ring *);
/* Submits; lets the kernel deliver when `deliver`; waits for one completion when `wait`. 0 or -errno. */
int uring_ring_enter(struct uring_ring *, bool deliver, bool wait);
/* The next completion, or NULL; taken with uring_ring_seen(). */
const struct io_uring_cqe *uring_ring_peek(struct uring_ring *);
void uring_ring_seen(struct uring_ring *);

/* ---- queues and their threads (uring_server.c) */

struct uring_queue {
	struct uring_server *server;
	struct uring_queue *next; /* of the same server */
	uint16_t qid;             /* the number of its CPU */
	unsigned depth;           /* entries that are to be free for new requests */
	struct uring_entry **entry;
	_Atomic unsigned count; /* of entries; only grows, the server's thread does it */
	atomic_int parked, working;
	bool full; /* no more can be had */
};

struct uring_server {
	struct uring *uring;
	struct uring_queue *queues;
	unsigned cpu;
	pthread_t thread;
	struct uring_ring ring;
	int event; /* wakes the thread; -1: none */
	uint64_t event_value;
	_Atomic(struct uring_entry *) answered; /* by other threads */
	struct uring_entry *used;               /* committed, and still holding something */
	uint64_t kick;                          /* the number of the last */
	atomic_bool waits;
	int failed; /* -errno of the start */
};

#define URING_FILES   16u
/* Slow ones of the last requests of a kind, in 256ths. */
#define URING_CLASSES 128u

struct uring {
	struct uring_params params;
	struct uring_server *server;
	struct uring_queue *queue;
	unsigned servers, queues;
	unsigned started; /* servers with a thread */
	sem_t ready;      /* posted by each server: set up, then registered */
	sem_t go;         /* posted for each server */
	bool gone;        /* for uring_stop(): they went */
	atomic_bool stop, stopped;
	atomic_int refused; /* -errno of a registration */
	struct {
		pthread_mutex_t lock;
		pthread_cond_t more;
		struct uring_entry *first, **last;
		bool stop;
		pthread_t *thread;
		unsigned threads;
	} work;
	_Atomic uint32_t slow[URING_CLASSES];
	/* Files that the kernel knew a moment ago: it asks nobody about anything else. */
	_Atomic uint64_t file[URING_FILES];
	atomic_uint files;
};

/* A thread's whole life. */
void *uring_serve(void *server);
/* One more entry, which the kernel does not know yet. The server's thread, or before there is one. 0 or -ENOMEM. */
MUST_CHECK int uring_queue_add(struct uring_queue *);
/* Another thread has something for this one. */
void uring_wake(struct uring_server *);

/* ---- requests (uring.c) */

/* Handles one on this thread. on_server: it is the queue's own. Returns how long it took, in ns. */
uint64_t uring_run(struct uring_entry *, void *request, size_t n, bool on_server);
/* On the queue's own thread (uring_server.c): the answer in the entry is for the kernel. */
void uring_commit(struct uring_entry *);
/* From a list like "0-3,8" which of CPUs 0..max-1 are in it; how many there are in all. 0: not such a list. */
unsigned uring_cpu_list(const char *text, bool *set, unsigned max);

/* ---- workers (uring_work.c) */

MUST_CHECK int uring_work_open(struct uring *);
void uring_work_stop(struct uring *);
/* What a request is, for statistics; less than URING_CLASSES. */
unsigned uring_class(const void *request, size_t n);
/* Are requests of this class for the workers? */
bool uring_work_wants(const struct uring *, unsigned class);
/* Remembers how long one took. */
void uring_work_learn(struct uring *, unsigned class, uint64_t ns);
void uring_work_add(struct uring *, struct uring_entry *, void *request, size_t n);

#endif
