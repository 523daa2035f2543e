/* domain.h — key domains at run time: which one an object belongs to, its lease, its lock, its statistics.
 *
 * Domain 0 is the store's root and there from the start; the others ("nested", one line each of the store descriptor's
 * table) are loaded when the store has been authenticated and are opened in the background: a key that is denied, a KMS
 * that hangs or a descriptor that is damaged keeps its own domain locked and nobody else waiting. A domain once in the
 * table stays there, at its place, until the mount ends.
 *
 * Files, links and special files belong to their directory's domain. A directory belongs to its parent's, unless its
 * .byokfs.d names another domain whose recorded root it is (byokfs-format(5), 7): then its entry and attributes are the
 * parent's and what is in it is the other's. Struct inode says which, from before the kernel learns the nodeid.
 *
 * Locks: the table's, then domain.lock, which guards what is marked; neither is held across a call of the KMS or a
 * hook. */
#ifndef BYOKFS_DOMAIN_H
#define BYOKFS_DOMAIN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "descriptor.h"
#include "inode.h"
#include "kms.h"
#include "lease.h"
#include "store.h"

struct fs;
struct fs_dir;

#define DOMAIN_MAX 65536u

struct domain {
	uint16_t index;
	struct fs *fs;
	struct context_ids ids;
	uint8_t root[16];   /* directory id of its root */
	uint8_t commit[32]; /* as the store descriptor has it */
	/* NULL: its descriptor or key service could not be opened yet; afterwards constant */
	_Atomic(struct lease *) lease;
	/* The key service of what rules now, and the other one in use (rotation) or NULL. They change by domain_rekey()
	 * only, and stay open until the mount ends, so whoever loaded one may go on using it. */
	_Atomic(struct kms *) kms, previous;
	atomic_bool ready;      /* may be entered: there is a lease, and what it opens was authenticated */
	atomic_uint stragglers; /* passes over the open files still to be made while locked, see purge_again() */
	atomic_uint opening;    /* counts up each time the domain opens, from 1: inode->lost_in is the one in which a
	                           loss was counted */
	atomic_ullong ops, op_errors, parked, reads, writes, read_bytes, write_bytes, lost;
	struct histogram key_wait; /* how long operations waited for a key */
	struct seeker *seeker; /* guarded by fs->dirs_lock: answers SEEK_DATA of files being written */
	char label[24];       /* "domain 7", for the log; "" for domain 0 */
	pthread_mutex_t writing; /* before lock; held while the descriptor is written, guards restored */
	bool restored;           /* a lost copy of the descriptor was looked for */
	pthread_mutex_t lock;    /* guards what follows */
	pthread_cond_t wake;
	struct descriptor_domain *descriptor; /* see domain_descriptor() */
	struct domain_service *services;      /* opened for it, to be closed with it */
	bool answered;     /* the first attempt to open it has ended */
	bool held;         /* locked by the administrator before there was a lease */
	uint64_t failures; /* attempts to open it that failed */
	int64_t since;     /* Unix seconds, and why there is no lease */
	char why[320];
	/* guarded by the table's lock: the queue of those to be opened */
	TAILQ_ENTRY(domain) queue;
	bool begun;         /* was in it, or is open since it was made */
	bool queued, hurry; /* hurry: do not wait for the next attempt */
	uint64_t due;       /* io_boot_ms() of it */
};

struct domains_params {
	struct kms_params kms; /* as domain 0's, observer too; strings are borrowed for the life of the mount */
	struct lease_params lease;         /* previous is left empty: see domains_keys() */
	const struct context_extra *extra; /* for what is made; borrowed */
	uint32_t grace_ms; /* how long a mount waits for the first answers of nested domains' key services */
};

/* ---- the table */

