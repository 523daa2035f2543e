/* domain_add.h — `domain add`: an empty directory of the mount becomes the root of a new key domain (format.md 7.1). */
#ifndef BYOKFS_DOMAIN_ADD_H
#define BYOKFS_DOMAIN_ADD_H

#include "fs.h"

struct fs_domain_wish {
	uint64_t parent, dir; /* inode numbers, of a directory and an entry of it, both known to the kernel */
	char name[NAME_MAX_PLAIN + 1];
	char key[KMS_KEY_MAX + 1];
	enum descriptor_seal seal;
	atomic_bool *stop; /* give up at the next step */
};
struct fs_domain_made {
	uint16_t index;
	char id[33];
	char key[KMS_KEY_MAX + 1]; /* as pinned */
	int code;                  /* exitcode.h; unless EXIT_OK message says why */
	char message[1000];
};
/* Asks the KMS on this thread, which is no FUSE worker; holds no domain's gate meanwhile. One at a time. */
void fs_domain_add(struct fs *, const struct fs_domain_wish *, struct fs_domain_made *out);
/* The domain of what lies in a known inode, by its number; NULL: not known. */
struct domain *domain_of_number(struct fs *, uint64_t number);

#endif
