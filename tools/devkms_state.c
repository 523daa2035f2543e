/* devkms_state.c — hides how the store lies on disk: one JSON file, replaced as a whole with every change.
 *
 * The materials are in it in clear: whoever reads the file has the keys. That is what "not for production" means. */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "bytes.h"
#include "devkms.h"
#include "io.h"
#include "jsonio.h"
#include "log.h"

#define STATE     "state.json"
#define STATE_MAX (64u << 20)

static void set_blob(json_t *o, const char *member, const uint8_t p[static 32])
{
	char text[45];

	(void)bytes_b64(B64_STD, text, p, 32);
	(void)json_object_set_new(o, member, json_string(text));
	sodium_memzero(text, sizeof(text));
}

static void set_opt(json_t *o, const char *member, const char *value)
{
	if (value)
		(void)json_object_set_new(o, member, json_string(value));
}

static json_t *show_key(const struct dk_key *k)
{
	return json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "region", k->region, "state", dk_state_name[k->state],
	    "description", k->description, "policy", k->policy, "created", (json_int_t)k->created, "deletion",
	    (json_int_t)k->deletion);
}

static json_t *show_family(const struct dk_family *f)
{
	json_t *o = json_pack("{s:s, s:s, s:b, s:b, s:b, s:I, s:I, s:I, s:[], s:[]}", "id", f->id, "primary",
	    f->primary, "multi_region", f->multi_region, "external", f->external, "rotation", f->rotation,
	    "rotation_since", (json_int_t)f->rotation_since, "period_days", (json_int_t)f->period_days,
	    "rotated_on_demand", (json_int_t)f->rotated_on_demand, "materials", "keys");
	json_t *m;

	for (size_t i = 0; o && i < f->n; i++) {
		m = json_pack("{s:I}", "created", (json_int_t)f->material[i].created);
		set_blob(m, "id", f->material[i].id);
		set_blob(m, "key", f->material[i].key);
		(void)json_array_append_new(json_object_get(o, "materials"), m);
	}
	for (const struct dk_key *k = f->keys; o && k; k = k->next)
		(void)json_array_append_new(json_object_get(o, "keys"), show_key(k));
	return o;
}

/* Loading puts each element in front of its list: write from the end, so that the order survives. */
static json_t *show_store(const struct dk_store *s)
{
	json_t *o = json_pack("{s:i, s:[], s:[], s:[]}", "version", 1, "families", "aliases", "roles");
	json_t *x;

	if (!o)
		return NULL;
	set_blob(o, "token_key", s->token_key);
	for (const struct dk_family *f = s->families; f; f = f->next)
		(void)json_array_insert_new(json_object_get(o, "families"), 0, show_family(f));
	for (const struct dk_alias *a = s->aliases; a; a = a->next)
		(void)json_array_insert_new(json_object_get(o, "aliases"), 0,
		    json_pack("{s:s, s:s, s:I}", "name", a->name, "target", a->target->arn, "created",
		        (json_int_t)a->created));
	for (const struct dk_role *r = s->roles; r; r = r->next) {
		x = json_pack("{s:s, s:I}", "arn", r->arn, "session_seconds", (json_int_t)r->session_seconds);
		set_opt(x, "external_id", r->external_id);
		set_opt(x, "web_identity_token", r->web_identity_token);
		(void)json_array_insert_new(json_object_get(o, "roles"), 0, x);
	}
	return o;
}

int dk_store_save(struct dk_store *s)
{
	json_t *o = show_store(s);
	CLEANUP_FREE char *text = o ? jsonio_print(o) : NULL;
	int r;

	json_decref(o);
	if (!text)
		return -ENOMEM;
	r = io_replace_file(s->dir, STATE, text, strlen(text), 0600);
	sodium_memzero(text, strlen(text));
	if (r < 0)
		log_err("cannot save the state: %s", strerror(-r));
	return r;
}

static int64_t get_int(const json_t *o, const char *member)
{
	return json_integer_value(json_object_get(o, member));
}

static bool get_bool(const json_t *o, const char *member)
{
	return json_is_true(json_object_get(o, member));
}

static int get_blob(const json_t *o, const char *member, uint8_t out[static 32])
{
	size_t n = 32;
	int r = jsonio_blob(out, &n, o, member);

	return r < 0 ? r : n == 32 ? 0 : -EINVAL;
}

static int load_key(struct devkms *srv, struct dk_family *f, const json_t *o)
{
	const char *region = jsonio_str(o, "region"), *state = jsonio_str(o, "state"),
	           *description = jsonio_str(o, "description");
	const char *policy = jsonio_str(o, "policy");
	struct dk_key *k;
	int r;

	if (!region || strlen(region) >= DK_REGION || !state || !description || !policy)
		return -EINVAL;
	r = dk_key_new(srv, f, region, description, policy, get_int(o, "created"), &k);
	if (r < 0)
		return r;
	k->deletion = get_int(o, "deletion");
	return dk_state_parse(state, &k->state);
}

