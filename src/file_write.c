/* file_write.c — writing: section 5.2, inline files and their flip to pages: 5.4.
 *
 * Hides which parts of a write need the old bytes, and how pages are gathered: they are sealed
 * straight from the caller's buffer into a buffer of this thread, and every physically contiguous
 * run goes out in one call. What memory believes (versions, spills, size) changes only after the
 * run was written. */
#include <errno.h>

#include "bytes.h"
#include "file_internal.h"

#define NO_ENTRY UINT32_MAX

/* A sealed page waiting in a run; without entry: the space of a node. */
struct item {
	struct file_node *node;
	uint32_t e;
	uint64_t ver;
	const uint8_t *spill;
	uint64_t end; /* how far into the file its bytes reach */
};

/* What a write does in one round. */
struct round {
	struct file *f;
	const struct file_key *key;
	const uint8_t *src; /* NULL: zeros */
	uint64_t off, end;
	struct block_run run;
	uint8_t *buf;
	uint64_t phys; /* of the first page in buf */
	uint32_t n;
	struct item item[FILE_BUFFER];
	unsigned edges;
	uint8_t edge[2][LAYOUT_SPILL]; /* spills of pages written in part: the first and the last at most */
};

static void apply(struct file *f, const struct item *it)
{
	uint8_t *spill;

	if (it->e == NO_ENTRY)
		return;
	spill = file_spill(it->node, it->e);
	if (memcmp(spill, it->spill, LAYOUT_SPILL) != 0) {
		memcpy(spill, it->spill, LAYOUT_SPILL);
		file_mark_dirty(f, it->node);
	}
	file_issued(f, it->node, it->e, it->ver);
	if (it->end > f->size)
		f->size = it->end;
}

/* A write failed, but may have begun well: memory must not deny what is there now. */
static void run_salvage(struct round *r)
{
	uint8_t page[LAYOUT_PAGE];

	for (uint32_t i = 0; i < r->n; i++) {
		const uint8_t *sealed = r->buf + (size_t)i * LAYOUT_PAGE;

		if (r->item[i].e == NO_ENTRY)
			continue;
		if (file_pread(r->f, page, LAYOUT_PAGE, r->phys + i) != (ssize_t)LAYOUT_PAGE ||
		    memcmp(page, sealed, LAYOUT_PAGE) != 0)
			break;
		apply(r->f, &r->item[i]);
	}
}

static int run_write(struct round *r)
{
	int rc;

	if (r->n == 0)
		return 0;
	rc = file_pwrite(r->f, r->buf, r->n, r->phys);
	if (rc != 0) {
		run_salvage(r);
		return rc;
	}
	for (uint32_t i = 0; i < r->n; i++)
		apply(r->f, &r->item[i]);
	r->n = 0;
	return 0;
}

/* Room for the page at phys in the run; a run that does not reach it is written first. */
static int run_add(struct round *r, uint64_t phys, const struct item *it, uint8_t **page)
{
	if (r->n && (r->phys + r->n != phys || r->n == FILE_BUFFER)) {
		int rc = run_write(r);

		if (rc != 0)
			return rc;
	}
	if (r->n == 0)
		r->phys = phys;
	*page = r->buf + (size_t)r->n * LAYOUT_PAGE;
	r->item[r->n++] = *it;
	return 0;
}

/* Space in the backing for a node and those above it, so that a flush cannot meet ENOSPC. */
static int secure(struct file *f, const struct file_key *key, struct file_node *n)
{
	int rc = 0;

	for (; rc == 0 && !n->secured; n = n->up) {
		rc = file_secure_backing(f, layout_phys(n->type, n->index));
		if (rc == -EOPNOTSUPP)
			rc = file_write_node(f, key, n);
		n->secured = rc == 0;
	}
	return rc;
}

/* The same before a data page at phys: a group page right in front of it that never existed is
 * written as zeros, which means absent, in the same run. One that exists but counts as dropped must
 * not be touched before the drop is durable. */
