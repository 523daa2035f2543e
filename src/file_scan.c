/* file_scan.c — every unit of a file in turn: what a check authenticates, and what a repair goes by.
 *
 * Hides the walk down the tree. Nodes and pages are judged by the rules of reading (file_tree.c, file_page.c); here is
 * only what to do when one fails, and how what cannot exist is passed over: where the backing has a hole, a subtree is
 * answered for by one record.
 *
 * A node that was made anew says nothing of what is below it. What is found there is taken as it is, and recorded once
 * it is durable; what is not there is in doubt, and reported as such. */
#include <errno.h>

#include "bytes.h"
#include "file_internal.h"

/* Data pages, and physical pages, of a subtree. */
static uint64_t pages_below(enum unit_type type)
{
	uint64_t group = LAYOUT_GROUP_FAN, l1 = group * LAYOUT_NODE_FAN;

	return type == UNIT_DATA ? 1 : type == UNIT_GROUP ? group : type == UNIT_L1 ? l1 : l1 * LAYOUT_NODE_FAN;
}

static uint64_t span_of(enum unit_type type)
{
	uint64_t group = 1 + LAYOUT_GROUP_FAN, l1 = 1 + group * LAYOUT_NODE_FAN;

	return type == UNIT_DATA ? 1 : type == UNIT_GROUP ? group : type == UNIT_L1 ? l1 : 1 + l1 * LAYOUT_NODE_FAN;
}

static bool all_hole(struct file_scan *s, uint64_t phys, uint64_t span)
{
	if (phys < s->hole || phys >= s->backed) {
		s->hole = phys;
		s->backed = phys * LAYOUT_PAGE < s->f->st_size ? file_next_backed(s->f, phys) : UINT64_MAX;
	}
	return s->backed >= phys + span;
}

/* ---- what is reported ---- */

static void report_pending(struct file_scan *s)
{
	if (s->pending.len)
		s->report(s->arg, &s->pending);
	s->pending.len = 0;
}

/* Bytes [off, end) for the sake of a unit; what continues the last report becomes part of it. */
static void report(
    struct file_scan *s, enum file_fault_kind kind, enum unit_type type, uint64_t index, uint64_t off, uint64_t end)
{
	struct file_fault *p = &s->pending;

	if (end > s->f->size)
		end = s->f->size;
	if (off >= end)
		return;
	if (p->len && kind == FILE_DOUBTED && p->kind == kind && p->off + p->len == off) {
		p->len += end - off;
		return;
	}
	report_pending(s);
	*p = (struct file_fault){ kind, type, index, s->reason, off, end - off };
}

static void report_below(struct file_scan *s, enum file_fault_kind kind, enum unit_type type, uint64_t index)
{
	uint64_t first = file_first_page(type, index), end = first + pages_below(type);

	if (first < s->from)
		first = s->from;
	if (end > s->to)
		end = s->to;
	report(s, kind, type, index, first * LAYOUT_PAGE, end * LAYOUT_PAGE);
}

static void doubt_below(struct file_scan *s, enum unit_type type, uint64_t index)
{
	s->reason = "it is absent, and what records it is lost";
	report_below(s, FILE_DOUBTED, type, index);
}

/* ---- data pages ---- */

/* Consecutive data pages of one node. */
struct pages {
	struct file_node *node;
	uint32_t e, n;
	uint64_t k;
	bool doubt;
	const char *fault[LAYOUT_GROUP_FAN]; /* NULL: acceptable */
	uint64_t ver[LAYOUT_GROUP_FAN];
};

static int read_pages(struct file_scan *s, const struct pages *p, const uint8_t **out)
{
	uint64_t phys = layout_phys(UNIT_DATA, p->k);
	uint8_t *buf = file_buffer();
	ssize_t got = 0;

	if (!buf)
		return -ENOMEM;
	*out = buf;
	if (!all_hole(s, phys, p->n))
		got = file_pread(s->f, buf, (size_t)p->n * LAYOUT_PAGE, phys);
	if (got < 0)
		return (int)got;
	memset(buf + got, 0, (size_t)p->n * LAYOUT_PAGE - (size_t)got);
	return 0;
}

/* The backing cannot read one of them: one at a time tells which. */
static void read_singly(struct file_scan *s, struct pages *p, const uint8_t *buf)
{
	uint8_t *page = file_buffer(); /* the same */

	(void)buf;
	for (uint32_t i = 0; i < p->n; i++) {
		uint8_t *at = page + (size_t)i * LAYOUT_PAGE;
		ssize_t got = file_pread(s->f, at, LAYOUT_PAGE, layout_phys(UNIT_DATA, p->k + i));

		if (got < 0)
			p->fault[i] = "the backing cannot read it";
		else
			memset(at + got, 0, LAYOUT_PAGE - (size_t)got);
	}
}

