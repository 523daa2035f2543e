/* awscred: every source but the environment and keys in files, against scripted servers; renewal and what ends it.
 *
 * Servers say what time it is and when credentials end, so a life of one second is no matter of this host's clock. */
#include <dirent.h>
#include <sys/stat.h>
#include <time.h>

#include "awscred_fixture.h"
#include "fake_server.h"
#include "log.h"

#define DATE    "Date: Sun, 22 Nov 2026 05:00:00 GMT\r\n"
#define SOON    "2026-11-22T05:00:01Z" /* a second of life */
#define LATER   "2026-11-22T06:00:00Z"
#define ROLE    "arn:aws:iam::111122223333:role/host"
#define DOC(key, token, until)                                                                              \
	"{\"AccessKeyId\":\"" key "\",\"SecretAccessKey\":\"s\",\"" token "\":\"t\",\"Expiration\":\"" until \
	"\"}"
#define GIVEN(key, until)                                                                                    \
	"<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>" key                               \
	"</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>" until \
	"</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
#define DENIED "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
#define OK(text)         { .status = 200, .headers = DATE, .body = text }
#define FAIL(code, text) { .status = code, .headers = DATE, .body = text }

static void stop(struct fixture *f)
{
	awscred_close(f->a);
	f->a = NULL;
	if (f->server)
		fake_stop(f->server);
	f->server = NULL;
}

/* Before the fixture's own. */
static int stop_server(void **state)
{
	stop(*state);
	return teardown(state);
}

static void begin(struct fixture *f, const struct fake_answer *script, size_t n)
{
	stop(f);
	f->server = fake_start(script, n);
	assert_non_null(f->server);
	snprintf(f->url, sizeof(f->url), "http://127.0.0.1:%u", f->server->port);
}

static void expect_request(struct fixture *f, unsigned i, const char *begins, const char *holds)
{
	char *seen = fake_request(f->server, i);

	if (strncmp(seen, begins, strlen(begins)) || (holds && !strstr(seen, holds)))
		fail_msg("request %u is '%s'", i, seen);
	free(seen);
}

static void expect_absent(struct fixture *f, unsigned i, const char *words)
{
	char *seen = fake_request(f->server, i);

	if (strstr(seen, words))
		fail_msg("request %u is '%s'", i, seen);
	free(seen);
}

/* Until something has happened; a failed wait is a failed test, however slow the machine. */
static void wait_seen(struct fixture *f, unsigned n)
{
	for (int i = 0; fake_seen(f->server) < n; i++) {
		assert_true(i < 4000);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	}
}

static void wait_expires(struct fixture *f, int64_t wanted)
{
	int64_t expires = 0;
	char who[256];

	for (int i = 0; expires != wanted; i++) {
		assert_true(i < 4000);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
		awscred_identity(f->a, who, &expires);
	}
}

/* ---- pure ---- */

static void test_hosts(void **state)
{
	static const struct {
		const char *service, *region;
		bool fips, dual;
		const char *host;
	} cases[] = {
		{ "kms", "eu-west-1", false, false, "kms.eu-west-1.amazonaws.com" },
		{ "kms", "us-east-1", true, false, "kms-fips.us-east-1.amazonaws.com" },
		{ "kms", "us-east-1", false, true, "kms.us-east-1.api.aws" },
		{ "kms", "us-east-1", true, true, "kms-fips.us-east-1.api.aws" },
		{ "kms", "cn-north-1", false, false, "kms.cn-north-1.amazonaws.com.cn" },
		{ "sts", "cn-north-1", false, true, "sts.cn-north-1.api.amazonwebservices.com.cn" },
		{ "sts", "us-gov-west-1", true, false, "sts.us-gov-west-1.amazonaws.com" },
		{ "kms", "us-gov-west-1", true, false, "kms-fips.us-gov-west-1.amazonaws.com" },
		{ "kms", "us-iso-east-1", false, false, "kms.us-iso-east-1.c2s.ic.gov" },
		{ "kms", "us-isob-east-1", false, false, "kms.us-isob-east-1.sc2s.sgov.gov" },
		{ "kms", "eu-isoe-west-1", false, false, "kms.eu-isoe-west-1.cloud.adc-e.uk" },
		{ "kms", "eusc-de-east-1", false, false, "kms.eusc-de-east-1.amazonaws.eu" },
	};
	char host[300];

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		awscred_host(host, cases[i].service, cases[i].region, cases[i].fips, cases[i].dual);
		assert_string_equal(host, cases[i].host);
	}
}

