/* rotate_files.c — passes over the tree. Hides how work is handed to the workers without a list of files in memory,
 * what a later pass may leave out, and when nothing is left to do. */
#include "rotate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>

#include "io.h"
#include "walk.h"

#define PASSES_MAX 8u
#define CLOCK_S    2 /* what a clock's step of the backing may hide */

#define TOGETHER 32u

/* Entries come before subdirectories, and none of a directory after them: so the current one is enough. */
struct sweep {
	struct rotation *r;
	struct rotate_dir *dir;
	bool *recent; /* of each directory on the way down */
	size_t depth, room;
	struct rotate_item *batch;
	unsigned n;
	int err;
};

/* ---- directories and items */

static void dir_put(struct rotate_dir *d)
{
	if (!d || atomic_fetch_sub(&d->refs, 1) != 1)
		return;
	cleanup_fd(&d->fd);
	free(d);
}

void rotate_item_free(struct rotate_item *it)
{
	dir_put(it->dir);
	cleanup_fd(&it->fd);
	free(it);
}

static bool is_recent(const struct rotate_pass *p, const struct stat *st)
{
	return p->all || st->st_ctim.tv_sec > p->since.tv_sec - CLOCK_S;
}

static void put_batch(struct sweep *s)
{
	if (s->batch)
		crew_put(s->r->crew, s->batch);
	s->batch = NULL;
	s->n = 0;
}

/* A handful is of one directory: so no more of them are open than there are handfuls. */
static void end_dir(struct sweep *s)
{
	put_batch(s);
	dir_put(steal_ptr(&s->dir));
}

static int push(struct sweep *s, const struct stat *st)
{
	if (s->depth == s->room) {
		size_t room = 2 * s->room + 32;
		bool *more = realloc(s->recent, room * sizeof(*more));

		if (!more)
			return -ENOMEM;
		s->recent = more;
		s->room = room;
	}
	s->recent[s->depth] = is_recent(s->r->pass, st) || (s->depth && s->recent[s->depth - 1]);
	s->depth++;
	return 0;
}

static int begin_dir(struct sweep *s, int dirfd, const char *path)
{
	size_t n = strlen(path) + 1;
	struct rotate_dir *d = calloc(1, sizeof(*d) + n);

	if (!d)
		return -ENOMEM;
	d->fd = fcntl(dirfd, F_DUPFD_CLOEXEC, 0);
	if (d->fd < 0) {
		int ret = -errno;

		free(d);
		return ret;
	}
	atomic_store(&d->refs, 1);
	memcpy(d->path, path, n);
	s->dir = d;
	return 0;
}

/* On failure the walk goes on without handing out files. */
static void enter(void *arg, int dirfd, const char *path, const struct stat *st)
{
	struct sweep *s = arg;

	end_dir(s);
	if (s->err == 0)
		s->err = push(s, st);
	if (s->err == 0)
		s->err = begin_dir(s, dirfd, path);
	if (s->err == 0 && s->r->record.on)
		s->err = inoset_add(&s->r->record.listed, st->st_ino);
	if (s->err)
		gate_stop(s->r->gate, EXIT_FAILED, NULL, "cannot go into '%s': %s", path, strerror(-s->err));
}

static void leave(void *arg)
{
	struct sweep *s = arg;

	end_dir(s);
	if (s->depth)
		s->depth--;
}

/* Second halves of long names are files too, but not ours to open. */
static bool is_reserved(const struct rotation *r, const char *name)
{
	size_t n = strlen(name);

	if (strncmp(name, NAME_RESERVED, strlen(NAME_RESERVED)) == 0)
		return true;
	return r->store->desc.names != NAME_PLAIN && n > 4 && strncmp(name, "L.", 2) == 0 &&
	    strcmp(name + n - 2, ".n") == 0;
}

static void hand_out(struct sweep *s, const char *name, const struct stat *st)
{
	size_t n = strlen(name) + 1;
	struct rotate_item *it = calloc(1, sizeof(*it) + n);

	if (!it) {
		gate_stop(s->r->gate, EXIT_FAILED, NULL, "out of memory");
		return;
	}
	it->fd = -1;
	it->dir = s->dir;
	atomic_fetch_add(&s->dir->refs, 1);
	it->ino = st->st_ino;
	memcpy(it->name, name, n);
	it->next = s->batch;
	s->batch = it;
	/* Those that wait for the KMS go one by one. */
	if (++s->n >= (s->r->pass->mode == ROTATE_SEAL ? 1 : TOGETHER))
		put_batch(s);
}

static bool entry(void *arg, int dirfd, const char *path, const char *name, const struct stat *st)
{
	struct sweep *s = arg;

	(void)dirfd;
	if (s->err || gate_stopped(s->r->gate) || is_reserved(s->r, name))
		return false;
	if (S_ISDIR(st->st_mode))
		return strcmp(path, ".") != 0 || strcmp(name, "lost+found") != 0 ||
		    s->r->store->desc.names == NAME_PLAIN;
	if (S_ISREG(st->st_mode) && s->dir && (s->recent[s->depth - 1] || is_recent(s->r->pass, st)))
		hand_out(s, name, st);
	rotate_moved_meanwhile(s->r);
	return false;
}

