/* awsclock.c — believing a service about the time. Hides: which codes speak of it, and how far off a clock may be. */
#include "awsclock.h"

#include <inttypes.h>
#include <stddef.h>
#include <string.h>

#include "io.h"
#include "log.h"

#define SKEW_MIN 240   /* seconds; below, the service still accepts the signature */
#define SKEW_MAX 86400 /* no honest clock is further off */

int64_t awsclock_now(const struct awsclock *c)
{
	return io_unix_time() + atomic_load(&c->skew);
}

bool awsclock_is_about(const char *code)
{
	static const char *const codes[] = { "InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired",
		"RequestInTheFuture", "RequestTimeTooSkewed", "AuthFailure" };

	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		if (!strcmp(code, codes[i]))
			return true;
	return false;
}

bool awsclock_correct(struct awsclock *c, const char *service, int64_t date, bool trusted)
{
	int64_t old = atomic_load(&c->skew), skew = date - io_unix_time();

	if (!date || !trusted)
		return false;
	if (skew > SKEW_MAX || skew < -SKEW_MAX || (skew - old < SKEW_MIN && old - skew < SKEW_MIN))
		return false;
	atomic_store(&c->skew, skew);
	log_warn(
	    "this host's clock is %" PRId64 " s off %s's; requests are signed with corrected time", -skew, service);
	return true;
}
