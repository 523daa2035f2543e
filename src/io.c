/* io.c — whole reads and writes, small files, clocks.
 *
 * Hides EINTR, short transfers, IOV_MAX, and the order of system calls that makes a replaced file durable.   */
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "bytes.h"
#include "secret.h"

ssize_t io_pread(int fd, void *buf, size_t n, uint64_t off)
{
	size_t done = 0;

	while (done < n) {
		ssize_t got = pread(fd, (char *)buf + done, n - done, (off_t)(off + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		done += (size_t)got;
	}
	return (ssize_t)done;
}

int io_pwrite(int fd, const void *buf, size_t n, uint64_t off)
{
	size_t done = 0;

	while (done < n) {
		ssize_t put = pwrite(fd, (const char *)buf + done, n - done, (off_t)(off + done));

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -errno;
		if (put == 0)
			return -ENOSPC;
		done += (size_t)put;
	}
	return 0;
}

/* Drops the first n bytes of a vector; empty elements go too. */
static void iov_advance(struct iovec **iov, int *cnt, size_t n)
{
	while (*cnt > 0 && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*cnt)--;
	}
	if (*cnt > 0) {
		(*iov)->iov_base = (char *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

ssize_t io_preadv(int fd, struct iovec *iov, int cnt, uint64_t off)
{
	size_t done = 0;

	iov_advance(&iov, &cnt, 0);
	while (cnt > 0) {
		ssize_t got = preadv(fd, iov, cnt, (off_t)(off + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		done += (size_t)got;
		iov_advance(&iov, &cnt, (size_t)got);
	}
	return (ssize_t)done;
}

int io_pwritev(int fd, struct iovec *iov, int cnt, uint64_t off)
{
	iov_advance(&iov, &cnt, 0);
	while (cnt > 0) {
		ssize_t put = pwritev(fd, iov, cnt < IOV_MAX ? cnt : IOV_MAX, (off_t)off);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -errno;
		if (put == 0)
			return -ENOSPC;
		off += (size_t)put;
		iov_advance(&iov, &cnt, (size_t)put);
	}
	return 0;
}

/* st_size is only a guess (the file may grow, procfs says 0), so reading decides. What an outgrown buffer
 * held is wiped: key files and credentials come this way. */
static int read_all(int fd, size_t guess, size_t max, char **out, size_t *len)
{
	CLEANUP_FREE char *buf = NULL;
	size_t room = guess < 512 ? 512 : guess, have = 0;
	ssize_t got;

	for (;;) {
		char *bigger;

		if (room > max)
			room = max;
		bigger = malloc(room + 2); /* one byte to notice that there is more, one for the NUL */
		if (!bigger)
			return -ENOMEM;
		if (buf) {
			memcpy(bigger, buf, have);
			explicit_bzero(buf, have);
			free(buf);
		}
		buf = bigger;
		got = io_pread(fd, buf + have, room + 1 - have, have);
		if (got < 0)
			return (int)got;
		have += (size_t)got;
		if (have <= room)
			break;
		if (room == max) {
			explicit_bzero(buf, have);
			return -EFBIG;
		}
		room *= 2;
	}
	buf[have] = '\0';
	*len = have;
	*out = steal_ptr(&buf);
	return 0;
}

int io_read_file(int dirfd, const char *name, size_t max, char **out, size_t *len)
{
	CLEANUP_FD int fd = -1;
	struct stat st;

	if (max > SSIZE_MAX / 4)
		return -EINVAL;
	/* O_NONBLOCK: a FIFO in the file's place must not hang us */
	fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) != 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if ((uint64_t)st.st_size > max)
		return -EFBIG;
	return read_all(fd, (size_t)st.st_size, max, out, len);
}

static int write_new(int dirfd, const char *name, const void *buf, size_t n, mode_t mode)
{
	CLEANUP_FD int fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	int rc;

	if (fd < 0)
		return -errno;
	rc = io_pwrite(fd, buf, n, 0);
	if (rc != 0)
		return rc;
	if (fchmod(fd, mode) != 0 || fsync(fd) != 0)
		return -errno;
	/* some network filesystems report a failed write only here */
	return close(steal_fd(&fd)) != 0 ? -errno : 0;
}

static int sync_dir(int dirfd)
{
	/* opened anew: the caller's may be AT_FDCWD or O_PATH */
	CLEANUP_FD int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 || fsync(fd) != 0 ? -errno : 0;
}

int io_replace_file(int dirfd, const char *name, const void *buf, size_t n, mode_t mode)
{
	uint8_t random[8];
	char digits[17], temporary[32];
	int rc;

	if (!*name || strchr(name, '/'))
		return -EINVAL;
	secret_random(random, sizeof(random));
	bytes_hex(digits, random, sizeof(random));
	(void)snprintf(temporary, sizeof(temporary), ".byokfs.tmp.%s", digits);
	rc = write_new(dirfd, temporary, buf, n, mode);
	if (rc == -EEXIST)
		return rc;
	if (rc == 0 && renameat(dirfd, temporary, dirfd, name) != 0)
		rc = -errno;
	if (rc != 0) {
		(void)unlinkat(dirfd, temporary, 0);
		return rc;
	}
	return sync_dir(dirfd);
}

uint64_t io_boot_ms(void)
{
	struct timespec now = { 0 };

	(void)clock_gettime(CLOCK_BOOTTIME, &now); /* cannot fail with this clock */
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

struct timespec io_after_ms(uint64_t ms)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += (time_t)(ms / 1000);
	t.tv_nsec += (long)(ms % 1000) * 1000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_sec++;
		t.tv_nsec -= 1000000000;
	}
	return t;
}

int io_cond_init(pthread_cond_t *cond)
{
	pthread_condattr_t attr;
	int r = pthread_condattr_init(&attr);

	if (r)
		return -r;
	r = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	if (!r)
		r = pthread_cond_init(cond, &attr);
	(void)pthread_condattr_destroy(&attr);
	return -r;
}

int64_t io_unix_time(void)
{
	return (int64_t)time(NULL);
}

void io_utc(char out[21], int64_t t)
{
	const int64_t year_9999_end = 253402300799;
	time_t clamped = (time_t)(t < 0 ? 0 : t > year_9999_end ? year_9999_end : t);
	struct tm tm = { 0 };

	(void)gmtime_r(&clamped, &tm);
	(void)strftime(out, 21, "%Y-%m-%dT%H:%M:%SZ", &tm);
}
