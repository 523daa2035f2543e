/* devkms_vault.h — what the parts of the Vault stand-in share. All its state is one JSON document under one lock. */
#ifndef BYOKFS_DEVKMS_VAULT_H
#define BYOKFS_DEVKMS_VAULT_H

#include "devkms.h"

#define DK_VAULT_ROOT "devkms-root-not-for-production"

/* One request. Handlers run with the lock held and fill data, auth or error. */
struct dk_vault_call {
	struct dk_vault *v;
	const char *method, *rest; /* rest: of the path, below what the handler is for */
	char path[512];            /* below /v1/, the namespace in front */
	const char *token;
	json_t *in;                 /* an object, or NULL */
	json_t *entry;              /* the token's, borrowed */
	int64_t now;                /* Unix milliseconds */
	unsigned int status;        /* 200 or 204 unless an error */
	json_t *data, *auth, *bare; /* bare: the whole answer */
	char error[512];
	bool changed; /* to be saved */
	char key[DK_ARN];
	size_t items; /* of a batch */
};

void dk_vault_error(struct dk_vault_call *, unsigned int status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
bool dk_vault_can(const struct dk_vault_call *, const char *capability);
/* May this token do `capability` here? Else 403 is the answer. */
bool dk_vault_allowed(struct dk_vault_call *, const char *capability);

/* devkms_vault_auth.c */
void dk_vault_auth(struct dk_vault_call *);  /* rest: below auth/ */
void dk_vault_login(struct dk_vault_call *); /* auth/<mount>/login */
json_t *dk_vault_token_find(struct dk_vault_call *);
json_t *dk_vault_token_new(struct dk_vault_call *, json_t *policies, int64_t ttl_s, int64_t max_s, bool renewable);
void dk_vault_expire_all(struct dk_vault *);

/* devkms_vault_transit.c; rest: below the mount, whose name is mount */
void dk_vault_transit(struct dk_vault_call *, const char *mount);

/* devkms_vault_crypto.c: "vault:vN:base64" and back. context may be empty: then the key itself is used. out is
 * malloc'ed. -EBADMSG: does not authenticate; -EINVAL: too short. */
struct dk_vault_sealing {
	const char *type;
	const uint8_t *key; /* 32 */
	const uint8_t *context, *aad;
	size_t contextlen, aadlen;
};
MUST_CHECK int dk_vault_seal(const struct dk_vault_sealing *, const uint8_t *plain, size_t n, uint8_t *out);
MUST_CHECK int dk_vault_open(const struct dk_vault_sealing *, const uint8_t *sealed, size_t n, uint8_t *plain);
#define DK_VAULT_EXTRA 28u /* nonce and tag */

#endif
