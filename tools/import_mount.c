/* import_mount.c — the mount that is copied into: the one that is there, or one of our own on a private mount point.
 *
 * Hides the daemon we start: it gets SIGTERM when we die, however that happens, and unmounts. The lock on the store is
 * inherited by it, so that the next import waits for its end. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "import.h"
#include "io.h"
#include "jsonio.h"

#define STATUS_MS  10000u
#define LOCK_MS    15000u  /* for the daemon of an import that was killed */
#define START_MS   180000u /* the daemon has its own, shorter deadlines */
#define END_MS     300000u
#define POLL_NS    20000000L
#define FUSE_MAGIC 0x65735546
#define PRIVATE    "import-"

static void nap(void)
{
	const struct timespec pause = { .tv_nsec = POLL_NS };

	(void)nanosleep(&pause, NULL);
}

/* ---- what is mounted ---- */

static bool is_store(const json_t *answer, const struct stat *store)
{
	const char *path = jsonio_str(answer, "cipherdir");
	struct stat st;

	return path && stat(path, &st) == 0 && st.st_dev == store->st_dev && st.st_ino == store->st_ino;
}

/* A mount of byokfs that can be written to. */
static bool usable(const char *point)
{
	struct statvfs how;
	struct statfs fs;

	return statfs(point, &fs) == 0 && fs.f_type == FUSE_MAGIC && statvfs(point, &how) == 0 &&
	    !(how.f_flag & ST_RDONLY);
}

static int state_of(const json_t *domain, char *why, size_t size)
{
	const char *state = jsonio_str(domain, "state"), *reason = jsonio_str(domain, "reason");
	int code = (int)json_integer_value(json_object_get(domain, "refusal"));
	char cut[300], safe[4 * sizeof(cut) + 1];

	if (state && strcmp(state, "open") == 0)
		return EXIT_OK;
	(void)snprintf(cut, sizeof(cut), "%s", reason && *reason ? reason : "no reason was given");
	cmd_escape(safe, cut);
	(void)snprintf(why, size, "the store is %s: %s", state ? state : "not open", safe);
	return code > 0 && code < 64 ? code : EXIT_FAILED;
}

/* A key domain that was locked before is its files' trouble only. */
static int states_of(const json_t *answer, int64_t since, char *why, size_t size)
{
	const json_t *domains = json_object_get(answer, "domains"), *d;
	int code = EXIT_OK;
	size_t i;

	json_array_foreach(domains, i, d)
	{
		bool old = i > 0 && json_integer_value(json_object_get(d, "since_unix")) < since;

		if (code == EXIT_OK && !old)
			code = state_of(d, why, size);
	}
	return code;
}

static int ask(const char *point, json_t **answer)
{
	json_t *request = json_pack("{s:s}", "verb", "status");
	int ret = request ? ctl_call(point, request, STATUS_MS, answer) : -ENOMEM;

	json_decref(request);
	return ret;
}

int import_mount_state(const struct import_mount *m, char *why, size_t size)
{
	json_t *answer = NULL;
	int code, ret = ask(m->point, &answer);

	if (ret < 0) {
		(void)snprintf(why, size, "the daemon of the mount '%s' does not answer: %s", m->point, strerror(-ret));
		return EXIT_FAILED;
	}
	code = states_of(answer, m->since, why, size);
	json_decref(answer);
	return code;
}

/* EXIT_OK: m->point is set if the store is mounted. */
static int find(struct import_mount *m, const struct stat *store)
{
	json_t *list = json_array(), *answer;
	int code = EXIT_OK, ret = list ? cmd_mounts(list) : -ENOMEM;
	char why[500];
	size_t i;

	json_array_foreach(list, i, answer)
	{
		const char *point = jsonio_str(answer, "mountpoint");

		if (ret || *m->point || !is_store(answer, store) || !point || !usable(point))
			continue;
		(void)snprintf(m->point, sizeof(m->point), "%s", point);
		code = states_of(answer, INT64_MAX, why, sizeof(why));
		if (code != EXIT_OK)
			cmd_error("cannot import through the mount '%s': %s", point, why);
	}
	json_decref(list);
	if (ret < 0 && ret != -ENOENT)
		cmd_error("cannot look for mounts: %s", strerror(-ret));
	return ret < 0 && ret != -ENOENT ? EXIT_FAILED : code;
}

