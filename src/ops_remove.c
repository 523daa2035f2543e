/* Names that go: unlink, rmdir and rename. What loses its last name stays reachable for those who have it open. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h> /* RENAME_EXCHANGE */
#include <string.h>
#include <unistd.h>

#include "fdpool.h"
#include "fs.h"
#include "ops.h"
#include "newborn.h"
#include "reseal.h"
#include "state.h"

/* What is about to lose a name, if the kernel knows it. */
struct leaving {
	struct inode *inode;
	int fd;
	struct name_entry name; /* leaving_find()'s result tells whether it is one */
};

/* A directory's id is learnt while it is there: once its .byokfs.d goes, its absence would look like damage to whoever
 * opens it. */
static void directory_known(struct fs *fs, struct inode *inode)
{
	struct domain *domain = domain_of_inode(fs, inode); /* another one's root, perhaps, and that one locked */
	struct inode_pin *pin;
	struct dir d;

	if (domain_visit(domain, LEASE_WORK))
		return;
	if (domain_dir(fs, inode, &d, &pin) == 0)
		inode_dir_put(fs->inodes, pin);
	domain_leave(domain, LEASE_WORK);
}

static int leaving_find(struct fs *fs, const struct fs_dir *d, const char *name, struct leaving *l)
{
	struct stat st;
	int r;

	*l = (struct leaving){ .fd = -1 };
	r = name_encrypt(d->dir.names, d->dir.id, name, strlen(name), &l->name);
	if (r)
		return r;
	do /* without it, whoever has the file open would lose it */
		l->fd = openat(d->dir.fd, l->name.entry, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	while (l->fd < 0 && errno == EMFILE && fdpool_shed());
	if (l->fd < 0 || fstat(l->fd, &st))
		return 0;
	l->inode = inode_find(fs->inodes, &st);
	if (l->inode && S_ISDIR(st.st_mode))
		directory_known(fs, l->inode);
	return 0;
}

/* The name is gone, or is not. Without the last name a closed file's state has nothing left to write. */
static void leaving_end(struct fs *fs, struct leaving *l, bool gone)
{
	struct stat st;

	if (l->inode && gone && fstat(l->fd, &st) == 0 && (S_ISDIR(st.st_mode) || st.st_nlink == 0)) {
		inode_removed(l->inode, &l->fd);
		state_settle(fs, l->inode);
	}
	if (l->inode)
		inode_put(fs->inodes, l->inode);
	cleanup_fd(&l->fd);
}

/* The directory that becomes a key domain's root keeps its name until it is one. */
static int name_closed(struct fs *fs, const struct fs_dir *d, const char *name)
{
	struct leaving l;
	int r;

	if (!atomic_load(&fs->planting))
		return 0;
	r = leaving_find(fs, d, name, &l);
	if (r)
		return r;
	r = l.inode && atomic_load(&l.inode->entering) & FS_DIR_CLOSED ? -EBUSY : 0;
	leaving_end(fs, &l, false);
	return r;
}

static int remove_(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name, bool directory)
{
	struct leaving leaving;
	struct fs_dir d;
	int r = fs_dir_get(fs, parent, &d);

	if (r)
		return r;
	r = name_closed(fs, &d, name);
	if (!r)
		r = leaving_find(fs, &d, name, &leaving);
	if (!r) {
		r = directory ? dir_rmdir(&d.dir, name, strlen(name)) : dir_unlink_entry(&d.dir, &leaving.name);
		leaving_end(fs, &leaving, r == 0);
	}
	fs_dir_put(fs, &d);
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	FS_OP(req, parent, remove_(fs, req, parent, name, false));
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	FS_OP(req, parent, remove_(fs, req, parent, name, true));
}

/* What moves into a directory before its first flush belongs to that directory's next fsync. */
static void rename_newborn(struct fs *fs, const struct fs_dir *to, const char *newname)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct inode *inode;
	struct stat st;

	if (!newborn_any() || dir_stat(&to->dir, newname, strlen(newname), &st, entry) ||
	    fs_look(fs, to, entry, &st, &inode))
		return;
	newborn_note(to->inode->nodeid, inode->nodeid, inode->generation);
	inode_forget(fs->inodes, inode->nodeid, 1);
	inode_put(fs->inodes, inode);
}

/* A rotation may be looking for it. */
static void tell_moving(struct fs *fs, const struct fs_dir *d, const char *name)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct inode *inode;
	struct stat st;
	int r;

	if (!reseal_recording())
		return;
	r = dir_stat(&d->dir, name, strlen(name), &st, entry);
	if (r == -ENOENT || (!r && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)))
		return;
	if (!r)
		r = fs_look(fs, d, entry, &st, &inode);
	reseal_moving(fs, r ? NULL : inode);
	if (r)
		return;
	inode_forget(fs->inodes, inode->nodeid, 1);
	inode_put(fs->inodes, inode);
}

static int rename_between(struct fs *fs, const struct fs_dir *from, const char *name, const struct fs_dir *to,
    const char *newname, unsigned flags)
{
	int r = name_closed(fs, from, name);

	if (!r)
		r = name_closed(fs, to, newname);
	if (!r)
		r = fs_dir_enter(to);
	if (r)
		return r;
	tell_moving(fs, from, name);
	if (flags & RENAME_EXCHANGE)
		tell_moving(fs, to, newname);
	r = dir_rename(&from->dir, name, strlen(name), &to->dir, newname, strlen(newname), flags);
	fs_dir_leave(to);
	return r;
}

static int rename_(struct fs *fs, fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
    const char *newname, unsigned flags)
{
	struct leaving leaving = { .fd = -1 };
	struct fs_dir from, to;
	int r = fs_dir_get(fs, parent, &from);

	if (r)
		return r;
	r = fs_dir_get(fs, newparent, &to);
	if (r) {
		fs_dir_put(fs, &from);
		return r;
	}
	if (!flags)
		r = leaving_find(fs, &to, newname, &leaving);
	if (!r)
		r = rename_between(fs, &from, name, &to, newname, flags);
	leaving_end(fs, &leaving, r == 0);
	if (!r)
		rename_newborn(fs, &to, newname);
	fs_dir_put(fs, &to);
	fs_dir_put(fs, &from);
	if (!r)
		(void)fuse_reply_err(req, 0);
	return r;
}

void op_rename(
    fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname, unsigned flags)
{
	if (fs_crosses(req, parent, newparent))
		return;
	FS_OP(req, parent, rename_(fs, req, parent, name, newparent, newname, flags));
}
