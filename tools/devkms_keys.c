/* devkms_keys.c — the key store in memory: families of related keys, keys of one Region, aliases, roles.
 *
 * Short lists, searched from the front: a trial has a handful of keys. Every function wants the store's lock held. */
#include <ctype.h>
#include <errno.h>
#include <sodium.h>
#include <stdio.h>

#include "bytes.h"
#include "devkms.h"

const char *const dk_state_name[DK_STATES] = {
	[DK_ENABLED] = "Enabled",
	[DK_DISABLED] = "Disabled",
	[DK_PENDING_DELETION] = "PendingDeletion",
	[DK_PENDING_IMPORT] = "PendingImport",
	[DK_PENDING_REPLICA_DELETION] = "PendingReplicaDeletion",
	[DK_UNAVAILABLE] = "Unavailable",
	[DK_CREATING] = "Creating",
	[DK_UPDATING] = "Updating",
};

int dk_state_parse(const char *name, enum dk_key_state *out)
{
	for (unsigned int i = 0; i < DK_STATES; i++) {
		if (strcmp(name, dk_state_name[i]) == 0) {
			*out = (enum dk_key_state)i;
			return 0;
		}
	}
	return -EINVAL;
}

bool dk_key_gone(const struct dk_key *k, int64_t now)
{
	return k->state == DK_PENDING_DELETION && now >= k->deletion;
}

struct dk_key *dk_key_by_id(struct dk_store *s, const char *id, const char *region)
{
	for (struct dk_family *f = s->families; f; f = f->next) {
		if (strcmp(f->id, id) != 0)
			continue;
		for (struct dk_key *k = f->keys; k; k = k->next)
			if (strcmp(k->region, region) == 0)
				return k;
	}
	return NULL;
}

struct dk_key *dk_key_by_arn(struct dk_store *s, const char *arn)
{
	for (struct dk_family *f = s->families; f; f = f->next)
		for (struct dk_key *k = f->keys; k; k = k->next)
			if (strcmp(k->arn, arn) == 0)
				return k;
	return NULL;
}

struct dk_alias *dk_alias_find(struct dk_store *s, const char *name, const char *region)
{
	for (struct dk_alias *a = s->aliases; a; a = a->next)
		if (strcmp(a->name, name) == 0 && strcmp(a->target->region, region) == 0)
			return a;
	return NULL;
}

/* A UUID, or "mrk-" and 32 lower-case hex digits. */
static bool id_valid(const char *id)
{
	bool mrk = strncmp(id, "mrk-", 4) == 0;

	if (strlen(id) != 36)
		return false;
	for (size_t i = mrk ? 4 : 0; i < 36; i++) {
		bool dash = !mrk && (i == 8 || i == 13 || i == 18 || i == 23);

		if (dash ? id[i] != '-' : !isxdigit((unsigned char)id[i]))
			return false;
	}
	return true;
}

/* "arn:aws:kms:REGION:ACCOUNT:REST" for this account and Region; *rest is what follows. */
static int arn_rest(struct dk_call *c, const char *arn, const char **rest)
{
	char region[DK_REGION] = "", account[16] = "", partition[16] = "";
	int at = 0;

	if (sscanf(arn, "arn:%15[a-z-]:kms:%31[a-z0-9-]:%15[0-9]:%n", partition, region, account, &at) != 3 || at == 0)
		return dk_fail(c, "InvalidArnException", "%s is not a valid arn", arn);
	if (strcmp(region, c->caller.region) != 0)
		return dk_fail(c, "NotFoundException", "Invalid arn %s", region);
	if (strcmp(account, c->srv->account) != 0) {
		char action[64];

		(void)snprintf(action, sizeof(action), "kms:%s", c->operation);
		return dk_fail(c, "AccessDeniedException",
		    "User: %s is not authorized to perform: %s on this resource because the resource does not exist "
		    "in this Region, "
		    "no resource-based policies allow access, or a resource-based policy explicitly denies access",
		    c->caller.arn, action);
	}
	*rest = arn + at;
	return 0;
}

int dk_key_find(struct dk_call *c, const char *name, struct dk_key **out)
{
	const char *rest = name;
	bool arn = strncmp(name, "arn:", 4) == 0;
	int r = arn ? arn_rest(c, name, &rest) : 0;

	if (r < 0)
		return r;
	if (strncmp(rest, "alias/", 6) == 0) {
		struct dk_alias *a = dk_alias_find(&c->srv->store, rest, c->caller.region);

		if (!a || dk_key_gone(a->target, c->now))
			return dk_fail(c, "NotFoundException", "Alias arn:aws:kms:%s:%s:%s is not found.",
			    c->caller.region, c->srv->account, rest);
		*out = a->target;
		return 0;
	}
	if (arn && strncmp(rest, "key/", 4) == 0)
		rest += 4;
	else if (arn)
		return dk_fail(c, "InvalidArnException", "%s is not a valid arn", name);
	if (!id_valid(rest))
		return dk_fail(c, "NotFoundException", "Invalid keyId '%s'", rest);
	*out = dk_key_by_id(&c->srv->store, rest, c->caller.region);
	if (!*out || dk_key_gone(*out, c->now))
		return dk_fail(c, "NotFoundException", "Key 'arn:aws:kms:%s:%s:key/%s' does not exist",
		    c->caller.region, c->srv->account, rest);
	return 0;
}

