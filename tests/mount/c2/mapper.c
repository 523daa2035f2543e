/* Maps a file shared and private, and touches bytes of either on command:
 *   s OFF      read the shared mapping        p OFF      read the private mapping
 *   w OFF VAL  write the shared mapping       c OFF VAL  write the private mapping (a copy of its own from then on)
 *   m          msync the shared mapping       r OFF      pread through the descriptor
 * Answers one line each: the byte, "ok", "SIGBUS", or "errno N".                                                        */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static sigjmp_buf caught;

static void on_bus(int sig)
{
	(void)sig;
	siglongjmp(caught, 1);
}

static void touch(volatile unsigned char *map, char what, long off, int value)
{
	if (sigsetjmp(caught, 1)) {
		puts("SIGBUS");
		return;
	}
	if (what == 'w' || what == 'c') {
		map[off] = (unsigned char)value;
		puts("ok");
	} else {
		printf("%u\n", map[off]);
	}
}

static void through_fd(int fd, long off)
{
	unsigned char byte;

	if (pread(fd, &byte, 1, off) == 1)
		printf("%u\n", byte);
	else
		printf("errno %d\n", errno);
}

int main(int argc, char **argv)
{
	struct sigaction bus = {.sa_handler = on_bus};
	struct stat st;
	char line[100], what;
	int fd = argc == 2 ? open(argv[1], O_RDWR) : -1;

	if (fd < 0 || fstat(fd, &st) || sigaction(SIGBUS, &bus, NULL))
		return 1;
	size_t n = (size_t)st.st_size;
	unsigned char *shared = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	unsigned char *private = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);

	if (shared == MAP_FAILED || private == MAP_FAILED)
		return 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		long off = 0;
		int value = 0;

		if (sscanf(line, "%c %ld %d", &what, &off, &value) < 1)
			continue;
		if (what == 'm')
			printf(msync(shared, n, MS_SYNC) ? "errno %d\n" : "ok\n", errno);
		else if (what == 'r')
			through_fd(fd, off);
		else
			touch(what == 'p' || what == 'c' ? private : shared, what, off, value);
	}
	return 0;
}
