/* How long one read takes while somebody else is busy. The reader prints each of its times; the writer writes on and on. */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile sig_atomic_t told_to_end;

static void on_signal(int number)
{
	(void)number;
	told_to_end = 1;
}

static void end_on_signal(void)
{
	struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	if (sigaction(SIGTERM, &sa, NULL) < 0)
		fail("sigaction", "SIGTERM");
}

/* Whoever started us waits for this line before it goes on. */
static void say_ready(void)
{
	puts("ready");
	if (fflush(stdout) != 0)
		fail("write", "stdout");
}

/* Reads pages nobody has read since the mount, one at a time without readahead, for so many milliseconds, until there are
 * no more, or until SIGTERM. One line of nanoseconds per read.                                                        */
static void probe(const char *path, uint64_t mib, uint64_t milliseconds)
{
	uint64_t pages = mib * (CHUNK / PAGE), end = now_ns() + milliseconds * 1000000, n = 0;
	uint32_t *order = choose(pages, pages, 13), *took = calloc(pages, sizeof(*took));
	int fd = open_file(path, O_RDONLY);

	end_on_signal();
	errno = posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	if (errno || !took)
		fail("fadvise", path);
	say_ready();
	while (n < pages && !told_to_end) {
		uint64_t start = now_ns(), ns;

		if (start > end)
			break;
		errno = 0;
		if (pread(fd, buffer, PAGE, (off_t)order[n] * PAGE) != (ssize_t)PAGE)
			fail("pread", path);
		ns = now_ns() - start;
		page_check(buffer, order[n], 0, path);
		took[n++] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
	}
	for (uint64_t i = 0; i < n; i++)
		printf("%" PRIu32 "\n", took[i]);
	close_file(fd, false, path);
	free(took);
	free(order);
}

/* Fills a file by 1 MiB, fsync, and again, until SIGTERM. Prints the bytes written. */
static void stream(const char *path, uint64_t mib, uint64_t unused)
{
	uint64_t written = 0;

	(void)unused;
	end_on_signal();
	while (!told_to_end) {
		int fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);

		for (uint64_t p = 0; p < mib * (CHUNK / PAGE) && !told_to_end; p += CHUNK / PAGE) {
			for (uint64_t i = 0; i < CHUNK / PAGE; i++)
				page_fill(buffer + i * PAGE, p + i, 0);
			write_all(fd, buffer, CHUNK, path);
			written += CHUNK;
			if (written == CHUNK)
				say_ready();
		}
		close_file(fd, true, path);
	}
	printf("%" PRIu64 "\n", written);
}

const struct command probe_commands[] = {
	{"probe", false, probe},
	{"stream", false, stream},
	{NULL, false, NULL},
};
