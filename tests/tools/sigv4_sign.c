/* sigv4_sign.c — signs requests for tests: one JSON object per line on stdin, one per line on stdout.
 *
 * In: method, path, query, headers (object), body, region, service, time, access_key, secret_key, token (or
 * absent). Out: date and authorization, or error. */
#include <stdio.h>

#include "jsonio.h"
#include "secret.h"
#include "sigv4.h"

#define HEADERS 32u

static const char *str(const json_t *in, const char *member)
{
	const char *text = jsonio_str(in, member);

	return text ? text : "";
}

static int sign(struct sigv4_signature *sig, json_t *in)
{
	struct sigv4_header header[HEADERS];
	struct sigv4_credentials cred = { .access_key = "" };
	struct sigv4_request req = { .method = str(in, "method"),
		.path = str(in, "path"),
		.query = str(in, "query"),
		.header = header,
		.body = str(in, "body"),
		.region = str(in, "region"),
		.service = str(in, "service"),
		.time = json_integer_value(json_object_get(in, "time")) };
	const char *name;
	json_t *value;
	int r;

	req.bodylen = json_string_length(json_object_get(in, "body"));
	json_object_foreach(json_object_get(in, "headers"), name, value) if (req.nheader < HEADERS)
	    header[req.nheader++] = (struct sigv4_header){ name, json_string_value(value) };
	r = jsonio_copy(cred.access_key, sizeof(cred.access_key), in, "access_key");
	if (!r)
		r = jsonio_copy(cred.secret_key, sizeof(cred.secret_key), in, "secret_key");
	cred.session_token = jsonio_str(in, "token") ? strdup(jsonio_str(in, "token")) : NULL;
	if (!r)
		r = sigv4_sign(sig, &req, &cred);
	free(cred.session_token);
	return r;
}

static int answer(json_t *in)
{
	struct sigv4_signature sig;
	int r = in ? sign(&sig, in) : -1;
	json_t *out = r ? json_pack("{s:i}", "error", r)
	                : json_pack("{s:s, s:s}", "date", sig.amz_date, "authorization", sig.authorization);
	char *text = out ? jsonio_print(out) : NULL;

	r = text && puts(text) >= 0 && !fflush(stdout) ? 0 : -1;
	free(text);
	json_decref(out);
	return r;
}

int main(void)
{
	char *line = NULL;
	size_t size = 0;
	ssize_t n;
	int r = secret_init(true);

	while (!r && (n = getline(&line, &size, stdin)) > 0) {
		json_t *in = jsonio_parse(line, (size_t)n, 1048576);

		r = answer(in);
		json_decref(in);
	}
	free(line);
	return r ? 1 : 0;
}
