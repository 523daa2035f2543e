/* cmd_keys.c — `byokfsctl keys`: options, one store or those of all instances, and which of the three answers. */
#include "cmd.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "io.h"
#include "keys.h"

#define JOBS       8u
#define JOBS_MAX   64u
#define DAYS_MAX   36500u
#define CONF_BYTES (64u << 10)

struct wish {
	struct cmd_args args;
	const char *needs, *jobs_text, *days_text, *instances;
	const char *keys[CMD_MANY + 1];
	bool alert, descriptors;
	unsigned jobs;
	uint32_t days; /* with --alert or --max-age; 0: never */
	json_t *list;  /* with --json and --instances */
};

static bool ages(const struct wish *w)
{
	return w->alert || w->days_text;
}

/* ---- one store */

static int take_json(const struct wish *w, json_t *json, int code)
{
	int ret = EXIT_OK;

	if (!json)
		return code ? code : EXIT_FAILED;
	(void)json_object_set_new(json, "code", json_integer(code));
	if (w->list)
		ret = json_array_append_new(w->list, json) == 0 ? EXIT_OK : EXIT_FAILED;
	else
		ret = cmd_print_json(json);
	return code ? code : ret;
}

static int inventory(const struct wish *w, const struct store *store)
{
	struct keys *k CLEANUP_FREE = calloc(1, sizeof(*k));
	json_t *json = NULL;
	int code = EXIT_OK, ret;

	if (!k)
		return EXIT_FAILED;
	ret = keys_read(k, store, !w->descriptors, w->jobs);
	if (ret == 0)
		ret = keys_names(k, w->keys);
	if (ret < 0) {
		cmd_error("cannot read '%s': %s", store->path, strerror(-ret));
		if (ret == -ESTALE)
			cmd_hint("directories were moved meanwhile: ask again");
		keys_free(k);
		return EXIT_FAILED;
	}
	json = w->args.json ? keys_json(k) : NULL;
	if (ages(w)) {
		code = keys_age(k, w->days, json);
	} else {
		if (!json)
			keys_print(k);
		(void)fflush(stdout);
		keys_complain(k);
		code = keys_complete(k) ? EXIT_OK : EXIT_DAMAGE;
	}
	keys_free(k);
	return w->args.json ? take_json(w, json, code) : code;
}

static int needs(const struct wish *w, const struct store *store)
{
	json_t *json = NULL;
	int code = keys_needs(store, w->needs, w->keys, w->jobs, w->args.json ? &json : NULL);

	return w->args.json ? take_json(w, json, code) : code;
}

static int one_store(const struct wish *w, const char *path)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	struct store *store CLEANUP_FREE = calloc(1, sizeof(*store));
	char why[STORE_WHY] = "out of memory";
	int code, ret = store ? store_open(store, path, &options, why) : -ENOMEM;

	if (ret < 0) {
		cmd_error("%s", why);
		return cmd_exit_store(ret);
	}
	code = w->needs ? needs(w, store) : inventory(w, store);
	store_close(store, true);
	return code;
}

/* ---- the stores of all instances */

/* The value of CIPHERDIR= in a file for systemd, cut out of text; NULL: there is none. */
static char *cipherdir_of(char *text)
{
	char *save = NULL, *value = NULL;

	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		size_t n;

		line += strspn(line, " \t");
		if (strncmp(line, "CIPHERDIR=", 10) != 0)
			continue;
		value = line + 10;
		n = strlen(value);
		while (n && isspace((unsigned char)value[n - 1]))
			value[--n] = '\0';
		if (n > 1 && (*value == '"' || *value == '\'') && value[n - 1] == *value) {
			value[n - 1] = '\0';
			value++;
		}
	}
	return value && *value ? value : NULL;
}

