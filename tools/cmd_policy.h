/* cmd_policy.h — what the files of `byokfsctl policy` share. */
#ifndef BYOKFS_CMD_POLICY_H
#define BYOKFS_CMD_POLICY_H

#include "cmd.h"
#include "policy.h"

/* A KMS key of the store, and the names of all pairs its requests may carry, of every generation. */
struct policy_key {
	char arn[KMS_KEY_MAX + 1];
	json_t *names;
};

struct policy_keys {
	char store[2 * CONTEXT_ID + 1]; /* or POLICY_NO_STORE */
	struct policy_key *key;
	size_t n;
};

/* The keys of the store at cipherdir, or the configured one when that is NULL; only that one when only is not NULL.
 * EXIT_OK, or an error was printed. Free either way. */
MUST_CHECK int policy_keys_find(
    struct policy_keys *, const struct config *, const char *cipherdir, const char *only);
void policy_keys_free(struct policy_keys *);

void policy_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
