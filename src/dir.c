/* dir.c — single entries of a backing directory. Hides how a plaintext name becomes one or two backing names, and
 * how an object gets its content, owner and mode before any name shows it.
 *
 * Files are made without a name (O_TMPFILE) and linked: the fastest of the atomic ways on ext4, and a crash leaves
 * no litter. Where the backing has no O_TMPFILE they are made under a temporary name and renamed, or linked and
 * unlinked. */
#include "dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bytes.h"
#include "dir_internal.h"
#include "io.h"
#include "log.h"
#include "secret.h"

struct dir_means dir_means;

const char *dir_where(int fd, char out[static DIR_WHERE])
{
	char proc[32];
	ssize_t n;

	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	n = readlink(proc, out, DIR_WHERE - 1);
	out[n > 0 ? n : 0] = 0;
	return out;
}

void dir_temp_name(char out[static DIR_TEMP], const char *kind)
{
	uint8_t random[8];
	char hex[17];

	secret_nonce(random, sizeof(random));
	bytes_hex(hex, random, sizeof(random));
	(void)snprintf(out, DIR_TEMP, NAME_RESERVED ".%.3s.%s", kind, hex);
}

ssize_t dir_getdents(int fd, void *buf, size_t n)
{
	ssize_t got = syscall(SYS_getdents64, fd, buf, n);

	return got < 0 ? -errno : got;
}

/* ---- directory ids */

int dir_id_quiet(int fd, const struct name_keys *names, uint16_t *domain_index, uint8_t id[static 16])
{
	char text[NAME_DIR_ID_TEXT + 2];
	ssize_t n = readlinkat(fd, NAME_DIR_FILE, text, sizeof(text));

	if (n < 0)
		return errno == ENOENT || errno == EINVAL ? -EBADMSG : -errno;
	return name_dir_parse(names, text, (size_t)n, domain_index, id);
}

int dir_peek_id(int fd, uint16_t *domain_index, uint8_t id[static 16])
{
	char text[NAME_DIR_ID_TEXT + 2];
	ssize_t n = readlinkat(fd, NAME_DIR_FILE, text, sizeof(text));

	if (n < 0)
		return errno == ENOENT || errno == EINVAL ? -EBADMSG : -errno;
	return name_dir_peek(text, (size_t)n, domain_index, id);
}

int dir_read_id(int fd, const struct name_keys *names, uint16_t *domain_index, uint8_t id[static 16])
{
	char where[DIR_WHERE];
	int r = dir_id_quiet(fd, names, domain_index, id);

	if (!r)
		return 0;
	log_damage("%s: " NAME_DIR_FILE " is %s: the directory is refused", dir_where(fd, where),
	    r == -EBADMSG ? "missing or not authentic" : strerror(-r));
	return -EIO;
}

/* ---- names */

int dir_place_make(struct dir_place *p, const struct dir *d, const char *name, size_t len)
{
	p->fd = d->fd;
	return name_encrypt(d->names, d->id, name, len, &p->name);
}

#define LONG_NAME (NAME_ENTRY_MAX + 3u)

static void long_name(char out[static LONG_NAME], const char *entry)
{
	(void)snprintf(out, LONG_NAME, "%.255s.n", entry);
}

/* Length of the content of "<entry>.n", NUL added. */
static int long_read(int fd, const char *entry, char out[static NAME_LONG_TARGET_MAX + 1])
{
	char link[LONG_NAME];
	ssize_t n;

	long_name(link, entry);
	n = readlinkat(fd, link, out, NAME_LONG_TARGET_MAX + 1);
	if (n < 0)
		return -errno;
	if (n > (ssize_t)NAME_LONG_TARGET_MAX)
		return -EBADMSG;
	out[n] = 0;
	return (int)n;
}

static bool long_matches(const struct dir_place *p)
{
	char have[NAME_LONG_TARGET_MAX + 1];
	int n = long_read(p->fd, p->name.entry, have);

	return n >= 0 && (size_t)n == strlen(p->name.long_target) && bytes_equal(have, p->name.long_target, (size_t)n);
}

int dir_long_make(const struct dir_place *p)
{
	char link[LONG_NAME], temp[DIR_TEMP];

	if (!p->name.long_target[0])
		return 0;
	long_name(link, p->name.entry);
	if (!symlinkat(p->name.long_target, p->fd, link))
		return 0;
	if (errno != EEXIST)
		return -errno;
	if (long_matches(p))
		return 0;
	/* The content follows from the name; anything else under this hash is damage. */
	dir_temp_name(temp, "tmp");
	if (symlinkat(p->name.long_target, p->fd, temp))
		return -errno;
	if (!renameat(p->fd, temp, p->fd, link))
		return 0;
	int r = -errno;
	(void)unlinkat(p->fd, temp, 0);
	return r;
}

static bool entry_exists(const struct dir_place *p)
{
	struct stat st;

	return !fstatat(p->fd, p->name.entry, &st, AT_SYMLINK_NOFOLLOW) || errno != ENOENT;
}

