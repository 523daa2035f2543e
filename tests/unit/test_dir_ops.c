/* Directories as entries: made, removed, raced for, renamed, replaced; and ids that somebody tampered with. */
#include "dir_fixture.h"

/* ---- directories */

static void mkdir_rmdir(void **state)
{
	const char *lname = name_of(161, 'd');
	struct dir d, sub;
	struct stat st;

	(void)state;
	assert_int_equal(dir_mkdir(&bk.root, lname, 161, 0750, &nobody, 0, &st), 0);
	assert_int_equal(st.st_mode & (S_IFMT | 0777u), S_IFDIR | 0750);
	assert_int_equal(backing_mkdir(&bk.root, lname), -EEXIST);
	d = backing_sub(&bk.root, lname);
	assert_memory_not_equal(d.id, bk.root.id, 16);
	assert_int_equal(backing_mkdir(&d, "sub"), 0);
	assert_int_equal(dir_rmdir(&bk.root, lname, 161), -ENOTEMPTY);
	sub = backing_sub(&d, "sub");
	assert_memory_not_equal(sub.id, d.id, 16);
	assert_int_equal(backing_create(&sub, name_of(255, 'f')), 0);
	assert_int_equal(dir_rmdir(&d, "sub", 3), -ENOTEMPTY);
	assert_int_equal(dir_unlink(&sub, name_of(255, 'f'), 255), 0);
	assert_int_equal(dir_rmdir(&d, "sub", 3), 0);
	assert_int_equal(dir_rmdir(&d, "sub", 3), -ENOENT);
	assert_int_equal(dir_rmdir(&bk.root, lname, 161), 0);
	/* Somebody's working directory lives on without names. */
	assert_int_equal(backing_create(&d, "late"), -ENOENT);
	assert_int_equal(backing_create(&bk.root, "file"), 0);
	assert_int_equal(dir_rmdir(&bk.root, "file", 4), -ENOTDIR);
	assert_int_equal(backing_mkdir(&bk.root, "file"), -EEXIST);
	assert_int_equal(backing_mkdir(&bk.root, "dir"), 0);
	assert_int_equal(backing_create(&bk.root, "dir"), -EEXIST);
	assert_int_equal(dir_unlink(&bk.root, "dir", 3), -EISDIR);
	assert_int_equal(backing_entries_fd(bk.fd), 2);
	(void)close(sub.fd);
	(void)close(d.fd);
}

static void modes_of_directories(void **state)
{
	static const mode_t modes[] = { 0, 0111, 0555, 0700, 01777 };
	struct stat st;

	(void)state;
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		assert_int_equal(dir_mkdir(&bk.root, "d", 1, modes[i], &nobody, 0, &st), 0);
		assert_int_equal(st.st_mode, S_IFDIR | modes[i]);
		assert_int_equal(dir_rmdir(&bk.root, "d", 1), 0);
	}
	assert_int_equal(backing_entries_fd(bk.fd), 0);
}

static void rmdir_of_litter(void **state)
{
	struct dir d;
	int fd;

	(void)state;
	assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
	d = backing_sub(&bk.root, "d");
	fd = openat(d.fd, ".byokfs.tmp.0123456789abcdef", O_CREAT | O_WRONLY, 0600);
	assert_true(fd >= 0);
	(void)close(fd);
	assert_int_equal(symlinkat("rubbish", d.fd, "L.RVW1fnFwssevtsRHUyk91cfStWyxEvwY.n"), 0);
	/* What an interrupted rmdir left. */
	assert_int_equal(mkdirat(d.fd, ".byokfs.del.0123456789abcdef", 0755), 0);
	assert_int_equal(symlinkat("rubbish", d.fd, ".byokfs.del.0123456789abcdef/.byokfs.d"), 0);
	assert_int_equal(dir_rmdir(&bk.root, "d", 1), 0);
	assert_int_equal(backing_entries_fd(bk.fd), 0);
	(void)close(d.fd);
}

