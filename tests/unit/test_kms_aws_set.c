/* kms_aws: names of hosts and keys, what may be a replica, and two Regions that come and go under a provider in use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>

#include "../../src/kms_aws_internal.h"
#include "fake_server.h"
#include "io.h"
#include "log.h"
#include "secret.h"

#define N(a)    (sizeof(a) / sizeof((a)[0]))
#define ID      "mrk-1234abcd12ab34cd56ef1234567890ab"
#define HOME    "arn:aws:kms:eu-west-1:111122223333:key/" ID
#define REPLICA "arn:aws:kms:us-east-1:111122223333:key/" ID
#define THIRD   "arn:aws:kms:ap-south-1:111122223333:key/" ID
#define SINGLE  "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
#define SECRET  "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
#define DECRYPTED(arn)                                                                        \
	{                                                                                     \
		.status = 200, .body = "{\"Plaintext\":\"" SECRET "\",\"KeyId\":\"" arn "\"}" \
	}
#define ERROR(type)                                                \
	{                                                          \
		.status = 400, .body = "{\"__type\":\"" type "\"}" \
	}

static void clear_env(void)
{
	static const char *const names[] = { "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION",
		"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_CA_BUNDLE",
		"AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT" };

	for (size_t i = 0; i < N(names); i++)
		unsetenv(names[i]);
	setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "secret", 1);
	setenv("AWS_CONFIG_FILE", "/nonexistent/config", 1);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials", 1);
}

static int make_set(struct aws_set **out, const struct kms_params *params, struct kms_err *err)
{
	const struct awscred_params none = { .profile = NULL };
	struct awscred *cred = NULL;
	int r;

	*out = NULL;
	assert_int_equal(awscred_open(&cred, &none), 0);
	r = aws_set_make(out, params, NULL, cred, err);
	awscred_close(cred);
	return r;
}

/* ---- names ---- */

static void test_same_key(void **state)
{
	static const struct {
		const char *a, *b;
		bool same;
	} cases[] = {
		{ HOME, HOME, true },
		{ HOME, REPLICA, true },
		{ SINGLE, SINGLE, true },
		{ "alias/x", "alias/x", true },
		{ "alias/x", "alias/y", false },
		{ HOME, "", false },
		{ HOME, ID, false },
		{ HOME, SINGLE, false },
		{ SINGLE, "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab", false },
		{ HOME, "arn:aws-cn:kms:us-east-1:111122223333:key/" ID, false },
		{ HOME, "arn:aws:kms:us-east-1:111122223334:key/" ID, false },
		{ HOME, "arn:aws:kms:us-east-1:111122223333:key/" ID "0", false },
		{ HOME, "arn:aws:kms:us-east-1:111122223333:alias/" ID, false },
		{ HOME, "arn:aws:sts:us-east-1:111122223333:key/" ID, false },
		{ HOME, "arn:aws:kms::111122223333:key/" ID, false },
		{ HOME, "arn:aws:kms:us-east-1:key/" ID, false },
	};

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		assert_int_equal(aws_same_key(cases[i].a, cases[i].b), cases[i].same);
		assert_int_equal(aws_same_key(cases[i].b, cases[i].a), cases[i].same);
	}
}

#define KEY_IN(partition, region) "arn:" partition ":kms:" region ":111122223333:key/" ID

