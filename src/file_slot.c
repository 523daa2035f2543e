/* file_slot.c — the sealed key of a file whose state is in memory is exchanged.
 *
 * Hides that page 0 exists twice. Every later write of page 0 writes the slots that memory has, so they change in both
 * places under the lock that such a write takes. Memory first takes over what the disk has: a file may have got its
 * slot there between the moment its name appeared and the moment its state did. Slots have no MAC, and memory believed
 * the disk when it was loaded, so it may now. */
#include <errno.h>

#include "bytes.h"
#include "file_internal.h"

/* As long as there is a valid slot: what only got lost or damaged since then is better kept. */
static int relearn(struct file *f)
{
	uint8_t page[LAYOUT_PAGE];
	struct header_slot ruling;
	ssize_t got = file_pread(f, page, LAYOUT_PAGE, 0);

	if (got < 0)
		return (int)got;
	if (got == (ssize_t)LAYOUT_PAGE && bytes_equal(page, f->page0, HEADER_SLOT_AT(0)) &&
	    header_ruling_slot(page, &ruling) >= 0)
		memcpy(f->page0 + HEADER_SLOT_AT(0), page + HEADER_SLOT_AT(0), 2 * (size_t)HEADER_SLOT_BYTES);
	return 0;
}

static int exchange(struct file *f, uint32_t seq, const struct header_slot *fresh)
{
	uint8_t page[LAYOUT_PAGE];
	int which, rc = relearn(f);

	if (rc != 0)
		return rc;
	memcpy(page, f->page0, LAYOUT_PAGE);
	which = header_reslot(page, seq, fresh);
	if (which < 0)
		return which;
	rc = file_pwrite_slot(f, page, which);
	if (rc == 0)
		memcpy(f->page0, page, LAYOUT_PAGE);
	return rc;
}

static int change(struct file *f, uint32_t seq, const struct header_slot *fresh)
{
	uint64_t since = f->params.shared ? file_io->now_us() : 0;
	int rc = file_hold(f);

	if (rc < 0)
		return rc;
	(void)pthread_rwlock_wrlock(&f->content);
	rc = f->params.shared ? file_section_begin_keyless(f, since) : 0;
	if (rc != 0) {
		(void)pthread_rwlock_unlock(&f->content);
		file_release(f);
		return rc;
	}
	f->keep_times = true;
	rc = f->params.readonly ? -EROFS : exchange(f, seq, fresh);
	file_unlock(f);
	return rc;
}

int file_put_slot(struct file *f, uint32_t seq, const struct header_slot *fresh)
{
	return change(f, seq, fresh);
}

int file_clear_slot(struct file *f, uint32_t seq)
{
	return change(f, seq, NULL);
}
