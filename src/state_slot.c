/* A rotation exchanges a file's sealed key: in the state, when one is loaded, for it owns page 0; else on the disk. A
 * state is loaded from page 0 under inode->lock, so it has either what was there before, and is told, or what is there
 * now. */
#include <errno.h>

#include "bytes.h"
#include "reslot.h"
#include "state_internal.h"

/* inode->lock is held. */
static int take_state(struct inode *inode, int fd, const uint8_t file[static CONTEXT_ID])
{
	const struct state *st = inode->extra;
	int r;

	if (!bytes_equal(file_ident(inode->file)->file, file, CONTEXT_ID))
		return -ESTALE;
	r = st->readonly ? state_make_writable(inode, fd) : 0;
	if (!r)
		inode->opens++;
	return r;
}

int state_put_slot(struct fs *fs, struct inode *inode, int fd, const uint8_t file[static CONTEXT_ID], uint32_t seq,
    const struct header_slot *fresh)
{
	struct file *f;
	int r;

	pthread_mutex_lock(&inode->lock);
	f = inode->file;
	r = f ? take_state(inode, fd, file) : reslot_write(fd, file, seq, fresh);
	pthread_mutex_unlock(&inode->lock);
	if (!f || r)
		return r;
	r = fresh ? file_put_slot(f, seq, fresh) : file_clear_slot(f, seq);
	state_unpin(fs, inode);
	return r;
}
