/* lease_world.h — for the lease's tests: a KMS in memory, a clock that stands still, a domain, and hooks that take
 * notes.
 *
 * Threads are real, so conditions are waited for; but what is decided at which time depends on the fake clock only. */
#ifndef BYOKFS_TEST_LEASE_WORLD_H
#define BYOKFS_TEST_LEASE_WORLD_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

#include "../../src/lease_internal.h"
#include "bytes.h"
#include "kms_provider.h"
#include "log.h"
#include "secret.h"

#define ARN        "arn:aws:kms:eu-central-1:111122223333:key/1234"
#define ARN2       "arn:aws:kms:eu-central-1:111122223333:key/5678"
#define SEALED_MAX 4096u
#define PARKED     24

/* ---- a KMS in memory ---- */

enum call { CALL_FILE, CALL_DOMAIN, CALL_PROBE, CALL_GENERATE, CALLS };

struct sealed {
	bool second; /* under the second key */
	uint8_t secret[32];
	uint8_t hash_of_context[32];
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum kms_status answer[CALLS];
	bool once[CALLS]; /* to the next call only, then OK */
	bool hang[CALLS];
	unsigned calls[CALLS], hanging[CALLS];
	enum kms_status answer2[CALLS]; /* the second key's, and the calls for it (not in calls) */
	unsigned calls2[CALLS];
	bool seal_second; /* what is sealed now is sealed under it */
	size_t blob_len;
	unsigned norder; /* file keys asked for, by the number in their blob, in order */
	uint32_t order[256];
	size_t n;
	struct sealed sealed[SEALED_MAX];
} kms = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

/* Enough of a hash to tell contexts apart. */
static inline void context_mark(uint8_t out[static 32], const struct context *c)
{
	static _Thread_local uint8_t text[CONTEXT_ENCODED_MAX];
	size_t n = context_encode(text, c);

	memset(out, 0, 32);
	for (size_t i = 0; i < n; i++)
		out[i % 32] = (uint8_t)(out[i % 32] * 31 + text[i] + 1);
}

static inline enum call call_of(const struct context *c)
{
	for (size_t i = 0; i < c->n; i++)
		if (strcmp(c->pair[i].name, "byokfs-use") == 0)
			return strcmp(c->pair[i].value, "file") == 0  ? CALL_FILE
			    : strcmp(c->pair[i].value, "domain") == 0 ? CALL_DOMAIN
			                                              : CALL_PROBE;
	return CALLS;
}

static inline size_t seal(const uint8_t *secret, const struct context *c, uint8_t *blob)
{
	/* What a test seals itself stays; the newest of the rest, too. */
	if (kms.n == SEALED_MAX)
		kms.n = SEALED_MAX / 2;
	memcpy(kms.sealed[kms.n].secret, secret, 32);
	kms.sealed[kms.n].second = kms.seal_second;
	context_mark(kms.sealed[kms.n].hash_of_context, c);
	memset(blob, 0x5a, kms.blob_len);
	le32_put(blob, (uint32_t)kms.n++);
	return kms.blob_len;
}

/* kms.lock held. The second key never hangs. */
static inline enum kms_status status_of(enum call call, bool second)
{
	enum kms_status status;

	if (second) {
		kms.calls2[call]++;
		return kms.answer2[call];
	}
	kms.calls[call]++;
	kms.hanging[call]++;
	while (kms.hang[call])
		(void)pthread_cond_wait(&kms.changed, &kms.lock);
	kms.hanging[call]--;
	status = kms.answer[call];
	if (kms.once[call])
		kms.answer[call] = KMS_OK;
	kms.once[call] = false;
	return status;
}

/* kms.lock held. The configured answer, after hanging as long as configured. */
static inline enum kms_status serve(enum call call, bool second, struct kms_used *used, struct kms_err *err)
{
	static const char *const code[] = { "", "DisabledException", "InvalidCiphertextException",
		"ThrottlingException", "Timeout", "ExpiredTokenException" };
	enum kms_status status = status_of(call, second);

	memset(used, 0, sizeof(*used));
	memset(err, 0, sizeof(*err));
	err->status = status;
	(void)snprintf(used->key, sizeof(used->key), "%s", second ? ARN2 : ARN);
	(void)snprintf(err->code, sizeof(err->code), "%s", code[status]);
	return status;
}

