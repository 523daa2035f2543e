/* throttle.h — how many requests may be under way, and when the next one may go: a rate the administrator sets, a limit
 * that follows the KMS's throttling, pauses while it cannot be reached. Pure: time is a parameter (milliseconds). */
#ifndef BYOKFS_THROTTLE_H
#define BYOKFS_THROTTLE_H

#include <stdbool.h>
#include <stdint.h>

struct throttle {
	unsigned most, allowed, active;
	uint64_t rate;    /* requests per second; 0: no limit */
	uint64_t tokens;  /* thousandths of a request */
	uint64_t filled;  /* when tokens were last counted */
	uint64_t grow_at; /* allowed goes up by one then, if nothing is throttled meanwhile */
	uint64_t halved;  /* requests under way when it was halved tell nothing new */
	uint64_t pause, pause_until;
	uint64_t good;     /* the last success, or the beginning */
	uint64_t patience; /* without one success */
};

void throttle_init(struct throttle *, unsigned most, uint64_t rate, uint64_t patience, uint64_t now);
/* 0: go, which throttle_done() must follow; else milliseconds to wait before asking again. */
uint64_t throttle_go(struct throttle *, uint64_t now);
/* The KMS throttled one attempt. */
void throttle_busy(struct throttle *, uint64_t now);
/* A request has ended. down: nobody answered. False: patience has run out. */
bool throttle_done(struct throttle *, uint64_t now, bool ok, bool down);

#endif
