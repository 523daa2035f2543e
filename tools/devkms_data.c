/* devkms_data.c — the operations that touch data: seal, open, re-seal, make data keys.
 *
 * The order of the checks is what a client may rely on: the key is found, then its state, then the blob. */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>

#include "devkms.h"

#define INCORRECT "The key ID in the request does not identify a CMK that can perform this operation."

static int get_context(struct dk_call *c, const char *member, json_t **out)
{
	json_t *o = json_object_get(c->in, member), *value;
	const char *name;
	size_t total = 0;

	*out = NULL;
	if (!o || json_is_null(o))
		return 0;
	if (!json_is_object(o))
		return dk_fail(c, "SerializationException", "class of member %s is not a map", member);
	json_object_foreach(o, name, value)
	{
		if (!json_is_string(value) || strlen(json_string_value(value)) != json_string_length(value))
			return dk_fail(c, "SerializationException", "a value of %s is not a string", member);
		total += strlen(name) + json_string_length(value);
	}
	if (total > DK_CONTEXT_MAX)
		return dk_fail(
		    c, "ValidationException", "The encryption context is larger than %u characters", DK_CONTEXT_MAX);
	*out = o;
	return 0;
}

static void grant(const struct dk_key *k, const struct dk_material *m, struct dk_grant *out)
{
	(void)snprintf(out->arn, sizeof(out->arn), "%s", k->arn);
	(void)snprintf(out->id, sizeof(out->id), "%s", k->family->id);
	out->material = *m;
}

/* The current material of a key that may be used. */
static int use_key(struct dk_call *c, const char *name, char arn[static DK_ARN], struct dk_grant *out)
{
	struct dk_store *s = &c->srv->store;
	struct dk_key *k;
	int r;

	LOCK_SCOPE(&s->lock);
	r = dk_key_find(c, name, &k);
	if (r < 0)
		return r;
	(void)snprintf(arn, DK_ARN, "%s", k->arn);
	if (c->fault->deny_access) {
		char action[64];

		(void)snprintf(action, sizeof(action), "kms:%s", c->operation);
		return dk_deny(c, action, k->arn);
	}
	r = dk_key_usable(c, k);
	if (r == 0)
		grant(k, &k->family->material[k->family->n - 1], out);
	return r;
}

/* The material that sealed a blob, if its key is here, is the one named, and may be used. */
static int use_blob(struct dk_call *c, const char *name, const struct dk_bytes *blob, struct dk_grant *out)
{
	struct dk_store *s = &c->srv->store;
	struct dk_key *k = NULL;
	uint8_t material[32];
	char id[DK_ID];
	int r, ours = dk_blob_peek(blob, id, material);

	if (name) {
		r = use_key(c, name, c->key, out);
		if (r < 0)
			return r;
		if (ours == 0 && strcmp(id, out->id) != 0)
			return dk_fail(c, "IncorrectKeyException", INCORRECT);
	}
	if (ours < 0)
		return dk_fail(c, "InvalidCiphertextException", "%s", "");
	if (!name) {
		r = use_key(c, id, c->key, out);
		if (r < 0 && strcmp(c->err.type, "NotFoundException") == 0)
			return dk_fail(c, "AccessDeniedException",
			    "The ciphertext refers to a customer master key that does not exist, "
			    "does not exist in this region, or you are not allowed to access.");
		if (r < 0)
			return r;
	}
	LOCK_SCOPE(&s->lock);
	k = dk_key_by_id(s, out->id, c->caller.region);
	for (size_t i = 0; k && i < k->family->n; i++) {
		if (sodium_memcmp(k->family->material[i].id, material, sizeof(material)) == 0) {
			out->material = k->family->material[i];
			return 0;
		}
	}
	return dk_fail(c, "InvalidCiphertextException", "%s", "");
}

static int get_options(struct dk_call *c, bool *dry_run)
{
	const json_t *recipient = json_object_get(c->in, "Recipient"), *tokens = json_object_get(c->in, "GrantTokens");

	if (recipient && !json_is_null(recipient))
		return dk_fail(c, "UnsupportedOperationException", "Recipient is not supported");
	if (tokens && !json_is_null(tokens) && (!json_is_array(tokens) || json_array_size(tokens) > 10))
		return dk_fail(c, "ValidationException",
		    "1 validation error detected: Value at 'grantTokens' failed to satisfy "
		    "constraint: Member must have length less than or equal to 10");
	return dk_arg_bool(c, "DryRun", dry_run);
}

