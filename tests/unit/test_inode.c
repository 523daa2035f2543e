/* The inode table in both ways of identity: one inode per object, slots that come back with a new generation. */
#include "inode_fixture.h"

static const struct dir_owner nobody = { .set = false };

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
	assert_int_equal(inode_look(table, fd, "", &st, (struct inode_where){ 0 }, &b), 0);
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
	assert_true(i->generation > generation);
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
	assert_int_equal(inode_look(table, bk.fd, entry, &st, (struct inode_where){ 0 }, &i), 0);
	assert_int_equal(inode_open(table, i, O_PATH), -EIO);
	inode_forget(table, i->nodeid, 1);
	inode_put(table, i);
	assert_int_equal(dir_stat(&bk.root, "b", 1, &st, NULL), 0);
	assert_int_equal(inode_look(table, bk.fd, entry, &st, (struct inode_where){ 0 }, &i), 0);
	assert_int_equal(inode_open(table, i, O_RDWR), -EIO);
	inode_forget(table, i->nodeid, 1);
	inode_put(table, i);
	st.st_dev++;
	assert_int_equal(inode_look(table, bk.fd, entry, &st, (struct inode_where){ 0 }, &i), -EXDEV);
	assert_int_equal(dir_stat(&bk.root, "b", 1, &st, NULL), 0);
	assert_int_equal(inode_look(table, bk.fd, "no such entry", &st, (struct inode_where){ 0 }, &i), -ENOENT);
	assert_int_equal(inode_count(table), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		BOTH(root_is_one),
		BOTH(one_inode_per_object),
		BOTH(slots_come_back),
		BOTH(detached_inodes),
		BOTH(reused_numbers),
		BOTH(opening),
		BOTH(lies),
	};

	return cmocka_run_group_tests_name("inode", tests, backing_main_setup, NULL);
}
