/* Random histories of one file against a plain model, on a simulated disk: every operation, both
 * suites, sizes round every boundary of the layout, closing, promotion and wiping in between.
 * BYOKFS_TEST_ROUNDS multiplies the work. */
#include "file_sim.h"

#include "file.h"

#define GROUP_END       ((4ull + 106) * PAGE)
#define ROOT_GROUPS_END ((4ull + 106 * 60) * PAGE)
#define ROOT_L1_END     ((4ull + 106ull * (60 + 672 * 60)) * PAGE)
#define TEN_TIB         (10ull << 40)

static struct image model;
static uint8_t *wrote, *got;
#define BIG (600u * 1024)

static const uint64_t near_bases[] = { 0, 1504, 4064, 4096, 16384, 16384, 40000, GROUP_END };
static const uint64_t far_bases[] = { 0, 4096, GROUP_END, ROOT_GROUPS_END, ROOT_GROUPS_END + 106 * PAGE, ROOT_L1_END,
	TEN_TIB };
static bool far;

static uint64_t some_offset(void)
{
	uint64_t base = far ? far_bases[rnd(7)] : near_bases[rnd(8)];
	uint64_t spread = rnd(3) ? 5000 : rnd(2) ? 64 : 300000, back = rnd(spread);

	if (rnd(6) == 0)
		return base;
	if (rnd(8) == 0)
		return model.size;
	return rnd(2) || back > base ? base + rnd(spread) : base - back;
}

static size_t some_length(void)
{
	switch (rnd(8)) {
	case 0:
		return 1 + rnd(40);
	case 1:
		return PAGE * (1 + rnd(3));
	case 2:
		return rnd(12) ? 1 + rnd(30000) : 1 + rnd(BIG);
	default:
		return 1 + rnd(6000);
	}
}

static void check_range(struct file *f, uint64_t off, size_t n)
{
	static uint8_t want[BIG];
	size_t expect = image_get(&model, want, n, off);
	ssize_t have;

	memset(got, 0xee, n);
	have = file_read(f, &test_key, got, n, off);
	assert_int_equal(have, expect);
	if (memcmp(got, want, expect) != 0) {
		size_t i = 0;

		while (got[i] == want[i])
			i++;
		fail_msg("byte %llu (page %llu + %llu) is %02x, not %02x; size %llu", (unsigned long long)(off + i),
		    (unsigned long long)((off + i) / PAGE), (unsigned long long)((off + i) % PAGE), got[i], want[i],
		    (unsigned long long)model.size);
	}
}

static void check_all(struct file *f)
{
	assert_int_equal(file_size(f), model.size);
	for (unsigned b = 0; b < SIM_BUCKETS; b++)
		for (const struct cell *c = model.bucket[b]; c; c = c->next)
			check_range(f, c->at * PAGE, PAGE);
	for (unsigned i = 0; i < 7; i++)
		check_range(f, far_bases[i], 20000);
	check_range(f, 0, BIG);
	if (model.size > 5000)
		check_range(f, model.size - 5000, 6000);
}

static void zero_model(uint64_t off, uint64_t end)
{
	uint64_t first = (off + PAGE - 1) / PAGE, last = end / PAGE;

	if (end > model.size)
		end = model.size;
	if (off >= end)
		return;
	if (first < last)
		image_drop(&model, first, last);
	for (uint64_t at = off; at < end;) {
		uint64_t stop = (at / PAGE + 1) * PAGE < end ? (at / PAGE + 1) * PAGE : end;

		if (*image_slot(&model, at / PAGE))
			memset(image_make(&model, at / PAGE) + at % PAGE, 0, stop - at);
		if (at % PAGE == 0 && stop - at == PAGE && last * PAGE > at)
			stop = last * PAGE; /* dropped above */
		at = stop;
	}
}

static void op_write(struct file *f)
{
	uint64_t off = some_offset();
	size_t n = some_length();

	rnd_fill(wrote, n);
	assert_int_equal(file_write(f, &test_key, wrote, n, off), 0);
	image_put(&model, wrote, n, off);
}

static void op_resize(struct file *f)
{
	uint64_t size = rnd(6) ? some_offset() : 0;

	assert_int_equal(file_truncate(f, &test_key, size), 0);
	image_resize(&model, size);
}

static void op_zero(struct file *f)
{
	static const int modes[] = { FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, FALLOC_FL_KEEP_SIZE };
	unsigned which = (unsigned)rnd(5);
	uint64_t off = some_offset(), len = rnd(4) ? some_length() : 1 + rnd(1 << 21);

	if (far && off < TEN_TIB && rnd(8) == 0)
		len = TEN_TIB - off;
	if (sim.no_fallocate && which > 2)
		return;
	assert_int_equal(file_allocate(f, &test_key, modes[which], off, len), 0);
	if (which < 3)
		zero_model(off, off + len);
	if ((which == 1 || which == 3) && off + len > model.size)
		image_resize(&model, off + len);
}

