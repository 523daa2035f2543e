/* Extended attributes and POSIX ACLs. An access ACL and the backing's mode are kept in step; the kernel enforces. */
#include <errno.h>
#include <fcntl.h>
#include <linux/limits.h>
#include <linux/xattr.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "acl.h"
#include "fs.h"
#include "ops.h"
#include "xattr.h"

int fs_object_id(struct fs *fs, struct inode *inode, uint8_t id[static 16])
{
	struct header_ident ident;
	struct header_slot slot;
	CLEANUP_FD int fd = -1;
	bool have;
	int r;

	if (S_ISDIR(inode->type)) {
		struct inode_pin *pin;
		struct dir d;

		r = domain_dir(fs, inode, &d, &pin);
		if (r)
			return r;
		memcpy(id, d.id, 16);
		inode_dir_put(fs->inodes, pin);
		return 0;
	}
	if (!S_ISREG(inode->type))
		return -EOPNOTSUPP;
	pthread_mutex_lock(&inode->lock);
	have = inode->have_fileid;
	memcpy(id, inode->fileid, 16);
	pthread_mutex_unlock(&inode->lock);
	if (have)
		return 0;
	fd = inode_open(fs->inodes, inode, O_RDONLY);
	if (fd < 0)
		return fd;
	r = file_peek(fd, &ident, &slot);
	if (r)
		return r == -ENODATA ? -EIO : r;
	memcpy(id, ident.file, 16);
	pthread_mutex_lock(&inode->lock);
	memcpy(inode->fileid, ident.file, 16);
	inode->have_fileid = true;
	pthread_mutex_unlock(&inode->lock);
	return 0;
}

int fs_drop_capability(struct fs *fs, struct inode *inode, int fd)
{
	uint8_t id[16];
	bool none;
	int r;

	pthread_mutex_lock(&inode->lock);
	none = inode->flags & FS_NO_CAPABILITY;
	pthread_mutex_unlock(&inode->lock);
	if (none || !fs->params.multiuser || !S_ISREG(inode->type))
		return 0;
	r = fs_object_id(fs, inode, id);
	if (!r)
		r = xattr_remove(fd, id, fs_names(fs, inode), XATTR_NAME_CAPS);
	if (r && r != -ENODATA && r != -EOPNOTSUPP)
		return r;
	pthread_mutex_lock(&inode->lock);
	inode->flags |= FS_NO_CAPABILITY;
	pthread_mutex_unlock(&inode->lock);
	return 0;
}

bool fs_is_acl(const char *name)
{
	return strcmp(name, ACL_ACCESS) == 0 || strcmp(name, ACL_DEFAULT) == 0;
}

bool fs_has_no_xattr(struct inode *inode)
{
	LOCK_SCOPE(&inode->lock);
	return inode->flags & FS_NO_XATTR;
}

void fs_learn_no_xattr(struct inode *inode)
{
	LOCK_SCOPE(&inode->lock);
	if (!(inode->flags & FS_MAYBE_XATTR))
		inode->flags |= FS_NO_XATTR | FS_NO_CAPABILITY;
}

/* An object prepared for xattr calls. */
struct xobject {
	struct inode *inode;
	int fd;
	bool special; /* a FIFO, socket or device: no id, no attributes but an ACL (ops_special.c) */
	uint8_t id[16];
};

static int xobject_get(struct fs *fs, fuse_ino_t ino, struct xobject *x)
{
	int r;

	x->fd = -1;
	x->inode = fs_inode(fs, ino);
	if (!x->inode)
		return -ESTALE;
	r = fs_object_id(fs, x->inode, x->id);
	x->special = r == -EOPNOTSUPP && !S_ISLNK(x->inode->type);
	if (!r || x->special) {
		x->fd = inode_open(fs->inodes, x->inode, O_PATH | O_NOFOLLOW);
		r = x->fd < 0 ? x->fd : 0;
	}
	if (r)
		inode_put(fs->inodes, x->inode);
	return r;
}

static void xobject_put(struct fs *fs, struct xobject *x)
{
	(void)close(x->fd);
	inode_put(fs->inodes, x->inode);
}

