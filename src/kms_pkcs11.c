/* kms_pkcs11.c — a key on a hardware security module or another token: AES-256-GCM with a key that does not leave it,
 * the encryption context as associated data.
 *
 * Hides: the settings and the form of a sealed key: version 1 | nonce 12 | ciphertext 32 | tag 16. The nonce is random,
 * so that one key may seal 2^32 times (NIST SP 800-38D, 8.3). The token makes no data keys; the secret is drawn here,
 * and there is no reencrypt: a token cannot go from one key to another without showing the secret to the host.
 *
 * Nothing is asked of the module in open, which may run before a fork, while the token is away, or with a module that
 * hangs: the first call connects. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "kms_pkcs11_internal.h"
#include "secret.h"

#define CONNECTIONS 8u

struct pkcs11 {
	const struct p11_target *target; /* work's */
	struct p11_work *work;
	char uri[KMS_KEY_MAX + 1];
};

/* ---- the calls ---- */

static struct p11_job *make_job(int op, const struct context *ctx, struct kms_err *err)
{
	struct p11_job *j = p11_job_new();

	if (!j) {
		(void)kms_fail(err, KMS_DOWN, "OutOfMemory", "no locked memory left for the token's answer");
		return NULL;
	}
	j->op = op;
	if (ctx)
		j->aad_len = context_encode(j->aad, ctx);
	return j;
}

static enum kms_status pkcs11_encrypt(void *priv, const struct context *ctx, const uint8_t secret[static 32],
    uint64_t deadline, struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	struct pkcs11 *p = priv;
	struct p11_job *j = make_job(P11_SEAL, ctx, err);
	enum kms_status status;

	if (!j)
		return KMS_DOWN;
	memcpy(j->in, secret, P11_SECRET);
	j->in_len = P11_SECRET;
	status = p11_work_do(p->work, j, deadline, err);
	if (status == KMS_OK) {
		blob->bytes[0] = P11_VERSION;
		memcpy(blob->bytes + 1, j->iv, P11_IV);
		memcpy(blob->bytes + 1 + P11_IV, j->out, P11_SEALED);
		blob->len = P11_BLOB;
		strcpy(used->key, p->uri);
	}
	p11_job_put(p->work, j);
	return status;
}

static enum kms_status pkcs11_generate(void *priv, const struct context *ctx, uint64_t deadline,
    uint8_t secret[static 32], struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	secret_random(secret, P11_SECRET);
	return pkcs11_encrypt(priv, ctx, secret, deadline, blob, used, err);
}

static enum kms_status pkcs11_decrypt(void *priv, const char *key, const struct context *ctx, const uint8_t *blob,
    size_t len, uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	struct pkcs11 *p = priv;
	struct p11_job *j;
	enum kms_status status;

	if (strcmp(key, p->uri))
		return kms_fail(err, KMS_BAD_BLOB, "IncorrectKey", "this is key '%.90s', not '%.90s'", p->uri, key);
	if (len != P11_BLOB || blob[0] != P11_VERSION)
		return kms_fail(
		    err, KMS_BAD_BLOB, "InvalidCiphertext", "a sealed key of %zu bytes is not of this provider", len);
	j = make_job(P11_UNSEAL, ctx, err);
	if (!j)
		return KMS_DOWN;
	memcpy(j->iv, blob + 1, P11_IV);
	memcpy(j->in, blob + 1 + P11_IV, P11_SEALED);
	j->in_len = P11_SEALED;
	status = p11_work_do(p->work, j, deadline, err);
	if (status == KMS_OK) {
		memcpy(secret, j->out, P11_SECRET);
		strcpy(used->key, p->uri);
	}
	p11_job_put(p->work, j);
	return status;
}

static enum kms_status pkcs11_describe(
    void *priv, const char *key, uint64_t deadline, struct kms_description *d, struct kms_err *err)
{
	struct pkcs11 *p = priv;
	struct p11_job *j;
	enum kms_status status;

	if (strcmp(key, p->uri))
		return kms_fail(err, KMS_CONFIG, "NotFound", "this is key '%.90s', not '%.90s'", p->uri, key);
	j = make_job(P11_DESCRIBE, NULL, err);
	if (!j)
		return KMS_DOWN;
	status = p11_work_do(p->work, j, deadline, err);
	if (status == KMS_OK) {
		strcpy(d->arn, p->uri);
		strcpy(d->state, "Enabled");
		strcpy(d->usage, "ENCRYPT_DECRYPT");
		strcpy(d->spec, "AES_256");
	}
	p11_job_put(p->work, j);
	return status;
}

