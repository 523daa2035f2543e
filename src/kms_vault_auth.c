/* kms_vault_auth.c — the token that requests carry: from a file, or of an AppRole.
 *
 * Hides: when a file is read again, who reads it or logs in while others wait, and the keeper, a thread that renews an
 * AppRole's token when two thirds of its time are over, or logs in anew when renewing no longer helps. So nobody waits
 * while the old token serves. A token past its end is never sent. The keeper is started with the first token that
 * ends. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "io.h"
#include "kms_vault_internal.h"
#include "log.h"
#include "secret.h"

#define HEADER       "X-Vault-Token: "
#define RETRY_MS     1000u  /* between logins that fail */
#define SLICE_MS     30000u /* this wait's clock stops in suspend, a token's time does not */
#define FRESH_ENOUGH 60000u /* a denied token is not replaced sooner than this */
#define LEASE_MAX_S  31536000

static void free_secret(char **p)
{
	secret_free(*p);
}

#define CLEANUP_SECRET __attribute__((cleanup(free_secret)))

static void free_json(json_t **json)
{
	json_decref(*json);
}

/* ---- files ---- */

static struct vault_file identify(const struct stat *st)
{
	return (struct vault_file){ st->st_dev, st->st_ino, st->st_size, st->st_mtim, st->st_ctim };
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static bool same_file(const struct vault_file *a, const struct vault_file *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size && same_time(a->mtime, b->mtime) &&
	    same_time(a->ctime, b->ctime);
}

static bool blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Trimmed in place; false when what is left cannot be a token or secret id. */
static bool one_word(char *text, size_t n)
{
	size_t from = 0;

	while (n && blank(text[n - 1]))
		n--;
	while (from < n && blank(text[from]))
		from++;
	memmove(text, text + from, n - from);
	text[n - from] = '\0';
	for (const char *c = text; *c; c++)
		if (*c <= ' ' || *c > '~')
			return false;
	return *text && strlen(text) == n - from;
}

/* The word in a small file, in secret memory after `room` bytes left free. Symbolic links are followed: agents and
 * orchestrators use them. */
static enum kms_status read_word(
    struct vault_link *l, char **out, size_t room, const char *path, struct vault_file *seen, struct kms_err *err)
{
	CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	CLEANUP_SECRET char *text = NULL;
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st))
		return kms_fail(err, KMS_CONFIG, "NoToken", "cannot read '%.120s': %s", path, strerrordesc_np(errno));
	if (!S_ISREG(st.st_mode) || st.st_size > (off_t)VAULT_TOKEN_MAX)
		return kms_fail(err, KMS_CONFIG, "NoToken", "'%.120s' is no regular file of at most %u bytes", path,
		    VAULT_TOKEN_MAX);
	text = secret_alloc(room + VAULT_TOKEN_MAX + 1);
	if (!text)
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "no locked memory left for a token");
	n = io_pread(fd, text + room, VAULT_TOKEN_MAX, 0);
	if (n < 0)
		return kms_fail(err, KMS_CONFIG, "NoToken", "cannot read '%.120s': %s", path, strerrordesc_np((int)-n));
	if (!one_word(text + room, (size_t)n))
		return kms_fail(
		    err, KMS_CONFIG, "NoToken", "'%.120s' holds not one word, as a token or secret id is", path);
	if (text[room] == '{')
		return kms_fail(err, KMS_CONFIG, "NoToken",
		    "'%.120s' holds JSON: wrapped tokens are not supported, let the agent write the bare one", path);
	if (st.st_mode & S_IROTH && !atomic_exchange(&l->warned, true))
		log_warn("%s is readable by everybody: run 'chmod o-r %s'", path, path);
	*seen = identify(&st);
	*out = steal_ptr(&text);
	return KMS_OK;
}

/* lock held. */
static void wait_changed(struct vault_link *l, uint64_t until)
{
	uint64_t now = io_boot_ms(), ms = until > now ? until - now : 1;
	struct timespec t;

	ms = ms > SLICE_MS ? SLICE_MS : ms;
	t = io_after_ms(ms);
	(void)pthread_cond_timedwait(&l->changed, &l->lock, &t);
}

