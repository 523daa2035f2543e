/* Key read-ahead: behind what people wait for, silent, gone with a lock; many keys in one request; the pool's demand;
 * threads when they are needed. */
#include "lease_files.h"

/* The key is there; looking so is no use of it. */
static bool loaded(int i)
{
	LOCK_SCOPE(&w.lease->keys.lock);
	const struct lease_key *key = lease_table_find(&w.lease->keys, ident[i].file, ident[i].commit);

	return key && key->loaded && !key->busy;
}

/* Keys fetched ahead that no thread has begun, and threads. */
static unsigned queued(void)
{
	LOCK_SCOPE(&w.lease->keys.lock);
	return w.lease->keys.naheads;
}

static unsigned threads(void)
{
	LOCK_SCOPE(&w.lease->keys.lock);
	return w.lease->keys.nthreads;
}

/* The n-th call for a file's key was for file i. */
static bool asked(unsigned n, int i)
{
	LOCK_SCOPE(&kms.lock);
	return n < kms.norder && kms.order[n] == le32_get(slot[i].blob);
}

static void test_fetched_and_used(void **state)
{
	(void)state;
	open_for_long();
	make_files();
	hang(CALL_FILE, true);
	assert_int_equal(ahead(0), 1);
	assert_int_equal(ahead(0), 0);
	assert_int_equal(look(0), -EAGAIN);
	hang(CALL_FILE, false);
	UNTIL(look(0) == 0);
	assert_int_equal(ahead(0), 0);
	assert_int_equal(ahead(1), 1);
	UNTIL(calls(CALL_FILE) == 2);
	assert_int_equal(status_now().ahead, 2);
	assert_int_equal(status_now().ahead_used, 1);
	assert_int_equal(status_now().parked, 0);
}

/* It is no use of the key: idle counts from when it came, max_age from when it was asked for. */
static void test_promises(void **state)
{
	(void)state;
	open_for_long();
	make_files();
	for (int i = 0; i < 3; i++)
		assert_int_equal(ahead(i), 1);
	UNTIL(loaded(0) && loaded(1) && loaded(2));
	advance(59000);
	assert_int_equal(ahead(0), 0);
	assert_int_equal(look(2), 0);
	advance(16001);
	UNTIL(status_now().file_keys == 1);
	assert_int_equal(look(0), -EAGAIN);
	assert_int_equal(look(2), 0);
	assert_int_equal(ahead(0), 1);
	UNTIL(look(0) == 0);
	/* Counted from the question, not from the answer. */
	hang(CALL_FILE, true);
	uint64_t then = atomic_load(&clock_ms);

	assert_int_equal(ahead(3), 1);
	UNTIL(hanging(CALL_FILE) == 1);
	advance(1000);
	hang(CALL_FILE, false);
	UNTIL(look(3) == 0);
	LOCK_SCOPE(&w.lease->keys.lock);
	assert_int_equal(lease_table_find(&w.lease->keys, ident[3].file, ident[3].commit)->unwrapped, then);
}

static void test_order_of_calls(void **state)
{
	(void)state;
	w.params.threads = 1;
	open_for_long();
	make_files();
	hang(CALL_FILE, true);
	assert_int_equal(park(0, 0), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1);
	for (int i = 1; i < 6; i++)
		assert_int_equal(ahead(i), 1);
	assert_int_equal(park(6, 1), -EINPROGRESS);
	assert_int_equal(park(4, 2), -EINPROGRESS); /* joins, and hastens it */
	hang(CALL_FILE, false);
	UNTIL(told(3) && calls(CALL_FILE) == 7);
	assert_true(asked(0, 0) && asked(1, 6) && asked(2, 4) && asked(3, 1) && asked(4, 2));
	assert_true(asked(5, 3) && asked(6, 5));
	take_parked(0, 0);
	take_parked(6, 1);
	take_parked(4, 2);
	assert_int_equal(status_now().ahead, 5);
	assert_int_equal(status_now().ahead_used, 1);
}

