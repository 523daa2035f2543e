/* lease_internal.h — what the parts of the lease module share: lease.c (gate, life, administrator), lease_lock.c (lease
 * and drain threads), lease_probe.c (canary, domain secret), lease_ring.c (which key service serves what),
 * lease_rekey.c (one key takes another's place), lease_key.c (keys of existing files), lease_key_life.c (one key),
 * lease_key_table.c (the table), lease_key_call.c (asking the KMS for them), lease_pool.c (KMS threads, keys of new
 * files).
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

/* The descriptor, and the key services that serve the domain; see lease_ring.c. Constant but for opened_by. */
struct lease_ring {
	struct lease_ring *older;
	struct descriptor_domain *desc; /* its own copy */
	struct kms *kms[2];             /* [1]: NULL when there is one only */
	struct lease_known {
		uint8_t hash[8];
		const char *key; /* the name it is the hash of */
		struct kms *kms; /* NULL: none of ours */
	} known[4];
	size_t nknown;
	_Atomic(const struct descriptor_slot *) opened_by; /* into desc; NULL before the domain opened */
};

struct lease {
	_Atomic(struct lease_ring *) ring; /* replaced with both locks held; load it once per call of the KMS */
	/* lease_retime() changes them under lock; anybody reads them */
	struct {
		_Atomic uint32_t probe_ms, lease_ms, max_age_ms, idle_ms;
	} times;
	_Atomic uint64_t call_ms; /* request timeout */
	/* constant after lease_open; but for the four times, which are as they were then */
	struct lease_params params;
	struct context_ids ids;
	enum name_mode mode;
	struct lease_hooks hooks;
	/* the gate: state, in flight of both classes, and until when each may enter */
	_Atomic uint64_t gate, work_until, writeback_until;
	/* when the lease thread last went round; UINT64_MAX: it is at work, or does not run */
	_Atomic uint64_t ticked;
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
	/* the key before: until when its last good answer holds, what is wrong with it, and whether what it opened is
	 * to be given up (the drain thread's job), or was */
	uint64_t before_until;
	char before_trouble[320];
	bool withdraw, withdrawn;
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

/* The domain opened by that slot, asked for on this thread with the descriptor of this ring; out NULL: only its probe
 * blob. context is scratch. */
enum kms_status lease_ask_slot(const struct lease *, const struct lease_ring *, struct kms *,
    const struct descriptor_slot *, const struct context_extra *, uint64_t deadline, struct context *,
    struct lease_domain *out, struct kms_err *err);

/* lease_ring.c. Copies the descriptor; the order of the services does not matter, two may be NULL. NULL without
 * memory. */
struct lease_ring *lease_ring_make(const struct descriptor_domain *, struct kms *one, struct kms *two);
/* With all older ones. */
void lease_ring_free(struct lease_ring *);
/* The slot to ask with, and to take the context generation of new keys from: the one that opened the domain, before
 * that the one that rules, if a key of ours is named there. NULL: none is filled. */
const struct descriptor_slot *lease_ring_slot(const struct lease_ring *);
/* The other slot if it is filled, else NULL. */
const struct descriptor_slot *lease_ring_other(const struct lease_ring *, const struct descriptor_slot *);
/* Whom to ask with this slot; NULL: it is under a key that is not ours. */
struct kms *lease_ring_serves(const struct lease_ring *, const struct descriptor_slot *);
/* The service of the slot to ask with, never NULL, and the other one or NULL. */
struct kms *lease_ring_now(const struct lease_ring *);
struct kms *lease_ring_before(const struct lease_ring *);
/* Whom to ask for a file whose slot has this hash of a key's name: NULL when the descriptor knows the key and we do
 * not. One that nobody knows is asked of the first: names decide nothing. */
struct kms *lease_ring_kms(const struct lease_ring *, const uint8_t hash[static 8]);
/* Is that the name of a key of ours, or in the descriptor? */
bool lease_ring_lists(const struct lease_ring *, const uint8_t hash[static 8]);
/* For people: why a file with this hash cannot be opened. */
void lease_ring_explain(const struct lease_ring *, const uint8_t hash[static 8], char *out, size_t size);
/* The slot of a rotation under way that is not under a key of ours, or NULL; and what to do about it. */
const struct descriptor_slot *lease_ring_missing(const struct lease_ring *);
void lease_ring_advise(const struct lease_ring *, char *out, size_t size);

static inline const struct lease_ring *lease_ring(const struct lease *l)
{
	return atomic_load_explicit(&l->ring, memory_order_acquire);
}

#endif
