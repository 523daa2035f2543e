/* kms.c — the checking wrapper round every provider.
 *
 * Hides: the table of providers, the retries, and the checks that no provider is trusted with: the key that
 * answered is the key asked, a sealed key has a possible length, a secret is wiped unless the call succeeded.
 */
#include "kms.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <openssl/evp.h>

#include "io.h"
#include "kms_provider.h"
#include "secret.h"

#define REQUEST_TIMEOUT_MS 4000u
#define BACKOFF_FIRST_MS   50u
#define BACKOFF_MAX_MS     2000u
#define ATTEMPT_MIN_MS     50u /* with less left, a retry could only replace the real error by a timeout */

struct kms {
	const struct kms_provider *provider;
	void *priv;
	uint32_t request_timeout_ms;
	atomic_uint_fast64_t calls, errors, by_status[KMS_CONFIG + 1], latency_sum, latency_max;
	char key[KMS_KEY_MAX + 1];
};

/* Numbers are those of byokfs-format(5), section 3.1; a name without a provider is known on disk only. */
static const struct {
	uint8_t number;
	const char *name;
	const struct kms_provider *provider;
} providers[] = {
	{ 1, "aws", &kms_aws_provider },
	{ 2, "vault", NULL },
	{ 3, "keyfile", &kms_keyfile_provider },
	{ 4, "pkcs11", NULL },
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

/* ---- errors ---- */

enum kms_status kms_fail(struct kms_err *err, enum kms_status status, const char *code, const char *fmt, ...)
{
	va_list ap;

	memset(err, 0, sizeof(*err));
	err->status = status;
	snprintf(err->code, sizeof(err->code), "%s", code);
	va_start(ap, fmt);
	(void)vsnprintf(err->message, sizeof(err->message), fmt, ap);
	va_end(ap);
	return status;
}

const char *kms_status_name(enum kms_status status)
{
	static const char *const name[] = { "ok", "denied", "bad blob", "throttled", "unreachable", "misconfigured" };

	return (size_t)status < sizeof(name) / sizeof(name[0]) ? name[status] : "unknown";
}

void kms_err_text(char *out, size_t size, const struct kms_err *err)
{
	const char *colon = *err->message ? ": " : "";

	if (err->status == KMS_OK)
		snprintf(out, size, "no error");
	else if (*err->request_id)
		snprintf(out, size, "KMS said %s (request %s)%s%s", err->code, err->request_id, colon, err->message);
	else if (err->http)
		snprintf(out, size, "KMS said %s (HTTP status %ld)%s%s", err->code, err->http, colon, err->message);
	else
		snprintf(out, size, "KMS %s (%s)%s%s", kms_status_name(err->status), err->code, colon, err->message);
}

/* ---- one call ---- */

static void raise_max(atomic_uint_fast64_t *max, uint64_t value)
{
	uint64_t seen = atomic_load(max);

	while (seen < value && !atomic_compare_exchange_weak(max, &seen, value))
		;
}

static void count(struct kms *k, enum kms_status status, uint64_t ms)
{
	atomic_fetch_add(&k->calls, 1);
	atomic_fetch_add(&k->latency_sum, ms);
	raise_max(&k->latency_max, ms);
	if (status == KMS_OK)
		return;
	atomic_fetch_add(&k->errors, 1);
	atomic_fetch_add(&k->by_status[status], 1);
}

/* What any of the calls needs; each uses its part. */
struct call {
	enum { GENERATE, DECRYPT, ENCRYPT, REENCRYPT, DESCRIBE } op;
	const char *key, *to; /* `to` is also the key expected to have answered */
	const struct context *ctx, *dst;
	const uint8_t *in; /* sealed key, or the secret to seal */
	size_t len;
	uint8_t *secret;
	struct kms_blob *blob;
	struct kms_used *used;
	struct kms_description *description;
};

static enum kms_status dispatch(const struct kms *k, const struct call *c, uint64_t deadline, struct kms_err *err)
{
	const struct kms_provider *p = k->provider;

	switch (c->op) {
	case GENERATE:
		return p->generate(k->priv, c->ctx, deadline, c->secret, c->blob, c->used, err);
	case DECRYPT:
		return p->decrypt(k->priv, c->key, c->ctx, c->in, c->len, deadline, c->secret, c->used, err);
	case ENCRYPT:
		return p->encrypt(k->priv, c->ctx, c->in, deadline, c->blob, c->used, err);
	case REENCRYPT:
		if (p->reencrypt)
			return p->reencrypt(
			    k->priv, c->key, c->ctx, c->in, c->len, c->to, c->dst, deadline, c->blob, c->used, err);
		break;
	case DESCRIBE:
		if (p->describe)
			return p->describe(k->priv, c->key, deadline, c->description, err);
		break;
	}
	return kms_fail(err, KMS_CONFIG, "Unsupported", "provider '%s' has no such call", p->name);
}

/* A success that breaks the contract is none. */
static enum kms_status check_answer(const struct call *c, struct kms_err *err)
{
	if (c->used && strcmp(c->used->key, c->to))
		return kms_fail(
		    err, KMS_CONFIG, "UnexpectedKey", "key '%.90s' answered instead of '%.90s'", c->used->key, c->to);
	if (c->blob && (!c->blob->len || c->blob->len > KMS_BLOB_MAX))
		return kms_fail(
		    err, KMS_CONFIG, "UnexpectedBlob", "a sealed key of %zu bytes is not possible", c->blob->len);
	if (c->description && !*c->description->arn)
		return kms_fail(err, KMS_CONFIG, "UnexpectedKey", "the answer names no key");
	return KMS_OK;
}

static enum kms_status attempt(struct kms *k, const struct call *c, uint64_t deadline, struct kms_err *err)
{
	uint64_t begun = io_boot_ms(), own_end = begun + k->request_timeout_ms;
	enum kms_status status;

	memset(err, 0, sizeof(*err));
	if (c->used)
		memset(c->used, 0, sizeof(*c->used));
	if (c->blob)
		c->blob->len = 0;
	if (c->description)
		memset(c->description, 0, sizeof(*c->description));
	status = dispatch(k, c, own_end < deadline ? own_end : deadline, err);
	if ((unsigned)status > KMS_CONFIG)
		status =
		    kms_fail(err, KMS_CONFIG, "BadProvider", "provider '%s' broke its contract", k->provider->name);
	if (status == KMS_OK)
		status = check_answer(c, err);
	err->status = status;
	if (status != KMS_OK && c->blob)
		c->blob->len = 0;
	count(k, status, io_boot_ms() - begun);
	return status;
}

/* Full jitter: anything from nothing to twice the last ceiling. */
static uint32_t jitter_ms(unsigned tries)
{
	uint32_t ceiling = BACKOFF_FIRST_MS << (tries < 6 ? tries : 6), random;

	if (ceiling > BACKOFF_MAX_MS)
		ceiling = BACKOFF_MAX_MS;
	secret_random(&random, sizeof(random));
	return random % (ceiling + 1);
}

static void sleep_ms(uint32_t ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

static enum kms_status run(struct kms *k, const struct call *c, uint64_t deadline, struct kms_err *err)
{
	enum kms_status status;

	for (unsigned tries = 0;; tries++) {
		uint32_t pause;

		status = attempt(k, c, deadline, err);
		if (status != KMS_BUSY && status != KMS_DOWN)
			return status;
		pause = jitter_ms(tries);
		if (io_boot_ms() + pause + ATTEMPT_MIN_MS >= deadline)
			return status;
		sleep_ms(pause);
	}
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
	}
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

/* ---- the calls ---- */

enum kms_status kms_generate(struct kms *k, const struct context *ctx, uint64_t deadline, uint8_t secret[static 32],
    struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	const struct call c = {
		.op = GENERATE, .to = k->key, .ctx = ctx, .secret = secret, .blob = blob, .used = used
	};
	enum kms_status status = run(k, &c, deadline, err);

	if (status != KMS_OK)
		explicit_bzero(secret, 32);
	return status;
}

enum kms_status kms_decrypt(struct kms *k, const struct context *ctx, const uint8_t *blob, size_t len,
    uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	const struct call c = { .op = DECRYPT,
		.key = k->key,
		.to = k->key,
		.ctx = ctx,
		.in = blob,
		.len = len,
		.secret = secret,
		.used = used };
	enum kms_status status;

	if (!len || len > KMS_BLOB_MAX)
		status = kms_fail(err, KMS_BAD_BLOB, "InvalidBlob", "a sealed key of %zu bytes is not possible", len);
	else
		status = run(k, &c, deadline, err);
	if (status != KMS_OK)
		explicit_bzero(secret, 32);
	return status;
}

enum kms_status kms_encrypt(struct kms *k, const struct context *ctx, const uint8_t secret[static 32],
    uint64_t deadline, struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	const struct call c = { .op = ENCRYPT, .to = k->key, .ctx = ctx, .in = secret, .blob = blob, .used = used };

	return run(k, &c, deadline, err);
}

enum kms_status kms_reencrypt(struct kms *k, const char *from, const struct context *src, const uint8_t *blob,
    size_t len, const char *to, const struct context *dst, uint64_t deadline, struct kms_blob *out,
    struct kms_used *used, struct kms_err *err)
{
	const struct call c = { .op = REENCRYPT,
		.key = from,
		.to = to,
		.ctx = src,
		.dst = dst,
		.in = blob,
		.len = len,
		.blob = out,
		.used = used };

	if (!len || len > KMS_BLOB_MAX)
		return kms_fail(err, KMS_BAD_BLOB, "InvalidBlob", "a sealed key of %zu bytes is not possible", len);
	return run(k, &c, deadline, err);
}

enum kms_status kms_describe(
    struct kms *k, const char *key, uint64_t deadline, struct kms_description *out, struct kms_err *err)
{
	const struct call c = { .op = DESCRIBE, .key = key, .description = out };

	return run(k, &c, deadline, err);
}

void kms_refresh(struct kms *k)
{
	if (k->provider->refresh)
		k->provider->refresh(k->priv);
}

void kms_stats(struct kms *k, struct kms_stats *out)
{
	*out = (struct kms_stats){ .calls = atomic_load(&k->calls),
		.errors = atomic_load(&k->errors),
		.denied = atomic_load(&k->by_status[KMS_DENIED]),
		.busy = atomic_load(&k->by_status[KMS_BUSY]),
		.down = atomic_load(&k->by_status[KMS_DOWN]),
		.config = atomic_load(&k->by_status[KMS_CONFIG]),
		.latency_ms_sum = atomic_load(&k->latency_sum),
		.latency_ms_max = atomic_load(&k->latency_max) };
}

uint64_t kms_deadline(const struct kms *k)
{
	return io_boot_ms() + k->request_timeout_ms;
}

const char *kms_key(const struct kms *k)
{
	return k->key;
}

const char *kms_provider_name(const struct kms *k)
{
	return k->provider->name;
}

uint8_t kms_provider_number(const struct kms *k)
{
	return k->provider->number;
}

void kms_key_hash(uint8_t out[static 8], const char *key)
{
	uint8_t md[EVP_MAX_MD_SIZE] = { 0 };

	(void)EVP_Digest(key, strlen(key), md, NULL, EVP_sha256(), NULL);
	memcpy(out, md, 8);
}
