/* awscred_imds.c — the instance's own role, from its metadata service, version 2 only.
 *
 * Hides: addresses, the session token and paths. A hop limit or a firewall shows as silence, so waiting is short. What
 * the service gives past its end is not extended. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "awscred_internal.h"

#define ATTEMPT_MS 1000u
#define TTL        "x-aws-ec2-metadata-token-ttl-seconds: 21600"
#define ROLES      "/latest/meta-data/iam/security-credentials/"
#define SOURCE     "the instance metadata service (IMDS)"

/* One session: base URL, and the header with its token. */
struct session {
	char base[256];
	char *token; /* secret memory */
};

static void close_session(struct session *s)
{
	secret_free(s->token);
}

#define CLEANUP_SESSION __attribute__((cleanup(close_session)))

bool awscred_imds_off(void)
{
	return awscred_true(awscred_env("AWS_EC2_METADATA_DISABLED"));
}

static int find_base(char out[static 256], char *why)
{
	const char *given = awscred_env("AWS_EC2_METADATA_SERVICE_ENDPOINT");
	const char *mode = awscred_env("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
	size_t n;

	if (mode && strcasecmp(mode, "IPv4") && strcasecmp(mode, "IPv6"))
		return awscred_say(
		    why, -EINVAL, "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE is '%.40s', neither IPv4 nor IPv6", mode);
	if (!given)
		given = mode && !strcasecmp(mode, "IPv6") ? "http://[fd00:ec2::254]" : "http://169.254.169.254";
	n = strlen(given);
	while (n && given[n - 1] == '/')
		n--;
	if (n >= 256)
		return awscred_say(why, -EINVAL, "AWS_EC2_METADATA_SERVICE_ENDPOINT is too long");
	memcpy(out, given, n);
	out[n] = '\0';
	return 0;
}

static int silent(struct awscred_walk *w, int r, const char *detail)
{
	return awscred_say(w->why, r == -EINVAL ? -EINVAL : -ETIMEDOUT, SOURCE " does not answer: %.120s", detail);
}

/* 0, AWSCRED_NONE (there is no such service here) or -errno. */
static int open_session(struct awscred_walk *w, struct session *s, bool quick)
{
	CLEANUP_RESP struct http_response resp = { 0 };
	char url[320], why[AWSCRED_WHY];
	int r = find_base(s->base, w->why);

	if (r)
		return r;
	snprintf(url, sizeof(url), "%s/latest/api/token", s->base);
	r = awscred_fetch(w, "PUT", url, TTL, NULL, ATTEMPT_MS, &resp, why);
	if (r)
		return quick && r != -EINVAL ? AWSCRED_NONE : silent(w, r, why);
	/* Something else may live at that address, or the service may be switched off. */
	if (resp.status != 200 || !resp.len || resp.len > 1024 || strpbrk((char *)resp.body, "\r\n")) {
		(void)awscred_say(w->why, 0, SOURCE " gives no session token (HTTP status %ld)", resp.status);
		return resp.status >= 500 ? -ETIMEDOUT : quick ? AWSCRED_NONE : -EINVAL;
	}
	s->token = secret_alloc(resp.len + 40);
	if (!s->token)
		return awscred_say(w->why, -ENOMEM, "no locked memory left");
	snprintf(s->token, resp.len + 40, "x-aws-ec2-metadata-token: %s", (char *)resp.body);
	return 0;
}

/* 0 with status 200, AWSCRED_NONE (404) or -errno. */
static int get(struct awscred_walk *w, const struct session *s, const char *path, struct http_response *resp)
{
	char url[512], why[AWSCRED_WHY];
	int r;

	snprintf(url, sizeof(url), "%s%s", s->base, path);
	r = awscred_fetch(w, "GET", url, s->token, NULL, ATTEMPT_MS, resp, why);
	if (r)
		return silent(w, r, why);
	if (resp->status == 200)
		return 0;
	(void)awscred_say(w->why, 0, SOURCE " answers HTTP status %ld to '%.80s'", resp->status, path);
	return resp->status == 404 ? AWSCRED_NONE : resp->status >= 500 ? -ETIMEDOUT : -EINVAL;
}

/* The first line; a role's name has no character that a path would mind. */
static bool copy_role(char out[static 128], const char *text)
{
	size_t n = strcspn(text, "\r\n");

	if (!n || n >= 128)
		return false;
	memcpy(out, text, n);
	out[n] = '\0';
	return strspn(out, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+=,.@_-") == n;
}

static int ask(struct awscred_walk *w, const struct session *s)
{
	CLEANUP_RESP struct http_response roles = { 0 }, doc = { 0 };
	char path[256], role[128];
	int r = get(w, s, ROLES, &roles);

	if (r)
		return r;
	if (!copy_role(role, (char *)roles.body))
		return awscred_say(w->why, -EINVAL, SOURCE " names no role");
	snprintf(path, sizeof(path), ROLES "%s", role);
	r = get(w, s, path, &doc);
	if (!r)
		r = awscred_answer_json(w, (char *)doc.body, doc.len, "Token", SOURCE, awscred_answer_now(&doc));
	if (!r)
		snprintf(w->out->identity, sizeof(w->out->identity), "instance role '%s' (IMDS)", role);
	return r;
}

int awscred_imds(struct awscred_walk *w, bool quick)
{
	CLEANUP_SESSION struct session s = { .token = NULL };
	int r;

	if (awscred_imds_off())
		return quick ? AWSCRED_NONE
		             : awscred_say(w->why, -EINVAL, "IMDS is asked for, and AWS_EC2_METADATA_DISABLED is set");
	quick = quick && !atomic_load(&w->setup->instance);
	r = open_session(w, &s, quick);
	if (!r)
		r = ask(w, &s);
	if (!r)
		atomic_store(&w->setup->instance, true);
	return r == AWSCRED_NONE && !quick ? -EINVAL : r;
}

void awscred_imds_region(struct awscred_walk *w, char *out)
{
	CLEANUP_SESSION struct session s = { .token = NULL };
	CLEANUP_RESP struct http_response resp = { 0 };

	out[0] = '\0';
	if (awscred_imds_off() || open_session(w, &s, true) ||
	    get(w, &s, "/latest/meta-data/placement/region", &resp) || resp.len >= 64)
		return;
	memcpy(out, resp.body, resp.len + 1);
	out[strcspn(out, "\r\n")] = '\0';
}
