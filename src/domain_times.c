/* domain_times.c — the times of every domain's lease change together, those of domains that open later too. */
#include "domain_internal.h"
#include "fs.h"

static bool retime_one(void *arg, struct domain *d)
{
	struct lease *lease = atomic_load(&d->lease);

	if (lease)
		lease_retime(lease, arg);
	return true;
}

void domains_retime(struct fs *fs, const struct lease_times *times)
{
	struct lease_times copy = *times;
	struct lease_params *lp = &fs->domains->params.lease;

	pthread_mutex_lock(&fs->domains->lock);
	lp->probe_ms = times->probe_ms;
	lp->lease_ms = times->lease_ms;
	lp->max_age_ms = times->max_age_ms;
	lp->idle_ms = times->idle_ms;
	pthread_mutex_unlock(&fs->domains->lock);
	domains_each(fs, retime_one, &copy);
}

void domain_follow(struct domain *d)
{
	const struct lease_params *lp = &d->fs->domains->params.lease;
	struct lease_times now = { lp->probe_ms, lp->lease_ms, lp->max_age_ms, lp->idle_ms };

	(void)retime_one(&now, d);
}
