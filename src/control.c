/* Answers are flat where people read them and grouped where machines do; codes are the programs' exit codes. */
#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "audit.h"
#include "bytes.h"
#include "domain_add.h"
#include "exitcode.h"
#include "io.h"
#include "jsonio.h"
#include "service.h"
#include "state.h"

#define WAIT_MS 25000

/* Paths are bytes, and a message may be cut within a character; JSON takes neither. */
json_t *control_text(const char *s)
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
	return json_pack("{s:i, s:o}", "code", code, "message", control_text(message));
}

/* Numbers of one domain, or sums over all. */
struct sums {
	json_int_t ops, errors, parked, reads, read_bytes, writes, write_bytes, lost;
	json_int_t file_keys, pool, waiting, probes, probe_failures, unwraps, locks;
	json_int_t generates, ahead, ahead_used;
};

static bool sum_up(void *arg, struct domain *d)
{
	struct sums *s = arg;
	struct lease_status ls;

	domain_status(d, &ls);
	s->ops += (json_int_t)d->ops;
	s->errors += (json_int_t)d->op_errors;
	s->parked += (json_int_t)d->parked;
	s->reads += (json_int_t)d->reads;
	s->read_bytes += (json_int_t)d->read_bytes;
	s->writes += (json_int_t)d->writes;
	s->write_bytes += (json_int_t)d->write_bytes;
	s->lost += (json_int_t)d->lost;
	s->file_keys += (json_int_t)ls.file_keys;
	s->pool += (json_int_t)ls.pool_ready;
	s->waiting += (json_int_t)ls.parked;
	s->probes += (json_int_t)ls.probes;
	s->probe_failures += (json_int_t)ls.probe_failures;
	s->unwraps += (json_int_t)ls.unwraps;
	s->locks += (json_int_t)ls.locks;
	s->generates += (json_int_t)ls.generates;
	s->ahead += (json_int_t)ls.ahead;
	s->ahead_used += (json_int_t)ls.ahead_used;
	return true;
}

static json_t *counters(const struct sums *s)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
	    "operations", s->ops, "errors", s->errors, "parked", s->parked, "reads", s->reads, "read_bytes",
	    s->read_bytes, "writes", s->writes, "write_bytes", s->write_bytes, "lost_files", s->lost, "file_keys",
	    s->file_keys, "pool", s->pool, "waiting", s->waiting, "probes", s->probes, "probe_failures",
	    s->probe_failures, "unwraps", s->unwraps, "locks", s->locks, "generates", s->generates, "read_ahead",
	    s->ahead, "read_ahead_used", s->ahead_used);
}

static json_t *all_counters(struct fs *fs)
{
	struct sums s = { 0 };
	json_t *o;

	domains_each(fs, sum_up, &s);
	o = counters(&s);
	(void)json_object_set_new(o, "inodes", json_integer((json_int_t)inode_count(fs->inodes)));
	(void)json_object_set_new(o, "unflushed", json_integer((json_int_t)states_queued(fs)));
	return o;
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
	    kms_provider_name(kms), "key", control_text(kms_key(kms)), "region",
	    *at.region ? control_text(at.region) : json_null(), "away", at.away, "identity", control_text(at.identity),
	    "expires", at.expires ? json_string(expires) : json_null(), "calls", (json_int_t)st.calls, "errors",
	    (json_int_t)st.errors, "denied", (json_int_t)st.denied, "throttled", (json_int_t)st.busy, "unreachable",
	    (json_int_t)st.down, "latency_ms_mean", st.calls ? (double)st.latency_ms_sum / (double)st.calls : 0.0,
	    "latency_ms_max", (json_int_t)st.latency_ms_max);
}

static json_t *audit_part(struct audit *audit)
{
	struct audit_status st;
	char head[2 * AUDIT_HASH + 1];

	if (!audit_status(audit, &st))
		return NULL;
	bytes_hex(head, st.head, AUDIT_HASH);
	return json_pack("{s:o, s:I, s:I, s:I, s:I, s:s, s:s}", "file", control_text(st.path ? st.path : "syslog"),
	    "lines", (json_int_t)st.lines, "dropped", (json_int_t)st.dropped, "queued", (json_int_t)st.queued, "seq",
	    (json_int_t)st.seq, "head", head, "error", st.error ? strerrordesc_np(st.error) : "");
}

