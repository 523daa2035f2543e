/* Names of a backing directory: the whole life of entries, on every way a backing may offer, and with rubbish lying
 * about. */
#include <sys/sysmacros.h>

#include "dir_fixture.h"
#include "bytes.h"

/* ---- files */

static void create_and_stat(void **state)
{
	static const size_t lengths[] = { 1, 16, 128, 129, 160, 161, 254, 255 };
	char entry[NAME_ENTRY_MAX + 1];
	uint8_t page[LAYOUT_PAGE];
	struct stat made, st;
	int fd;

	(void)state;
	for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
		const char *name = name_of(lengths[i], 'x');

		assert_int_equal(dir_stat(&bk.root, name, lengths[i], &st, NULL), -ENOENT);
		assert_int_equal(dir_create(&bk.root, name, lengths[i], page0, 04751, &nobody, &fd, &made), 0);
		assert_int_equal(pread(fd, page, sizeof(page), 0), LAYOUT_PAGE);
		assert_memory_equal(page, page0, LAYOUT_PAGE);
		assert_int_equal(pwrite(fd, page0, 1, 0), 1);
		assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
		(void)close(fd);
		assert_int_equal(made.st_mode, S_IFREG | 04751);
		assert_int_equal(made.st_size, LAYOUT_PAGE);
		assert_int_equal(made.st_nlink, 1);
		assert_int_equal(dir_stat(&bk.root, name, lengths[i], &st, entry), 0);
		assert_int_equal(st.st_ino, made.st_ino);
		assert_int_equal(fstatat(bk.fd, entry, &st, AT_SYMLINK_NOFOLLOW), 0);
		assert_int_equal(st.st_ino, made.st_ino);
		assert_int_equal(dir_create(&bk.root, name, lengths[i], page0, 0600, &nobody, &fd, &made), -EEXIST);
		assert_int_equal(dir_stat(&bk.root, name, lengths[i], &st, NULL), 0);
		assert_int_equal(dir_unlink(&bk.root, name, lengths[i]), 0);
		assert_int_equal(dir_unlink(&bk.root, name, lengths[i]), -ENOENT);
	}
	/* No temporaries, no .n. */
	assert_int_equal(backing_entries_fd(bk.fd), 0);
}

static void every_byte_in_names(void **state)
{
	struct dir_stream *s;
	struct dir_item item;
	bool seen[256] = { false };
	int64_t pos = 0;
	int r, n = 0;

	(void)state;
	for (unsigned c = 1; c < 256; c++) {
		char name[3] = { (char)c, 'n', 0 };

		assert_int_equal(backing_create(&bk.root, name), c == '/' ? -EINVAL : 0);
	}
	assert_int_equal(dir_stream_open(&s, &bk.root), 0);
	while ((r = dir_stream_next(s, &bk.root, pos, &item)) == 1) {
		assert_int_equal(item.len, 2);
		assert_int_equal(item.name[1], 'n');
		seen[(uint8_t)item.name[0]] = true;
		assert_int_equal(backing_exists(&bk.root, item.name), 0);
		pos = item.next;
		n++;
	}
	assert_int_equal(r, 0);
	assert_int_equal(n, 254);
	for (unsigned c = 1; c < 256; c++)
		assert_int_equal(seen[c], c != '/');
	dir_stream_close(s);
}

static void refused_names(void **state)
{
	struct stat st;

	(void)state;
	assert_int_equal(backing_create(&bk.root, ""), -EINVAL);
	assert_int_equal(backing_create(&bk.root, "."), -EINVAL);
	assert_int_equal(backing_create(&bk.root, ".."), -EINVAL);
	assert_int_equal(backing_create(&bk.root, "a/b"), -EINVAL);
	assert_int_equal(dir_stat(&bk.root, name_of(256, 'x'), 256, &st, NULL), -ENAMETOOLONG);
	assert_int_equal(backing_create(&bk.root, name_of(256, 'x')), -ENAMETOOLONG);
	assert_int_equal(dir_rename(&bk.root, "a", 1, &bk.root, name_of(256, 'x'), 256, 0), -ENAMETOOLONG);
	assert_int_equal(backing_entries_fd(bk.fd), 0);
}

static void plain_mode_reserves(void **state)
{
	(void)state;
	assert_int_equal(backing_create(&bk.root, ".byokfs.x"), -EPERM);
	assert_int_equal(backing_exists(&bk.root, NAME_DIR_FILE), -ENOENT);
	assert_int_equal(backing_create(&bk.root, "L.abc.n"), 0);
	assert_int_equal(backing_exists(&bk.root, "L.abc.n"), 0);
	assert_int_equal(faccessat(bk.fd, "L.abc.n", F_OK, AT_SYMLINK_NOFOLLOW), 0);
	assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
	assert_int_equal(dir_rmdir(&bk.root, "d", 1), 0);
}

