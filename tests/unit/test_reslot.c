/* The sealed key in page 0 is exchanged: every page that is none, who may write, and what must not change. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "io.h"
#include "reslot.h"

static char path[] = "/tmp/byokfs-reslot-XXXXXX";
static const uint8_t file_id[CONTEXT_ID] = { 0xf1, 2, 3 };
static uint8_t page[LAYOUT_PAGE];

static struct header_slot slot_of(uint32_t seq, uint8_t fill)
{
	struct header_slot s = { .seq = seq, .wrap = HEADER_WRAP_KMS, .generation = 3, .provider = 1, .len = 184 };

	memset(s.key_hash, fill, sizeof(s.key_hash));
	memset(s.material, fill, sizeof(s.material));
	memset(s.blob, fill, s.len);
	s.sealed_at = 1767225600;
	return s;
}

/* Every byte that is no slot has a value to be missed. */
static void make_page(uint32_t a, uint32_t b)
{
	const struct file_keys keys = { .hdr = { 7 } };
	struct header_ident ident = { .suite = 1, .store = { 1 }, .domain = { 2 } };

	for (size_t i = 0; i < sizeof(page); i++)
		page[i] = (uint8_t)(i * 7 + i / 256);
	memcpy(ident.file, file_id, CONTEXT_ID);
	header_put_ident(page, &ident, &keys);
	for (int which = 0; which < 2; which++) {
		struct header_slot s = slot_of(which ? b : a, (uint8_t)(0xa0 + which));

		if (s.seq)
			header_put_slot(page, which, &s);
		else
			header_clear_slot(page, which);
	}
}

static void put_page(void)
{
	const struct timespec old[2] = { { 1000000000, 5 }, { 1100000000, 7 } };
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(io_pwrite(fd, page, sizeof(page), 0), 0);
	assert_int_equal(io_pwrite(fd, "data", 4, LAYOUT_PAGE), 0);
	assert_int_equal(futimens(fd, old), 0);
	assert_int_equal(close(fd), 0);
}

static int open_file(int flags)
{
	int fd = open(path, flags | O_CLOEXEC | O_NOATIME); /* as whoever exchanges slots should */

	assert_true(fd >= 0);
	return fd;
}

static int rewrite(uint32_t seq, const struct header_slot *fresh)
{
	int fd = open_file(O_RDWR), r = reslot_write(fd, file_id, seq, fresh);

	assert_int_equal(close(fd), 0);
	return r;
}

static struct reslot_view view(void)
{
	struct reslot_view v;
	int fd = open_file(O_RDONLY);

	assert_int_equal(reslot_read(fd, &v), 0);
	assert_int_equal(close(fd), 0);
	return v;
}

/* The backing is the page, but for one slot; times are as they were. */
static void only_slot_changed(int which)
{
	uint8_t now[LAYOUT_PAGE + 4];
	struct stat st;
	int fd = open_file(O_RDONLY);

	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(io_pread(fd, now, sizeof(now), 0), sizeof(now));
	assert_int_equal(close(fd), 0);
	assert_memory_equal(now, page, HEADER_SLOT_AT(which));
	assert_memory_equal(
	    now + HEADER_SLOT_AT(which + 1), page + HEADER_SLOT_AT(which + 1), LAYOUT_PAGE - HEADER_SLOT_AT(which + 1));
	assert_memory_equal(now + LAYOUT_PAGE, "data", 4);
	assert_int_equal(st.st_size, sizeof(now));
	assert_int_equal(st.st_atim.tv_sec, 1000000000);
	assert_int_equal(st.st_atim.tv_nsec, 5);
	assert_int_equal(st.st_mtim.tv_sec, 1100000000);
	assert_int_equal(st.st_mtim.tv_nsec, 7);
}

