/* fdpool.h — how many descriptors of open files and directories there are at once: beyond a limit, those that were not
 * used for longest are closed, and opened again when they are wanted.
 *
 * One pool for the process. A slot stands for one descriptor; hold it while the descriptor is in use. Holding one
 * that is open takes no lock. Without a limit, or without a way to open it again, a descriptor is never closed here. */
#ifndef BYOKFS_FDPOOL_H
#define BYOKFS_FDPOOL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>

#include "cleanup.h"

struct fdslot;

struct fdslot_ops {
	/* A new descriptor of the same object, or -errno; several threads may ask at once. NULL: never closed. */
	int (*reopen)(struct fdslot *);
	/* Before it is closed, held for that: 0, or -errno when it must stay open. May be NULL. */
	int (*settle)(struct fdslot *);
};

struct fdslot {
	int fd; /* valid while held */
	/* private */
	_Atomic int users; /* -1: closed */
	atomic_bool recent;
	bool leaving, listed;
	const struct fdslot_ops *ops;
	TAILQ_ENTRY(fdslot) link;
};

/* 0: no limit. More are open when all of them are held, and while one is on its way. */
void fdpool_limit(size_t);
/* Descriptors of others that count, too: n more, or fewer. */
void fdpool_lend(int n);
/* Closes some that nobody holds, because there are no more to be had; true: there were any. No lock held. */
bool fdpool_shed(void);
/* Those in slots, lent ones included. */
size_t fdpool_count(void);

/* Takes fd over. Zero the slot before. May close descriptors of others: no lock held that settle() takes. */
void fdslot_open(struct fdslot *, int fd, const struct fdslot_ops *);
/* The descriptor, yours until fdslot_release(), or -errno of reopen(). */
MUST_CHECK int fdslot_hold(struct fdslot *);
void fdslot_release(struct fdslot *);
/* The end: nobody holds it. The descriptor, yours to close, or -1. */
MUST_CHECK int fdslot_take(struct fdslot *);

#endif
