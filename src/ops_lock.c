/* ops_lock.c — locks of applications (fcntl, flock) that hold between hosts, in shared mode. Elsewhere the kernel does
 * them alone.
 *
 * Each lock owner of a file has an open file description of the backing file, and its locks are OFD locks on that:
 * fcntl's ranges where they are, below FILE_LOCK_SECTION, and flock's on a byte above. So the backing decides, and
 * they end with the daemon. Whoever has to wait: ops_lock_wait.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "io.h"
#include "log.h"
#include "ops.h"
#include "ops_lock_internal.h"

/* ---- owners ---- */

static unsigned bucket_of(const struct inode *inode)
{
	return (unsigned)(inode->nodeid % LOCK_BUCKETS);
}

static struct handle *handle_of(const struct fuse_file_info *fi)
{
	return (struct handle *)(uintptr_t)fi->fh; // NOLINT(performance-no-int-to-ptr)
}

/* locks.lock is held. */
static struct lock_owner *find(struct locks *l, const struct inode *inode, uint64_t id, bool flock)
{
	struct lock_owner *o;

	LIST_FOREACH(o, &l->owners[bucket_of(inode)], link)
	if (o->inode == inode && o->id == id && o->flock == flock)
		return o;
	return NULL;
}

static void owner_free(struct locks *l, struct lock_owner *o)
{
	struct flock all = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

	/* Not every network file system lets go of them when the descriptor is closed. */
	if (fcntl(o->fd, F_OFD_SETLK, &all))
		log_debug("cannot give back locks: %s", strerror(errno));
	(void)close(o->fd);
	free(o);
	atomic_fetch_sub(&l->held, 1);
}

void lock_owner_put(struct locks *l, struct lock_owner *o)
{
	bool last;

	pthread_mutex_lock(&l->lock);
	last = --o->users == 0 && o->gone;
	pthread_mutex_unlock(&l->lock);
	if (last)
		owner_free(l, o);
}

static int open_backing(struct fs *fs, struct inode *inode)
{
	int fd = fs->params.readonly ? -EROFS : inode_open(fs->inodes, inode, O_RDWR);

	if (fd == -EROFS || fd == -EACCES || fd == -EPERM || fd == -ETXTBSY)
		fd = inode_open(fs->inodes, inode, O_RDONLY);
	return fd == -EMFILE || fd == -ENFILE ? -ENOLCK : fd;
}

/* With a descriptor, if there is one left for locks. */
static int owner_new(struct fs *fs, struct inode *inode, struct lock_owner **out)
{
	struct locks *l = fs->locks;
	struct lock_owner *o = atomic_fetch_add(&l->held, 1) < l->max ? calloc(1, sizeof(*o)) : NULL;
	int r = o ? open_backing(fs, inode) : -ENOLCK;

	if (r >= 0) {
		o->fd = r;
		*out = o;
		return 0;
	}
	free(o);
	atomic_fetch_sub(&l->held, 1);
	return r;
}

/* Found or made; in use. */
static int owner_get(struct fs *fs, const struct handle *h, uint64_t id, bool flock, struct lock_owner **out)
{
	struct locks *l = fs->locks;
	struct lock_owner *o, *fresh;
	int r;

	pthread_mutex_lock(&l->lock);
	o = find(l, h->inode, id, flock);
	if (o)
		o->users++;
	pthread_mutex_unlock(&l->lock);
	*out = o;
	if (o)
		return 0;
	r = owner_new(fs, h->inode, &fresh);
	if (r)
		return r;
	*fresh = (struct lock_owner){ .inode = h->inode, .handle = h, .id = id, .flock = flock, .fd = fresh->fd };
	pthread_mutex_lock(&l->lock);
	o = find(l, h->inode, id, flock); /* another thread of the owner may have been faster */
	if (!o) {
		o = steal_ptr(&fresh);
		LIST_INSERT_HEAD(&l->owners[bucket_of(o->inode)], o, link);
	}
	o->users++;
	pthread_mutex_unlock(&l->lock);
	if (fresh)
		owner_free(l, fresh);
	*out = o;
	return 0;
}

/* ---- one try ---- */

int lock_try(const struct lock_owner *o, const struct flock *lock)
{
	struct flock copy = *lock;

	if (!fcntl(o->fd, F_OFD_SETLK, &copy))
		return 0;
	return errno == EACCES ? -EAGAIN : -errno;
}

