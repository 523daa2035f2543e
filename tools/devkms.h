/* devkms.h — what the parts of byokfs-devkms share: a local key service with AWS's protocol, never for production.
 *
 * Requests run on one thread per connection. The lock in struct dk_store guards all keys, aliases and roles, and is
 * held while a change is made durable; data operations copy what they need (struct dk_grant) and compute without it.
 * Functions return 0 or -errno. Those that take a struct dk_call answer -EPERM after dk_fail() has filled the error. */
#ifndef BYOKFS_DEVKMS_H
#define BYOKFS_DEVKMS_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cleanup.h"

#define DK_ID            40u /* "mrk-" and 32 digits, or a UUID: 36 characters */
#define DK_REGION        32u
#define DK_ARN           400u /* of a key or alias */
#define DK_PRINCIPAL     256u
#define DK_MATERIALS     26u      /* the first and 25 rotations on demand */
#define DK_BODY_MAX      1048576u /* a batch of Vault has 128 items */
#define DK_PLAINTEXT_MAX 4096u
#define DK_BLOB_MAX      6144u
#define DK_CONTEXT_MAX   8192u /* characters of all names and values */
#define DK_FAULTS        8u
#define DK_HEADERS       64u

/* --- keys, aliases, roles: devkms_keys.c, devkms_state.c --- */

enum dk_key_state {
	DK_ENABLED,
	DK_DISABLED,
	DK_PENDING_DELETION,
	DK_PENDING_IMPORT,
	DK_PENDING_REPLICA_DELETION,
	DK_UNAVAILABLE,
	DK_CREATING,
	DK_UPDATING,
	DK_STATES
};

struct dk_material {
	uint8_t id[32]; /* KeyMaterialId */
	uint8_t key[32];
	int64_t created;
};

/* Everything related multi-Region keys have in common; a single-Region key is a family of one. */
struct dk_family {
	struct dk_family *next;
	struct dk_key *keys;
	char id[DK_ID];
	char primary[DK_REGION];
	bool multi_region, external, rotation;
	int64_t rotation_since, period_days, rotated_on_demand;
	size_t n;
	struct dk_material material[DK_MATERIALS]; /* the last one is current */
};

/* One key in one Region; state, policy and description are its own. */
struct dk_key {
	struct dk_key *next;
	struct dk_family *family;
	char region[DK_REGION];
	char arn[DK_ARN];
	enum dk_key_state state;
	int64_t created, deletion; /* deletion: when a pending one takes effect */
	char *description, *policy;
};

struct dk_alias {
	struct dk_alias *next;
	struct dk_key *target;
	char name[260]; /* with "alias/" */
	int64_t created;
};

/* Whom STS lets in; the role table is what a test or trial says it is. */
struct dk_role {
	struct dk_role *next;
	char arn[DK_PRINCIPAL];
	char *external_id;        /* NULL: none asked for */
	char *web_identity_token; /* NULL: no web identity */
	int64_t session_seconds;  /* 0: as the caller asks */
};

struct dk_store {
	pthread_mutex_t lock;
	int dir, guard; /* directory, and the descriptor whose flock keeps a second server out */
	struct dk_family *families;
	struct dk_alias *aliases;
	struct dk_role *roles;
	uint8_t token_key[32]; /* seals session tokens */
};

/* --- faults on demand: devkms_fault.c --- */

struct dk_fault {
	int64_t latency_ms, jitter_ms, error_status, blob_size, plaintext_size, clock_skew_s, count;
	double drop_rate, error_rate;
	bool hang, no_request_id, bad_json, huge, truncate_body;
	bool wrong_key_id, wrong_plaintext, deny_access, error_in_header;
	char error_type[64], error_message[256], raw_type[64], raw_body[4096];
	char use[16];       /* "": any */
	char key[160];      /* "": any; else requests that name it so */
	json_t *operations; /* NULL: all. Owned by the table; not to be used in a copy */
};

struct dk_faults {
	pthread_mutex_t lock;
	atomic_uint generation; /* changes when the table does: hung requests look at it */
	atomic_bool stopping;
	atomic_size_t n;
	struct dk_fault fault[DK_FAULTS];
};

/* --- counters and the last requests: devkms_stats.c --- */

struct dk_seen;