/* ---- a mount of our own ---- */

/* The directory of the control sockets, ours alone. */
static int base_directory(char *base)
{
	struct stat st;
	int ret = ctl_directory(base);

	if (ret < 0)
		return ret;
	if (mkdir(base, 0700) && errno != EEXIST)
		return -errno;
	if (lstat(base, &st))
		return -errno;
	return S_ISDIR(st.st_mode) && st.st_uid == geteuid() && (st.st_mode & 022) == 0 ? 0 : -EPERM;
}

/* fusermount3(1) unmounts for an ordinary user. No other thread is there, before the work and after it. */
static bool unmount_as_user(const char *point, bool cut)
{
	pid_t pid = fork();
	int status = 1;

	if (pid == 0) {
		(void)execlp("fusermount3", "fusermount3", cut ? "-quz" : "-qu", point, (char *)NULL);
		_exit(EXIT_FAILED);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

static bool unmount(const char *point, bool cut)
{
	return geteuid() == 0 ? umount2(point, UMOUNT_NOFOLLOW | (cut ? MNT_DETACH : 0)) == 0
	                      : unmount_as_user(point, cut);
}

/* The mount stays when its daemon is killed as well. One that still answers ends by itself. */
static void clear_orphan(int dir, const char *base, const char *name)
{
	char point[CTL_PATH + NAME_MAX + 2];
	json_t *answer = NULL;
	int ret;

	if (unlinkat(dir, name, AT_REMOVEDIR) == 0 || errno != EBUSY)
		return;
	(void)snprintf(point, sizeof(point), "%s/%s", base, name);
	ret = ask(point, &answer);
	json_decref(answer);
	if ((ret == -ECONNREFUSED || ret == -ENOENT) && unmount(point, true))
		(void)unlinkat(dir, name, AT_REMOVEDIR);
}

/* Mount points of imports that were killed: is there one? */
static bool orphans(const char *base, bool clear)
{
	DIR *dir = opendir(base);
	const struct dirent *entry;
	bool found = false;
	char end;
	int pid;

	while (dir && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, PRIVATE "%d%c", &pid, &end) != 2 || end != '.' || pid <= 0 || !kill(pid, 0) ||
		    errno != ESRCH)
			continue;
		found = true;
		if (clear)
			clear_orphan(dirfd(dir), base, entry->d_name);
	}
	if (dir)
		(void)closedir(dir);
	return found;
}

static int make_point(struct import_mount *m)
{
	char base[CTL_PATH];
	int ret = base_directory(base);

	if (ret < 0) {
		cmd_error("cannot make a mount point below '%s': %s", base, strerror(-ret));
		return EXIT_FAILED;
	}
	(void)orphans(base, true);
	(void)snprintf(m->point, sizeof(m->point), "%s/" PRIVATE "%d.XXXXXX", base, (int)getpid());
	m->own = mkdtemp(m->point);
	if (m->own)
		return EXIT_OK;
	cmd_error("cannot make a mount point below '%s': %s", base, strerror(errno));
	*m->point = '\0';
	return EXIT_FAILED;
}

/* The program beside this one, else by PATH. */
static void find_program(char *out)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n > 0) {
		self[n] = '\0';
		if ((size_t)snprintf(out, PATH_MAX, "%s/byokfs", dirname(self)) < PATH_MAX && access(out, X_OK) == 0)
			return;
	}
	(void)snprintf(out, PATH_MAX, "byokfs");
}

