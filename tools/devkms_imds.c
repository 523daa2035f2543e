/* devkms_imds.c — credentials without a signature: the instance metadata service, version 2, and the endpoint that
 * containers of ECS and EKS are given.
 *
 * The session token says when it ends and nothing else; credentials are sessions like those of STS. Each document given
 * out, or refused, is counted like an operation. */
#include <errno.h>
#include <stdio.h>

#include "devkms.h"
#include "io.h"
#include "jsonio.h"

#define ROLE      "byokfs-devkms"
#define LISTING   "/latest/meta-data/iam/security-credentials/"
#define SESSION_S 21600

static int reply_text(struct dk_reply *r, unsigned int status, const char *text)
{
	r->status = status;
	r->type = "text/plain";
	r->body = strdup(text);
	r->len = r->body ? strlen(r->body) : 0;
	return r->body ? 0 : -ENOMEM;
}

static int issue_token(struct devkms *srv, const struct dk_request *req, struct dk_reply *r)
{
	const char *ttl = dk_req_header(req, "x-aws-ec2-metadata-token-ttl-seconds");
	long seconds = ttl ? strtol(ttl, NULL, 10) : 0;
	char text[32];

	if (seconds < 1 || seconds > SESSION_S)
		return reply_text(r, 400, "");
	(void)snprintf(text, sizeof(text), "imds %lld", (long long)io_unix_time() + seconds);
	r->status = 200;
	r->type = "text/plain";
	r->body = dk_token_seal(srv->store.token_key, text);
	r->len = r->body ? strlen(r->body) : 0;
	return r->body ? 0 : -ENOMEM;
}

static bool token_good(struct devkms *srv, const struct dk_request *req)
{
	const char *token = dk_req_header(req, "x-aws-ec2-metadata-token");
	CLEANUP_FREE char *text = token ? dk_token_open(srv->store.token_key, token) : NULL;

	return text && strncmp(text, "imds ", 5) == 0 && strtoll(text + 5, NULL, 10) > io_unix_time();
}

/* What the test or trial wants of both services now. */
static struct dk_metadata wanted(struct devkms *srv)
{
	LOCK_SCOPE(&srv->store.lock);
	return srv->metadata;
}

static int credentials_document(struct devkms *srv, const char *role, const struct dk_metadata *m, json_t **out)
{
	int64_t end = io_unix_time() + (m->session_seconds ? m->session_seconds : SESSION_S);
	struct dk_session s = { .token = NULL };
	char arn[DK_PRINCIPAL], now[21];

	(void)snprintf(arn, sizeof(arn), "arn:aws:sts::%s:assumed-role/%s/i-0123456789abcdef0", srv->account, role);
	if (dk_session_new(srv, arn, "AROADEVKMS00000000000:i-0123456789abcdef0", end, &s) < 0)
		return -ENOMEM;
	io_utc(now, io_unix_time());
	*out = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "Code", "Success", "LastUpdated", now, "Type",
	    "AWS-HMAC", "AccessKeyId", s.access_key, "SecretAccessKey", s.secret, "Token", s.token, "Expiration",
	    s.expiration);
	free(s.token);
	explicit_bzero(&s, sizeof(s));
	return 0;
}

static int issue_credentials(struct devkms *srv, const char *operation, const char *role, struct dk_reply *r)
{
	const struct dk_metadata m = wanted(srv);
	struct dk_call c = { .srv = srv, .operation = operation };
	json_t *o = NULL;
	int err = 0;

	if (m.status)
		err = reply_text(r, (unsigned int)m.status, "");
	else if (m.code[0])
		err = dk_reply_json(r, 200, json_pack("{s:s, s:s}", "Code", m.code, "Message", "as it was asked for"));
	else
		err = credentials_document(srv, role, &m, &o);
	if (o)
		err = dk_reply_json(r, 200, o);
	dk_stats_add(&srv->stats, &c, m.status ? "status" : m.code[0] ? m.code : "ok");
	return err;
}

/* ECS and EKS: GET, with the Authorization header that was asked for. */
int dk_container_run(struct devkms *srv, const struct dk_request *req, struct dk_reply *r)
{
	const struct dk_metadata m = wanted(srv);
	const char *got = dk_req_header(req, "authorization");

	if (strcmp(req->method, "GET") != 0)
		return reply_text(r, 405, "");
	if (m.container_token[0] && (!got || strcmp(got, m.container_token) != 0))
		return dk_reply_json(
		    r, 401, json_pack("{s:s, s:s}", "code", "AccessDenied", "message", "no such token"));
	return issue_credentials(srv, "ContainerCredentials", "byokfs-container", r);
}

int dk_imds_run(struct devkms *srv, const struct dk_request *req, struct dk_reply *r)
{
	if (strcmp(req->path, "/latest/api/token") == 0)
		return strcmp(req->method, "PUT") == 0 ? issue_token(srv, req, r) : reply_text(r, 405, "");
	if (strcmp(req->method, "GET") != 0)
		return reply_text(r, 405, "");
	if (!token_good(srv, req))
		return reply_text(r, 401, "");
	if (strcmp(req->path, LISTING) == 0)
		return reply_text(r, 200, ROLE);
	if (strcmp(req->path, LISTING ROLE) == 0)
		return issue_credentials(srv, "InstanceCredentials", ROLE, r);
	if (strcmp(req->path, "/latest/meta-data/placement/region") == 0)
		return reply_text(r, 200, srv->region);
	return reply_text(r, 404, "");
}
