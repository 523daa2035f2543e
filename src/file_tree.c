/* file_tree.c — nodes in memory: the root, group pages, L1 and L2 pages, and what is known of each
 * of their entries.
 *
 * Hides how nodes are found, loaded, rebuilt and let go. A node's parent is always in memory while
 * the node is, so the way up is a pointer. Nodes with work left (dirty, stale, entries to record or
 * to bury) are on the busy list and stay; the others are kept least recently used first, and go
 * when there are too many in all. What goes with them are versions accepted, not issued. */
#include <errno.h>

#include "bytes.h"
#include "file_internal.h"

#define ROOT_ENTRIES (LAYOUT_ROOT_DATA + LAYOUT_ROOT_GROUPS + LAYOUT_ROOT_L1 + LAYOUT_ROOT_L2)
#define FIRST_GROUP  LAYOUT_ROOT_DATA
#define FIRST_L1     (FIRST_GROUP + LAYOUT_ROOT_GROUPS)
#define FIRST_L2     (FIRST_L1 + LAYOUT_ROOT_L1)

_Static_assert(
    HEADER_ROOT_REC_L2(0) == HEADER_ROOT_REC_GROUP(FIRST_L2 - FIRST_GROUP), "records of the root lie in one row");

size_t file_rec_at(const struct file_node *n, uint32_t e)
{
	if (n->type == UNIT_ROOT)
		return e < FIRST_GROUP ? HEADER_ROOT_REC_DATA(e) : HEADER_ROOT_REC_GROUP(e - FIRST_GROUP);
	return n->type == UNIT_GROUP ? HEADER_GROUP_REC(e) : HEADER_NODE_REC(e);
}

uint8_t *file_spill(const struct file_node *n, uint32_t e)
{
	if (n->type == UNIT_GROUP)
		return n->text + HEADER_GROUP_SPILL(e);
	return n->type == UNIT_ROOT && e < FIRST_GROUP ? n->text + HEADER_ROOT_SPILL(e) : NULL;
}

void file_child(const struct file_node *n, uint32_t e, enum unit_type *type, uint64_t *index)
{
	switch (n->type) {
	case UNIT_GROUP:
		*type = UNIT_DATA;
		*index = LAYOUT_ROOT_DATA + n->index * LAYOUT_GROUP_FAN + e;
		return;
	case UNIT_L1:
		*type = UNIT_GROUP;
		*index = LAYOUT_ROOT_GROUPS + n->index * LAYOUT_NODE_FAN + e;
		return;
	case UNIT_L2:
		*type = UNIT_L1;
		*index = LAYOUT_ROOT_L1 + n->index * LAYOUT_NODE_FAN + e;
		return;
	default:
		*type = e < FIRST_GROUP ? UNIT_DATA : e < FIRST_L1 ? UNIT_GROUP : e < FIRST_L2 ? UNIT_L1 : UNIT_L2;
		*index = e - (e < FIRST_GROUP ? 0 : e < FIRST_L1 ? FIRST_GROUP : e < FIRST_L2 ? FIRST_L1 : FIRST_L2);
	}
}

static uint32_t entry_of(enum unit_type type, const struct layout_parent *p)
{
	if (p->type != UNIT_ROOT || type == UNIT_DATA)
		return p->slot;
	return p->slot + (type == UNIT_GROUP ? FIRST_GROUP : type == UNIT_L1 ? FIRST_L1 : FIRST_L2);
}

uint64_t file_first_page(enum unit_type type, uint64_t index)
{
	if (type == UNIT_L2) {
		index = LAYOUT_ROOT_L1 + index * LAYOUT_NODE_FAN;
		type = UNIT_L1;
	}
	if (type == UNIT_L1) {
		index = LAYOUT_ROOT_GROUPS + index * LAYOUT_NODE_FAN;
		type = UNIT_GROUP;
	}
	if (type == UNIT_GROUP)
		return LAYOUT_ROOT_DATA + index * LAYOUT_GROUP_FAN;
	return type == UNIT_DATA ? index : 0;
}

static size_t text_size(enum unit_type type)
{
	return type == UNIT_ROOT ? BLOCK_ROOT_TEXT : LAYOUT_BODY;
}

static struct file_node *node_new(enum unit_type type, uint64_t index)
{
	uint32_t count = type == UNIT_ROOT ? ROOT_ENTRIES : type == UNIT_GROUP ? LAYOUT_GROUP_FAN : LAYOUT_NODE_FAN;
	struct file_node *n = file_io->alloc(sizeof(*n) + count * sizeof(n->ent[0]) + text_size(type));

	if (!n)
		return NULL;
	n->type = type;
	n->index = index;
	n->count = count;
	n->text = (uint8_t *)(n->ent + count);
	return n;
}

struct file_node *file_root_new(void)
{
	struct file_node *root = node_new(UNIT_ROOT, 0);

	if (root)
		root->secured = true;
	return root;
}

void file_node_free(struct file_node *n)
{
	if (!n)
		return;
	explicit_bzero(n->text, text_size(n->type));
	free(n);
}