static void test_endpoints(void **state)
{
	static const struct {
		const char *key, *region, *endpoint, *fips, *dualstack, *all;
		const char *url, *host, *signing;
	} cases[] = {
		{ HOME, NULL, NULL, NULL, NULL, NULL, "https://kms.eu-west-1.amazonaws.com/",
		    "kms.eu-west-1.amazonaws.com", "eu-west-1" },
		{ KEY_IN("aws", "us-east-2"), NULL, NULL, "true", NULL, NULL,
		    "https://kms-fips.us-east-2.amazonaws.com/", "kms-fips.us-east-2.amazonaws.com", "us-east-2" },
		{ HOME, NULL, NULL, NULL, "true", NULL, "https://kms.eu-west-1.api.aws/", "kms.eu-west-1.api.aws",
		    "eu-west-1" },
		{ KEY_IN("aws", "us-west-2"), NULL, NULL, "true", "true", NULL, "https://kms-fips.us-west-2.api.aws/",
		    "kms-fips.us-west-2.api.aws", "us-west-2" },
		{ KEY_IN("aws-cn", "cn-north-1"), NULL, NULL, NULL, NULL, NULL,
		    "https://kms.cn-north-1.amazonaws.com.cn/", "kms.cn-north-1.amazonaws.com.cn", "cn-north-1" },
		{ KEY_IN("aws-us-gov", "us-gov-west-1"), NULL, NULL, "true", NULL, NULL,
		    "https://kms-fips.us-gov-west-1.amazonaws.com/", "kms-fips.us-gov-west-1.amazonaws.com",
		    "us-gov-west-1" },
		/* what the host's name says of a Region means nothing */
		{ HOME, NULL, "https://vpce-0123-abcd.kms.us-east-1.vpce.amazonaws.com", NULL, NULL, NULL,
		    "https://vpce-0123-abcd.kms.us-east-1.vpce.amazonaws.com/",
		    "vpce-0123-abcd.kms.us-east-1.vpce.amazonaws.com", "eu-west-1" },
		{ "alias/x", "ap-south-1", "https://vpce-0123-abcd.kms.us-east-1.vpce.amazonaws.com:443/", NULL, NULL,
		    NULL, "https://vpce-0123-abcd.kms.us-east-1.vpce.amazonaws.com:443/",
		    "vpce-0123-abcd.kms.us-east-1.vpce.amazonaws.com", "ap-south-1" },
		{ HOME, "eu-west-1", NULL, "true", "true", "https://kms.corp.example:8443/x",
		    "https://kms.corp.example:8443/x", "kms.corp.example:8443", "eu-west-1" },
	};
	struct aws_set *set;
	struct kms_err err;

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		const struct kms_params params = {
			.key = cases[i].key, .region = cases[i].region, .endpoint = cases[i].endpoint
		};

		clear_env();
		if (cases[i].fips)
			setenv("AWS_USE_FIPS_ENDPOINT", cases[i].fips, 1);
		if (cases[i].dualstack)
			setenv("AWS_USE_DUALSTACK_ENDPOINT", cases[i].dualstack, 1);
		if (cases[i].all)
			setenv("AWS_ENDPOINT_URL", cases[i].all, 1);
		assert_int_equal(make_set(&set, &params, &err), 0);
		assert_int_equal(set->n, 1);
		assert_string_equal(set->region[0].endpoint.url, cases[i].url);
		assert_string_equal(set->region[0].endpoint.host, cases[i].host);
		assert_string_equal(set->region[0].endpoint.region, cases[i].signing);
		free(set);
	}
}

/* A setting that sends all of KMS to one host is not for replicas: each has its Region's name, or its own. */
static void test_endpoints_of_replicas(void **state)
{
	const struct kms_params params = { .key = HOME,
		.endpoint = "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com",
		.replicas = REPLICA ", \t" THIRD "@https://vpce-2.kms.eu-west-1.vpce.amazonaws.com:444,",
		.failover = true,
		.failover_after_ms = 7 };
	struct aws_set *set;
	struct kms_err err;

	(void)state;
	clear_env();
	setenv("AWS_ENDPOINT_URL_KMS", "https://all.example/", 1);
	assert_int_equal(make_set(&set, &params, &err), 0);
	assert_int_equal(set->n, 3);
	assert_int_equal(set->choice.n, 3);
	assert_int_equal(set->choice.after_ms, 7);
	assert_string_equal(set->region[0].key, HOME);
	assert_string_equal(set->region[1].key, REPLICA);
	assert_string_equal(set->region[1].endpoint.url, "https://kms.us-east-1.amazonaws.com/");
	assert_string_equal(set->region[1].endpoint.region, "us-east-1");
	assert_string_equal(set->region[2].key, THIRD);
	assert_string_equal(set->region[2].endpoint.host, "vpce-2.kms.eu-west-1.vpce.amazonaws.com:444");
	assert_string_equal(set->region[2].endpoint.region, "ap-south-1");
	free(set);
}

