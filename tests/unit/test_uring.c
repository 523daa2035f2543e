/* The transport's bytes (requests put together, answers taken apart, hostile lengths), which requests workers get, and
 * its beginning and end without a filesystem: on a file that is no FUSE device, and without memory. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cmocka.h>

#include "../../src/uring_internal.h"

#define ROOM 8192u

static struct uring_entry *entry(void)
{
	struct uring_entry *e = NULL;

	assert_int_equal(uring_entry_open(&e, NULL, ROOM), 0);
	assert_int_equal((uintptr_t)e->payload % 4096, 0);
	return e;
}

/* As the kernel leaves it. */
static void arrive(struct uring_entry *e, uint32_t opcode, size_t argument, size_t data)
{
	struct fuse_in_header in = {
		.len = (uint32_t)(sizeof(in) + argument + data), .opcode = opcode, .unique = 42, .nodeid = 7
	};

	memcpy(e->header->in_out, &in, sizeof(in));
	memset(e->header->op_in, 'a', sizeof(e->header->op_in));
	memset(e->payload, 'd', data < ROOM ? data : ROOM);
	e->header->ent = (struct uring_ent_in_out){ .commit_id = 42, .payload_sz = (uint32_t)data };
}

static void test_one_piece(void **state)
{
	static const size_t arguments[] = { 0, 8, 40, 128 }, data[] = { 0, 1, 6, 4096, ROOM };
	struct uring_entry *e = entry();

	(void)state;
	for (size_t i = 0; i < 4; i++)
		for (size_t k = 0; k < 5; k++) {
			void *request = NULL;
			size_t n = 0;
			char *p;

			arrive(e, FUSE_LOOKUP, arguments[i], data[k]);
			assert_int_equal(uring_flatten(e, &request, &n), 0);
			assert_int_equal(n, sizeof(struct fuse_in_header) + arguments[i] + data[k]);
			assert_memory_equal(request, e->header->in_out, sizeof(struct fuse_in_header));
			p = (char *)request + sizeof(struct fuse_in_header);
			for (size_t b = 0; b < arguments[i] + data[k]; b++)
				assert_int_equal(p[b], b < arguments[i] ? 'a' : 'd');
			assert_int_equal(p[arguments[i] + data[k]], 0); /* a name ends */
			assert_int_equal(e->commit_id, 42);
		}
	uring_entry_close(e);
}

static void test_impossible_lengths(void **state)
{
	static const struct {
		uint32_t len, data;
	} bad[] = { { 0, 0 }, { 39, 0 }, { 40, 1 }, { 40 + 129, 0 }, { 40 + 129 + 10, 10 }, { UINT32_MAX, 0 },
		{ 40 + ROOM + 1, ROOM + 1 }, { UINT32_MAX, UINT32_MAX }, { 40, UINT32_MAX }, { 39, UINT32_MAX } };
	struct uring_entry *e = entry();
	void *request;
	size_t n;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		arrive(e, FUSE_WRITE, 0, 0);
		memcpy(e->header->in_out, &bad[i].len, sizeof(bad[i].len));
		e->header->ent.payload_sz = bad[i].data;
		assert_int_equal(uring_flatten(e, &request, &n), -EPROTO);
	}
	uring_entry_close(e);
}

static struct fuse_out_header answer(struct uring_entry *e, int error, const struct iovec *more, int count)
{
	struct fuse_out_header out = { .unique = 42, .error = error, .len = 12345 };
	struct iovec iov[8] = { { .iov_base = &out, .iov_len = sizeof(out) } };
	struct fuse_out_header got;

	memcpy(iov + 1, more, (size_t)count * sizeof(*more));
	(void)uring_fill(e, iov, count + 1);
	memcpy(&got, e->header->in_out, sizeof(got));
	assert_int_equal(got.unique, 42);
	return got;
}

