/* devkms_kms.c — the table of TrentService's operations, and what the list operations share. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "devkms.h"
#include "jsonio.h"

static const struct {
	const char *name;
	int (*run)(struct dk_call *);
} operations[] = {
	{ "Decrypt", dk_decrypt },
	{ "GenerateDataKey", dk_generate_data_key },
	{ "Encrypt", dk_encrypt },
	{ "ReEncrypt", dk_reencrypt },
	{ "GenerateDataKeyWithoutPlaintext", dk_generate_data_key_without_plaintext },
	{ "GenerateRandom", dk_generate_random },
	{ "DescribeKey", dk_describe_key },
	{ "CreateKey", dk_create_key },
	{ "ListKeys", dk_list_keys },
	{ "EnableKey", dk_enable_key },
	{ "DisableKey", dk_disable_key },
	{ "ScheduleKeyDeletion", dk_schedule_key_deletion },
	{ "CancelKeyDeletion", dk_cancel_key_deletion },
	{ "ReplicateKey", dk_replicate_key },
	{ "CreateAlias", dk_create_alias },
	{ "UpdateAlias", dk_update_alias },
	{ "DeleteAlias", dk_delete_alias },
	{ "ListAliases", dk_list_aliases },
	{ "GetKeyPolicy", dk_get_key_policy },
	{ "PutKeyPolicy", dk_put_key_policy },
	{ "GetKeyRotationStatus", dk_get_key_rotation_status },
	{ "EnableKeyRotation", dk_enable_key_rotation },
	{ "DisableKeyRotation", dk_disable_key_rotation },
	{ "RotateKeyOnDemand", dk_rotate_key_on_demand },
	{ "ListKeyRotations", dk_list_key_rotations },
};

#define OPERATIONS (sizeof(operations) / sizeof(operations[0]))

const char *dk_kms_operation(const char *target)
{
	if (strncmp(target, "TrentService.", 13) != 0)
		return NULL;
	for (size_t i = 0; i < OPERATIONS; i++)
		if (strcmp(operations[i].name, target + 13) == 0)
			return operations[i].name;
	return NULL;
}

int dk_kms_run(struct dk_call *c)
{
	int r = dk_sigv4_check(c, "kms");

	if (r < 0)
		return r;
	c->in = jsonio_parse(c->req->body, c->req->len, DK_BODY_MAX);
	if (!json_is_object(c->in))
		return dk_fail(c, "SerializationException", "%s", "");
	for (size_t i = 0; i < OPERATIONS; i++)
		if (operations[i].name == c->operation)
			return operations[i].run(c);
	return dk_fail(c, "UnknownOperationException", "%s", "");
}

int dk_commit(struct dk_call *c)
{
	int r;

	if (dk_store_save(&c->srv->store) == 0)
		return 0;
	r = dk_fail(c, "KMSInternalException", "the change was made but could not be saved");
	c->err.status = 500;
	return r;
}

int dk_arg_key(struct dk_call *c, struct dk_key **out)
{
	const char *name;
	int r = dk_arg_str(c, "KeyId", 1, 2048, &name);

	if (r == 0)
		r = dk_key_find(c, name, out);
	if (r == 0)
		(void)snprintf(c->key, sizeof(c->key), "%s", (*out)->arn);
	if (r == 0 && c->fault->deny_access) {
		char action[64];

		(void)snprintf(action, sizeof(action), "kms:%s", c->operation);
		r = dk_deny(c, action, (*out)->arn);
	}
	return r;
}

int dk_page_begin(struct dk_call *c, int64_t fallback, struct dk_page *p)
{
	const char *marker;
	char *end = NULL;
	int r = dk_arg_int(c, "Limit", 1, 1000, fallback, &p->limit);

	if (r == 0)
		r = dk_arg_opt(c, "Marker", 1, 1024, &marker);
	if (r < 0)
		return r;
	p->at = 0;
	p->truncated = false;
	p->first = 0;
	if (marker) {
		p->first = strtol(marker, &end, 10);
		if (p->first < 0 || *end != '\0')
			return dk_fail(c, "InvalidMarkerException", "Could not deserialize marker '%s'", marker);
	}
	return 0;
}

bool dk_page_take(struct dk_page *p)
{
	int64_t at = p->at++;

	if (at < p->first)
		return false;
	if (at - p->first < p->limit)
		return true;
	p->truncated = true;
	return false;
}

void dk_page_end(struct dk_call *c, const struct dk_page *p)
{
	char marker[24];

	(void)json_object_set_new(c->out, "Truncated", json_boolean(p->truncated));
	if (!p->truncated)
		return;
	(void)snprintf(marker, sizeof(marker), "%lld", (long long)(p->first + p->limit));
	dk_put_str(c, "NextMarker", marker);
}
