/* cmd_check.c — `byokfsctl check`: opens the store, has it checked, sums up. */
#include "cmd.h"

#include <errno.h>

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "check.h"

static int sum_up_json(const struct check *c, int code)
{
	char id[2 * CONTEXT_ID + 1];

	bytes_hex(id, c->store->desc.store, CONTEXT_ID);
	return cmd_print_json(json_pack("{s:i,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:b,s:I,s:I,s:I,s:O}", "code", code, "store",
	    id, "directories", (json_int_t)c->directories, "files", (json_int_t)c->files, "links", (json_int_t)c->links,
	    "specials", (json_int_t)c->specials, "unborn", (json_int_t)c->unborn, "in_doubt", (json_int_t)c->in_doubt,
	    "mounted", c->live, "damage", (json_int_t)c->damage, "warnings", (json_int_t)c->warnings,
	    "findings_dropped", (json_int_t)c->dropped, "findings", c->findings));
}

static int sum_up(const struct check *c)
{
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

static int check(const struct store *store, bool json)
{
	json_t *findings = json ? json_array() : NULL;
	struct check c;
	int code, ret;

	if (json && !findings)
		return EXIT_FAILED;
	ret = check_run(&c, store, findings);
	code = ret < 0 ? EXIT_FAILED : c.damage ? EXIT_DAMAGE : EXIT_OK;
	if (ret < 0)
		cmd_error("the check ended early: %s", strerror(-ret));
	ret = json ? sum_up_json(&c, code) : sum_up(&c);
	json_decref(findings);
	return code ? code : ret;
}

int cmd_check(int argc, char **argv)
{
	struct store_options options = { .readonly = true, .torn_ok = true };
	char why[STORE_WHY];
	struct cmd_args args;
	struct store *store;
	int ret, code = cmd_parse(&args, argc, argv, CMD_JSON, NULL, 1, 1);

	if (code >= 0)
		return code;
	store = calloc(1, sizeof(*store));
	ret = store ? store_open(store, args.operand[0], &options, why) : -ENOMEM;
	if (ret < 0) {
		cmd_error("%s", store ? why : "out of memory");
		free(store);
		return cmd_exit_store(ret);
	}
	code = check(store, args.json);
	store_close(store, true);
	free(store);
	return code;
}
