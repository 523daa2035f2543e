/* store_create.c — an empty directory becomes a store. Hides the order of writing: .byokfs/store comes last, so
 * that an interrupted creation is not a store yet, and what was written is taken away again. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "dir_internal.h"
#include "io.h"
#include "log.h"
#include "store_internal.h"

#define CANNOT_CREATE "cannot create store '%.200s': "

/* The first entry that is not tolerated into name, or "". */
static int first_entry(int fd, char name[static 256])
{
	int r = 0, copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = copy < 0 ? NULL : fdopendir(copy);
	const struct dirent *e;

	if (!d) {
		r = -errno;
		cleanup_fd(&copy);
		return r;
	}
	*name = 0;
	while (!*name && (errno = 0, e = readdir(d)))
		if (!dir_is_dots(e->d_name) && strcmp(e->d_name, "lost+found") != 0)
			(void)snprintf(name, 256, "%.255s", e->d_name);
	if (!*name)
		r = -errno;
	(void)closedir(d);
	return r;
}

static int check_empty(int fd, const char *path, char *why)
{
	char name[256] = "";
	struct stat st;
	int r;

	if (!fstatat(fd, STORE_META, &st, AT_SYMLINK_NOFOLLOW))
		return store_fail(why, -EEXIST, CANNOT_CREATE "it is a byokfs store already", path);
	r = first_entry(fd, name);
	if (r)
		return store_fail(why, r, CANNOT_CREATE "%s", path, strerror(-r));
	if (*name)
		return store_fail(
		    why, -ENOTEMPTY, CANNOT_CREATE "the directory is not empty: it holds '%.100s'", path, name);
	if (faccessat(fd, ".", W_OK | X_OK, AT_EACCESS))
		return store_fail(why, -errno, CANNOT_CREATE "%s", path, strerror(errno));
	return 0;
}

static int open_target(const char *path, char *why)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return store_fail(why, errno == ENOTDIR ? -EINVAL : -errno, CANNOT_CREATE "%s", path, strerror(errno));
	return fd;
}

int store_creatable(const char *path, bool torn_ok, char *why)
{
	CLEANUP_FD int fd = open_target(path, why);
	int r;

	if (fd < 0)
		return fd;
	r = store_check_backing(fd, path, torn_ok, "create", why);
	return r ? r : check_empty(fd, path, why);
}

int store_first_domain(struct descriptor_domain *d, const struct context_ids *ids, const struct descriptor_slot *slot,
    const struct context_extra *extra, const struct domain_keys *keys)
{
	memset(d, 0, sizeof(*d));
	d->gen = calloc(1, sizeof(*d->gen));
	if (!d->gen)
		return -ENOMEM;
	memcpy(d->store, ids->store, sizeof(d->store));
	memcpy(d->domain, ids->domain, sizeof(d->domain));
	memcpy(d->commit, keys->commit, sizeof(d->commit));
	d->created = io_unix_time();
	d->seq = 1;
	d->slot[0] = *slot;
	if (!d->slot[0].context)
		d->slot[0].context = 1;
	d->ngen = 1;
	d->gen[0].number = d->slot[0].context;
	if (extra)
		d->gen[0].extra = *extra;
	return 0;
}

static int write_domain(int meta_fd, const struct store_create *p, int64_t now)
{
	CLEANUP_FREE struct descriptor_domain *d = calloc(1, sizeof(*d));
	struct copies c;
	int r = d ? store_first_domain(d, &p->ids, &p->slot, p->extra, p->keys) : -ENOMEM;

	if (r)
		return r;
	d->seal = p->seal;
	d->created = now;
	r = copies_of_domain(&c, meta_fd, p->ids.domain);
	if (!r) {
		r = copies_write(&c, d, p->keys);
		(void)close(c.dirfd);
	}
	descriptor_domain_free(d);
	return r;
}

static int write_store(int meta_fd, const struct store_create *p, int64_t now)
{
	struct descriptor_domain_line line = { .index = 0 };
	struct descriptor_store s = {
		.suite = p->ids.suite, .names = p->names, .created = now, .seq = 1, .n = 1, .domains = &line
	};
	struct copies c;

	memcpy(s.store, p->ids.store, sizeof(s.store));
	memcpy(line.domain, p->ids.domain, sizeof(line.domain));
	memcpy(line.dirid, p->dirid, sizeof(line.dirid));
	memcpy(line.commit, p->keys->commit, sizeof(line.commit));
	(void)snprintf(s.by, sizeof(s.by), "%s", p->by);
	copies_of_store(&c, meta_fd);
	return copies_write(&c, &s, p->keys);
}

static int lay_out(int fd, int meta_fd, const struct store_create *p)
{
	char text[NAME_DIR_ID_TEXT + 1];
	CLEANUP_FD int lock = -1;

	if (mkdirat(meta_fd, STORE_DOMAINS, 0700) || mkdirat(meta_fd, STORE_MOUNTS, 0700))
		return -errno;
	lock = openat(meta_fd, STORE_LOCK, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (lock < 0)
		return -errno;
	name_dir_make(p->name_keys, 0, p->dirid, text);
	return symlinkat(text, fd, NAME_DIR_FILE) ? -errno : 0;
}

static int write_all(int fd, int meta_fd, const struct store_create *p)
{
	int64_t now = io_unix_time();
	int r = lay_out(fd, meta_fd, p);

	if (!r)
		r = write_domain(meta_fd, p, now);
	if (!r && (fsync(meta_fd) || fsync(fd)))
		r = -errno;
	if (!r)
		r = write_store(meta_fd, p, now);
	return r;
}

/* Everything that lay_out and write_* may have made, by name. */
static void undo(int fd, int meta_fd, const struct store_create *p)
{
	struct copies c;

	if (!copies_of_domain(&c, meta_fd, p->ids.domain)) {
		char other[48];

		(void)snprintf(other, sizeof(other), "%s~", c.name);
		(void)unlinkat(c.dirfd, c.name, 0);
		(void)unlinkat(c.dirfd, other, 0);
		(void)close(c.dirfd);
	}
	(void)unlinkat(meta_fd, STORE_FILE, 0);
	(void)unlinkat(meta_fd, STORE_FILE "~", 0);
	(void)unlinkat(meta_fd, STORE_LOCK, 0);
	(void)unlinkat(meta_fd, STORE_DOMAINS, AT_REMOVEDIR);
	(void)unlinkat(meta_fd, STORE_MOUNTS, AT_REMOVEDIR);
	(void)unlinkat(fd, NAME_DIR_FILE, 0);
	if (unlinkat(fd, STORE_META, AT_REMOVEDIR))
		log_warn("cannot remove " STORE_META " again: %s", strerror(errno));
}

int store_create(const char *path, const struct store_create *p, char *why)
{
	CLEANUP_FD int fd = open_target(path, why);
	CLEANUP_FD int meta_fd = -1;
	int r;

	if (fd < 0)
		return fd;
	r = check_empty(fd, path, why);
	if (r)
		return r;
	if (mkdirat(fd, STORE_META, 0700)) /* also decides between two that try at once */
		return store_fail(why, -errno, CANNOT_CREATE "%s", path, strerror(errno));
	meta_fd = store_open_dir(fd, STORE_META);
	r = meta_fd < 0 ? meta_fd : write_all(fd, meta_fd, p);
	if (!r)
		return 0;
	if (meta_fd >= 0)
		undo(fd, meta_fd, p);
	return store_fail(why, r, CANNOT_CREATE "%s", path, strerror(-r));
}
