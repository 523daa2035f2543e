/* newborn.h — which new names an fsync of their directory must make usable (format.md 7.1): files whose page 0, and
 * directories whose id, may not be durable yet.
 *
 * A bounded list; when it overflows, or a child's inode is gone, the answer is "syncfs". Thread-safe. */
#ifndef BYOKFS_NEWBORN_H
#define BYOKFS_NEWBORN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NEWBORN_MAX 1024u

struct newborn {
	uint64_t dir, child, generation;
};

/* A child appeared in a directory (created, or moved in). */
void newborn_note(uint64_t dir, uint64_t child, uint64_t generation);
/* Takes out a directory's children: their number, at most max, or -1: use syncfs, then call newborn_clear with the mark
 * taken before it. */
int newborn_take(uint64_t dir, struct newborn *out, size_t max);
/* Anything noted at all? Cheap. */
bool newborn_any(void);
/* A mark; after a syncfs that began later, newborn_clear(mark) forgets what had been noted before the mark. */
uint64_t newborn_mark(void);
void newborn_clear(uint64_t mark);

#endif
