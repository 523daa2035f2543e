/* fuseio_internal.h — the pure halves of the hooks, for tests: bytes in, numbers and bytes out. */
#ifndef BYOKFS_FUSEIO_INTERNAL_H
#define BYOKFS_FUSEIO_INTERNAL_H

#include <linux/fuse.h>

#include "fuseio.h"

/* What an INIT request offers; false when the bytes are no (complete) INIT request. */
struct fuseio_offer {
	uint64_t unique;
	uint32_t flags;
};
bool fuseio_parse_init(const void *request, size_t n, struct fuseio_offer *out);
/* Adds to the reply's flags what was offered and libfuse does not ask for. n: bytes of out that the reply really has.
 * false: too short to be one, untouched. */
bool fuseio_patch_init(const struct fuseio_offer *, struct fuse_init_out *out, size_t n);
/* Does a request ask to drop setuid and setgid bits? */
bool fuseio_parse_kill(const void *request, size_t n);
/* Rewrites a request of a kind that libfuse does not know into one that it does; false: it is none of these. Must see
 * every request, before libfuse and fuseio_time_begin do, on the thread that will handle it. */
bool fuseio_translate(void *request, size_t n);
/* A request was read; the one with this number (0: a notification) is about to be answered. now: histogram_clock(). */
void fuseio_time_begin(const void *request, size_t n, uint64_t now);
void fuseio_time_end(uint64_t unique, uint64_t now);

#endif
