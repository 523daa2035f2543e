/* Power cuts and kills: random histories on a simulated disk, cut at random points with any subset
 * of the page writes since the last flush, size changes and holes in order; then opened again,
 * judged, and cut again. BYOKFS_TEST_ROUNDS multiplies.
 *
 * What must hold for a file that was ever fsynced: it opens, every byte can be read, and every byte
 * is what was acknowledged, or what a later operation wrote, or zero where one made it zero. Bytes
 * of other times and places never appear. */
#include "file.h"
#include "file_snap.h"

static unsigned long states, kills;

static void ok(int rc)
{
	if (rc != 0)
		fail_msg("seed %llu: an operation failed: %d", (unsigned long long)seed_now, rc);
}

static void op_any(struct file *f)
{
	uint64_t what = rnd(5);

	ok(what < 2 ? op_write(f) : what < 4 ? op_resize(f) : op_punch(f));
	if (rnd(4) == 0) {
		ok(file_fsync(f, &test_key));
		acknowledge();
	}
}

/* A rotation passes by: a new slot, or the end of the old one, which waits for a flush as a rotator does. The lowest
 * seq that may rule after a cut. */
static uint32_t low_seq;
static unsigned put_at;

static void op_slot(struct file *f)
{
	struct header_ident ident;
	struct header_slot slot;

	ok(file_peek(0, &ident, &slot));
	if (slot.seq > 1 && sim.syncs > put_at && rnd(2)) {
		ok(file_clear_slot(f, slot.seq));
		low_seq = slot.seq;
		return;
	}
	le32_put(slot.blob, slot.seq + 1);
	slot.len = 4;
	ok(file_put_slot(f, slot.seq, &slot));
	put_at = sim.syncs;
}

static void judge_slot(void)
{
	struct header_ident ident;
	struct header_slot slot;

	ok(file_peek(0, &ident, &slot));
	if (slot.seq < low_seq || (slot.seq > 1 && le32_get(slot.blob) != slot.seq))
		fail_msg("seed %llu: slot %u rules, at least %u was promised", (unsigned long long)seed_now, slot.seq,
		    low_seq);
}

static void op_commit(struct file *f)
{
	uint64_t mark;

	switch (rnd(9)) {
	case 8:
		op_slot(f);
		break;
	case 0:
	case 1:
		ok(file_flush(f, &test_key, rnd(2)));
		break;
	case 2: /* a promotion whose syncfs never ends */
		if (file_pending(f))
			ok(file_promote_begin(f, &test_key, &mark));
		break;
	case 3: /* a promotion, and what others do meanwhile, before and after the disk has flushed */
		if (!file_pending(f))
			break;
		ok(file_promote_begin(f, &test_key, &mark));
		if (rnd(2))
			op_any(f);
		assert_int_equal(sim_sync(0), 0);
		for (uint64_t n = rnd(3); n > 0; n--)
			op_any(f);
		ok(file_promote_end(f, &test_key, mark, true));
		break;
	default:
		ok(file_fsync(f, &test_key));
		acknowledge();
	}
}

/* ---- the cut ---- */
static bool hidden_by(const struct op *skipped, size_t n, const struct op *o)
{
	for (size_t i = 0; i < n; i++) {
		if (skipped[i].kind == OP_SIZE && o->at >= skipped[i].at / PAGE)
			return true;
		if (skipped[i].kind == OP_PUNCH && o->at >= skipped[i].at && o->at < skipped[i].at + skipped[i].n)
			return true;
	}
	return false;
}

/* Some image a cut now may leave: sizes and holes up to some point, page writes as it pleases, but
 * none into blocks that a lost size change or hole would have set free. */
static void cut(struct image *m, const struct image *durable, const struct op *log, size_t n)
{
	static const unsigned chance[] = { 0, 8, 50, 92, 100 };
	unsigned keep = chance[rnd(5)];
	size_t meta = n ? rnd(n + 1) : 0, nskipped = 0;
	struct op *skipped = calloc(n + 1, sizeof(*skipped));

	assert_non_null(skipped);
	if (rnd(3) == 0)
		meta = n;
	image_copy(m, durable);
	for (size_t i = 0; i < n; i++) {
		if (log[i].kind != OP_PAGE && i >= meta)
			skipped[nskipped++] = log[i];
		else if (log[i].kind != OP_PAGE || (rnd(100) < keep && !hidden_by(skipped, nskipped, &log[i])))
			op_apply(m, &log[i]);
	}
	free(skipped);
}

