/* What ends a piece of work on a file: close(2) of a descriptor, fsync(2).
 *
 * With the kernel's write-back cache close(2) writes back pages and then times, and only then sends a FLUSH. The times
 * tell us as much, and their answer is close's result too; so FLUSH is refused once and never comes again, which saves
 * every close(2) a round trip. Where pages come without times (written in the clock tick of the times before) the
 * RELEASE that follows a last close does it. In shared mode, and without that cache, FLUSH it is. */
#include <errno.h>

#include "fs.h"
#include "ops.h"
#include "log.h"

static int flush_done(struct task *t)
{
	(void)fuse_reply_err(t->req, t->fs->no_flush ? ENOSYS : 0);
	return 0;
}

static int run_flush(struct task *t)
{
	struct file *f = t->handle->inode->file;
	struct file_key fk;
	int r = 0;

	if (file_dirty(f)) {
		r = task_key(t, f, &fk);
		if (!r)
			r = file_flush(f, &fk, true);
	}
	return r ? r : flush_done(t);
}

/* close(2). While locked there is nothing to write back, and letting go always succeeds. */
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct task t;

	task_init(&t, fuse_req_userdata(req), req, ino, fi, run_flush);
	t.anyway = flush_done;
	locks_flush(t.fs, t.handle, fi->lock_owner);
	/* A reader is not told what went wrong for a writer. */
	if (!t.handle->write || !file_dirty(t.handle->inode->file))
		(void)flush_done(&t);
	else
		task_start(&t);
}

/* Replies with the attributes after the times were set. The kernel asks for nothing of it and keeps nothing. */
static int times_done(struct task *t)
{
	struct file *f = t->handle->inode->file;
	struct stat st;
	int fd = file_hold(f), r;

	if (fd < 0)
		return fd;
	r = fstat(fd, &st) ? -errno : 0;
	file_release(f);
	if (r)
		return r;
	st.st_size = (off_t)file_size(f);
	st.st_blksize = LAYOUT_PAGE;
	(void)fuse_reply_attr(t->req, &st, 0);
	return 0;
}

static int times_only(struct task *t)
{
	const struct timespec ts[2] = { { .tv_nsec = UTIME_OMIT }, t->attr.st_mtim };
	int r = file_set_times(t->handle->inode->file, ts);

	return r ? r : times_done(t);
}

static int run_times(struct task *t)
{
	const struct timespec ts[2] = { { .tv_nsec = UTIME_OMIT }, t->attr.st_mtim };
	struct file *f = t->handle->inode->file;
	struct file_key fk;
	int r = task_key(t, f, &fk);

	/* Whoever calls fsync again and again needs the exact size on the backing once, at the end. */
	if (r == -EAGAIN || r == -EINPROGRESS)
		return r;
	if (!r)
		r = file_flush_times(f, &fk, !atomic_load_explicit(&t->handle->synced, memory_order_relaxed), ts);
	else if (file_set_times(f, ts))
		log_debug("cannot set a modification time");
	/* Of a failed write-back the kernel keeps for close(2) that there is no room, or else EIO. */
	if (r == -EDQUOT)
		r = -ENOSPC;
	return r ? r : times_done(t);
}

void flush_with_times(struct task *t)
{
	t->run = run_times;
	t->anyway = times_only;
	if (t->fs->no_flush && file_dirty(t->handle->inode->file)) {
		task_start(t);
		return;
	}
	int r = times_only(t);

	if (r)
		fs_error(t->domain, t->req, r);
}

void flush_released(struct fs *fs, const struct handle *h)
{
	struct domain *d = domain_of_inode(fs, h->inode);
	struct file *f = h->inode->file;
	struct lease_key *key;

	if (!file_dirty(f) || domain_visit(d, LEASE_WORK))
		return;
	int r = lease_file_key(domain_lease(d), file_ident(f), NULL, NULL, &key);

	if (!r) {
		const struct file_key fk = { lease_key_file(key), lease_key_block(key) };

		r = file_flush(f, &fk, true);
		lease_key_put(key);
	}
	domain_leave(d, LEASE_WORK);
	if (r)
		log_debug("a closed file is left to the syncer: %s", strerror(-r));
}

static int run_fsync(struct task *t)
{
	struct file *f = t->handle->inode->file;
	struct file_key fk;
	int r = task_key(t, f, &fk);

	if (!r)
		r = file_fsync(f, &fk);
	if (!r)
		(void)fuse_reply_err(t->req, 0);
	return r;
}

void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct task t;

	(void)datasync;
	task_init(&t, fuse_req_userdata(req), req, ino, fi, run_fsync);
	atomic_store_explicit(&t.handle->synced, true, memory_order_relaxed);
	task_start_in_lane(&t, 0);
}
