/* inode_slots.c — memory of inodes. Hides chunks: slots that are made together, filled as densely as they come, and
 * whose memory goes back to the system when the last of them is given back.
 *
 * Addresses stay: inode_get() reads a slot without a lock, and who comes too late finds zeros, which means "free". So a
 * generation is taken from a counter of the whole table: a nodeid never comes back with one it had. */
#include "inode_internal.h"

#include <sys/mman.h>

#define GROUP  64u /* chunks mapped together */
#define NONE   UINT32_MAX
#define SPARES 16u /* empty chunks that keep their memory: whoever comes and goes is not slowed down */

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

_Static_assert(sizeof(struct inode) <= 256, "one inode of the kernel's costs more than the manual says");
_Static_assert(INODE_CHUNK_BYTES % 4096 == 0, "chunks are pages");

static void list_push(struct inode_table *t, uint32_t *list, uint32_t n)
{
	struct inode_chunk *c = &t->chunk[n];

	c->prev = NONE;
	c->next = *list;
	if (*list != NONE)
		t->chunk[*list].prev = n;
	*list = n;
}

static void list_remove(struct inode_table *t, uint32_t *list, uint32_t n)
{
	struct inode_chunk *c = &t->chunk[n];

	if (c->next != NONE)
		t->chunk[c->next].prev = c->prev;
	if (c->prev != NONE)
		t->chunk[c->prev].next = c->next;
	else
		*list = c->next;
}

int slots_open(struct inode_table *t)
{
	t->chunk = calloc(INODE_CHUNKS, sizeof(*t->chunk)); /* touched only as far as used */
	t->room = t->blank = t->leaving = NONE;
	return t->chunk ? 0 : -ENOMEM;
}

