/* The inode table in both ways of identity: one inode per object, slots that come back with a new generation, descriptors that stay few. */
#include "backing_fixture.h"

#include <stdatomic.h>

#include "inode.h"

static struct backing bk;
static struct inode_table *table;
static const struct dir_owner nobody = { .set = false };

static int setup_with(bool force_path, size_t max_fds)
{
	struct inode_params p = { .max_fds = max_fds, .force_path = force_path };

	backing_open(&bk, NAME_SIV64);
	p.root_fd = bk.fd;
	assert_int_equal(inode_table_open(&table, &p), 0);
	if (force_path)
		assert_false(inode_by_handle(table));
	return 0;
}

/* Handles where we may, else the same as the path way. */
static int setup(void **state)
{
	(void)state;
	return setup_with(false, 8);
}

static int setup_path(void **state)
{
	(void)state;
	return setup_with(true, 8);
}

static int teardown(void **state)
{
	(void)state;
	inode_table_close(table);
	backing_close(&bk);
	return 0;
}

static struct inode *look(const struct dir *d, const char *name)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct inode *i;
	struct stat st;

	assert_int_equal(dir_stat(d, name, strlen(name), &st, entry), 0);
	assert_int_equal(inode_look(table, d->fd, entry, &st, &i), 0);
	assert_int_equal(i->ino, st.st_ino);
	assert_int_equal(i->type, st.st_mode & S_IFMT);
	return i;
}

static void root_is_one(void **state)
{
	struct inode *root;
	struct stat st, want;

	(void)state;
	root = inode_get(table, 1);
	assert_non_null(root);
	assert_int_equal(root->nodeid, 1);
	assert_int_equal(inode_stat(table, root, &st), 0);
	assert_int_equal(fstat(bk.fd, &want), 0);
	assert_int_equal(st.st_ino, want.st_ino);
	inode_put(table, root);
	inode_forget(table, 1, 1000);
	inode_detach(table, root);
	root = inode_get(table, 1);
	assert_non_null(root);
	inode_put(table, root);
	assert_null(inode_get(table, 0));
	assert_null(inode_get(table, 2));
	assert_null(inode_get(table, UINT64_MAX));
	assert_int_equal(inode_top(table), 1);
	assert_int_equal(inode_count(table), 1);
}

static void one_inode_per_object(void **state)
{
	struct inode *a, *b;
	struct stat st;
	int fd;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	a = look(&bk.root, "a");
	fd = inode_open(table, a, O_PATH);
	assert_true(fd >= 0);
	assert_int_equal(dir_link(&bk.root, "b", 1, fd, &st), 0);
	b = look(&bk.root, "b");
	assert_ptr_equal(a, b);
	assert_int_equal(inode_count(table), 2);
	/* Two look-ups: one forgotten is not enough. */
	inode_put(table, a);
	inode_put(table, b);
	inode_forget(table, a->nodeid, 1);
	assert_ptr_equal(inode_get(table, a->nodeid), a);
	inode_put(table, a);
	inode_forget(table, a->nodeid, 1);
	assert_null(inode_get(table, 2));
	assert_int_equal(inode_count(table), 1);
	/* By the descriptor itself. */
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(inode_look(table, fd, "", &st, &b), 0);
	assert_int_equal(b->ino, st.st_ino);
	a = look(&bk.root, "a");
	assert_ptr_equal(a, b);
	(void)close(fd);
}

