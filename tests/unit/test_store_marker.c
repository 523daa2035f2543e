/* Markers of mounts that never came back, and which sizes they put in doubt. */
#include "store_fixture.h"

static struct stat at(const struct timespec *t, int64_t seconds)
{
	struct stat st = { .st_mode = S_IFREG };

	st.st_ctim = *t;
	st.st_ctim.tv_sec += seconds;
	return st;
}

static void clean_mounts_leave_nothing(void **state)
{
	struct store *s = mounted(&rw);
	struct stat st = at(&s->start, 0);

	(void)state;
	assert_false(store_in_doubt(s, &st));
	assert_int_equal(access(in_store("mounts"), F_OK), 0);
	unmounted(s, true);
	s = mounted(&rw);
	assert_false(store_in_doubt(s, &st));
	unmounted(s, true);
}

static void stale_markers(void **state)
{
	struct store *s = mounted(&rw);
	struct timespec first = s->start;
	struct stat st;

	(void)state;
	unmounted(s, false);
	assert_int_equal(count(in_store("mounts")), 1);
	spew(in_store("mounts/.byokfs.tmp.0123456789abcdef"), "", 0);
	s = mounted(&rw);
	assert_int_equal(count(in_store("mounts")), 2);
	st = at(&first, 0);
	assert_true(store_in_doubt(s, &st));
	st = at(&first, -60);
	assert_true(store_in_doubt(s, &st));
	st = at(&first, -61);
	assert_false(store_in_doubt(s, &st));
	st = at(&s->start, 0);
	assert_true(store_in_doubt(s, &st));
	st = at(&s->start, 1);
	assert_false(store_in_doubt(s, &st));
	/* Closed before every file was visited: the old marker stays, ours goes. */
	unmounted(s, true);
	assert_int_equal(count(in_store("mounts")), 1);
	s = mounted(&rw);
	st = at(&first, -60);
	assert_true(store_in_doubt(s, &st));
	store_doubt_done(s);
	assert_false(store_in_doubt(s, &st));
	assert_int_equal(count(in_store("mounts")), 1);
	unmounted(s, true);
	assert_int_equal(count(in_store("mounts")), 0);
}

static void readers_see_live_mounts(void **state)
{
	struct store *s = mounted(&rw), *reader = mounted(&ro);
	struct stat st = at(&s->start, 1000000);

	(void)state;
	assert_true(store_in_doubt(reader, &st));
	store_doubt_done(reader);
	assert_true(store_in_doubt(reader, &st));
	st = at(&s->start, -61);
	assert_false(store_in_doubt(reader, &st));
	unmounted(reader, true);
	unmounted(s, true);
	reader = mounted(&ro);
	st = at(&st.st_ctim, 61);
	assert_false(store_in_doubt(reader, &st));
	unmounted(reader, true);
}

/* Under another lock file the first mount would not be noticed; its marker's lock is. */
static void live_marker_stops_a_writer(void **state)
{
	struct store *s = mounted(&rw), *second = new_store();

	(void)state;
	assert_int_equal(unlink(in_store("lock")), 0);
	assert_int_equal(store_open(second, path, &rw, why), 0);
	assert_int_equal(store_authenticate(second, &bk.keys, bk.names, why), 0);
	assert_int_equal(store_mark(second, why), -EBUSY);
	store_close(second, false);
	free(second);
	assert_int_equal(count(in_store("mounts")), 1);
	unmounted(s, true);
}

static void copied_and_damaged_markers(void **state)
{
	static const char *const garbage[] = { "", "byokfs-mount 1\n", "byokfs-mount 2\nsum=00\n" };
	struct stat st = { .st_mode = S_IFREG };
	char copy[] = "mounts/000102030405060708090a0b0c0d0e0f";
	struct store *s = mounted(&rw);
	char name[64], *text;
	size_t len;

	(void)state;
	/* cp -a of a live store: the marker has another inode number. */
	(void)snprintf(name, sizeof(name), "mounts/%s", s->marker);
	text = slurp(in_store(name), &len);
	assert_non_null(strstr(text, "mode=rw\n"));
	spew(in_store(copy), text, len); /* while the number of the original is taken */
	unmounted(s, true);
	for (int i = -1; i < 3; i++) {
		if (i >= 0)
			spew(in_store(copy), garbage[i], strlen(garbage[i]));
		s = mounted(&rw);
		assert_true(store_in_doubt(s, &st)); /* ctime 0: everything */
		store_doubt_done(s);
		assert_false(store_in_doubt(s, &st));
		unmounted(s, true);
		assert_int_equal(count(in_store("mounts")), 0);
	}
	free(text);
	assert_int_equal(mkfifo(in_store(copy), 0600), 0);
	s = mounted(&rw);
	assert_true(store_in_doubt(s, &st));
	unmounted(s, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(clean_mounts_leave_nothing),
		TEST(stale_markers),
		TEST(readers_see_live_mounts),
		TEST(live_marker_stops_a_writer),
		TEST(copied_and_damaged_markers),
	};

	return cmocka_run_group_tests_name("store_marker", tests, backing_main_setup, NULL);
}
