/* devkms_vault_transit.c — the transit engine: keys with versions, and what is done with them, singly or in batches.
 * Keys are the document's member "keys", by mount and name. Errors are in the words of Vault and OpenBao. */
#include <errno.h>
#include <sodium.h>
#include <stdio.h>

#include "bytes.h"
#include "devkms_vault.h"
#include "io.h"
#include "jsonio.h"

#define DATA_MAX 8192u

static int64_t get_int(const json_t *o, const char *member)
{
	return json_integer_value(json_object_get(o, member));
}

static bool get_bool(const json_t *o, const char *member)
{
	return json_is_true(json_object_get(o, member));
}

static const char *type_of(const json_t *key)
{
	const char *type = jsonio_str(key, "type");

	return type ? type : "aes256-gcm96";
}

static size_t versions(const json_t *key)
{
	return json_array_size(json_object_get(key, "versions"));
}

static void add_version(json_t *key)
{
	uint8_t raw[32];
	char text[45];

	randombytes_buf(raw, sizeof(raw));
	(void)bytes_b64(B64_STD, text, raw, sizeof(raw));
	(void)json_array_append_new(json_object_get(key, "versions"),
	    json_pack("{s:s, s:I}", "key", text, "created", (json_int_t)io_unix_time()));
	explicit_bzero(raw, sizeof(raw));
	explicit_bzero(text, sizeof(text));
}

/* ---- one item ---- */

struct item {
	json_t *key;
	const json_t *in;
	uint8_t context[DATA_MAX], aad[DATA_MAX], material[32];
	size_t contextlen, aadlen;
	char error[256];
};

static void fail(struct item *i, const char *text)
{
	(void)snprintf(i->error, sizeof(i->error), "%s", text);
}

static bool decode(struct item *i, const char *member, uint8_t *out, size_t *len)
{
	int r;

	*len = DATA_MAX;
	r = jsonio_blob(out, len, i->in, member);
	if (r == 0)
		return true;
	*len = 0;
	if (r != -ENOENT)
		fail(i, "illegal base64 data at input byte 0");
	return r == -ENOENT;
}

/* Fills what sealing and opening share. */
static bool prepare(struct item *i, struct dk_vault_sealing *s, size_t version)
{
	const json_t *v = json_array_get(json_object_get(i->key, "versions"), version - 1);
	size_t n = sizeof(i->material);

	if (!decode(i, "context", i->context, &i->contextlen) || !decode(i, "associated_data", i->aad, &i->aadlen))
		return false;
	if (get_bool(i->key, "derived") && !i->contextlen) {
		fail(i,
		    "missing 'context' for key derivation; the key was created using a derived key, which means "
		    "additional, per-request information must be included in order to perform operations with the key");
		return false;
	}
	if (jsonio_blob(i->material, &n, v, "key") < 0) {
		fail(i, "no such key version");
		return false;
	}
	*s = (struct dk_vault_sealing){ .type = type_of(i->key),
		.key = i->material,
		.context = i->context,
		.contextlen = get_bool(i->key, "derived") ? i->contextlen : 0,
		.aad = i->aad,
		.aadlen = i->aadlen };
	return true;
}

static bool usable(struct item *i)
{
	if (get_bool(i->key, "soft_deleted"))
		fail(i, "refusing to use soft-deleted key");
	else if (strncmp(type_of(i->key), "rsa-", 4) == 0 && json_object_get(i->in, "associated_data"))
		(void)snprintf(i->error, sizeof(i->error),
		    "'[0].associated_data' provided for non-AEAD cipher suite %s", type_of(i->key));
	return !i->error[0];
}

static json_t *seal(struct item *i, const uint8_t *plain, size_t n)
{
	size_t version = versions(i->key), wanted = (size_t)get_int(i->in, "key_version");
	uint8_t sealed[DATA_MAX + DK_VAULT_EXTRA];
	char text[(DATA_MAX + DK_VAULT_EXTRA) / 3 * 4 + 40];
	struct dk_vault_sealing s;
	int at;

	if (wanted > version) {
		fail(i, "requested version for encryption is higher than the latest key version");
		return NULL;
	}
	version = wanted ? wanted : version;
	if (!prepare(i, &s, version) || dk_vault_seal(&s, plain, n, sealed) < 0)
		return NULL;
	at = snprintf(text, sizeof(text), "vault:v%zu:", version);
	(void)bytes_b64(B64_STD, text + at, sealed, n + DK_VAULT_EXTRA);
	return json_pack("{s:s, s:I}", "ciphertext", text, "key_version", (json_int_t)version);
}

