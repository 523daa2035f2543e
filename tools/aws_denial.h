/* aws_denial.h — what an AccessDenied of AWS says in words: who lacks which permission, and whose policy decided. Pure.
 */
#ifndef BYOKFS_AWS_DENIAL_H
#define BYOKFS_AWS_DENIAL_H

#include <stdbool.h>
#include <stddef.h>

enum aws_denial_policy {
	DENIAL_UNSAID, /* either side may lack it */
	DENIAL_IDENTITY,
	DENIAL_RESOURCE, /* the key's policy, or a role's trust */
	DENIAL_BOUNDARY,
	DENIAL_SERVICE_CONTROL,
	DENIAL_RESOURCE_CONTROL,
	DENIAL_SESSION,
	DENIAL_ENDPOINT,
};

struct aws_denial {
	char who[300], action[64], resource[300]; /* "" when not said */
	enum aws_denial_policy policy;
	bool explicitly; /* a Deny, not the want of an Allow */
};

/* What the message does not say stays empty. */
void aws_denial_parse(struct aws_denial *out, const char *message);
/* What to do about it, as one line; cipherdir may be NULL. */
void aws_denial_todo(char *out, size_t size, const struct aws_denial *, const char *cipherdir);
/* The role of an assumed-role session's ARN, as far as it can be told (a path is not in it); else arn itself. */
void aws_denial_role(char *out, size_t size, const char *arn);

#endif
