/* Several hosts on one file: two states over one simulated disk, compared with a plain file after every operation.
 * What an operation did is durable when it returns; what another host does meanwhile is seen whole or not at all; a
 * host that dies in the middle costs nobody else anything. */
#include "file.h"
#include "file_sim.h"

#define SPAN (130u * PAGE) /* several groups of pages */

static uint8_t buf[SPAN], got[SPAN + PAGE], want[SPAN];
static struct image model;

static struct file *host(void)
{
	struct file_params params = { .shared = true };
	struct file *f = NULL;
	bool wrong = false;

	assert_int_equal(file_open(&f, null_fd(), &test_key, &params, &wrong), 0);
	return f;
}

/* A file that exists: made, and flushed once. */
static void begin(void)
{
	struct file_params params = { .shared = true };
	struct file *f = NULL;
	uint8_t page[PAGE];
	int fd = null_fd();

	sim_reset();
	image_clear(&model);
	test_suite(1);
	assert_int_equal(file_new_page(page, &test_ident, &test_slot, &test_key), 0);
	assert_int_equal(sim_write(fd, page, PAGE, 0), 0);
	assert_int_equal(file_new(&f, fd, page, &test_key, &params), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	file_close(f);
}

static int end(void **state)
{
	(void)state;
	image_clear(&model);
	sim_free();
	return 0;
}

static void same_as_model(struct file *f)
{
	assert_int_equal(file_refresh(f, &test_key), 0);
	assert_int_equal(file_size(f), model.size);
	assert_int_equal(file_read(f, &test_key, got, sizeof(got), 0), model.size);
	memset(want, 0, sizeof(want));
	assert_int_equal(image_get(&model, want, sizeof(want), 0), model.size);
	assert_memory_equal(got, want, model.size);
}

static int do_write(struct file *f, uint64_t off, size_t n)
{
	int rc;

	rnd_fill(buf, n);
	rc = file_write(f, &test_key, buf, n, off);
	if (rc == 0)
		image_put(&model, buf, n, off);
	return rc;
}

static int do_append(struct file *f, size_t n)
{
	int rc;

	rnd_fill(buf, n);
	rc = file_append(f, &test_key, buf, n);
	if (rc == 0)
		image_put(&model, buf, n, model.size);
	return rc;
}

static int do_punch(struct file *f, uint64_t off, uint64_t n)
{
	int rc = file_allocate(f, &test_key, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off, n);
	uint64_t size = model.size;

	if (rc == 0 && off < size)
		image_put(&model, NULL, off + n < size ? n : size - off, off);
	return rc;
}

static int do_truncate(struct file *f, uint64_t size)
{
	int rc = file_truncate(f, &test_key, size);

	if (rc == 0)
		image_resize(&model, size);
	return rc;
}

static size_t some_length(void)
{
	return 1 + rnd(rnd(4) ? 3 * PAGE : 40);
}

static uint64_t some_place(void)
{
	static const uint64_t edge[] = { 0, 1, 1504, LAYOUT_BODY, PAGE - 1 };

	return rnd(SPAN / PAGE - 4) * PAGE + edge[rnd(5)];
}

static int some_op(struct file *f)
{
	switch (rnd(8)) {
	case 0:
		return model.size < SPAN - 4 * PAGE ? do_append(f, some_length()) : 0;
	case 1:
		return do_truncate(f, some_place());
	case 2:
		return do_punch(f, some_place(), 1 + rnd(5 * PAGE));
	case 3:
		return promote(f) < 0 ? -EIO : 0;
	case 4:
		return file_flush(f, &test_key, true);
	default:
		return do_write(f, some_place(), some_length());
	}
}

static void test_alternating(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 60; round++) {
		struct file *f[2];

		rnd_state = 1000 + round;
		begin();
		f[0] = host();
		f[1] = host();
		for (unsigned i = 0; i < 60; i++) {
			assert_int_equal(some_op(f[rnd(2)]), 0);
			same_as_model(f[rnd(2)]);
			assert_false(file_fresh(f[0]));
		}
		same_as_model(f[0]);
		same_as_model(f[1]);
		/* a state that is not current writes nothing when it goes */
		assert_true(promote(f[0]) >= 0);
		assert_true(promote(f[1]) >= 0);
		assert_false(file_pending(f[0]) || file_pending(f[1]));
		file_close(f[0]);
		file_close(f[1]);
		f[0] = host();
		same_as_model(f[0]);
		file_close(f[0]);
	}
}

