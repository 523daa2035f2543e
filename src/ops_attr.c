/* Attributes: stat, chmod, chown, truncate, times. The backing keeps mode, owner and times;
 * size comes from the file's state or its hint. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "acl.h"
#include "fs.h"
#include "ops.h"
#include "fuseio.h"
#include "log.h"
#include "state.h"
#include "xattr.h"

int fs_chmod(int fd, mode_t mode)
{
	char path[40];

	if (!fchmod(fd, mode & 07777))
		return 0;
	if (errno != EBADF) /* O_PATH */
		return -errno;
	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return chmod(path, mode & 07777) ? -errno : 0;
}

/* The size of a regular file that has no state. */
static int told_size(struct fs *fs, struct inode *inode, struct stat *st)
{
	CLEANUP_FD int fd = -1;
	uint64_t size;

	if (!state_trusted_size(fs, st, &size)) {
		fd = inode_open(fs->inodes, inode, O_RDONLY);
		if (fd < 0)
			return fd;
		size = state_told_size(fs, fd, -1, NULL, st);
	}
	st->st_size = (off_t)size;
	st->st_blksize = LAYOUT_PAGE;
	return 0;
}

static int attr_loaded(struct fs *fs, struct file *f, struct stat *st)
{
	int fd = file_hold(f), r;

	if (fd < 0)
		return fd;
	r = fstat(fd, st) ? -errno : 0;
	/* Others may have changed it since. */
	st->st_size = (off_t)(fs->params.shared && !r ? state_told_size(fs, fd, -1, NULL, st) : file_size(f));
	st->st_blksize = LAYOUT_PAGE;
	file_release(f);
	return r;
}

/* Attributes as users see them. A loaded file has a descriptor at hand and knows its size; for others fd serves
 * (O_PATH, may be -1). */
static int attr_get(struct fs *fs, struct inode *inode, int fd, struct stat *st)
{
	int r = 0;

	pthread_mutex_lock(&inode->lock);
	bool loaded = inode->file != NULL;

	if (loaded)
		r = attr_loaded(fs, inode->file, st);
	pthread_mutex_unlock(&inode->lock);
	if (loaded)
		return r;
	r = fd >= 0 ? (fstat(fd, st) ? -errno : 0) : inode_stat(fs->inodes, inode, st);
	if (r)
		return r;
	if (S_ISREG(st->st_mode))
		return told_size(fs, inode, st);
	fs_attr(fs, inode, -1, NULL, st);
	return 0;
}

/* To a GETATTR, or to the STATX it was; born may have an empty mask. */
static void reply_attr(fuse_req_t req, const struct stat *st, const struct statx *born, double timeout)
{
	struct fuseio_statx out;

	if (!fuseio_wants_birth()) {
		(void)fuse_reply_attr(req, st, timeout);
		return;
	}
	fuseio_statx(st, born, timeout, &out);
	(void)fuse_reply_buf(req, (const char *)&out, sizeof(out));
}

/* When the backing object was made; unknown where the backing does not keep it. */
static void birth_get(struct fs *fs, struct inode *inode, struct statx *born)
{
	CLEANUP_FD int fd = inode_open(fs->inodes, inode, O_PATH | O_NOFOLLOW);

	if (fd < 0 || statx(fd, "", AT_EMPTY_PATH | AT_STATX_SYNC_AS_STAT, STATX_BTIME, born))
		born->stx_mask = 0;
}

static int getattr(struct fs *fs, fuse_req_t req, fuse_ino_t ino)
{
	struct inode *inode = fs_inode(fs, ino);
	struct statx born = { 0 };
	struct stat st;
	int r;

	if (!inode)
		return -ESTALE;
	r = attr_get(fs, inode, -1, &st);
	if (!r && fuseio_wants_birth())
		birth_get(fs, inode, &born);
	inode_put(fs->inodes, inode);
	if (!r)
		reply_attr(req, &st, &born, fs->params.timeout);
	return r;
}

