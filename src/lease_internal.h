/* lease_internal.h — what the parts of the lease module share: lease.c (gate, life, administrator), lease_lock.c (lease
 * and drain threads), lease_probe.c (canary, domain secret), lease_key.c (keys of existing files), lease_key_life.c
 * (one key, the table), lease_pool.c (KMS threads, keys of new files).
 *
 * Locks: lease.lock, then keys.lock; neither is held across a call of the KMS, a hook or ready(). */
#ifndef BYOKFS_LEASE_INTERNAL_H
#define BYOKFS_LEASE_INTERNAL_H

#include <stdatomic.h>

#include "lease.h"

/* Milliseconds of CLOCK_BOOTTIME. Every decision about time asks it; tests replace it before they open a lease. */
extern uint64_t (*lease_clock)(void);
/* Makes every thread of the lease look at lease_clock again. */
void lease_tick(struct lease *);

/* How a file secret is sealed: what another unwrap needs. */
struct lease_blob {
	uint8_t wrap;
	uint16_t generation, len;
	uint8_t bytes[];
};

/* One file's keys. In the table (open files) or in the pool (new keys nobody took yet); counted. */
struct lease_key {
	struct lease_key *next;   /* chain of the table, the pool, or a list to be freed */
	struct lease_key *queued; /* job queue */
	struct lease_keys *owner;
	uint8_t file[CONTEXT_ID], commit[32];
	unsigned refs;  /* holders, waiters that were told, a job */
	bool listed;    /* in the table */
	bool loaded;    /* keys are there */
	bool busy;      /* queued for, or in the hands of, a KMS thread; blob does not change then */
	uint64_t epoch; /* of the table when it was queued */
	uint64_t unwrapped, used, refresh;
	struct lease_waiter *waiters;
	struct file_keys *keys; /* secret memory */
	struct block_file block;
	struct lease_blob *blob;
	struct header_slot *made; /* a new key's slot, until it is handed out */
};

struct lease_keys {
	pthread_mutex_t lock; /* guards all of this, and every lease_key but keys and block once loaded */
	pthread_cond_t work;
	struct lease *lease;
	bool stop, accepting;
	uint64_t epoch; /* raised by a lock: answers to older calls are discarded */
	uint8_t seed[16];
	struct lease_key **bucket;
	size_t buckets, count;
	/* unwraps somebody waits for, and those that only renew a key in use; first come, first served */
	struct lease_key *jobs, **jobs_tail, *refreshes;
	/* new keys */
	struct lease_key *pool, **pool_tail;
	struct lease_waiter *wanting, **wanting_tail;
	uint32_t ready, wanted, making, target;
	uint64_t demand, retry;
	bool turn;           /* whose turn it is when unwraps and new keys are both waited for */
	uint32_t background; /* threads at work nobody waits for */
	uint64_t sweep;
	uint64_t parked, unwraps, generates, hits;
	uint64_t log_since;
	unsigned log_lines;
	pthread_t *threads;
	uint32_t nthreads;
};

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

/* lease_key.c. "locked": keys.lock is held. */
MUST_CHECK int lease_keys_init(struct lease_keys *, struct lease *);
void lease_keys_destroy(struct lease_keys *);
/* The domain opened: the KMS may be asked for keys. */
void lease_keys_accept(struct lease_keys *);
/* No more calls of the KMS: parked waiters fail with -EIO, answers under way are discarded. Keys in hand go on serving.
 */
void lease_keys_refuse(struct lease_keys *);
/* Wipes every key. Nothing is in flight. */
void lease_keys_wipe(struct lease_keys *);
/* Idle keys, surplus of the pool, waiters past their deadline. */
void lease_keys_tick(struct lease_keys *);

/* lease_key_life.c */
struct lease_key *lease_key_new(struct lease_keys *, const uint8_t file[static CONTEXT_ID]);
void lease_key_free(struct lease_key *);
/* Frees a list linked by next. */
void lease_key_free_all(struct lease_key *);
/* Derives the file's keys into secret memory; NULL when it cannot be done. */
struct file_keys *lease_key_derive(
    struct lease_keys *, const uint8_t file[static CONTEXT_ID], const uint8_t secret[static KDF_SECRET]);
/* locked: the keys become the key's; sent is when the KMS was asked for them. */
void lease_key_load(struct lease_key *, struct file_keys *, uint64_t sent);
/* locked: takes a ref away; when true the caller frees the key after unlocking. */
MUST_CHECK bool lease_key_unref(struct lease_key *);
MUST_CHECK int lease_key_set_blob(struct lease_key *, const struct header_slot *);
/* locked. */
struct lease_key *lease_table_find(struct lease_keys *, const uint8_t file[static CONTEXT_ID]);
void lease_table_add(struct lease_keys *, struct lease_key *);
void lease_table_remove(struct lease_keys *, struct lease_key *);
/* locked: removes from the table, and from memory when nobody holds it: then it is put on the list *dead. */
void lease_table_drop(struct lease_keys *, struct lease_key *, struct lease_key **dead);

/* locked: parks w at the head of the list. */
void lease_park(struct lease_keys *, struct lease_waiter **list, struct lease_waiter *w);
/* Tells everyone on a list. No lock held. */
void lease_tell(struct lease_waiter *list, int result);
/* Logs trouble with one key (file NULL: a new one), a few lines a second at most. No lock held. */
void lease_complain(struct lease_keys *, const uint8_t *file, const char *what);

/* lease_probe.c: the descriptor's slot to ask with, and to take the context generation of new keys from. */
const struct descriptor_slot *lease_slot(const struct lease *);
/* lease_key.c: locked. Who has waited longest for a new key, or NULL. */
struct lease_waiter *lease_pop_wanting(struct lease_keys *);
/* locked: waiters for new keys that are past their deadline, or all of them, onto the list *late. */
void lease_pool_expire(struct lease_keys *, uint64_t now, bool all, struct lease_waiter **late);

/* lease_pool.c: the KMS threads and the pool. */
MUST_CHECK int lease_pool_start(struct lease_keys *);
void lease_pool_stop(struct lease_keys *);
/* locked: keys too old or unwanted, or all of them, onto the list *dead. */
void lease_pool_drain(struct lease_keys *, uint64_t now, bool all, struct lease_key **dead);

#endif
