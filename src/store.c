/* store.c — a store from opening to closing. Hides the descriptors' places, and what is checked
 * before and after the domain's keys are known. Copies are in store_copies.c, mount markers and doubt in
 * store_marker.c, locks in store_lock.c, creation in store_create.c. */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#include "bytes.h"
#include "dir.h"
#include "io.h"
#include "log.h"
#include "store_internal.h"

int store_fail(char *why, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(why, STORE_WHY, fmt, ap);
	va_end(ap);
	return err;
}

#define CANNOT_OPEN "cannot open store '%.200s': "

int store_open_dir(int dirfd, const char *name)
{
	int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* ---- the backing */

/* Physical block size of the device, 0 when not visible. */
static unsigned long device_block(int fd)
{
	unsigned long size = 0;
	char path[96];
	struct stat st;

	if (fstat(fd, &st))
		return 0;
	for (int i = 0; i < 2 && !size; i++) {
		(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/physical_block_size", major(st.st_dev),
		    minor(st.st_dev), i ? "../" : ""); /* a partition's queue is its disk's */
		FILE *f = fopen(path, "re");

		if (!f)
			continue;
		if (fscanf(f, "%lu", &size) != 1)
			size = 0;
		(void)fclose(f);
	}
	return size;
}

int store_check_backing(int fd, const char *path, bool torn_ok, const char *verb, char *why)
{
	struct statvfs vfs;
	unsigned long device;

	if (fstatvfs(fd, &vfs))
		return store_fail(why, -errno, "cannot %s store '%.200s': statvfs: %s", verb, path, strerror(errno));
	if (torn_ok)
		return 0;
	if (vfs.f_bsize < STORE_BLOCK_MIN)
		return store_fail(why, -EOPNOTSUPP,
		    "cannot %s store '%.200s': its filesystem has blocks of %lu bytes, under %u, and may tear "
		    "pages in a power cut (mount.torn_ok accepts that)",
		    verb, path, vfs.f_bsize, STORE_BLOCK_MIN);
	device = device_block(fd);
	if (device && device < STORE_BLOCK_MIN)
		log_warn("store '%s': its device claims physical blocks of %lu bytes only: 4096-byte writes may "
		         "tear in a power cut",
		    path, device);
	return 0;
}

/* ---- open */

/* The store's and the domain's descriptor must name each other. */
static int check_pair(
    const struct descriptor_store *s, const struct descriptor_domain_line *line, const struct descriptor_domain *d)
{
	bool same = d->index == line->index && bytes_equal(d->store, s->store, 16) &&
	    bytes_equal(d->domain, line->domain, 16) && bytes_equal(d->commit, line->commit, 32);

	return same ? 0 : -EBADMSG;
}

static int load_domain(const struct store *s, const struct descriptor_store *desc, const struct domain_keys *keys,
    struct descriptor_domain *out)
{
	struct copies c;
	int r;

	if (!desc->n || desc->domains[0].index)
		return -EINVAL;
	r = copies_of_domain(&c, s->meta_fd, desc->domains[0].domain);
	if (r)
		return r;
	for (int rank = 0; rank < 2; rank++) {
		int loaded = copies_load(&c, rank, keys, out);

		if (loaded) {
			r = rank ? r : loaded;
			break;
		}
		r = check_pair(desc, desc->domains, out);
		if (!r)
			break;
		descriptor_domain_free(out);
	}
	(void)close(c.dirfd);
	return r;
}

static const char *reason(int r)
{
	switch (r) {
	case -EPROTONOSUPPORT:
		return "written by another version of byokfs";
	case -EINVAL:
		return "both copies are damaged";
	case -EBADMSG:
		return "it does not belong to this store";
	default:
		return strerror(-r);
	}
}

/* Both descriptors, unauthenticated: the newest pair that fits together. */
static int load_descriptors(struct store *s, char *why)
{
	struct copies c;
	int first = 0, r;

	copies_of_store(&c, s->meta_fd);
	for (int rank = 0; rank < 2; rank++) {
		r = copies_load(&c, rank, NULL, &s->desc);
		if (r && rank)
			return first;
		if (r)
			return store_fail(why, r, CANNOT_OPEN "store descriptor: %s", s->path, reason(r));
		r = load_domain(s, &s->desc, NULL, &s->domain);
		if (!r)
			return 0;
		descriptor_store_free(&s->desc);
		memset(&s->desc, 0, sizeof(s->desc));
		if (!rank)
			first = store_fail(why, r, CANNOT_OPEN "domain descriptor: %s", s->path, reason(r));
	}
	return first;
}

static int open_root(struct store *s, const char *path, char *why)
{
	s->path = *path == '/' ? strdup(path) : realpath(path, NULL);
	if (!s->path)
		return store_fail(why, -errno, CANNOT_OPEN "%s", path, strerror(errno));
	s->fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->fd < 0)
		return store_fail(why, errno == ENOTDIR ? -EINVAL : -errno, CANNOT_OPEN "%s", s->path, strerror(errno));
	s->meta_fd = store_open_dir(s->fd, STORE_META);
	if (s->meta_fd == -ENOENT)
		return store_fail(why, -ENOENT,
		    CANNOT_OPEN "not a byokfs store: it has no " STORE_META " (make one with 'byokfsctl init')",
		    s->path);
	if (s->meta_fd == -ENOTDIR || s->meta_fd == -ELOOP)
		return store_fail(why, -EINVAL, CANNOT_OPEN STORE_META " is not a directory", s->path);
	if (s->meta_fd < 0)
		return store_fail(why, s->meta_fd, CANNOT_OPEN STORE_META ": %s", s->path, strerror(-s->meta_fd));
	return 0;
}

