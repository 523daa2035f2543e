/* cmd_rotate.c — `byokfsctl rotate`: what was asked for, and the order of steps (byokfs-format(5), ROTATION). */
#include <errno.h>
#include <search.h>
#include <stdio.h>
#include <sys/resource.h>

#include "io.h"
#include "rotate.h"
#include "secret.h"

#define JOBS      16u
#define PATIENCE  300000u
#define RATE_MOST 1000000u
#define HOUR_MS   3600000u

struct wishes {
	const char *to, *from, *domain, *jobs, *rate, *patience;
	bool dry_run, same_key, through_host;
};

/* ---- what was asked for */

static bool parse_number(const char *text, uint64_t min, uint64_t max, const char **rest, uint64_t *out)
{
	uint64_t n = 0;
	const char *p = text;

	for (; *p >= '0' && *p <= '9' && p - text < 10; p++)
		n = n * 10 + (uint64_t)(*p - '0');
	*rest = p;
	*out = n;
	return p != text && n >= min && n <= max;
}

static int take_duration(const char *option, const char *text, uint64_t *ms)
{
	static const struct {
		const char *unit;
		uint64_t ms;
	} units[] = { { "ms", 1 }, { "s", 1000 }, { "m", 60000 }, { "h", HOUR_MS } };
	const char *rest;
	uint64_t n;

	if (!text)
		return EXIT_OK;
	for (size_t i = 0; parse_number(text, 1, 1000000, &rest, &n) && i < sizeof(units) / sizeof(units[0]); i++)
		if (strcmp(rest, units[i].unit) == 0 && n * units[i].ms <= 24ull * HOUR_MS) {
			*ms = n * units[i].ms;
			return EXIT_OK;
		}
	cmd_error("--%s: '%s' is not a duration up to 24h, such as 5m", option, text);
	return EXIT_USAGE;
}

static int take_wishes(struct rotation *r, const struct wishes *w)
{
	unsigned rate = 0;
	int code;

	r->jobs = JOBS;
	r->patience_ms = PATIENCE;
	code = cmd_number("--jobs", w->jobs, ROTATE_JOBS_MAX, &r->jobs);
	if (code == EXIT_OK)
		code = cmd_number("--rate", w->rate, RATE_MOST, &rate);
	r->rate = rate;
	if (code == EXIT_OK)
		code = take_duration("patience", w->patience, &r->patience_ms);
	if (code != EXIT_OK)
		return code;
	r->to = w->to;
	r->from = w->from;
	r->chosen = w->domain;
	r->dry_run = w->dry_run;
	r->same_key = w->same_key;
	r->through_host = w->through_host;
	if (r->to || r->same_key)
		return EXIT_OK;
	cmd_error("--to is missing: the key to go to");
	cmd_usage(stderr, cmd_find("rotate"));
	return EXIT_USAGE;
}

/* ---- the key service */

/* Descriptors: each worker has a connection and a file, each waiting file may hold its directory; files on their way to
 * and from a daemon, and the way back of the walk. */
static void raise_limit(unsigned jobs)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) < 0 || l.rlim_cur >= 16 * jobs + 700)
		return;
	l.rlim_cur = l.rlim_max < 16 * jobs + 700 ? l.rlim_max : 16 * jobs + 700;
	(void)setrlimit(RLIMIT_NOFILE, &l);
}

/* Without --to, that of now. */
static const char *wanted_key(const struct rotation *r)
{
	const struct descriptor_slot *ruling = descriptor_ruling_slot(&r->store->domain);

	return r->to ? r->to : ruling->key;
}

/* For an id or an alias that has none of its own: the configured one, else that of the store's key. out holds 64. */
static const char *wanted_region(const struct rotation *r, const struct kms_params *params, char *out)
{
	const char *region;
	size_t n = rotate_region(descriptor_ruling_slot(&r->store->domain)->key, &region);

	if (!r->to || strncmp(r->to, "arn:", 4) == 0)
		return NULL;
	(void)snprintf(out, 64, "%.*s", (int)(n < 63 ? n : 0), region);
	return params->region ? params->region : *out ? out : NULL;
}

static int open_kms(struct rotation *r)
{
	struct kms_params params;
	struct kms_err err;
	char region[64];

	if (cmd_kms_params(&params, &r->config, &err) != EXIT_OK)
		return cmd_kms_failed("cannot use the key service", &err);
	if (strcmp(params.provider, "keyfile") == 0) {
		cmd_error("provider 'keyfile' has one key only: there is none to rotate to");
		cmd_hint("make a new store under another key, and copy the files");
		return EXIT_CONFIG;
	}
	gate_chain(r->gate, params.observe, params.observer);
	params.observe = gate_observe;
	params.observer = r->gate;
	params.key = wanted_key(r);
	params.region = wanted_region(r, &params, region);
	params.replicas = NULL; /* those of the old key */
	params.failover = false;
	params.max_connections = r->jobs;
	if (kms_open(&r->kms, &params, true, &err) == 0)
		return EXIT_OK;
	if (err.status == KMS_OK)
		err.status = KMS_CONFIG;
	return cmd_kms_failed("cannot use the new key", &err);
}

