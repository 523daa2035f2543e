/* fuseio_internal.h — the pure halves of the hooks, for tests: bytes in, numbers and bytes out. */
#ifndef BYOKFS_FUSEIO_INTERNAL_H
#define BYOKFS_FUSEIO_INTERNAL_H

#include <linux/fuse.h>
#include <sys/uio.h>

#include "fuseio.h"

/* What an INIT request offers; false when the bytes are no (complete) INIT request. */
struct fuseio_offer {
	uint64_t unique;
	uint32_t flags, flags2; /* flags2: the upper half; 0 from kernels without */
};
bool fuseio_parse_init(const void *request, size_t n, struct fuseio_offer *out);
/* Adds to the reply's flags what was offered and libfuse does not ask for. n: bytes of out that the reply really has.
 * false: too short to be one, untouched. */
bool fuseio_patch_init(const struct fuseio_offer *, struct fuse_init_out *out, size_t n);
/* The answer's other half of flags gets this bit as well. False: the answer has no place for it, untouched. */
bool fuseio_patch_init2(struct fuse_init_out *out, size_t n, uint32_t flag2);
/* Does a request ask to drop setuid and setgid bits? */
bool fuseio_parse_kill(const void *request, size_t n);
/* Rewrites a request of a kind that libfuse does not know into one that it does; false: it is none of these. Must see
 * every request, before libfuse and fuseio_time_begin do, on the thread that will handle it. */
bool fuseio_translate(void *request, size_t n);
/* A request was read; the one with this number (0: a notification) is about to be answered. now: histogram_clock(). */
void fuseio_time_begin(const void *request, size_t n, uint64_t now);
void fuseio_time_end(uint64_t unique, uint64_t now);

/* Of the upper half of the flags: requests come over io_uring. */
#define FUSEIO_OVER_IO_URING ((uint32_t)1 << 9)

/* ---- the other transport (fuseio_ring.c) */

/* Is it wanted, and not yet decided? */
bool fuseio_ring_wanted(void);
/* INIT is about to be answered with out: everything is set up for a ring, and out says so; or the reason why not is
 * logged. True: fuseio_ring_go() follows. */
bool fuseio_ring_prepare(struct fuse_session *, const struct fuseio_offer *, struct fuse_init_out *out, size_t n);
/* The kernel has the answer; false: it could not take it. */
void fuseio_ring_go(bool accepted);
/* As uring_answer(); -ESRCH without a ring. */
MUST_CHECK int fuseio_ring_answer(const struct iovec *, int count);
/* 1 or 0: the threads of the ring are ready for requests, or not all. -1: there is no ring. */
int fuseio_ring_idle(void);
/* A request has come, on any way: before it is handled on this thread. */
void fuseio_begin(void *request, size_t n);

#endif
