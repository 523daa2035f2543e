/* cmd_policy.c — `byokfsctl policy`: what the key's owner and the roles' owners have to allow, ready to be applied.
 *
 * stdout is only the documents. What a reader must know beside them (a placeholder, a choice) is a note on stderr. */
#include "cmd_policy.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

struct wishes {
	const char *host, *rotator, *admin, *external_id, *account, *only, *key;
	bool terraform, no_root;
	unsigned parts;
};

/* What becomes of one key; the texts that policy borrows. */
struct job {
	struct policy policy;
	char host[POLICY_PRINCIPAL], rotator[POLICY_PRINCIPAL], trusted[POLICY_PRINCIPAL];
	char *replicas; /* cut into words */
	char suffix[24]; /* of its resources in Terraform; the first has none */
};

static const struct part {
	const char *name, *member;
	enum policy_part part;
	json_t *(*document)(const struct policy *);
} parts[] = {
	{ "key", "key_policy", POLICY_KEY, policy_for_key },
	{ "host", "host_policy", POLICY_HOST, policy_for_host },
	{ "rotator", "rotator_policy", POLICY_ROTATOR, policy_for_rotator },
	{ "trust", "trust_policy", POLICY_TRUST, policy_for_trust },
};

#define PARTS (sizeof(parts) / sizeof(parts[0]))

void policy_note(const char *fmt, ...)
{
	va_list ap;

	(void)fputs("byokfsctl: note: ", stderr);
	va_start(ap, fmt);
	(void)vfprintf(stderr, fmt, ap);
	va_end(ap);
	(void)fputc('\n', stderr);
}

/* ---- what was asked for ---- */

static int refuse(const char *option, const char *why)
{
	cmd_error("--%s: %s", option, why);
	return EXIT_USAGE;
}

static int check_only(struct wishes *w)
{
	w->parts = w->only ? 0 : POLICY_ALL;
	for (size_t i = 0; w->only && i < PARTS; i++)
		if (strcmp(w->only, parts[i].name) == 0)
			w->parts = parts[i].part;
	if (w->parts)
		return EXIT_OK;
	cmd_error("--only: '%s' is none of key, host, rotator, trust", w->only);
	return EXIT_USAGE;
}

static int check_wishes(struct wishes *w)
{
	const struct {
		const char *name, *value;
	} principals[] = { { "host", w->host }, { "rotator", w->rotator }, { "admin", w->admin } };
	char why[POLICY_WHY];

	for (size_t i = 0; i < sizeof(principals) / sizeof(principals[0]); i++)
		if (principals[i].value && policy_check_principal(principals[i].value, why) < 0)
			return refuse(principals[i].name, why);
	if (w->external_id && policy_check_external_id(w->external_id, why) < 0)
		return refuse("external-id", why);
	if (w->key && policy_check_key(w->key, why) < 0)
		return refuse("key", why);
	if (w->no_root && !w->admin)
		return refuse("no-root", "only with --admin: nobody else could administer the key");
	return check_only(w);
}

/* The role in [kms] is what the KMS sees, and its ExternalId what its trust asks for. */
static int complete(struct wishes *w, const struct config *c)
{
	char why[POLICY_WHY];

	if (!w->host && c->kms.role_arn)
		w->host = c->kms.role_arn;
	if (!w->external_id && c->kms.external_id)
		w->external_id = c->kms.external_id;
	if (w->host == c->kms.role_arn && w->host && policy_check_principal(w->host, why) < 0) {
		cmd_error("'role_arn' in [kms]: %s", why);
		return EXIT_CONFIG;
	}
	if (w->external_id == c->kms.external_id && w->external_id &&
	    policy_check_external_id(w->external_id, why) < 0) {
		cmd_error("'external_id' in [kms]: %s", why);
		return EXIT_CONFIG;
	}
	return EXIT_OK;
}

/* ---- one key ---- */

/* A role that was named, or a placeholder that says so. */
static const char *role(
    char out[static POLICY_PRINCIPAL], const char *given, const struct policy_arn *key, const char *what)
{
	if (given)
		return given;
	(void)snprintf(out, POLICY_PRINCIPAL, "arn:%s:iam::%s:role/REPLACE-WITH-%s-ROLE", key->partition, key->account,
	    strcmp(what, "host") == 0 ? "HOST" : "ROTATOR");
	policy_note("no --%s: '%s' stands for its role", what, out);
	return out;
}

static int same_partition(const struct policy_arn *key, const char *option, const char *arn)
{
	struct policy_arn a;

	if (!arn || policy_arn_parse(&a, arn) < 0 || strcmp(a.partition, key->partition) == 0)
		return EXIT_OK;
	cmd_error("--%s: '%s' is in partition '%s', the key in '%s': no policy spans them", option, arn, a.partition,
	    key->partition);
	return EXIT_USAGE;
}

