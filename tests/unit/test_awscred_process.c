/* awscred: programs that print credentials, and the helper that runs them. */
#include <signal.h>
#include <sys/stat.h>

#include "awscred_fixture.h"
#include "log.h"

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
