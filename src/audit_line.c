/* audit_line.c — the text of one line, both ways.
 *
 * Hides the order of the members and the escaping: what comes from a KMS or an administrator is printable ASCII in the
 * line, so that a line is one line whatever they say. Nothing here ever sees key material. */
#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "audit_internal.h"
#include "bytes.h"
#include "io.h"
#include "jsonio.h"

#define PREV_TAIL (sizeof(",\"prev\":\"\"}") - 1 + 2 * AUDIT_HASH)

/* ---- printing ---- */

static void put(struct audit_text *t, const char *bytes, size_t n)
{
	if (t->full || n >= t->size - t->len) {
		t->full = true;
		return;
	}
	memcpy(t->bytes + t->len, bytes, n);
	t->len += n;
	t->bytes[t->len] = '\0';
}

void audit_text_raw(struct audit_text *t, const char *text)
{
	put(t, text, strlen(text));
}

static void put_escaped(struct audit_text *t, const char *value, size_t max)
{
	for (; *value && max; value++, max--) {
		unsigned char c = (unsigned char)*value;
		char out[8];

		if (c == '"' || c == '\\')
			(void)snprintf(out, sizeof(out), "\\%c", c);
		else if (c >= 0x20 && c < 0x7f)
			(void)snprintf(out, sizeof(out), "%c", c);
		else
			(void)snprintf(out, sizeof(out), "\\\\x%02x", c);
		audit_text_raw(t, out);
	}
}

static void put_name(struct audit_text *t, const char *name)
{
	audit_text_raw(t, ",\"");
	audit_text_raw(t, name);
	audit_text_raw(t, "\":");
}

void audit_text_str(struct audit_text *t, const char *name, const char *value, size_t max)
{
	put_name(t, name);
	if (!value || !*value) {
		audit_text_raw(t, "null");
		return;
	}
	audit_text_raw(t, "\"");
	put_escaped(t, value, max);
	audit_text_raw(t, "\"");
}

void audit_text_hex(struct audit_text *t, const char *name, const uint8_t *bytes, size_t n)
{
	char hex[2 * AUDIT_HASH + 1] = "";

	if (bytes && n <= AUDIT_HASH)
		bytes_hex(hex, bytes, n);
	audit_text_str(t, name, hex, sizeof(hex));
}

void audit_text_int(struct audit_text *t, const char *name, int64_t value)
{
	char number[24];

	put_name(t, name);
	(void)snprintf(number, sizeof(number), "%" PRId64, value);
	audit_text_raw(t, number);
}

void audit_text_begin(struct audit_text *t, const char *event)
{
	char seconds[21], ms[16];
	struct timespec now;

	(void)clock_gettime(CLOCK_REALTIME, &now);
	io_utc(seconds, now.tv_sec);
	(void)snprintf(ms, sizeof(ms), ".%03uZ\"", (unsigned)(now.tv_nsec / 1000000) % 1000u);
	audit_text_raw(t, "\"time\":\"");
	put(t, seconds, strcspn(seconds, "Z"));
	audit_text_raw(t, ms);
	audit_text_str(t, "event", event, 16);
}

static const char *pair(const struct context *c, const char *name)
{
	for (size_t i = 0; c && i < c->n; i++)
		if (strcmp(c->pair[i].name, name) == 0)
			return c->pair[i].value;
	return NULL;
}

/* The administrator's pairs. */
static void put_extra(struct audit_text *t, const struct context *c)
{
	bool first = true;

	put_name(t, "context");
	audit_text_raw(t, "{");
	for (size_t i = 0; c && i < c->n; i++) {
		if (strncmp(c->pair[i].name, "byokfs-", 7) == 0)
			continue;
		audit_text_raw(t, first ? "\"" : ",\"");
		put_escaped(t, c->pair[i].name, sizeof(c->pair[i].name));
		audit_text_raw(t, "\":\"");
		put_escaped(t, c->pair[i].value, CONTEXT_EXTRA_BYTES);
		audit_text_raw(t, "\"");
		first = false;
	}
	audit_text_raw(t, "}");
}

static void put_cause(struct audit_text *t, const struct context_cause *cause)
{
	if (cause && cause->pid > 0) {
		audit_text_int(t, "uid", cause->uid);
		audit_text_int(t, "pid", cause->pid);
	} else {
		audit_text_raw(t, ",\"uid\":null,\"pid\":null");
	}
}

void audit_text_kms(struct audit_text *t, const struct kms_event *e)
{
	const struct context *c = e->context;
	const struct kms_used *used = e->used;
	bool ok = e->err->status == KMS_OK;

	audit_text_begin(t, "kms");
	audit_text_str(t, "op", e->operation, 32);
	audit_text_str(t, "key", e->key, KMS_KEY_MAX);
	audit_text_hex(t, "material",
	    used && !bytes_zero(used->material, sizeof(used->material)) ? used->material : NULL,
	    sizeof(used->material));
	audit_text_str(t, "store", pair(c, "byokfs-store"), 64);
	audit_text_str(t, "domain", pair(c, "byokfs-domain"), 64);
	audit_text_str(t, "file", pair(c, "byokfs-file"), 64);
	audit_text_str(t, "use", pair(c, "byokfs-use"), 64);
	audit_text_str(t, "request_id", used ? used->request_id : e->err->request_id, sizeof(e->err->request_id));
	audit_text_int(t, "latency_ms", e->latency_ms);
	audit_text_str(t, "result", kms_status_name(e->err->status), 32);
	audit_text_str(t, "code", ok ? NULL : e->err->code, sizeof(e->err->code));
	if (ok || !e->err->http)
		audit_text_raw(t, ",\"http\":null");
	else
		audit_text_int(t, "http", e->err->http);
	put_cause(t, c ? &c->cause : NULL);
	put_extra(t, c);
}

