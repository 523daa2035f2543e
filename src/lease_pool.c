/* The threads that wait for the KMS, so that nobody else has to; and the pool of new keys they fill ahead.
 *
 * Who has been answered is told first, as many at a time as there are threads: telling runs an operation. What people
 * wait for comes next, unwraps and new keys in turn. Work nobody waits for (renewals, which are few and have a term,
 * then read-ahead, in turn with filling the pool) leaves one thread free. The pool follows demand: some keys when the
 * domain opens, none after idle_ms without a new file, else twice as many as files were made one after the other, up to
 * its full size; so a lone file costs two or three calls and unpacking an archive finds keys ready. */
#include <errno.h>

#include "bytes.h"
#include "io.h"
#include "lease_internal.h"
#include "log.h"
#include "secret.h"

#define POOL_FIRST 64u   /* keys when the domain opens */
#define BURST_MS   1000u /* files made at longer intervals have nothing to do with each other */

/* ---- new keys ---- */

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
 * Any other failure would be everybody's. Whoever came later than the question (asked: how many had come by then) is
 * asked for anew. */
static struct lease_waiter *not_made(struct lease_keys *k, enum kms_status status, uint64_t asked)
{
	bool one = status == KMS_BUSY || status == KMS_DOWN;
	struct lease_waiter *told = NULL;

	k->retry = lease_clock() + k->lease->times.probe_ms;
	while (k->wanting && k->wanting->arrival <= asked && !(one && told)) {
		struct lease_waiter *w = lease_pop_wanting(k);

		w->next = told;
		told = w;
	}
	if (k->wanted > k->making)
		lease_wake(k);
	return told;
}

/* Is a new key sealed under the key of now? */
static bool under_now(const struct lease_keys *k, const struct lease_key *key)
{
	const struct lease_ring *ring = lease_ring(k->lease);
	const struct descriptor_slot *slot = lease_ring_slot(ring);
	uint8_t hash[8];

	kms_key_hash(hash, kms_key(lease_ring_now(ring)));
	return slot && key->made->generation == slot->context && bytes_equal(key->made->key_hash, hash, sizeof(hash));
}

/* Would a new key be sealed so today? Not if the domain was sealed under newer material of the same key. */
static bool fits(const struct lease_keys *k, const struct lease_key *key)
{
	const struct descriptor_slot *slot = lease_ring_slot(lease_ring(k->lease));

	return under_now(k, key) &&
	    (bytes_zero(slot->material, sizeof(slot->material)) ||
	        bytes_equal(key->made->material, slot->material, sizeof(slot->material)));
}

/* locked; given up during the call. */
static void run_make(struct lease_keys *k, struct lease_call *c)
{
	struct context_cause cause = k->wanting ? k->wanting->cause : (struct context_cause){ 0 };
	const struct lease_ring *ring = lease_ring(k->lease);
	uint64_t epoch = k->epoch, asked = k->arrivals;
	struct lease_waiter *told = NULL;
	struct lease_key *key = NULL;
	enum kms_status status;
	const char *text;
	bool current;

	k->making++;
	k->generates++;
	(void)pthread_mutex_unlock(&k->lock);
	status = lease_call_generate(k->lease, c, &cause, &key, &text);
	(void)pthread_mutex_lock(&k->lock);
	k->making--;
	current = epoch == k->epoch;
	/* Of the time before a rekey, and too late: whoever waits is served by another call. */
	if (current && key && ring != lease_ring(k->lease) && !fits(k, key)) {
		current = false;
		if (k->wanted > k->making)
			lease_wake(k);
	}
	if (current)
		told = key ? made(k, steal_ptr(&key)) : not_made(k, status, asked);
	if (!told && !key && status == KMS_OK)
		return;
	(void)pthread_mutex_unlock(&k->lock);
	lease_key_free(key);
	if (current && status != KMS_OK)
		lease_complain(k, NULL, text);
	if (current && status == KMS_DENIED)
		lease_suspect(k->lease);
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
	bool idle = all || now - k->demand >= k->lease->times.idle_ms;

	if (idle)
		k->target = k->burst = 0;
	while (k->pool && (idle || now - k->pool->unwrapped >= k->lease->times.max_age_ms)) {
		struct lease_key *key = pop_pool(k);

		if (!key)
			break;
		key->next = *dead;
		*dead = key;
	}
}

