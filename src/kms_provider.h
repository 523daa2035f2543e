/* kms_provider.h — what the wrapper and the providers share. */
#ifndef BYOKFS_KMS_PROVIDER_H
#define BYOKFS_KMS_PROVIDER_H

#include "kms.h"

extern const struct kms_provider kms_aws_provider, kms_keyfile_provider;

/* Fills *err and returns the status: `return kms_fail(err, KMS_DENIED, "NotFound", "the key file is gone");`
 */
enum kms_status kms_fail(struct kms_err *err, enum kms_status, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* KMSInvalidStateException says in words only whether a state is passing. True when these words are known.
 * Pure. */
bool kms_aws_state_known(const char *message);

#endif
