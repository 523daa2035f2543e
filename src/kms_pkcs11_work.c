/* kms_pkcs11_work.c — threads that call into the module, so that nobody else can get stuck there.
 *
 * A module answers when it likes. A caller waits until its deadline and goes; the worker stays in the module with its
 * session until it comes back, and while all are stuck, callers time out in the queue. Workers start when they are
 * needed: the process may still fork before the first call. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "io.h"
#include "kms_pkcs11_internal.h"
#include "log.h"
#include "secret.h"

#define CLOSE_MS 2000u
#define LOOK_MS  1000u

struct p11_work {
	pthread_mutex_t lock;
	pthread_cond_t wanted; /* a job, or the end */
	pthread_cond_t done;   /* some job, or some worker */
	struct p11_job *first, **last;
	struct p11_target *target;
	unsigned max, queued, alive, idle, inside;
	bool stop, abandoned;
};

/* ---- jobs ---- */

struct p11_job *p11_job_new(void)
{
	struct p11_job *j = secret_alloc(sizeof(*j));

	if (j)
		j->holders = 1;
	return j;
}

/* lock held. */
static void put(struct p11_job *j)
{
	if (--j->holders == 0)
		secret_free(j);
}

void p11_job_put(struct p11_work *w, struct p11_job *j)
{
	if (!j)
		return;
	LOCK_SCOPE(&w->lock);
	put(j);
}

/* lock held. */
static void queue(struct p11_work *w, struct p11_job *j)
{
	j->next = NULL;
	j->state = P11_QUEUED;
	*w->last = j;
	w->last = &j->next;
	w->queued++;
}

/* lock held. */
static void unqueue(struct p11_work *w, struct p11_job *j)
{
	for (struct p11_job **p = &w->first; *p; p = &(*p)->next)
		if (*p == j) {
			*p = j->next;
			if (w->last == &j->next)
				w->last = p;
			w->queued--;
			return;
		}
}

/* ---- workers ---- */

struct p11_target *p11_target_new(void)
{
	struct p11_target *t = calloc(1, sizeof(*t));

	if (t)
		(void)pthread_mutex_init(&t->lock, NULL);
	return t;
}

void p11_target_free(struct p11_target *t)
{
	if (!t)
		return;
	(void)pthread_mutex_destroy(&t->lock);
	free(t->pin_file);
	free(t);
}

static void work_free(struct p11_work *w)
{
	p11_target_free(w->target);
	(void)pthread_cond_destroy(&w->wanted);
	(void)pthread_cond_destroy(&w->done);
	(void)pthread_mutex_destroy(&w->lock);
	free(w);
}

/* lock held; given up during the call. */
static void run_first(struct p11_work *w, struct p11_session *s)
{
	struct p11_job *j = w->first;

	unqueue(w, j);
	j->state = P11_RUNNING;
	j->holders++;
	(void)pthread_mutex_unlock(&w->lock);
	p11_session_run(s, j);
	(void)pthread_mutex_lock(&w->lock);
	j->state = P11_DONE;
	put(j);
	(void)pthread_cond_broadcast(&w->done);
}

/* The last one out closes the door, which may take the module a while, too. */
static void leave(struct p11_work *w, struct p11_session *s)
{
	bool last;

	p11_session_close(s);
	(void)pthread_mutex_lock(&w->lock);
	last = --w->inside == 0;
	(void)pthread_mutex_unlock(&w->lock);
	if (last)
		p11_module_detach(w->target->module);
	(void)pthread_mutex_lock(&w->lock);
	last = --w->alive == 0 && w->abandoned;
	(void)pthread_cond_broadcast(&w->done);
	(void)pthread_mutex_unlock(&w->lock);
	if (last)
		work_free(w);
}

static void *worker(void *arg)
{
	struct p11_work *w = arg;
	struct p11_session session = { .target = w->target };

	(void)pthread_mutex_lock(&w->lock);
	while (!w->stop) {
		if (w->first) {
			run_first(w, &session);
			continue;
		}
		w->idle++;
		(void)pthread_cond_wait(&w->wanted, &w->lock);
		w->idle--;
	}
	(void)pthread_mutex_unlock(&w->lock);
	leave(w, &session);
	return NULL;
}

/* lock held. One more, detached and deaf to signals. */
static int start_worker(struct p11_work *w)
{
	sigset_t all, old;
	pthread_attr_t attr;
	pthread_t thread;
	int r = pthread_attr_init(&attr);

	if (r)
		return -r;
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_BLOCK, &all, &old);
	r = pthread_create(&thread, &attr, worker, w);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
	if (r)
		return -r;
	if (w->inside++ == 0)
		p11_module_attach(w->target->module);
	w->alive++;
	return 0;
}

/* ---- callers ---- */

/* lock held. A second at most, since a condition cannot wait for CLOCK_BOOTTIME. */
static void wait_until(struct p11_work *w, uint64_t deadline)
{
	uint64_t now = io_boot_ms();
	uint64_t ms = deadline <= now ? 0 : deadline - now < LOOK_MS ? deadline - now : LOOK_MS;
	struct timespec t;

	t = io_after_ms(ms);
	(void)pthread_cond_timedwait(&w->done, &w->lock, &t);
}

enum kms_status p11_work_do(struct p11_work *w, struct p11_job *j, uint64_t deadline, struct kms_err *err)
{
	LOCK_SCOPE(&w->lock);
	queue(w, j);
	if (w->queued > w->idle && w->alive < w->max && start_worker(w) && !w->alive) {
		unqueue(w, j);
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "cannot start a thread for the token");
	}
	(void)pthread_cond_signal(&w->wanted);
	while (j->state != P11_DONE && io_boot_ms() < deadline)
		wait_until(w, deadline);
	if (j->state == P11_DONE) {
		*err = j->err;
		return j->status;
	}
	if (j->state == P11_QUEUED)
		unqueue(w, j);
	return kms_fail(err, KMS_DOWN, "Timeout", "%s on token '%s'",
	    j->state == P11_QUEUED ? "all threads are still waiting for answers" : "the module did not answer in time",
	    w->target->name.token);
}

/* ---- life ---- */

int p11_work_open(struct p11_work **out, struct p11_target *target, unsigned max)
{
	CLEANUP_FREE struct p11_work *w = calloc(1, sizeof(*w));

	if (!w || io_cond_init(&w->done))
		return -ENOMEM;
	(void)pthread_cond_init(&w->wanted, NULL);
	(void)pthread_mutex_init(&w->lock, NULL);
	w->last = &w->first;
	w->target = target;
	w->max = max;
	*out = steal_ptr(&w);
	return 0;
}

void p11_work_close(struct p11_work *w)
{
	uint64_t end = io_boot_ms() + CLOSE_MS;
	bool stuck;

	(void)pthread_mutex_lock(&w->lock);
	w->stop = true;
	(void)pthread_cond_broadcast(&w->wanted);
	while (w->alive && io_boot_ms() < end)
		wait_until(w, end);
	stuck = w->abandoned = w->alive > 0;
	(void)pthread_mutex_unlock(&w->lock);
	if (stuck)
		log_warn("a call into the PKCS#11 module does not return: it is left to itself");
	else
		work_free(w);
}
