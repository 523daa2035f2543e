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

/* Many keys in one request. */
struct batch {
	struct lease_key *key[BATCH_MOST];
	const struct context_extra *extra[BATCH_MOST];
	struct context_cause cause[BATCH_MOST];
	struct kms_item item[BATCH_MOST];
	struct context context[BATCH_MOST];
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

/* What a call brought for one key. */
struct outcome {
	enum kms_status status;
	struct file_keys *keys; /* KMS_OK */
	uint64_t sent;
	const char *text; /* why not */
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
static struct lease_waiter *unwrapped(struct lease_keys *k, struct lease_key *key, struct outcome *o)
{
	struct lease_waiter *told = steal_ptr(&key->waiters);

	if (!key->loaded) {
		lease_key_load(key, steal_ptr(&o->keys), o->sent);
	} else {
		/* The commitment was equal, so are the keys. */
		key->unwrapped = o->sent;
		key->refresh = o->sent + k->lease->params.max_age_ms / 5 * 4;
	}
	for (struct lease_waiter *w = told; w; w = w->next) {
		w->key = key;
		key->refs++;
		k->parked--;
	}
	return told;
}

/* locked. A key that was refused must not serve again; one whose KMS is silent may, until max_age. */
static struct lease_waiter *not_unwrapped(
    struct lease_keys *k, struct lease_key *key, enum kms_status status, struct lease_key **dead)
{
	struct lease_waiter *told = steal_ptr(&key->waiters);

