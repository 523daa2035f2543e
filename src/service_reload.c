/* SIGHUP: the configuration anew, from where it came from. All of it must be good, and the key the same key; else one
 * line says why and nothing changes. What can only change with a mount is named and waits for the next one. */
#include <errno.h>
#include <stdio.h>

#include "log.h"
#include "params.h"
#include "service.h"

struct changes {
	char now[400], later[400];
	bool kms; /* now: of the key service, which nested domains have one of their own of */
};

static void add(char *list, size_t size, const char *name)
{
	size_t n = strlen(list);

	(void)snprintf(list + n, size - n, "%s%s", n ? ", " : "", name);
}

static void sort(void *arg, const char *name)
{
	static const char *const taken[] = { "kms.key", "kms.region", "kms.endpoint", "kms.replicas", "kms.failover",
		"kms.failover_after", "alert.key_age_days" };
	struct changes *c = arg;

	for (size_t i = 0; i < sizeof(taken) / sizeof(*taken); i++)
		if (strcmp(name, taken[i]) == 0) {
			add(c->now, sizeof(c->now), name);
			c->kms = c->kms || strncmp(name, "kms.", 4) == 0;
			return;
		}
	add(c->later, sizeof(c->later), name);
}

/* By its name as written, or as the one that an alias stood for. */
static bool same_key(const struct service *s, const struct kms_params *old, const struct kms_params *fresh)
{
	if (!old->key || !fresh->key)
		return old->key == fresh->key;
	return strcmp(old->key, fresh->key) == 0 || kms_same_key(s->kms, fresh->key, kms_key(s->kms));
}

static int take_over(struct service *s, const struct config *fresh, char *why)
{
	struct kms_params params, old;
	struct kms_err err = { 0 };
	int r = 0;

	params_kms(&old, s->config, NULL);
	params_kms(&params, fresh, NULL);
	if (strcmp(old.provider, params.provider) == 0 && !same_key(s, &old, &params)) {
		(void)snprintf(why, CONFIG_WHY, "'%.120s' is another key than '%.120s': a mounted store keeps its key",
		    params.key, kms_key(s->kms));
		return -EINVAL;
	}
	r = kms_reconfigure(s->kms, &params, &err);
	if (r)
		(void)snprintf(why, CONFIG_WHY, "%s", err.message);
	return r;
}

static void tell(const struct config *old, const struct config *fresh, bool nested)
{
	struct changes c = { "", "", false };

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

	if (!fresh || options_reload(s->options, fresh, why) || take_over(s, fresh, why)) {
		log_err("the configuration stays as it was: %s", why);
		if (fresh)
			config_free(fresh);
		free(fresh);
		return;
	}
	tell(s->config, fresh, domains_count(s->fs) > 1);
	if (s->own)
		config_free(s->own);
	free(s->own);
	s->config = s->own = fresh;
	atomic_store(&s->key_age_days, fresh->alert.key_age_days);
}
