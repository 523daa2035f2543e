/* watchdog.h — a small process that outlives the daemon: when the daemon dies without saying goodbye, it purges the
 * kernel's cached plaintext (INVAL_INODE for every nodeid, INC_EPOCH) over a duplicate of the device descriptor and
 * aborts the connection (measured: cached plaintext and mappings otherwise go on after SIGKILL, even after a lazy
 * unmount).
 *
 * Forked before any key or thread exists; it holds nothing but a socket, a shared page with the highest nodeid and,
 * once armed, the device descriptor.          */
#ifndef BYOKFS_WATCHDOG_H
#define BYOKFS_WATCHDOG_H

#include <stdint.h>

#include "cleanup.h"

struct watchdog;

/* Forks. */
MUST_CHECK int watchdog_start(struct watchdog **out);
/* The counter it reads: keep it at the highest nodeid (inode_share_top). */
_Atomic uint64_t *watchdog_top(struct watchdog *);
/* Hands over the device descriptor (SCM_RIGHTS) and the calling process as the one to outlive: call it in the daemon,
 * after its last fork. connection: fuseio_connection(); 0 when unknown, then nothing can be aborted and a reader whom
 * the dead daemon left waiting waits on. */
MUST_CHECK int watchdog_arm(struct watchdog *, int device_fd, unsigned connection);
/* Orderly end: it exits without purging. Waits for it (2 s at most). NULL is fine. */
void watchdog_stop(struct watchdog *);
/* Is it alive? */
int watchdog_alive(struct watchdog *);

#endif
