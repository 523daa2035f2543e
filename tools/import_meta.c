/* import_meta.c — the attributes of one object: owner, mode, extended attributes, POSIX ACLs, times.
 *
 * Hides their order: a file nobody may write takes no user attribute any more, chown takes set-id bits and capabilities
 * away, an ACL is the finer mode, and times come last. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "bytes.h"
#include "import.h"

#define ACCESS     "system.posix_acl_access"
#define DEFAULT    "system.posix_acl_default"
#define CAPABILITY "security.capability"
#define FD_PATH    32u

/* Descriptors that only name an object take attributes by this way. */
static void fd_path(char out[static FD_PATH], int fd)
{
	(void)snprintf(out, FD_PATH, "/proc/self/fd/%d", fd);
}

enum when { BEFORE, AFTER, NEVER };

static enum when when_to_set(const struct import *im, const char *name)
{
	if (strncmp(name, "user.", 5) == 0 || (im->root && strncmp(name, "trusted.", 8) == 0))
		return BEFORE;
	if (strcmp(name, ACCESS) == 0 || strcmp(name, DEFAULT) == 0 || (im->root && strcmp(name, CAPABILITY) == 0))
		return AFTER;
	return NEVER;
}

/* Warns once of each kind. */
static void left_out(struct import_work *w, const char *name)
{
	char safe[sizeof(w->im->named[0])], cut[sizeof(safe) / 4];
	size_t i;

	(void)snprintf(cut, sizeof(cut), "%s", name);
	cmd_escape(safe, cut);
	{
		LOCK_SCOPE(&w->im->lock);
		for (i = 0; i < sizeof(w->im->named) / sizeof(w->im->named[0]) && w->im->named[i][0]; i++)
			if (strcmp(w->im->named[i], safe) == 0)
				return;
		if (i == sizeof(w->im->named) / sizeof(w->im->named[0]))
			return;
		memcpy(w->im->named[i], safe, sizeof(safe));
	}
	import_say(w->im, IMPORT_WARNING, w->dir, w->name, "attributes '%s' are not copied", safe);
}

/* NUL-separated names, malloc'ed (NULL: none). Length or -errno. */
static ssize_t list_names(struct import_work *w, char **list)
{
	char path[FD_PATH], few[256];
	ssize_t n;

	fd_path(path, w->src);
	n = listxattr(path, few, sizeof(few));
	if (n == 0 || (n < 0 && errno == EOPNOTSUPP))
		return 0;
	if (n < 0 && errno != ERANGE)
		return import_fault(w, false, "list the attributes of");
	*list = malloc(XATTR_LIST_MAX);
	if (!*list)
		return -ENOMEM;
	n = listxattr(path, *list, XATTR_LIST_MAX);
	return n < 0 ? import_fault(w, false, "list the attributes of") : n;
}

/* A mount of an ordinary user has no ACLs; it serves nobody else. From errno. */
static bool dispensable(const struct import *im, const char *name)
{
	return !im->root && (errno == EOPNOTSUPP || errno == ENODATA) && strncmp(name, "system.", 7) == 0;
}

static int set_one(struct import_work *w, const char *name, uint8_t *value)
{
	char from[FD_PATH], to[FD_PATH];
	ssize_t n;

	fd_path(from, w->src);
	fd_path(to, w->dst);
	n = getxattr(from, name, value, XATTR_SIZE_MAX);
	if (n < 0 && errno != EOPNOTSUPP)
		return errno == ENODATA ? 0 : import_fault(w, false, "read an attribute of");
	if (n >= 0 && setxattr(to, name, value, (size_t)n, 0) == 0)
		return 0;
	if (n >= 0 && !dispensable(w->im, name))
		return import_fault(w, true, "set an attribute of");
	left_out(w, name);
	return 0;
}

static int compare_one(struct import_work *w, const char *name, uint8_t *value)
{
	uint8_t *theirs CLEANUP_FREE = malloc(XATTR_SIZE_MAX);
	char from[FD_PATH], to[FD_PATH];
	ssize_t n, m;

	if (!theirs)
		return -ENOMEM;
	fd_path(from, w->src);
	fd_path(to, w->dst);
	n = getxattr(from, name, value, XATTR_SIZE_MAX);
	if (n < 0)
		return errno == ENODATA || errno == EOPNOTSUPP ? 0 : import_fault(w, false, "read an attribute of");
	m = getxattr(to, name, theirs, XATTR_SIZE_MAX);
	if (m < 0 && dispensable(w->im, name))
		return 0;
	if (m < 0 && errno != ENODATA)
		return import_fault(w, true, "read an attribute of");
	w->target = true;
	w->what = IMPORT_ATTRIBUTES;
	return m == n && bytes_equal(value, theirs, (size_t)n) ? 0 : -EBADMSG;
}

/* Calls fn for each attribute whose turn it is. */
static int each_name(struct import_work *w, const char *list, ssize_t len, enum when first, enum when last,
    int (*fn)(struct import_work *, const char *name, uint8_t *value))
{
	uint8_t *value CLEANUP_FREE = len > 0 ? malloc(XATTR_SIZE_MAX) : NULL;
	int ret = len > 0 && !value ? -ENOMEM : 0;

	for (const char *name = list; ret == 0 && name < list + len; name += strlen(name) + 1) {
		enum when when = when_to_set(w->im, name);

		if (when >= first && when <= last)
			ret = fn(w, name, value);
	}
	return ret;
}

