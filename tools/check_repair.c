/* check_repair.c — litter removed, what is beyond saving moved to the quarantine, lost copies and lengths restored.
 * Hides the order of things, and how a path longer than the kernel takes is walked. */
#include "check_repair.h"

#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "cmd.h"
#include "io.h"
#include "layout.h"
#include "xattr.h"

void repair_say(const struct repair_at *at, const char *action, uint64_t n, json_t *lost, const char *fmt, ...)
{
	char what[500], where[80] = "";
	json_t *json;
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (n)
		(void)snprintf(where, sizeof(where), ".byokfs/quarantine/%s/%" PRIu64, at->r->q.name, n);
	if (!at->r->list) {
		(void)printf("%s: %s%s%s%s: %s%s%s\n", action, at->cipher, at->plain ? " (" : "",
		    at->plain ? at->plain : "", at->plain ? ")" : "", what, n ? ": see " : "", where);
		json_decref(lost);
		return;
	}
	json = json_pack("{s:s,s:s,s:s}", "action", action, "path", at->cipher, "what", what);
	if (json && at->plain)
		(void)json_object_set_new(json, "plain", json_string(at->plain));
	if (json && n)
		(void)json_object_set_new(json, "quarantine", json_string(where));
	if (json && lost)
		(void)json_object_set(json, "lost", lost);
	json_decref(lost);
	if (json_array_size(at->r->list) < CHECK_FINDINGS)
		(void)json_array_append_new(at->r->list, json);
	else
		json_decref(json);
}

