/* cmd_test_store.c — the last step of `byokfsctl test CIPHERDIR`: every domain of the store opens under its key. */
#include "cmd_test.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"

static void take_ids(struct trial *t)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(&t->store->domain);
	const struct context_extra *extra = slot ? descriptor_generation(&t->store->domain, slot->context) : NULL;

	t->ids = t->store->ids;
	t->known_store = true;
	if (extra)
		t->extra = *extra;
}

void test_store_load(struct trial *t)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	struct store *store = calloc(1, sizeof(*store));
	int ret;

	(void)snprintf(t->store_why, sizeof(t->store_why), "out of memory");
	ret = store ? store_open(store, t->args->operand[0], &options, t->store_why) : -ENOMEM;
	if (ret < 0) {
		t->store_code = cmd_exit_store(ret);
		free(store);
		return;
	}
	t->store = store;
	take_ids(t);
}

static void unseal_failed(
    struct trial *t, const char *step, const struct descriptor_domain *d, const struct kms *kms, int code)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(d);
	char text[1000];

	kms_err_text(text, sizeof(text), &t->err);
	if (code == EXIT_CONFIG && slot && !kms_same_key(kms, slot->key, kms_key(kms)))
		test_failed(t, code, step, "configure the key that the store was made under",
		    "is under key %s, not under %s: %s", slot->key, kms_key(kms), text);
	else if (t->err.status == KMS_BAD_BLOB)
		test_failed(t, code, step, "restore the descriptors from a backup", "%s", text);
	else
		test_kms_failed(t, step, "Decrypt", kms_key(kms));
}

static void try_root(struct trial *t)
{
	char why[STORE_WHY] = "", id[2 * CONTEXT_ID + 1];
	int code = cmd_unseal(t->store, t->kms, &t->config, &t->err, why);

	bytes_hex(id, t->store->desc.store, CONTEXT_ID);
	if (code == EXIT_OK)
		test_ok(t, "store", "%s opens, its descriptors are authentic", id);
	else if (*why)
		test_failed(t, code, "store", "restore the descriptors from a backup", "%s", why);
	else
		unseal_failed(t, "store", &t->store->domain, t->kms, code);
}

/* ---- further domains ---- */

/* Its own key's service; the root's where that is the same key. Close what is not t->kms. */
static struct kms *kms_of(struct trial *t, const struct descriptor_slot *slot)
{
	const char *provider = kms_provider_to_name(slot->provider);
	struct kms_params params;
	struct kms *kms = NULL;

	if (slot->provider == kms_provider_number(t->kms) && kms_same_key(t->kms, slot->key, kms_key(t->kms)))
		return t->kms;
	if (cmd_kms_params(&params, &t->config, &t->err) != EXIT_OK)
		return NULL;
	params.provider = provider ? provider : "";
	params.key = slot->key;
	params.region = params.replicas = NULL;
	params.failover = false;
	params.share = slot->provider == kms_provider_number(t->kms) ? t->kms : NULL;
	return kms_open(&kms, &params, false, &t->err) < 0 ? NULL : kms;
}

static void open_domain(struct trial *t, const char *step, const struct descriptor_domain *d, struct kms *kms)
{
	const struct lease_params params = { .probe_ms = t->config.cache.probe_ms,
		.lease_ms = t->config.cache.lease_ms,
		.max_age_ms = t->config.cache.max_age_ms,
		.idle_ms = t->config.cache.idle_ms,
		.drain_ms = 1,
		.threads = 1,
		.previous = kms == t->kms ? NULL : t->kms };
	struct context_ids ids = { .suite = t->store->ids.suite };
	struct lease *lease = NULL;
	enum kms_status status;
	int ret = -ETIMEDOUT;

	memcpy(ids.store, d->store, CONTEXT_ID);
	memcpy(ids.domain, d->domain, CONTEXT_ID);
	status = lease_open(&lease, &params, kms, d, &ids, t->store->desc.names, false, &t->err);
	if (status != KMS_OK) {
		unseal_failed(t, step, d, kms, status == KMS_BAD_BLOB ? EXIT_NOT_A_STORE : kms_exitcode(status));
		return;
	}
	if (lease_enter(lease, LEASE_WORK) == 0) {
		ret = descriptor_domain_verify(d, lease_domain_keys(lease));
		lease_leave(lease, LEASE_WORK);
	}
	lease_close(lease);
	if (ret == 0)
		test_ok(t, step, "opens under %s, its descriptor is authentic", kms_key(kms));
	else
		test_failed(t, cmd_exit_store(ret), step, "restore the descriptors from a backup",
		    "its descriptor is not authentic");
}

static void try_domain(struct trial *t, size_t i)
{
	struct descriptor_domain *d CLEANUP_FREE = calloc(1, sizeof(*d));
	char why[STORE_WHY] = "out of memory", step[48];
	int ret = d ? cmd_domain_load(t->store, i, d, why) : -ENOMEM;
	const struct descriptor_slot *slot = ret == 0 ? descriptor_ruling_slot(d) : NULL;
	struct kms *kms;

	(void)snprintf(step, sizeof(step), "domain %u", t->store->desc.domains[i].index);
	if (!slot) {
		test_failed(t, cmd_exit_store(ret), step, "restore the descriptors from a backup", "%s", why);
		return;
	}
	kms = kms_of(t, slot);
	if (!kms)
		test_kms_failed(t, step, "Decrypt", slot->key);
	else
		open_domain(t, step, d, kms);
	if (kms != t->kms)
		kms_close(kms);
	descriptor_domain_free(d);
}

void test_store(struct trial *t)
{
	if (!t->store) {
		test_failed(t, t->store_code, "store", NULL, "%s", t->store_why);
		return;
	}
	if (!t->kms)
		return;
	try_root(t);
	for (size_t i = 1; i < t->store->desc.n; i++)
		try_domain(t, i);
}
