/* The thread that goes ahead of readers: it opens the backing file of each that is likely to be next, reads its sealed
 * key and has the lease fetch it. It waits for the disk, never for the KMS, and holds no lock meanwhile.
 *
 * Nor does it enter a domain's gate until it has read the sealed key: the storage may be slow, and a lock does not wait
 * for it. What was found before a lock is not remembered after it. */
#include "keyahead.h"

#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "io.h"
#include "keyahead_internal.h"

/* Entries of a directory read ahead, at most; descriptors kept. */
#define LISTING 8192
#define FDS     16u
/* A reader that opened nothing for so long has gone: directories are not kept from being removed for good. */
#define REST_MS 1000

struct place {
	struct order_dir id;
	int fd; /* -1: free */
	struct domain *domain; /* of what is in it */
};

static const struct order_params defaults = { .entries = 1u << 17, .dirs = 1u << 12, .stale_ms = 30000 };

struct keyahead {
	pthread_mutex_t lock; /* guards order, stop, pending and wipes; never held across a system call */
	pthread_cond_t work;
	struct order *order;
	bool stop, pending;
	uint32_t wipes;
	pthread_t thread;
	/* the thread's own: the wipe after which its item was found; directories it has been in */
	uint32_t seen;
	struct place dirs[FDS];
	unsigned turn;
};

static enum order_kind kind_of(unsigned char type)
{
	return type == DT_REG ? ORDER_FILE : type == DT_DIR ? ORDER_DIR : ORDER_OTHER;
}

static struct order_dir dir_of(const struct inode *inode)
{
	return (struct order_dir){ .dev = inode->dev, .ino = inode->ino };
}

void keyahead_note(struct fs *fs, const struct fs_dir *d, int64_t prev, const struct dir_item *item)
{
	struct keyahead *ka = fs->keyahead;

	if (!ka)
		return;
	const struct order_dir id = dir_of(d->inode);

	LOCK_SCOPE(&ka->lock);
	if (item)
		order_note(ka->order, &id, prev, item->next, item->ino, kind_of(item->type), item->entry);
	else
		order_end(ka->order, &id, prev);
}

void keyahead_opened(struct fs *fs, const struct inode *inode)
{
	struct keyahead *ka = fs->keyahead;

	if (!ka)
		return;
	LOCK_SCOPE(&ka->lock);
	if (!order_opened(ka->order, inode->dev, inode->ino, io_boot_ms()) || ka->pending)
		return;
	ka->pending = true;
	(void)pthread_cond_signal(&ka->work);
}

void keyahead_wipe(struct fs *fs)
{
	struct keyahead *ka = fs->keyahead;

	if (!ka)
		return;
	LOCK_SCOPE(&ka->lock);
	order_wipe(ka->order);
	ka->wipes++;
	(void)pthread_cond_signal(&ka->work);
}

/* ---- the thread ---- */

