/* reseal_file.c — one file of a rotation: from a path that somebody names to the slot in its page 0. Hides how a path
 * is followed without leaving the store, and that slots are emptied only after new ones are durable. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>

#include "bytes.h"
#include "reseal.h"
#include "reslot.h"
#include "state.h"

/* ---- the path */

static bool component_ok(const char *c, size_t n)
{
	const size_t reserved = strlen(NAME_RESERVED);

	if (n == 0 || n > NAME_MAX || (c[0] == '.' && (n == 1 || (n == 2 && c[1] == '.'))))
		return false;
	return n < reserved || strncmp(c, NAME_RESERVED, reserved) != 0;
}

bool reseal_path_ok(const char *path)
{
	const char *slash;

	if (strlen(path) >= PATH_MAX)
		return false;
	for (; (slash = strchr(path, '/')); path = slash + 1)
		if (!component_ok(path, (size_t)(slash - path)))
			return false;
	return component_ok(path, strlen(path));
}

/* The next component, below a directory. */
static int step(int dirfd, const char *c, size_t n, int flags)
{
	char name[NAME_MAX + 1];
	int fd;

	memcpy(name, c, n);
	name[n] = '\0';
	fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC | flags);
	return fd < 0 ? -errno : fd;
}

/* One component after the other, none of which is a link: so it stays beneath the store, whatever was planted there. */
static int find(int root, const char *path)
{
	CLEANUP_FD int dir = -1;
	const char *slash;

	if (!reseal_path_ok(path))
		return -EINVAL;
	for (; (slash = strchr(path, '/')); path = slash + 1) {
		int next = step(dir < 0 ? root : dir, path, (size_t)(slash - path), O_DIRECTORY);

		cleanup_fd(&dir);
		dir = next;
		if (next < 0)
			return next;
	}
	return step(dir < 0 ? root : dir, path, strlen(path), 0);
}

/* ---- the slot */

static const char *not_wanted(const struct descriptor_domain *desc, const struct header_slot *slot)
{
	const struct descriptor_slot *rules = descriptor_ruling_slot(desc);
	uint8_t hash[8];

	if (!rules)
		return "the domain has no key";
	kms_key_hash(hash, rules->key);
	if (slot->wrap != HEADER_WRAP_KMS)
		return "the slot is not sealed by the key service";
	if (slot->provider != rules->provider || !bytes_equal(slot->key_hash, hash, sizeof(hash)))
		return "the slot is not under the domain's key";
	return descriptor_generation(desc, slot->generation) ? NULL : "the slot's context generation is not recorded";
}

static atomic_bool flushed; /* every slot written is durable; nobody knows of those before this mount */

/* Before an old slot goes, the new ones must be there to stay. */
static int flush_before(const struct fs *fs)
{
	if (atomic_exchange(&flushed, true))
		return 0;
	if (syncfs(fs->store->fd) == 0)
		return 0;
	atomic_store(&flushed, false);
	return -errno;
}

static int check_domain(const struct domain *d, int fd, const struct reseal_item *item, struct reslot_view *v,
    const char **why)
{
	int r = reslot_read(fd, v);

	if (r)
		return r == -ENODATA || r == -EBADMSG ? -ESTALE : r;
	if (!bytes_equal(v->ident.file, item->file, CONTEXT_ID))
		return -ESTALE;
	if (bytes_equal(v->ident.domain, d->ids.domain, CONTEXT_ID) &&
	    bytes_equal(v->ident.store, d->ids.store, CONTEXT_ID))
		return 0;
	*why = "the file belongs to another key domain";
	return -EPERM;
}

static int exchange(struct domain *d, struct inode *inode, int fd, const struct reseal_item *item, const char **why)
{
	struct lease *lease = atomic_load(&d->lease);
	struct header_slot fresh;
	struct reslot_view v;
	int r = check_domain(d, fd, item, &v, why);

	if (!r && !item->slot)
		r = flush_before(d->fs);
	if (r)
		return r;
	if (item->slot)
		atomic_store(&flushed, false);
	r = state_put_slot(d->fs, inode, fd, item->file, item->seq, item->slot);
	if (r)
		return r == -ENODATA || r == -EBADMSG ? -ESTALE : r;
	if (!item->slot || !lease)
		return 0;
	fresh = *item->slot;
	fresh.seq = item->seq + 1;
	lease_resealed(lease, &v.ident, &fresh);
	return 0;
}

/* What the path leads to, as the kernel would come to know it: from now on nobody can load the file's state without its
 * lock. */
static int known(struct domain *d, int path_fd, uint64_t ino, struct inode **out, const char **why)
{
	const struct inode_where where = { d->index, d->index };
	struct stat st, root;
	int r;

	if (fstat(path_fd, &st) || fstat(d->fs->store->fd, &root))
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_ino != ino || st.st_dev != root.st_dev)
		return -ENOENT;
	r = inode_look(d->fs->inodes, path_fd, "", &st, where, out);
	if (r == -EIO)
		*why = "the file is reached from another key domain";
	return r;
}

/* A file that is open without a name: the kernel knows it. */
static int known_by_node(struct domain *d, const struct reseal_item *item, struct inode **out, const char **why)
{
	struct inode *inode = inode_get(d->fs->inodes, item->node);
	int r;

	if (!inode)
		return -ENOENT;
	if (inode->ino == item->ino && S_ISREG(inode->type) && atomic_load(&inode->domain) == d->index) {
		*out = inode;
		return 0;
	}
	r = inode->ino == item->ino ? -EPERM : -ENOENT;
	if (r == -EPERM)
		*why = "it is no file of this key domain";
	inode_put(d->fs->inodes, inode);
	return r;
}

static int reseal_by_node(struct domain *d, const struct reseal_item *item, const char **why)
{
	CLEANUP_FD int fd = -1;
	struct inode *inode = NULL;
	int r = known_by_node(d, item, &inode, why);

	if (r)
		return r;
	fd = inode_open(d->fs->inodes, inode, O_RDWR);
	r = fd == -ESTALE ? -ENOENT : fd < 0 ? fd : exchange(d, inode, fd, item, why);
	inode_put(d->fs->inodes, inode);
	return r;
}

static int reseal_found(struct domain *d, int found, const struct reseal_item *item, const char **why)
{
	CLEANUP_FD int fd = -1;
	struct inode *inode = NULL;
	int r = known(d, found, item->ino, &inode, why);

	if (r || !inode)
		return r ? r : -EIO;
	fd = inode_open(d->fs->inodes, inode, O_RDWR);
	r = fd < 0 ? fd : exchange(d, inode, fd, item, why);
	inode_forget(d->fs->inodes, inode->nodeid, 1);
	inode_put(d->fs->inodes, inode);
	return r;
}

static int reseal_by_path(struct domain *d, const struct reseal_item *item, const char **why)
{
	CLEANUP_FD int found = find(d->fs->store->fd, item->path);

	if (found == -EINVAL)
		*why = "that is no path of a file in the store";
	if (found == -ENOTDIR || found == -ELOOP)
		return -ENOENT;
	return found < 0 ? found : reseal_found(d, found, item, why);
}

int reseal_file(
    struct domain *d, const struct descriptor_domain *desc, const struct reseal_item *item, const char **why)
{
	*why = item->slot ? not_wanted(desc, item->slot) : NULL;
	if (*why)
		return -EINVAL;
	if (item->path)
		return reseal_by_path(d, item, why);
	return item->node ? reseal_by_node(d, item, why) : reseal_found(d, item->fd, item, why);
}
