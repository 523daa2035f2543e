/* awscred_cache.c — one answer for many callers, and a thread that renews it ahead.
 *
 * Hides: that one walk through the chain serves everybody who waits, when credentials are renewed (after two thirds
 * of their life: an STS session has five minutes left then), and what a failed renewal means: a denial by STS ends the
 * use of what is at hand, anything else leaves it in use to its end, and no longer.
 *
 * Keys from the environment or a file are not kept by time: the environment is read each time, files when they
 * change. Whether they have is looked at once a second, by one caller: where they lie on a file system that hangs, the
 * others go on with what is at hand. */
#include "awscred_cache.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "io.h"
#include "log.h"

#define WALK_MAX_MS  60000u
#define RENEW_MS     20000u
#define BACKOFF_MS   500u
#define BACKOFF_MAX  30000u
#define LOOK_MS      1000u
#define IDLE_MAX_MS  30000u /* this clock stops in suspend, credentials go on ageing: look again now and then */

/* Waits for a change, at most ms. */
static void wait_ms(struct awscred *a, uint64_t ms)
{
	struct timespec until;

	until = io_after_ms(ms);
	(void)pthread_cond_timedwait(&a->changed, &a->lock, &until);
}

/* ---- what is at hand; the lock is held ---- */

static bool in_time(const struct awscred *a)
{
	return a->have.cred && a->have.kind == AWSCRED_TIMED && io_boot_ms() < a->have.until;
}

static bool usable(const struct awscred *a)
{
	if (!a->have.cred || a->have_epoch != a->epoch)
		return false;
	if (a->have.kind == AWSCRED_FILES)
		return !a->outdated;
	return in_time(a);
}

static void forget(struct awscred *a)
{
	secret_free(a->have.cred);
	memset(&a->have, 0, sizeof(a->have));
}

static uint32_t random_below(uint64_t n)
{
	uint32_t r;

	secret_random(&r, sizeof(r));
	return n ? (uint32_t)(r % n) : 0;
}

static uint64_t renewal(const struct awscred_answer *have)
{
	uint64_t life = have->until - have->from;

	return have->from + life * 2 / 3 - random_below(life / 20);
}

static uint64_t backoff(unsigned failures)
{
	uint64_t ms = (uint64_t)BACKOFF_MS << (failures < 8 ? failures : 8);

	ms = ms < BACKOFF_MAX ? ms : BACKOFF_MAX;
	return io_boot_ms() + ms / 2 + random_below(ms / 2);
}

static void take(struct awscred *a, struct awscred_answer *next, const struct awscred_seen *seen, uint64_t epoch)
{
	if (a->failures)
		log_info("AWS credentials renewed: %s", next->identity);
	forget(a);
	a->have = *next;
	a->have_epoch = epoch;
	a->seen = *seen;
	a->outdated = false;
	a->failures = 0;
	a->refresh_at = next->kind == AWSCRED_TIMED ? renewal(next) : 0;
}

/* Returns what the caller is told. */
static int cope(struct awscred *a, int r, uint64_t epoch, const char *why)
{
	bool had = in_time(a);

	a->refresh_at = backoff(a->failures);
	if (had && !a->failures++)
		log_warn("cannot renew the AWS credentials: %s", why);
	if (r == -EACCES)
		forget(a);
	if (r != -ETIMEDOUT || !had)
		return r;
	/* Nobody says that these are no longer good. */
	a->have_epoch = epoch;
	return 0;
}

