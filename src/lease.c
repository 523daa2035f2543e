/* The gate every operation passes, the life of a lease, and the administrator's hand on it.
 *
 * The gate is one 64-bit word: state in the top two bits, then 31 bits each of operations in flight for WRITEBACK and
 * for WORK. An operation adds itself and looks at the state it got back in the same instruction, so a lock that changes
 * the state afterwards is sure to see it, and waits for it. Deadlines stand beside the word: if the lease thread is
 * stalled, operations are refused on time all the same. */
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "io.h"
#include "lease_internal.h"
#include "log.h"
#include "secret.h"

#define GATE_STATE     62
#define GATE_WORK      1ull
#define GATE_WRITEBACK (1ull << 31)
#define GATE_COUNT     (GATE_WRITEBACK - 1)
#define SLEEP_MAX_MS   1000u
#define TICK_LATE_MS   20000u /* it goes round once a second */

uint64_t (*lease_clock)(void) = io_boot_ms;

static enum lease_state gate_state(uint64_t gate)
{
	return (enum lease_state)(gate >> GATE_STATE);
}

static uint64_t gate_unit(enum lease_class class)
{
	return class == LEASE_WORK ? GATE_WORK : GATE_WRITEBACK;
}

static bool gate_admits(struct lease *l, uint64_t gate, enum lease_class class)
{
	enum lease_state state = gate_state(gate);

	if (class == LEASE_WORK)
		return state == LEASE_OPEN && lease_clock() < atomic_load(&l->work_until);
	return (state == LEASE_OPEN || state == LEASE_LOCKING) && lease_clock() < atomic_load(&l->writeback_until);
}

int lease_enter(struct lease *l, enum lease_class class)
{
	/* Looked at first, so that callers who are refused over and over do not keep the count from reaching 0. */
	if (gate_state(atomic_load(&l->gate)) >= LEASE_LOCKED)
		return -EIO;
	if (gate_admits(l, atomic_fetch_add(&l->gate, gate_unit(class)), class))
		return 0;
	lease_leave(l, class);
	return -EIO;
}

int lease_still(struct lease *l, enum lease_class class)
{
	return gate_admits(l, atomic_load(&l->gate), class) ? 0 : -EIO;
}

void lease_leave(struct lease *l, enum lease_class class)
{
	uint64_t before = atomic_fetch_sub(&l->gate, gate_unit(class));

	if (gate_state(before) == LEASE_OPEN)
		return;
	LOCK_SCOPE(&l->lock);
	(void)pthread_cond_broadcast(&l->changed);
}

bool lease_quiet(const struct lease *l, bool all)
{
	uint64_t gate = atomic_load(&l->gate);

	return (gate & GATE_COUNT) == 0 && (!all || (gate / GATE_WRITEBACK & GATE_COUNT) == 0);
}

enum lease_state lease_state_of(const struct lease *l)
{
	return gate_state(atomic_load(&l->gate));
}

void lease_set_state(struct lease *l, enum lease_state state)
{
	uint64_t gate = atomic_load(&l->gate);
	uint64_t counts = (1ull << GATE_STATE) - 1;

	while (!atomic_compare_exchange_weak(&l->gate, &gate, (gate & counts) | (uint64_t)state << GATE_STATE))
		;
	l->since = io_unix_time();
	(void)pthread_cond_broadcast(&l->changed);
}

void lease_renew(struct lease *l, uint64_t sent)
{
	uint64_t until = sent + l->times.lease_ms;

	l->trouble[0] = '\0';
	if (until <= atomic_load(&l->work_until))
		return;
	/* Dirty pages may follow a moment after the lease ended: that is what the drain is for. */
	atomic_store(&l->writeback_until, until + l->params.drain_ms);
	atomic_store(&l->work_until, until);
}

bool lease_ticks(const struct lease *l)
{
	uint64_t ticked = atomic_load(&l->ticked);

	return ticked == UINT64_MAX || lease_clock() < ticked + TICK_LATE_MS;
}

/* lock held. */
static void take_times(struct lease *l, const struct kms *kms, const struct lease_times *t)
{
	uint64_t call_end = kms_deadline(kms), now = io_boot_ms();

	atomic_store(&l->times.probe_ms, t->probe_ms);
	atomic_store(&l->times.lease_ms, t->lease_ms);
	atomic_store(&l->times.max_age_ms, t->max_age_ms);
	atomic_store(&l->times.idle_ms, t->idle_ms);
	atomic_store(&l->call_ms, call_end > now ? call_end - now : 1);
}

