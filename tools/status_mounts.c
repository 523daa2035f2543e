/* status_mounts.c — mounts whose daemon is gone: it answers nothing, but the kernel still lists its mount. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "cleanup.h"
#include "exitcode.h"
#include "jsonio.h"
#include "status.h"

/* One line: "36 35 0:45 / /srv/plain rw,nosuid - fuse.byokfs /srv/cipher rw,user_id=0,...". */
struct line {
	char *device, *mountpoint, *source;
};

/* \040 and the like, in place. */
static void unescape(char *s)
{
	char *to = s;

	for (; *s; s++) {
		bool octal = s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' &&
		    s[3] <= '7';

		*to++ = (char)(octal ? (s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0') : *s);
		s += octal ? 3 : 0;
	}
	*to = '\0';
}

static bool has_user(const char *options, unsigned uid)
{
	char wanted[32];
	const char *p = strstr(options, "user_id=");

	(void)snprintf(wanted, sizeof(wanted), "%u", uid);
	return p && strncmp(p + 8, wanted, strlen(wanted)) == 0 && strspn(p + 8, "0123456789") == strlen(wanted);
}

static bool parse(char *text, unsigned uid, struct line *out)
{
	char *field[6], *save = NULL, *tail = strstr(text, " - fuse.byokfs ");

	if (!tail || !has_user(tail, uid))
		return false;
	*tail = '\0';
	for (size_t i = 0; i < 6; i++) {
		field[i] = strtok_r(i ? NULL : text, " ", &save);
		if (!field[i])
			return false;
	}
	*out = (struct line){ .device = field[2],
		.mountpoint = field[4],
		.source = strtok_r(tail + strlen(" - fuse.byokfs "), " ", &save) };
	unescape(out->mountpoint);
	if (out->source)
		unescape(out->source);
	return out->source;
}

static bool answered(const json_t *answers, const char *mountpoint)
{
	json_t *name = jsonio_text(mountpoint); /* as answers have it */
	bool found = false;
	const json_t *a;
	size_t i;

	json_array_foreach(answers, i, a) found = found || json_equal(json_object_get(a, "mountpoint"), name);
	json_decref(name);
	return found;
}

static json_t *dead(const struct line *l)
{
	return json_pack("{s:i, s:s, s:s, s:o*, s:o*}", "code", EXIT_NO_MOUNT, "message", "the daemon does not answer",
	    "state", "dead", "mountpoint", jsonio_text(l->mountpoint), "cipherdir",
	    jsonio_text(l->source));
}

/* The same mount may be seen in several places: by its device. The first place counts. */
void status_add_dead_from(json_t *answers, FILE *mountinfo, unsigned uid)
{
	json_t *found = json_object(), *a;
	char *text CLEANUP_FREE = NULL;
	const char *device;
	size_t size = 0;
	struct line l;

	while (getline(&text, &size, mountinfo) > 0) {
		text[strcspn(text, "\n")] = '\0';
		if (!parse(text, uid, &l))
			continue;
		if (answered(answers, l.mountpoint))
			(void)json_object_set_new(found, l.device, json_null());
		else if (!json_object_get(found, l.device))
			(void)json_object_set_new(found, l.device, dead(&l));
	}
	json_object_foreach(found, device, a) if (json_is_object(a))(void) json_array_append(answers, a);
	json_decref(found);
}

int status_add_dead(json_t *answers)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");

	if (!f)
		return -errno;
	status_add_dead_from(answers, f, (unsigned)geteuid());
	(void)fclose(f);
	return 0;
}
