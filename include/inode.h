/* inode.h — the table of live inodes: what the kernel knows by nodeid, who it is on the backing, which descriptors are
 * at hand.
 *
 * Nodeids are dense slot numbers (root 1), reused only with a new generation, so that purge and watchdog can
 * walk 1..inode_top(). Memory of inodes the kernel forgot goes back to the system. Identity is a file handle
 * (open_by_handle_at) where the process may (CAP_DAC_READ_SEARCH and the backing exports handles), else an O_PATH
 * descriptor. Real descriptors of directories are kept in an LRU; never one descriptor per inode in handle mode.
 *
 * States of an inode: live (nlookup > 0, found by dev/ino), stale (detached from dev/ino by inode_detach, still known
 * to the kernel), free. Counts: nlookup is the kernel's; refs are ours (an operation, an open file, a syncer). A slot
 * is freed when both are 0. Locks: table lock (look-up, insertion, freeing; a dozen lines, never across a system call)
 * -> inode.lock (guards file, opens, dirid, flags). inode_get and inode_put take none unless the last ref goes. Never
 * take the table lock while holding inode.lock. Neither is held across a reply, a notification or a key request. */
#ifndef BYOKFS_INODE_H
#define BYOKFS_INODE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "dir.h"
#include "name.h"

struct file;
struct inode_table;

struct inode_pin;

/* Key domains by index: whose keys open the object's content, and whose its entry and attributes are. They differ
 * for the root directory of a nested domain only. */
struct inode_where {
	uint16_t domain, outer;
};

/* At most 256 bytes, and 8 more in tables: a busy mount has a million of them. */
struct inode {
	uint64_t nodeid, generation;
	dev_t dev;
	ino_t ino;
	mode_t type;                    /* S_IFMT part */
	_Atomic uint16_t domain, outer; /* struct inode_where; constant while the slot is taken */
	_Atomic uint32_t entering;      /* FUSE layer's own: fs_dir_enter() */
	uint32_t lost_in;               /* FUSE layer's own: the opening of the domain in which a loss was counted */
	uint32_t flags;                 /* FUSE layer's own; guarded by lock, like all down to dirid */
	pthread_mutex_t lock;
	struct file *file; /* open state, or NULL; owned by the FUSE layer's sync module */
	void *extra;       /* FUSE layer's own; gone before the last ref is */
	unsigned opens;    /* open handles in the kernel's eyes */
	unsigned writers;  /* those that may write */
	bool have_fileid;
	bool have_told;
	bool no_acl;    /* known to have no default ACL */
	bool unflushed; /* created here and never flushed: fsync of its directory must */
	bool have_dirid;
	bool moving;        /* these two are reseal_moves.c's own, under its lock */
	uint32_t born;
	uint64_t seen;      /* shared mode: page 0's number when the kernel's pages were dropped last */
	uint64_t told;      /* size the kernel believes in while no file state is loaded (valid: have_told) */
	uint8_t fileid[16]; /* object id for xattrs */
	uint8_t dirid[16];  /* written once, under both locks */
	/* private to inode.c and inode_fd.c: guarded by the table lock, but for refs */
	_Atomic uint32_t refs; /* ours, and one for the kernel while nlookup > 0; 0 means going or gone */
	_Atomic int held;      /* descriptor of a removed object, or -1 */
	_Atomic bool removed;
	uint32_t next, dirnext; /* slots in the chains of (dev, ino) and of dirid; next also chains free slots */
	uint8_t state;
	uint8_t handle_len; /* 0: identity is fd */
	int32_t handle_type;
	uint64_t nlookup;
	struct inode_pin *pin; /* the directory's cached descriptor */
	union {
		uint8_t handle[24];
		uint8_t *handle_far; /* longer ones */
		int fd;              /* O_PATH */
	} id;
};

struct inode_params {
	int root_fd;
	size_t max_fds;  /* directory descriptors kept, e.g. a quarter of RLIMIT_NOFILE */
	bool force_path; /* tests: O_PATH descriptors instead of handles */
	bool shared;     /* others may remove what we know: that is -ESTALE, not -EIO */
};

MUST_CHECK int inode_table_open(struct inode_table **out, const struct inode_params *);
void inode_table_close(struct inode_table *);
/* true: identities are file handles; false: one O_PATH descriptor per inode. */
bool inode_by_handle(const struct inode_table *);

/* The inode of a nodeid the kernel named, with a ref; NULL when unknown (a kernel bug: answer ESTALE). */
struct inode *inode_get(struct inode_table *, uint64_t nodeid);
void inode_put(struct inode_table *, struct inode *);
/* The inode of an existing entry, whose lstat the caller has: found or made; nlookup + 1 and a ref. dirfd/entry tell
 * how to identify it; entry "" means the object behind dirfd itself. -EXDEV: on another filesystem than the root
 * (something is mounted inside the store). -EIO: known already, in another key domain (logged). */
MUST_CHECK int inode_look(
    struct inode_table *, int dirfd, const char *entry, const struct stat *, struct inode_where, struct inode **out);
/* Where a nodeid belongs that the kernel just named and so has not forgotten: needs no ref. Zeros when unknown. */
struct inode_where inode_where(const struct inode_table *, uint64_t nodeid);
/* The kernel forgets n look-ups. */
void inode_forget(struct inode_table *, uint64_t nodeid, uint64_t n);
/* The next look-up of this (dev, ino) gets a new nodeid (size hint was wrong; format.md 6). */
void inode_detach(struct inode_table *, struct inode *);

/* The inode of the object with this stat, with a ref, if the kernel knows it; else NULL. */
struct inode *inode_find(struct inode_table *, const struct stat *);
/* We took the object's last name. Whoever has it open may go on: *fd (O_PATH, taken over; -1: none) leads to it until
 * the kernel forgets it. */
void inode_removed(struct inode *, int *fd);

/* A new descriptor of the object with these open(2) flags (O_CLOEXEC is added; O_NOFOLLOW semantics kept: the type must
 * be the one looked up, else -EIO). O_PATH works for every type, other flags for regular files and directories (-ELOOP,
 * -ENXIO). No O_CREAT, O_TRUNC. O_NOATIME is added where allowed. -EIO also when it vanished from the store, -ESTALE
 * when we removed it, or others may have. */
MUST_CHECK int inode_open(struct inode_table *, struct inode *, int flags);
/* The O_PATH descriptor that stands for the object as long as the caller has a ref, or -1: there is none. */
int inode_held_fd(const struct inode *);
/* lstat of the object. */
MUST_CHECK int inode_stat(struct inode_table *, struct inode *, struct stat *);

/* A directory descriptor from the LRU, pinned until inode_dir_put(); fills d->fd and d->id (reading and verifying
 * .byokfs.d the first time; a second directory with the same id is -EIO). names are those of its domain and
 * are copied into d; a directory that claims another domain is -EIO. -ENOTDIR. */
MUST_CHECK int inode_dir(
    struct inode_table *, struct inode *, const struct name_keys *, struct dir *d, struct inode_pin **pin);
void inode_dir_put(struct inode_table *, struct inode_pin *);

/* No live inode has a higher nodeid; and a shared counter page may be given that is kept equal to it (watchdog). */
uint64_t inode_top(const struct inode_table *);
void inode_share_top(struct inode_table *, _Atomic uint64_t *top);
/* Calls fn for every live or stale inode with a ref held and no lock; fn false stops. */
void inode_each(struct inode_table *, bool (*fn)(void *arg, struct inode *), void *arg);
size_t inode_count(const struct inode_table *);

#endif
