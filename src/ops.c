/* The operations table, INIT, statfs, and the life of a task: entered, run, answered, or parked until a key arrives. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "bulk.h"
#include "fs.h"
#include "ops.h"
#include "fuseio.h"
#include "log.h"
#include "purge.h"

void fs_error(struct domain *d, fuse_req_t req, int err)
{
	atomic_fetch_add_explicit(&d->op_errors, 1, memory_order_relaxed);
	/* A handle that no longer resolves is a file that is gone. */
	(void)fuse_reply_err(req, err < 0 ? -err : EIO);
}

void task_init(
    struct task *t, struct fs *fs, fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int (*run)(struct task *))
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	memset(t, 0, sizeof(*t));
	t->fs = fs;
	t->domain = domain_of(fs, ino);
	t->req = req;
	t->ino = ino;
	t->run = run;
	t->class = LEASE_WORK;
	t->uid = ctx->uid;
	t->gid = ctx->gid;
	t->umask = ctx->umask;
	t->waiter.cause = (struct context_cause){ ctx->uid, ctx->pid };
	t->kill = fuseio_kill_suidgid();
	if (fi) {
		t->fi = *fi;
		t->handle = (struct handle *)(uintptr_t)fi->fh; // NOLINT(performance-no-int-to-ptr)
	}
}

static void task_free(struct task *t)
{
	bulk_put((void *)(uintptr_t)t->data, t->size); // NOLINT(performance-no-int-to-ptr)
	explicit_bzero(t->name, sizeof(t->name));
	free(t);
}

static void task_ready(struct lease_waiter *);

/* The same task on the heap, with its own copy of what the request buffer held. */
static struct task *task_copy(const struct task *t)
{
	struct task *h = malloc(sizeof(*h));

	if (!h)
		return NULL;
	*h = *t;
	h->heap = true;
	h->data = NULL;
	h->waiter = (struct lease_waiter){ .ready = task_ready, .cause = t->waiter.cause };
	if (t->data) {
		void *data = bulk_get(t->size);

		if (!data) {
			free(h);
			return NULL;
		}
		memcpy(data, t->data, t->size);
		h->data = data;
	}
	return h;
}

void fs_lost(struct fs *fs, struct inode *inode)
{
	struct domain *d = domain_of_inode(fs, inode);
	unsigned now = atomic_load(&d->opening);

	pthread_mutex_lock(&inode->lock);
	bool first = inode->lost_in != now;

	inode->lost_in = now;
	pthread_mutex_unlock(&inode->lock);
	if (!first)
		return;
	atomic_fetch_add(&d->lost, 1);
	log_warn("inode %llu: writes not yet fsynced were lost when the domain locked", (unsigned long long)inode->ino);
}

/* The kernel's page cache gives up a page that we refuse to take, but keeps showing it: it has to be dropped once more.
 */
static void writeback_failed(struct task *t)
{
	fs_lost(t->fs, t->handle->inode);
	atomic_store(&t->domain->stragglers, PURGE_PASSES);
}

/* Answers a task that the domain's state forbids. */
static void task_refuse(struct task *t, int err)
{
	if (t->class == LEASE_WRITEBACK)
		writeback_failed(t);
	if (t->anyway && t->anyway(t) == 0)
		return;
	fs_error(t->domain, t->req, err);
}

/* One attempt, from the beginning. Returns 0 (answered), -EAGAIN (needs to be parked) or -EINPROGRESS (is parked:
 * the task may be gone already). */
static int task_attempt(struct task *t)
{
	struct domain *d = t->domain; /* a parked task may be gone */
	enum lease_class class = t->class;
	int r = domain_enter(d, class);

	if (r) {
		task_refuse(t, r);
		return 0;
	}
	r = t->run(t);
	if (r == -EINPROGRESS) {
		domain_leave(d, class);
		return r;
	}
	lease_key_put(t->key);
	t->key = NULL;
	if (r == -EIO && class == LEASE_WRITEBACK)
		writeback_failed(t);
	if (r && r != -EAGAIN)
		fs_error(d, t->req, r);
	domain_leave(d, class);
	return r == -EAGAIN ? r : 0;
}

