/* kms_aws: requests as AWS wants them, answers as AWS (and what stands in its way) gives them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <time.h>

#include "../../src/kms_aws_internal.h"
#include "fake_server.h"
#include "io.h"
#include "log.h"
#include "secret.h"

#define N(a)            (sizeof(a) / sizeof((a)[0]))
#define ARN             "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
#define ARN2            "arn:aws:kms:eu-west-1:111122223333:key/ffffffff-12ab-34cd-56ef-1234567890ab"
#define SECRET_1_TO_32  "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
#define SECRET_31_BYTES "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHw=="
#define MATERIAL        "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define GENERATED                                                                                \
	"{\"CiphertextBlob\":\"c2VhbGVk\",\"Plaintext\":\"" SECRET_1_TO_32 "\",\"KeyId\":\"" ARN \
	"\",\"KeyMaterialId\":\"" MATERIAL "\",\"SomethingNew\":[1]}"
#define DECRYPTED \
	"{\"Plaintext\":\"" SECRET_1_TO_32 "\",\"KeyId\":\"" ARN "\",\"EncryptionAlgorithm\":\"SYMMETRIC_DEFAULT\"}"
#define ERROR(type, message) "{\"__type\":\"" type "\",\"message\":\"" message "\"}"

struct fixture {
	struct fake *server;
	struct kms *kms;
	struct context ctx;
	uint8_t secret[32];
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
};

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

static int open_key(struct fixture *f, const char *key, bool resolve)
{
	char endpoint[64];
	struct kms_params params = { .provider = "aws",
		.key = key,
		.endpoint = endpoint,
		.region = "eu-west-1",
		.proxy = "",
		.request_timeout_ms = 5000,
		.user_agent = "byokfs/test" };

	snprintf(endpoint, sizeof(endpoint), "http://127.0.0.1:%u", f->server->port);
	return kms_open(&f->kms, &params, resolve, &f->err);
}

static void begin(struct fixture *f, const struct fake_answer *script, size_t n)
{
	clear_env();
	memset(f, 0, sizeof(*f));
	f->server = fake_start(script, n);
	assert_non_null(f->server);
	f->ctx.n = 2;
	strcpy(f->ctx.pair[0].name, "byokfs-store");
	strcpy(f->ctx.pair[0].value, "00ff");
	strcpy(f->ctx.pair[1].name, "tenant");
	strcpy(f->ctx.pair[1].value, "a \"b\" \\c");
	assert_int_equal(open_key(f, ARN, true), 0);
	assert_int_equal(fake_seen(f->server), 0); /* an ARN needs no network */
}

static void end(struct fixture *f)
{
	kms_close(f->kms);
	fake_stop(f->server);
}

static enum kms_status generate(struct fixture *f, uint64_t ms)
{
	return kms_generate(f->kms, &f->ctx, io_boot_ms() + ms, f->secret, &f->blob, &f->used, &f->err);
}

static enum kms_status decrypt(struct fixture *f, uint64_t ms)
{
	return kms_decrypt(
	    f->kms, &f->ctx, (const uint8_t *)"sealed", 6, io_boot_ms() + ms, f->secret, &f->used, &f->err);
}

static void assert_secret(const struct fixture *f)
{
	for (int i = 0; i < 32; i++)
		assert_int_equal(f->secret[i], i + 1);
}

static void assert_wiped(const struct fixture *f)
{
	static const uint8_t zero[32];

	assert_memory_equal(f->secret, zero, 32);
}

/* The i-th request has this target, and this body whatever the order of members. */
static void assert_request(struct fixture *f, unsigned i, const char *target, const char *body)
{
	char *seen = fake_request(f->server, i), line[80];
	json_t *got, *want = json_loads(body, 0, NULL);
	const char *text = strstr(seen, "\r\n\r\n") + 4;

	assert_memory_equal(seen, "POST / HTTP/1.1\r\n", 17);
	snprintf(line, sizeof(line), "\r\nX-Amz-Target: TrentService.%s\r\n", target);
	assert_non_null(strstr(seen, line));
	snprintf(line, sizeof(line), "\r\nHost: 127.0.0.1:%u\r\n", f->server->port);
	assert_non_null(strstr(seen, line));
	assert_non_null(strstr(seen, "\r\nContent-Type: application/x-amz-json-1.1\r\n"));
	got = jsonio_parse(text, strlen(text), 65536);
	assert_non_null(want);
	assert_true(json_equal(got, want));
	json_decref(got);
	json_decref(want);
	free(seen);
}

