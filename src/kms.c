/* kms.c — the checking wrapper round every provider.
 *
 * Hides: the retries, the observer, and the checks that no provider is trusted with: the key that answered is the key
 * asked, a sealed key has a possible length, a secret is wiped unless the call succeeded. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "exitcode.h"
#include "io.h"
#include "kms_internal.h"
#include "secret.h"

#define BACKOFF_FIRST_MS 50u
#define BACKOFF_MAX_MS   2000u
#define ATTEMPT_MIN_MS   50u /* with less left, a retry could only replace the real error by a timeout */

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

enum kms_status kms_fail_http(struct kms_err *err, int r, const char *why)
{
	static const struct {
		int error;
		enum kms_status status;
		const char *code;
	} table[] = {
		{ -ETIMEDOUT, KMS_DOWN, "Timeout" },
		{ -EBUSY, KMS_DOWN, "Timeout" }, /* of our own connections */
		{ -ECONNREFUSED, KMS_DOWN, "ConnectionRefused" },
		{ -EHOSTUNREACH, KMS_DOWN, "HostUnreachable" },
		{ -EFBIG, KMS_DOWN, "AnswerTooLarge" },
		{ -EPROTO, KMS_DOWN, "ProtocolError" },
		{ -ENOMEM, KMS_DOWN, "OutOfMemory" },
		{ -EKEYREJECTED, KMS_CONFIG, "CertificateRejected" },
		{ -EINVAL, KMS_CONFIG, "BadEndpoint" },
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (table[i].error == r)
			return kms_fail(err, table[i].status, table[i].code, "%s", why);
	return kms_fail(err, KMS_DOWN, "ConnectionLost", "%s", why);
}

const char *kms_status_name(enum kms_status status)
{
	static const char *const name[] = { "ok", "denied", "bad blob", "throttled", "unreachable", "misconfigured" };

	return (size_t)status < sizeof(name) / sizeof(name[0]) ? name[status] : "unknown";
}

int kms_exitcode(enum kms_status status)
{
	switch (status) {
	case KMS_OK:
		return EXIT_OK;
	case KMS_DENIED:
		return EXIT_DENIED;
	case KMS_BUSY:
	case KMS_DOWN:
		return EXIT_UNREACHABLE;
	case KMS_CONFIG:
		return EXIT_CONFIG;
	case KMS_BAD_BLOB:
		break;
	}
	return EXIT_FAILED;
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

static void count(struct kms *k, enum kms_operation op, enum kms_status status, uint64_t ns)
{
	uint64_t ms = ns / 1000000;

	histogram_add(&k->latency[op], ns);
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
	enum kms_operation op;
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
	case KMS_GENERATE:
		return p->generate(k->priv, c->ctx, deadline, c->secret, c->blob, c->used, err);
	case KMS_DECRYPT:
		return p->decrypt(k->priv, c->key, c->ctx, c->in, c->len, deadline, c->secret, c->used, err);
	case KMS_ENCRYPT:
		return p->encrypt(k->priv, c->ctx, c->in, deadline, c->blob, c->used, err);
	case KMS_REENCRYPT:
		if (p->reencrypt)
			return p->reencrypt(
			    k->priv, c->key, c->ctx, c->in, c->len, c->to, c->dst, deadline, c->blob, c->used, err);
		break;
	case KMS_DESCRIBE:
		if (p->describe)
			return p->describe(k->priv, c->key, deadline, c->description, err);
		break;
	}
	return kms_fail(err, KMS_CONFIG, "Unsupported", "provider '%s' has no such call", p->name);
}

bool kms_same_key(const struct kms *k, const char *a, const char *b)
{
	return k->provider->same_key ? k->provider->same_key(a, b) : !strcmp(a, b);
}

static enum kms_status check_key(const struct kms *k, const char *got, const char *wanted, struct kms_err *err)
{
	if (kms_same_key(k, got, wanted))
		return KMS_OK;
	return kms_fail(err, KMS_CONFIG, "UnexpectedKey", "key '%.90s' answered instead of '%.90s'", got, wanted);
}

/* A success that breaks the contract is none. */
static enum kms_status check_answer(const struct kms *k, const struct call *c, struct kms_err *err)
{
	if (c->used && check_key(k, c->used->key, c->to, err) != KMS_OK)
		return err->status;
	if (c->blob && (!c->blob->len || c->blob->len > KMS_BLOB_MAX))
		return kms_fail(
		    err, KMS_CONFIG, "UnexpectedBlob", "a sealed key of %zu bytes is not possible", c->blob->len);
	if (c->description && !*c->description->arn)
		return kms_fail(err, KMS_CONFIG, "UnexpectedKey", "the answer names no key");
	return KMS_OK;
}

const char *kms_operation_name(enum kms_operation op)
{
	static const char *const names[] = { "GenerateDataKey", "Decrypt", "Encrypt", "ReEncrypt", "DescribeKey" };

	return names[op];
}

/* The books, and whoever observes. */
static void told(struct kms *k, const struct call *c, const struct kms_err *err, uint64_t ns)
{
	const struct kms_used *used = err->status == KMS_OK ? c->used : NULL;
	const char *asked = c->key ? c->key : c->to;
	const struct kms_event event = { .operation = kms_operation_name(c->op),
		.context = c->dst ? c->dst : c->ctx,
		.key = c->used && *c->used->key ? c->used->key : asked,
		.used = used,
		.err = err,
		.latency_ms = (uint32_t)(ns / 1000000) };

	count(k, c->op, err->status, ns);
	if (k->observe)
		k->observe(k->observer, &event);
}

static enum kms_status attempt(struct kms *k, const struct call *c, uint64_t deadline, struct kms_err *err)
{
	uint64_t begun = histogram_clock(), own_end = io_boot_ms() + k->request_timeout_ms;
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
		status = check_answer(k, c, err);
	err->status = status;
	if (status != KMS_OK && c->blob)
		c->blob->len = 0;
	told(k, c, err, histogram_clock() - begun);
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
		uint64_t now, pause;

