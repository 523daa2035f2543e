/* file_shared.c — a file that other hosts write too: section 12.
 *
 * Hides the lock of the backing file and how memory follows what others write. A change is a section: lock, read
 * page 0 again, drop what others made obsolete, work, write nodes and page 0, flush, unlock. Nothing is dirty in
 * between, and no drop is half done, so whoever comes next needs nothing but the disk.
 *
 * Readers do not lock. A section's pages carry versions above the clock of the page 0 before it, and what it removes
 * goes after its page 0: so a unit that is too new, one that does not open, or a page 0 that changed meanwhile tells a
 * reader that what it saw is not of one moment. It then reads again under the shared lock, and only what fails there
 * is damage.
 *
 * The lock is asked for again and again instead of waited for: a wait on a network cannot be ended everywhere. So that
 * a busy host lets others in, it pauses now and then for longer than they sleep. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>

#include "bytes.h"
#include "file_internal.h"
#include "log.h"

#define NAP_MIN_US 100u
#define NAP_MAX_US 2000u
#define PAUSE_US   3000u  /* longer than the longest nap */
#define STREAK_US  20000u /* of sections without a pause */
#define ROUNDS     8      /* data, group, L1, L2 and root, and some for drops */

/* ---- the lock ---- */

static int not_locked(const struct file *f, const char *reason)
{
	char name[800] = "a file";

	if (f->params.describe)
		f->params.describe(f->params.arg, name, sizeof(name));
	log_err("%s: cannot lock it against other hosts: %s", name, reason);
	return -EIO;
}

static void be_polite(struct file *f, uint64_t now)
{
	if (now - f->let_go >= PAUSE_US) {
		f->streak = now;
	} else if (now - f->streak >= STREAK_US) {
		file_io->nap_us(PAUSE_US);
		f->streak = now + PAUSE_US;
	}
}

/* A wait for the lock ends here without it. */
static bool in_vain(struct file *f, uint64_t begun, uint64_t since)
{
	uint64_t now = file_io->now_us();

	/* The keys must go, and wait for us. */
	if (f->params.withdrawn && f->params.withdrawn(f->params.arg))
		return true;
	/* Those behind one who waited in vain do not do so one after the other. */
	if (since < f->missed)
		return true;
	if (now - begun < FILE_LOCK_MS * 1000ull)
		return false;
	f->missed = now;
	(void)!not_locked(
	    f, "another one has held its lock for too long (the storage frees that of a host that died)");
	return true;
}

static int take(struct file *f, int type, uint64_t since)
{
	uint64_t begun = file_io->now_us(), nap = NAP_MIN_US;
	int rc;

	be_polite(f, begun);
	for (;;) {
		rc = file_io->lock(f->slot.fd, type);
		if (rc != -EAGAIN)
			break;
		if (in_vain(f, begun, since))
			return -EIO;
		file_io->nap_us(nap);
		nap = nap * 3 / 2 < NAP_MAX_US ? nap * 3 / 2 : NAP_MAX_US;
	}
	if (rc != 0)
		return not_locked(f, strerror(-rc));
	f->held = true;
	return 0;
}

void file_section_unlock(struct file *f)
{
	int rc = file_io->lock(f->slot.fd, F_UNLCK);

	if (rc != 0)
		(void)!not_locked(f, strerror(-rc)); /* and so it stays, until the descriptor goes */
	f->held = false;
	f->let_go = file_io->now_us();
}

int file_guard(int fd)
{
	return file_io->lock(fd, F_WRLCK);
}

void file_unguard(int fd)
{
	if (file_io->lock(fd, F_UNLCK) != 0)
		log_warn("cannot give back the lock of a backing file");
}

/* ---- what others wrote ---- */

/* Everything but versions of page 0 and the clock, which never go back. */
static void forget(struct file *f)
{
	file_tree_clear(f);
	memset(f->root->ent, 0, f->root->count * sizeof(f->root->ent[0]));
	f->root->pend = f->root->gone = f->root->kids = 0;
	explicit_bzero(f->root->text, BLOCK_ROOT_TEXT);
	f->root->loaded = f->root->dirty = f->root->stale = false;
	f->loaded = f->begun = f->checked = f->sealed = f->fresh = f->repair = f->want_hint = false;
	f->drop = DROP_NONE;
	f->failed = 0;
}

#define SLOTS_AT  512u
#define SLOTS_END 1536u

enum change { CHANGE_NONE, CHANGE_SLOTS, CHANGE_STATE };

/* What of page 0 is not as memory has it. */
static enum change changed(const struct file *f, const uint8_t page[static LAYOUT_PAGE])
{
	if (memcmp(page, f->page0, SLOTS_AT) != 0 ||
	    memcmp(page + SLOTS_END, f->page0 + SLOTS_END, LAYOUT_PAGE - SLOTS_END) != 0)
		return CHANGE_STATE;
	return memcmp(page + SLOTS_AT, f->page0 + SLOTS_AT, SLOTS_END - SLOTS_AT) != 0 ? CHANGE_SLOTS : CHANGE_NONE;
}

