/* rotate.h — one rotation as `byokfsctl rotate` works it off.
 *
 *   cmd_rotate.c     what was asked for, the order of steps     rotate_report.c  what is printed before and after
 *   rotate_store.c   the store: mounted or not, locks           rotate_plan.c    domains, and which keys may be asked
 *   rotate_gate.c    who may ask the KMS now, and who stops it  rotate_key.c     one sealed secret from key to key
 *   rotate_begin.c   descriptors: the new slot, the end         rotate_files.c   passes over the tree
 *   rotate_file.c    what is done to one file                   rotate_live.c    the daemon of a mount
 *   rotate_job.c     the record of the job, while it runs       rotate_state.c   one descriptor
 *   rotate_orphan.c  files open without a name                  rotate_moved.c   passes over a store that is in use
 *
 * The order is byokfs-format(5)'s: both slots of the descriptor, every file, the old slots away, the descriptor's. It
 * may end anywhere: the next run goes on from what it finds. No plaintext key is ever here, but with --through-host. */
#ifndef BYOKFS_ROTATE_H
#define BYOKFS_ROTATE_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "cmd.h"
#include "crew.h"
#include "header.h"
#include "job.h"
#include "progress.h"
#include "reslot.h"
#include "rotate_gate.h"
#include "rotate_live.h"
#include "rotate_moved.h"
#include "rotate_state.h"
#include "store.h"

#define ROTATE_JOBS_MAX 512u
#define ROTATE_LOCK     "rotate.lock"
#define ROTATE_JOB_DIR  "jobs"
#define ROTATE_FINDINGS 1000u /* kept for JSON */

struct rotate_domain {
	const struct descriptor_domain_line *line;
	struct context_ids ids;
	struct descriptor_domain *desc; /* malloc'ed */
	enum rotate_state state;
	char *from;                           /* the key that is left */
	bool anew;                            /* it is the same key: what is done, its material tells */
	struct descriptor_slot *fresh;        /* sealed, not yet in the descriptor */
	const struct descriptor_slot *target; /* desc's ruling slot, once begun */
	_Atomic uint64_t todo, done, wrapped; /* files, as counted */
};

/* A key that files may be taken from: named by the administrator, or by the descriptor of a chosen nested domain. */
struct rotate_source {
	char *key;
	uint8_t hash[8];
	struct kms *kms; /* --through-host */
};

enum trouble {
	TROUBLE_DAMAGED,
	TROUBLE_REFUSED, /* by the KMS: the blob is no good */
	TROUBLE_UNKNOWN,
	TROUBLE_FAILED
};

/* What a pass over the files does, and found. */
struct rotate_pass {
	enum rotate_mode { ROTATE_COUNT, ROTATE_SEAL, ROTATE_CLEAR } mode;
	bool all;              /* else only what changed since */
	struct timespec since; /* of the backing's clock */
	_Atomic uint64_t files, unborn;
	_Atomic uint64_t todo;  /* still to do, or to be looked at again */
	/* mounted: not done when they were met, and directories not listed; to be looked at again */
	_Atomic uint64_t met, changed;
};

struct rotation {
	/* asked for */
	struct config config;
	const char *path, *to, *from, *chosen;
	unsigned jobs;
	uint64_t rate, patience_ms;
	bool dry_run, same_key, through_host, json;
	/* opened */
	struct store *store;
	struct live *live; /* NULL: not mounted read-write */
	struct live *at;   /* the mount that was named instead of the store, or NULL */
	int lock_fd;
	struct kms *kms; /* of the new key */
	struct gate *gate;
	/* planned: domains ascending by id */
	char *configured, *previous, *leaving; /* kms.key, kms.previous, --from without aliases; or NULL */
	struct rotate_domain *domain;
	size_t n;
	struct rotate_source *source;
	size_t nsource;
	/* done */
	struct rotate_pass *pass; /* the one under way */
	struct rotate_record record; /* mounted */
	struct rotate_worker **worker;
	struct crew *crew;
	struct progress progress;
	_Atomic uint64_t resealed, cleared, troubles[4], broken; /* broken: directories that could not be read */
	pthread_mutex_t trouble_lock; /* guards seen and findings */
	void *seen;                   /* inodes that troubles were told of */
	json_t *findings;
	uint64_t counted_todo, counted_done, counted_wrapped;
	_Atomic uint64_t counted_files, counted_unborn, passes;
	uint64_t begun_ms, latency_ms;
	struct job job;
	pthread_mutex_t job_lock;
	pthread_mutex_t tick_lock; /* guards ticking */
	pthread_cond_t tick;
	pthread_t ticker;
	bool ticking;
};