static unsigned bucket(enum unit_type type, uint64_t index)
{
	return (unsigned)((index * 31 + (unsigned)type) % FILE_BUCKETS);
}

struct file_node *file_node_find(const struct file *f, enum unit_type type, uint64_t index)
{
	struct file_node *n;

	if (type == UNIT_ROOT)
		return f->root;
	for (n = f->table ? f->table[bucket(type, index)] : NULL; n; n = n->chain)
		if (n->type == type && n->index == index)
			break;
	return n;
}

/* Clean nodes of all files beyond FILE_CLEAN_MAX each: a large file that is read at random keeps more while others do
 * not need them. */
static atomic_uint spare;
unsigned file_spare_max = FILE_SPARE_MAX;

static void enqueue(struct file *f, struct file_node *n)
{
	n->busy = n->dirty || n->stale || n->pend || n->gone;
	if (n->busy) {
		TAILQ_INSERT_TAIL(&f->busy, n, link);
		f->nbusy++;
	} else {
		TAILQ_INSERT_TAIL(&f->clean, n, link);
		if (++f->nclean > FILE_CLEAN_MAX)
			atomic_fetch_add_explicit(&spare, 1, memory_order_relaxed);
	}
}

static void dequeue(struct file *f, struct file_node *n)
{
	if (n->busy) {
		TAILQ_REMOVE(&f->busy, n, link);
		f->nbusy--;
	} else {
		TAILQ_REMOVE(&f->clean, n, link);
		if (f->nclean-- > FILE_CLEAN_MAX)
			atomic_fetch_sub_explicit(&spare, 1, memory_order_relaxed);
	}
}

void file_requeue(struct file *f, struct file_node *n)
{
	if (n == f->root || n->busy == (n->dirty || n->stale || n->pend || n->gone))
		return;
	dequeue(f, n);
	enqueue(f, n);
}

void file_mark_dirty(struct file *f, struct file_node *n)
{
	n->dirty = true;
	file_requeue(f, n);
}

/* Flags of an entry, with the counts kept. */
static void set_ent(struct file *f, struct file_node *n, uint32_t e, uint64_t ent)
{
	n->pend += ((ent & ENT_PEND) != 0) - (uint32_t)((n->ent[e] & ENT_PEND) != 0);
	n->gone += ((ent & ENT_GONE) != 0) - (uint32_t)((n->ent[e] & ENT_GONE) != 0);
	n->ent[e] = ent;
	file_requeue(f, n);
}

void file_issued(struct file *f, struct file_node *n, uint32_t e, uint64_t ver)
{
	if (f->fresh) {
		file_set_rec(n, e, ver);
		n->dirty = true;
		set_ent(f, n, e, ver);
	} else {
		/* a node rebuilt below a drop exists for others only once it is written */
		if (n->up && (n->up->ent[n->slot] & ENT_GONE))
			n->dirty = true;
		set_ent(f, n, e, ver | ENT_PEND);
	}
}

void file_dropped(struct file *f, struct file_node *n, uint32_t e)
{
	uint64_t tombstone = f->clock + 1;
	rec_t rec = file_rec(n, e), dropped = rec | REC_H;
	uint8_t *spill = file_spill(n, e);

	if (f->fresh && REC_MIN(rec) < tombstone)
		dropped = REC_H | tombstone;
	if (dropped != rec) {
		file_set_rec(n, e, dropped);
		n->dirty = true;
	}
	if (spill && !bytes_zero(spill, LAYOUT_SPILL)) {
		memset(spill, 0, LAYOUT_SPILL);
		n->dirty = true;
	}
	set_ent(f, n, e, tombstone | ENT_GONE);
}

void file_accepted(struct file *f, struct file_node *n, uint32_t e, uint64_t ver)
{
	n->ent[e] = (n->ent[e] & ENT_PEND) | ver;
	if (ver > f->clock)
		f->clock = ver;
}

/* An absent node stands for one whose every record equals its own and whose spills are zero. */
static void fill_absent(struct file_node *n, rec_t rec)
{
	memset(n->text, 0, text_size(n->type));
	for (uint32_t e = 0; e < n->count; e++)
		file_set_rec(n, e, rec);
}

/* A node of a dropped subtree: nothing below it exists. */
static void fill_dropped(struct file_node *n, uint64_t tombstone)
{
	fill_absent(n, REC_H);
	for (uint32_t e = 0; e < n->count; e++)
		n->ent[e] = tombstone | ENT_GONE;
	n->gone = n->count;
	n->pend = 0;
}

static bool padding_zero(const struct file_node *n)
{
	size_t used = (size_t)n->count * (n->type == UNIT_GROUP ? 38u : 6u);

	return bytes_zero(n->text + used, LAYOUT_BODY - used);
}

