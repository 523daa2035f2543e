/* Everything at once: three threads that want old and new keys, and some ahead, while the domain is locked and opened
 * again and again; with a KMS that takes one key at a time, and with one that takes many. */
#include "lease_world.h"

#define STRESS_FILES 6
static struct {
	struct header_ident ident[STRESS_FILES];
	struct header_slot slot[STRESS_FILES], twin[STRESS_FILES];
	_Atomic bool stop;
	_Atomic unsigned wrong, served, parked;
} stress;

struct errand {
	struct lease_waiter waiter;
	int file; /* -1: a new one */
};

static int errand_try(struct errand *e)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;
	const uint8_t *commit;
	int r = lease_enter(w.lease, LEASE_WORK);

	if (r)
		return r;
	if (e->file >= 0) {
		commit = stress.ident[e->file].commit;
		r = lease_file_key(w.lease, &stress.ident[e->file], &stress.slot[e->file], &e->waiter, &key);
	} else {
		commit = ident.commit;
		r = lease_new_key(w.lease, &e->waiter, &key, &ident, &slot);
	}
	if (r == 0) {
		const struct file_keys *keys = lease_key_file(key);

		if (!keys || memcmp(keys->commit, commit, 32) != 0 || !lease_names(w.lease) || !lease_key_block(key))
			atomic_fetch_add(&stress.wrong, 1);
		atomic_fetch_add(&stress.served, 1);
		lease_key_put(key);
	}
	lease_leave(w.lease, LEASE_WORK);
	return r;
}

static void errand_ready(struct lease_waiter *waiter)
{
	struct errand *e = (struct errand *)(void *)waiter;
	int r = waiter->result;

	atomic_fetch_sub(&stress.parked, 1);
	if (r == 0) {
		atomic_fetch_add(&stress.parked, 1);
		r = errand_try(e);
		if (r == -EINPROGRESS)
			return;
		atomic_fetch_sub(&stress.parked, 1);
	}
	lease_waiter_cancel(waiter);
	free(e);
}

static void go_ahead(unsigned file)
{
	if (lease_enter(w.lease, LEASE_WORK))
		return;
	if (lease_key_ahead(w.lease, &stress.ident[file], &stress.slot[file]) > 1)
		atomic_fetch_add(&stress.wrong, 1);
	lease_leave(w.lease, LEASE_WORK);
}

static void *stress_main(void *arg)
{
	unsigned at = *(const unsigned *)arg;

	while (!atomic_load(&stress.stop)) {
		struct errand *e = calloc(1, sizeof(*e));
		int r;

		if (!e)
			abort();
		e->waiter.ready = errand_ready;
		at = at * 1103515245 + 12345;
		e->file = (int)(at >> 16) % (STRESS_FILES + 1) - 1;
		go_ahead((at >> 8) % STRESS_FILES);
		if (atomic_load(&stress.parked) > 50)
			e->file = 0;
		atomic_fetch_add(&stress.parked, 1);
		r = errand_try(e);
		if (r != -EINPROGRESS) {
			atomic_fetch_sub(&stress.parked, 1);
			free(e);
		}
		if (r == -EIO)
			(void)sched_yield();
	}
	return NULL;
}

/* The same secret under another blob. */
static void make_twin(const struct header_ident *ident, const struct header_slot *slot, struct header_slot *twin)
{
	struct context *c = malloc(sizeof(*c));

	assert_non_null(c);
	*twin = *slot;
	context_build(c, CONTEXT_FILE, &w.ids, ident->file, NULL);
	LOCK_SCOPE(&kms.lock);
	twin->len = (uint16_t)seal(kms.sealed[le32_get(slot->blob)].secret, c, twin->blob);
	free(c);
}

/* Slots are exchanged, and the key by itself, while everything goes on. */
static void disturb(void)
{
	static unsigned turn;
	unsigned at = ++turn % STRESS_FILES;

	lease_resealed(w.lease, &stress.ident[at], turn / STRESS_FILES % 2 ? &stress.twin[at] : &stress.slot[at]);
	if (turn % 16 == 0)
		assert_int_equal(lease_rekey(w.lease, &w.desc, w.kms, NULL), 0);
}

static void stress_all(void)
{
	static const unsigned seeds[3] = { 1, 2, 3 };
	pthread_t thread[3];

	memset(&stress, 0, sizeof(stress));
	w.params = (struct lease_params){ .probe_ms = 5,
		.lease_ms = 1000,
		.max_age_ms = 20,
		.idle_ms = 30,
		.drain_ms = 10,
		.pool = 4,
		.threads = 3 };
	for (int i = 0; i < STRESS_FILES; i++)
		make_file(&stress.ident[i], &stress.slot[i]);
	for (int i = 0; i < STRESS_FILES; i++)
		make_twin(&stress.ident[i], &stress.slot[i], &stress.twin[i]);
	open_now();
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, stress_main, (void *)(uintptr_t)&seeds[i]), 0);
	for (int round = 0; round < 8; round++) {
		unsigned before = atomic_load(&stress.served);

		UNTIL((advance(1), disturb(), atomic_load(&stress.served) > before + 200));
		assert_int_equal(lease_lock(w.lease, "closed"), 0);
		UNTIL((advance(1), settled(LEASE_LOCKED)));
		assert_null(lease_names(w.lease));
		assert_int_equal(lease_unlock(w.lease), 0);
		UNTIL((advance(1), settled(LEASE_OPEN)));
	}
	atomic_store(&stress.stop, true);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	UNTIL((advance(1), atomic_load(&stress.parked) == 0));
	assert_int_equal(atomic_load(&stress.wrong), 0);
	assert_true(lease_quiet(w.lease, true));
	assert_int_equal(status_now().locks, 8);
}

static void test_stress(void **state)
{
	(void)state;
	stress_all();
}

static void fake_batch(void *priv, const char *key, struct kms_item *items, size_t n, uint64_t deadline)
{
	for (size_t i = 0; i < n; i++)
		(void)fake_decrypt(priv, key, items[i].context, items[i].blob, items[i].len, deadline, items[i].secret,
		    &items[i].used, &items[i].err);
}

static void test_stress_batches(void **state)
{
	static const struct kms_provider many = { .name = "fake",
		.number = 1,
		.generate = fake_generate,
		.decrypt = fake_decrypt,
		.decrypt_batch = fake_batch,
		.batch_max = 3 };

	(void)state;
	kms_close(w.kms);
	assert_int_equal(kms_open_with(&w.kms, &many, NULL, ARN, 20), 0);
	stress_all();
}

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_stress), T(test_stress_batches) };

	return world_init() ? 1 : cmocka_run_group_tests_name("lease_stress", tests, NULL, NULL);
}
