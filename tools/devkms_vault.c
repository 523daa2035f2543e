/* devkms_vault.c — HashiCorp Vault's and OpenBao's API on the same port, as far as a transit engine's clients need it.
 *
 * Hides: routes, the envelope of answers, policies and faults. Policies are JSON with exact paths or ones that end in
 * '*'. A namespace is a prefix of the mounts' paths; auth/ and sys/ are common to all. The whole state is one document
 * in vault.json, replaced with every change. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "devkms_vault.h"
#include "io.h"
#include "jsonio.h"
#include "log.h"

#define STATE     "vault.json"
#define STATE_MAX (16u << 20)

/* ---- state ---- */

static int save(struct dk_vault *v)
{
	CLEANUP_FREE char *text = jsonio_print(v->doc);
	int r;

	if (!text)
		return -ENOMEM;
	r = io_replace_file(v->dir, STATE, text, strlen(text), 0600);
	explicit_bzero(text, strlen(text));
	if (r < 0)
		log_err("cannot save Vault's state: %s", strerror(-r));
	return r;
}

int dk_vault_load(struct dk_vault *v, int dir)
{
	CLEANUP_FREE char *text = NULL;
	size_t len = 0;
	int r;

	(void)pthread_mutex_init(&v->lock, NULL);
	v->dir = dir;
	r = io_read_file(dir, STATE, STATE_MAX, &text, &len);
	if (r == -ENOENT)
		v->doc = json_pack("{s:{s:s}, s:{s:s}, s:{}, s:{}, s:{}, s:{}}", "mounts", "transit", "transit", "auth",
		    "approle", "approle", "keys", "policies", "tokens", "roles");
	else if (r == 0)
		v->doc = jsonio_parse(text, len, STATE_MAX);
	if (text)
		explicit_bzero(text, len);
	return r < 0 && r != -ENOENT ? r : json_is_object(v->doc) ? 0 : -EINVAL;
}

void dk_vault_close(struct dk_vault *v)
{
	json_decref(v->doc);
	v->doc = NULL;
}

/* ---- answers ---- */

void dk_vault_error(struct dk_vault_call *c, unsigned int status, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(c->error, sizeof(c->error), fmt, ap);
	va_end(ap);
	c->status = status;
	json_decref(c->data);
	c->data = NULL;
}

static int reply(struct dk_vault_call *c, const char *request_id, struct dk_reply *r)
{
	json_t *o;

	if (c->status == 204) {
		r->status = 204;
		r->type = "application/json";
		r->body = strdup("");
		return r->body ? 0 : -ENOMEM;
	}
	if (c->bare)
		o = json_incref(c->bare);
	else if (c->error[0])
		o = json_pack("{s:[s]}", "errors", c->error);
	else if (c->status >= 400 && !c->data)
		o = json_pack("{s:[]}", "errors");
	else
		o = json_pack("{s:s, s:s, s:b, s:i, s:O?, s:n, s:n, s:O?}", "request_id", request_id, "lease_id", "",
		    "renewable", 0, "lease_duration", 0, "data", c->data, "wrap_info", "warnings", "auth", c->auth);
	return dk_reply_json(r, c->status, o);
}

/* ---- policies ---- */

static bool listed(const json_t *rule, const char *capability)
{
	const json_t *list = json_object_get(rule, "capabilities");

	for (size_t i = 0; i < json_array_size(list); i++)
		if (strcmp(json_string_value(json_array_get(list, i)), capability) == 0)
			return true;
	return false;
}

/* The rule of one policy that fits best: the same path, else the longest beginning. */
static const json_t *rule_for(json_t *policy, const char *path)
{
	const json_t *best = NULL;
	const char *pattern;
	size_t longest = 0;
	json_t *rule;

	json_object_foreach(json_object_get(policy, "path"), pattern, rule)
	{
		size_t n = strlen(pattern);

		if (strcmp(pattern, path) == 0)
			return rule;
		if (n && pattern[n - 1] == '*' && n >= longest && strncmp(pattern, path, n - 1) == 0) {
			longest = n;
			best = rule;
		}
	}
	return best;
}

