/* check_store.c — descriptors with both their copies, and markers of mounts. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "cmd.h"
#include "io.h"
#include "job.h"

/* One copy's sequence number, or -errno. The two kinds differ in nothing else that matters here. */
typedef int64_t (*copy_reader)(const char *text, size_t len);

static int64_t read_store_copy(const char *text, size_t len)
{
	struct descriptor_store d;
	int ret = descriptor_store_parse(&d, text, len);
	int64_t seq;

	if (ret < 0)
		return ret;
	seq = (int64_t)(d.seq & INT64_MAX);
	descriptor_store_free(&d);
	return seq;
}

static int64_t read_domain_copy(const char *text, size_t len)
{
	struct descriptor_domain *d = calloc(1, sizeof(*d));
	int64_t seq = d ? descriptor_domain_parse(d, text, len) : -ENOMEM;

	if (seq == 0) {
		seq = (int64_t)(d->seq & INT64_MAX);
		descriptor_domain_free(d);
	}
	free(d);
	return seq;
}

static int64_t read_copy(int dirfd, const char *name, size_t max, copy_reader reader)
{
	char *text CLEANUP_FREE = NULL;
	size_t len = 0;
	int ret = io_read_file(dirfd, name, max, &text, &len);

	return ret < 0 ? ret : reader(text, len);
}

/* One that newer software wrote is not ours to replace. */
static void lost_copy(struct check *c, const char *path, const char *name, int err)
{
	check_say(c, CHECK_WARNING, path, name, "%s; the other copy is intact, the next read-write mount restores it",
	    err == -ENOENT ? "missing" : "damaged");
	if (err != -EPROTONOSUPPORT)
		check_fix(c, FIX_COPY, false, path, name, "a copy of a descriptor was lost");
}

static void check_pair(struct check *c, int dirfd, const char *path, const char *name, size_t max, copy_reader reader)
{
	char copy[80];
	int64_t a, b;

	(void)snprintf(copy, sizeof(copy), "%s~", name);
	a = read_copy(dirfd, name, max, reader);
	b = read_copy(dirfd, copy, max, reader);
	if (a < 0 && b < 0)
		check_say(c, CHECK_DAMAGE, path, name, "descriptor and copy are both missing or damaged");
	else if (a < 0 || b < 0)
		lost_copy(c, path, a < 0 ? name : copy, (int)(a < 0 ? a : b));
	else if (a != b)
		check_say(c, CHECK_WARNING, path, name,
		    "descriptor (seq %" PRId64 ") and copy (seq %" PRId64 ") differ: a change was interrupted", a, b);
}

static void check_rotation(struct check *c, const struct descriptor_domain *d, const char *name)
{
	const struct descriptor_slot *other = descriptor_other_slot(d);
	char *from CLEANUP_FREE = other ? malloc(4 * strlen(other->key) + 1) : NULL;
	char *to CLEANUP_FREE = other ? malloc(4 * DESCRIPTOR_KEY_MAX + 1) : NULL;

	if (!from || !to)
		return;
	cmd_escape(from, other->key);
	cmd_escape(to, descriptor_ruling_slot(d)->key);
	check_say(c, CHECK_WARNING, ".byokfs/domains", name, "a rotation from %.150s to %.150s is under way", from, to);
}

/* Index, ids and commitment as the store descriptor has them: in the copy that counts, else in the other. */
static void check_belongs(struct check *c, const struct descriptor_domain_line *line, const char *name)
{
	struct descriptor_domain *d CLEANUP_FREE = calloc(1, sizeof(*d));
	int ret = d ? store_read_domain(c->store, line, 0, d) : -ENOMEM;

	if (ret == 0) {
		check_rotation(c, d, name);
		descriptor_domain_free(d);
	} else if (ret == -ENOMEM)
		c->err = ret;
	else if (ret == -EBADMSG)
		check_say(c, CHECK_DAMAGE, ".byokfs/domains", name,
		    "is the descriptor of another key domain than the store descriptor says");
}

static bool has_line(const struct check *c, const char *name)
{
	char hex[2 * CONTEXT_ID + 1];
	size_t len = strlen(name);

	if (len > 0 && name[len - 1] == '~')
		len--;
	for (size_t i = 0; i < c->store->desc.n; i++) {
		bytes_hex(hex, c->store->desc.domains[i].domain, CONTEXT_ID);
		if (len == 2 * CONTEXT_ID && strncmp(hex, name, len) == 0)
			return true;
	}
	return false;
}

