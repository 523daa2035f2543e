/* control_rotate.c — the verbs of rotation. Hides that a key service is asked when one begins: a thread of its own
 * works, one at a time, while the socket goes on answering. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "control.h"
#include "exitcode.h"
#include "jsonio.h"
#include "reseal.h"
#include "service.h"

#define STATES_SHOWN 100u
#define SLOTS_MAX    256u
#define MOVED_SHOWN  100u

struct rotate_job {
	pthread_t thread;
	bool running; /* there is a thread to be joined */
	atomic_bool stop, done;
	json_int_t number;
	struct domain *domain;
	struct reseal_wish wish;
	struct reseal_done made;
};

static struct domain *domain_named(struct service *s, const json_t *request)
{
	const char *hex = jsonio_str(request, "domain");
	uint8_t id[CONTEXT_ID];

	return hex && bytes_unhex(id, sizeof(id), hex, strlen(hex)) == 0 ? domain_by_id(s->fs, id) : NULL;
}

/* ---- rotate-state */

static json_t *slot_part(const struct descriptor_slot *slot)
{
	char material[65];

	if (!slot)
		return json_null();
	bytes_hex(material, slot->material, sizeof(slot->material));
	return json_pack("{s:o, s:s, s:s, s:I, s:i}", "key", jsonio_text(slot->key), "provider",
	    kms_provider_to_name(slot->provider), "material", material, "seq", (json_int_t)slot->seq, "generation",
	    (int)slot->context);
}

static json_t *domain_part(struct domain *d)
{
	struct descriptor_domain *desc = NULL;
	char id[2 * CONTEXT_ID + 1];
	struct lease_status ls;
	json_t *o;

	domain_status(d, &ls);
	bytes_hex(id, d->ids.domain, CONTEXT_ID);
	if (domain_descriptor(d, &desc))
		desc = NULL;
	o = json_pack("{s:i, s:s, s:I, s:s, s:o, s:o}", "index", (int)d->index, "id", id, "seq",
	    (json_int_t)(desc ? desc->seq : 0), "state", lease_state_name(ls.state), "ruling",
	    slot_part(desc ? descriptor_ruling_slot(desc) : NULL), "other",
	    slot_part(desc ? descriptor_other_slot(desc) : NULL));
	if (desc)
		descriptor_domain_free(desc);
	free(desc);
	return o;
}

struct listing {
	json_t *list;
	json_int_t from;
	bool more;
};

static bool list_domain(void *arg, struct domain *d)
{
	struct listing *l = arg;

	if (d->index < l->from)
		return true;
	l->more = json_array_size(l->list) == STATES_SHOWN;
	if (!l->more)
		(void)json_array_append_new(l->list, domain_part(d));
	return !l->more;
}

static json_t *state(struct service *s, const json_t *request)
{
	struct listing l = { .list = json_array(), .from = json_integer_value(json_object_get(request, "from")) };

	domains_each(s->fs, list_domain, &l);
	return json_pack("{s:i, s:s, s:b, s:o, s:b}", "code", EXIT_OK, "message", "ok", "readonly",
	    s->fs->params.readonly || s->fs->store->readonly, "domains", l.list, "more", l.more);
}

/* ---- rotate-begin, rotate-result, rotate-finish */

static void *work(void *arg)
{
	struct rotate_job *j = arg;

	reseal_begin(j->domain, &j->wish, &j->made);
	atomic_store(&j->done, true);
	return NULL;
}

static void join(struct rotate_job *j)
{
	if (j->running)
		(void)pthread_join(j->thread, NULL);
	j->running = false;
}

static bool busy(const struct service *s)
{
	return s->rotation && s->rotation->running && !atomic_load(&s->rotation->done);
}