int dk_key_usable(struct dk_call *c, const struct dk_key *k)
{
	static const char *const is[DK_STATES] = {
		[DK_PENDING_DELETION] = "pending deletion",
		[DK_PENDING_IMPORT] = "pending import",
		[DK_PENDING_REPLICA_DELETION] = "pending replica deletion",
		[DK_UNAVAILABLE] = "unavailable",
		[DK_CREATING] = "creating",
		[DK_UPDATING] = "updating",
	};

	if (k->state == DK_ENABLED)
		return 0;
	if (k->state == DK_DISABLED)
		return dk_fail(c, "DisabledException", "%s is disabled.", k->arn);
	return dk_fail(c, "KMSInvalidStateException", "%s is %s.", k->arn, is[k->state]);
}

int dk_family_rotate(struct dk_family *f, int64_t now)
{
	struct dk_material *m = &f->material[f->n];

	if (f->n >= DK_MATERIALS)
		return -ENOSPC;
	randombytes_buf(m->id, sizeof(m->id));
	randombytes_buf(m->key, sizeof(m->key));
	m->created = now;
	f->n++;
	return 0;
}

int dk_family_new(struct dk_store *s, bool multi_region, bool external, int64_t now, struct dk_family **out)
{
	struct dk_family *f = calloc(1, sizeof(*f));
	uint8_t id[16];
	char hex[33];
	int r;

	if (!f)
		return -ENOMEM;
	f->multi_region = multi_region;
	f->external = external;
	f->period_days = 365;
	if (multi_region) {
		randombytes_buf(id, sizeof(id));
		bytes_hex(hex, id, sizeof(id));
		(void)snprintf(f->id, sizeof(f->id), "mrk-%s", hex);
	} else {
		dk_uuid(f->id);
	}
	r = dk_family_rotate(f, now);
	if (r < 0) {
		free(f);
		return r;
	}
	f->next = s->families;
	s->families = f;
	*out = f;
	return 0;
}

int dk_key_new(struct devkms *srv, struct dk_family *f, const char *region, const char *description, const char *policy,
    int64_t now, struct dk_key **out)
{
	struct dk_key *k = calloc(1, sizeof(*k));
	struct dk_key **end = &f->keys;

	if (!k)
		return -ENOMEM;
	k->family = f;
	k->created = now;
	k->state = f->external ? DK_PENDING_IMPORT : DK_ENABLED;
	(void)snprintf(k->region, sizeof(k->region), "%s", region);
	(void)snprintf(k->arn, sizeof(k->arn), "arn:aws:kms:%s:%s:key/%s", region, srv->account, f->id);
	k->description = strdup(description);
	if (policy)
		k->policy = strdup(policy);
	else if (asprintf(&k->policy,
	             "{\"Version\":\"2012-10-17\",\"Id\":\"key-default-1\",\"Statement\":[{\"Sid\":\"Enable IAM User "
	             "Permissions\","
	             "\"Effect\":\"Allow\",\"Principal\":{\"AWS\":\"arn:aws:iam::%s:root\"},\"Action\":\"kms:*\","
	             "\"Resource\":\"*\"}]}",
	             srv->account) < 0)
		k->policy = NULL;
	if (!k->description || !k->policy) {
		free(k->description);
		free(k->policy);
		free(k);
		return -ENOMEM;
	}
	while (*end)
		end = &(*end)->next;
	*end = k;
	*out = k;
	return 0;
}

int dk_alias_new(struct dk_store *s, const char *name, struct dk_key *target, int64_t now)
{
	struct dk_alias *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	(void)snprintf(a->name, sizeof(a->name), "%s", name);
	a->target = target;
	a->created = now;
	a->next = s->aliases;
	s->aliases = a;
	return 0;
}

void dk_alias_delete(struct dk_store *s, struct dk_alias *a)
{
	struct dk_alias **p = &s->aliases;

	while (*p && *p != a)
		p = &(*p)->next;
	if (*p)
		*p = a->next;
	free(a);
}

struct dk_role *dk_role_find(struct dk_store *s, const char *arn)
{
	for (struct dk_role *r = s->roles; r; r = r->next)
		if (strcmp(r->arn, arn) == 0)
			return r;
	return NULL;
}

void dk_role_delete(struct dk_store *s, struct dk_role *role)
{
	struct dk_role **p = &s->roles;

	while (*p && *p != role)
		p = &(*p)->next;
	if (*p)
		*p = role->next;
	free(role->external_id);
	free(role->web_identity_token);
	free(role);
}
