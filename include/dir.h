/* dir.h — names of one backing directory: encrypted entries, long names, links, special files, iteration (format.md
 * 7, 7.1).
 *
 * A struct dir is a borrowed view: an open descriptor (O_RDONLY|O_DIRECTORY), the directory id, and the domain's name
 * keys. Nothing is locked; atomicity is the backing's (link, renameat2). Names are plaintext, any bytes but '/' and
 * NUL, len without NUL. All openings are O_NOFOLLOW|O_CLOEXEC and never leave the store. Errors are the backing's
 * -errno; -ENAMETOOLONG over 255 bytes; -EIO when what is there does not authenticate (logged). */
#ifndef BYOKFS_DIR_H
#define BYOKFS_DIR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "layout.h"
#include "name.h"

struct dir {
	int fd;
	uint8_t id[16];
	const struct name_keys *names;
};

/* Owner of a new object. In a set-group-ID directory the group is the directory's whatever gid says, and a new
 * directory inherits the bit. The process umask must be 0; modes are set exactly. */
struct dir_owner {
	uid_t uid;
	gid_t gid;
	bool set; /* false: leave the creator's (unprivileged mount) */
};

/* Reads and verifies .byokfs.d of an open directory. -EIO when missing or wrong. domain_index must be the parent's or a
 * known root's: caller's check. */
MUST_CHECK int dir_read_id(int fd, const struct name_keys *, uint16_t *domain_index, uint8_t id[static 16]);

/* What .byokfs.d of a directory claims (any descriptor of it, O_PATH too), not authenticated, nothing logged. 0,
 * -EBADMSG (missing, malformed) or another -errno. */
MUST_CHECK int dir_peek_id(int fd, uint16_t *domain_index, uint8_t id[static 16]);

/* The entry of a name and its lstat, the backing's own (sizes of files and links are not translated). entry
 * (NAME_ENTRY_MAX+1 bytes, may be NULL) receives the backing name. -ENOENT. A long name's .n must match. */
MUST_CHECK int dir_stat(const struct dir *, const char *name, size_t len, struct stat *st, char *entry);
/* Creates a regular file whose first page is page0 (4096 bytes) atomically under an entry that name_encrypt() made:
 * -EEXIST when taken. *fd is O_RDWR. */
MUST_CHECK int dir_create_entry(const struct dir *, const struct name_entry *, const uint8_t page0[static LAYOUT_PAGE],
    mode_t mode, const struct dir_owner *, int *fd, struct stat *st);
MUST_CHECK static inline int dir_create(const struct dir *d, const char *name, size_t len,
    const uint8_t page0[static LAYOUT_PAGE], mode_t mode, const struct dir_owner *owner, int *fd, struct stat *st)
{
	struct name_entry entry;
	int r = name_encrypt(d->names, d->id, name, len, &entry);

	return r ? r : dir_create_entry(d, &entry, page0, mode, owner, fd, st);
}
/* As dir_create(), without a name; dir_link() may give it one. -EOPNOTSUPP: not on this backing. */
MUST_CHECK int dir_tmpfile(const struct dir *, const uint8_t page0[static LAYOUT_PAGE], mode_t mode,
    const struct dir_owner *, int *fd, struct stat *st);
/* A new directory with a fresh id. */
MUST_CHECK int dir_mkdir(const struct dir *, const char *name, size_t len, mode_t mode, const struct dir_owner *,
    uint16_t domain_index, struct stat *st);
/* FIFOs, sockets, devices. */
MUST_CHECK int dir_mknod(const struct dir *, const char *name, size_t len, mode_t mode, dev_t rdev,
    const struct dir_owner *, struct stat *st);
MUST_CHECK int dir_symlink(const struct dir *, const char *name, size_t len, const char *target, size_t targetlen,
    const struct dir_owner *, struct stat *st);
/* What a symlink's content is in full, NUL-terminated: its length, -EBADMSG when a long one's rest is not there. */
MUST_CHECK int dir_link_text(int fd, const char *entry, char out[static NAME_LINK_TEXT(NAME_LINK_MAX)]);
/* Bytes of the target, for a content of st_size bytes; looks at the link only when that is DIR_LINK_LONG. */
#define DIR_LINK_LONG 1021
uint64_t dir_link_size(int fd, const char *entry, uint64_t st_size);
/* Target of the symlink `entry` relative to fd (entry "" with an O_PATH fd of the link itself). out holds
 * NAME_LINK_MAX+1; returns the length. */