static int secure_in_run(struct round *r, struct file_node *n, uint64_t phys)
{
	bool dropped = n->type == UNIT_GROUP && (n->up->ent[n->slot] & ENT_GONE);
	struct item it = { .node = n, .e = NO_ENTRY };
	uint8_t *page;
	int rc;

	if (n->secured)
		return 0;
	if (dropped || layout_phys(n->type, n->index) + 1 != phys)
		return secure(r->f, r->key, n);
	rc = secure(r->f, r->key, n->up);
	if (rc == 0)
		rc = run_add(r, phys - 1, &it, &page);
	if (rc != 0)
		return rc;
	memset(page, 0, LAYOUT_PAGE);
	n->secured = true; /* as soon as the run is written */
	return 0;
}

/* The run was not written, and what was may lie beyond size. */
static void round_abandon(struct round *r)
{
	r->f->checked = false;
	for (uint32_t i = 0; i < r->n; i++)
		if (r->item[i].e == NO_ENTRY)
			r->item[i].node->secured = false;
}

static int seal_page(struct round *r, struct item *it, uint64_t k, const uint8_t *text)
{
	uint64_t phys = layout_phys(UNIT_DATA, k);
	uint8_t *page;
	int rc = secure_in_run(r, it->node, phys);

	if (rc != 0)
		return rc;
	it->ver = file_tick(r->f);
	rc = run_add(r, phys, it, &page);
	if (rc == 0)
		rc = block_seal(&r->run, UNIT_DATA, k, it->ver, text, page);
	return rc;
}

/* The page as it is, as far as it counts: bytes [from, to) will be replaced. */
static int old_page(struct round *r, const struct item *it, uint64_t k, uint64_t from, uint64_t to,
    uint8_t text[static LAYOUT_PAGE], bool *present)
{
	uint64_t at = k * LAYOUT_PAGE, size = r->f->size;
	uint64_t valid = size <= at ? 0 : size - at < LAYOUT_PAGE ? size - at : LAYOUT_PAGE;
	uint64_t body = valid < LAYOUT_BODY ? valid : LAYOUT_BODY;
	int rc = 0;

	*present = false;
	if (valid && (!r->src || from > 0 || to < body)) {
		rc = file_load_page(r->f, r->key, it->node, it->e, k, text, present);
	} else {
		memset(text, 0, LAYOUT_BODY);
		memcpy(text + LAYOUT_BODY, file_spill(it->node, it->e), LAYOUT_SPILL);
	}
	if (rc == 0)
		memset(text + valid, 0, LAYOUT_PAGE - valid);
	return rc;
}

/* A write within the last 32 bytes of a page: the spill, if there is a page it can belong to. */
static int put_spill(struct round *r, const struct item *it, uint64_t from, uint64_t to, const uint8_t *src)
{
	uint8_t *spill = file_spill(it->node, it->e) + (from - LAYOUT_BODY);
	int rc = run_write(r);

	if (rc != 0)
		return rc;
	if (src)
		memcpy(spill, src, to - from);
	else
		memset(spill, 0, to - from);
	file_mark_dirty(r->f, it->node);
	if (it->end > r->f->size)
		r->f->size = it->end;
	return 0;
}

static int put_part(struct round *r, struct item *it, uint64_t k, uint64_t from, uint64_t to)
{
	const uint8_t *src = r->src ? r->src + (k * LAYOUT_PAGE + from - r->off) : NULL;
	uint8_t text[LAYOUT_PAGE];
	bool present = false;
	int rc = 0;
	WIPE_SCOPE(text);

	if (from >= LAYOUT_BODY)
		rc = file_page_present(r->f, it->node, it->e, k, &present);
	if (rc != 0)
		return rc;
	if (present)
		return put_spill(r, it, from, to, src);
	rc = old_page(r, it, k, from, to, text, &present);
	if (rc != 0)
		return rc;
	if (!src && !present) { /* a hole already, but for what a crash may have left in the spill */
		from = from > LAYOUT_BODY ? from : LAYOUT_BODY;
		return to > from && !bytes_zero(text + from, to - from) ? put_spill(r, it, from, to, NULL) : 0;
	}
	if (src)
		memcpy(text + from, src, to - from);
	else
		memset(text + from, 0, to - from);
	it->spill = memcpy(r->edge[r->edges++], text + LAYOUT_BODY, LAYOUT_SPILL);
	return seal_page(r, it, k, text);
}

