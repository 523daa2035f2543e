/* Several mounts of one store that say they share it: who keeps whom out, what is in doubt, what may not be changed. */
#include "store_fixture.h"

static const struct store_options shared = { .shared = true, .torn_ok = true };
static const struct store_options shared_ro = { .shared = true, .readonly = true, .torn_ok = true };

static struct stat at(const struct timespec *t, int64_t seconds)
{
	struct stat st = { .st_mode = S_IFREG };

	st.st_ctim = *t;
	st.st_ctim.tv_sec += seconds;
	return st;
}

static void who_keeps_whom_out(void **state)
{
	struct store *a = mounted(&shared), *b = mounted(&shared);

	(void)state;
	assert_int_equal(count(in_store("mounts")), 2);
	assert_int_equal(open_only(&rw), -EBUSY);
	assert_non_null(strstr(why, "mounted shared"));
	assert_int_equal(open_only(&ro), 0);
	unmounted(a, true);
	assert_int_equal(open_only(&rw), -EBUSY);
	unmounted(b, true);
	assert_int_equal(count(in_store("mounts")), 0);
	a = mounted(&rw);
	assert_int_equal(open_only(&shared), -EBUSY);
	assert_non_null(strstr(why, "without 'shared'"));
	unmounted(a, true);
	assert_int_equal(open_only(&shared), 0);
}

static void markers_say_so(void **state)
{
	struct store *a = mounted(&shared);
	char *text;
	char name[80];
	size_t len;

	(void)state;
	(void)snprintf(name, sizeof(name), "mounts/%s", a->marker);
	text = slurp(in_store(name), &len);
	assert_non_null(strstr(text, "mode=shared\n"));
	free(text);
	unmounted(a, true);
}

/* Others may come at any time, so what was changed lately stays in doubt. */
static void recent_files_are_in_doubt(void **state)
{
	struct store *a = mounted(&shared);
	struct stat recent = at(&a->start, 1000000), old = at(&a->start, -61);

	(void)state;
	assert_true(store_in_doubt(a, &recent));
	assert_false(store_in_doubt(a, &old));
	assert_false(store_wants_sweep(a));
	store_doubt_done(a);
	assert_true(store_in_doubt(a, &recent));
	unmounted(a, true);
	a = mounted(&shared_ro);
	assert_true(store_in_doubt(a, &old)); /* without a clock of the backing's */
	unmounted(a, true);
}

/* A mount answers for those who were dead when it came, not for those who die while it looks around. */
static void only_the_dead_are_answered_for(void **state)
{
	struct store *dead = mounted(&shared), *dying = mounted(&shared), *a;

	(void)state;
	assert_false(store_wants_sweep(dying));
	unmounted(dead, false);
	a = mounted(&shared);
	assert_true(store_wants_sweep(a));
	unmounted(dying, false);
	assert_int_equal(count(in_store("mounts")), 3);
	store_doubt_done(a);
	assert_false(store_wants_sweep(a));
	assert_int_equal(count(in_store("mounts")), 2);
	unmounted(a, true);
	a = mounted(&rw); /* an exclusive one answers for the rest */
	assert_true(store_wants_sweep(a));
	store_doubt_done(a);
	unmounted(a, true);
	assert_int_equal(count(in_store("mounts")), 0);
}

static void nothing_is_changed(void **state)
{
	struct store *a = mounted(&shared);
	uint64_t seq = a->desc.seq;

	(void)state;
	assert_int_equal(store_put_domain(a, &a->domain, why), -EOPNOTSUPP);
	assert_non_null(strstr(why, "mounted shared"));
	assert_int_equal(store_add_domain(a, &a->domain, &bk.keys, bk.root.id, &bk.keys, why), -EOPNOTSUPP);
	assert_int_equal(store_drop_domain(a, a->ids.domain, &bk.keys, why), -EOPNOTSUPP);
	assert_int_equal(a->desc.seq, seq);
	unmounted(a, true);
}

/* A lost copy is restored by whoever comes, also beside another. */
static void copies_are_restored(void **state)
{
	struct store *a = mounted(&shared), *b;

	(void)state;
	assert_int_equal(unlink(in_store("store~")), 0);
	b = mounted(&shared);
	assert_int_equal(access(in_store("store~"), F_OK), 0);
	unmounted(b, true);
	unmounted(a, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(who_keeps_whom_out, setup_created, teardown),
		cmocka_unit_test_setup_teardown(markers_say_so, setup_created, teardown),
		cmocka_unit_test_setup_teardown(recent_files_are_in_doubt, setup_created, teardown),
		cmocka_unit_test_setup_teardown(only_the_dead_are_answered_for, setup_created, teardown),
		cmocka_unit_test_setup_teardown(nothing_is_changed, setup_created, teardown),
		cmocka_unit_test_setup_teardown(copies_are_restored, setup_created, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
