/* http_transfer.c — one attempt on one easy handle.
 *
 * Hides: libcurl's options and error codes, and the bounds on what comes back. The receive buffer of libcurl
 * is wiped as soon as the body has been copied out of it. A dead reused connection is tried again by libcurl
 * itself, on a fresh one, as long as no byte of an answer has come; http.h promises that, and test_http.c
 * holds libcurl to it. Names are looked up by a thread of libcurl's that nobody waits for once the time is up: it ends
 * when the resolver gives up, and owns all that it touches until then. */
#include "http_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "io.h"
#include "secret.h"

#define BODY_FIRST   4096u
#define HEADERS_MAX  65536u
#define IDLE_SECONDS 60L

/* One attempt. */
struct transfer {
	struct http_response *out;
	size_t room, header_bytes;
	bool too_large, no_memory;
	char error[CURL_ERROR_SIZE];
};

/* ---- what comes back ---- */

static bool grow_body(struct transfer *t, size_t need)
{
	size_t room = t->room ? t->room : BODY_FIRST;
	uint8_t *bigger;

	while (room < need)
		room *= 4;
	bigger = secret_alloc(room);
	if (!bigger) {
		t->no_memory = true;
		return false;
	}
	if (t->out->len)
		memcpy(bigger, t->out->body, t->out->len);
	secret_free(t->out->body);
	t->out->body = bigger;
	t->room = room;
	return true;
}

static size_t on_body(char *data, size_t one, size_t n, void *arg)
{
	struct transfer *t = arg;
	size_t need = t->out->len + n + 1;

	(void)one;
	t->too_large = t->too_large || need > HTTP_RESPONSE_MAX;
	if (t->too_large || (need > t->room && !grow_body(t, need))) {
		explicit_bzero(data, n);
		return 0;
	}
	memcpy(t->out->body + t->out->len, data, n);
	t->out->len += n;
	explicit_bzero(data, n);
	return n;
}

static size_t on_header(char *data, size_t one, size_t n, void *arg)
{
	struct transfer *t = arg;

	(void)data;
	(void)one;
	t->header_bytes += n;
	t->too_large = t->too_large || t->header_bytes > HEADERS_MAX;
	return t->too_large ? 0 : n;
}

/* Printable ASCII only: it goes to the log. */
static void copy_header(char *out, size_t size, CURL *easy, const char *name)
{
	struct curl_header *header;
	size_t n = 0;

	if (!curl_easy_header(easy, name, 0, CURLH_HEADER, -1, &header))
		for (const char *c = header->value; *c && n + 1 < size; c++)
			out[n++] = *c > ' ' && *c <= '~' ? *c : '?';
	out[n] = '\0';
}

static void read_answer(struct http_response *out, CURL *easy, bool tls)
{
	struct curl_header *date;
	time_t t = -1;

	(void)curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &out->status);
	copy_header(out->request_id, sizeof(out->request_id), easy, "x-amzn-RequestId");
	copy_header(out->error_type, sizeof(out->error_type), easy, "x-amzn-ErrorType");
	if (!curl_easy_header(easy, "Date", 0, CURLH_HEADER, -1, &date))
		t = curl_getdate(date->value, NULL);
	out->date = t > 0 ? (int64_t)t : 0;
	out->tls_verified = tls;
}

static int connect_error(CURL *easy)
{
	long os = 0;

	(void)curl_easy_getinfo(easy, CURLINFO_OS_ERRNO, &os);
	return os == ECONNREFUSED ? -ECONNREFUSED : -EHOSTUNREACH;
}

static int error_of(CURLcode code, CURL *easy, const struct transfer *t)
{
	if (t->too_large)
		return -EFBIG;
	if (t->no_memory)
		return -ENOMEM;
	switch (code) {
	case CURLE_OPERATION_TIMEDOUT:
		return -ETIMEDOUT;
	case CURLE_COULDNT_CONNECT:
		return connect_error(easy);
	case CURLE_COULDNT_RESOLVE_HOST:
	case CURLE_COULDNT_RESOLVE_PROXY:
		return -EHOSTUNREACH;
	case CURLE_ABORTED_BY_CALLBACK:
		return -ECANCELED;
	case CURLE_FILESIZE_EXCEEDED:
		return -EFBIG;
	case CURLE_PEER_FAILED_VERIFICATION:
	case CURLE_SSL_ISSUER_ERROR:
		return -EKEYREJECTED;
	case CURLE_SSL_CACERT_BADFILE:
	case CURLE_URL_MALFORMAT:
	case CURLE_UNSUPPORTED_PROTOCOL:
		return -EINVAL;
	case CURLE_SSL_CONNECT_ERROR:
	case CURLE_SSL_CIPHER:
	case CURLE_WEIRD_SERVER_REPLY:
		return -EPROTO;
	case CURLE_OUT_OF_MEMORY:
		return -ENOMEM;
	default:
		return -EIO;
	}
}