static void open_pages(struct file_scan *s, struct pages *p, const uint8_t *buf)
{
	uint8_t text[LAYOUT_BODY];
	struct block_run run;
	WIPE_SCOPE(text);

	block_begin(&run, s->key->block);
	for (uint32_t i = 0; i < p->n; i++) {
		struct file_view view = file_view_of(s->f, p->node, p->e + i);

		if (p->fault[i])
			continue;
		s->reason = NULL;
		if (file_open_unit(s->f, &run, &view, UNIT_DATA, p->k + i, buf + (size_t)i * LAYOUT_PAGE, text,
		        &p->ver[i]) != 0)
			p->fault[i] = s->reason ? s->reason : "the cipher failed";
		else if (p->ver[i])
			s->bytes += LAYOUT_PAGE;
	}
	block_end(&run);
}

/* What was found below a node made anew: to be recorded once durable. Its spill was in that node. */
static void take_page(struct file_scan *s, struct pages *p, uint32_t i)
{
	uint64_t at = (p->k + i) * LAYOUT_PAGE;
	enum unit_type type = p->node->type;

	file_issued(s->f, p->node, p->e + i, p->ver[i]);
	file_mark_dirty(s->f, p->node);
	s->reason = "it was lost, but not the rest of the page";
	report(s, FILE_LOST, type, type == UNIT_ROOT ? 0 : p->node->index, at + LAYOUT_BODY, at + LAYOUT_PAGE);
}

/* A page that fails becomes zeros. */
static int zero_page(struct file_scan *s, uint64_t k)
{
	static const uint8_t zero[LAYOUT_PAGE];
	uint64_t at = k * LAYOUT_PAGE, left = s->f->size - at;

	s->hole = s->backed = 0;
	return file_put(s->f, s->key, zero, left < LAYOUT_PAGE ? (size_t)left : LAYOUT_PAGE, at);
}

static int judge_page(struct file_scan *s, struct pages *p, uint32_t i)
{
	uint64_t k = p->k + i, at = k * LAYOUT_PAGE;

	if (p->fault[i]) {
		if (s->mend && !s->may(s->arg, UNIT_DATA, k))
			return -EIO;
		s->met = s->mend;
		s->reason = p->fault[i];
		report(s, s->mend ? FILE_LOST : FILE_UNREADABLE, UNIT_DATA, k, at, at + LAYOUT_PAGE);
		return s->write ? zero_page(s, k) : 0;
	}
	if (p->doubt && p->ver[i])
		take_page(s, p, i);
	else if (p->doubt)
		doubt_below(s, UNIT_DATA, k);
	else if (p->ver[i])
		file_accepted(s->f, p->node, p->e + i, p->ver[i]);
	return 0;
}

/* Those of one node: all its data pages, or the root's four. */
static int scan_pages(struct file_scan *s, struct file_node *n, uint32_t count, bool doubt)
{
	struct pages p = { .node = n, .doubt = doubt };
	const uint8_t *buf = NULL;
	enum unit_type type;
	uint64_t first;
	int rc;

	file_child(n, 0, &type, &first);
	p.k = first < s->from ? s->from : first;
	p.e = (uint32_t)(p.k - first);
	if (p.k >= s->to || p.e >= count)
		return 0;
	p.n = s->to - p.k < count - p.e ? (uint32_t)(s->to - p.k) : count - p.e;
	rc = read_pages(s, &p, &buf);
	if (rc == -EIO)
		read_singly(s, &p, buf);
	else if (rc != 0)
		return rc;
	open_pages(s, &p, buf);
	rc = 0;
	/* those to be replaced last: writing takes the buffer, and may let go of the node */
	for (uint32_t i = 0; i < p.n && rc == 0; i++)
		rc = judge_page(s, &p, i);
	return rc;
}

/* ---- nodes ---- */

/* The node, or made anew; *have: there is one. */
static int get_node(struct file_scan *s, enum unit_type type, uint64_t index, struct file_node **n, bool *anew)
{
	int rc;

	s->reason = NULL;
	*anew = false;
	rc = file_node_get(s->f, s->key, type, index, n);
	if (rc != -EIO)
		return rc;
	if (!s->reason)
		s->reason = "the backing cannot read it";
	if (!s->mend) {
		report_below(s, FILE_UNREADABLE, type, index);
		return -EIO;
	}
	if (!s->may(s->arg, type, index))
		return -EIO;
	*anew = s->met = true;
	return file_node_anew(s->f, s->key, type, index, n);
}

