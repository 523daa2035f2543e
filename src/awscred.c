/* awscred.c — where the AWS tools would find credentials.
 *
 * Hides: the order of sources, the paths of the two shared files, and when they are read again. Environment
 * variables are read anew by every call: they do not change, and keeping them would make one more copy of a
 * secret. */
#include "awscred.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "awscred_internal.h"
#include "io.h"
#include "log.h"
#include "secret.h"

#define FILE_MAX  1048576
#define PATH_SIZE 4096u

/* What tells one state of a file from another. */
struct identity {
	bool present;
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec mtime, ctime;
};

struct awscred {
	char *profile;        /* named by the caller; NULL: the environment decides. Constant. */
	pthread_mutex_t lock; /* guards what follows */
	bool loaded, warned;
	struct identity seen[2];
	struct awscred_profile *file[2]; /* by enum awscred_file */
};

static const char *env(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static const char *profile_name(const struct awscred *a)
{
	const char *name = a->profile;

	name = name ? name : env("AWS_PROFILE");
	name = name ? name : env("AWS_DEFAULT_PROFILE");
	return name ? name : "default";
}

/* ---- the files ---- */

/* HOME, or what the user database says: a daemon may have no HOME. */
static int home(char out[static PATH_SIZE])
{
	const char *dir = env("HOME");
	struct passwd pw, *found = NULL;
	char buf[2048];

	if (!dir && !getpwuid_r(geteuid(), &pw, buf, sizeof(buf), &found) && found)
		dir = pw.pw_dir;
	if (!dir || strlen(dir) >= PATH_SIZE)
		return -ENOENT;
	strcpy(out, dir);
	return 0;
}

static int path_of(char out[static PATH_SIZE], enum awscred_file which)
{
	const char *given = env(which == AWSCRED_CONFIG ? "AWS_CONFIG_FILE" : "AWS_SHARED_CREDENTIALS_FILE");
	const char *below = which == AWSCRED_CONFIG ? "/.aws/config" : "/.aws/credentials";
	size_t n = 0;

	if (given && strncmp(given, "~/", 2)) {
		n = strlen(given);
		if (n >= PATH_SIZE)
			return -ENAMETOOLONG;
		memcpy(out, given, n + 1);
		return 0;
	}
	if (home(out))
		return -ENOENT;
	below = given ? given + 1 : below;
	n = strlen(out);
	if (n + strlen(below) >= PATH_SIZE)
		return -ENAMETOOLONG;
	strcpy(out + n, below);
	return 0;
}

static struct identity identify(const struct stat *st)
{
	return (struct identity){ true, st->st_dev, st->st_ino, st->st_size, st->st_mtim, st->st_ctim };
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool same(const struct identity *a, const struct identity *b)
{
	if (!a->present || !b->present)
		return a->present == b->present;
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size && same_time(a->mtime, b->mtime) &&
	    same_time(a->ctime, b->ctime);
}

static bool changed(const struct awscred *a)
{
	char path[PATH_SIZE];
	struct stat st;

	for (int i = 0; i < 2; i++) {
		struct identity now = { 0 };

		if (!path_of(path, (enum awscred_file)i) && !stat(path, &st))
			now = identify(&st);
		if (!same(&now, &a->seen[i]))
			return true;
	}
	return false;
}

/* A file's text, wiped when given back. */
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

/* 0, also when there is no such file (then t->p stays NULL), or -errno. Symbolic links are followed: people
 * use them. */
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

static void warn_once(struct awscred *a, const char *path, mode_t mode)
{
	if (a->warned || !(mode & S_IROTH))
		return;
	a->warned = true;
	log_warn("%s is readable by everybody: run 'chmod 600 %s'", path, path);
}

static int load_file(struct awscred *a, enum awscred_file which, char *why)
{
	CLEANUP_TEXT struct text text = { 0 };
	char path[PATH_SIZE] = "";
	struct stat st = { 0 };
	int r;

	a->seen[which] = (struct identity){ 0 };
	memset(a->file[which], 0, sizeof(*a->file[which]));
	if (path_of(path, which) == -ENOENT)
		return 0; /* no home, no file */
	r = read_text(&text, path, &st);
	if (r)
		snprintf(why, AWSCRED_WHY, "cannot read %.120s: %.60s", path, strerrordesc_np(-r));
	if (r || !text.p)
		return r;
	a->seen[which] = identify(&st);
	if (which == AWSCRED_CREDENTIALS)
		warn_once(a, path, st.st_mode);
	return awscred_ini_profile(a->file[which], which, text.p, profile_name(a), path, why);
}

/* With the lock held. */
static int load(struct awscred *a, char *why)
{
	int r;

	if (a->loaded && !changed(a))
		return 0;
	r = load_file(a, AWSCRED_CONFIG, why);
	if (!r)
		r = load_file(a, AWSCRED_CREDENTIALS, why);
	a->loaded = !r;
	return r;
}

/* ---- credentials ---- */

static int make(struct sigv4_credentials **out, const char *access, const char *secret, const char *token, char *why)
{
	size_t ntoken = token && *token ? strlen(token) + 1 : 0;
	struct sigv4_credentials *c;

	if (strlen(access) >= sizeof(c->access_key) || strlen(secret) >= sizeof(c->secret_key) ||
	    ntoken > AWSCRED_TOKEN_MAX) {
		snprintf(why, AWSCRED_WHY, "the AWS credentials are too long to be any");
		return -EINVAL;
	}
	c = secret_alloc(sizeof(*c) + ntoken);
	if (!c) {
		snprintf(why, AWSCRED_WHY, "no locked memory left for the AWS credentials");
		return -ENOMEM;
	}
	strcpy(c->access_key, access);
	strcpy(c->secret_key, secret);
	if (ntoken) {
		c->session_token = (char *)(c + 1);
		memcpy(c->session_token, token, ntoken);
	}
	*out = c;
	return 0;
}

/* -ENOENT when the environment says nothing. */
static int from_env(struct sigv4_credentials **out, char *why)
{
	const char *access = env("AWS_ACCESS_KEY_ID"), *secret = env("AWS_SECRET_ACCESS_KEY");

	if (!access && !secret)
		return -ENOENT;
	if (!access || !secret) {
		snprintf(why, AWSCRED_WHY, "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set");
		return -EINVAL;
	}
	return make(out, access, secret, env("AWS_SESSION_TOKEN"), why);
}

static int from_files(struct awscred *a, struct sigv4_credentials **out, char *why)
{
	const struct awscred_profile *p = a->file[AWSCRED_CREDENTIALS], *config = a->file[AWSCRED_CONFIG];
	const char *name = profile_name(a), *needs = p->unsupported ? p->unsupported : config->unsupported;

	if (needs) {
		snprintf(why, AWSCRED_WHY, "profile '%.60s': %s", name, needs);
		return -EINVAL;
	}
	if (!*p->access_key && !*p->secret_key)
		p = config;
	if (*p->access_key && *p->secret_key)
		return make(out, p->access_key, p->secret_key, p->token, why);
	if (*p->access_key || *p->secret_key) {
		snprintf(why, AWSCRED_WHY,
		    "profile '%.60s' has only one of aws_access_key_id and aws_secret_access_key", name);
		return -EINVAL;
	}
	snprintf(why, AWSCRED_WHY, "no AWS credentials: %sprofile '%.60s' %s in the shared files of the AWS tools",
	    a->profile ? "" : "AWS_ACCESS_KEY_ID is not set and ", name, p->found ? "has no keys" : "is not");
	return -ENOENT;
}

int awscred_get(struct awscred *a, uint64_t deadline, struct sigv4_credentials **out, char *why)
{
	(void)deadline;
	int r = a->profile ? -ENOENT : from_env(out, why);

	if (r != -ENOENT)
		return r;
	LOCK_SCOPE(&a->lock);
	r = load(a, why);
	return r ? r : from_files(a, out, why);
}

void awscred_put(struct sigv4_credentials *c)
{
	secret_free(c);
}

void awscred_refresh(struct awscred *a)
{
	LOCK_SCOPE(&a->lock);
	a->loaded = false;
}

/* ---- region and endpoint ---- */

/* The config file is the place for settings; the credentials file is tolerated. With the lock held. */
static const char *setting(const struct awscred *a, size_t offset)
{
	const char *config = (const char *)a->file[AWSCRED_CONFIG] + offset;

	return *config ? config : (const char *)a->file[AWSCRED_CREDENTIALS] + offset;
}

#define SETTING(a, member) setting(a, offsetof(struct awscred_profile, member))

static void copy(char *out, size_t size, const char *text)
{
	size_t n = strlen(text);

	if (n >= size)
		n = 0; /* half a name is worse than none */
	memcpy(out, text, n);
	out[n] = '\0';
}

void awscred_region(struct awscred *a, char *out)
{
	const char *region = env("AWS_REGION");
	char why[AWSCRED_WHY];

	region = region ? region : env("AWS_DEFAULT_REGION");
	if (region) {
		copy(out, 64, region);
		return;
	}
	LOCK_SCOPE(&a->lock);
	copy(out, 64, load(a, why) ? "" : SETTING(a, region));
}

static bool is_true(const char *text)
{
	return text && !strcasecmp(text, "true");
}

/* "kms" to the value of AWS_ENDPOINT_URL_KMS. */
static const char *env_endpoint(const char *service)
{
	char name[64] = "AWS_ENDPOINT_URL_";
	size_t n = strlen(name);

	for (; *service && n + 1 < sizeof(name); service++)
		name[n++] = (char)toupper((unsigned char)*service);
	return env(name) ? env(name) : env("AWS_ENDPOINT_URL");
}

/* Reads the config file once more: only its text has the [services] section, and this is asked once per
 * mount. */
static void load_service(struct awscred *a, const char *service)
{
	CLEANUP_TEXT struct text text = { 0 };
	struct awscred_profile *p = a->file[AWSCRED_CONFIG];
	char path[PATH_SIZE], why[AWSCRED_WHY];
	struct stat st;

	p->service_endpoint[0] = '\0';
	if (!*p->services || path_of(path, AWSCRED_CONFIG) || read_text(&text, path, &st) || !text.p)
		return;
	if (awscred_ini_service(p, text.p, service, path, why))
		log_warn("%s", why);
}

void awscred_endpoint(struct awscred *a, const char *service, char *out)
{
	const char *given = env_endpoint(service);
	char why[AWSCRED_WHY];

	out[0] = '\0';
	if (is_true(env("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")))
		return;
	if (given) {
		copy(out, 512, given);
		return;
	}
	LOCK_SCOPE(&a->lock);
	if (load(a, why) || is_true(SETTING(a, ignore_endpoints)))
		return;
	load_service(a, service);
	given = a->file[AWSCRED_CONFIG]->service_endpoint;
	copy(out, 512, *given ? given : SETTING(a, endpoint));
}

/* The environment's word, else the profile's. */
static bool is_wanted(struct awscred *a, const char *name, size_t offset)
{
	char why[AWSCRED_WHY];

	if (env(name))
		return is_true(env(name));
	LOCK_SCOPE(&a->lock);
	return !load(a, why) && is_true(setting(a, offset));
}

bool awscred_fips(struct awscred *a)
{
	return is_wanted(a, "AWS_USE_FIPS_ENDPOINT", offsetof(struct awscred_profile, fips));
}

bool awscred_dualstack(struct awscred *a)
{
	return is_wanted(a, "AWS_USE_DUALSTACK_ENDPOINT", offsetof(struct awscred_profile, dualstack));
}

/* ---- life ---- */

int awscred_open(struct awscred **out, const struct awscred_params *params)
{
	struct awscred *a = calloc(1, sizeof(*a));
	const char *profile = params->profile && *params->profile ? params->profile : NULL;

	if (!a)
		return -ENOMEM;
	(void)pthread_mutex_init(&a->lock, NULL);
	for (int i = 0; i < 2; i++)
		a->file[i] = secret_alloc(sizeof(*a->file[i]));
	if (profile)
		a->profile = strdup(profile);
	if (!a->file[0] || !a->file[1] || (profile && !a->profile)) {
		awscred_close(a);
		return -ENOMEM;
	}
	*out = a;
	return 0;
}

void awscred_close(struct awscred *a)
{
	if (!a)
		return;
	secret_free(a->file[0]);
	secret_free(a->file[1]);
	(void)pthread_mutex_destroy(&a->lock);
	free(a->profile);
	free(a);
}
