/* cmd_lock.c — `byokfsctl lock`, `unlock` and `reload`: orders to live mounts, whose answer is a code and a message. */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "ctl.h"
#include "jsonio.h"

#define LOCK_MS 30000u

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

static void print_names(FILE *f, const char *what, const json_t *names)
{
	const json_t *name;
	size_t i;

	if (json_array_size(names) == 0)
		return;
	(void)fprintf(f, "%s", what);
	json_array_foreach(names, i, name)
	{
		const char *text = json_string_value(name);
		char safe[4 * 64 + 1], cut[65];

		(void)snprintf(cut, sizeof(cut), "%s", text ? text : "?");
		cmd_escape(safe, cut);
		(void)fprintf(f, "%s%s", i ? ", " : " ", safe);
	}
	(void)fputc('\n', f);
}

static int print_reload(const char *mount, const json_t *answer)
{
	const json_t *changed = json_object_get(answer, "changed"), *later = json_object_get(answer, "next_mount");
	const char *rotated = jsonio_str(answer, "rotated_to");

	if (cmd_answer_code(answer) != EXIT_OK) {
		cmd_answer_error(answer, "the configuration of '%s' stays as it was", mount);
		return cmd_answer_code(answer);
	}
	if (json_array_size(changed) == 0 && json_array_size(later) == 0)
		(void)printf("nothing changed\n");
	print_names(stdout, "changed:", changed);
	print_names(stdout, "for the next mount:", later);
	print_names(stdout, "for the next mount in nested key domains:", json_object_get(answer, "nested_next_mount"));
	if (rotated)
		cmd_hint("the store was rotated to key '%s': set 'key' to it before the next mount", rotated);
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

int cmd_reload(int argc, char **argv)
{
	struct cmd_args args;
	json_t *request, *answer = NULL;
	int ret, code = cmd_parse(&args, argc, argv, CMD_JSON, NULL, 1, 1);

	if (code >= 0)
		return code;
	request = json_pack("{s:s}", "verb", argv[0]);
	ret = request ? ctl_call(args.operand[0], request, LOCK_MS, &answer) : -ENOMEM;
	json_decref(request);
	if (ret < 0)
		return cmd_call_failed(args.operand[0], ret);
	if (args.json) {
		code = cmd_answer_code(answer);
		ret = cmd_print_json(answer);
		return code ? code : ret;
	}
	code = print_reload(args.operand[0], answer);
	json_decref(answer);
	return code;
}
