/* audit_file.c — the file an audit goes on in: whose it is, that nobody else writes it, and where its chain ended.
 *
 * A crash may leave half a line, or a hole of zeros, behind the last whole line. Those bytes stay where they are: the
 * next line says how they hash, and its `prev` is the last whole line's. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "audit_internal.h"
#include "io.h"

static int refuse(char *why, int err, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int refuse(char *why, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(why, AUDIT_WHY, fmt, ap);
	va_end(ap);
	return -err;
}

static int check_owner(int fd, const char *path, char *why)
{
	struct stat st;

	if (fstat(fd, &st))
		return refuse(why, errno, "cannot look at the audit file '%.300s': %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return refuse(why, EINVAL, "the audit file '%.300s' is not a regular file", path);
	if (st.st_uid != geteuid())
		return refuse(why, EINVAL, "the audit file '%.300s' belongs to uid %u, not to uid %u", path, st.st_uid,
		    geteuid());
	if (st.st_mode & (S_IWGRP | S_IWOTH))
		return refuse(why, EINVAL, "others may write the audit file '%.300s' (mode %04o)", path,
		    (unsigned)st.st_mode & 07777u);
	return 0;
}

int audit_file_open(int *out, const char *path, char why[static AUDIT_WHY])
{
	/* O_NONBLOCK: a pipe put there must not stop us. */
	CLEANUP_FD int fd =
	    open(path, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
	int r;

	if (fd < 0)
		return refuse(why, errno, "cannot open the audit file '%.300s': %s", path, strerror(errno));
	r = check_owner(fd, path, why);
	if (r)
		return r;
	if (flock(fd, LOCK_EX | LOCK_NB))
		return errno == EWOULDBLOCK
		    ? refuse(why, EBUSY, "the audit file '%.300s' is in use by another mount or command", path)
		    : refuse(why, errno, "cannot lock the audit file '%.300s': %s", path, strerror(errno));
	*out = steal_fd(&fd);
	return 0;
}

/* Does a whole line end at `end`, and where does it begin? */
static bool whole_line(const char *bytes, size_t end, size_t *begin, struct audit_chain *chain)
{
	struct audit_record rec;
	const char *before = memrchr(bytes, '\n', end);

	*begin = before ? (size_t)(before - bytes) + 1 : 0;
	if (audit_parse(&rec, bytes + *begin, end - *begin))
		return false;
	json_decref(rec.json);
	chain->seq = rec.seq;
	audit_hash(chain->head, bytes + *begin, end - *begin);
	return true;
}

/* Goes back line by line. Returns the end of the last whole one, or 0. */
static size_t last_whole(const char *bytes, size_t n, struct audit_chain *chain)
{
	size_t end = n, begin;

	while (end) {
		if (bytes[end - 1] == '\n')
			end--;
		if (whole_line(bytes, end, &begin, chain))
			return end;
		end = begin;
	}
	return 0;
}

static int judge(const char *bytes, size_t n, bool all, struct audit_chain *chain, struct audit_tail *tail)
{
	static const char front[] = "{\"seq\":";
	size_t end = last_whole(bytes, n, chain), from = end ? end + 1 : 0;

	/* Of a first line that was torn at least this must be there: else it is somebody else's file. */
	if (!end && (!all || n < sizeof(front) - 1 || strncmp(bytes, front, sizeof(front) - 1) != 0))
		return -EINVAL;
	tail->newline = bytes[n - 1] != '\n';
	if (from >= n)
		return 0;
	tail->torn = true;
	audit_hash(tail->torn_hash, bytes + from, n - from - !tail->newline);
	return 0;
}

int audit_file_tail(
    int fd, const char *path, struct audit_chain *chain, struct audit_tail *tail, char why[static AUDIT_WHY])
{
	CLEANUP_FREE char *bytes = NULL;
	struct stat st;
	ssize_t n;

	memset(tail, 0, sizeof(*tail));
	memset(chain, 0, sizeof(*chain));
	if (fstat(fd, &st))
		return refuse(why, errno, "cannot look at the audit file '%.300s': %s", path, strerror(errno));
	tail->empty = st.st_size == 0;
	if (tail->empty)
		return 0;
	bool all = st.st_size <= (off_t)AUDIT_TAIL;
	size_t size = all ? (size_t)st.st_size : AUDIT_TAIL;

	bytes = malloc(size);
	if (!bytes)
		return refuse(why, ENOMEM, "out of memory");
	n = io_pread(fd, bytes, size, (uint64_t)st.st_size - size);
	if (n <= 0)
		return refuse(why, n ? (int)-n : EIO, "cannot read the audit file '%.300s'", path);
	if (judge(bytes, (size_t)n, all, chain, tail))
		return refuse(why, EINVAL, "'%.300s' does not end like an audit file", path);
	return 0;
}
