/* The keys of existing files: who may have one now, who waits, and who goes.
 *
 * A key is found in the table, or is derived on the spot (sealed by the domain key), or is asked for: then a KMS thread
 * makes one call for it, however many wait. Keys near max_age that are still in use are renewed in the background, so a
 * hot file never stalls; once past it, users wait for the KMS like the first one did. */
#include <errno.h>

#include "bytes.h"
#include "lease_internal.h"
#include "secret.h"

static int refuse(struct lease_keys *k, const uint8_t *file, const char *why)
{
	lease_complain(k, file, why);
	return -EIO;
}

/* Only files of this domain may be asked for: everything the derivation takes from the domain must be the file's own.
 */
static bool same_ids(const struct context_ids *ids, const struct header_ident *ident)
{
	return ident->suite == ids->suite && memcmp(ident->store, ids->store, CONTEXT_ID) == 0 &&
	    memcmp(ident->domain, ids->domain, CONTEXT_ID) == 0;
}

/* locked. May a key in the table serve without a new call? While the domain is locking nobody can be asked any more,
 * and what was written must still reach the disk. */
static bool key_serves(const struct lease_keys *k, const struct lease_key *key)
{
	if (!key->loaded)
		return false;
	return !k->accepting || key->blob->wrap == HEADER_WRAP_DOMAIN ||
	    lease_clock() - key->unwrapped < k->lease->times.max_age_ms;
}

/* locked. Is there somebody to ask for it again? */
static bool askable(const struct lease_keys *k, const struct lease_blob *blob)
{
	return blob->wrap == HEADER_WRAP_KMS && lease_ring_kms(lease_ring(k->lease), blob->key_hash);
}

/* locked. Queues one call. */
static void ask_for(struct lease_keys *k, struct lease_key *key, struct lease_queue *queue)
{
	key->busy = true;
	key->refs++;
	key->epoch = k->epoch;
	key->queue = queue;
	TAILQ_INSERT_TAIL(queue, key, queued);
	k->naheads += queue == &k->aheads;
	lease_wake(k);
}

void lease_unqueue(struct lease_keys *k, struct lease_key *key)
{
	k->naheads -= key->queue == &k->aheads;
	TAILQ_REMOVE(key->queue, key, queued);
	key->queue = NULL;
}

/* locked. Somebody waits for it now: what no thread has begun goes to the queue of what is waited for. */
static void hasten(struct lease_keys *k, struct lease_key *key)
{
	if (!key->queue)
		return;
	if (key->queue == &k->jobs) {
		lease_wake(k);
		return;
	}
	lease_unqueue(k, key);
	key->refs--;
	ask_for(k, key, &k->jobs);
}

/* locked. Somebody wants this key. */
static void wanted(struct lease_keys *k, struct lease_key *key)
{
	k->ahead_used += key->ahead;
	key->ahead = false;
}

/* locked. */
static int take(struct lease_keys *k, struct lease_key *key, struct lease_key **out)
{
	uint64_t now = lease_clock();

	wanted(k, key);
	key->refs++;
	lease_key_touch(key);
	k->hits++;
	if (k->accepting && !key->busy && now >= key->refresh && askable(k, key->blob)) {
		/* A renewal that fails is not tried again with every use. */
		key->refresh = now + k->lease->times.max_age_ms / 10;
		ask_for(k, key, &k->refreshes);
	}
	*out = key;
	return 0;
}

/* locked. It is asked for already, perhaps with another blob: then this one is tried as well. */
static int join(struct lease_key *key, const struct header_slot *slot)
{
	if (key->queue && !key->waiters)
		return lease_key_set_blob(key, slot);
	return lease_key_set_other(key, slot);
}

/* locked. The key in the table (made when there is none), ready to be asked for with this blob. */
static int enlist(struct lease_keys *k, struct lease_key **key, const struct header_ident *ident,
    const struct header_slot *slot)
{
	struct lease_key *new;
	int r;

	if (*key)
		return (*key)->busy ? join(*key, slot) : lease_key_set_blob(*key, slot);
	new = lease_key_new(k, ident->file);
	if (!new)
		return -ENOMEM;
	memcpy(new->commit, ident->commit, sizeof(new->commit));
	r = lease_key_set_blob(new, slot);
	if (r) {
		lease_key_free(new);
		return r;
	}
	lease_table_add(k, new);
	*key = new;
	return 0;
}

/* locked. Asks for a key that cannot serve, and parks w. */
static int request(struct lease_keys *k, struct lease_key *key, const struct header_ident *ident,
    const struct header_slot *slot, struct lease_waiter *w)
{
	int r = k->accepting ? enlist(k, &key, ident, slot) : -EIO;

	if (r)
		return r;
	wanted(k, key);
	if (key->busy)
		hasten(k, key);
	else
		ask_for(k, key, &k->jobs);
	if (!w)
		return -EAGAIN;
	lease_park(k, &key->waiters, w);
	return -EINPROGRESS;
}

