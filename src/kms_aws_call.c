/* kms_aws_call.c — one signed request to AWS KMS, and what its answer means.
 *
 * Hides: headers and signature, the shapes an error may have, and the two repairs that are tried once:
 * credentials are read again when the service calls them expired or unknown, and the clock used for signing
 * is corrected when the service says so. That correction never reaches a lease or a deadline. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kms_aws_internal.h"
#include "secret.h"

#define CONTENT_TYPE "application/x-amz-json-1.1"
#define WHY          200u

/* ---- sending ---- */

/* Header lines as http.c wants them; the token's is in secret memory. */
struct lines {
	char host[AWS_HOST_MAX + 8], target[64], date[40], authorization[1100];
	char *token;
	const char *list[7];
};

static void free_lines(struct lines *l)
{
	secret_free(l->token);
	explicit_bzero(l->authorization, sizeof(l->authorization));
}

static int make_lines(struct lines *l, const struct aws_endpoint *at, const char *target,
    const struct sigv4_signature *sig, const char *token)
{
	size_t n = 0;

	snprintf(l->host, sizeof(l->host), "Host: %s", at->host);
	snprintf(l->target, sizeof(l->target), "X-Amz-Target: %.48s", target);
	snprintf(l->date, sizeof(l->date), "X-Amz-Date: %s", sig->amz_date);
	snprintf(l->authorization, sizeof(l->authorization), "Authorization: %s", sig->authorization);
	l->list[n++] = l->host;
	l->list[n++] = "Content-Type: " CONTENT_TYPE;
	l->list[n++] = l->target;
	l->list[n++] = l->date;
	l->list[n++] = l->authorization;
	if (token) {
		size_t size = strlen(token) + sizeof("X-Amz-Security-Token: ");

		l->token = secret_alloc(size);
		if (!l->token)
			return -ENOMEM;
		snprintf(l->token, size, "X-Amz-Security-Token: %s", token);
		l->list[n++] = l->token;
	}
	return 0;
}

static int sign(struct sigv4_signature *sig, struct aws *a, const struct aws_endpoint *at, const char *target,
    const char *body, const struct sigv4_credentials *cred)
{
	const struct sigv4_header header[] = { { "Host", at->host }, { "Content-Type", CONTENT_TYPE },
		{ "X-Amz-Target", target } };
	const struct sigv4_request req = { .method = "POST",
		.path = at->path,
		.query = "",
		.header = header,
		.nheader = 3,
		.body = body,
		.bodylen = strlen(body),
		.region = at->region,
		.service = "kms",
		.time = awsclock_now(&a->clock) };

	return sigv4_sign(sig, &req, cred);
}

static void put_credentials(struct sigv4_credentials **cred)
{
	awscred_put(*cred);
}

/* STS refusing the role is the owner refusing: no less a denial than the KMS's own. */
static enum kms_status no_credentials(struct kms_err *err, int r, const char *why)
{
	if (r == -EACCES)
		return kms_fail(err, KMS_DENIED, "AccessDenied", "%s", why);
	if (r == -ETIMEDOUT)
		return kms_fail(err, KMS_DOWN, "NoCredentialsInTime", "%s", why);
	return kms_fail(err, r == -ENOMEM ? KMS_DOWN : KMS_CONFIG, "NoCredentials", "%s", why);
}

/* KMS_OK when any HTTP answer came. */
static enum kms_status send_request(struct aws *a, const struct aws_call *call, const char *body,
    struct http_response *resp, enum aws_reach *reach, struct kms_err *err)
{
	__attribute__((cleanup(put_credentials))) struct sigv4_credentials *cred = NULL;
	__attribute__((cleanup(free_lines))) struct lines lines = { .token = NULL };
	struct sigv4_signature sig;
	char target[48], why[WHY] = "";
	int r = awscred_get(a->cred, call->deadline, &cred, why);
	struct http_request req = { .method = "POST",
		.url = call->at->url,
		.headers = lines.list,
		.body = body,
		.bodylen = strlen(body),
		.deadline = call->deadline };

	if (r)
		return no_credentials(err, r, why);
	snprintf(target, sizeof(target), "TrentService.%.32s", call->operation);
	r = sign(&sig, a, call->at, target, body, cred);
	if (r == -EINVAL)
		return kms_fail(err, KMS_CONFIG, "BadCredentials",
		    "the AWS credentials or the Region contain characters they cannot have");
	if (!r)
		r = make_lines(&lines, call->at, target, &sig, cred->session_token);
	if (r)
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "cannot sign: %s", strerrordesc_np(-r));
	r = http_do(a->http, &req, resp, why);
	if (r != -EBUSY && r != -ENOMEM)
		*reach = r ? AWS_SENT : AWS_REACHED;
	return r ? kms_fail_http(err, r, why) : KMS_OK;
}

