/* keys_files.c — page 0 of every file of a store, read by several threads. Hides that directories stay open as long as
 * one of their files waits to be read, that a file with several names counts once, and what is no file at all. */
#include "keys.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "bytes.h"
#include "crew.h"
#include "progress.h"
#include "reslot.h"
#include "walk.h"

#define QUARANTINE "quarantine" /* in .byokfs: what a repair put there is sealed, too */

#define QUEUE     256u       /* each may keep a directory open */
#define LINKS_MAX (1u << 20) /* files with several names that are remembered */

/* The directory whose entries are listed; counted under keys.lock. */
struct place {
	int fd;
	unsigned refs;
	char path[];
};

struct item {
	struct place *place;
	dev_t dev;
	ino_t ino;
	char name[];
};

struct scan {
	struct keys *k;
	struct crew *crew;
	struct progress progress;
	struct place *here; /* NULL: it could not be kept open */
	bool quarantine;    /* what cannot be judged there is there for that very reason */
	dev_t dev;
	uint64_t *inode; /* of files with several names: a set, 0 empty */
	size_t inodes, room;
	uint8_t (*domain)[CONTEXT_ID]; /* ids, ascending */
};

static void trouble(struct keys *k, uint64_t *counter, const char *dir, const char *name)
{
	LOCK_SCOPE(&k->lock);
	*counter += 1;
	if (!k->trouble)
		k->trouble = keytab_path(dir, name);
}

/* ---- files */

static int id_order(const void *a, const void *b)
{
	return memcmp(a, b, CONTEXT_ID); /* public ids */
}

static bool has_domain(const struct scan *s, const uint8_t id[static CONTEXT_ID])
{
	return bsearch(id, s->domain, s->k->ndomain, CONTEXT_ID, id_order);
}

static int open_file(int dirfd, const char *name)
{
	const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	int fd = openat(dirfd, name, flags | O_NOATIME);

	return fd < 0 && errno == EPERM ? openat(dirfd, name, flags) : fd;
}

/* What its first page says goes into the table. */
static void count(struct scan *s, const struct item *i, const struct reslot_view *v)
{
	struct keys *k = s->k;
	const struct header_slot *both[2] = { &v->ruling, v->have_other ? &v->other : NULL };

	LOCK_SCOPE(&k->lock);
	if (s->quarantine)
		k->quarantined++;
	else
		*(v->ruling.wrap == HEADER_WRAP_KMS ? &k->by_kms : &k->by_domain) += 1;
	for (int n = 0; n < 2; n++) {
		if (!both[n] || both[n]->wrap != HEADER_WRAP_KMS)
			continue;
		enum keytab_kind kind = n ? KEYTAB_SUPERSEDED : s->quarantine ? KEYTAB_ASIDE : KEYTAB_RULING;
		int ret = keytab_file(&k->tab, both[n], kind, i->place->path, i->name);

		k->err = k->err ? k->err : ret;
	}
}

static void understood(struct scan *s, const struct item *i, const struct reslot_view *v)
{
	bool ours = bytes_equal(v->ident.store, s->k->store->desc.store, CONTEXT_ID);

	/* Whose key opens the name, or wraps the key, of a file of an unknown domain, nobody can tell. */
	if (!s->quarantine && (!ours || !has_domain(s, v->ident.domain)))
		trouble(s->k, &s->k->damaged, i->place->path, i->name);
	if (v->ruling.wrap == HEADER_WRAP_KMS || ours)
		count(s, i, v);
}

static void plus(struct keys *k, uint64_t *counter)
{
	LOCK_SCOPE(&k->lock);
	*counter += 1;
}

static void read_file(struct scan *s, const struct item *i)
{
	struct keys *k = s->k;
	struct reslot_view v;
	struct stat st = { 0 };
	int fd CLEANUP_FD = open_file(i->place->fd, i->name);
	int ret = fd < 0 || fstat(fd, &st) < 0 ? -errno : 0;

	if (ret == 0 && (st.st_dev != i->dev || st.st_ino != i->ino || !S_ISREG(st.st_mode)))
		ret = -ENOENT;
	if (ret == 0)
		ret = reslot_read(fd, &v);
	if (ret == -ENODATA && st.st_size > 0 && st.st_size < LAYOUT_PAGE)
		ret = -EBADMSG; /* cut off */
	if (s->quarantine && (ret == -ENODATA || ret == -EBADMSG))
		return;
	if (ret == 0)
		understood(s, i, &v);
	else if (ret == -ENODATA)
		plus(k, &k->unborn);
	else if (ret == -ENOENT || ret == -ELOOP || ret == -ENXIO)
		plus(k, &k->gone);
	else
		trouble(k, ret == -EBADMSG ? &k->damaged : &k->unreadable, i->place->path, i->name);
}

/* ---- the walk */

static void put_place(struct keys *k, struct place *p)
{
	bool last;

	if (!p)
		return;
	(void)pthread_mutex_lock(&k->lock);
	last = --p->refs == 0;
	(void)pthread_mutex_unlock(&k->lock);
	if (!last)
		return;
	(void)close(p->fd);
	free(p);
}

