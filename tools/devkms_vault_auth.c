/* devkms_vault_auth.c — tokens and AppRoles. A token has policies, an end and perhaps a greatest age; the tokens' table
 * is the document's member "tokens", the roles' "roles". */
#include <stdio.h>

#include "devkms_vault.h"
#include "jsonio.h"

static int64_t get_int(const json_t *o, const char *member)
{
	return json_integer_value(json_object_get(o, member));
}

static json_t *table(struct dk_vault *v, const char *name)
{
	return json_object_get(v->doc, name);
}

/* Seconds, as a number or as text: "3", "3s", "2m", "1h". */
static int64_t get_seconds(const json_t *o, const char *member, int64_t fallback)
{
	const json_t *x = json_object_get(o, member);
	const char *text = json_string_value(x);
	char *end;
	int64_t n;

	if (json_is_integer(x))
		return json_integer_value(x);
	if (!text)
		return fallback;
	n = strtoll(text, &end, 10);
	return n * (*end == 'h' ? 3600 : *end == 'm' ? 60 : 1);
}

json_t *dk_vault_token_find(struct dk_vault_call *c)
{
	json_t *t = c->token ? json_object_get(table(c->v, "tokens"), c->token) : NULL;
	int64_t expires = get_int(t, "expires");

	if (t && expires && c->now >= expires) {
		(void)json_object_del(table(c->v, "tokens"), c->token);
		return NULL;
	}
	return t;
}

static json_t *show_auth(const char *token, const json_t *t, int64_t now)
{
	int64_t expires = get_int(t, "expires");

	return json_pack("{s:s, s:s, s:O, s:O, s:I, s:O, s:b}", "client_token", token, "accessor",
	    json_string_value(json_object_get(t, "accessor")), "policies", json_object_get(t, "policies"),
	    "token_policies", json_object_get(t, "policies"), "lease_duration",
	    (json_int_t)(expires ? (expires - now + 999) / 1000 : 0), "renewable", json_object_get(t, "renewable"),
	    "orphan", 1);
}

/* The end of a token's time, now that it gets ttl once more. */
static int64_t end_of(const json_t *t, int64_t now, int64_t ttl)
{
	int64_t expires = ttl ? now + ttl * 1000 : 0, max = get_int(t, "max");

	return max && (!expires || expires > max) ? max : expires;
}

json_t *dk_vault_token_new(struct dk_vault_call *c, json_t *policies, int64_t ttl, int64_t max, bool renewable)
{
	char id[37], accessor[37], token[48];
	json_t *t;

	dk_uuid(id);
	dk_uuid(accessor);
	(void)snprintf(token, sizeof(token), "hvs.%s", id);
	t = json_pack("{s:o, s:I, s:I, s:b, s:s, s:I}", "policies", policies ? json_deep_copy(policies) : json_array(),
	    "ttl", (json_int_t)ttl, "max", (json_int_t)(max ? c->now + max * 1000 : 0), "renewable", renewable,
	    "accessor", accessor, "created", (json_int_t)c->now);
	(void)json_array_append_new(json_object_get(t, "policies"), json_string("default"));
	(void)json_object_set_new(t, "expires", json_integer(end_of(t, c->now, ttl)));
	(void)json_object_set_new(table(c->v, "tokens"), token, t);
	c->changed = true;
	return show_auth(token, t, c->now);
}

void dk_vault_expire_all(struct dk_vault *v)
{
	(void)json_object_clear(table(v, "tokens"));
}

/* ---- tokens ---- */

static void lookup_self(struct dk_vault_call *c)
{
	int64_t expires = get_int(c->entry, "expires");

	c->data = json_pack("{s:s, s:O, s:I, s:I, s:O, s:s, s:i}", "id", c->token, "policies",
	    json_object_get(c->entry, "policies"), "ttl", (json_int_t)(expires ? (expires - c->now) / 1000 : 0),
	    "creation_ttl", (json_int_t)get_int(c->entry, "ttl"), "renewable", json_object_get(c->entry, "renewable"),
	    "accessor", jsonio_str(c->entry, "accessor"), "num_uses", 0);
}

static void renew_self(struct dk_vault_call *c)
{
	if (!json_is_true(json_object_get(c->entry, "renewable"))) {
		dk_vault_error(c, 400, "lease is not renewable");
		return;
	}
	(void)json_object_set_new(
	    c->entry, "expires", json_integer(end_of(c->entry, c->now, get_int(c->entry, "ttl"))));
	c->auth = show_auth(c->token, c->entry, c->now);
	c->changed = true;
}

static void end_token(struct dk_vault_call *c, const char *token)
{
	(void)json_object_del(table(c->v, "tokens"), token ? token : "");
	c->status = 204;
	c->changed = true;
}

static void create(struct dk_vault_call *c)
{
	const json_t *renewable = json_object_get(c->in, "renewable");

	c->auth = dk_vault_token_new(c, json_object_get(c->in, "policies"), get_seconds(c->in, "ttl", 0),
	    get_seconds(c->in, "explicit_max_ttl", 0), !json_is_false(renewable));
}

