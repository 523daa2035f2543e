/* check_keys.c — see check_keys.h. Hides leases, key services, and which slot of a file is asked for. */
#include "check_keys.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "cmd.h"
#include "lease.h"
#include "secret.h"

struct domain_keys_at {
	const struct descriptor_domain_line *line;
	struct context_ids ids;
	struct descriptor_domain *desc; /* owned, but for the root's */
	struct kms *kms;                /* may be the root's */
	_Atomic(struct lease *) lease;
	bool tried;
	atomic_int code; /* EXIT_OK, or why it is shut */
	atomic_int before; /* the same of the key that a rotation is leaving: its files only */
	atomic_bool told;
	atomic_bool throttled; /* a call was, to the end of its time */
	atomic_bool lapsed;    /* its lease ended for a while, when names were to be authenticated */
	char why[CHECK_WHY];
};

struct check_keys {
	struct store *store;
	const struct config *config;
	struct kms *kms, *previous; /* previous: NULL when there is none */
	size_t n;
	struct domain_keys_at *d;
};

static void nothing(void *arg)
{
	(void)arg;
}

static const struct lease_hooks hooks = { .drain = nothing, .purge = nothing, .wipe = nothing, .opened = nothing };

static bool names(const struct descriptor_slot *slot, const struct kms *kms)
{
	return slot->seq > 0 && slot->provider == kms_provider_number(kms) &&
	    kms_same_key(kms, slot->key, kms_key(kms));
}

static struct kms *second_of(const struct check_keys *k, const struct kms *own, const struct descriptor_domain *d)
{
	struct kms *of[] = { k->previous, k->kms };

	for (size_t i = 0; i < 2; i++)
		if (of[i] && of[i] != own && (names(&d->slot[0], of[i]) || names(&d->slot[1], of[i])))
			return of[i];
	return k->previous != own ? k->previous : NULL;
}

/* own: the domain's key; its second one, as in a mount, is one that the configuration names. */
static struct lease_params lease_params_of(
    const struct check_keys *k, const struct kms *own, const struct descriptor_domain *desc)
{
	const struct config *c = k->config;

	return (struct lease_params){ .previous = second_of(k, own, desc),
		.probe_ms = c->cache.probe_ms,
		.lease_ms = c->cache.lease_ms,
		.max_age_ms = c->cache.max_age_ms,
		.idle_ms = c->cache.idle_ms,
		.drain_ms = 1000,
		.threads = 1 };
}

static struct domain_keys_at *find(const struct check_keys *k, uint16_t index)
{
	for (size_t i = 0; i < k->n; i++)
		if (k->d[i].line->index == index)
			return &k->d[i];
	return NULL;
}

/* ---- the root ---- */

static int root_refused(const struct store *s, const struct kms *kms, const struct kms_err *err)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(&s->domain);
	int code = cmd_kms_failed("cannot open the store's key", err);

	if (err->status != KMS_BAD_BLOB)
		return code;
	return slot && !kms_same_key(kms, slot->key, kms_key(kms)) ? EXIT_CONFIG : EXIT_NOT_A_STORE;
}

static int authenticate(struct store *s, struct lease *lease)
{
	char why[STORE_WHY] = "the lease ended before the store was read: is 'lease' in [cache] too short?";
	int ret = lease_enter(lease, LEASE_WORK);

	if (ret == 0) {
		ret = store_authenticate(s, lease_domain_keys(lease), lease_names(lease), why);
		lease_leave(lease, LEASE_WORK);
	}
	if (ret < 0)
		cmd_error("%s", why);
	return cmd_exit_store(ret);
}

static int open_root(const struct check_keys *k, struct lease **out)
{
	const struct lease_params params = lease_params_of(k, k->kms, &k->store->domain);
	struct store *s = k->store;
	struct kms_err err = { .status = KMS_OK };
	int code;

	err.status = lease_open(out, &params, k->kms, &s->domain, &s->ids, s->desc.names, false, &err);
	if (err.status == KMS_BAD_BLOB && store_other_domain(s) == 0)
		err.status = lease_open(out, &params, k->kms, &s->domain, &s->ids, s->desc.names, false, &err);
	if (err.status != KMS_OK) {
		*out = NULL;
		return root_refused(s, k->kms, &err);
	}
	code = authenticate(s, *out);
	if (code == EXIT_OK && lease_start(*out, &hooks) < 0) {
		cmd_error("cannot start a thread");
		code = EXIT_FAILED;
	}
	return code;
}

