/* Whether the key still works: the canary, and the domain secret itself when the domain opens (again).
 *
 * One thread makes these calls and may hang in them; the lease thread does not wait for it. A lease is counted from
 * when a call was sent, because the key may have been disabled while the answer travelled. Only a denial locks;
 * whatever else goes wrong merely does not renew. */
#include <stdio.h>

#include "bytes.h"
#include "io.h"
#include "lease_internal.h"
#include "log.h"
#include "secret.h"

/* The canary is not asked more often than this for the sake of single files. */
#define SUSPECT_MS 1000u

static enum kms_status fail(struct kms_err *err, const char *code, const char *message)
{
	memset(err, 0, sizeof(*err));
	err->status = KMS_BAD_BLOB;
	(void)snprintf(err->code, sizeof(err->code), "%s", code);
	(void)snprintf(err->message, sizeof(err->message), "%s", message);
	return KMS_BAD_BLOB;
}

void lease_domain_wipe(struct lease_domain *d)
{
	name_free(d->names);
	secret_free(d->keys);
	d->names = NULL;
	d->keys = NULL;
}

/* From the domain secret to working keys. Nothing but the commitment is used before the commitment was compared. */
static enum kms_status derive(const struct lease *l, const struct descriptor_domain *desc, const uint8_t *secret,
    struct lease_domain *out, struct kms_err *err)
{
	out->keys = secret_alloc(sizeof(*out->keys));
	if (!out->keys || kdf_domain(out->keys, secret, &l->ids))
		return fail(err, "OutOfMemory", "cannot derive the domain's keys");
	if (!bytes_equal(out->keys->commit, desc->commit, sizeof(desc->commit)))
		return fail(err, "CommitmentMismatch", "the key unsealed is not the one this store commits to");
	if (descriptor_domain_verify(desc, out->keys))
		return fail(err, "DescriptorMac", "the domain's descriptor does not authenticate");
	if (name_open(&out->names, l->mode, out->keys, &l->ids))
		return fail(err, "OutOfMemory", "cannot prepare the domain's name keys");
	return KMS_OK;
}

enum kms_status lease_ask_slot(const struct lease *l, const struct lease_ring *ring, struct kms *kms,
    const struct descriptor_slot *slot, const struct context_extra *extra, uint64_t deadline, struct context *context,
    struct lease_domain *out, struct kms_err *err)
{
	uint8_t *secret = secret_alloc(KDF_SECRET);
	enum kms_status status;
	struct kms_used used;

	if (!secret || !extra) {
		secret_free(secret);
		return fail(
		    err, "Descriptor", extra ? "out of memory" : "the slot's context generation is not recorded");
	}
	context_build(context, out ? CONTEXT_DOMAIN : CONTEXT_PROBE, &l->ids, NULL, extra);
	status = kms_decrypt(kms, context, out ? slot->blob : slot->probe, out ? slot->blob_len : slot->probe_len,
	    deadline, secret, &used, err);
	if (status == KMS_OK && out) {
		status = derive(l, ring->desc, secret, out, err);
		if (status != KMS_OK)
			lease_domain_wipe(out);
	}
	secret_free(secret);
	return status;
}

/* One call for one slot. out: NULL asks with the probe blob, whose plaintext nobody wants. */
static enum kms_status ask_slot(struct lease *l, struct lease_ring *ring, const struct descriptor_slot *slot,
    struct lease_domain *out, struct kms_err *err)
{
	struct kms *kms = lease_ring_serves(ring, slot);

	if (!kms)
		return fail(err, "Descriptor", "the slot's key is not configured");
	return lease_ask_slot(l, ring, kms, slot, descriptor_generation(ring->desc, slot->context), kms_deadline(kms),
	    l->context, out, err);
}

static void opened_by(struct lease_ring *ring, const struct descriptor_slot *slot)
{
	char text[900];

	if (slot == atomic_load(&ring->opened_by))
		return;
	atomic_store(&ring->opened_by, slot);
	if (lease_ring_missing(ring)) {
		lease_ring_advise(ring, text, sizeof(text));
		log_warn("%s", text);
	} else if (slot != descriptor_ruling_slot(ring->desc)) {
		log_warn("the domain's ruling slot does not open it, the other one does: a rotation under way, or a "
		         "forged descriptor");
	}
}

/* May the other slot answer in place of this one, which was found damaged? It opens the domain whatever its key; but no
 * other key's good answer is one of the key that opened it, and renews its lease. */
