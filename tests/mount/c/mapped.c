/* What mmap(2) promises, step by step. mapped FILE: the file exists and is empty. Exit code 0: all as promised. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "must.h"

static sigjmp_buf trap;

static void on_bus(int sig)
{
	(void)sig;
	siglongjmp(trap, 1);
}

static int faults(const volatile char *p)
{
	char c;

	if (sigsetjmp(trap, 1))
		return 1;
	c = *p;
	(void)c;
	return 0;
}

static void coherence(int fd, char *shared, char *other)
{
	char buf[64];

	memcpy(shared + 5000, "through the mapping", 19);
	MUST(pread(fd, buf, 19, 5000) == 19 && !memcmp(buf, "through the mapping", 19));
	MUST(!memcmp(other + 5000, "through the mapping", 19));
	MUST(pwrite(fd, "through write", 13, 9000) == 13);
	MUST(!memcmp(shared + 9000, "through write", 13));
	MUST(msync(shared, 65536, MS_SYNC) == 0);
}

static void private_pages(int fd)
{
	char *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0), c;

	MUST(p != MAP_FAILED);
	MUST(p[9000] == 't');
	p[9000] = 'X';
	MUST(pread(fd, &c, 1, 9000) == 1 && c == 't');
	MUST(p[9000] == 'X' && p[9001] == 'h');
	MUST(munmap(p, 65536) == 0);
}

static void two_processes(char *shared)
{
	pid_t pid = fork();
	int status;

	MUST(pid >= 0);
	if (!pid) {
		memcpy(shared + 20000, "from the child", 14);
		_exit(0);
	}
	MUST(waitpid(pid, &status, 0) == pid && status == 0);
	MUST(!memcmp(shared + 20000, "from the child", 14));
}

static void shrinking(int fd, char *shared)
{
	MUST(ftruncate(fd, 10000) == 0);
	MUST(!faults(shared + 9999) && !faults(shared + 12287) && faults(shared + 12288));
	MUST(shared[10000] == 0);
	MUST(ftruncate(fd, 65536) == 0);
	MUST(shared[10500] == 0 && shared[20000] == 0 && !memcmp(shared + 9000, "through write", 13));
}

static void unlinked(const char *path, int fd, char *shared)
{
	char buf[8];

	MUST(unlink(path) == 0);
	MUST(close(fd) == 0);
	memcpy(shared + 30000, "orphan", 6);
	MUST(msync(shared, 65536, MS_SYNC) == 0);
	MUST(madvise(shared, 65536, MADV_DONTNEED) == 0);
	memcpy(buf, shared + 30000, 6);
	MUST(!memcmp(buf, "orphan", 6));
}

int main(int argc, char **argv)
{
	struct sigaction sa = {.sa_handler = on_bus};
	char *shared, *other;
	struct stat st;
	int fd, ro;

	MUST(argc == 2 && sigaction(SIGBUS, &sa, NULL) == 0);
	fd = open(argv[1], O_RDWR);
	ro = open(argv[1], O_RDONLY);
	MUST(fd >= 0 && ro >= 0 && ftruncate(fd, 65536) == 0);
	shared = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	other = mmap(NULL, 65536, PROT_READ, MAP_SHARED, ro, 0);
	MUST(shared != MAP_FAILED && other != MAP_FAILED);
	MUST(mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, ro, 0) == MAP_FAILED);
	MUST(shared[0] == 0 && shared[65535] == 0);
	coherence(fd, shared, other);
	private_pages(fd);
	two_processes(shared);
	shrinking(fd, shared);
	MUST(munmap(other, 65536) == 0 && close(ro) == 0);
	MUST(fstat(fd, &st) == 0 && st.st_size == 65536);
	unlinked(argv[1], fd, shared);
	MUST(munmap(shared, 65536) == 0);
	return 0;
}
