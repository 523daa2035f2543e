/* awscred: programs that print credentials, and the helper that runs them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../src/awscred_internal.h"
#include "io.h"
#include "log.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

struct fixture {
	char dir[48], config[96], why[AWSCRED_WHY];
	struct awscred *a;
};

static int setup(void **state)
{
	struct fixture *f = test_calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/byokfs-awscred.XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->config, sizeof(f->config), "%s/config", f->dir);
	setenv("AWS_CONFIG_FILE", f->config, 1);
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	awscred_close(f->a);
	(void)unlink(f->config);
	assert_int_equal(rmdir(f->dir), 0);
	test_free(f);
	return 0;
}

static void write_file(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");

	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

static void open_plain(struct fixture *f)
{
	awscred_close(f->a);
	f->a = NULL;
	assert_int_equal(awscred_open(&f->a, &(struct awscred_params){ .region = "eu-west-1" }), 0);
}

static int get_within(struct fixture *f, uint64_t ms, const char *key)
{
	struct sigv4_credentials *c = NULL;
	int r = awscred_get(f->a, io_boot_ms() + ms, &c, f->why);

	if (!r && key)
		assert_string_equal(c->access_key, key);
	assert_true(r < 0 ? !c && *f->why : c != NULL);
	awscred_put(c);
	return r;
}

static void expect(struct fixture *f, const char *key)
{
	if (get_within(f, 5000, key))
		fail_msg("no credentials: %s", f->why);
}

static void expect_error(struct fixture *f, int error, const char *words)
{
	int r = get_within(f, 5000, NULL);

	if (r != error || !strstr(f->why, words))
		fail_msg("%d, '%s', not %d, '%s'", r, f->why, error, words);
}

static void write_program(struct fixture *f, const char *text)
{
	char path[80], config[300];

	snprintf(path, sizeof(path), "%s/program", f->dir);
	write_file(path, text);
	assert_int_equal(chmod(path, 0700), 0);
	snprintf(config, sizeof(config), "[default]\ncredential_process = %s '%s'\n", path, f->dir);
	write_file(f->config, config);
}

static void remove_program(struct fixture *f)
{
	static const char *const names[] = { "program", "runs", "go" };
	char path[80];

	for (size_t i = 0; i < N(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", f->dir, names[i]);
		(void)unlink(path);
	}
}

/* A run that takes longer than a caller is met by the next one. */
static void test_slow_program(void **state)
{
	struct fixture *f = *state;
	char path[80], text[40] = "";
	FILE *runs;

	write_program(f, "#!/bin/sh\necho run >>\"$1\"/runs\nwhile [ ! -e \"$1\"/go ]; do sleep 0.02; done\n"
	                 "echo '{\"Version\":1,\"AccessKeyId\":\"AK\",\"SecretAccessKey\":\"s\"}'\n");
	open_plain(f);
	assert_int_equal(get_within(f, 50, NULL), -ETIMEDOUT);
	assert_int_equal(get_within(f, 50, NULL), -ETIMEDOUT);
	snprintf(path, sizeof(path), "%s/go", f->dir);
	write_file(path, "");
	expect(f, "AK");
	expect(f, "AK"); /* without an end it serves a quarter of an hour */
	snprintf(path, sizeof(path), "%s/runs", f->dir);
	runs = fopen(path, "r");
	assert_non_null(runs);
	assert_int_equal(fread(text, 1, sizeof(text) - 1, runs), 4);
	fclose(runs);
	remove_program(f);
}

/* A profile that gets a program later has no helper to run it. */
static void test_late_program(void **state)
{
	struct fixture *f = *state;

	open_plain(f);
	expect_error(f, -ENOENT, "no AWS credentials");
	write_program(f, "#!/bin/sh\n");
	expect_error(f, -EINVAL, "mount again");
	remove_program(f);
}

static void test_closed_while_it_runs(void **state)
{
	struct fixture *f = *state;

	write_program(f, "#!/bin/sh\nexec sleep 1000\n");
	open_plain(f);
	assert_int_equal(get_within(f, 50, NULL), -ETIMEDOUT);
	awscred_close(f->a); /* does not wait for it */
	f->a = NULL;
	remove_program(f);
}

/* The only child of this process: the helper. */
static pid_t helper(void)
{
	FILE *file = fopen("/proc/thread-self/children", "re");
	int pid = 0;

	assert_non_null(file);
	assert_int_equal(fscanf(file, "%d", &pid), 1);
	fclose(file);
	return pid;
}

/* The state of a process in /proc, '-' when there is none. */
static char state_of(pid_t pid)
{
	char path[40], state = '-';
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	file = fopen(path, "re");
	if (file && fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		state = '-';
	if (file)
		fclose(file);
	return state;
}

/* Closed at every moment between the question and the program's first instruction; the helper ends by itself. */
static void test_closed_as_it_starts(void **state)
{
	struct fixture *f = *state;

	write_program(f, "#!/bin/sh\nexec sleep 1000\n");
	for (unsigned i = 0; i < 40; i++) {
		pid_t pid;

		open_plain(f);
		pid = helper();
		assert_int_equal(get_within(f, i / 8, NULL), -ETIMEDOUT);
		awscred_close(f->a);
		f->a = NULL;
		assert_int_equal(state_of(pid), '-');
	}
	remove_program(f);
}

/* The worst helper there is. */
static void test_closed_with_a_stopped_helper(void **state)
{
	struct fixture *f = *state;
	pid_t pid;

	write_program(f, "#!/bin/sh\nexec sleep 1000\n");
	open_plain(f);
	assert_int_equal(get_within(f, 50, NULL), -ETIMEDOUT);
	pid = helper();
	assert_int_equal(kill(pid, SIGSTOP), 0);
	awscred_close(f->a);
	f->a = NULL;
	assert_int_equal(state_of(pid), '-');
	remove_program(f);
}

/* One that closes its output and goes on holds up nobody who asks for something else. */
static void test_program_without_output(void **state)
{
	static const atomic_bool going;
	struct fixture *f = *state;
	struct awscred_process *p = NULL;
	char *text = NULL;
	size_t len = 0;

	assert_int_equal(awscred_process_start(&p), 0);
	assert_int_equal(awscred_process_run(p, "sh -c 'exec >&- 2>&-; exec sleep 1000'", io_boot_ms() + 100, &going,
	                     &text, &len, f->why),
	    -ETIMEDOUT);
	assert_int_equal(
	    awscred_process_run(p, "echo good", io_boot_ms() + 10000, &going, &text, &len, f->why), 0);
	assert_int_equal(len, 5);
	assert_memory_equal(text, "good\n", 5);
	secret_free(text);
	awscred_process_stop(p);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	static const char *const unset[] = { "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI" };
	const struct CMUnitTest tests[] = {
		WITH(test_slow_program),
		WITH(test_late_program),
		WITH(test_closed_while_it_runs),
		WITH(test_closed_as_it_starts),
		WITH(test_closed_with_a_stopped_helper),
		WITH(test_program_without_output),
	};

	for (size_t i = 0; i < N(unset); i++)
		unsetenv(unset[i]);
	setenv("AWS_EC2_METADATA_DISABLED", "true", 1);
	setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials", 1);
	(void)alarm(100); /* what waits for a program waits for ever */
	if (secret_init(true))
		return 1;
	log_setup("test", LOG_LEVEL_ERR, false);
	return cmocka_run_group_tests_name("awscred process", tests, NULL, NULL);
}
