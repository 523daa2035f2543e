/* devkms_manage.c — the life of a key: created, described, enabled, disabled, scheduled for deletion, replicated.
 *
 * Every change is on disk before its answer leaves. */
#include <errno.h>
#include <stdio.h>

#include "bytes.h"
#include "devkms.h"

#define DAY INT64_C(86400)

static json_t *show_regions(const struct dk_family *f)
{
	json_t *o = json_pack("{s:[]}", "ReplicaKeys"), *x;

	for (const struct dk_key *k = f->keys; k; k = k->next) {
		x = json_pack("{s:s, s:s}", "Arn", k->arn, "Region", k->region);
		if (strcmp(k->region, f->primary) == 0)
			(void)json_object_set_new(o, "PrimaryKey", x);
		else
			(void)json_array_append_new(json_object_get(o, "ReplicaKeys"), x);
	}
	return o;
}

static json_t *show_metadata(const struct dk_call *c, const struct dk_key *k)
{
	const struct dk_family *f = k->family;
	json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:b, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:[s]}",
	    "AWSAccountId", c->srv->account, "Arn", k->arn, "KeyId", f->id, "CreationDate", (json_int_t)k->created,
	    "Enabled", k->state == DK_ENABLED, "Description", k->description, "KeyUsage", "ENCRYPT_DECRYPT", "KeyState",
	    dk_state_name[k->state], "Origin", f->external ? "EXTERNAL" : "AWS_KMS", "KeyManager", "CUSTOMER",
	    "CustomerMasterKeySpec", "SYMMETRIC_DEFAULT", "KeySpec", "SYMMETRIC_DEFAULT", "MultiRegion",
	    f->multi_region, "EncryptionAlgorithms", "SYMMETRIC_DEFAULT");
	char id[65];
	json_t *regions;

	if (k->state != DK_PENDING_IMPORT && k->state != DK_CREATING) {
		bytes_hex(id, f->material[f->n - 1].id, 32);
		(void)json_object_set_new(o, "CurrentKeyMaterialId", json_string(id));
	}
	if (k->state == DK_PENDING_DELETION)
		(void)json_object_set_new(o, "DeletionDate", json_integer(k->deletion));
	if (f->multi_region) {
		regions = show_regions(f);
		(void)json_object_set_new(regions, "MultiRegionKeyType",
		    json_string(strcmp(k->region, f->primary) == 0 ? "PRIMARY" : "REPLICA"));
		(void)json_object_set_new(o, "MultiRegionConfiguration", regions);
	}
	return o;
}

static int check_key_kind(struct dk_call *c, bool *external)
{
	const char *usage, *spec, *old_spec, *origin;
	int r = dk_arg_opt(c, "KeyUsage", 1, 64, &usage);

	if (r == 0)
		r = dk_arg_opt(c, "KeySpec", 1, 64, &spec);
	if (r == 0)
		r = dk_arg_opt(c, "CustomerMasterKeySpec", 1, 64, &old_spec);
	if (r == 0)
		r = dk_arg_opt(c, "Origin", 1, 64, &origin);
	if (r < 0)
		return r;
	if (!spec)
		spec = old_spec;
	if (spec && strcmp(spec, "SYMMETRIC_DEFAULT") != 0)
		return dk_fail(c, "UnsupportedOperationException", "KeySpec %s is not supported", spec);
	if (usage && strcmp(usage, "ENCRYPT_DECRYPT") != 0)
		return dk_fail(
		    c, "ValidationException", "KeyUsage %s is not compatible with KeySpec SYMMETRIC_DEFAULT", usage);
	*external = origin && strcmp(origin, "EXTERNAL") == 0;
	if (origin && !*external && strcmp(origin, "AWS_KMS") != 0)
		return dk_fail(c, "UnsupportedOperationException", "Origin %s is not supported", origin);
	return 0;
}

static int out_of_memory(struct dk_call *c)
{
	int r = dk_fail(c, "KMSInternalException", "out of memory");

	c->err.status = 500;
	return r;
}

int dk_create_key(struct dk_call *c)
{
	struct dk_store *s = &c->srv->store;
	const char *description, *policy;
	struct dk_family *f;
	struct dk_key *k;
	bool external, multi_region;
	int r = check_key_kind(c, &external);

	if (r == 0)
		r = dk_arg_opt(c, "Description", 0, 8192, &description);
	if (r == 0)
		r = dk_arg_opt(c, "Policy", 1, 32768, &policy);
	if (r == 0)
		r = dk_arg_bool(c, "MultiRegion", &multi_region);
	if (r < 0)
		return r;
	LOCK_SCOPE(&s->lock);
	if (dk_family_new(s, multi_region, external, c->now, &f) < 0 ||
	    dk_key_new(c->srv, f, c->caller.region, description ? description : "", policy, c->now, &k) < 0)
		return out_of_memory(c);
	(void)snprintf(f->primary, sizeof(f->primary), "%s", c->caller.region);
	(void)snprintf(c->key, sizeof(c->key), "%s", k->arn);
	(void)json_object_set_new(c->out, "KeyMetadata", show_metadata(c, k));
	return dk_commit(c);
}

int dk_describe_key(struct dk_call *c)
{
	struct dk_key *k;
	int r;

	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r == 0)
		(void)json_object_set_new(c->out, "KeyMetadata", show_metadata(c, k));
	return r;
}

