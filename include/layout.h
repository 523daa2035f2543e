/* layout.h — where a file's units lie. Pure arithmetic of byokfs-format(5), layout 1 (format.md 3.3, 4, 6).
 *
 * A page is 4096 bytes. Application page k is plaintext bytes [4096k, 4096k+4096): its first 4064
 * bytes are sealed in data page k, its last 32, the spill, in the group page (or the root for k < 4). */
#ifndef BYOKFS_LAYOUT_H
#define BYOKFS_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#define LAYOUT_PAGE        4096u
#define LAYOUT_BODY        4064u
#define LAYOUT_SPILL       32u
#define LAYOUT_INLINE_MAX  1504u
#define LAYOUT_ROOT_DATA   4u
#define LAYOUT_ROOT_GROUPS 60u
#define LAYOUT_ROOT_L1     60u
#define LAYOUT_ROOT_L2     100u
#define LAYOUT_GROUP_FAN   106u
#define LAYOUT_NODE_FAN    672u
#define LAYOUT_DATA_MAX    4791070684ull     /* data pages */
#define LAYOUT_SIZE_MAX    19624225521664ull /* bytes of plaintext; beyond is EFBIG */

enum unit_type { UNIT_DATA = 'D', UNIT_GROUP = 'G', UNIT_L1 = 'L', UNIT_L2 = 'M', UNIT_ROOT = 'R' };

/* A unit's place in its parent: entry `slot` of (type, index); for the root slot counts within its own array
 * of the child's type (data 0..3, groups 0..59, L1 0..59, L2 0..99). */
struct layout_parent {
	enum unit_type type;
	uint64_t index;
	uint32_t slot;
};

/* Physical page of a unit (not UNIT_ROOT, which is page 0). index must be in range. */
uint64_t layout_phys(enum unit_type, uint64_t index);
/* The inverse; false for page 0 and for pages beyond the last unit. */
bool layout_unit_at(uint64_t phys, enum unit_type *, uint64_t *index);
struct layout_parent layout_parent(enum unit_type, uint64_t index);
/* Group number for nonces (2.4): data k<4: 0, else 1+(k-4)/106; group page g: g/106; others 0. */
uint32_t layout_group_number(enum unit_type, uint64_t index);
/* Number of data pages of a paged file of that size. */
static inline uint64_t layout_data_pages(uint64_t size)
{
	return (size + LAYOUT_PAGE - 1) / LAYOUT_PAGE;
}
/* P of section 6: backing pages implied by size (1 when inlined or empty). */
uint64_t layout_pages(uint64_t size, bool inlined);
/* st_size to give a clean backing file. */
uint64_t layout_hint(uint64_t size, bool inlined);
/* Plaintext size from st_size. false: the hint is invalid or the file unborn; ask STATE. */
bool layout_hint_decode(uint64_t st_size, uint64_t *size);

#endif
