/* crew.h — worker threads that take items from a bounded queue: what `keys`, `rotate`, `check --data` and `import`
 * share. */
#ifndef BYOKFS_CREW_H
#define BYOKFS_CREW_H

#include <stddef.h>

#include "cleanup.h"

struct crew;

/* work(arg, item, worker): item is the function's to free; worker is 0 to workers - 1. At most `queue` items wait. 0 or
 * -errno. */
MUST_CHECK int crew_open(struct crew **out, unsigned workers, size_t queue,
    void (*work)(void *arg, void *item, unsigned worker), void *arg);
/* Waits while the queue is full. Any thread but a worker. */
void crew_put(struct crew *, void *item);
/* Until everything that was put is done. */
void crew_wait(struct crew *);
/* The same, then ends the threads and frees. NULL is fine. */
void crew_close(struct crew *);

#endif
