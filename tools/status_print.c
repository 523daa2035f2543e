/* status_print.c — an answer for people.
 *
 * Hides which members of an answer people want to see first; members it does not know are printed as they are, so that
 * a newer daemon can say more. */
#include "status.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "jsonio.h"

/* Text from the daemon's socket, fit for a terminal. */
void status_print_text(const char *text)
{
	char *safe CLEANUP_FREE = malloc(4 * strlen(text) + 1);

	if (!safe)
		return;
	cmd_escape(safe, text);
	(void)fputs(safe, stdout);
}

static void print_value(const json_t *v)
{
	if (json_is_string(v))
		status_print_text(json_string_value(v));
	else if (json_is_integer(v))
		(void)printf("%" PRId64, (int64_t)json_integer_value(v));
	else if (json_is_real(v))
		(void)printf("%.1f", json_real_value(v));
	else
		(void)fputs(json_is_true(v) ? "yes" : json_is_false(v) ? "no" : "-", stdout);
}

/* Everything but what print_head() said. */
static void print_members(const json_t *object, int indent)
{
	static const char *const said[] = { "code", "message", "state", "reason", "since", "lease_left_ms",
		"mountpoint", "latency", "rates" };
	const char *name;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)object, name, v)
	{
		/* the same time stands there for people */
		bool skip = json_is_array(v) || (strlen(name) > 5 && strcmp(name + strlen(name) - 5, "_unix") == 0);

		for (size_t i = 0; i < sizeof(said) / sizeof(said[0]) && indent == 0; i++)
			skip = skip || strcmp(name, said[i]) == 0;
		if (skip)
			continue;
		(void)printf("%*s", indent, "");
		status_print_text(name);
		if (json_is_object(v)) {
			(void)putchar('\n');
			print_members(v, indent + 2);
			continue;
		}
		(void)printf("%*s", (int)(strlen(name) < 18 ? 18 - strlen(name) : 1), "");
		print_value(v);
		(void)putchar('\n');
	}
}

/* What somebody may have to act upon. */
static void print_kms(const json_t *kms)
{
	const char *region = jsonio_str(kms, "region"), *identity = jsonio_str(kms, "identity"),
	           *expires = jsonio_str(kms, "expires");

	if (region && json_is_true(json_object_get(kms, "away"))) {
		(void)printf("  the key's own Region cannot be reached: its replica in ");
		status_print_text(region);
		(void)printf(" is asked\n");
	}
	if (expires) {
		(void)printf("  credentials of ");
		status_print_text(identity && *identity ? identity : "this host");
		(void)printf(" end at ");
		status_print_text(expires);
		(void)putchar('\n');
	}
}

static void print_age(const json_t *age)
{
	if (json_is_true(json_object_get(age, "alert")))
		(void)printf("  to be rotated: keys have been sealed under the same key material for %" PRId64
		             " days\n",
		    (int64_t)json_integer_value(json_object_get(age, "days")));
}

/* The store's second key: a rotation is under way, or may have left files under it. */
static void print_previous(const json_t *previous)
{
	const char *key = jsonio_str(previous, "key"), *reason = jsonio_str(previous, "reason");

	if (!key)
		return;
	(void)printf("  previous key ");
	status_print_text(key);
	if (reason && *reason) {
		(void)printf(": ");
		status_print_text(reason);
		(void)printf("; files that are only under it give EIO");
	}
	(void)putchar('\n');
}

static void print_trouble(const json_t *answer)
{
	json_int_t damaged = json_integer_value(json_object_get(json_object_get(answer, "counters"), "damaged"));
	const json_t *audit = json_object_get(answer, "audit");
	const char *error = jsonio_str(audit, "error");

	if (damaged)
		(void)printf(
		    "  damage was met %" PRId64 " times since the mount: the log says where\n", (int64_t)damaged);
	if (json_is_false(json_object_get(answer, "watchdog")))
		(void)printf("  the watchdog process died: remount soon\n");
	if (error && *error) {
		(void)printf("  the audit log cannot be written: ");
		status_print_text(error);
		(void)putchar('\n');
	}
}

void status_print_head(const json_t *answer, const char *mount)
{
	const char *at = jsonio_str(answer, "mountpoint"), *state = jsonio_str(answer, "state"),
	           *reason = jsonio_str(answer, "reason"), *since = jsonio_str(answer, "since");

	status_print_text(at ? at : mount);
	(void)printf(": ");
	status_print_text(state ? state : "unknown");
	if (since) {
		(void)printf(" since ");
		status_print_text(since);
	}
	if (reason && *reason) {
		(void)printf(": ");
		status_print_text(reason);
	}
	if (json_is_integer(json_object_get(answer, "lease_left_ms")) && state && strcmp(state, "open") == 0)
		(void)printf(", lease ends in %.1f s",
		    (double)json_integer_value(json_object_get(answer, "lease_left_ms")) / 1000);
	(void)putchar('\n');
	print_kms(json_object_get(answer, "kms"));
	print_age(json_object_get(answer, "key_age"));
	print_previous(json_object_get(json_array_get(json_object_get(answer, "domains"), 0), "previous"));
	print_trouble(answer);
}

/* One line each, when there is more than the store's own. */
static void print_domains(const json_t *answer)
{
	const json_t *list = json_object_get(answer, "domains");
	json_int_t all = json_integer_value(json_object_get(answer, "domain_count"));
	const json_t *d;
	size_t i;

	if (all < 2)
		return;
	json_array_foreach(list, i, d)
	{
		const char *state = jsonio_str(d, "state"), *reason = jsonio_str(d, "reason"),
		           *id = jsonio_str(d, "id");
		const char *key = jsonio_str(json_object_get(d, "kms"), "key");
		const json_t *age = json_object_get(d, "key_age");

		(void)printf("domain %-11d ", (int)json_integer_value(json_object_get(d, "index")));
		status_print_text(state ? state : "unknown");
		(void)printf(", id ");
		status_print_text(id ? id : "?");
		if (key) {
			(void)printf(", key ");
			status_print_text(key);
		}
		if (json_is_true(json_object_get(age, "alert")))
			(void)printf(", to be rotated: sealed so for %" PRId64 " days",
			    (int64_t)json_integer_value(json_object_get(age, "days")));
		if (reason && *reason) {
			(void)printf(": ");
			status_print_text(reason);
		}
		(void)putchar('\n');
	}
	if (json_array_size(list) < (size_t)all)
		(void)printf(
		    "%d more key domains: 'byokfsctl domain list' shows them\n", (int)all - (int)json_array_size(list));
}

void status_print(const json_t *answer, const char *mount)
{
	status_print_head(answer, mount);
	print_members(answer, 0);
	print_domains(answer);
	status_print_latency(json_object_get(answer, "latency"));
}
