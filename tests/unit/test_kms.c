/* kms: what the wrapper checks, retries and counts, whatever the provider does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "io.h"
#include "kms_provider.h"
#include "secret.h"

#define KEY "arn:aws:kms:eu-west-1:111122223333:key/1234"

/* A provider that does as told. */
struct script {
	enum kms_status answer[8]; /* one per call */
	enum kms_status then;      /* after the last */
	unsigned calls, closed, refreshed;
	size_t bloblen;
	const char *key;
	uint64_t deadline; /* of the last call */
};

static enum kms_status next(struct script *s, uint64_t deadline, struct kms_err *err)
{
	enum kms_status status = s->calls < 8 ? s->answer[s->calls] : s->then;

	s->calls++;
	s->deadline = deadline;
	if (status != KMS_OK)
		snprintf(err->code, sizeof(err->code), "Code%d", (int)status);
	return status;
}

static void fill_used(const struct script *s, struct kms_used *used)
{
	snprintf(used->key, sizeof(used->key), "%s", s->key ? s->key : KEY);
	snprintf(used->request_id, sizeof(used->request_id), "r-1");
}

static enum kms_status fake_generate(void *priv, const struct context *ctx, uint64_t deadline,
    uint8_t secret[static 32], struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	struct script *s = priv;

	(void)ctx;
	memset(secret, 0x5a, 32);
	blob->len = s->bloblen ? s->bloblen : 184;
	fill_used(s, used);
	return next(s, deadline, err);
}

static enum kms_status fake_decrypt(void *priv, const char *key, const struct context *ctx, const uint8_t *blob,
    size_t len, uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	struct script *s = priv;

	(void)ctx;
	(void)blob;
	(void)len;
	assert_string_equal(key, KEY);
	memset(secret, 0x5a, 32);
	fill_used(s, used);
	return next(s, deadline, err);
}

static enum kms_status fake_encrypt(void *priv, const struct context *ctx, const uint8_t secret[static 32],
    uint64_t deadline, struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	struct script *s = priv;

	(void)ctx;
	assert_int_equal(secret[31], 0x77);
	blob->len = 100;
	fill_used(s, used);
	return next(s, deadline, err);
}

static enum kms_status fake_describe(
    void *priv, const char *key, uint64_t deadline, struct kms_description *d, struct kms_err *err)
{
	struct script *s = priv;

	snprintf(d->arn, sizeof(d->arn), "%s", key);
	return next(s, deadline, err);
}

static void fake_close(void *priv)
{
	((struct script *)priv)->closed++;
}

static void fake_refresh(void *priv)
{
	((struct script *)priv)->refreshed++;
}

static const struct kms_provider fake = { .name = "fake",
	.number = 9,
	.close = fake_close,
	.generate = fake_generate,
	.decrypt = fake_decrypt,
	.encrypt = fake_encrypt,
	.describe = fake_describe,
	.refresh = fake_refresh };

struct fixture {
	struct kms *kms;
	struct script script;
	struct context ctx;
	uint8_t secret[32];
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
};

static int setup(void **state)
{
	struct fixture *f = test_calloc(1, sizeof(*f));

	*state = f;
	return kms_open_with(&f->kms, &fake, &f->script, KEY, 3000);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	kms_close(f->kms);
	assert_int_equal(f->script.closed, 1);
	test_free(f);
	return 0;
}

static enum kms_status generate(struct fixture *f, uint64_t ms)
{
	return kms_generate(f->kms, &f->ctx, io_boot_ms() + ms, f->secret, &f->blob, &f->used, &f->err);
}

static void assert_wiped(const struct fixture *f)
{
	static const uint8_t zero[32];

	assert_memory_equal(f->secret, zero, 32);
}

static void test_success(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(generate(f, 1000), KMS_OK);
	assert_int_equal(f->secret[0], 0x5a);
	assert_int_equal(f->blob.len, 184);
	assert_string_equal(f->used.key, KEY);
	assert_string_equal(kms_key(f->kms), KEY);
	assert_string_equal(kms_provider_name(f->kms), "fake");
	assert_int_equal(kms_provider_number(f->kms), 9);
	memset(f->secret, 0, 32);
	assert_int_equal(
	    kms_decrypt(f->kms, &f->ctx, f->blob.bytes, 184, io_boot_ms() + 1000, f->secret, &f->used, &f->err),
	    KMS_OK);
	assert_int_equal(f->secret[31], 0x5a);
	memset(f->secret, 0x77, 32);
	assert_int_equal(
	    kms_encrypt(f->kms, &f->ctx, f->secret, io_boot_ms() + 1000, &f->blob, &f->used, &f->err), KMS_OK);
	assert_int_equal(f->blob.len, 100);
	kms_refresh(f->kms);
	assert_int_equal(f->script.refreshed, 1);
}

