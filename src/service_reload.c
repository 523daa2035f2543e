/* SIGHUP and `byokfsctl reload`: the configuration anew, from where it came from. All of it must be good, and the key a
 * key the store is under; else one line says why and nothing changes. What can only change with a mount is named and
 * waits for the next one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "audit.h"
#include "control.h"
#include "exitcode.h"
#include "log.h"
#include "notify.h"
#include "params.h"
#include "service.h"

/* What becomes of the key that a rotation is leaving. */
enum previous { PREVIOUS_SAME, PREVIOUS_TAKEN, PREVIOUS_LATER };

/* Names of settings, between commas. */
struct changes {
	char now[600], later[600], nested[600]; /* nested: those of now that nested key domains do not take over */
	enum previous previous;
	const char *rotated; /* the key that rules now, when the configuration still names the one before; or NULL */
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
		"kms.replicas", "kms.failover", "kms.failover_after", "kms.connect_timeout", "kms.request_timeout",
		NULL };
	static const char *const others[] = { "cache.probe", "cache.lease", "cache.max_age", "cache.idle",
		"mount.attr_timeout", "log.level", "alert.key_age_days", NULL };
	static const char *const previous[] = { "kms.previous", "vault.previous", "pkcs11.previous", NULL };
	struct changes *c = arg;

	if (is_one(name, taken))
		add(c->nested, sizeof(c->nested), name);
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

static int take_over(struct service *s, const struct config *fresh, struct changes *c, char *why)
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
	if (!r && k.now != s->key && params.key && equal(old.key, params.key) && !named(s, &k, params.key)) {
		c->rotated = kms_key(k.now);
		log_warn("the store was rotated to key '%s': set 'key' to it before the next mount", c->rotated);
	}
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

/* ---- all of it ---- */

/* Before the lease: no reply may promise the kernel more than it. Shared or not waits for the next mount; until then
 * nothing may be kept for longer than that allows. */
static void take_timeout(struct fs_params *p, const struct config *fresh)
{
	double timeout = fresh->mount.attr_timeout_ms / 1000.0;

	if (fresh->mount.shared != p->shared && p->timeout < timeout)
		timeout = p->timeout;
	p->timeout = timeout;
	if (!p->shared)
		p->entry_timeout = timeout;
}

/* What cannot fail. */
static void take_settings(struct service *s, const struct config *fresh)
{
	struct lease_times times = { fresh->cache.probe_ms, fresh->cache.lease_ms, fresh->cache.max_age_ms,
		fresh->cache.idle_ms };

	take_timeout(&s->fs->params, fresh);
	domains_retime(s->fs, &times);
	log_set_level(options_log_level(s->options, fresh));
	atomic_store(&s->key_age_days, fresh->alert.key_age_days);
}

static void tell(const struct changes *c)
{
	if (*c->now)
		log_info("the configuration was read again; changed: %s", c->now);
	if (*c->nested)
		log_warn("nested key domains take these changes over with the next mount: %s", c->nested);
	if (*c->later)
		log_warn("the configuration was read again; changed, but only for the next mount: %s", c->later);
	if (!*c->now && !*c->later)
		log_info("the configuration was read again; nothing changed");
}

/* -errno with why: everything is as it was. */
static int reload(struct service *s, struct changes *c, char *why)
{
	struct config *fresh = calloc(1, sizeof(*fresh));
	int r = -ENOMEM;

	(void)snprintf(why, CONFIG_WHY, "out of memory");
	if (fresh)
		r = options_reload(s->options, fresh, why);
	if (!r)
		r = take_over(s, fresh, c, why);
	if (r) {
		log_err("the configuration stays as it was: %s", why);
		if (fresh)
			config_free(fresh);
		free(fresh);
		return r;
	}
	c->previous = take_previous(s, fresh);
	take_settings(s, fresh);
	config_compare(s->config, fresh, sort, c);
	if (domains_count(s->fs) == 1)
		c->nested[0] = '\0';
	tell(c);
	if (s->own)
		config_free(s->own);
	free(s->own);
	s->config = s->own = fresh;
	return 0;
}

static bool refresh_one(void *arg, struct domain *d)
{
	(void)arg;
	struct kms *kms = atomic_load(&d->kms), *previous = atomic_load(&d->previous);

	if (kms)
		kms_refresh(kms);
	if (previous)
		kms_refresh(previous);
	return true;
}

/* By one at a time: a signal and a request may come together. Who waits waits no longer than the call of the KMS that
 * the name of a key may take. */
static int reload_all(struct service *s, struct changes *c, char *why)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

	LOCK_SCOPE(&lock);
	notify_reloading();
	audit_reopen(s->fs->audit);
	domains_each(s->fs, refresh_one, NULL);
	log_info("credentials will be read again");
	int r = reload(s, c, why);

	service_notify(s, true);
	return r;
}

void service_reload(struct service *s)
{
	struct changes c = { 0 };
	char why[CONFIG_WHY];

	if (reload_all(s, &c, why))
		log_debug("nothing was taken over");
}

/* "a, b" as an array. */
static json_t *names(const char *list)
{
	json_t *out = json_array();

	while (*list) {
		size_t n = strcspn(list, ",");

		(void)json_array_append_new(out, json_stringn(list, n));
		list += n + strspn(list + n, ", ");
	}
	return out;
}

json_t *control_reload(struct service *s)
{
	struct changes c = { 0 };
	char why[CONFIG_WHY];

	if (reload_all(s, &c, why))
		return json_pack("{s:i, s:o}", "code", EXIT_CONFIG, "message", jsonio_text(why));
	return json_pack("{s:i, s:s, s:o, s:o, s:o, s:s?}", "code", EXIT_OK, "message",
	    *c.now ? "changed" : "nothing changed", "changed", names(c.now), "next_mount", names(c.later),
	    "nested_next_mount", names(c.nested), "rotated_to", c.rotated);
}
