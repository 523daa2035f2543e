/* secret_memory.c — locked memory for keys.
 *
 * Every region is its own mapping, aligned to REGION bytes:
 *
 *     page 0: struct region | guard page | cells ... | guard page
 *
 * so that a cell's region is found by masking its address, an overrun in either direction faults before it
 * reaches the book-keeping, and the book-keeping survives a fork(2) although the cells are wiped by it. Small
 * objects share regions of one cell size; a larger one has a region of its own.
 *
 * Mapping, locking and unmapping cost more than a call to a nearby KMS, whose answers want a page or two each: freed
 * large objects, wiped and still locked, are kept for the next of their size, up to SPARE_BYTES in all.
 *
 * A lock on memory does not survive fork(2) either. Regions from before a fork are therefore only ever freed
 * by the child, never used for new cells.                                                                   */
#include "secret.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "log.h"
#include "secret_internal.h"

#define PAGE        ((size_t)4096)
#define REGION      ((size_t)65536)
#define CELLS_AT    (2 * PAGE)
#define SLAB_BYTES  (REGION - CELLS_AT - PAGE)
#define LARGEST     ((size_t)65536)
#define SPARE_BYTES ((size_t)512 << 10)
#define MAGIC       0x73656372657431ull

/* 64: the two keys of an open file, so that 100,000 of them fit into 8 MiB. */
static const size_t cell_sizes[] = { 64, 96, 128 };
#define CLASSES   (sizeof(cell_sizes) / sizeof(cell_sizes[0]))
#define MAX_CELLS (SLAB_BYTES / 64)

struct region {
	uint64_t magic;
	unsigned generation; /* forks seen when it was made */
	unsigned class;      /* CLASSES: a single object */
	size_t mapped, cell, cells, used;
	struct region *next, *prev; /* in slabs[class], while it has a free cell */
	uint64_t taken[(MAX_CELLS + 63) / 64];
};
_Static_assert(sizeof(struct region) <= 4096, "the book-keeping is one page");

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
/* Guarded by lock. */
static struct region *slabs[CLASSES];
static struct region *spares; /* large ones without an object, linked by next */
static size_t spare_bytes;
static unsigned generation;
static bool unlocked_allowed, unlocked_told;

static void before_fork(void)
{
	(void)pthread_mutex_lock(&lock);
}

static void after_fork_parent(void)
{
	(void)pthread_mutex_unlock(&lock);
}

static void after_fork_child(void)
{
	generation++;
	memset(slabs, 0, sizeof(slabs));
	spares = NULL;
	spare_bytes = 0;
	(void)pthread_mutex_unlock(&lock);
}

static void watch_forks(void)
{
	if (pthread_atfork(before_fork, after_fork_parent, after_fork_child) != 0)
		abort(); /* out of memory at start */
}

void secret_memory_allow_unlocked(bool allow)
{
	LOCK_SCOPE(&lock);
	unlocked_allowed = allow;
}

/* mlock(2), or a warning where the administrator accepts that. */
static bool lock_cells(void *cells, size_t n)
{
	if (mlock(cells, n) == 0)
		return true;
	if (!unlocked_told)
		log_at(unlocked_allowed ? LOG_LEVEL_WARN : LOG_LEVEL_ERR,
		    "cannot lock memory for keys: %m (RLIMIT_MEMLOCK)");
	unlocked_told = true;
	return unlocked_allowed;
}

