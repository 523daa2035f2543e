/* kms_aws_set.c — the key's Regions: its own and its replicas', and which of them a call is made to.
 *
 * Hides: how kms.replicas is written, what cannot be a replica, and that the set may be replaced while calls are under
 * way: a call keeps the set it began with, but a denial it brings home is heard by the set of now as well. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "io.h"
#include "kms_aws_internal.h"
#include "log.h"

#define BETWEEN ", \t\n" /* replicas */

/* ---- reading kms.replicas ---- */

__attribute__((format(printf, 2, 3))) static int refuse(struct kms_err *err, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	(void)kms_fail(err, KMS_CONFIG, "BadReplica", "%s", text);
	return -EINVAL;
}

/* Why this ARN is none of a replica of the first Region's key, or a Region is there already. */
static int check_replica(const struct aws_set *set, const char *arn, struct kms_err *err)
{
	const char *home = set->region[0].key;
	char region[64], other[64];

	if (!aws_arn_is_key(arn) || !aws_arn_region(region, arn))
		return refuse(err, "'%.120s' in kms.replicas is not the ARN of a key", arn);
	if (!aws_arn_is_multi(home))
		return refuse(err, "kms.replicas: '%.120s' is not a multi-Region key (mrk-...), it has none", home);
	if (strcmp(strrchr(arn, '/'), strrchr(home, '/')))
		return refuse(err, "'%.100s' in kms.replicas is another key than '%.100s': the ids differ", arn, home);
	for (unsigned i = 0; i < set->n; i++)
		if (aws_arn_region(other, set->region[i].key) && !strcmp(region, other))
			return refuse(err, "'%.120s' in kms.replicas: '%.60s' is named twice", arn, region);
	if (!aws_same_key(arn, home))
		return refuse(
		    err, "'%.100s' in kms.replicas is in another partition or account than '%.100s'", arn, home);
	return 0;
}

/* word: ARN or ARN@URL; cut up. */
static int add_replica(struct aws_set *set, char *word, struct awscred *cred, struct kms_err *err)
{
	struct aws_region *region = &set->region[set->n];
	char *url = strchr(word, '@');
	int r;

	if (url)
		*url++ = '\0';
	if (set->n == AWS_REGIONS || strlen(word) > KMS_KEY_MAX)
		return refuse(err, "kms.replicas: too many, or too long, from '%.120s' on", word);
	r = check_replica(set, word, err);
	if (r)
		return r;
	memcpy(region->key, word, strlen(word) + 1);
	r = aws_endpoint_replica(&region->endpoint, word, url, cred, err);
	if (!r)
		set->n++;
	return r;
}

static int add_replicas(struct aws_set *set, const char *list, struct awscred *cred, struct kms_err *err)
{
	CLEANUP_FREE char *text = strdup(list);
	char *rest = text, *word;
	int r = 0;

	if (!text)
		return -ENOMEM;
	while (!r && (word = strsep(&rest, BETWEEN)))
		if (*word)
			r = add_replica(set, word, cred, err);
	return r;
}

static int fill(struct aws_set *set, const struct kms_params *params, struct awscred *cred, struct kms_err *err)
{
	int r = aws_endpoint_find(&set->region[0].endpoint, params, cred, err);

	set->refs = set->n = 1;
	memcpy(set->region[0].key, params->key, strlen(params->key) + 1);
	/* An alias has no replicas: they are looked at when its key is known. */
	if (!r && params->replicas && aws_arn_is_key(params->key))
		r = add_replicas(set, params->replicas, cred, err);
	if (!r && params->failover && set->n == 1 && aws_arn_is_key(params->key)) {
		(void)kms_fail(err, KMS_CONFIG, "NoReplica",
		    "kms.failover = unreachable, but kms.replicas names no replica to ask");
		r = -EINVAL;
	}
	aws_choice_init(&set->choice, params->failover ? set->n : 1, params->failover_after_ms);
	return r;
}

int aws_set_make(
    struct aws_set **out, const struct kms_params *params, const char *key, struct awscred *cred, struct kms_err *err)
{
	CLEANUP_FREE struct aws_set *set = calloc(1, sizeof(*set));
	struct kms_params own = *params;
	int r;

