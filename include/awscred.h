/* awscred.h — AWS credentials and Region, found as the SDKs find them, and kept fresh.
 *
 * The chain: environment (AWS_ACCESS_KEY_ID/SECRET/SESSION_TOKEN); the shared files and their profiles (keys; role_arn
 * with source_profile or credential_source, external_id, role_session_name, duration_seconds; web_identity_token_file;
 * credential_process); web identity (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN); container (ECS, EKS Pod Identity);
 * IMDSv2, never v1. A profile named explicitly switches the environment off. On top of whatever the chain gives,
 * params->role_arn is assumed. SSO, login and MFA are refused with a message saying so.
 *
 * Credentials that expire are renewed ahead by a thread of this module's own, started by the first awscred_get() that
 * meets such; no caller waits while the old ones still serve. Expired ones are never used. A renewal that STS denies
 * ends the use of the old ones too. Files are read again when they changed. All network calls are http.h's, none
 * outlives its deadline. Every secret lives in secret memory. */
#ifndef BYOKFS_AWSCRED_H
#define BYOKFS_AWSCRED_H

#include <stdbool.h>

#include "sigv4.h"

#define AWSCRED_WHY 200u

struct awscred;

/* Strings are copied; NULL: default. */
struct awscred_params {
	const char *profile;  /* NULL: AWS_PROFILE, else "default" */
	const char *role_arn; /* assumed with what the chain gives */
	const char *external_id;
	const char *session_name; /* NULL: "byokfs-<host>" */
	const char *region;       /* whose STS is asked; NULL: awscred_region()'s */
	const char *replicas;     /* key ARNs between commas and blanks: their Regions' STS when that one is silent */
	const char *ca_bundle, *proxy, *user_agent;
	uint32_t connect_timeout_ms;
};

/* Before the process holds keys: a profile with credential_process makes it fork a helper that runs the program. Starts
 * no thread. */
MUST_CHECK int awscred_open(struct awscred **out, const struct awscred_params *);
void awscred_close(struct awscred *);
/* A copy of the current credentials in secret memory; free with awscred_put(). Blocks at most until the deadline
 * (io_boot_ms() time). 0, or
 *   -ENOENT      none found anywhere
 *   -EINVAL      unusable (profile, MFA, SSO, a source that answered nonsense)
 *   -EACCES      STS denies the role: the customer removed the trust, which is a denial like the KMS's own (class D)
 *   -ETIMEDOUT   a source that should have them did not answer (class T)
 *   -errno       a file: -EPERM where it may not be read, never -EACCES or -ETIMEDOUT
 * why (AWSCRED_WHY bytes) names source, file or profile, STS's code, and what to do. Thread-safe. */
MUST_CHECK int awscred_get(struct awscred *, uint64_t deadline, struct sigv4_credentials **out, char *why);
void awscred_put(struct sigv4_credentials *);
/* The next awscred_get() asks the sources again: the KMS called the credentials expired or unknown, or the
 * administrator says so (SIGHUP). What is at hand then serves only if the sources do not answer in time. */
void awscred_refresh(struct awscred *);

/* Another Region to ask STS in, and other replicas, as in awscred_params; the next awscred_get() asks again if they
 * differ. A question under way ends where it began. 0 or -ENOMEM (nothing changed). */
MUST_CHECK int awscred_reconfigure(struct awscred *, const char *region, const char *replicas);

/* For people: "the environment", "profile 'x'", "role arn:... through IMDS", ...; "" before the first awscred_get().
 * out holds 256. *expires: Unix seconds, 0 never. */
void awscred_identity(struct awscred *, char *out, int64_t *expires);
/* Settings, from the environment and the profile as they are now. 0, or -errno with why (AWSCRED_WHY bytes): a file
 * that cannot be read or parsed, a value too long. *out is then "" or false, and must not be taken for "not set".
 *
 * Region from AWS_REGION, AWS_DEFAULT_REGION, profile, IMDS (asked once, briefly, only where the chain reaches it); ""
 * when none. out holds 64. */
MUST_CHECK int awscred_region(struct awscred *, char *out, char *why);
/* Endpoint override for a service ("kms", "sts"): AWS_ENDPOINT_URL_KMS, AWS_ENDPOINT_URL, the profile's [services]
 * section, its endpoint_url; "" when none, or with AWS_IGNORE_CONFIGURED_ENDPOINT_URLS. out holds 512. */
MUST_CHECK int awscred_endpoint(struct awscred *, const char *service, char *out, char *why);
/* AWS_USE_FIPS_ENDPOINT or use_fips_endpoint; AWS_USE_DUALSTACK_ENDPOINT or use_dualstack_endpoint. */
MUST_CHECK int awscred_fips(struct awscred *, bool *out, char *why);
MUST_CHECK int awscred_dualstack(struct awscred *, bool *out, char *why);

/* The host of a service in a Region, from the four templates (kms.eu-west-1.amazonaws.com, kms-fips..., .api.aws; China
 * and the isolated partitions have suffixes of their own). out holds 300. Pure. */
void awscred_host(char *out, const char *service, const char *region, bool fips, bool dualstack);

/* Calls fn for every file that the chain may read or run, for this profile (NULL as above) and this environment; for
 * whoever must keep them out of a mount. */
void awscred_paths(const char *profile, void (*fn)(void *arg, const char *path), void *arg);

#endif