static void slots_come_back(void **state)
{
	uint64_t nodeid, generation;
	struct inode *i;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	assert_int_equal(backing_create(&bk.root, "b"), 0);
	i = look(&bk.root, "a");
	nodeid = i->nodeid;
	generation = i->generation;
	i->have_fileid = i->no_acl = i->unflushed = true;
	i->flags = 7;
	/* The ref keeps it after the kernel forgot it, and a look-up revives it. */
	inode_forget(table, nodeid, 1);
	assert_ptr_equal(look(&bk.root, "a"), i);
	inode_put(table, i);
	inode_forget(table, nodeid, 1);
	assert_ptr_equal(inode_get(table, nodeid), i);
	inode_put(table, i);
	inode_put(table, i);
	assert_null(inode_get(table, nodeid));
	/* Forgetting more than there is does no harm. */
	i = look(&bk.root, "b");
	assert_int_equal(i->nodeid, nodeid);
	assert_int_equal(i->generation, generation + 1);
	assert_false(i->have_fileid || i->no_acl || i->unflushed || i->flags);
	inode_forget(table, nodeid, 5);
	inode_forget(table, nodeid, 5);
	assert_ptr_equal(inode_get(table, nodeid), i);
	inode_put(table, i);
	inode_put(table, i);
	assert_int_equal(inode_count(table), 1);
	assert_int_equal(inode_top(table), nodeid);
}

static void detached_inodes(void **state)
{
	struct inode *old, *new;
	struct stat st;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	old = look(&bk.root, "a");
	inode_detach(table, old);
	inode_detach(table, old);
	new = look(&bk.root, "a");
	assert_ptr_not_equal(old, new);
	assert_int_equal(old->ino, new->ino);
	assert_int_equal(inode_count(table), 3);
	/* The stale one still works and goes when it is forgotten. */
	assert_int_equal(inode_stat(table, old, &st), 0);
	inode_put(table, old);
	inode_forget(table, old->nodeid, 1);
	assert_int_equal(inode_count(table), 2);
	assert_ptr_equal(look(&bk.root, "a"), new);
}

/* The backing gives the number of a removed file to the next one, while the kernel still knows the first. */
static void reused_numbers(void **state)
{
	int reused = 0;

	(void)state;
	for (int k = 0; k < 50; k++) {
		struct inode *old, *new;
		struct stat st;
		int fd;

		assert_int_equal(backing_create(&bk.root, "f"), 0);
		old = look(&bk.root, "f");
		assert_int_equal(dir_unlink(&bk.root, "f", 1), 0);
		assert_int_equal(backing_create(&bk.root, "f"), 0);
		new = look(&bk.root, "f");
		assert_ptr_not_equal(new, old);
		assert_int_not_equal(new->nodeid, old->nodeid);
		reused += new->ino == old->ino;
		fd = inode_open(table, new, O_RDWR);
		assert_true(fd >= 0);
		(void)close(fd);
		if (inode_by_handle(table))
			assert_int_equal(inode_open(table, old, O_RDWR), -EIO);
		else {
			assert_int_equal(inode_stat(table, old, &st), 0);
			assert_int_equal(st.st_nlink, 0);
			assert_int_not_equal(new->ino, old->ino);
		}
		inode_put(table, old);
		inode_put(table, new);
		inode_forget(table, old->nodeid, 1);
		inode_forget(table, new->nodeid, 1);
		assert_int_equal(dir_unlink(&bk.root, "f", 1), 0);
	}
	if (!reused && inode_by_handle(table))
		print_message("this backing did not reuse a number\n");
	assert_int_equal(inode_count(table), 1);
}

