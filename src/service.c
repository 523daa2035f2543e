/* An orderly stop is an unmount: dirty pages go out, hints are set, the marker goes. When the mount is busy the domain
 * is locked first, so that neither keys nor cached plaintext outlive the daemon. */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#include "alive.h"
#include "control.h"
#include "exitcode.h"
#include "io.h"
#include "log.h"
#include "notify.h"

#define FUSE_MAGIC 0x65735546

/* How long an unmounted connection may last that we were told to end. */
#define LINGER_MS 3000u

/* The parent: passes on what the child says, and believes in success only when the mount answers. */
__attribute__((noreturn)) static void wait_for(pid_t child, int fd, const char *mountpoint)
{
	struct statfs st;
	char code = EXIT_FAILED;
	int status;
	ssize_t n;

	do
		n = read(fd, &code, 1);
	while (n < 0 && errno == EINTR);
	if (n == 1 && code == EXIT_OK && (statfs(mountpoint, &st) || st.f_type != FUSE_MAGIC)) {
		fprintf(stderr, "byokfs: error: '%s' does not answer\n", mountpoint);
		code = EXIT_FAILED;
	}
	if (n != 1 && waitpid(child, &status, 0) == child && WIFEXITED(status))
		code = (char)WEXITSTATUS(status);
	_exit(code);
}

/* The daemon leaves the directory that a relative path in the environment starts from. */
static int pin_path(const char *variable)
{
	const char *value = getenv(variable);
	CLEANUP_FREE char *cwd = NULL;
	CLEANUP_FREE char *path = NULL;

	if (!value || !*value || *value == '/' || *value == '~')
		return 0;
	cwd = get_current_dir_name();
	if (!cwd || asprintf(&path, "%s/%s", cwd, value) < 0)
		return -ENOMEM;
	return setenv(variable, path, 1) ? -errno : 0;
}

static int leave_directory(void)
{
	static const char *const paths[] = { "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE" };
	int r = 0;

	for (size_t i = 0; !r && i < sizeof(paths) / sizeof(*paths); i++)
		r = pin_path(paths[i]);
	return !r && chdir("/") ? -errno : r;
}

int service_background(bool foreground, const char *mountpoint, int *ready_fd)
{
	int p[2];
	pid_t child;

	*ready_fd = -1;
	if (foreground)
		return 0;
	if (pipe2(p, O_CLOEXEC))
		return -errno;
	child = fork();
	if (child < 0)
		return -errno;
	if (child > 0) {
		(void)close(p[1]);
		wait_for(child, p[0], mountpoint);
	}
	(void)close(p[0]);
	(void)setsid();
	*ready_fd = p[1];
	return leave_directory();
}

struct others {
	size_t all, open;
};

static bool count_open(void *arg, struct domain *d)
{
	struct others *o = arg;

	o->all++;
	o->open += domain_is_open(d);
	return true;
}

/* For `systemctl status`. */
static void status_text(struct service *s, char *out, size_t size)
{
	struct lease_status ls;
	struct others o = { 0 };
	int n;

	domain_status(s->fs->first, &ls);
	domains_each(s->fs, count_open, &o);
	n = snprintf(out, size, "%s%s%s", lease_state_name(ls.state), *ls.reason ? ": " : "", ls.reason);
	if (n > 0 && (size_t)n < size && o.open < o.all && o.all > 1)
		(void)snprintf(out + n, size - (size_t)n, "; %zu of %zu key domains are open", o.open, o.all);
}

void service_notify(struct service *s, bool ready)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	char text[400];

	if (!notify_wanted())
		return;
	status_text(s, text, sizeof(text));
	LOCK_SCOPE(&lock);
	notify_status(text, ready);
}

