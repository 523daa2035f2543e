/* Where lines go and what they look like: stderr, the journal behind it, levels, damage that is counted once. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "log.h"

static int kept = -1, far = -1;

/* stderr becomes one end of a socket, as it is under systemd. */
static int redirect(void **state)
{
	int end[2];

	(void)state;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, end))
		return -1;
	kept = dup(STDERR_FILENO);
	far = end[1];
	if (kept < 0 || dup2(end[0], STDERR_FILENO) < 0)
		return -1;
	return close(end[0]);
}

static int restore(void **state)
{
	(void)state;
	(void)unsetenv("JOURNAL_STREAM");
	(void)dup2(kept, STDERR_FILENO);
	(void)close(kept);
	return close(far);
}

/* What was written since the last call. */
static const char *heard(void)
{
	static char text[5000];
	ssize_t n = recv(far, text, sizeof(text) - 1, MSG_DONTWAIT);

	text[n > 0 ? n : 0] = '\0';
	return text;
}

static void stream_is(unsigned long long dev, unsigned long long ino)
{
	char text[60];

	(void)snprintf(text, sizeof(text), "%llu:%llu", dev, ino);
	assert_int_equal(setenv("JOURNAL_STREAM", text, 1), 0);
}

static void all_levels(void)
{
	log_err("e");
	log_warn("w");
	log_info("i");
	log_debug("d");
}

static void plain(void **state)
{
	(void)state;
	log_setup("byokfs", LOG_LEVEL_DEBUG, false);
	all_levels();
	assert_string_equal(heard(), "byokfs: e\nbyokfs: w\nbyokfs: i\nbyokfs: d\n");
}

static void journal(void **state)
{
	struct stat st;

	(void)state;
	assert_int_equal(fstat(STDERR_FILENO, &st), 0);
	stream_is(st.st_dev, st.st_ino);
	log_setup("byokfs", LOG_LEVEL_DEBUG, false);
	all_levels();
	assert_string_equal(heard(), "<3>byokfs: e\n<4>byokfs: w\n<6>byokfs: i\n<7>byokfs: d\n");
	log_info("two\nlines");
	assert_string_equal(heard(), "<6>byokfs: two\\nlines\n");
}

/* A stderr that was redirected since, and variables that are nonsense. */
static void not_the_journal(void **state)
{
	struct stat st;

	(void)state;
	assert_int_equal(fstat(STDERR_FILENO, &st), 0);
	stream_is(st.st_dev, st.st_ino + 1);
	log_setup("byokfs", LOG_LEVEL_INFO, false);
	log_err("e");
	assert_string_equal(heard(), "byokfs: e\n");
	stream_is(st.st_dev + 1, st.st_ino);
	log_setup("byokfs", LOG_LEVEL_INFO, false);
	log_err("e");
	assert_string_equal(heard(), "byokfs: e\n");
	assert_int_equal(setenv("JOURNAL_STREAM", "journal", 1), 0);
	log_setup("byokfs", LOG_LEVEL_INFO, false);
	log_err("e");
	assert_string_equal(heard(), "byokfs: e\n");
}

static void levels(void **state)
{
	(void)state;
	log_setup("byokfs", LOG_LEVEL_WARN, false);
	all_levels();
	assert_string_equal(heard(), "byokfs: e\nbyokfs: w\n");
	log_set_level(LOG_LEVEL_ERR);
	all_levels();
	assert_string_equal(heard(), "byokfs: e\n");
	log_set_level(LOG_LEVEL_INFO);
	all_levels();
	assert_string_equal(heard(), "byokfs: e\nbyokfs: w\nbyokfs: i\n");
}

static void damage(void **state)
{
	uint64_t before = log_damage_count();

	(void)state;
	log_setup("byokfs", LOG_LEVEL_ERR, false);
	for (int i = 0; i < 3; i++) {
		log_damage("file %d", 1);
		log_err_once("something else");
	}
	log_damage("file %d", 2);
	assert_string_equal(heard(), "byokfs: file 1\nbyokfs: something else\nbyokfs: file 2\n");
	assert_int_equal(log_damage_count() - before, 2);
}

int main(void)
{
#define T(test) cmocka_unit_test_setup_teardown(test, redirect, restore)
	const struct CMUnitTest tests[] = { T(plain), T(journal), T(not_the_journal), T(levels), T(damage) };

	return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
