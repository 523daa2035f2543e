/* cmd_test_use.c — the steps of `byokfsctl test` that use the key: seal, unseal, refuse what must be refused, how
 * long it takes. */
#include "cmd_test.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "secret.h"

#define ROUNDS  5
#define SLOW_MS 50u

static enum kms_status decrypt(struct trial *t)
{
	return kms_decrypt(
	    t->kms, t->context, t->blob.bytes, t->blob.len, kms_deadline(t->kms), t->again, &t->used, &t->err);
}

static void own_context(struct trial *t)
{
	context_build(t->context, CONTEXT_PROBE, &t->ids, NULL, &t->extra);
}

static bool try_generate(struct trial *t)
{
	if (kms_generate(t->kms, t->context, kms_deadline(t->kms), t->secret, &t->blob, &t->used, &t->err) != KMS_OK) {
		test_kms_failed(t, "seal", "GenerateDataKey", kms_key(t->kms));
		return false;
	}
	test_ok(t, "seal", "a fresh key, sealed into %zu bytes", t->blob.len);
	return true;
}

/* Nothing was sealed, but whether unsealing is allowed can still be told: of the store's own canary, or of rubbish,
 * which a service that permits the call calls rubbish. */
static void try_decrypt_alone(struct trial *t)
{
	const struct descriptor_slot *slot = t->store ? descriptor_ruling_slot(&t->store->domain) : NULL;
	enum kms_status status;

	if (!test_denied(&t->err))
		return;
	t->blob.len = slot ? slot->probe_len : 184;
	if (slot)
		memcpy(t->blob.bytes, slot->probe, slot->probe_len);
	else
		secret_random(t->blob.bytes, t->blob.len);
	status = decrypt(t);
	t->blob.len = 0;
	if (status == KMS_OK)
		test_ok(t, "unseal", "the store's canary is unsealed");
	else if (status == KMS_BAD_BLOB)
		test_note(t, "unseal", "not tried: nothing was sealed");
	else
		test_kms_failed(t, "unseal", "Decrypt", kms_key(t->kms));
}

static bool try_decrypt(struct trial *t)
{
	enum kms_status status = decrypt(t);

	if (status != KMS_OK)
		test_kms_failed(t, "unseal", "Decrypt", kms_key(t->kms));
	else if (!bytes_equal(t->secret, t->again, KDF_SECRET))
		test_failed(t, EXIT_FAILED, "unseal", "do not use this key service",
		    "another secret came back than was sealed");
	else
		test_ok(t, "unseal", "the same key came back");
	return status == KMS_OK;
}

static void try_wrong_context(struct trial *t)
{
	struct context_ids other = t->ids;
	enum kms_status status;

	other.domain[0] ^= 1;
	context_build(t->context, CONTEXT_PROBE, &other, NULL, &t->extra);
	status = decrypt(t);
	own_context(t);
	if (status == KMS_OK)
		test_failed(
		    t, EXIT_FAILED, "context", "do not use this key service", "a wrong encryption context is accepted");
	else if (status == KMS_BAD_BLOB || status == KMS_DENIED)
		test_ok(t, "context", "a wrong encryption context is refused");
	else
		test_kms_failed(t, "context", "Decrypt", kms_key(t->kms));
}

/* ---- does the policy know the store? ---- */

enum answer { ALLOWED, REFUSED, UNCLEAR };

static enum answer allowed(struct trial *t)
{
	struct kms_blob *blob CLEANUP_FREE = calloc(1, sizeof(*blob));
	enum kms_status status;

	if (!blob)
		return UNCLEAR;
	status = kms_generate(t->kms, t->context, kms_deadline(t->kms), t->again, blob, &t->used, &t->err);
	return status == KMS_OK ? ALLOWED : test_denied(&t->err) ? REFUSED : UNCLEAR;
}

static enum answer other_store_allowed(struct trial *t)
{
	struct context_ids other = t->ids;

	secret_random(other.store, CONTEXT_ID);
	context_build(t->context, CONTEXT_PROBE, &other, NULL, &t->extra);
	return allowed(t);
}

static enum answer further_pair_allowed(struct trial *t)
{
	struct context_extra *more CLEANUP_FREE = calloc(1, sizeof(*more));

	if (!more)
		return UNCLEAR;
	*more = t->extra;
	if (context_add_extra(more, "test-of-policy", "refuse") < 0)
		return UNCLEAR; /* no room for one more */
	context_build(t->context, CONTEXT_PROBE, &t->ids, NULL, more);
	return allowed(t);
}

/* Least privilege: this store's requests only, and with no pairs but ours. A hint, never a failure. */
static void try_policy(struct trial *t)
{
	enum answer other = other_store_allowed(t), further = further_pair_allowed(t);

	own_context(t);
	if (other == ALLOWED)
		test_note(t, "policy",
		    "the key may be used for any store, not only for this one: 'byokfsctl policy' prints a "
		    "policy that says which");
	else if (further == ALLOWED)
		test_note(t, "policy",
		    "pairs that byokfs does not send are allowed in the encryption context: 'byokfsctl "
		    "policy' prints a policy with kms:EncryptionContextKeys");
	else if (other == REFUSED && further == REFUSED)
		test_ok(t, "policy", "the key may be used for this store only");
	else
		test_note(t, "policy", "not told: %s", *t->err.code ? t->err.code : "no room for one more pair");
}

/* ---- latency ---- */

static void judge_latency(struct trial *t, const uint64_t ms[static ROUNDS])
{
	uint64_t median = ms[ROUNDS / 2];

	if (median <= SLOW_MS)
		test_ok(t, "latency", "%" PRIu64 " ms for one key (median of %d, %" PRIu64 " to %" PRIu64 " ms)",
		    median, ROUNDS, ms[0], ms[ROUNDS - 1]);
	else
		test_note(t, "latency",
		    "%" PRIu64 " ms for one key (median of %d, %" PRIu64 " to %" PRIu64
		    " ms): with --seal=file the first open of a file waits that long; --seal=domain asks once per "
		    "lease",
		    median, ROUNDS, ms[0], ms[ROUNDS - 1]);
}

static void try_latency(struct trial *t)
{
	uint64_t ms[ROUNDS] = { 0 };

	for (size_t i = 0; i < ROUNDS; i++) {
		uint64_t took = io_boot_ms();
		size_t at = i;

		if (decrypt(t) != KMS_OK) {
			test_kms_failed(t, "latency", "Decrypt", kms_key(t->kms));
			return;
		}
		took = io_boot_ms() - took;
		for (; at > 0 && ms[at - 1] > took; at--)
			ms[at] = ms[at - 1];
		ms[at] = took;
	}
	judge_latency(t, ms);
}

void test_use(struct trial *t)
{
	own_context(t);
	if (!try_generate(t)) {
		try_decrypt_alone(t);
		return;
	}
	if (!try_decrypt(t))
		return;
	try_wrong_context(t);
	if (test_is_aws(t))
		try_policy(t);
	try_latency(t);
}