static void test_final_errors_are_not_retried(void **state)
{
	static const enum kms_status final[] = { KMS_DENIED, KMS_BAD_BLOB, KMS_CONFIG };
	struct fixture *f = *state;

	for (size_t i = 0; i < 3; i++) {
		f->script = (struct script){ .answer = { final[i] } };
		assert_int_equal(generate(f, 1000), final[i]);
		assert_int_equal(f->script.calls, 1);
		assert_int_equal(f->err.status, final[i]);
		assert_int_equal(f->blob.len, 0);
		assert_wiped(f);
	}
}

static void test_passing_errors_are_retried(void **state)
{
	struct fixture *f = *state;

	f->script = (struct script){ .answer = { KMS_BUSY, KMS_DOWN } };
	assert_int_equal(generate(f, 5000), KMS_OK);
	assert_int_equal(f->script.calls, 3);
	assert_int_equal(f->secret[5], 0x5a);
	assert_int_equal(f->err.status, KMS_OK);
	f->script = (struct script){ .answer = { KMS_BUSY, KMS_DENIED } };
	assert_int_equal(generate(f, 5000), KMS_DENIED);
	assert_int_equal(f->script.calls, 2);
	assert_wiped(f);
}

/* A pause never takes the rest of the deadline: whoever answers in its last part is asked once more. */
static void test_retries_go_on_to_the_deadline(void **state)
{
	struct fixture *f = *state;
	uint64_t begun = io_boot_ms();

	f->script = (struct script){ .then = KMS_DOWN };
	for (size_t i = 0; i < 8; i++)
		f->script.answer[i] = KMS_DOWN;
	assert_int_equal(generate(f, 1500), KMS_DOWN);
	assert_true(io_boot_ms() - begun >= 1500 - 2 * 50 - 1); /* twice the least time for an attempt */
}

static void test_deadline_ends_retries(void **state)
{
	struct fixture *f = *state;

	f->script = (struct script){ .answer = { KMS_DOWN, KMS_DOWN, KMS_DOWN, KMS_DOWN, KMS_DOWN, KMS_DOWN, KMS_DOWN,
		                         KMS_DOWN } };
	assert_int_equal(generate(f, 0), KMS_DOWN);
	assert_int_equal(f->script.calls, 1);
	assert_string_equal(f->err.code, "Code4");
	assert_wiped(f);
}

static void test_attempt_is_bounded_by_request_timeout(void **state)
{
	struct fixture *f = *state;
	uint64_t now = io_boot_ms();

	assert_int_equal(generate(f, 60000), KMS_OK);
	assert_true(f->script.deadline >= now + 3000 && f->script.deadline <= io_boot_ms() + 3000);
	now = io_boot_ms();
	assert_int_equal(generate(f, 1000), KMS_OK);
	assert_true(f->script.deadline <= io_boot_ms() + 1000);
	assert_true(kms_deadline(f->kms) >= now + 3000);
}

static void test_other_key_is_no_success(void **state)
{
	struct fixture *f = *state;

	f->script = (struct script){ .key = KEY "5" };
	assert_int_equal(generate(f, 1000), KMS_CONFIG);
	assert_string_equal(f->err.code, "UnexpectedKey");
	assert_wiped(f);
	assert_int_equal(f->blob.len, 0);
	f->script = (struct script){ .key = "" };
	f->secret[0] = 1;
	assert_int_equal(
	    kms_decrypt(f->kms, &f->ctx, f->blob.bytes, 184, io_boot_ms() + 1000, f->secret, &f->used, &f->err),
	    KMS_CONFIG);
	assert_wiped(f);
}

static void test_blob_lengths(void **state)
{
	struct fixture *f = *state;

	f->script = (struct script){ .bloblen = KMS_BLOB_MAX + 1 };
	assert_int_equal(generate(f, 1000), KMS_CONFIG);
	assert_string_equal(f->err.code, "UnexpectedBlob");
	assert_wiped(f);
	f->script = (struct script){ .bloblen = KMS_BLOB_MAX };
	assert_int_equal(generate(f, 1000), KMS_OK);
	f->script.calls = 0;
	assert_int_equal(
	    kms_decrypt(f->kms, &f->ctx, f->blob.bytes, 0, io_boot_ms() + 1000, f->secret, &f->used, &f->err),
	    KMS_BAD_BLOB);
	assert_int_equal(kms_decrypt(f->kms, &f->ctx, f->blob.bytes, KMS_BLOB_MAX + 1, io_boot_ms() + 1000, f->secret,
	                     &f->used, &f->err),
	    KMS_BAD_BLOB);
	assert_int_equal(kms_reencrypt(f->kms, KEY, &f->ctx, f->blob.bytes, 0, KEY, &f->ctx, io_boot_ms() + 1000,
	                     &f->blob, &f->used, &f->err),
	    KMS_BAD_BLOB);
	assert_int_equal(f->script.calls, 0);
	assert_wiped(f);
}

static void test_missing_call(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(kms_reencrypt(f->kms, KEY, &f->ctx, f->blob.bytes, 9, KEY, &f->ctx, io_boot_ms() + 1000,
	                     &f->blob, &f->used, &f->err),
	    KMS_CONFIG);
	assert_string_equal(f->err.code, "Unsupported");
}

