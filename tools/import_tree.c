/* import_tree.c — the walk: directories are made on the way down, everything else goes to the crew. Hides the stack of
 * levels, and who gives a directory its attributes: whoever lets go of it last, when nothing below it will change.
 * walk.h does not fit: here two trees are gone down together, and directories stay open for the crew. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "import.h"
#include "namelist.h"

#define SYNC_EVERY 20000u /* objects */
#define ELSEWHERE  "on another file system: not copied"

struct level {
	struct import_dir *dir; /* a reference */
	struct namelist names;  /* subdirectories to enter */
};

struct walk {
	struct import *im;
	struct level *level;
	size_t depth, levels; /* in use, allocated */
	uint64_t queued;
};

static int finish_dir(struct import_work *w)
{
	int ret = import_meta_copy(w);

	return ret == 0 && w->im->verify != VERIFY_NONE ? import_meta_compare(w) : ret;
}

static void finish(struct import *im, struct import_dir *dir)
{
	struct import_work w = { .im = im,
		.dir = dir->parent,
		.name = dir->name,
		.st = dir->st,
		.src = dir->src,
		.dst = dir->dst };
	int ret = import_stopped(im) ? -ECANCELED : finish_dir(&w);

	if (ret < 0)
		import_failed(&w, ret);
}

void import_dir_put(struct import *im, struct import_dir *dir)
{
	while (dir && atomic_fetch_sub(&dir->refs, 1) == 1) {
		struct import_dir *parent = dir->parent;

		finish(im, dir);
		(void)close(dir->src);
		(void)close(dir->dst);
		free(dir);
		dir = parent;
	}
}

static struct import_dir *dir_new(struct import_dir *parent, const char *name)
{
	struct import_dir *dir = calloc(1, sizeof(*dir) + strlen(name) + 1);

	if (!dir)
		return NULL;
	memcpy(dir->name, name, strlen(name) + 1);
	dir->src = dir->dst = -1;
	dir->parent = parent;
	dir->refs = 1;
	return dir;
}

/* So that little is lost by a power cut: it would be copied again. What fails here fails again at the end. */
static void sync_now_and_then(struct walk *w)
{
	if (++w->queued % SYNC_EVERY == 0 && (syncfs(w->im->dst) || syncfs(w->im->mount->store)))
		atomic_fetch_add(&w->im->unsynced, 1);
}

static int put(struct walk *w, struct import_dir *dir, const char *name, const struct stat *st)
{
	struct import_link *link = NULL;
	struct import_item *item;
	int ret = st->st_nlink > 1 ? import_link_enter(w->im, dir, name, st, &link) : 0;

	if (ret == 1)
		progress_add(&w->im->progress, 1, 0);
	if (ret)
		return ret < 0 ? ret : 0;
	item = calloc(1, sizeof(*item) + strlen(name) + 1);
	if (!item) {
		import_link_done(w->im, link, false);
		return -ENOMEM;
	}
	memcpy(item->name, name, strlen(name) + 1);
	item->dir = dir;
	item->st = *st;
	item->link = link;
	atomic_fetch_add(&dir->refs, 1);
	crew_put(w->im->crew, item);
	sync_now_and_then(w);
	return 0;
}

static int one_entry(struct walk *w, struct level *l, const char *name)
{
	struct import *im = w->im;
	struct stat st;

	if (fstatat(l->dir->src, name, &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT)) {
		if (errno != ENOENT) /* a live tree changes */
			import_say(im, IMPORT_FAILED, l->dir, name, "cannot look at it: %s", strerror(errno));
		return 0;
	}
	if (import_is_temp(name)) {
		import_say(im, IMPORT_WARNING, l->dir, name, "left by an import: not copied");
		return 0;
	}
	if (st.st_dev != l->dir->st.st_dev) {
		import_say(im, IMPORT_WARNING, l->dir, name, ELSEWHERE);
		return 0;
	}
	if (S_ISDIR(st.st_mode))
		return namelist_add(&l->names, name);
	if (S_ISSOCK(st.st_mode)) {
		import_say(im, IMPORT_WARNING, l->dir, name, "a socket: not copied");
		return 0;
	}
	if ((S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) && !im->root) {
		import_say(im, IMPORT_WARNING, l->dir, name, "a device, which only root can make: not copied");
		return 0;
	}
	return put(w, l->dir, name, &st);
}

static DIR *open_stream(int dirfd)
{
	int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;

	if (fd >= 0 && !dir)
		(void)close(fd);
	return dir;
}

