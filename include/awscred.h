/* awscred.h — AWS credentials and Region, as the SDKs find them: environment, then the shared files.
 *
 * AWS_ACCESS_KEY_ID/SECRET/SESSION_TOKEN; AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, AWS_PROFILE. A
 * profile named explicitly switches the environment off. Profiles that need SSO, MFA, a process or a role are
 * refused with a message saying so (roles, web identity, container and IMDS are another module's). Files are
 * read again when they changed or when awscred_refresh() is called, so rotated keys are picked up. */
#ifndef BYOKFS_AWSCRED_H
#define BYOKFS_AWSCRED_H

#include "sigv4.h"

struct awscred;

struct awscred_params {
	const char *profile; /* NULL: AWS_PROFILE, else "default"; copied */
};

MUST_CHECK int awscred_open(struct awscred **out, const struct awscred_params *);
void awscred_close(struct awscred *);
/* A copy of the current credentials in secret memory; free with awscred_put(). 0, or -ENOENT (none found),
 * -EINVAL (unusable profile), -EACCES/-errno (file); why (200 bytes) names file, profile and what to do.
 * Thread-safe. */
MUST_CHECK int awscred_get(struct awscred *, struct sigv4_credentials **out, char *why);
void awscred_put(struct sigv4_credentials *);
/* Forget what is cached: the KMS called it expired or unknown. */
void awscred_refresh(struct awscred *);
/* Region from AWS_REGION, AWS_DEFAULT_REGION, profile; "" when none. out holds 64. */
void awscred_region(struct awscred *, char *out);
/* Endpoint override for service "kms": AWS_ENDPOINT_URL_KMS, AWS_ENDPOINT_URL, the profile's [services] section,
 * its endpoint_url; "" when none, or with AWS_IGNORE_CONFIGURED_ENDPOINT_URLS. out holds 512. */
void awscred_endpoint(struct awscred *, const char *service, char *out);

#endif
