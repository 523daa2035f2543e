/* purge.h — what a lock does to the FUSE side: the lease's hooks (lease.h) over the inode table and the kernel's
 * caches.
 *
 * drain: every inode's dirty pages are written back and its pages and attributes dropped (open ones first), then file
 * states are flushed. purge: dentries (INC_EPOCH where the kernel has it), and once more whatever is open: a write(2)
 * that was under way goes on filling the page cache. wipe: plaintext in the daemon. */
#ifndef BYOKFS_PURGE_H
#define BYOKFS_PURGE_H

#include "fs.h"

/* Hooks whose arg is the domain; each touches only what is the domain's, but for the epoch, which is the mount's.
 * `opened` authenticates the store first when the mount began locked. */
void purge_hooks(struct domain *, struct lease_hooks *out);
/* Drops the pages of locked domains' open files again, as often as a lock or a refused page asked for
 * (domain->stragglers). Called every second. */
#define PURGE_PASSES 5u
void purge_again(struct fs *);

#endif
