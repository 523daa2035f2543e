/* What mmap(2) promises at the edges: of a page, of the file, of the file's life. pages FILE: the file exists and is empty.
 * Prints the size it leaves behind; exit code 0: all as promised. The ordinary promises are in mapped.c. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "must.h"

#define PAGE 4096

static sigjmp_buf trap;

static void on_bus(int sig)
{
	(void)sig;
	siglongjmp(trap, 1);
}

static int faults(volatile char *p, int write)
{
	if (sigsetjmp(trap, 1))
		return 1;
	if (write)
		*p = *p + 1;
	return *p == 0x7f ? 2 : 0;
}

static char *map(int fd, size_t n, int how, off_t off)
{
	char *p = mmap(NULL, n, PROT_READ | PROT_WRITE, how, fd, off);

	MUST(p != MAP_FAILED);
	return p;
}

static void fill(int fd, size_t n)
{
	char *p = malloc(n);

	MUST(p && ftruncate(fd, 0) == 0);
	memset(p, 'x', n);
	MUST(pwrite(fd, p, n, 0) == (ssize_t)n);
	free(p);
}

/* What is stored behind the end is neither read by anybody nor kept. */
static void tail_is_not_kept(int fd)
{
	char buf[PAGE], *p;

	fill(fd, 5000);
	p = map(fd, 2 * PAGE, MAP_SHARED, 0);
	MUST(p[5000] == 0 && p[2 * PAGE - 1] == 0);
	memset(p + 5000, 'B', 2 * PAGE - 5000);
	MUST(pread(fd, buf, PAGE, 5000) == 0);
	MUST(msync(p, 2 * PAGE, MS_SYNC) == 0 && fsync(fd) == 0);
	MUST(ftruncate(fd, 20000) == 0);
	MUST(pread(fd, buf, PAGE, 5000) == PAGE);
	for (int i = 0; i < PAGE; i++)
		MUST(buf[i] == 0);
	MUST(p[4999] == 'x' && p[5000] == 0 && munmap(p, 2 * PAGE) == 0);
}

/* Cut and made longer again while it is mapped: the mapping shows zeros, and SIGBUS only where there is no page. */
static void cut_under_the_mapping(int fd)
{
	static const off_t sizes[] = { 0, 1, 1504, 1505, 4064, PAGE, PAGE + 1, 2 * PAGE - 1, 5 * PAGE, 30000 };
	char *p;

	for (unsigned i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		off_t pages = (sizes[i] + PAGE - 1) / PAGE * PAGE;

		fill(fd, 16 * PAGE);
		p = map(fd, 16 * PAGE, MAP_SHARED, 0);
		p[0] = p[16 * PAGE - 1] = 'm';
		MUST(ftruncate(fd, sizes[i]) == 0);
		if (sizes[i])
			MUST(p[0] == 'm' && !faults(p + pages - 1, 0) && (sizes[i] == pages || p[pages - 1] == 0));
		MUST(faults(p + pages, 0) == 1 && faults(p + pages, 1) == 1 && faults(p + 16 * PAGE - 1, 1) == 1);
		MUST(ftruncate(fd, 16 * PAGE) == 0);
		for (off_t at = sizes[i]; at < 16 * PAGE; at += at % PAGE ? 1 : 97)
			MUST(p[at] == 0);
		p[pages] = 'n';
		MUST(msync(p, 16 * PAGE, MS_SYNC) == 0 && munmap(p, 16 * PAGE) == 0);
	}
}

/* A mapping longer than the file shows what is appended. */
static void file_grows(int fd)
{
	char *p = map(fd, 64 * PAGE, MAP_SHARED, 0);

	fill(fd, 100);
	for (int n = 100; n < 60 * PAGE; n += 1777) {
		MUST(pwrite(fd, "abcdefgh", 8, n) == 8);
		MUST(memcmp(p + n, "abcdefgh", 8) == 0);
		MUST(faults(p + (n + 8 + PAGE - 1) / PAGE * PAGE, 0) == 1);
		p[n] = 'Z';
	}
	for (int n = 100; n < 60 * PAGE; n += 1777) {
		char c;

		MUST(pread(fd, &c, 1, n) == 1 && c == 'Z');
	}
	MUST(munmap(p, 64 * PAGE) == 0);
}

