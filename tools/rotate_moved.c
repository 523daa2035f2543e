/* rotate_moved.c — passes over a store that is mounted and in use. Hides why they come to an end.
 *
 * What is done stays done, and what users make is made under the new key. A walk can miss only what moves; the daemon
 * records that, each file and directory that was there before (include/reseal.h). After the walk everything is done,
 * or lies in the record, or in a directory in it that has not been listed yet. So the record is worked off: files by a
 * descriptor, wherever they have moved to, and of the directories those that were not listed. Each of these is met
 * once; when all that was recorded up to some instant needed nothing, nothing is left. */
#include "rotate.h"

#include <errno.h>
#include <stdio.h>

#include "ctl.h"
#include "io.h"

#define WALKS_MAX 8u
#define EVERY_MS  200u

/* A file that moved: the descriptor is the item's. */
static struct rotate_item *item_of(int *fd, ino_t ino)
{
	static const char path[] = "(moved)";
	struct rotate_item *it = calloc(1, sizeof(*it) + 40);
	struct rotate_dir *d = calloc(1, sizeof(*d) + sizeof(path));

	if (!it || !d) {
		free(it);
		free(d);
		return NULL;
	}
	d->fd = -1;
	atomic_store(&d->refs, 1);
	memcpy(d->path, path, sizeof(path));
	it->dir = d;
	it->ino = ino;
	it->fd = steal_fd(fd);
	(void)snprintf(it->name, 40, "inode %llu", (unsigned long long)ino);
	return it;
}

static void one_moved(struct rotation *r, const json_t *o, int *fd)
{
	ino_t ino = (ino_t)json_integer_value(json_object_get(o, "ino"));
	struct rotate_item *it;

	if (json_is_true(json_object_get(o, "directory"))) {
		if (inoset_has(&r->record.listed, ino))
			return;
		atomic_fetch_add(&r->pass->met, 1);
		rotate_walk_below(r, *fd);
		return;
	}
	it = item_of(fd, ino);
	if (it)
		crew_put(r->crew, it);
	else
		gate_stop(r->gate, EXIT_FAILED, NULL, "out of memory");
}

/* A handful of the record. False: there is no more of it up to *end, or it cannot go on. */
static bool some_moved(struct rotation *r, uint64_t *end)
{
	struct ctl_fds fds = { .n = 0 };
	json_t *answer = NULL;
	const json_t *list;
	uint64_t at, head;
	size_t n;

	if (live_moved(r, false, &answer, &fds) != EXIT_OK) {
		ctl_fds_close(&fds);
		json_decref(answer);
		return false;
	}
	list = json_object_get(answer, "moved");
	at = (uint64_t)json_integer_value(json_object_get(answer, "at"));
	head = (uint64_t)json_integer_value(json_object_get(answer, "head"));
	r->record.lost |= json_is_true(json_object_get(answer, "lost"));
	n = json_array_size(list) < fds.n ? json_array_size(list) : fds.n;
	for (size_t i = 0; i < n && !gate_stopped(r->gate); i++)
		one_moved(r, json_array_get(list, i), &fds.fd[i]);
	ctl_fds_close(&fds);
	json_decref(answer);
	if (!*end)
		*end = head;
	return at < *end && !r->record.lost && !gate_stopped(r->gate);
}

static void work_off(struct rotation *r)
{
	uint64_t end = 0;

	while (some_moved(r, &end))
		;
	r->record.asked = io_boot_ms();
}

void rotate_moved_meanwhile(struct rotation *r)
{
	if (!r->live || !r->record.on || r->record.busy || io_boot_ms() < r->record.asked + EVERY_MS)
		return;
	r->record.busy = true;
	work_off(r);
	r->record.busy = false;
}

static void work_off_all(struct rotation *r)
{
	r->record.busy = true;
	work_off(r);
	r->record.busy = false;
	crew_wait(r->crew);
	live_flush(r->live);
}

/* What has a name is met by the record, what has none any more by the list of those; what got one in between by the
 * record again. */
static void settle(struct rotation *r)
{
	uint64_t before;

	do {
		before = r->pass->met;
		work_off_all(r);
		if (!gate_stopped(r->gate))
			rotate_orphans(r);
		live_flush(r->live);
		work_off_all(r);
		r->passes++;
	} while (r->pass->met != before && !r->record.lost && !gate_stopped(r->gate));
}

static int begin_record(struct rotation *r)
{
	struct ctl_fds fds = { .n = 0 };
	json_t *answer = NULL;
	int code = live_moved(r, true, &answer, &fds);

	ctl_fds_close(&fds);
	json_decref(answer);
	inoset_clear(&r->record.listed);
	r->record.on = code == EXIT_OK;
	r->record.lost = false;
	return code;
}

static int one_walk(struct rotation *r, struct rotate_pass *p)
{
	int code = begin_record(r);

	if (code == EXIT_OK)
		code = rotate_walk(r, p);
	r->passes++;
	if (code == EXIT_OK)
		settle(r);
	return gate_stopped(r->gate) ? EXIT_FAILED : code;
}

int rotate_pass_live(struct rotation *r, int mode, bool *again)
{
	int code = EXIT_OK;

	*again = false;
	for (unsigned n = 0; n < WALKS_MAX && code == EXIT_OK; n++) {
		struct rotate_pass p = { .mode = (enum rotate_mode)mode, .all = true };

		code = one_walk(r, &p);
		r->record.on = false;
		if (mode == ROTATE_CLEAR) {
			r->counted_files = p.files;
			r->counted_unborn = p.unborn;
		}
		*again = p.todo > 0;
		if (*again || (!r->record.lost && !p.changed))
			return code;
	}
	if (code == EXIT_OK)
		gate_stop(r->gate, EXIT_FAILED, "the same command goes on",
		    "more moves than can be remembered: %u walks over the store did not settle", WALKS_MAX);
	return EXIT_FAILED;
}
