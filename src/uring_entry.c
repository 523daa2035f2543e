/* An entry's memory and the two translations: what the kernel wrote in two places becomes the one piece that libfuse
 * parses, and the pieces of an answer become what the kernel reads.
 *
 * Hides the layout: [header ... request header and argument][payload][a page of zeros]. The argument is put right
 * before the payload, so that nothing large is moved. What the kernel says of lengths is not believed. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "uring_internal.h"

#define HEAD_MAX (sizeof(struct fuse_in_header) + sizeof(((struct uring_header *)0)->op_in))

static size_t page(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

static size_t whole(size_t room)
{
	return (room + page() - 1) / page() * page() + 2 * page();
}

int uring_entry_open(struct uring_entry **out, struct uring_queue *queue, size_t room)
{
	struct uring_entry *e = calloc(1, sizeof(*e));
	size_t size = whole(room);
	uint8_t *p;

	if (!e)
		return -ENOMEM;
	/* Pages come with the first request that needs them. */
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED) {
		free(e);
		return -ENOMEM;
	}
	/* Names and file data: not for core dumps, nor for children. */
	if (madvise(p, size, MADV_DONTDUMP) || madvise(p, size, MADV_DONTFORK)) {
		(void)munmap(p, size);
		free(e);
		return -ENOMEM;
	}
	e->queue = queue;
	e->header = (struct uring_header *)(void *)p;
	e->payload = p + page();
	e->room = room;
	e->iov[0] = (struct iovec){ .iov_base = e->header, .iov_len = sizeof(*e->header) };
	e->iov[1] = (struct iovec){ .iov_base = e->payload, .iov_len = room };
	*out = e;
	return 0;
}

void uring_entry_close(struct uring_entry *e)
{
	uring_wipe(e, 0);
	(void)munmap(e->header, whole(e->room));
	free(e);
}

int uring_flatten(struct uring_entry *e, void **request, size_t *n)
{
	struct fuse_in_header in;
	size_t data = e->header->ent.payload_sz, argument;

	_Static_assert(HEAD_MAX + sizeof(struct uring_header) <= 4096, "both fit into one page");
	memcpy(&in, e->header->in_out, sizeof(in));
	e->commit_id = e->header->ent.commit_id;
	if (data > e->room || in.len < sizeof(in) + data)
		return -EPROTO;
	argument = in.len - sizeof(in) - data;
	if (argument > sizeof(e->header->op_in))
		return -EPROTO;
	memcpy(e->payload - argument, e->header->op_in, argument);
	memcpy(e->payload - argument - sizeof(in), &in, sizeof(in));
	/* A name ends here, whatever came. */
	e->payload[data] = 0;
	uring_wipe(e, data + 1);
	e->used = data;
	*request = e->payload - argument - sizeof(in);
	*n = in.len;
	return 0;
}

int uring_fill(struct uring_entry *e, const struct iovec *iov, int count)
{
	struct fuse_out_header out;
	size_t n = 0;

	memcpy(&out, iov[0].iov_base, sizeof(out));
	for (int i = 1; i < count && !out.error; i++) {
		if (iov[i].iov_len > e->room - n) {
			out.error = -EIO;
			break;
		}
		if (iov[i].iov_len && iov[i].iov_base != e->payload + n)
			memmove(e->payload + n, iov[i].iov_base, iov[i].iov_len);
		n += iov[i].iov_len;
		if (n > e->used)
			e->used = n;
	}
	if (out.error)
		n = 0;
	out.len = (uint32_t)(sizeof(out) + n);
	memcpy(e->header->in_out, &out, sizeof(out));
	e->header->ent.payload_sz = (uint32_t)n;
	return out.error;
}

void uring_wipe(struct uring_entry *e, size_t keep)
{
	if (e->used > keep)
		explicit_bzero(e->payload + keep, e->used - keep);
	if (e->used > keep)
		e->used = keep;
}