MUST_CHECK int dir_readlink(int fd, const char *entry, const struct name_keys *, char *out);
/* Hard link to the inode behind srcfd (any descriptor, O_PATH too). */
MUST_CHECK int dir_link(const struct dir *, const char *name, size_t len, int srcfd, struct stat *st);
MUST_CHECK int dir_unlink_entry(const struct dir *, const struct name_entry *);
MUST_CHECK static inline int dir_unlink(const struct dir *d, const char *name, size_t len)
{
	struct name_entry entry;
	int r = name_encrypt(d->names, d->id, name, len, &entry);

	return r ? r : dir_unlink_entry(d, &entry);
}
/* -ENOTEMPTY by the plaintext view (entries that are not ours count, with a log line); rename-away, check again, remove
 * (7.1). */
MUST_CHECK int dir_rmdir(const struct dir *, const char *name, size_t len);
/* flags: 0, RENAME_NOREPLACE, RENAME_EXCHANGE; RENAME_WHITEOUT -EINVAL. Replacing an empty directory as rename(2) does.
 * Same domain only (caller's check). */
MUST_CHECK int dir_rename(const struct dir *from, const char *name, size_t len, const struct dir *to,
    const char *newname, size_t newlen, unsigned flags);

/* -ENOTEMPTY, as dir_rmdir() sees it; -ENOTDIR; nothing is changed. */
MUST_CHECK int dir_is_empty(const struct dir *, const char *name, size_t len);
/* The root of a nested domain. id is its directory id, names that domain's keys; dress (may be NULL) gives the new
 * directory what else it shall have of the old one, before anybody sees it. */
struct dir_root {
	const struct name_keys *names;
	uint16_t domain_index;
	uint8_t id[16];
	dev_t dev; /* which directory is to be replaced */
	ino_t ino;
	int (*dress)(void *arg, int old_fd, int new_fd);
	void *arg;
};
/* An empty directory is replaced by a new root with its mode, owner and times; whoever has the old one open has a
 * removed directory. Durable when it returns 0. *old: the old one's descriptor, the caller's to close. -ENOTEMPTY,
 * -ENOTDIR, -ESTALE (the name leads to another directory); on failure the old one is in its place. kept
 * (NAME_MAX_PLAIN + 1 bytes) is empty but after a failure while which somebody used the new root: then the new root
 * stays beside the old directory, under this name. */
MUST_CHECK int dir_plant(
    const struct dir *, const char *name, size_t len, const struct dir_root *, int *old, char *kept);

/* Where the keys of the key domains come from on such a way. get: NULL when the domain is not open; what was got is put
 * back. */
struct dir_namer {
	void *arg;
	const struct name_keys *(*get)(void *arg, uint16_t domain_index);
	void (*put)(void *arg, uint16_t domain_index);
};
/* Plain path of what lies at this path below the root of a store, for people: 0, or -errno when a part of it does
 * not decrypt. */
MUST_CHECK int dir_plain_path(int root_fd, const struct dir_namer *, const char *backing, char *out, size_t size);

/* Iteration over plaintext entries. The stream has its own descriptor, which goes and comes when there are many
 * (fdpool.h), and a buffer while it is between beginning and end; positions are the backing's d_off, valid across
 * rewinds and for the life of the stream. Names that do not decrypt are skipped with one log line per stream. "." and
 * ".." are not produced. One thread at a time. */
struct dir_stream;
struct dir_item {
	char name[NAME_MAX_PLAIN + 1];
	size_t len;
	char entry[NAME_ENTRY_MAX + 1]; /* backing name, for fstatat */
	unsigned char type;             /* DT_* */
	uint64_t ino;                   /* the backing's */
	int64_t next;                   /* position after this entry, never 0 */
};
MUST_CHECK int dir_stream_open(struct dir_stream **out, const struct dir *);
/* 1 an item, 0 end, -errno. pos: where to go on (0 start, else a `next`). The directory is passed anew: after a lock
 * its names are under other keys. */
MUST_CHECK int dir_stream_next(struct dir_stream *, const struct dir *, int64_t pos, struct dir_item *out);
/* Wipes plaintext it holds (lock). */
void dir_stream_wipe(struct dir_stream *);
void dir_stream_close(struct dir_stream *);

#endif
