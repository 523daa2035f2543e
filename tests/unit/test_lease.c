/* The lease against a KMS in memory and a clock that stands still: opening, renewal, denial, outage, the lock sequence,
 * single flight, ageing, the pool, and all of it at once from several threads.
 *
 * Threads are real, so conditions are waited for; but what is decided at which time depends on the fake clock only.       */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

#include "../../src/lease_internal.h"
#include "bytes.h"
#include "log.h"
#include "secret.h"

#define ARN "arn:aws:kms:eu-central-1:111122223333:key/1234"
#define SEALED_MAX 4096u
#define PARKED 24

/* ---- a KMS in memory ---- */

enum call { CALL_FILE, CALL_DOMAIN, CALL_PROBE, CALL_GENERATE, CALLS };

struct sealed {
	uint8_t secret[32];
	uint8_t hash_of_context[32];
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum kms_status answer[CALLS];
	bool hang[CALLS];
	unsigned calls[CALLS], hanging[CALLS];
	size_t blob_len;
	size_t n;
	struct sealed sealed[SEALED_MAX];
} kms = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* Enough of a hash to tell contexts apart. */
static void context_mark(uint8_t out[static 32], const struct context *c)
{
	static _Thread_local uint8_t text[CONTEXT_ENCODED_MAX];
	size_t n = context_encode(text, c);

	memset(out, 0, 32);
	for (size_t i = 0; i < n; i++)
		out[i % 32] = (uint8_t)(out[i % 32] * 31 + text[i] + 1);
}

static enum call call_of(const struct context *c)
{
	for (size_t i = 0; i < c->n; i++)
		if (strcmp(c->pair[i].name, "byokfs-use") == 0)
			return strcmp(c->pair[i].value, "file") == 0 ? CALL_FILE
			    : strcmp(c->pair[i].value, "domain") == 0 ? CALL_DOMAIN
								       : CALL_PROBE;
	return CALLS;
}

static size_t seal(const uint8_t *secret, const struct context *c, uint8_t *blob)
{
	/* What a test seals itself stays; the newest of the rest, too. */
	if (kms.n == SEALED_MAX)
		kms.n = SEALED_MAX / 2;
	memcpy(kms.sealed[kms.n].secret, secret, 32);
	context_mark(kms.sealed[kms.n].hash_of_context, c);
	memset(blob, 0x5a, kms.blob_len);
	le32_put(blob, (uint32_t)kms.n++);
	return kms.blob_len;
}

/* kms.lock held. The configured answer, after hanging as long as configured. */
static enum kms_status serve(enum call call, struct kms_used *used, struct kms_err *err)
{
	static const char *const code[] = {"", "DisabledException", "InvalidCiphertextException", "ThrottlingException", "Timeout",
	    "ExpiredTokenException"};
	enum kms_status status;

	kms.calls[call]++;
	kms.hanging[call]++;
	while (kms.hang[call])
		(void)pthread_cond_wait(&kms.changed, &kms.lock);
	kms.hanging[call]--;
	status = kms.answer[call];
	memset(used, 0, sizeof(*used));
	memset(err, 0, sizeof(*err));
	err->status = status;
	(void)snprintf(used->key, sizeof(used->key), "%s", ARN);
	(void)snprintf(err->code, sizeof(err->code), "%s", code[status]);
	return status;
}

static enum kms_status fake_generate(void *priv, const struct context *c, uint64_t deadline, uint8_t secret[static 32],
    struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	enum kms_status status;

	(void)priv;
	(void)deadline;
	LOCK_SCOPE(&kms.lock);
	status = serve(CALL_GENERATE, used, err);
	if (status != KMS_OK)
		return status;
	secret_random(secret, 32);
	blob->len = seal(secret, c, blob->bytes);
	return KMS_OK;
}

