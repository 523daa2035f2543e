/* rotate_state.h — how far a domain's descriptor is on the way to a key. Pure. */
#ifndef BYOKFS_ROTATE_STATE_H
#define BYOKFS_ROTATE_STATE_H

#include <stdbool.h>

#include "descriptor.h"

enum rotate_state {
	ROTATE_NOTHING, /* it is under the new key and nothing is under way */
	ROTATE_FRESH,   /* to begin */
	ROTATE_RESUME,  /* begun: the new key rules already */
	ROTATE_BACK,    /* begun the other way: to turn round */
	ROTATE_THIRD,   /* begun towards another key: refused */
};

/* Do two names stand for one key? */
typedef bool (*rotate_same)(const void *arg, const char *a, const char *b);

/* same_key: the key of now shall be sealed under anew. */
enum rotate_state rotate_state_of(
    const struct descriptor_domain *, rotate_same, const void *arg, const char *to, bool same_key);
/* The key that is left, in this state. */
const char *rotate_left_key(const struct descriptor_domain *, enum rotate_state);

#endif
