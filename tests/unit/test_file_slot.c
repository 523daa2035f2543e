/* The sealed key of a file in memory is exchanged: what is written, what stays, and who may still hold the old one. */
#include "file.h"
#include "file_sim.h"

static uint8_t buf[8 * PAGE];

static struct file *begin(void)
{
	sim_reset();
	test_suite(1);
	rnd_fill(buf, sizeof(buf));
	return sim_new(false);
}

static void counters_clear(void)
{
	sim.reads = sim.writes = sim.syncs = sim.sizes = sim.allocs = sim.mtimes = 0;
}

static struct header_slot other_slot(const char *blob)
{
	struct header_slot s = test_slot;

	s.len = (uint16_t)strlen(blob);
	memcpy(s.blob, blob, s.len);
	s.seq = 777; /* ignored */
	return s;
}

static int put(struct file *f, uint32_t seq, const char *blob)
{
	struct header_slot s = other_slot(blob);

	return file_put_slot(f, seq, &s);
}

/* Which seqs stand in slots A and B of the disk; 0: empty. */
static void slots_are(uint32_t a, uint32_t b)
{
	const uint8_t *page = image_page(&sim.live, 0);
	struct header_slot s;

	assert_int_equal(header_slot(page, 0, &s) ? 0 : s.seq, a);
	assert_int_equal(header_slot(page, 1, &s) ? 0 : s.seq, b);
}

static void ruling_is(uint32_t seq, const char *blob)
{
	struct header_ident ident;
	struct header_slot s;

	assert_int_equal(file_peek(0, &ident, &s), 0);
	assert_int_equal(s.seq, seq);
	assert_int_equal(s.len, strlen(blob));
	assert_memory_equal(s.blob, blob, s.len);
	assert_memory_equal(ident.file, test_ident.file, CONTEXT_ID);
}

static void read_is(struct file *f, size_t n)
{
	static uint8_t got[sizeof(buf)];

	assert_int_equal(file_read(f, &test_key, got, n, 0), n);
	assert_memory_equal(got, buf, n);
}

