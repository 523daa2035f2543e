/* awscred_chain.c — which source is asked, in which order, and how profiles lean on one another.
 *
 * Hides: that order (awscred.h), and the rule that whoever names a source gets it or an error, never the next one. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "awscred_internal.h"
#include "io.h"
#include "jsonio.h"

#define DEPTH_MAX 8u

/* The profiles that led here, innermost first. */
struct trail {
	const char *name;
	const struct trail *up;
	unsigned depth;
};

/* ---- environment ---- */

static bool env_set(void)
{
	return awscred_env("AWS_ACCESS_KEY_ID") || awscred_env("AWS_SECRET_ACCESS_KEY");
}

/* Keys of an environment that says when they end cannot be renewed: it is only looked at. */
static int from_env(struct awscred_walk *w)
{
	const char *access = awscred_env("AWS_ACCESS_KEY_ID"), *secret = awscred_env("AWS_SECRET_ACCESS_KEY");
	const char *end = awscred_env("AWS_CREDENTIAL_EXPIRATION"), *token = awscred_env("AWS_SESSION_TOKEN");
	int r;

	if (!env_set())
		return AWSCRED_NONE;
	if (!access || !secret)
		return awscred_say(
		    w->why, -EINVAL, "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY only one is set");
	r = end ? awscred_answer_set(w, access, secret, token, end, io_unix_time())
	        : awscred_answer_lasting(w, AWSCRED_ENV, access, secret, token);
	w->out->kind = AWSCRED_ENV;
	snprintf(w->out->identity, sizeof(w->out->identity), "the environment");
	return r == -ETIMEDOUT ? awscred_say(w->why, -EINVAL, "AWS_CREDENTIAL_EXPIRATION is past: '%.40s'", end) : r;
}

static bool web_env_set(void)
{
	return awscred_env("AWS_WEB_IDENTITY_TOKEN_FILE") != NULL;
}

static int from_web_env(struct awscred_walk *w)
{
	const struct awscred_role role = { .arn = awscred_env("AWS_ROLE_ARN"),
		.session = awscred_env("AWS_ROLE_SESSION_NAME"),
		.token_file = awscred_env("AWS_WEB_IDENTITY_TOKEN_FILE") };

	if (!role.token_file)
		return AWSCRED_NONE;
	if (!role.arn)
		return awscred_say(w->why, -EINVAL, "AWS_WEB_IDENTITY_TOKEN_FILE is set, and AWS_ROLE_ARN is not");
	return awscred_sts_assume(w, &role);
}

/* ---- profiles ---- */

static int bad_profile(const struct awscred_walk *w, const char *name, const char *what)
{
	return awscred_say(w->why, -EINVAL, "profile '%.60s': %.120s", name, what);
}

static bool has_keys(const struct awscred_profile *p)
{
	return *p->access_key || *p->secret_key;
}

static int from_keys(struct awscred_walk *w, const char *name, const struct awscred_profile *p)
{
	int r;

	if (!*p->access_key || !*p->secret_key)
		return awscred_say(w->why, -EINVAL,
		    "profile '%.60s' has only one of aws_access_key_id and aws_secret_access_key", name);
	r = awscred_answer_lasting(w, AWSCRED_FILES, p->access_key, p->secret_key, p->token);
	snprintf(w->out->identity, sizeof(w->out->identity), "profile '%.200s'", name);
	return r;
}

/* Version 1 is all there is. */
static int read_printed(struct awscred_walk *w, const char *name, const char *text, size_t len)
{
	json_t *doc = jsonio_parse(text, len, HTTP_RESPONSE_MAX);
	bool known = json_integer_value(json_object_get(doc, "Version")) == 1;
	int r;

	json_decref(doc);
	if (!known)
		return bad_profile(w, name, "credential_process did not print a JSON object with Version 1");
	r = awscred_answer_json(w, text, len, "SessionToken", "credential_process", io_unix_time());
	snprintf(w->out->identity, sizeof(w->out->identity), "profile '%.180s' (credential_process)", name);
	return r;
}

static int from_process(struct awscred_walk *w, const char *name, const char *command)
{
	CLEANUP_SECRET char *scrap = secret_alloc(AWSCRED_COMMAND_MAX);
	CLEANUP_SECRET char *text = NULL;
	char *argv[AWSCRED_ARGS_MAX];
	size_t len;
	int r;

	if (!scrap)
		return awscred_say(w->why, -ENOMEM, "no locked memory left");
	memcpy(scrap, command, strlen(command) + 1);
	if (awscred_split(scrap, argv))
		return bad_profile(w, name, "credential_process is no command line: does each quote end?");
	if (!w->setup->process)
		return bad_profile(w, name, "credential_process was not there when byokfs started: mount again");
	r = awscred_process_run(
	    w->setup->process, command, w->deadline, &w->setup->stopping, &text, &len, w->why);
	return r ? r : read_printed(w, name, text, len);
}