void lease_retime(struct lease *l, const struct lease_times *t)
{
	LOCK_SCOPE(&l->lock);
	uint64_t most = lease_clock() + t->lease_ms;

	bool same = t->probe_ms == l->times.probe_ms && t->lease_ms == l->times.lease_ms &&
	    t->max_age_ms == l->times.max_age_ms && t->idle_ms == l->times.idle_ms;

	take_times(l, lease_ring(l)->kms[0], t);
	if (same)
		return;
	if (lease_state_of(l) == LEASE_OPEN && most < atomic_load(&l->work_until)) {
		atomic_store(&l->work_until, most);
		atomic_store(&l->writeback_until, most + l->params.drain_ms);
	}
	if (most < l->before_until)
		l->before_until = most;
	(void)pthread_mutex_lock(&l->keys.lock);
	l->keys.sweep = 0;
	(void)pthread_mutex_unlock(&l->keys.lock);
	l->next_probe = 0;
	(void)pthread_cond_broadcast(&l->changed);
}

void lease_want_lock(struct lease *l, const char *reason)
{
	if (lease_state_of(l) != LEASE_OPEN || l->lock_wanted)
		return;
	l->lock_wanted = true;
	atomic_store(&l->work_until, 0);
	(void)snprintf(l->reason, sizeof(l->reason), "%s", reason);
	(void)pthread_cond_broadcast(&l->changed);
}

void lease_sleep(pthread_cond_t *cond, pthread_mutex_t *mutex, uint64_t until)
{
	uint64_t now = lease_clock();
	uint64_t ms = until <= now ? 0 : until - now;
	struct timespec t;

	/* CLOCK_BOOTTIME cannot be waited for. Looking once a second also notices that the machine slept. */
	if (ms > SLEEP_MAX_MS)
		ms = SLEEP_MAX_MS;
	t = io_after_ms(ms);
	(void)pthread_cond_timedwait(cond, mutex, &t);
}

/* Everything that does not ask the KMS. */
static int lease_make(struct lease **out, const struct lease_params *params, struct kms *kms,
    const struct descriptor_domain *desc, const struct context_ids *ids, enum name_mode mode)
{
	CLEANUP_FREE struct lease *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	l->params = *params;
	l->ids = *ids;
	l->mode = mode;
	take_times(l, kms,
	    &(struct lease_times){ params->probe_ms, params->lease_ms, params->max_age_ms, params->idle_ms });
	l->context = malloc(sizeof(*l->context));
	l->ring = lease_ring_make(desc, kms, params->previous);
	if (!l->context || !l->ring) {
		lease_ring_free(l->ring);
		free(l->context);
		return -ENOMEM;
	}
	atomic_store(&l->ticked, UINT64_MAX);
	(void)pthread_mutex_init(&l->lock, NULL);
	r = io_cond_init(&l->changed);
	if (!r)
		r = lease_keys_init(&l->keys, l);
	if (r) {
		lease_ring_free(l->ring);
		free(l->context);
		return r;
	}
	lease_set_state(l, LEASE_LOCKED);
	*out = steal_ptr(&l);
	return 0;
}

static void lease_free(struct lease *l)
{
	lease_keys_destroy(&l->keys);
	lease_domain_wipe(&l->domain);
	(void)pthread_cond_destroy(&l->changed);
	(void)pthread_mutex_destroy(&l->lock);
	lease_ring_free(l->ring);
	free(l->context);
	free(l);
}

/* May a mount begin locked after this answer? Damage is not cured by waiting. */
static bool start_anyway(enum kms_status status)
{
	return status == KMS_DENIED || status == KMS_BUSY || status == KMS_DOWN || status == KMS_CONFIG;
}

enum kms_status lease_open(struct lease **out, const struct lease_params *params, struct kms *kms,
    const struct descriptor_domain *desc, const struct context_ids *ids, enum name_mode mode, bool start_locked,
    struct kms_err *err)
{
	struct lease *l = NULL;
	uint64_t sent;
	enum kms_status status;

	memset(err, 0, sizeof(*err));
	if (lease_make(&l, params, kms, desc, ids, mode)) {
		err->status = KMS_CONFIG;
		(void)snprintf(err->message, sizeof(err->message), "out of memory");
		return KMS_CONFIG;
	}
	status = lease_domain_open(l, &l->domain, &sent, err);
	LOCK_SCOPE(&l->lock);
	if (status == KMS_OK) {
		lease_renew(l, sent);
		lease_set_state(l, LEASE_OPEN);
	} else if (start_locked && start_anyway(status)) {
		kms_err_text(l->reason, sizeof(l->reason), err);
	} else {
		(void)pthread_mutex_unlock(steal_ptr(&lock_scope_));
		lease_free(l);
		return status;
	}
	l->next_probe = lease_clock() + params->probe_ms;
	l->before_until = lease_clock() + params->lease_ms;
	*out = l;
	return KMS_OK;
}

static void stop_threads(struct lease *l)
{
	LOCK_SCOPE(&l->lock);
	l->stop = true;
	atomic_store(&l->work_until, 0);
	(void)pthread_cond_broadcast(&l->changed);
}

