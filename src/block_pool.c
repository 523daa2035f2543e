/* block_pool.c — keyed cipher contexts that nobody is using at the moment.
 *
 * Making one costs two AES key schedules and GCM's tables, about a microsecond against two for a whole page. So
 * they are kept: a small hash table by (serial, selector), and a list by age to evict from. A context is out of
 * the pool while someone holds it; two threads in the same group simply hold two.                           */
#include "block_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "block.h"

#define IDLE_MAX 1024u
#define BUCKETS  1024u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Guarded by lock. */
static struct block_ctx *buckets[BUCKETS];
static struct block_ctx *newest, *oldest;
static unsigned idle;

static void ctx_free(struct block_ctx *ctx)
{
	if (!ctx)
		return;
	EVP_CIPHER_CTX_free(ctx->gcm); /* wipes */
	free(ctx);
}

static bool serves(const struct block_ctx *ctx, uint64_t serial, const uint8_t selector[static XAES_SELECTOR])
{
	return ctx->serial == serial && memcmp(ctx->selector, selector, XAES_SELECTOR) == 0;
}

/* Serials and group numbers are small and dense, so mixing need not be strong; nobody gains by collisions but
 * the file's own writer. */
static struct block_ctx **bucket_of(uint64_t serial, const uint8_t selector[static XAES_SELECTOR])
{
	uint64_t a, h = serial;
	uint32_t b;

	memcpy(&a, selector, sizeof(a));
	memcpy(&b, selector + sizeof(a), sizeof(b));
	h = (h ^ a) * 0x9e3779b97f4a7c15ull;
	h = (h ^ h >> 32 ^ b) * 0x9e3779b97f4a7c15ull;
	return &buckets[h >> 54];
}
_Static_assert(BUCKETS == 1u << (64 - 54), "the top bits of the hash number a bucket");

static void unlink_ctx(struct block_ctx *ctx)
{
	struct block_ctx **at = bucket_of(ctx->serial, ctx->selector);

	while (*at != ctx)
		at = &(*at)->chain;
	*at = ctx->chain;
	*(ctx->newer ? &ctx->newer->older : &newest) = ctx->older;
	*(ctx->older ? &ctx->older->newer : &oldest) = ctx->newer;
	ctx->chain = ctx->newer = ctx->older = NULL;
	idle--;
}

static void link_ctx(struct block_ctx *ctx)
{
	struct block_ctx **bucket = bucket_of(ctx->serial, ctx->selector);

	ctx->chain = *bucket;
	*bucket = ctx;
	ctx->newer = NULL;
	ctx->older = newest;
	*(newest ? &newest->newer : &oldest) = ctx;
	newest = ctx;
	idle++;
}

/* The context asked for, or when the pool is full the oldest one, to be keyed anew; or NULL. */
static struct block_ctx *take_idle(uint64_t serial, const uint8_t selector[static XAES_SELECTOR])
{
	struct block_ctx *ctx;

	LOCK_SCOPE(&lock);
	for (ctx = *bucket_of(serial, selector); ctx; ctx = ctx->chain)
		if (serves(ctx, serial, selector))
			break;
	if (!ctx && idle >= IDLE_MAX)
		ctx = oldest;
	if (ctx)
		unlink_ctx(ctx);
	return ctx;
}

struct block_ctx *block_pool_take(
    uint64_t serial, const uint8_t key[static 32], const uint8_t selector[static XAES_SELECTOR])
{
	struct block_ctx *ctx = take_idle(serial, selector);
	uint8_t subkey[32];
	WIPE_SCOPE(subkey);

	if (ctx && serves(ctx, serial, selector))
		return ctx;
	if (!ctx)
		ctx = calloc(1, sizeof(*ctx));
	if (!ctx || aead_xaes_subkey(subkey, key, selector) != 0 || aead_gcm_key(&ctx->gcm, subkey) != 0) {
		ctx_free(ctx);
		return NULL;
	}
	ctx->serial = serial;
	memcpy(ctx->selector, selector, XAES_SELECTOR);
	return ctx;
}

void block_pool_give(struct block_ctx *ctx)
{
	struct block_ctx *evicted = NULL;

	(void)pthread_mutex_lock(&lock);
	if (idle >= IDLE_MAX) {
		evicted = oldest;
		unlink_ctx(evicted);
	}
	link_ctx(ctx);
	(void)pthread_mutex_unlock(&lock);
	ctx_free(evicted);
}

static void forget(bool all, uint64_t serial)
{
	struct block_ctx *gone = NULL, *next;

	(void)pthread_mutex_lock(&lock);
	for (struct block_ctx *ctx = newest; ctx; ctx = next) {
		next = ctx->older;
		if (!all && ctx->serial != serial)
			continue;
		unlink_ctx(ctx);
		ctx->chain = gone;
		gone = ctx;
	}
	(void)pthread_mutex_unlock(&lock);
	for (; gone; gone = next) {
		next = gone->chain;
		ctx_free(gone);
	}
}

void block_forget(uint64_t serial)
{
	forget(false, serial);
}

void block_forget_all(void)
{
	forget(true, 0);
}
