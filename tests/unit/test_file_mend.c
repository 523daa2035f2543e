/* file_verify() and file_mend() on the simulated disk: every kind of unit damaged in every way. A check names the unit
 * and the bytes; a repair says beforehand what it will lose, loses that and nothing else, and leaves nothing for a
 * second check. */
#include "file.h"
#include "file_sim.h"

#define PAGES    120u  /* root, group 0, group 1 */
#define FAR_PAGE 6364u /* the first below an L1 page */
#define SIZE     (PAGES * PAGE)
#define TAIL     1234u /* bytes of the last page: the size is no multiple */
#define END      (FAR_PAGE * (uint64_t)PAGE + TAIL)
#define FAULTS   1000u

static uint8_t *now; /* what the file holds: PAGES pages, then page FAR_PAGE */
static struct image clean;

struct faults {
	unsigned n;
	struct file_fault f[FAULTS];
};
static struct faults found, planned, done;

static void note(void *arg, const struct file_fault *fault)
{
	struct faults *to = arg;

	assert_true(to->n < FAULTS);
	assert_non_null(fault->reason);
	assert_true(fault->len > 0 && fault->off + fault->len <= END);
	to->f[to->n++] = *fault;
}

static void heard(void *arg, enum unit_type type, uint64_t index, const char *reason)
{
	(void)arg;
	(void)type;
	(void)index;
	(void)reason;
}