#define CONTEXT "{\"byokfs-store\":\"00ff\",\"tenant\":\"a \\\"b\\\" \\\\c\"}"

/* ---- operations ---- */

static void test_generate(void **state)
{
	static const struct fake_answer script[] = {
		{ .status = 200, .headers = "x-amzn-RequestId: r-77\r\n", .body = GENERATED }
	};
	struct fixture f;

	(void)state;
	begin(&f, script, 1);
	assert_int_equal(generate(&f, 5000), KMS_OK);
	assert_secret(&f);
	assert_int_equal(f.blob.len, 6);
	assert_memory_equal(f.blob.bytes, "sealed", 6);
	assert_string_equal(f.used.key, ARN);
	assert_string_equal(f.used.request_id, "r-77");
	assert_int_equal(f.used.material[1], 0x11);
	assert_request(
	    &f, 0, "GenerateDataKey", "{\"KeyId\":\"" ARN "\",\"NumberOfBytes\":32,\"EncryptionContext\":" CONTEXT "}");
	end(&f);
}

static void test_decrypt_and_encrypt(void **state)
{
	static const struct fake_answer script[] = { { .status = 200, .body = DECRYPTED },
		{ .status = 200, .body = "{\"CiphertextBlob\":\"c2VhbGVk\",\"KeyId\":\"" ARN "\"}" } };
	struct fixture f;

	(void)state;
	begin(&f, script, 2);
	f.ctx.n = 0;
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_secret(&f);
	assert_request(&f, 0, "Decrypt", "{\"KeyId\":\"" ARN "\",\"CiphertextBlob\":\"c2VhbGVk\"}");
	f.ctx.n = 2;
	assert_int_equal(kms_encrypt(f.kms, &f.ctx, f.secret, io_boot_ms() + 5000, &f.blob, &f.used, &f.err), KMS_OK);
	assert_memory_equal(f.blob.bytes, "sealed", 6);
	assert_request(&f, 1, "Encrypt",
	    "{\"KeyId\":\"" ARN "\",\"Plaintext\":\"" SECRET_1_TO_32 "\",\"EncryptionContext\":" CONTEXT "}");
	assert_int_equal(fake_connections(f.server), 1);
	end(&f);
}

static enum kms_status reencrypt(struct fixture *f)
{
	return kms_reencrypt(f->kms, ARN, &f->ctx, (const uint8_t *)"sealed", 6, ARN2, &f->ctx, io_boot_ms() + 5000,
	    &f->blob, &f->used, &f->err);
}

static void test_reencrypt(void **state)
{
	static const struct fake_answer script[] = {
		{ .status = 200,
		    .body = "{\"CiphertextBlob\":\"b3RoZXI=\",\"SourceKeyId\":\"" ARN "\",\"KeyId\":\"" ARN2
		            "\",\"DestinationKeyMaterialId\":\"" MATERIAL "\"}" },
		{ .status = 200,
		    .body = "{\"CiphertextBlob\":\"b3RoZXI=\",\"SourceKeyId\":\"" ARN2 "\",\"KeyId\":\"" ARN2 "\"}" },
		{ .status = 200,
		    .body = "{\"CiphertextBlob\":\"b3RoZXI=\",\"SourceKeyId\":\"" ARN "\",\"KeyId\":\"" ARN "\"}" }
	};
	struct fixture f;

	(void)state;
	begin(&f, script, 3);
	assert_int_equal(reencrypt(&f), KMS_OK);
	assert_memory_equal(f.blob.bytes, "other", 5);
	assert_string_equal(f.used.key, ARN2);
	assert_int_equal(f.used.material[15], 0xff);
	assert_request(&f, 0, "ReEncrypt",
	    "{\"SourceKeyId\":\"" ARN "\",\"DestinationKeyId\":\"" ARN2
	    "\",\"CiphertextBlob\":\"c2VhbGVk\",\"SourceEncryptionContext\":" CONTEXT
	    ",\"DestinationEncryptionContext\":" CONTEXT "}");
	assert_int_equal(reencrypt(&f), KMS_CONFIG); /* opened with another key */
	assert_string_equal(f.err.code, "UnexpectedKey");
	assert_int_equal(reencrypt(&f), KMS_CONFIG); /* sealed under another key */
	assert_string_equal(f.err.code, "UnexpectedKey");
	end(&f);
}

