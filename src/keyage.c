/* keyage.c — see keyage.h. Hides which of a descriptor's times counts. */
#include "keyage.h"

#define DAY    86400
#define DAY_MS (1000ull * DAY)

int64_t keyage_since(const struct descriptor_domain *d, int64_t now)
{
	if (d->rotated > 0 && d->rotated <= now + DAY)
		return d->rotated;
	return d->created <= now + DAY ? d->created : 0;
}

uint32_t keyage_days(int64_t since, int64_t now)
{
	int64_t days = now > since ? (now - since) / DAY : 0;

	return days < UINT32_MAX ? (uint32_t)days : UINT32_MAX;
}

bool keyage_over(int64_t since, int64_t now, uint32_t limit)
{
	return limit && keyage_days(since, now) >= limit;
}

bool keyage_due(struct keyage_said *said, size_t domains, uint64_t boot_ms)
{
	bool more = domains > said->domains;

	said->domains = domains;
	if (!domains || (!more && boot_ms < said->next))
		return false;
	said->next = boot_ms + DAY_MS;
	return true;
}
