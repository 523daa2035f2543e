/* dir_path.c — the way back from the backing's names to the user's. For people only: nothing is decided by it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "dir_internal.h"

/* One name, NUL-terminated, in the directory fd. */
static int plain_name(int fd, const struct dir_namer *namer, const char *entry, char out[static NAME_MAX_PLAIN + 1])
{
	const struct name_keys *names;
	uint8_t id[16];
	uint16_t index, claimed;
	int r = dir_peek_id(fd, &claimed, id);

	if (r)
		return r;
	names = namer->get(namer->arg, claimed);
	if (!names)
		return -EIO;
	r = dir_id_quiet(fd, names, &index, id);
	if (!r)
		r = dir_decrypt(fd, id, names, entry, out);
	namer->put(namer->arg, claimed);
	return r < 0 ? r : r ? 0 : -EBADMSG;
}

int dir_plain_path(int root_fd, const struct dir_namer *namer, const char *backing, char *out, size_t size)
{
	CLEANUP_FD int fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
	char entry[NAME_ENTRY_MAX + 1], name[NAME_MAX_PLAIN + 1];
	size_t used = 0;

	for (;;) {
		size_t len = strcspn(backing, "/");

		if (fd < 0 || len >= sizeof(entry))
			return -EINVAL;
		memcpy(entry, backing, len);
		entry[len] = '\0';
		int r = plain_name(fd, namer, entry, name);

		if (r)
			return r;
		int n = snprintf(out + used, size - used, "%s%s", used ? "/" : "", name);

		if (n < 0 || (size_t)n >= size - used)
			return -ENAMETOOLONG;
		used += (size_t)n;
		backing += len;
		if (!*backing++)
			return 0;
		int next = openat(fd, entry, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

		cleanup_fd(&fd);
		fd = next;
	}
}
