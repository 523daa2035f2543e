/* What a rotation changes in a domain's descriptor: generations, the second slot, its end. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "bytes.h"
#include "descriptor.h"

static struct descriptor_domain *d;

static void number(struct descriptor_domain *to, uint16_t g)
{
	to->gen = reallocarray(to->gen, to->ngen + 1, sizeof(*to->gen));
	assert_non_null(to->gen);
	memset(&to->gen[to->ngen], 0, sizeof(*to->gen));
	to->gen[to->ngen].number = g;
	to->gen[to->ngen].extra.n = 1;
	(void)snprintf(to->gen[to->ngen].extra.pair[0].name, 65, "gen");
	(void)snprintf(to->gen[to->ngen].extra.pair[0].value, 9, "%u", g);
	to->ngen++;
}

static int setup(void **state)
{
	(void)state;
	d = calloc(1, sizeof(*d));
	assert_non_null(d);
	d->slot[0] = (struct descriptor_slot){
		.seq = 5, .provider = 1, .key = "arn:one", .context = 1, .blob_len = 1, .probe_len = 1
	};
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	descriptor_domain_free(d);
	free(d);
	return 0;
}

static struct context_extra pairs(const char *text)
{
	struct context_extra e;

	assert_int_equal(context_parse_extra(&e, text), 0);
	return e;
}

static uint16_t add(const char *text)
{
	struct context_extra e = pairs(text);
	uint16_t g = 0;

	assert_int_equal(descriptor_add_generation(d, &e, &g), 0);
	assert_non_null(descriptor_generation(d, g));
	assert_int_equal(descriptor_generation(d, g)->n, e.n);
	return g;
}

static void generations(void **state)
{
	uint16_t g = 0;

	(void)state;
	assert_int_equal(add("-"), 1);
	assert_int_equal(add("team:a, tier:b"), 2);
	assert_int_equal(add("tier:b, team:a"), 2); /* a set has no order */
	assert_int_equal(add("team:a"), 3);
	assert_int_equal(add("team:a, tier:c"), 4);
	assert_int_equal(add("tier:a, team:b"), 5);
	assert_int_equal(add(""), 1);
	assert_int_equal(descriptor_add_generation(d, NULL, &g), 0);
	assert_int_equal(g, 1);
	assert_int_equal(d->ngen, 5);
}

static void gaps(void **state)
{
	(void)state;
	number(d, 1);
	number(d, 2);
	number(d, 9);
	assert_int_equal(add("x:1"), 10);
	number(d, 65535);
	assert_int_equal(add("x:2"), 3); /* no higher one is left */
	assert_int_equal(add("x:3"), 4);
	assert_int_equal(d->gen[2].number, 3);
	assert_string_equal(d->gen[2].extra.pair[0].value, "2");
	for (size_t i = 1; i < d->ngen; i++)
		assert_true(d->gen[i].number > d->gen[i - 1].number);
	assert_string_equal(descriptor_generation(d, 9)->pair[0].value, "9");
	assert_string_equal(descriptor_generation(d, 65535)->pair[0].value, "65535");
}

static void full(void **state)
{
	struct context_extra e = pairs("x:1");
	uint16_t g = 77;

	(void)state;
	for (unsigned i = 0; i < DESCRIPTOR_GENERATIONS_MAX; i++)
		number(d, (uint16_t)(i + 1));
	assert_int_equal(descriptor_add_generation(d, &e, &g), -ENOSPC);
	assert_int_equal(g, 77);
	e = pairs("gen:17");
	assert_int_equal(descriptor_add_generation(d, &e, &g), 0);
	assert_int_equal(g, 17);
}

static void slots(void **state)
{
	struct descriptor_slot two = { .seq = 1, .provider = 1, .key = "arn:two", .context = 1 }, three = two;

	(void)state;
	assert_null(descriptor_other_slot(d));
	assert_int_equal(descriptor_finish(d, 7), -EALREADY);
	assert_int_equal(d->rotated, 0);
	assert_int_equal(descriptor_put_slot(d, &two), 0);
	assert_int_equal(d->slot[1].seq, 6); /* its own is ignored */
	assert_string_equal(descriptor_ruling_slot(d)->key, "arn:two");
	assert_string_equal(descriptor_other_slot(d)->key, "arn:one");
	(void)snprintf(three.key, sizeof(three.key), "arn:one again"); /* turning round */
	assert_int_equal(descriptor_put_slot(d, &three), 0);
	assert_int_equal(d->slot[0].seq, 7);
	assert_string_equal(descriptor_ruling_slot(d)->key, "arn:one again");
	assert_string_equal(descriptor_other_slot(d)->key, "arn:two");
	assert_int_equal(descriptor_finish(d, 1234), 0);
	assert_int_equal(d->rotated, 1234);
	assert_null(descriptor_other_slot(d));
	assert_true(bytes_zero(&d->slot[1], sizeof(d->slot[1])));
	assert_string_equal(descriptor_ruling_slot(d)->key, "arn:one again");
	d->slot[0].seq = UINT64_MAX;
	assert_int_equal(descriptor_put_slot(d, &two), -EOVERFLOW);
	assert_null(descriptor_other_slot(d));
}

static void copies(void **state)
{
	struct descriptor_domain *copy = calloc(1, sizeof(*copy));

	(void)state;
	assert_non_null(copy);
	assert_int_equal(descriptor_domain_copy(copy, d), 0);
	assert_null(copy->gen);
	number(d, 1);
	number(d, 2);
	assert_int_equal(descriptor_domain_copy(copy, d), 0);
	assert_ptr_not_equal(copy->gen, d->gen);
	d->gen[1].extra.n = 0;
	assert_int_equal(descriptor_generation(copy, 2)->n, 1);
	descriptor_domain_free(copy);
	free(copy);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = { TEST(generations), TEST(gaps), TEST(full), TEST(slots), TEST(copies) };

	return cmocka_run_group_tests_name("descriptor_rotate", tests, NULL, NULL);
}
