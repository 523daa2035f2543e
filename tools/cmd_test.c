/* cmd_test.c — `byokfsctl test`: configuration, credentials, key and store, step by step.
 *
 * A failed step says what to do. Later steps that could still tell something run all the same, so that one run names
 * everything that is missing; the exit code is the first failure's. */
#include "cmd_test.h"

#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "secret.h"

static bool make_room(struct trial *t)
{
	t->secret = secret_alloc(KDF_SECRET);
	t->again = secret_alloc(KDF_SECRET);
	t->context = calloc(1, sizeof(*t->context));
	if (t->secret && t->again && t->context)
		return true;
	test_failed(t, EXIT_FAILED, "memory",
	    "raise the limit of locked memory (ulimit -l), or set allow_unlocked in [cache]", "none for keys");
	return false;
}

/* Whose requests these are: the store's, else of the store the configuration pins, else of none. */
static void choose_ids(struct trial *t)
{
	const char *id = t->config.store.id;

	secret_random(t->ids.store, CONTEXT_ID);
	secret_random(t->ids.domain, CONTEXT_ID);
	t->ids.suite = 1;
	t->extra = t->config.extra;
	if (id)
		t->known_store = bytes_unhex(t->ids.store, CONTEXT_ID, id, strlen(id)) == 0;
	if (t->args->noperand)
		test_store_load(t);
}

static bool try_open(struct trial *t)
{
	if (cmd_kms_open(&t->kms, &t->config, &t->err) == EXIT_OK) {
		test_ok(t, "key service", "%s, key %s", kms_provider_name(t->kms), kms_key(t->kms));
		return true;
	}
	test_kms_failed(t, "key service", "DescribeKey", t->config.kms.key ? t->config.kms.key : "the key");
	return false;
}

static void try_all(struct trial *t)
{
	if (!make_room(t))
		return;
	choose_ids(t);
	if ((!test_is_aws(t) || test_credentials(t)) && try_open(t) && test_describe(t)) {
		test_use(t);
		if (test_is_aws(t))
			test_replicas(t);
		if (t->args->noperand)
			test_store(t);
	} else if (t->args->noperand && !t->store) {
		test_store(t);
	}
}

static int run(struct trial *t)
{
	int code;

	t->missing = json_array();
	if (t->args->json)
		t->steps = json_array();
	code = cmd_configure(&t->config, t->args);
	if (code == EXIT_OK) {
		test_ok(
		    t, "configuration", "%s", t->config.source ? t->config.source : "built-in defaults and options");
		try_all(t);
	} else {
		test_failed(t, code, "configuration", NULL, "see above");
	}
	return test_report_end(t);
}

static void trial_free(struct trial *t)
{
	if (t->store)
		store_close(t->store, true);
	free(t->store);
	kms_close(t->kms);
	secret_free(t->secret);
	secret_free(t->again);
	free(t->context);
	json_decref(t->steps);
	json_decref(t->missing);
	config_free(&t->config);
	free(t);
}

int cmd_test(int argc, char **argv)
{
	struct cmd_args args;
	struct trial *t;
	int code = cmd_parse(&args, argc, argv, CMD_CONFIG | CMD_JSON, NULL, 0, 1);

	if (code >= 0)
		return code;
	t = calloc(1, sizeof(*t));
	if (!t)
		return EXIT_FAILED;
	t->args = &args;
	code = run(t);
	trial_free(t);
	return code;
}
