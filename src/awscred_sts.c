/* awscred_sts.c — becoming a role: AssumeRole, signed with what the chain gave, and AssumeRoleWithWebIdentity, where a
 * token file speaks for us.
 *
 * Hides: the query protocol, the endpoint, and what STS's errors mean. AccessDenied is the customer taking the trust
 * away: the one error that is a denial (-EACCES). What may pass is -ETIMEDOUT, everything else -EINVAL. Sessions are
 * short on purpose: a revoked trust bites when the session ends. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "awscred_internal.h"
#include "io.h"
#include "stsxml.h"

#define ATTEMPT_MS   5000u
#define SECONDS      900u
#define TOKEN_MAX    20000u /* STS's own limit */
#define FORM_MAX     65000u
#define URL_MAX      640u
#define CONTENT_TYPE "application/x-www-form-urlencoded; charset=utf-8"

/* ---- the form ---- */

struct form {
	char *text; /* secret memory */
	size_t len, room;
};

static void put_raw(struct form *f, const char *text)
{
	for (; *text && f->len + 1 < f->room; text++)
		f->text[f->len++] = *text;
}

static void put(struct form *f, const char *name, const char *value)
{
	put_raw(f, "&");
	put_raw(f, name);
	put_raw(f, "=");
	for (const unsigned char *c = (const unsigned char *)value; *c; c++) {
		char escaped[4] = { (char)*c, '\0', '\0', '\0' };

		if (!isalnum(*c) && !strchr("-._~", *c))
			snprintf(escaped, sizeof(escaped), "%%%02X", *c);
		put_raw(f, escaped);
	}
}

/* "byokfs-<host>", in the characters that STS allows. */
static void default_session(char out[static 65])
{
	char host[65] = "";

	(void)gethostname(host, sizeof(host) - 1);
	snprintf(out, 65, "byokfs-%.57s", host);
	for (char *c = out; *c; c++)
		if (!isalnum((unsigned char)*c) && !strchr("_+=,.@-", *c))
			*c = '-';
}

static int make_form(struct form *f, const struct awscred_walk *w, const struct awscred_role *role, const char *token)
{
	char seconds[16], name[65];

	f->room = token ? FORM_MAX : 8192;
	f->text = secret_alloc(f->room);
	if (!f->text)
		return awscred_say(w->why, -ENOMEM, "no locked memory left");
	default_session(name);
	put_raw(f, token ? "Action=AssumeRoleWithWebIdentity" : "Action=AssumeRole");
	put(f, "Version", "2011-06-15");
	put(f, "RoleArn", role->arn);
	put(f, "RoleSessionName", role->session && *role->session ? role->session : name);
	snprintf(seconds, sizeof(seconds), "%u", role->seconds ? role->seconds : SECONDS);
	put(f, "DurationSeconds", seconds);
	if (role->external_id && *role->external_id && !token)
		put(f, "ExternalId", role->external_id);
	if (token)
		put(f, "WebIdentityToken", token);
	if (f->len + 1 == f->room)
		return awscred_say(w->why, -EINVAL, "the request for role '%.80s' is too long", role->arn);
	return 0;
}

/* ---- the endpoint ---- */

struct endpoint {
	char url[URL_MAX], host[320], region[64];
	bool plain, last;
};

/* The Region of the n-th replica. */
static bool other_region(char out[static 64], const struct awscred_place *place, unsigned n)
{
	const char *p = place->replicas ? place->replicas : "";

	for (p += strspn(p, ", \t"); *p && n; n--) {
		p += strcspn(p, ", \t");
		p += strspn(p, ", \t");
	}
	return sscanf(p, "arn:%*[^:]:kms:%63[a-z0-9-]:", out) == 1;
}

