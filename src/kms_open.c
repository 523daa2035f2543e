/* kms_open.c — which provider, and which key for as long as it is open.
 *
 * Hides: the table of providers, and that an alias is resolved once and its key pinned. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <openssl/evp.h>

#include "kms_internal.h"

#define REQUEST_TIMEOUT_MS 4000u

/* Numbers are those of byokfs-format(5), section 3.1; a name without a provider is known on disk only. */
static const struct {
	uint8_t number;
	const char *name;
	const struct kms_provider *provider;
} providers[] = {
	{ 1, "aws", &kms_aws_provider },
	{ 2, "vault", &kms_vault_provider },
	{ 3, "keyfile", &kms_keyfile_provider },
	{ 4, "pkcs11", &kms_pkcs11_provider },
};

#define NPROVIDERS (sizeof(providers) / sizeof(providers[0]))

uint8_t kms_provider_from_name(const char *name)
{
	for (size_t i = 0; i < NPROVIDERS; i++)
		if (!strcmp(providers[i].name, name))
			return providers[i].number;
	return 0;
}

const char *kms_provider_to_name(uint8_t number)
{
	for (size_t i = 0; i < NPROVIDERS; i++)
		if (providers[i].number == number)
			return providers[i].name;
	return NULL;
}

/* ---- open ---- */

static int make(
    struct kms **out, const struct kms_provider *provider, void *priv, const char *key, uint32_t request_timeout_ms)
{
	struct kms *k;

	if (!key || !*key || strlen(key) > KMS_KEY_MAX)
		return -EINVAL;
	k = calloc(1, sizeof(*k));
	if (!k)
		return -ENOMEM;
	k->provider = provider;
	k->priv = priv;
	k->request_timeout_ms = request_timeout_ms ? request_timeout_ms : REQUEST_TIMEOUT_MS;
	strcpy(k->key, key);
	*out = k;
	return 0;
}

int kms_open_with(
    struct kms **out, const struct kms_provider *provider, void *priv, const char *key, uint32_t request_timeout_ms)
{
	return make(out, provider, priv, key, request_timeout_ms);
}

void kms_close(struct kms *k)
{
	if (k && k->provider->close)
		k->provider->close(k->priv);
	free(k);
}

static int open_provider(
    struct kms **out, const struct kms_provider *p, const struct kms_params *params, struct kms_err *err)
{
	void *priv = NULL;
	int r = p->open(&priv, params, err);

	if (r) {
		if (err->status == KMS_OK)
			(void)kms_fail(err, KMS_CONFIG, "OpenFailed", "%s", strerrordesc_np(-r));
		return r;
	}
	r = make(out, p, priv, p->key ? p->key(priv) : params->key, params->request_timeout_ms);
	if (r) {
		(void)kms_fail(
		    err, KMS_CONFIG, "BadParameters", r == -EINVAL ? "no key is configured" : "out of memory");
		p->close(priv);
	} else {
		kms_observe(*out, params->observe, params->observer);
	}
	return r;
}

void *kms_shared(const struct kms_params *params, const struct kms_provider *provider)
{
	return params->share && params->share->provider == provider ? params->share->priv : NULL;
}

int kms_reconfigure(struct kms *k, const struct kms_params *params, struct kms_err *err)
{
	memset(err, 0, sizeof(*err));
	if (!params->provider || strcmp(params->provider, k->provider->name)) {
		(void)kms_fail(err, KMS_CONFIG, "OtherProvider", "the provider of a mounted store cannot change");
		return -EINVAL;
	}
	int r = k->provider->reconfigure ? k->provider->reconfigure(k->priv, params, err) : 0;

	if (!r)
		k->request_timeout_ms = params->request_timeout_ms ? params->request_timeout_ms : REQUEST_TIMEOUT_MS;
	return r;
}

static int errno_of(enum kms_status status)
{
	switch (status) {
	case KMS_OK:
		return 0;
	case KMS_DENIED:
		return -EACCES;
	case KMS_BUSY:
	case KMS_DOWN:
		return -ETIMEDOUT;
	default:
		return -EINVAL;
	}
}

/* An alias can be pointed elsewhere later: the key is pinned by the name it has now. */
static int pin(struct kms **k, const struct kms_provider *p, const struct kms_params *params, struct kms_err *err)
{
	CLEANUP_FREE struct kms_description *d = calloc(1, sizeof(*d));
	struct kms_params pinned = *params;
	struct kms *again = NULL;
	int r;

	if (!d)
		return -ENOMEM;
	r = errno_of(kms_describe(*k, kms_key(*k), kms_deadline(*k), d, err));
	pinned.key = d->arn;
	if (!r)
		r = open_provider(&again, p, &pinned, err);
	if (!r) {
		kms_close(*k);
		*k = again;
	}
	return r;
}

int kms_open(struct kms **out, const struct kms_params *params, bool resolve, struct kms_err *err)
{
	const struct kms_provider *p = NULL;
	struct kms *k = NULL;
	int r;

	memset(err, 0, sizeof(*err));
	for (size_t i = 0; i < NPROVIDERS; i++)
		if (params->provider && !strcmp(providers[i].name, params->provider))
			p = providers[i].provider;
	if (!p) {
		(void)kms_fail(err, KMS_CONFIG, "UnknownProvider", "provider '%.60s' is not supported",
		    params->provider ? params->provider : "");
		return -EINVAL;
	}
	r = open_provider(&k, p, params, err);
	if (!r && resolve && p->pinned && !p->pinned(kms_key(k)))
		r = pin(&k, p, params, err);
	if (r)
		kms_close(k);
	else
		*out = k;
	return r;
}

void kms_key_hash(uint8_t out[static 8], const char *key)
{
	uint8_t md[EVP_MAX_MD_SIZE] = { 0 };

	(void)EVP_Digest(key, strlen(key), md, NULL, EVP_sha256(), NULL);
	memcpy(out, md, 8);
}
