/* Files that a mount has open though their last name is gone: no walk finds them, and whoever has them open needs them
 * until he closes them. Hides how the daemon tells of them. */
#include "rotate.h"

#include <stdio.h>

#include "bytes.h"
#include "jsonio.h"

static uint64_t number(const json_t *o, const char *member)
{
	json_int_t n = json_integer_value(json_object_get(o, member));

	return n > 0 ? (uint64_t)n : 0;
}

static bool take_view(struct reslot_view *v, const json_t *o, const struct rotation *r, const struct rotate_domain *d)
{
	const char *file = jsonio_str(o, "file");
	uint8_t page[LAYOUT_PAGE];
	size_t n = HEADER_SLOT_BYTES;

	memset(v, 0, sizeof(*v));
	memcpy(v->ident.store, r->store->desc.store, CONTEXT_ID);
	memcpy(v->ident.domain, d->ids.domain, CONTEXT_ID);
	v->have_other = json_is_true(json_object_get(o, "other"));
	return file && bytes_unhex(v->ident.file, CONTEXT_ID, file, strlen(file)) == 0 &&
	    jsonio_blob(page + HEADER_SLOT_AT(0), &n, o, "slot") == 0 && n == HEADER_SLOT_BYTES &&
	    header_slot(page, 0, &v->ruling) == 0;
}

static struct rotate_dir *make_dir(void)
{
	static const char path[] = "(open without a name)";
	struct rotate_dir *d = calloc(1, sizeof(*d) + sizeof(path));

	if (!d)
		return NULL;
	d->fd = -1;
	atomic_store(&d->refs, 1);
	memcpy(d->path, path, sizeof(path));
	return d;
}

static struct rotate_item *make_item(const json_t *o)
{
	struct rotate_item *it = calloc(1, sizeof(*it) + 40);

	if (!it)
		return NULL;
	it->fd = -1;
	it->node = number(o, "node");
	it->ino = (ino_t)number(o, "ino");
	(void)snprintf(it->name, 40, "inode %llu", (unsigned long long)it->ino);
	it->dir = make_dir();
	if (it->dir)
		return it;
	free(it);
	return NULL;
}

static void work_on(struct rotation *r, const struct rotate_domain *d, const json_t *o)
{
	struct reslot_view view;
	struct rotate_item *it = take_view(&view, o, r, d) ? make_item(o) : NULL;

	if (!it) {
		gate_stop(
		    r->gate, EXIT_FAILED, NULL, "the daemon of '%s' gave no sensible answer", live_mount(r->live));
		return;
	}
	rotate_work_on(r, it, &view);
	rotate_item_free(it);
}

/* A handful; the node to go on from, 0 at the end. */
static uint64_t some(struct rotation *r, const struct rotate_domain *d, uint64_t from)
{
	json_t *answer = NULL;
	const json_t *files;
	uint64_t next = from;
	int code = live_orphans(r->live, d, from, &answer);
	bool more = json_is_true(json_object_get(answer, "more"));

	files = json_object_get(answer, "files");
	if (code != EXIT_OK)
		gate_stop(r->gate, code, "is it still mounted? The same command goes on",
		    "the daemon of '%s' did not go on", live_mount(r->live));
	for (size_t i = 0; i < json_array_size(files) && !gate_stopped(r->gate); i++) {
		const json_t *o = json_array_get(files, i);

		next = number(o, "node") + 1;
		work_on(r, d, o);
	}
	json_decref(answer);
	return more && next > from && !gate_stopped(r->gate) ? next : 0;
}

void rotate_orphans(struct rotation *r)
{
	for (size_t i = 0; i < r->n && !gate_stopped(r->gate); i++) {
		uint64_t from = 1;

		while (from)
			from = some(r, &r->domain[i], from);
	}
}