/* nth: 0 for the usual one, then those of the replicas. */
static int find_region(
    char out[static 64], const struct awscred_walk *w, const struct awscred_profiles *p, unsigned nth)
{
	const char *region = w->place->region;

	if (nth)
		return other_region(out, w->place, nth - 1) ? 0 : -ENOENT;

	region = region ? region : awscred_env("AWS_REGION");
	region = region ? region : awscred_env("AWS_DEFAULT_REGION");
	region = region ? region : AWSCRED_SETTING(p, region);
	if (!*region || strlen(region) >= 64 ||
	    strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(region))
		return awscred_say(w->why, -EINVAL, "which Region's STS? give kms.region, or the key as an ARN");
	strcpy(out, region);
	return 0;
}

static bool setting_true(const char *variable, const char *setting)
{
	return awscred_true(awscred_env(variable) ? awscred_env(variable) : setting);
}

/* 0 or -EINVAL: too long. */
static int find_url(char out[static URL_MAX], const struct awscred_profiles *p, const char *region)
{
	const char *own = p->file[AWSCRED_CONFIG].service_endpoint;
	const char *given = awscred_env("AWS_ENDPOINT_URL_STS");
	char host[300];

	given = given ? given : awscred_env("AWS_ENDPOINT_URL");
	if (!given && !awscred_true(AWSCRED_SETTING(p, ignore_endpoints)))
		given = *own ? own : AWSCRED_SETTING(p, endpoint);
	if (awscred_true(awscred_env("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")))
		given = NULL;
	awscred_host(host, "sts", region, setting_true("AWS_USE_FIPS_ENDPOINT", AWSCRED_SETTING(p, fips)),
	    setting_true("AWS_USE_DUALSTACK_ENDPOINT", AWSCRED_SETTING(p, dualstack)));
	if (!given || !*given)
		snprintf(out, URL_MAX, "https://%s", host);
	else if (snprintf(out, URL_MAX, "%s", given) >= (int)URL_MAX)
		return -EINVAL;
	return 0;
}

static int find_endpoint(struct endpoint *e, const struct awscred_walk *w, unsigned nth)
{
	CLEANUP_SECRET struct awscred_profiles *p = secret_alloc(sizeof(*p));
	const char *host;
	size_t n;
	int r = p ? awscred_files_load(p, awscred_profile_name(w->setup->profile), "sts", w->why) : -ENOMEM;

	if (!r)
		r = find_region(e->region, w, p, nth);
	if (r)
		return r;
	if (find_url(e->url, p, e->region))
		return awscred_say(w->why, -EINVAL, "the endpoint URL '%.60s...' for STS is too long", e->url);
	for (n = strlen(e->url); n && e->url[n - 1] == '/';)
		e->url[--n] = '\0';
	host = strstr(e->url, "://");
	host = host ? host + 3 : "";
	e->plain = !strncasecmp(e->url, "http://", 7);
	n = strlen(host);
	if (!n || n >= sizeof(e->host) || n + 8 >= URL_MAX || strpbrk(host, "/@?# \t\r\n\"\\"))
		return awscred_say(w->why, -EINVAL, "'%.100s' is not an endpoint URL for STS", e->url);
	n -= !e->plain && n > 4 && !strcmp(host + n - 4, ":443") ? 4 : 0;
	n -= e->plain && n > 3 && !strcmp(host + n - 3, ":80") ? 3 : 0;
	memcpy(e->host, host, n);
	e->host[n] = '\0';
	strcat(e->url, "/");
	return 0;
}

/* ---- sending ---- */

/* Header lines; the token's is in secret memory. */
struct lines {
	char host[340], date[40], authorization[1100];
	char *token;
	const char *list[6];
};

static void free_lines(struct lines *l)
{
	secret_free(l->token);
	explicit_bzero(l->authorization, sizeof(l->authorization));
}

