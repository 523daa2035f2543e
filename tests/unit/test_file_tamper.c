/* Somebody alters the backing: the rows of section 14 of the format page that concern one file.
 * Whatever is changed, a read gives the content that was written or EIO, and nothing else; and
 * where detection is promised, EIO. */
#include "file.h"
#include "file_sim.h"

#define PAGES    120u  /* root, group 0, group 1 */
#define FAR_PAGE 6364u /* the first below an L1 page */
#define SIZE     (PAGES * PAGE)

static uint8_t *now; /* what the file holds: PAGES pages, then page FAR_PAGE */
static struct image clean;

static int setup(void **state)
{
	(void)state;
	now = malloc(SIZE + PAGE);
	return now ? 0 : -1;
}

static int teardown(void **state)
{
	(void)state;
	free(now);
	image_clear(&clean);
	sim_free();
	return 0;
}

static void fill(struct file *f)
{
	rnd_fill(now, SIZE + PAGE);
	assert_int_equal(file_write(f, &test_key, now, SIZE, 0), 0);
	assert_int_equal(file_write(f, &test_key, now + SIZE, PAGE, FAR_PAGE * (uint64_t)PAGE), 0);
}

static void settle(struct file *f)
{
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_true(promote(f) >= 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
}

static struct file *begin(uint8_t suite)
{
	struct file *f;

	sim_reset();
	test_suite(suite);
	f = sim_new(false);
	fill(f);
	settle(f);
	return f;
}

static struct file *open_again(struct file *f)
{
	file_close(f);
	assert_int_equal(sim_open(&f, false), 0);
	return f;
}

/* Number of pages that cannot be read; those that can hold what they should, or zeros where `zero`
 * says so. */
static unsigned unreadable(struct file *f, bool zero)
{
	static const uint8_t zeros[PAGE];
	uint8_t got[PAGE];
	unsigned bad = 0;

	for (unsigned i = 0; i <= PAGES; i++) {
		uint64_t off = i < PAGES ? (uint64_t)i * PAGE : FAR_PAGE * (uint64_t)PAGE;
		ssize_t n = file_read(f, &test_key, got, PAGE, off);

		if (n < 0) {
			assert_int_equal(n, -EIO);
			assert_true(bytes_zero(got, PAGE));
			bad++;
		} else if (!zero || memcmp(got, zeros, PAGE) != 0) {
			assert_int_equal(n, PAGE);
			assert_memory_equal(got, now + (size_t)i * PAGE, PAGE);
		}
	}
	return bad;
}

/* How many pages a physical page answers for. */
static unsigned share(uint64_t phys)
{
	enum unit_type type = UNIT_ROOT;
	uint64_t index = 0;

	assert_true(layout_unit_at(phys, &type, &index));
	if (type == UNIT_DATA)
		return 1;
	return type == UNIT_GROUP && index == 0 ? 106 : type == UNIT_GROUP && index == 1 ? 10 : 1;
}

static const uint64_t units[] = { 1, 4, 5, 6, 50, 111, 112, 113, 122, 6425, 6426, 6427 };
#define UNITS (sizeof(units) / sizeof(units[0]))

static void test_bits_zeros_swaps(void **state)
{
	(void)state;
	for (uint8_t suite = 1; suite <= 2; suite++) {
		struct file *f = begin(suite);

		file_close(f);
		image_copy(&clean, &sim.live);
		for (size_t u = 0; u < UNITS; u++) {
			static const unsigned at[] = { 0, 5, 6, 15, 16, 2000, 4079, 4080, 4095 };

			for (unsigned i = 0; i < 11; i++) {
				uint8_t *page;

				sim_boot(&clean);
				page = image_make(&sim.live, units[u]);
				if (i < 9)
					page[at[i]] ^= 0x10;
				else if (i == 9)
					memset(page, 0, PAGE);
				else
					memcpy(page, image_page(&sim.live, u ? units[u - 1] : 3), PAGE);
				assert_int_equal(sim_open(&f, false), 0);
				assert_int_equal(unreadable(f, false), share(units[u]));
				file_close(f);
			}
		}
	}
}

static void test_first_page(void **state)
{
	struct file *f = begin(1);

	(void)state;
	file_close(f);
	image_copy(&clean, &sim.live);
	for (unsigned at = 0; at < PAGE; at += at < 600 ? 1 : 7) {
		struct header_slot slot;
		struct header_ident ident;

		sim_boot(&clean);
		image_make(&sim.live, 0)[at] ^= 1;
		if (file_peek(0, &ident, &slot) != 0 || sim_open(&f, false) != 0)
			continue;
		/* in what does not rule, or in a slot, which is checked by who opens it */
		assert_true(at >= 512 && at < HEADER_ROOT_AT);
		assert_int_equal(unreadable(f, false), 0);
		file_close(f);
	}
}

/* Each page rolled back by itself, after it was written again and recorded. */
static void test_rollback(void **state)
{
	struct file *f = begin(1);
	struct image newer = { 0 };

	(void)state;
	image_copy(&clean, &sim.live);
	fill(f);
	/* even before any record: this tenure knows what it wrote */
	for (size_t u = 0; u < UNITS; u++)
		if (share(units[u]) == 1 && units[u] < 6425)
			memcpy(image_make(&sim.live, units[u]), image_page(&clean, units[u]), PAGE);
	assert_true(unreadable(f, false) >= 7);
	fill(f);
	settle(f);
	file_close(f);
	image_copy(&newer, &sim.live);
	for (size_t u = 0; u < UNITS; u++) {
		sim_boot(&newer);
		memcpy(image_make(&sim.live, units[u]), image_page(&clean, units[u]), PAGE);
		assert_int_equal(sim_open(&f, false), 0);
		assert_int_equal(unreadable(f, false), share(units[u]));
		file_close(f);
	}
	/* page 0 alone, two writing tenures back */
	sim_boot(&newer);
	assert_int_equal(sim_open(&f, false), 0);
	fill(f);
	settle(f);
	f = open_again(f);
	fill(f);
	settle(f);
	file_close(f);
	memcpy(image_make(&sim.live, 0), image_page(&newer, 0), PAGE);
	assert_int_equal(sim_open(&f, false), 0);
	assert_int_equal(unreadable(f, false), PAGES + 1);
	file_close(f);
	/* the whole file: undetected by design */
	sim_boot(&clean);
	assert_int_equal(sim_open(&f, false), 0);
	file_close(f);
	image_clear(&newer);
}

/* Old pages, among them the last before the drop, put back behind a truncation or a punch: EIO or zeros. */
static void dropped(bool punch, bool reopen)
{
	struct file *f = begin(1);

	fill(f);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	/* page 99 is the last thing sealed before the drop */
	assert_int_equal(file_write(f, &test_key, now + 99 * PAGE, PAGE, 99 * PAGE), 0);
	image_copy(&clean, &sim.live);
	if (punch) {
		assert_int_equal(
		    file_allocate(f, &test_key, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 100 * PAGE), 0);
		memset(now, 0, 100 * PAGE);
	} else {
		assert_int_equal(file_truncate(f, &test_key, 50 * PAGE), 0);
		memset(now + 50 * PAGE, 0, SIZE + PAGE - 50 * PAGE);
	}
	assert_int_equal(file_fsync(f, &test_key), 0);
	if (!punch)
		assert_int_equal(file_truncate(f, &test_key, (FAR_PAGE + 1) * (uint64_t)PAGE), 0);
	assert_int_equal(unreadable(f, false), 0);
	settle(f);
	for (unsigned k = 0; k < PAGES; k++) {
		uint64_t phys = layout_phys(UNIT_DATA, k);

		if (punch ? k < 100 : k >= 50)
			memcpy(image_make(&sim.live, phys), image_page(&clean, phys), PAGE);
	}
	if (!punch) {
		memcpy(image_make(&sim.live, 112), image_page(&clean, 112), PAGE);
		memcpy(image_make(&sim.live, 6425), image_page(&clean, 6425), PAGE);
		memcpy(image_make(&sim.live, 6426), image_page(&clean, 6426), PAGE);
		memcpy(image_make(&sim.live, 6427), image_page(&clean, 6427), PAGE);
	}
	if (reopen)
		f = open_again(f);
	(void)unreadable(f, false);
	file_close(f);
}

static void test_dropped(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++)
		dropped(i & 1, i & 2);
}

