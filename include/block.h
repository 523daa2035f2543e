/* block.h — seal and open one unit: a data page, a node, the root (format.md 2.3, 2.4, 3.2).
 *
 * Suite 1 is AES-256-GCM in the XAES-256-GCM construction (C2SP), suite 2 XChaCha20-Poly1305. Keyed cipher contexts
 * are expensive to make and serve all pages of a group; a process-wide pool keeps them, keyed by (serial, selector).
 * A block_run borrows one context at a time, so a run over many pages of one group costs one look-up.
 *
 * Threads: any number of runs at once; one run belongs to one thread.                       */
#ifndef BYOKFS_BLOCK_H
#define BYOKFS_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "context.h"
#include "layout.h"

#define BLOCK_VER_MAX ((1ull << 47) - 1)

/* A file as the sealer sees it. serial is unique in the process for this derivation of the key (block_serial()). */
struct block_file {
	uint64_t serial;
	uint8_t suite;
	uint8_t store[CONTEXT_ID];
	uint8_t file[CONTEXT_ID];
	const uint8_t *key; /* K_page, 32 bytes, outlives every run */
};

struct block_ctx;
struct block_run {
	const struct block_file *file;
	struct block_ctx *ctx;
};

uint64_t block_serial(void);
bool block_suite_known(unsigned suite);

void block_begin(struct block_run *, const struct block_file *);
/* Gives the context back to the pool. Safe after block_begin alone, and twice. */
void block_end(struct block_run *);

/* Seals 4064 plaintext bytes into a 4096-byte page with fresh rnd. 0, -EFBIG (ver out of range) or -EIO. */
MUST_CHECK int block_seal(struct block_run *, enum unit_type, uint64_t index, uint64_t ver,
    const uint8_t text[static LAYOUT_BODY], uint8_t page[static LAYOUT_PAGE]);
/* Opens a page; *ver is its version. 0, -ENODATA (all-zero page: absent), -EBADMSG, or -EIO (the
 * library failed); text is wiped on failure. */
MUST_CHECK int block_open(struct block_run *, enum unit_type, uint64_t index, const uint8_t page[static LAYOUT_PAGE],
    uint8_t text[static LAYOUT_BODY], uint64_t *ver);
/* The same for a page whose meta and tag were moved away: text holds the ciphertext, and then the plaintext. */
#define BLOCK_META 16u
#define BLOCK_TAG  16u
MUST_CHECK int block_open_in_place(struct block_run *, enum unit_type, uint64_t index,
    const uint8_t meta[static BLOCK_META], uint8_t text[static LAYOUT_BODY], const uint8_t tag[static BLOCK_TAG],
    uint64_t *ver);

/* The root of page 0: meta 16 | ct 1504 | tag 16, type R, index = seq, ver = clock. */
#define BLOCK_ROOT_TEXT 1504u
#define BLOCK_ROOT      (BLOCK_META + BLOCK_ROOT_TEXT + BLOCK_TAG)
MUST_CHECK int block_seal_root(struct block_run *, uint64_t seq, uint64_t clock,
    const uint8_t text[static BLOCK_ROOT_TEXT], uint8_t out[static BLOCK_ROOT]);
/* ver must equal clock. */
MUST_CHECK int block_open_root(struct block_run *, uint64_t seq, uint64_t clock, const uint8_t in[static BLOCK_ROOT],
    uint8_t text[static BLOCK_ROOT_TEXT]);

/* The AEAD of xattr values (suite 1: XAES-256-GCM, suite 2: XChaCha20-Poly1305) with an explicit 24-byte nonce.
 * out of seal holds n + 16; n of open counts the tag. -EBADMSG when it does not authenticate. */
MUST_CHECK int block_seal_bytes(uint8_t suite, const uint8_t key[static 32], const uint8_t nonce[static 24],
    const uint8_t *aad, size_t aadlen, const uint8_t *text, size_t n, uint8_t *out);
MUST_CHECK int block_open_bytes(uint8_t suite, const uint8_t key[static 32], const uint8_t nonce[static 24],
    const uint8_t *aad, size_t aadlen, const uint8_t *in, size_t n, uint8_t *text);

/* The two seals with given randomness: for tests and vectors only. */
#define BLOCK_RND 10u
MUST_CHECK int block_seal_with_rnd(struct block_run *, enum unit_type, uint64_t index, uint64_t ver,
    const uint8_t rnd[static BLOCK_RND], const uint8_t text[static LAYOUT_BODY], uint8_t page[static LAYOUT_PAGE]);
MUST_CHECK int block_seal_root_with_rnd(struct block_run *, uint64_t seq, uint64_t clock,
    const uint8_t rnd[static BLOCK_RND], const uint8_t text[static BLOCK_ROOT_TEXT], uint8_t out[static BLOCK_ROOT]);

/* Wipes pooled contexts of one serial, or of all. The caller guarantees that no run of theirs is open. */
void block_forget(uint64_t serial);
void block_forget_all(void);

#endif
