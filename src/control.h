/* The verbs of the control socket (ctl.h): status, lock, unlock, domain-add, domain-result. */
#ifndef BYOKFS_CONTROL_H
#define BYOKFS_CONTROL_H

#include <jansson.h>

/* arg: struct service. A new reference, or NULL when memory ran out. */
json_t *control_answer(void *arg, const json_t *request);
/* A string for JSON whatever its bytes. */
json_t *control_text(const char *);

struct service;
/* State, lease, key service, counters, key domains (from the index in "from" on), audit. */
json_t *control_status(struct service *, const json_t *request);
struct domain;
/* How long a domain's keys, or those of the domain that is worst off, have been sealed under the same key material.
 * NULL: not known yet, or no memory. */
json_t *control_age_domain(const struct service *, struct domain *);
json_t *control_age(const struct service *);
/* Warns in the log when it is due. On the signal thread. */
void control_age_tick(struct service *);
/* Begins to make a key domain; the answer has a "job" number, whose result is asked for until it is not "running". */
json_t *control_domain_add(struct service *, const json_t *request);
json_t *control_domain_result(struct service *, const json_t *request);
/* Waits for one under way, no longer than its call of the KMS takes. */
void control_domain_stop(struct service *);

#endif
