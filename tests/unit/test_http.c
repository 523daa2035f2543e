/* http: bounds, deadlines, dead connections, and which addresses may be spoken to without TLS. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <time.h>

#include "fake_server.h"
#include "http.h"
#include "io.h"
#include "secret.h"

#define N(a) (sizeof(a) / sizeof((a)[0]))

static struct http *open_http(uint32_t handles)
{
	const struct http_params params = {
		.connect_timeout_ms = 1000, .max_handles = handles, .proxy = "", .user_agent = "test/1"
	};
	struct http *h = NULL;

	assert_int_equal(http_open(&h, &params), 0);
	return h;
}

static int get_url(struct http *h, const char *url, uint64_t ms, struct http_response *resp, char *why)
{
	const struct http_request req = { .method = "GET", .url = url, .deadline = io_boot_ms() + ms };

	return http_do(h, &req, resp, why);
}

static int get(struct http *h, const struct fake *f, uint64_t ms, struct http_response *resp, char *why)
{
	char url[64];

	snprintf(url, sizeof(url), "http://127.0.0.1:%u/", f->port);
	return get_url(h, url, ms, resp, why);
}

static void test_post_and_headers(void **state)
{
	static const struct fake_answer script[] = { { .status = 400,
	    .headers = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
		       "X-AMZN-RequestId: abc-123 \r\nx-amzn-errortype: Some\tError\r\n",
	    .body = "{\"a\":1}" } };
	static const char *const headers[] = { "Content-Type: application/x-amz-json-1.1", "Host: kms.example", NULL };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(2);
	struct http_response resp;
	char url[64], why[160], *seen;
	struct http_request req = { .method = "POST", .headers = headers, .body = "x&yz", .bodylen = 3 };

	(void)state;
	assert_non_null(f);
	snprintf(url, sizeof(url), "http://localhost:%u/some/path", f->port);
	req.url = url;
	req.deadline = io_boot_ms() + 5000;
	assert_int_equal(http_do(h, &req, &resp, why), 0);
	assert_int_equal(resp.status, 400);
	assert_string_equal(resp.request_id, "abc-123");
	assert_string_equal(resp.error_type, "Some?Error");
	assert_int_equal(resp.date, 784111777);
	assert_int_equal(resp.len, 7);
	assert_string_equal((char *)resp.body, "{\"a\":1}");
	assert_false(resp.tls_verified);
	http_response_free(&resp);
	assert_null(resp.body);
	seen = fake_request(f, 0);
	assert_non_null(strstr(seen, "POST /some/path HTTP/1.1\r\nHost: kms.example\r\n"));
	assert_non_null(strstr(seen, "User-Agent: test/1\r\n"));
	assert_non_null(strstr(seen, "Content-Length: 3\r\n"));
	assert_null(strstr(seen, "Expect"));
	assert_string_equal(strstr(seen, "\r\n\r\n") + 4, "x&y");
	free(seen);
	http_close(h);
	fake_stop(f);
}

static void test_put_without_body(void **state)
{
	static const struct fake_answer script[] = { { .status = 200, .body = "token" } };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(1);
	struct http_response resp;
	char url[64], *seen;
	struct http_request req = { .method = "PUT", .url = url, .no_proxy = true };

	(void)state;
	snprintf(url, sizeof(url), "http://127.0.0.1:%u/latest/api/token", f->port);
	req.deadline = io_boot_ms() + 5000;
	assert_int_equal(http_do(h, &req, &resp, NULL), 0);
	assert_string_equal((char *)resp.body, "token");
	assert_string_equal(resp.request_id, "");
	assert_int_equal(resp.date, 0);
	http_response_free(&resp);
	seen = fake_request(f, 0);
	assert_memory_equal(seen, "PUT /latest/api/token HTTP/1.1", 30);
	free(seen);
	http_close(h);
	fake_stop(f);
}

static void test_connection_is_kept(void **state)
{
	static const struct fake_answer script[] = { { .status = 200, .body = "a" } };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(4);
	struct http_response resp;

	(void)state;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(get(h, f, 5000, &resp, NULL), 0);
		http_response_free(&resp);
	}
	assert_int_equal(fake_connections(f), 1);
	http_close(h);
	fake_stop(f);
}

static void test_empty_body(void **state)
{
	static const struct fake_answer script[] = { { .status = 503 } };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(1);
	struct http_response resp;

	(void)state;
	assert_int_equal(get(h, f, 5000, &resp, NULL), 0);
	assert_int_equal(resp.status, 503);
	assert_int_equal(resp.len, 0);
	assert_string_equal((char *)resp.body, "");
	http_response_free(&resp);
	http_close(h);
	fake_stop(f);
}

/* The server closed the idle connection, or dies on the second request before answering: the caller sees
 * neither. */
