/* kms.h — ask a key service to make, unwrap or re-wrap a data key.
 *
 * Providers are tables (kms_provider.h) behind this checking wrapper; callers never test provider names.
 * Every provider maps its errors to one class here, once; whatever the class, the file operation gets EIO,
 * and the reason goes to log and status. Every call blocks at most until its deadline; retries with
 * full-jitter backoff happen inside it for class T. Thread-safe. No FUSE worker calls this.
 *
 * No pointer may be NULL. Whatever is not KMS_OK leaves *err filled, err->status included. */
#ifndef BYOKFS_KMS_H
#define BYOKFS_KMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "histogram.h"
#include "kdf.h"

/* reference: the classes D, T, C, X of the error table. */
enum kms_status {
	KMS_OK,
	KMS_DENIED,   /* D: disabled, deleted, not permitted: lock now */
	KMS_BAD_BLOB, /* X: this blob is not ours, corrupt or of another context: this file only */
	KMS_BUSY,     /* T: throttled */
	KMS_DOWN,     /* T: no answer in time, 5xx, network */
	KMS_CONFIG,   /* C: credentials, region, our request: alarm; does not renew the lease */
};

struct kms_err {
	enum kms_status status;
	long http;
	char code[96]; /* the KMS's own error code, or curl's class */
	char request_id[128];
	char message[400]; /* who lacks which permission, and in whose policy, takes this much */
};

#define KMS_BLOB_MAX 6144u
#define KMS_KEY_MAX  2048u

struct kms_blob {
	size_t len;
	uint8_t bytes[KMS_BLOB_MAX];
};

/* What an answer says of the key that served it. */
struct kms_used {
	char key[KMS_KEY_MAX + 1]; /* ARN or name */
	uint8_t material[32];      /* KeyMaterialId, or zero */
	char request_id[128];
};

struct kms_description {
	char arn[KMS_KEY_MAX + 1];
	char state[32]; /* "Enabled", ... */
	char usage[32], spec[32], region[64];
	bool multi_region;
	char regions[300]; /* of a multi-Region key, the primary's first: "us-east-1, eu-west-1"; cut if too many */
};

struct kms_event;

/* Configuration a provider may need; strings are copied. NULL or 0: default. */
struct kms_params {
	const char *provider; /* "aws", "vault", "pkcs11", "keyfile" */
	const char *key;      /* aws: ARN, id or alias; vault, pkcs11: as in their section, or as kms_key() gives it;
	                         keyfile: NULL, or the name it must have, with which a missing file is waited for */
	const char *region, *endpoint, *profile, *ca_bundle, *proxy;
	const char *role_arn, *external_id, *session_name;
	const char *replicas; /* ARNs between commas and blanks */
	bool failover;        /* to a replica when the Region cannot be reached for failover_after_ms */
	uint32_t failover_after_ms;
	struct {
		const char *address, *mount, *namespace, *token_file, *role_id, *secret_id_file, *auth_mount;
	} vault;
	struct {
		const char *module, *token, *pin_file;
	} pkcs11;
	const char *keyfile_path;
	uint32_t connect_timeout_ms, request_timeout_ms, max_connections;
	const char *user_agent;
	/* Whom kms_open() tells of its own requests already (an alias is asked for), see kms_observe(). */
	void (*observe)(void *arg, const struct kms_event *);
	void *observer;
	struct kms *share; /* NULL, or an open one of the same provider whose credentials (and connections, where one
	                      key's trouble cannot hold up the other's) are used too; it must be closed after this
	                      one */
};

/* One request to the service and its answer, as an observer sees it (audit). Every attempt is one. */
struct kms_event {
	const char *operation; /* "GenerateDataKey", "Decrypt", "Encrypt", "ReEncrypt", "DescribeKey" */
	const struct context *context; /* NULL for DescribeKey */
	const char *key;               /* that answered, else that was asked */
	const struct kms_used *used;   /* NULL unless it succeeded and says so */
	const struct kms_err *err;     /* err->status KMS_OK: it succeeded; request_id then too, where used is NULL */
	uint32_t latency_ms;
};

enum kms_operation { KMS_GENERATE, KMS_DECRYPT, KMS_ENCRYPT, KMS_REENCRYPT, KMS_DESCRIBE };
#define KMS_OPERATIONS (KMS_DESCRIBE + 1u)

/* Every attempt counts, retries too. */
struct kms_stats {
	uint64_t calls, errors, denied, busy, down, config;
	uint64_t latency_ms_sum, latency_ms_max;
};

/* Where requests go now, and as whom. */
struct kms_where {
	char region[64];       /* asked now */
	bool away;             /* not the configured key's */
	char identity[256];    /* "role arn:aws:...", "profile 'x'", "the environment", "AppRole ..." */
	int64_t expires;       /* of the credentials, Unix seconds; 0: never, or not known */
};