/* The mount's root answers while locked, with no more than the mount table shows: df, mountpoint and ls -d work. */
static void getattr_locked_root(struct fs *fs, fuse_req_t req)
{
	const struct statx unknown = { 0 };
	struct stat st;

	if (fstat(fs->store->fd, &st)) {
		fs_error(fs->first, req, -errno);
		return;
	}
	if (st.st_nlink > 2)
		st.st_nlink--;
	reply_attr(req, &st, &unknown, 0);
}

/* The root of a nested domain while what leads to it is locked: its attributes belong out there. Those who have it open
 * may go on in it, so the kernel hears what it checks access by, but no times, sizes or counts; and keeps nothing. */
static int getattr_inside(struct fs *fs, fuse_req_t req, fuse_ino_t ino)
{
	struct inode *inode = fs_inode(fs, ino);
	const struct statx unknown = { 0 };
	struct stat st, told = { 0 };
	int r;

	if (!inode)
		return -ESTALE;
	r = inode_stat(fs->inodes, inode, &st);
	inode_put(fs->inodes, inode);
	if (r)
		return r;
	told.st_ino = st.st_ino;
	told.st_mode = st.st_mode;
	told.st_uid = st.st_uid;
	told.st_gid = st.st_gid;
	told.st_nlink = 2;
	reply_attr(req, &told, &unknown, 0);
	return 0;
}

/* The root of a nested domain is looked at from outside, while what is in it may be locked; and from inside, by those
 * who have it open, while what leads to it may be. */
void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	struct domain *domain = domain_outside(fs, ino);
	int r = domain_enter(domain, LEASE_WORK);
	bool inside = r && domain != domain_of(fs, ino);

	if (inside) {
		domain = domain_of(fs, ino);
		r = domain_enter(domain, LEASE_WORK);
	}
	(void)fi;
	if (r && ino == FUSE_ROOT_ID) {
		getattr_locked_root(fs, req);
		return;
	}
	if (!r) {
		r = inside ? getattr_inside(fs, req, ino) : getattr(fs, req, ino);
		domain_leave(domain, LEASE_WORK);
	}
	if (r)
		fs_error(domain, req, r);
}

/* An access ACL, where there is one, follows chmod. */
static int acl_follow(struct fs *fs, struct inode *inode, int fd, mode_t mode)
{
	CLEANUP_FREE uint8_t *acl = NULL;
	uint8_t id[16];
	int r;

	if (fs_has_no_xattr(inode))
		return 0;
	r = fs_object_id(fs, inode, id);
	if (r)
		return r == -EOPNOTSUPP ? 0 : r;
	ssize_t n = xattr_get(fd, id, fs_names(fs, inode), ACL_ACCESS, NULL, 0);

	if (n == -ENODATA || n == -EOPNOTSUPP)
		return 0;
	if (n < 0)
		return (int)n;
	acl = malloc((size_t)n);
	if (!acl)
		return -ENOMEM;
	n = xattr_get(fd, id, fs_names(fs, inode), ACL_ACCESS, acl, (size_t)n);
	if (n < 0)
		return (int)n;
	r = acl_chmod(acl, (size_t)n, mode);
	return r ? r : xattr_set(fd, id, fs_names(fs, inode), ACL_ACCESS, acl, (size_t)n, XATTR_REPLACE);
}

static int set_mode(struct fs *fs, struct inode *inode, int fd, mode_t mode)
{
	int r = fs_chmod(fd, mode);

	return r || !fs->params.multiuser ? r : acl_follow(fs, inode, fd, mode);
}

