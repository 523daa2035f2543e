/* file_read.c — reading and seeking: section 4.
 *
 * Hides how a read of many pages becomes one pread over the physical range, nodes between included,
 * and how readers share the node cache: what a group's node says is copied under the mutex, the
 * pages are opened without it. */
#include <errno.h>

#include "bytes.h"
#include "file_internal.h"

/* A read in progress: bytes [off, end) of the file go to out. */
struct request {
	uint8_t *out;
	uint64_t off, end;
};

/* Consecutive data pages of one node. */
struct span {
	uint64_t k;
	uint32_t n;
	enum unit_type type; /* the node, */
	uint64_t index;
	uint32_t e; /* its entry for k */
	struct file_view view[LAYOUT_GROUP_FAN];
	uint64_t ver[LAYOUT_GROUP_FAN];
	uint8_t spill[LAYOUT_GROUP_FAN][LAYOUT_SPILL];
};

/* Copies what the node says about pages k.. of a span, at most up to page `last`. */
static int span_fill(struct file *f, const struct file_key *key, struct span *s, uint64_t last)
{
	struct file_node *node;
	int rc;
	LOCK_SCOPE(&f->cache);

	rc = file_parent(f, key, UNIT_DATA, s->k, &node, &s->e);
	if (rc != 0)
		return rc;
	s->type = node->type;
	s->index = node->index;
	s->n = (node->type == UNIT_ROOT ? LAYOUT_ROOT_DATA : LAYOUT_GROUP_FAN) - s->e;
	if (s->n > last - s->k + 1)
		s->n = (uint32_t)(last - s->k + 1);
	for (uint32_t i = 0; i < s->n; i++) {
		s->view[i] = file_view_of(f, node, s->e + i);
		memcpy(s->spill[i], file_spill(node, s->e + i), LAYOUT_SPILL);
	}
	file_trim(f);
	return 0;
}

/* Remembers versions not known before, unless the node has left memory meanwhile. */
static void span_accept(struct file *f, const struct span *s)
{
	struct file_node *node;
	uint32_t i = 0;

	while (i < s->n && (s->ver[i] == 0 || s->ver[i] == ENT_VER(s->view[i].ent)))
		i++;
	if (i == s->n)
		return;
	LOCK_SCOPE(&f->cache);
	node = file_node_find(f, s->type, s->index);
	for (; node && i < s->n; i++)
		if (s->ver[i] > ENT_VER(node->ent[s->e + i]))
			file_accepted(f, node, s->e + i, s->ver[i]);
}

/* One page of the span into the request's buffer; straight, when all of it is wanted. */
static int span_open(
    struct file *f, struct block_run *run, struct span *s, uint32_t i, const uint8_t *page, const struct request *r)
{
	uint64_t k = s->k + i, at = k * LAYOUT_PAGE;
	uint64_t from = r->off > at ? r->off - at : 0;
	uint64_t to = r->end - at < LAYOUT_PAGE ? r->end - at : LAYOUT_PAGE;
	uint8_t *out = r->out + (at + from - r->off);
	uint8_t text[LAYOUT_BODY];
	int rc;

	if (from == 0 && to >= LAYOUT_BODY) {
		rc = file_open_unit(f, run, &s->view[i], UNIT_DATA, k, page, out, &s->ver[i]);
	} else {
		rc = file_open_unit(f, run, &s->view[i], UNIT_DATA, k, page, text, &s->ver[i]);
		if (rc == 0 && from < LAYOUT_BODY)
			memcpy(out, text + from, (to < LAYOUT_BODY ? to : LAYOUT_BODY) - from);
		explicit_bzero(text, sizeof(text));
	}
	if (rc == 0 && to > LAYOUT_BODY) {
		uint64_t first = from > LAYOUT_BODY ? from : LAYOUT_BODY;

		memcpy(out + (first - from), s->spill[i] + (first - LAYOUT_BODY), to - first);
	}
	return rc;
}

/* Pages k0..k1 from their physical range in buf. */
static int open_pages(
    struct file *f, const struct file_key *key, const struct request *r, uint64_t k0, uint64_t k1, const uint8_t *buf)
{
	uint64_t phys0 = layout_phys(UNIT_DATA, k0);
	struct block_run run;
	struct span s;
	int rc = 0;
	WIPE_SCOPE(s);

	block_begin(&run, key->block);
	for (s.k = k0; rc == 0 && s.k <= k1; s.k += s.n) {
		const uint8_t *page;

		rc = span_fill(f, key, &s, k1);
		if (rc != 0)
			break;
		page = buf + (layout_phys(UNIT_DATA, s.k) - phys0) * LAYOUT_PAGE;
		for (uint32_t i = 0; rc == 0 && i < s.n; i++)
			rc = span_open(f, &run, &s, i, page + (size_t)i * LAYOUT_PAGE, r);
		if (rc == 0)
			span_accept(f, &s);
	}
	block_end(&run);
	return rc;
}

static int read_chunk(struct file *f, const struct file_key *key, const struct request *r)
{
	uint64_t k0 = r->off / LAYOUT_PAGE, k1 = (r->end - 1) / LAYOUT_PAGE;
	uint64_t phys0 = layout_phys(UNIT_DATA, k0), pages = layout_phys(UNIT_DATA, k1) - phys0 + 1;
	uint8_t *buf = file_buffer();
	ssize_t got = 0;

	if (!buf)
		return -ENOMEM;
	if (phys0 * LAYOUT_PAGE < f->st_size)
		got = file_pread(f, buf, pages * LAYOUT_PAGE, phys0);
	if (got < 0)
		return (int)got;
	memset(buf + got, 0, pages * LAYOUT_PAGE - (size_t)got);
	return open_pages(f, key, r, k0, k1, buf);
}