static void rmdir_spares_strangers(void **state)
{
	struct dir d;
	int fd;

	(void)state;
	assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
	d = backing_sub(&bk.root, "d");
	fd = openat(d.fd, "stranger", O_CREAT | O_WRONLY, 0600);
	assert_true(fd >= 0);
	(void)close(fd);
	assert_int_equal(dir_rmdir(&bk.root, "d", 1), -ENOTEMPTY);
	assert_int_equal(faccessat(d.fd, "stranger", F_OK, 0), 0);
	/* A full directory that an interrupted rmdir had renamed is no litter. */
	assert_int_equal(renameat(d.fd, "stranger", d.fd, "x"), 0);
	assert_int_equal(mkdirat(d.fd, ".byokfs.del.0123456789abcdef", 0755), 0);
	assert_int_equal(renameat(d.fd, "x", d.fd, ".byokfs.del.0123456789abcdef/x"), 0);
	assert_int_equal(dir_rmdir(&bk.root, "d", 1), -ENOTEMPTY);
	assert_int_equal(backing_exists(&bk.root, "d"), 0);
	assert_int_equal(faccessat(d.fd, ".byokfs.del.0123456789abcdef/x", F_OK, 0), 0);
	assert_int_equal(faccessat(d.fd, NAME_DIR_FILE, F_OK, AT_SYMLINK_NOFOLLOW), 0);
	(void)close(d.fd);
}

static void *create_all_the_time(void *arg)
{
	struct dir *d = arg;
	char name[24];

	for (int i = 0; i < 200; i++) {
		(void)snprintf(name, sizeof(name), "f%d", i);
		if (backing_create(d, name) || dir_unlink(d, name, strlen(name)))
			break; /* the directory is gone */
	}
	return NULL;
}

/* A create races with rmdir: the directory is whole, or gone; never a name in a directory without id. */
static void rmdir_race(void **state)
{
	(void)state;
	for (int round = 0; round < 10; round++) {
		pthread_t thread;
		uint16_t index;
		uint8_t id[16];
		struct dir d;
		int r;

		assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
		d = backing_sub(&bk.root, "d");
		assert_int_equal(pthread_create(&thread, NULL, create_all_the_time, &d), 0);
		r = dir_rmdir(&bk.root, "d", 1);
		assert_true(r == 0 || r == -ENOTEMPTY);
		assert_int_equal(pthread_join(thread, NULL), 0);
		if (r) {
			assert_int_equal(dir_read_id(d.fd, bk.names, &index, id), 0);
			assert_int_equal(dir_rmdir(&bk.root, "d", 1), 0);
		}
		assert_int_equal(backing_exists(&bk.root, "d"), -ENOENT);
		(void)close(d.fd);
	}
	assert_int_equal(backing_entries_fd(bk.fd), 0);
}

static void tampered_ids(void **state)
{
	char text[NAME_DIR_ID_TEXT + 2];
	uint8_t id[16];
	uint16_t index;
	struct dir d;
	ssize_t n;

	(void)state;
	assert_int_equal(backing_mkdir(&bk.root, "d"), 0);
	d = backing_sub(&bk.root, "d");
	n = readlinkat(d.fd, NAME_DIR_FILE, text, sizeof(text));
	assert_int_equal(n, NAME_DIR_ID_TEXT);
	text[n] = 0;
	for (size_t i = 0; i < NAME_DIR_ID_TEXT; i += 9) {
		char was = text[i];

		text[i] = was == 'A' ? 'B' : 'A';
		assert_int_equal(unlinkat(d.fd, NAME_DIR_FILE, 0), 0);
		assert_int_equal(symlinkat(text, d.fd, NAME_DIR_FILE), 0);
		assert_int_equal(dir_read_id(d.fd, bk.names, &index, id), -EIO);
		text[i] = was;
	}
	text[NAME_DIR_ID_TEXT] = 'A';
	text[NAME_DIR_ID_TEXT + 1] = 0;
	assert_int_equal(unlinkat(d.fd, NAME_DIR_FILE, 0), 0);
	assert_int_equal(dir_read_id(d.fd, bk.names, &index, id), -EIO);
	assert_int_equal(symlinkat(text, d.fd, NAME_DIR_FILE), 0);
	assert_int_equal(dir_read_id(d.fd, bk.names, &index, id), -EIO);
	assert_int_equal(unlinkat(d.fd, NAME_DIR_FILE, 0), 0);
	assert_int_equal(mkdirat(d.fd, NAME_DIR_FILE, 0700), 0);
	assert_int_equal(dir_read_id(d.fd, bk.names, &index, id), -EIO);
	(void)close(d.fd);
}

