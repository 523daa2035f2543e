/* kms_pkcs11_session.c — one session on the token, and sealing in it.
 *
 * Hides: finding token and key by their labels, what a key must be like, and how a session comes back after whatever
 * happened to it. Runs on a worker thread, because no call into a module can be given up. */
#include <string.h>

#include "io.h"
#include "kms_pkcs11_internal.h"
#include "secret.h"

#define SLOTS_MAX 256ul

static const char *token_of(const struct p11_session *s)
{
	return s->target->name.token;
}

static struct ck_function_list *functions(const struct p11_session *s)
{
	return s->target->module->f;
}

/* A return value as a failure; the remedy, if any, in *remedy. */
static enum kms_status failed(
    const struct p11_session *s, struct kms_err *err, enum p11_remedy *remedy, ck_rv_t rv, const char *call)
{
	struct p11_meaning m = p11_meaning(rv);

	*remedy = m.remedy;
	return kms_fail(err, m.status, m.name, "%s on token '%s' failed", call, token_of(s));
}

/* ---- the token ---- */

/* Labels are padded with blanks. */
static bool labelled(const struct ck_token_info *info, const char *label)
{
	size_t n = strlen(label);

	if (n > sizeof(info->label) || strncmp((const char *)info->label, label, n))
		return false;
	while (n < sizeof(info->label) && info->label[n] == ' ')
		n++;
	return n == sizeof(info->label);
}

static bool token_in(const struct p11_session *s, ck_slot_id_t slot)
{
	struct ck_token_info info;

	memset(&info, 0, sizeof(info));
	return functions(s)->C_GetTokenInfo(slot, &info) == CKR_OK && labelled(&info, token_of(s));
}

static enum kms_status find_token(struct p11_session *s, struct kms_err *err, enum p11_remedy *remedy)
{
	ck_slot_id_t slots[SLOTS_MAX];
	unsigned long n = SLOTS_MAX, found = 0;
	ck_rv_t rv = functions(s)->C_GetSlotList(1, slots, &n);

	if (rv != CKR_OK)
		return failed(s, err, remedy, rv, "C_GetSlotList");
	for (unsigned long i = 0; i < n && i < SLOTS_MAX; i++)
		if (token_in(s, slots[i])) {
			s->slot = slots[i];
			found++;
		}
	if (found == 1)
		return KMS_OK;
	if (found)
		return kms_fail(err, KMS_CONFIG, "AmbiguousToken", "%lu tokens are labelled '%s'", found, token_of(s));
	*remedy = P11_RESTART;
	return kms_fail(err, KMS_DOWN, "CKR_TOKEN_NOT_PRESENT", "no token is labelled '%s'", token_of(s));
}

static void disconnect(struct p11_session *s)
{
	if (s->open)
		(void)functions(s)->C_CloseSession(s->handle);
	s->open = s->found = false;
}

static enum kms_status connect_token(struct p11_session *s, struct kms_err *err, enum p11_remedy *remedy)
{
	enum kms_status status = find_token(s, err, remedy);
	ck_rv_t rv;

	if (status != KMS_OK)
		return status;
	rv = functions(s)->C_OpenSession(s->slot, CKF_SERIAL_SESSION, NULL, NULL, &s->handle);
	if (rv != CKR_OK)
		return failed(s, err, remedy, rv, "C_OpenSession");
	s->open = true;
	s->found = false;
	status = p11_login(s->target->token, functions(s), s->handle, s->slot, s->target->pin_file, err);
	if (status != KMS_OK)
		disconnect(s);
	return status;
}

/* ---- the key ---- */

static ck_rv_t search(struct p11_session *s, ck_object_handle_t found[static 2], unsigned long *n)
{
	struct ck_function_list *f = functions(s);
	ck_object_class_t class = CKO_SECRET_KEY;
	ck_key_type_t type = CKK_AES;
	struct p11_name *name = &s->target->name;
	unsigned char yes = 1;
	struct ck_attribute want[] = { { CKA_CLASS, &class, sizeof(class) }, { CKA_KEY_TYPE, &type, sizeof(type) },
		{ CKA_TOKEN, &yes, sizeof(yes) }, { CKA_LABEL, name->key, strlen(name->key) } };
	ck_rv_t rv = f->C_FindObjectsInit(s->handle, want, sizeof(want) / sizeof(want[0])), end;

	*n = 0;
	if (rv != CKR_OK)
		return rv;
	rv = f->C_FindObjects(s->handle, found, 2, n);
	end = f->C_FindObjectsFinal(s->handle);
	return rv != CKR_OK ? rv : end;
}