static bool by_default(const char *path, const char *capability)
{
	return (strcmp(path, "auth/token/lookup-self") == 0 && strcmp(capability, "read") == 0) ||
	    ((strcmp(path, "auth/token/renew-self") == 0 || strcmp(path, "auth/token/revoke-self") == 0) &&
	        strcmp(capability, "update") == 0);
}

bool dk_vault_can(const struct dk_vault_call *c, const char *capability)
{
	const json_t *names = json_object_get(c->entry, "policies");
	bool yes = false;

	if (strcmp(c->token, DK_VAULT_ROOT) == 0)
		return true;
	for (size_t i = 0; i < json_array_size(names); i++) {
		const char *name = json_string_value(json_array_get(names, i));
		const json_t *rule = rule_for(json_object_get(json_object_get(c->v->doc, "policies"), name), c->path);

		if (strcmp(name, "root") == 0)
			return true;
		if (listed(rule, "deny"))
			return false;
		yes = yes || listed(rule, capability) ||
		    (strcmp(name, "default") == 0 && by_default(c->path, capability));
	}
	return yes;
}

bool dk_vault_allowed(struct dk_vault_call *c, const char *capability)
{
	if (dk_vault_can(c, capability))
		return true;
	dk_vault_error(c, 403, "1 error occurred:\n\t* permission denied\n\n");
	return false;
}

/* ---- sys/ ---- */

static void put_policy(struct dk_vault_call *c, const char *name)
{
	json_t *policies = json_object_get(c->v->doc, "policies"), *policy;
	const char *text = jsonio_str(c->in, "policy");

	if (strcmp(c->method, "DELETE") == 0) {
		(void)json_object_del(policies, name);
	} else {
		policy = text ? jsonio_parse(text, strlen(text), DK_BODY_MAX) : NULL;
		if (!json_is_object(policy)) {
			json_decref(policy);
			dk_vault_error(c, 400, "this server reads policies as JSON only");
			return;
		}
		(void)json_object_set_new(policies, name, policy);
	}
	c->changed = true;
	c->status = 204;
}

/* sys/mounts/PATH and sys/auth/PATH */
static void put_mount(struct dk_vault_call *c, const char *table, const char *path)
{
	const char *type = jsonio_str(c->in, "type");

	if (strcmp(c->method, "DELETE") == 0)
		(void)json_object_del(json_object_get(c->v->doc, table), path);
	else
		(void)json_object_set_new(json_object_get(c->v->doc, table), path, json_string(type ? type : ""));
	c->changed = true;
	c->status = 204;
}

static void system_call(struct dk_vault_call *c)
{
	if (!dk_vault_allowed(c, "update"))
		return;
	if (strcmp(c->rest, "seal") == 0) {
		c->v->sealed = true;
		c->status = 204;
	} else if (strncmp(c->rest, "policies/acl/", 13) == 0) {
		put_policy(c, c->rest + 13);
	} else if (strncmp(c->rest, "mounts/", 7) == 0) {
		put_mount(c, "mounts", c->rest + 7);
	} else if (strncmp(c->rest, "auth/", 5) == 0) {
		put_mount(c, "auth", c->rest + 5);
	} else {
		dk_vault_error(c, 404, "unsupported path");
	}
}

/* Answered to everybody, sealed or not. True when this was one. */
static bool open_to_all(struct dk_vault_call *c)
{
	bool sealed = c->v->sealed;

	if (strcmp(c->path, "sys/health") == 0) {
		c->status = sealed ? 503 : 200;
		c->bare = json_pack("{s:b, s:b, s:b, s:s}", "initialized", 1, "sealed", sealed, "standby", 0, "version",
		    BYOKFS_VERSION);
	} else if (strcmp(c->path, "sys/seal-status") == 0 || strcmp(c->path, "sys/unseal") == 0) {
		c->v->sealed = sealed && strcmp(c->path, "sys/unseal") != 0;
		c->bare = json_pack("{s:s, s:b, s:b, s:i, s:i, s:i, s:s}", "type", "shamir", "initialized", 1, "sealed",
		    c->v->sealed, "t", 1, "n", 1, "progress", 0, "version", BYOKFS_VERSION);
	}
	return c->bare != NULL;
}

