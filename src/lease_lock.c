/* The lease thread: it watches one deadline and carries out the lock sequence. It never calls the KMS, so a KMS that
 * hangs cannot make a lock late; and it never holds a mutex while a hook runs, because hooks make the kernel call back.
 *
 * The drain has a thread of its own because the file system below may hang: the lock goes on without it, and the gate
 * refuses what it still tries to write. */
#include <stdio.h>

#include "lease_internal.h"
#include "log.h"

static void drop_rest(const struct lease *l)
{
	if (l->hooks.rest)
		l->hooks.rest(l->hooks.arg);
}

/* lock held; given up. The key before is withdrawn, the domain stays open: what that key opened is written back while
 * its keys are at hand, then they go, then the kernel's pages. A lock that begins meanwhile does all that again. */
static void give_up(struct lease *l)
{
	char text[sizeof(l->before_trouble)];
	unsigned dropped;

	l->withdraw = false;
	memcpy(text, l->before_trouble, sizeof(text));
	(void)pthread_mutex_unlock(&l->lock);
	l->hooks.drain(l->hooks.arg);
	dropped = lease_keys_withdraw(&l->keys, lease_ring(l));
	l->hooks.purge(l->hooks.arg);
	drop_rest(l);
	log_warn(
	    "files that are only under the key a rotation is leaving give EIO (%u keys dropped): %s", dropped, text);
	(void)pthread_mutex_lock(&l->lock);
}

void *lease_drain_main(void *arg)
{
	struct lease *l = arg;

	log_label(l->params.label);
	LOCK_SCOPE(&l->lock);
	for (;;) {
		while (l->drain != DRAIN_WANTED && !l->withdraw && !l->stop)
			(void)pthread_cond_wait(&l->changed, &l->lock);
		if (l->drain != DRAIN_WANTED && l->stop)
			return NULL;
		if (l->drain != DRAIN_WANTED) {
			give_up(l);
			continue;
		}
		l->drain = DRAIN_RUNNING;
		(void)pthread_mutex_unlock(&l->lock);
		l->hooks.drain(l->hooks.arg);
		(void)pthread_mutex_lock(&l->lock);
		l->drain = DRAIN_IDLE;
		(void)pthread_cond_broadcast(&l->changed);
	}
}

/* lock held. Waits until the work in flight (all: everything) has left, or the deadline. */
static bool wait_quiet(struct lease *l, bool all, uint64_t deadline)
{
	while (!lease_quiet(l, all)) {
		if (lease_clock() >= deadline)
			return false;
		lease_sleep(&l->changed, &l->lock, deadline);
	}
	return true;
}

/* lock held. */
static bool wait_drain(struct lease *l, uint64_t deadline)
{
	while (l->drain != DRAIN_IDLE) {
		if (lease_clock() >= deadline)
			return false;
		lease_sleep(&l->changed, &l->lock, deadline);
	}
	return true;
}

/* lock held. What applications had already written reaches the disk, by the deadline. */
static void drain(struct lease *l, uint64_t deadline)
{
	if (!wait_quiet(l, false, deadline)) {
		log_warn("operations are still running %u ms after the lock: nothing could be written back",
		    l->params.drain_ms);
	} else if (!l->stop) { /* else its thread may have ended */
		l->drain = DRAIN_WANTED;
		(void)pthread_cond_broadcast(&l->changed);
		if (!wait_drain(l, deadline))
			log_warn("writing back took longer than %u ms: what was not written yet is lost",
			    l->params.drain_ms);
	}
	lease_set_state(l, LEASE_LOCKED);
	/* It now meets -EIO everywhere; give it the time to notice. */
	(void)wait_drain(l, deadline + l->params.drain_ms);
}

/* No lock held. */
static void tell_changed(struct lease *l, enum lease_state state, const char *reason)
{
	if (l->hooks.changed)
		l->hooks.changed(l->hooks.arg, state, reason);
}

/* lock held; given up while hooks run. */
static void lock_domain(struct lease *l)
{
	uint64_t deadline = lease_clock() + l->params.drain_ms;
	char reason[sizeof(l->reason)];

	l->busy = true;
	l->lock_wanted = l->withdraw = false;
	atomic_store(&l->work_until, 0);
	atomic_store(&l->writeback_until, deadline);
	lease_set_state(l, LEASE_LOCKING);
	memcpy(reason, l->reason, sizeof(reason));
	(void)pthread_mutex_unlock(&l->lock);
	tell_changed(l, LEASE_LOCKING, reason);
	lease_keys_refuse(&l->keys);
	(void)pthread_mutex_lock(&l->lock);
	drain(l, deadline);
	(void)pthread_mutex_unlock(&l->lock);
	l->hooks.purge(l->hooks.arg);
	(void)pthread_mutex_lock(&l->lock);
	(void)wait_drain(l, UINT64_MAX);
	(void)wait_quiet(l, true, UINT64_MAX);
	(void)pthread_mutex_unlock(&l->lock);
	l->hooks.wipe(l->hooks.arg);
	lease_keys_wipe(&l->keys);
	block_forget_all();
	lease_domain_wipe(&l->domain);
	drop_rest(l);
	log_warn("locked: %s", reason);
	tell_changed(l, LEASE_LOCKED, reason);
	(void)pthread_mutex_lock(&l->lock);
	l->busy = false;
	l->good = 0;
	l->locks++;
	l->next_probe = l->hurry ? 0 : lease_clock() + l->times.probe_ms;
	(void)pthread_cond_broadcast(&l->changed);
}

/* lock held. Is it time to lock? */
static bool lock_due(struct lease *l)
{
	if (lease_state_of(l) != LEASE_OPEN)
		return false;
	if (!l->lock_wanted && lease_clock() >= atomic_load(&l->work_until))
		(void)snprintf(l->reason, sizeof(l->reason), "the lease ended without an answer from the KMS: %.*s",
		    260, l->trouble[0] ? l->trouble : "the last call is still waiting");
	else if (!l->lock_wanted)
		return false;
	return true;
}

void *lease_thread_main(void *arg)
{
	struct lease *l = arg;

	log_label(l->params.label);
	LOCK_SCOPE(&l->lock);
	while (!l->stop) {
		atomic_store(&l->ticked, UINT64_MAX);
		if (l->opened_pending) {
			l->opened_pending = false;
			(void)pthread_mutex_unlock(&l->lock);
			log_info("open: the KMS answers again");
			l->hooks.opened(l->hooks.arg);
			tell_changed(l, LEASE_OPEN, "the KMS answers again");
			(void)pthread_mutex_lock(&l->lock);
		} else if (lock_due(l)) {
			lock_domain(l);
		} else {
			atomic_store(&l->ticked, lease_clock());
			(void)pthread_mutex_unlock(&l->lock);
			lease_keys_tick(&l->keys);
			(void)pthread_mutex_lock(&l->lock);
			if (!l->stop && !l->opened_pending && !lock_due(l))
				lease_sleep(&l->changed, &l->lock,
				    lease_state_of(l) == LEASE_OPEN ? atomic_load(&l->work_until) : UINT64_MAX);
		}
	}
	atomic_store(&l->ticked, UINT64_MAX);
	return NULL;
}
