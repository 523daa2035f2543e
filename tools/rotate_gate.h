/* rotate_gate.h — who may ask the KMS now, and who stops it. Any thread. Signals end the work like a refusal of the KMS
 * does: what is under way is brought to its end, nothing new begins. */
#ifndef BYOKFS_ROTATE_GATE_H
#define BYOKFS_ROTATE_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "kms.h"

struct gate;

enum verdict {
	VERDICT_OK,
	VERDICT_FILE, /* this blob is no good */
	VERDICT_STOP, /* no further request */
};

MUST_CHECK int gate_open(struct gate **, unsigned most, uint64_t rate, uint64_t patience_ms);
void gate_close(struct gate *);
/* Tells of every attempt; hand it to kms_params with the gate as observer; goes on to the audit. */
void gate_observe(void *gate, const struct kms_event *);
void gate_chain(struct gate *, void (*observe)(void *arg, const struct kms_event *), void *observer);
/* Calls fn when a request may go, and again while the KMS is throttled or silent. */
enum verdict gate_call(struct gate *, enum kms_status (*fn)(void *arg, struct kms_err *err), void *arg);
/* No further requests. The first reason stays. */
void gate_stop(struct gate *, int code, const char *hint, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
bool gate_stopped(struct gate *);
/* The reason: EXIT_OK when there is none. *signalled: a signal. */
int gate_why(struct gate *, char *why, size_t size, const char **hint, bool *signalled);
uint64_t gate_requests(struct gate *);
/* Waits, unless stopped. */
void gate_sleep(struct gate *, unsigned ms);

#endif
