/* awscred.c — opening and closing, and the settings that stand beside credentials.
 *
 * Hides: what must happen while the process still has one thread, and which of environment, profile and instance wins
 * for a setting. Settings are read from the files each time: that is once per mount. */
#include "awscred.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "awscred_cache.h"
#include "io.h"

#define REGION_MS 2000u

/* ---- settings ---- */

/* Half a name is worse than none. */
static int copy(char *out, size_t size, const char *text, const char *what, char *why)
{
	size_t n = strlen(text);

	out[0] = '\0';
	if (n >= size)
		return awscred_say(why, -EINVAL, "the %s '%.60s...' is too long", what, text);
	memcpy(out, text, n + 1);
	return 0;
}

/* The profile that credentials come from, in secret memory. service may be NULL. */
static int load(struct awscred_profiles **out, const struct awscred *a, const char *service, char *why)
{
	*out = secret_alloc(sizeof(**out));
	if (!*out)
		return awscred_say(why, -ENOMEM, "no locked memory left");
	return awscred_files_load(*out, awscred_profile_name(a->setup.profile), service, why);
}

static bool known_region(struct awscred *a, char *out)
{
	LOCK_SCOPE(&a->lock);
	memcpy(out, a->region, sizeof(a->region));
	return a->region_asked;
}

/* Only where it is an instance that the credentials come from; once. */
static void ask_instance(struct awscred *a, char *out)
{
	struct awscred_answer none = { .cred = NULL };
	char why[AWSCRED_WHY];
	struct awscred_walk w = { &a->setup, NULL, io_boot_ms() + REGION_MS, why, &none };

	if (known_region(a, out) || !awscred_chain_ends_at_imds(a->setup.profile))
		return;
	awscred_imds_region(&w, out);
	LOCK_SCOPE(&a->lock);
	memcpy(a->region, out, sizeof(a->region));
	a->region_asked = true;
}

int awscred_region(struct awscred *a, char *out, char *why)
{
	CLEANUP_SECRET struct awscred_profiles *p = NULL;
	const char *region = awscred_env("AWS_REGION");
	int r = 0;

	out[0] = '\0';
	region = region ? region : awscred_env("AWS_DEFAULT_REGION");
	if (!region)
		r = load(&p, a, NULL, why);
	if (!r)
		r = copy(out, 64, region ? region : AWSCRED_SETTING(p, region), "Region", why);
	if (!r && !*out)
		ask_instance(a, out);
	return r;
}

/* "kms" to the value of AWS_ENDPOINT_URL_KMS. */
static const char *env_endpoint(const char *service)
{
	char name[64] = "AWS_ENDPOINT_URL_";
	size_t n = strlen(name);

	for (; *service && n + 1 < sizeof(name); service++)
		name[n++] = (char)toupper((unsigned char)*service);
	return awscred_env(name) ? awscred_env(name) : awscred_env("AWS_ENDPOINT_URL");
}

int awscred_endpoint(struct awscred *a, const char *service, char *out, char *why)
{
	CLEANUP_SECRET struct awscred_profiles *p = NULL;
	const char *given = env_endpoint(service);
	int r;

	out[0] = '\0';
	if (awscred_true(awscred_env("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")))
		return 0;
	if (given)
		return copy(out, 512, given, "endpoint URL", why);
	r = load(&p, a, service, why);
	if (r || awscred_true(AWSCRED_SETTING(p, ignore_endpoints)))
		return r;
	if (*p->file[AWSCRED_CONFIG].service_endpoint)
		given = p->file[AWSCRED_CONFIG].service_endpoint;
	else
		given = AWSCRED_SETTING(p, endpoint);
	return copy(out, 512, given, "endpoint URL", why);
}

/* The environment's word, else the profile's. */
static int is_wanted(struct awscred *a, const char *name, size_t offset, bool *out, char *why)
{
	CLEANUP_SECRET struct awscred_profiles *p = NULL;
	int r;

	*out = awscred_true(awscred_env(name));
	if (awscred_env(name))
		return 0;
	r = load(&p, a, NULL, why);
	*out = !r && awscred_true(awscred_setting(p, offset));
	return r;
}

int awscred_fips(struct awscred *a, bool *out, char *why)
{
	return is_wanted(a, "AWS_USE_FIPS_ENDPOINT", offsetof(struct awscred_profile, fips), out, why);
}