static void task_finish(struct task *t, int r)
{
	if (r == -EINPROGRESS)
		return;
	if (r)
		task_refuse(t, -EIO);
	task_free(t);
}

static void key_refused(struct task *t)
{
	struct fs *fs = t->fs;
	/* With a name it is about a file to be made in there. */
	struct inode *inode = t->name[0] ? NULL : fs_inode(fs, t->ino);

	if (!inode)
		return;
	fs_key_refused(fs, inode);
	inode_put(fs->inodes, inode);
}

static void task_ready(struct lease_waiter *w)
{
	struct task *t = (struct task *)(void *)((char *)w - offsetof(struct task, waiter));

	histogram_add(&t->domain->key_wait, histogram_clock() - t->parked);
	if (w->result) {
		key_refused(t);
		task_finish(t, w->result);
		return;
	}
	int r = task_attempt(t);

	if (r != -EINPROGRESS)
		lease_waiter_cancel(w);
	task_finish(t, r);
}

static void task_park(const struct task *t)
{
	struct task *h = task_copy(t);

	if (!h) {
		fs_error(t->domain, t->req, -ENOMEM);
		return;
	}
	atomic_fetch_add_explicit(&t->domain->parked, 1, memory_order_relaxed);
	h->parked = histogram_clock();
	task_finish(h, task_attempt(h));
}

void task_start(struct task *t)
{
	if (task_attempt(t))
		task_park(t);
	explicit_bzero(t->name, sizeof(t->name));
}

/* On the heap since it had to wait for its turn; waiting for a key begins only now. */
static void task_turn(struct lane_job *job)
{
	struct task *t = (struct task *)(void *)((char *)job - offsetof(struct task, lane));
	struct domain *d = t->domain; /* a parked task may be gone */
	int r;

	t->parked = histogram_clock();
	r = task_attempt(t);
	if (r == -EINPROGRESS)
		atomic_fetch_add_explicit(&d->parked, 1, memory_order_relaxed);
	task_finish(t, r);
}

void task_start_in_lane(struct task *t, uint64_t file)
{
	struct lane *lane = t->fs->lane;
	struct task *h;

	t->lane = (struct lane_job){ .file = file, .bytes = sizeof(*t) + t->size, .run = task_turn };
	switch (lane_enter(lane, &t->lane)) {
	case LANE_GO:
		task_start(t);
		lane_leave(lane, &t->lane);
		return;
	case LANE_WAIT:
		h = task_copy(t);
		if (h) {
			lane_add(lane, &h->lane);
			return;
		}
		lane_forego(lane, &t->lane);
		break;
	case LANE_FULL:
		break;
	}
	task_start(t);
}

static void key_fill(struct task *t, struct file_key *fk)
{
	fk->keys = lease_key_file(t->key);
	fk->block = lease_key_block(t->key);
}

int task_key_for(struct task *t, const struct header_ident *ident, const struct header_slot *slot, struct file_key *fk)
{
	if (!t->key) {
		/* Without a waiter the KMS would be asked for nobody, as far as the audit knows: from the stack only a
		 * look, the second attempt asks. */
		bool ask = slot && (t->heap || slot->wrap == HEADER_WRAP_DOMAIN);
		int r = lease_file_key(
		    domain_lease(t->domain), ident, ask ? slot : NULL, t->heap && ask ? &t->waiter : NULL, &t->key);

		if (r)
			return r;
	}
	key_fill(t, fk);
	return 0;
}

int task_key(struct task *t, struct file *f, struct file_key *fk)
{
	struct header_ident ident;
	struct header_slot slot;
	/* Only a miss needs the sealed key, so only a miss reads it. */
	int r = task_key_for(t, file_ident(f), NULL, fk);

	if (r != -EAGAIN)
		return r;
	r = domain_peek_loaded(t->domain, f, &ident, &slot);
	if (r || memcmp(ident.file, file_ident(f)->file, sizeof(ident.file)) != 0)
		return -EIO;
	return task_key_for(t, &ident, &slot, fk);
}