static void work(void *arg, void *item, unsigned worker)
{
	struct scan *s = arg;
	struct item *i = item;

	(void)worker;
	read_file(s, i);
	progress_add(&s->progress, 1, 0);
	put_place(s->k, i->place);
	free(i);
}

static void failed(void *arg, const char *path, int err)
{
	struct scan *s = arg;

	if (err == -ENOENT)
		plus(s->k, &s->k->gone);
	else
		trouble(s->k, err == -EXDEV ? &s->k->foreign : &s->k->unreadable, path, "");
}

static void enter(void *arg, int dirfd, const char *path, const struct stat *st)
{
	struct scan *s = arg;
	char *full CLEANUP_FREE =
	    s->quarantine ? keytab_path(".byokfs/" QUARANTINE, strcmp(path, ".") ? path : "") : strdup(path);
	size_t n = full ? strlen(full) + 1 : 0;
	struct place *p = full ? malloc(sizeof(*p) + n) : NULL;

	s->dev = st->st_dev;
	put_place(s->k, s->here);
	s->here = NULL;
	if (!p)
		return;
	p->refs = 1;
	memcpy(p->path, full, n);
	p->fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (p->fd >= 0)
		s->here = p;
	else
		free(p);
}

static void leave(void *arg)
{
	(void)arg;
}

static bool insert(uint64_t *set, size_t room, uint64_t ino)
{
	size_t at = (size_t)(ino * 0x9E3779B97F4A7C15ull >> 20) & (room - 1);

	for (; set[at]; at = (at + 1) & (room - 1))
		if (set[at] == ino)
			return false;
	set[at] = ino;
	return true;
}

/* Room for twice as many, or as it was. */
static void grow(struct scan *s)
{
	size_t room = s->room ? 2 * s->room : 1024;
	uint64_t *more = room <= 2 * LINKS_MAX ? calloc(room, sizeof(*more)) : NULL;

	if (!more)
		return;
	for (size_t i = 0; i < s->room; i++)
		if (s->inode[i])
			(void)insert(more, room, s->inode[i]);
	free(s->inode);
	s->inode = more;
	s->room = room;
}

/* Not met by another of its names yet, as far as memory goes. */
static bool first_name(struct scan *s, const struct stat *st)
{
	if (st->st_nlink < 2 || !st->st_ino)
		return true;
	if (2 * (s->inodes + 1) > s->room)
		grow(s);
	if (2 * (s->inodes + 1) > s->room)
		return true;
	if (!insert(s->inode, s->room, st->st_ino))
		return false;
	s->inodes++;
	return true;
}

static void hand_over(struct scan *s, const char *name, const struct stat *st)
{
	size_t n = strlen(name) + 1;
	struct item *i = malloc(sizeof(*i) + n);

	if (!i) {
		LOCK_SCOPE(&s->k->lock);
		s->k->err = -ENOMEM;
		return;
	}
	i->place = s->here;
	i->dev = st->st_dev;
	i->ino = st->st_ino;
	memcpy(i->name, name, n);
	(void)pthread_mutex_lock(&s->k->lock);
	s->here->refs++;
	s->k->files += !s->quarantine;
	(void)pthread_mutex_unlock(&s->k->lock);
	crew_put(s->crew, i);
}

static bool entry(void *arg, int dirfd, const char *path, const char *name, const struct stat *st)
{
	struct scan *s = arg;

	(void)dirfd;
	if (st->st_dev != s->dev)
		trouble(s->k, &s->k->foreign, path, name);
	else if (S_ISREG(st->st_mode) && !s->here)
		trouble(s->k, &s->k->unreadable, path, name);
	else if (S_ISREG(st->st_mode) && first_name(s, st))
		hand_over(s, name, st);
	return true; /* whatever the name of a directory: files below it are files */
}

static int walk_quarantine(struct scan *s, const struct walk_ops *ops)
{
	int fd CLEANUP_FD = openat(s->k->store->meta_fd, QUARANTINE, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	crew_wait(s->crew); /* before what they look at changes */
	s->quarantine = true;
	return walk(fd, ops);
}

int keys_files(struct keys *k, unsigned jobs)
{
	struct scan s = { .k = k, .domain = calloc(k->ndomain, CONTEXT_ID) };
	const struct walk_ops ops = { .arg = &s, .enter = enter, .entry = entry, .failed = failed, .leave = leave };
	int ret = s.domain ? crew_open(&s.crew, jobs, QUEUE, work, &s) : -ENOMEM;

	for (size_t i = 0; s.domain && i < k->ndomain; i++)
		memcpy(s.domain[i], k->domain[i].id, CONTEXT_ID);
	if (s.domain)
		qsort(s.domain, k->ndomain, CONTEXT_ID, id_order);
	progress_begin(&s.progress, "files", 0);
	if (ret == 0)
		ret = walk(k->store->fd, &ops);
	if (ret == 0)
		ret = walk_quarantine(&s, &ops);
	crew_close(s.crew);
	progress_clear(&s.progress);
	put_place(k, s.here);
	free(s.inode);
	free(s.domain);
	return k->err ? k->err : ret;
}
