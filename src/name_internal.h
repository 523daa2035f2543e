/* name_internal.h — what name.c and name_xattr.c share. Private to name*.c.                  */
#ifndef BYOKFS_NAME_INTERNAL_H
#define BYOKFS_NAME_INTERNAL_H

#include <errno.h>

#include "name.h"
#include "name_siv.h"

struct name_keys {
	enum name_mode mode;
	struct context_ids ids;
	struct siv *names, *links, *xnames;
	uint8_t dirs[32], xattrs[32];
};

#define NAME_PAD         16u
#define NAME_PADDED(len) (((len) + NAME_PAD - 1) / NAME_PAD * NAME_PAD)

/* Length of the name in n decrypted bytes, or -EBADMSG: padded with as few NULs as possible, none inside, not empty. */
MUST_CHECK static inline int name_unpad(const void *text, size_t n)
{
	size_t len = strnlen(text, n);

	if (len == 0 || NAME_PADDED(len) != n)
		return -EBADMSG;
	for (size_t i = len; i < n; i++) {
		if (((const uint8_t *)text)[i] != 0)
			return -EBADMSG;
	}
	return (int)len;
}

#endif
