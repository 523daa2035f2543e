/* inode.c — counts and look-up. Hides how a nodeid or a (dev, ino) leads to a struct inode, and when its slot
 * may be used again.
 *
 * The kernel names an inode in nearly every request, so inode_get takes no lock: chunks never move, and a ref is
 * taken only from a non-zero count. The kernel's look-ups together hold one ref. Whoever drops the last ref takes
 * the table lock and looks again: a look-up, which works under that lock, may have revived the inode; then it
 * stays. */
#include "inode.h"

#include <errno.h>

#include "bytes.h"
#include "inode_internal.h"
#include "log.h"

#define ROOT_SLOT 1u

/* ---- chains */

static size_t mix(uint64_t v)
{
	v ^= v >> 32;
	v *= 0x9e3779b97f4a7c15ull;
	return (size_t)(v >> 20);
}

static size_t hash_ino(const struct inode *i)
{
	return mix(i->ino ^ (uint64_t)i->dev << 40);
}

static size_t hash_dirid(const struct inode *i)
{
	return mix(le64_get(i->dirid)); /* random, unless somebody chose it; then only chains get longer */
}

static uint32_t *next_ino(struct inode *i)
{
	return &i->next;
}

static uint32_t *next_dirid(struct inode *i)
{
	return &i->dirnext;
}

static struct inode *find(const struct inode_table *t, dev_t dev, ino_t ino)
{
	struct inode key = { .dev = dev, .ino = ino };

	for (uint32_t slot = inode_chains_first(&t->by_ino, hash_ino(&key)); slot; slot = inode_at(t, slot)->next) {
		struct inode *i = inode_at(t, slot);

		if (i->ino == ino && i->dev == dev)
			return i;
	}
	return NULL;
}

/* Everything but nodeid, generation, the mutex, and the identity. */
static void slot_reset(struct inode *i, const struct stat *st, struct inode_where where)
{
	atomic_store_explicit(&i->domain, where.domain, memory_order_relaxed);
	atomic_store_explicit(&i->outer, where.outer, memory_order_relaxed);
	i->dev = st->st_dev;
	i->ino = st->st_ino;
	i->type = st->st_mode & S_IFMT;
	i->flags = i->lost_in = i->born = 0;
	atomic_store(&i->entering, 0);
	i->file = NULL;
	i->extra = NULL;
	i->opens = i->writers = 0;
	i->seen = 0;
	i->have_told = i->have_fileid = i->no_acl = i->unflushed = i->have_dirid = false;
	atomic_store(&i->held, -1);
	atomic_store(&i->removed, false);
	i->nlookup = 0;
	i->pin = NULL;
}

/* ---- counts */

void inode_ref(struct inode *i)
{
	atomic_fetch_add_explicit(&i->refs, 1, memory_order_acq_rel);
}

struct inode *inode_get(struct inode_table *t, uint64_t nodeid)
{
	if (!nodeid || nodeid > atomic_load_explicit(&t->top, memory_order_acquire))
		return NULL;
	struct inode *slots = atomic_load_explicit(&t->chunk[nodeid / INODE_CHUNK].slots, memory_order_acquire);

	if (!slots)
		return NULL;
	struct inode *i = &slots[nodeid % INODE_CHUNK];
	uint32_t refs = atomic_load_explicit(&i->refs, memory_order_relaxed);

	do {
		if (!refs)
			return NULL;
	} while (!atomic_compare_exchange_weak_explicit(
	    &i->refs, &refs, refs + 1, memory_order_acquire, memory_order_relaxed));
	return i;
}

static void unhash(struct inode_table *t, struct inode *i)
{
	if (i->state == INODE_LIVE)
		inode_chains_remove(t, &t->by_ino, i);
	i->state = INODE_STALE;
}

/* Table lock held. A descriptor to close, or -1. */
static int release_locked(struct inode_table *t, struct inode *i)
{
	int fd;

	/* Revived, or somebody who dropped it after us was here first. */
	if (atomic_load(&i->refs) || i->state == INODE_FREE)
		return -1;
	unhash(t, i);
	if (i->have_dirid)
		inode_chains_remove(t, &t->by_dirid, i);
	fd = pin_forget(t, i);
	identity_drop(i);
	slot_give(t, i);
	return fd;
}