static bool may_stand_in(
    const struct lease_ring *ring, const struct descriptor_slot *slot, const struct descriptor_slot *other, bool canary)
{
	const struct kms *kms = other ? lease_ring_serves(ring, other) : NULL;

	return kms && (!canary || kms == lease_ring_serves(ring, slot));
}

/* The slot that counts. What is damaged, or not its key's, may be so by a forger's hand: then the other one may answer
 * as well, while a rotation is under way (both filled). A denial stays a denial. */
static enum kms_status ask(
    struct lease *l, struct lease_ring *ring, struct lease_domain *out, uint64_t *sent, struct kms_err *err)
{
	const struct descriptor_slot *slot = lease_ring_slot(ring), *other;
	enum kms_status status, second;
	struct kms_err err2 = { 0 };

	*sent = lease_clock();
	if (!slot)
		return fail(err, "Descriptor", "no slot of the domain's descriptor is filled");
	other = lease_ring_other(ring, slot);
	status = ask_slot(l, ring, slot, out, err);
	if (status == KMS_OK && out)
		opened_by(ring, slot);
	if (status != KMS_BAD_BLOB || !may_stand_in(ring, slot, other, !out))
		return status;
	*sent = lease_clock();
	second = ask_slot(l, ring, other, out, &err2);
	if (second == KMS_OK && out)
		opened_by(ring, other);
	if (second == KMS_BAD_BLOB)
		return status;
	*err = err2;
	return second;
}

enum kms_status lease_domain_open(struct lease *l, struct lease_domain *out, uint64_t *sent, struct kms_err *err)
{
	return ask(l, atomic_load(&l->ring), out, sent, err);
}

void lease_suspect(struct lease *l)
{
	LOCK_SCOPE(&l->lock);
	uint64_t due = l->last_probe + SUSPECT_MS;

	if (l->next_probe <= due)
		return;
	l->next_probe = due;
	(void)pthread_cond_broadcast(&l->changed);
}

/* lock held; given up during the calls. Two good answers came: unwrap the domain secret anew. */
static void reopen(struct lease *l)
{
	struct lease_domain domain = { 0 };
	uint64_t sent;
	struct kms_err err = { 0 };
	enum kms_status status;

	lease_set_state(l, LEASE_OPENING);
	(void)pthread_mutex_unlock(&l->lock);
	status = lease_domain_open(l, &domain, &sent, &err);
	(void)pthread_mutex_lock(&l->lock);
	l->good = 0;
	if (status == KMS_OK && !l->by_admin && !l->stop && lease_clock() < sent + l->times.lease_ms) {
		l->domain = domain;
		l->hurry = l->withdrawn = false;
		l->before_until = lease_clock() + l->times.lease_ms;
		lease_keys_accept(&l->keys);
		lease_renew(l, sent);
		l->next_probe = lease_clock() + l->times.probe_ms;
		l->opened_pending = true;
		lease_set_state(l, LEASE_OPEN);
		return;
	}
	lease_domain_wipe(&domain);
	l->hurry = false;
	if (status != KMS_OK && !l->by_admin) {
		kms_err_text(l->reason, sizeof(l->reason), &err);
		log_warn("cannot open: %s", l->reason);
	}
	lease_set_state(l, LEASE_LOCKED);
}

/* lock held. */
static void answered_well(struct lease *l, uint64_t sent)
{
	if (lease_state_of(l) == LEASE_OPEN) {
		if (l->trouble[0])
			log_info("the KMS answers again; the lease is renewed");
		if (!l->lock_wanted)
			lease_renew(l, sent);
		return;
	}
	if (++l->good >= 2)
		reopen(l);
	else if (l->hurry)
		l->next_probe = 0;
}

/* lock held. */
static void answered_badly(struct lease *l, enum kms_status status, const struct kms_err *err)
{
	char text[sizeof(l->trouble)];

	kms_err_text(text, sizeof(text), err);
	l->probe_failures++;
	l->good = 0;
	l->hurry = false;
	if (lease_state_of(l) != LEASE_OPEN) {
		if (strcmp(l->reason, text) != 0)
			log_info("still locked: %s", text);
		memcpy(l->reason, text, sizeof(l->reason));
		return;
	}
	/* Once per reason, not once per probe. */
	if (strcmp(l->trouble, text) != 0)
		log_at(status == KMS_BUSY || status == KMS_DOWN ? LOG_LEVEL_WARN : LOG_LEVEL_ERR,
		    "the lease was not renewed: %s", text);
	memcpy(l->trouble, text, sizeof(l->trouble));
	if (status == KMS_DENIED)
		lease_want_lock(l, text);
}

