/* awscred: the order of sources, the dialect of the files, and rotation. */
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <time.h>

#include "awscred_fixture.h"
#include "secret.h"

static void open_profile(struct fixture *f, const char *profile)
{
	open_with(f, &(struct awscred_params){ .profile = profile });
}

static void expect_all(struct fixture *f, const char *access, const char *secret, const char *token)
{
	struct sigv4_credentials *c = NULL;

	assert_int_equal(awscred_get(f->a, UINT64_MAX, &c, f->why), 0);
	assert_string_equal(c->access_key, access);
	assert_string_equal(c->secret_key, secret);
	if (token)
		assert_string_equal(c->session_token, token);
	else
		assert_null(c->session_token);
	awscred_put(c);
}

#define PLAIN "[default]\naws_access_key_id = AKDEFAULT\naws_secret_access_key = s/default+1=\n"

static void test_environment_comes_first(void **state)
{
	struct fixture *f = *state;

	write_file(f->credentials, PLAIN);
	setenv("AWS_ACCESS_KEY_ID", "AKENV", 1);
	setenv("AWS_SECRET_ACCESS_KEY", "senv", 1);
	open_profile(f, NULL);
	expect_all(f, "AKENV", "senv", NULL);
	setenv("AWS_SESSION_TOKEN", "tok", 1);
	expect_all(f, "AKENV", "senv", "tok");
	setenv("AWS_PROFILE", "other", 1); /* does not switch the environment off */
	expect_all(f, "AKENV", "senv", "tok");
	open_profile(f, "default"); /* naming one does */
	expect_all(f, "AKDEFAULT", "s/default+1=", NULL);
	open_profile(f, NULL);
	unsetenv("AWS_SECRET_ACCESS_KEY");
	expect_error(f, -EINVAL, "only one is set");
}

static void test_profiles(void **state)
{
	struct fixture *f = *state;

	write_file(f->credentials,
	    PLAIN "[other]\naws_access_key_id=AKOTHER\naws_secret_access_key=s2\naws_session_token=t2\n");
	write_file(f->config,
	    "[profile third]\naws_access_key_id = AK3\naws_secret_access_key = s3\n"
	    "[profile \"fourth one\"]\naws_access_key_id = AK4\naws_secret_access_key = s4\n"
	    "[profile other]\naws_access_key_id = AKNEVER\naws_secret_access_key = never\n");
	open_profile(f, NULL);
	expect_all(f, "AKDEFAULT", "s/default+1=", NULL);
	open_profile(f, "other");
	expect_all(f, "AKOTHER", "s2", "t2");
	open_profile(f, "third");
	expect_all(f, "AK3", "s3", NULL);
	open_profile(f, "fourth one");
	expect_all(f, "AK4", "s4", NULL);
	setenv("AWS_DEFAULT_PROFILE", "third", 1);
	open_profile(f, NULL);
	expect_all(f, "AK3", "s3", NULL);
	setenv("AWS_PROFILE", "other", 1);
	open_profile(f, NULL);
	expect_all(f, "AKOTHER", "s2", "t2");
}

static void test_nothing_found(void **state)
{
	struct fixture *f = *state;

	open_profile(f, NULL);
	expect_error(f, -ENOENT,
	    "AWS_ACCESS_KEY_ID is not set, profile 'default' has no keys, no web identity, no container, IMDS is "
	    "switched off");
	write_file(f->credentials, PLAIN);
	write_file(f->config, "[other]\naws_access_key_id=x\naws_secret_access_key=y\n[profile empty]\nregion = x\n");
	open_profile(f, "other"); /* the config file wants "profile other" */
	expect_error(f, -ENOENT, "profile 'other' is not in");
	open_profile(f, "empty");
	expect_error(f, -ENOENT, "profile 'empty'");
	write_file(f->credentials, "[half]\naws_access_key_id=x\n");
	open_profile(f, "half");
	expect_error(f, -EINVAL, "only one of");
}

static void test_unsupported_profiles(void **state)
{
	static const struct {
		const char *line, *words;
	} cases[] = {
		{ "sso_start_url = https://x", "single sign-on" },
		{ "sso_session = x", "single sign-on" },
		{ "mfa_serial = arn:x", "MFA" },
		{ "login_session = x", "login session" },
	};
	struct fixture *f = *state;
	char text[200];

	write_file(f->credentials, "[p]\naws_access_key_id=x\naws_secret_access_key=y\n");
	for (size_t i = 0; i < N(cases); i++) {
		snprintf(text, sizeof(text), "[profile p]\n%s\n", cases[i].line);
		write_file(f->config, text);
		open_profile(f, "p");
		expect_error(f, -EINVAL, cases[i].words);
		assert_non_null(strstr(f->why, "profile 'p'"));
	}
	write_file(f->config, "[profile q]\nsso_session = x\n");
	open_profile(f, "p");
	expect_all(f, "x", "y", NULL);
}

