/* params.c — settings as the key services want them. Hides which section names the key of which provider. */
#include "params.h"

#include <string.h>

static const char *key_of(const struct config *c)
{
	if (strcmp(c->kms.provider, "vault") == 0)
		return c->vault.key;
	return strcmp(c->kms.provider, "pkcs11") == 0 ? c->pkcs11.key : c->kms.key;
}

static const char *previous_of(const struct config *c)
{
	if (strcmp(c->kms.provider, "vault") == 0)
		return c->vault.previous;
	return strcmp(c->kms.provider, "pkcs11") == 0 ? c->pkcs11.previous : c->kms.previous;
}

bool params_previous(struct kms_params *p, const struct config *c, const char *user_agent, struct kms *share)
{
	params_kms(p, c, user_agent);
	p->key = previous_of(c);
	/* Where it is, its ARN says; replicas are those of the other one. */
	if (p->key && strncmp(p->key, "arn:", 4) == 0)
		p->region = NULL;
	p->replicas = NULL;
	p->failover = false;
	p->share = share;
	return p->key;
}

void params_kms(struct kms_params *p, const struct config *c, const char *user_agent)
{
	bool vault = strcmp(c->kms.provider, "vault") == 0;

	*p = (struct kms_params){
		.provider = c->kms.provider,
		.key = key_of(c),
		.region = c->kms.region,
		.endpoint = c->kms.endpoint,
		.profile = c->kms.profile,
		.ca_bundle = vault ? c->vault.ca_bundle : c->kms.ca_bundle,
		.proxy = c->kms.proxy,
		.role_arn = c->kms.role_arn,
		.external_id = c->kms.external_id,
		.session_name = c->kms.session_name,
		.replicas = c->kms.replicas,
		.failover = c->kms.failover,
		.failover_after_ms = c->kms.failover_after_ms,
		.vault = { c->vault.address, c->vault.mount, c->vault.namespace, c->vault.token_file, c->vault.role_id,
		    c->vault.secret_id_file, c->vault.auth_mount },
		.pkcs11 = { c->pkcs11.module, c->pkcs11.token, c->pkcs11.pin_file },
		.keyfile_path = c->keyfile.path,
		.connect_timeout_ms = c->kms.connect_timeout_ms,
		.request_timeout_ms = c->kms.request_timeout_ms,
		.max_connections = c->kms.max_connections,
		.user_agent = user_agent,
	};
}
