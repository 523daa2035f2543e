/* The physical map and the size hint: byokfs-format(5), sections 3.3, 6, 16, 17. */
#include "vectors.h"

#include "layout.h"

static const struct {
	enum unit_type type;
	uint64_t count;
} types[] = {
	{ UNIT_DATA, LAYOUT_DATA_MAX },
	{ UNIT_GROUP, 45198780 },
	{ UNIT_L1, 67260 },
	{ UNIT_L2, 100 },
};
#define PAGES 4836336825ull

/* A fixed sequence: a failure can be repeated. (xorshift64*) */
static uint64_t next_random(void)
{
	static uint64_t x = 0x2545f4914f6cdd1d;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	return x * 0x2545f4914f6cdd1d;
}

static void check_unit(enum unit_type type, uint64_t index)
{
	uint64_t phys = layout_phys(type, index), back = UINT64_MAX;
	enum unit_type found;

	assert_in_range(phys, 1, PAGES - 1);
	assert_true(layout_unit_at(phys, &found, &back));
	assert_int_equal(found, type);
	assert_int_equal(back, index);
}

static void test_map(void **state)
{
	(void)state;
	for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
		for (uint64_t i = 0; i < 20000 && i < types[t].count; i++)
			check_unit(types[t].type, i);
		for (int i = 0; i < 200000; i++)
			check_unit(types[t].type, next_random() % types[t].count);
		check_unit(types[t].type, types[t].count - 1);
	}
}

/* From the other side: every page is exactly one unit, and that unit says so. */
static void check_page(uint64_t phys)
{
	enum unit_type type;
	uint64_t index;

	assert_true(layout_unit_at(phys, &type, &index));
	assert_int_equal(layout_phys(type, index), phys);
}

static void test_inverse(void **state)
{
	enum unit_type type;
	uint64_t index;

	(void)state;
	for (uint64_t phys = 1; phys < 100000; phys++)
		check_page(phys);
	for (uint64_t phys = 4320725 - 80000; phys < 4320725 + 80000; phys++)
		check_page(phys);
	for (int i = 0; i < 200000; i++)
		check_page(1 + next_random() % (PAGES - 1));
	check_page(PAGES - 1);
	assert_false(layout_unit_at(0, &type, &index));
	assert_false(layout_unit_at(PAGES, &type, &index));
	assert_false(layout_unit_at(UINT64_MAX, &type, &index));
}

static void test_known_places(void **state)
{
	(void)state;
	assert_int_equal(layout_phys(UNIT_ROOT, 0), 0);
	assert_int_equal(layout_phys(UNIT_DATA, 3), 4);
	assert_int_equal(layout_phys(UNIT_GROUP, 0), 5);
	assert_int_equal(layout_phys(UNIT_DATA, 4), 6);
	assert_int_equal(layout_phys(UNIT_DATA, 300), 304);
	assert_int_equal(layout_phys(UNIT_GROUP, 2), 219);
	assert_int_equal(layout_phys(UNIT_DATA, 255), 259);
	assert_int_equal(layout_phys(UNIT_L1, 0), 6425);
	assert_int_equal(layout_phys(UNIT_L1, 3), 222140);
	assert_int_equal(layout_phys(UNIT_GROUP, 2473), 264620);
	assert_int_equal(layout_phys(UNIT_DATA, 262143), 264622);
	assert_int_equal(layout_phys(UNIT_L2, 0), 4320725);
	assert_int_equal(layout_phys(UNIT_L1, 60), 4320726);
	assert_int_equal(layout_phys(UNIT_L2, 99), 4320725 + 99 * 48320161ull);
	assert_int_equal(layout_phys(UNIT_DATA, LAYOUT_DATA_MAX - 1), PAGES - 1);
}

static void assert_parent(enum unit_type type, uint64_t index, enum unit_type above, uint64_t parent, uint32_t slot)
{
	struct layout_parent p = layout_parent(type, index);

	assert_int_equal(p.type, above);
	assert_int_equal(p.index, parent);
	assert_int_equal(p.slot, slot);
}

static void test_parents(void **state)
{
	(void)state;
	assert_parent(UNIT_DATA, 3, UNIT_ROOT, 0, 3);
	assert_parent(UNIT_DATA, 4, UNIT_GROUP, 0, 0);
	assert_parent(UNIT_DATA, 4 + 105, UNIT_GROUP, 0, 105);
	assert_parent(UNIT_DATA, 4 + 106, UNIT_GROUP, 1, 0);
	assert_parent(UNIT_GROUP, 59, UNIT_ROOT, 0, 59);
	assert_parent(UNIT_GROUP, 60, UNIT_L1, 0, 0);
	assert_parent(UNIT_GROUP, 2473, UNIT_L1, 3, 397);
	assert_parent(UNIT_L1, 59, UNIT_ROOT, 0, 59);
	assert_parent(UNIT_L1, 60, UNIT_L2, 0, 0);
	assert_parent(UNIT_L1, 60 + 672, UNIT_L2, 1, 0);
	assert_parent(UNIT_L1, 67259, UNIT_L2, 99, 671);
	assert_parent(UNIT_L2, 99, UNIT_ROOT, 0, 99);
	assert_int_equal(layout_parent(UNIT_DATA, LAYOUT_DATA_MAX - 1).index, 45198779);
}

