/* SIGHUP: the configuration anew, from where it came from. All of it must be good, and the key a key the store is
 * under; else one line says why and nothing changes. What can only change with a mount is named and waits for the next
 * one.
 */
#include <errno.h>
#include <stdio.h>

#include "audit.h"
#include "log.h"
#include "params.h"
#include "service.h"

/* What becomes of the key that a rotation is leaving. */
enum previous { PREVIOUS_SAME, PREVIOUS_TAKEN, PREVIOUS_LATER };

struct changes {
	char now[400], later[400];
	bool kms; /* now: of the key service, which nested domains have one of their own of */
	enum previous previous;
};

static void add(char *list, size_t size, const char *name)
{
	size_t n = strlen(list);

	(void)snprintf(list + n, size - n, "%s%s", n ? ", " : "", name);
}

static bool is_one(const char *name, const char *const *list)
{
	for (; *list; list++)
		if (strcmp(name, *list) == 0)
			return true;
	return false;
}

static void sort(void *arg, const char *name)
{
	static const char *const taken[] = { "kms.key", "vault.key", "pkcs11.key", "kms.region", "kms.endpoint",
		"kms.replicas", "kms.failover", "kms.failover_after", NULL };
	static const char *const others[] = { "alert.key_age_days", NULL };
	static const char *const previous[] = { "kms.previous", "vault.previous", "pkcs11.previous", NULL };
	struct changes *c = arg;

	c->kms = c->kms || is_one(name, taken);
	if (is_one(name, taken) || is_one(name, others) || (is_one(name, previous) && c->previous == PREVIOUS_TAKEN))
		add(c->now, sizeof(c->now), name);
	else
		add(c->later, sizeof(c->later), name);
}

