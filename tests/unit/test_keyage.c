/* test_keyage.c — how old a domain's sealing is, and how often somebody is told. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "keyage.h"

#define DAY    86400
#define DAY_MS (1000ull * DAY)
#define NOW    (20000ll * DAY)

static int64_t since(int64_t created, int64_t rotated)
{
	struct descriptor_domain *d = calloc(1, sizeof(*d));
	int64_t out;

	assert_non_null(d);
	d->created = created;
	d->rotated = rotated;
	out = keyage_since(d, NOW);
	free(d);
	return out;
}

static void the_last_rotation_counts_else_the_creation(void **state)
{
	(void)state;
	assert_int_equal(since(NOW - 50 * DAY, 0), NOW - 50 * DAY);
	assert_int_equal(since(NOW - 50 * DAY, NOW - 10 * DAY), NOW - 10 * DAY);
	assert_int_equal(since(NOW - 10 * DAY, NOW - 50 * DAY), NOW - 50 * DAY);
}

static void a_time_ahead_does_not_put_the_alert_off(void **state)
{
	(void)state;
	assert_int_equal(since(NOW - 50 * DAY, NOW + DAY), NOW + DAY); /* clocks differ */
	assert_int_equal(since(NOW - 50 * DAY, NOW + DAY + 1), NOW - 50 * DAY);
	assert_int_equal(since(NOW + 2 * DAY, 0), 0);
	assert_int_equal(since(NOW + 2 * DAY, INT64_MAX), 0);
}

static void days_are_full_days(void **state)
{
	(void)state;
	assert_int_equal(keyage_days(NOW, NOW), 0);
	assert_int_equal(keyage_days(NOW + 5, NOW), 0);
	assert_int_equal(keyage_days(NOW - DAY + 1, NOW), 0);
	assert_int_equal(keyage_days(NOW - DAY, NOW), 1);
	assert_int_equal(keyage_days(0, INT64_MAX), UINT32_MAX);
}

static void the_limit_is_reached_on_its_day(void **state)
{
	(void)state;
	assert_false(keyage_over(NOW - 90 * DAY + 1, NOW, 90));
	assert_true(keyage_over(NOW - 90 * DAY, NOW, 90));
	assert_false(keyage_over(0, NOW, 0));
}

static void said_at_once_then_once_a_day(void **state)
{
	struct keyage_said s = { 0 };

	(void)state;
	assert_false(keyage_due(&s, 0, 1000));
	assert_true(keyage_due(&s, 1, 2000));
	assert_false(keyage_due(&s, 1, 7000));
	assert_false(keyage_due(&s, 1, 2000 + DAY_MS - 1));
	assert_true(keyage_due(&s, 1, 2000 + DAY_MS));
	assert_false(keyage_due(&s, 1, 3000 + DAY_MS));
	assert_true(keyage_due(&s, 3, 4000 + DAY_MS)); /* more */
	assert_false(keyage_due(&s, 2, 5000 + DAY_MS));
	assert_false(keyage_due(&s, 0, 6000 + DAY_MS)); /* rotated */
	assert_true(keyage_due(&s, 1, 7000 + DAY_MS));
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_last_rotation_counts_else_the_creation),
		cmocka_unit_test(a_time_ahead_does_not_put_the_alert_off),
		cmocka_unit_test(days_are_full_days),
		cmocka_unit_test(the_limit_is_reached_on_its_day),
		cmocka_unit_test(said_at_once_then_once_a_day),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
