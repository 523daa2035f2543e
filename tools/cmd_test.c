/* cmd_test.c — `byokfsctl test`: configuration, credentials, key and store, one line per step.
 *
 * A failed step says what to do. Later steps that could still tell something run all the same; the exit code is the
 * first failure's. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "awscred.h"
#include "bytes.h"
#include "io.h"
#include "secret.h"

#define ROUNDS 5

struct trial {
	struct config config;
	const struct cmd_args *args;
	struct kms *kms;
	struct context_ids ids; /* random: no store is meant */
	struct context *context;
	uint8_t *secret, *again;
	struct kms_blob blob;
	struct kms_used used;
	struct kms_err err;
	char host_region[64];
	int code; /* of the first failure */
};

static void line(const char *verdict, const char *step, const char *fmt, va_list ap)
{
	(void)printf("%-7s %s: ", verdict, step);
	(void)vprintf(fmt, ap);
	(void)putchar('\n');
}

static void __attribute__((format(printf, 2, 3))) ok(const char *step, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	line("ok", step, fmt, ap);
	va_end(ap);
}

static void __attribute__((format(printf, 2, 3))) note(const char *step, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	line("note", step, fmt, ap);
	va_end(ap);
}

static void __attribute__((format(printf, 5, 6)))
failed(struct trial *t, int code, const char *step, const char *todo, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	line("FAILED", step, fmt, ap);
	va_end(ap);
	if (todo)
		(void)printf("        what to do: %s\n", todo);
	if (t->code == EXIT_OK)
		t->code = code;
}

static const char *todo(const struct kms_err *err)
{
	if (err->status == KMS_CONFIG)
		return "check credentials, key and Region in [kms], and this host's clock";
	return cmd_kms_hint(err);
}

static void kms_failed(struct trial *t, const char *step)
{
	char text[800];

	kms_err_text(text, sizeof(text), &t->err);
	failed(t, cmd_exit_kms(t->err.status), step, todo(&t->err), "%s", text);
}

static bool is_aws(const struct trial *t)
{
	return strcmp(t->config.kms.provider, "aws") == 0;
}

static const char *credentials_source(const struct trial *t, const struct sigv4_credentials *c)
{
	const char *env = getenv("AWS_ACCESS_KEY_ID");

	return !t->config.kms.profile && env && strcmp(env, c->access_key) == 0 ? "the environment"
	                                                                        : "the shared AWS files";
}

static bool try_credentials(struct trial *t)
{
	const struct awscred_params params = { .profile = t->config.kms.profile };
	struct sigv4_credentials *c = NULL;
	struct awscred *cred = NULL;
	char why[200] = "out of memory";
	int ret = awscred_open(&cred, &params);

	if (ret == 0) {
		awscred_region(cred, t->host_region);
		ret = awscred_get(cred, io_boot_ms() + t->config.kms.request_timeout_ms, &c, why);
	}
	if (ret < 0 || !c)
		failed(t, EXIT_CONFIG, "credentials",
		    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in ~/.aws/credentials", "%s", why);
	else
		ok("credentials", "from %s, access key %.4s...%s%s", credentials_source(t, c), c->access_key,
		    c->access_key + (strlen(c->access_key) > 8 ? strlen(c->access_key) - 4 : strlen(c->access_key)),
		    c->session_token ? ", temporary" : "");
	awscred_put(c);
	awscred_close(cred);
	return ret == 0;
}

static bool try_open(struct trial *t)
{
	int code = cmd_kms_open(&t->kms, &t->config, &t->err);

	if (code == EXIT_OK) {
		ok("key service", "%s, key %s", kms_provider_name(t->kms), kms_key(t->kms));
		return true;
	}
	kms_failed(t, "key service");
	return false;
}

static void judge_key(struct trial *t, const struct kms_description *d)
{
	if (strcmp(d->state, "Enabled") != 0)
		failed(t, EXIT_DENIED, "key", "its owner must enable it", "its state is %s", d->state);
	else if (strcmp(d->spec, "SYMMETRIC_DEFAULT") != 0 || strcmp(d->usage, "ENCRYPT_DECRYPT") != 0)
		failed(
		    t, EXIT_CONFIG, "key", "use a symmetric encryption key", "is of spec %s for %s", d->spec, d->usage);
	else
		ok("key", "enabled, symmetric, %s", d->multi_region ? "multi-Region" : "single-Region");
	if (*t->host_region && strcmp(t->host_region, d->region) != 0)
		note("region", "the key is in %s, this host's setting is %s: every call crosses Regions", d->region,
		    t->host_region);
	else
		ok("region", "%s", d->region);
}

/* Not every host may call DescribeKey, and a mount by ARN does not need it. False: nothing else will work either. */
static bool try_describe(struct trial *t)
{
	struct kms_description d;

	if (kms_describe(t->kms, kms_key(t->kms), kms_deadline(t->kms), &d, &t->err) == KMS_OK) {
		judge_key(t, &d);
		return true;
	}
	if (strcmp(t->err.code, "AccessDeniedException") == 0) {
		note("key", "this identity may not call DescribeKey; mounting by ARN does not need it");
		return true;
	}
	kms_failed(t, "key");
	return false;
}

static bool try_generate(struct trial *t)
{
	context_build(t->context, CONTEXT_PROBE, &t->ids, NULL, &t->config.extra);
	if (kms_generate(t->kms, t->context, kms_deadline(t->kms), t->secret, &t->blob, &t->used, &t->err) != KMS_OK) {
		kms_failed(t, "seal");
		return false;
	}
	ok("seal", "a fresh key, sealed into %zu bytes", t->blob.len);
	return true;
}

static bool try_decrypt(struct trial *t)
{
	enum kms_status status = kms_decrypt(
	    t->kms, t->context, t->blob.bytes, t->blob.len, kms_deadline(t->kms), t->again, &t->used, &t->err);

	if (status != KMS_OK)
		kms_failed(t, "unseal");
	else if (!bytes_equal(t->secret, t->again, KDF_SECRET))
		failed(t, EXIT_FAILED, "unseal", "do not use this key service",
		    "another secret came back than was sealed");
	else
		ok("unseal", "the same key came back");
	return status == KMS_OK;
}

static void try_wrong_context(struct trial *t)
{
	struct context_ids other = t->ids;
	enum kms_status status;

	other.domain[0] ^= 1;
	context_build(t->context, CONTEXT_PROBE, &other, NULL, &t->config.extra);
	status = kms_decrypt(
	    t->kms, t->context, t->blob.bytes, t->blob.len, kms_deadline(t->kms), t->again, &t->used, &t->err);
	context_build(t->context, CONTEXT_PROBE, &t->ids, NULL, &t->config.extra);
	if (status == KMS_OK)
		failed(
		    t, EXIT_FAILED, "context", "do not use this key service", "a wrong encryption context is accepted");
	else if (status == KMS_BAD_BLOB || status == KMS_DENIED)
		ok("context", "a wrong encryption context is refused");
	else
		kms_failed(t, "context");
}

static void try_latency(struct trial *t)
{
	uint64_t ms[ROUNDS] = { 0 };

	for (size_t i = 0; i < ROUNDS; i++) {
		uint64_t start = io_boot_ms();
		size_t at = i;

		if (kms_decrypt(t->kms, t->context, t->blob.bytes, t->blob.len, kms_deadline(t->kms), t->again,
		        &t->used, &t->err) != KMS_OK) {
			kms_failed(t, "latency");
			return;
		}
		start = io_boot_ms() - start;
		for (; at > 0 && ms[at - 1] > start; at--)
			ms[at] = ms[at - 1];
		ms[at] = start;
	}
	ok("latency", "%" PRIu64 " ms for one key (median of %d, %" PRIu64 " to %" PRIu64 " ms)", ms[ROUNDS / 2],
	    ROUNDS, ms[0], ms[ROUNDS - 1]);
}

static void unseal_failed(struct trial *t, const struct store *store, int code)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(&store->domain);
	char text[800];

	kms_err_text(text, sizeof(text), &t->err);
	if (code == EXIT_CONFIG && slot)
		failed(t, code, "store", "configure the key that the store was made under",
		    "is under key %s, not under %s: %s", slot->key, kms_key(t->kms), text);
	else
		failed(t, code, "store",
		    t->err.status == KMS_BAD_BLOB ? "restore the descriptors from a backup" : todo(&t->err), "%s",
		    text);
}

