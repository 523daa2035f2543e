/* progress.h — a line on stderr that says how far work has come, how fast, and how long it will take: after two
 * seconds, and only on a terminal. Any thread may tell it; only one draws at a time. */
#ifndef BYOKFS_PROGRESS_H
#define BYOKFS_PROGRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct progress {
	const char *what;           /* "files" */
	_Atomic uint64_t total;     /* 0: unknown; then no bar, and no time left. May be set when it gets known */
	_Atomic uint64_t done;      /* progress_at() and progress_add() */
	_Atomic uint64_t bytes;     /* besides; 0: no bytes are shown */
	uint64_t start;
	_Atomic uint64_t next;
	pthread_mutex_t lock; /* of the terminal */
	bool on, shown;
};

void progress_begin(struct progress *, const char *what, uint64_t total);
/* done in all. Cheap: may be called for every item. */
void progress_at(struct progress *, uint64_t done);
/* n items more, and bytes. */
void progress_add(struct progress *, uint64_t n, uint64_t bytes);
/* Clears the line; needed before anything else is printed to the terminal, and at the end. */
void progress_clear(struct progress *);

#endif
