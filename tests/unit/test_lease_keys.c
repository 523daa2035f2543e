/* The lease's keys: single flight, damage, ageing, the pool, and locks in between.                            */
#include "lease_world.h"

/* ---- keys of existing files ---- */

static void test_single_flight(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key[PARKED], *extra;

	(void)state;
	open_for_long();
	make_file(&ident, &slot);
	hang(CALL_FILE, true);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &extra), -EAGAIN);
	for (int i = 0; i < PARKED; i++)
		assert_int_equal(lease_file_key(w.lease, &ident, &slot, park_at(i), &key[i]), -EINPROGRESS);
	assert_int_equal(lease_file_key(w.lease, &ident, &slot, NULL, &extra), -EAGAIN);
	assert_int_equal(status_now().parked, PARKED);
	hang(CALL_FILE, false);
	UNTIL(told(PARKED));
	assert_int_equal(calls(CALL_FILE), 1);
	assert_int_equal(status_now().parked, 0);
	for (int i = 0; i < PARKED; i++) {
		assert_int_equal(parked[i].waiter.result, 0);
		if (i == 0) {
			lease_waiter_cancel(&parked[i].waiter);
			continue;
		}
		assert_int_equal(lease_file_key(w.lease, &ident, &slot, &parked[i].waiter, &key[i]), 0);
		assert_memory_equal(lease_key_file(key[i])->commit, ident.commit, 32);
		assert_ptr_equal(lease_key_block(key[i])->key, lease_key_file(key[i])->page);
		lease_key_put(key[i]);
	}
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &extra), 0);
	lease_key_put(extra);
	assert_int_equal(status_now().hits, 1);
	assert_int_equal(status_now().file_keys, 1);
}

static void test_damaged_keys(void **state)
{
	struct header_ident ident, other, liar;
	struct header_slot slot, other_slot;
	struct lease_key *key;

	(void)state;
	open_for_long();
	make_file(&ident, &slot);
	make_file(&other, &other_slot);
	/* Another file's blob: the KMS refuses the context. */
	assert_int_equal(get_key(&ident, &other_slot, &key), -EIO);
	assert_int_equal(status_now().file_keys, 0);
	/* A blob that opens, but to another secret. */
	liar = ident;
	liar.commit[31] ^= 1;
	assert_int_equal(get_key(&liar, &slot, &key), -EIO);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	/* The same from the cache. */
	assert_int_equal(get_key(&liar, &slot, NULL), -EIO);
	lease_key_put(key);
	liar = ident;
	liar.domain[0] ^= 1;
	assert_int_equal(get_key(&liar, &slot, &key), -EIO);
	slot.generation = 7;
	make_file(&other, &other_slot);
	other_slot.generation = 7;
	assert_int_equal(get_key(&other, &other_slot, &key), -EIO);
	other_slot.len = HEADER_BLOB_MAX + 1;
	assert_int_equal(get_key(&other, &other_slot, &key), -EIO);
	assert_true(can(LEASE_WORK));
}

static void test_max_age(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key, *again;

	(void)state;
	w.params.idle_ms = 100000000;
	open_for_long();
	make_file(&ident, &slot);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	lease_key_put(key);
	advance(239999);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &key), 0);
	lease_key_put(key);
	assert_int_equal(calls(CALL_FILE), 1);
	/* At four fifths a use renews it in the background. */
	hang(CALL_FILE, true);
	advance(1);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &key), 0);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &again), 0);
	assert_ptr_equal(key, again);
	lease_key_put(again);
	UNTIL(hanging(CALL_FILE) == 1);
	hang(CALL_FILE, false);
	UNTIL(calls(CALL_FILE) == 2 && hanging(CALL_FILE) == 0);
	lease_key_put(key);
	UNTIL(lease_file_key(w.lease, &ident, NULL, NULL, &key) == 0);
	lease_key_put(key);
	advance(299999);
	/* Silence of the KMS does not take it away before its time. */
	answer(CALL_FILE, KMS_DOWN);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &key), 0);
	lease_key_put(key);
	UNTIL(calls(CALL_FILE) >= 3);
	advance(1);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &key), -EAGAIN);
	assert_int_equal(get_key(&ident, &slot, &key), -EIO);
	answer(CALL_FILE, KMS_OK);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	assert_memory_equal(lease_key_file(key)->commit, ident.commit, 32);
	lease_key_put(key);
}