static void expect_hosts(struct fixture *f, bool fips, bool dualstack)
{
	bool wanted;

	assert_int_equal(awscred_fips(f->a, &wanted, f->why), 0);
	assert_int_equal(wanted, fips);
	assert_int_equal(awscred_dualstack(f->a, &wanted, f->why), 0);
	assert_int_equal(wanted, dualstack);
}

static void test_endpoint_settings(void **state)
{
	struct fixture *f = *state;

	write_file(f->config, "[profile p]\nuse_fips_endpoint = true\nuse_dualstack_endpoint = no\n");
	open_with(f, &(struct awscred_params){ .profile = "p" });
	expect_hosts(f, true, false);
	setenv("AWS_USE_FIPS_ENDPOINT", "false", 1);
	setenv("AWS_USE_DUALSTACK_ENDPOINT", "True", 1);
	expect_hosts(f, false, true);
}

static void test_split(void **state)
{
	static const struct {
		const char *text;
		int n;
		const char *word[4];
	} cases[] = {
		{ "/bin/a", 1, { "/bin/a" } },
		{ "  a \t b  ", 2, { "a", "b" } },
		{ "'a b' \"c d\" e\\ f", 3, { "a b", "c d", "e f" } },
		{ "a'b'\"c\"d '' \"\"", 3, { "abcd", "", "" } },
		{ "\"a\\\"b\\\\c\\d\" 'x\\'", 2, { "a\"b\\c\\d", "x\\" } },
		{ "C:\\\\x $HOME `id` a;b|c", 4, { "C:\\x", "$HOME", "`id`", "a;b|c" } },
		{ "'a", -EINVAL, { NULL } },
		{ "a \"b", -EINVAL, { NULL } },
		{ "a\\", -EINVAL, { NULL } },
		{ "", -EINVAL, { NULL } },
		{ "   ", -EINVAL, { NULL } },
	};
	char text[300], *argv[AWSCRED_ARGS_MAX];

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		snprintf(text, sizeof(text), "%s", cases[i].text);
		assert_int_equal(awscred_split(text, argv), cases[i].n < 0 ? cases[i].n : 0);
		for (int j = 0; j < cases[i].n; j++)
			assert_string_equal(argv[j], cases[i].word[j]);
		assert_true(cases[i].n < 0 || !argv[cases[i].n]);
	}
	for (size_t words = AWSCRED_ARGS_MAX - 1; words <= AWSCRED_ARGS_MAX; words++) {
		memset(text, ' ', sizeof(text));
		for (size_t i = 0; i < words; i++)
			text[2 * i] = 'x';
		text[2 * words] = '\0';
		assert_int_equal(awscred_split(text, argv), words < AWSCRED_ARGS_MAX ? 0 : -E2BIG);
	}
}

static void test_container_urls(void **state)
{
	static const struct {
		const char *full;
		bool good;
	} cases[] = {
		{ "http://127.0.0.1/x", true },
		{ "http://localhost:1/x", true },
		{ "http://169.254.170.2/x", true },
		{ "http://169.254.170.23/v1/credentials", true },
		{ "http://[fd00:ec2::23]/v1/credentials", true },
		{ "http://[::1]:80/x", true },
		{ "https://example.com/x", true },
		{ "http://example.com/x", false },
		{ "http://169.254.169.254/x", false },
		{ "http://127.0.0.1@example.com/x", false },
		{ "http://127.0.0.1.example.com/x", false },
		{ "http://[::1/x", false },
		{ "http://", false },
		{ "file:///etc/passwd", false },
		{ "/x", false },
	};
	char url[1024], why[AWSCRED_WHY];

	(void)state;
	for (size_t i = 0; i < N(cases); i++) {
		setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", cases[i].full, 1);
		assert_int_equal(awscred_container_url(url, why), cases[i].good ? 0 : -EINVAL);
		if (cases[i].good)
			assert_string_equal(url, cases[i].full);
	}
	setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/1", 1); /* wins */
	assert_int_equal(awscred_container_url(url, why), 0);
	assert_string_equal(url, "http://169.254.170.2/v2/credentials/1");
	setenv("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "@example.com/", 1);
	assert_int_equal(awscred_container_url(url, why), -EINVAL);
}

static void add_path(void *arg, const char *path)
{
	char *all = arg;

	assert_true(strlen(all) + strlen(path) + 2 < 1000);
	strcat(strcat(all, path), "\n");
}

static void test_paths(void **state)
{
	struct fixture *f = *state;
	char all[1000] = "", want[500];

	write_file(f->config, "[profile p]\nrole_arn = " ROLE "\nsource_profile = q\n"
	                      "[profile q]\nweb_identity_token_file = /run/token\ncredential_process = '/opt/a b' c\n");
	setenv("AWS_CA_BUNDLE", "/etc/ca", 1);
	setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/run/auth", 1);
	awscred_paths("p", add_path, all);
	snprintf(want, sizeof(want), "%s\n%s\n/etc/ca\n/run/auth\n/run/token\n/opt/a b\n",
	    f->credentials, f->config);
	assert_string_equal(all, want);
}

/* ---- containers ---- */

static void open_container(struct fixture *f)
{
	char uri[80];

	snprintf(uri, sizeof(uri), "%s/v1/credentials", f->url);
	setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri, 1);
	open_plain(f);
}