static int read_pages(struct file *f, const struct file_key *key, const struct request *r)
{
	struct request part = *r;
	int rc = 0;

	while (rc == 0 && part.off < r->end) {
		uint64_t stop = (part.off / LAYOUT_PAGE + FILE_CHUNK) * LAYOUT_PAGE;

		part.end = stop < r->end ? stop : r->end;
		rc = read_chunk(f, key, &part);
		part.out += part.end - part.off;
		part.off = part.end;
	}
	return rc;
}

int file_lock_shared(struct file *f, const struct file_key *key)
{
	for (;;) {
		int rc;

		(void)pthread_rwlock_rdlock(&f->content);
		if (f->loaded)
			return 0;
		(void)pthread_rwlock_unlock(&f->content);
		rc = file_lock_reading(f, key);
		if (rc != 0)
			return rc;
		file_unlock(f);
	}
}

void file_unlock_shared(struct file *f)
{
	(void)pthread_rwlock_unlock(&f->content);
}

/* At most n bytes into r, whose end moves. */
static int read_bytes(struct file *f, const struct file_key *key, struct request *r, size_t n)
{
	r->end = r->off;
	if (r->off < f->size)
		r->end = n < f->size - r->off ? r->off + n : f->size;
	if (!f->inlined)
		return read_pages(f, key, r);
	memcpy(r->out, f->root->text + (r->end > r->off ? r->off : 0), r->end - r->off);
	return 0;
}

/* What does not fit together is read again while no other host may write. */
static int read_alone(struct file *f, const struct file_key *key, struct request *r, size_t n)
{
	int rc = file_lock_reading(f, key);

	if (rc != 0)
		return rc;
	rc = read_bytes(f, key, r, n);
	file_unlock(f);
	return rc;
}

ssize_t file_read(struct file *f, const struct file_key *key, void *buf, size_t n, uint64_t off)
{
	struct request r = { buf, off, off };
	int rc = file_lock_shared(f, key);

	if (rc == 0) {
		rc = read_bytes(f, key, &r, n);
		if (rc == 0 && f->params.shared)
			rc = file_still_current(f);
		file_unlock_shared(f);
	}
	if (rc != 0 && f->params.shared)
		rc = read_alone(f, key, &r, n);
	if (rc != 0) {
		explicit_bzero(buf, n);
		return rc;
	}
	return (ssize_t)(r.end - off);
}

uint64_t file_skip_unbacked(struct file *f, uint64_t k)
{
	uint64_t phys = layout_phys(UNIT_DATA, k), next;
	enum unit_type type;
	uint64_t index;

	/* the spill of k lies in its group page, which may exist without k */
	if (k >= LAYOUT_ROOT_DATA && (k - LAYOUT_ROOT_DATA) % LAYOUT_GROUP_FAN == 0)
		phys--;
	next = file_next_backed(f, phys);
	if (next <= phys)
		return k;
	if (next == UINT64_MAX || !layout_unit_at(next, &type, &index))
		return UINT64_MAX;
	return file_first_page(type, index) > k ? file_first_page(type, index) : k;
}

static int page_has_data(struct file *f, const struct file_key *key, uint64_t k, bool *data)
{
	struct file_node *node;
	uint32_t e;
	int rc = file_parent(f, key, UNIT_DATA, k, &node, &e);

	if (rc == 0)
		rc = file_page_present(f, node, e, k, data);
	if (rc == 0 && !bytes_zero(file_spill(node, e), LAYOUT_SPILL))
		*data = true;
	return rc;
}

/* First page from k on, below `pages`, that has data or has not. */
static int seek_page(struct file *f, const struct file_key *key, uint64_t k, uint64_t pages, bool want, uint64_t *found)
{
	for (; k < pages; k++) {
		uint64_t next = k;
		bool data = false;
		int rc;

		if (k < LAYOUT_ROOT_DATA || (k - LAYOUT_ROOT_DATA) % LAYOUT_GROUP_FAN == 0) {
			file_trim(f);
			next = file_skip_unbacked(f, k);
		}
		if (next > k && !want)
			break;
		if (next >= pages) {
			k = pages;
			break;
		}
		k = next;
		rc = page_has_data(f, key, k, &data);
		if (rc != 0)
			return rc;
		if (data == want)
			break;
	}
	*found = k;
	return 0;
}

int64_t file_seek(struct file *f, const struct file_key *key, uint64_t off, int whence)
{
	uint64_t pages, k = 0;
	int64_t at = -ENXIO;
	int rc;

	if (whence != SEEK_DATA && whence != SEEK_HOLE)
		return -EINVAL;
	rc = file_lock_reading(f, key);
	if (rc != 0)
		return rc;
	pages = layout_data_pages(f->size);
	if (off >= f->size) {
		rc = -ENXIO;
	} else if (f->inlined) {
		at = (int64_t)(whence == SEEK_DATA ? off : f->size);
	} else {
		rc = seek_page(f, key, off / LAYOUT_PAGE, pages, whence == SEEK_DATA, &k);
		if (rc == 0 && k < pages)
			at = (int64_t)(k * LAYOUT_PAGE > off ? k * LAYOUT_PAGE : off);
		else if (rc == 0 && whence == SEEK_HOLE)
			at = (int64_t)f->size;
	}
	file_unlock(f);
	return rc != 0 ? rc : at;
}