/* program -f [-c FILE] -o nosuid,nodev -o ... CIPHERDIR POINT */
struct command {
	char program[PATH_MAX], store[PATH_MAX];
	const char *argv[2 * CMD_SETTINGS + 16];
	int n;
};

static void word(struct command *c, const char *text)
{
	c->argv[c->n++] = text;
	c->argv[c->n] = NULL;
}

static void compose(struct command *c, const struct import_mount *m, const struct cmd_args *args)
{
	bool level = false;

	find_program(c->program);
	word(c, c->program);
	word(c, "-f");
	if (args->config) {
		word(c, "-c");
		word(c, args->config);
	}
	word(c, "-o");
	word(c, "nosuid,nodev");
	for (size_t i = 0; i < args->nsetting; i++) {
		word(c, "-o");
		word(c, args->setting[i]);
		level |= strstr(args->setting[i], "log.level=") != NULL;
	}
	if (!level) {
		word(c, "-o");
		word(c, "log.level=err"); /* why it locks, we say */
	}
	word(c, "--");
	word(c, c->store);
	word(c, m->point);
}

/* The child: of its own session, so that a ^C is for us to act upon. */
static _Noreturn void become(const struct command *c, int lock, pid_t parent)
{
	char *argv[2 * CMD_SETTINGS + 16];
	int null = open("/dev/null", O_RDONLY);
	sigset_t none;

	for (int i = 0; i <= c->n; i++)
		memcpy(&argv[i], &c->argv[i], sizeof(argv[i])); /* execvp() wants them writable, and does not write */
	(void)setsid();
	(void)prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(EXIT_FAILED); /* it died before */
	for (int sig = 1; sig < NSIG; sig++)
		(void)signal(sig, SIG_DFL);
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	(void)unsetenv("NOTIFY_SOCKET");
	lock = fcntl(lock, F_DUPFD, 4); /* dup2() onto itself would leave it to close */
	if (null < 0 || lock < 0 || dup2(null, 0) < 0 || dup2(2, 1) < 0 || dup2(lock, 3) < 0)
		_exit(EXIT_FAILED);
	(void)close_range(4, ~0u, 0);
	(void)execvp(argv[0], argv);
	(void)dprintf(2, "byokfsctl: error: cannot run '%s': %s\n", argv[0], strerror(errno));
	_exit(EXIT_FAILED);
}

/* Waits for its end. The exit code, or -1 when it goes on. */
static int reap(struct import_mount *m, uint64_t ms)
{
	uint64_t end = io_boot_ms() + ms;
	int status;
	pid_t pid;

	while ((pid = waitpid(m->daemon, &status, WNOHANG)) == 0 && io_boot_ms() < end)
		nap();
	if (pid == 0)
		return -1;
	m->daemon = 0;
	return pid > 0 && WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILED;
}

/* Until the mount answers. Why it does not, the daemon says itself. */
static int wait_ready(struct import_mount *m)
{
	uint64_t end = io_boot_ms() + START_MS;
	json_t *answer = NULL;
	int ret;

	while ((ret = ask(m->point, &answer)) < 0) {
		int code = reap(m, 0);

		if (code >= 0)
			return code ? code : EXIT_FAILED;
		if (ret == -EACCES || ret == -EPERM || ret == -ENOMEM)
			return cmd_call_failed(m->point, ret);
		if (import_signalled()) {
			cmd_error("interrupted");
			return EXIT_FAILED;
		}
		if (io_boot_ms() > end) {
			cmd_error("the mount did not begin in time");
			return EXIT_FAILED;
		}
		nap();
	}
	json_decref(answer);
	return EXIT_OK;
}

