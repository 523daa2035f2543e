/* The threads that wait for the KMS, so that nobody else has to; and the pool of new keys they fill ahead.
 *
 * What people wait for comes first, unwraps and new keys in turn. Work nobody waits for (renewals, filling the pool)
 * leaves one thread free. The pool follows demand: full when the domain opens, empty after idle_ms without a new file,
 * then twice as large with every new file up to its full size; so a lone file costs two calls and unpacking an archive
 * finds keys ready. An answer that comes after a lock is thrown away. */
#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "io.h"
#include "lease_internal.h"
#include "secret.h"

/* One call's question and answer. Large, hence one per thread, on the heap. */
struct call {
	struct context_cause cause;
	struct context context;
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
	char text[400];
};

/* ---- unwrap ---- */

static enum kms_status call_decrypt(
    struct lease *l, const struct lease_key *key, struct call *c, struct file_keys **out)
{
	const struct lease_blob *blob = key->blob;
	const struct context_extra *extra = descriptor_generation(l->desc, blob->generation);
	uint8_t *secret = secret_alloc(KDF_SECRET);
	enum kms_status status = KMS_BAD_BLOB;

	memset(&c->err, 0, sizeof(c->err));
	if (!secret || !extra) {
		(void)snprintf(
		    c->text, sizeof(c->text), "%s", extra ? "out of memory" : "its context generation is not recorded");
		secret_free(secret);
		return extra ? KMS_BUSY : KMS_BAD_BLOB;
	}
	context_build(&c->context, CONTEXT_FILE, &l->ids, key->file, extra);
	c->context.cause = c->cause;
	status =
	    kms_decrypt(l->kms, &c->context, blob->bytes, blob->len, kms_deadline(l->kms), secret, &c->used, &c->err);
	if (status != KMS_OK)
		kms_err_text(c->text, sizeof(c->text), &c->err);
	else if (!(*out = lease_key_derive(&l->keys, key->file, secret))) {
		(void)snprintf(c->text, sizeof(c->text), "out of memory");
		status = KMS_BUSY;
	}
	secret_free(secret);
	if (status == KMS_OK && !bytes_equal((*out)->commit, key->commit, sizeof(key->commit))) {
		secret_free(steal_ptr(out));
		(void)snprintf(c->text, sizeof(c->text), "commitment mismatch");
		status = KMS_BAD_BLOB;
	}
	return status;
}

/* locked. The key serves: everyone who waited holds it now. */
static struct lease_waiter *unwrapped(
    struct lease_keys *k, struct lease_key *key, struct file_keys **keys, uint64_t sent)
{
	struct lease_waiter *told = steal_ptr(&key->waiters);

	if (!key->loaded) {
		lease_key_load(key, steal_ptr(keys), sent);
	} else {
		/* The commitment was equal, so are the keys. */
		key->unwrapped = sent;
		key->refresh = sent + k->lease->params.max_age_ms / 5 * 4;
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
	return told;
}

/* locked; given up during the call. */
static void run_unwrap(struct lease_keys *k, struct lease_key *key, struct call *c)
{
	struct lease *l = k->lease;
	struct lease_waiter *told = NULL;
	struct lease_key *dead = NULL;
	struct file_keys *keys = NULL;
	uint64_t sent = lease_clock();
	uint8_t file[CONTEXT_ID];
	enum kms_status status;
	bool current;

	memcpy(file, key->file, sizeof(file));
	c->cause = key->waiters ? key->waiters->cause : (struct context_cause){ 0 };
	k->unwraps++;
	(void)pthread_mutex_unlock(&k->lock);
	status = call_decrypt(l, key, c, &keys);
	(void)pthread_mutex_lock(&k->lock);
	key->busy = false;
	current = key->epoch == k->epoch;
	if (current)
		told = status == KMS_OK ? unwrapped(k, key, &keys, sent) : not_unwrapped(k, key, status, &dead);
	if (lease_key_unref(key)) {
		key->next = dead;
		dead = key;
	}
	(void)pthread_mutex_unlock(&k->lock);
	secret_free(keys);
	if (current && status != KMS_OK)
		lease_complain(k, file, c->text);
	lease_key_free_all(dead);
	if (current && status == KMS_DENIED)
		lease_suspect(l);
	lease_tell(told, status == KMS_OK ? 0 : -EIO);
	(void)pthread_mutex_lock(&k->lock);
}

/* ---- new keys ---- */

static struct header_slot *slot_new(const struct lease *l, const struct descriptor_slot *rules, const struct call *c)
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

/* Keys and slot of a new key from its secret. */
static int key_from(
    struct lease *l, struct lease_key *key, const uint8_t *secret, struct header_slot **slot, uint64_t sent)
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

static enum kms_status call_generate(struct lease *l, struct lease_key *key, struct call *c, uint8_t *secret)
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
	return key_from(l, key, secret, &slot, sent) ? KMS_BUSY : KMS_OK;
}

