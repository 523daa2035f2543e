/* The Nth system call or allocation fails: for every N of short random histories, with ENOSPC, EIO
 * and no memory. The error must reach somebody, nothing fsynced may be lost, nothing may become
 * unreadable, and work goes on afterwards. */
#include "file.h"
#include "file_snap.h"

static unsigned long faults;

static int op_commit(struct file *f)
{
	uint64_t mark = 0;
	int rc;

	switch (rnd(4)) {
	case 0:
		return file_flush(f, &test_key, true);
	case 1:
		if (!file_pending(f))
			return 0;
		rc = file_promote_begin(f, &test_key, &mark);
		if (rc == 0)
			rc = sim_sync(0);
		return rc == 0 ? file_promote_end(f, &test_key, mark, true) : rc;
	default:
		rc = file_fsync(f, &test_key);
		if (rc == 0)
			acknowledge();
		return rc;
	}
}

static int op_any(struct file *f)
{
	switch (rnd(8)) {
	case 0:
	case 1:
	case 2:
		return op_write(f);
	case 3:
	case 4:
		return op_resize(f);
	case 5:
		return op_punch(f);
	default:
		return op_commit(f);
	}
}

/* Everything is readable in memory, too. */
static void settle_doubt(struct file *f)
{
	assert_true(judge(f, true));
	nsnaps = nsnaps < SNAPS ? nsnaps : SNAPS - 1;
	note();
}

/* An empty file; or one with something in it that was fsynced. */
static struct file *begin(uint64_t seed, bool after_fsync)
{
	struct file *f;

	seed_now = seed;
	rnd_state = seed * 15485863 + 3;
	nwindows = 1 + (unsigned)(seed % 3);
	sim_reset();
	sim.no_fallocate = seed % 5 == 0;
	memset(cur, 0, sizeof(*cur));
	f = sim_new(seed % 7 == 0);
	ever = true;
	nsnaps = 0;
	note();
	if (!after_fsync)
		return f;
	assert_int_equal(op_write(f), 0);
	assert_int_equal(op_write(f), 0);
	assert_int_equal(file_fsync(f, &test_key), 0);
	acknowledge();
	return f;
}

/* One history with call number n failing. Returns false when it has not as many calls. */
static bool history(uint64_t seed, unsigned n, int error)
{
	bool failed = false, hit, after_fsync = seed % 4 != 0;
	struct file *f = begin(seed, after_fsync);
	int rc = 0;

	sim.calls = 0;
	sim.fail_at = n;
	sim.fail_with = error;
	for (unsigned i = 0; i < 9; i++) {
		rc = op_any(f);
		if (rc == 0)
			continue;
		failed = true;
		assert_true(rc == error || rc == -ENOMEM || f->failed);
		settle_doubt(f);
	}
	hit = sim.calls >= sim.fail_at;
	sim.fail_at = 0;
	if (hit && !failed)
		fail_msg("seed %llu: nobody heard of call %u", (unsigned long long)seed, n);
	rc = file_fsync(f, &test_key);
	assert_true(rc == 0 || f->failed);
	if (rc == 0) {
		acknowledge();
		assert_true(promote(f) >= 0);
	}
	file_close(f);
	if (sim_open(&f, false) != 0)
		fail_msg("seed %llu: cannot be opened after call %u failed", (unsigned long long)seed, n);
	assert_true(judge(f, true));
	file_close(f);
	/* a failed flush may have lost anything but what was acknowledged before */
	if (rc != 0 && after_fsync) {
		sim_boot(&sim.durable);
		assert_int_equal(sim_open(&f, false), 0);
		assert_true(judge(f, true));
		file_close(f);
	}
	return hit;
}

static void run(unsigned histories, int error)
{
	snaps_alloc();
	test_suite(1);
	for (unsigned i = 0; i < histories * times_more(); i++)
		for (unsigned n = 1; history(i + 1, n, error); n++)
			faults++;
	print_message("%lu faults\n", faults);
	sim_free();
	snaps_free();
}

static void test_enospc(void **state)
{
	(void)state;
	run(120, -ENOSPC);
}

static void test_eio(void **state)
{
	(void)state;
	run(60, -EIO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_enospc),
		cmocka_unit_test(test_eio),
	};

	return cmocka_run_group_tests_name("file with failing calls", tests, NULL, NULL);
}
