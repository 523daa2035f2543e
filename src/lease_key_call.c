/* One thread's questions to the KMS about file keys, and what comes of the answers.
 *
 * An answer that comes after a lock is thrown away. Where the KMS takes many keys in one request, whatever is queued
 * goes along with the first; what such a request could not do is asked again alone, with retries, when somebody waits
 * for it. Keys that nobody waits for fail in silence: whoever opens the file will be told. */
#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "io.h"
#include "lease_internal.h"
#include "secret.h"

#define BATCH_MOST 32u

/* What a call brought for one key. */
struct outcome {
	enum kms_status status;
	struct file_keys *keys; /* KMS_OK */
	uint64_t sent;
	const char *text; /* why not, or NULL: */
	const struct kms_err *err;
	uint8_t file[CONTEXT_ID], key_hash[8]; /* whose, and under what */
	bool loud; /* somebody is to read why */
};

/* Many keys in one request. */
struct batch {
	const struct lease_ring *ring;
	struct kms *kms; /* all of them are asked of it */
	struct lease_key *key[BATCH_MOST];
	const struct context_extra *extra[BATCH_MOST];
	struct context_cause cause[BATCH_MOST];
	struct kms_item item[BATCH_MOST];
	struct context context[BATCH_MOST];
	struct outcome outcome[BATCH_MOST];
};

/* What came of one call, until the lock is given up. */
struct news {
	struct lease_waiter *told;
	struct lease_key *dead;
	bool denied;
};

struct lease_call {
	struct context_cause cause;
	struct context context;
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
	char text[400];
	struct batch *batch; /* made when first needed */
	uint8_t *secrets;    /* the batch's */
};

struct lease_call *lease_call_new(void)
{
	struct lease_call *c = malloc(sizeof(*c));

	if (!c)
		return NULL;
	c->batch = NULL;
	c->secrets = NULL;
	return c;
}

void lease_call_free(struct lease_call *c)
{
	if (!c)
		return;
	secret_free(c->secrets);
	free(c->batch);
	free(c);
}

/* ---- what an answer means ---- */

/* The keys of a file from the secret that the KMS gave for it. */
static void derive(struct lease *l, const struct lease_key *key, const uint8_t *secret, struct outcome *o)
{
	o->keys = lease_key_derive(&l->keys, key->file, secret);
	if (!o->keys) {
		o->text = "out of memory";
		o->status = KMS_BUSY;
	} else if (!bytes_equal(o->keys->commit, key->commit, sizeof(key->commit))) {
		secret_free(steal_ptr(&o->keys));
		o->text = "commitment mismatch";
		o->status = KMS_BAD_BLOB;
	}
}

/* locked. The key serves: everyone who waited holds it now. */
static void unwrapped(struct lease_keys *k, struct lease_key *key, struct outcome *o)
{
	if (!key->loaded) {
		lease_key_load(key, steal_ptr(&o->keys), o->sent);
	} else {
		/* The commitment was equal, so are the keys. */
		key->unwrapped = o->sent;
		key->refresh = o->sent + k->lease->times.max_age_ms / 5 * 4;
	}
	for (struct lease_waiter *w = key->waiters; w; w = w->next) {
		w->key = key;
		key->refs++;
	}
}

/* locked. A key that was refused must not serve again; one whose KMS is silent may, until max_age. */
static void not_unwrapped(struct lease_keys *k, struct lease_key *key, enum kms_status status, struct lease_key **dead)
{
	if (key->listed && (!key->loaded || status == KMS_DENIED || status == KMS_BAD_BLOB))
		lease_table_drop(k, key, dead);
	/* What refuses, or hides from, one call nobody waits for would do so to the next hundred. */
	if (key->ahead && status != KMS_BAD_BLOB && status != KMS_BUSY)
		lease_ahead_cancel(k, dead);
}

/* locked. Everyone who waited, onto the list. */
static void release(struct lease_keys *k, struct lease_key *key, int result, struct lease_waiter **told)
{
	struct lease_waiter *w;

	while ((w = key->waiters)) {
		key->waiters = w->next;
		k->parked--;
		w->result = result;
		w->next = *told;
		*told = w;
	}
}

/* locked. Is an answer no answer for those who wait now? They may have come after the question, or with another blob,
 * which the one asked about does not speak for. waited: somebody was there before. */
