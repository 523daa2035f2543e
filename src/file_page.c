/* file_page.c — one unit read from the backing: the rules of section 4.
 *
 * Hides what makes a page acceptable. Every refusal is logged here, once, with the unit and the
 * reason. */
#include <errno.h>

#include "bytes.h"
#include "file_internal.h"

struct file_view file_view_of(const struct file *f, const struct file_node *n, uint32_t e)
{
	uint64_t bound = f->loaded_clock + FILE_W;

	if (file_tentative(f)) /* newer ones belong to a page 0 that memory has not seen */
		return (struct file_view){ file_rec(n, e), n->ent[e], f->disk.clock };
	return (struct file_view){ file_rec(n, e), n->ent[e], bound > f->clock ? bound : f->clock };
}

static const char *version_fault(const struct file_view *v, uint64_t ver)
{
	if (ver < REC_MIN(v->rec))
		return "it is older than its record";
	if (ver < ENT_VER(v->ent))
		return "it is older than what was there before";
	if (ver > v->bound)
		return "its version was never issued";
	return NULL;
}

/* rc: what opening it came to. */
static int judge(struct file *f, const struct file_view *v, enum unit_type type, uint64_t index, int rc,
    uint8_t text[static LAYOUT_BODY], uint64_t *ver)
{
	const char *fault = NULL;

	if (rc == -ENODATA) {
		memset(text, 0, LAYOUT_BODY);
		*ver = 0;
		if (!(v->ent & ENT_GONE) && file_surely_present(v->rec, v->ent))
			fault = "it is missing";
	} else if (rc != 0) {
		fault = rc == -EBADMSG ? "it does not authenticate" : "the cipher failed";
	} else {
		fault = version_fault(v, *ver);
	}
	if (!fault)
		return 0;
	explicit_bzero(text, LAYOUT_BODY);
	return file_damaged(f, type, index, fault);
}

int file_open_unit(struct file *f, struct block_run *run, const struct file_view *v, enum unit_type type,
    uint64_t index, const uint8_t *page, uint8_t text[static LAYOUT_BODY], uint64_t *ver)
{
	int rc = v->ent & ENT_GONE ? -ENODATA : block_open(run, type, index, page, text, ver);

	return judge(f, v, type, index, rc, text, ver);
}

int file_open_in_place(struct file *f, struct block_run *run, const struct file_view *v, uint64_t k,
    const uint8_t meta[static BLOCK_META], uint8_t text[static LAYOUT_BODY], const uint8_t tag[static BLOCK_TAG],
    uint64_t *ver)
{
	int rc = v->ent & ENT_GONE ? -ENODATA : block_open_in_place(run, UNIT_DATA, k, meta, text, tag, ver);

	return judge(f, v, UNIT_DATA, k, rc, text, ver);
}

/* The page of data page k as it lies in the backing; what is beyond its end reads as zeros. */
static int read_page(struct file *f, uint64_t k, uint8_t page[static LAYOUT_PAGE])
{
	uint64_t phys = layout_phys(UNIT_DATA, k);
	ssize_t got = phys * LAYOUT_PAGE < f->st_size ? file_pread(f, page, LAYOUT_PAGE, phys) : 0;

	if (got < 0)
		return (int)got;
	memset(page + got, 0, LAYOUT_PAGE - (size_t)got);
	return 0;
}

int file_load_page(struct file *f, const struct file_key *key, struct file_node *n, uint32_t e, uint64_t k,
    uint8_t text[static LAYOUT_PAGE], bool *present)
{
	struct file_view view = file_view_of(f, n, e);
	uint8_t page[LAYOUT_PAGE];
	struct block_run run;
	uint64_t ver = 0;
	int rc = read_page(f, k, page);

	if (rc != 0)
		return rc;
	block_begin(&run, key->block);
	rc = file_open_unit(f, &run, &view, UNIT_DATA, k, page, text, &ver);
	block_end(&run);
	if (rc != 0)
		return rc;
	if (ver)
		file_accepted(f, n, e, ver);
	*present = ver != 0;
	memcpy(text + LAYOUT_BODY, file_spill(n, e), LAYOUT_SPILL);
	return 0;
}

int file_page_present(struct file *f, struct file_node *n, uint32_t e, uint64_t k, bool *present)
{
	uint8_t page[LAYOUT_PAGE];
	int rc;

	*present = file_surely_present(file_rec(n, e), n->ent[e]);
	if (*present || (n->ent[e] & ENT_GONE))
		return 0;
	rc = read_page(f, k, page);
	*present = rc == 0 && !bytes_zero(page, LAYOUT_PAGE);
	return rc;
}
