/* backing_fixture.h — keys counted up as in byokfs-format(5), section 17, and a scratch directory that goes away
 * afterwards. */
#ifndef BYOKFS_BACKING_FIXTURE_H
#define BYOKFS_BACKING_FIXTURE_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "dir.h"
#include "log.h"
#include "secret.h"

struct backing {
	char path[128];
	int fd;
	struct context_ids ids;
	struct domain_keys keys;
	struct name_keys *names;
	struct dir root;
};

static inline void backing_count_up(uint8_t *p, unsigned first, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(first + i);
}

static inline void backing_open(struct backing *b, enum name_mode mode)
{
	uint8_t secret[32];
	char text[NAME_DIR_ID_TEXT + 1];
	const char *tmp = getenv("TMPDIR");

	memset(b, 0, sizeof(*b));
	b->ids.suite = 1;
	backing_count_up(secret, 0x20, 32);
	backing_count_up(b->ids.store, 0xa0, 16);
	backing_count_up(b->ids.domain, 0xb0, 16);
	backing_count_up(b->root.id, 0xd0, 16);
	assert_int_equal(kdf_domain(&b->keys, secret, &b->ids), 0);
	assert_int_equal(name_open(&b->names, mode, &b->keys, &b->ids), 0);
	(void)snprintf(b->path, sizeof(b->path), "%.90s/byokfs-test-XXXXXX", tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(b->path));
	b->fd = open(b->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(b->fd >= 0);
	name_dir_make(b->names, 0, b->root.id, text);
	assert_int_equal(symlinkat(text, b->fd, NAME_DIR_FILE), 0);
	b->root.fd = b->fd;
	b->root.names = b->names;
}

static inline int backing_remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static inline void backing_remove_path(const char *path)
{
	(void)nftw(path, backing_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void backing_close(struct backing *b)
{
	name_free(b->names);
	(void)close(b->fd);
	backing_remove_path(b->path);
}

/* A directory's view by its plain name, opened for the test: close fd. */
static inline struct dir backing_sub(const struct dir *parent, const char *name)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct dir d = { .names = parent->names };
	uint16_t index;
	struct stat st;

	assert_int_equal(dir_stat(parent, name, strlen(name), &st, entry), 0);
	d.fd = openat(parent->fd, entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	assert_true(d.fd >= 0);
	assert_int_equal(dir_read_id(d.fd, d.names, &index, d.id), 0);
	return d;
}

static inline int backing_mkdir(const struct dir *parent, const char *name)
{
	struct dir_owner nobody = { .set = false };
	struct stat st;

	return dir_mkdir(parent, name, strlen(name), 0755, &nobody, 0, &st);
}

/* An empty file, closed again. */
static inline int backing_create(const struct dir *d, const char *name)
{
	static const uint8_t page[LAYOUT_PAGE] = { 1 };
	struct dir_owner nobody = { .set = false };
	struct stat st;
	int fd, r = dir_create(d, name, strlen(name), page, 0644, &nobody, &fd, &st);

	if (!r)
		(void)close(fd);
	return r;
}

static inline int backing_exists(const struct dir *d, const char *name)
{
	struct stat st;

	return dir_stat(d, name, strlen(name), &st, NULL);
}

/* Entries on the backing, . and .. and .byokfs.d not counted. */
static inline int backing_entries_fd(int fd)
{
	int n = 0, copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fdopendir(copy);
	const struct dirent *e;

	assert_non_null(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..") && strcmp(e->d_name, NAME_DIR_FILE);
	(void)closedir(d);
	return n;
}

static inline int backing_main_setup(void **state)
{
	(void)state;
	(void)umask(0);
	log_setup("test", LOG_LEVEL_ERR, true);
	return 0;
}

#endif
