/* inode_walk.c — the table as a whole: how many inodes there are, and every one once, for purge, flush and wipe. Hides
 * that inodes come and go meanwhile: what appears during the walk may be missed, what stays is visited. */
#include "inode_internal.h"

void inode_each(struct inode_table *t, bool (*fn)(void *arg, struct inode *), void *arg)
{
	uint64_t top = inode_top(t);

	for (uint64_t n = 1; n <= top; n++) {
		struct inode *i = inode_get(t, n);
		bool go_on;

		if (!i)
			continue;
		go_on = fn(arg, i);
		inode_put(t, i);
		if (!go_on)
			return;
	}
}

uint64_t inode_top(const struct inode_table *t)
{
	return atomic_load(&t->top);
}

void inode_share_top(struct inode_table *t, _Atomic uint64_t *top)
{
	LOCK_SCOPE(&t->lock);

	t->shared_top = top;
	if (top)
		atomic_store(top, atomic_load(&t->top));
}

size_t inode_count(const struct inode_table *t)
{
	return atomic_load(&t->count);
}
