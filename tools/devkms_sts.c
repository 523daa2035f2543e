/* devkms_sts.c — the Security Token Service: who am I, and become a role. Query protocol in, XML out.
 *
 * A session is nothing the server remembers: its token is the session's access key, secret, principal and end, sealed
 * under a key of the store. So sessions outlive a restart, as those of the real service do. */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>

#include "bytes.h"
#include "devkms.h"
#include "io.h"
#include "jsonio.h"

#define XMLNS "https://sts.amazonaws.com/doc/2011-06-15/"

/* --- credentials --- */

static int unknown_client(struct dk_call *c)
{
	return dk_fail(c, "UnrecognizedClientException", "The security token included in the request is invalid.");
}

static int find_session(struct dk_call *c, const char *access_key, const char *token, struct dk_credential *out)
{
	CLEANUP_FREE char *text = dk_token_open(c->srv->store.token_key, token);
	json_t *o = text ? jsonio_parse(text, strlen(text), DK_BODY_MAX) : NULL;
	const char *owner = jsonio_str(o, "key");
	int r = 0;

	if (text)
		sodium_memzero(text, strlen(text));
	if (!owner || strcmp(owner, access_key) != 0 ||
	    jsonio_copy(out->secret, sizeof(out->secret), o, "secret") < 0 ||
	    jsonio_copy(c->caller.arn, sizeof(c->caller.arn), o, "arn") < 0 ||
	    jsonio_copy(c->caller.user_id, sizeof(c->caller.user_id), o, "user") < 0)
		r = unknown_client(c);
	out->expires = json_integer_value(json_object_get(o, "expires"));
	json_decref(o);
	if (r == 0 && c->now >= out->expires)
		r = dk_fail(c, "ExpiredTokenException", "The security token included in the request is expired");
	return r;
}

int dk_credential_find(struct dk_call *c, const char *access_key, const char *token, struct dk_credential *out)
{
	(void)snprintf(c->caller.access_key, sizeof(c->caller.access_key), "%s", access_key);
	if (token)
		return find_session(c, access_key, token, out);
	if (strcmp(access_key, c->srv->access_key) != 0)
		return unknown_client(c);
	(void)snprintf(out->secret, sizeof(out->secret), "%s", c->srv->secret);
	(void)snprintf(c->caller.arn, sizeof(c->caller.arn), "arn:aws:iam::%s:user/devkms", c->srv->account);
	(void)snprintf(c->caller.user_id, sizeof(c->caller.user_id), "AIDADEVKMS00000000000");
	out->expires = 0;
	return 0;
}

int dk_session_new(struct devkms *srv, const char *arn, const char *user_id, int64_t expires, struct dk_session *out)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
	uint8_t raw[30];
	json_t *o;
	char *text;

	(void)snprintf(out->access_key, sizeof(out->access_key), "ASIA");
	for (size_t i = 4; i < 20; i++)
		out->access_key[i] = alphabet[randombytes_uniform(32)];
	out->access_key[20] = '\0';
	randombytes_buf(raw, sizeof(raw));
	(void)bytes_b64(B64_STD, out->secret, raw, sizeof(raw));
	sodium_memzero(raw, sizeof(raw));
	io_utc(out->expiration, expires);
	o = json_pack("{s:s, s:s, s:s, s:s, s:I}", "key", out->access_key, "secret", out->secret, "arn", arn, "user",
	    user_id, "expires", (json_int_t)expires);
	text = jsonio_print(o);
	json_decref(o);
	out->token = text ? dk_token_seal(srv->store.token_key, text) : NULL;
	if (text)
		sodium_memzero(text, strlen(text));
	free(text);
	return out->token ? 0 : -ENOMEM;
}

/* --- the form --- */

static int hex_digit(char c)
{
	const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c | 0x20) : NULL;

	return at ? (int)(at - digits) : -1;
}

/* The decoded value of a field, malloc'ed; NULL when absent, malformed or with a NUL inside. */
static char *form_get(const struct dk_request *r, const char *name)
{
	size_t n = strlen(name), len;
	const char *p = r->body, *v = NULL;
	char *out, *w;

	for (; p; p = strchr(p, '&'), p = p ? p + 1 : NULL) {
		if (strncmp(p, name, n) == 0 && p[n] == '=') {
			v = p + n + 1;
			break;
		}
	}
	if (!v)
		return NULL;
	len = strcspn(v, "&");
	w = out = malloc(len + 1);
	for (size_t i = 0; out && i < len; i++) {
		int hi = -1, lo = -1;

		if (v[i] != '%') {
			*w++ = v[i] == '+' ? ' ' : v[i];
			continue;
		}
		if (i + 2 < len) {
			hi = hex_digit(v[i + 1]);
			lo = hex_digit(v[i + 2]);
		}
		if (hi < 0 || lo < 0 || hi + lo == 0) {
			free(out);
			return NULL;
		}
		*w++ = (char)(hi << 4 | lo);
		i += 2;
	}
	if (out)
		*w = '\0';
	return out;
}

