/* audit_internal.h — what the files of the audit share: text of lines, and the file with its chain. */
#ifndef BYOKFS_AUDIT_INTERNAL_H
#define BYOKFS_AUDIT_INTERNAL_H

#include "audit.h"

/* JSON being printed; full once something did not fit. */
struct audit_text {
	char *bytes;
	size_t size, len;
	bool full;
};

void audit_text_raw(struct audit_text *, const char *text);
/* ,"name":"value" with everything but printable ASCII as \xNN; NULL or "": null. At most max bytes of value. */
void audit_text_str(struct audit_text *, const char *name, const char *value, size_t max);
/* ,"name":"hex"; NULL: null. */
void audit_text_hex(struct audit_text *, const char *name, const uint8_t *bytes, size_t n);
void audit_text_int(struct audit_text *, const char *name, int64_t value);
/* "time":"2026-11-22T05:00:00.123Z","event":"..."; the first members behind seq. */
void audit_text_begin(struct audit_text *, const char *event);
void audit_text_kms(struct audit_text *, const struct kms_event *);

/* Where the chain stands. */
struct audit_chain {
	uint64_t seq; /* of the last line; 0: none yet */
	uint8_t head[AUDIT_HASH];
};

/* Of a body with its NUL: what a line puts around it takes less than 160. */
#define AUDIT_BODY_MAX (AUDIT_LINE_MAX - 160u)

/* {"seq":N,BODY,"prev":"..."} and a newline into out, which holds AUDIT_LINE_MAX; moves the chain on. The length, or 0:
 * it does not fit, nothing was changed. */
size_t audit_chain_line(struct audit_chain *, char *out, const char *body);

/* What stands at the end of a file that is to be continued. */
struct audit_tail {
	bool empty;
	bool newline; /* must be written first */
	bool torn;    /* bytes behind the last whole line, torn_hash is of them without a last newline */
	uint8_t torn_hash[AUDIT_HASH];
};

/* Opens path for appending, mode 0600 when made, checks whose it is, locks it. *fd or -errno with why. */
MUST_CHECK int audit_file_open(int *fd, const char *path, char why[static AUDIT_WHY]);
/* Finds the end of the chain: 0, or -errno with why. */
MUST_CHECK int audit_file_tail(
    int fd, const char *path, struct audit_chain *, struct audit_tail *, char why[static AUDIT_WHY]);

#define AUDIT_OUT (8 * (size_t)AUDIT_LINE_MAX)

struct audit {
	char *path, *program, *mount, *key;
	uint8_t store[CONTEXT_ID];
	bool has_store, syslog, changes_only;
	uint32_t retry_ms, sync_ms;
	ssize_t (*write)(int fd, const void *, size_t);
	int (*sync)(int fd);
	pthread_t thread;

	pthread_mutex_t lock; /* of all below up to the next blank line */
	pthread_cond_t wake, ended;
	char **ring; /* bodies of lines, without seq and prev */
	size_t size, first, n;
	uint64_t lost;    /* not yet told by a line */
	uint64_t dropped; /* in all */
	const char *close_reason;
	bool stop, reopen, done;
	struct audit_chain told; /* the writer's chain, for status */
	uint64_t lines;
	int error;

	int fd; /* the writer's, and what follows */
	struct audit_chain chain;
	char *out; /* chained lines on their way; written up to `written` */
	size_t len, written;
	bool dirty; /* not everything written is known to be on the disk */
	int write_error, sync_error; /* which stand; 0: none */
	uint64_t synced;             /* seq of the last line that was synced */
	uint64_t unsynced;           /* of the first that may be gone, once a sync failed */
	uint64_t sync_at;
	bool say_rotated, say_sync; /* lines to be chained before all others */
};

/* The body of an "open" line; torn NULL: there was no torn line. */
void audit_open_body(struct audit_text *, const struct audit *, const char *why, const uint8_t *torn);
/* Locked. The next body, which the caller frees, or NULL. */
char *audit_pop(struct audit *);
/* The body of a "sync" line: lines from seq `since` on may not be on the disk. error 0: it takes them again. */
void audit_sync_body(struct audit_text *, uint64_t since, int error);
/* The thread. */
void *audit_writer(void *audit);
/* The writer's, and audit_open()'s before there is one. Chains a line and hands it to syslog and to `out`. What
 * does not fit, there or into a line, is counted as lost. */
void audit_chain_next(struct audit *, const char *body);
/* 0 when everything is with the kernel, or -errno. */
MUST_CHECK int audit_write_out(struct audit *);
void audit_log_head(const struct audit *, const char *when);

#endif
