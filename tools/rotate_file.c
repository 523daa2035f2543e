/* rotate_file.c — what a worker does to one file: look at its page 0; count it, exchange its slot, or empty the old
 * one.
 */
#include "rotate.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <search.h>
#include <stdarg.h>
#include <stdio.h>

#include "bytes.h"
#include "io.h"

/* One file on its way. */
struct task {
	struct rotation *r;
	struct rotate_worker *w;
	const struct rotate_item *it;
	int fd;
	struct reslot_view view;
	struct rotate_domain *d;
};

/* ---- troubles */

struct told {
	ino_t ino;
	enum trouble kind;
};

static int told_order(const void *a, const void *b)
{
	const struct told *x = a, *y = b;

	return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static bool told_of(struct rotation *r, ino_t ino, enum trouble kind)
{
	const struct told key = { .ino = ino };
	struct told **found;

	LOCK_SCOPE(&r->trouble_lock);
	found = tfind(&key, &r->seen, told_order);
	return found && (*found)->kind == kind;
}

/* The lock is held. Is it new? */
static bool remember(struct rotation *r, ino_t ino, enum trouble kind)
{
	struct told *t = malloc(sizeof(*t)), **found;

	if (!t)
		return true;
	*t = (struct told){ ino, kind };
	found = tsearch(t, &r->seen, told_order);
	if (found && *found == t)
		return true;
	free(t);
	return !found;
}

static void say(struct rotation *r, enum trouble kind, const char *path, const char *what)
{
	static const char *const words[] = { "damaged", "damaged", "unknown", "failed" };

	if (r->findings && json_array_size(r->findings) < ROTATE_FINDINGS)
		(void)json_array_append_new(
		    r->findings, json_pack("{s:s,s:s,s:s}", "kind", words[kind], "path", path, "what", what));
	progress_clear(&r->progress);
	(void)fprintf(stderr, "byokfsctl: warning: %s: %s\n", path, what);
}

void rotate_trouble(struct rotation *r, enum trouble kind, const struct rotate_item *it, const char *fmt, ...)
{
	size_t len = strlen(it->dir->path) + strlen(it->name) + 2;
	char *path CLEANUP_FREE = malloc(len);
	char *safe CLEANUP_FREE = malloc(4 * len + 1);
	char what[900];
	va_list ap;

	if (path && safe) {
		(void)snprintf(path, len, "%s/%s", it->dir->path, it->name);
		cmd_escape(safe, path);
	}
	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	LOCK_SCOPE(&r->trouble_lock);
	if (!remember(r, it->ino, kind))
		return;
	atomic_fetch_add(&r->troubles[kind], 1);
	say(r, kind, path && safe ? safe : "?", what);
}

/* ---- opening */

/* Another owner's bits are the owner's to lend for the time of the open: what a mount of an ordinary user does too. */
static int open_lending(const struct rotate_item *it, int flags)
{
	int path CLEANUP_FD = it->fd < 0 ? openat(it->dir->fd, it->name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
	                                 : fcntl(it->fd, F_DUPFD_CLOEXEC, 0);
	char proc[32];
	struct stat st;
	int fd;

	if (path < 0 || fstat(path, &st) || st.st_uid != geteuid() || !S_ISREG(st.st_mode))
		return -EACCES;
	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", path);
	if (chmod(proc, (st.st_mode & 07777) | 0600))
		return -EACCES;
	fd = open(proc, flags & ~O_NOFOLLOW);
	if (chmod(proc, st.st_mode & 07777))
		(void)fprintf(
		    stderr, "byokfsctl: warning: cannot give '%s' its mode back: %s\n", it->name, strerror(errno));
	return fd < 0 ? -EACCES : fd;
}

/* By its name, or wherever it has moved to. */
static int open_so(const struct rotate_item *it, int flags)
{
	char proc[32];

	if (it->fd < 0)
		return openat(it->dir->fd, it->name, flags);
	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", it->fd);
	return open(proc, flags & ~O_NOFOLLOW);
}

static int open_file(const struct rotate_item *it, bool writing)
{
	int flags = (writing ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	int fd = open_so(it, flags | O_NOATIME);

	if (fd < 0 && errno == EPERM)
		fd = open_so(it, flags);
	if (fd < 0 && errno == EACCES)
		return open_lending(it, flags);
	return fd < 0 ? -errno : fd;
}

/* Gone, or not the one that was listed: a live store changes. */
static bool vanished(int err)
{
	return err == -ENOENT || err == -ELOOP || err == -ENOTDIR || err == -ESTALE;
}

/* ---- looking */

enum class { CLASS_DONE, CLASS_TODO, CLASS_WRAPPED, CLASS_OTHER, CLASS_BAD };

static enum class unknown_key(struct task *t) {
	char hash[17];

	bytes_hex(hash, t->view.ruling.key_hash, 8);
	rotate_trouble(t->r, TROUBLE_UNKNOWN, t->it, "is sealed under another key (its name's hash is %s)", hash);
	return CLASS_BAD;
}

/* Is it what it shall become? */
static bool is_done(const struct task *t)
{
	const struct header_slot *s = &t->view.ruling;
	const struct descriptor_slot *target = t->d->target ? t->d->target : t->d->fresh;
	uint8_t hash[8];

	kms_key_hash(hash, kms_key(t->r->kms));
	if (!bytes_equal(s->key_hash, hash, sizeof(hash)) || s->provider != kms_provider_number(t->r->kms))
		return false;
	if (!t->d->anew)
		return true;
	return target && /* else it has not begun: counted only */
	    (bytes_equal(s->material, target->material, sizeof(s->material)) && s->generation == target->context);
}

static enum class classify(struct task *t) {
	const struct header_slot *s = &t->view.ruling;

	if (!bytes_equal(t->view.ident.store, t->r->store->desc.store, CONTEXT_ID)){
	    rotate_trouble(t->r, TROUBLE_DAMAGED, t->it, "is a file of another store"); return CLASS_BAD; }
t->d = rotate_domain_of(t->r, t->view.ident.domain);
if (!t->d)
	return CLASS_OTHER;
if (s->wrap == HEADER_WRAP_DOMAIN)
	return CLASS_WRAPPED;
if (is_done(t))
	return CLASS_DONE;
if (!rotate_source_of(t->r, s->key_hash) || s->provider != kms_provider_number(t->r->kms))
	return unknown_key(t);
return told_of(t->r, t->it->ino, TROUBLE_REFUSED) ? CLASS_BAD : CLASS_TODO;
}

/* False: nothing to be done to it, and said why where it matters. */
static bool look(struct task *t, enum class *class)
{
	struct rotate_pass *p = t->r->pass;
	int ret = t->fd < 0 ? t->fd : reslot_read(t->fd, &t->view);

	if (ret == 0) {
		*class = classify(t);
		return true;
	}
	if (ret == -ENODATA)
		atomic_fetch_add(&p->unborn, 1);
	else if (ret == -EBADMSG)
		rotate_trouble(t->r, TROUBLE_DAMAGED, t->it, "its page 0 is damaged");
	else if (vanished(ret)) /* mounted: then it was removed, or it is recorded that it moved */
		atomic_fetch_add(&p->todo, t->r->live ? 0 : 1);
	else
		rotate_trouble(t->r, TROUBLE_FAILED, t->it, "cannot be read: %s", strerror(-ret));
	return false;
}

/* ---- counting */

static void count(struct task *t, enum class class)
{
	if (class == CLASS_TODO) {
		atomic_fetch_add(&t->r->pass->todo, 1);
		atomic_fetch_add(&t->d->todo, 1);
	} else if (class == CLASS_DONE) {
		atomic_fetch_add(&t->d->done, 1);
	} else if (class == CLASS_WRAPPED) {
		atomic_fetch_add(&t->d->wrapped, 1);
	}
}

/* ---- sealing */

static void refused(struct task *t, const struct kms_err *err)
{
	char text[800];

	kms_err_text(text, sizeof(text), err);
	rotate_trouble(t->r, TROUBLE_REFUSED, t->it, "the sealed key is damaged or not its own: %s", text);
}

static void make_slot(
    const struct task *t, struct header_slot *slot, const struct kms_blob *blob, const struct kms_used *used)
{
	const struct descriptor_slot *target = t->d->target;

	memset(slot, 0, sizeof(*slot));
	slot->wrap = HEADER_WRAP_KMS;
	slot->generation = target->context;
	slot->provider = target->provider;
	kms_key_hash(slot->key_hash, target->key);
	slot->sealed_at = io_unix_time();
	memcpy(slot->material, used->material, sizeof(slot->material));
	slot->len = (uint16_t)blob->len;
	memcpy(slot->blob, blob->bytes, blob->len);
}

/* Offline. */
static void write_slot(struct task *t, const struct header_slot *fresh, _Atomic uint64_t *counter)
{
	int ret = reslot_write(t->fd, t->view.ident.file, t->view.ruling.seq, fresh);

	if (ret == 0)
		atomic_fetch_add(counter, 1);
	else if (ret == -ESTALE) /* a hard link's other name was quicker */
		atomic_fetch_add(&t->r->pass->todo, 1);
	else
		rotate_trouble(t->r, TROUBLE_FAILED, t->it, "cannot be written: %s", strerror(-ret));
}

static void install(struct task *t, const struct header_slot *fresh)
{
	if (t->r->live)
		live_put(t->r, t->it, t->fd, &t->view, fresh);
	else
		write_slot(t, fresh, fresh ? &t->r->resealed : &t->r->cleared);
}

static void seal(struct task *t)
{
	const struct header_slot *s = &t->view.ruling;
	const struct reseal x = { .from = rotate_source_of(t->r, s->key_hash),
		.use = CONTEXT_FILE,
		.ids = &t->d->ids,
		.file = t->view.ident.file,
		.before = descriptor_generation(t->d->desc, s->generation),
		.after = descriptor_generation(t->d->desc, t->d->target->context),
		.blob = s->blob,
		.len = s->len };
	const struct kms_blob *blob;
	const struct kms_used *used;
	const struct kms_err *err;
	struct header_slot fresh;
	enum verdict v;

	if (!x.before) {
		rotate_trouble(
		    t->r, TROUBLE_DAMAGED, t->it, "names a set of context pairs that its domain does not know");
		return;
	}
	v = rotate_reseal(t->r, t->w, &x, &blob, &used, &err);
	if (v == VERDICT_STOP)
		atomic_fetch_add(&t->r->pass->todo, 1);
	else if (v == VERDICT_FILE)
		refused(t, err);
	else if (blob->len > HEADER_BLOB_MAX)
		gate_stop(t->r->gate, EXIT_CONFIG, NULL,
		    "a key sealed under '%s' takes %zu bytes: a file has room for %u", kms_key(t->r->kms), blob->len,
		    HEADER_BLOB_MAX);
	else if (t->d->anew && !bytes_equal(used->material, t->d->target->material, sizeof(used->material)))
		gate_stop(t->r->gate, EXIT_FAILED, "the same command goes on to the newest",
		    "'%s' got new material meanwhile", kms_key(t->r->kms));
	else {
		make_slot(t, &fresh, blob, used);
		install(t, &fresh);
	}
}

static void work_on(struct task *t, enum class class)
{
	struct rotate_pass *p = t->r->pass;

	if (p->mode == ROTATE_COUNT) {
		count(t, class);
	} else if (p->mode == ROTATE_CLEAR && class == CLASS_TODO) {
		atomic_fetch_add(&p->todo, 1);
	} else if (p->mode == ROTATE_CLEAR && (class == CLASS_DONE || class == CLASS_WRAPPED)) {
		atomic_fetch_add(&p->met, t->view.have_other);
		if (t->view.have_other)
			install(t, NULL);
	} else if (p->mode == ROTATE_SEAL && class == CLASS_TODO) {
		atomic_fetch_add(&p->met, 1);
		seal(t);
		progress_add(&t->r->progress, 1, 0);
	}
}

void rotate_work_on(struct rotation *r, const struct rotate_item *it, const struct reslot_view *view)
{
	struct task t = { .r = r, .w = r->worker[0], .it = it, .fd = -1, .view = *view };

	atomic_fetch_add(&r->pass->files, 1);
	work_on(&t, classify(&t));
}

static void work_one(struct rotation *r, struct rotate_worker *w, struct rotate_item *it)
{
	struct task t = { .r = r, .w = w, .it = it, .fd = -1 };
	enum class class;

	if (!gate_stopped(r->gate)) {
		atomic_fetch_add(&r->pass->files, 1);
		t.fd = open_file(it, r->pass->mode != ROTATE_COUNT && !r->live);
		if (look(&t, &class))
			work_on(&t, class);
	} else {
		atomic_fetch_add(&r->pass->todo, 1);
	}
	cleanup_fd(&t.fd);
}

void rotate_work(void *rotation, void *item, unsigned worker)
{
	struct rotation *r = rotation;
	struct rotate_item *it = item, *next;

	for (; it; it = next) {
		next = it->next;
		work_one(r, r->worker[worker], it);
		rotate_item_free(it);
	}
}