/* read and write with the file's own mapping as the buffer, also past the cache. */
static void own_mapping_as_buffer(int fd, int direct)
{
	char *p = map(fd, 32 * PAGE, MAP_SHARED, 0), *q;

	fill(fd, 32 * PAGE);
	memcpy(p + 10 * PAGE, "a page of its own", 17);
	MUST(pwrite(fd, p + 10 * PAGE, 3 * PAGE, 20 * PAGE) == 3 * PAGE);
	MUST(memcmp(p + 20 * PAGE, "a page of its own", 17) == 0);
	MUST(madvise(p, 32 * PAGE, MADV_DONTNEED) == 0);
	MUST(pwrite(fd, p + 20 * PAGE, 100, 20 * PAGE + 50) == 100);
	MUST(memcmp(p + 20 * PAGE + 50, "a page of its own", 17) == 0);
	MUST(pread(fd, p + 5 * PAGE, 2 * PAGE, 20 * PAGE) == 2 * PAGE);
	MUST(memcmp(p + 5 * PAGE + 50, "a page of its own", 17) == 0);
	MUST(pwrite(direct, p + 5 * PAGE, PAGE, 30 * PAGE) == PAGE);
	MUST(memcmp(p + 30 * PAGE + 50, "a page of its own", 17) == 0);
	MUST(pread(direct, p, PAGE, 30 * PAGE) == PAGE);
	MUST(memcmp(p + 50, "a page of its own", 17) == 0);
	q = map(fd, PAGE, MAP_PRIVATE, 30 * PAGE);
	q[0] = 'P';
	MUST(pwrite(fd, q, PAGE, 0) == PAGE && p[0] == 'P' && p[30 * PAGE] != 'P');
	MUST(munmap(q, PAGE) == 0 && munmap(p, 32 * PAGE) == 0);
}

static void moved_and_advised(int fd, int keeps_holes)
{
	char *p, *q, buf[3];
	struct stat before, after;

	fill(fd, 40 * PAGE);
	p = map(fd, 4 * PAGE, MAP_SHARED, 0);
	q = mremap(p, 4 * PAGE, 40 * PAGE, MREMAP_MAYMOVE);
	MUST(q != MAP_FAILED && q[39 * PAGE] == 'x');
	q[39 * PAGE] = 'm';
	MUST(mremap(q, 40 * PAGE, 40 * PAGE, 0) == q);
	MUST(madvise(q, 40 * PAGE, MADV_DONTNEED) == 0 && q[39 * PAGE] == 'm');
	MUST(madvise(q, 40 * PAGE, MADV_WILLNEED) == 0 && madvise(q, 40 * PAGE, MADV_SEQUENTIAL) == 0);
	MUST(fsync(fd) == 0 && fstat(fd, &before) == 0);
	MUST(madvise(q + 8 * PAGE, 20 * PAGE, MADV_REMOVE) == 0);
	MUST(q[8 * PAGE] == 0 && q[28 * PAGE - 1] == 0 && q[8 * PAGE - 1] == 'x' && q[28 * PAGE] == 'x');
	MUST(pread(fd, buf, 3, 28 * PAGE - 1) == 3 && buf[0] == 0 && buf[1] == 'x');
	MUST(fsync(fd) == 0 && fstat(fd, &after) == 0 && after.st_size == before.st_size);
	MUST(!keeps_holes || after.st_blocks < before.st_blocks);
	MUST(msync(q, 40 * PAGE, MS_ASYNC) == 0 && msync(q, 40 * PAGE, MS_SYNC | MS_INVALIDATE) == 0);
	MUST(msync(q + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL);
	MUST(munmap(q + 10 * PAGE, PAGE) == 0 && msync(q, 40 * PAGE, MS_SYNC) == -1 && errno == ENOMEM);
	MUST(munmap(q, 40 * PAGE) == 0);
}

/* A private mapping keeps its own copies; what it has not touched follows the file. */
static void private_copies(int fd)
{
	char *p, c;

	fill(fd, 4 * PAGE);
	p = map(fd, 4 * PAGE, MAP_PRIVATE, 0);
	p[PAGE + 5] = 'p';
	MUST(pwrite(fd, "ff", 2, PAGE + 5) == 2 && pwrite(fd, "ff", 2, 3 * PAGE) == 2);
	MUST(p[PAGE + 5] == 'p' && p[PAGE + 6] == 'x' && p[3 * PAGE] == 'f');
	MUST(msync(p, 4 * PAGE, MS_SYNC) == 0 && pread(fd, &c, 1, PAGE + 5) == 1 && c == 'f');
	MUST(ftruncate(fd, 100) == 0 && faults(p + 3 * PAGE, 0) == 1 && munmap(p, 4 * PAGE) == 0);
}

static void refused(const char *path)
{
	int ro = open(path, O_RDONLY), wo = open(path, O_WRONLY);

	MUST(ro >= 0 && wo >= 0);
	MUST(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0) == MAP_FAILED && errno == EACCES);
	MUST(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, wo, 0) == MAP_FAILED && errno == EACCES);
	MUST(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 100) == MAP_FAILED && errno == EINVAL);
	MUST(mmap(NULL, 0, PROT_READ, MAP_SHARED, ro, 0) == MAP_FAILED && errno == EINVAL);
	MUST(close(ro) == 0 && close(wo) == 0);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_bus };
	int fd, direct;

	MUST(argc == 2 && sigaction(SIGBUS, &sa, NULL) == 0);
	fd = open(argv[1], O_RDWR);
	direct = open(argv[1], O_RDWR | O_DIRECT);
	MUST(fd >= 0 && direct >= 0);
	refused(argv[1]);
	cut_under_the_mapping(fd);
	file_grows(fd);
	own_mapping_as_buffer(fd, direct);
	moved_and_advised(fd, 1);
	private_copies(fd);
	tail_is_not_kept(fd);
	MUST(close(fd) == 0 && close(direct) == 0);
	puts("20000");
	return 0;
}
