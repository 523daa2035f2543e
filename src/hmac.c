/* hmac.c — HMAC over OpenSSL's hash functions.
 *
 * Hides which library hashes. Making or opening a file takes a dozen of these, and OpenSSL's hashes use the
 * processor's instructions for them, where libsodium's are portable C: a MAC of a header section takes a quarter of
 * the time. The plain functions are used, which OpenSSL 3 calls deprecated, because they work on the stack: the EVP way
 * allocates, and so can fail.                                                                */
#define OPENSSL_SUPPRESS_DEPRECATED
#include "hmac.h"

#include <openssl/sha.h>
#include <string.h>

#include "cleanup.h"

#define IPAD 0x36
#define OPAD 0x5c

static void pad(uint8_t *block, size_t size, const uint8_t *key, size_t keylen, uint8_t with)
{
	memset(block, with, size);
	for (size_t i = 0; i < keylen && i < HMAC_KEY_MAX; i++)
		block[i] ^= key[i];
}

void hmac_sha256(uint8_t out[static 32], const void *key, size_t keylen, const struct hmac_part *part, size_t parts)
{
	uint8_t block[SHA256_CBLOCK], inner[SHA256_DIGEST_LENGTH];
	WIPE_SCOPE(block);
	WIPE_SCOPE(inner);
	SHA256_CTX ctx;
	WIPE_SCOPE(ctx);

	pad(block, sizeof(block), key, keylen, IPAD);
	(void)SHA256_Init(&ctx);
	(void)SHA256_Update(&ctx, block, sizeof(block));
	for (size_t i = 0; i < parts; i++)
		(void)SHA256_Update(&ctx, part[i].p, part[i].n);
	(void)SHA256_Final(inner, &ctx);
	pad(block, sizeof(block), key, keylen, OPAD);
	(void)SHA256_Init(&ctx);
	(void)SHA256_Update(&ctx, block, sizeof(block));
	(void)SHA256_Update(&ctx, inner, sizeof(inner));
	(void)SHA256_Final(out, &ctx);
}

void hmac_sha512(uint8_t out[static 64], const void *key, size_t keylen, const struct hmac_part *part, size_t parts)
{
	uint8_t block[SHA512_CBLOCK], inner[SHA512_DIGEST_LENGTH];
	WIPE_SCOPE(block);
	WIPE_SCOPE(inner);
	SHA512_CTX ctx;
	WIPE_SCOPE(ctx);

	pad(block, sizeof(block), key, keylen, IPAD);
	(void)SHA512_Init(&ctx);
	(void)SHA512_Update(&ctx, block, sizeof(block));
	for (size_t i = 0; i < parts; i++)
		(void)SHA512_Update(&ctx, part[i].p, part[i].n);
	(void)SHA512_Final(inner, &ctx);
	pad(block, sizeof(block), key, keylen, OPAD);
	(void)SHA512_Init(&ctx);
	(void)SHA512_Update(&ctx, block, sizeof(block));
	(void)SHA512_Update(&ctx, inner, sizeof(inner));
	(void)SHA512_Final(out, &ctx);
}