static void test_container(void **state)
{
	static const struct fake_answer script[] = { OK(DOC("AK", "Token", LATER)) };
	struct fixture *f = *state;
	char who[256];
	int64_t expires;

	begin(f, script, N(script));
	setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Bearer x", 1);
	open_container(f);
	awscred_identity(f->a, who, &expires);
	assert_string_equal(who, "");
	expect(f, "AK");
	expect(f, "AK");
	assert_int_equal(fake_seen(f->server), 1);
	expect_request(f, 0, "GET /v1/credentials HTTP/1.1\r\n", "\r\nAuthorization: Bearer x\r\n");
	awscred_identity(f->a, who, &expires);
	assert_non_null(strstr(who, "/v1/credentials"));
	assert_int_equal(expires, 1795327200);
}

static void test_dates(void **state)
{
	static const struct {
		const char *text;
		int result;
		int64_t expires;
	} cases[] = {
		{ "2026-11-22T05:00:10Z", 0, 1795323610 },
		{ "2026-11-22T05:00:10.123456Z", 0, 1795323610 },
		{ "2026-11-22T06:00:10+01:00", 0, 1795323610 },
		{ "2026-11-22T03:30:10-01:30", 0, 1795323610 },
		{ "2026-11-22T05:00:10+00:00", 0, 1795323610 },
		{ "2026-11-22T05:00:00Z", -ETIMEDOUT, 0 }, /* over: never extended */
		{ "2026-11-22T05:00:10", -EINVAL, 0 },
		{ "tomorrow", -EINVAL, 0 },
		{ "2026-11-22T05:00:10Zx", -EINVAL, 0 },
		{ "", 0, 1795324500 }, /* a quarter of an hour */
	};
	struct fake_answer script[] = { OK(NULL) };
	struct fixture *f = *state;
	char body[300], who[256];
	int64_t expires;

	script[0].body = body;
	for (size_t i = 0; i < N(cases); i++) {
		stop(f);
		snprintf(body, sizeof(body),
		    "{\"AccessKeyId\":\"AK\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\"Expiration\":\"%s\"}",
		    cases[i].text);
		begin(f, script, 1);
		open_container(f);
		assert_int_equal(get_within(f, 300, NULL), cases[i].result);
		awscred_identity(f->a, who, &expires);
		assert_int_equal(expires, cases[i].expires);
	}
}

static void test_container_trouble(void **state)
{
	static const struct fake_answer recovers[] = { FAIL(503, ""), { .act = FAKE_DROP },
		OK(DOC("AK", "Token", LATER)) };
	static const struct {
		struct fake_answer answer;
		int error;
		const char *words;
	} cases[] = {
		{ FAIL(401, "no"), -EINVAL, "authorization token" },
		{ FAIL(404, ""), -EINVAL, "HTTP status 404" },
		{ OK("nonsense"), -EINVAL, "no AccessKeyId" },
		{ OK("[]"), -EINVAL, "no AccessKeyId" },
		{ OK("{\"AccessKeyId\":1}"), -EINVAL, "no AccessKeyId" },
		{ OK("{\"Code\":\"No\\u001b[1mRole\",\"Message\":\"m\"}"), -EINVAL, "No?[1mRole" },
		{ FAIL(500, ""), -ETIMEDOUT, "HTTP status 500" },
	};
	struct fixture *f = *state;

	begin(f, recovers, N(recovers));
	open_container(f);
	expect(f, "AK");
	for (size_t i = 0; i < N(cases); i++) {
		begin(f, &cases[i].answer, 1);
		open_container(f);
		expect_error(f, cases[i].error, cases[i].words);
		assert_int_equal(fake_seen(f->server), cases[i].error == -ETIMEDOUT ? 3 : 1);
	}
	setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "a\r\nb", 1);
	expect_error(f, -EINVAL, "line breaks");
	assert_int_equal(fake_seen(f->server), 3); /* it was not asked */
}

