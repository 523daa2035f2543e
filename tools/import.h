/* import.h — what the parts of `byokfsctl import` share.
 *
 * One thread walks the source and makes directories and hard links; a crew copies everything else, each object under a
 * temporary name that is renamed when nothing is missing. A directory gets its attributes when the last object below it
 * is done: whoever lets go of it last does that. Nothing is followed, everything is reached by descriptors. */
#ifndef BYOKFS_IMPORT_H
#define BYOKFS_IMPORT_H

#include <jansson.h>
#include <limits.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "cmd.h"
#include "crew.h"
#include "progress.h"

#define IMPORT_BLOCK    (1u << 20)              /* what is hashed at once */
#define IMPORT_BUFFER   (4u * IMPORT_BLOCK)     /* a multiple: what is read back at once */
#define IMPORT_JOBS_MAX 64u
#define IMPORT_TRIES    3u                      /* for a file that changes while it is copied */
#define IMPORT_SHOWN    1000u                   /* problems kept for JSON */
#define IMPORT_TEMP     ".byokimport-"          /* and 16 hex digits; names in .byokfs are reserved */
#define IMPORT_TEMP_MAX (sizeof(IMPORT_TEMP) + 16)

enum import_verify { VERIFY_COPIED, VERIFY_FULL, VERIFY_NONE };

/* Where the store is mounted. */
struct import_mount {
	char point[PATH_MAX];
	int root;     /* its root directory */
	int store;    /* the store itself; locked, so that there is one import at a time */
	pid_t daemon; /* ours; 0: none */
	bool own;     /* the mount point is private, and ours to remove */
	int64_t since;
};

struct import {
	struct import_mount *mount;
	int src, dst; /* the two roots */
	enum import_verify verify;
	bool overwrite, root;
	bool lost; /* before this run writes were lost: what is there may be an earlier import's that is not whole */
	uid_t uid;
	struct crew *crew;
	uint8_t *buffer[IMPORT_JOBS_MAX]; /* one for each worker, page aligned */
	struct progress progress;
	uint64_t started;
	_Atomic uint64_t files, directories, links, others, bytes, skipped, failed, damaged, warnings, unsynced;
	_Atomic uint64_t seen; /* by the counting thread */
	_Atomic uint32_t temps, doubts;
	bool ran; /* there is something to sum up */
	uint32_t run; /* in the names of temporaries */
	_Atomic bool stop;
	pthread_mutex_t lock; /* of what follows, and of the terminal */
	pthread_cond_t linked;
	int stop_code;
	void *link_tree;
	json_t *problems; /* NULL without --json */
	char named[16][260]; /* kinds of attributes that were warned about */
};

/* A directory of the source and its copy. Both stay open until the last reference goes. */
struct import_dir {
	struct import_dir *parent;
	_Atomic unsigned refs;
	int src, dst;
	struct stat st;   /* the source's */
	bool fresh;       /* made by this run: nothing is in it */
	bool default_acl; /* what is made in the copy inherits one */
	char name[];      /* "" for the root */
};

struct import_link; /* the objects with several names, import_link.c */

/* Something in a directory that a worker copies. */
struct import_item {
	struct import_dir *dir; /* a reference */
	struct stat st;         /* of the source; renewed when it is opened */
	struct import_link *link;
	char name[];
};

/* One attempt at one object. */
struct import_work {
	struct import *im;
	struct import_dir *dir; /* that it lies in; NULL for the root */
	const char *name;
	struct stat st; /* the source's */
	int src, dst;   /* O_PATH unless regular file or directory */
	uint8_t *buffer;
	uint8_t key[32]; /* of the hash */
	bool there; /* something has the name already, and may be replaced */
	bool again; /* it was an earlier import's, and is not whole */
	/* what failed, for the message */
	bool target;
	const char *what; /* a verb phrase, or IMPORT_ATTRIBUTES */
};

#define IMPORT_ATTRIBUTES "attributes"

/* A signal came (cmd_import.c). */
bool import_signalled(void);
/* Has somebody asked to stop, or is going on in vain? */
bool import_stopped(const struct import *);
/* Remembers what failed, from errno; returns -errno. */
MUST_CHECK int import_fault(struct import_work *, bool target, const char *what);

/* import_say.c: problems. dir may be NULL, name "". */
enum import_kind { IMPORT_WARNING, IMPORT_FAILED, IMPORT_DAMAGED };
void import_say(struct import *, enum import_kind, const struct import_dir *, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* Says why an attempt failed (-errno), and stops the whole when the store can take no more. */
void import_failed(struct import_work *, int err);
/* Stops; the first reason counts. */
void import_stop(struct import *, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The path below the source; malloc'ed, NULL without memory. */
char *import_path(const struct import_dir *, const char *name);

/* import_mount.c. EXIT_OK, or an error was printed. */
MUST_CHECK int import_mount_open(struct import_mount *, const struct cmd_args *, const char *cipherdir);
/* Ends our daemon, if it is ours. EXIT_OK, or EXIT_FAILED and an error was printed. */
MUST_CHECK int import_mount_close(struct import_mount *);
/* Is everything open that was open when the import began? Else the exit code, and why (at most size). */
MUST_CHECK int import_mount_state(const struct import_mount *, char *why, size_t size);
/* import_tree.c: copies everything below the roots. */
void import_tree(struct import *);
void import_dir_put(struct import *, struct import_dir *);

/* import_entry.c: the crew's work; item is an import_item. */
void import_entry(void *im, void *item, unsigned worker);
/* Does the target have the source's attributes, as far as they can be kept? */
bool import_same(const struct import *, const struct stat *src, const struct stat *dst);
/* A new temporary name; out holds IMPORT_TEMP_MAX. */
void import_temp(struct import *, char *out);
bool import_is_temp(const char *name);

/* import_file.c: 0 or -errno; -EBADMSG: what was read back differs. */
#define IMPORT_HASH 16u
MUST_CHECK int import_file_copy(struct import_work *, uint8_t hash[static IMPORT_HASH]);
/* The target's, not out of the kernel's cache. */
MUST_CHECK int import_file_read_back(struct import_work *, uint8_t hash[static IMPORT_HASH]);
/* Of both sides; for what was there already. */
MUST_CHECK int import_file_compare(struct import_work *);

/* import_meta.c: owner, mode, extended attributes, ACLs, then times. */
MUST_CHECK int import_meta_copy(struct import_work *);
/* The same, compared. -EBADMSG. */
MUST_CHECK int import_meta_compare(struct import_work *);
/* The mode that the copy gets: set-id bits of files only where their owner comes over, and a write by the daemon does
 * not take them away again. */
mode_t import_meta_mode(const struct import *, const struct stat *src);

/* import_link.c: all called by the walking thread, but for import_link_done(). */
/* 1: the entry is a further name of something copied, and is done with. 0: it is to be copied, *link (or NULL) goes
 * into its item. */
MUST_CHECK int import_link_enter(
    struct import *, struct import_dir *, const char *name, const struct stat *, struct import_link **link);
void import_link_done(struct import *, struct import_link *, bool ok);
void import_link_free(struct import *);

#endif