struct dk_stats {
	pthread_mutex_t lock;
	json_t *counters;
	struct dk_seen *ring;
	uint64_t next;
};

/* --- Vault: devkms_vault.c --- */

struct dk_vault {
	pthread_mutex_t lock;
	int dir; /* borrowed */
	json_t *doc;
	bool sealed, deny, openbao; /* as told by /_devkms/vault/switch; not kept */
};

/* --- instance and container credentials: what they shall be --- */

struct dk_metadata {
	int64_t session_seconds, status; /* 0: the usual */
	char code[64];                   /* instead of credentials */
	char container_token[256];       /* Authorization asked of containers; "": none */
};

/* --- the server --- */

struct devkms {
	struct dk_store store;
	struct dk_faults faults;
	struct dk_stats stats;
	struct dk_vault vault;
	struct dk_metadata metadata; /* guarded by the store's lock */
	char account[13], region[DK_REGION];
	char access_key[129], secret[129];
};

struct dk_err {
	unsigned int status;
	char type[64];
	char message[1024];
};

struct dk_caller {
	char access_key[129], region[DK_REGION], arn[DK_PRINCIPAL], user_id[128];
};

struct dk_header {
	const char *name, *value;
};

struct dk_request {
	const char *method, *path, *body; /* body is NUL-terminated */
	size_t len, headers;
	struct dk_header header[DK_HEADERS];
	bool query; /* has one; no signed call here may */
	const char *since, *last;
};

struct dk_reply {
	unsigned int status;
	const char *type;
	char *body; /* malloc'ed */
	size_t len;
};

/* One operation under way. */
struct dk_call {
	struct devkms *srv;
	const struct dk_request *req;
	const struct dk_fault *fault;
	struct dk_caller caller;
	const char *operation; /* static text */
	json_t *in, *out;
	int64_t now; /* with the fault's skew */
	char request_id[37];
	struct dk_err err;
	char key[DK_ARN], key_to[DK_ARN]; /* for the statistics */
	json_t *context, *context_to;     /* borrowed from in */
};

/* What a data operation takes out of the store. */
struct dk_grant {
	char arn[DK_ARN], id[DK_ID];
	struct dk_material material;
};
static inline void dk_grant_wipe(struct dk_grant *g)
{
	explicit_bzero(g, sizeof(*g));
}
#define CLEANUP_GRANT __attribute__((cleanup(dk_grant_wipe)))

struct dk_bytes {
	size_t len;
	uint8_t b[DK_BLOB_MAX];
};
static inline void dk_bytes_wipe(struct dk_bytes *b)
{
	explicit_bzero(b, sizeof(*b));
}
#define CLEANUP_BYTES __attribute__((cleanup(dk_bytes_wipe)))

