/* walk.h — every entry of a store, whatever its depth, without following anything.
 *
 * Before going down the directory's subdirectories are remembered by name. Near the root its descriptor is kept for
 * the way back, so that it may move meanwhile; deeper down it is closed, and on the way back ".." must be the directory
 * that was left, else the walk ends (-ESTALE: the tree was moved meanwhile). Entries come in the backing's order, files
 * of a directory before its subdirectories. `.byokfs` of the root is not entered. */
#ifndef BYOKFS_WALK_H
#define BYOKFS_WALK_H

#include <stdbool.h>
#include <sys/stat.h>

#include "cleanup.h"

#define WALK_KEPT 64u /* levels */

struct walk_ops {
	void *arg;
	/* A directory (of the walk's device) has been entered: path is relative to the root ("." for it). */
	void (*enter)(void *arg, int dirfd, const char *path, const struct stat *st);
	/* An entry, with its lstat; for a directory: true goes into it. Directories of another device are never
	 * entered. */
	bool (*entry)(void *arg, int dirfd, const char *path, const char *name, const struct stat *st);
	/* What could not be read. */
	void (*failed)(void *arg, const char *path, int err);
	/* The directory entered last that has not been left yet is done with all that is below it. */
	void (*leave)(void *arg);
};

/* 0, or -errno when the walk could not go on. */
MUST_CHECK int walk(int rootfd, const struct walk_ops *);

#endif
