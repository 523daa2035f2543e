/* kms_pkcs11_login.c — the PIN: its file's rules, and that a wrong one is tried once only.
 *
 * A token counts wrong PINs and locks itself, for everybody and often for good. So what it refused is remembered for
 * the whole process until somebody says that things have changed; and the last try the token offers is only used for a
 * PIN that it has accepted before. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "io.h"
#include "kms_pkcs11_internal.h"
#include "secret.h"

#define PIN_MAX 256u

static int open_pin(int *out, const char *path)
{
	CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if (st.st_mode & (S_IRWXG | S_IRWXO) || (st.st_uid != 0 && st.st_uid != geteuid()))
		return -EPERM;
	*out = steal_fd(&fd);
	return 0;
}

int p11_pin_read(uint8_t **out, size_t *len, const char *path)
{
	CLEANUP_FD int fd = -1;
	int r = open_pin(&fd, path);
	uint8_t *pin;
	ssize_t n;

	if (r)
		return r;
	pin = secret_alloc(PIN_MAX + 1);
	if (!pin)
		return -ENOMEM;
	n = io_pread(fd, pin, PIN_MAX + 1, 0);
	if (n > 0 && n <= (ssize_t)PIN_MAX) {
		while (n > 0 && (pin[n - 1] == '\n' || pin[n - 1] == '\r'))
			n--;
	}
	if (n <= 0 || n > (ssize_t)PIN_MAX) {
		secret_free(pin);
		return n < 0 ? (int)n : -EINVAL;
	}
	*out = pin;
	*len = (size_t)n;
	return 0;
}

enum kms_status p11_pin_unusable(struct kms_err *err, const char *path, int r)
{
	switch (r) {
	case -EPERM:
		return kms_fail(err, KMS_CONFIG, "BadPermissions",
		    "the PIN file '%.120s' is open to others, or another user's: run 'chmod 600' and 'chown' on it",
		    path);
	case -EINVAL:
		return kms_fail(err, KMS_CONFIG, "BadPin", "the PIN file '%.120s' is not a file of 1 to %u bytes", path,
		    PIN_MAX);
	case -ENOMEM:
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "no locked memory left for the PIN");
	default:
		return kms_fail(
		    err, KMS_CONFIG, "NoPin", "cannot read the PIN file '%.120s': %s", path, strerrordesc_np(-r));
	}
}

static enum kms_status refused(struct kms_err *err, const struct p11_token *t, ck_rv_t rv)
{
	return kms_fail(err, KMS_CONFIG, p11_meaning(rv).name,
	    "token '%s' refused the PIN, which is not tried again: correct the PIN file, then send SIGHUP or start "
	    "anew",
	    t->label);
}

static bool about_the_pin(ck_rv_t rv)
{
	return rv == CKR_PIN_INCORRECT || rv == CKR_PIN_INVALID || rv == CKR_PIN_LEN_RANGE || rv == CKR_PIN_EXPIRED ||
	    rv == CKR_PIN_LOCKED;
}

/* t->login held. */
static enum kms_status log_in(struct p11_token *t, const struct ck_function_list *f, ck_session_handle_t session,
    const char *pin_file, struct kms_err *err)
{
	uint8_t *pin = NULL;
	struct p11_meaning meaning;
	size_t len = 0;
	ck_rv_t rv;
	int r = p11_pin_read(&pin, &len, pin_file);

	if (r)
		return p11_pin_unusable(err, pin_file, r);
	rv = f->C_Login(session, CKU_USER, pin, len);
	secret_free(pin);
	if (rv == CKR_OK || rv == CKR_USER_ALREADY_LOGGED_IN) {
		t->accepted = true;
		return KMS_OK;
	}
	if (about_the_pin(rv)) {
		atomic_store(&t->refused, rv);
		return refused(err, t, rv);
	}
	meaning = p11_meaning(rv);
	return kms_fail(err, meaning.status == KMS_DENIED ? KMS_CONFIG : meaning.status, meaning.name,
	    "C_Login on token '%s' failed", t->label);
}

enum kms_status p11_login(struct p11_token *t, const struct ck_function_list *f, ck_session_handle_t session,
    ck_slot_id_t slot, const char *pin_file, struct kms_err *err)
{
	struct ck_token_info info;

	LOCK_SCOPE(&t->login);
	if (atomic_load(&t->refused) != CKR_OK)
		return refused(err, t, atomic_load(&t->refused));
	memset(&info, 0, sizeof(info));
	if (f->C_GetTokenInfo(slot, &info) != CKR_OK)
		return kms_fail(err, KMS_DOWN, "CKR_TOKEN_NOT_PRESENT", "token '%s' does not answer", t->label);
	if (!(info.flags & CKF_LOGIN_REQUIRED))
		return KMS_OK;
	if (info.flags & CKF_USER_PIN_LOCKED)
		return refused(err, t, CKR_PIN_LOCKED);
	if (info.flags & CKF_USER_PIN_FINAL_TRY && !t->accepted)
		return kms_fail(err, KMS_CONFIG, "PinFinalTry",
		    "token '%s' allows one more try before it locks: log in by hand first", t->label);
	return log_in(t, f, session, pin_file, err);
}

void p11_token_forgive(struct p11_token *t)
{
	atomic_store(&t->refused, CKR_OK);
}
