/* The lease's states: opening, renewal, denial, outage, the lock sequence, recovery, the administrator. */
#include "lease_world.h"

/* ---- opening ---- */

static void test_open(void **state)
{
	(void)state;
	assert_int_equal(try_open(false), KMS_OK);
	assert_true(can(LEASE_WORK));
	assert_non_null(lease_names(w.lease));
	assert_memory_equal(lease_domain_keys(w.lease)->commit, w.desc.commit, 32);
	assert_int_equal(status_now().state, LEASE_OPEN);
	assert_int_equal(status_now().lease_left_ms, 30000);
	assert_string_equal(status_now().reason, "");
}

static void test_open_refused(void **state)
{
	(void)state;
	answer(CALL_DOMAIN, KMS_DENIED);
	assert_int_equal(try_open(false), KMS_DENIED);
	assert_null(w.lease);
	answer(CALL_DOMAIN, KMS_DOWN);
	assert_int_equal(try_open(false), KMS_DOWN);
	answer(CALL_DOMAIN, KMS_OK);
	w.desc.mac[3] ^= 1;
	assert_int_equal(try_open(true), KMS_BAD_BLOB);
	w.desc.mac[3] ^= 1;
	w.desc.commit[0] ^= 1;
	assert_int_equal(try_open(true), KMS_BAD_BLOB);
	w.desc.commit[0] ^= 1;
	w.desc.slot[0].context = 9;
	assert_int_equal(try_open(true), KMS_BAD_BLOB);
	assert_null(w.lease);
}

static void test_open_locked(void **state)
{
	(void)state;
	answer(CALL_DOMAIN, KMS_DENIED);
	assert_int_equal(try_open(true), KMS_OK);
	assert_int_equal(lease_start(w.lease, &hooks), 0);
	assert_false(can(LEASE_WORK));
	assert_true(settled(LEASE_LOCKED));
	assert_non_null(strstr(status_now().reason, "DisabledException"));
	answer(CALL_DOMAIN, KMS_OK);
	advance(10000);
	UNTIL(status_now().probes == 1 && hanging(CALL_PROBE) == 0);
	assert_false(can(LEASE_WORK));
	advance(10000);
	UNTIL(settled(LEASE_OPEN) && events_are("opened "));
	assert_true(can(LEASE_WORK));
}

/* While a rotation is under way either slot opens the domain; a lone slot's denial is final. */
static void test_two_slots(void **state)
{
	(void)state;
	le32_put(w.desc.slot[1].blob, 999999);
	w.desc.slot[1].seq = 2;
	assert_int_equal(try_open(false), KMS_OK);
	assert_int_equal(calls(CALL_DOMAIN), 2);
	lease_close(steal_ptr(&w.lease));
	w.desc.slot[0].seq = 0;
	assert_int_equal(try_open(false), KMS_BAD_BLOB);
}

/* ---- the lease ---- */

static void test_renewal_counts_from_sending(void **state)
{
	(void)state;
	open_now();
	hang(CALL_PROBE, true);
	advance(10000);
	UNTIL(hanging(CALL_PROBE) == 1);
	advance(7000);
	assert_int_equal(status_now().lease_left_ms, 13000);
	hang(CALL_PROBE, false);
	UNTIL(status_now().lease_left_ms == 23000);
	assert_int_equal(status_now().probes, 1);
	assert_int_equal(status_now().probe_failures, 0);
}

static void test_denial_locks_at_once(void **state)
{
	struct header_ident ident;
	struct header_slot slot;
	struct lease_key *key;

	(void)state;
	open_now();
	make_file(&ident, &slot);
	assert_int_equal(get_key(&ident, &slot, &key), 0);
	answer(CALL_PROBE, KMS_DENIED);
	advance(10000);
	UNTIL(settled(LEASE_LOCKED));
	assert_true(events_are("drain purge wipe "));
	assert_false(can(LEASE_WORK));
	assert_false(can(LEASE_WRITEBACK));
	assert_non_null(strstr(status_now().reason, "DisabledException"));
	assert_int_equal(status_now().locks, 1);
	assert_int_equal(status_now().file_keys, 0);
	assert_null(lease_names(w.lease));
	assert_null(lease_domain_keys(w.lease));
	assert_null(lease_key_file(key));
	assert_null(lease_key_block(key));
	lease_key_put(key);
}