/* The table is made once the store's descriptor is the authentic one. */
static int make_table(struct check_keys *k, struct lease *root)
{
	const struct descriptor_store *desc = &k->store->desc;

	k->d = calloc(desc->n, sizeof(*k->d));
	if (!k->d)
		return EXIT_FAILED;
	k->n = desc->n;
	for (size_t i = 0; i < k->n; i++) {
		k->d[i].line = &desc->domains[i];
		k->d[i].ids = k->store->ids;
		memcpy(k->d[i].ids.domain, desc->domains[i].domain, CONTEXT_ID);
	}
	k->d[0].desc = &k->store->domain;
	k->d[0].kms = k->kms;
	k->d[0].tried = true;
	atomic_store(&k->d[0].lease, root);
	return EXIT_OK;
}

static int open_previous(struct check_keys *k)
{
	struct kms_err err = { .status = KMS_OK };

	if (cmd_kms_previous(&k->previous, k->kms, k->config, &err) != EXIT_OK)
		return cmd_kms_failed("cannot use the previous key", &err);
	if (k->previous && kms_same_key(k->kms, kms_key(k->previous), kms_key(k->kms)))
		kms_close(steal_ptr(&k->previous));
	return EXIT_OK;
}

int check_keys_open(struct check_keys **out, struct store *s, const struct config *config)
{
	struct check_keys *k = calloc(1, sizeof(*k));
	struct lease *root = NULL;
	struct kms_err err;
	int code;

	if (!k)
		return EXIT_FAILED;
	k->store = s;
	k->config = config;
	code = cmd_kms_open(&k->kms, config, &err);
	if (code != EXIT_OK)
		code = cmd_kms_failed("cannot use the key service", &err);
	else
		code = open_previous(k);
	if (code == EXIT_OK)
		code = open_root(k, &root);
	if (code == EXIT_OK)
		code = make_table(k, root);
	if (code == EXIT_OK) {
		*out = k;
		return EXIT_OK;
	}
	lease_close(root);
	check_keys_close(k);
	return code;
}

void check_keys_close(struct check_keys *k)
{
	if (!k)
		return;
	for (size_t i = 0; i < k->n; i++) {
		struct domain_keys_at *d = &k->d[i];

		lease_close(atomic_load(&d->lease));
		if (d->kms != k->kms && d->kms != k->previous)
			kms_close(d->kms);
		if (i > 0 && d->desc)
			descriptor_domain_free(d->desc);
		if (i > 0)
			free(d->desc);
	}
	kms_close(k->previous);
	kms_close(k->kms);
	free(k->d);
	free(k);
}

/* ---- nested domains ---- */

/* Its own key's service; the root's where that is the same key. */
static int open_kms(const struct check_keys *k, struct domain_keys_at *d, struct kms_err *err)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(d->desc);
	const char *provider = slot ? kms_provider_to_name(slot->provider) : NULL;
	struct kms_params params;

	if (!slot || !provider) {
		(void)snprintf(d->why, sizeof(d->why), "its descriptor names no key");
		return EXIT_NOT_A_STORE;
	}
	if (names(slot, k->kms) || (k->previous && names(slot, k->previous))) {
		d->kms = names(slot, k->kms) ? k->kms : k->previous;
		return EXIT_OK;
	}
	if (cmd_kms_params(&params, k->config, err) != EXIT_OK)
		return EXIT_CONFIG;
	params.provider = provider;
	params.key = slot->key;
	params.region = params.replicas = NULL;
	params.failover = false;
	params.share = slot->provider == kms_provider_number(k->kms) ? k->kms : NULL;
	if (kms_open(&d->kms, &params, false, err) == 0)
		return EXIT_OK;
	d->kms = NULL;
	return kms_exitcode(err->status == KMS_OK ? KMS_CONFIG : err->status);
}

static int open_lease(const struct check_keys *k, struct domain_keys_at *d, struct kms_err *err)
{
	const struct lease_params params = lease_params_of(k, d->kms, d->desc);
	struct lease *lease = NULL;
	int ret = -EIO;

	err->status =
	    lease_open(&lease, &params, d->kms, d->desc, &d->ids, k->store->desc.names, false, err);
	if (err->status != KMS_OK)
		return err->status == KMS_BAD_BLOB ? EXIT_NOT_A_STORE : kms_exitcode(err->status);
	if (lease_enter(lease, LEASE_WORK) == 0) {
		ret = descriptor_domain_verify(d->desc, lease_domain_keys(lease));
		lease_leave(lease, LEASE_WORK);
	}
	if (ret == 0)
		ret = store_restore_domain(k->store, d->desc);
	if (ret == 0)
		ret = lease_start(lease, &hooks);
	if (ret == 0) {
		atomic_store(&d->lease, lease);
		return EXIT_OK;
	}
	lease_close(lease);
	(void)snprintf(d->why, sizeof(d->why), "%s",
	    ret == -EBADMSG ? "its descriptor is not authentic" : "its descriptor cannot be used");
	return ret == -EBADMSG ? EXIT_NOT_A_STORE : EXIT_FAILED;
}