/* ---- routes ---- */

/* auth/MOUNT/login of a mount that exists. */
static bool is_login(const struct dk_vault_call *c)
{
	const char *mount;
	json_t *type;

	json_object_foreach(json_object_get(c->v->doc, "auth"), mount, type)
	{
		char path[200];

		(void)snprintf(path, sizeof(path), "auth/%.150s/login", mount);
		if (strcmp(path, c->path) == 0)
			return true;
	}
	return false;
}

static const char *mount_of(const struct dk_vault_call *c)
{
	const char *mount, *best = NULL;
	json_t *type;

	json_object_foreach(json_object_get(c->v->doc, "mounts"), mount, type)
	{
		size_t n = strlen(mount);

		if (strncmp(c->path, mount, n) == 0 && c->path[n] == '/' && (!best || n > strlen(best)))
			best = mount;
	}
	return best;
}

/* Lock held. */
static void route(struct dk_vault_call *c)
{
	const char *mount = mount_of(c);

	if (open_to_all(c))
		return;
	if (c->v->sealed) {
		dk_vault_error(c, 503, "Vault is sealed");
		return;
	}
	if (is_login(c)) {
		dk_vault_login(c);
		return;
	}
	c->entry = dk_vault_token_find(c);
	if (!c->entry && (!c->token || strcmp(c->token, DK_VAULT_ROOT) != 0)) {
		dk_vault_error(c, 403,
		    c->v->openbao ? "permission denied"
		                  : "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n");
		return;
	}
	if (strncmp(c->path, "auth/", 5) == 0) {
		c->rest = c->path + 5;
		dk_vault_auth(c);
	} else if (strncmp(c->path, "sys/", 4) == 0) {
		c->rest = c->path + 4;
		system_call(c);
	} else if (mount) {
		c->rest = c->path + strlen(mount) + 1;
		dk_vault_transit(c, mount);
	} else if (dk_vault_allowed(c, "update")) {
		dk_vault_error(c, 404, "no handler for route \"%s\". route entry not found.", c->path);
	}
}

/* For faults and statistics. */
static const char *operation_of(const struct dk_vault_call *c)
{
	static const char *const names[] = { "encrypt", "decrypt", "rewrap", "datakey", "keys", "login", "lookup-self",
		"renew-self" };
	static const char *const operations[] = { "VaultEncrypt", "VaultDecrypt", "VaultRewrap", "VaultDatakey",
		"VaultKeys", "VaultLogin", "VaultLookupSelf", "VaultRenewSelf" };
	char part[32];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *at;
		size_t n = (size_t)snprintf(part, sizeof(part), "/%s", names[i]);

		at = strstr(c->path, part);
		if (at && (at[n] == '/' || at[n] == '\0'))
			return operations[i];
	}
	return "VaultOther";
}

static void set_path(struct dk_vault_call *c, const struct dk_request *req)
{
	const char *namespace = dk_req_header(req, "x-vault-namespace"), *path = req->path + 4;
	size_t n = namespace ? strlen(namespace) : 0;

	while (n && namespace[n - 1] == '/')
		n--;
	if (n && strncmp(path, "auth/", 5) != 0 && strncmp(path, "sys/", 4) != 0)
		(void)snprintf(c->path, sizeof(c->path), "%.*s/%s", (int)n, namespace, path);
	else
		(void)snprintf(c->path, sizeof(c->path), "%s", path);
}

static void serve(struct dk_vault_call *c)
{
	LOCK_SCOPE(&c->v->lock);
	route(c);
	if (c->changed && save(c->v) < 0)
		dk_vault_error(c, 500, "internal error");
}

