/* rotate_state.c — how far a domain's descriptor is on the way to a key. Pure. */
#include "rotate_state.h"

enum rotate_state rotate_state_of(
    const struct descriptor_domain *d, rotate_same same, const void *arg, const char *to, bool same_key)
{
	const struct descriptor_slot *ruling = descriptor_ruling_slot(d), *other = descriptor_other_slot(d);
	bool rules = ruling && same(arg, ruling->key, to);

	if (!other)
		return rules && !same_key ? ROTATE_NOTHING : ROTATE_FRESH;
	if (rules)
		return ROTATE_RESUME;
	return same(arg, other->key, to) ? ROTATE_BACK : ROTATE_THIRD;
}

const char *rotate_left_key(const struct descriptor_domain *d, enum rotate_state state)
{
	const struct descriptor_slot *slot =
	    state == ROTATE_RESUME ? descriptor_other_slot(d) : descriptor_ruling_slot(d);

	return slot ? slot->key : "";
}