static void release(struct inode_table *t, struct inode *i)
{
	int fd;
	bool tidy;

	(void)pthread_mutex_lock(&t->lock);
	fd = release_locked(t, i);
	tidy = t->leaving != UINT32_MAX;
	(void)pthread_mutex_unlock(&t->lock);
	cleanup_fd(&fd);
	if (tidy)
		slots_tidy(t);
}

void inode_put(struct inode_table *t, struct inode *i)
{
	if (atomic_fetch_sub_explicit(&i->refs, 1, memory_order_acq_rel) == 1)
		release(t, i);
}

void inode_forget(struct inode_table *t, uint64_t nodeid, uint64_t n)
{
	struct inode *i = nodeid == ROOT_SLOT ? NULL : inode_get(t, nodeid);
	bool last;

	if (!i)
		return;
	(void)pthread_mutex_lock(&t->lock);
	last = i->nlookup && n >= i->nlookup;
	if (n > i->nlookup)
		log_warn("the kernel forgot inode %llu more often than it looked it up", (unsigned long long)nodeid);
	i->nlookup -= n < i->nlookup ? n : i->nlookup;
	(void)pthread_mutex_unlock(&t->lock);
	if (last)
		inode_put(t, i);
	inode_put(t, i);
}

/* ---- look-up */

/* Table lock held: the kernel looked it up once more, and the caller gets a ref. */
static struct inode *lookup_count(struct inode *i)
{
	if (!i->nlookup++)
		inode_ref(i);
	inode_ref(i);
	return i;
}

static int insert(struct inode_table *t, const struct stat *st, struct inode_where where, struct inode_identity *who,
    struct inode **out)
{
	struct inode *i;
	int r = slot_take(t, &i);

	if (r)
		return r;
	slot_reset(i, st, where);
	r = identity_store(i, who);
	if (!r)
		r = inode_chains_add(t, &t->by_ino, i);
	if (r) {
		identity_drop(i);
		slot_give(t, i);
		return r;
	}
	i->state = INODE_LIVE;
	*out = lookup_count(i);
	return 0;
}

static bool placed_so(const struct inode *i, struct inode_where where)
{
	return atomic_load_explicit(&i->domain, memory_order_relaxed) == where.domain &&
	    atomic_load_explicit(&i->outer, memory_order_relaxed) == where.outer;
}

/* 1: found; 0: not known; -EBADMSG: known elsewhere. */
static int look_known(struct inode_table *t, const struct stat *st, struct inode_where where,
    const struct inode_identity *who, struct inode **out)
{
	struct inode *i = find(t, st->st_dev, st->st_ino);

	if (!i)
		return 0;
	if (i->type == (st->st_mode & S_IFMT) && identity_same(i, who)) {
		if (!placed_so(i, where))
			return -EBADMSG;
		*out = lookup_count(i);
		return 1;
	}
	/* The backing gave the number to another object; the kernel still knows the old one. */
	unhash(t, i);
	return 0;
}

struct inode *inode_find(struct inode_table *t, const struct stat *st)
{
	LOCK_SCOPE(&t->lock);
	struct inode *i = find(t, st->st_dev, st->st_ino);

	return i ? inode_get(t, i->nodeid) : NULL;
}

struct inode_where inode_where(const struct inode_table *t, uint64_t nodeid)
{
	struct inode_where w = { 0 };

	if (!nodeid || nodeid > atomic_load_explicit(&t->top, memory_order_acquire))
		return w;
	const struct inode *i = atomic_load_explicit(&t->chunk[nodeid / INODE_CHUNK].slots, memory_order_acquire);

	if (!i)
		return w;
	i += nodeid % INODE_CHUNK;
	w.domain = atomic_load_explicit(&i->domain, memory_order_relaxed);
	w.outer = atomic_load_explicit(&i->outer, memory_order_relaxed);
	return w;
}

static int look(struct inode_table *t, int dirfd, const char *entry, const struct stat *st, struct inode_where where,
    struct inode **out)
{
	struct inode_identity who = { .fd = -1 };
	int r = 0;