static void test_dead_reused_connection(void **state)
{
	static const struct fake_answer closing[] = { { .act = FAKE_REPLY_CLOSE, .status = 200, .body = "a" },
		{ .status = 200, .body = "b" } };
	static const struct fake_answer dying[] = { { .status = 200, .body = "a" }, { .act = FAKE_DROP },
		{ .status = 200, .body = "b" } };
	const struct fake_answer *script[] = { closing, dying };
	const size_t n[] = { N(closing), N(dying) };
	struct http_response resp;

	(void)state;
	for (int i = 0; i < 2; i++) {
		struct fake *f = fake_start(script[i], n[i]);
		struct http *h = open_http(1);

		assert_int_equal(get(h, f, 5000, &resp, NULL), 0);
		http_response_free(&resp);
		assert_int_equal(get(h, f, 5000, &resp, NULL), 0);
		assert_string_equal((char *)resp.body, "b");
		http_response_free(&resp);
		assert_int_equal(fake_connections(f), 2);
		http_close(h);
		fake_stop(f);
	}
}

static void test_dropped_connections(void **state)
{
	static const struct fake_answer drop[] = { { .act = FAKE_DROP } },
	                                cut[] = { { .act = FAKE_CUT, .status = 200, .body = "abcdef" } };
	struct http *h = open_http(1);
	struct http_response resp;
	struct fake *f = fake_start(drop, 1);
	char why[160];

	(void)state;
	assert_int_equal(get(h, f, 5000, &resp, why), -EIO);
	assert_true(strlen(why) > 5);
	assert_null(resp.body);
	assert_int_equal(fake_seen(f), 1); /* a fresh connection that dies is not tried again */
	fake_stop(f);
	f = fake_start(cut, 1);
	assert_int_equal(get(h, f, 5000, &resp, why), -EIO);
	assert_null(resp.body);
	fake_stop(f);
	http_close(h);
}

static void test_deadline(void **state)
{
	static const struct fake_answer script[] = { { .act = FAKE_HANG } };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(1);
	struct http_response resp;
	uint64_t begun = io_boot_ms();
	char why[160];

	(void)state;
	assert_int_equal(get(h, f, 100, &resp, why), -ETIMEDOUT);
	assert_true(io_boot_ms() - begun >= 99);
	assert_int_equal(get(h, f, 0, &resp, why), -ETIMEDOUT);
	assert_int_equal(fake_seen(f), 1);
	http_close(h);
	fake_stop(f);
}

struct slow {
	struct http *h;
	struct fake *f;
	int result;
};

static void *slow_get(void *arg)
{
	struct slow *s = arg;
	struct http_response resp;

	s->result = get(s->h, s->f, 250, &resp, NULL);
	return NULL;
}

static void test_pool_wait_is_bounded(void **state)
{
	static const struct fake_answer script[] = { { .act = FAKE_HANG } };
	struct fake *f = fake_start(script, N(script));
	struct slow slow = { open_http(1), f, 0 };
	struct http_response resp;
	pthread_t thread;
	char why[160];

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, slow_get, &slow), 0);
	while (!fake_seen(f))
		(void)sched_yield();
	assert_int_equal(get(slow.h, f, 20, &resp, why), -EBUSY);
	assert_string_equal(why, "no connection became free in time");
	assert_int_equal(get(slow.h, f, 280, &resp, why), -ETIMEDOUT); /* gets its turn, and no answer */
	assert_int_equal(fake_seen(f), 2);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(slow.result, -ETIMEDOUT);
	http_close(slow.h);
	fake_stop(f);
}

static void test_answer_limits(void **state)
{
	struct fake_answer script[3] = { { .status = 200 }, { .status = 200 },
		{ .status = 200, .headers = "Content-Type: a/b\r\n" } };
	char *big = malloc(HTTP_RESPONSE_MAX + 1);
	struct http_response resp;
	struct http *h = open_http(1);
	struct fake *f;
	char why[160];

	(void)state;
	assert_non_null(big);
	memset(big, 'x', HTTP_RESPONSE_MAX + 1);
	script[0].body = script[1].body = script[2].body = big;
	script[0].bodylen = HTTP_RESPONSE_MAX - 1; /* with its NUL, just fits */
	script[1].bodylen = HTTP_RESPONSE_MAX;
	script[2].bodylen = HTTP_RESPONSE_MAX + 1;
	f = fake_start(script, 3);
	assert_int_equal(get(h, f, 5000, &resp, why), 0);
	assert_int_equal(resp.len, HTTP_RESPONSE_MAX - 1);
	assert_int_equal(resp.body[resp.len], 0);
	assert_memory_equal(resp.body, big, resp.len);
	http_response_free(&resp);
	assert_int_equal(get(h, f, 5000, &resp, why), -EFBIG);
	assert_int_equal(get(h, f, 5000, &resp, why), -EFBIG);
	assert_null(resp.body);
	http_close(h);
	fake_stop(f);
	free(big);
}

