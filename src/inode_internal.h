/* inode_internal.h — the table behind inode.h, shared by inode.c (slots, chains, counts) and inode_fd.c
 * (identities, descriptors). */
#ifndef BYOKFS_INODE_INTERNAL_H
#define BYOKFS_INODE_INTERNAL_H

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/queue.h>

#include "inode.h"

#define INODE_CHUNK  512u    /* inodes allocated together; never moved, never freed before the table */
#define INODE_CHUNKS 131072u /* so at most 67 million */

enum inode_state { INODE_FREE, INODE_LIVE, INODE_STALE };

/* Chains of slots through a member of struct inode. */
struct inode_chains {
	uint32_t *head;
	size_t size; /* power of two */
	size_t used;
};

struct inode_pin {
	TAILQ_ENTRY(inode_pin) link; /* in the idle list while pins == 0 */
	struct inode *inode;
	int fd;
	unsigned pins;
};
TAILQ_HEAD(inode_pins, inode_pin);

struct inode_table {
	int root_fd;
	dev_t dev;
	bool by_handle, shared;
	_Atomic uint64_t top;
	_Atomic size_t count;
	_Atomic(struct inode *) *chunk; /* INODE_CHUNKS */
	pthread_mutex_t lock;
	/* guarded by lock */
	_Atomic uint64_t *shared_top;
	uint32_t free_head;
	struct inode_chains by_ino, by_dirid;
	struct inode_pins idle; /* least recently used first */
	size_t pinned_fds, max_fds;
};

/* Who an object is on the backing. */
struct inode_identity {
	int fd; /* O_PATH, or -1 */
	struct {
		unsigned handle_bytes;
		int handle_type;
		unsigned char f_handle[MAX_HANDLE_SZ];
	} handle; /* laid out as struct file_handle */
};

/* No lock held. entry "": the object behind dirfd. */
MUST_CHECK int identity_take(const struct inode_table *, int dirfd, const char *entry, struct inode_identity *);
/* Does the root's filesystem give handles, and may we open them? */
bool identity_by_handle(int root_fd);
MUST_CHECK int identity_store(struct inode *, struct inode_identity *);
bool identity_same(const struct inode *, const struct inode_identity *);
/* Releases what the inode holds of it. */
void identity_drop(struct inode *);

/* Table lock held. The cached descriptor to close after unlocking, or -1. */
MUST_CHECK int pin_forget(struct inode_table *, struct inode *);
/* Table lock held: one more ref, from any number. */
void inode_ref(struct inode *);
/* Table lock held: enters a directory's id, or tells that another live directory has it. */
MUST_CHECK int inode_set_dirid(struct inode_table *, struct inode *, const uint8_t id[static 16]);

#endif