/* The faults that come instead of an answer. */
static bool injected(struct dk_vault_call *c, const struct dk_fault *f, struct dk_reply *r)
{
	if (f->deny_access) {
		dk_vault_error(c, 403, "1 error occurred:\n\t* permission denied\n\n");
		return true;
	}
	if ((!f->raw_body[0] && !f->error_type[0]) || !dk_fault_chance(f->error_rate))
		return false;
	dk_vault_error(c, (unsigned int)f->error_status, "%s", f->error_message);
	if (f->raw_body[0]) {
		r->status = c->status;
		r->type = f->raw_type[0] ? f->raw_type : "text/html";
		r->body = strdup(f->raw_body);
		r->len = r->body ? strlen(r->body) : 0;
	}
	return true;
}

static void count(struct devkms *srv, const struct dk_vault_call *c, struct dk_call *call, const char *hung)
{
	char result[64];

	(void)snprintf(result, sizeof(result), "%u", c->status);
	(void)snprintf(call->key, sizeof(call->key), "%s", c->key);
	call->context = json_pack("{s:I}", "items", (json_int_t)c->items);
	dk_stats_add(&srv->stats, call, hung ? hung : c->status < 300 ? "ok" : result);
	json_decref(call->context);
}

int dk_vault_run(struct devkms *srv, const struct dk_request *req, int client_fd, struct dk_reply *r)
{
	static const struct dk_fault none = { .plaintext_size = -1 };
	struct dk_fault fault = none;
	struct dk_call call = { .srv = srv, .req = req, .fault = &fault };
	struct dk_vault_call *c = calloc(1, sizeof(*c));
	struct timespec now;
	int err;

	if (!c)
		return -ENOMEM;
	(void)clock_gettime(CLOCK_REALTIME, &now);
	*c = (struct dk_vault_call){ .v = &srv->vault,
		.method = strcmp(req->method, "PUT") == 0 ? "POST" : req->method,
		.token = dk_req_header(req, "x-vault-token"),
		.status = 200 };
	set_path(c, req);
	c->in = req->len ? jsonio_parse(req->body, req->len, DK_BODY_MAX) : NULL;
	call.operation = operation_of(c);
	dk_uuid(call.request_id);
	if (!dk_fault_pick(&srv->faults, call.operation, req->body ? req->body : "", &fault))
		fault = none;
	err = dk_fault_wait(&srv->faults, &fault, client_fd);
	if (err == 0 && dk_fault_chance(fault.drop_rate))
		err = -ECANCELED;
	c->now = (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
	if (err == 0 && !injected(c, &fault, r))
		serve(c);
	count(srv, c, &call, err < 0 ? "hung" : NULL);
	if (err == 0 && !r->body)
		err = reply(c, call.request_id, r);
	if (err == 0)
		dk_fault_spoil_body(&fault, r);
	json_decref(c->in);
	json_decref(c->data);
	json_decref(c->auth);
	json_decref(c->bare);
	free(c);
	return err;
}

/* ---- control ---- */

/* POST switch: {"sealed": BOOL, "deny": BOOL, "openbao": BOOL}, each optional.
 * POST expire: every token but root's ends. */
int dk_vault_admin(struct devkms *srv, const struct dk_request *req, struct dk_reply *r)
{
	struct dk_vault *v = &srv->vault;
	const char *what = req->path + strlen("/_devkms/vault/");
	json_t *in = req->len ? jsonio_parse(req->body, req->len, DK_BODY_MAX) : NULL;
	struct {
		const char *name;
		bool *value;
	} switches[] = { { "sealed", &v->sealed }, { "deny", &v->deny }, { "openbao", &v->openbao } };
	bool known = strcmp(req->method, "POST") == 0 && !dk_req_header(req, "origin");

	if (known) {
		LOCK_SCOPE(&v->lock);
		if (strcmp(what, "expire") == 0)
			dk_vault_expire_all(v);
		else if (strcmp(what, "switch") != 0)
			known = false;
		for (size_t i = 0; known && i < sizeof(switches) / sizeof(switches[0]); i++)
			if (json_is_boolean(json_object_get(in, switches[i].name)))
				*switches[i].value = json_is_true(json_object_get(in, switches[i].name));
	}
	json_decref(in);
	if (!known)
		return dk_reply_json(r, 404, json_pack("{s:s}", "error", "no such endpoint"));
	return dk_reply_json(r, 200, json_pack("{s:b}", "ok", 1));
}
