/* fuseio_time.c — how long requests take, from the moment they were read to the moment they are answered, whoever
 * answers them: waiting for a key is part of it.
 *
 * Hides where the beginning is kept meanwhile: in a table by the request's number, without a lock. Two requests under
 * way that meet in one place cost the earlier one its measurement, no more. Requests without an answer (FORGET) are not
 * counted. */
#include "fuseio.h"

#include <stdatomic.h>
#include <string.h>

#include "fuseio_internal.h"

#define PLACES_LOG2 11u

static struct histogram latency[FUSEIO_KINDS];

static struct place {
	_Atomic uint64_t unique; /* 0: nobody's */
	_Atomic uint64_t begun;  /* histogram_clock() */
	_Atomic uint32_t kind;
} places[1u << PLACES_LOG2];

static const char *const names[FUSEIO_KINDS] = { [FUSEIO_OTHER] = "other",
	[FUSEIO_LOOKUP] = "lookup",
	[FUSEIO_GETATTR] = "getattr",
	[FUSEIO_SETATTR] = "setattr",
	[FUSEIO_OPEN] = "open",
	[FUSEIO_CREATE] = "create",
	[FUSEIO_READ] = "read",
	[FUSEIO_WRITE] = "write",
	[FUSEIO_FSYNC] = "fsync",
	[FUSEIO_FLUSH] = "flush",
	[FUSEIO_READDIR] = "readdir",
	[FUSEIO_RENAME] = "rename",
	[FUSEIO_UNLINK] = "unlink",
	[FUSEIO_XATTR] = "xattr" };

/* FUSEIO_OTHER is 0: what is not listed. */
static const uint8_t kinds[] = { [FUSE_LOOKUP] = FUSEIO_LOOKUP,
	[FUSE_GETATTR] = FUSEIO_GETATTR,
	[FUSE_SETATTR] = FUSEIO_SETATTR,
	[FUSE_OPEN] = FUSEIO_OPEN,
	[FUSE_CREATE] = FUSEIO_CREATE,
	[FUSE_MKNOD] = FUSEIO_CREATE,
	[FUSE_MKDIR] = FUSEIO_CREATE,
	[FUSE_SYMLINK] = FUSEIO_CREATE,
	[FUSE_LINK] = FUSEIO_CREATE,
	[FUSE_READ] = FUSEIO_READ,
	[FUSE_WRITE] = FUSEIO_WRITE,
	[FUSE_FSYNC] = FUSEIO_FSYNC,
	[FUSE_FSYNCDIR] = FUSEIO_FSYNC,
	[FUSE_FLUSH] = FUSEIO_FLUSH,
	[FUSE_READDIR] = FUSEIO_READDIR,
	[FUSE_READDIRPLUS] = FUSEIO_READDIR,
	[FUSE_RENAME] = FUSEIO_RENAME,
	[FUSE_RENAME2] = FUSEIO_RENAME,
	[FUSE_UNLINK] = FUSEIO_UNLINK,
	[FUSE_RMDIR] = FUSEIO_UNLINK,
	[FUSE_SETXATTR] = FUSEIO_XATTR,
	[FUSE_GETXATTR] = FUSEIO_XATTR,
	[FUSE_LISTXATTR] = FUSEIO_XATTR,
	[FUSE_REMOVEXATTR] = FUSEIO_XATTR };

/* Numbers are handed out in steps whose size is the kernel's business: all bits take part. */
static struct place *place_of(uint64_t unique)
{
	return &places[unique * 0x9e3779b97f4a7c15u >> (64 - PLACES_LOG2)];
}

void fuseio_time_begin(const void *request, size_t n, uint64_t now)
{
	struct fuse_in_header in;

	if (n < sizeof(in))
		return;
	memcpy(&in, request, sizeof(in));
	if (!in.unique || in.opcode == FUSE_FORGET || in.opcode == FUSE_BATCH_FORGET || in.opcode == FUSE_INTERRUPT)
		return;
	struct place *p = place_of(in.unique);

	/* Taken from whom it belonged to, before it says something else. */
	atomic_store_explicit(&p->unique, 0, memory_order_relaxed);
	atomic_store_explicit(&p->begun, now, memory_order_release);
	atomic_store_explicit(
	    &p->kind, in.opcode < sizeof(kinds) ? kinds[in.opcode] : FUSEIO_OTHER, memory_order_release);
	atomic_store_explicit(&p->unique, in.unique, memory_order_release);
}

void fuseio_time_end(uint64_t unique, uint64_t now)
{
	struct place *p = place_of(unique);

	if (!unique || atomic_load_explicit(&p->unique, memory_order_acquire) != unique)
		return;
	uint64_t begun = atomic_load_explicit(&p->begun, memory_order_acquire);
	uint32_t kind = atomic_load_explicit(&p->kind, memory_order_acquire);

	if (atomic_compare_exchange_strong(&p->unique, &unique, 0))
		histogram_add(&latency[kind], now > begun ? now - begun : 0);
}

void fuseio_latency(enum fuseio_kind kind, struct histogram_view *out)
{
	histogram_read(&latency[kind], out);
}

const char *fuseio_kind_name(enum fuseio_kind kind)
{
	return names[kind];
}
