/* reseal.c — the descriptor's part of a rotation: begin and finish. Hides the order of proving, writing and using, so
 * that a key is in use only once it is on the disk, and on the disk only once it was proved. */
#include "reseal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "audit.h"
#include "bytes.h"
#include "exitcode.h"
#include "io.h"
#include "log.h"

#define BIRTHS_MS 30000u /* a disk may be slow */

/* What one rotation holds while it begins or ends. */
struct turn {
	struct domain *domain;
	struct reseal_done *out;
	struct descriptor_domain *desc; /* the next one */
	struct kms *kms;                /* serves its ruling slot */
	bool own;                       /* opened here, not the domain's yet */
};

__attribute__((format(printf, 3, 4))) static int refuse(struct turn *t, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(t->out->message, sizeof(t->out->message), fmt, ap);
	va_end(ap);
	t->out->code = code;
	return -1;
}

static void end(struct turn *t)
{
	if (t->own)
		kms_close(t->kms);
	if (t->desc)
		descriptor_domain_free(t->desc);
	free(t->desc);
}

static int kms_refused(struct turn *t, const char *what, const char *key, const struct kms_err *err)
{
	/* A key that never worked here may be a mistake of the configuration; now it is the rights that are missing. */
	bool rights = strncmp(err->code, "AccessDenied", strlen("AccessDenied")) == 0;
	char text[600];

	kms_err_text(text, sizeof(text), err);
	int code = rights ? EXIT_DENIED : err->status == KMS_OK ? EXIT_FAILED : kms_exitcode(err->status);

	return refuse(t, code, "%s '%.300s': %s%s", what, key, text,
	    rights ? " (this host needs kms:Decrypt and kms:GenerateDataKey on that key)" : "");
}

/* A copy of the descriptor, which must be the one that the rotator saw. */
static int take_descriptor(struct turn *t, uint64_t seq)
{
	const struct fs *fs = t->domain->fs;
	char why[STORE_WHY];
	int r;

	if (fs->params.readonly || fs->store->readonly)
		return refuse(t, EXIT_FAILED, "the store is mounted read-only");
	if (store_may_change(fs->store, why))
		return refuse(t, EXIT_FAILED, "%s", why);
	r = atomic_load(&t->domain->ready) ? domain_descriptor(t->domain, &t->desc) : -EIO;
	if (r == -EIO)
		return refuse(t, EXIT_FAILED, "key domain %u has not been opened yet", (unsigned)t->domain->index);
	if (r)
		return refuse(t, EXIT_FAILED, "%s", strerror(-r));
	if (t->desc->seq != seq)
		return refuse(t, EXIT_ALREADY, "the domain's descriptor changed meanwhile");
	return 0;
}

static int must_be_open(struct turn *t)
{
	struct lease_status ls;

	if (domain_is_open(t->domain))
		return 0;
	domain_status(t->domain, &ls);
	return refuse(t, ls.answer == KMS_OK ? EXIT_FAILED : kms_exitcode(ls.answer), "key domain %u is locked: %s",
	    (unsigned)t->domain->index, ls.reason);
}

/* ---- begin */

static bool same_key(const struct kms *kms, const struct descriptor_slot *a, const struct descriptor_slot *b)
{
	return a->provider == b->provider && kms_same_key(kms, a->key, b->key);
}

/* While one is under way its files are under two keys already: it may go on to its end or turn round, but a third key
 * would take the place of one that is still needed. */
static int check_third(struct turn *t, const struct descriptor_slot *fresh)
{
	const struct descriptor_slot *rules = descriptor_ruling_slot(t->desc), *other = descriptor_other_slot(t->desc);
	bool again;

	if (!rules || !other)
		return 0;
	again = same_key(t->kms, rules, fresh);
	if (again && !same_key(t->kms, other, fresh))
		return refuse(t, EXIT_ALREADY, "the rotation to key '%.300s' has begun already", rules->key);
	if (again || same_key(t->kms, other, fresh))
		return 0;
	return refuse(t, EXIT_ALREADY,
	    "a rotation from key '%.300s' to '%.300s' is under way: bring it to its end, or back, before another key",
	    other->key, rules->key);
}

