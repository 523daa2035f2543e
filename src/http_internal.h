/* http_internal.h — what http.c and http_transfer.c share. */
#ifndef BYOKFS_HTTP_INTERNAL_H
#define BYOKFS_HTTP_INTERNAL_H

#include <curl/curl.h>
#include <pthread.h>

#include "http.h"

#define HTTP_WHY 160u

struct http {
	pthread_mutex_t lock; /* guards idle, nidle, made; never held across a transfer */
	pthread_cond_t freed;
	CURL **idle;
	uint32_t nidle, made, max;
	CURLSH *share;
	pthread_mutex_t share_lock[CURL_LOCK_DATA_LAST];
	_Atomic uint32_t connect_timeout_ms;
	char *ca_bundle, *proxy, *user_agent;
};

/* A request that has been checked. */
struct http_call {
	const struct http_request *req;
	CURLU *url;
	struct curl_slist *headers;
	bool tls;
};

/* 0 when the deadline has passed. */
uint64_t http_remaining_ms(uint64_t deadline);
/* Results as http_do's. The handle is left without pointers into the caller's memory; *out may hold a partial
 * body. */
MUST_CHECK int http_transfer(struct http *, CURL *easy, const struct http_call *, struct http_response *out, char *why);

#endif