/* ---- rename */

static uint64_t ino_of(const struct dir *d, const char *name)
{
	struct stat st;

	assert_int_equal(dir_stat(d, name, strlen(name), &st, NULL), 0);
	return st.st_ino;
}

static int ren(const struct dir *a, const char *from, const struct dir *b, const char *to, unsigned flags)
{
	return dir_rename(a, from, strlen(from), b, to, strlen(to), flags);
}

static void rename_files(void **state)
{
	const char *names[] = { "s1", "s2", name_of(255, '1'), name_of(161, '2') };

	(void)state;
	for (int i = 0; i < 4; i++)
		for (int k = 0; k < 4; k++) {
			uint64_t ino, other;

			if (i == k)
				continue;
			assert_int_equal(backing_create(&bk.root, names[i]), 0);
			ino = ino_of(&bk.root, names[i]);
			assert_int_equal(ren(&bk.root, names[i], &bk.root, names[k], 0), 0);
			assert_int_equal(ino_of(&bk.root, names[k]), ino);
			assert_int_equal(backing_exists(&bk.root, names[i]), -ENOENT);
			assert_int_equal(ren(&bk.root, names[k], &bk.root, names[k], 0), 0);
			assert_int_equal(ino_of(&bk.root, names[k]), ino);
			/* Over an existing file, and not. */
			assert_int_equal(backing_create(&bk.root, names[i]), 0);
			other = ino_of(&bk.root, names[i]);
			assert_int_equal(ren(&bk.root, names[i], &bk.root, names[k], RENAME_NOREPLACE), -EEXIST);
			assert_int_equal(ino_of(&bk.root, names[k]), ino);
			assert_int_equal(ino_of(&bk.root, names[i]), other);
			assert_int_equal(ren(&bk.root, names[i], &bk.root, names[k], 0), 0);
			assert_int_equal(ino_of(&bk.root, names[k]), other);
			assert_int_equal(ren(&bk.root, names[k], &bk.root, names[i], RENAME_NOREPLACE), 0);
			assert_int_equal(ino_of(&bk.root, names[i]), other);
			assert_int_equal(dir_unlink(&bk.root, names[i], strlen(names[i])), 0);
			assert_int_equal(ren(&bk.root, names[i], &bk.root, names[k], 0), -ENOENT);
			assert_int_equal(backing_entries_fd(bk.fd), 0);
		}
}

static void rename_exchange(void **state)
{
	const char *names[] = { "s1", "s2", name_of(255, '1'), name_of(161, '2') };

	(void)state;
	for (int i = 0; i < 4; i++)
		for (int k = 0; k < 4; k++) {
			uint64_t a, b;

			if (i == k)
				continue;
			assert_int_equal(backing_create(&bk.root, names[i]), 0);
			assert_int_equal(ren(&bk.root, names[i], &bk.root, names[k], RENAME_EXCHANGE), -ENOENT);
			assert_int_equal(backing_mkdir(&bk.root, names[k]), 0);
			a = ino_of(&bk.root, names[i]);
			b = ino_of(&bk.root, names[k]);
			assert_int_equal(ren(&bk.root, names[i], &bk.root, names[k], RENAME_EXCHANGE), 0);
			assert_int_equal(ino_of(&bk.root, names[i]), b);
			assert_int_equal(ino_of(&bk.root, names[k]), a);
			assert_int_equal(dir_unlink(&bk.root, names[k], strlen(names[k])), 0);
			assert_int_equal(dir_rmdir(&bk.root, names[i], strlen(names[i])), 0);
			assert_int_equal(backing_entries_fd(bk.fd), 0);
		}
	assert_int_equal(ren(&bk.root, "a", &bk.root, "b", 1u << 2), -EINVAL);
	assert_int_equal(ren(&bk.root, "a", &bk.root, "b", RENAME_EXCHANGE | RENAME_NOREPLACE), -EINVAL);
}

