/* test_status.c — answers as metrics, rates between answers, mounts whose daemon died. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../tools/status_mounts.c"
#include "../../tools/status_prometheus.c"
#include "../../tools/status_rates.c"

void status_print_text(const char *text)
{
	(void)text;
}

static json_t *parse_json(const char *text)
{
	json_t *v = json_loads(text, 0, NULL);

	assert_non_null(v);
	return v;
}

/* The metrics of a list of answers; free() it. */
static char *metrics_of(const char *answers)
{
	json_t *list = parse_json(answers);
	char *text = NULL;
	size_t n;
	FILE *f = open_memstream(&text, &n);

	assert_non_null(f);
	status_prometheus(f, list);
	assert_int_equal(fclose(f), 0);
	json_decref(list);
	return text;
}

static void has(const char *text, const char *line)
{
	if (!strstr(text, line))
		fail_msg("'%s' is not in:\n%s", line, text);
}

#define OPEN_MOUNT                                                                                       \
	"{\"mountpoint\":\"/a\",\"store\":\"s1\",\"state\":\"open\",\"cipherdir\":\"/"                   \
	"c\",\"version\":\"1\",\"watchdog\":true,"                                                       \
	"\"latency\":{\"operations\":{\"read\":{\"count\":3,\"sum_us\":1500000.5,\"buckets\":[1,0,2]}}," \
	"\"kms\":{},\"key_wait\":{\"count\":0,\"sum_us\":0,\"buckets\":[]}},"                            \
	"\"domains\":[{\"index\":0,\"state\":\"open\",\"lease_left_ms\":1500,\"by_admin\":false,"        \
	"\"kms\":{\"provider\":\"aws\",\"key\":\"k\",\"denied\":1,\"throttled\":2,\"unreachable\":3},"   \
	"\"counters\":{\"operations\":9007199254740993}},{\"index\":7,\"state\":\"locked\",\"lease_left_ms\":0}]}"

static void values(void **state)
{
	char *text = metrics_of("[" OPEN_MOUNT "]");

	(void)state;
	has(text, "# TYPE byokfs_up gauge\nbyokfs_up{mount=\"/a\"} 1\n");
	has(text, "byokfs_info{mount=\"/a\",store=\"s1\",cipherdir=\"/c\",version=\"1\"} 1\n");
	has(text, "byokfs_watchdog_alive{mount=\"/a\",store=\"s1\"} 1\n");
	has(text, "byokfs_open{mount=\"/a\",store=\"s1\",domain=\"0\"} 1\n");
	has(text, "byokfs_open{mount=\"/a\",store=\"s1\",domain=\"7\"} 0\n");
	has(text, "byokfs_lease_remaining_seconds{mount=\"/a\",store=\"s1\",domain=\"0\"} 1.5\n");
	/* more than a double can tell apart */
	has(text, "byokfs_operations_total{mount=\"/a\",store=\"s1\",domain=\"0\"} 9007199254740993\n");
	has(text, "byokfs_kms_info{mount=\"/a\",store=\"s1\",domain=\"0\",provider=\"aws\",key=\"k\"} 1\n");
	has(text, "byokfs_kms_refusals_total{mount=\"/a\",store=\"s1\",domain=\"0\",kind=\"throttled\"} 2\n");
	assert_null(strstr(text, "byokfs_audit"));
	assert_null(strstr(text, "domain=\"7\",provider"));
	free(text);
}

static void buckets(void **state)
{
	char *text = metrics_of("[" OPEN_MOUNT "]");

	(void)state;
#define S "{mount=\"/a\",store=\"s1\",operation=\"read\""
	has(text, "# TYPE byokfs_operation_duration_seconds histogram\n");
	has(text, "byokfs_operation_duration_seconds_bucket" S ",le=\"1e-06\"} 1\n");
	has(text, "byokfs_operation_duration_seconds_bucket" S ",le=\"2e-06\"} 1\n");
	has(text, "byokfs_operation_duration_seconds_bucket" S ",le=\"4e-06\"} 3\n");
	has(text, "byokfs_operation_duration_seconds_bucket" S ",le=\"67.108864\"} 3\n");
	has(text, "byokfs_operation_duration_seconds_bucket" S ",le=\"+Inf\"} 3\n");
	has(text, "byokfs_operation_duration_seconds_sum" S "} 1.5000005\n");
	has(text, "byokfs_operation_duration_seconds_count" S "} 3\n");
	has(text, "byokfs_key_wait_duration_seconds_bucket{mount=\"/a\",store=\"s1\",le=\"+Inf\"} 0\n");
	free(text);
}

/* A family stands together, with one header, whatever the number of mounts. */
static void families(void **state)
{
	char *text = metrics_of("[" OPEN_MOUNT ",{\"mountpoint\":\"/b\",\"store\":\"s2\",\"watchdog\":false,"
	                        "\"domains\":[{\"index\":0,\"state\":\"opening\"}]}]");

	(void)state;
	has(text,
	    "byokfs_watchdog_alive{mount=\"/a\",store=\"s1\"} 1\nbyokfs_watchdog_alive{mount=\"/b\",store=\"s2\"} 0\n");
	const char *header = strstr(text, "# TYPE byokfs_open ");

	assert_non_null(header);
	assert_null(strstr(header + 1, "# TYPE byokfs_open "));
	has(text, "byokfs_open{mount=\"/b\",store=\"s2\",domain=\"0\"} 0\n");
	free(text);
}

