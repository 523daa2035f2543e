/* The record of a rotation: what is printed is read back, and nothing else is read. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>
#include <sodium.h>

#include "bytes.h"
#include "job.h"

#define KEY "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

static void fill(struct job *j)
{
	memset(j, 0, sizeof(*j));
	job_new_id(j->id, &(struct timespec){ 1800000000, 999999999 });
	memset(j->store, 0x5a, sizeof(j->store));
	j->kind = JOB_SAME_KEY;
	j->live = true;
	job_text(j->by, JOB_TEXT, "root (uid 0) @ host");
	j->n = 2;
	j->domain = calloc(2, sizeof(*j->domain));
	assert_non_null(j->domain);
	for (size_t i = 0; i < 2; i++) {
		j->domain[i].index = (uint16_t)(i * 7);
		memset(j->domain[i].id, (int)i + 1, CONTEXT_ID);
		j->domain[i].from = strdup(KEY);
	}
	(void)snprintf(j->to, sizeof(j->to), KEY "-2");
	j->started = 1800000000;
	j->files = 80;
	j->resealed = 79;
	j->requests = INT64_MAX;
	j->outcome = JOB_STOPPED;
	job_text(j->why, JOB_TEXT, "stopped by a signal");
}

static void printed_is_parsed(void **state)
{
	struct job j, back;
	char *text = NULL, *again = NULL;
	size_t len, len2;

	(void)state;
	fill(&j);
	assert_int_equal(job_print(&j, &text, &len), 0);
	assert_int_equal(job_parse(&back, text, len), 0);
	assert_string_equal(back.id, j.id);
	assert_int_equal(back.n, 2);
	assert_int_equal(back.domain[1].index, 7);
	assert_string_equal(back.domain[1].from, KEY);
	assert_int_equal(back.outcome, JOB_STOPPED);
	assert_int_equal(back.ended, 0);
	assert_int_equal(back.kind, JOB_SAME_KEY);
	assert_true(back.live && !back.through_host);
	assert_string_equal(back.identity, "");
	assert_int_equal(job_print(&back, &again, &len2), 0);
	assert_int_equal(len, len2);
	assert_memory_equal(text, again, len);
	job_free(&j);
	job_free(&back);
	free(text);
	free(again);
}

static void ids(void **state)
{
	char id[JOB_ID + 1];

	(void)state;
	job_new_id(id, &(struct timespec){ 1800000000, 17 });
	assert_int_equal(strlen(id), JOB_ID);
	assert_string_equal(id, "20270115T080000Z-00000011");
	assert_true(job_is_id(id));
	assert_false(job_is_id(""));
	assert_false(job_is_id("20270115T080000Z-0123456"));
	assert_false(job_is_id("20270115T080000Z-012345678"));
	assert_false(job_is_id("20270115T080000Z-0123456G"));
	assert_false(job_is_id(".byokfs.tmp.0123456789abc"));
}

static void any_text_becomes_a_value(void **state)
{
	char out[9];

	(void)state;
	job_text(out, 8, "  a\n  b\x80\x1b");
	assert_string_equal(out, "a? b??");
	job_text(out, 8, "-");
	assert_string_equal(out, "");
	job_text(out, 8, "1234567 90");
	assert_string_equal(out, "1234567");
}

static void unprintable_is_refused(void **state)
{
	struct job j;
	char *text = NULL;
	size_t len;

	(void)state;
	fill(&j);
	j.domain[0].from[3] = '\n';
	assert_int_equal(job_print(&j, &text, &len), -EINVAL);
	j.domain[0].from[3] = ':';
	j.to[0] = '\0';
	assert_int_equal(job_print(&j, &text, &len), -EINVAL);
	(void)snprintf(j.to, sizeof(j.to), "k");
	j.id[0] = '/';
	assert_int_equal(job_print(&j, &text, &len), -EINVAL);
	j.id[0] = '2';
	j.started = -1;
	assert_int_equal(job_print(&j, &text, &len), -EINVAL);
	assert_null(text);
	job_free(&j);
}

/* The sum is put right, so that the lines themselves are looked at. */
static int parse_summed(char *text, size_t len)
{
	uint8_t sum[crypto_hash_sha256_BYTES];
	char hex[65];
	struct job j;
	int ret;

	(void)crypto_hash_sha256(sum, (const uint8_t *)text, len - 69);
	bytes_hex(hex, sum, sizeof(sum));
	memcpy(text + len - 65, hex, 64);
	ret = job_parse(&j, text, len);
	if (ret)
		assert_null(j.domain);
	job_free(&j);
	return ret;
}

static void hostile_text(void **state)
{
	struct job j;
	char *text = NULL;
	size_t len, refused = 0;

	(void)state;
	fill(&j);
	assert_int_equal(job_print(&j, &text, &len), 0);
	job_free(&j);
	for (size_t at = 0; at < len - 69; at++) {
		char was = text[at];

		text[at] = '\n';
		refused += was != '\n' && parse_summed(text, len) != 0;
		text[at] = '\xff';
		assert_int_not_equal(parse_summed(text, len), 0);
		text[at] = was;
	}
	assert_int_equal(parse_summed(text, len), 0);
	assert_true(refused > len / 2);
	for (size_t cut = 0; cut < len; cut++) {
		struct job back;

		assert_int_not_equal(job_parse(&back, text, cut), 0);
	}
	text[0] ^= 1; /* the sum is no longer right */
	assert_int_not_equal(job_parse(&j, text, len), 0);
	free(text);
}

static void lines_out_of_order(void **state)
{
	struct job j;
	char *text = NULL, *at;
	size_t len;

	(void)state;
	fill(&j);
	assert_int_equal(job_print(&j, &text, &len), 0);
	job_free(&j);
	at = strstr(text, "domain=0 ");
	assert_non_null(at);
	at[7] = '/';
	assert_int_equal(parse_summed(text, len), -EINVAL);
	at[7] = '0';
	at[40] = 'x'; /* within the id */
	assert_int_equal(parse_summed(text, len), -EINVAL);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(printed_is_parsed),
		cmocka_unit_test(ids),
		cmocka_unit_test(any_text_becomes_a_value),
		cmocka_unit_test(unprintable_is_refused),
		cmocka_unit_test(hostile_text),
		cmocka_unit_test(lines_out_of_order),
	};

	return sodium_init() < 0 ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}