void service_ready(void *arg)
{
	struct service *s = arg;
	char ok = EXIT_OK;

	service_notify(s, true);
	if (s->ready_fd < 0)
		return;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null >= 0) {
		(void)dup2(null, STDIN_FILENO);
		(void)dup2(null, STDOUT_FILENO);
		if (!s->keep_stderr)
			(void)dup2(null, STDERR_FILENO);
		(void)close(null);
	}
	if (write(s->ready_fd, &ok, 1) != 1)
		log_warn("nobody waits for the mount to be ready");
	(void)close(s->ready_fd);
	s->ready_fd = -1;
}

static void stop_set(sigset_t *set)
{
	(void)sigemptyset(set);
	(void)sigaddset(set, SIGTERM);
	(void)sigaddset(set, SIGINT);
	(void)sigaddset(set, SIGHUP);
}

static void nothing(int sig)
{
	(void)sig;
}

void service_block_signals(void)
{
	struct sigaction wake = { .sa_handler = nothing };
	sigset_t set;

	stop_set(&set);
	(void)pthread_sigmask(SIG_BLOCK, &set, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
	(void)sigaction(SIGUSR1, &wake, NULL); /* wakes the session loop, no more */
}

static void sync_mount(const char *mountpoint)
{
	CLEANUP_FD int fd = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0)
		(void)syncfs(fd);
}

static bool lock_one(void *arg, struct domain *d)
{
	(void)arg;
	if (domain_lock(d, "stopping") == -EALREADY)
		log_debug("locked already");
	return true;
}

static bool wait_locked(void *arg, struct domain *d)
{
	const uint64_t *end = arg;

	if (domain_wait(d, LEASE_LOCKED, *end))
		log_warn("locking did not end in time");
	return true;
}

/* What was written is on its way already. */
static void cut_off(struct service *s)
{
	uint64_t end = io_boot_ms() + 10000;

	domains_each(s->fs, lock_one, NULL);
	domains_each(s->fs, wait_locked, &end);
	__atomic_store_n(&s->cut, true, __ATOMIC_RELEASE);
	fuse_session_exit(s->fs->se);
	(void)pthread_kill(s->loop, SIGUSR1);
}

static void stop_mount(struct service *s)
{
	notify_send("STOPPING=1");
	if (s->stopping)
		return;
	s->stopping = true;
	if (umount2(s->mountpoint, UMOUNT_NOFOLLOW) == 0 || (errno != EBUSY && errno != EPERM)) {
		/* As a rule the session loop sees, or has seen, the end of the connection. */
		s->cut_at = io_boot_ms() + LINGER_MS;
		return;
	}
	log_warn("'%s' is busy: open files are cut off", s->mountpoint);
	sync_mount(s->mountpoint);
	cut_off(s);
}

/* Unmounted, but the connection lives on: a copy of the mount is in a mount namespace of somebody's own, or files are
 * open since a lazy unmount. No path of ours leads there, so all is synced. */
static void stop_detached(struct service *s)
{
	struct pollfd device = { .fd = fuse_session_fd(s->fs->se), .events = POLLIN };

	if (!s->cut_at || io_boot_ms() < s->cut_at)
		return;
	s->cut_at = 0;
	if (poll(&device, 1, 0) < 0 || device.revents & POLLERR)
		return; /* it has ended, and what is still at work may take its time */
	log_warn("'%s' is unmounted, but in use in another mount namespace or by files still open: it is cut off",
	    s->mountpoint);
	sync();
	s->detached = true;
	cut_off(s);
}

static void check_watchdog(struct service *s)
{
	if (s->watchdog_dead || !s->watchdog || watchdog_alive(s->watchdog))
		return;
	s->watchdog_dead = true;
	log_err("the watchdog died: cached plaintext would outlive a killed daemon; remount '%s' soon", s->mountpoint);
}

/* How long the signal thread sleeps: systemd hears of a change within a second, and that we are alive twice as often as
 * it asks. */
static struct timespec patience(uint64_t watchdog_ms)
{
	uint64_t ms = notify_wanted() ? 1000 : 5000;