/* Observes a call: how its first attempt ended. Later ones may have too little time left for more than a timeout. */
static void first_error(void *arg, const struct kms_event *event)
{
	struct kms_err *first = arg;

	if (!*first->code)
		*first = *event->err;
}

#define METADATA(arn, state)                                                     \
	"{\"KeyMetadata\":{\"Arn\":\"" arn "\",\"KeyState\":\"" state            \
	"\",\"KeyUsage\":\"ENCRYPT_DECRYPT\",\"KeySpec\":\"SYMMETRIC_DEFAULT\"," \
	"\"MultiRegion\":true,\"CreationDate\":1.7e9}}"

static void test_describe(void **state)
{
	static const struct fake_answer script[] = { { .status = 200, .body = METADATA(ARN, "Disabled") },
		{ .status = 200, .body = "{}" } };
	struct kms_description *d = test_malloc(sizeof(*d));
	struct kms_err malformed = { .code = "" };
	struct fixture f;

	(void)state;
	begin(&f, script, 2);
	assert_int_equal(kms_describe(f.kms, "alias/x", io_boot_ms() + 5000, d, &f.err), KMS_OK);
	assert_string_equal(d->arn, ARN);
	assert_string_equal(d->state, "Disabled");
	assert_string_equal(d->usage, "ENCRYPT_DECRYPT");
	assert_string_equal(d->spec, "SYMMETRIC_DEFAULT");
	assert_string_equal(d->region, "eu-west-1");
	assert_true(d->multi_region);
	assert_request(&f, 0, "DescribeKey", "{\"KeyId\":\"alias/x\"}");
	kms_observe(f.kms, first_error, &malformed);
	assert_int_equal(kms_describe(f.kms, "alias/x", io_boot_ms() + 500, d, &f.err), KMS_DOWN);
	assert_string_equal(malformed.code, "MalformedAnswer");
	test_free(d);
	end(&f);
}

static void test_alias_is_pinned(void **state)
{
	static const struct fake_answer script[] = { { .status = 200, .body = METADATA(ARN, "Enabled") },
		{ .status = 200, .body = GENERATED } };
	struct fixture f;

	(void)state;
	begin(&f, script, 2);
	kms_close(f.kms);
	assert_int_equal(open_key(&f, "alias/customer", true), 0);
	assert_string_equal(kms_key(f.kms), ARN);
	assert_request(&f, 0, "DescribeKey", "{\"KeyId\":\"alias/customer\"}");
	assert_int_equal(generate(&f, 5000), KMS_OK);
	assert_request(
	    &f, 1, "GenerateDataKey", "{\"KeyId\":\"" ARN "\",\"NumberOfBytes\":32,\"EncryptionContext\":" CONTEXT "}");
	kms_close(f.kms);
	assert_int_equal(open_key(&f, "alias/customer", false), 0);
	assert_string_equal(kms_key(f.kms), "alias/customer");
	assert_int_equal(fake_seen(f.server), 2);
	end(&f);
}

static void test_alias_that_cannot_be_resolved(void **state)
{
	static const struct fake_answer script[] = { { .status = 400,
		                                         .body = ERROR("NotFoundException", "Alias is not found.") },
		{ .status = 400, .body = ERROR("DisabledException", "x") } };
	struct fixture f;
	struct kms *open;

	(void)state;
	begin(&f, script, 2);
	open = f.kms;
	assert_int_equal(open_key(&f, "alias/none", true), -EINVAL);
	assert_string_equal(f.err.code, "NotFoundException");
	assert_int_equal(open_key(&f, "alias/none", true), -EACCES);
	assert_int_equal(f.err.status, KMS_DENIED);
	f.kms = open;
	end(&f);
}

