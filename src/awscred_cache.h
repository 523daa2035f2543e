/* awscred_cache.h — struct awscred: what awscred.c opens and awscred_cache.c keeps fresh. */
#ifndef BYOKFS_AWSCRED_CACHE_H
#define BYOKFS_AWSCRED_CACHE_H

#include <pthread.h>

#include "awscred_internal.h"

struct awscred {
	struct awscred_setup setup;
	pthread_mutex_t lock; /* guards what follows; never held while a source is asked or a file looked at */
	pthread_cond_t changed;
	bool busy;      /* somebody walks through the chain */
	uint64_t done;  /* walks that ended */
	uint64_t epoch; /* raised by awscred_refresh(): older answers serve only where newer are not to be had */

	struct awscred_place place;
	struct awscred_answer have; /* the last good answer */
	uint64_t have_epoch;
	struct awscred_seen seen; /* the files it was made from */
	bool outdated;            /* they have changed since */
	bool looking;             /* somebody looks whether they have */
	uint64_t look_at;         /* io_boot_ms(): not before */

	int last; /* how the last walk ended */
	uint64_t last_epoch;
	char last_why[AWSCRED_WHY];

	bool started, stop; /* the refresher */
	pthread_t refresher;
	uint64_t refresh_at; /* io_boot_ms() */
	unsigned failures;   /* in a row */

	bool region_asked;
	char region[64]; /* the instance's */
};

void awscred_cache_open(struct awscred *);
/* Ends the refresher. */
void awscred_cache_close(struct awscred *);

#endif