static int setup(void **state)
{
	struct file *f;

	(void)state;
	now = malloc(SIZE + PAGE);
	assert_non_null(now);
	sim_reset();
	test_suite(1);
	rnd_fill(now, SIZE + PAGE);
	f = sim_new(false);
	assert_int_equal(file_write(f, &test_key, now, SIZE, 0), 0);
	assert_int_equal(file_write(f, &test_key, now + SIZE, TAIL, FAR_PAGE * (uint64_t)PAGE), 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_true(promote(f) >= 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	file_close(f);
	image_copy(&clean, &sim.live);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	free(now);
	image_clear(&clean);
	sim_free();
	return 0;
}

static int open_ro(struct file **f)
{
	struct file_params params = { .readonly = true, .damaged = heard };
	bool wrong;
	int fd = null_fd(), rc = file_open(f, fd, &test_key, &params, &wrong);

	if (rc != 0)
		(void)close(fd);
	return rc;
}

/* Bytes authenticated, by pages; what failed is in found. */
static uint64_t verify(uint64_t from, uint64_t to)
{
	struct file *f;
	uint64_t bytes = 0;

	found.n = 0;
	assert_int_equal(open_ro(&f), 0);
	assert_int_equal(file_verify(f, &test_key, from, to, note, &found, &bytes), 0);
	file_close(f);
	assert_int_equal(bytes % PAGE, 0);
	return bytes / PAGE;
}

static bool anything(void *arg, enum unit_type type, uint64_t index)
{
	(void)arg;
	(void)type;
	(void)index;
	return true;
}

/* The unit in physical page 50. */
static bool only_page_50(void *arg, enum unit_type type, uint64_t index)
{
	(void)arg;
	return layout_phys(type, index) == 50;
}

static int mend_if(bool dry, struct faults *to, bool (*may)(void *arg, enum unit_type, uint64_t index))
{
	struct file_params params = { .readonly = dry, .damaged = heard };
	int fd = null_fd(), rc;

	to->n = 0;
	rc = file_mend(fd, &test_key, &params, &(struct file_mender){ note, may, to });
	(void)close(fd);
	return rc;
}

static int mend(bool dry, struct faults *to)
{
	return mend_if(dry, to, anything);
}

/* Bytes that may be something else than what was written: zeros then. */
static void same_but(const struct faults *lost)
{
	uint8_t *want = calloc(1, SIZE + PAGE), *got = malloc(SIZE + PAGE);
	uint64_t far = FAR_PAGE * (uint64_t)PAGE;
	struct file *f;

	memcpy(want, now, SIZE + TAIL);
	for (unsigned i = 0; i < lost->n; i++)
		for (uint64_t at = lost->f[i].off; at < lost->f[i].off + lost->f[i].len; at++)
			if (at < SIZE || at >= far)
				want[at < SIZE ? at : at - far + SIZE] = 0;
	assert_int_equal(open_ro(&f), 0);
	assert_int_equal(file_size(f), END);
	assert_int_equal(file_read(f, &test_key, got, SIZE, 0), SIZE);
	assert_int_equal(file_read(f, &test_key, got + SIZE, PAGE, far), TAIL);
	assert_memory_equal(got, want, SIZE + TAIL);
	file_close(f);
	free(want);
	free(got);
}

/* The repair keeps its word, and a second check finds nothing. */
static void mend_and_look(void)
{
	time_t mtime = sim.mtime.tv_sec;
	int met = mend(true, &planned);

	assert_in_range(met, 0, 1);
	assert_int_equal(mend(false, &done), met);
	assert_true(met == 1 || planned.n == 0);
	assert_int_equal(planned.n, done.n);
	assert_memory_equal(planned.f, done.f, planned.n * sizeof(planned.f[0]));
	assert_int_equal(sim.nlog, 0); /* all of it durable */
	(void)verify(0, END);
	assert_int_equal(found.n, 0);
	assert_int_equal(sim.live.size, layout_hint(END, false));
	same_but(&done);
	assert_int_equal(mend(false, &done), 0);
	assert_int_equal(done.n, 0);
	assert_int_equal(sim.mtime.tv_sec, mtime);
}

static const uint64_t units[] = { 1, 4, 5, 6, 50, 111, 112, 113, 122, 6425, 6426, 6427 };
#define UNITS (sizeof(units) / sizeof(units[0]))

static void damage(unsigned how, uint64_t phys)
{
	uint8_t *page = image_make(&sim.live, phys);

	switch (how) {
	case 0:
		page[2000] ^= 1;
		break;
	case 1:
		memset(page, 0, PAGE);
		break;
	case 2:
		memcpy(page, image_page(&sim.live, phys == 1 ? 3 : phys - 1), PAGE);
		break;
	default:
		image_drop(&sim.live, phys, phys + 1);
	}
}

/* The bytes a unit stands for, within the size. */
static void range_of(uint64_t phys, enum unit_type *type, uint64_t *off, uint64_t *len)
{
	uint64_t index = 0, pages;

	assert_true(layout_unit_at(phys, type, &index));
	pages = *type == UNIT_DATA ? 1 : *type == UNIT_GROUP ? 106 : 106 * 672;
	*off = (*type == UNIT_DATA ? index : *type == UNIT_L1 ? FAR_PAGE : 4 + 106 * index) * PAGE;
	*len = *off + pages * PAGE < END ? pages * PAGE : END - *off;
}

static void a_sound_file(void **state)
{
	(void)state;
	sim_boot(&clean);
	/* page 0, the pages, two groups, the far page's L1 and group */
	assert_int_equal(verify(0, END), 1 + PAGES + 1 + 4);
	assert_int_equal(found.n, 0);
	assert_int_equal(verify(0, 4 * PAGE), 1 + 4);
	assert_int_equal(verify(4 * PAGE, SIZE), PAGES - 4 + 2);
	assert_int_equal(verify(SIZE, END), 3 + 1 /* group 1 again */);
	assert_int_equal(mend(false, &done), 0);
	assert_int_equal(done.n, 0);
	same_but(&done);
}

static void every_unit_in_every_way(void **state)
{
	(void)state;
	for (size_t u = 0; u < UNITS; u++) {
		for (unsigned how = 0; how < 4; how++) {
			enum unit_type type = UNIT_ROOT;
			uint64_t off, len;

			sim_boot(&clean);
			damage(how, units[u]);
			(void)verify(0, END);
			range_of(units[u], &type, &off, &len);
			assert_int_equal(found.n, 1);
			assert_int_equal(found.f[0].kind, FILE_UNREADABLE);
			assert_int_equal(found.f[0].type, type);
			assert_int_equal(found.f[0].off, off);
			assert_int_equal(found.f[0].len, len);
			mend_and_look();
			assert_true(planned.n > 0 || type == UNIT_L1 || units[u] == 6426); /* whose page has no end */
			if (type == UNIT_L1) /* all of what it recorded is there: nothing but doubt about the rest */
				assert_true(planned.n == 0 || planned.f[0].kind == FILE_DOUBTED);
		}
	}
}

static void a_group_page_costs_32_bytes_a_page(void **state)
{
	(void)state;
	sim_boot(&clean);
	damage(0, 5);
	damage(0, 7); /* and data page 5 */
	mend_and_look();
	assert_int_equal(planned.n, 106);
	for (unsigned i = 0; i < 106; i++) {
		assert_int_equal(planned.f[i].kind, FILE_LOST);
		assert_int_equal(planned.f[i].off, (4 + i) * PAGE + (i == 1 ? 0 : 4064));
		assert_int_equal(planned.f[i].len, i == 1 ? PAGE : 32);
	}
}

static void a_lost_root(void **state)
{
	unsigned lost = 0, doubted = 0;
	struct file *f;

	(void)state;
	sim_boot(&clean);
	image_make(&sim.live, 0)[3000] ^= 1;
	assert_int_equal(open_ro(&f), -EIO);
	mend_and_look();
	for (unsigned i = 0; i < planned.n; i++) {
		lost += planned.f[i].kind == FILE_LOST;
		doubted += planned.f[i].kind == FILE_DOUBTED;
	}
	assert_int_equal(lost, 4);      /* the ends of pages 0 to 3 */
	assert_int_equal(doubted, 1);   /* groups 2 to 59 */
	assert_int_equal(planned.f[4].off, (4 + 2 * 106) * PAGE);
}

/* The root and the newest state: the one before rules, and the hint knows the size. */
static void a_lost_state(void **state)
{
	const uint8_t *page;

	(void)state;
	sim_boot(&clean);
	page = image_page(&sim.live, 0);
	memset(image_make(&sim.live, 0) + (le64_get(page + 1536) > le64_get(page + 2048) ? 1536 : 2048), 0, 512);
	mend_and_look();
}

static void beyond_repair(void **state)
{
	(void)state;
	sim_boot(&clean);
	memset(image_make(&sim.live, 0) + 1536, 0, 1024);
	assert_int_equal(mend(true, &planned), -EIO);
	sim_boot(&clean);
	image_make(&sim.live, 0)[50] ^= 1;
	assert_int_equal(mend(true, &planned), -EIO);
}

static void a_torn_tail(void **state)
{
	static const uint64_t ends[] = { 6427, 6426, 6425, 113, 112, 60, 5, 1 };

	(void)state;
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		sim_boot(&clean);
		image_resize(&sim.live, ends[i] * PAGE);
		(void)verify(0, END);
		assert_true(found.n > 0);
		mend_and_look();
		sim_boot(&clean);
		image_resize(&sim.live, ends[i] * PAGE + 77);
		mend_and_look();
	}
	sim_boot(&clean); /* longer, by a copy of a page */
	memcpy(image_make(&sim.live, 6430), image_page(&sim.live, 6427), PAGE);
	sim.live.size = 6431 * PAGE;
	(void)verify(0, END);
	assert_int_equal(found.n, 0);
	mend_and_look();
	assert_int_equal(planned.n, 0);
}

static void an_old_page_put_back(void **state)
{
	struct file *f;

	(void)state;
	sim_boot(&clean);
	assert_int_equal(sim_open(&f, false), 0);
	rnd_fill(now, PAGE);
	assert_int_equal(file_write(f, &test_key, now, PAGE, 0), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_true(promote(f) >= 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	file_close(f);
	memcpy(image_make(&sim.live, 1), image_page(&clean, 1), PAGE);
	(void)verify(0, END);
	assert_int_equal(found.n, 1);
	assert_string_equal(found.f[0].reason, "it is older than its record");
	mend_and_look();
}

/* Whatever fails, and wherever the power is cut: the same repair succeeds afterwards. */
static void interrupted_anywhere(void **state)
{
	struct image cut = { .size = 0 };
	unsigned calls = 0;

	(void)state;
	for (unsigned at = 0; at <= calls; at++) {
		int rc;

		sim_boot(&clean);
		damage(0, 5);
		damage(0, 6425);
		damage(1, 50);
		sim.calls = 0;
		sim.fail_at = at;
		sim.fail_with = -EIO;
		rc = mend(false, &done);
		if (at == 0)
			calls = sim.calls;
		sim.fail_at = 0;
		assert_true(at == 0 ? rc == 1 : rc == 1 || rc == -EIO || rc == -ENOMEM);
		image_copy(&cut, at % 2 ? &sim.live : &sim.durable);
		sim_boot(&cut);
		assert_true(mend(false, &done) >= 0);
		(void)verify(0, END);
		assert_int_equal(found.n, 0);
	}
	assert_true(calls > 10);
	image_clear(&cut);
}

/* A file with holes, overwritten in places over some tenures; every page of it may be hit. */
static void with_holes(void)
{
	struct file *f;

	memset(now, 0, SIZE);
	sim_reset();
	f = sim_new(false);
	for (unsigned i = 0; i < 12; i++) {
		uint64_t off = rnd(SIZE - 9000), n = 1 + rnd(9000);

		rnd_fill(now + off, n);
		assert_int_equal(file_write(f, &test_key, now + off, n, off), 0);
		if (i == 5) {
			assert_int_equal(file_write(f, &test_key, now + SIZE, TAIL, FAR_PAGE * (uint64_t)PAGE), 0);
			assert_int_equal(file_fsync(f, &test_key), 0);
			assert_true(promote(f) >= 0);
			file_close(f);
			assert_int_equal(sim_open(&f, false), 0);
		}
	}
	assert_int_equal(file_flush(f, &test_key, true), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_true(promote(f) >= 0);
	assert_int_equal(file_flush(f, &test_key, true), 0);
	file_close(f);
	image_copy(&clean, &sim.live);
}

/* A write that died half way, in a group that has no page yet: the end is put right, the time stays. */
static void what_died_beyond_the_end(void **state)
{
	struct file *f;
	struct image cut = { .size = 0 };
	uint8_t got[PAGE];
	time_t mtime;

	(void)state;
	sim_reset();
	f = sim_new(false);
	assert_int_equal(file_write(f, &test_key, now, 2 * PAGE, 0), 0);
	assert_int_equal(file_truncate(f, &test_key, 5 * PAGE + 100), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	assert_int_equal(file_write(f, &test_key, now, PAGE, 5 * PAGE + 300), 0);
	image_copy(&cut, &sim.live);
	file_close(f);
	sim_boot(&cut);
	mtime = sim.mtime.tv_sec;
	sim.allocs = 0;
	assert_int_equal(mend(false, &done), 0);
	assert_true(sim.allocs > 0);
	assert_int_equal(done.n, 0);
	assert_int_equal(sim.mtime.tv_sec, mtime);
	assert_int_equal(open_ro(&f), 0);
	assert_int_equal(file_size(f), 5 * PAGE + 100);
	assert_int_equal(file_read(f, &test_key, got, PAGE, PAGE), PAGE);
	assert_memory_equal(got, now + PAGE, PAGE);
	file_close(f);
	image_clear(&cut);
}

/* A read that fails only while a repair writes is no damage: what was not planned is never replaced. */
static void only_what_was_planned(void **state)
{
	struct image cut = { .size = 0 };
	unsigned refused = 0;
	int rc = -EIO;

	(void)state;
	for (unsigned at = 1; rc != 1; at++) {
		sim_boot(&clean);
		damage(0, 50);
		assert_int_equal(mend(true, &planned), 1);
		sim.reads = 0;
		sim.fail_read = at;
		rc = mend_if(false, &done, only_page_50);
		sim.fail_read = 0;
		assert_true(rc == 1 || rc == -EIO);
		refused += rc != 1;
		image_copy(&cut, &sim.live);
		sim_boot(&cut);
		image_make(&sim.live, 50)[100] ^= 1; /* zeros by now, or not yet, or but for their end */
		assert_int_equal(mend(false, &done), 1);
		same_but(&planned);
	}
	assert_true(refused >= 5);
	image_clear(&cut);
}

static void many_at_once(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 300; round++) {
		if (round % 30 == 0)
			with_holes();
		sim_boot(&clean);
		for (uint64_t i = 0, n = 1 + rnd(5); i < n; i++) {
			uint64_t at = rnd(8) == 0 ? units[rnd(UNITS)] : 1 + rnd(122);

			damage((unsigned)rnd(4), at);
		}
		if (rnd(6) == 0)
			image_make(&sim.live, 0)[2560 + rnd(1500)] ^= 4;
		if (rnd(6) == 0)
			image_resize(&sim.live, sim.live.size - rnd(6000 * PAGE));
		mend_and_look();
	}
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(a_sound_file),
		T(every_unit_in_every_way),
		T(a_group_page_costs_32_bytes_a_page),
		T(a_lost_root),
		T(a_lost_state),
		T(beyond_repair),
		T(a_torn_tail),
		T(an_old_page_put_back),
		T(interrupted_anywhere),
		T(what_died_beyond_the_end),
		T(only_what_was_planned),
		T(many_at_once),
	};

	file_io = &sim_io;
	return cmocka_run_group_tests_name("file_mend", tests, NULL, NULL);
}