static int set_owner(int fd, const struct stat *attr, int mask)
{
	uid_t uid = mask & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1;
	gid_t gid = mask & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1;

	return fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

/* A loaded file is asked: it may be about to put its mtime back after work of our own. */
static int set_times(struct inode *inode, int fd, const struct stat *attr, int mask)
{
	struct timespec ts[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_nsec = UTIME_OMIT } };

	if (mask & FUSE_SET_ATTR_ATIME_NOW)
		ts[0].tv_nsec = UTIME_NOW;
	else if (mask & FUSE_SET_ATTR_ATIME)
		ts[0] = attr->st_atim;
	if (mask & FUSE_SET_ATTR_MTIME_NOW)
		ts[1].tv_nsec = UTIME_NOW;
	else if (mask & FUSE_SET_ATTR_MTIME)
		ts[1] = attr->st_mtim;
	LOCK_SCOPE(&inode->lock);
	if (inode->file)
		return file_set_times(inode->file, ts);
	return utimensat(fd, "", ts, AT_EMPTY_PATH) ? -errno : 0;
}

#define SET_TIMES (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW)

/* Setuid goes, and setgid: where it is no more than mandatory locking's old mark (no execution), only if the caller
 * is a stranger to the group. */
static int kill_bits(const struct task *t, int fd)
{
	struct stat st;
	mode_t gone = S_ISUID;

	if (fstat(fd, &st))
		return -errno;
	if (S_ISDIR(st.st_mode) || !(st.st_mode & (S_ISUID | S_ISGID)))
		return 0;
	if (st.st_mode & S_ISGID && (st.st_mode & S_IXGRP || !fs_caller_in_group(t->req, st.st_gid)))
		gone |= S_ISGID;
	return st.st_mode & gone ? fs_chmod(fd, st.st_mode & ~gone) : 0;
}

int fs_drop_privileges(struct task *t, struct inode *inode, struct file *f)
{
	int fd = file_hold(f), r;

	if (fd < 0)
		return fd;
	r = t->kill ? kill_bits(t, fd) : 0;
	if (!r)
		r = fs_drop_capability(t->fs, inode, fd);
	file_release(f);
	return r;
}

/* Sets the size first: it alone can ask for a key, and nothing may have happened before that. */
static int set_size(struct task *t, struct inode *inode)
{
	struct fs *fs = t->fs; /* a parked task may be gone */
	struct file_key fk;
	struct file *f;
	int r = state_pin(t, inode, true, &f);

	if (r)
		return r == -ENODATA ? -EIO : r;
	r = task_key(t, f, &fk);
	if (!r)
		r = fs_drop_privileges(t, inode, f);
	if (!r)
		r = file_truncate(f, &fk, (uint64_t)t->attr.st_size);
	if (!r)
		fs_modified(t->fs, f);
	/* A truncate by path has no close that would write it down. */
	if (!r && !t->handle)
		r = file_flush(f, &fk, true);
	if (!r)
		state_changed(fs, inode);
	state_unpin(fs, inode);
	return r;
}

/* What SETATTR asks for besides the size, on any descriptor of the object. */
static int set_others(struct task *t, struct inode *inode, int fd)
{
	struct fs *fs = t->fs;
	struct stat st;
	int r = 0;

	if (t->kill)
		r = kill_bits(t, fd);
	if (!r && t->mode & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) {
		r = set_owner(fd, &t->attr, t->mode);
		if (!r)
			r = fs_drop_capability(fs, inode, fd);
	}
	if (!r && t->mode & FUSE_SET_ATTR_MODE)
		r = set_mode(fs, inode, fd, t->attr.st_mode);
	if (!r && t->mode & SET_TIMES)
		r = set_times(inode, fd, &t->attr, t->mode);
	if (!r)
		r = attr_get(fs, inode, fd, &st);
	if (!r)
		(void)fuse_reply_attr(t->req, &st, fs->params.timeout);
	return r;
}

static int set_attributes(struct task *t, struct inode *inode)
{
	CLEANUP_FD int fd = -1;
	struct fs *fs = t->fs;
	struct file *f;
	int r = 0;

	if (t->mode & FUSE_SET_ATTR_SIZE)
		r = set_size(t, inode);
	if (r)
		return r;
	f = state_pin_loaded(inode);
	if (f) { /* its descriptor saves finding the file again */
		r = file_hold(f);
		if (r >= 0) {
			r = set_others(t, inode, r);
			file_release(f);
		}
		state_unpin(fs, inode);
		return r;
	}
	int held = inode_held_fd(inode);

	if (held >= 0)
		return set_others(t, inode, held);
	fd = inode_open(fs->inodes, inode, O_PATH | O_NOFOLLOW);
	return fd < 0 ? fd : set_others(t, inode, fd);
}

