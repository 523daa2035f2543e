/* file_drop.c — bytes that cease to exist: truncation, holes, zeroed ranges (section 5.5), and the
 * repair of an end that an earlier owner left half done (5.6).
 *
 * Hides the four steps of a drop. T1, done here, marks entries as dropped and lets page 0 say so.
 * T2, the removal of pages, and T3, the tombstones, follow after flushes, see file_record.c; T4
 * makes them come earlier when dropped pages would show again. A fresh file has promised nothing,
 * so all is done at once. */
#include <errno.h>
#include <fcntl.h>

#include "bytes.h"
#include "file_internal.h"

#define PUNCH_GROUPS 512u /* groups dropped at a time: bounds what must stay in memory */

static uint64_t round_up(uint64_t size)
{
	return layout_data_pages(size) * LAYOUT_PAGE;
}

/* Removes the pages of dropped entries of one node, runs at a time. */
static int punch_node(struct file *f, const struct file_node *n)
{
	uint64_t pages = layout_data_pages(f->size), start = 0, len = 0, index, phys;
	enum unit_type type;
	int rc = 0;

	for (uint32_t e = 0; rc == 0 && e < n->count && n->gone; e++) {
		file_child(n, e, &type, &index);
		if (!(n->ent[e] & ENT_GONE) || type != UNIT_DATA || index >= pages)
			continue;
		phys = layout_phys(type, index);
		if (len && start + len == phys) {
			len++;
			continue;
		}
		if (len)
			rc = file_punch_backing(f, start, len);
		start = phys;
		len = 1;
	}
	return rc == 0 && len ? file_punch_backing(f, start, len) : rc;
}

int file_remove_dropped(struct file *f)
{
	uint64_t pages = layout_pages(f->size, f->inlined);
	struct file_node *n = NULL;
	int rc = 0;

	/* whole pages first: the bytes of the hint must be a hole, lest they become half a page one day */
	if (f->st_size / LAYOUT_PAGE > pages)
		rc = file_set_length(f, pages * LAYOUT_PAGE);
	if (rc == 0 && f->want_hint)
		rc = file_hint(f);
	while (rc == 0 && (n = file_busy_next(f, n)))
		rc = punch_node(f, n);
	return rc;
}

int file_finish_drops(struct file *f, const struct file_key *key, bool all)
{
	int rc = 0;

	while (rc == 0 && (f->drop == DROP_LISTED || (all && f->drop == DROP_REMOVED))) {
		rc = file_commit(f, key, false);
		if (rc == 0)
			rc = file_flush_now(f, key);
	}
	return rc;
}

/* T1 is done in memory. */
static int drop_begun(struct file *f, const struct file_key *key)
{
	f->drop = DROP_LISTED;
	f->drop_clock = f->clock;
	f->root->dirty = true; /* a page 0 of after T1 must be written, whatever else */
	return f->fresh ? file_commit(f, key, false) : 0;
}

/* Nodes that lie wholly at or beyond a page leave memory, with whatever they had in mind. */
static void discard_beyond(struct file *f, uint64_t pages)
{
	static const enum unit_type levels[] = { UNIT_GROUP, UNIT_L1, UNIT_L2 };
	struct file_nodes *lists[] = { &f->clean, &f->busy };

	for (unsigned i = 0; i < 6; i++) {
		struct file_node *n = TAILQ_FIRST(lists[i % 2]), *next;

		for (; n; n = next) {
			next = TAILQ_NEXT(n, link);
			if (n->type == levels[i / 2] && file_first_page(n->type, n->index) >= pages)
				file_discard(f, n);
		}
	}
}

/* The lowest node that holds both entries below and beyond page `pages`, or its neighbour; the
 * others are above it. */
static int end_node(struct file *f, const struct file_key *key, uint64_t pages, struct file_node **n)
{
	uint32_t e;

	*n = f->root;
	return pages == 0 ? 0 : file_parent(f, key, UNIT_DATA, pages - 1, n, &e);
}