#define FOUR(a)                                                                                      \
	"arn:aws:kms:aa-" a "-1:111122223333:key/" ID " arn:aws:kms:aa-" a "-2:111122223333:key/" ID \
	" arn:aws:kms:aa-" a "-3:111122223333:key/" ID " arn:aws:kms:aa-" a "-4:111122223333:key/" ID " "

static void test_refused(void **state)
{
	static const struct {
		const char *key, *region, *replicas;
		bool failover;
		const char *code, *says;
	} cases[] = {
		{ HOME, NULL, "us-east-1", false, "BadReplica", "'us-east-1' in kms.replicas is not the ARN of a key" },
		{ HOME, NULL, "arn:aws:kms:us-east-1:111122223333:alias/x", false, "BadReplica", "is not the ARN" },
		{ SINGLE, NULL, REPLICA, false, "BadReplica", "is not a multi-Region key (mrk-...), it has none" },
		{ HOME, NULL, REPLICA "0", false, "BadReplica", "is another key than" },
		{ HOME, NULL, "arn:aws:kms:us-east-1:444455556666:key/" ID, false, "BadReplica",
		    "is in another partition or account than" },
		{ HOME, NULL, "arn:aws-cn:kms:us-east-1:111122223333:key/" ID, false, "BadReplica",
		    "is in another partition or account than" },
		{ HOME, NULL, HOME, false, "BadReplica", "'eu-west-1' is named twice" },
		{ HOME, NULL, REPLICA "," THIRD "," REPLICA, false, "BadReplica", "'us-east-1' is named twice" },
		{ HOME, NULL, FOUR("b") FOUR("c") THIRD, false, "BadReplica", "too many" },
		{ HOME, NULL, REPLICA "@ftp", false, "BadEndpoint", "'ftp' is not an endpoint URL" },
		{ HOME, NULL, REPLICA "@https://a@b/", false, "BadEndpoint", "'https://a@b/'" },
		{ HOME, NULL, REPLICA "@ftp://a/", false, "BadEndpoint", "'ftp://a/' is not an endpoint URL" },
		{ HOME, NULL, "arn:aws:kms:US_EAST:111122223333:key/" ID, false, "BadRegion", "'US_EAST'" },
		{ HOME, NULL, NULL, true, "NoReplica", "kms.replicas names no replica" },
		{ HOME, NULL, " ,", true, "NoReplica", "kms.replicas names no replica" },
		{ HOME, "us-east-1", NULL, false, "BadRegion",
		    "kms.region is 'us-east-1', but the key is in 'eu-west-1'" },
	};
	struct aws_set *set;
	struct kms_err err;

	(void)state;
	clear_env();
	for (size_t i = 0; i < N(cases); i++) {
		const struct kms_params params = { .key = cases[i].key,
			.region = cases[i].region,
			.replicas = cases[i].replicas,
			.failover = cases[i].failover };

		assert_int_equal(make_set(&set, &params, &err), -EINVAL);
		assert_null(set);
		assert_int_equal(err.status, KMS_CONFIG);
		assert_string_equal(err.code, cases[i].code);
		if (!strstr(err.message, cases[i].says))
			fail_msg("'%s' does not say '%s'", err.message, cases[i].says);
	}
}

/* A profile that may ask for FIPS, or for another host, and cannot be read: no other host is asked instead. */
static void test_unreadable_profile(void **state)
{
	static const struct kms_params params[] = {
		{ .key = HOME },
		{ .key = "alias/x" },
		{ .key = HOME, .endpoint = "https://localhost", .replicas = REPLICA },
	};
	char path[] = "/tmp/byokfs-config.XXXXXX";
	int fd = mkstemp(path);
	struct aws_set *set;
	struct kms_err err;

	(void)state;
	clear_env();
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "garbage\n", 8), 8);
	close(fd);
	setenv("AWS_CONFIG_FILE", path, 1);
	for (size_t i = 0; i < N(params); i++) {
		assert_int_equal(make_set(&set, &params[i], &err), -EINVAL);
		assert_int_equal(err.status, KMS_CONFIG);
		assert_string_equal(err.code, "BadProfile");
		assert_non_null(strstr(err.message, path));
	}
	assert_int_equal(unlink(path), 0);
	clear_env();
}