/* What an answer has room for; whoever wants more asks from an index on. */
#define DOMAINS_SHOWN 256u

struct listing {
	json_t *list;
	json_int_t from;
};

static json_t *domain_part(struct domain *d)
{
	struct lease *lease = atomic_load(&d->lease);
	struct sums s = { 0 };
	struct lease_status ls;
	char id[33], since[21];

	domain_status(d, &ls);
	(void)sum_up(&s, d);
	bytes_hex(id, d->ids.domain, 16);
	io_utc(since, ls.since);
	return json_pack("{s:i, s:s, s:s*, s:s, s:o, s:s, s:I, s:I, s:b, s:o*, s:o*}", "index", (int)d->index, "id", id,
	    "seal", lease ? (lease_seal(lease) == SEAL_DOMAIN ? "domain" : "file") : NULL, "state",
	    lease_state_name(ls.state), "reason", control_text(ls.reason), "since", since, "since_unix",
	    (json_int_t)ls.since, "lease_left_ms", (json_int_t)ls.lease_left_ms, "by_admin", ls.by_admin, "kms",
	    lease ? kms_part(d->kms) : NULL, "counters", counters(&s));
}

static bool list_domain(void *arg, struct domain *d)
{
	struct listing *l = arg;

	if (d->index >= l->from)
		(void)json_array_append_new(l->list, domain_part(d));
	return json_array_size(l->list) < DOMAINS_SHOWN;
}

static json_t *domains_part(struct fs *fs, const json_t *request)
{
	struct listing l = { json_array(), json_integer_value(json_object_get(request, "from")) };

	domains_each(fs, list_domain, &l);
	return l.list;
}

static json_t *status(struct service *s, const json_t *request)
{
	struct lease_status ls;
	char id[33], since[21], started[21];

	domain_status(s->fs->first, &ls);
	bytes_hex(id, s->fs->store->desc.store, 16);
	io_utc(since, ls.since);
	io_utc(started, s->started);
	return json_pack(
	    "{s:i, s:s, s:o, s:o, s:s, s:s, s:o, s:s, s:I, s:I, s:b, s:b, s:s, s:i, s:o*, s:o*, s:I, s:o*, s:o*}",
	    "code", EXIT_OK, "message", "ok", "mountpoint", control_text(s->mountpoint), "cipherdir",
	    control_text(s->fs->store->path), "store", id, "state", lease_state_name(ls.state), "reason",
	    control_text(ls.reason), "since", since, "since_unix", (json_int_t)ls.since, "lease_left_ms",
	    (json_int_t)ls.lease_left_ms, "by_admin", ls.by_admin, "watchdog", !s->watchdog_dead, "started", started,
	    "pid", (int)getpid(), "kms", kms_part(s->kms), "counters", all_counters(s->fs), "domain_count",
	    (json_int_t)domains_count(s->fs), "domains", domains_part(s->fs, request), "audit",
	    audit_part(s->fs->audit));
}

/* One domain or all of them. */
struct chosen {
	struct domain *one; /* NULL: all */
	uint64_t end;
	unsigned already, asked, late;
};

static bool lock_one(void *arg, struct domain *d)
{
	struct chosen *c = arg;

	c->asked++;
	c->already += domain_lock(d, "locked by the administrator") != 0;
	return true;
}

static bool wait_locked(void *arg, struct domain *d)
{
	struct chosen *c = arg;

	c->late += domain_wait(d, LEASE_LOCKED, c->end) != 0;
	return true;
}

static void each_chosen(struct fs *fs, struct chosen *c, bool (*fn)(void *arg, struct domain *))
{
	if (c->one)
		(void)fn(c, c->one);
	else
		domains_each(fs, fn, c);
}