/* ---- answers that are no success ---- */

static void test_hostile_successes(void **state)
{
	static const struct {
		const char *body;
		enum kms_status status;
		const char *code;
	} cases[] = {
		{ "garbage", KMS_DOWN, "MalformedAnswer" },
		{ "<html>Please log in</html>", KMS_DOWN, "MalformedAnswer" },
		{ "", KMS_DOWN, "MalformedAnswer" },
		{ "[]", KMS_DOWN, "MalformedAnswer" },
		{ "{\"a\":1,\"a\":2}", KMS_DOWN, "MalformedAnswer" },
		{ "{}", KMS_CONFIG, "UnexpectedKey" },
		{ "{\"KeyId\":\"" ARN "\"}", KMS_CONFIG, "UnexpectedBlob" },
		{ "{\"CiphertextBlob\":\"c2VhbGVk\",\"Plaintext\":\"" SECRET_31_BYTES "\",\"KeyId\":\"" ARN "\"}",
		    KMS_CONFIG, "UnexpectedPlaintext" },
		{ "{\"CiphertextBlob\":\"c2VhbGVk\",\"Plaintext\":\"AAAA" SECRET_1_TO_32 "\",\"KeyId\":\"" ARN "\"}",
		    KMS_CONFIG, "UnexpectedPlaintext" },
		{ "{\"CiphertextBlob\":\"c2VhbGVk\",\"Plaintext\":7,\"KeyId\":\"" ARN "\"}", KMS_CONFIG,
		    "UnexpectedPlaintext" },
		{ "{\"CiphertextBlob\":\"\",\"Plaintext\":\"" SECRET_1_TO_32 "\",\"KeyId\":\"" ARN "\"}", KMS_CONFIG,
		    "UnexpectedBlob" },
		{ "{\"CiphertextBlob\":\"!!!!\",\"Plaintext\":\"" SECRET_1_TO_32 "\",\"KeyId\":\"" ARN "\"}",
		    KMS_CONFIG, "UnexpectedBlob" },
		{ "{\"CiphertextBlob\":\"c2VhbGVk\",\"Plaintext\":\"" SECRET_1_TO_32 "\",\"KeyId\":\"" ARN2 "\"}",
		    KMS_CONFIG, "UnexpectedKey" },
		{ "{\"CiphertextBlob\":\"c2VhbGVk\",\"Plaintext\":\"" SECRET_1_TO_32 "\"}", KMS_CONFIG,
		    "UnexpectedKey" },
	};
	struct fake_answer script[1] = { { .status = 200 } };
	struct fixture f;

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		struct kms_err first = { .code = "" };

		script[0].body = cases[i].body;
		begin(&f, script, 1);
		memset(f.secret, 9, 32);
		kms_observe(f.kms, first_error, &first);
		assert_int_not_equal(generate(&f, 500), KMS_OK);
		assert_int_equal(first.status, cases[i].status);
		assert_string_equal(first.code, cases[i].code);
		assert_wiped(&f);
		assert_int_equal(f.blob.len, 0);
		end(&f);
	}
}

static void test_decrypt_of_something_else(void **state)
{
	static const struct fake_answer script[] = {
		{ .status = 200, .body = "{\"Plaintext\":\"" SECRET_31_BYTES "\",\"KeyId\":\"" ARN "\"}" },
		{ .status = 200, .body = "{\"Plaintext\":\"" SECRET_1_TO_32 "\",\"KeyId\":\"" ARN2 "\"}" }
	};
	struct fixture f;

	(void)state;
	begin(&f, script, 2);
	assert_int_equal(decrypt(&f, 5000), KMS_BAD_BLOB);
	assert_string_equal(f.err.code, "UnexpectedPlaintext");
	assert_int_equal(decrypt(&f, 5000), KMS_CONFIG);
	assert_string_equal(f.err.code, "UnexpectedKey");
	assert_wiped(&f);
	end(&f);
}

