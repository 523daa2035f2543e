/* xattr_internal.h — what xattr*.c share. Private to xattr*.c.
 *
 * The backing's own calls on any descriptor, O_PATH too: -errno, or what the call gives. */
#ifndef BYOKFS_XATTR_INTERNAL_H
#define BYOKFS_XATTR_INTERNAL_H

#include "xattr.h"

#define XATTR_BACKING_PREFIX "user.byokfs."

MUST_CHECK ssize_t xattr_backing_get(int fd, const char *name, void *value, size_t size);
MUST_CHECK int xattr_backing_set(int fd, const char *name, const void *value, size_t size, int flags);
MUST_CHECK int xattr_backing_remove(int fd, const char *name);
/* The whole list, malloc'ed, and its length; 0 and NULL when there is none. */
MUST_CHECK ssize_t xattr_backing_list(int fd, char **out);

#endif
