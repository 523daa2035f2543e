/* inode_internal.h — the table behind inode.h, shared by inode.c (counts, look-up), inode_slots.c (memory),
 * inode_chains.c (hashing), inode_walk.c and inode_fd.c (identities, descriptors). */
#ifndef BYOKFS_INODE_INTERNAL_H
#define BYOKFS_INODE_INTERNAL_H

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "inode.h"

#define INODE_CHUNK       128u /* inodes whose memory comes and goes together; they never move */
#define INODE_CHUNK_BYTES ((INODE_CHUNK * sizeof(struct inode) + 4095) / 4096 * 4096)
#define INODE_CHUNKS      524288u /* so at most 67 million */
#define INODE_SEGMENTS    18u     /* 1024 chains, and 17 times as many again: one for each */

enum inode_state { INODE_FREE, INODE_LIVE, INODE_STALE };

struct inode_chunk {
	_Atomic(struct inode *) slots; /* memory, or NULL: nobody lives there */
	struct inode *memory;
	uint32_t next, prev; /* in the list it is in */
	uint32_t free;       /* slots given back, chained by next */
	uint16_t used, fresh; /* slots from fresh on were never taken */
};

/* Chains of slots through a member of struct inode; inode_chains.c. */
struct inode_chains {
	size_t (*hash)(const struct inode *);
	uint32_t *(*next)(struct inode *);
	uint32_t *segment[INODE_SEGMENTS];
	size_t low, split, used; /* low: a power of two, or 0 */
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
	struct inode_chunk *chunk; /* INODE_CHUNKS; guarded by lock but for slots */
	pthread_mutex_t lock;
	/* guarded by lock */
	_Atomic uint64_t *shared_top;
	uint64_t generation;
	uint32_t chunks, empties;      /* that ever were; that have memory and nobody in it */
	uint32_t room, blank, leaving; /* lists: with a free slot, without memory, about to lose it */
	struct inode_chains by_ino, by_dirid;
	struct inode_pins idle; /* least recently used first */
	size_t pinned_fds, max_fds;
};

/* The slot of a nodeid that somebody lives in. */
static inline struct inode *inode_at(const struct inode_table *t, uint64_t slot)
{
	return atomic_load_explicit(&t->chunk[slot / INODE_CHUNK].slots, memory_order_acquire) + slot % INODE_CHUNK;
}

/* inode_slots.c. Table lock held for take and give: a free slot, its members as they were but for nodeid and
 * generation; -ENOMEM, -ENFILE. */
MUST_CHECK int slots_open(struct inode_table *);
MUST_CHECK int slot_take(struct inode_table *, struct inode **out);
void slot_give(struct inode_table *, struct inode *);
/* No lock held: memory that slot_give() made free goes back to the system. */
void slots_tidy(struct inode_table *);
/* Calls fn for every slot taken, then frees all. */
void slots_close(struct inode_table *, void (*fn)(struct inode_table *, struct inode *));

/* inode_chains.c. Table lock held. add: -ENOMEM only while empty. */
MUST_CHECK int inode_chains_add(const struct inode_table *, struct inode_chains *, struct inode *);
void inode_chains_remove(const struct inode_table *, struct inode_chains *, struct inode *);
/* First slot of the chain of a hash, or 0. */
uint32_t inode_chains_first(const struct inode_chains *, size_t hash);
void inode_chains_free(struct inode_chains *);

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
