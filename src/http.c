/* http.c — libcurl behind one function.
 *
 * Hides: the pool of easy handles, and which addresses may be spoken to without TLS. libcurl copies headers,
 * a session token among them, and may copy bodies: its allocator wipes what it frees. */
#include "http_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "io.h"
#include "secret.h"

#define CONNECT_TIMEOUT_MS 2000u

/* ---- process-wide ---- */

static CURLcode global_result;

static void global_init(void)
{
	global_result =
	    curl_global_init_mem(CURL_GLOBAL_ALL, malloc, secret_heap_free, secret_heap_realloc, strdup, calloc);
}

static int global_ready(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	(void)pthread_once(&once, global_init);
	return global_result == CURLE_OK ? 0 : -EIO;
}

/* ---- pool ---- */

static void share_acquire(CURL *easy, curl_lock_data data, curl_lock_access access, void *arg)
{
	struct http *h = arg;

	(void)easy;
	(void)access;
	(void)pthread_mutex_lock(&h->share_lock[data]);
}

static void share_release(CURL *easy, curl_lock_data data, void *arg)
{
	struct http *h = arg;

	(void)easy;
	(void)pthread_mutex_unlock(&h->share_lock[data]);
}

/* Connections stay with their handle: libcurl 7.88 cannot share them between threads. */
static int share_open(struct http *h)
{
	h->share = curl_share_init();
	if (!h->share)
		return -ENOMEM;
	if (curl_share_setopt(h->share, CURLSHOPT_LOCKFUNC, share_acquire) ||
	    curl_share_setopt(h->share, CURLSHOPT_UNLOCKFUNC, share_release) ||
	    curl_share_setopt(h->share, CURLSHOPT_USERDATA, h) ||
	    curl_share_setopt(h->share, CURLSHOPT_SHARE, CURL_LOCK_DATA_DNS) ||
	    curl_share_setopt(h->share, CURLSHOPT_SHARE, CURL_LOCK_DATA_SSL_SESSION))
		return -EIO;
	return 0;
}

static void locks_open(struct http *h)
{

	(void)pthread_mutex_init(&h->lock, NULL);
	for (size_t i = 0; i < CURL_LOCK_DATA_LAST; i++)
		(void)pthread_mutex_init(&h->share_lock[i], NULL);
	(void)io_cond_init(&h->freed);
}

static int copy_text(char **out, const char *text)
{
	*out = text ? strdup(text) : NULL;
	return text && !*out ? -ENOMEM : 0;
}

void http_set_connect_timeout(struct http *h, uint32_t ms)
{
	h->connect_timeout_ms = ms ? ms : CONNECT_TIMEOUT_MS;
}

static int fill(struct http *h, const struct http_params *p)
{
	h->max = p->max_handles ? p->max_handles : 1;
	http_set_connect_timeout(h, p->connect_timeout_ms);
	h->idle = calloc(h->max, sizeof(*h->idle));
	if (!h->idle || copy_text(&h->ca_bundle, p->ca_bundle) || copy_text(&h->proxy, p->proxy) ||
	    copy_text(&h->user_agent, p->user_agent))
		return -ENOMEM;
	return share_open(h);
}

int http_open(struct http **out, const struct http_params *params)
{
	struct http *h;
	int r = global_ready();

	if (r)
		return r;
	h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	locks_open(h);
	r = fill(h, params);
	if (r)
		http_close(h);
	else
		*out = h;
	return r;
}

void http_close(struct http *h)
{
	if (!h)
		return;
	while (h->nidle)
		curl_easy_cleanup(h->idle[--h->nidle]);
	if (h->share)
		(void)curl_share_cleanup(h->share);
	for (size_t i = 0; i < CURL_LOCK_DATA_LAST; i++)
		(void)pthread_mutex_destroy(&h->share_lock[i]);
	(void)pthread_cond_destroy(&h->freed);
	(void)pthread_mutex_destroy(&h->lock);
	free(h->idle);
	free(h->ca_bundle);
	free(h->proxy);
	free(h->user_agent);
	free(h);
}

uint64_t http_remaining_ms(uint64_t deadline)
{
	uint64_t now = io_boot_ms();

	return deadline > now ? deadline - now : 0;
}

/* False when the deadline has passed. */
static bool wait_freed(struct http *h, uint64_t deadline)
{
	uint64_t ms = http_remaining_ms(deadline);
	struct timespec until;

	if (!ms)
		return false;
	if (ms > 1000) /* this clock stops in suspend, the deadline's does not: look again now and then */
		ms = 1000;
	until = io_after_ms(ms);
	(void)pthread_cond_timedwait(&h->freed, &h->lock, &until);
	return true;
}

static int take_handle(struct http *h, uint64_t deadline, CURL **out)
{
	{
		LOCK_SCOPE(&h->lock);
		while (!h->nidle && h->made == h->max)
			if (!wait_freed(h, deadline))
				return -EBUSY;
		*out = h->nidle ? h->idle[--h->nidle] : NULL;
		h->made += !*out;
	}
	if (!*out)
		*out = curl_easy_init();
	if (*out)
		return 0;
	LOCK_SCOPE(&h->lock);
	h->made--;
	(void)pthread_cond_signal(&h->freed);
	return -ENOMEM;
}

