/* store_marker.c — mount markers, and what they say about sizes. Hides how a mount tells its successors that size
 * hints written since its start may be wrong, if it never comes to say that they are right (byokfs-format(5),
 * sections 6 and 8). */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "bytes.h"
#include "dir_internal.h"
#include "io.h"
#include "log.h"
#include "secret.h"
#include "store_internal.h"

#define MARKER_MAX  4096u
#define MARKER_NAME 32u
#define SLACK       60 /* seconds before a foreign mount's start that count as its */

static bool earlier(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec != b->tv_sec ? a->tv_sec < b->tv_sec : a->tv_nsec < b->tv_nsec;
}

/* ---- foreign markers */

typedef int (*marker_fn)(struct store *, int dirfd, const char *name);

static int each_marker(struct store *s, int dirfd, marker_fn fn)
{
	int r = 0, fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *e;

	if (!d) {
		r = -errno;
		cleanup_fd(&fd);
		return r;
	}
	while (!r && (errno = 0, e = readdir(d)))
		if (!dir_is_dots(e->d_name) && strcmp(e->d_name, s->marker) != 0)
			r = fn(s, dirfd, e->d_name);
	if (!r && !e)
		r = -errno;
	(void)closedir(d);
	return r;
}

static bool is_temporary(const char *name)
{
	return !strncmp(name, NAME_RESERVED, sizeof(NAME_RESERVED) - 1);
}

static bool is_live(int fd)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	return !fcntl(fd, F_OFD_GETLK, &whole) && whole.l_type != F_UNLCK;
}

/* The marker's word; false when it is damaged, another store's, or a copy. */
static bool marker_read(const struct store *s, int dirfd, const char *name, int fd, struct timespec *start)
{
	CLEANUP_FREE char *text = NULL;
	struct descriptor_marker m;
	struct stat st;
	size_t len;

	if (fstat(fd, &st) || io_read_file(dirfd, name, MARKER_MAX, &text, &len) ||
	    descriptor_marker_parse(&m, text, len))
		return false;
	if (!bytes_equal(m.store, s->desc.store, sizeof(m.store)) || m.inode != st.st_ino)
		return false;
	start->tv_sec = (time_t)m.start_sec;
	start->tv_nsec = m.start_nsec;
	return true;
}

/* Widens the window of doubt by one marker. */
static int marker_weigh(struct store *s, int dirfd, const char *name)
{
	struct timespec start;
	CLEANUP_FD int fd = -1;

	if (is_temporary(name))
		return 0;
	fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd >= 0 && is_live(fd)) {
		if (!s->readonly && !s->shared)
			return -EBUSY;
		s->doubt_live = true;
	} else if (s->shared && s->nstale < STORE_STALE) {
		(void)snprintf(s->stale[s->nstale++], sizeof(s->stale[0]), "%s", name);
	}
	if (fd < 0 || !marker_read(s, dirfd, name, fd, &start)) {
		s->doubt_all = true;
		return 0;
	}
	start.tv_sec -= SLACK;
	if (!s->doubt || earlier(&start, &s->doubt_from))
		s->doubt_from = start;
	s->doubt = true;
	return 0;
}

bool store_in_doubt(const struct store *s, const struct stat *st)
{
	if (s->doubt_all)
		return true;
	return s->doubt && !earlier(&st->st_ctim, &s->doubt_from) &&
	    (s->doubt_live || !earlier(&s->start, &st->st_ctim));
}

static int marker_remove(struct store *s, int dirfd, const char *name)
{
	CLEANUP_FD int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	(void)s;
	if (fd >= 0 && is_live(fd))
		return 0;
	return unlinkat(dirfd, name, 0) && errno != ENOENT ? -errno : 0;
}

bool store_wants_sweep(const struct store *s)
{
	return s->shared ? s->nstale || s->doubt_all : s->doubt || s->doubt_all;
}

/* Only those that were stale before the sweep began: whose host died since, his files it may have passed already. What
 * is new stays in doubt, there are always others. */
static int remove_answered(struct store *s)
{
	CLEANUP_FD int dirfd = store_open_dir(s->meta_fd, STORE_MOUNTS);
	int r = dirfd < 0 ? dirfd : syncfs(s->fd) ? -errno : 0;

	for (unsigned i = 0; i < s->nstale && !r; i++)
		r = marker_remove(s, dirfd, s->stale[i]);
	if (!r && fsync(dirfd))
		r = -errno;
	if (!r)
		s->nstale = 0;
	return r;
}

void store_doubt_done(struct store *s)
{
	CLEANUP_FD int dirfd = -1;
	int r = 0;

	if (s->shared && !s->readonly) {
		r = remove_answered(s);
		s->doubt_all = false;
		if (r)
			log_warn("store '%s': cannot remove stale mount markers: %s", s->path, strerror(-r));
		return;
	}
	if (s->doubt_live)
		return;
	if (!s->readonly) {
		dirfd = store_open_dir(s->meta_fd, STORE_MOUNTS);
		r = dirfd < 0 ? dirfd : each_marker(s, dirfd, marker_remove);
		if (!r && fsync(dirfd))
			r = -errno;
	}
	if (r)
		log_warn("store '%s': cannot remove stale mount markers: %s", s->path, strerror(-r));
	s->doubt = s->doubt_all = false;
}

