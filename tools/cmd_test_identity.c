/* cmd_test_identity.c — whose credentials these are, in AWS's own words: one GetCallerIdentity, which needs no
 * permission. Its ARN is what the key's owner must allow. */
#include "cmd_test.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "awsclock.h"
#include "http.h"
#include "io.h"
#include "secret.h"
#include "sigv4.h"
#include "stsxml.h"

#define CONTENT_TYPE "application/x-www-form-urlencoded"
#define BODY         "Action=GetCallerIdentity&Version=2011-06-15"

/* host[:port] as it is sent: without the scheme's own port. */
static int host_of(char *out, size_t size, const char *url)
{
	const char *port = strncasecmp(url, "http:", 5) == 0 ? ":80" : ":443", *from = strstr(url, "://");
	size_t n = from ? strcspn(from + 3, "/") : 0, np = strlen(port);

	if (n == 0 || n >= size)
		return -EINVAL;
	if (n > np && strncmp(from + 3 + n - np, port, np) == 0)
		n -= np;
	memcpy(out, from + 3, n);
	out[n] = '\0';
	return 0;
}

struct question {
	struct http *http;
	const char *url, *region;
	const struct sigv4_credentials *credentials;
	uint64_t deadline;
	struct awsclock clock;
};

static int sign(struct sigv4_signature *sig, const char *host, const struct question *q)
{
	const struct sigv4_header header[] = { { "Host", host }, { "Content-Type", CONTENT_TYPE } };
	const struct sigv4_request request = { .method = "POST",
		.path = "/",
		.query = "",
		.header = header,
		.nheader = 2,
		.body = BODY,
		.bodylen = strlen(BODY),
		.region = q->region,
		.service = "sts",
		.time = awsclock_now(&q->clock) };

	return sigv4_sign(sig, &request, q->credentials);
}

static void free_secret(char **p)
{
	secret_free(*p);
}

static int ask(const struct question *q, struct http_response *answer, char *why)
{
	static const char type_line[] = "Content-Type: " CONTENT_TYPE;
	const char *token = q->credentials->session_token ? q->credentials->session_token : "";
	__attribute__((cleanup(free_secret))) char *token_line = secret_alloc(strlen(token) + 32);
	char host[300], host_line[320], date[40], authorization[1100];
	const char *lines[] = { host_line, type_line, date, authorization, *token ? token_line : NULL, NULL };
	const struct http_request request = { .method = "POST",
		.url = q->url,
		.headers = lines,
		.body = BODY,
		.bodylen = strlen(BODY),
		.deadline = q->deadline };
	struct sigv4_signature sig;
	int ret = token_line ? host_of(host, sizeof(host), q->url) : -ENOMEM;

	if (ret == 0)
		ret = sign(&sig, host, q);
	if (ret < 0) {
		(void)snprintf(why, AWSCRED_WHY, "cannot ask STS at '%.100s': %s", q->url, strerror(-ret));
		return ret;
	}
	(void)snprintf(host_line, sizeof(host_line), "Host: %s", host);
	(void)snprintf(date, sizeof(date), "X-Amz-Date: %s", sig.amz_date);
	(void)snprintf(authorization, sizeof(authorization), "Authorization: %s", sig.authorization);
	(void)snprintf(token_line, strlen(token) + 32, "X-Amz-Security-Token: %s", token);
	ret = http_do(q->http, &request, answer, why);
	explicit_bzero(authorization, sizeof(authorization));
	return ret;
}

bool test_whoami_arn(char *arn, size_t size, const struct stsxml *x)
{
	if (strncmp(x->arn, "arn:", 4) != 0 || strlen(x->arn) >= size)
		return false;
	for (const char *c = x->arn; *c; c++)
		if (*c <= ' ' || *c > '~')
			return false;
	memcpy(arn, x->arn, strlen(x->arn) + 1);
	return true;
}

/* -EAGAIN: the clock was corrected, and another request may do. */
static int attempt(char *arn, size_t size, struct question *q, char *why)
{
	__attribute__((cleanup(http_response_free))) struct http_response answer = { 0 };
	struct stsxml *x CLEANUP_FREE = calloc(1, sizeof(*x));
	int ret = x ? ask(q, &answer, why) : -ENOMEM;

	if (ret < 0)
		return ret;
	ret = stsxml_parse(x, (const char *)answer.body, answer.len);
	if (ret == 0 && answer.status == 200 && test_whoami_arn(arn, size, x))
		return 0;
	if (ret == 0 && awsclock_is_about(x->code) &&
	    awsclock_correct(&q->clock, "STS", answer.date,
	        answer.tls_verified || strncasecmp(q->url, "http://", 7) == 0))
		return -EAGAIN;
	(void)snprintf(why, AWSCRED_WHY, "STS at '%.80s' gave no identity (HTTP status %ld)", q->url, answer.status);
	return -EPROTO;
}

/* A KMS with an address of its own (a VPC endpoint, a stand-in) says nothing of where STS is. */
static int find_url(char url[static 600], struct awscred *cred, const struct config *c, const char *region, char *why)
{
	bool fips = false, dualstack = false;
	char host[300];
	size_t n;
	int ret = awscred_endpoint(cred, "sts", url, why);

	if (ret == 0)
		ret = awscred_fips(cred, &fips, why);
	if (ret == 0)
		ret = awscred_dualstack(cred, &dualstack, why);
	if (ret < 0)
		return ret;
	n = strlen(url);
	if (n == 0 && c->kms.endpoint) {
		(void)snprintf(why, AWSCRED_WHY, "'endpoint' in [kms] is set, and AWS_ENDPOINT_URL_STS is not");
		return -ENOENT;
	}
	awscred_host(host, "sts", region, fips, dualstack);
	if (n == 0)
		(void)snprintf(url, 600, "https://%s/", host);
	else if (url[n - 1] != '/')
		(void)snprintf(url + n, 600 - n, "/");
	return 0;
}

int test_whoami(char *arn, size_t size, struct awscred *cred, const struct sigv4_credentials *credentials,
    const struct config *c, const char *region, char *why)
{
	const struct http_params params = { .connect_timeout_ms = c->kms.connect_timeout_ms,
		.max_handles = 1,
		.ca_bundle = c->kms.ca_bundle ? c->kms.ca_bundle : getenv("AWS_CA_BUNDLE"),
		.proxy = c->kms.proxy,
		.user_agent = "byokfsctl/" BYOKFS_VERSION };
	char url[600] = "";
	struct question q = { .url = url, .region = region, .credentials = credentials };
	int ret = find_url(url, cred, c, region, why);

	if (ret < 0)
		return ret;
	ret = http_open(&q.http, &params);
	if (ret < 0) {
		(void)snprintf(why, AWSCRED_WHY, "%s", strerror(-ret));
		return ret;
	}
	q.deadline = io_boot_ms() + c->kms.request_timeout_ms;
	ret = attempt(arn, size, &q, why);
	if (ret == -EAGAIN)
		ret = attempt(arn, size, &q, why);
	http_close(q.http);
	return ret;
}