/* Nothing was found: is that so, or can this session no longer see? */
static enum kms_status missing(struct p11_session *s, struct kms_err *err, enum p11_remedy *remedy)
{
	struct ck_session_info info;
	struct ck_token_info token;
	ck_rv_t rv;

	memset(&info, 0, sizeof(info));
	memset(&token, 0, sizeof(token));
	rv = functions(s)->C_GetTokenInfo(s->slot, &token);
	if (rv != CKR_OK || !labelled(&token, token_of(s))) {
		*remedy = P11_RECONNECT;
		return kms_fail(err, KMS_DOWN, "CKR_TOKEN_NOT_PRESENT", "token '%s' does not answer", token_of(s));
	}
	rv = functions(s)->C_GetSessionInfo(s->handle, &info);
	if (rv != CKR_OK)
		return failed(s, err, remedy, rv, "C_GetSessionInfo");
	if (token.flags & CKF_LOGIN_REQUIRED && info.state != CKS_RO_USER_FUNCTIONS &&
	    info.state != CKS_RW_USER_FUNCTIONS) {
		*remedy = P11_LOGIN;
		return kms_fail(err, KMS_CONFIG, "CKR_USER_NOT_LOGGED_IN", "not logged in to token '%s'", token_of(s));
	}
	return kms_fail(err, KMS_DENIED, "NoSuchKey", "no AES key is labelled '%s' on token '%s'", s->target->name.key,
	    token_of(s));
}

/* A key that could leave the token, or of which the token will not say, is not the kind that is promised. */
static enum kms_status judge(struct p11_session *s, struct kms_err *err)
{
	unsigned long size = 0;
	unsigned char extractable = 1, sensitive = 0, encrypts = 0, decrypts = 0;
	struct ck_attribute a[] = { { CKA_VALUE_LEN, &size, sizeof(size) },
		{ CKA_EXTRACTABLE, &extractable, sizeof(extractable) },
		{ CKA_SENSITIVE, &sensitive, sizeof(sensitive) }, { CKA_ENCRYPT, &encrypts, sizeof(encrypts) },
		{ CKA_DECRYPT, &decrypts, sizeof(decrypts) } };
	ck_rv_t rv = functions(s)->C_GetAttributeValue(s->handle, s->key, a, sizeof(a) / sizeof(a[0]));
	const char *key = s->target->name.key;

	if (rv != CKR_OK) {
		struct p11_meaning m = p11_meaning(rv);

		return kms_fail(err, m.status == KMS_BAD_BLOB ? KMS_CONFIG : m.status, m.name,
		    "the token does not describe key '%s'", key);
	}
	if (size != P11_SECRET)
		return kms_fail(err, KMS_CONFIG, "WrongKey", "key '%s' is AES with %lu bits, not 256", key, size * 8);
	if (extractable || !sensitive)
		return kms_fail(err, KMS_CONFIG, "ExtractableKey",
		    "key '%s' could be read from the token: make one that is sensitive and not extractable", key);
	if (!encrypts || !decrypts)
		return kms_fail(
		    err, KMS_DENIED, "CKR_KEY_FUNCTION_NOT_PERMITTED", "key '%s' may not encrypt and decrypt", key);
	return KMS_OK;
}

/* ---- sealing ---- */

static ck_rv_t crypt_gcm(struct p11_session *s, struct p11_job *j, bool sealing, unsigned long *len, const char **call)
{
	struct ck_function_list *f = functions(s);
	struct ck_gcm_params gcm = { .iv_ptr = j->iv,
		.iv_len = P11_IV,
		.iv_bits = 8ul * P11_IV,
		.aad_ptr = j->aad,
		.aad_len = j->aad_len,
		.tag_bits = 8ul * P11_TAG };
	struct ck_mechanism mechanism = { CKM_AES_GCM, &gcm, sizeof(gcm) };
	ck_rv_t rv;

	*len = sizeof(j->out);
	*call = sealing ? "C_EncryptInit" : "C_DecryptInit";
	rv = (sealing ? f->C_EncryptInit : f->C_DecryptInit)(s->handle, &mechanism, s->key);
	if (rv != CKR_OK)
		return rv;
	*call = sealing ? "C_Encrypt" : "C_Decrypt";
	return (sealing ? f->C_Encrypt : f->C_Decrypt)(s->handle, j->in, j->in_len, j->out, len);
}

/* A token may replace the nonce by one of its own: it is taken from the job afterwards. */
static enum kms_status seal(struct p11_session *s, struct p11_job *j, struct kms_err *err, enum p11_remedy *remedy)
{
	unsigned long len;
	const char *call;
	ck_rv_t rv;

