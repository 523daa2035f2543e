/* kms_aws: where requests go, and what the errors of AWS mean. Nothing here needs a network. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../src/kms_aws_internal.h"
#include "io.h"
#include "secret.h"

#define N(a)     (sizeof(a) / sizeof((a)[0]))
#define RECORDED "vectors/aws-kms-recorded-answers.json" /* from tests/ or from the top */
#define ARN      "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"

static void clear_env(void)
{
	static const char *const names[] = { "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION",
		"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_CA_BUNDLE" };

	for (size_t i = 0; i < N(names); i++)
		unsetenv(names[i]);
	setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "secret", 1);
	setenv("AWS_CONFIG_FILE", "/nonexistent/config", 1);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials", 1);
}

/* ---- where requests go ---- */

struct place {
	const char *key, *region, *endpoint; /* configured */
	const char *env_region, *env_endpoint;
	const char *url, *host, *path, *signed_region; /* expected; url NULL: refused */
};

static void check_place(const struct place *p)
{
	const struct awscred_params none = { 0 };
	const struct kms_params params = { .key = p->key, .region = p->region, .endpoint = p->endpoint };
	struct aws_endpoint *e = test_calloc(1, sizeof(*e));
	struct awscred *cred = NULL;
	struct kms_err err = { 0 };

	clear_env();
	if (p->env_region)
		setenv("AWS_REGION", p->env_region, 1);
	if (p->env_endpoint)
		setenv("AWS_ENDPOINT_URL_KMS", p->env_endpoint, 1);
	assert_int_equal(awscred_open(&cred, &none), 0);
	if (p->url) {
		assert_int_equal(aws_endpoint_find(e, &params, cred, &err), 0);
		assert_string_equal(e->url, p->url);
		assert_string_equal(e->host, p->host);
		assert_string_equal(e->path, p->path);
		assert_string_equal(e->region, p->signed_region);
		assert_int_equal(e->plain, !strncmp(p->url, "http:", 5));
	} else {
		assert_int_equal(aws_endpoint_find(e, &params, cred, &err), -EINVAL);
		assert_int_equal(err.status, KMS_CONFIG);
		assert_true(strlen(err.message) > 10);
	}
	awscred_close(cred);
	test_free(e);
}

static void test_places(void **state)
{
	static const struct place places[] = {
		{ ARN, NULL, NULL, NULL, NULL, "https://kms.eu-west-1.amazonaws.com/", "kms.eu-west-1.amazonaws.com",
		    "/", "eu-west-1" },
		{ ARN, NULL, NULL, "us-east-1", NULL, "https://kms.eu-west-1.amazonaws.com/",
		    "kms.eu-west-1.amazonaws.com", "/", "eu-west-1" },
		{ ARN, "eu-west-1", NULL, "us-east-1", NULL, "https://kms.eu-west-1.amazonaws.com/",
		    "kms.eu-west-1.amazonaws.com", "/", "eu-west-1" },
		{ "alias/x", "us-east-2", NULL, "us-east-1", NULL, "https://kms.us-east-2.amazonaws.com/",
		    "kms.us-east-2.amazonaws.com", "/", "us-east-2" },
		/* a key is never in another Region than its ARN says */
		{ ARN, "us-east-2", NULL, NULL, NULL, NULL, NULL, NULL, NULL },
		{ "alias/x", NULL, NULL, "us-east-1", NULL, "https://kms.us-east-1.amazonaws.com/",
		    "kms.us-east-1.amazonaws.com", "/", "us-east-1" },
		{ "arn:aws-cn:kms:cn-north-1:1:key/x", NULL, NULL, NULL, NULL,
		    "https://kms.cn-north-1.amazonaws.com.cn/", "kms.cn-north-1.amazonaws.com.cn", "/", "cn-north-1" },
		{ ARN, NULL, NULL, NULL, "http://localhost:4566", "http://localhost:4566/", "localhost:4566", "/",
		    "eu-west-1" },
		{ ARN, NULL, "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com:443/", NULL, "http://localhost:4566",
		    "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com:443/", "vpce-1.kms.eu-west-1.vpce.amazonaws.com",
		    "/", "eu-west-1" },
		{ ARN, NULL, "http://[::1]:80/base/", NULL, NULL, "http://[::1]:80/base/", "[::1]", "/base/",
		    "eu-west-1" },
		{ ARN, NULL, "https://x:80", NULL, NULL, "https://x:80/", "x:80", "/", "eu-west-1" },
		{ "alias/x", NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL },
		{ "arn:aws:kms::1:key/x", NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL },
		{ ARN, "EU WEST", NULL, NULL, NULL, NULL, NULL, NULL, NULL },
		{ ARN, NULL, "localhost:4566", NULL, NULL, NULL, NULL, NULL, NULL },
		{ ARN, NULL, "https://user@host/", NULL, NULL, NULL, NULL, NULL, NULL },
		{ ARN, NULL, "https://host/?x", NULL, NULL, NULL, NULL, NULL, NULL },
		{ ARN, NULL, "https://", NULL, NULL, NULL, NULL, NULL, NULL },
	};

	(void)state;
	for (size_t i = 0; i < N(places); i++)
		check_place(&places[i]);
}

