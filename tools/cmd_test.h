/* cmd_test.h — what the files of `byokfsctl test` share. */
#ifndef BYOKFS_CMD_TEST_H
#define BYOKFS_CMD_TEST_H

#include "awscred.h"
#include "cmd.h"

struct stsxml;

struct trial {
	struct config config;
	const struct cmd_args *args;
	struct kms *kms;
	struct store *store; /* open, or NULL */
	int store_code;      /* why it is not, when CIPHERDIR was given */
	char store_why[STORE_WHY];
	struct context_ids ids; /* the store's, or random ones */
	bool known_store;       /* ids are a real store's */
	struct context_extra extra;
	struct context *context;
	uint8_t *secret, *again;
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
	char host_region[64];
	char identity[300]; /* ARN, "" when not known */
	json_t *steps;      /* with --json, else NULL */
	json_t *missing;    /* permissions, each once */
	int code;                /* of the first failure */
};

/* The report: one line a step, or one object with --json. todo may be NULL. */
void test_ok(struct trial *, const char *step, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void test_note(struct trial *, const char *step, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void test_failed(struct trial *, int code, const char *step, const char *todo, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* Adds to the step reported last: a permission that is missing, unless an earlier step named it. */
void test_missing(struct trial *, const char *action, const char *key, const char *identity);
/* The end of it; the exit code. */
int test_report_end(struct trial *);

/* The key service's refusal of an operation ("Decrypt"), on a key, with what to do; t->err says why. */
void test_kms_failed(struct trial *, const char *step, const char *operation, const char *key);
bool test_denied(const struct kms_err *);
bool test_is_aws(const struct trial *);
bool test_is_vault(const struct trial *);

/* cmd_test_aws.c: credentials, who they are, the key and its Region. False: nothing else will work. */
bool test_credentials(struct trial *);
bool test_describe(struct trial *);
void test_replicas(struct trial *);

/* cmd_test_identity.c: the caller's ARN, from STS. 0 or -errno with why (AWSCRED_WHY). */
MUST_CHECK int test_whoami(char *arn, size_t size, struct awscred *, const struct sigv4_credentials *,
    const struct config *, const char *region, char *why);
/* The caller's Arn in STS's answer; false when it is none. Pure. */
bool test_whoami_arn(char *arn, size_t size, const struct stsxml *);

/* cmd_test_use.c: sealing, unsealing, contexts, latency. */
void test_use(struct trial *);

/* cmd_test_store.c: CIPHERDIR. load reads it without keys and says nothing. */
void test_store_load(struct trial *);
void test_store(struct trial *);

#endif
