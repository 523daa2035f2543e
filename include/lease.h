/* lease.h — short-lived possession of keys: the domain's lease, the cache of file keys, lock and unlock (product.md,
 * Keys, Lease and lock).
 *
 * A domain is OPEN while its lease is valid. A background thread renews it by a canary Decrypt every `probe`. A denial
 * locks at once; anything else merely does not renew, and the domain locks when the lease ends (counted from when the
 * successful call was SENT). Two good answers in a row open it again: the domain secret is unwrapped anew, the
 * commitment compared. Clock: CLOCK_BOOTTIME.
 *
 * States, and who may run:
 *   OPEN     everything
 *   LOCKING  new work is refused (-EIO); LEASE_WRITEBACK still enters, so that the kernel's dirty pages reach the disk;
 * at most drain_ms LOCKED   nothing enters; when the last one in flight has left, keys are wiped OPENING  nothing
 * enters yet Lock sequence, on the lease thread, no mutex held while a hook runs: OPEN -> LOCKING; parked waiters fail
 * with -EIO; wait until LEASE_WORK in flight is 0; hooks.drain() on a thread of its own, bounded by drain_ms in all
 * (work that is still in flight after drain_ms costs the drain its turn); -> LOCKED (a drain still running now meets
 * -EIO and so ends soon; it gets as long again, then purge no longer waits for it); hooks.purge(); wait until drain has
 * ended and nothing is in flight; hooks.wipe(); file keys, domain keys, block contexts, name keys wiped; one log line
 * with the reason. File keys: unwrapped by KMS threads, never by the caller. One call per file_id at a time (single
 * flight). Keys are re-unwrapped after max_age, wiped after idle. For seal=domain (wrap 2) the unwrap is local and
 * immediate. New keys come from a pool filled ahead by concurrent GenerateDataKey calls (file_id is drawn first and
 * bound in the context).          */
#ifndef BYOKFS_LEASE_H
#define BYOKFS_LEASE_H

#include <stdbool.h>
#include <stdint.h>

#include "block.h"
#include "descriptor.h"
#include "header.h"
#include "kms.h"
#include "name.h"

struct lease_params {
	uint32_t probe_ms, lease_ms, max_age_ms, idle_ms, drain_ms;
	uint32_t pool;    /* new keys kept ready, seal=file; 0: none */
	bool pool_late;    /* the pool is filled once a new key was asked for, not when the domain opens */
	uint32_t threads; /* KMS threads for file keys, at most; started when there is work for them */
	const char *label; /* before its threads' log messages (log_label); borrowed, may be NULL */
	struct kms *previous; /* the second key of a rotation, or NULL; borrowed as the first one is */
};

struct lease_times { /* may change while the lease is in use */
	uint32_t probe_ms, lease_ms, max_age_ms, idle_ms;
};
enum lease_state { LEASE_OPEN, LEASE_LOCKING, LEASE_LOCKED, LEASE_OPENING };

/* Called on lease threads with no lock held. */
struct lease_hooks {
	void *arg;
	void (*drain)(void *arg); /* write back dirty pages, flush files; LEASE_WRITEBACK still enters */
	void (*purge)(void *arg); /* invalidate what the kernel caches and somebody can still reach */
	void (*wipe)(void *arg);  /* drop plaintext the files layer holds; nothing is in flight */
	void (*rest)(void *arg);  /* may be NULL: invalidate all else, before LOCKED is told; the keys are gone */
	void (*opened)(void *arg); /* the domain answers again */
	/* may be NULL: LOCKING begins (with the reason), LOCKED is complete, OPEN again; for the audit */
	void (*changed)(void *arg, enum lease_state, const char *reason);
};

struct lease;     /* one key domain at run time */
struct lease_key; /* one file's keys, counted */

enum lease_class { LEASE_WORK, LEASE_WRITEBACK };

/* Something waiting for a key. Embed it; ready() is called once, on a KMS thread or the lease thread, with no lock
 * held, and may free it. result: 0, then call lease_file_key()/lease_new_key() again with the same waiter (the key is
 * held for it), or lease_waiter_cancel(); or -EIO. Zero the struct before its first use. A parked waiter gets its
 * answer after two request timeouts of the KMS at the latest. */