static bool once_more(const struct lease_keys *k, struct lease_key *key, enum kms_status status, bool waited)
{
	if (key->epoch != k->epoch || !key->waiters)
		return false;
	if (status != KMS_OK && key->fresh) {
		free(key->blob);
		key->blob = steal_ptr(&key->fresh);
		return true;
	}
	if (status == KMS_BAD_BLOB && key->other) {
		free(key->blob);
		key->blob = steal_ptr(&key->other);
		return true;
	}
	return !waited && (status == KMS_BUSY || status == KMS_DOWN);
}

/* locked. Somebody waits for what a call failed to bring: once more, alone, and before all others. */
static void again(struct lease_keys *k, struct lease_key *key)
{
	key->alone = true;
	key->queue = &k->jobs;
	TAILQ_INSERT_HEAD(&k->jobs, key, queued);
	lease_wake(k);
}

/* locked. The call for this key is over, unless it is to be made again; the job's ref goes. */
static void settle(struct lease_keys *k, struct lease_key *key, struct outcome *o, bool waited, struct news *n)
{
	/* Of a slot that was exchanged meanwhile, a failure says nothing any more. */
	bool current = key->epoch == k->epoch, moot = key->fresh && o->status != KMS_OK;
	bool refused = current && o->status != KMS_OK && !moot;

	if (once_more(k, key, o->status, waited)) {
		again(k, key);
		return;
	}
	memcpy(o->file, key->file, sizeof(o->file));
	memcpy(o->key_hash, key->blob->key_hash, sizeof(o->key_hash));
	o->loud = refused && !key->ahead;
	n->denied |= refused && o->status == KMS_DENIED;
	key->busy = key->alone = false;
	free(steal_ptr(&key->other));
	if (refused)
		not_unwrapped(k, key, o->status, &n->dead);
	else if (current && !moot)
		unwrapped(k, key, o);
	if (key->fresh) {
		free(key->blob);
		key->blob = steal_ptr(&key->fresh);
	}
	if (current)
		release(k, key, refused ? -EIO : 0, &n->told);
	if (lease_key_unref(key)) {
		key->next = n->dead;
		n->dead = key;
	}
}

/* Says which key it was, unless it is the one that everything is under. */
static void complain(struct lease_keys *k, const struct outcome *o)
{
	const struct lease_ring *ring = lease_ring(k->lease);
	struct kms *kms = lease_ring_kms(ring, o->key_hash);
	char text[400], why[400] = "", line[2600];

	if (!o->text)
		kms_err_text(text, sizeof(text), o->err);
	if (o->status == KMS_BAD_BLOB && (!kms || !lease_ring_lists(ring, o->key_hash)) &&
	    !bytes_zero(o->key_hash, sizeof(o->key_hash)))
		lease_ring_explain(ring, o->key_hash, why, sizeof(why));
	if (kms && kms == lease_ring_before(ring))
		(void)snprintf(line, sizeof(line), "under key '%s', which a rotation is leaving: %s", kms_key(kms),
		    o->text ? o->text : text);
	else
		(void)snprintf(line, sizeof(line), "%s%s%s", o->text ? o->text : text, *why ? ": " : "", why);
	lease_complain(k, o->file, line);
}

/* locked; given up when there is something to say. All of a call's keys are settled. */
static void publish(struct lease_keys *k, struct outcome *o, size_t count, const struct news *n)
{
	bool quiet = !n->dead && !n->denied;

	for (size_t i = 0; i < count; i++)
		quiet = quiet && !o[i].keys && !o[i].loud;
	if (!quiet) {
		(void)pthread_mutex_unlock(&k->lock);
		for (size_t i = 0; i < count; i++) {
			secret_free(steal_ptr(&o[i].keys));
			if (o[i].loud)
				complain(k, &o[i]);
		}
		lease_key_free_all(n->dead);
		if (n->denied)
			lease_suspect(k->lease);
		(void)pthread_mutex_lock(&k->lock);
	}
	lease_tell_soon(k, n->told);
}

/* ---- one key ---- */

