/* Names that come: look-up and everything that makes or links an entry. No file key is needed for any of it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "acl.h"
#include "fs.h"
#include "ops.h"
#include "log.h"
#include "newborn.h"
#include "reseal.h"
#include "xattr.h"

int fs_look(struct fs *fs, const struct fs_dir *d, const char *entry, const struct stat *st, struct inode **inode)
{
	struct inode_where where;
	int r = domain_place(fs, d, entry, st->st_mode, &where);

	return r ? r : inode_look(fs->inodes, d->dir.fd, entry, st, where, inode);
}

int fs_entry(struct fs *fs, const struct fs_dir *d, const char *entry, const struct stat *st,
    struct fuse_entry_param *out, struct inode **inode)
{
	int r = fs_look(fs, d, entry, st, inode);

	if (r)
		return r;
	*out = (struct fuse_entry_param){
		.ino = (*inode)->nodeid,
		.generation = (*inode)->generation,
		.attr = *st,
		.attr_timeout = fs->params.timeout,
		.entry_timeout = fs->params.entry_timeout,
	};
	fs_attr(fs, *inode, d->dir.fd, entry, &out->attr);
	return 0;
}

/* Replies with the entry of something that was just found or made; consumes the look-up when the kernel did not take
 * it. newborn: it must become durable with its directory. */
static int reply_entry(
    struct fs *fs, fuse_req_t req, const struct fs_dir *d, const char *entry, const struct stat *st, bool newborn)
{
	struct fuse_entry_param e;
	struct inode *inode;
	int r = fs_entry(fs, d, entry, st, &e, &inode);

	if (r)
		return r;
	if (newborn)
		reseal_born(inode);
	if (newborn)
		newborn_note(d->inode->nodeid, inode->nodeid, inode->generation);
	inode_put(fs->inodes, inode);
	if (fuse_reply_entry(req, &e) == -ENOENT)
		inode_forget(fs->inodes, e.ino, 1);
	return 0;
}

static int entry_name(const struct fs_dir *d, const char *name, char entry[static NAME_ENTRY_MAX + 1])
{
	struct name_entry e;
	int r = name_encrypt(d->dir.names, d->dir.id, name, strlen(name), &e);

	if (!r)
		memcpy(entry, e.entry, sizeof(e.entry));
	return r;
}

static int lookup(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct fs_dir d;
	struct stat st;
	int r = fs_dir_get(fs, parent, &d);

	if (r)
		return r;
	r = dir_stat(&d.dir, name, strlen(name), &st, entry);
	if (r == -ENOENT) {
		/* A negative dentry: the next look-up of the name costs nothing. */
		struct fuse_entry_param none = { .entry_timeout = fs->params.entry_timeout };

		(void)fuse_reply_entry(req, &none);
		r = 0;
	} else if (!r) {
		r = reply_entry(fs, req, &d, entry, &st, false);
	}
	fs_dir_put(fs, &d);
	return r;
}

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	FS_OP(req, parent, lookup(fs, req, parent, name));
}

void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t n)
{
	struct fs *fs = fuse_req_userdata(req);

	inode_forget(fs->inodes, ino, n);
	fuse_reply_none(req);
}

void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *f)
{
	struct fs *fs = fuse_req_userdata(req);

	for (size_t i = 0; i < count; i++)
		inode_forget(fs->inodes, f[i].ino, f[i].nlookup);
	fuse_reply_none(req);
}