static void try_store(struct trial *t, const char *path)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	struct store *store = calloc(1, sizeof(*store));
	char why[STORE_WHY] = "out of memory", id[2 * CONTEXT_ID + 1];
	int code, ret = store ? store_open(store, path, &options, why) : -ENOMEM;

	if (ret < 0) {
		failed(t, cmd_exit_store(ret), "store", NULL, "%s", why);
		free(store);
		return;
	}
	bytes_hex(id, store->desc.store, CONTEXT_ID);
	code = cmd_unseal(store, t->kms, &t->config, &t->err, why);
	if (code == EXIT_OK)
		ok("store", "%s opens, its descriptors are authentic", id);
	else if (*why)
		failed(t, code, "store", "restore the descriptors from a backup", "%s", why);
	else
		unseal_failed(t, store, code);
	store_close(store, true);
	free(store);
}

static void try_all(struct trial *t)
{
	t->secret = secret_alloc(KDF_SECRET);
	t->again = secret_alloc(KDF_SECRET);
	t->context = calloc(1, sizeof(*t->context));
	if (!t->secret || !t->again || !t->context) {
		failed(t, EXIT_FAILED, "memory",
		    "raise the limit of locked memory (ulimit -l), or set allow_unlocked in [cache]", "none for keys");
		return;
	}
	secret_random(t->ids.store, CONTEXT_ID);
	secret_random(t->ids.domain, CONTEXT_ID);
	t->ids.suite = 1;
	if (is_aws(t) && !try_credentials(t))
		return;
	if (!try_open(t))
		return;
	if (is_aws(t) && !try_describe(t))
		return;
	if (try_generate(t) && try_decrypt(t)) {
		try_wrong_context(t);
		try_latency(t);
	}
	if (t->args->noperand)
		try_store(t, t->args->operand[0]);
}

int cmd_test(int argc, char **argv)
{
	struct cmd_args args;
	struct trial *t;
	int code = cmd_parse(&args, argc, argv, CMD_CONFIG, NULL, 0, 1);

	if (code >= 0)
		return code;
	t = calloc(1, sizeof(*t));
	if (!t)
		return EXIT_FAILED;
	t->args = &args;
	code = cmd_configure(&t->config, &args);
	if (code == EXIT_OK) {
		ok("configuration", "%s", t->config.source ? t->config.source : "built-in defaults and options");
		try_all(t);
		code = t->code;
	} else {
		(void)puts("FAILED  configuration: see above");
	}
	kms_close(t->kms);
	secret_free(t->secret);
	secret_free(t->again);
	free(t->context);
	config_free(&t->config);
	free(t);
	return fflush(stdout) == 0 ? code : EXIT_FAILED;
}
