/* Attributes: stat, chmod, chown, truncate by path, times, extended attributes, ACLs. The backing keeps mode, owner and times;
 * size comes from the file's state or its hint.                                                                          */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "acl.h"
#include "fs.h"
#include "fuseio.h"
#include "state.h"
#include "xattr.h"

#define PROC_PATH 40

static void proc_path(char out[static PROC_PATH], int fd)
{
	(void)snprintf(out, PROC_PATH, "/proc/self/fd/%d", fd);
}

/* Attributes as users see them, from an open descriptor of the object (O_PATH serves). */
static int attr_fd(struct fs *fs, struct inode *inode, int fd, struct stat *st)
{
	char path[PROC_PATH];

	if (fstat(fd, st))
		return -errno;
	if (!S_ISREG(st->st_mode) || inode->file) {
		fs_attr(fs, inode, fd, "", st);
		return 0;
	}
	proc_path(path, fd);
	st->st_size = (off_t)state_told_size(fs, -1, AT_FDCWD, path, st);
	st->st_blksize = LAYOUT_PAGE;
	return 0;
}

static int attr_get(struct fs *fs, struct inode *inode, struct stat *st)
{
	CLEANUP_FD int fd = -1;
	int r = inode_stat(fs->inodes, inode, st);

	if (r)
		return r;
	pthread_mutex_lock(&inode->lock);
	bool loaded = inode->file != NULL;

	pthread_mutex_unlock(&inode->lock);
	uint64_t size;

	if (!S_ISREG(st->st_mode) || loaded) {
		fs_attr(fs, inode, -1, "", st);
		return 0;
	}
	if (!store_in_doubt(fs->store, st) && layout_hint_decode((uint64_t)st->st_size, &size)) {
		st->st_size = (off_t)size;
		st->st_blksize = LAYOUT_PAGE;
		return 0;
	}
	fd = inode_open(fs->inodes, inode, O_RDONLY);
	if (fd < 0)
		return fd;
	st->st_size = (off_t)state_told_size(fs, fd, -1, NULL, st);
	st->st_blksize = LAYOUT_PAGE;
	return 0;
}

static int getattr(struct fs *fs, fuse_req_t req, fuse_ino_t ino)
{
	struct inode *inode = fs_inode(fs, ino);
	struct stat st;
	int r;

	if (!inode)
		return -ESTALE;
	r = attr_get(fs, inode, &st);
	inode_put(fs->inodes, inode);
	if (!r)
		(void)fuse_reply_attr(req, &st, fs->params.timeout);
	return r;
}

/* The mount's root answers while locked, with no more than the mount table shows: df, mountpoint and ls -d work. */
static void getattr_locked_root(struct fs *fs, fuse_req_t req)
{
	struct stat st;

	if (fstat(fs->store->fd, &st)) {
		fs_error(fs, req, -errno);
		return;
	}
	if (st.st_nlink > 2)
		st.st_nlink--;
	(void)fuse_reply_attr(req, &st, 0);
}

void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	int r = fs_enter(fs, LEASE_WORK);

	(void)fi;
	if (r && ino == FUSE_ROOT_ID) {
		getattr_locked_root(fs, req);
		return;
	}
	if (!r) {
		r = getattr(fs, req, ino);
		fs_leave(fs, LEASE_WORK);
	}
	if (r)
		fs_error(fs, req, r);
}

/* An access ACL, where there is one, follows chmod. */
static int acl_follow(struct fs *fs, struct inode *inode, int fd, mode_t mode)
{
	CLEANUP_FREE uint8_t *acl = NULL;
	uint8_t id[16];
	int r = fs_object_id(fs, inode, id);

	if (r)
		return r == -EOPNOTSUPP ? 0 : r;
	ssize_t n = xattr_get(fd, id, lease_names(fs->lease), ACL_ACCESS, NULL, 0);

	if (n == -ENODATA || n == -EOPNOTSUPP)
		return 0;
	if (n < 0)
		return (int)n;
	acl = malloc((size_t)n);
	if (!acl)
		return -ENOMEM;
	n = xattr_get(fd, id, lease_names(fs->lease), ACL_ACCESS, acl, (size_t)n);
	if (n < 0)
		return (int)n;
	r = acl_chmod(acl, (size_t)n, mode);
	return r ? r : xattr_set(fd, id, lease_names(fs->lease), ACL_ACCESS, acl, (size_t)n, XATTR_REPLACE);
}

