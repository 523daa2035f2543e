/* Names: look-up and everything that makes, links, moves or removes an entry. No file key is needed for any of it.
 * What a new object inherits from its directory (owner, group, setgid, default ACL) is settled here too.             */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "acl.h"
#include "fs.h"
#include "newborn.h"
#include "state.h"
#include "xattr.h"

int fs_entry(struct fs *fs, const struct fs_dir *d, const char *entry, const struct stat *st, struct fuse_entry_param *out,
    struct inode **inode)
{
	int r = inode_look(fs->inodes, d->dir.fd, entry, st, inode);

	if (r)
		return r;
	*out = (struct fuse_entry_param){
		.ino = (*inode)->nodeid,
		.generation = (*inode)->generation,
		.attr = *st,
		.attr_timeout = fs->params.timeout,
		.entry_timeout = fs->params.timeout,
	};
	fs_attr(fs, *inode, d->dir.fd, entry, &out->attr);
	return 0;
}

/* Replies with the entry of something that was just found or made; consumes the look-up when the kernel did not take it. */
static int reply_entry(struct fs *fs, fuse_req_t req, const struct fs_dir *d, const char *entry, const struct stat *st)
{
	struct fuse_entry_param e;
	struct inode *inode;
	int r = fs_entry(fs, d, entry, st, &e, &inode);

	if (r)
		return r;
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
		struct fuse_entry_param none = {.entry_timeout = fs->params.timeout};

		(void)fuse_reply_entry(req, &none);
		r = 0;
	} else if (!r) {
		r = reply_entry(fs, req, &d, entry, &st);
	}
	fs_dir_put(fs, &d);
	return r;
}

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	FS_OP(req, lookup(fs, req, parent, name));
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

/* The default ACL of a directory, malloc'ed; *n = 0 when it has none. */
static int default_acl(struct fs *fs, const struct fs_dir *d, uint8_t **acl, size_t *n)
{
	CLEANUP_FREE uint8_t *value = NULL;
	bool none;

	*acl = NULL;
	*n = 0;
	pthread_mutex_lock(&d->inode->lock);
	none = d->inode->no_acl;
	pthread_mutex_unlock(&d->inode->lock);
	if (none || !fs->params.multiuser)
		return 0;
	value = malloc(ACL_BYTES_MAX);
	if (!value)
		return -ENOMEM;
	ssize_t got = xattr_get(d->dir.fd, d->dir.id, d->dir.names, ACL_DEFAULT, value, ACL_BYTES_MAX);

	if (got == -ENODATA || got == -EOPNOTSUPP) {
		pthread_mutex_lock(&d->inode->lock);
		d->inode->no_acl = true;
		pthread_mutex_unlock(&d->inode->lock);
		return 0;
	}
	if (got < 0)
		return (int)got;
	*acl = steal_ptr(&value);
	*n = (size_t)got;
	return 0;
}

static int birth_acl(struct fs_birth *b, mode_t mode, const uint8_t *acl, size_t n)
{
	bool minimal;

	b->access_acl = malloc(n);
	if (!b->access_acl)
		return -ENOMEM;
	memcpy(b->access_acl, acl, n);
	b->access_len = n;
	if (acl_inherit(b->access_acl, n, &b->mode, &minimal))
		return -EIO;
	if (minimal) {
		free(b->access_acl);
		b->access_acl = NULL;
	}
	if (S_ISDIR(mode)) {
		b->default_acl = malloc(n);
		if (!b->default_acl)
			return -ENOMEM;
		memcpy(b->default_acl, acl, n);
		b->default_len = n;
	}
	return 0;
}

int fs_birth(struct fs *fs, const struct fs_dir *d, mode_t mode, mode_t umask_, uid_t uid, gid_t gid, struct fs_birth *out)
{
	CLEANUP_FREE uint8_t *acl = NULL;
	struct stat st;
	size_t n;
	int r;

	*out = (struct fs_birth){.mode = mode, .owner = {.uid = uid, .gid = gid, .set = fs->params.multiuser}};
	if (fstat(d->dir.fd, &st))
		return -errno;
	if (st.st_mode & S_ISGID) {
		out->owner.gid = st.st_gid;
		if (S_ISDIR(mode))
			out->mode |= S_ISGID;
	}
	r = default_acl(fs, d, &acl, &n);
	if (r)
		return r;
	if (!acl || S_ISLNK(mode)) {
		out->mode &= ~umask_;
		return 0;
	}
	r = birth_acl(out, mode, acl, n);
	if (r)
		fs_birth_free(out);
	return r;
}

int fs_birth_acl(struct fs *fs, struct fs_birth *b, int fd, const uint8_t id[static 16])
{
	const struct name_keys *names = lease_names(fs->lease);
	int r = 0;

	if (b->access_acl)
		r = xattr_set(fd, id, names, ACL_ACCESS, b->access_acl, b->access_len, 0);
	if (!r && b->default_acl)
		r = xattr_set(fd, id, names, ACL_DEFAULT, b->default_acl, b->default_len, 0);
	fs_birth_free(b);
	return r;
}

void fs_birth_free(struct fs_birth *b)
{
	free(b->access_acl);
	free(b->default_acl);
	b->access_acl = b->default_acl = NULL;
}

/* Inherited ACLs of a directory that was just made under `entry`. */
static int mkdir_acl(struct fs *fs, struct fs_birth *b, const struct fs_dir *d, const char *entry)
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
	return r ? r : fs_birth_acl(fs, b, fd, id);
}