/* Asks the sources, once for everybody. The lock is let go meanwhile; nobody else may be at it. */
static int walk(struct awscred *a, uint64_t deadline, char *why)
{
	struct awscred_answer next = { .cred = NULL };
	__attribute__((cleanup(awscred_place_free))) struct awscred_place place = { NULL, NULL };
	struct awscred_walk w = { &a->setup, &place, deadline, why, &next };
	struct awscred_seen seen;
	uint64_t epoch = a->epoch;
	int r = awscred_place_copy(&place, a->place.region, a->place.replicas);

	if (r) {
		a->refresh_at = backoff(a->failures);
		return awscred_say(why, r, "no memory for the AWS credentials");
	}
	a->busy = true;
	(void)pthread_mutex_unlock(&a->lock);
	awscred_files_look(&seen);
	r = awscred_chain(&w);
	if (r && !*why)
		(void)awscred_say(why, r, "cannot find AWS credentials: %.80s", strerrordesc_np(-r));
	(void)pthread_mutex_lock(&a->lock);
	a->busy = false;
	a->done++;
	if (r)
		r = cope(a, r, epoch, why);
	else
		take(a, &next, &seen, epoch);
	a->last = r;
	a->last_epoch = epoch;
	memcpy(a->last_why, why, AWSCRED_WHY);
	(void)pthread_cond_broadcast(&a->changed);
	return r;
}

/* ---- the refresher ---- */

static void *refresher(void *arg)
{
	struct awscred *a = arg;
	char why[AWSCRED_WHY];

	LOCK_SCOPE(&a->lock);
	while (!a->stop) {
		uint64_t now = io_boot_ms(), ms = IDLE_MAX_MS;
		bool live = in_time(a) && a->have_epoch == a->epoch;

		if (live && !a->busy && now >= a->refresh_at) {
			why[0] = '\0';
			(void)walk(a, now + RENEW_MS, why);
			continue;
		}
		if (live && !a->busy && a->refresh_at - now < ms)
			ms = a->refresh_at - now;
		wait_ms(a, ms);
	}
	return NULL;
}

/* Not before there is something to renew: by then the process has forked for the last time. */
static void start_refresher(struct awscred *a)
{
	if (a->started || a->have.kind != AWSCRED_TIMED || !a->have.cred)
		return;
	a->started = !pthread_create(&a->refresher, NULL, refresher, a);
	if (!a->started)
		log_warn("no thread to renew the AWS credentials ahead: calls will wait for them");
}

/* Where credentials have an end, changed files are a reason to renew, not to wait. */
static void notice_change(struct awscred *a, const struct awscred_seen *now)
{
	if (awscred_files_same(&a->seen, now))
		return;
	if (a->have.kind != AWSCRED_TIMED) {
		a->outdated = true;
		return;
	}
	a->seen = *now;
	a->refresh_at = io_boot_ms();
	(void)pthread_cond_broadcast(&a->changed);
}

/* Lets the lock go meanwhile. False when it took longer than the caller has. */
static bool look(struct awscred *a, uint64_t deadline)
{
	struct awscred_seen now;
	uint64_t done = a->done;

	if (a->looking || a->outdated || !a->have.cred || a->have.kind == AWSCRED_ENV || io_boot_ms() < a->look_at)
		return true;
	a->looking = true;
	(void)pthread_mutex_unlock(&a->lock);
	awscred_files_look(&now);
	(void)pthread_mutex_lock(&a->lock);
	a->looking = false;
	a->look_at = io_boot_ms() + LOOK_MS;
	if (a->have.cred && a->done == done) /* else others have looked since */
		notice_change(a, &now);
	return io_boot_ms() < deadline;
}

/* ---- the callers ---- */

static int copy(const struct awscred *a, struct sigv4_credentials **out, char *why)
{
	const struct sigv4_credentials *have = a->have.cred;
	size_t ntoken = have->session_token ? strlen(have->session_token) + 1 : 0;
	struct sigv4_credentials *c = secret_alloc(sizeof(*c) + ntoken);

	if (!c)
		return awscred_say(why, -ENOMEM, "no locked memory left for the AWS credentials");
	memcpy(c, have, sizeof(*c));
	c->session_token = NULL;
	if (ntoken) {
		c->session_token = (char *)(c + 1);
		memcpy(c->session_token, have->session_token, ntoken);
	}
	*out = c;
	return 0;
}

