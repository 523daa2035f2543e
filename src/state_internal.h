/* What state.c (loading, pinning), state_sync.c (the syncer) and state_slot.c (re-sealing) share. */
#ifndef BYOKFS_STATE_INTERNAL_H
#define BYOKFS_STATE_INTERNAL_H

#include <sys/queue.h>

#include "state.h"

/* That many states waiting for the syncer are promoted at once: each holds a descriptor. */
#define STATES_MANY       256u
#define STATES_FLUSH_MS   5000u
#define STATES_PROMOTE_MS 30000u

struct state {
	TAILQ_ENTRY(state) link; /* queue; guarded by states.lock, as is all below */
	struct inode *inode;     /* holds a ref */
	uint64_t since;          /* first change not yet flushed, io_boot_ms() */
	bool queued, syncing, readonly;
};

struct states {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	TAILQ_HEAD(state_queue, state) queue;
	size_t queued;
	atomic_size_t loaded;
	atomic_bool distrust; /* a hint proved wrong on a store we may not write: answer every stat from page 0 */
	atomic_bool odd;      /* the same: a file was dropped whose flush had failed; the next mount must know */
	pthread_t thread;
	bool running, stop;
	uint64_t promoted;         /* when */
	/* the syncer's own */
	const struct domain *slow; /* its key service kept us waiting in this pass */
	bool last;                 /* the round at unmount: nested domains' keys are waited for */
};

/* inode->lock is held. A state that was loaded from a read-only descriptor gets a better one. */
MUST_CHECK int state_make_writable(struct inode *, int fd);

#endif
