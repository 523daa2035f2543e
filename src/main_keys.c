/* main_keys.c — the mount's one or two keys: opened, asked for the store's secret, and refused while the administrator
 * is watching. Hides which of the two rules, and which exit code and hint go with which answer. */
#include <errno.h>
#include <stdio.h>

#include "exitcode.h"
#include "io.h"
#include "log.h"
#include "main_internal.h"
#include "params.h"

/* A mount waits that long for the first answers of nested domains' key services; then they open behind its back. */
#define NESTED_GRACE_MS 1000u

/* Is no slot of the store under a key that is configured? As far as names go: the KMS was asked all the same. */
static bool under_another(const struct daemon *d)
{
	const struct kms *of[] = { d->kms, d->previous };

	for (size_t i = 0; i < 4; i++) {
		const struct descriptor_slot *slot = &d->store.domain.slot[i / 2];
		const struct kms *kms = of[i % 2];

		if (slot->seq > 0 && kms && kms_same_key(kms, slot->key, kms_key(kms)))
			return false;
	}
	return d->kms && descriptor_ruling_slot(&d->store.domain);
}

static int fail_other_key(const struct daemon *d, const char *text)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(&d->store.domain);
	char what[1200], hint[300], when[21];

	io_utc(when, d->store.domain.rotated);
	if (!d->store.domain.rotated) {
		(void)snprintf(what, sizeof(what), "the store is under key '%.250s', not under '%.250s': %s", slot->key,
		    kms_key(d->kms), text);
		return main_fail(EXIT_CONFIG, what, "is [kms] key the key that the store was made under?");
	}
	(void)snprintf(what, sizeof(what),
	    "the store is under key '%.250s' now, since the rotation of %s, not under "
	    "'%.250s': %s",
	    slot->key, when, kms_key(d->kms), text);
	(void)snprintf(hint, sizeof(hint), "set [kms] key to '%.250s'", slot->key);
	return main_fail(EXIT_CONFIG, what, hint);
}

static int fail_kms(const struct daemon *d, const struct kms_err *err, enum kms_status status)
{
	char text[512], what[1200];

	kms_err_text(text, sizeof(text), err);
	if ((status == KMS_BAD_BLOB || status == KMS_DENIED || status == KMS_CONFIG) && under_another(d))
		return fail_other_key(d, text);
	(void)snprintf(what, sizeof(what), "cannot open the store's key: %s", text);
	switch (status) {
	case KMS_DENIED:
		return main_fail(
		    EXIT_DENIED, what, "ask the key's owner, or mount with '-o locked_start' to wait for the key");
	case KMS_BUSY:
	case KMS_DOWN:
		return main_fail(EXIT_UNREACHABLE, what,
		    "check endpoint and network, or mount with '-o locked_start' to wait for the KMS");
	case KMS_BAD_BLOB:
		/* What came of it was refused here; or the KMS itself knows nothing of this blob. */
		if (!err->http && !*err->request_id)
			(void)snprintf(
			    what, sizeof(what), "cannot open store '%.250s': %s", d->store.path, err->message);
		return main_fail(EXIT_NOT_A_STORE, what, NULL);
	default:
		return main_fail(EXIT_CONFIG, what, "run 'byokfsctl test' to see which step fails");
	}
}

static enum kms_status open_lease(struct daemon *d, const struct lease_params *params, struct kms_err *err)
{
	struct lease_params lp = *params;
	struct domain *first = d->fs.first;
	struct lease *lease = NULL;
	enum kms_status st;

	lp.previous = domain_second(&d->fs, &d->store.domain, d->kms);
	st = lease_open(&lease, &lp, d->kms, &d->store.domain, &d->store.ids, d->store.desc.names,
	    d->config.mount.locked_start, err);
	if (st != KMS_OK)
		return st;
	atomic_store(&first->kms, lease_kms(lease, false));
	atomic_store(&first->previous, lease_kms(lease, true));
	atomic_store(&first->lease, lease);
	return st;
}

/* The key that a rotation is leaving, asked with the credentials of the first. */
static int open_previous(struct daemon *d)
{
	struct kms_params params;
	struct kms_err err = { 0 };
	char text[512], what[900];

	if (!params_previous(&params, &d->config, "byokfs/" BYOKFS_VERSION, d->kms))
		return 0;
	params.observe = d->audit ? audit_kms : NULL;
	params.observer = d->audit;
	if (kms_open(&d->previous, &params, true, &err) == 0) {
		if (!kms_same_key(d->kms, kms_key(d->previous), kms_key(d->kms)))
			return 0;
		log_warn("the previous key is configured twice: '%s' is the key itself", kms_key(d->previous));
		kms_close(steal_ptr(&d->previous));
		return 0;
	}
	kms_err_text(text, sizeof(text), &err);
	(void)snprintf(what, sizeof(what), "cannot use the previous key '%.250s': %s", params.key, text);
	if (err.status == KMS_CONFIG || err.status == KMS_OK)
		return main_fail(EXIT_CONFIG, what, "without it, files that are still under it give EIO");
	/* It may be destroyed already: what is under it gives EIO. */
	log_warn("%s", what);
	return 0;
}

int main_open_keys(struct daemon *d)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(&d->store.domain);
	const struct config *c = &d->config;
	struct kms_err err = { 0 };
	struct domains_params dp = { .grace_ms = NESTED_GRACE_MS };
	struct lease_params *lp = &dp.lease;

	dp.lease = (struct lease_params){
		.probe_ms = c->cache.probe_ms,
		.lease_ms = c->cache.lease_ms,
		.max_age_ms = c->cache.max_age_ms,
		.idle_ms = c->cache.idle_ms,
		.drain_ms = 2000,
		.pool = d->options.readonly ? 0 : c->cache.pool,
		/* One connection is the canary's: it must not wait behind file keys. */
		.threads = c->kms.max_connections > 1 ? c->kms.max_connections - 1 : 1,
	};
	dp.extra = &c->extra;
	params_kms(&dp.kms, c, "byokfs/" BYOKFS_VERSION);
	dp.kms.observe = d->audit ? audit_kms : NULL;
	dp.kms.observer = d->audit;
	/* A key file that is missing does not tell its name; the name decides nothing but what is waited for. */
	if (slot && c->mount.locked_start && !dp.kms.key)
		dp.kms.key = slot->key;
	d->fs.store = &d->store;
	if (domains_init(&d->fs, &dp))
		return main_fail_errno("cannot set up the key domains", ENOMEM);
	if (kms_open(&d->kms, &dp.kms, true, &err))
		return fail_kms(d, &err, err.status == KMS_OK ? KMS_CONFIG : err.status);
	atomic_store(&d->fs.first->kms, d->kms);
	if (open_previous(d))
		return EXIT_CONFIG;
	domains_keys(&d->fs, d->kms, d->previous);
	enum kms_status st = open_lease(d, lp, &err);

	if (st == KMS_BAD_BLOB && store_other_domain(&d->store) == 0)
		st = open_lease(d, lp, &err);

	if (st != KMS_OK)
		return fail_kms(d, &err, st);
	if (err.status != KMS_OK) {
		char text[512];

		kms_err_text(text, sizeof(text), &err);
		log_warn("mounting locked: %s", text);
	}
	return 0;
}
