/* file_commit.c — page 0, nodes, flush, fsync, promotion and the size hint: sections 5.1, 5.3 and
 * 6.
 *
 * Hides the order in which things reach the disk. Nodes go bottom-up and page 0 last, but nothing
 * depends on that order: what is written before a flush only allows more than before. What forbids
 * (records, tombstones, dclock, csize) comes from file_record.c and is about bytes that an earlier
 * flush made durable. */
#include <errno.h>

#include "file_internal.h"
#include "log.h"

/* Clock rule 1. */
static void begin_tenure(struct file *f)
{
	if (f->begun)
		return;
	if (f->clock < f->loaded_clock + FILE_B)
		f->clock = f->loaded_clock + FILE_B;
	f->begun = true;
}

int file_budget(struct file *f, const struct file_key *key, uint64_t n)
{
	int rc;

	begin_tenure(f);
	if (f->clock + n > BLOCK_VER_MAX)
		return -EFBIG;
	if (f->fresh)
		return f->clock + n - f->disk.clock > FILE_B ? file_write_page0(f, key) : 0;
	if (f->clock + n <= f->durable + FILE_W)
		return 0;
	rc = file_write_page0(f, key);
	if (rc == 0)
		rc = file_flush_now(f, key);
	if (rc == 0 && f->clock + n > f->durable + FILE_W)
		rc = -EIO;
	return rc;
}

int file_write_page0(struct file *f, const struct file_key *key)
{
	struct header_state st = f->disk;
	uint8_t page[LAYOUT_PAGE];
	struct block_run run;
	int rc;

	begin_tenure(f);
	if (f->clock >= BLOCK_VER_MAX)
		return -EFBIG;
	st.seq++;
	st.size = f->size;
	st.csize = f->fresh || f->csize > f->size ? f->size : f->csize;
	st.clock = file_tick(f);
	st.dclock = f->durable;
	st.inlined = f->inlined;
	memcpy(page, f->page0, LAYOUT_PAGE);
	header_put_state(page, &st, key->keys->hdr, f->ident.file);
	block_begin(&run, key->block);
	rc = block_seal_root(&run, st.seq, st.clock, f->root->text, page + HEADER_ROOT_AT);
	block_end(&run);
	if (rc == 0)
		rc = file_pwrite(f, page, 1, 0);
	if (rc != 0)
		return rc;
	memcpy(f->page0, page, LAYOUT_PAGE);
	f->disk = st;
	f->root->dirty = f->root->stale = f->sealed = false;
	return 0;
}

int file_write_node(struct file *f, const struct file_key *key, struct file_node *n)
{
	uint64_t ver = file_tick(f);
	uint8_t page[LAYOUT_PAGE];
	struct block_run run;
	int rc;

	block_begin(&run, key->block);
	rc = block_seal(&run, n->type, n->index, ver, n->text, page);
	block_end(&run);
	if (rc == 0)
		rc = file_pwrite(f, page, 1, layout_phys(n->type, n->index));
	if (rc != 0)
		return rc;
	n->dirty = n->stale = false;
	n->secured = true;
	file_requeue(f, n);
	file_issued(f, n->up, n->slot, ver);
	return 0;
}

static int write_nodes(struct file *f, const struct file_key *key)
{
	static const enum unit_type levels[] = { UNIT_GROUP, UNIT_L1, UNIT_L2 };

	for (unsigned i = 0; i < 3; i++) {
		struct file_node *n = TAILQ_FIRST(&f->busy), *next;

		for (; n; n = next) {
			next = TAILQ_NEXT(n, link);
			if (n->type == levels[i] && (n->dirty || n->stale)) {
				int rc = file_write_node(f, key, n);

				if (rc != 0)
					return rc;
			}
		}
	}
	return 0;
}

/* Something users could miss is not written. */
bool file_uncommitted(const struct file *f)
{
	const struct file_node *n;

	if (f->sealed || f->root->dirty || f->size != f->disk.size || f->inlined != f->disk.inlined)
		return true;
	TAILQ_FOREACH(n, &f->busy, link)
	if (n->dirty)
		return true;
	return false;
}

int file_commit(struct file *f, const struct file_key *key, bool all)
{
	int rc;

	if (!file_uncommitted(f) && !(all && file_unrecorded(f)))
		return 0;
	rc = file_budget(f, key, f->nbusy + FILE_MARGIN);
	if (rc == 0)
		rc = write_nodes(f, key);
	if (rc == 0)
		rc = file_write_page0(f, key);
	if (rc != 0)
		return rc;
	f->full_written = f->disk.clock;
	if (!f->fresh || f->drop != DROP_LISTED)
		return 0;
	/* nothing was promised: what was dropped goes at once, its tombstones are written already */
	rc = file_remove_dropped(f);
	if (rc == 0)
		file_bury_dropped(f);
	return rc;
}

/* The backing's fdatasync; a failure stays. */
static int flush_result(struct file *f, int rc)
{
	if (rc != 0) {
		f->failed = rc;
		(void)file_damaged(f, UNIT_ROOT, 0, "the backing failed to flush; what is not durable yet is in doubt");
	}
	return rc;
}

void file_note_lost(struct file *f)
{
	int rc = atomic_exchange_explicit(&f->lost, 0, memory_order_relaxed);

	if (rc != 0 && f->failed == 0)
		(void)flush_result(f, rc);
}

int file_flush_now(struct file *f, const struct file_key *key)
{
	struct file_mark mark;
	int rc = f->failed;

	if (rc != 0)
		return rc;
	f->fresh = false;
	mark = file_mark_now(f);
	rc = flush_result(f, file_sync(f));
	return rc == 0 ? file_settle(f, key, &mark) : rc;
}

