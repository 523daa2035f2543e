/* The thread of a CPU's queue: takes requests, handles or hands them on, gives answers back, and sees to it that the
 * queue has entries left.
 *
 * The kernel fills a new entry with the next request that arrives, but passes on those that queued up before only when
 * some entry is committed. If every entry's request got parked, nobody would commit: so each new entry comes with a
 * kick, a request that we make the kernel send to ourselves (a RETRIEVE of nothing). It lands in the queue of the CPU
 * we run on, its answer is the commit, and the first that waits comes along. So a queue never stands still while
 * requests are waiting in it: the chain of commits breaks only where a request is parked, and there a kick follows. */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "log.h"
#include "uring_internal.h"

#define ENTRIES  64u /* of the submission ring */
/* A request took so long that those answered before it do not wait for the next. */
#define HURRY_NS 50000u
/* Far from the kernel's numbers, which count up from 2. */
#define KICKS    (1ull << 62)

/* ---- the thread's CPU */

static int pin(unsigned cpu)
{
	cpu_set_t *set = CPU_ALLOC(cpu + 1);
	size_t size = CPU_ALLOC_SIZE(cpu + 1);
	int r;

	if (!set)
		return -ENOMEM;
	CPU_ZERO_S(size, set);
	CPU_SET_S(cpu, size, set);
	r = sched_setaffinity(0, size, set) ? -errno : 0;
	CPU_FREE(set);
	return r;
}

/* ---- what goes to the kernel */

/* What was not submitted will be with the next one. */
static void enter(struct uring_server *s, bool deliver, bool wait)
{
	int r = uring_ring_enter(&s->ring, deliver, wait);

	if (!r || r == -EINTR)
		return;
	log_err_once("io_uring: cannot enter: %s", strerror(-r));
	(void)nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
}

static void command(struct uring_entry *e, uint32_t op)
{
	struct io_uring_sqe *sqe = uring_ring_sqe(&e->queue->server->ring);
	const struct uring_cmd cmd = { .commit_id = e->commit_id, .qid = e->queue->qid };

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->flags = IOSQE_FIXED_FILE;
	sqe->cmd_op = op;
	sqe->user_data = (uintptr_t)e;
	if (op == URING_CMD_REGISTER) {
		sqe->addr = (uintptr_t)e->iov;
		sqe->len = 2;
	}
	memcpy(sqe->cmd, &cmd, sizeof(cmd));
	e->idle = true;
}

void uring_commit(struct uring_entry *e)
{
	struct uring_server *s = e->queue->server;

	command(e, URING_CMD_COMMIT_AND_FETCH);
	if (e->used && !e->listed) {
		e->listed = true;
		e->older = s->used;
		s->used = e;
	}
}

/* Nothing comes before the next enter: what answers left behind can go. */
static void wipe_used(struct uring_server *s)
{
	struct uring_entry *e;

	while ((e = s->used)) {
		s->used = e->older;
		e->listed = false;
		if (e->idle)
			uring_wipe(e, 0);
	}
}

static void arm_event(struct uring_server *s)
{
	struct io_uring_sqe *sqe = uring_ring_sqe(&s->ring);

	sqe->opcode = IORING_OP_READ;
	sqe->fd = s->event;
	sqe->addr = (uintptr_t)&s->event_value;
	sqe->len = sizeof(s->event_value);
}

int uring_queue_add(struct uring_queue *q)
{
	unsigned n = atomic_load_explicit(&q->count, memory_order_relaxed);
	struct uring_entry *e;

	if (n == URING_ENTRIES || uring_entry_open(&e, q, q->server->uring->params.payload))
		return -ENOMEM;
	q->entry[n] = e;
	atomic_store_explicit(&q->count, n + 1, memory_order_release);
	return 0;
}

