/* Descriptors under a limit: closed when they are many, there again when they are wanted, never taken from who holds
 * them. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "fdpool.h"

#define MANY  40
#define LIMIT 10u

struct thing {
	struct fdslot slot;
	_Atomic int opened, settled;
	_Atomic int error; /* of settling */
	int refuse;        /* of opening */
};

static struct thing things[MANY];

static struct thing *thing_of(struct fdslot *s)
{
	return (struct thing *)(void *)s;
}

/* /dev/zero, and its own number as the position. */
static int thing_open(struct fdslot *s)
{
	struct thing *t = thing_of(s);

	if (t->refuse)
		return t->refuse;
	t->opened++;
	return open("/dev/zero", O_RDONLY | O_CLOEXEC);
}

static int thing_settle(struct fdslot *s)
{
	struct thing *t = thing_of(s);
	struct stat st;

	if (fstat(s->fd, &st))
		return -errno;
	t->settled++;
	return t->error;
}

static const struct fdslot_ops ops = { .reopen = thing_open, .settle = thing_settle };

static int setup(void **state)
{
	(void)state;
	memset(things, 0, sizeof(things));
	fdpool_limit(LIMIT);
	for (int i = 0; i < MANY; i++)
		fdslot_open(&things[i].slot, thing_open(&things[i].slot), &ops);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	for (int i = 0; i < MANY; i++) {
		CLEANUP_FD int fd = fdslot_take(&things[i].slot);
	}
	fdpool_limit(0);
	return fdpool_count() ? 1 : 0;
}

static void test_limit(void **state)
{
	int settled = 0;

	(void)state;
	assert_true(fdpool_count() <= LIMIT + 1);
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < MANY; i++) {
			struct stat st;
			int fd = fdslot_hold(&things[i].slot);

			assert_true(fd >= 0);
			assert_int_equal(fstat(fd, &st), 0);
			fdslot_release(&things[i].slot);
			assert_true(fdpool_count() <= LIMIT + 1);
		}
	for (int i = 0; i < MANY; i++)
		settled += things[i].settled;
	assert_true(settled >= 3 * (MANY - (int)LIMIT));
}

static void test_held_stay(void **state)
{
	int fd[MANY];

	(void)state;
	for (int i = 0; i < MANY; i++)
		fd[i] = fdslot_hold(&things[i].slot);
	assert_int_equal(fdpool_count(), MANY); /* more than the limit: all are in use */
	assert_false(fdpool_shed());
	for (int i = 0; i < MANY; i++) {
		assert_int_equal(fdslot_hold(&things[i].slot), fd[i]);
		assert_true(fcntl(fd[i], F_GETFD) >= 0);
		fdslot_release(&things[i].slot);
		fdslot_release(&things[i].slot);
	}
	while (fdpool_shed())
		;
	assert_int_equal(fdpool_count(), 0);
	for (int i = 0; i < MANY; i++)
		assert_int_equal(fcntl(fd[i], F_GETFD), -1);
	assert_int_equal(fdslot_take(&things[0].slot), -1);
}

/* The one that is used all the time is not the one that goes. */
static void test_order(void **state)
{
	(void)state;
	for (int round = 0; round < 10; round++)
		for (int i = 1; i < MANY; i++) {
			assert_true(fdslot_hold(&things[0].slot) >= 0);
			fdslot_release(&things[0].slot);
			assert_true(fdslot_hold(&things[i].slot) >= 0);
			fdslot_release(&things[i].slot);
		}
	assert_true(things[0].opened <= 3);
	assert_true(things[1].opened >= 8);
}

static void test_errors(void **state)
{
	int settled;

	(void)state;
	while (fdpool_shed())
		;
	things[3].refuse = -ESTALE;
	assert_int_equal(fdslot_hold(&things[3].slot), -ESTALE);
	things[3].refuse = 0;
	assert_true(fdslot_hold(&things[3].slot) >= 0);
	fdslot_release(&things[3].slot);
	/* What cannot be settled stays open. */
	things[3].error = -EIO;
	settled = things[3].settled;
	for (int i = 0; i < 10; i++)
		(void)fdpool_shed();
	assert_int_equal(fdpool_count(), 1);
	assert_true(things[3].settled > settled);
	things[3].error = 0;
	(void)fdpool_shed();
	assert_int_equal(fdpool_count(), 0);
}

static void test_lent(void **state)
{
	size_t before = fdpool_count();

	(void)state;
	for (unsigned i = 0; i < LIMIT; i++)
		fdpool_lend(1);
	assert_true(fdpool_count() <= before + 1);
	fdpool_lend(-(int)LIMIT);
	assert_true(fdpool_count() <= 1);
}

static void test_not_ours(void **state)
{
	struct fdslot plain = { 0 };
	size_t before = fdpool_count();

	(void)state;
	fdslot_open(&plain, 12345, NULL);
	assert_int_equal(fdpool_count(), before);
	assert_int_equal(fdslot_hold(&plain), 12345);
	fdslot_release(&plain);
	assert_int_equal(fdslot_take(&plain), 12345);
	assert_int_equal(fdslot_take(&plain), -1);
}

static void *hammer(void *arg)
{
	uint64_t x = (uintptr_t)arg;

	for (int k = 0; k < 20000; k++) {
		struct fdslot *s;
		struct stat st;
		int fd;

		x = x * 6364136223846793005ull + 1442695040888963407ull;
		s = &things[(x >> 33) % MANY].slot;
		fd = fdslot_hold(s);
		if (fd < 0 || fstat(fd, &st) || !S_ISCHR(st.st_mode))
			return arg;
		fdslot_release(s);
	}
	return NULL;
}

static void test_threads(void **state)
{
	pthread_t threads[4];
	void *failed;

	(void)state;
	for (uintptr_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, hammer, (void *)(i + 1)), 0);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
	assert_true(fdpool_count() <= LIMIT + 4);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_limit), T(test_held_stay), T(test_order), T(test_errors),
		T(test_lent), T(test_not_ours), T(test_threads) };

	return cmocka_run_group_tests_name("fdpool", tests, NULL, NULL);
}
