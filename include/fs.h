/* fs.h — the one context every FUSE operation gets, and the task: an operation that may have to wait for a key.
 *
 * An operation is a function run(task) that enters with the domain open and either replies (returns 0), fails (returns
 * -errno, the caller replies), or cannot go on without a key that only the KMS can give. In the last case the task
 * moves to the heap, is parked with the lease module, and runs again from its beginning, on a KMS thread, when the key
 * is there; so nothing before the key may have an effect, and once run has returned -EINPROGRESS the task may be gone.
 * No FUSE worker ever waits for the KMS.
 *
 * domain_enter/domain_leave bracket run and reply: when a domain locks, everything that might still tell the kernel a
 * name or a byte has told it before the kernel's caches are purged. After a reply nothing but locals is touched: the
 * kernel may have forgotten the inode.                                       */
#ifndef BYOKFS_FS_H
#define BYOKFS_FS_H

#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "domain.h"
#include "file.h"
#include "inode.h"
#include "lane.h"
#include "lease.h"
#include "store.h"

struct audit;
struct states;
struct keyahead;
struct locks;

struct fs_params {
	_Atomic double timeout; /* seconds the kernel may keep attributes; at most the lease */
	_Atomic double entry_timeout;
	bool readonly, shared; /* the mount; other hosts have one too */
	bool writeback, commit_strict, noatime; /* noatime: reading moves no access time */
	bool multiuser; /* root: set owners, POSIX ACLs */
	uint32_t max_background;
};

struct fs {
	struct fs_params params;
	struct fuse_session *se;
	unsigned connection; /* its number, 0: not known */
	struct store *store;
	struct domains *domains;
	struct domain *first; /* domain 0; ready once the store was authenticated (false only after locked_start) */
	struct inode_table *inodes;
	struct states *states;
	struct lane *lane;         /* what may keep a thread for long takes turns there */
	struct audit *audit;       /* NULL: none is kept */
	struct keyahead *keyahead; /* NULL: none */
	struct locks *locks;       /* applications' locks between hosts; NULL: the kernel does them alone */
	pthread_mutex_t dirs_lock;
	struct dirhandle *dirs; /* open directory handles, for the wipe */
	bool no_flush; /* close(2) is heard of by the times that it writes back: see ops_flush.c */
	atomic_bool planting; /* a directory is closed: it becomes a key domain's root */
};

/* What fi->fh of a file is: the inode with a ref, and one count of inode->opens. */
struct handle {
	struct inode *inode;
	bool write;
	atomic_bool touched; /* atime was moved */
	atomic_bool synced;  /* fsync was called on it, or will be: the exact size on the backing waits for RELEASE */
};

struct task {
	struct lease_waiter waiter;
	struct lane_job lane; /* task_start_in_lane() */
	struct fs *fs;
	struct domain *domain; /* of ino */
	fuse_req_t req;
	int (*run)(struct task *);
	enum lease_class class;
	bool heap, kill; /* kill: drop setuid and setgid */
	int (*anyway)(struct task *); /* while locked: 0 when it answered, else the answer is no; NULL: no */
	struct lease_key *key;
	fuse_ino_t ino;
	struct handle *handle; /* NULL: by nodeid */
	struct fuse_file_info fi;
	char name[NAME_MAX_PLAIN + 1];
	size_t size;
	uint64_t off, parked; /* histogram_clock() of when it was parked */
	int mode; /* create, fallocate mode, lseek whence, setattr mask, fsync datasync */
	mode_t umask;
	uid_t uid;
	gid_t gid;
	dev_t rdev;
	struct stat attr;
	const void *data; /* WRITE's bytes; a copy once on the heap */
};

/* Prepares a task for a request. */
void task_init(struct task *, struct fs *, fuse_req_t, fuse_ino_t, struct fuse_file_info *, int (*run)(struct task *));
/* Runs it to its reply, or parks a copy. The task itself may live on the stack. */
void task_start(struct task *);
/* The same when its turn has come: another thread may do it. file: nodeid of what is written; 0: nothing. */
void task_start_in_lane(struct task *, uint64_t file);
/* Gets the key of a file state into t->key and *fk. 0, -EAGAIN or -EINPROGRESS (return it from run), or -EIO. */
MUST_CHECK int task_key(struct task *, struct file *, struct file_key *fk);
/* The same for a file not loaded yet. */
MUST_CHECK int task_key_for(
    struct task *, const struct header_ident *, const struct header_slot *, struct file_key *fk);
/* The key of a file about to be made. */
MUST_CHECK int task_key_new(struct task *, struct header_ident *, struct header_slot *, struct file_key *fk);

