/* test_keytab.c — counting seals by key and key material, and the question whether a key is needed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../tools/keytab.c"

#define KEY_A "arn:aws:kms:us-east-1:111122223333:key/aaaaaaaa-0000-0000-0000-000000000000"
#define KEY_B "arn:aws:kms:us-east-1:111122223333:key/bbbbbbbb-0000-0000-0000-000000000000"
#define MRK_1 "arn:aws:kms:us-east-1:111122223333:key/mrk-00000000000000000000000000000001"
#define MRK_2 "arn:aws:kms:eu-west-1:111122223333:key/mrk-00000000000000000000000000000001"
#define MRK_3 "arn:aws:kms:eu-west-1:111122223333:key/mrk-00000000000000000000000000000002"

static int setup(void **state)
{
	struct keytab *t = calloc(1, sizeof(*t));

	*state = t;
	return t ? keytab_init(t) : -1;
}

static int teardown(void **state)
{
	keytab_free(*state);
	free(*state);
	return 0;
}

static struct header_slot file_slot(const char *key, unsigned material, int64_t sealed)
{
	struct header_slot s = { .seq = 1, .wrap = HEADER_WRAP_KMS, .provider = 1, .sealed_at = sealed };

	kms_key_hash(s.key_hash, key);
	le32_put(s.material, material);
	return s;
}

static void add_file(struct keytab *t, const char *key, unsigned material, int64_t sealed, bool ruling)
{
	struct header_slot s = file_slot(key, material, sealed);

	assert_int_equal(
	    keytab_file(t, &s, ruling ? KEYTAB_RULING : KEYTAB_SUPERSEDED, "dir", key + strlen(key) - 4), 0);
}

static void add_domain(struct keytab *t, const char *key, unsigned material, bool ruling)
{
	struct descriptor_slot *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->provider = 1;
	(void)snprintf(s->key, sizeof(s->key), "%s", key);
	le32_put(s->material, material);
	assert_int_equal(keytab_domain(t, s, ruling), 0);
	free(s);
}

static struct keytab_need need(const struct keytab *t, const char *key)
{
	struct keytab_need n;

	keytab_need(t, key, &n);
	return n;
}

static void seals_are_counted_by_key_and_material(void **state)
{
	struct keytab *t = *state;

	add_domain(t, KEY_A, 7, true);
	add_file(t, KEY_A, 7, 100, true);
	add_file(t, KEY_A, 7, 50, true);
	add_file(t, KEY_A, 8, 70, true);
	add_file(t, KEY_A, 8, 60, false);
	add_file(t, KEY_B, 7, 10, true);
	assert_int_equal(keytab_sort(t), 0);
	assert_int_equal(t->n, 3);
	assert_string_equal(t->row[0].name, KEY_A); /* known from the descriptor, for both materials */
	assert_string_equal(t->row[1].name, KEY_A);
	assert_null(t->row[2].name);
	assert_true(keytab_same(&t->row[0], &t->row[1]));
	assert_false(keytab_same(&t->row[1], &t->row[2]));
	assert_int_equal(t->row[0].file[KEYTAB_RULING].n, 2);
	assert_int_equal(t->row[0].file[KEYTAB_RULING].oldest, 50);
	assert_int_equal(t->row[0].file[KEYTAB_RULING].newest, 100);
	assert_int_equal(t->row[0].domains, 1);
	assert_int_equal(t->row[1].file[KEYTAB_RULING].n, 1);
	assert_int_equal(t->row[1].file[KEYTAB_SUPERSEDED].n, 1);
	assert_int_equal(t->row[1].file[KEYTAB_SUPERSEDED].oldest, 60);
	assert_string_equal(t->row[0].example, "dir/0000");
}

static void the_administrator_names_hashes(void **state)
{
	struct keytab *t = *state;

	add_file(t, KEY_A, 1, 1, true);
	add_file(t, KEY_A, 2, 1, true);
	add_file(t, KEY_B, 1, 1, true);
	assert_int_equal(keytab_name(t, KEY_A), 0);
	assert_int_equal(keytab_name(t, "arn:of:nothing"), 0);
	assert_int_equal(keytab_sort(t), 0);
	assert_string_equal(t->row[0].name, KEY_A);
	assert_string_equal(t->row[1].name, KEY_A);
	assert_null(t->row[2].name);
}