static void opening(void **state)
{
	struct inode *file, *link, *fifo, *sub;
	uint8_t byte;
	struct stat st;
	int fd;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "file"), 0);
	assert_int_equal(backing_mkdir(&bk.root, "dir"), 0);
	assert_int_equal(dir_symlink(&bk.root, "link", 4, "/etc/passwd", 11, &nobody, &st), 0);
	assert_int_equal(dir_mknod(&bk.root, "fifo", 4, S_IFIFO | 0600, 0, &nobody, &st), 0);
	file = look(&bk.root, "file");
	sub = look(&bk.root, "dir");
	link = look(&bk.root, "link");
	fifo = look(&bk.root, "fifo");
	fd = inode_open(table, file, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, 0), 1);
	assert_int_equal(byte, 1);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	(void)close(fd);
	assert_int_equal(inode_open(table, file, O_RDWR | O_TRUNC), -EINVAL);
	assert_int_equal(inode_open(table, file, O_RDONLY | O_DIRECTORY), -ENOTDIR);
	assert_int_equal(inode_open(table, link, O_RDONLY), -ELOOP);
	assert_int_equal(inode_open(table, fifo, O_RDONLY), -ENXIO);
	struct inode *all[] = { file, sub, link, fifo };
	for (int i = 0; i < 4; i++) {
		fd = inode_open(table, all[i], O_PATH | O_NOFOLLOW);
		assert_true(fd >= 0);
		assert_int_equal(fstat(fd, &st), 0);
		assert_int_equal(st.st_ino, all[i]->ino);
		assert_int_equal(st.st_mode & S_IFMT, all[i]->type);
		(void)close(fd);
		assert_int_equal(inode_stat(table, all[i], &st), 0);
		assert_int_equal(st.st_ino, all[i]->ino);
	}
	/* Renaming does not matter to an inode. */
	assert_int_equal(dir_rename(&bk.root, "file", 4, &bk.root, "other", 5, 0), 0);
	assert_ptr_equal(look(&bk.root, "other"), file);
	assert_int_equal(inode_stat(table, file, &st), 0);
}

/* What was looked up and what is opened differ: a lie about the type, or another object under the entry. */
static void lies(void **state)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct inode *i;
	struct stat st;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	assert_int_equal(backing_create(&bk.root, "b"), 0);
	assert_int_equal(dir_stat(&bk.root, "a", 1, &st, entry), 0);
	st.st_mode = S_IFDIR | 0755;
	assert_int_equal(inode_look(table, bk.fd, entry, &st, &i), 0);
	assert_int_equal(inode_open(table, i, O_PATH), -EIO);
	inode_forget(table, i->nodeid, 1);
	inode_put(table, i);
	assert_int_equal(dir_stat(&bk.root, "b", 1, &st, NULL), 0);
	assert_int_equal(inode_look(table, bk.fd, entry, &st, &i), 0);
	assert_int_equal(inode_open(table, i, O_RDWR), -EIO);
	inode_forget(table, i->nodeid, 1);
	inode_put(table, i);
	st.st_dev++;
	assert_int_equal(inode_look(table, bk.fd, entry, &st, &i), -EXDEV);
	assert_int_equal(dir_stat(&bk.root, "b", 1, &st, NULL), 0);
	assert_int_equal(inode_look(table, bk.fd, "no such entry", &st, &i), -ENOENT);
	assert_int_equal(inode_count(table), 1);
}

/* ---- directories */

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
	last->opens = 1;
	inode_each(table, true, visit, &w);
	assert_int_equal(w.n, 1201);
	assert_int_equal(w.first, last->nodeid);
	gone = last->nodeid - 1;
	inode_forget(table, gone, 1);
	inode_detach(table, last);
	w = (struct walk){ 0 };
	inode_each(table, false, visit, &w);
	assert_int_equal(w.n, 1200);
	assert_int_equal(w.first, 1);
	assert_int_equal(w.seen[gone], 0);
	assert_int_equal(w.seen[last->nodeid], 1);
	w = (struct walk){ .stop_after = 3 };
	inode_each(table, true, visit, &w);
	assert_int_equal(w.n, 3);
	last->opens = 0;
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

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
#define PATH(fn) { "by path: " #fn, fn, setup_path, teardown, NULL }
#define BOTH(fn) TEST(fn), PATH(fn)

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(root_is_one), BOTH(one_inode_per_object), BOTH(slots_come_back), BOTH(detached_inodes), BOTH(reused_numbers), BOTH(opening),
		BOTH(lies), BOTH(few_descriptors), BOTH(wrong_directories), BOTH(walking), BOTH(many_threads),
	};

	return cmocka_run_group_tests_name("inode", tests, backing_main_setup, NULL);
}
