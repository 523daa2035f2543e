/* kms_vault_error.c — what an error of Vault or OpenBao means.
 *
 * Hides: their texts. Vault has no error codes, and most of its errors share status 400, so the words decide. Only
 * words that Vault itself says are believed to be a denial: a proxy's error page never locks a mount at once. */
#include <stdio.h>
#include <string.h>

#include "kms_vault_internal.h"

/* What the class is when the key has never answered: then the name, the mount or the policy is likelier wrong. */
enum first { SAME, CONFIG_AT_FIRST };

static const struct {
	const char *words, *code;
	enum kms_status status;
	enum first first;
} table[] = {
	{ "encryption key not found", "KeyNotFound", KMS_DENIED, CONFIG_AT_FIRST },
	{ "soft-deleted key", "KeyDeleted", KMS_DENIED, SAME },
	/* The owner raised min_decryption_version over this blob's. Of one file: its owner's decision about that file.
	 * Of the canary: about all that the domain's secret protects. */
	{ "disallowed by policy (too old)", "VersionDisallowed", KMS_DENIED, SAME },
	{ "no such key version", "VersionDisallowed", KMS_DENIED, SAME },
	{ "locked by an administrator", "NamespaceLocked", KMS_DENIED, SAME },
	/* The engine is there, its plugin is not running: nobody's decision. */
	{ "backend is nil", "PluginNotLoaded", KMS_DOWN, SAME },
	{ "no handler for route", "NoSuchMount", KMS_DENIED, CONFIG_AT_FIRST },
	{ "message authentication failed", "InvalidCiphertext", KMS_BAD_BLOB, SAME },
	{ "invalid ciphertext", "InvalidCiphertext", KMS_BAD_BLOB, SAME },
	{ "non-AEAD cipher suite", "WrongKeyType", KMS_CONFIG, SAME },
	{ "not supported for key type", "WrongKeyType", KMS_CONFIG, SAME },
	{ "invalid role or secret ID", "LoginRefused", KMS_CONFIG, SAME },
	{ "Vault is sealed", "Sealed", KMS_DOWN, SAME },
	{ "namespace is sealed", "Sealed", KMS_DOWN, SAME },
};

static enum kms_status by_status(long http, const char **code)
{
	static const struct {
		long http;
		const char *code;
		enum kms_status status;
	} known[] = {
		{ 307, "Standby", KMS_DOWN },
		{ 308, "Standby", KMS_DOWN },
		{ 403, "PermissionDenied", KMS_CONFIG },
		{ 412, "NotReplicatedYet", KMS_DOWN },
		{ 429, "RateLimited", KMS_BUSY },
		{ 472, "Standby", KMS_DOWN },
		{ 473, "Standby", KMS_DOWN },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].http == http) {
			*code = known[i].code;
			return known[i].status;
		}
	*code = http >= 500 ? "ServerError" : "BadRequest";
	return http >= 500 ? KMS_DOWN : KMS_CONFIG;
}

enum kms_status vault_classify(long http, const char *text, bool own, bool worked, const char **code)
{
	for (size_t i = 0; own && i < sizeof(table) / sizeof(table[0]); i++) {
		if (!strcasestr(text, table[i].words))
			continue;
		*code = table[i].code;
		return table[i].first == CONFIG_AT_FIRST && !worked ? KMS_CONFIG : table[i].status;
	}
	return by_status(http, code);
}

enum kms_status vault_fail(const struct vault_answer *a, bool worked, struct kms_err *err)
{
	const char *code;
	enum kms_status status = vault_classify(a->http, a->text, a->own, worked, &code);

	if (!strcmp(code, "Standby"))
		(void)kms_fail(err, status, code,
		    "this server is a standby and sends its clients elsewhere: let 'address' in [vault] "
		    "name the active one");
	else if (!strcmp(code, "NoSuchMount"))
		(void)kms_fail(err, status, code, "%s: is 'mount' in [vault] where the transit engine is?", a->text);
	else if (*a->text)
		(void)kms_fail(err, status, code, "%s", a->text);
	else
		(void)kms_fail(err, status, code, "HTTP status %ld without an error of Vault's", a->http);
	err->http = a->http;
	return status;
}
