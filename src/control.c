/* Answers are flat where people read them and grouped where machines do; codes are the programs' exit codes. */
#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audit.h"
#include "bytes.h"
#include "exitcode.h"
#include "io.h"
#include "jsonio.h"
#include "service.h"
#include "state.h"

#define WAIT_MS 25000

/* Paths are bytes, and a message may be cut within a character; JSON takes neither. */
static json_t *text(const char *s)
{
	json_t *v = json_string(s);
	char *safe = v ? NULL : malloc(4 * strlen(s) + 1), *p = safe;

	for (; safe && *s; s++)
		p += snprintf(p, 5, (unsigned char)*s < 0x80 ? "%c" : "\\x%02x", (unsigned char)*s);
	if (!v && safe)
		v = json_stringn(safe, (size_t)(p - safe));
	free(safe);
	return v;
}

static json_t *answer(int code, const char *message)
{
	return json_pack("{s:i, s:o}", "code", code, "message", text(message));
}

static json_t *counters(struct fs *fs, const struct lease_status *ls)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, "
	                 "s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
	    "operations", (json_int_t)fs->ops, "errors", (json_int_t)fs->op_errors, "parked", (json_int_t)fs->parked,
	    "reads", (json_int_t)fs->reads, "read_bytes", (json_int_t)fs->read_bytes, "writes", (json_int_t)fs->writes,
	    "write_bytes", (json_int_t)fs->write_bytes, "lost_files", (json_int_t)fs->lost, "inodes",
	    (json_int_t)inode_count(fs->inodes), "unflushed", (json_int_t)states_queued(fs), "file_keys",
	    (json_int_t)ls->file_keys, "pool", (json_int_t)ls->pool_ready, "waiting", (json_int_t)ls->parked, "probes",
	    (json_int_t)ls->probes, "probe_failures", (json_int_t)ls->probe_failures, "unwraps",
	    (json_int_t)ls->unwraps, "locks", (json_int_t)ls->locks, "generates", (json_int_t)ls->generates,
	    "read_ahead", (json_int_t)ls->ahead, "read_ahead_used", (json_int_t)ls->ahead_used);
}

static json_t *kms_part(struct kms *kms)
{
	struct kms_stats st;
	struct kms_where at;
	char expires[21];

	kms_stats(kms, &st);
	kms_where(kms, &at);
	io_utc(expires, at.expires);
	return json_pack("{s:s, s:o, s:o, s:b, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:I}", "provider",
	    kms_provider_name(kms), "key", text(kms_key(kms)), "region", *at.region ? text(at.region) : json_null(),
	    "away", at.away, "identity", text(at.identity), "expires", at.expires ? json_string(expires) : json_null(),
	    "calls", (json_int_t)st.calls, "errors", (json_int_t)st.errors, "denied", (json_int_t)st.denied,
	    "throttled", (json_int_t)st.busy, "unreachable", (json_int_t)st.down, "latency_ms_mean",
	    st.calls ? (double)st.latency_ms_sum / (double)st.calls : 0.0, "latency_ms_max",
	    (json_int_t)st.latency_ms_max);
}

static json_t *audit_part(struct audit *audit)
{
	struct audit_status st;
	char head[2 * AUDIT_HASH + 1];

	if (!audit_status(audit, &st))
		return NULL;
	bytes_hex(head, st.head, AUDIT_HASH);
	return json_pack("{s:o, s:I, s:I, s:I, s:I, s:s, s:s}", "file", text(st.path ? st.path : "syslog"), "lines",
	    (json_int_t)st.lines, "dropped", (json_int_t)st.dropped, "queued", (json_int_t)st.queued, "seq",
	    (json_int_t)st.seq, "head", head, "error", st.error ? strerrordesc_np(st.error) : "");
}

static json_t *status(struct service *s)
{
	struct lease_status ls;
	char id[33], since[21], started[21];

	lease_status(s->fs->lease, &ls);
	bytes_hex(id, s->fs->store->desc.store, 16);
	io_utc(since, ls.since);
	io_utc(started, s->started);
	return json_pack("{s:i, s:s, s:o, s:o, s:s, s:s, s:o, s:s, s:I, s:I, s:b, s:b, s:s, s:i, s:o*, s:o*, s:o*}",
	    "code", EXIT_OK, "message", "ok", "mountpoint", text(s->mountpoint), "cipherdir", text(s->fs->store->path),
	    "store", id, "state", lease_state_name(ls.state), "reason", text(ls.reason), "since", since, "since_unix",
	    (json_int_t)ls.since, "lease_left_ms", (json_int_t)ls.lease_left_ms, "by_admin", ls.by_admin, "watchdog",
	    !s->watchdog_dead, "started", started, "pid", (int)getpid(), "kms", kms_part(s->kms), "counters",
	    counters(s->fs, &ls), "audit", audit_part(s->fs->audit));
}

static json_t *lock(struct service *s)
{
	if (lease_lock(s->fs->lease, "locked by the administrator"))
		return answer(EXIT_ALREADY, "already locked");
	if (lease_wait(s->fs->lease, LEASE_LOCKED, io_boot_ms() + WAIT_MS))
		return answer(EXIT_FAILED, "locking goes on: operations are still in flight");
	return answer(EXIT_OK, "locked");
}

/* Why the domain did not open. */
static json_t *refusal(const struct lease_status *ls)
{
	bool down = ls->answer == KMS_BUSY || ls->answer == KMS_DOWN;
	int code = ls->answer == KMS_DENIED ? EXIT_DENIED : down ? EXIT_UNREACHABLE : EXIT_FAILED;

	return answer(code, ls->reason[0] ? ls->reason : "the KMS has not answered yet");
}

static json_t *unlock(struct service *s)
{
	struct lease *l = s->fs->lease;
	uint64_t end = io_boot_ms() + WAIT_MS;
	struct lease_status ls;

	lease_status(l, &ls);
	uint64_t failures = ls.probe_failures;

	if (lease_unlock(l))
		return answer(EXIT_ALREADY, "already open");
	/* One no is an answer; the domain goes on asking by itself. */
	do {
		if (lease_wait(l, LEASE_OPEN, io_boot_ms() + 50) == 0)
			return answer(EXIT_OK, "open");
		lease_status(l, &ls);
	} while (ls.probe_failures == failures && io_boot_ms() < end);
	return refusal(&ls);
}

json_t *control_answer(void *arg, const json_t *request)
{
	const char *verb = jsonio_str(request, "verb");

	if (!verb)
		return answer(EXIT_USAGE, "no verb");
	if (strcmp(verb, "status") == 0)
		return status(arg);
	if (strcmp(verb, "lock") == 0)
		return lock(arg);
	if (strcmp(verb, "unlock") == 0)
		return unlock(arg);
	return answer(EXIT_USAGE, "unknown verb");
}
