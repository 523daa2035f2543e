/* sweep.h — after an unclean end: visits every file whose size hint is in doubt, sets wrong hints right, then forgets
 * the stale markers (format.md 6).
 *
 * One background thread over the ciphertext; names are not needed. Only files whose hint really is wrong cost a key. */
#ifndef BYOKFS_SWEEP_H
#define BYOKFS_SWEEP_H

#include "fs.h"

/* Starts it when anything is in doubt on a read-write mount. After every fork; the store may still be locked. */
MUST_CHECK int sweep_start(struct fs *);
/* Stops it, finished or not: unvisited files stay in doubt for the next mount. */
void sweep_stop(struct fs *);

#endif
