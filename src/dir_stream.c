/* dir_stream.c — iteration. Hides getdents64(2): one buffer of backing entries, decrypted one by one as they are
 * asked for.
 *
 * Reading on from where the stream stands costs no lseek. One step back is free too: a reader whose reply was full
 * asks again for the item that did not fit. Plaintext goes straight to the caller; the buffer holds backing names
 * only. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "dir_internal.h"
#include "log.h"

#define STREAM_BUFFER 65536u

struct dir_stream {
	int fd;
	uint8_t id[16];
	int64_t pos;      /* after the last item produced */
	int64_t last_pos; /* before it */
	size_t last_at;   /* and its place in the buffer */
	bool placed;      /* pos is where the buffer goes on; else seek first */
	bool can_step_back;
	bool complained;
	size_t at, end;
	_Alignas(struct dir_dirent) char buf[STREAM_BUFFER];
};

int dir_stream_open(struct dir_stream **out, const struct dir *d)
{
	struct dir_stream *s = malloc(sizeof(*s));

	if (!s)
		return -ENOMEM;
	memset(s, 0, offsetof(struct dir_stream, buf));
	memcpy(s->id, d->id, sizeof(s->id));
	s->fd = openat(d->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->fd < 0) {
		int r = -errno;

		free(s);
		return r;
	}
	*out = s;
	return 0;
}

void dir_stream_wipe(struct dir_stream *s)
{
	explicit_bzero(s->buf, sizeof(s->buf)); /* plain names, in that mode */
	s->at = s->end = 0;
	s->placed = s->can_step_back = false;
}

void dir_stream_close(struct dir_stream *s)
{
	if (!s)
		return;
	(void)close(s->fd);
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
		if (lseek(s->fd, pos, SEEK_SET) < 0)
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
	ssize_t n = dir_getdents(s->fd, s->buf, sizeof(s->buf));

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
	n = dir_decrypt(s->fd, s->id, names, e->d_name, out->name);
	if (n == -EBADMSG && !s->complained) {
		s->complained = true;
		log_warn("%s: ignoring '%.100s' and perhaps more: not names of this directory", dir_where(s->fd, where),
		    e->d_name);
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

		if (fstatat(s->fd, out->entry, &st, AT_SYMLINK_NOFOLLOW))
			return errno == ENOENT ? 0 : -errno;
		out->type = (unsigned char)IFTODT(st.st_mode);
	}
	return 1;
}

int dir_stream_next(struct dir_stream *s, const struct name_keys *names, int64_t pos, struct dir_item *out)
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