/* For what never needs a file key: body between enter and leave of the domain of ino; its error is replied. */
#define FS_OP(req, ino, body)                                \
	do {                                                 \
		struct fs *fs = fuse_req_userdata(req);      \
		struct domain *domain_ = domain_of(fs, ino); \
		int r_ = domain_enter(domain_, LEASE_WORK);  \
		if (r_) {                                    \
			fs_error(domain_, req, r_);          \
			break;                               \
		}                                            \
		r_ = (body);                                 \
		if (r_)                                      \
			fs_error(domain_, req, r_);          \
		domain_leave(domain_, LEASE_WORK);           \
	} while (0)
void fs_error(struct domain *, fuse_req_t, int err); /* replies -errno */

/* The inode of a nodeid with a ref, or NULL (the caller answers ESTALE). */
static inline struct inode *fs_inode(struct fs *fs, fuse_ino_t ino)
{
	return inode_get(fs->inodes, ino);
}

/* Name keys of what an inode holds; its domain is entered. */
static inline const struct name_keys *fs_names(const struct fs *fs, const struct inode *inode)
{
	return domain_names(domain_of_inode(fs, inode));
}

/* A pinned directory. Release with fs_dir_put(). */
struct fs_dir {
	struct inode *inode;
	struct dir dir;
	struct inode_pin *pin;
};
MUST_CHECK int fs_dir_get(struct fs *, fuse_ino_t, struct fs_dir *);
void fs_dir_put(struct fs *, struct fs_dir *);

/* Turns the backing's lstat of an inode into what users see (size, link count of the root). */
void fs_attr(struct fs *, struct inode *, int dirfd, const char *entry, struct stat *st);
/* inode_look() in the domain that the rules give. */
MUST_CHECK int fs_look(
    struct fs *, const struct fs_dir *, const char *entry, const struct stat *st, struct inode **inode);
/* Fills an entry for an object whose lstat is known; takes one look-up. */
MUST_CHECK int fs_entry(struct fs *, const struct fs_dir *, const char *entry, const struct stat *,
    struct fuse_entry_param *out, struct inode **inode);

extern const struct fuse_lowlevel_ops fs_ops; /* ops.c */
/* Wipes what the domain's open directory handles still hold in the clear. */
void op_dir_wipe(struct domain *);

/* Shared by create and mknod: default ACL of the parent, umask, setgid inheritance, owner. */
struct fs_birth {
	mode_t mode;
	struct dir_owner owner;
	uint8_t *access_acl, *default_acl; /* malloc'ed, or NULL; to be stored in the new object */
	size_t access_len, default_len;
};
MUST_CHECK int fs_birth(
    struct fs *, const struct fs_dir *, mode_t mode, mode_t umask, uid_t, gid_t, struct fs_birth *out);
/* Stores the inherited ACLs in the new object behind fd and frees them. */
MUST_CHECK int fs_birth_acl(const struct name_keys *, struct fs_birth *, int fd, const uint8_t id[static 16]);
void fs_birth_free(struct fs_birth *);
MUST_CHECK int fs_chmod(int fd, mode_t mode); /* of any descriptor's object, O_PATH too */
/* inode->flags: known to have no security.capability. */
#define FS_NO_CAPABILITY 1u
/* inode->flags: known to have no extended attribute; may have got one in this inode's life, so that the first must not
 * be set again. */
#define FS_NO_XATTR      2u
#define FS_MAYBE_XATTR   4u
bool fs_has_no_xattr(struct inode *);
/* A listing was empty, or the object is new: remembered, unless somebody sets one meanwhile. */
void fs_learn_no_xattr(struct inode *);
/* Removes security.capability: it does not outlive a change of content or owner. */
MUST_CHECK int fs_drop_capability(struct fs *, struct inode *, int fd);
/* Object id for xattrs: file_id (IDENT is read once) or directory id. -EOPNOTSUPP for other types. */
MUST_CHECK int fs_object_id(struct fs *, struct inode *, uint8_t id[static 16]);
/* Writes that had been acknowledged, though not by fsync, were lost to a lock: logged and counted once per file and
 * lock. No lock held. */
void fs_lost(struct fs *, struct inode *);
/* Somebody without CAP_FSETID (t->kill) changed the content: setuid, setgid go. security.capability goes always. */
MUST_CHECK int fs_drop_privileges(struct task *, struct inode *, struct file *);
/* The content changed, perhaps in memory only: mtime moves now. With the writeback cache the kernel says when. */
void fs_modified(struct fs *, struct file *);
void fs_describe_in(struct fs *); /* whom the next three speak of; before the first operation */
/* Names a file for a log line: its plain path, when the domains on the way are open, and its path in the store. */
void fs_describe(void *inode, char *out, size_t size);
int fs_reopen(void *inode, bool readonly); /* these for struct file_params */
bool fs_kept(void *inode);
bool fs_withdrawn(void *inode); /* its key domain is being locked: whoever has entered must leave soon */
/* Says in the log, once, that this object is refused and why. Between enter and leave. */
void fs_damaged(struct inode *, const char *why);
void fs_key_refused(struct fs *, struct inode *); /* the same for a key that did not come: why is logged */
#endif