/* A signal that comes before exec(2) ends the child: the handler that it has from us until then would swallow it. */
static pid_t fork_daemon(void)
{
	static const int sigs[] = { SIGINT, SIGTERM, SIGHUP };
	const size_t n = sizeof(sigs) / sizeof(sigs[0]);
	sigset_t held, before;
	pid_t pid;

	(void)sigemptyset(&held);
	for (size_t i = 0; i < n; i++)
		(void)sigaddset(&held, sigs[i]);
	(void)pthread_sigmask(SIG_BLOCK, &held, &before);
	pid = fork();
	for (size_t i = 0; pid == 0 && i < n; i++)
		(void)signal(sigs[i], SIG_DFL);
	(void)pthread_sigmask(SIG_SETMASK, &before, NULL);
	return pid;
}

static int start(struct import_mount *m, const struct cmd_args *args, const char *cipherdir)
{
	struct command command = { .n = 0 };
	pid_t self = getpid();
	int code = make_point(m);

	if (code != EXIT_OK)
		return code;
	if (!realpath(cipherdir, command.store)) {
		cmd_error("cannot open store '%s': %s", cipherdir, strerror(errno));
		return EXIT_NOT_A_STORE;
	}
	compose(&command, m, args);
	m->daemon = fork_daemon();
	if (m->daemon == 0)
		become(&command, m->store, self);
	if (m->daemon > 0)
		return wait_ready(m);
	cmd_error("cannot start the mount: %s", strerror(errno));
	m->daemon = 0;
	return EXIT_FAILED;
}

/* ---- both ---- */

/* One import into a store at a time: temporaries of another one would be swept away. */
static int lock_store(struct import_mount *m, const char *cipherdir)
{
	uint64_t end = io_boot_ms() + LOCK_MS;
	char base[CTL_PATH];

	m->store = open(cipherdir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m->store < 0 || faccessat(m->store, ".byokfs", F_OK, AT_SYMLINK_NOFOLLOW)) {
		cmd_error("'%s' is not a store: %s", cipherdir,
		    m->store < 0 ? strerror(errno) : "it has no '.byokfs'");
		cmd_hint("make one with 'byokfsctl init'");
		return EXIT_NOT_A_STORE;
	}
	while (flock(m->store, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK)
			return EXIT_OK; /* a backing without such locks */
		if (io_boot_ms() > end || import_signalled() || ctl_directory(base) || !orphans(base, false)) {
			cmd_error("another import into '%s' is running", cipherdir);
			return EXIT_ALREADY;
		}
		nap();
	}
	return EXIT_OK;
}

int import_mount_open(struct import_mount *m, const struct cmd_args *args, const char *cipherdir)
{
	struct stat store;
	int code;

	*m = (struct import_mount){ .root = -1, .store = -1 };
	code = lock_store(m, cipherdir);
	if (code == EXIT_OK && fstat(m->store, &store)) {
		cmd_error("cannot look at '%s': %s", cipherdir, strerror(errno));
		code = EXIT_FAILED;
	}
	if (code == EXIT_OK)
		code = find(m, &store);
	if (code == EXIT_OK && !*m->point)
		code = start(m, args, cipherdir);
	if (code != EXIT_OK)
		return code;
	m->since = io_unix_time();
	m->root = open(m->point, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m->root >= 0)
		return EXIT_OK;
	cmd_error("cannot open the mount '%s': %s", m->point, strerror(errno));
	return EXIT_FAILED;
}

/* In order; a mount that somebody looks into is cut off. */
static int end_daemon(struct import_mount *m, bool began)
{
	int code;

	if (!unmount(m->point, false))
		(void)kill(m->daemon, SIGTERM);
	code = reap(m, END_MS);
	if (code == 0 || (code > 0 && !began))
		return EXIT_OK;
	cmd_error(code < 0 ? "the mount '%s' does not end" : "the mount '%s' did not end in order", m->point);
	return EXIT_FAILED;
}

int import_mount_close(struct import_mount *m)
{
	bool began = m->root >= 0;
	int code = EXIT_OK;

	cleanup_fd(&m->root);
	if (m->daemon > 0)
		code = end_daemon(m, began);
	if (m->own)
		(void)rmdir(m->point);
	cleanup_fd(&m->store);
	return code;
}
