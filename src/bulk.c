/* bulk.c — Hides the list of pieces not in use, which begin with the address of the next, and that small ones come from
 * the heap. */
#include "bulk.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cleanup.h"

#define PIECE (1u << 20) /* the kernel's largest write */
#define SMALL (1u << 16)

struct piece {
	struct piece *next;
};
static struct piece *unused;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool pieced(size_t size)
{
	return size > SMALL && size <= PIECE;
}

static void *take(void)
{
	struct piece *p;
	LOCK_SCOPE(&lock);

	p = unused;
	if (p)
		unused = p->next;
	return p;
}

void *bulk_get(size_t size)
{
	void *p;

	if (!pieced(size))
		return malloc(size ? size : 1);
	p = take();
	if (p)
		return p;
	p = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

void bulk_put(void *p, size_t size)
{
	struct piece *piece = p;

	if (!p)
		return;
	explicit_bzero(p, size);
	if (!pieced(size)) {
		free(p);
		return;
	}
	LOCK_SCOPE(&lock);
	piece->next = unused;
	unused = piece;
}

void bulk_relax(void)
{
	void *p;

	while ((p = take()))
		(void)munmap(p, PIECE);
}
