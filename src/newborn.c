/* One fixed table under one lock. Overflow is remembered by the sequence number it happened at, so that a later
 * syncfs, which made everything before it durable, also ends the overflow.                                      */
#include "newborn.h"

#include <pthread.h>

#include "cleanup.h"

static struct {
	pthread_mutex_t lock;
	struct newborn list[NEWBORN_MAX];
	uint64_t seq[NEWBORN_MAX];
	size_t n;
	uint64_t next, overflow; /* overflow: sequence number of the last one lost, 0 none */
} table = { .lock = PTHREAD_MUTEX_INITIALIZER, .next = 1 };

void newborn_note(uint64_t dir, uint64_t child, uint64_t generation)
{
	LOCK_SCOPE(&table.lock);
	uint64_t seq = table.next++;

	if (table.n == NEWBORN_MAX) {
		__atomic_store_n(&table.overflow, seq, __ATOMIC_RELAXED);
		return;
	}
	table.list[table.n] = (struct newborn){ dir, child, generation };
	table.seq[table.n] = seq;
	__atomic_store_n(&table.n, table.n + 1, __ATOMIC_RELAXED);
}

static void drop(size_t i)
{
	table.list[i] = table.list[table.n - 1];
	table.seq[i] = table.seq[table.n - 1];
	__atomic_store_n(&table.n, table.n - 1, __ATOMIC_RELAXED);
}

int newborn_take(uint64_t dir, struct newborn *out, size_t max)
{
	LOCK_SCOPE(&table.lock);
	int found = 0;

	if (table.overflow)
		return -1;
	for (size_t i = 0; i < table.n;) {
		if (table.list[i].dir != dir) {
			i++;
			continue;
		}
		if ((size_t)found == max)
			return -1;
		out[found++] = table.list[i];
		drop(i);
	}
	return found;
}

bool newborn_any(void)
{
	return __atomic_load_n(&table.n, __ATOMIC_RELAXED) || __atomic_load_n(&table.overflow, __ATOMIC_RELAXED);
}

uint64_t newborn_mark(void)
{
	LOCK_SCOPE(&table.lock);
	return table.next;
}

void newborn_clear(uint64_t mark)
{
	LOCK_SCOPE(&table.lock);
	for (size_t i = 0; i < table.n;) {
		if (table.seq[i] < mark)
			drop(i);
		else
			i++;
	}
	if (table.overflow < mark)
		__atomic_store_n(&table.overflow, 0, __ATOMIC_RELAXED);
}