/* T1 for everything in pages [pages, old). */
static int drop_beyond(struct file *f, const struct file_key *key, uint64_t pages, uint64_t old)
{
	struct file_node *n;
	enum unit_type type;
	uint64_t index;
	int rc = end_node(f, key, pages, &n);

	if (rc != 0)
		return rc;
	discard_beyond(f, pages);
	for (; n; n = n->up) {
		for (uint32_t e = 0; e < n->count; e++) {
			uint64_t first;

			file_child(n, e, &type, &index);
			first = file_first_page(type, index);
			if (first >= pages && first < old)
				file_dropped(f, n, e);
		}
	}
	return 0;
}

/* 5.6 (a) and (c) but for the last page's tail. */
static int beyond_is_clean(struct file *f, const struct file_key *key, uint64_t pages, bool *clean)
{
	struct file_node *n;
	enum unit_type type;
	uint64_t index;
	int rc = end_node(f, key, pages, &n);

	for (; rc == 0 && n; n = n->up) {
		for (uint32_t e = 0; e < n->count; e++) {
			file_child(n, e, &type, &index);
			if (file_first_page(type, index) < pages)
				continue;
			if (!(file_rec(n, e) & REC_H) ||
			    (type == UNIT_DATA && !bytes_zero(file_spill(n, e), LAYOUT_SPILL)))
				*clean = false;
		}
	}
	return rc;
}

/* The last page beyond size: *clean when it is all zero, and with `mend` made so. A page that
 * cannot be opened has no tail that could ever be shown. */
static int check_tail(struct file *f, const struct file_key *key, bool mend, bool *clean)
{
	uint64_t k = f->size / LAYOUT_PAGE, valid = f->size % LAYOUT_PAGE;
	uint64_t from = valid > LAYOUT_BODY ? valid - LAYOUT_BODY : 0;
	uint8_t text[LAYOUT_PAGE], *spill;
	struct file_node *n;
	bool present;
	uint32_t e;
	int rc;
	WIPE_SCOPE(text);

	if (valid == 0)
		return 0;
	rc = file_parent(f, key, UNIT_DATA, k, &n, &e);
	if (rc != 0)
		return rc;
	spill = file_spill(n, e);
	if (!bytes_zero(spill + from, LAYOUT_SPILL - from)) {
		*clean = false;
		if (mend) {
			memset(spill + from, 0, LAYOUT_SPILL - from);
			file_mark_dirty(f, n);
		}
	}
	if (valid >= LAYOUT_BODY || file_load_page(f, key, n, e, k, text, &present) != 0)
		return 0;
	if (bytes_zero(text + valid, LAYOUT_BODY - valid))
		return 0;
	*clean = false;
	/* writing part of a page seals zeros beyond size */
	return mend ? file_put(f, key, text + valid - 1, 1, f->size - 1) : 0;
}

static int repair_end(struct file *f, const struct file_key *key)
{
	bool clean;
	int rc = file_budget(f, key, FILE_MARGIN);

	if (rc == 0 && !f->inlined)
		rc = check_tail(f, key, true, &clean);
	if (rc == 0 && !f->inlined)
		rc = drop_beyond(f, key, layout_data_pages(f->size), LAYOUT_DATA_MAX);
	if (rc == 0)
		rc = drop_begun(f, key);
	return rc == 0 ? file_finish_drops(f, key, true) : rc;
}

int file_check_end(struct file *f, const struct file_key *key)
{
	struct stat st;
	bool clean;
	int rc;

	if (f->checked)
		return 0;
	rc = file_io->stat(f->slot.fd, &st);
	if (rc != 0)
		return rc;
	f->st_size = (uint64_t)st.st_size;
	clean = f->st_size / LAYOUT_PAGE <= layout_pages(f->size, f->inlined);
	if (!f->inlined) {
		rc = beyond_is_clean(f, key, layout_data_pages(f->size), &clean);
		if (rc == 0 && clean)
			rc = check_tail(f, key, false, &clean);
	}
	if (rc != 0)
		return rc;
	f->checked = true;
	if (!clean)
		rc = repair_end(f, key);
	f->checked = rc == 0;
	if (rc == 0)
		f->repair = false;
	return rc;
}

