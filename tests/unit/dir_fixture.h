/* dir_fixture.h — a scratch directory in each names mode, and one whose backing offers nothing but the old calls.
 */
#ifndef BYOKFS_DIR_FIXTURE_H
#define BYOKFS_DIR_FIXTURE_H

#include "../../src/dir_internal.h"
#include "backing_fixture.h"

static struct backing bk;
static const struct dir_owner nobody = { .set = false };
static const uint8_t page0[LAYOUT_PAGE] = { 0x89, 'B', 'Y', 'O', 'K' };

static inline int setup_mode(enum name_mode mode)
{
	backing_open(&bk, mode);
	dir_means.no_tmpfile = dir_means.no_empty_path = dir_means.no_noreplace = dir_means.no_exchange = false;
	return 0;
}

static inline int setup(void **state)
{
	(void)state;
	return setup_mode(NAME_SIV64);
}

/* A backing like NFS: nothing but the old calls. */
static inline int setup_poor(void **state)
{
	(void)state;
	(void)setup_mode(NAME_SIV64);
	dir_means.no_tmpfile = dir_means.no_empty_path = dir_means.no_noreplace = dir_means.no_exchange = true;
	return 0;
}

static inline int setup_siv32(void **state)
{
	(void)state;
	return setup_mode(NAME_SIV32);
}

static inline int setup_plain(void **state)
{
	(void)state;
	return setup_mode(NAME_PLAIN);
}

static inline int teardown(void **state)
{
	(void)state;
	backing_close(&bk);
	return 0;
}

static inline const char *name_of(size_t len, char fill)
{
	static char names[4][NAME_MAX_PLAIN + 2];
	static unsigned turn;
	char *out = names[turn++ % 4];

	memset(out, fill, len);
	out[len] = 0;
	return out;
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
#define POOR(fn)                                                     \
	{                                                            \
		"poor backing: " #fn, fn, setup_poor, teardown, NULL \
	}

#endif
