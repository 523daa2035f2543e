/* check_xattr.c — extended attributes with keys: names decrypt for their object, values authenticate. */
#include "check.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/xattr.h>

#include "xattr.h"

#define PREFIX "user.byokfs."

struct attrs {
	struct check *c;
	int fd;
	const uint8_t *id;
	const struct name_keys *names;
	const char *path, *name;
};

static void broken(const struct attrs *at, const char *backing, const char *plain, const char *what)
{
	check_say(at->c, CHECK_DAMAGE, at->path, at->name, "its attribute %s%s%s%s: %s", backing, *plain ? " ('" : "",
	    plain, *plain ? "')" : "", what);
	check_fix(at->c, FIX_XATTR, true, at->path, at->name, backing);
}

static void one(const struct attrs *at, const char *backing)
{
	uint8_t *value CLEANUP_FREE = malloc(NAME_XATTR_VALUE_MAX);
	char plain[NAME_XATTR_MAX + 1] = "", part[NAME_XATTR_BACKING];
	ssize_t n;

	if (!value) {
		at->c->err = -ENOMEM;
		return;
	}
	if (strlen(backing) >= NAME_XATTR_BACKING ||
	    (!name_xattr_is_long(backing) && name_xattr_decrypt(at->names, at->id, backing, plain) < 0)) {
		broken(at, backing, "", "its name does not decrypt");
		return;
	}
	n = xattr_read(at->fd, at->id, at->names, backing, plain, value, part);
	if (n == -ENOMEM)
		at->c->err = -ENOMEM;
	else if (n < 0 && n != -ENODATA) /* a live store changes */
		broken(at, backing, plain, "its value does not authenticate");
	else if (n > 0)
		explicit_bzero(value, (size_t)n);
	explicit_bzero(plain, sizeof(plain));
}

/* Half of a value whose other half was never written, or has been replaced. In a live store it may be in use soon. */
static void strays(const struct attrs *at)
{
	char *list CLEANUP_FREE = NULL;
	ssize_t n = at->c->live ? 0 : xattr_strays(at->fd, &list);

	for (const char *p = list; n > 0 && p < list + n; p += strlen(p) + 1) {
		check_say(at->c, CHECK_WARNING, at->path, at->name,
		    "its attribute %s: half of one that was never finished: may be removed", p);
		check_fix(at->c, FIX_XATTR, false, at->path, at->name, p);
	}
}

void check_xattrs(
    struct check *c, int fd, uint16_t domain, const uint8_t id[static 16], const char *path, const char *name)
{
	struct attrs at = { .c = c, .fd = fd, .id = id, .path = path, .name = name };
	char *list CLEANUP_FREE = malloc(XATTR_LIST_MAX + 1);
	ssize_t n = list ? flistxattr(fd, list, XATTR_LIST_MAX) : 0;

	if (!list)
		c->err = -ENOMEM;
	else if (n < 0 && errno != EOPNOTSUPP)
		check_say(c, CHECK_DAMAGE, path, name, "its attributes cannot be listed: %s", strerror(errno));
	if (n <= 0)
		return;
	list[n] = '\0';
	at.names = check_keys_get(c->keys, domain);
	if (!at.names)
		return;
	for (const char *p = list; p < list + n; p += strlen(p) + 1)
		if (strncmp(p, PREFIX, sizeof(PREFIX) - 1) == 0 && !name_xattr_is_part(p))
			one(&at, p);
	strays(&at);
	check_keys_put(c->keys, domain);
}