static bool listed(const char *list, ssize_t len, const char *wanted)
{
	for (const char *name = list; name && name < list + len; name += strlen(name) + 1)
		if (strcmp(name, wanted) == 0)
			return true;
	return false;
}

/* An ACL that was inherited, and that the source does not have. */
static int disinherit(struct import_work *w, const char *list, ssize_t len)
{
	char to[FD_PATH];

	if (!w->dir || !w->dir->default_acl)
		return 0;
	fd_path(to, w->dst);
	if (!listed(list, len, ACCESS) && removexattr(to, ACCESS) && errno != ENODATA && errno != EOPNOTSUPP)
		return import_fault(w, true, "set an attribute of");
	if (S_ISDIR(w->st.st_mode) && !listed(list, len, DEFAULT) && removexattr(to, DEFAULT) && errno != ENODATA &&
	    errno != EOPNOTSUPP)
		return import_fault(w, true, "set an attribute of");
	return 0;
}

mode_t import_meta_mode(const struct import *im, const struct stat *src)
{
	mode_t set_id = im->root || S_ISDIR(src->st_mode) ? 0 : S_ISUID | S_ISGID;

	return src->st_mode & 07777 & ~set_id;
}

static int set_owner(struct import_work *w, struct stat *now)
{
	uid_t uid = w->im->root && now->st_uid != w->st.st_uid ? w->st.st_uid : (uid_t)-1;
	gid_t gid = now->st_gid != w->st.st_gid ? w->st.st_gid : (gid_t)-1;

	if (uid == (uid_t)-1 && gid == (gid_t)-1)
		return 0;
	if (fchownat(w->dst, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
		return w->im->root || errno != EPERM ? import_fault(w, true, "set the owner of") : 0;
	return fstat(w->dst, now) < 0 ? import_fault(w, true, "look at") : 0;
}

static int set_mode(struct import_work *w, const struct stat *now)
{
	mode_t mode = import_meta_mode(w->im, &w->st);
	char to[FD_PATH];

	if (S_ISLNK(w->st.st_mode) || (now->st_mode & 07777) == mode)
		return 0;
	fd_path(to, w->dst);
	return chmod(to, mode) ? import_fault(w, true, "set the mode of") : 0;
}

static int set_times(struct import_work *w)
{
	const struct timespec times[2] = { w->st.st_atim, w->st.st_mtim };
	int ret = S_ISREG(w->st.st_mode) || S_ISDIR(w->st.st_mode)
	    ? futimens(w->dst, times)
	    : utimensat(w->dst, "", times, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);

	return ret ? import_fault(w, true, "set the times of") : 0;
}

int import_meta_copy(struct import_work *w)
{
	char *list CLEANUP_FREE = NULL;
	ssize_t len = S_ISLNK(w->st.st_mode) ? 0 : list_names(w, &list);
	struct stat now;
	int ret = len < 0 ? (int)len : each_name(w, list, len, BEFORE, BEFORE, set_one);

	for (const char *name = list; ret == 0 && name && name < list + len; name += strlen(name) + 1)
		if (when_to_set(w->im, name) == NEVER)
			left_out(w, name);
	if (ret == 0 && fstat(w->dst, &now) < 0)
		ret = import_fault(w, true, "look at");
	if (ret == 0)
		ret = set_owner(w, &now);
	if (ret == 0)
		ret = disinherit(w, list, len);
	if (ret == 0)
		ret = set_mode(w, &now);
	if (ret == 0)
		ret = each_name(w, list, len, AFTER, AFTER, set_one);
	return ret < 0 ? ret : set_times(w);
}

/* Asks the daemon, not the kernel's memory of what it was told. */
static int stat_now(struct import_work *w, struct stat *out)
{
	struct statx x;

	if (statx(w->dst, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &x) < 0)
		return import_fault(w, true, "look at");
	*out = (struct stat){ .st_mode = x.stx_mode,
		.st_uid = x.stx_uid,
		.st_gid = x.stx_gid,
		.st_size = (off_t)x.stx_size,
		.st_rdev = makedev(x.stx_rdev_major, x.stx_rdev_minor),
		.st_mtim = { .tv_sec = x.stx_mtime.tv_sec, .tv_nsec = x.stx_mtime.tv_nsec } };
	return 0;
}

int import_meta_compare(struct import_work *w)
{
	char *list CLEANUP_FREE = NULL;
	struct stat now;
	ssize_t len;
	int ret = stat_now(w, &now);

	if (ret < 0)
		return ret;
	w->target = true;
	w->what = IMPORT_ATTRIBUTES;
	if (!import_same(w->im, &w->st, &now))
		return -EBADMSG;
	len = S_ISLNK(w->st.st_mode) ? 0 : list_names(w, &list);
	return len < 0 ? (int)len : each_name(w, list, len, BEFORE, AFTER, compare_one);
}
