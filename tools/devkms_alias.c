/* devkms_alias.c — names and settings of keys: aliases, policies, rotation. */
#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "devkms.h"

#define DAY           INT64_C(86400)
#define ROTATIONS_MAX 25

static int arg_alias(struct dk_call *c, const char **out)
{
	int r = dk_arg_str(c, "AliasName", 1, 256, out);

	if (r < 0)
		return r;
	if (strncmp(*out, "alias/", 6) != 0)
		return dk_fail(c, "ValidationException",
		    "Alias must start with the prefix \"alias/\". Please see "
		    "https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html");
	if (strncmp(*out, "alias/aws/", 10) == 0)
		return dk_fail(c, "NotAuthorizedException", "%s", "");
	if ((*out)[6] == '\0' ||
	    strspn(*out + 6, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/_-") != strlen(*out + 6))
		return dk_fail(c, "InvalidAliasNameException", "Alias contains invalid characters for an alias");
	return 0;
}

static void alias_arn(const struct dk_call *c, const char *name, char out[static DK_ARN])
{
	(void)snprintf(out, DK_ARN, "arn:aws:kms:%s:%s:%s", c->caller.region, c->srv->account, name);
}

static int arg_target(struct dk_call *c, struct dk_key **out)
{
	const char *name;
	int r = dk_arg_str(c, "TargetKeyId", 1, 2048, &name);

	if (r == 0)
		r = dk_key_find(c, name, out);
	if (r == 0 && ((*out)->state == DK_PENDING_DELETION || (*out)->state == DK_PENDING_REPLICA_DELETION))
		r = dk_key_usable(c, *out);
	return r;
}

int dk_create_alias(struct dk_call *c)
{
	struct dk_store *s = &c->srv->store;
	char arn[DK_ARN];
	const char *name;
	struct dk_key *k;
	int r = arg_alias(c, &name);

	LOCK_SCOPE(&s->lock);
	if (r == 0)
		r = arg_target(c, &k);
	if (r < 0)
		return r;
	alias_arn(c, name, arn);
	if (dk_alias_find(s, name, c->caller.region))
		return dk_fail(c, "AlreadyExistsException", "An alias with the name %s already exists", arn);
	if (dk_alias_new(s, name, k, c->now) < 0)
		return dk_fail(c, "KMSInternalException", "out of memory");
	return dk_commit(c);
}

static int find_alias(struct dk_call *c, struct dk_alias **out)
{
	char arn[DK_ARN];
	const char *name;
	int r = arg_alias(c, &name);

	if (r < 0)
		return r;
	*out = dk_alias_find(&c->srv->store, name, c->caller.region);
	alias_arn(c, name, arn);
	return *out ? 0 : dk_fail(c, "NotFoundException", "Alias %s is not found.", arn);
}

int dk_update_alias(struct dk_call *c)
{
	struct dk_alias *a;
	struct dk_key *k;
	int r;

	LOCK_SCOPE(&c->srv->store.lock);
	r = find_alias(c, &a);
	if (r == 0)
		r = arg_target(c, &k);
	if (r < 0)
		return r;
	a->target = k;
	return dk_commit(c);
}

int dk_delete_alias(struct dk_call *c)
{
	struct dk_alias *a;
	int r;

	LOCK_SCOPE(&c->srv->store.lock);
	r = find_alias(c, &a);
	if (r < 0)
		return r;
	dk_alias_delete(&c->srv->store, a);
	return dk_commit(c);
}

int dk_list_aliases(struct dk_call *c)
{
	struct dk_store *s = &c->srv->store;
	struct dk_key *only = NULL;
	json_t *list = json_array();
	struct dk_page page;
	const char *name;
	char arn[DK_ARN];
	int r = dk_page_begin(c, 50, &page);

	(void)json_object_set_new(c->out, "Aliases", list);
	if (r == 0)
		r = dk_arg_opt(c, "KeyId", 1, 2048, &name);
	if (r < 0)
		return r;
	LOCK_SCOPE(&s->lock);
	r = name ? dk_key_find(c, name, &only) : 0;
	if (r < 0)
		return r;
	for (const struct dk_alias *a = s->aliases; a; a = a->next) {
		if (strcmp(a->target->region, c->caller.region) != 0 || (only && a->target != only) ||
		    !dk_page_take(&page))
			continue;
		alias_arn(c, a->name, arn);
		(void)json_array_append_new(list,
		    json_pack("{s:s, s:s, s:s, s:I, s:I}", "AliasName", a->name, "AliasArn", arn, "TargetKeyId",
		        a->target->family->id, "CreationDate", (json_int_t)a->created, "LastUpdatedDate",
		        (json_int_t)a->created));
	}
	dk_page_end(c, &page);
	return 0;
}

static int check_policy_name(struct dk_call *c)
{
	const char *name;
	int r = dk_arg_opt(c, "PolicyName", 1, 128, &name);

	if (r == 0 && name && strcmp(name, "default") != 0)
		r = dk_fail(c, "NotFoundException", "No such policy exists");
	return r;
}

int dk_get_key_policy(struct dk_call *c)
{
	struct dk_key *k;
	int r = check_policy_name(c);

	LOCK_SCOPE(&c->srv->store.lock);
	if (r == 0)
		r = dk_arg_key(c, &k);
	if (r < 0)
		return r;
	dk_put_str(c, "Policy", k->policy);
	dk_put_str(c, "PolicyName", "default");
	return 0;
}

int dk_put_key_policy(struct dk_call *c)
{
	const char *policy;
	struct dk_key *k;
	char *copy;
	int r = check_policy_name(c);

	if (r == 0)
		r = dk_arg_str(c, "Policy", 1, 32768, &policy);
	if (r < 0)
		return r;
	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r < 0)
		return r;
	copy = strdup(policy);
	if (!copy)
		return dk_fail(c, "KMSInternalException", "out of memory");
	free(k->policy);
	k->policy = copy;
	return dk_commit(c);
}

static int rotatable(struct dk_call *c, const struct dk_key *k)
{
	int r = dk_key_usable(c, k);

	if (r == 0 && k->family->external)
		r = dk_fail(c, "UnsupportedOperationException",
		    "%s origin is EXTERNAL which is not valid for this operation.", k->arn);
	return r;
}

int dk_get_key_rotation_status(struct dk_call *c)
{
	const struct dk_family *f;
	struct dk_key *k;
	int r;

	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r == 0 && k->state == DK_PENDING_IMPORT)
		r = dk_key_usable(c, k);
	if (r < 0)
		return r;
	f = k->family;
	dk_put_str(c, "KeyId", f->id);
	(void)json_object_set_new(c->out, "KeyRotationEnabled", json_boolean(f->rotation));
	if (f->rotation) {
		(void)json_object_set_new(c->out, "RotationPeriodInDays", json_integer(f->period_days));
		(void)json_object_set_new(
		    c->out, "NextRotationDate", json_integer(f->rotation_since + f->period_days * DAY));
	}
	return 0;
}

