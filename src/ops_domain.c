/* ops_domain.c — a directory becomes the root of a new key domain (format.md 7.1, domain add).
 *
 * In this order, so that a crash leaves a store that mounts: the key is proved to seal and to open; the directory is
 * closed to everybody and looked at again; the domain's descriptor; the store's descriptor with one line more; the
 * domain is served; a new directory takes the place of the empty one. What fails after the line was written takes the
 * line back. Gates of open domains are held for the steps on the disk only, never while the KMS is asked. */
#include <errno.h>
#include <linux/limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>

#include "bytes.h"
#include "dir.h"
#include "exitcode.h"
#include "fs.h"
#include "domain_add.h"
#include "io.h"
#include "log.h"
#include "ops.h"
#include "seal.h"
#include "secret.h"
#include "xattr.h"

#define CLOSE_MS 5000u /* for operations on the backing that were on their way */

/* What is being made. Owned here until the domain is prepared. */
struct adding {
	struct fs *fs;
	const struct fs_domain_wish *wish;
	struct fs_domain_made *out;
	struct inode *parent, *dir; /* refs */
	struct domain *outer;       /* the parent's */
	struct kms *kms;
	struct descriptor_slot slot;
	struct descriptor_domain *descriptor;
	struct descriptor_domain_line line;
	uint8_t *secret;          /* secret memory, as the next */
	struct domain_keys *keys; /* the new domain's */
	struct name_keys *names;
	struct domain *made;
	struct domain *served;         /* what made was, in the table for good */
	bool written;                  /* the store's descriptor has the line */
	bool closed;                   /* nobody may change the directory or its name */
	char kept[NAME_MAX_PLAIN + 1]; /* where a new root went that was used and could not stay */
};