/* ---- instances ---- */

static void open_instance(struct fixture *f)
{
	unsetenv("AWS_EC2_METADATA_DISABLED");
	setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f->url, 1);
	open_plain(f);
}

static void test_instance(void **state)
{
	static const struct fake_answer script[] = { OK("TOKEN=="), OK("my-role\n"), OK(DOC("AK", "Token", LATER)) };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_instance(f);
	expect(f, "AK");
	assert_int_equal(fake_seen(f->server), 3);
	expect_request(
	    f, 0, "PUT /latest/api/token HTTP/1.1\r\n", "\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\n");
	expect_request(f, 1, "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\n",
	    "\r\nx-aws-ec2-metadata-token: TOKEN==\r\n");
	expect_request(f, 2, "GET /latest/meta-data/iam/security-credentials/my-role HTTP/1.1\r\n",
	    "\r\nx-aws-ec2-metadata-token: TOKEN==\r\n");
}

/* Without a session token there is no second try without one. */
static void test_instance_never_v1(void **state)
{
	static const long statuses[] = { 400, 403, 404, 405 };
	static const struct fake_answer no_role[] = { OK("T"), FAIL(404, "") }, odd_role[] = { OK("T"), OK("a/../b") };
	struct fake_answer script[] = { FAIL(0, "") };
	struct fixture *f = *state;

	for (size_t i = 0; i < N(statuses); i++) {
		script[0].status = (int)statuses[i];
		begin(f, script, 1);
		open_instance(f);
		expect_error(f, -ENOENT, "no AWS credentials");
		assert_int_equal(fake_seen(f->server), 1);
	}
	begin(f, no_role, N(no_role));
	open_instance(f);
	expect_error(f, -ENOENT, "no AWS credentials");
	begin(f, odd_role, N(odd_role));
	open_instance(f);
	expect_error(f, -EINVAL, "names no role");
	assert_int_equal(fake_seen(f->server), 2);
	setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv5", 1);
	expect_error(f, -EINVAL, "IPv5");
}

/* Silence means "no instance" only until it has answered once. */
static void test_instance_goes_silent(void **state)
{
	static const struct fake_answer script[] = { OK("T"), OK("r"), OK(DOC("AK", "Token", SOON)),
		{ .act = FAKE_DROP } };
	static const struct fake_answer deaf[] = { { .act = FAKE_HANG } };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_instance(f);
	expect(f, "AK");
	wait_seen(f, 4); /* the refresher has failed; the last of the credentials serve on, and then no more */
	while (!get_within(f, 1000, "AK"))
		;
	expect_error(f, -ETIMEDOUT, "IMDS");
	begin(f, deaf, 1);
	open_instance(f);
	expect_error(f, -ENOENT, "IMDS gives none");
}

static void test_instance_region(void **state)
{
	static const struct fake_answer script[] = { OK("T"), OK("eu-north-1") };
	struct fixture *f = *state;
	char region[64];

	begin(f, script, N(script));
	open_instance(f);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(awscred_region(f->a, region, f->why), 0);
		assert_string_equal(region, "eu-north-1");
	}
	assert_int_equal(fake_seen(f->server), 2);
	setenv("AWS_ACCESS_KEY_ID", "AK", 1); /* not an instance's credentials: it is not asked */
	setenv("AWS_SECRET_ACCESS_KEY", "s", 1);
	begin(f, script, N(script));
	open_instance(f);
	assert_int_equal(awscred_region(f->a, region, f->why), 0);
	assert_string_equal(region, "");
	assert_int_equal(fake_seen(f->server), 0);
}

/* ---- roles ---- */

static void open_role(struct fixture *f, const char *external_id, const char *session)
{
	setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "secret", 1);
	setenv("AWS_ENDPOINT_URL_STS", f->url, 1);
	open_with(f, &(struct awscred_params){ .region = "eu-west-1",
	                 .role_arn = ROLE,
	                 .external_id = external_id,
	                 .session_name = session });
}

