/* xattr.h — encrypted extended attributes of files and directories (format.md 7).
 *
 * fd is any descriptor of the object (O_PATH works: /proc/self/fd is used). id is file_id from IDENT or the directory
 * id. Names: user.*, security.*, trusted.*, system.posix_acl_access, system.posix_acl_default; others -EOPNOTSUPP. */
#ifndef BYOKFS_XATTR_H
#define BYOKFS_XATTR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/xattr.h>

#include "name.h"

/* Value length; size 0 asks for it. -ERANGE, -ENODATA, -EIO (does not authenticate; logged). */
MUST_CHECK ssize_t xattr_get(
    int fd, const uint8_t id[static 16], const struct name_keys *, const char *name, void *value, size_t size);
/* flags as setxattr(2). -E2BIG over 65,536 bytes, -ERANGE name over 255; -ENOSPC where the backing takes less. Whatever
 * stops it leaves the old value or the new one. */
MUST_CHECK int xattr_set(int fd, const uint8_t id[static 16], const struct name_keys *, const char *name,
    const void *value, size_t size, int flags);
/* NUL-separated plain names; size 0 asks for the length. Foreign and undecryptable names are left out. A name over 160
 * bytes costs a read of its value. */
MUST_CHECK ssize_t xattr_list(int fd, const uint8_t id[static 16], const struct name_keys *, char *list, size_t size);
MUST_CHECK int xattr_remove(int fd, const uint8_t id[static 16], const struct name_keys *, const char *name);
/* No attribute of ours; a list without its cost. false when that is not known. */
bool xattr_none(int fd, const uint8_t id[static 16], const struct name_keys *);

/* For check: the attribute of this backing name, as xattr_get without the log line: -EBADMSG. plain holds 256 and has
 * the name if it was found, value NAME_XATTR_VALUE_MAX. part: the name of its second part, or "". */
MUST_CHECK ssize_t xattr_read(int fd, const uint8_t id[static 16], const struct name_keys *, const char *backing,
    char *plain, uint8_t *value, char part[static NAME_XATTR_BACKING]);
/* Second parts that no attribute names, left by a crash, NUL-separated, malloc'ed; their length, 0 and NULL for none.
 * Harmless. While somebody sets an attribute its new part may be among them. */
MUST_CHECK ssize_t xattr_strays(int fd, char **out);
/* Removes them. Nobody else may be setting attributes of the object. */
void xattr_sweep(int fd);

#endif