/* ---- life ---- */

static void pkcs11_close(void *priv)
{
	struct pkcs11 *p = priv;

	p11_work_close(p->work);
	free(p);
}

static enum kms_status try_pin(const char *path, struct kms_err *err)
{
	uint8_t *pin = NULL;
	size_t len;
	int r = p11_pin_read(&pin, &len, path);

	secret_free(pin);
	return r ? p11_pin_unusable(err, path, r) : KMS_OK;
}

static int settle(struct p11_target *t, const struct kms_params *params, struct kms_err *err)
{
	char why[160] = "";
	int r = p11_name_parse(&t->name, params->key, params->pkcs11.token, why);

	if (!r)
		r = p11_module_load(&t->module, params->pkcs11.module, why);
	if (r) {
		(void)kms_fail(err, KMS_CONFIG, r == -EINVAL ? "BadKeyName" : "BadModule", "%s", why);
		return r;
	}
	t->token = p11_module_token(t->module, t->name.token);
	t->pin_file = strdup(params->pkcs11.pin_file);
	return t->token && t->pin_file ? 0 : -ENOMEM;
}

static int make(struct pkcs11 *p, const struct kms_params *params, struct kms_err *err)
{
	struct p11_target *t = p11_target_new();
	int r = t ? settle(t, params, err) : -ENOMEM;

	if (!r)
		r = p11_work_open(&p->work, t, params->max_connections ? params->max_connections : CONNECTIONS);
	if (r) {
		p11_target_free(t);
		return r;
	}
	p->target = t;
	p11_name_uri(p->uri, &t->name);
	return 0;
}

static int pkcs11_open(void **priv, const struct kms_params *params, struct kms_err *err)
{
	const char *module = params->pkcs11.module, *pin = params->pkcs11.pin_file;
	struct pkcs11 *p;
	int r;

	if (!module || *module != '/' || !pin || *pin != '/') {
		(void)kms_fail(err, KMS_CONFIG, "BadParameters", "pkcs11.module and pin_file are absolute paths");
		return -EINVAL;
	}
	if (try_pin(pin, err) != KMS_OK)
		return -EACCES;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	r = make(p, params, err);
	if (r)
		free(p);
	else
		*priv = p;
	return r;
}

/* Neither key nor token can change; PIN and the rest are read when they are needed. */
static int pkcs11_reconfigure(void *priv, const struct kms_params *params, struct kms_err *err)
{
	const struct pkcs11 *p = priv;
	const char *module = params->pkcs11.module, *pin = params->pkcs11.pin_file;
	struct p11_name name;
	char why[160];

	if (!p11_name_parse(&name, params->key, params->pkcs11.token, why) && !strcmp(name.key, p->target->name.key) &&
	    !strcmp(name.token, p->target->name.token) && module && !strcmp(module, p->target->module->path) && pin &&
	    !strcmp(pin, p->target->pin_file))
		return 0;
	(void)kms_fail(err, KMS_CONFIG, "OtherKey", "module, token, key and pin_file cannot change while mounted");
	return -EINVAL;
}

static void pkcs11_refresh(void *priv)
{
	struct pkcs11 *p = priv;

	p11_token_forgive(p->target->token);
}

static void pkcs11_where(void *priv, struct kms_where *out)
{
	const struct pkcs11 *p = priv;

	(void)snprintf(out->identity, sizeof(out->identity), "user of token '%s', PIN from %.180s",
	    p->target->name.token, p->target->pin_file);
}

static const char *pkcs11_key(void *priv)
{
	const struct pkcs11 *p = priv;

	return p->uri;
}

const struct kms_provider kms_pkcs11_provider = {
	.name = "pkcs11",
	.number = 4,
	.open = pkcs11_open,
	.close = pkcs11_close,
	.generate = pkcs11_generate,
	.decrypt = pkcs11_decrypt,
	.encrypt = pkcs11_encrypt,
	.describe = pkcs11_describe,
	.refresh = pkcs11_refresh,
	.reconfigure = pkcs11_reconfigure,
	.where = pkcs11_where,
	.key = pkcs11_key,
};