static void test_role(void **state)
{
	static const struct fake_answer script[] = { OK(GIVEN("ASIA", LATER)) };
	struct fixture *f = *state;
	char who[256], long_url[900];
	int64_t expires;

	begin(f, script, 1);
	open_role(f, "a+b=c/d", "me@host");
	expect(f, "ASIA");
	expect_request(f, 0, "POST / HTTP/1.1\r\n",
	    "\r\n\r\nAction=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fhost"
	    "&RoleSessionName=me%40host&DurationSeconds=900&ExternalId=a%2Bb%3Dc%2Fd");
	expect_request(f, 0, "POST", "/eu-west-1/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date, ");
	awscred_identity(f->a, who, &expires);
	assert_string_equal(who, "role " ROLE " through the environment");
	open_role(f, NULL, NULL);
	expect(f, "ASIA");
	expect_request(f, 1, "POST", "&RoleSessionName=byokfs-");
	expect_absent(f, 1, "ExternalId");
	open_role(f, "x", NULL);
	expect_error(f, -EINVAL, "external id");
	open_role(f, NULL, "x");
	expect_error(f, -EINVAL, "session name");
	memset(long_url, 'x', sizeof(long_url) - 1);
	long_url[sizeof(long_url) - 1] = '\0';
	memcpy(long_url, f->url, strlen(f->url));
	snprintf(f->url, sizeof(f->url), "unused");
	open_role(f, NULL, NULL);
	setenv("AWS_ENDPOINT_URL_STS", long_url, 1);
	expect_error(f, -EINVAL, "too long");
}

/* A silent Region's STS is left for that of a replica's Region; a denial is final. */
static void test_other_regions(void **state)
{
	static const struct fake_answer script[] = { FAIL(503, ""), { .act = FAKE_DROP }, OK(GIVEN("ASIA", LATER)) };
	static const struct fake_answer denied[] = { FAIL(503, ""), FAIL(403, DENIED), OK(GIVEN("ASIA", LATER)) };
	static const struct fake_answer down[] = { FAIL(503, "") };
	struct awscred_params params = { .region = "eu-west-1",
		.role_arn = ROLE,
		.replicas = "arn:aws:kms:eu-west-2:1:key/mrk-1, arn:aws:kms:eu-west-3:1:key/mrk-1" };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_role(f, NULL, NULL);
	open_with(f, &params);
	expect(f, "ASIA");
	expect_request(f, 0, "POST", "/eu-west-1/sts/aws4_request");
	expect_request(f, 1, "POST", "/eu-west-2/sts/aws4_request");
	begin(f, denied, N(denied));
	setenv("AWS_ENDPOINT_URL_STS", f->url, 1);
	open_with(f, &params);
	expect_error(f, -EACCES, "AccessDenied");
	assert_int_equal(fake_seen(f->server), 2);
	begin(f, down, N(down));
	setenv("AWS_ENDPOINT_URL_STS", f->url, 1);
	open_with(f, &params);
	expect_error(f, -ETIMEDOUT, "HTTP status 503");
	assert_int_equal(fake_seen(f->server), 3);
	expect_request(f, 2, "POST", "/eu-west-3/sts/aws4_request");
}

/* Another Region's STS, and other replicas', without opening anew; credentials that serve are asked for again. */
static void test_region_changes(void **state)
{
	static const struct fake_answer script[] = { FAIL(503, ""), OK(GIVEN("ASIA", LATER)), FAIL(503, ""),
		FAIL(503, ""), OK(GIVEN("ASIB", LATER)) };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_role(f, NULL, NULL);
	expect_error(f, -ETIMEDOUT, "HTTP status 503");
	expect_request(f, 0, "POST", "/eu-west-1/sts/aws4_request");
	assert_int_equal(awscred_reconfigure(f->a, "us-east-1", NULL), 0);
	expect(f, "ASIA");
	expect_request(f, 1, "POST", "/us-east-1/sts/aws4_request");
	assert_int_equal(awscred_reconfigure(f->a, "us-east-1", NULL), 0); /* nothing new */
	expect(f, "ASIA");
	assert_int_equal(fake_seen(f->server), 2);
	assert_int_equal(awscred_reconfigure(f->a, "us-east-2",
	                     "arn:aws:kms:us-west-1:1:key/mrk-1, arn:aws:kms:us-west-2:1:key/mrk-1"),
	    0);
	expect(f, "ASIB");
	expect_request(f, 2, "POST", "/us-east-2/sts/aws4_request");
	expect_request(f, 3, "POST", "/us-west-1/sts/aws4_request");
	expect_request(f, 4, "POST", "/us-west-2/sts/aws4_request");
}

