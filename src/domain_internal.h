/* domain_internal.h — the table of key domains, shared by domain.c (table, gate, places) and domain_open.c (how nested
 * ones are opened, asked, locked and ended). */
#ifndef BYOKFS_DOMAIN_INTERNAL_H
#define BYOKFS_DOMAIN_INTERNAL_H

#include "domain.h"

struct domains {
	struct domains_params params;
	_Atomic(struct domain *) *at; /* DOMAIN_MAX; touched only as far as used */
	_Atomic uint32_t end;         /* one more than the highest index */
	_Atomic size_t count;
	pthread_mutex_t lock; /* guards adding, and what follows */
	bool stopping;
};

/* One from its line, not in the table; NULL without memory. */
struct domain *domain_make(struct fs *, const struct descriptor_domain_line *);
/* lock held. */
void domains_insert(struct domain *);

#endif