static void give_handle(struct http *h, CURL *easy)
{
	LOCK_SCOPE(&h->lock);
	h->idle[h->nidle++] = easy;
	(void)pthread_cond_signal(&h->freed);
}

/* ---- where to ---- */

/* Loopback, and the fixed addresses of the metadata services of AWS. */
static bool plain_allowed(const char *host)
{
	static const char *const metadata[] = { "169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254",
		"fd00:ec2::23" };
	char bare[64], text[INET6_ADDRSTRLEN];
	struct in6_addr address;
	size_t n = strlen(host);
	int family = AF_INET;

	if (!strcasecmp(host, "localhost"))
		return true;
	if (n >= sizeof(bare))
		return false;
	memcpy(bare, host, n + 1);
	if (n > 2 && host[0] == '[' && host[n - 1] == ']') {
		family = AF_INET6;
		memcpy(bare, host + 1, n - 2);
		bare[n - 2] = '\0';
	}
	if (inet_pton(family, bare, &address) != 1 || !inet_ntop(family, &address, text, sizeof(text)))
		return false;
	if (!strcmp(text, "::1") || (family == AF_INET && !strncmp(text, "127.", 4)))
		return true;
	for (size_t i = 0; i < sizeof(metadata) / sizeof(metadata[0]); i++)
		if (!strcmp(text, metadata[i]))
			return true;
	return false;
}

static void free_url(CURLU **url)
{
	curl_url_cleanup(*url);
}

static void free_curl(char **p)
{
	curl_free(*p);
}

#define CLEANUP_CURL __attribute__((cleanup(free_curl)))

/* Parsed once, here; libcurl then uses this very parse. */
static int check_url(CURLU *url, const char *text, bool *tls, char *why)
{
	CLEANUP_CURL char *scheme = NULL, *host = NULL, *user = NULL;

	if (!url)
		return -ENOMEM;
	if (curl_url_set(url, CURLUPART_URL, text, 0) || curl_url_get(url, CURLUPART_SCHEME, &scheme, 0) ||
	    curl_url_get(url, CURLUPART_HOST, &host, 0)) {
		snprintf(why, HTTP_WHY, "not a URL");
		return -EINVAL;
	}
	*tls = !strcmp(scheme, "https");
	if (!*tls && strcmp(scheme, "http")) {
		snprintf(why, HTTP_WHY, "scheme '%.20s' is not supported", scheme);
		return -EINVAL;
	}
	if (curl_url_get(url, CURLUPART_USER, &user, 0) != CURLUE_NO_USER) {
		snprintf(why, HTTP_WHY, "credentials in a URL are not supported");
		return -EINVAL;
	}
	if (!*tls && !plain_allowed(host)) {
		snprintf(why, HTTP_WHY, "plain http to '%.80s' is refused: only loopback may be spoken to without TLS",
		    host);
		return -EINVAL;
	}
	return 0;
}

/* ---- one request ---- */

static void free_list(struct curl_slist **list)
{
	curl_slist_free_all(*list);
}

static int append(struct curl_slist **list, const char *header)
{
	struct curl_slist *longer = curl_slist_append(*list, header);

	if (!longer)
		return -ENOMEM;
	*list = longer;
	return 0;
}

static int make_headers(struct curl_slist **list, const char *const *headers)
{
	int r = append(list, "Expect:"); /* bodies are small: never wait for 100-continue */

	for (; !r && headers && *headers; headers++)
		r = strpbrk(*headers, "\r\n") || !strchr(*headers, ':') ? -EINVAL : append(list, *headers);
	return r;
}

int http_do(struct http *h, const struct http_request *req, struct http_response *out, char *why)
{
	__attribute__((cleanup(free_list))) struct curl_slist *headers = NULL;
	__attribute__((cleanup(free_url))) CURLU *url = curl_url();
	char ignored[HTTP_WHY];
	struct http_call call = { .req = req, .url = url };
	CURL *easy = NULL;
	int r;

	memset(out, 0, sizeof(*out));
	why = why ? why : ignored;
	snprintf(why, HTTP_WHY, "out of memory");
	r = check_url(url, req->url, &call.tls, why);
	if (r)
		return r;
	r = make_headers(&headers, req->headers);
	if (r) {
		snprintf(why, HTTP_WHY, "%s", r == -EINVAL ? "malformed header" : "out of memory");
		return r;
	}
	call.headers = headers;
	r = take_handle(h, req->deadline, &easy);
	if (r) {
		snprintf(why, HTTP_WHY, "%s", r == -EBUSY ? "no connection became free in time" : "out of memory");
		return r;
	}
	r = http_transfer(h, easy, &call, out, why);
	give_handle(h, easy);
	if (r)
		http_response_free(out);
	return r;
}

void http_response_free(struct http_response *resp)
{
	secret_free(resp->body);
	memset(resp, 0, sizeof(*resp));
}