/* The inherited ACL of a FIFO, socket or device that was just made under `entry`. */
static int mknod_acl(const struct fs_birth *b, const struct fs_dir *d, const char *entry, struct stat *st)
{
	CLEANUP_FD int fd = -1;
	int r;

	if (!b->access_acl)
		return 0;
	fd = openat(d->dir.fd, entry, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = special_birth(b, fd);
	return r ? r : fstat(fd, st) ? -errno : 0;
}

/* Inherited ACLs of a directory that was just made under `entry`. */
static int mkdir_acl(struct fs_birth *b, const struct fs_dir *d, const char *entry)
{
	CLEANUP_FD int fd = -1;
	uint8_t id[16];
	uint16_t index;
	int r;

	if (!b->access_acl && !b->default_acl)
		return 0;
	fd = openat(d->dir.fd, entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	r = dir_read_id(fd, d->dir.names, &index, id);
	return r ? r : fs_birth_acl(d->dir.names, b, fd, id);
}

/* A directory, a symlink (target), or a special file (rdev). Regular files come from ops_file.c. */
struct making {
	mode_t mode, umask;
	const char *target;
	size_t target_len;
	dev_t rdev;
};

static int make_backing(
    const struct fs_dir *d, const char *name, const struct making *m, const struct fs_birth *b, struct stat *st)
{
	size_t len = strlen(name);

	if (S_ISDIR(m->mode))
		return dir_mkdir(&d->dir, name, len, b->mode & 07777, &b->owner, d->inode->domain, st);
	if (S_ISLNK(m->mode))
		return dir_symlink(&d->dir, name, len, m->target, m->target_len, &b->owner, st);
	mode_t mode = b->access_acl ? b->mode & ~(mode_t)S_IRWXG : b->mode; /* as special_birth() wants it */

	return dir_mknod(&d->dir, name, len, mode, m->rdev, &b->owner, st);
}

/* The ACLs of what was just made; without them it goes again. */
static int make_acl(const struct fs_dir *d, const char *name, const char *entry, struct fs_birth *b, struct stat *st)
{
	bool directory = S_ISDIR(st->st_mode);
	int r = directory ? mkdir_acl(b, d, entry) : mknod_acl(b, d, entry, st);

	if (r && (directory ? dir_rmdir : dir_unlink)(&d->dir, name, strlen(name)))
		log_warn("cannot remove an object whose ACL could not be stored");
	return r;
}

static int make(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name, const struct making *m)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	char entry[NAME_ENTRY_MAX + 1];
	struct fs_birth b = { 0 };
	struct fs_dir d;
	struct stat st;
	int r = fs_dir_get(fs, parent, &d);

	if (r)
		return r;
	r = fs_birth(fs, &d, m->mode, m->umask, ctx->uid, ctx->gid, &b);
	if (!r)
		r = fs_dir_enter(&d);
	if (!r) {
		r = make_backing(&d, name, m, &b, &st);
		fs_dir_leave(&d);
	}
	if (!r)
		r = entry_name(&d, name, entry);
	if (!r)
		r = make_acl(&d, name, entry, &b, &st);
	if (!r)
		r = reply_entry(fs, req, &d, entry, &st, S_ISDIR(m->mode));
	fs_birth_free(&b);
	fs_dir_put(fs, &d);
	return r;
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	struct making m = { .mode = S_IFDIR | mode, .umask = fuse_req_ctx(req)->umask };

	FS_OP(req, parent, make(fs, req, parent, name, &m));
}

void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	struct making m = { .mode = S_IFLNK | 0777, .target = target, .target_len = strlen(target) };

	FS_OP(req, parent, make(fs, req, parent, name, &m));
}

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	struct making m = { .mode = mode, .umask = fuse_req_ctx(req)->umask, .rdev = rdev };

	if (S_ISREG(mode) || !(mode & S_IFMT))
		op_create(req, parent, name, mode, NULL);
	else
		FS_OP(req, parent, make(fs, req, parent, name, &m));
}

static int readlink_(struct fs *fs, fuse_req_t req, fuse_ino_t ino)
{
	CLEANUP_FD int fd = -1;
	char target[NAME_LINK_MAX + 1];
	struct inode *inode = fs_inode(fs, ino);
	int r;

	if (!inode)
		return -ESTALE;
	fd = inode_open(fs->inodes, inode, O_PATH | O_NOFOLLOW);
	r = fd < 0 ? fd : dir_readlink(fd, "", fs_names(fs, inode), target);
	inode_put(fs->inodes, inode);
	if (r < 0)
		return r;
	(void)fuse_reply_readlink(req, target);
	explicit_bzero(target, sizeof(target));
	return 0;
}

void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	FS_OP(req, ino, readlink_(fs, req, ino));
}

bool fs_crosses(fuse_req_t req, fuse_ino_t one, fuse_ino_t other)
{
	struct fs *fs = fuse_req_userdata(req);
	struct domain *d = domain_of(fs, one);

	if (d == domain_of(fs, other))
		return false;
	fs_error(d, req, -EXDEV);
	return true;
}

static int link_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	CLEANUP_FD int fd = -1;
	char entry[NAME_ENTRY_MAX + 1];
	struct inode *inode = fs_inode(fs, ino);
	struct fs_dir d;
	struct stat st;
	int r;

	if (!inode)
		return -ESTALE;
	fd = inode_open(fs->inodes, inode, O_PATH | O_NOFOLLOW);
	if (fd >= 0 && S_ISREG(inode->type))
		reseal_moving(fs, inode); /* the name it has may go */
	inode_put(fs->inodes, inode);
	if (fd < 0)
		return fd;
	r = fs_dir_get(fs, parent, &d);
	if (r)
		return r;
	r = fs_dir_enter(&d);
	if (!r) {
		r = dir_link(&d.dir, name, strlen(name), fd, &st);
		fs_dir_leave(&d);
	}
	if (!r)
		r = entry_name(&d, name, entry);
	if (!r)
		r = reply_entry(fs, req, &d, entry, &st, st.st_nlink == 1); /* its first name: it was made without */
	fs_dir_put(fs, &d);
	return r;
}

void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	if (fs_crosses(req, parent, ino))
		return;
	FS_OP(req, parent, link_(fs, req, ino, parent, name));
}
