/* cmd_import.c — `byokfsctl import`: a tree into a store, through a mount. Hides the checks before, the signals, and
 * the summary. */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "import.h"
#include "io.h"
#include "secret.h"

#define JOBS    8u
#define WAITING 512u /* entries that wait for a worker */

static volatile sig_atomic_t signalled;

bool import_signalled(void)
{
	return signalled != 0;
}

static void on_signal(int sig)
{
	signalled = sig;
}

/* System calls go on where they were: a worker looks between blocks. */
static void catch_signals(void)
{
	static const int sigs[] = { SIGINT, SIGTERM, SIGHUP };
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++)
		(void)sigaction(sigs[i], &action, NULL);
	(void)signal(SIGPIPE, SIG_IGN);
}

struct request {
	const char *src, *cipherdir, *into;
	enum import_verify verify;
	unsigned jobs;
	bool overwrite;
};

static int wrong(const char *option, const char *value, const char *what)
{
	cmd_error("--%s: '%s' is not %s", option, value, what);
	return EXIT_USAGE;
}

static int parse_verify(const char *text, enum import_verify *out)
{
	if (!text || strcmp(text, "copied") == 0)
		*out = VERIFY_COPIED;
	else if (strcmp(text, "full") == 0)
		*out = VERIFY_FULL;
	else if (strcmp(text, "none") == 0)
		*out = VERIFY_NONE;
	else
		return wrong("verify", text, "copied, full or none");
	return EXIT_OK;
}

/* A path that stays below where it begins. */
static bool stays_below(const char *path)
{
	if (*path == '/' || *path == '\0')
		return false;
	for (const char *p = path; p; p = strchr(p, '/')) {
		p += *p == '/';
		if (strncmp(p, "..", 2) == 0 && (p[2] == '/' || p[2] == '\0'))
			return false;
	}
	return true;
}

/* ---- where from, where to ---- */