static void test_errors_as_they_come(void **state)
{
	static const struct {
		int http;
		const char *headers, *body;
		enum kms_status status;
		const char *code;
	} cases[] = {
		{ 400, NULL, ERROR("DisabledException", "is disabled."), KMS_DENIED, "DisabledException" },
		{ 400, NULL, "{\"__type\":\"com.amazonaws.kms#DisabledException\",\"Message\":\"is disabled.\"}",
		    KMS_DENIED, "DisabledException" },
		{ 409, NULL, ERROR("DisabledException:http://x/#y", "is disabled."), KMS_DENIED, "DisabledException" },
		{ 400, "x-amzn-ErrorType: DisabledException:http://x/\r\n", "{\"message\":\"is disabled.\"}",
		    KMS_DENIED, "DisabledException" },
		{ 400, "x-amzn-ErrorType: DisabledException\r\n", "", KMS_DENIED, "DisabledException" },
		{ 403, "Content-Type: text/xml\r\n", "<Error><Code>AccessDenied</Code></Error>", KMS_CONFIG,
		    "HTTP403" },
		{ 403, "Content-Type: text/html\r\n", "<html>no</html>", KMS_CONFIG, "HTTP403" },
		{ 302, "Location: http://portal/\r\n", "", KMS_CONFIG, "HTTP302" },
		{ 502, NULL, "<html>bad gateway</html>", KMS_DOWN, "HTTP502" },
		{ 429, NULL, "", KMS_BUSY, "HTTP429" },
		{ 400, NULL, "{\"__type\":\"InvalidCiphertextException\"}", KMS_BAD_BLOB,
		    "InvalidCiphertextException" },
		{ 400, NULL, "{\"__type\":7,\"message\":{}}", KMS_CONFIG, "HTTP400" },
		{ 201, NULL, GENERATED, KMS_CONFIG, "HTTP201" },
	};
	struct fake_answer script[1];
	struct fixture f;

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		struct kms_err first = { .code = "" };

		script[0] =
		    (struct fake_answer){ .status = cases[i].http, .headers = cases[i].headers, .body = cases[i].body };
		begin(&f, script, 1);
		kms_observe(f.kms, first_error, &first);
		assert_int_not_equal(generate(&f, 500), KMS_OK);
		assert_int_equal(first.status, cases[i].status);
		assert_string_equal(first.code, cases[i].code);
		assert_int_equal(first.http, cases[i].http);
		assert_wiped(&f);
		end(&f);
	}
}

static void test_message_is_made_printable(void **state)
{
	static const struct fake_answer script[] = { { .status = 400,
	    .headers = "x-amzn-RequestId: r-1\r\n",
	    .body = "{\"__type\":\"DisabledException\",\"message\":\"a\\u001b[31m\\nb\"}" } };
	struct fixture f;
	char text[200];

	(void)state;
	begin(&f, script, 1);
	assert_int_equal(generate(&f, 5000), KMS_DENIED);
	kms_err_text(text, sizeof(text), &f.err);
	assert_string_equal(text, "KMS said DisabledException (request r-1): a?[31m?b");
	end(&f);
}

/* AccessDenied and NotFound mean revocation only for a key that has worked. */
static void test_had_worked(void **state)
{
	static const struct fake_answer script[] = { { .status = 400, .body = ERROR("AccessDeniedException", "no") },
		{ .status = 200, .body = GENERATED }, { .status = 400, .body = ERROR("AccessDeniedException", "no") },
		{ .status = 400, .body = ERROR("NotFoundException", "no") } };
	struct fixture f;

	(void)state;
	begin(&f, script, 4);
	assert_int_equal(generate(&f, 5000), KMS_CONFIG);
	assert_int_equal(generate(&f, 5000), KMS_OK);
	assert_int_equal(generate(&f, 5000), KMS_DENIED);
	assert_int_equal(decrypt(&f, 5000), KMS_DENIED);
	end(&f);
}