static inline enum kms_status fake_generate(void *priv, const struct context *c, uint64_t deadline,
    uint8_t secret[static 32], struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	enum kms_status status;

	(void)deadline;
	LOCK_SCOPE(&kms.lock);
	status = serve(CALL_GENERATE, priv, used, err);
	if (status != KMS_OK)
		return status;
	secret_random(secret, 32);
	kms.seal_second = priv;
	blob->len = seal(secret, c, blob->bytes);
	kms.seal_second = false;
	return KMS_OK;
}

static inline enum kms_status fake_decrypt(void *priv, const char *key, const struct context *c, const uint8_t *blob,
    size_t len, uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	enum kms_status status;
	uint8_t mark[32];
	uint32_t at;

	(void)key;
	(void)deadline;
	LOCK_SCOPE(&kms.lock);
	if (call_of(c) == CALL_FILE && len >= 4 && kms.norder < 256)
		kms.order[kms.norder++] = le32_get(blob);
	status = serve(call_of(c), priv, used, err);
	if (status != KMS_OK)
		return status;
	context_mark(mark, c);
	at = len >= 4 ? le32_get(blob) : UINT32_MAX;
	if (at >= kms.n || kms.sealed[at].second != (priv != NULL) ||
	    memcmp(mark, kms.sealed[at].hash_of_context, 32) != 0) {
		err->status = KMS_BAD_BLOB;
		(void)snprintf(err->code, sizeof(err->code), "InvalidCiphertextException");
		return KMS_BAD_BLOB;
	}
	memcpy(secret, kms.sealed[at].secret, 32);
	return KMS_OK;
}

static const struct kms_provider provider = {
	.name = "fake", .number = 1, .generate = fake_generate, .decrypt = fake_decrypt
};

static inline void answer(enum call call, enum kms_status status)
{
	LOCK_SCOPE(&kms.lock);
	kms.answer[call] = status;
}

static inline void answer_once(enum call call, enum kms_status status)
{
	LOCK_SCOPE(&kms.lock);
	kms.answer[call] = status;
	kms.once[call] = true;
}

static inline void hang(enum call call, bool on)
{
	LOCK_SCOPE(&kms.lock);
	kms.hang[call] = on;
	(void)pthread_cond_broadcast(&kms.changed);
}

static inline unsigned calls(enum call call)
{
	LOCK_SCOPE(&kms.lock);
	return kms.calls[call];
}

static inline unsigned hanging(enum call call)
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
} w = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

struct parked {
	struct lease_waiter waiter;
	_Atomic int told;
};
static struct parked parked[PARKED];

static inline uint64_t fake_clock(void)
{
	return atomic_load(&clock_ms);
}

static inline void advance(uint64_t ms)
{
	atomic_fetch_add(&clock_ms, ms);
	lease_tick(w.lease);
}

#define UNTIL(condition)                                                                 \
	do {                                                                             \
		for (int tries_ = 0; !(condition); tries_++) {                           \
			assert_true(tries_ < 10000);                                     \
			lease_tick(w.lease);                                             \
			(void)nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL); \
		}                                                                        \
	} while (0)

static inline struct lease_status status_now(void)
{
	struct lease_status s;

	lease_status(w.lease, &s);
	return s;
}

static inline bool settled(enum lease_state state)
{
	return lease_wait(w.lease, state, 0) == 0;
}

static inline bool can(enum lease_class class)
{
	int r = lease_enter(w.lease, class);

	assert_true(r == 0 || r == -EIO);
	if (r == 0)
		lease_leave(w.lease, class);
	return r == 0;
}

/* lease_enter again, from hook threads, where asserting would jump across stacks. */
static inline bool hook_can(enum lease_class class)
{
	bool r = lease_enter(w.lease, class) == 0;

	if (r)
		lease_leave(w.lease, class);
	return r;
}

static inline void event(const char *name, bool ok)
{
	LOCK_SCOPE(&w.lock);
	(void)strncat(w.events, name, sizeof(w.events) - strlen(w.events) - 1);
	w.misrule |= !ok;
}

static inline bool events_are(const char *text)
{
	LOCK_SCOPE(&w.lock);
	return strcmp(w.events, text) == 0;
}

static inline void on_drain(void *arg)
{
	(void)arg;
	event("drain ", hook_can(LEASE_WRITEBACK) && !hook_can(LEASE_WORK) && lease_names(w.lease));
	LOCK_SCOPE(&w.lock);
	w.draining = true;
	while (w.drain_hangs)
		(void)pthread_cond_wait(&w.changed, &w.lock);
	w.draining = false;
}

