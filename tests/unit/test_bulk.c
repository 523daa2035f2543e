/* bulk.h: pieces of every size, wiped, used again, given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "bulk.h"

#define LARGE (1u << 20)

static void every_size(void **state)
{
	static const size_t sizes[] = { 0, 1, 1u << 16, (1u << 16) + 1, LARGE, LARGE + 1, 3 * LARGE };

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		void *p = bulk_get(sizes[i]);

		assert_non_null(p);
		memset(p, 0x5a, sizes[i]);
		bulk_put(p, sizes[i]);
	}
	bulk_put(NULL, 5);
	bulk_relax();
}

static void used_again_and_wiped(void **state)
{
	uint8_t *a = bulk_get(LARGE), *b = bulk_get(LARGE - 5);

	(void)state;
	assert_non_null(a);
	assert_non_null(b);
	assert_ptr_not_equal(a, b);
	memset(a, 0x5a, LARGE);
	bulk_put(a, LARGE);
	assert_ptr_equal(bulk_get(LARGE), a);
	for (size_t i = sizeof(void *); i < LARGE; i++)
		assert_int_equal(a[i], 0);
	bulk_put(a, LARGE);
	bulk_put(b, LARGE - 5);
	bulk_relax();
}

static void given_back(void **state)
{
	uint8_t *a = bulk_get(LARGE), *b = bulk_get(LARGE);
	unsigned char there;

	(void)state;
	assert_non_null(a);
	assert_non_null(b);
	bulk_put(a, LARGE);
	bulk_relax();
	assert_int_equal(mincore(a, 4096, &there), -1);
	assert_int_equal(mincore(b, 4096, &there), 0);
	bulk_put(b, LARGE);
	bulk_relax();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_size),
		cmocka_unit_test(used_again_and_wiped),
		cmocka_unit_test(given_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