int repair_open_dir(const struct check *c, const char *path)
{
	int fd = openat(c->store->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	while (fd >= 0 && *path && strcmp(path, ".") != 0) {
		size_t len = strcspn(path, "/");
		char *part CLEANUP_FREE = strndup(path, len);
		int next = part ? openat(fd, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;

		(void)close(fd);
		fd = next;
		path += len;
		path += *path == '/';
	}
	return fd < 0 ? -errno : fd;
}

/* ---- litter ---- */

/* Nothing but reserved names in it? */
static bool is_hollow(int fd)
{
	int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = own >= 0 ? fdopendir(own) : NULL;
	const struct dirent *e;
	bool hollow = dir != NULL;

	while (dir && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
		    strcmp(e->d_name, NAME_DIR_FILE) != 0)
			hollow = false;
	if (dir)
		(void)closedir(dir);
	else if (own >= 0)
		(void)close(own);
	return hollow;
}

static int remove_dir(const struct repair_at *at)
{
	int fd CLEANUP_FD = openat(at->dirfd, at->entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (!is_hollow(fd))
		return repair_move(at, at->fix->why);
	if (unlinkat(fd, NAME_DIR_FILE, 0) < 0 && errno != ENOENT)
		return -errno;
	return unlinkat(at->dirfd, at->entry, AT_REMOVEDIR) == 0 ? 1 : -errno;
}

static int remove_litter(const struct repair_at *at)
{
	struct stat st;
	int ret;

	if (fstatat(at->dirfd, at->entry, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	ret = S_ISDIR(st.st_mode) ? remove_dir(at) : unlinkat(at->dirfd, at->entry, 0) == 0 ? 1 : -errno;
	if (ret <= 0)
		return ret;
	at->r->removed++;
	repair_say(at, "removed", 0, NULL, "%s", at->fix->why);
	return fsync(at->dirfd) == 0 ? 0 : -errno;
}

/* ---- the quarantine ---- */

static const char *type_of(const struct stat *st)
{
	if (S_ISREG(st->st_mode))
		return "file";
	return S_ISDIR(st->st_mode) ? "directory" : S_ISLNK(st->st_mode) ? "link" : "special";
}

int repair_move(const struct repair_at *at, const char *why)
{
	struct quarantine_item item = { .cipher = at->cipher, .plain = at->plain, .reason = why };
	char half[NAME_ENTRY_MAX + 3];
	struct stat st;
	int ret;

	if (fstatat(at->dirfd, at->entry, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno; /* it went with its directory, or by an earlier fix */
	item.type = type_of(&st);
	ret = quarantine_note(&at->r->q, &item);
	if (ret == 0)
		ret = quarantine_take(&at->r->q, at->dirfd, at->entry, "");
	if (ret < 0)
		return ret;
	/* without its entry it would be litter */
	(void)snprintf(half, sizeof(half), "%.255s.n", at->entry);
	if (strncmp(at->entry, "L.", 2) == 0 && fstatat(at->dirfd, half, &st, AT_SYMLINK_NOFOLLOW) == 0)
		ret = quarantine_take(&at->r->q, at->dirfd, half, ".n");
	at->r->moved++;
	at->r->losses += at->fix->lossy;
	repair_say(at, "moved", at->r->q.n, NULL, "%s", why);
	return ret;
}

/* ---- the rest ---- */

static int copy_descriptor(const struct repair_at *at)
{
	size_t len = strlen(at->entry), n = 0;
	char *text CLEANUP_FREE = NULL, *other CLEANUP_FREE = NULL;
	int ret;

	if (asprintf(&other, "%.*s%s", (int)(at->entry[len - 1] == '~' ? len - 1 : len), at->entry,
	        at->entry[len - 1] == '~' ? "" : "~") < 0)
		return -ENOMEM;
	ret = io_read_file(at->dirfd, other, DESCRIPTOR_STORE_BYTES, &text, &n);
	if (ret == 0)
		ret = io_replace_file(at->dirfd, at->entry, text, n, 0600);
	if (ret < 0)
		return ret;
	at->r->copied++;
	repair_say(at, "restored", 0, NULL, "from its other copy");
	return 0;
}

/* Without keys: the bytes of the last page only, as page 0 says, which is what stat believes anyway. */
static int set_length(const struct repair_at *at)
{
	int fd CLEANUP_FD = openat(at->dirfd, at->entry, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct header_state state;
	uint8_t page[LAYOUT_PAGE];
	struct stat st;
	uint64_t hint;

	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || io_pread(fd, page, sizeof(page), 0) != (ssize_t)sizeof(page) ||
	    header_state_hint(page, &state) < 0)
		return -EIO;
	hint = layout_hint(state.size, state.inlined);
	if (hint / LAYOUT_PAGE != (uint64_t)st.st_size / LAYOUT_PAGE)
		return -EIO;
	const struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, st.st_mtim };

	if (ftruncate(fd, (off_t)hint) < 0 || futimens(fd, times) < 0 || fsync(fd) < 0)
		return -errno;
	at->r->lengths++;
	repair_say(at, "repaired", 0, NULL, "its length is what its header says again");
	return 0;
}

/* A broken attribute is kept as it was: number n holds its sealed value. */
static int drop_xattr(const struct repair_at *at)
{
	struct quarantine_item item = { "attribute", at->cipher, at->plain, at->fix->why };
	size_t room = 65536;
	uint8_t *value CLEANUP_FREE = malloc(room);
	const char *name = *at->entry ? at->entry : ".";
	int fd CLEANUP_FD = openat(at->dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	ssize_t n;
	int ret;

	if (fd < 0 || !value)
		return fd < 0 ? -errno : -ENOMEM;
	n = fgetxattr(fd, at->fix->why, value, room);
	if (n < 0)
		return errno == ENODATA ? 0 : -errno;
	if (!at->fix->lossy) { /* half of a value that was never set */
		if (fremovexattr(fd, at->fix->why) < 0 || fsync(fd) < 0)
			return -errno;
		at->r->removed++;
		repair_say(at, "removed", 0, NULL, "attribute %s: half of one that was never finished", at->fix->why);
		return 0;
	}
	ret = quarantine_note(&at->r->q, &item);
	if (ret == 0)
		ret = quarantine_save(&at->r->q, value, (size_t)n);
	if (ret == 0 && (fremovexattr(fd, at->fix->why) < 0 || fsync(fd) < 0))
		ret = -errno;
	if (ret < 0)
		return ret;
	xattr_sweep(fd); /* its second half, if it had one */
	at->r->attributes++;
	at->r->losses++;
	repair_say(at, "moved", at->r->q.n, NULL, "attribute %s: it does not authenticate", at->fix->why);
	return 0;
}

static int one(const struct repair_at *at)
{
	switch (at->fix->kind) {
	case FIX_REMOVE:
		return remove_litter(at);
	case FIX_MOVE:
		return repair_move(at, at->fix->why);
	case FIX_COPY:
		return copy_descriptor(at);
	case FIX_HINT:
		return at->r->c->keys ? repair_mend(at) : set_length(at);
	case FIX_MEND:
		return repair_mend(at);
	case FIX_XATTR:
		return drop_xattr(at);
	}
	return -EINVAL;
}

/* The directory an entry is in; for a directory itself that is to be moved, the one above. */
static int locate(struct repair_at *at, char **above)
{
	const struct check_fix *f = at->fix;
	char *slash;

	at->entry = f->name;
	if (*f->name || f->kind != FIX_MOVE) {
		at->dirfd = repair_open_dir(at->r->c, f->path);
		return at->dirfd < 0 ? at->dirfd : 0;
	}
	*above = strdup(f->path);
	if (!*above)
		return -ENOMEM;
	slash = strrchr(*above, '/');
	at->entry = slash ? f->path + (slash + 1 - *above) : f->path;
	*(slash ? slash : *above) = '\0';
	at->dirfd = repair_open_dir(at->r->c, *above);
	return at->dirfd < 0 ? at->dirfd : 0;
}

static void attempt(struct repair *r, const struct check_fix *fix)
{
	struct repair_at at = { .r = r, .fix = fix, .dirfd = -1 };
	char *above CLEANUP_FREE = NULL;
	int ret = locate(&at, &above);

	at.cipher = check_cipher_path(fix->path, fix->name);
	at.plain = check_plain_path(r->c, fix->path, fix->name);
	if (!at.cipher)
		ret = -ENOMEM;
	if (ret == 0)
		ret = one(&at);
	if (ret < 0) {
		r->failed++;
		cmd_error("%s: cannot be repaired: %s", at.cipher ? at.cipher : fix->path, strerror(-ret));
	}
	cleanup_fd(&at.dirfd);
	free(at.cipher);
	free(at.plain);
}

void repair_run(struct repair *r, struct check *c, json_t *list)
{
	*r = (struct repair){ .c = c, .list = list };
	quarantine_init(&r->q, c->store->meta_fd);
	/* what is moved away takes paths with it: last */
	for (int moves = 0; moves < 2; moves++)
		for (const struct check_fix *f = c->fixes; f; f = f->next)
			if ((f->kind == FIX_MOVE) == (moves == 1))
				attempt(r, f);
}

void repair_end(struct repair *r)
{
	quarantine_close(&r->q);
}