void lease_pool_rekey(struct lease_keys *k, struct lease_key **dead)
{
	struct lease_key *key = k->pool, *next;

	k->pool = NULL;
	k->pool_tail = &k->pool;
	k->ready = 0;
	for (; key; key = next) {
		bool keep = fits(k, key);
		struct lease_key **list = keep ? k->pool_tail : dead;

		next = key->next;
		key->next = keep ? NULL : *list;
		*list = key;
		if (keep)
			k->pool_tail = &key->next;
		k->ready += keep;
	}
	lease_pool_tick(k);
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
			r = lease_key_make(l, key, secret, &slot, lease_clock());
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

/* locked. A new file: twice as many as of late may come while the next call is under way. */
static void follow_demand(struct lease_keys *k)
{
	uint64_t now = lease_clock();
	uint32_t full = k->lease->params.pool;

	if (now - k->demand >= BURST_MS)
		k->burst = 0;
	k->demand = now;
	if (k->burst < full)
		k->burst++;
	k->target = 2 * k->burst < full ? 2 * k->burst : full;
}

/* From the pool, or parked. */
static int take_pooled(struct lease_keys *k, struct lease_waiter *w, struct lease_key **out)
{
	struct lease_key *dead = NULL, *key;
	int r = 0;

	{
		LOCK_SCOPE(&k->lock);
		if (!k->accepting)
			return -EIO;
		lease_pool_drain(k, lease_clock(), false, &dead);
		follow_demand(k);
		key = pop_pool(k);
		if (key) {
			key->refs = 1;
			lease_table_add(k, key);
		} else if (w) {
			lease_park(k, k->wanting_tail, w);
			w->arrival = ++k->arrivals;
			k->wanting_tail = &w->next;
			k->wanted++;
		}
		lease_wake(k);
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

	/* It may have come under the key before, to one who was parked since. */
	if (key && !(key->loaded && key->made && under_now(&l->keys, key))) {
		lease_key_put(key);
		key = NULL;
	}
	if (!key)
		r = lease_seal(l) == SEAL_DOMAIN ? make_local(l, &key) : take_pooled(&l->keys, w, &key);
	if (r)
		return r;
	hand_out(l, key, ident, slot);
	*out = key;
	return 0;
}

/* ---- threads ---- */

static void *kms_main(void *);

/* locked. All it needs is there before it starts: a thread that gave up would keep its place. */
static int start_thread(struct lease_keys *k)
{
	struct lease_thread *t = &k->threads[k->nthreads];
	int r;

	t->keys = k;
	t->call = lease_call_new();
	if (!t->call)
		return -ENOMEM;
	r = pthread_create(&t->id, NULL, kms_main, t);
	if (r) {
		lease_call_free(t->call);
		return -r;
	}
	k->nthreads++;
	/* On its way to look for work. */
	k->idle++;
	k->woken++;
	return 0;
}

void lease_wake(struct lease_keys *k)
{
	if (k->idle > k->woken) {
		k->woken++;
		(void)pthread_cond_signal(&k->work);
		return;
	}
	/* Without one more, those there are will do it. */
	if (k->nthreads && k->nthreads < k->most && !k->stop)
		(void)start_thread(k);
}

void lease_tell_soon(struct lease_keys *k, struct lease_waiter *list)
{
	for (struct lease_waiter *w = list; w; w = w->next) {
		if (k->tells)
			lease_wake(k);
		*k->tells_tail = w;
		k->tells_tail = &w->next;
	}
}

/* locked; given up while one is told. */
static bool run_tell(struct lease_keys *k)
{
	struct lease_waiter *w = k->tells;

	if (!w)
		return false;
	k->tells = w->next;
	if (!k->tells)
		k->tells_tail = &k->tells;
	w->next = NULL;
	(void)pthread_mutex_unlock(&k->lock);
	lease_tell(w, w->result);
	(void)pthread_mutex_lock(&k->lock);
	return true;
}

/* locked. Does one thing somebody waits for. */
static bool run_wanted(struct lease_keys *k, struct lease_call *c)
{
	bool make = k->accepting && k->wanted > k->making, unwrap = !TAILQ_EMPTY(&k->jobs);

	if (!unwrap && !make)
		return false;
	k->turn = !k->turn;
	if (make && (k->turn || !unwrap))
		run_make(k, c);
	else
		lease_unwrap_next(k, &k->jobs, c);
	return true;
}

/* locked. Is the pool to be filled? */
static bool want_fill(const struct lease_keys *k)
{
	return k->accepting && k->ready + k->making < k->target + k->wanted && lease_clock() >= k->retry;
}

void lease_pool_tick(struct lease_keys *k)
{
	if (want_fill(k))
		lease_wake(k);
}

void lease_pool_open(struct lease_keys *k)
{
	uint32_t full = k->lease->params.pool;

	k->burst = 0;
	if (lease_seal(k->lease) != SEAL_FILE || k->lease->params.pool_late)
		k->target = 0;
	else
		k->target = full < POOL_FIRST ? full : POOL_FIRST;
	lease_pool_tick(k);
}

/* locked. Does one thing nobody waits for. */
static bool run_ahead(struct lease_keys *k, struct lease_call *c)
{
	uint32_t most = k->most > 1 ? k->most - 1 : 1;
	bool renew = !TAILQ_EMPTY(&k->refreshes), read = renew || !TAILQ_EMPTY(&k->aheads), fill = want_fill(k);

	if (k->background >= most || (!read && !fill))
		return false;
	k->background++;
	k->turn = !k->turn;
	/* The first filling of a pool can take its time. */
	if ((fill && k->burst && k->ready + k->making + 1 < k->target) || k->naheads > 1)
		lease_wake(k);
	if (fill && (k->turn || !read))
		run_make(k, c);
	else
		lease_unwrap_next(k, renew ? &k->refreshes : &k->aheads, c);
	k->background--;
	return true;
}

static void *kms_main(void *arg)
{
	struct lease_thread *t = arg;
	struct lease_keys *k = t->keys;

	log_label(k->lease->params.label);
	{
		LOCK_SCOPE(&k->lock);
		for (;;) {
			k->idle--;
			k->woken -= k->woken > 0;
			while (run_tell(k) || (!k->stop && (run_wanted(k, t->call) || run_ahead(k, t->call))))
				;
			if (k->stop)
				break;
			k->idle++;
			(void)pthread_cond_wait(&k->work, &k->lock);
		}
	}
	lease_call_free(t->call);
	return NULL;
}

int lease_pool_start(struct lease_keys *k)
{
	uint32_t n = k->lease->params.threads ? k->lease->params.threads : 1;

	k->threads = calloc(n, sizeof(*k->threads));
	if (!k->threads)
		return -ENOMEM;
	LOCK_SCOPE(&k->lock);
	k->most = n;
	return start_thread(k);
}

void lease_pool_stop(struct lease_keys *k)
{
	{
		LOCK_SCOPE(&k->lock);
		k->stop = true;
		(void)pthread_cond_broadcast(&k->work);
	}
	for (uint32_t i = 0; i < k->nthreads; i++)
		(void)pthread_join(k->threads[i].id, NULL);
	free(steal_ptr(&k->threads));
	k->nthreads = 0;
}
