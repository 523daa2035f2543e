/* What the hooks read out of requests and put into the INIT reply, on bytes; and notifications, into a pipe. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include <sys/sysmacros.h>

#include "../../src/fuseio_internal.h"

struct request {
	struct fuse_in_header in;
	union {
		struct fuse_init_in init;
		struct fuse_write_in write;
		struct fuse_setattr_in setattr;
		struct fuse_open_in open;
		struct fuse_create_in create;
	} u;
};

static void test_parse_init(void **state)
{
	struct request r = { .in = { .opcode = FUSE_INIT, .unique = 77 },
		.u.init = { .major = 7, .minor = 44, .flags = 0x50040000 } };
	struct fuseio_offer offer = { 0 };

	(void)state;
	assert_true(fuseio_parse_init(&r, sizeof(r.in) + sizeof(r.u.init), &offer));
	assert_int_equal(offer.unique, 77);
	assert_int_equal(offer.flags, 0x50040000);
	/* The short form of older kernels. */
	assert_true(fuseio_parse_init(&r, sizeof(r.in) + 16, &offer));
	for (size_t n = 0; n < sizeof(r.in) + 16; n++)
		assert_false(fuseio_parse_init(&r, n, &offer));
	/* The upper half counts where the lower says that there is one. */
	r.u.init.flags2 = FUSEIO_OVER_IO_URING;
	assert_true(fuseio_parse_init(&r, sizeof(r.in) + sizeof(r.u.init), &offer));
	assert_int_equal(offer.flags2, FUSEIO_OVER_IO_URING);
	assert_true(fuseio_parse_init(&r, sizeof(r.in) + 16, &offer));
	assert_int_equal(offer.flags2, 0);
	r.u.init.flags = 0x10040000;
	assert_true(fuseio_parse_init(&r, sizeof(r.in) + sizeof(r.u.init), &offer));
	assert_int_equal(offer.flags2, 0);
	r.in.opcode = FUSE_LOOKUP;
	assert_false(fuseio_parse_init(&r, sizeof(r.in) + sizeof(r.u.init), &offer));
}

static void test_patch_init(void **state)
{
	struct fuseio_offer offer = { .flags = 0xffffffff };
	struct fuse_init_out out = { .major = 7, .minor = 31, .flags = 0x1021, .max_write = 0x100000 };

	(void)state;
	assert_true(fuseio_patch_init(&offer, &out, sizeof(out)));
	assert_int_equal(out.flags, 0x1021 | FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2);
	assert_int_equal(out.flags & FUSE_SETXATTR_EXT, 0);
	assert_int_equal(out.max_write, 0x100000);
	assert_int_equal(out.minor, 31);
	/* Only what was offered. */
	out.flags = 1;
	offer.flags = FUSE_HANDLE_KILLPRIV_V2;
	assert_true(fuseio_patch_init(&offer, &out, 24));
	assert_int_equal(out.flags, 1 | FUSE_HANDLE_KILLPRIV_V2);
	offer.flags = 0;
	out.flags = 0x20;
	assert_true(fuseio_patch_init(&offer, &out, sizeof(out)));
	assert_int_equal(out.flags, 0x20);
	offer.flags = 0xffffffff;
	assert_false(fuseio_patch_init(&offer, &out, 8));
	assert_int_equal(out.flags, 0x20);
}

static void test_patch_init2(void **state)
{
	struct fuse_init_out out = { .flags = 0x21, .flags2 = 0xdead };

	(void)state;
	assert_false(fuseio_patch_init2(&out, 24, FUSEIO_OVER_IO_URING));
	assert_int_equal(out.flags, 0x21);
	assert_true(fuseio_patch_init2(&out, sizeof(out), FUSEIO_OVER_IO_URING));
	assert_int_equal(out.flags, 0x21 | FUSE_INIT_EXT);
	assert_int_equal(out.flags2, 1 << 9);
	out.flags2 = 4;
	assert_true(fuseio_patch_init2(&out, sizeof(out), FUSEIO_OVER_IO_URING));
	assert_int_equal(out.flags2, 4 | 1 << 9);
}

/* Sets one u32 of the argument to each single bit: only the right one may count. */
static void check_bit(struct request *r, uint32_t opcode, uint32_t *field, unsigned bit, size_t n)
{
	r->in.opcode = opcode;
	for (unsigned i = 0; i < 32; i++) {
		*field = 1u << i;
		assert_int_equal(fuseio_parse_kill(r, sizeof(r->in) + n), i == bit);
	}
	*field = 1u << bit;
	assert_false(fuseio_parse_kill(r, sizeof(r->in) - 1));
	assert_false(fuseio_parse_kill(r, sizeof(r->in)));
	r->in.opcode = FUSE_GETATTR;
	assert_false(fuseio_parse_kill(r, sizeof(r->in) + n));
	*field = 0;
}