	secret_random(j->iv, P11_IV);
	rv = crypt_gcm(s, j, true, &len, &call);
	if (rv != CKR_OK) {
		enum kms_status status = failed(s, err, remedy, rv, call);

		/* What could only be said of a sealed key makes no sense here. */
		return status == KMS_BAD_BLOB ? (err->status = KMS_CONFIG) : status;
	}
	if (len != P11_SEALED)
		return kms_fail(err, KMS_CONFIG, "UnexpectedBlob", "token '%s' sealed into %lu bytes instead of %u",
		    token_of(s), len, P11_SEALED);
	return KMS_OK;
}

/* Does the key still do what it is for? */
static enum kms_status test_seal(
    struct p11_session *s, const struct p11_job *j, struct kms_err *err, enum p11_remedy *remedy)
{
	struct p11_job *test = p11_job_new();
	enum kms_status status;

	if (!test)
		return KMS_DOWN;
	test->in_len = P11_SECRET;
	memcpy(test->aad, j->aad, j->aad_len);
	test->aad_len = j->aad_len;
	status = seal(s, test, err, remedy);
	secret_free(test);
	return status;
}

static enum kms_status unseal_once(
    struct p11_session *s, struct p11_job *j, struct kms_err *err, enum p11_remedy *remedy)
{
	unsigned long len;
	const char *call;
	ck_rv_t rv = crypt_gcm(s, j, false, &len, &call);

	if (rv == CKR_OK && len == P11_SECRET)
		return KMS_OK;
	if (rv == CKR_OK)
		return kms_fail(
		    err, KMS_BAD_BLOB, "UnexpectedSecret", "the token unsealed %lu bytes instead of 32", len);
	return failed(s, err, remedy, rv, call);
}

/* "General error" is the blob's fault if the key seals something and still does not open this: a device's passing
 * trouble may end just before the test. */
static enum kms_status unseal(struct p11_session *s, struct p11_job *j, struct kms_err *err, enum p11_remedy *remedy)
{
	enum kms_status status = unseal_once(s, j, err, remedy);
	struct kms_err again;

	if (*remedy != P11_TEST)
		return status;
	*remedy = P11_NONE;
	status = test_seal(s, j, err, remedy);
	if (status != KMS_OK)
		return status;
	status = unseal_once(s, j, err, remedy);
	if (*remedy != P11_TEST)
		return status;
	*remedy = P11_NONE;
	again = *err;
	return kms_fail(
	    err, KMS_BAD_BLOB, again.code, "not sealed under key '%s' for this context", s->target->name.key);
}

/* ---- is it the key it was? ---- */

/* Seals the check, unless another worker was first. */
static enum kms_status make_check(
    struct p11_session *s, struct p11_job *j, struct kms_err *err, enum p11_remedy *remedy)
{
	struct p11_target *t = s->target;
	enum kms_status status;

	j->in_len = P11_SECRET;
	status = seal(s, j, err, remedy);
	if (status != KMS_OK)
		return status;
	LOCK_SCOPE(&t->lock);
	if (!t->check.made) {
		memcpy(t->check.iv, j->iv, P11_IV);
		memcpy(t->check.sealed, j->out, P11_SEALED);
		t->check.made = true;
	}
	return KMS_OK;
}

static bool take_check(struct p11_target *t, struct p11_job *j)
{
	LOCK_SCOPE(&t->lock);
	memcpy(j->iv, t->check.iv, P11_IV);
	memcpy(j->in, t->check.sealed, P11_SEALED);
	j->in_len = P11_SEALED;
	return t->check.made;
}

/* A key replaced by another is as much a revocation as one destroyed; and nothing may be sealed under it. */
static enum kms_status recognise(struct p11_session *s, struct kms_err *err, enum p11_remedy *remedy)
{
	static const char aad[] = "byokfs1/pkcs11 check";
	struct p11_job *j = p11_job_new();
	enum kms_status status = KMS_OK;

	if (!j)
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "no locked memory left for the token's answer");
	memcpy(j->aad, aad, sizeof(aad) - 1);
	j->aad_len = sizeof(aad) - 1;
	if (!take_check(s->target, j)) {
		explicit_bzero(j->in, sizeof(j->in));
		status = make_check(s, j, err, remedy);
		(void)take_check(s->target, j);
	}
	if (status == KMS_OK)
		status = unseal(s, j, err, remedy);
	secret_free(j);
	if (status == KMS_BAD_BLOB)
		return kms_fail(err, KMS_DENIED, "OtherKey", "another key is now labelled '%s' on token '%s'",
		    s->target->name.key, token_of(s));
	return status;
}

