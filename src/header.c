/* header.c — page 0 of a backing file, section 3.1 of byokfs-format(5).
 *
 * Hides offsets, checksums and MACs, and which of two slots or two states rules.                          */
#include "header.h"

#include <errno.h>

#include "hmac.h"

#define MAGIC_BYTES 8u
#define SECTION     512u
#define MAC         32u
#define MAC_AT      (SECTION - MAC)

#define IDENT_ZERO_AT 96u

#define SLOT_BLOB_AT   64u
#define SLOT_ZERO_AT   504u
#define SLOT_CRC_AT    508u
#define SLOT_VALID     1u
#define PROVIDER_LAST  4u

#define STATE_AT(which) (SECTION * (3u + (unsigned)(which)))
#define STATE_INLINE_AT 40u
#define STATE_ZERO_AT   41u

_Static_assert(HEADER_ROOT_AT == SECTION * 5 && HEADER_ROOT_AT + BLOCK_ROOT == LAYOUT_PAGE, "section 3.1");
_Static_assert(HEADER_SLOT_BYTES == SECTION && HEADER_SLOT_AT(2) == STATE_AT(0), "section 3.1");
_Static_assert(SLOT_BLOB_AT + HEADER_BLOB_MAX == SLOT_ZERO_AT, "section 3.1");
_Static_assert(HEADER_ROOT_REC_DATA(3) + 6 == HEADER_ROOT_REC_GROUP(0), "section 3.1");
_Static_assert(HEADER_ROOT_REC_GROUP(60) == HEADER_ROOT_REC_L1(0), "section 3.1");
_Static_assert(HEADER_ROOT_REC_L1(60) == HEADER_ROOT_REC_L2(0), "section 3.1");
_Static_assert(HEADER_ROOT_REC_L2(100) == 1472 && BLOCK_ROOT_TEXT == LAYOUT_INLINE_MAX, "section 3.1");

static const uint8_t magic[MAGIC_BYTES] = { 0x89, 'B', 'Y', 'O', 'K', 'F', 'S', '\n' };

/* HMAC-SHA-256(K_hdr, tag | id | bytes before the MAC); id may be NULL. */
static void section_mac(
    uint8_t out[static MAC], const uint8_t *section, char tag, const uint8_t *id, const uint8_t hdr[static 32])
{
	const struct hmac_part parts[] = { { &tag, 1 }, { id, id ? CONTEXT_ID : 0 }, { section, MAC_AT } };

	hmac_sha256(out, hdr, 32, parts, 3);
}

static bool section_authentic(const uint8_t *section, char tag, const uint8_t *id, const uint8_t hdr[static 32])
{
	uint8_t mac[MAC];
	WIPE_SCOPE(mac);

	section_mac(mac, section, tag, id, hdr);
	return bytes_equal(mac, section + MAC_AT, MAC);
}

int header_ident(const uint8_t page[static LAYOUT_PAGE], struct header_ident *out)
{
	if (bytes_zero(page, LAYOUT_PAGE))
		return -ENODATA;
	if (memcmp(page, magic, MAGIC_BYTES) != 0 || le16_get(page + 8) != 1 || page[10] != 1 ||
	    !block_suite_known(page[11]) || le32_get(page + 12) != 0 ||
	    !bytes_zero(page + IDENT_ZERO_AT, MAC_AT - IDENT_ZERO_AT))
		return -EBADMSG;
	out->suite = page[11];
	memcpy(out->store, page + 16, CONTEXT_ID);
	memcpy(out->domain, page + 32, CONTEXT_ID);
	memcpy(out->file, page + 48, CONTEXT_ID);
	memcpy(out->commit, page + 64, sizeof(out->commit));
	return 0;
}

int header_verify_ident(const uint8_t page[static LAYOUT_PAGE], const struct file_keys *keys)
{
	/* the commitment first: it is what tells whether these keys may be used at all */
	if (!bytes_equal(page + 64, keys->commit, sizeof(keys->commit)) ||
	    !section_authentic(page, 'I', NULL, keys->hdr))
		return -EBADMSG;
	return 0;
}