void dir_long_drop(const struct dir_place *p)
{
	char link[LONG_NAME];

	if (!p->name.long_target[0] || entry_exists(p))
		return;
	long_name(link, p->name.entry);
	(void)unlinkat(p->fd, link, 0);
	/* Another host may have made the entry anew between the two calls, trusting the link it found. */
	if (entry_exists(p) && symlinkat(p->name.long_target, p->fd, link) && errno != EEXIST)
		log_err("cannot restore '%s': %s", link, strerror(errno));
}

int dir_decrypt(int fd, const uint8_t id[static 16], const struct name_keys *names, const char *entry,
    char out[static NAME_MAX_PLAIN + 1])
{
	char target[NAME_LONG_TARGET_MAX + 1] = "";
	int n;

	switch (name_kind(names, entry)) {
	case NAME_SKIP:
		return 0;
	case NAME_LONG:
		n = long_read(fd, entry, target);
		if (n < 0)
			return n == -ENOENT || n == -EINVAL ? -EBADMSG : n;
		break;
	case NAME_SHORT:
		break;
	}
	return name_decrypt(names, id, entry, target[0] ? target : NULL, out);
}

int dir_stat(const struct dir *d, const char *name, size_t len, struct stat *st, char *entry)
{
	struct dir_place p;
	int r = dir_place_make(&p, d, name, len);

	if (r)
		return r == -EPERM ? -ENOENT : r; /* a reserved name is never there */
	if (fstatat(d->fd, p.name.entry, st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (p.name.long_target[0] && !long_matches(&p)) {
		char where[DIR_WHERE];

		log_damage("%s/%s: no matching .n: the entry is ignored", dir_where(d->fd, where), p.name.entry);
		return -ENOENT;
	}
	if (entry)
		(void)snprintf(entry, NAME_ENTRY_MAX + 1, "%s", p.name.entry);
	return 0;
}

/* ---- making objects */

/* The owner a new object should have, given what the backing made of it. */
static bool owner_wanted(
    const struct stat *st, const struct stat *parent, const struct dir_owner *o, uid_t *uid, gid_t *gid)
{
	*uid = o->set ? o->uid : st->st_uid;
	*gid = o->set && !(parent->st_mode & S_ISGID) ? o->gid : st->st_gid;
	return *uid != st->st_uid || *gid != st->st_gid;
}

int dir_dress(int fd, const struct stat *parent, mode_t mode, const struct dir_owner *o)
{
	struct stat st;
	uid_t uid;
	gid_t gid;

	if (fstat(fd, &st))
		return -errno;
	bool chown = owner_wanted(&st, parent, o, &uid, &gid);
	if (chown && fchown(fd, uid, gid))
		return -errno;
	/* After the owner: chown clears the set-id bits. */
	if (((st.st_mode & 07777) != mode || (chown && (mode & 06000))) && fchmod(fd, mode))
		return -errno;
	return 0;
}

static int link_fd(int fd, int dirfd, const char *entry)
{
	char proc[32];
	bool tried = !dir_means.no_empty_path;

	if (tried) {
		if (!linkat(fd, "", dirfd, entry, AT_EMPTY_PATH))
			return 0;
		/* ENOENT: not privileged enough for an empty path, or really gone; the second way tells. */
		if (errno != ENOENT)
			return -errno;
	}
	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	if (linkat(AT_FDCWD, proc, dirfd, entry, AT_SYMLINK_FOLLOW))
		return -errno;
	if (tried)
		dir_means.no_empty_path = true;
	return 0;
}

static int rename_emulated(int fromfd, const char *from, int tofd, const char *to)
{
	struct stat st;

	if (fstatat(fromfd, from, &st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (S_ISDIR(st.st_mode)) { /* our directories are never empty on the backing: rename cannot replace one */
		if (!renameat(fromfd, from, tofd, to))
			return 0;
		return errno == ENOTEMPTY || errno == ENOTDIR ? -EEXIST : -errno;
	}
	if (linkat(fromfd, from, tofd, to, 0))
		return -errno;
	/* Gone already: an rmdir took a temporary for litter, or somebody removed the old name. It has the new one. */
	return unlinkat(fromfd, from, 0) && errno != ENOENT ? -errno : 0;
}

int dir_rename_new(int fromfd, const char *from, int tofd, const char *to, bool temporary)
{
	if (!dir_means.no_noreplace) {
		if (!renameat2(fromfd, from, tofd, to, RENAME_NOREPLACE))
			return 0;
		if (errno != EINVAL && errno != ENOSYS && errno != EOPNOTSUPP)
			return -errno;
		/* A user's rename may be EINVAL for other reasons: a directory into itself. */
		if (temporary)
			dir_means.no_noreplace = true;
	}
	return rename_emulated(fromfd, from, tofd, to);
}

struct create {
	const struct dir_place *place;
	const struct stat *parent;
	const struct dir_owner *owner;
	const uint8_t *page0;
	mode_t mode;
};

static int create_fill(const struct create *c, int fd)
{
	int r = io_pwrite(fd, c->page0, LAYOUT_PAGE, 0);

	return r ? r : dir_dress(fd, c->parent, c->mode, c->owner);
}

/* ext4 says EPERM to O_TMPFILE in a removed directory. */
static int tmpfile_errno(int dirfd, int err)
{
	struct stat st;

	return err == EPERM && !fstat(dirfd, &st) && !st.st_nlink ? -ENOENT : -err;
}

static int create_unnamed(const struct create *c, int *fd)
{
	CLEANUP_FD int f = -1;
	int r;

	if (dir_means.no_tmpfile)
		return -EOPNOTSUPP;
	f = openat(c->place->fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, c->mode);
	if (f < 0) {
		if (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL && errno != ENOSYS)
			return tmpfile_errno(c->place->fd, errno);
		dir_means.no_tmpfile = true;
		return -EOPNOTSUPP;
	}
	r = create_fill(c, f);
	if (!r)
		r = link_fd(f, c->place->fd, c->place->name.entry);
	if (!r)
		*fd = steal_fd(&f);
	return r;
}

static int create_named(const struct create *c, int *fd)
{
	CLEANUP_FD int f = -1;
	char temp[DIR_TEMP];
	int r;

	dir_temp_name(temp, "tmp");
	f = openat(c->place->fd, temp, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC, c->mode);
	if (f < 0)
		return -errno;
	r = create_fill(c, f);
	if (!r)
		r = dir_rename_new(c->place->fd, temp, c->place->fd, c->place->name.entry, true);
	if (r)
		(void)unlinkat(c->place->fd, temp, 0);
	else
		*fd = steal_fd(&f);
	return r;
}

int dir_create_entry(const struct dir *d, const struct name_entry *entry, const uint8_t page0[static LAYOUT_PAGE],
    mode_t mode, const struct dir_owner *owner, int *fd, struct stat *st)
{
	const struct dir_place place = { d->fd, *entry };
	struct stat parent;
	struct create c = { &place, &parent, owner, page0, mode & 07777 };
	int r = fstat(d->fd, &parent) ? -errno : 0;

	if (!r)
		r = dir_long_make(&place);
	if (r)
		return r;
	r = create_unnamed(&c, fd);
	if (r == -EOPNOTSUPP)
		r = create_named(&c, fd);
	if (r) {
		dir_long_drop(&place);
		return r;
	}
	if (!fstat(*fd, st))
		return 0;
	r = -errno;
	(void)close(*fd);
	*fd = -1;
	return r;
}

/* Owner and mode of a symlink or special file, which is named from the start: no content depends on them. */
static int dress_entry(const struct dir_place *p, const mode_t *mode, const struct dir_owner *o, struct stat *st)
{
	struct stat parent;
	uid_t uid;
	gid_t gid;

	if (fstat(p->fd, &parent) || fstatat(p->fd, p->name.entry, st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	bool chown = owner_wanted(st, &parent, o, &uid, &gid);
	bool chmod = mode && ((st->st_mode & 07777) != *mode || (chown && (*mode & 06000)));
	if (chown && fchownat(p->fd, p->name.entry, uid, gid, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if (chmod && fchmodat(p->fd, p->name.entry, *mode, AT_SYMLINK_NOFOLLOW))
		return -errno;
	if ((chown || chmod) && fstatat(p->fd, p->name.entry, st, AT_SYMLINK_NOFOLLOW))
		return -errno;
	return 0;
}

int dir_finish_entry(
    const struct dir_place *p, int r, const mode_t *mode, const struct dir_owner *o, struct stat *st)
{
	if (!r) {
		r = dress_entry(p, mode, o, st);
		if (r)
			(void)unlinkat(p->fd, p->name.entry, 0);
	}
	if (r)
		dir_long_drop(p);
	return r;
}

int dir_mknod(const struct dir *d, const char *name, size_t len, mode_t mode, dev_t rdev, const struct dir_owner *owner,
    struct stat *st)
{
	struct dir_place place;
	mode_t bits = mode & 07777;
	int r;

	if (!S_ISFIFO(mode) && !S_ISSOCK(mode) && !S_ISCHR(mode) && !S_ISBLK(mode))
		return -EINVAL;
	r = dir_place_make(&place, d, name, len);
	if (!r)
		r = dir_long_make(&place);
	if (r)
		return r;
	r = mknodat(d->fd, place.name.entry, mode, rdev) ? -errno : 0;
	return dir_finish_entry(&place, r, &bits, owner, st);
}

int dir_link(const struct dir *d, const char *name, size_t len, int srcfd, struct stat *st)
{
	struct dir_place place;
	int r = dir_place_make(&place, d, name, len);

	if (!r)
		r = dir_long_make(&place);
	if (r)
		return r;
	r = link_fd(srcfd, d->fd, place.name.entry);
	if (r) {
		dir_long_drop(&place);
		return r;
	}
	return fstat(srcfd, st) ? -errno : 0;
}

int dir_unlink_entry(const struct dir *d, const struct name_entry *entry)
{
	const struct dir_place place = { d->fd, *entry };

	if (unlinkat(d->fd, place.name.entry, 0))
		return -errno;
	dir_long_drop(&place);
	return 0;
}
