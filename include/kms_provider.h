/* kms_provider.h — what a key service must be able to do to seal byokfs's keys, and how to add one.
 *
 * A provider is one file, src/kms_NAME.c, with a table of functions. Besides it needs: its line in the table of
 * src/kms_open.c and its extern below; a number and a name in byokfs-format(5), section 3.1; its settings in struct
 * kms_params, src/config_keys.c, src/config.c (which must be set) and src/params.c; a line in byokfs(8), PROVIDERS;
 * tests. Neither the daemon nor the wrapper tests a provider's name. src/kms_keyfile.c is the smallest one to read,
 * src/kms_aws.c is one that speaks HTTP (http.h, and jsonio.h, whose memory is wiped), src/kms_pkcs11.c is one whose
 * calls cannot be interrupted.
 *
 * What a provider owes:
 *   Secrets  are 32 bytes. A service that cannot make them draws one with secret_random() and seals that. Whatever
 *            holds one, requests and answers included, is in secret memory (secret.h) or wiped. Credentials come from
 *            files that others may not read (refuse them otherwise, as kms_pkcs11_login.c does), never from the
 *            configuration.
 *   Context  is bound by the service: as a map of its own, or context_encode() as associated data. A service that
 *            binds nothing still serves, since the key used is derived from secret and context by the caller;
 *            byokfs(8) must say so.
 *   Blobs    are opaque, at most KMS_BLOB_MAX bytes, and at most 440 for seal=file. They hold what decrypt needs
 *            besides the key's name: a version of the key, a nonce. The first byte of a form of one's own is its
 *            version.
 *   Key      names a key for ever, for people and in descriptors: an ARN, a URI. decrypt is never given another than
 *            the configured one. `used` says which key answered: what the service's answer says, not what was asked,
 *            where it says so. A name that can be pointed elsewhere is not `pinned`, and describe tells the real one.
 *   Errors   each get one class (enum kms_status), by the service's own code and never by HTTP status alone:
 *            KMS_DENIED locks the store at once: only what proves that the owner refuses (disabled, destroyed, not
 *            permitted, another key in its place). "Not found" and "not permitted" are KMS_CONFIG until the key has
 *            worked once in this process: nobody took away what never was. KMS_BAD_BLOB is this blob's fault only:
 *            damaged, or of another key or context.
 *            KMS_BUSY and KMS_DOWN pass: throttled; no answer, a 5xx, a proxy's page, a lost device. They are
 *            retried.
 *            KMS_CONFIG is for the administrator: credentials, Region, a request that is refused as malformed.
 *            What is unknown is KMS_CONFIG or KMS_DOWN, never KMS_OK. err->code is the service's own word, message
 *            says what the code does not; both are shown, so neither may hold anything secret.
 *   Time     every call ends by its deadline (io_boot_ms() time), which the wrapper sets; retries and backoff are the
 *            wrapper's, so one call is one request, or a few where one alone proves nothing. Many threads call at
 *            once.
 *   Life     open checks what can be checked without the service and starts no thread, since the process may still
 *            fork; connecting is the first call's, so that a mount can start locked. close ends what was started,
 *            within seconds. No child process. No lock is held across a request.
 * The wrapper (kms.c) checks what no provider is trusted with: the key that answered, sizes, secrets wiped after
 * failure.
 *
 * How others would fit:
 *   Google Cloud KMS: encrypt and decrypt a secret drawn here, context_encode() in additionalAuthenticatedData,
 *            its CRC32C fields checked; key = the CryptoKey's name, not a version's. 400 FAILED_PRECONDITION and 403
 *            PERMISSION_DENIED: DENIED; 404: as above; 400 INVALID_ARGUMENT on decrypt: BAD_BLOB; 429: BUSY.
 *            Credentials: the metadata server, as src/awscred*.c does for EC2. No reencrypt.
 *   Azure Key Vault: wrapkey, unwrapkey of a secret drawn here; the kid of the answer, with its version, goes into the
 *            blob. RSA-OAEP and AES-KW bind no context; a Managed HSM's AES-GCM encrypt and decrypt do (aad). 403
 *            with inner code KeyDisabled, KeyExpired or Forbidden: DENIED; 404 KeyNotFound: as above; 429: BUSY.
 *   KMIP:    Encrypt and Decrypt with AES-GCM, context_encode() as Authenticated Encryption Additional Data; key =
 *            the Unique Identifier; Batch Count makes decrypt_batch. Result Reason Permission Denied, Wrong Key
 *            Lifecycle State, Object Destroyed: DENIED; Item Not Found: as above; Cryptographic Failure: BAD_BLOB. */
#ifndef BYOKFS_KMS_PROVIDER_H
#define BYOKFS_KMS_PROVIDER_H

#include "kms.h"

/* Each function: deadline in io_boot_ms() time; returns a status and fills *err unless KMS_OK.
 * priv is the provider's own. open: 0 or -errno with a message in err (nobody but the administrator is
 * watching yet). */
struct kms_provider {
	const char *name;
	uint8_t number; /* as written into headers and descriptors */
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
extern const struct kms_provider kms_vault_provider;

/* Used by unit tests: a provider of their own; its close, unless NULL, is called by kms_close(). */
MUST_CHECK int kms_open_with(
    struct kms **out, const struct kms_provider *, void *priv, const char *key, uint32_t request_timeout_ms);
/* priv of params->share when it is of this provider, else NULL. */
void *kms_shared(const struct kms_params *, const struct kms_provider *);

/* Fills *err and returns the status: `return kms_fail(err, KMS_DENIED, "NotFound", "the key file is gone");`
 */
enum kms_status kms_fail(struct kms_err *err, enum kms_status, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The same for a -errno of http_do(), with its why. */
enum kms_status kms_fail_http(struct kms_err *err, int r, const char *why);

/* KMSInvalidStateException says in words only whether a state is passing. True when these words are known.
 * Pure. */
bool kms_aws_state_known(const char *message);

#endif
