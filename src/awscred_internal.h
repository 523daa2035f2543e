/* awscred_internal.h — what the files of awscred share: one profile, one walk through the chain, and its sources. */
#ifndef BYOKFS_AWSCRED_INTERNAL_H
#define BYOKFS_AWSCRED_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "awsclock.h"
#include "awscred.h"
#include "http.h"
#include "secret.h"

#define AWSCRED_TOKEN_MAX   8192u
#define AWSCRED_PATH        4096u
#define AWSCRED_COMMAND_MAX 2048u
#define AWSCRED_ARGS_MAX    64u
#define AWSCRED_NONE        1 /* of a source: it is not set up here, ask the next one */

static inline void cleanup_secret(void *p)
{
	secret_free(*(void **)p);
}
#define CLEANUP_SECRET __attribute__((cleanup(cleanup_secret)))
#define CLEANUP_RESP   __attribute__((cleanup(http_response_free)))

/* ---- profiles: awscred_ini.c reads one file, awscred_file.c both ---- */

/* Which of the two files: sections are named differently. */
enum awscred_file { AWSCRED_CREDENTIALS, AWSCRED_CONFIG };

/* One profile in one file. Lives in secret memory. Empty text: not given. */
struct awscred_profile {
	bool found;
	const char *unsupported; /* what this profile would need, in words; NULL when nothing */
	char access_key[129], secret_key[129], token[AWSCRED_TOKEN_MAX];
	char region[64], endpoint[512], services[128];
	char service_endpoint[512]; /* of the [services] section; filled by awscred_ini_service() */
	char ignore_endpoints[8], fips[8], dualstack[8];
	char role_arn[256], source[128], credential_source[32], external_id[1226], session_name[66], duration[8];
	char token_file[1024], process[AWSCRED_COMMAND_MAX];
};

struct awscred_profiles {
	struct awscred_profile file[2]; /* by enum awscred_file */
};

/* What tells one state of the two files from another. */
struct awscred_seen {
	struct stat st[2]; /* st_ino 0: no file */
};

/* Text of a file, cut up in place. `where` is its path, for messages. 0 or -EINVAL with why. */
MUST_CHECK int awscred_ini_profile(
    struct awscred_profile *out, enum awscred_file, char *text, const char *profile, const char *where, char *why);
/* The endpoint_url of `service` in [services out->services]. */
MUST_CHECK int awscred_ini_service(
    struct awscred_profile *out, char *text, const char *service, const char *where, char *why);

