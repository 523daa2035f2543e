/* fuseio.h — our own hands on /dev/fuse under libfuse 3.14: INIT flags it forgets, notifications it does not know.
 *
 * fuse_session_custom_io hooks: read sees INIT requests (which flags the kernel offers), writev sees the INIT reply and
 * adds PARALLEL_DIROPS and HANDLE_KILLPRIV_V2 where offered (never SETXATTR_EXT: 3.14 parses the short struct). The
 * read hook also keeps, per thread, the raw flags that 3.14 does not pass on.              */
#ifndef BYOKFS_FUSEIO_H
#define BYOKFS_FUSEIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "cleanup.h"
#include "histogram.h"

struct fuse_session;

/* After fuse_session_mount. ready (may be NULL) is called once, on a session thread, when the kernel has accepted the
 * INIT answer. 0 or -errno. */
MUST_CHECK int fuseio_attach(struct fuse_session *, void (*ready)(void *arg), void *arg);
/* Before fuseio_attach(): requests shall come over io_uring, with as many workers, if kernel and administrator allow
 * it; else a warning says why not (silent: a debug line), and they come through the device as ever. */
void fuseio_want_ring(unsigned workers, bool silent);
/* "io_uring" or "fuse": how requests come. Settled when INIT was answered. */
const char *fuseio_transport(void);
/* Place for n bytes of answer where the kernel reads it, wiped by whoever owns it; or NULL. For the request this thread
 * is handling. */
void *fuseio_room(size_t n);
/* The session loop has ended: the ring's threads do, after what they are handling; later answers are dropped. */
void fuseio_ring_stop(void);
/* When nobody can answer a request any more. */
void fuseio_ring_close(void);
/* What was negotiated; valid after INIT. */
uint32_t fuseio_init_flags(void);
/* The request this thread is handling asks to drop setuid/setgid bits (FUSE_WRITE_KILL_SUIDGID, FATTR_KILL_SUIDGID,
 * FUSE_OPEN_KILL_SUIDGID). */
bool fuseio_kill_suidgid(void);
/* The GETATTR this thread is handling is a STATX: the answer is a fuseio_statx, not a fuse_attr_out. */
bool fuseio_wants_birth(void);
/* struct fuse_statx_out of protocol 7.39. */
struct fuseio_time {
	int64_t sec;
	uint32_t nsec, unused;
};
struct fuseio_statx {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec, flags;
	uint64_t unused[2];
	uint32_t mask, blksize;
	uint64_t attributes;
	uint32_t nlink, uid, gid;
	uint16_t mode, unused2;
	uint64_t ino, size, blocks, attributes_mask;
	struct fuseio_time atime, btime, ctime, mtime;
	uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
	uint64_t unused3[14];
};
_Static_assert(sizeof(struct fuseio_statx) == 288, "as the kernel has it");
/* born: only its stx_btime counts, and only if its mask says so. timeout: seconds the kernel may keep it. */
void fuseio_statx(const struct stat *, const struct statx *born, double timeout, struct fuseio_statx *out);
/* How long requests took, by kind, from being read to being answered. CREATE is everything that makes an object, UNLINK
 * what removes one. */
enum fuseio_kind {
	FUSEIO_OTHER,
	FUSEIO_LOOKUP,
	FUSEIO_GETATTR,
	FUSEIO_SETATTR,
	FUSEIO_OPEN,
	FUSEIO_CREATE,
	FUSEIO_READ,
	FUSEIO_WRITE,
	FUSEIO_FSYNC,
	FUSEIO_FLUSH,
	FUSEIO_READDIR,
	FUSEIO_RENAME,
	FUSEIO_UNLINK,
	FUSEIO_XATTR,
};
#define FUSEIO_KINDS (FUSEIO_XATTR + 1u)
/* Adds to *out. */
void fuseio_latency(enum fuseio_kind, struct histogram_view *out);
const char *fuseio_kind_name(enum fuseio_kind);
/* Requests answered so far, and threads that wait for the next one: with a ring 1 when all do, else 0. */
uint64_t fuseio_answered(void);
unsigned fuseio_idle(void);
/* Raw notifications, 0 or -errno; -ENOENT: the kernel does not know it; -EINVAL: kernel too old. Callers hold no lock.
 */
MUST_CHECK int fuseio_inval_inode(int fd, uint64_t nodeid);
MUST_CHECK int fuseio_inc_epoch(int fd);
/* The connection's number: minor of the mount's st_dev. Asks the kernel only, never the daemon, so it may run before
 * the session loop. 0 or -errno. */
MUST_CHECK int fuseio_connection(const char *mountpoint, unsigned *connection);
/* Raises the kernel's readahead (capped at 128 KiB by INIT) through /sys/class/bdi. After INIT was answered, which
 * resets it. Best effort: 0 or -errno; needs root. */
MUST_CHECK int fuseio_readahead(unsigned connection, unsigned kib);
/* Raises the number of asynchronous requests to at least n, through the fusectl file system. 0 or -errno; needs root,
 * and that it is mounted. */
MUST_CHECK int fuseio_background(unsigned connection, unsigned n);
/* A descriptor of the file that aborts this connection when anything is written to it, or -1; needs root. */
int fuseio_open_abort(unsigned connection);

/* Asynchronous requests of the kernel with several domains, at least. */
#define FUSEIO_BACKGROUND 1024u

#endif