static void call_decrypt(struct lease *l, const struct lease_key *key, struct lease_call *c, struct outcome *o)
{
	const struct lease_ring *ring = lease_ring(l);
	const struct lease_blob *blob = key->blob;
	const struct context_extra *extra = descriptor_generation(ring->desc, blob->generation);
	struct kms *kms = lease_ring_kms(ring, blob->key_hash);
	uint8_t *secret = secret_alloc(KDF_SECRET);

	o->err = &c->err;
	if (!secret || !extra || !kms) {
		o->text = !kms ? "its key is not at hand"
		    : extra    ? "out of memory"
		               : "its context generation is not recorded";
		o->status = extra && kms ? KMS_BUSY : KMS_BAD_BLOB;
		secret_free(secret);
		return;
	}
	context_build(&c->context, CONTEXT_FILE, &l->ids, key->file, extra);
	c->context.cause = c->cause;
	o->status = kms_decrypt(kms, &c->context, blob->bytes, blob->len, kms_deadline(kms), secret, &c->used, &c->err);
	if (o->status == KMS_OK)
		derive(l, key, secret, o);
	secret_free(secret);
}

/* locked; given up during the call. */
static void unwrap_one(struct lease_keys *k, struct lease_key *key, struct lease_call *c)
{
	struct outcome o = { .sent = lease_clock() };
	bool waited = key->waiters;
	struct news n = { 0 };

	c->cause = key->waiters ? key->waiters->cause : (struct context_cause){ 0 };
	k->unwraps++;
	(void)pthread_mutex_unlock(&k->lock);
	call_decrypt(k->lease, key, c, &o);
	(void)pthread_mutex_lock(&k->lock);
	settle(k, key, &o, waited, &n);
	publish(k, &o, 1, &n);
}

/* ---- many keys ---- */

/* locked. Takes keys from the queue into the batch; those that need a call of their own, or of another key's service,
 * stay. */
static size_t gather(struct lease_keys *k, struct lease_queue *queue, struct batch *b, size_t n, size_t most)
{
	struct lease_key *key = TAILQ_FIRST(queue), *next;

	for (; key && n < most; key = next) {
		next = TAILQ_NEXT(key, queued);
		b->extra[n] = descriptor_generation(b->ring->desc, key->blob->generation);
		if (key->alone || !b->extra[n] || lease_ring_kms(b->ring, key->blob->key_hash) != b->kms)
			continue;
		lease_unqueue(k, key);
		b->cause[n] = key->waiters ? key->waiters->cause : (struct context_cause){ 0 };
		b->key[n++] = key;
	}
	return n;
}

/* locked; given up during the call. */
static void unwrap_batch(struct lease_keys *k, struct lease_call *c, size_t n)
{
	struct batch *b = c->batch;
	uint64_t sent = lease_clock();
	struct news news = { 0 };

	k->unwraps += n;
	(void)pthread_mutex_unlock(&k->lock);
	for (size_t i = 0; i < n; i++) {
		const struct lease_blob *blob = b->key[i]->blob;

		context_build(&b->context[i], CONTEXT_FILE, &k->lease->ids, b->key[i]->file, b->extra[i]);
		b->context[i].cause = b->cause[i];
		b->item[i].context = &b->context[i];
		b->item[i].blob = blob->bytes;
		b->item[i].len = blob->len;
		b->item[i].secret = c->secrets + i * KDF_SECRET;
	}
	kms_decrypt_batch(b->kms, b->item, n, kms_deadline(b->kms));
	for (size_t i = 0; i < n; i++) {
		struct outcome *o = &b->outcome[i];

		*o = (struct outcome){ .status = b->item[i].err.status, .sent = sent, .err = &b->item[i].err };
		if (o->status == KMS_OK)
			derive(k->lease, b->key[i], b->item[i].secret, o);
	}
	explicit_bzero(c->secrets, n * KDF_SECRET);
	(void)pthread_mutex_lock(&k->lock);
	/* What failed for many is asked again alone by whoever waits for it. */
	for (size_t i = 0; i < n; i++)
		settle(k, b->key[i], &b->outcome[i], false, &news);
	publish(k, b->outcome, n, &news);
}

/* How many keys one request of this service may carry; 1 also when there is no memory for more. */
static size_t batch_size(struct kms *kms, struct lease_call *c)
{
	size_t most = kms ? kms_batch_max(kms) : 1;

	if (most < 2)
		return 1;
	if (!c->batch)
		c->batch = calloc(1, sizeof(*c->batch));
	if (!c->secrets)
		c->secrets = secret_alloc(BATCH_MOST * KDF_SECRET);
	if (!c->batch || !c->secrets)
		return 1;
	return most < BATCH_MOST ? most : BATCH_MOST;
}