/* Every operation that returned survives a power cut that nothing else survives. */
static void test_durable_when_it_returns(void **state)
{
	struct image saved = { 0 };

	(void)state;
	for (unsigned round = 0; round < 80; round++) {
		struct file *f[2];

		rnd_state = 5000 + round;
		begin();
		f[0] = host();
		f[1] = host();
		for (unsigned i = 1 + (unsigned)rnd(30); i > 0; i--)
			assert_int_equal(some_op(f[rnd(2)]), 0);
		file_close(f[0]);
		file_close(f[1]);
		image_copy(&saved, &sim.durable);
		sim_boot(&saved);
		f[0] = host();
		same_as_model(f[0]);
		assert_int_equal(do_write(f[0], 5, 3 * PAGE), 0);
		assert_int_equal(do_truncate(f[0], SPAN - 1), 0);
		same_as_model(f[0]);
		file_close(f[0]);
	}
	image_clear(&saved);
}

/* The pages of a write that did not end: each half is old or new, everything else as before. */
static void check_halves(struct file *f, const uint8_t *old, uint64_t off, size_t n)
{
	assert_int_equal(file_refresh(f, &test_key), 0);
	assert_int_equal(file_read(f, &test_key, got, sizeof(got), 0), SPAN);
	for (uint64_t at = 0; at < SPAN; at += PAGE) {
		const uint64_t part[3] = { at, at + LAYOUT_BODY, at + PAGE };

		for (int h = 0; h < 2; h++) {
			size_t len = part[h + 1] - part[h];
			bool is_old = memcmp(got + part[h], old + part[h], len) == 0;

			memcpy(want, old, SPAN);
			memcpy(want + off, buf, n);
			assert_true(is_old || memcmp(got + part[h], want + part[h], len) == 0);
		}
	}
}

/* The backing fails somewhere in a write, and its host dies or goes on. */
static void test_host_fails(void **state)
{
	static uint8_t old[SPAN];

	(void)state;
	for (unsigned round = 0; round < 120; round++) {
		size_t n = PAGE * (1 + round % 5);
		uint64_t off = PAGE * (round % 100) + (round % 3 ? 0 : 70);
		struct file *a, *b;
		int rc;

		rnd_state = 9000 + round;
		begin();
		a = host();
		b = host();
		assert_int_equal(do_write(b, 0, SPAN), 0);
		image_get(&model, old, SPAN, 0);
		if (round % 2)
			same_as_model(a);
		rnd_fill(buf, n);
		sim.calls = 0;
		sim.fail_at = 1 + round % 7;
		sim.fail_with = -EIO;
		rc = file_write(a, &test_key, buf, n, off);
		sim.fail_at = 0;
		if (rc == 0) {
			image_put(&model, buf, n, off);
		} else {
			check_halves(b, old, off, n);
			check_halves(a, old, off, n);
			if (round % 4 == 0) {
				file_close(a);
				a = host();
			}
			image_put(&model, got, SPAN, 0);
		}
		assert_int_equal(do_write(b, off, PAGE), 0);
		assert_int_equal(do_truncate(a, off + 100), 0);
		assert_int_equal(do_append(b, 3 * PAGE), 0);
		same_as_model(a);
		same_as_model(b);
		file_close(a);
		file_close(b);
	}
}

static struct file *reader;
static unsigned reads_old, reads_waiting, reads_wrong;

/* In the middle of another host's section: the page as it was, or a wait for the lock that does not end in time. */
static void *read_once(void *arg)
{
	static uint8_t page[PAGE], before[PAGE];
	uint64_t k = rnd(model.size / PAGE);
	ssize_t n = file_read(reader, &test_key, page, PAGE, k * PAGE);

	(void)arg;
	image_get(&model, before, PAGE, k * PAGE);
	if (n == PAGE && memcmp(page, before, PAGE) == 0)
		reads_old++;
	else if (n == -EIO)
		reads_waiting++;
	else
		reads_wrong++;
	return NULL;
}

/* Another thread: buffers are each thread's own. */
static void read_meanwhile(void)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, read_once, NULL), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

