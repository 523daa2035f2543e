/* cmd_args.c — arguments of every verb, and the configuration they lead to. */
#include "cmd.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "secret.h"

static void say(const char *kind, const char *fmt, va_list ap)
{
	(void)fflush(stdout);
	(void)fprintf(stderr, "byokfsctl: %s: ", kind);
	(void)vfprintf(stderr, fmt, ap);
	(void)fputc('\n', stderr);
}

void cmd_error(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("error", fmt, ap);
	va_end(ap);
}

void cmd_hint(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say("hint", fmt, ap);
	va_end(ap);
}

struct parsing {
	struct cmd_args *args;
	const struct cmd *cmd;
	const struct cmd_option *options;
	unsigned takes;
	int argc, at;
	char **argv;
};

static int wrong(const struct parsing *p, const char *what, const char *word)
{
	cmd_error("%s '%s'", what, word);
	cmd_usage(stderr, p->cmd);
	return EXIT_USAGE;
}

/* The value of an option: behind '=' or letter, else the next argument. NULL: missing. */
static const char *value_of(struct parsing *p, const char *attached)
{
	if (attached)
		return attached;
	return p->at + 1 < p->argc ? p->argv[++p->at] : NULL;
}

static int set_once(const struct parsing *p, const char **slot, const char *value, const char *option)
{
	if (!value)
		return wrong(p, "missing value of", option);
	if (*slot)
		return wrong(p, "given twice:", option);
	*slot = value;
	return -1;
}

static int add_one(const struct parsing *p, const char **list, const char *value, const char *option)
{
	size_t n = 0;

	while (n < CMD_MANY && list[n])
		n++;
	return n == CMD_MANY ? wrong(p, "given too often:", option) : set_once(p, &list[n], value, option);
}

static int take_config(struct parsing *p, const char *attached)
{
	return set_once(p, &p->args->config, value_of(p, attached), "-c");
}

static int take_setting(struct parsing *p, const char *attached)
{
	const char *value = value_of(p, attached);

	if (!value)
		return wrong(p, "missing value of", "-o");
	if (p->args->nsetting == CMD_SETTINGS)
		return wrong(p, "too many options:", value);
	p->args->setting[p->args->nsetting++] = value;
	return -1;
}

static int take_long(struct parsing *p, const char *arg)
{
	const char *eq = strchr(arg, '=');
	size_t len = eq ? (size_t)(eq - arg) : strlen(arg);

	if (strcmp(arg, "--help") == 0) {
		char *argv[] = { p->argv[0], p->argv[0], NULL };

		return cmd_help(2, argv);
	}
	if (p->takes & CMD_JSON && strcmp(arg, "--json") == 0) {
		p->args->json = true;
		return -1;
	}
	if (p->takes & CMD_CONFIG && len == 8 && strncmp(arg, "--config", 8) == 0)
		return take_config(p, eq ? eq + 1 : NULL);
	for (const struct cmd_option *o = p->options; o && o->name; o++) {
		bool many = strlen(o->name) == len + 1 && strcmp(o->name + len - 2, "...") == 0;

		if ((!many && strlen(o->name) != len - 2) || strncmp(o->name, arg + 2, len - 2) != 0)
			continue;
		if (many)
			return add_one(p, o->value, value_of(p, eq ? eq + 1 : NULL), arg);
		if (eq && !o->value)
			return wrong(p, "no value wanted:", arg);
		if (o->flag)
			*o->flag = true;
		if (o->value && (eq || !o->flag))
			return set_once(p, o->value, value_of(p, eq ? eq + 1 : NULL), arg);
		return -1;
	}
	return wrong(p, "unknown option", arg);
}

static int take(struct parsing *p, const char *arg)
{
	if (strncmp(arg, "--", 2) == 0)
		return take_long(p, arg);
	if (p->takes & CMD_CONFIG && strncmp(arg, "-c", 2) == 0)
		return take_config(p, arg[2] ? arg + 2 : NULL);
	if (p->takes & CMD_CONFIG && strncmp(arg, "-o", 2) == 0)
		return take_setting(p, arg[2] ? arg + 2 : NULL);
	if (strcmp(arg, "-h") == 0)
		return take_long(p, "--help");
	return wrong(p, "unknown option", arg);
}

