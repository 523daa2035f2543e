/* A quota that ends at any instant, for kernels and file systems that have none: preloaded into the daemon. Every call that
 * may take space on the backing counts down the number in the file BYOKFS_TEST_QUOTA (8 bytes, mapped, so that the test
 * sets it while the daemon runs); from 0 on they fail with the errno in the 8 bytes after it. Negative: no limit. The third
 * number counts the refusals. fsync counts too: storages behind a network hear of a quota only there. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static _Atomic int64_t *quota;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("BYOKFS_TEST_QUOTA");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *p = fd >= 0 ? mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;

	quota = p == MAP_FAILED ? NULL : p;
	if (fd >= 0)
		close(fd);
}

static int refused(void)
{
	int64_t left = quota ? atomic_load(&quota[0]) : -1;

	while (left > 0 && !atomic_compare_exchange_weak(&quota[0], &left, left - 1))
		;
	if (left)
		return 0;
	atomic_fetch_add(&quota[2], 1);
	errno = (int)atomic_load(&quota[1]);
	return 1;
}

/* The same call without us. */
#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)
#define COUNTED(type, name, params, ...)                            \
	type name params                                            \
	{                                                           \
		return refused() ? -1 : REAL(name, __VA_ARGS__);    \
	}

COUNTED(ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t off), fd, p, n, off)
COUNTED(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t off), fd, v, n, off)
COUNTED(int, fallocate64, (int fd, int mode, off64_t off, off64_t n), fd, mode, off, n)
COUNTED(int, mkdirat, (int fd, const char *name, mode_t mode), fd, name, mode)
COUNTED(int, mknodat, (int fd, const char *name, mode_t mode, dev_t dev), fd, name, mode, dev)
COUNTED(int, symlinkat, (const char *to, int fd, const char *name), to, fd, name)
COUNTED(int, linkat, (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
COUNTED(int, renameat, (int a, const char *from, int b, const char *to), a, from, b, to)
COUNTED(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), a, from, b, to, flags)
COUNTED(int, fsetxattr, (int fd, const char *name, const void *p, size_t n, int flags), fd, name, p, n, flags)
COUNTED(int, setxattr, (const char *path, const char *name, const void *p, size_t n, int flags), path, name, p, n, flags)
COUNTED(int, fdatasync, (int fd), fd)
COUNTED(int, fsync, (int fd), fd)
COUNTED(int, syncfs, (int fd), fd)

/* Making a file takes space, opening none. */
int openat64(int fd, const char *name, int flags, ...)
{
	va_list ap;
	mode_t mode;

	va_start(ap, flags);
	mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	if (flags & (O_CREAT | __O_TMPFILE) && refused())
		return -1;
	return REAL(openat64, fd, name, flags, mode);
}
