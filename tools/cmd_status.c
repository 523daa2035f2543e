/* cmd_status.c — `byokfsctl status`, `lock`, `unlock`: questions to live mounts.
 *
 * Hides which members of an answer people want to see first; members it does not know are printed as they are, so that
 * a newer daemon can say more. */
#include "cmd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "ctl.h"
#include "jsonio.h"

#define STATUS_MS 10000u
#define LOCK_MS   30000u

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

/* Text from the daemon's socket, fit for a terminal. */
static void print_text(const char *text)
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
		print_text(json_string_value(v));
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
	static const char *const said[] = { "code", "message", "state", "reason", "since", "since_unix",
		"lease_left_ms", "mountpoint", "domains" };
	const char *name;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)object, name, v)
	{
		bool skip = false;

		for (size_t i = 0; i < sizeof(said) / sizeof(said[0]) && indent == 0; i++)
			skip = skip || strcmp(name, said[i]) == 0;
		if (skip)
			continue;
		(void)printf("%*s", indent, "");
		print_text(name);
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
		print_text(region);
		(void)printf(" is asked\n");
	}
	if (expires) {
		(void)printf("  credentials of ");
		print_text(identity && *identity ? identity : "this host");
		(void)printf(" end at ");
		print_text(expires);
		(void)putchar('\n');
	}
}

static void print_age(const json_t *age)
{
	if (json_is_true(json_object_get(age, "alert")))
		(void)printf(
		    "  to be rotated: keys have been sealed under the same key material for %" PRId64 " days\n",
		    (int64_t)json_integer_value(json_object_get(age, "days")));
}

/* The store's second key: a rotation is under way, or may have left files under it. */
static void print_previous(const json_t *previous)
{
	const char *key = jsonio_str(previous, "key"), *reason = jsonio_str(previous, "reason");

	if (!key)
		return;
	(void)printf("  previous key ");
	print_text(key);
	if (reason && *reason) {
		(void)printf(": ");
		print_text(reason);
		(void)printf("; files that are only under it give EIO");
	}
	(void)putchar('\n');
}

static void print_head(const json_t *answer, const char *mount)
{
	const char *at = jsonio_str(answer, "mountpoint"), *state = jsonio_str(answer, "state"),
	           *reason = jsonio_str(answer, "reason"), *since = jsonio_str(answer, "since");

	print_text(at ? at : mount);
	(void)printf(": ");
	print_text(state ? state : "unknown");
	if (since) {
		(void)printf(" since ");
		print_text(since);
	}
	if (reason && *reason) {
		(void)printf(": ");
		print_text(reason);
	}
	if (json_is_integer(json_object_get(answer, "lease_left_ms")) && state && strcmp(state, "open") == 0)
		(void)printf(", lease ends in %.1f s",
		    (double)json_integer_value(json_object_get(answer, "lease_left_ms")) / 1000);
	(void)putchar('\n');
	print_kms(json_object_get(answer, "kms"));
	print_age(json_object_get(answer, "key_age"));
	print_previous(json_object_get(json_array_get(json_object_get(answer, "domains"), 0), "previous"));
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
		print_text(state ? state : "unknown");
		(void)printf(", id ");
		print_text(id ? id : "?");
		if (key) {
			(void)printf(", key ");
			print_text(key);
		}
		if (json_is_true(json_object_get(age, "alert")))
			(void)printf(", to be rotated: sealed so for %" PRId64 " days",
			    (int64_t)json_integer_value(json_object_get(age, "days")));
		if (reason && *reason) {
			(void)printf(": ");
			print_text(reason);
		}
		(void)putchar('\n');
	}
	if (json_array_size(list) < (size_t)all)
		(void)printf(
		    "%d more key domains: 'byokfsctl domain list' shows them\n", (int)all - (int)json_array_size(list));
}

static int status_one(const char *mount, bool json)
{
	json_t *request = json_pack("{s:s}", "verb", "status"), *answer = NULL;
	int code, ret = request ? ctl_call(mount, request, STATUS_MS, &answer) : -ENOMEM;

	json_decref(request);
	if (ret < 0)
		return cmd_call_failed(mount, ret);
	code = cmd_answer_code(answer);
	if (json) {
		ret = cmd_print_json(answer);
		return code ? code : ret;
	}
	if (code != EXIT_OK) {
		cmd_error(
		    "%s", jsonio_str(answer, "message") ? jsonio_str(answer, "message") : "the daemon gave no reason");
	} else {
		print_head(answer, mount);
		print_members(answer, 0);
		print_domains(answer);
	}
	json_decref(answer);
	return code;
}

