/* What a new object inherits from its directory: owner, group, setgid, and the default ACL. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "acl.h"
#include "fs.h"
#include "xattr.h"

/* The default ACL of a directory, malloc'ed; *n = 0 when it has none. */
static int default_acl(struct fs *fs, const struct fs_dir *d, uint8_t **acl, size_t *n)
{
	CLEANUP_FREE uint8_t *value = NULL;
	bool none;

	*acl = NULL;
	*n = 0;
	pthread_mutex_lock(&d->inode->lock);
	none = d->inode->no_acl;
	pthread_mutex_unlock(&d->inode->lock);
	if (none || !fs->params.multiuser)
		return 0;
	value = malloc(ACL_BYTES_MAX);
	if (!value)
		return -ENOMEM;
	ssize_t got = xattr_get(d->dir.fd, d->dir.id, d->dir.names, ACL_DEFAULT, value, ACL_BYTES_MAX);

	if (got == -ENODATA || got == -EOPNOTSUPP) {
		pthread_mutex_lock(&d->inode->lock);
		d->inode->no_acl = !fs->params.shared;
		pthread_mutex_unlock(&d->inode->lock);
		return 0;
	}
	if (got < 0)
		return (int)got;
	*acl = steal_ptr(&value);
	*n = (size_t)got;
	return 0;
}

static int birth_acl(struct fs_birth *b, mode_t mode, const uint8_t *acl, size_t n)
{
	bool minimal;

	b->access_acl = malloc(n);
	if (!b->access_acl)
		return -ENOMEM;
	memcpy(b->access_acl, acl, n);
	b->access_len = n;
	if (acl_inherit(b->access_acl, n, &b->mode, &minimal))
		return -EIO;
	if (minimal) {
		free(b->access_acl);
		b->access_acl = NULL;
	}
	if (S_ISDIR(mode)) {
		b->default_acl = malloc(n);
		if (!b->default_acl)
			return -ENOMEM;
		memcpy(b->default_acl, acl, n);
		b->default_len = n;
	}
	return 0;
}

int fs_birth(
    struct fs *fs, const struct fs_dir *d, mode_t mode, mode_t umask_, uid_t uid, gid_t gid, struct fs_birth *out)
{
	CLEANUP_FREE uint8_t *acl = NULL;
	struct stat st;
	size_t n;
	int r;

	*out = (struct fs_birth){ .mode = mode, .owner = { .uid = uid, .gid = gid, .set = fs->params.multiuser } };
	if (fstat(d->dir.fd, &st))
		return -errno;
	if (st.st_mode & S_ISGID) {
		out->owner.gid = st.st_gid;
		if (S_ISDIR(mode))
			out->mode |= S_ISGID;
	}
	r = default_acl(fs, d, &acl, &n);
	if (r)
		return r;
	if (!acl || S_ISLNK(mode)) {
		out->mode &= ~umask_;
		return 0;
	}
	r = birth_acl(out, mode, acl, n);
	if (r)
		fs_birth_free(out);
	return r;
}

int fs_birth_acl(const struct name_keys *names, struct fs_birth *b, int fd, const uint8_t id[static 16])
{
	int r = 0;

	if (b->access_acl)
		r = xattr_set(fd, id, names, ACL_ACCESS, b->access_acl, b->access_len, 0);
	if (!r && b->default_acl)
		r = xattr_set(fd, id, names, ACL_DEFAULT, b->default_acl, b->default_len, 0);
	fs_birth_free(b);
	return r;
}

static void wipe_free(uint8_t *acl, size_t n)
{
	if (acl)
		explicit_bzero(acl, n);
	free(acl);
}

void fs_birth_free(struct fs_birth *b)
{
	wipe_free(b->access_acl, b->access_len);
	wipe_free(b->default_acl, b->default_len);
	b->access_acl = b->default_acl = NULL;
}
