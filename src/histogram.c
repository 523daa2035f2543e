/* histogram.c — buckets of powers of two.
 *
 * Hides how a time finds its bucket: by the number of its highest bit. Buckets are counted apart, not cumulated, so
 * that an addition is two relaxed atomic instructions.  */
#include "histogram.h"

#include <time.h>

#define LAST (HISTOGRAM_BUCKETS - 1)

uint64_t histogram_clock(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned bucket_of(uint64_t ns)
{
	uint64_t us = ns / 1000 + (ns % 1000 != 0);
	/* 2 -> 1, 3 and 4 -> 2, 5 to 8 -> 3: the bits of one less */
	unsigned i = us > 1 ? 64 - (unsigned)__builtin_clzll(us - 1) : 0;

	return i < LAST ? i : LAST;
}

void histogram_add(struct histogram *h, uint64_t ns)
{
	atomic_fetch_add_explicit(&h->bucket[bucket_of(ns)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum_ns, ns, memory_order_relaxed);
}

void histogram_read(const struct histogram *h, struct histogram_view *view)
{
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		uint64_t n = atomic_load_explicit(&h->bucket[i], memory_order_relaxed);

		view->bucket[i] += n;
		view->count += n;
	}
	view->sum_ns += atomic_load_explicit(&h->sum_ns, memory_order_relaxed);
}

double histogram_quantile(const struct histogram_view *v, unsigned permille)
{
	double rank = (double)v->count * permille / 1000, below = 0;

	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		double low = i ? (double)(1ull << (i - 1)) : 0, high = (double)(1ull << i), n = (double)v->bucket[i];

		if (n > 0 && below + n >= rank)
			return i == LAST ? low : low + (high - low) * (rank - below) / n;
		below += n;
	}
	return 0;
}
