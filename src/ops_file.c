/* Regular files: create, open, read, write, commit. These are the operations that need a file key, so they are tasks:
 * run from the beginning again when a key had to be fetched first. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "fs.h"
#include "fuseio.h"
#include "ops.h"
#include "ops_create.h"
#include "io.h"
#include "log.h"
#include "reseal.h"
#include "state.h"

static struct handle *handle_new(struct inode *inode, int flags)
{
	struct handle *h = malloc(sizeof(*h));

	/* Who also reads what it writes is a database rather than a copy: it goes on after its first fsync, and would
	 * have to cut off the hint again. */
	if (h)
		*h = (struct handle){
			.inode = inode,
			.write = (flags & O_ACCMODE) != O_RDONLY,
			.synced = (flags & O_ACCMODE) == O_RDWR,
		};
	return h;
}

/* While writers are counted the kernel may hold pages that we have not seen. */
static void handle_count(struct handle *h, int change)
{
	LOCK_SCOPE(&h->inode->lock);
	if (h->write)
		h->inode->writers += (unsigned)change;
}

/* Ends what open or create began: the pin, the ref. */
static void handle_close(struct fs *fs, struct handle *h)
{
	handle_count(h, -1);
	state_unpin(fs, h->inode);
	inode_put(fs->inodes, h->inode);
	free(h);
}

/* How the kernel may cache what it opens. In shared mode writers go past its pages, which also refuses a shared mapping
 * that no other host would see; readers start with none when anybody wrote since they were dropped last. */
static void open_cached(struct task *t, const struct handle *h, const struct file *f)
{
	struct inode *inode = h->inode;
	uint64_t seq = file_seq(f);

	t->fi.keep_cache = 1;
	if (!t->fs->params.shared)
		return;
	pthread_mutex_lock(&inode->lock);
	t->fi.direct_io = h->write;
	t->fi.keep_cache = inode->seen == seq;
	inode->seen = seq;
	inode->flags &= ~FS_NO_CAPABILITY; /* others may have set one */
	pthread_mutex_unlock(&inode->lock);
	/* Attributes only, which waits for nothing: the look-up before may be older than what was opened. */
	if (!t->fi.keep_cache && fuse_lowlevel_notify_inval_inode(t->fs->se, inode->nodeid, -1, 0) == -EINVAL)
		log_debug("cannot drop the kernel's attributes");
}

/* Hands the new file to the kernel as an open file; consumes b->fd and the ref on b->inode. */
static int create_reply_open(struct task *t, struct birth *b)
{
	struct fs *fs = t->fs;
	struct file_params params = { .commit_strict = fs->params.commit_strict,
		.shared = fs->params.shared,
		.describe = fs_describe,
		.withdrawn = fs_withdrawn,
		.reopen = fs_reopen,
		.kept = fs_kept,
		.arg = b->inode };
	struct handle *h = handle_new(b->inode, t->fi.flags);
	struct file *f = NULL;
	int r = h ? file_new(&f, b->fd, b->page, &b->fk, &params) : -ENOMEM;

	if (!r) {
		b->fd = -1;
		r = state_adopt(fs, b->inode, f);
		if (r)
			file_close(f);
	}
	if (r) {
		free(h);
		inode_forget(fs->inodes, b->e.ino, 1);
		inode_put(fs->inodes, b->inode);
		return r;
	}
	handle_count(h, 1);
	t->fi.fh = (uintptr_t)h;
	open_cached(t, h, f);
	b->e.attr.st_size = 0;
	if (fuse_reply_create(t->req, &b->e, &t->fi) == -ENOENT) {
		inode_forget(fs->inodes, b->e.ino, 1);
		handle_close(fs, h);
	}
	return 0;
}

static int create_reply(struct task *t, struct birth *b)
{
	struct fs *fs = t->fs;

	if (t->handle == NULL && t->size == 0) /* mknod: no handle wanted */
	{
		inode_put(fs->inodes, b->inode);
		if (fuse_reply_entry(t->req, &b->e) == -ENOENT)
			inode_forget(fs->inodes, b->e.ino, 1);
		return 0;
	}
	return create_reply_open(t, b);
}

static int run_create(struct task *t)
{
	struct birth b = { .fd = -1 };
	struct header_slot slot;
	struct fs *fs = t->fs; /* a parked task may be gone */
	int r = fs_dir_get(fs, t->ino, &b.d);
	RESEAL_BIRTH_SCOPE;

	if (r)
		return r;
	r = fs_birth(fs, &b.d, S_IFREG | (mode_t)t->mode, t->umask, t->uid, t->gid, &b.b);
	if (!r)
		r = task_key_new(t, &b.ident, &slot, &b.fk);
	if (!r)
		r = file_new_page(b.page, &b.ident, &slot, &b.fk);
	if (!r)
		r = fs_dir_enter(&b.d);
	if (!r) {
		r = create_backing(t, &b);
		fs_dir_leave(&b.d);
	}
	/* Another host was faster. Whoever did not insist on a new file gets that one: the kernel looks again. */
	if (r == -EEXIST && fs->params.shared && t->size && !(t->fi.flags & O_EXCL))
		r = -ESTALE;
	if (!r)
		r = create_reply(t, &b);
	if (b.fd >= 0)
		(void)close(b.fd);
	fs_birth_free(&b.b);
	fs_dir_put(fs, &b.d);
	return r;
}

