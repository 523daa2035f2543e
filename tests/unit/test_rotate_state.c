/* How far a descriptor is on the way to a key. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "../../tools/rotate_state.c"

/* Siblings of one key differ in their first letter only. */
static bool same(const void *arg, const char *a, const char *b)
{
	(void)arg;
	return strcmp(a + 1, b + 1) == 0;
}

/* Keys of slots a and b, and their seqs; seq 0: empty. */
static struct descriptor_domain *made(const char *a, uint64_t seq_a, const char *b, uint64_t seq_b)
{
	static struct descriptor_domain d;

	memset(&d, 0, sizeof(d));
	(void)snprintf(d.slot[0].key, sizeof(d.slot[0].key), "%s", a);
	(void)snprintf(d.slot[1].key, sizeof(d.slot[1].key), "%s", b);
	d.slot[0].seq = seq_a;
	d.slot[1].seq = seq_b;
	return &d;
}

static void every_state(void **state)
{
	static const struct {
		const char *a;
		uint64_t seq_a;
		const char *b;
		uint64_t seq_b;
		const char *to;
		bool same_key;
		enum rotate_state want;
		const char *left;
	} cases[] = {
		{ "x1", 1, "", 0, "x2", false, ROTATE_FRESH, "x1" },
		{ "x1", 1, "", 0, "x1", false, ROTATE_NOTHING, "x1" },
		{ "x1", 1, "", 0, "y1", false, ROTATE_NOTHING, "x1" }, /* a sibling */
		{ "x1", 1, "", 0, "x1", true, ROTATE_FRESH, "x1" },
		{ "", 0, "x1", 7, "x2", false, ROTATE_FRESH, "x1" },
		{ "x1", 1, "x2", 2, "x2", false, ROTATE_RESUME, "x1" },
		{ "x2", 3, "x1", 2, "x2", false, ROTATE_RESUME, "x1" },
		{ "x1", 1, "x2", 2, "y1", false, ROTATE_BACK, "x2" },
		{ "x1", 1, "x2", 2, "x3", false, ROTATE_THIRD, "x2" },
		{ "x1", 1, "x1", 2, "x1", true, ROTATE_RESUME, "x1" },
		{ "x1", 1, "x1", 2, "x1", false, ROTATE_RESUME, "x1" }, /* begun by --same-key */
		{ "x1", 1, "x1", 2, "x2", false, ROTATE_THIRD, "x1" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct descriptor_domain *d = made(cases[i].a, cases[i].seq_a, cases[i].b, cases[i].seq_b);
		enum rotate_state got = rotate_state_of(d, same, NULL, cases[i].to, cases[i].same_key);

		assert_int_equal(got, cases[i].want);
		assert_string_equal(rotate_left_key(d, got), cases[i].left);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(every_state) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
