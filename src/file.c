/* file.c — one file's plaintext over its backing file: beginning, locking and end of a tenure.
 *
 * Hides struct file. The rest of the module is in file_*.c, see file_internal.h for the map. */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>

#include "bytes.h"
#include "file_internal.h"
#include "log.h"

#define ROOT_TREE_TEXT 1472u /* what a paged file uses of the root's plaintext */

int file_damaged(const struct file *f, enum unit_type type, uint64_t index, const char *reason)
{
	const char *kind = type == UNIT_DATA ? "data" : type == UNIT_GROUP ? "group" : type == UNIT_L1 ? "L1" : "L2";
	char name[800] = "a file";

	if (file_tentative(f))
		return -EIO;
	if (f->params.damaged) {
		f->params.damaged(f->params.arg, type, index, reason);
		return -EIO;
	}
	if (f->params.describe)
		f->params.describe(f->params.arg, name, sizeof(name));
	if (type == UNIT_ROOT)
		log_damage("%s: page 0: %s", name, reason);
	else
		log_damage("%s: %s page %" PRIu64 ": %s", name, kind, index, reason);
	return -EIO;
}

int file_new_page(uint8_t page[static LAYOUT_PAGE], const struct header_ident *ident, const struct header_slot *slot,
    const struct file_key *key)
{
	static const uint8_t empty[BLOCK_ROOT_TEXT];
	const struct header_state st = { .seq = 1, .clock = 1, .inlined = true };
	struct block_run run;
	int rc;

	memset(page, 0, LAYOUT_PAGE);
	header_put_ident(page, ident, key->keys);
	header_put_slot(page, 0, slot);
	header_put_state(page, &st, key->keys->hdr, ident->file);
	block_begin(&run, key->block);
	rc = block_seal_root(&run, st.seq, st.clock, empty, page + HEADER_ROOT_AT);
	block_end(&run);
	return rc;
}

int file_read_page0(int fd, uint8_t page[static LAYOUT_PAGE])
{
	ssize_t got = file_io->read(fd, page, LAYOUT_PAGE, 0);

	if (got < 0)
		return (int)got;
	return got < (ssize_t)LAYOUT_PAGE ? -ENODATA : 0;
}

int file_peek(int fd, struct header_ident *ident, struct header_slot *slot)
{
	uint8_t page[LAYOUT_PAGE];
	int rc = file_read_page0(fd, page);

	if (rc == 0)
		rc = header_ident(page, ident);
	if (rc != 0)
		return rc == -EBADMSG ? -EIO : rc;
	return header_ruling_slot(page, slot) < 0 ? -EIO : 0;
}

static bool same_ident(const struct header_ident *a, const struct header_ident *b)
{
	return a->suite == b->suite && bytes_equal(a->store, b->store, CONTEXT_ID) &&
	    bytes_equal(a->domain, b->domain, CONTEXT_ID) && bytes_equal(a->file, b->file, CONTEXT_ID) &&
	    bytes_equal(a->commit, b->commit, sizeof(a->commit));
}

int file_peek_other(int fd, const struct header_ident *ident, struct header_slot *slot)
{
	struct header_ident now;
	struct header_slot ruling;
	uint8_t page[LAYOUT_PAGE];
	int which;

	if (file_read_page0(fd, page) || header_ident(page, &now) || !same_ident(&now, ident))
		return -ENODATA;
	which = header_ruling_slot(page, &ruling);
	return which < 0 || header_slot(page, !which, slot) ? -ENODATA : 0;
}

/* IDENT is this file's, and the key is its key. */
static int check_ident(struct file *f, const struct file_key *key, const uint8_t *page)
{
	const struct block_file *b = key->block;
	bool first = f->disk.seq == 0;
	struct header_ident ident;

	if (header_ident(page, &ident) != 0)
		return file_damaged(f, UNIT_ROOT, 0, "it is not a file's first page");
	if (!first && !same_ident(&ident, &f->ident))
		return file_damaged(f, UNIT_ROOT, 0, "it is another file's");
	if (ident.suite != b->suite || !bytes_equal(ident.store, b->store, CONTEXT_ID) ||
	    !bytes_equal(ident.file, b->file, CONTEXT_ID) || header_verify_ident(page, key->keys) != 0)
		return file_damaged(f, UNIT_ROOT, 0, "the key is not this file's, or its identity was altered");
	if (first) /* it is read without a lock from then on */
		f->ident = ident;
	return 0;
}

