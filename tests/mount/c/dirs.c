/* Directory streams. dirs DIRECTORY COUNT: the directory holds COUNT entries named f0, f1, ... and is emptied. Exit code 0: all as promised. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "must.h"

struct seen {
	long before; /* telldir before the entry */
	char name[256];
};

static struct seen *list;
static int count;

/* Reads all, noting positions; each name once. */
static int read_all(DIR *d, struct seen *out)
{
	char *got = calloc(1, (size_t)count);
	int n = 0, dots = 0;

	for (;;) {
		long at = telldir(d);
		struct dirent *e;

		errno = 0;
		e = readdir(d);
		if (!e)
			break;
		if (e->d_name[0] == '.') {
			dots++;
			continue;
		}
		int i = atoi(e->d_name + 1);

		MUST(e->d_name[0] == 'f' && i >= 0 && i < count && !got[i]);
		got[i] = 1;
		if (out) {
			out[n].before = at;
			strcpy(out[n].name, e->d_name);
		}
		n++;
	}
	MUST(errno == 0 && dots == 2);
	free(got);
	return n;
}

static void seeks(DIR *d)
{
	unsigned r = 1;

	for (int i = 0; i < 500; i++) {
		int k = (int)((r = r * 1103515245u + 12345u) >> 8) % count;

		k = k < 0 ? -k : k;
		seekdir(d, list[k].before);
		struct dirent *e = readdir(d);

		MUST(e && strcmp(e->d_name, list[k].name) == 0);
		if (k + 1 < count) {
			e = readdir(d);
			MUST(e && strcmp(e->d_name, list[k + 1].name) == 0);
		}
	}
	rewinddir(d);
	MUST(read_all(d, NULL) == count);
}

/* Removes while reading: everything is met, as rm -r expects. */
static int remove_while_reading(const char *path, DIR *d, int step)
{
	int n = 0, left = 0;
	struct dirent *e;

	rewinddir(d);
	while ((errno = 0, e = readdir(d)) != NULL) {
		if (e->d_name[0] == '.')
			continue;
		if (n++ % step) {
			left++;
			continue;
		}
		MUST(unlinkat(dirfd(d), e->d_name, 0) == 0);
	}
	MUST(errno == 0);
	fprintf(stderr, "%s: met %d, left %d\n", path, n, left);
	return left;
}

/* A second stream, positions of the first after additions and removals. */
static void changes(const char *path, DIR *d)
{
	DIR *other = opendir(path);
	char name[32];
	int n = 0;
	struct dirent *e;

	MUST(other);
	rewinddir(d);
	for (int i = 0; i < 10; i++)
		MUST(readdir(d));
	long here = telldir(d);
	struct dirent *next = readdir(d);
	char want[256];

	MUST(next);
	strcpy(want, next->d_name);
	for (int i = 0; i < 300; i++) {
		snprintf(name, sizeof(name), "new%d", i);
		close(openat(dirfd(d), name, O_CREAT | O_WRONLY, 0600));
	}
	seekdir(d, here);
	next = readdir(d);
	MUST(next && (strcmp(next->d_name, want) == 0 || strncmp(next->d_name, "new", 3) == 0));
	while ((e = readdir(other)) != NULL)
		n += strncmp(e->d_name, "new", 3) == 0;
	MUST(n <= 300);
	rewinddir(other);
	for (n = 0; (e = readdir(other)) != NULL;)
		n += strncmp(e->d_name, "new", 3) == 0;
	MUST(n == 300);
	for (int i = 0; i < 300; i++) {
		snprintf(name, sizeof(name), "new%d", i);
		MUST(unlinkat(dirfd(d), name, 0) == 0);
	}
	closedir(other);
}

int main(int argc, char **argv)
{
	DIR *d;

	MUST(argc == 3);
	count = atoi(argv[2]);
	list = calloc((size_t)count, sizeof(*list));
	d = opendir(argv[1]);
	MUST(d && list);
	MUST(read_all(d, list) == count);
	seeks(d);
	changes(argv[1], d);
	rewinddir(d);
	MUST(read_all(d, NULL) == count);
	int left = remove_while_reading(argv[1], d, 3);

	MUST(left == count - (count + 2) / 3);
	MUST(remove_while_reading(argv[1], d, 1) == 0);
	rewinddir(d);
	MUST(read_all(d, NULL) == 0);
	closedir(d);
	MUST(rmdir(argv[1]) == 0);
	return 0;
}
