/* keys_age.c — are keys due for a rotation? From descriptors alone, and from files where they were read: one that a
 * rotation missed keeps its old seal. */
#include "keys.h"

#include <inttypes.h>
#include <stdio.h>

#include "bytes.h"
#include "io.h"
#include "keyage.h"

#define SHOWN 20u

static void print_domain(const struct keys *k, const struct keys_domain *d)
{
	char id[33], since[21];

	bytes_hex(id, d->id, CONTEXT_ID);
	io_utc(since, d->since);
	(void)printf("%s: key domain %u (%s): sealed under the same key material for %" PRIu32 " days, since %s\n",
	    k->store->path, (unsigned)d->index, id, keyage_days(d->since, k->now), since);
}

static size_t old_domains(const struct keys *k, uint32_t limit, bool print, int64_t *oldest)
{
	size_t over = 0;

	*oldest = k->now;
	for (size_t i = 0; i < k->ndomain; i++) {
		const struct keys_domain *d = &k->domain[i];

		if (!d->lost && d->since < *oldest)
			*oldest = d->since;
		if (d->lost || !keyage_over(d->since, k->now, limit))
			continue;
		if (print && over < SHOWN)
			print_domain(k, d);
		over++;
	}
	if (print && over > SHOWN)
		(void)printf("%s: and %zu more key domains\n", k->store->path, over - SHOWN);
	return over;
}

/* The oldest seal of a file that counts. */
static int64_t oldest_file(const struct keys *k)
{
	int64_t oldest = k->tab.others.n && k->tab.others.oldest < k->now ? k->tab.others.oldest : k->now;

	for (size_t i = 0; i < k->tab.n; i++)
		if (k->tab.row[i].file[KEYTAB_RULING].n && k->tab.row[i].file[KEYTAB_RULING].oldest < oldest)
			oldest = k->tab.row[i].file[KEYTAB_RULING].oldest;
	return oldest;
}

int keys_age(const struct keys *k, uint32_t limit, json_t *json)
{
	int64_t domain, file = oldest_file(k);
	size_t over = old_domains(k, limit, !json, &domain);
	uint32_t days = keyage_days(domain < file ? domain : file, k->now);
	bool old = over || keyage_over(file, k->now, limit);

	if (json)
		(void)json_object_set_new(json, "alert",
		    json_pack("{s:I, s:b, s:I, s:I}", "limit_days", (json_int_t)limit, "alert", old, "domains",
		        (json_int_t)over, "oldest_days", (json_int_t)days));
	if (!over && old && !json)
		(void)printf("%s: files were sealed up to %" PRIu32 " days ago\n", k->store->path, days);
	if (!old && !json)
		(void)printf("%s: %" PRIu32 " days at most%s\n", k->store->path, days,
		    limit ? "" : "; key_age_days in [alert] is 0: never too old");
	if (!keys_complete(k))
		keys_complain(k);
	if (!old)
		return keys_complete(k) ? EXIT_OK : EXIT_DAMAGE;
	(void)fflush(stdout);
	cmd_error("keys of '%s' have been sealed under the same key material for %" PRIu32 " days or more",
	    k->store->path, limit);
	cmd_hint("rotate them ('byokfsctl rotate'), or raise key_age_days in [alert]");
	return EXIT_FAILED;
}