struct racer {
	const char *name;
	int wins, taken, others;
};

static void *race(void *arg)
{
	struct racer *r = arg;
	char name[NAME_MAX_PLAIN + 1];

	for (int i = 0; i < 60; i++) {
		(void)snprintf(name, sizeof(name), "%s%03d", r->name, i);
		switch (backing_create(&bk.root, name)) {
		case 0:
			r->wins++;
			break;
		case -EEXIST:
			r->taken++;
			break;
		default:
			r->others++;
		}
	}
	return NULL;
}

static void one_winner(void **state)
{
	const char *names[] = { "short", name_of(250, 'l') };
	char name[NAME_MAX_PLAIN + 1];

	(void)state;
	for (int k = 0; k < 2; k++) {
		struct racer racers[4];
		pthread_t threads[4];
		int wins = 0;

		for (int i = 0; i < 4; i++) {
			racers[i] = (struct racer){ .name = names[k] };
			assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
		}
		for (int i = 0; i < 4; i++) {
			assert_int_equal(pthread_join(threads[i], NULL), 0);
			assert_int_equal(racers[i].others, 0);
			wins += racers[i].wins;
		}
		assert_int_equal(wins, 60);
		for (int i = 0; i < 60; i++) {
			(void)snprintf(name, sizeof(name), "%s%03d", names[k], i);
			assert_int_equal(backing_exists(&bk.root, name), 0);
			assert_int_equal(dir_unlink(&bk.root, name, strlen(name)), 0);
		}
	}
	assert_int_equal(backing_entries_fd(bk.fd), 0);
}

static void owners(void **state)
{
	struct dir_owner user = { .uid = 1234, .gid = 2345, .set = true };
	struct dir d;
	struct stat st;
	int fd;

	(void)state;
	if (geteuid())
		skip();
	assert_int_equal(dir_create(&bk.root, "f", 1, page0, 06755, &user, &fd, &st), 0);
	(void)close(fd);
	assert_true(st.st_uid == 1234 && st.st_gid == 2345 && st.st_mode == (S_IFREG | 06755));
	assert_int_equal(dir_mkdir(&bk.root, "d", 1, 01700, &user, 0, &st), 0);
	assert_true(st.st_uid == 1234 && st.st_gid == 2345 && st.st_mode == (S_IFDIR | 01700));
	assert_int_equal(dir_symlink(&bk.root, "l", 1, "t", 1, &user, &st), 0);
	assert_true(st.st_uid == 1234 && st.st_gid == 2345 && S_ISLNK(st.st_mode));
	assert_int_equal(dir_mknod(&bk.root, "p", 1, S_IFIFO | 02610, 0, &user, &st), 0);
	assert_true(st.st_uid == 1234 && st.st_gid == 2345 && st.st_mode == (S_IFIFO | 02610));
	assert_int_equal(dir_mknod(&bk.root, "n", 1, S_IFCHR | 0600, makedev(1, 3), &user, &st), 0);
	assert_true(S_ISCHR(st.st_mode) && st.st_rdev == makedev(1, 3));
	/* In a set-group-ID directory the group is the directory's, and directories inherit the bit. */
	d = backing_sub(&bk.root, "d");
	assert_int_equal(fchown(d.fd, 0, 77), 0);
	assert_int_equal(fchmod(d.fd, 02755), 0);
	assert_int_equal(dir_create(&d, "f", 1, page0, 0644, &user, &fd, &st), 0);
	(void)close(fd);
	assert_true(st.st_uid == 1234 && st.st_gid == 77);
	assert_int_equal(dir_mkdir(&d, "d", 1, 0755, &user, 0, &st), 0);
	assert_true(st.st_uid == 1234 && st.st_gid == 77 && st.st_mode == (S_IFDIR | 02755));
	assert_int_equal(dir_symlink(&d, "l", 1, "t", 1, &user, &st), 0);
	assert_true(st.st_gid == 77);
	(void)close(d.fd);
}

/* ---- links and special files */

