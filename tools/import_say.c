/* import_say.c — what goes wrong, in words and in JSON; and when one failure is the end of all. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "import.h"

#define LOOKS  20u
#define DOUBTS 100u

bool import_stopped(const struct import *im)
{
	return atomic_load(&im->stop) || import_signalled();
}

int import_fault(struct import_work *w, bool target, const char *what)
{
	w->target = target;
	w->what = what;
	return errno ? -errno : -EIO;
}

char *import_path(const struct import_dir *dir, const char *name)
{
	size_t len = strlen(name);
	char *path, *at;

	for (const struct import_dir *d = dir; d && d->parent; d = d->parent)
		len += strlen(d->name) + 1;
	path = malloc(len + 1);
	if (!path)
		return NULL;
	at = path + len - strlen(name);
	memcpy(at, name, strlen(name) + 1);
	for (const struct import_dir *d = dir; d && d->parent; d = d->parent) {
		size_t n = strlen(d->name);

		*--at = '/';
		at -= n;
		memcpy(at, d->name, n);
	}
	if (!*name && len > 0)
		path[len - 1] = '\0'; /* the directory itself */
	return path;
}

static const char *const kinds[] = {
	[IMPORT_WARNING] = "warning", [IMPORT_FAILED] = "error", [IMPORT_DAMAGED] = "damage"
};

/* The lock is held. */
static void keep(struct import *im, enum import_kind kind, const char *path, const char *text)
{
	if (im->problems && json_array_size(im->problems) < IMPORT_SHOWN)
		(void)json_array_append_new(
		    im->problems, json_pack("{s:s, s:s, s:s}", "kind", kinds[kind], "path", path, "text", text));
}

void import_say(struct import *im, enum import_kind kind, const struct import_dir *dir, const char *name,
    const char *fmt, ...)
{
	char *path CLEANUP_FREE = import_path(dir, name);
	char *safe CLEANUP_FREE = path ? malloc(4 * strlen(path) + 1) : NULL;
	char text[600];
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (safe)
		cmd_escape(safe, *path ? path : ".");
	atomic_fetch_add(
	    kind == IMPORT_WARNING ? &im->warnings : kind == IMPORT_FAILED ? &im->failed : &im->damaged, 1);
	LOCK_SCOPE(&im->lock);
	progress_clear(&im->progress);
	(void)fprintf(stderr, "byokfsctl: %s: '%s': %s\n", kind == IMPORT_WARNING ? "warning" : "error",
	    safe ? safe : "?", text);
	keep(im, kind, safe ? safe : "?", text);
}

void import_stop(struct import *im, int code, const char *fmt, ...)
{
	char text[600], safe[4 * sizeof(text)]; /* JSON takes UTF-8 only */
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	cmd_escape(safe, text);
	LOCK_SCOPE(&im->lock);
	if (im->stop_code)
		return;
	im->stop_code = code;
	atomic_store(&im->stop, true);
	progress_clear(&im->progress);
	cmd_error("%s", text);
	keep(im, IMPORT_FAILED, "", safe);
}

/* Is the store locked? It may refuse a file a moment before it says so; a store with many damaged files is not asked so
 * long each time. */
static int locked(struct import *im, char *why, size_t size)
{
	const struct timespec pause = { .tv_nsec = 100000000 };
	int code = import_mount_state(im->mount, why, size);
	unsigned looks = atomic_fetch_add(&im->doubts, 1) < DOUBTS ? LOOKS : 1;

	for (unsigned i = 1; i < looks && code == EXIT_OK && !import_stopped(im); i++) {
		(void)nanosleep(&pause, NULL);
		code = import_mount_state(im->mount, why, size);
	}
	return code;
}

/* A failure of the store that the next file would meet as well. */
static bool ends_all(struct import *im, int err)
{
	char why[500];
	int code;

	switch (err) {
	case -ENOSPC:
	case -EDQUOT:
		import_stop(im, EXIT_FAILED, "the store is full: %s", strerror(-err));
		return true;
	case -EROFS:
		import_stop(im, EXIT_FAILED, "the store became read-only");
		return true;
	case -EIO:
	case -ENOTCONN:
	case -ECONNABORTED:
	case -ESTALE:
		code = locked(im, why, sizeof(why));
		if (code != EXIT_OK)
			import_stop(im, code, "%s", why);
		return code != EXIT_OK || import_stopped(im);
	default:
		return false;
	}
}

void import_failed(struct import_work *w, int err)
{
	const char *what = w->what ? w->what : "copy";
	struct import *im = w->im;
	bool damage = w->target && (err == -EBADMSG || (err == -EIO && strcmp(what, "read back") == 0));

	if (err == -ECANCELED || import_stopped(im) || (w->target && err != -EBADMSG && ends_all(im, err)))
		return; /* why, was said */
	if (err == -EBADMSG && damage)
		import_say(im, IMPORT_DAMAGED, w->dir, w->name, "%s differ from the source's",
		    strcmp(what, IMPORT_ATTRIBUTES) == 0 ? what : "bytes that were read back");
	else if (err == -EEXIST)
		import_say(im, IMPORT_FAILED, w->dir, w->name, "conflict: it is there already, and different");
	else if (err == -EAGAIN)
		import_say(im, IMPORT_FAILED, w->dir, w->name, "it changes while it is copied: not copied");
	else
		import_say(im, damage ? IMPORT_DAMAGED : IMPORT_FAILED, w->dir, w->name, "cannot %s %s: %s", what,
		    w->target ? "the copy" : "it", strerror(-err));
}