static int put_page(struct round *r, uint64_t k)
{
	uint64_t at = k * LAYOUT_PAGE;
	uint64_t from = r->off > at ? r->off - at : 0;
	uint64_t to = r->end - at < LAYOUT_PAGE ? r->end - at : LAYOUT_PAGE;
	struct item it = { .end = at + to };
	const uint8_t *text;
	int rc = file_parent(r->f, r->key, UNIT_DATA, k, &it.node, &it.e);

	if (rc != 0)
		return rc;
	if (!r->src || from > 0 || to < LAYOUT_PAGE)
		return put_part(r, &it, k, from, to);
	text = r->src + (at - r->off);
	it.spill = text + LAYOUT_BODY;
	return seal_page(r, &it, k, text);
}

/* At most FILE_CHUNK pages. */
static int put_round(struct file *f, const struct file_key *key, const uint8_t *src, uint64_t off, uint64_t end)
{
	uint64_t first = off / LAYOUT_PAGE, last = (end - 1) / LAYOUT_PAGE;
	struct round r;
	int rc = file_budget(f, key, last - first + 1 + FILE_MARGIN);

	if (rc != 0)
		return rc;
	r.f = f;
	r.key = key;
	r.src = src;
	r.off = off;
	r.end = end;
	r.n = r.edges = 0;
	r.buf = file_buffer();
	if (!r.buf)
		return -ENOMEM;
	block_begin(&r.run, key->block);
	for (uint64_t k = first; rc == 0 && k <= last; k++)
		rc = put_page(&r, k);
	if (rc == 0)
		rc = run_write(&r);
	if (rc != 0)
		round_abandon(&r);
	block_end(&r.run);
	explicit_bzero(r.edge, sizeof(r.edge));
	return rc;
}

/* Too many nodes with work left: does the work, so that they may leave memory. */
static int relieve(struct file *f, const struct file_key *key)
{
	int rc;

	if (f->nbusy <= FILE_BUSY_MAX)
		return 0;
	rc = file_commit(f, key, true);
	if (rc == 0 && !f->fresh)
		rc = file_flush_now(f, key);
	if (rc == 0 && !f->fresh)
		rc = file_commit(f, key, true);
	file_trim(f);
	return rc;
}

int file_put(struct file *f, const struct file_key *key, const uint8_t *buf, size_t n, uint64_t off)
{
	uint64_t end = off + n;
	int rc = file_cut_hint(f);

	while (rc == 0 && off < end) {
		uint64_t stop = (off / LAYOUT_PAGE + FILE_CHUNK) * LAYOUT_PAGE;

		if (stop > end)
			stop = end;
		rc = put_round(f, key, buf, off, stop);
		if (rc == 0)
			rc = relieve(f, key);
		if (buf)
			buf += stop - off;
		off = stop;
	}
	return rc;
}

int file_cut_hint(struct file *f)
{
	uint64_t rest = f->st_size % LAYOUT_PAGE;

	f->want_hint = false;
	return rest ? file_set_length(f, f->st_size - rest) : 0;
}

int file_put_inline(
    struct file *f, const struct file_key *key, const uint8_t *buf, size_t n, uint64_t off, uint64_t size)
{
	uint8_t *text = f->root->text, old[BLOCK_ROOT_TEXT];
	uint64_t old_size = f->size;
	int rc;
	WIPE_SCOPE(old);

