/* The load of the benchmark: reads, writes and appends whose cost is the filesystem's and not an interpreter's.
 *
 * Hides what the bytes are. Every page says which page it is and in which generation it was written, so each command
 * checks all it reads. Timed commands print nanoseconds from open to close; anything wrong is an error and prints no
 * time at all.                                                                                                       */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define CHUNK (1u << 20)
#define RECORD 120u

static unsigned char noise[2 * PAGE]; /* a page is a window into it, behind a stamp */
static unsigned char buffer[CHUNK];

struct stamp {
	uint64_t page, generation;
};

__attribute__((noreturn)) static void fail(const char *what, const char *path)
{
	fprintf(stderr, "load: %s: %s: %s\n", path, what, errno ? strerror(errno) : "wrong data");
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* splitmix64: the same numbers everywhere. */
static uint64_t next_random(uint64_t *state)
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

static void page_fill(unsigned char *to, uint64_t page, uint64_t generation)
{
	struct stamp s = {page, generation};

	memcpy(to, page_body(page), PAGE);
	memcpy(to, &s, sizeof(s));
}

static void page_check(const unsigned char *at, uint64_t page, uint64_t generation, const char *path)
{
	struct stamp s;

	memcpy(&s, at, sizeof(s));
	errno = 0;
	if (s.page != page || s.generation != generation ||
	    memcmp(at + sizeof(s), page_body(page) + sizeof(s), PAGE - sizeof(s)) != 0)
		fail("page", path);
}

static int open_file(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);

	if (fd < 0)
		fail("open", path);
	return fd;
}

static void close_file(int fd, bool sync, const char *path)
{
	if (sync && fsync(fd) < 0)
		fail("fsync", path);
	if (close(fd) < 0)
		fail("close", path);
}

static void check_size(int fd, uint64_t size, const char *path)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		fail("fstat", path);
	errno = 0;
	if ((uint64_t)st.st_size != size)
		fail("size", path);
}

/* Exactly n bytes; a short transfer is a failure, for every filesystem here could have done all. */
static void write_all(int fd, const void *from, size_t n, const char *path)
{
	errno = 0;
	if (write(fd, from, n) != (ssize_t)n)
		fail("write", path);
}

static void read_all(int fd, void *to, size_t n, const char *path)
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

/* The first count of the pages 0..n-1 in random order, none twice. */
static uint32_t *choose(uint64_t n, uint64_t count, uint64_t seed)
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

static void seq_write(const char *path, uint64_t pages)
{
	int fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL);

	for (uint64_t p = 0; p < pages; p += CHUNK / PAGE) {
		for (uint64_t i = 0; i < CHUNK / PAGE; i++)
			page_fill(buffer + i * PAGE, p + i, 0);
		write_all(fd, buffer, CHUNK, path);
	}
	close_file(fd, true, path);
}

/* changed: pages written again since, sorted into a map; may be NULL. */
static void seq_read(const char *path, uint64_t pages, const bool *changed)
{
	int fd = open_file(path, O_RDONLY);

	check_size(fd, pages * PAGE, path);
	for (uint64_t p = 0; p < pages; p += CHUNK / PAGE) {
		read_all(fd, buffer, CHUNK, path);
		for (uint64_t i = 0; i < CHUNK / PAGE; i++)
			page_check(buffer + i * PAGE, p + i, changed && changed[p + i], path);
	}
	close_file(fd, false, path);
}

static void rand_read(const char *path, const uint32_t *chosen, uint64_t count)
{
	int fd = open_file(path, O_RDONLY);

	for (uint64_t i = 0; i < count; i++) {
		errno = 0;
		if (pread(fd, buffer, PAGE, (off_t)chosen[i] * PAGE) != (ssize_t)PAGE)
			fail("pread", path);
		page_check(buffer, chosen[i], 0, path);
	}
	close_file(fd, false, path);
}

static void rand_write(const char *path, const uint32_t *chosen, uint64_t count)
{
	int fd = open_file(path, O_WRONLY);

	for (uint64_t i = 0; i < count; i++) {
		page_fill(buffer, chosen[i], 1);
		errno = 0;
		if (pwrite(fd, buffer, PAGE, (off_t)chosen[i] * PAGE) != (ssize_t)PAGE)
			fail("pwrite", path);
	}
	close_file(fd, true, path);
}

static void rand_verify(const char *path, uint64_t pages, const uint32_t *chosen, uint64_t count)
{
	bool *changed = calloc(pages, sizeof(*changed));

	if (!changed)
		fail("calloc", path);
	for (uint64_t i = 0; i < count; i++)
		changed[chosen[i]] = true;
	seq_read(path, pages, changed);
	free(changed);
}

static void record_fill(unsigned char *to, uint64_t i)
{
	memset(to, 'a' + (int)(i % 26), RECORD);
	memcpy(to, &i, sizeof(i));
	to[RECORD - 1] = '\n';
}

static void append(const char *path, uint64_t count, bool sync_each)
{
	int fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND);

	for (uint64_t i = 0; i < count; i++) {
		record_fill(buffer, i);
		write_all(fd, buffer, RECORD, path);
		if (sync_each && fsync(fd) < 0)
			fail("fsync", path);
	}
	close_file(fd, false, path);
}

static void append_open(const char *path, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		int fd = open_file(path, O_WRONLY | O_CREAT | O_APPEND);

		record_fill(buffer, i);
		write_all(fd, buffer, RECORD, path);
		close_file(fd, false, path);
	}
}