/* Answers a size question or a buffer, as getxattr and listxattr do. */
static void reply_xattr(fuse_req_t req, const char *buf, size_t asked, ssize_t got)
{
	if (asked == 0)
		(void)fuse_reply_xattr(req, (size_t)got);
	else
		(void)fuse_reply_buf(req, buf, (size_t)got);
}

/* The kernel asks for capabilities and ACLs of every file; most have no attribute at all, and that is remembered. */
static bool known_to_have_none(struct fs *fs, fuse_ino_t ino)
{
	struct inode *inode = fs_inode(fs, ino);
	bool none = inode && fs_has_no_xattr(inode);

	if (inode)
		inode_put(fs->inodes, inode);
	return none;
}

static int getxattr_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	CLEANUP_FREE char *buf = NULL;
	struct xobject x;
	int r;

	if (known_to_have_none(fs, ino))
		return -ENODATA;
	buf = malloc(size ? size : 1);
	if (!buf)
		return -ENOMEM;
	r = xobject_get(fs, ino, &x);
	if (r)
		return r;
	ssize_t n = x.special ? special_get(x.fd, name, buf, size)
	                      : xattr_get(x.fd, x.id, fs_names(fs, x.inode), name, buf, size);

	if (n == -ENODATA && !x.special && !fs->params.shared && xattr_none(x.fd, x.id, fs_names(fs, x.inode)))
		fs_learn_no_xattr(x.inode);
	xobject_put(fs, &x);
	if (n < 0)
		return (int)n;
	reply_xattr(req, buf, size, n);
	if (size)
		explicit_bzero(buf, (size_t)n);
	return 0;
}

void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	FS_OP(req, ino, getxattr_(fs, req, ino, name, size));
}

/* trusted.* is for those who administer: others are not even told the names. */
static size_t hide_trusted(char *list, size_t n)
{
	size_t kept = 0;

	for (size_t at = 0, len; at < n; at += len) {
		len = strlen(list + at) + 1;
		if (strncmp(list + at, XATTR_TRUSTED_PREFIX, XATTR_TRUSTED_PREFIX_LEN) == 0)
			continue;
		memmove(list + kept, list + at, len);
		kept += len;
	}
	return kept;
}

static ssize_t list_for(struct fs *fs, fuse_req_t req, const struct xobject *x, char buf[static XATTR_LIST_MAX])
{
	ssize_t n = x->special ? special_list(x->fd, buf)
	                       : xattr_list(x->fd, x->id, fs_names(fs, x->inode), buf, XATTR_LIST_MAX);

	if (n == -ERANGE) /* more than the kernel hands over */
		return -E2BIG;
	if (n > 0 && fuse_req_ctx(req)->uid != 0 && fs->params.multiuser)
		n = (ssize_t)hide_trusted(buf, (size_t)n);
	return n;
}

static int listxattr_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size)
{
	CLEANUP_FREE char *buf = malloc(XATTR_LIST_MAX);
	struct xobject x;
	int r;

	if (!buf)
		return -ENOMEM;
	r = xobject_get(fs, ino, &x);
	if (r == -EOPNOTSUPP) { /* links have none */
		reply_xattr(req, buf, size, 0);
		return 0;
	}
	if (r)
		return r;
	ssize_t n = list_for(fs, req, &x, buf);

	xobject_put(fs, &x);
	if (n < 0)
		return (int)n;
	if (size && (size_t)n > size)
		return -ERANGE;
	reply_xattr(req, buf, size, n);
	explicit_bzero(buf, (size_t)n);
	return 0;
}

void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	FS_OP(req, ino, listxattr_(fs, req, ino, size));
}

bool fs_caller_in_group(fuse_req_t req, gid_t gid)
{
	CLEANUP_FREE gid_t *groups = NULL;
	int n;

	if (fuse_req_ctx(req)->gid == gid || fuse_req_ctx(req)->uid == 0)
		return true;
	n = fuse_req_getgroups(req, 0, NULL);
	groups = n > 0 ? calloc((size_t)n, sizeof(*groups)) : NULL;
	if (!groups || fuse_req_getgroups(req, n, groups) < n)
		return false;
	for (int i = 0; i < n; i++)
		if (groups[i] == gid)
			return true;
	return false;
}

