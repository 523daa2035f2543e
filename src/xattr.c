/* xattr.c — encrypted attributes in the backing's user attributes. Hides their backing names, and that a value may be
 * in two of them: the second, under a name used once, is there before the first names it and goes after the first has
 * been replaced, so whatever stops in between leaves the old value or the new one, and a stray that nobody reads. */
#include "xattr.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dir_internal.h"
#include "log.h"
#include "xattr_internal.h"

#define SMALL       1024u
#define MOVED_TRIES 64

/* ---- names */

static int check_name(const char *name)
{
	static const char *const prefixes[] = { "user.", "security.", "trusted." };

	for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++) {
		size_t n = strlen(prefixes[i]);

		if (!strncmp(name, prefixes[i], n))
			return name[n] ? 0 : -EINVAL;
	}
	if (!strcmp(name, "system.posix_acl_access") || !strcmp(name, "system.posix_acl_default"))
		return 0;
	return -EOPNOTSUPP;
}

static int check_object(int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	return S_ISREG(st.st_mode) || S_ISDIR(st.st_mode) ? 0 : -EOPNOTSUPP;
}

static int check_both(int fd, const char *name)
{
	int r = check_name(name);

	return r ? r : check_object(fd);
}

static int backing_name(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *name,
    char out[static NAME_XATTR_BACKING])
{
	int r = check_both(fd, name);

	return r ? r : name_xattr_encrypt(names, id, name, out);
}

/* ---- values */

static ssize_t damaged(int fd, const char *backing)
{
	char where[DIR_WHERE];

	log_damage("%s: attribute '%s' does not authenticate", dir_where(fd, where), backing);
	return -EIO;
}

struct sealed {
	int fd;
	const uint8_t *id;
	const struct name_keys *names;
	const char *backing;
};

/* in: the first attribute, which is full, and room for the rest. part: its name, "" if it is a single one. */
static ssize_t open_full(const struct sealed *x, uint8_t *in, uint8_t *value, char part[static NAME_XATTR_BACKING])
{
	ssize_t n = name_xattr_unpack(x->names, x->id, x->backing, in, NAME_XATTR_FIRST, value);

	part[0] = 0;
	if (n != -EBADMSG)
		return n;
	name_xattr_part(x->backing, in, part);
	n = xattr_backing_get(x->fd, part, in + NAME_XATTR_FIRST, NAME_XATTR_REST);
	if (n == -ENODATA || n == -ERANGE || n == 0)
		return -EBADMSG;
	return n < 0 ? n : name_xattr_unpack(x->names, x->id, x->backing, in, NAME_XATTR_FIRST + (size_t)n, value);
}

/* in holds NAME_XATTR_STORED, value NAME_XATTR_VALUE_MAX. What changes under the reader is read again. */
static ssize_t read_stored(
    const struct sealed *x, uint8_t *in, uint8_t *value, char *plain, char part[static NAME_XATTR_BACKING])
{
	char last[NAME_XATTR_BACKING] = "";
	ssize_t n = -EBADMSG, r;

	for (int i = 0; i < MOVED_TRIES; i++) {
		n = xattr_backing_get(x->fd, x->backing, in, NAME_XATTR_FIRST);
		if (n < 0)
			return n == -ERANGE || n == -E2BIG ? -EBADMSG : n;
		r = plain ? name_xattr_name(x->names, x->id, x->backing, in, (size_t)n, plain) : 0;
		if (r < 0)
			return r;
		if (n < (ssize_t)NAME_XATTR_FIRST) {
			part[0] = 0;
			return name_xattr_unpack(x->names, x->id, x->backing, in, (size_t)n, value);
		}
		n = open_full(x, in, value, part);
		if (n != -EBADMSG || !strcmp(part, last))
			return n;
		memcpy(last, part, sizeof(last));
	}
	return n;
}

ssize_t xattr_read(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *backing, char *plain,
    uint8_t *value, char part[static NAME_XATTR_BACKING])
{
	CLEANUP_FREE uint8_t *in = malloc(NAME_XATTR_STORED);
	const struct sealed x = { fd, id, names, backing };

	*plain = part[0] = 0;
	return in ? read_stored(&x, in, value, plain, part) : -ENOMEM;
}

static ssize_t get_large(const struct sealed *x, void *value, size_t size)
{
	CLEANUP_FREE uint8_t *in = malloc(NAME_XATTR_STORED), *all = malloc(NAME_XATTR_VALUE_MAX);
	char part[NAME_XATTR_BACKING];
	ssize_t n;

	if (!in || !all)
		return -ENOMEM;
	n = read_stored(x, in, all, NULL, part);
	if (n == -EBADMSG)
		return damaged(x->fd, x->backing);
	if (n > 0 && size && (size_t)n <= size)
		memcpy(value, all, (size_t)n);
	if (n > 0)
		explicit_bzero(all, (size_t)n);
	return n > 0 && size && (size_t)n > size ? -ERANGE : n;
}

