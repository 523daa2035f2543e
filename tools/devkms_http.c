/* devkms_http.c — hides libmicrohttpd: collects a request, sends it to KMS, STS, metadata or administration, and
 * applies the faults that concern the wire.
 *
 * One thread per connection, so that a slow or hung request delays nobody else. Stopping first wakes all that wait. */
#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <sodium.h>
#include <stdio.h>

#include "devkms.h"
#include "io.h"
#include "jsonio.h"

#define CONNECTIONS_MAX 4096u
#define HEADER_BYTES    32768u
#define STACK_BYTES     (512u << 10)

struct dk_server {
	struct MHD_Daemon *mhd;
	struct devkms *srv;
};

/* Lives from the first to the last byte of a request. */
struct incoming {
	char *body;
	size_t len;
	bool too_long;
	struct dk_request req;
};

static enum MHD_Result add_header(void *cls, enum MHD_ValueKind kind, const char *name, const char *value)
{
	struct dk_request *r = cls;

	(void)kind;
	if (r->headers == DK_HEADERS)
		return MHD_NO;
	r->header[r->headers++] = (struct dk_header){ name, value ? value : "" };
	return MHD_YES;
}

static int collect(struct incoming *in, const char *data, size_t n)
{
	char *grown;

	if (in->too_long || n > DK_BODY_MAX - in->len) {
		in->too_long = true;
		return 0;
	}
	grown = realloc(in->body, in->len + n + 1);
	if (!grown)
		return -ENOMEM;
	memcpy(grown + in->len, data, n);
	in->body = grown;
	in->len += n;
	in->body[in->len] = '\0';
	return 0;
}

static void http_date(char out[40], int64_t t)
{
	time_t tt = (time_t)t;
	struct tm tm;

	if (!gmtime_r(&tt, &tm) || strftime(out, 40, "%a, %d %b %Y %H:%M:%S GMT", &tm) == 0)
		out[0] = '\0';
}

/* Sends half of what was announced, then breaks the connection. */
static ssize_t half_body(void *cls, uint64_t pos, char *buf, size_t max)
{
	const struct dk_reply *r = cls;
	size_t half = r->len / 2, n;

	if (pos >= half)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	n = half - (size_t)pos < max ? half - (size_t)pos : max;
	memcpy(buf, r->body + pos, n);
	return (ssize_t)n;
}

static void reply_free(void *cls)
{
	struct dk_reply *r = cls;

	if (r->body)
		sodium_memzero(r->body, r->len);
	free(r->body);
	free(r);
}

/* Takes over the body. */
static struct MHD_Response *make_response(struct dk_reply *r, bool truncate)
{
	struct MHD_Response *m;
	struct dk_reply *kept;

	if (!truncate) {
		m = MHD_create_response_from_buffer(r->len, r->body, MHD_RESPMEM_MUST_FREE);
		if (m)
			r->body = NULL;
		return m;
	}
	kept = malloc(sizeof(*kept));
	if (!kept)
		return NULL;
	*kept = *r;
	r->body = NULL;
	m = MHD_create_response_from_callback(kept->len, 4096, half_body, kept, reply_free);
	if (!m)
		reply_free(kept);
	return m;
}

static enum MHD_Result send_reply(struct MHD_Connection *conn, const struct dk_call *c, struct dk_reply *r)
{
	struct MHD_Response *m = make_response(r, c && c->fault->truncate_body);
	enum MHD_Result sent = MHD_NO;
	char date[40];

	if (m) {
		http_date(date, c ? c->now : io_unix_time());
		(void)MHD_add_response_header(m, MHD_HTTP_HEADER_DATE, date);
		(void)MHD_add_response_header(m, MHD_HTTP_HEADER_CONTENT_TYPE, r->type);
		if (c && !c->fault->no_request_id)
			(void)MHD_add_response_header(m, "x-amzn-RequestId", c->request_id);
		if (c && c->fault->error_in_header && c->err.type[0])
			(void)MHD_add_response_header(m, "x-amzn-ErrorType", c->err.type);
		sent = MHD_queue_response(conn, r->status, m);
		MHD_destroy_response(m);
	}
	free(r->body);
	r->body = NULL;
	return sent;
}

