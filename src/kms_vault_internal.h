/* kms_vault_internal.h — what the files of the Vault provider share: where requests go and as whom (struct vault_link),
 * one request and its answer, and what an error means. */
#ifndef BYOKFS_KMS_VAULT_INTERNAL_H
#define BYOKFS_KMS_VAULT_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "http.h"
#include "jsonio.h"
#include "kms_provider.h"

#define VAULT_PATH_MAX  512u
#define VAULT_TOKEN_MAX 8192u
#define VAULT_NAME_MAX  128u
#define VAULT_TEXT      256u

/* What tells one state of a file from another. */
struct vault_file {
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec mtime, ctime;
};

struct vault_link {
	/* Constant. namespace: "" for none; token_file or role_id is NULL. */
	struct http *http;
	char *address, *namespace, *token_file, *role_id, *secret_id_file, *auth_mount;
	_Atomic uint32_t timeout_ms; /* for what the keeper does on its own */

	pthread_mutex_t lock; /* guards what follows; never held across a request */
	pthread_cond_t changed;
	char *header; /* "X-Vault-Token: ..." in secret memory; NULL: none */
	uint64_t serial;
	struct vault_file file; /* that header came from */
	bool fetching;          /* somebody reads the file or asks the server, without the lock */
	atomic_bool warned;
	/* AppRole only; io_boot_ms() times. expires 0: never. */
	uint64_t got, expires, renew_at, failed_at, login_lease_ms;
	int64_t expires_unix;
	bool renewable, must_login, stop, has_keeper;
	struct kms_err failure;
	pthread_t keeper;
};

struct vault_request {
	const char *method, *path; /* below /v1/ */
	const char *body;          /* NULL: none */
	uint64_t deadline;
};

/* Any HTTP answer. */
struct vault_answer {
	long http;
	json_t *body;          /* an object, or NULL */
	char text[VAULT_TEXT]; /* its errors in one line, printable */
	bool own;              /* it has the shape of Vault's own errors */
};

void vault_answer_free(struct vault_answer *);
#define CLEANUP_ANSWER __attribute__((cleanup(vault_answer_free)))

/* One HTTP request. header: the token's, or NULL. KMS_OK when any answer came. */
enum kms_status vault_send(const struct vault_link *, const struct vault_request *, const char *header,
    struct vault_answer *out, struct kms_err *err);

/* The same with the link's token, which is looked after when the server refuses it. KMS_OK: status 2xx, or a batch
 * whose items tell. worked: the key has answered before. */
enum kms_status vault_call(
    struct vault_link *, const struct vault_request *, bool worked, struct vault_answer *out, struct kms_err *err);

/* An answer that is no success, as an error. */
enum kms_status vault_fail(const struct vault_answer *, bool worked, struct kms_err *err);
/* The class of an error by its text and HTTP status; own: from Vault itself, not from something before it. A bare 403
 * is KMS_CONFIG: vault_call() finds out whose fault it is. *code: for people. Pure. */
enum kms_status vault_classify(long http, const char *text, bool own, bool worked, const char **code);

/* ---- is it the key it was? kms_vault_check.c ---- */

#define VAULT_KEY_PATH_MAX (VAULT_PATH_MAX + VAULT_NAME_MAX + 32)

/* Zeroed, but for path and lock. */
struct vault_check {
	char path[VAULT_KEY_PATH_MAX]; /* of requests to decrypt; constant */
	pthread_mutex_t lock;          /* guards what follows; never held across a request */
	char *body;           /* of a request to decrypt that the key answered; malloc'ed; NULL: none yet */
	uint64_t proved;      /* io_boot_ms(), when it last did */
	uint64_t version;     /* sealed last; 0: nothing */
};

/* This request to decrypt works. */
void vault_check_worked(struct vault_check *, const char *body);
/* Is there none yet? */
bool vault_check_wanted(struct vault_check *);
/* The next sealing asks. */
void vault_check_forget(struct vault_check *);
/* err says KMS_BAD_BLOB: stays so if the key is the one it was, as far as can be told. KMS_DENIED: another has its
 * name, or as the server says. Else it did not answer the question. */
enum kms_status vault_check_blob(struct vault_check *, struct vault_link *, uint64_t deadline, struct kms_err *err);
/* The same, with KMS_OK, after something was sealed under that version; asks only when the last proof is old, or the
 * version is another than before. */
enum kms_status vault_check_sealed(
    struct vault_check *, struct vault_link *, uint64_t version, uint64_t deadline, struct kms_err *err);

/* ---- settings: kms_vault_link.c ---- */

/* 0 or -errno, with *err filled for -EINVAL. */
MUST_CHECK int vault_link_open(struct vault_link **out, const struct kms_params *, struct kms_err *err);
void vault_link_close(struct vault_link *);
/* Would these settings open the same link? */
bool vault_link_fits(const struct vault_link *, const struct kms_params *);
/* Timeouts of requests from now on. */
void vault_link_retime(struct vault_link *, const struct kms_params *);
/* A transit key: its mount, its name there, and what kms_key() calls it. */
struct vault_name {
	char mount[VAULT_PATH_MAX], name[VAULT_NAME_MAX + 1];
	char key[KMS_KEY_MAX + 1];
};
/* From params->key, a bare name or one that kms_key() gave. 0 or -errno, with *err filled for -EINVAL. */
MUST_CHECK int vault_name_key(
    struct vault_name *out, const char *namespace, const struct kms_params *, struct kms_err *err);
/* One or more path elements as they stand in a URL, none of them "." or "..". Pure. */
bool vault_path_ok(const char *path);
/* malloc'ed, without slashes at both ends; NULL: no memory. */
char *vault_bare_path(const char *path);

/* ---- the token: kms_vault_auth.c ---- */

MUST_CHECK int vault_auth_open(struct vault_link *);
void vault_auth_close(struct vault_link *);
/* A copy of the header in secret memory, to be given back with secret_free(). KMS_CONFIG: none to be had. */
enum kms_status vault_token_get(
    struct vault_link *, uint64_t deadline, char **header, uint64_t *serial, struct kms_err *err);
/* The server says that it knows no such token. */
void vault_token_bad(struct vault_link *, uint64_t serial);
/* The token is good, but denied: a fresh one may have other policies. */
void vault_token_denied(struct vault_link *, uint64_t serial);
void vault_token_forget(struct vault_link *);

#endif
