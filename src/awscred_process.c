/* awscred_process.c — credential_process: a program of the administrator's that prints credentials.
 *
 * The daemon holds keys, locks and the FUSE device, and has threads: it is no place to start programs from. So a small
 * helper is forked in awscred_open(), before there is anything to inherit. It keeps its socket and closes everything
 * else; asked by the daemon, it runs the program without a shell, with a deadline, and sends back what was printed.
 * When the daemon ends, so does the helper, and the program with it. The helper allocates nothing, since the process it
 * was forked from may have had threads. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "awscred_internal.h"
#include "io.h"

#define SOCKET_FD  3 /* in the helper: everything above is closed */
#define OUTPUT_MAX 65535u
#define RUN_MS     60000u
#define SLICE_MS   100
#define STOP_MS    2000u
#define BUFFER     (OUTPUT_MAX * 3) /* of the socket: the kernel counts more than the bytes */

struct request {
	uint64_t id;
	char command[AWSCRED_COMMAND_MAX];
};

struct result {
	uint64_t id;
	int error;   /* 0, or -errno: it could not be run, took too long, printed too much */
	int code;    /* exit code; -1: killed by a signal */
	char said[120]; /* the beginning of what it wrote to standard error */
};

struct awscred_process {
	pid_t pid;
	int fd;
	uint64_t id;
	bool waiting; /* for the result of: */
	char command[AWSCRED_COMMAND_MAX];
};

/* ---- the helper ---- */

/* Lives in pages that no core dump shows. */
struct run {
	struct request req;
	struct result result;
	pid_t pid;
	int out, err; /* pipes; -1: ended */
	uint64_t deadline;
	size_t len, nsaid;
	char text[OUTPUT_MAX + 1];
};

static void child_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		(void)signal(sig, SIG_DFL);
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void become(char *const argv[], int out, int err)
{
	int null = open("/dev/null", O_RDONLY);

	(void)setpgid(0, 0);
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	child_signals();
	(void)umask(077);
	if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0)
		_exit(126);
	(void)close_range(3, ~0u, 0);
	(void)execvp(argv[0], argv);
	(void)dprintf(2, "cannot run '%s': %s", argv[0], strerror(errno));
	_exit(127);
}

static int start_program(struct run *r)
{
	int out[2], err[2];
	char *argv[AWSCRED_ARGS_MAX];

	r->pid = 0;
	r->out = r->err = -1;
	if (awscred_split(r->req.command, argv))
		return -EINVAL;
	if (pipe2(out, O_CLOEXEC))
		return -errno;
	if (pipe2(err, O_CLOEXEC)) {
		(void)close(out[0]);
		(void)close(out[1]);
		return -EMFILE;
	}
	r->pid = fork();
	if (r->pid == 0)
		become(argv, out[1], err[1]);
	if (r->pid > 0)
		(void)setpgid(r->pid, r->pid); /* by whichever of the two comes first: it may be killed at once */
	(void)close(out[1]);
	(void)close(err[1]);
	r->out = out[0];
	r->err = err[0];
	return r->pid < 0 ? -EAGAIN : 0;
}

/* The daemon asks for something else, or is gone. */
static bool unwanted(int ms)
{
	struct pollfd p = { .fd = SOCKET_FD, .events = POLLIN };

	return poll(&p, 1, ms) > 0;
}