/* Is the new key fit? Who may not ask may still rotate. */
static int look_at_key(struct rotation *r)
{
	uint64_t begun = io_boot_ms();
	struct kms_description d;
	struct kms_err err;

	if (kms_describe(r->kms, kms_key(r->kms), kms_deadline(r->kms), &d, &err) != KMS_OK)
		return err.status == KMS_DOWN || err.status == KMS_BUSY
		    ? cmd_kms_failed("cannot ask for the new key", &err)
		    : EXIT_OK;
	r->latency_ms = io_boot_ms() - begun + 1;
	if (*d.state && strcmp(d.state, "Enabled") != 0) {
		cmd_error("the new key '%s' is in the state '%s'", kms_key(r->kms), d.state);
		return EXIT_DENIED;
	}
	if (*d.spec && strcmp(d.spec, "SYMMETRIC_DEFAULT") != 0 && strcmp(kms_provider_name(r->kms), "aws") == 0) {
		cmd_error("the new key '%s' is of the kind '%s': a symmetric key is needed", kms_key(r->kms), d.spec);
		return EXIT_CONFIG;
	}
	return EXIT_OK;
}

static int check_way(const struct rotation *r)
{
	if (!r->through_host && !kms_can_reencrypt(r->kms)) {
		cmd_error("provider '%s' cannot re-encrypt by itself", kms_provider_name(r->kms));
		cmd_hint(
		    "--through-host decrypts and encrypts on this host instead: keys are in its memory for a moment");
		return EXIT_CONFIG;
	}
	if (r->through_host)
		(void)fputs(
		    "byokfsctl: note: --through-host: each file's key is in this host's memory for a moment, and\n"
		    "byokfsctl: note: its identity needs Decrypt on the old key and Encrypt on the new one\n",
		    stderr);
	return EXIT_OK;
}

/* ---- the work */

static int open_crew(struct rotation *r)
{
	r->worker = calloc(r->jobs, sizeof(*r->worker));
	if (!r->worker)
		return EXIT_FAILED;
	for (unsigned i = 0; i < r->jobs; i++)
		if (rotate_worker_open(&r->worker[i], r) < 0) {
			cmd_error("cannot have memory for %u jobs", r->jobs);
			return EXIT_FAILED;
		}
	if (crew_open(&r->crew, r->jobs, 4 * (size_t)r->jobs, rotate_work, r) == 0)
		return EXIT_OK;
	cmd_error("cannot start %u threads", r->jobs);
	return EXIT_FAILED;
}

static void close_crew(struct rotation *r)
{
	crew_close(steal_ptr(&r->crew));
	for (unsigned i = 0; r->worker && i < r->jobs; i++)
		rotate_worker_close(r->worker[i]);
	free(r->worker);
}

static int count(struct rotation *r)
{
	struct rotate_pass p = { .mode = ROTATE_COUNT, .all = true };
	int code;

	progress_begin(&r->progress, "files counted", 0);
	code = rotate_walk(r, &p);
	progress_clear(&r->progress);
	r->counted_files = p.files;
	r->counted_unborn = p.unborn;
	for (size_t i = 0; i < r->n; i++) {
		r->counted_todo += r->domain[i].todo;
		r->counted_done += r->domain[i].done;
		r->counted_wrapped += r->domain[i].wrapped;
	}
	return code;
}

static int carry_out(struct rotation *r)
{
	int code = rotate_job_begin(r);

	if (code == EXIT_OK && r->live && live_start(r) < 0)
		code = EXIT_FAILED;
	if (code == EXIT_OK)
		code = rotate_begin(r);
	if (code == EXIT_OK) {
		progress_begin(&r->progress, "files", r->counted_todo);
		code = rotate_files(r);
		progress_clear(&r->progress);
	}
	if (code == EXIT_OK)
		code = rotate_finish(r);
	return code;
}

static int plan(struct rotation *r)
{
	int code = open_kms(r);

	if (code == EXIT_OK)
		code = check_way(r);
	if (code == EXIT_OK)
		code = rotate_plan(r);
	if (code == EXIT_OK)
		code = look_at_key(r);
	if (code == EXIT_OK && !r->dry_run)
		code = rotate_prepare(r);
	if (code == EXIT_OK)
		code = open_crew(r);
	if (code == EXIT_OK)
		code = count(r);
	return code;
}