static int json_error(const struct dk_call *c, struct dk_reply *r)
{
	json_t *o = json_object();
	int err;

	if (!c->fault->error_in_header)
		(void)json_object_set_new(o, "__type", json_string(c->err.type));
	/* an empty message is no member at all, as from the real service */
	if (c->err.message[0])
		(void)json_object_set_new(o, "message", json_string(c->err.message));
	err = dk_reply_json(r, c->err.status, o);
	r->type = "application/x-amz-json-1.1";
	return err;
}

static int injected_error(struct dk_call *c, struct dk_reply *r, bool *raw)
{
	const struct dk_fault *f = c->fault;

	*raw = false;
	if (!f->raw_body[0] && !f->error_type[0])
		return 0;
	if (!dk_fault_chance(f->error_rate))
		return 0;
	if (f->raw_body[0]) {
		*raw = true;
		r->status = (unsigned int)f->error_status;
		r->type = f->raw_type[0] ? f->raw_type : "text/html";
		r->body = strdup(f->raw_body);
		r->len = r->body ? strlen(r->body) : 0;
		return -EPERM;
	}
	(void)dk_fail(c, f->error_type, "%s", f->error_message);
	c->err.status = (unsigned int)f->error_status;
	return -EPERM;
}

/* One call of KMS or STS, from faults to statistics. -ECANCELED: say nothing, close. */
static int serve(struct dk_call *c, bool sts, int fd, struct dk_reply *r)
{
	bool raw = false;
	int err = dk_fault_wait(&c->srv->faults, c->fault, fd);

	if (err < 0 || dk_fault_chance(c->fault->drop_rate)) {
		dk_stats_add(&c->srv->stats, c, err < 0 ? "hung" : "dropped");
		return -ECANCELED;
	}
	err = injected_error(c, r, &raw);
	if (err == 0 && sts)
		err = dk_sts_run(c, r);
	else if (err == 0)
		err = dk_kms_run(c);
	if (err < 0 && err != -EPERM)
		return -ECANCELED;
	if (err == 0 && !sts) {
		dk_fault_spoil(c);
		err = dk_reply_json(r, 200, json_incref(c->out));
		r->type = "application/x-amz-json-1.1";
	} else if (err < 0 && !raw) {
		err = sts ? dk_sts_error(c, r) : json_error(c, r);
	}
	dk_stats_add(&c->srv->stats, c, raw ? "raw" : c->err.type[0] ? c->err.type : "ok");
	dk_fault_spoil_body(c->fault, r);
	return err < 0 && !raw ? -ECANCELED : 0;
}

static enum MHD_Result run_call(struct devkms *srv, struct MHD_Connection *conn, const struct dk_request *req)
{
	static const struct dk_fault none = { .plaintext_size = -1 };
	const char *target = dk_req_header(req, "x-amz-target");
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct dk_fault fault;
	struct dk_call c = { .srv = srv, .req = req, .fault = &none };
	struct dk_reply r = { .type = "text/plain" };
	enum MHD_Result result = MHD_NO;
	bool sts = target == NULL;
	int err;

	c.operation = sts ? dk_sts_operation(req) : dk_kms_operation(target);
	dk_uuid(c.request_id);
	if (dk_fault_pick(&srv->faults, c.operation ? c.operation : "", req->body ? req->body : "", &fault))
		c.fault = &fault;
	c.now = io_unix_time() + c.fault->clock_skew_s;
	if (!c.operation)
		c.operation = "unknown";
	c.out = json_object();
	err = serve(&c, sts, info ? info->connect_fd : -1, &r);
	if (err == 0)
		result = send_reply(conn, &c, &r);
	json_decref(c.in);
	json_decref(c.out);
	free(r.body);
	return result;
}