static void release(struct store *s)
{
	descriptor_store_free(&s->desc);
	descriptor_domain_free(&s->domain);
	cleanup_fd(&s->marker_fd);
	cleanup_fd(&s->lock_fd);
	cleanup_fd(&s->meta_fd);
	cleanup_fd(&s->fd);
	free(s->path);
	memset(s, 0, sizeof(*s));
	s->fd = s->meta_fd = s->lock_fd = s->marker_fd = -1;
}

int store_open(struct store *s, const char *path, const struct store_options *o, char *why)
{
	int r;

	memset(s, 0, sizeof(*s));
	s->fd = s->meta_fd = s->lock_fd = s->marker_fd = -1;
	s->readonly = o->readonly;
	s->shared = o->shared;
	r = open_root(s, path, why);
	if (!r && !s->readonly) {
		r = store_check_backing(s->fd, s->path, o->torn_ok, "open", why);
		if (!r) /* before reading: a rotation may be running */
			r = store_take_lock(s, why);
	}
	if (!r)
		r = load_descriptors(s, why);
	if (r) {
		release(s);
		return r;
	}
	s->ids.suite = s->desc.suite;
	memcpy(s->ids.store, s->desc.store, sizeof(s->ids.store));
	memcpy(s->ids.domain, s->domain.domain, sizeof(s->ids.domain));
	return 0;
}

/* ---- authenticate */

/* The copies whose MACs are good, should the ones read before have been forged. They must tell the same ids. */
static int reload(struct store *s, const struct domain_keys *keys)
{
	CLEANUP_FREE struct descriptor_domain *domain = calloc(1, sizeof(*domain));
	struct descriptor_store desc;
	struct copies c;
	int r;

	if (!domain)
		return -ENOMEM;
	copies_of_store(&c, s->meta_fd);
	r = copies_load(&c, 0, keys, &desc);
	if (r)
		return r;
	r = load_domain(s, &desc, keys, domain);
	if (!r &&
	    (desc.suite != s->ids.suite || desc.names != s->desc.names || !bytes_equal(desc.store, s->ids.store, 16) ||
	        !bytes_equal(domain->domain, s->ids.domain, 16))) {
		descriptor_domain_free(domain);
		r = -EBADMSG;
	}
	if (r) {
		descriptor_store_free(&desc);
		return r;
	}
	descriptor_store_free(&s->desc);
	descriptor_domain_free(&s->domain);
	s->desc = desc;
	s->domain = *domain;
	return 0;
}

/* Do the two files hold the same? */
static bool same_copies(const struct copies *c)
{
	CLEANUP_FREE char *one = NULL;
	CLEANUP_FREE char *two = NULL;
	size_t n, m;
	char name[48];

	(void)snprintf(name, sizeof(name), "%s~", c->name);
	return !io_read_file(c->dirfd, c->name, DESCRIPTOR_DOMAIN_BYTES, &one, &n) &&
	    !io_read_file(c->dirfd, name, DESCRIPTOR_DOMAIN_BYTES, &two, &m) && n == m && !memcmp(one, two, n);
}