static void both_slots(void **state)
{
	struct header_slot fresh = slot_of(99, 0x11); /* its seq is ignored */
	struct reslot_view v;

	(void)state;
	make_page(1, 0);
	put_page();
	v = view();
	assert_int_equal(v.which, 0);
	assert_false(v.have_other);
	assert_memory_equal(v.ident.file, file_id, CONTEXT_ID);
	assert_int_equal(rewrite(1, &fresh), 0);
	only_slot_changed(1);
	v = view();
	assert_int_equal(v.which, 1);
	assert_int_equal(v.ruling.seq, 2);
	assert_memory_equal(v.ruling.key_hash, fresh.key_hash, 8);
	assert_memory_equal(v.ruling.blob, fresh.blob, fresh.len);
	assert_int_equal(v.ruling.generation, 3);
	assert_true(v.have_other);
	assert_int_equal(v.other.seq, 1);

	make_page(3, 4); /* B rules: A is written, whatever it held */
	put_page();
	assert_int_equal(rewrite(4, &fresh), 0);
	only_slot_changed(0);
	v = view();
	assert_int_equal(v.which, 0);
	assert_int_equal(v.ruling.seq, 5);
	assert_int_equal(v.other.seq, 4);
}

static void emptied(void **state)
{
	struct reslot_view v;

	(void)state;
	make_page(3, 4);
	put_page();
	assert_int_equal(rewrite(4, NULL), 0);
	only_slot_changed(0);
	v = view();
	assert_int_equal(v.which, 1);
	assert_int_equal(v.ruling.seq, 4);
	assert_false(v.have_other);
	assert_int_equal(rewrite(4, NULL), 0); /* again: nothing to lose */
	assert_int_equal(view().ruling.seq, 4);
	page[HEADER_SLOT_AT(0) + 70] ^= 1; /* a damaged slot goes as well */
	put_page();
	assert_false(view().have_other);
	assert_int_equal(rewrite(4, NULL), 0);
	only_slot_changed(0);
	v = view();
	assert_int_equal(v.ruling.seq, 4);
}

static void stale(void **state)
{
	struct header_slot fresh = slot_of(0, 0x11);
	uint8_t other[CONTEXT_ID];
	int fd;

	(void)state;
	make_page(1, 0);
	put_page();
	assert_int_equal(rewrite(0, &fresh), -ESTALE);
	assert_int_equal(rewrite(2, &fresh), -ESTALE);
	assert_int_equal(rewrite(2, NULL), -ESTALE);
	memcpy(other, file_id, CONTEXT_ID);
	other[15] ^= 1;
	fd = open_file(O_RDWR);
	assert_int_equal(reslot_write(fd, other, 1, &fresh), -ESTALE);
	assert_int_equal(close(fd), 0);
	only_slot_changed(0);
	assert_int_equal(view().ruling.seq, 1);
	make_page(UINT32_MAX, 7);
	put_page();
	assert_int_equal(rewrite(UINT32_MAX, &fresh), -EOVERFLOW);
	assert_int_equal(view().other.seq, 7);
	assert_int_equal(rewrite(UINT32_MAX, NULL), 0);
	assert_false(view().have_other);
}

static void bad_slots(void **state)
{
	struct header_slot fresh = slot_of(0, 0x11);

	(void)state;
	make_page(1, 0);
	put_page();
	fresh.len = 0;
	assert_int_equal(rewrite(1, &fresh), -EINVAL);
	fresh.len = HEADER_BLOB_MAX + 1;
	assert_int_equal(rewrite(1, &fresh), -EINVAL);
	fresh = slot_of(0, 0x11);
	fresh.wrap = 3;
	assert_int_equal(rewrite(1, &fresh), -EINVAL);
	fresh.wrap = HEADER_WRAP_KMS;
	fresh.provider = 0;
	assert_int_equal(rewrite(1, &fresh), -EINVAL);
	assert_false(view().have_other);
	only_slot_changed(1);
}

static void expect(int wanted)
{
	struct header_slot fresh = slot_of(0, 0x11);
	struct reslot_view v;
	int fd;

	put_page();
	fd = open_file(O_RDWR);
	assert_int_equal(reslot_read(fd, &v), wanted);
	assert_int_equal(reslot_write(fd, file_id, 1, &fresh), wanted);
	assert_int_equal(reslot_write(fd, file_id, 1, NULL), wanted);
	assert_int_equal(close(fd), 0);
	only_slot_changed(1);
}

