/* Which key service serves what: the one or two keys of a domain, told apart by the names that slots give them.
 *
 * Names are not authenticated. They select among the key services that were configured, or named by the administrator,
 * and decide nothing: each service is asked with its own key only. A ring never changes; lease_rekey() puts another in
 * its place, and the old ones stay, so whoever loaded one may finish with it. */
#include <stdio.h>

#include "bytes.h"
#include "lease_internal.h"

/* The service whose key the descriptor's slot names, or NULL. */
static struct kms *named(const struct lease_ring *r, const struct descriptor_slot *slot)
{
	for (size_t i = 0; i < 2; i++)
		if (r->kms[i] && slot->seq > 0 && slot->provider == kms_provider_number(r->kms[i]) &&
		    kms_same_key(r->kms[i], slot->key, kms_key(r->kms[i])))
			return r->kms[i];
	return NULL;
}

/* Is one of the slots under one of our keys? If not, names say nothing: the first key is asked with whatever there is.
 */
static bool at_home(const struct lease_ring *r)
{
	return named(r, &r->desc->slot[0]) || named(r, &r->desc->slot[1]);
}

struct kms *lease_ring_serves(const struct lease_ring *r, const struct descriptor_slot *slot)
{
	return at_home(r) ? named(r, slot) : r->kms[0];
}

const struct descriptor_slot *lease_ring_other(const struct lease_ring *r, const struct descriptor_slot *slot)
{
	const struct descriptor_slot *other = &r->desc->slot[slot == &r->desc->slot[0]];

	return other->seq > 0 ? other : NULL;
}

/* What to begin with: the slot that rules, unless only the other one is under a key of ours. */
static const struct descriptor_slot *first_choice(const struct lease_ring *r)
{
	const struct descriptor_slot *rules = descriptor_ruling_slot(r->desc), *other;

	if (!rules || lease_ring_serves(r, rules))
		return rules;
	other = lease_ring_other(r, rules);
	return other && named(r, other) ? other : rules;
}

const struct descriptor_slot *lease_ring_slot(const struct lease_ring *r)
{
	const struct descriptor_slot *proven = atomic_load(&r->opened_by);

	return proven ? proven : first_choice(r);
}

struct kms *lease_ring_now(const struct lease_ring *r)
{
	const struct descriptor_slot *slot = lease_ring_slot(r);
	struct kms *kms = slot ? lease_ring_serves(r, slot) : NULL;

	return kms ? kms : r->kms[0];
}

struct kms *lease_ring_before(const struct lease_ring *r)
{
	return lease_ring_now(r) == r->kms[0] ? r->kms[1] : r->kms[0];
}

static void know(struct lease_ring *r, const char *key, struct kms *kms)
{
	struct lease_known *k = &r->known[r->nknown++];

	kms_key_hash(k->hash, key);
	k->kms = kms;
	k->key = key;
}

/* By the services' own names first: a slot may spell another one of the same key (a replica's). */
static void know_all(struct lease_ring *r)
{
	for (size_t i = 0; i < 2; i++)
		if (r->kms[i])
			know(r, kms_key(r->kms[i]), r->kms[i]);
	for (size_t i = 0; i < 2; i++)
		if (r->desc->slot[i].seq > 0)
			know(r, r->desc->slot[i].key, lease_ring_serves(r, &r->desc->slot[i]));
}

static const struct lease_known *find(const struct lease_ring *r, const uint8_t hash[static 8])
{
	for (size_t i = 0; i < r->nknown; i++)
		if (bytes_equal(r->known[i].hash, hash, sizeof(r->known[i].hash)))
			return &r->known[i];
	return NULL;
}

struct kms *lease_ring_kms(const struct lease_ring *r, const uint8_t hash[static 8])
{
	const struct lease_known *k = find(r, hash);

	return k ? k->kms : lease_ring_now(r);
}

/* Where the second key is written down. */
static const char *section_of(const struct lease_ring *r)
{
	const char *provider = kms_provider_name(r->kms[0]);

	return strcmp(provider, "vault") == 0 || strcmp(provider, "pkcs11") == 0 ? provider : "kms";
}

void lease_ring_explain(const struct lease_ring *r, const uint8_t hash[static 8], char *out, size_t size)
{
	const struct lease_known *k = find(r, hash);

	if (k)
		(void)snprintf(out, size, "it is sealed under key '%.200s', which is not configured: set %s.previous",
		    k->key, section_of(r));
	else
		(void)snprintf(out, size,
		    "it names another key than '%.120s': 'byokfsctl keys' tells which, set %s.previous to it",
		    kms_key(r->kms[0]), section_of(r));
}

bool lease_ring_lists(const struct lease_ring *r, const uint8_t hash[static 8])
{
	return find(r, hash) != NULL;
}

const struct descriptor_slot *lease_ring_missing(const struct lease_ring *r)
{
	if (!at_home(r) || !descriptor_other_slot(r->desc))
		return NULL;
	for (size_t i = 0; i < 2; i++)
		if (!named(r, &r->desc->slot[i]))
			return &r->desc->slot[i];
	return NULL;
}

void lease_ring_advise(const struct lease_ring *r, char *out, size_t size)
{
	const struct descriptor_slot *missing = lease_ring_missing(r);
	const char *s = section_of(r);

	if (missing == descriptor_ruling_slot(r->desc))
		(void)snprintf(out, size,
		    "a rotation to key '%.200s' is under way: files that are only under it give EIO; set %s.key to it "
		    "and %s.previous to '%.200s'",
		    missing->key, s, s, kms_key(lease_ring_now(r)));
	else
		(void)snprintf(out, size,
		    "a rotation from key '%.200s' is under way: files that are still under it give EIO; set "
		    "%s.previous to it",
		    missing->key, s);
}

struct lease_ring *lease_ring_make(const struct descriptor_domain *desc, struct kms *one, struct kms *two)
{
	struct lease_ring *r = calloc(1, sizeof(*r));
	const struct descriptor_slot *rules;

	if (!r)
		return NULL;
	r->desc = calloc(1, sizeof(*r->desc));
	if (!r->desc || descriptor_domain_copy(r->desc, desc)) {
		free(r->desc);
		free(r);
		return NULL;
	}
	r->kms[0] = one;
	r->kms[1] = two;
	rules = descriptor_ruling_slot(r->desc);
	if (rules && two && named(r, rules) == two) {
		r->kms[0] = two;
		r->kms[1] = one;
	}
	know_all(r);
	return r;
}

void lease_ring_free(struct lease_ring *r)
{
	while (r) {
		struct lease_ring *older = r->older;

		descriptor_domain_free(r->desc);
		free(r->desc);
		free(r);
		r = older;
	}
}
