/* inode_chains.c — hash chains of slots, by (dev, ino) and by directory id. Hides linear hashing: an entry added splits
 * one chain in two, an entry removed joins two, so that no entry ever waits for the whole table to be hashed anew, and
 * what grew shrinks again.
 *
 * Buckets [0, low + split) exist. Those below `split` and from `low` on have the finer of two masks already. Heads lie
 * in segments that double, so they never move either. */
#include "inode_internal.h"

#define FIRST_BUCKETS 1024u
#define SPARSE        4u /* fewer entries than this part of the buckets: they are joined */

static size_t buckets(const struct inode_chains *c)
{
	return c->low + c->split;
}

/* The segment a bucket lies in; the first holds FIRST_BUCKETS, the others as many as all before them. */
static unsigned segment_of(size_t bucket)
{
	return bucket < FIRST_BUCKETS ? 0 : 64u - (unsigned)__builtin_clzll(bucket / FIRST_BUCKETS);
}

static uint32_t *head_at(const struct inode_chains *c, size_t bucket)
{
	unsigned n = segment_of(bucket);

	return &c->segment[n][n ? bucket - ((size_t)FIRST_BUCKETS << (n - 1)) : bucket];
}

static uint32_t *head_of(const struct inode_chains *c, size_t hash)
{
	size_t bucket = hash & (c->low - 1);

	if (bucket < c->split)
		bucket = hash & (2 * c->low - 1);
	return head_at(c, bucket);
}

uint32_t inode_chains_first(const struct inode_chains *c, size_t hash)
{
	return c->low ? *head_of(c, hash) : 0;
}

static void push(struct inode_chains *c, struct inode *i)
{
	uint32_t *head = head_of(c, c->hash(i));

	*c->next(i) = *head;
	*head = (uint32_t)i->nodeid;
}

/* One chain becomes two. Without memory for a new segment chains get longer, that is all. */
static void split_one(const struct inode_table *t, struct inode_chains *c)
{
	uint32_t **segment = &c->segment[segment_of(c->low)];
	uint32_t *head, slot, after;

	if (!*segment)
		*segment = calloc(c->low, sizeof(**segment));
	if (!*segment)
		return;
	head = head_at(c, c->split);
	slot = *head;
	*head = 0;
	c->split++;
	for (; slot; slot = after) {
		struct inode *i = inode_at(t, slot);

		after = *c->next(i);
		push(c, i);
	}
	if (c->split == c->low) {
		c->low *= 2;
		c->split = 0;
	}
}

/* The last chain goes where it came from. */
static void join_one(const struct inode_table *t, struct inode_chains *c)
{
	uint32_t *tail;

	if (!c->split) {
		c->low /= 2;
		c->split = c->low;
	}
	c->split--;
	tail = head_at(c, c->split);
	while (*tail)
		tail = c->next(inode_at(t, *tail));
	*tail = *head_at(c, c->low + c->split);
	*head_at(c, c->low + c->split) = 0;
	if (!c->split) {
		free(c->segment[segment_of(c->low)]);
		c->segment[segment_of(c->low)] = NULL;
	}
}

int inode_chains_add(const struct inode_table *t, struct inode_chains *c, struct inode *i)
{
	if (!c->low) {
		c->segment[0] = calloc(FIRST_BUCKETS, sizeof(**c->segment));
		if (!c->segment[0])
			return -ENOMEM;
		c->low = FIRST_BUCKETS;
	}
	push(c, i);
	c->used++;
	if (c->used > buckets(c) && segment_of(c->low) < INODE_SEGMENTS)
		split_one(t, c);
	return 0;
}

void inode_chains_remove(const struct inode_table *t, struct inode_chains *c, struct inode *i)
{
	uint32_t *at = head_of(c, c->hash(i));

	while (*at && *at != (uint32_t)i->nodeid)
		at = c->next(inode_at(t, *at));
	if (!*at)
		return;
	*at = *c->next(i);
	c->used--;
	if (buckets(c) > FIRST_BUCKETS && c->used < buckets(c) / SPARSE)
		join_one(t, c);
}

void inode_chains_free(struct inode_chains *c)
{
	for (unsigned n = 0; n < INODE_SEGMENTS; n++)
		free(c->segment[n]);
}