static void give_back(const struct lock_owner *o, const struct flock *lock)
{
	struct flock range = *lock;

	range.l_type = F_UNLCK;
	if (lock_try(o, &range))
		log_debug("cannot give back a lock");
}

static void somebody_may_go_on(struct locks *l)
{
	LOCK_SCOPE(&l->lock);
	l->hurry = true;
	pthread_cond_signal(&l->wake);
}

bool lock_kernel_is_behind(const struct lock_owner *o, uint64_t *seq)
{
	uint8_t page[LAYOUT_PAGE];
	struct header_state st;

	if (io_pread(o->fd, page, sizeof(page), 0) != (ssize_t)sizeof(page) || header_state_hint(page, &st))
		return false;
	*seq = st.seq;
	LOCK_SCOPE(&o->inode->lock);
	return o->inode->seen != st.seq;
}

/* ---- operations ---- */

/* fcntl's range as it is kept; those that begin where our own locks are cannot be. */
static int keep_below(struct flock *lock)
{
	const off_t end = (off_t)FILE_LOCK_SECTION;

	if (lock->l_start < 0 || lock->l_start >= end || lock->l_len < 0)
		return -EINVAL;
	if (lock->l_len == 0 || lock->l_len > end - lock->l_start)
		lock->l_len = end - lock->l_start;
	lock->l_whence = SEEK_SET;
	lock->l_pid = 0;
	return 0;
}

static int refused(fuse_req_t req, struct flock *lock)
{
	const struct fs *fs = fuse_req_userdata(req);

	return fs->locks ? keep_below(lock) : -ENOSYS;
}

/* The domain is entered. 0: answered, or will be. */
static int acquire(struct fs *fs, fuse_req_t req, const struct handle *h, uint64_t id, bool flock,
    const struct flock *lock, bool sleep)
{
	struct locks *l = fs->locks;
	struct lock_owner *o;
	bool granted;
	uint64_t seq;
	int r = owner_get(fs, h, id, flock, &o);

	if (r)
		return r;
	r = lock_try(o, lock);
	if (!r && !lock_kernel_is_behind(o, &seq)) {
		(void)fuse_reply_err(req, 0);
		lock_owner_put(l, o);
		return 0;
	}
	if (!r || (r == -EAGAIN && sleep)) {
		if (r && flock) /* flock(2) lets go before it waits for more: two who do would wait for each other */
			give_back(o, lock);
		granted = r == 0;
		r = lock_park(l, req, o, domain_of_inode(fs, h->inode), lock, granted);
		if (!r)
			return 0;
		if (granted)
			give_back(o, lock);
	}
	lock_owner_put(l, o);
	return r;
}

/* Needs no key, no open domain, and cannot fail for lack of anything. */
static void release(struct fs *fs, const struct handle *h, uint64_t id, bool flock, const struct flock *lock)
{
	struct locks *l = fs->locks;
	struct lock_owner *o;

	pthread_mutex_lock(&l->lock);
	o = find(l, h->inode, id, flock);
	if (o)
		o->users++;
	pthread_mutex_unlock(&l->lock);
	if (!o)
		return;
	if (lock_try(o, lock))
		log_warn("cannot give back a lock: %s", strerror(errno));
	lock_owner_put(l, o);
	somebody_may_go_on(l);
}

static void lock_or_release(
    fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, bool flock, const struct flock *lock, bool sleep)
{
	if (lock->l_type == F_UNLCK) {
		release(fuse_req_userdata(req), handle_of(fi), fi->lock_owner, flock, lock);
		(void)fuse_reply_err(req, 0);
		return;
	}
	FS_OP(req, ino, acquire(fs, req, handle_of(fi), fi->lock_owner, flock, lock, sleep));
}

void op_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock, int sleep)
{
	int r = refused(req, lock);

	if (r)
		(void)fuse_reply_err(req, -r);
	else
		lock_or_release(req, ino, fi, false, lock, sleep);
}

void op_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
	struct fs *fs = fuse_req_userdata(req);
	struct flock lock = { .l_whence = SEEK_SET, .l_start = FILE_LOCK_FLOCK, .l_len = 1 };
	int kind = op & ~LOCK_NB;

	lock.l_type = kind == LOCK_EX ? F_WRLCK : kind == LOCK_SH ? F_RDLCK : F_UNLCK;
	if (!fs->locks)
		(void)fuse_reply_err(req, ENOSYS);
	else
		lock_or_release(req, ino, fi, true, &lock, !(op & LOCK_NB));
}

