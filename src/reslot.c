/* reslot.c — see reslot.h. Hides which sector of page 0 is written and how the file's times survive it. */
#include "reslot.h"

#include <errno.h>
#include <sys/stat.h>

#include "bytes.h"
#include "io.h"
#include "log.h"

static int read_page(int fd, uint8_t page[static LAYOUT_PAGE])
{
	ssize_t n = io_pread(fd, page, LAYOUT_PAGE, 0);

	if (n < 0)
		return (int)n;
	return n < (ssize_t)LAYOUT_PAGE ? -ENODATA : 0;
}

static int view_page(const uint8_t page[static LAYOUT_PAGE], struct reslot_view *out)
{
	int r = header_ident(page, &out->ident);

	if (r)
		return r;
	out->which = header_ruling_slot(page, &out->ruling);
	if (out->which < 0)
		return -EBADMSG;
	out->have_other = header_slot(page, !out->which, &out->other) == 0;
	return 0;
}

int reslot_read(int fd, struct reslot_view *out)
{
	uint8_t page[LAYOUT_PAGE];
	int r = read_page(fd, page);

	return r ? r : view_page(page, out);
}

int reslot_write(int fd, const uint8_t file[static CONTEXT_ID], uint32_t seq, const struct header_slot *fresh)
{
	uint8_t page[LAYOUT_PAGE];
	struct header_ident ident;
	struct stat st;
	int which, r;

	if (fstat(fd, &st))
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	r = read_page(fd, page);
	if (!r)
		r = header_ident(page, &ident);
	if (r)
		return r;
	if (!bytes_equal(ident.file, file, CONTEXT_ID))
		return -ESTALE;
	which = header_reslot(page, seq, fresh);
	if (which < 0)
		return which;
	r = io_pwrite(fd, page + HEADER_SLOT_AT(which), HEADER_SLOT_BYTES, HEADER_SLOT_AT(which));
	if (!r && futimens(fd, (const struct timespec[2]){ st.st_atim, st.st_mtim }))
		log_warn("cannot put back the times of a backing file: %s", strerror(errno));
	return r;
}
