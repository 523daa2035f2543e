/* devkms_admin.c — the endpoint below /_devkms/: faults, statistics, roles, and keys forced into any state.
 *
 * No signature is asked: it is for tests and trials on this host. A browser is kept out by refusing any Origin. */
#include <errno.h>
#include <stdio.h>

#include "devkms.h"
#include "io.h"
#include "jsonio.h"
#include "log.h"

struct admin {
	struct devkms *srv;
	const struct dk_request *req;
	struct dk_reply *reply;
	json_t *in; /* body, or NULL */
};

int dk_reply_json(struct dk_reply *r, unsigned int status, json_t *o)
{
	r->status = status;
	r->type = "application/json";
	r->body = o ? jsonio_print(o) : NULL;
	r->len = r->body ? strlen(r->body) : 0;
	json_decref(o);
	return r->body ? 0 : -ENOMEM;
}

static int refuse(struct admin *a, unsigned int status, const char *why)
{
	return dk_reply_json(a->reply, status, json_pack("{s:s}", "error", why));
}

static int done(struct admin *a)
{
	return dk_reply_json(a->reply, 200, json_pack("{s:b}", "ok", 1));
}

static int set_fault(struct admin *a)
{
	char why[160] = "no memory";

	if (!a->in)
		return refuse(a, 400, "the body is not JSON");
	if (dk_faults_set(&a->srv->faults, a->in, why) < 0)
		return refuse(a, 400, why);
	return done(a);
}

static int clear_fault(struct admin *a)
{
	dk_faults_clear(&a->srv->faults);
	return done(a);
}

static int show_fault(struct admin *a)
{
	return dk_reply_json(a->reply, 200, dk_faults_show(&a->srv->faults));
}

static int show_stats(struct admin *a)
{
	uint64_t since = a->req->since ? strtoull(a->req->since, NULL, 10) : 0;
	uint64_t last = a->req->last ? strtoull(a->req->last, NULL, 10) : 1000;

	return dk_reply_json(a->reply, 200, dk_stats_show(&a->srv->stats, since, last));
}

static int reset_stats(struct admin *a)
{
	dk_stats_reset(&a->srv->stats);
	return done(a);
}

static json_t *show_key(const struct dk_store *s, const struct dk_key *k)
{
	json_t *names = json_array();

	for (const struct dk_alias *x = s->aliases; x; x = x->next)
		if (x->target == k)
			(void)json_array_append_new(names, json_string(x->name));
	return json_pack("{s:s, s:s, s:b, s:I, s:o}", "arn", k->arn, "state", dk_state_name[k->state], "multi_region",
	    k->family->multi_region, "materials", (json_int_t)k->family->n, "aliases", names);
}

static int show_keys(struct admin *a)
{
	struct dk_store *s = &a->srv->store;
	json_t *list = json_array();

	{
		LOCK_SCOPE(&s->lock);
		for (const struct dk_family *f = s->families; f; f = f->next)
			for (const struct dk_key *k = f->keys; k; k = k->next)
				(void)json_array_append_new(list, show_key(s, k));
	}
	return dk_reply_json(a->reply, 200, list);
}

/* {"key": ARN or id (all Regions), "state": STATE}; without key: every key. */
static int set_key(struct admin *a)
{
	struct dk_store *s = &a->srv->store;
	const char *name = jsonio_str(a->in, "key"), *state = jsonio_str(a->in, "state");
	json_t *changed;
	enum dk_key_state to;
	int r;

	if (!state || dk_state_parse(state, &to) < 0)
		return refuse(a, 400, "\"state\" is missing or unknown");
	changed = json_array();
	{
		LOCK_SCOPE(&s->lock);
		for (struct dk_family *f = s->families; f; f = f->next) {
			for (struct dk_key *k = f->keys; k; k = k->next) {
				if (name && strcmp(name, k->arn) != 0 && strcmp(name, f->id) != 0)
					continue;
				k->state = to;
				k->deletion = to == DK_PENDING_DELETION ? io_unix_time() + 7 * INT64_C(86400) : 0;
				(void)json_array_append_new(changed, show_key(s, k));
			}
		}
		r = json_array_size(changed) > 0 ? dk_store_save(s) : -ENOENT;
	}
	if (r == 0)
		return dk_reply_json(a->reply, 200, changed);
	json_decref(changed);
	return r == -ENOENT ? refuse(a, 404, "no such key") : refuse(a, 500, strerror(-r));
}