/* ---- a provider over two servers ---- */

struct fixture {
	struct fake *home, *replica;
	struct kms *kms;
	char at_home[64], replicas[300];
	struct kms_params params;
	struct context ctx;
	uint8_t secret[32];
	struct kms_used used;
	struct kms_err err;
};

static void begin(struct fixture *f, const struct fake_answer *home, const struct fake_answer *replica)
{
	clear_env();
	memset(f, 0, sizeof(*f));
	f->home = fake_start(home, 8);
	f->replica = fake_start(replica, 8);
	assert_non_null(f->home);
	assert_non_null(f->replica);
	snprintf(f->at_home, sizeof(f->at_home), "http://127.0.0.1:%u", f->home->port);
	snprintf(f->replicas, sizeof(f->replicas), REPLICA "@http://127.0.0.1:%u", f->replica->port);
	f->params = (struct kms_params){ .provider = "aws",
		.key = HOME,
		.endpoint = f->at_home,
		.replicas = f->replicas,
		.failover = true,
		.proxy = "",
		.request_timeout_ms = 5000 };
	assert_int_equal(kms_open(&f->kms, &f->params, true, &f->err), 0);
}

static void end(struct fixture *f)
{
	kms_close(f->kms);
	fake_stop(f->home);
	fake_stop(f->replica);
}

static enum kms_status decrypt(struct fixture *f, uint64_t ms)
{
	return kms_decrypt(
	    f->kms, &f->ctx, (const uint8_t *)"sealed", 6, io_boot_ms() + ms, f->secret, &f->used, &f->err);
}

static void assert_where(struct fixture *f, const char *region, bool away)
{
	struct kms_where at;

	kms_where(f->kms, &at);
	assert_string_equal(at.region, region);
	assert_int_equal(at.away, away);
}

static void assert_asked(struct fake *server, unsigned i, const char *key, const char *region)
{
	char *seen = fake_request(server, i), text[200];

	snprintf(text, sizeof(text), "\"KeyId\":\"%s\"", key);
	assert_non_null(strstr(seen, text));
	snprintf(text, sizeof(text), "/%s/kms/aws4_request", region);
	assert_non_null(strstr(seen, text));
	free(seen);
}

/* Audited under its name in the Region that was asked, whatever came of it. */
static void audit(void *arg, const struct kms_event *event)
{
	char line[120];

	snprintf(line, sizeof(line), "%s %.21s;", kms_status_name(event->err->status), event->key);
	strcat(arg, line);
}

/* Silence at home: one call succeeds all the same, at the replica, under the key's name there. */
static void test_failover_within_one_call(void **state)
{
	static const struct fake_answer home[8] = { { .act = FAKE_HANG }, { .act = FAKE_HANG }, { .act = FAKE_HANG },
		{ .act = FAKE_HANG }, { .act = FAKE_HANG }, { .act = FAKE_HANG }, { .act = FAKE_HANG },
		{ .act = FAKE_HANG } };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA), DECRYPTED(REPLICA), DECRYPTED(HOME),
		ERROR("AccessDeniedException"), ERROR("NotFoundException"), ERROR("DisabledException"),
		ERROR("DisabledException"), ERROR("DisabledException") };
	char audited[1000] = "";
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	kms_observe(f.kms, audit, audited);
	assert_where(&f, "eu-west-1", false);
	assert_int_equal(decrypt(&f, 800), KMS_OK);
	assert_int_equal(f.secret[31], 32);
	assert_string_equal(f.used.key, REPLICA);
	assert_string_equal(kms_key(f.kms), HOME);
	assert_int_equal(fake_seen(f.home), 1);
	assert_asked(f.home, 0, HOME, "eu-west-1");
	assert_asked(f.replica, 0, REPLICA, "us-east-1");
	assert_where(&f, "us-east-1", true);
	assert_int_equal(decrypt(&f, 300), KMS_OK);
	assert_int_equal(fake_seen(f.home), 1); /* not every call knocks there */
	/* an answer in the name of another sibling is none */
	assert_int_equal(decrypt(&f, 300), KMS_CONFIG);
	assert_string_equal(f.err.code, "UnexpectedKey");
	/* the key has worked, wherever: a replica that is not permitted, or gone, denies */
	assert_int_equal(decrypt(&f, 300), KMS_DENIED);
	assert_int_equal(decrypt(&f, 300), KMS_DENIED);
	assert_where(&f, "us-east-1", true);
	assert_string_equal(audited,
	    "unreachable arn:aws:kms:eu-west-1;ok arn:aws:kms:us-east-1;ok arn:aws:kms:us-east-1;"
	    "misconfigured arn:aws:kms:eu-west-1;denied arn:aws:kms:us-east-1;denied arn:aws:kms:us-east-1;");
	end(&f);
}

