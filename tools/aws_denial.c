/* aws_denial.c — hides AWS's sentences:
 *
 *   User: ARN is not authorized to perform: kms:Decrypt on resource: ARN because no identity-based policy allows the
 *   kms:Decrypt action
 *   ... with an explicit deny in a resource-based policy
 *
 * They are for people and change; what is not found is left empty, and the hint then names both sides. */
#include "aws_denial.h"

#include <stdio.h>
#include <string.h>

#include "policy.h"

/* The word behind `before`, up to a blank. */
static void word_after(char *out, size_t size, const char *text, const char *before)
{
	const char *at = strstr(text, before);
	size_t n;

	out[0] = '\0';
	if (!at)
		return;
	at += strlen(before);
	n = strcspn(at, " ");
	if (n > 0 && n < size) {
		memcpy(out, at, n);
		out[n] = '\0';
	}
}

static const struct {
	const char *words, *name;
	enum aws_denial_policy policy;
} kinds[] = {
	{ "identity-based policy", "permissions", DENIAL_IDENTITY },
	{ "resource-based policy", "policy of the key", DENIAL_RESOURCE },
	{ "permissions boundary", "permissions boundary", DENIAL_BOUNDARY },
	{ "service control policy", "service control policy of the organization", DENIAL_SERVICE_CONTROL },
	{ "resource control policy", "resource control policy of the organization", DENIAL_RESOURCE_CONTROL },
	{ "session policy", "session policy", DENIAL_SESSION },
	{ "VPC endpoint policy", "policy of the VPC endpoint", DENIAL_ENDPOINT },
};

#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

void aws_denial_parse(struct aws_denial *out, const char *message)
{
	const char *why = strstr(message, " because no ");

	memset(out, 0, sizeof(*out));
	word_after(out->who, sizeof(out->who), message, "User: ");
	word_after(out->action, sizeof(out->action), message, "not authorized to perform: ");
	word_after(out->resource, sizeof(out->resource), message, "on resource: ");
	if (!why) {
		why = strstr(message, " with an explicit deny in ");
		out->explicitly = why != NULL;
	}
	for (size_t i = 0; why && i < KINDS; i++)
		if (strstr(why, kinds[i].words))
			out->policy = kinds[i].policy;
}

static const char *name_of(enum aws_denial_policy policy)
{
	for (size_t i = 0; i < KINDS; i++)
		if (kinds[i].policy == policy)
			return kinds[i].name;
	return "policy";
}

void aws_denial_role(char *out, size_t size, const char *arn)
{
	const char *sts = strstr(arn, ":sts::"), *role = strstr(arn, ":assumed-role/");

	if (!sts || !role || sts > role)
		(void)snprintf(out, size, "%s", arn);
	else
		(void)snprintf(out, size, "%.*s:iam::%.*s:role/%.*s", (int)(sts - arn), arn, (int)(role - sts - 6),
		    sts + 6, (int)strcspn(role + 14, "/"), role + 14);
}

/* As one word of a shell's command line. No backslash helps what a terminal would not show as it is. */
static void shell_word(char *out, size_t size, const char *text)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=:,@%";
	size_t n = 0;

	if (*text == '-')
		n = (size_t)snprintf(out, size, "./");
	for (; *text >= ' ' && *text <= '~' && n + 2 < size; text++) {
		if (!strchr(plain, *text))
			out[n++] = '\\';
		out[n++] = *text;
	}
	out[n] = '\0';
	if (*text)
		(void)snprintf(out, size, "CIPHERDIR");
}

/* The options and operands of the command that the hint names. What the service said becomes none unless it is the name
 * of a role or user. */
static void command_words(char *out, size_t size, const char *only, const struct aws_denial *d, const char *cipherdir)
{
	char role[300], dir[400] = "", why[POLICY_WHY];

	if (cipherdir)
		shell_word(dir, sizeof(dir), cipherdir);
	aws_denial_role(role, sizeof(role), d->who);
	if (policy_check_principal(role, why) < 0)
		role[0] = '\0';
	(void)snprintf(out, size, "%s%s%s%s%s", *dir ? " " : "", dir, only, *role ? " --host " : "", role);
}

void aws_denial_todo(char *out, size_t size, const struct aws_denial *d, const char *cipherdir)
{
	const char *only = d->policy == DENIAL_IDENTITY ? " --only=host"
	    : d->policy == DENIAL_RESOURCE          ? " --only=key"
	                                            : "";
	char words[1000];

	command_words(words, sizeof(words), only, d, cipherdir);
	if (d->explicitly)
		(void)snprintf(out, size, "a Deny in the %s covers it: its owner must take it away",
		    d->policy == DENIAL_UNSAID ? "policies" : name_of(d->policy));
	else if (d->policy == DENIAL_IDENTITY)
		(void)snprintf(out, size, "the identity's own permissions must allow it: 'byokfsctl policy%s'", words);
	else if (d->policy == DENIAL_RESOURCE)
		(void)snprintf(
		    out, size, "the key's owner must allow it in the key's policy: 'byokfsctl policy%s'", words);
	else if (d->policy != DENIAL_UNSAID)
		(void)snprintf(out, size, "the %s must allow it", name_of(d->policy));
	else
		(void)snprintf(out, size,
		    "the key's policy, and in another account the identity's own permissions too, must allow it: "
		    "'byokfsctl policy%s'",
		    words);
}