static void test_web_identity(void **state)
{
	static const struct fake_answer script[] = { OK(GIVEN("ASIA", SOON)), OK(GIVEN("ASIB", LATER)) };
	struct fixture *f = *state;
	char token[80];

	begin(f, script, 2);
	snprintf(token, sizeof(token), "%s/token", f->dir);
	write_file(token, "eyJ.one+two\n");
	setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token, 1);
	setenv("AWS_ROLE_ARN", ROLE, 1);
	setenv("AWS_ENDPOINT_URL_STS", f->url, 1);
	open_plain(f);
	expect(f, "ASIA");
	expect_request(f, 0, "POST / HTTP/1.1\r\n", "Action=AssumeRoleWithWebIdentity&");
	expect_request(f, 0, "POST", "&WebIdentityToken=eyJ.one%2Btwo");
	expect_absent(f, 0, "Authorization");
	write_file(token, "eyJ.three"); /* read again each time */
	wait_seen(f, 2);
	expect_request(f, 1, "POST", "&WebIdentityToken=eyJ.three");
	assert_int_equal(unlink(token), 0);
}

static void test_sts_answers(void **state)
{
	static const struct {
		struct fake_answer answer;
		int error;
		const char *words;
	} cases[] = {
		{ FAIL(403, DENIED), -EACCES, "AccessDenied" },
		{ FAIL(400, DENIED), -EACCES, "AccessDenied" }, /* by code, not by status */
		{ FAIL(403, "<ErrorResponse><Error><Code>Throttling</Code></Error></ErrorResponse>"), -ETIMEDOUT,
		    "Throttling" },
		{ FAIL(400, "<ErrorResponse><Error><Code>IDPCommunicationError</Code></Error></ErrorResponse>"),
		    -ETIMEDOUT, "IDPCommunicationError" },
		{ FAIL(503, "<html/>"), -ETIMEDOUT, "HTTP status 503" },
		{ FAIL(500, ""), -ETIMEDOUT, "HTTP status 500" },
		{ FAIL(403, "<html>Forbidden"), -EINVAL, "HTTP status 403" },
		{ FAIL(403, "<ErrorResponse><Error><Code>ExpiredToken</Code></Error></ErrorResponse>"), -EINVAL,
		    "ExpiredToken" },
		{ OK("<html>Please log in</html>"), -EINVAL, "no credentials" },
		{ OK(""), -EINVAL, "XML" },
		{ OK("{}"), -EINVAL, "XML" },
		{ OK("<!DOCTYPE a><a/>"), -EINVAL, "XML" },
		{ OK(GIVEN("ASIA", "never")), -EINVAL, "never" },
		{ OK(GIVEN("ASIA", "2026-11-22T04:59:59Z")), -ETIMEDOUT, "expired" },
		{ { .act = FAKE_DROP }, -ETIMEDOUT, "does not answer" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < N(cases); i++) {
		begin(f, &cases[i].answer, 1);
		open_role(f, NULL, NULL);
		expect_error(f, cases[i].error, cases[i].words);
	}
	setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1/path", 1);
	open_role(f, NULL, NULL);
	setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1/path", 1);
	expect_error(f, -EINVAL, "not an endpoint URL");
}

/* ---- time ---- */

static void test_renewed_ahead(void **state)
{
	static const struct fake_answer script[] = { OK(DOC("AK1", "Token", SOON)), OK(DOC("AK2", "Token", SOON)),
		OK(DOC("AK3", "Token", LATER)) };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_container(f);
	expect(f, "AK1");
	wait_seen(f, 3); /* nobody asked meanwhile */
	wait_expires(f, 1795327200);
	expect(f, "AK3");
	assert_int_equal(fake_seen(f->server), 3);
}

/* Nobody waits for a source that hangs while credentials serve; and when they have ended, none are given. */
static void test_expired_is_not_used(void **state)
{
	static const struct fake_answer script[] = { OK(DOC("AK", "Token", SOON)), { .act = FAKE_HANG } };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_container(f);
	expect(f, "AK");
	wait_seen(f, 2); /* the refresher waits for an answer now */
	while (get_within(f, 20, "AK") == 0)
		;
	assert_int_equal(get_within(f, 20, NULL), -ETIMEDOUT);
}

static void test_refresh(void **state)
{
	static const struct fake_answer script[] = { OK(GIVEN("ASI1", LATER)), OK(GIVEN("ASI2", LATER)),
		FAIL(503, ""), FAIL(403, DENIED), FAIL(503, ""), OK(GIVEN("ASI3", LATER)) };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_role(f, NULL, NULL);
	expect(f, "ASI1");
	expect(f, "ASI1");
	awscred_refresh(f->a);
	expect(f, "ASI2");
	awscred_refresh(f->a);
	expect(f, "ASI2"); /* no answer: what is at hand still serves */
	assert_int_equal(fake_seen(f->server), 3);
	awscred_refresh(f->a);
	expect_error(f, -EACCES, "AccessDenied");
	expect_error(f, -ETIMEDOUT, "503"); /* and is gone with the denial */
	expect(f, "ASI3");
}

static void test_denied_renewal(void **state)
{
	static const struct fake_answer script[] = { OK(GIVEN("ASIA", SOON)), FAIL(403, DENIED) };
	struct fixture *f = *state;

	begin(f, script, N(script));
	open_role(f, NULL, NULL);
	expect(f, "ASIA");
	wait_seen(f, 2);
	while (get_within(f, 1000, "ASIA") == 0)
		;
	expect_error(f, -EACCES, "AccessDenied");
}

static unsigned threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	unsigned n = 0;

	assert_non_null(tasks);
	while (readdir(tasks))
		n++;
	(void)closedir(tasks);
	return n;
}

