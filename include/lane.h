/* lane.h — requests that may keep a thread for long: writes, which wait for their file, and flushes, which wait for
 * the device.
 *
 * The kernel's writeback has dozens of writes of one file on the way at once. Threads that waited for that file's lock,
 * or for the device, would be missing for everybody else. So only `most` of them are at such work at once, and none
 * waits for another: what cannot begin is left here, and done by the threads that are at such work already, in the
 * order in which it came. Whoever serves requests has at least one thread more than `most`.
 *
 * Whatever is queued is done by the time every thread has come back from lane_leave(). Any thread may call anything;
 * jobs run with no lock held. */
#ifndef BYOKFS_LANE_H
#define BYOKFS_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "cleanup.h"

struct lane;

/* What may be queued in all; beyond that a thread waits after all. As much as the kernel's writeback has on the way by
 * default: 64 requests of 1 MiB. */
#define LANE_BYTES (64u << 20)
/* Threads beyond `most`, for requests that do not come here. */
#define LANE_SPARE 2u

/* Jobs of a file at a time: one has its lock while the other begins or ends. */
#define LANE_OF_FILE 2u

struct lane_job {
	uint64_t file;                  /* LANE_OF_FILE jobs of each at a time; 0: no matter */
	size_t bytes;                   /* of memory it keeps while queued */
	void (*run)(struct lane_job *); /* of one that was queued; the job may be gone afterwards */
	TAILQ_ENTRY(lane_job) link;     /* private */
};

enum lane_turn {
	LANE_GO,   /* do it, then lane_leave() */
	LANE_WAIT, /* hand over a copy with lane_add(), or call lane_forego() and do it without a turn */
	LANE_FULL  /* no room: do it without a turn */
};

MUST_CHECK int lane_open(struct lane **out, unsigned most, size_t bytes);
/* Nobody is at work any more. NULL is fine. */
void lane_close(struct lane *);
MUST_CHECK enum lane_turn lane_enter(struct lane *, const struct lane_job *);
/* The end of a turn: does what was queued meanwhile, too. */
void lane_leave(struct lane *, const struct lane_job *);
/* Takes over the job and runs it: here, now, if it can begin, else on another thread. */
void lane_add(struct lane *, struct lane_job *);
void lane_forego(struct lane *, const struct lane_job *);

#endif