/* As reply_entry, for what must become durable with its directory. */
static int reply_newborn(struct fs *fs, fuse_req_t req, const struct fs_dir *d, const char *entry, const struct stat *st)
{
	struct fuse_entry_param e;
	struct inode *inode;
	int r = fs_entry(fs, d, entry, st, &e, &inode);

	if (r)
		return r;
	newborn_note(d->inode->nodeid, inode->nodeid, inode->generation);
	inode_put(fs->inodes, inode);
	if (fuse_reply_entry(req, &e) == -ENOENT)
		inode_forget(fs->inodes, e.ino, 1);
	return 0;
}

static int mkdir_(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	char entry[NAME_ENTRY_MAX + 1];
	struct fs_birth b = {0};
	struct fs_dir d;
	struct stat st;
	int r = fs_dir_get(fs, parent, &d);

	if (r)
		return r;
	r = fs_birth(fs, &d, S_IFDIR | mode, ctx->umask, ctx->uid, ctx->gid, &b);
	if (!r)
		r = dir_mkdir(&d.dir, name, strlen(name), b.mode & 07777, &b.owner, 0, &st);
	if (!r)
		r = entry_name(&d, name, entry);
	if (!r)
		r = mkdir_acl(fs, &b, &d, entry);
	if (!r)
		r = reply_newborn(fs, req, &d, entry, &st);
	fs_birth_free(&b);
	fs_dir_put(fs, &d);
	return r;
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	FS_OP(req, mkdir_(fs, req, parent, name, mode));
}

static int symlink_(struct fs *fs, fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	char entry[NAME_ENTRY_MAX + 1];
	struct fs_birth b = {0};
	struct fs_dir d;
	struct stat st;
	int r = fs_dir_get(fs, parent, &d);

	if (r)
		return r;
	r = fs_birth(fs, &d, S_IFLNK | 0777, 0, ctx->uid, ctx->gid, &b);
	if (!r)
		r = dir_symlink(&d.dir, name, strlen(name), target, strlen(target), &b.owner, &st);
	if (!r)
		r = entry_name(&d, name, entry);
	if (!r)
		r = reply_entry(fs, req, &d, entry, &st);
	fs_birth_free(&b);
	fs_dir_put(fs, &d);
	return r;
}

void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	FS_OP(req, symlink_(fs, req, target, parent, name));
}

/* FIFOs, sockets and devices; regular files come from op_mknod by way of ops_file.c. */
static int special(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);
	char entry[NAME_ENTRY_MAX + 1];
	struct fs_birth b = {0};
	struct fs_dir d;
	struct stat st;
	int r = fs_dir_get(fs, parent, &d);

	if (r)
		return r;
	r = fs_birth(fs, &d, mode, ctx->umask, ctx->uid, ctx->gid, &b);
	if (!r)
		r = dir_mknod(&d.dir, name, strlen(name), b.mode, rdev, &b.owner, &st);
	if (!r)
		r = entry_name(&d, name, entry);
	if (!r)
		r = reply_entry(fs, req, &d, entry, &st);
	fs_birth_free(&b);
	fs_dir_put(fs, &d);
	return r;
}

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	if (S_ISREG(mode) || !(mode & S_IFMT))
		op_create(req, parent, name, mode, NULL);
	else
		FS_OP(req, special(fs, req, parent, name, mode, rdev));
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
	inode_put(fs->inodes, inode);
	if (fd < 0)
		return fd;
	r = dir_readlink(fd, "", lease_names(fs->lease), target);
	if (r < 0)
		return r;
	(void)fuse_reply_readlink(req, target);
	explicit_bzero(target, sizeof(target));
	return 0;
}

void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
	FS_OP(req, readlink_(fs, req, ino));
}

static int remove_(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name,
    int (*fn)(const struct dir *, const char *, size_t))
{
	struct fs_dir d;
	int r = fs_dir_get(fs, parent, &d);

	if (r)
		return r;
	r = fn(&d.dir, name, strlen(name));
	fs_dir_put(fs, &d);
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	FS_OP(req, remove_(fs, req, parent, name, dir_unlink));
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	FS_OP(req, remove_(fs, req, parent, name, dir_rmdir));
}

/* What moves into a directory before its first flush belongs to that directory's next fsync. */
static void rename_newborn(struct fs *fs, const struct fs_dir *to, const char *newname)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct inode *inode;
	struct stat st;

	if (!newborn_any() || dir_stat(&to->dir, newname, strlen(newname), &st, entry) ||
	    inode_look(fs->inodes, to->dir.fd, entry, &st, &inode))
		return;
	newborn_note(to->inode->nodeid, inode->nodeid, inode->generation);
	inode_forget(fs->inodes, inode->nodeid, 1);
	inode_put(fs->inodes, inode);
}

static int rename_(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
    unsigned flags)
{
	struct fs_dir from, to;
	int r = fs_dir_get(fs, parent, &from);

	if (r)
		return r;
	r = fs_dir_get(fs, newparent, &to);
	if (r) {
		fs_dir_put(fs, &from);
		return r;
	}
	r = dir_rename(&from.dir, name, strlen(name), &to.dir, newname, strlen(newname), flags);
	if (!r)
		rename_newborn(fs, &to, newname);
	fs_dir_put(fs, &to);
	fs_dir_put(fs, &from);
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname, unsigned flags)
{
	FS_OP(req, rename_(fs, req, parent, name, newparent, newname, flags));
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
	inode_put(fs->inodes, inode);
	if (fd < 0)
		return fd;
	r = fs_dir_get(fs, parent, &d);
	if (r)
		return r;
	r = dir_link(&d.dir, name, strlen(name), fd, &st);
	if (!r)
		r = entry_name(&d, name, entry);
	if (!r)
		r = reply_entry(fs, req, &d, entry, &st);
	fs_dir_put(fs, &d);
	return r;
}

void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
	FS_OP(req, link_(fs, req, ino, parent, name));
}