static enum kms_status fake_decrypt(void *priv, const char *key, const struct context *c, const uint8_t *blob, size_t len,
    uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	enum kms_status status;
	uint8_t mark[32];
	uint32_t at;

	(void)priv;
	(void)key;
	(void)deadline;
	LOCK_SCOPE(&kms.lock);
	status = serve(call_of(c), used, err);
	if (status != KMS_OK)
		return status;
	context_mark(mark, c);
	at = len >= 4 ? le32_get(blob) : UINT32_MAX;
	if (at >= kms.n || memcmp(mark, kms.sealed[at].hash_of_context, 32) != 0) {
		err->status = KMS_BAD_BLOB;
		(void)snprintf(err->code, sizeof(err->code), "InvalidCiphertextException");
		return KMS_BAD_BLOB;
	}
	memcpy(secret, kms.sealed[at].secret, 32);
	return KMS_OK;
}

static const struct kms_provider provider = {
	.name = "fake", .number = 1, .generate = fake_generate, .decrypt = fake_decrypt};

static void answer(enum call call, enum kms_status status)
{
	LOCK_SCOPE(&kms.lock);
	kms.answer[call] = status;
}

static void hang(enum call call, bool on)
{
	LOCK_SCOPE(&kms.lock);
	kms.hang[call] = on;
	(void)pthread_cond_broadcast(&kms.changed);
}

static unsigned calls(enum call call)
{
	LOCK_SCOPE(&kms.lock);
	return kms.calls[call];
}

static unsigned hanging(enum call call)
{
	LOCK_SCOPE(&kms.lock);
	return kms.hanging[call];
}

/* ---- the world of one test ---- */

static _Atomic uint64_t clock_ms;

static struct {
	struct kms *kms;
	struct descriptor_domain desc;
	struct context_ids ids;
	struct lease_params params;
	struct lease *lease;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	char events[200];
	bool drain_hangs, draining;
	bool misrule; /* a hook could enter when it should not, or not when it should */
} w = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

struct parked {
	struct lease_waiter waiter;
	_Atomic int told;
};
static struct parked parked[PARKED];

static uint64_t fake_clock(void)
{
	return atomic_load(&clock_ms);
}

static void advance(uint64_t ms)
{
	atomic_fetch_add(&clock_ms, ms);
	lease_tick(w.lease);
}

#define UNTIL(condition)                                                                           \
	do {                                                                                       \
		for (int tries_ = 0; !(condition); tries_++) {                                     \
			assert_true(tries_ < 10000);                                               \
			lease_tick(w.lease);                                                       \
			(void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);             \
		}                                                                                  \
	} while (0)

static struct lease_status status_now(void)
{
	struct lease_status s;

	lease_status(w.lease, &s);
	return s;
}

static bool settled(enum lease_state state)
{
	return lease_wait(w.lease, state, 0) == 0;
}

static bool can(enum lease_class class)
{
	int r = lease_enter(w.lease, class);

	assert_true(r == 0 || r == -EIO);
	if (r == 0)
		lease_leave(w.lease, class);
	return r == 0;
}

/* lease_enter again, from hook threads, where asserting would jump across stacks. */
static bool hook_can(enum lease_class class)
{
	bool r = lease_enter(w.lease, class) == 0;

	if (r)
		lease_leave(w.lease, class);
	return r;
}

static void event(const char *name, bool ok)
{
	LOCK_SCOPE(&w.lock);
	(void)strncat(w.events, name, sizeof(w.events) - strlen(w.events) - 1);
	w.misrule |= !ok;
}

static bool events_are(const char *text)
{
	LOCK_SCOPE(&w.lock);
	return strcmp(w.events, text) == 0;
}

static void on_drain(void *arg)
{
	(void)arg;
	event("drain ", hook_can(LEASE_WRITEBACK) && !hook_can(LEASE_WORK) && lease_names(w.lease));
	LOCK_SCOPE(&w.lock);
	w.draining = true;
	while (w.drain_hangs)
		(void)pthread_cond_wait(&w.changed, &w.lock);
	w.draining = false;
}

static bool draining(void)
{
	LOCK_SCOPE(&w.lock);
	return w.draining;
}

static void set_drain_hangs(bool on)
{
	LOCK_SCOPE(&w.lock);
	w.drain_hangs = on;
	(void)pthread_cond_broadcast(&w.changed);
}

static void on_purge(void *arg)
{
	(void)arg;
	event("purge ", !hook_can(LEASE_WRITEBACK) && !hook_can(LEASE_WORK));
}

