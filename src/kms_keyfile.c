/* kms_keyfile.c — a key the administrator keeps in a file, byokfs-format(5), section 8.
 *
 * Hides: the file's rules and the sealing. Nothing of the key outlives a call: the file is read again each
 * time, so that taking it away is what disabling a key is elsewhere. A file that cannot be read proves
 * nothing: the KMS is down, not denying. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "bytes.h"
#include "io.h"
#include "kms_provider.h"
#include "secret.h"

#define KEY  32u
#define IV   12u
#define TAG  16u
#define BLOB (IV + KEY + TAG)
#define ID   8u
#define NAME (sizeof("keyfile:") + 2 * ID)

struct keyfile {
	char *path;
	char name[NAME];
};

/* In secret memory. */
struct material {
	uint8_t file[KEY], prk[64], out[64];
	uint8_t seal[KEY];
	char name[NAME];
};

static void free_material(struct material **m)
{
	secret_free(*m);
}

#define CLEANUP_MATERIAL __attribute__((cleanup(free_material)))

/* ---- the file ---- */

static int read_bytes(uint8_t out[static KEY], const char *path)
{
	CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size != KEY)
		return -EINVAL;
	if (st.st_mode & (S_IRWXG | S_IRWXO) || (st.st_uid != 0 && st.st_uid != geteuid()))
		return -EPERM;
	n = io_pread(fd, out, KEY, 0);
	return n < 0 ? (int)n : n == KEY ? 0 : -EINVAL;
}

/* HKDF-SHA-512's only block. */
static int expand(uint8_t out[static 64], const uint8_t prk[static 64], const char *info)
{
	uint8_t text[16];
	size_t n = strlen(info);

	memcpy(text, info, n);
	text[n] = 1;
	return HMAC(EVP_sha512(), prk, 64, text, n + 1, out, NULL) ? 0 : -EIO;
}

static int derive(struct material *m)
{
	static const char salt[] = "byokfs1/keyfile", prefix[] = "keyfile:";

	if (!HMAC(EVP_sha512(), salt, sizeof(salt) - 1, m->file, KEY, m->prk, NULL))
		return -EIO;
	if (expand(m->out, m->prk, "id"))
		return -EIO;
	memcpy(m->name, prefix, sizeof(prefix));
	bytes_hex(m->name + sizeof(prefix) - 1, m->out, ID);
	if (expand(m->out, m->prk, "seal"))
		return -EIO;
	memcpy(m->seal, m->out, KEY);
	return 0;
}

static int load(struct material **out, const char *path)
{
	struct material *m = secret_alloc(sizeof(*m));
	int r = m ? read_bytes(m->file, path) : -ENOMEM;

	if (!r)
		r = derive(m);
	if (r)
		secret_free(m);
	else
		*out = m;
	return r;
}

/* A file emptied or replaced is as much a revocation as one removed. */
static enum kms_status unusable(struct kms_err *err, const char *path, int r)
{
	switch (r) {
	case -ENOENT:
	case -ENOTDIR:
		return kms_fail(err, KMS_DENIED, "NotFound", "the key file '%.120s' is gone", path);
	case -EINVAL:
		return kms_fail(
		    err, KMS_DENIED, "NotFound", "the key file '%.120s' is not a regular file of 32 bytes", path);
	case -EPERM:
		return kms_fail(err, KMS_CONFIG, "BadPermissions",
		    "the key file '%.120s' is open to others, or another user's: run 'chmod 600' and 'chown' on it",
		    path);
	case -ENOMEM:
		return kms_fail(err, KMS_DOWN, "OutOfMemory", "no locked memory left for the key file's key");
	default:
		return kms_fail(
		    err, KMS_DOWN, "Unreadable", "cannot read the key file '%.120s': %s", path, strerrordesc_np(-r));
	}
}

static enum kms_status load_same(struct material **out, const struct keyfile *k, struct kms_err *err)
{
	int r = load(out, k->path);

	if (r)
		return unusable(err, k->path, r);
	if (strcmp((*out)->name, k->name))
		return kms_fail(err, KMS_DENIED, "NotFound", "the key file '%.120s' now holds another key, %s", k->path,
		    (*out)->name);
	return KMS_OK;
}

/* ---- sealing ---- */

static void free_cipher(EVP_CIPHER_CTX **c)
{
	EVP_CIPHER_CTX_free(*c);
}

#define CLEANUP_CIPHER __attribute__((cleanup(free_cipher)))

static bool start(EVP_CIPHER_CTX *c, const uint8_t *key, const uint8_t *iv, const struct context *ctx, int sealing)
{
	uint8_t aad[CONTEXT_ENCODED_MAX];
	size_t n = context_encode(aad, ctx);
	int len;

	return c && EVP_CipherInit_ex(c, EVP_aes_256_gcm(), NULL, key, iv, sealing) &&
	    EVP_CipherUpdate(c, NULL, &len, aad, (int)n);
}

static int seal(
    uint8_t blob[static BLOB], const uint8_t secret[static KEY], const struct material *m, const struct context *ctx)
{
	CLEANUP_CIPHER EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	int len;

	secret_random(blob, IV);
	if (!start(c, m->seal, blob, ctx, 1) || !EVP_CipherUpdate(c, blob + IV, &len, secret, KEY) || len != KEY ||
	    !EVP_CipherFinal_ex(c, blob + IV + KEY, &len) ||
	    !EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, TAG, blob + IV + KEY))
		return -EIO;
	return 0;
}