static bool equal(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

/* ---- the key ---- */

/* The two keys the mounted store is under, as far as the configuration goes. */
struct keys {
	struct kms *now, *before; /* before: NULL when there is none */
};

static struct keys keys_of(const struct service *s)
{
	const struct domain *d = s->fs->first;

	return (struct keys){ atomic_load(&d->kms), atomic_load(&d->previous) };
}

/* The one of both that is this key, however its name is written; NULL: neither. */
static struct kms *named(const struct service *s, const struct keys *k, const char *key)
{
	struct kms *of[] = { k->now, k->before }, *same = NULL, *found = NULL;
	struct kms_err err;

	for (size_t i = 0; !found && i < 2; i++)
		if (of[i] && kms_same_key(of[i], key, kms_key(of[i])))
			found = of[i];
	if (found || domain_kms(s->fs, NULL, key, &same, &err))
		return found;
	for (size_t i = 0; !found && i < 2; i++)
		if (of[i] && kms_same_key(of[i], kms_key(same), kms_key(of[i])))
			found = of[i];
	kms_close(same);
	return found;
}

/* By its name as written, or as one of those that the store is under: it may have been rotated while mounted. */
static bool same_key(const struct service *s, const struct keys *k, const char *old, const char *fresh)
{
	if (!old || !fresh)
		return old == fresh;
	return strcmp(old, fresh) == 0 || named(s, k, fresh);
}

/* The settings, for a key that keeps its name; replicas are those of the key that is configured. */
static int reconfigure(struct kms *kms, const struct kms_params *fresh, struct kms_err *err)
{
	struct kms_params p = *fresh;

	if (!p.key || !kms_same_key(kms, p.key, kms_key(kms))) {
		if (p.key && strncmp(kms_key(kms), "arn:", 4) == 0) {
			p.region = strncmp(p.key, "arn:", 4) == 0 ? NULL : p.region;
			p.replicas = strncmp(p.key, "arn:", 4) == 0 ? NULL : p.replicas;
			p.failover = p.replicas && p.failover;
		}
		p.key = kms_key(kms);
	}
	return kms_reconfigure(kms, &p, err);
}

static int take_over(struct service *s, const struct config *fresh, char *why)
{
	struct keys k = keys_of(s);
	struct kms_params params, old;
	struct kms_err err = { 0 };
	int r = 0;

	params_kms(&old, s->config, NULL);
	params_kms(&params, fresh, NULL);
	if (strcmp(old.provider, params.provider) == 0 && !same_key(s, &k, old.key, params.key)) {
		(void)snprintf(why, CONFIG_WHY, "'%.120s' is another key than '%.120s': a mounted store keeps its key",
		    params.key, kms_key(k.now));
		return -EINVAL;
	}
	r = reconfigure(k.now, &params, &err);
	if (r)
		(void)snprintf(why, CONFIG_WHY, "%s", err.message);
	else if (k.before && reconfigure(k.before, &params, &err))
		log_warn("key '%s' keeps its settings: %s", kms_key(k.before), err.message);
	if (!r && s->key != k.now && s->key != k.before && reconfigure(s->key, &params, &err))
		log_warn("the credentials keep their settings: %s", err.message);
	if (!r && k.now != s->key && params.key && equal(old.key, params.key) && !named(s, &k, params.key))
		log_warn("the store was rotated to key '%s': set 'key' to it before the next mount", kms_key(k.now));
	return r;
}

/* ---- the key a rotation is leaving ---- */

static enum previous take_previous(struct service *s, const struct config *fresh)
{
	struct keys k = keys_of(s);
	struct kms_params old, params, first;
	struct kms *kms = NULL, *key, *opened = NULL;
	struct kms_err err = { 0 };
	int r;

	(void)params_previous(&old, s->config, NULL, NULL);
	(void)params_previous(&params, fresh, NULL, s->key);
	params_kms(&first, fresh, NULL);
	if (equal(old.key, params.key) || strcmp(old.provider, params.provider) != 0)
		return PREVIOUS_SAME;
	key = first.key ? named(s, &k, first.key) : NULL;
	if (params.key)
		kms = named(s, &k, params.key);
	if (params.key && !kms) {
		params.observe = s->fs->audit ? audit_kms : NULL;
		params.observer = s->fs->audit;
		if (kms_open(&opened, &params, true, &err)) {
			log_warn("cannot use the previous key '%s': %s", params.key, err.message);
			return PREVIOUS_LATER;
		}
		kms = opened;
	}
	r = domains_previous(s->fs, key ? key : k.now, kms);
	if (r == -ENOMEM) {
		log_err("out of memory for the previous key");
		kms_close(opened);
	}
	if (r == -EBUSY)
		log_warn(
		    "a rotation is under way, and what it is leaving is still needed: the other previous key waits for "
		    "the next mount");
	return r ? PREVIOUS_LATER : PREVIOUS_TAKEN;
}

static void tell(const struct config *old, const struct config *fresh, bool nested, enum previous previous)
{
	struct changes c = { .previous = previous };

	config_compare(old, fresh, sort, &c);
	if (*c.now)
		log_info("the configuration was read again; changed: %s", c.now);
	if (c.kms && nested)
		log_warn("nested key domains take these changes over with the next mount: %s", c.now);
	if (*c.later)
		log_warn("the configuration was read again; changed, but only for the next mount: %s", c.later);
	if (!*c.now && !*c.later)
		log_info("the configuration was read again; nothing changed");
}

void service_reload(struct service *s)
{
	struct config *fresh = calloc(1, sizeof(*fresh));
	char why[CONFIG_WHY] = "out of memory";
	enum previous previous;

	if (!fresh || options_reload(s->options, fresh, why) || take_over(s, fresh, why)) {
		log_err("the configuration stays as it was: %s", why);
		if (fresh)
			config_free(fresh);
		free(fresh);
		return;
	}
	previous = take_previous(s, fresh);
	tell(s->config, fresh, domains_count(s->fs) > 1, previous);
	if (s->own)
		config_free(s->own);
	free(s->own);
	s->config = s->own = fresh;
	atomic_store(&s->key_age_days, fresh->alert.key_age_days);
}
