/* awsclock: when a service is believed about the time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "awsclock.h"
#include "io.h"
#include "log.h"

static void test_correct(void **state)
{
	struct awsclock c = { 0 };
	int64_t now = io_unix_time();

	(void)state;
	assert_in_range(awsclock_now(&c), now, now + 2);
	assert_false(awsclock_correct(&c, "STS", 0, true));            /* no date */
	assert_false(awsclock_correct(&c, "STS", now + 3600, false));  /* not to be trusted */
	assert_false(awsclock_correct(&c, "STS", now + 200, true));    /* would not matter */
	assert_false(awsclock_correct(&c, "STS", now - 200, true));
	assert_false(awsclock_correct(&c, "STS", now + 90000, true));  /* no clock */
	assert_false(awsclock_correct(&c, "STS", now - 90000, true));
	assert_in_range(awsclock_now(&c), now, now + 2);
	assert_true(awsclock_correct(&c, "STS", now + 3600, true));
	assert_in_range(awsclock_now(&c), now + 3598, now + 3602);
	assert_false(awsclock_correct(&c, "STS", now + 3600, true)); /* known: another try will not help */
	assert_true(awsclock_correct(&c, "STS", now, true));         /* set right again */
	assert_in_range(awsclock_now(&c), now - 2, now + 2);
}

static void test_codes(void **state)
{
	(void)state;
	assert_true(awsclock_is_about("SignatureDoesNotMatch"));
	assert_true(awsclock_is_about("InvalidSignatureException"));
	assert_true(awsclock_is_about("RequestTimeTooSkewed"));
	assert_false(awsclock_is_about("AccessDenied"));
	assert_false(awsclock_is_about("ExpiredTokenException"));
	assert_false(awsclock_is_about(""));
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_correct), cmocka_unit_test(test_codes) };

	log_setup("test", LOG_LEVEL_ERR, false);
	return cmocka_run_group_tests_name("awsclock", tests, NULL, NULL);
}
