/* control_status.c — the verb "status": what the daemon knows of itself, flat where people read it and grouped where
 * machines do. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "audit.h"
#include "bytes.h"
#include "control.h"
#include "exitcode.h"
#include "fuseio.h"
#include "io.h"
#include "log.h"
#include "service.h"
#include "state.h"

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

/* Buckets as they are, without the empty ones at the end; quantiles for those who only look. */
static json_t *histogram_part(const struct histogram_view *v)
{
	json_t *buckets = json_array();
	unsigned n = HISTOGRAM_BUCKETS;

	while (n && !v->bucket[n - 1])
		n--;
	for (unsigned i = 0; i < n; i++)
		(void)json_array_append_new(buckets, json_integer((json_int_t)v->bucket[i]));
	return json_pack("{s:I, s:f, s:f, s:f, s:o}", "count", (json_int_t)v->count, "sum_us", (double)v->sum_ns / 1000,
	    "p50_us", histogram_quantile(v, 500), "p99_us", histogram_quantile(v, 990), "buckets", buckets);
}

/* Of all domains together. */
struct latencies {
	struct histogram_view kms[KMS_OPERATIONS], key_wait;
};

static bool add_latencies(void *arg, struct domain *d)
{
	struct latencies *l = arg;

	histogram_read(&d->key_wait, &l->key_wait);
	const struct kms *kms = atomic_load(&d->lease) ? d->kms : NULL;

	if (kms && (d->index == 0 || kms != d->fs->first->kms)) /* a rotation may have made it the same */
		for (unsigned i = 0; i < KMS_OPERATIONS; i++)
			kms_latency(kms, i, &l->kms[i]);
	return true;
}

static json_t *latency_part(struct fs *fs)
{
	struct latencies *l CLEANUP_FREE = calloc(1, sizeof(*l));
	json_t *operations = json_object(), *kms = json_object();

	if (!l)
		return NULL;
	domains_each(fs, add_latencies, l);
	for (unsigned i = 0; i < FUSEIO_KINDS; i++) {
		struct histogram_view v = { 0 };

		fuseio_latency(i, &v);
		(void)json_object_set_new(operations, fuseio_kind_name(i), histogram_part(&v));
	}
	for (unsigned i = 0; i < KMS_OPERATIONS; i++)
		(void)json_object_set_new(kms, kms_operation_name(i), histogram_part(&l->kms[i]));
	return json_pack(
	    "{s:o, s:o, s:o}", "operations", operations, "kms", kms, "key_wait", histogram_part(&l->key_wait));
}

