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

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_every_byte),
		TEST(test_lines_removed_repeated_moved),
		TEST(test_bytes_cut_and_put_in),
		TEST(test_forged),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
