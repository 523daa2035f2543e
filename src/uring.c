/* A request's way through the transport: whose it is, handled, answered here or by somebody else; and the start and the
 * end of it all.
 *
 * Hides how an answer finds its entry. As a rule the thread that answers is handling it; for the few others all entries
 * are looked at, which costs less than keeping a table for every request. */
#include "uring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "histogram.h"
#include "uring_internal.h"

#define CPUS_MAX 4096u

/* What this thread is handling. */
static _Thread_local struct {
	struct uring_entry *entry;
	uint64_t unique;
	bool on_server;
} current;

/* ---- requests */

uint64_t uring_run(struct uring_entry *e, void *request, size_t n, bool on_server)
{
	struct uring_queue *q = e->queue;
	struct uring *u = q->server->uring;
	unsigned class = uring_class(request, n);
	uint64_t unique = atomic_load(&e->owner), expect = unique, begun = histogram_clock(), took;

	current.entry = e;
	current.unique = unique;
	current.on_server = on_server;
	u->params.handle(u->params.arg, request, n);
	current.entry = NULL;
	took = histogram_clock() - begun;
	uring_work_learn(u, class, took);
	/* The entry may be another request's by now. */
	if (atomic_compare_exchange_strong(&e->owner, &expect, unique | URING_PARKED)) {
		atomic_fetch_add(&q->parked, 1);
		if (!on_server)
			uring_wake(q->server);
	}
	return took;
}

void *uring_room(size_t n)
{
	struct uring_entry *e = current.entry;

	if (!e || n > e->room || atomic_load_explicit(&e->owner, memory_order_relaxed) != current.unique)
		return NULL;
	if (e->used < n)
		e->used = n;
	return e->payload;
}

static struct uring_entry *find(const struct uring *u, uint64_t unique)
{
	if (current.entry && current.unique == unique)
		return current.entry;
	for (unsigned i = 0; i < u->queues; i++) {
		const struct uring_queue *q = &u->queue[i];
		unsigned n = atomic_load_explicit(&q->count, memory_order_acquire);

		for (unsigned k = 0; k < n; k++)
			if ((atomic_load_explicit(&q->entry[k]->owner, memory_order_relaxed) &
			        ~(uint64_t)URING_PARKED) == unique)
				return q->entry[k];
	}
	return NULL;
}

/* Makes the caller the one who answers. */
static bool claim(struct uring_entry *e, uint64_t unique)
{
	uint64_t running = unique, parked = unique | URING_PARKED;

	if (atomic_compare_exchange_strong(&e->owner, &running, 0))
		return true;
	if (!atomic_compare_exchange_strong(&e->owner, &parked, 0))
		return false;
	atomic_fetch_sub(&e->queue->parked, 1);
	return true;
}

static void hand_over(struct uring_entry *e)
{
	struct uring_server *s = e->queue->server;
	struct uring_entry *head = atomic_load(&s->answered);

	do
		e->next = head;
	while (!atomic_compare_exchange_weak(&s->answered, &head, e));
	if (!head)
		uring_wake(s);
}

int uring_answer(struct uring *u, const struct iovec *iov, int count)
{
	struct fuse_out_header head;
	struct uring_entry *e;
	bool here;

	if (count < 1 || iov[0].iov_len != sizeof(head))
		return -ESRCH;
	memcpy(&head, iov[0].iov_base, sizeof(head));
	e = head.unique && !(head.unique & URING_PARKED) ? find(u, head.unique) : NULL;
	if (!e)
		return -ESRCH;
	here = e == current.entry && current.on_server;
	if (atomic_load(&u->stopped) || !claim(e, head.unique))
		return -ENOENT;
	(void)uring_fill(e, iov, count);
	if (here)
		uring_commit(e);
	else
		hand_over(e);
	return 0;
}

bool uring_idle(const struct uring *u)
{
	for (unsigned i = 0; i < u->servers; i++)
		if (!atomic_load_explicit(&u->server[i].waits, memory_order_relaxed))
			return false;
	return true;
}

/* ---- CPUs */

unsigned uring_cpu_list(const char *text, bool *set, unsigned max)
{
	unsigned count = 0;

	memset(set, 0, max * sizeof(*set));
	for (;;) {
		char *end;
		unsigned long first = strtoul(text, &end, 10), last = first;

		if (end == text)
			return 0;
		if (*end == '-') {
			text = end + 1;
			last = strtoul(text, &end, 10);
			if (end == text)
				return 0;
		}
		if (last < first || last >= max)
			return 0;
		for (; first <= last; first++) {
			count += !set[first];
			set[first] = true;
		}
		if (*end != ',')
			return *end && *end != '\n' ? 0 : count;
		text = end + 1;
	}
}

static unsigned read_cpus(const char *path, bool *set)
{
	char text[4096] = "";
	CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return 0;
	return uring_cpu_list(text, set, CPUS_MAX);
}

/* ---- beginning and end */