static json_t *begin(struct service *s, const json_t *request)
{
	struct domain *d = domain_named(s, request);
	struct rotate_job *j;

	if (busy(s))
		return control_reply(EXIT_ALREADY, "another rotation is just beginning");
	if (!s->rotation)
		s->rotation = calloc(1, sizeof(*s->rotation));
	j = s->rotation;
	if (!j)
		return NULL;
	join(j);
	if (!control_rotate_wish(&j->wish, request))
		return control_reply(EXIT_USAGE, "the request to begin a rotation is malformed");
	if (!d)
		return control_reply(EXIT_NO_MOUNT, "no such key domain in this mount");
	atomic_store(&j->stop, false);
	atomic_store(&j->done, false);
	j->wish.stop = &j->stop;
	j->domain = d;
	j->number++;
	if (pthread_create(&j->thread, NULL, work, j))
		return control_reply(EXIT_FAILED, "no thread to do it");
	j->running = true;
	return json_pack("{s:i, s:s, s:I}", "code", EXIT_OK, "message", "begun", "job", j->number);
}

static json_t *result(struct service *s, const json_t *request)
{
	const struct rotate_job *j = s->rotation;

	if (!j || !j->number || json_integer_value(json_object_get(request, "job")) != j->number)
		return control_reply(EXIT_FAILED, "no such job");
	if (!atomic_load(&j->done))
		return json_pack("{s:i, s:s, s:b}", "code", EXIT_OK, "message", "the KMS is being asked", "running", 1);
	if (j->made.code)
		return control_reply(j->made.code, j->made.message);
	return json_pack("{s:i, s:o, s:i, s:I}", "code", EXIT_OK, "message", jsonio_text(j->made.message),
	    "generation", (int)j->made.generation, "seq", (json_int_t)j->made.seq);
}

static json_t *finish(struct service *s, const json_t *request)
{
	const json_t *seq = json_object_get(request, "seq");
	struct domain *d = domain_named(s, request);
	struct reseal_done done;

	if (!json_is_integer(seq) || json_integer_value(seq) < 0)
		return control_reply(EXIT_USAGE, "the request to finish a rotation is malformed");
	if (!d)
		return control_reply(EXIT_NO_MOUNT, "no such key domain in this mount");
	if (busy(s))
		return control_reply(EXIT_ALREADY, "another rotation is just beginning");
	reseal_record(s->fs, false);
	reseal_finish(d, (uint64_t)json_integer_value(seq), &done);
	if (done.code)
		return control_reply(done.code, done.message);
	return json_pack("{s:i, s:o, s:I}", "code", EXIT_OK, "message", jsonio_text(done.message), "seq",
	    (json_int_t)done.seq);
}

/* ---- rotate-slots */

static json_t *slot_result(
    struct domain *d, const struct descriptor_domain *desc, const json_t *request, const struct ctl_fds *fds)
{
	char path[PATH_MAX], text[300];
	struct header_slot slot;
	struct reseal_item item;
	const char *why = NULL;
	int r;

	if (!control_rotate_item(&item, path, &slot, request, fds))
		return json_string("error: the item is malformed");
	r = reseal_file(d, desc, &item, &why);
	if (!r || r == -ENOENT || r == -ESTALE)
		return json_string(!r ? "ok" : r == -ENOENT ? "gone" : "changed");
	(void)snprintf(text, sizeof(text), "error: %s", why ? why : strerror(-r));
	return jsonio_text(text);
}

static json_t *slot_results(
    struct domain *d, const struct descriptor_domain *desc, const json_t *slots, const struct ctl_fds *fds)
{
	json_t *list = json_array();

	for (size_t i = 0; i < json_array_size(slots); i++)
		(void)json_array_append_new(list, slot_result(d, desc, json_array_get(slots, i), fds));
	return json_pack("{s:i, s:s, s:o}", "code", EXIT_OK, "message", "ok", "results", list);
}

static json_t *slots(struct service *s, const json_t *request, const struct ctl_fds *fds)
{
	const json_t *items = json_object_get(request, "slots");
	struct domain *d = domain_named(s, request);
	struct descriptor_domain *desc;
	json_t *results;

	if (!json_is_array(items) || json_array_size(items) > SLOTS_MAX)
		return control_reply(EXIT_USAGE, "the request for slots is malformed");
	if (!d)
		return control_reply(EXIT_NO_MOUNT, "no such key domain in this mount");
	if (s->fs->params.readonly || s->fs->store->readonly)
		return control_reply(EXIT_FAILED, "the store is mounted read-only");
	if (domain_descriptor(d, &desc))
		return control_reply(EXIT_FAILED, "the key domain has not been opened yet");
	results = slot_results(d, desc, items, fds);
	descriptor_domain_free(desc);
	free(desc);
	return results;
}