static void on_wipe(void *arg)
{
	(void)arg;
	event("wipe ", lease_quiet(w.lease, true) && lease_names(w.lease) != NULL);
}

static void on_opened(void *arg)
{
	(void)arg;
	event("opened ", true);
}

static const struct lease_hooks hooks = {
	.drain = on_drain, .purge = on_purge, .wipe = on_wipe, .opened = on_opened};

static void on_ready(struct lease_waiter *waiter)
{
	struct parked *p = (struct parked *)(void *)waiter;

	atomic_store(&p->told, 1);
}

static struct lease_waiter *park_at(int i)
{
	parked[i].waiter = (struct lease_waiter){.ready = on_ready};
	atomic_store(&parked[i].told, 0);
	return &parked[i].waiter;
}

static bool told(int n)
{
	int sum = 0;

	for (int i = 0; i < n; i++)
		sum += atomic_load(&parked[i].told);
	return sum == n;
}

/* A domain descriptor whose secret and probe are sealed by the fake. */
static void make_domain(enum descriptor_seal kind)
{
	struct domain_keys *keys = secret_alloc(sizeof(*keys));
	struct context *c = malloc(sizeof(*c));
	CLEANUP_FREE char *text = NULL;
	uint8_t secret[32];
	size_t len;

	assert_non_null(keys);
	assert_non_null(c);
	secret_random(secret, sizeof(secret));
	assert_int_equal(kdf_domain(keys, secret, &w.ids), 0);
	memcpy(w.desc.store, w.ids.store, 16);
	memcpy(w.desc.domain, w.ids.domain, 16);
	memcpy(w.desc.commit, keys->commit, 32);
	w.desc.seal = kind;
	w.desc.seq = 1;
	w.desc.gen = calloc(1, sizeof(*w.desc.gen));
	assert_non_null(w.desc.gen);
	w.desc.ngen = 1;
	w.desc.gen[0].number = 1;
	for (int i = 0; i < 2; i++) {
		w.desc.slot[i].provider = 1;
		w.desc.slot[i].context = 1;
		(void)snprintf(w.desc.slot[i].key, sizeof(w.desc.slot[i].key), "%s", ARN);
		context_build(c, CONTEXT_DOMAIN, &w.ids, NULL, NULL);
		w.desc.slot[i].blob_len = (uint16_t)seal(secret, c, w.desc.slot[i].blob);
		context_build(c, CONTEXT_PROBE, &w.ids, NULL, NULL);
		w.desc.slot[i].probe_len = (uint16_t)seal(secret, c, w.desc.slot[i].probe);
	}
	w.desc.slot[0].seq = 1;
	assert_int_equal(descriptor_domain_print(&w.desc, keys, &text, &len), 0);
	secret_free(keys);
	free(c);
}

static int setup(void **state)
{
	(void)state;
	memset(kms.answer, 0, sizeof(kms.answer));
	memset(kms.hang, 0, sizeof(kms.hang));
	memset(kms.calls, 0, sizeof(kms.calls));
	kms.blob_len = 184;
	kms.n = 0;
	atomic_store(&clock_ms, 1000000);
	w.events[0] = '\0';
	w.drain_hangs = w.misrule = false;
	w.params = (struct lease_params){.probe_ms = 10000, .lease_ms = 30000, .max_age_ms = 300000, .idle_ms = 60000,
	    .drain_ms = 2000, .pool = 0, .threads = 3};
	w.ids.suite = 1;
	secret_random(w.ids.store, 16);
	secret_random(w.ids.domain, 16);
	memset(&w.desc, 0, sizeof(w.desc));
	w.lease = NULL;
	make_domain(SEAL_FILE);
	return kms_open_with(&w.kms, &provider, NULL, ARN, 20);
}

static int teardown(void **state)
{
	(void)state;
	for (int i = 0; i < CALLS; i++)
		hang((enum call)i, false);
	set_drain_hangs(false);
	lease_close(w.lease);
	kms_close(w.kms);
	descriptor_domain_free(&w.desc);
	return w.misrule;
}

static enum kms_status try_open(bool start_locked)
{
	struct kms_err err;

	return lease_open(&w.lease, &w.params, w.kms, &w.desc, &w.ids, NAME_SIV64, start_locked, &err);
}

