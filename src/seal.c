/* seal.c — the three calls that make a domain's secret. Hides that a KMS which seals but does not unseal, or unseals
 * something else, is found out here. */
#include "seal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "io.h"
#include "secret.h"

static enum kms_status local(struct kms_err *err, enum kms_status status, const char *code, const char *message)
{
	memset(err, 0, sizeof(*err));
	err->status = status;
	(void)snprintf(err->code, sizeof(err->code), "%s", code);
	(void)snprintf(err->message, sizeof(err->message), "%s", message);
	return status;
}

static enum kms_status one_blob(struct kms *kms, struct context *context, struct kms_blob *blob,
    uint8_t secret[static KDF_SECRET], struct kms_used *used, struct kms_err *err)
{
	enum kms_status status = kms_generate(kms, context, kms_deadline(kms), secret, blob, used, err);

	if (status == KMS_OK && (blob->len == 0 || blob->len > DESCRIPTOR_BLOB_MAX))
		return local(err, KMS_CONFIG, "UnexpectedBlob", "the sealed key does not fit a descriptor");
	return status;
}

static enum kms_status again(struct kms *kms, struct context *context, const struct kms_blob *blob,
    const uint8_t secret[static KDF_SECRET], struct kms_used *used, const char **what, struct kms_err *err)
{
	uint8_t *opened = secret_alloc(KDF_SECRET);
	enum kms_status status;

	*what = "the KMS sealed the domain's secret but does not unseal it";
	if (!opened)
		return local(err, KMS_CONFIG, "OutOfMemory", "no locked memory for a key");
	status = kms_decrypt(kms, context, blob->bytes, blob->len, kms_deadline(kms), opened, used, err);
	if (status == KMS_OK && !bytes_equal(opened, secret, KDF_SECRET))
		status =
		    local(err, KMS_BAD_BLOB, "UnexpectedPlaintext", "it unsealed another secret than it had sealed");
	secret_free(opened);
	return status;
}

/* Large, hence on the heap. */
struct work {
	struct context context;
	struct kms_blob blob;
	struct kms_used used;
};

static enum kms_status seal(struct kms *kms, struct work *w, const struct context_ids *ids,
    const struct context_extra *extra, struct descriptor_slot *slot, uint8_t secret[static KDF_SECRET],
    const char **what, struct kms_err *err)
{
	enum kms_status status;

	*what = "cannot seal a probe";
	context_build(&w->context, CONTEXT_PROBE, ids, NULL, extra);
	status = one_blob(kms, &w->context, &w->blob, secret, &w->used, err);
	if (status != KMS_OK)
		return status;
	slot->probe_len = (uint16_t)w->blob.len; /* its plaintext is overwritten by the next */
	memcpy(slot->probe, w->blob.bytes, w->blob.len);
	*what = "cannot seal the domain's secret";
	context_build(&w->context, CONTEXT_DOMAIN, ids, NULL, extra);
	status = one_blob(kms, &w->context, &w->blob, secret, &w->used, err);
	if (status != KMS_OK)
		return status;
	slot->seq = 1;
	slot->provider = kms_provider_number(kms);
	slot->context = 1;
	slot->sealed = io_unix_time();
	memcpy(slot->material, w->used.material, sizeof(slot->material));
	/* The key that was asked, though a replica may have answered. */
	(void)snprintf(slot->key, sizeof(slot->key), "%s", kms_key(kms));
	slot->blob_len = (uint16_t)w->blob.len;
	memcpy(slot->blob, w->blob.bytes, w->blob.len);
	return again(kms, &w->context, &w->blob, secret, &w->used, what, err);
}

enum kms_status seal_domain(struct kms *kms, const struct context_ids *ids, const struct context_extra *extra,
    struct descriptor_slot *slot, uint8_t secret[static KDF_SECRET], const char **what, struct kms_err *err)
{
	CLEANUP_FREE struct work *w = calloc(1, sizeof(*w));
	enum kms_status status;

	*what = "cannot seal the domain's secret";
	status = w ? seal(kms, w, ids, extra, slot, secret, what, err)
	           : local(err, KMS_CONFIG, "OutOfMemory", "out of memory");
	if (status != KMS_OK)
		explicit_bzero(secret, KDF_SECRET);
	return status;
}