static void test_answers(void **state)
{
	struct uring_entry *e = entry();
	char text[] = "hello, world", big[ROOM + 1];
	struct iovec two[2] = { { text, 5 }, { text + 5, 7 } };
	struct fuse_out_header got = answer(e, 0, two, 2);

	(void)state;
	memset(big, 'b', sizeof(big));
	assert_int_equal(got.error, 0);
	assert_int_equal(got.len, sizeof(got) + 12);
	assert_int_equal(e->header->ent.payload_sz, 12);
	assert_memory_equal(e->payload, text, 12);
	/* An error has no body. */
	got = answer(e, -ENOENT, two, 2);
	assert_int_equal(got.error, -ENOENT);
	assert_int_equal(e->header->ent.payload_sz, 0);
	/* What just fits, and what does not. */
	two[0] = (struct iovec){ big, ROOM };
	assert_int_equal(answer(e, 0, two, 1).error, 0);
	assert_int_equal(e->header->ent.payload_sz, ROOM);
	two[0].iov_len = ROOM + 1;
	got = answer(e, 0, two, 1);
	assert_int_equal(got.error, -EIO);
	assert_int_equal(e->header->ent.payload_sz, 0);
	two[0].iov_len = ROOM;
	two[1].iov_len = 1;
	assert_int_equal(answer(e, 0, two, 2).error, -EIO);
	two[1].iov_len = SIZE_MAX;
	assert_int_equal(answer(e, 0, two, 2).error, -EIO);
	/* Already in its place. */
	memcpy(e->payload, text, 12);
	two[0] = (struct iovec){ e->payload, 12 };
	assert_int_equal(answer(e, 0, two, 1).error, 0);
	assert_memory_equal(e->payload, text, 12);
	uring_entry_close(e);
}

static size_t traces(const struct uring_entry *e)
{
	size_t n = 0;

	for (size_t i = 0; i < ROOM; i++)
		n += e->payload[i] != 0;
	return n;
}

static void test_nothing_is_left(void **state)
{
	struct uring_entry *e = entry();
	char big[ROOM];
	struct iovec iov = { big, ROOM };
	void *request;
	size_t n;

	(void)state;
	memset(big, 'b', sizeof(big));
	(void)answer(e, 0, &iov, 1);
	/* The next, shorter one. */
	arrive(e, FUSE_LOOKUP, 0, 6);
	assert_int_equal(uring_flatten(e, &request, &n), 0);
	assert_int_equal(traces(e), 6);
	iov.iov_len = 100;
	(void)answer(e, 0, &iov, 1);
	assert_int_equal(traces(e), 100);
	uring_wipe(e, 0);
	assert_int_equal(traces(e), 0);
	assert_int_equal(e->used, 0);
	uring_entry_close(e);
}

static unsigned class_of(uint32_t opcode, uint32_t size)
{
	struct {
		struct fuse_in_header in;
		struct fuse_read_in read;
	} r = { .in.opcode = opcode, .read.size = size };

	return uring_class(&r, opcode == FUSE_WRITE ? sizeof(r.in) + size : sizeof(r));
}

static void test_work(void **state)
{
	static struct uring u;
	unsigned lookup = class_of(FUSE_LOOKUP, 0);

	(void)state;
	assert_true(uring_work_wants(&u, class_of(FUSE_FSYNC, 0)));
	assert_true(uring_work_wants(&u, class_of(FUSE_READ, 128 * 1024)));
	assert_true(uring_work_wants(&u, class_of(FUSE_WRITE, 1 << 20)));
	assert_false(uring_work_wants(&u, class_of(FUSE_READ, 64 * 1024)));
	assert_false(uring_work_wants(&u, class_of(FUSE_WRITE, 4096)));
	assert_true(class_of(4096, UINT32_MAX) < URING_CLASSES);
	assert_true(class_of(UINT32_MAX, 0) < URING_CLASSES);
	/* One slow one says nothing; many do, and are forgotten. */
	assert_false(uring_work_wants(&u, lookup));
	uring_work_learn(&u, lookup, 50000000);
	assert_false(uring_work_wants(&u, lookup));
	for (int i = 0; i < 8; i++)
		uring_work_learn(&u, lookup, 5000000);
	assert_true(uring_work_wants(&u, lookup));
	assert_false(uring_work_wants(&u, class_of(FUSE_GETATTR, 0)));
	for (int i = 0; i < 100000; i++)
		uring_work_learn(&u, lookup, 5000000);
	assert_true(atomic_load(&u.slow[lookup]) <= 256);
	for (int i = 0; i < 20; i++)
		uring_work_learn(&u, lookup, 5000);
	assert_false(uring_work_wants(&u, lookup));
}