static void in_turn(void **state)
{
	struct file *f = begin();
	uint8_t before[PAGE];

	(void)state;
	assert_int_equal(file_write(f, &test_key, buf, 100, 0), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	memcpy(before, image_page(&sim.live, 0), PAGE);
	sim.mtime.tv_sec = 4711;
	counters_clear();
	assert_int_equal(put(f, 1, "two"), 0);
	assert_int_equal(sim.writes, 1);
	assert_int_equal(sim.syncs, 0);
	assert_int_equal(sim.mtime.tv_sec, 4711);
	slots_are(1, 2);
	ruling_is(2, "two");
	assert_memory_equal(image_page(&sim.live, 0), before, HEADER_SLOT_AT(1));
	assert_memory_equal(
	    image_page(&sim.live, 0) + HEADER_SLOT_AT(2), before + HEADER_SLOT_AT(2), PAGE - HEADER_SLOT_AT(2));
	assert_int_equal(file_clear_slot(f, 2), 0);
	slots_are(0, 2);
	assert_int_equal(put(f, 2, "three"), 0);
	slots_are(3, 2);
	ruling_is(3, "three");
	assert_int_equal(file_clear_slot(f, 3), 0);
	assert_int_equal(file_clear_slot(f, 3), 0);
	slots_are(3, 0);
	assert_int_equal(sim.syncs, 0);
	assert_int_equal(sim.mtime.tv_sec, 4711);
	/* later writes of page 0 keep what is there */
	assert_int_equal(file_write(f, &test_key, buf, sizeof(buf), 0), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	slots_are(3, 0);
	file_close(f);
	assert_int_equal(sim_open(&f, false), 0);
	read_is(f, sizeof(buf));
	file_close(f);
}

static void refused(void **state)
{
	struct header_slot bad = other_slot("bad");
	struct file *f = begin();

	(void)state;
	assert_int_equal(file_fsync(f, &test_key), 0);
	counters_clear();
	assert_int_equal(put(f, 0, "two"), -ESTALE);
	assert_int_equal(put(f, 2, "two"), -ESTALE);
	assert_int_equal(file_clear_slot(f, 2), -ESTALE);
	bad.len = 0;
	assert_int_equal(file_put_slot(f, 1, &bad), -EINVAL);
	bad.len = HEADER_BLOB_MAX + 1;
	assert_int_equal(file_put_slot(f, 1, &bad), -EINVAL);
	bad = other_slot("bad");
	bad.wrap = 9;
	assert_int_equal(file_put_slot(f, 1, &bad), -EINVAL);
	f->params.readonly = true;
	assert_int_equal(put(f, 1, "two"), -EROFS);
	assert_int_equal(file_clear_slot(f, 1), -EROFS);
	f->params.readonly = false;
	assert_int_equal(sim.writes, 0);
	slots_are(1, 0);
	file_close(f);
}

static void stays_dirty(void **state)
{
	struct file *f = begin();

	(void)state;
	assert_int_equal(put(f, 1, "two"), 0);
	assert_true(file_fresh(f));
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_false(file_dirty(f));
	assert_int_equal(file_write(f, &test_key, buf, 5 * PAGE, 0), 0);
	assert_true(file_dirty(f));
	assert_true(file_pending(f));
	assert_int_equal(put(f, 2, "three"), 0);
	assert_true(file_dirty(f));
	assert_true(file_pending(f));
	read_is(f, 5 * PAGE);
	assert_true(promote(f) > 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_false(file_dirty(f));
	ruling_is(3, "three");
	assert_int_equal(put(f, 3, "four"), 0);
	assert_false(file_dirty(f)); /* nothing to flush for the file's sake */
	file_close(f);
	assert_int_equal(sim_open(&f, false), 0);
	read_is(f, 5 * PAGE);
	file_close(f);
}

static void stays_failed(void **state)
{
	struct file *f = begin();

	(void)state;
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_int_equal(file_write(f, &test_key, buf, 100, 0), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	sim.fail_at = sim.calls + 1;
	sim.fail_with = -EIO;
	assert_int_equal(file_fsync(f, &test_key), -EIO);
	sim.fail_at = 0;
	assert_int_equal(put(f, 1, "two"), 0);
	assert_int_equal(file_fsync(f, &test_key), -EIO); /* for the tenure */
	assert_int_equal(file_clear_slot(f, 2), 0);
	assert_int_equal(file_fsync(f, &test_key), -EIO);
	slots_are(0, 2);
	file_close(f);
}

static void wiped(void **state)
{
	struct file *f = begin();

	(void)state;
	assert_int_equal(file_write(f, &test_key, buf, 5 * PAGE, 0), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_false(file_wipe(f));
	assert_int_equal(put(f, 1, "two"), 0);
	assert_int_equal(put(f, 1, "late"), -ESTALE);
	assert_true(bytes_zero(f->root->text, BLOCK_ROOT_TEXT)); /* nothing was opened for it */
	assert_int_equal(file_clear_slot(f, 2), 0);
	slots_are(0, 2);
	read_is(f, 5 * PAGE);
	assert_int_equal(file_write(f, &test_key, buf, 10, 0), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	slots_are(0, 2);
	ruling_is(2, "two");
	/* what a lock cost is lost still, and nothing else is */
	assert_int_equal(file_write(f, &test_key, "lost", 4, 5 * PAGE), 0);
	assert_true(file_wipe(f));
	assert_int_equal(put(f, 2, "three"), 0);
	read_is(f, 5 * PAGE);
	assert_int_equal(file_size(f), 5 * PAGE);
	file_close(f);
}

/* A write that fails changes nothing, and its half has no effect later. */
static void write_fails(void **state)
{
	struct file *f = begin();

	(void)state;
	assert_int_equal(file_write(f, &test_key, buf, 100, 0), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	sim.mtime.tv_sec = 4711;
	sim.fail_at = sim.calls + 1;
	sim.fail_with = -EIO;
	assert_int_equal(put(f, 1, "two"), -EIO);
	sim.fail_at = 0;
	assert_int_equal(sim.mtime.tv_sec, 4711);
	slots_are(1, 0);
	assert_int_equal(file_write(f, &test_key, buf, 200, 0), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	slots_are(1, 0);
	assert_int_equal(put(f, 1, "two"), 0);
	ruling_is(2, "two");
	file_close(f);
}

/* The disk got a slot before this state was there to be told. */
static void behind_its_back(void **state)
{
	struct header_slot s = other_slot("two");
	struct file *f = begin();
	uint8_t *page;

	(void)state;
	assert_int_equal(file_write(f, &test_key, buf, 100, 0), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	page = image_make(&sim.live, 0);
	assert_int_equal(header_reslot(page, 1, &s), 1);
	assert_int_equal(put(f, 1, "again"), -ESTALE); /* learnt */
	assert_int_equal(file_write(f, &test_key, buf, 200, 0), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	slots_are(1, 2);
	assert_int_equal(file_clear_slot(f, 2), 0);
	slots_are(0, 2);
	read_is(f, 200);
	/* but not what is damaged, nor another file's */
	image_make(&sim.live, 0)[HEADER_SLOT_AT(1) + 70] ^= 1;
	assert_int_equal(put(f, 2, "three"), 0);
	ruling_is(3, "three");
	page = image_make(&sim.live, 0);
	page[48] ^= 1;
	s = other_slot("foreign");
	assert_int_equal(header_reslot(page, 3, &s), 1);
	assert_int_equal(put(f, 3, "four"), 0);
	assert_int_equal(file_write(f, &test_key, buf, 300, 0), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	ruling_is(4, "four");
	slots_are(3, 4);
	file_close(f);
}

/* ---- a writer at the same time, on a real backing file ---- */
static struct file *shared;
static atomic_bool stop;

static void *writer(void *arg)
{
	uint8_t *model = arg;

	for (unsigned n = 1; !atomic_load(&stop); n++) {
		uint64_t off = n * 4099u % (7 * PAGE);

		memset(model + off, (int)n, 300);
		if (file_write(shared, &test_key, model + off, 300, off) ||
		    (n % 8 == 0 && file_flush(shared, &test_key, true)) ||
		    (n % 64 == 0 && file_fsync(shared, &test_key)))
			return arg;
	}
	return NULL;
}

static void while_written(void **state)
{
	static uint8_t model[sizeof(buf)], got[sizeof(buf)];
	const struct file_params params = { 0 };
	struct header_slot slot;
	struct header_ident id;
	uint8_t page[PAGE];
	pthread_t t;
	void *failed;
	bool wrong;
	int fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), again;

	(void)state;
	test_suite(1);
	file_io = &file_io_backing;
	assert_true(fd >= 0);
	assert_int_equal(file_new_page(page, &test_ident, &test_slot, &test_key), 0);
	assert_int_equal(file_io->write(fd, page, PAGE, 0), 0);
	assert_int_equal(file_new(&shared, fd, page, &test_key, &params), 0);
	assert_int_equal(file_write(shared, &test_key, model, sizeof(model), 0), 0);
	assert_int_equal(pthread_create(&t, NULL, writer, model), 0);
	for (uint32_t seq = 1; seq <= 300; seq++) {
		assert_int_equal(put(shared, seq, "next"), 0);
		assert_int_equal(file_clear_slot(shared, seq + 1), 0);
	}
	atomic_store(&stop, true);
	assert_int_equal(pthread_join(t, &failed), 0);
	assert_null(failed);
	assert_int_equal(file_fsync(shared, &test_key), 0);
	again = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	file_close(shared);
	assert_int_equal(file_peek(again, &id, &slot), 0);
	assert_int_equal(slot.seq, 301);
	assert_int_equal(file_open(&shared, again, &test_key, &params, &wrong), 0);
	assert_int_equal(file_read(shared, &test_key, got, sizeof(got), 0), sizeof(got));
	assert_memory_equal(got, model, sizeof(got));
	file_close(shared);
}

static int teardown(void **state)
{
	(void)state;
	sim_free();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_turn),
		cmocka_unit_test(refused),
		cmocka_unit_test(stays_dirty),
		cmocka_unit_test(stays_failed),
		cmocka_unit_test(wiped),
		cmocka_unit_test(write_fails),
		cmocka_unit_test(behind_its_back),
		cmocka_unit_test(while_written),
	};

	return cmocka_run_group_tests_name("file slots", tests, NULL, teardown);
}
