/* kms_vault_call.c — one request to Vault or OpenBao, and what is to be done about the token when it is refused.
 *
 * Hides: headers, the shape of errors, and how a refused token is told from a refused use of the key: both are status
 * 403 "permission denied", so the token is asked about itself. A token that the server does not know proves nothing
 * about the key; a good one that may not use it is the owner's denial. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kms_vault_internal.h"
#include "secret.h"

#define WHY 160u

void vault_answer_free(struct vault_answer *a)
{
	json_decref(a->body);
	memset(a, 0, sizeof(*a));
}

/* Text from the network goes to logs and terminals: one line, printable, blanks and bullets folded. */
static size_t add_text(char out[static VAULT_TEXT], size_t n, const char *text)
{
	bool gap = n > 0;

	for (; text && *text && n + 2 < VAULT_TEXT; text++) {
		if (*text == ' ' || *text == '\n' || *text == '\t' || *text == '\r' || *text == '*') {
			gap = n > 0;
			continue;
		}
		if (gap)
			out[n++] = ' ';
		gap = false;
		out[n++] = *text > ' ' && *text <= '~' ? *text : '?';
	}
	out[n] = '\0';
	return n;
}

/* {"errors": ["1 error occurred:\n\t* permission denied\n\n"]} to "permission denied" */
static void read_errors(struct vault_answer *a)
{
	const json_t *list = json_object_get(a->body, "errors");
	size_t n = 0;

	a->own = json_is_array(list);
	for (size_t i = 0; i < json_array_size(list); i++) {
		const char *text = json_string_value(json_array_get(list, i));
		const char *count = text ? strstr(text, " occurred:") : NULL;

		n = add_text(a->text, n, count ? count + strlen(" occurred:") : text);
	}
}

static void read_answer(struct vault_answer *a, const struct http_response *resp)
{
	a->http = resp->status;
	a->body = resp->len ? jsonio_parse((const char *)resp->body, resp->len, HTTP_RESPONSE_MAX) : NULL;
	if (!json_is_object(a->body)) {
		json_decref(a->body);
		a->body = NULL;
	}
	read_errors(a);
}

enum kms_status vault_send(const struct vault_link *l, const struct vault_request *req, const char *header,
    struct vault_answer *out, struct kms_err *err)
{
	__attribute__((cleanup(http_response_free))) struct http_response resp = { 0 };
	char url[VAULT_PATH_MAX * 2 + 8], namespace[VAULT_PATH_MAX + 24], why[WHY] = "";
	const char *headers[5] = { "X-Vault-Request: true", "Content-Type: application/json" };
	const struct http_request http = { .method = req->method,
		.url = url,
		.headers = headers,
		.body = req->body,
		.bodylen = req->body ? strlen(req->body) : 0,
		.deadline = req->deadline };
	size_t n = 2;
	int r;

	memset(out, 0, sizeof(*out));
	if (snprintf(url, sizeof(url), "%s/v1/%s", l->address, req->path) >= (int)sizeof(url))
		return kms_fail(err, KMS_CONFIG, "BadAddress", "'address' in [vault] is too long");
	if (*l->namespace) {
		(void)snprintf(namespace, sizeof(namespace), "X-Vault-Namespace: %s", l->namespace);
		headers[n++] = namespace;
	}
	if (header)
		headers[n++] = header;
	r = http_do(l->http, &http, &resp, why);
	if (r)
		return kms_fail_http(err, r, why);
	read_answer(out, &resp);
	return KMS_OK;
}

/* ---- with the token ---- */

static void free_secret(char **p)
{
	secret_free(*p);
}

static bool success(const struct vault_answer *a)
{
	return (a->http >= 200 && a->http < 300) ||
	    json_is_array(json_object_get(json_object_get(a->body, "data"), "batch_results"));
}

enum verdict { TOKEN_GOOD, TOKEN_BAD, TOKEN_UNKNOWN };

/* Newer servers say "invalid token"; every one answers lookup-self to a token that it knows and that has the policy
 * "default". */
static enum verdict examine(
    const struct vault_link *l, const struct vault_answer *refused, const char *header, uint64_t deadline)
{
	const struct vault_request req = { "GET", "auth/token/lookup-self", NULL, deadline };
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	struct kms_err ignored;

	if (strcasestr(refused->text, "invalid token"))
		return TOKEN_BAD;
	if (vault_send(l, &req, header, &a, &ignored) != KMS_OK)
		return TOKEN_UNKNOWN;
	if (a.http == 200 && a.body)
		return TOKEN_GOOD;
	return a.http == 403 && a.own ? TOKEN_BAD : TOKEN_UNKNOWN;
}

static const char *whose(const struct vault_link *l)
{
	return l->token_file ? l->token_file : "the AppRole";
}

/* *bad: get another token. */
static enum kms_status refused(struct vault_link *l, const struct vault_request *req, const struct vault_answer *a,
    const char *header, bool worked, bool *bad, struct kms_err *err)
{
	enum verdict verdict = TOKEN_UNKNOWN;

	*bad = false;
	if (a->own && strcasestr(a->text, "permission denied"))
		verdict = examine(l, a, header, req->deadline);
	else
		return vault_fail(a, worked, err);
	switch (verdict) {
	case TOKEN_GOOD:
		(void)kms_fail(err, worked ? KMS_DENIED : KMS_CONFIG, "PermissionDenied",
		    "%s: the token is good, but its policies do not allow %s of '%.150s'", a->text,
		    !strcmp(req->method, "GET") ? "read" : "update", req->path);
		break;
	case TOKEN_BAD:
		*bad = true;
		(void)kms_fail(err, KMS_CONFIG, "InvalidToken",
		    "the server does not know the token of %.120s, or no longer", whose(l));
		break;
	case TOKEN_UNKNOWN:
		(void)kms_fail(err, KMS_DOWN, "PermissionDenied",
		    "%s, but the server does not say whether for the token's sake", a->text);
		break;
	}
	err->http = a->http;
	return err->status;
}

enum kms_status vault_call(
    struct vault_link *l, const struct vault_request *req, bool worked, struct vault_answer *out, struct kms_err *err)
{
	bool bad = true;
	enum kms_status status = KMS_CONFIG;

	for (int tries = 0; bad && tries < 2; tries++) {
		__attribute__((cleanup(free_secret))) char *header = NULL;
		uint64_t serial;

		vault_answer_free(out);
		status = vault_token_get(l, req->deadline, &header, &serial, err);
		if (status == KMS_OK)
			status = vault_send(l, req, header, out, err);
		if (status == KMS_OK && success(out) && !out->body)
			status = kms_fail(err, KMS_DOWN, "MalformedAnswer", "the answer is not a JSON object");
		if (status != KMS_OK || success(out))
			return status;
		if (out->http != 403)
			return vault_fail(out, worked, err);
		status = refused(l, req, out, header, worked, &bad, err);
		if (bad)
			vault_token_bad(l, serial);
		else if (!strcmp(err->code, "PermissionDenied"))
			vault_token_denied(l, serial);
	}
	return status;
}
