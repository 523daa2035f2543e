/* Many small files: opened again and again, delivered into a maildir, and used as a compiler uses its headers. */
#include "load.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define NAME 512
#define WRITERS 4u   /* into a maildir */
#define HEADERS 200u /* there are, in the last of the directories searched */
#define INCLUDES 25u /* of one unit */
#define SEARCHED 3u
#define OBJECT (3 * PAGE)

static size_t size_of(uint64_t i)
{
	return 512 + i * 997 % (PAGE - 512);
}

__attribute__((format(printf, 2, 3))) static const char *path_in(char to[static NAME], const char *format, ...)
{
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(to, NAME, format, args);
	va_end(args);
	errno = ENAMETOOLONG;
	if (n < 0 || n >= NAME)
		fail("name", format);
	return to;
}

static void write_small(const char *path, uint64_t i, bool sync)
{
	int fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL);

	page_fill(buffer, i, 0);
	write_all(fd, buffer, size_of(i), path);
	close_file(fd, sync, path);
}

static void read_small(const char *path, uint64_t i)
{
	unsigned char want[PAGE];
	int fd = open_file(path, O_RDONLY);
	ssize_t n = read(fd, buffer, PAGE);

	if (n < 0)
		fail("read", path);
	page_fill(want, i, 0);
	errno = 0;
	if ((size_t)n != size_of(i) || memcmp(buffer, want, (size_t)n) != 0)
		fail("small file", path);
	close_file(fd, false, path);
}

static void make_directory(const char *path)
{
	if (mkdir(path, 0755) < 0)
		fail("mkdir", path);
}

static void small_make(const char *dir, uint64_t files, uint64_t unused)
{
	char name[NAME];

	(void)unused;
	make_directory(dir);
	for (uint64_t i = 0; i < files; i++)
		write_small(path_in(name, "%s/f%" PRIu64, dir, i), i, false);
}

/* Open, read, close of each of the files, in random order, times over. */
static void small_read(const char *dir, uint64_t files, uint64_t times)
{
	uint32_t *order = choose(files, files, 11);
	char name[NAME];

	for (uint64_t t = 0; t < times; t++)
		for (uint64_t i = 0; i < files; i++)
			read_small(path_in(name, "%s/f%" PRIu32, dir, order[i]), order[i]);
	free(order);
}

/* The protocol of a delivery: nobody sees a message that is not whole, and it is on the disk before it is accepted. */
static void deliver(const char *dir, uint64_t i)
{
	char tmp[NAME], new[NAME];

	write_small(path_in(tmp, "%s/tmp/%" PRIu64, dir, i), i, true);
	if (rename(tmp, path_in(new, "%s/new/%" PRIu64, dir, i)) < 0)
		fail("rename", tmp);
}

static void wait_for_writers(const char *path)
{
	int status;

	for (unsigned int w = 0; w < WRITERS; w++) {
		if (wait(&status) < 0)
			fail("wait", path);
		errno = 0;
		if (status != 0)
			fail("a writer", path);
	}
}

static void maildir(const char *dir, uint64_t messages, uint64_t unused)
{
	char name[NAME];

	(void)unused;
	make_directory(dir);
	make_directory(path_in(name, "%s/tmp", dir));
	make_directory(path_in(name, "%s/new", dir));
	for (uint64_t w = 0; w < WRITERS; w++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork", dir);
		for (uint64_t i = w; pid == 0 && i < messages; i += WRITERS)
			deliver(dir, i);
		if (pid == 0)
			_exit(0);
	}
	wait_for_writers(dir);
}

static uint64_t count_entries(const char *path)
{
	DIR *d = opendir(path);
	uint64_t n = 0;

	if (!d)
		fail("opendir", path);
	errno = 0;
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	if (errno)
		fail("readdir", path);
	closedir(d);
	return n;
}

static void maildir_verify(const char *dir, uint64_t messages, uint64_t unused)
{
	char name[NAME];

	(void)unused;
	for (uint64_t i = 0; i < messages; i++)
		read_small(path_in(name, "%s/new/%" PRIu64, dir, i), i);
	errno = 0;
	if (count_entries(path_in(name, "%s/new", dir)) != messages || count_entries(path_in(name, "%s/tmp", dir)) != 0)
		fail("number of messages", dir);
}

static void compile_make(const char *dir, uint64_t units, uint64_t unused)
{
	char name[NAME];

	(void)unused;
	make_directory(dir);
	make_directory(path_in(name, "%s/obj", dir));
	for (unsigned int d = 0; d < SEARCHED; d++)
		make_directory(path_in(name, "%s/inc%u", dir, d));
	for (uint64_t h = 0; h < HEADERS; h++)
		write_small(path_in(name, "%s/inc%u/h%" PRIu64, dir, SEARCHED - 1, h), h, false);
	for (uint64_t u = 0; u < units; u++)
		write_small(path_in(name, "%s/u%" PRIu64, dir, u), u, false);
}

/* As a compiler does: looks for the header along the search path, finds it in the last place, reads it. */
static void include(const char *dir, uint64_t header)
{
	char name[NAME];
	struct stat st;

	for (unsigned int d = 0; d < SEARCHED - 1; d++)
		if (stat(path_in(name, "%s/inc%u/h%" PRIu64, dir, d, header), &st) == 0 || errno != ENOENT)
			fail("stat of what is not there", name);
	path_in(name, "%s/inc%u/h%" PRIu64, dir, SEARCHED - 1, header);
	if (stat(name, &st) < 0)
		fail("stat", name);
	read_small(name, header);
}

static void object_write(const char *dir, uint64_t unit)
{
	char tmp[NAME], name[NAME];
	int fd = open_file(path_in(tmp, "%s/obj/%" PRIu64 ".tmp", dir, unit), O_WRONLY | O_CREAT | O_EXCL);

	for (size_t at = 0; at < OBJECT; at += PAGE)
		page_fill(buffer + at, unit + at, 0);
	for (size_t at = 0; at < OBJECT; at += OBJECT / 6)
		write_all(fd, buffer + at, OBJECT / 6, tmp);
	close_file(fd, false, tmp);
	if (rename(tmp, path_in(name, "%s/obj/%" PRIu64 ".o", dir, unit)) < 0)
		fail("rename", tmp);
}

static void compile(const char *dir, uint64_t units, uint64_t unused)
{
	uint64_t seed = 5;
	char name[NAME];

	(void)unused;
	for (uint64_t u = 0; u < units; u++) {
		read_small(path_in(name, "%s/u%" PRIu64, dir, u), u);
		for (unsigned int i = 0; i < INCLUDES; i++)
			include(dir, next_random(&seed) % HEADERS);
		object_write(dir, u);
	}
}

static void compile_verify(const char *dir, uint64_t units, uint64_t unused)
{
	char name[NAME];

	(void)unused;
	for (uint64_t u = 0; u < units; u++) {
		int fd = open_file(path_in(name, "%s/obj/%" PRIu64 ".o", dir, u), O_RDONLY);

		check_size(fd, OBJECT, name);
		read_all(fd, buffer, OBJECT, name);
		for (size_t at = 0; at < OBJECT; at += PAGE)
			page_check(buffer + at, u + at, 0, name);
		close_file(fd, false, name);
	}
}

const struct command small_commands[] = {
	{"small-make", false, small_make},
	{"small-read", true, small_read},
	{"maildir", true, maildir},
	{"maildir-verify", false, maildir_verify},
	{"compile-make", false, compile_make},
	{"compile", true, compile},
	{"compile-verify", false, compile_verify},
	{NULL, false, NULL},
};
