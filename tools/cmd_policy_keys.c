/* cmd_policy_keys.c — for which keys policies are wanted: the store's descriptors say it, or the configuration. */
#include "cmd_policy.h"

#include <errno.h>
#include <string.h>

#include "bytes.h"

#define AWS 1 /* byokfs-format(5), section 3.1 */

static const char *const own_names[] = { "byokfs-store", "byokfs-domain", "byokfs-file", "byokfs-use" };

static struct policy_key *key_of(struct policy_keys *k, const char *arn)
{
	struct policy_key *grown;

	for (size_t i = 0; i < k->n; i++)
		if (strcmp(k->key[i].arn, arn) == 0)
			return &k->key[i];
	grown = realloc(k->key, (k->n + 1) * sizeof(*grown));
	if (!grown)
		return NULL;
	k->key = grown;
	grown = &k->key[k->n];
	(void)snprintf(grown->arn, sizeof(grown->arn), "%s", arn);
	grown->names = json_array();
	if (!grown->names)
		return NULL;
	k->n++;
	for (size_t i = 0; i < sizeof(own_names) / sizeof(own_names[0]); i++)
		(void)json_array_append_new(grown->names, json_string(own_names[i]));
	return grown;
}

static void add_names(const struct policy_key *key, const struct context_extra *extra)
{
	for (size_t i = 0; i < extra->n; i++) {
		bool known = false;
		const json_t *v;
		size_t at;

		json_array_foreach(key->names, at, v)
		{
			known = known || strcmp(json_string_value(v), extra->pair[i].name) == 0;
		}
		if (!known)
			(void)json_array_append_new(key->names, json_string(extra->pair[i].name));
	}
}

/* Files keep blobs of older generations until they are sealed anew, so the names of all stay allowed. */
static int add_domain(struct policy_keys *k, const struct descriptor_domain *d)
{
	for (int i = 0; i < 2; i++) {
		const struct descriptor_slot *slot = &d->slot[i];
		const struct policy_key *key;

		if (!slot->seq || slot->provider != AWS)
			continue;
		key = key_of(k, slot->key);
		if (!key)
			return -ENOMEM;
		for (size_t g = 0; g < d->ngen; g++)
			add_names(key, &d->gen[g].extra);
	}
	return 0;
}

static int from_domains(struct policy_keys *k, const struct store *s, char *why)
{
	struct descriptor_domain *d CLEANUP_FREE = calloc(1, sizeof(*d));
	int ret = d ? 0 : -ENOMEM;

	(void)snprintf(why, STORE_WHY, "out of memory");
	for (size_t i = 0; i < s->desc.n && ret == 0; i++) {
		ret = cmd_domain_load(s, i, d, why);
		if (ret == 0) {
			ret = add_domain(k, d);
			descriptor_domain_free(d);
		}
	}
	return ret;
}

static int from_store(struct policy_keys *k, const char *path)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	struct store *store CLEANUP_FREE = calloc(1, sizeof(*store));
	char why[STORE_WHY] = "out of memory";
	int ret = store ? store_open(store, path, &options, why) : -ENOMEM;

	if (ret == 0) {
		bytes_hex(k->store, store->desc.store, CONTEXT_ID);
		ret = from_domains(k, store, why);
		store_close(store, true);
	}
	if (ret < 0) {
		cmd_error("%s", why);
		return cmd_exit_store(ret);
	}
	if (k->n)
		return EXIT_OK;
	cmd_error("'%s' is not under a key of AWS KMS, whose policies these are", path);
	return EXIT_CONFIG;
}

static int from_config(struct policy_keys *k, const struct config *c, const char *only)
{
	const char *arn = only ? only : c->kms.key ? c->kms.key : POLICY_NO_KEY;
	struct context_extra *extra CLEANUP_FREE = calloc(1, sizeof(*extra));
	const struct policy_key *key;
	char why[POLICY_WHY];

	if (strcmp(c->kms.provider, "aws") != 0) {
		cmd_error("policies are for AWS KMS, the configured provider is '%s'", c->kms.provider);
		return EXIT_CONFIG;
	}
	if (policy_check_key(arn, why) < 0) {
		cmd_error("'key' in [kms]: %s", why);
		cmd_hint("give the key's ARN with --key; 'byokfsctl test' shows what an alias stands for");
		return EXIT_CONFIG;
	}
	(void)snprintf(k->store, sizeof(k->store), "%s", c->store.id ? c->store.id : POLICY_NO_STORE);
	key = extra ? key_of(k, arn) : NULL;
	if (!key) {
		cmd_error("out of memory");
		return EXIT_FAILED;
	}
	if (context_parse_extra(extra, c->kms.context ? c->kms.context : "") < 0) {
		cmd_error("'context' in [kms]: '%s' is not name:value, ...", c->kms.context);
		return EXIT_CONFIG;
	}
	add_names(key, extra);
	if (!only && !c->kms.key)
		policy_note("no key is configured: '%s' stands for it", POLICY_NO_KEY);
	if (!c->store.id)
		policy_note(
		    "no CIPHERDIR: '%s' stands for the store's id, which 'byokfsctl info' shows", POLICY_NO_STORE);
	return EXIT_OK;
}

/* Leaves the one key that was asked for. */
static int choose(struct policy_keys *k, const char *only)
{
	for (size_t i = 0; i < k->n; i++) {
		if (strcmp(k->key[i].arn, only) != 0)
			continue;
		for (size_t j = 0; j < k->n; j++)
			if (j != i)
				json_decref(k->key[j].names);
		k->key[0] = k->key[i];
		k->n = 1;
		return EXIT_OK;
	}
	cmd_error("--key: the store does not depend on '%s'", only);
	return EXIT_USAGE;
}

int policy_keys_find(struct policy_keys *k, const struct config *c, const char *cipherdir, const char *only)
{
	int code = cipherdir ? from_store(k, cipherdir) : from_config(k, c, only);

	return code == EXIT_OK && only ? choose(k, only) : code;
}

void policy_keys_free(struct policy_keys *k)
{
	for (size_t i = 0; i < k->n; i++)
		json_decref(k->key[i].names);
	free(k->key);
}
