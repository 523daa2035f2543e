/* Directories in the inode table: few descriptors, ids that must not repeat; walks over the table; many threads at
 * once. */
#include "inode_fixture.h"

static int count_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void few_descriptors(void **state)
{
	enum { DIRS = 100 };
	struct inode *dirs[DIRS];
	struct inode_pin *pins[DIRS];
	int before, extra;
	struct dir d;

	(void)state;
	for (int i = 0; i < DIRS; i++) {
		char name[24];

		(void)snprintf(name, sizeof(name), "d%d", i);
		assert_int_equal(backing_mkdir(&bk.root, name), 0);
		dirs[i] = look(&bk.root, name);
	}
	before = count_fds();
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < DIRS; i++) {
			assert_int_equal(inode_dir(table, dirs[i], bk.names, &d, &pins[i]), 0);
			assert_int_equal(backing_exists(&d, "nothing"), -ENOENT);
			assert_true(dirs[i]->have_dirid);
			assert_memory_equal(dirs[i]->dirid, d.id, 16);
			inode_dir_put(table, pins[i]);
		}
	extra = count_fds() - before;
	assert_in_range(extra, 1, 8);
	/* The last eight are at hand; a hit opens nothing. */
	assert_int_equal(inode_dir(table, dirs[DIRS - 1], bk.names, &d, &pins[0]), 0);
	assert_int_equal(count_fds() - before, extra);
	inode_dir_put(table, pins[0]);
	/* Pinned ones stay open, all of them, and go when they are put back. */
	for (int i = 0; i < DIRS; i++)
		assert_int_equal(inode_dir(table, dirs[i], bk.names, &d, &pins[i]), 0);
	assert_int_equal(count_fds() - before, DIRS);
	for (int i = 0; i < DIRS; i++)
		inode_dir_put(table, pins[i]);
	assert_in_range(count_fds() - before, 1, 8);
	/* A pin is a ref. */
	assert_int_equal(inode_dir(table, dirs[5], bk.names, &d, &pins[5]), 0);
	uint64_t nodeid = dirs[5]->nodeid;
	inode_put(table, dirs[5]);
	inode_forget(table, nodeid, 1);
	assert_int_equal(backing_exists(&d, "nothing"), -ENOENT);
	inode_dir_put(table, pins[5]);
	assert_null(inode_get(table, nodeid));
}

static void wrong_directories(void **state)
{
	struct inode *file, *a, *b, *c, *e;
	struct inode_pin *pin;
	char text[64];
	struct dir d, raw;
	ssize_t n;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "file"), 0);
	file = look(&bk.root, "file");
	assert_int_equal(inode_dir(table, file, bk.names, &d, &pin), -ENOTDIR);
	assert_int_equal(backing_mkdir(&bk.root, "a"), 0);
	assert_int_equal(backing_mkdir(&bk.root, "b"), 0);
	assert_int_equal(backing_mkdir(&bk.root, "c"), 0);
	assert_int_equal(backing_mkdir(&bk.root, "e"), 0);
	raw = backing_sub(&bk.root, "a");
	n = readlinkat(raw.fd, NAME_DIR_FILE, text, sizeof(text) - 1);
	assert_int_equal(n, NAME_DIR_ID_TEXT);
	text[n] = 0;
	(void)close(raw.fd);
	/* b is a copy of a; c has no id; e belongs to another domain. */
	raw = backing_sub(&bk.root, "b");
	assert_int_equal(unlinkat(raw.fd, NAME_DIR_FILE, 0), 0);
	assert_int_equal(symlinkat(text, raw.fd, NAME_DIR_FILE), 0);
	(void)close(raw.fd);
	raw = backing_sub(&bk.root, "c");
	assert_int_equal(unlinkat(raw.fd, NAME_DIR_FILE, 0), 0);
	(void)close(raw.fd);
	raw = backing_sub(&bk.root, "e");
	name_dir_make(bk.names, 1, raw.id, text);
	assert_int_equal(unlinkat(raw.fd, NAME_DIR_FILE, 0), 0);
	assert_int_equal(symlinkat(text, raw.fd, NAME_DIR_FILE), 0);
	(void)close(raw.fd);
	a = look(&bk.root, "a");
	b = look(&bk.root, "b");
	c = look(&bk.root, "c");
	e = look(&bk.root, "e");
	assert_int_equal(inode_dir(table, a, bk.names, &d, &pin), 0);
	inode_dir_put(table, pin);
	assert_int_equal(inode_dir(table, b, bk.names, &d, &pin), -EIO);
	assert_int_equal(inode_dir(table, b, bk.names, &d, &pin), -EIO);
	assert_false(b->have_dirid);
	assert_int_equal(inode_dir(table, c, bk.names, &d, &pin), -EIO);
	assert_int_equal(inode_dir(table, e, bk.names, &d, &pin), -EIO);
	/* The first goes on working. Once it is gone the copy may take its place. */
	assert_int_equal(inode_dir(table, a, bk.names, &d, &pin), 0);
	inode_dir_put(table, pin);
	inode_forget(table, a->nodeid, 1);
	inode_put(table, a);
	assert_int_equal(inode_dir(table, b, bk.names, &d, &pin), 0);
	inode_dir_put(table, pin);
}