static int from_profile(struct awscred_walk *w, const char *name, const struct trail *up);

static int find_source(struct awscred_walk *w, const char *name, const struct awscred_profiles *p,
    const struct trail *trail)
{
	const char *source = AWSCRED_PICK(p, source), *named = AWSCRED_PICK(p, credential_source);
	int r;

	if (*source && *named)
		return bad_profile(w, name, "both source_profile and credential_source");
	if (*source)
		return from_profile(w, source, trail);
	if (!strcmp(named, "Environment"))
		r = from_env(w);
	else if (!strcmp(named, "Ec2InstanceMetadata"))
		r = awscred_imds(w, false);
	else if (!strcmp(named, "EcsContainer"))
		r = awscred_container(w);
	else if (*named)
		return awscred_say(w->why, -EINVAL,
		    "profile '%.60s': credential_source '%.40s' is none of Environment, Ec2InstanceMetadata, "
		    "EcsContainer",
		    name, named);
	else
		return bad_profile(
		    w, name, "role_arn needs source_profile, credential_source or web_identity_token_file");
	return r == AWSCRED_NONE ? awscred_say(w->why, -EINVAL,
	                               "profile '%.60s': credential_source = %.30s, and there are none", name, named)
	                         : r;
}

static int from_role(struct awscred_walk *w, const char *name, const struct awscred_profiles *p,
    const struct trail *trail)
{
	const char *token_file = AWSCRED_PICK(p, token_file), *seconds = AWSCRED_PICK(p, duration);
	struct awscred_role role = { .arn = AWSCRED_PICK(p, role_arn),
		.session = AWSCRED_PICK(p, session_name),
		.external_id = AWSCRED_PICK(p, external_id),
		.token_file = *token_file ? token_file : NULL };
	char *end = NULL;
	int r;

	if (*seconds) {
		unsigned long n = strtoul(seconds, &end, 10);

		if (*end || n < 900 || n > 43200)
			return bad_profile(w, name, "duration_seconds is not between 900 and 43200");
		role.seconds = (unsigned)n;
	}
	r = role.token_file ? 0 : find_source(w, name, p, trail);
	return r ? r : awscred_sts_assume(w, &role);
}

static int check_trail(const struct awscred_walk *w, const char *name, const struct trail *up)
{
	if (up && up->depth >= DEPTH_MAX)
		return bad_profile(w, name, "more than 8 source_profiles lead here");
	for (const struct trail *t = up ? up->up : NULL; t; t = t->up)
		if (!strcmp(t->name, name))
			return bad_profile(w, name, "source_profile leads in a circle");
	return 0;
}

/* What the profile gives by itself. AWSCRED_NONE: nothing. */
static int from_own(struct awscred_walk *w, const char *name, const struct awscred_profiles *p)
{
	const struct awscred_profile *credentials = &p->file[AWSCRED_CREDENTIALS], *config = &p->file[AWSCRED_CONFIG];
	const char *command = AWSCRED_PICK(p, process);

	if (has_keys(credentials))
		return from_keys(w, name, credentials);
	if (*command)
		return from_process(w, name, command);
	if (has_keys(config))
		return from_keys(w, name, config);
	if (*AWSCRED_PICK(p, source) || *AWSCRED_PICK(p, credential_source) || *AWSCRED_PICK(p, token_file))
		return bad_profile(w, name,
		    "source_profile, credential_source and web_identity_token_file need a role_arn beside them");
	return AWSCRED_NONE;
}

/* Where a profile is a source, keys of its own come before a role of its own; a profile may be its own source. */
static int from_loaded(
    struct awscred_walk *w, const char *name, const struct awscred_profiles *p, const struct trail *up)
{
	const struct trail trail = { name, up, up ? up->depth + 1 : 1 };
	const char *needs = p->file[0].unsupported ? p->file[0].unsupported : p->file[1].unsupported;
	bool keys = has_keys(&p->file[0]) || has_keys(&p->file[1]);
	int r;

	if (!p->file[0].found && !p->file[1].found)
		return up ? bad_profile(w, up->name, "its source_profile is not in the shared files") : AWSCRED_NONE;
	if (needs)
		return bad_profile(w, name, needs);
	if (*AWSCRED_PICK(p, role_arn) && !(up && keys)) {
		if (up && !strcmp(up->name, name))
			return bad_profile(w, name, "it is its own source_profile, without keys");
		return from_role(w, name, p, &trail);
	}
	r = from_own(w, name, p);
	return r == AWSCRED_NONE && up ? bad_profile(w, name, "a source_profile without credentials") : r;
}

