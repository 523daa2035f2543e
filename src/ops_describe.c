/* Which file is it? Damage is met by inode number, the administrator knows paths. The way back is slow, and taken
 * only for a log line. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fs.h"
#include "log.h"

#define SHOWN 360u /* of each path, from its end */

static struct fs *mounted;

void fs_describe_in(struct fs *fs)
{
	mounted = fs;
}

/* Path below the store's root, as the kernel knows it. False when it does not, or the name is gone. */
static bool backing_path(struct inode *inode, char out[static PATH_MAX])
{
	CLEANUP_FD int fd = inode_open(mounted->inodes, inode, O_PATH);
	size_t root = strlen(mounted->store->path);
	char proc[32];
	struct stat st;

	(void)snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
	ssize_t n = fd < 0 ? -1 : readlink(proc, out, PATH_MAX - 1);

	if (n < 0)
		return false;
	out[n] = '\0';
	if (strncmp(out, mounted->store->path, root) != 0 || out[root] != '/')
		return false;
	memmove(out, out + root + 1, (size_t)n - root);
	return fstatat(mounted->store->fd, out, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_ino == inode->ino;
}

static const char *tail(const char *path)
{
	size_t n = strlen(path);

	return n > SHOWN ? path + n - SHOWN : path;
}

static const struct name_keys *names_get(void *arg, uint16_t index)
{
	struct domain *d = domain_get(arg, index);

	return d && domain_visit(d, LEASE_WORK) == 0 ? domain_names(d) : NULL;
}

static void names_put(void *arg, uint16_t index)
{
	domain_leave(domain_get(arg, index), LEASE_WORK);
}

void fs_describe(void *arg, char *out, size_t size)
{
	const struct dir_namer namer = { mounted, names_get, names_put };
	char backing[PATH_MAX], plain[PATH_MAX];
	struct inode *inode = arg;

	if (!mounted || !backing_path(inode, backing))
		(void)snprintf(out, size, "inode %llu", (unsigned long long)inode->ino);
	else if (dir_plain_path(mounted->store->fd, &namer, backing, plain, sizeof(plain)))
		(void)snprintf(out, size, "a file (in the store '%s')", tail(backing));
	else
		(void)snprintf(out, size, "'%s' (in the store '%s')", tail(plain), tail(backing));
}

/* A state whose descriptor was closed because there were too many. */
int fs_reopen(void *inode, bool readonly)
{
	return inode_open(mounted->inodes, inode, readonly ? O_RDONLY : O_RDWR);
}

bool fs_kept(void *inode)
{
	return inode_held_fd(inode) >= 0;
}

bool fs_withdrawn(void *inode)
{
	return mounted && !domain_is_open(domain_of_inode(mounted, inode));
}

/* Only when the key service works, yet not for this file: an outage is no news of each file. */
void fs_key_refused(struct fs *fs, struct inode *inode)
{
	struct lease_status st;

	domain_status(domain_of_inode(fs, inode), &st);
	if (st.state == LEASE_OPEN && st.answer == KMS_OK)
		fs_damaged(inode, "its sealed key could not be opened");
}

void fs_damaged(struct inode *inode, const char *why)
{
	char name[2 * SHOWN + 64];

	fs_describe(inode, name, sizeof(name));
	log_damage("%s: %s", name, why);
}