static int run_setattr(struct task *t)
{
	struct fs *fs = t->fs; /* a parked task may be gone */
	struct inode *inode = fs_inode(fs, t->ino);
	int r;

	if (!inode)
		return -ESTALE;
	r = set_attributes(t, inode);
	inode_put(fs->inodes, inode);
	return r;
}

/* The kernel writes back the times of what was written through an open file, at the latest when it is closed. Nobody
 * else sets times with a handle. It shows nothing and needs no key, so it is done while locked too: letting go always
 * succeeds. */
static bool times_back(const struct fuse_file_info *fi, int mask)
{
	return fi && (mask & ~FUSE_SET_ATTR_CTIME) == FUSE_SET_ATTR_MTIME;
}

static bool has_mtime(struct inode *inode, int fd, const struct timespec *mtime)
{
	struct stat st;

	LOCK_SCOPE(&inode->lock);
	if (inode->file)
		return file_has_mtime(inode->file, mtime);
	return fstat(fd, &st) == 0 && st.st_mtim.tv_sec == mtime->tv_sec && st.st_mtim.tv_nsec == mtime->tv_nsec;
}

/* Of a file that it renamed, linked or gave an attribute the kernel sends the times once more, also when nobody has it
 * open. Refused, because the domain locked in between, they would count as data that was not written back: the next who
 * reads past the cache or syncs would hear of a loss that there was not. A time that the file has already changes
 * nothing, shows nothing and needs no key. */
static int times_again(struct task *t)
{
	CLEANUP_FD int fd = -1;
	struct inode *inode = fs_inode(t->fs, t->ino);
	struct stat st;
	int r;

	if (!inode)
		return -ESTALE;
	fd = inode_open(t->fs->inodes, inode, O_PATH | O_NOFOLLOW);
	r = fd < 0 ? fd : S_ISREG(inode->type) && has_mtime(inode, fd, &t->attr.st_mtim) ? 0 : -EIO;
	if (!r)
		r = attr_get(t->fs, inode, fd, &st);
	inode_put(t->fs->inodes, inode);
	if (!r)
		(void)fuse_reply_attr(t->req, &st, 0);
	return r;
}

void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int mask, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	struct domain *outside = domain_outside(fs, ino);
	struct task t;

	task_init(&t, fs, req, ino, fi, run_setattr);
	t.attr = *attr;
	t.mode = mask;
	if (times_back(fi, mask)) {
		flush_with_times(&t);
		return;
	}
	if ((mask & ~FUSE_SET_ATTR_CTIME) == FUSE_SET_ATTR_MTIME)
		t.anyway = times_again;
	/* A nested domain's root wants both open: its attributes are its parent's, the ACL that follows them its own.
	 * No directory's SETATTR ever parks. */
	if (outside != t.domain && domain_visit(outside, LEASE_WORK)) {
		fs_error(outside, req, -EIO);
		return;
	}
	task_start(&t);
	if (outside != t.domain)
		domain_leave(outside, LEASE_WORK);
}

static void touch_by(const struct fs *fs, struct handle *h, int fd)
{
	char c;
	int flags;

	if (fs->params.readonly || fs->params.noatime ||
	    atomic_exchange_explicit(&h->touched, true, memory_order_relaxed))
		return;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || !(flags & O_NOATIME) || fcntl(fd, F_SETFL, flags & ~O_NOATIME))
		return;
	if (pread(fd, &c, 1, 0) < 0 || fcntl(fd, F_SETFL, flags))
		log_debug("cannot move an access time");
}

void fs_touch(const struct fs *fs, struct handle *h, struct file *f)
{
	int fd = file_hold(f);

	if (fd < 0)
		return;
	touch_by(fs, h, fd);
	file_release(f);
}
