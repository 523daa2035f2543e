/* cmd_status.c — `byokfsctl status`: one mount or all, once or over and over, for people and for programs.
 *
 * Hides where daemons are found: by the socket of a mount, or by all sockets of this user and the kernel's list of
 * mounts, which also knows those whose daemon died. */
#include "cmd.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"
#include "io.h"
#include "jsonio.h"
#include "status.h"

#define STATUS_MS 10000u
#define WATCH_S   2u
#define WATCH_MAX 86400u

int cmd_call_failed(const char *mount, int err)
{
	switch (err) {
	case -ENOENT:
	case -ECONNREFUSED:
	case -ENOTDIR:
	case -ENOTCONN:
		cmd_error("no byokfs is mounted at '%s'", mount);
		return EXIT_NO_MOUNT;
	case -ETIMEDOUT:
		cmd_error("the daemon of '%s' did not answer in time", mount);
		return EXIT_FAILED;
	default:
		cmd_error("cannot ask the daemon of '%s': %s", mount, strerror(-err));
		return EXIT_FAILED;
	}
}

int cmd_answer_code(const json_t *answer)
{
	const json_t *code = json_object_get(answer, "code");

	return json_is_integer(code) && json_integer_value(code) >= 0 && json_integer_value(code) < 64
	    ? (int)json_integer_value(code)
	    : EXIT_FAILED;
}

/* What is wanted. */
struct wish {
	const char *mount; /* NULL: all */
	bool json, prometheus, watch;
	unsigned interval; /* seconds */
};

/* The members of further requests, when there are more key domains than one answer has room for. */
static int add_domains(const char *socket, json_t *answer)
{
	json_t *list = json_object_get(answer, "domains");
	size_t all = (size_t)json_integer_value(json_object_get(answer, "domain_count")), n;
	int ret = 0;

	while (ret == 0 && (n = json_array_size(list)) > 0 && n < all) {
		const json_t *last = json_object_get(json_array_get(list, n - 1), "index");
		json_t *more = NULL,
		       *request = json_pack("{s:s, s:I}", "verb", "status", "from", json_integer_value(last) + 1);

		ret = request ? ctl_call_socket(socket, request, STATUS_MS, &more) : -ENOMEM;
		json_decref(request);
		if (ret == 0 && json_array_size(json_object_get(more, "domains")) == 0)
			all = n; /* fewer than it said */
		else if (ret == 0)
			(void)json_array_extend(list, json_object_get(more, "domains"));
		json_decref(more);
	}
	return ret;
}

/* Asks one daemon. */
static int ask(const char *socket, bool every_domain, json_t **answer)
{
	json_t *request = json_pack("{s:s}", "verb", "status");
	int ret = request ? ctl_call_socket(socket, request, STATUS_MS, answer) : -ENOMEM;

	json_decref(request);
	return ret == 0 && every_domain ? add_domains(socket, *answer) : ret;
}

static bool is_socket_name(const char *name)
{
	size_t len = strlen(name);

	return len > 5 && strcmp(name + len - 5, ".sock") == 0;
}

