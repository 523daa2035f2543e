/* rotate_live.c — the daemon of a mount, which owns the store's descriptors and page 0 of its files. Hides the control
 * socket, and the thread that sends exchanged slots in batches. */
#include "rotate.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

#include "bytes.h"
#include "ctl.h"
#include "io.h"
#include "jsonio.h"

#define CALL_MS  30000u
#define PROOF_MS 120000u
#define POLL_MS  50u
#define BATCH    64u
#define BATCH_MS 20u
#define QUEUE    (2u * BATCH) /* each holds a descriptor */

/* A slot on its way to the daemon. */
struct parcel {
	json_t *json;
	struct rotate_item *it; /* a copy: for messages */
	uint8_t domain[CONTEXT_ID];
	int fd; /* the file's, or -1: it has a node */
	bool fresh;
};

struct live {
	char socket[CTL_PATH];
	char *mount, *cipherdir;
	/* guarded by lock */
	pthread_mutex_t lock;
	pthread_cond_t filled, freed;
	struct parcel queue[QUEUE];
	size_t n;
	bool sending, end;
	uint64_t first; /* when the oldest one came */
	pthread_t sender;
	bool started;
	bool dead; /* the sender's own: the daemon failed once */
};

/* ---- finding it */

static int ask_socket(const char *socket, const json_t *request, unsigned ms, json_t **answer)
{
	*answer = NULL;
	return ctl_call_socket(socket, request, ms, answer);
}

static int open_live(struct live **out, const char *socket, const json_t *status)
{
	const char *mount = jsonio_str(status, "mountpoint"), *cipherdir = jsonio_str(status, "cipherdir");
	struct live *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	(void)pthread_mutex_init(&l->lock, NULL);
	(void)io_cond_init(&l->filled);
	(void)pthread_cond_init(&l->freed, NULL);
	(void)snprintf(l->socket, sizeof(l->socket), "%s", socket);
	l->mount = strdup(mount ? mount : "?");
	l->cipherdir = strdup(cipherdir ? cipherdir : "?");
	if (l->mount && l->cipherdir) {
		*out = l;
		return 0;
	}
	live_close(l);
	return -ENOMEM;
}

static int rotate_state(const char *socket, json_t **answer)
{
	json_t *request = json_pack("{s:s}", "verb", "rotate-state");
	int ret = request ? ask_socket(socket, request, CALL_MS, answer) : -ENOMEM;

	json_decref(request);
	return ret;
}

static bool is_writer(const char *socket)
{
	json_t *answer = NULL;
	int ret = rotate_state(socket, &answer);
	bool writer = ret == 0 && !json_is_true(json_object_get(answer, "readonly"));

	json_decref(answer);
	return writer;
}

/* Does this daemon serve that store, read-write? */
static int try_socket(struct live **out, const char *socket, const struct stat *want)
{
	json_t *request = json_pack("{s:s}", "verb", "status"), *answer = NULL;
	const char *cipherdir;
	struct stat st;
	int ret = request ? ask_socket(socket, request, CALL_MS, &answer) : -ENOMEM;

	cipherdir = ret == 0 ? jsonio_str(answer, "cipherdir") : NULL;
	if (ret != -ENOMEM)
		ret = 0;
	if (cipherdir && stat(cipherdir, &st) == 0 && st.st_dev == want->st_dev && st.st_ino == want->st_ino &&
	    is_writer(socket))
		ret = open_live(out, socket, answer);
	json_decref(request);
	json_decref(answer);
	return ret;
}

int live_find(struct live **out, const struct stat *want)
{
	char dir[CTL_PATH], socket[CTL_PATH + NAME_MAX + 2];
	int ret = ctl_directory(dir);
	DIR *d = ret == 0 ? opendir(dir) : NULL;
	const struct dirent *e;

	*out = NULL;
	while (d && ret == 0 && !*out && (e = readdir(d))) {
		size_t n = strlen(e->d_name);

		if (n <= 5 || strcmp(e->d_name + n - 5, ".sock") != 0)
			continue;
		(void)snprintf(socket, sizeof(socket), "%s/%s", dir, e->d_name);
		ret = try_socket(out, socket, want);
	}
	if (d)
		(void)closedir(d);
	return ret;
}

