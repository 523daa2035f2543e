/* lease_key_internal.h — keys of files at run time, and what the files that handle them share: lease_key.c, _life.c,
 * _table.c, _call.c and lease_pool.c. Locks: see lease_internal.h. */
#ifndef BYOKFS_LEASE_KEY_INTERNAL_H
#define BYOKFS_LEASE_KEY_INTERNAL_H

#include <pthread.h>
#include <sys/queue.h>

#include "lease.h"

/* Keys of files in memory, all domains together, but for those in use: what they take of locked memory fits into the
 * usual RLIMIT_MEMLOCK of 8 MiB. Every domain may have LEASE_KEYS_LEAST. */
#define LEASE_KEYS_MOST  65536u
#define LEASE_KEYS_LEAST 1024u

/* Keys fetched ahead that wait for a thread; beyond, none is taken on. */
#define LEASE_AHEAD_MAX 4096u

/* How a file secret is sealed: what another unwrap needs. */
struct lease_blob {
	uint8_t wrap, key_hash[8]; /* of the name of the KMS key, wrap 1 */
	uint16_t generation, len;
	uint8_t bytes[];
};

/* One file's keys. In the table (open files) or in the pool (new keys nobody took yet); counted. */
struct lease_key {
	struct lease_key *next;   /* chain of the table, the pool, or a list to be freed */
	TAILQ_ENTRY(lease_key) queued;
	TAILQ_ENTRY(lease_key) aged; /* while listed */
	struct lease_queue *queue; /* it is in; NULL: none */
	struct lease_keys *owner;
	uint8_t file[CONTEXT_ID], commit[32];
	unsigned refs;  /* holders, waiters that were told, a job */
	bool listed;    /* in the table */
	bool loaded;    /* keys are there */
	bool busy;      /* queued for, or in the hands of, a KMS thread; then blob does not change */
	bool ahead;     /* asked for by read-ahead, and by nobody since */
	bool alone;     /* a call for many failed for it */
	uint64_t epoch; /* of the table when it was queued */
	uint64_t unwrapped, used, refresh;
	struct lease_waiter *waiters;
	struct file_keys *keys; /* secret memory */
	struct block_file block;
	struct lease_blob *blob, *other; /* other: of somebody who joined a call for another one */
	struct lease_blob *fresh;        /* of a slot exchanged during a call: the blob once the call is over */
	struct header_slot *made; /* a new key's slot, until it is handed out */
};

TAILQ_HEAD(lease_queue, lease_key);

struct lease_ring;
struct lease_call; /* lease_key_call.c: one thread's questions and answers; large, on the heap */

struct lease_thread {
	pthread_t id;
	struct lease_keys *keys;
	struct lease_call *call; /* freed by the thread */
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
	TAILQ_HEAD(, lease_key) aged; /* the table's, least recently used first */
	/* unwraps somebody waits for, those of read-ahead, and those that only renew a key in use (before the former);
	 * first come, first served */
	struct lease_queue jobs, aheads, refreshes;
	uint32_t naheads;
	/* new keys */
	struct lease_key *pool, **pool_tail;
	struct lease_waiter *wanting, **wanting_tail;
	uint32_t ready, wanted, making, target;
	uint32_t burst;  /* new files of late, see lease_pool.c */
	uint64_t demand; /* when the last one was made */
	uint64_t retry;
	struct lease_waiter *tells, **tells_tail; /* answered, and to be told so */
	uint64_t arrivals; /* who came for a new key, counted */
	bool turn;           /* whose turn it is when unwraps and new keys are both wanted */
	uint32_t background; /* threads at work nobody waits for */
	uint64_t sweep;
	uint64_t parked, unwraps, generates, hits, ahead, ahead_used;
	uint64_t log_since;
	unsigned log_lines;
	struct lease_thread *threads;
	uint32_t nthreads, most, idle, woken; /* woken: of the idle ones */
};

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

/* locked: takes a key out of the queue it is in. */
void lease_unqueue(struct lease_keys *, struct lease_key *);
/* locked: forgets what read-ahead asked for and no thread has begun. */
void lease_ahead_cancel(struct lease_keys *, struct lease_key **dead);

