/* The process that outlives the daemon, and the daemon's end of the socket between them.
 *
 * After a SIGKILL the kernel goes on serving cached plaintext to whoever has a file open or mapped. The watchdog holds
 * a duplicate of the device descriptor, so it can still tell the kernel to drop everything. It aborts the connection
 * first: requests the dead daemon had read would otherwise never be answered, their pages would stay locked, and an
 * invalidation that meets a locked page waits for ever, unkillably. Notifications are accepted after an abort (they are
 * not replies). Where the connection cannot be aborted, several threads share the walk, so that one that gets stuck
 * does not keep the rest of the cache alive. */
#include "watchdog.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "fuseio.h"
#include "log.h"

#define WALKERS   8
#define STUCK_MS  2000
#define STOP_MS   2000
#define SOCKET_FD 3 /* in the child: everything else is closed */

struct watchdog {
	pid_t pid;
	int fd;
	_Atomic uint64_t *top;
};

/* ORDER_ARM brings the device descriptor and, where the kernel has such, a pidfd of the daemon. */
struct order {
	enum { ORDER_ARM, ORDER_BYE } kind;
	unsigned connection;
};

#define ORDER_FDS 2
union order_control {
	struct cmsghdr head;
	char space[CMSG_SPACE(ORDER_FDS * sizeof(int))];
};

/* ---- the child ---- */

struct purge {
	int device;
	uint64_t top;
	_Atomic uint64_t next, done;
	_Atomic unsigned ended;
};

struct guard {
	int device, abort_fd, pidfd;
	unsigned connection;
	_Atomic uint64_t *top;
};

static void *purge_walk(void *arg)
{
	struct purge *p = arg;
	uint64_t nodeid;

	while ((nodeid = atomic_fetch_add(&p->next, 1)) <= p->top)
		/* -ENOENT: the kernel has forgotten it. */
		if (fuseio_inval_inode(p->device, nodeid) == 0)
			atomic_fetch_add(&p->done, 1);
	atomic_fetch_add(&p->ended, 1);
	return NULL;
}

/* Waits for the walkers while any of them gets on. */
static bool purge_wait(struct purge *p, unsigned walkers)
{
	uint64_t seen = 0;
	unsigned idle_ms = 0;

	while (atomic_load(&p->ended) < walkers) {
		uint64_t now = atomic_load(&p->next);

		if (idle_ms >= STUCK_MS)
			return false;
		(void)nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
		idle_ms = now == seen ? idle_ms + 2 : 0;
		seen = now;
	}
	return true;
}

static void purge(const struct guard *g)
{
	struct purge p = { .device = g->device, .top = atomic_load(g->top), .next = 1 };
	bool aborted = g->abort_fd >= 0 && write(g->abort_fd, "1", 1) == 1, complete;
	unsigned walkers = 0;
	pthread_t thread;
	int epoch;

	while (walkers < WALKERS && pthread_create(&thread, NULL, purge_walk, &p) == 0)
		walkers++;
	if (!walkers)
		(void)purge_walk(&p);
	complete = purge_wait(&p, walkers);
	epoch = fuseio_inc_epoch(g->device);
	log_warn("the daemon died: purged %llu inodes%s%s, connection %u %s", (unsigned long long)atomic_load(&p.done),
	    complete ? "" : " (some are stuck)", epoch ? ", names stay until they time out" : " and all names",
	    g->connection, aborted ? "aborted" : "could not be aborted");
	/* Walkers may still be stuck in the kernel: no destructors, no joins. */
	_exit(0);
}

static void harden(void)
{
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM, SIGTSTP };
	CLEANUP_FD int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	CLEANUP_FD int oom = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		(void)signal(ignored[i], SIG_IGN);
	(void)setsid();
	if (oom >= 0)
		(void)!write(oom, "-1000", 5);
	if (chdir("/"))
		log_warn("watchdog: cannot leave the working directory: %s", strerror(errno));
	(void)prctl(PR_SET_DUMPABLE, 0);
	/* Nor may it keep open what its parent's caller waits for. */
	for (int fd = 0; null >= 0 && fd < SOCKET_FD; fd++)
		(void)dup2(null, fd);
	log_setup("byokfs-watchdog", LOG_LEVEL_INFO, true);
	(void)prctl(PR_SET_NAME, "byokfs-watchdog");
}

/* The descriptors that came with a message; -1 for those that did not. */
static void take_fds(struct msghdr *m, int fd[static ORDER_FDS])
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);

	for (size_t i = 0; i < ORDER_FDS; i++) {
		fd[i] = -1;
		if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		    c->cmsg_len >= CMSG_LEN((i + 1) * sizeof(int)))
			memcpy(&fd[i], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
	}
}

