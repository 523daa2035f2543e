/* status.h — the answers of daemons to "status", printed for people, for Prometheus, and over time. */
#ifndef BYOKFS_STATUS_H
#define BYOKFS_STATUS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

/* status_print.c. All of one mount; the one line of it, and what somebody may have to act upon. mount: its name when
 * the answer tells none. */
void status_print(const json_t *answer, const char *mount);
void status_print_head(const json_t *answer, const char *mount);
/* Text from a daemon's socket, fit for a terminal. */
void status_print_text(const char *text);

/* status_latency.c. The table of how long things take. */
void status_print_latency(const json_t *latency);

/* status_prometheus.c: all answers in the text format 0.0.4. */
void status_prometheus(FILE *, const json_t *answers);

/* status_rates.c. What changed per second between two answers of one daemon: {"seconds", "operations", ...}; NULL when
 * they are not to be compared. A new reference. */
json_t *status_rates(const json_t *before, const json_t *after, double seconds);
void status_print_rates(const json_t *rates);

/* status_mounts.c. Adds an answer {"code":8,"state":"dead",...} for every mount of this user that none of the answers
 * speaks for: its daemon died. 0 or -errno. */
int status_add_dead(json_t *answers);
/* The same from the text of a mountinfo file. */
void status_add_dead_from(json_t *answers, FILE *mountinfo, unsigned uid);

#endif
