/* Integers, encodings, checksums: known answers, round trips, and what a strict decoder refuses. */
#include "vectors.h"

#include <errno.h>

static void test_integers(void **state)
{
	uint8_t b[9] = { 0 };

	(void)state;
	le64_put(b, 0x0807060504030201);
	vector_assert(b, 8, "0102030405060708");
	assert_int_equal(le16_get(b), 0x0201);
	assert_int_equal(le32_get(b), 0x04030201);
	assert_int_equal(le48_get(b), 0x060504030201);
	assert_int_equal(le64_get(b), 0x0807060504030201);
	assert_int_equal(le64_get(b + 1), 0x08070605040302);
	memset(b, 0xff, sizeof(b));
	assert_int_equal(le48_get(b), 0xffffffffffff);
	assert_true(le64_get(b) == UINT64_MAX);
	le48_put(b, UINT64_MAX << 8);
	vector_assert(b, 9, "00ffffffffffffffff");
}

static void test_hex(void **state)
{
	uint8_t all[256], back[256];
	char text[513];

	(void)state;
	vector_fill(all, sizeof(all), 0);
	bytes_hex(text, all, sizeof(all));
	assert_int_equal(strlen(text), 512);
	assert_memory_equal(text + 2 * 0xab, "abacad", 6);
	assert_int_equal(bytes_unhex(back, 256, text, 512), 0);
	assert_memory_equal(back, all, 256);
	assert_int_equal(bytes_unhex(back, 255, text, 512), -EINVAL);
	assert_int_equal(bytes_unhex(back, 256, text, 511), -EINVAL);
	assert_int_equal(bytes_unhex(back, 0, text, 0), 0);
	bytes_hex(text, all, 0);
	assert_string_equal(text, "");
}

/* Every byte in either position: only 0-9a-f pass, with the right value. */
static void test_hex_digits(void **state)
{
	static const char digits[] = "0123456789abcdef";

	(void)state;
	for (int c = 0; c < 256; c++) {
		const char hi[2] = { (char)c, '0' }, lo[2] = { '0', (char)c };
		const char *at = c ? strchr(digits, c) : NULL;
		uint8_t out;

		assert_int_equal(bytes_unhex(&out, 1, hi, 2), at ? 0 : -EINVAL);
		if (at)
			assert_int_equal(out, (at - digits) << 4);
		assert_int_equal(bytes_unhex(&out, 1, lo, 2), at ? 0 : -EINVAL);
		if (at)
			assert_int_equal(out, at - digits);
	}
}

struct known {
	const char *plain, *std, *url, *b32;
};

/* RFC 4648, section 10, and two that differ between the alphabets. */
static const struct known known[] = {
	{ "", "", "", "" },
	{ "f", "Zg==", "Zg", "my" },
	{ "fo", "Zm8=", "Zm8", "mzxq" },
	{ "foo", "Zm9v", "Zm9v", "mzxw6" },
	{ "foob", "Zm9vYg==", "Zm9vYg", "mzxw6yq" },
	{ "fooba", "Zm9vYmE=", "Zm9vYmE", "mzxw6ytb" },
	{ "foobar", "Zm9vYmFy", "Zm9vYmFy", "mzxw6ytboi" },
	{ "\xff\xfe", "//4=", "__4", "777a" },
	{ "\xfb\xef", "++8=", "--8", "7pxq" },
};

static void test_known_texts(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		const struct known *k = &known[i];
		const uint8_t *plain = (const uint8_t *)k->plain;
		size_t n = strlen(k->plain);
		uint8_t back[8];
		char text[20];

		assert_int_equal(bytes_b64(B64_STD, text, plain, n), strlen(k->std));
		assert_string_equal(text, k->std);
		assert_int_equal(bytes_b64(B64_URL, text, plain, n), strlen(k->url));
		assert_string_equal(text, k->url);
		assert_int_equal(bytes_b32(text, plain, n), strlen(k->b32));
		assert_string_equal(text, k->b32);
		assert_int_equal(bytes_unb64(B64_STD, back, n, k->std, strlen(k->std)), n);
		assert_memory_equal(back, plain, n);
		assert_int_equal(bytes_unb64(B64_URL, back, n, k->url, strlen(k->url)), n);
		assert_memory_equal(back, plain, n);
		assert_int_equal(bytes_unb32(back, n, k->b32, strlen(k->b32)), n);
		assert_memory_equal(back, plain, n);
	}
}

static void test_round_trips(void **state)
{
	uint8_t in[300], out[300];
	char text[500];

	(void)state;
	for (size_t i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 89 + 7);
	for (size_t n = 0; n <= sizeof(in); n++) {
		for (int kind = B64_URL; kind <= B64_STD; kind++) {
			size_t len = bytes_b64((enum bytes_b64)kind, text, in, n);

			assert_int_equal(strlen(text), len);
			assert_true(len < bytes_b64_size(n));
			assert_int_equal(bytes_unb64((enum bytes_b64)kind, out, n, text, len), n);
			assert_memory_equal(out, in, n);
			if (n > 0)
				assert_int_equal(bytes_unb64((enum bytes_b64)kind, out, n - 1, text, len), -E2BIG);
		}
		size_t len = bytes_b32(text, in, n);

		assert_int_equal(strlen(text), len);
		assert_true(len < bytes_b32_size(n));
		assert_int_equal(bytes_unb32(out, n, text, len), n);
		assert_memory_equal(out, in, n);
		if (n > 0)
			assert_int_equal(bytes_unb32(out, n - 1, text, len), -E2BIG);
	}
}

