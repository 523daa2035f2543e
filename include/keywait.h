/* keywait.h — a file's key for threads of our own (syncer, sweep), which may wait for the KMS as no FUSE worker may. */
#ifndef BYOKFS_KEYWAIT_H
#define BYOKFS_KEYWAIT_H

#include "fs.h"

/* 0: the domain is entered (LEASE_WORK) and *key is held: keywait_leave(). -EIO: locked, denied,
 * damaged; nothing is held. slot NULL: only what is cached already, else -EAGAIN. Waits as long as a parked operation
 * would (lease.h). No lock may be held. */
MUST_CHECK int keywait_enter(
    struct domain *, const struct header_ident *, const struct header_slot *, struct lease_key **key);
/* The same for a loaded file, whose sealed key is read only when it is needed. */
MUST_CHECK int keywait_enter_file(struct domain *, struct file *, struct lease_key **key);
void keywait_leave(struct domain *, struct lease_key *);

#endif
