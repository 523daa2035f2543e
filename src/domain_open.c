/* domain_open.c — how nested domains come to life and end. Hides that opening one is tried until descriptor and key
 * service can be used at all; from then on the lease asks by itself. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "audit.h"
#include "domain_internal.h"
#include "fs.h"
#include "fuseio.h"
#include "io.h"
#include "log.h"
#include "purge.h"

/* A domain's keys are few and its files often fewer: KMS threads of each nested one. */
#define NESTED_THREADS 4u

/* ---- opening one */

/* What an attempt makes; on success the domain's. */
struct attempt {
	struct descriptor_domain *descriptor;
	struct kms *kms, *second; /* second: borrowed, or NULL */
	struct lease *lease;
};

static void attempt_end(struct attempt *a)
{
	lease_close(a->lease);
	kms_close(a->kms);
	if (a->descriptor)
		descriptor_domain_free(a->descriptor);
	free(a->descriptor);
	*a = (struct attempt){ 0 };
}

static int read_descriptor(struct domain *d, int rank, struct attempt *a, struct kms_err *err)
{
	struct descriptor_domain_line line = { .index = d->index };
	int r;

	memcpy(line.domain, d->ids.domain, sizeof(line.domain));
	memcpy(line.commit, d->commit, sizeof(line.commit));
	a->descriptor = calloc(1, sizeof(*a->descriptor));
	r = a->descriptor ? store_read_domain(d->fs->store, &line, rank, a->descriptor) : -ENOMEM;
	if (!r)
		return 0;
	free(a->descriptor);
	a->descriptor = NULL;
	err->status = KMS_BAD_BLOB;
	(void)snprintf(err->code, sizeof(err->code), "Descriptor");
	(void)snprintf(err->message, sizeof(err->message), "the domain's descriptor cannot be used: %s",
	    r == -EBADMSG      ? "it does not belong to this domain"
	        : r == -EINVAL ? "both copies are damaged"
	                       : strerror(-r));
	return r;
}

/* The Region in the name of the first domain's key: an alias of a new one is looked for there. */
static bool region_of(const struct kms *first, char out[static 64])
{
	return first && sscanf(kms_key(first), "arn:%*[^:]:kms:%63[^:]:", out) == 1;
}

/* Where a key with an ARN is, it says itself. */
int domain_kms(struct fs *fs, const char *provider, const char *key, struct kms **out, struct kms_err *err)
{
	const struct domains_params *dp = &fs->domains->params;
	struct kms *first = atomic_load(&fs->domains->key);
	struct kms_params p = dp->kms;
	char region[64];

	if (provider)
		p.provider = provider;
	p.key = key;
	if (strncmp(key, "arn:", 4) == 0)
		p.region = NULL;
	else if (!p.region && region_of(first, region))
		p.region = region;
	p.replicas = NULL;
	p.failover = false;
	if (first && p.provider && strcmp(kms_provider_name(first), p.provider) == 0)
		p.share = first;
	return kms_open(out, &p, true, err);
}

const struct context_extra *domain_extra(const struct fs *fs)
{
	return fs->domains->params.extra;
}

static int open_kms(struct domain *d, struct attempt *a, struct kms_err *err)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(a->descriptor);

	if (slot)
		return domain_kms(d->fs, kms_provider_to_name(slot->provider), slot->key, &a->kms, err);
	err->status = KMS_BAD_BLOB;
	(void)snprintf(err->message, sizeof(err->message), "no slot of the domain's descriptor is filled");
	return -EINVAL;
}

static struct lease_params nested_params(const struct domain *d)
{
	pthread_mutex_lock(&d->fs->domains->lock);
	struct lease_params lp = d->fs->domains->params.lease;
	pthread_mutex_unlock(&d->fs->domains->lock);
	lp.label = d->label;
	lp.pool_late = true; /* many domains, few of them written to: the KMS is not asked for keys nobody wants */
	if (lp.threads > NESTED_THREADS)
		lp.threads = NESTED_THREADS;
	return lp;
}

/* One copy of the descriptor, one round of questions. 0: there is a lease, open or locked. */
static int attempt_copy(struct domain *d, int rank, struct attempt *a, struct kms_err *err)
{
	struct lease_params lp = nested_params(d);
	int r = read_descriptor(d, rank, a, err);

	if (!r)
		r = open_kms(d, a, err);
	if (!r)
		lp.previous = a->second = domain_second(d->fs, a->descriptor, a->kms);
	if (!r &&
	    lease_open(&a->lease, &lp, a->kms, a->descriptor, &d->ids, d->fs->store->desc.names, true, err) != KMS_OK) {
		a->lease = NULL;
		r = -EIO;
	}
	if (r)
		attempt_end(a);
	return r;
}

/* What the audit begins with. */
static void audit_first(struct domain *d, struct lease *l, const char *why)
{
	struct lease_status st;

	lease_status(l, &st);
	audit_state(d->fs->audit, &d->ids, lease_state_name(st.state), *st.reason ? st.reason : why);
}