static json_t *all_counters(struct fs *fs)
{
	struct sums s = { 0 };
	json_t *o;

	domains_each(fs, sum_up, &s);
	o = counters(&s);
	(void)json_object_set_new(o, "inodes", json_integer((json_int_t)inode_count(fs->inodes)));
	(void)json_object_set_new(o, "unflushed", json_integer((json_int_t)states_queued(fs)));
	(void)json_object_set_new(o, "damaged", json_integer((json_int_t)log_damage_count()));
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
	return json_pack("{s:s, s:o, s:o, s:b, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:I}", "provider",
	    kms_provider_name(kms), "key", jsonio_text(kms_key(kms)), "region",
	    *at.region ? jsonio_text(at.region) : json_null(), "away", at.away, "identity", jsonio_text(at.identity),
	    "expires", at.expires ? json_string(expires) : json_null(), "expires_unix",
	    at.expires ? json_integer(at.expires) : json_null(), "calls", (json_int_t)st.calls, "errors",
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
	return json_pack("{s:o, s:I, s:I, s:I, s:I, s:s, s:s}", "file", jsonio_text(st.path ? st.path : "syslog"),
	    "lines", (json_int_t)st.lines, "dropped", (json_int_t)st.dropped, "queued", (json_int_t)st.queued, "seq",
	    (json_int_t)st.seq, "head", head, "error", st.error ? strerrordesc_np(st.error) : "");
}

/* What an answer has room for; whoever wants more asks from an index on. */
#define DOMAINS_SHOWN 256u

struct listing {
	const struct service *service;
	json_t *list;
	json_int_t from;
};

/* The second key of a rotation; why: what is wrong with it. */
static json_t *previous_part(struct kms *kms, const char *why)
{
	return json_pack("{s:s, s:o, s:o}", "provider", kms_provider_name(kms), "key", jsonio_text(kms_key(kms)),
	    "reason", jsonio_text(why));
}

/* The exit code of a refusal by a domain in this state. */
static int refusal_code(const struct lease_status *ls)
{
	if (ls->state == LEASE_OPEN)
		return EXIT_OK;
	return ls->by_admin ? EXIT_FAILED : control_refusal(ls);
}

static json_t *domain_part(const struct service *service, struct domain *d)
{
	struct kms *previous = atomic_load(&d->previous);
	struct lease *lease = atomic_load(&d->lease);
	struct sums s = { 0 };
	struct lease_status ls;
	char id[33], since[21];

	domain_status(d, &ls);
	(void)sum_up(&s, d);
	bytes_hex(id, d->ids.domain, 16);
	io_utc(since, ls.since);
	return json_pack("{s:i, s:s, s:s*, s:s, s:o, s:s, s:I, s:I, s:b, s:o*, s:o*, s:o*, s:o*, s:i}", "index",
	    (int)d->index, "id", id, "seal", lease ? (lease_seal(lease) == SEAL_DOMAIN ? "domain" : "file") : NULL,
	    "state", lease_state_name(ls.state), "reason", jsonio_text(ls.reason), "since", since, "since_unix",
	    (json_int_t)ls.since, "lease_left_ms", (json_int_t)ls.lease_left_ms, "by_admin", ls.by_admin, "kms",
	    lease ? kms_part(d->kms) : NULL, "previous", lease && previous ? previous_part(previous, ls.before) : NULL,
	    "counters", counters(&s), "key_age", control_age_domain(service, d), "refusal",
	    refusal_code(&ls));
}

static bool list_domain(void *arg, struct domain *d)
{
	struct listing *l = arg;
	json_t *part = d->index >= l->from ? domain_part(l->service, d) : NULL;

	if (part)
		(void)json_array_append_new(l->list, part);
	return json_array_size(l->list) < DOMAINS_SHOWN;
}

static json_t *domains_part(const struct service *s, const json_t *request)
{
	struct listing l = { s, json_array(), json_integer_value(json_object_get(request, "from")) };

	domains_each(s->fs, list_domain, &l);
	return l.list;
}

json_t *control_status(struct service *s, const json_t *request)
{
	struct lease_status ls;
	char id[33], since[21], started[21];

	domain_status(s->fs->first, &ls);
	bytes_hex(id, s->fs->store->desc.store, 16);
	io_utc(since, ls.since);
	io_utc(started, s->started);
	return json_pack("{s:i, s:s, s:o, s:o, s:s, s:s, s:o, s:s, s:I, s:I, s:b, s:b, s:s, s:I, s:s, s:i, s:s, "
	                 "s:o*, s:o*, s:o*, s:I, s:o*, s:o*, s:o*}",
	    "code", EXIT_OK, "message", "ok", "mountpoint", jsonio_text(s->mountpoint), "cipherdir",
	    jsonio_text(s->fs->store->path), "store", id, "state", lease_state_name(ls.state), "reason",
	    jsonio_text(ls.reason), "since", since, "since_unix", (json_int_t)ls.since, "lease_left_ms",
	    (json_int_t)ls.lease_left_ms, "by_admin", ls.by_admin, "watchdog", !s->watchdog_dead, "started", started,
	    "started_unix", (json_int_t)s->started, "version", BYOKFS_VERSION, "pid", (int)getpid(), "transport",
	    fuseio_transport(), "kms",
	    kms_part(s->fs->first->kms), "counters", all_counters(s->fs), "latency", latency_part(s->fs),
	    "domain_count", (json_int_t)domains_count(s->fs), "domains", domains_part(s, request), "audit",
	    audit_part(s->fs->audit), "key_age", control_age(s));
}