/* Another key over the same connections and credentials; with Regions and denials of its own. */
static void test_shared(void **state)
{
	static const struct fake_answer home[8] = { DECRYPTED(SINGLE), ERROR("DisabledException"), DECRYPTED(HOME) },
	                                replica[8] = { DECRYPTED(REPLICA) };
	struct kms *first;
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	first = f.kms;
	f.params.key = SINGLE;
	f.params.replicas = NULL;
	f.params.failover = false;
	f.params.share = first;
	assert_int_equal(kms_open(&f.kms, &f.params, true, &f.err), 0);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_int_equal(decrypt(&f, 5000), KMS_DENIED);
	kms_close(f.kms);
	f.kms = first;
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_int_equal(fake_connections(f.home), 2); /* each its own: one that hangs must not use up the other's */
	end(&f);
}

/* Without failover nobody else is asked, however long it takes. */
static void test_no_failover(void **state)
{
	static const struct fake_answer home[8] = { { .act = FAKE_DROP }, { .act = FAKE_DROP }, { .act = FAKE_DROP },
		{ .act = FAKE_DROP }, { .act = FAKE_DROP }, { .act = FAKE_DROP }, { .act = FAKE_DROP },
		{ .act = FAKE_DROP } };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA) };
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	f.params.failover = false;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_int_equal(decrypt(&f, 500), KMS_DOWN);
	assert_int_equal(decrypt(&f, 500), KMS_DOWN);
	assert_int_equal(fake_seen(f.replica), 0);
	end(&f);
}

#define SILENT       { .act = FAKE_DROP }
#define AND_SILENT_5 SILENT, SILENT, SILENT, SILENT, SILENT

/* No replica opens what home refused, though the key has never worked here and this is called a mistake. */
static void test_refused_at_first(void **state)
{
	static const struct fake_answer denied[8] = { ERROR("AccessDeniedException"), AND_SILENT_5, SILENT, SILENT };
	static const struct fake_answer gone[8] = { ERROR("NotFoundException"), AND_SILENT_5, SILENT, SILENT };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA) };
	struct fixture f;

	(void)state;
	for (int i = 0; i < 2; i++) {
		begin(&f, i ? gone : denied, replica);
		assert_int_equal(decrypt(&f, 5000), KMS_CONFIG);
		assert_int_equal(decrypt(&f, 300), KMS_DOWN);
		assert_int_equal(decrypt(&f, 300), KMS_DOWN);
		assert_int_equal(fake_seen(f.replica), 0);
		end(&f);
	}
}

/* Only a Decrypt whose answer is whole proves that Decrypt is permitted again. */
static void test_half_an_answer(void **state)
{
#define HALF { .status = 200, .body = "{\"KeyId\":\"" HOME "\"}" }
	static const struct fake_answer home[8] = { ERROR("DisabledException"), HALF, HALF, AND_SILENT_5 };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA) };
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	assert_int_equal(decrypt(&f, 5000), KMS_DENIED);
	assert_int_equal(decrypt(&f, 5000), KMS_BAD_BLOB);
	assert_int_equal(decrypt(&f, 5000), KMS_BAD_BLOB);
	assert_int_equal(decrypt(&f, 300), KMS_DOWN);
	assert_int_equal(fake_seen(f.replica), 0);
	end(&f);
}