/* One file refused is not the domain refused: the canary decides, at once, but not twice a second. */
static void test_denied_file(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;

	(void)state;
	open_now();
	make_file(&ident, &slot);
	advance(2000);
	answer(CALL_FILE, KMS_DENIED);
	assert_int_equal(get_key(&ident, &slot, &key), -EIO);
	UNTIL(status_now().lease_left_ms == 30000);
	assert_int_equal(get_key(&ident, &slot, &key), -EIO);
	assert_int_equal(status_now().probes, 1);
	assert_true(can(LEASE_WORK));
	answer(CALL_PROBE, KMS_DENIED);
	advance(1000);
	UNTIL(settled(LEASE_LOCKED));
	assert_int_equal(status_now().probes, 2);
}

static void test_idle(void **state)
{
	struct header_ident ident[2];
	struct header_slot slot[2];
	struct lease_key *held, *key;

	(void)state;
	open_for_long();
	for (int i = 0; i < 2; i++)
		make_file(&ident[i], &slot[i]);
	assert_int_equal(get_key(&ident[0], &slot[0], &held), 0);
	assert_int_equal(get_key(&ident[1], &slot[1], &key), 0);
	lease_key_put(key);
	assert_int_equal(status_now().file_keys, 2);
	advance(59999);
	assert_int_equal(lease_file_key(w.lease, &ident[1], NULL, NULL, &key), 0);
	lease_key_put(key);
	advance(59999);
	assert_int_equal(status_now().file_keys, 2);
	advance(15001);
	UNTIL(status_now().file_keys == 1);
	assert_non_null(lease_key_file(held));
	lease_key_put(held);
	assert_int_equal(get_key(&ident[1], &slot[1], &key), 0);
	lease_key_put(key);
	assert_int_equal(calls(CALL_FILE), 3);
}

static void test_waiter_deadline(void **state)
{
	struct header_ident ident, fresh;
	struct header_slot slot, fresh_slot;
	struct lease_key *key;

	(void)state;
	open_for_long();
	make_file(&ident, &slot);
	hang(CALL_FILE, true);
	hang(CALL_GENERATE, true);
	assert_int_equal(lease_file_key(w.lease, &ident, &slot, park_at(0), &key), -EINPROGRESS);
	assert_int_equal(lease_new_key(w.lease, park_at(1), &key, &fresh, &fresh_slot), -EINPROGRESS);
	advance(20);
	assert_int_equal(status_now().parked, 2);
	advance(30);
	UNTIL(told(2));
	assert_int_equal(parked[0].waiter.result, -EIO);
	assert_int_equal(parked[1].waiter.result, -EIO);
	assert_int_equal(status_now().parked, 0);
}

/* Sealed by the domain key: no call, no waiting. */
static void test_seal_domain(void **state)
{
	struct header_ident ident, liar;
	struct header_slot slot;
	struct lease_key *key, *again;

	(void)state;
	free(w.desc.gen);
	make_domain(SEAL_DOMAIN);
	open_for_long();
	assert_int_equal(lease_new_key(w.lease, NULL, &key, &ident, &slot), 0);
	assert_int_equal(slot.wrap, HEADER_WRAP_DOMAIN);
	assert_int_equal(slot.len, KDF_WRAP_BLOB);
	assert_int_equal(slot.seq, 1);
	assert_int_equal(slot.provider, 0);
	assert_memory_equal(lease_key_file(key)->commit, ident.commit, 32);
	lease_key_put(key);
	advance(60000);
	UNTIL(status_now().file_keys == 0);
	liar = ident;
	liar.commit[0] ^= 1;
	assert_int_equal(lease_file_key(w.lease, &liar, &slot, NULL, &key), -EIO);
	liar = ident;
	liar.file[0] ^= 1;
	assert_int_equal(lease_file_key(w.lease, &liar, &slot, NULL, &key), -EIO);
	assert_int_equal(lease_file_key(w.lease, &ident, &slot, NULL, &key), 0);
	advance(1000000);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &again), 0);
	assert_ptr_equal(key, again);
	lease_key_put(key);
	lease_key_put(again);
	assert_int_equal(calls(CALL_FILE) + calls(CALL_GENERATE), 0);
}

/* ---- new keys ---- */