static void hard_links(void **state)
{
	const char *lname = name_of(200, 'h');
	struct stat st, other;
	struct dir d;
	int fd;

	(void)state;
	assert_int_equal(dir_create(&bk.root, "f", 1, page0, 0644, &nobody, &fd, &st), 0);
	assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
	d = backing_sub(&bk.root, "d");
	assert_int_equal(dir_link(&d, lname, 200, fd, &other), 0);
	assert_int_equal(other.st_ino, st.st_ino);
	assert_int_equal(other.st_nlink, 2);
	assert_int_equal(dir_link(&d, lname, 200, fd, &other), -EEXIST);
	assert_int_equal(backing_exists(&d, lname), 0);
	/* A rename between two links of one file does nothing, and both names stay. */
	assert_int_equal(dir_rename(&d, lname, 200, &bk.root, "f", 1, 0), 0);
	assert_int_equal(backing_exists(&d, lname), 0);
	assert_int_equal(backing_exists(&bk.root, "f"), 0);
	assert_int_equal(dir_unlink(&bk.root, "f", 1), 0);
	assert_int_equal(dir_unlink(&d, lname, 200), 0);
	assert_int_equal(backing_entries_fd(d.fd), 0);
	(void)close(d.fd);
	(void)close(fd);
}

static void link_by_o_path(void **state)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct stat st;
	int fd;

	(void)state;
	assert_int_equal(dir_symlink(&bk.root, "s", 1, "target", 6, &nobody, &st), 0);
	assert_int_equal(dir_stat(&bk.root, "s", 1, &st, entry), 0);
	fd = openat(bk.fd, entry, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(dir_link(&bk.root, "s2", 2, fd, &st), 0);
	assert_true(S_ISLNK(st.st_mode) && st.st_nlink == 2);
	(void)close(fd);
}

