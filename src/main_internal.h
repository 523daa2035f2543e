/* main_internal.h — what main.c (the list of what happens) and main_keys.c (the keys of the mount) share. */
#ifndef BYOKFS_MAIN_INTERNAL_H
#define BYOKFS_MAIN_INTERNAL_H

#include "audit.h"
#include "config.h"
#include "fs.h"
#include "options.h"
#include "service.h"

struct daemon {
	struct config config;
	struct options options;
	struct store store;
	bool store_open;
	struct kms *kms, *previous; /* as configured; which of them rules, the store says */
	struct audit *audit;
	struct fs fs;
	struct service service;
	unsigned connection; /* 0: unknown */
};

/* An error line, a hint unless NULL, and the exit code to return. */
int main_fail(int code, const char *what, const char *hint);
int main_fail_errno(const char *what, int err);
/* Opens the configured key services and the first domain's lease, locked where that is allowed. 0, or the exit code
 * after an error line. */
MUST_CHECK int main_open_keys(struct daemon *);

#endif