static void test_reader_in_the_middle(void **state)
{
	struct file *a;

	(void)state;
	rnd_state = 77;
	begin();
	a = host();
	reader = host();
	assert_int_equal(do_write(a, 0, SPAN), 0);
	for (unsigned i = 0; i < 150; i++) {
		same_as_model(reader);
		sim.during = read_meanwhile;
		if (rnd(4))
			assert_int_equal(do_write(a, rnd(120) * PAGE, PAGE * (1 + rnd(9))), 0);
		else
			assert_int_equal(do_punch(a, rnd(120) * PAGE, 5 * PAGE), 0);
		sim.during = NULL;
	}
	assert_int_equal(reads_wrong, 0);
	assert_true(reads_old > 100 && reads_waiting > 10);
	same_as_model(reader);
	file_close(a);
	file_close(reader);
}

static void test_lock_not_had(void **state)
{
	int other = null_fd();
	struct file *f;

	(void)state;
	begin();
	f = host();
	assert_int_equal(do_write(f, 0, 5000), 0);
	assert_int_equal(sim_lock(other, F_WRLCK), 0);
	sim.us = 0;
	sim.writes = 0;
	assert_int_equal(file_write(f, &test_key, buf, 10, 0), -EIO);
	assert_in_range(sim.us, FILE_LOCK_MS * 1000, FILE_LOCK_MS * 1000 + 10000);
	assert_int_equal(sim.writes, 0);
	assert_int_equal(file_truncate(f, &test_key, 0), -EIO);
	/* nobody wrote: what is whole needs no lock */
	assert_int_equal(file_read(f, &test_key, got, 5000, 0), 5000);
	assert_memory_equal(got, buf, 5000);
	assert_int_equal(sim_lock(other, F_UNLCK), 0);
	same_as_model(f);
	assert_int_equal(do_write(f, 1, 1), 0);
	file_close(f);
	(void)close(other);
}

/* Those who queued here behind one who waited in vain have waited long enough; whoever comes later waits anew. */
static void test_lock_not_had_by_many(void **state)
{
	int other = null_fd();
	struct file *f;

	(void)state;
	begin();
	f = host();
	assert_int_equal(do_write(f, 0, 5000), 0);
	assert_int_equal(sim_lock(other, F_WRLCK), 0);
	sim.us = 1000;
	assert_int_equal(file_write(f, &test_key, buf, 10, 0), -EIO);
	sim.naps = 0;
	assert_int_equal(file_section_begin(f, &test_key, F_WRLCK, 1000), -EIO);
	assert_int_equal(file_section_begin_keyless(f, 1000), -EIO);
	assert_int_equal(sim.naps, 0);
	assert_int_equal(file_section_begin(f, &test_key, F_WRLCK, sim.us), -EIO);
	assert_true(sim.naps > 100);
	assert_int_equal(sim_lock(other, F_UNLCK), 0);
	assert_int_equal(file_section_begin(f, &test_key, F_WRLCK, 1000), 0); /* it is free: no matter when they came */
	file_section_unlock(f);
	file_close(f);
	(void)close(other);
}

static unsigned asked;

static bool withdrawn_soon(void *arg)
{
	(void)arg;
	return ++asked > 3;
}

/* Keys that must go do not wait for a lock. */
static void test_lock_not_waited_for_when_withdrawn(void **state)
{
	struct file_params params = { .shared = true, .withdrawn = withdrawn_soon };
	struct file *f = NULL;
	int other = null_fd();
	bool wrong = false;

	(void)state;
	begin();
	assert_int_equal(file_open(&f, null_fd(), &test_key, &params, &wrong), 0);
	assert_int_equal(do_write(f, 0, 5000), 0);
	assert_int_equal(asked, 0);
	assert_int_equal(sim_lock(other, F_WRLCK), 0);
	sim.naps = sim.writes = 0;
	assert_int_equal(file_write(f, &test_key, buf, 10, 0), -EIO);
	assert_int_equal(sim.naps, 3);
	assert_int_equal(sim.writes, 0);
	assert_int_equal(sim_lock(other, F_UNLCK), 0);
	assert_int_equal(do_write(f, 0, 10), 0);
	file_close(f);
	(void)close(other);
}

