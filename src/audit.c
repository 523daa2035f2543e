/* audit.c — the queue between those who tell events and the one thread that writes them.
 *
 * Hides: that nobody who calls the KMS waits for the disk, and that what finds the queue full is counted and told by a
 * line in its place. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "audit_internal.h"
#include "bytes.h"
#include "io.h"
#include "log.h"

#define RETRY_MS  1000u
#define SYNC_MS   1000u
#define CLOSE_MS  5000u
#define OPEN_MAX  1000u /* of mount and key in "open" lines */

/* ---- bodies ---- */

void audit_open_body(struct audit_text *t, const struct audit *a, const char *why, const uint8_t *torn)
{
	char host[256] = "";

	(void)gethostname(host, sizeof(host) - 1);
	audit_text_begin(t, "open");
	audit_text_str(t, "why", why, 32);
	audit_text_str(t, "program", a->program, 128);
	audit_text_str(t, "host", host, sizeof(host));
	audit_text_int(t, "uid", getuid());
	audit_text_int(t, "pid", getpid());
	audit_text_hex(t, "store", a->has_store ? a->store : NULL, CONTEXT_ID);
	audit_text_str(t, "mount", a->mount, OPEN_MAX);
	audit_text_str(t, "key", a->key, OPEN_MAX);
	if (torn)
		audit_text_hex(t, "torn", torn, AUDIT_HASH);
}

void audit_sync_body(struct audit_text *t, uint64_t since, int error)
{
	audit_text_begin(t, "sync");
	audit_text_int(t, "since", (int64_t)since);
	audit_text_str(t, "error", error ? strerror(error) : NULL, 100);
}

static void dropped_body(struct audit_text *t, uint64_t count)
{
	audit_text_begin(t, "dropped");
	audit_text_int(t, "count", (int64_t)count);
}

/* ---- the queue ---- */

/* locked. */
static void put(struct audit *a, char *body)
{
	a->ring[(a->first + a->n++) % a->size] = body;
}

/* Takes body; NULL: there was no memory for it. */
static void push(struct audit *a, char *body)
{
	LOCK_SCOPE(&a->lock);
	if (a->lost && body && a->size - a->n >= 2) {
		char bytes[256];
		struct audit_text t = { .bytes = bytes, .size = sizeof(bytes) };

		dropped_body(&t, a->lost);
		char *told = strdup(bytes);

		if (told) {
			put(a, told);
			a->lost = 0;
		}
	}
	if (!body || a->lost || a->n == a->size || a->stop) {
		a->lost++;
		a->dropped++;
		free(body);
		return;
	}
	put(a, body);
	(void)pthread_cond_signal(&a->wake);
}

char *audit_pop(struct audit *a)
{
	char bytes[256], *body = NULL;
	struct audit_text t = { .bytes = bytes, .size = sizeof(bytes) };

	if (a->n) {
		body = a->ring[a->first];
		a->first = (a->first + 1) % a->size;
		a->n--;
	} else if (a->lost) {
		dropped_body(&t, a->lost);
		body = strdup(bytes);
		a->lost = body ? 0 : a->lost;
	} else if (a->stop && a->close_reason) {
		audit_text_begin(&t, "close");
		audit_text_str(&t, "reason", a->close_reason, 100);
		body = strdup(bytes);
		a->close_reason = NULL;
	}
	return body;
}

void audit_kms(void *audit, const struct kms_event *e)
{
	struct audit *a = audit;
	char bytes[AUDIT_BODY_MAX];
	struct audit_text t = { .bytes = bytes, .size = sizeof(bytes) };

	if (!a || (a->changes_only && e->err->status == KMS_OK))
		return;
	audit_text_kms(&t, e);
	push(a, t.full ? NULL : strdup(bytes));
}

void audit_state(struct audit *a, const struct context_ids *ids, const char *state, const char *reason)
{
	char bytes[4096];
	struct audit_text t = { .bytes = bytes, .size = sizeof(bytes) };

	if (!a)
		return;
	audit_text_begin(&t, "state");
	audit_text_hex(&t, "store", ids->store, CONTEXT_ID);
	audit_text_hex(&t, "domain", ids->domain, CONTEXT_ID);
	audit_text_str(&t, "state", state, 32);
	audit_text_str(&t, "reason", reason, 400);
	push(a, t.full ? NULL : strdup(bytes));
}

/* ---- opening and closing ---- */

static char *copy(const char *text)
{
	return text ? strdup(text) : NULL;
}

static void destroy(struct audit *a)
{
	if (a->fd >= 0)
		(void)close(a->fd);
	for (size_t i = 0; a->ring && i < a->n; i++)
		free(a->ring[(a->first + i) % a->size]);
	free(a->ring);
	free(a->out);
	free(a->path);
	free(a->program);
	free(a->mount);
	free(a->key);
	(void)pthread_cond_destroy(&a->wake);
	(void)pthread_cond_destroy(&a->ended);
	(void)pthread_mutex_destroy(&a->lock);
	free(a);
}

