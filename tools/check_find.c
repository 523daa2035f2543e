/* check_find.c — what is found: told at once, or kept for JSON, in cipher and plain paths; and what a repair is to do
 * about it. Any thread. */
#include "check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cmd.h"
#include "dir.h"

#define PLAIN_MAX 16384u

/* "dir/name", "name" in the root, "dir" for a directory itself. */
static char *joined(const char *path, const char *name)
{
	bool root = strcmp(path, ".") == 0, both = *name && !root;
	char *out = malloc(strlen(path) + strlen(name) + 2);

	if (out)
		(void)snprintf(out, strlen(path) + strlen(name) + 2, "%s%s%s", root && *name ? "" : path,
		    both ? "/" : "", name);
	return out;
}

char *check_cipher_path(const char *path, const char *name)
{
	char *out = malloc(4 * (strlen(path) + strlen(name)) + 3);

	if (!out)
		return NULL;
	cmd_escape(out, path);
	if (*name) {
		char *end = out + strlen(out);

		*end = '/';
		cmd_escape(end + 1, name);
	}
	return out;
}

static const struct name_keys *get_names(void *arg, uint16_t domain)
{
	return check_keys_get(arg, domain);
}

static void put_names(void *arg, uint16_t domain)
{
	check_keys_put(arg, domain);
}

char *check_plain_path(struct check *c, const char *path, const char *name)
{
	const struct dir_namer namer = { .arg = c->keys, .get = get_names, .put = put_names };
	char *backing CLEANUP_FREE = NULL, *plain CLEANUP_FREE = NULL, *out;

	if (!c->keys || strncmp(path, ".byokfs", 7) == 0 || (strcmp(path, ".") == 0 && !*name))
		return NULL;
	backing = joined(path, name);
	plain = malloc(PLAIN_MAX);
	if (!backing || !plain || dir_plain_path(c->store->fd, &namer, backing, plain, PLAIN_MAX) < 0)
		return NULL;
	out = malloc(4 * strlen(plain) + 1);
	if (out)
		cmd_escape(out, plain);
	explicit_bzero(plain, strlen(plain));
	return out;
}

const char *check_unit_name(char *out, const struct file_fault *f)
{
	const char *kind = f->type == UNIT_DATA ? "data"
	    : f->type == UNIT_GROUP         ? "group"
	    : f->type == UNIT_L1            ? "L1"
	                                    : "L2";

	if (f->type == UNIT_ROOT)
		(void)snprintf(out, 40, "page 0");
	else
		(void)snprintf(out, 40, "%s page %" PRIu64, kind, f->index);
	return out;
}

struct finding {
	enum check_severity severity;
	const char *path, *name, *what;
	const struct file_fault *fault; /* or NULL */
};

static json_t *as_json(const struct finding *f, const char *cipher, const char *plain)
{
	static const char *const words[] = { [CHECK_DAMAGE] = "damage", [CHECK_WARNING] = "warning" };
	json_t *json = json_pack("{s:s,s:s,s:s}", "severity", words[f->severity], "path", cipher, "what", f->what);
	char unit[40];

	if (json && plain)
		(void)json_object_set_new(json, "plain", json_string(plain));
	if (json && f->fault) {
		(void)json_object_set_new(json, "unit", json_string(check_unit_name(unit, f->fault)));
		(void)json_object_set_new(json, "offset", json_integer((json_int_t)f->fault->off));
		(void)json_object_set_new(json, "length", json_integer((json_int_t)f->fault->len));
	}
	return json;
}

static void print(struct check *c, const struct finding *f, const char *cipher, const char *plain)
{
	char unit[40];

	progress_clear(&c->progress);
	(void)printf("%s: %s%s%s%s: ", f->severity == CHECK_DAMAGE ? "damage" : "warning", cipher, plain ? " (" : "",
	    plain ? plain : "", plain ? ")" : "");
	if (f->fault)
		(void)printf("%s: %s: %" PRIu64 " bytes at %" PRIu64 " cannot be read\n",
		    check_unit_name(unit, f->fault), f->what, f->fault->len, f->fault->off);
	else
		(void)printf("%s\n", f->what);
}

static void say(struct check *c, const struct finding *f)
{
	char *cipher CLEANUP_FREE = check_cipher_path(f->path, f->name);
	char *plain CLEANUP_FREE = check_plain_path(c, f->path, f->name);
	LOCK_SCOPE(&c->lock);

	*(f->severity == CHECK_DAMAGE ? &c->damage : &c->warnings) += 1;
	if (!cipher)
		c->err = -ENOMEM;
	else if (!c->findings)
		print(c, f, cipher, plain);
	else if (json_array_size(c->findings) >= CHECK_FINDINGS)
		c->dropped++;
	else
		(void)json_array_append_new(c->findings, as_json(f, cipher, plain));
}

void check_say(struct check *c, enum check_severity severity, const char *path, const char *name, const char *fmt, ...)
{
	char what[600];
	const struct finding f = { severity, path, name, what, NULL };
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	say(c, &f);
}

void check_say_fault(struct check *c, const char *path, const char *name, const struct file_fault *fault)
{
	const struct finding f = { CHECK_DAMAGE, path, name, fault->reason, fault };

	say(c, &f);
}

static void fix_free(struct check_fix *f)
{
	free(f->path);
	free(f->name);
	free(f->why);
	free(f);
}

static struct check_fix *fix_new(const char *path, const char *name, const char *why)
{
	struct check_fix *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->path = strdup(path);
	f->name = strdup(name);
	f->why = strdup(why);
	if (f->path && f->name && f->why)
		return f;
	fix_free(f);
	return NULL;
}

void check_fix_in(struct check *c, uint16_t domain, enum check_fix_kind kind, bool lossy, const char *path,
    const char *name, const char *why)
{
	struct check_fix *f;
	LOCK_SCOPE(&c->lock);

	if (lossy)
		c->fixable++;
	if (!c->repair)
		return;
	if (c->nfixes == CHECK_FIXES) {
		c->more_fixes = true;
		return;
	}
	f = fix_new(path, name, why);
	if (!f) {
		c->err = -ENOMEM;
		return;
	}
	f->kind = kind;
	f->lossy = lossy;
	f->domain = domain;
	*c->last_fix = f;
	c->last_fix = &f->next;
	c->nfixes++;
}

void check_fix(
    struct check *c, enum check_fix_kind kind, bool lossy, const char *path, const char *name, const char *why)
{
	check_fix_in(c, 0, kind, lossy, path, name, why);
}

void check_fixes_free(struct check *c)
{
	struct check_fix *f;

	while ((f = c->fixes)) {
		c->fixes = f->next;
		fix_free(f);
	}
}