/* What the gate was stopped for has not been said yet. */
static int say_stopped(struct rotation *r, int code, char *why, size_t size)
{
	const char *hint;
	bool signalled;
	int stopped = gate_why(r->gate, why, size, &hint, &signalled);

	if (!stopped)
		return code;
	cmd_error("%s", why);
	if (r->job.started)
		(void)fprintf(stderr,
		    "byokfsctl: note: %llu of %llu files were sealed anew; the same command goes on\n",
		    (unsigned long long)r->resealed, (unsigned long long)r->counted_todo);
	if (hint)
		cmd_hint("%s", hint);
	return stopped;
}

static int verdict(struct rotation *r, int code)
{
	const char *hint;
	char why[900] = "";
	bool signalled;

	if (code != EXIT_OK)
		code = say_stopped(r, code, why, sizeof(why));
	(void)gate_why(r->gate, why, sizeof(why), &hint, &signalled);
	if (code == EXIT_FAILED && !*why && r->troubles[TROUBLE_UNKNOWN]) {
		(void)snprintf(
		    why, sizeof(why), "files are under a key that is not known here: both keys are still needed");
		cmd_error("%s", why);
		cmd_hint("name their key by --from; 'byokfsctl history' and 'byokfsctl keys' tell which it may be");
	} else if (code == EXIT_FAILED && !*why && (r->troubles[TROUBLE_FAILED] || r->broken)) {
		(void)snprintf(why, sizeof(why), "files could not be reached: both keys are still needed");
		cmd_error("%s", why);
	}
	if (code == EXIT_OK && (r->troubles[TROUBLE_DAMAGED] || r->troubles[TROUBLE_REFUSED]))
		code = EXIT_DAMAGE;
	rotate_job_end(r,
	    code == EXIT_OK || code == EXIT_DAMAGE ? JOB_DONE
	        : signalled                        ? JOB_STOPPED
	                                           : JOB_FAILED,
	    why);
	return code;
}

static int dry(struct rotation *r)
{
	if (r->troubles[TROUBLE_UNKNOWN])
		return EXIT_FAILED;
	return r->troubles[TROUBLE_DAMAGED] ? EXIT_DAMAGE : EXIT_OK;
}

static int run(struct rotation *r)
{
	int code = plan(r);
	char why[900];

	if (code != EXIT_OK)
		return say_stopped(r, code, why, sizeof(why));
	rotate_say_plan(r);
	if (r->dry_run)
		return rotate_say_done(r, dry(r));
	r->begun_ms = io_boot_ms();
	return rotate_say_done(r, verdict(r, carry_out(r)));
}

static void init(struct rotation *r, const struct cmd_args *args)
{

	r->path = args->operand[0];
	r->json = args->json;
	r->lock_fd = -1;
	r->findings = json_array();
	(void)pthread_mutex_init(&r->trouble_lock, NULL);
	(void)pthread_mutex_init(&r->job_lock, NULL);
	(void)pthread_mutex_init(&r->tick_lock, NULL);
	(void)io_cond_init(&r->tick);
	progress_begin(&r->progress, "files", 0);
}

static void release(struct rotation *r)
{
	close_crew(r);
	rotate_plan_free(r);
	kms_close(r->kms);
	rotate_close(r);
	gate_close(r->gate);
	job_free(&r->job);
	tdestroy(r->seen, free);
	inoset_clear(&r->record.listed);
	json_decref(r->findings);
	config_free(&r->config);
	free(r);
}

int cmd_rotate(int argc, char **argv)
{
	struct wishes w = { 0 };
	const struct cmd_option options[] = { { "to", &w.to, NULL }, { "from", &w.from, NULL },
		{ "domain", &w.domain, NULL }, { "jobs", &w.jobs, NULL }, { "rate", &w.rate, NULL },
		{ "patience", &w.patience, NULL }, { "dry-run", NULL, &w.dry_run }, { "same-key", NULL, &w.same_key },
		{ "through-host", NULL, &w.through_host }, { 0 } };
	struct cmd_args args;
	struct rotation *r;
	int code = cmd_parse(&args, argc, argv, CMD_CONFIG | CMD_JSON, options, 1, 1);

	if (code >= 0)
		return code;
	r = calloc(1, sizeof(*r));
	if (!r)
		return EXIT_FAILED;
	init(r, &args);
	code = take_wishes(r, &w);
	if (code == EXIT_OK)
		code = cmd_configure(&r->config, &args);
	if (code == EXIT_OK && gate_open(&r->gate, r->jobs, r->rate, r->patience_ms) < 0)
		code = EXIT_FAILED;
	if (code == EXIT_OK) {
		raise_limit(r->jobs);
		code = rotate_open(r, !r->dry_run);
	}
	if (code == EXIT_OK)
		code = run(r);
	release(r);
	return code;
}