static int query(struct fs *fs, fuse_req_t req, const struct fuse_file_info *fi, struct flock *lock)
{
	struct lock_owner *o;
	int r = owner_get(fs, handle_of(fi), fi->lock_owner, false, &o);

	if (r)
		return r;
	if (fcntl(o->fd, F_OFD_GETLK, lock))
		r = -errno;
	lock_owner_put(fs->locks, o);
	if (r)
		return r;
	if (lock->l_len == (off_t)FILE_LOCK_SECTION - lock->l_start)
		lock->l_len = 0; /* to the end: keep_below() */
	lock->l_pid = 0; /* nobody's here, or a host's that has other numbers */
	(void)fuse_reply_lock(req, lock);
	return 0;
}

void op_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
	int r = refused(req, lock);

	if (r)
		(void)fuse_reply_err(req, -r);
	else
		FS_OP(req, ino, query(fs, req, fi, lock));
}

/* ---- ends ---- */

void locks_flush(struct fs *fs, const struct handle *h, uint64_t id)
{
	const struct flock all = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_len = (off_t)FILE_LOCK_SECTION };
	struct locks *l = fs->locks;
	struct lock_owner *o;
	bool idle;

	if (!l)
		return;
	pthread_mutex_lock(&l->lock);
	o = find(l, h->inode, id, false);
	idle = o && !o->users;
	if (idle)
		LIST_REMOVE(o, link);
	pthread_mutex_unlock(&l->lock);
	if (!o)
		return;
	if (idle)
		owner_free(l, o);
	else /* another thread of it waits for more */
		release(fs, h, id, false, &all);
	somebody_may_go_on(l);
}

void locks_release(struct fs *fs, const struct handle *h)
{
	LIST_HEAD(, lock_owner) gone = LIST_HEAD_INITIALIZER(gone);
	struct locks *l = fs->locks;
	struct lock_owner *o, *next;

	if (!l)
		return;
	pthread_mutex_lock(&l->lock);
	for (o = LIST_FIRST(&l->owners[bucket_of(h->inode)]); o; o = next) {
		next = LIST_NEXT(o, link);
		if (o->handle != h)
			continue;
		LIST_REMOVE(o, link);
		o->gone = true;
		if (!o->users)
			LIST_INSERT_HEAD(&gone, o, link);
	}
	pthread_mutex_unlock(&l->lock);
	if (LIST_EMPTY(&gone))
		return;
	while ((o = LIST_FIRST(&gone))) {
		LIST_REMOVE(o, link);
		owner_free(l, o);
	}
	somebody_may_go_on(l);
}

int locks_open(struct fs *fs, size_t max)
{
	struct locks *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	l->fs = fs;
	l->max = max;
	pthread_mutex_init(&l->lock, NULL);
	(void)io_cond_init(&l->wake);
	for (unsigned i = 0; i < LOCK_BUCKETS; i++)
		LIST_INIT(&l->owners[i]);
	TAILQ_INIT(&l->waits);
	fs->locks = l;
	return 0;
}

int locks_start(struct fs *fs)
{
	struct locks *l = fs->locks;
	int r = l ? pthread_create(&l->thread, NULL, lock_waiter, l) : 0;

	if (l)
		l->running = r == 0;
	return -r;
}

void locks_stop(struct fs *fs)
{
	struct locks *l = fs->locks;
	struct lock_owner *o;

	if (!l)
		return;
	if (l->running) {
		pthread_mutex_lock(&l->lock);
		l->stop = l->hurry = true;
		pthread_cond_signal(&l->wake);
		pthread_mutex_unlock(&l->lock);
		(void)pthread_join(l->thread, NULL);
	}
	for (unsigned i = 0; i < LOCK_BUCKETS; i++)
		while ((o = LIST_FIRST(&l->owners[i]))) {
			LIST_REMOVE(o, link);
			owner_free(l, o);
		}
	pthread_mutex_destroy(&l->lock);
	pthread_cond_destroy(&l->wake);
	free(l);
	fs->locks = NULL;
}