static int open_root(struct file *f, const struct file_key *key, const uint8_t *page, const struct header_state *st)
{
	size_t used = st->inlined ? (size_t)st->size : ROOT_TREE_TEXT;
	struct block_run run;
	int rc;

	block_begin(&run, key->block);
	rc = block_open_root(&run, st->seq, st->clock, page + HEADER_ROOT_AT, f->root->text);
	block_end(&run);
	if (rc != 0)
		return file_damaged(f, UNIT_ROOT, 0, "its root does not authenticate");
	if (!bytes_zero(f->root->text + used, BLOCK_ROOT_TEXT - used)) {
		explicit_bzero(f->root->text, BLOCK_ROOT_TEXT);
		return file_damaged(f, UNIT_ROOT, 0, "its padding is not zero");
	}
	return 0;
}

/* At the beginning of a tenure, and again after a wipe. */
int file_load(struct file *f, const struct file_key *key, const uint8_t page[static LAYOUT_PAGE])
{
	struct header_state st;
	int rc = check_ident(f, key, page);

	if (rc != 0)
		return rc;
	if (header_state(page, key->keys->hdr, f->ident.file, &st) != 0)
		return file_damaged(f, UNIT_ROOT, 0, "it has no valid state");
	if (st.seq < f->disk.seq)
		return file_damaged(f, UNIT_ROOT, 0, "it is older than what was there before");
	rc = open_root(f, key, page, &st);
	if (rc == -EIO && f->mending && (!st.inlined || f->st_size >= 2 * LAYOUT_PAGE)) {
		f->root_lost = true;
		file_forget_root(f, &st);
	} else if (rc != 0) {
		return rc;
	}
	memcpy(f->page0, page, LAYOUT_PAGE);
	f->disk = st;
	f->size = st.size;
	f->csize = st.csize;
	f->inlined = st.inlined;
	f->loaded_clock = st.clock;
	if (st.clock > f->clock)
		f->clock = st.clock;
	if (st.dclock > f->durable)
		f->durable = st.dclock;
	f->root->loaded = f->loaded = true;
	if (!f->inlined)
		file_rebury(f->root);
	return 0;
}

static int load_from_disk(struct file *f, const struct file_key *key)
{
	uint8_t page[LAYOUT_PAGE];
	int rc = file_read_page0(f->slot.fd, page);

	if (rc == -ENODATA)
		return file_damaged(f, UNIT_ROOT, 0, "it is cut short");
	return rc == 0 ? file_load(f, key, page) : rc;
}

static int lock_init(struct file *f)
{
	pthread_rwlockattr_t attr;
	int rc = pthread_rwlockattr_init(&attr);

	if (rc != 0)
		return -rc;
	/* glibc's default lets a stream of readers starve a writer */
	rc = pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	if (rc == 0)
		rc = pthread_rwlock_init(&f->content, &attr);
	(void)pthread_rwlockattr_destroy(&attr);
	if (rc == 0) {
		rc = pthread_mutex_init(&f->cache, NULL);
		if (rc != 0)
			(void)pthread_rwlock_destroy(&f->content);
	}
	return -rc;
}

/* Without the locks, which come last. */
static void release(struct file *f)
{
	if (!f)
		return;
	file_tree_clear(f);
	file_node_free(f->root);
	free(f);
}

static int file_make(struct file **out, int fd, const struct file_params *params)
{
	struct file *f = file_io->alloc(sizeof(*f));
	struct stat st;
	int rc;

	if (!f)
		return -ENOMEM;
	TAILQ_INIT(&f->clean);
	TAILQ_INIT(&f->busy);
	f->slot.fd = fd;
	f->params = *params;
	f->root = file_root_new();
	rc = f->root ? file_io->stat(fd, &st) : -ENOMEM;
	if (rc == 0)
		rc = lock_init(f);
	if (rc != 0) {
		release(f);
		return rc;
	}
	f->st_size = (uint64_t)st.st_size;
	*out = f;
	return 0;
}

int file_new(struct file **out, int fd, const uint8_t page[static LAYOUT_PAGE], const struct file_key *key,
    const struct file_params *params)
{
	struct file *f;
	int rc = file_make(&f, fd, params);

	if (rc != 0)
		return rc;
	rc = file_load(f, key, page);
	if (rc != 0) {
		f->slot.fd = -1;
		file_close(f);
		return rc;
	}
	f->fresh = f->begun = f->checked = true;
	f->unsynced = true; /* the page */
	file_publish(f);
	file_join_pool(f);
	*out = f;
	return 0;
}

/* A hint that is wrong is set right, but whole pages are not removed here: that needs a flush
 * before and after (5.6). */
static int check_hint(struct file *f, bool *wrong)
{
	uint64_t hint = layout_hint(f->size, f->inlined);

	*wrong = f->st_size != hint;
	if (!*wrong || f->params.readonly)
		return 0;
	f->repair = f->st_size / LAYOUT_PAGE > hint / LAYOUT_PAGE;
	f->keep_times = true;
	return file_hint(f);
}

