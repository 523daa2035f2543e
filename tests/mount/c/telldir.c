/* Positions in a directory: told anywhere in a stream of n entries, they lead back to the same entry, in this stream and in
 * another, also after rewinding and while entries come and go. Leaves 500 entries of its own behind. */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARKS 100

static struct {
	long at;
	char next[256];
} mark[MARKS];

static int known(const char *name)
{
	return strncmp(name, "extra-", 6) != 0;
}

/* Reads to the end; counts the entries that were there from the beginning, and notes positions every now and then. */
static long walk(DIR *dir, long n)
{
	long seen = 0, every = n / MARKS, marks = 0;
	struct dirent *e;
	long at = telldir(dir);

	while ((e = readdir(dir))) {
		if (known(e->d_name)) {
			if (seen++ % every == every / 2 && marks < MARKS) {
				mark[marks].at = at;
				snprintf(mark[marks++].next, sizeof(mark[0].next), "%s", e->d_name);
			}
		}
		at = telldir(dir);
	}
	return seen;
}

static void check_marks(DIR *dir, long marks, const char *when)
{
	for (long i = 0; i < marks; i++) {
		long k = (i * 7919) % marks;
		struct dirent *e;

		seekdir(dir, mark[k].at);
		do
			e = readdir(dir);
		while (e && !known(e->d_name));
		if (!e || strcmp(e->d_name, mark[k].next))
			errx(1, "%s: position %ld leads to %s, not to %s", when, mark[k].at, e ? e->d_name : "the end",
			    mark[k].next);
	}
}

static void extras(int dirfd, int from, int to, int make)
{
	char name[40];

	for (int i = from; i < to; i++) {
		snprintf(name, sizeof(name), "extra-%d-%s", i, i % 5 ? "short" : "a-name-that-is-a-little-longer");
		if (make ? mkdirat(dirfd, name, 0700) : unlinkat(dirfd, name, AT_REMOVEDIR))
			err(1, "%s", name);
	}
}

int main(int argc, char **argv)
{
	long n = argc == 3 ? atol(argv[2]) + 2 : 0; /* . and .. */
	DIR *one = n ? opendir(argv[1]) : NULL, *two = n ? opendir(argv[1]) : NULL;

	if (!one || !two)
		err(1, "%s", argc > 1 ? argv[1] : "usage: telldir DIRECTORY ENTRIES");
	if (walk(one, n) != n)
		errx(1, "not all entries were seen");
	check_marks(one, MARKS, "same stream");
	check_marks(two, MARKS, "another stream");
	extras(dirfd(one), 0, 1000, 1);
	check_marks(two, MARKS, "entries were added");
	extras(dirfd(one), 0, 500, 0);
	check_marks(one, MARKS, "entries were removed");
	rewinddir(one);
	if (walk(one, n) != n)
		errx(1, "not all entries were seen again after rewinding");
	check_marks(one, MARKS, "rewound");
	closedir(one);
	closedir(two);
	return 0;
}
