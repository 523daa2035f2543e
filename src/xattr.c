/* xattr.c — encrypted attributes in the backing's user attributes. Hides their backing names, and that the f*xattr
 * calls refuse O_PATH descriptors, which go through /proc/self/fd instead. */
#include "xattr.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "dir_internal.h"
#include "log.h"

#define BACKING_PREFIX "user.byokfs."
#define SEALED_MAX     (NAME_XATTR_VALUE_MAX + NAME_XATTR_OVERHEAD)
#define SMALL          1024u
#define LIST_TRIES     8

/* ---- the backing's calls, on any descriptor */

struct proc {
	char path[32];
};

static const char *proc_path(struct proc *p, int fd)
{
	(void)snprintf(p->path, sizeof(p->path), "/proc/self/fd/%d", fd);
	return p->path;
}

static ssize_t backing_get(int fd, const char *name, void *value, size_t size)
{
	struct proc p;
	ssize_t n = fgetxattr(fd, name, value, size);

	if (n < 0 && errno == EBADF)
		n = getxattr(proc_path(&p, fd), name, value, size);
	return n < 0 ? -errno : n;
}

static ssize_t backing_list(int fd, char *list, size_t size)
{
	struct proc p;
	ssize_t n = flistxattr(fd, list, size);

	if (n < 0 && errno == EBADF)
		n = listxattr(proc_path(&p, fd), list, size);
	return n < 0 ? -errno : n;
}

static int backing_set(int fd, const char *name, const void *value, size_t size, int flags)
{
	struct proc p;
	int r = fsetxattr(fd, name, value, size, flags);

	if (r && errno == EBADF)
		r = setxattr(proc_path(&p, fd), name, value, size, flags);
	return r ? -errno : 0;
}

static int backing_remove(int fd, const char *name)
{
	struct proc p;
	int r = fremovexattr(fd, name);

	if (r && errno == EBADF)
		r = removexattr(proc_path(&p, fd), name);
	return r ? -errno : 0;
}

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

static int backing_name(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *name,
    char out[static NAME_XATTR_BACKING])
{
	int r = check_name(name);

	if (!r)
		r = check_object(fd);
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

static ssize_t open_value(const struct sealed *x, const uint8_t *in, size_t n, void *value, size_t size)
{
	int r;

	if (n < NAME_XATTR_OVERHEAD)
		return damaged(x->fd, x->backing);
	if (n - NAME_XATTR_OVERHEAD > size)
		return -ERANGE;
	r = name_xattr_open(x->names, x->id, x->backing, in, n, value);
	return r == -EBADMSG ? damaged(x->fd, x->backing) : r;
}

static ssize_t get_large(const struct sealed *x, void *value, size_t size)
{
	CLEANUP_FREE uint8_t *in = malloc(SEALED_MAX);
	ssize_t n;

	if (!in)
		return -ENOMEM;
	n = backing_get(x->fd, x->backing, in, SEALED_MAX);
	if (n == -ERANGE || n == -E2BIG)
		return damaged(x->fd, x->backing);
	return n < 0 ? n : open_value(x, in, (size_t)n, value, size);
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
	if (!size) { /* a length alone is not worth the AEAD: who reads the value will know */
		n = backing_get(fd, backing, NULL, 0);
		if (n < 0)
			return n;
		return n < (ssize_t)NAME_XATTR_OVERHEAD ? damaged(fd, backing) : n - (ssize_t)NAME_XATTR_OVERHEAD;
	}
	n = backing_get(fd, backing, small, sizeof(small));
	if (n == -ERANGE)
		return get_large(&x, value, size);
	return n < 0 ? n : open_value(&x, small, (size_t)n, value, size);
}

int xattr_set(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *name, const void *value,
    size_t size, int flags)
{
	char backing[NAME_XATTR_BACKING];
	CLEANUP_FREE uint8_t *sealed = NULL;
	int r;

	if (size > NAME_XATTR_VALUE_MAX)
		return -E2BIG;
	r = backing_name(fd, id, names, name, backing);
	if (r)
		return r;
	sealed = malloc(size + NAME_XATTR_OVERHEAD);
	if (!sealed)
		return -ENOMEM;
	r = name_xattr_seal(names, id, backing, value, size, sealed);
	return r ? r : backing_set(fd, backing, sealed, size + NAME_XATTR_OVERHEAD, flags);
}

int xattr_remove(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *name)
{
	char backing[NAME_XATTR_BACKING];
	int r = backing_name(fd, id, names, name, backing);

	return r ? r : backing_remove(fd, backing);
}

/* ---- list */

/* The backing's list, malloc'ed; 0 and NULL when there is none. */
static ssize_t list_all(int fd, char **out)
{
	for (int i = 0; i < LIST_TRIES; i++) { /* it may grow between the two calls */
		ssize_t n = backing_list(fd, NULL, 0);

		if (n <= 0)
			return n;
		char *list = malloc((size_t)n + 1);
		if (!list)
			return -ENOMEM;
		n = backing_list(fd, list, (size_t)n);
		if (n >= 0) {
			list[n] = 0;
			*out = list;
			return n;
		}
		free(list);
		if (n != -ERANGE)
			return n;
	}
	return -EIO;
}

ssize_t xattr_list(int fd, const uint8_t id[static 16], const struct name_keys *names, char *list, size_t size)
{
	CLEANUP_FREE char *backing = NULL;
	char plain[NAME_XATTR_MAX + 1];
	size_t used = 0;
	ssize_t n = check_object(fd);

	if (!n)
		n = list_all(fd, &backing);
	if (n <= 0)
		return n;
	for (const char *at = backing; at < backing + n; at += strlen(at) + 1) {
		if (strncmp(at, BACKING_PREFIX, sizeof(BACKING_PREFIX) - 1) != 0 ||
		    name_xattr_decrypt(names, id, at, plain) < 0)
			continue;
		size_t len = strlen(plain) + 1;

		if (size && len > size - used)
			return -ERANGE;
		if (size)
			memcpy(list + used, plain, len);
		used += len;
	}
	return (ssize_t)used;
}