/* Memory for chunks n.. of a group; zero. */
static int group_map(struct inode_table *t, uint32_t n)
{
	char *p = mmap(NULL, GROUP * INODE_CHUNK_BYTES, PROT_READ | PROT_WRITE,
	    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -ENOMEM;
	(void)madvise(p, GROUP * INODE_CHUNK_BYTES, MADV_NOHUGEPAGE); /* or nothing comes back before all of it can */
	for (uint32_t i = 0; i < GROUP; i++)
		t->chunk[n + i].memory = (void *)(p + i * INODE_CHUNK_BYTES);
	return 0;
}

/* A chunk without memory gets it again, or for the first time. */
static int chunk_fill(struct inode_table *t, uint32_t n)
{
	struct inode_chunk *c = &t->chunk[n];
	int r = c->memory ? 0 : group_map(t, n - n % GROUP);

	if (!c->memory)
		return r;
	for (uint32_t i = 0; i < INODE_CHUNK; i++) {
		c->memory[i].nodeid = (uint64_t)n * INODE_CHUNK + i;
		(void)pthread_mutex_init(&c->memory[i].lock, NULL);
	}
	c->used = 0;
	c->free = 0;
	c->fresh = (uint16_t)(n ? 0 : 1); /* no nodeid is 0 */
	t->empties++;
	atomic_store_explicit(&c->slots, c->memory, memory_order_release);
	list_push(t, &t->room, n);
	return 0;
}

static int chunk_more(struct inode_table *t)
{
	uint32_t n = t->blank;
	int r;

	if (n == NONE) {
		if (t->chunks >= INODE_CHUNKS)
			return -ENFILE;
		r = chunk_fill(t, t->chunks);
		if (!r)
			t->chunks++;
		return r;
	}
	list_remove(t, &t->blank, n);
	r = chunk_fill(t, n);
	if (r)
		list_push(t, &t->blank, n);
	return r;
}

static void set_top(struct inode_table *t, uint64_t top)
{
	atomic_store_explicit(&t->top, top, memory_order_release);
	if (t->shared_top)
		atomic_store(t->shared_top, top);
}

int slot_take(struct inode_table *t, struct inode **out)
{
	struct inode_chunk *c;
	int r = t->room == NONE ? chunk_more(t) : 0;

	if (r)
		return r;
	c = &t->chunk[t->room];
	if (c->free) {
		*out = &c->memory[c->free % INODE_CHUNK];
		c->free = (*out)->next;
	} else {
		*out = &c->memory[c->fresh++];
	}
	t->empties -= !c->used++;
	if (!c->free && c->fresh == INODE_CHUNK)
		list_remove(t, &t->room, t->room);
	if ((*out)->nodeid > atomic_load_explicit(&t->top, memory_order_relaxed))
		set_top(t, (*out)->nodeid);
	(*out)->generation = ++t->generation;
	atomic_fetch_add(&t->count, 1);
	return 0;
}

/* Table lock held: nobody lives in this chunk, and nobody will before slots_tidy() took its memory. */
static void chunk_leave(struct inode_table *t, uint32_t n)
{
	uint64_t top = atomic_load_explicit(&t->top, memory_order_relaxed);
	uint32_t last = (uint32_t)(top / INODE_CHUNK);

	list_remove(t, &t->room, n);
	list_push(t, &t->leaving, n);
	atomic_store_explicit(&t->chunk[n].slots, NULL, memory_order_release);
	t->empties--;
	if (n != last)
		return;
	while (!atomic_load_explicit(&t->chunk[last].slots, memory_order_relaxed))
		last--; /* the root's chunk is never empty */
	set_top(t, (uint64_t)last * INODE_CHUNK + t->chunk[last].fresh - 1);
}

void slot_give(struct inode_table *t, struct inode *i)
{
	uint32_t n = (uint32_t)(i->nodeid / INODE_CHUNK);
	struct inode_chunk *c = &t->chunk[n];

	i->state = INODE_FREE;
	if (!c->free && c->fresh == INODE_CHUNK)
		list_push(t, &t->room, n);
	i->next = c->free;
	c->free = (uint32_t)i->nodeid;
	atomic_fetch_sub(&t->count, 1);
	if (--c->used)
		return;
	if (t->empties++ >= SPARES)
		chunk_leave(t, n);
}

static void chunk_blank(struct inode *memory)
{
	for (uint32_t i = 0; i < INODE_CHUNK; i++)
		(void)pthread_mutex_destroy(&memory[i].lock);
	/* The process may be locked in memory; kernels before 5.18 keep locked pages, so these are emptied by hand. */
	if (madvise(memory, INODE_CHUNK_BYTES, MADV_DONTNEED_LOCKED) &&
	    madvise(memory, INODE_CHUNK_BYTES, MADV_DONTNEED))
		memset(memory, 0, INODE_CHUNK_BYTES);
}

void slots_tidy(struct inode_table *t)
{
	for (;;) {
		struct inode *memory;
		uint32_t n;

		{
			LOCK_SCOPE(&t->lock);
			n = t->leaving;
			if (n == NONE)
				return;
			list_remove(t, &t->leaving, n);
			memory = t->chunk[n].memory;
		}
		chunk_blank(memory);
		LOCK_SCOPE(&t->lock);
		list_push(t, &t->blank, n);
	}
}

void slots_close(struct inode_table *t, void (*fn)(struct inode_table *, struct inode *))
{
	for (uint32_t n = 0; t->chunk && n < t->chunks; n++)
		for (uint32_t i = 0; i < INODE_CHUNK && atomic_load(&t->chunk[n].slots); i++) {
			if (t->chunk[n].memory[i].state != INODE_FREE)
				fn(t, &t->chunk[n].memory[i]);
			(void)pthread_mutex_destroy(&t->chunk[n].memory[i].lock);
		}
	for (uint32_t n = 0; t->chunk && n < t->chunks; n += GROUP)
		if (t->chunk[n].memory)
			(void)munmap(t->chunk[n].memory, GROUP * INODE_CHUNK_BYTES);
	free(t->chunk);
}