/* Its threads could not be started: tried again later, like anything else that keeps it from opening. */
static void not_started(struct domain *d, int r)
{
	pthread_mutex_lock(&d->lock);
	(void)snprintf(d->why, sizeof(d->why), "its threads cannot be started: %s", strerror(-r));
	pthread_mutex_unlock(&d->lock);
	log_err("its threads cannot be started: %s", strerror(-r));
	audit_state(d->fs->audit, &d->ids, lease_state_name(LEASE_LOCKED), "its threads cannot be started");
}

/* What an attempt made is the domain's. */
static int take(struct domain *d, const struct attempt *a)
{
	LOCK_SCOPE(&d->lock);
	int r = domain_own(d, a->kms);

	if (r)
		return r;
	d->descriptor = a->descriptor;
	atomic_store(&d->kms, lease_kms(a->lease, false));
	atomic_store(&d->previous, lease_kms(a->lease, true));
	return 0;
}

static void untake(struct domain *d, const struct attempt *a)
{
	LOCK_SCOPE(&d->lock);
	domain_disown(d, a->kms);
	d->descriptor = NULL;
	atomic_store(&d->kms, NULL);
	atomic_store(&d->previous, NULL);
}

/* The lease becomes the domain's, once its threads run. */
static int publish(struct domain *d, struct attempt *a)
{
	struct lease_hooks hooks;
	int r = take(d, a);

	purge_hooks(d, &hooks);
	audit_first(d, a->lease, "mounted");
	if (!r)
		r = lease_start(a->lease, &hooks);
	if (r) {
		not_started(d, r);
		untake(d, a);
		attempt_end(a);
		return r;
	}
	pthread_mutex_lock(&d->lock);
	if (d->held && lease_lock(a->lease, "locked by the administrator"))
		log_debug("locked already");
	atomic_store(&d->lease, a->lease);
	pthread_mutex_unlock(&d->lock);
	pthread_mutex_lock(&d->fs->domains->lock);
	domain_follow(d);
	pthread_mutex_unlock(&d->fs->domains->lock);
	atomic_store_explicit(&d->ready, true, memory_order_release);
	if (domain_is_open(d))
		domain_restore(d);
	return 0;
}

int domain_prepare(struct fs *fs, const struct descriptor_domain_line *line, struct descriptor_domain *descriptor,
    struct kms *kms, struct domain **out, struct kms_err *err)
{
	struct domain *d = domain_make(fs, line);
	struct lease_params lp;
	struct lease *lease;

	memset(err, 0, sizeof(*err));
	if (!d)
		return -ENOMEM;
	lp = nested_params(d);
	if (lease_open(&lease, &lp, kms, descriptor, &d->ids, fs->store->desc.names, false, err) != KMS_OK) {
		domain_discard(d);
		return -EIO;
	}
	if (take(d, &(struct attempt){ .descriptor = descriptor, .kms = kms, .lease = lease })) {
		lease_close(lease);
		domain_discard(d);
		return -ENOMEM;
	}
	d->restored = true;
	atomic_store(&d->lease, lease);
	*out = d;
	return 0;
}

/* A domain whose lease has no threads: that lease goes, nobody had entered. */
static void unstart(struct domain *d, int r)
{
	struct attempt a = { .descriptor = d->descriptor, .kms = d->kms, .lease = atomic_exchange(&d->lease, NULL) };

	untake(d, &a);
	attempt_end(&a);
	not_started(d, r);
}

int domain_publish(struct domain *d)
{
	struct domains *t = d->fs->domains;
	struct lease *l = atomic_load(&d->lease);
	struct lease_hooks hooks;
	int r;

	purge_hooks(d, &hooks);
	audit_first(d, l, "made by the administrator");
	r = lease_start(l, &hooks);
	if (r) {
		log_label(d->label);
		unstart(d, r);
		log_label(NULL);
	} else {
		atomic_store_explicit(&d->ready, true, memory_order_release);
	}
	LOCK_SCOPE(&t->lock);
	domains_insert(d);
	domain_follow(d);
	d->begun = true;
	if (r)
		domain_enqueue(d);
	if (domains_count(d->fs) == 2 && fuseio_background(d->fs->connection, FUSEIO_BACKGROUND))
		log_info("until the next mount 'mount.max_background' bounds the requests that wait for keys");
	return r;
}

bool domain_try(struct domain *d)
{
	struct attempt a = { 0 };
	struct kms_err err = { 0 }, second = { 0 };
	char text[sizeof(d->why)];
	int r = attempt_copy(d, 0, &a, &err);

	/* The other copy may be the one that was not tampered with. */
	if (r && err.status == KMS_BAD_BLOB && attempt_copy(d, 1, &a, &second) == 0) {
		err = second;
		r = 0;
	}
	if (err.status == KMS_OK && r)
		err.status = KMS_CONFIG;
	kms_err_text(text, sizeof(text), &err);
	pthread_mutex_lock(&d->lock);
	if (r && strcmp(d->why, text) != 0)
		memcpy(d->why, text, sizeof(text));
	else if (r)
		text[0] = '\0';
	pthread_mutex_unlock(&d->lock);
	if (err.status != KMS_OK && text[0])
		log_warn("it stays locked for now: %s", text);
	return r == 0 && publish(d, &a) == 0;
}