void header_put_ident(uint8_t page[static LAYOUT_PAGE], const struct header_ident *ident, const struct file_keys *keys)
{
	memset(page, 0, SECTION);
	memcpy(page, magic, MAGIC_BYTES);
	le16_put(page + 8, 1);
	page[10] = 1;
	page[11] = ident->suite;
	memcpy(page + 16, ident->store, CONTEXT_ID);
	memcpy(page + 32, ident->domain, CONTEXT_ID);
	memcpy(page + 48, ident->file, CONTEXT_ID);
	memcpy(page + 64, ident->commit, sizeof(ident->commit));
	section_mac(page + MAC_AT, page, 'I', NULL, keys->hdr);
}

/* Fields that depend on the wrap. */
static bool slot_wrap_valid(const struct header_slot *slot)
{
	if (slot->wrap == HEADER_WRAP_KMS)
		return slot->provider >= 1 && slot->provider <= PROVIDER_LAST;
	return slot->wrap == HEADER_WRAP_DOMAIN && slot->provider == 0 && slot->generation == 0 &&
	    slot->len == KDF_WRAP_BLOB;
}

int header_slot(const uint8_t page[static LAYOUT_PAGE], int which, struct header_slot *out)
{
	const uint8_t *p = page + HEADER_SLOT_AT(which);

	if (bytes_zero(p, SECTION))
		return -ENODATA;
	if (p[4] != SLOT_VALID || le32_get(p + SLOT_CRC_AT) != bytes_crc32c(p, SLOT_CRC_AT))
		return -EBADMSG;
	out->seq = le32_get(p);
	out->wrap = p[5];
	out->generation = le16_get(p + 6);
	out->len = le16_get(p + 8);
	out->provider = p[10];
	memcpy(out->key_hash, p + 16, sizeof(out->key_hash));
	out->sealed_at = (int64_t)le64_get(p + 24);
	memcpy(out->material, p + 32, sizeof(out->material));
	memcpy(out->blob, p + SLOT_BLOB_AT, HEADER_BLOB_MAX);
	if (out->len == 0 || out->len > HEADER_BLOB_MAX || !slot_wrap_valid(out) || !bytes_zero(p + 11, 5) ||
	    !bytes_zero(p + SLOT_BLOB_AT + out->len, SLOT_CRC_AT - SLOT_BLOB_AT - out->len))
		return -EBADMSG;
	return 0;
}

int header_ruling_slot(const uint8_t page[static LAYOUT_PAGE], struct header_slot *out)
{
	struct header_slot other;
	int rc = header_slot(page, 0, out);

	if (header_slot(page, 1, &other) != 0 || (rc == 0 && other.seq <= out->seq))
		return rc == 0 ? 0 : -EBADMSG;
	*out = other;
	return 1;
}

void header_put_slot(uint8_t page[static LAYOUT_PAGE], int which, const struct header_slot *slot)
{
	uint8_t *p = page + HEADER_SLOT_AT(which);
	size_t len = slot->len <= HEADER_BLOB_MAX ? slot->len : HEADER_BLOB_MAX;

	memset(p, 0, SECTION);
	le32_put(p, slot->seq);
	p[4] = SLOT_VALID;
	p[5] = slot->wrap;
	le16_put(p + 6, slot->generation);
	le16_put(p + 8, slot->len);
	p[10] = slot->provider;
	memcpy(p + 16, slot->key_hash, sizeof(slot->key_hash));
	le64_put(p + 24, (uint64_t)slot->sealed_at);
	memcpy(p + 32, slot->material, sizeof(slot->material));
	memcpy(p + SLOT_BLOB_AT, slot->blob, len);
	le32_put(p + SLOT_CRC_AT, bytes_crc32c(p, SLOT_CRC_AT));
}