static int check_algorithm(struct dk_call *c, const char *member)
{
	const char *algorithm;
	int r = dk_arg_opt(c, member, 1, 64, &algorithm);

	if (r == 0 && algorithm && strcmp(algorithm, "SYMMETRIC_DEFAULT") != 0)
		r = dk_fail(c, "InvalidKeyUsageException",
		    "Algorithm %s is incompatible with key spec SYMMETRIC_DEFAULT.", algorithm);
	return r;
}

static int refuse_dry_run(struct dk_call *c)
{
	return dk_fail(
	    c, "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.");
}

static int seal(struct dk_call *c, const struct dk_grant *g, const json_t *context, const uint8_t *plain, size_t n)
{
	struct dk_bytes blob;
	int r = dk_blob_seal(g, context, plain, n, (size_t)c->fault->blob_size, &blob);

	if (r < 0) {
		r = dk_fail(c, "KMSInternalException", "cannot seal");
		c->err.status = 500;
		return r;
	}
	dk_put_blob(c, "CiphertextBlob", blob.b, blob.len);
	return 0;
}

int dk_encrypt(struct dk_call *c)
{
	CLEANUP_BYTES struct dk_bytes plain = { .len = 0 };
	CLEANUP_GRANT struct dk_grant g = { .id = "" };
	const char *name;
	bool dry_run;
	int r = dk_arg_str(c, "KeyId", 1, 2048, &name);

	if (r == 0)
		r = dk_arg_blob(c, "Plaintext", DK_PLAINTEXT_MAX, &plain);
	if (r == 0)
		r = get_context(c, "EncryptionContext", &c->context);
	if (r == 0)
		r = get_options(c, &dry_run);
	if (r == 0)
		r = check_algorithm(c, "EncryptionAlgorithm");
	if (r == 0)
		r = use_key(c, name, c->key, &g);
	if (r == 0 && dry_run)
		r = refuse_dry_run(c);
	if (r == 0)
		r = seal(c, &g, c->context, plain.b, plain.len);
	if (r < 0)
		return r;
	dk_put_str(c, "KeyId", g.arn);
	dk_put_str(c, "EncryptionAlgorithm", "SYMMETRIC_DEFAULT");
	return 0;
}

static int unseal(struct dk_call *c, const struct dk_grant *g, const json_t *context, const struct dk_bytes *blob,
    struct dk_bytes *plain)
{
	return dk_blob_open(g, context, blob, plain) < 0 ? dk_fail(c, "InvalidCiphertextException", "%s", "") : 0;
}

int dk_decrypt(struct dk_call *c)
{
	CLEANUP_BYTES struct dk_bytes plain = { .len = 0 };
	CLEANUP_GRANT struct dk_grant g = { .id = "" };
	struct dk_bytes blob;
	const char *name;
	bool dry_run;
	int r = dk_arg_blob(c, "CiphertextBlob", DK_BLOB_MAX, &blob);

	if (r == 0)
		r = dk_arg_opt(c, "KeyId", 1, 2048, &name);
	if (r == 0)
		r = get_context(c, "EncryptionContext", &c->context);
	if (r == 0)
		r = get_options(c, &dry_run);
	if (r == 0)
		r = check_algorithm(c, "EncryptionAlgorithm");
	if (r == 0)
		r = use_blob(c, name, &blob, &g);
	if (r == 0)
		r = unseal(c, &g, c->context, &blob, &plain);
	if (r == 0 && dry_run)
		r = refuse_dry_run(c);
	if (r < 0)
		return r;
	dk_put_str(c, "KeyId", g.arn);
	dk_put_blob(c, "Plaintext", plain.b, plain.len);
	dk_put_str(c, "EncryptionAlgorithm", "SYMMETRIC_DEFAULT");
	dk_put_hex(c, "KeyMaterialId", g.material.id, sizeof(g.material.id));
	return 0;
}

static int reencrypt_args(struct dk_call *c, struct dk_bytes *blob, const char **from, const char **to, bool *dry_run)
{
	int r = dk_arg_blob(c, "CiphertextBlob", DK_BLOB_MAX, blob);

	if (r == 0)
		r = dk_arg_opt(c, "SourceKeyId", 1, 2048, from);
	if (r == 0)
		r = dk_arg_str(c, "DestinationKeyId", 1, 2048, to);
	if (r == 0)
		r = get_context(c, "SourceEncryptionContext", &c->context);
	if (r == 0)
		r = get_context(c, "DestinationEncryptionContext", &c->context_to);
	if (r == 0)
		r = get_options(c, dry_run);
	if (r == 0)
		r = check_algorithm(c, "SourceEncryptionAlgorithm");
	if (r == 0)
		r = check_algorithm(c, "DestinationEncryptionAlgorithm");
	return r;
}

