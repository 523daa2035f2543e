/* What ends a piece of work on a file: close(2) of a descriptor, fsync(2). */
#include <errno.h>

#include "fs.h"
#include "ops.h"

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
	if (!r)
		(void)fuse_reply_err(t->req, 0);
	return r;
}

/* close(2). While locked there is nothing to write back, and letting go always succeeds. */
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct task t;

	task_init(&t, fuse_req_userdata(req), req, ino, fi, run_flush);
	t.lenient = true;
	locks_flush(t.fs, t.handle, fi->lock_owner);
	/* A reader is not told what went wrong for a writer. */
	if (!t.handle->write || !file_dirty(t.handle->inode->file))
		(void)fuse_reply_err(req, 0);
	else
		task_start(&t);
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
	task_start(&t);
}