static int one_instance(const struct wish *w, int dirfd, const char *name)
{
	char *text CLEANUP_FREE = NULL, *cipherdir;
	size_t len = 0;
	int ret = io_read_file(dirfd, name, CONF_BYTES, &text, &len);

	if (ret < 0) {
		cmd_error("cannot read '%s/%s': %s", w->instances, name, strerror(-ret));
		return EXIT_CONFIG;
	}
	cipherdir = cipherdir_of(text);
	if (cipherdir)
		return one_store(w, cipherdir);
	(void)fprintf(stderr, "byokfsctl: warning: '%s/%s' names no CIPHERDIR: passed over\n", w->instances, name);
	return EXIT_OK;
}

static int is_conf(const struct dirent *entry)
{
	size_t n = strlen(entry->d_name);

	return entry->d_name[0] != '.' && n > 5 && strcmp(entry->d_name + n - 5, ".conf") == 0;
}

/* The code of the first that failed; every one is looked at. */
static int all_instances(const struct wish *w)
{
	struct dirent **found = NULL;
	int fd CLEANUP_FD = open(w->instances, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int code = EXIT_OK, n = fd < 0 ? -1 : scandirat(fd, ".", &found, is_conf, alphasort);

	if (n < 0) {
		cmd_error("cannot list '%s': %s", w->instances, strerror(errno));
		return EXIT_CONFIG;
	}
	if (n == 0)
		(void)fprintf(stderr, "byokfsctl: warning: '%s' has no instances (NAME.conf)\n", w->instances);
	for (int i = 0; i < n; i++) {
		int one = one_instance(w, fd, found[i]->d_name);

		code = code ? code : one;
		free(found[i]);
	}
	free(found);
	return code;
}

/* ---- options */

static int wrong(const char *what)
{
	cmd_error("%s", what);
	cmd_usage(stderr, cmd_find("keys"));
	return EXIT_USAGE;
}

/* EXIT_OK, or it was said why not. */
static int check_wish(const struct wish *w)
{
	int code = w->needs ? keys_check_name(w->needs) : EXIT_OK;

	for (size_t i = 0; w->keys[i] && code == EXIT_OK; i++)
		code = keys_check_name(w->keys[i]);
	if (code)
		return code;
	if (!w->instances == !w->args.noperand)
		return wrong(w->instances ? "--instances and CIPHERDIR exclude each other" : "missing argument");
	if (w->needs && w->descriptors)
		return wrong("--needs reads files: not with --descriptors");
	if (w->needs && ages(w))
		return wrong("--needs is a question of its own: not with --alert or --max-age");
	if (w->alert && w->days_text)
		return wrong("--alert takes the configured days: not with --max-age");
	if ((w->args.config || w->args.nsetting) && !w->alert)
		return wrong("a configuration is read for --alert only");
	return EXIT_OK;
}

static int take_numbers(struct wish *w)
{
	struct config config;
	int code = cmd_number("--jobs", w->jobs_text, JOBS_MAX, &w->jobs);

	if (code == EXIT_OK)
		code = cmd_number("--max-age", w->days_text, DAYS_MAX, &w->days);
	if (code != EXIT_OK || !w->alert)
		return code;
	code = cmd_read_config(&config, &w->args);
	w->days = config.alert.key_age_days;
	config_free(&config);
	return code;
}

int cmd_keys(int argc, char **argv)
{
	struct wish w = { .jobs = JOBS };
	const struct cmd_option options[] = { { "needs", &w.needs, NULL }, { "key...", w.keys, NULL },
		{ "jobs", &w.jobs_text, NULL }, { "max-age", &w.days_text, NULL }, { "alert", NULL, &w.alert },
		{ "descriptors", NULL, &w.descriptors }, { "instances", &w.instances, NULL }, { 0 } };
	int code = cmd_parse(&w.args, argc, argv, CMD_CONFIG | CMD_JSON, options, 0, 1);

	if (code >= 0)
		return code;
	code = check_wish(&w);
	if (code == EXIT_OK)
		code = take_numbers(&w);
	if (code != EXIT_OK)
		return code;
	if (w.instances && w.args.json)
		w.list = json_array();
	code = w.instances ? all_instances(&w) : one_store(&w, w.args.operand[0]);
	if (w.list) {
		int ret = cmd_print_json(w.list);

		code = code ? code : ret;
	}
	return fflush(stdout) == 0 ? code : EXIT_FAILED;
}
