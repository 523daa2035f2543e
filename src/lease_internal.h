/* lease_internal.h — what the parts of the lease module share: lease.c (gate, life, administrator), lease_lock.c (lease
 * and drain threads), lease_probe.c (canary, domain secret), lease_key.c (keys of existing files), lease_key_life.c
 * (one key, the table), lease_key_call.c (asking the KMS for them), lease_pool.c (KMS threads, keys of new files).
 *
 * Locks: lease.lock, then keys.lock; neither is held across a call of the KMS, a hook or ready(). */
#ifndef BYOKFS_LEASE_INTERNAL_H
#define BYOKFS_LEASE_INTERNAL_H

#include <stdatomic.h>

#include "lease.h"
#include "lease_key_internal.h"

/* Milliseconds of CLOCK_BOOTTIME. Every decision about time asks it; tests replace it before they open a lease. */
extern uint64_t (*lease_clock)(void);
/* Makes every thread of the lease look at lease_clock again. */
void lease_tick(struct lease *);

struct lease_domain {
	struct domain_keys *keys; /* secret memory */
	struct name_keys *names;
};

struct lease {
	_Atomic(const struct descriptor_slot *) opened_by; /* into desc; NULL before the domain opened */
	/* constant after lease_open */
	struct lease_params params;
	struct kms *kms;
	const struct descriptor_domain *desc;
	struct context_ids ids;
	enum name_mode mode;
	uint64_t call_ms; /* request timeout */
	struct lease_hooks hooks;
	/* the gate: state, in flight of both classes, and until when each may enter */
	_Atomic uint64_t gate, work_until, writeback_until;
	/* written before the gate opens, wiped after it closed and everyone left */
	struct lease_domain domain;
	pthread_mutex_t lock; /* guards what follows; state changes of the gate happen under it */
	pthread_cond_t changed;
	bool started, stop;
	bool busy; /* the lock sequence is under way */
	bool by_admin, lock_wanted, hurry, opened_pending;
	enum { DRAIN_IDLE, DRAIN_WANTED, DRAIN_RUNNING } drain;
	enum kms_status answer; /* the last one to a probe */
	unsigned good;          /* canaries answered well in a row since the lock */
	uint64_t next_probe, last_probe;
	char reason[320], trouble[320]; /* why locked; why the lease is not being renewed */
	int64_t since;
	uint64_t probes, probe_failures, locks;
	struct context *context; /* scratch of whoever asks for the domain: lease_open, then the probe thread */
	pthread_t lease_thread, probe_thread, drain_thread;
	struct lease_keys keys;
};

/* lease.c */
enum lease_state lease_state_of(const struct lease *);
/* lock held. */
void lease_set_state(struct lease *, enum lease_state);
/* lock held: sets the lease that an answer to a call sent then gives. Never shortens it. */
void lease_renew(struct lease *, uint64_t sent);
/* lock held: refuses new work from this instant and has the lease thread lock the domain. */
void lease_want_lock(struct lease *, const char *reason);
/* In flight of WORK, or of both classes. */
bool lease_quiet(const struct lease *, bool all);
/* Waits on cond until woken, until lease_clock() may have reached `until`, or for a second. */
void lease_sleep(pthread_cond_t *, pthread_mutex_t *, uint64_t until);
MUST_CHECK int lease_cond_init(pthread_cond_t *);

/* lease_lock.c */
void *lease_thread_main(void *);
void *lease_drain_main(void *);

/* lease_probe.c */
void *lease_probe_main(void *);
/* Asks for the domain secret and derives the domain's keys; *sent is when. */
enum kms_status lease_domain_open(struct lease *, struct lease_domain *out, uint64_t *sent, struct kms_err *err);
void lease_domain_wipe(struct lease_domain *);
/* A key was refused: ask the canary whether the domain is. */
void lease_suspect(struct lease *);

/* lease_probe.c: the descriptor's slot to ask with, and to take the context generation of new keys from. */
const struct descriptor_slot *lease_slot(const struct lease *);

#endif