static enum MHD_Result dispatch(struct devkms *srv, struct MHD_Connection *conn, const struct dk_request *req)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct dk_reply r = { .type = "text/plain" };
	int err;

	if (strcmp(req->method, "POST") == 0 && strcmp(req->path, "/") == 0)
		return run_call(srv, conn, req);
	if (strcmp(req->path, "/v1/credentials") == 0 || strncmp(req->path, "/v2/credentials", 15) == 0)
		err = dk_container_run(srv, req, &r);
	else if (strncmp(req->path, "/v1/", 4) == 0)
		err = dk_vault_run(srv, req, info ? info->connect_fd : -1, &r);
	else if (strncmp(req->path, "/_devkms/vault/", 15) == 0)
		err = dk_vault_admin(srv, req, &r);
	else if (strncmp(req->path, "/_devkms/", 9) == 0)
		err = dk_admin_run(srv, req, &r);
	else if (strncmp(req->path, "/latest/", 8) == 0)
		err = dk_imds_run(srv, req, &r);
	else
		err = dk_reply_json(&r, 404, json_pack("{s:s}", "__type", "UnknownOperationException"));
	return err < 0 ? MHD_NO : send_reply(conn, NULL, &r);
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
    const char *version, const char *data, size_t *size, void **state)
{
	struct devkms *srv = cls;
	struct incoming *in = *state;
	struct dk_reply r = { .type = "text/plain" };

	(void)version;
	if (!in) {
		in = calloc(1, sizeof(*in));
		*state = in;
		return in && collect(in, "", 0) == 0 ? MHD_YES : MHD_NO;
	}
	if (*size > 0) {
		int err = collect(in, data, *size);

		*size = 0;
		return err < 0 ? MHD_NO : MHD_YES;
	}
	in->req = (struct dk_request){ .method = method, .path = url, .body = in->body, .len = in->len };
	(void)MHD_get_connection_values(conn, MHD_HEADER_KIND, add_header, &in->req);
	in->req.query = MHD_get_connection_values(conn, MHD_GET_ARGUMENT_KIND, NULL, NULL) > 0;
	in->req.since = MHD_lookup_connection_value(conn, MHD_GET_ARGUMENT_KIND, "since");
	in->req.last = MHD_lookup_connection_value(conn, MHD_GET_ARGUMENT_KIND, "last");
	if (in->too_long || in->req.headers == DK_HEADERS) {
		if (dk_reply_json(&r, 413, json_pack("{s:s}", "__type", "RequestEntityTooLargeException")) < 0)
			return MHD_NO;
		return send_reply(conn, NULL, &r);
	}
	return dispatch(srv, conn, &in->req);
}

static void completed(void *cls, struct MHD_Connection *conn, void **state, enum MHD_RequestTerminationCode code)
{
	struct incoming *in = *state;

	(void)cls;
	(void)conn;
	(void)code;
	if (!in)
		return;
	if (in->body)
		sodium_memzero(in->body, in->len);
	free(in->body);
	free(in);
	*state = NULL;
}

int dk_server_start(struct devkms *srv, uint32_t address, uint16_t port, struct dk_server **out, uint16_t *bound)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(address) };
	struct dk_server *s = calloc(1, sizeof(*s));
	const union MHD_DaemonInfo *info;

	if (!s)
		return -ENOMEM;
	s->srv = srv;
	errno = 0;
	s->mhd = MHD_start_daemon(MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL |
	        MHD_USE_ITC | MHD_USE_SUPPRESS_DATE_NO_CLOCK,
	    port, NULL, NULL, handle, srv, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&at, MHD_OPTION_CONNECTION_LIMIT,
	    CONNECTIONS_MAX, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_BYTES, MHD_OPTION_THREAD_STACK_SIZE,
	    (size_t)STACK_BYTES, MHD_OPTION_NOTIFY_COMPLETED, completed, NULL, MHD_OPTION_END);
	info = s->mhd ? MHD_get_daemon_info(s->mhd, MHD_DAEMON_INFO_BIND_PORT) : NULL;
	if (!info) {
		int err = errno;

		if (s->mhd)
			MHD_stop_daemon(s->mhd);
		free(s);
		return err ? -err : -EADDRINUSE;
	}
	*bound = info->port;
	*out = s;
	return 0;
}

void dk_server_stop(struct dk_server *s)
{
	if (!s)
		return;
	dk_faults_stop(&s->srv->faults);
	MHD_stop_daemon(s->mhd);
	free(s);
}
