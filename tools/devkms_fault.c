/* devkms_fault.c — faults on demand: what to do wrong, to which operations, how often.
 *
 * A waiting request looks at its client, at the table's generation and at the stop flag a few times a second, so that a
 * hung one costs a thread and nothing else. */
#include <errno.h>
#include <poll.h>
#include <sodium.h>
#include <stdio.h>

#include "devkms.h"
#include "io.h"
#include "jsonio.h"

#define SLICE_MS  50
#define HUGE_BODY (1u << 20)

enum kind { INT, RATE, BOOL, TEXT };

static const struct member {
	const char *name;
	enum kind kind;
	size_t at, size;
} members[] = {
/* clang-format off */
#define M(kind, name) { #name, kind, offsetof(struct dk_fault, name), sizeof(((struct dk_fault *)0)->name) }
	/* clang-format on */
	M(INT, latency_ms),
	M(INT, jitter_ms),
	M(INT, error_status),
	M(INT, blob_size),
	M(INT, plaintext_size),
	M(INT, clock_skew_s),
	M(INT, count),
	M(RATE, drop_rate),
	M(RATE, error_rate),
	M(BOOL, hang),
	M(BOOL, no_request_id),
	M(BOOL, bad_json),
	M(BOOL, huge),
	M(BOOL, truncate_body),
	M(BOOL, wrong_key_id),
	M(BOOL, wrong_plaintext),
	M(BOOL, deny_access),
	M(BOOL, error_in_header),
	M(TEXT, error_type),
	M(TEXT, error_message),
	M(TEXT, raw_type),
	M(TEXT, raw_body),
	M(TEXT, use),
	M(TEXT, key),
#undef M
};

#define MEMBERS (sizeof(members) / sizeof(members[0]))

void dk_faults_init(struct dk_faults *t)
{
	(void)pthread_mutex_init(&t->lock, NULL);
}

static int set_member(struct dk_fault *f, const struct member *m, const json_t *v)
{
	char *at = (char *)f + m->at;

	switch (m->kind) {
	case INT:
		if (!json_is_integer(v))
			return -EINVAL;
		*(int64_t *)(void *)at = json_integer_value(v);
		return 0;
	case RATE:
		if (!json_is_number(v) || json_number_value(v) < 0 || json_number_value(v) > 1)
			return -EINVAL;
		*(double *)(void *)at = json_number_value(v);
		return 0;
	case BOOL:
		if (!json_is_boolean(v))
			return -EINVAL;
		*(bool *)at = json_is_true(v);
		return 0;
	case TEXT:
		if (!json_is_string(v) || json_string_length(v) >= m->size)
			return -EINVAL;
		memcpy(at, json_string_value(v), json_string_length(v) + 1);
		return 0;
	}
	return -EINVAL;
}

static bool in_range(const struct dk_fault *f)
{
	return f->latency_ms >= 0 && f->latency_ms <= 3600000 && f->jitter_ms >= 0 && f->jitter_ms <= 3600000 &&
	    f->blob_size >= 0 && f->blob_size <= DK_BLOB_MAX && f->plaintext_size >= -1 &&
	    f->plaintext_size <= DK_PLAINTEXT_MAX && f->error_status >= 200 && f->error_status <= 599 && f->count >= 0;
}

static int parse(struct dk_fault *f, const json_t *o, char *why)
{
	/* jansson iterates over objects without const only */
	json_t *object = (json_t *)(uintptr_t)o, *v;
	const char *name;
	size_t i;

	*f = (struct dk_fault){ .error_status = 400, .error_rate = 1, .plaintext_size = -1 };
	json_object_foreach(object, name, v)
	{
		if (strcmp(name, "operations") == 0 && json_is_array(v))
			continue;
		for (i = 0; i < MEMBERS && strcmp(members[i].name, name) != 0; i++)
			;
		if (i == MEMBERS || set_member(f, &members[i], v) < 0) {
			(void)snprintf(
			    why, 160, "%s fault member \"%.60s\"", i == MEMBERS ? "unknown" : "bad value for", name);
			return -EINVAL;
		}
	}
	if (!in_range(f) || (o && !json_is_object(o))) {
		(void)snprintf(why, 160, "a value of the fault is out of range");
		return -EINVAL;
	}
	f->operations = json_incref(json_object_get(o, "operations"));
	return 0;
}

static void drop_all(struct dk_faults *t)
{
	for (size_t i = 0; i < t->n; i++)
		json_decref(t->fault[i].operations);
	t->n = 0;
	t->generation++;
}

int dk_faults_set(struct dk_faults *t, const json_t *in, char *why)
{
	size_t n = json_is_array(in) ? json_array_size(in) : 1;
	CLEANUP_FREE struct dk_fault *fresh = calloc(DK_FAULTS, sizeof(*fresh));

	if (!fresh)
		return -ENOMEM;
	if (n > DK_FAULTS) {
		(void)snprintf(why, 160, "more than %u faults", DK_FAULTS);
		return -EINVAL;
	}
	for (size_t i = 0; i < n; i++) {
		int r = parse(&fresh[i], json_is_array(in) ? json_array_get(in, i) : in, why);

		if (r < 0) {
			while (i > 0)
				json_decref(fresh[--i].operations);
			return r;
		}
	}
	LOCK_SCOPE(&t->lock);
	drop_all(t);
	memcpy(t->fault, fresh, n * sizeof(*fresh));
	t->n = n;
	return 0;
}

