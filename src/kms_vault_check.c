/* kms_vault_check.c — is it the key it was? A transit key deleted and made anew has the old one's name, and nothing in
 * an answer tells. But it does not open what the old one sealed.
 *
 * Hides: the check, the first request that unsealed something, or would; and when it is sent again. On a mount that is
 * the canary's, so that every probe proves the key without another request. Only where sealing goes on without a proof
 * is the check sent, every few seconds at most. */
#include <stdlib.h>
#include <string.h>

#include "io.h"
#include "kms_vault_internal.h"

#define FRESH_MS 5000u /* what is sealed this long after a proof is taken for the same key's */

void vault_check_worked(struct vault_check *c, const char *body)
{
	LOCK_SCOPE(&c->lock);
	if (!c->body)
		c->body = strdup(body); /* without memory, the next one */
	if (c->body && !strcmp(c->body, body))
		c->proved = io_boot_ms();
}

void vault_check_forget(struct vault_check *c)
{
	LOCK_SCOPE(&c->lock);
	c->proved = 0;
}

bool vault_check_wanted(struct vault_check *c)
{
	LOCK_SCOPE(&c->lock);
	return !c->body;
}

static char *take(struct vault_check *c)
{
	LOCK_SCOPE(&c->lock);
	return c->body ? strdup(c->body) : NULL;
}

/* Its owner raised min_decryption_version over it: it proves nothing any more, and the next one will. */
static void retire(struct vault_check *c, const char *body)
{
	LOCK_SCOPE(&c->lock);
	if (!c->body || strcmp(c->body, body))
		return;
	free(c->body);
	c->body = NULL;
}

/* KMS_OK: the same, or nobody can tell. */
static enum kms_status ask(struct vault_check *c, struct vault_link *l, uint64_t deadline, struct kms_err *err)
{
	CLEANUP_ANSWER struct vault_answer a = { 0 };
	CLEANUP_FREE char *body = take(c);
	const struct vault_request req = { "POST", c->path, body, deadline };
	enum kms_status status = body ? vault_call(l, &req, true, &a, err) : KMS_OK;

	if (status == KMS_OK && body)
		vault_check_worked(c, body);
	if (status == KMS_BAD_BLOB)
		return kms_fail(err, KMS_DENIED, "OtherKey",
		    "another key has this name now: it does not open what its predecessor sealed");
	if (status != KMS_OK && !strcmp(err->code, "VersionDisallowed")) {
		retire(c, body);
		return KMS_OK;
	}
	return status;
}

/* To another key every blob is a bad one. */
enum kms_status vault_check_blob(struct vault_check *c, struct vault_link *l, uint64_t deadline, struct kms_err *err)
{
	struct kms_err verdict = { 0 };

	if (ask(c, l, deadline, &verdict) != KMS_OK)
		*err = verdict;
	return err->status;
}

static bool due(struct vault_check *c, uint64_t version)
{
	LOCK_SCOPE(&c->lock);
	return c->body && (io_boot_ms() >= c->proved + FRESH_MS || (c->version && version != c->version));
}

enum kms_status vault_check_sealed(
    struct vault_check *c, struct vault_link *l, uint64_t version, uint64_t deadline, struct kms_err *err)
{
	enum kms_status status = due(c, version) ? ask(c, l, deadline, err) : KMS_OK;

	if (status == KMS_OK) {
		LOCK_SCOPE(&c->lock);
		c->version = version;
	}
	return status;
}
