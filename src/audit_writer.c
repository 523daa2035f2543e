/* audit_writer.c — the thread that writes.
 *
 * Hides: that numbers and hashes are given in the order of the file, by this thread alone; and what happens when the
 * disk is full: a line that was chained is written sooner or later, half a line is completed, and what comes when the
 * queue is full is lost. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>

#include "audit_internal.h"
#include "bytes.h"
#include "io.h"
#include "log.h"

static bool has_room(const struct audit *a)
{
	return AUDIT_OUT - a->len >= AUDIT_LINE_MAX;
}

void audit_chain_next(struct audit *a, const char *body)
{
	char *line = a->out + a->len;
	size_t n = has_room(a) ? audit_chain_line(&a->chain, line, body) : 0;

	if (n && a->syslog)
		syslog(LOG_AUTHPRIV | LOG_INFO, "%.*s", (int)n - 1, line);
	if (a->fd >= 0)
		a->len += n;
	LOCK_SCOPE(&a->lock);
	a->told = a->chain;
	a->lines += n != 0;
	a->lost += n == 0;
	a->dropped += n == 0;
}

/* What the writer itself has to say. It waits here for room: rotations go on while nothing can be written. */
static void chain_own(struct audit *a)
{
	char body[AUDIT_BODY_MAX];
	struct audit_text t = { .bytes = body, .size = sizeof(body) };

	if (a->say_rotated && has_room(a)) {
		a->say_rotated = false;
		audit_open_body(&t, a, "rotated", NULL);
		audit_chain_next(a, body);
		t.len = 0;
	}
	if (a->say_sync && has_room(a)) {
		a->say_sync = false;
		audit_sync_body(&t, a->unsynced, a->sync_error);
		audit_chain_next(a, body);
	}
}

/* As many lines as fit. */
static void chain_queued(struct audit *a)
{
	chain_own(a);
	while (has_room(a)) {
		CLEANUP_FREE char *body = NULL;

		(void)pthread_mutex_lock(&a->lock);
		body = audit_pop(a);
		(void)pthread_mutex_unlock(&a->lock);
		if (!body)
			return;
		audit_chain_next(a, body);
	}
}

/* For status. */
static void remember(struct audit *a)
{
	LOCK_SCOPE(&a->lock);
	a->error = a->write_error ? a->write_error : a->sync_error;
}

static void complain(struct audit *a, int error)
{
	if (!a->write_error)
		log_err("audit: cannot write '%s': %s; trying again, %zu events can wait", a->path, strerror(error),
		    a->size);
	a->write_error = error;
	remember(a);
}

static void recover(struct audit *a)
{
	uint64_t dropped;

	if (!a->write_error)
		return;
	a->write_error = 0;
	remember(a);
	(void)pthread_mutex_lock(&a->lock);
	dropped = a->dropped;
	(void)pthread_mutex_unlock(&a->lock);
	log_warn("audit: '%s' can be written again; %llu events were dropped since the start", a->path,
	    (unsigned long long)dropped);
}

int audit_write_out(struct audit *a)
{
	while (a->written < a->len) {
		ssize_t n = a->write(a->fd, a->out + a->written, a->len - a->written);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		a->written += (size_t)n;
		a->dirty = true;
	}
	a->written = a->len = 0;
	return 0;
}

static bool flush(struct audit *a)
{
	int r = audit_write_out(a);

	if (r)
		complain(a, -r);
	else
		recover(a);
	return !r;
}

static int try_sync(const struct audit *a)
{
	int r;

	do
		r = a->sync(a->fd);
	while (r && errno == EINTR);
	return r ? errno : 0;
}

/* After a failure the kernel may have forgotten what it could not write, and the next sync succeeds all the same: so
 * the chain says, when it begins and when it ends, from where on lines may be gone. */
static void sync_file(struct audit *a)
{
	int error = try_sync(a);

	a->sync_at = io_boot_ms() + a->sync_ms;
	a->dirty = error != 0;
	if (error && !a->sync_error) {
		/* A failure before, of which the chain could not speak yet, is told with this one. */
		a->unsynced = a->say_sync ? a->unsynced : a->synced + 1;
		log_err("audit: cannot sync '%s': %s; lines from %llu on may not be on the disk", a->path,
		    strerror(error), (unsigned long long)a->unsynced);
	} else if (!error && a->sync_error) {
		log_warn("audit: '%s' can be synced again", a->path);
	}
	a->say_sync |= !error != !a->sync_error;
	a->sync_error = error;
	if (!error && !a->len)
		a->synced = a->chain.seq;
	remember(a);
}

