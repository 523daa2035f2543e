/* The record of what moves while a rotator looks for files. Hides a queue without duplicates, and that nothing is
 * recorded when nobody asks.
 *
 * A walk misses only what leaves a directory before it is listed and enters one that was listed already. So everything
 * that gets another name is recorded before it does, and the rotator looks at that as well. What was made since the
 * record began needs no looking at: it is under the new key, or empty. So all that can ever be recorded is what there
 * was before, and the rotator comes to an end however fast it moves. */
#include <errno.h>

#include "io.h"
#include "reseal.h"

#define QUEUE_MAX 65536u
#define QUEUE_FEW 256u    /* where each inode that is held holds a descriptor */
#define SILENT_MS 600000u /* a rotator that asks for nothing for so long has died */

static struct {
	pthread_mutex_t lock;
	atomic_bool on;
	bool lost;
	_Atomic uint32_t number; /* of records so far: inode->born */
	uint64_t asked, head;    /* when, by io_boot_ms(); how many were recorded */
	struct inode **queue;    /* a ring; each with a ref */
	size_t first, n, room;
} moves = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* lock held. */
static struct inode *pop(void)
{
	struct inode *inode = moves.queue[moves.first];

	moves.first = (moves.first + 1) % moves.room;
	moves.n--;
	inode->moving = false;
	return inode;
}

/* lock held; given up for a moment. */
static void forget_all(struct fs *fs)
{
	while (moves.n) {
		struct inode *inode = pop();

		(void)pthread_mutex_unlock(&moves.lock);
		inode_put(fs->inodes, inode);
		(void)pthread_mutex_lock(&moves.lock);
	}
}

void reseal_record(struct fs *fs, bool on)
{
	LOCK_SCOPE(&moves.lock);
	forget_all(fs);
	moves.lost = false;
	moves.asked = io_boot_ms();
	if (on)
		atomic_fetch_add(&moves.number, 1);
	atomic_store(&moves.on, on);
}

bool reseal_recording(void)
{
	return atomic_load(&moves.on);
}

void reseal_born(struct inode *inode)
{
	if (atomic_load(&moves.on))
		inode->born = atomic_load(&moves.number);
}

/* lock held. */
static bool grow(void)
{
	size_t room = moves.room ? 2 * moves.room : 64;
	struct inode **more = moves.n < moves.room ? NULL : calloc(room, sizeof(struct inode *));

	if (moves.n < moves.room)
		return true;
	if (!more)
		return false;
	for (size_t i = 0; moves.room && i < moves.n; i++)
		more[i] = moves.queue[(moves.first + i) % moves.room];
	free(moves.queue);
	moves.queue = more;
	moves.first = 0;
	moves.room = room;
	return true;
}

/* lock held; given up for a moment. What cannot be remembered is looked for by another walk. */
static void lose(struct fs *fs)
{
	moves.lost = true;
	atomic_store(&moves.on, false);
	forget_all(fs);
}

void reseal_moving(struct fs *fs, struct inode *inode)
{
	LOCK_SCOPE(&moves.lock);
	if (!atomic_load(&moves.on))
		return;
	if (!inode || moves.n == (inode_by_handle(fs->inodes) ? QUEUE_MAX : QUEUE_FEW) ||
	    io_boot_ms() > moves.asked + SILENT_MS || !grow()) {
		lose(fs);
		return;
	}
	if (inode->moving || inode->born == atomic_load(&moves.number))
		return;
	inode->moving = true;
	moves.queue[(moves.first + moves.n++) % moves.room] = inode_get(fs->inodes, inode->nodeid);
	moves.head++;
}

struct inode *reseal_moved(uint64_t *at, uint64_t *head, bool *lost)
{
	LOCK_SCOPE(&moves.lock);
	moves.asked = io_boot_ms();
	*lost = !atomic_load(&moves.on);
	*head = moves.head;
	*at = moves.head - moves.n;
	if (*lost || !moves.n)
		return NULL;
	++*at;
	return pop();
}