/* A state told in unknown words: the key's own state decides. */
static void test_unknown_state(void **state)
{
	static const struct fake_answer script[] = {
		{ .status = 400, .body = ERROR("KMSInvalidStateException", "the external proxy is odd") },
		{ .status = 200, .body = METADATA(ARN, "Enabled") }, { .status = 200, .body = GENERATED },
		{ .status = 400, .body = ERROR("KMSInvalidStateException", "what now") },
		{ .status = 200, .body = METADATA(ARN, "Unavailable") },
		{ .status = 400, .body = ERROR("KMSInvalidStateException", ARN " is pending deletion.") }
	};
	struct kms_stats st;
	struct fixture f;

	(void)state;
	begin(&f, script, 6);
	assert_int_equal(generate(&f, 5000), KMS_OK);
	kms_stats(f.kms, &st);
	assert_int_equal(st.down, 1);
	assert_int_equal(fake_seen(f.server), 3);
	assert_int_equal(generate(&f, 5000), KMS_DENIED);
	assert_int_equal(fake_seen(f.server), 5);
	assert_int_equal(generate(&f, 5000), KMS_DENIED);
	assert_int_equal(fake_seen(f.server), 6); /* known words need no question */
	end(&f);
}

/* ---- the network ---- */

static void test_throttled_then_ok(void **state)
{
	static const struct fake_answer script[] = { { .status = 400,
		                                         .body = ERROR("ThrottlingException", "Rate exceeded") },
		{ .status = 500, .body = ERROR("KMSInternalException", "") }, { .act = FAKE_DROP },
		{ .status = 200, .body = GENERATED } };
	struct fixture f;
	struct kms_stats st;

	(void)state;
	begin(&f, script, 4);
	assert_int_equal(generate(&f, 5000), KMS_OK);
	assert_secret(&f);
	assert_int_equal(fake_seen(f.server), 4);
	kms_stats(f.kms, &st);
	assert_int_equal(st.busy, 1);
	assert_true(st.down >= 1); /* libcurl itself may have hidden the dropped connection */
	end(&f);
}

static void test_network_failures(void **state)
{
	static const struct fake_answer hang[] = { { .act = FAKE_HANG } }, drop[] = { { .act = FAKE_DROP } };
	char *big = test_malloc(70000);
	struct fake_answer huge[1] = { { .status = 200, .body = big, .bodylen = 70000 } };
	struct kms_err dropped = { .code = "" }, large = { .code = "" };
	uint64_t begun;
	struct fixture f;

	(void)state;
	begin(&f, hang, 1);
	begun = io_boot_ms();
	assert_int_equal(decrypt(&f, 150), KMS_DOWN);
	assert_true(io_boot_ms() - begun >= 149);
	assert_string_equal(f.err.code, "Timeout");
	end(&f);
	begin(&f, drop, 1);
	kms_observe(f.kms, first_error, &dropped);
	assert_int_equal(decrypt(&f, 500), KMS_DOWN);
	assert_string_equal(dropped.code, "ConnectionLost");
	end(&f);
	memset(big, ' ', 70000);
	begin(&f, huge, 1);
	kms_observe(f.kms, first_error, &large);
	assert_int_equal(decrypt(&f, 500), KMS_DOWN);
	assert_string_equal(large.code, "AnswerTooLarge");
	assert_wiped(&f);
	end(&f);
	test_free(big);
}

static void test_nobody_listens(void **state)
{
	static const struct fake_answer hang[] = { { .act = FAKE_HANG } };
	struct fixture f;

	(void)state;
	begin(&f, hang, 1);
	fake_stop(f.server);
	assert_int_equal(generate(&f, 100), KMS_DOWN);
	assert_string_equal(f.err.code, "ConnectionRefused");
	kms_close(f.kms);
}

/* ---- repairs ---- */

