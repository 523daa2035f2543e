/* Requests that libfuse 3.14 does not know, in words that it does. TMPFILE is a CREATE of a file whose name the kernel
 * gives as "/"; STATX begins like a GETATTR and wants one more number, the time of birth, in another shape. */
#include <string.h>
#include <sys/sysmacros.h>

#include "fuseio_internal.h"

/* Protocol 7.37 and 7.39; the kernel's header may be older. */
#define OPCODE_TMPFILE 51u
#define OPCODE_STATX   52u

static _Thread_local bool wants_birth;

bool fuseio_translate(void *request, size_t n)
{
	struct fuse_in_header in;

	wants_birth = false;
	if (n < sizeof(in))
		return false;
	memcpy(&in, request, sizeof(in));
	if (in.opcode == OPCODE_TMPFILE) {
		in.opcode = FUSE_CREATE;
	} else if (in.opcode == OPCODE_STATX) {
		in.opcode = FUSE_GETATTR;
		wants_birth = true;
	} else {
		return false;
	}
	memcpy(request, &in, sizeof(in));
	return true;
}

bool fuseio_wants_birth(void)
{
	return wants_birth;
}

static struct fuseio_time time_of(int64_t s, uint32_t ns)
{
	return (struct fuseio_time){ .sec = s, .nsec = ns };
}

void fuseio_statx(const struct stat *st, const struct statx *born, double timeout, struct fuseio_statx *out)
{
	bool known = born->stx_mask & STATX_BTIME;

	*out = (struct fuseio_statx){
		.attr_valid = (uint64_t)timeout,
		.attr_valid_nsec = (uint32_t)((timeout - (double)(uint64_t)timeout) * 1e9),
		.mask = STATX_BASIC_STATS | (known ? STATX_BTIME : 0),
		.blksize = (uint32_t)st->st_blksize,
		.nlink = (uint32_t)st->st_nlink,
		.uid = st->st_uid,
		.gid = st->st_gid,
		.mode = (uint16_t)st->st_mode,
		.ino = st->st_ino,
		.size = (uint64_t)st->st_size,
		.blocks = (uint64_t)st->st_blocks,
		.atime = time_of(st->st_atim.tv_sec, (uint32_t)st->st_atim.tv_nsec),
		.ctime = time_of(st->st_ctim.tv_sec, (uint32_t)st->st_ctim.tv_nsec),
		.mtime = time_of(st->st_mtim.tv_sec, (uint32_t)st->st_mtim.tv_nsec),
		.rdev_major = major(st->st_rdev),
		.rdev_minor = minor(st->st_rdev),
	};
	if (known)
		out->btime = time_of(born->stx_btime.tv_sec, born->stx_btime.tv_nsec);
}
