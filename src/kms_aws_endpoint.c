/* kms_aws_endpoint.c — which host serves a key, and for which Region requests are signed.
 *
 * Hides: the anatomy of ARNs, the order in which settings win, and when a port belongs into the Host header.
 * The Region never comes from a host name: private endpoints have names of their own. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "kms_aws_internal.h"

/* The n-th field between colons; the last one runs to the end. */
static const char *arn_field(const char *arn, unsigned n)
{
	if (strncmp(arn, "arn:", 4))
		return NULL;
	for (; n; n--) {
		arn = strchr(arn, ':');
		if (!arn)
			return NULL;
		arn++;
	}
	return arn;
}

bool aws_arn_region(char out[static 64], const char *arn)
{
	const char *region = arn_field(arn, 3);
	size_t n = region ? strcspn(region, ":") : 0;

	if (!n || n >= 64 || region[n] != ':')
		return false;
	memcpy(out, region, n);
	out[n] = '\0';
	return true;
}

bool aws_arn_is_key(const char *name)
{
	const char *resource = arn_field(name, 5);

	return resource && !strncmp(resource, "key/", 4) && resource[4];
}

static bool region_ok(const char *region)
{
	if (!*region)
		return false;
	for (; *region; region++)
		if (!islower((unsigned char)*region) && !isdigit((unsigned char)*region) && *region != '-')
			return false;
	return true;
}

static int find_region(char out[static 64], const struct kms_params *params, struct awscred *cred, struct kms_err *err)
{
	const char *given = params->region && *params->region ? params->region : NULL;

	out[0] = '\0';
	if (given && strlen(given) < 64)
		strcpy(out, given);
	else if (!given && !aws_arn_region(out, params->key))
		awscred_region(cred, out);
	if (region_ok(out))
		return 0;
	if (*out || given)
		(void)kms_fail(err, KMS_CONFIG, "BadRegion", "'%.60s' is not a Region", given ? given : out);
	else
		(void)kms_fail(err, KMS_CONFIG, "NoRegion", "no Region: give kms.region, or the key as an ARN");
	return -EINVAL;
}

static void default_url(char out[static AWS_URL_MAX], const char *region)
{
	snprintf(out, AWS_URL_MAX, "https://kms.%s.amazonaws.com%s/", region, strncmp(region, "cn-", 3) ? "" : ".cn");
}

/* host[:port] without the scheme's own port: what HTTP clients send. */
static void host_header(char out[static AWS_HOST_MAX], const char *authority, size_t n, bool plain)
{
	const char *port = plain ? ":80" : ":443";
	size_t np = strlen(port);

	if (n > np && !strncmp(authority + n - np, port, np))
		n -= np;
	memcpy(out, authority, n);
	out[n] = '\0';
}

static int cut_url(struct aws_endpoint *e)
{
	const char *authority = strstr(e->url, "://"), *path;
	size_t n;

	if (!authority || strpbrk(e->url, "@?# \t\r\n\"\\"))
		return -EINVAL;
	e->plain = !strncasecmp(e->url, "http://", 7);
	authority += 3;
	n = strcspn(authority, "/");
	path = authority + n;
	if (!n || n >= AWS_HOST_MAX)
		return -EINVAL;
	host_header(e->host, authority, n, e->plain);
	strcpy(e->path, *path ? path : "/");
	if (*path)
		return 0;
	if (strlen(e->url) + 1 >= sizeof(e->url))
		return -EINVAL;
	strcat(e->url, "/");
	return 0;
}

int aws_endpoint_find(
    struct aws_endpoint *e, const struct kms_params *params, struct awscred *cred, struct kms_err *err)
{
	const char *given = params->endpoint && *params->endpoint ? params->endpoint : NULL;
	int r = find_region(e->region, params, cred, err);

	if (r)
		return r;
	if (given && strlen(given) < sizeof(e->url))
		strcpy(e->url, given);
	else if (!given)
		awscred_endpoint(cred, "kms", e->url);
	if (!given && !*e->url)
		default_url(e->url, e->region);
	if (!cut_url(e))
		return 0;
	(void)kms_fail(err, KMS_CONFIG, "BadEndpoint", "'%.120s' is not an endpoint URL", given ? given : e->url);
	return -EINVAL;
}
