/* Whether requests come over io_uring: asked for, offered by the kernel, possible here. Hides the only ring there is,
 * and finds words for why there is none. */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdatomic.h>

#include "fuseio_internal.h"
#include "log.h"
#include "uring.h"

#define PARAMETER "/sys/module/fuse/parameters/enable_uring"

static struct {
	bool wanted, silent;
	unsigned workers;
} wish;

static _Atomic(struct uring *) ring; /* set before the kernel knows of it */
static atomic_bool live;

void fuseio_want_ring(unsigned workers, bool silent)
{
	wish.wanted = true;
	wish.silent = silent;
	wish.workers = workers;
}

bool fuseio_ring_wanted(void)
{
	return wish.wanted;
}

const char *fuseio_transport(void)
{
	return atomic_load(&live) ? "io_uring" : "fuse";
}

static void say(const char *why)
{
	log_at(wish.silent ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN, "no io_uring, requests come through /dev/fuse: %s", why);
}

/* The kernel did not offer it. */
static void say_not_offered(void)
{
	char value = 0;
	CLEANUP_FD int fd = open(PARAMETER, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		say("this kernel cannot (Linux 6.14 with CONFIG_FUSE_IO_URING can)");
	else if (read(fd, &value, 1) == 1 && value == 'N')
		say("the kernel may not; 'echo Y > " PARAMETER
		    "' before mounting, or fuse.enable_uring=1 at boot, allows "
		    "it");
	else
		say("the kernel did not offer it");
}

static void handle(void *arg, void *request, size_t n)
{
	struct fuse_buf buf = { .size = n, .mem = request };

	fuseio_begin(request, n);
	fuse_session_process_buf(arg, &buf);
}

/* The largest request, and the largest answer, without their headers. */
static size_t payload_of(const struct fuse_init_out *out)
{
	size_t pages = out->flags & FUSE_MAX_PAGES && out->max_pages ? out->max_pages : 32,
	       bytes = pages * (size_t)sysconf(_SC_PAGESIZE);

	return bytes > out->max_write ? bytes : out->max_write;
}

bool fuseio_ring_prepare(struct fuse_session *se, const struct fuseio_offer *offer, struct fuse_init_out *out, size_t n)
{
	struct uring_params p = { .device = fuse_session_fd(se), .workers = wish.workers, .handle = handle, .arg = se };
	char why[URING_WHY];
	struct uring *u;

	if (!wish.wanted)
		return false;
	if (!(offer->flags2 & FUSEIO_OVER_IO_URING) || n < sizeof(*out)) {
		say_not_offered();
		return false;
	}
	p.payload = payload_of(out);
	if (uring_open(&u, &p, why)) {
		say(why);
		return false;
	}
	atomic_store(&ring, u);
	return fuseio_patch_init2(out, n, FUSEIO_OVER_IO_URING);
}

void fuseio_ring_go(bool accepted)
{
	struct uring *u = atomic_load(&ring);
	int r = accepted ? uring_go(u) : -ECONNABORTED;

	if (r)
		say(accepted ? strerror(-r) : "the connection has ended");
	atomic_store(&live, r == 0);
}

int fuseio_ring_answer(const struct iovec *iov, int count)
{
	struct uring *u = atomic_load_explicit(&ring, memory_order_acquire);

	return u ? uring_answer(u, iov, count) : -ESRCH;
}

int fuseio_ring_idle(void)
{
	return atomic_load(&live) ? uring_idle(atomic_load(&ring)) : -1;
}

void *fuseio_room(size_t n)
{
	return uring_room(n);
}

void fuseio_ring_stop(void)
{
	struct uring *u = atomic_load(&ring);

	if (u)
		uring_stop(u);
}

void fuseio_ring_close(void)
{
	atomic_store(&live, false);
	uring_close(atomic_exchange(&ring, NULL));
}