static bool dots(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int list(struct walk *w, struct level *l)
{
	DIR *dir = open_stream(l->dir->src);
	const struct dirent *entry = NULL;
	int ret = 0;

	if (!dir) {
		import_say(w->im, IMPORT_FAILED, l->dir, "", "cannot list it: %s", strerror(errno));
		return 0;
	}
	while (ret == 0 && !import_stopped(w->im) && (errno = 0, entry = readdir(dir)))
		if (!dots(entry->d_name))
			ret = one_entry(w, l, entry->d_name);
	if (ret == 0 && !entry && errno)
		import_say(w->im, IMPORT_FAILED, l->dir, "", "cannot list it: %s", strerror(errno));
	(void)closedir(dir);
	return ret;
}

/* What an interrupted import left in a directory that was there before. */
static int sweep(struct import_work *w, struct import_dir *dir)
{
	DIR *stream = open_stream(dir->dst);
	const struct dirent *entry;

	if (!stream)
		return import_fault(w, true, "list");
	while ((errno = 0, entry = readdir(stream)))
		if (import_is_temp(entry->d_name) && unlinkat(dir->dst, entry->d_name, 0) && errno != ENOENT &&
		    errno != EISDIR)
			break;
	int ret = errno ? import_fault(w, true, "clear") : 0;

	(void)closedir(stream);
	return ret;
}

static bool inherits(int fd)
{
	return fgetxattr(fd, "system.posix_acl_default", NULL, 0) > 0;
}

/* The copy: made, or what is there. An owner without the right to write gets it until the end. */
static int open_copy(struct import_work *w, struct import_dir *dir, int parent)
{
	struct stat there;

	dir->fresh = mkdirat(parent, w->name, 0700) == 0;
	if (!dir->fresh && errno != EEXIST)
		return import_fault(w, true, "make");
	if (!dir->fresh) {
		if (fstatat(parent, w->name, &there, AT_SYMLINK_NOFOLLOW))
			return import_fault(w, true, "look at");
		if (!S_ISDIR(there.st_mode))
			return -EEXIST;
		if (!w->im->root && there.st_uid == w->im->uid && (there.st_mode & 0700) != 0700 &&
		    fchmodat(parent, w->name, (there.st_mode & 07777) | 0700, 0))
			return import_fault(w, true, "set the mode of");
	}
	dir->dst = openat(parent, w->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (dir->dst < 0)
		return import_fault(w, true, "open");
	return dir->fresh ? 0 : sweep(w, dir);
}

static int open_dir(struct import_work *w, struct import_dir *dir, const struct import_dir *parent)
{
	int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, ret;

	dir->src = openat(parent->src, w->name, flags | O_NOATIME);
	if (dir->src < 0 && errno == EPERM)
		dir->src = openat(parent->src, w->name, flags);
	if (dir->src < 0 || fstat(dir->src, &dir->st))
		return import_fault(w, false, "open");
	if (dir->st.st_dev != parent->st.st_dev)
		return -EXDEV;
	ret = open_copy(w, dir, parent->dst);
	if (ret < 0)
		return ret;
	dir->default_acl = inherits(dir->dst);
	if (dir->fresh)
		atomic_fetch_add(&w->im->directories, 1);
	return 0;
}

static int push(struct walk *w, struct import_dir *dir)
{
	if (w->depth == w->levels) {
		size_t levels = 2 * w->levels + 16;
		struct level *more = realloc(w->level, levels * sizeof(*more));

		if (!more)
			return -ENOMEM;
		w->level = more;
		w->levels = levels;
	}
	w->level[w->depth++] = (struct level){ .dir = dir };
	return 0;
}

/* Into a subdirectory. What is wrong with it alone is said, and passed over. */
static int down(struct walk *w, struct import_dir *parent, const char *name)
{
	struct import_dir *dir = dir_new(parent, name);
	struct import_work work = { .im = w->im, .dir = parent, .name = name };
	int ret = dir ? open_dir(&work, dir, parent) : -ENOMEM;

	if (ret == 0)
		ret = push(w, dir);
	if (ret == 0) {
		atomic_fetch_add(&parent->refs, 1);
		return list(w, &w->level[w->depth - 1]);
	}
	if (ret == -EXDEV && !work.what)
		import_say(w->im, IMPORT_WARNING, parent, name, ELSEWHERE);
	else
		import_failed(&work, ret);
	if (dir) {
		cleanup_fd(&dir->src);
		cleanup_fd(&dir->dst);
	}
	free(dir);
	return ret == -ENOMEM ? ret : 0;
}

static void up(struct walk *w)
{
	struct level *l = &w->level[--w->depth];

	namelist_free(&l->names);
	import_dir_put(w->im, l->dir);
}

static int go(struct walk *w)
{
	int ret = list(w, &w->level[0]);

	while (w->depth > 0 && ret == 0 && !import_stopped(w->im)) {
		struct level *l = &w->level[w->depth - 1];
		const char *name = namelist_next(&l->names);

		if (name)
			ret = down(w, l->dir, name);
		else
			up(w);
	}
	while (w->depth > 0)
		up(w);
	return ret;
}

void import_tree(struct import *im)
{
	struct walk w = { .im = im };
	struct import_dir *root = dir_new(NULL, "");
	struct import_work work = { .im = im, .name = "" };
	int ret = root ? 0 : -ENOMEM;

	if (root) {
		root->src = fcntl(im->src, F_DUPFD_CLOEXEC, 0);
		root->dst = fcntl(im->dst, F_DUPFD_CLOEXEC, 0);
		if (root->src < 0 || root->dst < 0 || fstat(root->src, &root->st))
			ret = -errno;
	}
	if (ret == 0) {
		ret = sweep(&work, root);
		root->default_acl = inherits(root->dst);
	}
	if (ret == 0)
		ret = push(&w, root);
	if (ret == 0)
		ret = go(&w);
	else
		free(root);
	if (ret < 0)
		import_stop(im, EXIT_FAILED, "the walk ended early: %s", strerror(-ret));
	free(w.level);
}
