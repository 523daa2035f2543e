/* The orders of directories.
 *
 * Entries of directories are remembered as they were read, in a ring; their directories in another. Whoever is oldest
 * is forgotten, so there is nothing to tidy up: what refers to an entry or a directory carries its serial. Inode
 * numbers lead to entries through a hash table. They come from the backing, so the hash is keyed, and no chain is
 * followed for ever. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "keyahead_internal.h"
#include "secret.h"

#define CHAIN_MAX 64u

int order_new(struct order **out, const struct order_params *p)
{
	struct order *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	o->params = *p;
	secret_random(&o->salt, sizeof(o->salt));
	o->salt |= 1;
	o->entry = calloc(p->entries, sizeof(*o->entry));
	o->dir = calloc(p->dirs, sizeof(*o->dir));
	o->bucket = calloc(p->entries, sizeof(*o->bucket));
	o->dirbucket = calloc(p->dirs, sizeof(*o->dirbucket));
	if (!o->entry || !o->dir || !o->bucket || !o->dirbucket) {
		order_free(o);
		return -ENOMEM;
	}
	order_wipe(o);
	*out = o;
	return 0;
}

static void entry_free(struct order_entry *e)
{
	if (e->name)
		explicit_bzero(e->name, strlen(e->name)); /* plain names, in that mode */
	free(e->name);
	e->name = NULL;
}

void order_wipe(struct order *o)
{
	for (uint32_t i = 0; i < o->params.entries; i++)
		entry_free(&o->entry[i]);
	memset(o->dir, 0, o->params.dirs * sizeof(*o->dir));
	memset(o->bucket, 0xff, o->params.entries * sizeof(*o->bucket));
	memset(o->dirbucket, 0xff, o->params.dirs * sizeof(*o->dirbucket));
	memset(o->stream, 0, sizeof(o->stream));
	o->head = o->dirhead = o->current = 0;
}

void order_free(struct order *o)
{
	if (!o)
		return;
	for (uint32_t i = 0; o->entry && i < o->params.entries; i++)
		entry_free(&o->entry[i]);
	free(o->entry);
	free(o->dir);
	free(o->bucket);
	free(o->dirbucket);
	free(o);
}

uint32_t order_serial(struct order *o)
{
	if (++o->serial == 0)
		o->serial = 1;
	return o->serial;
}

static uint32_t *bucket_of(struct order *o, uint64_t ino)
{
	return &o->bucket[(ino * o->salt) >> 32 & (o->params.entries - 1)];
}

static uint32_t *dirbucket_of(struct order *o, const struct order_dir *id)
{
	return &o->dirbucket[(id->ino * o->salt) >> 32 & (o->params.dirs - 1)];
}

static bool same_dir(const struct order_dir *a, const struct order_dir *b)
{
	return a->ino == b->ino && a->dev == b->dev;
}

static void unchain(uint32_t *at, uint32_t index, const struct order *o, bool dir)
{
	while (*at != index)
		at = dir ? &o->dir[*at].chain : &o->entry[*at].chain;
	*at = dir ? o->dir[index].chain : o->entry[index].chain;
}

static void dir_forget(struct order *o, uint32_t index)
{
	struct order_reading *d = &o->dir[index];

	if (!d->serial)
		return;
	unchain(dirbucket_of(o, &d->id), index, o, true);
	d->serial = 0;
}

struct order_reading *order_dir_find(struct order *o, const struct order_dir *id)
{
	uint32_t index = *dirbucket_of(o, id);

	if (o->dir[o->current].serial && same_dir(&o->dir[o->current].id, id))
		return &o->dir[o->current];
	for (unsigned n = 0; index != ORDER_NONE && n < CHAIN_MAX; n++, index = o->dir[index].chain)
		if (same_dir(&o->dir[index].id, id))
			return &o->dir[index];
	return NULL;
}

