/* fake_pkcs11.c — a PKCS#11 module that fails as told. Its encryption is none: XOR and a checksum. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_pkcs11.h"


static struct fake fake;
static const char *hang_file;
static atomic_bool up, absent_at_start;
static atomic_ulong last_session, searches;

/* Whether the call fails, and how. */
static bool told(enum fake_call call, ck_rv_t *rv)
{
	unsigned left = atomic_load(&fake.times[call]);

	atomic_fetch_add(&fake.calls[call], 1);
	while (left && !atomic_compare_exchange_weak(&fake.times[call], &left, left - 1))
		;
	*rv = left ? atomic_load(&fake.answer[call]) : CKR_OK;
	return *rv != CKR_OK;
}

static bool visible(void)
{
	return fake.present && !(fake.sees_late && absent_at_start);
}

static ck_rv_t session_is(ck_session_handle_t s)
{
	if (!up)
		return CKR_CRYPTOKI_NOT_INITIALIZED;
	return s >= fake.first_session && s <= last_session && visible() ? CKR_OK : CKR_SESSION_HANDLE_INVALID;
}

static ck_rv_t initialize(void *args)
{
	const struct ck_c_initialize_args *a = args;
	ck_rv_t rv;

	if (told(FAKE_INITIALIZE, &rv))
		return rv;
	if (up)
		return CKR_CRYPTOKI_ALREADY_INITIALIZED;
	if (!(a->flags & CKF_OS_LOCKING_OK))
		return CKR_CANT_LOCK;
	absent_at_start = !fake.present;
	up = true;
	return CKR_OK;
}

static ck_rv_t finalize(void *reserved)
{
	(void)reserved;
	atomic_fetch_add(&fake.calls[FAKE_FINALIZE], 1);
	up = fake.loggedin = false;
	fake.sessions = 0;
	fake.first_session = last_session + 1;
	return CKR_OK;
}

static ck_rv_t get_slot_list(unsigned char present, ck_slot_id_t *list, unsigned long *n)
{
	ck_rv_t rv;

	(void)present;
	if (told(FAKE_SLOTS, &rv))
		return rv;
	*n = visible() ? fake.tokens + 1 : 1;
	for (unsigned long i = 0; i < *n; i++)
		list[i] = 10 + i;
	return CKR_OK;
}

static ck_rv_t get_token_info(ck_slot_id_t slot, struct ck_token_info *info)
{
	ck_rv_t rv;

	if (told(FAKE_TOKEN_INFO, &rv))
		return rv;
	if (slot > 10 && !visible())
		return CKR_TOKEN_NOT_PRESENT;
	memset(info, 0, sizeof(*info));
	memset(info->label, ' ', sizeof(info->label));
	memcpy(info->label, slot == 10 ? "faked" : "fake", slot == 10 ? 5 : 4);
	info->flags = CKF_TOKEN_INITIALIZED | CKF_LOGIN_REQUIRED | fake.flags;
	return CKR_OK;
}

static ck_rv_t open_session(
    ck_slot_id_t slot, ck_flags_t flags, void *application, ck_notify_t notify, ck_session_handle_t *s)
{
	ck_rv_t rv;

	(void)application;
	(void)notify;
	if (told(FAKE_OPEN, &rv))
		return rv;
	if (!up || slot == 10 || !visible() || !(flags & CKF_SERIAL_SESSION))
		return CKR_SLOT_ID_INVALID;
	*s = atomic_fetch_add(&last_session, 1) + 1;
	fake.sessions++;
	return CKR_OK;
}

static ck_rv_t close_session(ck_session_handle_t s)
{
	ck_rv_t rv = session_is(s);

	if (rv == CKR_OK && fake.sessions && --fake.sessions == 0)
		fake.loggedin = false;
	return rv;
}

static ck_rv_t get_session_info(ck_session_handle_t s, struct ck_session_info *info)
{
	ck_rv_t rv = session_is(s);

	memset(info, 0, sizeof(*info));
	info->state = fake.loggedin ? CKS_RO_USER_FUNCTIONS : CKS_RO_PUBLIC_SESSION;
	return rv;
}

static ck_rv_t login(ck_session_handle_t s, ck_user_type_t user, unsigned char *pin, unsigned long n)
{
	ck_rv_t rv;

	if (told(FAKE_LOGIN, &rv))
		return rv;
	rv = session_is(s);
	if (rv != CKR_OK)
		return rv;
	if (user != CKU_USER || n != 6 || memcmp(pin, "123456", 6))
		return CKR_PIN_INCORRECT;
	return atomic_exchange(&fake.loggedin, true) ? CKR_USER_ALREADY_LOGGED_IN : CKR_OK;
}

static ck_rv_t find_init(ck_session_handle_t s, struct ck_attribute *a, unsigned long n)
{
	(void)a;
	searches = n;
	return session_is(s);
}

static ck_rv_t find(ck_session_handle_t s, ck_object_handle_t *found, unsigned long most, unsigned long *n)
{
	ck_rv_t rv;

	if (told(FAKE_FIND, &rv))
		return rv;
	*n = fake.loggedin ? fake.keys : 0;
	if (*n > most)
		*n = most;
	for (unsigned long i = 0; i < *n; i++)
		found[i] = fake.first_key + i;
	return session_is(s);
}

static ck_rv_t find_final(ck_session_handle_t s)
{
	return session_is(s);
}

