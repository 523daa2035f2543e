/* keys_needs.c — "is this key still needed?" Hides everything that keeps the answer from being no: a wrong no, and the
 * key that somebody deletes upon it takes the data with it. */
#include "keys.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "policy.h"

#define LOWER "abcdefghijklmnopqrstuvwxyz"

static int refuse(const char *name, const char *what, const char *hint)
{
	char safe[4 * 120 + 1], cut[121];

	(void)snprintf(cut, sizeof(cut), "%s", name);
	cmd_escape(safe, cut);
	cmd_error("'%s' %s", safe, what);
	cmd_hint("%s", hint);
	return EXIT_USAGE;
}

static bool looks_like_key_id(const char *name)
{
	return strncmp(name, "mrk-", 4) == 0 || strspn(name, "0123456789abcdefABCDEF-") == strlen(name);
}

/* Does name begin so, and go on with something that has this in it? */
static bool has_form(const char *name, const char *prefix, const char *inside)
{
	size_t n = strlen(prefix);

	return strncmp(name, prefix, n) == 0 && name[n] && strstr(name + n, inside);
}

/* As providers write them: another spelling would have another hash. */
static bool is_keyfile(const char *name)
{
	return has_form(name, "keyfile:", "") && strlen(name) == strlen("keyfile:") + 16 &&
	    strspn(name + strlen("keyfile:"), "0123456789abcdef") == 16;
}

static bool is_vault(const char *name)
{
	return has_form(name, "vault:", "/keys/") && name[6] != '/' && !strstr(name, "//") &&
	    name[strlen(name) - 1] != '/';
}

/* An ARN in other letters would have another hash. */
static int check_arn(const char *name)
{
	char why[POLICY_WHY];

	if (strstr(name, ":alias/"))
		return refuse(name, "is an alias: it may lead to another key tomorrow",
		    "give the key's ARN: aws kms describe-key --key-id ALIAS --query KeyMetadata.Arn");
	if (policy_check_key(name, why) < 0)
		return refuse(name, "is not the ARN of a KMS key", "such as arn:aws:kms:REGION:ACCOUNT:key/ID");
	if (strspn(name, LOWER "0123456789:-/") != strlen(name))
		return refuse(name, "is not the ARN of a KMS key as AWS writes it",
		    "Region and key id are in lower case, without blanks");
	return EXIT_OK;
}

int keys_check_name(const char *name)
{
	for (const char *p = name; *p; p++)
		if (*p <= ' ' || *p >= 0x7f)
			return refuse(
			    name, "has blanks or other characters that no key's name has", "quote it as it was shown");
	if (strncmp(name, "arn:", 4) == 0)
		return check_arn(name);
	if (is_keyfile(name) || is_vault(name) || has_form(name, "pkcs11:token=", ";object="))
		return EXIT_OK;
	if (strncmp(name, "alias/", 6) == 0 || (*name && looks_like_key_id(name)))
		return refuse(name, "is an alias or a key id, not a key's full name",
		    "stores hold ARNs: aws kms describe-key --key-id NAME --query KeyMetadata.Arn");
	return refuse(name, "is not a key's full name as stores hold it",
	    "an ARN, vault:MOUNT/keys/NAME, pkcs11:token=...;object=... or keyfile:ID, as 'byokfsctl keys' shows it");
}

/* ---- the verdict */

struct verdict {
	const char *name, *path;
	enum { NOT_NEEDED, NEEDED, UNSURE, DAMAGED } is;
	struct keytab_need need;
	bool changed;
	char *example; /* escaped */
};

static enum exitcode code_of(const struct verdict *v)
{
	return v->is == NOT_NEEDED ? EXIT_OK : v->is == DAMAGED ? EXIT_DAMAGE : EXIT_FAILED;
}

static void decide(struct verdict *v, const struct keys *k)
{
	keytab_need(&k->tab, v->name, &v->need);
	v->changed = k->changed;
	if (v->need.files || v->need.domains)
		v->is = NEEDED;
	else if (!keys_complete(k))
		v->is = DAMAGED;
	else if (v->need.maybe || k->changed)
		v->is = UNSURE;
	else
		v->is = NOT_NEEDED;
	free(v->example);
	v->example = v->need.example ? malloc(4 * strlen(v->need.example) + 1) : NULL;
	if (v->example)
		cmd_escape(v->example, v->need.example);
}

static void say(const struct verdict *v, const struct keys *k)
{
	switch (v->is) {
	case NOT_NEEDED:
		(void)puts("not needed");
		break;
	case NEEDED:
		(void)printf("needed: %" PRIu64 " files and %" PRIu64 " slots of key domains are sealed under it",
		    v->need.files, v->need.domains);
		if (v->example)
			(void)printf(", such as '%s'", v->example);
		(void)putchar('\n');
		break;
	case UNSURE:
		if (v->changed)
			cmd_error("cannot tell whether '%s' needs the key: its descriptors changed meanwhile", v->path);
		else
			cmd_error("cannot tell whether '%s' needs the key: %" PRIu64
			          " seals are under keys that could not be told from it",
			    v->path, v->need.maybe);
		cmd_hint("%s",
		    v->changed ? "is a rotation running? ask again when it is done"
		               : "they may be this key in another Region: name its siblings, each with --key ARN");
		break;
	case DAMAGED:
		keys_complain(k);
		break;
	}
}

static json_t *verdict_json(const struct verdict *v)
{
	static const char *const words[] = { "not needed", "needed", "unsure", "unsure" };

	return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s*}", "key", v->name, "answer", words[v->is], "files",
	    (json_int_t)v->need.files, "domain_slots", (json_int_t)v->need.domains, "superseded",
	    (json_int_t)v->need.superseded, "unknown", (json_int_t)v->need.maybe, "example", v->example);
}

/* One reading of everything. EXIT_OK: v tells. */
static int look(struct keys *k, struct verdict *v, const struct store *store, const char *const *others, unsigned jobs)
{
	int ret = keys_read(k, store, true, jobs);

	if (ret == 0)
		ret = keytab_name(&k->tab, v->name);
	if (ret == 0)
		ret = keys_names(k, others);
	if (ret == 0) {
		decide(v, k);
		return EXIT_OK;
	}
	cmd_error("cannot read '%s': %s", store->path, strerror(-ret));
	if (ret == -ESTALE)
		cmd_hint("directories were moved meanwhile: ask again");
	return EXIT_FAILED;
}

/* A file that is moved while a store in use is walked may be missed; one walk more would have to miss it again. */
int keys_needs(const struct store *store, const char *name, const char *const *others, unsigned jobs, json_t **json)
{
	struct verdict v = { .name = name, .path = store->path };
	struct keys *k CLEANUP_FREE = calloc(1, sizeof(*k));
	int code = k ? look(k, &v, store, others, jobs) : EXIT_FAILED;

	if (!k)
		cmd_error("out of memory");
	if (code == EXIT_OK && v.is == NOT_NEEDED && k->live) {
		keys_free(k);
		code = look(k, &v, store, others, jobs);
	}
	if (code == EXIT_OK) {
		code = (int)code_of(&v);
		if (json)
			*json = keys_json(k);
		if (json)
			(void)json_object_set_new(*json, "needs", verdict_json(&v));
		if (!json || v.is >= UNSURE)
			say(&v, k);
	}
	if (k)
		keys_free(k);
	free(v.example);
	return code;
}
