/* A ustar stream on stdin: what is in it, in an order that does not matter. And trees, counted and looked at. */
#include "load.h"

#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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

static void tar_sum(const char *path, uint64_t a, uint64_t b)
{
	unsigned char head[512];
	struct sum sum = {0};

	(void)path, (void)a, (void)b;
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

static uint64_t entries;

static int one_more(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	(void)path, (void)st, (void)at;
	errno = 0;
	if (kind == FTW_NS || kind == FTW_DNR)
		fail("stat", path);
	entries++;
	return 0;
}

/* Stats everything below path, times over; it is of entries things. */
static void stat_tree(const char *path, uint64_t times, uint64_t expected)
{
	for (uint64_t i = 0; i < times; i++) {
		entries = 0;
		if (nftw(path, one_more, 64, FTW_PHYS) < 0)
			fail("nftw", path);
		errno = 0;
		if (entries != expected)
			fail("number of entries", path);
	}
}

const struct command tree_commands[] = {
	{"tar-sum", false, tar_sum},
	{"stat-tree", true, stat_tree},
	{NULL, false, NULL},
};