/* Work left in memory is bounded, as a writer's is. */
static int relieve(struct file_scan *s)
{
	int rc;

	if (!s->write || s->f->nbusy <= FILE_BUSY_MAX / 2) {
		file_trim(s->f);
		return 0;
	}
	rc = file_commit(s->f, s->key, true);
	if (rc == 0)
		rc = file_flush_now(s->f, s->key);
	if (rc == 0)
		rc = file_commit(s->f, s->key, true);
	file_trim(s->f);
	return rc;
}

static int scan_below(struct file_scan *s, enum unit_type type, uint64_t index, bool doubt);

/* One entry of a node that is no data page. */
static int scan_child(struct file_scan *s, struct file_node *n, uint32_t e, bool doubt) // NOLINT(misc-no-recursion)
{
	enum unit_type type;
	uint64_t index, first;

	file_child(n, e, &type, &index);
	first = file_first_page(type, index);
	if (first >= s->to || first + pages_below(type) <= s->from)
		return 0;
	if (all_hole(s, layout_phys(type, index), span_of(type)) && !file_surely_present(file_rec(n, e), n->ent[e])) {
		if (doubt)
			doubt_below(s, type, index);
		return 0;
	}
	return scan_below(s, type, index, doubt);
}

/* Nothing of a plan is written: what was made for it goes at once. */
static void drop_plan(struct file_scan *s, enum unit_type type, uint64_t index)
{
	struct file_node *n = s->write ? NULL : file_node_find(s->f, type, index);

	if (n && n->kids == 0)
		file_discard(s->f, n);
}

static int scan_below(struct file_scan *s, enum unit_type type, uint64_t index, bool doubt) // NOLINT(misc-no-recursion)
{
	struct file_node *n = NULL;
	uint64_t ver;
	bool anew;
	int rc = get_node(s, type, index, &n, &anew);

	if (rc != 0)
		return rc == -EIO && !s->mend ? 0 : rc;
	ver = anew ? 0 : ENT_VER(n->up->ent[n->slot]);
	if (ver)
		s->bytes += LAYOUT_PAGE;
	if (doubt && ver)
		file_issued(s->f, n->up, n->slot, ver);
	doubt = anew || (doubt && ver == 0);
	if (type == UNIT_GROUP)
		rc = scan_pages(s, n, n->count, doubt);
	for (uint32_t e = 0; type != UNIT_GROUP && rc == 0 && e < LAYOUT_NODE_FAN; e++) {
		/* children may have pushed it out of memory */
		rc = file_node_get(s->f, s->key, type, index, &n);
		if (rc == 0)
			rc = scan_child(s, n, e, doubt);
	}
	if (s->mend && doubt)
		drop_plan(s, type, index);
	return rc == 0 ? relieve(s) : rc;
}

static void caught(void *arg, enum unit_type type, uint64_t index, const char *reason)
{
	struct file_scan *s = arg;

	(void)type;
	(void)index;
	s->reason = reason;
}

int file_scan(struct file_scan *s)
{
	struct file *f = s->f;
	const struct file_params params = f->params;
	uint64_t pages = layout_data_pages(f->size);
	int rc;

	if (s->to > pages)
		s->to = pages;
	if (f->inlined || s->from >= s->to)
		return 0;
	f->params.damaged = caught;
	f->params.arg = s;
	rc = scan_pages(s, f->root, LAYOUT_ROOT_DATA, f->root_lost);
	for (uint32_t e = LAYOUT_ROOT_DATA; rc == 0 && e < f->root->count; e++)
		rc = scan_child(s, f->root, e, f->root_lost);
	report_pending(s);
	f->params = params;
	return rc;
}

int file_verify(struct file *f, const struct file_key *key, uint64_t from, uint64_t to,
    void (*sink)(void *arg, const struct file_fault *), void *arg, uint64_t *bytes)
{
	struct file_scan s = { .f = f,
		.key = key,
		.from = from / LAYOUT_PAGE,
		.to = layout_data_pages(to),
		.report = sink,
		.arg = arg };
	int rc = file_lock(f, key);

	if (rc != 0)
		return rc;
	rc = file_scan(&s);
	if (from == 0)
		s.bytes += LAYOUT_PAGE;
	*bytes += s.bytes;
	file_unlock(f);
	return rc;
}