static void token_call(struct dk_vault_call *c, const char *what)
{
	if (strcmp(what, "lookup-self") == 0) {
		if (dk_vault_allowed(c, "read"))
			lookup_self(c);
	} else if (!dk_vault_allowed(c, "update")) {
		return;
	} else if (strcmp(what, "renew-self") == 0) {
		renew_self(c);
	} else if (strcmp(what, "revoke-self") == 0) {
		end_token(c, c->token);
	} else if (strcmp(what, "revoke") == 0) {
		end_token(c, jsonio_str(c->in, "token"));
	} else if (strcmp(what, "create") == 0) {
		create(c);
	} else {
		dk_vault_error(c, 404, "unsupported path");
	}
}

/* ---- AppRole ---- */

static void put_role(struct dk_vault_call *c, const char *name)
{
	json_t *role = json_object_get(table(c->v, "roles"), name),
	       *policies = json_object_get(c->in, "token_policies");
	char id[37];

	if (!role) {
		dk_uuid(id);
		role = json_pack("{s:s, s:[], s:{}}", "role_id", id, "policies", "secret_ids");
		(void)json_object_set_new(table(c->v, "roles"), name, role);
	}
	if (policies)
		(void)json_object_set(role, "policies", policies);
	(void)json_object_set_new(role, "ttl",
	    json_integer(get_seconds(c->in, "token_ttl", json_object_get(role, "ttl") ? get_int(role, "ttl") : 1200)));
	(void)json_object_set_new(
	    role, "max_ttl", json_integer(get_seconds(c->in, "token_max_ttl", get_int(role, "max_ttl"))));
	(void)json_object_set_new(role, "renewable",
	    json_boolean(
	        strcmp(jsonio_str(c->in, "token_type") ? jsonio_str(c->in, "token_type") : "service", "batch") != 0));
	c->status = 204;
	c->changed = true;
}

static void new_secret_id(struct dk_vault_call *c, json_t *role)
{
	char id[37];

	dk_uuid(id);
	(void)json_object_set_new(json_object_get(role, "secret_ids"), id, json_true());
	c->data = json_pack("{s:s, s:i}", "secret_id", id, "secret_id_ttl", 0);
	c->changed = true;
}

static void destroy_secret_id(struct dk_vault_call *c, json_t *role)
{
	const char *id = jsonio_str(c->in, "secret_id");

	(void)json_object_del(json_object_get(role, "secret_ids"), id ? id : "");
	c->status = 204;
	c->changed = true;
}

/* role/NAME, role/NAME/role-id, role/NAME/secret-id, role/NAME/secret-id/destroy */
static void role_call(struct dk_vault_call *c, const char *rest)
{
	char name[128] = "";
	const char *what = strchr(rest, '/');
	json_t *role;

	(void)snprintf(name, sizeof(name), "%.*s", (int)(what ? (size_t)(what - rest) : strlen(rest)), rest);
	if (!dk_vault_allowed(c, strcmp(c->method, "GET") == 0 ? "read" : "update"))
		return;
	if (!what && strcmp(c->method, "POST") == 0) {
		put_role(c, name);
		return;
	}
	role = json_object_get(table(c->v, "roles"), name);
	what = what ? what + 1 : "";
	if (!role)
		dk_vault_error(c, 404, "%s", "");
	else if (!*what && strcmp(c->method, "DELETE") == 0)
		c->status = json_object_del(table(c->v, "roles"), name) == 0 ? 204 : 500, c->changed = true;
	else if (strcmp(what, "role-id") == 0)
		c->data = json_pack("{s:O}", "role_id", json_object_get(role, "role_id"));
	else if (strcmp(what, "secret-id") == 0)
		new_secret_id(c, role);
	else if (strcmp(what, "secret-id/destroy") == 0)
		destroy_secret_id(c, role);
	else
		dk_vault_error(c, 404, "unsupported path");
}

void dk_vault_login(struct dk_vault_call *c)
{
	const char *id = jsonio_str(c->in, "role_id"), *secret = jsonio_str(c->in, "secret_id"), *name;
	json_t *role;

	if (!id || !secret) {
		dk_vault_error(c, 400, "missing %s", id ? "secret_id" : "role_id");
		return;
	}
	json_object_foreach(table(c->v, "roles"), name, role)
	{
		const char *its = jsonio_str(role, "role_id");

		if (!its || strcmp(its, id) != 0 || !json_object_get(json_object_get(role, "secret_ids"), secret))
			continue;
		c->auth = dk_vault_token_new(c, json_object_get(role, "policies"), get_int(role, "ttl"),
		    get_int(role, "max_ttl"), json_is_true(json_object_get(role, "renewable")));
		return;
	}
	dk_vault_error(c, 400, "invalid role or secret ID");
}

void dk_vault_auth(struct dk_vault_call *c)
{
	const char *role = strstr(c->rest, "/role/");

	if (strncmp(c->rest, "token/", 6) == 0)
		token_call(c, c->rest + 6);
	else if (role)
		role_call(c, role + 6);
	else
		dk_vault_error(c, 404, "no handler for route \"auth/%s\". route entry not found.", c->rest);
}