void header_clear_slot(uint8_t page[static LAYOUT_PAGE], int which)
{
	memset(page + HEADER_SLOT_AT(which), 0, SECTION);
}

int header_reslot(uint8_t page[static LAYOUT_PAGE], uint32_t seq, const struct header_slot *fresh)
{
	uint8_t scratch[LAYOUT_PAGE];
	struct header_slot slot;
	int which = header_ruling_slot(page, &slot);

	if (which < 0)
		return which;
	if (slot.seq != seq)
		return -ESTALE;
	which = !which;
	if (!fresh) {
		header_clear_slot(page, which);
		return which;
	}
	if (seq == UINT32_MAX)
		return -EOVERFLOW;
	slot = *fresh;
	slot.seq = seq + 1;
	header_put_slot(scratch, which, &slot);
	if (fresh->len > HEADER_BLOB_MAX || header_slot(scratch, which, &slot) != 0)
		return -EINVAL;
	memcpy(page + HEADER_SLOT_AT(which), scratch + HEADER_SLOT_AT(which), SECTION);
	return which;
}

/* Odd seqs live in A, even ones in B: a state elsewhere was moved there by someone else and is none. */
static bool state_in_place(const uint8_t *p, int which)
{
	uint64_t seq = le64_get(p);

	return seq != 0 && seq % 2 == (which == 0);
}

static int state_decode(const uint8_t *p, struct header_state *out)
{
	if (p[STATE_INLINE_AT] > 1 || !bytes_zero(p + STATE_ZERO_AT, MAC_AT - STATE_ZERO_AT))
		return -EBADMSG;
	out->seq = le64_get(p);
	out->size = le64_get(p + 8);
	out->csize = le64_get(p + 16);
	out->clock = le64_get(p + 24);
	out->dclock = le64_get(p + 32);
	out->inlined = p[STATE_INLINE_AT] == 1;
	if (out->size > (out->inlined ? LAYOUT_INLINE_MAX : LAYOUT_SIZE_MAX) || out->csize > out->size ||
	    out->clock == 0 || out->clock > BLOCK_VER_MAX || out->dclock > out->clock)
		return -EBADMSG;
	return 0;
}

int header_state(const uint8_t page[static LAYOUT_PAGE], const uint8_t hdr[static 32],
    const uint8_t file_id[static CONTEXT_ID], struct header_state *out)
{
	const uint8_t *ruling = NULL;

	for (int which = 0; which < 2; which++) {
		const uint8_t *p = page + STATE_AT(which);

		if (state_in_place(p, which) && section_authentic(p, 'S', file_id, hdr) &&
		    (!ruling || le64_get(p) > le64_get(ruling)))
			ruling = p;
	}
	/* fields out of range do not hand the rule to the other one: it is history, never a fallback */
	return ruling ? state_decode(ruling, out) : -EBADMSG;
}

int header_state_hint(const uint8_t page[static LAYOUT_PAGE], struct header_state *out)
{
	struct header_state state;
	bool found = false;

	for (int which = 0; which < 2; which++) {
		const uint8_t *p = page + STATE_AT(which);

		if (!state_in_place(p, which) || state_decode(p, &state) != 0 || (found && state.seq <= out->seq))
			continue;
		*out = state;
		found = true;
	}
	return found ? 0 : -EBADMSG;
}

void header_put_state(uint8_t page[static LAYOUT_PAGE], const struct header_state *state, const uint8_t hdr[static 32],
    const uint8_t file_id[static CONTEXT_ID])
{
	uint8_t *p = page + STATE_AT(state->seq % 2 ? 0 : 1);

	memset(p, 0, SECTION);
	le64_put(p, state->seq);
	le64_put(p + 8, state->size);
	le64_put(p + 16, state->csize);
	le64_put(p + 24, state->clock);
	le64_put(p + 32, state->dclock);
	p[STATE_INLINE_AT] = state->inlined;
	section_mac(p + MAC_AT, p, 'S', file_id, hdr);
}