static inline bool draining(void)
{
	LOCK_SCOPE(&w.lock);
	return w.draining;
}

static inline void set_drain_hangs(bool on)
{
	LOCK_SCOPE(&w.lock);
	w.drain_hangs = on;
	(void)pthread_cond_broadcast(&w.changed);
}

static inline void on_purge(void *arg)
{
	(void)arg;
	event("purge ", !hook_can(LEASE_WRITEBACK) && !hook_can(LEASE_WORK));
}

static inline void on_wipe(void *arg)
{
	(void)arg;
	event("wipe ", lease_quiet(w.lease, true) && lease_names(w.lease) != NULL);
}

static inline void on_opened(void *arg)
{
	(void)arg;
	event("opened ", true);
}

__attribute__((unused)) static const struct lease_hooks hooks = {
	.drain = on_drain, .purge = on_purge, .wipe = on_wipe, .opened = on_opened
};

static inline void on_ready(struct lease_waiter *waiter)
{
	struct parked *p = (struct parked *)(void *)waiter;

	atomic_store(&p->told, 1);
}

static inline struct lease_waiter *park_at(int i)
{
	parked[i].waiter = (struct lease_waiter){ .ready = on_ready };
	atomic_store(&parked[i].told, 0);
	return &parked[i].waiter;
}

static inline bool told(int n)
{
	int sum = 0;

	for (int i = 0; i < n; i++)
		sum += atomic_load(&parked[i].told);
	return sum == n;
}

/* A domain descriptor whose secret and probe are sealed by the fake. */
static inline void make_domain(enum descriptor_seal kind)
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

static inline int setup(void **state)
{
	(void)state;
	memset(kms.answer, 0, sizeof(kms.answer));
	memset(kms.once, 0, sizeof(kms.once));
	memset(kms.hang, 0, sizeof(kms.hang));
	memset(kms.calls, 0, sizeof(kms.calls));
	memset(kms.answer2, 0, sizeof(kms.answer2));
	memset(kms.calls2, 0, sizeof(kms.calls2));
	kms.seal_second = false;
	kms.blob_len = 184;
	kms.n = kms.norder = 0;
	atomic_store(&clock_ms, 1000000);
	w.events[0] = '\0';
	w.drain_hangs = w.misrule = false;
	w.params = (struct lease_params){ .probe_ms = 10000,
		.lease_ms = 30000,
		.max_age_ms = 300000,
		.idle_ms = 60000,
		.drain_ms = 2000,
		.pool = 0,
		.threads = 3 };
	w.ids.suite = 1;
	secret_random(w.ids.store, 16);
	secret_random(w.ids.domain, 16);
	memset(&w.desc, 0, sizeof(w.desc));
	w.lease = NULL;
	make_domain(SEAL_FILE);
	return kms_open_with(&w.kms, &provider, NULL, ARN, 20);
}

static inline int teardown(void **state)
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

static inline enum kms_status try_open(bool start_locked)
{
	struct kms_err err;

	return lease_open(&w.lease, &w.params, w.kms, &w.desc, &w.ids, NAME_SIV64, start_locked, &err);
}

static inline void open_now(void)
{
	assert_int_equal(try_open(false), KMS_OK);
	assert_int_equal(lease_start(w.lease, &hooks), 0);
}

/* A lease so long that nothing but the test's own subject depends on it. */
static inline void open_for_long(void)
{
	w.params.lease_ms = w.params.probe_ms = 1000000000;
	open_now();
}

/* A file sealed by the fake. */
static inline void make_file(struct header_ident *ident, struct header_slot *slot)
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
static inline int get_key(const struct header_ident *ident, const struct header_slot *slot, struct lease_key **out)
{
	struct lease_waiter *p = park_at(0);
	int r = lease_file_key(w.lease, ident, slot, p, out);

	if (r != -EINPROGRESS)
		return r;
	UNTIL(told(1));
	return p->result ? p->result : lease_file_key(w.lease, ident, slot, p, out);
}

/* A test, and the alarm that ends a run in which something hangs. */
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

static inline int world_init(void)
{
	(void)alarm(120);
	log_setup("test", LOG_LEVEL_ERR, false);
	lease_clock = fake_clock;
	return secret_init(true);
}

#endif