/* ---- all of them */

int domains_load(struct fs *fs)
{
	const struct descriptor_store *desc = &fs->store->desc;

	LOCK_SCOPE(&fs->domains->lock);
	for (size_t i = 0; i < desc->n; i++) {
		struct domain *d = domain_get(fs, desc->domains[i].index) ? NULL : domain_make(fs, &desc->domains[i]);

		if (d)
			domains_insert(d);
		else if (!domain_get(fs, desc->domains[i].index))
			return -ENOMEM;
	}
	return 0;
}

static bool wait_answer(void *arg, struct domain *d)
{
	const struct timespec *until = arg;

	LOCK_SCOPE(&d->lock);
	while (d->index && !d->answered)
		if (pthread_cond_timedwait(&d->wake, &d->lock, until))
			break;
	return true;
}

int domains_start(struct fs *fs)
{
	struct timespec until = io_after_ms(fs->domains->params.grace_ms);
	struct lease_hooks hooks;
	int r;

	purge_hooks(fs->first, &hooks);
	r = lease_start(atomic_load(&fs->first->lease), &hooks);
	if (r || !atomic_load(&fs->first->ready))
		return r;
	domains_open_nested(fs);
	domains_each(fs, wait_answer, &until);
	return 0;
}

static bool stop_one(void *arg, struct domain *d)
{
	(void)arg;
	atomic_store(&d->ready, false);
	return true;
}

static bool tell_one(void *arg, struct domain *d)
{
	(void)arg;
	lease_stop(atomic_load(&d->lease));
	return true;
}

static bool join_one(void *arg, struct domain *d)
{
	(void)arg;
	lease_join(atomic_load(&d->lease));
	return true;
}

static bool close_one(void *arg, struct domain *d)
{
	(void)arg;
	lease_close(atomic_exchange(&d->lease, NULL));
	return true;
}

/* Each step for all before the next: a thread of one domain that fails what was parked looks for names in others. And
 * those that wait for a KMS wait at the same time. */
void domains_stop(struct fs *fs)
{
	domain_queue_stop(fs);
	domains_each(fs, stop_one, NULL);
	domains_each(fs, tell_one, NULL);
	domains_each(fs, join_one, NULL);
	domains_each(fs, close_one, NULL);
}

static void release(struct domain *d)
{
	domain_close_services(d);
	if (d->index && d->descriptor) {
		descriptor_domain_free(d->descriptor);
		free(d->descriptor);
	}
	(void)pthread_cond_destroy(&d->wake);
	(void)pthread_mutex_destroy(&d->writing);
	(void)pthread_mutex_destroy(&d->lock);
	free(d);
}

void domain_discard(struct domain *d)
{
	lease_close(atomic_load(&d->lease));
	release(d);
}

static bool free_one(void *arg, struct domain *d)
{
	(void)arg;
	release(d);
	return true;
}

void domains_free(struct fs *fs)
{
	if (!fs->domains)
		return;
	if (fs->domains->at)
		domains_each(fs, free_one, NULL);
	free(fs->domains->at);
	(void)pthread_cond_destroy(&fs->domains->wake);
	(void)pthread_mutex_destroy(&fs->domains->lock);
	free(fs->domains);
	fs->domains = NULL;
	fs->first = NULL;
}

/* ---- state */

void domain_status(struct domain *d, struct lease_status *out)
{
	struct lease *l = atomic_load(&d->lease);

	if (l) {
		lease_status(l, out);
		return;
	}
	memset(out, 0, sizeof(*out));
	LOCK_SCOPE(&d->lock);
	out->state = LEASE_LOCKED;
	out->since = d->since;
	out->by_admin = d->held;
	out->answer = KMS_CONFIG;
	out->probe_failures = d->failures;
	(void)snprintf(out->reason, sizeof(out->reason), "%s", d->why[0] ? d->why : "it was not opened yet");
}

int domain_lock(struct domain *d, const char *reason)
{
	LOCK_SCOPE(&d->lock);
	struct lease *l = atomic_load(&d->lease);

	if (l)
		return lease_lock(l, reason);
	if (d->held)
		return -EALREADY;
	d->held = true;
	return 0;
}

int domain_unlock(struct domain *d)
{
	pthread_mutex_lock(&d->lock);
	struct lease *l = atomic_load(&d->lease);

	d->held = false;
	pthread_mutex_unlock(&d->lock);
	if (l)
		return lease_unlock(l);
	domain_hurry(d);
	return 0;
}

int domain_wait(struct domain *d, enum lease_state wanted, uint64_t deadline)
{
	struct timespec step = io_after_ms(50);
	struct lease *l = atomic_load(&d->lease);

	if (l)
		return lease_wait(l, wanted, deadline);
	if (wanted == LEASE_LOCKED)
		return 0;
	LOCK_SCOPE(&d->lock);
	(void)pthread_cond_timedwait(&d->wake, &d->lock, &step);
	return -ETIMEDOUT;
}