static bool add_entry(struct uring_queue *q)
{
	unsigned n = atomic_load_explicit(&q->count, memory_order_relaxed);

	if (uring_queue_add(q)) {
		log_warn("io_uring: no more than %u requests of CPU %u can wait at once", n, q->qid);
		q->full = true;
		return false;
	}
	command(q->entry[n], URING_CMD_REGISTER);
	return true;
}

/* Asks the kernel for nothing of a file. */
static bool retrieve(struct uring_server *s, uint64_t nodeid)
{
	struct fuse_notify_retrieve_out out = { .notify_unique = KICKS + 2 * ++s->kick, .nodeid = nodeid };
	struct fuse_out_header head = { .len = sizeof(head) + sizeof(out), .error = FUSE_NOTIFY_RETRIEVE };
	struct iovec iov[2] = { { .iov_base = &head, .iov_len = sizeof(head) },
		{ .iov_base = &out, .iov_len = sizeof(out) } };

	return writev(s->uring->params.device, iov, 2) > 0;
}

/* Newer kernels do so for regular files only. */
static void kick(struct uring_server *s, const struct uring_queue *q)
{
	const struct uring *u = s->uring;
	bool elsewhere = q->qid != s->cpu, done = false;

	if (elsewhere && pin(q->qid))
		return; /* nobody of ours runs there */
	for (unsigned i = 0; !done && i < URING_FILES; i++) {
		uint64_t nodeid = atomic_load_explicit(&u->file[i], memory_order_relaxed);

		done = nodeid && retrieve(s, nodeid);
	}
	if (!done)
		log_debug("io_uring: no request of our own could be made: %s", strerror(errno));
	if (elsewhere && pin(s->cpu))
		log_debug("io_uring: the thread cannot go back to CPU %u", s->cpu);
}

/* Entries for those that are parked or with a worker. */
static void grow(struct uring_server *s, struct uring_queue *q)
{
	int parked = atomic_load(&q->parked), working = atomic_load(&q->working);
	unsigned want = q->depth + (parked > 0 ? (unsigned)parked : 0), added = 0;

	if (working > 0)
		want += (unsigned)working < URING_WORKING ? (unsigned)working : URING_WORKING;
	while (!q->full && atomic_load_explicit(&q->count, memory_order_relaxed) < want && add_entry(q))
		added++;
	if (added)
		enter(s, false, false);
	while (added--)
		kick(s, q);
}

static void grow_all(struct uring_server *s)
{
	for (struct uring_queue *q = s->queues; q; q = q->next)
		grow(s, q);
}

static void send_answers(struct uring_server *s)
{
	struct uring_entry *e = atomic_exchange(&s->answered, NULL), *next;

	for (; e; e = next) {
		next = e->next;
		uring_commit(e);
	}
}

/* ---- what comes from it */

static void answer_here(struct uring_entry *e, int err)
{
	struct fuse_out_header head = { .unique = e->commit_id, .error = err };
	struct iovec iov = { .iov_base = &head, .iov_len = sizeof(head) };

	(void)uring_fill(e, &iov, 1);
	uring_commit(e);
}

/* Only regular files are opened here: not directories, and special files not at all. */
static void remember_file(struct uring *u, uint64_t nodeid)
{
	unsigned at = atomic_fetch_add_explicit(&u->files, 1, memory_order_relaxed) % URING_FILES;

	atomic_store_explicit(&u->file[at], nodeid, memory_order_relaxed);
}

