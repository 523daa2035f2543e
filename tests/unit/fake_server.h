/* fake_server.h — an HTTP server in a thread, on a loopback port of its own, with scripted answers.
 *
 * Each request takes the next answer of the script, whatever connection it came on; the last one repeats. */
#ifndef BYOKFS_FAKE_SERVER_H
#define BYOKFS_FAKE_SERVER_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FAKE_CONNS       16
#define FAKE_REQUESTS    32
#define FAKE_REQUEST_MAX 20000

enum fake_act {
	FAKE_REPLY,
	FAKE_REPLY_CLOSE, /* without saying so: the next use of this connection finds it dead */
	FAKE_DROP,        /* close instead of answering */
	FAKE_HANG,        /* keep silent */
	FAKE_CUT,         /* half of the body, then close */
	FAKE_RAW,         /* the body is all there is, status line and headers included */
};

struct fake_answer {
	enum fake_act act;
	int status;
	const char *headers; /* each line ended by \r\n; NULL: none */
	const char *body;
	size_t bodylen; /* 0: strlen(body) */
};

struct fake {
	pthread_t thread;
	int listener, stop[2];
	unsigned port;
	const struct fake_answer *script;
	size_t nscript;
	pthread_mutex_t lock; /* guards what follows */
	unsigned seen, connections;
	char request[FAKE_REQUESTS][FAKE_REQUEST_MAX];
};

struct fake_conn {
	int fd;
	size_t len;
	char buf[FAKE_REQUEST_MAX];
};

static void fake_send(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t done = send(fd, p, n, MSG_NOSIGNAL);

		if (done <= 0)
			return;
		p += done;
		n -= (size_t)done;
	}
}

/* True when the connection stays. */
static bool fake_reply(int fd, const struct fake_answer *a)
{
	size_t n = a->bodylen ? a->bodylen : a->body ? strlen(a->body) : 0;
	char head[1024];

	if (a->act == FAKE_DROP)
		return false;
	if (a->act == FAKE_HANG)
		return true;
	if (a->act == FAKE_RAW) {
		fake_send(fd, a->body, n);
		return true;
	}
	snprintf(head, sizeof(head), "HTTP/1.1 %d X\r\nContent-Length: %zu\r\n%s\r\n", a->status, n,
	    a->headers ? a->headers : "");
	fake_send(fd, head, strlen(head));
	fake_send(fd, a->body, a->act == FAKE_CUT ? n / 2 : n);
	return a->act == FAKE_REPLY;
}

/* Length of the first whole request in the buffer, or 0. */
static size_t fake_whole(struct fake_conn *c)
{
	char *end, *length;
	size_t n;

	c->buf[c->len] = '\0';
	end = strstr(c->buf, "\r\n\r\n");
	if (!end)
		return 0;
	length = strcasestr(c->buf, "\r\nContent-Length: ");
	n = (size_t)(end + 4 - c->buf) + (length && length < end ? (size_t)atoi(length + 18) : 0);
	return n <= c->len ? n : 0;
}

static bool fake_take(struct fake *f, struct fake_conn *c)
{
	const struct fake_answer *answer;
	size_t n;

	while ((n = fake_whole(c))) {
		(void)pthread_mutex_lock(&f->lock);
		if (f->seen < FAKE_REQUESTS) {
			memcpy(f->request[f->seen], c->buf, n);
			f->request[f->seen][n] = '\0';
		}
		answer = &f->script[f->seen < f->nscript ? f->seen : f->nscript - 1];
		f->seen++;
		(void)pthread_mutex_unlock(&f->lock);
		memmove(c->buf, c->buf + n, c->len - n);
		c->len -= n;
		if (!fake_reply(c->fd, answer))
			return false;
	}
	return true;
}

static void fake_serve(struct fake *f, struct fake_conn *c)
{
	ssize_t n = recv(c->fd, c->buf + c->len, sizeof(c->buf) - 1 - c->len, 0);

	if (n > 0) {
		c->len += (size_t)n;
		if (fake_take(f, c))
			return;
	}
	(void)close(c->fd);
	c->fd = -1;
}

static void fake_accept(struct fake *f, struct fake_conn *conn)
{
	int fd = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC), one = 1;

	(void)pthread_mutex_lock(&f->lock);
	f->connections++;
	(void)pthread_mutex_unlock(&f->lock);
	if (fd >= 0) /* head and body are sent apart: do not wait for the acknowledgement in between */
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	for (size_t i = 0; i < FAKE_CONNS && fd >= 0; i++)
		if (conn[i].fd < 0) {
			conn[i].fd = fd;
			conn[i].len = 0;
			return;
		}
	if (fd >= 0)
		(void)close(fd);
}

static void *fake_loop(void *arg)
{
	struct fake *f = arg;
	struct fake_conn *conn = calloc(FAKE_CONNS, sizeof(*conn));
	struct pollfd p[FAKE_CONNS + 2];

	for (size_t i = 0; conn && i < FAKE_CONNS; i++)
		conn[i].fd = -1;
	while (conn) {
		p[0] = (struct pollfd){ .fd = f->stop[0], .events = POLLIN };
		p[1] = (struct pollfd){ .fd = f->listener, .events = POLLIN };
		for (size_t i = 0; i < FAKE_CONNS; i++)
			p[i + 2] = (struct pollfd){ .fd = conn[i].fd, .events = POLLIN };
		if (poll(p, FAKE_CONNS + 2, -1) < 0 || p[0].revents)
			break;
		for (size_t i = 0; i < FAKE_CONNS; i++)
			if (p[i + 2].revents)
				fake_serve(f, &conn[i]);
		if (p[1].revents)
			fake_accept(f, conn);
	}
	for (size_t i = 0; conn && i < FAKE_CONNS; i++)
		if (conn[i].fd >= 0)
			(void)close(conn[i].fd);
	free(conn);
	return NULL;
}

/* NULL when the host cannot do it. */
static struct fake *fake_start(const struct fake_answer *script, size_t n)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
	socklen_t len = sizeof(sin);
	struct fake *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->script = script;
	f->nscript = n;
	(void)pthread_mutex_init(&f->lock, NULL);
	f->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (f->listener < 0 || bind(f->listener, (struct sockaddr *)&sin, sizeof(sin)) || listen(f->listener, 16) ||
	    getsockname(f->listener, (struct sockaddr *)&sin, &len) || pipe2(f->stop, O_CLOEXEC) ||
	    pthread_create(&f->thread, NULL, fake_loop, f)) {
		free(f);
		return NULL;
	}
	f->port = ntohs(sin.sin_port);
	return f;
}

static void fake_stop(struct fake *f)
{
	(void)close(f->stop[1]);
	(void)pthread_join(f->thread, NULL);
	(void)close(f->stop[0]);
	(void)close(f->listener);
	free(f);
}

static inline unsigned fake_seen(struct fake *f)
{
	unsigned n;

	(void)pthread_mutex_lock(&f->lock);
	n = f->seen;
	(void)pthread_mutex_unlock(&f->lock);
	return n;
}

static inline unsigned fake_connections(struct fake *f)
{
	unsigned n;

	(void)pthread_mutex_lock(&f->lock);
	n = f->connections;
	(void)pthread_mutex_unlock(&f->lock);
	return n;
}

/* The i-th request as it came; the caller frees. */
static inline char *fake_request(struct fake *f, unsigned i)
{
	char *text;

	(void)pthread_mutex_lock(&f->lock);
	text = strdup(i < FAKE_REQUESTS ? f->request[i] : "");
	(void)pthread_mutex_unlock(&f->lock);
	return text;
}

#endif