/* lease_key_call.c */
struct lease_call *lease_call_new(void);
void lease_call_free(struct lease_call *);
/* locked, given up during the call: unwraps the first key of the queue, and others with it when the KMS takes many. */
void lease_unwrap_next(struct lease_keys *, struct lease_queue *, struct lease_call *);
/* No lock held: asks the KMS for a new key. *out, with its slot in made; or *text says why not. */
enum kms_status lease_call_generate(
    struct lease *, struct lease_call *, const struct context_cause *, struct lease_key **out, const char **text);
/* Keys and slot of a new key from its secret. */
MUST_CHECK int lease_key_make(struct lease *, struct lease_key *, const uint8_t secret[static KDF_SECRET],
    struct header_slot **slot, uint64_t sent);

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
/* The blob to ask with should this one be bad. */
MUST_CHECK int lease_key_set_other(struct lease_key *, const struct header_slot *);
/* The blob from the end of the call under way on. */
MUST_CHECK int lease_key_set_fresh(struct lease_key *, const struct header_slot *);
/* lease_key_table.c */
/* locked. The key with this commitment; else one with another that was proved; else NULL. Keys that were not proved yet
 * are as many as headers claim there are. */
struct lease_key *lease_table_find(
    struct lease_keys *, const uint8_t file[static CONTEXT_ID], const uint8_t commit[static 32]);
/* locked. When the table is full, keys unused for longest go. */
void lease_table_add(struct lease_keys *, struct lease_key *);
/* locked. It is used now. */
void lease_key_touch(struct lease_key *);
/* No lock held: keys that nobody uses go, the older half; true: there were any. */
bool lease_keys_shed(struct lease_keys *);
void lease_table_remove(struct lease_keys *, struct lease_key *);
/* locked: removes from the table, and from memory when nobody holds it: then it is put on the list *dead. */
void lease_table_drop(struct lease_keys *, struct lease_key *, struct lease_key **dead);

/* locked: parks w at the head of the list. */
void lease_park(struct lease_keys *, struct lease_waiter **list, struct lease_waiter *w);
/* Tells everyone on a list. No lock held: it runs their operations. */
void lease_tell(struct lease_waiter *list, int result);
/* locked: has KMS threads tell those on a list, whose result is set, each as it gets free; nobody waits for the
 * operation of another. The caller is a KMS thread: it does what the others do not. */
void lease_tell_soon(struct lease_keys *, struct lease_waiter *list);
/* Logs trouble with one key (file NULL: a new one), a few lines a second at most. No lock held. */
void lease_complain(struct lease_keys *, const uint8_t *file, const char *what);

/* lease_key.c: locked. Who has waited longest for a new key, or NULL. */
struct lease_waiter *lease_pop_wanting(struct lease_keys *);
/* locked: waiters for new keys that are past their deadline, or all of them, onto the list *late. */
void lease_pool_expire(struct lease_keys *, uint64_t now, bool all, struct lease_waiter **late);

/* lease_rekey.c: the keys that only the key before could unwrap again: are there any; take them out of the table, and
 * tell how many. No lock held but, for the first, lease.lock. */
bool lease_keys_under(struct lease_keys *, const struct lease_ring *);
unsigned lease_keys_withdraw(struct lease_keys *, const struct lease_ring *);

/* lease_pool.c: the KMS threads and the pool. */
/* locked: keys that another slot than today's made, onto the list *dead. */
void lease_pool_rekey(struct lease_keys *, struct lease_key **dead);
/* locked: there is something to do for one more thread, perhaps. */
void lease_wake(struct lease_keys *);
/* locked: the domain opened: the pool may be filled. */
void lease_pool_open(struct lease_keys *);
/* locked: after a failure it may be time to try again. */
void lease_pool_tick(struct lease_keys *);
MUST_CHECK int lease_pool_start(struct lease_keys *);
void lease_pool_stop(struct lease_keys *);
/* locked: keys too old or unwanted, or all of them, onto the list *dead. */
void lease_pool_drain(struct lease_keys *, uint64_t now, bool all, struct lease_key **dead);

#endif
