/* awscred_container.c — credentials of an ECS task or an EKS pod, from an endpoint that the environment names.
 *
 * Hides: which hosts may be asked, and where the authorization token is. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "awscred_internal.h"
#include "io.h"

#define ATTEMPT_MS 2000u
#define ATTEMPTS   3
#define TOKEN_MAX  16384u
#define SOURCE     "the container's credentials endpoint"
#define RELATIVE   "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
#define FULL       "AWS_CONTAINER_CREDENTIALS_FULL_URI"
#define TOKEN      "AWS_CONTAINER_AUTHORIZATION_TOKEN"
#define TOKEN_FILE "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"

bool awscred_container_set(void)
{
	return awscred_env(RELATIVE) || awscred_env(FULL);
}

/* The token travels with the request: in the clear only to this host and to the fixed addresses of ECS and EKS. */
static bool may_be_plain(const char *host, size_t n)
{
	static const char *const known[] = { "localhost", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]",
		"[::1]" };

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (n == strlen(known[i]) && !strncasecmp(host, known[i], n))
			return true;
	return n > 4 && !strncmp(host, "127.", 4) && strspn(host, "0123456789.") >= n;
}

int awscred_container_url(char out[static 1024], char *why)
{
	const char *relative = awscred_env(RELATIVE), *full = awscred_env(FULL), *host;
	size_t n;

	if (strlen(relative ? relative : full) > 900)
		return awscred_say(why, -EINVAL, "%s is too long", relative ? RELATIVE : FULL);
	if (relative) {
		if (*relative != '/')
			return awscred_say(why, -EINVAL, RELATIVE " does not begin with '/'");
		snprintf(out, 1024, "http://169.254.170.2%s", relative);
		return 0;
	}
	snprintf(out, 1024, "%s", full);
	if (!strncasecmp(full, "https://", 8))
		return 0;
	host = strncasecmp(full, "http://", 7) ? "" : full + 7;
	n = *host == '[' ? strcspn(host, "]") + 1 : strcspn(host, ":/?#");
	if (n <= strlen(host) && (!host[n] || strchr(":/", host[n])) && !strchr(host, '@') && may_be_plain(host, n))
		return 0;
	return awscred_say(why, -EINVAL,
	    FULL ": plain http to '%.60s' is refused: only loopback and the addresses of ECS and EKS, or https", host);
}

/* The whole header line in secret memory; *out stays NULL when there is no token. */
static int authorization(char **out, char *why)
{
	CLEANUP_SECRET char *from_file = NULL;
	const char *file = awscred_env(TOKEN_FILE), *token = awscred_env(TOKEN);
	size_t n;
	int r = file ? awscred_read_small(&from_file, file, TOKEN_MAX, why) : 0;

	if (r)
		return r;
	token = from_file ? from_file : token;
	if (!token)
		return 0;
	n = strlen(token);
	if (n > TOKEN_MAX || strpbrk(token, "\r\n"))
		return awscred_say(
		    why, -EINVAL, "%s: the token is too long, or has line breaks", from_file ? TOKEN_FILE : TOKEN);
	*out = secret_alloc(n + 20);
	if (!*out)
		return awscred_say(why, -ENOMEM, "no locked memory left");
	snprintf(*out, n + 20, "Authorization: %s", token);
	return 0;
}

static int attempt(struct awscred_walk *w, const char *url)
{
	CLEANUP_RESP struct http_response resp = { 0 };
	CLEANUP_SECRET char *header = NULL;
	char why[AWSCRED_WHY];
	int r = authorization(&header, w->why);

	if (r)
		return r;
	r = awscred_fetch(w, "GET", url, header, NULL, ATTEMPT_MS, &resp, why);
	if (r)
		return awscred_say(w->why, r == -EINVAL || r == -EKEYREJECTED ? -EINVAL : -ETIMEDOUT,
		    SOURCE " '%.60s' does not answer: %.80s", url, why);
	if (resp.status != 200)
		return awscred_say(w->why, resp.status >= 500 || resp.status == 429 ? -ETIMEDOUT : -EINVAL,
		    SOURCE " '%.60s' answers HTTP status %ld%s", url, resp.status,
		    resp.status == 401 || resp.status == 403 ? ": is the authorization token right?" : "");
	r = awscred_answer_json(w, (char *)resp.body, resp.len, "Token", SOURCE, awscred_answer_now(&resp));
	if (!r)
		snprintf(w->out->identity, sizeof(w->out->identity), SOURCE " %.200s", url);
	return r;
}

int awscred_container(struct awscred_walk *w)
{
	char url[1024];
	int r = awscred_container_set() ? awscred_container_url(url, w->why) : AWSCRED_NONE;

	if (r)
		return r;
	for (int tries = 0; tries < ATTEMPTS; tries++) {
		r = attempt(w, url);
		if (r != -ETIMEDOUT || io_boot_ms() >= w->deadline || atomic_load(&w->setup->stopping))
			break;
	}
	return r;
}