int store_other_domain(struct store *s)
{
	CLEANUP_FREE struct descriptor_domain *other = calloc(1, sizeof(*other));
	struct copies c;
	int r = other ? copies_of_domain(&c, s->meta_fd, s->ids.domain) : -ENOMEM;

	if (r)
		return r;
	r = same_copies(&c) ? -ENOENT : copies_load(&c, 1, NULL, other);
	(void)close(c.dirfd);
	if (!r && check_pair(&s->desc, s->desc.domains, other)) {
		descriptor_domain_free(other);
		r = -ENOENT;
	}
	if (r)
		return r;
	descriptor_domain_free(&s->domain);
	s->domain = *other;
	return 0;
}

int store_read_domain(
    const struct store *s, const struct descriptor_domain_line *line, int rank, struct descriptor_domain *out)
{
	struct copies c;
	int r = copies_of_domain(&c, s->meta_fd, line->domain);

	if (r)
		return r;
	r = rank && same_copies(&c) ? -ENOENT : copies_load(&c, rank, NULL, out);
	(void)close(c.dirfd);
	if (!r && check_pair(&s->desc, line, out)) {
		descriptor_domain_free(out);
		r = -EBADMSG;
	}
	return r;
}

int store_restore_domain(const struct store *s, struct descriptor_domain *d)
{
	struct copies c;
	int r;

	if (s->readonly)
		return 0;
	r = copies_of_domain(&c, s->meta_fd, d->domain);
	if (r)
		return r;
	r = copies_restore(&c, d);
	(void)close(c.dirfd);
	return r;
}

static int check_root(const struct store *s, const struct name_keys *names)
{
	uint16_t index;
	uint8_t id[16];
	int r = dir_read_id(s->fd, names, &index, id);

	if (r)
		return -EBADMSG;
	return !index && bytes_equal(id, s->desc.domains[0].dirid, sizeof(id)) ? 0 : -EBADMSG;
}

static int restore(struct store *s)
{
	struct copies c;
	int r;

	copies_of_store(&c, s->meta_fd);
	r = copies_restore(&c, &s->desc);
	return r ? r : store_restore_domain(s, &s->domain);
}

/* Other hosts may be doing the same: each looks anew when it is its turn. */
static int restore_in_turn(struct store *s, const struct domain_keys *keys)
{
	int r = store_turn_begin(s);

	if (r)
		return r;
	r = s->shared ? reload(s, keys) : 0;
	if (!r)
		r = restore(s);
	store_turn_end(s);
	return r;
}

int store_authenticate(struct store *s, const struct domain_keys *keys, const struct name_keys *names, char *why)
{
	int r;

	if (!bytes_equal(keys->commit, s->desc.domains[0].commit, sizeof(keys->commit)))
		return store_fail(
		    why, -EBADMSG, CANNOT_OPEN "the domain's key is not the one the store was made with", s->path);
	if (descriptor_store_verify(&s->desc, keys) || descriptor_domain_verify(&s->domain, keys)) {
		r = reload(s, keys);
		if (r)
			return store_fail(why, r == -ENOMEM ? r : -EBADMSG,
			    CANNOT_OPEN "its descriptors were tampered with: %s", s->path,
			    r == -ENOMEM ? strerror(-r) : "no copy authenticates");
	}
	r = check_root(s, names);
	if (r)
		return store_fail(why, r, CANNOT_OPEN NAME_DIR_FILE " of its root is missing, or not its own", s->path);
	if (s->readonly)
		return 0;
	r = restore_in_turn(s, keys);
	if (r)
		return store_fail(
		    why, r, CANNOT_OPEN "cannot restore a copy of its descriptors: %s", s->path, strerror(-r));
	return 0;
}

/* ---- the rest */

void store_close(struct store *s, bool clean)
{
	int r = 0;

	if (clean && s->marker_fd >= 0) {
		r = syncfs(s->fd) ? -errno : 0;
		if (!r)
			r = store_unmark(s);
	}
	if (r)
		log_err("store '%s': not closed cleanly, sizes will be checked at the next mount: %s", s->path,
		    strerror(-r));
	release(s);
}