static void rename_directories(void **state)
{
	const char *lname = name_of(255, 'D');
	struct dir a, b, t;
	uint64_t ino;

	(void)state;
	assert_int_equal(backing_mkdir(&bk.root, "a"), 0);
	assert_int_equal(backing_mkdir(&bk.root, "b"), 0);
	a = backing_sub(&bk.root, "a");
	b = backing_sub(&bk.root, "b");
	assert_int_equal(backing_mkdir(&a, "x"), 0);
	ino = ino_of(&a, "x");
	assert_int_equal(ren(&a, "x", &b, lname, 0), 0);
	assert_int_equal(ino_of(&b, lname), ino);
	assert_int_equal(backing_entries_fd(a.fd), 0);
	/* Over an empty directory. */
	assert_int_equal(backing_mkdir(&a, "y"), 0);
	assert_int_equal(ren(&b, lname, &a, "y", RENAME_NOREPLACE), -EEXIST);
	assert_int_equal(ren(&b, lname, &a, "y", 0), 0);
	assert_int_equal(ino_of(&a, "y"), ino);
	assert_int_equal(backing_exists(&b, lname), -ENOENT);
	assert_int_equal(backing_entries_fd(a.fd), 1);
	assert_int_equal(backing_entries_fd(b.fd), 0);
	/* Over a full one; the contents stay where they were. */
	t = backing_sub(&a, "y");
	assert_int_equal(backing_create(&t, "inside"), 0);
	assert_int_equal(backing_mkdir(&b, "z"), 0);
	assert_int_equal(ren(&b, "z", &a, "y", 0), -ENOTEMPTY);
	assert_int_equal(ino_of(&a, "y"), ino);
	assert_int_equal(backing_exists(&t, "inside"), 0);
	assert_int_equal(backing_exists(&b, "z"), 0);
	/* The other way round, the full one over the empty one. */
	assert_int_equal(ren(&a, "y", &b, "z", 0), 0);
	assert_int_equal(ino_of(&b, "z"), ino);
	assert_int_equal(backing_entries_fd(a.fd), 0);
	/* Into itself, over a parent, across types. */
	assert_int_equal(ren(&bk.root, "b", &t, "loop", 0), -EINVAL);
	assert_int_equal(ren(&bk.root, "b", &t, "loop", RENAME_NOREPLACE), -EINVAL);
	assert_int_equal(backing_mkdir(&t, "deep"), 0);
	assert_int_equal(ren(&t, "deep", &bk.root, "b", 0), -ENOTEMPTY);
	assert_int_equal(backing_create(&bk.root, "file"), 0);
	assert_int_equal(ren(&bk.root, "file", &bk.root, "a", 0), -EISDIR);
	assert_int_equal(ren(&bk.root, "a", &bk.root, "file", 0), -ENOTDIR);
	assert_int_equal(ren(&bk.root, "a", &bk.root, "a", 0), 0);
	assert_int_equal(backing_entries_fd(bk.fd), 3);
	(void)close(a.fd);
	(void)close(b.fd);
	(void)close(t.fd);
}

/* ---- the root of a nested domain */

static int plant_as(const struct dir_root *root, const char *name, int *old, char *kept)
{
	struct dir_root r = *root;
	struct stat st = { 0 };

	if (dir_stat(&bk.root, name, strlen(name), &st, NULL) == 0) {
		r.dev = st.st_dev;
		r.ino = st.st_ino;
	}
	return dir_plant(&bk.root, name, strlen(name), &r, old, kept);
}

static int dressed(void *arg, int old_fd, int new_fd)
{
	int *answer = arg;
	struct stat a, b;

	assert_int_equal(fstat(old_fd, &a), 0);
	assert_int_equal(fstat(new_fd, &b), 0);
	assert_true(S_ISDIR(a.st_mode) && S_ISDIR(b.st_mode) && a.st_ino != b.st_ino);
	return *answer;
}