	memcpy(old, text, sizeof(old));
	if (buf)
		memcpy(text + off, buf, n);
	else
		memset(text + off, 0, n);
	memset(text + size, 0, BLOCK_ROOT_TEXT - size);
	f->size = size;
	if (f->csize > size)
		f->csize = size;
	rc = file_write_page0(f, key);
	if (rc != 0) {
		memcpy(text, old, sizeof(old));
		f->size = old_size;
	}
	return rc;
}

/* Data page 0 with what was inline; not fresh: durable before page 0 says so. */
static int flip_data(struct file *f, const struct file_key *key, const uint8_t old[static BLOCK_ROOT_TEXT])
{
	uint8_t text[LAYOUT_BODY], page[LAYOUT_PAGE];
	uint64_t ver = file_tick(f);
	struct block_run run;
	int rc;
	WIPE_SCOPE(text);

	memset(text, 0, sizeof(text));
	memcpy(text, old, BLOCK_ROOT_TEXT);
	block_begin(&run, key->block);
	rc = block_seal(&run, UNIT_DATA, 0, ver, text, page);
	block_end(&run);
	if (rc == 0)
		rc = file_pwrite(f, page, 1, layout_phys(UNIT_DATA, 0));
	if (rc == 0 && !f->fresh) {
		rc = f->failed ? f->failed : file_sync(f);
		f->failed = rc;
	}
	if (rc != 0)
		return rc;
	file_set_rec(f->root, 0, ver);
	f->root->ent[0] = ver;
	return f->fresh ? 0 : file_write_page0(f, key);
}

int file_flip(struct file *f, const struct file_key *key)
{
	uint8_t old[BLOCK_ROOT_TEXT];
	uint64_t ver;
	int rc = file_check_end(f, key);
	WIPE_SCOPE(old);

	if (rc == 0)
		rc = file_budget(f, key, FILE_MARGIN);
	if (rc == 0)
		rc = file_cut_hint(f);
	if (rc != 0)
		return rc;
	memcpy(old, f->root->text, sizeof(old));
	memset(f->root->text, 0, BLOCK_ROOT_TEXT);
	ver = file_tick(f);
	for (uint32_t e = 0; e < f->root->count; e++)
		file_set_rec(f->root, e, REC_H | ver);
	memset(f->root->ent, 0, f->root->count * sizeof(f->root->ent[0]));
	f->inlined = false;
	f->root->dirty = true;
	if (f->size > 0)
		rc = flip_data(f, key, old);
	if (rc == 0)
		return 0;
	memcpy(f->root->text, old, sizeof(old));
	f->root->ent[0] = 0;
	f->inlined = true;
	f->root->dirty = false;
	f->checked = false; /* data page 0 may exist */
	return rc;
}

static int write_bytes(struct file *f, const struct file_key *key, const void *buf, size_t n, uint64_t off)
{
	uint64_t size;
	int rc = 0;

	if (off > LAYOUT_SIZE_MAX || n > LAYOUT_SIZE_MAX - off)
		return -EFBIG;
	size = off + n > f->size ? off + n : f->size;
	if (size > f->size)
		rc = file_before_growth(f, key, off);
	if (rc == 0 && f->inlined && size > LAYOUT_INLINE_MAX)
		rc = file_flip(f, key);
	if (rc == 0)
		rc = f->inlined ? file_put_inline(f, key, buf, n, off, size) : file_put(f, key, buf, n, off);
	return rc;
}

/* off NULL: where the file ends. */
static int write_somewhere(struct file *f, const struct file_key *key, const void *buf, size_t n, const uint64_t *off)
{
	int rc;

	if (f->params.readonly)
		return -EROFS;
	if (n == 0)
		return 0;
	rc = file_lock(f, key);
	if (rc != 0)
		return rc;
	rc = write_bytes(f, key, buf, n, off ? *off : f->size);
	return file_end(f, key, rc);
}

int file_write(struct file *f, const struct file_key *key, const void *buf, size_t n, uint64_t off)
{
	return write_somewhere(f, key, buf, n, &off);
}

int file_append(struct file *f, const struct file_key *key, const void *buf, size_t n)
{
	return write_somewhere(f, key, buf, n, NULL);
}
