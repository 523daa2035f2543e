/* The command line of byokfs(8) and mount.byokfs(8), taken apart. */
#ifndef BYOKFS_OPTIONS_H
#define BYOKFS_OPTIONS_H

#include <fuse_lowlevel.h>

#include "config.h"
#include "log.h"

#define OPTIONS_SETTINGS 64u

struct options {
	const char *program;
	const char *config_path;  /* NULL: the usual places */
	char *config_file;        /* that was read, absolute, malloc'ed; NULL: none */
	char *setting[OPTIONS_SETTINGS]; /* "section.key=value" of -o, malloc'ed */
	size_t nsettings;
	char *store, *mountpoint; /* real paths, malloc'ed */
	bool foreground, debug, fake, readonly, noatime;
	struct fuse_args args; /* for fuse_session_new */
};

/* 0; or an exit code after a message on stderr. *done: help or version was printed, exit 0. Configuration: file, then
 * -o. */
MUST_CHECK int options_parse(struct options *, struct config *, int argc, char **argv, bool *done);
/* The configuration anew, from the same file and the same -o. 0; or -errno with why (CONFIG_WHY bytes): *c is then to
 * be freed all the same. */
MUST_CHECK int options_reload(const struct options *, struct config *c, char *why);
/* As configured; -d says everything. */
enum log_level options_log_level(const struct options *, const struct config *);
void options_free(struct options *);

#endif