int live_at(struct live **out, const char *path)
{
	char socket[CTL_PATH];
	json_t *request, *answer = NULL;
	int ret;

	*out = NULL;
	if (ctl_path(path, socket) < 0 || access(socket, F_OK) != 0)
		return 0;
	request = json_pack("{s:s}", "verb", "status");
	ret = request ? ask_socket(socket, request, CALL_MS, &answer) : -ENOMEM;
	if (ret == 0)
		ret = open_live(out, socket, answer);
	else if (ret != -ENOMEM)
		ret = 0;
	json_decref(request);
	json_decref(answer);
	return ret;
}

const char *live_cipherdir(const struct live *l)
{
	return l->cipherdir;
}

const char *live_mount(const struct live *l)
{
	return l->mount;
}

/* ---- questions */

/* EXIT_OK and an answer, or it was said. fds, which may be NULL, go along. */
static int call_with(struct live *l, json_t *request, const struct ctl_fds *fds, const char *what, json_t **answer)
{
	int code, ret = request ? ctl_call_fds(l->socket, request, fds, CALL_MS, answer, NULL) : -ENOMEM;

	json_decref(request);
	if (ret < 0)
		return cmd_call_failed(l->mount, ret);
	code = cmd_answer_code(*answer);
	if (code != EXIT_OK)
		cmd_answer_error(*answer, "%s", what);
	return code;
}

static int call(struct live *l, json_t *request, const char *what, json_t **answer)
{
	return call_with(l, request, NULL, what, answer);
}

int live_moved(struct rotation *r, bool anew, json_t **answer, struct ctl_fds *fds)
{
	json_t *request = json_pack("{s:s, s:b}", "verb", "rotate-moved", "anew", anew);
	int ret = request ? ctl_call_fds(r->live->socket, request, NULL, CALL_MS, answer, fds) : -ENOMEM;
	int code = ret == 0 ? cmd_answer_code(*answer) : EXIT_NO_MOUNT;

	json_decref(request);
	if (code != EXIT_OK)
		gate_stop(r->gate, code, "is it still mounted? The same command goes on",
		    "the daemon of '%s' does not tell what moves", r->live->mount);
	return code;
}

static json_t *base64(const uint8_t *bytes, size_t n)
{
	char *text CLEANUP_FREE = malloc(bytes_b64_size(n));

	if (!text)
		return NULL;
	(void)bytes_b64(B64_STD, text, bytes, n);
	return json_string(text);
}

static json_t *slot_json(const struct descriptor_slot *s)
{
	char material[65];

	bytes_hex(material, s->material, sizeof(s->material));
	return json_pack("{s:s, s:s, s:s, s:I, s:o, s:o}", "provider", kms_provider_to_name(s->provider), "key", s->key,
	    "material", material, "sealed", (json_int_t)s->sealed, "blob", base64(s->blob, s->blob_len), "probe",
	    base64(s->probe, s->probe_len));
}

static json_t *begin_request(
    const struct rotation *r, const struct rotate_domain *d, const struct descriptor_slot *slot, bool context)
{
	char id[2 * CONTEXT_ID + 1];
	json_t *o;

	bytes_hex(id, d->ids.domain, CONTEXT_ID);
	o = json_pack("{s:s, s:s, s:I, s:o}", "verb", "rotate-begin", "domain", id, "seq", (json_int_t)d->desc->seq,
	    "slot", slot_json(slot));
	if (o && context)
		(void)json_object_set_new(
		    o, "context", json_string(r->config.kms.context ? r->config.kms.context : ""));
	return o;
}

/* The proof asks the KMS, and is waited for. */
static int wait_result(struct rotation *r, json_int_t job, const char *what)
{
	uint64_t end = io_boot_ms() + PROOF_MS;

	while (io_boot_ms() < end) {
		json_t *answer = NULL;
		json_t *request = json_pack("{s:s, s:I}", "verb", "rotate-result", "job", job);
		int code = call(r->live, request, what, &answer);
		bool running = json_is_true(json_object_get(answer, "running"));

		json_decref(answer);
		if (code != EXIT_OK || !running)
			return code;
		gate_sleep(r->gate, POLL_MS);
	}
	cmd_error("%s: the daemon did not answer in time", what);
	return EXIT_FAILED;
}

int live_begin(struct rotation *r, struct rotate_domain *d, const struct descriptor_slot *slot, bool context)
{
	json_t *answer = NULL;
	char what[100];
	json_int_t job;
	int code;

	(void)snprintf(what, sizeof(what), "the daemon cannot use the new key for domain %u", (unsigned)d->line->index);
	code = call(r->live, begin_request(r, d, slot, context), what, &answer);
	job = json_integer_value(json_object_get(answer, "job"));
	json_decref(answer);
	if (code == EXIT_OK)
		code = wait_result(r, job, what);
	if (code == EXIT_DENIED)
		cmd_hint(
		    "the mount's identity needs kms:Decrypt and kms:GenerateDataKey on the new key: 'byokfsctl policy "
		    "--host ARN' prints its policy");
	return code;
}

