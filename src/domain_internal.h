/* domain_internal.h — the table of key domains, shared by domain.c (table, gate, places) and domain_open.c (how nested
 * ones are opened, asked, locked and ended) and domain_queue.c (whose turn it is to be opened). */
#ifndef BYOKFS_DOMAIN_INTERNAL_H
#define BYOKFS_DOMAIN_INTERNAL_H

#include "domain.h"

/* Threads that open domains: each attempt asks the KMS once, and a KMS may hang. */
#define DOMAIN_OPENERS 32u

struct domains {
	struct domains_params params;
	_Atomic(struct domain *) *at; /* DOMAIN_MAX; touched only as far as used */
	_Atomic uint32_t end;         /* one more than the highest index */
	_Atomic size_t count;
	_Atomic(struct kms *) key, previous; /* see domains_keys() */
	pthread_mutex_t lock;                /* guards adding, and what follows */
	bool stopping;
	pthread_cond_t wake; /* the openers */
	TAILQ_HEAD(, domain) queue;
	size_t queued;
	struct opener {
		pthread_t thread;
		struct domains *table;
		bool used, running; /* used: to be joined */
	} openers[DOMAIN_OPENERS];
	unsigned running;
};

/* domain_rekey.c. Keeps a key service to be closed with the domain: 0 or -ENOMEM; takes it back; closes them. */
MUST_CHECK int domain_own(struct domain *, struct kms *);
void domain_disown(struct domain *, const struct kms *);
void domain_close_services(struct domain *);

/* domain_open.c. One attempt to open it. true: there is a lease now, which goes on by itself. */
bool domain_try(struct domain *);

/* domain_times.c. table lock held: its lease takes the times of now, which may have changed since it was opened, when
 * domains_retime() did not see it yet. */
void domain_follow(struct domain *);

/* domain_queue.c. table lock held: has it opened by a thread of the pool, now. */
void domain_enqueue(struct domain *);
/* No lock held: the same for one without a lease, whether it waits for its next attempt or lost its thread. */
void domain_hurry(struct domain *);
/* Ends the threads; no more are started. No lock held. */
void domain_queue_stop(struct fs *);

/* One from its line, not in the table; NULL without memory. */
struct domain *domain_make(struct fs *, const struct descriptor_domain_line *);
/* lock held. */
void domains_insert(struct domain *);

#endif
