/* cmd_test_report.c — the voice of `byokfsctl test`: lines as steps end, or one JSON object at the end. */
#include "cmd_test.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "aws_denial.h"

#define TEXT 1200u

/* The key service's words reach terminals. */
static void defuse(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || *text == 0x7f)
			*text = '?';
}

/* A path need not be UTF-8. */
static json_t *text_json(const char *text)
{
	char escaped[4 * TEXT + 1];
	json_t *out = json_string(text);

	if (out || strlen(text) > TEXT)
		return out;
	cmd_escape(escaped, text);
	return json_string(escaped);
}

static void add_step(struct trial *t, const char *verdict, const char *step, const char *todo, const char *text)
{
	json_t *o = json_pack(
	    "{s:s, s:s, s:o}", "step", step, "verdict", *verdict == 'F' ? "failed" : verdict, "text", text_json(text));

	if (todo)
		(void)json_object_set_new(o, "todo", text_json(todo));
	(void)json_array_append_new(t->steps, o);
}

static void report(
    struct trial *t, const char *verdict, const char *step, const char *todo, const char *fmt, va_list ap)
{
	char text[TEXT];

	(void)vsnprintf(text, sizeof(text), fmt, ap);
	defuse(text);
	if (t->steps) {
		add_step(t, verdict, step, todo, text);
		return;
	}
	(void)printf("%-7s %s: %s\n", verdict, step, text);
	if (todo)
		(void)printf("        what to do: %s\n", todo);
}

void test_ok(struct trial *t, const char *step, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report(t, "ok", step, NULL, fmt, ap);
	va_end(ap);
}

void test_note(struct trial *t, const char *step, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report(t, "note", step, NULL, fmt, ap);
	va_end(ap);
}

void test_failed(struct trial *t, int code, const char *step, const char *todo, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report(t, "FAILED", step, todo, fmt, ap);
	va_end(ap);
	if (t->code == EXIT_OK)
		t->code = code;
}

void test_missing(struct trial *t, const char *action, const char *key, const char *identity)
{
	const char *who = *identity ? identity : "this identity";
	json_t *o = json_pack("{s:s, s:s, s:s}", "action", action, "key", key, "identity", who);
	const json_t *known;
	size_t i;

	json_array_foreach(t->missing, i, known)
	{
		if (json_equal(known, o)) {
			json_decref(o);
			return;
		}
	}
	(void)json_array_append_new(t->missing, o);
	if (!t->steps)
		(void)printf("        missing: %s on %s for %s\n", action, key, who);
}

bool test_is_aws(const struct trial *t)
{
	return strcmp(t->config.kms.provider, "aws") == 0;
}

bool test_denied(const struct kms_err *err)
{
	return strcmp(err->code, "AccessDeniedException") == 0 || strcmp(err->code, "AccessDenied") == 0;
}

bool test_is_vault(const struct trial *t)
{
	return strcmp(t->config.kms.provider, "vault") == 0;
}

static const char *usual_todo(const struct trial *t, const struct kms_err *err)
{
	static const char vault[] =
	    "check address, mount, key and token or AppRole in [vault], and whether the server is unsealed";
	static const struct {
		const char *provider;
		enum kms_status status;
		const char *todo;
	} todos[] = {
		{ "aws", KMS_CONFIG, "check credentials, key and Region in [kms], and this host's clock" },
		{ "vault", KMS_CONFIG, vault },
		{ "vault", KMS_DOWN, vault },
		{ "pkcs11", KMS_CONFIG, "check module, token, key and PIN in [pkcs11]" },
		{ "pkcs11", KMS_DOWN, "is the token plugged in, and its service running?" },
		{ "keyfile", KMS_CONFIG, "check path in [keyfile]" },
		{ "keyfile", KMS_DOWN, "check path in [keyfile], and that the medium it is on is there" },
	};

	for (size_t i = 0; i < sizeof(todos) / sizeof(todos[0]); i++)
		if (todos[i].status == err->status && strcmp(todos[i].provider, t->config.kms.provider) == 0)
			return todos[i].todo;
	return cmd_kms_hint(err);
}

/* The service's own words name action, key and identity best; what they leave out is known here. */
static void access_denied(struct trial *t, const char *step, const char *operation, const char *key, const char *text)
{
	const char *dir = t->args->noperand ? t->args->operand[0] : NULL;
	char todo[1000], action[80];
	struct aws_denial d;
	size_t used;

	aws_denial_parse(&d, t->err.message);
	if (!*d.who)
		(void)snprintf(d.who, sizeof(d.who), "%s", t->identity);
	(void)snprintf(action, sizeof(action), "kms:%s", operation);
	aws_denial_todo(todo, sizeof(todo), &d, dir);
	used = strlen(todo);
	if (!t->known_store && strcmp(operation, "DescribeKey") != 0)
		(void)snprintf(todo + used, sizeof(todo) - used,
		    "; a policy for one store refuses this test of none: give CIPHERDIR");
	/* "Not permitted" at first use is the configuration's for a mount, which cannot tell; here it was asked for. */
	test_failed(t, EXIT_DENIED, step, todo, "%s", text);
	test_missing(t, *d.action ? d.action : action, *d.resource ? d.resource : key, d.who);
}

void test_kms_failed(struct trial *t, const char *step, const char *operation, const char *key)
{
	char text[1000];

	kms_err_text(text, sizeof(text), &t->err);
	if (test_is_aws(t) && test_denied(&t->err))
		access_denied(t, step, operation, key, text);
	else
		test_failed(t, kms_exitcode(t->err.status), step, usual_todo(t, &t->err), "%s", text);
}

int test_report_end(struct trial *t)
{
	if (t->steps) {
		int code = cmd_print_json(json_pack("{s:b, s:i, s:O, s:O}", "ok", t->code == EXIT_OK, "exit", t->code,
		    "steps", t->steps, "missing", t->missing));

		return code == EXIT_OK ? t->code : code;
	}
	return fflush(stdout) == 0 ? t->code : EXIT_FAILED;
}