/* locked. To a waiter, else into the pool. */
static struct lease_waiter *made(struct lease_keys *k, struct lease_key *key)
{
	struct lease_waiter *w = lease_pop_wanting(k);

	k->retry = 0;
	if (w) {
		key->refs = 1;
		lease_table_add(k, key);
		w->key = key;
	} else {
		*k->pool_tail = key;
		k->pool_tail = &key->next;
		k->ready++;
	}
	return w;
}

/* locked. A throttled or timed-out call fails the one who waited longest; the others have calls of their own coming.
 * Any other failure would be everybody's. */
static struct lease_waiter *not_made(struct lease_keys *k, enum kms_status status)
{
	struct lease_waiter *told = NULL;

	k->retry = lease_clock() + k->lease->params.probe_ms;
	if (status == KMS_BUSY || status == KMS_DOWN)
		return lease_pop_wanting(k);
	lease_pool_expire(k, 0, true, &told);
	return told;
}

/* locked; given up during the call. */
static void run_make(struct lease_keys *k, struct call *c)
{
	struct lease *l = k->lease;
	uint8_t *secret = secret_alloc(KDF_SECRET), file[CONTEXT_ID];
	uint64_t epoch = k->epoch;
	struct lease_waiter *told = NULL;
	struct lease_key *key;
	enum kms_status status;
	bool current;

	c->cause = k->wanting ? k->wanting->cause : (struct context_cause){ 0 };
	k->making++;
	k->generates++;
	(void)pthread_mutex_unlock(&k->lock);
	secret_random(file, sizeof(file));
	key = lease_key_new(k, file);
	status = call_generate(l, key, c, secret);
	secret_free(secret);
	(void)pthread_mutex_lock(&k->lock);
	k->making--;
	current = epoch == k->epoch;
	if (current)
		told = status == KMS_OK ? made(k, steal_ptr(&key)) : not_made(k, status);
	(void)pthread_mutex_unlock(&k->lock);
	lease_key_free(key);
	if (current && status != KMS_OK)
		lease_complain(k, NULL, c->text);
	if (current && status == KMS_DENIED)
		lease_suspect(l);
	lease_tell(told, status == KMS_OK ? 0 : -EIO);
	(void)pthread_mutex_lock(&k->lock);
}

/* locked. The oldest key of the pool, or NULL. */
static struct lease_key *pop_pool(struct lease_keys *k)
{
	struct lease_key *key = k->pool;

	if (!key)
		return NULL;
	k->pool = key->next;
	if (!k->pool)
		k->pool_tail = &k->pool;
	key->next = NULL;
	k->ready--;
	return key;
}

void lease_pool_drain(struct lease_keys *k, uint64_t now, bool all, struct lease_key **dead)
{
	bool idle = all || now - k->demand >= k->lease->params.idle_ms;

	if (idle)
		k->target = 0;
	while (k->pool && (idle || now - k->pool->unwrapped >= k->lease->params.max_age_ms)) {
		struct lease_key *key = pop_pool(k);

		key->next = *dead;
		*dead = key;
	}
}

static void hand_out(const struct lease *l, struct lease_key *key, struct header_ident *ident, struct header_slot *slot)
{
	ident->suite = l->ids.suite;
	memcpy(ident->store, l->ids.store, CONTEXT_ID);
	memcpy(ident->domain, l->ids.domain, CONTEXT_ID);
	memcpy(ident->file, key->file, CONTEXT_ID);
	memcpy(ident->commit, key->commit, sizeof(ident->commit));
	*slot = *key->made;
	free(steal_ptr(&key->made));
}

/* seal=domain: no KMS, no waiting. */
static int make_local(struct lease *l, struct lease_key **out)
{
	CLEANUP_FREE struct header_slot *slot = calloc(1, sizeof(*slot));
	uint8_t *secret = secret_alloc(KDF_SECRET), file[CONTEXT_ID];
	struct lease_key *key;
	int r = -ENOMEM;

	secret_random(file, sizeof(file));
	key = lease_key_new(&l->keys, file);
	if (key && secret && slot) {
		secret_random(secret, KDF_SECRET);
		slot->seq = 1;
		slot->wrap = HEADER_WRAP_DOMAIN;
		slot->sealed_at = io_unix_time();
		slot->len = KDF_WRAP_BLOB;
		r = kdf_wrap(slot->blob, secret, l->domain.keys, &l->ids, file);
		if (!r)
			r = key_from(l, key, secret, &slot, lease_clock());
	}
	secret_free(secret);
	if (r) {
		lease_key_free(key);
		return r;
	}
	key->refs = 1;
	LOCK_SCOPE(&l->keys.lock);
	lease_table_add(&l->keys, key);
	*out = key;
	return 0;
}

