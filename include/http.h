/* http.h — one HTTP(S) request with one deadline and one bounded response. The only user of libcurl.
 *
 * A pool of easy handles, one per thread at a time, each keeping its connection; DNS and TLS sessions are
 * shared. HTTP/1.1, TLS >= 1.2, no redirects, no netrc; plain http only to loopback and link-local metadata
 * addresses. One immediate retry when a reused connection turns out dead. */
#ifndef BYOKFS_HTTP_H
#define BYOKFS_HTTP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

#define HTTP_RESPONSE_MAX 65536u

struct http;

struct http_params {
	uint32_t connect_timeout_ms;
	uint32_t max_handles;  /* callers beyond this wait, within their deadline */
	const char *ca_bundle; /* NULL: the system's; copied */
	const char *proxy;     /* NULL: environment; "" none; copied */
	const char *user_agent;
};

struct http_request {
	const char *method; /* "POST", "GET", "PUT" */
	const char *url;
	const char *const *headers; /* "Name: value", NULL-terminated */
	const void *body;           /* NULL for none */
	size_t bodylen;
	uint64_t deadline; /* io_boot_ms() time by which the answer must be complete */
	bool no_proxy;     /* metadata endpoints */
	const atomic_bool *cancel; /* NULL, or: once true the request ends within about a second, with -ECANCELED */
};

/* Body lives in secret memory: KMS answers carry plaintext keys. */
struct http_response {
	long status;
	char request_id[128]; /* x-amzn-RequestId, "" when absent */
	char error_type[128]; /* x-amzn-ErrorType, "" when absent */
	int64_t date;         /* Date header, Unix seconds, 0 when absent */
	uint8_t *body;        /* NUL-terminated; HTTP_RESPONSE_MAX at most */
	size_t len;
	uint32_t latency_ms;
	bool tls_verified;
};

MUST_CHECK int http_open(struct http **out, const struct http_params *);
void http_close(struct http *);
/* For requests from now on; 0: the default. */
void http_set_connect_timeout(struct http *, uint32_t ms);
/* 0 when any HTTP answer came; else -EBUSY (all handles were in use until the deadline), -ETIMEDOUT, -ECONNREFUSED,
 * -EHOSTUNREACH, -EFBIG (answer too large), -EPROTO (TLS, protocol), -EKEYREJECTED (the server's certificate is not
 * accepted), -EINVAL (URL, header or CA bundle not usable), -ECANCELED, -ENOMEM, -EIO; `why` (may be NULL, 160 bytes)
 * says it in words. Free with http_response_free(). */
MUST_CHECK int http_do(struct http *, const struct http_request *, struct http_response *out, char *why);
void http_response_free(struct http_response *);

#endif