static void symlinks(void **state)
{
	static const size_t lengths[] = { 1, 20, 255, 1000, 3047, 3048, 4095 };
	char target[NAME_LINK_MAX + 2], out[NAME_LINK_MAX + 1], entry[NAME_ENTRY_MAX + 1];
	struct stat st;
	int fd;

	(void)state;
	memset(target, 'T', sizeof(target));
	for (size_t i = 0; i < sizeof(lengths) / sizeof(*lengths); i++) {
		int r = dir_symlink(&bk.root, "l", 1, target, lengths[i], &nobody, &st);

		if (r == -ENAMETOOLONG && lengths[i] > 744) /* a backing with short symlinks */
			continue;
		assert_int_equal(r, 0);
		assert_true(S_ISLNK(st.st_mode));
		assert_int_equal(dir_stat(&bk.root, "l", 1, &st, entry), 0);
		assert_int_equal(dir_link_size(bk.fd, entry, (uint64_t)st.st_size), lengths[i]);
		assert_int_equal(dir_readlink(bk.fd, entry, bk.names, out), lengths[i]);
		assert_memory_equal(out, target, lengths[i]);
		fd = openat(bk.fd, entry, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		assert_int_equal(dir_readlink(fd, "", bk.names, out), lengths[i]);
		assert_int_equal(dir_link_size(fd, "", (uint64_t)st.st_size), lengths[i]);
		(void)close(fd);
		assert_int_equal(dir_symlink(&bk.root, "l", 1, "x", 1, &nobody, &st), -EEXIST);
		assert_int_equal(dir_unlink(&bk.root, "l", 1), 0);
	}
	assert_int_equal(dir_symlink(&bk.root, "l", 1, target, NAME_LINK_MAX + 1, &nobody, &st), -ENAMETOOLONG);
	assert_int_equal(dir_symlink(&bk.root, "l", 1, target, 0, &nobody, &st), -ENOENT);
	assert_int_equal(symlinkat("/etc/passwd", bk.fd, "planted"), 0);
	assert_int_equal(dir_readlink(bk.fd, "planted", bk.names, out), -EIO);
	/* As long as the head of a long one, and nothing else of it. */
	memset(target, '.', DIR_LINK_LONG);
	target[DIR_LINK_LONG] = '\0';
	assert_int_equal(symlinkat(target, bk.fd, "headless"), 0);
	assert_int_equal(dir_readlink(bk.fd, "headless", bk.names, out), -EIO);
	(void)dir_link_size(bk.fd, "headless", DIR_LINK_LONG);
}

static void special_files(void **state)
{
	const char *lname = name_of(255, 'p');
	struct stat st;

	(void)state;
	assert_int_equal(dir_mknod(&bk.root, lname, 255, S_IFIFO | 0640, 0, &nobody, &st), 0);
	assert_true(S_ISFIFO(st.st_mode) && (st.st_mode & 07777) == 0640);
	assert_int_equal(dir_mknod(&bk.root, lname, 255, S_IFSOCK | 0640, 0, &nobody, &st), -EEXIST);
	assert_int_equal(dir_unlink(&bk.root, lname, 255), 0);
	assert_int_equal(dir_mknod(&bk.root, "s", 1, S_IFSOCK | 0600, 0, &nobody, &st), 0);
	assert_true(S_ISSOCK(st.st_mode));
	assert_int_equal(dir_mknod(&bk.root, "r", 1, S_IFREG | 0600, 0, &nobody, &st), -EINVAL);
	assert_int_equal(dir_unlink(&bk.root, "s", 1), 0);
	assert_int_equal(backing_entries_fd(bk.fd), 0);
}

/* ---- long names */

static void long_links_are_checked(void **state)
{
	const char *name = name_of(200, 'n');
	char entry[NAME_ENTRY_MAX + 1], link[NAME_ENTRY_MAX + 3];
	struct dir_stream *s;
	struct dir_item item;
	struct stat st;

	(void)state;
	assert_int_equal(backing_create(&bk.root, name), 0);
	assert_int_equal(dir_stat(&bk.root, name, 200, &st, entry), 0);
	(void)snprintf(link, sizeof(link), "%.255s.n", entry);
	assert_int_equal(fstatat(bk.fd, link, &st, AT_SYMLINK_NOFOLLOW), 0);
	assert_true(S_ISLNK(st.st_mode));
	for (int wrong = 0; wrong < 2; wrong++) {
		assert_int_equal(unlinkat(bk.fd, link, 0), 0);
		if (wrong)
			assert_int_equal(symlinkat("BLadSzQVlqxFET_J0BKksJB7se-wXYxA__eV4NaywUE", bk.fd, link), 0);
		assert_int_equal(backing_exists(&bk.root, name), -ENOENT);
		assert_int_equal(dir_stream_open(&s, &bk.root), 0);
		assert_int_equal(dir_stream_next(s, &bk.root, 0, &item), 0);
		dir_stream_close(s);
		/* A second try to make it finds it, and sets the link right. */
		assert_int_equal(backing_create(&bk.root, name), -EEXIST);
		assert_int_equal(backing_exists(&bk.root, name), 0);
	}
	/* A stale link of an interrupted create is no obstacle. */
	assert_int_equal(unlinkat(bk.fd, entry, 0), 0);
	assert_int_equal(backing_exists(&bk.root, name), -ENOENT);
	assert_int_equal(backing_create(&bk.root, name), 0);
	assert_int_equal(dir_unlink(&bk.root, name, 200), 0);
	assert_int_equal(backing_entries_fd(bk.fd), 0);
}

/* ---- iteration */

#define MANY 5000

static void iterate(void **state)
{
	static int64_t before[MANY];
	static char names[MANY][24];
	static bool seen[MANY];
	struct dir_stream *s;
	struct dir_item item;
	int64_t pos = 0;
	int n = 0, r;

	(void)state;
	for (int i = 0; i < MANY; i++) {
		char name[24];

		(void)snprintf(name, sizeof(name), "entry-%d", i);
		if (i % 100 == 0)
			assert_int_equal(backing_mkdir(&bk.root, name), 0);
		else
			assert_int_equal(backing_create(&bk.root, name), 0);
	}
	memset(seen, 0, sizeof(seen));
	assert_int_equal(dir_stream_open(&s, &bk.root), 0);
	while ((r = dir_stream_next(s, &bk.root, pos, &item)) == 1) {
		struct stat st;
		int i = atoi(item.name + 6);

		assert_in_range(i, 0, MANY - 1);
		assert_false(seen[i]);
		seen[i] = true;
		assert_int_equal(item.len, strlen(item.name));
		assert_int_equal(item.type, i % 100 ? DT_REG : DT_DIR);
		assert_int_equal(fstatat(bk.fd, item.entry, &st, AT_SYMLINK_NOFOLLOW), 0);
		assert_int_equal(item.ino, st.st_ino);
		assert_true(n < MANY);
		before[n] = pos;
		(void)snprintf(names[n++], sizeof(names[0]), "%.23s", item.name);
		assert_true(item.next != 0);
		pos = item.next;
	}
	assert_int_equal(r, 0);
	assert_int_equal(n, MANY);
	assert_int_equal(dir_stream_next(s, &bk.root, pos, &item), 0);
	/* Anywhere, in any order; one step back; after a wipe; and from the start. */
	for (int k = 0; k < 400; k++) {
		int i = (int)(((unsigned)k * 7919u) % MANY);

		assert_int_equal(dir_stream_next(s, &bk.root, before[i], &item), 1);
		assert_string_equal(item.name, names[i]);
		assert_int_equal(dir_stream_next(s, &bk.root, before[i], &item), 1);
		assert_string_equal(item.name, names[i]);
		if (k % 8 == 0)
			dir_stream_wipe(s);
		if (i + 1 < MANY) {
			assert_int_equal(dir_stream_next(s, &bk.root, item.next, &item), 1);
			assert_string_equal(item.name, names[i + 1]);
		}
	}
	assert_int_equal(dir_stream_next(s, &bk.root, 0, &item), 1);
	assert_string_equal(item.name, names[0]);
	dir_stream_close(s);
	dir_stream_close(NULL);
}

static void iterate_rubbish(void **state)
{
	const char *lname = name_of(255, 'q');
	struct dir_stream *s;
	struct dir_item item;
	struct stat st;
	int64_t pos = 0;
	int n = 0, r, fd;

	(void)state;
	for (int i = 0; i < 300; i++) {
		char name[32];

		(void)snprintf(name, sizeof(name), i % 3 ? "stray %d" : "QUJDREVGR0hJSktMTU5P%03d", i);
		fd = openat(bk.fd, name, O_CREAT | O_WRONLY | O_EXCL, 0600);
		assert_true(fd >= 0);
		(void)close(fd);
	}
	assert_int_equal(mkdirat(bk.fd, "L.RVW1fnFwssevtsRHUyk91cfStWyxEvwY", 0700), 0);
	assert_int_equal(mkdirat(bk.fd, NAME_RESERVED, 0700), 0);
	assert_int_equal(backing_create(&bk.root, "good"), 0);
	assert_int_equal(dir_symlink(&bk.root, lname, 255, "t", 1, &nobody, &st), 0);
	assert_int_equal(dir_stream_open(&s, &bk.root), 0);
	while ((r = dir_stream_next(s, &bk.root, pos, &item)) == 1) {
		if (item.len == 255)
			assert_int_equal(item.type, DT_LNK);
		assert_string_equal(item.name, item.len == 255 ? lname : "good");
		pos = item.next;
		n++;
	}
	assert_int_equal(r, 0);
	assert_int_equal(n, 2);
	dir_stream_close(s);
}

static void rewind_sees_news(void **state)
{
	struct dir_stream *s;
	struct dir_item item;

	(void)state;
	assert_int_equal(dir_stream_open(&s, &bk.root), 0);
	assert_int_equal(dir_stream_next(s, &bk.root, 0, &item), 0);
	assert_int_equal(backing_create(&bk.root, "new"), 0);
	assert_int_equal(dir_stream_next(s, &bk.root, 0, &item), 1);
	assert_string_equal(item.name, "new");
	assert_int_equal(dir_stream_next(s, &bk.root, item.next, &item), 0);
	dir_stream_close(s);
}

/* A name moved to another directory does not decrypt there. */
static void names_are_bound(void **state)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct dir_stream *s;
	struct dir_item item;
	struct stat st;
	struct dir d;

	(void)state;
	assert_int_equal(backing_create(&bk.root, "f"), 0);
	assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
	d = backing_sub(&bk.root, "d");
	assert_int_equal(dir_stat(&bk.root, "f", 1, &st, entry), 0);
	assert_int_equal(renameat(bk.fd, entry, d.fd, entry), 0);
	assert_int_equal(backing_exists(&d, "f"), -ENOENT);
	assert_int_equal(dir_stream_open(&s, &d), 0);
	assert_int_equal(dir_stream_next(s, &d, 0, &item), 0);
	dir_stream_close(s);
	(void)close(d.fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(create_and_stat),
		TEST(every_byte_in_names),
		TEST(refused_names),
		TEST(one_winner),
		TEST(owners),
		TEST(hard_links),
		TEST(link_by_o_path),
		TEST(symlinks),
		TEST(special_files),
		TEST(long_links_are_checked),
		TEST(iterate),
		TEST(iterate_rubbish),
		TEST(rewind_sees_news),
		TEST(names_are_bound),
		POOR(create_and_stat),
		POOR(one_winner),
		POOR(owners),
		POOR(hard_links),
		POOR(link_by_o_path),
		{ "siv32: create_and_stat", create_and_stat, setup_siv32, teardown, NULL },
		{ "siv32: every_byte_in_names", every_byte_in_names, setup_siv32, teardown, NULL },
		{ "plain: create_and_stat", create_and_stat, setup_plain, teardown, NULL },
		{ "plain: every_byte_in_names", every_byte_in_names, setup_plain, teardown, NULL },
		{ "plain: plain_mode_reserves", plain_mode_reserves, setup_plain, teardown, NULL },
	};

	return cmocka_run_group_tests_name("dir", tests, backing_main_setup, NULL);
}
