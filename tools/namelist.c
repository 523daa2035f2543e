/* namelist.c — names in one piece of memory. Hides how it grows. */
#include "namelist.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int namelist_add(struct namelist *l, const char *name)
{
	size_t n = strlen(name) + 1;

	if (l->len + n > l->room) {
		size_t room = 2 * l->room + n + 64;
		char *more = realloc(l->text, room);

		if (!more)
			return -ENOMEM;
		l->text = more;
		l->room = room;
	}
	memcpy(l->text + l->len, name, n);
	l->len += n;
	return 0;
}

const char *namelist_next(struct namelist *l)
{
	const char *name = NULL;

	if (l->at == l->len)
		return NULL;
	name = l->text + l->at;
	l->at += strlen(name) + 1;
	return name;
}

void namelist_free(struct namelist *l)
{
	free(l->text);
	*l = (struct namelist){ 0 };
}
