/* Directories as streams: READDIR, READDIRPLUS, and the fsync that makes new names usable.
 *
 * Positions are the backing's own, so they stay valid as long as the backing keeps them; "." and ".." come first, under
 * two positions no filesystem hands out. A handle is used by one request at a time. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "fs.h"
#include "keyahead.h"
#include "ops.h"
#include "log.h"
#include "newborn.h"

#define AFTER_DOT    (INT64_MAX - 3)
#define AFTER_DOTDOT (INT64_MAX - 2)

struct dirhandle {
	pthread_mutex_t lock;
	struct dir_stream *stream;
	const struct domain *domain;
	struct dirhandle *next, **prev; /* fs->dirs */
};

static struct dirhandle *handle_of(const struct fuse_file_info *fi)
{
	return (struct dirhandle *)(uintptr_t)fi->fh; // NOLINT(performance-no-int-to-ptr)
}

static void handle_link(struct fs *fs, struct dirhandle *h)
{
	LOCK_SCOPE(&fs->dirs_lock);
	h->next = fs->dirs;
	h->prev = &fs->dirs;
	if (h->next)
		h->next->prev = &h->next;
	fs->dirs = h;
}

static void handle_free(struct fs *fs, struct dirhandle *h)
{
	pthread_mutex_lock(&fs->dirs_lock);
	*h->prev = h->next;
	if (h->next)
		h->next->prev = h->prev;
	pthread_mutex_unlock(&fs->dirs_lock);
	dir_stream_close(h->stream);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

static int opendir_(struct fs *fs, fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct dirhandle *h = calloc(1, sizeof(*h));
	struct fs_dir d;
	int r;

	if (!h)
		return -ENOMEM;
	r = fs_dir_get(fs, ino, &d);
	if (!r) {
		r = dir_stream_open(&h->stream, &d.dir);
		fs_dir_put(fs, &d);
	}
	if (r) {
		free(h);
		return r;
	}
	pthread_mutex_init(&h->lock, NULL);
	h->domain = domain_of(fs, ino);
	handle_link(fs, h);
	fi->fh = (uintptr_t)h;
	if (fuse_reply_open(req, fi) == -ENOENT)
		handle_free(fs, h);
	return 0;
}

void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	FS_OP(req, ino, opendir_(fs, req, ino, fi));
}

/* Works while locked: it only lets go. */
void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);

	(void)ino;
	handle_free(fs, handle_of(fi));
	(void)fuse_reply_err(req, 0);
}

struct fill {
	struct fs *fs;
	fuse_req_t req;
	const struct fs_dir *dir;
	bool plus;
	char *buf;
	size_t size, used;
};

/* false: the buffer is full. */
static bool fill_dot(struct fill *f, const char *name, off_t next)
{
	struct fuse_entry_param e = { .attr = { .st_mode = S_IFDIR, .st_ino = f->dir->inode->ino } };
	char *at = f->buf + f->used;
	size_t room = f->size - f->used;
	size_t n = f->plus ? fuse_add_direntry_plus(f->req, at, room, name, &e, next)
	                   : fuse_add_direntry(f->req, at, room, name, &e.attr, next);

	if (n > room)
		return false;
	f->used += n;
	return true;
}

static bool fill_plain(struct fill *f, const struct dir_item *item)
{
	struct stat st = { .st_ino = item->ino, .st_mode = (mode_t)DTTOIF(item->type) };
	size_t room = f->size - f->used;
	size_t n = fuse_add_direntry(f->req, f->buf + f->used, room, item->name, &st, item->next);

	if (n > room)
		return false;
	f->used += n;
	return true;
}

/* An entry with its attributes counts as a look-up; one that does not fit must be forgotten again. */
static bool fill_plus(struct fill *f, const struct dir_item *item)
{
	struct fuse_entry_param e;
	struct inode *inode;
	struct stat st;
	size_t room = f->size - f->used;

	if (fstatat(f->dir->dir.fd, item->entry, &st, AT_SYMLINK_NOFOLLOW) ||
	    fs_entry(f->fs, f->dir, item->entry, &st, &e, &inode)) {
		/* Gone meanwhile, or not answerable: the name alone; a look-up will say why. */
		e = (struct fuse_entry_param){ .attr = { .st_ino = item->ino, .st_mode = (mode_t)DTTOIF(item->type) } };
		inode = NULL;
	}
	size_t n = fuse_add_direntry_plus(f->req, f->buf + f->used, room, item->name, &e, item->next);

	if (inode) {
		inode_put(f->fs->inodes, inode);
		if (n > room)
			inode_forget(f->fs->inodes, e.ino, 1);
	}
	if (n > room)
		return false;
	f->used += n;
	return true;
}

