/* kms_aws_endpoint.c — which host serves a key, and for which Region requests are signed.
 *
 * Hides: the anatomy of ARNs, the order in which settings win, and when a port belongs into the Host header.
 * The Region never comes from a host name: private endpoints have names of their own. The settings that send all of
 * KMS to one host (AWS_ENDPOINT_URL and its like) hold for the configured key only: a replica asked there would be
 * another Region's, and its "not found" a denial. */
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

bool aws_arn_is_multi(const char *arn)
{
	const char *resource = arn_field(arn, 5);

	return resource && !strncmp(resource, "key/mrk-", 8);
}

bool aws_same_key(const char *a, const char *b)
{
	const char *region_a, *region_b, *rest_a, *rest_b;

	if (!strcmp(a, b))
		return true;
	if (!aws_arn_is_multi(a) || !aws_arn_is_multi(b))
		return false;
	region_a = arn_field(a, 3);
	region_b = arn_field(b, 3);
	rest_a = arn_field(a, 4);
	rest_b = arn_field(b, 4);
	if (!region_a || !region_b || !rest_a || !rest_b)
		return false;
	return region_a - a == region_b - b && !strncmp(a, b, (size_t)(region_a - a)) && rest_a - region_a > 1 &&
	    rest_b - region_b > 1 && !strcmp(rest_a, rest_b);
}

bool kms_same_name(const char *a, const char *b)
{
	return aws_same_key(a, b); /* no other provider's names begin with "arn:" */
}

bool kms_name_is_multi(const char *name)
{
	return aws_arn_is_multi(name);
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

static int refuse_region(struct kms_err *err, const char *region)
{
	(void)kms_fail(err, KMS_CONFIG, "BadRegion", "'%.60s' is not a Region", region);
	return -EINVAL;
}

/* Settings that cannot be read are not "not set": another host would be asked than the one that is meant. */
static int unreadable(struct kms_err *err, const char *why)
{
	(void)kms_fail(err, KMS_CONFIG, "BadProfile", "%s", why);
	return -EINVAL;
}

static int find_region(char out[static 64], const struct kms_params *params, struct awscred *cred, struct kms_err *err)
{
	const char *given = params->region && *params->region ? params->region : NULL;
	char arns[64], why[AWSCRED_WHY] = "";

	out[0] = '\0';
	if (given && strlen(given) < 64)
		strcpy(out, given);
	else if (!given && !aws_arn_region(out, params->key) && awscred_region(cred, out, why))
		return unreadable(err, why);
	if (!region_ok(out)) {
		if (*out || given)
			return refuse_region(err, given ? given : out);
		(void)kms_fail(err, KMS_CONFIG, "NoRegion", "no Region: give kms.region, or the key as an ARN");
		return -EINVAL;
	}
	if (!given || !aws_arn_region(arns, params->key) || !strcmp(arns, given))
		return 0;
	(void)kms_fail(err, KMS_CONFIG, "BadRegion", "kms.region is '%s', but the key is in '%s'", given, arns);
	return -EINVAL;
}

static int default_url(
    char out[static AWS_URL_MAX], const char *region, struct awscred *cred, struct kms_err *err)
{
	char host[AWS_HOST_MAX], why[AWSCRED_WHY] = "";
	bool fips, dualstack;

	if (awscred_fips(cred, &fips, why) || awscred_dualstack(cred, &dualstack, why))
		return unreadable(err, why);
	awscred_host(host, "kms", region, fips, dualstack);
	snprintf(out, AWS_URL_MAX, "https://%s/", host);
	return 0;
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
	if (!e->plain && strncasecmp(e->url, "https://", 8) != 0)
		return -EINVAL;
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

static int bad_endpoint(struct kms_err *err, const char *url)
{
	(void)kms_fail(err, KMS_CONFIG, "BadEndpoint", "'%.120s' is not an endpoint URL", url);
	return -EINVAL;
}

int aws_endpoint_find(
    struct aws_endpoint *e, const struct kms_params *params, struct awscred *cred, struct kms_err *err)
{
	const char *given = params->endpoint && *params->endpoint ? params->endpoint : NULL;
	char why[AWSCRED_WHY] = "";
	int r = find_region(e->region, params, cred, err);

	if (r)
		return r;
	if (given && strlen(given) < sizeof(e->url))
		strcpy(e->url, given);
	else if (!given && awscred_endpoint(cred, "kms", e->url, why))
		return unreadable(err, why);
	if (!given && !*e->url)
		r = default_url(e->url, e->region, cred, err);
	if (r)
		return r;
	return cut_url(e) ? bad_endpoint(err, given ? given : e->url) : 0;
}

int aws_endpoint_replica(
    struct aws_endpoint *e, const char *arn, const char *url, struct awscred *cred, struct kms_err *err)
{
	if (!aws_arn_region(e->region, arn) || !region_ok(e->region))
		return refuse_region(err, e->region);
	if (url && strlen(url) >= sizeof(e->url))
		return bad_endpoint(err, url);
	if (url)
		strcpy(e->url, url);
	else if (default_url(e->url, e->region, cred, err))
		return -EINVAL;
	return cut_url(e) ? bad_endpoint(err, e->url) : 0;
}