/* ---- rotate_key.c */
struct rotate_worker; /* what one thread needs */
MUST_CHECK int rotate_worker_open(struct rotate_worker **, const struct rotation *);
void rotate_worker_close(struct rotate_worker *);

struct reseal {
	const struct rotate_source *from;
	enum context_use use;
	const struct context_ids *ids;
	const uint8_t *file;
	const struct context_extra *before, *after;
	const uint8_t *blob;
	size_t len;
};
/* On VERDICT_OK *blob and *used are the worker's. VERDICT_FILE: *err says why. */
enum verdict rotate_reseal(struct rotation *, struct rotate_worker *, const struct reseal *,
    const struct kms_blob **blob, const struct kms_used **used, const struct kms_err **err);

/* ---- rotate_store.c: exit codes; what is wrong was said */
/* Opens the store, found through a mount or not; lock: the exclusive lock of rotations too. */
MUST_CHECK int rotate_open(struct rotation *, bool lock);
void rotate_close(struct rotation *);
/* Who holds the lock of rotations: false when nobody does. who holds 200. */
bool rotate_lock_held(int meta_fd, char *who);

/* ---- rotate_plan.c */
/* Chooses domains, checks that the keys fit. */
MUST_CHECK int rotate_plan(struct rotation *);
/* Of an ARN: its length, 0 when there is none. */
size_t rotate_region(const char *arn, const char **region);
void rotate_plan_free(struct rotation *);
struct rotate_domain *rotate_domain_of(const struct rotation *, const uint8_t id[static CONTEXT_ID]);
/* The key a file is sealed under: NULL when it is none of those that may be asked. */
const struct rotate_source *rotate_source_of(const struct rotation *, const uint8_t hash[static 8]);
const struct rotate_source *rotate_source_named(const struct rotation *, const char *key);

/* ---- rotate_begin.c */
/* Seals the slots of those that are to begin; nothing is written. What needs nothing becomes ROTATE_NOTHING. */
MUST_CHECK int rotate_prepare(struct rotation *);
/* Puts them into the descriptors. */
MUST_CHECK int rotate_begin(struct rotation *);
MUST_CHECK int rotate_finish(struct rotation *);

/* ---- rotate_files.c, rotate_file.c */
/* One pass. EXIT_OK also when files remain: see the pass. */
MUST_CHECK int rotate_walk(struct rotation *, struct rotate_pass *);
void rotate_walk_below(struct rotation *, int fd); /* in the pass under way; waits for nobody */
/* Passes until nothing is left to do; then the old slots are emptied, and every file was found done. */
MUST_CHECK int rotate_files(struct rotation *);

struct rotate_dir {
	int fd;
	_Atomic unsigned refs;
	char path[];
};
struct rotate_item {
	struct rotate_dir *dir;
	struct rotate_item *next; /* handed out together */
	ino_t ino;
	uint64_t node; /* of a file that is open without a name; else 0 */
	int fd;        /* O_PATH, of one that moved; else -1 */
	char name[];
};
void rotate_item_free(struct rotate_item *);
void rotate_work(void *rotation, void *item, unsigned worker);
void rotate_work_on(struct rotation *, const struct rotate_item *, const struct reslot_view *); /* looked at already */
void rotate_orphans(struct rotation *);
/* Says it, and counts it, once for each inode. */
void rotate_trouble(struct rotation *, enum trouble, const struct rotate_item *, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- rotate_job.c */
MUST_CHECK int rotate_job_begin(struct rotation *);
/* Writes it now; *when is the backing's clock, if asked for. */
MUST_CHECK int rotate_job_write(struct rotation *, struct timespec *when);
void rotate_job_end(struct rotation *, enum job_outcome, const char *why);

/* ---- rotate_report.c */
void rotate_say_plan(struct rotation *);
int rotate_say_done(struct rotation *, int code);

#endif
