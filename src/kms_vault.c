/* kms_vault.c — the transit engine of HashiCorp Vault or OpenBao as a provider.
 *
 * Hides: the members of requests and answers. A secret is drawn here and sealed by transit/encrypt. The encryption
 * context goes along twice, as associated data and as the context that derived keys need: a key uses what it is made
 * for, so nothing need be known of the key beforehand. What is stored is the ciphertext text, "vault:v3:...".
 *
 * The key's name leaves the server out, so that it may move: vault:[NAMESPACE/]MOUNT/keys/NAME. The key's version, from
 * the ciphertext, is what other providers call key material: big-endian in the last 8 of its 32 bytes. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "kms_vault_internal.h"
#include "log.h"
#include "secret.h"

#define BATCH_MAX      128u /* answers of 80 bytes each: far below HTTP_RESPONSE_MAX */
#define CIPHERTEXT_MAX 1024u
#define CONTEXT_TEXT   ((CONTEXT_ENCODED_MAX + 2) / 3 * 4 + 1)

struct vault {
	struct vault_link *link;
	bool owns_link;
	atomic_bool worked, looked; /* the key has answered; its properties were asked for */
	struct vault_name name;
	struct vault_check check;
};

static void free_json(json_t **json)
{
	json_decref(*json);
}

static void free_secret(char **p)
{
	secret_free(*p);
}

#define CLEANUP_JSON   __attribute__((cleanup(free_json)))
#define CLEANUP_SECRET __attribute__((cleanup(free_secret)))

static enum kms_status no_request(struct kms_err *err)
{
	return kms_fail(err, KMS_CONFIG, "BadRequest", "the request cannot be written as JSON");
}

static bool set(json_t *obj, const char *member, json_t *value)
{
	return !json_object_set_new(obj, member, value);
}

static bool set_context(json_t *obj, const struct context *ctx)
{
	uint8_t bytes[CONTEXT_ENCODED_MAX];
	char text[CONTEXT_TEXT];
	size_t n = context_encode(bytes, ctx);

	(void)bytes_b64(B64_STD, text, bytes, n);
	return !n || (set(obj, "associated_data", json_string(text)) && set(obj, "context", json_string(text)));
}

/* ---- ciphertexts: "vault:v<N>:<base64>" ---- */

/* The version, or 0 when this is none. */
static uint64_t version_of(const uint8_t *blob, size_t len)
{
	static const char start[] = "vault:v";
	size_t i = sizeof(start) - 1;
	uint64_t version = 0;

	if (len <= i || len > CIPHERTEXT_MAX || strncmp((const char *)blob, start, i))
		return 0;
	for (; i < len && isdigit(blob[i]) && version < UINT32_MAX; i++)
		version = version * 10 + (uint64_t)(blob[i] - '0');
	if (i + 1 >= len || blob[i++] != ':')
		return 0;
	for (; i < len; i++)
		if (!isalnum(blob[i]) && blob[i] != '+' && blob[i] != '/' && blob[i] != '=')
			return 0;
	return version;
}

static void fill_used(const struct vault *v, struct kms_used *used, uint64_t version, const json_t *answer)
{
	const char *id = jsonio_str(answer, "request_id");
	size_t n = 0;

	memcpy(used->key, v->name.key, strlen(v->name.key) + 1);
	memset(used->material, 0, sizeof(used->material));
	for (int i = 0; i < 8; i++)
		used->material[31 - i] = (uint8_t)(version >> (8 * i));
	for (; id && *id && n + 1 < sizeof(used->request_id); id++)
		used->request_id[n++] = *id > ' ' && *id <= '~' ? *id : '?';
	used->request_id[n] = '\0';
}

static enum kms_status read_plaintext(uint8_t secret[static 32], const json_t *from, struct kms_err *err)
{
	size_t len = 32;

	if (!jsonio_str(from, "plaintext"))
		return kms_fail(err, KMS_DOWN, "MalformedAnswer", "the answer has no plaintext");
	if (!jsonio_blob(secret, &len, from, "plaintext") && len == 32)
		return KMS_OK;
	explicit_bzero(secret, 32);
	return kms_fail(err, KMS_BAD_BLOB, "UnexpectedPlaintext", "the answer has no plaintext of 32 bytes");
}

static enum kms_status bad_ciphertext(struct kms_err *err)
{
	return kms_fail(err, KMS_BAD_BLOB, "InvalidCiphertext", "the sealed key is none of Vault's transit engine");
}

/* ---- calls about the key ---- */