int dk_list_keys(struct dk_call *c)
{
	struct dk_store *s = &c->srv->store;
	json_t *list = json_array();
	struct dk_page page;
	int r = dk_page_begin(c, 100, &page);

	(void)json_object_set_new(c->out, "Keys", list);
	if (r < 0)
		return r;
	LOCK_SCOPE(&s->lock);
	for (const struct dk_family *f = s->families; f; f = f->next)
		for (const struct dk_key *k = f->keys; k; k = k->next)
			if (strcmp(k->region, c->caller.region) == 0 && !dk_key_gone(k, c->now) && dk_page_take(&page))
				(void)json_array_append_new(
				    list, json_pack("{s:s, s:s}", "KeyId", f->id, "KeyArn", k->arn));
	dk_page_end(c, &page);
	return 0;
}

/* Enable and disable: refused while the key waits for its deletion or its material. */
static int switch_key(struct dk_call *c, enum dk_key_state to)
{
	struct dk_key *k;
	int r;

	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r < 0)
		return r;
	if (k->state != DK_ENABLED && k->state != DK_DISABLED)
		return dk_key_usable(c, k);
	k->state = to;
	return dk_commit(c);
}

int dk_enable_key(struct dk_call *c)
{
	return switch_key(c, DK_ENABLED);
}

int dk_disable_key(struct dk_call *c)
{
	return switch_key(c, DK_DISABLED);
}

/* A primary goes only after its replicas. */
static bool has_replicas(const struct dk_key *k, int64_t now)
{
	const struct dk_family *f = k->family;

	if (strcmp(k->region, f->primary) != 0)
		return false;
	for (const struct dk_key *x = f->keys; x; x = x->next)
		if (x != k && !dk_key_gone(x, now))
			return true;
	return false;
}

int dk_schedule_key_deletion(struct dk_call *c)
{
	struct dk_key *k;
	int64_t days;
	int r = dk_arg_int(c, "PendingWindowInDays", 7, 30, 30, &days);

	if (r < 0)
		return r;
	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r < 0)
		return r;
	if (k->state == DK_PENDING_DELETION || k->state == DK_PENDING_REPLICA_DELETION)
		return dk_key_usable(c, k);
	k->state = has_replicas(k, c->now) ? DK_PENDING_REPLICA_DELETION : DK_PENDING_DELETION;
	k->deletion = c->now + days * DAY;
	dk_put_str(c, "KeyId", k->arn);
	dk_put_str(c, "KeyState", dk_state_name[k->state]);
	(void)json_object_set_new(c->out, "PendingWindowInDays", json_integer(days));
	if (k->state == DK_PENDING_DELETION)
		(void)json_object_set_new(c->out, "DeletionDate", json_integer(k->deletion));
	return dk_commit(c);
}

int dk_cancel_key_deletion(struct dk_call *c)
{
	struct dk_key *k;
	int r;

	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r < 0)
		return r;
	if (k->state != DK_PENDING_DELETION && k->state != DK_PENDING_REPLICA_DELETION)
		return dk_fail(c, "KMSInvalidStateException", "%s is not pending deletion.", k->arn);
	k->state = DK_DISABLED;
	k->deletion = 0;
	dk_put_str(c, "KeyId", k->arn);
	return dk_commit(c);
}

static int check_replica_region(struct dk_call *c, const struct dk_key *k, const char *region)
{
	size_t n = strlen(region);

	if (strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != n)
		return dk_fail(c, "ValidationException",
		    "1 validation error detected: Value '%s' at 'replicaRegion' failed to satisfy "
		    "constraint: Member must satisfy regular expression pattern: ^([a-z]+-){2,3}\\d+$",
		    region);
	if (!k->family->multi_region || strcmp(k->region, k->family->primary) != 0)
		return dk_fail(c, "UnsupportedOperationException", "%s is not a multi-region primary key.", k->arn);
	if (dk_key_by_id(&c->srv->store, k->family->id, region))
		return dk_fail(c, "AlreadyExistsException", "%s already exists in region %s.", k->family->id, region);
	return dk_key_usable(c, k);
}

int dk_replicate_key(struct dk_call *c)
{
	const char *region, *description, *policy;
	struct dk_key *k, *replica;
	int r = dk_arg_str(c, "ReplicaRegion", 5, DK_REGION - 1, &region);

	if (r == 0)
		r = dk_arg_opt(c, "Description", 0, 8192, &description);
	if (r == 0)
		r = dk_arg_opt(c, "Policy", 1, 32768, &policy);
	if (r < 0)
		return r;
	LOCK_SCOPE(&c->srv->store.lock);
	r = dk_arg_key(c, &k);
	if (r == 0)
		r = check_replica_region(c, k, region);
	if (r < 0)
		return r;
	if (dk_key_new(c->srv, k->family, region, description ? description : "", policy, c->now, &replica) < 0)
		return out_of_memory(c);
	/* The answer speaks of the moment before the replica is ready, as the real one does. */
	replica->state = DK_CREATING;
	(void)json_object_set_new(c->out, "ReplicaKeyMetadata", show_metadata(c, replica));
	dk_put_str(c, "ReplicaPolicy", replica->policy);
	(void)json_object_set_new(c->out, "ReplicaTags", json_array());
	replica->state = DK_ENABLED;
	return dk_commit(c);
}
