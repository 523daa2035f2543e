/* The load of the benchmark: reads, writes and appends whose cost is the filesystem's and not an interpreter's.
 *
 * Hides what the bytes are, and the calls that must not fail. The work is in load_*.c, by kind.                     */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static unsigned char noise[2 * PAGE]; /* a page is a window into it, behind a stamp */
unsigned char buffer[CHUNK];

struct stamp {
	uint64_t page, generation;
};

void fail(const char *what, const char *path)
{
	fprintf(stderr, "load: %s: %s: %s\n", path, what, errno ? strerror(errno) : "wrong data");
	exit(1);
}

uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static const unsigned char *page_body(uint64_t page)
{
	return noise + page * 8 % PAGE;
}

void page_fill(unsigned char *to, uint64_t page, uint64_t generation)
{
	struct stamp s = {page, generation};

	memcpy(to, page_body(page), PAGE);
	memcpy(to, &s, sizeof(s));
}

void page_check(const unsigned char *at, uint64_t page, uint64_t generation, const char *path)
{
	struct stamp s;

	memcpy(&s, at, sizeof(s));
	errno = 0;
	if (s.page != page || s.generation != generation ||
	    memcmp(at + sizeof(s), page_body(page) + sizeof(s), PAGE - sizeof(s)) != 0)
		fail("page", path);
}

int open_file(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		fail("open", path);
	return fd;
}

void close_file(int fd, bool sync, const char *path)
{
	if (sync && fsync(fd) < 0)
		fail("fsync", path);
	if (close(fd) < 0)
		fail("close", path);
}

void check_size(int fd, uint64_t size, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		fail("fstat", path);
	errno = 0;
	if ((uint64_t)st.st_size != size)
		fail("size", path);
}

void write_all(int fd, const void *from, size_t n, const char *path)
{
	errno = 0;
	if (write(fd, from, n) != (ssize_t)n)
		fail("write", path);
}

void read_all(int fd, void *to, size_t n, const char *path)
{
	for (size_t done = 0; done < n;) {
		ssize_t r = read(fd, (unsigned char *)to + done, n - done);

		if (r == 0)
			errno = 0;
		if (r <= 0)
			fail("read", path);
		done += (size_t)r;
	}
}

uint32_t *choose(uint64_t n, uint64_t count, uint64_t seed)
{
	uint32_t *v = calloc(n, sizeof(*v));

	if (!v || count > n)
		fail("pages", "more than there are");
	for (uint32_t i = 0; i < n; i++)
		v[i] = i;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t j = i + next_random(&seed) % (n - i);
		uint32_t t = v[i];

		v[i] = v[j];
		v[j] = t;
	}
	return v;
}

static void make_noise(void)
{
	uint64_t seed = 1;

	for (size_t i = 0; i < sizeof(noise); i += sizeof(seed)) {
		uint64_t r = next_random(&seed);

		memcpy(noise + i, &r, sizeof(r));
	}
}

static const struct command *find_command(const char *name)
{
	const struct command *tables[] = {file_commands, small_commands, tree_commands, probe_commands, gcm_commands};

	for (size_t t = 0; t < sizeof(tables) / sizeof(*tables); t++)
		for (const struct command *c = tables[t]; c->name; c++)
			if (strcmp(c->name, name) == 0)
				return c;
	return NULL;
}

int main(int argc, char **argv)
{
	const struct command *c = argc == 5 ? find_command(argv[1]) : NULL;
	uint64_t start;

	if (!c) {
		fprintf(stderr, "usage: load WHAT PATH A B\n");
		return 2;
	}
	make_noise();
	start = now_ns();
	c->run(argv[2], strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10));
	if (c->timed)
		printf("%" PRIu64 "\n", now_ns() - start);
	return 0;
}
