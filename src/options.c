/* Three kinds of -o words: ours (config=, locked_start, section.key=value), the kernel's and libfuse's (handed on), and
 * those that only mount(8), systemd and fstab care about (ignored). Anything else is a mistake somebody should hear
 * about now.                      */
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "exitcode.h"

static const char *const handed_on[] = {
	"allow_other",
	"default_permissions",
	"rw",
	"suid",
	"nosuid",
	"dev",
	"nodev",
	"exec",
	"noexec",
	"atime",
	"noatime",
	"sync",
	"dirsync",
	"async",
	"diratime",
	"nodiratime",
	"relatime",
	"norelatime",
	"strictatime",
	"nostrictatime",
};
static const char *const ignored[] = {
	"_netdev",
	"nofail",
	"user",
	"users",
	"nouser",
	"owner",
	"group",
	"auto",
	"noauto",
	"defaults",
	"loud",
	"silent",
};

static bool listed(const char *word, const char *const *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(word, list[i]) == 0)
			return true;
	return false;
}

static void usage(FILE *to)
{
	fputs("usage: byokfs [-c FILE] [-o OPT,...] [-f] [-d] CIPHERDIR MOUNTPOINT\n"
	      "\n"
	      "Mounts the store CIPHERDIR at MOUNTPOINT.\n"
	      "  -c FILE   configuration (default: $BYOKFS_CONFIG, else " CONFIG_PATH ")\n"
	      "  -o OPT    mount options, locked_start, config=FILE, or section.key=value as in byokfs.ini(5)\n"
	      "  -f        stay in the foreground; ready is told to systemd\n"
	      "  -d        debug: log every decision (implies -f)\n"
	      "  -V, -h    version, this help\n",
	    to);
}

/* Prints "byokfs: error: <what> '<quoted>'" (quoted may be NULL) and returns the code. */
static int say(const char *what, const char *quoted, int code)
{
	if (quoted)
		fprintf(stderr, "byokfs: error: %s '%s'\n", what, quoted);
	else
		fprintf(stderr, "byokfs: error: %s\n", what);
	return code;
}

#define LISTS 32u

/* The words of -o. section.key=value pairs are kept for after the file was read. */
struct words {
	char *list[LISTS]; /* as given */
	size_t lists;
	bool sloppy;      /* what nobody knows is passed over */
	const char *file; /* config=FILE; -c wins over it */
	char *fuse;       /* comma-joined words for libfuse */
};

static int hand_on(struct words *w, const char *word)
{
	char *joined;

	if (asprintf(&joined, "%s%s%s", w->fuse ? w->fuse : "", w->fuse ? "," : "", word) < 0)
		return say("out of memory", NULL, EXIT_FAILED);
	free(w->fuse);
	w->fuse = joined;
	return 0;
}

static int keep(struct options *o, const char *word)
{
	if (o->nsettings == OPTIONS_SETTINGS)
		return say("too many -o settings at", word, EXIT_USAGE);
	o->setting[o->nsettings] = strdup(word);
	return o->setting[o->nsettings++] ? 0 : say("out of memory", NULL, EXIT_FAILED);
}

static int take_word(struct options *o, struct words *w, char *word)
{
	const char *eq = strchr(word, '='), *dot = strchr(word, '.');

	if (strncmp(word, "config=", 7) == 0) {
		w->file = word + 7;
		return 0;
	}
	if (strcmp(word, "locked_start") == 0)
		return keep(o, "mount.locked_start=yes");
	if (strcmp(word, "ro") == 0) {
		o->readonly = true;
		return hand_on(w, word);
	}
	if (strcmp(word, "noatime") == 0)
		o->noatime = true;
	if (strcmp(word, "remount") == 0)
		return say("a mounted store keeps its options: unmount it, and mount it again", NULL, EXIT_USAGE);
	if (listed(word, ignored, sizeof(ignored) / sizeof(*ignored)) || strncmp(word, "x-", 2) == 0 ||
	    strncmp(word, "comment=", 8) == 0 || strncmp(word, "user=", 5) == 0 || *word == '\0')
		return 0;
	if (listed(word, handed_on, sizeof(handed_on) / sizeof(*handed_on)))
		return hand_on(w, word);
	if (eq && dot && dot < eq)
		return keep(o, word);
	return w->sloppy ? 0 : say("unknown option", word, EXIT_USAGE);
}

static int take_words(struct options *o, struct words *w, char *list)
{
	char *word;

	while ((word = strsep(&list, ",")) != NULL) {
		int r = take_word(o, w, word);

		if (r)
			return r;
	}
	return 0;
}

static int keep_words(struct words *w, char *list)
{
	if (w->lists == LISTS)
		return say("too many -o at", list, EXIT_USAGE);
	w->list[w->lists++] = list;
	return 0;
}

/* mount -N: the helper goes there itself. Before there are threads. */
static int enter_namespace(const char *path)
{
	CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0 && setns(fd, CLONE_NEWNS) == 0)
		return 0;
	fprintf(stderr, "byokfs: error: cannot enter the mount namespace '%s': %s\n", path, strerror(errno));
	return EXIT_FAILED;
}