/* One thread is left for what people wait for; and threads come as they are needed. */
static void test_threads(void **state)
{
	(void)state;
	w.params.threads = 4;
	open_for_long();
	make_files();
	assert_int_equal(threads(), 1);
	hang(CALL_FILE, true);
	for (int i = 0; i < 10; i++)
		assert_int_equal(ahead(i), 1);
	UNTIL(hanging(CALL_FILE) == 3);
	assert_int_equal(park(20, 0), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 4);
	assert_int_equal(calls(CALL_FILE), 4);
	hang(CALL_FILE, false);
	UNTIL(told(1) && calls(CALL_FILE) == 11);
	take_parked(20, 0);
}

/* Renewals have a term: read-ahead comes after them. */
static void test_renewals_before_ahead(void **state)
{
	(void)state;
	w.params.threads = 1;
	w.params.idle_ms = 1000000;
	open_for_long();
	make_files();
	assert_int_equal(park(0, 0), -EINPROGRESS);
	UNTIL(told(1));
	take_parked(0, 0);
	hang(CALL_FILE, true);
	assert_int_equal(park(1, 0), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1);
	atomic_fetch_add(&clock_ms, 250000);
	assert_int_equal(look(0), 0);
	assert_int_equal(ahead(2), 1);
	hang(CALL_FILE, false);
	UNTIL(calls(CALL_FILE) == 4 && told(1));
	assert_true(asked(2, 0) && asked(3, 2));
	lease_waiter_cancel(&parked[0].waiter); /* in time or too late, as it happens */
}

static void test_dropped_at_lock(void **state)
{
	(void)state;
	open_for_long();
	make_files();
	hang(CALL_FILE, true);
	for (int i = 0; i < 20; i++)
		assert_int_equal(ahead(i), 1);
	assert_int_equal(park(25, 0), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 3);
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(settled(LEASE_LOCKED));
	assert_true(told(1));
	assert_int_equal(parked[0].waiter.result, -EIO);
	assert_int_equal(status_now().file_keys, 0);
	assert_int_equal(queued(), 0);
	assert_int_equal(lease_unlock(w.lease), 0);
	UNTIL(settled(LEASE_OPEN));
	hang(CALL_FILE, false);
	UNTIL(hanging(CALL_FILE) == 0);
	assert_int_equal(calls(CALL_FILE), 3);
	assert_int_equal(status_now().file_keys, 0);
	assert_int_equal(ahead(0), 1);
	UNTIL(look(0) == 0);
}

static void test_refused_while_locked(void **state)
{
	(void)state;
	open_for_long();
	make_files();
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(settled(LEASE_LOCKED));
	assert_int_equal(ahead(0), -EIO);
	assert_int_equal(calls(CALL_FILE), 0);
}

static unsigned lines; /* complaints, as far as the limit counts them */

static unsigned complaints(void)
{
	LOCK_SCOPE(&w.lease->keys.lock);
	return w.lease->keys.log_lines;
}

/* A denial ends read-ahead and has the canary asked; nothing is logged for files that nobody opened. */
static void test_denied(void **state)
{
	(void)state;
	w.params.threads = 2;
	open_now();
	make_files();
	advance(2000);
	lines = complaints();
	answer(CALL_FILE, KMS_DENIED);
	hang(CALL_FILE, true);
	for (int i = 0; i < 20; i++)
		assert_int_equal(ahead(i), 1);
	UNTIL(hanging(CALL_FILE) == 1);
	hang(CALL_FILE, false);
	UNTIL(status_now().probes == 1 && status_now().file_keys == 0);
	assert_int_equal(calls(CALL_FILE), 1);
	assert_int_equal(complaints(), lines);
	assert_true(can(LEASE_WORK));
	/* The user's own attempt is answered and logged. */
	assert_int_equal(park(3, 0), -EINPROGRESS);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, -EIO);
	assert_int_equal(complaints(), lines + 1);
	assert_int_equal(calls(CALL_FILE), 2);
}

