/* fake_pkcs11.h — a PKCS#11 module that fails as told. The module and the test that loads it share this. */
#ifndef FAKE_PKCS11_H
#define FAKE_PKCS11_H

#include <stdatomic.h>
#include <stdbool.h>

#define CRYPTOKI_GNU 1
#include <p11-kit/pkcs11.h>

enum fake_call {
	FAKE_INITIALIZE,
	FAKE_FINALIZE,
	FAKE_SLOTS,
	FAKE_TOKEN_INFO,
	FAKE_OPEN,
	FAKE_LOGIN,
	FAKE_FIND,
	FAKE_ATTRIBUTES,
	FAKE_ENCRYPT,
	FAKE_DECRYPT,
	FAKE_CALLS
};

struct fake {
	atomic_uint calls[FAKE_CALLS];
	_Atomic ck_rv_t answer[FAKE_CALLS]; /* instead of doing it, `times` times */
	atomic_uint times[FAKE_CALLS];
	atomic_bool hang;      /* encryption and decryption wait while it is set */
	atomic_uint hanging;   /* how many do */
	atomic_bool present;   /* the token */
	atomic_bool sees_late; /* a token's return is seen after C_Initialize only */
	atomic_bool own_nonce; /* the token replaces the nonce */
	atomic_uint tokens, keys; /* of that label */
	atomic_ulong flags;    /* of the token */
	atomic_uint key;       /* which key it is: another number, another key */
	atomic_bool extractable, insensitive, may_not_decrypt;
	atomic_ulong bits;
	atomic_bool loggedin;
	atomic_uint sessions;
	atomic_ulong first_session; /* handles below are of before C_Finalize, or lost */
	atomic_ulong first_key;     /* likewise */
};

/* The one of the module; all as after loading: fake_reset(). In a program that knows nothing of this, the environment's
 * FAKE_PKCS11_HANG names a file; while it exists, calls hang. */
struct fake *fake_state(void);
void fake_reset(void);

#endif