/* New bytes must be zero, whatever the crash left behind the end. */
static void stretch(struct file *f)
{
	uint64_t old = cur->size, size = some_offset();
	uint8_t page[PAGE];

	if (size <= old)
		return;
	ok(file_truncate(f, &test_key, size));
	snap_resize(cur, size);
	for (unsigned i = 0; i < PAGES; i++) {
		ssize_t n = file_read(f, &test_key, page, PAGE, page_number(i) * PAGE);

		assert_true(n >= 0);
		for (ssize_t b = 0; b < n; b++)
			if (page_number(i) * PAGE + (uint64_t)b >= old && page[b] != 0)
				fail_msg("seed %llu: byte %zd of page %llu shows what was beyond the end",
				    (unsigned long long)seed_now, b, (unsigned long long)page_number(i));
	}
	note();
}

/* After a crash: what is read now is the new truth, for a disk that kept everything. */
static struct file *reopen(bool strict, bool killed)
{
	struct file *f = NULL;
	int rc = sim_open(&f, strict);

	if (rc != 0) {
		if (ever)
			fail_msg("seed %llu: cannot be opened: %d", (unsigned long long)seed_now, rc);
		return NULL;
	}
	if (ever)
		judge_slot();
	/* one never fsynced may be readable by chance and broken elsewhere: nothing follows from it */
	if (!judge(f, false) || !ever) {
		file_close(f);
		return NULL;
	}
	if (!killed)
		acknowledge();
	else if (nsnaps < SNAPS)
		note();
	return f;
}

static struct file *crash(struct file *f, bool strict)
{
	static struct image durable, m;
	struct op *log = calloc(sim.nlog + 1, sizeof(*log));
	size_t n = sim.nlog;
	unsigned tries = 1 + (unsigned)rnd(4), kept = nsnaps;
	bool was = ever;

	assert_non_null(log);
	file_close(f);
	memcpy(log, sim.log, n * sizeof(*log));
	sim.nlog = 0; /* the copies are ours now */
	image_copy(&durable, &sim.durable);
	struct snap *saved = malloc(SNAPS * sizeof(*saved));

	assert_non_null(saved);
	memcpy(saved, snaps, kept * sizeof(*saved));
	f = NULL;
	while (tries--) {
		if (f)
			file_close(f);
		memcpy(snaps, saved, kept * sizeof(*saved));
		nsnaps = kept;
		ever = was;
		cut(&m, &durable, log, n);
		sim_boot(&m);
		states++;
		f = reopen(strict, false);
		if (f && rnd(3) == 0)
			stretch(f);
	}
	for (size_t i = 0; i < n; i++)
		free(log[i].data);
	free(log);
	free(saved);
	image_clear(&durable);
	image_clear(&m);
	return f;
}

static void history(uint64_t seed, uint8_t suite)
{
	bool strict = seed % 6 == 0;
	struct file *f;

	seed_now = seed;
	rnd_state = seed * 104729 + 7;
	nwindows = seed % 3 == 0 ? 4 : seed % 3 == 1 ? 2 : 1;
	sim_reset();
	sim.no_fallocate = seed % 11 == 0;
	test_suite(suite);
	memset(cur, 0, sizeof(*cur));
	ever = false;
	f = sim_new(strict);
	nsnaps = 0;
	low_seq = 1;
	put_at = sim.syncs;
	note();
	for (unsigned i = 0; f && i < 60; i++) {
		unsigned what = (unsigned)rnd(20);

		if (nsnaps > 11) {
			ok(file_fsync(f, &test_key));
			acknowledge();
		} else if (what < 8) {
			ok(op_write(f));
		} else if (what < 11) {
			ok(op_resize(f));
		} else if (what < 13) {
			ok(op_punch(f));
		} else if (what < 18) {
			op_commit(f);
		} else if (what == 18 && ever) {
			kills++;
			file_close(f);
			f = reopen(strict, true);
		} else if (ever || rnd(8) == 0) {
			f = crash(f, strict);
		}
	}
	file_close(f);
}

static void run(uint8_t suite, unsigned histories)
{
	const char *only = getenv("BYOKFS_TEST_SEED");

	snaps_alloc();
	if (only)
		history(strtoull(only, NULL, 10), suite);
	for (unsigned i = 0; !only && i < histories * times_more(); i++)
		history(1 + i + 10000000u * suite, suite);
	print_message("%lu power cuts, %lu kills\n", states, kills);
	sim_free();
	snaps_free();
}

static void test_cuts(void **state)
{
	(void)state;
	run(1, 700);
}

static void test_cuts_xchacha(void **state)
{
	(void)state;
	run(2, 60);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_cuts),
		cmocka_unit_test(test_cuts_xchacha),
	};

	return cmocka_run_group_tests_name("file across crashes", tests, NULL, NULL);
}