/* A Decrypt that is denied, and GenerateDataKey that is not. */
static void test_decrypt_alone_is_denied(void **state)
{
#define GENERATED                                                                                            \
	{                                                                                                    \
		.status = 200,                                                                               \
		.body = "{\"Plaintext\":\"" SECRET "\",\"CiphertextBlob\":\"c2Vh\",\"KeyId\":\"" HOME "\"}" \
	}
	static const struct fake_answer home[8] = { DECRYPTED(HOME), ERROR("AccessDeniedException"), GENERATED,
		GENERATED, SILENT, SILENT, SILENT, SILENT };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA) };
	struct kms_blob blob;
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_int_equal(decrypt(&f, 5000), KMS_DENIED);
	for (int i = 0; i < 2; i++)
		assert_int_equal(
		    kms_generate(f.kms, &f.ctx, io_boot_ms() + 5000, f.secret, &blob, &f.used, &f.err), KMS_OK);
	assert_int_equal(decrypt(&f, 300), KMS_DOWN);
	assert_int_equal(fake_seen(f.replica), 0);
	end(&f);
}

/* The administrator's own change of Region: no failover needed, and back again. */
static void test_reconfigure(void **state)
{
	static const struct fake_answer home[8] = { DECRYPTED(HOME), DECRYPTED(HOME) },
	                                replica[8] = { DECRYPTED(REPLICA), DECRYPTED(REPLICA) };
	struct fixture f;
	char at_replica[64];

	(void)state;
	begin(&f, home, replica);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	snprintf(at_replica, sizeof(at_replica), "http://127.0.0.1:%u", f.replica->port);
	f.params = (struct kms_params){ .provider = "aws", .key = REPLICA, .endpoint = at_replica };
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "us-east-1", false);
	assert_string_equal(kms_key(f.kms), HOME); /* slots go on under the name they have */
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_string_equal(f.used.key, REPLICA);
	assert_asked(f.replica, 0, REPLICA, "us-east-1");
	assert_int_equal(fake_seen(f.home), 1);
	f.params.key = "alias/as-it-was"; /* an alias is not resolved again */
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "us-east-1", false);
	f.params.key = HOME;
	f.params.endpoint = f.at_home;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_int_equal(fake_seen(f.home), 2);
	end(&f);
}

static void assert_sts_asked_in(struct fixture *f, const char *region)
{
	unsigned n = fake_seen(f->home);
	char *seen, text[64];

	assert_int_equal(decrypt(f, 200), KMS_DOWN);
	seen = fake_request(f->home, n);
	snprintf(text, sizeof(text), "/%s/sts/aws4_request", region);
	assert_non_null(strstr(seen, text));
	free(seen);
}

/* The role's STS moves along, or a dead Region would keep the store shut. Here home's server is that STS. */
static void test_reconfigure_moves_sts(void **state)
{
	static const struct fake_answer home[8] = { { .status = 503 }, { .status = 503 }, { .status = 503 },
		{ .status = 503 }, { .status = 503 }, { .status = 503 }, { .status = 503 }, { .status = 503 } };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA) };
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	kms_close(f.kms);
	setenv("AWS_ENDPOINT_URL_STS", f.at_home, 1);
	f.params.role_arn = "arn:aws:iam::111122223333:role/host";
	f.params.replicas = NULL;
	f.params.failover = false;
	assert_int_equal(kms_open(&f.kms, &f.params, true, &f.err), 0);
	assert_sts_asked_in(&f, "eu-west-1");
	f.params.key = SINGLE; /* refused: nothing moves */
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), -EINVAL);
	assert_sts_asked_in(&f, "eu-west-1");
	f.params.key = REPLICA;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_sts_asked_in(&f, "us-east-1");
	unsetenv("AWS_ENDPOINT_URL_STS");
	end(&f);
}