/* With the mount's own credentials. */
static int open_kms(struct turn *t, const struct descriptor_slot *fresh)
{
	const char *provider = kms_provider_to_name(fresh->provider);
	struct kms_err err = { 0 };

	t->kms = domain_service_of(t->domain, fresh->key);
	if (t->kms && kms_provider_number(t->kms) == fresh->provider)
		return 0;
	if (domain_kms(t->domain->fs, provider, fresh->key, &t->kms, &err)) {
		t->kms = NULL;
		if (err.status == KMS_OK)
			err.status = KMS_CONFIG;
		return kms_refused(t, "cannot use key", fresh->key, &err);
	}
	t->own = true;
	if (kms_same_key(t->kms, fresh->key, kms_key(t->kms)))
		return 0;
	return refuse(t, EXIT_CONFIG, "'%.300s' is no full name of a key: it stands for '%.300s'", fresh->key,
	    kms_key(t->kms));
}

static int place_slot(struct turn *t, const struct reseal_wish *wish)
{
	const struct descriptor_slot *rules = descriptor_ruling_slot(t->desc);
	CLEANUP_FREE struct descriptor_slot *fresh = malloc(sizeof(*fresh));
	int r = fresh && rules ? 0 : -ENOMEM;

	if (!r) {
		*fresh = wish->slot;
		fresh->context = rules->context;
		if (wish->have_extra)
			r = descriptor_add_generation(t->desc, &wish->extra, &fresh->context);
	}
	if (!r) {
		t->out->generation = fresh->context;
		r = descriptor_put_slot(t->desc, fresh);
	}
	return r ? refuse(t, EXIT_FAILED, "the descriptor takes no other slot: %s", strerror(-r)) : 0;
}

static int prove(struct turn *t)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(t->desc);
	struct kms_err err = { 0 };

	err.status = lease_prove(
	    domain_lease(t->domain), t->kms, slot, descriptor_generation(t->desc, slot->context), &err);
	if (err.status == KMS_OK)
		return 0;
	return kms_refused(t, "this host cannot use what was sealed under", slot->key, &err);
}

/* On the disk, then in use. */
static int put_to_use(struct turn *t, bool keep_before)
{
	struct domain *d = t->domain;
	char why[STORE_WHY];
	uint64_t seq;
	int r = domain_put(d, t->desc, why);

	if (r)
		return refuse(t, EXIT_FAILED, "%s", why);
	seq = t->desc->seq;
	r = domain_rekey(d, t->desc, t->kms, keep_before);
	if (r)
		return refuse(t, EXIT_FAILED, "the descriptor was written, but it is not in use: %s", strerror(-r));
	t->desc = NULL;
	t->own = false;
	t->out->seq = seq;
	return 0;
}

static void tell(const struct domain *d, const char *what, const char *from, const char *to)
{
	char id[2 * CONTEXT_ID + 1], reason[2 * DESCRIPTOR_KEY_MAX + 64];

	bytes_hex(id, d->ids.domain, CONTEXT_ID);
	if (from)
		log_info("%s: domain %s from '%s' to '%s'", what, id, from, to);
	else
		log_info("%s: domain %s is under '%s'", what, id, to);
	(void)snprintf(reason, sizeof(reason), "%s%s%s '%s', by the administrator", from ? "from '" : "under",
	    from ? from : "", from ? "' to" : "", to);
	audit_state(d->fs->audit, &d->ids, what, reason);
}

static bool stopped(struct turn *t, const struct reseal_wish *wish)
{
	return wish->stop && atomic_load(wish->stop) && refuse(t, EXIT_FAILED, "the mount is ending");
}

