/* cmd_common.c — from modules' errors to words and exit codes; the key service and the store as verbs open them. */
#include "cmd.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "audit.h"
#include "jsonio.h"
#include "params.h"

int cmd_exit_store(int err)
{
	switch (err) {
	case 0:
		return EXIT_OK;
	case -ENOENT:
	case -ENOTDIR:
	case -EINVAL:
	case -EPROTONOSUPPORT:
	case -EBADMSG:
		return EXIT_NOT_A_STORE;
	case -EBUSY:
	case -EEXIST:
		return EXIT_ALREADY;
	default:
		return EXIT_FAILED;
	}
}

const char *cmd_kms_hint(const struct kms_err *err)
{
	switch (err->status) {
	case KMS_DENIED:
		return "the key's owner decides: is it enabled, and does its policy allow this identity?";
	case KMS_BUSY:
		return "the KMS throttles this account: try again, or ask for a higher quota";
	case KMS_DOWN:
		return "check endpoint or address, Region, proxy and network";
	case KMS_CONFIG:
		return "check credentials, key and Region in [kms], or [vault]; 'byokfsctl test' shows each step";
	case KMS_BAD_BLOB:
		return "is 'key' in [kms] the key that the store was made under? 'byokfsctl info' shows it";
	case KMS_OK:
		break;
	}
	return NULL;
}

int cmd_kms_failed(const char *what, const struct kms_err *err)
{
	const char *hint = cmd_kms_hint(err);
	char text[800];

	kms_err_text(text, sizeof(text), err);
	cmd_error("%s: %s", what, text);
	if (hint)
		cmd_hint("%s", hint);
	return kms_exitcode(err->status);
}

static struct audit *audit;

/* An audit that was asked for must be there; but a mount that writes it cannot be asked to stop. */
static int open_audit(const struct config *c, struct kms_params *kms, struct kms_err *err)
{
	const struct audit_params params = { .path = c->audit.file,
		.syslog = c->audit.syslog,
		.changes_only = c->audit.level && strcmp(c->audit.level, "changes") == 0,
		.program = "byokfsctl/" BYOKFS_VERSION,
		.key = kms->key };
	char why[AUDIT_WHY];
	int ret = audit || (!params.path && !params.syslog) ? 0 : audit_open(&audit, &params, why);

	if (ret == -EBUSY)
		(void)fprintf(stderr, "byokfsctl: warning: %s: this command's KMS calls are not in it\n", why);
	kms->observe = audit ? audit_kms : NULL;
	kms->observer = audit;
	if (!ret || ret == -EBUSY)
		return 0;
	err->status = KMS_CONFIG;
	(void)snprintf(err->code, sizeof(err->code), "NoAudit");
	(void)snprintf(err->message, sizeof(err->message), "%.255s", why);
	return ret;
}

void cmd_audit_end(void)
{
	audit_close(steal_ptr(&audit), "done");
}

int cmd_kms_params(struct kms_params *params, const struct config *c, struct kms_err *err)
{
	memset(err, 0, sizeof(*err));
	params_kms(params, c, "byokfsctl/" BYOKFS_VERSION);
	return open_audit(c, params, err) ? EXIT_CONFIG : EXIT_OK;
}

int cmd_kms_open(struct kms **out, const struct config *c, struct kms_err *err)
{
	struct kms_params params;
	int ret;

	if (cmd_kms_params(&params, c, err) != EXIT_OK)
		return EXIT_CONFIG;
	ret = kms_open(out, &params, true, err);
	if (ret == 0)
		return EXIT_OK;
	if (err->status == KMS_OK) /* nobody was asked yet */
		err->status = KMS_CONFIG;
	return kms_exitcode(err->status);
}

/* A blob that does not open: the wrong key is configured, or the descriptor is no good. */
static int exit_unseal(const struct store *s, const struct kms *kms, enum kms_status status)
{
	const struct descriptor_slot *slot = descriptor_ruling_slot(&s->domain);

	if (status != KMS_BAD_BLOB)
		return kms_exitcode(status);
	return slot && !kms_same_key(kms, slot->key, kms_key(kms)) ? EXIT_CONFIG : EXIT_NOT_A_STORE;
}

