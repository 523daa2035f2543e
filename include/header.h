/* header.h — page 0 of a backing file: IDENT, two SLOTs, two STATEs, ROOT (format.md 3.1), and the records of nodes
 * (3.2).
 *
 * Byte-exact encode and decode, nothing else: no I/O, no policy. Every decoder treats its input as hostile.    */
#ifndef BYOKFS_HEADER_H
#define BYOKFS_HEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "block.h"
#include "bytes.h"
#include "context.h"
#include "kdf.h"
#include "layout.h"

#define HEADER_BLOB_MAX 440u

/* One slot is a sector of page 0. */
#define HEADER_SLOT_BYTES     512u
#define HEADER_SLOT_AT(which) (HEADER_SLOT_BYTES * (1u + (unsigned)(which)))

struct header_ident {
	uint8_t suite;
	uint8_t store[CONTEXT_ID], domain[CONTEXT_ID], file[CONTEXT_ID];
	uint8_t commit[32];
};

enum header_wrap { HEADER_WRAP_KMS = 1, HEADER_WRAP_DOMAIN = 2 };

struct header_slot {
	uint32_t seq;
	uint8_t wrap;        /* enum header_wrap */
	uint16_t generation; /* context generation, wrap 1 */
	uint8_t provider;    /* 0 none, 1 aws, 2 vault, 3 keyfile, 4 pkcs11 */
	uint8_t key_hash[8];
	int64_t sealed_at;
	uint8_t material[32];
	uint16_t len;
	uint8_t blob[HEADER_BLOB_MAX];
};

struct header_state {
	uint64_t seq, size, csize, clock, dclock;
	bool inlined;
};

/* A record: bits 0..46 minimum version, bit 47 H ("may be absent"). */
typedef uint64_t rec_t;
#define REC_H      (1ull << 47)
#define REC_MIN(r) ((r) & (REC_H - 1))

/* Offsets in a ROOT plaintext (inline = 0) and in node plaintexts. */
#define HEADER_ROOT_REC_DATA(i)  ((size_t)(i)*38u + 32u)
#define HEADER_ROOT_SPILL(i)     ((size_t)(i)*38u)
#define HEADER_ROOT_REC_GROUP(i) (152u + (size_t)(i)*6u)
#define HEADER_ROOT_REC_L1(i)    (512u + (size_t)(i)*6u)
#define HEADER_ROOT_REC_L2(i)    (872u + (size_t)(i)*6u)
#define HEADER_GROUP_SPILL(i)    ((size_t)(i)*38u)
#define HEADER_GROUP_REC(i)      ((size_t)(i)*38u + 32u)
#define HEADER_NODE_REC(i)       ((size_t)(i)*6u)

/* IDENT without its MAC: magic, version, layout, suite, flags, zero bytes. 0, -ENODATA (page all zero:
 * unborn) or -EBADMSG. */
MUST_CHECK int header_ident(const uint8_t page[static LAYOUT_PAGE], struct header_ident *out);
/* KC against the derived commitment, then the MAC of IDENT under K_hdr: call with the derived keys before using
 * them for anything else. 0 or -EBADMSG. */
MUST_CHECK int header_verify_ident(const uint8_t page[static LAYOUT_PAGE], const struct file_keys *);
void header_put_ident(uint8_t page[static LAYOUT_PAGE], const struct header_ident *, const struct file_keys *);

/* Slot which = 0 (A) or 1 (B). 0, -ENODATA (empty) or -EBADMSG (CRC, lengths, zeros). */
MUST_CHECK int header_slot(const uint8_t page[static LAYOUT_PAGE], int which, struct header_slot *out);
/* The ruling slot and its number (0/1) or -EBADMSG when none is valid. */
MUST_CHECK int header_ruling_slot(const uint8_t page[static LAYOUT_PAGE], struct header_slot *out);
void header_put_slot(uint8_t page[static LAYOUT_PAGE], int which, const struct header_slot *);
void header_clear_slot(uint8_t page[static LAYOUT_PAGE], int which);
/* Re-sealing: fresh goes into the inactive slot with the ruling one's seq + 1 (its own is ignored); NULL empties it.
 * The slot that changed (0/1), or -EBADMSG (none is valid), -ESTALE (the ruling one's seq is not `seq`), -EINVAL (fresh
 * is none that readers would accept), -EOVERFLOW (no higher seq is left); then the page is as before. */
MUST_CHECK int header_reslot(uint8_t page[static LAYOUT_PAGE], uint32_t seq, const struct header_slot *fresh);

/* The ruling STATE: highest seq with a valid MAC. 0 or -EBADMSG. */
MUST_CHECK int header_state(const uint8_t page[static LAYOUT_PAGE], const uint8_t hdr[static 32],
    const uint8_t file_id[static CONTEXT_ID], struct header_state *out);
/* Unauthenticated, for stat in doubt (section 6): higher seq whose fields are in range. 0 or -EBADMSG. */
MUST_CHECK int header_state_hint(const uint8_t page[static LAYOUT_PAGE], struct header_state *out);
/* Writes the STATE that seq selects (odd A, even B), leaving the other alone. */
void header_put_state(uint8_t page[static LAYOUT_PAGE], const struct header_state *, const uint8_t hdr[static 32],
    const uint8_t file_id[static CONTEXT_ID]);

/* ROOT at 2560. */
#define HEADER_ROOT_AT 2560u

static inline rec_t rec_get(const uint8_t *p)
{
	return le48_get(p);
}

static inline void rec_put(uint8_t *p, rec_t r)
{
	le48_put(p, r);
}

#endif
