/* kms_provider.h — what a key service must be able to do to seal byokfs's keys. One more of them is one file more:
 * Google Cloud KMS, Azure Key Vault, KMIP (byokfs.8, PROVIDERS, says what each can do).
 *
 * A provider is a table of functions. What it owes:
 *   - secrets are 32 bytes; a service that cannot make them (no GenerateDataKey) draws one with secret_random() and
 *     seals it; plaintext, requests and answers that hold it live in secret memory and are wiped;
 *   - the encryption context is bound by the service: as its own map, or context_encode() as associated data (a service
 *     that can bind nothing still serves: the key used is derived from secret and context by the caller);
 *   - every failure gets one class (enum kms_status), by the service's own code and never by HTTP status alone; what is
 *     unknown is KMS_CONFIG or KMS_DOWN, never KMS_OK, and only what proves that the owner refuses is KMS_DENIED;
 *   - every call ends by its deadline and may be made by many threads at once; retries are the wrapper's;
 *   - nothing blocks for ever, no thread is started in open, no child process.
 * The wrapper (kms.c) checks what no provider is trusted with: the key that answered, sizes, wiped secrets. */
#ifndef BYOKFS_KMS_PROVIDER_H
#define BYOKFS_KMS_PROVIDER_H

#include "kms.h"

/* Each function: deadline in io_boot_ms() time; returns a status and fills *err unless KMS_OK.
 * priv is the provider's own. open: 0 or -errno with a message in err (nobody but the administrator is
 * watching yet). */
struct kms_provider {
	const char *name;
	uint8_t number; /* byokfs-format(5), section 3.1: 1 aws, 2 vault, 3 keyfile, 4 pkcs11 */
	int (*open)(void **priv, const struct kms_params *, struct kms_err *err);
	void (*close)(void *priv);
	enum kms_status (*generate)(void *priv, const struct context *, uint64_t deadline, uint8_t secret[static 32],
	    struct kms_blob *, struct kms_used *, struct kms_err *err);
	enum kms_status (*decrypt)(void *priv, const char *key, const struct context *, const uint8_t *blob, size_t len,
	    uint64_t deadline, uint8_t secret[static 32], struct kms_used *, struct kms_err *err);
	enum kms_status (*encrypt)(void *priv, const struct context *, const uint8_t secret[static 32],
	    uint64_t deadline, struct kms_blob *, struct kms_used *, struct kms_err *err);
	/* optional: NULL when the service has no such call */
	enum kms_status (*reencrypt)(void *priv, const char *from, const struct context *src, const uint8_t *blob,
	    size_t len, const char *to, const struct context *dst, uint64_t deadline, struct kms_blob *,
	    struct kms_used *, struct kms_err *err);
	enum kms_status (*describe)(
	    void *priv, const char *key, uint64_t deadline, struct kms_description *, struct kms_err *err);
	/* optional: forget cached credentials (SIGHUP) */
	void (*refresh)(void *priv);
	/* optional: many blobs in one request, at most batch_max; fills every item's status and, unless KMS_OK, err.
	 * What is not KMS_OK leaves no secret. */
	void (*decrypt_batch)(void *priv, const char *key, struct kms_item *, size_t n, uint64_t deadline);
	size_t batch_max;
	/* optional: do both names stand for one key (a multi-Region key and its replica)? NULL: only equal ones do */
	bool (*same_key)(const char *a, const char *b);
	/* optional: settings that may change while mounted (SIGHUP): key (same_key only), replicas, failover, region,
	 * endpoint. 0, or -EINVAL with *err filled and nothing changed. */
	int (*reconfigure)(void *priv, const struct kms_params *, struct kms_err *err);
	/* optional: for people: the Region asked now and since when not at home, whose credentials and how long they
	 * last. Empty strings and 0: nothing to say. */
	void (*where)(void *priv, struct kms_where *out);
	/* optional: the name of a key the configuration does not name; constant after open */
	const char *(*key)(void *priv);
	/* optional: false when this text (an alias, an id) does not name one key for ever, and describe must
	 * tell its name */
	bool (*pinned)(const char *key);
};

extern const struct kms_provider kms_aws_provider, kms_keyfile_provider, kms_pkcs11_provider;

/* Used by unit tests: a provider of their own; its close, unless NULL, is called by kms_close(). */
MUST_CHECK int kms_open_with(
    struct kms **out, const struct kms_provider *, void *priv, const char *key, uint32_t request_timeout_ms);
/* priv of params->share when it is of this provider, else NULL. */
void *kms_shared(const struct kms_params *, const struct kms_provider *);

/* Fills *err and returns the status: `return kms_fail(err, KMS_DENIED, "NotFound", "the key file is gone");`
 */
enum kms_status kms_fail(struct kms_err *err, enum kms_status, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* KMSInvalidStateException says in words only whether a state is passing. True when these words are known.
 * Pure. */
bool kms_aws_state_known(const char *message);

#endif