static void test_pool(void **state)
{
	struct header_ident ident[PARKED];
	struct header_slot slot[PARKED];
	struct lease_key *key;

	(void)state;
	w.params.pool = 8;
	open_for_long();
	UNTIL(status_now().pool_ready == 8);
	assert_int_equal(calls(CALL_GENERATE), 8);
	for (int i = 0; i < PARKED; i++) {
		int r = lease_new_key(w.lease, park_at(0), &key, &ident[i], &slot[i]);

		if (r == -EINPROGRESS) {
			UNTIL(told(1));
			assert_int_equal(parked[0].waiter.result, 0);
			r = lease_new_key(w.lease, &parked[0].waiter, &key, &ident[i], &slot[i]);
		}
		assert_int_equal(r, 0);
		assert_memory_equal(lease_key_file(key)->commit, ident[i].commit, 32);
		lease_key_put(key);
		assert_int_equal(slot[i].seq, 1);
		assert_int_equal(slot[i].wrap, HEADER_WRAP_KMS);
		assert_int_equal(slot[i].generation, 1);
		assert_int_equal(slot[i].provider, 1);
		assert_int_equal(slot[i].len, 184);
		assert_false(bytes_zero(slot[i].key_hash, 8));
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(ident[i].file, ident[j].file, 16);
	}
	/* What was sealed opens again, as that file only. */
	UNTIL(status_now().pool_ready == 8);
	advance(60000);
	UNTIL(status_now().file_keys == 0);
	assert_int_equal(status_now().pool_ready, 0);
	for (int i = 0; i < PARKED; i++) {
		assert_int_equal(get_key(&ident[i], &slot[(i + 1) % PARKED], &key), -EIO);
		assert_int_equal(get_key(&ident[i], &slot[i], &key), 0);
		lease_key_put(key);
	}
}

static void test_demand_beyond_pool(void **state)
{
	struct header_ident ident[PARKED];
	struct header_slot slot[PARKED];
	struct lease_key *key;

	(void)state;
	w.params.pool = 2;
	open_for_long();
	UNTIL(status_now().pool_ready == 2);
	hang(CALL_GENERATE, true);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(lease_new_key(w.lease, NULL, &key, &ident[i], &slot[i]), 0);
		lease_key_put(key);
	}
	assert_int_equal(lease_new_key(w.lease, NULL, &key, &ident[0], &slot[0]), -EAGAIN);
	for (int i = 0; i < PARKED; i++)
		assert_int_equal(lease_new_key(w.lease, park_at(i), &key, &ident[i], &slot[i]), -EINPROGRESS);
	hang(CALL_GENERATE, false);
	UNTIL(told(PARKED));
	for (int i = 0; i < PARKED; i++) {
		assert_int_equal(parked[i].waiter.result, 0);
		assert_int_equal(lease_new_key(w.lease, &parked[i].waiter, &key, &ident[i], &slot[i]), 0);
		lease_key_put(key);
		for (int j = 0; j < i; j++)
			assert_memory_not_equal(ident[i].file, ident[j].file, 16);
	}
	UNTIL(status_now().pool_ready == 2);
	assert_int_equal(calls(CALL_GENERATE), 2 + PARKED + 2);
}

static void test_new_key_refused(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;

	(void)state;
	open_now();
	advance(2000);
	kms.blob_len = HEADER_BLOB_MAX + 1;
	assert_int_equal(lease_new_key(w.lease, park_at(0), &key, &ident, &slot), -EINPROGRESS);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, -EIO);
	kms.blob_len = 184;
	answer(CALL_GENERATE, KMS_DENIED);
	hang(CALL_GENERATE, true);
	for (int i = 0; i < PARKED; i++)
		assert_int_equal(lease_new_key(w.lease, park_at(i), &key, &ident, &slot), -EINPROGRESS);
	hang(CALL_GENERATE, false);
	UNTIL(told(PARKED));
	for (int i = 0; i < PARKED; i++)
		assert_int_equal(parked[i].waiter.result, -EIO);
	UNTIL(status_now().probes == 1);
	assert_true(can(LEASE_WORK));
}

/* A pool that cannot be filled is not asked for over and over. */
static void test_pool_backs_off(void **state)
{
	(void)state;
	answer(CALL_GENERATE, KMS_CONFIG);
	w.params.pool = 4;
	w.params.threads = 1;
	w.params.idle_ms = 1000000;
	open_now();
	UNTIL(calls(CALL_GENERATE) == 1);
	advance(9999);
	assert_int_equal(calls(CALL_GENERATE), 1);
	advance(2);
	UNTIL(calls(CALL_GENERATE) == 2);
	answer(CALL_GENERATE, KMS_OK);
	advance(10001);
	UNTIL(status_now().pool_ready == 4);
}