/* fi NULL: mknod of a regular file. */
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	struct task t;

	task_init(&t, fs, req, parent, fi, run_create);
	t.handle = NULL;
	t.size = fi ? 1 : 0;
	t.mode = (int)mode;
	if (strlen(name) > NAME_MAX_PLAIN) {
		fs_error(t.domain, req, -ENAMETOOLONG);
		return;
	}
	strncpy(t.name, name, NAME_MAX_PLAIN);
	task_start(&t);
}

/* Another host may be doing the same: whoever is second finds a file. */
static int bear(struct fs *fs, int fd, const uint8_t page[static LAYOUT_PAGE])
{
	struct header_ident ident;
	struct header_slot slot;
	int r = fs->params.shared ? file_guard(fd) : 0;

	if (r)
		return r == -EAGAIN ? -ESTALE : r; /* the kernel tries once more */
	if (!fs->params.shared || file_peek(fd, &ident, &slot) == -ENODATA) {
		r = io_pwrite(fd, page, LAYOUT_PAGE, 0);
		if (!r && ftruncate(fd, LAYOUT_PAGE))
			r = -errno;
	}
	if (fs->params.shared)
		file_unguard(fd);
	return r;
}

/* open(O_TRUNC) of a backing file that never got its page 0: it becomes a new, empty file in place. */
static int reborn(struct task *t, struct inode *inode)
{
	RESEAL_BIRTH_SCOPE;
	CLEANUP_FD int fd = -1;
	uint8_t page[LAYOUT_PAGE];
	struct header_ident ident;
	struct header_slot slot;
	struct file_key fk;
	int r = task_key_new(t, &ident, &slot, &fk);

	if (r)
		return r;
	fd = inode_open(t->fs->inodes, inode, O_RDWR);
	if (fd < 0)
		return fd;
	r = file_new_page(page, &ident, &slot, &fk);
	if (!r)
		r = bear(t->fs, fd, page);
	lease_key_put(t->key);
	t->key = NULL;
	return r;
}

static int truncate_open(struct task *t, struct inode *inode, struct file *f)
{
	struct file_key fk;
	int r = task_key(t, f, &fk);

	if (!r)
		r = fs_drop_privileges(t, inode, f);
	if (!r)
		r = file_truncate(f, &fk, 0);
	if (!r) {
		fs_modified(t->fs, f);
		state_changed(t->fs, inode);
	}
	return r;
}

void fs_modified(struct fs *fs, struct file *f)
{
	const struct timespec now[2] = { { .tv_nsec = UTIME_OMIT }, { .tv_nsec = UTIME_NOW } };

	if (!fs->params.writeback && file_set_times(f, now))
		log_warn("cannot set a modification time");
}

/* What others wrote and closed is seen by whoever opens now. */
static int catch_up(struct task *t, struct file *f)
{
	struct file_key fk;
	int r = t->fs->params.shared ? task_key(t, f, &fk) : 0;

	return r || !t->fs->params.shared ? r : file_refresh(f, &fk);
}

static int open_pin(struct task *t, struct inode *inode, struct file **f)
{
	bool write = (t->fi.flags & O_ACCMODE) != O_RDONLY;
	bool trunc = (t->fi.flags & O_TRUNC) != 0;
	struct fs *fs = t->fs; /* a parked task may be gone */
	int r = state_pin(t, inode, write || trunc, f);

	if (r == -ENODATA) {
		r = trunc ? reborn(t, inode) : -EIO;
		if (!r)
			r = state_pin(t, inode, true, f);
	}
	if (!r)
		r = trunc ? truncate_open(t, inode, *f) : catch_up(t, *f);
	else
		return r;
	if (r)
		state_unpin(fs, inode);
	return r;
}

static int run_open(struct task *t)
{
	struct fs *fs = t->fs;
	struct inode *inode = fs_inode(fs, t->ino);
	struct file *f;
	int r;

	if (!inode)
		return -ESTALE;
	r = open_pin(t, inode, &f);
	if (r) {
		inode_put(fs->inodes, inode);
		return r;
	}
	struct handle *h = handle_new(inode, t->fi.flags);

	if (!h) {
		state_unpin(fs, inode);
		inode_put(fs->inodes, inode);
		return -ENOMEM;
	}
	handle_count(h, 1);
	t->fi.fh = (uintptr_t)h;
	open_cached(t, h, f);
	if (fuse_reply_open(t->req, &t->fi) == -ENOENT)
		handle_close(fs, h);
	return 0;
}