static int refuse(struct adding *a, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static int refuse(struct adding *a, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(a->out->message, sizeof(a->out->message), fmt, ap);
	va_end(ap);
	a->out->code = code;
	return -ECANCELED;
}

static int refuse_kms(struct adding *a, const char *what, const struct kms_err *err)
{
	char text[800];
	int code = err->status == KMS_DENIED                     ? EXIT_DENIED
	    : err->status == KMS_BUSY || err->status == KMS_DOWN ? EXIT_UNREACHABLE
	    : err->status == KMS_CONFIG                          ? EXIT_CONFIG
	                                                         : EXIT_FAILED;

	kms_err_text(text, sizeof(text), err);
	return refuse(a, code, "%s: %s", what, text);
}

static int refuse_locked(struct adding *a, struct domain *d)
{
	struct lease_status st;

	domain_status(d, &st);
	return refuse(a, EXIT_FAILED, "key domain %u is locked: %s", (unsigned)d->index, st.reason);
}

static struct inode *by_number(struct fs *fs, uint64_t number)
{
	struct inode *root = fs_inode(fs, FUSE_ROOT_ID);
	struct stat st = { .st_dev = root->dev, .st_ino = number };

	inode_put(fs->inodes, root);
	return inode_find(fs->inodes, &st);
}

struct domain *domain_of_number(struct fs *fs, uint64_t number)
{
	struct inode *inode = by_number(fs, number);
	struct domain *d = inode ? domain_of_inode(fs, inode) : NULL;

	if (inode)
		inode_put(fs->inodes, inode);
	return d;
}

/* The gate of the parent's domain is held. Is the entry that directory, and empty? */
static int check_entry(struct adding *a)
{
	char entry[NAME_ENTRY_MAX + 1];
	struct fs_dir d;
	struct stat st;
	int r = fs_dir_get(a->fs, a->parent->nodeid, &d);

	if (r)
		return refuse(a, EXIT_FAILED, "its parent directory: %s", strerror(-r));
	r = dir_stat(&d.dir, a->wish->name, strlen(a->wish->name), &st, entry);
	if (!r && st.st_ino != a->wish->dir)
		r = -ESTALE;
	if (!r)
		r = dir_is_empty(&d.dir, a->wish->name, strlen(a->wish->name));
	fs_dir_put(a->fs, &d);
	return r ? refuse(a, EXIT_FAILED, "%s", strerror(-r)) : 0;
}

/* What can be refused before the KMS is asked. */
static int check(struct adding *a)
{
	struct fs *fs = a->fs;
	char why[STORE_WHY];
	int r;

	if (fs->params.readonly)
		return refuse(a, EXIT_FAILED, "the mount is read-only");
	if (store_may_change(fs->store, why))
		return refuse(a, EXIT_FAILED, "%s", why);
	a->parent = by_number(fs, a->wish->parent);
	a->dir = by_number(fs, a->wish->dir);
	if (!a->parent || !a->dir)
		return refuse(a, EXIT_FAILED, "the directory is not known to this mount");
	if (a->dir->nodeid == FUSE_ROOT_ID || domain_of_inode(fs, a->dir)->index != atomic_load(&a->dir->outer))
		return refuse(a, EXIT_ALREADY, "it is a key domain's root already");
	if (!S_ISDIR(a->dir->type))
		return refuse(a, EXIT_FAILED, "%s", strerror(ENOTDIR));
	a->outer = domain_of_inode(fs, a->parent);
	if (!domain_is_open(fs->first))
		return refuse_locked(a, fs->first);
	if (domain_visit(a->outer, LEASE_WORK))
		return refuse_locked(a, a->outer);
	r = check_entry(a);
	domain_leave(a->outer, LEASE_WORK);
	return r;
}

/* The key service with this key. An alias is resolved, in the configured Region, and its key pinned. */
static int open_kms(struct adding *a)
{
	const char *key = a->wish->key;
	struct kms_err err = { 0 };
	int r = domain_kms(a->fs, NULL, key, &a->kms, &err);

	if (r) {
		if (err.status == KMS_OK)
			err.status = KMS_CONFIG;
		return refuse_kms(a, "cannot use the key", &err);
	}
	/* A key file has one key whatever is asked for. */
	if (strcmp(kms_provider_name(a->kms), "keyfile") == 0 && strcmp(kms_key(a->kms), key) != 0)
		return refuse(
		    a, EXIT_CONFIG, "the configured key file holds key '%s', not '%.200s'", kms_key(a->kms), key);
	return 0;
}

static int seal(struct adding *a)
{
	struct kms_err err = { 0 };
	struct context_ids ids = a->outer->ids;
	const char *what;
	int r;

	a->secret = secret_alloc(KDF_SECRET);
	a->keys = secret_alloc(sizeof(*a->keys));
	a->descriptor = calloc(1, sizeof(*a->descriptor));
	if (!a->secret || !a->keys || !a->descriptor)
		return refuse(a, EXIT_FAILED, "no memory for keys");
	secret_random(a->line.domain, sizeof(a->line.domain));
	secret_random(a->line.dirid, sizeof(a->line.dirid));
	memcpy(ids.domain, a->line.domain, sizeof(ids.domain));
	if (seal_domain(a->kms, &ids, domain_extra(a->fs), &a->slot, a->secret, &what, &err) != KMS_OK)
		return refuse_kms(a, what, &err);
	r = kdf_domain(a->keys, a->secret, &ids);
	if (!r)
		r = name_open(&a->names, a->fs->store->desc.names, a->keys, &ids);
	if (!r)
		r = store_first_domain(a->descriptor, &ids, &a->slot, domain_extra(a->fs), a->keys);
	return r ? refuse(a, EXIT_FAILED, "cannot derive the domain's keys: %s", strerror(-r)) : 0;
}

/* Not one that a domain of this mount had whose line was taken back. */
static int free_index(const struct fs *fs)
{
	int r = store_free_index(fs->store);

	if (r < 0 || !domain_get(fs, (uint16_t)r))
		return r;
	for (r = 1; r < (int)DOMAIN_MAX; r++)
		if (!domain_get(fs, (uint16_t)r))
			return r;
	return -ENOSPC;
}

/* The descriptor as it will be, with its MAC, opens the domain as a mount would. */
static int prepare(struct adding *a)
{
	CLEANUP_FREE char *text = NULL;
	struct kms_err err;
	size_t len;
	int r = free_index(a->fs);

	if (r < 0)
		return refuse(a, EXIT_FAILED, "the store has as many key domains as there can be");
	a->line.index = a->descriptor->index = (uint16_t)r;
	a->descriptor->seal = a->wish->seal;
	memcpy(a->line.commit, a->descriptor->commit, sizeof(a->line.commit));
	r = descriptor_domain_print(a->descriptor, a->keys, &text, &len);
	if (r)
		return refuse(a, EXIT_FAILED, "cannot write its descriptor: %s", strerror(-r));
	r = domain_prepare(a->fs, &a->line, a->descriptor, a->kms, &a->made, &err);
	if (r)
		return refuse_kms(a, "the new domain does not open", &err);
	a->descriptor = NULL; /* the domain's now, both */
	a->kms = NULL;
	return 0;
}

/* From here to the end nothing gets into the directory, and it keeps its name; what was on its way in has arrived. */
static int close_directory(struct adding *a)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	uint64_t end = io_boot_ms() + CLOSE_MS;
	int r;

	atomic_store(&a->fs->planting, true);
	atomic_fetch_or(&a->dir->entering, FS_DIR_CLOSED);
	a->closed = true;
	while (atomic_load(&a->dir->entering) != FS_DIR_CLOSED) {
		if (io_boot_ms() >= end)
			return refuse(a, EXIT_FAILED, "%s", strerror(EBUSY));
		(void)nanosleep(&pause, NULL);
	}
	if (domain_visit(a->outer, LEASE_WORK))
		return refuse_locked(a, a->outer);
	r = check_entry(a);
	domain_leave(a->outer, LEASE_WORK);
	return r;
}

