/* namelist.h — names put down and taken up again in their order: the subdirectories that a walk has still to enter. */
#ifndef BYOKFS_NAMELIST_H
#define BYOKFS_NAMELIST_H

#include <stddef.h>

#include "cleanup.h"

/* All zeros: empty. */
struct namelist {
	char *text; /* NUL-separated */
	size_t len, room, at;
};

/* Copies name to the end. 0 or -ENOMEM. */
MUST_CHECK int namelist_add(struct namelist *, const char *name);
/* The next one, or NULL after the last; valid until namelist_add or namelist_free. */
const char *namelist_next(struct namelist *);
void namelist_free(struct namelist *);

#endif
