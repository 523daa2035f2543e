/* cmd_audit.c — `byokfsctl audit verify`: is an audit log whole, and what does it hold? */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "audit.h"
#include "bytes.h"

#define LISTED_MAX 1000u

/* Where findings go. */
struct report {
	json_t *findings; /* NULL: printed */
	uint64_t said;
};

static void found(void *arg, enum audit_finding kind, const char *file, uint64_t line, const char *what)
{
	struct report *r = arg;
	const char *word = kind == AUDIT_DAMAGE ? "damage" : "note";
	char *safe CLEANUP_FREE = malloc(4 * strlen(file) + 1);

	if (!safe || r->said++ >= LISTED_MAX)
		return;
	cmd_escape(safe, file);
	if (r->findings)
		(void)json_array_append_new(r->findings,
		    json_pack("{s:s,s:s,s:I,s:s}", "kind", word, "file", safe, "line", (json_int_t)line, "what", what));
	else if (line)
		(void)printf("%s:%" PRIu64 ": %s: %s\n", safe, line, word, what);
	else
		(void)printf("%s: %s\n", word, what);
}

static int read_all(struct audit_check *c, const struct cmd_args *args)
{
	for (size_t i = 1; i < args->noperand; i++) {
		const char *file = args->operand[i];
		bool in = strcmp(file, "-") == 0;
		CLEANUP_FD int opened = in ? -1 : open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY);
		int ret = !in && opened < 0 ? -errno : audit_check_file(c, in ? STDIN_FILENO : opened, file);

		if (ret < 0) {
			cmd_error("cannot read '%s': %s", file, strerror(-ret));
			return EXIT_FAILED;
		}
	}
	audit_check_end(c);
	return c->damage ? EXIT_DAMAGE : EXIT_OK;
}

static int sum_up_json(const struct audit_check *c, const struct report *r, int code)
{
	char begins[2 * AUDIT_HASH + 1], head[2 * AUDIT_HASH + 1];

	bytes_hex(begins, c->begins, AUDIT_HASH);
	bytes_hex(head, c->head, AUDIT_HASH);
	return cmd_print_json(json_pack("{s:i,s:I,s:I,s:I,s:I,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:b,s:O,s:O}", "code",
	    code, "files", (json_int_t)c->files, "lines", (json_int_t)c->lines, "first_seq", (json_int_t)c->first_seq,
	    "seq", (json_int_t)c->seq, "begins", begins, "head", head, "first_time", c->first_time, "last_time",
	    c->last_time, "chains", (json_int_t)c->chains, "torn", (json_int_t)c->torn, "dropped",
	    (json_int_t)c->dropped, "damage", (json_int_t)c->damage, "anchored", c->anchored, "operations",
	    c->operations, "findings", r->findings));
}

static void print_operations(json_t *operations)
{
	const char *op, *result;
	json_t *of, *n;

	json_object_foreach(operations, op, of)
	{
		(void)printf("%-16s", op);
		json_object_foreach(of, result, n)
		    (void)printf(" %" PRId64 " %s", (int64_t)json_integer_value(n), result);
		(void)putchar('\n');
	}
}

static int sum_up(const struct audit_check *c)
{
	char head[2 * AUDIT_HASH + 1];

	bytes_hex(head, c->head, AUDIT_HASH);
	print_operations(c->operations);
	if (c->dropped)
		(void)printf("%" PRIu64 " events are missing: the audit could not keep up\n", c->dropped);
	if (c->lines) {
		(void)printf("%" PRIu64 " lines, %s to %s, seq %" PRIu64 " to %" PRIu64 "\n", c->lines, c->first_time,
		    c->last_time, c->first_seq, c->seq);
		(void)printf("head %s\n", head);
	}
	if (c->damage)
		(void)printf("%" PRIu64 " places damaged\n", c->damage);
	else
		(void)puts(c->lines ? "the chain is whole" : "no lines");
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

static int verify(const struct cmd_args *args, const uint8_t *anchor)
{
	struct report r = { .findings = args->json ? json_array() : NULL };
	struct audit_check c = { .found = found, .arg = &r, .anchor = anchor, .operations = json_object() };
	int code = EXIT_FAILED, ret = EXIT_FAILED;

	if (c.operations && (r.findings || !args->json)) {
		code = read_all(&c, args);
		if (code != EXIT_FAILED)
			ret = args->json ? sum_up_json(&c, &r, code) : sum_up(&c);
	}
	json_decref(c.operations);
	json_decref(r.findings);
	return code ? code : ret;
}

int cmd_audit(int argc, char **argv)
{
	const char *anchor = NULL;
	const struct cmd_option options[] = { { .name = "anchor", .value = &anchor }, { .name = NULL } };
	uint8_t hash[AUDIT_HASH];
	struct cmd_args args;
	int code = cmd_parse(&args, argc, argv, CMD_JSON, options, 2, CMD_OPERANDS);

	if (code >= 0)
		return code;
	if (strcmp(args.operand[0], "verify") != 0) {
		cmd_error("unknown verb 'audit %s'", args.operand[0]);
		cmd_usage(stderr, cmd_find("audit"));
		return EXIT_USAGE;
	}
	if (anchor && bytes_unhex(hash, AUDIT_HASH, anchor, strlen(anchor))) {
		cmd_error("'%s' is not a hash: 64 lower-case hex digits", anchor);
		return EXIT_USAGE;
	}
	return verify(&args, anchor ? hash : NULL);
}
