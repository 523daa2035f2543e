/* Threads that wait for one another, and threads that wait for somebody outside, as the kernel lists them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/alive.c"

static uint64_t answered;
static unsigned idle;
static bool ticking = true;

uint64_t fuseio_answered(void)
{
	return answered;
}

unsigned fuseio_idle(void)
{
	return idle;
}

bool lease_ticks(const struct lease *l)
{
	(void)l;
	return ticking;
}

void domains_each(struct fs *fs, bool (*fn)(void *arg, struct domain *), void *arg)
{
	static struct domain d;
	static char lease;

	(void)fs;
	atomic_store(&d.lease, (struct lease *)(void *)&lease);
	(void)fn(arg, &d);
}

static char dir[] = "/tmp/byokfs-test-alive-XXXXXX";

/* What thread `tid` is in; NULL: no such file. */
static void thread_in(int tid, const char *syscall)
{
	char path[200];
	FILE *f;

	(void)snprintf(path, sizeof(path), "%s/%d", dir, tid);
	assert_true(mkdir(path, 0700) == 0 || syscall);
	(void)snprintf(path, sizeof(path), "%s/%d/syscall", dir, tid);
	(void)unlink(path);
	if (!syscall)
		return;
	f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fputs(syscall, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void call(int tid, long number)
{
	char text[100];

	(void)snprintf(text, sizeof(text), "%ld 0x7ffd 0x1 0x0 0x0 0x0 0x0 0x7ffd 0x7f00\n", number);
	thread_in(tid, text);
}

static int clean(void **state)
{
	char command[200];

	(void)state;
	(void)snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) || mkdir(dir, 0700);
}

static void among_ourselves(void **state)
{
	(void)state;
	call(101, SYS_futex);
	call(102, SYS_rt_sigtimedwait);
	call(103, SYS_ppoll);
	thread_in(104, "running\n");
	assert_false(alive_others_wait(dir));
	call((int)gettid(), SYS_openat); /* whoever asks is in a call of its own */
	assert_false(alive_others_wait(dir));
}

static void storage(void **state)
{
	static const long calls[] = { SYS_pread64, SYS_pwritev, SYS_fsync, SYS_openat, SYS_openat2, SYS_getdents64,
		SYS_read };

	(void)state;
	call(101, SYS_futex);
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		call(102, calls[i]);
		assert_true(alive_others_wait(dir));
	}
	call(102, SYS_futex);
	assert_false(alive_others_wait(dir));
	thread_in(102, "-1 0x7ffd 0x7f00\n"); /* a page that is not there yet */
	assert_true(alive_others_wait(dir));
}

/* What cannot be told must not get anybody killed. */
static void unknown(void **state)
{
	(void)state;
	call(101, SYS_futex);
	thread_in(102, NULL);
	assert_true(alive_others_wait(dir));
	thread_in(102, "nonsense\n");
	assert_true(alive_others_wait(dir));
	thread_in(102, "");
	assert_true(alive_others_wait(dir));
	assert_true(alive_others_wait("/does/not/exist"));
}

/* The real thing: one thread, which asks. */
static void ourselves(void **state)
{
	(void)state;
	assert_false(alive_others_wait("/proc/self/task"));
}

/* One thread, no storage: only progress, or somebody ready for it, is life. */
static void verdict(void **state)
{
	struct alive a = { 0 };

	(void)state;
	answered = 5;
	assert_true(alive_check(&a, NULL));
	assert_false(alive_check(&a, NULL));
	assert_false(alive_check(&a, NULL));
	answered = 6;
	assert_true(alive_check(&a, NULL));
	idle = 1;
	assert_true(alive_check(&a, NULL));
	assert_true(alive_check(&a, NULL));
	ticking = false;
	assert_false(alive_check(&a, NULL));
	ticking = true;
	assert_true(alive_check(&a, NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test_setup(among_ourselves, clean),
		cmocka_unit_test_setup(storage, clean), cmocka_unit_test_setup(unknown, clean),
		cmocka_unit_test(ourselves), cmocka_unit_test(verdict) };
	int r;

	if (!mkdtemp(dir))
		return 1;
	r = cmocka_run_group_tests_name("alive", tests, NULL, NULL);
	(void)clean(NULL);
	return rmdir(dir) ? 1 : r;
}