static int sign_lines(struct lines *l, const struct endpoint *e, const struct form *f, const struct awscred_walk *w,
    const struct sigv4_credentials *by, size_t *n)
{
	const struct sigv4_header header[] = { { "Host", e->host }, { "Content-Type", CONTENT_TYPE } };
	const struct sigv4_request req = { .method = "POST",
		.path = "/",
		.query = "",
		.header = header,
		.nheader = 2,
		.body = f->text,
		.bodylen = f->len,
		.region = e->region,
		.service = "sts",
		.time = awsclock_now(&w->setup->sts_clock) };
	struct sigv4_signature sig;
	size_t size = by->session_token ? strlen(by->session_token) + sizeof("X-Amz-Security-Token: ") : 0;
	int r = sigv4_sign(&sig, &req, by);

	if (r)
		return awscred_say(w->why, r, "cannot sign the request for the role: %s", strerrordesc_np(-r));
	snprintf(l->date, sizeof(l->date), "X-Amz-Date: %s", sig.amz_date);
	snprintf(l->authorization, sizeof(l->authorization), "Authorization: %s", sig.authorization);
	l->list[(*n)++] = l->date;
	l->list[(*n)++] = l->authorization;
	if (!size)
		return 0;
	l->token = secret_alloc(size);
	if (!l->token)
		return awscred_say(w->why, -ENOMEM, "no locked memory left");
	snprintf(l->token, size, "X-Amz-Security-Token: %s", by->session_token);
	l->list[(*n)++] = l->token;
	return 0;
}

static int send_form(const struct awscred_walk *w, const struct endpoint *e, const struct form *f,
    const struct sigv4_credentials *by, struct http_response *resp)
{
	__attribute__((cleanup(free_lines))) struct lines l = { .token = NULL };
	uint64_t now = io_boot_ms(), left = w->deadline > now ? w->deadline - now : 0;
	uint64_t own = e->last || left / 2 > ATTEMPT_MS ? ATTEMPT_MS : left / 2; /* the next Region wants some, too */
	const struct http_request req = { .method = "POST",
		.url = e->url,
		.headers = l.list,
		.body = f->text,
		.bodylen = f->len,
		.deadline = own < left ? now + own : w->deadline,
		.cancel = &w->setup->stopping };
	char why[AWSCRED_WHY];
	size_t n = 0;
	int r;

	snprintf(l.host, sizeof(l.host), "Host: %s", e->host);
	l.list[n++] = l.host;
	l.list[n++] = "Content-Type: " CONTENT_TYPE;
	r = by ? sign_lines(&l, e, f, w, by, &n) : 0;
	if (r)
		return r;
	r = http_do(w->setup->http, &req, resp, why);
	if (!r || r == -ENOMEM)
		return r;
	return awscred_say(w->why, r == -EINVAL || r == -EKEYREJECTED ? -EINVAL : -ETIMEDOUT,
	    "STS '%.70s' does not answer: %.100s", e->host, why);
}

/* ---- what it says ---- */

static bool one_of(const char *code, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(code, *list))
			return true;
	return false;
}

static int class_of(const char *code, long status)
{
	static const char *const denied[] = { "AccessDenied", "AccessDeniedException", NULL };
	static const char *const passing[] = { "Throttling", "ThrottlingException", "ThrottledException",
		"RequestLimitExceeded", "RequestThrottled", "TooManyRequestsException", "SlowDown",
		"IDPCommunicationError", "InternalFailure", "InternalError", "ServiceUnavailable", "RequestTimeout",
		NULL };

	if (one_of(code, denied))
		return -EACCES;
	return status >= 500 || status == 429 || one_of(code, passing) ? -ETIMEDOUT : -EINVAL;
}

static void make_printable(char *text)
{
	for (; *text; text++)
		if (*text < ' ' || *text > '~')
			*text = '?';
}

static int refused(const struct awscred_walk *w, const struct awscred_role *role, struct stsxml *x, long status)
{
	int r = class_of(x->code, status);

	if (!*x->code)
		snprintf(x->code, sizeof(x->code), "HTTP status %ld", status);
	make_printable(x->code);
	make_printable(x->message);
	return awscred_say(w->why, r, "STS said %.40s for role '%.70s'%s: %.60s", x->code, role->arn,
	    r == -EACCES ? " (trust, external id?)" : "", x->message);
}

