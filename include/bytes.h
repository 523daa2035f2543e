/* bytes.h — little-endian integers, text encodings, checksums. Pure.
 *
 * Encodings that may touch secrets (hex, base64) run in time independent of the content.   */
#ifndef BYOKFS_BYTES_H
#define BYOKFS_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

static inline uint16_t le16_get(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t le32_get(const uint8_t *p)
{
	return (uint32_t)le16_get(p) | (uint32_t)le16_get(p + 2) << 16;
}

static inline uint64_t le48_get(const uint8_t *p)
{
	return (uint64_t)le32_get(p) | (uint64_t)le16_get(p + 4) << 32;
}

static inline uint64_t le64_get(const uint8_t *p)
{
	return (uint64_t)le32_get(p) | (uint64_t)le32_get(p + 4) << 32;
}

static inline void le16_put(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static inline void le32_put(uint8_t *p, uint32_t v)
{
	le16_put(p, (uint16_t)v);
	le16_put(p + 2, (uint16_t)(v >> 16));
}

static inline void le48_put(uint8_t *p, uint64_t v)
{
	le32_put(p, (uint32_t)v);
	le16_put(p + 4, (uint16_t)(v >> 32));
}

static inline void le64_put(uint8_t *p, uint64_t v)
{
	le32_put(p, (uint32_t)v);
	le32_put(p + 4, (uint32_t)(v >> 32));
}

/* Lower-case hex of n bytes; out holds 2n+1. */
void bytes_hex(char *out, const uint8_t *in, size_t n);
/* Exactly n bytes from exactly 2n lower-case hex digits of text (textlen characters). 0 or -EINVAL. */
MUST_CHECK int bytes_unhex(uint8_t *out, size_t n, const char *text, size_t textlen);

/* base64 variants: B64_URL is base64url without padding (RFC 4648 section 5), B64_STD is standard
 * with padding. The encoder writes a terminating NUL and returns the length without it;
 * out must hold bytes_b64_size(n). The decoder accepts canonical text only (no blanks, no
 * stray bits) and returns the number of bytes, or -EINVAL (malformed) or -E2BIG (over max). */
enum bytes_b64 { B64_URL, B64_STD };
static inline size_t bytes_b64_size(size_t n)
{
	return (n + 2) / 3 * 4 + 1;
}
size_t bytes_b64(enum bytes_b64, char *out, const uint8_t *in, size_t n);
MUST_CHECK int bytes_unb64(enum bytes_b64, uint8_t *out, size_t max, const char *text, size_t textlen);

/* base32, lower case, unpadded, alphabet a-z2-7 (RFC 4648 section 6). Sizes and errors as above. */
static inline size_t bytes_b32_size(size_t n)
{
	return (n + 4) / 5 * 8 + 1;
}
size_t bytes_b32(char *out, const uint8_t *in, size_t n);
MUST_CHECK int bytes_unb32(uint8_t *out, size_t max, const char *text, size_t textlen);

/* CRC-32C (Castagnoli; RFC 3720 appendix B.4). */
uint32_t bytes_crc32c(const uint8_t *in, size_t n);

/* All n bytes zero? Not constant time; for on-disk padding and absent pages. */
bool bytes_zero(const void *p, size_t n);
/* Equal? Constant time. For MACs, tags, commitments. */
bool bytes_equal(const void *a, const void *b, size_t n);

#endif
