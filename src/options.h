/* The command line of byokfs(8) and mount.byokfs(8), taken apart. */
#ifndef BYOKFS_OPTIONS_H
#define BYOKFS_OPTIONS_H

#include <fuse_lowlevel.h>

#include "config.h"

struct options {
	const char *program;
	const char *config_path;  /* NULL: the usual places */
	char *store, *mountpoint; /* real paths, malloc'ed */
	bool foreground, debug, fake, readonly, noatime;
	struct fuse_args args; /* for fuse_session_new */
};

/* 0; or an exit code after a message on stderr. *done: help or version was printed, exit 0. Configuration: file, then
 * -o. */
MUST_CHECK int options_parse(struct options *, struct config *, int argc, char **argv, bool *done);
void options_free(struct options *);

#endif
