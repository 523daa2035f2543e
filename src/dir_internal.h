/* dir_internal.h — shared by the files behind dir.h, and temporary names for the store's own directories. */
#ifndef BYOKFS_DIR_INTERNAL_H
#define BYOKFS_DIR_INTERNAL_H

#include <sys/types.h>

#include "dir.h"

/* What the backing turned out not to offer. Set once it was refused; tests set them to walk the other way. */
struct dir_means {
	_Atomic bool no_tmpfile, no_empty_path, no_noreplace, no_exchange;
};
extern struct dir_means dir_means;

/* A plaintext name in a directory, encrypted. */
struct dir_place {
	int fd;
	struct name_entry name;
};
MUST_CHECK int dir_place_make(struct dir_place *, const struct dir *, const char *name, size_t len);

/* The symlink "<entry>.n" of a long name: there (made or found equal), or taken away when the entry is not there.
 * Nothing for short names. */
MUST_CHECK int dir_long_make(const struct dir_place *);
void dir_long_drop(const struct dir_place *);

#define DIR_TEMP 32u
/* ".byokfs.<kind>.<16 hex>" */
void dir_temp_name(char out[static DIR_TEMP], const char *kind);

/* Gives `from` the name `to` unless it is taken (-EEXIST). from is a temporary, or a user's rename with
 * RENAME_NOREPLACE. */
MUST_CHECK int dir_rename_new(int fromfd, const char *from, int tofd, const char *to, bool temporary);
/* Owner, then mode, of a new object; system calls only where something differs. In a set-group-ID parent the group
 * stays the inherited one. */
MUST_CHECK int dir_dress(int fd, const struct stat *parent, mode_t mode, const struct dir_owner *);

/* After a symlink or special file was made (r its result): owner and mode (NULL: it has none), or removed again. */
MUST_CHECK int dir_finish_entry(
    const struct dir_place *, int r, const mode_t *mode, const struct dir_owner *, struct stat *st);

/* .byokfs.d without a log line. */
MUST_CHECK int dir_id_quiet(int fd, const struct name_keys *, uint16_t *domain_index, uint8_t id[static 16]);
/* Plain name of a backing entry, reading "<entry>.n" where needed: its length, 0 for a reserved one, or -EBADMSG.
 */
MUST_CHECK int dir_decrypt(int fd, const uint8_t id[static 16], const struct name_keys *, const char *entry,
    char out[static NAME_MAX_PLAIN + 1]);

/* A new directory under a temporary name, open, for its owner to fill. */
MUST_CHECK int dir_mkdir_temp(const struct dir *, const char *temp, mode_t mode, int *fd);

/* A directory on its way out (dir_ops.c). Starts with fd -1 and names. */
struct victim {
	int fd;
	mode_t mode;
	bool opened_up; /* its mode was widened so that we can empty it */
	const struct name_keys *names;
};
static inline void cleanup_victim(const struct victim *v)
{
	cleanup_fd(&v->fd);
}
#define CLEANUP_VICTIM __attribute__((cleanup(cleanup_victim)))
MUST_CHECK int victim_open(struct victim *, int dirfd, const char *entry);
/* It stays after all: its mode comes back. */
void victim_spare(const struct victim *);
/* -ENOTEMPTY by the plaintext view. */
MUST_CHECK int victim_empty(const struct victim *);
/* Litter, .byokfs.d, the directory itself. -ENOTEMPTY: somebody put something in; .byokfs.d is there again. depth 0. */
MUST_CHECK int victim_take_apart(const struct victim *, int dirfd, const char *entry, int depth);

#define DIR_WHERE 256u
/* The backing path of a descriptor, for log lines. */
const char *dir_where(int fd, char out[static DIR_WHERE]);

struct dir_dirent {
	uint64_t d_ino;
	int64_t d_off;
	uint16_t d_reclen;
	uint8_t d_type;
	char d_name[];
};
/* getdents64(2): bytes, 0 at the end, -errno. */
MUST_CHECK ssize_t dir_getdents(int fd, void *buf, size_t n);
static inline bool dir_is_dots(const char *s)
{
	return s[0] == '.' && (!s[1] || (s[1] == '.' && !s[2]));
}

#endif
