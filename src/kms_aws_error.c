/* kms_aws_error.c — what an error of AWS KMS means for the key.
 *
 * Hides: the spellings of an error's name, and the table. The name decides, never the HTTP status alone: the
 * real service answers 400 to nearly everything. An unknown name is our problem below 500 and a passing one
 * from there on; neither renews a lease. */
#include <stdbool.h>
#include <string.h>

#include "kms_provider.h"

/* KMS_OK stands for "depends": decided below. */
static const struct {
	const char *name;
	enum kms_status status;
} table[] = {
	{ "DisabledException", KMS_DENIED },
	{ "KMSInvalidStateException", KMS_OK },
	{ "AccessDeniedException", KMS_OK },
	{ "NotFoundException", KMS_OK },
	{ "InvalidCiphertextException", KMS_BAD_BLOB },
	{ "IncorrectKeyException", KMS_BAD_BLOB },
	/* passing */
	{ "KeyUnavailableException", KMS_DOWN },
	{ "DependencyTimeoutException", KMS_DOWN },
	{ "KMSInternalException", KMS_DOWN },
	{ "InternalFailure", KMS_DOWN },
	{ "InternalError", KMS_DOWN },
	{ "InternalServerError", KMS_DOWN },
	{ "ServiceUnavailable", KMS_DOWN },
	{ "ServiceUnavailableException", KMS_DOWN },
	{ "RequestTimeout", KMS_DOWN },
	{ "RequestTimeoutException", KMS_DOWN },
	{ "ThrottlingException", KMS_BUSY },
	{ "Throttling", KMS_BUSY },
	{ "ThrottledException", KMS_BUSY },
	{ "RequestThrottled", KMS_BUSY },
	{ "RequestThrottledException", KMS_BUSY },
	{ "RequestLimitExceeded", KMS_BUSY },
	{ "TooManyRequestsException", KMS_BUSY },
	{ "BandwidthLimitExceeded", KMS_BUSY },
	{ "ProvisionedThroughputExceededException", KMS_BUSY },
	{ "PriorRequestNotComplete", KMS_BUSY },
	{ "SlowDown", KMS_BUSY },
	{ "LimitExceededException", KMS_BUSY },
	/* ours, or the administrator's: listed so that a 5xx does not hide them */
	{ "InvalidGrantTokenException", KMS_CONFIG },
	{ "InvalidKeyUsageException", KMS_CONFIG },
	{ "UnsupportedOperationException", KMS_CONFIG },
	{ "InvalidArnException", KMS_CONFIG },
	{ "ValidationException", KMS_CONFIG },
	{ "SerializationException", KMS_CONFIG },
	{ "UnknownOperationException", KMS_CONFIG },
	{ "DryRunOperationException", KMS_CONFIG }, /* byokfs never sends DryRun */
	{ "ExpiredTokenException", KMS_CONFIG },
	{ "ExpiredToken", KMS_CONFIG },
	{ "UnrecognizedClientException", KMS_CONFIG },
	{ "InvalidClientTokenId", KMS_CONFIG },
	{ "MissingAuthenticationToken", KMS_CONFIG },
	{ "MissingAuthenticationTokenException", KMS_CONFIG },
	{ "InvalidSignatureException", KMS_CONFIG },
	{ "SignatureDoesNotMatch", KMS_CONFIG },
	{ "IncompleteSignature", KMS_CONFIG },
	{ "IncompleteSignatureException", KMS_CONFIG },
	{ "AuthFailure", KMS_CONFIG },
	{ "RequestExpired", KMS_CONFIG },
	{ "RequestInTheFuture", KMS_CONFIG },
	{ "RequestTimeTooSkewed", KMS_CONFIG },
};

/* "com.amazonaws.kms#Name:http://..." to "Name". */
static void bare_name(const char **name, size_t *len, const char *type)
{
	const char *hash;

	*len = strcspn(type, ":");
	hash = memchr(type, '#', *len);
	if (hash) {
		*len -= (size_t)(hash + 1 - type);
		type = hash + 1;
	}
	*name = type;
}

static bool is(const char *name, size_t len, const char *word)
{
	return strlen(word) == len && !strncmp(name, word, len);
}

static bool says(const char *message, const char *const *words)
{
	for (; *words; words++)
		if (strcasestr(message, *words))
			return true;
	return false;
}

static const char *const passing[] = { "is creating", "is updating", "did not respond in time", "cannot communicate",
	"can't communicate", NULL };
static const char *const final[] = { "pending deletion", "pending replica deletion", "pendingdeletion",
	"pending import", "pendingimport", "is unavailable", "is disabled", NULL };

bool kms_aws_state_known(const char *message)
{
	return says(message, passing) || says(message, final);
}

enum kms_status kms_aws_classify(const char *type, const char *message, long http, bool had_worked)
{
	const char *name;
	size_t len;

	message = message ? message : "";
	bare_name(&name, &len, type ? type : "");
	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		if (!is(name, len, table[i].name))
			continue;
		if (table[i].status != KMS_OK)
			return table[i].status;
		if (is(name, len, "KMSInvalidStateException"))
			return says(message, passing) && !says(message, final) ? KMS_DOWN : KMS_DENIED;
		return had_worked ? KMS_DENIED : KMS_CONFIG;
	}
	if (http == 429)
		return KMS_BUSY;
	return http >= 500 ? KMS_DOWN : KMS_CONFIG;
}
