/* io.h — whole reads and writes, small files, clocks. No locks, no globals.                */
#ifndef BYOKFS_IO_H
#define BYOKFS_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "cleanup.h"

struct iovec;

/* pread(2) until n bytes or end of file; EINTR retried. Bytes read, or -errno. */
MUST_CHECK ssize_t io_pread(int fd, void *buf, size_t n, uint64_t off);
/* The same into a vector of at most IOV_MAX elements, which is modified. */
MUST_CHECK ssize_t io_preadv(int fd, struct iovec *iov, int cnt, uint64_t off);
/* pwrite(2) of all n bytes; EINTR and short writes continued. 0 or -errno (ENOSPC after a short write). */
MUST_CHECK int io_pwrite(int fd, const void *buf, size_t n, uint64_t off);
/* The same for a vector, which is modified. Any number of elements. */
MUST_CHECK int io_pwritev(int fd, struct iovec *iov, int cnt, uint64_t off);

/* The whole of a small regular file, at most max bytes, opened O_NOFOLLOW|O_CLOEXEC below dirfd.
 * *out is malloc'ed with a NUL after *len bytes; free it. -EFBIG when larger, -EINVAL when not regular. */
MUST_CHECK int io_read_file(int dirfd, const char *name, size_t max, char **out, size_t *len);

/* Replaces a file durably: NAME's directory gets a temporary ".byokfs.tmp.<16 hex>", written, fsynced,
 * renamed over NAME, directory fsynced. NAME has no slash. 0 or -errno; no temporary is left behind. */
MUST_CHECK int io_replace_file(int dirfd, const char *name, const void *buf, size_t n, mode_t mode);

/* CLOCK_BOOTTIME in milliseconds: leases, deadlines (goes on during suspend, ignores clock steps). */
uint64_t io_boot_ms(void);
/* Now and ms more, for pthread_cond_timedwait(3) on a condition of CLOCK_MONOTONIC. That clock stops in suspend, which
 * deadlines do not: wait a second at a time, and look again. */
struct timespec io_after_ms(uint64_t ms);
/* A condition of that clock. 0 or -errno; with the C library that there is it cannot fail. */
int io_cond_init(pthread_cond_t *);
/* CLOCK_REALTIME in seconds: what is written down for people. */
int64_t io_unix_time(void);
/* "YYYY-MM-DDThh:mm:ssZ" of t; out holds 21. */
void io_utc(char out[21], int64_t t);

#endif
