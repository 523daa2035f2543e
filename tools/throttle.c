/* throttle.c — see throttle.h. Hides the arithmetic: halve at once, grow by one a second, pause 1, 2, 4 ... 30 s. */
#include "throttle.h"

#include <string.h>

#define GROW_MS     1000u
#define HALVE_MS    500u /* what was under way when it was halved may be throttled still */
#define PAUSE_FIRST 1000u
#define PAUSE_MOST  30000u
#define WAIT_MS     100u /* for one under way to end: asked again soon */
#define BURST_MS    100u /* of the rate may be saved up */

void throttle_init(struct throttle *t, unsigned most, uint64_t rate, uint64_t patience, uint64_t now)
{
	memset(t, 0, sizeof(*t));
	t->most = t->allowed = most;
	t->rate = rate;
	t->tokens = 1000;
	t->filled = t->good = now;
	t->patience = patience;
}

static void fill(struct throttle *t, uint64_t now)
{
	uint64_t most = t->rate * BURST_MS < 1000 ? 1000 : t->rate * BURST_MS;

	t->tokens += (now - t->filled) * t->rate;
	if (t->tokens > most)
		t->tokens = most;
	t->filled = now;
}

uint64_t throttle_go(struct throttle *t, uint64_t now)
{
	if (now < t->pause_until)
		return t->pause_until - now;
	if (t->active >= t->allowed)
		return WAIT_MS;
	if (t->rate) {
		fill(t, now);
		if (t->tokens < 1000)
			return (1000 - t->tokens + t->rate - 1) / t->rate;
		t->tokens -= 1000;
	}
	t->active++;
	return 0;
}

void throttle_busy(struct throttle *t, uint64_t now)
{
	t->grow_at = now + GROW_MS;
	if (t->halved && now < t->halved + HALVE_MS)
		return;
	t->halved = now;
	if (t->allowed > 1)
		t->allowed /= 2;
}

bool throttle_done(struct throttle *t, uint64_t now, bool ok, bool down)
{
	t->active--;
	if (ok) {
		t->good = now;
		t->pause = 0;
		if (t->allowed < t->most && now >= t->grow_at) {
			t->allowed++;
			t->grow_at = now + GROW_MS;
		}
		return true;
	}
	if (down && now >= t->pause_until) {
		t->pause = t->pause ? 2 * t->pause : PAUSE_FIRST;
		if (t->pause > PAUSE_MOST)
			t->pause = PAUSE_MOST;
		t->pause_until = now + t->pause;
	}
	return now - t->good <= t->patience;
}
