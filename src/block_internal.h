/* block_internal.h — between block.c (units), block_aead.c (ciphers) and block_pool.c (keyed contexts). */
#ifndef BYOKFS_BLOCK_INTERNAL_H
#define BYOKFS_BLOCK_INTERNAL_H

#include <openssl/evp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

#define AEAD_TAG      16u
#define GCM_IV        12u
#define XAES_SELECTOR 12u

/* One message. in and out are the same, or do not overlap. */
struct aead_text {
	const uint8_t *aad;
	size_t aadlen;
	const uint8_t *in;
	size_t n;
	uint8_t *out;
};

/* The subkey that the first half of a 24-byte nonce selects (C2SP XAES-256-GCM). 0 or -EIO. */
MUST_CHECK int aead_xaes_subkey(
    uint8_t out[static 32], const uint8_t key[static 32], const uint8_t selector[static XAES_SELECTOR]);
/* AES-256-GCM under key; *ctx is made when NULL, else keyed anew. 0 or -EIO. */
MUST_CHECK int aead_gcm_key(EVP_CIPHER_CTX **ctx, const uint8_t key[static 32]);
/* With a keyed context, either direction at any time. 0 or -EIO; open also -EBADMSG, out is wiped. */
MUST_CHECK int aead_gcm_seal(EVP_CIPHER_CTX *, const uint8_t iv[static GCM_IV], const struct aead_text *, uint8_t *tag);
MUST_CHECK int aead_gcm_open(
    EVP_CIPHER_CTX *, const uint8_t iv[static GCM_IV], const struct aead_text *, const uint8_t *tag);
/* XChaCha20-Poly1305 likewise. */
MUST_CHECK int aead_chacha_seal(
    const uint8_t key[static 32], const uint8_t nonce[static 24], const struct aead_text *, uint8_t *tag);
MUST_CHECK int aead_chacha_open(
    const uint8_t key[static 32], const uint8_t nonce[static 24], const struct aead_text *, const uint8_t *tag);

/* A context keyed with the subkey of (serial, selector); the holder of it has it to itself. */
struct block_ctx {
	uint64_t serial;
	uint8_t selector[XAES_SELECTOR];
	EVP_CIPHER_CTX *gcm;
	struct block_ctx *newer, *older, *chain; /* the pool's */
};

/* NULL when the library fails or memory is out. key is K_page of serial. */
struct block_ctx *block_pool_take(
    uint64_t serial, const uint8_t key[static 32], const uint8_t selector[static XAES_SELECTOR]);
void block_pool_give(struct block_ctx *);

#endif
