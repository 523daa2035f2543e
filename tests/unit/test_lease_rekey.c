/* A lease with two keys: a key takes another's place while keys are in use, and either of them is withdrawn. */
#include "lease_world.h"

#define FILES 12

static struct kms *second;
static struct header_ident ident[FILES];
static struct header_slot slot[FILES];

static int setup_two(void **state)
{
	static int mark;

	return setup(state) || kms_open_with(&second, &provider, &mark, ARN2, 20);
}

static int teardown_two(void **state)
{
	int r = teardown(state);

	kms_close(second);
	return r;
}

#define T2(name) cmocka_unit_test_setup_teardown(name, setup_two, teardown_two)

static unsigned calls_of_second(enum call call)
{
	LOCK_SCOPE(&kms.lock);
	return kms.calls2[call];
}

static void second_answers(enum call call, enum kms_status status)
{
	LOCK_SCOPE(&kms.lock);
	kms.answer2[call] = status;
}

/* The domain secret is what slot 0 says it is; slot 1 gets the same one under the second key, and rules. */
static void begin_rotation(void)
{
	struct descriptor_slot *s = &w.desc.slot[1];
	struct context *c = malloc(sizeof(*c));

	assert_non_null(c);
	LOCK_SCOPE(&kms.lock);
	kms.seal_second = true;
	*s = w.desc.slot[0];
	(void)snprintf(s->key, sizeof(s->key), "%s", ARN2);
	s->seq = w.desc.slot[0].seq + 1;
	context_build(c, CONTEXT_DOMAIN, &w.ids, NULL, NULL);
	s->blob_len = (uint16_t)seal(kms.sealed[le32_get(w.desc.slot[0].blob)].secret, c, s->blob);
	context_build(c, CONTEXT_PROBE, &w.ids, NULL, NULL);
	s->probe_len = (uint16_t)seal(kms.sealed[le32_get(w.desc.slot[0].probe)].secret, c, s->probe);
	kms.seal_second = false;
	free(c);
}

static void finish_rotation(void)
{
	memset(&w.desc.slot[0], 0, sizeof(w.desc.slot[0]));
}

/* A file under the first key; reseal() puts it under the second. */
static void make(int i)
{
	make_file(&ident[i], &slot[i]);
	slot[i].provider = 1;
	kms_key_hash(slot[i].key_hash, ARN);
}

static void reseal(int i)
{
	struct context *c = malloc(sizeof(*c));

	assert_non_null(c);
	LOCK_SCOPE(&kms.lock);
	context_build(c, CONTEXT_FILE, &w.ids, ident[i].file, NULL);
	kms.seal_second = true;
	slot[i].len = (uint16_t)seal(kms.sealed[le32_get(slot[i].blob)].secret, c, slot[i].blob);
	kms.seal_second = false;
	slot[i].seq++;
	kms_key_hash(slot[i].key_hash, ARN2);
	free(c);
}

static void open_two(void)
{
	w.params.previous = second;
	open_for_long();
}

static int take(int i)
{
	struct lease_key *key;
	int r = get_key(&ident[i], &slot[i], &key);

	if (!r) {
		assert_memory_equal(lease_key_file(key)->commit, ident[i].commit, 32);
		lease_key_put(key);
	}
	return r;
}

/* ---- mounting ---- */

/* Whichever is named first, the descriptor says which one rules. */
static void test_either_order(void **state)
{
	struct kms *first = w.kms;

	(void)state;
	begin_rotation();
	open_two();
	assert_ptr_equal(lease_kms(w.lease, false), second);
	assert_ptr_equal(lease_kms(w.lease, true), first);
	assert_int_equal(calls(CALL_DOMAIN), 0);
	assert_int_equal(calls_of_second(CALL_DOMAIN), 1);
	lease_close(steal_ptr(&w.lease));
	w.params.previous = first;
	w.kms = second;
	open_for_long();
	w.kms = first;
	assert_ptr_equal(lease_kms(w.lease, false), second);
	assert_ptr_equal(lease_kms(w.lease, true), first);
	make(0);
	make(1);
	reseal(1);
	assert_int_equal(take(0), 0);
	assert_int_equal(take(1), 0);
	assert_int_equal(calls(CALL_FILE), 1);
	assert_int_equal(calls_of_second(CALL_FILE), 1);
}