static int open_nested(struct check_keys *k, struct domain_keys_at *d)
{
	struct kms_err err = { .status = KMS_OK };
	size_t i = (size_t)(d - k->d);
	int code;

	d->desc = calloc(1, sizeof(*d->desc));
	if (!d->desc)
		return EXIT_FAILED;
	if (cmd_domain_load(k->store, i, d->desc, d->why) < 0) {
		free(steal_ptr(&d->desc));
		return EXIT_NOT_A_STORE;
	}
	code = open_kms(k, d, &err);
	if (code == EXIT_OK)
		code = open_lease(k, d, &err);
	if (code != EXIT_OK && err.status != KMS_OK)
		kms_err_text(d->why, sizeof(d->why), &err);
	return code;
}

int check_keys_enter(struct check_keys *k, uint16_t index, char why[static CHECK_WHY])
{
	struct domain_keys_at *d = find(k, index);
	int code;

	if (!d) {
		(void)snprintf(why, CHECK_WHY, "the store descriptor does not know it");
		return EXIT_NOT_A_STORE;
	}
	if (!d->tried) {
		d->tried = true;
		atomic_store(&d->code, open_nested(k, d));
	}
	code = atomic_load(&d->code);
	if (code != EXIT_OK)
		(void)snprintf(why, CHECK_WHY, "%s", d->why);
	return code;
}

const struct name_keys *check_keys_get(struct check_keys *k, uint16_t index)
{
	struct domain_keys_at *d = find(k, index);
	struct lease *lease = d ? atomic_load(&d->lease) : NULL;

	if (!lease)
		return NULL;
	if (lease_enter(lease, LEASE_WORK) == 0)
		return lease_names(lease);
	atomic_store(&d->lapsed, true);
	return NULL;
}

void check_keys_put(struct check_keys *k, uint16_t index)
{
	lease_leave(atomic_load(&find(k, index)->lease), LEASE_WORK);
}

/* ---- files ---- */

/* A question about one slot. About 20 KiB: on the heap. */
struct question {
	struct context context;
	struct kms_used used;
	struct kms_err err;
};

/* What keeps one file's key from coming keeps the others under the same KMS key too, but for a call that was throttled.
 * A key that another one sealed is no damage. */
static enum check_key refused(struct domain_keys_at *d, const struct kms *kms, const struct header_slot *slot,
    const struct kms_err *err, char *why)
{
	bool before = kms == lease_kms(atomic_load(&d->lease), true);
	uint8_t hash[8];

	kms_key_hash(hash, kms_key(kms));
	if (err->status == KMS_BAD_BLOB && memcmp(hash, slot->key_hash, sizeof(hash)) != 0) {
		(void)snprintf(why, CHECK_WHY, "its key was sealed under another KMS key than %.300s", kms_key(kms));
		return CHECK_KEY_REFUSED;
	}
	if (err->status == KMS_BAD_BLOB) {
		(void)snprintf(why, CHECK_WHY, "the KMS does not take its sealed key for this file's");
		return CHECK_KEY_BROKEN;
	}
	kms_err_text(why, CHECK_WHY, err);
	if (err->status == KMS_BUSY)
		atomic_store(&d->throttled, true);
	else
		atomic_store(before ? &d->before : &d->code, kms_exitcode(err->status));
	return CHECK_KEY_REFUSED;
}

/* The slot's key service; NULL: it is not to be asked. */
static struct kms *service_of(struct domain_keys_at *d, const struct header_slot *slot, char *why)
{
	const struct lease *lease = atomic_load(&d->lease);
	struct kms *kms = lease_kms_of(lease, slot);

	if (!kms) {
		(void)snprintf(why, CHECK_WHY, "it is under a rotation's key that is not configured: set 'previous'");
		return NULL;
	}
	if (kms != lease_kms(lease, true) || atomic_load(&d->before) == EXIT_OK)
		return kms;
	(void)snprintf(why, CHECK_WHY, "the key that a rotation is leaving, %.300s, is refused", kms_key(kms));
	return NULL;
}

static enum check_key ask(struct domain_keys_at *d, const struct header_ident *ident, const struct header_slot *slot,
    uint8_t secret[static KDF_SECRET], char *why)
{
	const struct context_extra *extra = descriptor_generation(d->desc, slot->generation);
	struct question *q CLEANUP_FREE = malloc(sizeof(*q));
	struct kms *kms = service_of(d, slot, why);

	if (kms && (!q || !extra))
		(void)snprintf(why, CHECK_WHY, "%s",
		    q ? "its key was sealed under a context that the descriptor does not record" : "out of memory");
	if (!kms || !q || !extra)
		return CHECK_KEY_REFUSED;
	context_build(&q->context, CONTEXT_FILE, &d->ids, ident->file, extra);
	if (kms_decrypt(kms, &q->context, slot->blob, slot->len, kms_deadline(kms), secret, &q->used, &q->err) ==
	    KMS_OK)
		return CHECK_KEY_OK;
	return refused(d, kms, slot, &q->err, why);
}