/* devkms_call.c: arguments and answers of one operation */
int dk_fail(struct dk_call *, const char *type, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int dk_deny(struct dk_call *, const char *action, const char *resource);
const char *dk_req_header(const struct dk_request *, const char *name);
void dk_uuid(char out[37]);
/* A required string of min..max characters, or a ValidationException in the words of AWS. */
MUST_CHECK int dk_arg_str(struct dk_call *, const char *member, size_t min, size_t max, const char **out);
/* The same, NULL when absent. */
MUST_CHECK int dk_arg_opt(struct dk_call *, const char *member, size_t min, size_t max, const char **out);
MUST_CHECK int dk_arg_int(
    struct dk_call *, const char *member, int64_t min, int64_t max, int64_t fallback, int64_t *out);
MUST_CHECK int dk_arg_bool(struct dk_call *, const char *member, bool *out);
MUST_CHECK int dk_arg_blob(struct dk_call *, const char *member, size_t max, struct dk_bytes *out);
void dk_put_str(struct dk_call *, const char *member, const char *value);
void dk_put_blob(struct dk_call *, const char *member, const uint8_t *, size_t);
void dk_put_hex(struct dk_call *, const char *member, const uint8_t *, size_t);

/* devkms_keys.c: all under the store's lock */
extern const char *const dk_state_name[DK_STATES];
MUST_CHECK int dk_state_parse(const char *name, enum dk_key_state *out);
/* By id, ARN, alias or alias ARN in the call's Region; keys past their deletion date are gone. */
MUST_CHECK int dk_key_find(struct dk_call *, const char *name, struct dk_key **out);
struct dk_key *dk_key_by_arn(struct dk_store *, const char *arn);
struct dk_key *dk_key_by_id(struct dk_store *, const char *id, const char *region);
struct dk_alias *dk_alias_find(struct dk_store *, const char *name, const char *region);
bool dk_key_gone(const struct dk_key *, int64_t now);
/* 0 when Enabled, else the exception of its state. */
MUST_CHECK int dk_key_usable(struct dk_call *, const struct dk_key *);
MUST_CHECK int dk_family_new(struct dk_store *, bool multi_region, bool external, int64_t now, struct dk_family **out);
/* policy NULL: the usual one. */
MUST_CHECK int dk_key_new(struct devkms *, struct dk_family *, const char *region, const char *description,
    const char *policy, int64_t now, struct dk_key **out);
MUST_CHECK int dk_alias_new(struct dk_store *, const char *name, struct dk_key *, int64_t now);
void dk_alias_delete(struct dk_store *, struct dk_alias *);
/* A fresh current material; -ENOSPC at the limit. */
MUST_CHECK int dk_family_rotate(struct dk_family *, int64_t now);
struct dk_role *dk_role_find(struct dk_store *, const char *arn);
void dk_role_delete(struct dk_store *, struct dk_role *);

/* devkms_state.c */
/* dir and guard are -1 before; dk_store_close() also after a failure. */
MUST_CHECK int dk_store_open(struct devkms *, const char *dir);
/* Lock held. Durable when it returns 0. */
MUST_CHECK int dk_store_save(struct dk_store *);
void dk_store_close(struct dk_store *);

/* devkms_crypto.c: blobs and session tokens */
/* size 0: the usual one. */
MUST_CHECK int dk_blob_seal(const struct dk_grant *, const json_t *context, const uint8_t *plain, size_t len,
    size_t size, struct dk_bytes *out);
/* What a blob says of itself, unauthenticated. -EBADMSG when it is none of ours. */
MUST_CHECK int dk_blob_peek(const struct dk_bytes *, char id[static DK_ID], uint8_t material[static 32]);
MUST_CHECK int dk_blob_open(
    const struct dk_grant *, const json_t *context, const struct dk_bytes *, struct dk_bytes *plain);
/* Seals text into base64, and back; malloc'ed, NULL on failure. */
char *dk_token_seal(const uint8_t key[static 32], const char *text);
char *dk_token_open(const uint8_t key[static 32], const char *token);

/* devkms_sigv4.c: checks the signature for service; fills call->caller or the error. */
MUST_CHECK int dk_sigv4_check(struct dk_call *, const char *service);

/* devkms_kms.c, devkms_data.c, devkms_manage.c, devkms_alias.c: the operations of TrentService */
/* The operation's static name, or NULL. */
const char *dk_kms_operation(const char *target);
MUST_CHECK int dk_kms_run(struct dk_call *);
int dk_encrypt(struct dk_call *);
int dk_decrypt(struct dk_call *);
int dk_reencrypt(struct dk_call *);
int dk_generate_data_key(struct dk_call *);
int dk_generate_data_key_without_plaintext(struct dk_call *);
int dk_generate_random(struct dk_call *);
int dk_create_key(struct dk_call *);
int dk_describe_key(struct dk_call *);
int dk_list_keys(struct dk_call *);
int dk_enable_key(struct dk_call *);
int dk_disable_key(struct dk_call *);
int dk_schedule_key_deletion(struct dk_call *);
int dk_cancel_key_deletion(struct dk_call *);
int dk_replicate_key(struct dk_call *);
int dk_create_alias(struct dk_call *);
int dk_update_alias(struct dk_call *);
int dk_delete_alias(struct dk_call *);
int dk_list_aliases(struct dk_call *);
int dk_get_key_policy(struct dk_call *);
int dk_put_key_policy(struct dk_call *);
int dk_get_key_rotation_status(struct dk_call *);
int dk_enable_key_rotation(struct dk_call *);
int dk_disable_key_rotation(struct dk_call *);
int dk_rotate_key_on_demand(struct dk_call *);
int dk_list_key_rotations(struct dk_call *);
/* Saves, or the exception KMSInternalException. Lock held. */
MUST_CHECK int dk_commit(struct dk_call *);
/* The required KeyId, resolved. Lock held. */
MUST_CHECK int dk_arg_key(struct dk_call *, struct dk_key **out);

/* Limit and Marker of the list operations: call for each candidate, says whether it belongs to the page. */
struct dk_page {
	int64_t limit, first, at;
	bool truncated;
};
MUST_CHECK int dk_page_begin(struct dk_call *, int64_t fallback, struct dk_page *);
bool dk_page_take(struct dk_page *);
void dk_page_end(struct dk_call *, const struct dk_page *);

/* devkms_sts.c */
const char *dk_sts_operation(const struct dk_request *);
MUST_CHECK int dk_sts_run(struct dk_call *, struct dk_reply *);
MUST_CHECK int dk_sts_error(const struct dk_call *, struct dk_reply *);
/* Looks up an access key: a configured one, or a session's whose token verifies. */
struct dk_credential {
	char secret[129];
	int64_t expires; /* 0: never */
};
static inline void dk_credential_wipe(struct dk_credential *c)
{
	explicit_bzero(c, sizeof(*c));
}
#define CLEANUP_CREDENTIAL __attribute__((cleanup(dk_credential_wipe)))
MUST_CHECK int dk_credential_find(struct dk_call *, const char *access_key, const char *token, struct dk_credential *);
struct dk_session {
	char access_key[24], secret[48], expiration[21];
	char *token;
};
MUST_CHECK int dk_session_new(
    struct devkms *, const char *arn, const char *user_id, int64_t expires, struct dk_session *);

/* devkms_imds.c: the instance metadata service, version 2, and containers' endpoint */
MUST_CHECK int dk_imds_run(struct devkms *, const struct dk_request *, struct dk_reply *);
MUST_CHECK int dk_container_run(struct devkms *, const struct dk_request *, struct dk_reply *);

/* devkms_admin.c: /_devkms/ */
MUST_CHECK int dk_admin_run(struct devkms *, const struct dk_request *, struct dk_reply *);
MUST_CHECK int dk_reply_json(struct dk_reply *, unsigned int status, json_t *steals);

/* devkms_vault.c: the transit engine of HashiCorp Vault and OpenBao below /v1/, and its control */
MUST_CHECK int dk_vault_load(struct dk_vault *, int dir);
void dk_vault_close(struct dk_vault *);
/* -ECANCELED: say nothing, close. */
MUST_CHECK int dk_vault_run(struct devkms *, const struct dk_request *, int client_fd, struct dk_reply *);
MUST_CHECK int dk_vault_admin(struct devkms *, const struct dk_request *, struct dk_reply *);

/* devkms_fault.c */
void dk_faults_init(struct dk_faults *);
/* Replaces the table by an object or an array of objects; why: 160 bytes. */
MUST_CHECK int dk_faults_set(struct dk_faults *, const json_t *, char *why);
void dk_faults_clear(struct dk_faults *);
/* Ends every waiting request, for good. */
void dk_faults_stop(struct dk_faults *);
json_t *dk_faults_show(struct dk_faults *);
/* The first fault for operation, copied; false when there is none. */
bool dk_fault_pick(struct dk_faults *, const char *operation, const char *body, struct dk_fault *out);
/* Sleeps as the fault says; -ECANCELED when the client went away, the table changed while hanging, or the
 * server stops. */
MUST_CHECK int dk_fault_wait(struct dk_faults *, const struct dk_fault *, int client_fd);
bool dk_fault_chance(double rate);
/* Damages the answer to a successful operation. */
void dk_fault_spoil(struct dk_call *);
void dk_fault_spoil_body(const struct dk_fault *, struct dk_reply *);

/* devkms_stats.c */
MUST_CHECK int dk_stats_init(struct dk_stats *);
void dk_stats_free(struct dk_stats *);
void dk_stats_add(struct dk_stats *, const struct dk_call *, const char *result);
void dk_stats_reset(struct dk_stats *);
json_t *dk_stats_show(struct dk_stats *, uint64_t since, uint64_t last);

/* devkms_http.c */
struct dk_server;
MUST_CHECK int dk_server_start(
    struct devkms *, uint32_t address, uint16_t port, struct dk_server **out, uint16_t *bound);
void dk_server_stop(struct dk_server *);

/* devkms_client.c: `byokfs-devkms status|enable|disable` */
int dk_client_main(int argc, char **argv);

#endif