/* Reads a node's page. Versions known of its entries stay as they are. */
static int node_read(struct file *f, const struct file_key *key, struct file_node *n)
{
	uint64_t phys = layout_phys(n->type, n->index), ver = 0;
	struct file_view view = file_view_of(f, n->up, n->slot);
	uint8_t page[LAYOUT_PAGE];
	struct block_run run;
	ssize_t got = 0;
	int rc;

	if (phys * LAYOUT_PAGE < f->st_size)
		got = file_pread(f, page, LAYOUT_PAGE, phys);
	if (got < 0)
		return (int)got;
	memset(page + got, 0, LAYOUT_PAGE - (size_t)got);
	block_begin(&run, key->block);
	rc = file_open_unit(f, &run, &view, n->type, n->index, page, n->text, &ver);
	block_end(&run);
	if (rc != 0)
		return rc;
	if (ver == 0) {
		fill_absent(n, view.rec);
	} else if (padding_zero(n)) {
		file_accepted(f, n->up, n->slot, ver);
		n->secured = true;
	} else {
		return file_damaged(f, n->type, n->index, "its padding is not zero");
	}
	n->loaded = true;
	file_rebury(n);
	return 0;
}

static int node_load(struct file *f, const struct file_key *key, struct file_node *n)
{
	uint64_t ent = n->up->ent[n->slot];

	if (!(ent & ENT_GONE))
		return node_read(f, key, n);
	fill_dropped(n, ENT_VER(ent));
	n->loaded = true;
	return 0;
}

static int node_add(struct file *f, const struct file_key *key, struct file_node *up, uint32_t slot, bool anew,
    struct file_node **out)
{
	struct file_node *n;
	enum unit_type type;
	uint64_t index;
	int rc;

	file_child(up, slot, &type, &index);
	if (!f->table)
		f->table = file_io->alloc(FILE_BUCKETS * sizeof(*f->table));
	n = f->table ? node_new(type, index) : NULL;
	if (!n)
		return -ENOMEM;
	n->up = up;
	n->slot = slot;
	rc = anew ? 0 : node_load(f, key, n);
	if (rc != 0) {
		file_node_free(n);
		return rc;
	}
	if (anew) {
		fill_absent(n, REC_H);
		n->loaded = n->dirty = true;
	}
	up->kids++;
	n->chain = f->table[bucket(type, index)];
	f->table[bucket(type, index)] = n;
	enqueue(f, n);
	*out = n;
	return 0;
}

int file_parent(
    struct file *f, const struct file_key *key, enum unit_type type, uint64_t index, struct file_node **n, uint32_t *e)
{
	struct layout_parent p = layout_parent(type, index);

	*e = entry_of(type, &p);
	return file_node_get(f, key, p.type, p.index, n);
}

int file_node_get(
    struct file *f, const struct file_key *key, enum unit_type type, uint64_t index, struct file_node **out)
{
	struct file_node *n = file_node_find(f, type, index), *up;
	uint32_t slot;
	int rc;

	if (!n || !n->loaded) {
		rc = file_parent(f, key, type, index, &up, &slot); /* three levels at most */
		if (rc == 0)
			rc = n ? node_load(f, key, n) : node_add(f, key, up, slot, false, &n);
		if (rc != 0)
			return rc;
		file_requeue(f, n);
	}
	if (n != f->root && !n->busy) {
		TAILQ_REMOVE(&f->clean, n, link);
		TAILQ_INSERT_TAIL(&f->clean, n, link);
	}
	*out = n;
	return 0;
}

int file_node_anew(
    struct file *f, const struct file_key *key, enum unit_type type, uint64_t index, struct file_node **out)
{
	struct file_node *up;
	uint32_t slot;
	int rc = file_parent(f, key, type, index, &up, &slot);

	return rc == 0 ? node_add(f, key, up, slot, true, out) : rc;
}

void file_forget_root(struct file *f, struct header_state *st)
{
	uint64_t hinted;

	fill_absent(f->root, REC_H);
	f->root->dirty = true;
	st->inlined = false;
	if (layout_hint_decode(f->st_size, &hinted) && hinted > st->size)
		st->size = hinted;
}

void file_discard(struct file *f, struct file_node *n)
{
	struct file_node **p = &f->table[bucket(n->type, n->index)];

	while (*p != n)
		p = &(*p)->chain;
	*p = n->chain;
	n->up->kids--;
	dequeue(f, n);
	file_node_free(n);
}

void file_trim(struct file *f)
{
	struct file_node *n = TAILQ_FIRST(&f->clean), *next;

	for (; n && f->nclean > FILE_CLEAN_MAX && atomic_load_explicit(&spare, memory_order_relaxed) > file_spare_max;
	     n = next) {
		next = TAILQ_NEXT(n, link);
		if (n->kids == 0)
			file_discard(f, n);
	}
}

void file_tree_clear(struct file *f)
{
	struct file_node *n;

	while ((n = TAILQ_FIRST(&f->clean)) || (n = TAILQ_FIRST(&f->busy))) {
		dequeue(f, n);
		file_node_free(n);
	}
	free(f->table);
	f->table = NULL;
}

struct file_node *file_busy_next(const struct file *f, const struct file_node *n)
{
	struct file_node *next;

	if (n == f->root)
		return NULL;
	next = n ? TAILQ_NEXT(n, link) : TAILQ_FIRST(&f->busy);
	return next ? next : f->root;
}