/* lock held. Whoever is renewing it will see that it is not wanted any more. */
static void drop(struct vault_link *l)
{
	secret_free(l->header);
	l->header = NULL;
	l->serial++;
}

/* lock held. Steals header. */
static void install(struct vault_link *l, char *header)
{
	secret_free(l->header);
	l->header = header;
	l->serial++;
	l->expires = l->renew_at = 0;
	l->expires_unix = 0;
	l->must_login = false;
	(void)pthread_cond_broadcast(&l->changed);
}

static bool unchanged(const char *path, const struct vault_file *seen)
{
	struct vault_file now;
	struct stat st;

	if (stat(path, &st))
		return false;
	now = identify(&st);
	return same_file(&now, seen);
}

/* lock held; given up while the file is looked at, which on a hung filesystem takes for ever. Also when the file is
 * gone there is no token: taking it away is taking the access away. */
static enum kms_status look_at_file(struct vault_link *l, struct kms_err *err)
{
	struct vault_file seen = l->file;
	bool have = l->header != NULL;
	CLEANUP_SECRET char *header = NULL;
	enum kms_status status = KMS_OK;

	l->fetching = true;
	(void)pthread_mutex_unlock(&l->lock);
	if (!have || !unchanged(l->token_file, &seen))
		status = read_word(l, &header, strlen(HEADER), l->token_file, &seen, err);
	(void)pthread_mutex_lock(&l->lock);
	l->fetching = false;
	if (status != KMS_OK) {
		drop(l);
	} else if (header) {
		memcpy(header, HEADER, strlen(HEADER));
		l->file = seen;
		install(l, steal_ptr(&header));
	}
	(void)pthread_cond_broadcast(&l->changed);
	return status;
}

/* lock held; given up meanwhile. One looks at the file; the others go on with the token at hand, or wait for one. What
 * was refused meanwhile is read again. */
static enum kms_status from_file(struct vault_link *l, uint64_t deadline, struct kms_err *err)
{
	enum kms_status status = KMS_OK;

	if (l->fetching && l->header)
		return KMS_OK;
	do {
		if (!l->fetching)
			status = look_at_file(l, err);
		else if (io_boot_ms() >= deadline)
			return kms_fail(
			    err, KMS_DOWN, "Timeout", "'%.120s' is still being read by another call", l->token_file);
		else
			wait_changed(l, deadline);
	} while (status == KMS_OK && !l->header);
	return status;
}

/* ---- AppRole ---- */

/* What a login or a renewal grants. */
struct grant {
	char *header; /* secret memory; NULL after a renewal: the same */
	uint64_t asked, lease_ms;
	bool renewable;
};

static enum kms_status read_grant(struct grant *g, const struct vault_answer *a, struct kms_err *err)
{
	const json_t *auth = json_object_get(a->body, "auth");
	const char *token = jsonio_str(auth, "client_token");
	json_int_t lease = json_integer_value(json_object_get(auth, "lease_duration"));

	if (!token || !*token || strlen(token) > VAULT_TOKEN_MAX || lease < 0 || lease > LEASE_MAX_S)
		return kms_fail(err, KMS_DOWN, "MalformedAnswer", "the answer to the login has no usable token");
	for (const char *c = token; *c; c++)
		if (*c <= ' ' || *c > '~')
			return kms_fail(
			    err, KMS_DOWN, "MalformedAnswer", "the answer to the login has no usable token");
	g->lease_ms = (uint64_t)lease * 1000;
	g->renewable = json_is_true(json_object_get(auth, "renewable"));
	g->header = secret_alloc(strlen(HEADER) + strlen(token) + 1);
	if (!g->header)
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "no locked memory left for a token");
	memcpy(g->header, HEADER, strlen(HEADER));
	memcpy(g->header + strlen(HEADER), token, strlen(token) + 1);
	return KMS_OK;
}

static enum kms_status login(struct vault_link *l, uint64_t deadline, struct grant *g, struct kms_err *err)
{
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	CLEANUP_SECRET char *id = NULL, *body = NULL;
	__attribute__((cleanup(free_json))) json_t *json = NULL;
	char path[VAULT_PATH_MAX];
	const struct vault_request req = { "POST", path, NULL, deadline };
	struct vault_request sent = req;
	struct vault_file ignored;
	enum kms_status status = read_word(l, &id, 0, l->secret_id_file, &ignored, err);

