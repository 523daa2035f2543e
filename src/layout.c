/* layout.c — the physical map, section 3.3 of byokfs-format(5), and the size hint, section 6.
 *
 * Every unit is followed by what hangs below it: a group page by its 106 data pages, an L1 page by its 672
 * groups, an L2 page by its 672 L1 pages. The root's own units come first, then its groups, its L1 pages, its
 * L2 pages. So each level is one division, forth and back.                                                */
#include "layout.h"

#define GROUP_SPAN (1u + LAYOUT_GROUP_FAN)
#define L1_SPAN    (1u + LAYOUT_NODE_FAN * GROUP_SPAN)
#define L2_SPAN    (1ull + (uint64_t)LAYOUT_NODE_FAN * L1_SPAN)

#define GROUPS_AT (1u + LAYOUT_ROOT_DATA)
#define L1_AT     (GROUPS_AT + LAYOUT_ROOT_GROUPS * GROUP_SPAN)
#define L2_AT     (L1_AT + LAYOUT_ROOT_L1 * L1_SPAN)
#define PAGES_END (L2_AT + LAYOUT_ROOT_L2 * L2_SPAN)

_Static_assert(L1_AT == 6425 && L1_SPAN == 71905, "the map of section 3.3");
_Static_assert(L2_AT == 4320725 && L2_SPAN == 48320161, "the map of section 3.3");
_Static_assert(PAGES_END == 4836336825, "the reach of section 3.3");
_Static_assert(LAYOUT_SIZE_MAX == LAYOUT_DATA_MAX * LAYOUT_PAGE, "the reach of section 3.3");

static uint64_t phys_l2(uint64_t j)
{
	return L2_AT + L2_SPAN * j;
}

static uint64_t phys_l1(uint64_t i)
{
	if (i < LAYOUT_ROOT_L1)
		return L1_AT + L1_SPAN * i;
	i -= LAYOUT_ROOT_L1;
	return phys_l2(i / LAYOUT_NODE_FAN) + 1 + L1_SPAN * (i % LAYOUT_NODE_FAN);
}

static uint64_t phys_group(uint64_t g)
{
	if (g < LAYOUT_ROOT_GROUPS)
		return GROUPS_AT + GROUP_SPAN * g;
	g -= LAYOUT_ROOT_GROUPS;
	return phys_l1(g / LAYOUT_NODE_FAN) + 1 + GROUP_SPAN * (g % LAYOUT_NODE_FAN);
}

static uint64_t phys_data(uint64_t k)
{
	if (k < LAYOUT_ROOT_DATA)
		return 1 + k;
	k -= LAYOUT_ROOT_DATA;
	return phys_group(k / LAYOUT_GROUP_FAN) + 1 + k % LAYOUT_GROUP_FAN;
}

uint64_t layout_phys(enum unit_type type, uint64_t index)
{
	switch (type) {
	case UNIT_DATA:
		return phys_data(index);
	case UNIT_GROUP:
		return phys_group(index);
	case UNIT_L1:
		return phys_l1(index);
	case UNIT_L2:
		return phys_l2(index);
	case UNIT_ROOT:
		break;
	}
	return 0;
}

/* The unit `at` pages after the first of a sequence of groups, whose first one is number `base`. */
static void at_groups(uint64_t base, uint64_t at, enum unit_type *type, uint64_t *index)
{
	uint64_t g = base + at / GROUP_SPAN;

	at %= GROUP_SPAN;
	*type = at == 0 ? UNIT_GROUP : UNIT_DATA;
	*index = at == 0 ? g : LAYOUT_ROOT_DATA + g * LAYOUT_GROUP_FAN + at - 1;
}

static void at_l1s(uint64_t base, uint64_t at, enum unit_type *type, uint64_t *index)
{
	uint64_t i = base + at / L1_SPAN;

	at %= L1_SPAN;
	if (at > 0) {
		at_groups(LAYOUT_ROOT_GROUPS + i * LAYOUT_NODE_FAN, at - 1, type, index);
		return;
	}
	*type = UNIT_L1;
	*index = i;
}

static void at_l2s(uint64_t at, enum unit_type *type, uint64_t *index)
{
	uint64_t j = at / L2_SPAN;

	at %= L2_SPAN;
	if (at > 0) {
		at_l1s(LAYOUT_ROOT_L1 + j * LAYOUT_NODE_FAN, at - 1, type, index);
		return;
	}
	*type = UNIT_L2;
	*index = j;
}

bool layout_unit_at(uint64_t phys, enum unit_type *type, uint64_t *index)
{
	if (phys == 0 || phys >= PAGES_END)
		return false;
	if (phys < GROUPS_AT) {
		*type = UNIT_DATA;
		*index = phys - 1;
	} else if (phys < L1_AT) {
		at_groups(0, phys - GROUPS_AT, type, index);
	} else if (phys < L2_AT) {
		at_l1s(0, phys - L1_AT, type, index);
	} else {
		at_l2s(phys - L2_AT, type, index);
	}
	return true;
}

/* The first `in_root` units of a type hang off the root, the rest `fan` at a time off the next higher type. */
static struct layout_parent parent_of(uint64_t index, uint32_t in_root, enum unit_type above, uint32_t fan)
{
	if (index < in_root)
		return (struct layout_parent){ UNIT_ROOT, 0, (uint32_t)index };
	index -= in_root;
	return (struct layout_parent){ above, index / fan, (uint32_t)(index % fan) };
}

struct layout_parent layout_parent(enum unit_type type, uint64_t index)
{
	switch (type) {
	case UNIT_DATA:
		return parent_of(index, LAYOUT_ROOT_DATA, UNIT_GROUP, LAYOUT_GROUP_FAN);
	case UNIT_GROUP:
		return parent_of(index, LAYOUT_ROOT_GROUPS, UNIT_L1, LAYOUT_NODE_FAN);
	case UNIT_L1:
		return parent_of(index, LAYOUT_ROOT_L1, UNIT_L2, LAYOUT_NODE_FAN);
	case UNIT_L2:
		return (struct layout_parent){ UNIT_ROOT, 0, (uint32_t)index };
	case UNIT_ROOT:
		break;
	}
	return (struct layout_parent){ UNIT_ROOT, 0, 0 };
}

uint32_t layout_group_number(enum unit_type type, uint64_t index)
{
	if (type == UNIT_DATA && index >= LAYOUT_ROOT_DATA)
		return (uint32_t)(1 + (index - LAYOUT_ROOT_DATA) / LAYOUT_GROUP_FAN);
	if (type == UNIT_GROUP)
		return (uint32_t)(index / LAYOUT_GROUP_FAN);
	return 0;
}

uint64_t layout_pages(uint64_t size, bool inlined)
{
	return inlined || size == 0 ? 1 : phys_data((size - 1) / LAYOUT_PAGE) + 1;
}

uint64_t layout_hint(uint64_t size, bool inlined)
{
	return layout_pages(size, inlined) * LAYOUT_PAGE + size % LAYOUT_PAGE;
}

bool layout_hint_decode(uint64_t st_size, uint64_t *size)
{
	uint64_t pages = st_size / LAYOUT_PAGE, rest = st_size % LAYOUT_PAGE, k;
	enum unit_type type;

	if (pages == 0)
		return false;
	if (pages == 1) {
		*size = rest;
		return rest <= LAYOUT_INLINE_MAX;
	}
	if (!layout_unit_at(pages - 1, &type, &k) || type != UNIT_DATA)
		return false;
	*size = LAYOUT_PAGE * k + (rest ? rest : LAYOUT_PAGE);
	return true;
}
