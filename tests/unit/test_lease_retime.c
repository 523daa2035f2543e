/* Times that change while the lease is in use. */
#include "lease_world.h"

static const struct lease_times as_opened = { 10000, 30000, 300000, 60000 };

static void retime(uint32_t probe, uint32_t lease, uint32_t max_age, uint32_t idle)
{
	lease_retime(w.lease, &(struct lease_times){ probe, lease, max_age, idle });
}

/* Nobody may use a key for longer than the new lease from now on, whatever the KMS does. */
static void test_shorter_lease_bites_at_once(void **state)
{
	(void)state;
	open_now();
	hang(CALL_PROBE, true);
	retime(1000, 3000, 300000, 60000);
	assert_in_range(status_now().lease_left_ms, 1, 3000);
	UNTIL(hanging(CALL_PROBE) == 1);
	advance(2999);
	assert_true(can(LEASE_WORK));
	advance(1);
	assert_false(can(LEASE_WORK));
	UNTIL(settled(LEASE_LOCKED));
	assert_non_null(strstr(status_now().reason, "lease ended"));
	hang(CALL_PROBE, false);
}

/* An administrator who shortens the lease of a healthy mount does not lock it. */
static void test_shorter_lease_is_renewed(void **state)
{
	(void)state;
	open_now();
	advance(9000);
	retime(1000, 3000, 300000, 60000);
	assert_true(can(LEASE_WORK));
	UNTIL(status_now().probes == 1 && hanging(CALL_PROBE) == 0);
	assert_int_equal(status_now().lease_left_ms, 3000);
	for (unsigned i = 2; i < 8; i++) {
		advance(1000);
		UNTIL(status_now().probes == i && status_now().lease_left_ms == 3000);
	}
	assert_int_equal(status_now().locks, 0);
}

/* Only an answer of the KMS makes a lease longer. */
static void test_longer_lease_waits_for_an_answer(void **state)
{
	(void)state;
	open_now();
	hang(CALL_PROBE, true);
	advance(4000);
	retime(20000, 60000, 300000, 60000);
	assert_int_equal(status_now().lease_left_ms, 26000);
	UNTIL(hanging(CALL_PROBE) == 1);
	hang(CALL_PROBE, false);
	UNTIL(status_now().lease_left_ms == 60000);
}

static void test_same_times_change_nothing(void **state)
{
	(void)state;
	open_now();
	advance(4000);
	lease_retime(w.lease, &as_opened);
	advance(5999);
	assert_int_equal(status_now().probes, 0);
	advance(1);
	UNTIL(status_now().probes == 1);
}

static void test_locked(void **state)
{
	(void)state;
	open_now();
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(settled(LEASE_LOCKED));
	retime(1000, 3000, 300000, 60000);
	assert_false(can(LEASE_WORK));
	assert_false(can(LEASE_WRITEBACK));
	assert_int_equal(lease_unlock(w.lease), 0);
	UNTIL(settled(LEASE_OPEN));
	assert_in_range(status_now().lease_left_ms, 1, 3000);
}

/* A key that is older than the new max_age asks for the KMS with its next use. */
static void test_max_age(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;

	(void)state;
	open_for_long();
	make_file(&ident, &slot);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	lease_key_put(key);
	advance(5000);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &key), 0);
	lease_key_put(key);
	retime(w.params.probe_ms, w.params.lease_ms, 5000, 60000);
	assert_int_equal(lease_file_key(w.lease, &ident, NULL, NULL, &key), -EAGAIN);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	lease_key_put(key);
	assert_int_equal(calls(CALL_FILE), 2);
}

/* Unused keys go as soon as the new time says, not with the next sweep of the old one. */
static void test_idle(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;

	(void)state;
	open_for_long();
	make_file(&ident, &slot);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	lease_key_put(key);
	advance(2000);
	assert_int_equal(status_now().file_keys, 1);
	retime(w.params.probe_ms, w.params.lease_ms, 300000, 1000);
	UNTIL(status_now().file_keys == 0);
}

static void test_ticks(void **state)
{
	(void)state;
	assert_int_equal(try_open(false), KMS_OK);
	assert_true(lease_ticks(w.lease));
	advance(100000000);
	assert_true(lease_ticks(w.lease)); /* not started */
	lease_close(steal_ptr(&w.lease));
	open_now();
	advance(15000);
	UNTIL(lease_ticks(w.lease));
	/* Work in flight keeps the thread in the lock sequence: that is no standstill. */
	assert_int_equal(lease_enter(w.lease, LEASE_WORK), 0);
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(status_now().state == LEASE_LOCKING);
	advance(2000);
	UNTIL(events_are("purge "));
	advance(100000);
	assert_true(lease_ticks(w.lease));
	lease_leave(w.lease, LEASE_WORK);
	UNTIL(settled(LEASE_LOCKED));
}

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_shorter_lease_bites_at_once), T(test_shorter_lease_is_renewed),
		T(test_longer_lease_waits_for_an_answer), T(test_same_times_change_nothing), T(test_locked),
		T(test_max_age), T(test_idle), T(test_ticks) };

	return world_init() ? 1 : cmocka_run_group_tests_name("lease_retime", tests, NULL, NULL);
}
