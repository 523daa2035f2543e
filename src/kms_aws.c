/* kms_aws.c — AWS KMS as a provider: five operations of its JSON protocol.
 *
 * Hides: the members of requests and answers. Everything that is the same for all of them is in kms_aws_call.c, which
 * Region is asked in kms_aws_set.c. One call asks one Region; to ask again, perhaps another, is the wrapper's. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "kms_aws_internal.h"

#define MAX_CONNECTIONS 8u

/* ---- requests ---- */

/* NULL for an empty context: the member is then left out. */
static json_t *context_json(const struct context *ctx)
{
	json_t *map = ctx->n ? json_object() : NULL;

	for (size_t i = 0; map && i < ctx->n; i++)
		if (json_object_set_new(map, ctx->pair[i].name, json_string(ctx->pair[i].value))) {
			json_decref(map);
			map = NULL;
		}
	return map;
}

static bool set(json_t *obj, const char *member, json_t *value)
{
	return !json_object_set_new(obj, member, value);
}

static bool set_context(json_t *obj, const char *member, const struct context *ctx)
{
	return !ctx->n || set(obj, member, context_json(ctx));
}

static bool set_blob(json_t *obj, const char *member, const uint8_t *blob, size_t len)
{
	char text[(KMS_BLOB_MAX + 2) / 3 * 4 + 1];
	bool ok;

	if (len > KMS_BLOB_MAX)
		return false;
	(void)bytes_b64(B64_STD, text, blob, len);
	ok = set(obj, member, json_string(text));
	explicit_bzero(text, bytes_b64_size(len)); /* Encrypt sends a secret */
	return ok;
}

static void free_json(json_t **json)
{
	json_decref(*json);
}

#define CLEANUP_JSON __attribute__((cleanup(free_json)))

static enum kms_status no_request(struct kms_err *err)
{
	return kms_fail(err, KMS_CONFIG, "BadRequest", "the request cannot be written as JSON");
}

/* ---- answers ---- */

static void read_used(struct kms_used *used, const json_t *answer, const char *material, const char *request_id)
{
	const char *hex = jsonio_str(answer, material);

	if (jsonio_copy(used->key, sizeof(used->key), answer, "KeyId"))
		used->key[0] = '\0'; /* the wrapper refuses it */
	if (!hex || bytes_unhex(used->material, sizeof(used->material), hex, strlen(hex)))
		memset(used->material, 0, sizeof(used->material));
	snprintf(used->request_id, sizeof(used->request_id), "%s", request_id);
}

static enum kms_status read_blob(struct kms_blob *blob, const json_t *answer, struct kms_err *err)
{
	blob->len = sizeof(blob->bytes);
	if (!jsonio_blob(blob->bytes, &blob->len, answer, "CiphertextBlob") && blob->len)
		return KMS_OK;
	blob->len = 0;
	return kms_fail(err, KMS_CONFIG, "UnexpectedBlob", "the answer has no usable CiphertextBlob");
}

static enum kms_status read_secret(
    uint8_t secret[static 32], const json_t *answer, enum kms_status otherwise, struct kms_err *err)
{
	size_t len = 32;

	if (!jsonio_blob(secret, &len, answer, "Plaintext") && len == 32)
		return KMS_OK;
	explicit_bzero(secret, 32);
	return kms_fail(err, otherwise, "UnexpectedPlaintext", "the answer has no plaintext of 32 bytes");
}

/* ---- one Region ---- */

static enum kms_status describe(struct aws *a, const struct aws_endpoint *at, const char *key, uint64_t deadline,
    struct kms_description *d, struct kms_err *err);

/* External key stores report every trouble of theirs as a state of the key. Where the words are unknown, the
 * key's own state decides: an enabled key is in passing trouble. */
static enum kms_status settle(
    struct aws *a, const struct aws_call *call, const char *key, enum kms_status status, struct kms_err *err)
{
	CLEANUP_FREE struct kms_description *d = NULL;
	struct kms_err ignored;

	if (status != KMS_DENIED || strcmp(err->code, "KMSInvalidStateException") || kms_aws_state_known(err->message))
		return status;
	d = calloc(1, sizeof(*d));
	if (d && describe(a, call->at, key, call->deadline, d, &ignored) == KMS_OK && !strcmp(d->state, "Enabled"))
		err->status = KMS_DOWN;
	return err->status;
}

/* An operation with the configured key, and what is wanted of its answer; NULL: not. */
struct order {
	const char *operation;
	json_t *request;
	bool opening; /* Decrypt */
	uint8_t *secret;
	struct kms_blob *blob;
	struct kms_used *used;
};

