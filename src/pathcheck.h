/* What the table of mounts and the paths in the configuration say. Files that the daemon needs must not lie below its
 * own mount point: reading one, it would wait for itself. */
#ifndef BYOKFS_PATHCHECK_H
#define BYOKFS_PATHCHECK_H

#include <stdbool.h>

#include "config.h"

/* Does the way to path, symbolic links on it included, lead through dir (a real path)? The end of the path need not
 * exist. */
bool pathcheck_through(const char *path, const char *dir);
/* The first such file of the configuration or of the AWS credential chain, malloc'ed; NULL when there is none. After
 * secret_init(). */
char *pathcheck_find(const struct config *, const char *mountpoint);
/* Is the store (a real path) mounted in this mount namespace? True also when that cannot be told. */
bool pathcheck_mounted(const char *store);
/* Has a process of this machine locked the store's file? True also when that cannot be told. */
bool pathcheck_locked(const char *store, const char *file);

#endif