static int from_profile(struct awscred_walk *w, const char *name, const struct trail *up)
{
	CLEANUP_SECRET struct awscred_profiles *p = NULL;
	int r = check_trail(w, name, up);

	if (r)
		return r;
	p = secret_alloc(sizeof(*p));
	if (!p)
		return awscred_say(w->why, -ENOMEM, "no locked memory left for the AWS credentials");
	r = awscred_files_load(p, name, NULL, w->why);
	return r ? r : from_loaded(w, name, p, up);
}

/* ---- all ---- */

static bool profile_named(const char *given)
{
	return given || awscred_env("AWS_PROFILE") || awscred_env("AWS_DEFAULT_PROFILE");
}

static int profile_exists(const char *name, bool *out, char *why)
{
	CLEANUP_SECRET struct awscred_profiles *p = secret_alloc(sizeof(*p));
	int r = p ? awscred_files_load(p, name, NULL, why) : -ENOMEM;

	*out = !r && (p->file[0].found || p->file[1].found);
	return r;
}

/* A profile that is named must be there; one that is there and gives nothing (a Region only) leaves it to the next. */
static int nothing_in_profile(const struct awscred_walk *w, const char *name)
{
	bool exists;
	int r = profile_exists(name, &exists, w->why);

	if (r || exists || !profile_named(w->setup->profile))
		return r ? r : AWSCRED_NONE;
	return awscred_say(w->why, -ENOENT,
	    "no AWS credentials: profile '%.60s' is not in the shared files of the AWS tools: is HOME right?", name);
}

static int find_base(struct awscred_walk *w)
{
	const char *name = awscred_profile_name(w->setup->profile);
	bool named = w->setup->profile;
	int r = named ? AWSCRED_NONE : from_env(w);

	if (r == AWSCRED_NONE)
		r = from_profile(w, name, NULL);
	if (r == AWSCRED_NONE)
		r = nothing_in_profile(w, name);
	if (r == AWSCRED_NONE && !named)
		r = from_web_env(w);
	if (r == AWSCRED_NONE)
		r = awscred_container(w);
	if (r == AWSCRED_NONE)
		r = awscred_imds(w, true);
	if (r != AWSCRED_NONE)
		return r;
	return awscred_say(w->why, -ENOENT,
	    "no AWS credentials: %sprofile '%.40s' has no keys, no web identity, no container, %s: see CREDENTIALS in "
	    "byokfs(8)",
	    named ? "" : "AWS_ACCESS_KEY_ID is not set, ", name,
	    awscred_imds_off() ? "IMDS is switched off" : "IMDS gives none");
}

int awscred_chain(struct awscred_walk *w)
{
	const struct awscred_role role = { .arn = w->setup->role_arn,
		.session = w->setup->session_name,
		.external_id = w->setup->external_id };
	int r = find_base(w);

	if (!r && role.arn)
		r = awscred_sts_assume(w, &role);
	if (!r)
		return 0;
	secret_free(w->out->cred);
	w->out->cred = NULL;
	return r;
}

/* ---- what it would do ---- */

bool awscred_chain_ends_at_imds(const char *profile)
{
	CLEANUP_SECRET struct awscred_profiles *p = secret_alloc(sizeof(*p));
	char why[AWSCRED_WHY];

	if ((!profile && (env_set() || web_env_set())) || awscred_container_set() || awscred_imds_off() || !p)
		return false;
	if (awscred_files_load(p, awscred_profile_name(profile), NULL, why))
		return false;
	if (*AWSCRED_PICK(p, role_arn))
		return !strcmp(AWSCRED_PICK(p, credential_source), "Ec2InstanceMetadata");
	return !has_keys(&p->file[0]) && !has_keys(&p->file[1]) && !*AWSCRED_PICK(p, process);
}

bool awscred_chain_runs_program(const char *profile)
{
	CLEANUP_SECRET struct awscred_profiles *p = secret_alloc(sizeof(*p));
	char why[AWSCRED_WHY], name[128];

	snprintf(name, sizeof(name), "%.127s", awscred_profile_name(profile));
	for (unsigned depth = 0; p && depth <= DEPTH_MAX; depth++) {
		if (awscred_files_load(p, name, NULL, why))
			return false;
		if (*AWSCRED_PICK(p, process))
			return true;
		if (!*AWSCRED_PICK(p, source))
			return false;
		snprintf(name, sizeof(name), "%.127s", AWSCRED_PICK(p, source));
	}
	return false;
}