static void arm(struct guard *g, const struct order *o, const int fd[static ORDER_FDS])
{
	if (fd[0] < 0 || g->device >= 0)
		return;
	g->device = fd[0];
	g->pidfd = fd[1];
	g->connection = o->connection;
	/* Opened now: later the number might be another mount's. */
	g->abort_fd = fuseio_open_abort(o->connection);
	if (g->abort_fd < 0)
		log_warn("FUSE connection %u cannot be aborted from here: should the daemon crash, what it was just "
		         "reading may hang",
		    o->connection);
}

/* One message. False: the daemon is gone and said nothing. */
static bool receive(struct guard *g)
{
	struct order o;
	union order_control control;
	int fd[ORDER_FDS] = { -1, -1 };
	struct iovec iov = { .iov_base = &o, .iov_len = sizeof(o) };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)
	};
	ssize_t n = recvmsg(SOCKET_FD, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (n < 0 && errno == EINTR)
		return true;
	if (n != (ssize_t)sizeof(o))
		return false;
	if (o.kind == ORDER_BYE)
		_exit(0);
	take_fds(&m, fd);
	arm(g, &o, fd);
	return true;
}

static _Noreturn void guard_main(_Atomic uint64_t *top)
{
	struct guard g = { .device = -1, .abort_fd = -1, .pidfd = -1, .top = top };

	harden();
	for (;;) {
		/* The pidfd helps when a forgotten child of the daemon keeps the other end of the socket open. */
		struct pollfd fds[2] = { { .fd = SOCKET_FD, .events = POLLIN }, { .fd = g.pidfd, .events = POLLIN } };

		if (poll(fds, 2, -1) < 0)
			continue;
		/* A goodbye counts even when the end came right after it. */
		if ((fds[0].revents || fds[1].revents) && receive(&g))
			continue;
		break;
	}
	if (g.device >= 0)
		purge(&g);
	_exit(0);
}

/* ---- the daemon's side ---- */

static void child(int fd, _Atomic uint64_t *top)
{
	if (dup2(fd, SOCKET_FD) < 0 && fd != SOCKET_FD)
		_exit(1);
	(void)close_range(SOCKET_FD + 1, ~0u, 0);
	guard_main(top);
}

int watchdog_start(struct watchdog **out)
{
	CLEANUP_FREE struct watchdog *w = calloc(1, sizeof(*w));
	CLEANUP_FD int mine = -1;
	CLEANUP_FD int theirs = -1;
	int pair[2];
	void *page;

	if (!w)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	mine = pair[0];
	theirs = pair[1];
	page = mmap(NULL, sizeof(*w->top), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		return -errno;
	w->top = page;
	w->pid = fork();
	if (w->pid < 0) {
		int r = -errno;

		(void)munmap(page, sizeof(*w->top));
		return r;
	}
	if (w->pid == 0)
		child(theirs, w->top);
	w->fd = steal_fd(&mine);
	*out = steal_ptr(&w);
	return 0;
}

_Atomic uint64_t *watchdog_top(struct watchdog *w)
{
	return w->top;
}

static int send_order(struct watchdog *w, struct order *o, const int *fd, size_t n)
{
	union order_control control = { 0 };
	struct iovec iov = { .iov_base = o, .iov_len = sizeof(*o) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (n) {
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.head = (struct cmsghdr){
			.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(n * sizeof(int))
		};
		memcpy(CMSG_DATA(&control.head), fd, n * sizeof(int));
	}
	return sendmsg(w->fd, &m, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int watchdog_arm(struct watchdog *w, int device_fd, unsigned connection)
{
	struct order o = { .kind = ORDER_ARM, .connection = connection };
	CLEANUP_FD int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	int fd[ORDER_FDS] = { device_fd, self };

	return send_order(w, &o, fd, self >= 0 ? 2 : 1);
}

int watchdog_alive(struct watchdog *w)
{
	struct pollfd p = { .fd = w->fd, .events = POLLIN };

	return poll(&p, 1, 0) == 0;
}

void watchdog_stop(struct watchdog *w)
{
	struct order bye = { .kind = ORDER_BYE };
	struct pollfd p;

	if (!w)
		return;
	p = (struct pollfd){ .fd = w->fd, .events = POLLIN };
	if (send_order(w, &bye, NULL, 0) == 0 && poll(&p, 1, STOP_MS) == 0)
		log_warn("the watchdog does not end");
	(void)close(w->fd);
	/* Ours to bury unless the daemon forked after starting it; it ended a moment ago. */
	if (!p.revents)
		(void)waitpid(w->pid, NULL, WNOHANG);
	else
		(void)waitpid(w->pid, NULL, 0);
	(void)munmap(w->top, sizeof(*w->top));
	free(w);
}
