/* keyage.h — how long a domain's keys have been sealed under the same key material, and when somebody should be told.
 * Pure. What it is computed from are the storage's claims: all but `created` stands outside the descriptor's MAC. */
#ifndef BYOKFS_KEYAGE_H
#define BYOKFS_KEYAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "descriptor.h"

/* Unix seconds: the last rotation that was completed, else when the domain was made. A time that is more than a day
 * ahead of now is not believed, so that it cannot put the alert off for ever. */
int64_t keyage_since(const struct descriptor_domain *, int64_t now);
/* Full days, at least 0. */
uint32_t keyage_days(int64_t since, int64_t now);
/* limit in days; 0: never. */
bool keyage_over(int64_t since, int64_t now, uint32_t limit);

/* When to say so again: at once when it becomes more domains, else once a day. Zero it first. */
struct keyage_said {
	size_t domains;
	uint64_t next; /* io_boot_ms() */
};
bool keyage_due(struct keyage_said *, size_t domains, uint64_t boot_ms);

#endif
