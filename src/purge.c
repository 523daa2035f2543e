/* Runs on the lease's threads, with no lock held: a notification waits for the kernel's folio locks, hence for requests
 * that our workers must be free to refuse.                                                                              */
#include "purge.h"

#include <errno.h>
#include <fuse_lowlevel.h>
#include <string.h>
#include <sys/stat.h>

#include "fuseio.h"
#include "io.h"
#include "log.h"
#include "state.h"

struct drain {
	int fd;
	uint64_t count;
};

static bool inval(void *arg, struct inode *inode)
{
	struct drain *d = arg;
	int r = fuseio_inval_inode(d->fd, inode->nodeid);

	d->count++;
	/* ENOENT: the kernel does not have it any more. */
	if (r && r != -ENOENT)
		log_warn("cannot drop the kernel's pages of inode %llu: %s", (unsigned long long)inode->ino, strerror(-r));
	return r != -ENODEV && r != -ENOTCONN;
}

/* The disk's own caches are written in the background: what was acknowledged by fsync is safe already, the rest deserves a chance. */
static void *sync_store(void *arg)
{
	struct fs *fs = arg;

	if (syncfs(fs->store->fd))
		log_warn("cannot sync the store: %s", strerror(errno));
	return NULL;
}

static void drain(void *arg)
{
	struct fs *fs = arg;
	struct drain d = {.fd = fuse_session_fd(fs->se)};
	unsigned failed;

	inode_each(fs->inodes, true, inval, &d);
	failed = fs->params.readonly ? 0 : states_flush_cached(fs);
	if (failed)
		log_warn("%u files could not be written back before the lock", failed);
	log_debug("lock: %llu inodes invalidated", (unsigned long long)d.count);
}

static void purge(void *arg)
{
	struct fs *fs = arg;
	pthread_attr_t attr;
	pthread_t thread;
	int r = fuseio_inc_epoch(fuse_session_fd(fs->se));

	/* Without it dentries live on for their timeout, which is no longer than the lease; their attributes are gone. */
	if (r)
		log_debug("the kernel knows no epochs: cached names expire with their timeout");
	if (fs->params.readonly)
		return;
	(void)pthread_attr_init(&attr);
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (pthread_create(&thread, &attr, sync_store, fs))
		log_warn("cannot start a sync of the store");
	(void)pthread_attr_destroy(&attr);
}

static void wipe(void *arg)
{
	struct fs *fs = arg;
	unsigned lost = states_wipe(fs);

	op_dir_wipe(fs);
	atomic_fetch_add(&fs->lost, lost);
}

static void opened(void *arg)
{
	struct fs *fs = arg;
	char why[STORE_WHY];

	if (atomic_load(&fs->ready))
		return;
	if (lease_enter(fs->lease, LEASE_WORK))
		return;
	int r = store_authenticate(fs->store, lease_domain_keys(fs->lease), lease_names(fs->lease), why);

	if (!r)
		r = store_mark(fs->store, why);
	lease_leave(fs->lease, LEASE_WORK);
	if (r) {
		log_err("%s", why);
		if (lease_lock(fs->lease, "the store does not authenticate"))
			log_err("cannot lock the domain again");
		return;
	}
	atomic_store_explicit(&fs->ready, true, memory_order_release);
}

void purge_hooks(struct fs *fs, struct lease_hooks *out)
{
	*out = (struct lease_hooks){.arg = fs, .drain = drain, .purge = purge, .wipe = wipe, .opened = opened};
}
