/* reslot.h — the sealed key in a backing file is exchanged, without any key (byokfs-format(5), RE-SEALING).
 *
 * Of page 0 only the 512 bytes of one slot are written, so nothing that another writer of the page put there meanwhile
 * is undone, and a torn write of 512-byte sectors leaves the other slot valid. Nothing is flushed: whoever depends on
 * it calls syncfs(2) once for many files. mtime and atime are put back. Whoever has the file's state in memory
 * exchanges the slot there instead (file_put_slot()): a later write of its page 0 would bring the old one back. */
#ifndef BYOKFS_RESLOT_H
#define BYOKFS_RESLOT_H

#include "header.h"

/* What page 0 says before anything is done: identity, the ruling slot, and the other one. */
struct reslot_view {
	struct header_ident ident;
	struct header_slot ruling, other;
	int which;       /* the ruling one: 0 A, 1 B */
	bool have_other; /* filled and valid */
};

/* 0, -ENODATA (unborn), -EBADMSG (no byokfs file, or no valid slot), or -errno. Not authenticated. */
MUST_CHECK int reslot_read(int fd, struct reslot_view *out);
/* fd: O_RDWR (O_NOATIME where allowed: reading moves atime), a regular file. Puts fresh into the inactive slot with
 * seq + 1 (its own seq is ignored), or, fresh NULL, empties the inactive slot. file and seq are what was looked at
 * before: -ESTALE when page 0 is of another file or its ruling slot has another seq now. -ENODATA and -EBADMSG as
 * reslot_read(); -EINVAL: no regular file, or a slot that no reader would accept; -EOVERFLOW: no higher seq is left. */
MUST_CHECK int reslot_write(
    int fd, const uint8_t file[static CONTEXT_ID], uint32_t seq, const struct header_slot *fresh);

#endif