static ck_rv_t get_attributes(ck_session_handle_t s, ck_object_handle_t o, struct ck_attribute *a, unsigned long n)
{
	ck_rv_t rv;

	if (told(FAKE_ATTRIBUTES, &rv))
		return rv;
	for (unsigned long i = 0; i < n; i++) {
		unsigned char flag = a[i].type == CKA_EXTRACTABLE ? fake.extractable
		    : a[i].type == CKA_SENSITIVE                  ? !fake.insensitive
		    : a[i].type == CKA_DECRYPT                    ? !fake.may_not_decrypt
		                                                  : 1;
		unsigned long bytes = fake.bits / 8;

		if (a[i].type == CKA_VALUE_LEN)
			memcpy(a[i].value, &bytes, sizeof(bytes));
		else
			memcpy(a[i].value, &flag, 1);
	}
	rv = session_is(s);
	return rv != CKR_OK || o >= fake.first_key ? rv : CKR_OBJECT_HANDLE_INVALID;
}

/* ---- "encryption" ---- */

static _Thread_local struct ck_gcm_params gcm;

static ck_rv_t init(ck_session_handle_t s, struct ck_mechanism *m, ck_object_handle_t key)
{
	ck_rv_t rv = session_is(s);

	if (rv != CKR_OK)
		return rv;
	if (!fake.loggedin)
		return CKR_USER_NOT_LOGGED_IN;
	if (key < fake.first_key || !fake.keys)
		return CKR_KEY_HANDLE_INVALID;
	if (m->mechanism != CKM_AES_GCM || m->parameter_len != sizeof(gcm))
		return CKR_MECHANISM_PARAM_INVALID;
	memcpy(&gcm, m->parameter, sizeof(gcm));
	return gcm.iv_len == 12 && gcm.tag_bits == 128 ? CKR_OK : CKR_MECHANISM_PARAM_INVALID;
}

static void hang(void)
{
	atomic_fetch_add(&fake.hanging, 1);
	while (fake.hang || (hang_file && access(hang_file, F_OK) == 0))
		(void)usleep(1000);
	atomic_fetch_sub(&fake.hanging, 1);
}

/* 16 bytes of key, nonce, associated data and plaintext. */
static void checksum(unsigned char out[16], const unsigned char *plain)
{
	unsigned long h = 1469598103934665603ul ^ fake.key;

	for (unsigned long i = 0; i < 12; i++)
		h = (h ^ gcm.iv_ptr[i]) * 1099511628211ul;
	for (unsigned long i = 0; i < gcm.aad_len; i++)
		h = (h ^ gcm.aad_ptr[i]) * 1099511628211ul;
	for (unsigned long i = 0; i < 32; i++)
		h = (h ^ plain[i]) * 1099511628211ul;
	memcpy(out, &h, 8);
	memcpy(out + 8, &h, 8);
}

static ck_rv_t encrypt(
    ck_session_handle_t s, unsigned char *in, unsigned long n, unsigned char *out, unsigned long *len)
{
	ck_rv_t rv;

	hang();
	if (told(FAKE_ENCRYPT, &rv))
		return rv;
	if (n != 32 || *len < 48)
		return CKR_BUFFER_TOO_SMALL;
	if (fake.own_nonce)
		memset(gcm.iv_ptr, 0x77, 12);
	for (unsigned long i = 0; i < 32; i++)
		out[i] = in[i] ^ (unsigned char)fake.key;
	checksum(out + 32, in);
	*len = 48;
	return session_is(s);
}

static ck_rv_t decrypt(
    ck_session_handle_t s, unsigned char *in, unsigned long n, unsigned char *out, unsigned long *len)
{
	unsigned char sum[16];
	ck_rv_t rv;

	hang();
	if (told(FAKE_DECRYPT, &rv))
		return rv;
	if (n != 48 || *len < 32)
		return CKR_BUFFER_TOO_SMALL;
	for (unsigned long i = 0; i < 32; i++)
		out[i] = in[i] ^ (unsigned char)fake.key;
	checksum(sum, out);
	*len = 32;
	return memcmp(sum, in + 32, 16) ? CKR_GENERAL_ERROR : session_is(s);
}

static struct ck_function_list functions = { .version = { 2, 40 },
	.C_Initialize = initialize,
	.C_Finalize = finalize,
	.C_GetSlotList = get_slot_list,
	.C_GetTokenInfo = get_token_info,
	.C_OpenSession = open_session,
	.C_CloseSession = close_session,
	.C_GetSessionInfo = get_session_info,
	.C_Login = login,
	.C_FindObjectsInit = find_init,
	.C_FindObjects = find,
	.C_FindObjectsFinal = find_final,
	.C_GetAttributeValue = get_attributes,
	.C_EncryptInit = init,
	.C_Encrypt = encrypt,
	.C_DecryptInit = init,
	.C_Decrypt = decrypt };

ck_rv_t C_GetFunctionList(struct ck_function_list **list)
{
	*list = &functions;
	return CKR_OK;
}

struct fake *fake_state(void)
{
	return &fake;
}

void fake_reset(void)
{
	for (int i = 0; i < FAKE_CALLS; i++)
		fake.calls[i] = fake.times[i] = 0;
	fake.hang = fake.sees_late = fake.own_nonce = false;
	fake.extractable = fake.insensitive = fake.may_not_decrypt = false;
	fake.present = true;
	fake.tokens = fake.keys = 1;
	fake.flags = 0;
	fake.key = 5;
	fake.bits = 256;
	fake.first_key = 100;
}

static void __attribute__((constructor)) begin(void)
{
	hang_file = getenv("FAKE_PKCS11_HANG");
	fake_reset();
}