/* "Date: ...\r\n" of now + offset. */
static void date_header(char out[static 64], int64_t offset)
{
	time_t t = (time_t)(io_unix_time() + offset);
	struct tm tm;

	assert_non_null(gmtime_r(&t, &tm));
	assert_true(strftime(out, 64, "Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &tm) > 0);
}

/* Seconds by which the i-th request's X-Amz-Date is ahead of this clock. */
static int64_t signed_ahead(struct fixture *f, unsigned i)
{
	char *seen = fake_request(f->server, i), *date = strstr(seen, "X-Amz-Date: ");
	struct tm tm = { 0 };

	assert_non_null(date);
	assert_non_null(strptime(date + 12, "%Y%m%dT%H%M%SZ", &tm));
	free(seen);
	return (int64_t)timegm(&tm) - io_unix_time();
}

static void test_clock_is_corrected(void **state)
{
	char date[64], back[64];
	struct fake_answer script[] = {
		{ .status = 400, .headers = date, .body = ERROR("InvalidSignatureException", "Signature expired") },
		{ .status = 200, .body = GENERATED }, { .status = 200, .body = GENERATED },
		{ .status = 403, .headers = back, .body = ERROR("RequestTimeTooSkewed", "") },
		{ .status = 200, .body = GENERATED }
	};
	struct fixture f;

	(void)state;
	date_header(date, 3600);
	date_header(back, 0);
	begin(&f, script, 5);
	assert_int_equal(generate(&f, 5000), KMS_OK);
	assert_true(signed_ahead(&f, 0) <= 0);
	assert_in_range(signed_ahead(&f, 1), 3590, 3600);
	assert_int_equal(generate(&f, 5000), KMS_OK); /* and stays so */
	assert_in_range(signed_ahead(&f, 2), 3590, 3600);
	assert_int_equal(generate(&f, 5000), KMS_OK); /* until the clock was set */
	assert_true(signed_ahead(&f, 4) <= 0);
	assert_int_equal(fake_seen(f.server), 5);
	end(&f);
}

static void test_clock_is_not_corrected(void **state)
{
	static const int64_t offset[] = { 200, -200, 90000, -90000 };
	char date[64];
	struct fake_answer script[] = {
		{ .status = 400, .headers = date, .body = ERROR("InvalidSignatureException", "") }
	};
	struct fixture f;

	(void)state;
	for (size_t i = 0; i < N(offset); i++) {
		date_header(date, offset[i]);
		begin(&f, script, 1);
		assert_int_equal(generate(&f, 5000), KMS_CONFIG);
		assert_int_equal(fake_seen(f.server), 1);
		end(&f);
	}
	script[0].headers = NULL;
	begin(&f, script, 1);
	assert_int_equal(generate(&f, 5000), KMS_CONFIG);
	assert_int_equal(fake_seen(f.server), 1);
	end(&f);
}

static void test_skew_is_corrected_once(void **state)
{
	char date[64];
	struct fake_answer script[] = {
		{ .status = 400, .headers = date, .body = ERROR("SignatureDoesNotMatch", "") }
	};
	struct fixture f;

	(void)state;
	date_header(date, -7200);
	begin(&f, script, 1);
	assert_int_equal(generate(&f, 5000), KMS_CONFIG);
	assert_int_equal(fake_seen(f.server), 2);
	assert_int_equal(generate(&f, 5000), KMS_CONFIG); /* corrected already: nothing to repair */
	assert_int_equal(fake_seen(f.server), 3);
	end(&f);
}

static void write_credentials(const char *path, const char *access)
{
	char text[200];
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	snprintf(text, sizeof(text), "[p]\naws_access_key_id=%s\naws_secret_access_key=s\naws_session_token=tok/%s==\n",
	    access, access);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void test_expired_token(void **state)
{
	static const struct fake_answer script[] = { { .status = 400,
		                                         .body = ERROR("ExpiredTokenException", "expired") },
		{ .status = 200, .body = GENERATED },
		{ .status = 403, .body = ERROR("UnrecognizedClientException", "who") },
		{ .status = 403, .body = ERROR("UnrecognizedClientException", "who") } };
	char dir[] = "/tmp/byokfs-kmsaws.XXXXXX", path[60], endpoint[64], *seen;
	struct kms_params params = { .provider = "aws", .key = ARN, .profile = "p", .endpoint = endpoint, .proxy = "" };
	struct fixture f;

	(void)state;
	begin(&f, script, 4);
	kms_close(f.kms);
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/credentials", dir);
	setenv("AWS_SHARED_CREDENTIALS_FILE", path, 1);
	write_credentials(path, "AKFIRST");
	snprintf(endpoint, sizeof(endpoint), "http://127.0.0.1:%u/", f.server->port);
	assert_int_equal(kms_open(&f.kms, &params, true, &f.err), 0);
	assert_int_equal(generate(&f, 5000), KMS_OK);
	assert_int_equal(fake_seen(f.server), 2);
	write_credentials(path, "AKROTATED");
	assert_int_equal(generate(&f, 5000), KMS_CONFIG); /* tried once more, not for ever */
	assert_string_equal(f.err.code, "UnrecognizedClientException");
	assert_int_equal(fake_seen(f.server), 4);
	seen = fake_request(f.server, 3); /* the one before may still be signed with what was there a second ago */
	assert_non_null(strstr(seen, "\r\nX-Amz-Security-Token: tok/AKROTATED==\r\n"));
	assert_non_null(strstr(seen, "Credential=AKROTATED/"));
	assert_non_null(strstr(seen,
	    "/eu-west-1/kms/aws4_request, "
	    "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, "));
	free(seen);
	assert_int_equal(unlink(path), 0);
	kms_refresh(f.kms);
	assert_int_equal(generate(&f, 5000), KMS_CONFIG);
	assert_string_equal(f.err.code, "NoCredentials");
	assert_int_equal(fake_seen(f.server), 4);
	assert_int_equal(rmdir(dir), 0);
	end(&f);
}

/* What was sent carries the signature that sigv4 makes of it. */
static void test_signature_covers_what_was_sent(void **state)
{
	static const struct fake_answer script[] = { { .status = 200, .body = GENERATED } };
	struct sigv4_credentials cred = { .access_key = "AKIDEXAMPLE", .secret_key = "secret" };
	char host[40], *seen, *body;
	struct sigv4_header header[] = { { "host", host }, { "content-type", "application/x-amz-json-1.1" },
		{ "x-amz-target", "TrentService.GenerateDataKey" } };
	struct sigv4_request req = { .method = "POST",
		.path = "/",
		.query = "",
		.header = header,
		.nheader = 3,
		.region = "eu-west-1",
		.service = "kms" };
	struct sigv4_signature sig;
	struct fixture f;

	(void)state;
	begin(&f, script, 1);
	assert_int_equal(generate(&f, 5000), KMS_OK);
	seen = fake_request(f.server, 0);
	snprintf(host, sizeof(host), "127.0.0.1:%u", f.server->port);
	body = strstr(seen, "\r\n\r\n") + 4;
	req.body = body;
	req.bodylen = strlen(body);
	req.time = io_unix_time() + signed_ahead(&f, 0);
	assert_int_equal(sigv4_sign(&sig, &req, &cred), 0);
	assert_non_null(strstr(seen, sig.authorization));
	free(seen);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_generate),
		cmocka_unit_test(test_decrypt_and_encrypt),
		cmocka_unit_test(test_reencrypt),
		cmocka_unit_test(test_describe),
		cmocka_unit_test(test_alias_is_pinned),
		cmocka_unit_test(test_alias_that_cannot_be_resolved),
		cmocka_unit_test(test_hostile_successes),
		cmocka_unit_test(test_decrypt_of_something_else),
		cmocka_unit_test(test_errors_as_they_come),
		cmocka_unit_test(test_message_is_made_printable),
		cmocka_unit_test(test_had_worked),
		cmocka_unit_test(test_unknown_state),
		cmocka_unit_test(test_throttled_then_ok),
		cmocka_unit_test(test_network_failures),
		cmocka_unit_test(test_nobody_listens),
		cmocka_unit_test(test_clock_is_corrected),
		cmocka_unit_test(test_clock_is_not_corrected),
		cmocka_unit_test(test_skew_is_corrected_once),
		cmocka_unit_test(test_expired_token),
		cmocka_unit_test(test_signature_covers_what_was_sent),
	};

	log_setup("test", LOG_LEVEL_ERR, false); /* the warnings about clocks are expected */
	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("kms_aws", tests, NULL, NULL);
}
