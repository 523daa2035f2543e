/* import_entry.c — one object that is no directory, on a worker: is it there already? Else it is made under a temporary
 * name, given its attributes, verified, and renamed. Hides the names of temporaries and the race for the final name. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "import.h"

#define HEX 16u

void import_temp(struct import *im, char *out)
{
	(void)snprintf(out, IMPORT_TEMP_MAX, IMPORT_TEMP "%08x%08x", im->run, atomic_fetch_add(&im->temps, 1));
}

bool import_is_temp(const char *name)
{
	size_t n = sizeof(IMPORT_TEMP) - 1;

	return strncmp(name, IMPORT_TEMP, n) == 0 && strlen(name) == n + HEX &&
	    strspn(name + n, "0123456789abcdef") == HEX;
}

/* Equal as far as the backing of the store can tell times: it may keep no more than tenths, microseconds, seconds. */
static bool same_time(const struct timespec *src, const struct timespec *dst)
{
	if (src->tv_sec != dst->tv_sec)
		return false;
	for (long unit = 1; unit <= 1000000000; unit *= 10)
		if (dst->tv_nsec == src->tv_nsec - src->tv_nsec % unit)
			return true;
	return false;
}

bool import_same(const struct import *im, const struct stat *src, const struct stat *dst)
{
	mode_t type = src->st_mode & S_IFMT;

	if ((dst->st_mode & S_IFMT) != type || !same_time(&src->st_mtim, &dst->st_mtim))
		return false;
	if (type != S_IFLNK && (dst->st_mode & 07777) != import_meta_mode(im, src))
		return false;
	if (im->root && (src->st_uid != dst->st_uid || src->st_gid != dst->st_gid))
		return false;
	if ((type == S_IFREG || type == S_IFLNK) && src->st_size != dst->st_size)
		return false;
	return (type != S_IFCHR && type != S_IFBLK) || src->st_rdev == dst->st_rdev;
}

static int open_source(struct import_work *w)
{
	int flags = O_NOFOLLOW | O_CLOEXEC | (S_ISREG(w->st.st_mode) ? O_RDONLY | O_NONBLOCK | O_NOCTTY : O_PATH);
	mode_t type = w->st.st_mode & S_IFMT;
	bool several = w->st.st_nlink > 1;
	ino_t seen = w->st.st_ino;

	w->src = openat(w->dir->src, w->name, S_ISREG(w->st.st_mode) ? flags | O_NOATIME : flags);
	if (w->src < 0 && errno == EPERM)
		w->src = openat(w->dir->src, w->name, flags);
	if (w->src < 0)
		return import_fault(w, false, "open");
	if (fstat(w->src, &w->st))
		return import_fault(w, false, "look at");
	/* Its other names will be links to the copy of what was seen. */
	return (w->st.st_mode & S_IFMT) == type && (!several || w->st.st_ino == seen) ? 0 : -EAGAIN;
}

static int make_link(struct import_work *w, const char *temp)
{
	char target[PATH_MAX];
	ssize_t n = readlinkat(w->src, "", target, sizeof(target) - 1);

	if (n < 0)
		return import_fault(w, false, "read");
	target[n] = '\0';
	return symlinkat(target, w->dir->dst, temp) ? import_fault(w, true, "make") : 0;
}