static void open_now(void)
{
	assert_int_equal(try_open(false), KMS_OK);
	assert_int_equal(lease_start(w.lease, &hooks), 0);
}

/* A lease so long that nothing but the test's own subject depends on it. */
static void open_for_long(void)
{
	w.params.lease_ms = w.params.probe_ms = 1000000000;
	open_now();
}

/* A file sealed by the fake. */
static void make_file(struct header_ident *ident, struct header_slot *slot)
{
	struct context *c = malloc(sizeof(*c));
	struct file_keys keys;
	uint8_t secret[32];

	assert_non_null(c);
	memset(ident, 0, sizeof(*ident));
	memset(slot, 0, sizeof(*slot));
	ident->suite = w.ids.suite;
	memcpy(ident->store, w.ids.store, 16);
	memcpy(ident->domain, w.ids.domain, 16);
	secret_random(ident->file, 16);
	secret_random(secret, sizeof(secret));
	assert_int_equal(kdf_file(&keys, secret, &w.ids, ident->file), 0);
	memcpy(ident->commit, keys.commit, 32);
	slot->seq = 1;
	slot->wrap = HEADER_WRAP_KMS;
	slot->generation = 1;
	context_build(c, CONTEXT_FILE, &w.ids, ident->file, NULL);
	{
		LOCK_SCOPE(&kms.lock);
		slot->len = (uint16_t)seal(secret, c, slot->blob);
	}
	free(c);
}

/* Gets a key whatever it takes. */
static int get_key(const struct header_ident *ident, const struct header_slot *slot, struct lease_key **out)
{
	struct lease_waiter *p = park_at(0);
	int r = lease_file_key(w.lease, ident, slot, p, out);

	if (r != -EINPROGRESS)
		return r;
	UNTIL(told(1));
	return p->result ? p->result : lease_file_key(w.lease, ident, slot, p, out);
}

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
	static const enum kms_status failures[] = {KMS_BUSY, KMS_CONFIG, KMS_BAD_BLOB};

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
	static const enum kms_status answers[] = {KMS_OK, KMS_DOWN, KMS_OK, KMS_DENIED, KMS_OK};

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
	advance(39 - 19);
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

/* ---- everything at once ---- */

#define STRESS_FILES 6
static struct {
	struct header_ident ident[STRESS_FILES];
	struct header_slot slot[STRESS_FILES];
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

static void test_stress(void **state)
{
	static const unsigned seeds[3] = {1, 2, 3};
	pthread_t thread[3];

	(void)state;
	w.params = (struct lease_params){.probe_ms = 5, .lease_ms = 1000, .max_age_ms = 20, .idle_ms = 30, .drain_ms = 10,
	    .pool = 4, .threads = 3};
	for (int i = 0; i < STRESS_FILES; i++)
		make_file(&stress.ident[i], &stress.slot[i]);
	open_now();
	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, stress_main, (void *)(uintptr_t)&seeds[i]), 0);
	for (int round = 0; round < 8; round++) {
		unsigned before = atomic_load(&stress.served);

		UNTIL((advance(1), atomic_load(&stress.served) > before + 200));
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

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {T(test_open), T(test_open_refused), T(test_open_locked), T(test_two_slots),
	    T(test_renewal_counts_from_sending), T(test_denial_locks_at_once), T(test_in_flight), T(test_work_that_hangs),
	    T(test_drain_that_hangs), T(test_outage), T(test_other_failures_do_not_lock), T(test_hanging_canary),
	    T(test_recovery_needs_two), T(test_administrator), T(test_unlock_denied), T(test_single_flight),
	    T(test_damaged_keys), T(test_max_age), T(test_denied_file), T(test_idle), T(test_waiter_deadline),
	    T(test_seal_domain), T(test_pool), T(test_demand_beyond_pool), T(test_new_key_refused), T(test_pool_backs_off),
	    T(test_parked_fail_on_lock), T(test_keys_while_locking), T(test_stress)};

	if (secret_init(true))
		return 1;
	log_setup("test", LOG_LEVEL_ERR, false);
	lease_clock = fake_clock;
	return cmocka_run_group_tests_name("lease", tests, NULL, NULL);
}