int file_before_growth(struct file *f, const struct file_key *key, uint64_t off)
{
	int rc = file_check_end(f, key);

	if (rc == 0 && f->drop == DROP_LISTED && layout_data_pages(f->size) < off / LAYOUT_PAGE)
		rc = file_finish_drops(f, key, false);
	return rc;
}

/* Remembers the smallest size of a flush's time: what it promises is no more than that. */
static void note_shrink(struct file *f)
{
	if (f->csize > f->size)
		f->csize = f->size;
	if (f->low_no != f->flush_no || f->size < f->low)
		f->low = f->size;
	f->low_no = f->flush_no;
}

/* What an earlier owner left behind the end is put right before anything is dropped: else it might
 * show between what is dropped and what is removed. Of a damaged file everything may still be
 * dropped; then without delay. */
static int check_before_shrink(struct file *f, const struct file_key *key, uint64_t size, bool *damaged)
{
	int rc = file_check_end(f, key);

	*damaged = rc == -EIO && size == 0;
	return *damaged ? 0 : rc;
}

static int shrink(struct file *f, const struct file_key *key, uint64_t size)
{
	uint64_t pages = layout_data_pages(size), old = layout_data_pages(f->size);
	uint64_t tail = round_up(size) < f->size ? round_up(size) : f->size;
	bool damaged;
	int rc = check_before_shrink(f, key, size, &damaged);

	if (rc == 0)
		rc = file_budget(f, key, FILE_MARGIN);
	if (rc == 0 && tail > size)
		rc = file_put(f, key, NULL, tail - size, size);
	if (rc == 0 && pages < old)
		rc = drop_beyond(f, key, pages, damaged ? LAYOUT_DATA_MAX : old);
	if (rc != 0)
		return rc;
	f->size = size;
	note_shrink(f);
	if (pages == old)
		return 0;
	rc = drop_begun(f, key);
	if (rc != 0 || !damaged)
		return rc;
	f->checked = true;
	f->repair = false;
	return file_finish_drops(f, key, true);
}

static int grow(struct file *f, const struct file_key *key, uint64_t size)
{
	int rc = file_before_growth(f, key, round_up(size));

	if (rc == 0 && f->inlined && size > LAYOUT_INLINE_MAX)
		rc = file_flip(f, key);
	if (rc != 0)
		return rc;
	if (f->inlined)
		return file_put_inline(f, key, NULL, 0, 0, size);
	rc = file_cut_hint(f);
	if (rc == 0)
		f->size = size;
	return rc;
}

static int resize(struct file *f, const struct file_key *key, uint64_t size)
{
	if (size == f->size)
		return 0;
	if (size > f->size)
		return grow(f, key, size);
	if (!f->inlined)
		return shrink(f, key, size);
	return file_put_inline(f, key, NULL, 0, 0, size);
}

int file_truncate(struct file *f, const struct file_key *key, uint64_t size)
{
	int rc;

	if (f->params.readonly)
		return -EROFS;
	if (size > LAYOUT_SIZE_MAX)
		return -EFBIG;
	rc = file_lock(f, key);
	if (rc != 0)
		return rc;
	rc = resize(f, key, size);
	return file_end(f, key, rc);
}

