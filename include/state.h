/* state.h — file states of inodes: loaded by the first open, flushed at close and 5 s after the first change, promoted
 * by one syncfs for many every 30 s, dropped when nobody has the file open and nothing is pending.
 *
 * inode->file is set and cleared here only, under inode->lock. inode->opens counts kernel handles and operations that
 * pin the state. */
#ifndef BYOKFS_STATE_H
#define BYOKFS_STATE_H

#include "fs.h"

/* Creates the bookkeeping; no thread yet. */
MUST_CHECK int states_open(struct fs *);
/* The syncer thread. After every fork. */
MUST_CHECK int states_start(struct fs *);
/* Stops the syncer; with `flush`, writes and promotes everything first (unmount; keys at hand). Returns true when
 * nothing was left unwritten. */
bool states_stop(struct fs *, bool flush);
/* Closes every state and frees the bookkeeping: after lease_close(), whose threads may still be using them. */
void states_close(struct fs *);

/* Pins the state of a regular file, loading it when needed (then the task's key is used). write: the state must be able
 * to write. -EAGAIN, -EINPROGRESS: return from run. -ESTALE: the kernel had been told a wrong size; the inode was
 * detached, a new look-up will get a new one. -ENODATA: unborn. */
MUST_CHECK int state_pin(struct task *, struct inode *, bool write, struct file **out);
/* Takes over a freshly made file: pinned once. */
MUST_CHECK int state_adopt(struct fs *, struct inode *, struct file *);
/* Pins the state if there is one, else NULL: no key, no I/O. */
struct file *state_pin_loaded(struct inode *);
void state_unpin(struct fs *, struct inode *);
/* Drops the state when nobody needs it: closed, and nothing pending or no name left. Without locks, with a ref on the
 * inode. */
void state_settle(struct fs *, struct inode *);
/* No name leads to the file any more, here or on another host: nothing has to be written. */
bool state_gone(struct file *);
/* The file changed: have the syncer look at it. */
void state_changed(struct fs *, struct inode *);
/* Flushes every dirty state of the domain with the keys that are at hand (lock): number of files that could not be. */
unsigned states_flush_cached(struct domain *);
/* Forgets every plaintext byte of the domain's states; number of files that lost un-fsynced data. Nothing of it is in
 * flight. */
unsigned states_wipe(struct domain *);
/* Files changed or pending right now. */
size_t states_queued(struct fs *);

/* Re-sealing: exchanges the inactive slot (fresh NULL: empties it) in the state when there is one, else in the backing
 * file behind fd (O_RDWR). As file_put_slot() and reslot_write(); -ESTALE also when it is another file. No key. */
MUST_CHECK int state_put_slot(struct fs *, struct inode *, int fd, const uint8_t file[static CONTEXT_ID], uint32_t seq,
    const struct header_slot *fresh);

/* The size a hint stands for, if the hint may be believed. */
bool state_trusted_size(struct fs *, const struct stat *, uint64_t *size);
/* Just opened: removes what an earlier owner left beyond the end (format.md 5.6), without which a wrong hint cannot be
 * set right. Costs two flushes. */
MUST_CHECK int state_repair(struct file *, const struct file_key *);
/* true: every stat of a file without state is answered from page 0, whatever its hint says. */
void states_distrust(struct fs *, bool);
/* Size told to the kernel for a regular file without state: from the hint, or from page 0 when in doubt. fd: any open
 * descriptor of it, or -1 to open dirfd/entry. */
uint64_t state_told_size(struct fs *, int fd, int dirfd, const char *entry, const struct stat *);

#endif
