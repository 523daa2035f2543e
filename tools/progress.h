/* progress.h — a line on stderr that says how far work has come: after two seconds, and only on a terminal. */
#ifndef BYOKFS_PROGRESS_H
#define BYOKFS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
	const char *what; /* "files" */
	uint64_t total;   /* 0: unknown; then no bar */
	uint64_t start, next;
	bool on, shown;
};

void progress_begin(struct progress *, const char *what, uint64_t total);
/* done in all. Cheap: may be called for every item. */
void progress_at(struct progress *, uint64_t done);
/* Clears the line; needed before anything else is printed to the terminal, and at the end. */
void progress_clear(struct progress *);

#endif