static void test_dialect(void **state)
{
	struct fixture *f = *state;

	write_file(
	    f->credentials, "# comment\n; comment\n\n  [ p ]  # comment\r\n\taws_access_key_id\t=\tAK \t; comment\r\n");
	open_profile(f, "p");
	expect_error(f, -EINVAL, "only one of");
	write_file(f->credentials, "[p]\n  aws_access_key_id = AK\n  aws_secret_access_key = s\n\n[q]\n");
	expect_all(f, "AK", "s", NULL);
	write_file(f->credentials,
	    "[p]\naws_access_key_id = AK\naws_secret_access_key=a#b;c=d \t\n"
	    "s3 =\n  max_concurrent_requests = 20\n  aws_session_token = not this\nunknown = x");
	open_profile(f, "p");
	expect_all(f, "AK", "a#b;c=d", NULL);
}

static void test_malformed_files(void **state)
{
	static const struct {
		const char *text, *words;
	} cases[] = {
		{ "aws_access_key_id = x\n", "credentials:1: a key outside any section" },
		{ "[p\n", "credentials:1: malformed section" },
		{ "[p] x\n", ":1: malformed section" },
		{ "[]\n", ":1: empty section name" },
		{ "[p]\nnonsense\n", ":2: expected 'key = value'" },
		{ "[p]\n= x\n", ":2: a value without a key" },
		{ "[p]\nregion = x\n  more = y\n", ":3: continuation lines" },
		{ "[p]\nregion = x\nregion = y\n", ":3: 'region' is given twice" },
		{ "[p]\nregion = 0123456789012345678901234567890123456789012345678901234567890123456789\n",
		    ":2: 'region' is too long" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < N(cases); i++) {
		write_file(f->credentials, cases[i].text);
		open_profile(f, "p");
		expect_error(f, -EINVAL, cases[i].words);
	}
}

static void test_unreadable_files(void **state)
{
	struct fixture *f = *state;
	int fd = open(f->credentials, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	assert_int_equal(write(fd, "[p]\n\0", 5), 5);
	open_profile(f, "p");
	expect_error(f, -EINVAL, "cannot read");
	assert_int_equal(ftruncate(fd, 1048577), 0);
	close(fd);
	expect_error(f, -EFBIG, f->credentials);
	assert_int_equal(unlink(f->credentials), 0);
	assert_int_equal(symlink(f->credentials, f->credentials), 0);
	expect_error(f, -ELOOP, "cannot read");
	assert_int_equal(unlink(f->credentials), 0);
	assert_int_equal(mkfifo(f->credentials, 0600), 0); /* must not hang */
	expect_error(f, -EINVAL, "cannot read");
	assert_int_equal(unlink(f->credentials), 0);
	write_file(f->credentials, PLAIN);
	assert_int_equal(chmod(f->credentials, 0), 0);
	(void)setfsuid(65534); /* root may read everything */
	expect_error(f, -EPERM, "cannot read"); /* EACCES is STS's */
	(void)setfsuid(geteuid());
}

/* Within the second that passes between two looks, and however slow the machine. */
static void expect_soon(struct fixture *f, const char *access)
{
	struct sigv4_credentials *c = NULL;
	bool found = false;

	for (int i = 0; !found; i++) {
		assert_true(i < 4000);
		(void)nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
		found = !awscred_get(f->a, UINT64_MAX, &c, f->why) == !!access;
		found = found && (!access || !strcmp(c->access_key, access));
		awscred_put(c);
		c = NULL;
	}
}

/* Same length, same name: only what stat(2) says differs. */
static void test_rotation_is_noticed(void **state)
{
	struct fixture *f = *state;
	char other[100];

	write_file(f->credentials, "[p]\naws_access_key_id=AK1\naws_secret_access_key=s1\n");
	open_profile(f, "p");
	expect_all(f, "AK1", "s1", NULL);
	snprintf(other, sizeof(other), "%s.new", f->credentials);
	write_file(other, "[p]\naws_access_key_id=AK2\naws_secret_access_key=s2\n");
	assert_int_equal(rename(other, f->credentials), 0);
	expect_soon(f, "AK2");
	assert_int_equal(unlink(f->credentials), 0);
	expect_soon(f, NULL);
	expect_error(f, -ENOENT, "profile 'p' is not");
	write_file(f->credentials, "[p]\naws_access_key_id=AK3\naws_secret_access_key=s3\n");
	expect_all(f, "AK3", "s3", NULL);
	awscred_refresh(f->a);
	expect_all(f, "AK3", "s3", NULL);
}

/* ---- a file system that hangs ---- */

static char hanging[80]; /* this file's */
static atomic_int looks, stuck;
static sem_t answer;

int stat(const char *path, struct stat *st)
{
	atomic_fetch_add(&looks, 1);
	if (*hanging && !strcmp(path, hanging)) {
		atomic_fetch_add(&stuck, 1);
		(void)sem_wait(&answer);
		atomic_fetch_sub(&stuck, 1);
	}
	return fstatat(AT_FDCWD, path, st, 0);
}

static void *late_caller(void *arg)
{
	struct fixture *f = arg;
	struct sigv4_credentials *c = NULL;
	static char why[AWSCRED_WHY];
	int r = awscred_get(f->a, io_boot_ms(), &c, why);

	return r == -ETIMEDOUT && strstr(why, "slow") ? arg : NULL;
}

/* One caller is stuck, and too late when it comes back; nobody else waits for it. */
static void test_hanging_home(void **state)
{
	struct fixture *f = *state;
	int64_t expires;
	pthread_t late;
	char who[256];
	void *right;

	assert_int_equal(sem_init(&answer, 0, 0), 0);
	write_file(f->credentials, "[p]\naws_access_key_id=AK1\naws_secret_access_key=s1\n");
	open_profile(f, "p");
	expect_all(f, "AK1", "s1", NULL);
	strcpy(hanging, f->credentials);
	assert_int_equal(pthread_create(&late, NULL, late_caller, f), 0);
	while (!atomic_load(&stuck))
		(void)sched_yield();
	awscred_identity(f->a, who, &expires);
	for (int i = 0; i < 10; i++)
		expect_all(f, "AK1", "s1", NULL);
	assert_int_equal(atomic_load(&stuck), 1);
	*hanging = '\0';
	assert_int_equal(sem_post(&answer), 0);
	assert_int_equal(pthread_join(late, &right), 0);
	assert_non_null(right);
	atomic_store(&looks, 0);
	for (int i = 0; i < 1000; i++)
		expect_all(f, "AK1", "s1", NULL);
	assert_true(atomic_load(&looks) < 1000); /* once a second, not once a call */
}

static void test_long_tokens(void **state)
{
	struct fixture *f = *state;
	char *token = test_malloc(9000), *text = test_malloc(9100);

	memset(token, 't', 9000);
	token[8191] = '\0';
	snprintf(text, 9100, "[p]\naws_access_key_id=A\naws_secret_access_key=s\naws_session_token=%s\n", token);
	write_file(f->credentials, text);
	open_profile(f, "p");
	expect_all(f, "A", "s", token);
	setenv("AWS_ACCESS_KEY_ID", "AK", 1);
	setenv("AWS_SECRET_ACCESS_KEY", token, 1);
	open_profile(f, NULL);
	expect_error(f, -EINVAL, "too long");
	test_free(token);
	test_free(text);
}

static void expect_region(struct fixture *f, const char *expected)
{
	char region[64] = "?";

	assert_int_equal(awscred_region(f->a, region, f->why), 0);
	assert_string_equal(region, expected);
}

static void test_region(void **state)
{
	struct fixture *f = *state;
	char region[64];

	open_profile(f, "p");
	expect_region(f, "");
	write_file(f->credentials, "[p]\nregion = us-east-2\n");
	expect_region(f, "us-east-2");
	write_file(f->config, "[profile p]\nregion = eu-central-1\n");
	expect_region(f, "eu-central-1");
	setenv("AWS_DEFAULT_REGION", "eu-west-2", 1);
	expect_region(f, "eu-west-2");
	setenv("AWS_REGION", "eu-west-1", 1);
	expect_region(f, "eu-west-1");
	setenv("AWS_REGION", "0123456789012345678901234567890123456789012345678901234567890123456789", 1);
	assert_int_equal(awscred_region(f->a, region, f->why), -EINVAL);
	assert_non_null(strstr(f->why, "the Region '0123"));
	assert_string_equal(region, "");
}

static void expect_endpoint(struct fixture *f, const char *expected)
{
	char endpoint[512] = "?";

	assert_int_equal(awscred_endpoint(f->a, "kms", endpoint, f->why), 0);
	assert_string_equal(endpoint, expected);
}

static void test_endpoint(void **state)
{
	struct fixture *f = *state;

	open_profile(f, "p");
	expect_endpoint(f, "");
	write_file(f->config, "[profile p]\nendpoint_url = http://localhost:1\n");
	expect_endpoint(f, "http://localhost:1");
	write_file(f->config,
	    "[profile p]\nendpoint_url = http://localhost:1\nservices = mine\n"
	    "[services other]\nkms =\n  endpoint_url = http://localhost:8\n"
	    "[services mine]\ns3 =\n  endpoint_url = http://localhost:9\nkms =\n  endpoint_url = http://localhost:2\n");
	expect_endpoint(f, "http://localhost:2");
	setenv("AWS_ENDPOINT_URL", "http://localhost:3", 1);
	expect_endpoint(f, "http://localhost:3");
	setenv("AWS_ENDPOINT_URL_KMS", "http://localhost:4", 1);
	expect_endpoint(f, "http://localhost:4");
	setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true", 1);
	expect_endpoint(f, "");
	clear_env();
	setenv("AWS_CONFIG_FILE", f->config, 1);
	write_file(
	    f->config, "[profile p]\nendpoint_url = http://localhost:1\nignore_configured_endpoint_urls = true\n");
	expect_endpoint(f, "");
}

/* Settings in a file that cannot be understood are not settings that nobody made. */
static void test_unreadable_settings(void **state)
{
	struct fixture *f = *state;
	char out[512], url[600];
	bool wanted;

	open_profile(f, "p");
	write_file(f->config, "[profile p]\nuse_fips_endpoint = true\nendpoint_url = http://localhost:1\ngarbage\n");
	assert_int_equal(awscred_fips(f->a, &wanted, f->why), -EINVAL);
	assert_non_null(strstr(f->why, f->config));
	assert_int_equal(awscred_dualstack(f->a, &wanted, f->why), -EINVAL);
	assert_int_equal(awscred_endpoint(f->a, "kms", out, f->why), -EINVAL);
	assert_string_equal(out, "");
	assert_int_equal(awscred_region(f->a, out, f->why), -EINVAL);
	setenv("AWS_USE_FIPS_ENDPOINT", "true", 1); /* the file is not asked */
	assert_int_equal(awscred_fips(f->a, &wanted, f->why), 0);
	assert_true(wanted);
	memset(url, 'x', sizeof(url) - 1);
	url[sizeof(url) - 1] = '\0';
	memcpy(url, "https://", 8);
	setenv("AWS_ENDPOINT_URL", url, 1);
	assert_int_equal(awscred_endpoint(f->a, "kms", out, f->why), -EINVAL);
	assert_non_null(strstr(f->why, "too long"));
	assert_string_equal(out, "");
}

static void test_home(void **state)
{
	struct fixture *f = *state;
	char aws[60], path[80], *old = getenv("HOME") ? strdup(getenv("HOME")) : NULL;

	snprintf(aws, sizeof(aws), "%s/.aws", f->dir);
	assert_int_equal(mkdir(aws, 0700), 0);
	snprintf(path, sizeof(path), "%s/credentials", aws);
	write_file(path, PLAIN);
	setenv("HOME", f->dir, 1);
	unsetenv("AWS_SHARED_CREDENTIALS_FILE");
	open_profile(f, NULL);
	expect_all(f, "AKDEFAULT", "s/default+1=", NULL);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", 1);
	open_profile(f, NULL);
	expect_all(f, "AKDEFAULT", "s/default+1=", NULL);
	if (old)
		setenv("HOME", old, 1);
	free(old);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(aws), 0);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH(test_environment_comes_first),
		WITH(test_profiles),
		WITH(test_nothing_found),
		WITH(test_unsupported_profiles),
		WITH(test_dialect),
		WITH(test_malformed_files),
		WITH(test_unreadable_files),
		WITH(test_rotation_is_noticed),
		WITH(test_hanging_home),
		WITH(test_long_tokens),
		WITH(test_region),
		WITH(test_endpoint),
		WITH(test_unreadable_settings),
		WITH(test_home),
	};

	(void)alarm(100); /* what waits for a hanging file waits for ever */
	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("awscred", tests, NULL, NULL);
}
