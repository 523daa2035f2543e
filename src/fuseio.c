/* Reads and writes /dev/fuse for libfuse, and speaks the few words of the protocol libfuse 3.14 does not know.
 *
 * The kernel offers flags in the INIT request; libfuse answers with those it wants but forgets PARALLEL_DIROPS and has
 * never heard of HANDLE_KILLPRIV_V2. The first costs a mutex per directory round every look-up, the second a GETXATTR
 * per write(2). Both are only one bit in the answer, so the answer is patched on its way out. SETXATTR_EXT is never
 * added: it changes the layout of a request that libfuse parses itself. */
#include "fuseio.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include "fuseio_internal.h"
#include "log.h"

/* Protocol 7.44; the kernel's header may be older than the kernel. */
#define NOTIFY_INC_EPOCH 8
#define WANTED           ((uint32_t)FUSE_PARALLEL_DIROPS | (uint32_t)FUSE_HANDLE_KILLPRIV_V2)

/* One session per process. The offer is written by the thread that reads INIT and used by the one that answers it. */
static _Atomic uint64_t offered_unique;
static _Atomic uint32_t offered_flags, offered_flags2, negotiated_flags;
static struct fuse_session *session;
static _Thread_local bool kill_suidgid;

static atomic_uint idle;
static atomic_bool polled;
static _Atomic uint64_t answers;

uint64_t fuseio_answered(void)
{
	return atomic_load(&answers);
}

unsigned fuseio_idle(void)
{
	int ring = fuseio_ring_idle();

	return ring < 0 ? atomic_load(&idle) : (unsigned)ring;
}

/* ---- bytes ---- */

bool fuseio_parse_init(const void *request, size_t n, struct fuseio_offer *out)
{
	struct fuse_in_header in;
	struct fuse_init_in init;
	/* Older kernels send only the first four fields. */
	size_t least = sizeof(in) + offsetof(struct fuse_init_in, flags) + sizeof(init.flags);

	if (n < least)
		return false;
	memcpy(&in, request, sizeof(in));
	if (in.opcode != FUSE_INIT)
		return false;
	memcpy(
	    &out->flags, (const char *)request + sizeof(in) + offsetof(struct fuse_init_in, flags), sizeof(out->flags));
	out->unique = in.unique;
	out->flags2 = 0;
	if (out->flags & FUSE_INIT_EXT && n >= sizeof(in) + offsetof(struct fuse_init_in, flags2) + sizeof(out->flags2))
		memcpy(&out->flags2, (const char *)request + sizeof(in) + offsetof(struct fuse_init_in, flags2),
		    sizeof(out->flags2));
	return true;
}

bool fuseio_patch_init(const struct fuseio_offer *offer, struct fuse_init_out *out, size_t n)
{
	if (n < offsetof(struct fuse_init_out, flags) + sizeof(out->flags))
		return false;
	out->flags |= offer->flags & WANTED;
	return true;
}

bool fuseio_patch_init2(struct fuse_init_out *out, size_t n, uint32_t flag2)
{
	if (n < offsetof(struct fuse_init_out, flags2) + sizeof(out->flags2))
		return false;
	if (!(out->flags & (uint32_t)FUSE_INIT_EXT))
		out->flags2 = 0;
	out->flags |= (uint32_t)FUSE_INIT_EXT;
	out->flags2 |= flag2;
	return true;
}

/* The u32 at `offset` of the request's argument; 0 when the request is shorter. */
static uint32_t argument_u32(const void *request, size_t n, size_t offset)
{
	size_t at = sizeof(struct fuse_in_header) + offset;
	uint32_t v = 0;

	if (n >= at + sizeof(v))
		memcpy(&v, (const char *)request + at, sizeof(v));
	return v;
}

bool fuseio_parse_kill(const void *request, size_t n)
{
	struct fuse_in_header in;

	if (n < sizeof(in))
		return false;
	memcpy(&in, request, sizeof(in));
	switch (in.opcode) {
	case FUSE_WRITE:
		return argument_u32(request, n, offsetof(struct fuse_write_in, write_flags)) & FUSE_WRITE_KILL_SUIDGID;
	case FUSE_SETATTR:
		return argument_u32(request, n, offsetof(struct fuse_setattr_in, valid)) & FATTR_KILL_SUIDGID;
	case FUSE_OPEN:
		return argument_u32(request, n, offsetof(struct fuse_open_in, open_flags)) & FUSE_OPEN_KILL_SUIDGID;
	case FUSE_CREATE:
		return argument_u32(request, n, offsetof(struct fuse_create_in, open_flags)) & FUSE_OPEN_KILL_SUIDGID;
	default:
		return false;
	}
}

