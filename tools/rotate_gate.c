/* rotate_gate.c — who may ask the KMS now. Hides the throttle's lock, the waits, and how a signal, a refusal or the end
 * of patience stops every worker soon. */
#include "rotate.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

#include "io.h"
#include "throttle.h"

#define LOOK_MS 100u /* how soon a signal is noticed */

struct gate {
	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t wake;
	struct throttle throttle;
	int code;
	const char *hint;
	char why[900];
	bool signalled;
	/* constant */
	void (*observe)(void *arg, const struct kms_event *);
	void *observer;
	_Atomic uint64_t requests;
	atomic_bool stopped;
};

static atomic_int caught; /* lock-free: a handler may */

static void on_signal(int sig)
{
	atomic_store(&caught, sig);
}

/* A second one kills: the handler is gone then. */
static void watch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND };

	(void)sigemptyset(&sa.sa_mask);
	(void)sigaction(SIGINT, &sa, NULL);
	(void)sigaction(SIGTERM, &sa, NULL);
}

int gate_open(struct gate **out, unsigned most, uint64_t rate, uint64_t patience_ms)
{
	struct gate *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	(void)pthread_mutex_init(&g->lock, NULL);
	(void)io_cond_init(&g->wake);
	throttle_init(&g->throttle, most, rate, patience_ms, io_boot_ms());
	watch_signals();
	*out = g;
	return 0;
}

void gate_close(struct gate *g)
{
	if (!g)
		return;
	(void)pthread_cond_destroy(&g->wake);
	(void)pthread_mutex_destroy(&g->lock);
	free(g);
}

void gate_chain(struct gate *g, void (*observe)(void *arg, const struct kms_event *), void *observer)
{
	g->observe = observe;
	g->observer = observer;
}

void gate_observe(void *arg, const struct kms_event *event)
{
	struct gate *g = arg;

	atomic_fetch_add(&g->requests, 1);
	if (event->err->status == KMS_BUSY) {
		LOCK_SCOPE(&g->lock);
		throttle_busy(&g->throttle, io_boot_ms());
	}
	if (g->observe)
		g->observe(g->observer, event);
}

uint64_t gate_requests(struct gate *g)
{
	return atomic_load(&g->requests);
}

/* ---- stopping */

/* The lock is held. */
static void stop(struct gate *g, int code, const char *hint)
{
	g->code = code;
	g->hint = hint;
	atomic_store(&g->stopped, true);
	(void)pthread_cond_broadcast(&g->wake);
}

void gate_stop(struct gate *g, int code, const char *hint, const char *fmt, ...)
{
	va_list ap;

	LOCK_SCOPE(&g->lock);
	if (g->code)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(g->why, sizeof(g->why), fmt, ap);
	va_end(ap);
	stop(g, code, hint);
}

bool gate_stopped(struct gate *g)
{
	if (atomic_load(&caught) && !atomic_load(&g->stopped)) {
		LOCK_SCOPE(&g->lock);
		if (!g->code) {
			(void)snprintf(g->why, sizeof(g->why), "stopped by a signal");
			g->signalled = true;
			stop(g, EXIT_FAILED, NULL);
		}
	}
	return atomic_load(&g->stopped);
}

int gate_why(struct gate *g, char *why, size_t size, const char **hint, bool *signalled)
{
	LOCK_SCOPE(&g->lock);
	(void)snprintf(why, size, "%s", g->why);
	*hint = g->hint;
	*signalled = g->signalled;
	return g->code;
}

/* ---- waiting */

/* The lock is held. */
static void wait_ms(struct gate *g, uint64_t ms)
{
	struct timespec until = io_after_ms(ms < LOOK_MS ? ms : LOOK_MS);

	(void)pthread_cond_timedwait(&g->wake, &g->lock, &until);
}

void gate_sleep(struct gate *g, unsigned ms)
{
	uint64_t end = io_boot_ms() + ms, now;

	while (!gate_stopped(g) && (now = io_boot_ms()) < end) {
		LOCK_SCOPE(&g->lock);
		wait_ms(g, end - now);
	}
}

static bool enter(struct gate *g)
{
	while (!gate_stopped(g)) {
		LOCK_SCOPE(&g->lock);
		uint64_t ms = throttle_go(&g->throttle, io_boot_ms());

		if (ms == 0)
			return true;
		wait_ms(g, ms);
	}
	return false;
}

/* What is not permitted is a denial, whether it worked before or not. */
static bool is_denial(const struct kms_err *err)
{
	return err->status == KMS_DENIED || strcmp(err->code, "AccessDeniedException") == 0;
}

static void refuse(struct gate *g, const struct kms_err *err)
{
	char text[800];

	kms_err_text(text, sizeof(text), err);
	if (is_denial(err))
		gate_stop(g, EXIT_DENIED,
		    "are both keys enabled, and may the rotator use kms:ReEncryptFrom on the old one and "
		    "kms:ReEncryptTo on the new one? 'byokfsctl policy --rotator ARN' prints its policy",
		    "%s", text);
	else
		gate_stop(g, kms_exitcode(err->status), cmd_kms_hint(err), "%s%s",
		    err->status == KMS_DOWN || err->status == KMS_BUSY ? "given up: " : "", text);
}

/* True: once more. */
static bool settle(struct gate *g, const struct kms_err *err)
{
	enum kms_status s = err->status;
	bool patient;

	{
		LOCK_SCOPE(&g->lock);
		patient = throttle_done(&g->throttle, io_boot_ms(), s != KMS_DOWN && s != KMS_BUSY, s == KMS_DOWN);
		(void)pthread_cond_signal(&g->wake);
	}
	if (s == KMS_OK || s == KMS_BAD_BLOB)
		return false;
	if (patient && (s == KMS_BUSY || s == KMS_DOWN))
		return true;
	refuse(g, err);
	return false;
}

enum verdict gate_call(struct gate *g, enum kms_status (*fn)(void *arg, struct kms_err *err), void *arg)
{
	struct kms_err err;

	do {
		if (!enter(g))
			return VERDICT_STOP;
		memset(&err, 0, sizeof(err));
		err.status = fn(arg, &err);
	} while (settle(g, &err));
	return err.status == KMS_OK ? VERDICT_OK : err.status == KMS_BAD_BLOB ? VERDICT_FILE : VERDICT_STOP;
}
