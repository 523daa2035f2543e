/* awscred_answer.c — credentials as every source gives them in the end: keys, a token, and until when.
 *
 * Hides: dates, the JSON document that metadata services and programs share, and on which clock credentials end. Their
 * end is a date on the giver's clock; the giver also says what time it is there, so only the difference counts, and it
 * runs on io_boot_ms(). */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "awscred_internal.h"
#include "io.h"
#include "jsonio.h"

#define LIFE_WITHOUT_END 900 /* seconds */
#define LIFE_MAX         129600

/* "2026-11-22T05:06:07Z", with a fraction, or with an offset as "+00:00". */
static int parse_time(const char *text, int64_t *out)
{
	struct tm tm = { 0 };
	const char *p = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
	int hours = 0, minutes = 0, n = 0;

	if (!p)
		return -EINVAL;
	if (*p == '.')
		p += 1 + strspn(p + 1, "0123456789");
	*out = (int64_t)timegm(&tm);
	if (!strcmp(p, "Z"))
		return 0;
	if ((*p != '+' && *p != '-') || sscanf(p + 1, "%2d:%2d%n", &hours, &minutes, &n) != 2 || p[1 + n])
		return -EINVAL;
	*out += (*p == '+' ? -60 : 60) * (hours * 60 + minutes);
	return 0;
}

int64_t awscred_answer_now(const struct http_response *resp)
{
	return resp->date ? resp->date : io_unix_time();
}

int awscred_answer_lasting(
    struct awscred_walk *w, enum awscred_kind kind, const char *access, const char *secret, const char *token)
{
	size_t ntoken = token && *token ? strlen(token) + 1 : 0;
	struct sigv4_credentials *c;

	if (strlen(access) >= sizeof(c->access_key) || strlen(secret) >= sizeof(c->secret_key) ||
	    ntoken > AWSCRED_TOKEN_MAX)
		return awscred_say(w->why, -EINVAL, "the AWS credentials are too long to be any");
	c = secret_alloc(sizeof(*c) + ntoken);
	if (!c)
		return awscred_say(w->why, -ENOMEM, "no locked memory left for the AWS credentials");
	strcpy(c->access_key, access);
	strcpy(c->secret_key, secret);
	if (ntoken) {
		c->session_token = (char *)(c + 1);
		memcpy(c->session_token, token, ntoken);
	}
	secret_free(w->out->cred);
	w->out->cred = c;
	w->out->kind = kind;
	w->out->expires = 0;
	return 0;
}

int awscred_answer_set(struct awscred_walk *w, const char *access, const char *secret, const char *token,
    const char *expiration, int64_t now)
{
	int64_t end = now + LIFE_WITHOUT_END;
	uint64_t life;
	int r;

	if (expiration && *expiration && parse_time(expiration, &end))
		return awscred_say(w->why, -EINVAL, "'%.40s' is not a time that credentials could expire", expiration);
	if (end <= now)
		return awscred_say(w->why, -ETIMEDOUT, "credentials were given that expired at %.40s",
		    expiration ? expiration : "once");
	r = awscred_answer_lasting(w, AWSCRED_TIMED, access, secret, token);
	if (r)
		return r;
	w->out->expires = end;
	w->out->from = io_boot_ms();
	life = (uint64_t)(end - now < LIFE_MAX ? end - now : LIFE_MAX) * 1000;
	/* dates have whole seconds: one may be gone already */
	w->out->until = w->out->from + life - (life > 4000 ? 1000 : life / 4);
	return 0;
}

/* Text of others goes to logs and terminals. */
static void copy_printable(char *out, size_t size, const char *text)
{
	size_t n = 0;

	for (; text && *text && n + 1 < size; text++)
		out[n++] = *text >= ' ' && *text <= '~' ? *text : '?';
	out[n] = '\0';
}

static int read_document(
    struct awscred_walk *w, const json_t *doc, const char *token, const char *source, int64_t now)
{
	const char *access = jsonio_str(doc, "AccessKeyId"), *secret = jsonio_str(doc, "SecretAccessKey");
	const char *code = jsonio_str(doc, "Code");
	char shown[48], more[80];

	if (code && strcmp(code, "Success")) {
		copy_printable(shown, sizeof(shown), code);
		copy_printable(more, sizeof(more), jsonio_str(doc, "Message"));
		return awscred_say(w->why, -EINVAL, "%.60s has no credentials: %s %s", source, shown, more);
	}
	if (!access || !*access || !secret || !*secret)
		return awscred_say(
		    w->why, -EINVAL, "%.80s gave no AccessKeyId and SecretAccessKey in a JSON object", source);
	return awscred_answer_set(w, access, secret, jsonio_str(doc, token), jsonio_str(doc, "Expiration"), now);
}

int awscred_answer_json(
    struct awscred_walk *w, const char *text, size_t len, const char *token, const char *source, int64_t now)
{
	json_t *doc = jsonio_parse(text, len, HTTP_RESPONSE_MAX);
	int r = read_document(w, doc, token, source, now);

	json_decref(doc);
	return r;
}

int awscred_fetch(struct awscred_walk *w, const char *method, const char *url, const char *header, const char *header2,
    uint64_t ms, struct http_response *resp, char *why)
{
	const char *headers[] = { "Accept: */*", header, header ? header2 : NULL, NULL };
	uint64_t own = io_boot_ms() + ms;
	const struct http_request req = { .method = method,
		.url = url,
		.headers = headers,
		.deadline = own < w->deadline ? own : w->deadline,
		.no_proxy = true,
		.cancel = &w->setup->stopping };

	return http_do(w->setup->http, &req, resp, why);
}