const char *dk_sts_operation(const struct dk_request *r)
{
	static const char *const known[] = { "GetCallerIdentity", "AssumeRole", "AssumeRoleWithWebIdentity" };
	CLEANUP_FREE char *action = form_get(r, "Action");

	for (size_t i = 0; action && i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(action, known[i]) == 0)
			return known[i];
	return NULL;
}

/* --- XML --- */

static void put_escaped(FILE *f, const char *text)
{
	for (; *text; text++) {
		if (*text == '<')
			(void)fputs("&lt;", f);
		else if (*text == '>')
			(void)fputs("&gt;", f);
		else if (*text == '&')
			(void)fputs("&amp;", f);
		else if ((unsigned char)*text >= ' ')
			(void)fputc(*text, f);
	}
}

static void put(FILE *f, const char *element, const char *value)
{
	(void)fprintf(f, "<%s>", element);
	put_escaped(f, value);
	(void)fprintf(f, "</%s>", element);
}

static FILE *open_reply(struct dk_reply *r, unsigned int status)
{
	r->status = status;
	r->type = "text/xml";
	r->body = NULL;
	r->len = 0;
	return open_memstream(&r->body, &r->len);
}

static const struct {
	const char *kms, *sts;
	unsigned int status;
} names[] = {
	{ "AccessDeniedException", "AccessDenied", 403 },
	{ "ExpiredTokenException", "ExpiredToken", 403 },
	{ "IncompleteSignatureException", "IncompleteSignature", 400 },
	{ "InvalidSignatureException", "SignatureDoesNotMatch", 403 },
	{ "MissingAuthenticationTokenException", "MissingAuthenticationToken", 403 },
	{ "ThrottlingException", "Throttling", 400 },
	{ "UnrecognizedClientException", "InvalidClientTokenId", 403 },
	{ "ValidationException", "ValidationError", 400 },
};

int dk_sts_error(const struct dk_call *c, struct dk_reply *r)
{
	const char *type = c->err.type;
	unsigned int status = c->err.status;
	FILE *f;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(type, names[i].kms) == 0) {
			type = names[i].sts;
			status = status == 400 ? names[i].status : status;
			break;
		}
	}
	f = open_reply(r, status);
	if (!f)
		return -ENOMEM;
	(void)fprintf(
	    f, "<ErrorResponse xmlns=\"" XMLNS "\"><Error><Type>%s</Type>", status >= 500 ? "Receiver" : "Sender");
	put(f, "Code", type);
	put(f, "Message", c->err.message);
	(void)fputs("</Error>", f);
	put(f, "RequestId", c->request_id);
	(void)fputs("</ErrorResponse>\n", f);
	(void)fclose(f);
	return 0;
}

static void begin_result(FILE *f, const char *operation)
{
	(void)fprintf(f, "<%sResponse xmlns=\"" XMLNS "\"><%sResult>", operation, operation);
}

static void end_result(FILE *f, const struct dk_call *c)
{
	(void)fprintf(f, "</%sResult><ResponseMetadata><RequestId>%s</RequestId></ResponseMetadata></%sResponse>\n",
	    c->operation, c->request_id, c->operation);
	(void)fclose(f);
}

/* --- the operations --- */

static int caller_identity(struct dk_call *c, struct dk_reply *reply)
{
	int r = dk_sigv4_check(c, "sts");
	FILE *f = r == 0 ? open_reply(reply, 200) : NULL;

	if (!f)
		return r < 0 ? r : -ENOMEM;
	begin_result(f, c->operation);
	put(f, "Arn", c->caller.arn);
	put(f, "UserId", c->caller.user_id);
	put(f, "Account", c->srv->account);
	end_result(f, c);
	return 0;
}

struct assume {
	char *role, *session, *external_id, *token, *duration;
	int64_t seconds;
};

static void assume_free(struct assume *a)
{
	free(a->role);
	free(a->session);
	free(a->external_id);
	free(a->token);
	free(a->duration);
}

