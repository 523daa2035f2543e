/* inode_fixture.h — an inode table over a scratch directory, in both ways of identity. */
#ifndef BYOKFS_INODE_FIXTURE_H
#define BYOKFS_INODE_FIXTURE_H

#include "backing_fixture.h"
#include "inode.h"

static struct backing bk;
static struct inode_table *table;

static inline int setup_with(bool force_path, size_t max_fds)
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
static inline int setup(void **state)
{
	(void)state;
	return setup_with(false, 8);
}

static inline int setup_path(void **state)
{
	(void)state;
	return setup_with(true, 8);
}

static inline int teardown(void **state)
{
	(void)state;
	inode_table_close(table);
	backing_close(&bk);
	return 0;
}

static inline struct inode *look(const struct dir *d, const char *name)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct inode *i;
	struct stat st;

	assert_int_equal(dir_stat(d, name, strlen(name), &st, entry), 0);
	assert_int_equal(inode_look(table, d->fd, entry, &st, (struct inode_where){ 0 }, &i), 0);
	assert_int_equal(i->ino, st.st_ino);
	assert_int_equal(i->type, st.st_mode & S_IFMT);
	return i;
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
#define PATH(fn)                                                \
	{                                                       \
		"by path: " #fn, fn, setup_path, teardown, NULL \
	}
#define BOTH(fn) TEST(fn), PATH(fn)

#endif