/* The very slot that rules: a rotation begun before this mount goes on. */
static bool goes_on(const struct turn *t, const struct descriptor_slot *fresh)
{
	const struct descriptor_slot *rules = descriptor_ruling_slot(t->desc);

	return rules && descriptor_other_slot(t->desc) && same_key(t->kms, rules, fresh) &&
	    rules->blob_len == fresh->blob_len && bytes_equal(rules->blob, fresh->blob, rules->blob_len);
}

/* Whoever took a key for a new file before this one ruled must have made it before anybody looks for files. */
static void wait_births(struct turn *t, const struct reseal_wish *wish)
{
	if (t->out->code == EXIT_OK && reseal_births_wait(BIRTHS_MS, wish->stop))
		(void)refuse(t, EXIT_FAILED,
		    "it has begun, but a file that is being made under the key before does not get done");
}

/* Nothing is written; but the mount may not have the new key yet. */
static void rejoin(struct turn *t, const struct reseal_wish *wish)
{
	uint64_t seq = t->desc->seq;

	t->out->generation = descriptor_ruling_slot(t->desc)->context;
	if (t->own && !prove(t)) {
		int r = domain_rekey(t->domain, t->desc, t->kms, true);

		if (r)
			(void)refuse(t, EXIT_FAILED, "the key is not in use: %s", strerror(-r));
		else
			tell(t->domain, "rotation goes on", NULL, kms_key(t->kms));
		if (r == 0)
			t->desc = NULL;
		t->own = r != 0;
	}
	wait_births(t, wish);
	if (t->out->code)
		return;
	t->out->seq = seq;
	(void)snprintf(t->out->message, sizeof(t->out->message), "begun");
}

void reseal_begin(struct domain *d, const struct reseal_wish *wish, struct reseal_done *out)
{
	struct turn t = { .domain = d, .out = out };
	CLEANUP_FREE char *from = NULL;

	memset(out, 0, sizeof(*out));
	if (!take_descriptor(&t, wish->seq) && !must_be_open(&t) && !open_kms(&t, &wish->slot) &&
	    !goes_on(&t, &wish->slot) && !check_third(&t, &wish->slot)) {
		const struct descriptor_slot *rules = descriptor_ruling_slot(t.desc);

		from = rules ? strdup(rules->key) : NULL;
	}
	if (out->code == EXIT_OK && goes_on(&t, &wish->slot))
		rejoin(&t, wish);
	else if (out->code == EXIT_OK && !stopped(&t, wish) && !place_slot(&t, wish) && !prove(&t) &&
	    !stopped(&t, wish) && !put_to_use(&t, true)) {
		tell(d, "rotation begun", from ? from : "?", wish->slot.key);
		(void)snprintf(out->message, sizeof(out->message), "begun");
		wait_births(&t, wish);
	}
	end(&t);
}

/* ---- finish */

/* The old slot goes; what rules must be a key that this mount has. */
static int drop_old(struct turn *t)
{
	const char *key;

	if (descriptor_finish(t->desc, io_unix_time()))
		return refuse(t, EXIT_ALREADY, "no rotation is under way");
	key = descriptor_ruling_slot(t->desc)->key;
	t->kms = domain_service_of(t->domain, key);
	if (t->kms)
		return 0;
	return refuse(t, EXIT_FAILED, "this mount does not use key '%.300s': set kms.key to it, and remount", key);
}

void reseal_finish(struct domain *d, uint64_t seq, struct reseal_done *out)
{
	struct turn t = { .domain = d, .out = out };

	memset(out, 0, sizeof(*out));
	if (!take_descriptor(&t, seq) && !drop_old(&t) && !put_to_use(&t, false)) {
		tell(d, "rotation finished", NULL, kms_key(t.kms));
		(void)snprintf(out->message, sizeof(out->message), "finished");
	}
	end(&t);
}
