/* policy_hcl.c — the same documents as Terraform.
 *
 * Hides HCL: its escapes ("${" and "%{" would be expressions), and the layout that `terraform fmt` insists on: two
 * blanks a level, equals signs of neighbouring one-line attributes in one column. */
#include "policy.h"

#include <errno.h>
#include <string.h>

static void indent_by(FILE *f, unsigned n)
{
	(void)fprintf(f, "%*s", (int)(2 * n), "");
}

static void put_string(FILE *f, const char *text)
{
	(void)fputc('"', f);
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (*p == '"' || *p == '\\')
			(void)fprintf(f, "\\%c", *p);
		else if (*p == '\n')
			(void)fputs("\\n", f);
		else if (*p < ' ' || *p == 0x7f)
			(void)fprintf(f, "\\u%04x", *p);
		else if ((*p == '$' || *p == '%') && p[1] == '{')
			(void)fprintf(f, "%c%c", *p, *p);
		else
			(void)fputc(*p, f);
	}
	(void)fputc('"', f);
}

static const char *expression(json_t *v)
{
	return json_string_value(json_object_get(v, "$expr"));
}

static bool on_one_line(json_t *v)
{
	if (json_is_object(v))
		return expression(v) != NULL;
	return !json_is_array(v) || json_array_size(v) == 0;
}

/* "Sid", "byokfs-x": names without quotes; anything else with. */
static bool is_plain(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789");

	return n > 0 && !name[n] && !strchr("0123456789", name[0]);
}

static size_t put_name(FILE *f, const char *name)
{
	if (is_plain(name))
		(void)fputs(name, f);
	else
		put_string(f, name);
	return strlen(name) + (is_plain(name) ? 0 : 2);
}

static size_t width(const char *name)
{
	return strlen(name) + (is_plain(name) ? 0 : 2);
}

static void put_value(FILE *f, json_t *v, unsigned indent);

static void put_list(FILE *f, json_t *list, unsigned indent)
{
	json_t *v;
	size_t i;

	if (json_array_size(list) == 0) {
		(void)fputs("[]", f);
		return;
	}
	(void)fputs("[\n", f);
	json_array_foreach(list, i, v)
	{
		indent_by(f, indent + 1);
		put_value(f, v, indent + 1);
		(void)fputs(",\n", f);
	}
	indent_by(f, indent);
	(void)fputc(']', f);
}

static void put_object(FILE *f, json_t *v, unsigned indent)
{
	json_t *inner = json_object_get(v, "$json");

	if (expression(v)) {
		(void)fputs(expression(v), f);
		return;
	}
	(void)fputs(inner ? "jsonencode({\n" : "{\n", f);
	policy_hcl_body(f, inner ? inner : v, indent + 1);
	indent_by(f, indent);
	(void)fputs(inner ? "})" : "}", f);
}