static int load_family(struct devkms *srv, const json_t *o)
{
	json_t *materials = json_object_get(o, "materials"), *keys = json_object_get(o, "keys"), *x;
	struct dk_family *f = calloc(1, sizeof(*f));
	size_t i;
	int r = f ? 0 : -ENOMEM;

	if (r < 0)
		return r;
	f->next = srv->store.families;
	srv->store.families = f;
	f->multi_region = get_bool(o, "multi_region");
	f->external = get_bool(o, "external");
	f->rotation = get_bool(o, "rotation");
	f->rotation_since = get_int(o, "rotation_since");
	f->period_days = get_int(o, "period_days");
	f->rotated_on_demand = get_int(o, "rotated_on_demand");
	f->n = json_array_size(materials);
	if (f->n == 0 || f->n > DK_MATERIALS)
		return -EINVAL;
	r = jsonio_copy(f->id, sizeof(f->id), o, "id");
	if (r == 0)
		r = jsonio_copy(f->primary, sizeof(f->primary), o, "primary");
	json_array_foreach(materials, i, x)
	{
		f->material[i].created = get_int(x, "created");
		if (r == 0)
			r = get_blob(x, "id", f->material[i].id);
		if (r == 0)
			r = get_blob(x, "key", f->material[i].key);
	}
	json_array_foreach(keys, i, x)
	{
		if (r == 0)
			r = load_key(srv, f, x);
	}
	return r;
}

static int load_alias(struct dk_store *s, const json_t *o)
{
	const char *name = jsonio_str(o, "name"), *target = jsonio_str(o, "target");
	struct dk_key *k = target ? dk_key_by_arn(s, target) : NULL;

	return name && k ? dk_alias_new(s, name, k, get_int(o, "created")) : -EINVAL;
}

static int load_role(struct dk_store *s, const json_t *o)
{
	const char *external_id = jsonio_str(o, "external_id"), *token = jsonio_str(o, "web_identity_token");
	struct dk_role *role = calloc(1, sizeof(*role));

	if (!role)
		return -ENOMEM;
	role->next = s->roles;
	s->roles = role;
	role->session_seconds = get_int(o, "session_seconds");
	role->external_id = external_id ? strdup(external_id) : NULL;
	role->web_identity_token = token ? strdup(token) : NULL;
	return jsonio_copy(role->arn, sizeof(role->arn), o, "arn");
}

static int load(struct devkms *srv, const char *text, size_t len)
{
	struct dk_store *s = &srv->store;
	json_t *o = jsonio_parse(text, len, STATE_MAX), *x;
	int r = o && get_int(o, "version") == 1 ? get_blob(o, "token_key", s->token_key) : -EINVAL;
	size_t i;

	json_array_foreach(json_object_get(o, "families"), i, x)
	{
		if (r == 0)
			r = load_family(srv, x);
	}
	json_array_foreach(json_object_get(o, "aliases"), i, x)
	{
		if (r == 0)
			r = load_alias(s, x);
	}
	json_array_foreach(json_object_get(o, "roles"), i, x)
	{
		if (r == 0)
			r = load_role(s, x);
	}
	json_decref(o);
	return r;
}

int dk_store_open(struct devkms *srv, const char *dir)
{
	struct dk_store *s = &srv->store;
	CLEANUP_FREE char *text = NULL;
	size_t len;
	int r;

	(void)pthread_mutex_init(&s->lock, NULL);
	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return -errno;
	s->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->dir < 0)
		return -errno;
	s->guard = openat(s->dir, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->guard < 0)
		return -errno;
	if (flock(s->guard, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? -EBUSY : -errno;
	r = io_read_file(s->dir, STATE, STATE_MAX, &text, &len);
	if (r == -ENOENT) {
		randombytes_buf(s->token_key, sizeof(s->token_key));
		return dk_store_save(s);
	}
	if (r < 0)
		return r;
	r = load(srv, text, len);
	sodium_memzero(text, len);
	return r;
}

static void key_free(struct dk_key *k)
{
	free(k->description);
	free(k->policy);
	free(k);
}

void dk_store_close(struct dk_store *s)
{
	while (s->aliases)
		dk_alias_delete(s, s->aliases);
	while (s->roles)
		dk_role_delete(s, s->roles);
	while (s->families) {
		struct dk_family *f = s->families;

		s->families = f->next;
		while (f->keys) {
			struct dk_key *k = f->keys;

			f->keys = k->next;
			key_free(k);
		}
		sodium_memzero(f, sizeof(*f));
		free(f);
	}
	if (s->guard >= 0)
		(void)close(s->guard);
	if (s->dir >= 0)
		(void)close(s->dir);
}
