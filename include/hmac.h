/* hmac.h — HMAC-SHA-256 and HMAC-SHA-512 (RFC 2104) of a message in parts.
 *
 * Nothing of key or message is left behind. Keys are at most HMAC_KEY_MAX bytes.             */
#ifndef BYOKFS_HMAC_H
#define BYOKFS_HMAC_H

#include <stddef.h>
#include <stdint.h>

#define HMAC_KEY_MAX 64u

struct hmac_part {
	const void *p;
	size_t n;
};

void hmac_sha256(uint8_t out[static 32], const void *key, size_t keylen, const struct hmac_part *, size_t parts);
void hmac_sha512(uint8_t out[static 64], const void *key, size_t keylen, const struct hmac_part *, size_t parts);

#endif