/* What is in `.byokfs` or one of its directories and is nobody's. A sealed key is never thrown away. */
static void check_strays(struct check *c, const char *path, const char *sub, bool descriptors)
{
	int fd = openat(c->store->meta_fd, sub, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *e;

	while (dir && (e = readdir(dir)) && !c->live) {
		if (strncmp(e->d_name, ".byokfs.tmp.", 12) == 0) {
			check_say(c, CHECK_WARNING, path, e->d_name, "a descriptor that was never finished");
			check_fix(c, FIX_REMOVE, false, path, e->d_name, "a descriptor that was never finished");
		} else if (descriptors && e->d_name[0] != '.' && !has_line(c, e->d_name)) {
			check_say(c, CHECK_WARNING, path, e->d_name,
			    "descriptor of a key domain that the store descriptor does not know");
			check_fix(c, FIX_MOVE, false, path, e->d_name,
			    "descriptor of a key domain that the store descriptor does not know");
		}
	}
	if (dir)
		(void)closedir(dir);
	else if (fd >= 0)
		(void)close(fd);
}

void check_descriptors(struct check *c)
{
	const struct descriptor_store *d = &c->store->desc;
	int fd CLEANUP_FD = openat(c->store->meta_fd, "domains", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	check_pair(c, c->store->meta_fd, ".byokfs", "store", DESCRIPTOR_STORE_BYTES, read_store_copy);
	if (fd < 0) {
		check_say(c, CHECK_DAMAGE, ".byokfs", "domains", "cannot be opened: %s", strerror(errno));
		return;
	}
	for (size_t i = 0; i < d->n; i++) {
		char name[2 * CONTEXT_ID + 1];

		bytes_hex(name, d->domains[i].domain, CONTEXT_ID);
		check_pair(c, fd, ".byokfs/domains", name, DESCRIPTOR_DOMAIN_BYTES, read_domain_copy);
		check_belongs(c, &d->domains[i], name);
	}
}

void check_strays_of_store(struct check *c)
{
	check_strays(c, ".byokfs", ".", false);
	check_strays(c, ".byokfs/domains", "domains", true);
}

/* Does somebody hold the marker's lock? */
static bool is_held(int dirfd, const char *name)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd CLEANUP_FD = openat(dirfd, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	return fd >= 0 && fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

static void check_marker(struct check *c, int dirfd, const char *name)
{
	struct descriptor_marker marker = { 0 };
	char *text CLEANUP_FREE = NULL;
	size_t len = 0;
	struct stat st;
	int ret;

	if (strcmp(name, c->store->marker) == 0) /* a repair's own */
		return;
	ret = io_read_file(dirfd, name, 4096, &text, &len);
	if (ret == -ENOENT)
		return;
	c->doubt = true;
	if (is_held(dirfd, name)) {
		c->live = true;
		check_say(c, CHECK_WARNING, ".byokfs/mounts", name,
		    "the store is mounted: what is being written may look unfinished");
		return;
	}
	if (ret == 0)
		ret = descriptor_marker_parse(&marker, text, len);
	if (ret < 0 || !bytes_equal(marker.store, c->store->desc.store, CONTEXT_ID) ||
	    fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		check_say(c, CHECK_WARNING, ".byokfs/mounts", name, "marker of a mount is damaged or foreign");
	else if (marker.inode != st.st_ino)
		check_say(c, CHECK_WARNING, ".byokfs/mounts", name,
		    "the store was copied while mounted: sizes are in doubt until files are opened");
	else
		check_say(c, CHECK_WARNING, ".byokfs/mounts", name,
		    "a mount ended without saying goodbye: sizes are in doubt until files are opened");
}

/* Records of rotations: nothing depends on them. */
static void check_job(struct check *c, int dirfd, const char *name)
{
	char *text CLEANUP_FREE = NULL;
	struct job j;
	size_t len = 0;
	int ret = io_read_file(dirfd, name, JOB_BYTES, &text, &len);

	if (ret == -ENOENT)
		return;
	if (ret == 0)
		ret = job_parse(&j, text, len);
	if (ret < 0)
		check_say(c, CHECK_WARNING, ".byokfs/jobs", name,
		    "the record of a rotation is damaged: 'byokfsctl history' leaves it out");
	else
		job_free(&j);
}

void check_jobs(struct check *c)
{
	int fd = openat(c->store->meta_fd, "jobs", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *entry;

	if (!dir) {
		if (fd >= 0 || errno != ENOENT)
			check_say(c, CHECK_WARNING, ".byokfs", "jobs", "cannot be opened: %s", strerror(errno));
		cleanup_fd(&fd);
		return;
	}
	while ((entry = readdir(dir)))
		if (job_is_id(entry->d_name))
			check_job(c, dirfd(dir), entry->d_name);
	(void)closedir(dir);
}

void check_markers(struct check *c)
{
	int fd = openat(c->store->meta_fd, "mounts", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	const struct dirent *entry;

	if (!dir) {
		check_say(c, CHECK_DAMAGE, ".byokfs", "mounts", "cannot be opened: %s", strerror(errno));
		if (fd >= 0)
			(void)close(fd);
		return;
	}
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			check_marker(c, dirfd(dir), entry->d_name);
	(void)closedir(dir);
}
