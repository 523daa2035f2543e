/* Walks the backing with a stack of directory descriptors, O_NOFOLLOW all the way. While the domain is locked it waits.
 * A file that cannot be repaired (damaged, its key denied) does not hold the rest up, but the markers stay then. */
#include "sweep.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>

#include "io.h"
#include "keywait.h"
#include "log.h"
#include "state.h"

#define DEPTH_MAX   1000
#define SETTLE_NAPS 5

static struct {
	pthread_t thread;
	bool running;
	atomic_bool stop;
	uint64_t visited, repaired, failed, put_off;
	uint8_t later[DOMAIN_MAX / 8]; /* domains with files put off */
	const uint8_t *again;          /* the walk is for these domains only */
} sweep;

static void nap(void)
{
	const struct timespec t = { .tv_nsec = 200 * 1000 * 1000 };

	(void)nanosleep(&t, NULL);
}

static int with_key(struct fs *fs, struct inode *inode, int *fd, struct lease_key *key)
{
	struct file_key fk = { lease_key_file(key), lease_key_block(key) };
	struct file_params params = { .shared = fs->params.shared,
		.describe = fs_describe,
		.withdrawn = fs_withdrawn,
		.arg = inode };
	struct file *f = NULL;
	uint64_t mark;
	bool wrong;
	int r = 0;

	pthread_mutex_lock(&inode->lock);
	if (!inode->file) { /* else its state sets the hint itself */
		r = file_open(&f, *fd, &fk, &params, &wrong);
		if (!r) {
			*fd = -1;
			r = fs->params.shared ? file_promote_begin(f, &fk, &mark) : state_repair(f, &fk);
			file_close(f);
		}
	}
	pthread_mutex_unlock(&inode->lock);
	return r;
}

/* Opening authenticates STATE and sets the hint right. */
static int repair(struct fs *fs, struct domain *d, struct inode *inode)
{
	CLEANUP_FD int fd = inode_open(fs->inodes, inode, O_RDWR);
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;
	int r;

	if (fd < 0)
		return fd;
	r = file_peek(fd, &ident, &slot);
	if (!r)
		r = keywait_enter(d, &ident, &slot, &key);
	if (r)
		return r;
	r = with_key(fs, inode, &fd, key);
	keywait_leave(d, key);
	return r;
}

/* Only an open domain can say whether a file is damaged. A lock of domain 0 is waited out; a nested domain's files wait
 * for a later walk, so that it holds nobody up. -EAGAIN: put off. */
static int repair_when_open(struct fs *fs, struct domain *d, struct inode *inode)
{
	for (;;) {
		int r = repair(fs, d, inode);

		if (!r || atomic_load(&sweep.stop) || domain_is_open(d))
			return r;
		if (d->index)
			return -EAGAIN;
		nap();
	}
}

static void put_off(uint16_t domain)
{
	sweep.later[domain / 8] |= (uint8_t)(1u << domain % 8);
	sweep.put_off++;
}

static bool is_put_off(const struct domain *d)
{
	return sweep.later[d->index / 8] & 1u << d->index % 8;
}