static void test_length(void **state)
{
	static const uint64_t cuts[] = { 123, 122, 113, 60, 6, 5, 2, 1 };
	struct file *f = begin(1);
	struct header_ident ident;
	struct header_slot slot;

	(void)state;
	file_close(f);
	image_copy(&clean, &sim.live);
	for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
		sim_boot(&clean);
		image_resize(&sim.live, cuts[i] * PAGE);
		assert_int_equal(sim_open(&f, false), 0);
		assert_int_equal(file_size(f), (FAR_PAGE + 1) * (uint64_t)PAGE);
		assert_true(unreadable(f, false) >= 1);
		file_close(f);
	}
	image_resize(&sim.live, 4095);
	assert_int_equal(file_peek(0, &ident, &slot), -ENODATA);
	assert_int_equal(sim_open(&f, false), -EIO);
	/* more pages than there should be: ignored, and not shown when the file grows over them */
	sim_boot(&clean);
	image_put(&sim.live, image_page(&clean, 6427), PAGE, 6428 * (uint64_t)PAGE);
	image_put(&sim.live, image_page(&clean, 6427), PAGE, 6429 * (uint64_t)PAGE);
	assert_int_equal(sim_open(&f, false), 0);
	assert_int_equal(file_size(f), (FAR_PAGE + 1) * (uint64_t)PAGE);
	assert_int_equal(unreadable(f, false), 0);
	assert_int_equal(file_truncate(f, &test_key, (FAR_PAGE + 3) * (uint64_t)PAGE), 0);
	{
		uint8_t got[2 * PAGE];

		assert_int_equal(
		    file_read(f, &test_key, got, sizeof(got), (FAR_PAGE + 1) * (uint64_t)PAGE), sizeof(got));
		assert_true(bytes_zero(got, sizeof(got)));
	}
	file_close(f);
	image_put(&sim.live, NULL, 1, 1ull << 62);
	assert_int_equal(sim_open(&f, false), 0);
	assert_int_equal(file_size(f), (FAR_PAGE + 1) * (uint64_t)PAGE);
	file_close(f);
}