static void no_page(void **state)
{
	static const size_t bad[] = { 0, 7, 8, 10, 11, 12, 100, 479 }; /* magic, version, layout, suite, flags, zeros */
	struct header_slot fresh = slot_of(0, 0x11);
	struct reslot_view v;
	int fd;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		make_page(1, 0);
		page[bad[i]] ^= 0x40;
		expect(-EBADMSG);
	}
	make_page(0, 0);
	expect(-EBADMSG);
	make_page(1, 0);
	page[HEADER_SLOT_AT(0) + 508] ^= 1;
	expect(-EBADMSG);
	memset(page, 0, sizeof(page));
	expect(-ENODATA);
	for (off_t n = 0; n < (off_t)LAYOUT_PAGE; n += 1365) {
		make_page(1, 0);
		put_page();
		assert_int_equal(truncate(path, n), 0);
		fd = open_file(O_RDWR);
		assert_int_equal(reslot_read(fd, &v), -ENODATA);
		assert_int_equal(reslot_write(fd, file_id, 1, &fresh), -ENODATA);
		assert_int_equal(close(fd), 0);
	}
}

static void wrong_descriptors(void **state)
{
	struct header_slot fresh = slot_of(0, 0x11);
	struct reslot_view v;
	int fd;

	(void)state;
	make_page(1, 0);
	put_page();
	fd = open_file(O_RDONLY);
	assert_int_equal(reslot_read(fd, &v), 0);
	assert_int_equal(reslot_write(fd, file_id, 1, &fresh), -EBADF);
	assert_int_equal(reslot_write(fd, file_id, 1, NULL), -EBADF);
	assert_int_equal(close(fd), 0);
	assert_false(view().have_other);
	fd = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(reslot_write(fd, file_id, 1, &fresh), -EINVAL);
	assert_int_equal(close(fd), 0);
	fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
	assert_int_equal(reslot_write(fd, file_id, 1, &fresh), -EINVAL);
	assert_int_equal(close(fd), 0);
	assert_int_equal(reslot_write(-1, file_id, 1, &fresh), -EBADF);
	assert_int_equal(reslot_read(-1, &v), -EBADF);
}

/* Somebody else writes the rest of page 0, all but the slots, a thousand times over while slots are exchanged. */
static atomic_bool stop;
static atomic_uint turns;

static void *scribble(void *arg)
{
	int fd = open_file(O_RDWR);
	uint8_t root[LAYOUT_PAGE - HEADER_ROOT_AT];

	(void)arg;
	for (unsigned n = 1; !atomic_load(&stop); n++) {
		memset(root, (int)n, sizeof(root));
		if (io_pwrite(fd, root, sizeof(root), HEADER_ROOT_AT))
			break;
		atomic_store(&turns, n);
	}
	(void)close(fd);
	return NULL;
}

static void undoes_nothing(void **state)
{
	struct header_slot fresh = slot_of(0, 0x11);
	uint8_t now[LAYOUT_PAGE];
	uint32_t seq = 1;
	pthread_t t;
	int fd;

	(void)state;
	make_page(1, 0);
	put_page();
	assert_int_equal(pthread_create(&t, NULL, scribble, NULL), 0);
	while (seq < 1000 || atomic_load(&turns) < 1000)
		assert_int_equal(rewrite(seq++, &fresh), 0);
	atomic_store(&stop, true);
	assert_int_equal(pthread_join(t, NULL), 0);
	fd = open_file(O_RDONLY);
	assert_int_equal(io_pread(fd, now, sizeof(now), 0), sizeof(now));
	assert_int_equal(close(fd), 0);
	for (size_t i = HEADER_ROOT_AT; i < LAYOUT_PAGE; i++)
		assert_int_equal(now[i], (uint8_t)atomic_load(&turns));
	assert_memory_equal(now, page, HEADER_SLOT_AT(0));
	assert_int_equal(view().ruling.seq, seq);
}

static int setup(void **state)
{
	int fd = mkstemp(path);

	(void)state;
	return fd < 0 ? -1 : close(fd);
}

static int teardown(void **state)
{
	(void)state;
	return unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(both_slots),
		cmocka_unit_test(emptied),
		cmocka_unit_test(stale),
		cmocka_unit_test(bad_slots),
		cmocka_unit_test(no_page),
		cmocka_unit_test(wrong_descriptors),
		cmocka_unit_test(undoes_nothing),
	};

	return cmocka_run_group_tests_name("reslot", tests, setup, teardown);
}