/* Headers without end. */
static void test_header_limit(void **state)
{
	static const char status[] = "HTTP/1.1 200 X\r\n", line[] = "x: abcde\r\n";
	struct fake_answer script[] = { { .act = FAKE_RAW } };
	char *text = malloc(200017);
	struct http *h = open_http(1);
	struct http_response resp;
	struct fake *f;
	char why[160];

	(void)state;
	assert_non_null(text);
	strcpy(text, status);
	for (size_t i = 16; i < 200000; i += 10)
		strcpy(text + i, line);
	script[0].body = text;
	f = fake_start(script, 1);
	assert_int_equal(get(h, f, 5000, &resp, why), -EFBIG);
	assert_string_equal(why, "the answer is too large");
	http_close(h);
	fake_stop(f);
	free(text);
}

static void test_redirects_are_not_followed(void **state)
{
	static const struct fake_answer script[] = {
		{ .status = 302, .headers = "Location: /elsewhere\r\n", .body = "" }
	};
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(1);
	struct http_response resp;

	(void)state;
	assert_int_equal(get(h, f, 5000, &resp, NULL), 0);
	assert_int_equal(resp.status, 302);
	assert_int_equal(fake_seen(f), 1);
	http_response_free(&resp);
	http_close(h);
	fake_stop(f);
}

static void test_refused_urls(void **state)
{
	static const char *const bad[] = { "http://kms.eu-west-1.amazonaws.com/", "http://169.254.169.253/",
		"http://10.0.0.1/", "http://127.0.0.1.example/", "http://[fd00:ec2::24]/", "http://[::2]/",
		"http://localhost.example/", "ftp://127.0.0.1/", "file:///etc/passwd", "http://", "", "kms",
		"http://user:pass@127.0.0.1/", "https://user@127.0.0.1/", "http://127.0.0.1:99999/" };
	struct http *h = open_http(1);
	struct http_response resp;
	char why[160];

	(void)state;
	for (size_t i = 0; i < N(bad); i++) {
		assert_int_equal(get_url(h, bad[i], 200, &resp, why), -EINVAL);
		assert_true(strlen(why) > 5);
	}
	http_close(h);
}

/* Whether anybody answers there is not the point: the address itself is accepted. */
static void test_metadata_urls_are_allowed(void **state)
{
	static const char *const good[] = { "http://127.1.2.3:9/", "http://[::1]:9/", "http://LOCALHOST:9/",
		"http://169.254.169.254:9/", "http://169.254.170.2:9/", "http://169.254.170.23:9/",
		"http://[fd00:ec2::23]:9/", "http://[fd00:ec2:0::254]:9/" };
	struct http *h = open_http(1);
	struct http_response resp;

	(void)state;
	for (size_t i = 0; i < N(good); i++) {
		int r = get_url(h, good[i], 20, &resp, NULL);

		assert_int_not_equal(r, -EINVAL);
		http_response_free(&resp);
	}
	http_close(h);
}

static void test_refused_headers(void **state)
{
	static const char *const bad[][2] = { { "A: b\r\nC: d", NULL }, { "A: b\n", NULL }, { "no colon", NULL } };
	struct http *h = open_http(1);
	struct http_request req = { .method = "GET", .url = "http://127.0.0.1:9/", .deadline = io_boot_ms() + 1000 };
	struct http_response resp;
	char why[160];

	(void)state;
	for (size_t i = 0; i < N(bad); i++) {
		req.headers = bad[i];
		assert_int_equal(http_do(h, &req, &resp, why), -EINVAL);
		assert_string_equal(why, "malformed header");
	}
	http_close(h);
}

static void test_unreachable(void **state)
{
	static const struct fake_answer script[] = { { .act = FAKE_HANG } };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(1);
	struct http_response resp;
	unsigned port = f->port;
	char url[64], why[160];

	(void)state;
	fake_stop(f); /* nobody listens there any more */
	snprintf(url, sizeof(url), "http://127.0.0.1:%u/", port);
	assert_int_equal(get_url(h, url, 5000, &resp, why), -ECONNREFUSED);
	assert_non_null(strstr(why, "127.0.0.1"));
	assert_int_equal(get_url(h, "https://no-such-host.invalid/", 5000, &resp, why), -EHOSTUNREACH);
	http_close(h);
}

