/* store_internal.h — shared by the files behind store.h. */
#ifndef BYOKFS_STORE_INTERNAL_H
#define BYOKFS_STORE_INTERNAL_H

#include "store.h"

#define STORE_META      NAME_RESERVED
#define STORE_FILE      "store"
#define STORE_DOMAINS   "domains"
#define STORE_MOUNTS    "mounts"
#define STORE_LOCK      "lock"
#define STORE_BLOCK_MIN 4096u

/* Writes the line for people and returns err. */
int store_fail(char *why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Is the backing fit: block size, symlinks allowed by its kind? */
MUST_CHECK int store_check_backing(int fd, const char *path, bool torn_ok, const char *verb, char *why);
MUST_CHECK int store_open_dir(int dirfd, const char *name);

/* A descriptor of either kind exists twice, NAME and NAME~. desc is a struct descriptor_store or _domain. */
enum copies_kind { COPIES_STORE, COPIES_DOMAIN };
struct copies {
	enum copies_kind kind;
	int dirfd;
	char name[40];
};
void copies_of_store(struct copies *, int meta_fd);
/* Opens the directory: close dirfd. */
MUST_CHECK int copies_of_domain(struct copies *, int meta_fd, const uint8_t domain[static 16]);
/* The sound copy with the higher seq (rank 0) or the other sound one (rank 1: -ENOENT when there is none). With
 * keys, sound includes the MAC. -ENOENT: no copy; -EINVAL: damaged; -EBADMSG: MAC; -EPROTONOSUPPORT: a copy of
 * another version. */
MUST_CHECK int copies_load(const struct copies *, int rank, const struct domain_keys *, void *desc);
/* Makes both files what desc says (its own MAC); files that are so already are not touched. */
MUST_CHECK int copies_restore(const struct copies *, void *desc);
/* Writes both with a MAC made with the keys, or desc's own when NULL. */
MUST_CHECK int copies_write(const struct copies *, void *desc, const struct domain_keys *);

/* Takes the write lock, or -EBUSY. */
MUST_CHECK int store_lock_fd(int fd);
/* .byokfs/lock, exclusive or shared as s says. */
MUST_CHECK int store_take_lock(struct store *, char *why);
/* Brackets a mount's look at descriptors that it may restore: one host at a time. -EBUSY after some seconds. Without
 * shared mode nothing. */
MUST_CHECK int store_turn_begin(const struct store *);
void store_turn_end(const struct store *);
/* Removes our marker. */
MUST_CHECK int store_unmark(struct store *);

#endif
