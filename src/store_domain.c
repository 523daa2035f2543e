/* store_domain.c — the store descriptor's table of key domains grows, and shrinks when a new domain
 * got no directory; a domain's descriptor changes. Hides the order of writing: a line never names a descriptor that is
 * not on the disk.
 */
#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "store_internal.h"

#define INDEX_MAX 65535u

int store_free_index(const struct store *s)
{
	const struct descriptor_store *d = &s->desc;

	if (d->domains[d->n - 1].index < INDEX_MAX)
		return d->domains[d->n - 1].index + 1;
	for (size_t i = 0; i < d->n; i++)
		if (d->domains[i].index != i)
			return (int)i;
	return -ENOSPC;
}

static int write_domain(const struct store *s, struct descriptor_domain *d, const struct domain_keys *own)
{
	struct copies c;
	int r = copies_of_domain(&c, s->meta_fd, d->domain);

	if (r)
		return r;
	r = copies_write(&c, d, own);
	(void)close(c.dirfd);
	return r;
}

static void remove_domain(const struct store *s, const uint8_t domain[static 16])
{
	struct copies c;
	char copy[48];

	if (copies_of_domain(&c, s->meta_fd, domain))
		return;
	(void)snprintf(copy, sizeof(copy), "%s~", c.name);
	(void)unlinkat(c.dirfd, c.name, 0);
	(void)unlinkat(c.dirfd, copy, 0);
	(void)close(c.dirfd);
}

/* The table with one line more, ascending; malloc'ed. */
static struct descriptor_domain_line *longer(
    const struct descriptor_store *d, const struct descriptor_domain_line *line)
{
	struct descriptor_domain_line *all = calloc(d->n + 1, sizeof(*all));
	size_t at = 0;

	if (!all)
		return NULL;
	while (at < d->n && d->domains[at].index < line->index)
		at++;
	memcpy(all, d->domains, at * sizeof(*all));
	all[at] = *line;
	memcpy(all + at + 1, d->domains + at, (d->n - at) * sizeof(*all));
	return all;
}

/* The table without that line; malloc'ed, one longer than needed. */
static struct descriptor_domain_line *shorter(const struct descriptor_store *d, size_t at)
{
	struct descriptor_domain_line *all = calloc(d->n, sizeof(*all));

	if (!all)
		return NULL;
	memcpy(all, d->domains, at * sizeof(*all));
	memcpy(all + at, d->domains + at + 1, (d->n - at - 1) * sizeof(*all));
	return all;
}

/* Takes over the lines. */
static int write_table(struct store *s, struct descriptor_domain_line *lines, size_t n, const struct domain_keys *keys)
{
	CLEANUP_FREE struct descriptor_domain_line *all = lines;
	struct descriptor_domain_line *before = s->desc.domains;
	size_t n_before = s->desc.n;
	struct copies c;
	int r;

	if (!all)
		return -ENOMEM;
	copies_of_store(&c, s->meta_fd);
	s->desc.seq++;
	s->desc.domains = all;
	s->desc.n = n;
	r = copies_write(&c, &s->desc, keys);
	if (!r) {
		all = before;
		return 0;
	}
	/* One copy may be so already: what follows is written with a higher seq and wins. */
	s->desc.domains = before;
	s->desc.n = n_before;
	return r;
}

int store_add_domain(struct store *s, struct descriptor_domain *d, const struct domain_keys *own,
    const uint8_t dirid[static 16], const struct domain_keys *keys, char *why)
{
	struct descriptor_domain_line line = { .index = d->index };
	int r = store_may_change(s, why);

	if (r)
		return r;
	memcpy(line.domain, d->domain, sizeof(line.domain));
	memcpy(line.dirid, dirid, sizeof(line.dirid));
	memcpy(line.commit, d->commit, sizeof(line.commit));
	r = write_domain(s, d, own);
	if (r) {
		remove_domain(s, d->domain);
		return store_fail(why, r, "cannot write the domain's descriptor: %s", strerror(-r));
	}
	r = write_table(s, longer(&s->desc, &line), s->desc.n + 1, keys);
	if (!r)
		return 0;
	/* The descriptor stays: a copy of the store descriptor may name it. */
	return store_fail(why, r, "cannot write the store's descriptor: %s", strerror(-r));
}

int store_drop_domain(
    struct store *s, const uint8_t domain[static CONTEXT_ID], const struct domain_keys *keys, char *why)
{
	size_t at = 1;
	int r = store_may_change(s, why);

	if (r)
		return r;
	while (at < s->desc.n && !bytes_equal(s->desc.domains[at].domain, domain, CONTEXT_ID))
		at++;
	if (at >= s->desc.n)
		return store_fail(why, -ENOENT, "the store has no such domain");
	r = write_table(s, shorter(&s->desc, at), s->desc.n - 1, keys);
	if (r)
		return store_fail(why, r, "cannot write the store's descriptor: %s", strerror(-r));
	remove_domain(s, domain);
	return 0;
}

int store_put_domain(const struct store *s, struct descriptor_domain *d, char *why)
{
	int r = store_may_change(s, why);

	if (r)
		return r;
	r = s->readonly ? -EROFS : d->seq == UINT64_MAX ? -EOVERFLOW : 0;
	if (!r) {
		d->seq++;
		r = write_domain(s, d, NULL);
	}
	if (!r)
		return 0;
	return store_fail(why, r, "cannot write the descriptor of domain %u of store '%.200s': %s", (unsigned)d->index,
	    s->path, strerror(-r));
}