/* mount(8) calls its helper with flags of its own: -f is "fake" there, -s "sloppy", -n and -v are noise. */
static int take_flags(struct options *o, struct words *w, int argc, char **argv, bool *done)
{
	bool helper = strncmp(o->program, "mount.", 6) == 0;
	int c, r = 0;

	opterr = 0;
	while (!r && (c = getopt(argc, argv, helper ? "o:fnsvN:t:hV" : "c:o:fdhV")) != -1) {
		switch (c) {
		case 'c':
			o->config_path = optarg;
			break;
		case 'o':
			r = keep_words(w, optarg);
			break;
		case 's':
			w->sloppy = true;
			break;
		case 'N':
			r = enter_namespace(optarg);
			break;
		case 'f':
			*(helper ? &o->fake : &o->foreground) = true;
			break;
		case 'd':
			o->debug = o->foreground = true;
			break;
		case 'h':
			usage(stdout);
			*done = true;
			return 0;
		case 'V':
			puts("byokfs " BYOKFS_VERSION);
			*done = true;
			return 0;
		case '?':
			usage(stderr);
			return EXIT_USAGE;
		default:
			break;
		}
	}
	for (size_t i = 0; !r && i < w->lists; i++)
		r = take_words(o, w, w->list[i]);
	return r;
}

static bool inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0' || n == 1);
}

static int take_paths(struct options *o, int argc, char **argv)
{
	struct stat st;

	if (argc - optind != 2) {
		usage(stderr);
		return EXIT_USAGE;
	}
	o->store = realpath(argv[optind], NULL);
	if (!o->store)
		return say("cannot find the store", argv[optind], EXIT_NOT_A_STORE);
	if (stat(argv[optind + 1], &st) && errno == ENOTCONN) {
		(void)say("the mount's daemon died:", argv[optind + 1], 0);
		fprintf(stderr, "byokfs: hint: umount '%s' first\n", argv[optind + 1]);
		return EXIT_ALREADY;
	}
	o->mountpoint = realpath(argv[optind + 1], NULL);
	if (!o->mountpoint || stat(o->mountpoint, &st) || !S_ISDIR(st.st_mode))
		return say("the mount point is not a directory:", argv[optind + 1], EXIT_FAILED);
	if (inside(o->mountpoint, o->store) || inside(o->store, o->mountpoint))
		return say("store and mount point must not lie inside each other:", o->mountpoint, EXIT_USAGE);
	return 0;
}

/* On top of the file, which was read with r. */
static int add_settings(const struct options *o, struct config *c, int r, char *why)
{
	for (size_t i = 0; !r && i < o->nsettings; i++) {
		CLEANUP_FREE char *name = strdup(o->setting[i]);
		char *eq = name ? strchr(name, '=') : NULL;

		if (!eq) {
			(void)snprintf(why, CONFIG_WHY, "out of memory");
			return -ENOMEM;
		}
		*eq = '\0';
		r = config_set(c, name, eq + 1, why);
	}
	if (!r)
		r = config_check(c, why);
	return r;
}

/* The daemon leaves this directory, and its links may be set anew: an absolute path, but not a real one. */
static int keep_file(struct options *o, const char *file)
{
	CLEANUP_FREE char *cwd = *file == '/' ? NULL : get_current_dir_name();

	if (asprintf(&o->config_file, "%s%s%s", cwd ? cwd : "", cwd ? "/" : "", file) < 0)
		o->config_file = NULL;
	return o->config_file ? 0 : say("out of memory", NULL, EXIT_FAILED);
}

static int load_config(struct options *o, struct config *c, struct words *w)
{
	char why[CONFIG_WHY];

	if (add_settings(o, c, config_load(c, o->config_path ? o->config_path : w->file, why), why))
		return say(why, NULL, EXIT_CONFIG);
	return c->source ? keep_file(o, c->source) : 0;
}

int options_reload(const struct options *o, struct config *c, char *why)
{
	config_init(c);
	return add_settings(o, c, config_reload(c, o->config_file, why), why);
}

/* fsname is what mount(8) and df show; libfuse wants commas and backslashes escaped. */
static int fuse_words(struct options *o, struct words *w, bool root)
{
	char escaped[2 * PATH_MAX + 1], *all;
	size_t n = 0;

	for (const char *p = o->store; *p && n < sizeof(escaped) - 2; p++) {
		if (*p == ',' || *p == '\\')
			escaped[n++] = '\\';
		escaped[n++] = *p;
	}
	escaped[n] = '\0';
	if (asprintf(&all, "-ofsname=%s,subtype=byokfs,default_permissions%s%s%s", escaped, root ? ",allow_other" : "",
	        w->fuse ? "," : "", w->fuse ? w->fuse : "") < 0)
		return say("out of memory", NULL, EXIT_FAILED);
	int r = fuse_opt_add_arg(&o->args, "byokfs") || fuse_opt_add_arg(&o->args, all) ||
	    (o->debug && getenv("BYOKFS_FUSE_DEBUG") && fuse_opt_add_arg(&o->args, "-d"));

	free(all);
	return r ? say("out of memory", NULL, EXIT_FAILED) : 0;
}

int options_parse(struct options *o, struct config *c, int argc, char **argv, bool *done)
{
	struct words w = { 0 };
	const char *slash = strrchr(argv[0], '/');
	int r;

	*done = false;
	*o = (struct options){ .program = slash ? slash + 1 : argv[0] };
	r = take_flags(o, &w, argc, argv, done);
	if (!r && !*done)
		r = take_paths(o, argc, argv);
	if (!r && !*done)
		r = load_config(o, c, &w);
	if (!r && !*done)
		r = fuse_words(o, &w, geteuid() == 0);
	free(w.fuse);
	return r;
}

enum log_level options_log_level(const struct options *o, const struct config *c)
{
	static const char *const names[] = { "err", "warn", "info", "debug" };

	if (o->debug)
		return LOG_LEVEL_DEBUG;
	for (unsigned i = 0; i < 4; i++)
		if (c->log.level && strcmp(c->log.level, names[i]) == 0)
			return (enum log_level)i;
	return LOG_LEVEL_INFO;
}

void options_free(struct options *o)
{
	for (size_t i = 0; i < o->nsettings; i++)
		free(o->setting[i]);
	free(o->config_file);
	free(o->store);
	free(o->mountpoint);
	fuse_opt_free_args(&o->args);
}