#define SET(option, value)                                          \
	do {                                                        \
		if (!rc)                                            \
			rc = curl_easy_setopt(easy, option, value); \
	} while (0)

static CURLcode set_connection(CURL *easy, const struct http *h, bool tls)
{
	CURLcode rc = CURLE_OK;

	SET(CURLOPT_SHARE, h->share);
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_QUICK_EXIT, 1L); /* else a name server's silence outlasts every deadline */
	SET(CURLOPT_PROTOCOLS_STR, tls ? "https" : "http");
	SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
	SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	if (h->ca_bundle)
		SET(CURLOPT_CAINFO, h->ca_bundle);
	SET(CURLOPT_MAXAGE_CONN, IDLE_SECONDS);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);
	if (h->user_agent)
		SET(CURLOPT_USERAGENT, h->user_agent);
	return rc;
}

/* Addresses that may be spoken to in the clear are this host's own: no proxy has business there. */
static CURLcode set_proxy(CURL *easy, const struct http *h, bool direct)
{
	CURLcode rc = CURLE_OK;

	if (direct)
		SET(CURLOPT_NOPROXY, "*");
	else if (h->proxy)
		SET(CURLOPT_PROXY, h->proxy);
	return rc;
}

static CURLcode set_request(CURL *easy, const struct http_call *call)
{
	const struct http_request *req = call->req;
	CURLcode rc = CURLE_OK;

	SET(CURLOPT_CURLU, call->url);
	SET(CURLOPT_HTTPHEADER, call->headers);
	if (!strcmp(req->method, "GET")) {
		SET(CURLOPT_HTTPGET, 1L);
	} else {
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)(req->body ? req->bodylen : 0));
		SET(CURLOPT_POSTFIELDS, req->body ? req->body : ""); /* not copied */
		if (strcmp(req->method, "POST"))
			SET(CURLOPT_CUSTOMREQUEST, req->method);
	}
	return rc;
}

/* libcurl asks about once a second while nothing happens. */
static int on_progress(void *arg, curl_off_t to_come, curl_off_t come, curl_off_t to_go, curl_off_t gone)
{
	const struct http_request *req = arg;

	(void)to_come;
	(void)come;
	(void)to_go;
	(void)gone;
	return atomic_load(req->cancel);
}

static CURLcode set_cancel(CURL *easy, const struct http_request *req)
{
	CURLcode rc = CURLE_OK;

	if (!req->cancel)
		return rc;
	SET(CURLOPT_NOPROGRESS, 0L);
	SET(CURLOPT_XFERINFOFUNCTION, on_progress);
	SET(CURLOPT_XFERINFODATA, req);
	return rc;
}

static CURLcode set_answer(CURL *easy, struct transfer *t, const struct http *h, uint64_t ms)
{
	CURLcode rc = CURLE_OK;

	SET(CURLOPT_WRITEFUNCTION, on_body);
	SET(CURLOPT_WRITEDATA, t);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_HEADERDATA, t);
	SET(CURLOPT_ERRORBUFFER, t->error);
	SET(CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)HTTP_RESPONSE_MAX);
	SET(CURLOPT_TIMEOUT_MS, (long)ms);
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long)(ms < h->connect_timeout_ms ? ms : h->connect_timeout_ms));
	return rc;
}

int http_transfer(struct http *h, CURL *easy, const struct http_call *call, struct http_response *out, char *why)
{
	uint64_t ms = http_remaining_ms(call->req->deadline), begun = io_boot_ms();
	struct transfer t = { .out = out };
	CURLcode rc = CURLE_OPERATION_TIMEDOUT;
	int r = 0;

	if (ms > INT32_MAX)
		ms = INT32_MAX;
	if (ms)
		rc = set_connection(easy, h, call->tls);
	if (!rc)
		rc = set_proxy(easy, h, call->req->no_proxy || !call->tls);
	if (!rc)
		rc = set_request(easy, call);
	if (!rc)
		rc = set_cancel(easy, call->req);
	if (!rc)
		rc = set_answer(easy, &t, h, ms);
	if (!rc && !grow_body(&t, 1))
		rc = CURLE_OUT_OF_MEMORY;
	if (!rc)
		rc = curl_easy_perform(easy);
	if (rc) {
		r = error_of(rc, easy, &t);
		snprintf(why, HTTP_WHY, "%.158s",
		    t.too_large    ? "the answer is too large"
		        : *t.error ? t.error
		                   : curl_easy_strerror(rc));
	} else
		read_answer(out, easy, call->tls);
	out->latency_ms = (uint32_t)(io_boot_ms() - begun);
	curl_easy_reset(easy);
	return r;
}
