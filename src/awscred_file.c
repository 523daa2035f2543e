/* awscred_file.c — the two files that the AWS tools share.
 *
 * Hides: where they are, how one profile is put together from both, and how a change is noticed. Text lives in secret
 * memory while it is parsed where it fits there, and is wiped in any case. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "awscred_internal.h"
#include "io.h"
#include "log.h"

#define FILE_MAX 1048576

const char *awscred_env(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

bool awscred_true(const char *text)
{
	return text && !strcasecmp(text, "true");
}

int awscred_say(char *why, int error, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(why, AWSCRED_WHY, fmt, ap);
	va_end(ap);
	return error;
}

const char *awscred_profile_name(const char *given)
{
	const char *name = given;

	name = name ? name : awscred_env("AWS_PROFILE");
	name = name ? name : awscred_env("AWS_DEFAULT_PROFILE");
	return name ? name : "default";
}

/* ---- where ---- */

static char users_home[AWSCRED_PATH];

/* The user database may be slow to answer: it is asked once. */
static void ask_home(void)
{
	struct passwd pw, *found = NULL;
	char buf[2048];

	if (!getpwuid_r(geteuid(), &pw, buf, sizeof(buf), &found) && found && strlen(pw.pw_dir) < AWSCRED_PATH)
		strcpy(users_home, pw.pw_dir);
}

/* HOME, or what the user database says: a daemon may have no HOME. */
static int home(char out[static AWSCRED_PATH])
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	const char *dir = awscred_env("HOME");

	if (!dir) {
		(void)pthread_once(&once, ask_home);
		dir = users_home;
	}
	if (!*dir || strlen(dir) >= AWSCRED_PATH)
		return -ENOENT;
	strcpy(out, dir);
	return 0;
}

int awscred_file_path(char out[static AWSCRED_PATH], enum awscred_file which)
{
	const char *given =
	    awscred_env(which == AWSCRED_CONFIG ? "AWS_CONFIG_FILE" : "AWS_SHARED_CREDENTIALS_FILE");
	const char *below = which == AWSCRED_CONFIG ? "/.aws/config" : "/.aws/credentials";
	size_t n = 0;

	if (given && strncmp(given, "~/", 2)) {
		n = strlen(given);
		if (n >= AWSCRED_PATH)
			return -ENAMETOOLONG;
		memcpy(out, given, n + 1);
		return 0;
	}
	if (home(out))
		return -ENOENT;
	below = given ? given + 1 : below;
	n = strlen(out);
	if (n + strlen(below) >= AWSCRED_PATH)
		return -ENAMETOOLONG;
	strcpy(out + n, below);
	return 0;
}

/* ---- when ---- */

void awscred_files_look(struct awscred_seen *seen)
{
	char path[AWSCRED_PATH];

	memset(seen, 0, sizeof(*seen));
	for (enum awscred_file i = AWSCRED_CREDENTIALS; i <= AWSCRED_CONFIG; i++)
		if (awscred_file_path(path, i) || stat(path, &seen->st[i]))
			memset(&seen->st[i], 0, sizeof(seen->st[i]));
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool same(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	    same_time(a->st_mtim, b->st_mtim) && same_time(a->st_ctim, b->st_ctim);
}

bool awscred_files_same(const struct awscred_seen *a, const struct awscred_seen *b)
{
	return same(&a->st[0], &b->st[0]) && same(&a->st[1], &b->st[1]);
}

/* ---- reading ---- */

struct text {
	char *p;
	size_t len;
};

static void free_text(struct text *t)
{
	if (t->p)
		explicit_bzero(t->p, t->len);
	free(t->p);
}

#define CLEANUP_TEXT __attribute__((cleanup(free_text)))

/* p stays NULL when there is no file. Symbolic links are followed: people use them. */
static int read_text(struct text *t, const char *path, struct stat *st)
{
	CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t n;

	if (fd < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : -errno;
	if (fstat(fd, st))
		return -errno;
	if (!S_ISREG(st->st_mode))
		return -EINVAL;
	if (st->st_size > FILE_MAX)
		return -EFBIG;
	t->len = (size_t)st->st_size;
	t->p = malloc(t->len + 1);
	if (!t->p)
		return -ENOMEM;
	n = io_pread(fd, t->p, t->len, 0);
	if (n < 0)
		return (int)n;
	t->p[n] = '\0';
	return memchr(t->p, '\0', (size_t)n) ? -EINVAL : 0;
}

static void warn_once(const char *path, mode_t mode)
{
	static atomic_bool warned;

	if (mode & S_IROTH && !atomic_exchange(&warned, true))
		log_warn("%s is readable by everybody: run 'chmod 600 %s'", path, path);
}

/* A file that may not be read is no denial by STS, nor does it take long. */
static int cannot_read(char *why, const char *path, int r)
{
	int told = r == -EACCES ? -EPERM : r == -ETIMEDOUT ? -EIO : r;

	return awscred_say(why, told, "cannot read %.120s: %.60s", path, strerrordesc_np(-r));
}

static int load_file(
    struct awscred_profile *out, enum awscred_file which, const char *profile, const char *service, char *why)
{
	CLEANUP_TEXT struct text text = { 0 }, again = { 0 };
	char path[AWSCRED_PATH] = "";
	struct stat st = { 0 };
	int r;

	if (awscred_file_path(path, which) == -ENOENT)
		return 0; /* no home, no file */
	r = read_text(&text, path, &st);
	if (r)
		return cannot_read(why, path, r);
	if (!text.p)
		return 0;
	if (which == AWSCRED_CREDENTIALS)
		warn_once(path, st.st_mode);
	r = awscred_ini_profile(out, which, text.p, profile, path, why);
	if (r || !service || !*out->services)
		return r;
	r = read_text(&again, path, &st); /* parsing has cut the text up */
	if (r)
		return cannot_read(why, path, r);
	return again.p ? awscred_ini_service(out, again.p, service, path, why) : 0;
}

int awscred_files_load(struct awscred_profiles *out, const char *profile, const char *service, char *why)
{
	int r;

	explicit_bzero(out, sizeof(*out));
	r = load_file(&out->file[AWSCRED_CONFIG], AWSCRED_CONFIG, profile, service, why);
	return r ? r : load_file(&out->file[AWSCRED_CREDENTIALS], AWSCRED_CREDENTIALS, profile, NULL, why);
}

int awscred_read_small(char **out, const char *path, size_t max, char *why)
{
	CLEANUP_TEXT struct text text = { 0 };
	struct stat st;
	size_t n;
	int r = read_text(&text, path, &st);

	if (!r && !text.p)
		r = -ENOENT;
	n = r ? 0 : strlen(text.p);
	while (n && strchr(" \t\r\n", text.p[n - 1]))
		n--;
	if (!r && (!n || n > max))
		r = n ? -EFBIG : -ENODATA;
	if (r)
		return cannot_read(why, path, r);
	*out = secret_alloc(n + 1);
	if (!*out)
		return cannot_read(why, path, -ENOMEM);
	memcpy(*out, text.p, n);
	return 0;
}

static const char *prefer(const struct awscred_profiles *p, enum awscred_file first, size_t offset)
{
	const char *value = (const char *)&p->file[first] + offset;

	return *value ? value : (const char *)&p->file[!first] + offset;
}

const char *awscred_pick(const struct awscred_profiles *p, size_t offset)
{
	return prefer(p, AWSCRED_CREDENTIALS, offset);
}

const char *awscred_setting(const struct awscred_profiles *p, size_t offset)
{
	return prefer(p, AWSCRED_CONFIG, offset);
}
