/* dir_plant.c — an empty directory gives its place to the root of a nested key domain. Hides the order: the new one is
 * complete before anybody can see it, the names are exchanged, and only then is the old one looked at again and taken
 * apart. What somebody put into either meanwhile keeps a name that users can see. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "bytes.h"
#include "dir_internal.h"
#include "log.h"
#include "secret.h"

#define KEPT_TRIES 4
#define KEPT_ROOM  16u /* ".kept-" and 8 hex digits */

/* As the old directory looks, but for its id. Times last: everything else moves them. */
static int root_fill(const struct dir_root *root, const struct victim *old, int fd)
{
	char text[NAME_DIR_ID_TEXT + 1];
	struct stat st, mine;

	if (fstat(old->fd, &st) || fstat(fd, &mine))
		return -errno;
	name_dir_make(root->names, root->domain_index, root->id, text);
	if (symlinkat(text, fd, NAME_DIR_FILE))
		return -errno;
	if ((st.st_uid != mine.st_uid || st.st_gid != mine.st_gid) && fchown(fd, st.st_uid, st.st_gid))
		return -errno;
	int r = root->dress ? root->dress(root->arg, old->fd, fd) : 0;

	if (r)
		return r;
	const struct timespec times[2] = { st.st_atim, st.st_mtim };

	if (fchmod(fd, old->mode) || futimens(fd, times) || fsync(fd))
		return -errno;
	return 0;
}

static int swap_by_moving(const struct dir_place *place, const char *temp)
{
	char del[DIR_TEMP];
	int r;

	dir_temp_name(del, "del");
	if (renameat(place->fd, place->name.entry, place->fd, del))
		return -errno;
	r = dir_rename_new(place->fd, temp, place->fd, place->name.entry, true);
	if (!r && renameat(place->fd, del, place->fd, temp) == 0)
		return 0;
	if (!r) {
		r = -errno;
		if (renameat(place->fd, place->name.entry, place->fd, temp))
			log_err("cannot name '%s' back to '%s': %s", place->name.entry, temp, strerror(errno));
	}
	if (dir_rename_new(place->fd, del, place->fd, place->name.entry, true))
		log_err("cannot name directory '%s' back to '%s'", del, place->name.entry);
	return r;
}

/* Exchanges the two, or leaves both where they are. */
static int swap(const struct dir_place *place, const char *temp)
{
	int r = dir_means.no_exchange                                                   ? -EINVAL
	    : renameat2(place->fd, temp, place->fd, place->name.entry, RENAME_EXCHANGE) ? -errno
	                                                                                : 0;

	return r == -EINVAL || r == -ENOSYS || r == -EOPNOTSUPP ? swap_by_moving(place, temp) : r;
}

/* After the exchange: what is called temp must be the old one, still empty, and goes. */
static int remove_old(const struct dir_place *place, const char *temp, const struct victim *old)
{
	struct stat was, is;
	int r;

	if (fstat(old->fd, &was) || fstatat(place->fd, temp, &is, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (was.st_dev != is.st_dev || was.st_ino != is.st_ino)
		return -ESTALE;
	r = victim_empty(old);
	if (!r && fsync(place->fd))
		r = -errno;
	return r ? r : victim_take_apart(old, place->fd, temp, 0);
}

/* What is called temp holds something: it gets a name that users see. */
static void keep(const struct dir *d, const char *name, size_t len, const char *temp, char *kept)
{
	struct dir_place place;
	uint8_t salt[4];
	char hex[9];
	int r = -EEXIST;

	if (len + KEPT_ROOM > NAME_MAX_PLAIN) {
		name = "directory";
		len = strlen(name);
	}
	for (int i = 0; i < KEPT_TRIES && r == -EEXIST; i++) {
		secret_random(salt, sizeof(salt));
		bytes_hex(hex, salt, sizeof(salt));
		(void)snprintf(kept, NAME_MAX_PLAIN + 1, "%.*s.kept-%s", (int)len, name, hex);
		r = dir_place_make(&place, d, kept, strlen(kept));
		if (!r)
			r = dir_long_make(&place);
		if (!r)
			r = dir_rename_new(d->fd, temp, d->fd, place.name.entry, true);
	}
	if (r)
		log_err("directory '%s' is not empty and cannot get another name: %s", temp, strerror(-r));
	else
		log_err("somebody used a directory while it became a key domain's root: it was kept as '%s'",
		    place.name.entry);
	if (r)
		(void)snprintf(kept, NAME_MAX_PLAIN + 1, "%s", temp);
}

/* The old one gets its name back, and the new one goes; unless somebody has used it. */
static void undo(const struct dir *d, const char *name, size_t len, const struct dir_place *place, const char *temp,
    const struct dir_root *root, char *kept)
{
	CLEANUP_VICTIM struct victim made = { .fd = -1, .names = root->names };
	int r = swap(place, temp);

	if (r) {
		log_err("cannot exchange '%s' and '%s' back: %s", place->name.entry, temp, strerror(-r));
	} else {
		r = victim_open(&made, d->fd, temp);
		if (!r)
			r = victim_empty(&made);
		if (!r)
			r = victim_take_apart(&made, d->fd, temp, 0);
		if (r)
			victim_spare(&made);
	}
	if (r)
		keep(d, name, len, temp, kept);
}

/* The directory that was meant, and empty? */
static int meant(const struct dir_root *root, const struct victim *v)
{
	struct stat st;

	if (fstat(v->fd, &st))
		return -errno;
	return st.st_dev == root->dev && st.st_ino == root->ino ? victim_empty(v) : -ESTALE;
}

int dir_plant(const struct dir *d, const char *name, size_t len, const struct dir_root *root, int *old, char *kept)
{
	CLEANUP_VICTIM struct victim v = { .fd = -1, .names = d->names };
	CLEANUP_FD int fd = -1;
	struct dir_place place;
	char temp[DIR_TEMP];
	int r = dir_place_make(&place, d, name, len);

	kept[0] = '\0';
	if (!r)
		r = victim_open(&v, d->fd, place.name.entry);
	if (r)
		return r;
	r = meant(root, &v);
	dir_temp_name(temp, "tmp");
	if (!r)
		r = dir_mkdir_temp(d, temp, 0700, &fd);
	if (r) {
		victim_spare(&v);
		return r;
	}
	r = root_fill(root, &v, fd);
	if (!r)
		r = swap(&place, temp);
	if (r) {
		(void)unlinkat(fd, NAME_DIR_FILE, 0);
		(void)unlinkat(d->fd, temp, AT_REMOVEDIR);
		victim_spare(&v);
		return r;
	}
	r = remove_old(&place, temp, &v);
	if (r) {
		undo(d, name, len, &place, temp, root, kept);
		victim_spare(&v);
		return r;
	}
	if (fsync(d->fd)) /* it has its name durably; litter may come back */
		log_warn("cannot sync a directory: %s", strerror(errno));
	*old = steal_fd(&v.fd);
	return 0;
}