/* ---- our own */

/* A full disk must be mounted to be emptied. A marker that says nothing puts every file in doubt: that is never
 * wrong. */
static int marker_blank(const struct store *s)
{
	log_warn(
	    "store '%s': no room for a mount marker: after an unclean end the next mount checks every size", s->path);
	return ftruncate(s->marker_fd, 0) || fsync(s->marker_fd) ? -errno : 0;
}

static int marker_write(struct store *s, int dirfd, const char *temp)
{
	struct descriptor_marker m = { .shared = s->shared };
	CLEANUP_FREE char *text = NULL;
	uint8_t id[16];
	struct stat st;
	size_t len;
	int r;

	/* Its ctime is the backing's clock, which also stamps the files. */
	if (fstat(s->marker_fd, &st))
		return -errno;
	s->start = st.st_ctim;
	memcpy(m.store, s->desc.store, sizeof(m.store));
	m.start_sec = st.st_ctim.tv_sec;
	m.start_nsec = st.st_ctim.tv_nsec;
	m.inode = st.st_ino;
	r = descriptor_marker_print(&m, &text, &len);
	if (!r)
		r = io_pwrite(s->marker_fd, text, len, 0);
	if (!r && fsync(s->marker_fd))
		r = -errno;
	if (r == -ENOSPC || r == -EDQUOT)
		r = marker_blank(s);
	if (!r)
		r = store_lock_fd(s->marker_fd);
	if (r)
		return r;
	secret_random(id, sizeof(id));
	bytes_hex(s->marker, id, sizeof(id));
	if (renameat(dirfd, temp, dirfd, s->marker))
		return -errno;
	return fsync(dirfd) ? -errno : 0;
}

static int marker_make(struct store *s, int dirfd)
{
	char temp[DIR_TEMP];
	int r;

	dir_temp_name(temp, "tmp");
	s->marker_fd = openat(dirfd, temp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (s->marker_fd < 0)
		return -errno;
	r = marker_write(s, dirfd, temp);
	if (!r)
		return 0;
	(void)unlinkat(dirfd, temp, 0);
	if (s->marker[0])
		(void)unlinkat(dirfd, s->marker, 0);
	s->marker[0] = 0;
	cleanup_fd(&s->marker_fd);
	s->marker_fd = -1;
	return r;
}

static int remove_temporary(struct store *s, int dirfd, const char *name)
{
	return is_temporary(name) ? marker_remove(s, dirfd, name) : 0;
}

/* What was changed since we, or the first of the others, began may be changed again at any moment, also by hosts that
 * come later. */
static void doubt_for_good(struct store *s)
{
	struct timespec own = { s->start.tv_sec - SLACK, s->start.tv_nsec };

	if (!s->doubt || earlier(&own, &s->doubt_from))
		s->doubt_from = own;
	s->doubt = s->doubt_live = true;
}

int store_mark(struct store *s, char *why)
{
	CLEANUP_FD int dirfd = -1;
	int r;

	if (!s->readonly && mkdirat(s->meta_fd, STORE_MOUNTS, 0700) && errno != EEXIST)
		return store_fail(why, -errno, "cannot make " STORE_META "/" STORE_MOUNTS " in store '%.200s': %s",
		    s->path, strerror(errno));
	/* Without a marker's clock, a reader beside hosts that come and go believes no hint. */
	s->doubt_all = s->readonly && s->shared;
	dirfd = store_open_dir(s->meta_fd, STORE_MOUNTS);
	if (dirfd == -ENOENT)
		return 0; /* read-only, and nobody ever mounted it otherwise */
	r = dirfd < 0 ? dirfd : each_marker(s, dirfd, marker_weigh);
	if (r == -EBUSY)
		return store_fail(why, r,
		    "cannot open store '%.200s': another mount of it is live (a marker in " STORE_META "/" STORE_MOUNTS
		    " is locked)",
		    s->path);
	if (!r && s->readonly) {
		/* Without a file of its own a mount cannot ask the backing's clock: the window stays open. */
		s->doubt_live = s->doubt_live || s->doubt;
		return 0;
	}
	if (!r && !s->shared) /* else they may be of a mount that begins just now */
		r = each_marker(s, dirfd, remove_temporary);
	if (!r)
		r = marker_make(s, dirfd);
	if (!r && s->shared)
		doubt_for_good(s);
	if (r)
		return store_fail(why, r, "cannot write a mount marker in store '%.200s': %s", s->path, strerror(-r));
	if (store_wants_sweep(s))
		log_info("store '%s': not unmounted cleanly%s: sizes are checked", s->path,
		    s->doubt_all ? ", or copied" : "");
	return 0;
}

int store_unmark(struct store *s)
{
	CLEANUP_FD int dirfd = store_open_dir(s->meta_fd, STORE_MOUNTS);

	if (dirfd < 0)
		return dirfd;
	if (unlinkat(dirfd, s->marker, 0) && errno != ENOENT)
		return -errno;
	return fsync(dirfd) ? -errno : 0;
}