/* A success is one only when all of it is there: it may end a denial. */
static enum kms_status take(const struct order *o, const struct aws_region *r, const json_t *answer,
    const char *request_id, struct kms_err *err)
{
	enum kms_status status = KMS_OK;

	read_used(o->used, answer, "KeyMaterialId", request_id);
	if (aws_arn_is_key(r->key) && strcmp(o->used->key, r->key))
		return kms_fail(
		    err, KMS_CONFIG, "UnexpectedKey", "key '%.90s' answered instead of '%.90s'", o->used->key, r->key);
	if (o->blob)
		status = read_blob(o->blob, answer, err);
	if (status == KMS_OK && o->secret)
		status = read_secret(o->secret, answer, o->opening ? KMS_BAD_BLOB : KMS_CONFIG, err);
	return status;
}

/* About the configured key, at the Region whose turn it is: request gets the KeyId it has there, and the answer must
 * name that very key. */
static enum kms_status ask(struct aws *a, const struct order *o, uint64_t deadline, struct kms_err *err)
{
	struct aws_turn turn;
	struct aws_set *regions = aws_turn_begin(a, deadline, o->opening, &turn);
	const struct aws_region *r = &regions->region[turn.region];
	const struct aws_call call = { o->operation, o->request, true, &r->endpoint, turn.until };
	enum aws_reach reach = AWS_NOT_SENT;
	CLEANUP_JSON json_t *answer = NULL;
	char request_id[128];
	enum kms_status status;

	snprintf(o->used->key, sizeof(o->used->key), "%s", r->key); /* asked, until another answers */
	if (!set(o->request, "KeyId", json_string(r->key)))
		status = no_request(err);
	else
		status = settle(a, &call, r->key, aws_call(a, &call, &answer, request_id, &reach, err), err);
	if (status == KMS_OK)
		status = take(o, r, answer, request_id, err);
	if (status == KMS_OK)
		atomic_store(&a->worked, true);
	aws_turn_end(a, regions, &turn, status, reach);
	/* no reason to fail while the replica works */
	if (turn.aside && status == KMS_CONFIG && reach != AWS_REFUSED)
		status = err->status = KMS_DOWN;
	return status;
}

/* Where a key that a request names lives: its ARN's Region, else home. */
static const struct aws_endpoint *place(const struct aws_set *regions, const char *key)
{
	char region[64];

	for (unsigned i = 0; aws_arn_region(region, key) && i < regions->n; i++)
		if (!strcmp(region, regions->region[i].endpoint.region))
			return &regions->region[i].endpoint;
	return &regions->region[0].endpoint;
}

/* ---- the operations ---- */

static enum kms_status aws_generate(void *priv, const struct context *ctx, uint64_t deadline, uint8_t secret[static 32],
    struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	CLEANUP_JSON json_t *request = json_pack("{s:i}", "NumberOfBytes", 32);
	const struct order order = {
		.operation = "GenerateDataKey", .request = request, .secret = secret, .blob = blob, .used = used
	};

	if (!request || !set_context(request, "EncryptionContext", ctx))
		return no_request(err);
	return ask(priv, &order, deadline, err);
}

static enum kms_status aws_decrypt(void *priv, const char *key, const struct context *ctx, const uint8_t *blob,
    size_t len, uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	CLEANUP_JSON json_t *request = json_object();
	const struct order order = {
		.operation = "Decrypt", .request = request, .opening = true, .secret = secret, .used = used
	};

	(void)key; /* the configured one, whatever it is called in the Region that is asked */
	if (!request || !set_blob(request, "CiphertextBlob", blob, len) ||
	    !set_context(request, "EncryptionContext", ctx))
		return no_request(err);
	return ask(priv, &order, deadline, err);
}

static enum kms_status aws_encrypt(void *priv, const struct context *ctx, const uint8_t secret[static 32],
    uint64_t deadline, struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	CLEANUP_JSON json_t *request = json_object();
	const struct order order = { .operation = "Encrypt", .request = request, .blob = blob, .used = used };

	if (!request || !set_blob(request, "Plaintext", secret, 32) || !set_context(request, "EncryptionContext", ctx))
		return no_request(err);
	return ask(priv, &order, deadline, err);
}

/* Both keys must be of one Region; the service says so otherwise. */
static enum kms_status reencrypt(struct aws *a, const struct aws_set *regions, const char *from, const json_t *request,
    uint64_t deadline, struct kms_blob *out, struct kms_used *used, struct kms_err *err)
{
	CLEANUP_JSON json_t *answer = NULL;
	const struct aws_call call = { "ReEncrypt", request, false, place(regions, from), deadline };
	char request_id[128];
	const char *source;
	enum kms_status status;
	enum aws_reach reach;

	status = settle(a, &call, from, aws_call(a, &call, &answer, request_id, &reach, err), err);
	if (status != KMS_OK)
		return status;
	source = jsonio_str(answer, "SourceKeyId");
	if (!source || strcmp(source, from))
		return kms_fail(
		    err, KMS_CONFIG, "UnexpectedKey", "the sealed key was opened with another key than '%.120s'", from);
	read_used(used, answer, "DestinationKeyMaterialId", request_id);
	return read_blob(out, answer, err);
}