static bool is_socket_name(const char *name)
{
	size_t len = strlen(name);

	return len > 5 && strcmp(name + len - 5, ".sock") == 0;
}

int cmd_mounts(json_t *list)
{
	char dir[CTL_PATH], path[CTL_PATH + 260];
	json_t *request = json_pack("{s:s}", "verb", "status");
	int ret = request ? ctl_directory(dir) : -ENOMEM;
	DIR *d = ret == 0 ? opendir(dir) : NULL;
	const struct dirent *entry;

	while (d && (entry = readdir(d))) {
		json_t *answer = NULL;

		if (!is_socket_name(entry->d_name))
			continue;
		(void)snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		if (ctl_call_socket(path, request, STATUS_MS, &answer) == 0)
			(void)json_array_append_new(list, answer);
	}
	if (d)
		(void)closedir(d);
	json_decref(request);
	return ret;
}

static int status_all(bool json)
{
	json_t *list = json_array(), *answer;
	int ret = list ? cmd_mounts(list) : -ENOMEM;
	size_t i, n = json_array_size(list);

	if (ret < 0)
		cmd_error("cannot look for mounts: %s", strerror(-ret));
	else if (json)
		return cmd_print_json(list);
	else if (n == 0)
		cmd_error("no byokfs of this user is mounted");
	else
		json_array_foreach(list, i, answer) print_head(answer, "?");
	json_decref(list);
	return ret < 0 ? EXIT_FAILED : n ? EXIT_OK : EXIT_NO_MOUNT;
}

int cmd_status(int argc, char **argv)
{
	struct cmd_args args;
	int code = cmd_parse(&args, argc, argv, CMD_JSON, NULL, 0, 1);

	if (code >= 0)
		return code;
	code = args.noperand ? status_one(args.operand[0], args.json) : status_all(args.json);
	return fflush(stdout) == 0 ? code : EXIT_FAILED;
}

void cmd_answer_error(const json_t *answer, const char *fmt, ...)
{
	const char *message = jsonio_str(answer, "message");
	char what[PATH_MAX + 100], cut[1000], safe[4 * sizeof(cut) + 1];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	(void)snprintf(cut, sizeof(cut), "%s", message ? message : "the daemon gave no reason");
	cmd_escape(safe, cut);
	cmd_error("%s: %s", what, safe);
}

/* Which domain: by id or index as they are, a path by the inode number of what lies there, which an open descriptor
 * keeps the kernel from forgetting. EXIT_OK, or an error was said. */
static int add_domain(json_t *request, const char *domain, int *fd)
{
	struct stat st;

	if (!domain)
		return EXIT_OK;
	if (!strchr(domain, '/') && strcmp(domain, ".") != 0) {
		(void)json_object_set_new(request, "domain", json_string(domain));
		return EXIT_OK;
	}
	*fd = open(domain, O_PATH | O_CLOEXEC);
	if (*fd < 0 || fstat(*fd, &st)) {
		cmd_error("--domain: cannot look at '%s': %s", domain, strerror(errno));
		return EXIT_FAILED;
	}
	(void)json_object_set_new(request, "domain_inode", json_integer((json_int_t)st.st_ino));
	return EXIT_OK;
}

/* A verb whose answer is a code and a message. */
static int plain_verb(int argc, char **argv)
{
	const char *domain = NULL;
	const struct cmd_option options[] = { { "domain", &domain, NULL }, { 0 } };
	struct cmd_args args;
	json_t *request, *answer = NULL;
	int fd CLEANUP_FD = -1;
	int ret, code = cmd_parse(&args, argc, argv, 0, options, 1, 1);

	if (code >= 0)
		return code;
	request = json_pack("{s:s}", "verb", argv[0]);
	code = add_domain(request, domain, &fd);
	ret = code ? 0 : request ? ctl_call(args.operand[0], request, LOCK_MS, &answer) : -ENOMEM;
	json_decref(request);
	if (code)
		return code;
	if (ret < 0)
		return cmd_call_failed(args.operand[0], ret);
	code = cmd_answer_code(answer);
	if (code != EXIT_OK)
		cmd_answer_error(answer, "cannot %s '%s'", argv[0], domain ? domain : args.operand[0]);
	json_decref(answer);
	return code;
}

int cmd_lock(int argc, char **argv)
{
	return plain_verb(argc, argv);
}

int cmd_unlock(int argc, char **argv)
{
	return plain_verb(argc, argv);
}