/* From the pool, or parked. */
static int take_pooled(struct lease_keys *k, struct lease_waiter *w, struct lease_key **out)
{
	struct lease_key *dead = NULL, *key;
	uint32_t full = k->lease->params.pool;
	int r = 0;

	{
		LOCK_SCOPE(&k->lock);
		if (!k->accepting)
			return -EIO;
		k->demand = lease_clock();
		k->target = k->target ? k->target * 2 : 1;
		if (k->target > full)
			k->target = full;
		lease_pool_drain(k, k->demand, false, &dead);
		key = pop_pool(k);
		if (key) {
			key->refs = 1;
			lease_table_add(k, key);
		} else if (w) {
			lease_park(k, k->wanting_tail, w);
			k->wanting_tail = &w->next;
			k->wanted++;
		}
		/* One key was taken, so one thread is enough: it goes on until the pool is full. */
		(void)pthread_cond_signal(&k->work);
		r = key ? 0 : w ? -EINPROGRESS : -EAGAIN;
	}
	lease_key_free_all(dead);
	if (!r)
		*out = key;
	return r;
}

int lease_new_key(struct lease *l, struct lease_waiter *w, struct lease_key **out, struct header_ident *ident,
    struct header_slot *slot)
{
	struct lease_key *key = w ? steal_ptr(&w->key) : NULL;
	int r = 0;

	if (key && !(key->loaded && key->made)) {
		lease_key_put(key);
		key = NULL;
	}
	if (!key)
		r = l->desc->seal == SEAL_DOMAIN ? make_local(l, &key) : take_pooled(&l->keys, w, &key);
	if (r)
		return r;
	hand_out(l, key, ident, slot);
	*out = key;
	return 0;
}

/* ---- threads ---- */

/* locked. */
static struct lease_key *pop_job(struct lease_keys *k)
{
	struct lease_key *key = k->jobs;

	k->jobs = key->queued;
	if (!k->jobs)
		k->jobs_tail = &k->jobs;
	return key;
}

/* locked. Does one thing somebody waits for. */
static bool run_wanted(struct lease_keys *k, struct call *c)
{
	bool make = k->accepting && k->wanted > k->making;

	if (!k->jobs && !make)
		return false;
	k->turn = !k->turn;
	if (make && (k->turn || !k->jobs))
		run_make(k, c);
	else
		run_unwrap(k, pop_job(k), c);
	return true;
}

/* locked. Does one thing nobody waits for. */
static bool run_ahead(struct lease_keys *k, struct call *c)
{
	uint32_t most = k->nthreads > 1 ? k->nthreads - 1 : 1;
	bool fill = k->accepting && k->ready + k->making < k->target + k->wanted && lease_clock() >= k->retry;

	if (k->background >= most || (!k->refreshes && !fill))
		return false;
	k->background++;
	if (k->refreshes) {
		struct lease_key *key = k->refreshes;

		k->refreshes = key->queued;
		run_unwrap(k, key, c);
	} else {
		run_make(k, c);
	}
	k->background--;
	return true;
}

static void *kms_main(void *arg)
{
	struct lease_keys *k = arg;
	CLEANUP_FREE struct call *c = malloc(sizeof(*c));

	LOCK_SCOPE(&k->lock);
	while (c && !k->stop) {
		if (run_wanted(k, c) || run_ahead(k, c))
			continue;
		lease_sleep(&k->work, &k->lock, UINT64_MAX);
	}
	return NULL;
}

int lease_pool_start(struct lease_keys *k)
{
	uint32_t n = k->lease->params.threads ? k->lease->params.threads : 1;
	int r = 0;

	k->threads = calloc(n, sizeof(*k->threads));
	if (!k->threads)
		return -ENOMEM;
	LOCK_SCOPE(&k->lock);
	while (!r && k->nthreads < n) {
		r = pthread_create(&k->threads[k->nthreads], NULL, kms_main, k);
		k->nthreads += r == 0;
	}
	/* Fewer threads are slower; none is no use. */
	return k->nthreads ? 0 : -r;
}

void lease_pool_stop(struct lease_keys *k)
{
	{
		LOCK_SCOPE(&k->lock);
		k->stop = true;
		(void)pthread_cond_broadcast(&k->work);
	}
	for (uint32_t i = 0; i < k->nthreads; i++)
		(void)pthread_join(k->threads[i], NULL);
	free(steal_ptr(&k->threads));
	k->nthreads = 0;
}