static enum kms_status aws_reencrypt(void *priv, const char *from, const struct context *src, const uint8_t *blob,
    size_t len, const char *to, const struct context *dst, uint64_t deadline, struct kms_blob *out,
    struct kms_used *used, struct kms_err *err)
{
	CLEANUP_JSON json_t *request = json_pack("{s:s, s:s}", "SourceKeyId", from, "DestinationKeyId", to);
	struct aws_set *regions;
	enum kms_status status;

	if (!request || !set_blob(request, "CiphertextBlob", blob, len) ||
	    !set_context(request, "SourceEncryptionContext", src) ||
	    !set_context(request, "DestinationEncryptionContext", dst))
		return no_request(err);
	regions = aws_set_get(priv);
	status = reencrypt(priv, regions, from, request, deadline, out, used, err);
	aws_set_put(priv, regions);
	return status;
}

static void copy_member(char *out, size_t size, const json_t *obj, const char *member)
{
	if (jsonio_copy(out, size, obj, member))
		out[0] = '\0';
}

static void add_region(struct kms_description *d, const json_t *key)
{
	const char *region = jsonio_str(key, "Region");
	size_t n = strlen(d->regions);

	if (region && region[strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-")] == '\0' &&
	    n + strlen(region) + 2 < sizeof(d->regions))
		snprintf(d->regions + n, sizeof(d->regions) - n, "%s%s", n ? ", " : "", region);
}

static void read_regions(struct kms_description *d, const json_t *meta)
{
	const json_t *of = json_object_get(meta, "MultiRegionConfiguration"), *replica;
	size_t i;

	d->multi_region = json_is_true(json_object_get(meta, "MultiRegion"));
	add_region(d, json_object_get(of, "PrimaryKey"));
	json_array_foreach(json_object_get(of, "ReplicaKeys"), i, replica)
	{
		add_region(d, replica);
	}
}

static enum kms_status describe(struct aws *a, const struct aws_endpoint *at, const char *key, uint64_t deadline,
    struct kms_description *d, struct kms_err *err)
{
	CLEANUP_JSON json_t *request = json_pack("{s:s}", "KeyId", key);
	CLEANUP_JSON json_t *answer = NULL;
	const struct aws_call call = { "DescribeKey", request, false, at, deadline };
	enum kms_status status;
	enum aws_reach reach;
	const json_t *meta;

	if (!request)
		return no_request(err);
	status = aws_call(a, &call, &answer, err->request_id, &reach, err);
	if (status != KMS_OK)
		return status;
	meta = json_object_get(answer, "KeyMetadata");
	copy_member(d->arn, sizeof(d->arn), meta, "Arn");
	copy_member(d->state, sizeof(d->state), meta, "KeyState");
	copy_member(d->usage, sizeof(d->usage), meta, "KeyUsage");
	copy_member(d->spec, sizeof(d->spec), meta, "KeySpec");
	if (!*d->spec) /* before 2021 */
		copy_member(d->spec, sizeof(d->spec), meta, "CustomerMasterKeySpec");
	read_regions(d, meta);
	if (!aws_arn_is_key(d->arn) || !aws_arn_region(d->region, d->arn))
		return kms_fail(err, KMS_DOWN, "MalformedAnswer", "the answer names no key ARN");
	return KMS_OK;
}

static enum kms_status aws_describe(
    void *priv, const char *key, uint64_t deadline, struct kms_description *d, struct kms_err *err)
{
	struct aws_set *regions = aws_set_get(priv);
	enum kms_status status = describe(priv, place(regions, key), key, deadline, d, err);

	aws_set_put(priv, regions);
	return status;
}

/* ---- life ---- */

static void aws_close(void *priv)
{
	struct aws *a = priv;

	http_close(a->http);
	if (!a->borrowed)
		awscred_close(a->cred);
	free(a->set);
	(void)pthread_mutex_destroy(&a->lock);
	free(a);
}

static int aws_connect(struct aws *a, const struct kms_params *params, struct kms_err *err)
{
	const struct http_params http = { .connect_timeout_ms = params->connect_timeout_ms,
		.max_handles = params->max_connections ? params->max_connections : MAX_CONNECTIONS,
		.ca_bundle = params->ca_bundle && *params->ca_bundle ? params->ca_bundle : getenv("AWS_CA_BUNDLE"),
		.proxy = params->proxy,
		.user_agent = params->user_agent ? params->user_agent : "byokfs" };
	int r = http_open(&a->http, &http);

	if (!r)
		return aws_set_make(&a->set, params, NULL, a->cred, err);
	(void)kms_fail(err, KMS_CONFIG, "BadParameters", "cannot set up the connection: %s", strerrordesc_np(-r));
	return r;
}

/* Whose STS is asked: kms.region's, else the key's; NULL: the environment knows. */
static const char *sts_region(char out[static 64], const struct kms_params *params)
{
	if (params->region && *params->region)
		return params->region;
	return aws_arn_region(out, params->key) ? out : NULL;
}

static const char *sts_replicas(const struct kms_params *params)
{
	return params->failover ? params->replicas : NULL;
}

static int aws_fill(struct aws *a, const struct kms_params *params, struct kms_err *err)
{
	char region[64];
	const struct awscred_params cred = { .profile = params->profile,
		.role_arn = params->role_arn,
		.external_id = params->external_id,
		.session_name = params->session_name,
		.region = sts_region(region, params),
		.replicas = sts_replicas(params),
		.ca_bundle = params->ca_bundle,
		.proxy = params->proxy,
		.user_agent = params->user_agent ? params->user_agent : "byokfs",
		.connect_timeout_ms = params->connect_timeout_ms };
	int r = awscred_open(&a->cred, &cred);

	if (!r)
		return aws_connect(a, params, err);
	(void)kms_fail(err, KMS_CONFIG, "BadParameters", "cannot set up credentials: %s", strerrordesc_np(-r));
	return r;
}

/* Not the connections: a Region that hangs must not use up those of another key. */
static int aws_borrow(struct aws *a, const struct aws *from, const struct kms_params *params, struct kms_err *err)
{
	a->borrowed = true;
	a->cred = from->cred;
	return aws_connect(a, params, err);
}

static int aws_open(void **priv, const struct kms_params *params, struct kms_err *err)
{
	const struct aws *from = kms_shared(params, &kms_aws_provider);
	struct aws *a;
	int r;

	if (!params->key || !*params->key || strlen(params->key) > KMS_KEY_MAX) {
		(void)kms_fail(err, KMS_CONFIG, "NoKey", "no key is configured, or its name is too long");
		return -EINVAL;
	}
	a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	(void)pthread_mutex_init(&a->lock, NULL);
	r = from ? aws_borrow(a, from, params, err) : aws_fill(a, params, err);
	if (r)
		aws_close(a);
	else
		*priv = a;
	return r;
}

static void aws_refresh(void *priv)
{
	struct aws *a = priv;

	awscred_refresh(a->cred);
}

/* What is borrowed is the lender's to change. */
static int aws_take_over(struct aws *a, struct aws_set *fresh, const struct kms_params *params)
{
	char region[64];
	int r = a->borrowed ? 0 : awscred_reconfigure(a->cred, sts_region(region, params), sts_replicas(params));

	if (r) {
		aws_set_put(a, fresh);
		return r;
	}
	http_set_connect_timeout(a->http, params->connect_timeout_ms);
	aws_set_swap(a, fresh);
	return 0;
}

/* The key may move to a sibling. An alias was resolved once: it keeps the key it stood for. */
static int aws_reconfigure(void *priv, const struct kms_params *params, struct kms_err *err)
{
	struct aws *a = priv;
	struct aws_set *old = aws_set_get(a), *fresh = NULL;
	const char *home = old->region[0].key, *key = params->key;
	int r = -EINVAL;

	if (!key || !aws_arn_is_key(key))
		key = home;
	if (strlen(key) <= KMS_KEY_MAX && aws_same_key(key, home))
		r = aws_set_make(&fresh, params, key, a->cred, err);
	else
		(void)kms_fail(err, KMS_CONFIG, "OtherKey",
		    "'%.90s' is another key than '%.90s': a mounted store keeps its key", key, home);
	if (!r)
		r = aws_take_over(a, fresh, params);
	aws_set_put(a, old);
	return r == -ENOMEM ? -EINVAL : r;
}

static void aws_where(void *priv, struct kms_where *out)
{
	struct aws *a = priv;
	unsigned now;

	awscred_identity(a->cred, out->identity, &out->expires);
	LOCK_SCOPE(&a->lock);
	now = aws_choice_region(&a->set->choice);
	snprintf(out->region, sizeof(out->region), "%s", a->set->region[now].endpoint.region);
	out->away = now != 0;
}

const struct kms_provider kms_aws_provider = {
	.name = "aws",
	.number = 1,
	.open = aws_open,
	.close = aws_close,
	.generate = aws_generate,
	.decrypt = aws_decrypt,
	.encrypt = aws_encrypt,
	.reencrypt = aws_reencrypt,
	.describe = aws_describe,
	.refresh = aws_refresh,
	.same_key = aws_same_key,
	.reconfigure = aws_reconfigure,
	.where = aws_where,
	.pinned = aws_arn_is_key,
};