static struct order_reading *dir_begin(struct order *o, const struct order_dir *id)
{
	struct order_reading *d = order_dir_find(o, id);
	uint32_t *at = dirbucket_of(o, id);

	if (d)
		dir_forget(o, (uint32_t)(d - o->dir));
	dir_forget(o, o->dirhead);
	o->current = o->dirhead;
	o->dirhead = (o->dirhead + 1) & (o->params.dirs - 1);
	d = &o->dir[o->current];
	*d = (struct order_reading){ .id = *id,
		.serial = order_serial(o),
		.chain = *at,
		.first = ORDER_NONE,
		.last = ORDER_NONE,
		.opened = ORDER_NONE };
	*at = o->current;
	return d;
}

struct order_reading *order_dir_at(struct order *o, uint32_t index, uint32_t serial)
{
	return serial && o->dir[index].serial == serial ? &o->dir[index] : NULL;
}

struct order_reading *order_dir_of(struct order *o, const struct order_entry *e)
{
	return order_dir_at(o, e->dir, e->serial);
}

struct order_entry *order_entry_at(struct order *o, uint32_t index, const struct order_reading *d)
{
	struct order_entry *e = index == ORDER_NONE ? NULL : &o->entry[index];

	return e && e->name && e->serial == d->serial ? e : NULL;
}

struct order_entry *order_entry_find(struct order *o, dev_t dev, uint64_t ino, bool dir)
{
	uint32_t index = *bucket_of(o, ino);

	for (unsigned n = 0; index != ORDER_NONE && n < CHAIN_MAX; n++, index = o->entry[index].chain) {
		struct order_entry *e = &o->entry[index];
		const struct order_reading *d = order_dir_of(o, e);

		if (e->ino == ino && (e->kind == ORDER_DIR) == dir && d && d->id.dev == dev)
			return e;
	}
	return NULL;
}

static void append(struct order *o, struct order_reading *d, uint64_t ino, enum order_kind kind, const char *name)
{
	uint32_t index = o->head;
	struct order_entry *e = &o->entry[index], *last = order_entry_at(o, d->last, d);
	char *copy = strdup(name);

	if (!copy)
		return;
	if (e->name) {
		unchain(bucket_of(o, e->ino), index, o, false);
		entry_free(e);
	}
	o->head = (o->head + 1) & (o->params.entries - 1);
	*e = (struct order_entry){ .ino = ino,
		.name = copy,
		.chain = *bucket_of(o, ino),
		.after = ORDER_NONE,
		.dir = (uint32_t)(d - o->dir),
		.serial = d->serial,
		.pos = d->files,
		.kind = kind };
	*bucket_of(o, ino) = index;
	if (last)
		last->after = index;
	if (d->first == ORDER_NONE)
		d->first = index;
	d->last = index;
	d->files += kind == ORDER_FILE;
}

void order_note(struct order *o, const struct order_dir *id, int64_t prev, int64_t next, uint64_t ino,
    enum order_kind kind, const char *name)
{
	struct order_reading *d = order_dir_find(o, id);

	if (prev == 0 && d && d->visited) { /* known already */
		d->visited = false;
		return;
	}
	if (prev == 0)
		d = dir_begin(o, id);
	/* Two readers at different places: one of them is followed. */
	if (!d || d->complete || d->at != prev)
		return;
	d->at = next;
	if (kind != ORDER_OTHER)
		append(o, d, ino, kind, name);
}

void order_end(struct order *o, const struct order_dir *id, int64_t prev)
{
	struct order_reading *d = order_dir_find(o, id);

	if (d && d->at == prev)
		d->complete = true;
}

bool order_visit(struct order *o, const struct order_dir *id)
{
	if (order_dir_find(o, id))
		return false;
	(void)dir_begin(o, id);
	return true;
}

void order_visited(struct order *o, const struct order_dir *id)
{
	struct order_reading *d = order_dir_find(o, id);

	if (d)
		d->visited = d->complete = true;
}
