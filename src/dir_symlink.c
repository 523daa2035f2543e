/* Symlinks. Hides that a long target does not fit: encrypted it may have 5,492 characters, and symlinks hold 4,095, on
 * XFS 1,023. Then the symlink holds the first 1,020 after a dot, and what they leave over is an attribute of the
 * symlink itself, in bytes. Only root may give a symlink attributes, and not every backing takes them: else long
 * targets are ENAMETOOLONG. A content of 1,021 characters is no base64, so its length alone tells. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "bytes.h"
#include "dir_internal.h"
#include "log.h"

#define REST       "trusted.byokfs.link"
#define HEAD_TEXT  1020u
#define HEAD_BYTES (HEAD_TEXT / 4u * 3u)
#define LONG_SIZE  (1u + HEAD_TEXT)
_Static_assert(LONG_SIZE == DIR_LINK_LONG, "as dir.h says");
#define TEXT_MAX   NAME_LINK_TEXT(NAME_LINK_MAX)
#define PROC       (sizeof("/proc/self/fd//") + 10 + NAME_ENTRY_MAX + 1)

/* A way to the symlink that the path calls for attributes can take: O_PATH descriptors have no f*xattr. */
static const char *proc_path(char out[static PROC], int fd, const char *entry)
{
	(void)snprintf(out, PROC, "/proc/self/fd/%d%s%.*s", fd, *entry ? "/" : "", (int)NAME_ENTRY_MAX, entry);
	return out;
}

static ssize_t rest_get(int fd, const char *entry, void *value, size_t size)
{
	char path[PROC];
	/* "" means the link that fd itself stands for: its /proc name is followed to it, and no further. */
	ssize_t n = *entry ? lgetxattr(proc_path(path, fd, entry), REST, value, size)
	                   : getxattr(proc_path(path, fd, entry), REST, value, size);

	return n < 0 ? -errno : n;
}

static int rest_set(int fd, const char *entry, const char *text)
{
	uint8_t raw[TEXT_MAX];
	char path[PROC];
	int n = bytes_unb64(B64_URL, raw, sizeof(raw), text, strlen(text));

	if (n < 0)
		return n;
	if (!lsetxattr(proc_path(path, fd, entry), REST, raw, (size_t)n, XATTR_CREATE))
		return 0;
	return errno == ENOSPC || errno == EDQUOT || errno == EIO ? -errno : -ENAMETOOLONG;
}

/* Complete under a temporary name before anybody sees it. */
static int make_long(const struct dir_place *place, const char *text)
{
	char temp[DIR_TEMP], head[LONG_SIZE + 1];
	int r;

	dir_temp_name(temp, "tmp");
	(void)snprintf(head, sizeof(head), ".%.*s", (int)HEAD_TEXT, text);
	if (symlinkat(head, place->fd, temp))
		return -errno;
	r = rest_set(place->fd, temp, text + HEAD_TEXT);
	if (!r)
		r = dir_rename_new(place->fd, temp, place->fd, place->name.entry, true);
	if (r)
		(void)unlinkat(place->fd, temp, 0);
	return r;
}

static int make(const struct dir_place *place, const char *text)
{
	if (!symlinkat(text, place->fd, place->name.entry))
		return 0;
	return errno == ENAMETOOLONG && strlen(text) > HEAD_TEXT ? make_long(place, text) : -errno;
}

int dir_symlink(const struct dir *d, const char *name, size_t len, const char *target, size_t targetlen,
    const struct dir_owner *owner, struct stat *st)
{
	char text[TEXT_MAX];
	struct dir_place place;
	int r;

	if (!targetlen)
		return -ENOENT;
	r = name_link_encrypt(d->names, target, targetlen, text, sizeof(text) - 1);
	if (r < 0)
		return r;
	r = dir_place_make(&place, d, name, len);
	if (!r)
		r = dir_long_make(&place);
	if (r)
		return r;
	r = make(&place, text);
	if (r)
		dir_long_drop(&place);
	return r ? r : dir_finish_entry(&place, 0, NULL, owner, st);
}

int dir_link_text(int fd, const char *entry, char out[static TEXT_MAX])
{
	uint8_t rest[TEXT_MAX - HEAD_TEXT];
	char head[TEXT_MAX];
	ssize_t n = readlinkat(fd, entry, head, sizeof(head) - 1), left;

	if (n < 0)
		return -errno;
	head[n] = 0;
	if (n != LONG_SIZE || head[0] != '.') {
		memcpy(out, head, (size_t)n + 1);
		return (int)n;
	}
	left = rest_get(fd, entry, rest, sizeof(rest) / 4 * 3);
	if (left <= 0)
		return left == -ENODATA || left == -ERANGE || left == -EOPNOTSUPP || !left ? -EBADMSG : (int)left;
	memcpy(out, head + 1, HEAD_TEXT);
	return (int)(HEAD_TEXT + bytes_b64(B64_URL, out + HEAD_TEXT, rest, (size_t)left));
}

uint64_t dir_link_size(int fd, const char *entry, uint64_t st_size)
{
	ssize_t left = st_size == LONG_SIZE ? rest_get(fd, entry, NULL, 0) : -1;

	return left < 0 ? name_link_size(st_size) : name_link_size((4 * (HEAD_BYTES + (uint64_t)left) + 2) / 3);
}

int dir_readlink(int fd, const char *entry, const struct name_keys *names, char *out)
{
	char text[TEXT_MAX], where[DIR_WHERE];
	int r = dir_link_text(fd, entry, text);

	if (r >= 0)
		r = name_link_decrypt(names, text, (size_t)r, out);
	if (r != -EBADMSG)
		return r;
	log_damage("%s%s%s: symlink target does not authenticate", dir_where(fd, where), *entry ? "/" : "", entry);
	return -EIO;
}
