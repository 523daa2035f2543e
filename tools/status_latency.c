/* status_latency.c — how long things take, as a table. Hides the choice of unit. */
#include <inttypes.h>
#include <string.h>

#include "status.h"

static void print_time(double us)
{
	if (us < 1000)
		(void)printf("%9.0f us", us);
	else if (us < 1000000)
		(void)printf("%9.1f ms", us / 1000);
	else
		(void)printf("%9.2f s ", us / 1000000);
}

/* What never happened is left out. */
static void print_row(const char *name, const json_t *h)
{
	json_int_t count = json_integer_value(json_object_get(h, "count"));

	if (count <= 0)
		return;
	(void)printf("  ");
	status_print_text(name);
	(void)printf("%*s%12" PRId64, (int)(strlen(name) < 18 ? 18 - strlen(name) : 1), "", (int64_t)count);
	print_time(json_number_value(json_object_get(h, "sum_us")) / (double)count);
	print_time(json_number_value(json_object_get(h, "p50_us")));
	print_time(json_number_value(json_object_get(h, "p99_us")));
	(void)putchar('\n');
}

static void print_rows(const json_t *group)
{
	const char *name;
	json_t *h;

	json_object_foreach((json_t *)(uintptr_t)group, name, h) print_row(name, h);
}

void status_print_latency(const json_t *latency)
{
	if (!json_is_object(latency))
		return;
	(void)printf("%-20s%12s%12s%12s%12s\n", "latency", "count", "mean", "p50", "p99");
	print_rows(json_object_get(latency, "operations"));
	print_rows(json_object_get(latency, "kms"));
	print_row("waiting for keys", json_object_get(latency, "key_wait"));
}
