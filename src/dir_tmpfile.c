/* A regular file that no name leads to, for open(O_TMPFILE). */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "dir_internal.h"
#include "io.h"

static int unnamed(const struct dir *d, mode_t mode)
{
	int fd = dir_means.no_tmpfile ? -1 : openat(d->fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, mode & 07777);

	if (fd >= 0)
		return fd;
	if (dir_means.no_tmpfile || errno == EISDIR || errno == EINVAL || errno == ENOSYS)
		return -EOPNOTSUPP;
	return -errno;
}

int dir_tmpfile(const struct dir *d, const uint8_t page0[static LAYOUT_PAGE], mode_t mode,
    const struct dir_owner *owner, int *fd, struct stat *st)
{
	CLEANUP_FD int f = unnamed(d, mode);
	struct stat parent;
	int r = f < 0 ? f : fstat(d->fd, &parent) ? -errno : 0;

	if (!r)
		r = io_pwrite(f, page0, LAYOUT_PAGE, 0);
	if (!r)
		r = dir_dress(f, &parent, mode & 07777, owner);
	if (!r && fstat(f, st))
		r = -errno;
	if (!r)
		*fd = steal_fd(&f);
	return r;
}