/* ---- a name server that keeps silent ---- */

static atomic_int looking_up;
static sem_t answer;

/* libcurl's as well. Ten seconds are for a libcurl that waits for it. */
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **out)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
	struct timespec until;

	*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (!name || strcmp(name, "silent.invalid"))
		return real(name, service, hints, out);
	atomic_fetch_add(&looking_up, 1);
	(void)clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	(void)sem_timedwait(&answer, &until);
	atomic_fetch_sub(&looking_up, 1);
	return real("127.0.0.1", service, hints, out); /* a late answer, to be thrown away */
}

static unsigned threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	unsigned n = 0;

	assert_non_null(tasks);
	while (readdir(tasks))
		n++;
	(void)closedir(tasks);
	return n;
}

/* The call ends while the name is still looked up; what then answers finds no pool, and needs none. */
static void test_silent_name_server(void **state)
{
	struct http *h = open_http(2);
	struct http_response resp;
	unsigned before = threads();
	char why[160];

	(void)state;
	assert_int_equal(sem_init(&answer, 0, 0), 0);
	for (int i = 1; i <= 3; i++) {
		assert_int_equal(get_url(h, "https://silent.invalid/", 100, &resp, why), -ETIMEDOUT);
		assert_int_equal(atomic_load(&looking_up), i);
	}
	http_close(h);
	assert_int_equal(atomic_load(&looking_up), 3);
	for (int i = 0; i < 3; i++)
		assert_int_equal(sem_post(&answer), 0);
	while (threads() > before)
		(void)sched_yield();
	assert_int_equal(atomic_load(&looking_up), 0);
}

/* A server that does not speak TLS, and a bundle that does not exist. */
static void test_tls_failures(void **state)
{
	static const struct fake_answer script[] = { { .act = FAKE_DROP } };
	const struct http_params params = { .ca_bundle = "/nonexistent/ca.pem", .proxy = "" };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(1);
	struct http_response resp;
	char url[64], why[160];
	int r;

	(void)state;
	snprintf(url, sizeof(url), "https://127.0.0.1:%u/", f->port);
	r = get_url(h, url, 300, &resp, why);
	assert_true(r == -EPROTO || r == -ETIMEDOUT);
	http_close(h);
	assert_int_equal(http_open(&h, &params), 0);
	assert_int_equal(get_url(h, url, 300, &resp, why), -EINVAL);
	http_close(h);
	fake_stop(f);
}

#define THREADS 8
#define ROUNDS  20

static void *many_gets(void *arg)
{
	struct slow *s = arg;
	struct http_response resp;

	for (int i = 0; i < ROUNDS; i++) {
		int r = get(s->h, s->f, 10000, &resp, NULL);

		if (!r && strcmp((char *)resp.body, "a"))
			r = -EBADMSG;
		if (r)
			s->result = r;
		http_response_free(&resp);
	}
	return NULL;
}

static void test_threads_share_few_handles(void **state)
{
	static const struct fake_answer script[] = { { .status = 200, .body = "a" } };
	struct fake *f = fake_start(script, N(script));
	struct http *h = open_http(3);
	struct slow slow[THREADS];
	pthread_t thread[THREADS];

	(void)state;
	for (int i = 0; i < THREADS; i++) {
		slow[i] = (struct slow){ h, f, 0 };
		assert_int_equal(pthread_create(&thread[i], NULL, many_gets, &slow[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(thread[i], NULL), 0);
		assert_int_equal(slow[i].result, 0);
	}
	assert_int_equal(fake_seen(f), THREADS * ROUNDS);
	assert_true(fake_connections(f) <= 3);
	http_close(h);
	fake_stop(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_post_and_headers),
		cmocka_unit_test(test_put_without_body),
		cmocka_unit_test(test_connection_is_kept),
		cmocka_unit_test(test_empty_body),
		cmocka_unit_test(test_dead_reused_connection),
		cmocka_unit_test(test_dropped_connections),
		cmocka_unit_test(test_deadline),
		cmocka_unit_test(test_pool_wait_is_bounded),
		cmocka_unit_test(test_answer_limits),
		cmocka_unit_test(test_header_limit),
		cmocka_unit_test(test_redirects_are_not_followed),
		cmocka_unit_test(test_refused_urls),
		cmocka_unit_test(test_metadata_urls_are_allowed),
		cmocka_unit_test(test_refused_headers),
		cmocka_unit_test(test_unreachable),
		cmocka_unit_test(test_silent_name_server),
		cmocka_unit_test(test_tls_failures),
		cmocka_unit_test(test_threads_share_few_handles),
	};

	if (secret_init(true))
		return 1;
	return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