static enum kms_status call(struct vault *v, const char *method, const char *operation, const char *body,
    uint64_t deadline, struct vault_answer *a, struct kms_err *err)
{
	char path[VAULT_KEY_PATH_MAX];
	const struct vault_request req = { method, path, body, deadline };

	(void)snprintf(path, sizeof(path), "%s/%s/%s", v->name.mount, operation, v->name.name);
	return vault_call(v->link, &req, atomic_load(&v->worked), a, err);
}

static enum kms_status describe(struct vault *v, uint64_t deadline, struct vault_answer *a, struct kms_err *err)
{
	enum kms_status status = call(v, "GET", "keys", NULL, deadline, a, err);

	if (status != KMS_OK && err->http == 404 && !*a->text)
		return kms_fail(err, KMS_CONFIG, "KeyNotFound", "no key '%s' in '%s'", v->name.name, v->name.mount);
	return status;
}

static bool strong(const char *type)
{
	return type &&
	    (!strcmp(type, "aes256-gcm96") || !strcmp(type, "chacha20-poly1305") ||
	        !strcmp(type, "xchacha20-poly1305"));
}

/* Before the first secret is sealed; the policy may forbid it, and then Vault's own refusal of a context has to do. */
static enum kms_status look_at_key(struct vault *v, uint64_t deadline, struct kms_err *err)
{
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	enum kms_status status;
	const json_t *data;

	if (atomic_load(&v->looked))
		return KMS_OK;
	status = describe(v, deadline, &a, err);
	if (status != KMS_OK && strcmp(err->code, "PermissionDenied"))
		return status;
	data = json_object_get(a.body, "data");
	if (status == KMS_OK && !strong(jsonio_str(data, "type")))
		return kms_fail(err, KMS_CONFIG, "WrongKeyType",
		    "key '%s' is of type '%.40s': make one of type aes256-gcm96", v->name.name,
		    jsonio_str(data, "type") ? jsonio_str(data, "type") : "");
	if (status == KMS_OK &&
	    (json_is_true(json_object_get(data, "exportable")) ||
	        json_is_true(json_object_get(data, "allow_plaintext_backup"))))
		log_warn("key '%s' may be taken out of Vault (exportable, or allow_plaintext_backup)", v->name.name);
	atomic_store(&v->looked, true);
	return KMS_OK;
}

static enum kms_status seal(struct vault *v, const struct context *ctx, const uint8_t secret[static 32],
    uint64_t deadline, struct vault_answer *a, struct kms_err *err)
{
	char text[45];
	CLEANUP_JSON json_t *request = json_object();
	CLEANUP_SECRET char *body = NULL;

	(void)bytes_b64(B64_STD, text, secret, 32);
	if (request && set(request, "plaintext", json_string(text)) && set_context(request, ctx))
		body = jsonio_print_secret(request);
	explicit_bzero(text, sizeof(text));
	return body ? call(v, "POST", "encrypt", body, deadline, a, err) : no_request(err);
}

/* NULL when the blob is none. Nothing in it is secret. */
static json_t *item_json(const struct context *ctx, const uint8_t *blob, size_t len)
{
	json_t *item = json_pack("{s:s%}", "ciphertext", (const char *)blob, len);

	if (item && set_context(item, ctx))
		return item;
	json_decref(item);
	return NULL;
}

/* The request that unseals this blob; free(). */
static char *decrypt_body(const struct context *ctx, const void *blob, size_t len)
{
	CLEANUP_JSON json_t *request = item_json(ctx, blob, len);

	return request ? jsonio_print(request) : NULL;
}

/* What may become the check, if none is known yet. */
static void keep_check(struct vault *v, const struct context *ctx, const void *blob, size_t len)
{
	CLEANUP_FREE char *body = vault_check_wanted(&v->check) ? decrypt_body(ctx, blob, len) : NULL;

	if (body)
		vault_check_worked(&v->check, body);
}

static enum kms_status vault_encrypt(void *priv, const struct context *ctx, const uint8_t secret[static 32],
    uint64_t deadline, struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	struct vault *v = priv;
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	enum kms_status status = look_at_key(v, deadline, err);
	const char *text;
	uint64_t version;

	if (status == KMS_OK)
		status = seal(v, ctx, secret, deadline, &a, err);
	if (status != KMS_OK)
		return status;
	text = jsonio_str(json_object_get(a.body, "data"), "ciphertext");
	version = text ? version_of((const uint8_t *)text, strlen(text)) : 0;
	if (!version)
		return kms_fail(err, KMS_CONFIG, "UnexpectedBlob", "the answer has no usable ciphertext");
	atomic_store(&v->worked, true);
	status = vault_check_sealed(&v->check, v->link, version, deadline, err);
	if (status != KMS_OK)
		return status;
	keep_check(v, ctx, text, strlen(text));
	blob->len = strlen(text);
	memcpy(blob->bytes, text, blob->len);
	fill_used(v, used, version, a.body);
	return KMS_OK;
}

