/* acl.h: inheritance and chmod against results worked out by hand from IEEE 1003.1e draft 17. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "acl.h"
#include "bytes.h"

enum { USER_OBJ = 1, USER = 2, GROUP_OBJ = 4, GROUP = 8, MASK = 16, OTHER = 32 };

struct entry {
	uint16_t tag, perm;
	uint32_t id;
};

static size_t make(uint8_t *out, const struct entry *e, size_t n)
{
	le32_put(out, 2);
	for (size_t i = 0; i < n; i++) {
		le16_put(out + 4 + 8 * i, e[i].tag);
		le16_put(out + 6 + 8 * i, e[i].perm);
		le32_put(out + 8 + 8 * i, e[i].id);
	}
	return 4 + 8 * n;
}

static const struct entry base[] = { { USER_OBJ, 7, ~0u }, { GROUP_OBJ, 5, ~0u }, { OTHER, 0, ~0u } };
static const struct entry named[] = { { USER_OBJ, 7, ~0u }, { USER, 7, 1000 }, { GROUP_OBJ, 5, ~0u }, { GROUP, 6, 50 },
	{ MASK, 7, ~0u }, { OTHER, 1, ~0u } };

static uint16_t perm(const uint8_t *acl, size_t i)
{
	return le16_get(acl + 6 + 8 * i);
}

static void inherits_base_entries_only(void **state)
{
	uint8_t acl[200];
	size_t n = make(acl, base, 3);
	mode_t mode = 0100666;
	bool minimal = false;

	(void)state;
	assert_int_equal(acl_inherit(acl, n, &mode, &minimal), 0);
	assert_true(minimal);
	assert_int_equal(mode, 0100640);
}

static void inherits_through_the_mask(void **state)
{
	uint8_t acl[200];
	size_t n = make(acl, named, 6);
	mode_t mode = 0100644;
	bool minimal = true;

	(void)state;
	assert_int_equal(acl_inherit(acl, n, &mode, &minimal), 0);
	assert_false(minimal);
	assert_int_equal(mode, 0100640);
	assert_int_equal(perm(acl, 0), 6); /* user: rwx & rw- */
	assert_int_equal(perm(acl, 1), 7); /* named user untouched: the mask limits it */
	assert_int_equal(perm(acl, 2), 5); /* owning group untouched when there is a mask */
	assert_int_equal(perm(acl, 4), 4); /* mask: rwx & r-- */
	assert_int_equal(perm(acl, 5), 0); /* other: --x & r-- */
}

static void mode_of_an_acl(void **state)
{
	uint8_t acl[200];
	mode_t mode;
	bool minimal;

	(void)state;
	assert_int_equal(acl_mode(acl, make(acl, base, 3), &mode, &minimal), 0);
	assert_int_equal(mode, 0750);
	assert_true(minimal);
	assert_int_equal(acl_mode(acl, make(acl, named, 6), &mode, &minimal), 0);
	assert_int_equal(mode, 0771);
	assert_false(minimal);
}

static void chmod_moves_the_mask(void **state)
{
	uint8_t acl[200];
	size_t n = make(acl, named, 6);

	(void)state;
	assert_int_equal(acl_chmod(acl, n, 0604), 0);
	assert_int_equal(perm(acl, 0), 6);
	assert_int_equal(perm(acl, 2), 5);
	assert_int_equal(perm(acl, 4), 0);
	assert_int_equal(perm(acl, 5), 4);
}

static void refuses_malformed(void **state)
{
	static const struct entry two_users[] = { { USER_OBJ, 7, 0 }, { USER_OBJ, 7, 0 }, { GROUP_OBJ, 5, 0 },
		{ OTHER, 0, 0 } };
	static const struct entry no_mask[] = { { USER_OBJ, 7, 0 }, { USER, 7, 5 }, { GROUP_OBJ, 5, 0 },
		{ OTHER, 0, 0 } };
	static const struct entry odd_tag[] = { { USER_OBJ, 7, 0 }, { GROUP_OBJ, 5, 0 }, { OTHER, 0, 0 }, { 3, 0, 0 } };
	uint8_t acl[ACL_BYTES_MAX + 8] = { 0 };
	size_t n = make(acl, base, 3);

	(void)state;
	assert_int_equal(acl_check(acl, n), 0);
	for (size_t cut = 0; cut < n; cut++)
		assert_int_equal(acl_check(acl, cut), -EINVAL);
	acl[0] = 1;
	assert_int_equal(acl_check(acl, n), -EINVAL);
	assert_int_equal(acl_check(acl, make(acl, two_users, 4)), -EINVAL);
	assert_int_equal(acl_check(acl, make(acl, no_mask, 4)), -EINVAL);
	assert_int_equal(acl_check(acl, make(acl, odd_tag, 4)), -EINVAL);
	assert_int_equal(acl_check(acl, sizeof(acl)), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(inherits_base_entries_only),
		cmocka_unit_test(inherits_through_the_mask),
		cmocka_unit_test(mode_of_an_acl),
		cmocka_unit_test(chmod_moves_the_mask),
		cmocka_unit_test(refuses_malformed),
	};

	return cmocka_run_group_tests_name("acl", tests, NULL, NULL);
}
