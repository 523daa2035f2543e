/* kms_pkcs11_internal.h — a key on a token, in layers: the vendor's module, of which a process has one (module), who
 * may use the token (login), a session with the key (session), threads that may get stuck in all this (work), and the
 * provider on top.
 *
 * Locks: a caller of the provider waits for work's only, which is never held across a call into the module. Workers
 * take the module's gate, then login (per token). Nothing is taken under target's lock and the registry's. */
#ifndef BYOKFS_KMS_PKCS11_INTERNAL_H
#define BYOKFS_KMS_PKCS11_INTERNAL_H

#include <stdatomic.h>

#define CRYPTOKI_GNU 1
#include <p11-kit/pkcs11.h>

#include "kms_provider.h"

#define P11_LABEL   33u /* a token's label and its NUL */
#define P11_KEY     129u
#define P11_SECRET  32u
#define P11_IV      12u
#define P11_TAG     16u
#define P11_SEALED  (P11_SECRET + P11_TAG)
#define P11_VERSION 1u
#define P11_BLOB    (1u + P11_IV + P11_SEALED)

/* ---- names: RFC 7512 ---- */

struct p11_name {
	char token[P11_LABEL], key[P11_KEY];
};

/* "pkcs11:token=...;object=..." or a bare key label with the token's label beside it (NULL only with a URI, which must
 * not name another token). 0, or -EINVAL with why filled. Pure. */
MUST_CHECK int p11_name_parse(struct p11_name *out, const char *key, const char *token, char why[static 160]);
/* The one spelling of a name. */
void p11_name_uri(char out[static KMS_KEY_MAX + 1], const struct p11_name *);

/* ---- what an answer of a module means ---- */

/* What may help; each is tried once for one call. */
enum p11_remedy {
	P11_NONE,
	P11_FIND,      /* the key's handle is no good: look for the key again */
	P11_LOGIN,     /* nobody is logged in any more */
	P11_RECONNECT, /* a new session */
	P11_RESTART,   /* C_Finalize, C_Initialize: some modules see a returned token no other way */
	P11_TEST,      /* a wrong blob, or the device? */
};

struct p11_meaning {
	const char *name;
	enum kms_status status;
	enum p11_remedy remedy;
};

/* name may be of a static buffer of the calling thread. Pure otherwise. */
struct p11_meaning p11_meaning(ck_rv_t rv);

/* ---- the module ---- */

struct p11_token {
	struct p11_token *next;
	pthread_mutex_t login;  /* held across C_Login, by workers only */
	_Atomic ck_rv_t refused; /* what C_Login said of the PIN; CKR_OK: nothing */
	bool accepted;           /* the PIN was right once; login */
	char label[P11_LABEL];
};

struct p11_module {
	struct p11_module *next;
	struct ck_function_list *f;
	pthread_rwlock_t gate; /* shared: inside a call; exclusive: C_Initialize, C_Finalize */
	uint64_t generation;   /* how often initialised; gate */
	uint64_t started;      /* io_boot_ms(); gate */
	bool up;               /* gate */
	unsigned users;        /* the registry's lock */
	struct p11_token *tokens;
	char path[];
};

/* Loads the library once per process, for ever: a thread may be stuck in it. Calls nothing of it but
 * C_GetFunctionList. 0, or -errno with why filled. */
MUST_CHECK int p11_module_load(struct p11_module **out, const char *path, char why[static 160]);
/* The process's one record of that token; NULL without memory. */
struct p11_token *p11_module_token(struct p11_module *, const char *label);
/* Users count; the last one to leave finalises. May hang in the module: workers only, as everything below. */
void p11_module_attach(struct p11_module *);
void p11_module_detach(struct p11_module *);
/* Initialises unless that was done; calls are allowed until p11_module_leave(). */
MUST_CHECK ck_rv_t p11_module_enter(struct p11_module *, uint64_t *generation);
void p11_module_leave(struct p11_module *);
/* Not between enter and leave. False: not now, others are inside, or it was done a moment ago. */
bool p11_module_restart(struct p11_module *, uint64_t generation);

/* ---- the PIN ---- */

/* Secret memory of *len bytes; free with secret_free(). 0 or -errno (-EPERM: open to others). */
MUST_CHECK int p11_pin_read(uint8_t **out, size_t *len, const char *path);
/* err filled for one of p11_pin_read()'s errors. */
enum kms_status p11_pin_unusable(struct kms_err *err, const char *path, int r);
/* Logs the process in on that slot. A PIN once refused is not tried again before p11_token_forgive(): tokens lock
 * themselves after a few wrong ones. */
enum kms_status p11_login(struct p11_token *, const struct ck_function_list *, ck_session_handle_t, ck_slot_id_t,
    const char *pin_file, struct kms_err *err);
void p11_token_forgive(struct p11_token *);

/* ---- one call, and the session it runs in ---- */

/* In secret memory. */
struct p11_job {
	struct p11_job *next;
	enum { P11_SEAL, P11_UNSEAL, P11_DESCRIBE } op;
	enum { P11_QUEUED, P11_RUNNING, P11_DONE } state;
	unsigned holders;
	enum kms_status status;
	struct kms_err err;
	size_t aad_len, in_len;
	uint8_t aad[CONTEXT_ENCODED_MAX];
	uint8_t iv[P11_IV];
	uint8_t in[P11_SEALED], out[64];
};

/* Constant after open, but for worked and check. */
struct p11_target {
	struct p11_module *module;
	struct p11_token *token;
	struct p11_name name;
	char *pin_file;
	atomic_bool worked; /* the key has answered in this process */
	pthread_mutex_t lock;
	/* Sealed when the key was first found: another key of the same label does not open it. lock. */
	struct {
		bool made;
		uint8_t iv[P11_IV], sealed[P11_SEALED];
	} check;
};

struct p11_session {
	struct p11_target *target;
	uint64_t generation;
	ck_slot_id_t slot;
	ck_session_handle_t handle;
	ck_object_handle_t key;
	bool open, found;
};

/* Does the job, with the remedies; fills status and err. */
void p11_session_run(struct p11_session *, struct p11_job *);
void p11_session_close(struct p11_session *);

/* ---- workers ---- */

struct p11_work;

/* NULL without memory. */
struct p11_target *p11_target_new(void);
void p11_target_free(struct p11_target *);

/* Starts no thread. Owns target from success on. */
MUST_CHECK int p11_work_open(struct p11_work **out, struct p11_target *, unsigned max);
/* Waits two seconds for workers that are still in the module. What is stuck there frees all when it comes back. */
void p11_work_close(struct p11_work *);
/* NULL without memory. */
struct p11_job *p11_job_new(void);
void p11_job_put(struct p11_work *, struct p11_job *);
/* Runs the job on a worker and waits for it until the deadline. err is filled unless KMS_OK; the job's bytes may be
 * touched only after KMS_OK or before. */
enum kms_status p11_work_do(struct p11_work *, struct p11_job *, uint64_t deadline, struct kms_err *err);

#endif