/* One of many to be unwrapped together. */
struct kms_item {
	const struct context *context;
	const uint8_t *blob;
	size_t len;
	uint8_t *secret; /* 32 bytes of the caller's, in secret memory; wiped unless KMS_OK */
	struct kms_used used;
	struct kms_err err; /* err.status is the result */
};

struct kms;

/* Opens the provider and, for aws, resolves an alias or id by DescribeKey so that kms_key() is an ARN.
 * -EINVAL (unknown provider, bad parameters, refused credentials: exit 3), -EACCES (denied, or key file open
 * to others), -ETIMEDOUT (no answer) or another -errno; err->status tells more. resolve = false skips the
 * network. Starts no thread, but the connections must not cross a fork: open after it. */
MUST_CHECK int kms_open(struct kms **out, const struct kms_params *, bool resolve, struct kms_err *err);
void kms_close(struct kms *);

const char *kms_key(const struct kms *); /* full ARN or name; constant after open */
const char *kms_provider_name(const struct kms *);
/* Has the service a call that re-seals without showing the secret? */
bool kms_can_reencrypt(const struct kms *);
uint8_t kms_provider_number(const struct kms *);
/* First 8 bytes of SHA-256(name), for slots. */
void kms_key_hash(uint8_t out[static 8], const char *key);
uint8_t kms_provider_from_name(const char *name); /* 0: unknown */
const char *kms_provider_to_name(uint8_t number);

/* A fresh 32-byte secret sealed under kms_key(). The answer's KeyId must be kms_key()'s key (else KMS_CONFIG),
 * secret must be 32 bytes. secret is the caller's, in secret memory; wiped unless KMS_OK. */
enum kms_status kms_generate(struct kms *, const struct context *, uint64_t deadline, uint8_t secret[static 32],
    struct kms_blob *, struct kms_used *, struct kms_err *err);
/* Unseals under the configured key (never the descriptor's). */
enum kms_status kms_decrypt(struct kms *, const struct context *, const uint8_t *blob, size_t len, uint64_t deadline,
    uint8_t secret[static 32], struct kms_used *, struct kms_err *err);
/* Unseals n blobs, in one request where the provider can (kms_batch_max() at a time), else one after the other. One
 * attempt without retries: each item's err.status tells. */
void kms_decrypt_batch(struct kms *, struct kms_item *, size_t n, uint64_t deadline);
/* Blobs that one request can unseal; 1: no batches. */
size_t kms_batch_max(const struct kms *);
enum kms_status kms_encrypt(struct kms *, const struct context *, const uint8_t secret[static 32], uint64_t deadline,
    struct kms_blob *, struct kms_used *, struct kms_err *err);
enum kms_status kms_reencrypt(struct kms *, const char *from, const struct context *src, const uint8_t *blob,
    size_t len, const char *to, const struct context *dst, uint64_t deadline, struct kms_blob *, struct kms_used *,
    struct kms_err *err);
enum kms_status kms_describe(
    struct kms *, const char *key, uint64_t deadline, struct kms_description *, struct kms_err *err);
void kms_refresh(struct kms *);
/* Settings that may change while mounted; provider and key must stay the same key. 0, or -EINVAL with *err filled. */
MUST_CHECK int kms_reconfigure(struct kms *, const struct kms_params *, struct kms_err *err);
void kms_where(struct kms *, struct kms_where *out);
/* Do both names stand for one key, for this provider? */
bool kms_same_key(const struct kms *, const char *a, const char *b);
/* The same of names alone, whoever keeps the key: equal, or Regions' copies of one multi-Region key. */
bool kms_same_name(const char *a, const char *b);
/* A name by which a multi-Region key is known: it has siblings with other names. */
bool kms_name_is_multi(const char *name);
/* Everyone who is told of each request, on the thread that made it, with no lock held; before the first call, or never.
 * The event is valid during fn only. */
void kms_observe(struct kms *, void (*fn)(void *arg, const struct kms_event *), void *arg);
void kms_stats(struct kms *, struct kms_stats *out);
/* How long attempts of one operation took; adds to *out. */
void kms_latency(const struct kms *, enum kms_operation, struct histogram_view *out);
/* "GenerateDataKey", ... */
const char *kms_operation_name(enum kms_operation);
/* request_timeout from now. */
uint64_t kms_deadline(const struct kms *);

/* "denied", "unreachable", ... and, for people, one line:
 * `KMS said DisabledException (request 1f2e...): message`. */
const char *kms_status_name(enum kms_status);
/* The program's exit code for it (exitcode.h). */
int kms_exitcode(enum kms_status);
void kms_err_text(char *out, size_t size, const struct kms_err *);

/* The class of an AWS error: type as in __type or x-amzn-ErrorType (qualified forms accepted), message, HTTP
 * status. had_worked: the key has answered before in this process (AccessDenied, NotFound: D then, C at first
 * use). Pure. */
enum kms_status kms_aws_classify(const char *type, const char *message, long http, bool had_worked);

#endif