static void plant(void **state)
{
	char kept[NAME_MAX_PLAIN + 1];
	int answer = -ENOSPC, old = -1;
	struct dir_root r = { .names = bk.names, .domain_index = 5, .dress = dressed, .arg = &answer };
	struct dir d, in;
	struct stat before, after;
	uint8_t id[16];
	uint16_t index;

	(void)state;
	memset(r.id, 0x77, sizeof(r.id));
	assert_int_equal(dir_mkdir(&bk.root, "vault", 5, 01750, &nobody, 0, &before), 0);
	assert_int_equal(backing_create(&bk.root, "file"), 0);
	assert_int_equal(plant_as(&r, "absent", &old, kept), -ENOENT);
	assert_int_equal(plant_as(&r, "file", &old, kept), -ENOTDIR);
	assert_int_equal(dir_is_empty(&bk.root, "file", 4), -ENOTDIR);
	d = backing_sub(&bk.root, "vault");
	assert_int_equal(backing_create(&d, "inside"), 0);
	assert_int_equal(dir_is_empty(&bk.root, "vault", 5), -ENOTEMPTY);
	assert_int_equal(plant_as(&r, "vault", &old, kept), -ENOTEMPTY);
	assert_int_equal(dir_unlink(&d, "inside", 6), 0);
	assert_int_equal(dir_is_empty(&bk.root, "vault", 5), 0);
	/* What cannot be dressed leaves everything as it was, without litter. */
	assert_int_equal(plant_as(&r, "vault", &old, kept), -ENOSPC);
	assert_int_equal(backing_entries_fd(bk.fd), 2);
	in = backing_sub(&bk.root, "vault");
	assert_memory_equal(in.id, d.id, 16);
	(void)close(in.fd);
	answer = 0;
	assert_int_equal(fstat(d.fd, &before), 0);
	assert_int_equal(plant_as(&r, "vault", &old, kept), 0);
	assert_int_equal(dir_stat(&bk.root, "vault", 5, &after, NULL), 0);
	assert_true(after.st_ino != before.st_ino && after.st_mode == before.st_mode);
	assert_true(after.st_mtim.tv_sec == before.st_mtim.tv_sec && after.st_mtim.tv_nsec == before.st_mtim.tv_nsec);
	in = backing_sub(&bk.root, "vault");
	assert_int_equal(dir_read_id(in.fd, bk.names, &index, id), 0);
	assert_int_equal(index, 5);
	assert_memory_equal(id, r.id, 16);
	assert_int_equal(dir_peek_id(in.fd, &index, id), 0);
	assert_int_equal(index, 5);
	assert_int_equal(backing_entries_fd(bk.fd), 2);
	/* Whoever had the old one open has a removed directory. */
	assert_int_equal(fstat(old, &after), 0);
	assert_int_equal(after.st_ino, before.st_ino);
	assert_int_equal(backing_create(&d, "late"), -ENOENT);
	(void)close(old);
	(void)close(in.fd);
	(void)close(d.fd);
}

/* The name leads to another directory by now. */
static void plant_takes_no_other(void **state)
{
	struct dir_root r = { .names = bk.names, .domain_index = 5, .id = { 0x55 } };
	char kept[NAME_MAX_PLAIN + 1];
	struct stat meant, other, st;
	int old = -1;

	(void)state;
	assert_int_equal(dir_mkdir(&bk.root, "vault", 5, 0755, &nobody, 0, &meant), 0);
	assert_int_equal(dir_rename(&bk.root, "vault", 5, &bk.root, "moved", 5, 0), 0);
	assert_int_equal(dir_mkdir(&bk.root, "vault", 5, 0700, &nobody, 0, &other), 0);
	r.dev = meant.st_dev;
	r.ino = meant.st_ino;
	assert_int_equal(dir_plant(&bk.root, "vault", 5, &r, &old, kept), -ESTALE);
	assert_int_equal(old, -1);
	assert_int_equal(dir_stat(&bk.root, "vault", 5, &st, NULL), 0);
	assert_int_equal(st.st_ino, other.st_ino);
	assert_int_equal(backing_entries_fd(bk.fd), 2);
}