/* ---- the chain ---- */

void audit_hash(uint8_t out[static AUDIT_HASH], const void *line, size_t len)
{
	(void)crypto_hash_sha256(out, line, len);
}

size_t audit_chain_line(struct audit_chain *chain, char *out, const char *body)
{
	struct audit_text t = { .bytes = out, .size = AUDIT_LINE_MAX };
	char seq[40], hex[2 * AUDIT_HASH + 1];

	(void)snprintf(seq, sizeof(seq), "{\"seq\":%" PRIu64 ",", chain->seq + 1);
	audit_text_raw(&t, seq);
	audit_text_raw(&t, body);
	put_name(&t, "prev");
	audit_text_raw(&t, "\"");
	bytes_hex(hex, chain->head, AUDIT_HASH);
	audit_text_raw(&t, hex);
	audit_text_raw(&t, "\"}\n");
	if (t.full)
		return 0;
	chain->seq++;
	audit_hash(chain->head, out, t.len - 1);
	return t.len;
}

/* ---- reading ---- */

/* The number behind {"seq": as it is printed, or 0. */
static uint64_t seq_of(const char *line, size_t len)
{
	static const char front[] = "{\"seq\":";
	uint64_t seq = 0;
	size_t i = sizeof(front) - 1;

	if (len < i + 2 || strncmp(line, front, i) != 0 || line[i] == '0')
		return 0;
	for (; i < len && line[i] >= '0' && line[i] <= '9'; i++) {
		if (seq > (INT64_MAX - 9) / 10)
			return 0;
		seq = 10 * seq + (uint64_t)(line[i] - '0');
	}
	return i < len && line[i] == ',' ? seq : 0;
}

static int prev_of(uint8_t out[static AUDIT_HASH], const char *line, size_t len)
{
	static const char name[] = ",\"prev\":\"";
	const char *tail = line + len - PREV_TAIL;

	if (len < PREV_TAIL || strncmp(tail, name, sizeof(name) - 1) != 0 || line[len - 1] != '}' ||
	    line[len - 2] != '"')
		return -EINVAL;
	return bytes_unhex(out, AUDIT_HASH, tail + sizeof(name) - 1, 2 * (size_t)AUDIT_HASH);
}

/* Printable ASCII, with no escapes but those of put_escaped(): so are the members then, and may be printed. */
static bool printable(const char *line, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (line[i] < 0x20 || line[i] > 0x7e)
			return false;
		if (line[i] == '\\' && (++i == len || (line[i] != '"' && line[i] != '\\')))
			return false;
	}
	return true;
}

/* "2026-11-22T05:00:00.123Z" */
static bool time_ok(const char *time)
{
	static const char shape[] = "dddd-dd-ddTdd:dd:dd.dddZ";

	if (!time || strlen(time) != sizeof(shape) - 1)
		return false;
	for (size_t i = 0; shape[i]; i++)
		if (shape[i] == 'd' ? time[i] < '0' || time[i] > '9' : time[i] != shape[i])
			return false;
	return true;
}

static bool event_ok(const char *event)
{
	static const char *const known[] = { "kms", "state", "open", "close", "dropped", "sync" };

	for (size_t i = 0; event && i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(event, known[i]) == 0)
			return true;
	return false;
}

/* Letters and spaces. */
static bool words_ok(const char *text)
{
	size_t n = text ? strlen(text) : 0;

	for (size_t i = 0; i < n; i++)
		if (text[i] != ' ' && (text[i] < 'A' || text[i] > 'Z') && (text[i] < 'a' || text[i] > 'z'))
			return false;
	return n && n <= 32;
}

/* An object cannot hold another seq or prev: duplicates are refused. */
static bool members_ok(const struct audit_record *rec)
{
	if (!event_ok(rec->event) || !time_ok(jsonio_str(rec->json, "time")))
		return false;
	if (strcmp(rec->event, "kms") == 0 &&
	    (!words_ok(jsonio_str(rec->json, "op")) || !words_ok(jsonio_str(rec->json, "result"))))
		return false;
	return json_is_integer(json_object_get(rec->json, "seq")) && json_is_string(json_object_get(rec->json, "prev"));
}

int audit_parse(struct audit_record *out, const char *line, size_t len)
{
	memset(out, 0, sizeof(*out));
	out->seq = seq_of(line, len);
	if (!out->seq || len >= AUDIT_LINE_MAX || !printable(line, len) || prev_of(out->prev, line, len))
		return -EINVAL;
	out->json = jsonio_parse(line, len, AUDIT_LINE_MAX);
	out->event = out->json ? jsonio_str(out->json, "event") : NULL;
	if (out->json && members_ok(out))
		return 0;
	json_decref(out->json);
	out->json = NULL;
	return -EINVAL;
}