void dk_faults_clear(struct dk_faults *t)
{
	LOCK_SCOPE(&t->lock);
	drop_all(t);
}

void dk_faults_stop(struct dk_faults *t)
{
	t->stopping = true;
	dk_faults_clear(t);
}

static json_t *show_member(const struct dk_fault *f, const struct member *m)
{
	const char *at = (const char *)f + m->at;

	switch (m->kind) {
	case INT:
		return json_integer(*(const int64_t *)(const void *)at);
	case RATE:
		return json_real(*(const double *)(const void *)at);
	case BOOL:
		return json_boolean(*(const bool *)at);
	case TEXT:
		return json_string(at);
	}
	return json_null();
}

json_t *dk_faults_show(struct dk_faults *t)
{
	json_t *list = json_array(), *o;

	LOCK_SCOPE(&t->lock);
	for (size_t i = 0; i < t->n; i++) {
		o = json_object();
		for (size_t j = 0; j < MEMBERS; j++)
			(void)json_object_set_new(o, members[j].name, show_member(&t->fault[i], &members[j]));
		if (t->fault[i].operations)
			(void)json_object_set(o, "operations", t->fault[i].operations);
		(void)json_array_append_new(list, o);
	}
	return list;
}

/* body: a request as byokfs writes it, without blanks. */
static bool concerns(const struct dk_fault *f, const char *operation, const char *body)
{
	char pair[48];
	size_t i;
	json_t *v;

	(void)snprintf(pair, sizeof(pair), "\"byokfs-use\":\"%s\"", f->use);
	if (*f->use && !strstr(body, pair))
		return false;
	if (*f->key && !strstr(body, f->key))
		return false;
	if (!f->operations)
		return true;
	json_array_foreach(f->operations, i, v)
	{
		if (json_is_string(v) && strcmp(json_string_value(v), operation) == 0)
			return true;
	}
	return false;
}

static void remove_at(struct dk_faults *t, size_t i)
{
	json_decref(t->fault[i].operations);
	memmove(&t->fault[i], &t->fault[i + 1], (t->n - i - 1) * sizeof(t->fault[0]));
	t->n--;
}

bool dk_fault_pick(struct dk_faults *t, const char *operation, const char *body, struct dk_fault *out)
{
	/* the usual case must not queue for a lock */
	if (t->n == 0)
		return false;
	LOCK_SCOPE(&t->lock);
	for (size_t i = 0; i < t->n; i++) {
		if (!concerns(&t->fault[i], operation, body))
			continue;
		*out = t->fault[i];
		out->operations = NULL;
		if (t->fault[i].count > 0 && --t->fault[i].count == 0)
			remove_at(t, i);
		return true;
	}
	return false;
}

bool dk_fault_chance(double rate)
{
	return rate > 0 && (rate >= 1 || randombytes_uniform(1000000) < (uint32_t)(rate * 1000000));
}

int dk_fault_wait(struct dk_faults *t, const struct dk_fault *f, int client_fd)
{
	uint64_t now = io_boot_ms(), end = now + (uint64_t)f->latency_ms;
	unsigned int generation = t->generation;
	struct pollfd p = { .fd = client_fd, .events = POLLRDHUP };

	if (f->jitter_ms > 0)
		end += randombytes_uniform((uint32_t)f->jitter_ms + 1);
	while (f->hang || now < end) {
		uint64_t left = f->hang || end - now > SLICE_MS ? SLICE_MS : end - now;

		if (t->stopping || (f->hang && t->generation != generation))
			return -ECANCELED;
		if (poll(&p, 1, (int)left) > 0)
			return -ECANCELED;
		now = io_boot_ms();
	}
	return 0;
}

static void spoil_plaintext(struct dk_call *c)
{
	const struct dk_fault *f = c->fault;
	CLEANUP_BYTES struct dk_bytes plain = { .len = sizeof(plain.b) };

	if (jsonio_blob(plain.b, &plain.len, c->out, "Plaintext") < 0)
		return;
	for (size_t i = 0; f->wrong_plaintext && i < plain.len; i++)
		plain.b[i] ^= 0x55;
	dk_put_blob(c, "Plaintext", plain.b, f->plaintext_size >= 0 ? (size_t)f->plaintext_size : plain.len);
}

void dk_fault_spoil(struct dk_call *c)
{
	const struct dk_fault *f = c->fault;
	char arn[DK_ARN];

	if (f->wrong_plaintext || f->plaintext_size >= 0)
		spoil_plaintext(c);
	if (f->wrong_key_id && json_object_get(c->out, "KeyId")) {
		(void)snprintf(arn, sizeof(arn), "arn:aws:kms:%s:%s:key/00000000-0000-4000-8000-000000000000",
		    c->caller.region, c->srv->account);
		dk_put_str(c, "KeyId", arn);
	}
}

void dk_fault_spoil_body(const struct dk_fault *f, struct dk_reply *r)
{
	char *text;

	if (f->bad_json && r->len > 0)
		r->len = r->len / 2;
	if (!f->huge)
		return;
	text = malloc(HUGE_BODY);
	if (!text)
		return;
	/* well-formed, and far too long */
	memset(text, ' ', HUGE_BODY);
	memcpy(text + HUGE_BODY - r->len, r->body, r->len);
	free(r->body);
	r->body = text;
	r->len = HUGE_BODY;
}
