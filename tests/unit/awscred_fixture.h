/* awscred_fixture.h — for awscred's tests: a directory with the files of AWS's own tools, an environment that names
 * nothing else, and a source of credentials. */
#ifndef BYOKFS_TEST_AWSCRED_FIXTURE_H
#define BYOKFS_TEST_AWSCRED_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../src/awscred_internal.h"
#include "io.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

struct fixture {
	char dir[48], credentials[96], config[96], why[AWSCRED_WHY], url[64];
	struct awscred *a;
	struct fake *server; /* the test's own */
};

static inline void write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

static inline void clear_env(void)
{
	static const char *const names[] = { "AWS_ACCESS_KEY_ID", "AWS_CA_BUNDLE", "AWS_CONFIG_FILE",
		"AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CREDENTIAL_EXPIRATION", "AWS_DEFAULT_PROFILE", "AWS_DEFAULT_REGION",
		"AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_ENDPOINT_URL",
		"AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL_STS", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_PROFILE",
		"AWS_REGION", "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_SHARED_CREDENTIALS_FILE", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT",
		"AWS_WEB_IDENTITY_TOKEN_FILE" };

	for (size_t i = 0; i < N(names); i++)
		unsetenv(names[i]);
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
}

static inline int setup(void **state)
{
	struct fixture *f = test_calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/byokfs-awscred.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->credentials, sizeof(f->credentials), "%s/credentials", f->dir);
	snprintf(f->config, sizeof(f->config), "%s/config", f->dir);
	clear_env();
	setenv("AWS_SHARED_CREDENTIALS_FILE", f->credentials, 1);
	setenv("AWS_CONFIG_FILE", f->config, 1);
	*state = f;
	return 0;
}

static inline int teardown(void **state)
{
	struct fixture *f = *state;

	awscred_close(f->a);
	clear_env();
	(void)unlink(f->credentials);
	(void)unlink(f->config);
	assert_int_equal(rmdir(f->dir), 0);
	test_free(f);
	return 0;
}

static inline void open_with(struct fixture *f, const struct awscred_params *params)
{
	awscred_close(f->a);
	f->a = NULL;
	assert_int_equal(awscred_open(&f->a, params), 0);
}

static inline void open_plain(struct fixture *f)
{
	open_with(f, &(struct awscred_params){ .region = "eu-west-1" });
}

static inline int get_within(struct fixture *f, uint64_t ms, const char *key)
{
	struct sigv4_credentials *c = NULL;
	int r = awscred_get(f->a, io_boot_ms() + ms, &c, f->why);

	if (!r && key)
		assert_string_equal(c->access_key, key);
	assert_true(r < 0 ? !c && *f->why : c != NULL);
	awscred_put(c);
	return r;
}

static inline void expect(struct fixture *f, const char *key)
{
	if (get_within(f, 5000, key))
		fail_msg("no credentials: %s", f->why);
}

static inline void expect_error(struct fixture *f, int error, const char *words)
{
	int r = get_within(f, 5000, NULL);

	if (r != error || !strstr(f->why, words))
		fail_msg("%d, '%s', not %d, '%s'", r, f->why, error, words);
}

#endif