/* ---- locks and keys together ---- */

static void test_parked_fail_on_lock(void **state)
{
	struct header_ident ident, fresh;
	struct header_slot slot, fresh_slot;
	struct lease_key *key;

	(void)state;
	open_for_long();
	make_file(&ident, &slot);
	hang(CALL_FILE, true);
	hang(CALL_GENERATE, true);
	assert_int_equal(lease_file_key(w.lease, &ident, &slot, park_at(0), &key), -EINPROGRESS);
	assert_int_equal(lease_new_key(w.lease, park_at(1), &key, &fresh, &fresh_slot), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1 && hanging(CALL_GENERATE) == 1);
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(settled(LEASE_LOCKED));
	assert_true(told(2));
	assert_int_equal(parked[0].waiter.result, -EIO);
	assert_int_equal(parked[1].waiter.result, -EIO);
	/* Their answers come late and are thrown away, whether the domain is open again or not. */
	assert_int_equal(lease_unlock(w.lease), 0);
	UNTIL(settled(LEASE_OPEN));
	hang(CALL_FILE, false);
	hang(CALL_GENERATE, false);
	UNTIL(hanging(CALL_FILE) == 0 && hanging(CALL_GENERATE) == 0);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &key), -EAGAIN);
	assert_int_equal(status_now().file_keys, 0);
	assert_int_equal(status_now().pool_ready, 0);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	lease_key_put(key);
}

/* Keys in hand serve the write-back; nobody is asked for others. */
static void test_keys_while_locking(void **state)
{
	struct header_ident ident[2];
	struct header_slot slot[2];
	struct lease_key *key;

	(void)state;
	w.params.max_age_ms = 1;
	open_for_long();
	make_file(&ident[0], &slot[0]);
	make_file(&ident[1], &slot[1]);
	assert_int_equal(get_key(&ident[0], &slot[0], &key), 0);
	lease_key_put(key);
	set_drain_hangs(true);
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(draining());
	atomic_fetch_add(&clock_ms, 100);
	assert_int_equal(lease_enter(w.lease, LEASE_WRITEBACK), 0);
	assert_int_equal(lease_file_key(w.lease, &ident[0], &slot[0], park_at(0), &key), 0);
	assert_memory_equal(lease_key_file(key)->commit, ident[0].commit, 32);
	lease_key_put(key);
	assert_int_equal(lease_file_key(w.lease, &ident[1], &slot[1], park_at(0), &key), -EIO);
	lease_leave(w.lease, LEASE_WRITEBACK);
	set_drain_hangs(false);
	UNTIL(settled(LEASE_LOCKED));
	assert_int_equal(calls(CALL_FILE), 1);
}

/* Slots are not authenticated: a higher one that opens nothing must not choose the context of new files. */
static void test_context_of_the_slot_that_opened(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;

	(void)state;
	le32_put(w.desc.slot[1].blob, 999999);
	w.desc.slot[1].seq = 2;
	w.desc.slot[1].context = 7;
	w.params.pool = 1;
	open_for_long();
	UNTIL(status_now().pool_ready == 1);
	assert_int_equal(lease_enter(w.lease, LEASE_WORK), 0);
	assert_int_equal(lease_new_key(w.lease, NULL, &key, &ident, &slot), 0);
	assert_int_equal(slot.generation, 1);
	lease_key_put(key);
	lease_leave(w.lease, LEASE_WORK);
}

/* An operation that entered in time but was kept waiting by the storage must ask again before it shows anything. */
static void test_still_after_a_lock(void **state)
{
	(void)state;
	open_for_long();
	assert_int_equal(lease_enter(w.lease, LEASE_WORK), 0);
	assert_int_equal(lease_still(w.lease, LEASE_WORK), 0);
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(lease_still(w.lease, LEASE_WORK) == -EIO);
	lease_leave(w.lease, LEASE_WORK);
	UNTIL(settled(LEASE_LOCKED));
}

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_single_flight), T(test_damaged_keys), T(test_max_age),
		T(test_denied_file), T(test_idle), T(test_waiter_deadline), T(test_seal_domain), T(test_pool),
		T(test_demand_beyond_pool), T(test_new_key_refused), T(test_pool_backs_off),
		T(test_parked_fail_on_lock), T(test_keys_while_locking), T(test_context_of_the_slot_that_opened),
		T(test_still_after_a_lock) };

	return world_init() ? 1 : cmocka_run_group_tests_name("lease_keys", tests, NULL, NULL);
}