	for (struct lease_waiter *w = told; w; w = w->next)
		k->parked--;
	if (key->listed && (!key->loaded || status == KMS_DENIED || status == KMS_BAD_BLOB))
		lease_table_drop(k, key, dead);
	/* What refuses, or hides from, one call nobody waits for would do so to the next hundred. */
	if (key->ahead && status != KMS_BAD_BLOB && status != KMS_BUSY)
		lease_ahead_cancel(k, dead);
	return told;
}

/* locked; given up to tell the world. The call for this key is over; the job's ref goes. */
static void settle(struct lease_keys *k, struct lease_key *key, struct outcome *o)
{
	bool current = key->epoch == k->epoch, silent = key->ahead, refused = current && o->status != KMS_OK;
	struct lease_waiter *told = NULL;
	struct lease_key *dead = NULL;
	uint8_t file[CONTEXT_ID];

	memcpy(file, key->file, sizeof(file));
	key->busy = key->alone = false;
	if (current)
		told = refused ? not_unwrapped(k, key, o->status, &dead) : unwrapped(k, key, o);
	if (lease_key_unref(key)) {
		key->next = dead;
		dead = key;
	}
	if (!told && !dead && !o->keys && !refused)
		return;
	(void)pthread_mutex_unlock(&k->lock);
	secret_free(steal_ptr(&o->keys));
	if (refused && !silent)
		lease_complain(k, file, o->text);
	lease_key_free_all(dead);
	if (refused && o->status == KMS_DENIED)
		lease_suspect(k->lease);
	lease_tell(told, refused ? -EIO : 0);
	(void)pthread_mutex_lock(&k->lock);
}

/* ---- one key ---- */

static void call_decrypt(struct lease *l, const struct lease_key *key, struct lease_call *c, struct outcome *o)
{
	const struct lease_blob *blob = key->blob;
	const struct context_extra *extra = descriptor_generation(l->desc, blob->generation);
	uint8_t *secret = secret_alloc(KDF_SECRET);

	o->text = c->text;
	if (!secret || !extra) {
		o->text = extra ? "out of memory" : "its context generation is not recorded";
		o->status = extra ? KMS_BUSY : KMS_BAD_BLOB;
		secret_free(secret);
		return;
	}
	context_build(&c->context, CONTEXT_FILE, &l->ids, key->file, extra);
	c->context.cause = c->cause;
	o->status =
	    kms_decrypt(l->kms, &c->context, blob->bytes, blob->len, kms_deadline(l->kms), secret, &c->used, &c->err);
	if (o->status == KMS_OK)
		derive(l, key, secret, o);
	else
		kms_err_text(c->text, sizeof(c->text), &c->err);
	secret_free(secret);
}

/* locked; given up during the call. */
static void unwrap_one(struct lease_keys *k, struct lease_key *key, struct lease_call *c)
{
	struct outcome o = { .sent = lease_clock() };

	c->cause = key->waiters ? key->waiters->cause : (struct context_cause){ 0 };
	k->unwraps++;
	(void)pthread_mutex_unlock(&k->lock);
	call_decrypt(k->lease, key, c, &o);
	(void)pthread_mutex_lock(&k->lock);
	settle(k, key, &o);
}

/* ---- many keys ---- */

/* locked. Takes keys from the queue into the batch; those that need a call of their own stay. */
static size_t gather(struct lease_keys *k, struct lease_queue *queue, struct batch *b, size_t n, size_t most)
{
	struct lease_key *key = TAILQ_FIRST(queue), *next;

	for (; key && n < most; key = next) {
		next = TAILQ_NEXT(key, queued);
		b->extra[n] = descriptor_generation(k->lease->desc, key->blob->generation);
		if (key->alone || !b->extra[n])
			continue;
		lease_unqueue(k, key);
		b->cause[n] = key->waiters ? key->waiters->cause : (struct context_cause){ 0 };
		b->key[n++] = key;
	}
	return n;
}

/* locked. Somebody waits for what the batch failed to bring: once more, alone, and before all others. */
static void again(struct lease_keys *k, struct lease_key *key)
{
	key->alone = true;
	key->queue = &k->jobs;
	TAILQ_INSERT_HEAD(&k->jobs, key, queued);
	lease_wake(k);
}

/* locked; given up during the call. */
static void unwrap_batch(struct lease_keys *k, struct lease_call *c, size_t n)
{
	struct batch *b = c->batch;
	uint64_t sent = lease_clock();

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
	kms_decrypt_batch(k->lease->kms, b->item, n, kms_deadline(k->lease->kms));
	for (size_t i = 0; i < n; i++) {
		struct outcome o = { .status = b->item[i].err.status, .sent = sent, .text = c->text };

		if (o.status == KMS_OK)
			derive(k->lease, b->key[i], b->item[i].secret, &o);
		else
			kms_err_text(c->text, sizeof(c->text), &b->item[i].err);
		(void)pthread_mutex_lock(&k->lock);
		if ((o.status == KMS_BUSY || o.status == KMS_DOWN) && b->key[i]->waiters &&
		    b->key[i]->epoch == k->epoch)
			again(k, b->key[i]);
		else
			settle(k, b->key[i], &o);
		(void)pthread_mutex_unlock(&k->lock);
	}
	explicit_bzero(c->secrets, n * KDF_SECRET);
	(void)pthread_mutex_lock(&k->lock);
}

/* How many keys one request may carry; 1 also when there is no memory for more. */
static size_t batch_size(struct lease *l, struct lease_call *c)
{
	size_t most = kms_batch_max(l->kms);

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
	size_t most = batch_size(k->lease, c), n = 0;
	struct lease_key *key = TAILQ_FIRST(queue);

	if (most > 1 && !key->alone) {
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
    const struct lease *l, const struct descriptor_slot *rules, const struct lease_call *c)
{
	struct header_slot *slot = calloc(1, sizeof(*slot));

	if (!slot)
		return NULL;
	slot->seq = 1;
	slot->wrap = HEADER_WRAP_KMS;
	slot->generation = rules->context;
	slot->provider = kms_provider_number(l->kms);
	kms_key_hash(slot->key_hash, kms_key(l->kms));
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
	const struct descriptor_slot *rules = lease_slot(l);
	const struct context_extra *extra = rules ? descriptor_generation(l->desc, rules->context) : NULL;
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
	status = kms_generate(l->kms, &c->context, kms_deadline(l->kms), secret, &c->blob, &c->used, &c->err);
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
	slot = slot_new(l, rules, c);
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