/* -EBADMSG: not sealed by this key for this context. */
static int unseal(
    uint8_t secret[static KEY], const uint8_t blob[static BLOB], const struct material *m, const struct context *ctx)
{
	CLEANUP_CIPHER EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	uint8_t tag[TAG];
	int len;

	memcpy(tag, blob + IV + KEY, TAG);
	if (!start(c, m->seal, blob, ctx, 0) || !EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_SET_TAG, TAG, tag) ||
	    !EVP_CipherUpdate(c, secret, &len, blob + IV, KEY) || len != KEY)
		return -EIO;
	return EVP_CipherFinal_ex(c, secret + KEY, &len) > 0 ? 0 : -EBADMSG;
}

static enum kms_status library_failed(struct kms_err *err)
{
	return kms_fail(err, KMS_DOWN, "CryptoFailed", "the crypto library failed");
}

/* ---- the operations ---- */

static enum kms_status keyfile_encrypt(void *priv, const struct context *ctx, const uint8_t secret[static 32],
    uint64_t deadline, struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	const struct keyfile *k = priv;
	CLEANUP_MATERIAL struct material *m = NULL;
	enum kms_status status = load_same(&m, k, err);

	(void)deadline;
	if (status != KMS_OK)
		return status;
	if (seal(blob->bytes, secret, m, ctx))
		return library_failed(err);
	blob->len = BLOB;
	strcpy(used->key, k->name);
	return KMS_OK;
}

static enum kms_status keyfile_generate(void *priv, const struct context *ctx, uint64_t deadline,
    uint8_t secret[static 32], struct kms_blob *blob, struct kms_used *used, struct kms_err *err)
{
	secret_random(secret, KEY);
	return keyfile_encrypt(priv, ctx, secret, deadline, blob, used, err);
}

static enum kms_status keyfile_decrypt(void *priv, const char *key, const struct context *ctx, const uint8_t *blob,
    size_t len, uint64_t deadline, uint8_t secret[static 32], struct kms_used *used, struct kms_err *err)
{
	const struct keyfile *k = priv;
	CLEANUP_MATERIAL struct material *m = NULL;
	enum kms_status status = load_same(&m, k, err);
	int r;

	(void)deadline;
	if (status != KMS_OK)
		return status;
	if (strcmp(key, k->name))
		return kms_fail(err, KMS_BAD_BLOB, "IncorrectKey", "the key file holds %s, not '%.120s'", k->name, key);
	if (len != BLOB)
		return kms_fail(
		    err, KMS_BAD_BLOB, "InvalidCiphertext", "a sealed key of %zu bytes is not of this provider", len);
	r = unseal(secret, blob, m, ctx);
	if (r)
		explicit_bzero(secret, KEY);
	if (r == -EBADMSG)
		return kms_fail(
		    err, KMS_BAD_BLOB, "InvalidCiphertext", "not sealed under %s for this context", k->name);
	if (r)
		return library_failed(err);
	strcpy(used->key, k->name);
	return KMS_OK;
}

static enum kms_status keyfile_describe(
    void *priv, const char *key, uint64_t deadline, struct kms_description *d, struct kms_err *err)
{
	const struct keyfile *k = priv;
	CLEANUP_MATERIAL struct material *m = NULL;
	enum kms_status status = load_same(&m, k, err);

	(void)deadline;
	if (status != KMS_OK)
		return status;
	if (strcmp(key, k->name))
		return kms_fail(err, KMS_CONFIG, "NotFound", "the key file holds %s, not '%.120s'", k->name, key);
	strcpy(d->arn, k->name);
	strcpy(d->state, "Enabled");
	strcpy(d->usage, "ENCRYPT_DECRYPT");
	strcpy(d->spec, "SYMMETRIC_DEFAULT");
	return KMS_OK;
}

/* ---- life ---- */

static void keyfile_close(void *priv)
{
	struct keyfile *k = priv;

	free(k->path);
	free(k);
}

static int make(void **priv, const char *path, const char *name)
{
	struct keyfile *k = calloc(1, sizeof(*k));

	if (!k)
		return -ENOMEM;
	memcpy(k->name, name, sizeof(k->name));
	k->path = strdup(path);
	if (!k->path) {
		keyfile_close(k);
		return -ENOMEM;
	}
	*priv = k;
	return 0;
}

/* A file that is not there may come back, if it is known which key it must hold. */
static bool awaited(int r, const char *name)
{
	static const char prefix[] = "keyfile:";

	return r && r != -EPERM && r != -ENOMEM && name && !strncmp(name, prefix, sizeof(prefix) - 1) &&
	    strlen(name) == NAME - 1 && strspn(name + sizeof(prefix) - 1, "0123456789abcdef") == 2 * ID;
}

static int keyfile_open(void **priv, const struct kms_params *params, struct kms_err *err)
{
	CLEANUP_MATERIAL struct material *m = NULL;
	int r;

	if (!params->keyfile_path || *params->keyfile_path != '/') {
		(void)kms_fail(err, KMS_CONFIG, "NoKey", "keyfile.path is not an absolute path");
		return -EINVAL;
	}
	r = load(&m, params->keyfile_path);
	if (awaited(r, params->key))
		return make(priv, params->keyfile_path, params->key);
	if (r) {
		(void)unusable(err, params->keyfile_path, r);
		return r == -EPERM ? -EACCES : r;
	}
	return make(priv, params->keyfile_path, m->name);
}

static const char *keyfile_key(void *priv)
{
	const struct keyfile *k = priv;

	return k->name;
}

const struct kms_provider kms_keyfile_provider = {
	.name = "keyfile",
	.number = 3,
	.open = keyfile_open,
	.close = keyfile_close,
	.generate = keyfile_generate,
	.decrypt = keyfile_decrypt,
	.encrypt = keyfile_encrypt,
	.describe = keyfile_describe,
	.key = keyfile_key,
};