/* Makes the table with domain 0, which is not ready and has no lease yet. fs->store is open. 0 or -ENOMEM. */
MUST_CHECK int domains_init(struct fs *, const struct domains_params *);
/* The domain with this index, or NULL. Any thread, no lock. */
struct domain *domain_get(const struct fs *, uint16_t index);
/* The same by its id. */
struct domain *domain_by_id(struct fs *, const uint8_t id[static CONTEXT_ID]);
/* Calls fn for every domain, ascending; fn false stops. */
void domains_each(struct fs *, bool (*fn)(void *arg, struct domain *), void *arg);
/* lease_retime() of every domain, of those that open later too. */
void domains_retime(struct fs *, const struct lease_times *);
/* How many there are. */
size_t domains_count(const struct fs *);
/* Adds the nested domains of the store's table that are not there yet; nothing is opened. The store descriptor is
 * authentic. 0 or -ENOMEM. */
MUST_CHECK int domains_load(struct fs *);
/* The key service of a nested domain: provider by name (NULL: the configured one) and key as given, all else as
 * configured. A key without an ARN is resolved. As kms_open(). */
MUST_CHECK int domain_kms(struct fs *, const char *provider, const char *key, struct kms **out, struct kms_err *err);
/* The keys that the configuration names, opened by the caller, which closes them after domains_free(); previous may be
 * NULL. Besides its own, a domain uses no others. Before any lease is opened. */
void domains_keys(struct fs *, struct kms *key, struct kms *previous);
/* The second key a domain may use beside its own one, by the configuration and its descriptor; or NULL. */
struct kms *domain_second(struct fs *, const struct descriptor_domain *, const struct kms *own);
/* SIGHUP: the configuration names another previous key, or none. Both are key services that domain 0 has, or previous
 * is one just opened: then it is domain 0's from now on, unless out of memory. 0, -ENOMEM, or -EBUSY: at least one
 * domain still needs the one it had, which stays in use there until the next mount. */
MUST_CHECK int domains_previous(struct fs *, struct kms *key, struct kms *previous);
/* The administrator's context pairs for what is made. */
const struct context_extra *domain_extra(const struct fs *);
/* A new nested domain that is not on the disk yet: its lease is opened, which proves descriptor and key, and held back.
 * Takes descriptor (malloc'ed) and key service over unless it fails; then *err says why. */
MUST_CHECK int domain_prepare(struct fs *, const struct descriptor_domain_line *, struct descriptor_domain *,
    struct kms *, struct domain **out, struct kms_err *err);
/* From now on it is in the table and may be entered. 0, or -errno: then it is in the table, locked, and opened like any
 * other as soon as it can be. */
MUST_CHECK int domain_publish(struct domain *);
/* One that was not published. */
void domain_discard(struct domain *);
/* Starts domain 0's lease and, when the store is authenticated, opens the nested ones; waits for their first answers
 * no longer than grace_ms. After every fork. */
MUST_CHECK int domains_start(struct fs *);
/* From domain 0's hook, when the store was authenticated later: opens the nested ones without waiting. */
void domains_open_nested(struct fs *);
/* From a nested domain's hook, when it opened: writes a lost copy of its descriptor again, once. */
void domain_restore(struct domain *);
/* Ends what domains_start() began and closes every lease; the table stays for states_close(), then domains_free().
 * The configured key services are the caller's and outlive both. */
void domains_stop(struct fs *);
void domains_free(struct fs *);

/* ---- the gate */

/* The domain of what a nodeid holds (the content of a file, the entries of a directory); never NULL. */
struct domain *domain_of(const struct fs *, uint64_t nodeid);
/* The domain of its entry and attributes: another one for the root of a nested domain. */
struct domain *domain_outside(const struct fs *, uint64_t nodeid);
struct domain *domain_of_inode(const struct fs *, const struct inode *);