/* One bad blob is that file's trouble alone; whoever joins hears of it. */
static void test_bad_blob(void **state)
{
	(void)state;
	w.params.threads = 1;
	open_for_long();
	make_files();
	lines = complaints();
	slot[1] = slot[0];
	hang(CALL_FILE, true);
	for (int i = 1; i < 4; i++)
		assert_int_equal(ahead(i), 1);
	hang(CALL_FILE, false);
	UNTIL(look(2) == 0 && look(3) == 0);
	assert_int_equal(complaints(), lines);
	assert_int_equal(look(1), -EAGAIN);
	assert_int_equal(status_now().file_keys, 2);
	hang(CALL_FILE, true);
	assert_int_equal(ahead(1), 1);
	UNTIL(hanging(CALL_FILE) == 1);
	assert_int_equal(park(1, 0), -EINPROGRESS);
	hang(CALL_FILE, false);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, -EIO);
	UNTIL(complaints() == lines + 1);
}

static void test_never_too_many(void **state)
{
	struct header_ident other;
	struct header_slot blob;

	(void)state;
	w.params.threads = 1;
	open_for_long();
	make_files();
	hang(CALL_FILE, true);
	for (unsigned i = 0; i <= LEASE_AHEAD_MAX; i++) {
		other = ident[0];
		blob = slot[0];
		secret_random(other.file, sizeof(other.file));
		assert_int_equal(lease_key_ahead(w.lease, &other, &blob), 1);
		if (i == 0)
			UNTIL(hanging(CALL_FILE) == 1);
	}
	assert_int_equal(ahead(1), -EIO);
	other.domain[0] ^= 1;
	assert_int_equal(lease_key_ahead(w.lease, &other, &blob), -EIO);
	answer(CALL_FILE, KMS_DENIED);
	hang(CALL_FILE, false);
	UNTIL(status_now().file_keys == 0);
}

static void test_no_kms_for_domain_seal(void **state)
{
	struct lease_key *key;

	(void)state;
	free(w.desc.gen);
	make_domain(SEAL_DOMAIN);
	open_for_long();
	assert_int_equal(lease_new_key(w.lease, NULL, &key, &ident[0], &slot[0]), 0);
	lease_key_put(key);
	assert_int_equal(ahead(0), 0);
	assert_int_equal(calls(CALL_FILE) + calls(CALL_GENERATE), 0);
	assert_int_equal(threads(), 1);
}

/* ---- many in one request ---- */

static struct {
	unsigned requests, most;
	enum kms_status all; /* every item's, unless OK */
} batches;

static void fake_batch(void *priv, const char *key, struct kms_item *items, size_t n, uint64_t deadline)
{
	if (n > batches.most)
		batches.most = (unsigned)n;
	batches.requests++;
	for (size_t i = 0; i < n; i++) {
		if (batches.all != KMS_OK)
			(void)kms_fail(&items[i].err, batches.all, "Throttled", "no");
		else
			(void)fake_decrypt(priv, key, items[i].context, items[i].blob, items[i].len, deadline,
			    items[i].secret, &items[i].used, &items[i].err);
	}
}

static const struct kms_provider batch_provider = { .name = "fake",
	.number = 1,
	.generate = fake_generate,
	.decrypt = fake_decrypt,
	.decrypt_batch = fake_batch,
	.batch_max = 8 };

static void open_with_batches(void)
{
	memset(&batches, 0, sizeof(batches));
	kms_close(w.kms);
	assert_int_equal(kms_open_with(&w.kms, &batch_provider, NULL, ARN, 20), 0);
	w.params.threads = 1;
	open_for_long();
	make_files();
	/* The one thread is busy while the queues fill. */
	hang(CALL_FILE, true);
	assert_int_equal(park(0, 0), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1);
}

static void test_batch(void **state)
{
	(void)state;
	open_with_batches();
	slot[4] = slot[0];
	for (int i = 1; i < 20; i++)
		assert_int_equal(ahead(i), 1);
	assert_int_equal(park(20, 1), -EINPROGRESS);
	assert_int_equal(park(21, 2), -EINPROGRESS);
	hang(CALL_FILE, false);
	UNTIL(told(3) && queued() == 0 && look(19) == 0);
	take_parked(0, 0);
	take_parked(20, 1);
	take_parked(21, 2);
	/* Those waited for go first, and others with them. */
	assert_true(asked(1, 20) && asked(2, 21) && asked(3, 1) && asked(8, 6));
	assert_int_equal(batches.requests, 3);
	assert_int_equal(batches.most, 8);
	assert_int_equal(calls(CALL_FILE), 22);
	for (int i = 1; i < 22; i++)
		assert_int_equal(look(i), i == 4 ? -EAGAIN : 0);
}