int cmd_parse(struct cmd_args *args, int argc, char **argv, unsigned takes, const struct cmd_option *options,
    size_t min, size_t max)
{
	struct parsing p = {
		.args = args, .cmd = cmd_find(argv[0]), .options = options, .takes = takes, .argc = argc, .argv = argv
	};
	bool only_operands = false;

	memset(args, 0, sizeof(*args));
	for (p.at = 1; p.at < argc; p.at++) {
		const char *arg = argv[p.at];
		int ret = -1;

		if (!only_operands && strcmp(arg, "--") == 0)
			only_operands = true;
		else if (!only_operands && arg[0] == '-' && arg[1])
			ret = take(&p, arg);
		else if (args->noperand == max)
			ret = wrong(&p, "one argument too many:", arg);
		else
			args->operand[args->noperand++] = arg;
		if (ret >= 0)
			return ret;
	}
	if (args->noperand >= min)
		return -1;
	cmd_error("missing argument");
	cmd_usage(stderr, p.cmd);
	return EXIT_USAGE;
}

/* Does text begin with "section.key="? Then a comma before it separates settings, else it belongs to a value. */
static bool setting_begins(const char *text)
{
	static const char name[] = "abcdefghijklmnopqrstuvwxyz_";
	size_t section = strspn(text, name), key;

	if (section == 0 || text[section] != '.')
		return false;
	key = strspn(text + section + 1, name);
	return key > 0 && text[section + 1 + key] == '=';
}

static int set_one(struct config *c, char *setting, char *why)
{
	char *eq = strchr(setting, '=');

	if (!eq) {
		(void)snprintf(why, CONFIG_WHY, "-o %.60s: expected section.key=value", setting);
		return -1;
	}
	*eq = '\0';
	return config_set(c, setting, eq + 1, why);
}

static int set_all(struct config *c, const char *settings, char *why)
{
	char *copy CLEANUP_FREE = strdup(settings);
	int ret = copy ? 0 : -1;

	why[0] = '\0';
	for (char *p = copy; p && ret == 0;) {
		char *comma = strchr(p, ',');

		while (comma && !setting_begins(comma + 1))
			comma = strchr(comma + 1, ',');
		if (comma)
			*comma++ = '\0';
		ret = set_one(c, p, why);
		p = comma;
	}
	return ret;
}

static int read_config(struct config *c, const struct cmd_args *args, char *why)
{
	int ret;

	config_init(c);
	ret = config_load(c, args->config, why);
	for (size_t i = 0; i < args->nsetting && ret == 0; i++)
		ret = set_all(c, args->setting[i], why);
	return ret;
}

int cmd_read_config(struct config *c, const struct cmd_args *args)
{
	char why[CONFIG_WHY] = "";

	if (read_config(c, args, why) == 0)
		return EXIT_OK;
	cmd_error("%s", *why ? why : "out of memory");
	return EXIT_CONFIG;
}

int cmd_configure(struct config *c, const struct cmd_args *args)
{
	char why[CONFIG_WHY] = "";
	int ret = read_config(c, args, why);

	if (ret == 0)
		ret = config_check(c, why);
	if (ret < 0) {
		cmd_error("%s", *why ? why : "out of memory");
		if (!c->source && !args->config)
			cmd_hint("no configuration file was read: give one with -c, or write " CONFIG_PATH);
		return EXIT_CONFIG;
	}
	return secret_init(c->cache.allow_unlocked) < 0 ? EXIT_FAILED : EXIT_OK;
}

int cmd_number(const char *option, const char *text, unsigned max, unsigned *out)
{
	unsigned long n;
	char *end = NULL;

	if (!text)
		return EXIT_OK;
	n = *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : 0;
	if (n < 1 || n > max || *end) {
		cmd_error("%s: '%.60s' is not a number from 1 to %u", option, text, max);
		return EXIT_USAGE;
	}
	*out = (unsigned)n;
	return EXIT_OK;
}