static int add_replicas(struct job *j, const char *configured)
{
	struct policy *p = &j->policy;
	char *save = NULL;

	j->replicas = configured ? strdup(configured) : NULL;
	if (configured && !j->replicas)
		return EXIT_FAILED;
	for (char *word = configured ? strtok_r(j->replicas, ", \t\r\n", &save) : NULL; word;
	     word = strtok_r(NULL, ", \t\r\n", &save)) {
		word[strcspn(word, "@")] = '\0'; /* ARN@URL */
		if (!policy_siblings(p->key, word) || strcmp(p->key, word) == 0)
			continue;
		if (p->nreplica == POLICY_REPLICAS) {
			cmd_error("'replicas' in [kms]: more than %u", POLICY_REPLICAS);
			return EXIT_CONFIG;
		}
		p->replica[p->nreplica++] = word;
	}
	if (p->nreplica)
		policy_note("each replica has a key policy of its own: apply the printed one to all of them");
	else if (strstr(p->key, ":key/mrk-"))
		policy_note(
		    "'%s' is a multi-Region key: its replicas have policies of their own, name those byokfs uses "
		    "in 'replicas' in [kms]",
		    p->key);
	return EXIT_OK;
}

static int set_trust(struct job *j, const struct wishes *w, const struct config *c, const struct policy_arn *key)
{
	struct policy *p = &j->policy;
	char why[POLICY_WHY];

	if (!(w->parts & POLICY_TRUST) ||
	    (w->parts == POLICY_ALL && !w->external_id && !w->account && !c->kms.role_arn))
		return EXIT_OK;
	/* A known ExternalId keeps nobody out. */
	if (w->account && !w->external_id)
		return refuse("account", "a trust policy for a real account needs --external-id: whoever runs the host "
		                         "chooses one for each customer");
	if (policy_trustee(j->trusted, w->account ? w->account : POLICY_NO_VENDOR, key->partition, why) < 0)
		return refuse("account", why);
	if (!w->account)
		policy_note("no --account: '%s' stands for whoever runs the host", j->trusted);
	if (!w->external_id)
		policy_note("no --external-id: '%s' stands for it; whoever runs the host chooses one for each customer",
		    POLICY_NO_EXTERNAL);
	p->trusted = j->trusted;
	p->external_id = w->external_id ? w->external_id : POLICY_NO_EXTERNAL;
	return same_partition(key, "account", j->trusted);
}

/* Who is not named is left out, unless nobody is: then all are placeholders, a template. */
static void set_roles(struct job *j, const struct wishes *w, const struct policy_arn *key)
{
	bool template = !w->host && !w->rotator;

	j->policy.admin = w->admin;
	j->policy.no_root = w->no_root;
	if (w->host || template || w->parts & (POLICY_HOST | POLICY_TRUST))
		if (w->parts != POLICY_ROTATOR)
			j->policy.host = role(j->host, w->host, key, "host");
	if (w->rotator || w->parts == POLICY_ROTATOR || (template && w->parts & (POLICY_KEY | POLICY_ROTATOR)))
		j->policy.rotator = role(j->rotator, w->rotator, key, "rotator");
}

static int prepare(struct job *j, const struct wishes *w, const struct config *c, const struct policy_keys *keys,
    const struct policy_key *k)
{
	struct policy_arn key;
	char why[POLICY_WHY];
	int code = EXIT_OK;

	j->policy.store = keys->store;
	j->policy.key = k->arn;
	j->policy.names = k->names;
	if (policy_check_key(k->arn, why) < 0 || policy_arn_parse(&key, k->arn) < 0) {
		cmd_error("the store's descriptor: %s", why);
		return EXIT_NOT_A_STORE;
	}
	set_roles(j, w, &key);
	code = same_partition(&key, "host", w->host);
	if (code == EXIT_OK)
		code = same_partition(&key, "rotator", w->rotator);
	if (code == EXIT_OK)
		code = same_partition(&key, "admin", w->admin);
	if (code == EXIT_OK)
		code = set_trust(j, w, c, &key);
	return code == EXIT_OK ? add_replicas(j, c->kms.replicas) : code;
}

static void job_free(struct job *j)
{
	free(j->replicas);
}

/* ---- output ---- */