/* The old key only: its slot opens the domain, the new one is not bothered, and its files are known to be out of
 * reach. */
static void test_old_key_only(void **state)
{
	char advice[900];

	(void)state;
	begin_rotation();
	open_for_long();
	assert_int_equal(calls(CALL_DOMAIN), 1);
	assert_true(lease_advice(w.lease, advice, sizeof(advice)));
	assert_non_null(strstr(advice, "a rotation to key '" ARN2 "'"));
	assert_non_null(strstr(advice, "set kms.key to it and kms.previous to '" ARN "'"));
	make(0);
	make(1);
	reseal(1);
	assert_true(lease_rotating(w.lease));
	assert_true(lease_knows(w.lease, &slot[0]));
	assert_false(lease_knows(w.lease, &slot[1]));
	assert_int_equal(take(0), 0);
	assert_int_equal(take(1), -EIO);
	assert_int_equal(lease_key_ahead(w.lease, &ident[1], &slot[1]), -EIO);
	assert_int_equal(calls(CALL_FILE), 1);
}

static void test_new_key_only(void **state)
{
	struct kms *first = w.kms;
	char advice[900];

	(void)state;
	begin_rotation();
	w.kms = second;
	open_for_long();
	w.kms = first;
	assert_int_equal(calls_of_second(CALL_DOMAIN), 1);
	assert_true(lease_advice(w.lease, advice, sizeof(advice)));
	assert_non_null(strstr(advice, "a rotation from key '" ARN "'"));
	assert_non_null(strstr(advice, "set kms.previous to it"));
	make(0);
	make(1);
	reseal(1);
	assert_int_equal(take(0), -EIO);
	assert_int_equal(take(1), 0);
	assert_int_equal(calls(CALL_FILE) + calls(CALL_DOMAIN), 0);
}

/* After the end, the old key's mount is refused: it is asked, and does not open what is there. */
static void test_too_late(void **state)
{
	(void)state;
	begin_rotation();
	finish_rotation();
	assert_int_equal(try_open(false), KMS_BAD_BLOB);
	assert_int_equal(calls(CALL_DOMAIN), 1);
}

/* A ruling slot that is damaged, or a forger's, does not keep the other one from opening; a denial of it does. */
static void test_ruling_slot(void **state)
{
	(void)state;
	begin_rotation();
	w.params.previous = second;
	second_answers(CALL_DOMAIN, KMS_DENIED);
	assert_int_equal(try_open(false), KMS_DENIED);
	second_answers(CALL_DOMAIN, KMS_CONFIG);
	assert_int_equal(try_open(false), KMS_CONFIG);
	assert_int_equal(calls(CALL_DOMAIN), 0);
	second_answers(CALL_DOMAIN, KMS_OK);
	le32_put(w.desc.slot[1].blob, 999999);
	open_now();
	assert_ptr_equal(lease_kms(w.lease, false), w.kms);
	assert_ptr_equal(lease_kms(w.lease, true), second);
}

/* ---- one takes the other's place ---- */

