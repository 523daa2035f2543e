/* Does anything of a tree show in another? windows PLAIN CIPHER NAMES: samples 16-byte windows of every file below PLAIN (the first 4 KiB
 * completely, then one in eight), reads NAMES (one per line, at least 8 bytes each), and looks for all of them at every byte offset of every
 * file and symlink below CIPHER. Prints what it compared and every hit; exit code 1: something shows, 2: trouble. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BITS 24
#define SLOTS (1u << BITS)

static struct {
	uint64_t key, rest;
	unsigned char len; /* 0 free; 16: a window; else a name of so many bytes, whose text is in `name` */
	const char *name;
} *table;
static uint8_t *filter; /* one bit for each hash */
static size_t windows, names, scanned, hits;

static uint64_t load(const unsigned char *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

static uint32_t hash(uint64_t v)
{
	return (uint32_t)((v * 0x9e3779b97f4a7c15ull) >> (64 - BITS));
}

static void insert(uint64_t key, uint64_t rest, unsigned char len, const char *name)
{
	uint32_t at = hash(key);

	while (table[at].len) {
		if (table[at].key == key && table[at].rest == rest && len == 16 && table[at].len == 16)
			return;
		at = (at + 1) % SLOTS;
	}
	table[at].key = key;
	table[at].rest = rest;
	table[at].len = len;
	table[at].name = name;
	filter[hash(key) / 8] |= (uint8_t)(1u << hash(key) % 8);
	if (len == 16)
		windows++;
	else
		names++;
}

/* Runs and padding occur anywhere. */
static int trivial(const unsigned char *p)
{
	int distinct = 0;

	for (int i = 0; i < 16; i++) {
		int old = 0;

		for (int k = 0; k < i; k++)
			old |= p[k] == p[i];
		distinct += !old;
	}
	return distinct < 6;
}

static unsigned char *slurp(const char *path, size_t *n)
{
	struct stat st;
	int fd = open(path, O_RDONLY);
	unsigned char *p;

	if (fd < 0 || fstat(fd, &st) || !(p = malloc((size_t)st.st_size + 16)) || read(fd, p, (size_t)st.st_size) != st.st_size) {
		perror(path);
		exit(2);
	}
	close(fd);
	*n = (size_t)st.st_size;
	return p;
}

static int sample(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	size_t n;

	(void)ftw;
	if (type != FTW_F || !S_ISREG(st->st_mode) || st->st_size < 16)
		return 0;
	unsigned char *p = slurp(path, &n);

	for (size_t at = 0; at + 16 <= n; at += at < 4096 ? 16 : 128)
		if (!trivial(p + at) && windows < SLOTS / 2)
			insert(load(p + at), load(p + at + 8), 16, NULL);
	free(p);
	return 0;
}

static void look(const char *path, const unsigned char *p, size_t n)
{
	for (size_t at = 0; at + 8 <= n; at++) {
		uint64_t key = load(p + at);
		uint32_t h = hash(key);

		if (!(filter[h / 8] & 1u << h % 8))
			continue;
		for (; table[h].len; h = (h + 1) % SLOTS) {
			size_t len = table[h].len;

			if (table[h].key != key || at + len > n)
				continue;
			if (len == 16 && !table[h].name ? load(p + at + 8) != table[h].rest : memcmp(p + at, table[h].name, len) != 0)
				continue;
			printf("%s, offset %zu: %.*s\n", path, at, (int)len, (const char *)p + at);
			hits++;
		}
	}
	scanned += n;
}

static int scan(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	unsigned char link[PATH_MAX];
	size_t n;

	(void)ftw;
	if (type == FTW_SL) {
		ssize_t got = readlink(path, (char *)link, sizeof(link));

		if (got > 0)
			look(path, link, (size_t)got);
	} else if (type == FTW_F && S_ISREG(st->st_mode)) {
		unsigned char *p = slurp(path, &n);

		look(path, p, n);
		free(p);
	}
	return 0;
}

int main(int argc, char **argv)
{
	char *line = NULL;
	size_t room = 0;
	ssize_t n;
	FILE *f;

	table = calloc(SLOTS, sizeof(*table));
	filter = calloc(SLOTS / 8, 1);
	if (argc != 4 || !table || !filter || nftw(argv[1], sample, 64, FTW_PHYS))
		return 2;
	f = fopen(argv[3], "r");
	while (f && (n = getline(&line, &room, f)) > 0) {
		char *name = strndup(line, (size_t)n - 1);

		if (name && n - 1 >= 8 && n - 1 < 255 && n - 1 != 16)
			insert(load((unsigned char *)name), 0, (unsigned char)(n - 1), name);
	}
	if (!f || nftw(argv[2], scan, 64, FTW_PHYS))
		return 2;
	printf("windows %zu names %zu bytes %zu hits %zu\n", windows, names, scanned, hits);
	return hits != 0;
}
