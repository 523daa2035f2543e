/* status_prometheus.c — answers as metrics, in the text exposition format 0.0.4.
 *
 * A table says which member of an answer is which metric. All samples of a metric stand together, whatever mount they
 * are of: the format asks for it. What an answer does not have is left out. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "histogram.h"
#include "jsonio.h"
#include "status.h"

#define LABELS 3

struct metric {
	const char *name, *help;
	enum { GAUGE, COUNTER } type;
	enum { OF_MOUNT, OF_DOMAIN } of;
	const char *path;   /* "kms.calls"; NULL: the value is 1 */
	double scale;       /* 0: as it is */
	const char *equals; /* the value is whether the text there is this */
	const char *kind;   /* of several rows that are one metric */
	struct {
		const char *name, *path;
	} label[LABELS]; /* besides mount, store and domain */
};

static const struct metric metrics[] = {
	{ "byokfs_info", "The mount, its store and the daemon's version.", GAUGE, OF_MOUNT,
	    .label = { { "cipherdir", "cipherdir" }, { "version", "version" }, { "transport", "transport" } } },
	{ "byokfs_start_time_seconds", "When the daemon began to serve, in Unix time.", GAUGE, OF_MOUNT,
	    .path = "started_unix" },
	{ "byokfs_domains", "Key domains of the mount.", GAUGE, OF_MOUNT, .path = "domain_count" },
	{ "byokfs_inodes", "Objects the kernel knows.", GAUGE, OF_MOUNT, .path = "counters.inodes" },
	{ "byokfs_unflushed_files", "Files whose changes wait to be written.", GAUGE, OF_MOUNT,
	    .path = "counters.unflushed" },
	{ "byokfs_damage_total", "Times that damage or tampering was met and logged.", COUNTER, OF_MOUNT,
	    .path = "counters.damaged" },
	{ "byokfs_watchdog_alive", "0 when cached plaintext would outlive a killed daemon.", GAUGE, OF_MOUNT,
	    .path = "watchdog" },
	{ "byokfs_audit_lines_total", "Lines of the audit log.", COUNTER, OF_MOUNT, .path = "audit.lines" },
	{ "byokfs_audit_dropped_total", "Events that the audit log could not take.", COUNTER, OF_MOUNT,
	    .path = "audit.dropped" },
	{ "byokfs_audit_queued", "Lines that wait to be written to the audit log.", GAUGE, OF_MOUNT,
	    .path = "audit.queued" },
	{ "byokfs_open", "1 when the key domain is open, 0 when it is not.", GAUGE, OF_DOMAIN, .path = "state",
	    .equals = "open" },
	{ "byokfs_locked_by_admin", "1 when 'byokfsctl lock' holds the key domain locked.", GAUGE, OF_DOMAIN,
	    .path = "by_admin" },
	{ "byokfs_state_change_time_seconds", "When the key domain last opened or locked, in Unix time.", GAUGE,
	    OF_DOMAIN, .path = "since_unix" },
	{ "byokfs_lease_remaining_seconds", "How long keys stay usable without another answer of the KMS.", GAUGE,
	    OF_DOMAIN, .path = "lease_left_ms", .scale = 1e-3 },
	{ "byokfs_locks_total", "How often the key domain locked.", COUNTER, OF_DOMAIN, .path = "counters.locks" },
	{ "byokfs_operations_total", "File operations.", COUNTER, OF_DOMAIN, .path = "counters.operations" },
	{ "byokfs_operation_errors_total", "File operations that were answered by an error.", COUNTER, OF_DOMAIN,
	    .path = "counters.errors" },
	{ "byokfs_operations_parked_total", "File operations that had to wait for a key.", COUNTER, OF_DOMAIN,
	    .path = "counters.parked" },
	{ "byokfs_operations_waiting", "File operations that wait for a key now.", GAUGE, OF_DOMAIN,
	    .path = "counters.waiting" },
	{ "byokfs_reads_total", "Reads that reached the daemon.", COUNTER, OF_DOMAIN, .path = "counters.reads" },
	{ "byokfs_read_bytes_total", "Bytes read.", COUNTER, OF_DOMAIN, .path = "counters.read_bytes" },
	{ "byokfs_writes_total", "Writes that reached the daemon.", COUNTER, OF_DOMAIN, .path = "counters.writes" },
	{ "byokfs_written_bytes_total", "Bytes written.", COUNTER, OF_DOMAIN, .path = "counters.write_bytes" },
	{ "byokfs_lost_files_total", "Files of which writes not yet fsynced were lost to a lock.", COUNTER, OF_DOMAIN,
	    .path = "counters.lost_files" },
	{ "byokfs_file_keys", "File keys at hand.", GAUGE, OF_DOMAIN, .path = "counters.file_keys" },
	{ "byokfs_key_pool", "Keys made ahead for new files.", GAUGE, OF_DOMAIN, .path = "counters.pool" },
	{ "byokfs_key_unwraps_total", "File keys unwrapped by the KMS.", COUNTER, OF_DOMAIN,
	    .path = "counters.unwraps" },
	{ "byokfs_key_generations_total", "File keys made by the KMS.", COUNTER, OF_DOMAIN,
	    .path = "counters.generates" },
	{ "byokfs_key_readaheads_total", "File keys fetched ahead.", COUNTER, OF_DOMAIN,
	    .path = "counters.read_ahead" },
	{ "byokfs_key_readaheads_used_total", "File keys fetched ahead that were used.", COUNTER, OF_DOMAIN,
	    .path = "counters.read_ahead_used" },
	{ "byokfs_probes_total", "Canary requests to the KMS.", COUNTER, OF_DOMAIN, .path = "counters.probes" },
	{ "byokfs_probe_failures_total", "Canary requests that did not renew the lease.", COUNTER, OF_DOMAIN,
	    .path = "counters.probe_failures" },
	{ "byokfs_kms_info", "The key of the domain.", GAUGE, OF_DOMAIN,
	    .label = { { "provider", "kms.provider" }, { "key", "kms.key" }, { "region", "kms.region" } } },
	{ "byokfs_kms_away", "1 while a replica in another Region is asked.", GAUGE, OF_DOMAIN, .path = "kms.away" },
	{ "byokfs_kms_calls_total", "Requests to the KMS, retries included.", COUNTER, OF_DOMAIN, .path = "kms.calls" },
	{ "byokfs_kms_errors_total", "Requests to the KMS that failed.", COUNTER, OF_DOMAIN, .path = "kms.errors" },
	{ "byokfs_kms_refusals_total", "Failed requests to the KMS by kind.", COUNTER, OF_DOMAIN, .path = "kms.denied",
	    .kind = "denied" },
	{ "byokfs_kms_refusals_total", "Failed requests to the KMS by kind.", COUNTER, OF_DOMAIN,
	    .path = "kms.throttled", .kind = "throttled" },
	{ "byokfs_kms_refusals_total", "Failed requests to the KMS by kind.", COUNTER, OF_DOMAIN,
	    .path = "kms.unreachable", .kind = "unreachable" },
	{ "byokfs_keys_sealed_time_seconds", "Since when keys are sealed under the same key material, in Unix time.",
	    GAUGE, OF_DOMAIN, .path = "key_age.since_unix" },
	{ "byokfs_keys_to_be_rotated", "1 when that is longer ago than key_age_days.", GAUGE, OF_DOMAIN,
	    .path = "key_age.alert" },
	{ "byokfs_credentials_expiry_time_seconds", "When the credentials end, in Unix time.", GAUGE, OF_DOMAIN,
	    .path = "kms.expires_unix" },
};