/* ---- rotate-orphans */

static bool list_orphan(void *arg, const struct reseal_orphan *o)
{
	struct listing *l = arg;
	uint8_t page[LAYOUT_PAGE];
	char file[2 * CONTEXT_ID + 1], text[HEADER_SLOT_BYTES * 4 / 3 + 5];

	l->more = json_array_size(l->list) == STATES_SHOWN;
	if (l->more)
		return false;
	header_put_slot(page, 0, &o->view.ruling);
	bytes_hex(file, o->view.ident.file, CONTEXT_ID);
	(void)bytes_b64(B64_STD, text, page + HEADER_SLOT_AT(0), HEADER_SLOT_BYTES);
	(void)json_array_append_new(l->list,
	    json_pack("{s:I, s:I, s:s, s:s, s:b}", "node", (json_int_t)o->node, "ino", (json_int_t)o->ino, "file", file,
	        "slot", text, "other", o->view.have_other));
	return true;
}

static json_t *orphans(struct service *s, const json_t *request)
{
	struct listing l = { .list = json_array() };
	struct domain *d = domain_named(s, request);
	json_int_t from = json_integer_value(json_object_get(request, "from"));

	if (!d) {
		json_decref(l.list);
		return control_reply(EXIT_NO_MOUNT, "no such key domain in this mount");
	}
	reseal_orphans(d, from > 0 ? (uint64_t)from : 0, list_orphan, &l);
	return json_pack("{s:i, s:s, s:o, s:b}", "code", EXIT_OK, "message", "ok", "files", l.list, "more", l.more);
}

/* ---- rotate-moved */

/* 0 too when it is gone. */
static int tell_moved(struct fs *fs, struct inode *inode, json_t *list, struct ctl_fds *out)
{
	int fd = inode_open(fs->inodes, inode, O_PATH);

	if (fd == -ESTALE || fd == -EIO || fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	out->fd[out->n++] = fd;
	return json_array_append_new(list,
	    json_pack("{s:I, s:b}", "ino", (json_int_t)inode->ino, "directory", S_ISDIR(inode->type)));
}

static json_t *moved(struct service *s, const json_t *request, struct ctl_fds *out)
{
	uint64_t at = 0, head = 0;
	json_t *list = json_array();
	bool lost = false;

	if (json_is_true(json_object_get(request, "anew")))
		reseal_record(s->fs, true);
	while (!lost && out->n < MOVED_SHOWN) {
		struct inode *inode = reseal_moved(&at, &head, &lost);

		if (!inode)
			break;
		if (tell_moved(s->fs, inode, list, out))
			reseal_moving(s->fs, NULL); /* lost */
		inode_put(s->fs->inodes, inode);
	}
	return json_pack("{s:i, s:s, s:b, s:I, s:I, s:o}", "code", EXIT_OK, "message", "ok", "lost", lost, "at",
	    (json_int_t)at, "head", (json_int_t)head, "moved", list);
}

/* ---- */

json_t *control_rotate(
    struct service *s, const char *verb, const json_t *request, const struct ctl_fds *in, struct ctl_fds *out)
{
	static const struct {
		const char *name;
		json_t *(*fn)(struct service *, const json_t *);
	} verbs[] = {
		{ "rotate-state", state },
		{ "rotate-begin", begin },
		{ "rotate-result", result },
		{ "rotate-orphans", orphans },
		{ "rotate-finish", finish },
	};

	if (strcmp(verb, "rotate-slots") == 0)
		return slots(s, request, in);
	if (strcmp(verb, "rotate-moved") == 0)
		return moved(s, request, out);
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (strcmp(verb, verbs[i].name) == 0)
			return verbs[i].fn(s, request);
	return control_reply(EXIT_USAGE, "unknown verb");
}

void control_rotate_stop(struct service *s)
{
	struct rotate_job *j = s->rotation;

	if (!j)
		return;
	atomic_store(&j->stop, true);
	join(j);
	free(j);
	s->rotation = NULL;
}
