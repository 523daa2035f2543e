/* The hash table that keys of files are found in, and the order in which they leave it.
 *
 * file_ids come from the disk, so whoever owns the disk chooses them: the table's hash is keyed (SipHash). Idle keys
 * leave it in time; more than LEASE_KEYS_MOST are not waited for. */
#include <errno.h>
#include <sodium.h>

#include "io.h"
#include "lease_internal.h"
#include "secret.h"

#define BUCKETS_MIN 256u
#define FULL_LOOK   8u /* keys looked at, and given up, for a new one */

static _Atomic size_t tables;

static struct lease_key **bucket_of(struct lease_keys *k, const uint8_t *file)
{
	uint64_t hash;

	(void)crypto_shorthash((unsigned char *)&hash, file, CONTEXT_ID, k->seed);
	return &k->bucket[hash & (k->buckets - 1)];
}

int lease_keys_init(struct lease_keys *k, struct lease *l)
{
	int r;

	k->lease = l;
	TAILQ_INIT(&k->jobs);
	TAILQ_INIT(&k->aheads);
	TAILQ_INIT(&k->refreshes);
	TAILQ_INIT(&k->aged);
	k->pool_tail = &k->pool;
	k->wanting_tail = &k->wanting;
	k->tells_tail = &k->tells;
	secret_random(k->seed, sizeof(k->seed));
	k->bucket = calloc(BUCKETS_MIN, sizeof(struct lease_key *));
	if (!k->bucket)
		return -ENOMEM;
	k->buckets = BUCKETS_MIN;
	r = io_cond_init(&k->work);
	if (r) {
		free(k->bucket);
		return r;
	}
	(void)pthread_mutex_init(&k->lock, NULL);
	atomic_fetch_add(&tables, 1);
	return 0;
}

void lease_keys_destroy(struct lease_keys *k)
{
	(void)pthread_cond_destroy(&k->work);
	(void)pthread_mutex_destroy(&k->lock);
	free(k->bucket);
	atomic_fetch_sub(&tables, 1);
}

/* Twice as many buckets; without memory chains just get longer. */
static void table_grow(struct lease_keys *k)
{
	struct lease_key **old = k->bucket;
	struct lease_key **bucket = calloc(2 * k->buckets, sizeof(struct lease_key *));
	size_t n = k->buckets;

	if (!bucket)
		return;
	k->bucket = bucket;
	k->buckets = 2 * n;
	for (size_t i = 0; i < n; i++) {
		while (old[i]) {
			struct lease_key *key = old[i];
			struct lease_key **to = bucket_of(k, key->file);

			old[i] = key->next;
			key->next = *to;
			*to = key;
		}
	}
	free(old);
}

struct lease_key *lease_table_find(
    struct lease_keys *k, const uint8_t file[static CONTEXT_ID], const uint8_t commit[static 32])
{
	struct lease_key *other = NULL;

	for (struct lease_key *key = *bucket_of(k, file); key; key = key->next) {
		if (memcmp(key->file, file, CONTEXT_ID) != 0)
			continue;
		if (bytes_equal(key->commit, commit, sizeof(key->commit)))
			return key;
		if (key->loaded)
			other = key;
	}
	return other;
}

static size_t most(void)
{
	size_t share = LEASE_KEYS_MOST / atomic_load_explicit(&tables, memory_order_relaxed);

	return share > LEASE_KEYS_LEAST ? share : LEASE_KEYS_LEAST;
}

/* locked. Up to n keys that nobody uses, of the oldest, onto the list *dead. */
static void shed(struct lease_keys *k, size_t n, struct lease_key **dead)
{
	struct lease_key *key, *next;

	for (key = TAILQ_FIRST(&k->aged); key && n; key = next, n--) {
		next = TAILQ_NEXT(key, aged);
		if (!key->refs && !key->busy)
			lease_table_drop(k, key, dead);
	}
}

bool lease_keys_shed(struct lease_keys *k)
{
	struct lease_key *dead = NULL;
	bool any;

	{
		LOCK_SCOPE(&k->lock);
		shed(k, k->count / 2 + 1, &dead);
	}
	any = dead != NULL;
	lease_key_free_all(dead);
	return any;
}

void lease_key_touch(struct lease_key *key)
{
	struct lease_keys *k = key->owner;

	key->used = lease_clock();
	if (!key->listed || !TAILQ_NEXT(key, aged))
		return;
	TAILQ_REMOVE(&k->aged, key, aged);
	TAILQ_INSERT_TAIL(&k->aged, key, aged);
}

void lease_table_add(struct lease_keys *k, struct lease_key *key)
{
	struct lease_key **at, *dead = NULL;

	if (k->count >= most())
		shed(k, FULL_LOOK, &dead);
	lease_key_free_all(dead);
	if (k->count >= k->buckets)
		table_grow(k);
	at = bucket_of(k, key->file);
	key->next = *at;
	*at = key;
	key->listed = true;
	TAILQ_INSERT_TAIL(&k->aged, key, aged);
	k->count++;
}

void lease_table_remove(struct lease_keys *k, struct lease_key *key)
{
	struct lease_key **at = bucket_of(k, key->file);

	while (*at != key)
		at = &(*at)->next;
	*at = key->next;
	key->next = NULL;
	key->listed = false;
	TAILQ_REMOVE(&k->aged, key, aged);
	k->count--;
}

void lease_table_drop(struct lease_keys *k, struct lease_key *key, struct lease_key **dead)
{
	lease_table_remove(k, key);
	if (key->refs)
		return;
	key->next = *dead;
	*dead = key;
}