static void test_rekey_in_use(void **state)
{
	struct lease_key *held, *again;
	struct header_ident born;
	struct header_slot sealed;
	struct kms_err err;

	(void)state;
	w.params.pool = 4;
	open_for_long();
	make(0);
	assert_int_equal(get_key(&ident[0], &slot[0], &held), 0);
	UNTIL(status_now().pool_ready == 4);
	begin_rotation();
	assert_int_equal(lease_prove(w.lease, second, &w.desc.slot[1], &w.desc.gen[0].extra, &err), KMS_OK);
	assert_int_equal(calls_of_second(CALL_GENERATE), 1);
	assert_int_equal(lease_rekey(w.lease, &w.desc, second, w.kms), 0);
	/* Nobody notices: the key in hand, the files still under the first key. */
	assert_non_null(lease_key_file(held));
	assert_int_equal(lease_file_key(w.lease, &ident[0], NULL, NULL, &again), 0);
	assert_ptr_equal(held, again);
	lease_key_put(again);
	lease_key_put(held);
	make(1);
	assert_int_equal(take(1), 0);
	/* What was made ahead is made again, under the second. */
	UNTIL(status_now().pool_ready == 4);
	assert_int_equal(calls_of_second(CALL_GENERATE), 5);
	for (int i = 0; i < 4; i++) {
		assert_int_equal(lease_new_key(w.lease, NULL, &held, &born, &sealed), 0);
		assert_int_equal(kms.sealed[le32_get(sealed.blob)].second, true);
		lease_key_put(held);
	}
	/* The canary is the second key's from now on, and the first has its own. */
	UNTIL(calls_of_second(CALL_PROBE) >= 2 && calls(CALL_PROBE) >= 1);
	assert_true(can(LEASE_WORK));
}

/* A new key that the first key's service was still making is thrown away; who waits gets one of the second. */
static void test_rekey_during_generate(void **state)
{
	struct lease_key *key;
	struct header_ident born;
	struct header_slot sealed;

	(void)state;
	open_for_long();
	hang(CALL_GENERATE, true);
	assert_int_equal(lease_new_key(w.lease, park_at(0), &key, &born, &sealed), -EINPROGRESS);
	UNTIL(hanging(CALL_GENERATE) == 1);
	begin_rotation();
	assert_int_equal(lease_rekey(w.lease, &w.desc, second, w.kms), 0);
	assert_false(told(1));
	hang(CALL_GENERATE, false);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, 0);
	assert_int_equal(lease_new_key(w.lease, &parked[0].waiter, &key, &born, &sealed), 0);
	assert_true(kms.sealed[le32_get(sealed.blob)].second);
	lease_key_put(key);
}

/* Who was given a key before, and comes for it after, gets another: the file it is for might be found by nobody. */
static void test_rekey_before_the_waiter_comes(void **state)
{
	struct lease_key *key;
	struct header_ident born;
	struct header_slot sealed;

	(void)state;
	open_for_long();
	assert_int_equal(lease_new_key(w.lease, park_at(0), &key, &born, &sealed), -EINPROGRESS);
	UNTIL(told(1));
	begin_rotation();
	assert_int_equal(lease_rekey(w.lease, &w.desc, second, w.kms), 0);
	assert_non_null(parked[0].waiter.key);
	park_at(1)->key = steal_ptr(&parked[0].waiter.key);
	if (lease_new_key(w.lease, &parked[1].waiter, &key, &born, &sealed) == -EINPROGRESS) { /* else from the pool */
		UNTIL(told(2));
		assert_int_equal(lease_new_key(w.lease, &parked[1].waiter, &key, &born, &sealed), 0);
	}
	assert_true(kms.sealed[le32_get(sealed.blob)].second);
	lease_key_put(key);
}

/* A slot that does not open to the domain's secret, or whose key may not be used, is no slot to go to. */
static void test_prove(void **state)
{
	struct descriptor_slot forged;
	struct kms_err err;

	(void)state;
	open_for_long();
	begin_rotation();
	forged = w.desc.slot[1];
	memcpy(forged.blob, forged.probe, sizeof(forged.blob));
	assert_int_equal(lease_prove(w.lease, second, &forged, &w.desc.gen[0].extra, &err), KMS_BAD_BLOB);
	forged = w.desc.slot[1];
	le32_put(forged.probe, 999999);
	assert_int_equal(lease_prove(w.lease, second, &forged, &w.desc.gen[0].extra, &err), KMS_BAD_BLOB);
	assert_int_equal(lease_prove(w.lease, w.kms, &w.desc.slot[1], &w.desc.gen[0].extra, &err), KMS_BAD_BLOB);
	second_answers(CALL_GENERATE, KMS_DENIED);
	assert_int_equal(lease_prove(w.lease, second, &w.desc.slot[1], &w.desc.gen[0].extra, &err), KMS_DENIED);
	second_answers(CALL_DOMAIN, KMS_DOWN);
	assert_int_equal(lease_prove(w.lease, second, &w.desc.slot[1], &w.desc.gen[0].extra, &err), KMS_DOWN);
	assert_true(can(LEASE_WORK));
	assert_ptr_equal(lease_kms(w.lease, false), w.kms);
}