static int assume_parse(struct dk_call *c, struct assume *a)
{
	static const char name_chars[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+=,.@-";
	char *end = NULL;
	size_t n;

	a->role = form_get(c->req, "RoleArn");
	a->session = form_get(c->req, "RoleSessionName");
	a->external_id = form_get(c->req, "ExternalId");
	a->token = form_get(c->req, "WebIdentityToken");
	a->duration = form_get(c->req, "DurationSeconds");
	if (!a->role || strncmp(a->role, "arn:aws:iam::", 13) != 0 || strlen(a->role) >= DK_PRINCIPAL ||
	    !strstr(a->role, ":role/"))
		return dk_fail(c, "ValidationException", "RoleArn is missing or not the ARN of a role");
	n = a->session ? strlen(a->session) : 0;
	if (n < 2 || n > 64 || strspn(a->session, name_chars) != n)
		return dk_fail(c, "ValidationException",
		    "1 validation error detected: Value at 'roleSessionName' failed to satisfy "
		    "constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*");
	a->seconds = a->duration ? strtol(a->duration, &end, 10) : 3600;
	if ((end && *end != '\0') || a->seconds < 900 || a->seconds > 43200)
		return dk_fail(c, "ValidationException",
		    "1 validation error detected: Value '%.20s' at 'durationSeconds' failed to satisfy "
		    "constraint: Member must have value between 900 and 43200",
		    a->duration);
	return 0;
}

static int no_trust(struct dk_call *c, const char *role)
{
	if (c->caller.arn[0] == '\0')
		return dk_fail(c, "AccessDeniedException", "Not authorized to perform sts:%s", c->operation);
	return dk_fail(c, "AccessDeniedException", "User: %s is not authorized to perform: sts:%s on resource: %s",
	    c->caller.arn, c->operation, role);
}

static bool same_secret(const char *want, const char *got)
{
	return got && strlen(want) == strlen(got) && bytes_equal(want, got, strlen(want));
}

/* Does the role table let this caller in? */
static int assume_permit(struct dk_call *c, struct assume *a)
{
	struct dk_store *s = &c->srv->store;
	const struct dk_role *role;
	bool web = c->caller.arn[0] == '\0';

	LOCK_SCOPE(&s->lock);
	role = dk_role_find(s, a->role);
	if (!role || c->fault->deny_access)
		return no_trust(c, a->role);
	if (web && !role->web_identity_token)
		return no_trust(c, a->role);
	if (web && !same_secret(role->web_identity_token, a->token))
		return dk_fail(c, "InvalidIdentityToken", "The web identity token is not the one this role trusts");
	if (!web && role->external_id && !same_secret(role->external_id, a->external_id))
		return no_trust(c, a->role);
	if (role->session_seconds > 0)
		a->seconds = role->session_seconds;
	return 0;
}

static void put_credentials(FILE *f, const struct dk_session *s)
{
	(void)fputs("<Credentials>", f);
	put(f, "AccessKeyId", s->access_key);
	put(f, "SecretAccessKey", s->secret);
	put(f, "SessionToken", s->token);
	put(f, "Expiration", s->expiration);
	(void)fputs("</Credentials>", f);
}

static int assume_answer(struct dk_call *c, const struct assume *a, struct dk_reply *reply)
{
	struct dk_session s = { .token = NULL };
	char arn[DK_PRINCIPAL * 2], user_id[128], account[13];
	FILE *f = NULL;
	int r;

	(void)snprintf(account, sizeof(account), "%.12s", a->role + 13);
	(void)snprintf(
	    arn, sizeof(arn), "arn:aws:sts::%s:assumed-role/%s/%s", account, strrchr(a->role, '/') + 1, a->session);
	(void)snprintf(user_id, sizeof(user_id), "AROADEVKMS00000000000:%s", a->session);
	r = strlen(arn) < DK_PRINCIPAL ? dk_session_new(c->srv, arn, user_id, c->now + a->seconds, &s) : -E2BIG;
	if (r == 0)
		f = open_reply(reply, 200);
	if (f) {
		begin_result(f, c->operation);
		(void)fputs("<AssumedRoleUser>", f);
		put(f, "AssumedRoleId", user_id);
		put(f, "Arn", arn);
		(void)fputs("</AssumedRoleUser>", f);
		put_credentials(f, &s);
		(void)fputs("<PackedPolicySize>0</PackedPolicySize>", f);
		end_result(f, c);
	}
	free(s.token);
	sodium_memzero(&s, sizeof(s));
	if (r == -E2BIG)
		return dk_fail(c, "ValidationException", "role and session name are too long");
	return f ? 0 : -ENOMEM;
}

static int assume(struct dk_call *c, struct dk_reply *reply)
{
	bool web = strcmp(c->operation, "AssumeRoleWithWebIdentity") == 0;
	struct assume a = { .role = NULL };
	int r = web ? 0 : dk_sigv4_check(c, "sts");

	if (r == 0)
		r = assume_parse(c, &a);
	if (r == 0)
		(void)snprintf(c->key, sizeof(c->key), "%s", a.role);
	if (r == 0)
		r = assume_permit(c, &a);
	if (r == 0)
		r = assume_answer(c, &a, reply);
	assume_free(&a);
	return r;
}

int dk_sts_run(struct dk_call *c, struct dk_reply *reply)
{
	if (strcmp(c->operation, "GetCallerIdentity") == 0)
		return caller_identity(c, reply);
	if (strncmp(c->operation, "AssumeRole", 10) == 0)
		return assume(c, reply);
	return dk_fail(c, "InvalidAction", "Could not find the operation asked for, for version 2011-06-15");
}