	if (status != KMS_OK)
		return status;
	(void)snprintf(path, sizeof(path), "auth/%s/login", l->auth_mount);
	json = json_pack("{s:s, s:s}", "role_id", l->role_id, "secret_id", id);
	body = json ? jsonio_print_secret(json) : NULL;
	if (!body)
		return kms_fail(err, KMS_CONFIG, "BadRequest", "the login cannot be written as JSON");
	sent.body = body;
	g->asked = io_boot_ms();
	status = vault_send(l, &sent, NULL, &a, err);
	if (status == KMS_OK && a.http == 200)
		return read_grant(g, &a, err);
	if (status != KMS_OK || vault_fail(&a, false, err) != KMS_CONFIG)
		return err->status;
	return kms_fail(err, KMS_CONFIG, "LoginRefused", "AppRole login at 'auth/%.60s': HTTP status %ld %s",
	    l->auth_mount, a.http, a.text);
}

/* KMS_CONFIG: only a login helps. */
static enum kms_status renew(
    struct vault_link *l, const char *header, uint64_t deadline, struct grant *g, struct kms_err *err)
{
	const struct vault_request req = { "POST", "auth/token/renew-self", "{}", deadline };
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	enum kms_status status;

	g->asked = io_boot_ms();
	status = vault_send(l, &req, header, &a, err);
	if (status == KMS_OK && a.http != 200)
		status = vault_fail(&a, false, err);
	else if (status == KMS_OK)
		status = read_grant(g, &a, err);
	return status;
}

static void *keep(void *arg);

/* lock held. */
static void start_keeper(struct vault_link *l)
{
	sigset_t all, old;
	int r;

	if (l->has_keeper || l->stop)
		return;
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&l->keeper, NULL, keep, l);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	l->has_keeper = !r;
	if (r)
		log_warn("cannot start the thread that renews Vault tokens: %s", strerrordesc_np(r));
}

/* lock held. */
static void accept(struct vault_link *l, struct grant *g, bool anew)
{
	install(l, steal_ptr(&g->header));
	l->renewable = g->renewable;
	l->failed_at = 0;
	if (anew) {
		l->login_lease_ms = g->lease_ms;
		l->got = g->asked;
	}
	if (!g->lease_ms)
		return;
	l->expires = g->asked + g->lease_ms;
	l->expires_unix = io_unix_time() + (int64_t)(g->lease_ms / 1000);
	l->renew_at = g->asked + g->lease_ms / 3 * 2;
	/* Near the end of its greatest age a token is renewed for less than it had at first. */
	l->must_login = !anew && g->lease_ms * 2 < l->login_lease_ms;
	start_keeper(l);
}

/* lock held; given up during the login. */
static enum kms_status log_in(struct vault_link *l, uint64_t deadline, struct kms_err *err)
{
	struct grant g = { 0 };
	enum kms_status status;

	l->fetching = true;
	(void)pthread_mutex_unlock(&l->lock);
	status = login(l, deadline, &g, err);
	(void)pthread_mutex_lock(&l->lock);
	l->fetching = false;
	if (status == KMS_OK) {
		accept(l, &g, true);
	} else {
		l->failed_at = io_boot_ms();
		l->failure = *err;
	}
	secret_free(g.header);
	(void)pthread_cond_broadcast(&l->changed);
	return status;
}

static bool serves(const struct vault_link *l)
{
	return l->header && (!l->expires || io_boot_ms() < l->expires);
}

/* lock held; given up meanwhile. One logs in, the others wait for it. */
static enum kms_status from_role(struct vault_link *l, uint64_t deadline, struct kms_err *err)
{
	while (!serves(l)) {
		uint64_t now = io_boot_ms();

		if (now >= deadline)
			return kms_fail(err, KMS_DOWN, "Timeout", "no login in time");
		if (l->fetching) {
			wait_changed(l, deadline);
			continue;
		}
		if (l->failed_at && now < l->failed_at + RETRY_MS) {
			*err = l->failure;
			return err->status;
		}
		if (log_in(l, deadline, err) != KMS_OK)
			return err->status;
	}
	return KMS_OK;
}

