/* devkms_client.c — `byokfs-devkms status|enable|disable`: the revocation drill for people without the AWS CLI. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>

#include "devkms.h"
#include "exitcode.h"
#include "http.h"
#include "io.h"
#include "jsonio.h"

#define ANSWER_WITHIN_MS 10000u

static int complain(int code, const char *what, const char *detail)
{
	(void)fprintf(stderr, "byokfs-devkms: error: %s: %s\n", what, detail);
	return code;
}

/* One request to the administration endpoint; *answer is the caller's. An exit code. */
static int ask(const char *endpoint, const char *method, const char *path, const char *body, json_t **answer)
{
	static const char *const headers[] = { "Content-Type: application/json", NULL };
	const struct http_params params = {
		.connect_timeout_ms = 2000, .max_handles = 1, .proxy = "", .user_agent = "byokfs-devkms"
	};
	struct http_response r = { .status = 0 };
	struct http_request q = {
		.method = method, .headers = headers, .body = body, .bodylen = body ? strlen(body) : 0, .no_proxy = true
	};
	struct http *h = NULL;
	char url[512], why[160] = "";
	long status;
	int err;

	if (snprintf(url, sizeof(url), "%s%s%s", endpoint, endpoint[strlen(endpoint) - 1] == '/' ? "" : "/", path) >=
	    (int)sizeof(url))
		return complain(EXIT_USAGE, "endpoint too long", endpoint);
	err = http_open(&h, &params);
	if (err < 0)
		return complain(EXIT_FAILED, "cannot start", strerror(-err));
	q.url = url;
	q.deadline = io_boot_ms() + ANSWER_WITHIN_MS;
	err = http_do(h, &q, &r, why);
	http_close(h);
	if (err < 0)
		return complain(EXIT_UNREACHABLE, endpoint, why[0] ? why : strerror(-err));
	*answer = r.body ? jsonio_parse((const char *)r.body, r.len, HTTP_RESPONSE_MAX) : NULL;
	status = r.status;
	http_response_free(&r);
	if (status == 200 && json_is_array(*answer))
		return EXIT_OK;
	err = complain(EXIT_FAILED, "the server refused",
	    jsonio_str(*answer, "error") ? jsonio_str(*answer, "error") : "no answer of byokfs-devkms");
	json_decref(*answer);
	*answer = NULL;
	return err;
}

static int print_keys(const json_t *list, const char *only)
{
	size_t i, j, shown = 0;
	json_t *k, *name;

	json_array_foreach(list, i, k)
	{
		const char *arn = jsonio_str(k, "arn"), *state = jsonio_str(k, "state");

		if (!arn || !state || (only && !strstr(arn, only)))
			continue;
		(void)printf("%s %s", arn, state);
		json_array_foreach(json_object_get(k, "aliases"), j, name)(void) printf(" %s", json_string_value(name));
		(void)printf("\n");
		shown++;
	}
	return only && shown == 0 ? complain(EXIT_FAILED, "no such key", only) : EXIT_OK;
}

static int change(const char *endpoint, const char *key, const char *state)
{
	json_t *o = json_pack("{s:s}", "state", state), *answer = NULL;
	CLEANUP_FREE char *body = NULL;
	int code;

	if (key)
		(void)json_object_set_new(o, "key", json_string(key));
	body = jsonio_print(o);
	json_decref(o);
	if (!body)
		return complain(EXIT_FAILED, "cannot start", strerror(ENOMEM));
	code = ask(endpoint, "POST", "_devkms/key", body, &answer);
	if (code == EXIT_OK)
		code = print_keys(answer, NULL);
	json_decref(answer);
	return code;
}

int dk_client_main(int argc, char **argv)
{
	static const struct option options[] = { { "endpoint", required_argument, NULL, 'e' },
		{ "key", required_argument, NULL, 'k' }, { 0 } };
	const char *verb = argv[0], *endpoint = getenv("AWS_ENDPOINT_URL"), *key = NULL;
	json_t *answer = NULL;
	int o, code;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 'e')
			endpoint = optarg;
		else if (o == 'k')
			key = optarg;
		else
			return EXIT_USAGE;
	}
	if (!endpoint || !endpoint[0] || optind < argc)
		return complain(EXIT_USAGE, verb, "needs --endpoint URL (or AWS_ENDPOINT_URL), and takes --key ARN");
	if (strcmp(verb, "disable") == 0)
		return change(endpoint, key, "Disabled");
	if (strcmp(verb, "enable") == 0)
		return change(endpoint, key, "Enabled");
	code = ask(endpoint, "GET", "_devkms/keys", NULL, &answer);
	if (code == EXIT_OK)
		code = print_keys(answer, key);
	json_decref(answer);
	return code;
}
