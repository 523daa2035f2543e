/* kdf.h — from a KMS secret to working keys, and the domain's wrap of a file secret (format.md 2.2).
 *
 * HKDF-SHA-512 (RFC 5869). All outputs are secret: callers keep them in secret_alloc() memory
 * or wipe them by scope.                                                                   */
#ifndef BYOKFS_KDF_H
#define BYOKFS_KDF_H

#include <stdint.h>

#include "context.h"

#define KDF_SECRET    32u
#define KDF_WRAP_BLOB 60u

struct file_keys {
	uint8_t page[32];
	uint8_t hdr[32];
	uint8_t commit[32]; /* KC; public, stored in IDENT */
};

struct domain_keys {
	uint8_t dek[64];    /* for wrap keys */
	uint8_t commit[32]; /* DKC; public */
	uint8_t names[64], links[64], xnames[64];
	uint8_t dirs[32], xattrs[32], desc[32];
	uint8_t store[32]; /* MAC key of the store descriptor, domain 0 only */
};

/* Derives a file's keys. 0 or -EIO (the library failed). */
MUST_CHECK int kdf_file(struct file_keys *out, const uint8_t secret[static KDF_SECRET], const struct context_ids *,
    const uint8_t file_id[static CONTEXT_ID]);
MUST_CHECK int kdf_domain(struct domain_keys *out, const uint8_t secret[static KDF_SECRET], const struct context_ids *);

/* Wrap 2: seals a file secret under K(wrap, file_id) of the domain, AES-256-GCM, AAD = CC of the file. */
MUST_CHECK int kdf_wrap(uint8_t blob[static KDF_WRAP_BLOB], const uint8_t secret[static KDF_SECRET],
    const struct domain_keys *, const struct context_ids *, const uint8_t file_id[static CONTEXT_ID]);
/* The same with a given iv: for tests and vectors only. */
MUST_CHECK int kdf_wrap_with_iv(uint8_t blob[static KDF_WRAP_BLOB], const uint8_t iv[static 12],
    const uint8_t secret[static KDF_SECRET], const struct domain_keys *, const struct context_ids *,
    const uint8_t file_id[static CONTEXT_ID]);
/* -EBADMSG when the blob is not ours. */
MUST_CHECK int kdf_unwrap(uint8_t secret[static KDF_SECRET], const uint8_t blob[static KDF_WRAP_BLOB],
    const struct domain_keys *, const struct context_ids *, const uint8_t file_id[static CONTEXT_ID]);

#endif
