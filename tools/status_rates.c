/* status_rates.c — what changes per second. A counter that went back is another daemon's: then there is no rate. */
#include <string.h>

#include "jsonio.h"
#include "status.h"

static const struct {
	const char *group, *name, *rate, *unit;
	double divisor;
} rows[] = {
	{ "counters", "operations", "operations", "operations/s", 1 },
	{ "counters", "errors", "errors", "errors/s", 1 },
	{ "counters", "reads", "reads", "reads/s", 1 },
	{ "counters", "read_bytes", "read_bytes", "MB/s read", 1e6 },
	{ "counters", "writes", "writes", "writes/s", 1 },
	{ "counters", "write_bytes", "write_bytes", "MB/s written", 1e6 },
	{ "counters", "parked", "parked", "operations/s that wait for a key", 1 },
	{ "counters", "unwraps", "unwraps", "keys/s unwrapped", 1 },
	{ "counters", "generates", "generates", "keys/s made", 1 },
	{ "kms", "calls", "kms_calls", "KMS calls/s", 1 },
	{ "kms", "errors", "kms_errors", "KMS errors/s", 1 },
};
#define NROWS (sizeof(rows) / sizeof(rows[0]))

static json_int_t value(const json_t *answer, size_t i)
{
	return json_integer_value(json_object_get(json_object_get(answer, rows[i].group), rows[i].name));
}

static bool same_daemon(const json_t *a, const json_t *b)
{
	const char *started = jsonio_str(a, "started"), *later = jsonio_str(b, "started");

	return started && later && strcmp(started, later) == 0 &&
	    json_integer_value(json_object_get(a, "pid")) == json_integer_value(json_object_get(b, "pid"));
}

json_t *status_rates(const json_t *before, const json_t *after, double seconds)
{
	json_t *rates;

	if (!before || seconds <= 0 || !same_daemon(before, after))
		return NULL;
	rates = json_pack("{s:f}", "seconds", seconds);
	for (size_t i = 0; i < NROWS; i++) {
		json_int_t difference = value(after, i) - value(before, i);

		(void)json_object_set_new(
		    rates, rows[i].rate, json_real(difference > 0 ? (double)difference / seconds : 0.0));
	}
	return rates;
}

void status_print_rates(const json_t *rates)
{
	bool any = false;

	if (!rates)
		return;
	(void)printf("  per second: ");
	for (size_t i = 0; i < NROWS; i++) {
		double rate = json_number_value(json_object_get(rates, rows[i].rate)) / rows[i].divisor;

		if (rate <= 0)
			continue;
		(void)printf("%s%.*f %s", any ? ", " : "", rate < 10 ? 2 : 0, rate, rows[i].unit);
		any = true;
	}
	(void)printf("%s\n", any ? "" : "nothing happens");
}
