/* Single behaviours of one file: the worked sizes of the format page, hints and times on a real
 * backing file, what a write costs in system calls, the clock's bounds, what a lock keeps, and who
 * notices tampering. */
#include "file.h"
#include "file_sim.h"

#include <sys/stat.h>

static uint8_t buf[1 << 21];

/* ---- a real backing file ---- */
static char dir[] = "/tmp/byokfs-test-file-XXXXXX";

static int group_up(void **state)
{
	(void)state;
	assert_non_null(mkdtemp(dir));
	rnd_fill(buf, sizeof(buf));
	return 0;
}

static int group_down(void **state)
{
	(void)state;
	sim_free();
	return rmdir(dir);
}

static int real_fd(void)
{
	int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

static struct file *real_new(int fd)
{
	static const struct file_params params;
	struct file *f = NULL;
	uint8_t page[PAGE];

	test_suite(1);
	file_io = &file_io_backing;
	assert_int_equal(file_new_page(page, &test_ident, &test_slot, &test_key), 0);
	assert_int_equal(file_io->write(fd, page, PAGE, 0), 0);
	assert_int_equal(file_new(&f, fd, page, &test_key, &params), 0);
	return f;
}

static void write_ok(struct file *f, size_t n, uint64_t off)
{
	assert_int_equal(file_write(f, &test_key, buf, n, off), 0);
}

static void read_is(struct file *f, const uint8_t *want, size_t n, uint64_t off)
{
	static uint8_t got[sizeof(buf)];

	assert_int_equal(file_read(f, &test_key, got, n, off), n);
	assert_memory_equal(got, want, n);
}

static void test_worked_sizes(void **state)
{
	static const struct {
		uint64_t size, st_size, allocated;
	} rows[] = {
		{ 0, 4096, 4096 },
		{ 1, 4097, 4096 },
		{ 1504, 5600, 4096 },
		{ 1505, 9697, 8192 },
		{ 4096, 8192, 8192 },
		{ 10000, 18192, 16384 },
		{ 16385, 28673, 28672 },
		{ 1 << 20, 1064960, 1064960 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		int fd = real_fd(), copy = dup(fd);
		struct file *f = real_new(fd);
		struct stat st;
		bool wrong = true;

		if (rows[i].size)
			write_ok(f, rows[i].size, 0);
		assert_int_equal(file_flush(f, &test_key, true), 0);
		assert_int_equal(fstat(copy, &st), 0);
		assert_int_equal(st.st_size, rows[i].st_size);
		assert_int_equal(st.st_blocks * 512, rows[i].allocated);
		assert_true(file_fresh(f) && !file_pending(f) && !file_dirty(f));
		file_close(f);
		assert_int_equal(file_open(&f, copy, &test_key, &(struct file_params){ 0 }, &wrong), 0);
		assert_false(wrong);
		assert_int_equal(file_size(f), rows[i].size);
		read_is(f, buf, rows[i].size, 0);
		file_close(f);
	}
}

static void test_sparse_terabyte(void **state)
{
	const uint64_t last = (1ull << 40) - PAGE;
	int fd = real_fd();
	struct file *f = real_new(fd);
	struct stat st;

	(void)state;
	write_ok(f, PAGE, last);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 1109899845632);
	assert_true(st.st_blocks * 512 <= 20480);
	read_is(f, buf, PAGE, last);
	assert_int_equal(file_seek(f, &test_key, 0, SEEK_DATA), last);
	assert_int_equal(file_seek(f, &test_key, 5000, SEEK_HOLE), 5000);
	assert_int_equal(file_seek(f, &test_key, last, SEEK_HOLE), last + PAGE);
	assert_int_equal(file_write(f, &test_key, buf, 1, LAYOUT_SIZE_MAX), -EFBIG);
	assert_int_equal(file_truncate(f, &test_key, LAYOUT_SIZE_MAX + 1), -EFBIG);
	file_close(f);
}

static void test_times_and_hints(void **state)
{
	const struct timespec then[2] = { { 1000, 0 }, { 2000, 0 } };
	int fd = real_fd(), other = dup(fd);
	struct file *f = real_new(fd);
	struct stat st;
	bool wrong;

	(void)state;
	write_ok(f, 50000, 0);
	assert_int_equal(futimens(fd, then), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_false(file_flushed(f));
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_true(file_flushed(f));
	assert_true(promote(f) >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_mtim.tv_sec, 2000);
	write_ok(f, PAGE, 8192);
	assert_int_equal(fstat(fd, &st), 0);
	assert_true(st.st_mtim.tv_sec != 2000);
	assert_int_equal(st.st_size % PAGE, 0); /* in doubt while dirty */
	assert_true(file_dirty(f));
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, layout_hint(50000, false));
	assert_true(promote(f) >= 0);
	file_close(f);
	/* a wrong hint is told and set right, a foreign page more is removed with the next change
	 * of size */
	assert_int_equal(ftruncate(other, st.st_size + PAGE + 5), 0);
	assert_int_equal(file_open(&f, other, &test_key, &(struct file_params){ 0 }, &wrong), 0);
	assert_true(wrong);
	assert_false(file_flushed(f));
	assert_true(file_pending(f));
	assert_true(promote(f) >= 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(fstat(other, &st), 0);
	assert_int_equal(st.st_size, layout_hint(50000, false));
	read_is(f, buf, 8192, 0);
	file_close(f);
}

static void test_readonly(void **state)
{
	int fd = real_fd(), other = dup(fd);
	struct file *f = real_new(fd);
	bool wrong;

	(void)state;
	write_ok(f, 3000, 0);
	assert_int_equal(file_flush(f, &test_key, false), 0);
	file_close(f);
	assert_int_equal(file_open(&f, other, &test_key, &(struct file_params){ .readonly = true }, &wrong), 0);
	assert_true(wrong);
	assert_false(file_dirty(f) || file_pending(f));
	read_is(f, buf, 3000, 0);
	assert_int_equal(file_write(f, &test_key, buf, 1, 0), -EROFS);
	assert_int_equal(file_truncate(f, &test_key, 0), -EROFS);
	assert_int_equal(file_allocate(f, &test_key, 0, 0, 1), -EROFS);
	assert_int_equal(file_fsync(f, &test_key), 0);
	file_close(f);
}

/* ---- costs, on the simulated disk ---- */
static void counters_clear(void)
{
	sim.reads = sim.writes = sim.syncs = sim.sizes = sim.allocs = sim.mtimes = 0;
}

static struct file *sim_begin(void)
{
	sim_reset();
	test_suite(1);
	return sim_new(false);
}

static void test_costs(void **state)
{
	struct file *f = sim_begin();

	(void)state;
	counters_clear();
	write_ok(f, 1000, 0);
	assert_int_equal(sim.writes, 1);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(sim.writes, 1);
	assert_int_equal(sim.sizes, 1);
	assert_int_equal(sim.mtimes, 1);
	assert_int_equal(sim.reads + sim.allocs + sim.syncs, 0);
	counters_clear();
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(sim.writes + sim.sizes + sim.mtimes, 0);
	file_close(f);

	f = sim_begin();
	counters_clear();
	write_ok(f, 20 * PAGE, 0); /* the group page between is zeros in the same call */
	assert_int_equal(sim.writes, 1);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(sim.writes, 3);
	assert_int_equal(sim.sizes, 0); /* a whole number of pages: the length is the hint */
	assert_int_equal(sim.allocs + sim.syncs + sim.reads, 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	counters_clear();
	write_ok(f, 1 << 20, 0);
	write_ok(f, 1 << 20, 1 << 20);
	assert_in_range(sim.writes, 2, 8);
	counters_clear();
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_int_equal(sim.syncs, 1);
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_int_equal(sim.syncs, 2);
	counters_clear();
	read_is(f, buf, 1 << 20, 0);
	assert_int_equal(sim.reads, 1);
	file_close(f);
}

/* ---- clocks ---- */
static void test_clock_bounds(void **state)
{
	struct file *f = sim_begin();
	uint64_t clock;

	(void)state;
	write_ok(f, 300 * PAGE, 0);
	assert_int_equal(f->clock, 302); /* page 0, the flip, 300 pages */
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_true(promote(f) >= 0);
	clock = f->disk.clock;
	file_close(f);
	assert_int_equal(sim_open(&f, false), 0);
	write_ok(f, PAGE, 0);
	assert_int_equal(f->clock, clock + FILE_B + 1);
	/* not beyond dclock + W without a flush */
	f->clock = f->durable + FILE_W - FILE_MARGIN - 10;
	counters_clear();
	write_ok(f, 8 * PAGE, 0);
	assert_int_equal(sim.syncs, 0);
	write_ok(f, 8 * PAGE, 0);
	assert_int_equal(sim.syncs, 1);
	assert_true(f->clock <= f->durable + FILE_W);
	f->clock = BLOCK_VER_MAX - 3;
	assert_int_equal(file_write(f, &test_key, buf, PAGE, 0), -EFBIG);
	file_close(f);

	f = sim_begin();
	write_ok(f, 5 * PAGE, 0);
	f->clock += FILE_B; /* a fresh file writes page 0 now and then, but never flushes */
	counters_clear();
	write_ok(f, PAGE, 0);
	assert_int_equal(f->disk.clock, f->clock - 1);
	assert_int_equal(sim.syncs, 0);
	file_close(f);
}

static void test_failed_flush_stays(void **state)
{
	struct file *f = sim_begin();

	(void)state;
	write_ok(f, 3 * PAGE, 0);
	sim.calls = 0;
	sim.fail_with = -EIO;
	sim.fail_at = 2; /* page 0, flush */
	assert_int_equal(file_fsync(f, &test_key), -EIO);
	sim.fail_at = 0;
	assert_int_equal(file_fsync(f, &test_key), -EIO);
	assert_false(file_flushed(f));
	assert_false(file_pending(f));
	file_close(f);
}

static void test_strict(void **state)
{
	struct file *f;

	(void)state;
	sim_reset();
	test_suite(1);
	f = sim_new(true);
	write_ok(f, PAGE, 0);
	write_ok(f, PAGE, 30ull << 20); /* below an L1 page */
	assert_int_equal(file_fsync(f, &test_key), 0);
	write_ok(f, PAGE, 30ull << 20);
	counters_clear();
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_int_equal(sim.syncs, 4);
	assert_false(file_pending(f));
	file_close(f);
}

/* ---- lock ---- */
static void test_wipe(void **state)
{
	struct file *f = sim_begin();
	struct image old = { 0 };

	(void)state;
	write_ok(f, 200000, 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	image_copy(&old, &sim.live);
	write_ok(f, 5 * PAGE, 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_false(file_wipe(f));
	assert_true(bytes_zero(f->root->text, BLOCK_ROOT_TEXT));
	assert_true(file_pending(f)); /* records still to be made */
	read_is(f, buf, 200000, 0);
	assert_true(promote(f) > 0);
	/* unwritten: lost as in a crash, and said so */
	assert_int_equal(file_write(f, &test_key, buf, 30, 8192 + 4064), 0);
	assert_true(file_wipe(f));
	read_is(f, buf, 5 * PAGE - 4096, 0);
	/* rolled back while locked */
	assert_false(file_wipe(f));
	sim_boot(&old);
	assert_int_equal(file_read(f, &test_key, buf + (1 << 20), 10, 0), -EIO);
	image_clear(&old);
	file_close(f);
}

static void test_peek(void **state)
{
	struct header_ident ident;
	struct header_slot slot;

	(void)state;
	sim_reset();
	test_suite(1);
	assert_int_equal(file_peek(0, &ident, &slot), -ENODATA);
	image_make(&sim.live, 0);
	sim.live.size = 4095;
	assert_int_equal(file_peek(0, &ident, &slot), -ENODATA);
	sim.live.size = 4096;
	assert_int_equal(file_peek(0, &ident, &slot), -ENODATA);
	image_make(&sim.live, 0)[3] = 1;
	assert_int_equal(file_peek(0, &ident, &slot), -EIO);
}

/* ---- threads ---- */
static struct file *shared;
static atomic_bool stop;

/* Each page holds one byte value throughout, whatever moment a reader sees it at. */
static void *reader(void *arg)
{
	static const size_t n = 3 * PAGE;
	uint8_t *got = malloc(n);
	uint64_t k = (uintptr_t)arg;
	bool bad = got == NULL;

	while (!bad && !stop) {
		ssize_t have = file_read(shared, &test_key, got, n, (k = (k * 7 + 3) % 300) * PAGE);

		bad = have < 0;
		for (ssize_t i = 1; i < have; i++)
			bad |= i % PAGE != 0 && got[i] != got[i - 1];
	}
	free(got);
	return (void *)(uintptr_t)bad;
}

static void *flusher(void *arg)
{
	bool bad = false;

	(void)arg;
	while (!stop)
		bad |= file_fsync(shared, &test_key) != 0 || file_flush(shared, &test_key, false) != 0;
	return (void *)(uintptr_t)bad;
}

static void test_threads(void **state)
{
	pthread_t thread[4];
	void *bad[4];

	(void)state;
	shared = real_new(real_fd());
	stop = false;
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, i ? reader : flusher, (void *)(uintptr_t)i), 0);
	for (unsigned i = 0; i < 1500; i++) {
		memset(buf, (int)(1 + i % 255), 20 * PAGE);
		assert_int_equal(file_write(shared, &test_key, buf, (1 + i % 20) * PAGE, i * 13 % 280 * PAGE), 0);
		if (i % 500 == 499)
			assert_int_equal(file_truncate(shared, &test_key, 100 * PAGE), 0);
	}
	stop = true;
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(thread[i], &bad[i]), 0);
		assert_null(bad[i]);
	}
	file_close(shared);
	rnd_fill(buf, sizeof(buf));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_worked_sizes),
		cmocka_unit_test(test_sparse_terabyte),
		cmocka_unit_test(test_times_and_hints),
		cmocka_unit_test(test_readonly),
		cmocka_unit_test(test_costs),
		cmocka_unit_test(test_clock_bounds),
		cmocka_unit_test(test_failed_flush_stays),
		cmocka_unit_test(test_strict),
		cmocka_unit_test(test_wipe),
		cmocka_unit_test(test_peek),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests_name("file", tests, group_up, group_down);
}