int awscred_dualstack(struct awscred *a, bool *out, char *why)
{
	return is_wanted(a, "AWS_USE_DUALSTACK_ENDPOINT", offsetof(struct awscred_profile, dualstack), out, why);
}

/* ---- paths ---- */

static void tell(void (*fn)(void *arg, const char *path), void *arg, const char *path)
{
	if (path && *path)
		fn(arg, path);
}

/* The files that the profile and its sources name. */
static void profile_paths(const char *profile, void (*fn)(void *arg, const char *path), void *arg)
{
	CLEANUP_SECRET struct awscred_profiles *p = secret_alloc(sizeof(*p));
	CLEANUP_SECRET char *command = secret_alloc(AWSCRED_COMMAND_MAX);
	char *argv[AWSCRED_ARGS_MAX], why[AWSCRED_WHY], name[128];

	snprintf(name, sizeof(name), "%.127s", awscred_profile_name(profile));
	for (unsigned depth = 0; p && command && depth < 8; depth++) {
		if (awscred_files_load(p, name, NULL, why))
			return;
		tell(fn, arg, AWSCRED_PICK(p, token_file));
		memcpy(command, AWSCRED_PICK(p, process), strlen(AWSCRED_PICK(p, process)) + 1);
		if (*command && !awscred_split(command, argv) && *argv[0] == '/')
			tell(fn, arg, argv[0]);
		if (!*AWSCRED_PICK(p, source))
			return;
		snprintf(name, sizeof(name), "%.127s", AWSCRED_PICK(p, source));
	}
}

void awscred_paths(const char *profile, void (*fn)(void *arg, const char *path), void *arg)
{
	char path[AWSCRED_PATH];

	profile = profile && *profile ? profile : NULL;
	for (enum awscred_file i = AWSCRED_CREDENTIALS; i <= AWSCRED_CONFIG; i++)
		if (!awscred_file_path(path, i))
			fn(arg, path);
	tell(fn, arg, awscred_env("AWS_CA_BUNDLE"));
	tell(fn, arg, awscred_env("AWS_WEB_IDENTITY_TOKEN_FILE"));
	tell(fn, arg, awscred_env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"));
	profile_paths(profile, fn, arg);
}

/* ---- life ---- */

static int keep(char **out, const char *text)
{
	*out = text && *text ? strdup(text) : NULL;
	return text && *text && !*out ? -ENOMEM : 0;
}

int awscred_place_copy(struct awscred_place *out, const char *region, const char *replicas)
{
	out->region = out->replicas = NULL;
	if (!keep(&out->region, region) && !keep(&out->replicas, replicas))
		return 0;
	awscred_place_free(out);
	return -ENOMEM;
}

void awscred_place_free(struct awscred_place *p)
{
	free(p->region);
	free(p->replicas);
	p->region = p->replicas = NULL;
}

static int fill(struct awscred_setup *s, const struct awscred_params *p)
{
	const struct http_params http = { .connect_timeout_ms = p->connect_timeout_ms,
		.max_handles = 2, /* one walk at a time, and the question for the Region */
		.ca_bundle = p->ca_bundle && *p->ca_bundle ? p->ca_bundle : awscred_env("AWS_CA_BUNDLE"),
		.proxy = p->proxy,
		.user_agent = p->user_agent };
	int r = 0;

	if (keep(&s->profile, p->profile) || keep(&s->role_arn, p->role_arn) || keep(&s->external_id, p->external_id) ||
	    keep(&s->session_name, p->session_name))
		return -ENOMEM;
	if (awscred_chain_runs_program(s->profile))
		r = awscred_process_start(&s->process);
	return r ? r : http_open(&s->http, &http);
}

int awscred_open(struct awscred **out, const struct awscred_params *params)
{
	struct awscred *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return -ENOMEM;
	awscred_cache_open(a);
	r = awscred_place_copy(&a->place, params->region, params->replicas);
	if (!r)
		r = fill(&a->setup, params);
	if (r)
		awscred_close(a);
	else
		*out = a;
	return r;
}

void awscred_close(struct awscred *a)
{
	if (!a)
		return;
	awscred_cache_close(a);
	awscred_process_stop(a->setup.process);
	http_close(a->setup.http);
	free(a->setup.profile);
	free(a->setup.role_arn);
	free(a->setup.external_id);
	free(a->setup.session_name);
	awscred_place_free(&a->place);
	free(a);
}
