/* ops_lock_internal.h — applications' locks between hosts: what ops_lock.c (owners, operations) and ops_lock_wait.c
 * (those who wait) share. */
#ifndef BYOKFS_OPS_LOCK_INTERNAL_H
#define BYOKFS_OPS_LOCK_INTERNAL_H

#include <fcntl.h>
#include <sys/queue.h>

#include "fs.h"

#define LOCK_BUCKETS 256u

struct lock_owner {
	LIST_ENTRY(lock_owner) link;
	struct inode *inode; /* the handle's ref; not after the handle was released */
	const struct handle *handle;
	uint64_t id;
	bool flock;
	bool gone;
	unsigned users; /* operations and waits */
	int fd;
};

struct lock_wait {
	TAILQ_ENTRY(lock_wait) link;
	fuse_req_t req;
	struct lock_owner *owner;
	struct domain *domain;
	struct flock lock;
	bool granted;
	bool interrupted; /* guarded by locks.lock */
};

struct locks {
	struct fs *fs;
	pthread_mutex_t lock; /* guards all but what a wait's thread alone uses; no system call below it */
	pthread_cond_t wake;
	LIST_HEAD(, lock_owner) owners[LOCK_BUCKETS];
	TAILQ_HEAD(, lock_wait) waits; /* only the thread removes */
	bool hurry;                    /* a lock was given back, or somebody gave up */
	bool stop, running;
	atomic_size_t held; /* owners, each with a descriptor */
	size_t max;
	pthread_t thread;
};

/* Gives back one use. */
void lock_owner_put(struct locks *, struct lock_owner *);
/* One try: 0, -EAGAIN or -errno. No lock held. */
MUST_CHECK int lock_try(const struct lock_owner *, const struct flock *);
/* Does the kernel hold what others have changed since? If so, *seq is what it will have seen. */
bool lock_kernel_is_behind(const struct lock_owner *, uint64_t *seq);
/* The request is answered later, by the thread; takes over the caller's use of the owner. granted: it has the lock, and
 * only the kernel's pages must go first. 0 or -ENOLCK. */
MUST_CHECK int lock_park(
    struct locks *, fuse_req_t, struct lock_owner *, struct domain *, const struct flock *, bool granted);
/* The thread. */
void *lock_waiter(void *locks);

#endif