/* An access ACL sets the mode, and by that takes away a setgid bit as chmod(2) would: the kernel leaves that to us. One
 * that says no more than the mode is not stored. */
static int set_access_acl(
    struct fs *fs, fuse_req_t req, const struct xobject *x, const void *value, size_t size, int flags)
{
	const struct name_keys *names = fs_names(fs, x->inode);
	struct stat st;
	bool minimal;
	mode_t mode;
	int r = acl_mode(value, size, &mode, &minimal);

	if (r)
		return r;
	if (fstat(x->fd, &st))
		return -errno;
	mode |= st.st_mode & 07000;
	if (mode & S_ISGID && !fs_caller_in_group(req, st.st_gid))
		mode &= ~(mode_t)S_ISGID;
	/* The list first: if it cannot be stored, no wider mode must stay behind. */
	r = minimal ? xattr_remove(x->fd, x->id, names, ACL_ACCESS)
	            : xattr_set(x->fd, x->id, names, ACL_ACCESS, value, size, flags);
	if (r && !(minimal && r == -ENODATA))
		return r;
	return fs_chmod(x->fd, mode);
}

static int set_default_acl(struct fs *fs, const struct xobject *x, const void *value, size_t size, int flags)
{
	int r = acl_check(value, size);

	if (r)
		return r;
	if (!S_ISDIR(x->inode->type))
		return -EACCES;
	pthread_mutex_lock(&x->inode->lock);
	x->inode->no_acl = false;
	pthread_mutex_unlock(&x->inode->lock);
	return xattr_set(x->fd, x->id, fs_names(fs, x->inode), ACL_DEFAULT, value, size, flags);
}

/* Without multiuser the ACL flag is not negotiated: some kernels then let anybody set one, and none enforces it. */
static bool acl_unserved(const struct fs *fs, const char *name)
{
	return !fs->params.multiuser && fs_is_acl(name);
}

static int setxattr_(
    struct fs *fs, fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	struct xobject x;
	int r = acl_unserved(fs, name) ? -EOPNOTSUPP : xobject_get(fs, ino, &x);

	if (r)
		return r;
	pthread_mutex_lock(&x.inode->lock);
	x.inode->flags = (x.inode->flags & ~(FS_NO_CAPABILITY | FS_NO_XATTR)) | FS_MAYBE_XATTR;
	pthread_mutex_unlock(&x.inode->lock);
	/* The kernel lets one caller at a time change attributes of an object, and no other host may write. */
	if (!x.special && !fs->params.shared && size > NAME_XATTR_FIRST - NAME_XATTR_REST)
		xattr_sweep(x.fd);
	if (x.special)
		r = special_set(req, x.fd, name, value, size);
	else if (strcmp(name, ACL_ACCESS) == 0)
		r = set_access_acl(fs, req, &x, value, size, flags);
	else if (strcmp(name, ACL_DEFAULT) == 0)
		r = set_default_acl(fs, &x, value, size, flags);
	else
		r = xattr_set(x.fd, x.id, fs_names(fs, x.inode), name, value, size, flags);
	xobject_put(fs, &x);
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	FS_OP(req, ino, setxattr_(fs, req, ino, name, value, size, flags));
}

static int removexattr_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, const char *name)
{
	struct xobject x;
	int r = acl_unserved(fs, name) ? -EOPNOTSUPP : xobject_get(fs, ino, &x);

	if (r)
		return r;
	r = x.special ? special_remove(x.fd, name) : xattr_remove(x.fd, x.id, fs_names(fs, x.inode), name);
	xobject_put(fs, &x);
	/* An ACL that is not there is removed already. */
	if (r == -ENODATA && fs_is_acl(name))
		r = 0;
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	FS_OP(req, ino, removexattr_(fs, req, ino, name));
}
