/* import_link.c — objects with several names: the first is copied, the others become links to the copy.
 *
 * Hides the table, by device and inode; an object leaves it when all its names were seen, so that only what has names
 * elsewhere stays to the end. The copy is found again by its path, a component at a time: it may be longer than a path
 * may be, and nothing on it is followed. */
#include <errno.h>
#include <fcntl.h>
#include <search.h>
#include <string.h>

#include "import.h"

enum state { COPYING, COPIED, FAILED };

struct import_link {
	dev_t dev;
	ino_t ino;
	nlink_t left; /* names not seen yet */
	enum state state; /* guarded by the import's lock */
	char *path;
};

static int order(const void *a, const void *b)
{
	const struct import_link *x = a, *y = b;

	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	return x->ino == y->ino ? 0 : x->ino < y->ino ? -1 : 1;
}

static void release(void *arg)
{
	struct import_link *link = arg;

	free(link->path);
	free(link);
}

static struct import_link *find(struct import *im, const struct stat *st)
{
	const struct import_link key = { .dev = st->st_dev, .ino = st->st_ino };
	struct import_link **node = tfind(&key, &im->link_tree, order);

	return node ? *node : NULL;
}

static int add(struct import *im, struct import_dir *dir, const char *name, const struct stat *st,
    struct import_link **link)
{
	struct import_link *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	*l = (struct import_link){
		.dev = st->st_dev, .ino = st->st_ino, .left = st->st_nlink - 1, .path = import_path(dir, name)
	};
	if (!l->path || !tsearch(l, &im->link_tree, order)) {
		release(l);
		return -ENOMEM;
	}
	*link = l;
	return 0;
}

/* One name less to come. */
static void seen(struct import *im, struct import_link *link)
{
	if (--link->left > 0)
		return;
	(void)tdelete(link, &im->link_tree, order);
	release(link);
}

void import_link_done(struct import *im, struct import_link *link, bool ok)
{
	if (!link)
		return;
	LOCK_SCOPE(&im->lock);
	link->state = ok ? COPIED : FAILED;
	(void)pthread_cond_broadcast(&im->linked);
}

static bool wait_copied(struct import *im, const struct import_link *link)
{
	LOCK_SCOPE(&im->lock);
	while (link->state == COPYING)
		(void)pthread_cond_wait(&im->linked, &im->lock);
	return link->state == COPIED;
}

void import_link_free(struct import *im)
{
	tdestroy(im->link_tree, release);
	im->link_tree = NULL;
}

/* The directory that the copy is in, and its name there. */
static int open_above(const struct import *im, const char *path, const char **name)
{
	char part[NAME_MAX + 1];
	int fd = fcntl(im->dst, F_DUPFD_CLOEXEC, 0);

	for (const char *slash; fd >= 0 && (slash = strchr(path, '/')); path = slash + 1) {
		int next;

		memcpy(part, path, (size_t)(slash - path));
		part[slash - path] = '\0';
		next = openat(fd, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		(void)close(fd);
		fd = next;
	}
	*name = path;
	return fd < 0 ? -errno : fd;
}

/* Over what has the name, by a temporary one. */
static int replace(struct import_work *w, int above, const char *first)
{
	char temp[IMPORT_TEMP_MAX];

	import_temp(w->im, temp);
	if (linkat(above, first, w->dir->dst, temp, 0))
		return import_fault(w, true, "link");
	if (renameat(w->dir->dst, temp, w->dir->dst, w->name)) {
		int ret = import_fault(w, true, "rename");

		(void)unlinkat(w->dir->dst, temp, 0);
		return ret;
	}
	return 0;
}

/* 0: there is a link. 1: it is there already. -EEXIST: something else is. -ECHILD: the copy is of something else; the
 * source changes, and its inode numbers are used again. */
static int make(struct import_work *w, const char *path)
{
	const char *first;
	int above CLEANUP_FD = open_above(w->im, path, &first);
	struct stat copy, there;

	if (above < 0 || fstatat(above, first, &copy, AT_SYMLINK_NOFOLLOW))
		return import_fault(w, true, "find the first name of");
	if (!import_same(w->im, &w->st, &copy))
		return -ECHILD;
	if (fstatat(w->dir->dst, w->name, &there, AT_SYMLINK_NOFOLLOW) == 0) {
		if (there.st_dev == copy.st_dev && there.st_ino == copy.st_ino)
			return 1;
		if (S_ISDIR(there.st_mode) || (!w->im->overwrite && !import_same(w->im, &w->st, &there)))
			return -EEXIST;
		return replace(w, above, first);
	}
	if (errno != ENOENT)
		return import_fault(w, true, "look at");
	return linkat(above, first, w->dir->dst, w->name, 0) ? import_fault(w, true, "link") : 0;
}

int import_link_enter(struct import *im, struct import_dir *dir, const char *name, const struct stat *st,
    struct import_link **link)
{
	struct import_link *l = find(im, st);
	struct import_work w = { .im = im, .dir = dir, .name = name, .st = *st };
	int ret;

	*link = NULL;
	if (!l)
		return add(im, dir, name, st, link);
	ret = wait_copied(im, l) ? make(&w, l->path) : -ECHILD;
	seen(im, l);
	switch (ret) {
	case 0:
		atomic_fetch_add(&im->links, 1);
		return 1;
	case 1:
		atomic_fetch_add(&im->skipped, 1);
		return 1;
	case -EXDEV: /* into another key domain */
	case -EMLINK:
		import_say(
		    im, IMPORT_WARNING, dir, name, "a hard link cannot be made here (%s): copied", strerror(-ret));
		return 0;
	case -ECHILD: /* this name may fare better */
		return 0;
	default:
		import_failed(&w, ret);
		return 1;
	}
}
