/* cmd_check.c — `byokfsctl check`: opens the store, and its keys for --data, has it checked and perhaps repaired, sums
 * up. */
#include "cmd.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "check.h"
#include "check_repair.h"

#define JOBS_MAX  256u
#define JOBS_MORE 14u /* than processors: most of them wait for the KMS */

struct options {
	struct cmd_args args;
	bool data, repair;
	unsigned jobs;
};

/* What is wrong, and was not put right. */
static int exit_code(const struct check *c, const struct repair *r)
{
	int keys = check_keys_code(c->keys);

	if (r && r->failed)
		return c->damage ? EXIT_DAMAGE : EXIT_FAILED;
	if (r ? r->losses || c->damage > c->fixable : c->damage)
		return EXIT_DAMAGE;
	if (keys != EXIT_OK)
		return keys;
	return c->unchecked || check_keys_lapsed(c->keys) ? EXIT_FAILED : EXIT_OK;
}

static uint64_t megabytes_per_second(const struct check *c)
{
	return c->bytes / 1000 / (c->data_ms ? c->data_ms : 1);
}

static void add_data_json(json_t *json, struct check *c)
{
	(void)json_object_set_new(json, "data",
	    json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "files", (json_int_t)c->authenticated, "unchecked",
	        (json_int_t)c->unchecked, "busy", (json_int_t)c->busy, "bytes", (json_int_t)c->bytes, "milliseconds",
	        (json_int_t)c->data_ms, "mb_per_s", (json_int_t)megabytes_per_second(c)));
}

static void add_repair_json(json_t *json, const struct repair *r)
{
	(void)json_object_set_new(json, "repair",
	    json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:O}", "removed", (json_int_t)r->removed, "moved",
	        (json_int_t)r->moved, "repaired", (json_int_t)r->mended, "lengths", (json_int_t)r->lengths, "copies",
	        (json_int_t)r->copied, "attributes", (json_int_t)r->attributes, "failed", (json_int_t)r->failed,
	        "lost_bytes", (json_int_t)r->lost_bytes, "doubted_bytes", (json_int_t)r->doubted_bytes, "actions",
	        r->list));
}

static int sum_up_json(struct check *c, const struct repair *r, int code)
{
	char id[2 * CONTEXT_ID + 1];
	json_t *json;

	bytes_hex(id, c->store->desc.store, CONTEXT_ID);
	json = json_pack("{s:i,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:b,s:I,s:I,s:I,s:O}", "code", code, "store", id,
	    "directories", (json_int_t)c->directories, "files", (json_int_t)c->files, "links", (json_int_t)c->links,
	    "specials", (json_int_t)c->specials, "unborn", (json_int_t)c->unborn, "in_doubt", (json_int_t)c->in_doubt,
	    "mounted", c->live, "damage", (json_int_t)c->damage, "warnings", (json_int_t)c->warnings,
	    "findings_dropped", (json_int_t)c->dropped, "findings", c->findings);
	if (json && c->keys)
		add_data_json(json, c);
	if (json && r)
		add_repair_json(json, r);
	return cmd_print_json(json);
}

static void print_repair(const struct check *c, const struct repair *r)
{
	(void)printf("repair: %" PRIu64 " removed, %" PRIu64 " moved away, %" PRIu64 " files repaired, %" PRIu64
	             " lengths and %" PRIu64 " descriptors restored; %" PRIu64 " bytes lost, %" PRIu64
	             " more perhaps; %" PRIu64 " failed\n",
	    r->removed, r->moved + r->attributes, r->mended, r->lengths, r->copied, r->lost_bytes, r->doubted_bytes,
	    r->failed);
	if (*r->q.name)
		(void)printf("quarantine: %s/.byokfs/quarantine/%s, see its index\n", c->store->path, r->q.name);
	if (c->more_fixes)
		(void)puts("there is more to repair: run it again");
}