static void open_directory(struct adding *a)
{
	if (!a->closed)
		return;
	atomic_fetch_and(&a->dir->entering, ~FS_DIR_CLOSED);
	atomic_store(&a->fs->planting, false);
}

/* The gate of domain 0 is held: its keys authenticate the table. */
static int write_down(struct adding *a)
{
	char why[STORE_WHY];

	if (domain_visit(a->fs->first, LEASE_WORK))
		return refuse_locked(a, a->fs->first);
	int r = store_add_domain(a->fs->store, a->made->descriptor, a->keys, a->line.dirid,
	    lease_domain_keys(domain_lease(a->fs->first)), why);

	domain_leave(a->fs->first, LEASE_WORK);
	a->written = !r;
	return r ? refuse(a, EXIT_FAILED, "%s", why) : 0;
}

/* It got no directory: its line goes. A domain that is served cannot leave the table, but asks for nothing more. */
static int take_back(struct adding *a)
{
	char why[STORE_WHY];
	int r;

	if (a->served && domain_lock(a->served, "it was given up: its directory could not be put in place"))
		log_debug("locked already");
	if (domain_visit(a->fs->first, LEASE_WORK))
		return -EIO;
	r = store_drop_domain(a->fs->store, a->line.domain, lease_domain_keys(domain_lease(a->fs->first)), why);
	domain_leave(a->fs->first, LEASE_WORK);
	if (r)
		log_err("key domain %u has no directory and stays in the table: %s", (unsigned)a->line.index, why);
	return r;
}

struct reseal {
	const struct name_keys *from, *to;
	const uint8_t *old_id, *new_id;
};

static int reseal_one(const struct reseal *x, int from, int to, const char *name, uint8_t *value)
{
	ssize_t n = xattr_get(from, x->old_id, x->from, name, value, NAME_XATTR_VALUE_MAX);

	return n < 0 ? (int)n : xattr_set(to, x->new_id, x->to, name, value, (size_t)n, 0);
}

/* Attributes and ACLs, sealed anew with the new domain's keys. */
static int reseal(void *arg, int from, int to)
{
	const struct reseal *x = arg;
	CLEANUP_FREE char *list = malloc(XATTR_LIST_MAX);
	CLEANUP_FREE uint8_t *value = malloc(NAME_XATTR_VALUE_MAX);
	ssize_t n;
	int r = 0;

	if (!list || !value)
		return -ENOMEM;
	n = xattr_list(from, x->old_id, x->from, list, XATTR_LIST_MAX);
	if (n == -EOPNOTSUPP)
		return 0;
	for (const char *name = list; !r && n > 0 && name < list + n; name += strlen(name) + 1)
		r = reseal_one(x, from, to, name, value);
	if (n > 0)
		explicit_bzero(list, (size_t)n);
	explicit_bzero(value, NAME_XATTR_VALUE_MAX);
	return n < 0 ? (int)n : r;
}