static void test_cpu_lists(void **state)
{
	static const char *const bad[] = { "", "\n", "x", "1-", "3-1", "0-16", "16", "1,,2", "1;2", "-1" };
	bool set[16];

	(void)state;
	assert_int_equal(uring_cpu_list("0-1\n", set, 16), 2);
	assert_true(set[0] && set[1] && !set[2]);
	assert_int_equal(uring_cpu_list("0", set, 16), 1);
	assert_int_equal(uring_cpu_list("0,2-3,8,15\n", set, 16), 5);
	assert_true(set[0] && !set[1] && set[2] && set[3] && set[8] && set[15]);
	assert_int_equal(uring_cpu_list("1-3,2", set, 16), 3);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(uring_cpu_list(bad[i], set, 16), 0);
}

static void never(void *arg, void *request, size_t n)
{
	(void)request;
	(void)n;
	*(bool *)arg = true;
}

/* What io_uring is refused here is no matter of this test. */
static bool forbidden(int r)
{
	return r == -EPERM || r == -ENOSYS;
}

static void test_no_fuse_device(void **state)
{
	CLEANUP_FD int fd = memfd_create("none", MFD_CLOEXEC);
	struct fuse_out_header head = { .len = sizeof(head), .unique = 2 };
	struct iovec iov = { &head, sizeof(head) };
	char why[URING_WHY];
	bool called = false;
	struct uring_params p = { .device = fd, .payload = ROOM, .workers = 2, .handle = never, .arg = &called };
	struct uring *u = NULL;
	int r = uring_open(&u, &p, why);

	(void)state;
	if (forbidden(r))
		skip();
	assert_int_equal(r, 0);
	assert_null(uring_room(1));
	assert_int_equal(uring_answer(u, &iov, 1), -ESRCH);
	assert_int_equal(uring_go(u), -EOPNOTSUPP);
	uring_stop(u);
	assert_int_equal(uring_answer(u, &iov, 1), -ESRCH);
	uring_close(u);
	/* Never begun. */
	assert_int_equal(uring_open(&u, &p, why), 0);
	uring_stop(u);
	uring_close(u);
	assert_false(called);
	uring_close(NULL);
}

/* Whatever is missing: rings, entries, stacks of threads. All is taken down again. */
static void test_no_memory(void **state)
{
	struct uring_params p = { .device = 0, .payload = 1 << 20, .workers = 3, .handle = never };
	struct rlimit old, small;
	char why[URING_WHY];
	struct uring *u = NULL;
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "r");
	int failures = 0, last = 0;

	(void)state;
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu", &pages), 1);
	(void)fclose(f);
	if (pages > 1ul << 28)
		skip(); /* a sanitizer's address space */
	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	small = old;
	for (unsigned mib = 1; mib < 80; mib += 3) {
		small.rlim_cur = pages * 4096 + ((rlim_t)mib << 20);
		assert_int_equal(setrlimit(RLIMIT_AS, &small), 0);
		last = uring_open(&u, &p, why);
		if (last == 0) {
			uring_stop(u);
			uring_close(u);
		}
		failures += last != 0;
		assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
		if (forbidden(last))
			skip();
		if (last)
			assert_true(strlen(why) > 0);
	}
	assert_true(failures > 3);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_one_piece), cmocka_unit_test(test_impossible_lengths),
		cmocka_unit_test(test_answers), cmocka_unit_test(test_nothing_is_left), cmocka_unit_test(test_work),
		cmocka_unit_test(test_cpu_lists), cmocka_unit_test(test_no_fuse_device),
		cmocka_unit_test(test_no_memory) };

	return cmocka_run_group_tests_name("uring", tests, NULL, NULL);
}
