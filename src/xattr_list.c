/* Which attributes an object has. Hides that a long name is in what is stored, so that listing it reads that, and that
 * some of the backing's attributes are no attributes but parts of one, or left over from one. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "xattr_internal.h"

struct lister {
	int fd;
	const uint8_t *id;
	const struct name_keys *names;
	uint8_t *stored; /* for long names; malloc'ed when the first comes */
};

static bool ours(const char *backing)
{
	return !strncmp(backing, XATTR_BACKING_PREFIX, sizeof(XATTR_BACKING_PREFIX) - 1) &&
	    strlen(backing) < NAME_XATTR_BACKING;
}

static int check_object(int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	return S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) ? 0 : -EOPNOTSUPP;
}

/* Length of the plain name; -EBADMSG for what is not to be listed. */
static int plain_name(struct lister *l, const char *backing, char plain[static NAME_XATTR_MAX + 1])
{
	ssize_t n;

	if (!ours(backing) || name_xattr_is_part(backing))
		return -EBADMSG;
	if (!name_xattr_is_long(backing))
		return name_xattr_decrypt(l->names, l->id, backing, plain);
	if (!l->stored)
		l->stored = malloc(NAME_XATTR_FIRST);
	if (!l->stored)
		return -ENOMEM;
	n = xattr_backing_get(l->fd, backing, l->stored, NAME_XATTR_FIRST);
	return n < 0 ? -EBADMSG : name_xattr_name(l->names, l->id, backing, l->stored, (size_t)n, plain);
}

static ssize_t list_names(struct lister *l, const char *backing, size_t n, char *list, size_t size)
{
	char plain[NAME_XATTR_MAX + 1];
	size_t used = 0;

	for (const char *at = backing; at < backing + n; at += strlen(at) + 1) {
		int r = plain_name(l, at, plain);
		size_t len = r < 0 ? 0 : (size_t)r + 1;

		if (r == -ENOMEM || (size && len > size - used))
			return r == -ENOMEM ? -ENOMEM : -ERANGE;
		if (size && len)
			memcpy(list + used, plain, len);
		used += len;
	}
	return (ssize_t)used;
}

ssize_t xattr_list(int fd, const uint8_t id[static 16], const struct name_keys *names, char *list, size_t size)
{
	struct lister l = { .fd = fd, .id = id, .names = names };
	CLEANUP_FREE char *backing = NULL;
	ssize_t n = check_object(fd);

	if (!n)
		n = xattr_backing_list(fd, &backing);
	if (n > 0)
		n = list_names(&l, backing, (size_t)n, list, size);
	free(l.stored);
	return n;
}

bool xattr_none(int fd, const uint8_t id[static 16], const struct name_keys *names)
{
	CLEANUP_FREE char *backing = NULL;
	char plain[NAME_XATTR_MAX + 1];
	ssize_t n = check_object(fd);

	if (!n)
		n = xattr_backing_list(fd, &backing);
	for (const char *at = backing; n > 0 && at < backing + n; at += strlen(at) + 1)
		if (ours(at) && (name_xattr_is_long(at) || name_xattr_decrypt(names, id, at, plain) >= 0))
			return false;
	return n >= 0;
}

/* ---- strays */

/* Takes the name out of a list of n bytes; its length then. */
static size_t take_out(char *list, size_t n, const char *name)
{
	for (char *at = list; at < list + n; at += strlen(at) + 1) {
		size_t len = strlen(at) + 1;

		if (strcmp(at, name))
			continue;
		memmove(at, at + len, n - (size_t)(at + len - list));
		return n - len;
	}
	return n;
}

static size_t parts_of(const char *list, size_t n, char *out)
{
	size_t used = 0;

	for (const char *at = list; at < list + n; at += strlen(at) + 1)
		if (ours(at) && name_xattr_is_part(at)) {
			memcpy(out + used, at, strlen(at) + 1);
			used += strlen(at) + 1;
		}
	return used;
}

/* What a full attribute names is no stray, even if the two do not authenticate: that is damage, and is told as such. */
static size_t drop_named(struct lister *l, const char *list, size_t n, char *parts, size_t used)
{
	char part[NAME_XATTR_BACKING];

	for (const char *at = list; used && at < list + n; at += strlen(at) + 1) {
		if (!ours(at) || name_xattr_is_part(at) ||
		    xattr_backing_get(l->fd, at, l->stored, NAME_XATTR_FIRST) != (ssize_t)NAME_XATTR_FIRST)
			continue;
		name_xattr_part(at, l->stored, part);
		used = take_out(parts, used, part);
	}
	return used;
}

ssize_t xattr_strays(int fd, char **out)
{
	CLEANUP_FREE char *list = NULL, *parts = NULL;
	struct lister l = { .fd = fd };
	ssize_t n = xattr_backing_list(fd, &list);
	size_t used;

	*out = NULL;
	if (n <= 0)
		return n;
	parts = malloc((size_t)n + 1);
	l.stored = malloc(NAME_XATTR_FIRST);
	if (!parts || !l.stored) {
		free(l.stored);
		return -ENOMEM;
	}
	used = drop_named(&l, list, (size_t)n, parts, parts_of(list, (size_t)n, parts));
	free(l.stored);
	if (used) {
		*out = parts;
		parts = NULL;
	}
	return (ssize_t)used;
}

void xattr_sweep(int fd)
{
	CLEANUP_FREE char *strays = NULL;
	ssize_t n = xattr_strays(fd, &strays);

	for (const char *at = strays; n > 0 && at < strays + n; at += strlen(at) + 1)
		if (xattr_backing_remove(fd, at))
			return; /* it costs room only */
}