static struct audit *create(const struct audit_params *p)
{
	struct audit *a = calloc(1, sizeof(*a));

	if (!a)
		return NULL;
	a->fd = -1;
	(void)pthread_mutex_init(&a->lock, NULL);
	(void)io_cond_init(&a->wake);
	(void)io_cond_init(&a->ended);
	a->syslog = p->syslog;
	a->changes_only = p->changes_only;
	a->retry_ms = p->retry_ms ? p->retry_ms : RETRY_MS;
	a->sync_ms = p->sync_ms ? p->sync_ms : SYNC_MS;
	a->write = p->write ? p->write : write;
	a->sync = p->sync ? p->sync : fdatasync;
	a->size = p->queue ? p->queue : AUDIT_QUEUE;
	a->ring = calloc(a->size, sizeof(*a->ring));
	a->out = malloc(AUDIT_OUT);
	a->path = copy(p->path);
	a->program = copy(p->program);
	a->mount = copy(p->mount);
	a->key = copy(p->key);
	a->has_store = p->store != NULL;
	if (p->store)
		memcpy(a->store, p->store, CONTEXT_ID);
	if (a->ring && a->out && (a->path || !p->path))
		return a;
	destroy(a);
	return NULL;
}

/* The file, and the first line in it: an audit that cannot be written is none. */
static int begin(struct audit *a, char *why)
{
	char body[AUDIT_BODY_MAX];
	struct audit_text t = { .bytes = body, .size = sizeof(body) };
	struct audit_tail tail = { 0 };
	int r = a->path ? audit_file_open(&a->fd, a->path, why) : 0;

	if (!r && a->path)
		r = audit_file_tail(a->fd, a->path, &a->chain, &tail, why);
	if (r)
		return r;
	if (tail.torn)
		log_warn("audit: '%s' ended in a torn line: the chain goes on behind it", a->path);
	if (tail.newline)
		a->out[a->len++] = '\n';
	a->synced = a->chain.seq;
	audit_open_body(&t, a, "start", tail.torn ? tail.torn_hash : NULL);
	audit_chain_next(a, body);
	r = audit_write_out(a);
	if (r)
		(void)snprintf(why, AUDIT_WHY, "cannot write the audit file '%.300s': %s", a->path, strerror(-r));
	return r;
}

int audit_open(struct audit **out, const struct audit_params *p, char why[static AUDIT_WHY])
{
	struct audit *a = create(p);
	int r;

	(void)snprintf(why, AUDIT_WHY, "out of memory");
	if (!a)
		return -ENOMEM;
	r = begin(a, why);
	if (!r) {
		r = -pthread_create(&a->thread, NULL, audit_writer, a);
		if (r)
			(void)snprintf(why, AUDIT_WHY, "cannot start a thread: %s", strerror(-r));
	}
	if (r)
		destroy(a);
	else
		*out = a;
	return r;
}

void audit_reopen(struct audit *a)
{
	if (!a)
		return;
	LOCK_SCOPE(&a->lock);
	a->reopen = true;
	(void)pthread_cond_signal(&a->wake);
}

/* Tells the writer to end and waits for it, but not for ever: the storage may hang. */
static bool stop_writer(struct audit *a, const char *reason)
{
	struct timespec until;
	int r = 0;

	(void)clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += CLOSE_MS / 1000;
	LOCK_SCOPE(&a->lock);
	a->close_reason = reason;
	a->stop = true;
	(void)pthread_cond_signal(&a->wake);
	while (!a->done && !r)
		r = pthread_cond_timedwait(&a->ended, &a->lock, &until);
	return a->done;
}

void audit_close(struct audit *a, const char *reason)
{
	if (!a)
		return;
	if (!stop_writer(a, reason)) {
		log_err("audit: '%s' does not take the last lines", a->path ? a->path : "syslog");
		(void)pthread_detach(a->thread);
		return; /* the writer still uses it */
	}
	(void)pthread_join(a->thread, NULL);
	if (a->len || a->n)
		log_err("audit: the last lines could not be written to '%s'", a->path);
	else if (a->sync_error)
		log_err("audit: the last lines may not be on the disk of '%s'", a->path);
	audit_log_head(a, "closed");
	destroy(a);
}

bool audit_status(struct audit *a, struct audit_status *out)
{
	if (!a)
		return false;
	LOCK_SCOPE(&a->lock);
	*out = (struct audit_status){ .path = a->path,
		.lines = a->lines,
		.dropped = a->dropped,
		.queued = a->n,
		.seq = a->told.seq,
		.error = a->error };
	memcpy(out->head, a->told.head, AUDIT_HASH);
	return true;
}