/* Renewed with the new blob, and by the other service. */
static void test_renewal_after_reseal(void **state)
{
	struct lease_key *key;

	(void)state;
	w.params.idle_ms = 1000000000;
	open_for_long();
	make(0);
	assert_int_equal(take(0), 0);
	begin_rotation();
	assert_int_equal(lease_rekey(w.lease, &w.desc, second, w.kms), 0);
	reseal(0);
	lease_resealed(w.lease, &ident[0], &slot[0]);
	advance(240000);
	assert_int_equal(lease_file_key(w.lease, &ident[0], NULL, NULL, &key), 0);
	lease_key_put(key);
	UNTIL(calls_of_second(CALL_FILE) == 1);
	assert_int_equal(calls(CALL_FILE), 1);
	/* The end: the first key is never asked again. */
	finish_rotation();
	assert_int_equal(lease_rekey(w.lease, &w.desc, second, NULL), 0);
	assert_null(lease_kms(w.lease, true));
	assert_false(lease_rotating(w.lease));
	assert_int_equal(take(0), 0);
}

/* The slot is exchanged while its old blob is being asked about: the new one stands, whatever the answer is. */
static void test_reseal_during_call(void **state)
{
	struct lease_key *key;

	(void)state;
	begin_rotation();
	open_two();
	make(0);
	hang(CALL_FILE, true);
	assert_int_equal(lease_file_key(w.lease, &ident[0], &slot[0], park_at(0), &key), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1);
	reseal(0);
	lease_resealed(w.lease, &ident[0], &slot[0]);
	answer(CALL_FILE, KMS_DENIED);
	hang(CALL_FILE, false);
	UNTIL(told(1));
	assert_int_equal(parked[0].waiter.result, 0);
	assert_int_equal(lease_file_key(w.lease, &ident[0], &slot[0], &parked[0].waiter, &key), 0);
	lease_key_put(key);
	assert_int_equal(calls(CALL_FILE), 1);
	assert_int_equal(calls_of_second(CALL_FILE), 1);
	assert_true(can(LEASE_WORK));
}

/* Back again: the first key rules once more, by a fresh slot of its own. */
static void test_turned_round(void **state)
{
	(void)state;
	begin_rotation();
	open_two();
	w.desc.slot[0].seq = 3;
	assert_int_equal(lease_rekey(w.lease, &w.desc, w.kms, second), 0);
	assert_ptr_equal(lease_kms(w.lease, false), w.kms);
	assert_ptr_equal(lease_kms(w.lease, true), second);
	make(0);
	make(1);
	reseal(1);
	assert_int_equal(take(0), 0);
	assert_int_equal(take(1), 0);
}

/* A name nobody knows is asked of the key of now: names decide nothing. */
static void test_unknown_name(void **state)
{
	(void)state;
	open_for_long();
	make(0);
	memset(slot[0].key_hash, 7, sizeof(slot[0].key_hash));
	assert_true(lease_knows(w.lease, &slot[0]));
	assert_int_equal(take(0), 0);
	make(1);
	reseal(1);
	assert_true(lease_knows(w.lease, &slot[1]));
	assert_int_equal(take(1), -EIO);
	assert_int_equal(calls(CALL_FILE), 2);
}

/* ---- a key is withdrawn ---- */

static void on_purge_open(void *arg)
{
	(void)arg;
	event("purge ", true);
}

static void on_drain_open(void *arg)
{
	(void)arg;
	event("drain ", hook_can(LEASE_WRITEBACK));
}