/* Who writes on and on leaves gaps longer than others sleep. */
static void test_leaves_gaps(void **state)
{
	struct file *f;

	(void)state;
	begin();
	f = host();
	sim.naps = 0;
	for (unsigned i = 0; i < 100; i++) {
		sim.us += 1000;
		assert_int_equal(do_write(f, 0, 10), 0);
	}
	assert_in_range(sim.naps, 3, 6);
	file_close(f);
}

/* One host seals the file's key again while the other has it in memory. */
static void test_slot_of_another_host(void **state)
{
	struct header_slot fresh = test_slot, ruling;
	struct header_ident ident;
	struct file *a, *b;

	(void)state;
	begin();
	a = host();
	b = host();
	assert_int_equal(do_write(a, 0, 3 * PAGE), 0);
	fresh.provider = 2;
	assert_int_equal(file_put_slot(b, 1, &fresh), 0);
	assert_int_equal(do_write(a, 100, 3 * PAGE), 0);
	assert_int_equal(file_peek(fd_of(a), &ident, &ruling), 0);
	assert_int_equal(ruling.provider, 2);
	same_as_model(b);
	fresh.provider = 3;
	assert_int_equal(file_put_slot(a, 2, &fresh), 0);
	same_as_model(a);
	same_as_model(b);
	assert_int_equal(do_write(b, 0, 10), 0);
	assert_int_equal(file_peek(fd_of(a), &ident, &ruling), 0);
	assert_int_equal(ruling.provider, 3);
	file_close(a);
	file_close(b);
}

/* A lock of the domain forgets the text; what others wrote meanwhile is no rollback, what is older is. */
static void test_wiped(void **state)
{
	struct image old = { 0 };
	struct file *a, *b;

	(void)state;
	begin();
	a = host();
	b = host();
	assert_int_equal(do_write(a, 0, 6 * PAGE), 0);
	image_copy(&old, &sim.live);
	assert_false(file_wipe(a));
	same_as_model(a);
	assert_false(file_wipe(a));
	assert_int_equal(do_write(b, PAGE, 3 * PAGE), 0);
	same_as_model(a);
	sim_boot(&old);
	assert_int_equal(file_read(a, &test_key, got, PAGE, 0), -EIO);
	assert_int_equal(file_write(a, &test_key, buf, PAGE, 0), -EIO);
	file_close(a);
	file_close(b);
	image_clear(&old);
}

static void test_damage_is_damage(void **state)
{
	struct file *a;

	(void)state;
	begin();
	a = host();
	assert_int_equal(do_write(a, 0, 6 * PAGE), 0);
	image_make(&sim.live, layout_phys(UNIT_DATA, 2))[100] ^= 1;
	assert_int_equal(file_read(a, &test_key, got, PAGE, 2 * PAGE), -EIO);
	assert_int_equal(file_read(a, &test_key, got, PAGE, PAGE), PAGE);
	file_close(a);
}

static void test_exclusive_pays_nothing(void **state)
{
	struct file *f;

	(void)state;
	begin();
	assert_int_equal(sim_open(&f, false), 0);
	sim.locks = sim.naps = sim.reads = sim.syncs = 0;
	assert_int_equal(file_write(f, &test_key, buf, 5 * PAGE, 0), 0);
	assert_int_equal(file_refresh(f, &test_key), 0);
	assert_int_equal(sim.syncs, 0);
	sim.reads = 0;
	assert_int_equal(file_write(f, &test_key, buf, PAGE, 0), 0);
	assert_int_equal(file_read(f, &test_key, got, PAGE, PAGE), PAGE);
	assert_int_equal(sim.reads, 1);
	assert_int_equal(promote(f) < 0, 0);
	assert_int_equal(sim.locks + sim.naps, 0);
	file_close(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_alternating),
		cmocka_unit_test(test_durable_when_it_returns),
		cmocka_unit_test(test_host_fails),
		cmocka_unit_test(test_reader_in_the_middle),
		cmocka_unit_test(test_lock_not_had),
		cmocka_unit_test(test_lock_not_had_by_many),
		cmocka_unit_test(test_lock_not_waited_for_when_withdrawn),
		cmocka_unit_test(test_leaves_gaps),
		cmocka_unit_test(test_slot_of_another_host),
		cmocka_unit_test(test_wiped),
		cmocka_unit_test(test_damage_is_damage),
		cmocka_unit_test(test_exclusive_pays_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, end);
}
