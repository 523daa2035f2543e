/* walk.c — the walk over a store. Hides the stack of levels, and the path that grows and shrinks with it. */
#include "walk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "namelist.h"

struct level {
	dev_t dev;
	ino_t ino;
	int fd;                /* while something below it is walked, or -1: too deep */
	size_t path_len;       /* of this directory's path */
	struct namelist names; /* subdirectories to enter */
};

struct walker {
	const struct walk_ops *ops;
	dev_t dev;
	int fd; /* the current directory */
	struct level *level;
	size_t depth, levels;
	char *path;
	size_t path_room;
};

static const char *path_of(const struct walker *w)
{
	return w->path[0] ? w->path : ".";
}

static int path_push(struct walker *w, const char *name)
{
	size_t len = strlen(w->path), n = strlen(name);

	if (len + n + 2 > w->path_room) {
		size_t room = 2 * w->path_room + n + 2;
		char *more = realloc(w->path, room);

		if (!more)
			return -ENOMEM;
		w->path = more;
		w->path_room = room;
	}
	(void)snprintf(w->path + len, w->path_room - len, "%s%s", len ? "/" : "", name);
	return 0;
}

static int one_entry(struct walker *w, const char *name)
{
	struct level *l = &w->level[w->depth];
	struct stat st;

	if (fstatat(w->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno != ENOENT) /* a live store changes */
			w->ops->failed(w->ops->arg, path_of(w), -errno);
		return 0;
	}
	if (!w->ops->entry(w->ops->arg, w->fd, path_of(w), name, &st))
		return 0;
	return S_ISDIR(st.st_mode) && st.st_dev == w->dev ? namelist_add(&l->names, name) : 0;
}

/* Shows all entries of the current directory, remembering those to enter. */
static int list(struct walker *w)
{
	int fd = openat(w->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *entry = NULL;
	int ret = 0;

	if (!dir) {
		ret = -errno;
		if (fd >= 0)
			(void)close(fd);
		w->ops->failed(w->ops->arg, path_of(w), ret);
		return 0;
	}
	while (ret == 0 && (errno = 0, entry = readdir(dir))) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (w->depth == 0 && strcmp(entry->d_name, ".byokfs") == 0)
			continue;
		ret = one_entry(w, entry->d_name);
	}
	if (ret == 0 && !entry && errno)
		w->ops->failed(w->ops->arg, path_of(w), -errno);
	(void)closedir(dir);
	return ret;
}

static int level_push(struct walker *w, const struct stat *st)
{
	if (w->depth + 1 >= w->levels) {
		size_t levels = 2 * w->levels + 16;
		struct level *more = realloc(w->level, levels * sizeof(*more));

		if (!more)
			return -ENOMEM;
		w->level = more;
		w->levels = levels;
	}
	w->level[++w->depth] =
	    (struct level){ .dev = st->st_dev, .ino = st->st_ino, .fd = -1, .path_len = strlen(w->path) };
	return 0;
}

/* Into a subdirectory. 1: it cannot be entered and was reported. */
static int down(struct walker *w, const char *name)
{
	size_t was = strlen(w->path);
	struct stat st;
	int fd CLEANUP_FD = -1;
	int ret = path_push(w, name);

	if (ret < 0)
		return ret;
	fd = openat(w->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_dev != w->dev) {
		w->ops->failed(w->ops->arg, path_of(w), fd < 0 ? -errno : -EXDEV);
		w->path[was] = '\0';
		return 1;
	}
	ret = level_push(w, &st);
	if (ret < 0)
		return ret;
	if (w->depth <= WALK_KEPT)
		w->level[w->depth - 1].fd = w->fd;
	else
		(void)close(w->fd);
	w->fd = steal_fd(&fd);
	w->ops->enter(w->ops->arg, w->fd, path_of(w), &st);
	return list(w);
}

/* Back to the parent. */
static int up(struct walker *w)
{
	struct level *to = &w->level[w->depth - 1];
	struct stat st;
	int fd = to->fd >= 0 ? steal_fd(&to->fd) : openat(w->fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st) < 0 || st.st_dev != to->dev || st.st_ino != to->ino) {
		int ret = fd < 0 ? -errno : -ESTALE;

		w->ops->failed(w->ops->arg, path_of(w), ret);
		if (fd >= 0)
			(void)close(fd);
		return ret;
	}
	w->ops->leave(w->ops->arg);
	(void)close(w->fd);
	w->fd = fd;
	namelist_free(&w->level[w->depth--].names);
	w->path[to->path_len] = '\0';
	return 0;
}

static int go(struct walker *w)
{
	int ret = list(w);

	while (ret >= 0) {
		const char *name = namelist_next(&w->level[w->depth].names);

		if (name) {
			ret = down(w, name);
		} else if (w->depth > 0) {
			ret = up(w);
		} else {
			break;
		}
	}
	return ret < 0 ? ret : 0;
}

int walk(int rootfd, const struct walk_ops *ops)
{
	struct walker w = { .ops = ops, .fd = dup(rootfd), .levels = 16, .path_room = 256 };
	struct stat st;
	int ret = -ENOMEM;

	w.level = calloc(w.levels, sizeof(*w.level));
	w.path = calloc(1, w.path_room);
	if (w.fd < 0 || fstat(w.fd, &st) < 0) {
		ret = -errno;
	} else if (w.level && w.path) {
		w.dev = st.st_dev;
		w.level[0] = (struct level){ .dev = st.st_dev, .ino = st.st_ino, .fd = -1 };
		ops->enter(ops->arg, w.fd, ".", &st);
		ret = go(&w);
		if (ret == 0)
			ops->leave(ops->arg);
	}
	for (size_t i = 0; w.level && w.dev && i <= w.depth; i++) {
		cleanup_fd(&w.level[i].fd);
		namelist_free(&w.level[i].names);
	}
	free(w.level);
	free(w.path);
	if (w.fd >= 0)
		(void)close(w.fd);
	return ret;
}
