/* keyahead.h — key read-ahead: keys of files that are likely to be opened next are fetched before they are (seal=file).
 *
 * The order of a directory is remembered as it is read, longer than its handle lives: most programs close a directory
 * before they open what is in it. While files are opened in that order the keys of the next ones are asked for, more
 * and more of them (product.md, Keys). Backing names are remembered, nothing secret, except where names are kept plain;
 * all is dropped at a lock. */
#ifndef BYOKFS_KEYAHEAD_H
#define BYOKFS_KEYAHEAD_H

#include "fs.h"

/* Bookkeeping and thread; window: keys ahead of the reader, at most (0: none, and all below does nothing). After every
 * fork. */
MUST_CHECK int keyahead_start(struct fs *, uint32_t window);
/* Stops the thread: before lease_close(). */
void keyahead_stop(struct fs *);
/* Frees the bookkeeping: after lease_close(), whose threads may still be using it. */
void keyahead_close(struct fs *);

/* A directory is being read: prev is the position before this item, 0 for its first; item NULL: there are no more. */
void keyahead_note(struct fs *, const struct fs_dir *, int64_t prev, const struct dir_item *);
/* A regular file is about to be loaded, whether its key is there or not. No lock held. */
void keyahead_opened(struct fs *, const struct inode *);
/* A domain locks: nothing is remembered, of any. */
void keyahead_wipe(struct fs *);

#endif
