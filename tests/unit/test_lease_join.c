/* Those who join: a call under way for somebody else, or with somebody else's header, must not speak for them, and
 * nobody waits for another's operation. And those who left: no key is kept for them. */
#include "lease_files.h"

static void open_with_files(void)
{
	open_for_long();
	make_files();
}

/* ---- those who come later than the question ---- */

/* A call that began for nobody fails: whoever came meanwhile gets one of their own. */
static void test_joined_and_throttled(void **state)
{
	(void)state;
	open_with_files();
	for (int i = 0; i < 2; i++) {
		hang(CALL_FILE, true);
		assert_int_equal(ahead(i), 1);
		UNTIL(hanging(CALL_FILE) == 1);
		assert_int_equal(park(i, 0), -EINPROGRESS);
		answer_once(CALL_FILE, i ? KMS_DOWN : KMS_BUSY);
		hang(CALL_FILE, false);
		UNTIL(told(1));
		take_parked(i, 0);
		assert_int_equal(calls(CALL_FILE), 2 * (i + 1));
	}
	/* Their own failing is theirs. */
	answer(CALL_FILE, KMS_BUSY);
	assert_int_equal(park(2, 0), -EINPROGRESS);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, -EIO);
	assert_int_equal(calls(CALL_FILE), 5);
}

/* ---- headers that lie ---- */

/* A header with this file's id and another commitment proves nothing. */
static void test_forged_commitment(void **state)
{
	struct header_ident forged;
	struct header_slot bad;

	(void)state;
	open_with_files();
	forged = ident[0];
	forged.commit[0] ^= 1;
	bad = slot[1];
	hang(CALL_FILE, true);
	assert_int_equal(lease_key_ahead(w.lease, &forged, &bad), 1);
	UNTIL(hanging(CALL_FILE) == 1);
	assert_int_equal(park(0, 0), -EINPROGRESS);
	hang(CALL_FILE, false);
	UNTIL(told(1));
	take_parked(0, 0);
	UNTIL(status_now().file_keys == 1);
	/* Proved now: the other one is refused without a question. */
	struct lease_key *key;
	unsigned before = calls(CALL_FILE);

	assert_int_equal(lease_key_ahead(w.lease, &forged, &bad), -EIO);
	assert_int_equal(lease_file_key(w.lease, &forged, &bad, park_at(1), &key), -EIO);
	assert_int_equal(calls(CALL_FILE), before);
	assert_int_equal(look(0), 0);
}

/* The same with a blob that is none of this file's: queued, and asked about already. */
static void test_forged_blob(void **state)
{
	struct header_slot bad;
	struct lease_key *key;

	(void)state;
	w.params.threads = 1;
	open_with_files();
	bad = slot[5];
	hang(CALL_FILE, true);
	assert_int_equal(lease_key_ahead(w.lease, &ident[0], &bad), 1);
	UNTIL(hanging(CALL_FILE) == 1);
	assert_int_equal(lease_key_ahead(w.lease, &ident[1], &bad), 1);
	assert_int_equal(lease_file_key(w.lease, &ident[2], &bad, park_at(2), &key), -EINPROGRESS);
	for (int i = 0; i < 2; i++)
		assert_int_equal(park(i, i), -EINPROGRESS);
	assert_int_equal(park(2, 3), -EINPROGRESS);
	hang(CALL_FILE, false);
	UNTIL(told(4));
	for (int i = 0; i < 4; i++)
		take_parked(i < 3 ? i : 2, i);
	assert_int_equal(calls(CALL_FILE), 5);
	/* Once: a blob that is bad too is the end. */
	hang(CALL_FILE, true);
	assert_int_equal(lease_key_ahead(w.lease, &ident[3], &bad), 1);
	UNTIL(hanging(CALL_FILE) == 1);
	assert_int_equal(lease_file_key(w.lease, &ident[3], &slot[6], park_at(0), &key), -EINPROGRESS);
	hang(CALL_FILE, false);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, -EIO);
	assert_int_equal(calls(CALL_FILE), 7);
}

/* ---- those who left ---- */

/* A key that waits to be renewed and is not used any more goes like any other. */
static void test_renewal_in_vain(void **state)
{
	(void)state;
	w.params.threads = 1;
	w.params.max_age_ms = 20000;
	open_with_files();
	assert_int_equal(park(0, 0), -EINPROGRESS);
	UNTIL(told(1));
	take_parked(0, 0);
	hang(CALL_FILE, true);
	assert_int_equal(park(1, 0), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1);
	atomic_fetch_add(&clock_ms, 17000);
	assert_int_equal(look(0), 0);
	assert_int_equal(status_now().file_keys, 2);
	advance(75000);
	UNTIL(status_now().file_keys == 1);
	hang(CALL_FILE, false);
	UNTIL(hanging(CALL_FILE) == 0 && calls(CALL_FILE) == 2);
}

/* ---- slow operations ---- */

