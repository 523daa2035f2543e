/* Removed objects: found by their stat, reachable as long as somebody has them, quiet when they are not. */
#include "inode_fixture.h"

static void found_by_stat(void **state)
{
	struct inode *a, *b;
	struct stat st;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	assert_int_equal(dir_stat(&bk.root, "a", 1, &st, NULL), 0);
	assert_null(inode_find(table, &st));
	a = look(&bk.root, "a");
	b = inode_find(table, &st);
	assert_ptr_equal(a, b);
	inode_put(table, b);
	inode_put(table, a);
	inode_forget(table, a->nodeid, 1);
	assert_null(inode_find(table, &st));
}

static void held_after_removal(void **state)
{
	struct inode *a;
	struct stat st;
	int fd, other;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	a = look(&bk.root, "a");
	fd = inode_open(table, a, O_PATH);
	assert_true(fd >= 0);
	assert_int_equal(dir_unlink(&bk.root, "a", 1), 0);
	inode_removed(a, &fd);
	assert_int_equal(fd, -1);
	assert_int_equal(inode_stat(table, a, &st), 0);
	assert_int_equal(st.st_nlink, 0);
	other = inode_open(table, a, O_RDWR);
	assert_true(other >= 0);
	fd = other;
	inode_removed(a, &fd); /* a second one is not needed */
	assert_int_equal(fd, -1);
	assert_int_equal(fcntl(other, F_GETFD), -1);
	inode_put(table, a);
	inode_forget(table, a->nodeid, 1);
	assert_int_equal(inode_count(table), 1);
}

static void gone_without_a_descriptor(void **state)
{
	struct inode *a;
	struct stat st;
	int none = -1, r;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "a"), 0);
	a = look(&bk.root, "a");
	assert_int_equal(dir_unlink(&bk.root, "a", 1), 0);
	inode_removed(a, &none);
	r = inode_stat(table, a, &st);
	/* By path descriptor it is still there; by handle it is not, and that is no damage. */
	assert_int_equal(r, inode_by_handle(table) ? -ESTALE : 0);
	inode_put(table, a);
	inode_forget(table, a->nodeid, 1);
}

static void removed_directory(void **state)
{
	static const struct dir_owner nobody = { .set = false };
	struct inode_pin *pin;
	struct inode *a;
	struct stat st;
	struct dir d;
	int fd;

	(void)state;
	assert_int_equal(dir_mkdir(&bk.root, "d", 1, 0700, &nobody, 0, &st), 0);
	a = look(&bk.root, "d");
	fd = inode_open(table, a, O_PATH);
	assert_int_equal(dir_rmdir(&bk.root, "d", 1), 0);
	inode_removed(a, &fd);
	/* Its id was never read and cannot be any more; it is an empty directory all the same. */
	assert_int_equal(inode_dir(table, a, bk.root.names, &d, &pin), 0);
	assert_int_equal(dir_mkdir(&d, "x", 1, 0700, &nobody, 0, &st), -ENOENT);
	inode_dir_put(table, pin);
	inode_put(table, a);
	inode_forget(table, a->nodeid, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(found_by_stat),
		BOTH(held_after_removal),
		BOTH(gone_without_a_descriptor),
		BOTH(removed_directory),
	};

	return cmocka_run_group_tests_name("inode_removed", tests, backing_main_setup, NULL);
}