static void test_arns(void **state)
{
	(void)state;
	assert_true(aws_arn_is_key(ARN));
	assert_false(aws_arn_is_key("arn:aws:kms:eu-west-1:1:alias/x"));
	assert_false(aws_arn_is_key("arn:aws:kms:eu-west-1:1:key/"));
	assert_false(aws_arn_is_key("arn:aws:kms"));
	assert_false(aws_arn_is_key("1234abcd-12ab-34cd-56ef-1234567890ab"));
	assert_false(aws_arn_is_key(""));
}

static void test_no_key(void **state)
{
	struct kms_params params = { .provider = "aws", .region = "eu-west-1" };
	struct kms_err err;
	struct kms *k = NULL;

	(void)state;
	assert_int_equal(kms_open(&k, &params, false, &err), -EINVAL);
	assert_string_equal(err.code, "NoKey");
	assert_null(k);
}

/* ---- the table of errors ---- */

static const struct {
	const char *type, *message;
	long http;
	enum kms_status first, later; /* before and after the key has worked */
} rows[] = {
	{ "DisabledException", "is disabled.", 400, KMS_DENIED, KMS_DENIED },
	{ "DisabledException", "is pending deletion.", 409, KMS_DENIED, KMS_DENIED },
	{ "KMSInvalidStateException", "k is pending deletion.", 400, KMS_DENIED, KMS_DENIED },
	{ "KMSInvalidStateException", "k is pending replica deletion.", 400, KMS_DENIED, KMS_DENIED },
	{ "KMSInvalidStateException", "k is pending import.", 400, KMS_DENIED, KMS_DENIED },
	{ "KMSInvalidStateException", "k is unavailable.", 400, KMS_DENIED, KMS_DENIED },
	{ "KMSInvalidStateException", "k is creating.", 400, KMS_DOWN, KMS_DOWN },
	{ "KMSInvalidStateException", "k is updating.", 400, KMS_DOWN, KMS_DOWN },
	{ "KMSInvalidStateException", "The external key store proxy did not respond in time.", 400, KMS_DOWN,
	    KMS_DOWN },
	{ "KMSInvalidStateException", "AWS KMS cannot communicate with the external key store proxy.", 400, KMS_DOWN,
	    KMS_DOWN },
	{ "KMSInvalidStateException", "", 400, KMS_DENIED, KMS_DENIED },
	{ "KMSInvalidStateException", NULL, 400, KMS_DENIED, KMS_DENIED },
	{ "AccessDeniedException", "", 400, KMS_CONFIG, KMS_DENIED },
	{ "NotFoundException", "Invalid arn us-west-2", 400, KMS_CONFIG, KMS_DENIED },
	{ "InvalidGrantTokenException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "KeyUnavailableException", "", 500, KMS_DOWN, KMS_DOWN },
	{ "DependencyTimeoutException", "", 500, KMS_DOWN, KMS_DOWN },
	{ "DependencyTimeoutException", "", 503, KMS_DOWN, KMS_DOWN },
	{ "KMSInternalException", "", 500, KMS_DOWN, KMS_DOWN },
	{ "InternalFailure", "", 500, KMS_DOWN, KMS_DOWN },
	{ "ServiceUnavailable", "", 503, KMS_DOWN, KMS_DOWN },
	{ "ThrottlingException", "", 400, KMS_BUSY, KMS_BUSY },
	{ "TooManyRequestsException", "", 429, KMS_BUSY, KMS_BUSY },
	{ "LimitExceededException", "", 400, KMS_BUSY, KMS_BUSY },
	{ "InvalidCiphertextException", "", 400, KMS_BAD_BLOB, KMS_BAD_BLOB },
	{ "IncorrectKeyException", "", 400, KMS_BAD_BLOB, KMS_BAD_BLOB },
	{ "InvalidKeyUsageException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "UnsupportedOperationException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "InvalidArnException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "ValidationException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "SerializationException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "UnknownOperationException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "ExpiredTokenException", "", 403, KMS_CONFIG, KMS_CONFIG },
	{ "UnrecognizedClientException", "", 403, KMS_CONFIG, KMS_CONFIG },
	{ "InvalidClientTokenId", "", 403, KMS_CONFIG, KMS_CONFIG },
	{ "MissingAuthenticationToken", "", 403, KMS_CONFIG, KMS_CONFIG },
	{ "InvalidSignatureException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "SignatureDoesNotMatch", "", 403, KMS_CONFIG, KMS_CONFIG },
	{ "IncompleteSignature", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "RequestExpired", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "RequestTimeTooSkewed", "", 403, KMS_CONFIG, KMS_CONFIG },
	{ "DryRunOperationException", "", 412, KMS_CONFIG, KMS_CONFIG },
	{ "CustomKeyStoreInvalidStateException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "XksProxyUriUnreachableException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "CloudHsmClusterNotActiveException", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "SomethingNew", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "SomethingNew", "", 500, KMS_DOWN, KMS_DOWN },
	{ "", "", 403, KMS_CONFIG, KMS_CONFIG },
	{ NULL, NULL, 404, KMS_CONFIG, KMS_CONFIG },
	{ NULL, NULL, 504, KMS_DOWN, KMS_DOWN },
	{ NULL, NULL, 429, KMS_BUSY, KMS_BUSY },
	{ "com.amazonaws.kms#DisabledException", "", 400, KMS_DENIED, KMS_DENIED },
	{ "DisabledException:http://internal.amazon.com/coral/#Other", "", 400, KMS_DENIED, KMS_DENIED },
	{ "com.amazonaws.kms#AccessDeniedException:http://x/", "", 400, KMS_CONFIG, KMS_DENIED },
	{ "DisabledExceptionX", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "Disabled", "", 400, KMS_CONFIG, KMS_CONFIG },
	{ "#", "", 500, KMS_DOWN, KMS_DOWN },
	{ ":", "", 500, KMS_DOWN, KMS_DOWN },
};

static void test_error_table(void **state)
{
	(void)state;
	for (size_t i = 0; i < N(rows); i++) {
		assert_int_equal(kms_aws_classify(rows[i].type, rows[i].message, rows[i].http, false), rows[i].first);
		assert_int_equal(kms_aws_classify(rows[i].type, rows[i].message, rows[i].http, true), rows[i].later);
	}
}

/* What the real service was recorded saying, for a key that had worked. */
static enum kms_status recorded_class(const char *code, const char *message)
{
	static const struct {
		const char *code;
		enum kms_status status;
	} expected[] = {
		{ "ValidationException", KMS_CONFIG },
		{ "NotFoundException", KMS_DENIED },
		{ "KMSInvalidSignatureException", KMS_CONFIG },
		{ "InvalidKeyUsageException", KMS_CONFIG },
		{ "KMSInvalidMacException", KMS_CONFIG },
		{ "IncorrectKeyException", KMS_BAD_BLOB },
		{ "InvalidCiphertextException", KMS_BAD_BLOB },
		{ "UnsupportedOperationException", KMS_CONFIG },
		{ "TagException", KMS_CONFIG },
		{ "DisabledException", KMS_DENIED },
		{ "LimitExceededException", KMS_BUSY },
		{ "DryRunOperationException", KMS_CONFIG },
		{ "KMSInvalidStateException", KMS_DENIED },
	};

	for (size_t i = 0; i < N(expected); i++)
		if (!strcmp(code, expected[i].code))
			return expected[i].status;
	fail_msg("'%s' (%s) was recorded, and no class is expected for it", code, message);
	return KMS_OK;
}

static unsigned walk_recorded(json_t *json)
{
	json_t *error = json_object_get(json, "Error"), *meta = json_object_get(json, "ResponseMetadata"), *value;
	const char *code = jsonio_str(error, "Code"), *message = jsonio_str(error, "Message"), *key;
	unsigned n = 0;
	size_t i;

	if (code) {
		long http = (long)json_integer_value(json_object_get(meta, "HTTPStatusCode"));

		assert_int_equal(http, 400);
		assert_int_equal(kms_aws_classify(code, message, http, true), recorded_class(code, message));
		n++;
	}
	json_object_foreach(json, key, value) n += walk_recorded(value);
	json_array_foreach(json, i, value) n += walk_recorded(value);
	return n;
}

static void test_recorded_answers(void **state)
{
	char *text = NULL;
	json_t *json;
	size_t len;

	(void)state;
	assert_int_equal(
	    io_read_file(AT_FDCWD, access("vectors", F_OK) ? "tests/" RECORDED : RECORDED, 1048576, &text, &len), 0);
	json = json_loadb(text, len, 0, NULL);
	assert_non_null(json);
	assert_int_equal(walk_recorded(json), 94);
	json_decref(json);
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_places),
		cmocka_unit_test(test_arns),
		cmocka_unit_test(test_no_key),
		cmocka_unit_test(test_error_table),
		cmocka_unit_test(test_recorded_answers),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("kms_aws_error", tests, NULL, NULL);
}
