/* file_read.c — reading and seeking: section 4.
 *
 * Hides how a read of many pages becomes one pread over the physical range, nodes between included, and how readers share
 * the node cache: what a group's node says is copied under the mutex, the pages are opened without it.             */
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
	uint32_t e;          /* its entry for k */
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

/* Remembers the versions found. */
static void span_accept(struct file *f, const struct span *s)
{
	struct file_node *node = NULL;

	for (uint32_t i = 0; i < s->n; i++) {
		if (s->ver[i] == 0 || s->ver[i] == ENT_VER(s->view[i].ent))
			continue;
		if (!node) {
			(void)pthread_mutex_lock(&f->cache);
			node = file_node_find(f, s->type, s->index);
			if (!node)
				break;
		}
		if (s->ver[i] > ENT_VER(node->ent[s->e + i]))
			file_accepted(f, node, s->e + i, s->ver[i]);
		else if (node->ent[s->e + i] & ENT_TOMB)
			node->ent[s->e + i] &= ~ENT_TOMB;
	}
	if (node || s->n == UINT32_MAX)
		(void)pthread_mutex_unlock(&f->cache);
}
