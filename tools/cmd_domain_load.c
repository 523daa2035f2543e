/* cmd_domain_load.c — any domain's descriptor of an open store, from its two copies. */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "io.h"

int cmd_domain_copy(int dirfd, const char *name, const struct store *s, size_t i, struct descriptor_domain *out)
{
	const struct descriptor_domain_line *line = &s->desc.domains[i];
	char *text CLEANUP_FREE = NULL;
	size_t len = 0;
	int ret = io_read_file(dirfd, name, DESCRIPTOR_DOMAIN_BYTES, &text, &len);

	if (ret == 0)
		ret = descriptor_domain_parse(out, text, len);
	if (ret < 0)
		return ret;
	if (out->index == line->index && bytes_equal(out->store, s->desc.store, sizeof(out->store)) &&
	    bytes_equal(out->domain, line->domain, sizeof(out->domain)) &&
	    bytes_equal(out->commit, line->commit, sizeof(out->commit)))
		return 0;
	descriptor_domain_free(out);
	return -EBADMSG;
}

/* out takes what other holds, if that is newer; other is empty then or freed. */
static void take_newer(struct descriptor_domain *out, int *ret, struct descriptor_domain *other, int got)
{
	if (got == 0 && *ret == 0 && other->seq <= out->seq) {
		descriptor_domain_free(other);
	} else if (got == 0) {
		if (*ret == 0)
			descriptor_domain_free(out);
		*out = *other;
		*ret = 0;
	}
}

int cmd_domain_load(const struct store *s, size_t i, struct descriptor_domain *out, char *why)
{
	struct descriptor_domain *other CLEANUP_FREE = calloc(1, sizeof(*other));
	int fd CLEANUP_FD = openat(s->meta_fd, "domains", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int ret = fd < 0 ? -errno : -ENOMEM;
	char name[2 * CONTEXT_ID + 2];

	bytes_hex(name, s->desc.domains[i].domain, CONTEXT_ID);
	if (fd >= 0 && other) {
		ret = cmd_domain_copy(fd, name, s, i, out);
		name[2 * CONTEXT_ID] = '~';
		name[2 * CONTEXT_ID + 1] = '\0';
		take_newer(out, &ret, other, cmd_domain_copy(fd, name, s, i, other));
		name[2 * CONTEXT_ID] = '\0';
	}
	if (ret < 0)
		(void)snprintf(why, STORE_WHY, "cannot read the descriptor of domain %s of '%s': %s", name, s->path,
		    ret == -EINVAL || ret == -EBADMSG ? "it is damaged" : strerror(-ret));
	return ret;
}
