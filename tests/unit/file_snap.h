/* file_snap.h — contents of one file over time, for tests of what may be read after something went
 * wrong: what was acknowledged, and after each operation since. Includes random operations that
 * keep the book. */
#ifndef BYOKFS_TEST_FILE_SNAP_H
#define BYOKFS_TEST_FILE_SNAP_H

#include "file_sim.h"

/* Only these pages are used: round the boundaries of root, group, L1 and L2. */
static const struct window {
	uint64_t first, n;
} windows[] = { { 0, 10 }, { 107, 6 }, { 6362, 5 }, { 4280282, 5 } };
#define PAGES 26u
#define SNAPS 24u

/* Content at one moment. */
struct snap {
	uint64_t size;
	uint8_t data[PAGES][PAGE];
};

static struct snap *snaps; /* 0: acknowledged; then after each operation since */
static unsigned nsnaps;
static struct snap *cur;
static unsigned nwindows;
static bool ever; /* an fsync was acknowledged */
static uint64_t seed_now;

static uint64_t page_number(unsigned i)
{
	for (unsigned w = 0;; i -= (unsigned)windows[w++].n)
		if (i < windows[w].n)
			return windows[w].first + i;
}

static int page_slot(uint64_t k)
{
	int base = 0;

	for (unsigned w = 0; w < 4; w++) {
		if (k >= windows[w].first && k < windows[w].first + windows[w].n)
			return base + (int)(k - windows[w].first);
		base += (int)windows[w].n;
	}
	return -1;
}

/* buf NULL: zeros. */
static void snap_put(struct snap *s, const uint8_t *buf, uint64_t n, uint64_t off)
{
	for (unsigned i = 0; i < PAGES; i++) {
		uint64_t at = page_number(i) * PAGE, from = off > at ? off : at;
		uint64_t to = off + n < at + PAGE ? off + n : at + PAGE;

		if (from >= to)
			continue;
		if (buf)
			memcpy(s->data[i] + (from - at), buf + (from - off), to - from);
		else
			memset(s->data[i] + (from - at), 0, to - from);
	}
}

static void snap_resize(struct snap *s, uint64_t size)
{
	if (size < s->size)
		snap_put(s, NULL, s->size - size, size);
	s->size = size;
}

/* An operation ended. */
static void note(void)
{
	assert_true(nsnaps < SNAPS);
	memcpy(&snaps[nsnaps++], cur, sizeof(*cur));
}

static void acknowledge(void)
{
	nsnaps = 0;
	note();
	ever = true;
}

static uint64_t some_offset(void)
{
	const struct window *w = &windows[rnd(nwindows)];
	uint64_t off = w->first * PAGE + rnd(w->n * PAGE - 6000);

	switch (rnd(6)) {
	case 0:
		return off / PAGE * PAGE;
	case 1:
		return off / PAGE * PAGE + 4050 + rnd(60);
	case 2:
		return page_slot(cur->size / PAGE) >= 0 && page_slot((cur->size + 6000) / PAGE) >= 0 ? cur->size : off;
	case 3:
		return w->first ? off : rnd(1600);
	default:
		return off;
	}
}

static int op_write(struct file *f)
{
	static uint8_t buf[6000];
	uint64_t off = some_offset(), n = rnd(3) == 0 ? PAGE : 1 + rnd(rnd(2) ? 200 : 6000);
	int rc;

	rnd_fill(buf, n);
	rc = file_write(f, &test_key, buf, n, off);
	snap_put(cur, buf, n, off);
	if (off + n > cur->size)
		cur->size = off + n;
	note();
	return rc;
}

static int op_resize(struct file *f)
{
	uint64_t size = rnd(4) ? some_offset() : 0;
	int rc = file_truncate(f, &test_key, size);

	snap_resize(cur, size);
	note();
	return rc;
}

static int op_punch(struct file *f)
{
	uint64_t off = some_offset(), n = rnd(3) ? 1 + rnd(20000) : 1 + rnd(1u << 20);
	int rc = file_allocate(f, &test_key, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, n);

	if (off < cur->size)
		snap_put(cur, NULL, n < cur->size - off ? n : cur->size - off, off);
	note();
	return rc;
}

static bool allowed(unsigned i, unsigned b, uint64_t at, uint8_t have)
{
	for (unsigned s = 0; s < nsnaps; s++) {
		if (at >= snaps[s].size ? have == 0 : snaps[s].data[i][b] == have)
			return true;
	}
	return false;
}

/* A size that was there; or, where a write may have ended half way, one between those. */
static bool size_allowed(uint64_t size, bool between)
{
	uint64_t low = UINT64_MAX, high = 0;
	bool known = false;

	for (unsigned s = 0; s < nsnaps; s++) {
		known |= snaps[s].size == size;
		low = snaps[s].size < low ? snaps[s].size : low;
		high = snaps[s].size > high ? snaps[s].size : high;
	}
	return known || (between && size >= low && size <= high);
}

/* Reads all of the file into cur; judges it. false: it could not be read, and need not be. */
static bool judge(struct file *f, bool between)
{
	cur->size = file_size(f);
	if (!size_allowed(cur->size, between))
		fail_msg("seed %llu: size %llu was never there", (unsigned long long)seed_now,
		    (unsigned long long)cur->size);
	memset(cur->data, 0, sizeof(cur->data));
	for (unsigned i = 0; i < PAGES; i++) {
		uint64_t at = page_number(i) * PAGE;
		ssize_t n = file_read(f, &test_key, cur->data[i], PAGE, at);

		if (n < 0 && !ever)
			return false;
		if (n < 0)
			fail_msg("seed %llu: page %llu cannot be read", (unsigned long long)seed_now,
			    (unsigned long long)at / PAGE);
		for (unsigned b = 0; b < (unsigned)n; b++)
			if (!allowed(i, b, at + b, cur->data[i][b]))
				fail_msg("seed %llu: byte %u of page %llu was never there",
				    (unsigned long long)seed_now, b, (unsigned long long)at / PAGE);
	}
	return true;
}

UNUSED static void snaps_alloc(void)
{
	snaps = malloc(SNAPS * sizeof(*snaps));
	cur = malloc(sizeof(*cur));
	assert_true(snaps && cur);
}

UNUSED static void snaps_free(void)
{
	free(snaps);
	free(cur);
}

UNUSED static unsigned times_more(void)
{
	const char *s = getenv("BYOKFS_TEST_ROUNDS");
	long n = s ? strtol(s, NULL, 10) : 1;

	return n > 0 ? (unsigned)n : 1;
}

#endif
