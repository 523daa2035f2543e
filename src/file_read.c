/* file_read.c — reading and seeking: section 4.
 *
 * Hides how a read of many pages becomes one preadv over the physical range, nodes between included,
 * and how readers share the node cache: what a group's node says is copied under the mutex, the
 * pages are opened without it.
 *
 * The ciphertext goes where the plaintext will be, and is opened in place. A sealed page is meta 16 | ciphertext 4064 |
 * tag 16, so when page k lies 16 bytes in front of its place, its ciphertext is where its first 4064 bytes belong, and
 * its tag and the next page's meta lie where the last 32, its spill, will be. */
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

/* Data pages k0..k1 of one preadv. */
struct chunk {
	const struct request *r;
	uint64_t k0, k1;
	uint8_t meta[BLOCK_META]; /* of the next page to open */
	bool edges;               /* some of them are not wanted as a whole: */
	uint8_t edge[2][LAYOUT_PAGE];
};

#define SPLIT (LAYOUT_PAGE - BLOCK_META)
/* L2, L1 and group page may lie between two data pages. */
#define NODES_BETWEEN 3u
/* k0's meta, two edges, and a node and what follows it for every group begun. */
#define VECTOR (4 + 2 * (FILE_CHUNK / LAYOUT_GROUP_FAN + 3))

/* Where a page's plaintext goes. */
static uint8_t *place(struct chunk *c, uint64_t k)
{
	uint64_t at = k * LAYOUT_PAGE;

	if (at >= c->r->off && at + LAYOUT_PAGE <= c->r->end)
		return c->r->out + (at - c->r->off);
	c->edges = true;
	return c->edge[k == c->k0 ? 0 : 1];
}

static int add(struct iovec *v, int n, uint8_t *to, size_t len)
{
	if (n > 0 && (uint8_t *)v[n - 1].iov_base + v[n - 1].iov_len == to)
		v[n - 1].iov_len += len;
	else
		v[n++] = (struct iovec){ to, len };
	return n;
}

/* Every page 16 bytes in front of its place; nodes on the way are read, too, and not used. */
static int chunk_vector(struct chunk *c, struct iovec v[static VECTOR], uint8_t *sink)
{
	uint64_t next = layout_phys(UNIT_DATA, c->k0);
	uint8_t *meta = c->meta;
	int n = 0;

	for (uint64_t k = c->k0; k <= c->k1; k++) {
		uint64_t phys = layout_phys(UNIT_DATA, k);
		uint8_t *to = place(c, k);

		if (phys > next)
			n = add(v, n, sink, (phys - next) * LAYOUT_PAGE);
		n = add(v, n, meta, BLOCK_META);
		n = add(v, n, to, SPLIT);
		meta = to + SPLIT;
		next = phys + 1;
	}
	return n;
}

/* What the backing does not have is zeros. */
static void zero_rest(const struct iovec *v, int n, size_t got)
{
	for (int i = 0; i < n; i++) {
		size_t have = got < v[i].iov_len ? got : v[i].iov_len;

		memset((uint8_t *)v[i].iov_base + have, 0, v[i].iov_len - have);
		got -= have;
	}
}

static int chunk_load(struct file *f, struct chunk *c)
{
	uint64_t phys = layout_phys(UNIT_DATA, c->k0);
	struct iovec v[VECTOR] = { 0 }, left[VECTOR];
	uint8_t sink[NODES_BETWEEN * LAYOUT_PAGE] NOT_ZEROED;
	int n = chunk_vector(c, v, sink);
	ssize_t got = 0;

	memcpy(left, v, (size_t)n * sizeof(v[0]));
	if (phys * LAYOUT_PAGE < f->st_size)
		got = file_preadv(f, left, n, phys);
	if (got < 0)
		return (int)got;
	zero_rest(v, n, (size_t)got);
	return 0;
}

/* What is wanted of a page that was opened at an edge. */
static void copy_edge(const struct request *r, uint64_t k, const uint8_t *text)
{
	uint64_t at = k * LAYOUT_PAGE;
	uint64_t from = r->off > at ? r->off - at : 0;
	uint64_t to = r->end - at < LAYOUT_PAGE ? r->end - at : LAYOUT_PAGE;

	memcpy(r->out + (at + from - r->off), text + from, to - from);
}

/* Page i of the span, in its place. */
static int span_open(struct file *f, struct block_run *run, struct span *s, uint32_t i, struct chunk *c)
{
	uint64_t k = s->k + i;
	uint8_t *text = place(c, k), next[BLOCK_META];
	int rc = file_open_in_place(f, run, &s->view[i], k, c->meta, text, text + LAYOUT_BODY, &s->ver[i]);

	if (rc != 0)
		return rc;
	memcpy(next, text + SPLIT, sizeof(next));
	memcpy(c->meta, next, sizeof(next));
	memcpy(text + LAYOUT_BODY, s->spill[i], LAYOUT_SPILL);
	if (text == c->edge[0] || text == c->edge[1])
		copy_edge(c->r, k, text);
	return 0;
}

static int chunk_open(struct file *f, const struct file_key *key, struct chunk *c)
{
	struct block_run run;
	struct span s NOT_ZEROED;
	uint32_t most = 0;
	int rc = 0;

	block_begin(&run, key->block);
	for (s.k = c->k0; rc == 0 && s.k <= c->k1; s.k += s.n) {
		rc = span_fill(f, key, &s, c->k1);
		if (rc != 0)
			break;
		most = s.n > most ? s.n : most;
		for (uint32_t i = 0; rc == 0 && i < s.n; i++)
			rc = span_open(f, &run, &s, i, c);
		if (rc == 0)
			span_accept(f, &s);
	}
	block_end(&run);
	explicit_bzero(s.spill, (size_t)most * LAYOUT_SPILL);
	return rc;
}

static int read_chunk(struct file *f, const struct file_key *key, const struct request *r)
{
	struct chunk c NOT_ZEROED;
	int rc;

	c.r = r;
	c.k0 = r->off / LAYOUT_PAGE;
	c.k1 = (r->end - 1) / LAYOUT_PAGE;
	c.edges = false;
	rc = chunk_load(f, &c);
	if (rc == 0)
		rc = chunk_open(f, key, &c);
	if (c.edges)
		explicit_bzero(c.edge, sizeof(c.edge));
	return rc;
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
		int rc = file_hold(f);

		if (rc < 0)
			return rc;
		(void)pthread_rwlock_rdlock(&f->content);
		if (f->loaded)
			return 0;
		(void)pthread_rwlock_unlock(&f->content);
		file_release(f);
		rc = file_lock_reading(f, key);
		if (rc != 0)
			return rc;
		file_unlock(f);
	}
}

void file_unlock_shared(struct file *f)
{
	(void)pthread_rwlock_unlock(&f->content);
	file_release(f);
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
