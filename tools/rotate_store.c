/* rotate_store.c — the store of a rotation, mounted or not, and the locks. Hides how a mount is found: by the control
 * sockets of this user, which tell their stores; a store that is held by somebody who does not answer is left alone. */
#include "rotate.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "io.h"

#define WHO 200u

/* ---- the lock of rotations */

static void read_who(int fd, char *who)
{
	char text[WHO];
	ssize_t n = io_pread(fd, text, sizeof(text) - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	job_text(who, WHO - 1, text);
	if (!*who)
		(void)snprintf(who, WHO, "another process");
}

static bool is_held(int fd)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	return fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
}

bool rotate_lock_held(int meta_fd, char *who)
{
	int fd CLEANUP_FD = openat(meta_fd, ROTATE_LOCK, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0 || !is_held(fd))
		return false;
	read_who(fd, who);
	return true;
}

static void write_who(int fd)
{
	char host[100] = "?", text[WHO];
	int n;

	(void)gethostname(host, sizeof(host) - 1);
	n = snprintf(text, sizeof(text), "process %d on host %s", (int)getpid(), host);
	if (ftruncate(fd, 0) || io_pwrite(fd, text, (size_t)n, 0))
		return; /* it is for people only */
}

static int take_lock(struct rotation *r)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	char who[WHO];
	struct stat st;

	r->lock_fd =
	    openat(r->store->meta_fd, ROTATE_LOCK, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
	if (r->lock_fd < 0 || fstat(r->lock_fd, &st) || !S_ISREG(st.st_mode)) {
		cmd_error("cannot open '%s/.byokfs/" ROTATE_LOCK "': %s", r->store->path,
		    r->lock_fd < 0 ? strerror(errno) : "it is no regular file");
		return EXIT_FAILED;
	}
	if (fcntl(r->lock_fd, F_OFD_SETLK, &whole) == 0) {
		write_who(r->lock_fd);
		return EXIT_OK;
	}
	if (errno != EAGAIN && errno != EACCES) {
		cmd_error("cannot lock '%s/.byokfs/" ROTATE_LOCK "': %s", r->store->path, strerror(errno));
		return EXIT_FAILED;
	}
	read_who(r->lock_fd, who);
	cmd_error("a rotation is under way on this store, by %s", who);
	return EXIT_ALREADY;
}

/* ---- the store */

static int open_store(struct rotation *r, const char *path, bool readonly)
{
	struct store_options options = { .readonly = readonly, .torn_ok = true };
	char why[STORE_WHY];
	int ret;

	r->store = calloc(1, sizeof(*r->store));
	ret = r->store ? store_open(r->store, path, &options, why) : -ENOMEM;
	if (ret == 0)
		return EXIT_OK;
	cmd_error("%s", r->store ? why : "out of memory");
	if (ret == -EBUSY)
		cmd_hint("it is in use by somebody who does not answer here: another host, another user, or a tool");
	free(steal_ptr(&r->store));
	return cmd_exit_store(ret);
}

static void shut_store(struct rotation *r)
{
	if (r->store)
		store_close(r->store, false);
	free(steal_ptr(&r->store));
}

static int find_mount(struct rotation *r)
{
	struct stat st;
	int ret = live_at(&r->live, r->path);

	if (ret == 0 && r->live)
		r->path = live_cipherdir(r->live);
	if (ret == 0 && stat(r->path, &st) < 0) {
		cmd_error("cannot open store '%s': %s", r->path, strerror(errno));
		return errno == ENOENT ? EXIT_NOT_A_STORE : EXIT_FAILED;
	}
	if (ret == 0) { /* the mount given may be a read-only one */
		struct live *writer = NULL;

		ret = live_find(&writer, &st);
		r->at = r->live;
		r->live = writer;
	}
	if (ret == 0)
		return EXIT_OK;
	cmd_error("cannot look for mounts: %s", strerror(-ret));
	return EXIT_FAILED;
}

int rotate_open(struct rotation *r, bool lock)
{
	int code = find_mount(r);

	if (code == EXIT_OK)
		code = open_store(r, r->path, true);
	if (code != EXIT_OK || !r->store || !lock)
		return code;
	code = take_lock(r);
	if (code != EXIT_OK || r->live)
		return code;
	/* Read again under the store's own lock. */
	shut_store(r);
	return open_store(r, r->path, false);
}

void rotate_close(struct rotation *r)
{
	live_close(r->live);
	live_close(r->at);
	shut_store(r);
	cleanup_fd(&r->lock_fd);
}