static void test_parse_kill(void **state)
{
	struct request r = { 0 };

	(void)state;
	check_bit(&r, FUSE_WRITE, &r.u.write.write_flags, 2, sizeof(r.u.write));
	check_bit(&r, FUSE_SETATTR, &r.u.setattr.valid, 11, sizeof(r.u.setattr));
	check_bit(&r, FUSE_OPEN, &r.u.open.open_flags, 0, sizeof(r.u.open));
	check_bit(&r, FUSE_CREATE, &r.u.create.open_flags, 0, sizeof(r.u.create));
	/* The neighbours of those fields do not. */
	memset(&r.u, 0xff, sizeof(r.u));
	r.u.write.write_flags = 0;
	r.in.opcode = FUSE_WRITE;
	assert_false(fuseio_parse_kill(&r, sizeof(r)));
}

static void test_notifications(void **state)
{
	struct {
		struct fuse_out_header head;
		struct fuse_notify_inval_inode_out body;
	} got;
	int fd[2];

	(void)state;
	assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
	assert_int_equal(fuseio_inval_inode(fd[1], 4711), 0);
	assert_int_equal(read(fd[0], &got, sizeof(got)), sizeof(got));
	assert_int_equal(got.head.len, sizeof(got));
	assert_int_equal(got.head.unique, 0);
	assert_int_equal(got.head.error, 2);
	assert_int_equal(got.body.ino, 4711);
	assert_int_equal(got.body.off, 0);
	assert_int_equal(got.body.len, 0);
	assert_int_equal(fuseio_inc_epoch(fd[1]), 0);
	assert_int_equal(read(fd[0], &got, sizeof(got)), sizeof(got.head));
	assert_int_equal(got.head.len, sizeof(got.head));
	assert_int_equal(got.head.error, 8);
	assert_int_equal(fuseio_inc_epoch(fd[0]), -EBADF);
	(void)close(fd[0]);
	(void)close(fd[1]);
	assert_int_equal(fuseio_inval_inode(-1, 1), -EBADF);
}

static void test_sysfs(void **state)
{
	unsigned connection;

	(void)state;
	assert_int_equal(fuseio_connection("/", &connection), 0);
	assert_int_equal(fuseio_connection("/does/not/exist", &connection), -ENOENT);
	/* No file system has this number. */
	assert_int_equal(fuseio_readahead(4294967295u, 1024), -ENOENT);
}

static uint64_t taken(enum fuseio_kind kind, uint64_t *sum)
{
	struct histogram_view v = { 0 };

	fuseio_latency(kind, &v);
	*sum = v.sum_ns;
	return v.count;
}

static void begin(uint64_t unique, uint32_t opcode, uint64_t now)
{
	const struct fuse_in_header in = { .len = sizeof(in), .unique = unique, .opcode = opcode };

	fuseio_time_begin(&in, sizeof(in), now);
}

/* Answers count once, in their kind, whatever the order; what nobody asked for does not. */
static void test_times(void **state)
{
	uint64_t sum;

	(void)state;
	begin(2, FUSE_READ, 1000);
	begin(4, FUSE_WRITE, 2000);
	fuseio_time_end(4, 7000);
	fuseio_time_end(2, 4000);
	fuseio_time_end(2, 9000);
	fuseio_time_end(0, 9000);
	fuseio_time_end(6, 9000);
	assert_int_equal(taken(FUSEIO_READ, &sum), 1);
	assert_int_equal(sum, 3000);
	assert_int_equal(taken(FUSEIO_WRITE, &sum), 1);
	assert_int_equal(sum, 5000);
	begin(8, 4711, 0); /* an opcode of the future */
	fuseio_time_end(8, 10);
	begin(10, FUSE_RMDIR, 0);
	fuseio_time_end(10, 20);
	assert_int_equal(taken(FUSEIO_OTHER, &sum), 1);
	assert_int_equal(taken(FUSEIO_UNLINK, &sum), 1);
	for (unsigned i = 0; i < FUSEIO_KINDS; i++)
		assert_true(*fuseio_kind_name(i));
}