int cmd_kms_previous(struct kms **out, struct kms *kms, const struct config *c, struct kms_err *err)
{
	struct kms_params params;

	if (!params_previous(&params, c, "byokfsctl/" BYOKFS_VERSION, kms))
		return EXIT_OK;
	if (open_audit(c, &params, err) == 0 && kms_open(out, &params, true, err) == 0)
		return EXIT_OK;
	if (err->status == KMS_OK)
		err->status = KMS_CONFIG;
	return err->status == KMS_CONFIG ? EXIT_CONFIG : EXIT_OK;
}

/* Opened with one of two keys, as its descriptor says which. */
static int open_store_lease(
    struct lease **out, struct store *s, struct kms *kms, const struct lease_params *params, struct kms_err *err)
{
	err->status = lease_open(out, params, kms, &s->domain, &s->ids, s->desc.names, false, err);
	if (err->status == KMS_BAD_BLOB && store_other_domain(s) == 0)
		err->status = lease_open(out, params, kms, &s->domain, &s->ids, s->desc.names, false, err);
	return err->status == KMS_OK ? EXIT_OK : exit_unseal(s, kms, err->status);
}

int cmd_unseal(struct store *s, struct kms *kms, const struct config *c, struct kms_err *err, char *why)
{
	struct lease_params params = {
		.probe_ms = c->cache.probe_ms,
		.lease_ms = c->cache.lease_ms,
		.max_age_ms = c->cache.max_age_ms,
		.idle_ms = c->cache.idle_ms,
		.drain_ms = 1,
		.threads = 1,
	};
	struct lease *lease = NULL;
	int ret, code;

	why[0] = '\0';
	memset(err, 0, sizeof(*err));
	code = cmd_kms_previous(&params.previous, kms, c, err);
	if (code == EXIT_OK)
		code = open_store_lease(&lease, s, kms, &params, err);
	if (code != EXIT_OK) {
		kms_close(params.previous);
		return code;
	}
	ret = lease_enter(lease, LEASE_WORK);
	if (ret == 0) {
		ret = store_authenticate(s, lease_domain_keys(lease), lease_names(lease), why);
		lease_leave(lease, LEASE_WORK);
	} else {
		(void)snprintf(
		    why, STORE_WHY, "the lease ended before the store was read: is 'lease' in [cache] too short?");
	}
	lease_close(lease);
	kms_close(params.previous);
	return cmd_exit_store(ret);
}

int cmd_print_json(json_t *json)
{
	char *text CLEANUP_FREE = json ? jsonio_print(json) : NULL;

	json_decref(json);
	if (!text) {
		cmd_error("out of memory");
		return EXIT_FAILED;
	}
	if (puts(text) < 0 || fflush(stdout) != 0) {
		cmd_error("cannot write the answer: %s", strerror(errno));
		return EXIT_FAILED;
	}
	return EXIT_OK;
}

void cmd_escape(char *out, const char *text)
{
	static const char hex[] = "0123456789abcdef";

	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (*p >= ' ' && *p < 0x7f && *p != '\\') {
			*out++ = (char)*p;
			continue;
		}
		*out++ = '\\';
		*out++ = 'x';
		*out++ = hex[*p >> 4];
		*out++ = hex[*p & 15];
	}
	*out = '\0';
}

static const char *const modes[] = { [NAME_SIV64] = "siv64", [NAME_SIV32] = "siv32", [NAME_PLAIN] = "plain" };

const char *cmd_names_mode(enum name_mode mode)
{
	return modes[mode];
}

int cmd_names_from(const char *text)
{
	for (int i = 0; i < (int)(sizeof(modes) / sizeof(modes[0])); i++)
		if (strcmp(text, modes[i]) == 0)
			return i;
	return -1;
}

const char *cmd_suite_name(unsigned suite)
{
	return suite == 1 ? "AES-256-GCM" : suite == 2 ? "XChaCha20-Poly1305" : "unknown";
}

const char *cmd_seal_name(enum descriptor_seal seal)
{
	return seal == SEAL_DOMAIN ? "domain" : "file";
}
