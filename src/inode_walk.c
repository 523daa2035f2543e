/* inode_walk.c — the table as a whole: how many inodes there are, and every one once, for purge, flush and wipe. Hides
 * that inodes come and go meanwhile: what appears during the walk may be missed, what stays is visited. */
#include "inode_internal.h"

static bool in_use(struct inode *i)
{
	LOCK_SCOPE(&i->lock);

	return i->opens || i->file;
}

struct walk {
	struct inode_table *table;
	bool (*fn)(void *arg, struct inode *);
	void *arg;
	uint8_t *seen; /* a bit per slot, or NULL */
	uint64_t top;
};

/* One pass: those in use only, or all that were not seen. */
static bool walk_pass(struct walk *w, bool used_only)
{
	for (uint64_t n = 1; n <= w->top; n++) {
		uint8_t bit = (uint8_t)(1u << n % 8);
		bool go_on = true;
		struct inode *i = w->seen && (w->seen[n / 8] & bit) ? NULL : inode_get(w->table, n);

		if (!i)
			continue;
		if (!used_only || in_use(i)) {
			if (w->seen)
				w->seen[n / 8] |= bit;
			go_on = w->fn(w->arg, i);
		}
		inode_put(w->table, i);
		if (!go_on)
			return false;
	}
	return true;
}

void inode_each(struct inode_table *t, bool opened_first, bool (*fn)(void *arg, struct inode *), void *arg)
{
	struct walk w = { .table = t, .fn = fn, .arg = arg, .top = inode_top(t) };

	/* Without memory for the marks nobody comes first, but everybody comes once. */
	w.seen = opened_first ? calloc(1, (size_t)(w.top / 8 + 1)) : NULL;
	if (!w.seen || walk_pass(&w, true))
		(void)walk_pass(&w, false);
	free(w.seen);
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
