/* RFC 4231, and libsodium's HMAC over messages of every length up to a few blocks, in parts. */
#include <setjmp.h>
#include <sodium.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "hmac.h"

#define MESSAGE 600u

static void check(const char *want, const uint8_t *have, size_t n)
{
	char hex[129];

	assert_string_equal(sodium_bin2hex(hex, sizeof(hex), have, n), want);
}

/* Case 2 of RFC 4231, in one part and in three. */
static void test_rfc4231(void **state)
{
	static const char text[] = "what do ya want for nothing?";
	const struct hmac_part one = { text, sizeof(text) - 1 };
	const struct hmac_part three[] = { { text, 5 }, { NULL, 0 }, { text + 5, sizeof(text) - 6 } };
	uint8_t out[64];

	(void)state;
	hmac_sha256(out, "Jefe", 4, &one, 1);
	check("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843", out, 32);
	hmac_sha256(out, "Jefe", 4, three, 3);
	check("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843", out, 32);
	hmac_sha512(out, "Jefe", 4, three, 3);
	check("164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554"
	      "9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
	    out, 64);
}

static void test_every_length(void **state)
{
	uint8_t message[MESSAGE], key[HMAC_KEY_MAX], have[64], want[64];
	crypto_auth_hmacsha256_state s256;
	crypto_auth_hmacsha512_state s512;

	(void)state;
	for (size_t i = 0; i < sizeof(message); i++)
		message[i] = (uint8_t)(i * 7 + 1);
	for (size_t i = 0; i < sizeof(key); i++)
		key[i] = (uint8_t)(i * 3 + 5);
	for (size_t n = 0; n <= sizeof(message); n++) {
		const struct hmac_part parts[] = { { message, n / 3 }, { message + n / 3, n - n / 3 } };
		size_t keylen = n % (sizeof(key) + 1);

		(void)crypto_auth_hmacsha256_init(&s256, key, keylen);
		(void)crypto_auth_hmacsha256_update(&s256, message, n);
		(void)crypto_auth_hmacsha256_final(&s256, want);
		hmac_sha256(have, key, keylen, parts, 2);
		assert_memory_equal(have, want, 32);
		(void)crypto_auth_hmacsha512_init(&s512, key, keylen);
		(void)crypto_auth_hmacsha512_update(&s512, message, n);
		(void)crypto_auth_hmacsha512_final(&s512, want);
		hmac_sha512(have, key, keylen, parts, 2);
		assert_memory_equal(have, want, 64);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rfc4231),
		cmocka_unit_test(test_every_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