static json_t *encrypt(struct item *i)
{
	uint8_t plain[DATA_MAX];
	WIPE_SCOPE(plain);
	size_t n = sizeof(plain);

	if (!usable(i))
		return NULL;
	if (jsonio_blob(plain, &n, i->in, "plaintext") < 0) {
		fail(i,
		    json_object_get(i->in, "plaintext") ? "illegal base64 data at input byte 0"
		                                        : "missing plaintext to encrypt");
		return NULL;
	}
	return seal(i, plain, n);
}

/* The version and the base64 part of a ciphertext. */
static const char *parse(struct item *i, size_t *version)
{
	const char *text = jsonio_str(i->in, "ciphertext");
	char *end = NULL;

	if (!text || !*text)
		fail(i, "missing ciphertext to decrypt");
	else if (strncmp(text, "vault:v", 7) != 0)
		fail(i, "invalid ciphertext: no prefix");
	else if (!strchr(text + 7, ':'))
		fail(i, "invalid ciphertext: wrong number of fields");
	if (i->error[0])
		return NULL;
	*version = strtoul(text + 7, &end, 10);
	if (end == text + 7 || *end != ':')
		fail(i, "invalid ciphertext: version number could not be decoded");
	else if (*version > versions(i->key))
		fail(i, "invalid ciphertext: version is too new");
	else if (*version == 0 || (int64_t)*version < get_int(i->key, "min_decryption_version"))
		fail(i, "ciphertext or signature version is disallowed by policy (too old)");
	return i->error[0] ? NULL : end + 1;
}

static int open_item(struct item *i, uint8_t *plain, size_t *n)
{
	uint8_t sealed[DATA_MAX + DK_VAULT_EXTRA];
	struct dk_vault_sealing s;
	size_t version;
	const char *text = usable(i) ? parse(i, &version) : NULL;
	int len, r;

	if (!text || !prepare(i, &s, version))
		return -EINVAL;
	len = bytes_unb64(B64_STD, sealed, sizeof(sealed), text, strlen(text));
	if (len < 0) {
		fail(i, "invalid ciphertext: could not decode base64");
		return -EINVAL;
	}
	r = dk_vault_open(&s, sealed, (size_t)len, plain);
	if (r < 0)
		fail(i, r == -EINVAL ? "invalid ciphertext length" : "cipher: message authentication failed");
	*n = (size_t)len - DK_VAULT_EXTRA;
	return r;
}

static json_t *decrypt(struct item *i)
{
	uint8_t plain[DATA_MAX + DK_VAULT_EXTRA];
	WIPE_SCOPE(plain);
	char text[(DATA_MAX + DK_VAULT_EXTRA) / 3 * 4 + 8];
	WIPE_SCOPE(text);
	size_t n;

	if (open_item(i, plain, &n) < 0)
		return NULL;
	(void)bytes_b64(B64_STD, text, plain, n);
	return json_pack("{s:s}", "plaintext", text);
}

static json_t *rewrap(struct item *i)
{
	uint8_t plain[DATA_MAX + DK_VAULT_EXTRA];
	WIPE_SCOPE(plain);
	size_t n;

	return open_item(i, plain, &n) < 0 ? NULL : seal(i, plain, n);
}

static json_t *datakey(struct item *i)
{
	uint8_t fresh[32];
	WIPE_SCOPE(fresh);
	char text[45];
	json_t *o;

	if (!usable(i))
		return NULL;
	randombytes_buf(fresh, sizeof(fresh));
	o = seal(i, fresh, sizeof(fresh));
	(void)bytes_b64(B64_STD, text, fresh, sizeof(fresh));
	if (o)
		(void)json_object_set_new(o, "plaintext", json_string(text));
	explicit_bzero(text, sizeof(text));
	return o;
}

/* ---- a request ---- */

typedef json_t *(*item_fn)(struct item *);