/* ---- walking */

struct walk {
	uint64_t first, n, stop_after;
	uint8_t seen[4096];
};

static bool visit(void *arg, struct inode *i)
{
	struct walk *w = arg;

	if (!w->n++)
		w->first = i->nodeid;
	assert_true(i->nodeid < sizeof(w->seen));
	assert_int_equal(w->seen[i->nodeid]++, 0);
	return w->n != w->stop_after;
}

static void walking(void **state)
{
	_Atomic uint64_t shared = 0;
	struct walk w = { 0 };
	struct inode *last = NULL;
	uint64_t gone;

	(void)state;
	inode_share_top(table, &shared);
	assert_int_equal(shared, 1);
	for (int i = 0; i < 1200; i++) { /* over several chunks */
		char name[24];

		(void)snprintf(name, sizeof(name), "f%d", i);
		assert_int_equal(backing_create(&bk.root, name), 0);
		if (last)
			inode_put(table, last);
		last = look(&bk.root, name);
	}
	assert_int_equal(shared, 1201);
	assert_int_equal(inode_top(table), 1201);
	inode_each(table, visit, &w);
	assert_int_equal(w.n, 1201);
	gone = last->nodeid - 1;
	inode_forget(table, gone, 1);
	inode_detach(table, last);
	w = (struct walk){ 0 };
	inode_each(table, visit, &w);
	assert_int_equal(w.n, 1200);
	assert_int_equal(w.first, 1);
	assert_int_equal(w.seen[gone], 0);
	assert_int_equal(w.seen[last->nodeid], 1);
	w = (struct walk){ .stop_after = 3 };
	inode_each(table, visit, &w);
	assert_int_equal(w.n, 3);
	inode_put(table, last);
	inode_share_top(table, NULL);
}

/* ---- many threads */

#define NAMES 8

static void *hammer(void *arg)
{
	const struct dir root = bk.root;
	unsigned x = (unsigned)(uintptr_t)arg;

	for (int k = 0; k < 2000; k++) {
		char name[2] = { 'a', 0 };
		struct inode *i, *same;
		struct inode_pin *pin;
		struct dir d;

		x = x * 1664525u + 1013904223u;
		name[0] = (char)('a' + (x >> 16) % NAMES);
		i = look(&root, name);
		same = inode_get(table, i->nodeid);
		assert_ptr_equal(same, i);
		if (inode_dir(table, i, bk.names, &d, &pin))
			return arg;
		(void)pthread_mutex_lock(&i->lock);
		i->flags++;
		(void)pthread_mutex_unlock(&i->lock);
		inode_dir_put(table, pin);
		inode_put(table, same);
		inode_forget(table, i->nodeid, 1);
		inode_put(table, i);
	}
	return NULL;
}

static void many_threads(void **state)
{
	pthread_t threads[4];
	void *failed;

	(void)state;
	for (int n = 0; n < NAMES; n++) {
		char name[2] = { (char)('a' + n), 0 };

		assert_int_equal(backing_mkdir(&bk.root, name), 0);
	}
	for (uintptr_t t = 0; t < 4; t++)
		assert_int_equal(pthread_create(&threads[t], NULL, hammer, (void *)(t + 1)), 0);
	for (int t = 0; t < 4; t++) {
		assert_int_equal(pthread_join(threads[t], &failed), 0);
		assert_null(failed);
	}
	assert_int_equal(inode_count(table), 1);
	assert_true(inode_top(table) <= 1 + 4 + NAMES);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(few_descriptors),
		BOTH(wrong_directories),
		BOTH(walking),
		BOTH(many_threads),
	};

	return cmocka_run_group_tests_name("inode_dir", tests, backing_main_setup, NULL);
}
