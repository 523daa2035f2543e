/* domain.c — the table of key domains, their gates, and which of them an object belongs to. Hides that a store with one
 * domain pays for none of it: no system call, one load from a table. */
#include "domain.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "bytes.h"
#include "domain_internal.h"
#include "fs.h"
#include "io.h"
#include "log.h"

/* ---- the table */

struct domain *domain_make(struct fs *fs, const struct descriptor_domain_line *line)
{
	struct domain *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->fs = fs;
	d->index = line->index;
	d->ids.suite = fs->store->desc.suite;
	memcpy(d->ids.store, fs->store->desc.store, sizeof(d->ids.store));
	memcpy(d->ids.domain, line->domain, sizeof(d->ids.domain));
	memcpy(d->root, line->dirid, sizeof(d->root));
	memcpy(d->commit, line->commit, sizeof(d->commit));
	atomic_store(&d->opening, 1);
	d->since = io_unix_time();
	if (line->index)
		(void)snprintf(d->label, sizeof(d->label), "domain %u", (unsigned)line->index);
	(void)pthread_mutex_init(&d->lock, NULL);
	(void)pthread_mutex_init(&d->writing, NULL);
	(void)io_cond_init(&d->wake);
	return d;
}

void domains_insert(struct domain *d)
{
	struct domains *t = d->fs->domains;

	atomic_store_explicit(&t->at[d->index], d, memory_order_release);
	if (d->index >= atomic_load(&t->end))
		atomic_store(&t->end, d->index + 1u);
	atomic_fetch_add(&t->count, 1);
}

int domains_init(struct fs *fs, const struct domains_params *params)
{
	struct domains *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->params = *params;
	(void)pthread_mutex_init(&t->lock, NULL);
	(void)io_cond_init(&t->wake);
	TAILQ_INIT(&t->queue);
	t->at = calloc(DOMAIN_MAX, sizeof(*t->at));
	fs->domains = t;
	if (!t->at)
		return -ENOMEM;
	fs->first = domain_make(fs, &fs->store->desc.domains[0]);
	if (!fs->first)
		return -ENOMEM;
	domains_insert(fs->first);
	fs->first->descriptor = &fs->store->domain;
	return 0;
}

struct domain *domain_get(const struct fs *fs, uint16_t index)
{
	return atomic_load_explicit(&fs->domains->at[index], memory_order_acquire);
}

void domains_each(struct fs *fs, bool (*fn)(void *arg, struct domain *), void *arg)
{
	uint32_t end = atomic_load(&fs->domains->end);

	for (uint32_t i = 0; i < end; i++) {
		struct domain *d = domain_get(fs, (uint16_t)i);

		if (d && !fn(arg, d))
			return;
	}
}

struct search {
	const uint8_t *id;
	struct domain *found;
};

static bool has_id(void *arg, struct domain *d)
{
	struct search *s = arg;

	if (bytes_equal(d->ids.domain, s->id, CONTEXT_ID))
		s->found = d;
	return !s->found;
}

struct domain *domain_by_id(struct fs *fs, const uint8_t id[static CONTEXT_ID])
{
	struct search s = { .id = id };

	domains_each(fs, has_id, &s);
	return s.found;
}

size_t domains_count(const struct fs *fs)
{
	return atomic_load_explicit(&fs->domains->count, memory_order_relaxed);
}

/* ---- the gate */

struct domain *domain_of(const struct fs *fs, uint64_t nodeid)
{
	return domain_get(fs, inode_where(fs->inodes, nodeid).domain);
}

struct domain *domain_outside(const struct fs *fs, uint64_t nodeid)
{
	return domain_get(fs, inode_where(fs->inodes, nodeid).outer);
}

struct domain *domain_of_inode(const struct fs *fs, const struct inode *inode)
{
	return domain_get(fs, atomic_load_explicit(&inode->domain, memory_order_relaxed));
}

int domain_visit(struct domain *d, enum lease_class class)
{
	if (!atomic_load_explicit(&d->ready, memory_order_acquire))
		return -EIO;
	return lease_enter(domain_lease(d), class);
}

int domain_enter(struct domain *d, enum lease_class class)
{
	atomic_fetch_add_explicit(&d->ops, 1, memory_order_relaxed);
	return domain_visit(d, class);
}

void domain_leave(struct domain *d, enum lease_class class)
{
	lease_leave(domain_lease(d), class);
}

bool domain_is_open(struct domain *d)
{
	return atomic_load_explicit(&d->ready, memory_order_acquire) && lease_still(domain_lease(d), LEASE_WORK) == 0;
}

const struct name_keys *domain_names(const struct domain *d)
{
	const struct lease *l = domain_lease(d);

	return l ? lease_names(l) : NULL;
}

/* ---- where objects belong */

/* Is this the directory on record as the root of that domain? The store's own root is nobody's child. */
static bool is_root(const struct fs *fs, uint16_t index, const uint8_t id[static 16])
{
	const struct domain *d = domain_get(fs, index);

	return index && d && bytes_equal(d->root, id, sizeof(d->root));
}

/* What .byokfs.d claims is a hint: opening the directory verifies it with the keys of the domain it leads to. Where
 * nothing can be read, opening will say why. */
int domain_place(struct fs *fs, const struct fs_dir *parent, const char *entry, mode_t mode, struct inode_where *out)
{
	uint16_t outer = atomic_load_explicit(&parent->inode->domain, memory_order_relaxed), index;
	CLEANUP_FD int fd = -1;
	uint8_t id[16];

	*out = (struct inode_where){ outer, outer };
	if (!S_ISDIR(mode) || domains_count(fs) == 1)
		return 0;
	fd = openat(parent->dir.fd, entry, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || dir_peek_id(fd, &index, id) || index == outer)
		return 0;
	if (is_root(fs, index, id)) {
		out->domain = index;
		return 0;
	}
	log_damage(
	    "directory '%s' in the directory with inode %llu claims key domain %u but is not its root: refused", entry,
	    (unsigned long long)parent->inode->ino, (unsigned)index);
	return -EIO;
}

uint16_t domain_claimed(const struct fs *fs, int fd, uint16_t parent)
{
	uint8_t id[16];
	uint16_t index;

	if (domains_count(fs) == 1 || dir_peek_id(fd, &index, id) || index == parent || !is_root(fs, index, id))
		return parent;
	return index;
}

int domain_dir(struct fs *fs, struct inode *inode, struct dir *dir, struct inode_pin **pin)
{
	const struct domain *d = domain_of_inode(fs, inode);
	const struct name_keys *names = domain_names(d);
	int r = names ? inode_dir(fs->inodes, inode, names, dir, pin) : -EIO;

	if (r || d->index == atomic_load_explicit(&inode->outer, memory_order_relaxed) ||
	    atomic_load(&inode->removed) || bytes_equal(dir->id, d->root, sizeof(dir->id)))
		return r;
	log_damage("directory inode %llu is not the root of key domain %u: refused", (unsigned long long)inode->ino,
	    (unsigned)d->index);
	inode_dir_put(fs->inodes, *pin);
	return -EIO;
}