static json_t *run_item(item_fn fn, json_t *key, const json_t *in, char error[static 256])
{
	struct item *i = calloc(1, sizeof(*i));
	json_t *o;

	if (!i)
		return NULL;
	i->key = key;
	i->in = in;
	o = fn(i);
	(void)snprintf(error, 256, "%s", i->error[0] || o ? i->error : "internal error");
	explicit_bzero(i, sizeof(*i));
	free(i);
	return o;
}

/* Results in the order of the input; a failed one has "error" beside its empty result. */
static void run_batch(struct dk_vault_call *c, item_fn fn, json_t *key, const json_t *list)
{
	json_t *results = json_array();
	int64_t partial = get_int(c->in, "partial_failure_response_code");
	size_t good = 0, bad = 0;
	char error[256];

	c->items = json_array_size(list);
	if (c->items == 0) {
		json_decref(results);
		dk_vault_error(c, 400, "missing batch input to process");
		return;
	}
	for (size_t n = 0; n < c->items; n++) {
		const json_t *in = json_array_get(list, n), *reference = json_object_get(in, "reference");
		json_t *o = run_item(fn, key, in, error);

		good += o != NULL;
		bad += o == NULL;
		o = o ? o : json_pack("{s:s, s:s}", "error", error, "plaintext", "");
		(void)json_object_set_new(
		    o, "reference", json_string(json_is_string(reference) ? json_string_value(reference) : ""));
		(void)json_array_append_new(results, o);
	}
	c->data = json_pack("{s:o}", "batch_results", results);
	if (bad)
		c->status = good && partial ? (unsigned int)partial : 400;
}

static void run_data(struct dk_vault_call *c, item_fn fn, json_t *key)
{
	const json_t *list = json_object_get(c->in, "batch_input");
	char error[256];

	if (!key) {
		dk_vault_error(c, 400, "encryption key not found");
		return;
	}
	if (list) {
		run_batch(c, fn, key, list);
		return;
	}
	c->items = 1;
	c->data = run_item(fn, key, c->in, error);
	if (!c->data)
		dk_vault_error(c, 400, "%s", error);
}

/* ---- keys ---- */

static void show(struct dk_vault_call *c, const json_t *key, const char *name)
{
	json_t *list = json_object();
	char number[24];

	for (size_t i = 0; i < versions(key); i++) {
		(void)snprintf(number, sizeof(number), "%zu", i + 1);
		(void)json_object_set_new(list, number,
		    json_integer(get_int(json_array_get(json_object_get(key, "versions"), i), "created")));
	}
	c->data = json_pack("{s:s, s:s, s:b, s:b, s:b, s:b, s:I, s:I, s:I, s:b, s:b, s:o}", "name", name, "type",
	    type_of(key), "derived", get_bool(key, "derived"), "exportable", get_bool(key, "exportable"),
	    "deletion_allowed", get_bool(key, "deletion_allowed"), "soft_deleted", get_bool(key, "soft_deleted"),
	    "latest_version", (json_int_t)versions(key), "min_decryption_version",
	    (json_int_t)get_int(key, "min_decryption_version"), "min_encryption_version", (json_int_t)0,
	    "supports_encryption", 1, "supports_decryption", 1, "keys", list);
}

static json_t *make(struct dk_vault_call *c, const char *id, const json_t *in)
{
	const char *type = jsonio_str(in, "type");
	json_t *key = json_pack("{s:s, s:b, s:b, s:i, s:[]}", "type", type ? type : "aes256-gcm96", "derived",
	    get_bool(in, "derived"), "exportable", get_bool(in, "exportable"), "min_decryption_version", 1, "versions");

	add_version(key);
	(void)json_object_set_new(json_object_get(c->v->doc, "keys"), id, key);
	c->changed = true;
	return key;
}

static void configure(struct dk_vault_call *c, json_t *key)
{
	static const char *const flags[] = { "deletion_allowed", "exportable", "allow_plaintext_backup" };
	const json_t *min = json_object_get(c->in, "min_decryption_version");

	if (json_integer_value(min) > (json_int_t)versions(key)) {
		dk_vault_error(c, 400, "cannot set min decryption version of %lld, latest key version is %zu",
		    (long long)json_integer_value(min), versions(key));
		return;
	}
	if (min)
		(void)json_object_set_new(
		    key, "min_decryption_version", json_integer(json_integer_value(min) ? json_integer_value(min) : 1));
	for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++)
		if (json_object_get(c->in, flags[i]))
			(void)json_object_set(key, flags[i], json_object_get(c->in, flags[i]));
	c->changed = true;
	c->status = 204;
}

