/* One key takes another's place while both work and everything goes on.
 *
 * The domain secret stays what it is, and so do the files' keys: a rotation exchanges how they are sealed. So nothing
 * in hand is given up, only what is sealed already and not handed out: new keys made ahead under the key that goes. */
#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "lease_internal.h"
#include "secret.h"

/* May new keys be made there? The one made here is thrown away. */
static enum kms_status try_generate(
    const struct lease *l, struct kms *kms, const struct context_extra *extra, struct context *c, struct kms_err *err)
{
	CLEANUP_FREE struct kms_blob *blob = malloc(sizeof(*blob));
	uint8_t *secret = secret_alloc(KDF_SECRET), file[CONTEXT_ID];
	enum kms_status status = KMS_CONFIG;
	struct kms_used used;

	if (blob && secret) {
		secret_random(file, sizeof(file));
		context_build(c, CONTEXT_FILE, &l->ids, file, extra);
		status = kms_generate(kms, c, kms_deadline(kms), secret, blob, &used, err);
	} else {
		err->status = status;
		(void)snprintf(err->message, sizeof(err->message), "out of memory");
	}
	secret_free(secret);
	return status;
}

enum kms_status lease_prove(struct lease *l, struct kms *kms, const struct descriptor_slot *slot,
    const struct context_extra *extra, struct kms_err *err)
{
	const struct lease_ring *ring = lease_ring(l);
	CLEANUP_FREE struct context *c = malloc(sizeof(*c));
	struct lease_domain domain = { 0 };
	enum kms_status status;

	memset(err, 0, sizeof(*err));
	if (!c) {
		err->status = KMS_CONFIG;
		(void)snprintf(err->message, sizeof(err->message), "out of memory");
		return KMS_CONFIG;
	}
	status = lease_ask_slot(l, ring, kms, slot, extra, kms_deadline(kms), c, &domain, err);
	lease_domain_wipe(&domain);
	if (status == KMS_OK)
		status = lease_ask_slot(l, ring, kms, slot, extra, kms_deadline(kms), c, NULL, err);
	if (status == KMS_OK && ring->desc->seal == SEAL_FILE)
		status = try_generate(l, kms, extra, c, err);
	return status;
}

/* The slot under this key, the ruling one of two; without any the one that rules. */
static const struct descriptor_slot *slot_of(const struct lease_ring *r, const struct kms *kms)
{
	const struct descriptor_slot *rules = descriptor_ruling_slot(r->desc), *other;

	if (!rules || lease_ring_serves(r, rules) == kms)
		return rules;
	other = lease_ring_other(r, rules);
	return other && lease_ring_serves(r, other) == kms ? other : rules;
}

int lease_rekey(struct lease *l, const struct descriptor_domain *desc, struct kms *now, struct kms *before)
{
	struct lease_ring *ring = lease_ring_make(desc, now, before);
	struct lease_key *dead = NULL;

	if (!ring)
		return -ENOMEM;
	atomic_store(&ring->opened_by, slot_of(ring, now));
	{
		LOCK_SCOPE(&l->lock);
		pthread_mutex_lock(&l->keys.lock);
		ring->older = atomic_load(&l->ring);
		atomic_store_explicit(&l->ring, ring, memory_order_release);
		lease_pool_rekey(&l->keys, &dead);
		pthread_mutex_unlock(&l->keys.lock);
		/* The canary of the new key is asked at once. */
		l->next_probe = 0;
		l->before_until = lease_clock() + l->times.lease_ms;
		l->before_trouble[0] = '\0';
		l->withdrawn = false;
		(void)pthread_cond_broadcast(&l->changed);
	}
	lease_key_free_all(dead);
	return 0;
}

/* locked. What a thread has in its hands stays as it is until the answer is there. */
static int exchange(struct lease_key *key, const struct header_slot *slot)
{
	if (!key->busy || key->queue)
		return lease_key_set_blob(key, slot);
	return lease_key_set_fresh(key, slot);
}

void lease_resealed(struct lease *l, const struct header_ident *ident, const struct header_slot *slot)
{
	struct lease_keys *k = &l->keys;
	struct lease_key *key, *dead = NULL;

	{
		LOCK_SCOPE(&k->lock);
		key = lease_table_find(k, ident->file, ident->commit);
		/* Without memory for it the key is fetched anew with the next use. */
		if (key && bytes_equal(key->commit, ident->commit, sizeof(key->commit)) && exchange(key, slot) &&
		    !key->busy)
			lease_table_drop(k, key, &dead);
	}
	lease_key_free_all(dead);
}

bool lease_knows(const struct lease *l, const struct header_slot *slot)
{
	return slot->wrap == HEADER_WRAP_DOMAIN || lease_ring_kms(lease_ring(l), slot->key_hash);
}

struct kms *lease_kms_of(const struct lease *l, const struct header_slot *slot)
{
	return lease_ring_kms(lease_ring(l), slot->key_hash);
}

bool lease_rotating(const struct lease *l)
{
	return descriptor_other_slot(lease_ring(l)->desc);
}

struct kms *lease_kms(const struct lease *l, bool before)
{
	const struct lease_ring *ring = lease_ring(l);

	return before ? lease_ring_before(ring) : lease_ring_now(ring);
}

bool lease_advice(const struct lease *l, char *out, size_t size)
{
	const struct lease_ring *ring = lease_ring(l);

	if (!lease_ring_missing(ring))
		return false;
	lease_ring_advise(ring, out, size);
	return true;
}

/* ---- the key before is withdrawn ---- */

/* locked. Was it unwrapped by that key, which alone could do it again? */
static bool is_under(const struct lease_ring *ring, const struct lease_key *key)
{
	return key->loaded && !key->busy && key->blob->wrap == HEADER_WRAP_KMS &&
	    lease_ring_kms(ring, key->blob->key_hash) == lease_ring_before(ring);
}

bool lease_keys_under(struct lease_keys *k, const struct lease_ring *ring)
{
	LOCK_SCOPE(&k->lock);
	for (size_t i = 0; i < k->buckets; i++)
		for (const struct lease_key *key = k->bucket[i]; key; key = key->next)
			if (is_under(ring, key))
				return true;
	return false;
}

unsigned lease_keys_withdraw(struct lease_keys *k, const struct lease_ring *ring)
{
	struct lease_key *dead = NULL, *next;
	unsigned dropped = 0;

	{
		LOCK_SCOPE(&k->lock);
		for (size_t i = 0; i < k->buckets; i++)
			for (struct lease_key *key = k->bucket[i]; key; key = next) {
				next = key->next;
				if (!is_under(ring, key))
					continue;
				/* Whoever is using it now finishes what he does. */
				lease_table_drop(k, key, &dead);
				dropped++;
			}
	}
	lease_key_free_all(dead);
	return dropped;
}