static void take(struct uring_server *s, struct uring_entry *e)
{
	struct uring *u = s->uring;
	struct fuse_in_header in;
	void *request;
	unsigned class;
	bool wanted;
	size_t n;

	e->idle = false;
	if (uring_flatten(e, &request, &n)) {
		log_err_once("io_uring: a request of the kernel's with impossible lengths is refused");
		answer_here(e, -EIO);
		return;
	}
	memcpy(&in, request, sizeof(in));
	if (in.opcode == FUSE_NOTIFY_REPLY || !in.unique) {
		answer_here(e, 0);
		return;
	}
	atomic_store(&e->owner, in.unique);
	class = uring_class(request, n);
	wanted = uring_work_wants(u, class);
	if (in.opcode == FUSE_OPEN || in.opcode == FUSE_RELEASE ||
	    (wanted && (in.opcode == FUSE_READ || in.opcode == FUSE_WRITE)))
		remember_file(u, in.nodeid);
	if (wanted) {
		atomic_fetch_add(&e->queue->working, 1);
		uring_work_add(u, e, request, n);
		return;
	}
	if (uring_run(e, request, n, true) > HURRY_NS)
		enter(s, false, false);
}

/* The connection has ended, or the kernel would not take what we said: this entry is never heard of again. */
static void lost(struct uring_entry *e, int err)
{
	e->queue->full = true;
	if (err == -ENOTCONN || err == -ECONNABORTED || err == -ECANCELED)
		return;
	int none = 0;

	if (atomic_compare_exchange_strong(&e->queue->server->uring->refused, &none, err))
		log_debug("io_uring: the kernel refuses: %s", strerror(-err));
}

static void complete(struct uring_server *s)
{
	const struct io_uring_cqe *cqe;

	while (!atomic_load_explicit(&s->uring->stop, memory_order_relaxed) && (cqe = uring_ring_peek(&s->ring))) {
		struct uring_entry *e = (void *)(uintptr_t)cqe->user_data; // NOLINT(performance-no-int-to-ptr)
		int res = cqe->res;

		uring_ring_seen(&s->ring);
		if (!e)
			arm_event(s);
		else if (res < 0)
			lost(e, res);
		else
			take(s, e);
	}
}

/* ---- its life */

static void wait_for_more(struct uring_server *s)
{
	wipe_used(s);
	atomic_store_explicit(&s->waits, true, memory_order_relaxed);
	enter(s, true, true);
	atomic_store_explicit(&s->waits, false, memory_order_relaxed);
}

static void work(struct uring_server *s)
{
	while (!atomic_load_explicit(&s->uring->stop, memory_order_relaxed)) {
		send_answers(s);
		grow_all(s);
		enter(s, true, false);
		if (!uring_ring_peek(&s->ring))
			wait_for_more(s);
		complete(s);
	}
}

static void register_all(struct uring_server *s)
{
	for (struct uring_queue *q = s->queues; q; q = q->next)
		for (unsigned i = 0; i < q->count; i++)
			command(q->entry[i], URING_CMD_REGISTER);
	arm_event(s);
	/* The kernel has the mount wait for this. */
	do
		enter(s, false, false);
	while (s->ring.queued && !atomic_load(&s->uring->stop));
	complete(s);
}

static int set_up(struct uring_server *s)
{
	char name[16];
	int r = pin(s->cpu);

	(void)snprintf(name, sizeof(name), "ring/%u", s->cpu);
	(void)pthread_setname_np(pthread_self(), name);
	if (!r)
		r = uring_ring_open(&s->ring, ENTRIES, s->uring->params.device);
	/* A sandbox may forbid the one and not the other. */
	return r ? r : uring_ring_enter(&s->ring, true, false);
}

static void wait_sem(sem_t *sem)
{
	while (sem_wait(sem))
		;
}

void *uring_serve(void *server)
{
	struct uring_server *s = server;
	struct uring *u = s->uring;

	s->failed = set_up(s);
	(void)sem_post(&u->ready);
	wait_sem(&u->go);
	if (!s->failed && !atomic_load(&u->stop)) {
		register_all(s);
		(void)sem_post(&u->ready);
		work(s);
	}
	uring_ring_close(&s->ring);
	return NULL;
}

void uring_wake(struct uring_server *s)
{
	const uint64_t one = 1;

	if (write(s->event, &one, sizeof(one)) < 0 && errno != EAGAIN)
		log_err_once("io_uring: cannot wake a thread: %s", strerror(errno));
}
