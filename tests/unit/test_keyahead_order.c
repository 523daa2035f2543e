/* Orders and streams without a disk or a clock: directories are noted, files opened, what is fetched is looked at. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "../../src/keyahead_internal.h"
#include "secret.h"

#define DEV 7u
#define MAX 32u

static struct order *o;
static uint64_t now;
static bool fetched[100000];
static unsigned nfetched;

static int setup(void **state)
{
	const struct order_params p = { .entries = 1024, .dirs = 16, .window = MAX, .stale_ms = 1000 };

	(void)state;
	now = 5000;
	return order_new(&o, &p);
}

static int teardown(void **state)
{
	(void)state;
	order_free(o);
	return 0;
}

static struct order_dir at(uint64_t ino)
{
	return (struct order_dir){ DEV, ino };
}

/* Directory `ino` has n files, numbered from first; the subdirectories come after so many of them. */
static void note(uint64_t ino, unsigned first, unsigned n, const uint64_t *subdirs, unsigned nsub, unsigned after)
{
	const struct order_dir d = at(ino);
	char name[32];
	int64_t pos = 0;

	for (unsigned i = 0; i <= n; i++) {
		for (unsigned s = 0; i == after && s < nsub; s++, pos++)
			order_note(o, &d, pos, pos + 1, subdirs[s], ORDER_DIR, "sub");
		if (i == n)
			break;
		(void)snprintf(name, sizeof(name), "f%u", first + i);
		order_note(o, &d, pos, pos + 1, first + i, ORDER_FILE, name);
		pos++;
	}
	order_end(o, &d, pos);
}

/* Everything that is to be fetched now; all keys are new unless had is set. Directories met are visited by this
 * function. */
static unsigned fetch(bool had, void (*visit)(uint64_t ino))
{
	struct order_item item;
	unsigned n = 0;

	while (order_next(o, &item)) {
		if (item.kind == ORDER_DIR) {
			if (visit)
				visit(item.ino);
			continue;
		}
		n++;
		nfetched += !fetched[item.ino];
		fetched[item.ino] = true;
		order_result(o, &item, !had);
	}
	return n;
}

static void begin(void)
{
	memset(fetched, 0, sizeof(fetched));
	nfetched = 0;
}

/* Opens a file; whether its key was there. */
static bool open_file(uint64_t ino)
{
	bool there = fetched[ino];

	(void)order_opened(o, DEV, ino, now);
	(void)fetch(false, NULL);
	if (!there)
		nfetched++;
	fetched[ino] = true;
	return there;
}

static void test_window_grows(void **state)
{
	(void)state;
	begin();
	note(1, 100, 500, NULL, 0, 0);
	/* One open is no order. */
	assert_false(open_file(100));
	assert_int_equal(nfetched, 1);
	assert_false(open_file(101));
	assert_int_equal(nfetched, 2 + ORDER_WINDOW);
	for (unsigned i = 102; i < 600; i++) {
		unsigned most = 2 * (i - 100) > ORDER_WINDOW ? 2 * (i - 100) : ORDER_WINDOW;

		assert_true(open_file(i));
		assert_true(nfetched <= i - 100 + 1 + (most < MAX ? most : MAX));
		assert_true(nfetched >= (i - 100 + 5 < 500 ? i - 100 + 5 : 500));
	}
	assert_int_equal(nfetched, 500);
}

/* Opened again, or seen again by an operation that was parked: no progress. */
static void test_same_file(void **state)
{
	(void)state;
	begin();
	note(1, 100, 500, NULL, 0, 0);
	for (unsigned i = 0; i < 100; i++)
		(void)open_file(103);
	assert_int_equal(nfetched, 1);
	for (unsigned i = 0; i < 100; i++)
		(void)open_file(104);
	assert_int_equal(nfetched, 2 + ORDER_WINDOW);
}

