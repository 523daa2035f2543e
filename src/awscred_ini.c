/* awscred_ini.c — the INI dialect of the AWS tools.
 *
 * Hides: which section a profile lives in, sub-keys (indented lines below a key without a value), comments,
 * and the list of keys that make a profile unusable here. The text is cut up in place, so no second copy of a
 * secret is made. */
#include "awscred_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define BLANK " \t\r"

/* One "key = value"; parent is the key it is indented under, or NULL. */
struct entry {
	const char *section, *parent, *key, *value;
	unsigned line;
};

struct reader {
	const char *where;
	char *why;
	const char *section, *parent;
	bool in_keys; /* a key of this section has been seen; its indentation: */
	size_t indent;
	unsigned line;
	/* 0 or -EINVAL, with why filled */
	int (*take)(void *arg, const struct reader *, const struct entry *);
	void *arg;
};

static int complain(const struct reader *r, const char *what)
{
	snprintf(r->why, AWSCRED_WHY, "%.85s:%u: %.99s", r->where, r->line, what);
	return -EINVAL;
}

static char *trim(char *s)
{
	char *end;

	s += strspn(s, BLANK);
	for (end = s + strlen(s); end > s && strchr(BLANK, end[-1]);)
		end--;
	*end = '\0';
	return s;
}

/* A comment begins a line, or follows a blank. */
static void cut_comment(char *s)
{
	for (char *c = s; *c; c++)
		if ((*c == '#' || *c == ';') && (c == s || c[-1] == ' ' || c[-1] == '\t')) {
			*c = '\0';
			return;
		}
}

static int read_section(struct reader *r, char *line)
{
	char *end = strchr(line, ']');

	if (!end || *trim(end + 1))
		return complain(r, "malformed section");
	*end = '\0';
	r->section = trim(line + 1);
	r->parent = NULL;
	r->in_keys = false;
	return *r->section ? 0 : complain(r, "empty section name");
}

/* A line indented deeper than the key before it belongs to that key. */
static int read_entry(struct reader *r, char *line, size_t indent)
{
	struct entry e = { .section = r->section, .line = r->line };
	bool indented = r->in_keys && indent > r->indent;
	char *equals = strchr(line, '=');

	if (!r->section || !equals)
		return complain(r, r->section ? "expected 'key = value'" : "a key outside any section");
	if (indented && !r->parent)
		return complain(r, "continuation lines are not supported");
	*equals = '\0';
	e.key = trim(line);
	e.value = trim(equals + 1);
	if (!*e.key)
		return complain(r, "a value without a key");
	if (indented) {
		e.parent = r->parent;
	} else {
		r->parent = *e.value ? NULL : e.key;
		r->indent = indent;
		r->in_keys = true;
	}
	return r->take(r->arg, r, &e);
}

static int read_text(struct reader *r, char *text)
{
	char *next;

	for (char *line = text; line; line = next) {
		size_t indent = strspn(line, BLANK);
		int result;

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		r->line++;
		cut_comment(line);
		line = trim(line);
		if (!*line)
			continue;
		result = *line == '[' ? read_section(r, line) : read_entry(r, line, indent);
		if (result)
			return result;
	}
	return 0;
}

/* ---- a profile ---- */

static const struct {
	const char *key, *needs;
} unsupported[] = {
	{ "sso_session", "single sign-on (SSO) needs a person at a browser: use a role instead" },
	{ "sso_start_url", "single sign-on (SSO) needs a person at a browser: use a role instead" },
	{ "sso_account_id", "single sign-on (SSO) needs a person at a browser: use a role instead" },
	{ "login_session", "a login session needs a person at a browser: use a role instead" },
	{ "mfa_serial", "an MFA code needs a person: use a role that asks for none" },
};

#define FIELD(key, member)                                                                                   \
	{                                                                                                    \
		key, offsetof(struct awscred_profile, member), sizeof(((struct awscred_profile *)0)->member) \
	}