/* A socket that nobody serves is passed over. */
static int collect_living(json_t *list, bool every_domain)
{
	char dir[CTL_PATH], path[CTL_PATH + 260];
	int ret = ctl_directory(dir);
	DIR *d = ret == 0 ? opendir(dir) : NULL;
	const struct dirent *entry;

	while (d && (entry = readdir(d))) {
		json_t *answer = NULL;

		if (!is_socket_name(entry->d_name))
			continue;
		(void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		if (ask(path, every_domain, &answer) == 0)
			(void)json_array_append_new(list, answer);
		else
			json_decref(answer);
	}
	if (d)
		(void)closedir(d);
	return ret;
}

int cmd_mounts(json_t *list)
{
	return collect_living(list, false);
}

static int collect_all(json_t *list, bool every_domain)
{
	int ret = collect_living(list, every_domain);

	return ret ? ret : status_add_dead(list);
}

static int collect_one(json_t *list, const struct wish *w)
{
	char socket[CTL_PATH];
	json_t *answer = NULL;
	int ret = ctl_path(w->mount, socket);

	if (ret == 0)
		ret = ask(socket, w->prometheus, &answer);
	if (ret == 0)
		return json_array_append_new(list, answer) ? -ENOMEM : 0;
	json_decref(answer);
	return ret;
}

/* A new list of answers, or NULL with *code after an error was said. */
static json_t *collect(const struct wish *w, int *code)
{
	json_t *list = json_array();
	int ret = !list ? -ENOMEM : w->mount ? collect_one(list, w) : collect_all(list, w->prometheus);

	*code = EXIT_OK;
	if (ret == 0)
		return list;
	/* That a mount is down is an answer there. */
	if (w->prometheus && w->mount && (ret == -ENOENT || ret == -ECONNREFUSED || ret == -ENOTCONN)) {
		char *real CLEANUP_FREE = realpath(w->mount, NULL);

		(void)json_array_append_new(
		    list, json_pack("{s:o}", "mountpoint", jsonio_text(real ? real : w->mount)));
		return list;
	}
	json_decref(list);
	if (w->mount)
		*code = cmd_call_failed(w->mount, ret);
	else
		cmd_error("cannot look for mounts: %s", strerror(-ret));
	if (*code == EXIT_OK)
		*code = EXIT_FAILED;
	return NULL;
}

/* An answer that is none. */
static int refused(const json_t *answer)
{
	const char *message = jsonio_str(answer, "message");

	cmd_error("%s", message ? message : "the daemon gave no reason");
	return cmd_answer_code(answer);
}

static int print_json(const struct wish *w, const json_t *list)
{
	json_t *one = json_array_get(list, 0);
	int code = w->mount ? cmd_answer_code(one) : EXIT_OK,
	    ret = cmd_print_json(w->mount ? json_incref(one) : json_incref((json_t *)(uintptr_t)list));

	return code ? code : ret;
}

static int print(const struct wish *w, const json_t *list)
{
	const json_t *answer;
	size_t i;

	if (w->prometheus) {
		status_prometheus(stdout, list);
		return EXIT_OK;
	}
	if (w->json)
		return print_json(w, list);
	if (json_array_size(list) == 0) {
		cmd_error("no byokfs of this user is mounted");
		return EXIT_NO_MOUNT;
	}
	json_array_foreach(list, i, answer)
	{
		if (w->mount && cmd_answer_code(answer) != EXIT_OK)
			return refused(answer);
		if (w->mount)
			status_print(answer, w->mount);
		else
			status_print_head(answer, "?");
		status_print_rates(json_object_get(answer, "rates"));
	}
	return EXIT_OK;
}

/* ---- over and over */

static volatile sig_atomic_t interrupted;

static void interrupt(int sig)
{
	(void)sig;
	interrupted = 1;
}

/* Between answers of the same mount. */
static void add_rates(const json_t *before, json_t *list, double seconds)
{
	const json_t *old;
	json_t *now;
	size_t i, k;

	json_array_foreach(list, i, now) json_array_foreach(before, k, old)
	{
		const char *a = jsonio_str(now, "mountpoint"), *b = jsonio_str(old, "mountpoint");
		json_t *rates = a && b && strcmp(a, b) == 0 ? status_rates(old, now, seconds) : NULL;

		if (rates)
			(void)json_object_set_new(now, "rates", rates);
	}
}

static void pause_until(uint64_t end)
{
	uint64_t now;

	while (!interrupted && (now = io_boot_ms()) < end) {
		uint64_t ms = end - now;
		struct timespec t = { .tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000 };

		(void)nanosleep(&t, NULL);
	}
}

/* A mount that goes away may come back: only the first answer must be one. */
static int watch(const struct wish *w)
{
	const struct sigaction on_int = { .sa_handler = interrupt };
	bool clear = !w->json && isatty(STDOUT_FILENO);
	json_t *before = NULL;
	uint64_t asked = 0;
	int code = EXIT_OK;

	(void)sigaction(SIGINT, &on_int, NULL);
	for (bool first = true; !interrupted; first = false) {
		uint64_t now = io_boot_ms();
		json_t *list = collect(w, &code);

		if (list)
			add_rates(before, list, (double)(now - asked) / 1000);
		if (clear)
			(void)fputs("\033[H\033[2J", stdout);
		code = list ? print(w, list) : code;
		if (!clear && !w->json && list)
			(void)putchar('\n');
		json_decref(before);
		before = list;
		asked = now;
		if (fflush(stdout) != 0)
			code = EXIT_FAILED;
		if (code == EXIT_FAILED || (first && code != EXIT_OK))
			break;
		pause_until(now + w->interval * 1000u);
		code = EXIT_OK;
	}
	json_decref(before);
	return code;
}

static int once(const struct wish *w)
{
	int code;
	json_t *list = collect(w, &code);

	if (list)
		code = print(w, list);
	json_decref(list);
	return code;
}

/* EXIT_OK, or wrong use after an error. */
static int take_interval(struct wish *w, const char *seconds)
{
	char *end = NULL;
	unsigned long n = seconds ? strtoul(seconds, &end, 10) : WATCH_S;

	w->interval = (unsigned)n;
	if (!seconds || (*seconds >= '0' && *seconds <= '9' && *end == '\0' && n >= 1 && n <= WATCH_MAX))
		return EXIT_OK;
	cmd_error("--watch takes 1 to %u seconds, not '%s'", WATCH_MAX, seconds);
	return EXIT_USAGE;
}

int cmd_status(int argc, char **argv)
{
	struct wish w = { .mount = NULL };
	const char *seconds = NULL;
	const struct cmd_option options[] = { { "prometheus", NULL, &w.prometheus }, { "watch", &seconds, &w.watch },
		{ 0 } };
	struct cmd_args args;
	int code = cmd_parse(&args, argc, argv, CMD_JSON, options, 0, 1);

	if (code >= 0)
		return code;
	w.mount = args.noperand ? args.operand[0] : NULL;
	w.json = args.json;
	if (w.prometheus && (w.json || w.watch)) {
		cmd_error("--prometheus goes with neither --json nor --watch");
		return EXIT_USAGE;
	}
	code = take_interval(&w, seconds);
	if (code != EXIT_OK)
		return code;
	code = w.watch ? watch(&w) : once(&w);
	return fflush(stdout) == 0 ? code : EXIT_FAILED;
}