static int sum_up(struct check *c, const struct repair *r)
{
	if (r)
		print_repair(c, r);
	if (c->keys)
		(void)printf("authenticated %" PRIu64 " files, %" PRIu64 " MB at %" PRIu64 " MB/s; not checked %" PRIu64
		             ", busy %" PRIu64 "\n",
		    c->authenticated, c->bytes / 1000000, megabytes_per_second(c), c->unchecked, c->busy);
	if (c->in_doubt)
		(void)printf("in doubt: the size of %" PRIu64 " files, until they are opened\n", c->in_doubt);
	(void)printf("%" PRIu64 " directories, %" PRIu64 " files, %" PRIu64 " links, %" PRIu64 " special files: ",
	    c->directories, c->files, c->links, c->specials);
	if (c->damage || c->warnings)
		(void)printf("%" PRIu64 " damaged, %" PRIu64 " warnings\n", c->damage, c->warnings);
	else
		(void)puts("no damage");
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

/* Sizes are not in doubt any more when every file was opened for it. */
static void doubt_done(struct store *s, const struct check *c, const struct repair *r)
{
	if (c->keys && !c->unchecked && !c->more_fixes && !r->failed && check_keys_code(c->keys) == EXIT_OK)
		store_doubt_done(s);
}

static int check(struct store *store, struct check_keys *keys, const struct options *o)
{
	json_t *findings = o->args.json ? json_array() : NULL, *actions = o->args.json ? json_array() : NULL;
	struct check c = { .store = store, .findings = findings, .keys = keys, .jobs = o->jobs, .repair = o->repair };
	struct repair r = { .q.fd = -1, .q.index_fd = -1 };
	int code, ret = check_run(&c);

	if (ret == 0 && o->repair) {
		repair_run(&r, &c, actions);
		doubt_done(store, &c, &r);
	}
	code = ret < 0 ? EXIT_FAILED : exit_code(&c, o->repair ? &r : NULL);
	if (ret < 0)
		cmd_error("the check ended early: %s", strerror(-ret));
	if (check_keys_lapsed(keys)) {
		cmd_error("the store's key was denied or out of reach for a while: names met then were not checked");
		cmd_hint("check it again");
	}
	ret = o->args.json ? sum_up_json(&c, o->repair ? &r : NULL, code) : sum_up(&c, o->repair ? &r : NULL);
	repair_end(&r);
	check_end(&c);
	json_decref(findings);
	json_decref(actions);
	return code ? code : ret;
}

static int with_keys(struct store *store, const struct options *o)
{
	struct check_keys *keys = NULL;
	struct config config = { 0 };
	int code = EXIT_OK;

	if (o->data) {
		code = cmd_configure(&config, &o->args);
		if (code == EXIT_OK)
			code = check_keys_open(&keys, store, &config);
	}
	if (code == EXIT_OK)
		code = check(store, keys, o);
	check_keys_close(keys);
	if (o->data)
		config_free(&config);
	return code;
}

static int run(struct store *store, const struct options *o)
{
	char why[STORE_WHY];
	int ret, code;

	/* what is cut short must be known to the next mount */
	ret = o->repair ? store_mark(store, why) : 0;
	if (ret < 0) {
		cmd_error("%s", why);
		return cmd_exit_store(ret);
	}
	code = with_keys(store, o);
	return code;
}

static int parse_jobs(struct options *o, const char *text)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	char *end;
	unsigned long n;

	o->jobs = (processors > 0 ? (unsigned)processors : 1) + JOBS_MORE;
	if (!text)
		return -1;
	n = strtoul(text, &end, 10);
	if (*text >= '0' && *text <= '9' && *end == '\0' && n >= 1 && n <= JOBS_MAX) {
		o->jobs = (unsigned)n;
		return -1;
	}
	cmd_error("--jobs '%s': a number from 1 to %u is wanted", text, JOBS_MAX);
	return EXIT_USAGE;
}

int cmd_check(int argc, char **argv)
{
	struct options o = { .data = false };
	const char *jobs = NULL;
	const struct cmd_option own[] = { { "data", NULL, &o.data }, { "repair", NULL, &o.repair },
		{ "jobs", &jobs, NULL }, { NULL, NULL, NULL } };
	struct store_options options = { .torn_ok = true };
	char why[STORE_WHY];
	struct store *store;
	int ret, code = cmd_parse(&o.args, argc, argv, CMD_JSON | CMD_CONFIG, own, 1, 1);

	if (code < 0)
		code = parse_jobs(&o, jobs);
	if (code >= 0)
		return code;
	options.readonly = !o.repair;
	store = calloc(1, sizeof(*store));
	ret = store ? store_open(store, o.args.operand[0], &options, why) : -ENOMEM;
	if (ret < 0) {
		cmd_error("%s", store ? why : "out of memory");
		if (ret == -EBUSY)
			cmd_hint("a repair needs the store unmounted");
		free(store);
		return cmd_exit_store(ret);
	}
	code = run(store, &o);
	store_close(store, true);
	free(store);
	return code;
}
