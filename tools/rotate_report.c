/* rotate_report.c — what people and programs read before and after a rotation. */
#include "rotate.h"

#include <inttypes.h>
#include <stdio.h>

#include "bytes.h"
#include "io.h"

#define PER_FILE      (r->through_host ? 2u : 1u)
#define PRICE_PER     10000.0
#define PRICE         0.03 /* US dollars, symmetric key */
#define LATENCY_GUESS 10u

static uint64_t requests_needed(const struct rotation *r)
{
	uint64_t n = r->counted_todo;

	for (size_t i = 0; i < r->n; i++)
		if (r->domain[i].state == ROTATE_FRESH || r->domain[i].state == ROTATE_BACK)
			n += r->domain[i].target ? 0 : 2; /* secret and canary */
	return n * PER_FILE;
}

static double seconds_needed(const struct rotation *r, uint64_t requests)
{
	uint64_t latency = r->latency_ms ? r->latency_ms : LATENCY_GUESS;
	double s = (double)(requests * latency) / 1000.0 / r->jobs;

	return r->rate && (double)requests / (double)r->rate > s ? (double)requests / (double)r->rate : s;
}

static bool is_aws(const struct rotation *r)
{
	return strcmp(kms_provider_name(r->kms), "aws") == 0;
}

static const char *step(const struct rotate_domain *d)
{
	switch (d->state) {
	case ROTATE_RESUME:
		return "goes on";
	case ROTATE_BACK:
		return "turns round";
	case ROTATE_NOTHING:
		return "is under it already";
	default:
		return "begins";
	}
}

static json_t *domains_json(const struct rotation *r)
{
	json_t *list = json_array();
	char id[2 * CONTEXT_ID + 1];

	for (size_t i = 0; i < r->n; i++) {
		const struct rotate_domain *d = &r->domain[i];

		bytes_hex(id, d->ids.domain, CONTEXT_ID);
		(void)json_array_append_new(list,
		    json_pack("{s:i, s:s, s:s, s:s, s:I, s:I, s:I}", "index", (int)d->line->index, "id", id, "from",
		        d->from, "step", step(d), "to_do", (json_int_t)d->todo, "done", (json_int_t)d->done, "wrapped",
		        (json_int_t)d->wrapped));
	}
	return list;
}

static json_t *plan_json(const struct rotation *r)
{
	uint64_t requests = requests_needed(r);

	return json_pack("{s:s, s:b, s:s?, s:s, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:f}", "store",
	    r->store->path, "mounted", r->live != NULL, "mountpoint", r->live ? live_mount(r->live) : NULL, "to",
	    kms_key(r->kms), "domains", domains_json(r), "to_do", (json_int_t)r->counted_todo, "done",
	    (json_int_t)r->counted_done, "wrapped", (json_int_t)r->counted_wrapped, "unborn",
	    (json_int_t)r->counted_unborn, "damaged",
	    (json_int_t)r->troubles[TROUBLE_DAMAGED] + (json_int_t)r->troubles[TROUBLE_REFUSED], "unknown",
	    (json_int_t)r->troubles[TROUBLE_UNKNOWN], "requests_needed", (json_int_t)requests, "price_usd",
	    is_aws(r) ? json_real((double)requests / PRICE_PER * PRICE) : json_null(), "seconds_estimated",
	    seconds_needed(r, requests));
}

static void print_domains(const struct rotation *r)
{
	for (size_t i = 0; i < r->n; i++) {
		const struct rotate_domain *d = &r->domain[i];

		(void)printf("domain %-4u %s, from %s: %" PRIu64 " files to do, %" PRIu64 " done",
		    (unsigned)d->line->index, step(d), d->from, d->todo, d->done);
		if (d->wrapped)
			(void)printf(", %" PRIu64 " wrapped by the domain's key", d->wrapped);
		(void)putchar('\n');
	}
}