/* Data must be reported as data, and what is reported as a hole must be zero. */
static void op_seek(struct file *f)
{
	static const uint8_t zero[PAGE];
	uint64_t off = some_offset();
	int64_t data = file_seek(f, &test_key, off, SEEK_DATA), hole = file_seek(f, &test_key, off, SEEK_HOLE);

	if (off >= model.size) {
		assert_int_equal(data, -ENXIO);
		assert_int_equal(hole, -ENXIO);
		return;
	}
	assert_true(hole >= (int64_t)off && hole <= (int64_t)model.size);
	assert_true(data == -ENXIO || (data >= (int64_t)off && data < (int64_t)model.size));
	for (unsigned b = 0; b < SIM_BUCKETS; b++)
		for (const struct cell *c = model.bucket[b]; c; c = c->next)
			if (c->at > off / PAGE && memcmp(c->data, zero, PAGE) != 0)
				assert_true(data >= 0 && data <= (int64_t)(c->at * PAGE));
}

static void op_settle(struct file **f, bool strict)
{
	switch (rnd(9)) {
	case 0:
		assert_int_equal(file_fsync(*f, &test_key), 0);
		break;
	case 1:
		assert_int_equal(file_flush(*f, &test_key, rnd(2)), 0);
		break;
	case 2:
		if (rnd(4) == 0)
			assert_true(promote(*f) >= 0);
		break;
	case 3:
		assert_int_equal(file_flush(*f, &test_key, true), 0);
		assert_false(file_wipe(*f));
		break;
	case 4:
		assert_int_equal(file_flush(*f, &test_key, true), 0);
		assert_false(file_dirty(*f) && !file_pending(*f));
		assert_true(promote(*f) >= 0); /* the state must stay in memory while anything is pending */
		file_close(*f);
		assert_int_equal(sim_open(f, strict), 0);
		assert_int_equal(file_size(*f), model.size);
		break;
	default:
		check_range(*f, some_offset(), some_length());
	}
}

static void history(uint64_t seed, unsigned steps, uint8_t suite, bool wide)
{
	bool strict = seed % 5 == 0;
	struct file *f;
	char what[80];

	rnd_state = seed * 7919 + 1;
	far = wide;
	image_clear(&model);
	sim_reset();
	sim.no_fallocate = seed % 7 == 0;
	test_suite(suite);
	f = sim_new(strict);
	for (unsigned i = 0; i < steps; i++) {
		unsigned what_now = (unsigned)rnd(20);

		if (what_now < 9)
			op_write(f);
		else if (what_now < 11)
			op_resize(f);
		else if (what_now < 13)
			op_zero(f);
		else if (what_now < 14)
			op_seek(f);
		else
			op_settle(&f, strict);
		assert_int_equal(file_size(f), model.size);
		if (i % 40 == 0)
			check_all(f);
	}
	check_all(f);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	(void)snprintf(what, sizeof(what), "seed %llu", (unsigned long long)seed);
	if (promote(f) < 0)
		fail_msg("promotion does not end: %s", what);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_false(file_dirty(f));
	assert_int_equal(sim.live.size, layout_hint(model.size, f->inlined));
	check_all(f);
	file_close(f);
	assert_int_equal(sim_open(&f, false), 0);
	check_all(f);
	file_close(f);
}

static unsigned times_more(void)
{
	const char *s = getenv("BYOKFS_TEST_ROUNDS");
	long n = s ? strtol(s, NULL, 10) : 1;

	return n > 0 ? (unsigned)n : 1;
}

static void run(uint8_t suite, bool wide, unsigned histories, unsigned steps)
{
	wrote = malloc(BIG);
	got = malloc(BIG);
	assert_true(wrote && got);
	for (unsigned i = 0; i < histories * times_more(); i++)
		history(i + 1000u * suite + (wide ? 500000 : 0), steps, suite, wide);
	image_clear(&model);
	sim_free();
	free(wrote);
	free(got);
}

static void test_near(void **state)
{
	(void)state;
	run(1, false, 60, 400);
}

static void test_near_xchacha(void **state)
{
	(void)state;
	run(2, false, 12, 400);
}

static void test_far(void **state)
{
	(void)state;
	run(1, true, 30, 300);
}

static void test_far_xchacha(void **state)
{
	(void)state;
	run(2, true, 6, 300);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_near),
		cmocka_unit_test(test_near_xchacha),
		cmocka_unit_test(test_far),
		cmocka_unit_test(test_far_xchacha),
	};

	return cmocka_run_group_tests_name("file against a model", tests, NULL, NULL);
}