static void a_key_is_needed_by_what_rules_and_by_any_descriptor(void **state)
{
	struct keytab *t = *state;

	add_file(t, KEY_A, 1, 1, false);
	assert_int_equal(need(t, KEY_A).files, 0);
	assert_int_equal(need(t, KEY_A).domains, 0);
	assert_int_equal(need(t, KEY_A).superseded, 1);
	add_domain(t, KEY_A, 1, false); /* the slot a rotation leaves */
	assert_int_equal(need(t, KEY_A).domains, 1);
	assert_int_equal(need(t, KEY_B).domains + need(t, KEY_B).files + need(t, KEY_B).maybe, 0);
	add_file(t, KEY_B, 1, 1, true);
	assert_int_equal(need(t, KEY_B).files, 1);
	assert_string_equal(need(t, KEY_B).example, "dir/0000");
	add_domain(t, KEY_B, 9, true); /* the same key, other material */
	assert_int_equal(need(t, KEY_B).domains, 1);
}

static void the_provider_does_not_part_equal_names(void **state)
{
	struct keytab *t = *state;
	struct header_slot s = file_slot(KEY_A, 1, 1);

	s.provider = 2;
	assert_int_equal(keytab_file(t, &s, KEYTAB_ASIDE, ".", "f"), 0);
	assert_int_equal(need(t, KEY_A).files, 1);
	assert_string_equal(need(t, KEY_A).example, "f");
}

static void siblings_in_other_regions_are_the_same_key(void **state)
{
	struct keytab *t = *state;

	add_domain(t, MRK_1, 1, true);
	assert_int_equal(need(t, MRK_2).domains, 1);
	assert_int_equal(need(t, MRK_3).domains, 0);
	add_file(t, MRK_2, 1, 1, true); /* by its hash alone nobody can tell whose Region */
	assert_int_equal(need(t, MRK_1).files, 0);
	assert_int_equal(need(t, MRK_1).maybe, 1);
	assert_int_equal(need(t, MRK_3).maybe, 1);
	assert_int_equal(need(t, KEY_A).maybe, 0);
	assert_int_equal(keytab_name(t, MRK_2), 0);
	assert_int_equal(need(t, MRK_1).files, 1);
	assert_int_equal(need(t, MRK_3).maybe, 0);
}

/* The format allows a slot that does not say under which key it was sealed. */
static void a_slot_that_names_no_key_keeps_every_answer_from_being_no(void **state)
{
	struct keytab *t = *state;
	struct header_slot s = file_slot(KEY_A, 1, 1);

	memset(s.key_hash, 0, sizeof(s.key_hash));
	assert_int_equal(keytab_file(t, &s, KEYTAB_SUPERSEDED, "dir", "a"), 0);
	assert_int_equal(need(t, KEY_A).maybe, 0);
	assert_int_equal(keytab_file(t, &s, KEYTAB_RULING, "dir", "b"), 0);
	assert_int_equal(need(t, KEY_A).maybe, 1);
	assert_int_equal(need(t, MRK_1).maybe, 1);
	assert_int_equal(need(t, KEY_A).files, 0);
}

static void what_finds_no_room_keeps_every_answer_from_being_no(void **state)
{
	struct keytab *t = *state;

	for (unsigned i = 0; i < KEYTAB_ROWS; i++)
		add_file(t, KEY_A, i, 1, true);
	assert_int_equal(t->n, KEYTAB_ROWS);
	assert_int_equal(need(t, KEY_B).maybe, 0);
	add_file(t, KEY_B, 1, 33, true);
	add_file(t, KEY_B, 1, 34, false);
	add_file(t, KEY_A, 5, 1, true); /* has its row */
	assert_int_equal(t->n, KEYTAB_ROWS);
	assert_int_equal(t->others.n, 1);
	assert_int_equal(t->others.oldest, 33);
	assert_int_equal(need(t, KEY_B).files, 0);
	assert_int_equal(need(t, KEY_B).maybe, 1);
	add_domain(t, KEY_B, 1, true);
	assert_int_equal(need(t, KEY_B).maybe, 2);
	assert_int_equal(need(t, KEY_A).files, KEYTAB_ROWS + 1);
}

static void paths_are_joined(void **state)
{
	static const struct {
		const char *dir, *name, *path;
	} cases[] = { { ".", "a", "a" }, { "d/e", "a", "d/e/a" }, { "d", "", "d" }, { ".", "", "" } };

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *path = keytab_path(cases[i].dir, cases[i].name);

		assert_string_equal(path, cases[i].path);
		free(path);
	}
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	static const struct CMUnitTest tests[] = {
		T(seals_are_counted_by_key_and_material),
		T(the_administrator_names_hashes),
		T(a_key_is_needed_by_what_rules_and_by_any_descriptor),
		T(the_provider_does_not_part_equal_names),
		T(siblings_in_other_regions_are_the_same_key),
		T(a_slot_that_names_no_key_keeps_every_answer_from_being_no),
		T(what_finds_no_room_keeps_every_answer_from_being_no),
		T(paths_are_joined),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