static void open_with_plain_hooks(void)
{
	static const struct lease_hooks plain = {
		.drain = on_drain_open, .purge = on_purge_open, .wipe = on_wipe, .opened = on_opened
	};

	begin_rotation();
	w.params.previous = second;
	w.params.lease_ms = 30000;
	w.params.max_age_ms = w.params.idle_ms = 1000000000;
	assert_int_equal(try_open(false), KMS_OK);
	assert_int_equal(lease_start(w.lease, &plain), 0);
	make(0);
	make(1);
	reseal(1);
	assert_int_equal(take(0), 0);
	assert_int_equal(take(1), 0);
}

static void test_now_denied(void **state)
{
	(void)state;
	open_with_plain_hooks();
	second_answers(CALL_PROBE, KMS_DENIED);
	advance(10000);
	UNTIL(settled(LEASE_LOCKED));
	assert_true(events_are("drain purge wipe "));
	assert_non_null(strstr(status_now().reason, "DisabledException"));
	/* The first key still says yes, and does not open the domain again. */
	advance(10000);
	UNTIL(status_now().probes >= 2);
	assert_true(settled(LEASE_LOCKED));
	assert_int_equal(calls(CALL_DOMAIN), 0);
}

/* Whoever owns the storage spoiled the canary of the key of now: the other key's does not stand in for it. */
static void test_spoiled_canary(void **state)
{
	(void)state;
	begin_rotation();
	le32_put(w.desc.slot[1].probe, 999999);
	w.params.previous = second;
	open_now();
	assert_ptr_equal(lease_kms(w.lease, false), second);
	advance(10000);
	UNTIL(status_now().probe_failures == 1);
	assert_int_equal(status_now().lease_left_ms, 20000);
	advance(20000);
	UNTIL(settled(LEASE_LOCKED));
}

static void test_before_denied(void **state)
{
	struct lease_key *held;

	(void)state;
	open_with_plain_hooks();
	assert_int_equal(lease_file_key(w.lease, &ident[0], NULL, NULL, &held), 0);
	answer(CALL_PROBE, KMS_DENIED);
	answer(CALL_FILE, KMS_DENIED);
	advance(10000);
	UNTIL(events_are("drain purge "));
	assert_int_equal(status_now().state, LEASE_OPEN);
	assert_non_null(strstr(status_now().before, "DisabledException"));
	/* Whoever is using it may finish; nobody gets it again. */
	assert_non_null(lease_key_file(held));
	lease_key_put(held);
	assert_int_equal(take(0), -EIO);
	assert_int_equal(take(1), 0);
	assert_int_equal(calls_of_second(CALL_FILE), 1);
	advance(10000);
	UNTIL(calls(CALL_PROBE) >= 2);
	assert_true(can(LEASE_WORK));
	assert_true(events_are("drain purge "));
	/* And it comes back. */
	answer(CALL_PROBE, KMS_OK);
	answer(CALL_FILE, KMS_OK);
	advance(10000);
	UNTIL(status_now().before[0] == '\0');
	assert_int_equal(take(0), 0);
	assert_int_equal(status_now().locks, 0);
}

/* A denial met by a file has the canaries asked, and they say which key it is. */
static void test_before_denies_a_file(void **state)
{
	(void)state;
	open_with_plain_hooks();
	make(2);
	answer(CALL_FILE, KMS_DENIED);
	answer(CALL_PROBE, KMS_DENIED);
	advance(1000);
	assert_int_equal(take(2), -EIO);
	UNTIL(events_are("drain purge "));
	assert_true(can(LEASE_WORK));
	assert_int_equal(take(1), 0);
	assert_int_equal(take(0), -EIO);
}