static const struct {
	const char *name, *help, *path; /* path of an object of histograms, or of one when it has no label */
	const char *label;
} histograms[] = {
	{ "byokfs_operation_duration_seconds", "How long the kernel's requests took, waiting for keys included.",
	    "latency.operations", "operation" },
	{ "byokfs_kms_request_duration_seconds", "How long requests to the KMS took.", "latency.kms", "operation" },
	{ "byokfs_key_wait_duration_seconds", "How long file operations waited for a key.", "latency.key_wait", NULL },
};

static const json_t *at(const json_t *v, const char *path)
{
	while (v && path) {
		const char *dot = strchrnul(path, '.');

		v = json_object_getn(v, path, (size_t)(dot - path));
		path = *dot ? dot + 1 : NULL;
	}
	return v;
}

static void print_escaped(FILE *f, const char *s)
{
	for (; *s; s++)
		if (*s == '\n')
			(void)fputs("\\n", f);
		else
			(void)fprintf(f, *s == '\\' || *s == '"' ? "\\%c" : "%c", *s);
}

/* "name{a="x",b="y"} value": begun, labelled, ended. */
struct series {
	FILE *f;
	bool labelled;
};

static void series_label(struct series *s, const char *name, const char *value)
{
	(void)fprintf(s->f, "%s%s=\"", s->labelled ? "," : "{", name);
	print_escaped(s->f, value);
	(void)fputc('"', s->f);
	s->labelled = true;
}

static struct series series_begin(FILE *f, const char *name, const char *suffix, const json_t *mount)
{
	struct series s = { .f = f };
	const char *where = jsonio_str(mount, "mountpoint"), *store = jsonio_str(mount, "store");

	(void)fprintf(f, "%s%s", name, suffix);
	series_label(&s, "mount", where ? where : "");
	if (store)
		series_label(&s, "store", store);
	return s;
}

static void series_integer(const struct series *s, json_int_t value)
{
	(void)fprintf(s->f, "} %" PRId64 "\n", (int64_t)value);
}

static void series_real(const struct series *s, double value)
{
	(void)fprintf(s->f, "} %.15g\n", value);
}

