/* One file: read, written, mapped, appended to. a: its MiB; b: operations. */
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES (uint64_t)(CHUNK / PAGE) /* of a MiB */
#define RECORD 120u

static void seq_write(const char *path, uint64_t mib, uint64_t unused)
{
	int fd = open_file(path, O_WRONLY | O_CREAT | O_EXCL);

	(void)unused;
	for (uint64_t p = 0; p < mib * PAGES; p += PAGES) {
		for (uint64_t i = 0; i < PAGES; i++)
			page_fill(buffer + i * PAGE, p + i, 0);
		write_all(fd, buffer, CHUNK, path);
	}
	close_file(fd, true, path);
}

/* changed: which pages were written again since; may be NULL. */
static void read_through(const char *path, uint64_t mib, const bool *changed)
{
	int fd = open_file(path, O_RDONLY);

	check_size(fd, mib * CHUNK, path);
	for (uint64_t p = 0; p < mib * PAGES; p += PAGES) {
		read_all(fd, buffer, CHUNK, path);
		for (uint64_t i = 0; i < PAGES; i++)
			page_check(buffer + i * PAGE, p + i, changed && changed[p + i], path);
	}
	close_file(fd, false, path);
}

static void seq_read(const char *path, uint64_t mib, uint64_t unused)
{
	(void)unused;
	read_through(path, mib, NULL);
}

static void mmap_read(const char *path, uint64_t mib, uint64_t unused)
{
	int fd = open_file(path, O_RDONLY);
	const unsigned char *at = mmap(NULL, mib * CHUNK, PROT_READ, MAP_SHARED, fd, 0);

	(void)unused;
	check_size(fd, mib * CHUNK, path);
	if (at == MAP_FAILED)
		fail("mmap", path);
	for (uint64_t p = 0; p < mib * PAGES; p++)
		page_check(at + p * PAGE, p, 0, path);
	close_file(fd, false, path);
}

static uint32_t *chosen_pages(uint64_t mib, uint64_t count)
{
	return choose(mib * PAGES, count, 7);
}

static void rand_read(const char *path, uint64_t mib, uint64_t count)
{
	uint32_t *chosen = chosen_pages(mib, count);
	int fd = open_file(path, O_RDONLY);

	for (uint64_t i = 0; i < count; i++) {
		errno = 0;
		if (pread(fd, buffer, PAGE, (off_t)chosen[i] * PAGE) != (ssize_t)PAGE)
			fail("pread", path);
		page_check(buffer, chosen[i], 0, path);
	}
	close_file(fd, false, path);
	free(chosen);
}

static void rand_write(const char *path, uint64_t mib, uint64_t count)
{
	uint32_t *chosen = chosen_pages(mib, count);
	int fd = open_file(path, O_WRONLY);

	for (uint64_t i = 0; i < count; i++) {
		page_fill(buffer, chosen[i], 1);
		errno = 0;
		if (pwrite(fd, buffer, PAGE, (off_t)chosen[i] * PAGE) != (ssize_t)PAGE)
			fail("pwrite", path);
	}
	close_file(fd, true, path);
	free(chosen);
}

static void rand_verify(const char *path, uint64_t mib, uint64_t count)
{
	uint32_t *chosen = chosen_pages(mib, count);
	bool *changed = calloc(mib * PAGES, sizeof(*changed));

	if (!changed)
		fail("calloc", path);
	for (uint64_t i = 0; i < count; i++)
		changed[chosen[i]] = true;
	read_through(path, mib, changed);
	free(changed);
	free(chosen);
}

static void record_fill(unsigned char *to, uint64_t i)
{
	memset(to, 'a' + (int)(i % 26), RECORD);
	memcpy(to, &i, sizeof(i));
	to[RECORD - 1] = '\n';
}

static void append_records(const char *path, uint64_t count, bool sync_each)
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

static void append(const char *path, uint64_t unused, uint64_t count)
{
	(void)unused;
	append_records(path, count, false);
}

static void append_fsync(const char *path, uint64_t unused, uint64_t count)
{
	(void)unused;
	append_records(path, count, true);
}

static void append_open(const char *path, uint64_t unused, uint64_t count)
{
	(void)unused;
	for (uint64_t i = 0; i < count; i++) {
		int fd = open_file(path, O_WRONLY | O_CREAT | O_APPEND);

		record_fill(buffer, i);
		write_all(fd, buffer, RECORD, path);
		close_file(fd, false, path);
	}
}

static void append_verify(const char *path, uint64_t unused, uint64_t count)
{
	int fd = open_file(path, O_RDONLY);
	unsigned char want[RECORD];

	(void)unused;
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

const struct command file_commands[] = {
	{"seq-write", true, seq_write},
	{"seq-read", true, seq_read},
	{"mmap-read", true, mmap_read},
	{"rand-read", true, rand_read},
	{"rand-write", true, rand_write},
	{"rand-verify", false, rand_verify},
	{"append", true, append},
	{"append-fsync", true, append_fsync},
	{"append-open", true, append_open},
	{"append-verify", false, append_verify},
	{NULL, false, NULL},
};