/* ---- hooks ---- */

/* With a ring the device only brings what needs no haste, and waiting for that must be told from hanging: alive.c. The
 * descriptor does not block then. */
static ssize_t wait_and_read(int fd, void *buf, size_t size)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	ssize_t n;

	do {
		if (atomic_load_explicit(&polled, memory_order_relaxed) && poll(&p, 1, -1) < 0)
			return -1;
		n = read(fd, buf, size);
	} while (n < 0 && errno == EAGAIN);
	return n;
}

static void set_polled(int fd, bool on)
{
	int flags = fcntl(fd, F_GETFL);

	atomic_store(&polled, on);
	if (flags < 0 || fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK))
		log_debug("the device's flags cannot be set: %s", strerror(errno));
}

void fuseio_begin(void *request, size_t n)
{
	(void)fuseio_translate(request, n);
	fuseio_time_begin(request, n, histogram_clock());
	kill_suidgid = fuseio_parse_kill(request, n);
}

static ssize_t hook_read(int fd, void *buf, size_t size, void *userdata)
{
	static _Thread_local size_t last;
	struct fuseio_offer offer;
	ssize_t n;

	(void)userdata;
	/* libfuse gives each thread one buffer for good: names and data of the last request must not wait in it for the
	 * next. */
	explicit_bzero(buf, last < size ? last : size);
	atomic_fetch_add_explicit(&idle, 1, memory_order_relaxed);
	n = wait_and_read(fd, buf, size);
	atomic_fetch_sub_explicit(&idle, 1, memory_order_relaxed);
	last = n > 0 ? (size_t)n : 0;
	if (n <= 0)
		return n;
	fuseio_begin(buf, (size_t)n);
	if (fuseio_parse_init(buf, (size_t)n, &offer)) {
		atomic_store(&offered_flags, offer.flags);
		atomic_store(&offered_flags2, offer.flags2);
		atomic_store(&offered_unique, offer.unique);
	}
	return n;
}

/* Whom to tell that INIT was answered. */
static struct {
	void (*fn)(void *arg);
	void *arg;
} answered;

static struct fuseio_offer current_offer(void)
{
	return (struct fuseio_offer){ .unique = atomic_load(&offered_unique),
		.flags = atomic_load(&offered_flags),
		.flags2 = atomic_load(&offered_flags2) };
}

/* Is this the answer to the INIT that was read? Then its body is patched in a copy. */
static bool patch_reply(const struct iovec *iov, int count, struct fuse_init_out *out)
{
	struct fuseio_offer offer = current_offer();
	struct fuse_out_header head;

	if (!offer.unique || count != 2 || iov[0].iov_len != sizeof(head) || iov[1].iov_len > sizeof(*out))
		return false;
	memcpy(&head, iov[0].iov_base, sizeof(head));
	if (head.unique != offer.unique || head.error)
		return false;
	memcpy(out, iov[1].iov_base, iov[1].iov_len);
	return fuseio_patch_init(&offer, out, iov[1].iov_len);
}

static ssize_t write_init(int fd, const struct iovec *iov, struct fuse_init_out *out)
{
	struct iovec patched[2] = { iov[0], { .iov_base = out, .iov_len = iov[1].iov_len } };
	struct fuseio_offer offer = current_offer();
	bool ring = fuseio_ring_prepare(session, &offer, out, iov[1].iov_len);

	/* The next request with this unique number is not an INIT. */
	atomic_store(&offered_unique, 0);
	atomic_store(&negotiated_flags, out->flags);
	ssize_t n = writev(fd, patched, 2);

	if (ring)
		fuseio_ring_go(n > 0);
	if (fuseio_ring_idle() < 0 && atomic_load(&polled))
		set_polled(fd, false);
	if (n > 0 && answered.fn)
		answered.fn(answered.arg);
	return n;
}

static ssize_t total(const struct iovec *iov, int count)
{
	size_t n = 0;

	for (int i = 0; i < count; i++)
		n += iov[i].iov_len;
	return (ssize_t)n;
}