	if (key)
		own.key = key;
	r = set ? fill(set, &own, cred, err) : -ENOMEM;
	if (r == -ENOMEM)
		(void)kms_fail(err, KMS_DOWN, "OutOfMemory", "no memory for the key's Regions");
	if (!r)
		*out = steal_ptr(&set);
	return r;
}

/* ---- the set of now ---- */

struct aws_set *aws_set_get(struct aws *a)
{
	LOCK_SCOPE(&a->lock);
	a->set->refs++;
	return a->set;
}

void aws_set_put(struct aws *a, struct aws_set *set)
{
	LOCK_SCOPE(&a->lock);
	if (--set->refs == 0)
		free(set);
}

/* The Region of the set that has this key; n when none. */
static unsigned find(const struct aws_set *set, const char *key)
{
	unsigned i = 0;

	while (i < set->choice.n && strcmp(set->region[i].key, key))
		i++;
	return i;
}

/* The same key at the same place. */
static bool same_region(const struct aws_region *a, const struct aws_region *b)
{
	return !strcmp(a->key, b->key) && !strcmp(a->endpoint.url, b->endpoint.url) &&
	    !strcmp(a->endpoint.region, b->endpoint.region);
}

/* What is known of the Regions that stay, and the one that is asked. A denial is the key's, wherever it is asked for;
 * silence is a place's. */
static void inherit(struct aws_set *set, const struct aws_set *old)
{
	struct aws_choice *c = &set->choice;

	for (unsigned i = 0; i < old->choice.n; i++) {
		const struct aws_seen *known = &old->choice.seen[i];
		unsigned now = find(set, old->region[i].key);

		if (now == c->n)
			continue;
		c->seen[now].denied = known->denied;
		c->seen[now].opening = known->opening;
		if (!same_region(&set->region[now], &old->region[i]))
			continue;
		c->seen[now] = *known;
		if (i == old->choice.at && same_region(&set->region[0], &old->region[0]))
			c->at = now;
	}
	if (c->at)
		c->try_home = old->choice.try_home;
}

void aws_set_swap(struct aws *a, struct aws_set *set)
{
	struct aws_set *old;

	(void)pthread_mutex_lock(&a->lock);
	old = a->set;
	inherit(set, old);
	a->set = set;
	(void)pthread_mutex_unlock(&a->lock);
	aws_set_put(a, old);
}

/* ---- turns ---- */

struct aws_set *aws_turn_begin(struct aws *a, uint64_t deadline, bool opening, struct aws_turn *out)
{
	LOCK_SCOPE(&a->lock);
	a->set->refs++;
	*out = aws_choice_turn(&a->set->choice, io_boot_ms(), deadline);
	out->opening = opening;
	return a->set;
}

static void say(const struct aws_set *set, const struct aws_turn *t, enum aws_event event, unsigned now)
{
	const char *region = set->region[t->region].endpoint.region, *other = set->region[now].endpoint.region;

	switch (event) {
	case AWS_WENT_AWAY:
	case AWS_MOVED:
		log_warn("the KMS in %s cannot be reached: the key's replica in %s is asked", region, other);
		break;
	case AWS_CAME_HOME:
		log_info("the KMS in %s answers again and is asked as before", region);
		break;
	case AWS_DENIED:
		if (set->choice.n > 1)
			log_warn("the key is denied in %s: no other Region is asked until it is allowed there", region);
		break;
	case AWS_ALLOWED:
		if (set->choice.n > 1)
			log_info("the key is allowed in %s again", region);
		break;
	case AWS_NOTHING:
		break;
	}
}

void aws_turn_end(struct aws *a, struct aws_set *set, const struct aws_turn *t, enum kms_status status,
    enum aws_reach reach)
{
	uint64_t now = io_boot_ms();
	enum aws_event event;
	unsigned region;

	(void)pthread_mutex_lock(&a->lock);
	event = aws_choice_told(&set->choice, t, status, reach, now);
	region = aws_choice_region(&set->choice);
	if (set != a->set && (status == KMS_DENIED || reach == AWS_REFUSED)) {
		struct aws_turn same = *t;

		same.region = find(a->set, set->region[t->region].key);
		if (same.region < a->set->choice.n)
			(void)aws_choice_told(&a->set->choice, &same, status, reach, now);
	}
	(void)pthread_mutex_unlock(&a->lock);
	say(set, t, event, region);
	aws_set_put(a, set);
}