/* Another file's page 0, or all of it, under this file's key. */
static void test_other_file(void **state)
{
	struct file *f = begin(1);

	(void)state;
	file_close(f);
	test_ident.file[0] ^= 1;
	test_block.file[0] ^= 1;
	test_block.serial = block_serial();
	assert_int_equal(sim_open(&f, false), -EIO);
	test_suite(2);
	assert_int_equal(sim_open(&f, false), -EIO);
	test_suite(1);
	test_keys.hdr[0] ^= 1;
	assert_int_equal(sim_open(&f, false), -EIO);
	test_suite(1);
	test_keys.commit[0] ^= 1;
	assert_int_equal(sim_open(&f, false), -EIO);
}

/* A page that cannot be opened does not stop the file from being emptied and used again. */
static void test_truncate_damaged(void **state)
{
	struct file *f = begin(1);

	(void)state;
	f = open_again(f);
	image_make(&sim.live, 6425)[100] ^= 1;
	image_make(&sim.live, 5)[100] ^= 1;
	assert_int_equal(file_write(f, &test_key, now, 10, 30 * PAGE), -EIO);
	assert_int_equal(file_truncate(f, &test_key, 0), 0);
	assert_int_equal(file_write(f, &test_key, now, SIZE, 0), 0);
	assert_int_equal(file_write(f, &test_key, now + SIZE, PAGE, FAR_PAGE * (uint64_t)PAGE), 0);
	settle(f);
	f = open_again(f);
	assert_int_equal(unreadable(f, false), 0);
	file_close(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bits_zeros_swaps),
		cmocka_unit_test(test_first_page),
		cmocka_unit_test(test_rollback),
		cmocka_unit_test(test_dropped),
		cmocka_unit_test(test_length),
		cmocka_unit_test(test_other_file),
		cmocka_unit_test(test_truncate_damaged),
	};

	return cmocka_run_group_tests_name("file against tampering", tests, setup, teardown);
}
