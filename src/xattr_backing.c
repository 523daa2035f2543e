/* The backing's attribute calls. Hides that the f*xattr calls refuse O_PATH descriptors, which go through /proc/self/fd
 * instead, and that a list may grow between the two calls that get it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/xattr.h>

#include "xattr_internal.h"

#define LIST_TRIES 8

struct proc {
	char path[32];
};

static const char *proc_path(struct proc *p, int fd)
{
	(void)snprintf(p->path, sizeof(p->path), "/proc/self/fd/%d", fd);
	return p->path;
}

ssize_t xattr_backing_get(int fd, const char *name, void *value, size_t size)
{
	struct proc p;
	ssize_t n = fgetxattr(fd, name, value, size);

	if (n < 0 && errno == EBADF)
		n = getxattr(proc_path(&p, fd), name, value, size);
	return n < 0 ? -errno : n;
}

int xattr_backing_set(int fd, const char *name, const void *value, size_t size, int flags)
{
	struct proc p;
	int r = fsetxattr(fd, name, value, size, flags);

	if (r && errno == EBADF)
		r = setxattr(proc_path(&p, fd), name, value, size, flags);
	return r ? -errno : 0;
}

int xattr_backing_remove(int fd, const char *name)
{
	struct proc p;
	int r = fremovexattr(fd, name);

	if (r && errno == EBADF)
		r = removexattr(proc_path(&p, fd), name);
	return r ? -errno : 0;
}

static ssize_t list_into(int fd, char *list, size_t size)
{
	struct proc p;
	ssize_t n = flistxattr(fd, list, size);

	if (n < 0 && errno == EBADF)
		n = listxattr(proc_path(&p, fd), list, size);
	return n < 0 ? -errno : n;
}

ssize_t xattr_backing_list(int fd, char **out)
{
	for (int i = 0; i < LIST_TRIES; i++) {
		ssize_t n = list_into(fd, NULL, 0);

		if (n <= 0)
			return n;
		char *list = malloc((size_t)n + 1);
		if (!list)
			return -ENOMEM;
		n = list_into(fd, list, (size_t)n);
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