/* Requests without an answer leave no trace; a request cut short is none. */
static void test_times_of_nothing(void **state)
{
	const struct fuse_in_header in = { .unique = 14, .opcode = FUSE_LOOKUP };
	uint64_t sum;

	(void)state;
	begin(12, FUSE_FORGET, 0);
	fuseio_time_end(12, 10);
	fuseio_time_begin(&in, sizeof(in) - 1, 0);
	fuseio_time_end(14, 10);
	begin(0, FUSE_LOOKUP, 0);
	fuseio_time_end(0, 10);
	assert_int_equal(taken(FUSEIO_LOOKUP, &sum), 0);
}

/* More under way than there are places: some go unmeasured, none is measured wrongly. */
static void test_times_of_many(void **state)
{
	uint64_t sum, n;

	(void)state;
	for (uint64_t i = 1; i <= 10000; i++)
		begin(1000 + 2 * i, FUSE_FLUSH, 1000);
	for (uint64_t i = 1; i <= 10000; i++)
		fuseio_time_end(1000 + 2 * i, 3000);
	n = taken(FUSEIO_FLUSH, &sum);
	assert_in_range(n, 1, 9999);
	assert_int_equal(sum, 2000 * n);
}

/* The two requests that libfuse does not know become ones that it does; all others stay as they are. */
static void test_translate(void **state)
{
	struct request r = { 0 };

	(void)state;
	for (uint32_t opcode = 0; opcode < 100; opcode++) {
		r.in = (struct fuse_in_header){ .opcode = opcode, .unique = 7, .nodeid = 8 };
		assert_int_equal(fuseio_translate(&r, sizeof(r)), opcode == 51 || opcode == 52);
		assert_int_equal(r.in.opcode, opcode == 51 ? FUSE_CREATE : opcode == 52 ? FUSE_GETATTR : opcode);
		assert_int_equal(fuseio_wants_birth(), opcode == 52);
		assert_int_equal(r.in.unique, 7);
		assert_int_equal(r.in.nodeid, 8);
	}
	r.in.opcode = 51;
	assert_false(fuseio_translate(&r, sizeof(r.in) - 1));
	assert_int_equal(r.in.opcode, 51);
}

static void test_statx(void **state)
{
	struct stat st = { .st_ino = 11,
		.st_mode = S_IFREG | 0640,
		.st_nlink = 3,
		.st_uid = 4000000000u,
		.st_gid = 5,
		.st_rdev = makedev(4095, 1048575),
		.st_size = 1ll << 40,
		.st_blksize = 4096,
		.st_blocks = 77,
		.st_atim = { -5, 6 },
		.st_mtim = { 7, 8 },
		.st_ctim = { 9, 10 } };
	struct statx born = { .stx_mask = STATX_BTIME, .stx_btime = { .tv_sec = -12, .tv_nsec = 13 } };
	struct fuseio_statx out;

	(void)state;
	fuseio_statx(&st, &born, 1.5, &out);
	assert_int_equal(out.attr_valid, 1);
	assert_int_equal(out.attr_valid_nsec, 500000000);
	assert_int_equal(out.mask, STATX_BASIC_STATS | STATX_BTIME);
	assert_true(out.ino == 11 && out.mode == (S_IFREG | 0640) && out.nlink == 3 && out.uid == 4000000000u);
	assert_true(out.gid == 5 && out.size == 1ull << 40 && out.blksize == 4096 && out.blocks == 77);
	assert_true(out.rdev_major == 4095 && out.rdev_minor == 1048575);
	assert_true(out.atime.sec == -5 && out.atime.nsec == 6 && out.mtime.sec == 7 && out.mtime.nsec == 8);
	assert_true(out.ctime.sec == 9 && out.ctime.nsec == 10 && out.btime.sec == -12 && out.btime.nsec == 13);
	born.stx_mask = 0;
	fuseio_statx(&st, &born, 0, &out);
	assert_int_equal(out.mask, STATX_BASIC_STATS);
	assert_true(out.btime.sec == 0 && out.btime.nsec == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_parse_init), cmocka_unit_test(test_patch_init),
		cmocka_unit_test(test_patch_init2), cmocka_unit_test(test_parse_kill),
		cmocka_unit_test(test_notifications),
		cmocka_unit_test(test_sysfs),
		cmocka_unit_test(test_times), cmocka_unit_test(test_times_of_nothing),
		cmocka_unit_test(test_times_of_many), cmocka_unit_test(test_translate), cmocka_unit_test(test_statx) };

	return cmocka_run_group_tests_name("fuseio", tests, NULL, NULL);
}