static void put_value(FILE *f, json_t *v, unsigned indent)
{
	if (json_is_string(v))
		put_string(f, json_string_value(v));
	else if (json_is_integer(v))
		(void)fprintf(f, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
	else if (json_is_array(v))
		put_list(f, v, indent);
	else if (json_is_object(v))
		put_object(f, v, indent);
	else
		(void)fputs(json_is_true(v) ? "true" : json_is_false(v) ? "false" : "null", f);
}

/* The widest name among the neighbours of this one that also fit one line, and stand in one column with it. */
static size_t column(json_t *object, const char *name)
{
	json_t *v;
	size_t widest = 0;
	bool seen = false;
	const char *n;

	json_object_foreach(object, n, v)
	{
		if (!on_one_line(v)) {
			if (seen)
				break;
			widest = 0;
			continue;
		}
		seen = seen || strcmp(n, name) == 0;
		widest = width(n) > widest ? width(n) : widest;
	}
	return widest;
}

void policy_hcl_body(FILE *f, json_t *object, unsigned indent)
{
	json_t *v;
	const char *name;

	json_object_foreach(object, name, v)
	{
		size_t used, wanted = on_one_line(v) ? column(object, name) : 0;

		indent_by(f, indent);
		used = put_name(f, name);
		(void)fprintf(f, "%*s = ", (int)(wanted > used ? wanted - used : 0), "");
		put_value(f, v, indent);
		(void)fputc('\n', f);
	}
}

/* ---- resources ---- */

static int resource(FILE *f, const char *type, const char *name, const char *suffix, json_t *body)
{
	if (!body)
		return -ENOMEM;
	(void)fprintf(f, "resource \"%s\" \"%s%s\" {\n", type, name, suffix);
	policy_hcl_body(f, body, 1);
	(void)fputs("}\n", f);
	json_decref(body);
	return 0;
}

static void comment_key(FILE *f, const struct policy *p)
{
	(void)fputs("# The key's policy: who may use the key for this store, and who administers it.\n", f);
	if (!p->admin)
		(void)fputs(
		    "# Naming the account lets its IAM policies say who administers the key. It does not let them\n"
		    "# allow Decrypt: the statement names no such action.\n",
		    f);
	else if (p->no_root)
		(void)fputs(
		    "# No statement for the account: if the administrator is deleted, only AWS Support can help.\n", f);
	else
		(void)fputs(
		    "# AccountRootAgainstLockOut: the account can name another administrator when this one is gone.\n"
		    "# It does not use the key by it. Leave it out only where nobody else may change this policy.\n",
		    f);
	for (size_t i = 0; i < p->nreplica; i++)
		(void)fprintf(f, "# The same, with that Region's provider, for the replica %s\n", p->replica[i]);
}

/* A key's policy may only name roles that exist. */
static int put_key_policy(FILE *f, const struct policy *p, const char *suffix, const char *role_suffix)
{
	json_t *body = json_pack("{s:s, s:{s:o}}", "key_id", p->key, "policy", "$json", policy_for_key(p));
	char role[80];

	(void)snprintf(role, sizeof(role), "aws_iam_role.byokfs_host%s", role_suffix ? role_suffix : "");
	if (role_suffix)
		(void)json_object_set_new(body, "depends_on", json_pack("[{s:s}]", "$expr", role));
	comment_key(f, p);
	return resource(f, "aws_kms_key_policy", "byokfs", suffix, body);
}

static const char *name_in(const char *arn)
{
	return strrchr(arn, '/') + 1;
}

/* "/a/b/" of role/a/b/NAME; empty without a path. */
static void path_in(char out[static POLICY_PRINCIPAL], const char *arn)
{
	const char *from = strchr(arn, '/'), *to = strrchr(arn, '/');

	(void)snprintf(out, POLICY_PRINCIPAL, "%.*s", from == to ? 0 : (int)(to - from + 1), from);
}

/* role_suffix: of the role's resource, or NULL when there is none and its name must do. */
static int put_attachment(FILE *f, const char *arn, const char *what, const char *suffix, const char *role_suffix)
{
	bool user = strstr(arn, ":user/") != NULL;
	char policy[80], role[80];
	json_t *who;

	(void)snprintf(policy, sizeof(policy), "aws_iam_policy.byokfs_%s%s.arn", what, suffix);
	(void)snprintf(role, sizeof(role), "aws_iam_role.byokfs_%s%s.name", what, role_suffix ? role_suffix : "");
	who = role_suffix ? json_pack("{s:s}", "$expr", role) : json_string(name_in(arn));
	(void)fputc('\n', f);
	(void)snprintf(role, sizeof(role), "byokfs_%s", what);
	return resource(f, user ? "aws_iam_user_policy_attachment" : "aws_iam_role_policy_attachment", role, suffix,
	    json_pack("{s:o, s:{s:s}}", user ? "user" : "role", who, "policy_arn", "$expr", policy));
}

static int put_role_policy(
    FILE *f, const char *arn, const char *what, json_t *document, const char *suffix, const char *role_suffix)
{
	char name[48], resource_name[48];
	int ret;

	(void)snprintf(name, sizeof(name), "byokfs-%s%s", what, suffix);
	(void)snprintf(resource_name, sizeof(resource_name), "byokfs_%s", what);
	(void)fprintf(f, "# The permissions of %s, in its own account.\n", arn);
	ret = resource(f, "aws_iam_policy", resource_name, suffix,
	    json_pack("{s:s, s:{s:o}}", "name", name, "policy", "$json", document));
	return ret < 0 ? ret : put_attachment(f, arn, what, suffix, role_suffix);
}

static int put_trust(FILE *f, const struct policy *p, const char *suffix)
{
	char path[POLICY_PRINCIPAL];
	json_t *body = json_object();

	path_in(path, p->host);
	(void)json_object_set_new(body, "name", json_string(name_in(p->host)));
	if (*path)
		(void)json_object_set_new(body, "path", json_string(path));
	(void)json_object_set_new(body, "max_session_duration", json_integer(3600));
	(void)json_object_set_new(body, "assume_role_policy", json_pack("{s:o}", "$json", policy_for_trust(p)));
	(void)fputs(
	    "# The role that the host assumes; the ExternalId keeps others who can ask the same host out.\n", f);
	return resource(f, "aws_iam_role", "byokfs_host", suffix, body);
}

int policy_terraform(FILE *f, const struct policy *p, unsigned parts, const char *suffix)
{
	/* A user has no trust policy. */
	bool trust = parts & POLICY_TRUST && p->trusted && p->host && strstr(p->host, ":role/");
	const char *gap = "", *role = !trust ? NULL : p->role_suffix ? p->role_suffix : suffix;
	int ret = 0;

	if (parts & POLICY_KEY) {
		ret = put_key_policy(f, p, suffix, role);
		gap = "\n";
	}
	if (ret == 0 && trust && !p->role_suffix) {
		(void)fputs(gap, f);
		ret = put_trust(f, p, suffix);
		gap = "\n";
	}
	if (ret == 0 && parts & POLICY_HOST && p->host) {
		(void)fputs(gap, f);
		ret = put_role_policy(f, p->host, "host", policy_for_host(p), suffix, role);
		gap = "\n";
	}
	if (ret == 0 && parts & POLICY_ROTATOR && p->rotator) {
		(void)fputs(gap, f);
		ret = put_role_policy(f, p->rotator, "rotator", policy_for_rotator(p), suffix, NULL);
	}
	return ret;
}
