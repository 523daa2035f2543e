/* acl.h — POSIX.1e access control lists in the kernel's xattr form (version 2): what a new object inherits, how mode
 * and ACL keep in step. Pure.
 *
 * acl(5); the algorithms are those of IEEE 1003.1e draft 17, section 23, as Linux applies them. */
#ifndef BYOKFS_ACL_H
#define BYOKFS_ACL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "cleanup.h"

#define ACL_ACCESS    "system.posix_acl_access"
#define ACL_DEFAULT   "system.posix_acl_default"
#define ACL_BYTES_MAX (4u + 8u * 1024u)

/* Well-formed: version, whole entries, the three base entries once, a mask when named entries exist. */
MUST_CHECK int acl_check(const void *acl, size_t n);
/* The access ACL a new object inherits from a default ACL: edits acl in place and reduces *mode by it (umask does not
 * apply then). *minimal: the result says no more than the mode; store none. -EINVAL when malformed. */
MUST_CHECK int acl_inherit(void *acl, size_t n, mode_t *mode, bool *minimal);
/* Permission bits an access ACL stands for (user, mask or group, other), and whether it is minimal. */
MUST_CHECK int acl_mode(const void *acl, size_t n, mode_t *mode, bool *minimal);
/* chmod(2): edits the ACL so that it stands for mode. */
MUST_CHECK int acl_chmod(void *acl, size_t n, mode_t mode);

#endif