void lease_unwrap_next(struct lease_keys *k, struct lease_queue *queue, struct lease_call *c)
{
	struct lease_key *key = TAILQ_FIRST(queue);
	const struct lease_ring *ring = lease_ring(k->lease);
	struct kms *kms = lease_ring_kms(ring, key->blob->key_hash);
	size_t most = batch_size(kms, c), n = 0;

	if (most > 1 && !key->alone) {
		c->batch->ring = ring;
		c->batch->kms = kms;
		n = gather(k, queue, c->batch, 0, most);
		if (queue != &k->aheads)
			n = gather(k, &k->aheads, c->batch, n, most);
	}
	if (n > 1) {
		unwrap_batch(k, c, n);
		return;
	}
	if (n == 1)
		key = c->batch->key[0];
	else
		lease_unqueue(k, key);
	unwrap_one(k, key, c);
}

/* ---- new keys ---- */

static struct header_slot *slot_new(
    const struct kms *kms, const struct descriptor_slot *rules, const struct lease_call *c)
{
	struct header_slot *slot = calloc(1, sizeof(*slot));

	if (!slot)
		return NULL;
	slot->seq = 1;
	slot->wrap = HEADER_WRAP_KMS;
	slot->generation = rules->context;
	slot->provider = kms_provider_number(kms);
	kms_key_hash(slot->key_hash, kms_key(kms));
	slot->sealed_at = io_unix_time();
	memcpy(slot->material, c->used.material, sizeof(slot->material));
	slot->len = (uint16_t)c->blob.len;
	memcpy(slot->blob, c->blob.bytes, c->blob.len);
	return slot;
}

int lease_key_make(struct lease *l, struct lease_key *key, const uint8_t secret[static KDF_SECRET],
    struct header_slot **slot, uint64_t sent)
{
	struct file_keys *keys;

	if (!*slot || lease_key_set_blob(key, *slot))
		return -ENOMEM;
	keys = lease_key_derive(&l->keys, key->file, secret);
	if (!keys)
		return -ENOMEM;
	key->made = steal_ptr(slot);
	lease_key_load(key, keys, sent);
	return 0;
}

static enum kms_status generate(struct lease *l, struct lease_key *key, struct lease_call *c, uint8_t *secret)
{
	const struct lease_ring *ring = lease_ring(l);
	const struct descriptor_slot *rules = lease_ring_slot(ring);
	const struct context_extra *extra = rules ? descriptor_generation(ring->desc, rules->context) : NULL;
	struct kms *kms = lease_ring_now(ring);
	uint64_t sent = lease_clock();
	CLEANUP_FREE struct header_slot *slot = NULL;
	enum kms_status status;

	memset(&c->err, 0, sizeof(c->err));
	(void)snprintf(c->text, sizeof(c->text), "out of memory");
	if (!key || !secret)
		return KMS_BUSY;
	if (!extra) {
		(void)snprintf(c->text, sizeof(c->text), "the context generation of the domain's slot is not recorded");
		return KMS_CONFIG;
	}
	context_build(&c->context, CONTEXT_FILE, &l->ids, key->file, extra);
	c->context.cause = c->cause;
	status = kms_generate(kms, &c->context, kms_deadline(kms), secret, &c->blob, &c->used, &c->err);
	if (status != KMS_OK) {
		kms_err_text(c->text, sizeof(c->text), &c->err);
		return status;
	}
	if (c->blob.len == 0 || c->blob.len > HEADER_BLOB_MAX) {
		(void)snprintf(c->text, sizeof(c->text),
		    "this provider's blobs are too large for seal=file (%zu bytes, at most %u)", c->blob.len,
		    HEADER_BLOB_MAX);
		return KMS_CONFIG;
	}
	slot = slot_new(kms, rules, c);
	return lease_key_make(l, key, secret, &slot, sent) ? KMS_BUSY : KMS_OK;
}

enum kms_status lease_call_generate(struct lease *l, struct lease_call *c, const struct context_cause *cause,
    struct lease_key **out, const char **text)
{
	uint8_t *secret = secret_alloc(KDF_SECRET), file[CONTEXT_ID];
	struct lease_key *key;
	enum kms_status status;

	c->cause = *cause;
	*text = c->text;
	secret_random(file, sizeof(file));
	key = lease_key_new(&l->keys, file);
	status = generate(l, key, c, secret);
	secret_free(secret);
	if (status == KMS_OK)
		*out = steal_ptr(&key);
	lease_key_free(key);
	return status;
}
