/* Whole reads and writes, small files, replacement without litter, clocks. */
#include "vectors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io.h"

struct place {
	char path[40];
	int dir;
};

static int setup(void **state)
{
	static struct place p;

	(void)snprintf(p.path, sizeof(p.path), "/tmp/byokfs-io-XXXXXX");
	assert_non_null(mkdtemp(p.path));
	p.dir = open(p.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(p.dir >= 0);
	*state = &p;
	return 0;
}

/* Removes what is there; returns the number of entries. */
static int empty(const struct place *p)
{
	DIR *d = opendir(p->path);
	struct dirent *e;
	int n = 0;

	assert_non_null(d);
	while ((e = readdir(d)) != NULL) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		assert_int_equal(unlinkat(p->dir, e->d_name, e->d_type == DT_DIR ? AT_REMOVEDIR : 0), 0);
		n++;
	}
	(void)closedir(d);
	return n;
}

static int teardown(void **state)
{
	struct place *p = *state;

	(void)empty(p);
	(void)close(p->dir);
	return rmdir(p->path);
}

static int make(const struct place *p, const char *name)
{
	int fd = openat(p->dir, name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	return fd;
}

static void test_pread_pwrite(void **state)
{
	const struct place *p = *state;
	CLEANUP_FD int fd = make(p, "f");
	char buf[10] = "";

	assert_int_equal(io_pwrite(fd, "abcdef", 6, 3), 0);
	assert_int_equal(io_pwrite(fd, "", 0, 100), 0);
	assert_int_equal(io_pread(fd, buf, 4, 3), 4);
	assert_memory_equal(buf, "abcd", 4);
	assert_int_equal(io_pread(fd, buf, 10, 5), 4);
	assert_memory_equal(buf, "cdef", 4);
	assert_int_equal(io_pread(fd, buf, 10, 9), 0);
	assert_int_equal(io_pread(-1, buf, 1, 0), -EBADF);
	assert_int_equal(io_pwrite(-1, buf, 1, 0), -EBADF);
}

/* More elements than one pwritev(2) takes, empty ones among them. */
static void test_pwritev(void **state)
{
	enum { PIECES = 3 * IOV_MAX + 17 };
	const struct place *p = *state;
	static struct iovec iov[PIECES];
	static char data[PIECES * 2], back[PIECES * 2];
	CLEANUP_FD int fd = make(p, "f");
	size_t n = 0;

	for (size_t i = 0; i < PIECES; i++) {
		size_t len = i % 3;

		iov[i] = (struct iovec){ data + n, len };
		for (size_t j = 0; j < len; j++)
			data[n + j] = (char)(i * 7 + j);
		n += len;
	}
	assert_int_equal(io_pwritev(fd, iov, PIECES, 50), 0);
	assert_int_equal(io_pread(fd, back, sizeof(back), 50), n);
	assert_memory_equal(back, data, n);
	assert_int_equal(io_pwritev(fd, iov, 0, 0), 0);
}

/* RLIMIT_FSIZE makes the kernel write short and then refuse: both halves of the contract. */
static void test_short_writes(void **state)
{
	const struct place *p = *state;
	struct rlimit old, tight;
	struct iovec iov[2] = { { (char[]){ "abcdef" }, 6 }, { (char[]){ "ghijkl" }, 6 } };
	CLEANUP_FD int fd = make(p, "f");
	char back[20];
	int one, vec;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	(void)signal(SIGXFSZ, SIG_IGN);
	tight = old;
	tight.rlim_cur = 8;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
	one = io_pwrite(fd, "0123456789", 10, 0);
	vec = io_pwritev(fd, iov, 2, 0);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(one, -EFBIG);
	assert_int_equal(vec, -EFBIG);
	assert_int_equal(io_pread(fd, back, sizeof(back), 0), 8);
	assert_memory_equal(back, "abcdefgh", 8);
}

static void test_read_file(void **state)
{
	const struct place *p = *state;
	static char big[5000];
	CLEANUP_FD int fd = make(p, "f");
	CLEANUP_FREE char *text = NULL, *empty_text = NULL;
	size_t len;

	for (size_t i = 0; i < sizeof(big); i++)
		big[i] = (char)(i * 31);
	assert_int_equal(io_read_file(p->dir, "f", 10, &empty_text, &len), 0);
	assert_int_equal(len, 0);
	assert_string_equal(empty_text, "");
	assert_int_equal(io_pwrite(fd, big, sizeof(big), 0), 0);
	assert_int_equal(io_read_file(p->dir, "f", sizeof(big), &text, &len), 0);
	assert_int_equal(len, sizeof(big));
	assert_memory_equal(text, big, len);
	assert_int_equal(text[len], 0);
}

static void test_read_file_refuses(void **state)
{
	const struct place *p = *state;
	CLEANUP_FD int fd = make(p, "f");
	char *text = NULL;
	size_t len;

	assert_int_equal(io_pwrite(fd, "12345", 5, 0), 0);
	assert_int_equal(symlinkat("f", p->dir, "link"), 0);
	assert_int_equal(mkfifoat(p->dir, "fifo", 0600), 0);
	assert_int_equal(mkdirat(p->dir, "dir", 0700), 0);
	assert_int_equal(io_read_file(p->dir, "f", 4, &text, &len), -EFBIG);
	assert_int_equal(io_read_file(p->dir, "none", 4, &text, &len), -ENOENT);
	assert_int_equal(io_read_file(p->dir, "link", 99, &text, &len), -ELOOP);
	assert_int_equal(io_read_file(p->dir, "fifo", 99, &text, &len), -EINVAL);
	assert_int_equal(io_read_file(p->dir, "dir", 99, &text, &len), -EINVAL);
	assert_null(text);
}

/* procfs says size 0 and then has content: the buffer grows, and the cap holds all the same. */
static void test_read_file_of_unknown_size(void **state)
{
	CLEANUP_FREE char *text = NULL;
	char *other = NULL;
	size_t len;

	(void)state;
	assert_int_equal(io_read_file(AT_FDCWD, "/proc/self/smaps", 1 << 22, &text, &len), 0);
	assert_true(len > 1024);
	assert_int_equal(strlen(text), len);
	assert_int_equal(io_read_file(AT_FDCWD, "/proc/self/smaps", 600, &other, &len), -EFBIG);
	assert_null(other);
}

static void test_replace_file(void **state)
{
	const struct place *p = *state;
	CLEANUP_FREE char *text = NULL, *again = NULL;
	struct stat st;
	size_t len;
	mode_t mask = umask(077);

	assert_int_equal(io_replace_file(p->dir, "f", "old", 3, 0644), 0);
	(void)umask(mask);
	assert_int_equal(fstatat(p->dir, "f", &st, 0), 0);
	assert_int_equal(st.st_mode & 07777, 0644);
	assert_int_equal(io_read_file(p->dir, "f", 10, &text, &len), 0);
	assert_string_equal(text, "old");
	assert_int_equal(io_replace_file(p->dir, "f", "newer", 5, 0600), 0);
	assert_int_equal(io_read_file(p->dir, "f", 10, &again, &len), 0);
	assert_string_equal(again, "newer");
	assert_int_equal(empty(p), 1);
}

static void test_replace_failure_leaves_nothing(void **state)
{
	const struct place *p = *state;

	assert_int_equal(mkdirat(p->dir, "dir", 0700), 0);
	assert_int_equal(io_replace_file(p->dir, "dir", "x", 1, 0600), -EISDIR);
	assert_int_equal(io_replace_file(p->dir, "a/b", "x", 1, 0600), -EINVAL);
	assert_int_equal(io_replace_file(p->dir, "", "x", 1, 0600), -EINVAL);
	assert_int_equal(io_replace_file(-1, "f", "x", 1, 0600), -EBADF);
	assert_int_equal(empty(p), 1);
}

static void test_clocks(void **state)
{
	uint64_t before = io_boot_ms();

	(void)state;
	assert_true(before > 0);
	assert_true(io_boot_ms() >= before);
	assert_true(io_unix_time() > 1700000000);
}

static void test_utc(void **state)
{
	static const struct {
		int64_t t;
		const char *text;
	} known[] = {
		{ 0, "1970-01-01T00:00:00Z" },
		{ 1767225600, "2026-01-01T00:00:00Z" },
		{ 951782400, "2000-02-29T00:00:00Z" },
		{ 253402300799, "9999-12-31T23:59:59Z" },
		{ INT64_MAX, "9999-12-31T23:59:59Z" },
		{ INT64_MIN, "1970-01-01T00:00:00Z" },
	};
	char out[21];

	(void)state;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		io_utc(out, known[i].t);
		assert_string_equal(out, known[i].text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_pread_pwrite, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pwritev, setup, teardown),
		cmocka_unit_test_setup_teardown(test_short_writes, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_read_file_refuses, setup, teardown),
		cmocka_unit_test(test_read_file_of_unknown_size),
		cmocka_unit_test_setup_teardown(test_replace_file, setup, teardown),
		cmocka_unit_test_setup_teardown(test_replace_failure_leaves_nothing, setup, teardown),
		cmocka_unit_test(test_clocks),
		cmocka_unit_test(test_utc),
	};

	return cmocka_run_group_tests_name("io", tests, NULL, NULL);
}
