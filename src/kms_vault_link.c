/* kms_vault_link.c — the settings that say which server is spoken to, as whom, and about which key. Hides: what is
 * wrong with them, the name a key is recorded by, and when two keys may share a connection and a token. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kms_vault_internal.h"

#define MAX_CONNECTIONS 8u
#define TIMEOUT_MS      4000u
#define PREFIX          "vault:"

/* ---- paths ---- */

bool vault_path_ok(const char *path)
{
	for (const char *at = path;;) {
		size_t n = strcspn(at, "/");

		if (!n || (n <= 2 && strspn(at, ".") >= n))
			return false;
		for (size_t i = 0; i < n; i++)
			if (!isalnum((unsigned char)at[i]) && !strchr("-_.~", at[i]))
				return false;
		if (!at[n])
			return true;
		at += n + 1;
	}
}

char *vault_bare_path(const char *path)
{
	size_t n;

	path = path ? path : "";
	path += strspn(path, "/");
	n = strlen(path);
	while (n && path[n - 1] == '/')
		n--;
	return strndup(path, n);
}

/* ---- keys ---- */

/* Vault's own rule for names of keys. */
static bool name_ok(const char *name)
{
	size_t n = strlen(name);

	return n && n <= VAULT_NAME_MAX && !strchr(name, '/') && vault_path_ok(name) && !strchr(name, '~') &&
	    !strchr("-.", name[0]) && !strchr("-.", name[n - 1]);
}

/* "vault:[NAMESPACE/]MOUNT/keys/NAME" as kms_key() gives it. */
static int split_key(struct vault_name *v, const char *key, const char *namespace)
{
	const char *path = key + strlen(PREFIX), *name = NULL, *at = path;
	size_t n = strlen(namespace);

	while ((at = strstr(at, "/keys/"))) {
		name = at;
		at++;
	}
	if (!name)
		return -EINVAL;
	if (n && (strncmp(path, namespace, n) || path[n] != '/'))
		return -EINVAL;
	path += n ? n + 1 : 0;
	if (path >= name || (size_t)(name - path) >= sizeof(v->mount) || strlen(name + 6) > VAULT_NAME_MAX)
		return -EINVAL;
	memcpy(v->mount, path, (size_t)(name - path));
	memcpy(v->name, name + 6, strlen(name + 6) + 1);
	return 0;
}

int vault_name_key(struct vault_name *v, const char *namespace, const struct kms_params *p, struct kms_err *err)
{
	CLEANUP_FREE char *mount = vault_bare_path(p->vault.mount && *p->vault.mount ? p->vault.mount : "transit");
	int r = 0;

	if (!mount)
		return -ENOMEM;
	if (!strncmp(p->key, PREFIX, strlen(PREFIX)))
		r = split_key(v, p->key, namespace);
	else if (strlen(mount) >= sizeof(v->mount) || strlen(p->key) > VAULT_NAME_MAX)
		r = -EINVAL;
	else {
		memcpy(v->mount, mount, strlen(mount) + 1);
		memcpy(v->name, p->key, strlen(p->key) + 1);
	}
	if (!r && !vault_path_ok(v->mount))
		r = -EINVAL;
	if (r || !name_ok(v->name)) {
		(void)kms_fail(err, KMS_CONFIG, "BadKeyName",
		    "'%.90s' in '%.60s' cannot be a key of a transit engine there", p->key, mount);
		return -EINVAL;
	}
	(void)snprintf(
	    v->key, sizeof(v->key), PREFIX "%s%s%s/keys/%s", namespace, *namespace ? "/" : "", v->mount, v->name);
	return 0;
}

/* ---- the link ---- */

void vault_link_close(struct vault_link *l)
{
	vault_auth_close(l);
	http_close(l->http);
	free(l->address);
	free(l->namespace);
	free(l->token_file);
	free(l->role_id);
	free(l->secret_id_file);
	free(l->auth_mount);
	free(l);
}

static int copy_text(char **out, const char *text)
{
	*out = text && *text ? strdup(text) : NULL;
	return text && *text && !*out ? -ENOMEM : 0;
}

