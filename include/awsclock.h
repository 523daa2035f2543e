/* awsclock.h — how far this host's clock is off a service's, for signing and for reading its dates, and for nothing
 * else: leases and deadlines run on io_boot_ms().
 *
 * AWS refuses signatures whose date is more than five minutes off. When it says so, the Date of that answer is
 * believed, once per call, if the answer is to be trusted and the difference is one that a clock can have. */
#ifndef BYOKFS_AWSCLOCK_H
#define BYOKFS_AWSCLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Zeroed: not off. One per service; thread-safe. */
struct awsclock {
	_Atomic int64_t skew; /* seconds to add to this host's clock */
};

/* Unix seconds by the service's clock. */
int64_t awsclock_now(const struct awsclock *);
/* Does this error code speak of signature or time? */
bool awsclock_is_about(const char *code);
/* date: Unix seconds of the answer's Date header, 0 when there was none; trusted: it came over verified TLS, or from
 * this host. True, with one log line naming the service, when the clock is now taken for something else than before:
 * sign again. */
bool awsclock_correct(struct awsclock *, const char *service, int64_t date, bool trusted);

#endif