static int set_rotation(struct dk_call *c, bool on)
{
	struct dk_key *k;
	int64_t days;
	int r = dk_arg_int(c, "RotationPeriodInDays", 90, 2560, 365, &days);

	if (r < 0)
		return r;
	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r == 0)
		r = rotatable(c, k);
	if (r < 0)
		return r;
	k->family->rotation = on;
	k->family->rotation_since = c->now;
	k->family->period_days = days;
	return dk_commit(c);
}

int dk_enable_key_rotation(struct dk_call *c)
{
	return set_rotation(c, true);
}

int dk_disable_key_rotation(struct dk_call *c)
{
	return set_rotation(c, false);
}

int dk_rotate_key_on_demand(struct dk_call *c)
{
	struct dk_key *k;
	int r;

	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r == 0)
		r = rotatable(c, k);
	if (r < 0)
		return r;
	if (k->family->rotated_on_demand >= ROTATIONS_MAX || dk_family_rotate(k->family, c->now) < 0)
		return dk_fail(c, "LimitExceededException",
		    "The on-demand rotations limit has been reached for the given keyId. No more "
		    "on-demand rotations can be performed for this key: %s",
		    k->arn);
	k->family->rotated_on_demand++;
	dk_put_str(c, "KeyId", k->arn);
	return dk_commit(c);
}

static json_t *show_rotation(const struct dk_family *f, size_t i)
{
	char id[65];
	json_t *o;

	bytes_hex(id, f->material[i].id, 32);
	o = json_pack("{s:s, s:s, s:s}", "KeyId", f->id, "KeyMaterialId", id, "KeyMaterialState",
	    i + 1 == f->n ? "CURRENT" : "NON_CURRENT");
	if (i > 0 && i < f->n) {
		(void)json_object_set_new(o, "RotationDate", json_integer(f->material[i].created));
		(void)json_object_set_new(o, "RotationType", json_string("ON_DEMAND"));
	}
	return o;
}

int dk_list_key_rotations(struct dk_call *c)
{
	json_t *list = json_array();
	struct dk_page page;
	const char *what;
	struct dk_key *k;
	int r = dk_page_begin(c, 100, &page);

	(void)json_object_set_new(c->out, "Rotations", list);
	if (r == 0)
		r = dk_arg_opt(c, "IncludeKeyMaterial", 1, 32, &what);
	if (r < 0)
		return r;
	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r < 0)
		return r;
	for (size_t i = what && strcmp(what, "ALL_KEY_MATERIAL") == 0 ? 0 : 1; i < k->family->n; i++)
		if (dk_page_take(&page))
			(void)json_array_append_new(list, show_rotation(k->family, i));
	dk_page_end(c, &page);
	return 0;
}
