/* ops_create.h — a regular file on its way into the store. */
#ifndef BYOKFS_OPS_CREATE_H
#define BYOKFS_OPS_CREATE_H

#include "fs.h"

struct birth {
	struct fs_dir d;
	struct fs_birth b;
	struct header_ident ident;
	struct file_key fk;
	uint8_t page[LAYOUT_PAGE];
	int fd;
	struct stat st;
	struct fuse_entry_param e;
	struct inode *inode;
};

/* The name of a request for a file without one: open(O_TMPFILE) arrives as a CREATE of "/", which no name can be. */
static inline bool is_tmpfile(const struct task *t)
{
	return t->name[0] == '/';
}

/* Makes the backing file of b->page under its name, or without one, with its inode: fills fd, st, e, inode.
 * -EOPNOTSUPP: the backing has no files without names. */
MUST_CHECK int create_backing(struct task *, struct birth *b);

#endif