/* What a throttled request leaves undone is tried alone when somebody waits for it, and forgotten when nobody does. */
static void test_batch_throttled(void **state)
{
	(void)state;
	open_with_batches();
	batches.all = KMS_BUSY;
	for (int i = 1; i < 4; i++)
		assert_int_equal(ahead(i), 1);
	assert_int_equal(park(20, 1), -EINPROGRESS);
	assert_int_equal(park(21, 2), -EINPROGRESS);
	hang(CALL_FILE, false);
	UNTIL(told(3));
	take_parked(20, 1);
	take_parked(21, 2);
	assert_int_equal(batches.requests, 1);
	assert_int_equal(calls(CALL_FILE), 3);
	assert_int_equal(look(1), -EAGAIN);
	take_parked(0, 0);
	UNTIL(status_now().file_keys == 3);
}

static void test_batch_and_lock(void **state)
{
	(void)state;
	open_with_batches();
	for (int i = 1; i < 20; i++)
		assert_int_equal(ahead(i), 1);
	hang(CALL_FILE, false);
	UNTIL(calls(CALL_FILE) > 1);
	hang(CALL_FILE, true);
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(settled(LEASE_LOCKED));
	hang(CALL_FILE, false);
	UNTIL(hanging(CALL_FILE) == 0);
	lease_waiter_cancel(&parked[0].waiter);
	assert_int_equal(status_now().file_keys, 0);
}

/* ---- the pool ---- */

static void make_new(int n)
{
	struct header_ident id;
	struct header_slot s;
	struct lease_key *key;

	for (int i = 0; i < n; i++) {
		assert_int_equal(lease_new_key(w.lease, NULL, &key, &id, &s), 0);
		lease_key_put(key);
	}
}

static void test_pool_follows_demand(void **state)
{
	(void)state;
	w.params.pool = 200;
	open_for_long();
	UNTIL(status_now().pool_ready == 64);
	/* A few files cost nothing more. */
	make_new(20);
	advance(10);
	assert_int_equal(status_now().pool_ready, 44);
	assert_int_equal(calls(CALL_GENERATE), 64);
	/* Many are believed to be followed by as many again. */
	make_new(30);
	UNTIL(status_now().pool_ready == 100);
	make_new(100);
	UNTIL(status_now().pool_ready == 200);
	/* Later ones have nothing to do with them. */
	advance(1000);
	make_new(1);
	advance(10);
	assert_int_equal(status_now().pool_ready, 199);
	/* None for long: a lone file costs its own call and two more. */
	advance(60000);
	UNTIL(status_now().pool_ready == 0);
	unsigned before = calls(CALL_GENERATE);
	struct header_ident id;
	struct header_slot s;
	struct lease_key *key;

	assert_int_equal(lease_new_key(w.lease, park_at(0), &key, &id, &s), -EINPROGRESS);
	UNTIL(told(1));
	lease_waiter_cancel(&parked[0].waiter);
	UNTIL(status_now().pool_ready == 2);
	advance(10);
	assert_int_equal(calls(CALL_GENERATE), before + 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_fetched_and_used), T(test_promises), T(test_order_of_calls),
		T(test_threads), T(test_renewals_before_ahead), T(test_dropped_at_lock), T(test_refused_while_locked),
		T(test_denied), T(test_bad_blob), T(test_never_too_many), T(test_no_kms_for_domain_seal), T(test_batch),
		T(test_batch_throttled), T(test_batch_and_lock), T(test_pool_follows_demand) };

	return world_init() ? 1 : cmocka_run_group_tests_name("lease_ahead", tests, NULL, NULL);
}
