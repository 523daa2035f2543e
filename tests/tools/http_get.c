/* http_get.c — one GET through http.c, for tests: http_get URL [CA-BUNDLE]. Prints one line of JSON. */
#include <stdio.h>

#include "http.h"
#include "io.h"
#include "jsonio.h"
#include "secret.h"

static int get(const char *url, const char *ca_bundle)
{
	const struct http_params params = { .proxy = "", .ca_bundle = ca_bundle };
	const struct http_request req = { .method = "GET", .url = url, .deadline = io_boot_ms() + 10000 };
	struct http_response resp = { .status = 0 };
	struct http *h = NULL;
	char why[160] = "", *text;
	json_t *out;
	int r = http_open(&h, &params);

	if (r)
		return 1;
	r = http_do(h, &req, &resp, why);
	out = json_pack("{s:i, s:i, s:b, s:s, s:s}", "result", r, "status", (int)resp.status, "tls_verified",
	    resp.tls_verified, "body", resp.body ? (const char *)resp.body : "", "why", why);
	text = out ? jsonio_print(out) : NULL;
	r = text && puts(text) >= 0 ? 0 : 1;
	free(text);
	json_decref(out);
	http_response_free(&resp);
	http_close(h);
	return r;
}

int main(int argc, char **argv)
{
	if (argc < 2 || secret_init(true))
		return 2;
	return get(argv[1], argc > 2 ? argv[2] : NULL);
}
