/* dir_stream.c — iteration. Hides getdents64(2): one buffer of backing entries, decrypted one by one as they are
 * asked for.
 *
 * Reading on from where the stream stands costs no lseek. One step back is free too: a reader whose reply was full
 * asks again for the item that did not fit. Plaintext goes straight to the caller; the buffer holds backing names
 * only, and is there only while somebody reads: open directories are many. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "dir_internal.h"
#include "fdpool.h"
#include "log.h"

#define STREAM_BUFFER 65536u

struct dir_stream {
	struct fdslot slot;
	int from; /* while an item is read: a descriptor of the directory */
	uint8_t id[16];
	int64_t pos;      /* after the last item produced */
	int64_t last_pos; /* before it */
	size_t last_at;   /* and its place in the buffer */
	bool placed;      /* pos is where the buffer goes on; else seek first */
	bool can_step_back;
	bool complained;
	size_t at, end;
	char *buf; /* of backing entries; NULL: none are wanted yet */
};

static int open_same(int fd)
{
	int new = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return new < 0 ? -errno : new;
}

static int slot_reopen(struct fdslot *slot)
{
	struct dir_stream *s = (struct dir_stream *)(void *)((char *)slot - offsetof(struct dir_stream, slot));

	s->placed = s->can_step_back = false;
	return open_same(s->from);
}

int dir_stream_open(struct dir_stream **out, const struct dir *d)
{
	static const struct fdslot_ops ops = { .reopen = slot_reopen };
	struct dir_stream *s = calloc(1, sizeof(*s));
	int fd;

	if (!s)
		return -ENOMEM;
	memcpy(s->id, d->id, sizeof(s->id));
	fd = open_same(d->fd);
	if (fd < 0) {
		free(s);
		return fd;
	}
	fdslot_open(&s->slot, fd, &ops);
	*out = s;
	return 0;
}

static void drop_buffer(struct dir_stream *s)
{
	if (s->buf)
		explicit_bzero(s->buf, STREAM_BUFFER); /* plain names, in that mode */
	free(s->buf);
	s->buf = NULL;
	s->at = s->end = 0;
	s->can_step_back = false;
}

void dir_stream_wipe(struct dir_stream *s)
{
	drop_buffer(s);
	s->at = s->end = 0;
	s->placed = s->can_step_back = false;
}

void dir_stream_close(struct dir_stream *s)
{
	if (!s)
		return;
	CLEANUP_FD int fd = fdslot_take(&s->slot);

	drop_buffer(s);
	free(s);
}

static int stream_place(struct dir_stream *s, int64_t pos)
{
	if (s->placed && pos == s->pos && pos)
		return 0;
	if (s->can_step_back && pos == s->last_pos && pos) {
		s->at = s->last_at;
	} else {
		s->placed = false;
		if (lseek(s->slot.fd, pos, SEEK_SET) < 0)
			return -errno;
		s->at = s->end = 0;
	}
	s->pos = pos;
	s->placed = true;
	s->can_step_back = false;
	return 0;
}

static int stream_fill(struct dir_stream *s)
{
	ssize_t n;

	if (!s->buf)
		s->buf = malloc(STREAM_BUFFER); /* aligned for anything */
	if (!s->buf)
		return -ENOMEM;
	n = dir_getdents(s->slot.fd, s->buf, STREAM_BUFFER);
	s->can_step_back = false;
	s->at = 0;
	s->end = n > 0 ? (size_t)n : 0;
	if (n < 0)
		s->placed = false;
	return n > 0 ? 1 : (int)n;
}

/* 1 produced, 0 not for the reader, -errno. */
static int stream_item(
    struct dir_stream *s, const struct name_keys *names, const struct dir_dirent *e, struct dir_item *out)
{
	char where[DIR_WHERE];
	int n;

	if (dir_is_dots(e->d_name))
		return 0;
	n = dir_decrypt(s->slot.fd, s->id, names, e->d_name, out->name);
	if (n == -EBADMSG && !s->complained) {
		s->complained = true;
		log_warn("%s: ignoring '%.100s' and perhaps more: not names of this directory",
		    dir_where(s->slot.fd, where), e->d_name);
	}
	if (n <= 0)
		return n == -EBADMSG ? 0 : n;
	out->len = (size_t)n;
	(void)snprintf(out->entry, sizeof(out->entry), "%.255s", e->d_name);
	out->type = e->d_type;
	out->ino = e->d_ino;
	out->next = e->d_off;
	if (out->type == DT_UNKNOWN) {
		struct stat st;

		if (fstatat(s->slot.fd, out->entry, &st, AT_SYMLINK_NOFOLLOW))
			return errno == ENOENT ? 0 : -errno;
		out->type = (unsigned char)IFTODT(st.st_mode);
	}
	return 1;
}

static int stream_next(struct dir_stream *s, const struct name_keys *names, int64_t pos, struct dir_item *out)
{
	int r = stream_place(s, pos);

	while (!r) {
		if (s->at == s->end) {
			r = stream_fill(s);
			if (r <= 0)
				return r;
		}
		const struct dir_dirent *e = (const void *)(s->buf + s->at);
		size_t at = s->at;

		s->at += e->d_reclen;
		r = stream_item(s, names, e, out);
		if (r <= 0)
			continue;
		if (!out->next)
			return -EIO; /* the backing has no usable positions */
		s->last_pos = s->pos;
		s->last_at = at;
		s->can_step_back = true;
		s->pos = out->next;
	}
	if (r < 0)
		s->placed = false;
	return r;
}

int dir_stream_next(struct dir_stream *s, const struct dir *d, int64_t pos, struct dir_item *out)
{
	int r;

	s->from = d->fd;
	r = fdslot_hold(&s->slot);
	if (r < 0)
		return r;
	r = stream_next(s, d->names, pos, out);
	fdslot_release(&s->slot);
	if (r <= 0)
		drop_buffer(s);
	return r;
}