static void test_gaps(void **state)
{
	(void)state;
	begin();
	note(1, 100, 400, NULL, 0, 0);
	for (unsigned i = 100, n = 0; i < 500; i += 1 + n % ORDER_GAP, n++)
		assert_int_equal(open_file(i), n >= 2);
	begin();
	note(1, 100, 400, NULL, 0, 0);
	for (unsigned i = 100; i < 500; i += ORDER_GAP + 1)
		assert_false(open_file(i));
	assert_int_equal(nfetched, 80);
}

/* Whoever jumps about pays little, and less the longer. */
static void test_random(void **state)
{
	unsigned at_ = 12345, opened = 0;
	static bool mine[500];

	(void)state;
	begin();
	memset(mine, 0, sizeof(mine));
	note(1, 100, 500, NULL, 0, 0);
	for (unsigned n = 0; n < 250; n++) {
		at_ = at_ * 1103515245 + 12345;
		unsigned i = (at_ >> 16) % 500;

		opened += !mine[i];
		mine[i] = true;
		(void)open_file(100 + i);
	}
	assert_true(opened > 150);
	assert_true(nfetched <= opened + opened / 4);
	/* Backwards is no order either. */
	begin();
	note(1, 100, 500, NULL, 0, 0);
	for (unsigned i = 599; i >= 100; i--)
		(void)open_file(i);
	assert_int_equal(nfetched, 500);
}

/* Three readers at once, in directories of their own and in one of all. */
static void test_three_readers(void **state)
{
	(void)state;
	begin();
	for (unsigned d = 0; d < 3; d++)
		note(d + 1, 1000 * (d + 1), 200, NULL, 0, 0);
	for (unsigned i = 0; i < 200; i++)
		for (unsigned d = 0; d < 3; d++)
			assert_int_equal(open_file(1000 * (d + 1) + i), i >= 2);
	assert_int_equal(nfetched, 600);
}

static const uint64_t root[] = { 2, 3, 4 };
static unsigned visits;

static void read_ahead(uint64_t ino)
{
	const struct order_dir d = at(ino);

	visits++;
	assert_true(order_visit(o, &d));
	note(ino, (unsigned)ino * 1000, 5, NULL, 0, 0);
	order_visited(o, &d);
}

/* Depth first, as tar goes: into the directory where it stands, and on behind it. */
static void test_tree(void **state)
{
	unsigned misses = 0, order[300], n = 0;

	(void)state;
	begin();
	visits = 0;
	note(1, 100, 20, root, 3, 10);
	for (unsigned i = 0; i < 10; i++)
		order[n++] = 100 + i;
	for (unsigned d = 2; d <= 4; d++)
		for (unsigned i = 0; i < 5; i++)
			order[n++] = d * 1000 + i;
	for (unsigned i = 10; i < 20; i++)
		order[n++] = 100 + i;
	for (unsigned i = 0; i < n; i++) {
		misses += !fetched[order[i]];
		fetched[order[i]] = true;
		(void)order_opened(o, DEV, order[i], now);
		(void)fetch(false, read_ahead);
		/* The reader comes to the directory itself; what was read ahead stays. */
		if (order[i] % 1000 == 0)
			note(order[i] / 1000, order[i], 5, NULL, 0, 0);
	}
	assert_int_equal(misses, 2);
	assert_int_equal(visits, 3);
}

/* A directory that cannot be read, and one that leads back into the tree. */
static void test_bad_trees(void **state)
{
	static const uint64_t up[] = { 1, 9 };
	const struct order_dir self = at(1), nine = at(9);

	(void)state;
	begin();
	note(1, 100, 10, up, 2, 5);
	note(9, 900, 2, (const uint64_t[]){ 1 }, 1, 2);
	for (unsigned i = 0; i < 10; i++)
		(void)open_file(100 + i);
	assert_true(nfetched <= 12);
	assert_false(order_visit(o, &self));
	assert_false(order_visit(o, &nine));
	/* Nobody is at home. */
	begin();
	note(1, 100, 10, root, 3, 5);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(open_file(100 + i), i >= 2);
}