	if (watchdog_ms && watchdog_ms / 2 < ms)
		ms = watchdog_ms / 2;
	return (struct timespec){ .tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000 };
}

/* Says that we are alive when it is time. *next: io_boot_ms() of it. */
static void pat(struct service *s, struct alive *alive, uint64_t watchdog_ms, uint64_t *next)
{
	uint64_t now = io_boot_ms();

	if (!watchdog_ms || now < *next)
		return;
	if (alive_check(alive, s->fs)) {
		*next = now + watchdog_ms / 2;
		s->stuck = false;
		notify_send("WATCHDOG=1");
		return;
	}
	/* Soon again: the lease thread may have slept while the machine did, and half the time is over. */
	*next = now;
	if (!s->stuck)
		log_err("no thread serves requests, and nothing is waited for: systemd is not told that all is well");
	s->stuck = true;
}

static void *signals(void *arg)
{
	struct service *s = arg;
	struct alive alive = { 0 };
	uint64_t watchdog_ms = notify_watchdog_ms(), next = 0;
	struct timespec wait = patience(watchdog_ms);
	sigset_t set;

	stop_set(&set);
	control_age_tick(s);
	for (;;) {
		int sig = sigtimedwait(&set, NULL, &wait);

		if (!__atomic_load_n(&s->running, __ATOMIC_ACQUIRE))
			return NULL;
		if (sig == SIGHUP)
			(void)sem_post(&s->reload);
		else if (sig > 0)
			stop_mount(s);
		stop_detached(s);
		if (s->cut)
			(void)pthread_kill(s->loop, SIGUSR1); /* the first may have come just before it waited */
		check_watchdog(s);
		control_age_tick(s);
		if (!s->stopping)
			service_notify(s, false);
		pat(s, &alive, watchdog_ms, &next);
	}
}

/* Reloads at a signal: a key service that hangs must not keep systemd and SIGTERM waiting. */
static void *reloads(void *arg)
{
	struct service *s = arg;

	for (;;) {
		if (sem_wait(&s->reload))
			continue;
		while (sem_trywait(&s->reload) == 0)
			;
		if (!__atomic_load_n(&s->running, __ATOMIC_ACQUIRE))
			return NULL;
		service_reload(s);
	}
}

/* Both or none. */
static int start_threads(struct service *s)
{
	bool begun;
	int r;

	if (sem_init(&s->reload, 0, 0))
		return -errno;
	__atomic_store_n(&s->running, true, __ATOMIC_RELEASE);
	r = pthread_create(&s->reloads, NULL, reloads, s);
	begun = r == 0;
	if (begun) {
		r = pthread_create(&s->signals, NULL, signals, s);
		if (!r)
			return 0;
	}
	__atomic_store_n(&s->running, false, __ATOMIC_RELEASE);
	if (begun) {
		(void)sem_post(&s->reload);
		(void)pthread_join(s->reloads, NULL);
	}
	return -r;
}

int service_start(struct service *s)
{
	int r;

	s->loop = pthread_self();
	s->started = io_unix_time();
	atomic_store(&s->key_age_days, s->config->alert.key_age_days);
	r = ctl_open(&s->ctl, s->mountpoint, control_answer, s);
	if (r) {
		log_warn("no control socket, so byokfsctl cannot reach this mount: %s", strerror(-r));
		s->ctl = NULL;
	}
	return start_threads(s);
}

void service_stop(struct service *s)
{
	ctl_close(s->ctl);
	s->ctl = NULL;
	control_domain_stop(s);
	control_rotate_stop(s);
	if (!__atomic_exchange_n(&s->running, false, __ATOMIC_ACQ_REL))
		return;
	(void)pthread_kill(s->signals, SIGHUP); /* it looks at `running` first */
	(void)pthread_join(s->signals, NULL);
	(void)sem_post(&s->reload);
	(void)pthread_join(s->reloads, NULL);
	if (s->own)
		config_free(s->own);
	free(s->own);
	s->own = NULL;
}
