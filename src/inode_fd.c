/* inode_fd.c — identities and descriptors of inodes. Hides the two ways to come back to an object without its name:
 * a file handle, and a descriptor opened O_PATH that is reopened through /proc/self/fd; and the least-recently-used
 * list of directory descriptors. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>

#include "fdpool.h"
#include "inode_internal.h"
#include "log.h"

_Static_assert(offsetof(struct inode_identity, handle.f_handle) - offsetof(struct inode_identity, handle) ==
        sizeof(struct file_handle),
    "struct file_handle has another layout here");

/* ---- identities */

static struct file_handle *as_handle(struct inode_identity *who)
{
	return (struct file_handle *)(void *)&who->handle;
}

static int take_handle(int dirfd, const char *entry, struct inode_identity *who)
{
	int mount;

	who->handle.handle_bytes = MAX_HANDLE_SZ;
	return name_to_handle_at(dirfd, entry, as_handle(who), &mount, *entry ? 0 : AT_EMPTY_PATH) ? -errno : 0;
}

static int reopen(int fd, int flags)
{
	char proc[32];
	int new;

	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	new = open(proc, (flags & ~O_NOFOLLOW) | O_CLOEXEC);
	return new < 0 ? -errno : new;
}

int identity_take(const struct inode_table *t, int dirfd, const char *entry, struct inode_identity *who)
{
	if (t->by_handle)
		return take_handle(dirfd, entry, who);
	if (!*entry) {
		who->fd = reopen(dirfd, O_PATH);
		return who->fd < 0 ? who->fd : 0;
	}
	who->fd = openat(dirfd, entry, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return who->fd < 0 ? -errno : 0;
}

bool identity_by_handle(int root_fd)
{
	struct inode_identity who = { .fd = -1 };
	struct stat want, have;
	CLEANUP_FD int fd = -1;

	if (take_handle(root_fd, "", &who))
		return false;
	fd = open_by_handle_at(root_fd, as_handle(&who), O_PATH | O_CLOEXEC);
	return fd >= 0 && !fstat(root_fd, &want) && !fstat(fd, &have) && want.st_ino == have.st_ino &&
	    want.st_dev == have.st_dev;
}

bool inode_by_handle(const struct inode_table *t)
{
	return t->by_handle;
}

static uint8_t *handle_bytes(struct inode *i)
{
	return i->handle_len > sizeof(i->id.handle) ? i->id.handle_far : i->id.handle;
}

int identity_store(struct inode *i, struct inode_identity *who)
{
	if (who->fd >= 0) {
		i->handle_len = 0;
		i->id.fd = steal_fd(&who->fd);
		return 0;
	}
	i->handle_type = who->handle.handle_type;
	i->handle_len = 0;
	i->id.fd = -1;
	if (!who->handle.handle_bytes || who->handle.handle_bytes > MAX_HANDLE_SZ)
		return -EIO;
	if (who->handle.handle_bytes > sizeof(i->id.handle)) {
		i->id.handle_far = malloc(who->handle.handle_bytes);
		if (!i->id.handle_far) {
			i->id.fd = -1;
			return -ENOMEM;
		}
	}
	i->handle_len = (uint8_t)who->handle.handle_bytes;
	memcpy(handle_bytes(i), who->handle.f_handle, i->handle_len);
	return 0;
}

bool identity_same(const struct inode *i, const struct inode_identity *who)
{
	const uint8_t *have = i->handle_len > sizeof(i->id.handle) ? i->id.handle_far : i->id.handle;

	if (!i->handle_len)
		return true; /* the descriptor we hold keeps the number from being given away */
	return i->handle_len == who->handle.handle_bytes && i->handle_type == who->handle.handle_type &&
	    !memcmp(have, who->handle.f_handle, i->handle_len);
}

void inode_removed(struct inode *i, int *fd)
{
	int none = -1;

	atomic_store(&i->removed, true);
	if (*fd >= 0 && atomic_compare_exchange_strong(&i->held, &none, *fd)) {
		*fd = -1;
		fdpool_lend(1);
	}
	cleanup_fd(fd);
	*fd = -1;
}

void identity_drop(struct inode *i)
{
	int held = atomic_exchange(&i->held, -1);

	if (held >= 0)
		fdpool_lend(-1);
	cleanup_fd(&held);
	if (!i->handle_len)
		cleanup_fd(&i->id.fd);
	else if (i->handle_len > sizeof(i->id.handle))
		free(i->id.handle_far);
	i->handle_len = 0;
	i->id.fd = -1;
}

/* ---- descriptors */

int inode_held_fd(const struct inode *i)
{
	return i->handle_len ? atomic_load(&i->held) : i->id.fd;
}

static int open_identity(const struct inode_table *t, struct inode *i, int flags)
{
	struct inode_identity who = { .fd = -1 };
	int fd = inode_held_fd(i);

	if (fd >= 0) {
		if (!(flags & O_PATH))
			return reopen(fd, flags);
		fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		return fd < 0 ? -errno : fd;
	}
	who.handle.handle_bytes = i->handle_len;
	who.handle.handle_type = i->handle_type;
	memcpy(who.handle.f_handle, handle_bytes(i), i->handle_len);
	fd = open_by_handle_at(t->root_fd, as_handle(&who), flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Without root's rights the backing holds a mode against us that the mount's user is not bound by: write-only files
 * must be read, and directories that may be searched but not listed must be opened. The owner's bits are lent for the
 * time of the open. */
static int open_lending(const struct inode_table *t, struct inode *i, int flags)
{
	CLEANUP_FD int path = open_identity(t, i, O_PATH);
	mode_t lent = i->type == S_IFDIR ? 0700 : 0600;
	struct stat st;
	char proc[32];
	int fd;

	if (path < 0 || fstat(path, &st) || st.st_uid != geteuid() || (st.st_mode & lent) == lent)
		return -EACCES;
	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", path);
	if (chmod(proc, (st.st_mode & 07777) | lent))
		return -EACCES;
	fd = open_identity(t, i, flags);
	if (chmod(proc, st.st_mode & 07777))
		log_warn("cannot give inode %llu its mode back: %s", (unsigned long long)i->ino, strerror(errno));
	return fd;
}

static int open_privileged(const struct inode_table *t, struct inode *i, int flags)
{
	int fd = open_identity(t, i, flags);

	if ((fd == -EMFILE || fd == -ENFILE) && fdpool_shed())
		fd = open_identity(t, i, flags);
	if (fd == -EPERM && flags & O_NOATIME)
		fd = open_identity(t, i, flags & ~O_NOATIME);
	if (fd == -EACCES && geteuid())
		fd = open_lending(t, i, flags);
	return fd;
}

/* A descriptor that surely is the object which was looked up, and its stat. */
static int open_verified(const struct inode_table *t, struct inode *i, int flags, struct stat *st)
{
	CLEANUP_FD int fd = -1;

	if (flags & (O_CREAT | O_TRUNC))
		return -EINVAL;
	if (!(flags & O_PATH)) {
		if (!S_ISREG(i->type) && !S_ISDIR(i->type))
			return S_ISLNK(i->type) ? -ELOOP : -ENXIO;
		flags |= O_NONBLOCK | O_NOCTTY; /* should the storage have put a FIFO or a terminal there */
		if (S_ISREG(i->type))
			flags |= O_NOATIME; /* our reading is not the user's */
	}
	fd = open_privileged(t, i, flags);
	if (fd < 0 && fd != -ESTALE)
		return fd;
	if (fd == -ESTALE) {
		if (t->shared || atomic_load(&i->removed))
			return -ESTALE;
		log_err_once("inode %llu vanished from the store", (unsigned long long)i->ino);
		return -EIO;
	}
	if (fstat(fd, st))
		return -errno;
	if (st->st_ino != i->ino || st->st_dev != i->dev || (st->st_mode & S_IFMT) != i->type) {
		log_damage("inode %llu is not what was looked up", (unsigned long long)i->ino);
		return -EIO;
	}
	return steal_fd(&fd);
}

int inode_open(struct inode_table *t, struct inode *i, int flags)
{
	struct stat st;

	return open_verified(t, i, flags, &st);
}

/* ---- directory descriptors */

static int pin_use(struct inode_table *t, struct inode *i, struct inode_pin **out)
{
	struct inode_pin *p = i->pin;

	if (!p)
		return 0;
	if (!p->pins++)
		TAILQ_REMOVE(&t->idle, p, link);
	inode_ref(i);
	*out = p;
	return 1;
}

int pin_forget(struct inode_table *t, struct inode *i)
{
	struct inode_pin *p = i->pin;
	int fd;

	if (!p)
		return -1;
	fd = p->fd;
	if (!p->pins)
		TAILQ_REMOVE(&t->idle, p, link);
	t->pinned_fds--;
	i->pin = NULL;
	free(p);
	return fd;
}

/* One descriptor too many: the longest idle one goes. Pinned ones may exceed the limit. */
static int pin_evict(struct inode_table *t)
{
	struct inode_pin *p = t->pinned_fds > t->max_fds ? TAILQ_FIRST(&t->idle) : NULL;

	return p ? pin_forget(t, p->inode) : -1;
}

static int pin_make(struct inode_table *t, struct inode *i, struct inode_pin **out)
{
	CLEANUP_FD int fd = inode_open(t, i, O_RDONLY | O_DIRECTORY);
	CLEANUP_FD int evicted = -1;
	CLEANUP_FREE struct inode_pin *p = NULL;

	if (fd < 0)
		return fd;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	LOCK_SCOPE(&t->lock);
	if (pin_use(t, i, out)) /* somebody was faster */
		return 0;
	p->inode = i;
	p->fd = steal_fd(&fd);
	p->pins = 1;
	inode_ref(i);
	i->pin = *out = steal_ptr(&p);
	t->pinned_fds++;
	evicted = pin_evict(t);
	return 0;
}

static int pin_identify(struct inode_table *t, struct inode *i, int fd, const struct name_keys *names)
{
	uint8_t id[16];
	uint16_t domain;
	int r = dir_read_id(fd, names, &domain, id);

	if (r)
		return r;
	if (domain != atomic_load(&i->domain)) {
		log_damage(
		    "directory inode %llu claims key domain %u: refused", (unsigned long long)i->ino, (unsigned)domain);
		return -EIO;
	}
	(void)pthread_mutex_lock(&t->lock);
	r = inode_set_dirid(t, i, id);
	(void)pthread_mutex_unlock(&t->lock);
	if (r == -EIO)
		log_damage("directory inode %llu has the id of another directory: refused (a copy inside the store?)",
		    (unsigned long long)i->ino);
	return r;
}

int inode_dir(
    struct inode_table *t, struct inode *i, const struct name_keys *names, struct dir *d, struct inode_pin **pin)
{
	bool known;
	int r;

	if (!S_ISDIR(i->type))
		return -ENOTDIR;
	(void)pthread_mutex_lock(&t->lock);
	r = pin_use(t, i, pin);
	known = i->have_dirid;
	(void)pthread_mutex_unlock(&t->lock);
	if (!r) {
		r = pin_make(t, i, pin);
		if (r)
			return r;
	}
	/* A removed directory has no id any more and needs none: nothing is in it, nothing can be made in it. */
	if (!known && !atomic_load(&i->removed)) {
		r = pin_identify(t, i, (*pin)->fd, names);
		if (r) {
			inode_dir_put(t, *pin);
			return r;
		}
	}
	/* Once set, the id stays while we hold a ref. */
	d->fd = (*pin)->fd;
	memcpy(d->id, i->dirid, sizeof(d->id));
	d->names = names;
	return 0;
}

void inode_dir_put(struct inode_table *t, struct inode_pin *p)
{
	struct inode *i = p->inode;
	int evicted = -1;

	(void)pthread_mutex_lock(&t->lock);
	if (!--p->pins) {
		TAILQ_INSERT_TAIL(&t->idle, p, link);
		evicted = pin_evict(t);
	}
	(void)pthread_mutex_unlock(&t->lock);
	cleanup_fd(&evicted);
	inode_put(t, i);
}

int inode_stat(struct inode_table *t, struct inode *i, struct stat *st)
{
	struct inode_pin *pin = NULL;
	CLEANUP_FD int fd = -1;
	int r;

	if (inode_held_fd(i) >= 0)
		return fstat(inode_held_fd(i), st) ? -errno : 0;
	if (S_ISDIR(i->type)) {
		(void)pthread_mutex_lock(&t->lock);
		(void)pin_use(t, i, &pin);
		(void)pthread_mutex_unlock(&t->lock);
		if (pin) {
			r = fstat(pin->fd, st) ? -errno : 0;
			inode_dir_put(t, pin);
			return r;
		}
	}
	fd = open_verified(t, i, O_PATH, st);
	return fd < 0 ? fd : 0;
}
