/* audit.h — one JSON line per request to the key service and per change of state, chained by hashes
 * (byokfs-audit(5) is the contract of the lines).
 *
 * Whoever tells an event only formats it and puts it into a bounded queue; one thread writes, syncs (once a second
 * while there is something to sync) and rotates. When the queue is full events are counted, and a line says how many
 * are missing. Never key material, never names: ids only. Every function takes a NULL audit and then does nothing. */
#ifndef BYOKFS_AUDIT_H
#define BYOKFS_AUDIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "cleanup.h"
#include "context.h"
#include "jsonio.h"
#include "kms.h"

#define AUDIT_WHY      600u
#define AUDIT_HASH     32u
#define AUDIT_LINE_MAX 16384u /* with its newline; nothing longer is a line */
#define AUDIT_QUEUE    8192u
#define AUDIT_TAIL     (4u << 20) /* at most so much torn writing is passed over at open */

struct audit;

/* Strings are copied. NULL: not said. */
struct audit_params {
	const char *path; /* NULL: no file */
	bool syslog;
	bool changes_only; /* of KMS events only those that failed */
	const char *program, *mount, *key;
	const uint8_t *store; /* 16 bytes */
	size_t queue;         /* 0: AUDIT_QUEUE */
	uint32_t retry_ms;    /* after a failed write; 0: 1000 */
	uint32_t sync_ms;     /* between syncs; 0: 1000 */
	ssize_t (*write)(int fd, const void *, size_t); /* NULL: write(2) */
	int (*sync)(int fd);                            /* NULL: fdatasync(2) */
};

/* Opens or makes the file, takes its lock, continues its chain, writes the "open" line, starts the thread: after every
 * fork. 0, or -errno with why: -EBUSY another process writes it, -EINVAL what is there is no audit or not safe. */
MUST_CHECK int audit_open(struct audit **out, const struct audit_params *, char why[static AUDIT_WHY]);
/* Writes what is queued and the "close" line, syncs, logs the head; waits 5 s at most. Nobody may tell events any more.
 */
void audit_close(struct audit *, const char *reason);
/* After a rotation: the writer opens the path again and goes on there. Returns at once; failure is logged, and the old
 * file stays in use. */
void audit_reopen(struct audit *);

/* For kms_params.observe; arg is the audit, or NULL. */
void audit_kms(void *audit, const struct kms_event *);
void audit_state(struct audit *, const struct context_ids *, const char *state, const char *reason);

struct audit_status {
	const char *path; /* valid as long as the audit; NULL: none */
	uint64_t lines;   /* handed to the file since the start */
	uint64_t dropped, queued, seq;
	uint8_t head[AUDIT_HASH]; /* hash of line seq */
	int error;                /* errno of a write, else of a sync, that failed and has not succeeded since; or 0 */
};
/* false: there is no audit. */
bool audit_status(struct audit *, struct audit_status *out);

/* ---- the lines, for whoever reads them ---- */

/* A whole line without its newline, taken apart. */
struct audit_record {
	json_t *json;
	const char *event;
	uint64_t seq;
	uint8_t prev[AUDIT_HASH];
};
/* 0 and *out (json_decref(out->json)), or -EINVAL: that is no line of an audit. */
MUST_CHECK int audit_parse(struct audit_record *out, const char *line, size_t len);
void audit_hash(uint8_t out[static AUDIT_HASH], const void *line, size_t len);

enum audit_finding { AUDIT_NOTE, AUDIT_DAMAGE };

/* Checks files one after the other, oldest first. Zero it, set found and arg. */
struct audit_check {
	void (*found)(void *arg, enum audit_finding, const char *file, uint64_t line, const char *what);
	void *arg;
	const uint8_t *anchor; /* NULL, or a hash that must be found */
	bool anchored; /* it was, and of a line that was read: that others name it as their `prev` is not enough */
	uint64_t lines, damage, torn, chains, dropped, files;
	uint64_t first_seq, seq;
	uint8_t begins[AUDIT_HASH], head[AUDIT_HASH]; /* prev of the first line; hash of the last */
	char first_time[32], last_time[32];
	json_t *operations; /* NULL, or an object that is given {"Decrypt": {"ok": 1, ...}, ...} */
	struct audit_half {
		const char *file; /* NULL: no file ended in half a line that is still to be explained */
		uint64_t line;
		size_t len;
		char bytes[AUDIT_LINE_MAX];
	} half;
};
/* One file; fd is the caller's, file must stay until the end. 0 or -errno of reading: damage is told, not returned. */
MUST_CHECK int audit_check_file(struct audit_check *, int fd, const char *file);
/* After the last: judges half a line at its end, and looks for the anchor. */
void audit_check_end(struct audit_check *);

#endif
