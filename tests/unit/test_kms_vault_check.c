/* kms_vault_check: a key deleted and made anew under its name. */
#include "vault_fixture.h"

#define BAD    ANSWER(400, ERRORS("cipher: message authentication failed"))
#define TOO_OLD ANSWER(400, ERRORS("ciphertext or signature version is disallowed by policy (too old)"))
#define SEALED_1                                                                                                  \
	"{\"request_id\":\"r-1\",\"data\":{\"ciphertext\":\"vault:v1:XjsPWPjqPrBi1N2Ms2s1QM798YyFWnO4TR4lsFA=\"," \
	"\"key_version\":1}}"

static void another_key_in_its_place_is_denied(void **state)
{
	static const struct fake_answer script[] = { BAD, /* nothing is known of the key yet */
		OK(OPENED), BAD, OK(OPENED),                  /* the blob's fault */
		BAD, BAD,                                     /* the key's */
		BAD, ANSWER(503, ERRORS("Vault is sealed")), BAD, TOO_OLD, BAD };
	struct fixture f;
	struct many m;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(decrypt(&f, soon()), KMS_BAD_BLOB);
	assert_int_equal(fake_seen(f.server), 1);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	f.ctx.pair[0].value[0] = '1'; /* another blob, so to speak */
	assert_int_equal(decrypt(&f, soon()), KMS_BAD_BLOB);
	assert_string_equal(f.err.code, "InvalidCiphertext");
	REQUEST(&f, 3, "POST /v1/transit/decrypt/byokfs HTTP/1.1\r\n", AAD);
	assert_int_equal(decrypt(&f, soon()), KMS_DENIED);
	assert_string_equal(f.err.code, "OtherKey");
	assert_wiped(f.secret);
	run_batch(&f, &m, 1); /* one attempt */
	assert_int_equal(m.item[0].err.status, KMS_DOWN); /* not told */
	assert_int_equal(fake_seen(f.server), 8);
	/* The check's version is retired: it proves nothing, now or later. */
	assert_int_equal(decrypt(&f, soon()), KMS_BAD_BLOB);
	assert_int_equal(decrypt(&f, soon()), KMS_BAD_BLOB);
	assert_int_equal(fake_seen(f.server), 11);
	end(&f);
}

static void a_batch_finds_another_key(void **state)
{
	static const struct fake_answer script[] = { OK(OPENED),
		OK("{\"data\":{\"batch_results\":[" FAILED("invalid ciphertext: version is too new") "," FAILED(
		    "cipher: message authentication failed") "]}}"),
		BAD };
	struct fixture f;
	struct many m;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	run_batch(&f, &m, 3);
	assert_int_equal(m.item[0].err.status, KMS_DENIED);
	assert_string_equal(m.item[0].err.code, "OtherKey");
	assert_int_equal(m.item[1].err.status, KMS_BAD_BLOB); /* was not sent */
	assert_int_equal(m.item[2].err.status, KMS_DENIED);
	assert_int_equal(fake_seen(f.server), 3);
	end(&f);
}

/* Sealing alone does not notice: the check is opened when the last proof is old, or the version changes. */
static void nothing_is_sealed_under_another_key(void **state)
{
	static const struct fake_answer script[] = { OK(OPENED), OK(LOOKED("aes256-gcm96")), OK(SEALED), OK(SEALED),
		OK(SEALED_1), BAD,                              /* version 3, then 1 */
		OK(SEALED), OK(LOOKED("aes256-gcm96")), OK(SEALED), BAD, /* after a SIGHUP */
		OK(SEALED), OK(OPENED), OK(SEALED) };
	struct fixture f;

	(void)state;
	begin(&f, script, N(script), false);
	assert_int_equal(decrypt(&f, soon()), KMS_OK);
	assert_int_equal(generate(&f, soon()), KMS_OK);
	assert_int_equal(generate(&f, soon()), KMS_OK);
	assert_int_equal(fake_seen(f.server), 4);
	assert_int_equal(generate(&f, soon()), KMS_DENIED);
	assert_string_equal(f.err.code, "OtherKey");
	assert_wiped(f.secret);
	REQUEST(&f, 5, "POST /v1/transit/decrypt/byokfs HTTP/1.1\r\n", BLOB, AAD);
	assert_int_equal(generate(&f, soon()), KMS_OK);
	assert_int_equal(fake_seen(f.server), 7);
	kms_refresh(f.kms);
	assert_int_equal(generate(&f, soon()), KMS_DENIED);
	assert_int_equal(generate(&f, soon()), KMS_OK);
	assert_int_equal(generate(&f, soon()), KMS_OK);
	assert_int_equal(fake_seen(f.server), 13);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(another_key_in_its_place_is_denied),
		cmocka_unit_test(a_batch_finds_another_key),
		cmocka_unit_test(nothing_is_sealed_under_another_key),
	};

	if (secret_init(true))
		return 1;
	log_setup("test", LOG_LEVEL_ERR, false);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
