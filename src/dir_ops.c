/* dir_ops.c — directories as entries: made, removed, renamed, replaced (by a key domain's root: dir_plant.c). Hides
 * that a byokfs directory is never empty on the backing: it holds .byokfs.d and perhaps litter, so rmdir(2) and
 * rename(2) over it need help.
 *
 * A directory goes in three steps, so that a power cut or another host leaves it either whole or gone: found empty
 * by the plaintext view, renamed to .byokfs.del.*, found empty again (else named back), taken apart with .byokfs.d
 * last. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "dir_internal.h"
#include "log.h"
#include "secret.h"

#define LITTER_DEPTH 8

/* ---- mkdir */

static int mkdir_fill(const struct dir *d, int fd, mode_t mode, const struct dir_owner *owner, uint16_t domain_index,
    const uint8_t id[static 16])
{
	char text[NAME_DIR_ID_TEXT + 1];
	struct stat parent;

	if (fstat(d->fd, &parent))
		return -errno;
	name_dir_make(d->names, domain_index, id, text);
	if (symlinkat(text, fd, NAME_DIR_FILE))
		return -errno;
	return dir_dress(fd, &parent, mode | (parent.st_mode & S_ISGID), owner);
}

int dir_mkdir_temp(const struct dir *d, const char *temp, mode_t mode, int *fd)
{
	/* The owner's bits are needed until .byokfs.d is in place. */
	if (mkdirat(d->fd, temp, mode | 0700))
		return -errno;
	*fd = openat(d->fd, temp, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (*fd >= 0)
		return 0;
	int r = -errno;
	(void)unlinkat(d->fd, temp, AT_REMOVEDIR);
	return r;
}

int dir_mkdir(const struct dir *d, const char *name, size_t len, mode_t mode, const struct dir_owner *owner,
    uint16_t domain_index, struct stat *st)
{
	CLEANUP_FD int fd = -1;
	struct dir_place place;
	char temp[DIR_TEMP];
	uint8_t id[16];
	int r = dir_place_make(&place, d, name, len);

	if (r)
		return r;
	mode &= 07777;
	dir_temp_name(temp, "tmp");
	r = dir_mkdir_temp(d, temp, mode, &fd);
	if (r)
		return r;
	secret_random(id, sizeof(id));
	r = mkdir_fill(d, fd, mode, owner, domain_index, id);
	if (!r)
		r = dir_long_make(&place);
	if (!r)
		r = dir_rename_new(d->fd, temp, d->fd, place.name.entry, true);
	if (r) {
		(void)unlinkat(fd, NAME_DIR_FILE, 0);
		(void)unlinkat(d->fd, temp, AT_REMOVEDIR);
		dir_long_drop(&place);
		return r;
	}
	return fstat(fd, st) ? -errno : 0;
}

/* ---- a directory on its way out */

int victim_open(struct victim *v, int dirfd, const char *entry)
{
	struct stat st;

	if (fstatat(dirfd, entry, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (!S_ISDIR(st.st_mode))
		return -ENOTDIR;
	v->mode = st.st_mode & 07777;
	/* Without root's rights a directory must be ours to read and write before it can be emptied. */
	if (geteuid() && (v->mode & 0700) != 0700)
		v->opened_up = !fchmodat(dirfd, entry, v->mode | 0700, AT_SYMLINK_NOFOLLOW);
	v->fd = openat(dirfd, entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return v->fd < 0 ? -errno : 0;
}

void victim_spare(const struct victim *v)
{
	if (v->opened_up && fchmod(v->fd, v->mode))
		log_warn("cannot give a directory its mode back: %s", strerror(errno));
}

/* Calls fn for each entry but . and ..; stops at the first result other than 0. */
static int each_entry(int fd, int (*fn)(void *arg, const char *entry), void *arg)
{
	_Alignas(struct dir_dirent) char buf[8192];
	ssize_t n;

	if (lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	while ((n = dir_getdents(fd, buf, sizeof(buf))) > 0)
		for (ssize_t at = 0; at < n;) {
			const struct dir_dirent *e = (const void *)(buf + at);
			int r = dir_is_dots(e->d_name) ? 0 : fn(arg, e->d_name);

			if (r)
				return r;
			at += e->d_reclen;
		}
	return (int)n;
}

struct emptiness {
	const struct victim *victim;
	uint8_t id[16];
	bool have_id, foreign;
};

static int see_entry(void *arg, const char *entry)
{
	struct emptiness *e = arg;
	char plain[NAME_MAX_PLAIN + 1];

	if (name_kind(e->victim->names, entry) == NAME_SKIP)
		return 0;
	if (e->have_id && dir_decrypt(e->victim->fd, e->id, e->victim->names, entry, plain) > 0) {
		explicit_bzero(plain, sizeof(plain));
		return -ENOTEMPTY;
	}
	e->foreign = true;
	return 0;
}

int victim_empty(const struct victim *v)
{
	struct emptiness e = { .victim = v };
	char where[DIR_WHERE];
	uint16_t index;
	int r;

	e.have_id = !dir_id_quiet(v->fd, v->names, &index, e.id);
	r = each_entry(v->fd, see_entry, &e);
	if (r || !e.foreign)
		return r;
	if (e.have_id) /* else another key domain's, which may be full of names */
		log_warn("%s: not removed: it holds entries that are not byokfs's", dir_where(v->fd, where));
	return -ENOTEMPTY;
}

struct sweep {
	const struct victim *victim;
	int depth;
	bool removed;
};

static int sweep_entry(void *arg, const char *entry)
{
	struct sweep *s = arg;
	CLEANUP_VICTIM struct victim child = { .fd = -1, .names = s->victim->names };
	int r;

	if (!strcmp(entry, NAME_DIR_FILE) || name_kind(s->victim->names, entry) != NAME_SKIP)
		return 0;
	if (unlinkat(s->victim->fd, entry, 0)) {
		if (errno == ENOENT)
			return 0;
		if (errno != EISDIR && errno != EPERM)
			return -errno;
		r = s->depth < LITTER_DEPTH ? victim_open(&child, s->victim->fd, entry) : -ENOTEMPTY;
		if (!r)
			r = victim_empty(&child);
		if (!r)
			r = victim_take_apart(&child, s->victim->fd, entry, s->depth + 1);
		if (r)
			return r;
	}
	s->removed = true;
	return 0;
}

int victim_take_apart(const struct victim *v, int dirfd, const char *entry, int depth)
{
	struct sweep s = { .victim = v, .depth = depth };
	char id[NAME_DIR_ID_TEXT + 2];
	ssize_t n;
	int r;

	do { /* again, because removal may hide entries from a running iteration */
		s.removed = false;
		r = each_entry(v->fd, sweep_entry, &s);
		if (r)
			return r;
	} while (s.removed);
	n = readlinkat(v->fd, NAME_DIR_FILE, id, sizeof(id) - 1);
	if (unlinkat(v->fd, NAME_DIR_FILE, 0) && errno != ENOENT)
		return -errno;
	if (!unlinkat(dirfd, entry, AT_REMOVEDIR))
		return 0;
	r = errno == EEXIST ? -ENOTEMPTY : -errno;
	id[n > 0 ? n : 0] = 0;
	if (n > 0 && symlinkat(id, v->fd, NAME_DIR_FILE))
		log_err("cannot restore a " NAME_DIR_FILE ": %s", strerror(errno));
	return r;
}

/* The directory is called `entry` now: renamed away, looked at again, removed. On failure it has its name back. */
static int victim_remove(const struct victim *v, int dirfd, const char *entry)
{
	char del[DIR_TEMP];
	int r;

	dir_temp_name(del, "del");
	if (renameat(dirfd, entry, dirfd, del))
		return -errno;
	r = victim_empty(v);
	if (!r)
		r = victim_take_apart(v, dirfd, del, 0);
	if (!r)
		return 0;
	int back = dir_rename_new(dirfd, del, dirfd, entry, true);
	if (back)
		log_err("cannot name directory '%s' back to '%s': %s", del, entry, strerror(-back));
	return r;
}

int dir_rmdir(const struct dir *d, const char *name, size_t len)
{
	CLEANUP_VICTIM struct victim v = { .fd = -1, .names = d->names };
	struct dir_place place;
	int r = dir_place_make(&place, d, name, len);

	if (r)
		return r;
	r = victim_open(&v, d->fd, place.name.entry);
	if (r)
		return r;
	r = victim_empty(&v);
	if (!r)
		r = victim_remove(&v, d->fd, place.name.entry);
	if (r)
		victim_spare(&v);
	else
		dir_long_drop(&place);
	return r;
}

int dir_is_empty(const struct dir *d, const char *name, size_t len)
{
	CLEANUP_VICTIM struct victim v = { .fd = -1, .names = d->names };
	struct dir_place place;
	int r = dir_place_make(&place, d, name, len);

	if (!r)
		r = victim_open(&v, d->fd, place.name.entry);
	if (r)
		return r;
	r = victim_empty(&v);
	victim_spare(&v);
	return r;
}

/* ---- rename */

static int exchange(const struct dir_place *a, const struct dir_place *b)
{
	if (dir_means.no_exchange)
		return -EINVAL;
	return renameat2(a->fd, a->name.entry, b->fd, b->name.entry, RENAME_EXCHANGE) ? -errno : 0;
}

/* The target is never absent: names are exchanged, then what was displaced is removed under the source's old name.
 */
static int replace_by_exchange(const struct dir_place *a, const struct dir_place *b, const struct victim *v)
{
	int r = exchange(a, b);

	if (r)
		return r;
	r = victim_remove(v, a->fd, a->name.entry);
	if (!r)
		return 0;
	int back = exchange(a, b);
	if (back)
		log_err("cannot exchange '%s' and '%s' back: %s", a->name.entry, b->name.entry, strerror(-back));
	return r;
}

static int replace_by_moving(const struct dir_place *a, const struct dir_place *b, const struct victim *v)
{
	char del[DIR_TEMP];
	int r;

	dir_temp_name(del, "del");
	if (renameat(b->fd, b->name.entry, b->fd, del))
		return -errno;
	r = victim_empty(v);
	if (!r)
		r = dir_rename_new(a->fd, a->name.entry, b->fd, b->name.entry, false);
	if (r) {
		int back = dir_rename_new(b->fd, del, b->fd, b->name.entry, true);

		if (back)
			log_err("cannot name directory '%s' back to '%s': %s", del, b->name.entry, strerror(-back));
		return r;
	}
	r = victim_take_apart(v, b->fd, del, 0);
	if (r)
		log_warn("directory '%s' was replaced but cannot be removed: %s", del, strerror(-r));
	return 0;
}

static int replace_directory(const struct dir_place *a, const struct dir_place *b, const struct name_keys *names)
{
	CLEANUP_VICTIM struct victim v = { .fd = -1, .names = names };
	struct stat st;
	int r;

	if (fstatat(a->fd, a->name.entry, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	r = victim_open(&v, b->fd, b->name.entry);
	if (r)
		return r;
	if (!S_ISDIR(st.st_mode))
		return -EISDIR;
	r = victim_empty(&v);
	if (!r) {
		r = replace_by_exchange(a, b, &v);
		if (r == -EINVAL || r == -ENOSYS || r == -EOPNOTSUPP) /* not offered */
			r = replace_by_moving(a, b, &v);
	}
	if (r)
		victim_spare(&v);
	return r;
}

static int rename_places(
    const struct dir_place *a, const struct dir_place *b, const struct name_keys *names, unsigned flags)
{
	if (flags & RENAME_EXCHANGE)
		return exchange(a, b);
	if (flags & RENAME_NOREPLACE)
		return dir_rename_new(a->fd, a->name.entry, b->fd, b->name.entry, false);
	if (!renameat(a->fd, a->name.entry, b->fd, b->name.entry))
		return 0;
	return errno == ENOTEMPTY || errno == EEXIST ? replace_directory(a, b, names) : -errno;
}

int dir_rename(const struct dir *from, const char *name, size_t len, const struct dir *to, const char *newname,
    size_t newlen, unsigned flags)
{
	struct dir_place a, b;
	int r;

	if (flags && flags != RENAME_NOREPLACE && flags != RENAME_EXCHANGE)
		return -EINVAL;
	r = dir_place_make(&a, from, name, len);
	if (!r)
		r = dir_place_make(&b, to, newname, newlen);
	if (!r)
		r = dir_long_make(&b);
	if (r)
		return r;
	r = rename_places(&a, &b, to->names, flags);
	/* Each goes only if its entry is not there: after success, failure, or a rename between links of one file.
	 */
	dir_long_drop(&a);
	dir_long_drop(&b);
	return r;
}
