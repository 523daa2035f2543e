/* inoset.c — open addressing; at most half of the room is used. */
#include "inoset.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Where it is, or where it would be. */
static uint64_t *place(const struct inoset *s, uint64_t ino)
{
	size_t at = (size_t)((ino * 0x9e3779b97f4a7c15ull) >> 20) & (s->room - 1);

	while (s->slot[at] && s->slot[at] != ino)
		at = (at + 1) & (s->room - 1);
	return &s->slot[at];
}

static int grow(struct inoset *s)
{
	struct inoset bigger = { .room = s->room ? 2 * s->room : 64, .n = s->n };

	bigger.slot = calloc(bigger.room, sizeof(*bigger.slot));
	if (!bigger.slot)
		return -ENOMEM;
	for (size_t i = 0; i < s->room; i++)
		if (s->slot[i])
			*place(&bigger, s->slot[i]) = s->slot[i];
	free(s->slot);
	*s = bigger;
	return 0;
}

int inoset_add(struct inoset *s, uint64_t ino)
{
	uint64_t *at;
	int ret = 2 * s->n >= s->room ? grow(s) : 0;

	if (ret < 0)
		return ret;
	at = place(s, ino);
	s->n += *at == 0;
	*at = ino;
	return 0;
}

bool inoset_has(const struct inoset *s, uint64_t ino)
{
	return s->room && *place(s, ino);
}

void inoset_clear(struct inoset *s)
{
	free(s->slot);
	memset(s, 0, sizeof(*s));
}