static int open_state(struct file **out, int fd, const struct file_key *key, const struct file_params *params,
    bool mending, bool *hint_wrong)
{
	struct file *f;
	int rc = file_make(&f, fd, params);

	if (rc != 0)
		return rc;
	f->mending = mending;
	*hint_wrong = false;
	if (params->shared) { /* a hint may be another host's work in progress */
		rc = file_refresh(f, key);
	} else {
		rc = file_lock_quiet(f, key);
		if (rc == 0) {
			rc = check_hint(f, hint_wrong);
			file_unlock(f);
		}
	}
	if (rc != 0) {
		f->slot.fd = -1;
		file_close(f);
		return rc;
	}
	file_join_pool(f);
	*out = f;
	return 0;
}

int file_open(struct file **out, int fd, const struct file_key *key, const struct file_params *params, bool *hint_wrong)
{
	return open_state(out, fd, key, params, false, hint_wrong);
}

int file_open_mending(struct file **out, int fd, const struct file_key *key, const struct file_params *params)
{
	bool wrong;

	return open_state(out, fd, key, params, true, &wrong);
}

void file_close(struct file *f)
{
	if (!f)
		return;
	CLEANUP_FD int fd = fdslot_take(&f->slot);

	(void)pthread_rwlock_destroy(&f->content);
	(void)pthread_mutex_destroy(&f->cache);
	release(f);
}

const struct header_ident *file_ident(const struct file *f)
{
	return &f->ident;
}

uint64_t file_seq(const struct file *f)
{
	return f->pub_seq;
}

uint64_t file_size(const struct file *f)
{
	return f->pub_size;
}

bool file_dirty(const struct file *f)
{
	return f->pub_dirty;
}

bool file_odd(const struct file *f)
{
	return f->pub_odd;
}

bool file_pending(const struct file *f)
{
	return f->pub_pending;
}

bool file_fresh(const struct file *f)
{
	return f->pub_fresh;
}

static int lock_for(struct file *f, const struct file_key *key, int type)
{
	uint64_t since = f->params.shared ? file_io->now_us() : 0;
	int rc = file_hold(f);

	if (rc < 0)
		return rc;
	(void)pthread_rwlock_wrlock(&f->content);
	file_note_lost(f);
	rc = 0;
	if (f->params.shared)
		rc = file_section_begin(f, key, type, since);
	else if (!f->loaded)
		rc = load_from_disk(f, key);
	if (rc != 0) {
		(void)pthread_rwlock_unlock(&f->content);
		file_release(f);
	}
	return rc;
}

int file_lock(struct file *f, const struct file_key *key)
{
	return lock_for(f, key, f->params.readonly ? F_RDLCK : F_WRLCK);
}

int file_lock_reading(struct file *f, const struct file_key *key)
{
	return lock_for(f, key, F_RDLCK);
}

int file_lock_quiet(struct file *f, const struct file_key *key)
{
	int rc = file_lock(f, key);

	if (rc == 0)
		f->keep_times = true;
	return rc;
}

void file_unlock(struct file *f)
{
	int rc = f->times_saved ? file_io->set_mtime(f->slot.fd, &f->mtime) : 0;

	if (rc != 0)
		log_warn("cannot put back the modification time of a backing file: %s", strerror(-rc));
	f->keep_times = f->times_saved = false;
	if (f->held)
		file_section_unlock(f);
	file_trim(f);
	file_publish(f);
	(void)pthread_rwlock_unlock(&f->content);
	file_release(f);
}

/* Text goes; entries stay, so that a rollback while locked is noticed. */
static void forget_text(struct file *f)
{
	struct file_node *n;

	TAILQ_FOREACH(n, &f->clean, link)
	{
		explicit_bzero(n->text, LAYOUT_BODY);
		n->loaded = false;
	}
	TAILQ_FOREACH(n, &f->busy, link)
	{
		explicit_bzero(n->text, LAYOUT_BODY);
		n->loaded = false;
	}
	explicit_bzero(f->root->text, BLOCK_ROOT_TEXT);
	f->root->loaded = f->loaded = false;
	if (!f->disk.inlined)
		return;
	/* what a lost change of layout left behind belongs to no tree */
	file_tree_clear(f);
	memset(f->root->ent, 0, f->root->count * sizeof(f->root->ent[0]));
	f->root->pend = f->root->gone = 0;
}

bool file_wipe(struct file *f)
{
	bool lost;

	(void)pthread_rwlock_wrlock(&f->content);
	file_publish(f);
	lost = f->loaded && file_uncommitted(f);
	if (f->loaded) {
		file_unsettle(f, lost);
		forget_text(f);
	}
	f->size = f->disk.size;
	f->csize = f->disk.csize;
	f->inlined = f->disk.inlined;
	f->sealed = false;
	file_publish(f);
	(void)pthread_rwlock_unlock(&f->content);
	return lost;
}