/* Locks at once, and only then waits for each. */
static json_t *lock(struct service *s, struct domain *one)
{
	struct chosen c = { .one = one, .end = io_boot_ms() + WAIT_MS };

	each_chosen(s->fs, &c, lock_one);
	if (c.already == c.asked)
		return answer(EXIT_ALREADY, "already locked");
	each_chosen(s->fs, &c, wait_locked);
	if (c.late)
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

/* One no is an answer; the domain goes on asking by itself. */
static json_t *wait_open(struct domain *d, uint64_t failures, uint64_t end)
{
	struct lease_status ls;

	do {
		if (domain_wait(d, LEASE_OPEN, io_boot_ms() + 50) == 0)
			return answer(EXIT_OK, "open");
		domain_status(d, &ls);
	} while (ls.state != LEASE_OPEN && ls.probe_failures == failures && io_boot_ms() < end);
	return ls.state == LEASE_OPEN ? answer(EXIT_OK, "open") : refusal(&ls);
}

struct unlocking {
	struct chosen chosen;
	uint64_t *failures; /* of each domain, before it was asked */
	size_t n, room;
	json_t *refused; /* the first answer that is a no */
};

static bool unlock_one(void *arg, struct domain *d)
{
	struct unlocking *u = arg;
	struct lease_status ls;

	domain_status(d, &ls);
	if (u->n < u->room)
		u->failures[u->n++] = ls.probe_failures;
	u->chosen.asked++;
	u->chosen.already += domain_unlock(d) != 0;
	return true;
}

static bool wait_one(void *arg, struct domain *d)
{
	struct unlocking *u = arg;

	if (u->n == u->room) /* added meanwhile */
		return false;
	json_t *a = wait_open(d, u->failures[u->n++], u->chosen.end);

	if (!u->refused && json_integer_value(json_object_get(a, "code")) != EXIT_OK)
		u->refused = a;
	else
		json_decref(a);
	return true;
}

/* All are asked before any is waited for. */
static json_t *unlock(struct service *s, struct domain *one)
{
	struct unlocking u = { .chosen = { .one = one, .end = io_boot_ms() + WAIT_MS } };

	u.room = one ? 1 : domains_count(s->fs);
	u.failures = calloc(u.room, sizeof(*u.failures));
	if (!u.failures)
		return NULL;
	if (one)
		(void)unlock_one(&u, one);
	else
		domains_each(s->fs, unlock_one, &u);
	u.room = u.n;
	u.n = 0;
	if (u.chosen.already < u.chosen.asked) {
		if (one)
			(void)wait_one(&u, one);
		else
			domains_each(s->fs, wait_one, &u);
	}
	free(u.failures);
	if (u.chosen.already == u.chosen.asked)
		return answer(EXIT_ALREADY, "already open");
	return u.refused ? u.refused : answer(EXIT_OK, "open");
}

struct search {
	const char *id;
	struct domain *found;
};

static bool has_id(void *arg, struct domain *d)
{
	struct search *s = arg;
	char hex[33], index[8];

	bytes_hex(hex, d->ids.domain, 16);
	(void)snprintf(index, sizeof(index), "%u", (unsigned)d->index);
	if (strcmp(s->id, hex) == 0 || strcmp(s->id, index) == 0)
		s->found = d;
	return !s->found;
}

/* The domain that a request names by id or index, or by the inode number of something in it; *known is false when there
 * is no such one. */
static struct domain *named(struct service *s, const json_t *request, bool *known)
{
	struct search search = { .id = jsonio_str(request, "domain") };
	const json_t *number = json_object_get(request, "domain_inode");

	if (search.id)
		domains_each(s->fs, has_id, &search);
	else if (number)
		search.found = domain_of_number(s->fs, (uint64_t)json_integer_value(number));
	*known = (!search.id && !number) || search.found;
	return search.found;
}

json_t *control_answer(void *arg, const json_t *request)
{
	const char *verb = jsonio_str(request, "verb");
	struct domain *one;
	bool known;

	if (!verb)
		return answer(EXIT_USAGE, "no verb");
	if (strcmp(verb, "status") == 0)
		return status(arg, request);
	if (strcmp(verb, "domain-add") == 0)
		return control_domain_add(arg, request);
	if (strcmp(verb, "domain-result") == 0)
		return control_domain_result(arg, request);
	one = named(arg, request, &known);
	if (!known)
		return answer(EXIT_NO_MOUNT, "no such key domain in this mount");
	if (strcmp(verb, "lock") == 0)
		return lock(arg, one);
	if (strcmp(verb, "unlock") == 0)
		return unlock(arg, one);
	return answer(EXIT_USAGE, "unknown verb");
}