/* A server for each CPU that is there; the queues of others (the kernel wants all that could be) are shared out. */
static int lay_out(struct uring *u)
{
	bool online[CPUS_MAX], possible[CPUS_MAX];
	unsigned next = 0, servers = read_cpus("/sys/devices/system/cpu/online", online);

	u->queues = read_cpus("/sys/devices/system/cpu/possible", possible);
	u->servers = servers;
	if (!u->queues || !servers || servers > u->queues)
		return -ENODEV;
	u->queue = calloc(u->queues, sizeof(*u->queue));
	u->server = calloc(u->servers, sizeof(*u->server));
	if (!u->queue || !u->server)
		return -ENOMEM;
	for (unsigned i = 0; i < u->servers; i++)
		u->server[i] = (struct uring_server){ .uring = u, .event = -1, .ring.fd = -1 };
	for (unsigned i = 0; i < u->queues; i++) {
		struct uring_server *s = &u->server[online[i] && next < servers ? next : i % servers];

		if (online[i] && next < u->servers) {
			s->cpu = i;
			next++;
		}
		u->queue[i] = (struct uring_queue){ .server = s,
			.next = s->queues,
			.qid = (uint16_t)i,
			.depth = online[i] ? URING_DEPTH : 1,
			.entry = calloc(URING_ENTRIES, sizeof(*u->queue[i].entry)) };
		s->queues = &u->queue[i];
		for (unsigned k = 0; u->queue[i].entry && k < u->queue[i].depth; k++)
			if (uring_queue_add(&u->queue[i]))
				return -ENOMEM;
		if (!u->queue[i].entry)
			return -ENOMEM;
	}
	return next == u->servers ? 0 : -ENODEV; /* a CPU whose number has no queue */
}

static int start_servers(struct uring *u)
{
	for (; u->started < u->servers; u->started++) {
		struct uring_server *s = &u->server[u->started];
		int r;

		s->event = eventfd(0, EFD_CLOEXEC);
		if (s->event < 0)
			return -errno;
		r = pthread_create(&s->thread, NULL, uring_serve, s);
		if (r)
			return -r;
	}
	return 0;
}

static void wait_ready(struct uring *u)
{
	for (unsigned i = 0; i < u->started; i++)
		while (sem_wait(&u->ready))
			;
}

static int first_failure(const struct uring *u, unsigned *cpu)
{
	for (unsigned i = 0; i < u->started; i++)
		if (u->server[i].failed) {
			*cpu = u->server[i].cpu;
			return u->server[i].failed;
		}
	return 0;
}

/* What the administrator can do about it. */
static void explain(char *why, int err, int setup, unsigned cpu)
{
	if (setup == -EPERM)
		(void)snprintf(why, URING_WHY, "io_uring is forbidden here (sysctl kernel.io_uring_disabled, seccomp)");
	else if (setup == -ENOSYS)
		(void)snprintf(why, URING_WHY, "the kernel, or a sandbox, has no io_uring");
	else if (setup == -EINVAL)
		(void)snprintf(why, URING_WHY, "the daemon may not use CPU %u (cpuset), or the kernel is too old", cpu);
	else
		(void)snprintf(why, URING_WHY, "%s", strerror(-err));
}

int uring_open(struct uring **out, const struct uring_params *p, char why[URING_WHY])
{
	struct uring *u = calloc(1, sizeof(*u));
	int r, setup = 0;
	unsigned cpu = 0;

	if (!u) {
		explain(why, -ENOMEM, 0, 0);
		return -ENOMEM;
	}
	u->params = *p;
	(void)sem_init(&u->ready, 0, 0);
	(void)sem_init(&u->go, 0, 0);
	r = uring_work_open(u);
	if (!r)
		r = lay_out(u);
	if (!r)
		r = start_servers(u);
	wait_ready(u);
	if (!r)
		r = setup = first_failure(u, &cpu);
	if (!r) {
		*out = u;
		return 0;
	}
	explain(why, r, setup, cpu);
	uring_stop(u);
	uring_close(u);
	return r;
}

int uring_go(struct uring *u)
{
	u->gone = true;
	for (unsigned i = 0; i < u->started; i++)
		(void)sem_post(&u->go);
	wait_ready(u);
	return atomic_load(&u->refused);
}

void uring_stop(struct uring *u)
{
	atomic_store(&u->stop, true);
	for (unsigned i = 0; i < u->started; i++) {
		if (!u->gone)
			(void)sem_post(&u->go);
		uring_wake(&u->server[i]);
	}
	while (u->started)
		(void)pthread_join(u->server[--u->started].thread, NULL);
	uring_work_stop(u);
	atomic_store(&u->stopped, true);
}

static void close_queue(struct uring_queue *q)
{
	for (unsigned i = 0; i < q->count; i++)
		uring_entry_close(q->entry[i]);
	free(q->entry);
}

void uring_close(struct uring *u)
{
	if (!u)
		return;
	for (unsigned i = 0; u->queue && i < u->queues; i++)
		close_queue(&u->queue[i]);
	for (unsigned i = 0; u->server && i < u->servers; i++)
		cleanup_fd(&u->server[i].event);
	free(u->queue);
	free(u->server);
	(void)sem_destroy(&u->ready);
	(void)sem_destroy(&u->go);
	pthread_mutex_destroy(&u->work.lock);
	pthread_cond_destroy(&u->work.more);
	free(u);
}