static void print_header(FILE *f, const char *name, const char *help, const char *type)
{
	(void)fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static bool has_value(const struct metric *m, const json_t *of)
{
	const json_t *v = at(of, m->path ? m->path : m->label[0].path);

	return !m->path || m->equals ? json_is_string(v) : json_is_number(v) || json_is_boolean(v);
}

/* The header goes before the first sample, if there is one. */
static void print_sample(FILE *f, const struct metric *m, const json_t *mount, const json_t *domain, bool *headed)
{
	const json_t *of = domain ? domain : mount, *v = at(of, m->path);
	struct series s;
	char index[24];

	if (!has_value(m, of))
		return;
	if (!*headed)
		print_header(f, m->name, m->help, m->type == GAUGE ? "gauge" : "counter");
	*headed = true;
	s = series_begin(f, m->name, "", mount);
	if (domain) {
		(void)snprintf(index, sizeof(index), "%d", (int)json_integer_value(json_object_get(domain, "index")));
		series_label(&s, "domain", index);
	}
	for (size_t i = 0; i < LABELS && m->label[i].name; i++) {
		const char *path = m->label[i].path, *text = json_string_value(at(of, path));

		if (text)
			series_label(&s, m->label[i].name, text);
	}
	if (m->kind)
		series_label(&s, "kind", m->kind);
	if (!m->path)
		series_integer(&s, 1);
	else if (m->equals)
		series_integer(&s, strcmp(json_string_value(v), m->equals) == 0);
	else if (json_is_boolean(v))
		series_integer(&s, json_is_true(v));
	else if (json_is_integer(v) && m->scale == 0)
		series_integer(&s, json_integer_value(v));
	else
		series_real(&s, json_number_value(v) * (m->scale == 0 ? 1 : m->scale));
}

static bool is_dead(const json_t *mount)
{
	return !json_is_string(json_object_get(mount, "store"));
}

static void print_metric(FILE *f, const struct metric *m, const json_t *answers, bool *headed)
{
	const json_t *mount, *domain;
	size_t i, k;

	json_array_foreach(answers, i, mount)
	{
		if (is_dead(mount))
			continue;
		if (m->of == OF_MOUNT)
			print_sample(f, m, mount, NULL, headed);
		else
			json_array_foreach(json_object_get(mount, "domains"), k, domain)
			    print_sample(f, m, mount, domain, headed);
	}
}

/* Buckets cumulate; those that an answer leaves out are empty. */
static void print_histogram(FILE *f, size_t kind, const json_t *mount, const char *label, const json_t *h)
{
	const char *name = histograms[kind].name;
	const json_t *buckets = json_object_get(h, "buckets");
	json_int_t sum = 0;
	struct series s;
	char le[32];

	if (!json_is_object(h))
		return;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		sum += json_integer_value(json_array_get(buckets, i));
		(void)snprintf(le, sizeof(le), "%.9g", (double)(1ull << i) / 1e6);
		s = series_begin(f, name, "_bucket", mount);
		if (label)
			series_label(&s, histograms[kind].label, label);
		series_label(&s, "le", i == HISTOGRAM_BUCKETS - 1 ? "+Inf" : le);
		series_integer(&s, sum);
	}
	s = series_begin(f, name, "_sum", mount);
	if (label)
		series_label(&s, histograms[kind].label, label);
	series_real(&s, json_number_value(json_object_get(h, "sum_us")) / 1e6);
	s = series_begin(f, name, "_count", mount);
	if (label)
		series_label(&s, histograms[kind].label, label);
	series_integer(&s, sum);
}

static void print_histograms(FILE *f, size_t kind, const json_t *answers)
{
	json_t *mount, *group, *h;
	const char *label;
	bool headed = false;
	size_t i;

	json_array_foreach(answers, i, mount)
	{
		group = (json_t *)(uintptr_t)at(mount, histograms[kind].path);
		if (!json_is_object(group))
			continue;
		if (!headed)
			print_header(f, histograms[kind].name, histograms[kind].help, "histogram");
		headed = true;
		if (!histograms[kind].label)
			print_histogram(f, kind, mount, NULL, group);
		else
			json_object_foreach(group, label, h) print_histogram(f, kind, mount, label, h);
	}
}

static void print_up(FILE *f, const json_t *answers)
{
	const json_t *mount;
	size_t i;

	print_header(f, "byokfs_up", "1 when the daemon of the mount answers.", "gauge");
	json_array_foreach(answers, i, mount)
	{
		/* the store of a dead mount is not known: the series must be the same one before and after */
		struct series s = { .f = f };
		const char *where = jsonio_str(mount, "mountpoint");

		(void)fputs("byokfs_up", f);
		series_label(&s, "mount", where ? where : "");
		series_integer(&s, !is_dead(mount));
	}
}

void status_prometheus(FILE *f, const json_t *answers)
{
	bool headed = false;

	print_up(f, answers);
	for (size_t i = 0; i < sizeof(metrics) / sizeof(metrics[0]); i++) {
		const struct metric *m = &metrics[i];

		if (i == 0 || strcmp(m->name, metrics[i - 1].name) != 0)
			headed = false;
		print_metric(f, m, answers, &headed);
	}
	for (size_t i = 0; i < sizeof(histograms) / sizeof(histograms[0]); i++)
		print_histograms(f, i, answers);
}
