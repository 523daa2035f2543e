/* Rate, limit and pauses of a rotation, with a clock of the test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../../tools/throttle.c"

static void no_more_than_allowed(void **state)
{
	struct throttle t;

	(void)state;
	throttle_init(&t, 2, 0, 1000, 5);
	assert_int_equal(throttle_go(&t, 5), 0);
	assert_int_equal(throttle_go(&t, 5), 0);
	assert_int_not_equal(throttle_go(&t, 5), 0);
	assert_true(throttle_done(&t, 6, true, false));
	assert_int_equal(throttle_go(&t, 6), 0);
}

static void rate_is_kept(void **state)
{
	struct throttle t;
	unsigned went = 0;

	(void)state;
	throttle_init(&t, 64, 50, 1000, 0);
	for (uint64_t now = 0; now < 10000; now++)
		while (throttle_go(&t, now) == 0) {
			went++;
			assert_true(throttle_done(&t, now, true, false));
		}
	assert_in_range(went, 495, 505);
	/* what was not used is not saved up */
	for (went = 0; throttle_go(&t, 1000000) == 0; went++)
		assert_true(throttle_done(&t, 1000000, true, false));
	assert_in_range(went, 1, 5);
	assert_in_range(throttle_go(&t, 1000000), 1, 20);
}

static void slow_rate(void **state)
{
	struct throttle t;

	(void)state;
	throttle_init(&t, 4, 1, 1000, 0);
	assert_int_equal(throttle_go(&t, 0), 0);
	assert_int_equal(throttle_go(&t, 0), 1000);
	assert_int_equal(throttle_go(&t, 400), 600);
	assert_int_equal(throttle_go(&t, 1000), 0);
}

static void throttled_halves_and_grows(void **state)
{
	struct throttle t;
	uint64_t now = 100;

	(void)state;
	throttle_init(&t, 16, 0, 100000, now);
	throttle_busy(&t, now);
	assert_int_equal(t.allowed, 8);
	throttle_busy(&t, now + 10); /* was under way at the same time */
	assert_int_equal(t.allowed, 8);
	for (now += 500; t.allowed > 1; now += 500)
		throttle_busy(&t, now);
	throttle_busy(&t, now);
	assert_int_equal(t.allowed, 1);
	for (uint64_t end = now + 3500; now < end; now += 10) {
		assert_int_equal(throttle_go(&t, now), 0);
		assert_true(throttle_done(&t, now, true, false));
	}
	assert_int_equal(t.allowed, 4);
	for (uint64_t end = now + 60000; now < end; now += 10) {
		assert_int_equal(throttle_go(&t, now), 0);
		assert_true(throttle_done(&t, now, true, false));
	}
	assert_int_equal(t.allowed, 16);
}

static void pauses_double_until_an_answer(void **state)
{
	struct throttle t;
	uint64_t now = 1;
	const uint64_t want[] = { 1000, 2000, 4000, 8000, 16000, 30000, 30000 };

	(void)state;
	throttle_init(&t, 1, 0, 1000000, now);
	for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
		assert_int_equal(throttle_go(&t, now), 0);
		assert_true(throttle_done(&t, now, false, true));
		assert_int_equal(throttle_go(&t, now), want[i]);
		now += want[i];
	}
	assert_int_equal(throttle_go(&t, now), 0);
	assert_true(throttle_done(&t, now, true, false));
	assert_int_equal(throttle_go(&t, now), 0);
	assert_true(throttle_done(&t, now, false, true));
	assert_int_equal(throttle_go(&t, now), 1000);
}

static void those_under_way_pause_once(void **state)
{
	struct throttle t;

	(void)state;
	throttle_init(&t, 8, 0, 1000000, 0);
	for (int i = 0; i < 8; i++)
		assert_int_equal(throttle_go(&t, 0), 0);
	for (int i = 0; i < 8; i++)
		assert_true(throttle_done(&t, 10, false, true));
	assert_int_equal(throttle_go(&t, 10), 1000);
}

static void patience_ends(void **state)
{
	struct throttle t;

	(void)state;
	throttle_init(&t, 1, 0, 5000, 100);
	assert_int_equal(throttle_go(&t, 5000), 0);
	assert_true(throttle_done(&t, 5100, false, true));
	assert_int_equal(throttle_go(&t, 7000), 0);
	assert_false(throttle_done(&t, 7000, false, true));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_more_than_allowed),
		cmocka_unit_test(rate_is_kept),
		cmocka_unit_test(slow_rate),
		cmocka_unit_test(throttled_halves_and_grows),
		cmocka_unit_test(pauses_double_until_an_answer),
		cmocka_unit_test(those_under_way_pause_once),
		cmocka_unit_test(patience_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