int live_finish(struct rotation *r, struct rotate_domain *d)
{
	char id[2 * CONTEXT_ID + 1];
	json_t *answer = NULL;
	int code;

	bytes_hex(id, d->ids.domain, CONTEXT_ID);
	code = call(r->live,
	    json_pack("{s:s, s:s, s:I}", "verb", "rotate-finish", "domain", id, "seq", (json_int_t)d->desc->seq),
	    "the daemon cannot finish", &answer);
	json_decref(answer);
	return code;
}

int live_orphans(struct live *l, const struct rotate_domain *d, uint64_t from, json_t **answer)
{
	char id[2 * CONTEXT_ID + 1];

	bytes_hex(id, d->ids.domain, CONTEXT_ID);
	return call(l, json_pack("{s:s, s:s, s:I}", "verb", "rotate-orphans", "domain", id, "from", (json_int_t)from),
	    "the daemon does not tell its open files", answer);
}

/* ---- slots */

static void parcel_free(struct parcel *p)
{
	json_decref(p->json);
	cleanup_fd(&p->fd);
	if (p->it)
		rotate_item_free(p->it);
}

static void settle(struct rotation *r, const struct parcel *p, const char *result)
{
	char safe[400], cut[100];

	if (strcmp(result, "ok") == 0) {
		atomic_fetch_add(p->fresh ? &r->resealed : &r->cleared, 1);
	} else if (strcmp(result, "changed") == 0) {
		atomic_fetch_add(&r->pass->changed, 1);
	} else if (strcmp(result, "gone") != 0) {
		(void)snprintf(cut, sizeof(cut), "%s", result);
		cmd_escape(safe, cut);
		rotate_trouble(r, TROUBLE_FAILED, p->it, "the daemon did not write it: %s", safe);
	}
}

/* Of one domain. */
static void send_slots(struct rotation *r, struct parcel *parcels, size_t n)
{
	char id[2 * CONTEXT_ID + 1];
	json_t *slots = json_array(), *answer = NULL, *results;
	struct ctl_fds fds = { .n = 0 };

	bytes_hex(id, parcels[0].domain, CONTEXT_ID);
	for (size_t i = 0; i < n; i++) {
		if (parcels[i].fd >= 0) {
			(void)json_object_set_new(parcels[i].json, "fd", json_integer((json_int_t)fds.n));
			fds.fd[fds.n++] = parcels[i].fd; /* lent */
		}
		(void)json_array_append(slots, parcels[i].json);
	}
	json_t *request = json_pack("{s:s, s:s, s:o}", "verb", "rotate-slots", "domain", id, "slots", slots);
	int code = call_with(r->live, request, &fds, "the daemon does not take sealed keys", &answer);

	results = json_object_get(answer, "results");
	if (code == EXIT_OK && json_array_size(results) != n) {
		code = EXIT_FAILED;
		cmd_error("the daemon of '%s' gave no sensible answer", r->live->mount);
	}
	for (size_t i = 0; i < n && code == EXIT_OK; i++) {
		const char *result = json_string_value(json_array_get(results, i));

		settle(r, &parcels[i], result ? result : "no answer");
	}
	json_decref(answer);
	if (code != EXIT_OK) {
		r->live->dead = true;
		atomic_fetch_add(&r->pass->todo, n);
		gate_stop(r->gate, code, NULL, "the daemon of '%s' did not go on", r->live->mount);
	}
}

static void send_batch(struct rotation *r, struct parcel *batch, size_t n)
{
	for (size_t at = 0, end; at < n && !r->live->dead; at = end) {
		for (end = at + 1; end < n && bytes_equal(batch[end].domain, batch[at].domain, CONTEXT_ID); end++)
			;
		send_slots(r, batch + at, end - at);
	}
	for (size_t i = 0; i < n; i++)
		parcel_free(&batch[i]);
}