/* A node lies before all units below it, one level after the other. */
static void test_parents_precede(void **state)
{
	(void)state;
	for (int i = 0; i < 100000; i++) {
		enum unit_type type = UNIT_DATA;
		uint64_t index = next_random() % LAYOUT_DATA_MAX;

		for (int level = 0; type != UNIT_ROOT; level++) {
			struct layout_parent p = layout_parent(type, index);

			assert_in_range(level, 0, 3);
			assert_true(layout_phys(p.type, p.index) < layout_phys(type, index));
			type = p.type;
			index = p.index;
		}
	}
}

static void test_group_numbers(void **state)
{
	(void)state;
	assert_int_equal(layout_group_number(UNIT_DATA, 0), 0);
	assert_int_equal(layout_group_number(UNIT_DATA, 3), 0);
	assert_int_equal(layout_group_number(UNIT_DATA, 4), 1);
	assert_int_equal(layout_group_number(UNIT_DATA, 109), 1);
	assert_int_equal(layout_group_number(UNIT_DATA, 110), 2);
	assert_int_equal(layout_group_number(UNIT_DATA, 300), 3);
	assert_int_equal(layout_group_number(UNIT_DATA, LAYOUT_DATA_MAX - 1), 45198780);
	assert_int_equal(layout_group_number(UNIT_GROUP, 105), 0);
	assert_int_equal(layout_group_number(UNIT_GROUP, 106), 1);
	assert_int_equal(layout_group_number(UNIT_L1, 5000), 0);
	assert_int_equal(layout_group_number(UNIT_L2, 50), 0);
	assert_int_equal(layout_group_number(UNIT_ROOT, 50), 0);
}

static void test_worked_examples(void **state)
{
	static const struct {
		uint64_t size, hint;
		bool inlined;
	} example[] = {
		{ 0, 4096, true },
		{ 1, 4097, true },
		{ 1504, 5600, true },
		{ 1505, 9697, false },
		{ 4096, 8192, false },
		{ 10000, 18192, false },
		{ 16385, 28673, false },
		{ 1ull << 20, 1064960, false },
		{ 1ull << 30, 1083895808, false },
		{ 1ull << 40, 1109899845632, false },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(example) / sizeof(example[0]); i++) {
		uint64_t size = UINT64_MAX;

		assert_int_equal(layout_hint(example[i].size, example[i].inlined), example[i].hint);
		assert_true(layout_hint_decode(example[i].hint, &size));
		assert_int_equal(size, example[i].size);
	}
	assert_int_equal(layout_pages(1 << 20, false), 260);
	assert_int_equal(layout_pages(16385, false), 7);
	assert_int_equal(layout_data_pages(4096), 1);
	assert_int_equal(layout_data_pages(4097), 2);
}

static void check_hint(uint64_t size, bool inlined)
{
	uint64_t hint = layout_hint(size, inlined), back = UINT64_MAX;

	assert_int_equal(hint / LAYOUT_PAGE, layout_pages(size, inlined));
	assert_true(layout_hint_decode(hint, &back));
	assert_int_equal(back, size);
}

static void test_hints(void **state)
{
	(void)state;
	for (uint64_t size = 0; size < 70000; size++) {
		check_hint(size, false);
		if (size <= LAYOUT_INLINE_MAX)
			check_hint(size, true);
	}
	for (int i = 0; i < 200000; i++) {
		uint64_t size = (next_random() >> next_random() % 40) % (LAYOUT_SIZE_MAX + 1);

		check_hint(size, false);
		check_hint(size & ~4095ull, false);
	}
	check_hint(LAYOUT_SIZE_MAX, false);
	check_hint(LAYOUT_SIZE_MAX - 1, false);
}

static void test_invalid_hints(void **state)
{
	uint64_t size;

	(void)state;
	for (uint64_t st_size = 0; st_size < 4096; st_size++)
		assert_false(layout_hint_decode(st_size, &size));
	for (uint64_t r = 1505; r < 4096; r++)
		assert_false(layout_hint_decode(4096 + r, &size));
	for (size_t t = 1; t < sizeof(types) / sizeof(types[0]); t++) {
		for (uint64_t i = 0; i < 1000; i++) {
			uint64_t pages = layout_phys(types[t].type, next_random() % types[t].count) + 1;

			assert_false(layout_hint_decode(pages * 4096, &size));
			assert_false(layout_hint_decode(pages * 4096 + 1, &size));
		}
	}
	assert_true(layout_hint_decode(PAGES * 4096, &size));
	assert_false(layout_hint_decode((PAGES + 1) * 4096, &size));
	assert_false(layout_hint_decode(1ull << 62, &size));
	assert_false(layout_hint_decode(UINT64_MAX, &size));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map),
		cmocka_unit_test(test_inverse),
		cmocka_unit_test(test_known_places),
		cmocka_unit_test(test_parents),
		cmocka_unit_test(test_parents_precede),
		cmocka_unit_test(test_group_numbers),
		cmocka_unit_test(test_worked_examples),
		cmocka_unit_test(test_hints),
		cmocka_unit_test(test_invalid_hints),
	};

	return cmocka_run_group_tests_name("layout", tests, NULL, NULL);
}