/* n bytes of inaccessible address space whose start is aligned to REGION, or NULL. */
static char *map_aligned(size_t n)
{
	char *raw = mmap(NULL, n + REGION, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t before;

	if (raw == MAP_FAILED)
		return NULL;
	before = (REGION - (uintptr_t)raw % REGION) % REGION;
	if (before)
		(void)munmap(raw, before);
	(void)munmap(raw + before + n, REGION - before);
	return raw + before;
}

static struct region *region_map(unsigned class, size_t cell, size_t bytes)
{
	size_t mapped = CELLS_AT + bytes + PAGE;
	char *base = map_aligned(mapped);
	struct region *region;

	if (!base)
		return NULL;
	if (mprotect(base, PAGE, PROT_READ | PROT_WRITE) != 0 ||
	    mprotect(base + CELLS_AT, bytes, PROT_READ | PROT_WRITE) != 0 ||
	    madvise(base + CELLS_AT, bytes, MADV_DONTDUMP) != 0 ||
	    madvise(base + CELLS_AT, bytes, MADV_WIPEONFORK) != 0 || !lock_cells(base + CELLS_AT, bytes)) {
		(void)munmap(base, mapped);
		return NULL;
	}
	region = (void *)base;
	region->magic = MAGIC;
	region->generation = generation;
	region->class = class;
	region->mapped = mapped;
	region->cell = cell;
	region->cells = bytes / cell;
	return region;
}

static void list_add(struct region *region)
{
	struct region **head = &slabs[region->class];

	region->prev = NULL;
	region->next = *head;
	if (*head)
		(*head)->prev = region;
	*head = region;
}

static void list_remove(struct region *region)
{
	if (region->next)
		region->next->prev = region->prev;
	if (region->prev)
		region->prev->next = region->next;
	else
		slabs[region->class] = region->next;
	region->next = region->prev = NULL;
}

/* A free cell of a region that has one. */
static void *cell_take(struct region *region)
{
	size_t at = 0;

	for (size_t word = 0;; word++) {
		if (region->taken[word] != UINT64_MAX) {
			at = word * 64 + (size_t)__builtin_ctzll(~region->taken[word]);
			break;
		}
	}
	region->taken[at / 64] |= 1ull << at % 64;
	region->used++;
	return (char *)region + CELLS_AT + at * region->cell;
}

static void *alloc_small(unsigned class)
{
	struct region *region = slabs[class];
	void *cell;

	if (!region) {
		region = region_map(class, cell_sizes[class], SLAB_BYTES);
		if (!region)
			return NULL;
		list_add(region);
	}
	cell = cell_take(region);
	if (region->used == region->cells)
		list_remove(region);
	return cell;
}

/* A spare of that many bytes, or NULL. */
static struct region *spare_take(size_t bytes)
{
	for (struct region **p = &spares; *p; p = &(*p)->next) {
		struct region *region = *p;

		if (region->cell == bytes) {
			*p = region->next;
			region->next = NULL;
			spare_bytes -= bytes;
			return region;
		}
	}
	return NULL;
}

static bool spare_keep(struct region *region)
{
	if (region->class != CLASSES || region->generation != generation || spare_bytes + region->cell > SPARE_BYTES)
		return false;
	region->next = spares;
	spares = region;
	spare_bytes += region->cell;
	return true;
}

static void *alloc_large(size_t n)
{
	size_t bytes = PAGE;
	struct region *region;

	while (bytes < n)
		bytes *= 2; /* few sizes, so that spares fit */
	region = spare_take(bytes);
	if (!region)
		region = region_map(CLASSES, bytes, bytes);
	return region ? cell_take(region) : NULL;
}

void *secret_alloc(size_t n)
{
	if (n == 0 || n > LARGEST)
		return NULL;
	(void)pthread_once(&once, watch_forks);
	LOCK_SCOPE(&lock);
	for (unsigned class = 0; class < CLASSES; class ++)
		if (n <= cell_sizes[class])
			return alloc_small(class);
	return alloc_large(n);
}

/* The region of a pointer from secret_alloc(), with the cell's number. Anything else is a bug worth dying for. */
static struct region *region_of(void *p, size_t *at)
{
	struct region *region = (void *)((char *)p - (uintptr_t)p % REGION);
	size_t offset = (uintptr_t)p % REGION - CELLS_AT;

	if (region->magic != MAGIC || offset % region->cell != 0)
		abort();
	*at = offset / region->cell;
	if (*at >= region->cells || !(region->taken[*at / 64] >> *at % 64 & 1))
		abort();
	return region;
}

/* Should this region go, now that one more of its cells is free? One empty slab per class is kept. */
static bool region_settle(struct region *region)
{
	if (region->class == CLASSES || region->generation != generation)
		return region->used == 0;
	if (region->used + 1 == region->cells)
		list_add(region);
	if (region->used > 0 || (!region->next && !region->prev))
		return false;
	list_remove(region);
	return true;
}

void secret_free(void *p)
{
	struct region *region;
	size_t at;

	if (!p)
		return;
	LOCK_SCOPE(&lock);
	region = region_of(p, &at);
	explicit_bzero(p, region->cell);
	region->taken[at / 64] &= ~(1ull << at % 64);
	region->used--;
	if (region_settle(region) && !spare_keep(region))
		(void)munmap(region, region->mapped);
}
