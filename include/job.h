/* job.h — the record of one rotation, a text file below .byokfs/jobs (byokfs-format(5), JOBS). Pure parse and print.
 *
 * The grammar is the descriptors': these lines in this order. Not authenticated: it tells what whoever writes to the
 * store wants told. */
#ifndef BYOKFS_JOB_H
#define BYOKFS_JOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "cleanup.h"
#include "context.h"
#include "descriptor.h"

#define JOB_ID      25u /* YYYYMMDDThhmmssZ-<nanoseconds, 8 hex> */
#define JOB_BYTES   (16u << 20)
#define JOB_TEXT    400u
#define JOB_DOMAINS 65536u

enum job_kind { JOB_ROTATION, JOB_SAME_KEY };
enum job_outcome { JOB_RUNNING, JOB_DONE, JOB_STOPPED, JOB_FAILED };

struct job_domain {
	uint16_t index;
	uint8_t id[CONTEXT_ID];
	char *from; /* key; malloc'ed */
};

struct job {
	char id[JOB_ID + 1];
	uint8_t store[CONTEXT_ID];
	enum job_kind kind;
	bool live;                                     /* through the daemon of a mount */
	bool through_host;                             /* decrypted and encrypted, not ReEncrypt */
	char by[JOB_TEXT + 1], identity[JOB_TEXT + 1]; /* user@host; whom the KMS knows. May be "" */
	size_t n;
	struct job_domain *domain; /* malloc'ed, at least one */
	char to[DESCRIPTOR_KEY_MAX + 1];
	int64_t started, ended; /* 0: not yet */
	uint64_t passes, files, resealed, already, unborn, damaged, unknown, failed, requests;
	enum job_outcome outcome;
	char why[JOB_TEXT + 1];
};

/* The id of a job that starts now; ids of one store sort as their jobs began. */
void job_new_id(char out[static JOB_ID + 1], const struct timespec *now);
bool job_is_id(const char *name);
/* Any text as a value: other than printable ASCII becomes '?', blanks are single. Cut after max characters; out holds
 * max + 1. */
void job_text(char *out, size_t max, const char *text);
/* 0, -EINVAL, -EPROTONOSUPPORT or -ENOMEM. On failure *out is empty. */
MUST_CHECK int job_parse(struct job *out, const char *text, size_t len);
/* malloc'ed text; *len without NUL. 0, -EINVAL (what the grammar cannot express), -EFBIG or -ENOMEM. */
MUST_CHECK int job_print(const struct job *, char **text, size_t *len);
const char *job_kind_name(enum job_kind);
const char *job_outcome_name(enum job_outcome);
/* Frees what the struct points to, not the struct. */
void job_free(struct job *);

#endif