/* From the table: 0, -EBADMSG (the file's commitment is another, and that was proved), -EAGAIN (not there, and slot is
 * NULL), or what request() says. */
static int look_up(struct lease_keys *k, const struct header_ident *ident, const struct header_slot *slot,
    struct lease_waiter *w, struct lease_key **out)
{
	struct lease_key *key;

	LOCK_SCOPE(&k->lock);
	key = lease_table_find(k, ident->file, ident->commit);
	if (key && !bytes_equal(key->commit, ident->commit, sizeof(key->commit)))
		return -EBADMSG;
	if (key && key_serves(k, key))
		return take(k, key, out);
	if (!slot || slot->wrap == HEADER_WRAP_DOMAIN)
		return -EAGAIN;
	return request(k, key, ident, slot, w);
}

/* Under a key that is not at hand: nobody is asked. */
static int refuse_key(struct lease_keys *k, const struct header_ident *ident, const struct header_slot *slot)
{
	char why[500];

	lease_ring_explain(lease_ring(k->lease), slot->key_hash, why, sizeof(why));
	return refuse(k, ident->file, why);
}

/* Sealed by the domain key: derived here and now. */
static int unwrap_local(
    struct lease *l, const struct header_ident *ident, const struct header_slot *slot, struct lease_key **out)
{
	struct lease_keys *k = &l->keys;
	struct lease_key *key, *mine;
	struct file_keys *keys = NULL;
	uint8_t *secret;

	if (slot->len != KDF_WRAP_BLOB)
		return refuse(k, ident->file, "the sealed key has a wrong length");
	secret = secret_alloc(KDF_SECRET);
	if (secret && kdf_unwrap(secret, slot->blob, l->domain.keys, &l->ids, ident->file) == 0)
		keys = lease_key_derive(k, ident->file, secret);
	secret_free(secret);
	if (!keys)
		return refuse(k, ident->file, "the sealed key does not open under the domain key");
	if (!bytes_equal(keys->commit, ident->commit, sizeof(ident->commit))) {
		secret_free(keys);
		return refuse(k, ident->file, "commitment mismatch");
	}
	mine = lease_key_new(k, ident->file);
	if (!mine || lease_key_set_blob(mine, slot)) {
		lease_key_free(mine);
		secret_free(keys);
		return -ENOMEM;
	}
	lease_key_load(mine, keys, lease_clock());
	{
		LOCK_SCOPE(&k->lock);
		key = lease_table_find(k, ident->file, ident->commit);
		if (!key)
			lease_table_add(k, mine);
		/* One that waits for the KMS (the file was just re-sealed) stays there; this user goes its own way. */
		if (!key || !key->loaded || !bytes_equal(key->commit, mine->commit, sizeof(mine->commit)))
			key = mine;
		key->refs++;
	}
	if (key != mine)
		lease_key_free(mine);
	*out = key;
	return 0;
}

int lease_file_key(struct lease *l, const struct header_ident *ident, const struct header_slot *slot,
    struct lease_waiter *w, struct lease_key **out)
{
	struct lease_key *held = w ? steal_ptr(&w->key) : NULL;
	bool ask;
	int r;

	if (!same_ids(&l->ids, ident)) {
		lease_key_put(held);
		return refuse(&l->keys, ident->file, "the file belongs to another store or domain");
	}
	/* What the KMS gave to this waiter is for it, however small max_age is. */
	if (held && held->loaded && memcmp(held->file, ident->file, CONTEXT_ID) == 0 &&
	    bytes_equal(held->commit, ident->commit, sizeof(ident->commit))) {
		*out = held;
		return 0;
	}
	lease_key_put(held);
	ask = slot && lease_knows(l, slot);
	r = look_up(&l->keys, ident, ask ? slot : NULL, ask ? w : NULL, out);
	if (r == -EBADMSG)
		return refuse(&l->keys, ident->file, "commitment mismatch");
	if (r == -EAGAIN && ask && slot->wrap == HEADER_WRAP_DOMAIN)
		return unwrap_local(l, ident, slot, out);
	return r == -EAGAIN && slot && !ask ? refuse_key(&l->keys, ident, slot) : r;
}

int lease_key_ahead(struct lease *l, const struct header_ident *ident, const struct header_slot *slot)
{
	struct lease_keys *k = &l->keys;
	struct lease_key *key;
	int r;

	if (!same_ids(&l->ids, ident))
		return -EIO;
	if (slot->wrap == HEADER_WRAP_DOMAIN)
		return 0;
	if (!lease_knows(l, slot))
		return -EIO;
	LOCK_SCOPE(&k->lock);
	key = lease_table_find(k, ident->file, ident->commit);
	if (key && !bytes_equal(key->commit, ident->commit, sizeof(key->commit)))
		return -EIO;
	if (key && (key->busy || key_serves(k, key)))
		return 0;
	if (!k->accepting || k->naheads >= LEASE_AHEAD_MAX)
		return -EIO;
	r = enlist(k, &key, ident, slot);
	if (r)
		return r;
	key->ahead = true;
	k->ahead++;
	ask_for(k, key, &k->aheads);
	return 1;
}

