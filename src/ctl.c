/* ctl.c — the control socket: a thread that answers one client at a time, and the client.
 *
 * Hides the wire: a line of JSON each way. Every wait has one deadline for the whole request or answer, so a client
 * that trickles bytes holds the thread for five seconds at most, and ctl_close() ends any wait at once through an
 * eventfd. */
#include "ctl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sodium.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "bytes.h"
#include "exitcode.h"
#include "io.h"
#include "jsonio.h"
#include "log.h"

#define PATIENCE_MS 5000u

struct ctl {
	int listen_fd, wake_fd;
	char path[CTL_PATH];
	ctl_handler handler;
	void *arg;
	pthread_t thread;
};

int ctl_directory(char *out)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR");
	int n;

	if (geteuid() == 0)
		n = snprintf(out, CTL_PATH, "/run/byokfs");
	else if (runtime && *runtime == '/')
		n = snprintf(out, CTL_PATH, "%s/byokfs", runtime);
	else
		n = snprintf(out, CTL_PATH, "/tmp/byokfs-%u", (unsigned)geteuid());
	return n < 0 || (unsigned)n >= CTL_PATH ? -ENAMETOOLONG : 0;
}

int ctl_path(const char *mountpoint, char *out)
{
	char dir[CTL_PATH], hex[33];
	uint8_t hash[crypto_hash_sha256_BYTES];
	char *real CLEANUP_FREE = realpath(mountpoint, NULL); /* asks nothing of the mount itself */
	int n, ret = ctl_directory(dir);

	if (!real)
		return -errno;
	if (ret < 0)
		return ret;
	(void)crypto_hash_sha256(hash, (const unsigned char *)real, strlen(real));
	bytes_hex(hex, hash, 16);
	n = snprintf(out, CTL_PATH, "%s/%s.sock", dir, hex);
	return n < 0 || (unsigned)n >= CTL_PATH ? -ENAMETOOLONG : 0;
}

static int address(struct sockaddr_un *sun, const char *path)
{
	memset(sun, 0, sizeof(*sun));
	sun->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof(sun->sun_path))
		return -ENAMETOOLONG;
	memcpy(sun->sun_path, path, strlen(path));
	return 0;
}

/* The other end is root's or our own. */
static bool peer_trusted(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || len != sizeof(cred))
		return false;
	return cred.uid == 0 || cred.uid == geteuid();
}

/* Waits for events until the deadline: 0, -ETIMEDOUT, -ECANCELED (wake_fd, -1 for none), -errno. */
static int wait_for(int fd, short events, int wake_fd, uint64_t deadline)
{
	struct pollfd p[2] = { { .fd = fd, .events = events }, { .fd = wake_fd, .events = POLLIN } };

	for (;;) {
		uint64_t now = io_boot_ms();
		int n;

		if (now >= deadline)
			return -ETIMEDOUT;
		n = poll(p, 2, (int)(deadline - now));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents)
			return -ECANCELED;
		if (n > 0)
			return 0;
	}
}

/* ---- descriptors go with the first byte of a line */

void ctl_fds_close(struct ctl_fds *fds)
{
	while (fds->n)
		(void)close(fds->fd[--fds->n]);
}

union control {
	char bytes[CMSG_SPACE(CTL_FDS * sizeof(int))];
	struct cmsghdr align;
};

/* What came with some bytes. -EPROTO: more than anybody may send; those are closed. */
static int take_fds(struct msghdr *m, struct ctl_fds *fds)
{
	int ret = m->msg_flags & MSG_CTRUNC ? -EPROTO : 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + CMSG_LEN(sizeof(int)) <= c->cmsg_len; at += sizeof(int)) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
			if (fds && fds->n < CTL_FDS) {
				fds->fd[fds->n++] = fd;
				continue;
			}
			(void)close(fd);
			ret = -EPROTO;
		}
	}
	return ret;
}

/* As recv(2); fds NULL: none may come. */
static ssize_t receive(int fd, char *to, size_t room, struct ctl_fds *fds)
{
	union control control;
	struct iovec iov = { .iov_base = to, .iov_len = room };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes };
	ssize_t n;
	int ret;

	m.msg_controllen = sizeof(control.bytes);
	n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	ret = take_fds(&m, fds);
	return ret < 0 ? ret : n;
}