/* Under its temporary name; w->dst is its descriptor. */
static int make(struct import_work *w, const char *temp)
{
	int dir = w->dir->dst, ret = 0;

	if (S_ISREG(w->st.st_mode)) {
		w->dst = openat(dir, temp, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
		    (w->st.st_mode & 0777) | 0600);
		return w->dst < 0 ? import_fault(w, true, "make") : 0;
	}
	if (S_ISLNK(w->st.st_mode))
		ret = make_link(w, temp);
	else if (mknodat(dir, temp, (w->st.st_mode & S_IFMT) | 0600, w->st.st_rdev))
		ret = import_fault(w, true, "make");
	if (ret < 0)
		return ret;
	w->dst = openat(dir, temp, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return w->dst < 0 ? import_fault(w, true, "open") : 0;
}

/* Did the source stay as it was when it was opened? */
static int still_same(struct import_work *w)
{
	struct stat now;

	if (fstat(w->src, &now))
		return import_fault(w, false, "look at");
	return now.st_size == w->st.st_size && now.st_mtim.tv_sec == w->st.st_mtim.tv_sec &&
	        now.st_mtim.tv_nsec == w->st.st_mtim.tv_nsec && now.st_ctim.tv_sec == w->st.st_ctim.tv_sec &&
	        now.st_ctim.tv_nsec == w->st.st_ctim.tv_nsec
	    ? 0
	    : -EAGAIN;
}

static int copy_bytes(struct import_work *w)
{
	uint8_t theirs[IMPORT_HASH], ours[IMPORT_HASH];
	int ret = import_file_copy(w, ours);

	if (ret == 0)
		ret = still_same(w);
	if (ret == 0 && w->im->verify != VERIFY_NONE) {
		ret = import_file_read_back(w, theirs);
		if (ret == 0 && !bytes_equal(ours, theirs, IMPORT_HASH)) {
			w->target = true;
			ret = -EBADMSG;
		}
	}
	return ret;
}

/* Closing hands on what the store could not take. */
static int close_copy(struct import_work *w)
{
	return close(steal_fd(&w->dst)) ? import_fault(w, true, "write") : 0;
}

static int take_name(struct import_work *w, const char *temp)
{
	int dir = w->dir->dst;

	if (!w->there && renameat2(dir, temp, dir, w->name, RENAME_NOREPLACE) == 0)
		return 0;
	if (!w->there && errno == EEXIST)
		return -EEXIST;
	if (!w->there && errno != EINVAL && errno != ENOSYS)
		return import_fault(w, true, "rename");
	return renameat(dir, temp, dir, w->name) ? import_fault(w, true, "rename") : 0;
}

static int attempt(struct import_work *w)
{
	char temp[IMPORT_TEMP_MAX];
	bool regular = S_ISREG(w->st.st_mode);
	int ret = open_source(w);

	if (ret < 0)
		return ret;
	import_temp(w->im, temp);
	ret = make(w, temp);
	if (ret == 0 && regular)
		ret = copy_bytes(w);
	if (ret == 0)
		ret = import_meta_copy(w);
	if (ret == 0 && w->im->verify != VERIFY_NONE)
		ret = import_meta_compare(w);
	if (ret == 0)
		ret = close_copy(w);
	if (ret == 0)
		ret = take_name(w, temp);
	if (ret < 0)
		(void)unlinkat(w->dir->dst, temp, 0);
	return ret;
}

static void close_both(struct import_work *w)
{
	cleanup_fd(&w->src);
	cleanup_fd(&w->dst);
	w->src = w->dst = -1;
}

static int copy(struct import_work *w)
{
	const struct stat first = w->st;
	int ret = -EAGAIN;

	for (unsigned i = 0; i < IMPORT_TRIES && ret == -EAGAIN && !import_stopped(w->im); i++) {
		w->st = first;
		ret = attempt(w);
		close_both(w);
	}
	if (ret < 0)
		return ret;
	atomic_fetch_add(S_ISREG(w->st.st_mode) ? &w->im->files : &w->im->others, 1);
	return 0;
}

/* Reads both sides of what was there before. */
static int verify_there(struct import_work *w)
{
	bool regular = S_ISREG(w->st.st_mode);
	int ret = open_source(w);

	if (ret == 0) {
		w->dst = openat(w->dir->dst, w->name,
		    O_NOFOLLOW | O_CLOEXEC | (regular ? O_RDONLY | O_NONBLOCK : O_PATH));
		if (w->dst < 0)
			ret = import_fault(w, true, "open");
	}
	if (ret == 0 && regular) {
		ret = import_file_compare(w);
		w->target |= ret == -EBADMSG;
	}
	if (ret == 0)
		ret = import_meta_compare(w);
	close_both(w);
	return ret;
}

static bool same_target(struct import_work *w)
{
	char ours[PATH_MAX], theirs[PATH_MAX];
	ssize_t n = readlinkat(w->dir->src, w->name, ours, sizeof(ours)),
	        m = readlinkat(w->dir->dst, w->name, theirs, sizeof(theirs));

	return n >= 0 && n == m && strncmp(ours, theirs, (size_t)n) == 0;
}

/* What writing back may have lost of an earlier import's copy: its bytes, but neither its times nor its mode. */
static bool not_whole(const struct import_work *w, const struct stat *there, int err)
{
	struct stat as = *there;

	as.st_size = w->st.st_size;
	return w->im->lost && S_ISREG(there->st_mode) && import_same(w->im, &w->st, &as) &&
	    (err == 0 || (w->target && (err == -EBADMSG || err == -EIO)));
}

/* 0: nothing has the name, or it may be replaced. 1: it was copied before. */
static int look(struct import_work *w)
{
	struct stat there;
	int ret;

	if (w->dir->fresh)
		return 0;
	if (fstatat(w->dir->dst, w->name, &there, AT_SYMLINK_NOFOLLOW))
		return errno == ENOENT ? 0 : import_fault(w, true, "look at");
	w->there = true;
	if (import_same(w->im, &w->st, &there) && (!S_ISLNK(there.st_mode) || same_target(w))) {
		ret = w->im->verify == VERIFY_FULL ? verify_there(w) : 0;
		w->again = ret < 0 && not_whole(w, &there, ret);
		return w->again ? 0 : ret < 0 ? ret : 1;
	}
	w->again = not_whole(w, &there, 0);
	if (w->again)
		return 0;
	return S_ISDIR(there.st_mode) || !w->im->overwrite ? -EEXIST : 0;
}

void import_entry(void *arg, void *data, unsigned worker)
{
	struct import *im = arg;
	struct import_item *item = data;
	struct import_work w = { .im = im,
		.dir = item->dir,
		.name = item->name,
		.st = item->st,
		.src = -1,
		.dst = -1,
		.buffer = im->buffer[worker] };
	int ret = import_stopped(im) ? -ECANCELED : look(&w);

	if (ret == 1)
		atomic_fetch_add(&im->skipped, 1);
	else if (ret == 0)
		ret = copy(&w);
	if (ret < 0)
		import_failed(&w, ret);
	else if (w.again)
		import_say(im, IMPORT_WARNING, w.dir, w.name, "what an earlier import left is not whole: copied again");
	import_link_done(im, item->link, ret >= 0);
	progress_add(&im->progress, 1, 0);
	import_dir_put(im, item->dir);
	free(item);
}
