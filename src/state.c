/* Loading, pinning and dropping of file states. A state is found through inode->file; its bookkeeping hangs at
 * inode->extra. Locks: inode->lock, then states->lock; neither across a key request. file_open runs under inode->lock,
 * which keeps two openers of one file from loading it twice.                                                       */
#include "state_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "io.h"
#include "keyahead.h"
#include "log.h"

int states_open(struct fs *fs)
{
	struct states *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->wake, NULL);
	TAILQ_INIT(&s->queue);
	fs->states = s;
	return 0;
}

void states_distrust(struct fs *fs, bool on)
{
	atomic_store(&fs->states->distrust, on);
}

bool state_trusted_size(struct fs *fs, const struct stat *st, uint64_t *size)
{
	const struct states *s = fs->states;

	return !atomic_load_explicit(&s->distrust, memory_order_relaxed) &&
	    !atomic_load_explicit(&s->odd, memory_order_relaxed) && !store_in_doubt(fs->store, st) &&
	    layout_hint_decode((uint64_t)st->st_size, size);
}

uint64_t state_told_size(struct fs *fs, int fd, int dirfd, const char *entry, const struct stat *st)
{
	CLEANUP_FD int own = -1;
	uint8_t page[LAYOUT_PAGE];
	struct header_state state;
	uint64_t size;

	if (state_trusted_size(fs, st, &size))
		return size;
	if (st->st_size < (off_t)LAYOUT_PAGE)
		return 0;
	if (fd < 0) {
		own = openat(dirfd, entry, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		fd = own;
	}
	if (fd < 0 || io_pread(fd, page, sizeof(page), 0) != (ssize_t)sizeof(page) || header_state_hint(page, &state))
		return 0;
	return state.size;
}

/* What the kernel heard first, or saw last, is what it goes on believing; and st may be older than the end of the
 * state. */
static uint64_t size_to_tell(struct fs *fs, struct inode *inode, int dirfd, const char *entry, const struct stat *st)
{
	if (fs->params.shared) /* the kernel believes what it hears last, and others may have written */
		return state_told_size(fs, -1, dirfd, entry, st);
	pthread_mutex_lock(&inode->lock);
	bool known = inode->file || inode->have_told;
	uint64_t size = inode->file ? file_size(inode->file) : inode->told;

	pthread_mutex_unlock(&inode->lock);
	if (known)
		return size;
	size = state_told_size(fs, -1, dirfd, entry, st);
	LOCK_SCOPE(&inode->lock);
	if (!inode->file && !inode->have_told) {
		inode->told = size;
		inode->have_told = true;
	}
	return inode->file ? file_size(inode->file) : inode->told;
}

void fs_attr(struct fs *fs, struct inode *inode, int dirfd, const char *entry, struct stat *st)
{
	if (S_ISLNK(st->st_mode)) {
		bool look = !entry && st->st_size == DIR_LINK_LONG;
		CLEANUP_FD int fd = look ? inode_open(fs->inodes, inode, O_PATH | O_NOFOLLOW) : -1;

		st->st_size = (off_t)dir_link_size(entry ? dirfd : fd, entry ? entry : "", (uint64_t)st->st_size);
		return;
	}
	if (S_ISDIR(st->st_mode)) {
		if (inode->nodeid == FUSE_ROOT_ID && st->st_nlink > 2)
			st->st_nlink--; /* .byokfs */
		return;
	}
	if (!S_ISREG(st->st_mode))
		return;
	st->st_size = (off_t)size_to_tell(fs, inode, dirfd, entry, st);
	st->st_blksize = LAYOUT_PAGE;
}

static struct state *state_of(const struct inode *inode)
{
	return inode->extra;
}

/* inode->lock is held; f becomes the inode's, and so does one ref on the inode that the caller took before. */
static int attach(struct fs *fs, struct inode *inode, struct file *f, bool readonly)
{
	struct state *st = calloc(1, sizeof(*st));

	if (!st)
		return -ENOMEM;
	st->inode = inode;
	st->readonly = readonly;
	inode->file = f;
	inode->extra = st;
	atomic_fetch_add(&fs->states->loaded, 1);
	return 0;
}

/* inode->lock is held. The file to close after unlocking, or NULL: still wanted. */
static struct file *detach(struct fs *fs, struct inode *inode)
{
	struct states *s = fs->states;
	struct state *st = state_of(inode);
	struct file *f = inode->file;

	pthread_mutex_lock(&s->lock);
	if (st->syncing) {
		pthread_mutex_unlock(&s->lock);
		return NULL;
	}
	if (st->queued) {
		TAILQ_REMOVE(&s->queue, st, link);
		s->queued--;
	}
	pthread_mutex_unlock(&s->lock);
	if (file_odd(f) && !state_gone(f))
		atomic_store(&s->odd, true);
	inode->told = file_size(f);
	inode->have_told = true;
	inode->file = NULL;
	inode->extra = NULL;
	free(st);
	atomic_fetch_sub(&s->loaded, 1);
	return f;
}

bool state_gone(struct file *f)
{
	struct stat st;
	int fd = file_hold(f), r;

	if (fd < 0)
		return fd == -ESTALE;
	r = fstat(fd, &st) ? -errno : 0;
	file_release(f);
	return r ? r == -ESTALE || r == -ENOENT : st.st_nlink == 0;
}

void state_settle(struct fs *fs, struct inode *inode)
{
	struct file *gone = NULL;

	pthread_mutex_lock(&inode->lock);
	struct file *f = inode->file;

	if (f && inode->opens == 0 && (!(file_dirty(f) || file_pending(f)) || state_gone(f)))
		gone = detach(fs, inode);
	pthread_mutex_unlock(&inode->lock);
	if (gone) {
		file_close(gone);
		inode_put(fs->inodes, inode); /* the state's own ref */
	}
}

static int open_backing(struct fs *fs, struct inode *inode, bool write, bool *readonly)
{
	int fd = -EROFS;

	*readonly = false;
	if (!fs->params.readonly)
		fd = inode_open(fs->inodes, inode, O_RDWR);
	if (!write && (fd == -EACCES || fd == -EPERM || fd == -EROFS || fd == -ETXTBSY)) {
		*readonly = true;
		fd = inode_open(fs->inodes, inode, O_RDONLY);
	}
	return fd;
}

static bool ours(const struct domain *d, const struct header_ident *ident)
{
	const struct context_ids *ids = &d->ids;

	return ident->suite == ids->suite && memcmp(ident->store, ids->store, CONTEXT_ID) == 0 &&
	    memcmp(ident->domain, ids->domain, CONTEXT_ID) == 0;
}

int state_repair(struct file *f, const struct file_key *fk)
{
	uint64_t mark;
	int r;

	if (!file_pending(f))
		return 0;
	r = file_promote_begin(f, fk, &mark);
	return r ? r : file_promote_end(f, fk, mark, false);
}

/* inode->lock is held. Loads the file unless somebody was faster; *told is what stat said before. */
static int load_locked(struct fs *fs, struct inode *inode, int *fd, bool readonly, const struct file_key *fk)
{
	struct file_params params = {
		.readonly = readonly,
		.commit_strict = fs->params.commit_strict,
		.shared = fs->params.shared,
		.describe = fs_describe,
		.withdrawn = fs_withdrawn,
		.reopen = fs_reopen,
		.kept = fs_kept,
		.arg = inode,
	};
	struct file *f = NULL;
	struct stat st;
	bool wrong;
	int r;

	if (fstat(*fd, &st))
		return -errno;
	uint64_t told = inode->have_told ? inode->told : state_told_size(fs, *fd, -1, NULL, &st);

	r = file_open(&f, *fd, fk, &params, &wrong);
	if (r)
		return r;
	*fd = -1;
	/* What xattr calls took from an unauthenticated page 0 must be what is authentic. */
	if (inode->have_fileid && memcmp(inode->fileid, file_ident(f)->file, CONTEXT_ID) != 0) {
		file_close(f);
		fs_damaged(inode, "its identity was another one before");
		return -EIO;
	}
	memcpy(inode->fileid, file_ident(f)->file, CONTEXT_ID);
	inode->have_fileid = true;
	if (told != file_size(f) && !fs->params.shared) {
		/* A hint that cannot be set right must not be believed again. */
		if (readonly)
			atomic_store(&fs->states->distrust, true);
		else
			r = state_repair(f, fk);
		file_close(f);
		return r ? r : -ESTALE;
	}
	r = attach(fs, inode, f, readonly);
	if (r)
		file_close(f);
	return r;
}

int state_make_writable(struct inode *inode, int fd)
{
	int r = file_make_writable(inode->file, fd);

	if (!r)
		state_of(inode)->readonly = false;
	return r;
}

/* As load_locked, but takes the lock, and the ref that a state holds. */
static int load_once(
    struct fs *fs, struct inode *inode, int *fd, bool readonly, const struct file_key *fk, struct file **out)
{
	struct inode *ref = fs_inode(fs, inode->nodeid);
	int r = 0;

	if (!ref)
		return -ESTALE;
	pthread_mutex_lock(&inode->lock);
	if (!inode->file) {
		r = load_locked(fs, inode, fd, readonly, fk);
		if (!r)
			ref = NULL;
	} else if (state_of(inode)->readonly && !readonly) {
		r = state_make_writable(inode, *fd);
	}
	if (!r) {
		inode->opens++;
		*out = inode->file;
	}
	pthread_mutex_unlock(&inode->lock);
	if (ref)
		inode_put(fs->inodes, ref);
	return r;
}

static int load(struct task *t, struct inode *inode, bool write, struct file **out)
{
	struct fs *fs = t->fs;
	CLEANUP_FD int fd = -1;
	struct header_ident ident;
	struct header_slot slot;
	struct file_key fk;
	bool readonly;
	int r;

	fd = open_backing(fs, inode, write, &readonly);
	if (fd < 0)
		return fd;
	r = domain_peek(t->domain, fd, &ident, &slot);
	if (r) {
		fs_damaged(inode,
		    r == -ENODATA ? "page 0: it was never written, or wiped"
		                  : "page 0: damaged (type, version or sealed key)");
		return r;
	}
	if (!ours(t->domain, &ident)) {
		fs_damaged(inode, "it belongs to another store, or to another key domain");
		return -EIO;
	}
	keyahead_opened(fs, inode);
	r = task_key_for(t, &ident, &slot, &fk);
	if (r == -EIO)
		fs_key_refused(fs, inode);
	if (r)
		return r;
	r = load_once(fs, inode, &fd, readonly, &fk, out);
	if (r == -ESTALE)
		inode_detach(fs->inodes, inode);
	/* An earlier owner left its end half done: that is put right though nobody may change anything. */
	if (!r && (file_pending(*out) || file_dirty(*out)))
		state_changed(fs, inode);
	return r;
}

int state_pin(struct task *t, struct inode *inode, bool write, struct file **out)
{
	bool here;

	pthread_mutex_lock(&inode->lock);
	here = inode->file && !(write && state_of(inode)->readonly);
	if (here) {
		inode->opens++;
		*out = inode->file;
	}
	pthread_mutex_unlock(&inode->lock);
	return here ? 0 : load(t, inode, write, out);
}

int state_adopt(struct fs *fs, struct inode *inode, struct file *f)
{
	struct inode *ref = fs_inode(fs, inode->nodeid);
	int r;

	if (!ref)
		return -ESTALE;
	pthread_mutex_lock(&inode->lock);
	r = inode->file ? -EIO : attach(fs, inode, f, false);
	if (!r)
		inode->opens++;
	pthread_mutex_unlock(&inode->lock);
	if (r)
		inode_put(fs->inodes, ref);
	return r;
}

struct file *state_pin_loaded(struct inode *inode)
{
	LOCK_SCOPE(&inode->lock);
	if (inode->file)
		inode->opens++;
	return inode->file;
}

void state_unpin(struct fs *fs, struct inode *inode)
{
	unsigned left;

	pthread_mutex_lock(&inode->lock);
	left = --inode->opens;
	pthread_mutex_unlock(&inode->lock);
	if (left)
		return;
	state_changed(fs, inode);
	state_settle(fs, inode);
}

void state_changed(struct fs *fs, struct inode *inode)
{
	struct states *s = fs->states;

	pthread_mutex_lock(&inode->lock);
	struct state *st = state_of(inode);

	if (st && !st->queued && (file_dirty(inode->file) || file_pending(inode->file))) {
		pthread_mutex_lock(&s->lock);
		st->queued = true;
		st->since = io_boot_ms();
		TAILQ_INSERT_TAIL(&s->queue, st, link);
		s->queued++;
		if (s->queued >= STATES_MANY)
			pthread_cond_signal(&s->wake);
		pthread_mutex_unlock(&s->lock);
	}
	pthread_mutex_unlock(&inode->lock);
}

size_t states_queued(struct fs *fs)
{
	LOCK_SCOPE(&fs->states->lock);
	return fs->states->queued;
}