/* A write took space and then failed: the backing is longer than it should be, and no drop will see to it. */
static bool overlong(const struct file *f)
{
	return !f->fresh && f->drop == DROP_NONE && f->st_size / LAYOUT_PAGE > layout_pages(f->size, f->inlined);
}

/* The length that is exact, and can be given now: not if whole pages would go, for that is T2's
 * business. */
static bool hint_wanted(const struct file *f)
{
	uint64_t pages = layout_pages(f->size, f->inlined);

	return f->st_size != layout_hint(f->size, f->inlined) && (f->fresh || f->st_size / LAYOUT_PAGE <= pages);
}

int file_hint(struct file *f)
{
	uint64_t pages = layout_pages(f->size, f->inlined);
	int rc = 0;

	f->want_hint = true;
	if (!hint_wanted(f))
		return 0;
	if (f->st_size / LAYOUT_PAGE > pages)
		rc = file_set_length(f, pages * LAYOUT_PAGE);
	return rc == 0 ? file_set_length(f, layout_hint(f->size, f->inlined)) : rc;
}

int file_flush(struct file *f, const struct file_key *key, bool hint)
{
	int rc;

	if (f->params.readonly || (f->params.shared && !hint))
		return 0;
	rc = file_lock_quiet(f, key);
	if (rc != 0)
		return rc;
	rc = file_commit(f, key, false);
	if (rc == 0 && hint)
		rc = file_hint(f);
	return file_end(f, key, rc);
}

int file_flush_times(struct file *f, const struct file_key *key, bool hint, const struct timespec times[2])
{
	int rc = f->params.readonly ? -EROFS : file_lock(f, key);

	if (rc != 0)
		return rc;
	rc = file_commit(f, key, false);
	if (rc == 0 && hint)
		rc = file_hint(f);
	if (futimens(f->slot.fd, times) != 0 && rc == 0)
		rc = -errno;
	return file_end(f, key, rc);
}

/* One flush without the lock; it is held before and after. */
static int flush_aside(struct file *f, const struct file_key *key)
{
	struct file_mark mark;
	int rc;

	f->fresh = false;
	mark = file_mark_now(f);
	rc = file_hold(f);
	file_unlock(f);
	if (rc >= 0)
		rc = file_sync(f);
	(void)pthread_rwlock_wrlock(&f->content);
	f->keep_times = true;
	rc = flush_result(f, rc);
	return rc == 0 ? file_settle(f, key, &mark) : rc;
}

/* Data, group, L1, L2 and root, and two more for drops. */
#define STRICT_ROUNDS 8

int file_fsync(struct file *f, const struct file_key *key)
{
	int rc;

	if (f->params.readonly)
		return 0;
	if (f->params.shared)
		return file_fsync_shared(f);
	rc = file_lock_quiet(f, key);
	if (rc != 0)
		return rc;
	rc = f->failed;
	for (unsigned round = 0; rc == 0 && round < STRICT_ROUNDS; round++) {
		rc = file_commit(f, key, f->params.commit_strict);
		if (rc == 0)
			rc = flush_aside(f, key);
		if (f->drop == DROP_NONE && !(f->params.commit_strict && file_unrecorded(f)))
			break;
	}
	file_unlock(f);
	return rc;
}

int file_promote_begin(struct file *f, const struct file_key *key, uint64_t *mark)
{
	int rc;

	*mark = 0;
	if (f->params.readonly)
		return -EROFS;
	if (f->params.shared)
		return file_promote_shared(f, key);
	rc = file_lock_quiet(f, key);
	if (rc != 0)
		return rc;
	rc = f->failed;
	if (rc == 0 && overlong(f))
		f->checked = false; /* the end is no longer as it was found */
	if (rc == 0 && (f->repair || overlong(f)))
		rc = file_check_end(f, key);
	if (rc == 0)
		rc = file_commit(f, key, true);
	if (rc == 0 && f->want_hint)
		rc = file_hint(f);
	if (rc == 0) {
		f->fresh = false;
		f->promotion = file_mark_now(f);
		*mark = f->promotion.no;
	}
	file_unlock(f);
	return rc;
}

int file_promote_end(struct file *f, const struct file_key *key, uint64_t mark, bool durable)
{
	int rc = f->params.shared ? 0 : file_lock_quiet(f, key);

	if (rc != 0 || f->params.shared) /* there, the first half did it all */
		return rc;
	rc = f->failed;
	/* a syncfs may have failed for another file's sake; our own flush tells */
	if (rc == 0 && !durable)
		rc = flush_result(f, file_sync(f));
	if (rc == 0 && f->promotion.no == mark)
		rc = file_settle(f, key, &f->promotion);
	file_unlock(f);
	return rc;
}

void file_publish(struct file *f)
{
	bool dirty = file_uncommitted(f), work = f->nbusy > 0 || f->root->pend || f->root->gone || f->root->stale;
	bool behind = f->disk.clock - f->disk.dclock >= FILE_B;

	f->pub_size = f->size;
	f->pub_seq = f->disk.seq;
	f->pub_fresh = f->fresh;
	f->pub_dirty = !f->params.readonly && (dirty || hint_wanted(f));
	f->pub_odd = f->failed && f->st_size != layout_hint(f->size, f->inlined);
	f->pub_pending = !f->params.readonly && !f->fresh && !f->failed &&
	    (dirty || work || (behind && f->begun) || f->drop != DROP_NONE || f->repair ||
	        overlong(f));
}