/* Wiped only after everyone left; written back only after the work in flight is done. */
static void test_in_flight(void **state)
{
	(void)state;
	open_now();
	assert_int_equal(lease_enter(w.lease, LEASE_WORK), 0);
	answer(CALL_PROBE, KMS_DENIED);
	advance(10000);
	UNTIL(status_now().state == LEASE_LOCKING);
	assert_true(events_are(""));
	assert_false(can(LEASE_WORK));
	assert_int_equal(lease_enter(w.lease, LEASE_WRITEBACK), 0);
	lease_leave(w.lease, LEASE_WORK);
	UNTIL(events_are("drain purge "));
	assert_int_equal(status_now().state, LEASE_LOCKED);
	assert_false(settled(LEASE_LOCKED));
	assert_false(can(LEASE_WRITEBACK));
	assert_non_null(lease_names(w.lease));
	lease_leave(w.lease, LEASE_WRITEBACK);
	UNTIL(settled(LEASE_LOCKED));
	assert_true(events_are("drain purge wipe "));
}

/* Work that does not end costs the write-back, not the lock. */
static void test_work_that_hangs(void **state)
{
	(void)state;
	open_now();
	assert_int_equal(lease_enter(w.lease, LEASE_WORK), 0);
	answer(CALL_PROBE, KMS_DENIED);
	advance(10000);
	UNTIL(status_now().state == LEASE_LOCKING);
	advance(1999);
	assert_int_equal(status_now().state, LEASE_LOCKING);
	advance(1);
	UNTIL(events_are("purge "));
	lease_leave(w.lease, LEASE_WORK);
	UNTIL(settled(LEASE_LOCKED));
}

static void test_drain_that_hangs(void **state)
{
	(void)state;
	open_now();
	set_drain_hangs(true);
	answer(CALL_PROBE, KMS_DENIED);
	advance(10000);
	UNTIL(draining());
	assert_true(can(LEASE_WRITEBACK));
	advance(2000);
	/* On time whatever the lease thread does. */
	assert_false(can(LEASE_WRITEBACK));
	UNTIL(status_now().state == LEASE_LOCKED);
	assert_true(events_are("drain "));
	advance(2000);
	UNTIL(events_are("drain purge "));
	assert_false(settled(LEASE_LOCKED));
	set_drain_hangs(false);
	UNTIL(settled(LEASE_LOCKED));
	assert_true(events_are("drain purge wipe "));
}

static void test_outage(void **state)
{
	(void)state;
	open_now();
	answer(CALL_PROBE, KMS_DOWN);
	advance(10000);
	UNTIL(status_now().probe_failures == 1);
	advance(10000);
	UNTIL(status_now().probe_failures == 2);
	advance(9999);
	assert_true(can(LEASE_WORK));
	atomic_fetch_add(&clock_ms, 1);
	assert_false(can(LEASE_WORK));
	assert_true(can(LEASE_WRITEBACK) || status_now().state == LEASE_LOCKED);
	UNTIL(settled(LEASE_LOCKED));
	assert_non_null(strstr(status_now().reason, "lease ended"));
	assert_non_null(strstr(status_now().reason, "Timeout"));
	assert_true(events_are("drain purge wipe "));
}

/* Throttling, bad credentials, even a damaged probe blob: no renewal, no lock before the lease ends. */
static void test_other_failures_do_not_lock(void **state)
{
	static const enum kms_status failures[] = { KMS_BUSY, KMS_CONFIG, KMS_BAD_BLOB };

	(void)state;
	w.params.lease_ms = 100000;
	open_now();
	for (unsigned i = 0; i < 3; i++) {
		answer(CALL_PROBE, failures[i]);
		advance(10000);
		UNTIL(status_now().probe_failures == i + 1);
		assert_int_equal(status_now().lease_left_ms, 100000 - 10000 * (i + 1));
	}
	assert_true(can(LEASE_WORK));
	answer(CALL_PROBE, KMS_OK);
	advance(10000);
	UNTIL(status_now().lease_left_ms == 100000);
}

