/* Encryption contexts: the canonical ones of byokfs-format(5), section 17, and the rules for administrators' pairs. */
#include "vectors.h"

#include <errno.h>
#include <stdlib.h>

static void test_canonical_vectors(void **state)
{
	const struct context_ids ids = vector_ids(1);
	uint8_t out[256];
	VECTOR_FILE_ID(file);

	(void)state;
	assert_int_equal(context_canonical(out, &ids, file), 162);
	vector_assert_sha256(out, 162, "f0bf05736af18248030e3f7c78890e9b3d46c6d382482230ba38c1590d9d9364");
	assert_int_equal(context_canonical(out, &ids, NULL), 117);
	vector_assert_sha256(out, 117, "a522f51188530cb4bb484bc8d73b3cf8402220cc09ea2687a6a401c93e4251d1");
}

/* Without an administrator's pairs, what the KMS binds is the canonical context. */
static void test_encode_is_canonical(void **state)
{
	static const enum context_use use[] = { CONTEXT_FILE, CONTEXT_DOMAIN };
	const struct context_ids ids = vector_ids(1);
	static struct context context;
	uint8_t all[CONTEXT_ENCODED_MAX], canonical[256];
	VECTOR_FILE_ID(file);

	(void)state;
	for (int i = 0; i < 2; i++) {
		size_t n = context_canonical(canonical, &ids, use[i] == CONTEXT_FILE ? file : NULL);

		context_build(&context, use[i], &ids, file, NULL);
		assert_int_equal(context_encode(all, &context), n);
		assert_memory_equal(all, canonical, n);
	}
}

static void test_build_sorts(void **state)
{
	static const char *const names[] = { "a", "byokfs", "byokfs-domain", "byokfs-file", "byokfs-store",
		"byokfs-use", "tenant", "z-9" };
	const struct context_ids ids = vector_ids(1);
	struct context_extra extra;
	static struct context context;
	VECTOR_FILE_ID(file);

	(void)state;
	assert_int_equal(context_parse_extra(&extra, "tenant:acme, z-9:1,a:2 , byokfs:3"), 0);
	context_build(&context, CONTEXT_FILE, &ids, file, &extra);
	assert_int_equal(context.n, 8);
	for (size_t i = 0; i < 8; i++)
		assert_string_equal(context.pair[i].name, names[i]);
	assert_string_equal(context.pair[2].value, "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf");
	assert_string_equal(context.pair[3].value, "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf");
	assert_string_equal(context.pair[4].value, "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf");
	assert_string_equal(context.pair[5].value, "file");
	assert_string_equal(context.pair[6].value, "acme");
}

static void test_probe(void **state)
{
	const struct context_ids ids = vector_ids(1);
	static struct context context;

	(void)state;
	context_build(&context, CONTEXT_PROBE, &ids, NULL, NULL);
	assert_int_equal(context.n, 3);
	assert_string_equal(context.pair[2].name, "byokfs-use");
	assert_string_equal(context.pair[2].value, "probe");
}

static void test_parse(void **state)
{
	static const char *const none[] = { "", "-", "  ", " - " };
	struct context_extra extra;

	(void)state;
	for (size_t i = 0; i < 4; i++) {
		assert_int_equal(context_parse_extra(&extra, none[i]), 0);
		assert_int_equal(extra.n, 0);
	}
	assert_int_equal(context_parse_extra(&extra, " env : prod , key:arn:aws:kms:eu-central-1:1:key/x"), 0);
	assert_int_equal(extra.n, 2);
	assert_string_equal(extra.pair[0].name, "env");
	assert_string_equal(extra.pair[0].value, "prod");
	assert_string_equal(extra.pair[1].value, "arn:aws:kms:eu-central-1:1:key/x");
}

static void test_parse_refuses(void **state)
{
	static const char *const bad[] = { "a", "a:", ":b", "a:b,", ",a:b", "a:b,,c:d", "A:b", "a_b:c", "a b:c",
		"a:b,a:c", "byokfs-use:file", "byokfs-x:1", "aws:1", "aws-source:1", "awsome:1", "a:caf\xc3\xa9",
		"a:b\tc", "a:\x7f", "a:1,b:1,c:1,d:1,e:1,f:1,g:1,h:1,i:1", "a:b\n", "--:" };
	struct context_extra extra;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (context_parse_extra(&extra, bad[i]) != -EINVAL)
			fail_msg("accepted '%s'", bad[i]);
		assert_int_equal(extra.n, 0);
	}
	assert_int_equal(context_parse_extra(&extra, "a:1,b:1,c:1,d:1,e:1,f:1,g:1,h:1"), 0);
	assert_int_equal(extra.n, 8);
}

static void test_limits(void **state)
{
	struct context_extra extra = { 0 };
	char name[66], value[CONTEXT_EXTRA_BYTES + 2];

	(void)state;
	memset(name, 'n', sizeof(name));
	memset(value, 'v', sizeof(value));
	name[65] = '\0';
	assert_int_equal(context_add_extra(&extra, name, "x"), -EINVAL);
	name[64] = '\0';
	assert_int_equal(context_add_extra(&extra, name, "x"), 0);
	value[CONTEXT_EXTRA_BYTES - 65 - 1] = '\0'; /* together 1024 */
	assert_int_equal(context_add_extra(&extra, "bb", value), -EINVAL);
	assert_int_equal(context_add_extra(&extra, "b", value), 0);
	assert_int_equal(context_add_extra(&extra, "c", "1"), -EINVAL);
	assert_int_equal(extra.n, 2);

	memset(&extra, 0, sizeof(extra));
	memset(value, 'v', sizeof(value));
	value[CONTEXT_EXTRA_BYTES + 1] = '\0';
	assert_int_equal(context_add_extra(&extra, "a", value), -EINVAL);
	value[CONTEXT_EXTRA_BYTES] = '\0';
	assert_int_equal(context_add_extra(&extra, "a", value), -EINVAL);
	value[CONTEXT_EXTRA_BYTES - 1] = '\0';
	assert_int_equal(context_add_extra(&extra, "a", value), 0);
	assert_int_equal(strlen(extra.pair[0].value), CONTEXT_EXTRA_BYTES - 1);
}

/* The largest context fits its buffer. */
static void test_largest_encoding(void **state)
{
	const struct context_ids ids = vector_ids(1);
	struct context_extra extra = { 0 };
	static struct context context;
	uint8_t out[CONTEXT_ENCODED_MAX];
	char name[2] = "a", value[CONTEXT_EXTRA_BYTES];
	VECTOR_FILE_ID(file);

	(void)state;
	for (; name[0] < 'h'; name[0]++)
		assert_int_equal(context_add_extra(&extra, name, "1"), 0);
	memset(value, 'v', sizeof(value));
	value[CONTEXT_EXTRA_BYTES - 7 * 2 - 1] = '\0';
	assert_int_equal(context_add_extra(&extra, name, value), 0);
	context_build(&context, CONTEXT_FILE, &ids, file, &extra);
	assert_int_equal(context.n, CONTEXT_PAIRS_MAX);
	assert_int_equal(context_encode(out, &context), 162 + CONTEXT_EXTRA_BYTES + 4 * CONTEXT_EXTRA_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_canonical_vectors),
		cmocka_unit_test(test_encode_is_canonical),
		cmocka_unit_test(test_build_sorts),
		cmocka_unit_test(test_probe),
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_parse_refuses),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_largest_encoding),
	};

	return cmocka_run_group_tests_name("context", tests, NULL, NULL);
}