static void drop(struct dk_vault_call *c, const char *id, const char *name, const json_t *key)
{
	if (!get_bool(key, "deletion_allowed")) {
		dk_vault_error(c, 400, "error deleting policy %s: deletion is not allowed for this key", name);
		return;
	}
	(void)json_object_del(json_object_get(c->v->doc, "keys"), id);
	c->changed = true;
	c->status = 204;
}

/* keys/NAME and what is below it */
static void key_call(struct dk_vault_call *c, const char *id, const char *name, const char *what, json_t *key)
{
	if (!key && !*what && strcmp(c->method, "POST") == 0)
		key = make(c, id, c->in);
	if (!key) {
		dk_vault_error(c, 404, "%s", "");
		return;
	}
	c->changed = c->changed || strcmp(c->method, "GET") != 0;
	if (strcmp(what, "config") == 0)
		configure(c, key);
	else if (strcmp(what, "rotate") == 0)
		add_version(key);
	else if (strcmp(what, "soft-delete") == 0 || strcmp(what, "soft-delete-restore") == 0)
		(void)json_object_set_new(key, "soft_deleted", json_boolean(strcmp(what, "soft-delete") == 0));
	else if (!*what && strcmp(c->method, "DELETE") == 0)
		drop(c, id, name, key);
	else if (*what)
		dk_vault_error(c, 404, "unsupported path");
	if (!c->error[0] && c->status == 200)
		show(c, key, name);
}

static item_fn data_function(const char *operation)
{
	static const struct {
		const char *name;
		item_fn fn;
	} table[] = { { "encrypt", encrypt }, { "decrypt", decrypt }, { "rewrap", rewrap }, { "datakey", datakey } };

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (strcmp(table[i].name, operation) == 0)
			return table[i].fn;
	return NULL;
}

static bool permitted(struct dk_vault_call *c, item_fn fn, const json_t *key)
{
	const char *capability = strcmp(c->method, "GET") == 0 ? "read"
	    : strcmp(c->method, "DELETE") == 0                 ? "delete"
	                                                       : "update";

	if (c->v->deny && strcmp(c->token, DK_VAULT_ROOT) != 0) {
		dk_vault_error(c, 403, "1 error occurred:\n\t* permission denied\n\n");
		return false;
	}
	return (fn == encrypt && !key && dk_vault_can(c, "create")) || dk_vault_allowed(c, capability);
}

void dk_vault_transit(struct dk_vault_call *c, const char *mount)
{
	char operation[16] = "", name[130] = "", id[400];
	const char *slash = strchr(c->rest, '/'), *at = slash ? slash + 1 : "";
	item_fn fn;
	json_t *key;

	(void)snprintf(operation, sizeof(operation), "%.*s", (int)strcspn(c->rest, "/"), c->rest);
	fn = data_function(operation);
	if (fn == datakey && (strncmp(at, "plaintext/", 10) == 0 || strncmp(at, "wrapped/", 8) == 0))
		at = strchr(at, '/') + 1;
	(void)snprintf(name, sizeof(name), "%.*s", (int)strcspn(at, "/"), at);
	(void)snprintf(id, sizeof(id), "%.250s/%s", mount, name);
	(void)snprintf(c->key, sizeof(c->key), "%s", id);
	at += strcspn(at, "/");
	key = json_object_get(json_object_get(c->v->doc, "keys"), id);
	if (!permitted(c, fn, key))
		return;
	if (fn == encrypt && !key && dk_vault_can(c, "create"))
		key = make(c, id, NULL);
	if (fn)
		run_data(c, fn, key);
	else if (strcmp(operation, "keys") == 0)
		key_call(c, id, name, *at ? at + 1 : at, key);
	else
		dk_vault_error(c, 404, "unsupported path");
	if (fn == datakey && strstr(c->rest, "/wrapped/") && c->data)
		(void)json_object_del(c->data, "plaintext");
}