static int set_mode(struct fs *fs, struct inode *inode, int fd, mode_t mode)
{
	char path[PROC_PATH];

	proc_path(path, fd);
	if (chmod(path, mode & 07777))
		return -errno;
	return fs->params.multiuser ? acl_follow(fs, inode, fd, mode) : 0;
}

static int set_owner(int fd, const struct stat *attr, int mask)
{
	uid_t uid = mask & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1;
	gid_t gid = mask & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1;

	return fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int set_times(int fd, const struct stat *attr, int mask)
{
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};

	if (mask & FUSE_SET_ATTR_ATIME_NOW)
		ts[0].tv_nsec = UTIME_NOW;
	else if (mask & FUSE_SET_ATTR_ATIME)
		ts[0] = attr->st_atim;
	if (mask & FUSE_SET_ATTR_MTIME_NOW)
		ts[1].tv_nsec = UTIME_NOW;
	else if (mask & FUSE_SET_ATTR_MTIME)
		ts[1] = attr->st_mtim;
	return utimensat(fd, "", ts, AT_EMPTY_PATH) ? -errno : 0;
}

#define SET_TIMES (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW)

static int kill_bits(int fd)
{
	char path[PROC_PATH];
	struct stat st;

	if (fstat(fd, &st))
		return -errno;
	mode_t gone = S_ISUID | (st.st_mode & S_IXGRP ? S_ISGID : 0);

	if (!S_ISREG(st.st_mode) || !(st.st_mode & gone))
		return 0;
	proc_path(path, fd);
	return chmod(path, st.st_mode & 07777 & ~gone) ? -errno : 0;
}

/* Sets the size first: it alone can ask for a key, and nothing may have happened before that. */
static int set_size(struct task *t, struct inode *inode)
{
	struct file_key fk;
	struct file *f;
	int r = state_pin(t, inode, true, &f);

	if (r)
		return r == -ENODATA ? -EIO : r;
	r = task_key(t, f, &fk);
	if (!r)
		r = file_truncate(f, &fk, (uint64_t)t->attr.st_size);
	/* A truncate by path has no close that would write it down. */
	if (!r && !t->handle)
		r = file_flush(f, &fk, true);
	if (!r)
		state_changed(t->fs, inode);
	state_unpin(t->fs, inode);
	return r;
}

static int set_attributes(struct task *t, struct inode *inode)
{
	CLEANUP_FD int fd = -1;
	struct fs *fs = t->fs;
	struct stat st;
	int r = 0;

	if (t->mode & FUSE_SET_ATTR_SIZE)
		r = set_size(t, inode);
	if (r)
		return r;
	fd = inode_open(fs->inodes, inode, O_PATH | O_NOFOLLOW);
	if (fd < 0)
		return fd;
	if (t->kill)
		r = kill_bits(fd);
	if (!r && t->mode & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
		r = set_owner(fd, &t->attr, t->mode);
	if (!r && t->mode & FUSE_SET_ATTR_MODE)
		r = set_mode(fs, inode, fd, t->attr.st_mode);
	if (!r && t->mode & SET_TIMES)
		r = set_times(fd, &t->attr, t->mode);
	if (!r)
		r = attr_fd(fs, inode, fd, &st);
	if (!r)
		(void)fuse_reply_attr(t->req, &st, fs->params.timeout);
	return r;
}

static int run_setattr(struct task *t)
{
	struct inode *inode = fs_inode(t->fs, t->ino);
	int r;

	if (!inode)
		return -ESTALE;
	r = set_attributes(t, inode);
	inode_put(t->fs->inodes, inode);
	return r;
}

/* The kernel writes back the times of what was written through an open file, at the latest when it is closed. Nobody else
 * sets times with a handle. It shows nothing and needs no key, so it is done while locked too: letting go always succeeds. */
static bool times_back(const struct fuse_file_info *fi, int mask)
{
	return fi && (mask & ~FUSE_SET_ATTR_CTIME) == FUSE_SET_ATTR_MTIME;
}

static int set_times_back(struct fs *fs, fuse_req_t req, fuse_ino_t ino, const struct stat *attr, int mask)
{
	struct inode *inode = fs_inode(fs, ino);
	CLEANUP_FD int fd = -1;
	struct stat st;
	int r;

	if (!inode)
		return -ESTALE;
	fd = inode_open(fs->inodes, inode, O_PATH | O_NOFOLLOW);
	r = fd < 0 ? fd : set_times(fd, attr, mask);
	if (!r)
		r = attr_fd(fs, inode, fd, &st);
	inode_put(fs->inodes, inode);
	if (!r)
		(void)fuse_reply_attr(req, &st, 0);
	return r;
}

void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int mask, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	struct task t;

	if (times_back(fi, mask)) {
		int r = set_times_back(fs, req, ino, attr, mask);

		if (r)
			fs_error(fs, req, r);
		return;
	}
	task_init(&t, fs, req, ino, fi, run_setattr);
	t.attr = *attr;
	t.mode = mask;
	task_start(&t);
}

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

		r = inode_dir(fs->inodes, inode, lease_names(fs->lease), &d, &pin);
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

