/* histogram.h — how long things take, counted in buckets of powers of two microseconds. Lock-free: any thread adds, any
 * thread reads; a reader may see an addition half done (in the sum, not yet in a bucket), never a torn number. */
#ifndef BYOKFS_HISTOGRAM_H
#define BYOKFS_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

/* Bucket i counts what took more than 2^(i-1) and at most 2^i microseconds (0: at most 1); the last all that took
 * longer than 2^(HISTOGRAM_BUCKETS-2), which is 67 s. */
#define HISTOGRAM_BUCKETS 28u

/* All zero is empty. */
struct histogram {
	_Atomic uint64_t bucket[HISTOGRAM_BUCKETS];
	_Atomic uint64_t sum_ns;
};

/* A copy to calculate with, or several added up. */
struct histogram_view {
	uint64_t bucket[HISTOGRAM_BUCKETS];
	uint64_t count, sum_ns; /* count: of all buckets */
};

/* Nanoseconds of CLOCK_MONOTONIC, to take differences of. */
uint64_t histogram_clock(void);
void histogram_add(struct histogram *, uint64_t ns);
/* Adds what h holds to *view. */
void histogram_read(const struct histogram *h, struct histogram_view *view);
/* The time in microseconds that this many in a thousand did not exceed, interpolated within its bucket; at most the
 * lower bound of the last bucket. 0 when empty. */
double histogram_quantile(const struct histogram_view *, unsigned permille);

#endif