/* A variable, NULL when unset or empty. */
const char *awscred_env(const char *name);
/* "true" in any case. */
bool awscred_true(const char *text);
/* Writes why, returns error. */
int awscred_say(char *why, int error, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* NULL: the environment decides. */
const char *awscred_profile_name(const char *given);
/* 0, -ENOENT (no home directory) or -ENAMETOOLONG. */
MUST_CHECK int awscred_file_path(char out[static AWSCRED_PATH], enum awscred_file);
/* Both files' idea of a profile; neither need exist. 0 or -errno with why. service: fill service_endpoint too. */
MUST_CHECK int awscred_files_load(struct awscred_profiles *out, const char *profile, const char *service, char *why);
/* Blocks for as long as the file system does. */
void awscred_files_look(struct awscred_seen *);
bool awscred_files_same(const struct awscred_seen *, const struct awscred_seen *);
/* A small text file into secret memory, NUL-terminated, blanks at its end cut; 0 or -errno with why. */
MUST_CHECK int awscred_read_small(char **out, const char *path, size_t max, char *why);
/* The member at this offset: the credentials file's (roles and keys), or the config file's first (settings). */
const char *awscred_pick(const struct awscred_profiles *, size_t offset);
const char *awscred_setting(const struct awscred_profiles *, size_t offset);
#define AWSCRED_PICK(p, member)    awscred_pick(p, offsetof(struct awscred_profile, member))
#define AWSCRED_SETTING(p, member) awscred_setting(p, offsetof(struct awscred_profile, member))

/* ---- one walk through the chain ---- */

/* How long an answer may be used: until the environment is asked again (each time), until the files change, until a
 * time. */
enum awscred_kind { AWSCRED_ENV, AWSCRED_FILES, AWSCRED_TIMED };

struct awscred_answer {
	struct sigv4_credentials *cred; /* secret memory; NULL: none */
	enum awscred_kind kind;
	int64_t expires; /* Unix seconds, for people; 0: never */
	uint64_t from, until; /* io_boot_ms(), when AWSCRED_TIMED: neither clock steps nor suspend lengthen it */
	char identity[256];
};

struct awscred_process;

/* What a walk needs; constant after open but for what is atomic. */
struct awscred_setup {
	char *profile, *role_arn, *external_id, *session_name; /* NULL: not given */
	struct http *http;
	struct awsclock sts_clock;
	struct awscred_process *process; /* NULL: no profile wanted one when the process began */
	atomic_bool stopping;
	atomic_bool instance; /* IMDS has given credentials: its silence is an outage then */
};

/* Whose STS is asked. */
struct awscred_place {
	char *region, *replicas; /* NULL: not given */
};

/* 0 or -ENOMEM; out then holds nothing. */
MUST_CHECK int awscred_place_copy(struct awscred_place *out, const char *region, const char *replicas);
void awscred_place_free(struct awscred_place *);

struct awscred_walk {
	struct awscred_setup *setup;
	const struct awscred_place *place;
	uint64_t deadline;
	char *why;
	struct awscred_answer *out;
};

/* Everything from environment to instance, and the configured role on top. 0 or -errno with why; out->cred only when
 * 0. */
MUST_CHECK int awscred_chain(struct awscred_walk *);
/* Does the chain, as files and environment are now, come to ask the instance? */
bool awscred_chain_ends_at_imds(const char *profile);
/* Would it run a program? */
bool awscred_chain_runs_program(const char *profile);

/* awscred_answer.c: the answer put together. expiration: ISO 8601, NULL or "": none given, then it serves 15 minutes;
 * now: Unix seconds by the giver's clock. 0, -EINVAL, -ETIMEDOUT (has expired already), -ENOMEM. */
MUST_CHECK int awscred_answer_set(struct awscred_walk *, const char *access, const char *secret, const char *token,
    const char *expiration, int64_t now);
/* The same without an end. */
MUST_CHECK int awscred_answer_lasting(
    struct awscred_walk *, enum awscred_kind, const char *access, const char *secret, const char *token);
/* From a JSON document of IMDS, a container endpoint or a program; token: the name of its token member; source: for
 * messages. Also -EINVAL when Code is there and not "Success". */
MUST_CHECK int awscred_answer_json(struct awscred_walk *, const char *text, size_t len, const char *token,
    const char *source, int64_t now);
/* One request to a metadata service, without proxies, within `ms`. 0 or http_do()'s error. */
MUST_CHECK int awscred_fetch(struct awscred_walk *, const char *method, const char *url, const char *header,
    const char *header2, uint64_t ms, struct http_response *, char *why);
/* The giver's clock, if it tells one. */
int64_t awscred_answer_now(const struct http_response *);

/* ---- sources: 0, AWSCRED_NONE, or -errno with why ---- */

struct awscred_role {
	const char *arn, *session, *external_id; /* NULL or "": default, none */
	const char *token_file;                  /* web identity, unsigned */
	unsigned seconds;
};

/* Turns the answer so far (or, with token_file, none) into the role's. -EACCES: STS denies it. */
MUST_CHECK int awscred_sts_assume(struct awscred_walk *, const struct awscred_role *);
/* quick: a silent service is no error but AWSCRED_NONE. */
MUST_CHECK int awscred_imds(struct awscred_walk *, bool quick);
bool awscred_imds_off(void);
/* out holds 64; "" when it does not say. */
void awscred_imds_region(struct awscred_walk *, char *out);
MUST_CHECK int awscred_container(struct awscred_walk *);
bool awscred_container_set(void);
/* The URL asked; -EINVAL with why when its host must not be spoken to. */
MUST_CHECK int awscred_container_url(char out[static 1024], char *why);

/* ---- programs ---- */

/* Forks the helper. Nothing of the caller's but the environment goes into it. */
MUST_CHECK int awscred_process_start(struct awscred_process **out);
/* Kills what still runs; takes some seconds at most. */
void awscred_process_stop(struct awscred_process *);
/* What the program prints, in secret memory. A run that outlasts its deadline goes on, and is met by the next call for
 * the same command. One call at a time. 0, -ETIMEDOUT, -EINVAL (it failed) or -errno, with why. */
MUST_CHECK int awscred_process_run(struct awscred_process *, const char *command, uint64_t deadline,
    const atomic_bool *stopping, char **out, size_t *len, char *why);
/* Words as a POSIX shell would split them, in place; argv is NULL-terminated. 0, -EINVAL (a quote that does not end,
 * nothing there), -E2BIG. Pure. */
MUST_CHECK int awscred_split(char *text, char *argv[static AWSCRED_ARGS_MAX]);

#endif