static void append_verify(const char *path, uint64_t count)
{
	int fd = open_file(path, O_RDONLY);
	unsigned char want[RECORD];

	check_size(fd, count * RECORD, path);
	for (uint64_t i = 0; i < count; i++) {
		read_all(fd, buffer, RECORD, path);
		record_fill(want, i);
		errno = 0;
		if (memcmp(buffer, want, RECORD) != 0)
			fail("record", path);
	}
	close_file(fd, false, path);
}

/* --- a ustar stream on stdin: what is in it, in an order that does not matter --- */

struct sum {
	uint64_t files, dirs, links, bytes, data, times;
};

static uint64_t mix(uint64_t h, const void *from, size_t n)
{
	const unsigned char *p = from;
	uint64_t word;

	for (; n >= sizeof(word); n -= sizeof(word), p += sizeof(word)) {
		memcpy(&word, p, sizeof(word));
		h = (h ^ word) * 0x9fb21c651e98df25u;
		h ^= h >> 28;
	}
	for (; n; n--, p++)
		h = (h ^ *p) * 0x100000001b3u;
	return h ^ (h >> 31);
}

static uint64_t octal(const unsigned char *field, size_t n)
{
	uint64_t v = 0;

	for (size_t i = 0; i < n && field[i] >= '0' && field[i] <= '7'; i++)
		v = v * 8 + (uint64_t)(field[i] - '0');
	return v;
}

/* Name, kind, mode, size and target: what untar has to bring back. Not the owner; a link's mode means nothing. */
static uint64_t entry_hash(const unsigned char *head, uint64_t size)
{
	uint64_t numbers[] = {head[156], size, head[156] == '2' ? 0 : octal(head + 100, 8)};
	uint64_t h = mix(0x243f6a8885a308d3u, numbers, sizeof(numbers));

	h = mix(h, head, strnlen((const char *)head, 100));
	return mix(h, head + 157, strnlen((const char *)head + 157, 100));
}

static void tar_entry(struct sum *sum, const unsigned char *head)
{
	uint64_t size = head[156] == '0' ? octal(head + 124, 12) : 0, h = entry_hash(head, size);
	uint64_t named_time[] = {h, octal(head + 136, 12)};

	errno = 0;
	if (memcmp(head + 257, "ustar", 5) != 0 || head[345] != 0)
		fail("tar header", "stdin");
	for (uint64_t left = size; left; left -= left < CHUNK ? left : CHUNK) {
		size_t n = left < CHUNK ? (size_t)left : CHUNK;

		read_all(STDIN_FILENO, buffer, (n + 511) / 512 * 512, "stdin");
		h = mix(h, buffer, n);
	}
	sum->files += head[156] == '0';
	sum->dirs += head[156] == '5';
	sum->links += head[156] == '2';
	sum->bytes += size;
	sum->data += h;
	if (head[156] != '2')
		sum->times += mix(0, named_time, sizeof(named_time));
}

static void tar_sum(void)
{
	unsigned char head[512];
	struct sum sum = {0};

	for (;;) {
		read_all(STDIN_FILENO, head, sizeof(head), "stdin");
		if (head[0] == 0)
			break;
		tar_entry(&sum, head);
	}
	while (read(STDIN_FILENO, buffer, sizeof(buffer)) > 0)
		;
	printf("%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %016" PRIx64 " %016" PRIx64 "\n", sum.files, sum.dirs,
	    sum.links, sum.bytes, sum.data, sum.times);
}

/* pages: of the file; count: operations. Nothing but the file's work is done between the two clocks. */
static int timed(const char *what, const char *path, uint64_t pages, uint64_t count)
{
	uint32_t *chosen = strncmp(what, "rand-", 5) == 0 ? choose(pages, count, 7) : NULL;
	uint64_t start = now_ns();

	if (strcmp(what, "seq-write") == 0)
		seq_write(path, pages);
	else if (strcmp(what, "seq-read") == 0)
		seq_read(path, pages, NULL);
	else if (strcmp(what, "rand-read") == 0)
		rand_read(path, chosen, count);
	else if (strcmp(what, "rand-write") == 0)
		rand_write(path, chosen, count);
	else if (strcmp(what, "rand-verify") == 0)
		rand_verify(path, pages, chosen, count);
	else if (strcmp(what, "append") == 0)
		append(path, count, false);
	else if (strcmp(what, "append-fsync") == 0)
		append(path, count, true);
	else if (strcmp(what, "append-open") == 0)
		append_open(path, count);
	else if (strcmp(what, "append-verify") == 0)
		append_verify(path, count);
	else
		return 2;
	printf("%" PRIu64 "\n", now_ns() - start);
	free(chosen);
	return 0;
}

int main(int argc, char **argv)
{
	uint64_t seed = 1;

	for (size_t i = 0; i < sizeof(noise); i += sizeof(seed)) {
		uint64_t r = next_random(&seed);

		memcpy(noise + i, &r, sizeof(r));
	}
	if (argc == 2 && strcmp(argv[1], "tar-sum") == 0) {
		tar_sum();
		return 0;
	}
	if (argc == 5 && timed(argv[1], argv[2], strtoull(argv[3], NULL, 10) * (CHUNK / PAGE),
	    strtoull(argv[4], NULL, 10)) == 0)
		return 0;
	fprintf(stderr, "usage: load WHAT FILE MIB COUNT | load tar-sum\n");
	return 2;
}
