/* newborn.h: per-directory lists, overflow, and what a syncfs forgets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "newborn.h"

static struct newborn out[NEWBORN_MAX];

static int reset(void **state)
{
	(void)state;
	newborn_clear(newborn_mark());
	assert_false(newborn_any());
	return 0;
}

static void takes_one_directory_only(void **state)
{
	(void)state;
	newborn_note(1, 10, 0);
	newborn_note(2, 20, 0);
	newborn_note(1, 11, 3);
	assert_true(newborn_any());
	assert_int_equal(newborn_take(1, out, NEWBORN_MAX), 2);
	assert_int_equal(out[0].child + out[1].child, 21);
	assert_int_equal(newborn_take(1, out, NEWBORN_MAX), 0);
	assert_int_equal(newborn_take(2, out, NEWBORN_MAX), 1);
	assert_int_equal(out[0].child, 20);
	assert_false(newborn_any());
}

static void overflow_asks_for_syncfs_until_one_was_made(void **state)
{
	(void)state;
	for (uint64_t i = 0; i <= NEWBORN_MAX; i++)
		newborn_note(i, i, 0);
	assert_int_equal(newborn_take(5, out, NEWBORN_MAX), -1);
	assert_int_equal(newborn_take(5, out, NEWBORN_MAX), -1);
	newborn_clear(newborn_mark());
	assert_int_equal(newborn_take(5, out, NEWBORN_MAX), 0);
}

static void clear_keeps_what_came_after_the_mark(void **state)
{
	(void)state;
	newborn_note(7, 1, 0);
	uint64_t mark = newborn_mark();

	newborn_note(7, 2, 0);
	newborn_clear(mark);
	assert_int_equal(newborn_take(7, out, NEWBORN_MAX), 1);
	assert_int_equal(out[0].child, 2);
}

static void overflow_after_the_mark_survives_it(void **state)
{
	(void)state;
	uint64_t mark = newborn_mark();

	for (uint64_t i = 0; i <= NEWBORN_MAX; i++)
		newborn_note(9, i, 0);
	newborn_clear(mark);
	assert_int_equal(newborn_take(9, out, NEWBORN_MAX), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(takes_one_directory_only, reset),
		cmocka_unit_test_setup(overflow_asks_for_syncfs_until_one_was_made, reset),
		cmocka_unit_test_setup(clear_keeps_what_came_after_the_mark, reset),
		cmocka_unit_test_setup(overflow_after_the_mark_survives_it, reset),
	};

	return cmocka_run_group_tests_name("newborn", tests, NULL, NULL);
}
