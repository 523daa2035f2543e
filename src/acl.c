/* The kernel hands ACLs over as xattr values: le32 version, then entries of le16 tag, le16 permissions, le32 id,
 * ordered by tag. Only the three base classes and the mask matter here; named entries are carried along untouched. */
#include "acl.h"

#include <errno.h>
#include <stdint.h>

#include "bytes.h"

#define VERSION 2u
#define HEAD    4u
#define ENTRY   8u

enum tag { USER_OBJ = 1, USER = 2, GROUP_OBJ = 4, GROUP = 8, MASK = 16, OTHER = 32 };

struct base {
	uint8_t *user, *group, *mask, *other;
	bool named;
};

static uint16_t perm_get(const uint8_t *entry)
{
	return le16_get(entry + 2) & 7;
}

static void perm_put(uint8_t *entry, unsigned perm)
{
	le16_put(entry + 2, (uint16_t)(perm & 7));
}

/* Notes a base entry; a second one of the same tag is malformed. */
static int base_set(uint8_t **slot, uint8_t *entry)
{
	if (*slot)
		return -EINVAL;
	*slot = entry;
	return 0;
}

static int base_note(struct base *b, uint8_t *entry)
{
	switch (le16_get(entry)) {
	case USER_OBJ:
		return base_set(&b->user, entry);
	case GROUP_OBJ:
		return base_set(&b->group, entry);
	case MASK:
		return base_set(&b->mask, entry);
	case OTHER:
		return base_set(&b->other, entry);
	case USER:
	case GROUP:
		b->named = true;
		return 0;
	default:
		return -EINVAL;
	}
}

static int base_find(struct base *b, void *acl, size_t n)
{
	uint8_t *p = acl;

	*b = (struct base){ 0 };
	if (n < HEAD || n > ACL_BYTES_MAX || (n - HEAD) % ENTRY || le32_get(p) != VERSION)
		return -EINVAL;
	for (size_t at = HEAD; at < n; at += ENTRY)
		if (base_note(b, p + at))
			return -EINVAL;
	if (!b->user || !b->group || !b->other || (b->named && !b->mask))
		return -EINVAL;
	return 0;
}

int acl_check(const void *acl, size_t n)
{
	uint8_t copy[ACL_BYTES_MAX];
	struct base b;
	WIPE_SCOPE(copy);

	if (n > sizeof(copy))
		return -EINVAL;
	memcpy(copy, acl, n);
	return base_find(&b, copy, n);
}

int acl_inherit(void *acl, size_t n, mode_t *mode, bool *minimal)
{
	struct base b;
	unsigned m = *mode;

	if (base_find(&b, acl, n))
		return -EINVAL;
	uint8_t *group = b.mask ? b.mask : b.group;

	perm_put(b.user, perm_get(b.user) & (m >> 6));
	perm_put(group, perm_get(group) & (m >> 3));
	perm_put(b.other, perm_get(b.other) & m);
	*mode = (m & ~0777u) | (mode_t)(perm_get(b.user) << 6 | perm_get(group) << 3 | perm_get(b.other));
	*minimal = !b.named && !b.mask;
	return 0;
}

int acl_mode(const void *acl, size_t n, mode_t *mode, bool *minimal)
{
	uint8_t copy[ACL_BYTES_MAX];
	struct base b;
	WIPE_SCOPE(copy);

	if (n > sizeof(copy))
		return -EINVAL;
	memcpy(copy, acl, n);
	if (base_find(&b, copy, n))
		return -EINVAL;
	*mode = (mode_t)(perm_get(b.user) << 6 | perm_get(b.mask ? b.mask : b.group) << 3 | perm_get(b.other));
	*minimal = !b.named && !b.mask;
	return 0;
}

int acl_chmod(void *acl, size_t n, mode_t mode)
{
	struct base b;

	if (base_find(&b, acl, n))
		return -EINVAL;
	perm_put(b.user, mode >> 6);
	perm_put(b.mask ? b.mask : b.group, mode >> 3);
	perm_put(b.other, mode);
	return 0;
}