/* What looks empty but cannot be taken apart stays in its place, whole. */
static void plant_of_what_stays(void **state)
{
	struct dir_root r = { .names = bk.names, .domain_index = 5, .id = { 0x55 } };
	char kept[NAME_MAX_PLAIN + 1];
	struct stat before, after;
	struct dir d, again;
	int old = -1;

	(void)state;
	assert_int_equal(dir_mkdir(&bk.root, "vault", 5, 0755, &nobody, 0, &before), 0);
	d = backing_sub(&bk.root, "vault");
	assert_int_equal(mkdirat(d.fd, ".byokfs.tmp.0123456789abcdef", 0700), 0);
	assert_int_equal(mkdirat(d.fd, ".byokfs.tmp.0123456789abcdef/full", 0700), 0);
	assert_int_equal(plant_as(&r, "vault", &old, kept), -ENOTEMPTY);
	assert_int_equal(old, -1);
	assert_int_equal(strlen(kept), 0);
	assert_int_equal(dir_stat(&bk.root, "vault", 5, &after, NULL), 0);
	assert_int_equal(after.st_ino, before.st_ino);
	again = backing_sub(&bk.root, "vault");
	assert_memory_equal(again.id, d.id, 16);
	assert_int_equal(backing_create(&again, "late"), 0);
	assert_int_equal(backing_entries_fd(bk.fd), 1);
	(void)close(again.fd);
	(void)close(d.fd);
}

/* Both directories are used while they change places. */
static int used(void *arg, int old_fd, int new_fd)
{
	struct dir_root *root = arg;
	struct dir d = { .fd = old_fd, .names = bk.names }, n = { .fd = new_fd, .names = bk.names };
	uint16_t index;

	memcpy(n.id, root->id, sizeof(n.id));
	assert_int_equal(dir_read_id(old_fd, bk.names, &index, d.id), 0);
	assert_int_equal(backing_create(&d, "in the old"), 0);
	assert_int_equal(backing_create(&n, "in the new"), 0);
	return 0;
}

static void plant_keeps_both(void **state)
{
	struct dir_root r = { .names = bk.names, .domain_index = 5, .id = { 0x55 }, .dress = used };
	static char name[NAME_MAX_PLAIN - 14], kept[NAME_MAX_PLAIN + 1];
	struct stat before, after;
	struct dir d;
	int old = -1;

	(void)state;
	for (int i = 0; i < 2; i++) { /* a short name, then one that leaves no room */
		(void)snprintf(name, sizeof(name), "%s", "vault");
		if (i)
			memset(name, 'n', sizeof(name) - 1);
		r.arg = &r;
		r.id[1] = (uint8_t)i;
		assert_int_equal(dir_mkdir(&bk.root, name, strlen(name), 0755, &nobody, 0, &before), 0);
		assert_int_equal(plant_as(&r, name, &old, kept), -ENOTEMPTY);
		assert_int_equal(old, -1);
		assert_non_null(strstr(kept, ".kept-"));
		assert_int_equal(dir_stat(&bk.root, name, strlen(name), &after, NULL), 0);
		assert_int_equal(after.st_ino, before.st_ino);
		d = backing_sub(&bk.root, name);
		assert_int_equal(dir_stat(&d, "in the old", 10, &after, NULL), 0);
		(void)close(d.fd);
		d = backing_sub(&bk.root, kept);
		assert_memory_equal(d.id, r.id, 16);
		assert_int_equal(dir_stat(&d, "in the new", 10, &after, NULL), 0);
		(void)close(d.fd);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(mkdir_rmdir),
		TEST(modes_of_directories),
		TEST(rmdir_of_litter),
		TEST(rmdir_spares_strangers),
		TEST(rmdir_race),
		TEST(tampered_ids),
		TEST(rename_files),
		TEST(rename_exchange),
		TEST(rename_directories),
		TEST(plant),
		TEST(plant_takes_no_other),
		TEST(plant_of_what_stays),
		TEST(plant_keeps_both),
		POOR(plant),
		POOR(plant_takes_no_other),
		POOR(plant_of_what_stays),
		POOR(plant_keeps_both),
		POOR(mkdir_rmdir),
		POOR(rmdir_race),
		POOR(rename_files),
		POOR(rename_directories),
		{ "siv32: rename_files", rename_files, setup_siv32, teardown, NULL },
		{ "plain: rename_directories", rename_directories, setup_plain, teardown, NULL },
	};

	return cmocka_run_group_tests_name("dir_ops", tests, backing_main_setup, NULL);
}
