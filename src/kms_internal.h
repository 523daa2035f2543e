/* kms_internal.h — an open key service, shared by kms.c (calls) and kms_open.c (which provider, which key). */
#ifndef BYOKFS_KMS_INTERNAL_H
#define BYOKFS_KMS_INTERNAL_H

#include <stdatomic.h>

#include "histogram.h"
#include "kms_provider.h"

struct kms {
	const struct kms_provider *provider;
	void *priv;
	_Atomic uint32_t request_timeout_ms;
	atomic_uint_fast64_t calls, errors, by_status[KMS_CONFIG + 1], latency_sum, latency_max;
	struct histogram latency[KMS_OPERATIONS];
	void (*observe)(void *arg, const struct kms_event *);
	void *observer;
	char key[KMS_KEY_MAX + 1];
};

#endif
