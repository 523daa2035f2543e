/* seal.h — a new key domain's secret: made by the KMS, sealed under its key, and proved to open again before anything
 * depends on it. */
#ifndef BYOKFS_SEAL_H
#define BYOKFS_SEAL_H

#include "context.h"
#include "descriptor.h"
#include "kms.h"

/* Fills slot (seq 1, context generation 1) with the sealed secret and the canary's blob, and secret, which is the
 * caller's, in secret memory. Asks three times: for both blobs, then to unseal what it sealed; each with a deadline of
 * its own. Unless KMS_OK, *what says in words what failed ("cannot seal a probe") and secret is wiped. */
enum kms_status seal_domain(struct kms *, const struct context_ids *, const struct context_extra *,
    struct descriptor_slot *slot, uint8_t secret[static KDF_SECRET], const char **what, struct kms_err *err);

#endif