static int read_again(struct file *f, uint8_t page[static LAYOUT_PAGE])
{
	struct stat st;
	int rc = file_read_page0(f->slot.fd, page);

	if (rc == -ENODATA)
		return file_damaged(f, UNIT_ROOT, 0, "it is cut short");
	if (rc == 0)
		rc = file_io->stat(f->slot.fd, &st);
	if (rc == 0)
		f->st_size = (uint64_t)st.st_size;
	return rc;
}

static int take_in(struct file *f, const struct file_key *key, const uint8_t page[static LAYOUT_PAGE])
{
	struct header_state st;

	if (f->loaded) {
		switch (changed(f, page)) {
		case CHANGE_SLOTS: /* it was sealed again under another key */
			memcpy(f->page0 + SLOTS_AT, page + SLOTS_AT, SLOTS_END - SLOTS_AT);
			return 0;
		case CHANGE_NONE:
			return 0;
		case CHANGE_STATE:
			break;
		}
	}
	/* After a wipe nothing may have changed: then versions stay known. */
	if (f->loaded || header_state_hint(page, &st) != 0 || st.seq != f->disk.seq)
		forget(f);
	return file_load(f, key, page);
}

int file_section_begin(struct file *f, const struct file_key *key, int type, uint64_t since)
{
	uint8_t page[LAYOUT_PAGE];
	int rc = take(f, type, since);

	if (rc != 0)
		return rc;
	rc = read_again(f, page);
	if (rc == 0)
		rc = take_in(f, key, page);
	f->section_seq = f->disk.seq;
	if (rc != 0)
		file_section_unlock(f);
	return rc;
}

int file_section_begin_keyless(struct file *f, uint64_t since)
{
	uint8_t page[LAYOUT_PAGE];
	int rc = take(f, F_WRLCK, since);

	if (rc != 0)
		return rc;
	rc = read_again(f, page);
	if (rc == 0 && changed(f, page) == CHANGE_STATE)
		f->loaded = f->root->loaded = false;
	if (rc == 0)
		memcpy(f->page0, page, LAYOUT_PAGE);
	else
		file_section_unlock(f);
	return rc;
}

/* ---- the end of a section ---- */

static int make_durable(struct file *f, const struct file_key *key, bool all)
{
	bool dropping = f->drop != DROP_NONE;
	int rc = 0;

	for (int round = 0; rc == 0 && round < ROUNDS; round++) {
		rc = file_commit(f, key, all);
		if (rc == 0)
			rc = file_flush_now(f, key);
		if (f->drop == DROP_NONE && !(all && file_unrecorded(f)))
			break;
	}
	if (rc == 0 && dropping && !all) { /* the tombstones */
		rc = file_commit(f, key, true);
		if (rc == 0)
			rc = file_flush_now(f, key);
	}
	return rc;
}

int file_section_end(struct file *f, const struct file_key *key, int rc)
{
	int end = 0;

	if (f->params.readonly)
		return rc;
	if (file_uncommitted(f) || f->disk.seq != f->section_seq || f->drop != DROP_NONE)
		end = make_durable(f, key, f->params.commit_strict);
	if (end != 0)
		forget(f); /* it was refused; what there is now the next section will see */
	return rc != 0 ? rc : end;
}

int file_promote_shared(struct file *f, const struct file_key *key)
{
	int rc = file_lock_quiet(f, key);

	if (rc != 0)
		return rc;
	if (f->st_size / LAYOUT_PAGE > layout_pages(f->size, f->inlined))
		rc = file_check_end(f, key);
	if (rc == 0)
		rc = file_hint(f);
	if (rc == 0 && (f->pub_pending || file_uncommitted(f)))
		rc = make_durable(f, key, true);
	return file_end(f, key, rc);
}

int file_fsync_shared(struct file *f)
{
	int rc = file_hold(f);

	if (rc < 0)
		return rc;
	rc = file_sync(f);
	(void)pthread_rwlock_wrlock(&f->content);
	if (rc == 0)
		f->fresh = false;
	else
		forget(f);
	file_publish(f);
	(void)pthread_rwlock_unlock(&f->content);
	file_release(f);
	return rc;
}

/* ---- readers ---- */

int file_still_current(const struct file *f)
{
	uint8_t page[LAYOUT_PAGE];
	int rc = file_read_page0(f->slot.fd, page);

	if (rc != 0)
		return rc;
	return changed(f, page) == CHANGE_STATE ? -EAGAIN : 0;
}

int file_refresh(struct file *f, const struct file_key *key)
{
	int rc;

	if (!f->params.shared)
		return 0;
	/* The lock also makes network file systems ask the server again: an old page 0 may lie in a cache here. */
	rc = file_lock_reading(f, key);
	if (rc == 0)
		file_unlock(f);
	return rc;
}