int dk_reencrypt(struct dk_call *c)
{
	CLEANUP_BYTES struct dk_bytes plain = { .len = 0 };
	CLEANUP_GRANT struct dk_grant source = { .id = "" };
	CLEANUP_GRANT struct dk_grant target = { .id = "" };
	struct dk_bytes blob;
	const char *from, *to;
	bool dry_run;
	int r = reencrypt_args(c, &blob, &from, &to, &dry_run);

	if (r == 0)
		r = use_blob(c, from, &blob, &source);
	if (r == 0)
		r = use_key(c, to, c->key_to, &target);
	if (r == 0)
		r = unseal(c, &source, c->context, &blob, &plain);
	if (r == 0 && dry_run)
		r = refuse_dry_run(c);
	if (r == 0)
		r = seal(c, &target, c->context_to, plain.b, plain.len);
	if (r < 0)
		return r;
	dk_put_str(c, "SourceKeyId", source.arn);
	dk_put_str(c, "KeyId", target.arn);
	dk_put_str(c, "SourceEncryptionAlgorithm", "SYMMETRIC_DEFAULT");
	dk_put_str(c, "DestinationEncryptionAlgorithm", "SYMMETRIC_DEFAULT");
	dk_put_hex(c, "SourceKeyMaterialId", source.material.id, sizeof(source.material.id));
	dk_put_hex(c, "DestinationKeyMaterialId", target.material.id, sizeof(target.material.id));
	return 0;
}

static int data_key_size(struct dk_call *c, size_t *out)
{
	const char *spec;
	int64_t n = 0;
	int r = dk_arg_opt(c, "KeySpec", 1, 32, &spec);

	if (r == 0)
		r = dk_arg_int(c, "NumberOfBytes", 1, 1024, 0, &n);
	if (r < 0)
		return r;
	if ((spec != NULL) == (n != 0))
		return dk_fail(c, "ValidationException", "Please specify either number of bytes or key spec.");
	if (spec && strcmp(spec, "AES_256") != 0 && strcmp(spec, "AES_128") != 0)
		return dk_fail(c, "ValidationException",
		    "1 validation error detected: Value '%s' at 'keySpec' failed to satisfy "
		    "constraint: Member must satisfy enum value set: [AES_256, AES_128]",
		    spec);
	*out = spec ? strcmp(spec, "AES_256") == 0 ? 32 : 16 : (size_t)n;
	return 0;
}

static int data_key(struct dk_call *c, bool show)
{
	CLEANUP_BYTES struct dk_bytes plain = { .len = 0 };
	CLEANUP_GRANT struct dk_grant g = { .id = "" };
	const char *name;
	bool dry_run;
	int r = dk_arg_str(c, "KeyId", 1, 2048, &name);

	if (r == 0)
		r = get_context(c, "EncryptionContext", &c->context);
	if (r == 0)
		r = get_options(c, &dry_run);
	if (r == 0)
		r = data_key_size(c, &plain.len);
	if (r == 0)
		r = use_key(c, name, c->key, &g);
	if (r == 0 && dry_run)
		r = refuse_dry_run(c);
	if (r < 0)
		return r;
	randombytes_buf(plain.b, plain.len);
	r = seal(c, &g, c->context, plain.b, plain.len);
	if (r < 0)
		return r;
	if (show)
		dk_put_blob(c, "Plaintext", plain.b, plain.len);
	dk_put_str(c, "KeyId", g.arn);
	dk_put_hex(c, "KeyMaterialId", g.material.id, sizeof(g.material.id));
	return 0;
}

int dk_generate_data_key(struct dk_call *c)
{
	return data_key(c, true);
}

int dk_generate_data_key_without_plaintext(struct dk_call *c)
{
	return data_key(c, false);
}

int dk_generate_random(struct dk_call *c)
{
	uint8_t b[1024];
	int64_t n;
	int r = dk_arg_int(c, "NumberOfBytes", 1, (int64_t)sizeof(b), 0, &n);

	if (r < 0)
		return r;
	if (n == 0)
		return dk_fail(c, "ValidationException", "NumberOfBytes is required.");
	randombytes_buf(b, (size_t)n);
	dk_put_blob(c, "Plaintext", b, (size_t)n);
	sodium_memzero(b, sizeof(b));
	return 0;
}