	if (!t->by_handle) { /* a descriptor pins the number, so it tells all */
		LOCK_SCOPE(&t->lock);
		r = look_known(t, st, where, &who, out);
		if (r)
			return r < 0 ? r : 0;
	}
	r = identity_take(t, dirfd, entry, &who);
	if (r)
		return r;
	(void)pthread_mutex_lock(&t->lock);
	r = look_known(t, st, where, &who, out);
	if (!r)
		r = insert(t, st, where, &who, out);
	else if (r > 0)
		r = 0;
	(void)pthread_mutex_unlock(&t->lock);
	cleanup_fd(&who.fd);
	return r;
}

int inode_look(struct inode_table *t, int dirfd, const char *entry, const struct stat *st, struct inode_where where,
    struct inode **out)
{
	int r;

	if (st->st_dev != t->dev) {
		log_err_once("'%s': on another filesystem than the store: refused", entry);
		return -EXDEV;
	}
	r = look(t, dirfd, entry, st, where, out);
	if (r == -EBADMSG) {
		log_damage("inode %llu is reached from two key domains: refused in the second",
		    (unsigned long long)st->st_ino);
		return -EIO;
	}
	return r;
}

void inode_detach(struct inode_table *t, struct inode *i)
{
	LOCK_SCOPE(&t->lock);

	if (i->nodeid != ROOT_SLOT && i->state == INODE_LIVE)
		unhash(t, i);
}

int inode_set_dirid(struct inode_table *t, struct inode *i, const uint8_t id[static 16])
{
	struct inode key;
	int r;

	if (i->have_dirid)
		return bytes_equal(i->dirid, id, sizeof(i->dirid)) ? 0 : -EIO;
	memcpy(key.dirid, id, sizeof(key.dirid));
	for (uint32_t slot = inode_chains_first(&t->by_dirid, hash_dirid(&key)); slot;) {
		struct inode *other = inode_at(t, slot);

		if (!memcmp(other->dirid, id, sizeof(other->dirid)) && (other->ino != i->ino || other->dev != i->dev))
			return -EIO;
		slot = other->dirnext;
	}
	(void)pthread_mutex_lock(&i->lock);
	memcpy(i->dirid, id, sizeof(i->dirid));
	r = inode_chains_add(t, &t->by_dirid, i);
	i->have_dirid = !r;
	(void)pthread_mutex_unlock(&i->lock);
	return r;
}

/* ---- the whole table */

static int table_root(struct inode_table *t)
{
	struct inode *root;
	struct stat st;
	int r;

	if (fstat(t->root_fd, &st))
		return -errno;
	t->dev = st.st_dev;
	r = inode_look(t, t->root_fd, "", &st, (struct inode_where){ 0 }, &root);
	if (!r && root->nodeid != ROOT_SLOT)
		r = -EIO;
	return r; /* the ref and the look-up stay: the root is never freed */
}

int inode_table_open(struct inode_table **out, const struct inode_params *p)
{
	struct inode_table *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	(void)pthread_mutex_init(&t->lock, NULL);
	TAILQ_INIT(&t->idle);
	t->max_fds = p->max_fds;
	t->root_fd = fcntl(p->root_fd, F_DUPFD_CLOEXEC, 0);
	r = t->root_fd < 0 ? -errno : 0;
	t->by_ino.hash = hash_ino;
	t->by_ino.next = next_ino;
	t->by_dirid.hash = hash_dirid;
	t->by_dirid.next = next_dirid;
	if (!r)
		r = slots_open(t);
	if (!r) {
		t->shared = p->shared;
		t->by_handle = !p->force_path && identity_by_handle(t->root_fd);
		r = table_root(t);
	}
	if (r) {
		inode_table_close(t);
		return r;
	}
	*out = t;
	return 0;
}

static void slot_close(struct inode_table *t, struct inode *i)
{
	CLEANUP_FD int fd = pin_forget(t, i);

	identity_drop(i);
}

void inode_table_close(struct inode_table *t)
{
	if (!t)
		return;
	slots_close(t, slot_close);
	inode_chains_free(&t->by_ino);
	inode_chains_free(&t->by_dirid);
	cleanup_fd(&t->root_fd);
	(void)pthread_mutex_destroy(&t->lock);
	free(t);
}
