/* Many inodes: what one costs, that its memory comes back when the kernel forgets, and that nobody is lost while the
 * table grows and shrinks. One object stands for all; only the number it is said to have differs. */
#include <stdlib.h>
#include <unistd.h>

#include "inode_fixture.h"

#define MANY  200000u
#define BOUND 300u /* bytes an inode: docs/byokfs.8 */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true /* its shadow counts, too */
#else
#define SANITIZED false
#endif

static struct stat object;
static ino_t first;
static char entry[NAME_ENTRY_MAX + 1];

static void begin(void)
{
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	assert_int_equal(dir_stat(&bk.root, "a", 1, &object, entry), 0);
	first = object.st_ino + 1000000;
}

static uint64_t appear(uint64_t n)
{
	struct inode *i;
	uint64_t nodeid;

	object.st_ino = first + n;
	assert_int_equal(inode_look(table, bk.fd, entry, &object, (struct inode_where){ 0 }, &i), 0);
	nodeid = i->nodeid;
	inode_put(table, i);
	return nodeid;
}

static bool known(uint64_t n)
{
	struct stat st = { .st_dev = object.st_dev, .st_ino = first + n };
	struct inode *i = inode_find(table, &st);

	if (i)
		inode_put(table, i);
	return i != NULL;
}

static size_t resident(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long all, rss;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu %lu", &all, &rss), 2);
	(void)fclose(f);
	return rss * (size_t)sysconf(_SC_PAGESIZE);
}

static void memory_of_many(void **state)
{
	size_t before, full, after;

	(void)state;
	begin();
	before = resident();
	for (uint64_t n = 0; n < MANY; n++)
		assert_int_equal(appear(n), n + 2);
	full = resident();
	assert_int_equal(inode_count(table), MANY + 1);
	if (!SANITIZED)
		assert_true(full - before <= (size_t)MANY * BOUND);
	for (uint64_t n = 0; n < MANY; n++)
		inode_forget(table, n + 2, 1);
	after = resident();
	assert_int_equal(inode_count(table), 1);
	assert_true(inode_top(table) < MANY / 50);
	if (!SANITIZED)
		assert_true(after < before + (full - before) / 20);
	/* It all can be had again; not one nodeid means two things. */
	for (uint64_t n = 0; n < MANY / 10; n++)
		(void)appear(n);
	for (uint64_t n = 0; n < MANY / 10; n++)
		assert_true(known(n));
	assert_false(known(MANY / 10));
}

static void growing_and_shrinking(void **state)
{
	CLEANUP_FREE uint64_t *nodeid = calloc(MANY, sizeof(*nodeid));
	uint64_t x = 88172645463325252ull, live = 0;

	(void)state;
	assert_non_null(nodeid);
	begin();
	/* More and more of them, then fewer and fewer, in no order. */
	for (unsigned step = 0; step < 6 * MANY / 4; step++) {
		uint64_t n;
		bool more = step < 3 * MANY / 4;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		n = x % (MANY / 4);
		if (more == !nodeid[n]) {
			if (more)
				nodeid[n] = appear(n);
			else
				inode_forget(table, nodeid[n], 1);
			nodeid[n] = more ? nodeid[n] : 0;
			live += more ? 1u : -1ull;
		}
		if (step % 512 == 0)
			assert_int_equal(known(n), nodeid[n] != 0);
	}
	assert_int_equal(inode_count(table), live + 1);
	for (uint64_t n = 0; n < MANY / 4; n++)
		assert_int_equal(known(n), nodeid[n] != 0);
}

static bool count(void *arg, struct inode *i)
{
	assert_true(i->nodeid > 0);
	++*(uint64_t *)arg;
	return true;
}

static void sparse_walk(void **state)
{
	uint64_t n = 0, last = 0;

	(void)state;
	begin();
	for (uint64_t i = 0; i < MANY / 10; i++)
		last = appear(i);
	for (uint64_t id = 2; id < last; id++)
		inode_forget(table, id, 1);
	inode_each(table, count, &n);
	assert_int_equal(n, 2);
	assert_int_equal(inode_top(table), last);
	inode_forget(table, last, 1);
	inode_forget(table, last - 1, 1); /* of a chunk without memory: unknown, and no harm */
	assert_null(inode_get(table, last));
	assert_int_equal(inode_where(table, last).domain, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(memory_of_many),
		TEST(growing_and_shrinking),
		TEST(sparse_walk),
	};

	return cmocka_run_group_tests_name("inode_scale", tests, backing_main_setup, NULL);
}