/* While another asks the sources: 0 when that has ended, -ETIMEDOUT. */
static int wait_walk(struct awscred *a, uint64_t deadline)
{
	uint64_t done = a->done;

	while (a->busy && a->done == done) {
		uint64_t now = io_boot_ms(), left = deadline > now ? deadline - now : 0;

		if (!left)
			return -ETIMEDOUT;
		wait_ms(a, left < 1000 ? left : 1000);
	}
	return 0;
}

/* With credentials that still serve, half of the time is left for using them. */
static uint64_t walk_deadline(const struct awscred *a, uint64_t deadline)
{
	uint64_t now = io_boot_ms(), ms = deadline > now ? deadline - now : 0;

	ms = ms < WALK_MAX_MS ? ms : WALK_MAX_MS;
	return now + (in_time(a) ? ms / 2 : ms);
}

static int find(struct awscred *a, uint64_t deadline, char *why)
{
	while (!usable(a) && a->busy) {
		if (wait_walk(a, walk_deadline(a, deadline)) && in_time(a))
			return 0;
		if (a->busy && io_boot_ms() >= deadline)
			return awscred_say(why, -ETIMEDOUT, "no AWS credentials in time: their source is being asked");
		if (a->last_epoch != a->epoch)
			continue;
		memcpy(why, a->last_why, AWSCRED_WHY);
		return a->last;
	}
	return usable(a) ? 0 : walk(a, walk_deadline(a, deadline), why);
}

int awscred_get(struct awscred *a, uint64_t deadline, struct sigv4_credentials **out, char *why)
{
	int r;

	why[0] = '\0';
	LOCK_SCOPE(&a->lock);
	if (!look(a, deadline))
		return awscred_say(why, -ETIMEDOUT, "no AWS credentials in time: their files are slow");
	r = find(a, deadline, why);
	if (r)
		return r;
	if (!a->have.cred) /* found by another, and denied since */
		return awscred_say(why, -ETIMEDOUT, "the AWS credentials were taken away a moment ago");
	start_refresher(a);
	return copy(a, out, why);
}

void awscred_put(struct sigv4_credentials *c)
{
	secret_free(c);
}

void awscred_refresh(struct awscred *a)
{
	LOCK_SCOPE(&a->lock);
	a->epoch++;
	(void)pthread_cond_broadcast(&a->changed);
}

static bool same_text(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

int awscred_reconfigure(struct awscred *a, const char *region, const char *replicas)
{
	__attribute__((cleanup(awscred_place_free))) struct awscred_place other;
	struct awscred_place old;
	int r = awscred_place_copy(&other, region, replicas);

	if (r)
		return r;
	LOCK_SCOPE(&a->lock);
	if (same_text(a->place.region, other.region) && same_text(a->place.replicas, other.replicas))
		return 0;
	old = a->place;
	a->place = other;
	other = old;
	a->epoch++;
	(void)pthread_cond_broadcast(&a->changed);
	return 0;
}

void awscred_identity(struct awscred *a, char *out, int64_t *expires)
{
	LOCK_SCOPE(&a->lock);
	snprintf(out, 256, "%s", a->have.identity);
	*expires = a->have.expires;
}

/* ---- life ---- */

void awscred_cache_open(struct awscred *a)
{

	(void)pthread_mutex_init(&a->lock, NULL);
	(void)io_cond_init(&a->changed);
}

void awscred_cache_close(struct awscred *a)
{
	bool started;

	atomic_store(&a->setup.stopping, true);
	{
		LOCK_SCOPE(&a->lock);
		a->stop = true;
		started = a->started;
		(void)pthread_cond_broadcast(&a->changed);
	}
	if (started)
		(void)pthread_join(a->refresher, NULL);
	forget(a);
	(void)pthread_cond_destroy(&a->changed);
	(void)pthread_mutex_destroy(&a->lock);
}
