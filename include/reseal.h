/* reseal.h — a rotation as a live mount sees it: descriptors change keys and files exchange slots while everything goes
 * on (byokfs-format(5), 10). The rotator is another program, whose requests are as hostile as the store: what it names
 * is looked at here before it is touched.
 *
 * A domain's key changes in begin and finish only, one at a time: the caller sees to that. Slots of files may come any
 * time, and need no key: also while the domain is locked. */
#ifndef BYOKFS_RESEAL_H
#define BYOKFS_RESEAL_H

#include "fs.h"
#include "reslot.h"

struct reseal_wish {
	uint64_t seq;                /* the descriptor's, as the rotator saw it */
	struct descriptor_slot slot; /* seq and context are not looked at */
	bool have_extra;             /* else the pairs of the slot that rules */
	struct context_extra extra;
	atomic_bool *stop; /* give up at the next step */
};
struct reseal_done {
	int code; /* exitcode.h; unless EXIT_OK message says why */
	char message[1000];
	uint16_t generation; /* of the new slot */
	uint64_t seq;        /* the descriptor's now */
};
/* Proves that the host may use the slot and that it holds this domain's secret, writes the descriptor, and has the
 * domain use the slot's key from now on, the one before besides. The domain must be open. Asks the KMS on this thread,
 * which is no FUSE worker, with the KMS's own deadlines. On failure nothing was written, unless it was writing that
 * failed. The slot that rules already, while a rotation is under way: nothing is written, the mount gets the key if it
 * does not have it. */
void reseal_begin(struct domain *, const struct reseal_wish *, struct reseal_done *);
/* The end: the slot that does not rule goes. Needs no key. */
void reseal_finish(struct domain *, uint64_t seq, struct reseal_done *);

/* One file's slot, to be exchanged, or with slot NULL its inactive one to be emptied. */
struct reseal_item {
	const char *path; /* relative to the store; NULL: by node, or fd */
	uint64_t node;    /* of a file that is open without a name; 0: by fd */
	int fd;           /* the file itself, however it was opened; the caller's */
	uint64_t ino;
	uint8_t file[CONTEXT_ID]; /* identity and ruling slot's seq, as they were looked at */
	uint32_t seq;
	const struct header_slot *slot; /* its seq is ignored */
};
/* desc: the domain's descriptor, whose ruling slot names the key that new slots must be under. 0; -ENOENT: no such file
 * there, or another one; -ESTALE: other identity, or another seq; else -errno, with *why when errno does not say it
 * all. Nothing is flushed, but slots are emptied only after every one written before was. */
MUST_CHECK int reseal_file(
    struct domain *, const struct descriptor_domain *desc, const struct reseal_item *, const char **why);
/* May a rotator name this path? No absolute one, no "..", nothing of byokfs's own. */
bool reseal_path_ok(const char *path);

/* Whoever walks the store beside the mount may miss what moves. So it is recorded: on forgets what was recorded and
 * begins anew. Off by itself when nobody asks for ten minutes, or when too much was recorded. */
void reseal_record(struct fs *, bool on);
bool reseal_recording(void);
/* Before a regular file or directory gets another name; the caller has a ref. NULL: it cannot be said which. Nothing
 * while not recording, and of what was made since the record began. */
void reseal_moving(struct fs *, struct inode *);
/* Just made, and no one else has seen it yet. */
void reseal_born(struct inode *);
/* The oldest in the record, with a ref, or NULL; it is recorded again when it moves again. *at: its number (NULL: the
 * last one's that was taken), *head: the number of the newest. *lost: the record ended early. */
struct inode *reseal_moved(uint64_t *at, uint64_t *head, bool *lost);

/* Whoever makes a file has its sealed key in hand before the file can be found. Brackets round both; a rotation has
 * begun only when all who may have taken a key before have ended. begin's answer goes to end. */
unsigned reseal_birth_begin(void);
void reseal_birth_end(unsigned);
static inline void reseal_birth_cleanup(const unsigned *generation)
{
	reseal_birth_end(*generation);
}
#define RESEAL_BIRTH_SCOPE \
	__attribute__((cleanup(reseal_birth_cleanup), unused)) const unsigned birth_ = reseal_birth_begin()
/* Waits for those that began before. -ETIMEDOUT after ms, or when *stop. */
MUST_CHECK int reseal_births_wait(unsigned ms, const atomic_bool *stop);

/* A file that is open and has no name any more: no walk finds it. */
struct reseal_orphan {
	uint64_t node, ino;
	struct reslot_view view; /* as it is on the disk */
};
/* Those of the domain from a nodeid on, ascending; fn false stops. No lock is held. */
void reseal_orphans(struct domain *, uint64_t from, bool (*fn)(void *arg, const struct reseal_orphan *), void *arg);

#endif
