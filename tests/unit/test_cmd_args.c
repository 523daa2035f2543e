/* test_cmd_args.c — arguments of byokfsctl's verbs, and settings that hold commas. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../tools/cmd_args.c"

static const struct cmd verb = { .name = "verb", .usage = "X" };
static int helped;

const struct cmd *cmd_find(const char *name)
{
	(void)name;
	return &verb;
}

void cmd_usage(FILE *f, const struct cmd *c)
{
	(void)f;
	(void)c;
}

int cmd_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	helped++;
	return EXIT_OK;
}

struct parsed {
	struct cmd_args args;
	const char *seal;
	bool plain;
	int code;
};

/* line: arguments separated by single blanks. */
static struct parsed parse(const char *line, size_t min, size_t max)
{
	static char copy[256], name[] = "verb"; /* args point into it */
	struct parsed p = { .seal = NULL };
	const struct cmd_option options[] = { { "seal", &p.seal, NULL }, { "plain", NULL, &p.plain }, { 0 } };
	char *argv[16] = { name }, *save = NULL;
	int argc = 1;

	(void)snprintf(copy, sizeof(copy), "%s", line);
	for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save))
		argv[argc++] = word;
	p.code = cmd_parse(&p.args, argc, argv, CMD_CONFIG | CMD_JSON, options, min, max);
	return p;
}

static void options_and_operands_mix(void **state)
{
	struct parsed p = parse("--seal=file dir -c a.ini -o kms.key=x --json --plain -okms.region=y", 1, 1);

	(void)state;
	assert_int_equal(p.code, -1);
	assert_string_equal(p.args.operand[0], "dir");
	assert_string_equal(p.args.config, "a.ini");
	assert_int_equal(p.args.nsetting, 2);
	assert_string_equal(p.args.setting[1], "kms.region=y");
	assert_true(p.args.json && p.plain);
	assert_string_equal(p.seal, "file");
	assert_string_equal(parse("--config=b.ini x", 1, 1).args.config, "b.ini");
	assert_string_equal(parse("--seal domain x", 1, 1).seal, "domain");
	assert_string_equal(parse("-- --json", 1, 1).args.operand[0], "--json");
	assert_string_equal(parse("-", 1, 1).args.operand[0], "-");
}

static void wrong_use_is_refused(void **state)
{
	static const char *const wrong[] = { "", "a b", "--frob a", "-x a", "-c a.ini -c b.ini a",
		"--seal=file --seal=file a", "a --seal", "a -c", "a -o", "--plain=yes a", "--json=1 a",
		"--sealx=file a", "--sea=file a" };

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		if (parse(wrong[i], 1, 1).code != EXIT_USAGE)
			fail_msg("'%s' was accepted", wrong[i]);
	assert_int_equal(parse("--help", 1, 1).code, EXIT_OK);
	assert_int_equal(parse("-h", 1, 1).code, EXIT_OK);
	assert_int_equal(helped, 2);
}

static void commas_separate_settings_or_belong_to_values(void **state)
{
	struct config c;
	char why[CONFIG_WHY];

	(void)state;
	config_init(&c);
	assert_int_equal(set_all(&c, "kms.key=k,cache.probe=1s,cache.lease=2s", why), 0);
	assert_string_equal(c.kms.key, "k");
	assert_int_equal(c.cache.lease_ms, 2000);
	assert_int_equal(set_all(&c, "kms.context=a:b, c:d,e:f=g,kms.region=r", why), 0);
	assert_string_equal(c.kms.context, "a:b, c:d,e:f=g");
	assert_string_equal(c.kms.region, "r");
	assert_true(set_all(&c, "kms.key", why) < 0);
	assert_non_null(strstr(why, "section.key=value"));
	assert_true(set_all(&c, "cache.probe=1s,cache.ttl=2s", why) < 0);
	assert_non_null(strstr(why, "cache.ttl"));
	config_free(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_and_operands_mix),
		cmocka_unit_test(wrong_use_is_refused),
		cmocka_unit_test(commas_separate_settings_or_belong_to_values),
	};

	return cmocka_run_group_tests_name("cmd_args", tests, NULL, NULL);
}