/* Is this directory, or one above it, the other? */
static bool below(int dir, const struct stat *other)
{
	int fd = openat(dir, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat st, last = { 0 };
	bool found = false;

	while (fd >= 0 && fstat(fd, &st) == 0) {
		int up;

		found = st.st_dev == other->st_dev && st.st_ino == other->st_ino;
		if (found || (st.st_dev == last.st_dev && st.st_ino == last.st_ino))
			break;
		last = st;
		up = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
		(void)close(fd);
		fd = up;
	}
	if (fd >= 0)
		(void)close(fd);
	return found;
}

static int refuse_overlap(const struct request *r, int src, int other, const char *what)
{
	struct stat ours, theirs;

	if (fstat(src, &ours) || fstat(other, &theirs)) {
		cmd_error("cannot look at '%s': %s", r->src, strerror(errno));
		return EXIT_FAILED;
	}
	if (below(src, &theirs)) {
		cmd_error("'%s' lies in %s itself", r->src, what);
		return EXIT_FAILED;
	}
	if (below(other, &ours)) {
		cmd_error("%s lies in '%s', and would be copied into itself", what, r->src);
		return EXIT_FAILED;
	}
	return EXIT_OK;
}

static int open_source(const struct request *r, int *src)
{
	*src = open(r->src, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (*src >= 0)
		return EXIT_OK;
	cmd_error("cannot open the source '%s': %s", r->src, strerror(errno));
	return EXIT_FAILED;
}

/* One component further down; made when it is not there. */
static int step_into(int *dir, const char *part)
{
	int next;

	if (!*part || strcmp(part, ".") == 0)
		return 0;
	if (mkdirat(*dir, part, 0755) && errno != EEXIST)
		return -errno;
	next = openat(*dir, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (next < 0)
		return -errno;
	(void)close(*dir);
	*dir = next;
	return 0;
}

/* Below the mount's root. */
static int open_into(const struct request *r, int root, int *dst)
{
	char *copy CLEANUP_FREE = strdup(r->into ? r->into : "."), *rest = copy;
	const char *part;
	int ret = copy ? 0 : -ENOMEM;

	*dst = fcntl(root, F_DUPFD_CLOEXEC, 0);
	if (*dst < 0)
		ret = -errno;
	while (ret == 0 && (part = strsep(&rest, "/")))
		ret = step_into(dst, part);
	if (ret == 0)
		return EXIT_OK;
	cmd_error("cannot open '%s' in the store: %s", r->into ? r->into : ".", strerror(-ret));
	return EXIT_FAILED;
}

/* ---- how far ---- */

static struct import *counted; /* nftw(3) hands nothing on */

static int count_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)path;
	(void)type;
	(void)at;
	if (!S_ISDIR(st->st_mode) && !S_ISSOCK(st->st_mode))
		atomic_fetch_add(&counted->seen, 1);
	return import_stopped(counted);
}

static void *count(void *src)
{
	if (nftw(src, count_one, 64, FTW_PHYS | FTW_MOUNT) == 0)
		atomic_store(&counted->progress.total, atomic_load(&counted->seen));
	return NULL;
}

/* ---- the run ---- */

/* The files of a directory stay closed, its two descriptors do not. */
static void raise_nofile(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
}

static int open_crew(struct import *im, unsigned jobs)
{
	int ret = 0;

	for (unsigned i = 0; i < jobs && ret == 0; i++) {
		im->buffer[i] = aligned_alloc(4096, IMPORT_BUFFER);
		if (!im->buffer[i])
			ret = -ENOMEM;
	}
	return ret < 0 ? ret : crew_open(&im->crew, jobs, WAITING, import_entry, im);
}

/* Nothing is done before it is on the disk: the kernel's pages go to the daemon, the daemon's to the disk. */
static void sync_all(struct import *im)
{
	if (syncfs(im->dst) || syncfs(im->mount->store))
		import_stop(im, EXIT_FAILED, "cannot make the copy durable: %s", strerror(errno));
	else if (atomic_load(&im->unsynced))
		import_stop(im, EXIT_FAILED, "the store's disk reported errors while it was written");
}

/* An error of write-back that nobody was told yet is told to the first who asks. It may be about files that an import
 * which was cut short left behind: then what is there is read back. */
static void look_back(struct import *im)
{
	if (syncfs(im->dst) == 0)
		return;
	import_say(im, IMPORT_WARNING, NULL, "", "writes from before were lost (%s)%s", strerror(errno),
	    im->verify == VERIFY_NONE ? "" : ": what is there already is read back");
	if (im->verify == VERIFY_COPIED)
		im->verify = VERIFY_FULL;
	im->lost = true;
}

static int run(struct import *im, const struct request *r)
{
	pthread_t counter;
	bool counting;
	int ret;

	raise_nofile();
	progress_begin(&im->progress, "files", 0);
	ret = open_crew(im, r->jobs);
	if (ret < 0) {
		cmd_error("cannot start: %s", strerror(-ret));
		return EXIT_FAILED;
	}
	im->ran = true;
	counted = im;
	counting = im->progress.on && pthread_create(&counter, NULL, count, (void *)(uintptr_t)r->src) == 0;
	look_back(im);
	import_tree(im);
	crew_wait(im->crew);
	if (!import_stopped(im))
		sync_all(im);
	atomic_store(&im->stop, true); /* the counting */
	if (counting)
		(void)pthread_join(counter, NULL);
	progress_clear(&im->progress);
	if (signalled) {
		cmd_error("interrupted");
		cmd_hint("the same command goes on where this one ended");
		return EXIT_FAILED;
	}
	return im->stop_code ? im->stop_code : im->damaged ? EXIT_DAMAGE : im->failed ? EXIT_FAILED : EXIT_OK;
}

static void finish(struct import *im)
{
	crew_close(im->crew);
	import_link_free(im);
	for (unsigned i = 0; i < IMPORT_JOBS_MAX; i++)
		free(im->buffer[i]);
	cleanup_fd(&im->src);
	cleanup_fd(&im->dst);
}

static double seconds(const struct import *im)
{
	uint64_t ms = io_boot_ms() - im->started;

	return (double)(ms ? ms : 1) / 1000;
}

static int sum_up_json(const struct import *im, int code)
{
	double s = seconds(im);

	return cmd_print_json(json_pack(
	    "{s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:O}", "code", code, "files",
	    (json_int_t)im->files, "directories", (json_int_t)im->directories, "links", (json_int_t)im->links, "others",
	    (json_int_t)im->others, "bytes", (json_int_t)im->bytes, "skipped", (json_int_t)im->skipped, "failed",
	    (json_int_t)im->failed, "damaged", (json_int_t)im->damaged, "warnings", (json_int_t)im->warnings, "seconds",
	    s, "mb_per_s", (double)im->bytes / 1e6 / s, "problems", im->problems));
}

static int sum_up(const struct import *im)
{
	double s = seconds(im);

	(void)printf("%" PRIu64 " files, %" PRIu64 " directories, %" PRIu64 " hard links, %" PRIu64
	             " symbolic links and others copied, %" PRIu64 " there before\n",
	    im->files, im->directories, im->links, im->others, im->skipped);
	(void)printf("%.1f MB in %.1f s: %.1f MB/s; ", (double)im->bytes / 1e6, s, (double)im->bytes / 1e6 / s);
	if (im->failed || im->damaged || im->warnings)
		(void)printf("%" PRIu64 " failed, %" PRIu64 " damaged, %" PRIu64 " warnings\n", im->failed, im->damaged,
		    im->warnings);
	else
		(void)printf("no failures\n");
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

/* Through the mount that is open. */
static int import_through(struct import *im, const struct request *r)
{
	int code = im->mount->own ? EXIT_OK : refuse_overlap(r, im->src, im->mount->root, "the mount");

	if (code == EXIT_OK)
		code = open_into(r, im->mount->root, &im->dst);
	if (code != EXIT_OK)
		return code;
	code = run(im, r);
	im->bytes = atomic_load(&im->progress.bytes);
	return code;
}

static int import(const struct request *r, const struct cmd_args *args)
{
	struct import_mount mount;
	struct import im = { .mount = &mount,
		.src = -1,
		.dst = -1,
		.verify = r->verify,
		.overwrite = r->overwrite,
		.uid = geteuid(),
		.root = geteuid() == 0,
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.linked = PTHREAD_COND_INITIALIZER,
		.started = io_boot_ms(),
		.problems = args->json ? json_array() : NULL };
	int ended, code = open_source(r, &im.src);

	if (code != EXIT_OK)
		return code;
	secret_random(&im.run, sizeof(im.run));
	catch_signals();
	code = import_mount_open(&mount, args, r->cipherdir);
	if (code == EXIT_OK)
		code = refuse_overlap(r, im.src, mount.store, "the store");
	if (code == EXIT_OK)
		code = import_through(&im, r);
	finish(&im);
	ended = import_mount_close(&mount);
	code = code ? code : ended;
	if (im.ran) {
		ended = args->json ? sum_up_json(&im, code) : sum_up(&im);
		code = code ? code : ended;
	}
	json_decref(im.problems);
	return code;
}

int cmd_import(int argc, char **argv)
{
	const char *jobs = NULL, *verify = NULL;
	struct request r = { .jobs = JOBS };
	const struct cmd_option options[] = { { "into", &r.into, NULL }, { "jobs", &jobs, NULL },
		{ "verify", &verify, NULL }, { "overwrite", NULL, &r.overwrite }, { 0 } };
	struct cmd_args args;
	int code = cmd_parse(&args, argc, argv, CMD_CONFIG | CMD_JSON, options, 2, 2);

	if (code >= 0)
		return code;
	r.src = args.operand[0];
	r.cipherdir = args.operand[1];
	code = cmd_number("--jobs", jobs, IMPORT_JOBS_MAX, &r.jobs);
	if (code == EXIT_OK)
		code = parse_verify(verify, &r.verify);
	if (code == EXIT_OK && r.into && !stays_below(r.into))
		code = wrong("into", r.into, "a path below the root of the store");
	return code == EXIT_OK ? import(&r, &args) : code;
}