static int print_json(json_t *json)
{
	int ret = json ? json_dumpf(json, stdout, JSON_INDENT(2)) : -1;

	if (ret < 0)
		cmd_error("cannot write the answer: %s", json ? strerror(errno) : "out of memory");
	json_decref(json);
	return ret == 0 && putchar('\n') != EOF && fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

static json_t *documents(const struct policy *p, unsigned wanted)
{
	json_t *out = json_pack("{s:s, s:s, s:[s]}", "store", p->store, "key", p->key, "keys_to_apply_to", p->key);

	for (size_t i = 0; i < p->nreplica; i++)
		(void)json_array_append_new(json_object_get(out, "keys_to_apply_to"), json_string(p->replica[i]));
	for (size_t i = 0; i < PARTS; i++) {
		json_t *document = wanted & parts[i].part ? parts[i].document(p) : NULL;

		if (document)
			(void)json_object_set_new(out, parts[i].member, document);
	}
	return out;
}

static json_t *the_only(const struct policy *p, unsigned wanted)
{
	for (size_t i = 0; i < PARTS; i++)
		if (wanted == parts[i].part)
			return parts[i].document(p);
	return NULL;
}

/* One role must not be two resources: the first key's documents have it, the others' refer to it. */
static const char *suffix_of_role(const struct job *jobs, size_t i)
{
	for (size_t j = 0; j < i; j++)
		if (jobs[i].policy.host && jobs[j].policy.host && !strcmp(jobs[i].policy.host, jobs[j].policy.host))
			return jobs[j].suffix;
	return NULL;
}

static int terraform(struct job *jobs, size_t n, unsigned wanted)
{
	for (size_t i = 0; i < n; i++) {
		if (i) {
			(void)snprintf(jobs[i].suffix, sizeof(jobs[i].suffix), "_%zu", i + 1);
			(void)putchar('\n');
		}
		jobs[i].policy.role_suffix = suffix_of_role(jobs, i);
		if (policy_terraform(stdout, &jobs[i].policy, wanted, jobs[i].suffix) < 0) {
			cmd_error("out of memory");
			return EXIT_FAILED;
		}
	}
	return fflush(stdout) == 0 ? EXIT_OK : EXIT_FAILED;
}

static int print(struct job *jobs, size_t n, const struct wishes *w)
{
	json_t *list;

	if (w->only && n > 1) {
		cmd_error("the store is under %zu keys: choose one with --key", n);
		for (size_t i = 0; i < n; i++)
			(void)fprintf(stderr, "  %s\n", jobs[i].policy.key);
		return EXIT_USAGE;
	}
	if (w->terraform)
		return terraform(jobs, n, w->parts);
	if (w->only)
		return print_json(the_only(&jobs[0].policy, w->parts));
	if (n == 1)
		return print_json(documents(&jobs[0].policy, w->parts));
	list = json_array();
	for (size_t i = 0; i < n; i++)
		(void)json_array_append_new(list, documents(&jobs[i].policy, w->parts));
	return print_json(json_pack("{s:s, s:o}", "store", jobs[0].policy.store, "keys", list));
}

static int run(struct wishes *w, const struct config *c, const char *cipherdir)
{
	struct policy_keys keys = { .n = 0 };
	struct job *jobs CLEANUP_FREE = NULL;
	int code = complete(w, c);

	if (code == EXIT_OK)
		code = policy_keys_find(&keys, c, cipherdir, w->key);
	if (code == EXIT_OK) {
		jobs = calloc(keys.n, sizeof(*jobs));
		code = jobs ? EXIT_OK : EXIT_FAILED;
	}
	for (size_t i = 0; i < keys.n && code == EXIT_OK; i++)
		code = prepare(&jobs[i], w, c, &keys, &keys.key[i]);
	if (code == EXIT_OK)
		code = print(jobs, keys.n, w);
	for (size_t i = 0; jobs && i < keys.n; i++)
		job_free(&jobs[i]);
	policy_keys_free(&keys);
	return code;
}

int cmd_policy(int argc, char **argv)
{
	struct wishes w = { 0 };
	const struct cmd_option options[] = { { "host", &w.host, NULL }, { "rotator", &w.rotator, NULL },
		{ "admin", &w.admin, NULL }, { "external-id", &w.external_id, NULL }, { "account", &w.account, NULL },
		{ "only", &w.only, NULL }, { "key", &w.key, NULL }, { "terraform", NULL, &w.terraform },
		{ "no-root", NULL, &w.no_root }, { 0 } };
	struct config config;
	struct cmd_args args;
	int code = cmd_parse(&args, argc, argv, CMD_CONFIG | CMD_JSON, options, 0, 1);

	if (code >= 0)
		return code;
	if (args.json && w.terraform) {
		cmd_error("--json and --terraform: choose one");
		return EXIT_USAGE;
	}
	code = check_wishes(&w);
	if (code != EXIT_OK)
		return code;
	code = cmd_read_config(&config, &args);
	if (code == EXIT_OK)
		code = run(&w, &config, args.noperand ? args.operand[0] : NULL);
	config_free(&config);
	return code;
}
