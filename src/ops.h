/* The operations of fs_ops, by file: fuse_lowlevel.h says what each is asked. */
#ifndef BYOKFS_OPS_H
#define BYOKFS_OPS_H

#include <errno.h>

#include "acl.h"
#include "fs.h"

void op_lookup(fuse_req_t, fuse_ino_t, const char *);
void op_forget(fuse_req_t, fuse_ino_t, uint64_t);
void op_forget_multi(fuse_req_t, size_t, struct fuse_forget_data *);
void op_mkdir(fuse_req_t, fuse_ino_t, const char *, mode_t);
void op_mknod(fuse_req_t, fuse_ino_t, const char *, mode_t, dev_t);
void op_symlink(fuse_req_t, const char *, fuse_ino_t, const char *);
void op_readlink(fuse_req_t, fuse_ino_t);
/* What one key seals cannot get another name under a second key: mv(1) then copies. Decided before anything else, open
 * or locked. Replies when true. */
MUST_CHECK bool fs_crosses(fuse_req_t, fuse_ino_t one, fuse_ino_t other);
void op_unlink(fuse_req_t, fuse_ino_t, const char *);
void op_rmdir(fuse_req_t, fuse_ino_t, const char *);
void op_rename(fuse_req_t, fuse_ino_t, const char *, fuse_ino_t, const char *, unsigned);
void op_link(fuse_req_t, fuse_ino_t, fuse_ino_t, const char *);
void op_create(fuse_req_t, fuse_ino_t, const char *, mode_t, struct fuse_file_info *);
void op_open(fuse_req_t, fuse_ino_t, struct fuse_file_info *);
void op_read(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
void op_write(fuse_req_t, fuse_ino_t, const char *, size_t, off_t, struct fuse_file_info *);
void op_flush(fuse_req_t, fuse_ino_t, struct fuse_file_info *);
/* The kernel writes back the times of what was written through t->handle (t->attr), perhaps because of a close. */
void flush_with_times(struct task *);
/* RELEASE of it. */
void flush_released(struct fs *, const struct handle *);
void op_release(fuse_req_t, fuse_ino_t, struct fuse_file_info *);
void op_fsync(fuse_req_t, fuse_ino_t, int, struct fuse_file_info *);
void op_fallocate(fuse_req_t, fuse_ino_t, int, off_t, off_t, struct fuse_file_info *);
void op_lseek(fuse_req_t, fuse_ino_t, off_t, int, struct fuse_file_info *);
void op_getlk(fuse_req_t, fuse_ino_t, struct fuse_file_info *, struct flock *);
void op_setlk(fuse_req_t, fuse_ino_t, struct fuse_file_info *, struct flock *, int);
void op_flock(fuse_req_t, fuse_ino_t, struct fuse_file_info *, int);
/* Applications' locks between hosts (ops_lock.c): before the session, and after its end. */
MUST_CHECK int locks_open(struct fs *, size_t max);
/* After every fork. */
MUST_CHECK int locks_start(struct fs *);
void locks_stop(struct fs *);
/* close(2) of a descriptor: what its owner locked through fcntl goes. */
void locks_flush(struct fs *, const struct handle *, uint64_t owner);
/* The last one: whatever was locked through the handle goes. */
void locks_release(struct fs *, const struct handle *);
void op_getattr(fuse_req_t, fuse_ino_t, struct fuse_file_info *);
void op_setattr(fuse_req_t, fuse_ino_t, struct stat *, int, struct fuse_file_info *);
void op_getxattr(fuse_req_t, fuse_ino_t, const char *, size_t);
void op_setxattr(fuse_req_t, fuse_ino_t, const char *, const char *, size_t, int);
void op_listxattr(fuse_req_t, fuse_ino_t, size_t);
void op_removexattr(fuse_req_t, fuse_ino_t, const char *);
void op_opendir(fuse_req_t, fuse_ino_t, struct fuse_file_info *);
void op_readdir(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
void op_readdirplus(fuse_req_t, fuse_ino_t, size_t, off_t, struct fuse_file_info *);
void op_releasedir(fuse_req_t, fuse_ino_t, struct fuse_file_info *);
void op_fsyncdir(fuse_req_t, fuse_ino_t, int, struct fuse_file_info *);
/* Is this attribute an ACL? */
bool fs_is_acl(const char *name);
/* Is the caller in this group, or root? When in doubt, not. */
bool fs_caller_in_group(fuse_req_t, gid_t);
/* ACLs of FIFOs, sockets and devices, by an O_PATH descriptor (ops_special.c); other attributes are -EOPNOTSUPP. */
MUST_CHECK ssize_t special_get(int fd, const char *name, void *value, size_t size);
MUST_CHECK int special_set(fuse_req_t, int fd, const char *name, const void *value, size_t size);
MUST_CHECK int special_remove(int fd, const char *name);
MUST_CHECK ssize_t special_list(int fd, char list[static sizeof(ACL_ACCESS)]);
/* The inherited ACL, of an object made without rights for its group. Without ACLs on the backing it stays so: the
 * group's bits would be the ACL's mask, which may be more than the group was to have. */
MUST_CHECK int special_birth(const struct fs_birth *, int fd);
/* Ends the thread that op_lseek may have started. */
void seeker_stop(struct fs *);

/* The daemon's own reading leaves the backing's atime alone; the first read through a handle moves it the way the
 * backing's mount options say, by being one. */
void fs_touch(const struct fs *, struct handle *, struct file *);

/* Brackets what puts an entry into a directory. -EBUSY: it is closed. No key is asked for in between. */
#define FS_DIR_CLOSED 0x80000000u
MUST_CHECK static inline int fs_dir_enter(const struct fs_dir *d)
{
	if (!(atomic_fetch_add(&d->inode->entering, 1) & FS_DIR_CLOSED))
		return 0;
	atomic_fetch_sub(&d->inode->entering, 1);
	return -EBUSY;
}
static inline void fs_dir_leave(const struct fs_dir *d)
{
	atomic_fetch_sub(&d->inode->entering, 1);
}

#endif