static int link_fill(struct vault_link *l, const struct kms_params *p)
{
	const struct http_params http = { .connect_timeout_ms = p->connect_timeout_ms,
		.max_handles = p->max_connections ? p->max_connections : MAX_CONNECTIONS,
		.ca_bundle = p->ca_bundle && *p->ca_bundle ? p->ca_bundle : NULL,
		.proxy = p->proxy,
		.user_agent = p->user_agent ? p->user_agent : "byokfs" };

	l->timeout_ms = p->request_timeout_ms ? p->request_timeout_ms : TIMEOUT_MS;
	l->namespace = vault_bare_path(p->vault.namespace);
	l->auth_mount = vault_bare_path(p->vault.auth_mount && *p->vault.auth_mount ? p->vault.auth_mount : "approle");
	if (!l->namespace || !l->auth_mount || copy_text(&l->address, p->vault.address) ||
	    copy_text(&l->token_file, p->vault.token_file) || copy_text(&l->role_id, p->vault.role_id) ||
	    copy_text(&l->secret_id_file, p->vault.secret_id_file))
		return -ENOMEM;
	for (size_t n = l->address ? strlen(l->address) : 0; n && l->address[n - 1] == '/'; n--)
		l->address[n - 1] = '\0';
	return http_open(&l->http, &http);
}

static const char *link_wrong(const struct vault_link *l)
{
	if (!l->address || (strncmp(l->address, "https://", 8) && strncmp(l->address, "http://", 7)))
		return "'address' in [vault] is no https:// URL";
	if (strlen(l->address) > VAULT_PATH_MAX - 8 || strpbrk(l->address, "?# \t\r\n"))
		return "'address' in [vault] is no plain https://host:port";
	if ((*l->namespace && !vault_path_ok(l->namespace)) || strlen(l->namespace) > 255)
		return "'namespace' in [vault] is no path";
	if (!vault_path_ok(l->auth_mount) || strlen(l->auth_mount) > 128)
		return "'auth_mount' in [vault] is no path";
	if (!l->token_file == !l->role_id)
		return "[vault] needs one of 'token_file' and 'role_id'";
	if (l->role_id && !l->secret_id_file)
		return "'role_id' in [vault] needs 'secret_id_file'";
	return NULL;
}

int vault_link_open(struct vault_link **out, const struct kms_params *p, struct kms_err *err)
{
	struct vault_link *l = calloc(1, sizeof(*l));
	const char *wrong;
	int r = l ? vault_auth_open(l) : -ENOMEM;

	if (r) {
		free(l);
		return r;
	}
	r = link_fill(l, p);
	if (r)
		(void)kms_fail(
		    err, KMS_CONFIG, "BadParameters", "cannot set up the connection: %s", strerrordesc_np(-r));
	wrong = r ? NULL : link_wrong(l);
	if (wrong) {
		(void)kms_fail(err, KMS_CONFIG, "BadParameters", "%s", wrong);
		r = -EINVAL;
	}
	if (r)
		vault_link_close(l);
	else
		*out = l;
	return r;
}

static bool equal(const char *mine, const char *theirs)
{
	return !strcmp(mine ? mine : "", theirs ? theirs : "");
}

void vault_link_retime(struct vault_link *l, const struct kms_params *p)
{
	l->timeout_ms = p->request_timeout_ms ? p->request_timeout_ms : TIMEOUT_MS;
	http_set_connect_timeout(l->http, p->connect_timeout_ms);
}

bool vault_link_fits(const struct vault_link *l, const struct kms_params *p)
{
	CLEANUP_FREE char *namespace = vault_bare_path(p->vault.namespace);
	CLEANUP_FREE char *auth =
	    vault_bare_path(p->vault.auth_mount && *p->vault.auth_mount ? p->vault.auth_mount : "approle");
	size_t n = strlen(l->address);

	return namespace && auth && p->vault.address && !strncmp(l->address, p->vault.address, n) &&
	    strspn(p->vault.address + n, "/") == strlen(p->vault.address + n) && equal(l->namespace, namespace) &&
	    equal(l->auth_mount, auth) && equal(l->token_file, p->vault.token_file) &&
	    equal(l->role_id, p->vault.role_id) && equal(l->secret_id_file, p->vault.secret_id_file);
}