/* It may have closed its output and gone on. */
static int end_program(struct run *r)
{
	int status = 0, gone = 0;

	if (r->out >= 0)
		(void)close(r->out);
	if (r->err >= 0)
		(void)close(r->err);
	if (r->pid <= 0)
		return -1;
	while (!(gone = waitpid(r->pid, &status, WNOHANG)) && io_boot_ms() < r->deadline)
		if (unwanted(5))
			break;
	(void)kill(-r->pid, SIGKILL);
	if (!gone)
		(void)kill(r->pid, SIGKILL);
	if (gone != r->pid && waitpid(r->pid, &status, 0) == r->pid)
		r->result.error = r->result.error ? r->result.error : -ETIMEDOUT;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void take_output(struct run *r)
{
	char more;
	ssize_t n = r->len < OUTPUT_MAX ? read(r->out, r->text + r->len, OUTPUT_MAX - r->len) : read(r->out, &more, 1);

	if (n > 0 && r->len == OUTPUT_MAX)
		r->result.error = -EFBIG;
	if (n <= 0) {
		(void)close(r->out);
		r->out = -1;
		return;
	}
	r->len += r->len < OUTPUT_MAX ? (size_t)n : 0;
}

static void take_complaint(struct run *r)
{
	char scrap[512];
	ssize_t n = read(r->err, scrap, sizeof(scrap));

	if (n <= 0) {
		(void)close(r->err);
		r->err = -1;
		return;
	}
	for (ssize_t i = 0; i < n && r->nsaid + 1 < sizeof(r->result.said); i++)
		r->result.said[r->nsaid++] = scrap[i] >= ' ' && scrap[i] <= '~' ? scrap[i] : ' ';
}

/* False: the daemon asked for something else, or is gone. */
static bool follow(struct run *r)
{
	while (!r->result.error && (r->out >= 0 || r->err >= 0)) {
		struct pollfd p[3] = { { .fd = SOCKET_FD, .events = POLLIN }, { .fd = r->out, .events = POLLIN },
			{ .fd = r->err, .events = POLLIN } };
		uint64_t now = io_boot_ms();

		if (now >= r->deadline)
			r->result.error = -ETIMEDOUT;
		else if (poll(p, 3, (int)(r->deadline - now)) < 0)
			continue;
		if (p[0].revents)
			return false;
		if (p[1].revents)
			take_output(r);
		if (p[2].revents)
			take_complaint(r);
	}
	return true;
}

static void serve(struct run *r)
{
	struct iovec iov[2] = { { &r->result, sizeof(r->result) }, { r->text, 0 } };
	bool wanted;

	memset(&r->result, 0, sizeof(r->result));
	r->result.id = r->req.id;
	r->len = r->nsaid = 0;
	r->deadline = io_boot_ms() + RUN_MS;
	r->result.error = start_program(r);
	wanted = follow(r);
	if (!wanted || r->result.error)
		r->deadline = 0;
	r->result.code = end_program(r);
	iov[1].iov_len = r->result.error ? 0 : r->len;
	if (wanted && writev(SOCKET_FD, iov, 2) < 0)
		_exit(1);
	explicit_bzero(r->text, sizeof(r->text));
}

static _Noreturn void helper(int fd)
{
	struct run *r = mmap(NULL, sizeof(*r), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1, SIGUSR2, SIGALRM, SIGTSTP };
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (r == MAP_FAILED || null < 0 || (fd != SOCKET_FD && dup2(fd, SOCKET_FD) < 0))
		_exit(1);
	for (int i = 0; i < SOCKET_FD; i++)
		(void)dup2(null, i);
	(void)close_range(SOCKET_FD + 1, ~0u, 0);
	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		(void)signal(ignored[i], SIG_IGN);
	(void)signal(SIGCHLD, SIG_DFL);
	(void)setsid();
	(void)fcntl(SOCKET_FD, F_SETFD, FD_CLOEXEC);
	(void)prctl(PR_SET_DUMPABLE, 0);
	(void)prctl(PR_SET_NAME, "byokfs-credproc");
	(void)madvise(r, sizeof(*r), MADV_DONTDUMP);
	(void)mlock(r, sizeof(*r));
	while (recv(SOCKET_FD, &r->req, sizeof(r->req), 0) == (ssize_t)sizeof(r->req)) {
		r->req.command[sizeof(r->req.command) - 1] = '\0';
		serve(r);
	}
	_exit(0);
}

/* ---- the daemon's side ---- */

int awscred_process_start(struct awscred_process **out)
{
	CLEANUP_FREE struct awscred_process *p = calloc(1, sizeof(*p));
	int pair[2], size = BUFFER;

	if (!p)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	(void)setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	p->pid = fork();
	if (p->pid == 0)
		helper(pair[1]);
	(void)close(pair[1]);
	if (p->pid < 0) {
		(void)close(pair[0]);
		return -EAGAIN;
	}
	p->fd = pair[0];
	*out = steal_ptr(&p);
	return 0;
}

static bool ended(pid_t pid, uint64_t ms)
{
	uint64_t until = io_boot_ms() + ms;

	while (!waitpid(pid, NULL, WNOHANG)) {
		if (io_boot_ms() >= until)
			return false;
		(void)poll(NULL, 0, 5);
	}
	return true;
}

void awscred_process_stop(struct awscred_process *p)
{
	if (!p)
		return;
	(void)close(p->fd); /* it kills what runs, and ends */
	if (!ended(p->pid, STOP_MS)) {
		(void)kill(p->pid, SIGKILL); /* what it runs goes with it */
		(void)ended(p->pid, STOP_MS);
	}
	free(p);
}

static int ask(struct awscred_process *p, const char *command)
{
	struct request req = { .id = p->id + 1 };

	if (p->waiting && !strcmp(command, p->command))
		return 0; /* it is on its way */
	snprintf(req.command, sizeof(req.command), "%s", command);
	if (send(p->fd, &req, sizeof(req), MSG_NOSIGNAL) != (ssize_t)sizeof(req))
		return -EPIPE;
	memcpy(p->command, req.command, sizeof(p->command));
	p->id = req.id;
	p->waiting = true;
	return 0;
}

/* 0, -EAGAIN (nothing yet, or the result of something older), -EPIPE. */
static int receive(struct awscred_process *p, struct result *result, char *text, size_t *len)
{
	struct iovec iov[2] = { { result, sizeof(*result) }, { text, OUTPUT_MAX } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };
	ssize_t n = recvmsg(p->fd, &m, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n < (ssize_t)sizeof(*result))
		return -EPIPE;
	*len = (size_t)n - sizeof(*result);
	result->said[sizeof(result->said) - 1] = '\0';
	if (result->id != p->id)
		return -EAGAIN;
	p->waiting = false;
	return 0;
}

static int wait_result(struct awscred_process *p, struct result *result, char *text, size_t *len, uint64_t deadline,
    const atomic_bool *stopping)
{
	for (;;) {
		struct pollfd fd = { .fd = p->fd, .events = POLLIN };
		uint64_t now = io_boot_ms(), left = deadline > now ? deadline - now : 0;
		int r = receive(p, result, text, len);

		if (r != -EAGAIN)
			return r;
		if (!left || atomic_load(stopping))
			return -ETIMEDOUT;
		(void)poll(&fd, 1, left < SLICE_MS ? (int)left : SLICE_MS);
	}
}

static int explain(char *why, const struct result *r, const char *command)
{
	switch (r->error) {
	case 0:
		break;
	case -ETIMEDOUT:
		return awscred_say(why, -ETIMEDOUT, "credential_process '%.80s' does not end: killed", command);
	case -EFBIG:
		return awscred_say(why, -EINVAL, "credential_process '%.80s' prints too much", command);
	default:
		return awscred_say(why, -EINVAL, "cannot run credential_process '%.80s': %.60s", command,
		    strerrordesc_np(-r->error));
	}
	if (!r->code)
		return 0;
	return awscred_say(
	    why, -EINVAL, "credential_process '%.60s' failed with exit code %d: %.80s", command, r->code, r->said);
}

int awscred_process_run(struct awscred_process *p, const char *command, uint64_t deadline, const atomic_bool *stopping,
    char **out, size_t *len, char *why)
{
	CLEANUP_SECRET char *text = secret_alloc(OUTPUT_MAX + 1);
	struct result result = { .error = 0 };
	int r = text ? ask(p, command) : -ENOMEM;

	if (!r)
		r = wait_result(p, &result, text, len, deadline, stopping);
	if (r == -EPIPE)
		return awscred_say(why, -EINVAL, "the helper that runs credential_process is gone: restart byokfs");
	if (r == -ETIMEDOUT)
		return awscred_say(why, r, "credential_process '%.80s' has not answered yet", command);
	if (r)
		return awscred_say(why, r, "cannot ask for credential_process: %.60s", strerrordesc_np(-r));
	r = explain(why, &result, command);
	if (!r)
		*out = steal_ptr(&text);
	return r;
}