void lease_keys_accept(struct lease_keys *k)
{
	LOCK_SCOPE(&k->lock);
	k->accepting = true;
	k->demand = lease_clock();
	k->retry = 0;
	lease_pool_open(k);
}

struct lease_waiter *lease_pop_wanting(struct lease_keys *k)
{
	struct lease_waiter *w = k->wanting;

	if (!w)
		return NULL;
	k->wanting = w->next;
	if (!k->wanting)
		k->wanting_tail = &k->wanting;
	w->next = NULL;
	k->wanted--;
	k->parked--;
	return w;
}

void lease_pool_expire(struct lease_keys *k, uint64_t now, bool all, struct lease_waiter **late)
{
	struct lease_waiter *w;

	while ((w = k->wanting) && (all || now >= w->deadline)) {
		(void)lease_pop_wanting(k);
		w->next = *late;
		*late = w;
	}
}

/* locked. Waiters past their deadline, or all, onto *late. */
static void expire(struct lease_keys *k, struct lease_waiter **list, uint64_t now, bool all, struct lease_waiter **late)
{
	while (*list) {
		struct lease_waiter *w = *list;

		if (!all && now < w->deadline) {
			list = &w->next;
			continue;
		}
		*list = w->next;
		w->next = *late;
		*late = w;
		k->parked--;
	}
}

/* locked. */
static void expire_all(struct lease_keys *k, uint64_t now, bool all, struct lease_waiter **late)
{
	lease_pool_expire(k, now, all, late);
	for (size_t i = 0; i < k->buckets && k->parked; i++)
		for (struct lease_key *key = k->bucket[i]; key; key = key->next)
			expire(k, &key->waiters, now, all, late);
}

/* locked. Jobs no thread has begun are not begun any more. Their keys are in the table, or some holder's. */
static void cancel_jobs(struct lease_keys *k, struct lease_queue *queue)
{
	struct lease_key *key;

	while ((key = TAILQ_FIRST(queue))) {
		lease_unqueue(k, key);
		key->busy = false;
		key->refs--;
	}
}

void lease_ahead_cancel(struct lease_keys *k, struct lease_key **dead)
{
	struct lease_key *key;

	while ((key = TAILQ_FIRST(&k->aheads))) {
		lease_unqueue(k, key);
		key->busy = false;
		key->refs--;
		if (!key->loaded)
			lease_table_drop(k, key, dead);
	}
}

void lease_keys_refuse(struct lease_keys *k)
{
	struct lease_waiter *late = NULL;

	{
		LOCK_SCOPE(&k->lock);
		k->accepting = false;
		k->epoch++;
		cancel_jobs(k, &k->jobs);
		cancel_jobs(k, &k->aheads);
		cancel_jobs(k, &k->refreshes);
		expire_all(k, 0, true, &late);
	}
	lease_tell(late, -EIO);
}

/* locked. Takes the keys out of a lease_key that somebody still counts on. */
static void wipe_held(struct lease_key *key)
{
	key->loaded = false;
	secret_free(key->keys);
	key->keys = NULL;
	memset(&key->block, 0, sizeof(key->block));
}

void lease_keys_wipe(struct lease_keys *k)
{
	struct lease_key *dead = NULL;

	{
		LOCK_SCOPE(&k->lock);
		lease_pool_drain(k, 0, true, &dead);
		for (size_t i = 0; i < k->buckets; i++) {
			while (k->bucket[i]) {
				struct lease_key *key = k->bucket[i];

				if (key->refs)
					wipe_held(key);
				lease_table_drop(k, key, &dead);
			}
		}
	}
	lease_key_free_all(dead);
}

/* locked. */
static void sweep(struct lease_keys *k, uint64_t now, struct lease_key **dead)
{
	uint64_t idle = k->lease->times.idle_ms;

	lease_pool_drain(k, now, false, dead);
	if (now < k->sweep)
		return;
	k->sweep = now + idle / 4;
	/* In the order of use: who comes after one that is not idle is not either. */
	for (struct lease_key *key = TAILQ_FIRST(&k->aged), *next; key && now - key->used >= idle; key = next) {
		next = TAILQ_NEXT(key, aged);
		/* Renewed in vain: nobody used it since. */
		if (key->queue == &k->refreshes && key->refs == 1) {
			lease_unqueue(k, key);
			key->busy = false;
			key->refs--;
		}
		if (!key->refs && !key->busy)
			lease_table_drop(k, key, dead);
	}
}

void lease_keys_tick(struct lease_keys *k)
{
	struct lease_waiter *late = NULL;
	struct lease_key *dead = NULL;

	{
		LOCK_SCOPE(&k->lock);
		uint64_t now = lease_clock();

		expire_all(k, now, false, &late);
		sweep(k, now, &dead);
		lease_pool_tick(k);
	}
	lease_key_free_all(dead);
	lease_tell(late, -EIO);
}