void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct task t;

	task_init(&t, fuse_req_userdata(req), req, ino, fi, run_open);
	t.handle = NULL;
	task_start(&t);
}

void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct fs *fs = fuse_req_userdata(req);
	struct handle *h = (struct handle *)(uintptr_t)fi->fh; // NOLINT(performance-no-int-to-ptr)

	(void)ino;
	locks_release(fs, h);
	if (fs->no_flush && h->write)
		flush_released(fs, h);
	handle_close(fs, h);
	(void)fuse_reply_err(req, 0);
}

/* One buffer per thread, the size of the largest request; page-aligned, never returned to the heap with plaintext in
 * it. */
static _Thread_local struct {
	uint8_t *p;
	size_t size;
} scratch;

static uint8_t *scratch_get(size_t size)
{
	if (size <= scratch.size)
		return scratch.p;
	free(scratch.p);
	scratch.size = 0;
	size = (size + LAYOUT_PAGE - 1) & ~(size_t)(LAYOUT_PAGE - 1);
	scratch.p = aligned_alloc(LAYOUT_PAGE, size);
	if (scratch.p)
		scratch.size = size;
	return scratch.p;
}

static int run_read(struct task *t)
{
	struct file *f = t->handle->inode->file;
	struct file_key fk;
	int r = task_key(t, f, &fk);

	if (r)
		return r;
	/* Where the kernel reads the answer, if there is such a place; its owner wipes it. */
	uint8_t *room = fuseio_room(t->size), *buf = room ? room : scratch_get(t->size);

	if (!buf)
		return -ENOMEM;
	ssize_t n = file_read(f, &fk, buf, t->size, t->off);

	if (n < 0)
		return (int)n;
	/* The storage may have kept us waiting past the end of the lease. */
	r = lease_still(domain_lease(t->domain), t->class);
	if (r) {
		explicit_bzero(buf, (size_t)n);
		return r;
	}
	if (n > 0 && !atomic_load_explicit(&t->handle->touched, memory_order_relaxed))
		fs_touch(t->fs, t->handle, f);
	(void)fuse_reply_buf(t->req, (const char *)buf, (size_t)n);
	if (!room)
		explicit_bzero(buf, (size_t)n);
	atomic_fetch_add_explicit(&t->domain->reads, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->domain->read_bytes, (unsigned long long)n, memory_order_relaxed);
	return 0;
}

void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct task t;

	task_init(&t, fuse_req_userdata(req), req, ino, fi, run_read);
	t.size = size;
	t.off = (uint64_t)off;
	task_start(&t);
}

static int run_write(struct task *t)
{
	struct inode *inode = t->handle->inode;
	struct file *f = inode->file;
	struct file_key fk;
	int r = task_key(t, f, &fk);

	if (!r)
		r = fs_drop_privileges(t, inode, f);
	if (r)
		return r;
	r = t->fs->params.shared && t->fi.flags & O_APPEND ? file_append(f, &fk, t->data, t->size)
	                                                   : file_write(f, &fk, t->data, t->size, t->off);
	state_changed(t->fs, inode);
	if (r)
		return r;
	/* The last bytes of a page live elsewhere: changing only them may write nothing yet. */
	if (t->off % LAYOUT_PAGE >= LAYOUT_BODY && t->off % LAYOUT_PAGE + t->size <= LAYOUT_PAGE)
		fs_modified(t->fs, f);
	(void)fuse_reply_write(t->req, t->size);
	atomic_fetch_add_explicit(&t->domain->writes, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&t->domain->write_bytes, t->size, memory_order_relaxed);
	return 0;
}

void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct task t;

	task_init(&t, fuse_req_userdata(req), req, ino, fi, run_write);
	t.class = fi->writepage ? LEASE_WRITEBACK : LEASE_WORK;
	t.data = buf;
	t.size = size;
	t.off = (uint64_t)off;
	task_start_in_lane(&t, ino);
}

static int run_fallocate(struct task *t)
{
	struct inode *inode = t->handle->inode;
	struct file *f = inode->file;
	struct file_key fk;

	/* The kernel has no flag for it here; whoever is not root is taken not to have CAP_FSETID. */
	t->kill = t->uid != 0;
	int r = task_key(t, f, &fk);

	if (!r)
		r = fs_drop_privileges(t, inode, f);
	if (!r)
		r = file_allocate(f, &fk, t->mode, t->off, t->size);
	if (r)
		return r;
	fs_modified(t->fs, f);
	state_changed(t->fs, inode);
	(void)fuse_reply_err(t->req, 0);
	return 0;
}

void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
	struct task t;

	task_init(&t, fuse_req_userdata(req), req, ino, fi, run_fallocate);
	t.mode = mode;
	t.off = (uint64_t)off;
	t.size = (size_t)len;
	task_start(&t);
}