static void print_plan(const struct rotation *r)
{
	uint64_t damaged = r->troubles[TROUBLE_DAMAGED], unknown = r->troubles[TROUBLE_UNKNOWN];
	uint64_t requests = requests_needed(r);

	(void)printf("to          %s\n", kms_key(r->kms));
	print_domains(r);
	if (r->counted_unborn || damaged || unknown)
		(void)printf("besides     %" PRIu64 " files without content, %" PRIu64 " damaged, %" PRIu64
		             " under an unknown key\n",
		    r->counted_unborn, damaged, unknown);
	(void)printf("requests    %" PRIu64, requests);
	if (is_aws(r))
		(void)printf(
		    ", about $%.4f at AWS's list price of $%.2f for 10,000 (symmetric keys; 20,000 a month are free)",
		    (double)requests / PRICE_PER * PRICE, PRICE);
	(void)printf("\ntime        about %.0f s with %u at a time\n", seconds_needed(r, requests) + 0.5, r->jobs);
	(void)fflush(stdout);
}

static json_t *report;

void rotate_say_plan(struct rotation *r)
{
	if (r->json)
		report = plan_json(r);
	else
		print_plan(r);
}

/* What to write into byokfs.ini. */
static void say_next(const struct rotation *r, int code)
{
	if (r->live && (code == EXIT_OK || code == EXIT_DAMAGE))
		(void)printf("the mount at '%s' goes on\n", live_mount(r->live));
	if (strcmp(kms_key(r->kms), r->configured ? r->configured : "") == 0)
		return;
	if (code == EXIT_OK || code == EXIT_DAMAGE)
		(void)printf("next        set this as the key in the configuration: %s\n", kms_key(r->kms));
	else if (r->n && descriptor_other_slot(r->domain[0].desc))
		(void)printf(
		    "next        until the rotation is over a mount needs both: kms.key = %s, kms.previous = %s\n",
		    kms_key(r->kms), r->domain[0].from);
}

static void print_done(const struct rotation *r, int code, double seconds)
{
	uint64_t damaged = r->troubles[TROUBLE_DAMAGED] + r->troubles[TROUBLE_REFUSED];

	(void)printf("%s %" PRIu64 " files sealed anew, %" PRIu64 " already, %" PRIu64 " wrapped, %" PRIu64
	             " without content",
	    code == EXIT_OK || code == EXIT_DAMAGE ? "done:" : "not finished:", r->resealed, r->counted_done,
	    r->counted_wrapped, r->counted_unborn);
	if (damaged || r->troubles[TROUBLE_UNKNOWN] || r->troubles[TROUBLE_FAILED])
		(void)printf(", %" PRIu64 " damaged, %" PRIu64 " under an unknown key, %" PRIu64 " failed", damaged,
		    r->troubles[TROUBLE_UNKNOWN], r->troubles[TROUBLE_FAILED]);
	(void)printf("; %" PRIu64 " requests in %.1f s (%.0f files a second)\n", gate_requests(r->gate), seconds,
	    (double)r->resealed / (seconds > 0.001 ? seconds : 0.001));
	say_next(r, code);
}

static int print_json(struct rotation *r, int code, double seconds)
{
	json_t *o = report ? report : json_object();

	(void)json_object_update_new(o,
	    json_pack("{s:i, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:O}", "code", code, "dry_run", r->dry_run,
	        "resealed", (json_int_t)r->resealed, "damaged",
	        (json_int_t)r->troubles[TROUBLE_DAMAGED] + (json_int_t)r->troubles[TROUBLE_REFUSED], "unknown",
	        (json_int_t)r->troubles[TROUBLE_UNKNOWN], "failed",
	        (json_int_t)r->troubles[TROUBLE_FAILED] + (json_int_t)r->broken, "requests",
	        (json_int_t)gate_requests(r->gate),
	        "passes", (json_int_t)r->passes, "seconds", seconds, "job", r->job.id, "findings", r->findings));
	return cmd_print_json(o);
}

int rotate_say_done(struct rotation *r, int code)
{
	double seconds = (double)(io_boot_ms() - r->begun_ms) / 1000.0;
	int ret = EXIT_OK;

	if (r->json) {
		ret = print_json(r, code, seconds);
	} else if (!r->dry_run) {
		print_done(r, code, seconds);
		ret = fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
	}
	return code ? code : ret;
}
