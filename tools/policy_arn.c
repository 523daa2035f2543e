/* policy_arn.c — which names may stand in a policy. Hides the grammar of ARNs, and which mistakes deserve words of
 * their own: sessions, wildcards, whole accounts. */
#include "policy.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#define LOWER  "abcdefghijklmnopqrstuvwxyz"
#define DIGITS "0123456789"
#define NAMES  LOWER "ABCDEFGHIJKLMNOPQRSTUVWXYZ" DIGITS

static int __attribute__((format(printf, 2, 3))) refuse(char *why, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(why, POLICY_WHY, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

/* Copies up to the next colon; NULL when there is none, or too much, or another character. */
static const char *field(char *out, size_t size, const char *text, const char *allowed)
{
	size_t n = strspn(text, allowed);

	if (text[n] != ':' || n >= size)
		return NULL;
	memcpy(out, text, n);
	out[n] = '\0';
	return text + n + 1;
}

static bool account_ok(const char *account)
{
	return strlen(account) == 12 && strspn(account, DIGITS) == 12;
}

int policy_arn_parse(struct policy_arn *out, const char *text)
{
	const char *p = strncmp(text, "arn:", 4) == 0 ? text + 4 : NULL;

	if (p)
		p = field(out->partition, sizeof(out->partition), p, LOWER "-");
	if (p)
		p = field(out->service, sizeof(out->service), p, LOWER DIGITS "-");
	if (p)
		p = field(out->region, sizeof(out->region), p, LOWER DIGITS "-");
	if (p)
		p = field(out->account, sizeof(out->account), p, DIGITS);
	if (!p || !*p || strncmp(out->partition, "aws", 3) != 0 || (out->partition[3] && out->partition[3] != '-') ||
	    !*out->service || (*out->account && !account_ok(out->account)))
		return -EINVAL;
	out->resource = p;
	return 0;
}

static bool name_ok(const char *resource, const char *kind)
{
	size_t n = strlen(kind), len = strlen(resource);

	return strncmp(resource, kind, n) == 0 && len > n && resource[len - 1] != '/' &&
	    strspn(resource + n, NAMES "+=,.@_/-") == len - n;
}

int policy_check_principal(const char *text, char *why)
{
	struct policy_arn a;

	if (strchr(text, '*') || strchr(text, '?'))
		return refuse(why, "'%.120s': a policy that names its users has no wildcards", text);
	if (policy_arn_parse(&a, text) < 0 || strlen(text) >= POLICY_PRINCIPAL)
		return refuse(why, "'%.120s' is not an ARN, such as arn:aws:iam::111122223333:role/NAME", text);
	if (strcmp(a.service, "sts") == 0 && strncmp(a.resource, "assumed-role/", 13) == 0)
		return refuse(why, "'%.120s' is a session: name its role, arn:%s:iam::%s:role/%.*s", text, a.partition,
		    a.account, (int)strcspn(a.resource + 13, "/"), a.resource + 13);
	if (strcmp(a.service, "iam") != 0 || *a.region || !*a.account)
		return refuse(why, "'%.120s' is not the ARN of an IAM role or user", text);
	if (strcmp(a.resource, "root") == 0)
		return refuse(why, "'%.120s' is everybody in an account: name a role", text);
	if (!name_ok(a.resource, "role/") && !name_ok(a.resource, "user/"))
		return refuse(why, "'%.120s' is not the ARN of an IAM role or user", text);
	return 0;
}

int policy_trustee(char *out, const char *text, const char *partition, char *why)
{
	struct policy_arn a;

	if (account_ok(text)) {
		(void)snprintf(out, POLICY_PRINCIPAL, "arn:%s:iam::%s:root", partition, text);
		return 0;
	}
	if (strncmp(text, "arn:", 4) != 0)
		return refuse(why, "'%.120s' is neither an account of 12 digits nor an ARN", text);
	if (policy_arn_parse(&a, text) < 0 || strcmp(a.service, "iam") != 0 || strcmp(a.resource, "root") != 0 ||
	    !*a.account || *a.region) {
		int ret = policy_check_principal(text, why);

		if (ret < 0)
			return ret;
	}
	(void)snprintf(out, POLICY_PRINCIPAL, "%s", text);
	return 0;
}

int policy_check_key(const char *text, char *why)
{
	struct policy_arn a;

	if (policy_arn_parse(&a, text) < 0 || strcmp(a.service, "kms") != 0)
		return refuse(why, "'%.120s' is not the ARN of a KMS key", text);
	if (strncmp(a.resource, "alias/", 6) == 0)
		return refuse(why, "'%.120s' is an alias: policies name the key itself", text);
	if (!name_ok(a.resource, "key/") || strchr(a.resource + 4, '/') || !*a.region || !*a.account)
		return refuse(why, "'%.120s' is not the ARN of a KMS key", text);
	return 0;
}

int policy_check_external_id(const char *text, char *why)
{
	size_t n = strlen(text);

	if (n < 2 || n > 1224 || strspn(text, NAMES "+=,.@:/_-") != n)
		return refuse(why, "'%.120s' is not an ExternalId: 2 to 1224 letters, digits and +=,.@:/_-", text);
	return 0;
}

bool policy_siblings(const char *key, const char *other)
{
	struct policy_arn a, b;

	return policy_arn_parse(&a, key) == 0 && policy_arn_parse(&b, other) == 0 &&
	    strncmp(a.resource, "key/mrk-", 8) == 0 && strcmp(a.resource, b.resource) == 0 &&
	    strcmp(a.account, b.account) == 0 && strcmp(a.partition, b.partition) == 0 &&
	    strcmp(a.service, b.service) == 0;
}
