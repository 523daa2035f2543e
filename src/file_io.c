/* file_io.c — the backing file as the file module sees it: pages, a length, holes.
 *
 * Hides the system calls behind a table that tests replace, the bookkeeping of the backing's
 * length, the putting back of mtime for work nobody asked for, and a page-aligned buffer per
 * thread. */
#include <errno.h>
#include <fcntl.h>
#include <time.h>

#include "file_internal.h"
#include "io.h"

static int backing_sync(int fd)
{
	return fdatasync(fd) == 0 ? 0 : -errno;
}

static int backing_truncate(int fd, uint64_t size)
{
	int rc;

	do
		rc = ftruncate(fd, (off_t)size);
	while (rc != 0 && errno == EINTR);
	return rc == 0 ? 0 : -errno;
}

static int backing_allocate(int fd, int mode, uint64_t off, uint64_t n)
{
	int rc;

	do
		rc = fallocate(fd, mode, (off_t)off, (off_t)n);
	while (rc != 0 && errno == EINTR);
	return rc == 0 ? 0 : -errno;
}

static int64_t backing_seek_data(int fd, uint64_t off)
{
	off_t at = lseek(fd, (off_t)off, SEEK_DATA);

	return at >= 0 ? at : -errno;
}

static int backing_stat(int fd, struct stat *st)
{
	return fstat(fd, st) == 0 ? 0 : -errno;
}

static int backing_set_mtime(int fd, const struct timespec *mtime)
{
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, *mtime };

	return futimens(fd, times) == 0 ? 0 : -errno;
}

static int backing_lock(int fd, int type)
{
	struct flock lock = { .l_type = (short)type, .l_whence = SEEK_SET, .l_start = FILE_LOCK_SECTION, .l_len = 1 };

	if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
		return 0;
	return errno == EACCES ? -EAGAIN : -errno;
}

static uint64_t backing_now_us(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static void backing_nap_us(uint64_t us)
{
	const struct timespec t = { .tv_sec = (time_t)(us / 1000000u), .tv_nsec = (long)(us % 1000000u) * 1000 };

	(void)nanosleep(&t, NULL);
}

static void *backing_alloc(size_t n)
{
	return calloc(1, n);
}

const struct file_io file_io_backing = {
	.read = io_pread,
	.readv = io_preadv,
	.write = io_pwrite,
	.sync = backing_sync,
	.truncate = backing_truncate,
	.allocate = backing_allocate,
	.seek_data = backing_seek_data,
	.stat = backing_stat,
	.set_mtime = backing_set_mtime,
	.lock = backing_lock,
	.now_us = backing_now_us,
	.nap_us = backing_nap_us,
	.alloc = backing_alloc,
};

const struct file_io *file_io = &file_io_backing;

static pthread_key_t buffer_key;
static pthread_once_t buffer_once = PTHREAD_ONCE_INIT;
static bool buffer_ready;

static void buffer_init(void)
{
	buffer_ready = pthread_key_create(&buffer_key, free) == 0;
}

uint8_t *file_buffer(void)
{
	static __thread uint8_t *mine;
	void *p = NULL;

	if (mine)
		return mine;
	(void)pthread_once(&buffer_once, buffer_init);
	if (!buffer_ready || posix_memalign(&p, LAYOUT_PAGE, (size_t)FILE_BUFFER * LAYOUT_PAGE) != 0)
		return NULL;
	if (pthread_setspecific(buffer_key, p) != 0) {
		free(p);
		return NULL;
	}
	mine = p;
	return mine;
}

int file_sync(struct file *f)
{
	int rc;

	atomic_store(&f->unsynced, false);
	rc = file_io->sync(f->slot.fd);
	if (rc != 0)
		atomic_store(&f->unsynced, true);
	else
		atomic_store(&f->flushed, true);
	return rc;
}

ssize_t file_pread(struct file *f, void *buf, size_t n, uint64_t page)
{
	return file_io->read(f->slot.fd, buf, n, page * LAYOUT_PAGE);
}

ssize_t file_preadv(struct file *f, struct iovec *iov, int cnt, uint64_t page)
{
	return file_io->readv(f->slot.fd, iov, cnt, page * LAYOUT_PAGE);
}

/* Before a change. For the first one of quiet work: the time to put back. */
static int keep_mtime(struct file *f)
{
	struct stat st;
	int rc;

	atomic_store_explicit(&f->unsynced, true, memory_order_relaxed);
	if (!f->keep_times || f->times_saved)
		return 0;
	rc = file_io->stat(f->slot.fd, &st);
	if (rc != 0)
		return rc;
	f->mtime = st.st_mtim;
	f->times_saved = true;
	return 0;
}

/* Asks for the length again after a call that may have done half of its work. */
static void relearn_length(struct file *f)
{
	struct stat st;

	if (file_io->stat(f->slot.fd, &st) == 0)
		f->st_size = (uint64_t)st.st_size;
}

int file_pwrite(struct file *f, const void *buf, size_t pages, uint64_t page)
{
	uint64_t off = page * LAYOUT_PAGE, end = off + pages * LAYOUT_PAGE;
	int rc = keep_mtime(f);

	if (rc != 0)
		return rc;
	rc = file_io->write(f->slot.fd, buf, pages * LAYOUT_PAGE, off);
	if (rc != 0)
		relearn_length(f);
	else if (end > f->st_size)
		f->st_size = end;
	return rc;
}

int file_pwrite_slot(struct file *f, const uint8_t page[static LAYOUT_PAGE], int which)
{
	size_t at = HEADER_SLOT_AT(which);
	int rc = keep_mtime(f);

	return rc == 0 ? file_io->write(f->slot.fd, page + at, HEADER_SLOT_BYTES, at) : rc;
}

int file_set_length(struct file *f, uint64_t size)
{
	int rc = keep_mtime(f);

	if (rc == 0)
		rc = file_io->truncate(f->slot.fd, size);
	if (rc == 0)
		f->st_size = size;
	return rc;
}

/* Where the backing cannot punch, a page of zeros is as absent as a hole. */
static int zero_backing(struct file *f, uint64_t page, uint64_t pages)
{
	static const uint8_t zero[LAYOUT_PAGE];
	int rc = 0;

	for (uint64_t i = 0; i < pages && rc == 0 && (page + i) * LAYOUT_PAGE < f->st_size; i++)
		rc = file_pwrite(f, zero, 1, page + i);
	return rc;
}

int file_secure_backing(struct file *f, uint64_t page)
{
	int rc = keep_mtime(f); /* the backing takes this for a change, too */

	return rc == 0 ? file_io->allocate(f->slot.fd, FALLOC_FL_KEEP_SIZE, page * LAYOUT_PAGE, LAYOUT_PAGE) : rc;
}

int file_punch_backing(struct file *f, uint64_t page, uint64_t pages)
{
	int rc = keep_mtime(f);

	if (rc == 0)
		rc = file_io->allocate(
		    f->slot.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * LAYOUT_PAGE, pages * LAYOUT_PAGE);
	return rc == -EOPNOTSUPP ? zero_backing(f, page, pages) : rc;
}

uint64_t file_next_backed(struct file *f, uint64_t page)
{
	int64_t at = file_io->seek_data(f->slot.fd, page * LAYOUT_PAGE);

	if (at == -ENXIO)
		return UINT64_MAX;
	return at < 0 ? page : (uint64_t)at / LAYOUT_PAGE;
}
