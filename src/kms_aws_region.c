/* kms_aws_region.c — whose turn it is: home, or a replica while home cannot be reached.
 *
 * Hides: when a Region counts as unreachable, how home is tried again, and that a denial is final. The rules:
 *   - only a Region that does not answer is left (class T, not throttling), and only after that went on for a while;
 *   - a Region that denies is the only one asked, until it answers well twice in a row: a key disabled at home is never
 *     opened by a replica, whatever becomes of home afterwards. A Decrypt that was denied must be answered well as a
 *     Decrypt: the owner may deny that alone. A refusal that is a mistake of the configuration as far as anybody knows,
 *     since the key has not worked yet, is a denial here;
 *   - two answers of home in a row bring everything back.
 * A call never waits for a silent Region with the whole of its deadline as long as there is another one to ask. */
#include <string.h>

#include "kms_aws_internal.h"

#define ASIDE_MIN_MS 1000u /* between two tries of home while away */
#define ASIDE_MAX_MS 10000u
#define ROW          2u /* answers that are no accident */

void aws_choice_init(struct aws_choice *c, unsigned n, uint32_t after_ms)
{
	memset(c, 0, sizeof(*c));
	c->n = n;
	c->after_ms = after_ms;
}

/* The first Region that denies; n when none does. */
static unsigned denier(const struct aws_choice *c)
{
	unsigned i = 0;

	while (i < c->n && !c->seen[i].denied)
		i++;
	return i;
}

unsigned aws_choice_region(const struct aws_choice *c)
{
	unsigned region = denier(c);

	return region < c->n ? region : c->at;
}

static uint64_t pause_ms(const struct aws_choice *c)
{
	if (c->after_ms < ASIDE_MIN_MS)
		return ASIDE_MIN_MS;
	return c->after_ms < ASIDE_MAX_MS ? c->after_ms : ASIDE_MAX_MS;
}

struct aws_turn aws_choice_turn(struct aws_choice *c, uint64_t now, uint64_t deadline)
{
	uint64_t left = deadline > now ? deadline - now : 0;
	struct aws_turn t = { .region = aws_choice_region(c), .sent = now, .until = deadline };

	if (c->n == 1 || denier(c) < c->n)
		return t;
	if (c->at && now >= c->try_home) {
		c->try_home = now + pause_ms(c);
		t.region = 0;
		t.aside = true;
		t.until = now + left / 4;
	} else if (!c->at || c->n > 2) {
		t.until = now + left / 2;
	}
	return t;
}

/* The next replica that is not known to fail, else the next one. */
static unsigned another(const struct aws_choice *c)
{
	unsigned first = 0;

	for (unsigned i = 0; i < c->n - 1; i++) {
		unsigned region = 1 + (c->at + i) % (c->n - 1);

		if (!c->seen[region].failing)
			return region;
		first = first ? first : region;
	}
	return first;
}

static enum aws_event unreachable(struct aws_choice *c, const struct aws_turn *t, uint64_t now)
{
	struct aws_seen *s = &c->seen[t->region];
	unsigned was = c->at;

	s->good = 0;
	if (!s->failing) /* what was asked before its last success says nothing of the time before that */
		s->failing = t->sent > s->good_at ? t->sent : s->good_at;
	if (c->n == 1 || denier(c) < c->n || t->region != was || (!was && now < s->failing + c->after_ms))
		return AWS_NOTHING;
	c->at = another(c);
	if (!was) {
		c->try_home = now + pause_ms(c);
		return AWS_WENT_AWAY;
	}
	return c->at == was || c->seen[c->at].failing ? AWS_NOTHING : AWS_MOVED;
}

static void go_home(struct aws_choice *c)
{
	c->at = 0;
	for (unsigned i = 0; i < c->n; i++)
		c->seen[i].failing = 0; /* old news when they are needed again */
}

static enum aws_event answered(struct aws_choice *c, const struct aws_turn *t, uint64_t now)
{
	struct aws_seen *s = &c->seen[t->region];
	bool denied = s->denied;

	s->failing = 0;
	s->good_at = now;
	if (denied && (t->sent < s->denied || (s->opening && !t->opening))) /* from before the denial, or beside it */
		return AWS_NOTHING;
	if (!denied && (t->region || !c->at))
		return AWS_NOTHING;
	if (++s->good < ROW) {
		c->try_home = now; /* at once, not after another pause */
		return AWS_NOTHING;
	}
	s->denied = 0;
	s->opening = false;
	if (!t->region)
		go_home(c);
	return denied ? AWS_ALLOWED : AWS_CAME_HOME;
}

static enum aws_event denied(struct aws_choice *c, const struct aws_turn *t, uint64_t now)
{
	struct aws_seen *s = &c->seen[t->region];
	bool known = s->denied;

	s->denied = now;
	s->opening = s->opening || t->opening;
	s->failing = 0;
	s->good = 0;
	return known ? AWS_NOTHING : AWS_DENIED;
}

enum aws_event aws_choice_told(struct aws_choice *c, const struct aws_turn *t, enum kms_status status,
    enum aws_reach reach, uint64_t now)
{
	struct aws_seen *s = &c->seen[t->region];

	if (reach == AWS_REFUSED)
		return denied(c, t, now);
	switch (status) {
	case KMS_OK:
		return answered(c, t, now);
	case KMS_DENIED: /* by a Region; credentials refused by STS are refused for all of them */
		return reach ? denied(c, t, now) : AWS_NOTHING;
	case KMS_DOWN: /* an error of the server's own is no better than silence */
		return reach ? unreachable(c, t, now) : AWS_NOTHING;
	case KMS_BUSY:
	case KMS_BAD_BLOB:
	case KMS_CONFIG:
		break;
	}
	if (reach == AWS_REACHED)
		s->failing = 0;
	s->good = 0;
	return AWS_NOTHING;
}