static void escapes(void **state)
{
	char *text = metrics_of("[{\"mountpoint\":\"/a \\\"b\\\" \\\\ \\n c\",\"store\":\"s\",\"domains\":[]}]");

	(void)state;
	has(text, "byokfs_up{mount=\"/a \\\"b\\\" \\\\ \\n c\"} 1\n");
	free(text);
}

/* Dead ones, answers that are nonsense, none at all. */
static void strange_answers(void **state)
{
	char *text = metrics_of("[{\"mountpoint\":\"/d\",\"code\":8}]");

	(void)state;
	assert_string_equal(text,
	    "# HELP byokfs_up 1 when the daemon of the mount answers.\n# TYPE byokfs_up gauge\n"
	    "byokfs_up{mount=\"/d\"} 0\n");
	free(text);
	text = metrics_of("[{\"mountpoint\":[],\"store\":\"s\",\"latency\":[],\"counters\":3,\"domains\":{\"a\":1},"
	                  "\"watchdog\":\"yes\",\"audit\":{\"lines\":\"x\"}},7]");
	has(text, "byokfs_up{mount=\"\"} 1\n");
	assert_null(strstr(text, "watchdog"));
	free(text);
	text = metrics_of("[]");
	has(text, "# TYPE byokfs_up gauge\n");
	free(text);
}

static json_t *counted(int pid, const char *started, int operations)
{
	return json_pack("{s:i, s:s, s:{s:i, s:i}}", "pid", pid, "started", started, "counters", "operations",
	    operations, "reads", 5);
}

static void rates(void **state)
{
	json_t *a = counted(1, "x", 100), *b = counted(1, "x", 150), *other = counted(2, "x", 900);
	json_t *r = status_rates(a, b, 2.0);

	(void)state;
	assert_true(json_number_value(json_object_get(r, "operations")) == 25.0);
	assert_true(json_number_value(json_object_get(r, "reads")) == 0.0);
	assert_true(json_number_value(json_object_get(r, "kms_calls")) == 0.0);
	json_decref(r);
	r = status_rates(b, a, 2.0);
	assert_true(json_number_value(json_object_get(r, "operations")) == 0.0);
	json_decref(r);
	assert_null(status_rates(a, other, 2.0));
	assert_null(status_rates(NULL, b, 2.0));
	assert_null(status_rates(a, b, 0));
	json_decref(a);
	json_decref(b);
	json_decref(other);
}

static void dead_mounts(void **state)
{
	static char lines[] = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
	                      "30 22 0:40 / /alive rw,nosuid shared:1 - fuse.byokfs /c rw,user_id=0,group_id=0\n"
	                      "31 22 0:41 / /dead\\040one\\134x rw - fuse.byokfs /c\\0402 rw,user_id=0,group_id=0\n"
	                      "32 22 0:41 / /again rw - fuse.byokfs /c\\0402 rw,user_id=0,group_id=0\n"
	                      "33 22 0:42 / /theirs rw - fuse.byokfs /c rw,user_id=1000,group_id=0\n"
	                      "34 22 0:40 / /bound rw - fuse.byokfs /c rw,user_id=0,group_id=0\n"
	                      "35 22 0:43 / /late rw - fuse.byokfs /c rw,user_id=0\n"
	                      "39 22 0:45 / /alive\\377 rw - fuse.byokfs /c rw,user_id=0\n"
	                      "40 22 0:46 / /dead\377 rw - fuse.byokfs /c\377 rw,user_id=0\n"
	                      "36 22 0:43 / /here rw - fuse.byokfs /c rw,user_id=0\n"
	                      "37 fuse.byokfs user_id=0\n37 - fuse.byokfs \n"
	                      "38 22 0:44 / /other rw - fuse.sshfs h: rw,user_id=0\n";
	json_t *answers = parse_json("[{\"mountpoint\":\"/alive\"},"
	                             "{\"mountpoint\":\"/alive\\\\xff\"},{\"mountpoint\":\"/here\"}]");
	FILE *f = fmemopen(lines, sizeof(lines) - 1, "r");

	(void)state;
	status_add_dead_from(answers, f, 0);
	(void)fclose(f);
	assert_int_equal(json_array_size(answers), 5);
	const json_t *d = json_array_get(answers, 3), *bytes = json_array_get(answers, 4);

	assert_string_equal(jsonio_str(d, "mountpoint"), "/dead one\\x");
	assert_string_equal(jsonio_str(d, "cipherdir"), "/c 2");
	assert_string_equal(jsonio_str(bytes, "mountpoint"), "/dead\\xff");
	assert_string_equal(jsonio_str(bytes, "cipherdir"), "/c\\xff");
	assert_int_equal(json_integer_value(json_object_get(d, "code")), EXIT_NO_MOUNT);
	json_decref(answers);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values),
		cmocka_unit_test(buckets),
		cmocka_unit_test(families),
		cmocka_unit_test(escapes),
		cmocka_unit_test(strange_answers),
		cmocka_unit_test(rates),
		cmocka_unit_test(dead_mounts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