struct lease_waiter {
	void (*ready)(struct lease_waiter *);
	int result;
	struct context_cause cause;  /* who waits, for the audit */
	struct lease_key *key;     /* private */
	uint64_t deadline, arrival; /* private */
	struct lease_waiter *next; /* private */
};

/* Unwraps the domain secret now, on the caller's thread (mount time, byokfsctl): verifies the commitment and the
 * descriptor's MAC. On KMS_OK the lease is OPEN. start_locked: an error of class D, T or C gives a LOCKED lease and
 * KMS_OK instead of a failure (locked_start); err still tells why. desc is copied, kms borrowed for the life of the
 * lease; which of two keys rules, the descriptor says.
 * KMS_BAD_BLOB also stands for a commitment or MAC mismatch (err says which). */
enum kms_status lease_open(struct lease **out, const struct lease_params *, struct kms *,
    const struct descriptor_domain *desc, const struct context_ids *, enum name_mode, bool start_locked,
    struct kms_err *err);
/* Starts probe and KMS threads. After every fork. */
MUST_CHECK int lease_start(struct lease *, const struct lease_hooks *);
/* From now on these times, and the key service's request timeout anew. The lease ends no later than before, nor than a
 * new one that begins now; a canary is asked at once. Times that are as they were change nothing. */
void lease_retime(struct lease *, const struct lease_times *);
/* Does the lease thread go its rounds, or is it at work that takes its time? Takes no lock. */
bool lease_ticks(const struct lease *);
/* The end, in steps for those who have many leases: tells the threads to stop and fails waiters, waits for nothing;
 * waits for the threads; does both, wipes everything, frees. No operation may be in flight at the last. NULL is
 * fine. */
void lease_stop(struct lease *);
void lease_join(struct lease *);
void lease_close(struct lease *);

/* Every operation enters before it touches a key, a name or cached plaintext, and leaves after its reply was sent.
 * 0, or -EIO: not open (the deadline is checked here too, so a stalled lease thread cannot prolong a lease). */
MUST_CHECK int lease_enter(struct lease *, enum lease_class);
void lease_leave(struct lease *, enum lease_class);
/* Would enter still succeed? For an operation that has entered and waited for storage, before it hands plaintext out: 0
 * or -EIO. */
MUST_CHECK int lease_still(struct lease *, enum lease_class);

/* Valid between enter and leave. */
const struct domain_keys *lease_domain_keys(const struct lease *);
const struct name_keys *lease_names(const struct lease *);
const struct context_ids *lease_ids(const struct lease *);
enum descriptor_seal lease_seal(const struct lease *);

/* The keys of an existing file. 0: *out is yours, lease_key_put() it. -EINPROGRESS: w is parked, ready() will come
 * (never when w is NULL: then -EAGAIN, and the key is fetched all the same). slot NULL: looks only, w
 * is not used. -EIO: denied, damaged blob or commitment mismatch (logged). Called between enter and leave; a parked
 * operation must leave. */
MUST_CHECK int lease_file_key(struct lease *, const struct header_ident *, const struct header_slot *,
    struct lease_waiter *w, struct lease_key **out);
/* Read-ahead: has the key fetched, after what people wait for and renewals. It is no use of the key, parks
 * nobody and logs nothing; a refusal makes the canary be asked. 1: asked for; 0: nothing to do, it is there, on its
 * way, or needs no KMS; -EIO, -ENOMEM: not now. Between enter and leave. */
MUST_CHECK int lease_key_ahead(struct lease *, const struct header_ident *, const struct header_slot *);
/* The keys of a new file with its IDENT (complete) and slot (seq 1). Same results. */
MUST_CHECK int lease_new_key(
    struct lease *, struct lease_waiter *w, struct lease_key **out, struct header_ident *, struct header_slot *);
void lease_key_put(struct lease_key *);
/* Gives back what is held for a waiter that was told 0 but will not ask again (its operation met a lock). Safe on any
 * waiter that is not parked. */
void lease_waiter_cancel(struct lease_waiter *);
/* Valid while held and between enter and leave. Take it and put it back within one operation; NULL once a lock has
 * wiped it. */