/* lock held. Nothing is asked while the administrator keeps the domain locked, nor during the lock sequence. */
static bool probing(const struct lease *l)
{
	return lease_state_of(l) == LEASE_OPEN ? !l->lock_wanted : !l->busy && !l->by_admin;
}

/* ---- the key before ---- */

/* lock held. Has the drain thread give up what this key opened, unless nothing came since it last did. */
static void withdraw(struct lease *l, const struct lease_ring *ring)
{
	if (l->withdrawn && !lease_keys_under(&l->keys, ring))
		return;
	l->withdraw = l->withdrawn = true;
	(void)pthread_cond_broadcast(&l->changed);
}

/* lock held. */
static void before_answered(
    struct lease *l, const struct lease_ring *ring, uint64_t sent, enum kms_status status, const struct kms_err *err)
{
	const char *key = kms_key(lease_ring_before(ring));
	char text[sizeof(l->before_trouble)] = "";

	if (status == KMS_OK) {
		if (l->before_trouble[0])
			log_info("key '%s', which a rotation is leaving, answers again", key);
		l->before_trouble[0] = '\0';
		l->before_until = sent + l->times.lease_ms;
		l->withdrawn = false;
		return;
	}
	kms_err_text(text, sizeof(text), err);
	if (strcmp(l->before_trouble, text) != 0)
		log_at(status == KMS_BUSY || status == KMS_DOWN ? LOG_LEVEL_WARN : LOG_LEVEL_ERR,
		    "key '%s', which a rotation is leaving, does not answer: %s", key, text);
	memcpy(l->before_trouble, text, sizeof(text));
	if (status == KMS_DENIED || lease_clock() >= l->before_until)
		withdraw(l, ring);
}

/* lock held; given up during the call. Files may still be under the other key: it has a canary of its own, whose answer
 * does not keep the next one of the key of now waiting. */
static void probe_before(struct lease *l, struct lease_ring *ring)
{
	const struct descriptor_slot *slot = lease_ring_slot(ring), *other = slot ? lease_ring_other(ring, slot) : NULL;
	struct kms *kms = lease_ring_before(ring);
	struct kms_err err = { 0 };
	uint64_t sent = lease_clock(), deadline, left;
	enum kms_status status;

	if (!other || !kms || lease_ring_serves(ring, other) != kms || l->stop)
		return;
	left = l->next_probe > sent ? l->next_probe - sent : 0;
	(void)pthread_mutex_unlock(&l->lock);
	deadline = kms_deadline(kms);
	if (deadline > io_boot_ms() + left)
		deadline = io_boot_ms() + left;
	status = lease_ask_slot(
	    l, ring, kms, other, descriptor_generation(ring->desc, other->context), deadline, l->context, NULL, &err);
	(void)pthread_mutex_lock(&l->lock);
	if (atomic_load(&l->ring) == ring && lease_state_of(l) == LEASE_OPEN && !l->lock_wanted)
		before_answered(l, ring, sent, status, &err);
}

/* lock held; given up during the call. */
static void probe(struct lease *l)
{
	struct lease_ring *ring = atomic_load(&l->ring);
	uint64_t sent, locks = l->locks;
	struct kms_err err = { 0 };
	enum kms_status status;

	l->last_probe = lease_clock();
	l->next_probe = l->last_probe + l->times.probe_ms;
	l->probes++;
	(void)pthread_mutex_unlock(&l->lock);
	status = ask(l, ring, NULL, &sent, &err);
	(void)pthread_mutex_lock(&l->lock);
	/* An answer to a question from before a lock, or about another key, says nothing about now. */
	if (!probing(l) || l->locks != locks || atomic_load(&l->ring) != ring)
		return;
	l->answer = status;
	if (status == KMS_OK)
		answered_well(l, sent);
	else
		answered_badly(l, status, &err);
	if (lease_state_of(l) == LEASE_OPEN && !l->lock_wanted && atomic_load(&l->ring) == ring)
		probe_before(l, ring);
}

void *lease_probe_main(void *arg)
{
	struct lease *l = arg;

	log_label(l->params.label);
	LOCK_SCOPE(&l->lock);
	while (!l->stop) {
		if (probing(l) && lease_clock() >= l->next_probe)
			probe(l);
		else
			lease_sleep(&l->changed, &l->lock, probing(l) ? l->next_probe : UINT64_MAX);
	}
	return NULL;
}