/* The gate of the parent's domain is held. */
static int plant(struct adding *a)
{
	CLEANUP_FD int old = -1;
	struct fs_dir parent, dir;
	struct reseal x = { .to = a->names, .new_id = a->line.dirid };
	struct dir_root root = { .names = a->names, .domain_index = a->line.index, .dress = reseal, .arg = &x };
	int r = fs_dir_get(a->fs, a->parent->nodeid, &parent);

	if (r)
		return r;
	r = fs_dir_get(a->fs, a->dir->nodeid, &dir);
	if (!r) {
		memcpy(root.id, a->line.dirid, sizeof(root.id));
		root.dev = a->dir->dev;
		root.ino = a->dir->ino;
		x.from = dir.dir.names;
		x.old_id = dir.dir.id;
		r = dir_plant(&parent.dir, a->wish->name, strlen(a->wish->name), &root, &old, a->kept);
		if (!r)
			inode_removed(a->dir, &old);
		fs_dir_put(a->fs, &dir);
	}
	fs_dir_put(a->fs, &parent);
	return r;
}

/* The kernel looks the name up again, and finds another directory. */
static void forget_name(struct adding *a)
{
	int r = fuse_lowlevel_notify_inval_entry(a->fs->se, a->parent->nodeid, a->wish->name, strlen(a->wish->name));

	if (r && r != -ENOENT)
		log_warn("cannot make the kernel forget a name: %s", strerror(-r));
}

static int put_in_place(struct adding *a)
{
	int r = domain_visit(a->outer, LEASE_WORK);

	if (!r) {
		r = plant(a);
		domain_leave(a->outer, LEASE_WORK);
	}
	forget_name(a); /* after a failure too: somebody may have seen the new one for a moment */
	if (!r)
		return 0;
	if (a->kept[0])
		return refuse(a, EXIT_FAILED,
		    "somebody used it meanwhile: key domain %u was made, and one of the two directories is now called "
		    "'%s'",
		    (unsigned)a->line.index, a->kept);
	return refuse(a, EXIT_FAILED, "%s", strerror(-r));
}

static int serve(struct adding *a)
{
	struct domain *d = a->made;
	int r = domain_publish(d);

	a->made = NULL;
	a->served = d;
	return r ? refuse(a, EXIT_FAILED, "the new domain cannot be served: %s", strerror(-r)) : 0;
}

static int step(struct adding *a, int (*fn)(struct adding *))
{
	return atomic_load(a->wish->stop) ? refuse(a, EXIT_FAILED, "the mount is ending") : fn(a);
}

static void end(struct adding *a)
{
	open_directory(a);
	if (a->made)
		domain_discard(a->made);
	if (a->descriptor)
		descriptor_domain_free(a->descriptor);
	free(a->descriptor);
	kms_close(a->kms);
	name_free(a->names);
	secret_free(a->secret);
	secret_free(a->keys);
	if (a->dir)
		inode_put(a->fs->inodes, a->dir);
	if (a->parent)
		inode_put(a->fs->inodes, a->parent);
}

void fs_domain_add(struct fs *fs, const struct fs_domain_wish *wish, struct fs_domain_made *out)
{
	static int (*const steps[])(
	    struct adding *) = { check, open_kms, seal, prepare, close_directory, write_down, serve, put_in_place };
	CLEANUP_FREE struct adding *a = calloc(1, sizeof(*a));
	int r = a ? 0 : -ENOMEM;

	memset(out, 0, sizeof(*out));
	if (r) {
		out->code = EXIT_FAILED;
		(void)snprintf(out->message, sizeof(out->message), "%s", strerror(-r));
		return;
	}
	a->fs = fs;
	a->wish = wish;
	a->out = out;
	for (size_t i = 0; !r && i < sizeof(steps) / sizeof(steps[0]); i++)
		r = step(a, steps[i]);
	if (r && a->written && !a->kept[0] && take_back(a))
		log_warn("run 'byokfsctl domain list' for domains without a directory");
	out->index = a->line.index;
	bytes_hex(out->id, a->line.domain, sizeof(a->line.domain));
	(void)snprintf(out->key, sizeof(out->key), "%s", a->slot.key);
	if (!r)
		log_info("key domain %u was made: %s under key '%s'", (unsigned)out->index, out->id, out->key);
	end(a);
}