static const struct {
	const char *key;
	size_t offset, size;
} fields[] = {
	FIELD("aws_access_key_id", access_key),
	FIELD("aws_secret_access_key", secret_key),
	FIELD("aws_session_token", token),
	FIELD("region", region),
	FIELD("endpoint_url", endpoint),
	FIELD("services", services),
	FIELD("ignore_configured_endpoint_urls", ignore_endpoints),
	FIELD("use_fips_endpoint", fips),
	FIELD("role_arn", role_arn),
	FIELD("source_profile", source),
	FIELD("credential_source", credential_source),
	FIELD("external_id", external_id),
	FIELD("role_session_name", session_name),
	FIELD("duration_seconds", duration),
	FIELD("web_identity_token_file", token_file),
	FIELD("credential_process", process),
	FIELD("use_dualstack_endpoint", dualstack),
};

struct wanted {
	struct awscred_profile *out;
	enum awscred_file file;
	const char *profile, *service;
};

/* "profile x" and "default" in the config file, "x" in the credentials file; quotes round the name are
 * tolerated. */
static bool names_profile(const struct wanted *w, const char *section)
{
	size_t n = strlen(w->profile);

	if (w->file == AWSCRED_CREDENTIALS)
		return !strcmp(section, w->profile);
	if (!strcmp(section, "default"))
		return !strcmp(w->profile, "default");
	if (strncmp(section, "profile", 7) || !section[7] || !strchr(BLANK, section[7]))
		return false;
	section += 7;
	section += strspn(section, BLANK);
	if (*section == '"')
		return !strncmp(section + 1, w->profile, n) && !strcmp(section + 1 + n, "\"");
	return !strcmp(section, w->profile);
}

static int store(char *field, size_t size, const struct reader *r, const struct entry *e)
{
	char what[90];
	size_t n = strlen(e->value);

	if (*field || n >= size) {
		snprintf(what, sizeof(what), "'%.60s' %s", e->key, *field ? "is given twice" : "is too long");
		return complain(r, what);
	}
	memcpy(field, e->value, n + 1);
	return 0;
}

static int take_profile(void *arg, const struct reader *r, const struct entry *e)
{
	struct wanted *w = arg;

	if (!names_profile(w, e->section))
		return 0;
	w->out->found = true;
	if (e->parent)
		return 0; /* "s3 =" and the like: settings of services byokfs does not use */
	for (size_t i = 0; i < sizeof(unsupported) / sizeof(unsupported[0]); i++)
		if (!strcmp(e->key, unsupported[i].key))
			w->out->unsupported = unsupported[i].needs;
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (!strcmp(e->key, fields[i].key))
			return store((char *)w->out + fields[i].offset, fields[i].size, r, e);
	return 0;
}

int awscred_ini_profile(
    struct awscred_profile *out, enum awscred_file file, char *text, const char *profile, const char *where, char *why)
{
	struct wanted w = { .out = out, .file = file, .profile = profile };
	struct reader r = { .where = where, .why = why, .take = take_profile, .arg = &w };

	return read_text(&r, text);
}

static int take_service(void *arg, const struct reader *r, const struct entry *e)
{
	struct wanted *w = arg;

	if (strncmp(e->section, "services", 8) || !e->section[8] || !strchr(BLANK, e->section[8]))
		return 0;
	if (strcmp(e->section + 8 + strspn(e->section + 8, BLANK), w->out->services) || !e->parent)
		return 0;
	if (strcasecmp(e->parent, w->service) || strcmp(e->key, "endpoint_url"))
		return 0;
	return store(w->out->service_endpoint, sizeof(w->out->service_endpoint), r, e);
}

int awscred_ini_service(struct awscred_profile *out, char *text, const char *service, const char *where, char *why)
{
	struct wanted w = { .out = out, .service = service };
	struct reader r = { .where = where, .why = why, .take = take_service, .arg = &w };

	return read_text(&r, text);
}