static enum check_key unwrap(struct domain_keys_at *d, const struct header_ident *ident,
    const struct header_slot *slot, uint8_t secret[static KDF_SECRET], char *why)
{
	struct lease *lease = atomic_load(&d->lease);
	int ret;

	if (slot->len != KDF_WRAP_BLOB) {
		(void)snprintf(why, CHECK_WHY, "its wrapped key is malformed");
		return CHECK_KEY_BROKEN;
	}
	if (lease_enter(lease, LEASE_WORK) < 0) {
		(void)snprintf(why, CHECK_WHY, "its key domain is locked");
		return CHECK_KEY_REFUSED;
	}
	ret = kdf_unwrap(secret, slot->blob, lease_domain_keys(lease), &d->ids, ident->file);
	lease_leave(lease, LEASE_WORK);
	(void)snprintf(why, CHECK_WHY, "the domain's key does not open its wrapped key");
	return ret < 0 ? CHECK_KEY_BROKEN : CHECK_KEY_OK;
}

static enum check_key open_slot(struct domain_keys_at *d, const struct header_ident *ident,
    const struct header_slot *slot, struct file_keys *out, char *why)
{
	uint8_t *secret = secret_alloc(KDF_SECRET);
	enum check_key got = CHECK_KEY_REFUSED;

	(void)snprintf(why, CHECK_WHY, "out of memory");
	if (secret)
		got = slot->wrap == HEADER_WRAP_DOMAIN ? unwrap(d, ident, slot, secret, why)
		                                       : ask(d, ident, slot, secret, why);
	if (got == CHECK_KEY_OK &&
	    (kdf_file(out, secret, &d->ids, ident->file) < 0 ||
	        !bytes_equal(out->commit, ident->commit, sizeof(out->commit)))) {
		(void)snprintf(why, CHECK_WHY, "its sealed key is not the one its identity names");
		got = CHECK_KEY_BROKEN;
	}
	secret_free(secret);
	return got;
}

/* May the other slot answer, as when reading? Only while a rotation is under way; a denial is a denial. */
static bool ruling_is_lost(const struct domain_keys_at *d, enum check_key got, const struct header_slot *slot)
{
	if (!d->desc->slot[0].seq || !d->desc->slot[1].seq)
		return false;
	return got == CHECK_KEY_BROKEN || (got == CHECK_KEY_REFUSED && !lease_knows(atomic_load(&d->lease), slot));
}

enum check_key check_keys_file(struct check_keys *k, uint16_t index, const uint8_t page[static LAYOUT_PAGE],
    const struct header_ident *ident, struct file_keys *out, char why[static CHECK_WHY])
{
	struct domain_keys_at *d = find(k, index);
	struct header_slot slot;
	enum check_key got;
	int none = EXIT_OK, ruling = header_ruling_slot(page, &slot);

	if (!d || !atomic_load(&d->lease) || atomic_load(&d->code) != EXIT_OK) {
		(void)snprintf(why, CHECK_WHY, "its key domain is not open");
		return CHECK_KEY_REFUSED;
	}
	if (ruling < 0) {
		(void)snprintf(why, CHECK_WHY, "no sealed key in its header is intact");
		return CHECK_KEY_BROKEN;
	}
	got = open_slot(d, ident, &slot, out, why);
	if (ruling_is_lost(d, got, &slot) && header_slot(page, !ruling, &slot) == 0)
		got = open_slot(d, ident, &slot, out, why);
	if (got == CHECK_KEY_REFUSED && !lease_knows(atomic_load(&d->lease), &slot))
		(void)atomic_compare_exchange_strong(&d->before, &none, EXIT_CONFIG);
	return got;
}

bool check_keys_first(struct check_keys *k, uint16_t index)
{
	struct domain_keys_at *d = find(k, index);

	return d && !atomic_exchange(&d->told, true);
}

bool check_keys_lapsed(const struct check_keys *k)
{
	for (size_t i = 0; k && i < k->n; i++)
		if (atomic_load(&k->d[i].lapsed))
			return true;
	return false;
}

int check_keys_code(const struct check_keys *k)
{
	int worst = EXIT_OK;

	for (size_t i = 0; k && i < k->n; i++) {
		int code = atomic_load(&k->d[i].code);

		if (code == EXIT_OK)
			code = atomic_load(&k->d[i].before);
		if (code == EXIT_OK && atomic_load(&k->d[i].throttled))
			code = EXIT_UNREACHABLE;
		if (code != EXIT_OK && (worst == EXIT_OK || code < worst))
			worst = code;
	}
	return worst;
}