static int start_threads(struct lease *l)
{
	int r = pthread_create(&l->drain_thread, NULL, lease_drain_main, l);

	if (r)
		return -r;
	r = pthread_create(&l->probe_thread, NULL, lease_probe_main, l);
	if (!r) {
		r = pthread_create(&l->lease_thread, NULL, lease_thread_main, l);
		if (!r)
			return 0;
		stop_threads(l);
		(void)pthread_join(l->probe_thread, NULL);
	}
	stop_threads(l);
	(void)pthread_join(l->drain_thread, NULL);
	return -r;
}

int lease_start(struct lease *l, const struct lease_hooks *hooks)
{
	int r;

	l->hooks = *hooks;
	r = lease_pool_start(&l->keys);
	if (r)
		return r;
	if (lease_state_of(l) == LEASE_OPEN)
		lease_keys_accept(&l->keys);
	r = start_threads(l);
	if (r)
		lease_pool_stop(&l->keys);
	else
		l->started = true;
	return r;
}

void lease_stop(struct lease *l)
{
	if (!l)
		return;
	stop_threads(l);
	lease_keys_refuse(&l->keys);
}

void lease_join(struct lease *l)
{
	if (!l || !l->started)
		return;
	(void)pthread_join(l->lease_thread, NULL);
	(void)pthread_join(l->probe_thread, NULL);
	(void)pthread_join(l->drain_thread, NULL);
	lease_pool_stop(&l->keys);
	l->started = false;
}

void lease_close(struct lease *l)
{
	if (!l)
		return;
	lease_stop(l);
	lease_join(l);
	lease_keys_wipe(&l->keys);
	block_forget_all();
	lease_free(l);
}

const struct domain_keys *lease_domain_keys(const struct lease *l)
{
	return l->domain.keys;
}

const struct name_keys *lease_names(const struct lease *l)
{
	return l->domain.names;
}

const struct context_ids *lease_ids(const struct lease *l)
{
	return &l->ids;
}

enum descriptor_seal lease_seal(const struct lease *l)
{
	return lease_ring(l)->desc->seal;
}

int lease_lock(struct lease *l, const char *reason)
{
	LOCK_SCOPE(&l->lock);
	if (l->by_admin)
		return -EALREADY;
	l->by_admin = true;
	l->hurry = false;
	l->good = 0;
	if (lease_state_of(l) == LEASE_OPEN)
		lease_want_lock(l, reason);
	else
		(void)snprintf(l->reason, sizeof(l->reason), "%s", reason);
	return 0;
}

int lease_unlock(struct lease *l)
{
	LOCK_SCOPE(&l->lock);
	if (!l->by_admin && lease_state_of(l) == LEASE_OPEN)
		return -EALREADY;
	l->by_admin = false;
	l->good = 0;
	l->hurry = true;
	l->next_probe = 0;
	(void)pthread_cond_broadcast(&l->changed);
	return 0;
}

int lease_wait(struct lease *l, enum lease_state wanted, uint64_t deadline)
{
	LOCK_SCOPE(&l->lock);
	/* LOCKED only counts once everything is purged and wiped. */
	while (lease_state_of(l) != wanted || (wanted == LEASE_LOCKED && l->busy)) {
		if (lease_clock() >= deadline)
			return -ETIMEDOUT;
		lease_sleep(&l->changed, &l->lock, deadline);
	}
	return 0;
}

static void status_of_lease(struct lease *l, struct lease_status *out)
{
	uint64_t now = lease_clock(), until = atomic_load(&l->work_until);

	LOCK_SCOPE(&l->lock);
	out->state = lease_state_of(l);
	if (out->state != LEASE_OPEN || l->lock_wanted)
		memcpy(out->reason, l->reason, sizeof(out->reason));
	out->since = l->since;
	out->by_admin = l->by_admin;
	out->answer = l->answer;
	out->lease_left_ms = out->state == LEASE_OPEN && until > now ? until - now : 0;
	out->probes = l->probes;
	out->probe_failures = l->probe_failures;
	out->locks = l->locks;
	memcpy(out->before, l->before_trouble, sizeof(out->before));
}

void lease_status(struct lease *l, struct lease_status *out)
{
	memset(out, 0, sizeof(*out));
	status_of_lease(l, out);
	LOCK_SCOPE(&l->keys.lock);
	out->file_keys = l->keys.count;
	out->pool_ready = l->keys.ready;
	out->parked = l->keys.parked;
	out->unwraps = l->keys.unwraps;
	out->generates = l->keys.generates;
	out->hits = l->keys.hits;
	out->ahead = l->keys.ahead;
	out->ahead_used = l->keys.ahead_used;
}

const char *lease_state_name(enum lease_state state)
{
	static const char *const name[] = { "open", "locking", "locked", "opening" };

	return name[state];
}

void lease_tick(struct lease *l)
{
	{
		LOCK_SCOPE(&l->lock);
		(void)pthread_cond_broadcast(&l->changed);
	}
	LOCK_SCOPE(&l->keys.lock);
	(void)pthread_cond_broadcast(&l->keys.work);
}