static unsigned requests;

static void fake_batch(void *priv, const char *key, struct kms_item *items, size_t n, uint64_t deadline)
{
	requests++;
	for (size_t i = 0; i < n; i++)
		(void)fake_decrypt(priv, key, items[i].context, items[i].blob, items[i].len, deadline, items[i].secret,
		    &items[i].used, &items[i].err);
}

static const struct kms_provider batch_provider = { .name = "fake",
	.number = 1,
	.generate = fake_generate,
	.decrypt = fake_decrypt,
	.decrypt_batch = fake_batch,
	.batch_max = 8 };

static atomic_bool held_up, go_on;

/* An operation that takes its time. */
static void slow_ready(struct lease_waiter *waiter)
{
	if (!atomic_exchange(&held_up, true))
		while (!atomic_load(&go_on))
			(void)nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	on_ready(waiter);
}

static unsigned told_of(int n)
{
	unsigned sum = 0;

	for (int i = 0; i < n; i++)
		sum += (unsigned)atomic_load(&parked[i].told);
	return sum;
}

/* Nobody waits for another's operation: neither for the key nor to be told. */
static void test_batch_and_slow_operation(void **state)
{
	struct lease_key *key;

	(void)state;
	atomic_store(&held_up, false);
	atomic_store(&go_on, false);
	requests = 0;
	kms_close(w.kms);
	assert_int_equal(kms_open_with(&w.kms, &batch_provider, NULL, ARN, 20), 0);
	w.params.threads = 2;
	open_with_files();
	/* The threads are busy while the queue fills. */
	hang(CALL_FILE, true);
	assert_int_equal(park(0, 0), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1);
	assert_int_equal(park(8, 8), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 2);
	for (int i = 1; i < 8; i++) {
		park_at(i)->ready = slow_ready;
		assert_int_equal(lease_file_key(w.lease, &ident[i], &slot[i], &parked[i].waiter, &key), -EINPROGRESS);
	}
	hang(CALL_FILE, false);
	UNTIL(atomic_load(&held_up) && told_of(9) == 8);
	assert_int_equal(requests, 1);
	for (int i = 1; i < 8; i++)
		assert_int_equal(look(i), 0);
	atomic_store(&go_on, true);
	UNTIL(told(9));
	for (int i = 0; i < 9; i++)
		take_parked(i, i);
	assert_int_equal(status_now().parked, 0);
}

/* ---- new keys ---- */

static int create(int at)
{
	struct header_ident id;
	struct header_slot s;
	struct lease_key *key;

	return lease_new_key(w.lease, park_at(at), &key, &id, &s);
}

/* Filling the pool fails: who came meanwhile gets a call of their own, whatever the answer was. */
static void test_create_while_filling_fails(void **state)
{
	static const enum kms_status why[] = { KMS_BUSY, KMS_DOWN, KMS_DENIED, KMS_CONFIG };

	(void)state;
	w.params.pool = w.params.threads = 1;
	for (unsigned i = 0; i < sizeof(why) / sizeof(*why); i++) {
		hang(CALL_GENERATE, true);
		open_for_long();
		UNTIL(hanging(CALL_GENERATE) == 1);
		assert_int_equal(create(0), -EINPROGRESS);
		answer_once(CALL_GENERATE, why[i]);
		hang(CALL_GENERATE, false);
		UNTIL(told(1));
		assert_int_equal(parked[0].waiter.result, 0);
		lease_waiter_cancel(&parked[0].waiter);
		/* A denial has the canary asked all the same. */
		UNTIL(status_now().probes == (why[i] == KMS_DENIED));
		lease_close(w.lease);
		w.lease = NULL;
	}
}

/* A failure is for those who asked, not for who came later. */
static void test_create_fails(void **state)
{
	(void)state;
	w.params.threads = 1;
	open_for_long();
	hang(CALL_GENERATE, true);
	assert_int_equal(create(0), -EINPROGRESS);
	UNTIL(hanging(CALL_GENERATE) == 1);
	assert_int_equal(create(1), -EINPROGRESS);
	answer_once(CALL_GENERATE, KMS_DENIED);
	hang(CALL_GENERATE, false);
	UNTIL(told(2));
	assert_int_equal(parked[0].waiter.result, -EIO);
	assert_int_equal(parked[1].waiter.result, 0);
	lease_waiter_cancel(&parked[1].waiter);
	assert_int_equal(calls(CALL_GENERATE), 2);
	answer(CALL_GENERATE, KMS_BUSY);
	assert_int_equal(create(0), -EINPROGRESS);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, -EIO);
}

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_joined_and_throttled), T(test_forged_commitment),
		T(test_forged_blob), T(test_batch_and_slow_operation), T(test_create_while_filling_fails),
		T(test_create_fails), T(test_renewal_in_vain) };

	return world_init() ? 1 : cmocka_run_group_tests_name("lease_join", tests, NULL, NULL);
}
