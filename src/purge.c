/* Runs on the lease's threads, with no lock held: a notification waits for the kernel's folio locks, hence for requests
 * that our workers must be free to refuse. */
#include "purge.h"

#include <errno.h>
#include <fuse_lowlevel.h>
#include <string.h>
#include <sys/stat.h>

#include "audit.h"
#include "fuseio.h"
#include "io.h"
#include "keyahead.h"
#include "log.h"
#include "state.h"

struct pass {
	int fd;
	bool open_only;
	uint64_t count;
};

static bool is_open(struct inode *inode)
{
	LOCK_SCOPE(&inode->lock);
	return inode->opens > 0;
}

static bool inval(void *arg, struct inode *inode)
{
	struct pass *p = arg;

	if (p->open_only && !is_open(inode))
		return true;
	int r = fuseio_inval_inode(p->fd, inode->nodeid);

	p->count++;
	/* ENOENT: the kernel does not have it any more. */
	if (r && r != -ENOENT)
		log_warn(
		    "cannot drop the kernel's pages of inode %llu: %s", (unsigned long long)inode->ino, strerror(-r));
	return r != -ENODEV && r != -ENOTCONN;
}

/* Writes back what may still be written, then drops attributes and pages. */
static void invalidate(struct fs *fs, bool open_only)
{
	struct pass p = { .fd = fuse_session_fd(fs->se), .open_only = open_only };

	inode_each(fs->inodes, true, inval, &p);
	log_debug("lock: %llu inodes invalidated", (unsigned long long)p.count);
}

/* The disk's own caches are written in the background: what was acknowledged by fsync is safe already, the rest
 * deserves a chance. */
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
	unsigned failed;

	invalidate(fs, false);
	failed = fs->params.readonly ? 0 : states_flush_cached(fs);
	if (failed)
		log_warn("%u files could not be written back before the lock", failed);
	atomic_store(&fs->drained, true);
}

void purge_again(struct fs *fs)
{
	unsigned left = atomic_load(&fs->stragglers);
	struct lease_status st;

	if (!left)
		return;
	lease_status(fs->lease, &st);
	if (st.state != LEASE_LOCKED)
		return;
	/* A page refused meanwhile has set it again. */
	(void)atomic_compare_exchange_strong(&fs->stragglers, &left, left - 1);
	invalidate(fs, true);
}

static void purge(void *arg)
{
	struct fs *fs = arg;
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	/* A drain that had no time leaves everything to be done here. */
	invalidate(fs, atomic_exchange(&fs->drained, false));
	atomic_store(&fs->stragglers, PURGE_PASSES);
	r = fuseio_inc_epoch(fuse_session_fd(fs->se));
	/* Without it dentries live on for their timeout, which is no longer than the lease; their attributes are gone.
	 */
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
	(void)states_wipe(fs);
	/* A drain that ended only now must not count for the next lock. */
	atomic_store(&fs->drained, false);
	op_dir_wipe(fs);
	keyahead_wipe(fs);
}

static void opened(void *arg)
{
	struct fs *fs = arg;
	char why[STORE_WHY];

	atomic_fetch_add(&fs->opening, 1);
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

static void changed(void *arg, enum lease_state state, const char *reason)
{
	const struct fs *fs = arg;

	audit_state(fs->audit, lease_ids(fs->lease), lease_state_name(state), reason);
}

void purge_hooks(struct fs *fs, struct lease_hooks *out)
{
	*out = (struct lease_hooks){
		.arg = fs, .drain = drain, .purge = purge, .wipe = wipe, .opened = opened, .changed = changed
	};
}
