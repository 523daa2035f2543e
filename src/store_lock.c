/* store_lock.c — who else may have the store: .byokfs/lock. Hides its bytes. An exclusive mount or tool holds all of
 * them for writing; a shared mount holds the first for reading, and the second, for writing, while it looks at
 * descriptors that it may restore (byokfs-format(5), section 12). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/vfs.h>
#include <time.h>

#include "log.h"
#include "store_internal.h"

#define FUSE_SUPER_MAGIC 0x65735546

#define BYTE_MOUNTED 0
#define BYTE_TURN    1
#define TURN_TRIES   1000u /* of 10 ms */

static int lock(int fd, short type, off_t start, off_t len)
{
	struct flock range = { .l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len };

	if (!fcntl(fd, F_OFD_SETLK, &range))
		return 0;
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

int store_lock_fd(int fd)
{
	return lock(fd, F_WRLCK, 0, 0);
}

/* Is it a shared mount that keeps an exclusive one out? */
static bool held_shared(int fd)
{
	struct flock range = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = BYTE_MOUNTED, .l_len = 1 };

	return !fcntl(fd, F_OFD_GETLK, &range) && range.l_type == F_RDLCK;
}

#define CANNOT_OPEN "cannot open store '%.200s': "

static int fail_busy(const struct store *s, char *why)
{
	if (s->shared)
		return store_fail(why, -EBUSY,
		    CANNOT_OPEN "a mount without 'shared', or a tool, holds %s/" STORE_LOCK
		                " (all mounts of a shared store need 'mount.shared = yes')",
		    s->path, STORE_META);
	if (held_shared(s->lock_fd))
		return store_fail(why, -EBUSY,
		    CANNOT_OPEN "it is mounted shared, here or on another host, which holds %s/" STORE_LOCK
		                " (unmount it everywhere, or set 'mount.shared = yes' to mount it once more)",
		    s->path, STORE_META);
	return store_fail(why, -EBUSY,
	    CANNOT_OPEN "another read-write mount or tool holds %s/" STORE_LOCK " (unmount it, or mount with -o ro)",
	    s->path, STORE_META);
}

/* GlusterFS, MooseFS and others: what their clients cache, no lock makes them ask for again. */
static bool on_fuse(int fd)
{
	struct statfs st;

	return !fstatfs(fd, &st) && st.f_type == FUSE_SUPER_MAGIC;
}

int store_take_lock(struct store *s, char *why)
{
	struct stat st;
	int r;

	s->lock_fd = openat(s->meta_fd, STORE_LOCK, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
	if (s->lock_fd < 0 || fstat(s->lock_fd, &st))
		return store_fail(
		    why, -errno, CANNOT_OPEN "%s/" STORE_LOCK ": %s", s->path, STORE_META, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return store_fail(why, -EINVAL, CANNOT_OPEN "%s/" STORE_LOCK " is not a file", s->path, STORE_META);
	if (s->shared && on_fuse(s->fd))
		log_info("store '%s' is on a FUSE file system: its client must be mounted without caches, see "
		         "SHARED STORAGE in byokfs(8)",
		    s->path);
	r = s->shared ? lock(s->lock_fd, F_RDLCK, BYTE_MOUNTED, 1) : store_lock_fd(s->lock_fd);
	if (r == -EBUSY)
		return fail_busy(s, why);
	if (r)
		return store_fail(
		    why, r, CANNOT_OPEN "cannot lock %s/" STORE_LOCK ": %s", s->path, STORE_META, strerror(-r));
	return 0;
}

int store_turn_begin(const struct store *s)
{
	const struct timespec nap = { .tv_nsec = 10 * 1000 * 1000 };
	int r = 0;

	for (unsigned i = 0; s->shared && !s->readonly && i < TURN_TRIES; i++) {
		r = lock(s->lock_fd, F_WRLCK, BYTE_TURN, 1);
		if (r != -EBUSY)
			break;
		(void)nanosleep(&nap, NULL);
	}
	return r;
}

void store_turn_end(const struct store *s)
{
	if (s->shared && !s->readonly && lock(s->lock_fd, F_UNLCK, BYTE_TURN, 1))
		(void)0; /* it ends with the mount */
}

int store_may_change(const struct store *s, char *why)
{
	if (!s->shared)
		return 0;
	return store_fail(why, -EOPNOTSUPP,
	    "store '%.200s' is mounted shared, and the other hosts would not notice: unmount it everywhere, then do "
	    "this offline or on one mount without 'shared'",
	    s->path);
}