static void test_reconfigure_refused(void **state)
{
	static const struct fake_answer home[8] = { DECRYPTED(HOME) }, replica[8] = { DECRYPTED(REPLICA) };
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	f.params.key = SINGLE;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), -EINVAL);
	assert_string_equal(f.err.code, "OtherKey");
	f.params.key = HOME;
	f.params.region = "us-east-1";
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), -EINVAL);
	f.params.region = NULL;
	f.params.replicas = "nonsense";
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), -EINVAL);
	f.params.provider = "keyfile";
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), -EINVAL);
	assert_string_equal(f.err.code, "OtherProvider");
	assert_int_equal(decrypt(&f, 5000), KMS_OK); /* nothing changed */
	assert_int_equal(fake_seen(f.home), 1);
	end(&f);
}

/* A denial outlives a new configuration that still names the Region; it does not one that leaves it out. */
static void test_denial_and_reconfigure(void **state)
{
	static const struct fake_answer home[8] = { ERROR("DisabledException") }, replica[8] = { DECRYPTED(REPLICA) };
	struct fixture f;
	char at_replica[64], back[300];

	(void)state;
	begin(&f, home, replica);
	assert_int_equal(decrypt(&f, 5000), KMS_DENIED);
	snprintf(at_replica, sizeof(at_replica), "http://127.0.0.1:%u", f.replica->port);
	snprintf(back, sizeof(back), HOME "@%s", f.at_home);
	f.params.key = REPLICA;
	f.params.endpoint = at_replica;
	f.params.replicas = back;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "eu-west-1", true);
	assert_int_equal(fake_seen(f.replica), 0);
	f.params.replicas = NULL;
	f.params.failover = false;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "us-east-1", false);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	end(&f);
}

struct caller {
	struct fixture *f;
	enum kms_status status;
};

static void *call(void *arg)
{
	struct caller *c = arg;
	uint8_t secret[32];
	struct kms_used used;
	struct kms_err err;

	c->status =
	    kms_decrypt(c->f->kms, &c->f->ctx, (const uint8_t *)"sealed", 6, io_boot_ms() + 20000, secret, &used, &err);
	return NULL;
}

/* SIGHUP in the middle of an outage: what was learnt of the Regions that stay is not asked for again. */
static void test_reconfigure_while_away(void **state)
{
	static const struct fake_answer home[8] = { SILENT, AND_SILENT_5, SILENT, SILENT };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA), DECRYPTED(REPLICA), DECRYPTED(REPLICA) };
	char elsewhere[80], more[400];
	unsigned asked;
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_where(&f, "us-east-1", true);
	asked = fake_seen(f.home);
	f.params.failover_after_ms = 60000; /* taken over: it would be a minute until the replica's turn */
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "us-east-1", true);
	assert_int_equal(decrypt(&f, 300), KMS_OK);
	snprintf(more, sizeof(more), THIRD "@http://127.0.0.1:1, %s", f.replicas); /* another in front of it */
	f.params.replicas = more;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "us-east-1", true);
	assert_int_equal(decrypt(&f, 300), KMS_OK);
	assert_int_equal(fake_seen(f.home), asked);
	/* home is another place now: whatever was said of the old one is void */
	snprintf(elsewhere, sizeof(elsewhere), "%s/other", f.at_home);
	f.params.endpoint = elsewhere;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "eu-west-1", false);
	assert_int_equal(decrypt(&f, 300), KMS_DOWN);
	assert_where(&f, "eu-west-1", false);
	end(&f);
}

/* Without the replica that was asked home is, and its silence is not forgotten: the next replica is asked at once. */
static void test_reconfigure_without_the_one_asked(void **state)
{
	static const struct fake_answer home[8] = { SILENT, AND_SILENT_5, SILENT, SILENT };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA), DECRYPTED(THIRD) };
	struct fixture f;
	char third[200];

	(void)state;
	begin(&f, home, replica);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	snprintf(third, sizeof(third), THIRD "@http://127.0.0.1:%u", f.replica->port);
	f.params.replicas = third;
	f.params.failover_after_ms = 1;
	assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
	assert_where(&f, "eu-west-1", false);
	assert_int_equal(decrypt(&f, 5000), KMS_OK);
	assert_where(&f, "ap-south-1", true);
	end(&f);
}

