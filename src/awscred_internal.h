/* awscred_internal.h — one profile as the shared files describe it. */
#ifndef BYOKFS_AWSCRED_INTERNAL_H
#define BYOKFS_AWSCRED_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "awscred.h"
#include "cleanup.h"

#define AWSCRED_TOKEN_MAX 8192u

/* Lives in secret memory. Empty text: not given. */
struct awscred_profile {
	bool found;
	const char *unsupported; /* what this profile would need, in words; NULL when nothing */
	char access_key[129], secret_key[129], token[AWSCRED_TOKEN_MAX];
	char region[64], endpoint[512], services[128];
	char service_endpoint[512]; /* of the [services] section; filled by awscred_ini_service() */
	char ignore_endpoints[8], fips[8], dualstack[8];
};

/* Which of the two files: sections are named differently. */
enum awscred_file { AWSCRED_CREDENTIALS, AWSCRED_CONFIG };

/* Text of a file, cut up in place. `where` is its path, for messages. 0 or -EINVAL with why. */
MUST_CHECK int awscred_ini_profile(
    struct awscred_profile *out, enum awscred_file, char *text, const char *profile, const char *where, char *why);
/* The endpoint_url of `service` in [services out->services]. */
MUST_CHECK int awscred_ini_service(
    struct awscred_profile *out, char *text, const char *service, const char *where, char *why);

#endif
