/* check.h — a store checked: its structure without keys, and with them all that it holds; what `byokfsctl check` finds.
 *
 * Damage: something a mount will answer EIO for, refuse, or not show. Warning: litter, things that are not ours, what
 * is merely in doubt. FIFOs, sockets and devices are never opened. Nothing is changed before check_run() has looked at
 * everything; then, if that is wanted, what it listed is repaired (check_repair.h). */
#ifndef BYOKFS_CHECK_H
#define BYOKFS_CHECK_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "check_keys.h"
#include "file.h"
#include "progress.h"
#include "store.h"

#define CHECK_FINDINGS 10000u  /* kept for JSON */
#define CHECK_FIXES    100000u /* of one repair; the next does the rest */

/* A directory on the way down. */
struct check_level {
	uint16_t domain;
	uint8_t id[16];
	bool open; /* names of what is in it can be authenticated */
	bool dead; /* what is in it is not looked at: it is broken itself */
};

struct check_fix;

struct check {
	const struct store *store;
	json_t *findings;        /* NULL: print them to stdout as they come */
	struct check_keys *keys; /* NULL: structure only */
	unsigned jobs;           /* threads that read files */
	bool repair;
	struct progress progress;
	uint64_t directories, files, links, specials, unborn, in_doubt;
	uint64_t damage, warnings, dropped;
	uint64_t fixable;   /* damage that has a fix */
	uint64_t unchecked; /* files whose key domain is not open, or whose key did not come */
	_Atomic uint64_t authenticated, bytes, busy;
	uint64_t data_ms;
	bool live;  /* a mount holds the store now */
	bool doubt; /* a mount ended without saying goodbye, or has not ended: sizes may be in doubt */
	/* private */
	pthread_mutex_t lock; /* of findings and counts, and of stdout */
	struct descriptor_domain *nested; /* the descriptor of a nested domain looked at last, and which */
	const struct descriptor_domain_line *nested_line;
	struct check_level *level;
	size_t depth, room;
	bool *met;  /* by place in the store descriptor: the domain's root was seen */
	bool *told; /* it was said that it does not open */
	void *ids;  /* directory ids seen */
	struct crew *crew;
	struct check_fix *fixes, **last_fix;
	size_t nfixes;
	bool more_fixes;
	dev_t dev;
	_Atomic int err;
};

enum check_severity { CHECK_DAMAGE, CHECK_WARNING };

/* Checks everything below an opened store (readonly will do but for a repair). The caller sets the first members, up to
 * repair. 0, or -errno when it could not be done. check_end() it either way. */
MUST_CHECK int check_run(struct check *);
void check_end(struct check *);

/* ---- check_find.c: what is found. path is the directory's, name the entry's ("" for the directory itself). */
void check_say(struct check *, enum check_severity, const char *path, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* A unit of a file, and the bytes that cannot be read for it. */
void check_say_fault(struct check *, const char *path, const char *name, const struct file_fault *);
/* "data page 5", "group page 0", "page 0"; out holds 40. */
const char *check_unit_name(char *out, const struct file_fault *);
/* path/name for people, malloc'ed: of the store, escaped; and in the mount, NULL when it is not known. */
char *check_cipher_path(const char *path, const char *name);
char *check_plain_path(struct check *, const char *path, const char *name);

/* What a repair does about a finding. */
enum check_fix_kind {
	FIX_REMOVE, /* litter */
	FIX_MOVE,   /* to the quarantine */
	FIX_COPY,   /* a descriptor's copy that is lost, from the other */
	FIX_HINT,   /* st_size of a file; with keys as FIX_MEND */
	FIX_MEND,   /* a file's content */
	FIX_XATTR   /* name is the file's, or "" for the directory; what is the attribute's backing name */
};
struct check_fix {
	struct check_fix *next;
	enum check_fix_kind kind;
	bool lossy; /* somebody misses it */
	uint16_t domain;
	char *path, *name, *why;
};
/* Notes it, if a repair is wanted. lossy: the finding was damage. */
void check_fix(struct check *, enum check_fix_kind, bool lossy, const char *path, const char *name, const char *why);
/* The same for what needs the keys of its domain: FIX_HINT, FIX_MEND. */
void check_fix_in(struct check *, uint16_t domain, enum check_fix_kind, bool lossy, const char *path, const char *name,
    const char *why);
void check_fixes_free(struct check *);

/* ---- parts */
void check_descriptors(struct check *);
void check_markers(struct check *);
/* Litter beside them; after check_markers(). */
void check_strays_of_store(struct check *);
void check_file(struct check *, int dirfd, const char *path, const char *name, const struct stat *);
/* Records of rotations. */
void check_jobs(struct check *);
/* An entry's name, and for long names their second half. false: not one of ours (reported, or reserved). */
bool check_name(struct check *, int dirfd, const char *path, const char *name, const struct stat *);
void check_link(struct check *, int dirfd, const char *path, const char *name);
/* Extended attributes of an open file or directory with this object id; the current directory's domain is open. */
void check_xattrs(struct check *, int fd, uint16_t domain, const uint8_t id[static 16], const char *path,
    const char *name);
/* `.byokfs.d` of an open directory, read but not authenticated. */
MUST_CHECK int check_dir_id(int dirfd, uint16_t *domain, uint8_t id[static 16]);
/* The same, authenticated: -EBADMSG. */
MUST_CHECK int check_dir_mac(int dirfd, const struct name_keys *);
const struct descriptor_domain_line *check_domain(const struct check *, uint16_t index);
/* Its descriptor, until the next call; NULL when it is damaged. */
const struct descriptor_domain *check_descriptor(struct check *, uint16_t index);
const struct check_level *check_here(const struct check *);

/* ---- check_data.c: contents, by a crew of threads */
MUST_CHECK int check_data_begin(struct check *);
/* A file whose page 0 has the shape of one; fd is taken over. */
void check_data_file(struct check *, int fd, const char *path, const char *name, const struct stat *,
    const uint8_t page[static LAYOUT_PAGE], const struct header_ident *);
/* Until all is done. */
void check_data_end(struct check *);

#endif
