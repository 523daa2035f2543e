/* How a new regular file comes into the store: under its name at once, or without a name (O_TMPFILE), which linkat(2)
 * may give it later. */
#include "ops_create.h"

#include <string.h>

#include "log.h"
#include "newborn.h"
#include "reseal.h"

/* The backing file with what it inherits. */
static int make_named(struct birth *b, const struct name_entry *entry)
{
	int r = dir_create_entry(&b->d.dir, entry, b->page, b->b.mode & 07777, &b->b.owner, &b->fd, &b->st);

	if (r)
		return r;
	r = fs_birth_acl(b->d.dir.names, &b->b, b->fd, b->ident.file);
	if (r && dir_unlink_entry(&b->d.dir, entry))
		log_warn("cannot remove a file whose ACL could not be stored");
	return r;
}

static int create_named(const struct task *t, struct birth *b)
{
	struct name_entry entry;
	int r = name_encrypt(b->d.dir.names, b->d.dir.id, t->name, strlen(t->name), &entry);

	if (!r)
		r = make_named(b, &entry);
	return r ? r : fs_entry(t->fs, &b->d, entry.entry, &b->st, &b->e, &b->inode);
}

static int create_unnamed(const struct task *t, struct birth *b)
{
	struct fs_dir itself = b->d;
	int r = dir_tmpfile(&b->d.dir, b->page, b->b.mode & 07777, &b->b.owner, &b->fd, &b->st);

	if (!r)
		r = fs_birth_acl(b->d.dir.names, &b->b, b->fd, b->ident.file);
	if (r)
		return r;
	itself.dir.fd = b->fd; /* no entry leads to it: "" is the object itself */
	return fs_entry(t->fs, &itself, "", &b->st, &b->e, &b->inode);
}

int create_backing(struct task *t, struct birth *b)
{
	bool bare = !b->b.access_acl;
	int r = is_tmpfile(t) ? create_unnamed(t, b) : create_named(t, b);

	if (r)
		return r;
	pthread_mutex_lock(&b->inode->lock);
	memcpy(b->inode->fileid, b->ident.file, sizeof(b->inode->fileid));
	b->inode->have_fileid = true;
	pthread_mutex_unlock(&b->inode->lock);
	if (bare && !t->fs->params.shared)
		fs_learn_no_xattr(b->inode);
	reseal_born(b->inode);
	if (!is_tmpfile(t))
		newborn_note(b->d.inode->nodeid, b->inode->nodeid, b->inode->generation);
	return 0;
}