/* ---- the keeper ---- */

/* lock held; given up during the requests. */
static void keep_once(struct vault_link *l)
{
	CLEANUP_SECRET char *header = secret_alloc(strlen(l->header) + 1);
	uint64_t serial = l->serial, deadline = io_boot_ms() + l->timeout_ms, now;
	bool anew = l->must_login || !l->renewable;
	struct grant g = { 0 };
	struct kms_err err = { 0 };
	enum kms_status status = KMS_DOWN;

	l->fetching = true;
	if (header)
		memcpy(header, l->header, strlen(l->header) + 1);
	(void)pthread_mutex_unlock(&l->lock);
	if (header && !anew) {
		status = renew(l, header, deadline, &g, &err);
		anew = status != KMS_OK && status != KMS_DOWN && status != KMS_BUSY;
	}
	if (header && anew)
		status = login(l, deadline, &g, &err);
	(void)pthread_mutex_lock(&l->lock);
	l->fetching = false;
	now = io_boot_ms();
	if (status == KMS_OK && (anew || l->serial == serial)) {
		accept(l, &g, anew);
	} else if (l->serial == serial && l->header) {
		log_warn("cannot renew the Vault token: %s: %s", err.code, err.message);
		l->renew_at = now + RETRY_MS + (l->expires > now ? (l->expires - now) / 8 : 0);
	}
	secret_free(g.header);
	(void)pthread_cond_broadcast(&l->changed);
}

static void *keep(void *arg)
{
	struct vault_link *l = arg;

	LOCK_SCOPE(&l->lock);
	while (!l->stop) {
		bool due = l->header && l->renew_at && !l->fetching && io_boot_ms() >= l->renew_at;

		if (due && serves(l))
			keep_once(l);
		else
			wait_changed(l, l->header && l->renew_at && !due ? l->renew_at : UINT64_MAX);
	}
	return NULL;
}

/* ---- for the others ---- */

enum kms_status vault_token_get(
    struct vault_link *l, uint64_t deadline, char **header, uint64_t *serial, struct kms_err *err)
{
	enum kms_status status;

	LOCK_SCOPE(&l->lock);
	status = l->token_file ? from_file(l, deadline, err) : from_role(l, deadline, err);
	if (status != KMS_OK)
		return status;
	if (!l->header)
		return kms_fail(err, KMS_CONFIG, "NoToken", "there is no token");
	*header = secret_alloc(strlen(l->header) + 1);
	if (!*header)
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "no locked memory left for a token");
	memcpy(*header, l->header, strlen(l->header) + 1);
	*serial = l->serial;
	return KMS_OK;
}

void vault_token_bad(struct vault_link *l, uint64_t serial)
{
	LOCK_SCOPE(&l->lock);
	if (l->serial == serial)
		drop(l);
}

void vault_token_denied(struct vault_link *l, uint64_t serial)
{
	LOCK_SCOPE(&l->lock);
	if (l->serial != serial || l->token_file || !l->renew_at || io_boot_ms() < l->got + FRESH_ENOUGH)
		return;
	l->must_login = true;
	l->renew_at = io_boot_ms();
	(void)pthread_cond_broadcast(&l->changed);
}

void vault_token_forget(struct vault_link *l)
{
	LOCK_SCOPE(&l->lock);
	drop(l);
	l->failed_at = 0;
	atomic_store(&l->warned, false);
}

int vault_auth_open(struct vault_link *l)
{
	int r = pthread_mutex_init(&l->lock, NULL);

	return r ? -r : io_cond_init(&l->changed);
}

void vault_auth_close(struct vault_link *l)
{
	{
		LOCK_SCOPE(&l->lock);
		l->stop = true;
		(void)pthread_cond_broadcast(&l->changed);
	}
	if (l->has_keeper)
		(void)pthread_join(l->keeper, NULL);
	secret_free(l->header);
	(void)pthread_cond_destroy(&l->changed);
	(void)pthread_mutex_destroy(&l->lock);
}