/* As send(2). */
static ssize_t transmit(int fd, const char *from, size_t len, const struct ctl_fds *fds)
{
	union control control = { .bytes = { 0 } };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)from, .iov_len = len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (fds && fds->n) {
		m.msg_control = control.bytes;
		m.msg_controllen = CMSG_SPACE(fds->n * sizeof(int));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(fds->n * sizeof(int));
		memcpy(CMSG_DATA(&control.align), fds->fd, fds->n * sizeof(int));
	}
	n = sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/* Reads up to a newline; *out is malloc'ed, without it. -EFBIG over max, -EPROTO when the peer ends before. What came
 * into fds (NULL: none may) is the caller's also then. */
static int line_read(int fd, int wake_fd, uint64_t deadline, size_t max, char **out, struct ctl_fds *fds)
{
	char *buf CLEANUP_FREE = NULL;
	size_t len = 0, room = 0;

	for (;;) {
		char *end;
		ssize_t n;
		int ret = wait_for(fd, POLLIN, wake_fd, deadline);

		if (ret < 0)
			return ret;
		if (len == room) {
			char *more = len > max ? NULL : realloc(buf, room ? 2 * room : 1024);

			if (!more)
				return len > max ? -EFBIG : -ENOMEM;
			buf = more;
			room = room ? 2 * room : 1024;
		}
		n = receive(fd, buf + len, room - len, fds);
		if (n == -EAGAIN || n == -EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? (int)n : -EPROTO;
		end = memchr(buf + len, '\n', (size_t)n);
		len += (size_t)n;
		if (end && (size_t)(end - buf) <= max) {
			*end = '\0';
			*out = steal_ptr(&buf);
			return 0;
		}
		if (end || len > max)
			return -EFBIG;
	}
}

static int line_write(int fd, int wake_fd, uint64_t deadline, const char *text, const struct ctl_fds *fds)
{
	size_t len = strlen(text), done = 0;

	while (done <= len) {
		const char *from = done < len ? text + done : "\n";
		int ret = wait_for(fd, POLLOUT, wake_fd, deadline);
		ssize_t n;

		if (ret < 0)
			return ret;
		n = transmit(fd, from, done < len ? len - done : 1, done == 0 ? fds : NULL);
		if (n < 0 && n != -EAGAIN && n != -EINTR)
			return (int)n;
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static json_t *complaint(int code, const char *message)
{
	return json_pack("{s:i,s:s}", "code", code, "message", message);
}

static json_t *answer_to(struct ctl *ctl, const char *line, const struct ctl_fds *in, struct ctl_fds *out)
{
	json_t *request = jsonio_parse(line, strlen(line), CTL_REQUEST_MAX), *answer;

	if (!request || !jsonio_str(request, "verb"))
		answer = complaint(EXIT_USAGE, "malformed request");
	else
		answer = ctl->handler(ctl->arg, request, in, out);
	json_decref(request);
	return answer ? answer : complaint(EXIT_FAILED, "internal error");
}

static void answer(struct ctl *ctl, int fd, struct ctl_fds *in, struct ctl_fds *out)
{
	char *line CLEANUP_FREE = NULL, *text CLEANUP_FREE = NULL;
	json_t *json;

	if (line_read(fd, ctl->wake_fd, io_boot_ms() + PATIENCE_MS, CTL_REQUEST_MAX, &line, in) < 0)
		return;
	json = answer_to(ctl, line, in, out);
	text = json ? jsonio_print(json) : NULL;
	json_decref(json);
	if (text && strlen(text) < CTL_ANSWER_MAX)
		(void)line_write(fd, ctl->wake_fd, io_boot_ms() + PATIENCE_MS, text, out);
	else
		log_err("control socket: an answer of %zu bytes could not be given", text ? strlen(text) : 0);
}

static void serve(struct ctl *ctl, int fd)
{
	struct ctl_fds in = { .n = 0 }, out = { .n = 0 };

	if (!peer_trusted(fd)) {
		log_warn("control socket: refused a client of another user");
		return;
	}
	answer(ctl, fd, &in, &out);
	ctl_fds_close(&in);
	ctl_fds_close(&out);
}

static void *loop(void *arg)
{
	struct ctl *ctl = arg;
	int ret;

	while ((ret = wait_for(ctl->listen_fd, POLLIN, ctl->wake_fd, io_boot_ms() + 3600 * 1000u)) != -ECANCELED) {
		int fd CLEANUP_FD = -1;

		if (ret == -ETIMEDOUT)
			continue;
		fd = ret == 0 ? accept4(ctl->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
		if (fd >= 0)
			serve(ctl, fd);
		else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || ret < 0)
			(void)wait_for(-1, 0, ctl->wake_fd,
			    io_boot_ms() + 100); /* do not spin on what will not go away by itself */
	}
	return NULL;
}

/* The directory, ours alone. */
static int directory_make(void)
{
	char dir[CTL_PATH];
	struct stat st;
	int ret = ctl_directory(dir);

	if (ret < 0)
		return ret;
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	if (lstat(dir, &st) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) && st.st_uid == geteuid() && (st.st_mode & 077) == 0 ? 0 : -EPERM;
}

static int connect_to(const char *path, int *out)
{
	struct sockaddr_un sun;
	int fd CLEANUP_FD = -1;
	int ret = address(&sun, path);

	if (ret < 0)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&sun, sizeof(sun)) < 0)
		return -errno; /* EAGAIN: its queue is full, so it is alive */
	*out = steal_fd(&fd);
	return 0;
}

static int listen_at(const char *path, int *out)
{
	struct sockaddr_un sun;
	int fd CLEANUP_FD = -1;
	int other CLEANUP_FD = -1;
	int ret = connect_to(path, &other);

	if (ret == 0 || ret == -EAGAIN)
		return -EBUSY;
	if (ret == -ECONNREFUSED && unlink(path) < 0)
		return -errno;
	ret = address(&sun, path);
	if (ret < 0)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (bind(fd, (const struct sockaddr *)&sun, sizeof(sun)) < 0)
		return errno == EADDRINUSE ? -EBUSY : -errno;
	if (listen(fd, 16) < 0) {
		ret = -errno;
		(void)unlink(path);
		return ret;
	}
	*out = steal_fd(&fd);
	return 0;
}

static int start(struct ctl *ctl)
{
	sigset_t all, old;
	int ret;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = pthread_create(&ctl->thread, NULL, loop, ctl);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -ret;
}

static void discard(struct ctl *ctl)
{
	if (ctl->listen_fd >= 0) {
		(void)unlink(ctl->path);
		(void)close(ctl->listen_fd);
	}
	if (ctl->wake_fd >= 0)
		(void)close(ctl->wake_fd);
	free(ctl);
}

int ctl_open(struct ctl **out, const char *mountpoint, ctl_handler handle, void *arg)
{
	struct ctl *ctl = calloc(1, sizeof(*ctl));
	int ret;

	if (!ctl)
		return -ENOMEM;
	ctl->handler = handle;
	ctl->arg = arg;
	ctl->listen_fd = -1;
	ctl->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = ctl->wake_fd < 0 ? -errno : ctl_path(mountpoint, ctl->path);
	if (ret == 0)
		ret = directory_make();
	if (ret == 0)
		ret = listen_at(ctl->path, &ctl->listen_fd);
	if (ret == 0)
		ret = start(ctl);
	if (ret < 0)
		discard(ctl);
	else
		*out = ctl;
	return ret;
}

void ctl_close(struct ctl *ctl)
{
	uint64_t one = 1;

	if (!ctl)
		return;
	while (write(ctl->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
	(void)pthread_join(ctl->thread, NULL);
	discard(ctl);
}

int ctl_call_fds(const char *path, const json_t *request, const struct ctl_fds *send, unsigned timeout_ms,
    json_t **answer, struct ctl_fds *got)
{
	uint64_t deadline = io_boot_ms() + timeout_ms;
	char *line CLEANUP_FREE = NULL;
	char *text CLEANUP_FREE = jsonio_print(request);
	int fd CLEANUP_FD = -1;
	int ret;

	if (!text)
		return -ENOMEM;
	while ((ret = connect_to(path, &fd)) == -EAGAIN && io_boot_ms() < deadline)
		(void)poll(NULL, 0, 20);
	if (ret == 0 && !peer_trusted(fd))
		ret = -EPERM;
	if (ret == 0)
		ret = line_write(fd, -1, deadline, text, send);
	if (ret == 0)
		ret = line_read(fd, -1, deadline, CTL_ANSWER_MAX, &line, got);
	if (ret < 0 || !line)
		return ret == -EAGAIN ? -ETIMEDOUT : ret;
	*answer = jsonio_parse(line, strlen(line), CTL_ANSWER_MAX);
	return *answer ? 0 : -EPROTO;
}

int ctl_call_socket(const char *path, const json_t *request, unsigned timeout_ms, json_t **answer)
{
	return ctl_call_fds(path, request, NULL, timeout_ms, answer, NULL);
}

int ctl_call(const char *mountpoint, const json_t *request, unsigned timeout_ms, json_t **answer)
{
	char path[CTL_PATH];
	int ret = ctl_path(mountpoint, path);

	return ret < 0 ? ret : ctl_call_socket(path, request, timeout_ms, answer);
}
