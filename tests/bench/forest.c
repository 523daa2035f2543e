/* A forest of small files, and what is done to all of them: the cost is the filesystem's and not an interpreter's.
 *
 *     forest create|walk|stat|read|remove ROOT FILES [PER_DIRECTORY]
 *
 * Hides how names and contents follow from a number. Every command counts or checks what it meets, and prints the
 * nanoseconds it took; anything wrong is an error and prints no time. */
#include <dirent.h>
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

#define SIZE 120u /* of a file */

static unsigned long files, per_directory = 100;

__attribute__((noreturn)) static void fail(const char *what, const char *name)
{
	fprintf(stderr, "forest: %s: %s: %s\n", name, what, errno ? strerror(errno) : "wrong");
	exit(1);
}

static void content(char to[static SIZE], const char *name)
{
	memset(to, '.', SIZE);
	memcpy(to, name, strlen(name));
}

static void create_one(int dir, const char *name)
{
	char text[SIZE];
	int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	content(text, name);
	if (fd < 0 || write(fd, text, SIZE) != SIZE || close(fd))
		fail("create", name);
}

static void read_one(int dir, const char *name)
{
	char want[SIZE], have[SIZE + 1];
	int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);

	content(want, name);
	if (fd < 0 || read(fd, have, sizeof(have)) != SIZE)
		fail("read", name);
	errno = 0;
	if (memcmp(have, want, SIZE) != 0)
		fail("content", name);
	(void)close(fd);
}

static void stat_one(int dir, const char *name)
{
	struct stat st;

	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) || st.st_size != SIZE)
		fail("stat", name);
}

static void remove_one(int dir, const char *name)
{
	if (unlinkat(dir, name, 0))
		fail("unlink", name);
}

static void walk_one(int dir, const char *name)
{
	(void)dir;
	(void)name;
}

static int directory_open(int root, const char *name)
{
	int fd = openat(root, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		fail("open", name);
	return fd;
}

static void create_all(int root)
{
	for (unsigned long n = 0; n < files; n += per_directory) {
		char name[32];
		int dir;

		(void)snprintf(name, sizeof(name), "d%08lu", n / per_directory);
		if (mkdirat(root, name, 0755))
			fail("mkdir", name);
		dir = directory_open(root, name);
		for (unsigned long i = n; i < n + per_directory && i < files; i++) {
			(void)snprintf(name, sizeof(name), "file-%09lu.txt", i);
			create_one(dir, name);
		}
		(void)close(dir);
	}
}

/* Calls fn for every entry of a directory, as readdir brings them. */
static unsigned long each(int fd, void (*fn)(int dir, const char *name))
{
	DIR *stream = fdopendir(fd);
	unsigned long n = 0;
	struct dirent *e;

	if (!stream)
		fail("opendir", "");
	while (errno = 0, (e = readdir(stream))) {
		if (e->d_name[0] == '.')
			continue;
		fn(fd, e->d_name);
		n++;
	}
	if (errno)
		fail("readdir", "");
	(void)closedir(stream);
	return n;
}

static void (*todo)(int dir, const char *name);
static unsigned long met;

static void directory(int root, const char *name)
{
	met += each(directory_open(root, name), todo);
	if (todo == remove_one && unlinkat(root, name, AT_REMOVEDIR))
		fail("rmdir", name);
}

static uint64_t now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(int dir, const char *name);
	} commands[] = { { "walk", walk_one }, { "stat", stat_one }, { "read", read_one }, { "remove", remove_one } };
	uint64_t begun;
	int root;

	if (argc < 4 || argc > 5 || !(files = strtoul(argv[3], NULL, 10)) ||
	    (argc == 5 && !(per_directory = strtoul(argv[4], NULL, 10)))) {
		fprintf(stderr, "usage: forest create|walk|stat|read|remove ROOT FILES [PER_DIRECTORY]\n");
		return 2;
	}
	root = directory_open(AT_FDCWD, argv[2]);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(argv[1], commands[i].name) == 0)
			todo = commands[i].fn;
	begun = now_ns();
	if (todo)
		(void)each(root, directory);
	else
		create_all(root);
	if (todo && met != files) {
		errno = 0;
		fail("number of files", argv[2]);
	}
	printf("%" PRIu64 "\n", now_ns() - begun);
	return 0;
}