const struct file_keys *lease_key_file(const struct lease_key *);
const struct block_file *lease_key_block(const struct lease_key *);

/* ---- rotation: two keys at once (byokfs-format(5), ROTATION)
 *
 * While a rotation is under way, both slots of the descriptor are filled and a lease may have both keys. The key of the
 * slot that rules (of the one that opened the domain) is the one of NOW: it is asked for the domain secret, for the
 * canary and for new keys; the other one, the key BEFORE, is asked for the files whose slot names it. The owner of
 * either key may withdraw it.
 *
 * The key of now is denied: the domain locks at once, whatever the other key says. It is silent: the domain locks when
 * the lease ends.
 *
 * The key before is denied, or silent for as long as a lease: the domain stays open. What this key opened is given up
 * as by a lock (written back, purged from the kernel, keys dropped), and files that are under it only give EIO. It has
 * a canary of its own, after the first one and never in its way.
 *
 * With one of the keys only, its own slot is the one of now, and files of the other key give EIO. Without a slot that
 * names a key of ours, the first key is asked with what there is: a denial is a denial, and a blob that is not the
 * key's opens nothing. The other slot is tried after KMS_BAD_BLOB only, never after a denial, and another key's canary
 * never renews the lease. */

/* Does this slot, under this key service, open to the very secret this domain's commitment stands for? And its probe
 * blob, and may the host make new keys there (seal=file)? Asks the KMS, on the caller's thread, until all three are
 * answered or one fails. Nothing changes. */
enum kms_status lease_prove(struct lease *, struct kms *, const struct descriptor_slot *, const struct context_extra *,
    struct kms_err *err);
/* From now on `now` serves canary, domain secret and new keys by the slot that names its key, which is the ruling one
 * but for a lease that has only the other key (new keys made ahead by another slot are thrown away); `before`, or NULL,
 * serves what names its key. The descriptor is copied. The slot must have been proved. The services stay borrowed until
 * lease_close(), those of earlier calls too. Nobody who holds a key notices. 0 or -ENOMEM. */
MUST_CHECK int lease_rekey(struct lease *, const struct descriptor_domain *, struct kms *now, struct kms *before);
/* A file's slot was exchanged: the keys at hand are unwrapped with this one from now on. */
void lease_resealed(struct lease *, const struct header_ident *, const struct header_slot *);
/* Can a file's slot be asked for? Slots of the domain key always; false only when the descriptor names its key and it
 * is not at hand. */
bool lease_knows(const struct lease *, const struct header_slot *);
struct kms *lease_kms_of(const struct lease *, const struct header_slot *); /* whom to ask for it; NULL: nobody */
/* Is a rotation under way, as far as the descriptor tells? */
bool lease_rotating(const struct lease *);
/* The key service of now, or the one before (NULL: there is none). Open as long as the lease. */
struct kms *lease_kms(const struct lease *, bool before);
/* For an administrator who is watching: what a mount with only one of two keys cannot open, and what to set. False:
 * nothing. */
bool lease_advice(const struct lease *, char *out, size_t size);

/* Administrator: lock now and stay locked until lease_unlock(); asynchronous, returns at once. 0 or -EALREADY. */
MUST_CHECK int lease_lock(struct lease *, const char *reason);
MUST_CHECK int lease_unlock(struct lease *);
/* Waits until the state is as wanted or the deadline (io_boot_ms) passes: 0 or -ETIMEDOUT. */
MUST_CHECK int lease_wait(struct lease *, enum lease_state, uint64_t deadline);

struct lease_status {
	enum lease_state state;
	char reason[320]; /* why it is not open, "" when open */
	int64_t since;    /* Unix seconds of the last change of state */
	bool by_admin;
	enum kms_status answer; /* the last one to a probe */
	uint64_t lease_left_ms;
	uint64_t file_keys, pool_ready, parked;
	uint64_t probes, probe_failures, unwraps, generates, locks, hits;
	uint64_t ahead, ahead_used; /* asked for by lease_key_ahead(), and those somebody wanted afterwards */
	char before[320];           /* what is wrong with the key before; "" when nothing, or there is none */
};
void lease_status(struct lease *, struct lease_status *out);
const char *lease_state_name(enum lease_state);

#endif
