/* cmd.h — what the verbs of byokfsctl share: the table, arguments, the voice, errors to exit codes.
 *
 * One file per verb. A verb returns an exit code (exitcode.h); stdout is the answer, stderr the rest.  */
#ifndef BYOKFS_CMD_H
#define BYOKFS_CMD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "config.h"
#include "exitcode.h"
#include "kms.h"
#include "lease.h"
#include "store.h"

struct cmd {
	const char *name;
	int (*run)(int argc, char **argv); /* argv[0] is the verb */
	const char *usage;                 /* behind the verb */
	const char *summary;
	const char *help; /* lines */
};

extern const struct cmd cmd_table[]; /* ends with a NULL name */
const struct cmd *cmd_find(const char *name);

int cmd_init(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_test(int argc, char **argv);
int cmd_policy(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_lock(int argc, char **argv);
int cmd_unlock(int argc, char **argv);
int cmd_reload(int argc, char **argv);
int cmd_check(int argc, char **argv);
int cmd_audit(int argc, char **argv);
int cmd_domain(int argc, char **argv);
int cmd_keys(int argc, char **argv);
int cmd_import(int argc, char **argv);
int cmd_rotate(int argc, char **argv);
int cmd_history(int argc, char **argv);
int cmd_help(int argc, char **argv);
int cmd_version(int argc, char **argv);

/* Arguments. */
#define CMD_SETTINGS 32u
#define CMD_OPERANDS 512u
struct cmd_args {
	const char *config;                /* -c FILE */
	const char *setting[CMD_SETTINGS]; /* -o section.key=value[,section.key=value...] */
	size_t nsetting;
	bool json;
	const char *operand[CMD_OPERANDS];
	size_t noperand;
};

enum cmd_takes { CMD_CONFIG = 1, CMD_JSON = 2 };

/* A verb's own long option: a value, a flag, or both: then the value may be missing, and stands behind a '=' only. A
 * NULL name ends the list. One whose name ends in "..." may be given up to CMD_MANY times: value is an array of
 * CMD_MANY + 1, zeroed, and ends with a NULL. */
#define CMD_MANY 16u
struct cmd_option {
	const char *name;
	const char **value;
	bool *flag;
};

/* -1: go on; else the exit code to return (wrong use, or --help answered). At least min and at most max operands. */
MUST_CHECK int cmd_parse(
    struct cmd_args *, int argc, char **argv, unsigned takes, const struct cmd_option *, size_t min, size_t max);

/* A number from 1 to max behind an option ("--jobs"); NULL leaves *out alone. EXIT_OK, or EXIT_USAGE after saying what
 * is wrong. */
MUST_CHECK int cmd_number(const char *option, const char *text, unsigned max, unsigned *out);

/* The configuration: file, then settings, then the check of the whole; says what is wrong. EXIT_OK or EXIT_CONFIG.
 * config_free() it either way. */
MUST_CHECK int cmd_configure(struct config *, const struct cmd_args *);
/* The same without the check, for verbs that ask no key service: what is missing is missing, extra is not parsed. */
MUST_CHECK int cmd_read_config(struct config *, const struct cmd_args *);

/* The voice: "byokfsctl: error: ...", "byokfsctl: hint: ...". */
void cmd_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void cmd_hint(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void cmd_usage(FILE *, const struct cmd *);

/* Answers of daemons. */
/* Says why ctl_call() failed; returns the exit code. */
int cmd_call_failed(const char *mount, int err);
int cmd_answer_code(const json_t *answer);
/* Prints what was wanted, and the daemon's reason. */
void cmd_answer_error(const json_t *answer, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends the status of every mount of this user; a socket that nobody serves is passed over. 0 or -errno. */
MUST_CHECK int cmd_mounts(json_t *list);
/* The mount point above an absolute path, out holds PATH_MAX. 0 or -errno. */
MUST_CHECK int cmd_mount_of(const char *path, char *out);
/* `domain list` of a live mount or of a store. */
int cmd_domain_list(const char *path, bool json);

/* Errors. */
int cmd_exit_store(int err); /* -errno of store.h */
/* What to do about it; NULL when there is nothing to say. */
const char *cmd_kms_hint(const struct kms_err *);
/* Prints "what: the KMS's words" and the hint; returns the exit code. */
int cmd_kms_failed(const char *what, const struct kms_err *);

/* The configured key service. EXIT_OK, or an error was printed. Its requests go to the configured audit, if that is not
 * in use by a mount: then a warning says that they do not. */
MUST_CHECK int cmd_kms_open(struct kms **out, const struct config *, struct kms_err *err);
/* Its parameters, for a verb that opens another key too; the audit included. EXIT_OK, or EXIT_CONFIG with err. */
MUST_CHECK int cmd_kms_params(struct kms_params *, const struct config *, struct kms_err *err);
/* The key that a rotation is leaving; *out NULL: none is configured, or it is gone. EXIT_CONFIG: err says why. */
MUST_CHECK int cmd_kms_previous(struct kms **out, struct kms *, const struct config *, struct kms_err *err);
/* Once, when no key service is open any more. */
void cmd_audit_end(void);
/* Unwraps the store's domain secret and authenticates the descriptors: an open lease, or NULL with err or why filled.
 */
MUST_CHECK int cmd_unseal(struct store *, struct kms *, const struct config *, struct kms_err *err, char *why);

/* A domain of the store, by its place in store->desc, as its sound copy with the higher seq says; unauthenticated.
 * descriptor_domain_free() it. 0, or -errno with why (STORE_WHY). */
MUST_CHECK int cmd_domain_load(const struct store *, size_t i, struct descriptor_domain *out, char *why);

/* One copy of it, by its file's name below an open directory of descriptors. 0, -EBADMSG: it is another domain's, or
 * -errno. */
MUST_CHECK int cmd_domain_copy(
    int dirfd, const char *name, const struct store *s, size_t i, struct descriptor_domain *out);

/* One line of JSON on stdout; takes the reference. EXIT_OK, or EXIT_FAILED for NULL or a full disk. */
int cmd_print_json(json_t *);
/* A string for JSON and terminals: bytes outside printable ASCII as \xNN; out holds 4 * strlen + 1. */
void cmd_escape(char *out, const char *text);

const char *cmd_names_mode(enum name_mode);
/* enum name_mode, or -1. */
int cmd_names_from(const char *text);
const char *cmd_suite_name(unsigned suite);
const char *cmd_seal_name(enum descriptor_seal);

#endif