/* ---- reading ---- */

/* Text from the network goes to logs and terminals. */
static void copy_printable(char *out, size_t size, const char *text)
{
	size_t n = 0;

	for (; text && *text && n + 1 < size; text++)
		out[n++] = *text >= ' ' && *text <= '~' ? *text : '?';
	out[n] = '\0';
}

/* "com.amazonaws.kms#Name:http://..." to "Name". */
static void copy_code(char *out, size_t size, const char *type)
{
	char *hash;

	copy_printable(out, size, type);
	out[strcspn(out, ":")] = '\0';
	hash = strchr(out, '#');
	if (hash)
		memmove(out, hash + 1, strlen(hash));
}

static enum kms_status read_error(const struct aws *a, const struct aws_call *call, const struct http_response *resp,
    const json_t *body, struct kms_err *err)
{
	const char *type = jsonio_str(body, "__type"), *message = jsonio_str(body, "message");
	bool worked = call->known_key && atomic_load(&a->worked);

	type = type && *type ? type : resp->error_type;
	message = message ? message : jsonio_str(body, "Message");
	memset(err, 0, sizeof(*err));
	err->http = resp->status;
	err->status = kms_aws_classify(type, message, resp->status, worked);
	copy_code(err->code, sizeof(err->code), type);
	if (!*err->code)
		snprintf(err->code, sizeof(err->code), "HTTP%ld", resp->status);
	copy_printable(err->message, sizeof(err->message), message);
	return err->status;
}

static enum kms_status read_response(
    struct aws *a, const struct aws_call *call, const struct http_response *resp, json_t **answer, struct kms_err *err)
{
	json_t *body = jsonio_parse((const char *)resp->body, resp->len, HTTP_RESPONSE_MAX);
	enum kms_status status = KMS_OK;

	if (resp->status != 200)
		status = read_error(a, call, resp, body, err);
	else if (!json_is_object(body))
		status = kms_fail(err, KMS_DOWN, "MalformedAnswer", "the answer is not a JSON object");
	if (status == KMS_OK) {
		*answer = body;
		return KMS_OK;
	}
	json_decref(body);
	err->http = resp->status;
	snprintf(err->request_id, sizeof(err->request_id), "%s", resp->request_id);
	return status;
}

/* ---- repairs ---- */

static bool one_of(const char *code, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(code, *list))
			return true;
	return false;
}

/* Is there reason to try again? */
static bool repair(
    struct aws *a, const struct aws_endpoint *at, const struct kms_err *err, const struct http_response *resp)
{
	static const char *const credentials[] = { "ExpiredTokenException", "ExpiredToken",
		"UnrecognizedClientException", "InvalidClientTokenId", "MissingAuthenticationToken",
		"MissingAuthenticationTokenException", NULL };
	if (one_of(err->code, credentials)) {
		awscred_refresh(a->cred);
		return true;
	}
	return awsclock_is_about(err->code) &&
	    awsclock_correct(&a->clock, "the KMS", resp->date, resp->tls_verified || at->plain);
}

static void free_secret(char **p)
{
	secret_free(*p);
}

/* The Region says so of this key, even where the status does not call it a denial yet. */
static bool refuses(const struct aws_call *call, const struct kms_err *err)
{
	static const char *const codes[] = { "AccessDeniedException", "NotFoundException", NULL };

	return call->known_key && one_of(err->code, codes);
}

enum kms_status aws_call(struct aws *a, const struct aws_call *call, json_t **answer, char *request_id,
    enum aws_reach *reach, struct kms_err *err)
{
	__attribute__((cleanup(free_secret))) char *body = jsonio_print_secret(call->request);
	enum kms_status status = KMS_CONFIG;
	bool again = true;

	*answer = NULL;
	if (!body)
		return kms_fail(err, KMS_CONFIG, "BadRequest", "the request cannot be written as JSON");
	for (int tries = 0; again; tries++) {
		__attribute__((cleanup(http_response_free))) struct http_response resp = { 0 };

		*reach = AWS_NOT_SENT;
		status = send_request(a, call, body, &resp, reach, err);
		if (status != KMS_OK)
			return status;
		status = read_response(a, call, &resp, answer, err);
		memcpy(request_id, resp.request_id, sizeof(resp.request_id));
		if (status != KMS_OK && refuses(call, err))
			*reach = AWS_REFUSED;
		again = status == KMS_CONFIG && !tries && repair(a, call->at, err, &resp);
	}
	return status;
}