static void failed(void *arg, const char *path, int err)
{
	struct sweep *s = arg;
	bool moved = s->r->live && (err == -ENOENT || err == -ELOOP || err == -ENOTDIR || err == -ESTALE);
	char *safe CLEANUP_FREE = malloc(4 * strlen(path) + 1);

	if (moved)
		return;
	atomic_fetch_add(&s->r->broken, 1);
	if (safe)
		cmd_escape(safe, path);
	LOCK_SCOPE(&s->r->trouble_lock);
	progress_clear(&s->r->progress);
	(void)fprintf(stderr, "byokfsctl: warning: %s: cannot be read: %s\n", safe ? safe : "?", strerror(-err));
}

static void walk_from(struct rotation *r, int fd)
{
	struct sweep s = { .r = r };
	const struct walk_ops ops = { .arg = &s, .enter = enter, .entry = entry, .failed = failed, .leave = leave };
	int ret = walk(fd, &ops);

	end_dir(&s);
	free(s.recent);
	if (r->live && ret == -ESTALE) /* it moved, and is deeper than the way back is kept */
		atomic_fetch_add(&r->pass->changed, 1);
	else if (ret < 0)
		gate_stop(r->gate, EXIT_FAILED, NULL, "the walk over the store ended early: %s", strerror(-ret));
}

int rotate_walk(struct rotation *r, struct rotate_pass *p)
{
	r->pass = p;
	walk_from(r, r->store->fd);
	crew_wait(r->crew);
	if (r->live && !gate_stopped(r->gate))
		rotate_orphans(r);
	if (r->live)
		live_flush(r->live);
	return gate_stopped(r->gate) ? EXIT_FAILED : EXIT_OK;
}

void rotate_walk_below(struct rotation *r, int fd)
{
	int dir CLEANUP_FD = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir >= 0)
		walk_from(r, dir);
	else if (errno != ENOENT && errno != ESTALE)
		gate_stop(r->gate, EXIT_FAILED, NULL, "cannot go into a directory that moved: %s", strerror(errno));
}

/* ---- passes over a store that nobody uses */

/* Until a pass finds nothing. The first one looks at everything. */
static int seal_all(struct rotation *r)
{
	struct timespec begun = { 0 };
	bool clean = false;

	for (unsigned n = 0; !clean && n < PASSES_MAX; n++) {
		struct rotate_pass p = { .mode = ROTATE_SEAL, .all = n == 0, .since = begun };
		int code = rotate_job_write(r, &begun);

		if (code == EXIT_OK)
			code = rotate_walk(r, &p);
		r->passes++;
		if (code != EXIT_OK)
			return code;
		clean = p.todo == 0;
	}
	return gate_stopped(r->gate) ? EXIT_FAILED : EXIT_OK;
}

static bool unfinished(const struct rotation *r)
{
	return r->troubles[TROUBLE_UNKNOWN] || r->troubles[TROUBLE_FAILED] || r->broken;
}

static int sync_store(struct rotation *r)
{
	if (syncfs(r->store->fd) == 0)
		return EXIT_OK;
	gate_stop(r->gate, EXIT_FAILED, NULL, "cannot flush the store: %s", strerror(errno));
	return EXIT_FAILED;
}

/* Empties the old slots: one pass. Every file is looked at once more: one that is not done sends the job back to
 * sealing. */
static int clear_once(struct rotation *r, bool *again)
{
	struct rotate_pass p = { .mode = ROTATE_CLEAR, .all = true };
	int code = rotate_walk(r, &p);

	r->passes++;
	r->counted_files = p.files;
	r->counted_unborn = p.unborn;
	*again = p.todo > 0;
	return code;
}

static int seal(struct rotation *r, bool *again)
{
	int code = r->live ? rotate_pass_live(r, ROTATE_SEAL, again) : seal_all(r);

	return code == EXIT_OK && unfinished(r) ? EXIT_FAILED : code;
}

static int clear(struct rotation *r, bool *again)
{
	int code = sync_store(r);

	if (code == EXIT_OK)
		code = r->live ? rotate_pass_live(r, ROTATE_CLEAR, again) : clear_once(r, again);
	if (code == EXIT_OK && unfinished(r))
		code = EXIT_FAILED;
	return code == EXIT_OK ? sync_store(r) : code;
}

static int give_up(struct rotation *r)
{
	gate_stop(r->gate, EXIT_FAILED, "the same command goes on",
	    "files come back under the old key: %u rounds did not reach all of them", PASSES_MAX);
	return EXIT_FAILED;
}

int rotate_files(struct rotation *r)
{
	bool again = true;
	int code = EXIT_OK;

	for (unsigned n = 0; again; n++) {
		if (n == PASSES_MAX)
			return give_up(r);
		code = rotate_job_write(r, NULL);
		if (code == EXIT_OK)
			code = seal(r, &again);
		if (code == EXIT_OK)
			code = clear(r, &again);
		if (code != EXIT_OK)
			return code;
	}
	return code;
}
