/* bulk.h — memory for the data of requests that wait. The process's pages are locked, so the heap could never give a
 * long queue's memory back to the system: large pieces are mappings of their own, used again until bulk_relax().
 * Any thread may call anything. */
#ifndef BYOKFS_BULK_H
#define BYOKFS_BULK_H

#include <stddef.h>

/* NULL: no memory. */
void *bulk_get(size_t size);
/* With the size it was asked for; wiped. NULL is fine. */
void bulk_put(void *, size_t size);
/* Now and then: what is not in use goes back to the system. */
void bulk_relax(void);

#endif