void audit_log_head(const struct audit *a, const char *when)
{
	char hex[2 * AUDIT_HASH + 1];

	bytes_hex(hex, a->chain.head, AUDIT_HASH);
	log_info("audit: %s: line %llu, hash %s", when, (unsigned long long)a->chain.seq, hex);
}

/* The path's file, which must be another one and empty, or -errno with why; -EALREADY: it is the same. */
static int open_next(const struct audit *a, int *out, char why[static AUDIT_WHY])
{
	struct stat now, old;
	CLEANUP_FD int fd = -1;
	int r;

	if (fstat(a->fd, &old))
		return -errno;
	if (stat(a->path, &now) == 0 && now.st_dev == old.st_dev && now.st_ino == old.st_ino)
		return -EALREADY;
	r = audit_file_open(&fd, a->path, why);
	if (!r && fstat(fd, &now) == 0 && now.st_size) {
		(void)snprintf(why, AUDIT_WHY, "'%.300s' is not empty: this chain cannot go on there", a->path);
		r = -EEXIST;
	}
	if (!r)
		*out = steal_fd(&fd);
	return r;
}

/* What the old file did not take whole is written to the new one again: not a line that lacks its newline only. */
static void rewind_line(struct audit *a)
{
	const char *end = memrchr(a->out, '\n', a->written);
	size_t from = end ? (size_t)(end - a->out) + 1 : 0;

	if (a->written < a->len && a->out[a->written] == '\n')
		from = a->written + 1;
	a->len -= from;
	memmove(a->out, a->out + from, a->len);
	a->written = 0;
}

static void rotate(struct audit *a)
{
	char why[AUDIT_WHY] = "";
	int fd = -1, r;

	if (a->fd < 0)
		return;
	audit_log_head(a, "asked to reopen");
	r = open_next(a, &fd, why);
	if (r) {
		if (r != -EALREADY)
			log_err("audit: %s; going on in the old file", *why ? why : strerror(-r));
		return;
	}
	if (audit_write_out(a))
		log_warn("audit: the old file takes no more: its last line goes to the new one");
	sync_file(a);
	rewind_line(a);
	(void)close(a->fd);
	a->fd = fd;
	a->say_rotated = true;
}

/* locked. Until there is something to do. */
static void wait_for_work(struct audit *a, bool retry)
{
	uint64_t now = io_boot_ms();
	uint32_t ms = retry ? a->retry_ms : a->sync_at > now ? (uint32_t)(a->sync_at - now) : 0;
	struct timespec until;

	until = io_after_ms(ms);
	/* After a failure only time helps, or being told to stop or to rotate. */
	while (!a->stop && !a->reopen && (retry || (!a->n && !a->lost)))
		if (!retry && !a->dirty)
			(void)pthread_cond_wait(&a->wake, &a->lock);
		else if (pthread_cond_timedwait(&a->wake, &a->lock, &until))
			break;
}

/* One round. False when all is done. */
static bool round_of(struct audit *a)
{
	bool reopen, stop, empty, ok;

	/* Before the last attempt, not after it. */
	(void)pthread_mutex_lock(&a->lock);
	stop = a->stop;
	(void)pthread_mutex_unlock(&a->lock);
	chain_queued(a);
	ok = flush(a);
	(void)pthread_mutex_lock(&a->lock);
	reopen = a->reopen;
	a->reopen = false;
	empty = !a->n && !a->lost && !a->close_reason;
	(void)pthread_mutex_unlock(&a->lock);
	if (reopen) {
		rotate(a);
		return true;
	}
	if (a->dirty && (stop || io_boot_ms() >= a->sync_at))
		sync_file(a);
	if (stop && (!ok || (empty && !a->say_sync && !a->say_rotated)))
		return false;
	if (ok && (a->say_sync || a->say_rotated))
		return true;
	LOCK_SCOPE(&a->lock);
	if (!stop)
		wait_for_work(a, !ok);
	return true;
}

void *audit_writer(void *arg)
{
	struct audit *a = arg;

	while (round_of(a))
		;
	LOCK_SCOPE(&a->lock);
	a->done = true;
	(void)pthread_cond_broadcast(&a->ended);
	return NULL;
}