static enum kms_status find_key(struct p11_session *s, struct kms_err *err, enum p11_remedy *remedy)
{
	ck_object_handle_t found[2] = { 0 };
	unsigned long n;
	enum kms_status status;
	ck_rv_t rv = search(s, found, &n);

	if (rv != CKR_OK)
		return failed(s, err, remedy, rv, "C_FindObjects");
	if (n > 1)
		return kms_fail(err, KMS_CONFIG, "AmbiguousKey", "several AES keys are labelled '%s' on token '%s'",
		    s->target->name.key, token_of(s));
	if (!n)
		return missing(s, err, remedy);
	s->key = found[0];
	status = judge(s, err);
	if (status == KMS_OK)
		status = recognise(s, err, remedy);
	s->found = status == KMS_OK;
	return status;
}

/* ---- a call, and what to do when it fails ---- */

/* Between enter and leave. */
static enum kms_status attempt(struct p11_session *s, struct p11_job *j, struct kms_err *err, enum p11_remedy *remedy)
{
	enum kms_status status = KMS_OK;

	if (!s->open) {
		status = connect_token(s, err, remedy);
		if (status == KMS_DOWN)
			*remedy = P11_RESTART;
	}
	if (j->op == P11_DESCRIBE)
		s->found = false; /* what is remembered proves nothing */
	if (status == KMS_OK && !s->found)
		status = find_key(s, err, remedy);
	if (status != KMS_OK || j->op == P11_DESCRIBE)
		return status;
	return j->op == P11_SEAL ? seal(s, j, err, remedy) : unseal(s, j, err, remedy);
}

static bool remedied(struct p11_session *s, enum p11_remedy remedy, struct kms_err *err)
{
	switch (remedy) {
	case P11_FIND:
		s->found = false;
		return true;
	case P11_LOGIN:
		return p11_login(s->target->token, functions(s), s->handle, s->slot, s->target->pin_file, err) ==
		    KMS_OK;
	case P11_RECONNECT:
	case P11_TEST:
		disconnect(s);
		return true;
	case P11_RESTART:
		disconnect(s);
		return false; /* outside the gate */
	default:
		return false;
	}
}

/* Each remedy once; where a new session does not help, a new start of the module may. */
static bool untried(unsigned *tried, enum p11_remedy *remedy)
{
	bool fresh;

	if (*tried & 1u << *remedy && (*remedy == P11_RECONNECT || *remedy == P11_TEST))
		*remedy = P11_RESTART;
	fresh = !(*tried & 1u << *remedy);
	*tried |= 1u << *remedy;
	return fresh;
}

/* One attempt and the remedy for its failure. True: try again. */
static bool turn(struct p11_session *s, struct p11_job *j, unsigned *tried)
{
	struct p11_module *m = s->target->module;
	enum p11_remedy remedy = P11_NONE;
	uint64_t generation;
	bool fresh = false, again = false;
	ck_rv_t rv = p11_module_enter(m, &generation);

	if (rv != CKR_OK) {
		j->status = failed(s, &j->err, &remedy, rv, "C_Initialize");
		return false;
	}
	if (s->generation != generation)
		s->open = s->found = false; /* C_Finalize closed it */
	s->generation = generation;
	j->status = attempt(s, j, &j->err, &remedy);
	if (j->status != KMS_OK) {
		fresh = untried(tried, &remedy);
		again = fresh && remedied(s, remedy, &j->err);
		j->status = j->err.status;
	}
	if (j->status == KMS_DOWN && !again)
		disconnect(s);
	p11_module_leave(m);
	return again || (fresh && remedy == P11_RESTART && p11_module_restart(m, generation));
}

void p11_session_run(struct p11_session *s, struct p11_job *j)
{
	unsigned tried = 0;

	for (unsigned turns = 0; turns < 8 && turn(s, j, &tried); turns++)
		;
	if (j->status == KMS_OK) {
		memset(&j->err, 0, sizeof(j->err));
		atomic_store(&s->target->worked, true);
	} else if (j->status == KMS_DENIED && !atomic_load(&s->target->worked)) {
		j->status = j->err.status = KMS_CONFIG; /* nobody took away what never was */
	}
}

void p11_session_close(struct p11_session *s)
{
	uint64_t generation;

	if (!s->open || p11_module_enter(s->target->module, &generation) != CKR_OK)
		return;
	if (generation == s->generation)
		disconnect(s);
	s->open = false;
	p11_module_leave(s->target->module);
}
