/* policy_doc.c — the four documents as JSON.
 *
 * A statement is built once and used twice: with a principal in the key's policy, with the key's ARNs in a role's. */
#include "policy.h"

#include <string.h>

#define VERSION "2012-10-17"

static const char *const use[] = { "kms:GenerateDataKey", "kms:Decrypt", NULL };
static const char *const describe[] = { "kms:DescribeKey", NULL };
static const char *const rotate[] = { "kms:ReEncryptFrom", "kms:ReEncryptTo", NULL };
static const char *const rotate_read[] = { "kms:DescribeKey", "kms:GetKeyRotationStatus", "kms:ListKeyRotations",
	NULL };
/* No Decrypt, no GenerateDataKey, no CreateGrant: whoever administers the key does not read what it protects. Applying
 * this takes away what is not in it: deleting imported material is a way to revoke. */
static const char *const administer[] = { "kms:DescribeKey", "kms:EnableKey", "kms:DisableKey",
	"kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion", "kms:GetKeyPolicy", "kms:PutKeyPolicy",
	"kms:ListKeyPolicies", "kms:EnableKeyRotation", "kms:DisableKeyRotation", "kms:RotateKeyOnDemand",
	"kms:GetKeyRotationStatus", "kms:ListKeyRotations", "kms:UpdateKeyDescription", "kms:CreateAlias",
	"kms:UpdateAlias", "kms:DeleteAlias", "kms:ListGrants", "kms:RevokeGrant", "kms:ListResourceTags",
	"kms:TagResource", "kms:UntagResource", "kms:GetParametersForImport", "kms:ImportKeyMaterial",
	"kms:DeleteImportedKeyMaterial", NULL };
static const char *const replicate[] = { "kms:ReplicateKey", "kms:UpdatePrimaryRegion", NULL };
static const char *const recover[] = { "kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy", NULL };

static json_t *strings(const char *const *list)
{
	json_t *out = json_array();

	for (; *list; list++)
		(void)json_array_append_new(out, json_string(*list));
	return out;
}

/* One word where one will do, as people write it. */
static json_t *action(const char *const *list)
{
	return list[1] ? strings(list) : json_string(list[0]);
}

static json_t *of_store(const struct policy *p)
{
	return json_pack("{s:{s:s}, s:{s:O}}", "StringEquals", "kms:EncryptionContext:byokfs-store", p->store,
	    "ForAllValues:StringEquals", "kms:EncryptionContextKeys", p->names);
}

static json_t *resources(const struct policy *p)
{
	json_t *list;

	if (!p->nreplica)
		return json_string(p->key);
	list = json_pack("[s]", p->key);
	for (size_t i = 0; i < p->nreplica; i++)
		(void)json_array_append_new(list, json_string(p->replica[i]));
	return list;
}

/* principal NULL: for a role's policy, where the key is the resource. conditioned: for this store only. */
static void allow(json_t *statements, const struct policy *p, const char *sid, const char *principal, json_t *actions,
    bool conditioned)
{
	json_t *s = json_pack("{s:s, s:s}", "Sid", sid, "Effect", "Allow");

	if (principal)
		(void)json_object_set_new(s, "Principal", json_pack("{s:s}", "AWS", principal));
	(void)json_object_set_new(s, "Action", actions);
	(void)json_object_set_new(s, "Resource", principal ? json_string("*") : resources(p));
	if (conditioned)
		(void)json_object_set_new(s, "Condition", of_store(p));
	(void)json_array_append_new(statements, s);
}

static void allow_host(json_t *statements, const struct policy *p, const char *principal)
{
	allow(statements, p, "ByokfsHostUse", principal, action(use), true);
	allow(statements, p, "ByokfsHostDescribe", principal, action(describe), false);
}

static void allow_rotator(json_t *statements, const struct policy *p, const char *principal)
{
	allow(statements, p, "ByokfsRotate", principal, action(rotate), true);
	allow(statements, p, "ByokfsRotateRead", principal, action(rotate_read), false);
}

/* Without an administrator of its own the key is administered as the account's IAM policies say: that is what naming
 * the account means. With one, the account keeps what it takes to name another. */
static void allow_owner(json_t *statements, const struct policy *p)
{
	json_t *actions = strings(administer), *more = strings(replicate);
	char root[POLICY_PRINCIPAL] = "";
	struct policy_arn key;

	if (policy_arn_parse(&key, p->key) == 0) {
		(void)snprintf(root, sizeof(root), "arn:%s:iam::%s:root", key.partition, key.account);
		if (strncmp(key.resource, "key/mrk-", 8) == 0)
			(void)json_array_extend(actions, more);
	}
	json_decref(more);
	allow(statements, p, "KeyAdministration", p->admin ? p->admin : root, actions, false);
	if (p->admin && !p->no_root)
		allow(statements, p, "AccountRootAgainstLockOut", root, action(recover), false);
}

static json_t *document(json_t *statements)
{
	return json_pack("{s:s, s:o}", "Version", VERSION, "Statement", statements);
}

json_t *policy_for_key(const struct policy *p)
{
	json_t *statements = json_array();

	if (p->host)
		allow_host(statements, p, p->host);
	if (p->rotator)
		allow_rotator(statements, p, p->rotator);
	allow_owner(statements, p);
	return document(statements);
}

json_t *policy_for_host(const struct policy *p)
{
	json_t *statements;

	if (!p->host)
		return NULL;
	statements = json_array();
	allow_host(statements, p, NULL);
	return document(statements);
}

json_t *policy_for_rotator(const struct policy *p)
{
	json_t *statements;

	if (!p->rotator)
		return NULL;
	statements = json_array();
	allow_rotator(statements, p, NULL);
	return document(statements);
}

json_t *policy_for_trust(const struct policy *p)
{
	if (!p->trusted)
		return NULL;
	return document(json_pack("[{s:s, s:s, s:{s:s}, s:s, s:{s:{s:s}}}]", "Sid", "ByokfsAssume", "Effect", "Allow",
	    "Principal", "AWS", p->trusted, "Action", "sts:AssumeRole", "Condition", "StringEquals", "sts:ExternalId",
	    p->external_id));
}
