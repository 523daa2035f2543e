/* descriptor_text.h — the line grammar that all descriptors share. Private to descriptor*.c.
 *
 * A reader walks the lines once, in order. The first mistake is kept in err; every later call fails too,
 * so that callers may read a group of fields and look at the result once.                       */
#ifndef BYOKFS_DESCRIPTOR_TEXT_H
#define BYOKFS_DESCRIPTOR_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "cleanup.h"

struct descriptor_reader {
	const char *at, *end; /* lines not read yet, without the sum */
	int err;              /* 0 or -errno, sticky */
};

/* The value of one line, not NUL-terminated. */
struct descriptor_value {
	const char *text;
	size_t len;
};

/* Checks size, characters, the first line ("<title> 1") and the sum. 0, -EINVAL or -EPROTONOSUPPORT. */
MUST_CHECK int descriptor_begin(
    struct descriptor_reader *, const char *title, const char *text, size_t len, size_t max);
/* 0 when every line was read and none was wrong. */
MUST_CHECK int descriptor_end(const struct descriptor_reader *);
void descriptor_fail(struct descriptor_reader *, int err);
/* Does the next line begin with this? */
bool descriptor_next_is(const struct descriptor_reader *, const char *prefix);

/* Each takes the next line, which must be "<name>=<value>". On failure the result is empty. */
struct descriptor_value descriptor_line(struct descriptor_reader *, const char *name);
void descriptor_hex(struct descriptor_reader *, const char *name, uint8_t *out, size_t n);
uint64_t descriptor_number(struct descriptor_reader *, const char *name, uint64_t max);
int64_t descriptor_time(struct descriptor_reader *, const char *name);
/* Index of the value among a NULL-terminated list. */
unsigned descriptor_word(struct descriptor_reader *, const char *name, const char *const *words);
/* Text of 1..max characters, copied with a NUL; "-" gives "". */
void descriptor_string(struct descriptor_reader *, const char *name, char *out, size_t max);

/* Parts of a value. */
MUST_CHECK bool descriptor_parse_number(const char *text, size_t len, uint64_t max, uint64_t *out);
MUST_CHECK bool descriptor_parse_time(const char *text, size_t len, int64_t *out);
/* Is it one word or several, with single blanks between them, of printable ASCII? */
bool descriptor_is_clean(const char *text, size_t len);

/* A text in the making; everything is checked once, in descriptor_writer_end(). */
struct descriptor_writer {
	FILE *f;
	char *text;
	size_t len;
	int err;
};

MUST_CHECK int descriptor_writer_begin(struct descriptor_writer *);
void descriptor_put_hex(struct descriptor_writer *, const char *name, const uint8_t *in, size_t n);
/* With none = true, 0 is written as "-". A time that has no spelling is -EINVAL. */
void descriptor_put_time(struct descriptor_writer *, const char *name, int64_t t, bool none);
void descriptor_put_string(struct descriptor_writer *, const char *name, const char *value);
/* HMAC-SHA-256 of what was written so far. */
void descriptor_writer_mac(struct descriptor_writer *, const uint8_t key[static 32], uint8_t mac[static 32]);
/* Appends the sum and hands the text over.
 * 0, -ENOMEM, -EINVAL (a value that the grammar cannot express) or -EFBIG (over max). */
MUST_CHECK int descriptor_writer_end(struct descriptor_writer *, size_t max, char **text, size_t *len);
/* Frees what descriptor_writer_end() has not handed over. */
void descriptor_writer_free(struct descriptor_writer *);
#define CLEANUP_WRITER __attribute__((cleanup(descriptor_writer_free)))

#endif