/* While a directory is being read its files may be opened already. */
static void test_growing(void **state)
{
	const struct order_dir d = at(1);
	int64_t pos = 0;

	(void)state;
	begin();
	for (unsigned part = 0; part < 10; part++) {
		for (unsigned i = 0; i < 20; i++, pos++)
			order_note(o, &d, pos, pos + 1, 100 + (uint64_t)pos, ORDER_FILE, "f");
		for (unsigned i = 0; i < 20; i++)
			(void)open_file(100 + part * 20 + i);
	}
	assert_int_equal(nfetched, 200);
	/* A second reader who is elsewhere adds nothing; one who begins anew starts it over. */
	order_note(o, &d, 3, 4, 5000, ORDER_FILE, "g");
	order_note(o, &d, 0, 1, 100, ORDER_FILE, "f");
	order_note(o, &d, 1, 2, 101, ORDER_FILE, "f");
	order_note(o, &d, 200, 201, 5001, ORDER_FILE, "g");
	begin();
	(void)open_file(100);
	(void)open_file(101);
	(void)open_file(5000);
	assert_int_equal(nfetched, 3);
}

/* The oldest go; what remains still serves. */
static void test_rings(void **state)
{
	(void)state;
	begin();
	for (unsigned d = 1; d <= 40; d++)
		note(d, 1000 * d, 100, NULL, 0, 0);
	assert_false(open_file(1000));
	assert_false(open_file(1001));
	assert_false(open_file(1002));
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(open_file(40000 + i), i >= 2);
	begin();
	note(1, 5000, 3000, NULL, 0, 0);
	for (unsigned i = 0; i < 3000; i++)
		(void)open_file(5000 + i);
	assert_int_equal(nfetched, 3000);
}

/* Keys that are there already: few of the files are even looked at, none that lacks its key is passed over. */
static void test_keys_at_hand(void **state)
{
	unsigned tried = 0, misses = 0;

	(void)state;
	begin();
	note(1, 100, 900, NULL, 0, 0);
	for (unsigned i = 0; i < 400; i++) {
		(void)order_opened(o, DEV, 100 + i, now);
		tried += fetch(true, NULL);
	}
	assert_true(tried < 400 / 4);
	begin();
	for (unsigned i = 400; i < 900; i++) {
		misses += !fetched[100 + i];
		(void)order_opened(o, DEV, 100 + i, now);
		(void)fetch(false, NULL);
	}
	/* Only those the cursor had passed while keys were there. */
	assert_true(misses <= MAX + 1);
}

/* What was fetched long ago may be gone: it is fetched again. */
static void test_stale(void **state)
{
	(void)state;
	begin();
	note(1, 100, 100, NULL, 0, 0);
	for (unsigned i = 0; i < 20; i++)
		(void)open_file(100 + i);
	assert_true(fetched[125]);
	now += 1000;
	begin();
	(void)open_file(120);
	assert_true(fetched[121] && fetched[125]);
}

static void test_wipe(void **state)
{
	struct order_item item;

	(void)state;
	begin();
	note(1, 100, 100, NULL, 0, 0);
	(void)order_opened(o, DEV, 100, now);
	(void)order_opened(o, DEV, 101, now);
	order_wipe(o);
	assert_false(order_next(o, &item));
	assert_false(order_opened(o, DEV, 102, now));
	assert_false(order_opened(o, DEV, 103, now));
	note(1, 100, 100, NULL, 0, 0);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(open_file(100 + i), i >= 2);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_window_grows), T(test_same_file), T(test_gaps), T(test_random),
		T(test_three_readers), T(test_tree), T(test_bad_trees), T(test_growing), T(test_rings),
		T(test_keys_at_hand), T(test_stale), T(test_wipe) };

	return secret_init(true) ? 1 : cmocka_run_group_tests_name("keyahead_order", tests, NULL, NULL);
}