/* Drops whole pages, at most PUNCH_GROUPS groups of them; *k moves on. */
static int punch_some(struct file *f, const struct file_key *key, uint64_t *k, uint64_t last)
{
	int rc = file_budget(f, key, FILE_MARGIN);

	for (unsigned groups = 0; rc == 0 && *k < last && groups < PUNCH_GROUPS; groups++) {
		struct file_node *n;
		uint32_t e, count;

		if (*k >= LAYOUT_ROOT_DATA && (*k - LAYOUT_ROOT_DATA) % LAYOUT_GROUP_FAN == 0)
			*k = file_skip_unbacked(f, *k);
		if (*k >= last)
			break;
		rc = file_parent(f, key, UNIT_DATA, *k, &n, &e);
		if (rc != 0)
			break;
		count = n->type == UNIT_ROOT ? LAYOUT_ROOT_DATA : n->count;
		for (; e < count && *k < last; e++, (*k)++)
			file_dropped(f, n, e);
	}
	return rc == 0 ? drop_begun(f, key) : rc;
}

static int punch_pages(struct file *f, const struct file_key *key, uint64_t k, uint64_t last)
{
	int rc = 0;

	while (rc == 0 && k < last) {
		rc = punch_some(f, key, &k, last);
		if (rc == 0 && k < last) {
			rc = file_finish_drops(f, key, true);
			if (rc == 0)
				rc = file_commit(f, key, true);
			file_trim(f);
		}
	}
	return rc;
}

/* Bytes [off, end) of the file become zeros, whole pages holes. */
static int punch(struct file *f, const struct file_key *key, uint64_t off, uint64_t end)
{
	uint64_t first = layout_data_pages(off), last, head, tail;
	int rc = 0;

	if (end > f->size)
		end = f->size;
	if (off >= end)
		return 0;
	if (f->inlined)
		return file_put_inline(f, key, NULL, end - off, off, f->size);
	if (end == f->size)
		rc = file_check_end(f, key);
	last = end == f->size ? layout_data_pages(end) : end / LAYOUT_PAGE;
	head = first * LAYOUT_PAGE < end ? first * LAYOUT_PAGE : end;
	tail = last * LAYOUT_PAGE > head ? last * LAYOUT_PAGE : head;
	if (rc == 0 && off < head)
		rc = file_put(f, key, NULL, head - off, off);
	if (rc == 0 && tail < end)
		rc = file_put(f, key, NULL, end - tail, tail);
	return rc == 0 ? punch_pages(f, key, first, last) : rc;
}

/* Space for bytes [off, end), nodes included. */
static int reserve(struct file *f, uint64_t off, uint64_t end)
{
	uint64_t first = layout_phys(UNIT_DATA, off / LAYOUT_PAGE);
	uint64_t last = layout_phys(UNIT_DATA, (end - 1) / LAYOUT_PAGE);

	if (f->inlined && end <= LAYOUT_INLINE_MAX)
		return 0;
	return file_io->allocate(
	    f->slot.fd, FALLOC_FL_KEEP_SIZE, first * LAYOUT_PAGE, (last - first + 1) * LAYOUT_PAGE);
}

static int allocate(struct file *f, const struct file_key *key, int mode, uint64_t off, uint64_t end)
{
	bool growing = !(mode & FALLOC_FL_KEEP_SIZE) && end > f->size;
	bool zeroing = (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0;
	int rc = 0;

	if (growing)
		rc = file_check_end(f, key);
	if (rc == 0)
		rc = zeroing ? punch(f, key, off, end) : reserve(f, off, end);
	return rc == 0 && growing ? grow(f, key, end) : rc;
}

int file_allocate(struct file *f, const struct file_key *key, int mode, uint64_t off, uint64_t len)
{
	int kind = mode & ~FALLOC_FL_KEEP_SIZE, rc;

	if (kind != 0 && kind != FALLOC_FL_ZERO_RANGE && mode != (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
		return -EOPNOTSUPP;
	if (f->params.readonly)
		return -EROFS;
	if (len == 0)
		return -EINVAL;
	if (off > LAYOUT_SIZE_MAX || len > LAYOUT_SIZE_MAX - off)
		return -EFBIG;
	rc = file_lock(f, key);
	if (rc != 0)
		return rc;
	rc = allocate(f, key, mode, off, off + len);
	return file_end(f, key, rc);
}