static ssize_t hook_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	struct fuse_init_out out;
	struct fuse_out_header head;
	int r;

	(void)userdata;
	if (count > 0 && iov[0].iov_len >= sizeof(head)) {
		memcpy(&head, iov[0].iov_base, sizeof(head));
		fuseio_time_end(head.unique, histogram_clock());
		atomic_fetch_add_explicit(&answers, head.unique != 0, memory_order_relaxed);
	}
	r = fuseio_ring_answer(iov, count);
	if (r == 0)
		return total(iov, count);
	if (r != -ESRCH) {
		errno = -r;
		return -1;
	}
	if (!atomic_load_explicit(&offered_unique, memory_order_relaxed) || !patch_reply(iov, count, &out))
		return writev(fd, iov, count);
	return write_init(fd, iov, &out);
}

int fuseio_attach(struct fuse_session *se, void (*ready)(void *arg), void *arg)
{
	static const struct fuse_custom_io hooks = { .read = hook_read, .writev = hook_writev };
	int r;

	answered.fn = ready;
	answered.arg = arg;
	session = se;
	if (fuseio_ring_wanted())
		set_polled(fuse_session_fd(se), true);
	r = fuse_session_custom_io(se, &hooks, fuse_session_fd(se));

	return r < 0 ? r : 0;
}

uint32_t fuseio_init_flags(void)
{
	return atomic_load(&negotiated_flags);
}

bool fuseio_kill_suidgid(void)
{
	return kill_suidgid;
}

/* ---- notifications ---- */

/* A notification is a reply to nobody: unique 0, the code where the error would be. */
static int notify(int fd, int code, void *body, size_t n)
{
	struct fuse_out_header head = { .len = (uint32_t)(sizeof(head) + n), .error = code };
	struct iovec iov[2] = { { .iov_base = &head, .iov_len = sizeof(head) }, { .iov_base = body, .iov_len = n } };

	return writev(fd, iov, n ? 2 : 1) < 0 ? -errno : 0;
}

int fuseio_inval_inode(int fd, uint64_t nodeid)
{
	/* From 0 on, to the end (len 0): a negative offset would spare the pages. */
	struct fuse_notify_inval_inode_out out = { .ino = nodeid, .off = 0, .len = 0 };

	return notify(fd, FUSE_NOTIFY_INVAL_INODE, &out, sizeof(out));
}

int fuseio_inc_epoch(int fd)
{
	return notify(fd, NOTIFY_INC_EPOCH, NULL, 0);
}

/* ---- sysfs ---- */

int fuseio_connection(const char *mountpoint, unsigned *connection)
{
	struct statx st;

	/* Without DONT_SYNC the kernel might ask the daemon, who is asking. */
	if (statx(AT_FDCWD, mountpoint, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, 0, &st))
		return -errno;
	*connection = st.stx_dev_minor;
	return 0;
}

int fuseio_readahead(unsigned connection, unsigned kib)
{
	char path[80], text[16];
	CLEANUP_FD int fd = -1;
	int n = snprintf(text, sizeof(text), "%u", kib);

	(void)snprintf(path, sizeof(path), "/sys/class/bdi/0:%u/read_ahead_kb", connection);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, (size_t)n) < 0)
		return -errno;
	return 0;
}

static int raise_file(unsigned connection, const char *name, unsigned n)
{
	char path[80], text[16] = "";
	CLEANUP_FD int fd = -1;

	(void)snprintf(path, sizeof(path), "/sys/fs/fuse/connections/%u/%s", connection, name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return fd < 0 ? -errno : -EIO;
	if (strtoul(text, NULL, 10) >= n)
		return 0;
	int len = snprintf(text, sizeof(text), "%u", n);

	return pwrite(fd, text, (size_t)len, 0) < 0 ? -errno : 0;
}

int fuseio_background(unsigned connection, unsigned n)
{
	int r = raise_file(connection, "max_background", n);

	return r ? r : raise_file(connection, "congestion_threshold", n * 3 / 4);
}

/* A look at the fusectl file system where nobody mounted it; nothing appears in the tree. Needs CAP_SYS_ADMIN. */
static int open_fusectl(void)
{
	CLEANUP_FD int fs = fsopen("fusectl", FSOPEN_CLOEXEC);

	if (fs < 0 || fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -1;
	return fsmount(fs, FSMOUNT_CLOEXEC, 0);
}

int fuseio_open_abort(unsigned connection)
{
	char path[64];
	CLEANUP_FD int dir = open("/sys/fs/fuse/connections", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd;

	if (!connection)
		return -1;
	(void)snprintf(path, sizeof(path), "%u/abort", connection);
	fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	cleanup_fd(&dir);
	dir = open_fusectl();
	return openat(dir, path, O_WRONLY | O_CLOEXEC);
}