/* Connections of our own that are all in use say nothing of a Region. */
static void test_no_free_connection(void **state)
{
	static const struct fake_answer home[8] = { { .act = FAKE_HANG }, { .act = FAKE_HANG }, { .act = FAKE_HANG },
		{ .act = FAKE_HANG }, { .act = FAKE_HANG }, { .act = FAKE_HANG }, { .act = FAKE_HANG },
		{ .act = FAKE_HANG } };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA) };
	struct caller caller;
	pthread_t thread;
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	kms_close(f.kms);
	f.params.max_connections = 1;
	f.params.request_timeout_ms = 3000;
	assert_int_equal(kms_open(&f.kms, &f.params, true, &f.err), 0);
	caller = (struct caller){ .f = &f };
	assert_int_equal(pthread_create(&thread, NULL, call, &caller), 0);
	while (!fake_seen(f.home))
		(void)sched_yield();
	assert_int_equal(decrypt(&f, 50), KMS_DOWN);
	assert_string_equal(f.err.code, "Timeout");
	assert_where(&f, "eu-west-1", false);
	assert_int_equal(fake_seen(f.home), 1);
	assert_int_equal(pthread_join(thread, NULL), 0); /* which learns that home is silent */
	assert_int_equal(caller.status, KMS_OK);
	assert_where(&f, "us-east-1", true);
	end(&f);
}

/* Calls under way end where they began, while the set is replaced under them. */
static void test_reconfigure_under_load(void **state)
{
	static const struct fake_answer home[8] = { DECRYPTED(HOME), DECRYPTED(HOME), DECRYPTED(HOME), DECRYPTED(HOME),
		DECRYPTED(HOME), DECRYPTED(HOME), DECRYPTED(HOME), DECRYPTED(HOME) };
	static const struct fake_answer replica[8] = { DECRYPTED(REPLICA), DECRYPTED(REPLICA), DECRYPTED(REPLICA),
		DECRYPTED(REPLICA), DECRYPTED(REPLICA), DECRYPTED(REPLICA), DECRYPTED(REPLICA), DECRYPTED(REPLICA) };
	struct caller callers[8];
	pthread_t thread[8];
	char at_replica[64];
	struct fixture f;

	(void)state;
	begin(&f, home, replica);
	f.params.replicas = NULL;
	f.params.failover = false;
	snprintf(at_replica, sizeof(at_replica), "http://127.0.0.1:%u", f.replica->port);
	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < N(thread); i++) {
			callers[i] = (struct caller){ .f = &f };
			assert_int_equal(pthread_create(&thread[i], NULL, call, &callers[i]), 0);
			f.params.key = i % 2 ? HOME : REPLICA;
			f.params.endpoint = i % 2 ? f.at_home : at_replica;
			assert_int_equal(kms_reconfigure(f.kms, &f.params, &f.err), 0);
		}
		for (unsigned i = 0; i < N(thread); i++) {
			assert_int_equal(pthread_join(thread[i], NULL), 0);
			assert_int_equal(callers[i].status, KMS_OK);
		}
	}
	assert_int_equal(fake_seen(f.home) + fake_seen(f.replica), 80);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_same_key),
		cmocka_unit_test(test_endpoints),
		cmocka_unit_test(test_endpoints_of_replicas),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_unreadable_profile),
		cmocka_unit_test(test_failover_within_one_call),
		cmocka_unit_test(test_shared),
		cmocka_unit_test(test_no_failover),
		cmocka_unit_test(test_refused_at_first),
		cmocka_unit_test(test_half_an_answer),
		cmocka_unit_test(test_decrypt_alone_is_denied),
		cmocka_unit_test(test_reconfigure),
		cmocka_unit_test(test_reconfigure_moves_sts),
		cmocka_unit_test(test_reconfigure_refused),
		cmocka_unit_test(test_denial_and_reconfigure),
		cmocka_unit_test(test_reconfigure_while_away),
		cmocka_unit_test(test_reconfigure_without_the_one_asked),
		cmocka_unit_test(test_no_free_connection),
		cmocka_unit_test(test_reconfigure_under_load),
	};

	log_setup("test", LOG_LEVEL_ERR, false); /* the warnings about Regions are expected */
	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("kms_aws_set", tests, NULL, NULL);
}