/* There is no thread before there is something to renew, and none afterwards. */
static void test_thread(void **state)
{
	static const struct fake_answer script[] = { OK(GIVEN("ASIA", LATER)) };
	struct fixture *f = *state;
	unsigned before;

	begin(f, script, 1);
	before = threads();
	setenv("AWS_ACCESS_KEY_ID", "AK", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "s", 1);
	open_plain(f);
	expect(f, "AK");
	assert_int_equal(threads(), before);
	open_role(f, NULL, NULL);
	assert_int_equal(threads(), before);
	expect(f, "ASIA");
	expect(f, "ASIA");
	assert_int_equal(threads(), before + 1);
	awscred_close(f->a);
	f->a = NULL;
	assert_int_equal(threads(), before);
}

static void *one_caller(void *arg)
{
	struct fixture *f = arg;
	struct sigv4_credentials *c = NULL;
	char why[AWSCRED_WHY];
	int r = awscred_get(f->a, io_boot_ms() + 10000, &c, why);
	bool good = !r && !strcmp(c->access_key, "AK");

	awscred_put(c);
	return good ? arg : NULL;
}

static void test_one_walk_for_all(void **state)
{
	static const struct fake_answer script[] = { OK(DOC("AK", "Token", LATER)) };
	struct fixture *f = *state;
	pthread_t thread[8];
	void *good;

	begin(f, script, 1);
	open_container(f);
	for (size_t i = 0; i < N(thread); i++)
		assert_int_equal(pthread_create(&thread[i], NULL, one_caller, f), 0);
	for (size_t i = 0; i < N(thread); i++) {
		assert_int_equal(pthread_join(thread[i], &good), 0);
		assert_non_null(good);
	}
	assert_int_equal(fake_seen(f->server), 1);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, stop_server)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH(test_hosts),
		WITH(test_endpoint_settings),
		WITH(test_split),
		WITH(test_container_urls),
		WITH(test_paths),
		WITH(test_container),
		WITH(test_dates),
		WITH(test_container_trouble),
		WITH(test_instance),
		WITH(test_instance_never_v1),
		WITH(test_instance_goes_silent),
		WITH(test_instance_region),
		WITH(test_role),
		WITH(test_other_regions),
		WITH(test_region_changes),
		WITH(test_web_identity),
		WITH(test_sts_answers),
		WITH(test_renewed_ahead),
		WITH(test_expired_is_not_used),
		WITH(test_refresh),
		WITH(test_denied_renewal),
		WITH(test_thread),
		WITH(test_one_walk_for_all),
	};

	if (secret_init(true))
		return 1;
	log_setup("test", LOG_LEVEL_ERR, false);
	return cmocka_run_group_tests_name("awscred sources", tests, NULL, NULL);
}
