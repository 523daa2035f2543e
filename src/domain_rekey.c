/* domain_rekey.c — the keys of a domain while a rotation is under way: which ones it may use, and how one takes the
 * other's place.
 *
 * Hides that the name of a key in the store is no permission to use it. A nested domain's key comes from its own
 * descriptor, whose commitment binds it; any second key must be one that the configuration names. */
#include <errno.h>
#include <string.h>

#include "domain_internal.h"
#include "file.h"
#include "fs.h"
#include "log.h"

/* ---- what was opened for a domain */

struct domain_service {
	struct domain_service *next;
	struct kms *kms;
};

int domain_own(struct domain *d, struct kms *kms)
{
	struct domain_service *s = malloc(sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->kms = kms;
	s->next = d->services;
	d->services = s;
	return 0;
}

void domain_disown(struct domain *d, const struct kms *kms)
{
	struct domain_service **at = &d->services;

	while (*at && (*at)->kms != kms)
		at = &(*at)->next;
	if (*at) {
		struct domain_service *gone = *at;

		*at = gone->next;
		free(gone);
	}
}

void domain_close_services(struct domain *d)
{
	while (d->services) {
		struct domain_service *s = d->services;

		d->services = s->next;
		kms_close(s->kms);
		free(s);
	}
}

static bool owns(const struct domain *d, const struct kms *kms)
{
	const struct domain_service *s = d->services;

	while (s && s->kms != kms)
		s = s->next;
	return s;
}

/* ---- which second key */

static bool is_named(const struct kms *kms, const struct descriptor_slot *slot)
{
	return slot->seq > 0 && slot->provider == kms_provider_number(kms) &&
	    kms_same_key(kms, slot->key, kms_key(kms));
}

static bool same_service(const struct kms *a, const struct kms *b)
{
	return kms_provider_number(a) == kms_provider_number(b) && kms_same_key(a, kms_key(a), kms_key(b));
}

/* One that the other slot names; without a rotation under way the one listed as previous, and for the store's own
 * domain the two names are a set. */
struct kms *domain_second(struct fs *fs, const struct descriptor_domain *desc, const struct kms *own)
{
	struct domains *t = fs->domains;
	const struct descriptor_slot *rules = descriptor_ruling_slot(desc);
	struct kms *previous = atomic_load(&t->previous), *of[] = { previous, atomic_load(&t->key) };
	bool rotating = descriptor_other_slot(desc);

	for (size_t i = 0; i < 2; i++) {
		struct kms *kms = of[i];

		if (!kms || same_service(kms, own))
			continue;
		if (rotating && (is_named(kms, &desc->slot[0]) || is_named(kms, &desc->slot[1])))
			return kms;
		if (!rotating && rules && (kms == previous || desc->index == 0))
			return kms;
	}
	return NULL;
}

void domains_keys(struct fs *fs, struct kms *key, struct kms *previous)
{
	struct domains *t = fs->domains;

	atomic_store(&t->key, key);
	atomic_store(&t->previous, previous);
}

/* ---- for those who rotate */

static struct descriptor_domain *copy_of(const struct descriptor_domain *d)
{
	struct descriptor_domain *copy = calloc(1, sizeof(*copy));

	if (copy && descriptor_domain_copy(copy, d))
		free(steal_ptr(&copy));
	return copy;
}

int domain_descriptor(struct domain *d, struct descriptor_domain **out)
{
	LOCK_SCOPE(&d->lock);
	if (!d->descriptor)
		return -EIO;
	*out = copy_of(d->descriptor);
	return *out ? 0 : -ENOMEM;
}

/* A lost copy of a descriptor that was proved right is written again, once, unless both were written since. */
void domain_restore(struct domain *d)
{
	struct descriptor_domain *desc = NULL;
	int r;

	LOCK_SCOPE(&d->writing);
	r = d->restored ? 0 : domain_descriptor(d, &desc);
	d->restored = true;
	if (desc) {
		r = store_restore_domain(d->fs->store, desc);
		descriptor_domain_free(desc);
		free(desc);
	}
	if (r)
		log_warn("cannot restore a copy of the domain's descriptor: %s", strerror(-r));
}

int domain_put(struct domain *d, struct descriptor_domain *desc, char *why)
{
	LOCK_SCOPE(&d->writing);
	d->restored = true;
	return store_put_domain(d->fs->store, desc, why);
}

struct kms *domain_service_of(const struct domain *d, const char *key)
{
	struct kms *of[] = { atomic_load(&d->kms), atomic_load(&d->previous) };

	for (size_t i = 0; i < 2; i++)
		if (of[i] && kms_same_key(of[i], key, kms_key(of[i])))
			return of[i];
	return NULL;
}

/* lock held. The store reads its own copy of domain 0's. */
static void take_descriptor(struct domain *d, struct descriptor_domain *desc)
{
	struct descriptor_domain *old = d->descriptor;

	descriptor_domain_free(old);
	*old = *desc;
	free(desc);
}

/* lock held. */
static int rekey(struct domain *d, struct descriptor_domain *desc, struct kms *now, struct kms *before)
{
	int r = lease_rekey(atomic_load(&d->lease), desc, now, before);

	if (r)
		return r;
	take_descriptor(d, desc);
	atomic_store(&d->kms, now);
	atomic_store(&d->previous, before);
	return 0;
}

int domain_rekey(struct domain *d, struct descriptor_domain *desc, struct kms *now, bool keep_before)
{
	LOCK_SCOPE(&d->lock);
	struct lease *l = atomic_load(&d->lease);
	struct kms *had = lease_kms(l, false), *before = NULL;
	bool known = now == had || now == lease_kms(l, true) || owns(d, now);
	int r = known ? 0 : domain_own(d, now);

	if (keep_before)
		before = now == had ? lease_kms(l, true) : had;
	if (!r)
		r = rekey(d, desc, now, before);
	if (r && !known)
		domain_disown(d, now);
	return r;
}

/* ---- the configuration was read again */

/* lock held. Is a key needed that the configuration lists no more, or another than it lists now? */
static bool in_use(const struct domain *d, const struct kms *kms)
{
	return kms && descriptor_other_slot(d->descriptor) &&
	    (is_named(kms, &d->descriptor->slot[0]) || is_named(kms, &d->descriptor->slot[1]));
}

static bool configured(struct domains *t, const struct kms *kms)
{
	const struct kms *previous = atomic_load(&t->previous);

	return same_service(atomic_load(&t->key), kms) || (previous && same_service(previous, kms));
}

static bool reconsider(void *arg, struct domain *d)
{
	int *result = arg;

	LOCK_SCOPE(&d->lock);
	struct lease *l = atomic_load(&d->lease);

	if (!l || !d->descriptor)
		return true; /* it will look when it opens */
	struct kms *now = lease_kms(l, false), *before = lease_kms(l, true);
	struct kms *wanted = domain_second(d->fs, d->descriptor, now);
	struct descriptor_domain *desc;

	if (d->index == 0 && !configured(d->fs->domains, now)) {
		*result = -EBUSY;
		return true;
	}
	if (wanted == before || (wanted && before && same_service(wanted, before)))
		return true;
	if (in_use(d, before)) {
		*result = -EBUSY;
		return true;
	}
	desc = copy_of(d->descriptor);
	if (desc && rekey(d, desc, now, wanted) == 0)
		return true;
	if (desc)
		descriptor_domain_free(desc);
	free(desc);
	log_err("out of memory: the domain keeps the previous key it had");
	*result = -EBUSY;
	return true;
}

int domains_previous(struct fs *fs, struct kms *key, struct kms *previous)
{
	struct domain *first = fs->first;
	int r = 0;

	if (previous && previous != atomic_load(&first->kms) && previous != atomic_load(&first->previous)) {
		LOCK_SCOPE(&first->lock);
		r = domain_own(first, previous);
	}
	if (r)
		return r;
	domains_keys(fs, key, previous);
	domains_each(fs, reconsider, &r);
	return r;
}

/* ---- which of a file's two slots */

int domain_peek(const struct domain *d, int fd, struct header_ident *ident, struct header_slot *slot)
{
	const struct lease *l = domain_lease(d);
	struct header_slot other;
	int r = file_peek(fd, ident, slot);

	if (r || !l || lease_knows(l, slot) || !lease_rotating(l))
		return r;
	if (file_peek_other(fd, ident, &other) == 0 && lease_knows(l, &other))
		*slot = other;
	return 0;
}

int domain_peek_loaded(const struct domain *d, struct file *f, struct header_ident *ident, struct header_slot *slot)
{
	int fd = file_hold(f), r;

	if (fd < 0)
		return fd;
	r = domain_peek(d, fd, ident, slot);
	file_release(f);
	return r;
}
