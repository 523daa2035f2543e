/* kms_aws_internal.h — what kms_aws.c, kms_aws_call.c and kms_aws_endpoint.c share. */
#ifndef BYOKFS_KMS_AWS_INTERNAL_H
#define BYOKFS_KMS_AWS_INTERNAL_H

#include <stdatomic.h>

#include "awsclock.h"
#include "awscred.h"
#include "http.h"
#include "jsonio.h"
#include "kms_provider.h"

#define AWS_HOST_MAX 300u
#define AWS_URL_MAX  512u

/* Where requests go and what they are signed for. */
struct aws_endpoint {
	char url[AWS_URL_MAX];   /* with a path */
	char host[AWS_HOST_MAX]; /* as in the Host header */
	char path[AWS_URL_MAX];
	char region[64];
	bool plain; /* http: http.c then speaks to this host only */
};

struct aws {
	struct http *http;
	struct awscred *cred;
	struct aws_endpoint endpoint;
	struct awsclock clock;
	atomic_bool worked; /* the key has answered before */
	char key[KMS_KEY_MAX + 1];
};

/* Region of a key ARN; false when this is none or the region does not fit. */
bool aws_arn_region(char out[static 64], const char *arn);
/* An ARN of a key, not of an alias. */
bool aws_arn_is_key(const char *name);
/* 0, or -EINVAL with *err filled. */
MUST_CHECK int aws_endpoint_find(
    struct aws_endpoint *out, const struct kms_params *, struct awscred *, struct kms_err *err);

struct aws_call {
	const char *operation;
	const json_t *request;
	bool known_key; /* about a->key, so a->worked applies */
	uint64_t deadline;
};

/* One signed request, and once more after a repair (credentials read again, clock corrected). KMS_OK: *answer
 * is an object to json_decref(), and request_id (128 bytes) that of the answer. */
enum kms_status aws_call(struct aws *, const struct aws_call *, json_t **answer, char *request_id, struct kms_err *err);

#endif