/* Silent for as long as a lease. */
static void test_before_silent(void **state)
{
	(void)state;
	open_with_plain_hooks();
	answer(CALL_PROBE, KMS_DOWN);
	answer(CALL_FILE, KMS_DOWN);
	for (unsigned i = 1; i <= 2; i++) {
		advance(10000);
		UNTIL(calls(CALL_PROBE) == i && status_now().before[0]);
		assert_int_equal(take(0), 0);
	}
	assert_true(events_are(""));
	advance(10000);
	UNTIL(events_are("drain purge "));
	assert_int_equal(take(0), -EIO);
	assert_int_equal(take(1), 0);
	assert_true(can(LEASE_WORK));
}

/* The other key hangs: the one of now is asked on time. */
static void test_before_hangs(void **state)
{
	(void)state;
	open_with_plain_hooks();
	hang(CALL_PROBE, true);
	advance(10000);
	UNTIL(hanging(CALL_PROBE) == 1);
	assert_int_equal(status_now().lease_left_ms, 30000);
	hang(CALL_PROBE, false);
	advance(10000);
	UNTIL(calls_of_second(CALL_PROBE) == 2);
	assert_true(can(LEASE_WORK));
}

/* ---- many in one request ---- */

static struct {
	unsigned requests[2];
	bool mixed;
} batches;

static void fake_batch(void *priv, const char *key, struct kms_item *items, size_t n, uint64_t deadline)
{
	batches.requests[priv != NULL]++;
	for (size_t i = 0; i < n; i++) {
		items[i].err.status = fake_decrypt(priv, key, items[i].context, items[i].blob, items[i].len, deadline,
		    items[i].secret, &items[i].used, &items[i].err);
		batches.mixed |= items[i].err.status == KMS_BAD_BLOB;
	}
}

static const struct kms_provider batching = { .name = "fake",
	.number = 1,
	.generate = fake_generate,
	.decrypt = fake_decrypt,
	.decrypt_batch = fake_batch,
	.batch_max = 32 };

static void test_batches_of_one_key(void **state)
{
	struct lease_key *key;
	static int mark;

	(void)state;
	memset(&batches, 0, sizeof(batches));
	kms_close(w.kms);
	kms_close(second);
	assert_int_equal(kms_open_with(&w.kms, &batching, NULL, ARN, 20), 0);
	assert_int_equal(kms_open_with(&second, &batching, &mark, ARN2, 20), 0);
	begin_rotation();
	w.params.threads = 1;
	open_two();
	for (int i = 0; i < FILES; i++) {
		make(i);
		if (i % 2)
			reseal(i);
	}
	/* The only thread is held up by the first, so the rest queue up. */
	hang(CALL_FILE, true);
	assert_int_equal(lease_file_key(w.lease, &ident[0], &slot[0], park_at(0), &key), -EINPROGRESS);
	UNTIL(hanging(CALL_FILE) == 1);
	for (int i = 1; i < FILES; i++)
		assert_int_equal(lease_file_key(w.lease, &ident[i], &slot[i], park_at(i), &key), -EINPROGRESS);
	hang(CALL_FILE, false);
	UNTIL(told(FILES));
	for (int i = 0; i < FILES; i++) {
		assert_int_equal(parked[i].waiter.result, 0);
		assert_int_equal(lease_file_key(w.lease, &ident[i], &slot[i], &parked[i].waiter, &key), 0);
		lease_key_put(key);
	}
	assert_false(batches.mixed);
	assert_int_equal(batches.requests[0], 1);
	assert_int_equal(batches.requests[1], 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = { T2(test_either_order), T2(test_old_key_only), T2(test_new_key_only),
		T2(test_too_late), T2(test_ruling_slot), T2(test_rekey_in_use), T2(test_rekey_during_generate),
		T2(test_rekey_before_the_waiter_comes),
		T2(test_prove), T2(test_renewal_after_reseal), T2(test_reseal_during_call), T2(test_turned_round),
		T2(test_unknown_name), T2(test_now_denied), T2(test_spoiled_canary), T2(test_before_denied),
		T2(test_before_denies_a_file), T2(test_before_silent), T2(test_before_hangs),
		T2(test_batches_of_one_key) };

	if (world_init())
		return 1;
	return cmocka_run_group_tests_name("lease: two keys", tests, NULL, NULL);
}