/* The domain is open and authenticated: 0, then leave when the reply is out; or -EIO. Counts one operation. */
MUST_CHECK int domain_enter(struct domain *, enum lease_class);
/* The same, but it is no operation: nothing is counted. */
MUST_CHECK int domain_visit(struct domain *, enum lease_class);
void domain_leave(struct domain *, enum lease_class);
/* Would work be let in now? */
bool domain_is_open(struct domain *);
/* Between enter and leave. */
static inline struct lease *domain_lease(const struct domain *d)
{
	return atomic_load_explicit(&d->lease, memory_order_relaxed);
}
/* The same; NULL for a domain that is not open, whoever asks. */
const struct name_keys *domain_names(const struct domain *);

/* Page 0 of a file of the domain without a key, as file_peek(), with the slot to ask with: the one that rules, unless
 * a rotation is under way and only the other one is under a key at hand. */
MUST_CHECK int domain_peek(const struct domain *, int fd, struct header_ident *, struct header_slot *);
MUST_CHECK int domain_peek_loaded(
    const struct domain *, struct file *, struct header_ident *, struct header_slot *);

/* ---- where objects belong */

/* The domains of an object about to be looked up: an entry of this directory, whose lstat is known. -EIO: a directory
 * that claims a domain which it is not the root of (logged). */
MUST_CHECK int domain_place(
    struct fs *, const struct fs_dir *parent, const char *entry, mode_t mode, struct inode_where *out);
/* The same rule for a directory as a walk over the store meets it, by its descriptor: its domain's index. */
uint16_t domain_claimed(const struct fs *, int fd, uint16_t parent);
/* inode_dir() with the names of the directory's own domain, between enter and leave of it; and the root of a nested
 * domain must be the one on record. -EIO also without names. */
MUST_CHECK int domain_dir(struct fs *, struct inode *, struct dir *, struct inode_pin **);

/* ---- rotation (byokfs-format(5), ROTATION) */

/* A deep copy of the descriptor as the domain has it now, to be changed, written by domain_put() and handed to
 * domain_rekey(). malloc'ed; free it with descriptor_domain_free() and free(). 0, -ENOMEM, or -EIO: the domain was
 * never opened, there is none. */
MUST_CHECK int domain_descriptor(struct domain *, struct descriptor_domain **out);
/* store_put_domain() of the next descriptor, in turn with domain_restore(). */
MUST_CHECK int domain_put(struct domain *, struct descriptor_domain *, char *why);
/* The domain's key service for this key: the one that rules, or the other one; NULL when neither is. By name, as
 * kms_same_key() has it (as kms_key() spells it). For a caller that would else open another one by domain_kms(). */
struct kms *domain_service_of(const struct domain *, const char *key);
/* Swaps descriptor, key services and the lease's idea of both, together. The domain is ready, open or locked; the
 * ruling slot of desc was proved (lease_prove()), and desc is on the disk already (domain_put()). For domain 0 the
 * store's own copy (fs->store->domain) follows. desc is malloc'ed and the domain's from now on. `now` serves desc's
 * ruling slot: one just opened (then it is the domain's, closed when the mount ends), or one that the domain has
 * (d->kms, d->previous, what domain_service_of() gave). With keep_before the other key goes on serving what is sealed
 * under it: d->kms so far, or d->previous when `now` rules already; without, nothing is asked of it any more.
 *
 * Running operations notice nothing; keys at hand stay; new files are sealed under `now`. Callers take turns (SIGHUP
 * may change d->previous in between). 0, or -ENOMEM: then nothing has changed and both are still the caller's. */
MUST_CHECK int domain_rekey(struct domain *, struct descriptor_domain *desc, struct kms *now, bool keep_before);

/* ---- state */

/* As lease_status(), lease_lock(), lease_unlock(), lease_wait(), for a domain without a lease too. */
void domain_status(struct domain *, struct lease_status *out);
MUST_CHECK int domain_lock(struct domain *, const char *reason);
MUST_CHECK int domain_unlock(struct domain *);
MUST_CHECK int domain_wait(struct domain *, enum lease_state, uint64_t deadline);

#endif
