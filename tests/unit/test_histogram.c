/* Tests of histogram.c: where bucket borders lie, merging, quantiles, many threads at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "histogram.h"

#define US 1000ull

static unsigned where(uint64_t ns)
{
	struct histogram h = { 0 };
	struct histogram_view v = { 0 };
	unsigned i = 0;

	histogram_add(&h, ns);
	histogram_read(&h, &v);
	assert_int_equal(v.count, 1);
	assert_true(v.sum_ns == ns);
	while (!v.bucket[i])
		i++;
	return i;
}

/* A bucket holds its upper bound, and not a nanosecond more. */
static void borders(void **state)
{
	(void)state;
	assert_int_equal(where(0), 0);
	assert_int_equal(where(1), 0);
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS - 1; i++) {
		assert_int_equal(where((1ull << i) * US), i);
		assert_int_equal(where((1ull << i) * US + 1), i + 1);
	}
	assert_int_equal(where(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
}

static void merged(void **state)
{
	struct histogram a = { 0 }, b = { 0 };
	struct histogram_view v = { 0 };

	(void)state;
	histogram_add(&a, 3 * US);
	histogram_add(&a, 100 * US);
	histogram_add(&b, 4 * US);
	histogram_read(&a, &v);
	histogram_read(&b, &v);
	assert_int_equal(v.count, 3);
	assert_int_equal(v.bucket[2], 2);
	assert_int_equal(v.bucket[7], 1);
	assert_int_equal(v.sum_ns, 107 * US);
}

static void quantiles(void **state)
{
	struct histogram h = { 0 };
	struct histogram_view v = { 0 };

	(void)state;
	assert_true(histogram_quantile(&v, 500) == 0);
	for (unsigned i = 0; i < 98; i++)
		histogram_add(&h, 100 * US); /* bucket (64, 128] */
	histogram_add(&h, 1000 * US);        /* (512, 1024] */
	histogram_add(&h, UINT64_MAX / 2);
	histogram_read(&h, &v);
	double p50 = histogram_quantile(&v, 500), p99 = histogram_quantile(&v, 990);

	assert_true(p50 > 64 && p50 <= 128);
	assert_true(p99 > 512 && p99 <= 1024);
	assert_true(histogram_quantile(&v, 1000) == (double)(1ull << (HISTOGRAM_BUCKETS - 2)));
	assert_true(histogram_quantile(&v, 0) <= 128);
}

#define THREADS 4
#define ROUNDS  20000

static void *hammer(void *arg)
{
	for (unsigned i = 0; i < ROUNDS; i++)
		histogram_add(arg, (i % 4) * 10 * US);
	return NULL;
}

static void threads(void **state)
{
	static struct histogram h;
	struct histogram_view v = { 0 };
	pthread_t t[THREADS];

	(void)state;
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, hammer, &h), 0);
	histogram_read(&h, &v);
	assert_true(v.count <= (uint64_t)THREADS * ROUNDS);
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
	memset(&v, 0, sizeof(v));
	histogram_read(&h, &v);
	assert_int_equal(v.count, THREADS * ROUNDS);
	assert_int_equal(v.sum_ns, THREADS * ROUNDS / 4 * 60 * US);
}

static void clock_goes_on(void **state)
{
	uint64_t a = histogram_clock(), b = histogram_clock();

	(void)state;
	assert_true(b >= a && b - a < 60000000000u);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(borders),
		cmocka_unit_test(merged),
		cmocka_unit_test(quantiles),
		cmocka_unit_test(threads),
		cmocka_unit_test(clock_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
