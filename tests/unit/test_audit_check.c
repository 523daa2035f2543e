/* audit: every kind of tampering against the check of the chain. */
#include "audit_fixture.h"

struct log {
	char *bytes;
	size_t len;
	size_t at[32]; /* beginnings of lines, and the end */
	size_t lines;
	uint8_t head[AUDIT_HASH];
};

static struct log log_of(unsigned events)
{
	struct log l = { 0 };

	make(events);
	l.bytes = slurp(path, &l.len);
	for (size_t i = 0; i < l.len; i = (size_t)(strchr(l.bytes + i, '\n') - l.bytes) + 1)
		l.at[l.lines++] = i;
	l.at[l.lines] = l.len;
	assert_int_equal(l.lines, events + 2);
	memcpy(l.head, check().c.head, AUDIT_HASH);
	return l;
}

/* A log of lines of l by their numbers. */
static struct verdict reordered(const struct log *l, const uint8_t *anchor, const size_t *lines, size_t n)
{
	CLEANUP_FREE char *bytes = malloc(2 * l->len);
	size_t len = 0;

	for (size_t i = 0; i < n; i++) {
		size_t size = l->at[lines[i] + 1] - l->at[lines[i]];

		memcpy(bytes + len, l->bytes + l->at[lines[i]], size);
		len += size;
	}
	spill(path, bytes, len);
	return check_with(path, NULL, anchor);
}

static void test_every_byte(void **state)
{
	struct log l = log_of(4);

	(void)state;
	assert_int_equal(check_with(path, NULL, l.head).c.damage, 0);
	for (size_t i = 0; i < l.len; i++) {
		for (int bit = 1; bit < 256; bit <<= 3) {
			l.bytes[i] = (char)(l.bytes[i] ^ bit);
			spill(path, l.bytes, l.len);
			if (i < l.at[l.lines - 1])
				assert_true(check().c.damage > 0);
			/* The end of the last line is no part of it. */
			if (i < l.len - 1)
				assert_true(check_with(path, NULL, l.head).c.damage > 0);
			l.bytes[i] = (char)(l.bytes[i] ^ bit);
		}
	}
	free(l.bytes);
}

static void test_lines_removed_repeated_moved(void **state)
{
	struct log l = log_of(4);
	size_t order[16];

	(void)state;
	for (size_t i = 0; i < l.lines; i++) {
		size_t n = 0;
		bool last = i == l.lines - 1;

		for (size_t j = 0; j < l.lines; j++)
			if (j != i)
				order[n++] = j;
		/* Without its first or last line what is left is whole; the anchor and seq tell. */
		struct verdict v = reordered(&l, NULL, order, n);

		assert_int_equal(v.c.damage, i > 0 && !last);
		if (i > 0 && !last)
			assert_non_null(strstr(v.last, "missing"));
		if (i == 0)
			assert_int_equal(v.c.first_seq, 2);
		assert_int_equal(reordered(&l, l.head, order, n).c.damage, i > 0 ? 1 : 0);
		n = 0;
		for (size_t j = 0; j < l.lines; j++) {
			order[n++] = j;
			if (j == i)
				order[n++] = j;
		}
		v = reordered(&l, NULL, order, n);
		assert_true(v.c.damage > 0);
		assert_int_equal(v.line, i + 2);
		assert_non_null(strstr(v.last, "repeated"));
		for (size_t j = 0; j < l.lines; j++)
			order[j] = j == i ? j + 1 : j == i + 1 ? i : j;
		if (!last)
			assert_true(reordered(&l, NULL, order, l.lines).c.damage > 0);
	}
	free(l.bytes);
}

static void test_bytes_cut_and_put_in(void **state)
{
	struct log l = log_of(4);
	CLEANUP_FREE char *bytes = malloc(l.len + 8);

	(void)state;
	for (size_t i = 0; i < l.at[l.lines - 1]; i += 7) {
		memcpy(bytes, l.bytes, i);
		memcpy(bytes + i, l.bytes + i + 1, l.len - i - 1);
		spill(path, bytes, l.len - 1);
		assert_true(check().c.damage > 0);
		memcpy(bytes + i, "\n", 1);
		memcpy(bytes + i + 1, l.bytes + i, l.len - i);
		spill(path, bytes, l.len + 1);
		assert_true(check().c.damage > 0);
	}
	free(l.bytes);
}

/* Everything from a line on made anew, as somebody without an anchor to fear would. */
static struct verdict forge(const struct log *l, size_t from, const char *what, const char *with, const uint8_t *anchor)
{
	CLEANUP_FREE char *bytes = calloc(1, 2 * l->len);
	uint8_t hash[AUDIT_HASH];
	size_t len = l->at[from];

