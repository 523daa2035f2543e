/* lane.h: who begins, who waits, in which order, and that nobody is forgotten. */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <cmocka.h>

#include "lane.h"

struct noted {
	struct lane_job job;
	int number;
};

static struct lane *lane;
static int ran[64], nran;

static int three_at_a_time(void **state)
{
	(void)state;
	nran = 0;
	return lane_open(&lane, 3, 100);
}

static int end(void **state)
{
	(void)state;
	lane_close(lane);
	return 0;
}

static void note(struct lane_job *j)
{
	struct noted *n = (struct noted *)(void *)j;

	ran[nran++] = n->number;
	free(n);
}

static struct lane_job *make(uint64_t file, size_t bytes, int number)
{
	struct noted *n = malloc(sizeof(*n));

	assert_non_null(n);
	*n = (struct noted){ .job = { .file = file, .bytes = bytes, .run = note }, .number = number };
	return &n->job;
}

/* Comes as a request does; fails unless it has to wait. */
static void queue(uint64_t file, int number)
{
	struct lane_job *j = make(file, 1, number);

	assert_int_equal(lane_enter(lane, j), LANE_WAIT);
	lane_add(lane, j);
}

static void assert_ran(const int *numbers, int n)
{
	assert_int_equal(nran, n);
	assert_memory_equal(ran, numbers, (size_t)n * sizeof(*ran));
	nran = 0;
}

static const struct lane_job a = { .file = 1 }, b = { .file = 2 }, none = { .file = 0 };

static void begin(const struct lane_job *j, int times)
{
	while (times--)
		assert_int_equal(lane_enter(lane, j), LANE_GO);
}

static void writers_of_one_file_keep_few_threads(void **state)
{
	(void)state;
	begin(&a, LANE_OF_FILE);
	for (int i = 0; i < 20; i++)
		queue(1, i);
	assert_int_equal(nran, 0);
	/* another file is written meanwhile, and ends without doing what is not its turn */
	begin(&b, 1);
	lane_leave(lane, &b);
	assert_int_equal(nran, 0);
	lane_leave(lane, &a);
	assert_int_equal(nran, 20);
	for (int i = 0; i < nran; i++)
		assert_int_equal(ran[i], i);
	lane_leave(lane, &a);
}

static void no_more_than_most_are_at_work(void **state)
{
	(void)state;
	begin(&a, 2);
	begin(&b, 1);
	queue(1, 1);
	queue(3, 3);
	queue(0, 0);
	/* b's place takes what does not need a's file */
	lane_leave(lane, &b);
	assert_ran((int[]){ 3, 0 }, 2);
	lane_leave(lane, &a);
	assert_ran((int[]){ 1 }, 1);
	begin(&a, 1);
	lane_leave(lane, &a);
	lane_leave(lane, &a);
}

static void what_is_about_no_file_shares(void **state)
{
	(void)state;
	begin(&none, 3);
	queue(0, 1);
	lane_leave(lane, &none);
	assert_ran((int[]){ 1 }, 1);
	lane_leave(lane, &none);
	lane_leave(lane, &none);
	assert_int_equal(nran, 0);
}

static void the_queue_is_bounded(void **state)
{
	struct lane_job *big = make(1, 70, 1), *more = make(1, 31, 2), *rest = make(1, 30, 3);

	(void)state;
	begin(&a, LANE_OF_FILE);
	assert_int_equal(lane_enter(lane, big), LANE_WAIT);
	assert_int_equal(lane_enter(lane, more), LANE_FULL);
	assert_int_equal(lane_enter(lane, rest), LANE_WAIT);
	/* no memory for the copy: its room is free again */
	lane_forego(lane, rest);
	assert_int_equal(lane_enter(lane, rest), LANE_WAIT);
	lane_add(lane, big);
	lane_add(lane, rest);
	lane_leave(lane, &a);
	assert_ran((int[]){ 1, 3 }, 2);
	lane_leave(lane, &a);
	/* and all of it is when the queue is empty */
	begin(&a, LANE_OF_FILE);
	assert_int_equal(lane_enter(lane, more), LANE_WAIT);
	lane_add(lane, more);
	lane_leave(lane, &a);
	assert_ran((int[]){ 2 }, 1);
	lane_leave(lane, &a);
}

static void one_that_can_begin_by_now_does(void **state)
{
	struct lane_job *late = make(1, 1, 7);

	(void)state;
	begin(&a, LANE_OF_FILE);
	assert_int_equal(lane_enter(lane, late), LANE_WAIT);
	lane_leave(lane, &a); /* while the copy is made */
	assert_int_equal(nran, 0);
	lane_add(lane, late);
	assert_ran((int[]){ 7 }, 1);
	lane_leave(lane, &a);
}

/* ---- many threads */

#define THREADS 6
#define ROUNDS  4000
#define FILES   3

static atomic_int at_work, most_at_work, in_file[FILES + 1], done, together;

static void work(uint64_t file)
{
	int now = atomic_fetch_add(&at_work, 1) + 1, most = atomic_load(&most_at_work);

	while (now > most && !atomic_compare_exchange_weak(&most_at_work, &most, now))
		;
	if (file)
		atomic_fetch_add(&together, atomic_fetch_add(&in_file[file], 1) >= (int)LANE_OF_FILE);
	sched_yield();
	if (file)
		atomic_fetch_sub(&in_file[file], 1);
	atomic_fetch_sub(&at_work, 1);
	atomic_fetch_add(&done, 1);
}

static void run(struct lane_job *j)
{
	work(j->file);
	free(j);
}

static void *come(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;

	for (int i = 0; i < ROUNDS; i++) {
		struct lane_job *j = malloc(sizeof(*j));

		*j = (struct lane_job){ .file = (unsigned)rand_r(&seed) % (FILES + 1), .run = run };
		if (lane_enter(lane, j) == LANE_GO) {
			work(j->file);
			lane_leave(lane, j);
			free(j);
		} else {
			lane_add(lane, j);
		}
	}
	return NULL;
}

static void nobody_is_forgotten(void **state)
{
	pthread_t thread[THREADS];

	(void)state;
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, come, (void *)(i + 1)), 0);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	assert_int_equal(atomic_load(&done), THREADS * ROUNDS);
	assert_int_equal(atomic_load(&at_work), 0);
	assert_int_equal(atomic_load(&together), 0);
	assert_in_range(atomic_load(&most_at_work), 1, 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(writers_of_one_file_keep_few_threads, three_at_a_time, end),
		cmocka_unit_test_setup_teardown(no_more_than_most_are_at_work, three_at_a_time, end),
		cmocka_unit_test_setup_teardown(what_is_about_no_file_shares, three_at_a_time, end),
		cmocka_unit_test_setup_teardown(the_queue_is_bounded, three_at_a_time, end),
		cmocka_unit_test_setup_teardown(one_that_can_begin_by_now_does, three_at_a_time, end),
		cmocka_unit_test_setup_teardown(nobody_is_forgotten, three_at_a_time, end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