static enum kms_status vault_generate(void *priv, const struct context *ctx, uint64_t deadline,
    uint8_t secret[static 32], struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	secret_random(secret, 32);
	return vault_encrypt(priv, ctx, secret, deadline, blob, used, err);
}

/* ---- unsealing ---- */

static enum kms_status vault_decrypt(void *priv, const char *key, const struct context *ctx, const uint8_t *blob,
    size_t len, uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	struct vault *v = priv;
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	CLEANUP_FREE char *body = NULL;
	uint64_t version = version_of(blob, len);
	enum kms_status status;

	if (strcmp(key, v->name.key))
		return kms_fail(err, KMS_BAD_BLOB, "IncorrectKey", "the key is '%.90s', not '%.90s'", v->name.key, key);
	if (!version)
		return bad_ciphertext(err);
	body = decrypt_body(ctx, blob, len);
	if (!body)
		return no_request(err);
	status = call(v, "POST", "decrypt", body, deadline, &a, err);
	if (status == KMS_BAD_BLOB)
		return vault_check_blob(&v->check, v->link, deadline, err);
	if (status != KMS_OK)
		return status;
	status = read_plaintext(secret, json_object_get(a.body, "data"), err);
	if (status != KMS_OK)
		return status;
	atomic_store(&v->worked, true);
	vault_check_worked(&v->check, body);
	fill_used(v, used, version, a.body);
	return KMS_OK;
}

/* Items whose blob is none stay out of the request; at[] says which item the i-th result is of. */
static char *batch_body(struct kms_item *items, size_t n, size_t *at, size_t *count)
{
	CLEANUP_JSON json_t *request = json_pack("{s:i, s:[]}", "partial_failure_response_code", 200, "batch_input");
	json_t *list = json_object_get(request, "batch_input"), *item;

	*count = 0;
	for (size_t i = 0; list && i < n; i++) {
		if (!version_of(items[i].blob, items[i].len)) {
			(void)bad_ciphertext(&items[i].err);
			continue;
		}
		item = item_json(items[i].context, items[i].blob, items[i].len);
		if (!item || json_array_append_new(list, item))
			return NULL;
		at[(*count)++] = i;
	}
	return *count ? jsonio_print(request) : NULL;
}

static void read_item(struct vault *v, struct kms_item *item, const json_t *result, const struct vault_answer *a)
{
	const char *error = jsonio_str(result, "error");
	struct vault_answer own = { .http = 400, .own = true };

	if (error && *error) {
		for (size_t i = 0; error[i] && i + 1 < sizeof(own.text); i++)
			own.text[i] = error[i] >= ' ' && error[i] <= '~' ? error[i] : '?';
		(void)vault_fail(&own, atomic_load(&v->worked), &item->err);
		return;
	}
	if (read_plaintext(item->secret, result, &item->err) != KMS_OK)
		return;
	atomic_store(&v->worked, true);
	keep_check(v, item->context, item->blob, item->len);
	fill_used(v, &item->used, version_of(item->blob, item->len), a->body);
	memset(&item->err, 0, sizeof(item->err));
}

/* One verdict for all that were sent. */
static void judge_bad_blobs(struct vault *v, struct kms_item *items, const size_t *at, size_t count, uint64_t deadline)
{
	struct kms_err verdict = { .status = KMS_BAD_BLOB };
	size_t bad = 0;

	for (size_t i = 0; i < count; i++)
		bad += items[at[i]].err.status == KMS_BAD_BLOB;
	if (!bad || vault_check_blob(&v->check, v->link, deadline, &verdict) == KMS_BAD_BLOB)
		return;
	for (size_t i = 0; i < count; i++)
		if (items[at[i]].err.status == KMS_BAD_BLOB)
			items[at[i]].err = verdict;
}

static void vault_decrypt_batch(void *priv, const char *key, struct kms_item *items, size_t n, uint64_t deadline)
{
	struct vault *v = priv;
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	CLEANUP_FREE char *body = NULL;
	size_t at[BATCH_MAX], count = 0;
	const json_t *results;
	struct kms_err err = { 0 };
	enum kms_status status;

	if (n > BATCH_MAX || strcmp(key, v->name.key))
		return; /* the wrapper's verdict for what was not answered stands */
	body = batch_body(items, n, at, &count);
	if (!body && !count)
		return;
	status = body ? call(v, "POST", "decrypt", body, deadline, &a, &err) : no_request(&err);
	results = json_object_get(json_object_get(a.body, "data"), "batch_results");
	if (status == KMS_OK && json_array_size(results) != count)
		status =
		    kms_fail(&err, KMS_DOWN, "MalformedAnswer", "the answer has not one result for each sealed key");
	for (size_t i = 0; i < count; i++)
		if (status != KMS_OK)
			items[at[i]].err = err;
		else
			read_item(v, &items[at[i]], json_array_get(results, i), &a);
	judge_bad_blobs(v, items, at, count, deadline);
}