static void test_broken_provider(void **state)
{
	struct fixture *f = *state;

	f->script.answer[0] = (enum kms_status)77;
	assert_int_equal(generate(f, 1000), KMS_CONFIG);
	assert_string_equal(f->err.code, "BadProvider");
}

static void test_stats(void **state)
{
	struct fixture *f = *state;
	struct kms_stats st;

	f->script = (struct script){ .answer = { KMS_BUSY, KMS_OK, KMS_DENIED, KMS_BAD_BLOB, KMS_CONFIG } };
	for (int i = 0; i < 4; i++)
		(void)generate(f, 5000);
	kms_stats(f->kms, &st);
	assert_int_equal(st.calls, 5);
	assert_int_equal(st.errors, 4);
	assert_int_equal(st.busy, 1);
	assert_int_equal(st.denied, 1);
	assert_int_equal(st.config, 1);
	assert_int_equal(st.down, 0);
	assert_true(st.latency_ms_max <= st.latency_ms_sum);
}

static void test_describe(void **state)
{
	struct fixture *f = *state;
	struct kms_description *d = test_malloc(sizeof(*d));

	assert_int_equal(kms_describe(f->kms, "alias/x", io_boot_ms() + 1000, d, &f->err), KMS_OK);
	assert_string_equal(d->arn, "alias/x");
	f->script.calls = 0;
	assert_int_equal(kms_describe(f->kms, "", io_boot_ms() + 1000, d, &f->err), KMS_CONFIG);
	test_free(d);
}

static void test_error_texts(void **state)
{
	struct kms_err err = { .status = KMS_DENIED,
		.http = 400,
		.code = "DisabledException",
		.request_id = "1f2e",
		.message = "is disabled." };
	char text[200];

	(void)state;
	kms_err_text(text, sizeof(text), &err);
	assert_string_equal(text, "KMS said DisabledException (request 1f2e): is disabled.");
	err.request_id[0] = err.message[0] = '\0';
	kms_err_text(text, sizeof(text), &err);
	assert_string_equal(text, "KMS said DisabledException (HTTP status 400)");
	err = (struct kms_err){ .status = KMS_DOWN, .code = "Timeout", .message = "no answer" };
	kms_err_text(text, sizeof(text), &err);
	assert_string_equal(text, "KMS unreachable (Timeout): no answer");
	kms_err_text(text, 10, &err);
	assert_string_equal(text, "KMS unrea");
	err = (struct kms_err){ 0 };
	kms_err_text(text, sizeof(text), &err);
	assert_string_equal(text, "no error");
	for (int i = KMS_OK; i <= KMS_CONFIG; i++)
		assert_string_not_equal(kms_status_name((enum kms_status)i), "unknown");
	assert_string_equal(kms_status_name((enum kms_status)(KMS_CONFIG + 1)), "unknown");
}

static void test_provider_names(void **state)
{
	static const char *const name[] = { NULL, "aws", "vault", "keyfile", "pkcs11" };

	(void)state;
	for (uint8_t i = 1; i <= 4; i++) {
		assert_int_equal(kms_provider_from_name(name[i]), i);
		assert_string_equal(kms_provider_to_name(i), name[i]);
	}
	assert_int_equal(kms_provider_from_name("fake"), 0);
	assert_null(kms_provider_to_name(0));
	assert_null(kms_provider_to_name(5));
}

static void test_key_hash(void **state)
{
	uint8_t hash[8];

	(void)state;
	kms_key_hash(hash, "abc"); /* FIPS 180-2, appendix B.1 */
	assert_memory_equal(hash, "\xba\x78\x16\xbf\x8f\x01\xcf\xea", 8);
}

static void test_refused_parameters(void **state)
{
	static const char *const bad[] = { NULL, "", "fake", "nonesuch" };
	struct kms_params params = { 0 };
	struct kms_err err;
	struct kms *k = NULL;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		params.provider = bad[i];
		assert_int_equal(kms_open(&k, &params, false, &err), -EINVAL);
		assert_int_equal(err.status, KMS_CONFIG);
		assert_string_equal(err.code, "UnknownProvider");
		assert_null(k);
	}
	assert_int_equal(kms_open_with(&k, &fake, NULL, "", 0), -EINVAL);
	assert_int_equal(kms_open_with(&k, &fake, NULL, NULL, 0), -EINVAL);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH(test_success),
		WITH(test_final_errors_are_not_retried),
		WITH(test_passing_errors_are_retried),
		WITH(test_retries_go_on_to_the_deadline),
		WITH(test_deadline_ends_retries),
		WITH(test_attempt_is_bounded_by_request_timeout),
		WITH(test_other_key_is_no_success),
		WITH(test_blob_lengths),
		WITH(test_missing_call),
		WITH(test_broken_provider),
		WITH(test_stats),
		WITH(test_describe),
		cmocka_unit_test(test_error_texts),
		cmocka_unit_test(test_provider_names),
		cmocka_unit_test(test_key_hash),
		cmocka_unit_test(test_refused_parameters),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("kms", tests, NULL, NULL);
}