static int copy_opt(char **out, const json_t *o, const char *member)
{
	const char *v = jsonio_str(o, member);

	*out = v ? strdup(v) : NULL;
	return v && !*out ? -ENOMEM : 0;
}

static int set_role(struct admin *a)
{
	struct dk_store *s = &a->srv->store;
	struct dk_role *fresh = calloc(1, sizeof(*fresh)), *old;
	int r = fresh ? jsonio_copy(fresh->arn, sizeof(fresh->arn), a->in, "role_arn") : -ENOMEM;

	if (r == 0)
		r = copy_opt(&fresh->external_id, a->in, "external_id");
	if (r == 0)
		r = copy_opt(&fresh->web_identity_token, a->in, "web_identity_token");
	if (r == 0)
		fresh->session_seconds = json_integer_value(json_object_get(a->in, "session_seconds"));
	if (r < 0) {
		if (fresh) {
			free(fresh->external_id);
			free(fresh);
		}
		return refuse(a, 400, "\"role_arn\" is missing or too long");
	}
	{
		LOCK_SCOPE(&s->lock);
		old = dk_role_find(s, fresh->arn);
		if (old)
			dk_role_delete(s, old);
		fresh->next = s->roles;
		s->roles = fresh;
		r = dk_store_save(s);
	}
	return r < 0 ? refuse(a, 500, strerror(-r)) : done(a);
}

/* {"role_arn": ARN}: the trust is withdrawn; sessions already given out live on until they end. */
static int clear_role(struct admin *a)
{
	struct dk_store *s = &a->srv->store;
	const char *arn = jsonio_str(a->in, "role_arn");
	struct dk_role *role;
	int r = -ENOENT;

	{
		LOCK_SCOPE(&s->lock);
		role = arn ? dk_role_find(s, arn) : NULL;
		if (role) {
			dk_role_delete(s, role);
			r = dk_store_save(s);
		}
	}
	return r == 0 ? done(a) : refuse(a, r == -ENOENT ? 404 : 500, "no such role");
}

/* Replaces it all: what is not named is as usual. */
static int set_metadata(struct admin *a)
{
	struct dk_metadata m = { .session_seconds = json_integer_value(json_object_get(a->in, "session_seconds")),
		.status = json_integer_value(json_object_get(a->in, "status")) };
	int code = jsonio_copy(m.code, sizeof(m.code), a->in, "code");
	int token = jsonio_copy(m.container_token, sizeof(m.container_token), a->in, "container_token");

	if (!a->in || (code && code != -ENOENT) || (token && token != -ENOENT) || m.session_seconds < 0 ||
	    (m.status && (m.status < 200 || m.status > 599)))
		return refuse(a, 400, "not JSON, or a member that cannot be");
	{
		LOCK_SCOPE(&a->srv->store.lock);
		a->srv->metadata = m;
	}
	return done(a);
}

int dk_admin_run(struct devkms *srv, const struct dk_request *req, struct dk_reply *reply)
{
	static const struct {
		const char *method, *path;
		int (*run)(struct admin *);
	} routes[] = {
		{ "POST", "fault", set_fault },
		{ "DELETE", "fault", clear_fault },
		{ "GET", "fault", show_fault },
		{ "GET", "stats", show_stats },
		{ "POST", "reset-stats", reset_stats },
		{ "GET", "keys", show_keys },
		{ "POST", "key", set_key },
		{ "POST", "role", set_role },
		{ "DELETE", "role", clear_role },
		{ "POST", "metadata", set_metadata },
	};
	struct admin a = { .srv = srv, .req = req, .reply = reply };
	int r;

	if (dk_req_header(req, "origin"))
		return refuse(&a, 403, "not for browsers");
	for (size_t i = 0; i < sizeof(routes) / sizeof(routes[0]); i++) {
		if (strcmp(req->method, routes[i].method) != 0 ||
		    strcmp(req->path + strlen("/_devkms/"), routes[i].path) != 0)
			continue;
		a.in = req->len > 0 ? jsonio_parse(req->body, req->len, DK_BODY_MAX) : NULL;
		r = routes[i].run(&a);
		json_decref(a.in);
		log_debug("%s %s: %u", req->method, req->path, reply->status);
		return r;
	}
	return refuse(&a, 404, "no such endpoint");
}
