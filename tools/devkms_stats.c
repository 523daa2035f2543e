/* devkms_stats.c — counters per operation, and a ring of the last requests with their encryption contexts.
 *
 * The ring is what CloudTrail is for the real service: tests ask it who opened what under which context. */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "devkms.h"
#include "jsonio.h"

#define RING 20000u

struct dk_seen {
	uint64_t seq;
	int64_t ms;
	const char *operation;
	char *key, *key_to, *context, *context_to;
	char result[64], request_id[37], access_key[24], region[DK_REGION];
};

int dk_stats_init(struct dk_stats *s)
{
	(void)pthread_mutex_init(&s->lock, NULL);
	s->next = 1;
	s->counters = json_object();
	s->ring = calloc(RING, sizeof(*s->ring));
	return s->ring && s->counters ? 0 : -ENOMEM;
}

static void seen_clear(struct dk_seen *e)
{
	free(e->key);
	free(e->key_to);
	free(e->context);
	free(e->context_to);
	memset(e, 0, sizeof(*e));
}

void dk_stats_reset(struct dk_stats *s)
{
	LOCK_SCOPE(&s->lock);
	(void)json_object_clear(s->counters);
	for (size_t i = 0; s->ring && i < RING; i++)
		seen_clear(&s->ring[i]);
}

void dk_stats_free(struct dk_stats *s)
{
	dk_stats_reset(s);
	json_decref(s->counters);
	free(s->ring);
}

static void count(json_t *o, const char *member)
{
	json_t *v = json_object_get(o, member);

	if (v)
		(void)json_integer_set(v, json_integer_value(v) + 1);
	else
		(void)json_object_set_new(o, member, json_integer(1));
}

static void count_result(json_t *counters, const char *operation, const char *result)
{
	json_t *o = json_object_get(counters, operation);

	if (!o) {
		o = json_pack("{s:i, s:i, s:{}}", "calls", 0, "ok", 0, "errors");
		(void)json_object_set_new(counters, operation, o);
	}
	count(o, "calls");
	if (strcmp(result, "ok") == 0)
		count(o, "ok");
	else
		count(json_object_get(o, "errors"), result);
}

static char *copy_text(const char *text)
{
	return text[0] ? strdup(text) : NULL;
}

void dk_stats_add(struct dk_stats *s, const struct dk_call *c, const char *result)
{
	struct dk_seen e = { .operation = c->operation };
	struct timespec now;

	(void)clock_gettime(CLOCK_REALTIME, &now);
	e.ms = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
	e.key = copy_text(c->key);
	e.key_to = copy_text(c->key_to);
	e.context = c->context ? jsonio_print(c->context) : NULL;
	e.context_to = c->context_to ? jsonio_print(c->context_to) : NULL;
	(void)snprintf(e.result, sizeof(e.result), "%s", result);
	(void)snprintf(e.request_id, sizeof(e.request_id), "%s", c->request_id);
	(void)snprintf(e.access_key, sizeof(e.access_key), "%.23s", c->caller.access_key);
	(void)snprintf(e.region, sizeof(e.region), "%s", c->caller.region);
	LOCK_SCOPE(&s->lock);
	count_result(s->counters, c->operation, result);
	e.seq = s->next++;
	seen_clear(&s->ring[e.seq % RING]);
	s->ring[e.seq % RING] = e;
}

static void set_text(json_t *o, const char *member, const char *value)
{
	if (value && value[0])
		(void)json_object_set_new(o, member, json_string(value));
}

static void set_json(json_t *o, const char *member, const char *text)
{
	if (text)
		(void)json_object_set_new(o, member, json_loads(text, 0, NULL));
}

static json_t *show(const struct dk_seen *e)
{
	json_t *o = json_pack("{s:I, s:I, s:s, s:s, s:s}", "seq", (json_int_t)e->seq, "time_ms", (json_int_t)e->ms,
	    "operation", e->operation, "result", e->result, "request_id", e->request_id);

	set_text(o, "access_key", e->access_key);
	set_text(o, "region", e->region);
	set_text(o, "key", e->key);
	set_text(o, "destination_key", e->key_to);
	set_json(o, "context", e->context);
	set_json(o, "destination_context", e->context_to);
	return o;
}

json_t *dk_stats_show(struct dk_stats *s, uint64_t since, uint64_t last)
{
	json_t *list = json_array();
	uint64_t from;

	LOCK_SCOPE(&s->lock);
	from = s->next > last ? s->next - last : 1;
	if (from <= since)
		from = since + 1;
	if (s->next > RING && from < s->next - RING)
		from = s->next - RING;
	for (uint64_t i = from; i < s->next; i++)
		if (s->ring[i % RING].seq == i)
			(void)json_array_append_new(list, show(&s->ring[i % RING]));
	return json_pack("{s:I, s:o, s:o}", "seq", (json_int_t)(s->next - 1), "operations", json_deep_copy(s->counters),
	    "requests", list);
}