	memcpy(bytes, l->bytes, len);
	for (size_t i = from; i < l->lines; i++) {
		size_t begin = len, size = l->at[i + 1] - l->at[i];
		char *line = bytes + begin, *at;

		memcpy(line, l->bytes + l->at[i], size);
		if (i == from) {
			at = strstr(line, what);
			assert_non_null(at);
			memmove(at + strlen(with), at + strlen(what), strlen(at + strlen(what)) + 1);
			memcpy(at, with, strlen(with));
			size = size + strlen(with) - strlen(what);
		} else {
			char hex[2 * AUDIT_HASH + 1];

			bytes_hex(hex, hash, AUDIT_HASH);
			memcpy(line + size - 3 - 2 * AUDIT_HASH, hex, 2 * AUDIT_HASH);
		}
		audit_hash(hash, line, size - 1);
		len += size;
	}
	spill(path, bytes, len);
	return check_with(path, NULL, anchor);
}

static void test_forged(void **state)
{
	struct log l = log_of(4);

	(void)state;
	/* The check of the chain alone cannot see this: that is what the anchor is for. */
	assert_int_equal(forge(&l, 2, "\"uid\":1234", "\"uid\":1235", NULL).c.damage, 0);
	assert_int_equal(forge(&l, 2, "\"uid\":1234", "\"uid\":1235", l.head).c.damage, 1);
	struct verdict v = forge(&l, 2, "{\"seq\":3,", "{\"seq\":30,", NULL);

	assert_non_null(strstr(v.last, "seq is 30 instead of 3"));
	assert_true(forge(&l, 2, "{\"seq\":3,", "{\"seq\":03,", NULL).c.damage > 0);
	assert_true(forge(&l, 2, "\"uid\":1234", "\"uid\":1234,\"uid\":0", NULL).c.damage > 0);
	assert_true(forge(&l, 2, "\"event\":\"kms\"", "\"event\":\"kmz\"", NULL).c.damage > 0);
	assert_true(forge(&l, 2, "\"uid\":1234", "\"seq\":3", NULL).c.damage > 0);
	assert_true(forge(&l, 2, "Z\",\"event", "\",\"event", NULL).c.damage > 0);
	v = forge(&l, 0, "\"key\":", "\"torn\":\"00\",\"key\":", NULL);
	assert_non_null(strstr(v.last, "torn"));
	free(l.bytes);
}

/* What is printed of a line must not steer a terminal: only the writer's own escapes, and words where words stand. */
static void test_escapes(void **state)
{
	static const char *const bad[] = { "\"op\":\"\\u001b[2J\"", "\"op\":\"a\\nb\"", "\"op\":\"\\u0041\"",
		"\"op\":\"a\\/b\"", "\"op\":\"a;b\"", "\"op\":\"\"", "\"op\":null", "\"op\":7", "\"ob\":\"Decrypt\"",
		"\"op\":\"Decrypt\",\"x\\ty\":1", "\"op\":\"Decrypt\",\"x\":[\"\\b\"]" };
	struct log l = log_of(4);

	(void)state;
	assert_int_equal(forge(&l, 2, "\"op\":\"Decrypt\"", "\"op\":\"De crypt\"", NULL).c.damage, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_true(forge(&l, 2, "\"op\":\"Decrypt\"", bad[i], NULL).c.damage > 0);
	assert_true(forge(&l, 2, "\"result\":\"ok\"", "\"result\":\"\\u001b\"", NULL).c.damage > 0);
	assert_true(forge(&l, 2, "\"result\":\"ok\"", "\"result\":\"o\\\\k\"", NULL).c.damage > 0);
	free(l.bytes);
}

static void hash_of(uint8_t out[static AUDIT_HASH], const struct log *l, size_t line)
{
	audit_hash(out, l->bytes + l->at[line], l->at[line + 1] - l->at[line] - 1);
}

/* That a line names the anchor proves nothing: anybody can write such a line. */
static void test_anchor_must_be_a_line(void **state)
{
	static const size_t all[] = { 0, 1, 2, 3, 4, 5 }, without_third[] = { 0, 1, 3, 4, 5 };
	static const uint8_t zeros[AUDIT_HASH];
	struct log l = log_of(4);
	uint8_t anchor[AUDIT_HASH];

	(void)state;
	hash_of(anchor, &l, 2);
	struct verdict v = reordered(&l, anchor, all, 6);

	assert_int_equal(v.c.damage, 0);
	assert_true(v.c.anchored);
	/* The line before the first one. */
	v = reordered(&l, anchor, all + 3, 3);
	assert_int_equal(v.c.damage, 1);
	assert_false(v.c.anchored);
	assert_non_null(strstr(v.last, "no line has the anchor's hash"));
	assert_int_equal(v.notes, 2);
	v = reordered(&l, anchor, without_third, 5);
	assert_int_equal(v.c.damage, 2);
	assert_false(v.c.anchored);
	v = reordered(&l, zeros, all, 6);
	assert_int_equal(v.c.damage, 1);
	assert_int_equal(v.notes, 0);
	free(l.bytes);
}

/* ---- half lines ---- */

static struct verdict ends_in(const struct log *l, const void *bytes, size_t n)
{
	CLEANUP_FREE char *text = malloc(l->len + n);

	memcpy(text, l->bytes, l->len);
	memcpy(text + l->len, bytes, n);
	spill(path, text, l->len + n);
	return check();
}

static void test_end_of_file(void **state)
{
	struct log l = log_of(2);
	char *x = malloc(40000);

	(void)state;
	memset(x, 'x', 40000);
	struct verdict v = ends_in(&l, "{\"seq\":5,\"ti", 12);

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.notes, 1);
	/* One beginning of a line, and nothing else. */
	assert_int_equal(ends_in(&l, "mine\n", 5).c.damage, 1);
	assert_int_equal(ends_in(&l, "mine\n{\"seq\"", 11).c.damage, 1);
	assert_int_equal(ends_in(&l, "\n{\"seq\"", 7).c.damage, 1);
	assert_int_equal(ends_in(&l, x, 40000).c.damage, 1);
	assert_int_equal(ends_in(&l, x, AUDIT_LINE_MAX + 1).c.damage, 1);
	free(x);
	free(l.bytes);
}