		status = attempt(k, c, deadline, err);
		if (status != KMS_BUSY && status != KMS_DOWN)
			return status;
		now = io_boot_ms();
		pause = jitter_ms(tries);
		/* Who is not reached is not burdened either, and another Region's turn may come before the deadline. */
		if (status == KMS_DOWN && now < deadline && pause > (deadline - now) / 2)
			pause = (deadline - now) / 2;
		if (now + pause + ATTEMPT_MIN_MS >= deadline)
			return status;
		sleep_ms((uint32_t)pause);
	}
}

/* ---- the calls ---- */

enum kms_status kms_generate(struct kms *k, const struct context *ctx, uint64_t deadline, uint8_t secret[static 32],
    struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	const struct call c = {
		.op = KMS_GENERATE, .to = k->key, .ctx = ctx, .secret = secret, .blob = blob, .used = used
	};
	enum kms_status status = run(k, &c, deadline, err);

	if (status != KMS_OK)
		explicit_bzero(secret, 32);
	return status;
}

enum kms_status kms_decrypt(struct kms *k, const struct context *ctx, const uint8_t *blob, size_t len,
    uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	const struct call c = { .op = KMS_DECRYPT,
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
	const struct call c = { .op = KMS_ENCRYPT, .to = k->key, .ctx = ctx, .in = secret, .blob = blob, .used = used };

	return run(k, &c, deadline, err);
}

enum kms_status kms_reencrypt(struct kms *k, const char *from, const struct context *src, const uint8_t *blob,
    size_t len, const char *to, const struct context *dst, uint64_t deadline, struct kms_blob *out,
    struct kms_used *used, struct kms_err *err)
{
	const struct call c = { .op = KMS_REENCRYPT,
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
	const struct call c = { .op = KMS_DESCRIBE, .key = key, .description = out };

	return run(k, &c, deadline, err);
}

/* ---- many at once ---- */

size_t kms_batch_max(const struct kms *k)
{
	return k->provider->decrypt_batch && k->provider->batch_max ? k->provider->batch_max : 1;
}

static void settle_item(struct kms *k, struct kms_item *i, uint64_t ns)
{
	const struct call c = { .op = KMS_DECRYPT, .key = k->key, .to = k->key, .ctx = i->context, .used = &i->used };

	if ((unsigned)i->err.status > KMS_CONFIG)
		(void)kms_fail(
		    &i->err, KMS_CONFIG, "BadProvider", "provider '%s' broke its contract", k->provider->name);
	if (i->err.status == KMS_OK)
		i->err.status = check_answer(k, &c, &i->err);
	if (i->err.status != KMS_OK)
		explicit_bzero(i->secret, 32);
	told(k, &c, &i->err, ns);
}

static void batch(struct kms *k, struct kms_item *items, size_t n, uint64_t deadline)
{
	uint64_t begun = histogram_clock(), own_end = io_boot_ms() + k->request_timeout_ms;

	for (size_t i = 0; i < n; i++) {
		memset(&items[i].used, 0, sizeof(items[i].used));
		memset(&items[i].err, 0, sizeof(items[i].err));
		/* What the provider forgets has not been unsealed. */
		(void)kms_fail(&items[i].err, KMS_DOWN, "NoAnswer", "the answer leaves this key out");
	}
	k->provider->decrypt_batch(k->priv, k->key, items, n, own_end < deadline ? own_end : deadline);
	for (size_t i = 0; i < n; i++)
		settle_item(k, &items[i], histogram_clock() - begun);
}

void kms_decrypt_batch(struct kms *k, struct kms_item *items, size_t n, uint64_t deadline)
{
	size_t most = kms_batch_max(k);

	for (size_t i = 0, part; i < n; i += part) {
		struct kms_item *it = &items[i];
		const struct call c = { .op = KMS_DECRYPT,
			.key = k->key,
			.to = k->key,
			.ctx = it->context,
			.in = it->blob,
			.len = it->len,
			.secret = it->secret,
			.used = &it->used };

		part = n - i < most ? n - i : most;
		if (most > 1)
			batch(k, it, part, deadline);
		else if (attempt(k, &c, deadline, &it->err) != KMS_OK)
			explicit_bzero(it->secret, 32);
	}
}

/* ---- the rest ---- */

void kms_observe(struct kms *k, void (*fn)(void *arg, const struct kms_event *), void *arg)
{
	k->observe = fn;
	k->observer = arg;
}

void kms_where(struct kms *k, struct kms_where *out)
{
	memset(out, 0, sizeof(*out));
	if (k->provider->where)
		k->provider->where(k->priv, out);
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

void kms_latency(const struct kms *k, enum kms_operation op, struct histogram_view *out)
{
	histogram_read(&k->latency[op], out);
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

bool kms_can_reencrypt(const struct kms *k)
{
	return k->provider->reencrypt != NULL;
}

uint8_t kms_provider_number(const struct kms *k)
{
	return k->provider->number;
}