/* An object prepared for xattr calls. */
struct xobject {
	struct inode *inode;
	int fd;
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
	if (!r) {
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

static int getxattr_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	CLEANUP_FREE char *buf = malloc(size ? size : 1);
	struct xobject x;
	int r;

	if (!buf)
		return -ENOMEM;
	r = xobject_get(fs, ino, &x);
	if (r)
		return r;
	ssize_t n = xattr_get(x.fd, x.id, lease_names(fs->lease), name, buf, size);

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
	FS_OP(req, getxattr_(fs, req, ino, name, size));
}

static int listxattr_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size)
{
	CLEANUP_FREE char *buf = malloc(size ? size : 1);
	struct xobject x;
	int r;

	if (!buf)
		return -ENOMEM;
	r = xobject_get(fs, ino, &x);
	if (r == -EOPNOTSUPP) { /* links and special files have none */
		reply_xattr(req, buf, size, 0);
		return 0;
	}
	if (r)
		return r;
	ssize_t n = xattr_list(x.fd, x.id, lease_names(fs->lease), buf, size);

	xobject_put(fs, &x);
	if (n < 0)
		return (int)n;
	reply_xattr(req, buf, size, n);
	return 0;
}

void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	FS_OP(req, listxattr_(fs, req, ino, size));
}

/* An access ACL sets the mode; one that says no more than the mode is not stored. */
static int set_acl(struct fs *fs, const struct xobject *x, const char *name, const void *value, size_t size, int flags)
{
	const struct name_keys *names = lease_names(fs->lease);
	bool access = strcmp(name, ACL_ACCESS) == 0, minimal;
	char path[PROC_PATH];
	struct stat st;
	mode_t mode;
	int r = acl_mode(value, size, &mode, &minimal);

	if (r)
		return r;
	if (!access) {
		if (!S_ISDIR(x->inode->type))
			return -EACCES;
		pthread_mutex_lock(&x->inode->lock);
		x->inode->no_acl = false;
		pthread_mutex_unlock(&x->inode->lock);
		return xattr_set(x->fd, x->id, names, name, value, size, flags);
	}
	if (fstat(x->fd, &st))
		return -errno;
	proc_path(path, x->fd);
	mode |= st.st_mode & (fuseio_kill_suidgid() ? 05000 : 07000);
	if (chmod(path, mode))
		return -errno;
	if (!minimal)
		return xattr_set(x->fd, x->id, names, name, value, size, flags);
	r = xattr_remove(x->fd, x->id, names, name);
	return r == -ENODATA ? 0 : r;
}

static int setxattr_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	struct xobject x;
	int r = xobject_get(fs, ino, &x);

	if (r)
		return r;
	if (strcmp(name, ACL_ACCESS) == 0 || strcmp(name, ACL_DEFAULT) == 0)
		r = set_acl(fs, &x, name, value, size, flags);
	else
		r = xattr_set(x.fd, x.id, lease_names(fs->lease), name, value, size, flags);
	xobject_put(fs, &x);
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	FS_OP(req, setxattr_(fs, req, ino, name, value, size, flags));
}

static int removexattr_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, const char *name)
{
	struct xobject x;
	int r = xobject_get(fs, ino, &x);

	if (r)
		return r;
	r = xattr_remove(x.fd, x.id, lease_names(fs->lease), name);
	xobject_put(fs, &x);
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	FS_OP(req, removexattr_(fs, req, ino, name));
}
