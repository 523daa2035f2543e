/* vectors.h — the fixed inputs of byokfs-format(5), section 17, and hex comparison for cmocka tests. */
#ifndef BYOKFS_TEST_VECTORS_H
#define BYOKFS_TEST_VECTORS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sodium.h>
#include <string.h>

#include "bytes.h"
#include "context.h"

static inline void vector_fill(uint8_t *out, size_t n, uint8_t first)
{
	for (size_t i = 0; i < n; i++)
		out[i] = (uint8_t)(first + i);
}

static inline struct context_ids vector_ids(uint8_t suite)
{
	struct context_ids ids = { .suite = suite };

	vector_fill(ids.store, CONTEXT_ID, 0xa0);
	vector_fill(ids.domain, CONTEXT_ID, 0xb0);
	return ids;
}

#define VECTOR_SECRET(name) \
	uint8_t name[32];   \
	vector_fill(name, 32, 0x00)
#define VECTOR_DOMAIN_SECRET(name) \
	uint8_t name[32];          \
	vector_fill(name, 32, 0x20)
#define VECTOR_FILE_ID(name)      \
	uint8_t name[CONTEXT_ID]; \
	vector_fill(name, CONTEXT_ID, 0xc0)
#define VECTOR_RND(name)  \
	uint8_t name[10]; \
	vector_fill(name, 10, 0xe0)

/* Compares as hex, so that a failure shows both values. */
static inline void vector_assert(const void *got, size_t n, const char *hex)
{
	char text[2 * 4096 + 1];

	assert_true(n <= 4096);
	bytes_hex(text, got, n);
	assert_string_equal(text, hex);
}

static inline void vector_assert_sha256(const void *got, size_t n, const char *hex)
{
	uint8_t sum[32];

	(void)crypto_hash_sha256(sum, got, n);
	vector_assert(sum, sizeof(sum), hex);
}

#endif