static int fill_items(struct fill *f, struct dir_stream *stream, off_t pos)
{
	struct dir_item item;
	int r = 0;

	if (pos == 0) {
		if (!fill_dot(f, ".", AFTER_DOT))
			return 0;
		pos = AFTER_DOT;
	}
	if (pos == AFTER_DOT) {
		if (!fill_dot(f, "..", AFTER_DOTDOT))
			return 0;
		pos = AFTER_DOTDOT;
	}
	if (pos == AFTER_DOTDOT)
		pos = 0;
	for (;;) {
		r = dir_stream_next(stream, &f->dir->dir, pos, &item);
		if (r <= 0)
			break;
		if (f->plus ? !fill_plus(f, &item) : !fill_plain(f, &item))
			break;
		keyahead_note(f->fs, f->dir, pos, &item);
		pos = item.next;
	}
	if (r == 0)
		keyahead_note(f->fs, f->dir, pos, NULL);
	explicit_bzero(&item, sizeof(item));
	return r < 0 && f->used == 0 ? r : 0;
}

static int readdir_(
    struct fs *fs, fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct dirhandle *h, bool plus)
{
	CLEANUP_FREE char *buf = malloc(size);
	struct fs_dir d;
	int r;

	if (!buf)
		return -ENOMEM;
	r = fs_dir_get(fs, ino, &d);
	if (r)
		return r;
	struct fill f = { .fs = fs, .req = req, .dir = &d, .plus = plus, .buf = buf, .size = size };

	pthread_mutex_lock(&h->lock);
	r = fill_items(&f, h->stream, off);
	pthread_mutex_unlock(&h->lock);
	fs_dir_put(fs, &d);
	if (!r)
		(void)fuse_reply_buf(req, buf, f.used);
	explicit_bzero(buf, f.used);
	return r;
}

void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	FS_OP(req, ino, readdir_(fs, req, ino, size, off, handle_of(fi), false));
}

void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	FS_OP(req, ino, readdir_(fs, req, ino, size, off, handle_of(fi), true));
}

/* Makes one child durable; -EAGAIN when it cannot be found any more. */
/* An fsync of the file itself did it. */
static bool flushed(struct inode *inode)
{
	LOCK_SCOPE(&inode->lock);
	return inode->file && file_flushed(inode->file);
}

static int sync_child(struct fs *fs, const struct newborn *b)
{
	CLEANUP_FD int fd = -1;
	struct inode *inode = fs_inode(fs, b->child);
	bool same;

	if (!inode)
		return -EAGAIN;
	same = inode->generation == b->generation;
	bool dir = S_ISDIR(inode->type), reg = S_ISREG(inode->type) && !(same && flushed(inode));

	if (same && (dir || reg))
		fd = inode_open(fs->inodes, inode, dir ? O_RDONLY | O_DIRECTORY : O_RDONLY);
	inode_put(fs->inodes, inode);
	if (!same || ((dir || reg) && fd < 0))
		return -EAGAIN;
	if (fd < 0)
		return 0;
	return (dir ? fsync(fd) : fdatasync(fd)) ? -errno : 0;
}

static int sync_children(struct fs *fs, uint64_t dir)
{
	CLEANUP_FREE struct newborn *list = NULL;
	uint64_t mark = newborn_mark();
	int n, r = 0;

	if (!newborn_any())
		return 0;
	list = calloc(NEWBORN_MAX, sizeof(*list));
	n = list ? newborn_take(dir, list, NEWBORN_MAX) : -1;
	for (int i = 0; i < n && !r; i++)
		r = sync_child(fs, &list[i]);
	if (n >= 0 && r != -EAGAIN)
		return r;
	if (syncfs(fs->store->fd))
		return -errno;
	newborn_clear(mark);
	return 0;
}

static int run_fsyncdir(struct task *t)
{
	struct fs *fs = t->fs;
	struct fs_dir d;
	int r = fs_dir_get(fs, t->ino, &d);

	if (r)
		return r;
	if (!fs->params.readonly)
		r = sync_children(fs, t->ino);
	if (!r && fsync(d.dir.fd))
		r = -errno;
	fs_dir_put(fs, &d);
	if (!r)
		(void)fuse_reply_err(t->req, 0);
	return r;
}

void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct task t;

	(void)datasync;
	(void)fi;
	task_init(&t, fuse_req_userdata(req), req, ino, NULL, run_fsyncdir);
	task_start_in_lane(&t, 0);
}

void op_dir_wipe(struct domain *d)
{
	LOCK_SCOPE(&d->fs->dirs_lock);
	for (struct dirhandle *h = d->fs->dirs; h; h = h->next)
		if (h->domain == d)
			dir_stream_wipe(h->stream);
}