/* The sealed key of an entry that is still the file it was. */
static int peek(
    const struct place *dir, const struct order_item *item, struct header_ident *ident, struct header_slot *slot)
{
	CLEANUP_FD int fd = -1;
	struct stat st;

	if (fstatat(dir->fd, item->name, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_ino != item->ino)
		return -ESTALE;
	fd = openat(dir->fd, item->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
	if (fd < 0 && errno == EPERM)
		fd = openat(dir->fd, item->name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return fd < 0 ? -errno : domain_peek(dir->domain, fd, ident, slot);
}

/* ---- directories ---- */

static void forget_dirs(struct keyahead *ka)
{
	for (unsigned i = 0; i < FDS; i++) {
		if (ka->dirs[i].fd >= 0)
			(void)close(ka->dirs[i].fd);
		ka->dirs[i].fd = -1;
	}
}

static const struct place *keep_dir(struct keyahead *ka, const struct order_dir *id, int fd, struct domain *domain)
{
	struct place *p = &ka->dirs[ka->turn++ % FDS];

	if (p->fd >= 0)
		(void)close(p->fd);
	*p = (struct place){ *id, fd, domain };
	return p;
}

/* A directory the kernel knows, or one we have been in; or NULL. What it says of itself is not verified, which takes
 * the keys of its domain: that may be locked. */
static const struct place *find_dir(struct fs *fs, const struct order_dir *id)
{
	struct keyahead *ka = fs->keyahead;
	const struct stat st = { .st_dev = id->dev, .st_ino = id->ino };
	struct domain *domain;
	struct inode *inode;
	int fd;

	for (unsigned i = 0; i < FDS; i++)
		if (ka->dirs[i].fd >= 0 && ka->dirs[i].id.ino == id->ino && ka->dirs[i].id.dev == id->dev)
			return &ka->dirs[i];
	inode = inode_find(fs->inodes, &st);
	if (!inode)
		return NULL;
	domain = domain_of_inode(fs, inode);
	fd = inode_open(fs->inodes, inode, O_RDONLY | O_DIRECTORY);
	inode_put(fs->inodes, inode);
	return fd < 0 ? NULL : keep_dir(ka, id, fd, domain);
}

/* Dots, and what is the store's own. */
static bool not_users(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..") || !strncmp(name, ".byokfs", 7);
}

/* lock held. A domain locked, of whose directory this may be; or the end. */
static bool stale(const struct keyahead *ka)
{
	return ka->stop || ka->seen != ka->wipes;
}

/* Remembers what is in a directory; takes fd over. Names stay as they are on the disk: none is decrypted. */
static void list(struct keyahead *ka, const struct order_dir *id, int fd)
{
	DIR *stream = fdopendir(fd);
	const struct dirent *e = NULL;
	int64_t n = 0;

	if (!stream) {
		(void)close(fd);
		return;
	}
	while (n < LISTING && (e = readdir(stream))) {
		LOCK_SCOPE(&ka->lock);
		if (stale(ka) || (n == 0 && !order_visit(ka->order, id)))
			break;
		order_note(ka->order, id, n, n + 1, e->d_ino, not_users(e->d_name) ? ORDER_OTHER : kind_of(e->d_type),
		    e->d_name);
		n++;
	}
	(void)closedir(stream);
	LOCK_SCOPE(&ka->lock);
	if (n && !e && !stale(ka))
		order_visited(ka->order, id);
}

/* A directory in the way of a reader is read before the reader gets there, unless its domain is locked. */
static void visit(struct fs *fs, const struct place *parent, const struct order_item *item)
{
	struct keyahead *ka = fs->keyahead;
	const struct order_dir id = { .dev = item->dir.dev, .ino = item->ino };
	CLEANUP_FD int fd = openat(parent->fd, item->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct domain *domain;
	struct stat st;
	int own;

	if (fd < 0 || fstat(fd, &st) || st.st_dev != id.dev || st.st_ino != id.ino)
		return;
	domain = domain_get(fs, domain_claimed(fs, fd, parent->domain->index));
	if (!domain_is_open(domain))
		return;
	own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	(void)keep_dir(ka, &id, steal_fd(&fd), domain);
	if (own >= 0)
		list(ka, &id, own);
}

/* ---- files ---- */

static void fetch(struct fs *fs, const struct place *dir, const struct order_item *item)
{
	struct keyahead *ka = fs->keyahead;
	struct header_ident ident;
	struct header_slot slot;
	int r = peek(dir, item, &ident, &slot);

	/* A file that came from another domain would not be opened either. */
	if (r || !bytes_equal(ident.domain, dir->domain->ids.domain, CONTEXT_ID))
		return;
	if (domain_visit(dir->domain, LEASE_WORK))
		return;
	r = lease_key_ahead(domain_lease(dir->domain), &ident, &slot);
	domain_leave(dir->domain, LEASE_WORK);
	LOCK_SCOPE(&ka->lock);
	if (r >= 0 && !stale(ka))
		order_result(ka->order, item, r == 1);
}

/* ---- the thread ---- */

static void go_to(struct fs *fs, const struct order_item *item)
{
	const struct place *dir = find_dir(fs, &item->dir);

	if (!dir || !domain_is_open(dir->domain))
		return;
	if (item->kind == ORDER_DIR)
		visit(fs, dir, item);
	else
		fetch(fs, dir, item);
}

/* lock held; given up meanwhile. False: there is nothing to do. */
static bool work(struct fs *fs)
{
	struct keyahead *ka = fs->keyahead;
	struct order_item item;
	bool wiped = ka->seen != ka->wipes, found = order_next(ka->order, &item);

	ka->pending = found;
	ka->seen = ka->wipes;
	if (!found && !wiped)
		return false;
	(void)pthread_mutex_unlock(&ka->lock);
	if (wiped)
		forget_dirs(ka);
	if (found)
		go_to(fs, &item);
	explicit_bzero(&item, sizeof(item));
	(void)pthread_mutex_lock(&ka->lock);
	return true;
}

static bool keeps_dirs(const struct keyahead *ka)
{
	for (unsigned i = 0; i < FDS; i++)
		if (ka->dirs[i].fd >= 0)
			return true;
	return false;
}

/* lock held; given up meanwhile. Until there is something to do, or the time to let go of directories has come. */
static void rest(struct keyahead *ka)
{
	struct timespec until;

	if (!keeps_dirs(ka)) {
		(void)pthread_cond_wait(&ka->work, &ka->lock);
		return;
	}
	(void)clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += REST_MS / 1000;
	if (pthread_cond_timedwait(&ka->work, &ka->lock, &until) != ETIMEDOUT)
		return;
	(void)pthread_mutex_unlock(&ka->lock);
	forget_dirs(ka);
	(void)pthread_mutex_lock(&ka->lock);
}

static void *keyahead_main(void *arg)
{
	struct fs *fs = arg;
	struct keyahead *ka = fs->keyahead;

	{
		LOCK_SCOPE(&ka->lock);
		while (!ka->stop)
			if (!work(fs))
				rest(ka);
	}
	forget_dirs(ka);
	return NULL;
}

int keyahead_start(struct fs *fs, uint32_t window)
{
	struct order_params p = defaults;
	struct keyahead *ka;
	int r;

	if (!window || (domains_count(fs) == 1 && lease_seal(domain_lease(fs->first)) != SEAL_FILE))
		return 0;
	ka = calloc(1, sizeof(*ka));
	if (!ka)
		return -ENOMEM;
	for (unsigned i = 0; i < FDS; i++)
		ka->dirs[i].fd = -1;
	p.window = window;
	r = order_new(&ka->order, &p);
	if (r) {
		free(ka);
		return r;
	}
	(void)pthread_mutex_init(&ka->lock, NULL);
	(void)pthread_cond_init(&ka->work, NULL);
	fs->keyahead = ka;
	r = pthread_create(&ka->thread, NULL, keyahead_main, fs);
	if (r) {
		ka->stop = true;
		keyahead_close(fs);
	}
	return -r;
}

void keyahead_stop(struct fs *fs)
{
	struct keyahead *ka = fs->keyahead;

	if (!ka)
		return;
	{
		LOCK_SCOPE(&ka->lock);
		ka->stop = true;
		(void)pthread_cond_signal(&ka->work);
	}
	(void)pthread_join(ka->thread, NULL);
}

void keyahead_close(struct fs *fs)
{
	struct keyahead *ka = fs->keyahead;

	if (!ka)
		return;
	fs->keyahead = NULL;
	order_free(ka->order);
	(void)pthread_cond_destroy(&ka->work);
	(void)pthread_mutex_destroy(&ka->lock);
	free(ka);
}
