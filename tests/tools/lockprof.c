/* lockprof.c — who waits for which lock, and how long: linked into byokfs by `make LOCKPROF=1`, no part of the product.
 *
 * The linker sends every pthread_mutex_lock, pthread_rwlock_rdlock and pthread_rwlock_wrlock of the program here (--wrap).
 * A lock that is free costs one more call; one that is not is waited for by the clock. At exit a table goes to stderr: a
 * line per call site that ever waited, the longest total first. Locks inside of libraries are not seen, nor is what a
 * condition variable takes again. Sites are offsets: addr2line -fpie PROGRAM OFFSET... names them. */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SITES 1024u

struct site {
	_Atomic uintptr_t at;
	_Atomic uint64_t taken, waited, ns, longest;
};
static struct site sites[SITES];
static struct site others; /* when the table is full */

extern const char __executable_start[];
int __real_pthread_mutex_lock(pthread_mutex_t *);
int __real_pthread_rwlock_rdlock(pthread_rwlock_t *);
int __real_pthread_rwlock_wrlock(pthread_rwlock_t *);
int __wrap_pthread_mutex_lock(pthread_mutex_t *);
int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *);
int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *);

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct site *site_of(const void *caller)
{
	uintptr_t at = (uintptr_t)caller - (uintptr_t)__executable_start;

	for (unsigned i = 0; i < SITES; i++) {
		struct site *s = &sites[(at * 2654435761u + i) % SITES];
		uintptr_t seen = 0;

		if (atomic_load_explicit(&s->at, memory_order_relaxed) == at ||
		    atomic_compare_exchange_strong(&s->at, &seen, at) || seen == at)
			return s;
	}
	return &others;
}

static void waited(struct site *s, uint64_t since)
{
	uint64_t ns = now_ns() - since, longest = atomic_load(&s->longest);

	atomic_fetch_add(&s->waited, 1);
	atomic_fetch_add(&s->ns, ns);
	while (ns > longest && !atomic_compare_exchange_weak(&s->longest, &longest, ns))
		;
}

/* The attempt, and if it would have to wait, the wait. */
#define TAKE(try, real, lock)                                                       \
	struct site *s = site_of(__builtin_return_address(0));                      \
	int rc = try(lock);                                                         \
	atomic_fetch_add_explicit(&s->taken, 1, memory_order_relaxed);              \
	if (rc != EBUSY)                                                            \
		return rc;                                                          \
	uint64_t since = now_ns();                                                  \
	rc = real(lock);                                                            \
	waited(s, since);                                                           \
	return rc

int __wrap_pthread_mutex_lock(pthread_mutex_t *lock)
{
	TAKE(pthread_mutex_trylock, __real_pthread_mutex_lock, lock);
}

int __wrap_pthread_rwlock_rdlock(pthread_rwlock_t *lock)
{
	TAKE(pthread_rwlock_tryrdlock, __real_pthread_rwlock_rdlock, lock);
}

int __wrap_pthread_rwlock_wrlock(pthread_rwlock_t *lock)
{
	TAKE(pthread_rwlock_trywrlock, __real_pthread_rwlock_wrlock, lock);
}

static int by_wait(const void *a, const void *b)
{
	uint64_t x = ((const struct site *)a)->ns, y = ((const struct site *)b)->ns;

	return x < y ? 1 : x > y ? -1 : 0;
}

__attribute__((destructor)) static void report(void)
{
	uint64_t taken = 0, ns = 0;

	qsort(sites, SITES, sizeof(sites[0]), by_wait);
	for (unsigned i = 0; i < SITES; i++) {
		taken += sites[i].taken;
		ns += sites[i].ns;
	}
	if (taken == 0)
		return;
	fprintf(stderr, "lockprof: %" PRIu64 " taken, waited %" PRIu64 " us in all\n", taken, ns / 1000);
	fprintf(stderr, "lockprof: %12s %10s %8s %10s %8s\n", "site", "taken", "waited", "us", "longest");
	for (unsigned i = 0; i < SITES && sites[i].waited; i++)
		fprintf(stderr, "lockprof: %#12" PRIxPTR " %10" PRIu64 " %8" PRIu64 " %10" PRIu64 " %8" PRIu64 "\n", sites[i].at,
		    sites[i].taken, sites[i].waited, sites[i].ns / 1000, sites[i].longest / 1000);
}
