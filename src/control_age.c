/* How old the sealing of each key domain is: for the status, and as a warning in the log. Hides where an age comes
 * from, and how often the warning is repeated. */
#include "control.h"

#include <inttypes.h>
#include <stdio.h>

#include "io.h"
#include "log.h"
#include "service.h"

/* Unix seconds, or -1 for a domain whose descriptor was not authenticated yet. */
static int64_t since(struct domain *d, int64_t now)
{
	if (!atomic_load_explicit(&d->ready, memory_order_acquire))
		return -1;
	LOCK_SCOPE(&d->lock); /* a rotation writes `rotated` */
	return keyage_since(d->descriptor, now);
}

static json_t *age_json(int64_t from, int64_t now, uint32_t limit)
{
	char text[21];

	if (from < 0)
		return NULL;
	io_utc(text, from);
	return json_pack("{s:I, s:s, s:I, s:I, s:b}", "days", (json_int_t)keyage_days(from, now), "since", text,
	    "since_unix", (json_int_t)from, "limit_days", (json_int_t)limit, "alert", keyage_over(from, now, limit));
}

json_t *control_age_domain(const struct service *s, struct domain *d)
{
	int64_t now = io_unix_time();

	return age_json(since(d, now), now, atomic_load(&s->key_age_days));
}

struct ages {
	int64_t now, oldest; /* oldest: -1 none known */
	uint32_t limit;
	uint16_t index;
	size_t over;
};

static bool look(void *arg, struct domain *d)
{
	struct ages *a = arg;
	int64_t from = since(d, a->now);

	if (from < 0)
		return true;
	if (a->oldest < 0 || from < a->oldest) {
		a->oldest = from;
		a->index = d->index;
	}
	a->over += keyage_over(from, a->now, a->limit);
	return true;
}

static void look_at_all(const struct service *s, struct ages *a)
{
	*a = (struct ages){ .now = io_unix_time(), .oldest = -1, .limit = atomic_load(&s->key_age_days) };
	domains_each(s->fs, look, a);
}

json_t *control_age(const struct service *s)
{
	struct ages a;

	look_at_all(s, &a);
	return age_json(a.oldest, a.now, a.limit);
}

void control_age_tick(struct service *s)
{
	struct ages a;
	char from[21], more[48] = "";

	look_at_all(s, &a);
	if (!keyage_due(&s->age_said, a.over, io_boot_ms()))
		return;
	io_utc(from, a.oldest);
	if (a.over > 1)
		(void)snprintf(more, sizeof(more), ", and so are those of %zu more", a.over - 1);
	log_warn("the keys of domain %u of '%s' have been sealed under the same key material for %" PRIu32
	         " days, since %s%s: key_age_days in [alert] is %" PRIu32 ", rotate them ('byokfsctl rotate')",
	    (unsigned)a.index, s->fs->store->path, keyage_days(a.oldest, a.now), from, more, a.limit);
}