int task_key_new(struct task *t, struct header_ident *ident, struct header_slot *slot, struct file_key *fk)
{
	int r = lease_new_key(domain_lease(t->domain), t->heap ? &t->waiter : NULL, &t->key, ident, slot);

	if (r)
		return r;
	key_fill(t, fk);
	return 0;
}

int fs_dir_get(struct fs *fs, fuse_ino_t ino, struct fs_dir *d)
{
	int r;

	d->inode = fs_inode(fs, ino);
	if (!d->inode)
		return -ESTALE;
	r = domain_dir(fs, d->inode, &d->dir, &d->pin);
	if (r)
		inode_put(fs->inodes, d->inode);
	return r;
}

void fs_dir_put(struct fs *fs, struct fs_dir *d)
{
	inode_dir_put(fs->inodes, d->pin);
	inode_put(fs->inodes, d->inode);
}

/* Reads and writebacks that wait for a nested domain's key hold one slot each, and the kernel knows no domains: with
 * few slots one KMS that hangs would stall everybody. Mounted locked, the domains are not known yet. */
static unsigned background(const struct fs *fs)
{
	bool one = domains_count(fs) == 1 && atomic_load(&fs->first->ready);
	unsigned configured = fs->params.max_background;

	return one || configured > FUSEIO_BACKGROUND ? configured : FUSEIO_BACKGROUND;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	struct fs *fs = userdata;

	conn->want &= ~(unsigned)(FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE |
	    FUSE_CAP_SPLICE_MOVE | FUSE_CAP_IOCTL_DIR | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS |
	    FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO);
	unsigned want = FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_DONT_MASK |
	    FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
	    FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_CACHE_SYMLINKS;

	if (fs->params.writeback)
		want |= FUSE_CAP_WRITEBACK_CACHE;
	if (fs->params.shared) {
		/* A changed size or mtime drops the kernel's pages. Entries are not kept, so none are sent along. */
		want &= ~(unsigned)(FUSE_CAP_EXPLICIT_INVAL_DATA | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO);
		want |= FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS;
	}
	if (fs->params.multiuser)
		want |= FUSE_CAP_POSIX_ACL;
	conn->want |= want & conn->capable;
	fs->no_flush = conn->want & FUSE_CAP_WRITEBACK_CACHE && !fs->params.shared;
	conn->max_background = background(fs);
	conn->congestion_threshold = conn->max_background * 3 / 4;
	conn->time_gran = 1;
	conn->max_readahead = 1u << 20;
}

/* Works while locked: df must not make an administrator think that the disk is gone. */
static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct fs *fs = fuse_req_userdata(req);
	struct statvfs st;

	(void)ino;
	if (fstatvfs(fs->store->fd, &st)) {
		fs_error(fs->first, req, -errno);
		return;
	}
	st.f_namemax = NAME_MAX_PLAIN;
	(void)fuse_reply_statfs(req, &st);
}

const struct fuse_lowlevel_ops fs_ops = {
	.init = op_init,
	.statfs = op_statfs,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.mkdir = op_mkdir,
	.mknod = op_mknod,
	.symlink = op_symlink,
	.readlink = op_readlink,
	.unlink = op_unlink,
	.rmdir = op_rmdir,
	.rename = op_rename,
	.link = op_link,
	.create = op_create,
	.open = op_open,
	.read = op_read,
	.write = op_write,
	.flush = op_flush,
	.release = op_release,
	.fsync = op_fsync,
	.fallocate = op_fallocate,
	.lseek = op_lseek,
	.getlk = op_getlk,
	.setlk = op_setlk,
	.flock = op_flock,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.getxattr = op_getxattr,
	.setxattr = op_setxattr,
	.listxattr = op_listxattr,
	.removexattr = op_removexattr,
	.opendir = op_opendir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.releasedir = op_releasedir,
	.fsyncdir = op_fsyncdir,
};