static ssize_t get_small(const struct sealed *x, const uint8_t *in, size_t n, void *value, size_t size)
{
	size_t over = name_xattr_over(x->backing);
	int r;

	if (n < over)
		return damaged(x->fd, x->backing);
	if (n - over > size)
		return -ERANGE;
	r = name_xattr_unpack(x->names, x->id, x->backing, in, n, value);
	return r == -EBADMSG ? damaged(x->fd, x->backing) : r;
}

/* A length alone is not worth the AEAD: who reads the value will know. That of a full attribute needs it. */
static ssize_t get_length(const struct sealed *x)
{
	size_t over = name_xattr_over(x->backing);
	ssize_t n = xattr_backing_get(x->fd, x->backing, NULL, 0);

	if (n < 0)
		return n;
	if (n == (ssize_t)NAME_XATTR_FIRST)
		return get_large(x, NULL, 0);
	return n < (ssize_t)over ? damaged(x->fd, x->backing) : n - (ssize_t)over;
}

ssize_t xattr_get(
    int fd, const uint8_t id[static 16], const struct name_keys *names, const char *name, void *value, size_t size)
{
	char backing[NAME_XATTR_BACKING];
	struct sealed x = { fd, id, names, backing };
	uint8_t small[SMALL];
	ssize_t n = backing_name(fd, id, names, name, backing);

	if (n)
		return n;
	if (!size)
		return get_length(&x);
	n = xattr_backing_get(fd, backing, small, sizeof(small));
	if (n == -ERANGE)
		return get_large(&x, value, size);
	return n < 0 ? n : get_small(&x, small, (size_t)n, value, size);
}

/* ---- change */

/* The part of what is there now, "" for none; what is damaged has none that is known. -ENODATA: nothing is there. */
static int find_part(const struct sealed *x, char part[static NAME_XATTR_BACKING])
{
	CLEANUP_FREE uint8_t *in = NULL, *value = NULL;
	ssize_t n = xattr_backing_get(x->fd, x->backing, NULL, 0);

	part[0] = 0;
	if (n != (ssize_t)NAME_XATTR_FIRST)
		return n == -ENODATA ? -ENODATA : 0;
	in = malloc(NAME_XATTR_STORED);
	value = malloc(NAME_XATTR_VALUE_MAX);
	if (!in || !value)
		return -ENOMEM;
	n = read_stored(x, in, value, NULL, part);
	if (n < 0)
		part[0] = 0;
	else
		explicit_bzero(value, (size_t)n);
	return 0;
}

static void drop_part(int fd, const char *part)
{
	int r = *part ? xattr_backing_remove(fd, part) : 0;

	if (r && r != -ENODATA)
		log_warn("cannot remove '%s', which nobody reads any more: %s", part, strerror(-r));
}

static int set_packed(int fd, const struct name_xattr *new, const uint8_t *stored, int flags)
{
	int r = new->rest ? xattr_backing_set(fd, new->part, stored + new->first, new->rest, XATTR_CREATE) : 0;

	if (!r) {
		r = xattr_backing_set(fd, new->backing, stored, new->first, flags);
		if (r)
			drop_part(fd, new->part);
	}
	/* A backing may have smaller limits than ours: to who asked it is full. */
	return r == -E2BIG || r == -ERANGE ? -ENOSPC : r;
}

int xattr_set(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *name, const void *value,
    size_t size, int flags)
{
	CLEANUP_FREE uint8_t *stored = NULL;
	char old[NAME_XATTR_BACKING] = "";
	struct name_xattr new = { .part = "" };
	struct sealed x = { fd, id, names, new.backing };
	int r;

	if (size > NAME_XATTR_VALUE_MAX)
		return -E2BIG;
	r = check_both(fd, name);
	if (r)
		return r;
	stored = malloc(size + NAME_XATTR_REST);
	if (!stored)
		return -ENOMEM;
	r = name_xattr_pack(names, id, name, value, size, stored, &new);
	if (!r)
		r = find_part(&x, old);
	if (r && r != -ENODATA)
		return r;
	r = set_packed(fd, &new, stored, flags);
	if (!r)
		drop_part(fd, old);
	return r;
}

int xattr_remove(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *name)
{
	char backing[NAME_XATTR_BACKING], part[NAME_XATTR_BACKING];
	struct sealed x = { fd, id, names, backing };
	int r = backing_name(fd, id, names, name, backing);

	if (!r)
		r = find_part(&x, part);
	if (!r)
		r = xattr_backing_remove(fd, backing);
	if (!r)
		drop_part(fd, part);
	return r;
}
