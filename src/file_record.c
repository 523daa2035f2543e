/* file_record.c — what a completed flush lets memory conclude: section 5.3, and T2, T3 of 5.5.
 *
 * Hides when a version may become a record. A version is durable once a flush completed that began
 * after a page 0 with at least that clock was written: every unit up to that clock had been written
 * before it. */
#include <errno.h>

#include "file_internal.h"

struct file_mark file_mark_now(struct file *f)
{
	return (struct file_mark){ ++f->flush_no, f->disk.clock, f->full_written, f->disk.size };
}

bool file_unrecorded(const struct file *f)
{
	const struct file_node *n;

	if (f->root->stale)
		return true;
	TAILQ_FOREACH(n, &f->busy, link)
	if (n->stale)
		return true;
	return false;
}

/* Versions known durable become records. */
static void record(const struct file *f, struct file_node *n)
{
	for (uint32_t e = 0; n->pend && e < n->count; e++) {
		if (!(n->ent[e] & ENT_PEND) || ENT_VER(n->ent[e]) > f->durable)
			continue;
		n->ent[e] &= ~ENT_PEND;
		file_set_rec(n, e, ENT_VER(n->ent[e]));
		n->pend--;
		n->stale = true;
	}
}

/* Nodes of dropped subtrees that were only looked at say nothing that their parent's entry does not. */
static void discard_dropped(struct file *f)
{
	static const enum unit_type levels[] = { UNIT_GROUP, UNIT_L1, UNIT_L2 };

	for (unsigned i = 0; i < 3; i++) {
		struct file_node *n = TAILQ_FIRST(&f->busy), *next;

		for (; n; n = next) {
			next = TAILQ_NEXT(n, link);
			if (n->type == levels[i] && (n->up->ent[n->slot] & ENT_GONE) && !n->kids && !n->dirty &&
			    !n->stale && !n->pend)
				file_discard(f, n);
		}
	}
}

static void bury(struct file_node *n)
{
	for (uint32_t e = 0; n->gone && e < n->count; e++) {
		uint64_t tombstone = ENT_VER(n->ent[e]);

		if (!(n->ent[e] & ENT_GONE))
			continue;
		n->ent[e] = tombstone | ENT_TOMB;
		n->gone--;
		if (REC_MIN(file_rec(n, e)) >= tombstone)
			continue;
		file_set_rec(n, e, REC_H | tombstone);
		n->stale = true;
	}
}

void file_bury_dropped(struct file *f)
{
	struct file_node *n, *next;

	discard_dropped(f);
	for (n = file_busy_next(f, NULL); n; n = next) {
		next = file_busy_next(f, n);
		bury(n);
		file_requeue(f, n);
	}
	f->drop = DROP_NONE;
}

/* After a wipe nodes may wait for their records without their text. One that cannot be read again
 * keeps waiting. */
static void load_busy(struct file *f, const struct file_key *key)
{
	struct file_node *n = NULL, *same;

	while ((n = file_busy_next(f, n)))
		if (!n->loaded)
			(void)!file_node_get(f, key, n->type, n->index, &same);
}

int file_settle(struct file *f, const struct file_key *key, const struct file_mark *m)
{
	struct file_node *n = NULL;
	int rc;

	if (m->clock > f->durable)
		f->durable = m->clock;
	if (m->full > f->full_durable)
		f->full_durable = m->full;
	f->csize = f->low_no >= m->no && f->low < m->size ? f->low : m->size;
	if (f->disk.clock - f->disk.dclock >= FILE_B && f->durable > f->disk.dclock)
		f->root->stale = true;
	load_busy(f, key);
	while ((n = file_busy_next(f, n)))
		if (n->loaded)
			record(f, n);
	if (f->drop == DROP_LISTED && f->full_durable > f->drop_clock) {
		rc = file_remove_dropped(f);
		if (rc != 0)
			return rc;
		f->drop = DROP_REMOVED;
		f->drop_flush = f->flush_no;
	} else if (f->drop == DROP_REMOVED && m->no > f->drop_flush) {
		file_bury_dropped(f);
	}
	return 0;
}

/* Records raised in a text that is about to be forgotten wait again; tombstones are told from their
 * entries. */
static void unrecord(struct file_node *n, bool *buried)
{
	for (uint32_t e = 0; n->stale && e < n->count; e++) {
		uint64_t ver = ENT_VER(n->ent[e]);

		*buried |= (n->ent[e] & ENT_TOMB) != 0;
		if (ver && n->ent[e] == ver && file_rec(n, e) == ver) {
			n->ent[e] |= ENT_PEND;
			n->pend++;
		}
	}
}

void file_rebury(struct file_node *n)
{
	for (uint32_t e = 0; e < n->count; e++) {
		uint64_t tombstone = ENT_VER(n->ent[e]);
		rec_t rec = file_rec(n, e);

		if (!(n->ent[e] & ENT_TOMB) || !(rec & REC_H) || REC_MIN(rec) >= tombstone)
			continue;
		file_set_rec(n, e, REC_H | tombstone);
		n->stale = true;
	}
}

static void forget_drops(struct file_node *n)
{
	for (uint32_t e = 0; n->gone && e < n->count; e++) {
		if (!(n->ent[e] & ENT_GONE))
			continue;
		n->ent[e] = 0;
		n->gone--;
	}
}

void file_unsettle(struct file *f, bool lost)
{
	struct file_node *n, *next;
	bool buried = false;

	for (n = file_busy_next(f, NULL); n; n = next) {
		next = file_busy_next(f, n);
		if (n->loaded)
			unrecord(n, &buried);
		if (lost)
			forget_drops(n);
		n->dirty = n->stale = false;
		file_requeue(f, n);
	}
	f->root->stale = buried; /* so that the state stays until they are written */
	if (!lost)
		return;
	f->drop = DROP_NONE;
	f->checked = false;
}