/* Waits until a batch is full, or the oldest has waited long enough. The lock is held; how many to send. */
static size_t wait_batch(struct live *l)
{
	for (;;) {
		uint64_t now = io_boot_ms();

		if (l->n >= BATCH || (l->n && (l->end || now >= l->first + BATCH_MS)))
			return l->n < BATCH ? l->n : BATCH;
		if (l->end)
			return 0;
		if (l->n) {
			struct timespec until = io_after_ms(l->first + BATCH_MS - now);

			(void)pthread_cond_timedwait(&l->filled, &l->lock, &until);
		} else {
			(void)pthread_cond_wait(&l->filled, &l->lock);
		}
	}
}

static void *sender_main(void *arg)
{
	struct rotation *r = arg;
	struct live *l = r->live;
	struct parcel batch[BATCH];
	size_t n;

	(void)pthread_mutex_lock(&l->lock);
	while ((n = wait_batch(l)) > 0) {
		memcpy(batch, l->queue, n * sizeof(*batch));
		l->n -= n;
		memmove(l->queue, l->queue + n, l->n * sizeof(*batch));
		l->first = io_boot_ms();
		l->sending = true;
		(void)pthread_cond_broadcast(&l->freed);
		(void)pthread_mutex_unlock(&l->lock);
		send_batch(r, batch, n);
		(void)pthread_mutex_lock(&l->lock);
		l->sending = false;
		(void)pthread_cond_broadcast(&l->freed);
	}
	(void)pthread_mutex_unlock(&l->lock);
	return NULL;
}

int live_start(struct rotation *r)
{
	int ret = -pthread_create(&r->live->sender, NULL, sender_main, r);

	r->live->started = ret == 0;
	return ret;
}

static json_t *parcel_json(const struct rotate_item *it, const struct reslot_view *v, const struct header_slot *fresh)
{
	uint8_t page[LAYOUT_PAGE];
	char file[2 * CONTEXT_ID + 1];
	json_t *o;

	bytes_hex(file, v->ident.file, CONTEXT_ID);
	o = json_pack("{s:s, s:I, s:I}", "file", file, "ino", (json_int_t)it->ino, "seq", (json_int_t)v->ruling.seq);
	if (o && it->node)
		(void)json_object_set_new(o, "node", json_integer((json_int_t)it->node));
	if (!o || !fresh)
		return o;
	header_put_slot(page, 0, fresh);
	(void)json_object_set_new(o, "slot", base64(page + HEADER_SLOT_AT(0), HEADER_SLOT_BYTES));
	return o;
}

static struct rotate_item *item_copy(const struct rotate_item *it)
{
	size_t n = sizeof(*it) + strlen(it->name) + 1;
	struct rotate_item *copy = malloc(n);

	if (!copy)
		return NULL;
	memcpy(copy, it, n);
	copy->fd = -1;
	atomic_fetch_add(&copy->dir->refs, 1);
	return copy;
}

void live_put(struct rotation *r, const struct rotate_item *it, int fd, const struct reslot_view *v,
    const struct header_slot *fresh)
{
	struct live *l = r->live;
	struct parcel p = { .json = parcel_json(it, v, fresh),
		.it = item_copy(it),
		.fd = it->node ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0),
		.fresh = fresh != NULL };

	memcpy(p.domain, v->ident.domain, CONTEXT_ID);
	if (!p.json || !p.it || (p.fd < 0 && !it->node)) {
		parcel_free(&p);
		gate_stop(r->gate, EXIT_FAILED, NULL, "out of memory, or of descriptors");
		return;
	}
	LOCK_SCOPE(&l->lock);
	while (l->n == QUEUE)
		(void)pthread_cond_wait(&l->freed, &l->lock);
	if (l->n == 0)
		l->first = io_boot_ms();
	l->queue[l->n++] = p;
	if (l->n == 1 || l->n == BATCH)
		(void)pthread_cond_signal(&l->filled);
}

void live_flush(struct live *l)
{
	LOCK_SCOPE(&l->lock);
	while (l->n > 0 || l->sending)
		(void)pthread_cond_wait(&l->freed, &l->lock);
}

void live_close(struct live *l)
{
	if (!l)
		return;
	(void)pthread_mutex_lock(&l->lock);
	l->end = true;
	(void)pthread_cond_broadcast(&l->filled);
	(void)pthread_mutex_unlock(&l->lock);
	if (l->started)
		(void)pthread_join(l->sender, NULL);
	(void)pthread_cond_destroy(&l->filled);
	(void)pthread_cond_destroy(&l->freed);
	(void)pthread_mutex_destroy(&l->lock);
	free(l->mount);
	free(l->cipherdir);
	free(l);
}