static int accepted(struct awscred_walk *w, const struct awscred_role *role, const struct stsxml *x,
    const struct http_response *resp)
{
	char through[256];
	int r;

	if (!*x->access_key || !*x->secret_key || !*x->token || !*x->expiration)
		return awscred_say(w->why, -EINVAL, "STS's answer for role '%.100s' has no credentials", role->arn);
	snprintf(through, sizeof(through), "%s", role->token_file ? "web identity" : w->out->identity);
	r = awscred_answer_set(w, x->access_key, x->secret_key, x->token, x->expiration,
	    resp->date ? resp->date : awsclock_now(&w->setup->sts_clock));
	if (!r)
		snprintf(w->out->identity, sizeof(w->out->identity), "role %.140s through %.100s", role->arn, through);
	return r;
}

/* One request; *again: the clock was corrected, and another may do. */
static int attempt(struct awscred_walk *w, const struct awscred_role *role, const struct endpoint *e,
    const struct form *f, const struct sigv4_credentials *by, bool *again)
{
	CLEANUP_SECRET struct stsxml *x = secret_alloc(sizeof(*x));
	CLEANUP_RESP struct http_response resp = { 0 };
	int r = x ? send_form(w, e, f, by, &resp) : -ENOMEM;

	*again = false;
	if (r)
		return r;
	r = stsxml_parse(x, (char *)resp.body, resp.len);
	if (r == -ENOMEM)
		return r;
	if (resp.status == 200 && r)
		return awscred_say(w->why, -EINVAL, "STS '%.100s' did not answer in XML", e->host);
	if (resp.status == 200)
		return accepted(w, role, x, &resp);
	*again = by && awsclock_is_about(x->code) &&
	    awsclock_correct(&w->setup->sts_clock, "STS", resp.date, resp.tls_verified || e->plain);
	return refused(w, role, x, resp.status);
}

static int check(const struct awscred_walk *w, const struct awscred_role *role)
{
	size_t id = role->external_id ? strlen(role->external_id) : 0;
	size_t session = role->session ? strlen(role->session) : 0;

	if (strncmp(role->arn, "arn:", 4) || !strstr(role->arn, ":role/"))
		return awscred_say(w->why, -EINVAL, "'%.120s' is not the ARN of a role", role->arn);
	if (session && (session < 2 || session > 64))
		return awscred_say(w->why, -EINVAL, "a role's session name has 2 to 64 characters, '%.70s' has not",
		    role->session);
	if (id && (id < 2 || id > 1224))
		return awscred_say(w->why, -EINVAL, "an external id has 2 to 1224 characters");
	return 0;
}

/* Once more after the clock was corrected. */
static int ask(struct awscred_walk *w, const struct awscred_role *role, const struct endpoint *e, const struct form *f)
{
	const struct sigv4_credentials *by = role->token_file ? NULL : w->out->cred;
	bool again;
	int r = attempt(w, role, e, f, by, &again);

	return again ? attempt(w, role, e, f, by, &again) : r;
}

/* A Region that does not answer takes its STS along; sessions of another one's are as good. Never after a denial. */
static int ask_regions(struct awscred_walk *w, const struct awscred_role *role, const struct form *f)
{
	struct endpoint e = { .plain = false };
	char scrap[64];
	int r = -ETIMEDOUT;

	for (unsigned nth = 0; r == -ETIMEDOUT; nth++) {
		int found = find_endpoint(&e, w, nth);

		if (found)
			return found == -ENOENT && nth ? r : found;
		e.last = !other_region(scrap, w->place, nth);
		r = ask(w, role, &e, f);
	}
	return r;
}

int awscred_sts_assume(struct awscred_walk *w, const struct awscred_role *role)
{
	CLEANUP_SECRET char *token = NULL;
	CLEANUP_SECRET char *text = NULL;
	struct form f = { .text = NULL };
	int r = check(w, role);

	if (!r && role->token_file)
		r = awscred_read_small(&token, role->token_file, TOKEN_MAX, w->why);
	if (!r)
		r = make_form(&f, w, role, token);
	text = f.text;
	if (!r)
		r = ask_regions(w, role, &f);
	if (r == -ENOMEM)
		(void)awscred_say(w->why, r, "no memory for asking STS");
	return r;
}
