/* ACLs of FIFOs, sockets and devices. They have no id that an attribute could be bound to, nor may they have user
 * attributes; so the backing keeps the ACL itself, in the clear and in step with the mode, as it keeps the mode. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "acl.h"
#include "fs.h"
#include "ops.h"
#include "log.h"

/* An O_PATH descriptor of a FIFO or device is the only safe one, and takes no f*xattr call. */
struct proc {
	char path[40];
};

static const char *proc_path(struct proc *p, int fd)
{
	(void)snprintf(p->path, sizeof(p->path), "/proc/self/fd/%d", fd);
	return p->path;
}

ssize_t special_get(int fd, const char *name, void *value, size_t size)
{
	struct proc p;
	ssize_t n;

	if (!fs_is_acl(name))
		return -EOPNOTSUPP;
	n = getxattr(proc_path(&p, fd), name, value, size);
	if (n >= 0)
		return n;
	/* To the kernel any other answer than "none" forbids the object. */
	return errno == EOPNOTSUPP ? -ENODATA : -errno;
}

int special_set(fuse_req_t req, int fd, const char *name, const void *value, size_t size)
{
	struct proc p;
	struct stat st;
	int r = fs_is_acl(name) ? acl_check(value, size) : -EOPNOTSUPP;

	if (!r && setxattr(proc_path(&p, fd), name, value, size, 0))
		r = -errno;
	if (!r && fstat(fd, &st))
		r = -errno;
	if (!r && st.st_mode & S_ISGID && !fs_caller_in_group(req, st.st_gid))
		r = fs_chmod(fd, st.st_mode & ~(mode_t)S_ISGID);
	return r;
}

int special_remove(int fd, const char *name)
{
	struct proc p;

	if (!fs_is_acl(name))
		return -EOPNOTSUPP;
	if (!removexattr(proc_path(&p, fd), name) || errno == EOPNOTSUPP)
		return 0;
	return -errno;
}

ssize_t special_list(int fd, char list[static sizeof(ACL_ACCESS)])
{
	ssize_t n = special_get(fd, ACL_ACCESS, NULL, 0);

	if (n < 0)
		return n == -ENODATA ? 0 : n;
	memcpy(list, ACL_ACCESS, sizeof(ACL_ACCESS));
	return sizeof(ACL_ACCESS);
}

int special_birth(const struct fs_birth *b, int fd)
{
	struct proc p;

	if (!setxattr(proc_path(&p, fd), ACL_ACCESS, b->access_acl, b->access_len, 0))
		return 0;
	if (errno != EOPNOTSUPP)
		return -errno;
	log_debug("the store's filesystem has no ACLs: a special file's group is left without rights");
	return 0;
}
