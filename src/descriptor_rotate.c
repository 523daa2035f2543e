/* descriptor_rotate.c — what a rotation changes in a domain's descriptor, in memory: generations, the second slot, its
 * end. Hides which slot is the free one and how generations are numbered. */
#include <errno.h>
#include <string.h>

#include "descriptor.h"

static bool has_pair(const struct context_extra *e, const struct context_pair *p)
{
	for (size_t i = 0; i < e->n; i++)
		if (strcmp(e->pair[i].name, p->name) == 0)
			return strcmp(e->pair[i].value, p->value) == 0;
	return false;
}

/* Whatever their order: names are unique. */
static bool same_pairs(const struct context_extra *a, const struct context_extra *b)
{
	bool same = a->n == b->n;

	for (size_t i = 0; same && i < a->n; i++)
		same = has_pair(b, &a->pair[i]);
	return same;
}

/* Above the highest, else the lowest gap; *at: its place in the ascending list. */
static uint16_t free_number(const struct descriptor_domain *d, size_t *at)
{
	size_t i = 0;

	*at = d->ngen;
	if (d->ngen == 0 || d->gen[d->ngen - 1].number < UINT16_MAX)
		return (uint16_t)(d->ngen ? d->gen[d->ngen - 1].number + 1 : 1);
	while (d->gen[i].number == i + 1) /* fewer are recorded than there are numbers */
		i++;
	*at = i;
	return (uint16_t)(i + 1);
}

int descriptor_add_generation(struct descriptor_domain *d, const struct context_extra *extra, uint16_t *number)
{
	static const struct context_extra none;
	struct descriptor_generation *more;
	size_t at;

	if (!extra)
		extra = &none;
	for (size_t i = 0; i < d->ngen; i++)
		if (same_pairs(&d->gen[i].extra, extra)) {
			*number = d->gen[i].number;
			return 0;
		}
	if (d->ngen >= DESCRIPTOR_GENERATIONS_MAX)
		return -ENOSPC;
	more = reallocarray(d->gen, d->ngen + 1, sizeof(*more));
	if (!more)
		return -ENOMEM;
	d->gen = more;
	*number = free_number(d, &at);
	memmove(more + at + 1, more + at, (d->ngen - at) * sizeof(*more));
	more[at].number = *number;
	more[at].extra = *extra;
	d->ngen++;
	return 0;
}

static int ruling(const struct descriptor_domain *d)
{
	return d->slot[1].seq > d->slot[0].seq;
}

const struct descriptor_slot *descriptor_other_slot(const struct descriptor_domain *d)
{
	const struct descriptor_slot *s = &d->slot[!ruling(d)];

	return s->seq > 0 ? s : NULL;
}

int descriptor_put_slot(struct descriptor_domain *d, const struct descriptor_slot *fresh)
{
	int which = ruling(d);
	uint64_t seq = d->slot[which].seq;

	if (seq == UINT64_MAX)
		return -EOVERFLOW;
	d->slot[!which] = *fresh;
	d->slot[!which].seq = seq + 1;
	return 0;
}

int descriptor_finish(struct descriptor_domain *d, int64_t now)
{
	int which = ruling(d);

	if (!descriptor_other_slot(d))
		return -EALREADY;
	memset(&d->slot[!which], 0, sizeof(d->slot[!which]));
	d->rotated = now;
	return 0;
}

int descriptor_domain_copy(struct descriptor_domain *out, const struct descriptor_domain *d)
{
	struct descriptor_generation *gen = NULL;

	if (d->ngen > 0) {
		gen = reallocarray(NULL, d->ngen, sizeof(*gen));
		if (!gen)
			return -ENOMEM;
		memcpy(gen, d->gen, d->ngen * sizeof(*gen));
	}
	*out = *d;
	out->gen = gen;
	return 0;
}
