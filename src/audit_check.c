/* audit_check.c — is a chain of lines whole?
 *
 * Hides the reading of files of any size with lines of any length, and how the kinds of damage are told apart: each
 * line names the hash of the one before it, and each has the next number. Bytes that are no line are what a crash left
 * when the next line says so and knows their hash, or half a line: at the end of the last file, or of an earlier one
 * when the next file begins with the whole of it. Else they are damage. */
#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "audit_internal.h"
#include "bytes.h"
#include "jsonio.h"

#define CHUNK 65536u

/* One file being read. */
struct reading {
	struct audit_check *c;
	const char *file;
	uint64_t line;
	bool any; /* a record was seen in this file */
	char *bytes; /* of this line, up to AUDIT_LINE_MAX */
	size_t len;
	bool overlong;
	bool torn; /* bytes that are no line came last */
	uint64_t torn_line, torn_parts;
	crypto_hash_sha256_state torn_hash;
};

static void tell(struct reading *r, enum audit_finding kind, uint64_t line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static void tell(struct reading *r, enum audit_finding kind, uint64_t line, const char *fmt, ...)
{
	char what[400];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	r->c->damage += kind == AUDIT_DAMAGE;
	r->c->found(r->c->arg, kind, r->file, line, what);
}

/* ---- what is no line ---- */

static void torn_add(struct reading *r)
{
	if (!r->torn) {
		(void)crypto_hash_sha256_init(&r->torn_hash);
		r->torn_line = r->line;
		r->torn_parts = 0;
	} else if (!r->overlong) {
		(void)crypto_hash_sha256_update(&r->torn_hash, (const uint8_t *)"\n", 1);
	}
	r->torn = true;
	r->torn_parts++;
	(void)crypto_hash_sha256_update(&r->torn_hash, (const uint8_t *)r->bytes, r->len);
}

/* The line behind it must know it. */
static void torn_judge(struct reading *r, const struct audit_record *rec)
{
	const char *told = strcmp(rec->event, "open") == 0 ? jsonio_str(rec->json, "torn") : NULL;
	uint8_t hash[AUDIT_HASH];
	char hex[2 * AUDIT_HASH + 1] = "";

	if (r->torn) {
		(void)crypto_hash_sha256_final(&r->torn_hash, hash);
		bytes_hex(hex, hash, sizeof(hash));
	}
	if (r->torn && told && strcmp(told, hex) == 0) {
		r->c->torn++;
		tell(r, AUDIT_NOTE, r->torn_line, "torn by a crash, as line %" PRIu64 " says", r->line);
	} else if (r->torn) {
		tell(r, AUDIT_DAMAGE, r->torn_line, "not a line of an audit, or a changed one");
	} else if (told) {
		tell(r, AUDIT_DAMAGE, r->line, "speaks of a torn line before it that is not there");
	}
	r->torn = false;
}

/* ---- half a line ---- */

static bool same_beginning(const struct audit_half *h, const char *bytes, size_t len)
{
	return bytes_equal(h->bytes, bytes, len < h->len ? len : h->len);
}

/* The end of the file before, now that the first bytes of this one are there. */
static void half_judge(struct reading *r, bool written_whole)
{
	struct reading before = { .c = r->c, .file = r->c->half.file };

	if (!before.file)
		return;
	if (written_whole)
		tell(&before, AUDIT_NOTE, r->c->half.line, "ends in half a line, which the next file begins with");
	else
		tell(&before, AUDIT_DAMAGE, r->c->half.line,
		    "ends in half a line, and the next file does not begin with it");
	r->c->half.file = NULL;
}

/* Whether it is damage depends on what comes: bytes and len are the last of this file. */
static void half_keep(struct reading *r)
{
	struct audit_half *h = &r->c->half;

	/* Rotated more than once while the disk was full. */
	if (h->file && !r->any && same_beginning(h, r->bytes, r->len) && r->len <= h->len)
		return;
	half_judge(r, !r->any && same_beginning(h, r->bytes, r->len));
	memcpy(h->bytes, r->bytes, r->len);
	h->len = r->len;
	h->line = r->torn_line;
	h->file = r->file;
}

/* ---- what is ---- */

static bool begins_chain(const struct audit_record *rec)
{
	return rec->seq == 1 && bytes_zero(rec->prev, AUDIT_HASH) && strcmp(rec->event, "open") == 0;
}

/* The first line of a file. True: it has no line before it to be compared with. */
static bool first_line(struct reading *r, const struct audit_record *rec)
{
	struct audit_check *c = r->c;
	char hex[2 * AUDIT_HASH + 1];

	if (begins_chain(rec)) {
		c->chains++;
		if (c->lines && strcmp(jsonio_str(rec->json, "time"), c->last_time) < 0)
			tell(r, AUDIT_DAMAGE, r->line, "older than the lines before: are the files in order?");
		else if (c->lines)
			tell(r, AUDIT_NOTE, r->line, "a new chain begins: nothing ties it to the lines before");
	} else if (!c->lines) {
		bytes_hex(hex, rec->prev, AUDIT_HASH);
		tell(r, AUDIT_NOTE, r->line, "continues behind line seq %" PRIu64 " with hash %s", rec->seq - 1, hex);
	} else {
		return false;
	}
	if (!c->lines) {
		c->first_seq = rec->seq;
		memcpy(c->begins, rec->prev, AUDIT_HASH);
	}
	return true;
}

static void compare(struct reading *r, const struct audit_record *rec)
{
	const struct audit_check *c = r->c;
	bool hash = bytes_equal(rec->prev, c->head, AUDIT_HASH);

	if (hash && rec->seq == c->seq + 1)
		return;
	if (hash)
		tell(r, AUDIT_DAMAGE, r->line, "seq is %" PRIu64 " instead of %" PRIu64, rec->seq, c->seq + 1);
	else if (rec->seq == c->seq + 1)
		tell(r, AUDIT_DAMAGE, r->line, "the line before was changed: its hash is not the one noted here");
	else if (rec->seq > c->seq + 1)
		tell(r, AUDIT_DAMAGE, r->line, "lines seq %" PRIu64 " to %" PRIu64 " are missing before it", c->seq + 1,
		    rec->seq - 1);
	else
		tell(r, AUDIT_DAMAGE, r->line, "seq %" PRIu64 " behind %" PRIu64 ": inserted, repeated or moved",
		    rec->seq, c->seq);
}

static void count(json_t *operations, const struct audit_record *rec)
{
	const char *op = jsonio_str(rec->json, "op"), *result = jsonio_str(rec->json, "result");
	json_t *of, *n;

	if (!operations || strcmp(rec->event, "kms") != 0 || !op || !result)
		return;
	/* Forged lines must not make it large. */
	if (strlen(op) > 32 || strlen(result) > 32 || json_object_size(operations) > 64)
		return;
	of = json_object_get(operations, op);
	if (!of) {
		of = json_object();
		(void)json_object_set_new(operations, op, of);
	}
	n = json_object_get(of, result);
	if (n)
		(void)json_integer_set(n, json_integer_value(n) + 1);
	else if (json_object_size(of) < 64)
		(void)json_object_set_new(of, result, json_integer(1));
}

static void unsynced(struct reading *r, const struct audit_record *rec)
{
	json_int_t since = json_integer_value(json_object_get(rec->json, "since"));

	if (jsonio_str(rec->json, "error"))
		tell(r, AUDIT_NOTE, r->line,
		    "the disk failed: lines seq %" JSON_INTEGER_FORMAT " and later may be gone", since);
}

static void take(struct reading *r, const struct audit_record *rec)
{
	struct audit_check *c = r->c;
	const char *time = jsonio_str(rec->json, "time");
	json_int_t dropped = json_integer_value(json_object_get(rec->json, "count"));

	if (!r->any)
		half_judge(r, r->len >= c->half.len && same_beginning(&c->half, r->bytes, r->len));
	torn_judge(r, rec);
	if (r->any || !first_line(r, rec))
		compare(r, rec);
	r->any = true;
	audit_hash(c->head, r->bytes, r->len);
	c->seq = rec->seq;
	if (c->anchor)
		c->anchored |= bytes_equal(c->anchor, c->head, AUDIT_HASH);
	if (!c->lines++)
		(void)snprintf(c->first_time, sizeof(c->first_time), "%s", time);
	(void)snprintf(c->last_time, sizeof(c->last_time), "%s", time);
	if (strcmp(rec->event, "dropped") == 0 && dropped > 0)
		c->dropped += (uint64_t)dropped;
	if (strcmp(rec->event, "sync") == 0)
		unsynced(r, rec);
	count(c->operations, rec);
}

/* ---- reading ---- */

static void line_ends(struct reading *r)
{
	struct audit_record rec;

	if (r->overlong || audit_parse(&rec, r->bytes, r->len)) {
		torn_add(r);
	} else {
		take(r, &rec);
		json_decref(rec.json);
	}
	r->len = 0;
	r->overlong = false;
}

static void feed(struct reading *r, const char *chunk, size_t n)
{
	while (n) {
		const char *end = memchr(chunk, '\n', n);
		size_t part = end ? (size_t)(end - chunk) : n, room = AUDIT_LINE_MAX - r->len;

		if (!r->len && !r->overlong)
			r->line++;
		if (part > room) { /* no line is that long */
			memcpy(r->bytes + r->len, chunk, room);
			r->len += room;
			torn_add(r);
			r->len = 0;
			r->overlong = true;
			chunk += room;
			n -= room;
			continue;
		}
		memcpy(r->bytes + r->len, chunk, part);
		r->len += part;
		chunk += part + (end != NULL);
		n -= part + (end != NULL);
		if (end)
			line_ends(r);
	}
}

static void file_ends(struct reading *r)
{
	size_t len = r->len;
	bool unended = r->len || r->overlong;

	if (unended)
		line_ends(r);
	r->len = len; /* its bytes are still there */
	if (r->torn && unended && r->torn_parts == 1)
		half_keep(r);
	else if (r->torn)
		tell(r, AUDIT_DAMAGE, r->torn_line, "not a line of an audit, or a changed one");
	r->c->files++;
}

int audit_check_file(struct audit_check *c, int fd, const char *file)
{
	CLEANUP_FREE char *bytes = malloc(AUDIT_LINE_MAX);
	CLEANUP_FREE char *chunk = malloc(CHUNK);
	struct reading r = { .c = c, .file = file, .bytes = bytes };
	ssize_t n;

	if (!bytes || !chunk)
		return -ENOMEM;
	for (;;) {
		n = read(fd, chunk, CHUNK);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		feed(&r, chunk, (size_t)n);
	}
	if (n < 0)
		return -errno;
	file_ends(&r);
	return 0;
}

void audit_check_end(struct audit_check *c)
{
	struct reading last = { .c = c, .file = c->half.file }, r = { .c = c, .file = "" };

	if (last.file)
		tell(&last, AUDIT_NOTE, c->half.line, "ends in half a line: being written, or torn by a crash");
	c->half.file = NULL;
	if (!c->anchor || c->anchored)
		return;
	if (c->lines && c->first_seq > 1 && bytes_equal(c->anchor, c->begins, AUDIT_HASH))
		tell(&r, AUDIT_NOTE, 0,
		    "the anchor is the hash that the first line gives for the line before it: give that line's file "
		    "too");
	tell(&r, AUDIT_DAMAGE, 0, "no line has the anchor's hash: the end was cut off, or history was rewritten");
}