/* A text is accepted if and only if encoding what it stands for gives it back. */
static void check_canonical(const char *text, size_t len)
{
	uint8_t out[8];
	char again[20];
	int n = bytes_unb64(B64_URL, out, sizeof(out), text, len);

	if (n >= 0) {
		assert_int_equal(bytes_b64(B64_URL, again, out, (size_t)n), len);
		assert_memory_equal(again, text, len);
	}
	n = bytes_unb64(B64_STD, out, sizeof(out), text, len);
	if (n >= 0) {
		assert_int_equal(bytes_b64(B64_STD, again, out, (size_t)n), len);
		assert_memory_equal(again, text, len);
	}
	n = bytes_unb32(out, sizeof(out), text, len);
	if (n >= 0) {
		assert_int_equal(bytes_b32(again, out, (size_t)n), len);
		assert_memory_equal(again, text, len);
	}
}

static void test_canonical(void **state)
{
	(void)state;
	for (int a = 0; a < 256; a++) {
		for (int b = 0; b < 256; b++) {
			const char text[] = { (char)a, (char)b, 'a', '=', 'a', (char)b, (char)a, (char)b };
			const char padded[] = { 'm', 'z', 'x', (char)a, 'Z', 'g', (char)b, '=' };

			for (size_t len = 1; len <= 8; len++) {
				check_canonical(text, len);
				check_canonical(padded, len);
				check_canonical(padded + 4, len < 4 ? len : 4);
			}
		}
	}
}

static void test_refused_texts(void **state)
{
	static const char *const bad_std[] = { "Z", "Zg",
		"Zg=", "Zg===", "Zh==", "Zm9=", "Zg==Zg==", "Z===", "====", "=", "Zm 9v", "Zm9v\n", "Zm9-", "Zm9_",
		"Zm9v=" };
	static const char *const bad_url[] = { "Z", "Zh", "Zm9", "Zg==", "Zm9+", "Zm9/", "Zm9v ", "Zm9vY" };
	static const char *const bad_b32[] = { "m", "mz", "mzx", "mzxw6y", "MY", "my======", "m1", "m8", "mzxw6ytbm",
		"m y" };
	uint8_t out[16];

	(void)state;
	for (size_t i = 0; i < sizeof(bad_std) / sizeof(bad_std[0]); i++)
		if (bytes_unb64(B64_STD, out, sizeof(out), bad_std[i], strlen(bad_std[i])) != -EINVAL)
			fail_msg("accepted '%s'", bad_std[i]);
	for (size_t i = 0; i < sizeof(bad_url) / sizeof(bad_url[0]); i++)
		if (bytes_unb64(B64_URL, out, sizeof(out), bad_url[i], strlen(bad_url[i])) != -EINVAL)
			fail_msg("accepted '%s'", bad_url[i]);
	for (size_t i = 0; i < sizeof(bad_b32) / sizeof(bad_b32[0]); i++)
		if (bytes_unb32(out, sizeof(out), bad_b32[i], strlen(bad_b32[i])) != -EINVAL)
			fail_msg("accepted '%s'", bad_b32[i]);
	assert_int_equal(bytes_unb64(B64_URL, out, sizeof(out), "Zm\0v", 4), -EINVAL);
	assert_int_equal(bytes_unb64(B64_STD, out, sizeof(out), "", SIZE_MAX), -E2BIG);
}

/* RFC 3720, appendix B.4. */
static void test_crc32c(void **state)
{
	uint8_t b[32] = { 0 };

	(void)state;
	assert_int_equal(bytes_crc32c(b, 32), 0x8a9136aa);
	memset(b, 0xff, 32);
	assert_int_equal(bytes_crc32c(b, 32), 0x62a8ab43);
	vector_fill(b, 32, 0);
	assert_int_equal(bytes_crc32c(b, 32), 0x46dd794e);
	assert_int_equal(bytes_crc32c((const uint8_t *)"123456789", 9), 0xe3069283);
	assert_int_equal(bytes_crc32c(b, 0), 0);
}

static void test_zero_and_equal(void **state)
{
	uint8_t a[67] = { 0 }, b[67] = { 0 };

	(void)state;
	for (size_t n = 0; n <= sizeof(a); n++) {
		assert_true(bytes_zero(a, n));
		for (size_t i = 0; i < n; i++) {
			a[i] = 0x80;
			assert_false(bytes_zero(a, n));
			assert_false(bytes_equal(a, b, n));
			assert_true(bytes_equal(a, b, i));
			a[i] = 0;
		}
		assert_true(bytes_equal(a, b, n));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_integers),
		cmocka_unit_test(test_hex),
		cmocka_unit_test(test_hex_digits),
		cmocka_unit_test(test_known_texts),
		cmocka_unit_test(test_round_trips),
		cmocka_unit_test(test_canonical),
		cmocka_unit_test(test_refused_texts),
		cmocka_unit_test(test_crc32c),
		cmocka_unit_test(test_zero_and_equal),
	};

	return cmocka_run_group_tests_name("bytes", tests, NULL, NULL);
}
