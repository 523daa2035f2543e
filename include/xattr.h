/* xattr.h — encrypted extended attributes of files and directories (format.md 7).
 *
 * fd is any descriptor of the object (O_PATH works: /proc/self/fd is used). id is file_id from IDENT or the directory
 * id. Names: user.*, security.*, trusted.*, system.posix_acl_access, system.posix_acl_default; others -EOPNOTSUPP. */
#ifndef BYOKFS_XATTR_H
#define BYOKFS_XATTR_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "name.h"

/* Value length; size 0 asks for it. -ERANGE, -ENODATA, -EIO (does not authenticate; logged). */
MUST_CHECK ssize_t xattr_get(
    int fd, const uint8_t id[static 16], const struct name_keys *, const char *name, void *value, size_t size);
/* flags as setxattr(2). -E2BIG over 65,496 bytes, -ERANGE name over 160. */
MUST_CHECK int xattr_set(int fd, const uint8_t id[static 16], const struct name_keys *, const char *name,
    const void *value, size_t size, int flags);
/* NUL-separated plain names; size 0 asks for the length. Foreign and undecryptable names are left out. */
MUST_CHECK ssize_t xattr_list(int fd, const uint8_t id[static 16], const struct name_keys *, char *list, size_t size);
MUST_CHECK int xattr_remove(int fd, const uint8_t id[static 16], const struct name_keys *, const char *name);

#endif