static void visit_file(struct fs *fs, int dirfd, const char *entry, const struct stat *st, uint16_t domain)
{
	const struct inode_where where = { domain, domain };
	uint8_t page[LAYOUT_PAGE];
	struct header_state state;
	struct inode *inode;
	uint64_t size;
	CLEANUP_FD int fd = openat(dirfd, entry, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	/* A second walk is for those who were locked during the first. */
	if (sweep.again && !(sweep.again[domain / 8] & 1u << domain % 8))
		return;
	sweep.visited++;
	if (fd < 0 || io_pread(fd, page, sizeof(page), 0) != (ssize_t)sizeof(page) || header_state_hint(page, &state))
		return; /* unborn or damaged: no hint could be right */
	if (layout_hint_decode((uint64_t)st->st_size, &size) && size == state.size)
		return;
	if (inode_look(fs->inodes, dirfd, entry, st, where, &inode)) {
		sweep.failed++;
		return;
	}
	int r = repair_when_open(fs, domain_get(fs, domain), inode);

	if (r == -EAGAIN)
		put_off(domain);
	else if (r)
		sweep.failed++;
	else
		sweep.repaired++;
	inode_forget(fs->inodes, inode->nodeid, 1);
	inode_put(fs->inodes, inode);
}

static void visit_dir(struct fs *fs, int fd, uint16_t domain, unsigned depth);

static void visit(struct fs *fs, int dirfd, const struct dirent *e, uint16_t domain, unsigned depth)
{
	struct stat st;

	if (strncmp(e->d_name, NAME_RESERVED, sizeof(NAME_RESERVED) - 1) == 0 || strcmp(e->d_name, ".") == 0 ||
	    strcmp(e->d_name, "..") == 0 || fstatat(dirfd, e->d_name, &st, AT_SYMLINK_NOFOLLOW))
		return;
	if (S_ISREG(st.st_mode) && store_in_doubt(fs->store, &st))
		visit_file(fs, dirfd, e->d_name, &st, domain);
	else if (S_ISDIR(st.st_mode))
		visit_dir(
		    fs, openat(dirfd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), domain, depth + 1);
}

/* Takes fd over; domain is its parent's. */
static void visit_dir(struct fs *fs, int fd, uint16_t domain, unsigned depth) // NOLINT(misc-no-recursion)
{
	DIR *dir = fd < 0 || depth > DEPTH_MAX ? NULL : fdopendir(fd);
	struct dirent *e;

	if (!dir) {
		if (fd >= 0)
			(void)close(fd);
		sweep.failed++;
		return;
	}
	domain = domain_claimed(fs, fd, domain);
	while (!atomic_load(&sweep.stop) && (e = readdir(dir)) != NULL) // NOLINT(concurrency-mt-unsafe)
		visit(fs, dirfd(dir), e, domain, depth);
	(void)closedir(dir);
}

static void walk(struct fs *fs)
{
	visit_dir(fs, openat(fs->store->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), 0, 0);
}

static bool none_open(void *arg, struct domain *d)
{
	bool *none = arg;

	*none = !is_put_off(d) || !domain_is_open(d);
	return *none;
}

/* Walks for domains that were locked, as they open. Until then nobody sees a size in them, and what is in doubt there
 * stays in doubt. */
static void walk_later(struct fs *fs)
{
	static uint8_t again[sizeof(sweep.later)];

	while (sweep.put_off && !atomic_load(&sweep.stop)) {
		bool none = true;

		domains_each(fs, none_open, &none);
		if (none) {
			nap();
			continue;
		}
		states_distrust(fs, true);
		memcpy(again, sweep.later, sizeof(again));
		memset(sweep.later, 0, sizeof(sweep.later));
		sweep.put_off = 0;
		sweep.again = again;
		walk(fs);
		states_distrust(fs, false);
	}
}

static void *sweeper(void *arg)
{
	struct fs *fs = arg;

	while (!atomic_load(&fs->first->ready) && !atomic_load(&sweep.stop))
		nap(); /* locked_start: what is in doubt is known after store_mark */
	if (!store_wants_sweep(fs->store)) {
		states_distrust(fs, false);
		return NULL;
	}
	walk(fs);
	if (atomic_load(&sweep.stop))
		return NULL;
	log_info("an earlier mount did not end cleanly: %llu files visited, %llu sizes set right, %llu could not be",
	    (unsigned long long)sweep.visited, (unsigned long long)sweep.repaired, (unsigned long long)sweep.failed);
	if (sweep.put_off)
		log_info("%llu sizes wait until their key domain is open", (unsigned long long)sweep.put_off);
	/* A stat taken while a file was being repaired may still be about to be used. */
	for (unsigned n = 0; n < SETTLE_NAPS && !atomic_load(&sweep.stop); n++)
		nap();
	if (sweep.put_off) {
		states_distrust(fs, false);
		walk_later(fs);
	}
	if (!sweep.failed && !sweep.put_off && !atomic_load(&sweep.stop))
		store_doubt_done(fs->store);
	states_distrust(fs, false);
	return NULL;
}

int sweep_start(struct fs *fs)
{
	int r;

	if (fs->params.readonly || (atomic_load(&fs->first->ready) && !store_wants_sweep(fs->store)))
		return 0;
	/* Half repaired, a file is not in doubt by its ctime any more, but its hint is not right yet. */
	states_distrust(fs, true);
	r = pthread_create(&sweep.thread, NULL, sweeper, fs);
	sweep.running = r == 0;
	return -r;
}

void sweep_stop(struct fs *fs)
{
	(void)fs;
	if (!sweep.running)
		return;
	atomic_store(&sweep.stop, true);
	(void)pthread_join(sweep.thread, NULL);
	sweep.running = false;
}
