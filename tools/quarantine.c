/* quarantine.c — see quarantine.h. Hides names, the order of fsyncs, and how a file is copied. */
#include "quarantine.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

#define DIR_NAME "quarantine"
#define CHUNK    (1u << 20)
#define SAME_SECOND 100

void quarantine_init(struct quarantine *q, int meta_fd)
{
	*q = (struct quarantine){ .meta_fd = meta_fd, .fd = -1, .index_fd = -1 };
}

void quarantine_close(struct quarantine *q)
{
	cleanup_fd(&q->fd);
	cleanup_fd(&q->index_fd);
	q->fd = q->index_fd = -1;
}

static int sync_fd(int fd)
{
	return fsync(fd) == 0 ? 0 : -errno;
}

/* "20260101T000000Z", and "-2", ... for more in one second. */
static int make_dir(struct quarantine *q, int above)
{
	char when[21];

	io_utc(when, io_unix_time());
	for (int i = 1; i < SAME_SECOND; i++) {
		(void)snprintf(q->name, sizeof(q->name), "%.4s%.2s%.2sT%.2s%.2s%.2sZ", when, when + 5, when + 8,
		    when + 11, when + 14, when + 17);
		if (i > 1)
			(void)snprintf(q->name + strlen(q->name), sizeof(q->name) - strlen(q->name), "-%d", i);
		if (mkdirat(above, q->name, 0700) == 0)
			return 0;
		if (errno != EEXIST)
			break;
	}
	q->name[0] = '\0';
	return -errno;
}

static int begin(struct quarantine *q)
{
	int above CLEANUP_FD = -1;
	int ret;

	if (q->fd >= 0)
		return 0;
	if (mkdirat(q->meta_fd, DIR_NAME, 0700) < 0 && errno != EEXIST)
		return -errno;
	above = openat(q->meta_fd, DIR_NAME, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (above < 0)
		return -errno;
	ret = make_dir(q, above);
	if (ret < 0)
		return ret;
	q->fd = openat(above, q->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (q->fd >= 0)
		q->index_fd =
		    openat(q->fd, "index", O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (q->fd < 0 || q->index_fd < 0)
		return -errno;
	ret = sync_fd(q->fd);
	if (ret == 0)
		ret = sync_fd(above);
	return ret == 0 ? sync_fd(q->meta_fd) : ret;
}

static int put_line(struct quarantine *q, const char *line)
{
	size_t len = strlen(line);

	for (size_t done = 0; done < len;) {
		ssize_t n = write(q->index_fd, line + done, len - done);

		if (n < 0 && errno != EINTR)
			return -errno;
		done += n > 0 ? (size_t)n : 0;
	}
	return 0;
}

int quarantine_sync(struct quarantine *q)
{
	return sync_fd(q->index_fd);
}

int quarantine_note(struct quarantine *q, const struct quarantine_item *item)
{
	char *line CLEANUP_FREE = NULL;
	int ret = begin(q);

	if (ret < 0)
		return ret;
	if (asprintf(&line, "%" PRIu64 "\t%s\t%s\t%s\t%s\n", q->n + 1, item->type, item->cipher,
	        item->plain ? item->plain : "-", item->reason) < 0) {
		line = NULL;
		return -ENOMEM;
	}
	q->n++;
	ret = put_line(q, line);
	return ret == 0 ? quarantine_sync(q) : ret;
}

int quarantine_range(struct quarantine *q, const char *word, uint64_t len, uint64_t off)
{
	char line[100];

	(void)snprintf(line, sizeof(line), "%" PRIu64 "\t%s\t%" PRIu64 "\t%" PRIu64 "\n", q->n, word, len, off);
	return put_line(q, line);
}

int quarantine_take(struct quarantine *q, int dirfd, const char *name, const char *suffix)
{
	char to[40];
	int ret;

	(void)snprintf(to, sizeof(to), "%" PRIu64 "%s", q->n, suffix);
	if (renameat2(dirfd, name, q->fd, to, RENAME_NOREPLACE) < 0 &&
	    (errno != EINVAL || renameat(dirfd, name, q->fd, to) < 0)) /* not every backing has the flag */
		return -errno;
	ret = sync_fd(q->fd);
	return ret == 0 ? sync_fd(dirfd) : ret;
}

static int new_file(struct quarantine *q)
{
	char name[24];
	int fd;

	(void)snprintf(name, sizeof(name), "%" PRIu64, q->n);
	fd = openat(q->fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	return fd < 0 ? -errno : fd;
}

/* Half of a copy is none, and takes the space that is missing. */
static int copied(struct quarantine *q, int ret)
{
	char name[24];

	(void)snprintf(name, sizeof(name), "%" PRIu64, q->n);
	if (ret < 0)
		(void)unlinkat(q->fd, name, 0);
	return ret < 0 ? ret : sync_fd(q->fd);
}

/* What the backing cannot read stays a hole of the copy. */
static int copy_range(int from, int to, uint8_t *buf, uint64_t at, uint64_t end)
{
	while (at < end) {
		size_t want = end - at < CHUNK ? (size_t)(end - at) : CHUNK;
		ssize_t n = io_pread(from, buf, want, at);
		int ret;

		if (n == -EIO && want > 4096) {
			n = io_pread(from, buf, 4096 - at % 4096, at);
			want = 4096 - at % 4096;
		}
		if (n == 0 || (n < 0 && n != -EIO))
			return (int)n;
		ret = n > 0 ? io_pwrite(to, buf, (size_t)n, at) : 0;
		if (ret < 0)
			return ret;
		at += n > 0 ? (uint64_t)n : want;
	}
	return 0;
}

static int copy_data(int from, int to, uint64_t size)
{
	uint8_t *buf CLEANUP_FREE = malloc(CHUNK);
	uint64_t at = 0;
	int ret = buf ? 0 : -ENOMEM;

	while (ret == 0 && at < size) {
		off_t data = lseek(from, (off_t)at, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			break;
		if (data < 0)
			data = (off_t)at;
		hole = lseek(from, data, SEEK_HOLE);
		if (hole <= data)
			hole = (off_t)size;
		ret = copy_range(from, to, buf, (uint64_t)data, (uint64_t)hole);
		at = (uint64_t)hole;
	}
	if (ret == 0 && ftruncate(to, (off_t)size) < 0)
		ret = -errno;
	return ret;
}

int quarantine_copy(struct quarantine *q, int fd)
{
	int to CLEANUP_FD = new_file(q);
	struct stat st;
	int ret = 0;

	if (to < 0)
		return to;
	if (fstat(fd, &st) < 0)
		ret = -errno;
	else if (ioctl(to, FICLONE, fd) < 0)
		ret = copy_data(fd, to, (uint64_t)st.st_size);
	if (ret == 0)
		ret = sync_fd(to);
	return copied(q, ret);
}

int quarantine_save(struct quarantine *q, const void *bytes, size_t n)
{
	int to CLEANUP_FD = new_file(q);
	int ret;

	if (to < 0)
		return to;
	ret = io_pwrite(to, bytes, n, 0);
	return copied(q, ret == 0 ? sync_fd(to) : ret);
}