/* A log cut in two, n bytes of the line `at` standing at the end of the first file, and the second one from line
 * `from`. */
static struct verdict cut(const struct log *l, size_t at, const char *bytes, size_t n, size_t from)
{
	CLEANUP_FREE char *text = malloc(l->len + n);

	memcpy(text, l->bytes, l->at[at]);
	memcpy(text + l->at[at], bytes, n);
	spill(old, text, l->at[at] + n);
	spill(path, l->bytes + l->at[from], l->len - l->at[from]);
	return check_with(old, path, NULL);
}

static void test_end_of_earlier_file(void **state)
{
	struct log l = log_of(4);
	const char *half = l.bytes + l.at[3];

	(void)state;
	assert_int_equal(cut(&l, 3, half, 0, 3).notes, 0);
	/* A full disk, then a rotation: the line is in the next file. */
	struct verdict v = cut(&l, 3, half, 50, 3);

	assert_int_equal(v.c.damage, 0);
	assert_int_equal(v.notes, 1);
	assert_int_equal(v.c.lines, 6);
	v = cut(&l, 3, "{\"seq\":4,\"time\":\"1999", 22, 3);
	assert_int_equal(v.c.damage, 1);
	assert_int_equal(v.line, 4);
	assert_non_null(strstr(v.last, "the next file does not begin with it"));
	assert_int_equal(cut(&l, 3, half, 50, 4).c.damage, 2);
	assert_int_equal(cut(&l, 3, "mine\n{\"seq\"", 11, 3).c.damage, 1);
	/* No line but this one, without its newline. */
	assert_int_equal(cut(&l, 3, half, l.at[4] - l.at[3] - 1, 4).c.damage, 0);
	free(l.bytes);
}

/* Rotated twice while the disk was full: pieces of one line at the ends of two files. */
static void test_ends_of_two_files(void **state)
{
	static const size_t size[][2] = { { 50, 0 }, { 50, 20 }, { 20, 50 }, { 50, 50 } };
	struct log l = log_of(4);
	const char *half = l.bytes + l.at[3];
	char third[104];

	(void)state;
	(void)snprintf(third, sizeof(third), "%s/log.0", dir);
	spill(third, half, l.len - l.at[3]);
	for (size_t i = 0; i < sizeof(size) / sizeof(*size); i++) {
		struct verdict v = { .c = { .found = found } };

		v.c.arg = &v;
		spill(old, l.bytes, l.at[3] + size[i][0]);
		spill(path, half, size[i][1]);
		check_one(&v, old);
		check_one(&v, path);
		check_one(&v, third);
		audit_check_end(&v.c);
		assert_int_equal(v.c.damage, 0);
		assert_int_equal(v.c.lines, 6);
		spill(path, "{\"seq\":5", 8);
		v = (struct verdict){ .c = { .found = found } };
		v.c.arg = &v;
		check_one(&v, old);
		check_one(&v, path);
		check_one(&v, third);
		audit_check_end(&v.c);
		assert_true(v.c.damage > 0);
	}
	(void)unlink(third);
	free(l.bytes);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_every_byte),
		TEST(test_lines_removed_repeated_moved),
		TEST(test_bytes_cut_and_put_in),
		TEST(test_forged),
		TEST(test_escapes),
		TEST(test_anchor_must_be_a_line),
		TEST(test_end_of_file),
		TEST(test_end_of_earlier_file),
		TEST(test_ends_of_two_files),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
