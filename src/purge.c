/* Runs on the lease's threads, with no lock held: a notification waits for the kernel's folio locks, hence for requests
 * that our workers must be free to refuse.
 *
 * An inode costs some 10 us, and there may be a million of them. What is open comes first, and has all that is still to
 * be written back; then one call makes all names be looked up again, which is refused. What is cached of files that
 * nobody has open can be reached no more, so neither the write-back nor the keys wait for its end. */
#include "purge.h"

#include <errno.h>
#include <fcntl.h>
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
	const struct domain *domain;
	int fd;
	bool open_only;
	uint64_t count;
};

/* Directories count as open: nobody tells which are, and they are few. */
static bool is_open(struct inode *inode)
{
	if (S_ISDIR(inode->type))
		return true;
	LOCK_SCOPE(&inode->lock);
	return inode->opens > 0;
}

/* Its content, or at least its attributes. */
static bool concerns(const struct domain *d, const struct inode *inode)
{
	return atomic_load_explicit(&inode->domain, memory_order_relaxed) == d->index ||
	    atomic_load_explicit(&inode->outer, memory_order_relaxed) == d->index;
}

static bool inval(void *arg, struct inode *inode)
{
	struct pass *p = arg;

	if (!concerns(p->domain, inode) || (p->open_only && !is_open(inode)))
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
static void invalidate(struct domain *d, bool open_only)
{
	struct pass p = { .domain = d, .fd = fuse_session_fd(d->fs->se), .open_only = open_only };

	inode_each(d->fs->inodes, inval, &p);
	log_debug("lock: %llu inodes invalidated", (unsigned long long)p.count);
}

/* For all domains: the others' names are looked up again, which hurts nobody. */
static void invalidate_names(const struct domain *d)
{
	/* Without it dentries live on for their timeout, which is no longer than the lease; their attributes go. */
	if (fuseio_inc_epoch(fuse_session_fd(d->fs->se)))
		log_debug("the kernel knows no epochs: cached names expire with their timeout");
}

/* The disk's own caches are written in the background: what was acknowledged by fsync is safe already, the rest
 * deserves a chance. The descriptor is its own: it may outlive the mount. */
static void *sync_store(void *arg)
{
	CLEANUP_FD int fd = (int)(intptr_t)arg;

	if (syncfs(fd))
		log_warn("cannot sync the store: %s", strerror(errno));
	return NULL;
}

static void start_sync(const struct fs *fs)
{
	int fd = fcntl(fs->store->fd, F_DUPFD_CLOEXEC, 0);
	pthread_attr_t attr;
	pthread_t thread;

	(void)pthread_attr_init(&attr);
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	if (fd < 0 ||
	    pthread_create(&thread, &attr, sync_store, (void *)(intptr_t)fd)) { // NOLINT(performance-no-int-to-ptr)
		log_warn("cannot start a sync of the store");
		cleanup_fd(&fd);
	}
	(void)pthread_attr_destroy(&attr);
}

static void drain(void *arg)
{
	struct domain *d = arg;
	unsigned failed;

	log_label(d->label);
	invalidate(d, true);
	failed = d->fs->params.readonly ? 0 : states_flush_cached(d);
	if (failed)
		log_warn("%u files could not be written back before the lock", failed);
}

static bool pass_again(void *arg, struct domain *d)
{
	unsigned left = atomic_load(&d->stragglers);
	struct lease_status st;

	(void)arg;
	if (!left)
		return true;
	domain_status(d, &st);
	if (st.state != LEASE_LOCKED)
		return true;
	/* A page refused meanwhile has set it again. */
	(void)atomic_compare_exchange_strong(&d->stragglers, &left, left - 1);
	invalidate(d, true);
	return true;
}

void purge_again(struct fs *fs)
{
	domains_each(fs, pass_again, NULL);
}

static void purge(void *arg)
{
	struct domain *d = arg;
	struct fs *fs = d->fs;

	invalidate(d, true);
	atomic_store(&d->stragglers, PURGE_PASSES);
	invalidate_names(d);
	if (!fs->params.readonly)
		start_sync(fs);
}

static void rest(void *arg)
{
	invalidate(arg, false);
}

static void wipe(void *arg)
{
	struct domain *d = arg;

	(void)states_wipe(d);
	op_dir_wipe(d);
	keyahead_wipe(d->fs);
}

/* The mount began locked: what the descriptors say is proved now, and the nested domains are known. */
static void authenticate(struct domain *d)
{
	struct lease *l = atomic_load(&d->lease);
	char why[STORE_WHY];

	if (lease_enter(l, LEASE_WORK))
		return;
	int r = store_authenticate(d->fs->store, lease_domain_keys(l), lease_names(l), why);

	if (!r)
		r = store_mark(d->fs->store, why);
	lease_leave(l, LEASE_WORK);
	if (r)
		log_err("%s", why);
	else if (domains_load(d->fs)) {
		log_err("out of memory for the key domains");
		r = -ENOMEM;
	}
	if (r) {
		if (lease_lock(l, "the store does not authenticate"))
			log_err("cannot lock the domain again");
		return;
	}
	atomic_store_explicit(&d->ready, true, memory_order_release);
	domains_open_nested(d->fs);
}

static void opened(void *arg)
{
	struct domain *d = arg;

	atomic_fetch_add(&d->opening, 1);
	if (d->index)
		domain_restore(d);
	else if (!atomic_load(&d->ready))
		authenticate(d);
}

static void changed(void *arg, enum lease_state state, const char *reason)
{
	const struct domain *d = arg;

	audit_state(d->fs->audit, &d->ids, lease_state_name(state), reason);
}

void purge_hooks(struct domain *d, struct lease_hooks *out)
{
	*out = (struct lease_hooks){ .arg = d,
		.drain = drain,
		.purge = purge,
		.wipe = wipe,
		.rest = rest,
		.opened = opened,
		.changed = changed };
}