static void test_hanging_canary(void **state)
{
	(void)state;
	open_now();
	hang(CALL_PROBE, true);
	advance(10000);
	UNTIL(hanging(CALL_PROBE) == 1);
	advance(20000);
	UNTIL(settled(LEASE_LOCKED));
	assert_int_equal(hanging(CALL_PROBE), 1);
	/* What it says in the end was asked before the lock. */
	hang(CALL_PROBE, false);
	UNTIL(hanging(CALL_PROBE) == 0);
	advance(10000);
	UNTIL(status_now().probes == 2 && hanging(CALL_PROBE) == 0);
	assert_false(can(LEASE_WORK));
	advance(10000);
	UNTIL(settled(LEASE_OPEN));
}

static void test_recovery_needs_two(void **state)
{
	static const enum kms_status answers[] = { KMS_OK, KMS_DOWN, KMS_OK, KMS_DENIED, KMS_OK };

	(void)state;
	open_now();
	answer(CALL_PROBE, KMS_DENIED);
	advance(10000);
	UNTIL(settled(LEASE_LOCKED));
	for (unsigned i = 0; i < 5; i++) {
		uint64_t before = status_now().probe_failures;
		unsigned asked = calls(CALL_PROBE);

		answer(CALL_PROBE, answers[i]);
		advance(10000);
		UNTIL(calls(CALL_PROBE) > asked && (answers[i] == KMS_OK || status_now().probe_failures > before));
		assert_true(settled(LEASE_LOCKED));
	}
	answer(CALL_PROBE, KMS_OK);
	/* The secret itself is asked for anew, and may be refused. */
	answer(CALL_DOMAIN, KMS_DENIED);
	advance(10000);
	UNTIL(calls(CALL_DOMAIN) == 2 && settled(LEASE_LOCKED));
	answer(CALL_DOMAIN, KMS_OK);
	assert_false(can(LEASE_WORK));
	for (unsigned i = 0; i < 2; i++) {
		unsigned asked = calls(CALL_PROBE);

		advance(10000);
		UNTIL(calls(CALL_PROBE) > asked);
	}
	UNTIL(settled(LEASE_OPEN) && events_are("drain purge wipe opened "));
	assert_true(can(LEASE_WORK));
	assert_non_null(lease_names(w.lease));
}

static void test_administrator(void **state)
{
	unsigned asked;

	(void)state;
	open_now();
	assert_int_equal(lease_unlock(w.lease), -EALREADY);
	assert_int_equal(lease_lock(w.lease, "locked by the administrator"), 0);
	assert_false(can(LEASE_WORK));
	assert_int_equal(lease_lock(w.lease, "again"), -EALREADY);
	UNTIL(settled(LEASE_LOCKED));
	assert_string_equal(status_now().reason, "locked by the administrator");
	assert_true(status_now().by_admin);
	asked = calls(CALL_PROBE);
	advance(100000);
	advance(100000);
	assert_int_equal(calls(CALL_PROBE), asked);
	assert_int_equal(lease_wait(w.lease, LEASE_OPEN, fake_clock()), -ETIMEDOUT);
	/* Two answers, but no waiting between them. */
	assert_int_equal(lease_unlock(w.lease), 0);
	UNTIL(settled(LEASE_OPEN));
	assert_int_equal(calls(CALL_PROBE), asked + 2);
	assert_false(status_now().by_admin);
}

static void test_unlock_denied(void **state)
{
	(void)state;
	open_now();
	assert_int_equal(lease_lock(w.lease, "closed"), 0);
	UNTIL(settled(LEASE_LOCKED));
	answer(CALL_PROBE, KMS_DENIED);
	assert_int_equal(lease_unlock(w.lease), 0);
	UNTIL(status_now().probe_failures == 1);
	assert_true(settled(LEASE_LOCKED));
	assert_non_null(strstr(status_now().reason, "DisabledException"));
}

int main(void)
{
	const struct CMUnitTest tests[] = { T(test_open), T(test_open_refused), T(test_open_locked), T(test_two_slots),
		T(test_renewal_counts_from_sending), T(test_denial_locks_at_once), T(test_in_flight),
		T(test_work_that_hangs), T(test_drain_that_hangs), T(test_outage), T(test_other_failures_do_not_lock),
		T(test_hanging_canary), T(test_recovery_needs_two), T(test_administrator), T(test_unlock_denied) };

	return world_init() ? 1 : cmocka_run_group_tests_name("lease", tests, NULL, NULL);
}