/* ---- the key itself ---- */

static enum kms_status vault_describe(
    void *priv, const char *key, uint64_t deadline, struct kms_description *d, struct kms_err *err)
{
	struct vault *v = priv;
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	const json_t *data;
	const char *type;
	enum kms_status status;

	if (strcmp(key, v->name.key))
		return kms_fail(err, KMS_CONFIG, "NotFound", "the key is '%.90s', not '%.90s'", v->name.key, key);
	status = describe(v, deadline, &a, err);
	if (status != KMS_OK)
		return status;
	data = json_object_get(a.body, "data");
	type = jsonio_str(data, "type");
	if (!type)
		return kms_fail(err, KMS_DOWN, "MalformedAnswer", "the answer names no type of key");
	memcpy(d->arn, v->name.key, strlen(v->name.key) + 1);
	(void)snprintf(d->state, sizeof(d->state), "%s",
	    json_is_true(json_object_get(data, "soft_deleted")) ? "SoftDeleted" : "Enabled");
	(void)snprintf(d->usage, sizeof(d->usage), "%s", strong(type) ? "ENCRYPT_DECRYPT" : "OTHER");
	(void)snprintf(d->spec, sizeof(d->spec), "%.20s v%u", type,
	    (unsigned)json_integer_value(json_object_get(data, "latest_version")));
	return KMS_OK;
}

/* ---- life ---- */

static void vault_close(void *priv)
{
	struct vault *v = priv;

	if (v->owns_link && v->link)
		vault_link_close(v->link);
	(void)pthread_mutex_destroy(&v->check.lock);
	free(v->check.body);
	free(v);
}

static int vault_open(void **priv, const struct kms_params *p, struct kms_err *err)
{
	const struct vault *shared = kms_shared(p, &kms_vault_provider);
	struct vault *v;
	int r = 0;

	if (!p->key || !*p->key) {
		(void)kms_fail(err, KMS_CONFIG, "NoKey", "no key is configured: set 'key' in [vault]");
		return -EINVAL;
	}
	v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	r = -pthread_mutex_init(&v->check.lock, NULL);
	if (r) {
		free(v);
		return r;
	}
	v->owns_link = !shared || !vault_link_fits(shared->link, p);
	if (v->owns_link)
		r = vault_link_open(&v->link, p, err);
	else
		v->link = shared->link;
	if (!r)
		r = vault_name_key(&v->name, v->link->namespace, p, err);
	(void)snprintf(v->check.path, sizeof(v->check.path), "%s/decrypt/%s", v->name.mount, v->name.name);
	if (r)
		vault_close(v);
	else
		*priv = v;
	return r;
}

static const char *vault_key(void *priv)
{
	const struct vault *v = priv;

	return v->name.key;
}

static void vault_refresh(void *priv)
{
	struct vault *v = priv;

	vault_token_forget(v->link);
	atomic_store(&v->looked, false);
	vault_check_forget(&v->check);
}

/* Files with tokens and secret ids are read again anyway; the rest stays as it is. */
static int vault_reconfigure(void *priv, const struct kms_params *p, struct kms_err *err)
{
	const struct vault *v = priv;

	if (vault_link_fits(v->link, p) && p->key && (!strcmp(p->key, v->name.name) || !strcmp(p->key, v->name.key))) {
		vault_link_retime(v->link, p);
		return 0;
	}
	(void)kms_fail(err, KMS_CONFIG, "OtherSettings", "a mounted store keeps its settings in [vault]: remount it");
	return -EINVAL;
}

static void vault_where(void *priv, struct kms_where *out)
{
	const struct vault *v = priv;
	struct vault_link *l = v->link;

	if (l->token_file)
		(void)snprintf(out->identity, sizeof(out->identity), "token file '%.200s'", l->token_file);
	else
		(void)snprintf(out->identity, sizeof(out->identity), "AppRole %.200s", l->role_id);
	LOCK_SCOPE(&l->lock);
	out->expires = l->header ? l->expires_unix : 0;
}

const struct kms_provider kms_vault_provider = {
	.name = "vault",
	.number = 2,
	.open = vault_open,
	.close = vault_close,
	.generate = vault_generate,
	.decrypt = vault_decrypt,
	.encrypt = vault_encrypt,
	.describe = vault_describe,
	.refresh = vault_refresh,
	.decrypt_batch = vault_decrypt_batch,
	.batch_max = BATCH_MAX,
	.reconfigure = vault_reconfigure,
	.where = vault_where,
	.key = vault_key,
};
